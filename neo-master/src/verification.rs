// SPDX-License-Identifier: GPL-2.0-or-later
//! Verification: finishing the transactions that were decided, dropping the others. Upstream:
//! master/verification.py.
//!
//! A transaction is decided once a storage knows its tid (it locked it). Storages that only voted
//! it may have missed that, so all nodes with readable cells are asked what they have, and:
//!
//! ```text
//!   LockedTransactions   {ttid: tid or nothing} of each node
//!   FinalTid             for each ttid without tid: nodes with a readable cell of its partition
//!                        that do not list it may have unlocked it already; asked one by one
//!   ValidateTransaction  sent for each ttid with a tid to the nodes that listed it without; the answer
//!                        to their next question says that this is on disk
//!   ValidateTransaction  to the nodes that listed it with the tid
//!   LastIds              greatest tid and oid, first tid; this is also when storages truncate
//!   PackOrders           orders that are not completed
//! ```
//!
//! Nobody is told to drop the rest: storages drop unfinished data just before they serve clients.
//!
//! A node that knows the tid forgets that the transaction was not finished. So the others come first, unlike
//! upstream, which tells all at once:
//! 1. S1 voted a transaction, S2 locked it. Both are told to finish it. S1 is killed before.
//! 2. S1 has the only readable cell of the partition of the metadata. It is asked again, and so is nobody
//!    else: the transaction looks as if it had never been decided, and S1 drops its part.
//!
//! Nodes without readable cells are not asked, because what they have may be obsolete:
//! 1. S1 and S2 are up-to-date.
//! 2. S1 restarts, S2 stops with a locked transaction that S1 only voted.
//! 3. The cells of S2 become out-of-date, the transaction is dropped.
//! 4. Other transactions are committed, on S1 only.
//! 5. S2 is back: its locked transaction must be dropped, replication gives it the rest.
//!
//! If such a node had locked a transaction that must be kept, a node with readable cells has
//! unlocked it.

use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::{Fault, Handled, Io};
use neo_common::planted;
use neo_common::protocol::Packet;
use neo_common::types::{NodeId, Tid, Ttid};

use crate::app::{Master, Ticket};
use crate::cluster::Cluster;
use crate::pack::Order;
use crate::phase::Transition;

/// See [`crate::transactions::TransactionManager::leave_gap`]; less than a minute.
const GAP_MAX: usize = u32::MAX as usize;

/// What is being asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Start,
    LockedTransactions,
    FinalTid,
    Validate,
    LastIds,
    PackOrders,
}

/// State of a verification.
#[derive(Debug)]
pub struct Verification {
    /// Distinguishes its questions from those of an earlier one.
    round: u32,
    step: Step,
    /// Nodes that have to answer.
    waiting: BTreeSet<NodeId>,
    locked: BTreeMap<Ttid, Tid>,
    /// Who listed it, and whether with the tid.
    voted: BTreeMap<Ttid, BTreeMap<NodeId, bool>>,
    /// Transactions without tid, with the nodes that remain to be asked. The last one is being
    /// asked.
    unknown: Vec<(Ttid, Vec<NodeId>)>,
    /// Who was asked for last ids before the others.
    told_last_ids: BTreeSet<NodeId>,
    last_tid: Tid,
}

impl Verification {
    /// A verification that has asked nothing.
    pub fn new(cluster: &mut Cluster) -> Self {
        cluster.verification_rounds = cluster.verification_rounds.wrapping_add(1);
        Self {
            round: cluster.verification_rounds,
            step: Step::Start,
            waiting: BTreeSet::new(),
            locked: BTreeMap::new(),
            voted: BTreeMap::new(),
            unknown: Vec::new(),
            told_last_ids: BTreeSet::new(),
            last_tid: Tid::ZERO,
        }
    }

    /// Asks the next questions once there are all answers.
    pub fn advance(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
    ) -> Option<Transition> {
        while self.waiting.is_empty() {
            match self.step {
                Step::Start if cluster.backup_tid.is_none() => {
                    log::info!("start to verify data");
                    self.step = Step::LockedTransactions;
                    let nids = cluster.pt.table().readable_nodes();
                    self.ask(cluster, io, nids, &Packet::AskLockedTransactions {});
                }
                Step::LockedTransactions => {
                    self.step = Step::FinalTid;
                    if !planted!(VerificationForgetsUnlocked) {
                        self.unknown = self.unknown(cluster);
                    }
                }
                Step::FinalTid if self.unknown.is_empty() => {
                    self.step = Step::Validate;
                    self.validate(cluster, io, false);
                    self.ask_validated(cluster, io);
                }
                Step::Validate => {
                    self.validate(cluster, io, true);
                    self.ask_last_ids(cluster, io);
                }
                Step::FinalTid => self.ask_final_tid(cluster, io),
                // In a backup cluster, there is no transaction.
                Step::Start => self.ask_last_ids(cluster, io),
                Step::LastIds => {
                    log::info!("last tid: {}", self.last_tid);
                    cluster.last_tid = self.last_tid;
                    cluster.tm.set_last_tid(self.last_tid);
                    let now_us = io.now().realtime_us;
                    let is_ahead = cluster.tm.is_ahead_of(now_us);
                    if planted!(NoGapAfterElection) {
                    } else if is_ahead {
                        cluster.tm.leave_gap(1 + io.prng().below(GAP_MAX) as u32);
                    } else {
                        cluster.tm.skip_until(now_us);
                    }
                    // Storages are truncated.
                    cluster.truncate_tid = None;
                    cluster.truncate_order = None;
                    self.step = Step::PackOrders;
                    let nids = cluster.pt.table().readable_nodes();
                    let completed = cluster.pm.completed_by(&nids);
                    cluster.pm.set_past(completed.unwrap_or(Tid::ZERO));
                    let min_tid = completed.and_then(Tid::next).unwrap_or(Tid::ZERO);
                    self.ask(cluster, io, nids, &Packet::AskPackOrders { min_tid });
                }
                Step::PackOrders => return Some(Transition::Serve),
            }
        }
        None
    }

    fn ask(
        &mut self,
        cluster: &Cluster,
        io: &mut Io<'_, Master>,
        nids: impl IntoIterator<Item = NodeId>,
        packet: &Packet,
    ) {
        for nid in nids {
            if let Some(conn) = cluster.conn_of(nid)
                && io.ask(conn, packet.clone(), Ticket::Verification(self.round))
            {
                self.waiting.insert(nid);
            }
        }
    }

    /// Transactions that nobody locked, as far as is known, with the nodes that may know better.
    fn unknown(&self, cluster: &Cluster) -> Vec<(Ttid, Vec<NodeId>)> {
        let table = cluster.pt.table();
        let unknown = self.voted.iter().filter(|(ttid, _)| !self.locked.contains_key(ttid));
        unknown
            .map(|(ttid, voted)| {
                let readable = table.readable(ttid.partition(table.partitions()));
                (*ttid, readable.filter(|nid| !voted.contains_key(nid)).collect())
            })
            .collect()
    }

    fn ask_final_tid(&mut self, cluster: &Cluster, io: &mut Io<'_, Master>) {
        let Some((ttid, nids)) = self.unknown.last_mut() else { return };
        let ttid = *ttid;
        match nids.pop() {
            Some(nid) => self.ask(cluster, io, [nid], &Packet::AskFinalTID { ttid }),
            None => {
                log::info!("transaction {ttid} was not decided");
                self.unknown.pop();
            }
        }
    }

    /// Nodes that finish a transaction, of those that locked it or of those that did not.
    fn to_validate(&self, has_locked: bool) -> impl Iterator<Item = (Ttid, Tid, NodeId)> {
        self.locked.iter().flat_map(move |(ttid, tid)| {
            let nodes = self.voted.get(ttid).into_iter().flatten();
            let nodes = nodes.filter(move |(_, locked)| **locked == has_locked);
            nodes.map(|(nid, _)| (*ttid, *tid, *nid))
        })
    }

    /// Finishes the transactions for which the client asked to.
    fn validate(&self, cluster: &Cluster, io: &mut Io<'_, Master>, has_locked: bool) {
        for (ttid, tid, nid) in self.to_validate(has_locked) {
            log::info!("finish transaction {ttid} as {tid} on {nid}");
            if let Some(conn) = cluster.conn_of(nid) {
                io.send(conn, Packet::ValidateTransaction { ttid, tid });
            }
        }
    }

    /// Waits for the nodes that did not lock what they have to finish. They are asked for their last ids,
    /// as everybody is, unless something remains to be done before.
    fn ask_validated(&mut self, cluster: &Cluster, io: &mut Io<'_, Master>) {
        let nids: BTreeSet<NodeId> = self.to_validate(false).map(|(_, _, nid)| nid).collect();
        let later: BTreeSet<NodeId> = self.to_validate(true).map(|(_, _, nid)| nid).collect();
        for nid in nids {
            if later.contains(&nid) || cluster.truncate_tid.is_some() {
                self.ask(cluster, io, [nid], &Packet::AskRecovery {});
            } else {
                self.ask(cluster, io, [nid], &Packet::AskLastIDs {});
                self.told_last_ids.insert(nid);
            }
        }
    }

    fn ask_last_ids(&mut self, cluster: &Cluster, io: &mut Io<'_, Master>) {
        self.step = Step::LastIds;
        let told = std::mem::take(&mut self.told_last_ids);
        let others = cluster.storages().map(|(nid, _)| nid).filter(|nid| !told.contains(nid));
        self.ask(cluster, io, others, &Packet::AskLastIDs {});
    }

    /// A storage answered.
    ///
    /// # Errors
    /// If the answer makes no sense.
    pub fn answer(
        &mut self,
        cluster: &mut Cluster,
        nid: NodeId,
        round: u32,
        packet: Packet,
    ) -> Handled {
        if round != self.round || !self.waiting.remove(&nid) {
            return Ok(());
        }
        match packet {
            Packet::AnswerLockedTransactions { transactions } => {
                for (ttid, tid) in transactions {
                    self.voted.entry(ttid).or_default().insert(nid, tid.is_some());
                    if let Some(tid) = tid.filter(|_| !planted!(VerificationDropsLocked)) {
                        self.lock(ttid, tid);
                    }
                }
            }
            Packet::AnswerRecovery { .. } if self.step == Step::Validate => {}
            Packet::AnswerFinalTID { tid } => {
                if let Some(tid) = tid
                    && let Some((ttid, _)) = self.unknown.pop()
                {
                    self.lock(ttid, tid);
                }
            }
            Packet::AnswerLastIDs { last_tid, last_oid, first_tid } => {
                if last_tid.is_some_and(|tid| tid > Tid::MAX) {
                    return Err(Fault::protocol("invalid last tid"));
                }
                let known = if planted!(RecoveredTidTooLow) { Tid::ZERO } else { self.last_tid };
                self.last_tid = known.max(last_tid.unwrap_or(Tid::ZERO));
                if let Some(oid) = last_oid.filter(|_| !planted!(LastOidIgnored)) {
                    cluster.tm.set_last_oid(oid);
                }
                cluster.tm.set_first_tid(first_tid);
            }
            Packet::AnswerPackOrders { orders } => {
                for order in orders {
                    let (tid, order) = Order::parse(order)?;
                    cluster.pm.add(tid, order);
                }
            }
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }

    fn lock(&mut self, ttid: Ttid, tid: Tid) {
        let known = *self.locked.entry(ttid).or_insert(tid);
        if known != tid {
            log::error!("transaction {ttid} has 2 tids: {known} and {tid}");
        }
    }

    /// Nothing is waited for from a storage any more. Returns whether it is lost too early: it did not
    /// tell which transactions it has locked, or whether it finished them.
    pub fn storage_lost(&mut self, nid: NodeId) -> bool {
        self.waiting.remove(&nid) && matches!(self.step, Step::LockedTransactions | Step::Validate)
    }
}
