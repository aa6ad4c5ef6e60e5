// SPDX-License-Identifier: GPL-2.0-or-later
//! What the database costs: loads and commits, with their CPU time. It asserts nothing.
//!
//! ```text
//! cargo run --release -p neo-storage --example database_bench [FOLDER]
//! ```
//!
//! FOLDER (default: a temporary one) decides which disk is measured.
//!
//! In November 2026, on 2 cores shared with other work, compiled for development: 2.9 us of CPU per
//! load, 2.1 us if 16 share a snapshot, 2.6 to 3.5 us through lanes with 32 loads in flight, but
//! 15 us with a single one: two hand-overs between threads. 120 us of the write lane's CPU per
//! commit with one client, half of it in the kernel, and 44 us in all with 32 clients. The number of
//! commits per second is that of `fdatasync`: 0.1 to 3.6 ms there.

#![allow(clippy::disallowed_methods)] // It measures time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use neo_common::protocol::enums::CellState;
use neo_common::types::{NodeId, Oid, Tid, Ttid};
use neo_storage::database::lane::{self, Lanes};
use neo_storage::database::sqlite::{Options, Sqlite};
use neo_storage::database::*;

const PARTITIONS: u32 = 12;
const OBJECTS: u64 = 50_000;
const OBJECT_BYTES: usize = 4096;
const LOADS: u64 = 400_000;

fn main() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let folder = std::env::args_os().nth(1).map_or(temporary.path().to_owned(), PathBuf::from);
    let options = Options {
        database: folder.join("bench.sqlite").to_str().expect("a path in UTF-8").into(),
        cluster: "bench".into(),
        ..Options::default()
    };
    let mut db = Sqlite::open(&options).expect("the database opens");
    fill(&mut db);
    loads_in_one_thread(&mut *db.reader().expect("a reader"));
    let lanes = |read_lanes| lane::Options { read_lanes, ..lane::Options::new(Arc::new(|| {})) };
    let mut running = Lanes::start(Box::new(db), &lanes(1)).expect("lanes start");
    for in_flight in [1, 8, 32] {
        loads_in_lanes(&mut running, 1, in_flight);
    }
    let mut last = OBJECTS;
    for clients in [1, 8, 32] {
        commits(&mut running, clients, &mut last);
    }
    drop(running.stop());
    let db = Sqlite::open(&options).expect("the database opens");
    let mut running = Lanes::start(Box::new(db), &lanes(2)).expect("lanes start");
    loads_in_lanes(&mut running, 2, 32);
    loads_in_lanes(&mut running, 2, 256);
    drop(running.stop());
}

/// CPU time of the process, and the time that passed.
struct Clock {
    start: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu() }
    }

    fn report(&self, what: &str, count: u64) {
        let (elapsed, cpu) = (self.start.elapsed(), cpu() - self.cpu);
        println!(
            "{what:<44} {:>9.0} /s {:>8.2} us CPU each",
            count as f64 / elapsed.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / count as f64,
        );
    }
}

/// User and system time, from the clock ticks of /proc.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields[index].parse::<u64>().expect("a number");
    Duration::from_millis(10 * (ticks(12) + ticks(13)))
}

/// A different value for each object; not compressible.
fn value(seed: u64, size: usize) -> Value {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(size)
    .collect();
    use sha1::Digest;
    Value { compression: 0, checksum: sha1::Sha1::digest(&data).into(), data }
}

fn record(ttid: Ttid, oids: Vec<Oid>) -> TransactionRecord {
    let (user, description) = (Bytes::from_static(b"user"), Bytes::from_static(b"description"));
    TransactionRecord { oids, user, description, extension: Bytes::new(), packed: false, ttid }
}

fn vote(number: u64, objects: impl Iterator<Item = (u64, usize)>) -> Write {
    let ttid = Ttid::new(number * u64::from(PARTITIONS));
    let objects: Vec<_> = objects
        .map(|(oid, size)| ObjectRecord {
            oid: Oid::new(oid),
            data_tid: None,
            content: Content::Value(value(number ^ oid << 32, size)),
        })
        .collect();
    let oids = objects.iter().map(|object| object.oid).collect();
    let transaction = Some(record(ttid, oids));
    Write::Vote(Box::new(Vote { ttid, partitions: PARTITIONS, objects, transaction, pack: None }))
}

fn finish(number: u64) -> [Write; 2] {
    let ttid = Ttid::new(number * u64::from(PARTITIONS));
    let tid = ttid.as_tid();
    [Write::Lock { ttid, tid, approve_pack: false }, Write::Unlock { ttid, tid, metadata: true }]
}

fn fill(db: &mut Sqlite) {
    let nid = NodeId::new(1).expect("it is not 0");
    let state = CellState::UpToDate;
    let change = PartitionTableChange {
        ptid: 1,
        replicas: 0,
        cells: (0..PARTITIONS).map(|partition| StoredCell { partition, nid, state }).collect(),
        scope: ChangeScope::Full,
        last_pack_id: Tid::ZERO,
        drop_temporary: Vec::new(),
        release: Vec::new(),
    };
    db.begin(CommitLevel::Durable).expect("begin");
    for job in [Write::SetNid(nid), Write::ChangePartitionTable(change)] {
        execute(db, Job::Write(job)).expect("it works");
    }
    let clock = Clock::start();
    for first in (0..OBJECTS).step_by(100) {
        let number = 1 + first / 100;
        let objects = (first..first + 100).map(|oid| (oid, OBJECT_BYTES));
        let [lock, unlock] = finish(number);
        for job in [vote(number, objects), lock, unlock] {
            execute(db, Job::Write(job)).expect("it works");
        }
    }
    db.commit().expect("commit");
    clock.report("stores of 4 KiB, one big transaction", OBJECTS);
}

/// Objects in an order that jumps around.
fn load(index: u64) -> Read {
    let oid = Oid::new(index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % OBJECTS);
    let before = index.is_multiple_of(2).then_some(Tid::MAX);
    Read::Load { partition: oid.partition(PARTITIONS), oid, at: None, before }
}

fn loads_in_one_thread(reader: &mut dyn Reader) {
    for (what, batch) in [("loads of 4 KiB, no thread", 1), ("the same, 16 in one snapshot", 16)] {
        let clock = Clock::start();
        for index in (0..LOADS).step_by(batch) {
            if batch > 1 {
                reader.open_snapshot().expect("it works");
            }
            for index in index..index + batch as u64 {
                let done = execute_read(reader, load(index)).expect("it works");
                assert!(matches!(done, Done::Loaded(Loaded::Found(_))));
            }
            if batch > 1 {
                reader.close_snapshot().expect("it works");
            }
        }
        clock.report(what, LOADS);
    }
    let clock = Clock::start();
    for index in 0..LOADS {
        let checks = vec![StoreCheck { oid: Oid::new(index % OBJECTS), data_tid: None }];
        let read = Read::CheckStores { partitions: PARTITIONS, checks };
        execute_read(reader, read).expect("it works");
    }
    clock.report("last tids, no thread", LOADS);
}

fn loads_in_lanes(lanes: &mut Lanes<u64>, count: usize, in_flight: u64) {
    let clock = Clock::start();
    let mut next = 0;
    let mut done = 0;
    while done < LOADS {
        while next < LOADS && next - done < in_flight {
            lanes.submit(next, Job::Read(load(next)));
            next += 1;
        }
        lanes.wait(Duration::from_secs(9)).expect("a result");
        done += 1;
    }
    clock.report(&format!("loads of 4 KiB, {count} lane(s), {in_flight} in flight"), LOADS);
}

/// Each client commits transactions of 3 objects of 500 B, one after the other.
fn commits(lanes: &mut Lanes<u64>, clients: u64, last: &mut u64) {
    let duration = Duration::from_secs(3);
    let clock = Clock::start();
    let mut count = 0;
    let mut start = |lanes: &mut Lanes<u64>| {
        *last += 1;
        let number = *last;
        let objects = (0..3).map(|index| (3 * number + index, 500));
        lanes.submit(number, Job::Write(vote(number, objects)));
    };
    for _ in 0..clients {
        start(lanes);
    }
    // Bit 62: locked, bit 63: unlocked.
    while lanes.in_flight() != 0 {
        let (id, _) = lanes.wait(Duration::from_secs(9)).expect("a result");
        let number = id & !(3 << 62);
        match id >> 62 {
            0 => lanes.submit(number | 1 << 62, Job::Write(finish(number)[0].clone())),
            1 => lanes.submit(number | 1 << 63, Job::Write(finish(number)[1].clone())),
            _ => {
                count += 1;
                if clock.start.elapsed() < duration {
                    start(lanes);
                }
            }
        }
    }
    clock.report(&format!("commits of 3 objects of 500 B, {clients} client(s)"), count);
}
