// SPDX-License-Identifier: GPL-2.0-or-later
//! From a byte stream to packets: handshake, then one msgpack object after the other.
//!
//! There is no length prefix, so the end of a packet is found by walking over its values. The walk
//! is resumable: it keeps the offset reached and the number of values still to come, so that each
//! byte is looked at once, whatever the pieces it arrives in. A packet that announces more than the
//! limits allow is refused as soon as the announcement is read.
//!
//! Packets that are complete in the bytes just received are decoded from there; only the rest is
//! kept. A connection without a half-received packet holds no buffer.

use std::collections::VecDeque;

use byteorder::{BigEndian, ByteOrder};
use bytes::BytesMut;

use super::codec::{Malformed, Reader};
use super::packets::{MsgId, Packet};
use crate::limits::{
    ANONYMOUS_PACKET_BYTES_MAX, COPY_BYTES_MAX, DATA_BYTES_MAX, PACKET_BYTES_MAX, PACKET_DEPTH_MAX,
};

/// First bytes of each direction: msgpack `["NEO", 5]`.
pub const HANDSHAKE: [u8; 6] = [0x92, 0xa3, b'N', b'E', b'O', PROTOCOL_VERSION];

/// Version of the protocol.
pub const PROTOCOL_VERSION: u8 = 5;

/// Buffers above this capacity are given back once empty.
const KEEP_BYTES: usize = 4 << 10;

/// A decoded packet with its id.
pub type Received = (Option<MsgId>, Packet);

/// Arrays and maps inside each other in what is scanned: those of the arguments, and the packet.
const SCAN_DEPTH_MAX: usize = PACKET_DEPTH_MAX + 2;

/// Walk over the values of one packet.
#[derive(Clone, Copy, Debug)]
struct Scan {
    /// Offset of the next header in the packet.
    pos: usize,
    /// Values still to come at each level, the packet itself first.
    values: [usize; SCAN_DEPTH_MAX],
    /// Number of levels; 0: the end of the packet is known.
    depth: usize,
}

const START: Scan = Scan {
    pos: 0,
    values: {
        let mut values = [0; SCAN_DEPTH_MAX];
        values[0] = 1;
        values
    },
    depth: 1,
};

impl Scan {
    /// Goes on as far as `buf` (the packet from its first byte) allows; length of the packet once
    /// its end is known and received.
    fn advance(&mut self, buf: &[u8], max: usize) -> Result<Option<usize>, Malformed> {
        while self.depth != 0 {
            let level = &mut self.values[self.depth - 1];
            if *level == 0 {
                self.depth -= 1;
                continue;
            }
            let Some(&byte) = buf.get(self.pos) else { return Ok(None) };
            // Length of the header, of the payload, and number of values inside.
            let (head, payload, inside) = match byte {
                0..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (1, 0, 0),
                0x80..=0x8f => (1, 0, 2 * usize::from(byte & 15)),
                0x90..=0x9f => (1, 0, usize::from(byte & 15)),
                0xcc | 0xd0 => (2, 0, 0),
                0xcd | 0xd1 => (3, 0, 0),
                0xca | 0xce | 0xd2 => (5, 0, 0),
                0xcb | 0xcf | 0xd3 => (9, 0, 0),
                0xd4 => (3, 0, 0),
                0xc4 | 0xc5 | 0xc6 | 0xdc | 0xdd | 0xde | 0xdf => {
                    let width = match byte {
                        0xc4 => 1,
                        0xc5 | 0xdc | 0xde => 2,
                        _ => 4,
                    };
                    let Some(len) = buf.get(self.pos + 1..self.pos + 1 + width) else {
                        return Ok(None);
                    };
                    let len = BigEndian::read_uint(len, width) as usize;
                    match byte {
                        0xc4..=0xc6 if len > DATA_BYTES_MAX => return Err(Malformed::TooLarge),
                        0xc4..=0xc6 => (1 + width, len, 0),
                        0xdc | 0xdd => (1 + width, 0, len),
                        _ => (1 + width, 0, len.saturating_mul(2)),
                    }
                }
                // Texts (str) and other extensions are never sent.
                _ => return Err(Malformed::Type(byte)),
            };
            self.pos += head + payload;
            *level -= 1;
            // Each value to come takes a byte at least.
            if self.pos.saturating_add(inside) > max {
                return Err(Malformed::TooLarge);
            }
            if inside != 0 {
                if self.depth == SCAN_DEPTH_MAX {
                    return Err(Malformed::TooLarge);
                }
                self.values[self.depth] = inside;
                self.depth += 1;
            }
        }
        Ok((self.pos <= buf.len()).then_some(self.pos))
    }
}

/// Splits what one peer sends into packets.
#[derive(Debug)]
pub struct FrameBuffer {
    /// Bytes of the handshake or of the first incomplete packet.
    buf: BytesMut,
    scan: Scan,
    /// Number of bytes of the handshake received.
    handshake: usize,
    packet_bytes_max: usize,
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self {
            buf: BytesMut::new(),
            scan: START,
            handshake: 0,
            packet_bytes_max: ANONYMOUS_PACKET_BYTES_MAX,
        }
    }
}

impl FrameBuffer {
    /// Accepts big packets from now on: the peer is identified.
    pub fn trust(&mut self) {
        self.packet_bytes_max = PACKET_BYTES_MAX;
    }

    /// Takes received bytes and appends the packets that they complete to `packets`.
    ///
    /// # Errors
    /// [`Malformed`] at the first offending byte; the packets before it are in `packets`.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        packets: &mut VecDeque<Received>,
    ) -> Result<(), Malformed> {
        self.take_handshake(&mut input)?;
        if self.buf.is_empty() {
            let used = self.split_in_place(input, packets)?;
            self.buf.extend_from_slice(&input[used..]);
        } else {
            self.buf.extend_from_slice(input);
            self.split_buffer(packets)?;
        }
        Ok(())
    }

    /// Checks the first bytes of the stream, one by one, so that a foreign peer is refused at the
    /// first byte that differs.
    fn take_handshake(&mut self, input: &mut &[u8]) -> Result<(), Malformed> {
        while self.handshake < HANDSHAKE.len() {
            let Some((&byte, rest)) = input.split_first() else { break };
            if byte != HANDSHAKE[self.handshake] {
                return Err(if self.handshake == HANDSHAKE.len() - 1 {
                    Malformed::Version(byte)
                } else {
                    Malformed::NotNeo
                });
            }
            self.handshake += 1;
            *input = rest;
        }
        Ok(())
    }

    /// Decodes the packets that are complete in `input`; number of bytes that they take.
    fn split_in_place(
        &mut self,
        input: &[u8],
        packets: &mut VecDeque<Received>,
    ) -> Result<usize, Malformed> {
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            let Some(len) = self.scan.advance(rest, self.packet_bytes_max)? else { break };
            packets.push_back(Packet::decode(&mut Reader::new(&rest[..len]))?);
            self.scan = START;
            used += len;
        }
        Ok(used)
    }

    fn split_buffer(&mut self, packets: &mut VecDeque<Received>) -> Result<(), Malformed> {
        while !self.buf.is_empty() {
            let Some(len) = self.scan.advance(&self.buf, self.packet_bytes_max)? else {
                return Ok(());
            };
            if len < COPY_BYTES_MAX {
                packets.push_back(Packet::decode(&mut Reader::new(&self.buf[..len]))?);
                bytes::Buf::advance(&mut self.buf, len);
            } else {
                // Big data is not copied: the packet takes the buffer with it.
                let packet = self.buf.split_to(len).freeze();
                packets.push_back(Packet::decode(&mut Reader::shared(&packet))?);
            }
            self.scan = START;
        }
        if self.buf.capacity() > KEEP_BYTES {
            self.buf = BytesMut::new();
        }
        Ok(())
    }

    /// Bytes held for a packet that is not complete.
    pub fn pending_bytes(&self) -> usize {
        self.buf.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec::OutBuffer;
    use crate::types::{Oid, Tid, Ttid};
    use bytes::Bytes;

    fn feed(bytes: &[u8]) -> (VecDeque<Received>, Result<(), Malformed>, usize) {
        let mut frames = FrameBuffer::default();
        let mut packets = VecDeque::new();
        let result = frames.feed(bytes, &mut packets);
        (packets, result, frames.pending_bytes())
    }

    fn with_handshake(bytes: &[u8]) -> Vec<u8> {
        [&HANDSHAKE[..], bytes].concat()
    }

    #[test]
    fn foreign_peers_are_refused_at_the_first_byte_that_differs() {
        assert_eq!(feed(b"\x16\x03\x01").1, Err(Malformed::NotNeo));
        assert_eq!(feed(b"GET / HTTP/1.0").1, Err(Malformed::NotNeo));
        assert_eq!(feed(b"\x92\xa3NEO\x06").1, Err(Malformed::Version(6)));
        assert_eq!(feed(b"\x92\xa3NE").1, Ok(()));
        assert_eq!(feed(&HANDSHAKE).1, Ok(()));
    }

    #[test]
    fn packets_before_a_malformed_one_are_delivered() {
        let ping = b"\x93\x00\x02\x90";
        let (packets, result, _) = feed(&with_handshake(&[&ping[..], b"\xc1", ping].concat()));
        assert_eq!(packets, [(Some(0), Packet::Ping {})]);
        assert_eq!(result, Err(Malformed::Type(0xc1)));
    }

    #[test]
    fn what_is_announced_too_large_is_refused_before_it_arrives() {
        for announced in [
            &b"\x93\x00\x02\xdd\xff\xff\xff\xff"[..], // array of 2^32 - 1
            b"\x93\x00\x02\xdf\x7f\xff\xff\xff",      // map
            b"\x93\x00\x1c\x97\xc6\x10\x00\x00\x00",  // string of 256 MiB
            b"\x93\x00\x1c\x97\xc6\x00\x20\x00\x00",  // 2 MiB from a peer not identified yet
        ] {
            let (_, result, pending) = feed(&with_handshake(announced));
            assert_eq!(result, Err(Malformed::TooLarge), "{announced:x?}");
            assert_eq!(pending, 0);
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut bytes = b"\x93\x00\x48\x91\x81\xc4\x01x".to_vec();
        // Refused long before its end, which may never come.
        bytes.extend([0x91; 20]);
        assert_eq!(feed(&with_handshake(&bytes)).1, Err(Malformed::TooLarge));
    }

    #[test]
    fn unknown_codes_and_wrong_arguments_are_malformed() {
        for bytes in [
            &b"\x93\x00\xcd\x7f\xff\x90"[..],        // unknown code
            b"\x93\x00\x02\x91\xc0",                 // one argument too many
            b"\x92\x00\x02",                         // not three items
            b"\xc0",                                 // not an array
            b"\x93\xc0\x02\x90",                     // no id
            b"\x93\x00\x08\x80",                     // arguments are not an array
            b"\x93\x00\x2d\x91\xd4\x01\x07",         // no such cluster state
            b"\x93\x00\x2d\x91\xd4\x03\x01",         // another enumeration
            b"\x93\x00\xcd\x80\x00\x92\x0e\xc4\x00", // no such error code
        ] {
            assert!(feed(&with_handshake(bytes)).1.is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn big_data_survives_any_cut_and_leaves_no_buffer() {
        let data = Bytes::from(vec![7; 3 << 20]);
        let packet = Packet::AskStoreObject {
            oid: Oid::new(1),
            serial: Tid::ZERO,
            compression: 0,
            checksum: [1; 20],
            data,
            data_serial: None,
            ttid: Ttid::new(2),
        };
        let mut out = OutBuffer::default();
        packet.encode(Some(9), &mut out);
        Packet::Ping {}.encode(Some(10), &mut out);
        let stream = with_handshake(&out.take().concat());
        for piece in [1000, 65_536, 1 << 20, stream.len()] {
            let mut frames = FrameBuffer::default();
            frames.trust();
            let mut packets = VecDeque::new();
            for chunk in stream.chunks(piece) {
                frames.feed(chunk, &mut packets).unwrap();
            }
            assert_eq!(packets[0], (Some(9), packet.clone()));
            assert_eq!(packets[1], (Some(10), Packet::Ping {}));
            assert_eq!(frames.pending_bytes(), 0);
        }
    }
}
