// SPDX-License-Identifier: GPL-2.0-or-later
//! One packet from any bytes. What decodes must encode to something that decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neo_common::protocol::codec::Reader;
use neo_common::protocol::{OutBuffer, Packet};

fuzz_target!(|bytes: &[u8]| {
    let Ok((id, packet)) = Packet::decode(&mut Reader::new(bytes)) else { return };
    let mut out = OutBuffer::default();
    packet.encode(id, &mut out);
    let encoded = out.take().concat();
    let decoded = Packet::decode(&mut Reader::new(&encoded));
    assert_eq!(decoded.as_ref(), Ok(&(id, packet)));
});
