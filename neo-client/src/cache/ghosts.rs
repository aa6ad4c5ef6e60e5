// SPDX-License-Identifier: GPL-2.0-or-later
//! Oids of objects that were dropped without having been popular.

use std::collections::VecDeque;

use neo_common::types::Oid;

use super::OidMap;

/// Least and greatest number of oids that are remembered; otherwise as many as there are entries.
const LEN_MIN: usize = 64;
const LEN_MAX: usize = 1 << 17;

/// The last oids that were dropped.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// When each was dropped. What is taken stays in the queue, and is skipped.
    at: OidMap<u64>,
    queue: VecDeque<(Oid, u64)>,
    clock: u64,
}

impl Ghosts {
    /// Remembers an oid, and forgets the oldest ones above `len`.
    pub fn add(&mut self, oid: Oid, len: usize) {
        self.clock += 1;
        self.at.insert(oid, self.clock);
        self.queue.push_back((oid, self.clock));
        while self.queue.len() > len.clamp(LEN_MIN, LEN_MAX) {
            if let Some((oid, at)) = self.queue.pop_front()
                && self.at.get(&oid) == Some(&at)
            {
                self.at.remove(&oid);
            }
        }
    }
    /// Whether an oid is remembered; it is forgotten.
    pub fn take(&mut self, oid: Oid) -> bool {
        self.at.remove(&oid).is_some()
    }
}
