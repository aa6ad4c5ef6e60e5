// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets of storages. Upstream: client/handlers/storage.py.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost, base_error};
use neo_common::protocol::{ErrorCode, MsgId, Packet};

use super::base_packet;
use crate::core::{ClientCore, Ticket};

/// Handler of a connection to a storage that has not accepted us yet. Upstream:
/// `StorageBootstrapHandler`.
pub struct StorageBootstrapHandler;

impl Handler<ClientCore> for StorageBootstrapHandler {
    fn name(&self) -> &'static str {
        "StorageBootstrapHandler"
    }

    fn completed(&self, app: &mut ClientCore, io: &mut Io<'_, ClientCore>, conn: ConnId) {
        app.storage_connected(io, conn);
    }

    fn packet(
        &self,
        _: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        base_packet(io, conn, id, &packet)
    }

    fn answer(
        &self,
        app: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        _: Ticket,
        packet: Packet,
    ) -> Handled {
        app.storage_accepted(io, conn, &packet)
    }

    fn error(
        &self,
        _: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        _: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        match code {
            ErrorCode::NotReady => log::info!("storage not ready: {message}"),
            _ => log::error!("refused by a storage: {code} {message}"),
        }
        io.close(conn);
        Ok(())
    }

    fn lost(
        &self,
        app: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        _: Lost,
        tickets: Vec<Ticket>,
    ) {
        app.storage_lost(io, conn, tickets);
    }
}

/// Handler of a connection to a storage. Upstream: `StorageEventHandler` and
/// `StorageAnswersHandler`.
pub struct StorageHandler;

impl Handler<ClientCore> for StorageHandler {
    fn name(&self) -> &'static str {
        "StorageEventHandler"
    }

    fn packet(
        &self,
        app: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::NotifyDeadlock { ttid, oid } => {
                app.notify_deadlock(io, conn, ttid, oid);
                Ok(())
            }
            packet => base_packet(io, conn, id, &packet),
        }
    }

    fn answer(
        &self,
        app: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        match (ticket, packet) {
            (Ticket::Read(op), packet) => app.read_answer(io, op, packet),
            (
                Ticket::Store(ttid, oid, number),
                Packet::AnswerStoreObject { conflict }
                | Packet::AnswerCheckCurrentSerial { conflict },
            ) => app.store_answer(io, conn, (ttid, oid, number), conflict),
            (Ticket::Relock(ttid, oid), Packet::AnswerRelockObject { conflict }) => {
                app.relock_answer(io, ttid, oid, conflict);
            }
            (
                Ticket::Vote(ttid),
                Packet::AnswerStoreTransaction {} | Packet::AnswerVoteTransaction {},
            ) => app.vote_answer(io, ttid),
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }

    fn error(
        &self,
        app: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        match ticket {
            Some(Ticket::Read(op)) => app.read_error(io, op, code, message),
            Some(ticket) => app.write_error(io, &ticket, code, message),
            None => return base_error(code, &message),
        }
        Ok(())
    }

    fn lost(
        &self,
        app: &mut ClientCore,
        io: &mut Io<'_, ClientCore>,
        conn: ConnId,
        _: Lost,
        tickets: Vec<Ticket>,
    ) {
        app.storage_lost(io, conn, tickets);
    }
}
