// SPDX-License-Identifier: GPL-2.0-or-later
//! The packets on their way: who looks at them, and who holds them.
//!
//! What a process sends is decoded again beside its way, so that checkers see every packet by name,
//! and a scenario can hold a connection from some packet on: like all that is sent behind it, the
//! packet waits until it is released. (TCP loses nothing: dropping a packet means holding it, then
//! resetting the connection.)

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use neo_common::protocol::frame::FrameBuffer;
use neo_common::protocol::{MsgId, OutBuffer, Packet};

use super::World;
use super::links::LinkId;
use crate::network::HostId;

/// Characters of a packet in a story.
const STORY_LEN_MAX: usize = 200;

/// A packet that was sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Seen {
    /// When.
    pub at: Duration,
    /// By whom.
    pub from: HostId,
    /// To whom.
    pub to: HostId,
    /// Number of the connection.
    pub link: u64,
    /// Its id; `None` only in a reply to nothing.
    pub id: Option<MsgId>,
    /// What.
    pub packet: Packet,
}

/// Names a `Hold`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HoldId(u64);

/// Which packets are held.
pub(super) struct Hold {
    from: Option<HostId>,
    to: Option<HostId>,
    matches: Box<dyn FnMut(&Packet) -> bool>,
    /// Packets that were held, by name.
    caught: Vec<&'static str>,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({:?} > {:?}, {:?})", self.from, self.to, self.caught)
    }
}

/// What waits at the end that sent it.
#[derive(Debug)]
pub(super) struct Held {
    by: HoldId,
    bytes: Vec<Bytes>,
    pub(super) is_closed: bool,
}

/// Decodes what one end of a connection sends.
#[derive(Debug)]
pub(super) struct Tap(FrameBuffer);

impl Default for Tap {
    fn default() -> Self {
        let mut frames = FrameBuffer::default();
        frames.trust();
        Self(frames)
    }
}

impl World {
    /// Packets that were sent since the last time.
    pub fn take_seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    /// Holds each connection between two hosts (any, if `None`) from the first packet that matches
    /// on.
    pub fn hold(
        &mut self,
        from: Option<HostId>,
        to: Option<HostId>,
        matches: impl FnMut(&Packet) -> bool + 'static,
    ) -> HoldId {
        let id = HoldId(self.next_hold);
        self.next_hold += 1;
        self.holds.insert(id, Hold { from, to, matches: Box::new(matches), caught: Vec::new() });
        id
    }

    /// Names of the packets that were held because they matched.
    pub fn caught(&self, id: HoldId) -> &[&'static str] {
        self.holds.get(&id).map_or(&[], |hold| &hold.caught)
    }

    /// Sends what was held, and holds nothing more.
    pub fn release(&mut self, id: HoldId) {
        self.holds.remove(&id);
        let sides = self.links.iter().flat_map(|(link, l)| {
            l.ends.iter().enumerate().map(|(side, end)| (*link, side, end.as_ref()))
        });
        let held = sides.filter(|(_, _, end)| {
            end.is_some_and(|end| end.held.as_ref().is_some_and(|held| held.by == id))
        });
        for (link, side) in held.map(|(link, side, _)| (link, side)).collect::<Vec<_>>() {
            let Some(held) = self.end_mut(link, side).and_then(|end| end.held.take()) else {
                continue;
            };
            self.transmit(link, side, Bytes::from(held.bytes.concat()));
            if held.is_closed {
                self.transmit_close(link, side);
            }
        }
    }

    /// Looks at what an end sends. Returns the part that is not held.
    pub(super) fn tapped(&mut self, link: LinkId, side: usize, bytes: Bytes) -> Bytes {
        let from = self.host_of(link, side).expect("it sends");
        if self.strangers.contains(&from) {
            return bytes;
        }
        let to = self.host_of(link, 1 - side).expect("nothing is sent before it is connected");
        let end = self.end_mut(link, side).expect("it sends");
        let mut packets = VecDeque::new();
        let fed = end.tap.0.feed(&bytes, &mut packets);
        assert_eq!(fed, Ok(()), "{} sends what it would refuse", self.label(from));
        self.packets += packets.len() as u64;
        if self.trace {
            for (id, packet) in &packets {
                self.packet_story(from, to, *id, packet);
            }
        }
        let end = self.end_mut(link, side).expect("found above");
        let rest = if let Some(held) = &mut end.held {
            held.bytes.push(bytes);
            Bytes::new()
        } else {
            self.hold_from(link, side, (from, to), bytes, &packets)
        };
        let at = self.now;
        let seen = packets.into_iter();
        self.seen.extend(seen.map(|(id, packet)| Seen { at, from, to, link: link.0, id, packet }));
        rest
    }

    /// Begins to hold if a packet matches. Returns what was before it.
    fn hold_from(
        &mut self,
        link: LinkId,
        side: usize,
        (from, to): (HostId, HostId),
        mut bytes: Bytes,
        packets: &VecDeque<(Option<MsgId>, Packet)>,
    ) -> Bytes {
        let mut found = None;
        'packets: for (index, (_, packet)) in packets.iter().enumerate() {
            for (id, hold) in &mut self.holds {
                let concerned = hold.from.is_none_or(|host| host == from)
                    && hold.to.is_none_or(|host| host == to);
                if concerned && (hold.matches)(packet) {
                    hold.caught.push(packet.name());
                    found = Some((*id, index));
                    break 'packets;
                }
            }
        }
        let Some((by, index)) = found else { return bytes };
        self.tell_story("  (held)");
        let mut out = OutBuffer::default();
        for (id, packet) in packets.iter().skip(index) {
            packet.encode(*id, &mut out);
        }
        // Cores send whole packets, and there is one way to encode each.
        let rest = bytes.split_off(bytes.len() - out.len());
        let end = self.end_mut(link, side).expect("it sends");
        end.held = Some(Held { by, bytes: vec![rest], is_closed: false });
        bytes
    }

    fn packet_story(&self, from: HostId, to: HostId, id: Option<MsgId>, packet: &Packet) {
        let mut text = format!("{packet:?}");
        if let Some((end, _)) = text.char_indices().nth(STORY_LEN_MAX) {
            text.truncate(end);
            text.push_str("...");
        }
        let id = id.map_or_else(|| "-".into(), |id| id.to_string());
        self.tell_story(&format!("{} > {} #{id} {text}", self.label(from), self.label(to)));
    }
}
