// SPDX-License-Identifier: GPL-2.0-or-later
//! The end of transactions: vote, commit, abort. Upstream: client/app.py, from `tpc_vote` to
//! `_getFinalTID`.
//!
//! ```text
//!   AskStoreTransaction (cells of the ttid), AskVoteTransaction (other storages)
//!   FailedVote (master), if a storage that runs missed something
//!   AskFinishTransaction (master)
//!       | the connection is lost before the answer
//!       v
//!   AskFinalTID (master): not committed, committed with this tid, or: ask the storages
//! ```

use bytes::Bytes;
use neo_common::engine::{CallId, Io};
use neo_common::planted;
use neo_common::protocol::{ErrorCode, Packet};
use neo_common::types::{NodeId, Tid, Ttid};

use super::master::MasterOp;
use super::reads::Reader;
use super::stores::UNKNOWN;
use super::{ClientCore, Ticket};
use crate::call::Answer;
use crate::error::Error;
use crate::transactions::{Stage, Transaction, Value, Want};

impl ClientCore {
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
    pub(super) fn all_voted(&mut self, io: &mut Io<'_, Self>, ttid: Ttid) {
        let Some(transaction) = self.transactions.get(&ttid) else { return };
        if transaction.lost().next().is_none() {
            self.voted(io, ttid, Ok(()));
            return;
        }
        // If some writes failed, each object must have been locked by one storage at least.
        let cells = |partition| self.table.writable(partition).collect();
        let unprotected = transaction.unprotected(cells);
        if let Some(partition) = unprotected.filter(|_| !planted!(LocklessNotChecked)) {
            self.voted(io, ttid, Err(Error::NotStored(partition)));
            return;
        }
        // Storages that run would not know that they missed something: the master disconnects them
        // at the commit, if the cluster is still operational without them.
        let failed: Vec<NodeId> = transaction.lost().filter(|nid| self.is_running(*nid)).collect();
        if failed.is_empty() || planted!(FailedVoteNotTold) {
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
                io.reply(call, Err(error.unwrap_or(UNKNOWN)));
                let Some(transaction) = transaction else { return };
                if transaction.stage == Stage::Voted {
                    // Nothing was asked, and nobody is going to abort it.
                    self.give_up(io, ttid, transaction);
                } else {
                    self.transactions.insert(ttid, transaction);
                }
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
            if planted!(CommitAssumedFailed) {
                return self.outcome(io, ttid, None);
            }
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
            if let (true, Value::Data(data)) = (planted!(OutcomeFillsCache), value) {
                self.cache.store(oid, data, tid, None);
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
        self.give_up(io, ttid, transaction);
    }

    /// Tells everybody that a transaction is not going to be committed.
    fn give_up(&mut self, io: &mut Io<'_, Self>, ttid: Ttid, transaction: Transaction) {
        // Storages are told directly, behind what was stored: told only by the master, a storage
        // could see the abort before a store that is on its way, and lock the object for ever.
        for nid in transaction.alive().filter(|_| !planted!(AbortOvertakesStore)) {
            match self.storages.get_mut(&nid) {
                Some(super::storages::StorageLink::Ready { conn }) => {
                    io.send(*conn, Packet::AbortTransaction { ttid, nids: Vec::new() });
                }
                Some(link) => link.forget(ttid),
                None => {}
            }
        }
        // A master to which we connected since does not know it, and would close the connection.
        if let Some(conn) = self.ready_conn()
            && !matches!(transaction.error, Some(Error::MasterLost))
        {
            let nids = transaction.nodes().collect();
            io.send(conn, Packet::AbortTransaction { ttid, nids });
        }
    }
}
