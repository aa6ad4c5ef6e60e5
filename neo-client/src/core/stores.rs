// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions until the vote: what is sent, and what comes back. Upstream: client/app.py,
//! `tpc_begin` and `_store`; client/handlers/storage.py. Their state is [`Transaction`], their end
//! is in [`super::commits`].
//!
//! ```text
//!   AskBeginTransaction (master)
//!   AskStoreObject, AskCheckCurrentSerial (all cells)   <- conflicts, NotifyDeadlock
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::engine::{CallId, ConnId, Io};
use neo_common::protocol::{ErrorCode, Packet, StoredData};
use neo_common::types::{NodeId, Oid, Tid, Ttid};

use super::master::MasterOp;
use super::{ClientCore, Ticket};
use crate::call::Answer;
use crate::compression::Stored;
use crate::error::Error;
use crate::transactions::{Stage, Told, Transaction, Value, Want};

/// Data that may wait for storages, even if the cache is smaller. In bytes.
const WRITING_BYTES_MIN: usize = 1 << 20;

/// No transaction has this ttid, any more or yet.
pub(super) const UNKNOWN: Error = Error::Transaction("unknown transaction");

impl ClientCore {
    // Begin.

    pub(super) fn begin(&mut self, io: &mut Io<'_, Self>, call: CallId, tid: Option<Tid>) {
        if self.options.read_only {
            io.reply(call, Err(Error::ReadOnly(String::new())));
            return;
        }
        self.master_call(io, MasterOp::Begin(call, tid));
    }

    pub(super) fn begun(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        tid: Option<Tid>,
        ttid: Ttid,
    ) {
        if tid.is_some_and(|tid| tid != ttid.as_tid()) || self.transactions.contains_key(&ttid) {
            io.reply(call, Err(Error::Refused(format!("the master gave the wrong ttid {ttid}"))));
            return;
        }
        let bytes_max = self.cache.bytes_max().max(WRITING_BYTES_MIN);
        self.transactions.insert(ttid, Transaction::new(ttid, bytes_max));
        io.reply(call, Ok(Answer::Begun(ttid)));
    }

    /// Does something with a transaction, and replies at once.
    pub(super) fn with_transaction(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        ttid: Ttid,
        f: impl FnOnce(&mut Transaction),
    ) {
        let reply = match self.transactions.get_mut(&ttid) {
            None => Err(UNKNOWN),
            Some(transaction) => {
                f(transaction);
                Ok(Answer::Done)
            }
        };
        io.reply(call, reply);
    }

    pub(super) fn stored_data(&self, io: &mut Io<'_, Self>, call: CallId, ttid: Ttid, oid: Oid) {
        let transaction = self.transactions.get(&ttid).ok_or(UNKNOWN);
        io.reply(
            call,
            transaction.map(|transaction| {
                match (transaction.data(oid), transaction.copy_of(oid)) {
                    (None, Some(serial)) => Answer::CopyOf(serial),
                    (data, _) => Answer::Data(data),
                }
            }),
        );
    }

    // Store.

    pub(super) fn store(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        ttid: Ttid,
        packet: Packet,
        data: Option<Bytes>,
        resolves: Option<Tid>,
    ) {
        let Packet::AskStoreObject { oid, serial, data_serial, .. } = packet else { return };
        let Some(transaction) = self.storing(io, call, ttid) else { return };
        if let Some(committed) = resolves {
            transaction.resolve(oid, committed);
        }
        transaction.set_deleted(oid, data.is_none() && data_serial.is_none());
        transaction.set_copy(oid, data_serial);
        let value = data.map_or(Value::Nothing, Value::Data);
        self.write(io, call, ttid, packet, oid, serial, value);
    }

    pub(super) fn check_serial(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        ttid: Ttid,
        oid: Oid,
        serial: Tid,
    ) {
        let Some(transaction) = self.storing(io, call, ttid) else { return };
        if transaction.contains(oid) {
            // Storing checks as well.
            self.wait(io, call, ttid, Want::Room);
            return;
        }
        let packet = Packet::AskCheckCurrentSerial { ttid, oid, serial };
        self.write(io, call, ttid, packet, oid, serial, Value::Checked);
    }

    /// The transaction, if something can be stored in it.
    pub(super) fn storing(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        ttid: Ttid,
    ) -> Option<&mut Transaction> {
        let error = match self.transactions.get(&ttid) {
            None => UNKNOWN,
            Some(transaction) => match &transaction.error {
                Some(error) => error.clone(),
                None if transaction.stage != Stage::Storing || transaction.waiting.is_some() => {
                    Error::Transaction("the transaction is being voted or committed")
                }
                None => return self.transactions.get_mut(&ttid),
            },
        };
        io.reply(call, Err(error));
        None
    }

    /// Sends a store or a check to all cells.
    #[allow(clippy::too_many_arguments)] // Called twice, just above.
    fn write(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        ttid: Ttid,
        packet: Packet,
        oid: Oid,
        serial: Tid,
        value: Value,
    ) {
        let Some(number) = self.transactions.get_mut(&ttid).map(Transaction::next_number) else {
            return;
        };
        let ticket = Ticket::Store(ttid, oid, number);
        let nodes = self.send_to_cells(io, ttid, oid.get(), &packet, &ticket);
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        if nodes.is_empty() {
            let partition = oid.partition(self.partitions.unwrap_or(1));
            transaction.error.get_or_insert(Error::NotStored(partition));
        }
        transaction.written_to(oid, value, serial, number, nodes);
        self.wait(io, call, ttid, Want::Room);
    }

    /// Sends a request to all cells of a partition, readable or not. Returns the storages.
    pub(super) fn send_to_cells(
        &mut self,
        io: &mut Io<'_, Self>,
        ttid: Ttid,
        number: u64,
        packet: &Packet,
        ticket: &Ticket,
    ) -> Vec<NodeId> {
        let Some(partitions) = self.partitions else { return Vec::new() };
        let partition = (number % u64::from(partitions)) as u32;
        let cells: Vec<NodeId> = self.table.writable(partition).collect();
        let mut nodes = Vec::with_capacity(cells.len());
        for nid in cells {
            let Some(transaction) = self.transactions.get_mut(&ttid) else { break };
            transaction.involve(nid);
            if transaction.is_lost(nid) {
                continue;
            }
            if self.send_to_storage(io, nid, packet.clone(), ticket.clone()) {
                nodes.push(nid);
                if let Some(transaction) = self.transactions.get_mut(&ttid) {
                    transaction.pending += 1;
                }
            } else if let Some(transaction) = self.transactions.get_mut(&ttid) {
                transaction.node_lost(nid);
            }
        }
        nodes
    }

    pub(super) fn wait_stores(&mut self, io: &mut Io<'_, Self>, call: CallId, ttid: Ttid) {
        if self.storing(io, call, ttid).is_some() {
            self.wait(io, call, ttid, Want::Answers);
        }
    }

    /// Replies as soon as there is something to tell.
    pub(super) fn wait(&mut self, io: &mut Io<'_, Self>, call: CallId, ttid: Ttid, want: Want) {
        if let Some(transaction) = self.transactions.get_mut(&ttid) {
            transaction.waiting = Some((call, want));
            self.tell(io, ttid);
        }
    }

    /// Tells the application that waits for a transaction what it can be told.
    pub(super) fn tell(&mut self, io: &mut Io<'_, Self>, ttid: Ttid) {
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        let Some((call, want)) = transaction.waiting else { return };
        let Some(told) = transaction.tell(want) else { return };
        let reply = match told {
            Told::Done if want == Want::Answers && transaction.unwritten().is_some() => {
                let oid = transaction.unwritten().unwrap_or_default();
                Err(Error::NotStored(oid.partition(self.partitions.unwrap_or(1))))
            }
            Told::Done => Ok(Answer::Done),
            Told::Conflicts(conflicts) => Ok(Answer::Conflicts(conflicts)),
            Told::Failed(error) => Err(error),
            Told::Voted => {
                self.all_voted(io, ttid);
                return;
            }
        };
        transaction.waiting = None;
        io.reply(call, reply);
    }

    // Answers of storages.

    pub(crate) fn store_answer(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        (ttid, oid, number): (Ttid, Oid, u64),
        conflict: Option<Tid>,
    ) {
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        transaction.pending -= 1;
        if let Some(nid) = io.nid(conn) {
            match conflict {
                None => transaction.stored(nid, oid, number),
                Some(Tid::ZERO) => {
                    let partition = oid.partition(self.partitions.unwrap_or(1));
                    transaction.stored_lockless(nid, oid, number, partition);
                }
                Some(committed) => {
                    log::info!("{nid} reports a conflict on {oid}:{ttid} with {committed}");
                    transaction.conflict(oid, committed);
                }
            }
        }
        self.tell(io, ttid);
    }

    /// An older transaction wants an object that is locked for this one.
    pub(crate) fn notify_deadlock(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        ttid: Ttid,
        oid: Oid,
    ) {
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        // Once everything is stored, this transaction waits for no lock: no deadlock is possible.
        if transaction.stage != Stage::Storing || transaction.error.is_some() {
            return;
        }
        log::info!("deadlock avoidance triggered for {oid}:{ttid}");
        if io.ask(conn, Packet::AskRelockObject { ttid, oid }, Ticket::Relock(ttid, oid)) {
            transaction.pending += 1;
        }
    }

    pub(crate) fn relock_answer(
        &mut self,
        io: &mut Io<'_, Self>,
        ttid: Ttid,
        oid: Oid,
        conflict: Option<(Tid, Tid, Option<StoredData>)>,
    ) {
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        transaction.pending -= 1;
        if let Some((serial, committed, stored)) = conflict {
            // What is still being written is known here.
            let stored = stored.filter(|_| transaction.is_written(oid));
            let stored = stored.map(|(compression, checksum, data)| {
                Stored { compression: Some(compression), checksum, data }.load()
            });
            match stored.transpose() {
                Ok(data) => transaction.relock_conflict(oid, serial, committed, data),
                Err(_) => transaction.error = Some(Error::WrongChecksum { oid, serial }),
            }
        }
        self.tell(io, ttid);
    }

    pub(crate) fn vote_answer(&mut self, io: &mut Io<'_, Self>, ttid: Ttid) {
        if let Some(transaction) = self.transactions.get_mut(&ttid) {
            transaction.pending -= 1;
            self.tell(io, ttid);
        }
    }

    /// A storage refused a request of a transaction.
    pub(crate) fn write_error(
        &mut self,
        io: &mut Io<'_, Self>,
        ticket: &Ticket,
        code: ErrorCode,
        message: String,
    ) {
        let (ttid, oid) = match ticket {
            Ticket::Store(ttid, oid, _) | Ticket::Relock(ttid, oid) => (*ttid, Some(*oid)),
            Ticket::Vote(ttid) => (*ttid, None),
            _ => return,
        };
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        transaction.pending -= 1;
        transaction.error.get_or_insert(match code {
            ErrorCode::ReadOnlyAccess => Error::ReadOnly(message),
            ErrorCode::UndoPackError => {
                Error::Undo { reason: "data to go back to was packed away", oid }
            }
            _ => Error::Refused(message),
        });
        self.tell(io, ttid);
    }

    /// A storage is gone, with so many requests of each transaction.
    pub(super) fn transactions_lost(
        &mut self,
        io: &mut Io<'_, Self>,
        nid: NodeId,
        requests: &BTreeMap<Ttid, u32>,
    ) {
        for (ttid, transaction) in &mut self.transactions {
            // What is voted survives the loss of the connection.
            if transaction.stage != Stage::Voted {
                transaction.node_lost(nid);
            }
            if let Some(count) = requests.get(ttid) {
                transaction.pending = transaction.pending.saturating_sub(*count);
            }
        }
        for ttid in self.transactions.keys().copied().collect::<Vec<_>>() {
            self.tell(io, ttid);
        }
    }

    /// No transaction under way can be committed any more.
    pub(super) fn fail_transactions(&mut self, io: &mut Io<'_, Self>, error: &Error) {
        for ttid in self.transactions.keys().copied().collect::<Vec<_>>() {
            if let Some(transaction) = self.transactions.get_mut(&ttid) {
                // Also if it failed before: the next master does not know it.
                transaction.error = Some(error.clone());
            }
            self.tell(io, ttid);
        }
    }
}
