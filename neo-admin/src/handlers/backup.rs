// SPDX-License-Identifier: GPL-2.0-or-later
//! The admin of a backup cluster: it reports, and answers what we ask about its cluster.
//! Upstream: `BackupHandler`.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::protocol::{MsgId, Packet};

use super::base_packet;
use crate::app::{Admin, Ticket};
use crate::monitor::Change;

/// Handler of an identified admin of a backup cluster.
pub(crate) struct BackupHandler;

impl Handler<Admin> for BackupHandler {
    fn name(&self) -> &'static str {
        "BackupHandler"
    }

    fn packet(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::NotifyMonitorInformation { info } => {
                let change = Change::from_wire(info).map_err(Fault::protocol)?;
                app.monitoring.backup_changed(io, app.primary(), conn, change);
                app.answer_monitors(io);
                Ok(())
            }
            _ => base_packet(io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        conn: ConnId,
        _: Ticket,
        answer: Packet,
    ) -> Handled {
        match answer {
            Packet::AnswerRecovery { backup_tid, .. } => {
                app.monitoring.backup_backup_tid(conn, backup_tid);
            }
            Packet::AnswerLastTransaction { tid } => {
                app.monitoring.backup_last_tid(io, app.primary(), conn, tid);
                app.answer_monitors(io);
            }
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }

    fn lost(&self, app: &mut Admin, io: &mut Io<'_, Admin>, conn: ConnId, _: Lost, _: Vec<Ticket>) {
        app.forget_peer(conn);
        app.monitoring.backup_lost(io, app.primary(), conn);
        app.answer_monitors(io);
    }
}
