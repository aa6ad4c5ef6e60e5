// SPDX-License-Identifier: GPL-2.0-or-later
//! The cache under invalidation races, with real threads: whatever is cached, evicted, loaded and
//! committed at the same moment, a snapshot is what the database was.
//!
//! The interleavings of packets are covered by the seeded runs of `core/tests/races.rs`, which can be
//! replayed. Here it is about the driver: what threads take from the cache without the background
//! thread, and the last tid that they read without the mutex.

// Threads, clocks and mutexes of the tests.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

mod fake;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use fake::Fake;
use neo_client::{Client, Metadata, NoResolution, Options, Record};
use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid};

const SEEDS: u64 = 6;
const READERS: u64 = 4;
/// Transactions of others, and of the client itself.
const COMMITS: usize = 150;
/// Objects that nobody changes, to fill the cache with.
const FILLERS: u64 = 50;

/// Objects that are always changed together: by others, by the client itself.
const PAIRS: [[u64; 2]; 2] = [[1, 2], [3, 4]];

/// What a reader saw.
struct Seen {
    pair: usize,
    /// Last transaction that the client was told when it looked.
    last: Tid,
    serial: Tid,
    next_serial: Option<Tid>,
}

/// Looks at a pair, as of the last tid.
fn look(client: &Client, prng: &mut Prng, pair: usize) -> Seen {
    let last = client.last_tid().unwrap();
    let before = last.next().unwrap();
    let load = |prng: &mut Prng, number: u64| -> Record {
        let oid = Oid::new(number);
        let cached = if prng.one_in(2) { client.try_cached(oid, Some(before)) } else { None };
        cached.unwrap_or_else(|| client.load_before(oid, before).unwrap().unwrap())
    };
    let [first, second] = PAIRS[pair].map(|number| load(prng, number));
    assert_eq!((first.serial, &first.data), (second.serial, &second.data), "as of {last}");
    assert!(first.serial <= last);
    Seen { pair, last, serial: first.serial, next_serial: first.next_serial }
}

/// Changes the second pair.
fn commit(client: &Client, serial: Tid, data: &Bytes) -> Tid {
    let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
    for number in PAIRS[1] {
        transaction.store(Oid::new(number), serial, data.clone()).unwrap();
    }
    transaction.vote(&Metadata::default()).unwrap();
    transaction.finish(|_| {}).unwrap()
}

fn run(seed: u64) {
    let mut prng = Prng::new(seed);
    let fake = Fake::start();
    fake.fill(4 + FILLERS, |_| b"0".to_vec());
    let client = Client::open(Options {
        // With the smaller ones, entries are evicted all the time.
        cache_bytes: [600, 2_000, 1 << 20][prng.below(3)],
        ..Options::new("test", vec![fake.master])
    })
    .unwrap();
    client.connect().unwrap();
    let ended = AtomicBool::new(false);
    let mut tids = [Vec::new(), Vec::new()];
    let seen: Vec<Seen> = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let (mut prng, client, ended) = (prng.fork(), client.clone(), &ended);
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    while !ended.load(Ordering::Relaxed) {
                        let pair = prng.below(2);
                        seen.push(look(&client, &mut prng, pair));
                        if prng.one_in(3) {
                            let filler = 5 + prng.below(FILLERS as usize) as u64;
                            client.load(Oid::new(filler)).unwrap();
                        }
                    }
                    seen
                })
            })
            .collect();
        let own = scope.spawn(|| {
            let mut serial = client.load(Oid::new(PAIRS[1][0])).unwrap().serial;
            let mut tids = Vec::new();
            for number in 0..COMMITS {
                serial = commit(&client, serial, &number.to_string().into());
                tids.push(serial);
            }
            tids
        });
        for number in 0..COMMITS {
            tids[0].push(fake.commit(&PAIRS[0].map(Oid::new), number.to_string().as_bytes()));
            thread::yield_now();
        }
        tids[1] = own.join().unwrap();
        ended.store(true, Ordering::Relaxed);
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    client.close();
    assert!(seen.len() > COMMITS, "{} looks", seen.len());
    for Seen { pair, last, serial, next_serial } in seen {
        let next = tids[pair].iter().copied().find(|tid| *tid > serial);
        let was_current = next.is_none_or(|next| next > last);
        assert!(was_current, "seed {seed}: {serial} as of {last}, although there is {next:?}");
        assert!(next_serial.is_none() || next_serial == next, "{next_serial:?} is not {next:?}");
    }
}

#[test]
fn a_snapshot_is_what_the_database_was() {
    for seed in 0..SEEDS {
        run(seed);
    }
}
