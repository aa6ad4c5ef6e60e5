// SPDX-License-Identifier: GPL-2.0-or-later
//! What the primary master says. Upstream: `MasterEventHandler`.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost, base_error};
use neo_common::partition_table::PartitionTable;
use neo_common::protocol::{ClusterState, ErrorCode, MsgId, Packet};

use super::base_packet;
use crate::app::{Admin, Ticket};
use crate::monitor::Change;

/// Handler of the connection to the primary master.
pub(crate) struct MasterHandler;

impl Handler<Admin> for MasterHandler {
    fn name(&self) -> &'static str {
        "MasterEventHandler"
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
            Packet::NotifyClusterInformation { state } => state_changed(app, io, Some(state)),
            Packet::NotifyNodeInformation { timestamp, nodes } => {
                app.update_nodes(io, timestamp, &nodes)?;
            }
            Packet::SendPartitionTable { ptid, replicas, rows } => {
                let mut table = PartitionTable::new();
                let loaded = table.load(ptid, replicas, &rows);
                loaded.map_err(|e| Fault::protocol(e.to_string()))?;
                app.set_table(io, table);
            }
            Packet::NotifyPartitionChanges { ptid, replicas, changes } => {
                let table = app.table_mut();
                let table = table.ok_or_else(|| Fault::protocol("no partition table to change"))?;
                let update = table.update(ptid, replicas, &changes);
                let update = update.map_err(|e| Fault::protocol(e.to_string()))?;
                if update.first_outdated {
                    log::warn!("a cell became non-readable whereas all cells were readable");
                }
                app.table_updated(io);
            }
            Packet::NotifyUpstreamAdmin { address } => app.upstream.set_address(io, address),
            Packet::FlushLog {} => log::logger().flush(),
            _ => base_packet(io, conn, id, packet)?,
        }
        Ok(())
    }

    fn answer(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        _: ConnId,
        ticket: Ticket,
        answer: Packet,
    ) -> Handled {
        match (ticket, answer) {
            (Ticket::Relay { conn, id }, answer) => app.relayed(io, conn, id, answer),
            (Ticket::ClusterState, Packet::AnswerClusterState { state }) => {
                state_changed(app, io, state);
            }
            (Ticket::LastIds, Packet::AnswerRecovery { backup_tid, .. }) => {
                app.monitoring.own_backup_tid(backup_tid);
            }
            (Ticket::LastIds, Packet::AnswerLastTransaction { tid }) => {
                app.monitoring.own_last_tid(io, app.primary(), tid);
                app.answer_monitors(io);
            }
            (Ticket::Identification | Ticket::ClusterState | Ticket::LastIds, _) => {
                return Err(Fault::Unexpected);
            }
        }
        Ok(())
    }

    fn error(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        match ticket {
            Some(Ticket::Relay { conn, id }) => {
                app.relayed(io, conn, id, Packet::error(code, message));
                Ok(())
            }
            _ => base_error(code, &message),
        }
    }

    fn lost(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        conn: ConnId,
        _: Lost,
        tickets: Vec<Ticket>,
    ) {
        app.primary_lost(io, conn, tickets);
    }
}

fn state_changed(app: &mut Admin, io: &mut Io<'_, Admin>, state: Option<ClusterState>) {
    match state {
        Some(state) => log::info!("cluster is {state}"),
        None => log::info!("state of the cluster is unknown"),
    }
    app.own_changed(io, Change::of_state(state));
}
