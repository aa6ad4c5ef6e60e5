// SPDX-License-Identifier: GPL-2.0-or-later
//! A FileStorage before a database: at each moment of the import, all answers are those of a database
//! that has everything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use neo_common::compression::Compression;
use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid, Ttid};
use neo_filestorage::{
    Reader as FileReader, Record, Source as _, Transaction, TransactionInfo, Writer,
};
use neo_storage::database::executor::Executor;
use neo_storage::database::importer::source::Source;
use neo_storage::database::importer::{Destination, Importer, check_complete};
use neo_storage::database::lane::{Lanes, Options};
use neo_storage::database::sqlite::Sqlite;
use neo_storage::database::*;
use tempfile::TempDir;

use crate::harness::*;
use crate::server::Scratch;

/// Tids of the files are multiples of it.
const STEP: u64 = 5;

fn shared(name: &str) -> PathBuf {
    let shared = std::env::var_os("NEO_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    shared.join("filestorage").join(name)
}

/// A file with long histories, undo, deletions, and objects written twice in a transaction. Enough
/// for several batches.
fn random_file(directory: &TempDir, seed: u64) -> PathBuf {
    let path = directory.path().join("Data.fs");
    let mut prng = Prng::new(seed);
    let mut writer = Writer::create(&path).unwrap();
    let mut history: Vec<Vec<(Tid, Option<Bytes>)>> = vec![Vec::new(); 60];
    for number in 1..=300 {
        let tid = Tid::new(number * STEP);
        let mut records = Vec::new();
        for _ in 0..prng.below(9) {
            let index = prng.below(history.len());
            let history = &mut history[index];
            let (data, data_txn) = match prng.below(8) {
                0 => (None, None),
                1 | 2 if !history.is_empty() => {
                    let (tid, data) = history[prng.below(history.len())].clone();
                    (data, Some(tid))
                }
                _ => (Some(Bytes::from(prng.next_u64().to_string())), None),
            };
            let data_txn = data_txn.filter(|other| *other != tid && data.is_some());
            history.retain(|(other, _)| *other != tid);
            history.push((tid, data.clone()));
            records.push(Record { oid: oid(index as u64), data, data_txn });
        }
        let info = TransactionInfo { tid, user: format!("{number}").into(), ..Default::default() };
        writer.write(&Transaction { info, records }).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn last_tid(path: &Path) -> u64 {
    let mut reader = FileReader::open(path).unwrap();
    let mut last = 0;
    while let Some(info) = reader.next_transaction().unwrap() {
        last = info.tid.get();
    }
    last
}

fn import(destination: Box<dyn Destination>, file: &Path) -> Result<Importer, Error> {
    Importer::open(destination, || Source::open(file, Compression::None))
}

fn sqlite(directory: &TempDir) -> Box<dyn Destination> {
    Box::new(Sqlite::open(&options_in(directory, false)).unwrap())
}

/// A database with its partition table, driven by hand.
struct Node {
    db: Executor<u32>,
    is_slow: bool,
}

impl Node {
    fn new(db: Box<dyn Database>) -> Self {
        // Only a file has something to do beside.
        let is_slow = db.maintenance().unwrap().is_none();
        Self { db: Executor::new(db).unwrap(), is_slow }
    }

    fn write(&mut self, job: Write) -> Done {
        self.db.submit(0, Job::Write(job));
        let mut reports = self.db.write(1).unwrap();
        reports.extend(self.db.commit().unwrap());
        reports.pop().expect("a job has a result").1
    }

    fn read(&mut self, read: Read) -> Done {
        self.db.submit(0, Job::Read(read.clone()));
        let done = self.db.read().unwrap().expect("it is queued").1;
        let latest = execute(self.db.database(), Job::ReadLatest(read)).unwrap();
        assert_eq!(done, latest, "what is committed is what was written last");
        done
    }

    fn set_up(&mut self) {
        self.write(Write::SetNid(nid(1)));
        let up_to_date = neo_common::protocol::enums::CellState::UpToDate;
        let cells = (0..PARTITIONS).map(|partition| (partition, 1, up_to_date));
        self.write(change(ChangeScope::Full, cells));
    }

    /// Imports a batch. Whether there was one.
    fn import_batch(&mut self) -> bool {
        loop {
            match self.db.work().unwrap() {
                Work::None => return false,
                Work::Later => std::thread::yield_now(),
                Work::Now => {
                    self.db.commit().unwrap();
                    return true;
                }
            }
        }
    }

    fn import_all(&mut self) {
        while self.import_batch() {}
    }

    /// What clients do after the last transaction of a file: changes of objects that may be imported
    /// or not, new ones, deletions, undo.
    fn clients(&mut self, last_tid: u64, seed: u64) {
        let mut prng = Prng::new(seed);
        for number in 1..30 {
            let tid = last_tid + number * STEP;
            let oids: BTreeSet<u64> = (0..prng.below(5)).map(|_| prng.below(70) as u64).collect();
            let mut objects = Vec::new();
            for number in oids {
                let oid = oid(number);
                let partition = oid.partition(PARTITIONS);
                let history = Read::History { partition, oid, offset: 0, length: 1000 };
                let Done::History(history) = self.read(history) else { panic!() };
                objects.push(match prng.below(6) {
                    0 => delete(number),
                    1..=3 if !history.is_empty() => {
                        let (tid, _) = history[prng.below(history.len())];
                        undo(number, tid.get(), Content::MustExist)
                    }
                    _ => store(number, &prng.next_u64().to_string()),
                });
            }
            let oids = objects.iter().map(|object| object.oid).collect();
            let objects = match prng.one_in(3) {
                // Data goes ahead.
                true => match self
                    .write(Write::Spill { partitions: PARTITIONS, objects: objects.clone() })
                {
                    Done::Spilled(Ok(contents)) => {
                        let objects = objects.into_iter().zip(contents);
                        objects.map(|(o, content)| ObjectRecord { content, ..o }).collect()
                    }
                    done => panic!("{done:?}"),
                },
                false => objects,
            };
            let vote = vote(tid - 1, objects, Some(record(tid - 1, oids)));
            assert_eq!(self.write(vote), Done::Voted(Ok(())));
            let (ttid, tid) = (Ttid::new(tid - 1), Tid::new(tid));
            self.write(Write::Lock { ttid, tid, approve_pack: false });
            self.write(Write::Unlock { ttid, tid, metadata: true });
        }
    }
}

/// All oids of a partition, page by page.
fn drain_oids(node: &mut Node, partition: u32, tid: Tid, length: u32) -> Vec<Oid> {
    let (mut result, mut min_oid) = (Vec::new(), Oid::ZERO);
    loop {
        let partitions = PARTITIONS;
        match node.read(Read::OidsFrom { partition, partitions, min_oid, tid, length }) {
            Done::Oids(OidsFound { next_oid, oids }) => {
                assert!(
                    oids.len() <= length as usize * 2 && oids.iter().all(|oid| *oid >= min_oid)
                );
                result.extend(oids);
                match next_oid {
                    Some(next) => assert!(next > std::mem::replace(&mut min_oid, next)),
                    None => return result,
                }
            }
            done => panic!("{done:?}"),
        }
    }
}

/// Questions about everything up to `last_tid`, and a bit more. There are more of them with a
/// greater `count`.
fn questions(last_tid: u64, seed: u64, count: u32) -> Vec<Read> {
    let mut prng = Prng::new(seed);
    let partitions: Vec<u32> = (0..PARTITIONS).collect();
    let mut tids: Vec<Tid> =
        (0..count).map(|_| Tid::new(prng.below(last_tid as usize / 5 + 3) as u64 * STEP)).collect();
    tids.extend([Tid::ZERO, Tid::new(STEP), Tid::new(last_tid), Tid::new(last_tid + 1), Tid::MAX]);
    let mut reads = vec![Read::LastIds { readable: partitions.clone() }];
    for (offset, length) in [(0, 10), (5, 100), (0, 5000), (200, 30), (5000, 10)] {
        reads.push(Read::Tids { partitions: partitions.clone(), offset, length });
        reads.push(Read::Tids { partitions: vec![1], offset, length });
    }
    for &tid in &tids {
        let partition = tid.partition(PARTITIONS);
        reads.push(Read::Transaction { partition, tid });
        reads.push(Read::FetchTransactions { partition, tids: vec![tid] });
        reads.push(Read::Transaction { partition: (partition + 1) % PARTITIONS, tid });
        let max_tid = tids[prng.below(tids.len())];
        let length = 1 + prng.below(200) as u32;
        reads.push(Read::TidsFrom { partition, min_tid: tid, max_tid, length });
        reads.push(Read::CheckTidRange { partition, min_tid: tid, max_tid, length });
        let min_oid = oid(prng.below(70) as u64);
        reads.push(Read::RevisionsFrom { partition, min_tid: tid, min_oid, max_tid, length });
        reads.push(Read::CheckSerialRange { partition, min_tid: tid, min_oid, max_tid, length });
    }
    for number in 0..72 {
        let oid = oid(number);
        let partition = oid.partition(PARTITIONS);
        reads.push(Read::Load { partition, oid, at: None, before: None });
        for &tid in &tids {
            reads.push(Read::Load { partition, oid, at: Some(tid), before: None });
            reads.push(Read::Load { partition, oid, at: None, before: Some(tid) });
            let own_tid = prng.one_in(5).then(|| Tid::new(last_tid * 2));
            let ltid = prng.one_in(2).then(|| tids[prng.below(tids.len())]);
            let objects = vec![(oid, own_tid)];
            let search = UndoSearch { partitions: PARTITIONS, ltid, undone_tid: tid, objects };
            reads.push(Read::FindUndo(search));
            let checks = vec![StoreCheck { oid, data_tid: Some(tid) }];
            reads.push(Read::CheckStores { partitions: PARTITIONS, checks });
        }
        for (offset, length) in [(0, 1), (0, 1000), (3, 4), (1000, 1)] {
            reads.push(Read::History { partition, oid, offset, length });
        }
    }
    reads
}

/// Two nodes answer the same.
fn compare(node: &mut Node, expected: &mut Node, last_tid: u64, seed: u64) {
    // A question to a server costs more.
    let count = if node.is_slow { 4 } else { 40 };
    for read in questions(last_tid, seed, count) {
        assert_eq!(node.read(read.clone()), expected.read(read.clone()), "{read:?}");
    }
    for partition in 0..PARTITIONS {
        let (min_tid, min_oid, max_tid) = (Tid::ZERO, Oid::ZERO, Tid::MAX);
        let all = Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length: 100_000 };
        let Done::Revisions(revisions) = expected.read(all) else { panic!() };
        for bytes_max in [usize::MAX, 100] {
            let revisions = revisions.clone();
            let fetch = Read::FetchObjects { partition, revisions, bytes_max };
            assert_eq!(node.read(fetch.clone()), expected.read(fetch));
        }
        for tid in [last_tid / 2, last_tid, last_tid + 20, i64::MAX as u64] {
            for length in [2, 1000] {
                let tid = Tid::new(tid);
                let found = drain_oids(node, partition, tid, length);
                assert_eq!(found, drain_oids(expected, partition, tid, 1000), "{tid}");
            }
        }
    }
}

/// From the first batch to the last one, with transactions of clients in between and two crashes:
/// all answers are those of a database in which everything was imported before.
fn check_import(
    file: &Path,
    seed: u64,
    mut open: impl FnMut() -> Box<dyn Destination>,
    batches_min: usize,
) {
    let source_tid = last_tid(file);
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Node::new(Box::new(import(sqlite(&directory), file).unwrap()));
    expected.set_up();
    expected.import_all();
    drop(expected);
    let mut native = sqlite(&directory);
    check_complete(native.as_mut()).unwrap();
    let mut expected = Node::new(native);

    let mut node = Node::new(Box::new(import(open(), file).unwrap()));
    assert_eq!(node.db.work().unwrap(), Work::None, "there is no partition table");
    node.set_up();
    compare(&mut node, &mut expected, source_tid, seed);
    let mut batches = 0;
    let end = loop {
        if batches == 1 || batches == 3 {
            let last = source_tid + batches * 1000;
            node.clients(last, seed + batches);
            expected.clients(last, seed + batches);
            compare(&mut node, &mut expected, last + 200, seed);
        }
        if batches == 2 || batches == 5 {
            drop(node);
            node = Node::new(Box::new(import(open(), file).unwrap()));
        }
        if !node.import_batch() {
            break batches as usize;
        }
        batches += 1;
        compare(&mut node, &mut expected, source_tid + 4000, seed + batches);
    };
    assert!(end >= batches_min, "only {end} batches");
    drop(node);
    // The source is not needed any more.
    let importer = Importer::open(open(), || panic!("everything is imported")).unwrap();
    assert!(importer.is_finished());
    drop(importer);
    let mut native = open();
    check_complete(native.as_mut()).unwrap();
    let mut node = Node::new(native);
    compare(&mut node, &mut expected, source_tid + 4000, seed);
    let orphans = Write::PruneOrphans { after: None, rows_max: 1_000_000, dry_run: true };
    assert_eq!(node.write(orphans.clone()), expected.write(orphans));
}

/// Files of this test.
#[test]
fn all_answers_are_those_of_a_finished_import() {
    for seed in 0..2 {
        let (files, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        check_import(&random_file(&files, seed), seed, || sqlite(&directory), 6);
    }
}

/// The same into MariaDB.
#[test]
fn all_answers_are_those_of_a_finished_import_mysql() {
    let Some(scratch) = Scratch::new() else { return };
    let files = tempfile::tempdir().unwrap();
    let open = || Box::new(scratch.open(CLUSTER, false).unwrap()) as Box<dyn Destination>;
    check_import(&random_file(&files, 7), 7, open, 6);
}

/// Files that ZODB wrote: undo of undo, deletions, packed transactions.
#[test]
fn files_of_zodb() {
    for name in ["basic.fs", "packed.fs"] {
        let directory = tempfile::tempdir().unwrap();
        let before = fs::read(shared(name)).unwrap();
        check_import(&shared(name), 1, || sqlite(&directory), 1);
        assert_eq!(fs::read(shared(name)).unwrap(), before, "the source is never changed");
    }
}

fn message(result: Result<Importer, Error>) -> String {
    result.map(drop).expect_err("it must be refused").to_string()
}

/// What can not be imported, or not into that database, is refused with a reason.
#[test]
fn refusals() {
    let files = tempfile::tempdir().unwrap();
    let file = random_file(&files, 3);
    let fresh = || {
        let directory = tempfile::tempdir().unwrap();
        (sqlite(&directory), directory)
    };
    let absent = files.path().join("absent.fs");
    assert!(message(import(fresh().0, &absent)).contains("absent.fs: cannot open"));
    let damaged = files.path().join("damaged.fs");
    let mut bytes = fs::read(&file).unwrap();
    bytes.truncate(bytes.len() - 3);
    fs::write(&damaged, &bytes).unwrap();
    let error = message(import(fresh().0, &damaged));
    assert!(error.contains("damaged.fs: damaged at position"), "{error}");
    fs::write(&damaged, "FS30").unwrap();
    assert!(message(import(fresh().0, &damaged)).contains("nothing to import"));
    fs::write(&damaged, "SQLite format 3").unwrap();
    assert!(message(import(fresh().0, &damaged)).contains("not a FileStorage"));

    // In use by a ZODB that may write.
    let lock_name = files.path().join("Data.fs.lock");
    let lock = fs::File::create(lock_name).unwrap();
    lock.lock().unwrap();
    assert!(message(import(fresh().0, &file)).contains("in use by an application"));
    lock.unlock().unwrap();
    let (db, _directory) = fresh();
    let importer = import(db, &file).unwrap();
    assert!(lock.try_lock().is_err(), "nobody may write to it during the import");
    drop(importer);
    lock.try_lock().unwrap();
    lock.unlock().unwrap();

    // Something else is in the database.
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::new(sqlite(&directory));
    node.set_up();
    node.clients(0, 1);
    drop(node);
    assert!(message(import(sqlite(&directory), &file)).contains("is not empty"));
    let (mut db, _directory) = fresh();
    db.set_setting("zodb", "...").unwrap();
    assert!(message(import(db, &file)).contains("storage node in Python"));
}

/// An import that is not finished: neither without the adapter, nor with another file.
#[test]
fn unfinished_imports_are_protected() {
    let files = tempfile::tempdir().unwrap();
    let file = random_file(&files, 4);
    let directory = tempfile::tempdir().unwrap();
    let mut node = Node::new(Box::new(import(sqlite(&directory), &file).unwrap()));
    node.set_up();
    assert!(node.import_batch());
    for (job, what) in [
        (Write::SetTruncateTid(Tid::new(7)), "a truncation"),
        (Write::SetBackupTid(Some(Tid::new(7))), "backup mode"),
        (Write::SetPacked { partition: 0, pack_id: Tid::new(7) }, "a pack"),
    ] {
        let error = execute(node.db.database(), Job::Write(job)).unwrap_err().to_string();
        assert!(error.contains("before everything is imported") && error.contains(what), "{error}");
    }
    drop(node);
    let error = check_complete(sqlite(&directory).as_mut()).unwrap_err().to_string();
    assert!(error.contains("not everything is imported"), "{error}");
    let other_files = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&other_files.path().join("Data.fs")).unwrap();
    let mut reader = FileReader::open(&file).unwrap();
    while let Some(transaction) = reader.next().unwrap() {
        writer.write(&transaction).unwrap();
    }
    let info = TransactionInfo { tid: Tid::new(9999), ..Default::default() };
    writer.write(&Transaction { info, records: Vec::new() }).unwrap();
    writer.finish().unwrap();
    let error = message(import(sqlite(&directory), &other_files.path().join("Data.fs")));
    assert!(error.contains("is not the file that was imported so far"), "{error}");
    import(sqlite(&directory), &file).unwrap();
}

/// With threads: the import goes on without jobs, and with clients that never stop; what they commit
/// and load in the meantime is right. The node is stopped and started until all is imported.
#[test]
fn threads_import_beside_clients() {
    const TIMEOUT: Duration = Duration::from_secs(60);
    for is_busy in [false, true] {
        let (files, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = random_file(&files, 5);
        let mut node = Node::new(Box::new(import(sqlite(&directory), &file).unwrap()));
        node.set_up();
        drop(node);
        let deadline = Instant::now() + TIMEOUT;
        let mut tid = last_tid(&file);
        while check_complete(sqlite(&directory).as_mut()).is_err() {
            assert!(Instant::now() < deadline, "the import does not end");
            let importer = import(sqlite(&directory), &file).unwrap();
            let mut lanes =
                Lanes::start(Box::new(importer), &Options::new(Arc::new(|| {}))).unwrap();
            let stop_at = Instant::now() + Duration::from_millis(100);
            while Instant::now() < stop_at {
                if is_busy {
                    tid += STEP;
                    commit_and_load(&mut lanes, tid, TIMEOUT);
                } else {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            lanes.stop();
        }
    }
}

/// A transaction that changes an object of the file, and the load that follows.
fn commit_and_load(lanes: &mut Lanes<u32>, tid: u64, timeout: Duration) {
    let (ttid, tid) = (Ttid::new(tid - 1), Tid::new(tid));
    let data = tid.to_string();
    let record = record(ttid.get(), vec![oid(1)]);
    lanes.submit(0, Job::Write(vote(ttid.get(), vec![store(1, &data)], Some(record))));
    lanes.submit(1, Job::Write(Write::Lock { ttid, tid, approve_pack: false }));
    lanes.submit(2, Job::Write(Write::Unlock { ttid, tid, metadata: true }));
    while lanes.wait(timeout).expect("a result").0 != 2 {}
    let partition = oid(1).partition(PARTITIONS);
    lanes.submit(3, Job::Read(Read::Load { partition, oid: oid(1), at: None, before: None }));
    match lanes.wait(timeout).expect("a result").1 {
        Done::Loaded(Loaded::Found(revision)) => {
            assert_eq!((revision.tid, revision.value), (tid, Some(value(&data))));
        }
        done => panic!("{done:?}"),
    }
}
