// SPDX-License-Identifier: GPL-2.0-or-later
//! Databases that upstream wrote, opened in place, must answer what upstream answers.
//!
//! They stand in `../shared/db/reference` beside the checkout (`NEO_SHARED` overrides `../shared`),
//! each with a manifest that upstream's own code made. A test fails if they are not found.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ::mysql::prelude::Queryable;
use flate2::read::DeflateDecoder;
use neo_common::types::{Oid, Partition, Tid, Ttid, ZERO_HASH};
use neo_storage::database::executor::Executor;
use neo_storage::database::memory::{self, Disk, Memory};
use neo_storage::database::sqlite::{self, Sqlite};
use neo_storage::database::*;
use serde_json::{Value as Json, json};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use crate::server::{self, Scratch};

fn folder() -> PathBuf {
    let shared = std::env::var_os("NEO_SHARED").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let folder = shared.unwrap_or_else(default).join("db/reference");
    assert!(folder.is_dir(), "{} is missing: set NEO_SHARED", folder.display());
    folder
}

fn manifest(name: &str) -> Json {
    let path = folder().join(format!("{name}.manifest.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of a reference database.
struct Reference {
    db: Executor<u32>,
    place: Place,
}

/// Where the copy is.
enum Place {
    Directory(TempDir),
    Server(Scratch),
}

/// A file of the folder, maybe compressed.
fn content(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    match fs::read(&path) {
        Ok(content) => content,
        Err(_) => unzip(&fs::read(folder().join(format!("{name}.zip"))).unwrap()),
    }
}

fn copy(name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("db"), content(&format!("{name}.sqlite"))).unwrap();
    directory
}

/// Loads a dump. `None` if there is no server.
pub fn load(name: &str) -> Option<Scratch> {
    let scratch = Scratch::new()?;
    let dump = String::from_utf8(content(&format!("{name}.mysql.sql"))).unwrap();
    let mut connection = scratch.connect();
    for statement in dump.split_inclusive(";\n") {
        connection.query_drop(statement).unwrap();
    }
    Some(scratch)
}

/// The only file of a zip archive, found through the central directory.
fn unzip(archive: &[u8]) -> Vec<u8> {
    let number = |at: usize, size: usize| {
        archive[at..at + size].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let end = archive.windows(4).rposition(|window| window == b"PK\x05\x06").unwrap();
    assert_eq!(number(end + 10, 2), 1, "files in the archive");
    let entry = number(end + 16, 4);
    let (compressed, size, local) =
        (number(entry + 20, 4), number(entry + 24, 4), number(entry + 42, 4));
    assert_eq!(number(entry + 10, 2), 8, "deflate");
    let start = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    let mut content = Vec::with_capacity(size);
    DeflateDecoder::new(&archive[start..start + compressed]).read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), size);
    content
}

impl Reference {
    fn open(name: &str, cluster: &str) -> Self {
        Self::open_in(copy(name), cluster)
    }

    fn open_in(directory: TempDir, cluster: &str) -> Self {
        let options = sqlite::Options {
            database: directory.path().join("db").to_str().unwrap().into(),
            cluster: cluster.into(),
            ..sqlite::Options::default()
        };
        let db = Sqlite::open(&options).unwrap();
        Self { db: Executor::new(Box::new(db)).unwrap(), place: Place::Directory(directory) }
    }

    fn open_on_server(scratch: Scratch, cluster: &str) -> Self {
        let db = scratch.open(cluster, false).unwrap();
        Self { db: Executor::new(Box::new(db)).unwrap(), place: Place::Server(scratch) }
    }

    /// The databases of this name, of each kind that there is.
    fn all(name: &str) -> Vec<Self> {
        let cluster = |kind: &str| {
            let file = format!("{name}.{kind}");
            let exists = folder().join(format!("{file}.manifest.json")).exists();
            exists.then(|| manifest(&file)["name"].as_str().unwrap().to_owned())
        };
        let mut all = Vec::new();
        if let Some(cluster) = cluster("sqlite") {
            all.push(Self::open(name, &cluster));
        }
        if let Some(cluster) = cluster("mysql") {
            all.extend(load(name).map(|scratch| Self::open_on_server(scratch, &cluster)));
        }
        all
    }

    /// Kind of database, as in names of files.
    fn kind(&self) -> &'static str {
        match self.place {
            Place::Directory(_) => "sqlite",
            Place::Server(_) => "mysql",
        }
    }

    fn write(&mut self, job: Write) -> Done {
        self.db.submit(0, Job::Write(job));
        self.db.run().unwrap().pop().unwrap().1
    }

    fn read(&mut self, read: Read) -> Done {
        read_on(&mut self.db, read)
    }

    /// Rows of a query on a connection of its own, as JSON.
    fn query(&self, sql: &str) -> Vec<Json> {
        match &self.place {
            Place::Directory(directory) => Self::query_file(directory, sql),
            Place::Server(scratch) => Self::query_server(scratch, sql),
        }
    }

    fn query_server(scratch: &Scratch, sql: &str) -> Vec<Json> {
        let sql = sql.replace("partition", "`partition`");
        let rows: Vec<::mysql::Row> = scratch.connect().exec(sql, ()).unwrap();
        let cell = |value: ::mysql::Value| match value {
            ::mysql::Value::NULL => Json::Null,
            ::mysql::Value::Int(number) => number.into(),
            ::mysql::Value::UInt(number) => number.into(),
            ::mysql::Value::Bytes(bytes) => hex(&bytes).to_uppercase().into(),
            value => panic!("{value:?}"),
        };
        let row = |row: ::mysql::Row| {
            let columns = row.columns();
            let names = columns.iter().map(|column| column.name_str().into_owned());
            names.zip(row.unwrap()).map(|(name, value)| (name, cell(value))).collect()
        };
        rows.into_iter().map(row).collect()
    }

    fn query_file(directory: &TempDir, sql: &str) -> Vec<Json> {
        let connection = rusqlite::Connection::open(directory.path().join("db")).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        let names: Vec<_> = statement.column_names().map(String::from).collect();
        let rows = statement.query_map([], |row| {
            let cell = |index| match row.get_ref_unwrap(index) {
                rusqlite::types::ValueRef::Null => Json::Null,
                rusqlite::types::ValueRef::Integer(number) => number.into(),
                rusqlite::types::ValueRef::Real(number) => number.into(),
                value => hex(value.as_bytes().unwrap()).to_uppercase().into(),
            };
            Ok(names.iter().enumerate().map(|(index, name)| (name.clone(), cell(index))).collect())
        });
        rows.unwrap().map(Result::unwrap).collect()
    }
}

fn read_on(db: &mut Executor<u32>, read: Read) -> Done {
    db.submit(0, Job::Read(read));
    db.read().unwrap().unwrap().1
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tid(json: &Json) -> Tid {
    Tid::new(u64::from_str_radix(json.as_str().unwrap(), 16).unwrap())
}

fn oid(text: &str) -> Oid {
    Oid::new(u64::from_str_radix(text, 16).unwrap())
}

fn optional(tid: Option<Tid>) -> Json {
    tid.map_or(Json::Null, |tid| tid.to_string().into())
}

fn partitions_of(manifest: &Json) -> (u32, Vec<Partition>) {
    let readable = manifest["readable_partitions"].as_array().unwrap();
    let readable = readable.iter().map(|p| p.as_u64().unwrap() as Partition).collect();
    (manifest["partitions"].as_u64().unwrap() as u32, readable)
}

/// Everything that a manifest says, except raw tables.
fn check(db: &mut Executor<u32>, manifest: &Json) {
    let (partitions, readable) = partitions_of(manifest);
    let Done::Config(config) = read_on(db, Read::Config) else { panic!("config") };
    assert_eq!(json!(config.name), manifest["name"]);
    assert_eq!(json!(config.nid.map(|nid| nid.get())), manifest["own_nid"]);
    assert_eq!(json!(config.ptid), manifest["ptid"]);
    assert_eq!(json!(config.replicas), manifest["replicas"]);
    assert_eq!(optional(config.backup_tid), manifest["backup_tid"]);
    assert_eq!(optional(config.truncate_tid), manifest["truncate_tid"]);

    let Done::LastIds(ids) = read_on(db, Read::LastIds { readable: readable.clone() }) else {
        panic!("last ids")
    };
    assert_eq!(optional(ids.last_tid), manifest["last_tid"]);
    assert_eq!(json!(ids.last_oid.map(|oid| oid.to_string())), manifest["last_oid"]);
    assert_eq!(json!(ids.first_tid.to_string()), manifest["first_tid"]);

    let Done::PackedCells(packed) = read_on(db, Read::PackedCells) else { panic!("packed") };
    let packed = packed.iter().map(|c| (c.partition.to_string(), json!(c.pack_id.to_string())));
    assert_eq!(Json::Object(packed.collect()), manifest["packed_ids"]);
    let orders = Read::PackOrders { readable: readable.clone(), partitions, min_id: Tid::ZERO };
    let Done::PackOrders(orders) = read_on(db, orders) else { panic!("orders") };
    assert_eq!(Json::Array(orders.iter().map(order).collect()), manifest["pack_orders"]);
    let Done::Unfinished(unfinished) = read_on(db, Read::Unfinished) else { panic!("unfinished") };
    let unfinished = unfinished.iter().map(|(ttid, tid)| (ttid.to_string(), optional(*tid)));
    assert_eq!(Json::Object(unfinished.collect()), manifest["unfinished"]);

    check_transactions(db, manifest, partitions, &readable);
    for (text, revisions) in manifest["objects"].as_object().unwrap() {
        if readable.contains(&oid(text).partition(partitions)) {
            check_object(db, partitions, oid(text), revisions.as_array().unwrap());
        }
    }
    check_digests(db, manifest, partitions);
    check_undo(db, manifest, partitions);

    let Done::CellNextTids(next) = read_on(db, Read::CellNextTids) else { panic!("next tids") };
    let next = next.iter().map(|(partition, next)| match next {
        CellNext::OutOfDate(tid) => json!([partition, tid.to_string()]),
        CellNext::Backup(trans, obj) => json!([partition, [trans.to_string(), obj.to_string()]]),
        CellNext::Readable => json!([partition, null]),
    });
    assert_eq!(Json::Array(next.collect()), manifest["cell_next_tids"]);
}

fn order((id, order): &(Tid, PackOrder)) -> Json {
    let oids = order.oids.as_ref();
    let oids = oids.map(|oids| oids.iter().map(|oid| oid.to_string()).collect::<Vec<_>>());
    json!({"tid": id.to_string(), "approved": order.approved, "partial": order.partial,
           "oids": oids, "pack_tid": order.pack_tid.to_string()})
}

fn check_transactions(
    db: &mut Executor<u32>,
    manifest: &Json,
    partitions: u32,
    readable: &[Partition],
) {
    let mut tids = Vec::new();
    for expected in manifest["transactions"].as_array().unwrap() {
        let partition = expected["partition"].as_u64().unwrap() as Partition;
        if !readable.contains(&partition) {
            continue;
        }
        let tid = tid(&expected["tid"]);
        tids.push(tid);
        assert_eq!(tid.partition(partitions), partition);
        let read = read_on(db, Read::Transaction { partition, tid });
        let Done::Transactions(infos) = read else { panic!("transactions") };
        let info = infos[0].as_ref().unwrap();
        let record = &info.record;
        let pack = info.pack.as_ref().map(|pack| order(&(tid, pack.clone())));
        let oids: Vec<_> = record.oids.iter().map(|oid| oid.to_string()).collect();
        let mut found = json!({
            "tid": tid.to_string(), "partition": partition, "ttid": record.ttid.to_string(),
            "user": hex(&record.user), "description": hex(&record.description),
            "ext": hex(&record.extension), "packed": record.packed, "oids": oids, "pack": pack,
        });
        if let (Some(pack), Some(expected)) =
            (found["pack"].as_object_mut(), expected["pack"].as_object())
        {
            pack.retain(|key, _| expected.contains_key(key));
        }
        assert_eq!(found, *expected);
        let final_tid = read_on(db, Read::FinalTid { partition, ttid: record.ttid });
        assert_eq!(final_tid, Done::FinalTid(Some(tid)));
    }
    let all = Read::Tids { partitions: readable.to_vec(), offset: 0, length: u32::MAX };
    tids.reverse();
    assert_eq!(read_on(db, all), Done::Tids(tids));
}

fn check_object(db: &mut Executor<u32>, partitions: u32, oid: Oid, revisions: &[Json]) {
    let partition = oid.partition(partitions);
    let mut history = Vec::new();
    for expected in revisions {
        let at = tid(&expected["tid"]);
        let read = |at, before| Read::Load { partition, oid, at, before };
        let Done::Loaded(Loaded::Found(found)) = read_on(db, read(Some(at), None)) else {
            panic!("{oid} at {at}")
        };
        assert_eq!(found.tid, at);
        assert_eq!(optional(found.next_tid), expected["next_tid"]);
        assert_eq!(optional(found.data_tid), expected["data_tid"]);
        match &found.value {
            None => assert_eq!(expected["deleted"], json!(true)),
            Some(value) => {
                assert_eq!(expected.get("deleted"), None);
                assert_eq!(json!(value.compression), expected["compression"]);
                assert_eq!(json!(hex(&value.checksum)), expected["checksum"]);
                assert_eq!(json!(value.data.len()), expected["stored_size"]);
                let checksum: [u8; 20] = Sha1::digest(&value.data).into();
                assert_eq!(checksum, value.checksum);
            }
        }
        history.push((at, found.value.as_ref().map_or(0, |value| value.data.len() as u64)));
        // The same revision, found from what follows it.
        let before = found.next_tid.or(at.next());
        let same = Done::Loaded(Loaded::Found(found));
        assert_eq!(read_on(db, read(None, before)), same);
        if expected["next_tid"].is_null() {
            assert_eq!(read_on(db, read(None, None)), same);
        }
    }
    history.reverse();
    let read = Read::History { partition, oid, offset: 0, length: u32::MAX };
    assert_eq!(read_on(db, read), Done::History(history));
}

fn check_digests(db: &mut Executor<u32>, manifest: &Json, partitions: u32) {
    let (min_tid, max_tid, length) = (Tid::ZERO, Tid::MAX, u32::MAX);
    for (partition, expected) in manifest["check"].as_object().unwrap() {
        let partition = partition.parse().unwrap();
        let read = Read::CheckTidRange { partition, min_tid, max_tid, length };
        let Done::TidDigest(digest) = read_on(db, read) else { panic!("digest") };
        let found = json!([digest.count, hex(&digest.checksum), digest.max_tid.to_string()]);
        assert_eq!(found, expected["tid_range"]);
        let min_oid = Oid::ZERO;
        let read = Read::CheckSerialRange { partition, min_tid, min_oid, max_tid, length };
        let Done::SerialDigest(digest) = read_on(db, read) else { panic!("digest") };
        let (tids, oids) = (hex(&digest.tid_checksum), hex(&digest.oid_checksum));
        let (tid, oid) = (digest.max_tid.to_string(), digest.max_oid.to_string());
        assert_eq!(json!([digest.count, tids, tid, oids, oid]), expected["serial_range"]);
    }
    for (partition, expected) in manifest["live_oids"].as_object().unwrap() {
        let partition = partition.parse().unwrap();
        let (min_oid, tid) = (Oid::ZERO, Tid::MAX);
        let read = Read::OidsFrom { partition, partitions, min_oid, tid, length };
        let Done::Oids(found) = read_on(db, read) else { panic!("oids") };
        let found: Vec<_> = found.oids.iter().map(|oid| oid.to_string()).collect();
        assert_eq!(json!(found), *expected);
    }
}

fn check_undo(db: &mut Executor<u32>, manifest: &Json, partitions: u32) {
    for case in manifest["find_undo"].as_array().unwrap() {
        let search = UndoSearch {
            partitions,
            ltid: Some(tid(&case["ltid"])),
            undone_tid: tid(&case["undo_tid"]),
            objects: vec![(oid(case["oid"].as_str().unwrap()), None)],
        };
        let Done::Undo(found) = read_on(db, Read::FindUndo(search)) else { panic!("undo") };
        let found = match found[0] {
            UndoFound::NothingToUndo => Json::Null,
            UndoFound::NotVisible => json!([null, null, false]),
            UndoFound::Undo { current_tid, undo_tid, is_current } => {
                json!([current_tid.to_string(), optional(undo_tid), is_current])
            }
        };
        assert_eq!(found, case["result"], "{case}");
    }
}

/// Raw tables, on a connection that does not go through our code.
fn check_tables(reference: &Reference, manifest: &Json) {
    for (table, count) in manifest["rows"].as_object().unwrap() {
        let rows = reference.query(&format!("SELECT COUNT(*) AS n FROM {table}"));
        assert_eq!(rows[0]["n"], *count, "rows of {table}");
    }
    let pt = reference.query("SELECT partition, nid, tid, pack FROM pt ORDER BY partition, nid");
    assert_eq!(json!(pt), manifest["pt"]);
    if reference.kind() == "sqlite" {
        let integrity = reference.query("PRAGMA integrity_check");
        assert_eq!(integrity[0]["integrity_check"], json!(hex(b"ok").to_uppercase()));
    }
    if manifest.get("objects").is_some() {
        for (text, revisions) in manifest["objects"].as_object().unwrap() {
            let sql = format!("SELECT data_id FROM obj WHERE oid={} ORDER BY tid", oid(text).get());
            let ids =
                revisions.as_array().unwrap().iter().map(|row| json!({"data_id": row["data_id"]}));
            assert_eq!(reference.query(&sql), ids.collect::<Vec<_>>(), "data ids of {text}");
        }
    }
}

#[test]
fn every_database_is_served_as_its_manifest_says() {
    let (mut sqlite, mut mysql) = (0, 0);
    for entry in fs::read_dir(folder()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(file) = file.strip_suffix(".manifest.json") else { continue };
        let manifest = manifest(file);
        let cluster = manifest["name"].as_str().unwrap_or_default();
        println!("{file}");
        let mut reference = match file.rsplit_once('.') {
            Some((name, "sqlite")) => {
                sqlite += 1;
                Reference::open(name, cluster)
            }
            Some((name, "mysql")) => {
                let Some(scratch) = load(name) else { continue };
                mysql += 1;
                Reference::open_on_server(scratch, cluster)
            }
            _ => continue,
        };
        check_tables(&reference, &manifest);
        check(&mut reference.db, &manifest);
        let orphans = reference.query(
            "SELECT id FROM data WHERE NOT EXISTS (SELECT 1 FROM obj WHERE data_id=id) ORDER BY id",
        );
        let orphans: Vec<_> = orphans.iter().map(|row| row["id"].clone()).collect();
        assert_eq!(json!(orphans), manifest["orphan_data_ids"]);
    }
    assert!(sqlite >= 13, "{sqlite} databases");
    assert!(mysql >= 5 || !server::is_available(), "{mysql} databases");
}

/// A storage that gets everything by replication serves the same, whatever the backend.
#[test]
fn databases_are_replicated() {
    for name in ["main", "dedup", "packs-S1", "packs-S2", "packs-S3", "big"] {
        for mut source in Reference::all(name) {
            let manifest = manifest(&format!("{name}.{}", source.kind()));
            let cluster = manifest["name"].as_str().unwrap();
            let memory = Memory::open(&Disk::new(), cluster, memory::Options::default()).unwrap();
            let mut target = Executor::new(Box::new(memory)).unwrap();
            replicate(&mut source, &mut target, &manifest);
            check(&mut target, &manifest);
            let Some(scratch) = Scratch::new() else { continue };
            let db = scratch.open(cluster, name == "dedup").unwrap();
            let mut target = Executor::new(Box::new(db)).unwrap();
            replicate(&mut source, &mut target, &manifest);
            check(&mut target, &manifest);
        }
    }
}

fn replicate(source: &mut Reference, target: &mut Executor<u32>, manifest: &Json) {
    let (partitions, readable) = partitions_of(manifest);
    let Done::Config(config) = source.read(Read::Config) else { panic!("config") };
    let Done::PartitionTable(cells) = source.read(Read::PartitionTable) else { panic!("table") };
    let mut write = |write| {
        target.submit(0, Job::Write(write));
        target.run().unwrap().pop().unwrap().1
    };
    write(Write::SetNid(config.nid.unwrap()));
    write(Write::ChangePartitionTable(PartitionTableChange {
        ptid: config.ptid.unwrap(),
        replicas: config.replicas.unwrap(),
        cells,
        scope: ChangeScope::Full,
        last_pack_id: Tid::ZERO,
        drop_temporary: Vec::new(),
        release: Vec::new(),
    }));
    for (partition, pack_id) in manifest["packed_ids"].as_object().unwrap() {
        write(Write::SetPacked { partition: partition.parse().unwrap(), pack_id: tid(pack_id) });
    }
    for partition in readable {
        let (min_tid, min_oid, max_tid, length) = (Tid::ZERO, Oid::ZERO, Tid::MAX, u32::MAX);
        let read = Read::TidsFrom { partition, min_tid, max_tid, length };
        let Done::Tids(tids) = source.read(read) else { panic!("tids") };
        let Done::Transactions(infos) = source.read(Read::FetchTransactions { partition, tids })
        else {
            panic!("transactions")
        };
        let transactions =
            infos.into_iter().map(|info| ReplicatedTransaction { info: info.unwrap() });
        let transactions = transactions.collect();
        let added = write(Write::AddTransactions { partitions, transactions });
        assert_eq!(added, Done::Added(Ok(())));
        let read = Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length };
        let Done::Revisions(revisions) = source.read(read) else { panic!("revisions") };
        let fetch =
            Read::FetchObjects { partition, revisions: revisions.clone(), bytes_max: usize::MAX };
        let Done::Objects(objects) = source.read(fetch) else { panic!("objects") };
        let objects = revisions.iter().zip(objects).map(|(&(tid, oid), revision)| {
            let Revision { value, data_tid, .. } = revision.unwrap();
            let content = value.map_or(Content::Deleted, Content::Value);
            ReplicatedObject { tid, object: ObjectRecord { oid, data_tid, content } }
        });
        let objects = objects.collect();
        assert_eq!(write(Write::AddObjects { partitions, objects }), Done::Added(Ok(())));
    }
}

/// Verification and start of operation: what is locked is validated, the rest is dropped.
#[test]
fn unfinished_transactions_are_verified() {
    // On the node without metadata, the tid comes from the other one.
    let others = [("unfinished2-S2", "unfinished2-S1")];
    for name in ["unfinished", "unfinished2-S1", "unfinished2-S2"] {
        for mut reference in Reference::all(name) {
            let source = others.iter().find(|(other, _)| *other == name).map_or(name, |(_, s)| s);
            let source = manifest(&format!("{source}.{}", reference.kind()));
            for (ttid, tid_or_null) in source["unfinished"].as_object().unwrap() {
                if !tid_or_null.is_null() {
                    let ttid = Ttid::new(oid(ttid).get());
                    reference.write(Write::Validate { ttid, tid: tid(tid_or_null) });
                }
            }
            reference.write(Write::DropUnfinished);
            let mut after = manifest(&format!("{name}.after"));
            if reference.kind() == "mysql" {
                // What is different is whose database it is.
                let before = manifest(&format!("{name}.mysql"));
                for key in ["own_nid", "pt", "cell_next_tids", "packed_ids"] {
                    after[key] = before[key].clone();
                }
            }
            check_tables(&reference, &after);
            check(&mut reference.db, &after);
        }
    }
}

#[test]
fn a_planned_truncation_is_executed() {
    for rows_max in [7, 100_000] {
        let mut reference = Reference::open("truncate", "main");
        while reference.write(Write::Truncate { rows_max })
            != Done::Progress(Progress { deleted: 0, done: true })
        {}
        let after = manifest("truncate.after");
        check_tables(&reference, &after);
        check(&mut reference.db, &after);
    }
}

/// A node that was run with --disable-pack catches up, and becomes equal to one that packed.
#[test]
fn pack_orders_are_processed_like_upstream() {
    let expected = manifest("packs-S1.sqlite");
    let mut reference = Reference::open("packs-S3", expected["name"].as_str().unwrap());
    let (partitions, readable) = partitions_of(&expected);
    let orders = Read::PackOrders { readable: readable.clone(), partitions, min_id: Tid::ZERO };
    let Done::PackOrders(orders) = reference.read(orders) else { panic!("orders") };
    for (pack_id, order) in orders.iter().filter(|(_, order)| order.approved == Some(true)) {
        for &partition in &readable {
            let mut scope = match &order.oids {
                None => Some(PackScope::From { min_oid: Oid::ZERO, oids_max: 2 }),
                Some(oids) => {
                    let own = oids.iter().filter(|oid| oid.partition(partitions) == partition);
                    Some(PackScope::Oids(own.copied().collect()))
                }
            };
            while let Some(current) = scope {
                let pack = Write::Pack { partition, pack_tid: order.pack_tid, scope: current };
                let Done::Packed(progress) = reference.write(pack) else { panic!("packed") };
                scope = progress.next_oid.map(|min_oid| PackScope::From { min_oid, oids_max: 2 });
            }
            reference.write(Write::SetPacked { partition, pack_id: *pack_id });
        }
    }
    // Both nodes have their own nid and data ids; what they serve is the same.
    let mut found = reference;
    for key in ["objects", "transactions", "live_oids", "check", "find_undo"] {
        assert!(expected.get(key).is_some(), "{key}");
    }
    for (text, revisions) in expected["objects"].as_object().unwrap() {
        check_object(&mut found.db, partitions, oid(text), revisions.as_array().unwrap());
    }
    check_transactions(&mut found.db, &expected, partitions, &readable);
    check_digests(&mut found.db, &expected, partitions);
    check_undo(&mut found.db, &expected, partitions);
    let rows = found.query("SELECT COUNT(*) AS n FROM data");
    assert_eq!(rows[0]["n"], expected["rows"]["data"]);
}

/// Old schemas are upgraded, also when upstream was interrupted in the middle of it.
#[test]
fn old_versions_are_upgraded() {
    type Damage = fn(&rusqlite::Connection);
    let untouched: Damage = |_| {};
    const VERSION_1: &str = "UPDATE config SET value='1' WHERE name='version' AND value='2'";
    let half_copied: Damage = |connection| {
        connection
            .execute_batch("CREATE TABLE new_pt (a INTEGER); CREATE TABLE new_obj (b)")
            .unwrap();
        assert_eq!(connection.execute(VERSION_1, []), Ok(1));
    };
    let not_renamed: Damage = |connection| {
        connection.execute_batch("ALTER TABLE obj RENAME TO new_obj").unwrap();
        assert_eq!(connection.execute(VERSION_1, []), Ok(1));
    };
    for (name, damage) in [
        ("migrate-v3", untouched),
        ("migrate-v2", untouched),
        ("migrate-v2", half_copied),
        ("migrate-v2", not_renamed),
    ] {
        let directory = copy(name);
        let connection = rusqlite::Connection::open(directory.path().join("db")).unwrap();
        if name == "migrate-v2" {
            damage(&connection);
        }
        drop(connection);
        let mut reference = Reference::open_in(directory, "main");
        let after = manifest(&format!("{name}.after"));
        check_tables(&reference, &after);
        let ddl = reference.query("SELECT sql FROM sqlite_master WHERE type='table' ORDER BY name");
        let found = ddl.iter().map(|row| {
            let text = row["sql"].as_str().unwrap();
            let bytes = (0..text.len()).step_by(2);
            let bytes = bytes.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap());
            normalized(&String::from_utf8(bytes.collect()).unwrap())
        });
        let expected = after["ddl"].as_array().unwrap();
        let expected = expected.iter().map(|sql| normalized(sql.as_str().unwrap()));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        // The content is that of the database that it was made from.
        let main = manifest("main.sqlite");
        let (partitions, readable) = partitions_of(&main);
        for (text, revisions) in main["objects"].as_object().unwrap() {
            check_object(&mut reference.db, partitions, oid(text), revisions.as_array().unwrap());
        }
        check_transactions(&mut reference.db, &main, partitions, &readable);
    }
}

/// A definition without comments, quotes and white space.
fn normalized(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap());
    let text: String = lines.collect::<Vec<_>>().join(" ").replace('"', "");
    text.split_whitespace().collect::<String>().to_lowercase()
}

/// An empty range has the digest of nothing.
#[test]
fn the_digest_of_nothing() {
    let mut reference = Reference::open("main", "main");
    let (min_tid, max_tid, length) = (Tid::new(5), Tid::new(4), 9);
    let read = Read::CheckTidRange { partition: 0, min_tid, max_tid, length };
    let nothing = TidDigest { count: 0, checksum: ZERO_HASH, max_tid: Tid::ZERO };
    assert_eq!(reference.read(read), Done::TidDigest(nothing));
}
