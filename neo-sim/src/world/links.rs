// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections between hosts.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{ConnId, Flush};

use super::tap::{Held, Tap};
use super::{Event, World};
use crate::network::HostId;
use crate::process::Happening;

/// How often what is sent to a host that does not hear is tried again.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// How long a connection attempt hangs before it fails.
const HANG: Duration = Duration::from_secs(20);

/// How long a side that sends nothing does not know that the other one is gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Names a connection of the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct LinkId(pub(super) u64);

/// One end of a connection.
#[derive(Debug)]
pub(super) struct End {
    host: HostId,
    /// Life of the process: a process that restarts does not hear of its former connections.
    life: u64,
    conn: ConnId,
    /// When the last piece towards this end arrives: the next ones are not earlier.
    arrival: Duration,
    /// Nothing more is delivered to this end.
    deaf: bool,
    /// The connection was reset before the other end existed: it never will.
    broken: bool,
    /// The process does not read; what arrives waits.
    paused: bool,
    /// What arrived and is not told yet.
    waiting: VecDeque<Happening>,
    /// An event will try to tell it.
    resuming: bool,
    /// What this end sends.
    pub(super) tap: Tap,
    /// What this end sends is held here from some packet on.
    pub(super) held: Option<Held>,
}

impl End {
    fn new(host: HostId, life: u64, conn: ConnId, now: Duration) -> Self {
        Self {
            host,
            life,
            conn,
            arrival: now,
            deaf: false,
            broken: false,
            paused: false,
            waiting: VecDeque::new(),
            resuming: false,
            tap: Tap::default(),
            held: None,
        }
    }
}

/// A connection: the end that opened it, and the other once accepted.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: [Option<End>; 2],
    /// The side that is gone whereas the other one does not know.
    gone: Option<usize>,
}

impl World {
    pub(super) fn connect(&mut self, host: HostId, conn: ConnId, address: SocketAddr) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let h = &mut self.hosts[host.0];
        h.conns.insert(conn, (link, 0));
        let end = End::new(host, h.life, conn, self.now);
        self.links.insert(link, Link { ends: [Some(end), None], gone: None });
        if self.weather.hang_one_in != 0 && self.prng.one_in(self.weather.hang_one_in) {
            self.connects_hung += 1;
            self.send(link, 0, HANG, Happening::Closed);
            return;
        }
        let delay = self.weather.delay(&mut self.prng);
        self.push(self.now + delay, Event::Attempt(link, address));
    }

    pub(super) fn attempt(&mut self, link: LinkId, address: SocketAddr) {
        // The process may be gone, or have given up.
        let end = self.end_mut(link, 0).filter(|end| !end.deaf && !end.broken);
        let Some(from) = end.map(|end| end.host) else { return };
        let target = (0..self.hosts.len()).map(HostId).find(|h| self.address(*h) == address);
        let hears = |w: &Self, to| !w.cuts.is_cut(from, to) && !w.cuts.is_cut(to, from);
        let hangs = target.is_some_and(|to| self.hanging.contains(&to));
        let refuses = target.is_some_and(|to| self.refusing.contains(&to));
        self.connects_hung += u64::from(hangs);
        self.connects_refused += u64::from(refuses && !hangs);
        let accepts = target.filter(|to| self.is_running(*to) && hears(self, *to));
        let Some(to) = accepts.filter(|_| !hangs && !refuses) else {
            // Nobody answers at all if the network is cut, otherwise the refusal is quick.
            let silent = hangs || target.is_some_and(|to| !hears(self, to));
            let delay = if silent { HANG } else { self.weather.delay(&mut self.prng) };
            self.send(link, 0, delay, Happening::Closed);
            return;
        };
        let h = &mut self.hosts[to.0];
        let conn = h.process.as_mut().expect("checked above").new_conn();
        h.conns.insert(conn, (link, 1));
        let end = End::new(to, h.life, conn, self.now);
        self.links.get_mut(&link).expect("found above").ends[1] = Some(end);
        let peer = self.address(from);
        self.arrive(link, 1, Happening::Accepted(conn, peer));
        let delay = self.weather.delay(&mut self.prng);
        self.send(link, 0, delay, Happening::Connected);
    }

    /// What a process sends.
    pub(super) fn bytes(&mut self, host: HostId, conn: ConnId, chunks: &[Bytes]) {
        let Some(&(link, side)) = self.hosts[host.0].conns.get(&conn) else { return };
        let bytes = self.tapped(link, side, Bytes::from(chunks.concat()));
        self.transmit(link, side, bytes);
        if self.links.get(&link).is_some_and(|l| l.gone == Some(1 - side)) {
            // Whoever is there knows nothing of this connection.
            self.reset(link, side);
        }
    }

    /// Sends bytes to the other end, in pieces.
    pub(super) fn transmit(&mut self, link: LinkId, side: usize, mut bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let pieces = 1 + self.prng.below(self.weather.pieces_max);
        for i in 0..pieces {
            let rest = pieces - i - 1;
            let len = if rest == 0 { bytes.len() } else { self.prng.below(bytes.len() + 1) };
            let piece = bytes.split_to(len);
            if !piece.is_empty() {
                let delay = self.weather.delay(&mut self.prng);
                self.send(link, 1 - side, delay, |conn| Happening::Bytes(conn, piece));
            }
        }
    }

    /// A process closes.
    pub(super) fn close(&mut self, host: HostId, conn: ConnId, flush: Flush) {
        if let Some((link, side)) = self.hosts[host.0].conns.remove(&conn) {
            let reset = flush == Flush::No && self.prng.one_in(4);
            self.hang_up(link, side, reset);
        }
    }

    /// A process pauses or resumes reading.
    pub(super) fn read(&mut self, host: HostId, conn: ConnId, resume: bool) {
        let Some(&(link, side)) = self.hosts[host.0].conns.get(&conn) else { return };
        let now = self.now;
        let Some(end) = self.end_mut(link, side) else { return };
        end.paused = !resume;
        // Not at once: the process is in the middle of something.
        if resume && !end.waiting.is_empty() && !std::mem::replace(&mut end.resuming, true) {
            self.push(now, Event::Resume(link, side));
        }
    }

    /// The process of a host is gone.
    pub(super) fn drop_connections(&mut self, host: HostId) {
        for (link, side) in std::mem::take(&mut self.hosts[host.0].conns).into_values() {
            let reset = self.prng.one_in(2);
            self.hang_up(link, side, reset);
        }
    }

    /// A host is gone, and nothing tells its peers before `silence`.
    pub(super) fn drop_connections_late(&mut self, host: HostId, silence: Duration) {
        for (link, side) in std::mem::take(&mut self.hosts[host.0].conns).into_values() {
            if let Some(end) = self.end_mut(link, side) {
                end.deaf = true;
            }
            self.send(link, 1 - side, silence, Happening::Closed);
        }
    }

    /// One end closes: the other learns it after what was sent before, or loses some of it.
    fn hang_up(&mut self, link: LinkId, side: usize, reset: bool) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if let Some(end) = &mut l.ends[side] {
            end.deaf = true;
            if let Some(held) = end.held.as_mut().filter(|_| !reset) {
                held.is_closed = true;
                return;
            }
        }
        if reset {
            self.reset(link, 1 - side);
        } else {
            let delay = self.weather.delay(&mut self.prng);
            self.send(link, 1 - side, delay, Happening::Closed);
        }
        self.forget(link);
    }

    /// Sends the news that the connection is closed.
    pub(super) fn transmit_close(&mut self, link: LinkId, side: usize) {
        let delay = self.weather.delay(&mut self.prng);
        self.send(link, 1 - side, delay, Happening::Closed);
    }

    /// Forgets a connection that has no end any more.
    fn forget(&mut self, link: LinkId) {
        let is_gone = |end: &Option<End>| end.as_ref().is_none_or(|end| end.deaf);
        if self.links.get(&link).is_some_and(|l| l.ends.iter().all(is_gone)) {
            self.links.remove(&link);
        }
    }

    /// Breaks a random connection of a host. What is on its way may be lost.
    pub fn reset_one(&mut self, host: HostId) {
        let conns: Vec<_> = self.hosts[host.0].conns.values().copied().collect();
        let Some(&(link, side)) = self.prng.choose(&conns) else { return };
        self.break_link(link, side);
    }

    /// Breaks all connections between two hosts. What is on its way may be lost.
    pub fn reset_between(&mut self, one: HostId, other: HostId) {
        let conns: Vec<_> = self.hosts[one.0].conns.values().copied().collect();
        for (link, side) in conns {
            if self.end_mut(link, 1 - side).is_some_and(|end| end.host == other) {
                self.break_link(link, side);
            }
        }
    }

    /// Breaks a random connection of a host, which the other side learns when it sends something.
    pub fn reset_one_side(&mut self, host: HostId) {
        let conns: Vec<_> = self.hosts[host.0].conns.values().copied().collect();
        let Some(&(link, side)) = self.prng.choose(&conns) else { return };
        let Some(other) = self.host_of(link, 1 - side) else { return };
        if self.trace {
            let (one, other) = (self.label(host), self.label(other));
            self.tell_story(&format!("{one} x {other}: reset, {other} does not know"));
        }
        self.reset(link, side);
        let at = self.now + KEEPALIVE;
        let Some(l) = self.links.get_mut(&link) else { return };
        l.gone = Some(side);
        if let Some(conn) = l.ends[1 - side].as_ref().map(|end| end.conn) {
            self.push(at, Event::Arrive(link, 1 - side, Happening::Closed(conn)));
        }
    }

    fn break_link(&mut self, link: LinkId, side: usize) {
        if self.trace
            && let (Some(one), Some(other)) =
                (self.host_of(link, side), self.host_of(link, 1 - side))
        {
            self.tell_story(&format!("{} x {}: reset", self.label(one), self.label(other)));
        }
        self.reset(link, side);
        self.reset(link, 1 - side);
        if let Some(Link { ends: [Some(end), None], .. }) = self.links.get_mut(&link) {
            // Otherwise it would be accepted by a process that never hears of the end.
            end.broken = true;
        }
    }

    pub(super) fn host_of(&self, link: LinkId, side: usize) -> Option<HostId> {
        Some(self.links.get(&link)?.ends[side].as_ref()?.host)
    }

    /// Lets an end learn that the connection is broken, maybe before what was sent arrives.
    fn reset(&mut self, link: LinkId, side: usize) {
        let at = self.now + self.weather.delay(&mut self.prng);
        if let Some(end) = self.end_mut(link, side) {
            let happening = Happening::Closed(end.conn);
            self.push(at, Event::Arrive(link, side, happening));
        }
    }

    /// Lets something arrive at an end, after what was sent before.
    fn send(
        &mut self,
        link: LinkId,
        side: usize,
        delay: Duration,
        what: impl FnOnce(ConnId) -> Happening,
    ) {
        let now = self.now;
        let Some(end) = self.end_mut(link, side) else { return };
        let at = (now + delay).max(end.arrival);
        end.arrival = at;
        let happening = what(end.conn);
        self.push(at, Event::Arrive(link, side, happening));
    }

    pub(super) fn end_mut(&mut self, link: LinkId, side: usize) -> Option<&mut End> {
        self.links.get_mut(&link)?.ends[side].as_mut()
    }

    pub(super) fn arrive(&mut self, link: LinkId, side: usize, happening: Happening) {
        if let Some(end) = self.end_mut(link, side) {
            end.waiting.push_back(happening);
            self.deliver(link, side);
        }
    }

    pub(super) fn resume(&mut self, link: LinkId, side: usize) {
        if let Some(end) = self.end_mut(link, side) {
            end.resuming = false;
            self.deliver(link, side);
        }
    }

    /// Tells a process what arrived at its end of a connection, as far as it listens.
    fn deliver(&mut self, link: LinkId, side: usize) {
        while let Some(l) = self.links.get_mut(&link) {
            let peer = l.ends[1 - side].as_ref().map(|end| end.host);
            let Some(end) = l.ends[side].as_mut() else { return };
            let (host, life) = (end.host, end.life);
            let h = &self.hosts[host.0];
            if end.deaf || h.life != life || h.process.is_none() {
                end.waiting.clear();
                end.deaf = true;
                self.forget(link);
                return;
            }
            // TCP sends again until it is heard.
            let late = if self.now < h.stopped_until {
                Some(h.stopped_until)
            } else if peer.is_some_and(|peer| self.cuts.is_cut(peer, host)) {
                Some(self.now + RETRANSMIT)
            } else {
                None
            };
            if let Some(at) = late {
                if !end.waiting.is_empty() && !std::mem::replace(&mut end.resuming, true) {
                    self.push(at, Event::Resume(link, side));
                }
                return;
            }
            if end.paused && matches!(end.waiting.front(), Some(Happening::Bytes(..))) {
                return;
            }
            let Some(happening) = end.waiting.pop_front() else { return };
            if let Happening::Closed(conn) = happening {
                end.deaf = true;
                self.hosts[host.0].conns.remove(&conn);
            }
            self.tell(host, happening);
        }
    }
}
