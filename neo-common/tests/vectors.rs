// SPDX-License-Identifier: GPL-2.0-or-later
//! Bytes made by upstream decode here, and encode back identically.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use neo_common::protocol::codec::{Reader, Wire};
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{OutBuffer, Packet, Value};
use serde_json::Value as Json;

fn shared(path: &str) -> PathBuf {
    let root = std::env::var_os("NEO_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    root.join("protocol").join(path)
}

fn lines(path: PathBuf) -> Vec<Json> {
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn encode(id: Option<u32>, packet: &Packet) -> Vec<u8> {
    let mut out = OutBuffer::default();
    packet.encode(id, &mut out);
    let len = out.len();
    let bytes = out.take().concat();
    assert_eq!(bytes.len(), len);
    bytes
}

/// The arguments as the JSON of the recordings renders them.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => {
            Value::Int(n.as_i64().map_or_else(|| n.as_u64().unwrap().into(), i128::from))
        }
        Json::Array(items) => Value::Array(items.iter().map(value).collect()),
        Json::Object(o) => {
            if let Some(hex) = o.get("b") {
                Value::Bin(Bytes::from(unhex(hex.as_str().unwrap())))
            } else if let Some(pairs) = o.get("m") {
                let pairs = pairs.as_array().unwrap();
                Value::Map(pairs.iter().map(|p| (value(&p[0]), value(&p[1]))).collect())
            } else if let Some(repr) = o.get("f") {
                Value::Float(repr.as_str().unwrap().parse().unwrap())
            } else {
                let ext = match o["enum"].as_str().unwrap() {
                    "CellStates" => 0,
                    "ClusterStates" => 1,
                    "NodeStates" => 3,
                    "NodeTypes" => 4,
                    other => panic!("enumeration {other}"),
                };
                Value::Item(ext, o["value"].as_u64().unwrap() as u8)
            }
        }
        Json::String(_) => panic!("texts are not sent"),
    }
}

fn check(json: &Json) {
    let hex = json["hex"].as_str().unwrap();
    let bytes = unhex(hex);
    let (id, packet) = Packet::decode(&mut Reader::new(&bytes)).unwrap_or_else(|e| {
        panic!("{}: {e}\n{json}", json["name"]);
    });
    assert_eq!(packet.name(), json["name"].as_str().unwrap());
    assert_eq!(id.map(u64::from), json["id"].as_u64());
    assert_eq!(encode(id, &packet), bytes, "{json}");
    let mut r = Reader::new(&bytes);
    r.tuple(3).unwrap();
    Value::decode(&mut r).unwrap();
    assert_eq!(Value::decode(&mut r).unwrap(), Value::Int(packet.code().into()));
    assert_eq!(Value::decode(&mut r).unwrap(), value(&json["args"]), "{json}");
    if let Some(kind) = json["kind"].as_str() {
        let ours = match (&packet, packet.is_answer(), packet.answer_code()) {
            (Packet::Error { .. }, ..) => "error",
            (_, true, _) => "answer",
            (_, false, Some(_)) => "request",
            (_, false, None) => "notification",
        };
        // Truncate has the same code with and without an answer.
        assert!(ours == kind || packet.name() == "Truncate", "{ours} is {kind}: {json}");
    }
    // No prefix of a packet is a packet, and none makes the decoder panic.
    if bytes.len() < 2000 {
        for end in 0..bytes.len() {
            assert!(Packet::decode(&mut Reader::new(&bytes[..end])).is_err());
        }
    }
}

#[test]
fn golden_packets_round_trip() {
    let mut names = BTreeSet::new();
    let vectors = lines(shared("vectors.jsonl"));
    assert!(vectors.len() >= 549);
    for json in &vectors {
        check(json);
        names.insert(json["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names.len(), 111, "every packet of the table has a vector");
}

#[test]
fn recorded_sessions_round_trip() {
    let mut count = 0;
    for entry in fs::read_dir(shared("sessions")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "jsonl") || path.to_str().unwrap().contains("/j-") {
            continue;
        }
        for json in &lines(path)[1..] {
            match json["name"].as_str() {
                Some("HANDSHAKE") => assert_eq!(unhex(json["hex"].as_str().unwrap()), HANDSHAKE),
                Some(_) => {
                    check(json);
                    count += 1;
                }
                None => {}
            }
        }
    }
    assert!(count > 3000, "{count} packets");
}

/// The same packets as a stream, cut in pieces of any size.
#[test]
fn streams_split_the_same_whatever_the_pieces() {
    let vectors = lines(shared("vectors.jsonl"));
    let mut stream = HANDSHAKE.to_vec();
    let mut expected = VecDeque::new();
    for json in &vectors {
        let bytes = unhex(json["hex"].as_str().unwrap());
        expected.push_back(Packet::decode(&mut Reader::new(&bytes)).unwrap());
        stream.extend(bytes);
    }
    for piece in [1, 2, 3, 7, 64, 1000, 4096, 100_000, stream.len()] {
        let mut frames = FrameBuffer::default();
        frames.trust();
        let mut packets = VecDeque::new();
        for chunk in stream.chunks(piece) {
            frames.feed(chunk, &mut packets).unwrap();
        }
        assert_eq!(frames.pending_bytes(), 0);
        assert_eq!(packets, expected, "pieces of {piece}");
    }
}
