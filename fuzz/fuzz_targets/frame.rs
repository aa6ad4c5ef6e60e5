// SPDX-License-Identifier: GPL-2.0-or-later
//! A stream from any bytes, cut in pieces of any size: the packets do not depend on the cut, and
//! what is held is bounded by what was received.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, rest)) = bytes.split_first() else { return };
    // Most streams get past the handshake, some are all the fuzzer's.
    let stream = if piece & 1 == 0 { [&HANDSHAKE[..], rest].concat() } else { rest.to_vec() };
    let mut whole = VecDeque::new();
    let mut frames = FrameBuffer::default();
    let result = frames.feed(&stream, &mut whole);
    assert!(frames.pending_bytes() <= stream.len());
    let mut pieces = VecDeque::new();
    let mut frames = FrameBuffer::default();
    let in_pieces = stream
        .chunks(usize::from(piece / 2) + 1)
        .try_for_each(|chunk| frames.feed(chunk, &mut pieces));
    assert_eq!(result.is_err(), in_pieces.is_err());
    assert_eq!(whole, pieces);
});
