// SPDX-License-Identifier: GPL-2.0-or-later
//! In-memory cache of object revisions. Upstream has a Multi-Queue (client/cache.py).
//!
//! An entry is one revision: it is valid for readers that look at the database *before* any tid
//! in `tid + 1 ..= next_tid`, or from `tid + 1` on as long as it is current (`next_tid` unknown).
//! Entries of an object are chained from the newest to the oldest.
//!
//! # What stays
//!
//! The policy is S3-FIFO (Yang et al., SOSP 2023): a new entry goes through a *small* queue, a tenth
//! of the room. What was asked again before it reaches the end moves to the *main* queue, the rest is
//! dropped and its oid remembered (*ghosts*). What is loaded again soon after goes to the main
//! queue at once. A hit only counts; nothing is moved. A scan of the database goes through the small
//! queue without touching the working set.
//!
//! The popularity of an object goes over to its next revision, and leaves the older one.
//!
//! # What must hold
//!
//! The caller serialises everything, and tells each invalidation before it lets anybody look at the
//! database after it. Nothing is stored that was loaded from a later state than the last
//! invalidation told. When in doubt an entry is dropped: missing is always right.

mod ghosts;
mod slab;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;
use neo_common::planted;
use neo_common::types::{Oid, Tid};

use self::ghosts::Ghosts;
use self::slab::{Entry, Index, NONE, Queue, QueueId, Slab};
use crate::call::Record;

/// Memory that an entry takes beside its data, in bytes: slab, index, reference count.
pub const ENTRY_BYTES: usize = 128;

/// Share of the room of the small queue: one tenth.
const SMALL_DIVISOR: usize = 10;

/// Greatest count of hits that is remembered.
const HITS_MAX: u8 = 3;

/// Hashes the number of an oid: the same in each process.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct OidHasher(u64);

impl Hasher for OidHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        // Oids are mostly consecutive: spread them over low and high bits.
        let z = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = z ^ (z >> 32);
    }
}

/// Its order is never looked at.
#[allow(clippy::disallowed_types)]
pub(crate) type OidMap<V> = std::collections::HashMap<Oid, V, BuildHasherDefault<OidHasher>>;

/// What the cache was asked, for logs and tuning.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Statistics {
    /// Loads that were answered.
    pub hits: u64,
    /// Loads that went to a storage.
    pub misses: u64,
    /// Bytes of data, overhead included.
    pub bytes: usize,
    /// Number of revisions.
    pub entries: usize,
}

/// Revisions of objects.
#[derive(Debug)]
pub struct Cache {
    bytes_max: usize,
    slab: Slab,
    /// Newest entry of each object.
    newest: OidMap<Index>,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
    hits: u64,
    misses: u64,
}

impl Cache {
    /// Holds at most that many bytes, overhead included.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            slab: Slab::default(),
            newest: OidMap::default(),
            small: Queue::new(QueueId::Small),
            main: Queue::new(QueueId::Main),
            ghosts: Ghosts::default(),
            hits: 0,
            misses: 0,
        }
    }

    /// What is in it, and how it did.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            hits: self.hits,
            misses: self.misses,
            bytes: self.small.bytes + self.main.bytes,
            entries: self.slab.len(),
        }
    }

    /// Bytes that it may hold.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The revision that was current before a tid.
    pub fn load_before(&mut self, oid: Oid, before: Tid) -> Option<Record> {
        let found = self.versions(oid).find(|(_, entry)| entry.tid < before);
        let end = if planted!(CacheBorder) { before.previous().unwrap_or(before) } else { before };
        let valid = |entry: &Entry| entry.next_tid.is_none_or(|next| next >= end);
        let index = found.filter(|(_, entry)| valid(entry)).map(|(index, _)| index);
        self.answer(index)
    }

    /// The revision that a transaction wrote.
    pub fn load_at(&mut self, oid: Oid, tid: Tid) -> Option<Record> {
        let index = self.versions(oid).find(|(_, entry)| entry.tid == tid).map(|(index, _)| index);
        self.answer(index)
    }

    /// A load was not answered.
    pub fn count_miss(&mut self) {
        self.misses += 1;
    }

    fn answer(&mut self, index: Option<Index>) -> Option<Record> {
        let entry = &mut self.slab[index?];
        self.hits += 1;
        entry.hits = (entry.hits + 1).min(HITS_MAX);
        Some(Record {
            data: entry.data.clone(), // a reference, not a copy
            serial: entry.tid,
            next_serial: entry.next_tid,
        })
    }

    /// Entries of an object, the newest first.
    fn versions(&self, oid: Oid) -> impl Iterator<Item = (Index, &Entry)> {
        let mut index = self.newest.get(&oid).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            if index == NONE {
                return None;
            }
            let entry = &self.slab[index];
            Some((std::mem::replace(&mut index, entry.older), entry))
        })
    }

    /// Adds a revision. `next_tid`: the next change of the object, `None` if it is current.
    pub fn store(&mut self, oid: Oid, data: Bytes, tid: Tid, next_tid: Option<Tid>) {
        // Entries just newer and just older than this revision.
        let (mut newer, mut older) = (NONE, NONE);
        let mut known = None;
        for (index, entry) in self.versions(oid) {
            if entry.tid <= tid {
                older = index;
                known = (entry.tid == tid).then_some(index);
                break;
            }
            newer = index;
        }
        if let Some(index) = known {
            let entry = &mut self.slab[index];
            entry.next_tid = entry.next_tid.or(next_tid);
            return;
        }
        if next_tid.is_none() && newer != NONE {
            // The load was overtaken, and it is not known by what.
            return;
        }
        let size = data.len() + ENTRY_BYTES;
        if size > self.bytes_max / 2 {
            // It would flush everything else.
            return;
        }
        let mut popular = self.ghosts.take(oid);
        if older != NONE {
            let entry = &mut self.slab[older];
            if newer == NONE {
                popular |= entry.queue == QueueId::Main || entry.hits > 1;
                entry.hits = 0;
            }
            if entry.next_tid.is_none() {
                // It was current until something between both revisions, not known exactly.
                self.remove(older);
                older = self.versions(oid).map(|(i, _)| i).next().unwrap_or(NONE);
                debug_assert_eq!(newer, NONE, "only the newest entry is current");
            }
        }
        let queue = if popular { &mut self.main } else { &mut self.small };
        let index = self.slab.insert(Entry::new(oid, tid, next_tid, data, older));
        queue.push(&mut self.slab, index);
        if newer == NONE {
            self.newest.insert(oid, index);
        } else {
            self.slab[newer].older = index;
        }
        self.shrink();
    }

    /// The object was changed by `tid`: what is current is so only before it.
    pub fn invalidate(&mut self, oid: Oid, tid: Tid) {
        if let Some(index) = self.newest.get(&oid) {
            let entry = &mut self.slab[*index];
            if entry.next_tid.is_none() && entry.tid < tid && !planted!(StaleCacheEntry) {
                entry.next_tid = Some(tid);
            }
        }
    }

    /// Forgets what is current: it is not known what changed.
    pub fn clear_current(&mut self) {
        let current = |index: &Index| self.slab[*index].next_tid.is_none();
        let mut current: Vec<Index> = self.newest.values().copied().filter(current).collect();
        current.sort_unstable();
        for index in current {
            self.remove(index);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self { hits: self.hits, misses: self.misses, ..Self::new(self.bytes_max) };
    }

    fn remove(&mut self, index: Index) {
        let (oid, older) = (self.slab[index].oid, self.slab[index].older);
        let newer = self.versions(oid).find(|(_, entry)| entry.older == index).map(|(i, _)| i);
        match newer {
            Some(newer) => self.slab[newer].older = older,
            None if older == NONE => {
                self.newest.remove(&oid);
            }
            None => {
                self.newest.insert(oid, older);
            }
        }
        match self.slab[index].queue {
            QueueId::Small => self.small.remove(&mut self.slab, index),
            QueueId::Main => self.main.remove(&mut self.slab, index),
        }
        self.slab.remove(index);
    }

    /// Evicts until the bound is respected.
    fn shrink(&mut self) {
        while self.small.bytes + self.main.bytes > self.bytes_max {
            if self.small.bytes > self.bytes_max / SMALL_DIVISOR || self.main.first() == NONE {
                let index = self.small.first();
                let entry = &mut self.slab[index];
                if entry.hits > 1 {
                    entry.hits = 0;
                    self.small.remove(&mut self.slab, index);
                    self.main.push(&mut self.slab, index);
                } else {
                    self.ghosts.add(entry.oid, self.slab.len());
                    self.remove(index);
                }
            } else {
                let index = self.main.first();
                let entry = &mut self.slab[index];
                if entry.hits > 0 {
                    entry.hits -= 1;
                    self.main.remove(&mut self.slab, index);
                    self.main.push(&mut self.slab, index);
                } else {
                    self.remove(index);
                }
            }
        }
    }
}
