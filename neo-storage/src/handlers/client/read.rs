// SPDX-License-Identifier: GPL-2.0-or-later
//! What clients read. See the parent module.
//!
//! Reads go to the read lanes; the ones that can not be answered right because a transaction is
//! between lock and unlock wait for the unlock (`read_again`), those of a client that asks for too
//! much wait for previous ones ([`crate::reads`]). Whether the cell is readable is checked before,
//! and again when the result comes: rows may have been dropped in between.

use bytes::Bytes;
use neo_common::engine::{Fault, Handled, Io};
use neo_common::planted;
use neo_common::protocol::{ErrorCode, Map, MsgId, Packet};
use neo_common::types::{ConnId, INVALID_PARTITION, Oid, Partition, Tid, Ttid, ZERO_HASH};

use crate::app::{After, Shared, Storage, done, read};
use crate::database::{Done, Loaded, Read, TransactionRecord, UndoFound, UndoSearch};
use crate::handlers::{base_packet, refuse};
use crate::limits::READ_ROWS_MAX;
use crate::operation::Operation;
use crate::reads::DelayedRead;
use crate::transactions::CellMode;

/// A read that is on its way.
#[derive(Clone, PartialEq, Debug)]
pub struct ReadAfter {
    /// Operation that submitted it. What was read before the next one began says nothing of what
    /// was committed in between.
    epoch: u32,
    conn: ConnId,
    id: MsgId,
    what: ReadKind,
}

/// See [`ReadAfter`].
#[derive(Clone, PartialEq, Debug)]
enum ReadKind {
    /// With the stamp of the cache of last revisions, if it may be filled.
    Object {
        oid: Oid,
        stamp: Option<u64>,
    },
    Transaction {
        tid: Tid,
    },
    History {
        oid: Oid,
        max_tid: Tid,
    },
    Tids {
        partitions: Vec<Partition>,
        max_tid: Tid,
    },
    TidsFrom {
        partition: Partition,
    },
    Oids {
        partition: Partition,
    },
    Undo {
        oids: Vec<Oid>,
    },
}

fn check_readable(operation: &Operation, partition: Partition) -> Handled {
    match operation.transactions.mode(partition) {
        CellMode::Readable => Ok(()),
        CellMode::Replicating if planted!(OutOfDateReadable) => Ok(()),
        _ => Err(Fault::non_readable_cell()),
    }
}

fn submit(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    job: Read,
    (conn, id): (ConnId, MsgId),
    what: ReadKind,
) {
    operation.reads.begin(conn);
    read(io, job, After::Read(ReadAfter { epoch: shared.epoch, conn, id, what }));
}

pub(super) fn ask_object(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    (conn, id): (ConnId, MsgId),
    oid: Oid,
    at: Option<Tid>,
    before: Option<Tid>,
) -> Handled {
    if operation.reads.is_limited(io, conn) {
        operation.reads.defer(io, conn, id, Packet::AskObject { oid, at, before });
        return Ok(());
    }
    load(operation, shared, io, (conn, id), oid, at, before)
}

fn load(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    (conn, id): (ConnId, MsgId),
    oid: Oid,
    at: Option<Tid>,
    before: Option<Tid>,
) -> Handled {
    let partition = oid.partition(shared.table.partitions());
    check_readable(operation, partition)?;
    if operation.transactions.is_load_locked(oid) {
        let packet = Packet::AskObject { oid, at, before };
        return operation.delayed.add_load(oid, DelayedRead { conn, id, packet });
    }
    let stamp = at.is_none().then(|| operation.transactions.last_tids.stamp());
    let job = Read::Load { partition, oid, at, before };
    submit(operation, shared, io, job, (conn, id), ReadKind::Object { oid, stamp });
    Ok(())
}

/// A read that was delayed: its arguments were adapted to the client before.
pub(crate) fn read_again(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    match packet {
        // It waited for what was committed when it was asked. It must not wait again: under load,
        // there is always something that is being committed.
        Packet::AskTIDs { first, last, partition } => {
            ask_tids(operation, shared, io, (conn, id), (first, last), partition)
        }
        packet => read_packet(operation, shared, io, conn, id, packet),
    }
}

/// Goes on with the reads of a client that wait for previous ones.
pub(super) fn read_deferred(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    while let Some((id, packet)) = operation.reads.next(io, conn, shared.is_congested) {
        if let Err(fault) = read_packet(operation, shared, io, conn, id, packet) {
            refuse(io, conn, id, &fault);
        }
    }
}

pub(super) fn read_packet(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    let partitions = shared.table.partitions();
    match packet {
        Packet::AskObject { oid, at, before } => {
            load(operation, shared, io, (conn, id), oid, at, before)?;
        }
        Packet::AskTransactionInformation { tid } => {
            let partition = tid.partition(partitions);
            check_readable(operation, partition)?;
            if operation.transactions.is_locked_tid(tid) {
                let packet = Packet::AskTransactionInformation { tid };
                return operation.delayed.add_read(tid, DelayedRead { conn, id, packet });
            }
            let job = Read::Transaction { partition, tid };
            submit(operation, shared, io, job, (conn, id), ReadKind::Transaction { tid });
        }
        Packet::AskObjectHistory { oid, first, last } => {
            let length = length(first, last)?;
            let partition = oid.partition(partitions);
            check_readable(operation, partition)?;
            if operation.transactions.is_load_locked(oid) {
                let packet = Packet::AskObjectHistory { oid, first, last };
                return operation.delayed.add_load(oid, DelayedRead { conn, id, packet });
            }
            let max_tid = shared.backup_tid.unwrap_or(Tid::MAX);
            let job = Read::History { partition, oid, offset: first, length };
            submit(operation, shared, io, job, (conn, id), ReadKind::History { oid, max_tid });
        }
        Packet::AskTIDs { first, last, partition } => {
            // Upstream does not wait. But a client that was told that its transaction is finished
            // expects to find it.
            if let Some(max_tid) = operation.transactions.max_locked_tid() {
                let packet = Packet::AskTIDs { first, last, partition };
                return operation.delayed.add_read(max_tid, DelayedRead { conn, id, packet });
            }
            ask_tids(operation, shared, io, (conn, id), (first, last), partition)?;
        }
        Packet::AskTIDsFrom { min_tid, max_tid, length, partition } => {
            check_readable(operation, partition)?;
            if operation.transactions.is_locked_tid(max_tid) && !planted!(IterationMissesLast) {
                let packet = Packet::AskTIDsFrom { min_tid, max_tid, length, partition };
                return operation.delayed.add_read(max_tid, DelayedRead { conn, id, packet });
            }
            let length = length.min(READ_ROWS_MAX as u32);
            let excluded = max_tid.previous().filter(|_| planted!(IterationExcludesLast));
            let max_tid = excluded.unwrap_or(max_tid);
            let job = Read::TidsFrom { partition, min_tid, max_tid, length };
            submit(operation, shared, io, job, (conn, id), ReadKind::TidsFrom { partition });
        }
        Packet::AskOIDsFrom { partition, length, min_oid, tid } => {
            check_readable(operation, partition)?;
            if operation.transactions.is_locked_tid(tid) {
                let packet = Packet::AskOIDsFrom { partition, length, min_oid, tid };
                return operation.delayed.add_read(tid, DelayedRead { conn, id, packet });
            }
            let length = length.min(READ_ROWS_MAX as u32);
            let job = Read::OidsFrom { partition, partitions, min_oid, tid, length };
            submit(operation, shared, io, job, (conn, id), ReadKind::Oids { partition });
        }
        Packet::AskObjectUndoSerial { ttid, ltid, undone_tid, oids } => {
            ask_object_undo_serial(
                operation,
                shared,
                io,
                (conn, id),
                (ttid, ltid, undone_tid),
                oids,
            )?;
        }
        packet => return base_packet(io, conn, id, &packet),
    }
    Ok(())
}

fn ask_tids(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    (conn, id): (ConnId, MsgId),
    (first, last): (u64, u64),
    partition: Partition,
) -> Handled {
    let length = length(first, last)?;
    let partitions = match partition {
        INVALID_PARTITION => shared.readable(),
        partition => {
            check_readable(operation, partition)?;
            vec![partition]
        }
    };
    let max_tid = shared.backup_tid.unwrap_or(Tid::MAX);
    let what = ReadKind::Tids { partitions: partitions.clone(), max_tid };
    submit(
        operation,
        shared,
        io,
        Read::Tids { partitions, offset: first, length },
        (conn, id),
        what,
    );
    Ok(())
}

/// Number of items in `[first, last[`, bounded.
fn length(first: u64, last: u64) -> Result<u32, Fault> {
    if first >= last {
        return Err(Fault::protocol("invalid offsets"));
    }
    Ok((last - first).min(READ_ROWS_MAX) as u32)
}

fn ask_object_undo_serial(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    (conn, id): (ConnId, MsgId),
    (ttid, ltid, undone_tid): (Ttid, Tid, Tid),
    oids: Vec<Oid>,
) -> Handled {
    let partitions = shared.table.partitions();
    for oid in &oids {
        check_readable(operation, oid.partition(partitions))?;
    }
    // Upstream does not wait. But then a client that was told that its transaction is finished
    // could get a result that does not take it into account.
    if let Some(oid) = oids.iter().find(|oid| operation.transactions.is_load_locked(**oid)) {
        let oid = *oid;
        let packet = Packet::AskObjectUndoSerial { ttid, ltid, undone_tid, oids };
        return operation.delayed.add_load(oid, DelayedRead { conn, id, packet });
    }
    if let Some(oid) = oids.iter().find(|oid| operation.pack.hides_before(undone_tid, **oid)) {
        let packet = Packet::error(ErrorCode::OidNotFound, format!("{oid} is packed"));
        io.answer(conn, id, packet);
        return Ok(());
    }
    let stored = |oid: &Oid| (*oid, operation.transactions.stored_tid(ttid, *oid));
    let objects = oids.iter().map(stored).collect();
    let job = Read::FindUndo(UndoSearch { partitions, ltid: Some(ltid), undone_tid, objects });
    submit(operation, shared, io, job, (conn, id), ReadKind::Undo { oids });
    Ok(())
}

/// The result of a read.
pub(crate) fn read_done(app: &mut Storage, io: &mut Io<'_, Storage>, after: ReadAfter, done: Done) {
    let ReadAfter { epoch, conn, id, what } = after;
    let is_current = epoch == app.shared.epoch || planted!(PastOperationBelieved);
    // Connections of a past operation are closed.
    let Some((operation, shared)) = app.operation().filter(|_| is_current) else { return };
    let partitions = shared.table.partitions();
    let is_readable = |partition| check_readable(operation, partition).is_ok();
    let packet = match what {
        ReadKind::Object { oid, stamp } => {
            if is_readable(oid.partition(partitions)) {
                let loaded = done!(done, Loaded);
                if let Some(stamp) = stamp {
                    learn(operation, oid, stamp, &loaded);
                }
                object(oid, loaded)
            } else {
                non_readable()
            }
        }
        ReadKind::Transaction { tid } => {
            let found = done!(done, Transactions).into_iter().next().flatten();
            match found {
                _ if !is_readable(tid.partition(partitions)) => non_readable(),
                Some(info) => {
                    let TransactionRecord { oids, user, description, extension, packed, .. } =
                        info.record;
                    Packet::AnswerTransactionInformation {
                        tid,
                        user,
                        description,
                        extension,
                        packed,
                        oids,
                    }
                }
                None => Packet::error(ErrorCode::TidNotFound, format!("{tid} does not exist")),
            }
        }
        ReadKind::History { oid, max_tid } => {
            let mut history = done!(done, History);
            history.retain(|(tid, _)| *tid <= max_tid);
            match history.is_empty() {
                _ if !is_readable(oid.partition(partitions)) => non_readable(),
                true => Packet::error(ErrorCode::OidNotFound, oid.to_string()),
                false => Packet::AnswerObjectHistory { oid, history },
            }
        }
        ReadKind::Tids { partitions, max_tid } => {
            let mut tids = done!(done, Tids);
            tids.retain(|tid| *tid <= max_tid);
            match partitions.into_iter().all(is_readable) {
                true => Packet::AnswerTIDs { tids },
                false => non_readable(),
            }
        }
        ReadKind::TidsFrom { partition } => match is_readable(partition) {
            true => Packet::AnswerTIDsFrom { tids: done!(done, Tids) },
            false => non_readable(),
        },
        ReadKind::Oids { partition } => {
            let found = done!(done, Oids);
            match is_readable(partition) {
                true => Packet::AnswerOIDsFrom { next_oid: found.next_oid, oids: found.oids },
                false => non_readable(),
            }
        }
        ReadKind::Undo { oids } => {
            match oids.iter().all(|oid| is_readable(oid.partition(partitions))) {
                true => undo(&oids, &done!(done, Undo)),
                false => non_readable(),
            }
        }
    };
    let bytes = answer_bytes(&packet);
    io.answer(conn, id, packet);
    operation.reads.end(conn, bytes);
    if operation.reads.has_deferred(conn) {
        read_deferred(operation, shared, io, conn);
    }
}

/// About how much memory an answer takes.
fn answer_bytes(packet: &Packet) -> usize {
    match packet {
        Packet::AnswerObject { data, .. } => data.len(),
        Packet::AnswerObjectHistory { history, .. } => history.len() * 16,
        Packet::AnswerTIDs { tids } | Packet::AnswerTIDsFrom { tids } => tids.len() * 8,
        Packet::AnswerOIDsFrom { oids, .. } => oids.len() * 8,
        Packet::AnswerTransactionInformation { extension, oids, .. } => {
            extension.len() + oids.len() * 8
        }
        Packet::AnswerObjectUndoSerial { serials } => serials.0.len() * 32,
        _ => 0,
    }
}

/// A load also tells which revision is the last one.
fn learn(operation: &mut Operation, oid: Oid, stamp: u64, loaded: &Loaded) {
    let last = match loaded {
        Loaded::Found(revision) if revision.next_tid.is_none() => Some(revision.tid),
        Loaded::DoesNotExist => None,
        Loaded::Found(_) | Loaded::NotAtThatTid => return,
    };
    operation.transactions.last_tids.fill(stamp, oid, last);
}

fn object(oid: Oid, loaded: Loaded) -> Packet {
    match loaded {
        Loaded::Found(revision) => {
            let (compression, checksum, data) = match revision.value {
                Some(value) => (Some(value.compression.into()), value.checksum, value.data),
                None => (None, ZERO_HASH, Bytes::new()),
            };
            Packet::AnswerObject {
                oid,
                serial: revision.tid,
                next_serial: revision.next_tid.filter(|_| !planted!(NextSerialLost)),
                compression,
                checksum,
                data,
                data_serial: revision.data_tid,
            }
        }
        Loaded::NotAtThatTid => Packet::error(ErrorCode::OidNotFound, oid.to_string()),
        Loaded::DoesNotExist => Packet::error(ErrorCode::OidDoesNotExist, oid.to_string()),
    }
}

fn undo(oids: &[Oid], found: &[UndoFound]) -> Packet {
    let mut serials = Map::default();
    for (oid, found) in oids.iter().zip(found) {
        match *found {
            UndoFound::NothingToUndo => {}
            UndoFound::NotVisible => return Packet::error(ErrorCode::OidNotFound, oid.to_string()),
            UndoFound::Undo { current_tid, undo_tid, is_current } => {
                serials.0.push((*oid, (current_tid, undo_tid, is_current)));
            }
        }
    }
    Packet::AnswerObjectUndoSerial { serials }
}

fn non_readable() -> Packet {
    Packet::error(ErrorCode::NonReadableCell, "")
}
