// SPDX-License-Identifier: GPL-2.0-or-later
//! The server, a connection or a statement fails. What was promised is there, nothing is there by
//! half, and what can be done again without harm is.

use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use ::mysql::Conn;
use ::mysql::prelude::Queryable;
use neo_common::types::{Tid, Ttid};
use neo_storage::database::lane::{self, Lanes};
use neo_storage::database::*;

use super::Db;
use crate::harness::*;
use crate::server::{self, Scratch, Server};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A server of its own, that keeps what it promises; nothing where there is no server.
fn durable(settings: &[&str]) -> Option<(Server, Scratch)> {
    if !server::is_available() {
        return None;
    }
    let server = Server::start(&[server::DURABLE, settings].concat());
    let scratch = server.scratch();
    Some((server, scratch))
}

macro_rules! durable {
    ($($setting:expr),*) => {
        match durable(&[$($setting),*]) {
            Some(server) => server,
            None => return,
        }
    };
}

/// Kills all connections to a database. Returns how many.
fn kill_connections(server: &Server, scratch: &Scratch) -> usize {
    let mut admin = server.connect();
    let sql = "SELECT ID FROM information_schema.PROCESSLIST WHERE DB=?";
    let ids: Vec<u64> = admin.exec(sql, (&scratch.name,)).unwrap();
    for id in &ids {
        admin.query_drop(format!("KILL {id}")).unwrap();
    }
    ids.len()
}

/// Waits until a query on the server gives rows.
fn wait_until(admin: &mut Conn, sql: &str) {
    let deadline = Instant::now() + TIMEOUT;
    while admin.query_first::<::mysql::Row, _>(sql).unwrap().is_none() {
        assert!(Instant::now() < deadline, "{sql}");
        // InnoDB only looks again at its locks if nobody asked for 100 ms.
        thread::sleep(Duration::from_millis(150));
    }
}

fn voted(ttid: u64, object: u64, data: &str) -> Write {
    vote(ttid, vec![store(object, data)], Some(record(ttid, vec![oid(object)])))
}

fn lock(ttid: u64, tid: u64) -> Write {
    Write::Lock { ttid: Ttid::new(ttid), tid: Tid::new(tid), approve_pack: false }
}

fn unlock(ttid: u64, tid: u64) -> Write {
    Write::Unlock { ttid: Ttid::new(ttid), tid: Tid::new(tid), metadata: true }
}

fn unfinished(db: &mut Db) -> Vec<(u64, Option<u64>)> {
    match db.read(Read::Unfinished) {
        Done::Unfinished(all) => {
            all.into_iter().map(|(ttid, tid)| (ttid.get(), tid.map(Tid::get))).collect()
        }
        done => panic!("{done:?}"),
    }
}

/// Connections that are killed between two commits are replaced: nobody notices. The lock of the
/// database is taken again.
#[test]
fn idle_connections_are_replaced() {
    let (server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    db.write(voted(10, 1, "a"));
    assert_eq!(kill_connections(&server, &scratch), 2);
    db.write(lock(10, 13));
    // The reader was not used.
    assert_eq!(kill_connections(&server, &scratch), 1);
    db.write(unlock(10, 13));
    assert_eq!(db.history(1), [13]);
    assert_eq!(kill_connections(&server, &scratch), 2);
    assert_eq!(db.history(1), [13]);
    kill_connections(&server, &scratch);
    db.transaction(20, 23, 1, "b");
    assert_eq!(db.history(1), [23, 13]);
    assert!(matches!(scratch.open(CLUSTER, false), Err(Error::Locked)));
}

/// What was written and not committed is lost with the connection: the node stops, and nothing of it
/// is there.
#[test]
fn a_connection_lost_during_a_transaction_is_fatal() {
    let (server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    db.transaction(10, 13, 1, "a");
    // Long enough to be sent before the commit.
    db.execute(voted(20, 1, &"x".repeat(100_000)));
    kill_connections(&server, &scratch);
    let error = db.executor.commit().expect_err("the vote is lost");
    assert!(error.to_string().contains("lost"), "{error}");
    drop(db);
    let mut db = Db::open(&scratch);
    assert_eq!(unfinished(&mut db), []);
    assert_eq!(db.history(1), [13]);
    let orphans = Write::PruneOrphans { after: None, rows_max: 100, dry_run: true };
    let none = OrphanProgress { found: 0, deleted: 0, after: None };
    assert_eq!(db.write(orphans), Done::Orphans(none));
}

/// Statements that were not sent yet are sent on another connection.
#[test]
fn what_is_not_sent_is_not_lost() {
    let (server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    db.execute(voted(20, 1, "x"));
    kill_connections(&server, &scratch);
    db.executor.commit().unwrap();
    assert_eq!(unfinished(&mut db), [(20, None)]);
}

/// `kill -9` of the server between vote and lock, and between lock and unlock: it is waited for, and
/// the transaction goes on.
#[test]
fn a_server_that_is_killed_and_restarted() {
    let (mut server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    db.write(voted(10, 1, "a"));
    server.kill();
    server.spawn();
    // Started, not ready.
    assert_eq!(db.write(lock(10, 13)), Done::Finished);
    server.wait_until_ready();
    assert_eq!(unfinished(&mut db), [(10, Some(13))]);
    server.restart();
    assert_eq!(unfinished(&mut db), [(10, Some(13))]);
    server.restart();
    db.write(unlock(10, 13));
    server.restart();
    assert_eq!(db.history(1), [13]);
    assert_eq!(unfinished(&mut db), []);
}

/// The same, where the node ends with its server: what was promised is there when it comes back.
#[test]
fn a_server_and_its_node_are_killed() {
    let (mut server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    let mut again = |db: Db| {
        server.kill();
        drop(db);
        server.restart();
        Db::open(&scratch)
    };
    db.write(voted(10, 1, "a"));
    db = again(db);
    assert_eq!(unfinished(&mut db), [(10, None)]);
    db.write(lock(10, 13));
    db = again(db);
    assert_eq!(unfinished(&mut db), [(10, Some(13))]);
    // Verification.
    db.write(Write::Validate { ttid: Ttid::new(10), tid: Tid::new(13) });
    db.write(Write::DropUnfinished);
    db = again(db);
    assert_eq!(db.history(1), [13]);
    // Unlocked, not committed: it is still locked.
    db.write(voted(20, 1, "b"));
    db.write(lock(20, 23));
    db.execute(unlock(20, 23));
    db = again(db);
    assert_eq!(db.history(1), [13]);
    assert_eq!(unfinished(&mut db), [(20, Some(23))]);
    db.write(Write::Validate { ttid: Ttid::new(20), tid: Tid::new(23) });
    assert_eq!(db.history(1), [23, 13]);
}

/// A server that does not come back: the node stops, and says why.
#[test]
fn a_server_that_is_gone() {
    let (mut server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    server.kill();
    let start = Instant::now();
    let error = db.try_write(voted(10, 1, "a")).expect_err("there is no server");
    assert!(error.to_string().contains("connection to database"), "{error}");
    let error = db.try_read(Read::Unfinished).expect_err("there is no server");
    assert!(error.to_string().contains("connection to database"), "{error}");
    assert!(start.elapsed() > Duration::from_secs(4), "it is waited for a while");
}

/// A server that does not write each commit to disk may have lost some when it is killed: the node
/// must not go on as if nothing had happened.
#[test]
fn a_restarted_server_that_is_not_durable_is_not_trusted() {
    if !server::is_available() {
        return;
    }
    let mut server = Server::start(&["--innodb-flush-log-at-trx-commit=2"]);
    let scratch = server.scratch();
    let mut db = Db::with_table(&scratch);
    // Only a connection is lost: nothing else is.
    kill_connections(&server, &scratch);
    db.write(voted(10, 1, "a"));
    server.restart();
    let error = db.try_write(lock(10, 13)).expect_err("it is not trusted");
    assert!(error.to_string().contains("innodb_flush_log_at_trx_commit"), "{error}");
    let error = db.try_read(Read::Unfinished).expect_err("it is not trusted");
    assert!(error.to_string().contains("the server was restarted"), "{error}");
}

/// Somebody has the lock of a row: the statement is tried again, in the same transaction.
#[test]
fn a_lock_wait_timeout_is_waited_out() {
    let (server, scratch) = durable!("--innodb-lock-wait-timeout=1");
    let mut db = Db::with_table(&scratch);
    db.write(voted(10, 1, "a"));
    db.write(voted(20, 2, "b"));
    let mut other = scratch.connect();
    other.query_drop("START TRANSACTION").unwrap();
    other.query_drop("SELECT * FROM ttrans WHERE ttid=20 FOR UPDATE").unwrap();
    let busy = thread::spawn(move || {
        thread::sleep(Duration::from_millis(2500));
        other.query_drop("COMMIT").unwrap();
    });
    // The first two statements are applied once.
    db.execute(Write::Spill { partitions: PARTITIONS, objects: vec![store(4, "spilled")] });
    db.execute(lock(10, 13));
    db.execute(lock(20, 23));
    db.executor.commit().unwrap();
    busy.join().unwrap();
    assert_eq!(unfinished(&mut db), [(10, Some(13)), (20, Some(23))]);
    let timeouts = "SHOW GLOBAL STATUS WHERE Variable_name='Innodb_row_lock_waits' AND Value >= 2";
    assert!(server.connect().query_first::<::mysql::Row, _>(timeouts).unwrap().is_some());
    assert_eq!(super::number(&scratch, "SELECT COUNT(*) FROM data WHERE value='spilled'"), 1);
}

/// ... but not for ever.
#[test]
fn a_lock_that_is_never_released() {
    let (_server, scratch) = durable!("--innodb-lock-wait-timeout=1");
    let mut db = Db::with_table(&scratch);
    db.write(voted(10, 1, "a"));
    let mut other = scratch.connect();
    other.query_drop("START TRANSACTION").unwrap();
    other.query_drop("SELECT * FROM ttrans WHERE ttid=10 FOR UPDATE").unwrap();
    let error = db.try_write(lock(10, 13)).expect_err("it is busy");
    assert!(error.to_string().contains("others keep the database busy"), "{error}");
    drop((db, other));
    assert_eq!(unfinished(&mut Db::open(&scratch)), [(10, None)]);
}

/// Another process and the node wait for each other, and the server ends the transaction of the
/// node. If nothing of it was sent before, it is sent again; else the node stops.
#[test]
fn a_deadlock() {
    for was_sent in [false, true] {
        let (server, scratch) = durable!("--innodb-lock-wait-timeout=30");
        let mut db = Db::with_table(&scratch);
        db.write(voted(10, 1, "a"));
        db.write(voted(20, 2, "b"));
        // The one that changed more rows wins.
        scratch.run("CREATE TABLE other (id INT PRIMARY KEY) ENGINE=InnoDB");
        let mut other = scratch.connect();
        other.query_drop("START TRANSACTION").unwrap();
        other.query_drop("INSERT INTO other SELECT seq FROM seq_1_to_10000").unwrap();
        other.query_drop("SELECT * FROM ttrans WHERE ttid=20 FOR UPDATE").unwrap();
        let mut admin = server.connect();
        let busy = thread::spawn(move || {
            wait_until(&mut admin, "SELECT 1 FROM information_schema.INNODB_LOCK_WAITS");
            other.query_drop("SELECT * FROM ttrans WHERE ttid=10 FOR UPDATE").unwrap();
            other.query_drop("COMMIT").unwrap();
        });
        if was_sent {
            let objects = vec![store(4, &"x".repeat(100_000))];
            db.execute(Write::Spill { partitions: PARTITIONS, objects });
        }
        db.execute(lock(10, 13));
        db.execute(lock(20, 23));
        let committed = db.executor.commit();
        busy.join().unwrap();
        if was_sent {
            let error = committed.expect_err("it was rolled back").to_string();
            assert!(error.contains("rolled a transaction back"), "{error}");
            drop(db);
            db = Db::open(&scratch);
            assert_eq!(unfinished(&mut db), [(10, None), (20, None)]);
        } else {
            committed.unwrap();
            assert_eq!(unfinished(&mut db), [(10, Some(13)), (20, Some(23))]);
        }
    }
}

/// No space left: the node stops and says so; what was committed is there, and goes on once there is
/// space.
#[test]
fn a_full_disk() {
    let (mut server, scratch) = durable!(
        "--innodb-file-per-table=0",
        "--innodb-data-file-path=ibdata1:12M:autoextend:max:24M"
    );
    let mut db = Db::with_table(&scratch);
    db.transaction(10, 13, 1, "a");
    let mut ttid = 20;
    let mut promised = Vec::new();
    let error = loop {
        match db.try_write(voted(ttid, ttid, &"x".repeat(1 << 20))) {
            Ok(_) => promised.push((ttid, None)),
            Err(error) => break error,
        }
        ttid += 10;
        assert!(ttid < 1000, "there is always space");
    };
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(error.to_string().starts_with("no space left for the database"), "{error}");
    drop(db);
    server.set("--innodb-data-file-path=ibdata1:12M:autoextend");
    server.restart();
    let mut db = Db::open(&scratch);
    assert_eq!(unfinished(&mut db), promised);
    assert_eq!(db.history(1), [13]);
    db.write(voted(ttid, ttid, &"x".repeat(1 << 20)));
}

/// Connections of read lanes are killed all the time: each read is answered, and right.
#[test]
fn read_lanes_reconnect() {
    let (server, scratch) = durable!();
    let mut db = Db::with_table(&scratch);
    for number in 1..50 {
        db.transaction(10 * number, 10 * number, 1, &number.to_string());
    }
    drop(db);
    let database = Box::new(scratch.open(CLUSTER, false).unwrap());
    let mut lanes = Lanes::start(database, &lane::Options::new(Arc::new(|| {}))).unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    let name = scratch.name.clone();
    let started = Arc::new(Barrier::new(2));
    let barrier = started.clone();
    let killer = thread::spawn(move || {
        let mut admin = server.connect();
        let sql =
            "SELECT ID FROM information_schema.PROCESSLIST WHERE DB=? ORDER BY RAND() LIMIT 1";
        barrier.wait();
        let mut killed = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            if let Some(id) = admin.exec_first::<u64, _, _>(sql, (&name,)).unwrap() {
                // It may be gone already.
                killed += u32::from(admin.query_drop(format!("KILL {id}")).is_ok());
            }
            thread::sleep(Duration::from_millis(30));
        }
        (server, killed)
    });
    started.wait();
    let start = Instant::now();
    let mut reads = 0;
    while start.elapsed() < Duration::from_secs(3) {
        for number in 1..50 {
            let at = Some(Tid::new(10 * number));
            let read = Read::Load { partition: 1, oid: oid(1), at, before: None };
            lanes.submit(number, Job::Read(read));
        }
        let search = UndoSearch {
            partitions: PARTITIONS,
            ltid: None,
            undone_tid: Tid::new(490),
            objects: vec![(oid(1), None); 10],
        };
        lanes.submit(0, Job::Read(Read::FindUndo(search)));
        while lanes.in_flight() != 0 {
            match lanes.wait(TIMEOUT).expect("an answer") {
                (number, Done::Loaded(Loaded::Found(found))) => {
                    assert_eq!(found.tid.get(), 10 * number);
                    let next = if number == 49 { None } else { Some(Tid::new(10 * number + 10)) };
                    assert_eq!(found.next_tid, next);
                }
                (_, Done::Undo(found)) => {
                    let undo_tid = Some(Tid::new(480));
                    let current_tid = Tid::new(490);
                    let undo = UndoFound::Undo { current_tid, undo_tid, is_current: true };
                    assert_eq!(found, [undo; 10]);
                }
                other => panic!("{other:?}"),
            }
            reads += 1;
        }
    }
    drop(stop);
    let (_server, killed) = killer.join().unwrap();
    println!("{reads} reads, {killed} connections killed");
    assert!(killed > 20, "{killed}");
    lanes.stop();
}

/// A failure of the write lane ends the process: nothing is reported that did not happen.
#[test]
fn a_failure_is_not_silent() {
    let (mut server, scratch) = durable!();
    drop(Db::with_table(&scratch));
    let (sender, failures) = mpsc::channel();
    let on_failure = Arc::new(move |error: &Error| {
        // Lanes fail one after the other.
        let _ = sender.send(error.to_string());
    });
    let options = lane::Options { on_failure, ..lane::Options::new(Arc::new(|| {})) };
    let database = Box::new(scratch.open(CLUSTER, false).unwrap());
    let mut lanes = Lanes::start(database, &options).unwrap();
    server.kill();
    lanes.submit(1, Job::Write(voted(10, 1, "a")));
    let failure = failures.recv_timeout(TIMEOUT).unwrap();
    assert!(failure.contains("connection to database"), "{failure}");
    assert_eq!(lanes.stop(), Vec::new());
}
