// SPDX-License-Identifier: GPL-2.0-or-later
//! Recovery: finding the latest partition table, and the storages without which the cluster cannot
//! start. Upstream: master/recovery.py.
//!
//! Each storage that identifies is asked `AskRecovery`. The first one that has the greatest ptid is
//! asked `AskPartitionTable`; others with the same ptid are asked if it is lost meanwhile.
//!
//! ```text
//!  table known?   who must be there                                        by
//!  yes            all nodes with a readable cell (all nodes, to truncate)  nothing else
//!  yes            a readable cell of each partition                        `neoctl start`, or the
//!                                                                          service was interrupted
//!  no             at least one storage                                     `neoctl start`
//!  no             N storages                                               `--autostart N`
//! ```
//!
//! and all of them have answered what they were asked. A pending truncation is given to storages
//! that do not know it before.
//!
//! Two things are safer than upstream's after an interruption of the service. A new table is not
//! made if there was one. And a table does not allow an automatic restart with some readable cells
//! if transactions were committed since its version:
//! 1. S1 and S2 are up-to-date. S2 is lost: its cells become out-of-date (version 2).
//! 2. Transactions are committed, on S1 only. S1 is lost.
//! 3. S2 is back with version 1, which says that its cells are readable.
//!
//! To restart with S2 alone would lose them, and they would be deleted from S1 when it is back.
//!
//! An election may take place meanwhile: as long as this phase lasts, the master keeps connecting
//! to the other masters that it knows, so that each pair of masters is compared.
//!
//! Unlike upstream, a table is never created when a storage has one that could not be got yet.

use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::node::{Link, Node, NodeKey};
use neo_common::planted;
use neo_common::protocol::{ClusterState, NodeState, NodeType, Packet, Rows};
use neo_common::types::{NodeId, Ptid, Tid};

use crate::app::{Master, Ticket};
use crate::cluster::{Cluster, Startup};
use crate::handlers::election::ElectionHandler;
use crate::partition_table::PartitionTable;
use crate::phase::Transition;

/// State of a recovery.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Greatest ptid that a storage has.
    target: Option<Ptid>,
    /// Storages that have it, the first one is being asked. Empty once it is loaded.
    asked: Vec<NodeId>,
    loaded: bool,
    backup_tids: BTreeMap<NodeId, Option<Tid>>,
    truncate_tids: BTreeMap<NodeId, Option<Tid>>,
    /// Other masters must be tried (again).
    pub try_masters: bool,
}

impl Recovery {
    /// Asks all storages that are there.
    pub fn start(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Self {
        log::info!("begin the recovery of the status");
        cluster.told_ptid = cluster.told_ptid.max(cluster.pt.table().ptid());
        let (partitions, replicas) = (cluster.options.partitions, cluster.options.replicas);
        cluster.pt = PartitionTable::new(partitions, replicas).expect("checked at start");
        cluster.set_state(io, ClusterState::Recovering);
        Self { try_masters: true, ..Self::default() }
    }

    /// Ends once all that is needed is there.
    pub fn advance(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
    ) -> Option<Transition> {
        if std::mem::take(&mut self.try_masters) {
            connect_masters(cluster, io);
        }
        let nids = self.startable(cluster)?;
        let is_busy = |nid: &NodeId| cluster.conn_of(*nid).is_none_or(|conn| io.is_pending(conn));
        if nids.is_empty() || nids.iter().any(is_busy) {
            return None;
        }
        if cluster.pt.is_filled() && self.send_truncate(cluster, io) {
            return None;
        }
        self.finish(cluster, io, nids);
        Some(Transition::Verify)
    }

    /// Storages that will run, if they are enough.
    fn startable(&self, cluster: &Cluster) -> Option<BTreeSet<NodeId>> {
        let is_pending = |nid: &NodeId| cluster.nm.state_of(*nid) == NodeState::Pending;
        if cluster.pt.is_filled() {
            let readable = cluster.pt.operational_nodes(|nid| is_pending(&nid))?;
            let is_enough = match cluster.startup {
                Startup::WhenComplete => planted!(SplitAfterElection),
                Startup::Restart => {
                    cluster.pt.table().ptid() >= cluster.commit_ptid || planted!(StartWithOldTable)
                }
                Startup::Forced => true,
            };
            if is_enough {
                return Some(readable.into_iter().filter(is_pending).collect());
            }
            let needed = if cluster.truncate_tid.is_some() {
                cluster.pt.table().nodes().collect()
            } else {
                readable
            };
            return needed.iter().all(is_pending).then_some(needed);
        }
        if self.target.is_some() {
            return None;
        }
        let nids: BTreeSet<NodeId> = cluster.storages().map(|(nid, _)| nid).collect();
        let autostart = cluster.options.autostart.filter(|count| *count > 0);
        let is_enough = match cluster.startup {
            Startup::Forced => true,
            _ if cluster.has_table => false,
            Startup::Restart => true,
            Startup::WhenComplete => autostart.is_some_and(|count| nids.len() >= count as usize),
        };
        is_enough.then_some(nids)
    }

    /// Gives a pending truncation to the storages that do not know it. Whether there were any.
    fn send_truncate(&self, cluster: &Cluster, io: &mut Io<'_, Master>) -> bool {
        let Some(tid) = cluster.truncate_tid else { return false };
        let mut sent = false;
        for (nid, other) in &self.truncate_tids {
            if other.is_some_and(|other| other <= tid) {
                continue;
            }
            if let Some(conn) = cluster.conn_of(*nid) {
                io.send(conn, Packet::Truncate { tid });
                ask_recovery(io, conn);
                sent = true;
            }
        }
        sent
    }

    fn finish(&self, cluster: &mut Cluster, io: &mut Io<'_, Master>, mut nids: BTreeSet<NodeId>) {
        log::info!("startup allowed");
        // From now on, it is known which ids are in use.
        cluster.newcomers.clear();
        let is_new = !cluster.pt.is_filled();
        if !is_new {
            cluster.has_table = true;
            let connected = |nid: &NodeId| cluster.conn_of(*nid).is_some();
            nids = cluster.pt.table().nodes().filter(connected).collect();
        }
        let mut changed = Vec::new();
        for nid in &nids {
            if let Some(key) = cluster.nm.by_nid(*nid).map(Node::key) {
                cluster.nm.set_state(key, NodeState::Running);
                changed.push(key);
            }
        }
        changed.extend(disconnect_masters(cluster, io));
        cluster.broadcast_nodes(io, &changed);
        if is_new {
            log::info!("creating a new partition table");
            let nids: Vec<NodeId> = nids.into_iter().collect();
            let mut pt = cluster.pt.clone();
            pt.make(&nids, &cluster.topology()).expect("there is at least one node");
            // If the cluster was interrupted before it served, a storage that is away may have got
            // another table. It must not look as recent as this one.
            while pt.table().ptid() <= cluster.told_ptid {
                pt.next_ptid();
            }
            cluster.pt = pt;
            cluster.send_to_admins(io, &cluster.partition_table());
        } else {
            let told_ptid = cluster.told_ptid;
            let Cluster { pt, nm, .. } = &mut *cluster;
            let changes = pt.outdate(None, |nid| nm.state_of(nid) == NodeState::Running);
            if pt.table().ptid() < told_ptid {
                // The same goes for a storage that is away with a later table than this one:
                // 1. S1 and S2 are up-to-date. S1 is lost: S2 gets version 2, then it is lost as well.
                // 2. S1 is back. Nothing was committed meanwhile, so the cluster restarts with it: its
                //    table must not be version 2, otherwise that of S2 may be taken for it later.
                while pt.table().ptid() <= told_ptid {
                    pt.next_ptid();
                }
                cluster.send_to_admins(io, &cluster.partition_table());
            } else if let Some(packet) = cluster.partition_changes(changes) {
                cluster.send_to_admins(io, &packet);
            }
            if cluster.backup_tid.is_some() {
                let tid_of = |nid: NodeId| self.backup_tids.get(&nid).copied().flatten();
                cluster.pt.set_backup_tids(|nid| tid_of(nid).unwrap_or(Tid::ZERO));
                cluster.backup_tid = Some(cluster.pt.backup_tid());
            }
        }
    }

    /// A storage answered `AskRecovery`.
    pub fn answer_recovery(
        &mut self,
        io: &mut Io<'_, Master>,
        (nid, conn): (NodeId, ConnId),
        ptid: Option<Ptid>,
        backup_tid: Option<Tid>,
        truncate_tid: Option<Tid>,
    ) {
        // Without ptid, the storage has no table.
        if let Some(ptid) = ptid.filter(|ptid| *ptid > 0) {
            if self.target.is_none_or(|target| target < ptid && !planted!(StalePartitionTable)) {
                self.target = Some(ptid);
                self.asked.clear();
                self.loaded = false;
            }
            if self.target == Some(ptid) && !self.loaded && !self.asked.contains(&nid) {
                self.asked.push(nid);
                if self.asked.len() == 1 {
                    io.ask(conn, Packet::AskPartitionTable {}, Ticket::Recovery);
                }
            }
        }
        self.backup_tids.insert(nid, backup_tid);
        self.truncate_tids.insert(nid, truncate_tid);
    }

    /// A storage answered `AskPartitionTable`.
    ///
    /// # Errors
    /// If it cannot be a partition table.
    pub fn answer_partition_table(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
        nid: NodeId,
        (ptid, replicas, rows): (Ptid, u32, Rows),
    ) -> Handled {
        if self.asked.first() != Some(&nid) {
            // Another storage has a newer one.
            return Ok(());
        }
        if self.target != Some(ptid) {
            return Err(Fault::protocol("not the partition table that was announced"));
        }
        // A storage without data must not be taken for one that has cells:
        // 1. The master restarts and knows nobody.
        // 2. A new storage comes first, and gets id 1.
        // 3. Storage 2 comes, and has a table with cells of storage 1.
        for (nid, _) in rows.iter().flatten() {
            let key = cluster.nm.by_nid(*nid).map(Node::key);
            if let Some(key) = key.filter(|key| cluster.newcomers.contains(key)) {
                cluster.evict(io, key);
            }
        }
        let unknown = check_table(cluster, &rows)?;
        let loaded = cluster.pt.load(ptid, replicas, &rows);
        loaded.map_err(|error| Fault::protocol(error.to_string()))?;
        let mut keys = Vec::new();
        for nid in unknown {
            let created = cluster.nm.create(NodeType::Storage, None, Some(nid), NodeState::Down);
            keys.push(created.map_err(|error| Fault::protocol(error.to_string()))?);
        }
        self.asked.clear();
        self.loaded = true;
        let nodes = keys.iter().filter_map(|key| Some(cluster.nm.get(*key)?.entry())).collect();
        let timestamp = cluster.next_timestamp(io.now());
        cluster.send_to_admins(io, &Packet::NotifyNodeInformation { timestamp, nodes });
        cluster.send_to_admins(io, &cluster.partition_table());
        cluster.backup_tid = self.backup_tids.get(&nid).copied().flatten();
        cluster.truncate_tid = self.truncate_tids.get(&nid).copied().flatten();
        Ok(())
    }

    /// A storage is lost.
    pub fn storage_lost(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>, nid: NodeId) {
        self.backup_tids.remove(&nid);
        self.truncate_tids.remove(&nid);
        let Some(index) = self.asked.iter().position(|other| *other == nid) else { return };
        self.asked.remove(index);
        if index > 0 {
            return;
        }
        if let Some(conn) = self.asked.first().and_then(|nid| cluster.conn_of(*nid)) {
            io.ask(conn, Packet::AskPartitionTable {}, Ticket::Recovery);
        } else {
            log::warn!(
                "Waiting for {nid} to come back. No other node has version {:?} of the partition \
                 table.",
                self.target
            );
        }
    }
}

/// Asks a storage what it has.
pub fn ask_recovery(io: &mut Io<'_, Master>, conn: ConnId) {
    io.ask(conn, Packet::AskRecovery {}, Ticket::Recovery);
}

/// Checks a stored table, and returns the nodes in it that are not known.
fn check_table(cluster: &Cluster, rows: &Rows) -> Result<BTreeSet<NodeId>, Fault> {
    if rows.is_empty() {
        return Err(Fault::protocol("partition table without partition"));
    }
    let nids: BTreeSet<NodeId> = rows.iter().flatten().map(|(nid, _)| *nid).collect();
    if nids.iter().any(|nid| nid.node_type() != Some(NodeType::Storage)) {
        return Err(Fault::protocol("partition table with other nodes than storages"));
    }
    Ok(nids.into_iter().filter(|nid| cluster.nm.by_nid(*nid).is_none()).collect())
}

/// Connects to all known masters to which there is no connection.
fn connect_masters(cluster: &mut Cluster, io: &mut Io<'_, Master>) {
    let others: Vec<(NodeKey, _)> = cluster
        .nm
        .masters()
        .filter(|node| node.key() != cluster.own && node.connection().is_none())
        .filter_map(|node| Some((node.key(), node.address()?)))
        .collect();
    let mut changed = Vec::new();
    for (key, address) in others {
        // In this phase, this is the only place where a master becomes down: it is told less often.
        if cluster.nm.set_state(key, NodeState::Down) != Some(NodeState::Down) {
            changed.push(key);
        }
        let conn = io.connect(address, &ElectionHandler);
        let replaced = cluster.nm.set_link(key, Link::Connecting(conn));
        debug_assert_eq!(replaced, Ok(None), "it had no connection");
    }
    if !changed.is_empty() {
        cluster.broadcast_nodes(io, &changed);
    }
}

/// The election is over: only masters that lost it keep their connection. Returns the nodes that
/// change.
fn disconnect_masters(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Vec<NodeKey> {
    let others: Vec<_> = cluster
        .nm
        .masters()
        .filter(|node| node.key() != cluster.own && !node.is_identified())
        .map(|node| (node.key(), node.connection()))
        .collect();
    let mut changed = Vec::new();
    for (key, conn) in others {
        if let Some(conn) = conn {
            cluster.nm.unlink(conn);
            io.close(conn);
        }
        if cluster.nm.set_state(key, NodeState::Down) != Some(NodeState::Down) {
            changed.push(key);
        }
    }
    changed
}
