// SPDX-License-Identifier: GPL-2.0-or-later
//! Storages, in each phase. Upstream: master/handlers/storage.py, and the handler sides of
//! master/recovery.py and master/verification.py.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::protocol::{ErrorCode, MsgId, NodeState, Packet};
use neo_common::types::{NodeId, Partition, Tid, Ttid, nid_str};

use super::{base_failure, base_packet};
use crate::app::{Master, Ticket};
use crate::cluster::{Cluster, ReplyTo, Service, Startup};
use crate::pack::{self, Wanted};
use crate::phase::{Phase, Transition};

fn nid_of(io: &Io<'_, Master>, conn: ConnId) -> Result<NodeId, Fault> {
    io.nid(conn).ok_or(Fault::Close)
}

/// A storage is lost while the partition table is not in use.
fn set_down(cluster: &mut Cluster, io: &mut Io<'_, Master>, conn: ConnId) {
    if let Some(key) = cluster.nm.unlink(conn)
        && cluster.nm.set_state(key, NodeState::Down) != Some(NodeState::Down)
    {
        cluster.broadcast_nodes(io, &[key]);
    }
}

/// During recovery.
pub struct RecoveryHandler;

impl Handler<Master> for RecoveryHandler {
    fn name(&self) -> &'static str {
        "RecoveryManager"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            // What crossed the news that the cluster is not operational any more.
            Packet::NotifyReady {}
            | Packet::NotifyReplicationDone { .. }
            | Packet::NotifyPackCompleted { .. }
            | Packet::NotifyPartitionCorrupted { .. } => Ok(()),
            _ => base_packet(app, io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        let nid = nid_of(io, conn)?;
        let Phase::Recovery(recovery) = &mut app.phase else { return Ok(()) };
        match (ticket, packet) {
            (Ticket::Recovery, Packet::AnswerRecovery { ptid, backup_tid, truncate_tid }) => {
                let cluster = &mut app.cluster;
                recovery.answer_recovery(cluster, io, (nid, conn), ptid, backup_tid, truncate_tid)
            }
            (Ticket::Recovery, Packet::AnswerPartitionTable { ptid, replicas, rows }) => {
                let table = (ptid, replicas, rows);
                recovery.answer_partition_table(&mut app.cluster, io, nid, table)
            }
            _ => Err(Fault::Unexpected),
        }
    }

    fn error(
        &self,
        _: &mut Master,
        _: &mut Io<'_, Master>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        base_failure(ticket, code, &message)
    }

    fn lost(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        why: Lost,
        tickets: Vec<Ticket>,
    ) {
        // This handler stays as long as the storage has not answered, even if the phase changes: one
        // without cells is not waited for, but it is asked more later.
        match app.phase {
            Phase::Verification(_) => return VerificationHandler.lost(app, io, conn, why, tickets),
            Phase::Service | Phase::Backup(_) => {
                return StorageServiceHandler.lost(app, io, conn, why, tickets);
            }
            _ => {}
        }
        let Master { cluster, phase, .. } = app;
        set_down(cluster, io, conn);
        if let (Phase::Recovery(recovery), Some(nid)) = (phase, io.nid(conn)) {
            recovery.storage_lost(nid);
        }
    }
}

/// During verification.
pub struct VerificationHandler;

impl Handler<Master> for VerificationHandler {
    fn name(&self) -> &'static str {
        "VerificationManager"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::NotifyPackCompleted { tid } => {
                app.cluster.pm.set_completed(nid_of(io, conn)?, tid);
                Ok(())
            }
            _ => base_packet(app, io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        let nid = nid_of(io, conn)?;
        match (ticket, &mut app.phase) {
            (Ticket::Verification(round), Phase::Verification(verification)) => {
                verification.answer(&mut app.cluster, nid, round, packet)
            }
            // It was interrupted.
            (Ticket::Verification(_), _) => Ok(()),
            _ => Err(Fault::Unexpected),
        }
    }

    fn error(
        &self,
        _: &mut Master,
        _: &mut Io<'_, Master>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        base_failure(ticket, code, &message)
    }

    fn lost(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        why: Lost,
        tickets: Vec<Ticket>,
    ) {
        // This handler stays as long as the storage has not answered, even if the phase changes.
        match app.phase {
            Phase::Recovery(_) => return RecoveryHandler.lost(app, io, conn, why, tickets),
            Phase::Service | Phase::Backup(_) => {
                return StorageServiceHandler.lost(app, io, conn, why, tickets);
            }
            _ => {}
        }
        if let (Phase::Verification(verification), Some(nid)) = (&mut app.phase, io.nid(conn)) {
            // Recovery waited for all storages with readable cells. One may be the only one that was told
            // the tid of an acknowledged transaction, without having been told that others were lost:
            // its cells must not become out-of-date before it said so.
            if verification.storage_lost(nid) && app.cluster.startup == Startup::WhenComplete {
                io.transition(Transition::Recover { truncate: None });
                return set_down(&mut app.cluster, io, conn);
            }
        }
        if app.cluster.unlink_storage(io, conn) == Service::Stopped {
            io.transition(Transition::Recover { truncate: None });
        }
    }
}

/// During the service.
pub struct StorageServiceHandler;

impl Handler<Master> for StorageServiceHandler {
    fn name(&self) -> &'static str {
        "StorageServiceHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let nid = nid_of(io, conn)?;
        let cluster = &mut app.cluster;
        match packet {
            Packet::NotifyReady {} => {
                if cluster.set_ready(io, nid, conn) {
                    Ok(())
                } else {
                    Err(Fault::protocol("operation was not started"))
                }
            }
            Packet::AskUnfinishedTransactions { partitions } => {
                let (max_tid, ttids) = if cluster.backup_tid.is_some() {
                    (cluster.pt.shared_backup_tid(), Vec::new())
                } else {
                    // Not the last tid that was given: with imposed tids, the storages that
                    // already serve these partitions may not have locked it yet.
                    (cluster.last_tid, cluster.tm.wait_for_all(nid))
                };
                io.answer(conn, id, Packet::AnswerUnfinishedTransactions { max_tid, ttids });
                cluster.pt.set_updatable(nid, &partitions);
                Ok(())
            }
            Packet::NotifyReplicationDone { partition, tid } => {
                notify_replication_done(app, io, (nid, conn), partition, tid)
            }
            Packet::NotifyPartitionCorrupted { partition, nids } => {
                let nids: Vec<_> = nids.into_iter().map(nid_str).collect();
                log::error!("Partition {partition} corrupted in: {}", nids.join(", "));
                Ok(())
            }
            Packet::NotifyPackCompleted { tid } => {
                cluster.pm.set_completed(nid, tid);
                pack::update_completed(cluster, io);
                Ok(())
            }
            Packet::AskPackOrders { min_tid } => {
                let reply_to = ReplyTo { conn, id };
                pack::ask_pack_orders(cluster, io, reply_to, min_tid, Wanted::FirstApproved)
            }
            _ => base_packet(app, io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        match (ticket, packet) {
            (Ticket::Lock(ttid), Packet::AnswerInformationLocked { ttid: locked }) => {
                if ttid != locked {
                    return Err(Fault::protocol(format!("not asked to lock {locked}")));
                }
                locked_by(app, io, conn, ttid)
            }
            (Ticket::Confirm(ttid), Packet::AnswerFinalTID { .. }) => {
                locked_by(app, io, conn, ttid)
            }
            (Ticket::PackOrders { request, query }, Packet::AnswerPackOrders { orders }) => {
                pack::old_orders(&mut app.cluster, io, (request, query), orders)
            }
            _ => Err(Fault::Unexpected),
        }
    }

    fn error(
        &self,
        app: &mut Master,
        _: &mut Io<'_, Master>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        // The service was stopped, and so is the storage.
        let is_late = !matches!(app.phase, Phase::Service | Phase::Stopping);
        if is_late && matches!(ticket, Some(Ticket::Confirm(_))) {
            return Ok(());
        }
        base_failure(ticket, code, &message)
    }

    fn lost(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        why: Lost,
        tickets: Vec<Ticket>,
    ) {
        // This handler stays as long as the storage has not answered, even if the phase changes:
        // 1. A storage is asked to lock a transaction.
        // 2. Another one is lost, the service stops. Storages are not RUNNING any more.
        // 3. The first one is lost before it answers. If this made cells out-of-date as during the
        //    service, no partition would be readable any more.
        match app.phase {
            Phase::Recovery(_) => RecoveryHandler.lost(app, io, conn, why, tickets),
            Phase::Verification(_) => VerificationHandler.lost(app, io, conn, why, tickets),
            _ => drop(drop_storage(app, io, conn)), // the change of phase is asked
        }
    }
}

/// A storage locked a transaction, or stored what it was told before.
fn locked_by(app: &mut Master, io: &mut Io<'_, Master>, conn: ConnId, ttid: Ttid) -> Handled {
    // Late answers of a service that was stopped mean nothing: verification asks again what is locked.
    if matches!(app.phase, Phase::Service | Phase::Stopping) {
        app.cluster.tm.lock(ttid, nid_of(io, conn)?)?;
        app.cluster.complete_transactions(io);
    }
    Ok(())
}

/// A cell is replicated.
fn notify_replication_done(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    (nid, conn): (NodeId, ConnId),
    partition: Partition,
    tid: Tid,
) -> Handled {
    let Master { cluster, phase, upstream } = app;
    let changes = match phase {
        Phase::Backup(backup) => {
            backup.replication_done(cluster, upstream, io, (nid, conn), partition, tid)?
        }
        _ => {
            let changes = cluster.pt.set_up_to_date(nid, partition);
            let changes = changes.map_err(|error| Fault::protocol(error.to_string()))?;
            if changes.is_empty() {
                log::info!(
                    "ignored late notification that {nid} has replicated partition {partition} up \
                     to {tid}"
                );
            }
            changes
        }
    };
    if !changes.is_empty() {
        log::debug!("{nid} is up for partition {partition} (tid={tid})");
        cluster.broadcast_partition_changes(io, changes);
    }
    Ok(())
}

/// A storage that serves clients is lost, or must be disconnected for what it does not know.
pub fn drop_storage(app: &mut Master, io: &mut Io<'_, Master>, conn: ConnId) -> Service {
    let nid = io.nid(conn);
    let service = app.cluster.unlink_storage(io, conn);
    match (service, nid) {
        (Service::Stopped, _) => io.transition(Transition::Recover { truncate: None }),
        (Service::Operational, Some(nid)) => {
            app.cluster.storage_lost(io, nid, conn);
            if let Phase::Backup(backup) = &mut app.phase {
                backup.node_lost(&mut app.cluster, &app.upstream, io, nid);
            }
        }
        (Service::Operational, None) => {}
    }
    service
}
