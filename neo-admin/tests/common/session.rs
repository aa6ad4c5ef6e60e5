// SPDX-License-Identifier: GPL-2.0-or-later
//! Recorded sessions of upstream nodes, seen from one node.

use std::path::PathBuf;

use neo_common::protocol::codec::Reader;
use neo_common::protocol::{Packet, Value};
use serde_json::Value as Json;

use super::Received;

/// What happened on a connection of the node.
#[derive(Debug)]
pub enum Event {
    /// Opened by the node.
    Opened,
    /// Opened by a peer.
    Accepted,
    /// The node received bytes that are this packet.
    In(Received),
    /// The node sent this packet.
    Out(Received),
    /// Closed by the connecting end.
    Closed,
}

/// An event with its time in seconds and the name of its connection.
#[derive(Debug)]
pub struct Recorded {
    pub time: f64,
    pub conn: String,
    pub event: Event,
}

/// Folder of the reference data: beside the repository, or `NEO_SHARED`.
pub fn shared() -> PathBuf {
    std::env::var_os("NEO_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    )
}

/// What concerns the process `node` in a recorded session.
pub fn load(name: &str, node: &str) -> Vec<Recorded> {
    let path = shared().join("protocol/sessions").join(name).with_extension("jsonl");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()));
    let mut mine = std::collections::BTreeMap::new();
    let mut events = Vec::new();
    for line in text.lines().skip(1) {
        let line: Json = serde_json::from_str(line).unwrap();
        let conn = line["conn"].as_str().unwrap().to_owned();
        let event = match line["ev"].as_str() {
            Some("open") => {
                let connects = line["from"] == node;
                if !connects && line["to"] != node {
                    continue;
                }
                mine.insert(conn.clone(), connects);
                if connects { Event::Opened } else { Event::Accepted }
            }
            _ if !mine.contains_key(&conn) => continue,
            Some("close") => Event::Closed,
            Some(other) => panic!("unknown event {other}"),
            None if line["name"] == "HANDSHAKE" => continue,
            None => {
                let bytes = hex(line["hex"].as_str().unwrap());
                let packet = Packet::decode(&mut Reader::new(&bytes)).unwrap();
                let sent = (line["dir"] == ">") == mine[&conn];
                if sent { Event::Out(packet) } else { Event::In(packet) }
            }
        };
        events.push(Recorded { time: line["t"].as_f64().unwrap(), conn, event });
    }
    events
}

pub fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The same packet with what has no order in order.
pub fn normal(mut packet: Packet) -> Packet {
    match &mut packet {
        Packet::AnswerNodeList { nodes } => nodes.sort_by_key(|entry| (entry.0, entry.2, entry.1)),
        Packet::AnswerPartitionList { rows, .. } => rows.iter_mut().for_each(|row| row.sort()),
        Packet::NotifyMonitorInformation { info } => {
            for (_, value) in &mut info.0 {
                if let Value::Map(pairs) = value {
                    pairs.sort_by_key(|(key, _)| format!("{key:?}"));
                }
            }
            info.0.sort_by(|a, b| a.0.cmp(&b.0));
        }
        _ => {}
    }
    packet
}
