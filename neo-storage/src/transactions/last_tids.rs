// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known of the last revision of objects: a bounded cache, so that few conflict checks
//! need the database.
//!
//! An entry is always right, or absent: `Some(tid)` is the last committed revision of the object,
//! `None` means that it has none. Loads, checks and locks fill it; unlocks change it; whatever
//! changes rows otherwise (replication, pack, partition changes) removes entries.
//!
//! Two generations bound it without bookkeeping per access: when the young one is full, it becomes
//! the old one and what was old is forgotten. An entry that is used moves to the young one.
//!
//! A result that was read from the database some time ago may be older than what happened since.
//! [`LastTids::stamp`] tells whether an absent entry can still be filled with it: it changes each
//! time entries are forgotten, and as long as none is, an entry changed by an unlock is present.

use std::collections::BTreeMap;

use neo_common::planted;
use neo_common::types::{Oid, Partition, Tid};

use crate::limits::LAST_TIDS_LEN_MAX;

/// Last revision of an object; `None` if it has no revision.
pub type LastTid = Option<Tid>;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct LastTids {
    young: BTreeMap<Oid, LastTid>,
    old: BTreeMap<Oid, LastTid>,
    forgotten_count: u64,
}

impl LastTids {
    /// What is known of an object.
    pub fn get(&mut self, oid: Oid) -> Option<LastTid> {
        if let Some(last) = self.young.get(&oid) {
            return Some(*last);
        }
        let last = self.old.remove(&oid)?;
        self.insert(oid, last);
        Some(last)
    }

    /// All that is known.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, LastTid)> {
        self.young.iter().chain(&self.old).map(|(oid, last)| (*oid, *last))
    }

    /// Learns the last revision of an object, or that it changed.
    pub fn insert(&mut self, oid: Oid, last: LastTid) {
        if !self.old.is_empty() {
            self.old.remove(&oid);
        }
        if self.young.len() >= LAST_TIDS_LEN_MAX / 2 && !self.young.contains_key(&oid) {
            self.old = std::mem::take(&mut self.young);
            self.forgotten_count += 1;
        }
        self.young.insert(oid, last);
    }

    /// Learns what was read from the database when the stamp was `stamp`.
    pub fn fill(&mut self, stamp: u64, oid: Oid, last: LastTid) {
        let is_new = stamp == self.forgotten_count
            && !self.young.contains_key(&oid)
            && !self.old.contains_key(&oid);
        if is_new || planted!(LateReadBelieved) {
            self.insert(oid, last);
        }
    }

    /// To be given to [`Self::fill`] with what is read from now on.
    pub fn stamp(&self) -> u64 {
        self.forgotten_count
    }

    /// Forgets the objects of some partitions.
    pub fn forget(&mut self, partitions: u32, is_forgotten: impl Fn(Partition) -> bool) {
        for generation in [&mut self.young, &mut self.old] {
            generation.retain(|oid, _| !is_forgotten(oid.partition(partitions)));
        }
        self.forgotten_count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = LAST_TIDS_LEN_MAX as u64 / 2;

    /// Entries that are used stay, others leave; the size is bounded.
    #[test]
    fn used_entries_stay() {
        let mut cache = LastTids::default();
        for n in 0..4 * HALF {
            cache.insert(Oid::new(n), Some(Tid::new(n)));
            assert_eq!(cache.get(Oid::new(0)), Some(Some(Tid::new(0))));
            assert!(cache.young.len() + cache.old.len() <= LAST_TIDS_LEN_MAX);
        }
        assert_eq!(cache.get(Oid::new(1)), None);
        assert_eq!(cache.get(Oid::new(4 * HALF - 1)), Some(Some(Tid::new(4 * HALF - 1))));
    }

    /// What was read before an unlock never replaces what the unlock left, even if that was
    /// forgotten since.
    #[test]
    fn late_reads_do_not_fill() {
        let mut cache = LastTids::default();
        let stamp = cache.stamp();
        cache.insert(Oid::new(1), Some(Tid::new(20)));
        cache.fill(stamp, Oid::new(1), Some(Tid::new(10)));
        assert_eq!(cache.get(Oid::new(1)), Some(Some(Tid::new(20))));
        cache.forget(2, |partition| partition == 1);
        cache.fill(stamp, Oid::new(1), Some(Tid::new(10)));
        assert_eq!(cache.get(Oid::new(1)), None);
        cache.fill(cache.stamp(), Oid::new(1), None);
        assert_eq!(cache.get(Oid::new(1)), Some(None));
    }

    /// Only the objects of the given partitions are forgotten.
    #[test]
    fn partitions_are_forgotten() {
        let mut cache = LastTids::default();
        for n in 0..10 {
            cache.insert(Oid::new(n), None);
        }
        cache.forget(3, |partition| partition == 1);
        let kept: Vec<u64> = (0..10).filter(|n| cache.get(Oid::new(*n)).is_some()).collect();
        assert_eq!(kept, [0, 2, 3, 5, 6, 8, 9]);
    }
}
