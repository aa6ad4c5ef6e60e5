// SPDX-License-Identifier: GPL-2.0-or-later
//! The exact texts that scripts read. Upstream: neoctl/app.py.

use std::collections::BTreeMap;

use neo_common::node::format::format_nodes;
use neo_common::partition_table::{PartitionTable, TableError, format_rows};
use neo_common::protocol::{NodeEntry, NodeState, Rows};
use neo_common::time::DateTime;
use neo_common::types::{NodeId, Oid, Partition, Ptid, Tid};

use crate::json;

/// `print node`
pub fn nodes(nodes: &[NodeEntry]) -> String {
    if nodes.is_empty() { "Empty list!".into() } else { format_nodes(nodes).join("\n") }
}

/// `print ids` of a cluster that is not a backup.
pub fn ids(last_oid: Option<Oid>, last_tid: Option<Tid>, ptid: Option<Ptid>) -> String {
    let last_oid = last_oid.map_or_else(none, |oid| format!("{:#x}", oid.get()));
    format!("last_oid = {last_oid}\n{}", last_ids(last_tid, ptid))
}

/// `print ids` of a backup cluster.
pub fn backup_ids(backup_tid: Tid, last_tid: Tid, ptid: Option<Ptid>) -> String {
    format!("backup_tid = {}\n{}", tid(backup_tid), last_ids(Some(last_tid), ptid))
}

fn last_ids(last_tid: Option<Tid>, ptid: Option<Ptid>) -> String {
    let last_tid = last_tid.map_or_else(none, tid);
    let ptid = ptid.map_or_else(none, |ptid| ptid.to_string());
    format!("last_tid = {last_tid}\nlast_ptid = {ptid}")
}

fn tid(tid: Tid) -> String {
    format!("{:#x} ({})", tid.get(), DateTime::from_tid(tid))
}

/// What Python prints for nothing.
fn none() -> String {
    "None".into()
}

/// First line of `print pt`.
fn pt_header(ptid: Option<Ptid>, replicas: u32) -> String {
    let ptid = ptid.map_or_else(none, |ptid| ptid.to_string());
    format!("# ptid: {ptid}, replicas: {replicas}\n")
}

/// `print pt MIN MAX`
pub fn pt_rows(ptid: Option<Ptid>, replicas: u32, first: Partition, rows: &Rows) -> String {
    pt_header(ptid, replicas) + &format_rows(first, rows).join("\n")
}

/// `print pt`
///
/// # Errors
/// If there are too many rows or cells.
pub fn pt(
    ptid: Option<Ptid>,
    replicas: u32,
    rows: &Rows,
    storages: &[NodeEntry],
) -> Result<String, TableError> {
    Ok(pt_header(ptid, replicas) + &table(rows, storages)?)
}

/// The table alone: nodes with cells, and those that run without any.
///
/// # Errors
/// If there are too many rows or cells.
pub fn table(rows: &Rows, storages: &[NodeEntry]) -> Result<String, TableError> {
    let mut table = PartitionTable::new();
    table.load(None, 0, rows)?;
    let states: BTreeMap<NodeId, NodeState> =
        storages.iter().filter_map(|entry| Some((entry.2?, entry.3))).collect();
    let running = states.iter().filter(|(_, state)| **state == NodeState::Running);
    let lines = table.format(running.map(|(nid, _)| *nid), |nid| {
        states.get(&nid).copied().unwrap_or(NodeState::Unknown)
    });
    Ok(lines.join("\n"))
}

/// `print summary`: a comment in JSON for programs, then the text for people.
pub fn summary(warnings: &[Option<String>], problems: &[Option<String>], summary: &str) -> String {
    let severities: Vec<String> = [("warning", warnings), ("problem", problems)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(severity, names)| {
            let names: Vec<String> = names
                .iter()
                .map(|name| name.as_ref().map_or_else(|| "null".into(), |name| json::string(name)))
                .collect();
            format!("\"{severity}\": [{}]", names.join(", "))
        })
        .collect();
    format!("# {{{}}}\n{summary}", severities.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use neo_common::protocol::{CellState, NodeType};

    fn s(index: u32) -> NodeId {
        NodeId::of(NodeType::Storage, index).unwrap()
    }
    fn storage(index: u32, state: NodeState) -> NodeEntry {
        (NodeType::Storage, None, Some(s(index)), state, None)
    }

    /// Ids of a normal cluster, an empty one, and a backup.
    #[test]
    fn all_ids() {
        let last_tid = Tid::new(0x040d_2c9c_83a2_6503);
        assert_eq!(
            ids(Some(Oid::new(3)), Some(last_tid), Some(1)),
            "last_oid = 0x3\nlast_tid = 0x40d2c9c83a26503 (2026-11-21 22:52:30.851801)\nlast_ptid = 1"
        );
        assert_eq!(
            ids(Some(Oid::ZERO), Some(Tid::ZERO), None),
            "last_oid = 0x0\nlast_tid = 0x0 (1900-01-01 00:00:00)\nlast_ptid = None"
        );
        assert_eq!(ids(None, None, None), "last_oid = None\nlast_tid = None\nlast_ptid = None");
        assert_eq!(
            backup_ids(Tid::ZERO, last_tid, Some(7)),
            "backup_tid = 0x0 (1900-01-01 00:00:00)\n\
             last_tid = 0x40d2c9c83a26503 (2026-11-21 22:52:30.851801)\nlast_ptid = 7"
        );
    }

    /// Nodes without cells are shown while they run; those with cells always.
    #[test]
    fn tables() {
        use CellState::{OutOfDate, UpToDate};
        let rows = vec![vec![(s(1), UpToDate)], vec![(s(2), OutOfDate), (s(1), UpToDate)]];
        let storages = [
            storage(1, NodeState::Running),
            storage(2, NodeState::Down),
            storage(3, NodeState::Running),
            storage(4, NodeState::Pending),
        ];
        assert_eq!(
            pt(Some(4), 1, &rows, &storages).unwrap(),
            "# ptid: 4, replicas: 1\nS1 R UU\nS2 D .O\nS3 R .."
        );
        assert_eq!(
            pt_rows(Some(1), 1, 1, &rows),
            "# ptid: 1, replicas: 1\n001 | S1 - UP_TO_DATE |\n002 | S2 - OUT_OF_DATE | S1 - UP_TO_DATE |"
        );
        assert_eq!(pt(None, 1, &vec![], &[]).unwrap(), "# ptid: None, replicas: 1\n");
        assert_eq!(table(&rows, &[]).unwrap(), "S1 U UU\nS2 U .O", "unknown nodes");
    }

    /// Severities in JSON that Python reads back.
    #[test]
    fn summaries() {
        assert_eq!(summary(&[], &[], "RUNNING"), "# {}\nRUNNING");
        assert_eq!(summary(&[], &[None], "x"), "# {\"problem\": [null]}\nx");
        let names = [Some("é\"\\\n\u{1f600}\u{7f}".to_owned()), None];
        assert_eq!(
            summary(&names, &[Some("b".into())], "x\ny"),
            "# {\"warning\": [\"\\u00e9\\\"\\\\\\n\\ud83d\\ude00\\u007f\", null], \"problem\": [\"b\"]}\nx\ny"
        );
        assert_eq!(nodes(&[]), "Empty list!");
    }
}
