// SPDX-License-Identifier: GPL-2.0-or-later
//! The table as text, for `neoctl print pt` and the logs. Upstream: lib/pt.py, `_format`.
//!
//! ```text
//!              10v       20v       30v       40v
//! S1 R U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.
//! S2 R .U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.U.FOF.U.FOF
//! ```
//!
//! A line per node: id, state, then a letter per partition. The ruler is there above 10 partitions;
//! `v` points to the column of that partition.

use std::collections::{BTreeMap, BTreeSet};

use super::PartitionTable;
use crate::protocol::{CellState, NodeState, Rows};
use crate::types::{NodeId, Partition};

impl PartitionTable {
    /// A line per node of the table or of `others`, with a ruler above if needed; nothing if there
    /// is no node.
    pub fn format(
        &self,
        others: impl IntoIterator<Item = NodeId>,
        state_of: impl Fn(NodeId) -> NodeState,
    ) -> Vec<String> {
        let mut nids: BTreeSet<NodeId> = self.nodes().collect();
        nids.extend(others);
        let Some(last) = nids.last() else { return Vec::new() };
        // Upstream aligns on the last node, which has the greatest number.
        let width = last.to_string().len();
        let mut cells: BTreeMap<NodeId, Vec<u8>> =
            nids.iter().map(|nid| (*nid, vec![b'.'; self.rows.len()])).collect();
        for (partition, row) in self.rows.iter().enumerate() {
            for cell in row {
                if let Some(line) = cells.get_mut(&cell.nid) {
                    line[partition] = cell_letter(cell.state) as u8;
                }
            }
        }
        let ruler = (self.rows.len() > 10).then(|| ruler(width, self.rows.len()));
        let lines = cells.into_iter().map(|(nid, line)| {
            let line = line.into_iter().map(char::from).collect::<String>();
            format!("{nid:width$} {} {line}", node_letter(state_of(nid)))
        });
        ruler.into_iter().chain(lines).collect()
    }
}

/// Rows with their cells in full, as `neoctl print pt MIN MAX` prints them.
///
/// ```text
/// 001 | S1 - UP_TO_DATE | S2 - UP_TO_DATE |
/// ```
pub fn format_rows(first: Partition, rows: &Rows) -> Vec<String> {
    (u64::from(first)..)
        .zip(rows)
        .map(|(partition, row)| {
            let cells: String =
                row.iter().map(|(nid, state)| format!(" {nid} - {state} |")).collect();
            format!("{partition:03} |{cells}")
        })
        .collect()
}

/// Letter of the state of a cell.
pub const fn cell_letter(state: CellState) -> char {
    match state {
        CellState::UpToDate => 'U',
        CellState::OutOfDate => 'O',
        CellState::Feeding => 'F',
        CellState::Discarded => 'D',
        CellState::Corrupted => 'C',
    }
}

/// Letter of the state of a node.
pub const fn node_letter(state: NodeState) -> char {
    match state {
        NodeState::Running => 'R',
        NodeState::Down => 'D',
        NodeState::Unknown => 'U',
        NodeState::Pending => 'P',
    }
}

fn ruler(width: usize, partitions: usize) -> String {
    let marks = (10..partitions).step_by(10).map(|partition| format!("{partition:9}v"));
    std::iter::once(" ".repeat(width + 4)).chain(marks).collect()
}
