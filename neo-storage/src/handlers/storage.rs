// SPDX-License-Identifier: GPL-2.0-or-later
//! Other storages: replication and checks, in both roles. Upstream: storage/handlers/storage.py.
//!
//! As a source, a node answers with a bounded amount of data per request, whatever was asked: the
//! protocol allows to cut a chunk, the other node asks for the rest once it has received this one.
//! So neither can make the other hold more than that.

use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::{Fault, Handled, Handler, Io, Lost, base_error};
use neo_common::node::{Link, Node};
use neo_common::protocol::{CellState, ErrorCode, Map, MsgId, NodeType, PackOids, Packet};
use neo_common::types::{ConnId, NodeId, Oid, Partition, Tid, ZERO_HASH};

use super::base_packet;
use crate::app::{Shared, Storage, Ticket, done};
use crate::database::{Done, Read, Revision, TransactionInfo, TransactionRecord};
use crate::limits::{CHECK_COUNT, FETCH_BYTES, FETCH_COUNT_MAX, SERVES_PER_PEER_MAX};
use crate::operation::{Operation, OperationAfter, read_for};
use crate::reads::DelayedRead;
use crate::replicator;

/// Handler of connections between storages.
pub struct StorageHandler;

/// What is being read for other storages.
#[derive(Debug, Default)]
pub struct Feeding {
    /// Number of requests in progress by connection.
    serves: BTreeMap<ConnId, u32>,
}

/// What to do with what was read for another storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServedAfter {
    conn: ConnId,
    id: MsgId,
    partition: Partition,
    what: Serve,
}

/// See [`ServedAfter`].
#[derive(Clone, PartialEq, Eq, Debug)]
enum Serve {
    /// Transactions of the range.
    Tids { known: BTreeSet<Tid>, length: usize, pack_id: Option<Tid> },
    /// Transactions to send.
    Transactions { next_tid: Option<Tid>, to_delete: Vec<Tid>, pack_id: Option<Tid> },
    /// Revisions of the range.
    Revisions { known: BTreeSet<(Tid, Oid)>, length: usize },
    /// Revisions to send.
    Objects {
        revisions: Vec<(Tid, Oid)>,
        next: Option<(Tid, Oid)>,
        to_delete: BTreeSet<(Tid, Oid)>,
    },
    /// Digest of transactions.
    TidDigest,
    /// Digest of revisions.
    SerialDigest,
}

impl Handler<Storage> for StorageHandler {
    fn name(&self) -> &'static str {
        "StorageOperationHandler"
    }

    fn packet(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let Some((operation, shared)) = app.operation() else { return Err(Fault::retry_later()) };
        match packet {
            Packet::AddTransaction { .. } => {
                replicator::add_transaction(operation, shared, io, conn, id, packet)
            }
            Packet::AddObject { .. } => {
                replicator::add_object(operation, shared, io, conn, id, packet)
            }
            Packet::AskFetchTransactions { .. }
            | Packet::AskFetchObjects { .. }
            | Packet::AskCheckTIDRange { .. }
            | Packet::AskCheckSerialRange { .. } => serve(operation, shared, io, conn, id, packet),
            packet => base_packet(io, conn, id, &packet),
        }
    }

    fn answer(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        let Some((operation, shared)) = app.operation() else { return Ok(()) };
        match (ticket, packet) {
            (
                Ticket::Identification,
                Packet::AcceptIdentification { node_type, my_nid, your_nid },
            ) => accepted(operation, shared, io, conn, node_type, my_nid, your_nid),
            (
                Ticket::Fetch(request),
                Packet::AnswerFetchTransactions { next_tid, to_delete, completed_pack },
            ) => replicator::fetched_transactions(
                operation,
                shared,
                io,
                request,
                next_tid,
                to_delete,
                completed_pack,
            ),
            (
                Ticket::Fetch(request),
                Packet::AnswerFetchObjects { next_tid, next_oid, to_delete },
            ) => {
                let next = next_tid.map(|tid| (tid, next_oid.unwrap_or(Oid::ZERO)));
                replicator::fetched_objects(operation, shared, io, request, next, to_delete)
            }
            (Ticket::Check(request), packet) => {
                let Operation { checker, replicator, transactions, .. } = operation;
                checker.answered(replicator, transactions, shared, io, request, &packet)
            }
            _ => Err(Fault::Unexpected),
        }
    }

    fn error(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        let Some((operation, shared)) = app.operation() else { return Ok(()) };
        match (ticket, code) {
            (Some(Ticket::Fetch(request)), ErrorCode::ReplicationError) => {
                replicator::refused(operation, shared, io, request, &message);
                Ok(())
            }
            (Some(Ticket::Check(_)), ErrorCode::CheckingError) => {
                log::warn!("check refused: {message}");
                let Operation { checker, replicator, transactions, .. } = operation;
                checker.connection_lost(replicator, transactions, shared, io, conn);
                replicator::close_client(operation, io, conn);
                Ok(())
            }
            // The sender closes; what it was asked is lost with the connection.
            (ticket, code) => {
                base_error(code, &message)?;
                match ticket {
                    Some(_) => Err(Fault::Close),
                    None => Ok(()),
                }
            }
        }
    }

    fn completed(&self, app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) {
        if let Some((operation, shared)) = app.operation() {
            replicator::identify(&operation.replicator, shared, io, conn);
        }
    }

    fn lost(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        app.shared.nodes.unlink(conn);
        let Some((operation, shared)) = app.operation() else { return };
        operation.feeding.serves.remove(&conn);
        replicator::connection_lost(operation, shared, io, conn);
        let Operation { checker, replicator, transactions, .. } = operation;
        checker.connection_lost(replicator, transactions, shared, io, conn);
    }
}

/// Sources are tried again.
pub(crate) fn retry_source(app: &mut Storage, io: &mut Io<'_, Storage>) {
    if let Some((operation, shared)) = app.operation() {
        replicator::poll(operation, shared, io);
    }
}

/// A storage accepted us. Upstream: lib/handler.py, `acceptIdentification`.
fn accepted(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    node_type: NodeType,
    my_nid: Option<NodeId>,
    your_nid: Option<NodeId>,
) -> Handled {
    if node_type != NodeType::Storage {
        return Err(Fault::Close);
    }
    if operation.replicator.is_upstream(conn) {
        if my_nid.is_some() || your_nid.is_some() {
            return Err(Fault::protocol("invalid uuids"));
        }
        io.trust(conn);
    } else {
        let node = shared.nodes.by_connection(conn);
        let key = node.filter(|node| node.nid() == my_nid).map(Node::key);
        let key = key.filter(|_| your_nid.is_none() || your_nid == shared.nid());
        let key = key.ok_or_else(|| Fault::protocol("invalid uuids"))?;
        let linked = shared.nodes.set_link(key, Link::Identified(conn));
        linked.map_err(|conflict| Fault::protocol(conflict.to_string()))?;
        io.set_nid(conn, my_nid);
    }
    if shared.is_congested {
        io.pause(conn);
    }
    replicator::connected(operation, shared, io, conn);
    operation.checker.connected(shared, io, conn);
    Ok(())
}

// Source.

/// A request of a storage that uses us, new or delayed.
pub(crate) fn serve(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    match packet {
        Packet::AskFetchTransactions {
            partition,
            length,
            min_tid,
            max_tid,
            known,
            ask_pack_info,
        } => {
            check_feeding(shared, io, conn, partition)?;
            if operation.transactions.is_locked_tid(max_tid) {
                // A backup cluster may be fast; or NotifyTransactionFinished to the other node was
                // faster than NotifyUnlockInformation to us.
                let packet = Packet::AskFetchTransactions {
                    partition,
                    length,
                    min_tid,
                    max_tid,
                    known,
                    ask_pack_info,
                };
                return operation.delayed.add_read(max_tid, DelayedRead { conn, id, packet });
            }
            let length = length.min(FETCH_COUNT_MAX);
            let pack_id = operation.pack.completed(partition).filter(|_| ask_pack_info);
            let known = known.into_iter().collect();
            let what = Serve::Tids { known, length: length as usize, pack_id };
            let job = Read::TidsFrom { partition, min_tid, max_tid, length: length + 1 };
            submit(operation, shared, io, job, ServedAfter { conn, id, partition, what })
        }
        Packet::AskFetchObjects { partition, length, min_tid, max_tid, min_oid, known } => {
            check_feeding(shared, io, conn, partition)?;
            if operation.transactions.is_locked_tid(max_tid) {
                return Err(Fault::protocol("transactions must be fetched before objects"));
            }
            let length = length.min(FETCH_COUNT_MAX);
            let known =
                known.into_iter().flat_map(|(tid, oids)| oids.into_iter().map(move |o| (tid, o)));
            let what = Serve::Revisions { known: known.collect(), length: length as usize };
            let length = length + 1;
            let job = Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length };
            submit(operation, shared, io, job, ServedAfter { conn, id, partition, what })
        }
        Packet::AskCheckTIDRange { partition, length, min_tid, max_tid } => {
            check_checkable(shared, io, conn, partition)?;
            if operation.transactions.is_locked_tid(max_tid) {
                let packet = Packet::AskCheckTIDRange { partition, length, min_tid, max_tid };
                return operation.delayed.add_read(max_tid, DelayedRead { conn, id, packet });
            }
            let length = length.min(CHECK_COUNT);
            let job = Read::CheckTidRange { partition, min_tid, max_tid, length };
            let what = Serve::TidDigest;
            submit(operation, shared, io, job, ServedAfter { conn, id, partition, what })
        }
        Packet::AskCheckSerialRange { partition, length, min_tid, max_tid, min_oid } => {
            check_checkable(shared, io, conn, partition)?;
            if operation.transactions.is_locked_tid(max_tid) {
                return Err(Fault::protocol("transactions must be checked before objects"));
            }
            let length = length.min(CHECK_COUNT);
            let job = Read::CheckSerialRange { partition, min_tid, min_oid, max_tid, length };
            let what = Serve::SerialDigest;
            submit(operation, shared, io, job, ServedAfter { conn, id, partition, what })
        }
        _ => Err(Fault::Unexpected),
    }
}

fn check_feeding(
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    partition: Partition,
) -> Handled {
    if !shared.is_readable(partition) {
        let message = format!("partition {partition} not readable");
        return Err(Fault::Error(ErrorCode::ReplicationError, message));
    }
    io.as_server(conn);
    Ok(())
}

fn check_checkable(
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    partition: Partition,
) -> Handled {
    match shared.cell_state(partition) {
        None | Some(CellState::OutOfDate) => {
            let message = format!("partition {partition} not readable");
            Err(Fault::Error(ErrorCode::CheckingError, message))
        }
        Some(_) => {
            io.as_server(conn);
            Ok(())
        }
    }
}

fn submit(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    job: Read,
    after: ServedAfter,
) -> Handled {
    let count = operation.feeding.serves.entry(after.conn).or_default();
    if *count >= SERVES_PER_PEER_MAX {
        return Err(Fault::protocol("too many requests at once"));
    }
    *count += 1;
    read_for(shared, io, job, OperationAfter::Served(after));
    Ok(())
}

/// What another storage asked was read.
pub(crate) fn served(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    after: ServedAfter,
    done: Done,
) {
    let ServedAfter { conn, id, partition, what } = after;
    if let Some(count) = operation.feeding.serves.get_mut(&conn) {
        *count -= 1;
        if *count == 0 {
            operation.feeding.serves.remove(&conn);
        }
    }
    if !io.is_open(conn) {
        return;
    }
    let is_check = matches!(what, Serve::TidDigest | Serve::SerialDigest);
    if !is_check && !shared.is_readable(partition) {
        // Rows may be missing.
        refuse(io, conn, id, format!("partition {partition} dropped"));
        return;
    }
    let next = match what {
        Serve::Tids { known, length, pack_id } => {
            let mut tids = done!(done, Tids);
            let next_tid = if length < tids.len() { tids.pop() } else { None };
            // What is known after this chunk is for the next ones.
            let in_chunk = known.iter().filter(|tid| next_tid.is_none_or(|next| **tid < next));
            let to_delete = in_chunk.filter(|tid| tids.binary_search(tid).is_err());
            let to_delete = to_delete.copied().collect();
            tids.retain(|tid| !known.contains(tid));
            let job = Read::FetchTransactions { partition, tids };
            Some((job, Serve::Transactions { next_tid, to_delete, pack_id }))
        }
        Serve::Transactions { next_tid, to_delete, pack_id } => {
            let infos = done!(done, Transactions);
            send_transactions(io, (conn, id, partition), infos, next_tid, to_delete, pack_id);
            None
        }
        Serve::Revisions { known, length } => {
            let mut revisions = done!(done, Revisions);
            let next = if length < revisions.len() { revisions.pop() } else { None };
            let to_delete = known.iter().filter(|item| revisions.binary_search(item).is_err());
            let to_delete = to_delete.copied().collect();
            revisions.retain(|item| !known.contains(item));
            let bytes_max = FETCH_BYTES;
            let job = Read::FetchObjects { partition, revisions: revisions.clone(), bytes_max };
            Some((job, Serve::Objects { revisions, next, to_delete }))
        }
        Serve::Objects { revisions, next, to_delete } => {
            let objects = done!(done, Objects);
            send_objects(io, (conn, id, partition), &revisions, objects, next, to_delete);
            None
        }
        Serve::TidDigest => {
            let digest = done!(done, TidDigest);
            let (count, checksum, max_tid) = (digest.count, digest.checksum, digest.max_tid);
            io.answer(conn, id, Packet::AnswerCheckTIDRange { count, checksum, max_tid });
            None
        }
        Serve::SerialDigest => {
            let digest = done!(done, SerialDigest);
            let answer = Packet::AnswerCheckSerialRange {
                count: digest.count,
                tid_checksum: digest.tid_checksum,
                max_tid: digest.max_tid,
                oid_checksum: digest.oid_checksum,
                max_oid: digest.max_oid,
            };
            io.answer(conn, id, answer);
            None
        }
    };
    if let Some((job, what)) = next
        && let Err(fault) =
            submit(operation, shared, io, job, ServedAfter { conn, id, partition, what })
    {
        super::refuse(io, conn, id, &fault);
    }
}

fn refuse(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId, message: String) {
    io.answer(conn, id, Packet::error(ErrorCode::ReplicationError, message));
}

fn send_transactions(
    io: &mut Io<'_, Storage>,
    (conn, id, partition): (ConnId, MsgId, Partition),
    infos: Vec<Option<TransactionInfo>>,
    next_tid: Option<Tid>,
    to_delete: Vec<Tid>,
    completed_pack: Option<Tid>,
) {
    for info in infos {
        let Some(TransactionInfo { tid, record, pack }) = info else {
            return refuse(io, conn, id, format!("partition {partition} dropped"));
        };
        let TransactionRecord { oids, user, description, extension, packed, ttid } = record;
        let pack = pack.map(|order| {
            (order.approved, order.partial, order.oids.map(PackOids::List), order.pack_tid)
        });
        let packet =
            Packet::AddTransaction { tid, user, description, extension, packed, ttid, oids, pack };
        io.send_as(conn, id, packet);
    }
    io.answer(conn, id, Packet::AnswerFetchTransactions { next_tid, to_delete, completed_pack });
}

fn send_objects(
    io: &mut Io<'_, Storage>,
    (conn, id, partition): (ConnId, MsgId, Partition),
    revisions: &[(Tid, Oid)],
    objects: Vec<Option<Revision>>,
    next: Option<(Tid, Oid)>,
    mut to_delete: BTreeSet<(Tid, Oid)>,
) {
    // The database may have read less than asked: the rest is for the next request.
    let next = revisions.get(objects.len()).copied().or(next);
    if let Some(next) = next {
        // What is known after this chunk is for the next ones.
        drop(to_delete.split_off(&next));
    }
    for (&(serial, oid), object) in revisions.iter().zip(objects) {
        let Some(Revision { value, data_tid, .. }) = object else {
            return refuse(io, conn, id, format!("partition {partition} dropped or truncated"));
        };
        let (compression, checksum, data) = match value {
            Some(value) => (value.compression.into(), value.checksum, value.data),
            None => (0, ZERO_HASH, bytes::Bytes::new()),
        };
        let data_serial = data_tid;
        let packet = Packet::AddObject { oid, serial, compression, checksum, data, data_serial };
        io.send_as(conn, id, packet);
    }
    let (next_tid, next_oid) = next.unzip();
    let mut by_tid = BTreeMap::<Tid, Vec<Oid>>::new();
    for (tid, oid) in to_delete {
        by_tid.entry(tid).or_default().push(oid);
    }
    let to_delete = Map(by_tid.into_iter().collect());
    io.answer(conn, id, Packet::AnswerFetchObjects { next_tid, next_oid, to_delete });
}
