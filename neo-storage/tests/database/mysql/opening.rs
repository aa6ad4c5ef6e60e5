// SPDX-License-Identifier: GPL-2.0-or-later
//! What is opened, what is refused without a trace, and what upstream finds in a database of ours.

use std::thread;
use std::time::Duration;

use ::mysql::prelude::Queryable;
use neo_common::types::{Tid, Ttid};
use neo_storage::database::mysql::{Engine, MySql, Options, Wait};
use neo_storage::database::*;

use super::{Db, number, scratch, snapshot};
use crate::harness::*;
use crate::server::{self, Scratch, Server};

/// Opening fails and changes nothing.
fn refused(scratch: &Scratch, options: &Options) -> Error {
    let before = snapshot(scratch);
    let error = MySql::open(options).err().expect("it is refused");
    assert_eq!(snapshot(scratch), before, "{error}");
    error
}

/// A database with a transaction, closed.
fn database() -> Option<Scratch> {
    let scratch = Scratch::new()?;
    let mut db = Db::with_table(&scratch);
    db.transaction(10, 13, 1, "a");
    Some(scratch)
}

macro_rules! database {
    () => {
        match database() {
            Some(scratch) => scratch,
            None => return,
        }
    };
}

#[test]
fn a_newer_schema_is_refused() {
    let scratch = database!();
    scratch.run("UPDATE config SET value='5' WHERE name='version'");
    let error = refused(&scratch, &scratch.options(CLUSTER, false));
    assert!(matches!(error, Error::Newer(5)), "{error:?}");
    assert!(error.to_string().contains("can not be downgraded"), "{error}");
}

#[test]
fn another_cluster_is_refused() {
    let scratch = database!();
    let error = refused(&scratch, &scratch.options("other", true));
    assert_eq!(error.to_string(), r#"name "other" does not match with the database: "test""#);
}

/// Two nodes never share a database, whichever of them is ours: upstream has the same lock.
#[test]
fn one_node_per_database() {
    let scratch = database!();
    let mut first = Db::open(&scratch);
    for options in [scratch.options(CLUSTER, false), scratch.options("other", false)] {
        let error = refused(&scratch, &options);
        assert_eq!(error.to_string(), "error: database is locked");
        let error = MySql::reset(&options).expect_err("it is refused");
        assert!(matches!(error, Error::Locked), "{error:?}");
    }
    first.transaction(20, 23, 1, "b");
    assert_eq!(first.history(1), [23, 13]);
    drop(first);

    let mut upstream = scratch.connect();
    let sql = format!("SELECT GET_LOCK('{}.neostorage', 5)", scratch.name);
    assert_eq!(upstream.query_first(sql).unwrap(), Some(1));
    let error = refused(&scratch, &scratch.options(CLUSTER, false));
    assert!(matches!(error, Error::Locked), "{error:?}");
    drop(upstream);
    // A node that is started again at once does not stumble over the one before.
    for _ in 0..5 {
        drop(scratch.open(CLUSTER, false).unwrap());
    }
}

#[test]
fn reset() {
    let scratch = database!();
    scratch.run("UPDATE config SET value='5' WHERE name='version'");
    MySql::reset(&scratch.options("other", false)).unwrap();
    assert_eq!(snapshot(&scratch), Vec::<String>::new());
    let mut db = scratch.open("other", false).unwrap();
    let config = db.latest().config().unwrap();
    assert_eq!(config, StoredConfig { name: Some("other".into()), ..StoredConfig::default() });
    assert_eq!(db.latest().partition_table().unwrap(), []);
}

#[test]
fn unusable_servers_and_databases_are_refused() {
    let scratch = scratch!();
    let connect = |database: &str| {
        let database = database.replace("SOCKET", scratch.socket.to_str().unwrap());
        let options = Options { database, ..scratch.options(CLUSTER, false) };
        MySql::open(&options).err().expect("it is refused").to_string()
    };
    let error = connect("root@neo_missingSOCKET");
    assert!(error.contains("neo_missing") && error.contains("1049"), "{error}");
    let error = connect("nobody:secret@neoSOCKET");
    assert!(error.contains("nobody") && !error.contains("secret"), "{error}");
    let error = connect("root@neo/no/such/socket");
    assert!(error.contains("/no/such/socket"), "{error}");
    assert!(connect("root@").contains("invalid database string"));
    assert!(Engine::parse("TokuDB").is_err());
    assert_eq!(Engine::parse("RocksDB").unwrap(), Engine::RocksDb);

    // An engine without transactions.
    drop(scratch.open(CLUSTER, false).unwrap());
    scratch.run("ALTER TABLE tobj ENGINE=MyISAM");
    let error = refused(&scratch, &scratch.options(CLUSTER, false));
    assert!(error.to_string().contains("MyISAM"), "{error}");
}

#[test]
fn small_packets_are_refused() {
    if !server::is_available() {
        return;
    }
    let server = Server::start(&["--max-allowed-packet=32M"]);
    let scratch = server.scratch();
    let error = refused(&scratch, &scratch.options(CLUSTER, false));
    assert!(error.to_string().contains("it must be 32769k at least"), "{error}");
}

/// `--wait`: a node may be started before its server.
#[test]
fn a_server_is_waited_for() {
    if !server::is_available() {
        return;
    }
    let mut server = Server::start(server::DURABLE);
    let scratch = server.scratch();
    server.kill();
    let options =
        Options { wait: Wait::AtMost(Duration::from_secs(60)), ..scratch.options(CLUSTER, false) };
    let opening = thread::spawn(move || MySql::open(&options).map(drop));
    thread::sleep(Duration::from_millis(100));
    assert!(!opening.is_finished());
    server.restart();
    opening.join().unwrap().unwrap();
}

/// Column for column, the tables are those that upstream makes.
#[test]
fn tables_are_those_of_upstream() {
    for (name, dedup) in [("main", false), ("dedup", true)] {
        let Some(upstream) = crate::reference::load(name) else { return };
        let ours = scratch!();
        drop(ours.open(CLUSTER, dedup).unwrap());
        let tables = |scratch: &Scratch| -> Vec<String> {
            let tables = snapshot(scratch).into_iter().filter(|row| row.starts_with("CREATE"));
            // The default character set is that of the server; all columns are binary.
            let text = |sql: String| sql.split(") ENGINE").next().unwrap().to_owned();
            tables.map(text).collect()
        };
        assert_eq!(tables(&ours), tables(&upstream));
    }
}

/// Only a new database gets the index of deduplication; an existing one keeps what it has.
#[test]
fn dedup_is_a_property_of_the_database() {
    let scratch = database!();
    drop(scratch.open(CLUSTER, true).unwrap());
    let index = "SELECT COUNT(*) FROM information_schema.STATISTICS \
        WHERE TABLE_SCHEMA=DATABASE() AND TABLE_NAME='data' AND INDEX_NAME='hash'";
    assert_eq!(number(&scratch, index), 0);

    let scratch = scratch!();
    drop(scratch.open(CLUSTER, true).unwrap());
    assert_eq!(number(&scratch, index), 2);
    let mut db = Db::open(&scratch);
    db.write(vote(20, vec![store(2, "same"), store(4, "same")], None));
    assert_eq!(number(&scratch, "SELECT COUNT(*) FROM data"), 1);
}

/// Databases of upstream before 1.4: one row per hash, whatever the compression.
#[test]
fn old_unique_indices_are_respected() {
    let scratch = database!();
    scratch.run(
        "ALTER TABLE data MODIFY id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT, \
         MODIFY value LONGBLOB NULL, ADD UNIQUE hash (hash)",
    );
    let mut db = Db::open(&scratch);
    db.transaction(20, 23, 2, "a");
    assert_eq!(number(&scratch, "SELECT COUNT(*) FROM data"), 1);
    let compressed = Content::Value(Value { compression: 1, ..value("a") });
    let object = ObjectRecord { oid: oid(4), data_tid: None, content: compressed };
    let refused = db.write(vote(30, vec![store(1, "new"), object], None));
    assert_eq!(refused, Done::Voted(Err(Refused::Collision(oid(4)))));
    assert_eq!(number(&scratch, "SELECT COUNT(*) FROM data"), 1);
}

/// What a background task of upstream planned to delete is deleted, if nothing refers to it.
#[test]
fn planned_deletions_are_done() {
    let scratch = database!();
    let mut db = Db::open(&scratch);
    db.write(vote(20, vec![store(1, "voted")], None));
    drop(db);
    scratch.run(
        "INSERT INTO data VALUES (77, REPEAT('x', 20), 0, 'orphan');
         INSERT INTO todel SELECT id FROM data; INSERT INTO todel VALUES (99)",
    );
    let mut db = Db::open(&scratch);
    assert_eq!(number(&scratch, "SELECT COUNT(*) FROM todel"), 0);
    assert_eq!(number(&scratch, "SELECT COUNT(*) FROM data"), 2);
    db.write(Write::Unlock { ttid: Ttid::new(20), tid: Tid::new(23), metadata: false });
    assert_eq!(db.history(1), [23, 13]);
}

/// Values that need several rows live and die like others.
#[test]
fn big_values() {
    let scratch = scratch!();
    let mut db = Db::with_table(&scratch);
    let big = |byte: &str, len| store(1, &byte.repeat(len));
    let chunks = "SELECT COUNT(*) FROM bigdata";
    let last = |db: &mut Db| {
        let read = Read::Load { partition: 1, oid: oid(1), at: None, before: None };
        let Done::Loaded(Loaded::Found(found)) = db.read(read) else { panic!("it is there") };
        found.value.unwrap().data
    };
    for (number_of, (len, rows)) in
        [(1, (16 << 20, 2)), (2, ((16 << 20) + 1, 5)), (3, ((16 << 20) - 1, 5))]
    {
        let object = big("x", len);
        let Content::Value(wanted) = object.content.clone() else { unreachable!() };
        db.write(vote(10 * number_of, vec![object], None));
        let (ttid, tid) = (Ttid::new(10 * number_of), Tid::new(10 * number_of));
        db.write(Write::Unlock { ttid, tid, metadata: false });
        assert_eq!(number(&scratch, chunks), rows);
        assert_eq!(last(&mut db), wanted.data);
    }
    let read = Read::History { partition: 1, oid: oid(1), offset: 0, length: 9 };
    let sizes = [(30, (16 << 20) - 1), (20, (16 << 20) + 1), (10, 16 << 20)];
    let sizes = sizes.map(|(tid, size)| (Tid::new(tid), size)).to_vec();
    assert_eq!(db.read(read), Done::History(sizes));
    db.write(vote(40, vec![big("y", 17 << 20)], None));
    assert_eq!(number(&scratch, chunks), 8);
    db.write(Write::Abort { ttid: Ttid::new(40), spilled: Vec::new() });
    assert_eq!(number(&scratch, chunks), 5);
    let scope = PackScope::Oids(vec![oid(1)]);
    db.write(Write::Pack { partition: 1, pack_tid: Tid::new(20), scope });
    assert_eq!(number(&scratch, chunks), 3);
}

/// What the columns have no room for is refused, and does not stop the node.
#[test]
fn long_metadata_is_refused() {
    let scratch = scratch!();
    let mut db = Db::with_table(&scratch);
    for (len, voted) in [(0xffff, Ok(())), (0x10000, Err(Refused::MetadataTooLong))] {
        let mut record = record(len, vec![oid(1)]);
        record.description = vec![b'x'; len as usize].into();
        let done = db.write(vote(len, vec![store(1, "a")], Some(record.clone())));
        assert_eq!(done, Done::Voted(voted));
        let info = TransactionInfo { tid: Tid::new(len), record, pack: None };
        let transactions = vec![ReplicatedTransaction { info }];
        let added = db.write(Write::AddTransactions { partitions: PARTITIONS, transactions });
        let conflict = ReplicationConflict::Transaction(Tid::new(len));
        assert_eq!(added, Done::Added(voted.map_err(|_| conflict)));
    }
}

/// The longest list of oids, with metadata as long as can be, where packets are as short as can be.
#[test]
fn transactions_of_many_objects() {
    if !server::is_available() {
        return;
    }
    let server = Server::start(&["--max-allowed-packet=32769K"]);
    let scratch = server.scratch();
    let mut db = Db::with_table(&scratch);
    let oids: Vec<_> = (0..(1 << 21) - 1).map(|number| oid(number << 40 | 0x5c)).collect();
    let mut record = record(20, oids.clone());
    let long = bytes::Bytes::from(vec![0xff; 0xffff]);
    (record.user, record.description, record.extension) = (long.clone(), long.clone(), long);
    let pack = PackOrder { approved: None, partial: true, oids: Some(oids), pack_tid: Tid::new(1) };
    let vote = Vote {
        ttid: Ttid::new(20),
        partitions: PARTITIONS,
        objects: vec![store(1, &"x".repeat((16 << 20) - 1)), store(2, &"x".repeat(65_000))],
        transaction: Some(record.clone()),
        pack: Some(pack.clone()),
    };
    assert_eq!(db.write(Write::Vote(Box::new(vote))), Done::Voted(Ok(())));
    let (ttid, tid) = (Ttid::new(20), Tid::new(23));
    db.write(Write::Unlock { ttid, tid, metadata: true });
    let info = TransactionInfo { tid, record, pack: Some(pack) };
    let read = |tid: Tid| Read::Transaction { partition: tid.partition(PARTITIONS), tid };
    assert_eq!(db.read(read(tid)), Done::Transactions(vec![Some(info.clone())]));
    let info = TransactionInfo { tid: Tid::new(33), ..info };
    let transactions = vec![ReplicatedTransaction { info: info.clone() }];
    let added = db.write(Write::AddTransactions { partitions: PARTITIONS, transactions });
    assert_eq!(added, Done::Added(Ok(())));
    assert_eq!(db.read(read(info.tid)), Done::Transactions(vec![Some(info)]));
}

/// A row whose data is lost is not mistaken for a deletion.
#[test]
fn missing_data_is_an_error_for_the_client() {
    let scratch = database!();
    scratch.run("DELETE FROM data");
    let mut db = Db::open(&scratch);
    let load = Read::Load { partition: 1, oid: oid(1), at: None, before: None };
    assert_eq!(db.read(load), Done::Loaded(Loaded::NotAtThatTid));
    let revisions = vec![(Tid::new(13), oid(1))];
    let fetch = Read::FetchObjects { partition: 1, revisions, bytes_max: 9 };
    assert_eq!(db.read(fetch), Done::Objects(vec![None]));
}

/// A vote of 1,000 objects, a lock and an unlock are a handful of statements each.
#[test]
fn statements_are_few() {
    if !server::is_available() {
        return;
    }
    let server = Server::start(server::DURABLE);
    let scratch = server.scratch();
    let mut db = Db::with_table(&scratch);
    db.transaction(10, 13, 1, "a");
    let count = |db: &mut Db, write: Write| {
        let mut admin = server.connect();
        let mut queries = || -> i64 {
            let row: Option<(String, i64)> =
                admin.query_first("SHOW GLOBAL STATUS LIKE 'Queries'").unwrap();
            row.unwrap().1
        };
        let before = queries();
        db.write(write);
        queries() - before - 1
    };
    let objects: Vec<_> = (0..1000).map(|number| store(number, &format!("{number}"))).collect();
    let oids = objects.iter().map(|object| object.oid).collect();
    let statements = count(&mut db, vote(20, objects, Some(record(20, oids))));
    assert!(statements <= 12, "vote: {statements}");
    let (ttid, tid) = (Ttid::new(20), Tid::new(23));
    let statements = count(&mut db, Write::Lock { ttid, tid, approve_pack: false });
    assert!(statements <= 4, "lock: {statements}");
    let statements = count(&mut db, Write::Unlock { ttid, tid, metadata: true });
    assert!(statements <= 8, "unlock: {statements}");
    assert_eq!(number(&scratch, "SELECT COUNT(*) FROM obj"), 1001);
}

/// The other engine, where the server has it.
#[test]
fn rocksdb() {
    if !server::is_available() {
        return;
    }
    let plugins = ["/usr/lib/mysql/plugin", "/usr/lib64/mysql/plugin", "/usr/lib/mariadb/plugin"];
    let has_plugin = |folder: &&str| std::path::Path::new(folder).join("ha_rocksdb.so").exists();
    let Some(folder) = plugins.iter().find(|folder| has_plugin(folder)) else {
        eprintln!("SKIPPED: RocksDB; install mariadb-plugin-rocksdb");
        return;
    };
    let plugin = format!("--plugin-dir={folder}");
    let server = Server::start(&[&plugin, "--plugin-load-add=ha_rocksdb"]);
    let scratch = server.scratch();
    let options = Options { engine: Engine::RocksDb, ..scratch.options(CLUSTER, true) };
    drop(MySql::open(&options).unwrap());
    let engines = "SELECT COUNT(*) FROM information_schema.TABLES \
        WHERE TABLE_SCHEMA=DATABASE() AND ENGINE='ROCKSDB'";
    assert_eq!(number(&scratch, engines), 10);
    let executor = executor::Executor::new(Box::new(MySql::open(&options).unwrap())).unwrap();
    let mut db = Db { executor };
    db.write(Write::SetNid(nid(1)));
    for number in 1..50 {
        db.transaction(number, number, number % 5, &format!("{number}"));
    }
    assert_eq!(db.history(4), (1..50).rev().filter(|tid| tid % 5 == 4).collect::<Vec<_>>());
    let scope = PackScope::From { min_oid: oid(0), oids_max: 100 };
    for partition in 0..PARTITIONS {
        let pack_tid = Tid::new(40);
        db.write(Write::Pack { partition, pack_tid, scope: scope.clone() });
    }
    assert_eq!(db.history(4), [49, 44, 39]);
    drop(db);
    assert_eq!(MySql::open(&options).unwrap().latest().unfinished().unwrap(), Unfinished::new());
}
