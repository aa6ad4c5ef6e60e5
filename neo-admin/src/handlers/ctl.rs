// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests of `neoctl`, which does not identify itself. Upstream: `AdminEventHandler`.
//!
//! What the admin knows is answered at once, the rest is relayed to the primary master. Without a
//! primary master everything is refused.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::protocol::{ErrorCode, MsgId, NodeType, Packet};
use neo_common::types::nid_str;

use super::{BackupHandler, base_packet};
use crate::NOT_CONNECTED_MESSAGE;
use crate::app::{Admin, Ticket};

/// Handler of connections that peers open.
pub(crate) struct CtlHandler;

impl Handler<Admin> for CtlHandler {
    fn name(&self) -> &'static str {
        "AdminEventHandler"
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
            Packet::AskPrimary {} => {
                app.connected(io)?;
                let nid = app.primary_nid();
                let nid = nid.ok_or_else(|| Fault::NotReady(NOT_CONNECTED_MESSAGE.into()))?;
                io.answer(conn, id, Packet::AnswerPrimary { nid });
            }
            Packet::AskClusterState {} => {
                app.connected(io)?;
                let state = app.cluster_state();
                io.answer(conn, id, Packet::AnswerClusterState { state });
            }
            Packet::AskNodeList { node_type } => ask_node_list(app, io, conn, id, node_type)?,
            Packet::AskPartitionList { first, last, nid } => {
                log::debug!("ask partition list from {first} to {last} for {}", nid_str(nid));
                ask_partition_list(app, io, conn, id, (first, last))?;
            }
            Packet::AskMonitorInformation {} => {
                let primary = app.connected(io)?;
                app.add_pending(io, conn);
                app.monitoring.ask(io, primary, conn, id);
                app.answer_monitors(io);
            }
            Packet::FlushLog {} => {
                let primary = app.connected(io)?;
                io.send(primary, Packet::FlushLog {});
                log::logger().flush();
            }
            Packet::RequestIdentification { node_type, cluster, .. } => {
                app.connected(io)?;
                request_identification(app, io, conn, id, (node_type, &cluster))?;
            }
            Packet::AddPendingNodes { .. }
            | Packet::AskLastIDs {}
            | Packet::AskLastTransaction {}
            | Packet::AskRecovery {}
            | Packet::CheckReplicas { .. }
            | Packet::Repair { .. }
            | Packet::SetClusterState { .. }
            | Packet::SetNodeState { .. }
            | Packet::SetNumReplicas { .. }
            | Packet::Truncate { .. }
            | Packet::TweakPartitionTable { .. } => app.relay(io, conn, id, packet)?,
            _ => base_packet(io, conn, id, packet)?,
        }
        Ok(())
    }

    fn lost(&self, app: &mut Admin, _: &mut Io<'_, Admin>, conn: ConnId, _: Lost, _: Vec<Ticket>) {
        app.forget_peer(conn);
    }
}

fn ask_node_list(
    app: &Admin,
    io: &mut Io<'_, Admin>,
    conn: ConnId,
    id: MsgId,
    node_type: Option<NodeType>,
) -> Handled {
    app.connected(io)?;
    let name = node_type.map_or_else(|| "all".into(), |node_type| node_type.to_string());
    log::debug!("ask list of {name} nodes");
    let mut nodes = app.nodes().entries();
    nodes.retain(|(of_type, ..)| node_type.is_none_or(|node_type| node_type == *of_type));
    io.answer(conn, id, Packet::AnswerNodeList { nodes });
    Ok(())
}

/// Rows `[first, last[` of the table, or up to the end if `last` is 0.
fn ask_partition_list(
    app: &Admin,
    io: &mut Io<'_, Admin>,
    conn: ConnId,
    id: MsgId,
    (first, last): (u32, u32),
) -> Handled {
    app.connected(io)?;
    // The primary master gives the table right after identification: this is a matter of moments.
    let table = app.table().ok_or_else(|| Fault::NotReady(NOT_CONNECTED_MESSAGE.into()))?;
    let partitions = table.partitions();
    let last = if last == 0 { partitions } else { last };
    if first < last && last > partitions {
        // Upstream sends it with an id of its own, that its neoctl happens to accept.
        let message = "invalid partition table offset".into();
        return Err(Fault::Error(ErrorCode::ProtocolError, message));
    }
    let rows = table.wire_rows(first, last.saturating_sub(first) as usize);
    let (ptid, replicas) = (table.ptid(), table.replicas());
    io.answer(conn, id, Packet::AnswerPartitionList { ptid, replicas, rows });
    Ok(())
}

/// The admin of a backup cluster wants to report to us.
fn request_identification(
    app: &mut Admin,
    io: &mut Io<'_, Admin>,
    conn: ConnId,
    id: MsgId,
    (node_type, cluster): (NodeType, &str),
) -> Handled {
    if node_type != NodeType::Admin {
        return Err(Fault::protocol("reject non-admin node"));
    }
    app.monitoring.backup_connected(cluster, conn).map_err(Fault::Protocol)?;
    log::info!("admin of backup cluster {cluster:?} connected");
    io.set_handler(conn, &BackupHandler);
    let node_type = NodeType::Admin;
    io.answer(conn, id, Packet::AcceptIdentification { node_type, my_nid: None, your_nid: None });
    Ok(())
}
