// SPDX-License-Identifier: GPL-2.0-or-later
//! Which node holds which partition: the read side. Upstream: lib/pt.py.
//!
//! A table has a row per partition and, in a row, a cell per node that holds the partition. The
//! primary master makes the table and changes it; all others load it whole, then apply numbered
//! changes. This is what they share: the master's own operations (make, tweak, out-of-date...)
//! are built on it elsewhere.
//!
//! Cells hold node ids, never nodes: whether a node runs is a question to the caller, asked through
//! a predicate where it matters.
//!
//! Cells keep the order in which they came, as in upstream: it is the order in which candidates are
//! tried. What comes from a peer is checked as a whole before anything is changed.

mod format;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::limits::{CELLS_MAX, PARTITIONS_MAX};
use crate::protocol::{CellState, Rows};
use crate::types::{NodeId, Oid, Partition, Ptid, Tid};

pub use format::{cell_letter, format_rows, node_letter};

/// What one node is allowed to do with one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// The node.
    pub nid: NodeId,
    /// Never [`CellState::Discarded`]: such a cell is removed.
    pub state: CellState,
}

impl Cell {
    /// Whether reads are served from it.
    pub const fn is_readable(&self) -> bool {
        self.state.is_readable()
    }
}

/// A table or change that no primary master would send. Nothing is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// The id of a change must be greater than that of the table.
    WrongPtid {
        /// Of the table; `None` if there is none to change.
        current: Option<Ptid>,
        /// Of the change.
        received: Ptid,
    },
    /// No such partition.
    Partition(Partition),
    /// More rows than [`PARTITIONS_MAX`].
    TooManyPartitions(usize),
    /// More cells than [`CELLS_MAX`] in this partition.
    TooManyCells(Partition),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongPtid { current: Some(current), received } => {
                write!(f, "wrong partition table id: {received} after {current}")
            }
            Self::WrongPtid { current: None, received } => {
                write!(f, "wrong partition table id: {received} without any table")
            }
            Self::Partition(partition) => write!(f, "no partition {partition}"),
            Self::TooManyPartitions(count) => write!(f, "too many partitions: {count}"),
            Self::TooManyCells(partition) => write!(f, "too many cells in partition {partition}"),
        }
    }
}
impl std::error::Error for TableError {}

/// What [`PartitionTable::update`] did, beyond changing cells.
#[must_use = "a first outdated cell is worth a warning"]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableUpdate {
    /// All cells were readable and one is not any more. Told once: each next outdated cell would
    /// only flood the logs.
    pub first_outdated: bool,
}

/// The partition table.
#[derive(Clone, Debug, Default)]
pub struct PartitionTable {
    ptid: Option<Ptid>,
    replicas: u32,
    rows: Vec<Vec<Cell>>,
    /// Cells of each node, of which those that are not FEEDING count as assigned.
    counts: BTreeMap<NodeId, Count>,
    /// Rows with at least one cell.
    filled_count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    cells: u32,
    assigned: u32,
}

/// Same version, same cells.
impl PartialEq for PartitionTable {
    fn eq(&self, other: &Self) -> bool {
        (self.ptid, self.replicas) == (other.ptid, other.replicas) && self.has_same_cells(other)
    }
}

impl Eq for PartitionTable {}

impl PartitionTable {
    /// No table yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty rows, without id.
    ///
    /// # Errors
    /// If there are more partitions than a table can have.
    pub fn with_partitions(partitions: u32, replicas: u32) -> Result<Self, TableError> {
        if partitions > PARTITIONS_MAX {
            return Err(TableError::TooManyPartitions(partitions as usize));
        }
        let rows = vec![Vec::new(); partitions as usize];
        Ok(Self { replicas, rows, ..Self::default() })
    }

    /// Forgets the id and all cells. The number of partitions stays.
    pub fn clear(&mut self) {
        self.ptid = None;
        self.filled_count = 0;
        self.counts.clear();
        self.rows.iter_mut().for_each(Vec::clear);
    }

    /// Replaces the whole table.
    ///
    /// # Errors
    /// If there are too many rows, or too many cells in a row.
    pub fn load(
        &mut self,
        ptid: Option<Ptid>,
        replicas: u32,
        rows: &Rows,
    ) -> Result<(), TableError> {
        let partitions = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        if partitions > PARTITIONS_MAX {
            return Err(TableError::TooManyPartitions(rows.len()));
        }
        if let Some((partition, _)) = (0..).zip(rows).find(|(_, row)| row.len() > CELLS_MAX) {
            return Err(TableError::TooManyCells(partition));
        }
        *self = Self::with_partitions(partitions, replicas)?;
        self.ptid = ptid;
        for (partition, row) in (0..).zip(rows) {
            for (nid, state) in row {
                self.set_cell(partition, *nid, *state)?;
            }
        }
        Ok(())
    }

    /// Applies the changes that lead to version `ptid`. Nodes that are gone must not be dropped
    /// from the table by the caller: a change says so ([`CellState::Discarded`]).
    ///
    /// A storage must miss no version, because it stores the table: it checks [`Self::follows`]
    /// first.
    ///
    /// # Errors
    /// If the table is as recent already, or a change is for a partition that does not exist, or that
    /// would get too many cells.
    pub fn update(
        &mut self,
        ptid: Ptid,
        replicas: u32,
        changes: &[(Partition, NodeId, CellState)],
    ) -> Result<TableUpdate, TableError> {
        if self.ptid.is_none_or(|current| ptid <= current) {
            return Err(TableError::WrongPtid { current: self.ptid, received: ptid });
        }
        let mut change_counts = BTreeMap::<Partition, usize>::new();
        for (partition, ..) in changes {
            *change_counts.entry(*partition).or_default() += 1;
        }
        for (partition, count) in change_counts {
            let row = self.rows.get(partition as usize);
            let row = row.ok_or(TableError::Partition(partition))?;
            if row.len() + count > CELLS_MAX {
                return Err(TableError::TooManyCells(partition));
            }
        }
        let all_readable = self.rows.iter().flatten().all(Cell::is_readable);
        let mut first_outdated = false;
        self.ptid = Some(ptid);
        self.replicas = replicas;
        for (partition, nid, state) in changes {
            let old = self.set_cell(*partition, *nid, *state)?;
            first_outdated |= all_readable
                && old.is_some()
                && matches!(state, CellState::OutOfDate | CellState::Corrupted);
        }
        Ok(TableUpdate { first_outdated })
    }

    /// Whether `ptid` is the next version.
    pub fn follows(&self, ptid: Ptid) -> bool {
        self.ptid.and_then(|current| current.checked_add(1)) == Some(ptid)
    }

    /// Version; `None` if there is no table yet.
    pub const fn ptid(&self) -> Option<Ptid> {
        self.ptid
    }
    /// Changes the version, for who makes the table.
    pub const fn set_ptid(&mut self, ptid: Option<Ptid>) {
        self.ptid = ptid;
    }
    /// Wanted number of cells of a partition, minus one.
    pub const fn replicas(&self) -> u32 {
        self.replicas
    }
    /// Changes the wanted number of replicas, for who makes the table.
    pub const fn set_replicas(&mut self, replicas: u32) {
        self.replicas = replicas;
    }
    /// Number of rows.
    pub fn partitions(&self) -> u32 {
        self.rows.len() as u32
    }
    /// Partition of an oid; `None` without table.
    pub fn partition_of_oid(&self, oid: Oid) -> Option<Partition> {
        (!self.rows.is_empty()).then(|| oid.partition(self.partitions()))
    }
    /// Partition of a tid; `None` without table.
    pub fn partition_of_tid(&self, tid: Tid) -> Option<Partition> {
        (!self.rows.is_empty()).then(|| tid.partition(self.partitions()))
    }

    /// Cells of a partition; none if it does not exist.
    pub fn cells(&self, partition: Partition) -> &[Cell] {
        self.rows.get(partition as usize).map_or(&[], Vec::as_slice)
    }
    /// Nodes from which a partition can be read.
    pub fn readable(&self, partition: Partition) -> impl Iterator<Item = NodeId> {
        self.cells(partition).iter().filter(|cell| cell.is_readable()).map(|cell| cell.nid)
    }
    /// Nodes to which stores of a partition are sent: all but those of corrupted cells.
    pub fn writable(&self, partition: Partition) -> impl Iterator<Item = NodeId> {
        self.cells(partition).iter().filter(|cell| cell.state.is_writable()).map(|cell| cell.nid)
    }
    /// State of the cell of a node, if it has one.
    pub fn cell_state(&self, partition: Partition, nid: NodeId) -> Option<CellState> {
        self.cells(partition).iter().find(|cell| cell.nid == nid).map(|cell| cell.state)
    }
    /// Whether a node has a cell of a partition, readable or not.
    pub fn is_assigned(&self, partition: Partition, nid: NodeId) -> bool {
        self.cell_state(partition, nid).is_some()
    }
    /// Whether a partition can be read from a node.
    pub fn is_readable(&self, partition: Partition, nid: NodeId) -> bool {
        self.cell_state(partition, nid).is_some_and(CellState::is_readable)
    }

    /// Rows, from partition 0.
    pub fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }
    /// Whether another table has the same cells. Their order in a row means nothing: a database may
    /// return them in another one.
    pub fn has_same_cells(&self, other: &Self) -> bool {
        let is_same = |(row, other): (&Vec<Cell>, &Vec<Cell>)| {
            row == other || row.len() == other.len() && row.iter().all(|cell| other.contains(cell))
        };
        self.rows.len() == other.rows.len() && self.rows.iter().zip(&other.rows).all(is_same)
    }
    /// Rows from a partition, `count` of them at most, as in packets.
    pub fn wire_rows(&self, first: Partition, count: usize) -> Rows {
        let rows = self.rows.iter().skip(first as usize).take(count);
        rows.map(|row| row.iter().map(|cell| (cell.nid, cell.state)).collect()).collect()
    }
    /// All rows, as in packets.
    pub fn to_wire(&self) -> Rows {
        self.wire_rows(0, usize::MAX)
    }

    /// Nodes with at least one cell, by id.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.counts.keys().copied()
    }
    /// Nodes with at least one readable cell.
    pub fn readable_nodes(&self) -> BTreeSet<NodeId> {
        self.rows.iter().flatten().filter(|cell| cell.is_readable()).map(|cell| cell.nid).collect()
    }
    /// Whether a node has at least one cell.
    pub fn has_cells(&self, nid: NodeId) -> bool {
        self.counts.contains_key(&nid)
    }
    /// Number of cells of a node that count as assigned to it: all but FEEDING ones.
    pub fn assigned_count(&self, nid: NodeId) -> u32 {
        self.counts.get(&nid).map_or(0, |count| count.assigned)
    }

    /// Partitions of which a node has a cell, with its state.
    pub fn cells_of(&self, nid: NodeId) -> impl Iterator<Item = (Partition, CellState)> {
        (0..).zip(&self.rows).filter_map(move |(partition, row)| {
            row.iter().find(|cell| cell.nid == nid).map(|cell| (partition, cell.state))
        })
    }
    /// Partitions that can be read from a node.
    pub fn readable_of(&self, nid: NodeId) -> impl Iterator<Item = Partition> {
        self.cells_of(nid).filter(|(_, state)| state.is_readable()).map(|(partition, _)| partition)
    }
    /// Partitions that a node has to replicate.
    pub fn outdated_of(&self, nid: NodeId) -> impl Iterator<Item = Partition> {
        self.cells_of(nid)
            .filter(|(_, state)| *state == CellState::OutOfDate)
            .map(|(partition, _)| partition)
    }

    /// Whether each partition has a cell. Vacuously true without any partition.
    pub fn filled(&self) -> bool {
        self.filled_count == self.rows.len()
    }
    /// Whether each partition can be read from a node that runs. False without any partition.
    pub fn operational(&self, is_running: impl Fn(NodeId) -> bool) -> bool {
        !self.rows.is_empty()
            && self
                .rows
                .iter()
                .all(|row| row.iter().any(|cell| cell.is_readable() && is_running(cell.nid)))
    }

    /// Changes, adds or removes ([`CellState::Discarded`]) a cell, and returns its state before.
    ///
    /// # Errors
    /// If the partition does not exist.
    pub fn set_cell(
        &mut self,
        partition: Partition,
        nid: NodeId,
        state: CellState,
    ) -> Result<Option<CellState>, TableError> {
        let row = self.rows.get_mut(partition as usize).ok_or(TableError::Partition(partition))?;
        let index = row.iter().position(|cell| cell.nid == nid);
        let old = index.map(|index| row[index].state);
        self.filled_count -= usize::from(!row.is_empty());
        match (index, state) {
            (Some(index), CellState::Discarded) => {
                row.remove(index);
            }
            (Some(index), _) => row[index].state = state,
            (None, CellState::Discarded) => {}
            (None, _) => row.push(Cell { nid, state }),
        }
        self.filled_count += usize::from(!row.is_empty());
        self.count(nid, old, state);
        Ok(old)
    }

    fn count(&mut self, nid: NodeId, old: Option<CellState>, new: CellState) {
        let is_cell = |state: CellState| state != CellState::Discarded;
        let is_assigned = |state: CellState| is_cell(state) && state != CellState::Feeding;
        let count = self.counts.entry(nid).or_default();
        count.cells = count.cells + u32::from(is_cell(new)) - u32::from(old.is_some_and(is_cell));
        count.assigned =
            count.assigned + u32::from(is_assigned(new)) - u32::from(old.is_some_and(is_assigned));
        if count.cells == 0 {
            self.counts.remove(&nid);
        }
    }
}
