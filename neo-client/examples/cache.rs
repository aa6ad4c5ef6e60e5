// SPDX-License-Identifier: GPL-2.0-or-later
//! Hit rates of the cache on generated traces, next to LRU.
//!
//! ```text
//! cargo run --release -p neo-client --example cache [TRACE]
//! ```
//!
//! TRACE is a file with the oid of one load per line, in hexadecimal, and after a space its size in
//! bytes if it is not 4096: a trace of a real application. Without it, five traces are generated:
//!
//! - *zipf*: popularity falls with the rank, as in most web applications (exponent 0.9);
//! - *zipf + scans*: the same, while something (a backup, a catalog update) reads all
//!   objects once, again and again, for half of the loads;
//! - *moving*: zipf, whose popular objects are others after each tenth of the trace;
//! - *loop*: the same objects in the same order, slightly more than fit;
//! - *once*: a third of the loads is zipf, the others are of objects that are never loaded again.
//!
//! Caches hold a part of the database, or of the objects of a recorded trace. Both count what an entry
//! takes beside its data the same way. A miss stores the object.

// Not a core: the order of the map is never looked at.
#![allow(clippy::disallowed_types)]

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use neo_client::cache::{Cache, ENTRY_BYTES};
use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid};

/// Objects of the database.
const OBJECTS: usize = 100_000;
/// Loads of a trace.
const LOADS: usize = 2_000_000;
/// Bytes of an object.
const SIZE: usize = 4096;

/// What is loaded.
type Trace = Vec<(u64, usize)>;

/// Objects by popularity.
struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    fn new(objects: usize, exponent: f64) -> Self {
        let mut sum = 0.;
        let weight = |rank: usize| 1. / (rank as f64).powf(exponent);
        let cumulated = (1..=objects).map(|rank| {
            sum += weight(rank);
            sum
        });
        Self { cumulated: cumulated.collect() }
    }

    fn rank(&self, prng: &mut Prng) -> usize {
        let total = self.cumulated.last().copied().unwrap_or_default();
        let at = prng.next_u64() as f64 / u64::MAX as f64 * total;
        self.cumulated.partition_point(|sum| *sum < at).min(self.cumulated.len() - 1)
    }
}

fn generated() -> Vec<(&'static str, Trace)> {
    let mut prng = Prng::new(1);
    let zipf = Zipf::new(OBJECTS, 0.9);
    // Popular objects are anywhere.
    let mut objects: Vec<u64> = (0..OBJECTS as u64).collect();
    prng.shuffle(&mut objects);
    let mut trace = |choose: &mut dyn FnMut(&mut Prng, usize) -> u64| -> Trace {
        (0..LOADS).map(|i| (choose(&mut prng, i), SIZE)).collect()
    };
    let mut scan = 0;
    let mut unique = OBJECTS as u64;
    let mut traces = vec![
        ("zipf", trace(&mut |prng, _| objects[zipf.rank(prng)])),
        (
            "zipf + scans",
            trace(&mut |prng, i| {
                if i % 2 == 0 {
                    return objects[zipf.rank(prng)];
                }
                scan = (scan + 1) % OBJECTS as u64;
                scan
            }),
        ),
        (
            "moving",
            trace(&mut |prng, i| {
                let shift = i / (LOADS / 10) * (OBJECTS / 10);
                objects[(zipf.rank(prng) + shift) % OBJECTS]
            }),
        ),
        (
            "once",
            trace(&mut |prng, i| {
                if i % 3 == 0 {
                    return objects[zipf.rank(prng)];
                }
                unique += 1;
                unique
            }),
        ),
    ];
    // More than a tenth of the database, which is one of the sizes below.
    let length = OBJECTS / 10 * 11 / 10;
    traces.insert(3, ("loop", (0..LOADS).map(|i| ((i % length) as u64, SIZE)).collect()));
    traces
}

fn recorded(path: &str) -> Result<Trace, Box<dyn std::error::Error>> {
    let mut trace = Trace::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let mut words = line.split_whitespace();
        let Some(oid) = words.next() else { continue };
        let size = words.next().map_or(Ok(SIZE), str::parse)?;
        trace.push((u64::from_str_radix(oid, 16)?, size));
    }
    Ok(trace)
}

/// What is compared with.
#[derive(Default)]
struct Lru {
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    /// When each object was used, and its size.
    used: HashMap<u64, (u64, usize)>,
    oldest: BTreeMap<u64, u64>,
}

impl Lru {
    /// Whether it was there.
    fn load(&mut self, oid: u64, size: usize) -> bool {
        self.clock += 1;
        let hit = if let Some((used, _)) = self.used.get_mut(&oid) {
            self.oldest.remove(used);
            *used = self.clock;
            true
        } else {
            self.used.insert(oid, (self.clock, size));
            self.bytes += size + ENTRY_BYTES;
            false
        };
        self.oldest.insert(self.clock, oid);
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.oldest.pop_first()
        {
            self.bytes -= self.used.remove(&oldest).map_or(0, |(_, size)| size + ENTRY_BYTES);
        }
        hit
    }
}

/// Percentage of loads that both caches answer: ours, LRU.
fn hit_rates(trace: &Trace, bytes_max: usize) -> (f64, f64) {
    let mut lru = Lru { bytes_max, ..Lru::default() };
    let mut cache = Cache::new(bytes_max);
    let data = Bytes::from(vec![0; trace.iter().map(|(_, size)| *size).max().unwrap_or_default()]);
    let (mut hits, mut lru_hits) = (0, 0);
    for (oid, size) in trace {
        lru_hits += usize::from(lru.load(*oid, *size));
        let id = Oid::new(*oid);
        if cache.load_before(id, Tid::MAX).is_some() {
            hits += 1;
        } else {
            cache.store(id, data.slice(..*size), Tid::new(1), None);
        }
    }
    let percent = |count: usize| count as f64 * 100. / trace.len().max(1) as f64;
    (percent(hits), percent(lru_hits))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let traces = match std::env::args().nth(1) {
        Some(path) => vec![("recorded", recorded(&path)?)],
        None => generated(),
    };
    println!("{:14} {:>12} {:>10} {:>8} {:>8}", "trace", "cache", "S3-FIFO", "LRU", "");
    for (name, trace) in traces {
        let total: usize = if name == "recorded" {
            let objects: HashMap<u64, usize> = trace.iter().copied().collect();
            objects.values().map(|size| size + ENTRY_BYTES).sum()
        } else {
            OBJECTS * (SIZE + ENTRY_BYTES)
        };
        for percent in [1, 3, 10, 30] {
            let bytes_max = total / 100 * percent;
            let (ours, lru) = hit_rates(&trace, bytes_max);
            let size = format!("{percent} %, {} MB", bytes_max >> 20);
            println!("{name:14} {size:>12} {ours:>8.1} % {lru:>6.1} % {:>+8.1}", ours - lru);
        }
    }
    Ok(())
}
