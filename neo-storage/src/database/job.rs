// SPDX-License-Identifier: GPL-2.0-or-later
//! Jobs: what the core asks from the database, as values, and what comes back.
//!
//! This is the contract between the core of the node and its database. The core submits a [`Job`];
//! a driver hands it to [`execute`](fn@super::execute) on some thread, and the core gets the
//! [`Done`] as an input. Jobs and results can be printed, compared, counted and replayed.
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

use neo_common::planted;
use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use super::records::*;

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

/// Jobs that change something. The operations are described at [`Database`](super::Database).
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
    /// A slice of a full pack: transactions are marked as packed. [`Done::Marked`].
    MarkPacked {
        /// Partition to pack.
        partition: Partition,
        /// First transaction.
        min_tid: Tid,
        /// Time of the pack.
        pack_tid: Tid,
        /// Number of transactions, > 0.
        tids_max: u32,
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

/// Jobs that change nothing. The operations are described at [`Reader`](super::Reader).
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
    /// Transactions are marked as packed: where to resume.
    Marked(Option<Tid>),
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
    pub fn durability(&self) -> Durability {
        match self {
            Self::Write(write) => write.durability(),
            Self::Read(_) | Self::ReadLatest(_) => Durability::Executed,
        }
    }
}

impl Write {
    /// What must have happened before it is reported.
    pub fn durability(&self) -> Durability {
        match self {
            Self::Vote(_) if planted!(VoteAnsweredBeforeCommit) => Durability::Executed,
            Self::Lock { .. } if planted!(LockAnsweredBeforeCommit) => Durability::Executed,
            Self::Unlock { .. } if planted!(LockReleasedBeforeVisible) => Durability::Executed,
            Self::EndChunk { .. } if planted!(ReplicatedBeforeCommit) => Durability::Executed,
            Self::ChangePartitionTable(_) | Self::Flush if planted!(TableNotFlushed) => {
                Durability::Executed
            }
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
            | Self::MarkPacked { .. }
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
