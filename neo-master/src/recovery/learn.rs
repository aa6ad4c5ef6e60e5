// SPDX-License-Identifier: GPL-2.0-or-later
//! What storages tell a recovery.

use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::node::{Node, NodeKey};
use neo_common::partition_table::PartitionTable as Table;
use neo_common::protocol::{NodeEntry, NodeState, NodeType, Packet, Rows};
use neo_common::types::{NodeId, Ptid, Tid};

use super::Recovery;
use crate::app::{Master, Ticket};
use crate::cluster::Cluster;

/// Greatest version that a cluster may reach.
const PTID_MAX: Ptid = Ptid::MAX / 4;

impl Recovery {
    /// A storage answered `AskRecovery`.
    ///
    /// # Errors
    /// If no cluster can have such a version.
    pub fn answer_recovery(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
        (nid, conn): (NodeId, ConnId),
        ptid: Option<Ptid>,
        backup_tid: Option<Tid>,
        truncate_tid: Option<Tid>,
    ) -> Handled {
        // Without ptid, the storage has no table.
        let ptid = ptid.filter(|ptid| *ptid > 0);
        if ptid.is_some_and(|ptid| ptid > PTID_MAX) {
            return Err(Fault::protocol("version of a partition table that cannot be"));
        }
        self.versions.announce(nid, ptid);
        if ptid.is_some() {
            io.ask(conn, Packet::AskPartitionTable {}, Ticket::Recovery);
        }
        self.backup_tids.insert(nid, backup_tid);
        self.truncate_tids.insert(nid, truncate_tid);
        match ptid {
            Some(_) => self.empty.remove(&nid),
            None => self.empty.insert(nid),
        };
        let nodes = self.add_nodes(cluster, io)?;
        if !nodes.is_empty() {
            let timestamp = cluster.next_timestamp(io.now());
            cluster.send_to_admins(io, &Packet::NotifyNodeInformation { timestamp, nodes });
        }
        Ok(())
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
        check_table(&rows)?;
        let mut table = Table::new();
        table.load(Some(ptid), replicas, &rows).map_err(|e| Fault::protocol(e.to_string()))?;
        if !self.versions.receive(nid, table) {
            return Err(Fault::protocol("not the partition table that was announced"));
        }
        self.load(cluster, io)
    }

    /// Takes the table that counts, if it is not the current one.
    pub(super) fn load(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Handled {
        self.evict_others(cluster, io);
        let Some((nid, table)) = self.versions.choose() else { return Ok(()) };
        if self.loaded.as_ref() != Some(table) {
            let (ptid, replicas, rows) = (table.ptid(), table.replicas(), table.to_wire());
            let loaded = cluster.pt.load(ptid.unwrap_or_default(), replicas, &rows);
            loaded.map_err(|error| Fault::protocol(error.to_string()))?;
            self.loaded = Some(table.clone());
            forget_strangers(cluster, io);
            let nodes = self.add_nodes(cluster, io)?;
            let timestamp = cluster.next_timestamp(io.now());
            cluster.send_to_admins(io, &Packet::NotifyNodeInformation { timestamp, nodes });
            cluster.send_to_admins(io, &cluster.partition_table());
        }
        self.outdated = self.loaded.as_ref().map_or_else(Vec::new, |t| self.versions.outdated(t));
        cluster.backup_tid = self.backup_tids.get(&nid).copied().flatten();
        // A storage that was lost at once does not know what was ordered.
        let known = self.truncate_tids.get(&nid).copied().flatten();
        cluster.truncate_tid = known.into_iter().chain(cluster.truncate_order).min();
        Ok(())
    }

    /// Adds the nodes of the table that are not known.
    fn add_nodes(
        &self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
    ) -> Result<Vec<NodeEntry>, Fault> {
        self.evict_empty(cluster, io);
        let nids: Vec<NodeId> = cluster.pt.table().nodes().collect();
        let mut nodes = Vec::new();
        for nid in nids {
            if cluster.nm.by_nid(nid).is_some() {
                continue;
            }
            let created = cluster.nm.create(NodeType::Storage, None, Some(nid), NodeState::Down);
            let key = created.map_err(|error| Fault::protocol(error.to_string()))?;
            nodes.extend(cluster.nm.get(key).map(Node::entry));
        }
        Ok(nodes)
    }

    /// A storage without data must not be taken for one that has cells:
    /// 1. The master restarts and knows nobody.
    /// 2. A new storage comes first, and gets id 1.
    /// 3. Storage 2 comes, and has a table with cells of storage 1.
    fn evict_empty(&self, cluster: &mut Cluster, io: &mut Io<'_, Master>) {
        let nids: Vec<NodeId> = cluster.pt.table().nodes().collect();
        for nid in nids {
            let Some(key) = cluster.nm.by_nid(nid).map(Node::key) else { continue };
            if cluster.newcomers.contains(&key) || self.empty.contains(&nid) {
                cluster.evict(io, key);
            }
        }
    }

    /// The same if it was told a table, in which it has no cell: it got its id from a master that restarted
    /// before that storage had any cell, and the next master gave the same id to another one.
    fn evict_others(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>) {
        for nid in self.versions.others() {
            self.versions.forget(nid);
            if let Some(key) = cluster.nm.by_nid(nid).map(Node::key) {
                cluster.evict(io, key);
            }
        }
    }

    /// A storage is lost.
    pub fn storage_lost(&mut self, nid: NodeId) {
        self.backup_tids.remove(&nid);
        self.truncate_tids.remove(&nid);
        self.empty.remove(&nid);
        self.versions.lose(nid);
        self.must_choose = true;
        if self.versions.is_missing(nid) {
            log::warn!("waiting for {nid} to come back: it did not send its partition table");
        }
    }
}

/// Asks a storage what it has.
pub fn ask_recovery(io: &mut Io<'_, Master>, conn: ConnId) {
    io.ask(conn, Packet::AskRecovery {}, Ticket::Recovery);
}

/// Checks a stored table.
fn check_table(rows: &Rows) -> Handled {
    if rows.is_empty() {
        return Err(Fault::protocol("partition table without partition"));
    }
    let mut nids = rows.iter().flatten().map(|(nid, _)| nid);
    match nids.any(|nid| nid.node_type() != Some(NodeType::Storage)) {
        true => Err(Fault::protocol("partition table with other nodes than storages")),
        false => Ok(()),
    }
}

/// Forgets storages that are only known from a table that does not count: one that was dropped since would
/// be down for ever, and `tweak` would ask for it.
fn forget_strangers(cluster: &mut Cluster, io: &mut Io<'_, Master>) {
    let is_stranger = |node: &&Node| {
        node.address().is_none()
            && node.connection().is_none()
            && node.nid().is_some_and(|nid| !cluster.pt.table().has_cells(nid))
    };
    let strangers: Vec<NodeKey> =
        cluster.nm.storages().filter(is_stranger).map(Node::key).collect();
    for key in strangers {
        if let Some(node) = cluster.forget(key) {
            cluster.broadcast_removed(io, &node);
        }
    }
}
