// SPDX-License-Identifier: GPL-2.0-or-later
//! Cost of finding the end of a big packet that arrives in small pieces.
//!
//! It must grow with the number of bytes, not with its square: doubling the size doubles the time,
//! and the size of the pieces hardly matters. `cargo run --release -p neo-common --example
//! frame_bench`.
#![allow(clippy::disallowed_methods)] // It measures time.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{OutBuffer, Packet};
use neo_common::types::{Oid, Tid, Ttid};

fn stream(packet: &Packet) -> Vec<u8> {
    let mut out = OutBuffer::default();
    out.put(&HANDSHAKE);
    packet.encode(Some(1), &mut out);
    out.take().concat()
}

fn measure(what: &str, stream: &[u8], piece: usize) {
    let mut frames = FrameBuffer::default();
    frames.trust();
    let mut packets = VecDeque::new();
    let start = Instant::now();
    for chunk in stream.chunks(piece) {
        frames.feed(chunk, &mut packets).expect("the packet is well-formed");
    }
    let elapsed = start.elapsed();
    assert_eq!(packets.len(), 1, "one packet was sent");
    println!(
        "{what:28} {:>5} MB in pieces of {piece:>7}: {:>8.2} ms, {:>6.0} MB/s",
        stream.len() / 1_000_000,
        elapsed.as_secs_f64() * 1e3,
        stream.len() as f64 / 1e6 / elapsed.as_secs_f64(),
    );
}

fn main() {
    for size in [12_500_000, 25_000_000, 50_000_000] {
        let object = stream(&Packet::AddObject {
            oid: Oid::new(1),
            serial: Tid::ZERO,
            compression: 0,
            checksum: [0; 20],
            data: Bytes::from(vec![1; size]),
            data_serial: None,
        });
        for piece in [1 << 10, 64 << 10, object.len()] {
            measure("one object", &object, piece);
        }
    }
    for count in [500_000, 1_000_000, 2_000_000] {
        let oids = stream(&Packet::AskFinishTransaction {
            ttid: Ttid::new(1),
            oids: (0..count).map(Oid::new).collect(),
            deleted: Vec::new(),
            checked: Vec::new(),
            pack: None,
        });
        for piece in [1 << 10, 64 << 10] {
            measure("a list of oids", &oids, piece);
        }
    }
}
