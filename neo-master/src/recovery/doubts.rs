// SPDX-License-Identifier: GPL-2.0-or-later
//! Locks that may not count, because the storage that has them was told a partition table that is not the
//! one to start with.
//!
//! 1. Version 5: S1, S2 and S3 are up-to-date. A client cannot store on S3: the master disconnects it and
//!    tells version 6, in which S3 is out-of-date, then asks S1 and S2 to lock the transaction.
//! 2. S1 does. The machines of S2 and of the master lose power before.
//! 3. The cluster starts with version 5: nothing was committed with version 6, which S2 does not have. S3 is
//!    up-to-date again, without a part of the transaction.
//!
//! So the transaction must be dropped. It was not committed, otherwise S2 would have locked it: it is a
//! *witness*, whose cell of the metadata is readable in both tables and who does not have version 6. What was
//! locked before version 6 is also locked, or finished, by all witnesses.

use neo_common::partition_table::PartitionTable as Table;
use neo_common::types::{NodeId, Partition};

use super::versions::Versions;

/// What storages had, and the table to start with.
#[derive(Debug)]
pub struct Doubts {
    versions: Versions,
    table: Table,
}

impl Doubts {
    /// `None` if no storage has anything later than this table.
    pub fn new(versions: &Versions, table: &Table) -> Option<Self> {
        let is_later = |(_, other): (NodeId, &Table)| Self::is_later(other, table);
        let is_any = versions.tables().any(is_later);
        is_any.then(|| Self { versions: versions.clone(), table: table.clone() })
    }

    /// Of two tables of the same version, one is not the one to start with.
    fn is_later(other: &Table, table: &Table) -> bool {
        other.ptid() > table.ptid() || other.ptid() == table.ptid() && other != table
    }

    /// Storages without whose lock a transaction that this one locked was not committed. `partition` is that
    /// of its metadata.
    pub fn witnesses(&self, nid: NodeId, partition: Partition) -> Vec<NodeId> {
        let Some(own) = self.versions.table_of(nid) else { return Vec::new() };
        if !Self::is_later(own, &self.table) {
            return Vec::new();
        }
        let is_readable = |table: &Table, nid| {
            table.cell_state(partition, nid).is_some_and(|state| state.is_readable())
        };
        let lacks =
            |nid| self.versions.table_of(nid).is_some_and(|other| Self::is_later(own, other));
        self.table.readable(partition).filter(|nid| is_readable(own, *nid) && lacks(*nid)).collect()
    }
}
