// SPDX-License-Identifier: GPL-2.0-or-later
//! Changes of the partition table: each cell only goes from state to state as allowed, and no
//! partition is left without a cell that can be read.
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
            (Packet::NotifyPartitionChanges { ptid, changes, .. }, Some(life)) => {
                self.changes_sent((from, life), *ptid, changes, host_of)
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
        changes: &[(Partition, NodeId, CellState)],
        host_of: impl Fn(NodeId) -> Option<HostId>,
    ) -> Checked {
        // Without table, nobody knows what changes.
        let Some(table) = self.masters.get_mut(&master) else { return Ok(()) };
        if ptid <= table.ptid {
            // The same, to another node.
            return Ok(());
        }
        ensure!(ptid == table.ptid + 1, "ptid goes from {} to {ptid}", table.ptid);
        table.ptid = ptid;
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
            match state {
                CellState::Discarded => row.remove(nid),
                state => row.insert(*nid, *state),
            };
            self.changes_count += 1;
        }
        table.check()
    }
}

impl Table {
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
