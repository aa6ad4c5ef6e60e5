// SPDX-License-Identifier: GPL-2.0-or-later
//! Admins: the commands of `neoctl`. Upstream: master/handlers/administration.py.
//!
//! Texts of ACK and DENIED are what users and scripts see.

use std::collections::BTreeSet;

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost};
use neo_common::limits::CELLS_MAX;
use neo_common::node::{Node, NodeKey};
use neo_common::protocol::{
    CellState, ClusterState, ErrorCode, Map, MsgId, NodeState, NodeType, Packet,
};
use neo_common::types::{NodeId, Partition, Tid};

use super::{base_failure, base_packet};
use crate::app::{Master, Ticket};
use crate::backup::NO_UPSTREAM;
use crate::cluster::{Cluster, Startup};
use crate::partition_table::Drop;
use crate::phase::{Phase, Transition};

/// Relays the commands of operators.
pub struct AdministrationHandler;

impl Handler<Master> for AdministrationHandler {
    fn name(&self) -> &'static str {
        "AdministrationHandler"
    }

    fn packet(
        &self,
        app: &mut Master,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let answer = match packet {
            Packet::SetClusterState { state } => set_cluster_state(app, io, state)?,
            Packet::SetNodeState { nid, state } => {
                return set_node_state(app, io, (conn, id), nid, state);
            }
            Packet::AddPendingNodes { nids } => {
                check_state(&app.cluster, "addPendingNodes")?;
                add_pending_nodes(&mut app.cluster, io, &nids)
            }
            Packet::SetNumReplicas { replicas } => {
                check_state(&app.cluster, "setNumReplicas")?;
                set_num_replicas(&mut app.cluster, io, replicas)?
            }
            Packet::TweakPartitionTable { dry_run, ignored } => {
                check_state(&app.cluster, "tweakPartitionTable")?;
                tweak_partition_table(&mut app.cluster, io, dry_run, &ignored)?
            }
            Packet::Truncate { tid } => truncate(&app.cluster, io, tid)?,
            Packet::Repair { nids, dry_run } => repair(&app.cluster, io, &nids, dry_run)?,
            Packet::CheckReplicas { partitions, min_tid, max_tid } => {
                check_replicas(app, io, partitions, min_tid, max_tid)?
            }
            Packet::FlushLog {} => {
                for other in app.cluster.nm.connected().filter_map(Node::established) {
                    if other != conn {
                        io.send(other, Packet::FlushLog {});
                    }
                }
                return base_packet(app, io, conn, id, Packet::FlushLog {});
            }
            _ => return base_packet(app, io, conn, id, packet),
        };
        io.answer(conn, id, answer);
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
        if let Some(key) = app.cluster.nm.unlink(conn) {
            app.cluster.forget(key);
        }
    }
}

/// The partition table can be changed in these states. (More could be safe.)
fn check_state(cluster: &Cluster, command: &str) -> Handled {
    match cluster.state {
        ClusterState::Running | ClusterState::StartingBackup | ClusterState::BackingUp => Ok(()),
        state => Err(wrong_state(command, state)),
    }
}

fn wrong_state(command: &str, state: ClusterState) -> Fault {
    Fault::denied(format!("{command} RPC can not be used in {state} state"))
}

fn set_cluster_state(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    state: ClusterState,
) -> Result<Packet, Fault> {
    let cluster = &mut app.cluster;
    let sources: &[ClusterState] = match state {
        ClusterState::Verifying => &[ClusterState::Recovering],
        ClusterState::StartingBackup => &[ClusterState::Running, ClusterState::StoppingBackup],
        ClusterState::StoppingBackup => &[ClusterState::BackingUp, ClusterState::StartingBackup],
        ClusterState::Stopping => &[],
        ClusterState::Recovering | ClusterState::Running | ClusterState::BackingUp => {
            return Err(Fault::denied("Invalid state requested"));
        }
    };
    if state != ClusterState::Stopping && !sources.contains(&cluster.state) {
        return Err(Fault::denied("Can not switch to this state"));
    }
    match state {
        ClusterState::Verifying => {
            if cluster.storages().next().is_none() {
                return Err(Fault::denied("Cannot exit recovery without any storage node"));
            }
            if let Some((nid, _)) = cluster.storages().find(|(_, conn)| io.is_pending(*conn)) {
                let message = format!("Cannot exit recovery now: node {nid} is entering cluster");
                return Err(Fault::denied(message));
            }
            cluster.startup = Startup::Forced;
        }
        ClusterState::StartingBackup => {
            if cluster.tm.has_pending() || cluster.clients().next().is_some() {
                return Err(Fault::denied(format!(
                    "Can not switch to {state} state with pending transactions or connected \
                     clients"
                )));
            }
            if cluster.options.upstream.is_none() {
                return Err(Fault::denied(NO_UPSTREAM));
            }
            io.transition(Transition::StartBackup);
        }
        ClusterState::StoppingBackup => io.transition(Transition::StopBackup),
        ClusterState::Stopping => io.transition(Transition::Stop),
        ClusterState::Recovering | ClusterState::Running | ClusterState::BackingUp => {}
    }
    Ok(Packet::ack("Cluster state changed"))
}

fn set_node_state(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    (conn, id): (ConnId, MsgId),
    nid: NodeId,
    state: NodeState,
) -> Handled {
    log::info!("set node state for {nid}: {state}");
    let cluster = &mut app.cluster;
    // A node that lost its id may be known to the table only.
    if cluster.nm.by_nid(nid).is_none() && cluster.pt.table().has_cells(nid) {
        let created = cluster.nm.create(NodeType::Storage, None, Some(nid), NodeState::Down);
        created.map_err(|error| Fault::denied(error.to_string()))?;
    }
    let node = cluster.nm.by_nid(nid).ok_or_else(|| Fault::denied("unknown node"))?;
    match (node.node_type(), state) {
        (NodeType::Storage, NodeState::Down | NodeState::Unknown) => {}
        (NodeType::Master, NodeState::Down) => {}
        _ => return Err(Fault::denied(format!("can not switch node to {state} state"))),
    }
    if node.key() == cluster.own {
        return Err(Fault::denied("can not kill primary master node"));
    }
    let (key, old) = (node.key(), node.state());
    let is_running = node.is_running();
    let mut message = if state == old {
        format!("node already in {state} state")
    } else {
        "state changed".to_owned()
    };
    let mut removed = None;
    if key.node_type() == NodeType::Storage {
        if is_running && state == NodeState::Unknown {
            return Err(Fault::denied("a running node must be stopped before removal"));
        }
        // Whether its data is needed is not known before the latest partition table is: another
        // storage may still come with it. A connected node would erase everything at once.
        if state == NodeState::Unknown && cluster.state == ClusterState::Recovering {
            return Err(Fault::denied("the cluster must be started before removal of a storage"));
        }
        let (node, has_discarded) = set_storage_state(cluster, io, (key, nid), state)?;
        if has_discarded {
            "node permanently removed".clone_into(&mut message);
        }
        removed = Some(node).filter(|_| state == NodeState::Unknown);
    } else {
        cluster.nm.set_state(key, state);
        if let Some(conn) = cluster.nm.get(key).and_then(Node::established) {
            let entry = cluster.nm.get(key).map(Node::entry);
            entry.into_iter().for_each(|entry| cluster.send_own_entry(io, conn, entry));
        }
    }
    io.answer(conn, id, Packet::ack(message));
    // After the change of the partition table.
    match removed {
        Some(node) => cluster.broadcast_removed(io, &node),
        None if state != old => cluster.broadcast_nodes(io, &[key]),
        None => {}
    }
    Ok(())
}

/// Stops (DOWN) or forgets (UNKNOWN) a storage. Returns it, and whether cells were discarded.
fn set_storage_state(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    (key, nid): (NodeKey, NodeId),
    state: NodeState,
) -> Result<(Node, bool), Fault> {
    let is_removed = state == NodeState::Unknown;
    let drop = if is_removed { Drop::Apply } else { Drop::Simulate };
    let mut changes = cluster
        .pt
        .drop_nodes(&BTreeSet::from([nid]), drop)
        .map_err(|error| Fault::denied(error.to_string()))?;
    let node = if is_removed {
        cluster.drop_storage(key)
    } else {
        cluster.nm.set_state(key, state);
        cluster.nm.get(key).cloned()
    };
    let node = node.ok_or_else(|| Fault::denied("unknown node"))?;
    if let Some(conn) = node.connection() {
        // It is told so that it exits, or erases its database. Its loss is no news then.
        let (node_type, address, nid, _, id_timestamp) = node.entry();
        cluster.send_own_entry(io, conn, (node_type, address, nid, state, id_timestamp));
        cluster.nm.unlink(conn);
        io.abort(conn);
    }
    let has_discarded = is_removed && !changes.is_empty();
    if !is_removed {
        // During recovery no storage runs yet (upstream makes all cells out-of-date here).
        changes = match cluster.state {
            ClusterState::Recovering => Vec::new(),
            _ => {
                let nm = &cluster.nm;
                cluster.pt.outdate(None, |nid| nm.state_of(nid) == NodeState::Running)
            }
        };
    }
    cluster.broadcast_partition_changes(io, changes);
    Ok((node, has_discarded))
}

fn add_pending_nodes(cluster: &mut Cluster, io: &mut Io<'_, Master>, nids: &[NodeId]) -> Packet {
    // One that had no cell yet when the master was restarted runs, and is not used.
    let pending = cluster.nm.storages().filter(|node| node.is_pending() || node.is_running());
    let pending: Vec<NodeId> =
        pending.filter_map(Node::nid).filter(|nid| nids.contains(nid)).collect();
    let added = cluster.pt.add_nodes(pending);
    if added.is_empty() {
        log::warn!("No node added");
        return Packet::ack("No node added");
    }
    let mut keys = Vec::new();
    for nid in &added {
        let node = cluster.nm.by_nid(*nid).map(|node| (node.key(), node.identified()));
        if let Some((key, Some(conn))) =
            node.filter(|(key, _)| cluster.nm.get(*key).is_some_and(Node::is_pending))
        {
            cluster.nm.set_state(key, NodeState::Running);
            cluster.start_storage(io, *nid, conn);
            keys.push(key);
        }
    }
    cluster.broadcast_nodes(io, &keys);
    let added: Vec<String> = added.iter().map(NodeId::to_string).collect();
    Packet::ack(format!("Nodes added: {}", added.join(", ")))
}

fn set_num_replicas(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    replicas: i64,
) -> Result<Packet, Fault> {
    let replicas = u32::try_from(replicas).ok().filter(|n| (*n as usize) < CELLS_MAX);
    let replicas = replicas.ok_or_else(|| Fault::denied("invalid number of replicas"))?;
    cluster.broadcast_replicas(io, replicas);
    Ok(Packet::ack(""))
}

fn tweak_partition_table(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    dry_run: bool,
    listed: &[NodeId],
) -> Result<Packet, Fault> {
    let mut ignored = BTreeSet::new();
    for node in cluster.nm.storages() {
        let Some(nid) = node.nid() else { continue };
        if listed.contains(&nid) || node.is_pending() {
            ignored.insert(nid);
        } else if !node.is_running() {
            return Err(Fault::denied("tweak: down nodes must be listed explicitly"));
        }
    }
    let mut pt = cluster.pt.clone();
    let changes = pt
        .tweak(&ignored, &cluster.topology())
        .map_err(|error| Fault::denied(error.to_string()))?;
    let changed = !changes.is_empty();
    let rows = pt.table().to_wire();
    if !dry_run {
        cluster.pt = pt;
        // All others change to another state.
        for (partition, nid, _) in changes.iter().filter(|c| c.2 == CellState::OutOfDate) {
            cluster.tm.cell_assigned(*partition, *nid);
        }
        cluster.broadcast_partition_changes(io, changes);
    }
    Ok(Packet::AnswerTweakPartitionTable { changed, rows })
}

fn truncate(cluster: &Cluster, io: &mut Io<'_, Master>, tid: Tid) -> Result<Packet, Fault> {
    if cluster.state != ClusterState::Running {
        return Err(wrong_state("truncate", cluster.state));
    }
    if cluster.last_tid <= tid {
        return Err(Fault::denied("Truncating after last transaction does nothing"));
    }
    if cluster.tm.first_tid() > tid {
        let message = "Truncating before first transaction is probably not what you intended to do";
        return Err(Fault::denied(message));
    }
    // Some cases would be safe, for example if the pack has not started.
    if tid.next().is_some_and(|next| !cluster.pm.signed(next).0.is_empty()) {
        return Err(Fault::denied("Can not truncate before an approved pack"));
    }
    io.transition(Transition::Recover { truncate: Some(tid) });
    Ok(Packet::ack(""))
}

fn repair(
    cluster: &Cluster,
    io: &mut Io<'_, Master>,
    nids: &[NodeId],
    dry_run: bool,
) -> Result<Packet, Fault> {
    let is_storage = |nid: &NodeId| nid.node_type() == Some(NodeType::Storage);
    let conn_of = |nid: &NodeId| {
        let conn = cluster.conn_of(*nid).filter(|_| is_storage(nid));
        conn.ok_or_else(|| Fault::denied(format!("invalid storage node {nid}")))
    };
    let conns: Vec<ConnId> = nids.iter().map(conn_of).collect::<Result<_, _>>()?;
    for conn in conns {
        io.send(conn, Packet::NotifyRepair { dry_run });
    }
    Ok(Packet::ack(""))
}

fn check_replicas(
    app: &Master,
    io: &mut Io<'_, Master>,
    partitions: Map<Partition, Option<NodeId>>,
    min_tid: Tid,
    max_tid: Option<Tid>,
) -> Result<Packet, Fault> {
    let Master { cluster, phase, upstream } = app;
    // The cells of a backup cluster are also compared with those of the upstream cluster.
    let backup = match phase {
        Phase::Backup(backup) => Some(backup),
        _ => None,
    };
    let last_tid = match backup {
        Some(_) => cluster.pt.shared_backup_tid_of(partitions.0.iter().map(|(p, _)| *p)),
        None => cluster.last_tid,
    };
    let max_tid = max_tid.unwrap_or(last_tid);
    if min_tid > max_tid {
        log::warn!("nothing to check: min_tid={min_tid} > max_tid={max_tid}");
        return Ok(Packet::ack(""));
    }
    let mut orders = Vec::new();
    let mut used = BTreeSet::new();
    for (partition, source) in partitions {
        if partition >= cluster.pt.partitions() {
            return Err(Fault::denied(format!("invalid partition {partition}")));
        }
        // A corrupted partition could not be repaired, even if a good cell was known: so only
        // readable ones are checked.
        let readable: Vec<NodeId> = cluster.pt.table().readable(partition).collect();
        let source = match source {
            None => None,
            Some(nid) => {
                let node = cluster.nm.by_nid(nid).filter(|node| node.is_storage());
                let invalid = || Fault::denied(format!("invalid storage node {nid}"));
                Some(node.and_then(Node::address).ok_or_else(invalid)?)
            }
        };
        let others = readable.len() + usize::from(backup.is_some() && source.is_none());
        let Some(last) = readable.last().filter(|_| others > 1) else { continue };
        // As few nodes as possible compare.
        let nid = *readable.iter().find(|nid| used.contains(*nid)).unwrap_or(last);
        used.insert(nid);
        let source = match (source, backup) {
            (None, Some(backup)) => {
                let Some(source) = backup.source(upstream, io, partition) else { continue };
                (upstream.bootstrap.cluster.clone(), Some(source))
            }
            (source, _) => (String::new(), source),
        };
        orders.push((nid, Packet::CheckPartition { partition, source, min_tid, max_tid }));
    }
    for (nid, order) in orders {
        if let Some(conn) = cluster.conn_of(nid) {
            io.send(conn, order);
        }
    }
    Ok(Packet::ack(""))
}
