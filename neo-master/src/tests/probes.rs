// SPDX-License-Identifier: GPL-2.0-or-later
//! Recorded reactions of an upstream master to raw bytes, right and wrong: ours are the same, except
//! that nothing makes it exit.

use neo_common::protocol::Packet;
use serde_json::Value as Json;

use super::harness::{Harness, address, options};
use super::sessions::{hex, shared};

/// A master of the probed cluster, and whether it serves.
fn master(state: &str) -> Harness {
    let mut options = options(2, 0);
    "probe".clone_into(&mut options.cluster);
    options.bind = address(31_001);
    if state == "RECOVERING" {
        return Harness::new(options);
    }
    let (mut h, _, _) = Harness::running_with(options, 1);
    // Where the storage of the recorded cluster listens.
    let key = h.engine.app.cluster.nm.by_nid(super::harness::s(1)).unwrap().key();
    h.engine.app.cluster.nm.set_address(key, Some(address(31_011))).unwrap();
    h
}

/// Code and message of an error.
fn error(args: &Json) -> (u64, String) {
    let text = String::from_utf8(hex(args[1]["b"].as_str().unwrap())).unwrap();
    (args[0].as_u64().unwrap(), text)
}

#[test]
fn raw_probes() {
    let path = shared().join("protocol/sessions/j-raw-probes.jsonl");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()));
    let mut count = 0;
    for line in text.lines().skip(1) {
        let probe: Json = serde_json::from_str(line).unwrap();
        if probe["to"] != "master" {
            continue;
        }
        let title = probe["probe"].as_str().unwrap();
        let mut h = master(probe["state"].as_str().unwrap());
        let conn = h.connect_silently();
        h.bytes(conn, &hex(probe["sent"].as_str().unwrap()));
        let closed = probe["closed_by_peer"].as_bool().unwrap();
        // An error that upstream does not know makes it exit.
        let crashed = probe["upstream_process_crashed"].as_bool().unwrap();
        assert_eq!(h.is_closed(conn), closed || crashed, "{title}");
        let received = h.all(conn);
        let expected: Vec<&Json> = probe["decoded"].as_array().unwrap().iter().skip(1).collect();
        assert_eq!(received.len(), expected.len(), "{title}: {received:?}");
        for (packet, expected) in received.iter().zip(expected) {
            assert_eq!(packet.name(), expected["name"], "{title}");
            if let Packet::Error { code, message } = packet {
                let (expected_code, text) = error(&expected["args"]);
                assert_eq!(*code as u64, expected_code, "{title}");
                // Upstream adds the id of the packet to some of them.
                let text = text.split('[').next().unwrap();
                assert_eq!(message, text, "{title}");
            }
        }
        count += 1;
    }
    assert_eq!(count, 38);
}
