// SPDX-License-Identifier: GPL-2.0-or-later
//! SQLite: what is opened, what is refused without a trace, and living with other processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use neo_common::types::Tid;
use neo_storage::database::executor::Executor;
use neo_storage::database::sqlite::{Options, Sqlite};
use neo_storage::database::*;
use rusqlite::Connection;
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use crate::harness::*;

fn path(directory: &TempDir) -> PathBuf {
    directory.path().join("neo.sqlite")
}

/// A database with a transaction, closed.
fn database() -> TempDir {
    let mut mirror = Mirror::with_table(false);
    mirror.transaction(10, 13, vec![store(1, "a")]);
    let Mirror { directory, sqlite, .. } = mirror;
    drop(sqlite);
    directory
}

fn raw(directory: &TempDir) -> Connection {
    Connection::open(path(directory)).unwrap()
}

/// Everything in the folder of the database, as digests.
fn snapshot(directory: &TempDir) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.display().to_string(), format!("{:x?}", Sha1::digest(fs::read(path).unwrap())))
        })
        .collect();
    files.sort();
    files
}

/// Opening fails and changes nothing.
fn refused(directory: &TempDir, options: &Options) -> Error {
    let before = snapshot(directory);
    let error = Sqlite::open(options).err().expect("it is refused");
    assert_eq!(snapshot(directory), before, "{error}");
    error
}

#[test]
fn a_newer_schema_is_refused() {
    let directory = database();
    raw(&directory).execute("UPDATE config SET value='5' WHERE name='version'", []).unwrap();
    let error = refused(&directory, &options_in(&directory, false));
    assert!(matches!(error, Error::Newer(5)), "{error:?}");
    assert!(error.to_string().contains("can not be downgraded"), "{error}");
}

#[test]
fn another_cluster_is_refused() {
    let directory = database();
    let options = Options { cluster: "other".into(), ..options_in(&directory, true) };
    let error = refused(&directory, &options);
    assert_eq!(error.to_string(), r#"name "other" does not match with the database: "test""#);
}

/// Also with a log that a killed node left behind: it is not even merged.
#[test]
fn a_refused_log_is_left_alone() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 13, vec![store(1, "a")]);
    let copy = tempfile::tempdir().unwrap();
    for name in ["neo.sqlite", "neo.sqlite-wal"] {
        fs::copy(db.directory.path().join(name), copy.path().join(name)).unwrap();
    }
    let options = Options { cluster: "other".into(), ..options_in(&copy, false) };
    let before = snapshot(&copy);
    assert!(matches!(Sqlite::open(&options), Err(Error::ForeignCluster { .. })));
    let mut after = snapshot(&copy);
    // An index of the log, that anybody makes who reads it.
    after.retain(|(name, _)| !name.ends_with("-shm"));
    assert_eq!(after, before);
    let mut db = Sqlite::open(&options_in(&copy, false)).unwrap();
    assert!(matches!(db.latest().load(1, oid(1), None, None), Ok(Loaded::Found(_))));
}

#[test]
fn unfinished_transactions_of_version_0_are_refused() {
    let directory = database();
    let sql = "DELETE FROM config WHERE name='version'; INSERT INTO tobj VALUES (0,0,1,NULL,NULL)";
    raw(&directory).execute_batch(sql).unwrap();
    let error = refused(&directory, &options_in(&directory, false));
    assert!(matches!(error, Error::Upgrade(_)), "{error:?}");
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options_in(&directory, false);
    fs::write(path(&directory), [b'x'; 4096]).unwrap();
    let error = refused(&directory, &options);
    assert!(matches!(error, Error::Corrupted(_)), "{error:?}");
    // A database with page checksums: our pages would have none.
    let mut content = fs::read(path(&database())).unwrap();
    content[20] = 8;
    fs::write(path(&directory), content).unwrap();
    let error = refused(&directory, &options);
    assert!(error.to_string().contains("cksumvfs"), "{error}");
    options.database = directory.path().join("missing/db").to_str().unwrap().into();
    let error = refused(&directory, &options);
    assert!(error.to_string().contains("missing/db"), "{error}");
}

/// A second node on the same file is refused, and does not disturb the first one: in particular, the
/// locks that SQLite has on the file stay.
#[test]
fn one_node_per_file() {
    let mut first = Mirror::with_table(false);
    first.transaction(10, 13, vec![store(1, "a")]);
    let inode = format!(":{} ", fs::metadata(path(&first.directory)).unwrap().ino());
    // Lines are missed if other processes come and go meanwhile.
    let locks = || {
        let count = |_| {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.lines().filter(|line| line.contains(&inode)).count()
        };
        (0..20).map(count).max().unwrap()
    };
    let before = locks();
    assert!(before > 0, "SQLite locks the file");
    for options in [
        options_in(&first.directory, false),
        Options { cluster: "other".into(), ..options_in(&first.directory, false) },
    ] {
        let error = Sqlite::open(&options).err().expect("it is refused");
        assert_eq!(error.to_string(), "error: database is locked");
        let error = Sqlite::reset(&options).expect_err("it is refused");
        assert!(matches!(error, Error::Locked), "{error:?}");
    }
    assert_eq!(locks(), before);
    first.transaction(20, 23, vec![store(1, "b")]);
    assert_eq!(first.history(1), [23, 13]);
}

/// `--reset` empties anything, `config.version` included.
#[test]
fn reset() {
    let directory = database();
    raw(&directory).execute("UPDATE config SET value='5' WHERE name='version'", []).unwrap();
    let options = Options { cluster: "other".into(), ..options_in(&directory, false) };
    Sqlite::reset(&options).unwrap();
    let mut db = Sqlite::open(&options).unwrap();
    let config = db.latest().config().unwrap();
    assert_eq!(config, StoredConfig { name: Some("other".into()), ..StoredConfig::default() });
    assert_eq!(db.latest().partition_table().unwrap(), []);
}

/// The index of deduplication is added on request, and used from then on without it.
#[test]
fn dedup_is_a_property_of_the_database() {
    let directory = database();
    let indices = |directory: &TempDir| -> i64 {
        let sql = "SELECT COUNT(*) FROM sqlite_master WHERE name='_data_i1'";
        raw(directory).query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(indices(&directory), 0);
    drop(Sqlite::open(&options_in(&directory, true)).unwrap());
    assert_eq!(indices(&directory), 1);
    let mut db = Sqlite::open(&options_in(&directory, false)).unwrap();
    db.begin(CommitLevel::Visible).unwrap();
    let objects = vec![store(2, "same"), store(4, "same")];
    let Done::Voted(Ok(())) = execute(&mut db, Job::Write(vote(20, objects, None))).unwrap() else {
        panic!("refused")
    };
    db.commit().unwrap();
    let sql = "SELECT COUNT(*) FROM data WHERE value=CAST('same' AS BLOB)";
    assert_eq!(raw(&directory).query_row(sql, [], |row| row.get::<_, i64>(0)), Ok(1));
}

fn journal_mode(directory: &TempDir) -> String {
    raw(directory).query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap()
}

fn with_query(directory: &TempDir, query: &str) -> Options {
    let options = options_in(directory, false);
    Options { database: format!("file:{}?{query}", options.database), ..options }
}

/// A write-ahead log unless another journal is asked for, for new and for existing databases.
#[test]
fn journal_modes() {
    let directory = database();
    assert_eq!(journal_mode(&directory), "wal");
    for mode in ["delete", "truncate", "wal", "persist"] {
        let query = format!("journal_mode={mode}&cache_size=100");
        drop(Sqlite::open(&with_query(&directory, &query)).unwrap());
        let found = journal_mode(&directory);
        // All but the log are modes of a connection.
        assert_eq!(found == "wal", mode == "wal", "{found}");
    }
    drop(Sqlite::open(&options_in(&directory, false)).unwrap());
    assert_eq!(journal_mode(&directory), "wal");
}

/// With a rollback journal, readers and the writer still work together.
#[test]
fn rollback_journal() {
    let directory = database();
    let db = Sqlite::open(&with_query(&directory, "journal_mode=delete&synchronous=off")).unwrap();
    assert!(!db.visible_delay().is_zero(), "commits are worth gathering");
    assert!(db.maintenance().unwrap().is_none());
    let mut db = Executor::new(Box::new(db)).unwrap();
    for number in 20..30 {
        let ttid = neo_common::types::Ttid::new(number);
        let record = record(number, vec![oid(1)]);
        db.submit(0, Job::Write(vote(number, vec![store(1, "b")], Some(record))));
        let tid = Tid::new(number + 30);
        db.submit(1, Job::Write(Write::Lock { ttid, tid, approve_pack: false }));
        db.submit(2, Job::Write(Write::Unlock { ttid, tid, metadata: true }));
        db.submit(3, Job::Read(Read::Load { partition: 1, oid: oid(1), at: None, before: None }));
        let (_, done) = db.run().unwrap().pop().unwrap();
        let Done::Loaded(Loaded::Found(revision)) = done else { panic!("{done:?}") };
        assert_eq!(revision.tid, tid);
    }
    assert!(fs::metadata(directory.path().join("neo.sqlite-wal")).is_err());
}

/// Another process reads while the node writes: nobody waits, and it sees whole transactions.
#[test]
fn others_may_read_at_any_time() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 13, vec![store(1, "a")]);
    let other = raw(&db.directory);
    let count = |connection: &Connection| -> i64 {
        connection.query_row("SELECT COUNT(*) FROM obj", [], |row| row.get(0)).unwrap()
    };
    other.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&other), 1);
    db.transaction(20, 23, vec![store(1, "b")]);
    db.execute(vote(30, vec![store(2, "c")], None));
    assert_eq!(count(&other), 1, "a snapshot does not change");
    assert_eq!(count(&raw(&db.directory)), 2);
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&other), 2);
    db.commit();
}

/// What is left by a node that did not close its database is complete for anybody who opens it.
#[test]
fn the_log_is_part_of_the_database() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 13, vec![store(1, "a")]);
    // As after `kill -9`: the files as they are, elsewhere.
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("neo.sqlite{suffix}");
        fs::copy(db.directory.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let connection = raw(&copy);
    let value: Vec<u8> =
        connection.query_row("SELECT value FROM data", [], |row| row.get(0)).unwrap();
    assert_eq!(value, b"a");
    // Also with another journal.
    drop(connection);
    drop(Sqlite::open(&with_query(&copy, "journal_mode=delete")).unwrap());
    assert_eq!(fs::read_dir(copy.path()).unwrap().count(), 1);
}

/// A row whose data is lost is not mistaken for a deletion.
#[test]
fn missing_data_is_an_error_for_the_client() {
    let directory = database();
    raw(&directory).execute("DELETE FROM data", []).unwrap();
    let mut db = Sqlite::open(&options_in(&directory, false)).unwrap();
    let loaded = db.latest().load(1, oid(1), None, None).unwrap();
    assert_eq!(loaded, Loaded::NotAtThatTid);
    let found = db.latest().fetch_objects(1, &[(Tid::new(13), oid(1))], 9).unwrap();
    assert_eq!(found, [None]);
}

/// Checkpoints happen beside the lanes, and lose nothing.
#[test]
fn the_log_is_checkpointed_in_background() {
    let directory = database();
    let db = Sqlite::open(&options_in(&directory, false)).unwrap();
    let mut maintenance = db.maintenance().unwrap().expect("a log needs checkpoints");
    let mut db = Executor::new(Box::new(db)).unwrap();
    let size = || fs::metadata(path(&directory)).unwrap().len();
    maintenance.run().unwrap();
    let before = size();
    let big = "x".repeat(5 << 20);
    db.submit(0, Job::Write(vote(20, vec![store(2, &big)], None)));
    db.run().unwrap();
    assert_eq!(size(), before, "it is in the log");
    maintenance.run().unwrap();
    assert!(size() > before + (5 << 20), "{}", size());
}
