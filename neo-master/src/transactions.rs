// SPDX-License-Identifier: GPL-2.0-or-later
//! Current transactions, and where tids and oids come from. Upstream: master/transactions.py.
//!
//! ```text
//!   begin --> (client talks to storages) --> prepare --> locked by storage ... --> pop_locked
//!     |                                        queue: in order of AskFinishTransaction
//!     +--> abort, client_lost
//! ```
//!
//! Transactions end in the order in which they were asked to finish, so that tids are told in
//! increasing order: one whose storages all locked it may wait for another one.
//!
//! **Ids.** Ttids and tids come from one sequence that strictly increases whatever the clock does,
//! and also over ttids that were given up (upstream forgets those): a storage that is late to hear
//! of an abort never sees the same ttid for something else. The tid of a transaction is congruent
//! to its ttid modulo the number of partitions, so that its metadata stays where it was voted. A
//! client may impose a tid (import of a database); then its transaction must be alone.
//!
//! Nothing here sends: what has to be told is returned. A ttid belongs to the connection that began
//! it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use neo_common::engine::{ConnId, EventQueue, Fault, Handled};
use neo_common::planted;
use neo_common::time::{add_tid, next_tid, tid_from_time};
use neo_common::types::{NodeId, Oid, Partition, Ptid, Tid, Ttid};

use crate::cluster::ReplyTo;

/// Who wants to know when a transaction ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Waiting {
    /// Storages that cannot complete a replication before.
    pub storages: BTreeSet<NodeId>,
    /// Clients that lost their connection while they finished it.
    pub clients: Vec<ReplyTo>,
}

/// A transaction that is being finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finishing {
    /// Final.
    pub tid: Tid,
    /// Where the client waits.
    pub reply_to: ReplyTo,
    /// Objects whose data changed.
    pub oids: Vec<Oid>,
    /// Partitions where objects changed, those of deleted ones included.
    pub partitions: Vec<Partition>,
    /// Version of the partition table when they were last asked: those that store the metadata have it
    /// once they have answered.
    pub ptid: Option<Ptid>,
    /// Storages that must make the data visible.
    pub involved: Vec<NodeId>,
    /// Those that have not locked it yet, or not stored that version: once for each answer.
    pub locking: Vec<NodeId>,
}

/// A transaction that began and has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Who began it. `None` if it is gone while the transaction was being finished.
    pub client: Option<ConnId>,
    /// Storages that were ready by then know the transaction in full.
    pub readiness: u64,
    /// Storages that could not store all of it and will be disconnected for that.
    pub failed: BTreeSet<NodeId>,
    /// Cells that were assigned since it began. The client may have stored in them or not: they replicate
    /// it once it is finished.
    pub younger: BTreeSet<(Partition, NodeId)>,
    /// Storages that got or lost a cell meanwhile: they may have voted it, and not have to lock it.
    pub left: BTreeSet<NodeId>,
    /// Who wants to know the end.
    pub waiting: Waiting,
    /// Set once the client asked to finish.
    pub finishing: Option<Finishing>,
}

/// A request that cannot be answered yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delayed {
    /// `AskBeginTransaction`.
    Begin(Option<Tid>),
    /// `FailedVote`.
    FailedVote(Ttid, Vec<NodeId>),
}

/// What a client reports when it could not store or vote everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vote {
    /// The transaction may be finished.
    Ok,
    /// It would make the cluster non-operational.
    Incomplete,
    /// It depends on how other transactions end.
    Later,
}

/// What a transaction changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// Objects stored, and not deleted.
    pub oids: Vec<Oid>,
    /// Partitions where objects changed, those of deleted ones included. Sorted.
    pub partitions: Vec<Partition>,
    /// Version of the partition table.
    pub ptid: Option<Ptid>,
}

/// Requests of clients that may wait, and transactions that may be open: more is a mistake.
const PENDING_MAX: usize = 1 << 20;

/// Current transactions, and the last ids that were given.
#[derive(Debug)]
pub struct TransactionManager {
    transactions: BTreeMap<Ttid, Transaction>,
    /// Transactions that are being finished, in order; and one whose tid is imposed.
    queue: VecDeque<Ttid>,
    /// The transaction whose tid is imposed, until it is being finished.
    imposed: Option<Ttid>,
    /// Greatest ttid or tid that was ever given or found.
    last_used: Tid,
    last_oid: Oid,
    /// Greatest oid that was ever given or found.
    last_used_oid: Oid,
    first_tid: Tid,
    delayed: EventQueue<(), (ReplyTo, Delayed)>,
    /// Something changed that may allow delayed requests.
    retry: bool,
}

fn unknown(ttid: Ttid) -> Fault {
    Fault::protocol(format!("unknown ttid {ttid}"))
}
fn exhausted() -> Fault {
    Fault::protocol("no more tid")
}
fn concurrent() -> Fault {
    Fault::protocol(
        "There can't be concurrent transactions when a TID is specified for any of them.",
    )
}

impl TransactionManager {
    /// Of an empty database.
    pub fn new() -> Self {
        Self {
            transactions: BTreeMap::new(),
            queue: VecDeque::new(),
            imposed: None,
            last_used: Tid::ZERO,
            last_oid: Oid::ZERO,
            last_used_oid: Oid::ZERO,
            first_tid: Tid::MAX,
            delayed: EventQueue::default(),
            retry: false,
        }
    }

    /// Forgets everything but the last ids that were used: tids keep increasing, and an oid that
    /// was given but not stored yet is not given again.
    pub fn reset(&mut self) {
        let Self { last_used, mut last_used_oid, .. } = *self;
        if planted!(ReusedOid) {
            last_used_oid = Oid::ZERO;
        }
        *self = Self { last_used, last_used_oid, ..Self::new() };
    }
    /// Forgets all transactions and delayed requests. The last ids can still be asked.
    pub fn abandon(&mut self) {
        self.transactions.clear();
        self.queue.clear();
        self.imposed = None;
        self.delayed = EventQueue::default();
    }

    // Ids.

    /// A transaction with this tid exists.
    pub fn set_last_tid(&mut self, tid: Tid) {
        self.last_used = self.last_used.max(tid);
    }
    /// Whether the last id is later than that time: the next ones only follow it.
    pub fn is_ahead_of(&self, now_us: u64) -> bool {
        self.last_used >= tid_from_time(now_us)
    }
    /// Ids are later than that time from now on, even if the clock goes back before the first one is given:
    /// see [`Self::leave_gap`].
    pub fn skip_until(&mut self, now_us: u64) {
        self.last_used = self.last_used.max(tid_from_time(now_us));
    }
    /// Skips so many ids: a random number, if the clock is late.
    ///
    /// Ids that just follow the last one that is stored may have been given as ttids by another
    /// master, whose clock was late as well:
    /// 1. A client asks to finish transaction 11. The master is lost; it is not committed.
    /// 2. The next master only finds tid 10, and gives ttid 11 to another client, which commits.
    /// 3. The first client asks what became of 11, and is told that it is committed.
    pub fn leave_gap(&mut self, gap: u32) {
        if let Some(tid) = add_tid(self.last_used, gap.into()) {
            self.last_used = tid;
        }
    }
    /// Objects up to this oid may exist.
    pub fn set_last_oid(&mut self, oid: Oid) {
        self.last_oid = self.last_oid.max(oid);
        self.last_used_oid = self.last_used_oid.max(oid);
    }
    /// Greatest oid that was given or stored since the database was verified.
    pub const fn last_oid(&self) -> Oid {
        self.last_oid
    }
    /// A transaction with this tid exists.
    pub fn set_first_tid(&mut self, tid: Tid) {
        self.first_tid = self.first_tid.min(tid);
    }
    /// Tid of the first transaction; [`Tid::MAX`] without any.
    pub const fn first_tid(&self) -> Tid {
        self.first_tid
    }
    /// Greatest id of a current transaction; `None` without any.
    pub fn last_tid(&self) -> Option<Tid> {
        let ttid = self.transactions.keys().next_back()?.as_tid();
        let last = self.queue.back().and_then(|ttid| self.transactions.get(ttid));
        let tid = last.and_then(|transaction| transaction.finishing.as_ref()).map(|f| f.tid);
        Some(tid.map_or(ttid, |tid| tid.max(ttid)))
    }
    /// Gives consecutive oids that were never given. `None` if there are not enough.
    pub fn new_oids(&mut self, count: u32) -> Option<Vec<Oid>> {
        let old = self.last_used_oid.get();
        let last = old.checked_add(u64::from(count)).filter(|last| *last < Oid::INVALID.get())?;
        if count > 0 {
            self.set_last_oid(Oid::new(last));
        }
        Some((old..last).map(|oid| Oid::new(oid + 1)).collect())
    }

    // Transactions.

    /// Whether there is a current transaction.
    pub fn has_pending(&self) -> bool {
        !self.transactions.is_empty()
    }
    /// Current transactions.
    pub fn iter(&self) -> impl Iterator<Item = (Ttid, &Transaction)> {
        self.transactions.iter().map(|(ttid, transaction)| (*ttid, transaction))
    }

    /// Begins a transaction. `last_tid`: of the last committed transaction.
    ///
    /// # Errors
    /// If a tid is imposed that cannot be used.
    pub fn begin(
        &mut self,
        client: ConnId,
        readiness: u64,
        imposed: Option<Tid>,
        last_tid: Tid,
        now_us: u64,
    ) -> Result<Ttid, Fault> {
        if self.transactions.len() >= PENDING_MAX {
            return Err(Fault::protocol("too many transactions"));
        }
        let ttid = match imposed {
            None if self.imposed.is_some() => return Err(concurrent()),
            None => {
                let last =
                    if planted!(TtidReused) { last_tid } else { self.last_used.max(last_tid) };
                self.last_used = next_tid(last, now_us, None).ok_or_else(exhausted)?;
                self.last_used.as_ttid()
            }
            Some(_) if self.has_pending() => return Err(concurrent()),
            Some(tid) if tid <= last_tid => {
                let message = "new TID must be greater than the last committed one";
                return Err(Fault::protocol(message));
            }
            // Storages could not store it.
            Some(tid) if tid >= Tid::MAX => return Err(Fault::protocol("invalid TID")),
            Some(tid) => {
                self.set_last_tid(tid);
                self.imposed = Some(tid.as_ttid());
                self.queue.push_back(tid.as_ttid());
                tid.as_ttid()
            }
        };
        let transaction = Transaction {
            client: Some(client),
            readiness,
            failed: BTreeSet::new(),
            younger: BTreeSet::new(),
            left: BTreeSet::new(),
            waiting: Waiting::default(),
            finishing: None,
        };
        self.transactions.insert(ttid, transaction);
        Ok(ttid)
    }

    /// A transaction that belongs to this client.
    fn of_client(&mut self, ttid: Ttid, client: ConnId) -> Result<&mut Transaction, Fault> {
        self.transactions
            .get_mut(&ttid)
            .filter(|transaction| transaction.client == Some(client))
            .ok_or_else(|| unknown(ttid))
    }

    /// A transaction of this client that is not being finished.
    ///
    /// # Errors
    /// If there is none.
    pub fn voting(&mut self, ttid: Ttid, client: ConnId) -> Result<&mut Transaction, Fault> {
        let transaction = self.of_client(ttid, client)?;
        match transaction.finishing {
            None => Ok(transaction),
            Some(_) => Err(Fault::protocol(format!("commit already requested for ttid {ttid}"))),
        }
    }

    /// Whether a transaction may be finished although some storages could not store all of it.
    ///
    /// `failed`: those of them that are supposed to know it. `operational`: whether the cluster
    /// could go on without these storages.
    ///
    /// # Errors
    /// If the client has no such transaction.
    pub fn vote(
        &mut self,
        ttid: Ttid,
        client: ConnId,
        failed: &BTreeSet<NodeId>,
        operational: impl Fn(&BTreeSet<NodeId>) -> bool,
    ) -> Result<Vote, Fault> {
        self.voting(ttid, client)?;
        if failed.is_empty() {
            return Ok(Vote::Ok);
        }
        // Data would only be on these storages, and not all of it.
        if !operational(failed) {
            return Ok(Vote::Incomplete);
        }
        // Other transactions were voted. Unless they are aborted, this one could not be finished.
        let others = self.transactions.values().flat_map(|transaction| &transaction.failed);
        if !operational(&others.chain(failed).copied().collect()) {
            return Ok(Vote::Later);
        }
        self.voting(ttid, client)?.failed = failed.clone();
        Ok(Vote::Ok)
    }

    /// Begins to finish a transaction: chooses its tid, and waits for `involved` to lock it.
    ///
    /// # Errors
    /// If the client has no such transaction.
    pub fn prepare(
        &mut self,
        ttid: Ttid,
        reply_to: ReplyTo,
        content: Content,
        involved: Vec<NodeId>,
        (partitions, now_us): (u32, u64),
    ) -> Result<Tid, Fault> {
        self.voting(ttid, reply_to.conn)?;
        let tid = if self.imposed == Some(ttid) {
            self.imposed = None;
            ttid.as_tid()
        } else {
            let last = if planted!(WrongNextTid) { Tid::ZERO } else { self.last_used };
            self.last_used =
                next_tid(last, now_us, Some((ttid, partitions))).ok_or_else(exhausted)?;
            self.queue.push_back(ttid);
            self.last_used
        };
        if let Some(oid) = content.oids.iter().max() {
            self.set_last_oid(*oid);
        }
        self.voting(ttid, reply_to.conn)?.finishing = Some(Finishing {
            tid,
            reply_to,
            oids: content.oids,
            partitions: content.partitions,
            ptid: content.ptid,
            locking: involved.clone(),
            involved,
        });
        Ok(tid)
    }

    /// A storage has locked a transaction, or stored the version of [`Self::confirm`]. Then
    /// [`Self::pop_locked`] must be called.
    ///
    /// # Errors
    /// If it was not asked to.
    pub fn lock(&mut self, ttid: Ttid, nid: NodeId) -> Result<(), Fault> {
        let transaction = self.transactions.get_mut(&ttid).ok_or_else(|| unknown(ttid))?;
        let finishing = transaction.finishing.as_mut().ok_or_else(|| unknown(ttid))?;
        let index = finishing.locking.iter().position(|other| *other == nid);
        finishing.locking.swap_remove(index.ok_or_else(|| unknown(ttid))?);
        Ok(())
    }

    /// Takes the first transaction to end, if all storages have locked it.
    pub fn pop_locked(&mut self) -> Option<(Ttid, Transaction)> {
        if planted!(FinishOutOfOrder) {
            let is_locked =
                |t: &Transaction| t.finishing.as_ref().is_some_and(|f| f.locking.is_empty());
            self.queue.make_contiguous().sort_by_key(|ttid| !is_locked(&self.transactions[ttid]));
        }
        let ttid = *self.queue.front()?;
        let transaction = self.transactions.get(&ttid).expect("queued transactions exist");
        let finishing = transaction.finishing.as_ref()?;
        let enough =
            planted!(FinishedOnMajority) && finishing.locking.len() * 2 < finishing.involved.len();
        if !finishing.locking.is_empty() && !enough {
            return None;
        }
        self.first_tid = self.first_tid.min(finishing.tid);
        self.queue.pop_front();
        self.retry = true;
        self.transactions.remove(&ttid).map(|transaction| (ttid, transaction))
    }

    /// Forgets a transaction of this client that is not being finished.
    ///
    /// # Errors
    /// If there is none.
    pub fn abort(&mut self, ttid: Ttid, client: ConnId) -> Result<Waiting, Fault> {
        self.voting(ttid, client)?;
        Ok(self.remove(ttid))
    }

    fn remove(&mut self, ttid: Ttid) -> Waiting {
        if self.imposed == Some(ttid) {
            self.imposed = None;
            self.queue.retain(|other| *other != ttid);
        }
        self.retry = true;
        self.transactions.remove(&ttid).map(|transaction| transaction.waiting).unwrap_or_default()
    }

    /// A client is gone. Its transactions are aborted, and returned, except those that are being
    /// finished.
    pub fn client_lost(&mut self, client: ConnId) -> Vec<(Ttid, Waiting)> {
        self.delayed.retain(|(), (reply_to, _)| reply_to.conn != client);
        let mut aborted = Vec::new();
        for (ttid, transaction) in &mut self.transactions {
            transaction.waiting.clients.retain(|reply_to| reply_to.conn != client);
            if transaction.client == Some(client) {
                transaction.client = None;
                if transaction.finishing.is_none() {
                    aborted.push(*ttid);
                }
            }
        }
        aborted.into_iter().map(|ttid| (ttid, self.remove(ttid))).collect()
    }

    /// Nothing is waited for any more from a storage. Then [`Self::pop_locked`] must be called. Returns
    /// the transactions that go on without an answer of it.
    pub fn storage_lost(&mut self, nid: NodeId) -> Vec<Ttid> {
        let mut without = Vec::new();
        for (ttid, transaction) in &mut self.transactions {
            transaction.waiting.storages.remove(&nid);
            if let Some(finishing) = &mut transaction.finishing {
                finishing.involved.retain(|other| *other != nid);
                let count = finishing.locking.len();
                finishing.locking.retain(|other| *other != nid);
                if finishing.locking.len() != count {
                    without.push(*ttid);
                }
            }
        }
        without
    }

    /// Storages of a transaction that is being finished, among these, have to store this version of the
    /// partition table before it is committed. Returns which of them.
    pub fn confirm(
        &mut self,
        ttid: Ttid,
        ptid: Option<Ptid>,
        among: impl Fn(NodeId) -> bool,
    ) -> Vec<NodeId> {
        let transaction = self.transactions.get_mut(&ttid);
        let Some(finishing) = transaction.and_then(|transaction| transaction.finishing.as_mut())
        else {
            return Vec::new();
        };
        finishing.ptid = ptid;
        let nids: Vec<NodeId> =
            finishing.involved.iter().copied().filter(|nid| among(*nid)).collect();
        finishing.locking.extend(&nids);
        nids
    }

    /// A storage got a cell.
    pub fn cell_assigned(&mut self, partition: Partition, nid: NodeId) {
        for transaction in self.transactions.values_mut() {
            transaction.younger.insert((partition, nid));
            transaction.left.insert(nid);
        }
    }

    /// A storage lost a cell.
    pub fn cell_discarded(&mut self, nid: NodeId) {
        for transaction in self.transactions.values_mut() {
            transaction.left.insert(nid);
        }
    }

    /// A storage begins a replication: it must be told the end of all current transactions.
    pub fn wait_for_all(&mut self, nid: NodeId) -> Vec<Ttid> {
        for transaction in self.transactions.values_mut() {
            transaction.waiting.storages.insert(nid);
        }
        self.transactions.keys().copied().collect()
    }

    /// A client must be told the end of a transaction. `false` if it is not a current one.
    ///
    /// # Errors
    /// If too many requests wait for that.
    pub fn wait_for(&mut self, ttid: Ttid, reply_to: ReplyTo) -> Result<bool, Fault> {
        let Some(transaction) = self.transactions.get_mut(&ttid) else { return Ok(false) };
        if transaction.waiting.clients.len() >= PENDING_MAX {
            return Err(Fault::protocol("too many requests"));
        }
        transaction.waiting.clients.push(reply_to);
        Ok(true)
    }

    // Delayed requests.

    /// A request has to wait.
    ///
    /// # Errors
    /// If too many of them wait already.
    pub fn delay(&mut self, reply_to: ReplyTo, request: Delayed) -> Handled {
        if self.delayed.len() >= PENDING_MAX {
            return Err(Fault::protocol("too many requests"));
        }
        self.delayed.push((), (reply_to, request));
        Ok(())
    }
    /// Delayed requests may have become possible.
    pub const fn retry(&mut self) {
        self.retry = true;
    }
    /// Takes all delayed requests, in order of arrival, if some may have become possible.
    pub fn take_retriable(&mut self) -> Vec<(ReplyTo, Delayed)> {
        if !std::mem::take(&mut self.retry) || self.delayed.is_empty() {
            return Vec::new();
        }
        let mut sweep = self.delayed.sweep();
        std::iter::from_fn(|| self.delayed.take(&mut sweep)).map(|((), event)| event).collect()
    }
    /// For logs: what is going on.
    pub fn log(&self) {
        log::info!("transactions: {}", self.transactions.len());
        for (ttid, transaction) in &self.transactions {
            let finishing = transaction.finishing.as_ref();
            log::info!(
                "  {ttid} client={:?} tid={:?} locking={:?}",
                transaction.client,
                finishing.map(|finishing| finishing.tid),
                finishing.map_or(&[][..], |finishing| &finishing.locking),
            );
        }
        for (_, (reply_to, request)) in self.delayed.iter() {
            log::info!("  delayed for {:?}: {request:?}", reply_to.conn);
        }
    }
}

impl Default for TransactionManager {
    fn default() -> Self {
        Self::new()
    }
}
