// SPDX-License-Identifier: GPL-2.0-or-later
//! The cache against a model that never forgets, and its policy against LRU.

use std::collections::{BTreeMap, VecDeque};

use neo_common::prng::Prng;
use proptest::prelude::*;

use super::*;

fn oid(number: u64) -> Oid {
    Oid::new(number)
}
fn tid(number: u64) -> Tid {
    Tid::new(number)
}
fn data(oid: Oid, tid: Tid, size: usize) -> Bytes {
    let mut data = format!("{oid}@{tid}").into_bytes();
    data.resize(data.len() + size, b' ');
    data.into()
}

impl Cache {
    /// Each entry is in one queue and one chain, and sizes add up.
    fn check(&self) {
        let mut bytes = 0;
        let mut entries = 0;
        for (oid, newest) in &self.newest {
            assert!(*newest != NONE);
            let mut newer = None;
            for (index, entry) in self.versions(*oid) {
                assert_eq!(entry.oid, *oid);
                assert!(newer.is_none_or(|newer| entry.tid < newer), "{oid}: not in order");
                assert!(newer.is_none() || entry.next_tid.is_some(), "{oid}: two current ones");
                assert!(entry.next_tid.is_none_or(|next| next > entry.tid));
                assert!(index != NONE);
                newer = Some(entry.tid);
                bytes += entry.data.len() + ENTRY_BYTES;
                entries += 1;
            }
        }
        let statistics = self.statistics();
        assert_eq!((bytes, entries), (statistics.bytes, statistics.entries));
        assert!(bytes <= self.bytes_max);
    }
}

/// A revision is found by who looks at the database while it is current, and by nobody else.
#[test]
fn revisions_are_valid_from_their_tid_to_the_next() {
    let mut cache = Cache::new(1 << 20);
    let record = |t, next: Option<u64>| {
        Some(Record { data: data(oid(1), tid(t), 0), serial: tid(t), next_serial: next.map(tid) })
    };
    assert_eq!(cache.load_before(oid(1), tid(10)), None);
    cache.invalidate(oid(1), tid(10));
    cache.store(oid(1), data(oid(1), tid(5), 0), tid(5), Some(tid(10)));
    cache.store(oid(1), data(oid(1), tid(5), 0), tid(5), Some(tid(10)));
    assert_eq!(cache.load_before(oid(1), tid(10)), record(5, Some(10)));
    assert_eq!(cache.load_before(oid(1), tid(11)), None);
    assert_eq!(cache.load_before(oid(1), tid(5)), None);
    cache.store(oid(1), data(oid(1), tid(15), 0), tid(15), None);
    assert_eq!(cache.load_before(oid(1), tid(99)), record(15, None));
    assert_eq!(cache.load_at(oid(1), tid(15)), record(15, None));
    assert_eq!(cache.load_at(oid(1), tid(14)), None);
    cache.invalidate(oid(1), tid(15)); // its own commit, told late
    assert_eq!(cache.load_before(oid(1), tid(99)), record(15, None));
    cache.invalidate(oid(1), tid(20));
    assert_eq!(cache.load_before(oid(1), tid(21)), None);
    assert_eq!(cache.load_before(oid(1), tid(20)), record(15, Some(20)));
    cache.clear_current();
    assert_eq!(cache.statistics().entries, 2);
    cache.store(oid(1), data(oid(1), tid(20), 0), tid(20), None);
    cache.store(oid(1), data(oid(1), tid(10), 0), tid(10), Some(tid(15)));
    cache.check();
    assert_eq!(cache.load_before(oid(1), tid(15)), record(10, Some(15)));
    cache.clear_current();
    assert_eq!(cache.load_before(oid(1), tid(30)), None);
    assert_eq!(cache.statistics().entries, 3);
    cache.clear();
    assert_eq!(cache.statistics().bytes, 0);
}

/// Two revisions that both claim to be current: the older one is dropped, a late older one refused.
#[test]
fn contradictions_are_forgotten() {
    let mut cache = Cache::new(1 << 20);
    cache.store(oid(1), data(oid(1), tid(5), 0), tid(5), None);
    cache.store(oid(1), data(oid(1), tid(9), 0), tid(9), None);
    assert_eq!(cache.load_before(oid(1), tid(7)), None);
    cache.store(oid(1), data(oid(1), tid(6), 0), tid(6), None);
    assert_eq!(cache.load_before(oid(1), tid(7)), None);
    assert_eq!(cache.load_before(oid(1), tid(10)).map(|r| r.serial), Some(tid(9)));
    cache.check();
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody commits these objects.
    Commit(Vec<u8>),
    /// Somebody loads an object as of so many transactions ago, on a miss from the storage.
    Load(u8, u8),
    LoadAt(u8, u8),
    ClearCurrent,
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => prop::collection::vec(0..20u8, 1..4).prop_map(Step::Commit),
        60 => (0..20u8, 0..10u8).prop_map(|(o, t)| Step::Load(o, t)),
        10 => (0..20u8, 0..10u8).prop_map(|(o, t)| Step::LoadAt(o, t)),
        1 => Just(Step::ClearCurrent),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// Whatever is committed, loaded and evicted, a hit is what the database has at that tid.
    #[test]
    fn hits_are_true(steps in steps(), bytes_max in 300..20_000usize, committer in any::<bool>()) {
        let mut cache = Cache::new(bytes_max);
        let mut history = BTreeMap::<Oid, Vec<Tid>>::new();
        let mut last = 100;
        for step in steps {
            match step {
                Step::Commit(oids) => {
                    last += 1;
                    for o in oids {
                        let (o, t) = (oid(u64::from(o)), tid(last));
                        let revisions = history.entry(o).or_default();
                        if revisions.last() == Some(&t) {
                            continue;
                        }
                        revisions.push(t);
                        cache.invalidate(o, t);
                        if committer {
                            cache.store(o, data(o, t, 100), t, None);
                        }
                    }
                }
                Step::Load(o, ago) => {
                    let o = oid(u64::from(o));
                    let before = tid(last + 1 - u64::from(ago));
                    let revisions = history.get(&o).map_or(&[][..], Vec::as_slice);
                    let index = revisions.partition_point(|t| *t < before);
                    let truth = index.checked_sub(1).map(|i| Record {
                        data: data(o, revisions[i], 100),
                        serial: revisions[i],
                        next_serial: revisions.get(index).copied(),
                    });
                    match (cache.load_before(o, before), truth) {
                        (None, Some(t)) => cache.store(o, t.data, t.serial, t.next_serial),
                        (Some(hit), truth) => prop_assert_eq!(Some(hit), truth),
                        (None, None) => {}
                    }
                }
                Step::LoadAt(o, ago) => {
                    let (o, t) = (oid(u64::from(o)), tid(last - u64::from(ago)));
                    if let Some(hit) = cache.load_at(o, t) {
                        prop_assert_eq!(hit.serial, t);
                        prop_assert!(history[&o].contains(&t));
                        prop_assert_eq!(hit.data, data(o, t, 100));
                    }
                }
                Step::ClearCurrent => {
                    cache.clear_current();
                    prop_assert!(cache.newest.values().all(|i| cache.slab[*i].next_tid.is_some()));
                }
                Step::Clear => cache.clear(),
            }
            cache.check();
        }
    }
}

/// What LRU would hit, for comparison.
struct Lru {
    len_max: usize,
    queue: VecDeque<Oid>,
}

impl Lru {
    fn hit(&mut self, oid: Oid) -> bool {
        let at = self.queue.iter().position(|o| *o == oid);
        if let Some(at) = at {
            self.queue.remove(at);
        }
        self.queue.push_back(oid);
        if self.queue.len() > self.len_max {
            self.queue.pop_front();
        }
        at.is_some()
    }
}

/// A working set with a skewed popularity, with a scan of the whole database now and then: the
/// scans cost LRU its working set, and this cache not.
#[test]
fn scans_do_not_evict_the_working_set() {
    const ROOM: usize = 500;
    let mut prng = Prng::new(7);
    let mut cache = Cache::new(ROOM * (ENTRY_BYTES + 33));
    let mut lru = Lru { len_max: ROOM, queue: VecDeque::new() };
    let (mut hits, mut lru_hits, mut count) = (0, 0, 0);
    let mut load = |number: u64, counted: bool| {
        let o = oid(number);
        let hit = cache.load_before(o, tid(2)).is_some();
        if !hit {
            cache.store(o, data(o, tid(1), 0), tid(1), None);
        }
        let lru_hit = lru.hit(o);
        if counted {
            count += 1;
            hits += u32::from(hit);
            lru_hits += u32::from(lru_hit);
        }
    };
    for round in 0..20 {
        for _ in 0..2000 {
            // Squares crowd near 0: a tenth of the objects gets a third of the loads.
            let x = prng.below(1000) as u64;
            load(x * x / 1000, round > 0);
        }
        for number in 0..5000 {
            load(number, false);
        }
    }
    let (rate, lru_rate) = (hits * 100 / count, lru_hits * 100 / count);
    println!("hit rate {rate} %, LRU {lru_rate} %");
    assert!(rate >= 60, "{rate} %");
    assert!(rate > lru_rate + 5, "{rate} %, LRU {lru_rate} %");
}

/// An object that is committed again and again stays, one revision at a time.
#[test]
fn popularity_goes_over_to_the_next_revision() {
    let mut cache = Cache::new(100 * (ENTRY_BYTES + 33));
    for t in 1..50 {
        cache.invalidate(oid(1), tid(t));
        cache.store(oid(1), data(oid(1), tid(t), 0), tid(t), None);
        for _ in 0..3 {
            assert!(cache.load_before(oid(1), tid(t + 1)).is_some());
        }
        for number in 0..100 {
            let o = oid(1000 * t + number);
            cache.store(o, data(o, tid(t), 0), tid(t), None);
        }
        assert!(cache.load_before(oid(1), tid(t + 1)).is_some(), "lost at {t}");
    }
    cache.check();
}

/// Data that is too big for the cache leaves it as it was.
#[test]
fn big_objects_are_not_cached() {
    let mut cache = Cache::new(10_000);
    cache.store(oid(1), data(oid(1), tid(1), 0), tid(1), None);
    cache.store(oid(2), data(oid(2), tid(1), 6000), tid(1), None);
    assert!(cache.load_before(oid(2), tid(2)).is_none());
    assert!(cache.load_before(oid(1), tid(2)).is_some());
    let mut none = Cache::new(0);
    none.store(oid(1), Bytes::new(), tid(1), None);
    assert_eq!(none.statistics().entries, 0);
}
