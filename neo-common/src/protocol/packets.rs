// SPDX-License-Identifier: GPL-2.0-or-later
//! The packet table: code, name, direction and arguments of each packet.
//!
//! Names, codes and order of arguments are upstream's (lib/protocol.py). Letters in the
//! descriptions: M master, S storage, C client, A admin, ctl neoctl. The protocol document has the
//! meaning of each argument.

use std::net::SocketAddr;

use bytes::Bytes;

use super::codec::{Malformed, Map, OutBuffer, Reader, Value, Wire, Writer};
use super::enums::{CellState, ClusterState, ErrorCode, NodeState, NodeType};
use crate::types::{Hash, NodeId, Oid, Partition, Ptid, Tid, Ttid};

/// Identifies a request on its connection end; answers repeat it.
pub type MsgId = u32;

/// Bit set in the code of an answer.
pub const RESPONSE_MASK: u16 = 0x8000;

/// One entry of `NotifyNodeInformation`: type, listening address, id, state, id timestamp.
pub type NodeEntry = (NodeType, Option<SocketAddr>, Option<NodeId>, NodeState, Option<f64>);

/// Rows of a partition table: cells of each partition.
pub type Rows = Vec<Vec<(NodeId, CellState)>>;

/// What a client asks to pack: oids (all if `None`), up to which tid.
pub type PackRequest = (Option<Vec<Oid>>, Tid);

/// Compression, checksum and data of an object.
pub type StoredData = (u32, Hash, Bytes);

/// Oids of a pack order. Upstream's storages send them joined in one string: both are accepted,
/// the list is what we send.
#[derive(Clone, PartialEq, Debug)]
pub enum PackOids {
    /// As specified.
    List(Vec<Oid>),
    /// As upstream's storages do.
    Joined(Bytes),
}

impl PackOids {
    /// The oids, whatever the form. A joined string that is not made of whole oids gives `None`.
    pub fn into_list(self) -> Option<Vec<Oid>> {
        match self {
            Self::List(oids) => Some(oids),
            Self::Joined(bytes) => {
                let (chunks, rest) = bytes.as_chunks::<8>();
                rest.is_empty().then(|| chunks.iter().map(|oid| Oid::from_bytes(*oid)).collect())
            }
        }
    }
}

impl Wire for PackOids {
    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::List(oids) => oids.encode(w),
            Self::Joined(bytes) => bytes.encode(w),
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        match Value::decode(r)? {
            Value::Bin(bytes) => Ok(Self::Joined(bytes)),
            Value::Array(items) => items
                .into_iter()
                .map(|item| match item {
                    Value::Bin(oid) => (&*oid).try_into().ok().map(Oid::from_bytes),
                    _ => None,
                })
                .collect::<Option<_>>()
                .map(Self::List)
                .ok_or(Malformed::Range("oid of a pack order")),
            _ => Err(Malformed::Range("oids of a pack order")),
        }
    }
}

/// A pack order: id, approved (`None`: not signed), partial, oids, pack tid.
pub type PackOrder = (Tid, Option<bool>, bool, Option<PackOids>, Tid);

macro_rules! count {
    () => { 0 };
    ($head:tt $($tail:tt)*) => { 1 + count!($($tail)*) };
}

macro_rules! packets {
    ($($(#[$doc:meta])* $code:literal $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {
        /// A packet: what two nodes say to each other.
        #[derive(Clone, PartialEq, Debug)]
        #[allow(missing_docs)] // Fields: see the protocol document.
        pub enum Packet { $($(#[$doc])* $name { $($field: $ty),* }),* }

        impl Packet {
            /// Number on the wire; answers have [`RESPONSE_MASK`].
            pub const fn code(&self) -> u16 {
                match self { $(Self::$name { .. } => $code),* }
            }
            /// Upstream's name.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$name { .. } => stringify!($name)),* }
            }
            const fn is_code(code: u16) -> bool {
                matches!(code, $($code)|*)
            }
            fn encode_args(&self, w: &mut Writer<'_>) {
                match self {
                    $(Self::$name { $($field),* } => {
                        w.array(count!($($field)*));
                        $($field.encode(w);)*
                    })*
                }
            }
            fn decode_args(code: u16, r: &mut Reader<'_>) -> Result<Self, Malformed> {
                match code {
                    $($code => {
                        r.tuple(count!($($field)*))?;
                        Ok(Self::$name { $($field: Wire::decode(r)?),* })
                    })*
                    _ => Err(Malformed::Code(u64::from(code))),
                }
            }
        }
    };
}

packets! {
    /// any: failure, or success of a request without own answer.
    0x8000 Error { code: ErrorCode, message: String }
    /// any: first packet of a connection, from the connecting node.
    0x0001 RequestIdentification { node_type: NodeType, nid: Option<NodeId>,
        address: Option<SocketAddr>, cluster: String, id_timestamp: Option<f64>,
        extra: Map<Bytes, Value> }
    /// Answer: the peer is who it should be, and may give the requester its nid.
    0x8001 AcceptIdentification { node_type: NodeType, my_nid: Option<NodeId>,
        your_nid: Option<NodeId> }
    /// any, mainly C -> M: barrier, answered after all that was sent before.
    0x0002 Ping {}
    /// Answer to `Ping`.
    0x8002 Pong {}
    /// S -> S: the sender does not use the receiver any more.
    0x0003 CloseClient {}
    /// ctl -> A: who is the primary master?
    0x0004 AskPrimary {}
    /// Answer to `AskPrimary`.
    0x8004 AnswerPrimary { nid: NodeId }
    /// M (secondary): other masters, and which one is primary.
    0x0005 NotPrimaryMaster { primary: Option<u32>, masters: Vec<SocketAddr> }
    /// M -> any: new or changed nodes.
    0x0006 NotifyNodeInformation { timestamp: f64, nodes: Vec<NodeEntry> }
    /// M -> S (RECOVERING); ctl -> A -> M; A -> A: what is needed to recover.
    0x0007 AskRecovery {}
    /// Answer to `AskRecovery`.
    0x8007 AnswerRecovery { ptid: Option<Ptid>, backup_tid: Option<Tid>,
        truncate_tid: Option<Tid> }
    /// M -> S (VERIFYING); ctl -> A -> M: last and first ids of the database.
    0x0008 AskLastIDs {}
    /// Answer to `AskLastIDs`.
    0x8008 AnswerLastIDs { last_tid: Option<Tid>, last_oid: Option<Oid>, first_tid: Tid }
    /// M -> S (RECOVERING): the stored partition table.
    0x0009 AskPartitionTable {}
    /// Answer to `AskPartitionTable`.
    0x8009 AnswerPartitionTable { ptid: Ptid, replicas: u32, rows: Rows }
    /// M -> A, C, S: the whole partition table.
    0x000a SendPartitionTable { ptid: Option<Ptid>, replicas: u32, rows: Rows }
    /// M -> A, C, S: the next version of the partition table, as changes.
    0x000b NotifyPartitionChanges { ptid: Ptid, replicas: u32,
        changes: Vec<(Partition, NodeId, CellState)> }
    /// M -> S: serve clients.
    0x000c StartOperation { backup: bool }
    /// M -> S, C: the cluster is not operational any more.
    0x000d StopOperation {}
    /// S -> M: transactions to wait for before these partitions are complete.
    0x000e AskUnfinishedTransactions { partitions: Vec<Partition> }
    /// Answer to `AskUnfinishedTransactions`.
    0x800e AnswerUnfinishedTransactions { max_tid: Tid, ttids: Vec<Ttid> }
    /// M -> S (VERIFYING): transactions voted or locked here.
    0x000f AskLockedTransactions {}
    /// Answer to `AskLockedTransactions`: the tid is known once locked.
    0x800f AnswerLockedTransactions { transactions: Map<Ttid, Option<Tid>> }
    /// M -> S; C -> M; C -> S: was this transaction committed?
    0x0010 AskFinalTID { ttid: Ttid }
    /// Answer to `AskFinalTID`.
    0x8010 AnswerFinalTID { tid: Option<Tid> }
    /// M -> S (VERIFYING): lock and unlock this transaction.
    0x0011 ValidateTransaction { ttid: Ttid, tid: Tid }
    /// C -> M: begin, with an imposed tid when importing.
    0x0012 AskBeginTransaction { tid: Option<Tid> }
    /// Answer to `AskBeginTransaction`.
    0x8012 AnswerBeginTransaction { ttid: Ttid }
    /// C -> M: storages that could not store or vote. Answered by `Error`.
    0x0013 FailedVote { ttid: Ttid, nids: Vec<NodeId> }
    /// C -> M: commit.
    0x0014 AskFinishTransaction { ttid: Ttid, oids: Vec<Oid>, deleted: Vec<Partition>,
        checked: Vec<Partition>, pack: Option<PackRequest> }
    /// Answer to `AskFinishTransaction`.
    0x8014 AnswerTransactionFinished { ttid: Ttid, tid: Tid }
    /// M -> S: the transaction gets this tid; lock its objects for reading.
    0x0015 AskLockInformation { ttid: Ttid, tid: Tid, pack: bool }
    /// Answer to `AskLockInformation`.
    0x8015 AnswerInformationLocked { ttid: Ttid }
    /// M -> C: objects changed by another client.
    0x0016 InvalidateObjects { tid: Tid, oids: Vec<Oid> }
    /// M -> C (backup master): partitions changed.
    0x0017 InvalidatePartitions { tid: Tid, partitions: Vec<Partition> }
    /// M -> S: the transaction is committed everywhere; make it visible.
    0x0018 NotifyUnlockInformation { ttid: Ttid }
    /// C -> M: reserve oids.
    0x0019 AskNewOIDs { count: u32 }
    /// Answer to `AskNewOIDs`.
    0x8019 AnswerNewOIDs { oids: Vec<Oid> }
    /// S -> C: relock this oid, an older transaction wants it.
    0x001a NotifyDeadlock { ttid: Ttid, oid: Oid }
    /// C -> S: give the lock back and take it again.
    0x001b AskRelockObject { ttid: Ttid, oid: Oid }
    /// Answer to `AskRelockObject`: conflict if any.
    0x801b AnswerRelockObject { conflict: Option<(Tid, Tid, Option<StoredData>)> }
    /// C -> S: store an object.
    0x001c AskStoreObject { oid: Oid, serial: Tid, compression: u32, checksum: Hash, data: Bytes,
        data_serial: Option<Tid>, ttid: Ttid }
    /// Answer to `AskStoreObject`: `None`, `ZERO` (lockless) or the conflicting tid.
    0x801c AnswerStoreObject { conflict: Option<Tid> }
    /// C -> S, C -> M, M -> S: abort.
    0x001d AbortTransaction { ttid: Ttid, nids: Vec<NodeId> }
    /// C -> S: store the metadata and vote.
    0x001e AskStoreTransaction { ttid: Ttid, user: Bytes, description: Bytes, extension: Bytes,
        oids: Vec<Oid>, pack: Option<PackRequest> }
    /// Answer to `AskStoreTransaction`.
    0x801e AnswerStoreTransaction {}
    /// C -> S: vote.
    0x001f AskVoteTransaction { ttid: Ttid }
    /// Answer to `AskVoteTransaction`.
    0x801f AnswerVoteTransaction {}
    /// C -> S: load the revision at, or the last one before, a tid; or the last one.
    0x0020 AskObject { oid: Oid, at: Option<Tid>, before: Option<Tid> }
    /// Answer to `AskObject`.
    0x8020 AnswerObject { oid: Oid, serial: Tid, next_serial: Option<Tid>,
        compression: Option<u32>, checksum: Hash, data: Bytes, data_serial: Option<Tid> }
    /// C -> S: tids by position, newest first.
    0x0021 AskTIDs { first: u64, last: u64, partition: Partition }
    /// Answer to `AskTIDs`.
    0x8021 AnswerTIDs { tids: Vec<Tid> }
    /// C -> S: metadata.
    0x0022 AskTransactionInformation { tid: Tid }
    /// Answer to `AskTransactionInformation`.
    0x8022 AnswerTransactionInformation { tid: Tid, user: Bytes, description: Bytes,
        extension: Bytes, packed: bool, oids: Vec<Oid> }
    /// C -> S: revisions of an object by position, newest first.
    0x0023 AskObjectHistory { oid: Oid, first: u64, last: u64 }
    /// Answer to `AskObjectHistory`: tid and stored size.
    0x8023 AnswerObjectHistory { oid: Oid, history: Vec<(Tid, u64)> }
    /// ctl -> A: rows of the partition table.
    0x0024 AskPartitionList { first: u32, last: u32, nid: Option<NodeId> }
    /// Answer to `AskPartitionList`.
    0x8024 AnswerPartitionList { ptid: Option<Ptid>, replicas: u32, rows: Rows }
    /// ctl -> A: nodes.
    0x0025 AskNodeList { node_type: Option<NodeType> }
    /// Answer to `AskNodeList`.
    0x8025 AnswerNodeList { nodes: Vec<NodeEntry> }
    /// ctl -> A -> M: stop (DOWN) or forget (UNKNOWN) a node. Answered by `Error`.
    0x0026 SetNodeState { nid: NodeId, state: NodeState }
    /// ctl -> A -> M: let pending storages in. Answered by `Error`.
    0x0027 AddPendingNodes { nids: Vec<NodeId> }
    /// ctl -> A -> M: balance the partition table.
    0x0028 TweakPartitionTable { dry_run: bool, ignored: Vec<NodeId> }
    /// Answer to `TweakPartitionTable`.
    0x8028 AnswerTweakPartitionTable { changed: bool, rows: Rows }
    /// ctl -> A -> M. Answered by `Error`.
    0x0029 SetNumReplicas { replicas: i64 }
    /// ctl -> A -> M. Answered by `Error`.
    0x002a SetClusterState { state: ClusterState }
    /// ctl -> A -> M: prune orphan data. Answered by `Error`.
    0x002b Repair { nids: Vec<NodeId>, dry_run: bool }
    /// M -> S: prune orphan data.
    0x002c NotifyRepair { dry_run: bool }
    /// M -> any identified.
    0x002d NotifyClusterInformation { state: ClusterState }
    /// ctl -> A; A -> M.
    0x002e AskClusterState {}
    /// Answer to `AskClusterState`.
    0x802e AnswerClusterState { state: Option<ClusterState> }
    /// C -> S: where is the data that undoing a transaction brings back?
    0x002f AskObjectUndoSerial { ttid: Ttid, ltid: Tid, undone_tid: Tid, oids: Vec<Oid> }
    /// Answer to `AskObjectUndoSerial`: current tid, undo tid, whether current.
    0x802f AnswerObjectUndoSerial { serials: Map<Oid, (Tid, Option<Tid>, bool)> }
    /// C -> S: tids in ascending order.
    0x0030 AskTIDsFrom { min_tid: Tid, max_tid: Tid, length: u32, partition: Partition }
    /// Answer to `AskTIDsFrom`.
    0x8030 AnswerTIDsFrom { tids: Vec<Tid> }
    /// C -> S: oids that exist at a tid, in ascending order.
    0x0031 AskOIDsFrom { partition: Partition, length: u32, min_oid: Oid, tid: Tid }
    /// Answer to `AskOIDsFrom`.
    0x8031 AnswerOIDsFrom { next_oid: Option<Oid>, oids: Vec<Oid> }
    /// C -> M: tell when this pack is completed.
    0x0032 WaitForPack { tid: Tid }
    /// Answer to `WaitForPack`.
    0x8032 WaitedForPack {}
    /// M -> S; C, S -> M: pack orders from an id.
    0x0033 AskPackOrders { min_tid: Tid }
    /// Answer to `AskPackOrders`.
    0x8033 AnswerPackOrders { orders: Vec<PackOrder> }
    /// M -> S, M -> C (backup master): decisions about pack orders.
    0x0034 NotifyPackSigned { approved: Vec<Tid>, rejected: Vec<Tid> }
    /// S -> M: packed up to this order.
    0x0035 NotifyPackCompleted { tid: Tid }
    /// ctl -> A -> M. Answered by `Error`.
    0x0036 CheckReplicas { partitions: Map<Partition, Option<NodeId>>, min_tid: Tid,
        max_tid: Option<Tid> }
    /// M -> S: compare a partition with its other cells.
    0x0037 CheckPartition { partition: Partition, source: (String, Option<SocketAddr>),
        min_tid: Tid, max_tid: Tid }
    /// S -> S: digest of a range of tids.
    0x0038 AskCheckTIDRange { partition: Partition, length: u32, min_tid: Tid, max_tid: Tid }
    /// Answer to `AskCheckTIDRange`.
    0x8038 AnswerCheckTIDRange { count: u32, checksum: Hash, max_tid: Tid }
    /// S -> S: digest of a range of object revisions.
    0x0039 AskCheckSerialRange { partition: Partition, length: u32, min_tid: Tid, max_tid: Tid,
        min_oid: Oid }
    /// Answer to `AskCheckSerialRange`.
    0x8039 AnswerCheckSerialRange { count: u32, tid_checksum: Hash, max_tid: Tid,
        oid_checksum: Hash, max_oid: Oid }
    /// S -> M: differences were found.
    0x003a NotifyPartitionCorrupted { partition: Partition, nids: Vec<Option<NodeId>> }
    /// S -> M: ready to serve clients.
    0x003b NotifyReady {}
    /// C -> M; ctl -> A -> M; A -> A.
    0x003c AskLastTransaction {}
    /// Answer to `AskLastTransaction`.
    0x803c AnswerLastTransaction { tid: Tid }
    /// C -> S: is this serial current? It stays so until the transaction ends.
    0x003d AskCheckCurrentSerial { ttid: Ttid, oid: Oid, serial: Tid }
    /// Answer to `AskCheckCurrentSerial`, like `AnswerStoreObject`.
    0x803d AnswerCheckCurrentSerial { conflict: Option<Tid> }
    /// M -> S: a transaction that a replication waits for is finished.
    0x003e NotifyTransactionFinished { ttid: Ttid, max_tid: Option<Tid> }
    /// M -> S (backup): replicate up to a tid, from these addresses.
    0x003f Replicate { tid: Tid, upstream_name: String,
        sources: Map<Partition, Option<SocketAddr>> }
    /// S -> M: this cell is complete up to a tid.
    0x0040 NotifyReplicationDone { partition: Partition, tid: Tid }
    /// S -> S: send the transactions that are not listed.
    0x0041 AskFetchTransactions { partition: Partition, length: u32, min_tid: Tid, max_tid: Tid,
        known: Vec<Tid>, ask_pack_info: bool }
    /// Answer to `AskFetchTransactions`.
    0x8041 AnswerFetchTransactions { next_tid: Option<Tid>, to_delete: Vec<Tid>,
        completed_pack: Option<Tid> }
    /// S -> S: send the object revisions that are not listed.
    0x0042 AskFetchObjects { partition: Partition, length: u32, min_tid: Tid, max_tid: Tid,
        min_oid: Oid, known: Map<Tid, Vec<Oid>> }
    /// Answer to `AskFetchObjects`.
    0x8042 AnswerFetchObjects { next_tid: Option<Tid>, next_oid: Option<Oid>,
        to_delete: Map<Tid, Vec<Oid>> }
    /// S -> S: a transaction, with the id of the request.
    0x0043 AddTransaction { tid: Tid, user: Bytes, description: Bytes, extension: Bytes,
        packed: bool, ttid: Ttid, oids: Vec<Oid>,
        pack: Option<(Option<bool>, bool, Option<PackOids>, Tid)> }
    /// S -> S: an object revision, with the id of the request.
    0x0044 AddObject { oid: Oid, serial: Tid, compression: u32, checksum: Hash, data: Bytes,
        data_serial: Option<Tid> }
    /// ctl -> A -> M (answered by `Error`); M -> S (not answered).
    0x0045 Truncate { tid: Tid }
    /// ctl -> A -> M -> any.
    0x0046 FlushLog {}
    /// ctl -> A.
    0x0047 AskMonitorInformation {}
    /// Answer to `AskMonitorInformation`.
    0x8047 AnswerMonitorInformation { warnings: Vec<Option<String>>,
        problems: Vec<Option<String>>, summary: String }
    /// A (backup) -> A (upstream): what changed.
    0x0048 NotifyMonitorInformation { info: Map<Bytes, Value> }
    /// M -> A (backup): address of the admin of the upstream cluster.
    0x0049 NotifyUpstreamAdmin { address: SocketAddr }
}

impl Packet {
    /// Whether it replies to a packet of the peer.
    pub const fn is_answer(&self) -> bool {
        self.code() & RESPONSE_MASK != 0
    }
    /// Code of the answer that the peer gives on success; `None` for notifications and answers.
    pub const fn answer_code(&self) -> Option<u16> {
        let code = self.code();
        if code & RESPONSE_MASK != 0 {
            None
        } else if Self::is_code(code | RESPONSE_MASK) {
            Some(code | RESPONSE_MASK)
        } else if matches!(
            self,
            Self::FailedVote { .. }
                | Self::SetNodeState { .. }
                | Self::AddPendingNodes { .. }
                | Self::SetNumReplicas { .. }
                | Self::SetClusterState { .. }
                | Self::Repair { .. }
                | Self::CheckReplicas { .. }
                | Self::Truncate { .. }
        ) {
            Some(RESPONSE_MASK)
        } else {
            None
        }
    }
    /// Whether it may wait in the outbox for more to send. Upstream: `nodelay`.
    pub const fn is_buffered(&self) -> bool {
        matches!(self, Self::AddTransaction { .. } | Self::AddObject { .. })
    }
    /// Appends `[id, code, args]`. `id` is `None` only in a reply to nothing.
    pub fn encode(&self, id: Option<MsgId>, out: &mut OutBuffer) {
        let mut w = Writer::new(out);
        w.array(3);
        id.encode(&mut w);
        w.uint(u64::from(self.code()));
        self.encode_args(&mut w);
    }
    /// Takes one whole packet. The id is `None` only in an `Error` in reply to nothing.
    ///
    /// # Errors
    /// [`Malformed`]: what follows cannot be trusted, the connection must be closed.
    pub fn decode(r: &mut Reader<'_>) -> Result<(Option<MsgId>, Self), Malformed> {
        r.tuple(3)?;
        let id = Option::<MsgId>::decode(r)?;
        let code = r.int()?;
        let code = u16::try_from(code).map_err(|_| Malformed::Code(code as u64))?;
        let packet = Self::decode_args(code, r)?;
        if id.is_none() && code != RESPONSE_MASK {
            return Err(Malformed::Range("packet id"));
        }
        if r.remaining() != 0 {
            return Err(Malformed::Range("end of packet"));
        }
        Ok((id, packet))
    }
    /// `Error` packet.
    pub fn error(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Error { code, message: message.into() }
    }
    /// `Error` with code ACK.
    pub fn ack(message: impl Into<String>) -> Self {
        Self::error(ErrorCode::Ack, message)
    }
    /// `Error` with code DENIED.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::error(ErrorCode::Denied, message)
    }
}
