// SPDX-License-Identifier: GPL-2.0-or-later
//! Jobs: what the core asks from the database, as values, and what comes back.
//!
//! This is the contract between the core of the node and its database. The core submits a [`Job`];
//! a driver hands it to [`execute`] on some thread, and the core gets the [`Done`] as an input. Jobs
//! and results can be printed, compared, counted and replayed.
//!
//! # Where a job runs
//!
//! - [`Job::Write`]: on the write lane, in order of submission.
//! - [`Job::Read`]: on any read lane, in any order. It sees what was *reported* as visible before it
//!   was submitted, and maybe more, but never half of a transaction.
//! - [`Job::ReadLatest`]: on the write lane, in order. It sees all that was submitted before, whether
//!   reported or not. For rare questions: recovery and verification, own lists of replication,
//!   spilled data.
//!
//! # When a write is reported
//!
//! See [`Durability`]. An [`Write::Unlock`] that is reported is visible to all reads that are
//! submitted later: the core keeps the write locks and load locks of the transaction until then.

use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use super::records::*;
use super::{Database, Error, Reader};

/// Anything that the core asks from the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Changes something.
    Write(Write),
    /// Reads what is committed.
    Read(Read),
    /// Reads after all writes that were submitted before.
    ReadLatest(Read),
}

/// Which threads may execute a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneKind {
    /// The only one that writes: in order.
    Write,
    /// Any of those that read: in any order.
    Read,
}

/// What must have happened before a job is reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Durability {
    /// It is executed. It is committed within about a second, or with the next commit.
    Executed,
    /// It is committed and visible to readers; this may take up to about a second if commits are
    /// expensive. A power failure may lose it: it is redone from what is durable.
    Visible,
    /// It is on disk.
    Durable,
}

/// Jobs that change something. The operations are described at [`Database`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Records the node id given by the master. [`Done::Finished`].
    SetNid(NodeId),
    /// `SendPartitionTable`, `NotifyPartitionChanges`. [`Done::PartitionTableChanged`].
    ChangePartitionTable(PartitionTableChange),
    /// `StartOperation`: enters or leaves backup mode. [`Done::Finished`].
    SetBackupTid(Option<Tid>),
    /// `Truncate`: leaves backup mode and plans a truncation. [`Done::Finished`].
    SetTruncateTid(Tid),
    /// `AskLastIDs`: does a slice of a planned truncation; repeat until done. [`Done::Progress`].
    Truncate {
        /// Rows to delete at most, about.
        rows_max: u32,
    },
    /// Start of operation. [`Done::Finished`].
    DropUnfinished,
    /// Data of a big transaction, ahead of its vote. [`Done::Spilled`].
    Spill {
        /// Number of partitions, > 0.
        partitions: u32,
        /// Objects whose content is `Value` (others are returned as they are, or resolved).
        objects: Vec<ObjectRecord>,
    },
    /// Spilled data of an object that is stored again or given back. [`Done::Finished`].
    Release(Vec<DataId>),
    /// `AskStoreTransaction`, `AskVoteTransaction`: everything the transaction needs to be finished
    /// after a crash. At most once per ttid. [`Done::Voted`].
    Vote(Box<Vote>),
    /// `AskLockInformation`, on a node that has the metadata (others have nothing to do).
    /// [`Done::Finished`].
    Lock {
        /// Voted transaction.
        ttid: Ttid,
        /// Final id.
        tid: Tid,
        /// Whether its pack order is approved at once.
        approve_pack: bool,
    },
    /// `NotifyUnlockInformation`. [`Done::Finished`] once it is visible to readers.
    Unlock {
        /// Locked transaction.
        ttid: Ttid,
        /// Final id.
        tid: Tid,
        /// Whether it was voted with metadata.
        metadata: bool,
    },
    /// A transaction that is voted, or has spilled data, and is not locked. (There is nothing to do
    /// for others.) [`Done::Finished`].
    Abort {
        /// Transaction.
        ttid: Ttid,
        /// Spilled data that was not voted.
        spilled: Vec<DataId>,
    },
    /// `ValidateTransaction` (verification): lock and unlock. [`Done::Finished`].
    Validate {
        /// Voted or locked transaction.
        ttid: Ttid,
        /// Final id.
        tid: Tid,
    },
    /// `NotifyPackSigned`. [`Done::Signed`].
    SignPacks {
        /// Pack ids.
        approved: Vec<Tid>,
        /// Pack ids.
        rejected: Vec<Tid>,
    },
    /// A slice of a pack. [`Done::Packed`].
    Pack {
        /// Partition to pack.
        partition: Partition,
        /// Time of the pack.
        pack_tid: Tid,
        /// Objects to look at.
        scope: PackScope,
    },
    /// A partition is packed. [`Done::Finished`].
    SetPacked {
        /// Partition that is packed.
        partition: Partition,
        /// Id of the order.
        pack_id: Tid,
    },
    /// A slice of the removal of a partition; repeat until done. [`Done::Progress`].
    DropPartition {
        /// Partition that does not belong to the node any more.
        partition: Partition,
        /// Revisions to delete at most.
        rows_max: u32,
    },
    /// `NotifyRepair`: a slice of the search for orphan data. [`Done::Orphans`].
    PruneOrphans {
        /// Where to resume; `None` to begin.
        after: Option<DataId>,
        /// Rows to look at.
        rows_max: u32,
        /// Only count them.
        dry_run: bool,
    },
    /// `AddTransaction`, any number of them. [`Done::Added`].
    AddTransactions {
        /// Number of partitions, > 0.
        partitions: u32,
        /// Transactions.
        transactions: Vec<ReplicatedTransaction>,
    },
    /// `AddObject`, any number of them. [`Done::Added`].
    AddObjects {
        /// Number of partitions, > 0.
        partitions: u32,
        /// Objects.
        objects: Vec<ReplicatedObject>,
    },
    /// `AnswerFetchTransactions`, `AnswerFetchObjects`. [`Done::Signed`].
    EndChunk {
        /// Number of partitions, > 0.
        partitions: u32,
        /// What changes.
        end: Box<ChunkEnd>,
    },
    /// Nothing, but all that was submitted before is on disk when it is reported: before the node
    /// exits. [`Done::Finished`].
    Flush,
    /// The node was removed from the cluster. [`Done::Finished`].
    Erase,
}

/// Jobs that change nothing. The operations are described at [`Reader`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// Stored configuration. [`Done::Config`].
    Config,
    /// Stored partition table. [`Done::PartitionTable`].
    PartitionTable,
    /// Where replication resumes. [`Done::CellNextTids`].
    CellNextTids,
    /// Pack status of own cells. [`Done::PackedCells`].
    PackedCells,
    /// `AskPackOrders`. [`Done::PackOrders`].
    PackOrders {
        /// Readable partitions.
        readable: Vec<Partition>,
        /// Number of partitions, > 0.
        partitions: u32,
        /// Smallest id.
        min_id: Tid,
    },
    /// `AskLockedTransactions`. [`Done::Unfinished`].
    Unfinished,
    /// `AskFinalTID`. [`Done::FinalTid`].
    FinalTid {
        /// Partition of the ttid: readable.
        partition: Partition,
        /// Transaction.
        ttid: Ttid,
    },
    /// `AskLastIDs`. [`Done::LastIds`].
    LastIds {
        /// Readable partitions.
        readable: Vec<Partition>,
    },
    /// `AskObject`. [`Done::Loaded`].
    Load {
        /// Partition of the oid: readable.
        partition: Partition,
        /// Object.
        oid: Oid,
        /// Exactly this revision.
        at: Option<Tid>,
        /// Last revision that is strictly older.
        before: Option<Tid>,
    },
    /// `AskStoreObject`, `AskCheckCurrentSerial`: any number of objects. [`Done::StoresChecked`].
    CheckStores {
        /// Number of partitions, > 0.
        partitions: u32,
        /// Objects.
        checks: Vec<StoreCheck>,
    },
    /// Data row: what was spilled, for conflict resolution. [`Done::Data`].
    Data(DataId),
    /// `AskObjectHistory`. [`Done::History`].
    History {
        /// Partition of the oid: readable.
        partition: Partition,
        /// Object.
        oid: Oid,
        /// Revisions to skip.
        offset: u64,
        /// Revisions to return at most.
        length: u32,
    },
    /// `AskObjectUndoSerial`. [`Done::Undo`].
    FindUndo(UndoSearch),
    /// `AskTransactionInformation`. [`Done::Transactions`], of length 1.
    Transaction {
        /// Partition of the tid: readable.
        partition: Partition,
        /// Transaction.
        tid: Tid,
    },
    /// `AskTIDs`. [`Done::Tids`], newest first.
    Tids {
        /// Readable partitions to look at.
        partitions: Vec<Partition>,
        /// Tids to skip.
        offset: u64,
        /// Tids to return at most.
        length: u32,
    },
    /// `AskTIDsFrom`, and lists of replication. [`Done::Tids`], ascending.
    TidsFrom {
        /// Partition.
        partition: Partition,
        /// First tid, included.
        min_tid: Tid,
        /// Last tid, included.
        max_tid: Tid,
        /// Tids to return at most.
        length: u32,
    },
    /// `AskOIDsFrom`. [`Done::Oids`].
    OidsFrom {
        /// Partition: readable.
        partition: Partition,
        /// Number of partitions, > 0.
        partitions: u32,
        /// First oid.
        min_oid: Oid,
        /// At that time.
        tid: Tid,
        /// Objects to look at.
        length: u32,
    },
    /// Lists of replication. [`Done::Revisions`], ascending.
    RevisionsFrom {
        /// Partition.
        partition: Partition,
        /// First tid, included.
        min_tid: Tid,
        /// First oid at `min_tid`, included.
        min_oid: Oid,
        /// Last tid, included.
        max_tid: Tid,
        /// Revisions to return at most.
        length: u32,
    },
    /// Source of a replication: these transactions. [`Done::Transactions`], in the same order.
    FetchTransactions {
        /// Partition.
        partition: Partition,
        /// Transactions.
        tids: Vec<Tid>,
    },
    /// Source of a replication: these revisions. [`Done::Objects`], in the same order, maybe cut.
    FetchObjects {
        /// Partition.
        partition: Partition,
        /// Revisions.
        revisions: Vec<(Tid, Oid)>,
        /// Stop after this much data.
        bytes_max: usize,
    },
    /// `AskCheckTIDRange`. [`Done::TidDigest`].
    CheckTidRange {
        /// Partition.
        partition: Partition,
        /// First tid, included.
        min_tid: Tid,
        /// Last tid, included.
        max_tid: Tid,
        /// Transactions at most.
        length: u32,
    },
    /// `AskCheckSerialRange`. [`Done::SerialDigest`].
    CheckSerialRange {
        /// Partition.
        partition: Partition,
        /// First tid, included.
        min_tid: Tid,
        /// First oid at `min_tid`, included.
        min_oid: Oid,
        /// Last tid, included.
        max_tid: Tid,
        /// Revisions at most.
        length: u32,
    },
}

/// What a job gives back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// It is done.
    Finished,
    /// Partitions whose data does not belong to this node any more.
    PartitionTableChanged(Vec<Partition>),
    /// A slice is done.
    Progress(Progress),
    /// Contents to vote with, in order.
    Spilled(Result<Vec<Content>, Refused>),
    /// The transaction can be locked.
    Voted(Result<(), Refused>),
    /// Pack orders that were found and are signed now.
    Signed(Vec<Tid>),
    /// A slice of a pack is done.
    Packed(PackProgress),
    /// A slice of the search is done.
    Orphans(OrphanProgress),
    /// Replicated rows are stored.
    Added(Result<(), ReplicationConflict>),
    /// See [`Read::Config`].
    Config(StoredConfig),
    /// See [`Read::PartitionTable`].
    PartitionTable(Vec<StoredCell>),
    /// See [`Read::CellNextTids`].
    CellNextTids(Vec<(Partition, CellNext)>),
    /// See [`Read::PackedCells`].
    PackedCells(Vec<PackedCell>),
    /// See [`Read::PackOrders`].
    PackOrders(Vec<(Tid, PackOrder)>),
    /// See [`Read::Unfinished`].
    Unfinished(Unfinished),
    /// See [`Read::FinalTid`].
    FinalTid(Option<Tid>),
    /// See [`Read::LastIds`].
    LastIds(LastIds),
    /// See [`Read::Load`].
    Loaded(Loaded),
    /// See [`Read::CheckStores`]: in the order of the checks.
    StoresChecked(Vec<StoreChecked>),
    /// See [`Read::Data`].
    Data(Option<Value>),
    /// See [`Read::History`]: empty is `OID_NOT_FOUND`.
    History(Vec<(Tid, u64)>),
    /// See [`Read::FindUndo`]: in the order of the objects.
    Undo(Vec<UndoFound>),
    /// See [`Read::Transaction`], [`Read::FetchTransactions`].
    Transactions(Vec<Option<TransactionInfo>>),
    /// See [`Read::Tids`], [`Read::TidsFrom`].
    Tids(Vec<Tid>),
    /// See [`Read::OidsFrom`].
    Oids(OidsFound),
    /// See [`Read::RevisionsFrom`].
    Revisions(Vec<(Tid, Oid)>),
    /// See [`Read::FetchObjects`].
    Objects(Vec<Option<Revision>>),
    /// See [`Read::CheckTidRange`].
    TidDigest(TidDigest),
    /// See [`Read::CheckSerialRange`].
    SerialDigest(SerialDigest),
}

impl Job {
    /// Which threads may execute it.
    pub const fn lane(&self) -> LaneKind {
        match self {
            Self::Write(_) | Self::ReadLatest(_) => LaneKind::Write,
            Self::Read(_) => LaneKind::Read,
        }
    }

    /// What must have happened before it is reported.
    pub const fn durability(&self) -> Durability {
        match self {
            Self::Write(write) => write.durability(),
            Self::Read(_) | Self::ReadLatest(_) => Durability::Executed,
        }
    }
}

impl Write {
    /// What must have happened before it is reported.
    pub const fn durability(&self) -> Durability {
        match self {
            Self::SetNid(_)
            | Self::ChangePartitionTable(_)
            | Self::SetBackupTid(_)
            | Self::SetTruncateTid(_)
            | Self::Truncate { .. }
            | Self::DropUnfinished
            | Self::Vote(_)
            | Self::Lock { .. }
            | Self::Validate { .. }
            | Self::SignPacks { .. }
            | Self::SetPacked { .. }
            | Self::EndChunk { .. }
            | Self::Flush
            | Self::Erase => Durability::Durable,
            // It can be replayed from the locked state.
            Self::Unlock { .. } => Durability::Visible,
            // Either nothing is promised (a transaction that is not locked is dropped after a crash,
            // background tasks start again), or a durable job follows (vote, end of chunk).
            Self::Spill { .. }
            | Self::Release(_)
            | Self::Abort { .. }
            | Self::Pack { .. }
            | Self::DropPartition { .. }
            | Self::PruneOrphans { .. }
            | Self::AddTransactions { .. }
            | Self::AddObjects { .. } => Durability::Executed,
        }
    }
}

impl Read {
    /// Whether it looks at few rows, so that executing several of them at once delays none.
    pub fn is_small(&self) -> bool {
        match self {
            Self::Config
            | Self::PackedCells
            | Self::Unfinished
            | Self::FinalTid { .. }
            | Self::Load { .. }
            | Self::Data(_)
            | Self::Transaction { .. } => true,
            Self::CheckStores { checks, .. } => checks.len() <= 16,
            Self::FindUndo(search) => search.objects.len() <= 16,
            Self::PartitionTable
            | Self::CellNextTids
            | Self::PackOrders { .. }
            | Self::LastIds { .. }
            | Self::History { .. }
            | Self::Tids { .. }
            | Self::TidsFrom { .. }
            | Self::OidsFrom { .. }
            | Self::RevisionsFrom { .. }
            | Self::FetchTransactions { .. }
            | Self::FetchObjects { .. }
            | Self::CheckTidRange { .. }
            | Self::CheckSerialRange { .. } => false,
        }
    }
}

/// Executes a job on the connection of the writer. Nothing is committed here.
///
/// # Errors
///
/// The database is unusable, the process must end.
pub fn execute(db: &mut dyn Database, job: Job) -> Result<Done, Error> {
    match job {
        Job::Write(write) => execute_write(db, write),
        Job::Read(read) | Job::ReadLatest(read) => execute_read(db.latest(), read),
    }
}

fn execute_write(db: &mut dyn Database, job: Write) -> Result<Done, Error> {
    Ok(match job {
        Write::SetNid(nid) => finished(db.set_nid(nid)?),
        Write::ChangePartitionTable(change) => {
            Done::PartitionTableChanged(db.change_partition_table(&change)?)
        }
        Write::SetBackupTid(tid) => finished(db.set_backup_tid(tid.map(clamp))?),
        Write::SetTruncateTid(tid) => finished(db.set_truncate_tid(clamp(tid))?),
        Write::Truncate { rows_max } => Done::Progress(db.truncate(rows_max)?),
        Write::DropUnfinished => finished(db.drop_unfinished()?),
        Write::Spill { partitions, objects } => Done::Spilled(match check_objects(&objects) {
            Ok(()) => db.spill(partitions, &objects)?,
            Err(refused) => Err(refused),
        }),
        Write::Release(data_ids) => finished(db.release(&data_ids)?),
        Write::Vote(vote) => Done::Voted(match check_vote(&vote) {
            Ok(()) => db.vote(&vote)?,
            Err(refused) => Err(refused),
        }),
        Write::Lock { ttid, tid, approve_pack } => finished(db.lock(ttid, tid, approve_pack)?),
        Write::Unlock { ttid, tid, metadata } => finished(db.unlock(ttid, tid, metadata)?),
        Write::Abort { ttid, spilled } => finished(db.abort(ttid, &spilled)?),
        Write::Validate { ttid, tid } => {
            db.lock(ttid, tid, true)?;
            finished(db.unlock(ttid, tid, true)?)
        }
        Write::SignPacks { approved, rejected } => {
            Done::Signed(db.sign_packs(&approved, &rejected)?)
        }
        Write::Pack { partition, pack_tid, scope } => {
            Done::Packed(db.pack(partition, clamp(pack_tid), &scope)?)
        }
        Write::SetPacked { partition, pack_id } => finished(db.set_packed(partition, pack_id)?),
        Write::DropPartition { partition, rows_max } => {
            Done::Progress(db.drop_partition(partition, rows_max)?)
        }
        Write::PruneOrphans { after, rows_max, dry_run } => {
            Done::Orphans(db.prune_orphans(after, rows_max, dry_run)?)
        }
        Write::AddTransactions { partitions, transactions } => {
            let valid = transactions.iter().all(|transaction| {
                let pack = &transaction.info.pack;
                fits(transaction.info.tid.get())
                    && fits(transaction.info.record.ttid.get())
                    && pack.as_ref().is_none_or(|pack| fits(pack.pack_tid.get()))
            });
            Done::Added(match valid {
                true => db.add_transactions(partitions, &transactions)?,
                false => Err(ReplicationConflict::InvalidId),
            })
        }
        Write::AddObjects { partitions, objects } => {
            let valid = objects.iter().all(|object| {
                let data_tid = object.object.data_tid;
                fits(object.tid.get())
                    && fits(object.object.oid.get())
                    && data_tid.is_none_or(|tid| fits(tid.get()))
            });
            Done::Added(match valid {
                true => db.add_objects(partitions, &objects)?,
                false => Err(ReplicationConflict::InvalidId),
            })
        }
        Write::EndChunk { partitions, end } => Done::Signed(db.end_chunk(partitions, &end)?),
        Write::Flush => finished(db.flush()?),
        Write::Erase => finished(db.erase()?),
    })
}

/// Executes a read on any connection.
///
/// # Errors
///
/// The database is unusable, the process must end.
pub fn execute_read(db: &mut dyn Reader, job: Read) -> Result<Done, Error> {
    Ok(match job {
        Read::Config => Done::Config(db.config()?),
        Read::PartitionTable => Done::PartitionTable(db.partition_table()?),
        Read::CellNextTids => Done::CellNextTids(db.cell_next_tids()?),
        Read::PackedCells => Done::PackedCells(db.packed_cells()?),
        Read::PackOrders { readable, partitions, min_id } => {
            Done::PackOrders(match fits_tid(min_id) {
                true => db.pack_orders(&readable, partitions, min_id)?,
                false => Vec::new(),
            })
        }
        Read::Unfinished => Done::Unfinished(db.unfinished()?),
        Read::FinalTid { partition, ttid } => Done::FinalTid(match fits(ttid.get()) {
            true => db.final_tid(partition, ttid)?,
            false => None,
        }),
        Read::LastIds { readable } => Done::LastIds(db.last_ids(&readable)?),
        Read::Load { partition, oid, at, before } => {
            // No revision has a tid that does not fit: exactly this one becomes none, "before" it
            // becomes before the greatest one, which is never used.
            let at = at.map(|tid| if fits_tid(tid) { tid } else { Tid::MAX });
            Done::Loaded(match fits(oid.get()) {
                true => db.load(partition, oid, at, before.map(clamp))?,
                false => Loaded::DoesNotExist,
            })
        }
        Read::CheckStores { partitions, checks } => {
            Done::StoresChecked(check_stores(db, partitions, &checks)?)
        }
        Read::Data(data_id) => Done::Data(db.data(data_id)?),
        Read::History { partition, oid, offset, length } => Done::History(match fits(oid.get()) {
            true => db.history(partition, oid, offset.min(i64::MAX as u64), length)?,
            false => Vec::new(),
        }),
        Read::FindUndo(search) => Done::Undo(find_undo(db, search)?),
        Read::Transaction { partition, tid } => {
            Done::Transactions(vec![transaction(db, partition, tid)?])
        }
        Read::Tids { partitions, offset, length } => {
            Done::Tids(db.tids(&partitions, offset.min(i64::MAX as u64), length)?)
        }
        Read::TidsFrom { partition, min_tid, max_tid, length } => {
            Done::Tids(match fits_tid(min_tid) {
                true => db.tids_from(partition, min_tid, clamp(max_tid), length)?,
                false => Vec::new(),
            })
        }
        Read::OidsFrom { partition, partitions, min_oid, tid, length } => {
            Done::Oids(match fits(min_oid.get()) && length != 0 {
                true => db.oids_from(partition, partitions, min_oid, clamp(tid), length)?,
                false => OidsFound { next_oid: None, oids: Vec::new() },
            })
        }
        Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length } => {
            Done::Revisions(match first_revision(min_tid, min_oid) {
                Some((tid, oid)) => {
                    db.revisions_from(partition, tid, oid, clamp(max_tid), length)?
                }
                None => Vec::new(),
            })
        }
        Read::FetchTransactions { partition, tids } => {
            let tids = tids.into_iter();
            Done::Transactions(
                tids.map(|tid| transaction(db, partition, tid)).collect::<Result<_, _>>()?,
            )
        }
        Read::FetchObjects { partition, revisions, bytes_max } => {
            Done::Objects(db.fetch_objects(partition, &revisions, bytes_max)?)
        }
        Read::CheckTidRange { partition, min_tid, max_tid, length } => {
            // An empty range is asked from the backend too: it knows the digest of nothing.
            let max_tid = clamp(max_tid);
            Done::TidDigest(db.check_tid_range(partition, clamp(min_tid), max_tid, length)?)
        }
        Read::CheckSerialRange { partition, min_tid, min_oid, max_tid, length } => {
            let (tid, oid) = first_revision(min_tid, min_oid).unwrap_or((Tid::MAX, Oid::ZERO));
            Done::SerialDigest(db.check_serial_range(
                partition,
                tid,
                oid,
                clamp(max_tid),
                length,
            )?)
        }
    })
}

const fn finished((): ()) -> Done {
    Done::Finished
}

/// Whether a backend can hold this identifier: SQLite has no unsigned integer.
const fn fits(id: u64) -> bool {
    id <= i64::MAX as u64
}

const fn fits_tid(tid: Tid) -> bool {
    fits(tid.get())
}

fn clamp(tid: Tid) -> Tid {
    tid.min(Tid::MAX)
}

/// First (tid, oid) to look at; `None` if it is after all that can exist.
fn first_revision(min_tid: Tid, min_oid: Oid) -> Option<(Tid, Oid)> {
    if !fits_tid(min_tid) {
        return None;
    }
    if fits(min_oid.get()) {
        return Some((min_tid, min_oid));
    }
    min_tid.next().filter(|tid| fits_tid(*tid)).map(|tid| (tid, Oid::ZERO))
}

fn check_objects(objects: &[ObjectRecord]) -> Result<(), Refused> {
    let mut oids: Vec<_> = objects.iter().map(|object| object.oid).collect();
    oids.sort_unstable();
    if let Some(pair) = oids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Refused::InvalidOid(pair[0]));
    }
    for object in objects {
        if !fits(object.oid.get()) {
            return Err(Refused::InvalidOid(object.oid));
        }
        if object.data_tid.is_some_and(|tid| !fits_tid(tid)) {
            return Err(Refused::UndoPack(object.oid));
        }
    }
    Ok(())
}

fn check_vote(vote: &Vote) -> Result<(), Refused> {
    assert!(fits(vote.ttid.get()), "ttids come from the master: {}", vote.ttid);
    assert!(vote.pack.is_none() || vote.transaction.is_some(), "a pack goes with the metadata");
    check_objects(&vote.objects)
}

fn check_stores(
    db: &mut dyn Reader,
    partitions: u32,
    checks: &[StoreCheck],
) -> Result<Vec<StoreChecked>, Error> {
    if checks.iter().all(|check| fits(check.oid.get())) {
        let no_such_tid = |check: &StoreCheck| check.data_tid.is_some_and(|tid| !fits_tid(tid));
        if !checks.iter().any(no_such_tid) {
            return db.check_stores(partitions, checks);
        }
    }
    // Never sent by a sane client: one by one, without what can not exist.
    let mut result = Vec::with_capacity(checks.len());
    for check in checks {
        result.push(match fits(check.oid.get()) {
            true => {
                let data_tid = check.data_tid.filter(|tid| fits_tid(*tid));
                db.check_stores(partitions, &[StoreCheck { data_tid, ..*check }])?[0]
            }
            false => StoreChecked { last_tid: None, data_tid_exists: false },
        });
    }
    Ok(result)
}

fn find_undo(db: &mut dyn Reader, mut search: UndoSearch) -> Result<Vec<UndoFound>, Error> {
    if !fits_tid(search.undone_tid) {
        return Ok(vec![UndoFound::NothingToUndo; search.objects.len()]);
    }
    search.ltid = search.ltid.map(clamp);
    // No backend has a row for an oid that does not fit; 0 has other rows. Look for the others, then
    // put the answers in place.
    let valid: Vec<bool> = search.objects.iter().map(|(oid, _)| fits(oid.get())).collect();
    search.objects.retain(|(oid, _)| fits(oid.get()));
    let mut found = db.find_undo(&search)?.into_iter();
    Ok(valid
        .into_iter()
        .map(|valid| if valid { found.next() } else { None })
        .map(|undo| undo.unwrap_or(UndoFound::NothingToUndo))
        .collect())
}

fn transaction(
    db: &mut dyn Reader,
    partition: Partition,
    tid: Tid,
) -> Result<Option<TransactionInfo>, Error> {
    if fits_tid(tid) { db.transaction(partition, tid) } else { Ok(None) }
}
