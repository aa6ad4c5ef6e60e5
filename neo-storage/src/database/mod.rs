// SPDX-License-Identifier: GPL-2.0-or-later
//! The database of a storage node: what it keeps, and what each backend must guarantee.
//!
//! ```text
//!   core --Output::Submit(Job)--> lanes (threads)  --execute--> dyn Database / dyn Reader
//!   core <--Input::JobDone(Done)-- one wake-up per batch          sqlite | memory | ...
//! ```
//!
//! - [`job`] is the contract with the core: a [`Job`] is a value, and so is what comes back.
//!   [`execute`](mod@execute) turns one into the other.
//! - [`records`] are the plain data types of jobs.
//! - [`executor`] has the group commit, and a driver without threads for the simulator and for tests;
//!   [`lane`] has the threads: one write lane, several read lanes.
//! - `sqlite`, `mysql` and [`memory`] are the backends; [`manager`] is the logic that they share;
//!   `importer` puts a FileStorage before one of them.
//!
//! The core owns all transaction logic: locks, conflicts, which transactions are voted or locked,
//! which cells are readable. **The database never decides**; it does what it is told, in order, and
//! says what it found. It follows upstream's storage/database/manager.py and sqlite.py; tables and
//! encodings are those of schema version 4.
//!
//! # Rules
//!
//! 1. *One writer.* All changes go through one [`Database`], in order. Readers have their own
//!    connections and see what was committed, never half of a transaction.
//! 2. *Visible, durable.* A commit makes changes visible to readers; a durable commit also survives
//!    a power failure. What is visible survives a crash of the process. See [`CommitLevel`].
//! 3. *References.* Object data is a row that revisions refer to. It is deleted when neither a
//!    revision, nor a voted transaction, nor spilled data refers to it any more. References that are
//!    not committed revisions are counted in memory, and counted again when a database is opened.
//! 4. *Bounds.* Identifiers fit in a signed 64-bit integer. [`execute`](fn@execute) enforces it for all
//!    backends, so that nothing a peer sends can make a statement fail.
//! 5. *Errors.* An [`Error`] means that the database is unusable: the process ends, is restarted,
//!    and verification finishes or drops what was in progress. What a peer can cause is not an
//!    error but a result ([`Refused`], [`ReplicationConflict`], [`Loaded::DoesNotExist`], ...).

pub mod execute;
pub mod executor;
#[cfg(feature = "net")]
pub mod importer;
pub mod job;
#[cfg(feature = "net")]
pub mod lane;
pub mod manager;
pub mod memory;
#[cfg(feature = "net")]
pub mod mysql;
pub mod records;
#[cfg(feature = "net")]
pub mod sqlite;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

pub use execute::{execute, execute_read};
pub use job::{Done, Durability, Job, LaneKind, Read, Write};
pub use records::*;

/// Version of the schema, as in `config`.
pub const SCHEMA_VERSION: u32 = 4;

/// What a commit guarantees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CommitLevel {
    /// Readers see it and it survives a crash of the process. It may be lost in a power failure,
    /// after everything that was committed later, and before everything committed earlier.
    Visible,
    /// It is on disk.
    Durable,
}

/// Operations that change nothing.
///
/// On a connection of its own, a reader sees committed transactions only. On the connection of the
/// writer ([`Database::latest`]), it also sees what is not committed yet.
///
/// Rows of partitions that are not readable may exist (out of date, or being dropped): the caller
/// knows which partitions are readable, and asks about no other.
pub trait Reader: Send {
    /// Starts a snapshot: until [`Self::close_snapshot`], all reads see the same state. Without a
    /// snapshot, each read sees one state.
    fn open_snapshot(&mut self) -> Result<(), Error>;

    /// Ends a snapshot. Snapshots are short: they keep the write-ahead log from being recycled.
    fn close_snapshot(&mut self) -> Result<(), Error>;

    /// Configuration keys that are about the cluster.
    fn config(&mut self) -> Result<StoredConfig, Error>;

    /// Whole partition table, ordered by partition then node.
    fn partition_table(&mut self) -> Result<Vec<StoredCell>, Error>;

    /// Where replication of each own cell resumes, ordered by partition.
    ///
    /// - Out of date: the tid after the one up to which data is complete (0 if there is nothing).
    /// - Readable in backup mode: for transactions `max(backup_tid + 1, last trans tid + 1)`, for
    ///   objects `max(backup_tid + 1, last obj tid)`, because the last transaction may be partially
    ///   replicated; `backup_tid + 1` is 0 if `backup_tid` is 0.
    /// - Readable otherwise: nothing. Corrupted cells are not listed.
    fn cell_next_tids(&mut self) -> Result<Vec<(Partition, CellNext)>, Error>;

    /// Pack status of own cells, ordered by partition.
    fn packed_cells(&mut self) -> Result<Vec<PackedCell>, Error>;

    /// Pack orders with id >= `min_id`, ascending, whose transaction is in one of the `readable`
    /// partitions, and committed: those of unfinished transactions are no orders yet.
    fn pack_orders(
        &mut self,
        readable: &[Partition],
        partitions: u32,
        min_id: Tid,
    ) -> Result<Vec<(Tid, PackOrder)>, Error>;

    /// Transactions of the temporary tables: those with metadata, with their tid if locked, and
    /// those that only have objects.
    fn unfinished(&mut self) -> Result<Unfinished, Error>;

    /// Final tid of a transaction that is committed here: the smallest tid >= ttid of the
    /// partition with that ttid.
    fn final_tid(&mut self, partition: Partition, ttid: Ttid) -> Result<Option<Tid>, Error>;

    /// Greatest and smallest ids of the `readable` partitions.
    fn last_ids(&mut self, readable: &[Partition]) -> Result<LastIds, Error>;

    /// A revision and the tid of the next one. `at` asks for exactly this revision and wins over
    /// `before`, which asks for the last one that is strictly older; with none, the last one.
    fn load(
        &mut self,
        partition: Partition,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
    ) -> Result<Loaded, Error>;

    /// For each object, tid of its last revision, and whether a given revision exists.
    fn check_stores(
        &mut self,
        partitions: u32,
        checks: &[StoreCheck],
    ) -> Result<Vec<StoreChecked>, Error>;

    /// Data row. `None` if it does not exist. (Spilled data may only be visible to the writer.)
    fn data(&mut self, data_id: DataId) -> Result<Option<Value>, Error>;

    /// Tids and sizes of stored data (0 if none) of an object, newest first.
    fn history(
        &mut self,
        partition: Partition,
        oid: Oid,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(Tid, u64)>, Error>;

    /// Undo search for each object, in order. See [`manager::find_undo`].
    fn find_undo(&mut self, search: &UndoSearch) -> Result<Vec<UndoFound>, Error>;

    /// Metadata of a committed transaction and its pack order.
    fn transaction(
        &mut self,
        partition: Partition,
        tid: Tid,
    ) -> Result<Option<TransactionInfo>, Error>;

    /// Tids of these partitions, newest first, skipping `offset` of them.
    fn tids(
        &mut self,
        partitions: &[Partition],
        offset: u64,
        length: u32,
    ) -> Result<Vec<Tid>, Error>;

    /// Tids of a partition in `[min_tid, max_tid]`, ascending.
    fn tids_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<Tid>, Error>;

    /// Objects of a partition from `min_oid` on that are not deleted at `tid`, ascending. At most
    /// `length` (> 0) objects are looked at.
    fn oids_from(
        &mut self,
        partition: Partition,
        partitions: u32,
        min_oid: Oid,
        tid: Tid,
        length: u32,
    ) -> Result<OidsFound, Error>;

    /// Revisions of a partition in (tid, oid) order, from (`min_tid`, `min_oid`) to `max_tid`
    /// included.
    fn revisions_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<(Tid, Oid)>, Error>;

    /// Exactly these revisions, in order, for a replicating node; `None` for those that do not
    /// exist (dropped or truncated meanwhile). It stops after `bytes_max` bytes of data, but
    /// returns at least one: the rest has to be asked again.
    fn fetch_objects(
        &mut self,
        partition: Partition,
        revisions: &[(Tid, Oid)],
        bytes_max: usize,
    ) -> Result<Vec<Option<Revision>>, Error>;

    /// Digest of the transactions of a partition in `[min_tid, max_tid]`.
    fn check_tid_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<TidDigest, Error>;

    /// Digest of the revisions of a partition in (tid, oid) order, from (`min_tid`, `min_oid`) to
    /// `max_tid` included.
    fn check_serial_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<SerialDigest, Error>;
}

/// The writer. Changes are made between [`Self::begin`] and [`Self::commit`].
pub trait Database: Send {
    /// Reads on the connection of the writer.
    fn latest(&mut self) -> &mut dyn Reader;

    /// Starts a database transaction that will be committed with this guarantee. A transaction that
    /// is already open goes on if its guarantee is enough, else it is committed first.
    fn begin(&mut self, sync: CommitLevel) -> Result<(), Error>;

    /// Commits, if a transaction is open.
    fn commit(&mut self) -> Result<(), Error>;

    /// How long a commit that needs not be durable is worth waiting for another one to go with.
    /// Zero if such a commit is cheap.
    fn visible_delay(&self) -> Duration;

    /// A connection for a read lane.
    fn reader(&self) -> Result<Box<dyn Reader>, Error>;

    /// Housekeeping to be done once in a while by a thread of its own, if the backend needs any.
    fn maintenance(&self) -> Result<Option<Box<dyn Maintenance>>, Error> {
        Ok(None)
    }

    /// Whether it has something to do on its own, beside the jobs. Called between them.
    fn work(&mut self) -> Result<Work, Error> {
        Ok(Work::None)
    }

    /// Does a slice of it, after [`Self::begin`].
    fn do_work(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Records the own node id. Own cells of the stored table follow the change.
    fn set_nid(&mut self, nid: NodeId) -> Result<(), Error>;

    /// Changes the partition table and its id. Returns the partitions whose data does not belong to
    /// this node any more, ascending; dropping it is up to the caller.
    ///
    /// Column `tid` of an own cell that is out of date tells up to where its data is complete: it is
    /// kept while the cell stays out of date; it is 0 for a new cell; and for a cell that was
    /// readable, the backup tid in backup mode, else its last tid. All other cells: the negated
    /// state. Column `pack` is only set when a row is inserted: `NULL` for other nodes, 0 if the
    /// cell is readable, else `last_pack_id`.
    fn change_partition_table(
        &mut self,
        change: &PartitionTableChange,
    ) -> Result<Vec<Partition>, Error>;

    /// Enters, leaves or advances backup mode.
    fn set_backup_tid(&mut self, tid: Option<Tid>) -> Result<(), Error>;

    /// Leaves backup mode and plans a truncation.
    fn set_truncate_tid(&mut self, tid: Tid) -> Result<(), Error>;

    /// Does a part of the planned truncation, if any: deletes at most about `rows_max` revisions
    /// and transactions later than the truncation tid, of own cells in any state. At the end, own
    /// cells that are complete up to a later tid are set back and the plan is removed.
    fn truncate(&mut self, rows_max: u32) -> Result<Progress, Error>;

    /// Deletes all temporary rows (voted transactions and their pack orders), and all data that
    /// only they or spilled objects refer to. Done when operation starts, after verification.
    fn drop_unfinished(&mut self) -> Result<(), Error>;

    /// Writes data of objects ahead of the vote, in order to free memory. Returns the contents to
    /// vote with instead, in the same order. The data stays until it is released or voted.
    fn spill(
        &mut self,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Result<Vec<Content>, Refused>, Error>;

    /// Releases spilled data that is not going to be voted.
    fn release(&mut self, data_ids: &[DataId]) -> Result<(), Error>;

    /// Stores a voted transaction in the temporary tables. If refused, nothing of it remains, but
    /// spilled data is still held.
    fn vote(&mut self, vote: &Vote) -> Result<Result<(), Refused>, Error>;

    /// Records the final tid of a voted transaction whose metadata is here, and approves its pack
    /// order if asked. Without metadata, there is nothing to lock.
    fn lock(&mut self, ttid: Ttid, tid: Tid, approve_pack: bool) -> Result<(), Error>;

    /// Moves a transaction from the temporary tables to the final ones. `metadata` says whether it
    /// was voted with metadata.
    fn unlock(&mut self, ttid: Ttid, tid: Tid, metadata: bool) -> Result<(), Error>;

    /// Deletes a transaction that is not locked from the temporary tables (with its pack order),
    /// and releases spilled data. Data that nothing refers to any more is deleted.
    fn abort(&mut self, ttid: Ttid, spilled: &[DataId]) -> Result<(), Error>;

    /// Records whether pack orders are approved or rejected. Returns those that are known here.
    fn sign_packs(&mut self, approved: &[Tid], rejected: &[Tid]) -> Result<Vec<Tid>, Error>;

    /// Does a part of a pack: for each object with a revision at or before `pack_tid`, the last such
    /// one becomes the oldest one, and is deleted too if it has no data. Idempotent.
    fn pack(
        &mut self,
        partition: Partition,
        pack_tid: Tid,
        scope: &PackScope,
    ) -> Result<PackProgress, Error>;

    /// Does a part of a full pack: marks `tids_max` (> 0) transactions from `min_tid` to `pack_tid`
    /// as packed. Returns where to resume; `None` once all are marked. Idempotent.
    fn mark_packed(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        pack_tid: Tid,
        tids_max: u32,
    ) -> Result<Option<Tid>, Error>;

    /// Records the last completed pack of an own cell.
    fn set_packed(&mut self, partition: Partition, pack_id: Tid) -> Result<(), Error>;

    /// Deletes a part of a partition that does not belong to this node any more: at most `rows_max`
    /// revisions in (tid, oid) order, then transactions and pack orders.
    fn drop_partition(&mut self, partition: Partition, rows_max: u32) -> Result<Progress, Error>;

    /// Looks at `rows_max` (> 0) data rows after `after`, and deletes those that nothing refers to,
    /// unless `dry_run`.
    fn prune_orphans(
        &mut self,
        after: Option<DataId>,
        rows_max: u32,
        dry_run: bool,
    ) -> Result<OrphanProgress, Error>;

    /// Stores replicated transactions. One that is there already is not an error if it is equal; it
    /// becomes packed if the other one is.
    fn add_transactions(
        &mut self,
        partitions: u32,
        transactions: &[ReplicatedTransaction],
    ) -> Result<Result<(), ReplicationConflict>, Error>;

    /// Stores replicated objects. One that is there already is not an error if it is equal.
    fn add_objects(
        &mut self,
        partitions: u32,
        objects: &[ReplicatedObject],
    ) -> Result<Result<(), ReplicationConflict>, Error>;

    /// Ends a chunk of replication. Returns the signed pack orders that were found.
    fn end_chunk(&mut self, partitions: u32, end: &ChunkEnd) -> Result<Vec<Tid>, Error>;

    /// Makes the transaction that is open durable, with all that was committed before, even if it
    /// changed nothing itself.
    fn flush(&mut self) -> Result<(), Error>;

    /// Removes everything: the node was removed from the cluster.
    fn erase(&mut self) -> Result<(), Error>;
}

/// What a database has to do on its own, in the write lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing, until a job changes this.
    None,
    /// Something that is not ready yet.
    Later,
    /// A slice of it can be done.
    Now,
}

/// Housekeeping with a connection of its own, beside the lanes.
pub trait Maintenance: Send {
    /// Does what is due, if anything. Called after commits, not more than a few times per second.
    fn run(&mut self) -> Result<(), Error>;
}

/// Why a database can not be opened, or can not be used any more.
#[derive(Debug)]
pub enum Error {
    /// The database string is wrong.
    Url(String),
    /// Another process uses the database.
    Locked,
    /// The schema is that of a later version.
    Newer(u32),
    /// It belongs to another cluster.
    ForeignCluster {
        /// Name given on the command line.
        wanted: String,
        /// Name in the database.
        found: String,
    },
    /// It can not be upgraded to the current schema.
    Upgrade(String),
    /// Something in it is not as it must be.
    Corrupted(String),
    /// The source of an import can not be read, or can not be imported.
    Source(PathBuf, Box<dyn std::error::Error + Send + Sync>),
    /// Something is not possible because of an import.
    Import(String),
    /// No space left.
    Full(Box<dyn std::error::Error + Send + Sync>),
    /// Any other failure of the backend, with what was attempted.
    Backend(String, Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(message) => write!(f, "invalid database string: {message}"),
            // Exactly upstream's message.
            Self::Locked => f.write_str("error: database is locked"),
            Self::Newer(version) => write!(
                f,
                "the database can not be downgraded: its schema version is {version}, the greatest \
                 supported one is {SCHEMA_VERSION}"
            ),
            Self::ForeignCluster { wanted, found } => {
                write!(f, "name {wanted:?} does not match with the database: {found:?}")
            }
            Self::Upgrade(message) => write!(f, "the database can not be upgraded: {message}"),
            Self::Corrupted(message) => write!(f, "corrupted database: {message}"),
            Self::Source(path, cause) => write!(f, "{}: {cause}", path.display()),
            Self::Import(message) => f.write_str(message),
            Self::Full(cause) => write!(f, "no space left for the database: {cause}"),
            Self::Backend(what, cause) => write!(f, "database failure: {what}: {cause}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Full(cause) | Self::Backend(_, cause) | Self::Source(_, cause) => {
                Some(cause.as_ref())
            }
            _ => None,
        }
    }
}
