// SPDX-License-Identifier: GPL-2.0-or-later
//! Pack orders: which one to process, slice by slice, and what the master is told. Upstream:
//! storage/app.py (`maybePack`, `notifyPackCompleted`), storage/database/manager.py (`_task_pack`).
//!
//! Orders are processed one by one, by increasing id. Each own cell remembers the last one that was
//! completed; the smallest of them is what the node has completed. The next order is asked from the
//! master, because the node may not have the transaction that carries it.
//!
//! A full pack also marks transactions, so that nobody tries to undo them: once the earlier revisions
//! of an object are gone, it would look as if it was created by the oldest one that is left.
//!
//! ```text
//!   maybe_pack --AskPackOrders--> order --> slice --> slice --> ... --> SetPacked
//!       ^                                     ^                            |
//!       |                                     +------ next partition ------+
//!       +------------------- NotifyPackCompleted, next order --------------+
//! ```

use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::{Fault, Handled, Io};
use neo_common::planted;
use neo_common::protocol::{CellState, PackOids, PackOrder, Packet};
use neo_common::types::{Oid, Partition, Tid};

use crate::app::{Shared, Storage, Ticket, done};
use crate::background::Pace;
use crate::database::{Done, PackScope, PackedCell, Write};
use crate::handlers::master::OwnCells;
use crate::operation::{OperationAfter, write_for};
use crate::replicator::Replicator;
use crate::transactions::Transactions;

/// What to do when a job is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PackAfter {
    /// Go on with this partition.
    Sliced(Partition),
    /// Transactions are marked: go on with this partition.
    Marked(Partition),
    /// It is recorded that this partition is packed: go on with the next one.
    Recorded(Partition, Tid),
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    /// Last completed pack.
    pack_id: Tid,
    up_to_date: bool,
}

/// An order that is being processed.
#[derive(Debug)]
struct Order {
    id: Tid,
    /// What was completed before.
    after: Tid,
    pack_tid: Tid,
    /// Sorted; `None`: all objects.
    oids: Option<Vec<Oid>>,
}

/// Position in a partition that is being packed.
#[derive(Debug)]
enum Position {
    /// Next transaction to mark. The objects are next.
    Transaction(Tid),
    /// Next oid.
    Oid(Oid),
    /// Objects of the partition that remain to be looked at.
    List(Vec<Oid>),
}

/// State of packs.
#[derive(Debug)]
pub struct Pack {
    cells: BTreeMap<Partition, Cell>,
    order: Option<Order>,
    /// Partitions to pack for this order.
    todo: BTreeSet<Partition>,
    current: Option<(Partition, Position)>,
    /// A job is on its way.
    is_busy: bool,
    /// The master was asked for the next order.
    is_asking: bool,
    /// Greatest time of the full packs that this node began since the cluster operates: transactions
    /// may not be marked yet where their metadata is.
    packed_tid: Tid,
    deleted: u64,
    pace: Pace,
}

impl Pack {
    /// Nothing is being packed.
    pub fn new(packed: &[PackedCell]) -> Self {
        let cell = |cell: &PackedCell| {
            (cell.partition, Cell { pack_id: cell.pack_id, up_to_date: cell.up_to_date })
        };
        Self {
            cells: packed.iter().map(cell).collect(),
            order: None,
            todo: BTreeSet::new(),
            current: None,
            is_busy: false,
            is_asking: false,
            packed_tid: Tid::ZERO,
            deleted: 0,
            pace: Pace::default(),
        }
    }

    /// Last pack that is completed in a partition.
    pub fn completed(&self, partition: Partition) -> Option<Tid> {
        self.cells.get(&partition).map(|cell| cell.pack_id)
    }

    /// Whether earlier revisions of an object than that of `tid` are being packed away.
    pub fn hides_before(&self, tid: Tid, oid: Oid) -> bool {
        let listed = |order: &Order| {
            let oids = order.oids.as_ref();
            tid <= order.pack_tid && oids.is_some_and(|oids| oids.binary_search(&oid).is_ok())
        };
        tid <= self.packed_tid || self.order.as_ref().is_some_and(listed)
    }

    /// A partition is replicated from a node that completed this pack. Upstream:
    /// `updateCompletedPackByReplication`.
    pub fn lower(&mut self, partition: Partition, pack_id: Tid) {
        if let Some(cell) = self.cells.get_mut(&partition) {
            cell.pack_id = cell.pack_id.min(pack_id);
        }
    }

    /// Own cells changed.
    pub(crate) fn cells_changed(&mut self, delta: &OwnCells, shared: &Shared) {
        for partition in &delta.discarded {
            self.cells.remove(partition);
            self.todo.remove(partition);
        }
        let Some(nid) = shared.nid() else { return };
        for (partition, state) in shared.table.cells_of(nid) {
            if state == CellState::Corrupted {
                continue;
            }
            if !state.is_readable() {
                self.todo.remove(&partition);
            }
            // As the database does when a row is inserted.
            let pack_id = if state.is_readable() { Tid::ZERO } else { shared.last_pack_id };
            let cell = self.cells.entry(partition).or_insert(Cell { pack_id, up_to_date: false });
            cell.up_to_date = state == CellState::UpToDate;
        }
    }

    /// Tells the master up to which order this node is packed, if it changed.
    pub(crate) fn notify_completed(&self, shared: &mut Shared, io: &mut Io<'_, Storage>) {
        let completed = match shared.config.disable_pack {
            true => Some(shared.last_pack_id),
            false => self.cells.values().map(|cell| cell.pack_id).min(),
        };
        let Some(tid) = completed.filter(|tid| *tid != shared.completed_pack_id) else { return };
        shared.completed_pack_id = tid;
        shared.notify_master(io, Packet::NotifyPackCompleted { tid });
    }

    /// Begins with the next order, or goes on with the current one, if nothing is in progress.
    pub(crate) fn maybe_pack(
        &mut self,
        replicator: &Replicator,
        shared: &Shared,
        io: &mut Io<'_, Storage>,
    ) {
        if shared.config.disable_pack || self.is_busy || self.is_asking || !self.todo.is_empty() {
            return;
        }
        let up_to_date = self.cells.values().filter(|cell| cell.up_to_date);
        let Some(packed) = up_to_date.map(|cell| cell.pack_id).min() else { return };
        if packed >= shared.last_pack_id {
            // Oids of a partial order may take several megabytes.
            self.order = None;
            return;
        }
        let Some(order) = self.order.as_ref().filter(|order| order.after == packed) else {
            self.order = None;
            let (Some(master), Some(min_tid)) = (shared.master, packed.next()) else { return };
            self.is_asking =
                io.ask(master, Packet::AskPackOrders { min_tid }, Ticket::PackOrders(packed));
            return;
        };
        let id = order.id;
        let late = self.cells.iter().filter(|(_, c)| c.up_to_date && c.pack_id == packed);
        let late = late.map(|(partition, _)| *partition);
        self.todo =
            late.filter(|partition| replicator.is_packable(shared, *partition, id)).collect();
        if !self.todo.is_empty() {
            log::info!("pack tid={} partitions={}", order.pack_tid, self.todo.len());
            if order.oids.is_none() {
                self.packed_tid = self.packed_tid.max(order.pack_tid);
            }
        }
        self.slice(shared, io);
    }

    /// The master answered which order is the next one after `packed`.
    pub(crate) fn order(
        &mut self,
        replicator: &Replicator,
        shared: &Shared,
        io: &mut Io<'_, Storage>,
        packed: Tid,
        orders: Vec<PackOrder>,
    ) -> Handled {
        self.is_asking = false;
        let Some((id, approved, _, oids, pack_tid)) = orders.into_iter().next() else {
            return Ok(());
        };
        if id <= packed || id > Tid::MAX || approved != Some(true) {
            return Err(Fault::protocol(format!("unexpected pack order {id}")));
        }
        let oids = match oids.map(PackOids::into_list) {
            None => None,
            Some(Some(oids)) => Some(oids).filter(|_| !planted!(PackScopeIgnored)),
            Some(None) => return Err(Fault::protocol("invalid oids of a pack order")),
        };
        self.order = Some(Order { id, after: packed, pack_tid, oids });
        self.maybe_pack(replicator, shared, io);
        Ok(())
    }

    /// Begins the next slice.
    fn slice(&mut self, shared: &Shared, io: &mut Io<'_, Storage>) {
        let Some(order) = &self.order else { return };
        if self.current.as_ref().is_some_and(|(partition, _)| !self.todo.contains(partition)) {
            // Not readable any more.
            self.current = None;
        }
        if self.current.is_none() {
            let Some(partition) = self.todo.first().copied() else { return };
            let partitions = shared.table.partitions();
            let position = match &order.oids {
                None => Position::Transaction(Tid::ZERO),
                Some(oids) => {
                    let own = oids.iter().filter(|oid| oid.partition(partitions) == partition);
                    Position::List(own.copied().collect())
                }
            };
            self.current = Some((partition, position));
        }
        let rows = self.pace.start(io);
        let Some((partition, position)) = &mut self.current else { return };
        let partition = *partition;
        let scope = match position {
            Position::Transaction(min_tid) => {
                let (min_tid, pack_tid) = (*min_tid, order.pack_tid);
                let job = Write::MarkPacked { partition, min_tid, pack_tid, tids_max: rows };
                let after = PackAfter::Marked(partition);
                self.is_busy = true;
                write_for(shared, io, job, OperationAfter::Pack(after));
                return;
            }
            Position::Oid(min_oid) => PackScope::From { min_oid: *min_oid, oids_max: rows },
            Position::List(oids) if oids.is_empty() => {
                let pack_id = order.id;
                let after = PackAfter::Recorded(partition, pack_id);
                self.is_busy = true;
                let job = Write::SetPacked { partition, pack_id };
                write_for(shared, io, job, OperationAfter::Pack(after));
                return;
            }
            Position::List(oids) => {
                let count = oids.len().min(rows as usize);
                PackScope::Oids(oids.drain(..count).collect())
            }
        };
        self.is_busy = true;
        let pack_tid = if planted!(PackRemovesVisible) { order.id } else { order.pack_tid };
        let job = Write::Pack { partition, pack_tid, scope };
        write_for(shared, io, job, OperationAfter::Pack(PackAfter::Sliced(partition)));
    }

    /// A slice is done, or recorded.
    pub(crate) fn job_done(
        &mut self,
        replicator: &Replicator,
        transactions: &mut Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        after: PackAfter,
        done: Done,
    ) {
        self.is_busy = false;
        match after {
            PackAfter::Sliced(partition) => {
                self.pace.end(io);
                let progress = done!(done, Packed);
                self.deleted += progress.deleted;
                if let Some((current, position)) = &mut self.current
                    && *current == partition
                {
                    match (position, progress.next_oid) {
                        (Position::Oid(oid), Some(next)) => *oid = next,
                        (position @ Position::Oid(_), None) => {
                            *position = Position::List(Vec::new());
                        }
                        (Position::List(_) | Position::Transaction(_), _) => {}
                    }
                }
            }
            PackAfter::Marked(partition) => {
                self.pace.end(io);
                let next = done!(done, Marked);
                if let Some((current, position)) = &mut self.current
                    && *current == partition
                {
                    *position = match next {
                        Some(next) => Position::Transaction(next),
                        None => Position::Oid(Oid::ZERO),
                    };
                }
            }
            PackAfter::Recorded(partition, pack_id) => {
                if self.deleted != 0 {
                    // The last revision of a deleted object may be gone. Readers only see it now.
                    let partitions = shared.table.partitions();
                    transactions.last_tids.forget(partitions, |packed| packed == partition);
                }
                if let Some(cell) = self.cells.get_mut(&partition) {
                    cell.pack_id = cell.pack_id.max(pack_id);
                }
                self.todo.remove(&partition);
                self.current = None;
            }
        }
        if self.todo.is_empty() {
            // Not in the arguments of the macro, which are for nothing if nobody reads the log.
            let deleted = std::mem::take(&mut self.deleted);
            log::info!("pack done, {deleted} revisions deleted");
            self.current = None;
            self.notify_completed(shared, io);
            self.maybe_pack(replicator, shared, io);
        } else {
            self.slice(shared, io);
        }
    }
}
