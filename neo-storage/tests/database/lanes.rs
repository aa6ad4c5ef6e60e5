// SPDX-License-Identifier: GPL-2.0-or-later
//! The threads: order, group commit, visibility, bounds, end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use neo_common::types::{Tid, Ttid};
use neo_storage::database::lane::{self, Lanes, Options};
use neo_storage::database::memory::{self, Disk, Memory};
use neo_storage::database::sqlite::Sqlite;
use neo_storage::database::*;
use tempfile::TempDir;

use crate::harness::*;
use crate::server::Scratch;

const TIMEOUT: Duration = Duration::from_secs(60);

fn load(number: u64) -> Job {
    let partition = oid(number).partition(PARTITIONS);
    Job::Read(Read::Load { partition, oid: oid(number), at: None, before: None })
}

/// Where databases are; removed in the end.
struct Places {
    directory: TempDir,
    _scratch: Option<Scratch>,
}

/// A database of each kind, with a table: SQLite first.
fn databases() -> (Places, Vec<Box<dyn Database>>) {
    let Mirror { directory, sqlite, memory, mysql, disk, scratch, .. } = Mirror::with_table(false);
    drop((sqlite, memory, mysql));
    let sqlite = Sqlite::open(&options_in(&directory, false)).unwrap();
    let options = memory::Options { visible_delay: Duration::from_millis(5), ..Default::default() };
    let memory = Memory::open(&disk, CLUSTER, options).unwrap();
    let mut databases: Vec<Box<dyn Database>> = vec![Box::new(sqlite), Box::new(memory)];
    if let Some(scratch) = &scratch {
        databases.push(Box::new(scratch.open(CLUSTER, false).unwrap()));
    }
    (Places { directory, _scratch: scratch }, databases)
}

/// SQLite with a rollback journal: a commit and reads exclude each other.
fn rollback() -> (TempDir, Box<dyn Database>) {
    let Mirror { directory, sqlite, .. } = Mirror::with_table(false);
    drop(sqlite);
    let mut options = options_in(&directory, false);
    options.database = format!("file:{}?journal_mode=delete", options.database);
    (directory, Box::new(Sqlite::open(&options).unwrap()))
}

fn quiet() -> Options {
    Options::new(Arc::new(|| {}))
}

/// Once an unlock is reported, any read that is submitted sees it; before, none sees half of it.
#[test]
fn a_reported_unlock_is_visible_to_all_lanes() {
    let (_places, mut databases) = databases();
    let (_other, rollback) = rollback();
    databases.push(rollback);
    for db in databases {
        let mut lanes = Lanes::start(db, &quiet()).unwrap();
        for number in 1..100 {
            let (ttid, tid) = (Ttid::new(3 * number), Tid::new(3 * number));
            let objects = vec![store(1, &number.to_string()), store(2, &number.to_string())];
            let record = record(ttid.get(), vec![oid(1), oid(2)]);
            lanes.submit(0, Job::Write(vote(ttid.get(), objects, Some(record))));
            let lock = Write::Lock { ttid, tid, approve_pack: false };
            lanes.submit(1, Job::Write(lock));
            lanes.submit(2, Job::Write(Write::Unlock { ttid, tid, metadata: true }));
            while lanes.wait(TIMEOUT).expect("a result").0 != 2 {}
            for id in 3..11 {
                lanes.submit(id, load(1 + id % 2));
            }
            while lanes.in_flight() != 0 {
                let (id, done) = lanes.wait(TIMEOUT).expect("a result");
                if let Done::Loaded(loaded) = done {
                    let Loaded::Found(revision) = loaded else { panic!("{id} {loaded:?}") };
                    assert_eq!(revision.tid, tid);
                }
            }
        }
        assert!(lanes.stop().is_empty());
    }
}

/// More jobs than channels hold are neither dropped nor block the one who submits; what is queued is
/// executed, in order on the write lane, and committed before the end.
#[test]
fn lanes_are_bounded_and_lose_nothing() {
    const JOBS: u64 = 5 * lane::QUEUE_LEN as u64;
    let (places, databases) = databases();
    for db in databases {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = wakes.clone();
        let notify = Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let mut lanes = Lanes::start(db, &Options::new(notify)).unwrap();
        let mut was_congested = false;
        for number in 0..JOBS {
            match number % 2 {
                0 => lanes.submit(number, load(number)),
                _ => {
                    let record = record(number, Vec::new());
                    let vote = vote(number, vec![store(number, "x")], Some(record));
                    lanes.submit(number, Job::Write(vote));
                }
            }
            was_congested |= lanes.is_congested();
        }
        assert!(was_congested);
        let mut seen = BTreeSet::new();
        let mut last_vote = 0;
        for _ in 0..JOBS / 2 {
            let (id, done) = lanes.wait(TIMEOUT).expect("a result");
            assert!(seen.insert(id), "{id} is reported twice");
            if done == Done::Voted(Ok(())) {
                assert!(id > last_vote, "votes are reported in order");
                last_vote = id;
            }
        }
        // Nobody polls: one wake-up is enough until then.
        assert!(wakes.load(Ordering::SeqCst) <= 1 + JOBS as usize / 2);
        let unlock = Write::Unlock { ttid: Ttid::new(1), tid: Tid::new(1), metadata: true };
        lanes.submit(JOBS, Job::Write(unlock));
        for (id, _) in lanes.stop() {
            assert!(seen.insert(id), "{id} is reported twice");
        }
        assert_eq!(seen.len() as u64, JOBS + 1);
    }
    // The writer closed last: there is no log left.
    let directory = places.directory;
    let files = std::fs::read_dir(directory.path()).unwrap();
    let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert!(
        names.iter().all(|name| name == "neo.sqlite" || name == "neo.sqlite.import"),
        "{names:?}"
    );
    let mut db = Sqlite::open(&options_in(&directory, false)).unwrap();
    assert_eq!(db.latest().unfinished().unwrap().len() as u64, JOBS / 2 - 1);
    assert!(matches!(db.latest().load(1, oid(1), None, None), Ok(Loaded::Found(_))));
}

/// The reactor is woken up for results that come after it found none, and not for each of them.
#[test]
fn wake_ups_are_not_lost() {
    let (_places, databases) = databases();
    for db in databases {
        let (sender, wakes) = mpsc::channel();
        let notify = Arc::new(move || sender.send(()).unwrap());
        let mut lanes = Lanes::start(db, &Options::new(notify)).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        for number in 0..2000_u64 {
            lanes.submit(number, load(number));
            if number % 3 == 0 {
                continue;
            }
            let mut is_seen = false;
            while !is_seen {
                assert!(Instant::now() < deadline, "a wake-up is lost");
                wakes.recv_timeout(TIMEOUT).expect("a wake-up");
                while let Some((id, _)) = lanes.poll() {
                    is_seen |= id == number;
                }
            }
        }
        lanes.stop();
    }
}

/// A database that fails is told to the driver, and nothing more is reported.
#[test]
fn a_failure_is_not_silent() {
    let (_places, mut databases) = databases();
    let mut db = databases.remove(0);
    db.begin(CommitLevel::Durable).unwrap();
    db.erase().unwrap();
    db.commit().unwrap();
    let (sender, failures) = mpsc::channel();
    let on_failure = Arc::new(move |error: &Error| sender.send(error.to_string()).unwrap());
    let mut lanes = Lanes::start(db, &Options { on_failure, ..quiet() }).unwrap();
    lanes.submit(1, Job::Write(vote(3, vec![store(1, "a")], None)));
    let failure = failures.recv_timeout(TIMEOUT).unwrap();
    assert!(failure.contains("no such table"), "{failure}");
    assert_eq!(lanes.stop(), Vec::new());
}

/// What is not durable yet when the lanes are stopped is committed, and `Flush` makes it durable.
#[test]
fn flush_is_durable() {
    let disk = Disk::new();
    let options = memory::Options { visible_delay: TIMEOUT, ..memory::Options::default() };
    let db = Memory::open(&disk, CLUSTER, options).unwrap();
    let mut lanes = Lanes::start(Box::new(db), &quiet()).unwrap();
    lanes.submit(0, Job::Write(vote(1, vec![store(1, "a")], None)));
    lanes.wait(TIMEOUT).unwrap();
    let unlock = Write::Unlock { ttid: Ttid::new(1), tid: Tid::new(1), metadata: false };
    lanes.submit(1, Job::Write(unlock));
    lanes.submit(2, Job::Write(Write::Flush));
    assert_eq!(lanes.wait(TIMEOUT), Some((1, Done::Finished)));
    assert_eq!(lanes.wait(TIMEOUT), Some((2, Done::Finished)));
    let crashed = disk.crashed(memory::Crash::Power);
    let mut db = Memory::open(&crashed, CLUSTER, options).unwrap();
    assert!(matches!(db.latest().load(1, oid(1), None, None), Ok(Loaded::Found(_))));
    lanes.stop();
}

/// With a rollback journal, a process that reads the file delays a commit, and nothing worse.
#[test]
fn a_commit_waits_for_other_processes() {
    let (directory, db) = rollback();
    let mut lanes = Lanes::start(db, &quiet()).unwrap();
    let other = rusqlite::Connection::open(directory.path().join("neo.sqlite")).unwrap();
    other.execute_batch("BEGIN; SELECT * FROM config").unwrap();
    lanes.submit(1, Job::Write(vote(3, vec![store(1, "a")], None)));
    lanes.submit(2, load(1));
    // It can not be committed, whatever the time; reads go on until it has to be.
    let mut before = BTreeSet::new();
    while let Some((id, _)) = lanes.wait(Duration::from_millis(100)) {
        before.insert(id);
    }
    assert!(!before.contains(&1), "committed in spite of a reader");
    other.execute_batch("COMMIT").unwrap();
    while before.len() < 2 {
        before.insert(lanes.wait(TIMEOUT).expect("a result").0);
    }
}
