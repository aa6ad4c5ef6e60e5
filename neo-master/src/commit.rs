// SPDX-License-Identifier: GPL-2.0-or-later
//! What the master does to commit: between the requests of clients and the storages. Upstream:
//! master/handlers/client.py, and `onTransactionCommitted` of master/app.py.
//!
//! ```text
//!   client               master                     storages involved
//!     | AskFinishTransaction |                              |
//!     |--------------------->| AskLockInformation           |
//!     |                      |----------------------------->|
//!     |                      |      AnswerInformationLocked |
//!     |                      |<-----------------------------|
//!     | AnswerTransaction-   | NotifyUnlockInformation      |
//!     |           Finished   |----------------------------->|
//!     |<---------------------|
//!                            | InvalidateObjects --> other clients
//! ```
//!
//! The cost of all this depends on what the transaction touches: partitions, the storages that have
//! them, and the clients that must be told.

use std::collections::BTreeSet;

use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::node::Node;
use neo_common::planted;
use neo_common::protocol::{ErrorCode, PackRequest, Packet};
use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use crate::app::{Master, Ticket};
use crate::cluster::{Cluster, ReplyTo, Service};
use crate::handlers::storage::drop_storage;
use crate::transactions::{Content, Delayed, Transaction, Vote, Waiting};

/// What a client says that its transaction changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Objects stored, and not deleted.
    pub oids: Vec<Oid>,
    /// Partitions of deleted objects.
    pub deleted: Vec<Partition>,
    /// Partitions of objects that were only checked.
    pub checked: Vec<Partition>,
    /// What to pack, and up to when.
    pub pack: Option<PackRequest>,
}

/// `AskBeginTransaction`.
///
/// # Errors
/// If a tid is imposed that cannot be used.
pub fn begin(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    reply_to: ReplyTo,
    imposed: Option<Tid>,
) -> Handled {
    let cluster = &mut app.cluster;
    if cluster.delays_begin() {
        return cluster.tm.delay(reply_to, Delayed::Begin(imposed));
    }
    let (readiness, last_tid) = (cluster.readiness(), cluster.last_tid);
    let now_us = io.now().realtime_us;
    let ttid = cluster.tm.begin(reply_to.conn, readiness, imposed, last_tid, now_us)?;
    io.answer(reply_to.conn, reply_to.id, Packet::AnswerBeginTransaction { ttid });
    Ok(())
}

/// `FailedVote`: some storages could not store or vote. May the transaction be finished?
///
/// # Errors
/// If the client has no such transaction.
pub fn vote(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    reply_to: ReplyTo,
    ttid: Ttid,
    nids: Vec<NodeId>,
) -> Handled {
    let cluster = &mut app.cluster;
    let readiness = cluster.tm.voting(ttid, reply_to.conn)?.readiness;
    // The client does not know which storages are not expected to know the transaction in full.
    let is_ready = |nid: &NodeId| cluster.ready_since(*nid, readiness).is_some();
    let failed: BTreeSet<NodeId> = nids.iter().copied().filter(is_ready).collect();
    let Cluster { tm, pt, nm, .. } = cluster;
    let operational = |failed: &BTreeSet<NodeId>| {
        pt.operational(|nid| nm.by_nid(nid).is_some_and(Node::is_running) && !failed.contains(&nid))
    };
    let answer = match tm.vote(ttid, reply_to.conn, &failed, operational)? {
        Vote::Ok => Packet::ack(""),
        Vote::Incomplete => Packet::error(ErrorCode::IncompleteTransaction, ""),
        Vote::Later => return tm.delay(reply_to, Delayed::FailedVote(ttid, nids)),
    };
    io.answer(reply_to.conn, reply_to.id, answer);
    Ok(())
}

/// `AskFinishTransaction`.
///
/// # Errors
/// If the client has no such transaction, or it makes no sense.
pub fn finish(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    reply_to: ReplyTo,
    ttid: Ttid,
    changes: Changes,
) -> Handled {
    let last_tid = app.cluster.last_tid;
    if let Some((_, time)) = &changes.pack
        && (*time <= Tid::ZERO || *time > last_tid)
    {
        return Err(Fault::protocol("invalid pack time"));
    }
    let partitions = app.cluster.pt.partitions();
    let Changes { oids, deleted, checked, pack } = changes;
    if deleted.iter().chain(&checked).any(|partition| *partition >= partitions) {
        return Err(Fault::protocol("invalid partition"));
    }
    // It would leave no oid for new objects.
    if oids.contains(&Oid::INVALID) {
        return Err(Fault::protocol("invalid oid"));
    }
    let transaction = app.cluster.tm.voting(ttid, reply_to.conn)?;
    let (readiness, failed) = (transaction.readiness, std::mem::take(&mut transaction.failed));
    let younger = std::mem::take(&mut transaction.younger);

    let changed = oids.iter().map(|oid| oid.partition(partitions)).chain(deleted);
    let changed = without_duplicates(changed.collect());
    let mut touched = [&changed[..], &checked].concat();
    touched.push(ttid.partition(partitions));
    let touched = without_duplicates(touched);

    if !failed.is_empty() && !planted!(VoteFailureIgnored) {
        if !operational_without(&app.cluster, &failed) {
            return incomplete(&mut app.cluster, io, reply_to, ttid);
        }
        // This makes their cells out-of-date, and it is important that others know before they lock
        // the transaction: if the cluster is interrupted, verification must not ask them.
        if drop_failed(app, io, &failed, &touched) == Service::Stopped {
            return Ok(());
        }
    }
    let cluster = &mut app.cluster;
    let involved = involved(cluster, &touched, (readiness, &younger));
    if involved.is_empty() {
        return incomplete(cluster, io, reply_to, ttid);
    }
    let nids = involved.iter().map(|(nid, _)| *nid).collect();
    let content = Content { oids, partitions: changed, ptid: cluster.pt.table().ptid() };
    let now_us = io.now().realtime_us;
    let tid = cluster.tm.prepare(ttid, reply_to, content, nids, (partitions, now_us))?;
    log::debug!("finish ttid={ttid} tid={tid}");
    let pack = pack.is_some_and(|(oids, time)| cluster.pm.order(tid, oids, time));
    for (_, conn) in involved {
        io.ask(conn, Packet::AskLockInformation { ttid, tid, pack }, Ticket::Lock(ttid));
    }
    Ok(())
}

/// Disconnects the storages that miss a part of a transaction that goes on without them. They will
/// replicate it.
fn drop_failed(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    failed: &BTreeSet<NodeId>,
    touched: &[Partition],
) -> Service {
    for nid in failed {
        let table = app.cluster.pt.table();
        let is_concerned = touched.iter().any(|partition| table.is_assigned(*partition, *nid));
        if let Some(conn) = app.cluster.conn_of(*nid).filter(|_| is_concerned) {
            log::warn!("disconnect {nid}, which misses a part of a transaction");
            io.close(conn);
            if drop_storage(app, io, conn) == Service::Stopped {
                return Service::Stopped;
            }
        }
    }
    Service::Operational
}

/// Storages that have a cell of these partitions, and know the transaction since it began.
fn involved(
    cluster: &Cluster,
    touched: &[Partition],
    (readiness, younger): (u64, &BTreeSet<(Partition, NodeId)>),
) -> Vec<(NodeId, ConnId)> {
    let mut involved: Vec<(NodeId, ConnId)> = Vec::new();
    for partition in touched {
        for cell in cluster.pt.cells(*partition) {
            if !involved.iter().any(|(nid, _)| *nid == cell.nid)
                && !younger.contains(&(*partition, cell.nid))
                && let Some(ready) = cluster.ready_since(cell.nid, readiness)
            {
                involved.push((cell.nid, ready.conn));
            }
        }
    }
    involved
}

fn operational_without(cluster: &Cluster, failed: &BTreeSet<NodeId>) -> bool {
    cluster.pt.operational(|nid| cluster.is_running(nid) && !failed.contains(&nid))
}

/// Finishing would make the cluster non-operational: the transaction is aborted at once, it is rare
/// enough to tell all storages.
fn incomplete(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    reply_to: ReplyTo,
    ttid: Ttid,
) -> Handled {
    let error = Packet::error(ErrorCode::IncompleteTransaction, "");
    io.answer(reply_to.conn, reply_to.id, error);
    let waiting = cluster.tm.abort(ttid, reply_to.conn)?;
    let all: Vec<NodeId> = cluster.ready().keys().copied().collect();
    cluster.notify_aborted(io, ttid, &waiting, all);
    Ok(())
}

/// `AbortTransaction`.
///
/// Only the client knows to which storages it sent something: the connection may have broken before
/// they answered. Others may wait for the end of the transaction because they joined since.
///
/// # Errors
/// If the transaction is being finished.
pub fn abort(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    client: ConnId,
    ttid: Ttid,
    nids: Vec<NodeId>,
) -> Handled {
    let waiting = app.cluster.tm.abort(ttid, client)?;
    app.cluster.notify_aborted(io, ttid, &waiting, nids);
    Ok(())
}

/// `AskFinalTID`, by a client that lost its connection while it finished a transaction.
///
/// # Errors
/// If too many requests wait for that.
pub fn ask_final_tid(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    reply_to: ReplyTo,
    ttid: Ttid,
) -> Handled {
    let cluster = &mut app.cluster;
    if cluster.tm.wait_for(ttid, reply_to)? {
        return Ok(());
    }
    // MAX: the client must ask storages. Upstream answers that it is not committed if the ttid is later than
    // the last tid:
    // 1. All connections of this master break, it does not know. Another one becomes primary.
    // 2. It dies while it commits a transaction, and the client comes back to this one.
    // 3. The transaction is locked: it will be finished, and never had anything to do with this master.
    let tid = (!planted!(OutcomeGuessed)).then_some(Tid::MAX);
    io.answer(reply_to.conn, reply_to.id, Packet::AnswerFinalTID { tid });
    Ok(())
}

/// Tries again the requests that had to wait, if something changed.
pub fn retry_delayed(app: &mut Master, io: &mut Io<'_, Master>) {
    for (reply_to, request) in app.cluster.tm.take_retriable() {
        let result = match request {
            Delayed::Begin(imposed) => begin(app, io, reply_to, imposed),
            Delayed::FailedVote(ttid, nids) => vote(app, io, reply_to, ttid, nids),
        };
        if let Err(fault) = result {
            io.answer(
                reply_to.conn,
                reply_to.id,
                Packet::error(ErrorCode::ProtocolError, fault.to_string()),
            );
            io.abort(reply_to.conn);
        }
    }
}

fn without_duplicates(mut partitions: Vec<Partition>) -> Vec<Partition> {
    partitions.sort_unstable();
    partitions.dedup();
    partitions
}

impl Cluster {
    /// Treats the transactions that are locked on all storages involved, in order.
    pub fn complete_transactions(&mut self, io: &mut Io<'_, Master>) {
        while let Some((ttid, transaction)) = self.tm.pop_locked() {
            self.transaction_committed(io, ttid, transaction);
        }
    }

    /// All storages have locked a transaction: it is committed. The client is answered, other
    /// clients invalidate their caches, storages make the data visible.
    fn transaction_committed(
        &mut self,
        io: &mut Io<'_, Master>,
        ttid: Ttid,
        transaction: Transaction,
    ) {
        let Transaction { client, finishing: Some(finishing), waiting, left, readiness, .. } =
            transaction
        else {
            return;
        };
        let tid = finishing.tid;
        for (conn, is_backup) in self.clients() {
            if client == Some(conn) {
                let answer = Packet::AnswerTransactionFinished { ttid, tid };
                io.answer(conn, finishing.reply_to.id, answer);
            } else if is_backup {
                let partitions = finishing.partitions.clone();
                io.send(conn, Packet::InvalidatePartitions { tid, partitions });
            } else if planted!(LostInvalidation)
                && self.tm.iter().any(|(_, t)| t.client == Some(conn))
            {
            } else {
                io.send(conn, Packet::InvalidateObjects { tid, oids: finishing.oids.clone() });
            }
        }
        let count = if planted!(UnlockLost) { 1 } else { usize::MAX };
        for ready in finishing.involved.iter().filter_map(|nid| self.ready().get(nid)).take(count) {
            io.send(ready.conn, Packet::NotifyUnlockInformation { ttid });
        }
        if self.pm.is_approved(tid) {
            // Those that store the metadata could deduce it. Upstream tells all of them too.
            self.notify_pack_signed(io, &[tid], &[]);
        }
        self.notify_finished(io, ttid, Some(tid), &waiting);
        // Those that voted it for cells that they do not have any more, or that they replicate. They know
        // already that it is finished: to them, this is not the end of a transaction to wait for.
        for nid in left.into_iter().filter(|nid| !finishing.involved.contains(nid)) {
            if let Some(ready) = self.ready_since(nid, readiness) {
                io.send(ready.conn, Packet::AbortTransaction { ttid, nids: Vec::new() });
            }
        }
        assert!(self.last_tid < tid, "tids increase: {} then {tid}", self.last_tid);
        self.last_tid = tid;
        self.lock_ptid = self.lock_ptid.max(finishing.ptid);
    }

    /// Tells those that wait for the end of a transaction. `tid` is `None` if it was aborted.
    fn notify_finished(
        &self,
        io: &mut Io<'_, Master>,
        ttid: Ttid,
        tid: Option<Tid>,
        waiting: &Waiting,
    ) {
        for reply_to in &waiting.clients {
            io.answer(reply_to.conn, reply_to.id, Packet::AnswerFinalTID { tid });
        }
        if tid.is_some() {
            for conn in waiting.storages.iter().filter_map(|nid| self.conn_of(*nid)) {
                io.send(conn, Packet::NotifyTransactionFinished { ttid, max_tid: tid });
            }
        }
    }

    /// Tells storages that a transaction is aborted: `involved`, and those that wait for its end.
    pub fn notify_aborted(
        &self,
        io: &mut Io<'_, Master>,
        ttid: Ttid,
        waiting: &Waiting,
        involved: impl IntoIterator<Item = NodeId>,
    ) {
        let mut nids: BTreeSet<NodeId> = waiting.storages.iter().copied().collect();
        nids.extend(involved);
        for ready in nids.iter().filter_map(|nid| self.ready().get(nid)) {
            io.send(ready.conn, Packet::AbortTransaction { ttid, nids: Vec::new() });
        }
        self.notify_finished(io, ttid, None, waiting);
    }

    /// Tells storages and backup clusters which pack orders are approved or rejected.
    pub fn notify_pack_signed(&self, io: &mut Io<'_, Master>, approved: &[Tid], rejected: &[Tid]) {
        let storages = self.ready().values().map(|ready| ready.conn);
        let backups = self.clients().filter(|(_, is_backup)| *is_backup).map(|(conn, _)| conn);
        for conn in storages.chain(backups) {
            let (approved, rejected) = (approved.to_vec(), rejected.to_vec());
            io.send(conn, Packet::NotifyPackSigned { approved, rejected });
        }
    }
}
