// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions: what is sent for them, and what comes back. Upstream: client/app.py, from
//! `tpc_begin` to `_getFinalTID`. Their state is [`Transaction`].
//!
//! ```text
//!   AskBeginTransaction (master)
//!   AskStoreObject, AskCheckCurrentSerial (all cells)   <- conflicts, NotifyDeadlock
//!   AskStoreTransaction (cells of the ttid), AskVoteTransaction (other storages)
//!   FailedVote (master), if a storage that runs missed something
//!   AskFinishTransaction (master)
//!       | the connection is lost before the answer
//!       v
//!   AskFinalTID (master): not committed, committed with this tid, or: ask the storages
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::engine::{CallId, ConnId, Io};
use neo_common::protocol::{ErrorCode, Packet, StoredData};
use neo_common::types::{NodeId, Oid, Tid, Ttid};

use super::master::MasterOp;
use super::reads::Reader;
use super::{ClientCore, Ticket};
use crate::call::Answer;
use crate::compression::Stored;
use crate::error::Error;
use crate::transactions::{Stage, Told, Transaction, Value, Want};

/// Data that may wait for storages, even if the cache is smaller. In bytes.
const WRITING_BYTES_MIN: usize = 1 << 20;

const UNKNOWN: Error = Error::Transaction("unknown transaction");

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
        io.reply(call, transaction.map(|transaction| Answer::Data(transaction.data(oid))));
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
    fn storing(
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
    fn send_to_cells(
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
    fn wait(&mut self, io: &mut Io<'_, Self>, call: CallId, ttid: Ttid, want: Want) {
        if let Some(transaction) = self.transactions.get_mut(&ttid) {
            transaction.waiting = Some((call, want));
            self.tell(io, ttid);
        }
    }

    /// Tells the application that waits for a transaction what it can be told.
    fn tell(&mut self, io: &mut Io<'_, Self>, ttid: Ttid) {
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
                transaction.error.get_or_insert_with(|| error.clone());
            }
            self.tell(io, ttid);
        }
    }

    // Vote.

    pub(super) fn vote(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        ttid: Ttid,
        user: Bytes,
        description: Bytes,
        extension: Bytes,
    ) {
        let Some(transaction) = self.storing(io, call, ttid) else { return };
        // A lock may have been given back since the application saw that all was stored.
        if transaction.pending != 0 || transaction.unwritten().is_some() {
            self.wait(io, call, ttid, Want::Answers);
            return;
        }
        transaction.stage = Stage::Voting;
        let packet = Packet::AskStoreTransaction {
            ttid,
            user,
            description,
            extension,
            oids: transaction.changed().collect(),
            pack: transaction.pack.clone(),
        };
        let ticket = Ticket::Vote(ttid);
        let cells = self.send_to_cells(io, ttid, ttid.get(), &packet, &ticket);
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        if cells.is_empty() {
            let partition = ttid.partition(self.partitions.unwrap_or(1));
            transaction.error.get_or_insert(Error::NotStored(partition));
        }
        let others: Vec<NodeId> = transaction.alive().filter(|nid| !cells.contains(nid)).collect();
        for nid in others {
            let sent =
                self.send_to_storage(io, nid, Packet::AskVoteTransaction { ttid }, ticket.clone());
            if let Some(transaction) = self.transactions.get_mut(&ttid) {
                if sent {
                    transaction.pending += 1;
                } else {
                    transaction.node_lost(nid);
                }
            }
        }
        self.wait(io, call, ttid, Want::Vote);
    }

    /// All storages have voted, or are lost.
    fn all_voted(&mut self, io: &mut Io<'_, Self>, ttid: Ttid) {
        let Some(transaction) = self.transactions.get(&ttid) else { return };
        if transaction.lost().next().is_none() {
            self.voted(io, ttid, Ok(()));
            return;
        }
        // If some writes failed, each object must have been locked by one storage at least.
        let cells = |partition| self.table.writable(partition).collect();
        if let Some(partition) = transaction.unprotected(cells) {
            self.voted(io, ttid, Err(Error::NotStored(partition)));
            return;
        }
        // Storages that run would not know that they missed something: the master disconnects them
        // at the commit, if the cluster is still operational without them.
        let failed: Vec<NodeId> = transaction.lost().filter(|nid| self.is_running(*nid)).collect();
        if failed.is_empty() {
            self.voted(io, ttid, Ok(()));
            return;
        }
        log::warn!("vote of {ttid} failed on {failed:?}");
        let packet = Packet::FailedVote { ttid, nids: failed };
        let asked = self.ready_conn().is_some_and(|c| io.ask(c, packet, Ticket::FailedVote(ttid)));
        match self.transactions.get_mut(&ttid) {
            Some(transaction) if asked => transaction.stage = Stage::Deciding,
            _ => self.voted(io, ttid, Err(Error::MasterLost)),
        }
    }

    /// The master tells whether the storages that failed can be left out.
    pub(crate) fn failed_vote_answer(
        &mut self,
        io: &mut Io<'_, Self>,
        ttid: Ttid,
        code: ErrorCode,
        message: String,
    ) {
        let result = match code {
            ErrorCode::Ack => Ok(()),
            ErrorCode::IncompleteTransaction => Err(Error::Incomplete),
            _ => Err(Error::Refused(message)),
        };
        self.voted(io, ttid, result);
    }

    fn voted(&mut self, io: &mut Io<'_, Self>, ttid: Ttid, result: Result<(), Error>) {
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return };
        let reply = match (result, transaction.error.clone()) {
            (Ok(()), None) => {
                transaction.stage = Stage::Voted;
                Ok(Answer::Resolved(transaction.resolved()))
            }
            (Err(error), _) | (Ok(()), Some(error)) => {
                transaction.error = Some(error.clone());
                Err(error)
            }
        };
        if let Some((call, _)) = transaction.waiting.take() {
            io.reply(call, reply);
        }
    }

    // Finish.

    pub(super) fn finish(&mut self, io: &mut Io<'_, Self>, call: CallId, ttid: Ttid) {
        let error = match self.transactions.get(&ttid) {
            None => Some(UNKNOWN),
            Some(t) => match &t.error {
                Some(error) => Some(error.clone()),
                None if t.stage != Stage::Voted => {
                    Some(Error::Transaction("the transaction is not voted"))
                }
                None => None,
            },
        };
        let partitions = self.partitions.unwrap_or(1);
        let asked = error.or_else(|| {
            let transaction = self.transactions.get(&ttid)?;
            let packet = Packet::AskFinishTransaction {
                ttid,
                oids: transaction.stored_oids().collect(),
                deleted: transaction.deleted_oids().map(|oid| oid.partition(partitions)).collect(),
                checked: transaction.checked_oids().map(|oid| oid.partition(partitions)).collect(),
                pack: transaction.pack.clone(),
            };
            let conn = self.ready_conn().ok_or(Error::MasterLost).ok();
            let asked = conn.is_some_and(|conn| io.ask(conn, packet, Ticket::Finish(ttid)));
            (!asked).then_some(Error::MasterLost)
        });
        match (asked, self.transactions.remove(&ttid)) {
            (None, Some(transaction)) => {
                self.finishing.insert(ttid, (call, transaction));
            }
            (error, transaction) => {
                // Nothing was asked: the application can still abort.
                self.transactions.extend(transaction.map(|transaction| (ttid, transaction)));
                io.reply(call, Err(error.unwrap_or(UNKNOWN)));
            }
        }
    }

    /// The transaction is committed.
    pub(crate) fn finished(&mut self, io: &mut Io<'_, Self>, ttid: Ttid, tid: Tid) {
        let Some((call, transaction)) = self.finishing.remove(&ttid) else { return };
        for (oid, value) in transaction.into_values() {
            if value == Value::Checked {
                continue;
            }
            self.invalidate(oid, tid);
            if let Value::Data(data) = value {
                self.cache.store(oid, data, tid, None);
            }
        }
        self.received_tid = self.received_tid.max(Some(tid));
        self.deliveries.finished(io, call, tid);
    }

    /// The master refused the commit.
    pub(crate) fn finish_error(
        &mut self,
        io: &mut Io<'_, Self>,
        ttid: Ttid,
        code: ErrorCode,
        message: String,
    ) {
        if let Some((call, _)) = self.finishing.remove(&ttid) {
            let error = match code {
                ErrorCode::IncompleteTransaction => Error::Incomplete,
                ErrorCode::ReadOnlyAccess => Error::ReadOnly(message),
                _ => Error::Refused(message),
            };
            io.reply(call, Err(error));
        }
    }

    /// The answer to the commit is lost: it may be committed or not.
    pub(crate) fn ask_outcome(&mut self, io: &mut Io<'_, Self>, ttid: Ttid) {
        if self.finishing.contains_key(&ttid) {
            log::warn!("connection lost while committing {ttid}: its outcome is to be asked");
            self.master_call(io, MasterOp::FinalTid(ttid));
        }
    }

    /// What the master knows about a commit.
    pub(super) fn outcome_of_master(
        &mut self,
        io: &mut Io<'_, Self>,
        ttid: Ttid,
        tid: Option<Tid>,
    ) {
        if tid == Some(Tid::MAX) {
            // Only the storages know.
            let partition = ttid.partition(self.partitions.unwrap_or(1));
            let packet = Packet::AskFinalTID { ttid };
            self.start_read(io, Reader::Outcome(ttid), partition, packet, None);
        } else {
            self.outcome(io, ttid, tid);
        }
    }

    /// The outcome of a commit is known.
    pub(super) fn outcome(&mut self, io: &mut Io<'_, Self>, ttid: Ttid, tid: Option<Tid>) {
        let Some((call, transaction)) = self.finishing.remove(&ttid) else { return };
        let Some(tid) = tid else {
            log::warn!("{ttid} is not committed");
            io.reply(call, Err(Error::NotCommitted(ttid)));
            return;
        };
        log::info!("{ttid} is committed as {tid}");
        // Later changes of the same objects may have been missed: nothing is stored in the cache.
        for (oid, value) in transaction.into_values() {
            if value != Value::Checked {
                self.invalidate(oid, tid);
            }
        }
        self.received_tid = self.received_tid.max(Some(tid));
        self.deliveries.finished(io, call, tid);
    }

    /// The outcome of a commit cannot be known.
    pub(super) fn outcome_failed(&mut self, io: &mut Io<'_, Self>, ttid: Ttid, error: Error) {
        if let Some((call, _)) = self.finishing.remove(&ttid) {
            log::error!("the outcome of {ttid} is unknown: {error}");
            io.reply(call, Err(Error::OutcomeUnknown(ttid)));
        }
    }

    // Abort.

    pub(super) fn abort(&mut self, io: &mut Io<'_, Self>, call: CallId, ttid: Ttid) {
        io.reply(call, Ok(Answer::Done));
        let Some(transaction) = self.transactions.remove(&ttid) else { return };
        if let Some((call, _)) = transaction.waiting {
            io.reply(call, Err(Error::Transaction("the transaction is aborted")));
        }
        // Storages are told directly, behind what was stored: told only by the master, a storage
        // could see the abort before a store that is on its way, and lock the object for ever.
        for nid in transaction.alive() {
            match self.storages.get_mut(&nid) {
                Some(super::storages::StorageLink::Ready { conn }) => {
                    io.send(*conn, Packet::AbortTransaction { ttid, nids: Vec::new() });
                }
                Some(link) => link.forget(ttid),
                None => {}
            }
        }
        if let Some(conn) = self.ready_conn() {
            let nids = transaction.nodes().collect();
            io.send(conn, Packet::AbortTransaction { ttid, nids });
        }
    }
}
