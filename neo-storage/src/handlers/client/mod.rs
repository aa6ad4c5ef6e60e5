// SPDX-License-Identifier: GPL-2.0-or-later
//! Clients. Upstream: storage/handlers/client.py.
//!
//! [`read`] is what they look at, `write` how they store and vote. In backup mode, clients only see
//! what is complete: up to the backup tid of this node.

pub mod read;
mod write;

use neo_common::engine::{Fault, Handled, Handler, Io, Lost};
use neo_common::protocol::{ErrorCode, MsgId, Packet};
use neo_common::types::{ConnId, Tid};

use super::base_packet;
use super::master::ask_final_tid;
use crate::app::{Shared, Storage, Ticket};
use crate::operation::Operation;
use read::{ask_object, read_deferred, read_packet};
use write::write_packet;

/// A client that may write.
pub struct ClientHandler;

/// A client that connected in backup mode. Upstream: `ClientReadOnlyOperationHandler`.
pub struct ReadOnlyClientHandler;

impl Handler<Storage> for ClientHandler {
    fn name(&self) -> &'static str {
        "ClientOperationHandler"
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
            Packet::AskObject { oid, at, before } => {
                ask_object(operation, shared, io, (conn, id), oid, at, before)
            }
            Packet::AskStoreObject { .. }
            | Packet::AskCheckCurrentSerial { .. }
            | Packet::AskRelockObject { .. }
            | Packet::AskStoreTransaction { .. }
            | Packet::AskVoteTransaction { .. } => {
                write_packet(operation, shared, io, conn, id, packet)
            }
            Packet::AskFinalTID { ttid } => ask_final_tid(operation, shared, io, conn, id, ttid),
            packet => other_packet(operation, shared, io, conn, id, packet),
        }
    }
    fn drained(&self, app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) {
        client_drained(app, io, conn);
    }
    fn lost(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        client_lost(app, io, conn);
    }
}

impl Handler<Storage> for ReadOnlyClientHandler {
    fn name(&self) -> &'static str {
        "ClientReadOnlyOperationHandler"
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
        let backup_tid = shared.backup_tid.unwrap_or(Tid::MAX);
        let after_backup_tid = backup_tid.next().unwrap_or(Tid::INVALID);
        let packet = match packet {
            Packet::AskStoreTransaction { .. }
            | Packet::AskVoteTransaction { .. }
            | Packet::AskStoreObject { .. }
            | Packet::AskFinalTID { .. }
            | Packet::AskRelockObject { .. }
            // It takes a lock, and is only used to commit.
            | Packet::AskCheckCurrentSerial { .. } => {
                let message = "read-only access because cluster is in backuping mode";
                return Err(Fault::Error(ErrorCode::ReadOnlyAccess, message.into()));
            }
            Packet::AskTransactionInformation { tid } if tid > backup_tid => {
                let message = format!("tids > {backup_tid} are not fully fetched yet");
                return Err(Fault::Error(ErrorCode::TidNotFound, message));
            }
            Packet::AskObject { oid, at, before } => {
                let (at, before) = match (at, before) {
                    // Nothing will be found, but whether the object exists is told.
                    (Some(at), before) if at > backup_tid => (Some(Tid::ZERO), before),
                    (Some(at), before) => (Some(at), before),
                    (None, before) => (
                        None,
                        Some(before.map_or(after_backup_tid, |tid| tid.min(after_backup_tid))),
                    ),
                };
                Packet::AskObject { oid, at, before }
            }
            Packet::AskTIDsFrom { min_tid, max_tid, length, partition } => {
                Packet::AskTIDsFrom { min_tid, max_tid: max_tid.min(backup_tid), length, partition }
            }
            Packet::AskOIDsFrom { partition, length, min_oid, tid } => {
                Packet::AskOIDsFrom { partition, length, min_oid, tid: tid.min(backup_tid) }
            }
            Packet::AskObjectUndoSerial { ttid, ltid, undone_tid, oids } => {
                let ltid = ltid.min(after_backup_tid);
                Packet::AskObjectUndoSerial { ttid, ltid, undone_tid, oids }
            }
            packet => packet,
        };
        other_packet(operation, shared, io, conn, id, packet)
    }
    fn drained(&self, app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) {
        client_drained(app, io, conn);
    }
    fn lost(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        client_lost(app, io, conn);
    }
}

/// A client has read what it was sent.
fn client_drained(app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) {
    if let Some((operation, shared)) = app.operation() {
        read_deferred(operation, shared, io, conn);
    }
}

/// The connection to a client is gone.
fn client_lost(app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) {
    app.shared.nodes.unlink(conn);
    if let Some((operation, _)) = app.operation() {
        operation.reads.forget(conn);
    }
    let Some(nid) = io.nid(conn) else { return };
    app.shared.packed_until.remove(&nid);
    // Usually the master also tells that the client is gone. But they are distinct scenarios:
    // - The client may have lost this storage only and remain RUNNING: we may still be involved in
    //   the second phase, so only what is not voted is aborted. Since it does not take part in
    //   deadlock avoidance any more, not releasing its write locks now would lead to a deadlock.
    // - The client may have lost the master, and there are voted transactions to abort.
    if let Some((operation, _)) = app.operation() {
        operation.abort_for(io, nid, false);
    }
}

/// What changes nothing.
fn other_packet(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    match packet {
        // Only of own transactions; the master says the same for all.
        Packet::AbortTransaction { ttid, .. } => {
            let client = io.nid(conn).ok_or(Fault::Unexpected)?;
            operation.transactions.ended.by_client(ttid);
            if operation.transactions.is_of(ttid, client) {
                operation.abort(io, ttid);
            }
            Ok(())
        }
        Packet::Ping {} => base_packet(io, conn, id, &packet),
        packet if operation.reads.is_limited(io, conn) && packet.answer_code().is_some() => {
            operation.reads.defer(io, conn, id, packet);
            Ok(())
        }
        packet => read_packet(operation, shared, io, conn, id, packet),
    }
}
