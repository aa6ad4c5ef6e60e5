// SPDX-License-Identifier: GPL-2.0-or-later
//! The table of nodes that `neoctl print node` and the logs show. Upstream: lib/protocol.py,
//! `formatNodeList`.
//!
//! ```text
//! A1 | ADMIN   | 127.0.0.1:9999  | RUNNING | 2026-11-21 22:52:22.249120
//! C1 | CLIENT  |                 | RUNNING | 2026-11-21 22:52:30.827486
//! M1 | MASTER  | 127.0.0.1:10000 | RUNNING | None
//! ```

use std::cmp::Ordering;
use std::net::SocketAddr;

use crate::protocol::NodeEntry;
use crate::time::DateTime;
use crate::types::nid_str;

/// One line per node, by id then those without id by address. Columns are padded to the widest
/// value, except the last one.
pub fn format_nodes(entries: &[NodeEntry]) -> Vec<String> {
    let mut entries: Vec<&NodeEntry> = entries.iter().collect();
    entries.sort_by(|a, b| compare(a, b));
    let cells: Vec<[String; 4]> = entries
        .iter()
        .map(|(node_type, address, nid, state, _)| {
            let address = address.map_or_else(String::new, |address| address.to_string());
            [nid_str(*nid), node_type.to_string(), address, state.to_string()]
        })
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    cells
        .iter()
        .zip(&entries)
        .map(|(row, (.., id_timestamp))| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:width$} | "));
            }
            line + &format_timestamp(*id_timestamp)
        })
        .collect()
}

fn compare(a: &NodeEntry, b: &NodeEntry) -> Ordering {
    match (a.2, b.2) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        // As texts, like upstream.
        (None, None) => {
            let key = |address: Option<SocketAddr>| address.map(|a| (a.ip().to_string(), a.port()));
            key(a.1).cmp(&key(b.1))
        }
    }
}

fn format_timestamp(id_timestamp: Option<f64>) -> String {
    match id_timestamp {
        None => "None".into(),
        // Upstream prints a null time stamp as the number that it is. One that is outside of the
        // calendar is a number as well.
        Some(0.0) => "0.0".into(),
        Some(seconds) => DateTime::from_timestamp(seconds)
            .map_or_else(|| seconds.to_string(), |date| date.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{NodeState, NodeType};
    use crate::types::NodeId;

    /// The example of the recorded session, and the cases that it does not have.
    #[test]
    fn tables() {
        let address = |text: &str| Some(text.parse().unwrap());
        let nid = NodeId::of;
        let run = NodeState::Running;
        let (m, s, c, a) = (NodeType::Master, NodeType::Storage, NodeType::Client, NodeType::Admin);
        let mut nodes = vec![
            (s, address("127.0.0.1:26011"), nid(s, 1), run, Some(1_795_301_545.522_045)),
            (m, address("127.0.0.1:26001"), nid(m, 1), run, None),
            (c, None, nid(c, 1), run, Some(1_795_301_550.827_486)),
            (a, address("127.0.0.1:26021"), nid(a, 1), run, Some(1_795_301_542.249_12)),
            (m, address("127.0.0.1:26002"), nid(m, 2), NodeState::Down, Some(1_795_301_542.0)),
        ];
        let expected = "\
A1 | ADMIN   | 127.0.0.1:26021 | RUNNING | 2026-11-21 22:52:22.249120
C1 | CLIENT  |                 | RUNNING | 2026-11-21 22:52:30.827486
M1 | MASTER  | 127.0.0.1:26001 | RUNNING | None
M2 | MASTER  | 127.0.0.1:26002 | DOWN    | 2026-11-21 22:52:22
S1 | STORAGE | 127.0.0.1:26011 | RUNNING | 2026-11-21 22:52:25.522045";
        assert_eq!(format_nodes(&nodes).join("\n"), expected);
        let client = "C1 | CLIENT |  | RUNNING | 2026-11-21 22:52:30.827486";
        assert_eq!(format_nodes(&nodes[2..3]), [client]);
        assert_eq!(format_nodes(&[]), Vec::<String>::new());

        nodes.truncate(1);
        nodes.push((m, address("[::1]:10000"), None, NodeState::Down, Some(0.0)));
        nodes.push((m, address("[::1]:9999"), None, NodeState::Down, Some(f64::INFINITY)));
        let expected = "\
S1   | STORAGE | 127.0.0.1:26011 | RUNNING | 2026-11-21 22:52:25.522045
None | MASTER  | [::1]:9999      | DOWN    | inf
None | MASTER  | [::1]:10000     | DOWN    | 0.0";
        assert_eq!(format_nodes(&nodes).join("\n"), expected);
    }
}
