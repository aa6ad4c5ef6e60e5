// SPDX-License-Identifier: GPL-2.0-or-later
//! Backends that execute the same jobs and must give the same results.

use bytes::Bytes;
use neo_common::protocol::enums::CellState;
use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};
use neo_storage::database::executor::Executor;
use neo_storage::database::importer::{Destination, Importer, state};
use neo_storage::database::memory::{self, Disk, Memory};
use neo_storage::database::sqlite::{self, Sqlite};
use neo_storage::database::*;
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use crate::server::Scratch;

pub const CLUSTER: &str = "test";

/// Number of partitions of the table that [`Mirror::with_table`] sets up.
pub const PARTITIONS: u32 = 3;

/// Memory, SQLite, MariaDB, and SQLite behind an import that is finished, side by side.
pub struct Mirror {
    pub memory: Executor<u32>,
    pub sqlite: Executor<u32>,
    pub importer: Executor<u32>,
    /// `None` where there is no MariaDB.
    pub mysql: Option<Executor<u32>>,
    pub disk: Disk,
    pub scratch: Option<Scratch>,
    pub directory: TempDir,
    dedup: bool,
    next_id: u32,
    /// Guarantee of the transaction that is open.
    level: Option<Durability>,
}

impl Mirror {
    /// Empty databases.
    pub fn new(dedup: bool) -> Self {
        Self::open(Disk::new(), tempfile::tempdir().unwrap(), Scratch::new(), dedup)
    }

    /// Databases with a partition table: all cells on node 1, which is this one.
    pub fn with_table(dedup: bool) -> Self {
        let mut mirror = Self::new(dedup);
        mirror.write(Write::SetNid(nid(1)));
        let cells = (0..PARTITIONS).map(|partition| (partition, 1, CellState::UpToDate));
        mirror.write(change(ChangeScope::Full, cells));
        mirror
    }

    fn open(disk: Disk, directory: TempDir, scratch: Option<Scratch>, dedup: bool) -> Self {
        let options = memory::Options { dedup, ..memory::Options::default() };
        let memory = Memory::open(&disk, CLUSTER, options).unwrap();
        let sqlite = Sqlite::open(&options_in(&directory, dedup)).unwrap();
        let importer = finished_import(&directory, dedup);
        let mysql = scratch
            .as_ref()
            .map(|scratch| Executor::new(Box::new(scratch.open(CLUSTER, dedup).unwrap())).unwrap());
        Self {
            memory: Executor::new(Box::new(memory)).unwrap(),
            sqlite: Executor::new(Box::new(sqlite)).unwrap(),
            importer: Executor::new(Box::new(importer)).unwrap(),
            mysql,
            disk,
            scratch,
            directory,
            dedup,
            next_id: 0,
            level: None,
        }
    }

    /// All processes die and are started again: what is not committed is lost.
    pub fn crash(self) -> Self {
        let Self { memory, sqlite, importer, mysql, disk, scratch, directory, dedup, .. } = self;
        drop((memory, sqlite, importer, mysql));
        disk.crash(memory::Crash::Process);
        Self::open(disk, directory, scratch, dedup)
    }

    /// Does something with each backend. The results must be equal.
    fn each<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &dyn std::fmt::Debug,
        mut action: impl FnMut(&mut Executor<u32>) -> T,
    ) -> T {
        let (memory, sqlite) = (action(&mut self.memory), action(&mut self.sqlite));
        assert_eq!(memory, sqlite, "memory and SQLite disagree about {what:?}");
        let importer = action(&mut self.importer);
        assert_eq!(memory, importer, "memory and the importer disagree about {what:?}");
        if let Some(mysql) = &mut self.mysql {
            assert_eq!(memory, action(mysql), "memory and MariaDB disagree about {what:?}");
        }
        sqlite
    }

    /// Executes a job of the write lane on each, without committing.
    pub fn execute(&mut self, job: Write) -> Option<Done> {
        self.next_id += 1;
        let id = self.next_id;
        let durability = job.durability();
        if let Some(mysql) = &mut self.mysql
            && durability == Durability::Durable
            && self.level.is_some_and(|level| level < durability)
        {
            // Others end a transaction that is not going to be durable. There, all are.
            mysql.database().commit().unwrap();
        }
        self.level = self.level.max(Some(durability));
        self.each(&job, |executor| {
            executor.submit(id, Job::Write(job.clone()));
            executor.write(1).unwrap().pop().map(|(_, done)| done)
        })
    }

    /// Commits on each.
    pub fn commit(&mut self) {
        self.level = None;
        self.each(&"commit", |executor| executor.commit().unwrap());
    }

    /// Executes a job of the write lane on each and commits it.
    pub fn write(&mut self, job: Write) -> Done {
        let done = self.execute(job);
        self.each(&"delay", |executor| executor.commit_delay().is_some());
        self.level = None;
        let mut committed = self.each(&"commit", |executor| executor.commit().unwrap());
        done.or_else(|| committed.pop().map(|(_, done)| done)).expect("a job has a result")
    }

    /// Executes a read on each, on the connection of the writer.
    pub fn latest(&mut self, read: Read) -> Done {
        self.each(&read, |executor| {
            execute(executor.database(), Job::ReadLatest(read.clone())).unwrap()
        })
    }

    /// Executes a read on each, on the connection of a reader.
    pub fn read(&mut self, read: Read) -> Done {
        self.next_id += 1;
        let id = self.next_id;
        self.each(&read, |executor| {
            executor.submit(id, Job::Read(read.clone()));
            executor.read().unwrap().expect("a read is queued").1
        })
    }

    /// Commits a transaction: vote, lock, unlock.
    pub fn transaction(&mut self, ttid: u64, tid: u64, objects: Vec<ObjectRecord>) {
        let oids = objects.iter().map(|object| object.oid).collect();
        let vote = vote(ttid, objects, Some(record(ttid, oids)));
        assert_eq!(self.write(vote), Done::Voted(Ok(())));
        let (ttid, tid) = (Ttid::new(ttid), Tid::new(tid));
        self.write(Write::Lock { ttid, tid, approve_pack: false });
        self.write(Write::Unlock { ttid, tid, metadata: true });
    }

    /// Everything that can be read, on each, as committed and as last written.
    pub fn check_all(&mut self) {
        for read in all_reads(self) {
            self.read(read.clone());
            self.latest(read);
        }
        let orphans = Write::PruneOrphans { after: None, rows_max: 1000, dry_run: true };
        self.write(orphans);
    }

    /// The node that all remember as the greatest one that was dropped.
    pub fn dropped(&mut self) -> Option<NodeId> {
        let databases = [&mut self.memory, &mut self.sqlite, &mut self.importer];
        let all = databases.into_iter().chain(self.mysql.as_mut());
        let dropped = all.map(|lanes| lanes.database().latest().config().unwrap().dropped);
        let dropped: Vec<_> = dropped.collect();
        assert!(dropped.iter().all(|nid| *nid == dropped[0]), "{dropped:?}");
        dropped[0]
    }

    /// Data rows that no committed revision, voted transaction or spilled object refers to.
    pub fn orphans(&mut self) -> u64 {
        match self.write(Write::PruneOrphans { after: None, rows_max: 1000, dry_run: true }) {
            Done::Orphans(progress) => progress.found,
            done => panic!("{done:?}"),
        }
    }

    /// Revision of an object, or why there is none.
    pub fn load(&mut self, number: u64, at: Option<u64>, before: Option<u64>) -> Loaded {
        let oid = oid(number);
        let (at, before) = (at.map(Tid::new), before.map(Tid::new));
        match self.read(Read::Load { partition: oid.partition(PARTITIONS), oid, at, before }) {
            Done::Loaded(loaded) => loaded,
            done => panic!("{done:?}"),
        }
    }

    /// Data of the last revision of an object; `None` if it is deleted.
    pub fn last(&mut self, number: u64) -> Option<Bytes> {
        match self.load(number, None, None) {
            Loaded::Found(revision) => revision.value.map(|value| value.data),
            loaded => panic!("{loaded:?}"),
        }
    }

    /// Tids of the revisions of an object, newest first.
    pub fn history(&mut self, number: u64) -> Vec<u64> {
        let partition = oid(number).partition(PARTITIONS);
        let read = Read::History { partition, oid: oid(number), offset: 0, length: 100 };
        match self.read(read) {
            Done::History(history) => history.into_iter().map(|(tid, _)| tid.get()).collect(),
            done => panic!("{done:?}"),
        }
    }
}

/// Nothing was imported, and all is.
fn finished_import(directory: &TempDir, dedup: bool) -> Importer {
    let mut options = options_in(directory, dedup);
    options.database.push_str(".import");
    let mut destination = Sqlite::open(&options).unwrap();
    let (last_tid, last_oid, imported) = (Tid::ZERO, Oid::ZERO, Tid::ZERO);
    let state = state::Stored { last_tid, last_oid, imported };
    destination.set_setting(state::KEY, &state.to_string()).unwrap();
    Importer::open(Box::new(destination), || panic!("everything is imported")).unwrap()
}

/// Questions that together show every row.
fn all_reads(mirror: &mut Mirror) -> Vec<Read> {
    let readable: Vec<Partition> = (0..PARTITIONS).collect();
    let mut reads = vec![
        Read::Config,
        Read::PartitionTable,
        Read::CellNextTids,
        Read::PackedCells,
        Read::PackOrders { readable: readable.clone(), partitions: PARTITIONS, min_id: Tid::ZERO },
        Read::Unfinished,
        Read::LastIds { readable: readable.clone() },
        Read::Tids { partitions: readable.clone(), offset: 0, length: 10_000 },
        Read::Tids { partitions: readable.clone(), offset: 3, length: 5 },
    ];
    for partition in readable {
        let (min_tid, min_oid, max_tid) = (Tid::ZERO, Oid::ZERO, Tid::MAX);
        let range = Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length: 10_000 };
        let tids = Read::TidsFrom { partition, min_tid, max_tid, length: 10_000 };
        if let Done::Tids(tids) = mirror.latest(tids.clone()) {
            reads.push(Read::FetchTransactions { partition, tids });
        }
        if let Done::Revisions(revisions) = mirror.latest(range.clone()) {
            for oid in
                revisions.iter().map(|(_, oid)| *oid).collect::<std::collections::BTreeSet<_>>()
            {
                reads.push(Read::History { partition, oid, offset: 0, length: 100 });
                reads.push(Read::Load { partition, oid, at: None, before: None });
            }
            reads.push(Read::FetchObjects { partition, revisions, bytes_max: usize::MAX });
        }
        reads.extend([tids, range]);
        for length in [2, 1000] {
            let (partitions, tid) = (PARTITIONS, Tid::MAX);
            reads.push(Read::OidsFrom { partition, partitions, min_oid, tid, length });
            reads.push(Read::CheckTidRange { partition, min_tid, max_tid, length });
            reads.push(Read::CheckSerialRange { partition, min_tid, min_oid, max_tid, length });
        }
    }
    reads
}

/// How to open the SQLite database of a test.
pub fn options_in(directory: &TempDir, dedup: bool) -> sqlite::Options {
    sqlite::Options {
        database: directory.path().join("neo.sqlite").to_str().unwrap().to_owned(),
        cluster: CLUSTER.into(),
        dedup,
        home: None,
    }
}

pub fn nid(number: i32) -> NodeId {
    NodeId::new(number).unwrap()
}

pub fn oid(number: u64) -> Oid {
    Oid::new(number)
}

pub fn value(data: &str) -> Value {
    let data = Bytes::copy_from_slice(data.as_bytes());
    Value { compression: 0, checksum: Sha1::digest(&data).into(), data }
}

pub fn store(number: u64, data: &str) -> ObjectRecord {
    ObjectRecord { oid: oid(number), data_tid: None, content: Content::Value(value(data)) }
}

pub fn delete(number: u64) -> ObjectRecord {
    ObjectRecord { oid: oid(number), data_tid: None, content: Content::Deleted }
}

pub fn undo(number: u64, data_tid: u64, content: Content) -> ObjectRecord {
    ObjectRecord { oid: oid(number), data_tid: Some(Tid::new(data_tid)), content }
}

pub fn record(ttid: u64, oids: Vec<Oid>) -> TransactionRecord {
    TransactionRecord {
        oids,
        user: Bytes::from_static(b"user"),
        description: Bytes::from_static(b"\0\xff"),
        extension: Bytes::new(),
        packed: false,
        ttid: Ttid::new(ttid),
    }
}

pub fn vote(ttid: u64, objects: Vec<ObjectRecord>, metadata: Option<TransactionRecord>) -> Write {
    Write::Vote(Box::new(Vote {
        ttid: Ttid::new(ttid),
        partitions: PARTITIONS,
        objects,
        transaction: metadata,
        pack: None,
    }))
}

pub fn change(
    scope: ChangeScope,
    cells: impl IntoIterator<Item = (Partition, i32, CellState)>,
) -> Write {
    let cells = cells.into_iter();
    let cells =
        cells.map(|(partition, node, state)| StoredCell { partition, nid: nid(node), state });
    Write::ChangePartitionTable(PartitionTableChange {
        ptid: 1,
        replicas: 0,
        cells: cells.collect(),
        scope,
        last_pack_id: Tid::ZERO,
        drop_temporary: Vec::new(),
        release: Vec::new(),
    })
}
