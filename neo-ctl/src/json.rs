// SPDX-License-Identifier: GPL-2.0-or-later
//! What `--json` prints: the same information as the texts, for programs. Not in upstream.
//!
//! One object or array, in one line. Ids are written as everywhere else: nodes as `"S1"`, oids and
//! tids as 16 hexadecimal digits (a number would lose digits in most languages). What is not known
//! is null.

use std::fmt::Display;

use neo_common::protocol::{ClusterState, NodeEntry, Rows};
use neo_common::time::DateTime;
use neo_common::types::{NodeId, Oid, Partition, Ptid, Tid};

/// `print cluster`
pub fn cluster(state: Option<ClusterState>) -> String {
    object([("cluster_state", quoted(state))])
}

/// `print primary`
pub fn primary(nid: NodeId) -> String {
    object([("primary", quoted(Some(nid)))])
}

/// `print node`
pub fn nodes(entries: &[NodeEntry]) -> String {
    let mut entries: Vec<&NodeEntry> = entries.iter().collect();
    entries.sort_by_key(|entry| (entry.2.is_none(), entry.2, entry.1));
    array(entries.into_iter().map(|(node_type, address, nid, state, id_timestamp)| {
        object([
            ("nid", quoted(*nid)),
            ("type", quoted(Some(node_type))),
            ("address", quoted(*address)),
            ("state", quoted(Some(state))),
            ("id_timestamp", plain(id_timestamp.filter(|seconds| seconds.is_finite()))),
        ])
    }))
}

/// `print pt`: a cell of a row is a node and the state of the cell.
pub fn pt(ptid: Option<Ptid>, replicas: u32, first: Partition, rows: &Rows) -> String {
    let rows = rows.iter().map(|row| {
        let cells = row.iter().map(|(nid, state)| (nid.to_string(), quoted(Some(state))));
        object(cells)
    });
    object([
        ("ptid", plain(ptid)),
        ("replicas", plain(Some(replicas))),
        ("first", plain(Some(first))),
        ("rows", array(rows)),
    ])
}

/// `print ids`; a backup cluster does not tell its last oid.
pub fn ids(
    last_oid: Option<Oid>,
    last_tid: Option<Tid>,
    ptid: Option<Ptid>,
    backup_tid: Option<Tid>,
) -> String {
    object([
        ("last_oid", quoted(last_oid)),
        ("last_tid", quoted(last_tid)),
        ("last_tid_date", quoted(last_tid.map(DateTime::from_tid))),
        ("last_ptid", plain(ptid)),
        ("backup_tid", quoted(backup_tid)),
    ])
}

/// `print summary`; the name of a backup cluster, or null for this cluster.
pub fn summary(warnings: &[Option<String>], problems: &[Option<String>], summary: &str) -> String {
    let names = |names: &[Option<String>]| array(names.iter().map(|name| quoted(name.as_ref())));
    object([
        ("warning", names(warnings)),
        ("problem", names(problems)),
        ("summary", string(summary)),
    ])
}

fn object<K: AsRef<str>>(members: impl IntoIterator<Item = (K, String)>) -> String {
    let members = members.into_iter().map(|(name, value)| string(name.as_ref()) + ": " + &value);
    format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn plain(number: Option<impl Display>) -> String {
    number.map_or_else(|| "null".into(), |number| number.to_string())
}

fn quoted(value: Option<impl Display>) -> String {
    value.map_or_else(|| "null".into(), |value| string(&value.to_string()))
}

/// A string, ASCII only, as Python's json module writes it.
pub fn string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            ' '..='~' => json.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    json.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use neo_common::protocol::{CellState, NodeState, NodeType};

    /// Each command, read back by a JSON parser.
    #[test]
    fn all_are_json() {
        let s1 = NodeId::of(NodeType::Storage, 1).unwrap();
        let s2 = NodeId::of(NodeType::Storage, 2);
        let address = Some("127.0.0.1:10000".parse().unwrap());
        let entries = [
            (NodeType::Master, address, None, NodeState::Unknown, None),
            (NodeType::Storage, None, s2, NodeState::Down, Some(f64::NAN)),
            (NodeType::Storage, address, Some(s1), NodeState::Running, Some(1.5)),
        ];
        let rows = vec![vec![(s1, CellState::UpToDate)], vec![]];
        let names = [Some("é\"\\\n\u{1f600}".to_owned()), None];
        for (text, expected) in [
            (cluster(Some(ClusterState::Running)), r#"{"cluster_state":"RUNNING"}"#),
            (cluster(None), r#"{"cluster_state":null}"#),
            (primary(s1), r#"{"primary":"S1"}"#),
            (
                nodes(&entries),
                r#"[{"nid":"S1","type":"STORAGE","address":"127.0.0.1:10000","state":"RUNNING","id_timestamp":1.5},
                    {"nid":"S2","type":"STORAGE","address":null,"state":"DOWN","id_timestamp":null},
                    {"nid":null,"type":"MASTER","address":"127.0.0.1:10000","state":"UNKNOWN","id_timestamp":null}]"#,
            ),
            (nodes(&[]), "[]"),
            (
                pt(Some(4), 1, 7, &rows),
                r#"{"ptid":4,"replicas":1,"first":7,"rows":[{"S1":"UP_TO_DATE"},{}]}"#,
            ),
            (
                ids(Some(Oid::new(3)), Some(Tid::new(0x040d_2c9c_83a2_6503)), Some(2), None),
                r#"{"last_oid":"0000000000000003","last_tid":"040d2c9c83a26503",
                    "last_tid_date":"2026-11-21 22:52:30.851801","last_ptid":2,"backup_tid":null}"#,
            ),
            (
                summary(&names, &[], "x\ny"),
                r#"{"warning":["é\"\\\n😀",null],"problem":[],"summary":"x\ny"}"#,
            ),
        ] {
            let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(parse(&text), parse(expected), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }
}
