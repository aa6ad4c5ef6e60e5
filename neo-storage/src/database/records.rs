// SPDX-License-Identifier: GPL-2.0-or-later
//! Plain data that goes in and out of a database: no behaviour, no reference to a backend.
//!
//! Object data is [`Bytes`]: it is the same allocation from the receive buffer to the binding of
//! the statement, and from the row to the socket.

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::protocol::enums::CellState;
use neo_common::types::{Hash, NodeId, Oid, Partition, Ptid, Tid, Ttid};

/// Identifier of a row of object data, opaque outside of a database.
///
/// Allocated as `(partition << 48) + n`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DataId(pub i64);

/// What the `config` table says. Missing keys are `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoredConfig {
    /// Cluster name.
    pub name: Option<String>,
    /// Own node id: the last one given by a master.
    pub nid: Option<NodeId>,
    /// Id of the stored partition table; `None` if there is no table.
    pub ptid: Option<Ptid>,
    /// Replicas of the stored partition table.
    pub replicas: Option<u32>,
    /// Present in backup mode (it may be [`Tid::ZERO`]): all is complete up to this tid.
    pub backup_tid: Option<Tid>,
    /// A truncation to this tid has to be done.
    pub truncate_tid: Option<Tid>,
    /// Greatest id of a node that had cells and does not exist any more, if it is greater than those that
    /// have cells: nobody else must get it. Not in databases of upstream, which ignores it.
    pub dropped: Option<NodeId>,
}

/// A cell of the stored partition table, of any node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StoredCell {
    /// Row of the table.
    pub partition: Partition,
    /// Node that the cell belongs to.
    pub nid: NodeId,
    /// State; never [`CellState::Discarded`].
    pub state: CellState,
}

/// A change of the partition table, or a whole new one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionTableChange {
    /// New id of the table.
    pub ptid: Ptid,
    /// New number of replicas.
    pub replicas: u32,
    /// Cells that change, or all cells.
    pub cells: Vec<StoredCell>,
    /// What becomes of cells that are not listed.
    pub scope: ChangeScope,
    /// Last approved pack id known by the node ([`Tid::ZERO`] at startup): the pack status of a new
    /// own cell that is out of date.
    pub last_pack_id: Tid,
    /// Partitions whose temporary rows (voted transactions) are deleted in the same commit, because
    /// the own cell is discarded while the node is operational.
    pub drop_temporary: Vec<Partition>,
    /// Spilled data (see `Write::Spill`) of these partitions, not needed any more.
    pub release: Vec<DataId>,
}

/// What becomes of cells that a [`PartitionTableChange`] does not list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeScope {
    /// `SendPartitionTable`: they are removed.
    Full,
    /// `NotifyPartitionChanges`: they stay.
    Listed,
}

/// Object data as stored: possibly compressed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// 0 none, 1 zlib.
    pub compression: u8,
    /// SHA-1 of `data`.
    pub checksum: Hash,
    /// The bytes that the checksum is about.
    pub data: Bytes,
}

/// An object of a transaction that is being voted, or that is replicated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRecord {
    /// Id of the object.
    pub oid: Oid,
    /// Undo: the revision of this object whose data is used again. If it exists, its data wins over
    /// `content`.
    pub data_tid: Option<Tid>,
    /// Data to store, unless `data_tid` leads to some.
    pub content: Content,
}

/// Data of an [`ObjectRecord`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Bytes to be stored.
    Value(Value),
    /// The object is deleted, or its creation is undone.
    Deleted,
    /// Data that `Write::Spill` stored already. `data_tid` is only recorded.
    Spilled(DataId),
    /// There is no other data than that of `data_tid`: the own cell is readable, so that a missing
    /// revision means that it was packed. The transaction is refused if so.
    MustExist,
}

/// Metadata of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionRecord {
    /// All objects of the transaction, in the order sent by the client.
    pub oids: Vec<Oid>,
    /// Raw bytes, as received.
    pub user: Bytes,
    /// Raw bytes, as received.
    pub description: Bytes,
    /// Raw bytes, as received.
    pub extension: Bytes,
    /// Whether some of its objects may have been packed away. Upstream has this too, but never sets it.
    pub packed: bool,
    /// Temporary id that the transaction had.
    pub ttid: Ttid,
}

impl TransactionRecord {
    /// Whether another replica may have this. They are not packed at the same time.
    pub fn is_same(&self, other: &Self) -> bool {
        Self { packed: other.packed, ..self.clone() } == *other
    }
}

/// A pack order; its id is the tid of the transaction that carries it (its ttid until unlocked).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackOrder {
    /// `None` if not signed yet.
    pub approved: Option<bool>,
    /// Whether only `oids` are packed.
    pub partial: bool,
    /// Sorted.
    pub oids: Option<Vec<Oid>>,
    /// Revisions older than the last one at this tid are removed.
    pub pack_tid: Tid,
}

/// A committed transaction, as read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionInfo {
    /// Final id.
    pub tid: Tid,
    /// Metadata.
    pub record: TransactionRecord,
    /// Pack order that it carries.
    pub pack: Option<PackOrder>,
}

/// All that a vote makes durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vote {
    /// Transaction that is voted.
    pub ttid: Ttid,
    /// Number of partitions of the table, > 0.
    pub partitions: u32,
    /// Objects, each oid once.
    pub objects: Vec<ObjectRecord>,
    /// Metadata, if this node stores them (`AskStoreTransaction`).
    pub transaction: Option<TransactionRecord>,
    /// Pack order that goes with the metadata.
    pub pack: Option<PackOrder>,
}

/// Why a vote or a spill is refused. Nothing of it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// `UNDO_PACK_ERROR`: the revision to take data from does not exist any more.
    UndoPack(Oid),
    /// With deduplication: other data has the same hash.
    Collision(Oid),
    /// The oid does not fit in a signed 64-bit integer, or is listed twice.
    InvalidOid(Oid),
    /// User, description or extension do not fit in the columns of this backend.
    MetadataTooLong,
}

/// A revision of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revision {
    /// Transaction that wrote it.
    pub tid: Tid,
    /// Transaction that wrote the next revision, if any. Always `None` in an answer to
    /// `Read::FetchObjects`, which does not look for it.
    pub next_tid: Option<Tid>,
    /// `None`: deleted, or creation undone.
    pub value: Option<Value>,
    /// Undo: revision with the same data.
    pub data_tid: Option<Tid>,
}

/// Result of a load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Loaded {
    /// The revision that was asked for.
    Found(Revision),
    /// `OID_NOT_FOUND`: the object has other revisions.
    NotAtThatTid,
    /// `OID_DOES_NOT_EXIST`: it has none at all.
    DoesNotExist,
}

/// What a store or a check of an object asks before it may take a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreCheck {
    /// Object that is stored or checked.
    pub oid: Oid,
    /// Undo: revision whose data is going to be used again.
    pub data_tid: Option<Tid>,
}

/// Answer to a [`StoreCheck`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreChecked {
    /// Tid of the last revision of the object.
    pub last_tid: Option<Tid>,
    /// Whether the revision `data_tid` exists; `false` if none was asked.
    pub data_tid_exists: bool,
}

/// Answer to `AskLastIDs`, about readable partitions only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastIds {
    /// Greatest tid of transactions and objects.
    pub last_tid: Option<Tid>,
    /// Greatest oid.
    pub last_oid: Option<Oid>,
    /// Smallest tid of transactions; [`Tid::MAX`] if none.
    pub first_tid: Tid,
}

/// What an undo looks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UndoSearch {
    /// Number of partitions of the table, > 0.
    pub partitions: u32,
    /// Exclusive upper bound of what the undoing transaction sees. `None`: it sees everything.
    pub ltid: Option<Tid>,
    /// Transaction to undo.
    pub undone_tid: Tid,
    /// Objects, each with its revision in the undoing transaction if it already modified it: its
    /// data tid if it has one, else the ttid as a tid.
    pub objects: Vec<(Oid, Option<Tid>)>,
}

/// Result of an undo search for one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UndoFound {
    /// The transaction to undo did not modify it: it is omitted in the answer.
    NothingToUndo,
    /// `OID_NOT_FOUND`: it was created after what the undoing transaction sees.
    NotVisible,
    /// What to do.
    Undo {
        /// Current revision, as the undoing transaction sees it.
        current_tid: Tid,
        /// Revision to go back to; `None` to undo the creation.
        undo_tid: Option<Tid>,
        /// Whether nobody modified the object after the transaction to undo.
        is_current: bool,
    },
}

/// Where the replication of an own cell resumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellNext {
    /// Out of date: first tid to replicate, for transactions and objects.
    OutOfDate(Tid),
    /// Readable in backup mode: first tid of transactions, first tid of objects.
    Backup(Tid, Tid),
    /// Readable: nothing to replicate.
    Readable,
}

/// Pack status of an own cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackedCell {
    /// Row of the table.
    pub partition: Partition,
    /// Last completed pack; [`Tid::ZERO`] if none.
    pub pack_id: Tid,
    /// Whether the cell is `UP_TO_DATE`.
    pub up_to_date: bool,
}

/// A transaction received by replication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicatedTransaction {
    /// Transaction and its pack order.
    pub info: TransactionInfo,
}

/// An object received by replication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicatedObject {
    /// Transaction that wrote it.
    pub tid: Tid,
    /// Object; its content is `Value` or `Deleted`.
    pub object: ObjectRecord,
}

/// Why replicated rows are refused. Rows before this one are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicationConflict {
    /// A different transaction has this tid.
    Transaction(Tid),
    /// A different revision of this object has this tid.
    Object(Oid, Tid),
    /// With deduplication: other data has the same hash.
    Collision(Oid, Tid),
    /// An id that does not fit in a signed 64-bit integer.
    InvalidId,
}

/// End of a chunk of replication, or of the replication of a partition: what is committed before
/// the next chunk is asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChunkEnd {
    /// Partition that is replicated.
    pub partition: Partition,
    /// Transactions that the source does not have.
    pub delete_transactions: Vec<Tid>,
    /// Revisions that the source does not have.
    pub delete_objects: Vec<(Oid, Tid)>,
    /// Completed pack of the source: own status is lowered to it.
    pub source_pack_id: Option<Tid>,
    /// The own cell is complete up to this tid. Only recorded if it is out of date.
    pub cell_tid: Option<Tid>,
    /// New backup tid; only recorded in backup mode.
    pub backup_tid: Option<Tid>,
    /// Pack orders that were signed before they were replicated.
    pub approved: Vec<Tid>,
    /// See `approved`.
    pub rejected: Vec<Tid>,
}

/// What a pack looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PackScope {
    /// Full pack: the next `oids_max` oids, from this one on.
    From {
        /// First oid.
        min_oid: Oid,
        /// Number of oids, > 0.
        oids_max: u32,
    },
    /// Partial pack: a slice of the ordered oids, all of the partition.
    Oids(Vec<Oid>),
}

/// Result of a slice of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackProgress {
    /// Where to resume; `None` once all is done. Always `None` for [`PackScope::Oids`].
    pub next_oid: Option<Oid>,
    /// Revisions that were deleted.
    pub deleted: u64,
}

/// Result of a slice of a task that deletes rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Rows that were deleted.
    pub deleted: u64,
    /// Whether nothing remains to be done.
    pub done: bool,
}

/// Result of a slice of a search for orphan data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OrphanProgress {
    /// Orphans that were found.
    pub found: u64,
    /// Orphans that were deleted (0 in a dry run).
    pub deleted: u64,
    /// Last row that was looked at, to be given to the next slice; `None` once all is done.
    pub after: Option<DataId>,
}

/// Oids of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OidsFound {
    /// Where to resume; `None` at the end.
    pub next_oid: Option<Oid>,
    /// Oids that are not deleted, ascending. It may be shorter than asked.
    pub oids: Vec<Oid>,
}

/// Digest of a range of transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TidDigest {
    /// Transactions in the range, at most what was asked.
    pub count: u32,
    /// SHA-1 of decimal tids joined by commas; [`neo_common::types::ZERO_HASH`] if none.
    pub checksum: Hash,
    /// Last tid; [`Tid::ZERO`] if none.
    pub max_tid: Tid,
}

/// Digest of a range of revisions, in (tid, oid) order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialDigest {
    /// Revisions in the range, at most what was asked.
    pub count: u32,
    /// SHA-1 of decimal tids joined by commas; [`neo_common::types::ZERO_HASH`] if none.
    pub tid_checksum: Hash,
    /// Tid of the last revision; [`Tid::ZERO`] if none.
    pub max_tid: Tid,
    /// SHA-1 of decimal oids joined by commas; [`neo_common::types::ZERO_HASH`] if none.
    pub oid_checksum: Hash,
    /// Oid of the last revision; [`Oid::ZERO`] if none.
    pub max_oid: Oid,
}

/// Transactions found in the temporary tables: final tid if locked, `None` if only voted.
pub type Unfinished = BTreeMap<Ttid, Option<Tid>>;
