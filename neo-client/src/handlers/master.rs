// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets of the primary master. Upstream: client/handlers/master.py,
//! `PrimaryNotificationsHandler` and `PrimaryAnswersHandler`.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost, base_error};
use neo_common::protocol::{ErrorCode, MsgId, Packet};

use super::base_packet;
use crate::core::{ClientCore, Ticket};

/// Handler of the connection to the primary master, once it accepted us.
pub struct PrimaryHandler;

impl Handler<ClientCore> for PrimaryHandler {
    fn name(&self) -> &'static str {
        "PrimaryNotificationsHandler"
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
            Packet::InvalidateObjects { tid, oids } => {
                app.invalidate_objects(io, tid, oids);
                Ok(())
            }
            Packet::NotifyNodeInformation { timestamp, nodes } => {
                app.node_information(io, timestamp, &nodes)
            }
            packet
            @ (Packet::SendPartitionTable { .. } | Packet::NotifyPartitionChanges { .. }) => {
                app.load_table(packet)
            }
            Packet::NotifyClusterInformation { state } => {
                log::info!("the cluster is {state}");
                Ok(())
            }
            // The master is about to disconnect us.
            Packet::StopOperation {} => {
                log::warn!("the cluster stops operation");
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
            (Ticket::LastTransaction, Packet::AnswerLastTransaction { tid }) => {
                app.last_transaction(io, conn, tid)
            }
            (Ticket::Master(op), packet) => {
                app.master_answer(io, op, packet);
                Ok(())
            }
            (Ticket::Round(op), Packet::Pong {}) => {
                app.round_over(io, op);
                Ok(())
            }
            (Ticket::Finish(ttid), Packet::AnswerTransactionFinished { ttid: answered, tid }) => {
                if ttid != answered {
                    // It can not be believed, but the commit was asked.
                    app.ask_outcome(io, ttid);
                    return Err(Fault::protocol("another transaction is finished"));
                }
                app.finished(io, ttid, tid);
                Ok(())
            }
            _ => Err(Fault::Unexpected),
        }
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
            Some(Ticket::Master(op)) => app.master_error(io, op, code, message),
            Some(Ticket::FailedVote(ttid)) => app.failed_vote_answer(io, ttid, code, message),
            Some(Ticket::Finish(ttid)) => app.finish_error(io, ttid, code, message),
            _ => return base_error(code, &message),
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
        app.master_lost(io, conn, tickets);
    }
}
