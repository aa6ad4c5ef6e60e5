// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that commits is killed at any moment, again and again: what it was told to be durable
//! is there, and no transaction is there by half.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use neo_common::types::{Oid, Tid, Ttid};
use neo_storage::database::lane::{self, Lanes};
use neo_storage::database::sqlite::{Options, Sqlite};
use neo_storage::database::*;
use tempfile::TempDir;

use crate::harness::*;

const ENVIRONMENT: &str = "NEO_TEST_CRASH_DIRECTORY";

/// Objects of each transaction: all must be there, or none.
const OBJECTS: u64 = 5;

const ROUNDS: u64 = 8;

fn options(directory: &Path) -> Options {
    Options {
        database: directory.join("neo.sqlite").to_str().unwrap().into(),
        cluster: CLUSTER.into(),
        ..Options::default()
    }
}

/// Not a test by itself: what the killed process does, if told so by its environment. It prints a
/// line each time something is promised.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(ENVIRONMENT) else { return };
    let mut db = Sqlite::open(&options(directory.as_ref())).unwrap();
    let readable = (0..PARTITIONS).collect::<Vec<_>>();
    let last = db.latest().last_ids(&readable).unwrap().last_tid;
    let mut number = last.unwrap_or(Tid::ZERO).get() + 1;
    let options = lane::Options { read_lanes: 1, ..lane::Options::new(Arc::new(|| {})) };
    let mut lanes = Lanes::start(Box::new(db), &options).unwrap();
    let wait = |lanes: &mut Lanes<u64>, job| {
        lanes.submit(0, Job::Write(job));
        lanes.wait(Duration::from_secs(60)).expect("the lane works").1
    };
    loop {
        number += 1;
        let (ttid, tid) = (Ttid::new(3 * number), Tid::new(3 * number));
        let data = format!("{number}");
        let objects = (0..OBJECTS).map(|oid| store(oid, &data)).collect();
        let record = record(ttid.get(), (0..OBJECTS).map(oid).collect());
        assert_eq!(wait(&mut lanes, vote(ttid.get(), objects, Some(record))), Done::Voted(Ok(())));
        println!("voted {ttid}");
        wait(&mut lanes, Write::Lock { ttid, tid, approve_pack: false });
        println!("locked {ttid}");
        wait(&mut lanes, Write::Unlock { ttid, tid, metadata: true });
        println!("unlocked {ttid}");
    }
}

#[test]
fn promises_survive_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut promises = BTreeMap::new();
    let mut mirror = Mirror::with_table(false);
    mirror.commit();
    let Mirror { directory: template, sqlite, .. } = mirror;
    drop(sqlite);
    std::fs::copy(template.path().join("neo.sqlite"), directory.path().join("neo.sqlite")).unwrap();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(ENVIRONMENT, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut lines = stdout.lines().map_while(Result::ok);
        // Killed at another step each time.
        let promised = lines.by_ref().filter_map(|line| promise(&line));
        promises.extend(promised.take(20 + 7 * round as usize));
        child.kill().unwrap();
        child.wait().unwrap();
        promises.extend(lines.filter_map(|line| promise(&line)));
        check(&directory, &promises);
    }
    assert!(promises.len() > 50, "{}", promises.len());
}

/// What a line of the child says: a transaction, and how far it is.
fn promise(line: &str) -> Option<(Ttid, Promise)> {
    let (step, ttid) = line.split_once(' ')?;
    let step = match step {
        "voted" => Promise::Voted,
        "locked" => Promise::Locked,
        "unlocked" => Promise::Unlocked,
        _ => return None,
    };
    Some((Ttid::new(u64::from_str_radix(ttid, 16).ok()?), step))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Promise {
    Voted,
    Locked,
    Unlocked,
}

fn check(directory: &TempDir, promises: &BTreeMap<Ttid, Promise>) {
    // Anybody may look, before the node is started again.
    let other = rusqlite::Connection::open(directory.path().join("neo.sqlite")).unwrap();
    let ok: String = other.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(ok, "ok");
    drop(other);

    let mut db = Sqlite::open(&options(directory.path())).unwrap();
    let unfinished = db.latest().unfinished().unwrap();
    assert!(unfinished.len() <= 1, "{unfinished:?}");
    let mut history = BTreeMap::<Tid, u64>::new();
    for number in 0..OBJECTS {
        let oid = Oid::new(number);
        let revisions = db.latest().history(oid.partition(PARTITIONS), oid, 0, u32::MAX).unwrap();
        for (tid, _) in revisions {
            *history.entry(tid).or_default() += 1;
        }
    }
    for (tid, count) in &history {
        assert_eq!(*count, OBJECTS, "half of {tid}");
        assert!(db.latest().transaction(tid.partition(PARTITIONS), *tid).unwrap().is_some());
    }
    for (ttid, promise) in promises {
        let tid = ttid.as_tid();
        let state = unfinished.get(ttid);
        match promise {
            _ if history.contains_key(&tid) => {}
            Promise::Unlocked => panic!("{ttid} was visible and is not any more"),
            Promise::Locked => assert_eq!(state, Some(&Some(tid)), "{ttid} was locked"),
            Promise::Voted => assert!(state.is_some(), "{ttid} was voted"),
        }
    }
    // As verification does, so that the next round begins with a clean state.
    db.begin(CommitLevel::Durable).unwrap();
    for (ttid, tid) in unfinished {
        execute(&mut db, Job::Write(Write::Validate { ttid, tid: tid.unwrap_or(ttid.as_tid()) }))
            .unwrap();
    }
    execute(&mut db, Job::Write(Write::DropUnfinished)).unwrap();
    db.commit().unwrap();
}
