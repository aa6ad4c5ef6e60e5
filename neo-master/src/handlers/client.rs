// SPDX-License-Identifier: GPL-2.0-or-later
//! Clients. Upstream: master/handlers/client.py.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::limits::NEW_OIDS_COUNT_MAX;
use neo_common::protocol::{ErrorCode, MsgId, Packet};

use super::{base_failure, base_packet};
use crate::app::{Master, Ticket};
use crate::cluster::{Cluster, ReplyTo};
use crate::commit::{self, Changes};
use crate::pack::{self, Wanted};

/// Reads and writes.
pub struct ClientServiceHandler;

/// Only reads, because the client wants so.
pub struct ClientReadOnlyServiceHandler;

/// Only reads, up to where the backup is complete.
pub struct ClientBackupServiceHandler;

impl Handler<Master> for ClientServiceHandler {
    fn name(&self) -> &'static str {
        "ClientServiceHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let reply_to = ReplyTo { conn, id };
        match packet {
            Packet::AskBeginTransaction { tid } => commit::begin(app, io, reply_to, tid),
            Packet::AskFinishTransaction { ttid, oids, deleted, checked, pack } => {
                let changes = Changes { oids, deleted, checked, pack };
                commit::finish(app, io, reply_to, ttid, changes)
            }
            Packet::AskNewOIDs { count } => {
                let oids = app.cluster.tm.new_oids(count.min(NEW_OIDS_COUNT_MAX));
                let oids = oids.ok_or_else(|| Fault::protocol("no more oid"))?;
                io.answer(conn, id, Packet::AnswerNewOIDs { oids });
                Ok(())
            }
            Packet::FailedVote { ttid, nids } => commit::vote(app, io, reply_to, ttid, nids),
            Packet::AskFinalTID { ttid } => commit::ask_final_tid(app, io, reply_to, ttid),
            Packet::AbortTransaction { ttid, nids } => commit::abort(app, io, conn, ttid, nids),
            _ => read_packet(app, io, conn, id, packet),
        }
    }

    fn error(
        &self,
        _: &mut Master,
        _: &mut Io<'_, Master>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        base_failure(ticket, code, &message)
    }

    fn lost(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        client_lost(&mut app.cluster, io, conn);
    }
}

impl Handler<Master> for ClientReadOnlyServiceHandler {
    fn name(&self) -> &'static str {
        "ClientReadOnlyServiceHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        refuse_writes(&packet, "read-only access as requested by the client")?;
        read_packet(app, io, conn, id, packet)
    }

    fn lost(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        client_lost(&mut app.cluster, io, conn);
    }
}

impl Handler<Master> for ClientBackupServiceHandler {
    fn name(&self) -> &'static str {
        "ClientBackupServiceHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        const MESSAGE: &str = "read-only access because cluster is in backuping mode";
        refuse_writes(&packet, MESSAGE)?;
        match packet {
            // Finding the last oid up to the backup tid would be work that no client needs.
            Packet::AskLastIDs {} => Err(read_only(MESSAGE)),
            // There may be no such transaction, but all cells are complete up to there.
            Packet::AskLastTransaction {} => {
                let tid = app.cluster.pt.shared_backup_tid();
                io.answer(conn, id, Packet::AnswerLastTransaction { tid });
                Ok(())
            }
            _ => read_packet(app, io, conn, id, packet),
        }
    }

    fn lost(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        client_lost(&mut app.cluster, io, conn);
    }
}

fn read_only(message: &str) -> Fault {
    Fault::Error(ErrorCode::ReadOnlyAccess, message.into())
}

fn refuse_writes(packet: &Packet, message: &str) -> Handled {
    match packet {
        Packet::AskBeginTransaction { .. }
        | Packet::AskNewOIDs { .. }
        | Packet::FailedVote { .. }
        | Packet::AskFinishTransaction { .. }
        | Packet::AskFinalTID { .. }
        | Packet::AbortTransaction { .. } => Err(read_only(message)),
        _ => Ok(()),
    }
}

/// What any client may ask.
fn read_packet(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    let reply_to = ReplyTo { conn, id };
    match packet {
        Packet::AskPackOrders { min_tid } => {
            pack::ask_pack_orders(&mut app.cluster, io, reply_to, min_tid, Wanted::All)
        }
        Packet::WaitForPack { tid } => {
            if !app.cluster.pm.wait(tid, reply_to)? {
                io.answer(conn, id, Packet::WaitedForPack {});
            }
            Ok(())
        }
        _ => base_packet(app, io, conn, id, packet),
    }
}

/// A client is gone: its transactions are aborted, and it is forgotten.
fn client_lost(cluster: &mut Cluster, io: &mut Io<'_, Master>, conn: ConnId) {
    cluster.pm.client_lost(conn);
    for (ttid, waiting) in cluster.tm.client_lost(conn) {
        // Storages abort what the client did with them when they hear that it is gone.
        cluster.notify_aborted(io, ttid, &waiting, []);
    }
    let Some(node) = cluster.nm.unlink(conn).and_then(|key| cluster.forget(key)) else { return };
    cluster.broadcast_removed(io, &node);
}
