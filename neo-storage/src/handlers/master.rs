// SPDX-License-Identifier: GPL-2.0-or-later
//! The primary master: what it says at any time, and while the node serves. Upstream:
//! storage/handlers/__init__.py (`BaseMasterHandler`), storage/handlers/master.py.
//!
//! What it says wrong is a fault like any other: the connection is closed, and the node identifies
//! again.

use neo_common::engine::{Fault, Handled, Handler, Io, Lost, base_error};
use neo_common::node::{ListKind, NodeEvent};
use neo_common::planted;
use neo_common::protocol::{
    CellState, ErrorCode, MsgId, NodeEntry, NodeState, NodeType, PackOids, Packet,
};
use neo_common::types::{ConnId, NodeId, Partition, Ptid, Tid, Ttid};

use super::{base_packet, identification};
use crate::app::{After, Shared, Storage, Ticket, done, read_latest, write};
use crate::database::{ChangeScope, Done, PartitionTableChange, Read, StoredCell, Write};
use crate::operation::{Operation, OperationAfter, read_latest_for};
use crate::phase::{self, Transition};
use crate::replicator;

/// Handler of the connection to the primary master while the node serves.
pub struct MasterHandler;

impl Handler<Storage> for MasterHandler {
    fn name(&self) -> &'static str {
        "MasterOperationHandler"
    }

    fn packet(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        // Packets that were received before the operation was left have no place any more.
        let Some((operation, shared)) = app.operation() else { return Err(Fault::Unexpected) };
        match packet {
            Packet::AskLockInformation { ttid, tid, pack } => {
                ask_lock_information(operation, shared, io, (conn, id), (ttid, tid, pack))?;
            }
            Packet::NotifyUnlockInformation { ttid } => operation.unlock(shared, io, ttid)?,
            Packet::AskFinalTID { ttid } => {
                tell_final_tid(operation, shared, io, conn, id, ttid)?;
            }
            Packet::AbortTransaction { ttid, .. } => {
                // If its end is awaited, the client may have stored nothing here.
                if !operation.replicator.awaits(ttid) {
                    operation.transactions.ended.by_master(ttid);
                }
                operation.abort(io, ttid);
                replicator::transaction_finished(operation, shared, io, ttid, None);
            }
            Packet::NotifyTransactionFinished { ttid, max_tid } => {
                operation.abort(io, ttid);
                replicator::transaction_finished(operation, shared, io, ttid, max_tid);
            }
            Packet::StartOperation { backup: true } => {
                if shared.backup_tid.is_none() && operation.replicator.backup_starting() {
                    let readable = shared.readable();
                    let job = Read::LastIds { readable };
                    read_latest_for(shared, io, job, OperationAfter::BackupLastIds);
                }
            }
            Packet::Replicate { tid, upstream_name, sources } => {
                replicator::replicate(operation, shared, io, tid, &upstream_name, sources)?;
            }
            Packet::CheckPartition { partition, source, min_tid, max_tid } => {
                let Operation { checker, replicator, transactions, .. } = operation;
                checker.check(partition, source, min_tid, max_tid)?;
                checker.poll(replicator, transactions, shared, io);
            }
            packet => return base_master_packet(app, io, conn, id, packet),
        }
        Ok(())
    }

    fn answer(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        _: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        let Some((operation, shared)) = app.operation() else { return Ok(()) };
        match (ticket, packet) {
            (
                Ticket::Unfinished(partitions, question),
                Packet::AnswerUnfinishedTransactions { max_tid, ttids },
            ) => {
                operation.replicator.set_unfinished(&partitions, question, max_tid, &ttids);
                replicator::poll(operation, shared, io);
                Ok(())
            }
            (Ticket::PackOrders(packed), Packet::AnswerPackOrders { orders }) => {
                let Operation { pack, replicator, .. } = operation;
                pack.order(replicator, shared, io, packed, orders)
            }
            (Ticket::Confirm(attempt), Packet::AnswerPackOrders { orders }) => {
                replicator::confirmed(operation, shared, io, attempt, !orders.is_empty());
                Ok(())
            }
            _ => Err(Fault::Unexpected),
        }
    }

    fn error(
        &self,
        _: &mut Storage,
        _: &mut Io<'_, Storage>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        master_error(ticket, code, &message)
    }

    fn lost(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        master_lost(app, io, conn);
    }
}

/// An error in place of an answer that the node can not do without: ask again after identifying
/// again.
pub(crate) fn master_error(ticket: Option<Ticket>, code: ErrorCode, message: &str) -> Handled {
    base_error(code, message)?;
    match ticket {
        Some(_) => Err(Fault::Close),
        None => Ok(()),
    }
}

/// The connection to the primary master is gone.
pub(crate) fn master_lost(app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) {
    app.shared.nodes.unlink(conn);
    if app.shared.master == Some(conn) {
        app.shared.master = None;
        io.transition(Transition::MasterLost);
    }
}

/// What the primary master says at any time.
pub(crate) fn base_master_packet(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    match packet {
        Packet::NotifyNodeInformation { timestamp, nodes } => {
            return notify_node_information(app, io, timestamp, &nodes);
        }
        Packet::NotifyPartitionChanges { ptid, replicas, changes } => {
            return notify_partition_changes(app, io, ptid, replicas, &changes);
        }
        Packet::NotifyClusterInformation { state } => {
            log::info!("cluster is {state}");
            if state == neo_common::protocol::ClusterState::StoppingBackup
                && let Some((operation, shared)) = app.operation()
            {
                replicator::stop(operation, shared, io);
            }
        }
        Packet::StopOperation {} => io.transition(Transition::Stop),
        Packet::NotifyPackSigned { approved, rejected } => {
            notify_pack_signed(app, io, approved, rejected);
        }
        Packet::AskFinalTID { ttid } => {
            let partition = readable_partition(&app.shared, ttid)?;
            read_latest(io, Read::FinalTid { partition, ttid }, After::FinalTid(conn, id));
        }
        Packet::AskPackOrders { min_tid } => {
            let shared = &app.shared;
            let partitions = shared.table.partitions();
            if partitions == 0 {
                io.answer(conn, id, Packet::AnswerPackOrders { orders: Vec::new() });
                return Ok(());
            }
            let readable = shared.readable();
            let job = Read::PackOrders { readable, partitions, min_id: min_tid };
            read_latest(io, job, After::PackOrders(conn, id));
        }
        Packet::NotifyRepair { dry_run } => match app.operation() {
            Some((operation, shared)) => {
                operation.background.prune_orphans(dry_run);
                operation.background.poll(shared, io);
            }
            None => log::error!("can not repair: the node does not serve"),
        },
        // Nothing is pending, nor replicated.
        Packet::AbortTransaction { .. } | Packet::NotifyTransactionFinished { .. } => {}
        packet => return base_packet(io, conn, id, &packet),
    }
    Ok(())
}

fn readable_partition(shared: &Shared, ttid: Ttid) -> Result<Partition, Fault> {
    let partitions = shared.table.partitions();
    if partitions == 0 {
        return Err(Fault::non_readable_cell());
    }
    let partition = ttid.partition(partitions);
    if shared.is_readable(partition) { Ok(partition) } else { Err(Fault::non_readable_cell()) }
}

fn ask_lock_information(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    (conn, id): (ConnId, MsgId),
    (ttid, tid, approve_pack): (Ttid, Tid, bool),
) -> Handled {
    if operation.transactions.lock(ttid, tid)? {
        // The answer leaves after the commit.
        let after = OperationAfter::Locked { conn, id, ttid };
        operation.write(shared, io, Write::Lock { ttid, tid, approve_pack }, after);
    } else {
        io.answer(conn, id, Packet::AnswerInformationLocked { ttid });
    }
    Ok(())
}

/// Was this transaction committed? For clients that lost the master, and for those who find a blob of another
/// client.
///
/// As long as it is not finished here, the master decides, and the client may have come to another one that
/// does not know that it was replaced: it has to ask again. Others want to know whether it is committed so far.
pub(crate) fn ask_final_tid(
    operation: &Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    ttid: Ttid,
) -> Handled {
    match operation.transactions.final_tid(ttid) {
        Some(Some(_)) => return Err(Fault::non_readable_cell()),
        Some(None) => return Err(Fault::unfinished()),
        None => {}
    }
    let partition = readable_partition(shared, ttid)?;
    read_latest(io, Read::FinalTid { partition, ttid }, After::FinalTid(conn, id));
    Ok(())
}

/// Is this transaction locked? For the master, who wants to know whether all that it told before is on disk.
fn tell_final_tid(
    operation: &Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    ttid: Ttid,
) -> Handled {
    if let Some(tid) = operation.transactions.final_tid(ttid) {
        // Nobody may learn that it is committed before it is on disk.
        let answer = Packet::AnswerFinalTID { tid };
        write(io, Write::Flush, After::Answer(conn, id, answer));
        return Ok(());
    }
    ask_final_tid(operation, shared, io, conn, id, ttid)
}

fn notify_node_information(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    timestamp: f64,
    nodes: &[NodeEntry],
) -> Handled {
    let shared = &mut app.shared;
    let kind = std::mem::replace(&mut shared.list, ListKind::Changes);
    let table = &shared.table;
    let has_cells = |nid| table.has_cells(nid);
    let update = shared
        .nodes
        .update(shared.bootstrap.nid, kind, timestamp, nodes, has_cells)
        .map_err(|error| Fault::protocol(error.to_string()))?;
    for event in update.events {
        let NodeEvent::Removed(node) = event else { continue };
        if let Some(conn) = node.connection().filter(|conn| Some(*conn) != shared.master) {
            io.close(conn);
        }
    }
    if let Some(own) = update.own {
        shared.bootstrap.id_timestamp = own.id_timestamp;
        log::info!("I was told I'm {}", own.state);
        match own.state {
            NodeState::Unknown => {
                phase::stop(app, io, Write::Erase, 0);
                return Ok(());
            }
            NodeState::Down => {
                phase::stop(app, io, Write::Flush, 0);
                return Ok(());
            }
            NodeState::Running | NodeState::Pending => {}
        }
    }
    for (node_type, _, nid, state, _) in nodes {
        if *node_type == NodeType::Client
            && *state != NodeState::Running
            && !planted!(DeadClientIgnored)
            && let Some(nid) = nid
            && let Some((operation, _)) = app.operation()
        {
            // See the handler of clients for what their disconnection does.
            log::info!("notified of non-running client, abort ({nid})");
            operation.abort_for(io, *nid, true);
        }
    }
    identification::retry(app, io);
    Ok(())
}

fn notify_partition_changes(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    ptid: Ptid,
    replicas: u32,
    changes: &[(Partition, NodeId, CellState)],
) -> Handled {
    let shared = &mut app.shared;
    if !shared.table.follows(ptid) {
        return Err(Fault::protocol("wrong partition table id"));
    }
    let own = shared.nid();
    let before: Vec<_> = own.map(|nid| shared.table.cells_of(nid).collect()).unwrap_or_default();
    let greatest = shared.table.nodes().max();
    let update = shared.table.update(ptid, replicas, changes);
    let update = update.map_err(|error| Fault::protocol(error.to_string()))?;
    shared.note_dropped(greatest);
    if update.first_outdated {
        log::warn!("a cell became non-readable whereas all cells were readable");
    }
    log::debug!("partition table updated ptid={ptid}");
    let after: Vec<_> = own.map(|nid| shared.table.cells_of(nid).collect()).unwrap_or_default();
    for (partition, _) in &after {
        shared.to_drop.remove(partition);
    }
    let cells = changes.iter();
    let cells =
        cells.map(|&(partition, nid, state)| StoredCell { partition, nid, state }).collect();
    let mut change = PartitionTableChange {
        ptid,
        replicas,
        cells,
        scope: ChangeScope::Listed,
        last_pack_id: shared.last_pack_id,
        drop_temporary: Vec::new(),
        release: Vec::new(),
    };
    let delta = OwnCells::between(&before, &after);
    if let Some((operation, shared)) = app.operation() {
        change.drop_temporary.clone_from(&delta.discarded);
        change.release = operation.discarded(shared, io, &delta.discarded);
    }
    write(io, Write::ChangePartitionTable(change), After::TableStored);
    if let Some((operation, shared)) = app.operation() {
        operation.pack.cells_changed(&delta, shared);
        replicator::cells_changed(operation, shared, io, &delta);
        if delta.unpacked_left {
            // The smallest completed pack may be greater, and the next order may be processed.
            operation.pack.notify_completed(shared, io);
            operation.pack.maybe_pack(&operation.replicator, shared, io);
        }
    }
    phase::restart(app, io);
    Ok(())
}

/// What happened to the cells of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OwnCells {
    /// New cells that are out of date.
    pub added: Vec<Partition>,
    /// Cells that are gone, corrupted, or that must begin again from nothing.
    pub discarded: Vec<Partition>,
    /// Cells that are readable, and were not.
    pub readable: Vec<Partition>,
    /// Whether a cell that packs leave out, as it was out of date or feeding, is not so any more.
    pub unpacked_left: bool,
}

impl OwnCells {
    fn between(before: &[(Partition, CellState)], after: &[(Partition, CellState)]) -> Self {
        let state = |cells: &[(Partition, CellState)], partition| {
            let found = cells.binary_search_by_key(&partition, |(p, _)| *p);
            found.map_or(CellState::Discarded, |index| cells[index].1)
        };
        let mut delta = Self::default();
        let mut partitions: Vec<_> = before.iter().chain(after).map(|(p, _)| *p).collect();
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            let (old, new) = (state(before, partition), state(after, partition));
            let is_gone = matches!(new, CellState::Discarded | CellState::Corrupted);
            let was_there =
                matches!(old, CellState::OutOfDate | CellState::UpToDate | CellState::Feeding);
            delta.unpacked_left |=
                matches!(old, CellState::OutOfDate | CellState::Feeding) && new != old;
            if is_gone {
                if was_there {
                    delta.discarded.push(partition);
                }
            } else if new == CellState::OutOfDate && old != new {
                if was_there {
                    // No master does this to a node that runs. It can only mean that what is being
                    // committed here does not count.
                    delta.discarded.push(partition);
                }
                delta.added.push(partition);
            } else if new.is_readable() && !old.is_readable() {
                delta.readable.push(partition);
            }
        }
        delta
    }
}

fn notify_pack_signed(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    approved: Vec<Tid>,
    rejected: Vec<Tid>,
) {
    let last = approved.iter().max().copied();
    if !app.shared.config.disable_pack {
        let job = Write::SignPacks { approved: approved.clone(), rejected: rejected.clone() };
        write(io, job, After::PacksSigned { approved, rejected });
    }
    let Some(last) = last.filter(|tid| app.shared.last_pack_id < *tid) else { return };
    app.shared.last_pack_id = last;
    if let Some((operation, shared)) = app.operation() {
        if shared.config.disable_pack {
            operation.pack.notify_completed(shared, io);
        } else {
            operation.pack.maybe_pack(&operation.replicator, shared, io);
        }
    }
}

/// Pack orders were signed: those that are not here may be replicated later (backup mode).
pub(crate) fn packs_signed(app: &mut Storage, approved: &[Tid], rejected: &[Tid], signed: &[Tid]) {
    let Some((operation, shared)) = app.operation() else { return };
    let partitions = shared.table.partitions();
    let missing = |ids: &[Tid]| -> Vec<Tid> {
        ids.iter().filter(|id| !signed.contains(id)).copied().collect()
    };
    operation.replicator.keep_signed(partitions, &missing(approved), &missing(rejected));
}

/// Pack orders are known.
pub(crate) fn pack_orders(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId, done: Done) {
    let orders = done!(done, PackOrders).into_iter();
    let orders = orders.map(|(id, order)| {
        let oids = order.oids.map(PackOids::List);
        (id, order.approved, order.partial, oids, order.pack_tid)
    });
    io.answer(conn, id, Packet::AnswerPackOrders { orders: orders.collect() });
}
