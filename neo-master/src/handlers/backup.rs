// SPDX-License-Identifier: GPL-2.0-or-later
//! The master of the upstream cluster, for which we are a client. Upstream:
//! master/handlers/backup.py.

use neo_common::engine::bootstrap::{Bootstrap, Bootstrapping};
use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::node::{ListKind, NodeEvent, NodeKey, NodeManager};
use neo_common::partition_table::PartitionTable as Table;
use neo_common::protocol::{ErrorCode, MsgId, NodeEntry, NodeState, NodeType, Packet};

use super::{base_failure, root_packet};
use crate::app::{Master, Ticket};
use crate::backup::notify_upstream_admin;
use crate::pack::Order;
use crate::phase::Phase;

/// Follows the upstream master.
pub struct BackupHandler;

impl Bootstrapping for Master {
    fn bootstrap(&mut self) -> (&mut Bootstrap, &mut NodeManager) {
        (&mut self.upstream.bootstrap, &mut self.upstream.nm)
    }
    fn identification_ticket() -> Ticket {
        Ticket::Identification
    }
    fn identified(&mut self, io: &mut Io<'_, Self>, conn: ConnId, _: NodeKey) -> Handled {
        let Phase::Backup(backup) = &mut self.phase else { return Err(Fault::Close) };
        io.set_handler(conn, &BackupHandler);
        self.upstream.wants_full_list = true;
        backup.follow(&mut self.cluster, io, conn);
        Ok(())
    }
}

impl Handler<Master> for BackupHandler {
    fn name(&self) -> &'static str {
        "BackupHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let Master { cluster, phase: Phase::Backup(backup), upstream } = app else {
            return Ok(());
        };
        match packet {
            Packet::SendPartitionTable { ptid, replicas, rows } => {
                let mut table = Table::new();
                table.load(ptid, replicas, &rows).map_err(|e| Fault::protocol(e.to_string()))?;
                backup.load(cluster, table)
            }
            Packet::NotifyPartitionChanges { ptid, replicas, changes } => {
                let table = backup.table_mut().ok_or(Fault::Unexpected)?;
                let updated = table.update(ptid, replicas, &changes);
                updated.map(drop).map_err(|e| Fault::protocol(e.to_string()))
            }
            Packet::NotifyNodeInformation { timestamp, nodes } => {
                notify_node_information(app, io, timestamp, &nodes)
            }
            Packet::InvalidatePartitions { tid, partitions } => {
                backup.invalidate_partitions(cluster, upstream, io, tid, partitions)
            }
            Packet::NotifyPackSigned { approved, rejected } => {
                backup.pack_signed(cluster, io, conn, &approved, &rejected);
                Ok(())
            }
            // It is about to close.
            Packet::StopOperation {} | Packet::NotifyClusterInformation { .. } => Ok(()),
            _ => root_packet(io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        _: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        let Master { cluster, phase: Phase::Backup(backup), upstream } = app else {
            return Ok(());
        };
        match (ticket, packet) {
            (Ticket::Upstream, Packet::AnswerLastTransaction { tid }) => {
                backup.last_transaction(cluster, upstream, io, tid)
            }
            (Ticket::UpstreamPackOrders(min_tid), Packet::AnswerPackOrders { orders }) => {
                for order in orders {
                    let (tid, order) = Order::parse(order)?;
                    cluster.pm.add(tid, order);
                }
                backup.pack_orders_known(cluster, io, min_tid);
                Ok(())
            }
            _ => Err(Fault::Unexpected),
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
        app.upstream.nm.unlink(conn);
        if let Phase::Backup(backup) = &mut app.phase
            && backup.connection() == Some(conn)
        {
            backup.restart(&mut app.cluster, io);
        }
    }
}

fn notify_node_information(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    timestamp: f64,
    nodes: &[NodeEntry],
) -> Handled {
    let Master { cluster, upstream, .. } = app;
    let kind = if std::mem::take(&mut upstream.wants_full_list) {
        ListKind::Full
    } else {
        ListKind::Changes
    };
    let own_nid = upstream.bootstrap.nid;
    let update = upstream
        .nm
        .update(own_nid, kind, timestamp, nodes, |_| true)
        .map_err(|error| Fault::protocol(error.to_string()))?;
    for event in update.events {
        if let NodeEvent::Removed(node) = event
            && let Some(conn) = node.connection()
        {
            io.close(conn);
        }
    }
    // The upstream primary does not know all masters that the operator listed.
    let listed = cluster.options.upstream.as_ref();
    for address in listed.map_or_else(Vec::new, |upstream| upstream.masters.clone()) {
        let _ = upstream.nm.create_master(address); // unless another node has it
    }
    let is_admin = |entry: &NodeEntry| entry.0 == NodeType::Admin && entry.3 == NodeState::Running;
    if nodes.iter().any(is_admin) {
        notify_upstream_admin(cluster, upstream, io);
    }
    Ok(())
}
