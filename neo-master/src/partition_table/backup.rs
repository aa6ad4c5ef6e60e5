// SPDX-License-Identifier: GPL-2.0-or-later
//! How far each cell of a backup cluster is. Upstream: master/pt.py.
//!
//! All cells are UP_TO_DATE, but up to different tids: the *backup tid* of a cell is that up to
//! which it is complete. It is forgotten when the cell is not readable any more.

use neo_common::types::{NodeId, Partition, Tid};

use super::PartitionTable;

/// How far a cell is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackupCell {
    /// Complete up to there.
    pub tid: Tid,
    /// Ordered to replicate up to there.
    pub replicating: Tid,
}

impl BackupCell {
    /// Complete, or about to be, up to there.
    pub fn aim(&self) -> Tid {
        self.tid.max(self.replicating)
    }
}

impl PartitionTable {
    /// How far a cell is; nowhere if nothing is known about it.
    pub fn backup_cell(&self, partition: Partition, nid: NodeId) -> BackupCell {
        self.backup.get(&(partition, nid)).copied().unwrap_or_default()
    }
    /// Changes how far a cell is.
    pub fn backup_cell_mut(&mut self, partition: Partition, nid: NodeId) -> &mut BackupCell {
        self.backup.entry((partition, nid)).or_default()
    }
    /// Readable cells of a partition, with how far they are.
    pub fn backup_cells(&self, partition: Partition) -> Vec<(NodeId, BackupCell)> {
        let readable = self.table.readable(partition);
        readable.map(|nid| (nid, self.backup_cell(partition, nid))).collect()
    }
    /// Says how far all readable cells are, by node.
    pub fn set_backup_tids(&mut self, tid_of: impl Fn(NodeId) -> Tid) {
        for partition in 0..self.partitions() {
            let readable: Vec<NodeId> = self.table.readable(partition).collect();
            for nid in readable {
                self.backup_cell_mut(partition, nid).tid = tid_of(nid);
            }
        }
    }
    /// Nothing is being replicated.
    pub fn clear_replicating(&mut self) {
        self.backup.values_mut().for_each(|cell| cell.replicating = Tid::ZERO);
    }

    /// Up to where the cluster has everything, in one readable cell at least.
    pub fn backup_tid(&self) -> Tid {
        self.min_of(0..self.partitions(), |tids| tids.iter().max().copied())
    }
    /// Up to where all readable cells have everything: what clients may see.
    pub fn shared_backup_tid(&self) -> Tid {
        self.shared_backup_tid_of(0..self.partitions())
    }
    /// The same for some partitions.
    pub fn shared_backup_tid_of(&self, partitions: impl Iterator<Item = Partition>) -> Tid {
        self.min_of(partitions, |tids| tids.iter().min().copied())
    }
    fn min_of(
        &self,
        partitions: impl Iterator<Item = Partition>,
        mean: impl Fn(&[Tid]) -> Option<Tid>,
    ) -> Tid {
        let tid = partitions.map(|partition| {
            let tids: Vec<Tid> =
                self.backup_cells(partition).iter().map(|(_, cell)| cell.tid).collect();
            mean(&tids).unwrap_or(Tid::ZERO)
        });
        tid.min().unwrap_or(Tid::ZERO)
    }
}
