// SPDX-License-Identifier: GPL-2.0-or-later
//! What was recorded.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use neo_common::protocol::Value;
use neo_common::protocol::codec::{Reader, Wire};
use serde_json::Value as Json;

use super::Session;

/// Packet as values: id, code, arguments.
pub(super) type Raw = (i128, i128, Vec<Value>);

pub(super) struct Recorded {
    pub(super) time: f64,
    pub(super) conn: String,
    pub(super) event: Event,
}

pub(super) enum Event {
    Accepted,
    /// By the master.
    Opened,
    In(Raw),
    Out(Raw),
    Closed,
    /// The peer was killed: what it was told was not recorded.
    Killed,
}

/// Folder of the reference data: beside the repository, or `NEO_SHARED`.
pub fn shared() -> PathBuf {
    std::env::var_os("NEO_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    )
}

pub fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

pub(super) fn raw(bytes: &[u8]) -> Raw {
    match Value::decode(&mut Reader::new(bytes)).unwrap() {
        Value::Array(items) => match &items[..] {
            [Value::Int(id), Value::Int(code), Value::Array(args)] => (*id, *code, args.clone()),
            _ => panic!("{items:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// What concerns the master.
pub(super) fn load(Session { name, node, until, lost, .. }: &Session) -> VecDeque<Recorded> {
    let path = shared().join("protocol/sessions").join(name).with_extension("jsonl");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()));
    let mut conns = BTreeMap::new();
    let mut events = VecDeque::new();
    for line in text.lines().skip(1) {
        let line: Json = serde_json::from_str(line).unwrap();
        let conn = line["conn"].as_str().unwrap().to_owned();
        let event = match line["ev"].as_str() {
            Some("open") => {
                let connects = line["from"] == *node;
                if !connects && line["to"] != *node {
                    continue;
                }
                conns.insert(conn.clone(), connects);
                if connects { Event::Opened } else { Event::Accepted }
            }
            _ if !conns.contains_key(&conn) => continue,
            // By the master: what it does then shows that it did.
            Some("close") if conns[&conn] => continue,
            Some("close") => Event::Closed,
            Some(other) => panic!("unknown event {other}"),
            None if line["name"] == "HANDSHAKE" => continue,
            None => {
                let packet = raw(&hex(line["hex"].as_str().unwrap()));
                let sent = (line["dir"] == ">") == conns[&conn];
                if sent { Event::Out(packet) } else { Event::In(packet) }
            }
        };
        let time = line["t"].as_f64().unwrap();
        if time >= *until {
            break;
        }
        events.push_back(Recorded { time, conn, event });
    }
    for (time, conn) in *lost {
        let index = events.iter().position(|recorded| recorded.time > *time).unwrap();
        let conn = (*conn).to_owned();
        events.insert(index, Recorded { time: *time, conn, event: Event::Killed });
    }
    events
}
