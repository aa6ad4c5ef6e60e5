// SPDX-License-Identifier: GPL-2.0-or-later
//! The partition table as its owner sees it: the write side. Upstream: master/pt.py.
//!
//! The rows are those of [`neo_common::partition_table`]. The primary master adds what only it has
//! to know: which nodes may get cells ([`PartitionTable::add_nodes`]), and which out-of-date cells
//! have begun a replication that can make them up-to-date ([`PartitionTable::set_updatable`]).
//!
//! Each operation returns the changes that the other nodes must be told, in the form of
//! `NotifyPartitionChanges`; the caller broadcasts them with [`PartitionTable::next_ptid`].
//! `tweak` decides where cells go.

mod backup;
#[cfg(test)]
mod tests;
mod tweak;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use neo_common::partition_table::{Cell, PartitionTable as Table, TableError};
use neo_common::planted;
use neo_common::protocol::{CellState, Rows};
use neo_common::types::{NodeId, Partition, Ptid};

pub use backup::BackupCell;
pub use tweak::Topology;

/// Changed cells, as in `NotifyPartitionChanges`.
pub type Changes = Vec<(Partition, NodeId, CellState)>;

/// How far the first versions of 2 consecutive primary masters are from each other: more than the
/// number of versions that a master can tell to some storages without the others.
const PTIDS_OF_MASTER: Ptid = 1 << 16;

/// Why an operation is refused; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartitionTableError {
    /// These nodes have the only readable cells of this partition.
    OnlyReadable(Partition),
    /// No node would remain.
    NoNode,
    /// The node has no cell of that partition.
    NotAssigned,
}

// Shown by neoctl.
impl fmt::Display for PartitionTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyReadable(partition) => write!(
                f,
                "Refuse to drop nodes that contain the only readable copies of partition \
                 {partition}"
            ),
            Self::NoNode => f.write_str("Can't remove all nodes."),
            Self::NotAssigned => f.write_str("Non-assigned partition"),
        }
    }
}
impl std::error::Error for PartitionTableError {}

/// The partition table of the primary master.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartitionTable {
    table: Table,
    /// Nodes that `tweak` may use: those with cells, and those that were added for that.
    members: BTreeSet<NodeId>,
    /// Out-of-date cells whose node asked which transactions are unfinished. Before that, being
    /// told that such a cell is replicated means nothing: it is about an older replication.
    updatable: BTreeSet<(Partition, NodeId)>,
    /// In a backup cluster, how far cells are.
    backup: BTreeMap<(Partition, NodeId), BackupCell>,
}

impl PartitionTable {
    /// Empty rows, for a database that does not exist yet.
    ///
    /// # Errors
    /// If there are more partitions than a table can have.
    pub fn new(partitions: u32, replicas: u32) -> Result<Self, TableError> {
        Ok(Self { table: Table::with_partitions(partitions, replicas)?, ..Self::default() })
    }

    /// Replaces everything by a table that a storage node kept.
    ///
    /// # Errors
    /// If it cannot be a table. Then nothing is changed.
    pub fn load(&mut self, ptid: Ptid, replicas: u32, rows: &Rows) -> Result<(), TableError> {
        let mut table = Table::new();
        table.load(Some(ptid), replicas, rows)?;
        let members = table.nodes().collect();
        *self = Self { table, members, ..Self::default() };
        Ok(())
    }

    /// The rows.
    pub const fn table(&self) -> &Table {
        &self.table
    }
    /// Number of partitions: at least 1.
    pub fn partitions(&self) -> u32 {
        self.table.partitions()
    }
    /// Cells of a partition; none if it does not exist.
    pub fn cells(&self, partition: Partition) -> &[Cell] {
        self.table.cells(partition)
    }
    /// Whether there is a table, with at least one cell for each partition.
    pub fn is_filled(&self) -> bool {
        self.table.ptid().is_some() && self.table.filled()
    }

    /// Takes the next version, for changes that are about to be told.
    pub fn next_ptid(&mut self) -> Ptid {
        let ptid = self.table.ptid().map_or(1, |ptid| ptid + 1);
        self.table.set_ptid(Some(ptid));
        ptid
    }
    /// A primary master begins to number versions, greater than those that are known.
    ///
    /// A storage that is not there may have versions that nobody else knows, told by a master that did not
    /// last: all versions of each master are greater than those of the masters before.
    pub fn begin_ptids(&mut self, known: Ptid) {
        self.table.set_ptid(Some((known / PTIDS_OF_MASTER + 1) * PTIDS_OF_MASTER));
    }
    /// Changes the wanted number of replicas. Cells do not change until the next `tweak`.
    pub const fn set_replicas(&mut self, replicas: u32) {
        self.table.set_replicas(replicas);
    }

    /// Makes a table from scratch, with all cells up-to-date.
    ///
    /// # Errors
    /// If there is no node.
    pub fn make(
        &mut self,
        nodes: &[NodeId],
        topology: &Topology<'_>,
    ) -> Result<(), PartitionTableError> {
        self.add_nodes(nodes.iter().copied());
        self.tweak(&BTreeSet::new(), topology)?;
        self.members = self.table.nodes().collect();
        Ok(())
    }

    /// Lets `tweak` use these nodes; returns those that it could not use before.
    pub fn add_nodes(&mut self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        nodes.into_iter().filter(|nid| self.members.insert(*nid)).collect()
    }

    /// Adds a cell, or changes its state.
    ///
    /// # Errors
    /// If the partition does not exist.
    pub fn set_cell(
        &mut self,
        partition: Partition,
        nid: NodeId,
        state: CellState,
    ) -> Result<Option<CellState>, TableError> {
        let old = self.table.set_cell(partition, nid, state)?;
        self.members.insert(nid);
        self.updatable.remove(&(partition, nid));
        if !state.is_readable() {
            self.backup.remove(&(partition, nid));
        }
        Ok(old)
    }

    /// The same, for a cell that was just found.
    fn put_cell(&mut self, partition: Partition, nid: NodeId, state: CellState) {
        self.set_cell(partition, nid, state).expect("the partition exists");
    }

    /// Forgets nodes that leave for ever. With `Drop::Simulate`, only checks that they may leave.
    ///
    /// # Errors
    /// If data would be lost.
    pub fn drop_nodes(
        &mut self,
        nodes: &BTreeSet<NodeId>,
        drop: Drop,
    ) -> Result<Changes, PartitionTableError> {
        let mut changes = Vec::new();
        for (partition, row) in (0..).zip(self.table.rows()) {
            let (dropped, kept): (Vec<&Cell>, Vec<&Cell>) =
                row.iter().partition(|cell| nodes.contains(&cell.nid));
            changes.extend(dropped.iter().map(|cell| (partition, cell.nid, CellState::Discarded)));
            let feeding = kept.iter().rfind(|cell| cell.state == CellState::Feeding);
            if let Some(feeding) = feeding {
                // It may be needed for longer than planned.
                if !dropped.is_empty() {
                    changes.push((partition, feeding.nid, CellState::UpToDate));
                }
            } else if dropped.iter().any(|cell| cell.is_readable())
                && !kept.iter().any(|cell| cell.state == CellState::UpToDate)
            {
                return Err(PartitionTableError::OnlyReadable(partition));
            }
        }
        if drop == Drop::Apply {
            for &(partition, nid, state) in &changes {
                self.put_cell(partition, nid, state);
            }
            self.members.retain(|nid| !nodes.contains(nid));
        }
        Ok(changes)
    }

    /// A replication has begun: its end will make these out-of-date cells of a node up-to-date.
    pub fn set_updatable(&mut self, nid: NodeId, partitions: &[Partition]) {
        for &partition in partitions {
            if self.table.cell_state(partition, nid).is_some_and(|state| !state.is_readable()) {
                self.updatable.insert((partition, nid));
            }
        }
    }

    /// Whether the end of a replication would make a cell up-to-date.
    pub fn is_updatable(&self, nid: NodeId, partition: Partition) -> bool {
        self.updatable.contains(&(partition, nid))
            && self.table.cell_state(partition, nid) == Some(CellState::OutOfDate)
    }

    /// A cell is replicated: it becomes up-to-date, and FEEDING cells that it replaces are
    /// discarded. No change if this was about a replication that does not count any more.
    ///
    /// # Errors
    /// If the node has no such cell.
    pub fn set_up_to_date(
        &mut self,
        nid: NodeId,
        partition: Partition,
    ) -> Result<Changes, PartitionTableError> {
        if !self.table.is_assigned(partition, nid) {
            return Err(PartitionTableError::NotAssigned);
        }
        if !self.is_updatable(nid, partition) {
            return Ok(Vec::new());
        }
        self.put_cell(partition, nid, CellState::UpToDate);
        let mut changes = vec![(partition, nid, CellState::UpToDate)];
        for nid in self.superfluous_feeding(partition) {
            self.put_cell(partition, nid, CellState::Discarded);
            changes.push((partition, nid, CellState::Discarded));
        }
        Ok(changes)
    }

    /// FEEDING cells that are not needed any more, now that one more cell is up-to-date.
    fn superfluous_feeding(&self, partition: Partition) -> Vec<NodeId> {
        let row = self.cells(partition);
        let feeding = row.iter().filter(|cell| cell.state == CellState::Feeding);
        let mut feeding: Vec<NodeId> = feeding.map(|cell| cell.nid).collect();
        let readable_count = row.iter().filter(|cell| cell.is_readable()).count();
        if readable_count == row.len() || planted!(FeedingDroppedTooEarly) {
            return feeding;
        }
        // Normally at most one is discarded. The number of readable cells must not go below what is
        // wanted (upstream: one less), in particular if some became non-readable since the last
        // tweak. The first to leave are the nodes that only feed.
        feeding.sort_by_key(|nid| {
            let mut cells = self.table.cells_of(*nid);
            !cells.all(|(_, state)| state == CellState::Feeding)
        });
        feeding.truncate(readable_count.saturating_sub(self.table.replicas() as usize + 1));
        feeding
    }

    /// Makes the cells of nodes that do not run out-of-date.
    ///
    /// For partitions whose last serving node was `lost`, the cells of `lost` stay as they are:
    /// they are what allows the cluster to restart.
    pub fn outdate(
        &mut self,
        lost: Option<NodeId>,
        is_running: impl Fn(NodeId) -> bool,
    ) -> Changes {
        let all_readable = self.table.rows().iter().flatten().all(Cell::is_readable);
        let mut changes = Vec::new();
        for (partition, row) in (0..).zip(self.table.rows()) {
            let readable = || row.iter().filter(|cell| cell.is_readable());
            let served = readable().any(|cell| is_running(cell.nid));
            for cell in readable().filter(|cell| !is_running(cell.nid)) {
                if (lost == Some(cell.nid) && !served) || planted!(LostCellsStayReadable) {
                    continue;
                }
                let state = match cell.state {
                    CellState::Feeding => CellState::Discarded,
                    _ => CellState::OutOfDate,
                };
                changes.push((partition, cell.nid, state));
            }
        }
        for &(partition, nid, state) in &changes {
            self.put_cell(partition, nid, state);
        }
        if all_readable && !changes.is_empty() {
            log::warn!("a cell became non-readable whereas all cells were readable");
        }
        changes
    }

    /// Whether each partition can be read from a node that runs.
    pub fn operational(&self, is_running: impl Fn(NodeId) -> bool) -> bool {
        self.table.ptid().is_some() && self.table.operational(is_running)
    }

    /// All nodes with readable cells; `None` if they are not enough for the cluster to start, that
    /// is if a partition has no readable cell on a pending node.
    pub fn operational_nodes(
        &self,
        is_pending: impl Fn(NodeId) -> bool,
    ) -> Option<BTreeSet<NodeId>> {
        self.operational(is_pending).then(|| self.table.readable_nodes())
    }
}

/// Whether to do, or only to check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drop {
    /// Do it.
    Apply,
    /// Only compute the result.
    Simulate,
}
