// SPDX-License-Identifier: GPL-2.0-or-later
//! Entries by index, and queues linked through them: no allocation per entry but its data.

use std::ops::{self, IndexMut};

use bytes::Bytes;
use neo_common::types::{Oid, Tid};

/// Position of an entry.
pub(super) type Index = u32;

/// No entry.
pub(super) const NONE: Index = Index::MAX;

/// The queue of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum QueueId {
    Small,
    Main,
}

/// One revision.
#[derive(Debug)]
pub(super) struct Entry {
    pub oid: Oid,
    pub tid: Tid,
    pub next_tid: Option<Tid>,
    pub data: Bytes,
    /// Older entry of the same object.
    pub older: Index,
    pub queue: QueueId,
    pub hits: u8,
    previous: Index,
    next: Index,
}

impl Entry {
    pub fn new(oid: Oid, tid: Tid, next_tid: Option<Tid>, data: Bytes, older: Index) -> Self {
        Self {
            oid,
            tid,
            next_tid,
            data,
            older,
            queue: QueueId::Small,
            hits: 0,
            previous: NONE,
            next: NONE,
        }
    }
    fn bytes(&self) -> usize {
        self.data.len() + super::ENTRY_BYTES
    }
}

/// Entries by index; indexes of removed entries are used again.
#[derive(Debug, Default)]
pub(super) struct Slab {
    entries: Vec<Entry>,
    free: Vec<Index>,
}

impl Slab {
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
    pub fn insert(&mut self, entry: Entry) -> Index {
        if let Some(index) = self.free.pop() {
            self[index] = entry;
            return index;
        }
        self.entries.push(entry);
        // Each entry takes ENTRY_BYTES of what fits in memory.
        Index::try_from(self.entries.len() - 1).expect("fewer than 2^32 entries")
    }
    pub fn remove(&mut self, index: Index) {
        self[index].data = Bytes::new();
        self.free.push(index);
    }
}

impl ops::Index<Index> for Slab {
    type Output = Entry;
    fn index(&self, index: Index) -> &Entry {
        &self.entries[index as usize]
    }
}

impl IndexMut<Index> for Slab {
    fn index_mut(&mut self, index: Index) -> &mut Entry {
        &mut self.entries[index as usize]
    }
}

/// First in, first out; anything can be removed.
#[derive(Debug)]
pub(super) struct Queue {
    id: QueueId,
    first: Index,
    last: Index,
    pub bytes: usize,
}

impl Queue {
    pub fn new(id: QueueId) -> Self {
        Self { id, first: NONE, last: NONE, bytes: 0 }
    }
    pub fn first(&self) -> Index {
        self.first
    }
    pub fn push(&mut self, slab: &mut Slab, index: Index) {
        let last = self.last;
        let entry = &mut slab[index];
        entry.queue = self.id;
        entry.previous = last;
        entry.next = NONE;
        self.bytes += entry.bytes();
        self.last = index;
        match last {
            NONE => self.first = index,
            last => slab[last].next = index,
        }
    }
    pub fn remove(&mut self, slab: &mut Slab, index: Index) {
        let entry = &slab[index];
        debug_assert_eq!(entry.queue, self.id);
        let (previous, next) = (entry.previous, entry.next);
        self.bytes -= entry.bytes();
        match previous {
            NONE => self.first = next,
            previous => slab[previous].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => slab[next].previous = previous,
        }
    }
}
