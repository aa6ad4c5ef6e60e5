// SPDX-License-Identifier: GPL-2.0-or-later
//! Who connects. Upstream: master/handlers/identification.py.

use std::net::SocketAddr;

use bytes::Bytes;
use neo_common::engine::{ConnId, Fault, Handled, Handler, Io};
use neo_common::node::{Link, Node, NodeKey};
use neo_common::planted;
use neo_common::protocol::{
    CellState, ClusterState, ErrorCode, Map, MsgId, NodeState, NodeType, Packet, Value,
};
use neo_common::types::{NodeId, Partition};

use super::{MasterHandler, administration, client, of_master, of_storage, root_packet};
use crate::app::Master;
use crate::backup::notify_upstream_admin;
use crate::cluster::{Cluster, Extra};
use crate::phase::{Phase, Transition};

/// Connections to the primary.
pub struct IdentificationHandler;

/// Connections to a secondary.
pub struct SecondaryIdentificationHandler;

/// What a node says of itself.
struct Request {
    node_type: NodeType,
    nid: Option<NodeId>,
    address: Option<SocketAddr>,
    id_timestamp: Option<f64>,
    extra: Map<Bytes, Value>,
}

/// Optional properties of a node.
#[derive(Default)]
struct Properties {
    extra: Extra,
    devpath: Vec<Bytes>,
    read_only: Option<bool>,
    /// A cloned storage wants a new id, and cells of these partitions.
    new_nid: Vec<Partition>,
    /// Greatest id of a storage that was dropped, as far as this one remembers.
    dropped: Option<NodeId>,
}

/// What is decided about a node.
struct Decision {
    state: NodeState,
    handler: MasterHandler,
}

impl Handler<Master> for IdentificationHandler {
    fn name(&self) -> &'static str {
        "IdentificationHandler"
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
            Packet::RequestIdentification {
                node_type,
                nid,
                address,
                cluster,
                id_timestamp,
                extra,
            } => {
                check_cluster_name(&app.cluster, &cluster)?;
                let request = Request { node_type, nid, address, id_timestamp, extra };
                identify(app, io, conn, id, request)
            }
            _ => root_packet(io, conn, id, packet),
        }
    }
}

impl Handler<Master> for SecondaryIdentificationHandler {
    fn name(&self) -> &'static str {
        "SecondaryIdentificationHandler"
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
            Packet::RequestIdentification { node_type, address, cluster, id_timestamp, .. } => {
                check_cluster_name(&app.cluster, &cluster)?;
                redirect(app, io, conn, node_type, address, id_timestamp)
            }
            _ => root_packet(io, conn, id, packet),
        }
    }
}

fn check_cluster_name(cluster: &Cluster, name: &str) -> Handled {
    if cluster.options.cluster == name {
        return Ok(());
    }
    log::error!("reject an alien cluster");
    Err(Fault::protocol("invalid cluster name"))
}

fn identify(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    conn: ConnId,
    id: MsgId,
    mut request: Request,
) -> Handled {
    let cluster = &mut app.cluster;
    if request.address == Some(cluster.options.bind) {
        return Err(Fault::protocol("address conflict"));
    }
    // Ids of other types of nodes are not given.
    request.nid = request.nid.filter(|nid| nid.node_type() == Some(request.node_type));
    let properties = Properties::parse(&request, cluster.pt.partitions())?;
    cluster.learn_dropped(io, properties.dropped);
    // The id that a storage claims may have been given to a new one, because nobody knew that it
    // was in use: the one that claims it has data.
    let holder = request.nid.and_then(|nid| cluster.nm.by_nid(nid)).map(Node::key);
    if let Some(holder) = holder.filter(|key| cluster.newcomers.contains(key)) {
        cluster.evict(io, holder);
    }
    let is_newcomer = request.node_type == NodeType::Storage
        && request.nid.is_none()
        && cluster.state == ClusterState::Recovering;
    let mut key = find(cluster, io, &mut request)?;
    // Whoever has no id has no data: not the storage with cells that used to be there.
    if let Some(known) = key.filter(|_| is_newcomer)
        && let Some(nid) = cluster.nm.get(known).and_then(Node::nid)
        && cluster.pt.table().has_cells(nid)
    {
        cluster.nm.set_address(known, None).expect("nothing conflicts with no address");
        key = None;
    }
    let is_known = key.is_some() && request.nid.is_some();
    let Some(decision) = decide(cluster, io, &request, &properties, is_known)? else {
        return Ok(());
    };
    let nid = cluster
        .new_nid(request.nid, request.address, request.node_type)
        .ok_or_else(|| Fault::protocol("no more node id"))?;
    let key = match key {
        Some(key) => key,
        None => cluster
            .nm
            .create(request.node_type, request.address, None, decision.state)
            .map_err(|error| Fault::protocol(error.to_string()))?,
    };
    cluster.nm.set_nid(key, Some(nid)).map_err(|_| Fault::protocol("already connected"))?;
    log::info!("accept {} {nid} ({})", request.node_type, decision.state);
    if is_newcomer {
        cluster.newcomers.insert(key);
    }
    let Properties { extra, devpath, new_nid, .. } = properties;
    cluster.set_extra(key, extra);
    cluster.nm.set_devpath(key, devpath);
    let timestamp = cluster.next_timestamp(io.now());
    cluster.nm.set_id_timestamp(key, Some(timestamp));
    cluster.nm.set_state(key, decision.state);
    cluster.broadcast_nodes(io, &[key]);
    let mut changes = Vec::new();
    for partition in new_nid {
        let set = cluster.pt.set_cell(partition, nid, CellState::OutOfDate);
        set.expect("partitions were checked");
        changes.push((partition, nid, CellState::OutOfDate));
        cluster.tm.cell_assigned(partition, nid);
    }
    cluster.broadcast_partition_changes(io, changes);

    io.set_handler(conn, decision.handler);
    io.set_nid(conn, Some(nid));
    // A master to which we were connecting at the same time.
    let replaced = cluster.nm.set_link(key, Link::Identified(conn));
    if let Some(replaced) = replaced.map_err(|_| Fault::protocol("already connected"))? {
        io.close(replaced);
    }
    let my_nid = cluster.own_nid();
    let answer =
        Packet::AcceptIdentification { node_type: NodeType::Master, my_nid, your_nid: Some(nid) };
    io.answer(conn, id, answer);
    cluster.send_all_nodes(io, key);
    match request.node_type {
        NodeType::Master => {}
        NodeType::Admin => {
            io.send(conn, cluster.partition_table());
            notify_upstream_admin(cluster, &app.upstream, io);
        }
        NodeType::Client => io.send(conn, cluster.partition_table()),
        NodeType::Storage => storage_identified(cluster, io, key, conn),
    }
    Ok(())
}

/// The first packets of a storage, after the list of nodes.
fn storage_identified(cluster: &mut Cluster, io: &mut Io<'_, Master>, key: NodeKey, conn: ConnId) {
    if matches!(cluster.state, ClusterState::Recovering | ClusterState::Verifying) {
        super::storage_switched(cluster, io, key, conn);
        return;
    }
    io.send(conn, cluster.partition_table());
    super::storage_switched(cluster, io, key, conn);
}

/// The node that identifies, if it is known already. A temporary id that another node uses is
/// forgotten.
fn find(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    request: &mut Request,
) -> Result<Option<NodeKey>, Fault> {
    let conflict = || Fault::protocol("already connected");
    let is_temporary = request.nid.is_some_and(NodeId::is_temporary);
    let by_nid = request.nid.and_then(|nid| cluster.nm.by_nid(nid));
    let by_address = request.address.and_then(|address| cluster.nm.by_address(address));
    let found = match (by_nid, by_address) {
        (None, None) => None,
        (_, Some(node)) if node.is_identified() => return Err(conflict()),
        (Some(node), Some(other)) if node.key() == other.key() => Some(node.key()),
        // It will get another id if the one that it wants belongs to the other node.
        (None, Some(node)) => Some(node.key()),
        (Some(_), Some(node)) if is_temporary => Some(node.key()),
        (Some(node), Some(other)) => {
            // A storage came back where another one, which is down, used to be.
            let (node, other) = (node.key(), other.key());
            if node.node_type() != NodeType::Storage
                || other.node_type() != NodeType::Storage
                || cluster.nm.get(node).is_some_and(Node::is_identified)
            {
                return Err(conflict());
            }
            cluster.nm.set_address(other, None).expect("nothing conflicts with no address");
            cluster.broadcast_nodes(io, &[other]);
            cluster.nm.set_address(node, request.address).expect("it was just freed");
            Some(node)
        }
        (Some(node), None) if node.is_identified() => {
            if !is_temporary {
                if let (Some(address), true) =
                    (request.address, request.node_type == NodeType::Storage)
                {
                    log::warn!(
                        "{address} says that it is storage {node}. If both go on running, one of them is a \
                         copy or was dropped: stop it, and erase its database or start it once with \
                         --new-nid"
                    );
                }
                return Err(conflict());
            }
            request.nid = None;
            None
        }
        (Some(node), None) if node.key() == cluster.own => None,
        (Some(node), None) => {
            let key = node.key();
            if key.node_type() == request.node_type {
                cluster.nm.set_address(key, request.address).map_err(|_| conflict())?;
            }
            Some(key)
        }
    };
    // Another type of node has this id or this address.
    match found {
        Some(key) if key.node_type() != request.node_type => Err(conflict()),
        found => Ok(found),
    }
}

/// Whether the node is accepted, and as what. `None`: it was answered already.
fn decide(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    request: &Request,
    properties: &Properties,
    is_known: bool,
) -> Result<Option<Decision>, Fault> {
    let mut state = NodeState::Running;
    let handler: MasterHandler = match request.node_type {
        NodeType::Client => {
            let read_only = properties.read_only.unwrap_or(properties.extra.backup.is_some());
            match cluster.state {
                ClusterState::Running if read_only => &client::ClientReadOnlyServiceHandler,
                ClusterState::Running => &client::ClientServiceHandler,
                ClusterState::BackingUp if read_only => &client::ClientBackupServiceHandler,
                ClusterState::BackingUp => {
                    let message = "read-write access requested but cluster is backing up";
                    return Err(Fault::Error(ErrorCode::ReadOnlyAccess, message.into()));
                }
                _ => return Err(Fault::retry_later()),
            }
        }
        NodeType::Storage => {
            if cluster.state == ClusterState::StoppingBackup {
                return Err(Fault::retry_later());
            }
            if cluster.state == ClusterState::Recovering || !is_known {
                state = NodeState::Pending;
            }
            if request.address.is_none() {
                if cluster.state == ClusterState::Recovering {
                    return Err(Fault::retry_later());
                }
                if request.nid.is_some() || properties.new_nid.is_empty() {
                    return Err(Fault::protocol(""));
                }
                // It closes the connection itself. If we did, it could see that before it gets its
                // id.
                state = NodeState::Down;
            }
            of_storage(cluster.state).unwrap_or(&super::storage::StorageServiceHandler)
        }
        NodeType::Master => {
            let address = request.address.ok_or_else(|| Fault::protocol("address is missing"))?;
            if let (Some(own), ClusterState::Recovering) = (cluster.primary_since, cluster.state)
                && let Some(other) = request.id_timestamp
                && is_before((other, address), (own, cluster.options.bind))
                && !planted!(TwoPrimaries)
            {
                let key = cluster.nm.create_master(address);
                let key = key.map_err(|error| Fault::protocol(error.to_string()))?;
                io.transition(Transition::PlaySecondary(key));
                return Ok(None);
            }
            of_master(cluster.state)
        }
        NodeType::Admin => &administration::AdministrationHandler,
    };
    Ok(Some(Decision { state, handler }))
}

/// Order of masters in an election: the one that is primary since longer wins. Addresses decide
/// ties: as texts, then by port.
fn is_before(a: (f64, SocketAddr), b: (f64, SocketAddr)) -> bool {
    let key = |address: SocketAddr| (address.ip().to_string(), address.port());
    a.0 < b.0 || (a.0 == b.0 && key(a.1) < key(b.1))
}

impl Properties {
    fn parse(request: &Request, partitions: u32) -> Result<Self, Fault> {
        let invalid = || Fault::protocol("invalid properties");
        let mut properties = Self::default();
        for (key, value) in &request.extra.0 {
            match (&key[..], request.node_type, value) {
                (b"devpath", NodeType::Storage, value) => {
                    properties.devpath = texts(value).ok_or_else(invalid)?;
                }
                (b"new_nid", NodeType::Storage, Value::Array(items)) => {
                    let partition = |item: &Value| match item {
                        Value::Int(item) => {
                            Partition::try_from(*item).ok().filter(|item| *item < partitions)
                        }
                        _ => None,
                    };
                    let list: Option<Vec<_>> = items.iter().map(partition).collect();
                    properties.new_nid = list.ok_or_else(invalid)?;
                    properties.new_nid.sort_unstable();
                    properties.new_nid.dedup();
                }
                (b"dropped", NodeType::Storage, Value::Int(nid)) => {
                    let nid = i32::try_from(*nid).ok().and_then(NodeId::new);
                    let nid = nid.filter(|nid| nid.node_type() == Some(NodeType::Storage));
                    properties.dropped = Some(nid.ok_or_else(invalid)?);
                }
                (b"backup", NodeType::Client, Value::Bin(name)) => {
                    properties.extra.backup = Some(name.clone());
                }
                (b"backup", NodeType::Admin, value) => {
                    properties.extra.monitors = texts(value).ok_or_else(invalid)?;
                }
                (b"read_only", NodeType::Client, Value::Bool(value)) => {
                    properties.read_only = Some(*value);
                }
                // Nothing, or what a later version says.
                _ => {}
            }
        }
        Ok(properties)
    }
}

fn texts(value: &Value) -> Option<Vec<Bytes>> {
    let Value::Array(items) = value else { return None };
    let text = |item: &Value| match item {
        // Detached from the packet, which it would keep in memory.
        Value::Bin(text) => Some(Bytes::copy_from_slice(text)),
        _ => None,
    };
    items.iter().map(text).collect()
}

/// Tells who the primary is, if it is known.
fn redirect(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    conn: ConnId,
    node_type: NodeType,
    address: Option<SocketAddr>,
    id_timestamp: Option<f64>,
) -> Handled {
    let Master { cluster, phase: Phase::Secondary(secondary), .. } = app else {
        return Err(Fault::Close);
    };
    if address == Some(cluster.options.bind) {
        return Err(Fault::protocol("address conflict"));
    }
    let primary_node = cluster.nm.get(secondary.primary());
    let is_identified = primary_node.is_some_and(Node::is_identified);
    let primary_address = primary_node.and_then(Node::address);
    if !is_identified
        && node_type == NodeType::Master
        && primary_address != address
        && let Some(address) = address
    {
        let key = cluster.nm.create_master(address);
        let key = key.map_err(|error| Fault::protocol(error.to_string()))?;
        if id_timestamp.is_some() {
            io.close(conn);
            secondary.elected(cluster, io, key);
            return Ok(());
        }
    }
    let masters = cluster.nm.master_addresses();
    let primary = primary_address.filter(|primary| is_identified && Some(*primary) != address);
    let primary = primary.and_then(|primary| masters.iter().position(|m| *m == primary));
    io.send(conn, Packet::NotPrimaryMaster { primary: primary.map(|i| i as u32), masters });
    io.abort(conn);
    Ok(())
}
