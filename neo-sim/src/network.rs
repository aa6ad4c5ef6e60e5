// SPDX-License-Identifier: GPL-2.0-or-later
//! How bytes travel: TCP as an application sees it.
//!
//! In order, cut anywhere, delayed; a connection may stall, or be reset on both sides (each learns
//! it in its own time, and what was on its way is lost). Hosts may be cut from each other, one way or
//! both: what is sent waits, as TCP retransmits, until they are joined again or the connection is
//! reset.

use std::collections::BTreeSet;
use std::time::Duration;

use neo_common::prng::Prng;

/// Names a host of the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub usize);

/// How bad the network is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Weather {
    /// Least delay of a piece.
    pub delay_min_us: u64,
    /// Most, in the usual case.
    pub delay_max_us: u64,
    /// One piece out of so many takes up to 100 times longer; 0: never.
    pub stall_one_in: u64,
    /// What is sent is cut in up to so many pieces.
    pub pieces_max: usize,
    /// One connection attempt out of so many hangs, then fails; 0: never.
    pub hang_one_in: u64,
}

impl Weather {
    /// A quiet local network.
    pub const FINE: Self = Self {
        delay_min_us: 20,
        delay_max_us: 200,
        stall_one_in: 0,
        pieces_max: 1,
        hang_one_in: 0,
    };

    /// A mix drawn from a seed, often fine.
    pub fn draw(prng: &mut Prng) -> Self {
        if prng.one_in(4) {
            return Self::FINE;
        }
        let delay_min_us = 1 + prng.below(500) as u64;
        Self {
            delay_min_us,
            delay_max_us: delay_min_us + 1 + prng.below(20_000) as u64,
            stall_one_in: if prng.one_in(2) { 0 } else { 20 + prng.below(2000) as u64 },
            pieces_max: 1 + prng.below(5),
            hang_one_in: if prng.one_in(2) { 0 } else { 10 + prng.below(100) as u64 },
        }
    }

    /// Delay of one piece.
    pub fn delay(&self, prng: &mut Prng) -> Duration {
        let spread = (self.delay_max_us - self.delay_min_us) as usize + 1;
        let mut us = self.delay_min_us + prng.below(spread) as u64;
        if self.stall_one_in != 0 && prng.one_in(self.stall_one_in) {
            us *= 1 + prng.below(100) as u64;
        }
        Duration::from_micros(us)
    }
}

/// Which hosts do not hear which others.
#[derive(Clone, Default, Debug)]
pub struct Cuts(BTreeSet<(HostId, HostId)>);

impl Cuts {
    /// `to` does not hear `from` any more.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        self.0.insert((from, to));
    }
    /// `to` hears `from` again.
    pub fn join(&mut self, from: HostId, to: HostId) {
        self.0.remove(&(from, to));
    }
    /// Cuts a host from all others, both ways.
    pub fn isolate(&mut self, host: HostId, hosts_len: usize) {
        for other in (0..hosts_len).map(HostId).filter(|other| *other != host) {
            self.cut(host, other);
            self.cut(other, host);
        }
    }
    /// Joins all hosts again.
    pub fn heal(&mut self) {
        self.0.clear();
    }
    /// Whether `to` does not hear `from`.
    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.0.contains(&(from, to))
    }
    /// Whether some hosts are cut from others.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }
}
