// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known of one cluster, and how admins tell each other about changes of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use neo_common::node::{Node, NodeManager};
use neo_common::partition_table::PartitionTable;
use neo_common::protocol::{CellState, ClusterState, Map, Value};
use neo_common::types::Tid;

/// Number of cells in each state; states without any cell are not there.
pub type Cells = BTreeMap<CellState, u32>;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// Redundancy is reduced, or a backup does not follow.
    Warning,
    /// A node is down, or the cluster does not work.
    Problem,
}

/// Health of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// `None` if unknown.
    pub state: Option<ClusterState>,
    /// Number of nodes with cells that do not run.
    pub down: u32,
    /// `None` as long as there is no partition table.
    pub cells: Option<Cells>,
    /// Last transaction, when last asked.
    pub last_tid: Option<Tid>,
    /// Up to where the backup is complete, when last asked.
    pub backup_tid: Option<Tid>,
}

impl Health {
    /// Whether clients are served.
    pub fn is_operational(&self) -> bool {
        matches!(self.state, Some(ClusterState::Running | ClusterState::BackingUp))
    }

    /// How bad it is; a backup cluster (of ours) is expected to back up.
    pub fn severity(&self, is_backup: bool) -> Severity {
        let all_up_to_date = self
            .cells
            .as_ref()
            .is_some_and(|cells| cells.len() == 1 && cells.contains_key(&CellState::UpToDate));
        if self.down != 0 || !self.is_operational() {
            Severity::Problem
        } else if !all_up_to_date || is_backup && self.state != Some(ClusterState::BackingUp) {
            Severity::Warning
        } else {
            Severity::Ok
        }
    }

    /// Takes a change; `None` if nothing really changed, else what did.
    pub fn apply(&mut self, change: Change) -> Option<Change> {
        let change = Change {
            state: change.state.filter(|state| *state != self.state),
            down: change.down.filter(|down| *down != self.down),
            cells: change.cells.filter(|cells| *cells != self.cells),
        };
        if change == Change::default() {
            return None;
        }
        if let Some(state) = change.state {
            self.state = state;
        }
        if let Some(down) = change.down {
            self.down = down;
        }
        if let Some(cells) = &change.cells {
            self.cells.clone_from(cells);
        }
        Some(change)
    }

    /// Everything, as told the first time.
    pub fn to_change(&self) -> Change {
        Change { state: Some(self.state), down: Some(self.down), cells: Some(self.cells.clone()) }
    }
}

/// A change of [`Health`]: what is `None` stays as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// `cluster_state`
    state: Option<Option<ClusterState>>,
    /// `down`
    down: Option<u32>,
    /// `pt_summary`
    cells: Option<Option<Cells>>,
}

impl Change {
    /// Of the state.
    pub fn of_state(state: Option<ClusterState>) -> Self {
        Self { state: Some(state), ..Self::default() }
    }

    /// Of nodes or cells.
    pub fn of_table(table: &PartitionTable, nodes: &NodeManager) -> Self {
        let mut down = BTreeSet::new();
        let mut cells = Cells::new();
        for cell in table.rows().iter().flatten() {
            *cells.entry(cell.state).or_default() += 1;
            if !nodes.by_nid(cell.nid).is_some_and(Node::is_running) {
                down.insert(cell.nid);
            }
        }
        Self { state: None, down: Some(down.len() as u32), cells: Some(Some(cells)) }
    }

    /// From `NotifyMonitorInformation`. Unknown keys are ignored.
    ///
    /// # Errors
    /// If a value is not of the expected type.
    pub fn from_wire(info: Map<Bytes, Value>) -> Result<Self, &'static str> {
        let mut change = Self::default();
        for (key, value) in info {
            match &key[..] {
                b"cluster_state" => {
                    change.state = Some(match value {
                        Value::Nil => None,
                        value => Some(value.as_item().ok_or("invalid cluster_state")?),
                    });
                }
                b"down" => match value {
                    Value::Int(down) => {
                        change.down = Some(u32::try_from(down).map_err(|_| "invalid down")?);
                    }
                    _ => return Err("invalid down"),
                },
                b"pt_summary" => {
                    change.cells = Some(match value {
                        Value::Nil => None,
                        Value::Map(pairs) => Some(cells_from_wire(&pairs)?),
                        _ => return Err("invalid pt_summary"),
                    });
                }
                _ => log::debug!("unknown monitor information {key:?}"),
            }
        }
        Ok(change)
    }

    /// As in `NotifyMonitorInformation`.
    pub fn to_wire(&self) -> Map<Bytes, Value> {
        let state = self.state.map(|state| state.map_or(Value::Nil, Value::item));
        let down = self.down.map(|down| Value::Int(down.into()));
        let cells = self.cells.as_ref().map(|cells| match cells {
            None => Value::Nil,
            Some(cells) => Value::Map(
                cells
                    .iter()
                    .map(|(state, count)| (Value::item(*state), Value::Int((*count).into())))
                    .collect(),
            ),
        });
        let pairs = [("cluster_state", state), ("down", down), ("pt_summary", cells)];
        pairs
            .into_iter()
            .filter_map(|(key, value)| Some((Bytes::from_static(key.as_bytes()), value?)))
            .collect()
    }
}

fn cells_from_wire(pairs: &[(Value, Value)]) -> Result<Cells, &'static str> {
    pairs
        .iter()
        .map(|(state, count)| match (state.as_item(), count) {
            (Some(state), Value::Int(count)) => Some((state, u32::try_from(*count).ok()?)),
            _ => None,
        })
        .collect::<Option<_>>()
        .ok_or("invalid pt_summary")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(list: &[(CellState, u32)]) -> Option<Cells> {
        Some(list.iter().copied().collect())
    }

    /// A node down or a cluster that does not serve is a problem; missing redundancy, or a backup
    /// that runs on its own, a warning.
    #[test]
    fn severities() {
        let good = Health {
            state: Some(ClusterState::Running),
            cells: cells(&[(CellState::UpToDate, 8)]),
            ..Health::default()
        };
        assert_eq!(good.severity(false), Severity::Ok);
        assert_eq!(good.severity(true), Severity::Warning);
        let backup = Health { state: Some(ClusterState::BackingUp), ..good.clone() };
        assert_eq!((backup.severity(false), backup.severity(true)), (Severity::Ok, Severity::Ok));
        let outdated = [(CellState::UpToDate, 6), (CellState::OutOfDate, 2)];
        let outdated = Health { cells: cells(&outdated), ..good.clone() };
        assert_eq!(outdated.severity(false), Severity::Warning);
        assert_eq!(Health { cells: None, ..good.clone() }.severity(false), Severity::Warning);
        assert_eq!(Health { down: 1, ..good.clone() }.severity(false), Severity::Problem);
        for state in [None, Some(ClusterState::Recovering), Some(ClusterState::Stopping)] {
            assert_eq!(Health { state, ..good.clone() }.severity(false), Severity::Problem);
        }
    }

    /// Only what differs is told on, and what is told survives the wire.
    #[test]
    fn changes_are_reduced_and_travel() {
        let mut health = Health::default();
        assert_eq!(health.apply(Change::of_state(None)), None);
        let change = Change::of_state(Some(ClusterState::Running));
        assert_eq!(health.apply(change.clone()), Some(change.clone()));
        assert_eq!(health.apply(change.clone()), None);
        let all =
            Change { down: Some(2), cells: Some(cells(&[(CellState::Feeding, 3)])), ..change };
        let reduced = health.apply(all.clone()).unwrap();
        assert_eq!(reduced, Change { state: None, ..all });
        for change in [reduced, health.to_change(), Health::default().to_change()] {
            assert_eq!(Change::from_wire(change.to_wire()), Ok(change));
        }
    }

    /// Values of other types are refused; unknown keys are not.
    #[test]
    fn foreign_information() {
        let parse = |key: &'static str, value| {
            Change::from_wire(Map(vec![(Bytes::from_static(key.as_bytes()), value)]))
        };
        assert!(parse("cluster_state", Value::Int(2)).is_err());
        assert!(parse("cluster_state", Value::Item(0, 1)).is_err());
        assert!(parse("down", Value::Int(-1)).is_err());
        assert!(parse("down", Value::Nil).is_err());
        assert!(parse("pt_summary", Value::Map(vec![(Value::Nil, Value::Int(1))])).is_err());
        assert!(parse("pt_summary", Value::Array(vec![])).is_err());
        assert_eq!(parse("colour", Value::Nil), Ok(Change::default()));
    }
}
