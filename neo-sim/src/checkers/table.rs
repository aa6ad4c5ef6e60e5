// SPDX-License-Identifier: GPL-2.0-or-later
//! Changes of the partition table: each cell only goes from state to state as allowed, and no
//! partition is left without a cell that can be read. A cell that feeds others stays until there are
//! enough copies.
//!
//! ```text
//!   (none) --> OutOfDate --replicated--> UpToDate <--> Feeding
//!     ^            ^                        |             |
//!     |            +---- node lost ---------+-------------+
//!     +------------------- Discarded <------+-------------+
//! ```

use std::collections::{BTreeMap, BTreeSet};

use neo_common::protocol::{CellState, ClusterState, Packet, Rows};
use neo_common::types::{NodeId, Partition, Ptid};

use crate::model::{Checked, ensure};
use crate::network::HostId;

/// The table of one master process.
#[derive(Debug, Default)]
struct Table {
    ptid: Ptid,
    rows: Vec<BTreeMap<NodeId, CellState>>,
    /// The master said that it does not recover any more: the table is not what was found so far.
    is_decided: bool,
}

/// Partition tables that masters told.
#[derive(Debug, Default)]
pub struct Tables {
    masters: BTreeMap<(HostId, u64), Table>,
    /// Cells that their nodes said to be replicated.
    replicated: BTreeSet<(Partition, HostId)>,
    /// Changes of cells so far.
    pub changes_count: u64,
}

impl Tables {
    /// A node sends a packet. `is_master`: a master does, with this number of its process.
    ///
    /// # Errors
    /// If it must not.
    pub fn sent(
        &mut self,
        from: HostId,
        master_life: Option<u64>,
        packet: &Packet,
        host_of: impl Fn(NodeId) -> Option<HostId>,
    ) -> Checked {
        match (packet, master_life) {
            (Packet::NotifyReplicationDone { partition, .. }, None) => {
                self.replicated.insert((*partition, from));
                Ok(())
            }
            (Packet::SendPartitionTable { ptid: Some(ptid), rows, .. }, Some(life)) => {
                self.table_sent((from, life), *ptid, rows)
            }
            (Packet::NotifyPartitionChanges { ptid, replicas, changes }, Some(life)) => {
                self.changes_sent((from, life), *ptid, *replicas, changes, host_of)
            }
            (Packet::NotifyClusterInformation { state }, Some(life)) => {
                let table = self.masters.entry((from, life)).or_default();
                table.is_decided = *state != ClusterState::Recovering;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn table_sent(&mut self, master: (HostId, u64), ptid: Ptid, rows: &Rows) -> Checked {
        let table = self.masters.entry(master).or_default();
        let rows: Vec<BTreeMap<_, _>> =
            rows.iter().map(|row| row.iter().copied().collect()).collect();
        let is_decided = table.is_decided;
        if is_decided && table.ptid == ptid && !table.rows.is_empty() {
            ensure!(table.rows == rows, "two different tables with ptid {ptid}");
            return Ok(());
        }
        // During recovery, tables are found in storages, and admins see them.
        *table = Table { ptid, rows, is_decided };
        if is_decided { table.check() } else { Ok(()) }
    }

    fn changes_sent(
        &mut self,
        master: (HostId, u64),
        ptid: Ptid,
        replicas: u32,
        changes: &[(Partition, NodeId, CellState)],
        host_of: impl Fn(NodeId) -> Option<HostId>,
    ) -> Checked {
        // Without table, nobody knows what changes.
        let Some(table) = self.masters.get_mut(&master) else { return Ok(()) };
        if ptid <= table.ptid {
            // The same, to another node.
            return Ok(());
        }
        // A start that leaves something unknown begins with a multiple of this: see `begin_ptids`.
        let is_start = ptid.is_multiple_of(1 << 16);
        ensure!(ptid == table.ptid + 1 || is_start, "ptid goes from {} to {ptid}", table.ptid);
        table.ptid = ptid;
        // Partitions of which a cell is replicated, and those of which a FEEDING cell is discarded.
        let (mut fed, mut unfed) = (BTreeSet::new(), BTreeSet::new());
        for (partition, nid, state) in changes {
            let row = table.rows.get_mut(*partition as usize);
            let Some(row) = row else {
                return Err(crate::model::Violation(format!("no partition {partition}")));
            };
            let old = row.get(nid).copied();
            let host = host_of(*nid);
            let replicated = host.is_some_and(|host| self.replicated.contains(&(*partition, host)));
            ensure!(
                is_allowed(old, *state, replicated),
                "cell {partition} of {nid} goes from {old:?} to {state:?} (replicated: {replicated})"
            );
            if *state == CellState::OutOfDate
                && let Some(host) = host
            {
                self.replicated.remove(&(*partition, host));
            }
            match (old, state) {
                (Some(CellState::OutOfDate), CellState::UpToDate) => fed.insert(*partition),
                (Some(CellState::Feeding), CellState::Discarded) => unfed.insert(*partition),
                _ => false,
            };
            match state {
                CellState::Discarded => row.remove(nid),
                state => row.insert(*nid, *state),
            };
            self.changes_count += 1;
        }
        for partition in fed.intersection(&unfed) {
            table.check_fed(*partition, replicas)?;
        }
        table.check()
    }
}

impl Table {
    /// A cell that fed others is discarded because one of them is complete: no copy is missing, or
    /// there are enough without it.
    fn check_fed(&self, partition: Partition, replicas: u32) -> Checked {
        let row = &self.rows[partition as usize];
        let readable_count = row.values().filter(|state| state.is_readable()).count();
        ensure!(
            readable_count == row.len() || readable_count > replicas as usize,
            "a FEEDING cell of partition {partition} is discarded too early: {row:?}"
        );
        Ok(())
    }

    fn check(&self) -> Checked {
        for (partition, row) in self.rows.iter().enumerate() {
            ensure!(
                row.values().any(|state| state.is_readable()),
                "partition {partition} has no readable cell: {row:?}"
            );
        }
        Ok(())
    }
}

fn is_allowed(old: Option<CellState>, new: CellState, replicated: bool) -> bool {
    match (old, new) {
        (None, CellState::OutOfDate) => true,
        (Some(CellState::OutOfDate), CellState::UpToDate) => replicated,
        (Some(CellState::UpToDate | CellState::Feeding), CellState::OutOfDate) => true,
        (Some(CellState::UpToDate), CellState::Feeding) => true,
        (Some(CellState::Feeding), CellState::UpToDate) => true,
        (Some(_), CellState::Discarded) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neo_common::types::NodeId;

    /// A FEEDING cell leaves once another one is complete, but not as long as copies are missing.
    #[test]
    fn feeding_cells_stay_until_there_are_enough_copies() {
        use CellState::{Discarded, Feeding, OutOfDate, UpToDate};
        let nid = |index| NodeId::of(neo_common::protocol::NodeType::Storage, index).unwrap();
        let (feeding, next, late) = (nid(1), nid(2), nid(3));
        let told = |others: &[(NodeId, CellState)]| {
            let rows: Rows = vec![[&[(feeding, Feeding)], others].concat()];
            let mut tables = Tables::default();
            let table = Packet::SendPartitionTable { ptid: Some(1), replicas: 1, rows };
            tables.sent(HostId(0), Some(0), &table, |_| None).unwrap();
            let done =
                Packet::NotifyReplicationDone { partition: 0, tid: neo_common::types::Tid::ZERO };
            tables.sent(HostId(2), None, &done, |_| None).unwrap();
            let changes = vec![(0, next, UpToDate), (0, feeding, Discarded)];
            let changes = Packet::NotifyPartitionChanges { ptid: 2, replicas: 1, changes };
            tables.sent(HostId(0), Some(0), &changes, |nid| (nid == next).then_some(HostId(2)))
        };
        assert_eq!(told(&[(next, OutOfDate)]), Ok(()));
        assert_eq!(told(&[(next, OutOfDate), (late, UpToDate)]), Ok(()));
        assert!(told(&[(next, OutOfDate), (late, OutOfDate)]).is_err());
    }
}
