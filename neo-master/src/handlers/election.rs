// SPDX-License-Identifier: GPL-2.0-or-later
//! Other masters. Upstream: master/handlers/master.py.
//!
//! In recovery, a primary connects to all other masters that it knows and identifies with the time
//! at which it began to play this role. To be accepted is to have lost: the other one is primary
//! since longer.

use std::net::SocketAddr;

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::node::{Link, ListKind, Node, NodeEvent, NodeKey};
use neo_common::planted;
use neo_common::protocol::{
    ClusterState, ErrorCode, MsgId, NodeEntry, NodeState, NodeType, Packet,
};
use neo_common::types::NodeId;

use super::{base_failure, base_packet, root_packet};
use crate::app::{Master, Ticket};
use crate::cluster::Cluster;
use crate::phase::{Phase, Transition};

/// Masters that peers may add to the list: more is a mistake.
const MASTERS_MAX: usize = 256;

/// In the primary after recovery: a secondary master.
pub struct SecondaryHandler;

/// In the primary during recovery: another master, which may win the election.
pub struct ElectionHandler;

/// In a secondary: the primary, or a master that may be.
pub struct PrimaryHandler;

impl Handler<Master> for SecondaryHandler {
    fn name(&self) -> &'static str {
        "SecondaryHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        base_packet(app, io, conn, id, packet)
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
        let Some(key) = app.cluster.nm.unlink(conn) else { return };
        app.cluster.nm.set_state(key, NodeState::Down);
        app.cluster.broadcast_nodes(io, &[key]);
    }
}

impl Handler<Master> for ElectionHandler {
    fn name(&self) -> &'static str {
        "ElectionHandler"
    }

    fn completed(&self, app: &mut Master, io: &mut Io<'_, Master>, conn: ConnId) {
        request_identification(&mut app.cluster, io, conn);
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let Packet::NotPrimaryMaster { primary, masters } = packet else {
            return base_packet(app, io, conn, id, packet);
        };
        let elected = add_masters(&mut app.cluster, primary, &masters)?;
        // The peer may not know yet that we won against the master that it tells.
        let elected = elected.and_then(|key| app.cluster.nm.get(key));
        if let Some(node) = elected.filter(|node| !node.is_identified()) {
            io.transition(Transition::PlaySecondary(node.key()));
        } else if let Phase::Recovery(recovery) = &mut app.phase {
            // There may be new masters.
            recovery.try_masters = true;
        }
        Ok(())
    }

    fn answer(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        let key = accept_identification(&mut app.cluster, io, conn, ticket, packet)?;
        if !planted!(TwoPrimaries) {
            io.transition(Transition::PlaySecondary(key));
        }
        Ok(())
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
        _: &mut Io<'_, Master>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        // It stays in its state until it is tried again.
        app.cluster.nm.unlink(conn);
        if let Phase::Recovery(recovery) = &mut app.phase {
            recovery.try_masters = true;
        }
    }
}

impl Handler<Master> for PrimaryHandler {
    fn name(&self) -> &'static str {
        "PrimaryHandler"
    }

    fn completed(&self, app: &mut Master, io: &mut Io<'_, Master>, conn: ConnId) {
        request_identification(&mut app.cluster, io, conn);
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::NotPrimaryMaster { primary, masters } => {
                let elected = add_masters(&mut app.cluster, primary, &masters)?;
                if let (Some(key), Phase::Secondary(secondary)) = (elected, &mut app.phase) {
                    secondary.elected(&mut app.cluster, io, key);
                }
                Ok(())
            }
            Packet::NotifyClusterInformation { state } => {
                if state == ClusterState::Stopping {
                    log::info!("the cluster is stopping");
                    io.exit(0);
                }
                Ok(())
            }
            Packet::NotifyNodeInformation { timestamp, nodes } => {
                notify_node_information(app, io, timestamp, &nodes)
            }
            _ => root_packet(io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        ticket: Ticket,
        packet: Packet,
    ) -> Handled {
        accept_identification(&mut app.cluster, io, conn, ticket, packet).map(drop)
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
        _: &mut Io<'_, Master>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        app.cluster.nm.unlink(conn);
        if let Phase::Secondary(secondary) = &mut app.phase {
            secondary.lost(conn);
        }
    }
}

fn request_identification(cluster: &mut Cluster, io: &mut Io<'_, Master>, conn: ConnId) {
    if let Some(key) = cluster.nm.by_connection(conn).map(Node::key) {
        let replaced = cluster.nm.set_link(key, Link::Connected(conn));
        debug_assert_eq!(replaced, Ok(None), "same connection");
    }
    let request = Packet::RequestIdentification {
        node_type: NodeType::Master,
        nid: cluster.own_nid(),
        address: Some(cluster.options.bind),
        cluster: cluster.options.cluster.clone(),
        id_timestamp: cluster.primary_since,
        extra: Default::default(),
    };
    io.ask(conn, request, Ticket::Identification);
}

/// Adds masters to the list, and returns the primary if it is told.
fn add_masters(
    cluster: &mut Cluster,
    primary: Option<u32>,
    masters: &[SocketAddr],
) -> Result<Option<NodeKey>, Fault> {
    for &address in masters {
        if cluster.nm.by_address(address).is_none() && cluster.nm.masters().count() < MASTERS_MAX {
            let created = cluster.nm.create_master(address);
            created.map_err(|error| Fault::protocol(error.to_string()))?;
        }
    }
    let Some(index) = primary else { return Ok(None) };
    let address = masters.get(index as usize).ok_or_else(|| Fault::protocol("no such master"))?;
    let node = cluster.nm.by_address(*address);
    let node = node.filter(|node| node.is_master() && node.key() != cluster.own);
    Ok(node.map(Node::key))
}

/// A master accepts us: it is primary.
fn accept_identification(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    conn: ConnId,
    ticket: Ticket,
    packet: Packet,
) -> Result<NodeKey, Fault> {
    let (Ticket::Identification, Packet::AcceptIdentification { node_type, my_nid, your_nid }) =
        (ticket, packet)
    else {
        return Err(Fault::Unexpected);
    };
    if node_type != NodeType::Master {
        return Err(Fault::Close);
    }
    let is_master = |nid: &NodeId| nid.node_type() == Some(NodeType::Master);
    let own_nid = your_nid.filter(is_master);
    let own_nid = own_nid.ok_or_else(|| Fault::protocol("No UUID supplied"))?;
    let nid = my_nid.filter(is_master).filter(|nid| *nid != own_nid);
    let nid = nid.ok_or_else(|| Fault::protocol("invalid uuids"))?;
    let key = cluster.nm.by_connection(conn).ok_or(Fault::Close)?.key();
    if let Some(other) = cluster.nm.by_nid(nid).map(Node::key).filter(|other| *other != key) {
        cluster.nm.set_nid(other, None).expect("nothing conflicts with no id");
    }
    cluster.nm.set_nid(key, Some(nid)).expect("the id was just freed");
    cluster.nm.set_state(key, NodeState::Running);
    let replaced = cluster.nm.set_link(key, Link::Identified(conn));
    debug_assert_eq!(replaced, Ok(None), "same connection");
    io.set_nid(conn, Some(nid));
    cluster.set_own_nid(io, own_nid);
    log::info!("connected to primary master {nid}");
    Ok(key)
}

/// The primary tells which masters there are.
fn notify_node_information(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    timestamp: f64,
    nodes: &[NodeEntry],
) -> Handled {
    let Master { cluster, phase: Phase::Secondary(secondary), .. } = app else { return Ok(()) };
    let own_nid = cluster.own_nid();
    let bind = Some(cluster.options.bind);
    for &(node_type, address, nid, state, _) in nodes {
        if node_type != NodeType::Master {
            return Err(Fault::protocol("only masters are told to masters"));
        }
        if nid != own_nid && address != bind {
            continue;
        }
        if matches!(state, NodeState::Down | NodeState::Unknown) {
            log::info!("stopped by the primary master");
            io.exit(0);
            return Ok(());
        }
        if nid != own_nid || address != bind {
            return Err(Fault::protocol("another master has the same id or address"));
        }
    }
    let kind = if std::mem::take(&mut secondary.wants_full_list) {
        ListKind::Full
    } else {
        ListKind::Changes
    };
    let update = cluster
        .nm
        .update(own_nid, kind, timestamp, nodes, |_| false)
        .map_err(|error| Fault::protocol(error.to_string()))?;
    for event in update.events {
        if let NodeEvent::Removed(node) = event
            && let Some(conn) = node.connection()
        {
            io.close(conn);
        }
    }
    // The primary does not know all those that the operator listed.
    for address in cluster.options.masters.clone() {
        let _ = cluster.nm.create_master(address); // unless another node has it
    }
    Ok(())
}
