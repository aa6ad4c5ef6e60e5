// SPDX-License-Identifier: GPL-2.0-or-later
//! What the master knows of the cluster, whatever the phase: nodes, partition table, transactions,
//! pack orders; and how it tells the others. Upstream: master/app.py.
//!
//! Who is told what:
//!
//! ```text
//!               masters  storages  clients  admins                     partition table
//!   to admin       x        x         x                                      x
//!   to storage     x        x         x                                      x
//!   to client      x        x              those that monitor its            x
//!                                          backup cluster, if it is one
//!   to master      x
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use neo_common::engine::{ConnId, Io};
use neo_common::node::{Node, NodeKey, NodeManager};
use neo_common::partition_table::TableError;
use neo_common::planted;
use neo_common::protocol::{
    CellState, ClusterState, MsgId, NodeEntry, NodeState, NodeType, Packet,
};
use neo_common::time::Now;
use neo_common::types::{NodeId, Ptid, Tid, Ttid};

use crate::app::{Master, Options, Ticket};
use crate::handlers;
use crate::pack::{self, PackManager};
use crate::partition_table::{Changes, PartitionTable, Topology};
use crate::transactions::TransactionManager;

/// Where an answer goes, now or later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReplyTo {
    /// Connection of the requester.
    pub conn: ConnId,
    /// Id of the request.
    pub id: MsgId,
}

/// A storage that serves clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready {
    /// When it became ready, counted in storages. It knows in full the transactions that began
    /// later.
    pub readiness: u64,
    /// Connection to it.
    pub conn: ConnId,
}

/// What some nodes said of themselves when they identified.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extra {
    /// Client: name of the backup cluster whose master it is.
    pub backup: Option<Bytes>,
    /// Admin: names of the backup clusters that it monitors.
    pub monitors: Vec<Bytes>,
}

/// When recovery may end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Startup {
    /// Once all nodes with readable cells are there.
    WhenComplete,
    /// Once nothing that was committed is missing: the service was interrupted.
    Restart,
    /// Once each partition can be read: the operator wants so.
    Forced,
}

/// Whether the cluster can go on.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Each partition can be read.
    Operational,
    /// Not any more, or storages must be truncated together: back to recovery.
    Stopped,
}

/// An entry of a node, with what decides who is told.
struct Announcement {
    entry: NodeEntry,
    monitors: Vec<Bytes>,
}

/// State that all phases share.
#[derive(Debug)]
pub struct Cluster {
    /// What the operator chose.
    pub options: Options,
    /// As told to the others.
    pub state: ClusterState,
    /// All nodes, itself included.
    pub nm: NodeManager,
    /// This node.
    pub own: NodeKey,
    /// The partition table.
    pub pt: PartitionTable,
    /// Current transactions, and where ids come from.
    pub tm: TransactionManager,
    /// Pack orders.
    pub pm: PackManager,
    /// Latest transaction that is committed completely.
    pub last_tid: Tid,
    /// Up to where a backup cluster is complete; `None` if it is not one.
    pub backup_tid: Option<Tid>,
    /// Truncation that storages have not all done.
    pub truncate_tid: Option<Tid>,
    /// What the operator ordered, as long as it is not sure that storages know it.
    pub truncate_order: Option<Tid>,
    /// For whom recovery waits.
    pub startup: Startup,
    /// There is a database: a new partition table is not made automatically any more.
    pub has_table: bool,
    /// Version of the partition table when the last recovery began: the last one of this master.
    /// Storages that are away may have it: it must not be the version of another table.
    pub told_ptid: Option<Ptid>,
    /// Version of the partition table when storages were asked to lock the last transaction: those that
    /// are needed have it. Readable cells of older versions may miss transactions.
    pub lock_ptid: Option<Ptid>,
    /// The same for transactions of earlier masters, as far as storages told when the cluster was started
    /// last: a bound, which those that were not there then may lower.
    pub former_lock_ptid: Option<Ptid>,
    /// Greatest id of the storages that this master dropped.
    pub dropped: Option<NodeId>,
    /// When this master began to play the primary role; `None` if it is secondary.
    pub primary_since: Option<f64>,
    /// New transactions wait: the cluster is being stopped.
    pub is_stopping: bool,
    /// Number of verifications so far.
    pub verification_rounds: u32,
    ready: BTreeMap<NodeId, Ready>,
    starting: BTreeSet<NodeId>,
    readiness: u64,
    extras: BTreeMap<NodeKey, Extra>,
    /// Storages that had no id and got one during this recovery, when it was not known yet which ids
    /// are in use.
    pub newcomers: BTreeSet<NodeKey>,
    timestamp: f64,
}

impl Cluster {
    /// Knows only itself and the other masters.
    ///
    /// # Errors
    /// If there are too many partitions.
    pub fn new(options: Options) -> Result<Self, TableError> {
        let mut nm = NodeManager::new();
        for address in &options.masters {
            nm.create_master(*address).expect("there are only masters");
        }
        let is_master = |nid: &NodeId| nid.node_type() == Some(NodeType::Master);
        let nid = options.nid.filter(is_master);
        let own = nm
            .create(NodeType::Master, Some(options.bind), nid, NodeState::Down)
            .expect("no other node has an id");
        Ok(Self {
            state: ClusterState::Recovering,
            nm,
            own,
            pt: PartitionTable::new(options.partitions, options.replicas)?,
            tm: TransactionManager::new(),
            pm: PackManager::new(),
            last_tid: Tid::ZERO,
            backup_tid: None,
            truncate_tid: None,
            truncate_order: None,
            startup: Startup::WhenComplete,
            has_table: false,
            told_ptid: None,
            lock_ptid: None,
            former_lock_ptid: None,
            dropped: None,
            primary_since: None,
            is_stopping: false,
            verification_rounds: 0,
            ready: BTreeMap::new(),
            starting: BTreeSet::new(),
            readiness: 0,
            extras: BTreeMap::new(),
            newcomers: BTreeSet::new(),
            timestamp: 0.0,
            options,
        })
    }

    /// Current time in seconds, but strictly increasing: it orders identifications and
    /// notifications.
    pub fn next_timestamp(&mut self, now: Now) -> f64 {
        let now = now.realtime_seconds();
        self.timestamp = if self.timestamp < now { now } else { self.timestamp + 1e-3 };
        self.timestamp
    }

    // Nodes.

    /// This node.
    pub fn own_node(&self) -> &Node {
        self.nm.get(self.own).expect("the own node is never removed")
    }
    /// Own id; `None` before this master plays a role for the first time.
    pub fn own_nid(&self) -> Option<NodeId> {
        self.own_node().nid()
    }
    /// Changes the own id. Another node that has it loses it: it will get another one.
    pub fn set_own_nid(&mut self, io: &mut Io<'_, Master>, nid: NodeId) {
        if let Some(other) = self.nm.by_nid(nid).map(Node::key).filter(|key| *key != self.own) {
            self.nm.set_nid(other, None).expect("nothing conflicts with no id");
            if let Some(conn) = self.nm.get(other).and_then(Node::connection) {
                self.nm.unlink(conn);
                io.close(conn);
            }
        }
        self.nm.set_nid(self.own, Some(nid)).expect("the id was just freed");
        log::info!("node id: {nid}");
    }

    /// The id of a node that identifies: what it wants if possible, otherwise the first free one
    /// (that of a node with the same address counts as free). `None` if all are used.
    ///
    /// A storage gets one that is greater than all others, and than those that were dropped. Upstream takes
    /// the first free one:
    /// 1. The machine of S1 is lost, S1 is dropped.
    /// 2. A new storage gets the same id, and cells.
    /// 3. Months later, everything restarts, the old machine as well. If it comes first, it is S1, and what
    ///    it has is believed to be up-to-date.
    pub fn new_nid(
        &self,
        wanted: Option<NodeId>,
        address: Option<SocketAddr>,
        node_type: NodeType,
    ) -> Option<NodeId> {
        let is_free = |nid: &NodeId, or_without_address: bool| {
            self.nm.by_nid(*nid).is_none_or(|node| {
                node.key() != self.own
                    && node.node_type() == node_type
                    && node.address() == address
                    && (address.is_some() || or_without_address)
            })
        };
        let wanted = wanted.filter(|nid| nid.node_type() == Some(node_type));
        if let Some(nid) = wanted.filter(|nid| is_free(nid, true)) {
            return Some(nid);
        }
        let free = |from: u32| {
            (from..=0xff_ffff)
                .map_while(|index| NodeId::of(node_type, index))
                .find(|nid| is_free(nid, false))
        };
        if node_type != NodeType::Storage {
            return free(1);
        }
        let known = address.and_then(|address| self.nm.by_address(address)).and_then(Node::nid);
        if let Some(nid) = known.filter(|nid| is_free(nid, false)) {
            return Some(nid);
        }
        let greatest = self.nm.storages().filter_map(Node::nid).chain(self.dropped).max();
        free(greatest.map_or(1, |nid| nid.index() + 1)).or_else(|| free(1))
    }

    /// A storage remembers that one with this id was dropped: newcomers must not have it.
    pub fn learn_dropped(&mut self, io: &mut Io<'_, Master>, nid: Option<NodeId>) {
        if nid <= self.dropped {
            return;
        }
        self.dropped = nid;
        let is_late = |key: &&NodeKey| self.nm.get(**key).and_then(Node::nid) <= nid;
        let keys: Vec<NodeKey> = self.newcomers.iter().filter(is_late).copied().collect();
        for key in keys {
            self.evict(io, key);
        }
    }

    /// Removes a storage for good, without telling anybody.
    pub fn drop_storage(&mut self, key: NodeKey) -> Option<Node> {
        let node = self.forget(key)?;
        self.dropped = self.dropped.max(node.nid());
        Some(node)
    }

    /// Nodes that run.
    pub fn is_running(&self, nid: NodeId) -> bool {
        self.nm.state_of(nid) == NodeState::Running
    }
    /// Connection of an identified node.
    pub fn conn_of(&self, nid: NodeId) -> Option<ConnId> {
        self.nm.by_nid(nid).and_then(Node::identified)
    }
    /// Remembers what a node said when it identified.
    pub fn set_extra(&mut self, key: NodeKey, extra: Extra) {
        if extra == Extra::default() {
            self.extras.remove(&key);
        } else {
            self.extras.insert(key, extra);
        }
    }
    /// Name of the backup cluster whose master a client is.
    pub fn backup_of(&self, key: NodeKey) -> Option<&Bytes> {
        self.extras.get(&key).and_then(|extra| extra.backup.as_ref())
    }
    /// Identified clients: connection, and whether it is the master of a backup cluster.
    pub fn clients(&self) -> impl Iterator<Item = (ConnId, bool)> {
        self.nm.clients().filter_map(|node| {
            node.identified().map(|conn| (conn, self.backup_of(node.key()).is_some()))
        })
    }
    /// Identified storages.
    pub fn storages(&self) -> impl Iterator<Item = (NodeId, ConnId)> {
        self.nm.storages().filter_map(|node| node.nid().zip(node.identified()))
    }
    /// Removes a node, without telling anybody.
    pub fn forget(&mut self, key: NodeKey) -> Option<Node> {
        self.extras.remove(&key);
        self.newcomers.remove(&key);
        self.nm.remove(key)
    }
    /// Disconnects a storage whose id belongs to another one: it is empty, and has to identify
    /// again.
    pub fn evict(&mut self, io: &mut Io<'_, Master>, key: NodeKey) {
        if let Some(conn) = self.nm.get(key).and_then(Node::connection) {
            self.nm.unlink(conn);
            io.close(conn);
        }
        if let Some(node) = self.forget(key) {
            log::warn!(
                "{node} has the id of another storage: it gets another one. If it comes back with this \
                 id, stored in its database, start it once with --new-nid"
            );
            self.broadcast_removed(io, &node);
        }
    }

    fn announcement(&self, key: NodeKey) -> Option<Announcement> {
        let entry = self.nm.get(key)?.entry();
        let monitors = self.extras.get(&key).map_or_else(Vec::new, |e| e.monitors.clone());
        Some(Announcement { entry, monitors })
    }

    /// What one node is told of `list`.
    fn entries_for(&self, list: &[Announcement], to: &Node) -> Vec<NodeEntry> {
        let backup = self.backup_of(to.key());
        let is_for = |announcement: &&Announcement| match (announcement.entry.0, to.node_type()) {
            (NodeType::Admin, NodeType::Client) => {
                backup.is_some_and(|backup| announcement.monitors.contains(backup))
            }
            (NodeType::Admin, _) => false,
            (_, NodeType::Admin | NodeType::Storage) => true,
            (NodeType::Master | NodeType::Storage, NodeType::Client) => true,
            (NodeType::Client, NodeType::Client) => false,
            (NodeType::Master, NodeType::Master) => true,
            (NodeType::Storage | NodeType::Client, NodeType::Master) => false,
        };
        list.iter().filter(is_for).map(|announcement| announcement.entry).collect()
    }

    /// Tells all identified nodes what changed of these nodes, in one packet.
    ///
    /// Pending storages too: they do not get the full list again when they are added.
    pub fn broadcast_nodes(&mut self, io: &mut Io<'_, Master>, keys: &[NodeKey]) {
        let list: Vec<_> = keys.iter().filter_map(|key| self.announcement(*key)).collect();
        self.broadcast(io, &list);
    }
    /// Tells all identified nodes that a node must be forgotten.
    pub fn broadcast_removed(&mut self, io: &mut Io<'_, Master>, node: &Node) {
        let (node_type, address, nid, _, id_timestamp) = node.entry();
        let entry = (node_type, address, nid, NodeState::Unknown, id_timestamp);
        self.broadcast(io, &[Announcement { entry, monitors: Vec::new() }]);
    }
    fn broadcast(&mut self, io: &mut Io<'_, Master>, list: &[Announcement]) {
        let timestamp = self.next_timestamp(io.now());
        for node in self.nm.identified() {
            let nodes = self.entries_for(list, node);
            if let Some(conn) = node.identified().filter(|_| !nodes.is_empty()) {
                io.send(conn, Packet::NotifyNodeInformation { timestamp, nodes });
            }
        }
    }
    /// Tells a node that just identified about itself, then about all others.
    pub fn send_all_nodes(&mut self, io: &mut Io<'_, Master>, key: NodeKey) {
        let timestamp = self.next_timestamp(io.now());
        let Some(node) = self.nm.get(key) else { return };
        let others = self.nm.iter().map(Node::key).filter(|other| *other != key);
        let list: Vec<_> = others.filter_map(|key| self.announcement(key)).collect();
        let mut nodes = vec![node.entry()];
        nodes.extend(self.entries_for(&list, node));
        if let Some(conn) = node.identified() {
            io.send(conn, Packet::NotifyNodeInformation { timestamp, nodes });
        }
    }
    /// Tells a storage or a secondary master its own state.
    pub fn send_own_entry(&mut self, io: &mut Io<'_, Master>, conn: ConnId, entry: NodeEntry) {
        let timestamp = self.next_timestamp(io.now());
        io.send(conn, Packet::NotifyNodeInformation { timestamp, nodes: vec![entry] });
    }
    /// Sends to all identified admins.
    pub fn send_to_admins(&self, io: &mut Io<'_, Master>, packet: &Packet) {
        for conn in self.nm.admins().filter_map(Node::identified) {
            io.send(conn, packet.clone());
        }
    }

    // Partition table.

    /// Version, replicas and rows.
    pub fn partition_table(&self) -> Packet {
        let table = self.pt.table();
        let (ptid, replicas, rows) = (table.ptid(), table.replicas(), table.to_wire());
        Packet::SendPartitionTable { ptid, replicas, rows }
    }
    /// The next version of the table, as changes. Nothing if nothing changed.
    pub fn partition_changes(&mut self, changes: Changes) -> Option<Packet> {
        if changes.is_empty() {
            return None;
        }
        Some(self.next_version(changes))
    }
    fn next_version(&mut self, changes: Changes) -> Packet {
        self.pt.next_ptid();
        self.current_version(changes)
    }
    /// What changed to make the current version of the table.
    pub fn current_version(&self, changes: Changes) -> Packet {
        let ptid = self.pt.table().ptid().unwrap_or_default();
        let replicas = self.pt.table().replicas();
        log::debug!("partition table updated (ptid={ptid})");
        Packet::NotifyPartitionChanges { ptid, replicas, changes }
    }
    /// Tells all identified nodes but masters. Pending storages too, see
    /// [`Self::broadcast_nodes`].
    pub fn broadcast_partition_changes(&mut self, io: &mut Io<'_, Master>, changes: Changes) {
        for (_, nid, _) in changes.iter().filter(|(.., state)| *state == CellState::Discarded) {
            self.tm.cell_discarded(*nid);
        }
        if let Some(packet) = self.partition_changes(changes) {
            self.broadcast_table(io, &packet);
        }
    }
    /// Changes the wanted number of replicas: a new version without changed cell.
    pub fn broadcast_replicas(&mut self, io: &mut Io<'_, Master>, replicas: u32) {
        self.pt.set_replicas(replicas);
        let packet = self.next_version(Vec::new());
        self.broadcast_table(io, &packet);
    }
    fn broadcast_table(&self, io: &mut Io<'_, Master>, packet: &Packet) {
        for node in self.nm.identified().filter(|node| !node.is_master()) {
            if let Some(conn) = node.identified() {
                io.send(conn, packet.clone());
            }
        }
    }
    /// Topology paths of storages.
    pub fn topology(&self) -> Topology<'_> {
        self.nm.storages().filter_map(|node| Some((node.nid()?, node.devpath()))).collect()
    }
    /// Whether each partition can be read from a running node.
    pub fn is_operational(&self) -> bool {
        self.pt.operational(|nid| self.is_running(nid))
    }

    // State.

    /// Changes the state, tells everybody, and gives the storages and masters the handler of the
    /// new state.
    pub fn set_state(&mut self, io: &mut Io<'_, Master>, state: ClusterState) {
        let old = std::mem::replace(&mut self.state, state);
        log::info!("cluster state: {state}");
        let storage_handler =
            handlers::of_storage(state).filter(|_| !handlers::is_same_of_storage(old, state));
        let nodes: Vec<(NodeKey, ConnId, bool)> = self
            .nm
            .iter()
            .filter_map(|node| Some((node.key(), node.connection()?, node.is_identified())))
            .collect();
        for (key, conn, is_identified) in nodes {
            if is_identified {
                io.send(conn, Packet::NotifyClusterInformation { state });
            } else if io.is_accepted(conn) {
                continue;
            }
            match key.node_type() {
                NodeType::Master => io.set_handler(conn, handlers::of_master(state)),
                NodeType::Storage => {
                    if let Some(handler) = storage_handler {
                        io.set_handler(conn, handler);
                        handlers::storage_switched(self, io, key, conn);
                    }
                }
                // Clients are disconnected before, or go on as they are.
                NodeType::Client | NodeType::Admin => {}
            }
        }
    }

    // Storages that serve clients.

    /// Whether new transactions must wait: it is not known yet to which storages they must be
    /// committed in full.
    pub fn delays_begin(&self) -> bool {
        self.is_stopping || (!self.starting.is_empty() && !planted!(BeginWhileStarting))
    }
    /// How many storages became ready so far.
    pub const fn readiness(&self) -> u64 {
        self.readiness
    }
    /// Storages that are ready.
    pub const fn ready(&self) -> &BTreeMap<NodeId, Ready> {
        &self.ready
    }
    /// A storage that was ready when a transaction began.
    pub fn ready_since(&self, nid: NodeId, readiness: u64) -> Option<Ready> {
        self.ready.get(&nid).filter(|ready| ready.readiness <= readiness).copied()
    }
    /// Tells a storage to serve clients; it answers when it does.
    pub fn start_storage(&mut self, io: &mut Io<'_, Master>, nid: NodeId, conn: ConnId) {
        io.send(conn, Packet::StartOperation { backup: self.backup_tid.is_some() });
        self.ready.remove(&nid);
        self.starting.insert(nid);
    }
    /// A storage serves clients. `false` if it was not asked to.
    pub fn set_ready(&mut self, io: &mut Io<'_, Master>, nid: NodeId, conn: ConnId) -> bool {
        if !self.starting.remove(&nid) {
            // Asked again when the cluster becomes a backup.
            return self.ready.contains_key(&nid);
        }
        self.readiness += 1;
        self.ready.insert(nid, Ready { readiness: self.readiness, conn });
        let (mut approved, rejected) = self.pm.signed(Tid::ZERO);
        approved.extend(self.pm.missed_by(nid).filter(|_| approved.is_empty()));
        if !(approved.is_empty() && rejected.is_empty()) {
            io.send(conn, Packet::NotifyPackSigned { approved, rejected });
        }
        self.tm.retry();
        true
    }
    /// No storage serves clients any more, and nothing that was going on will end.
    pub fn clear_ready(&mut self) {
        self.readiness = 0;
        self.ready.clear();
        self.starting.clear();
        self.tm.abandon();
        self.pm.reset();
    }

    // Loss of storages.

    /// A storage is lost while the partition table is in use: others are told, and its cells become
    /// out-of-date. Upstream: `BaseServiceHandler.connectionLost`.
    pub fn unlink_storage(&mut self, io: &mut Io<'_, Master>, conn: ConnId) -> Service {
        // Unknown if it was removed by an operator.
        let Some(key) = self.nm.unlink(conn) else { return Service::Operational };
        let Some(node) = self.nm.get(key) else { return Service::Operational };
        log::info!("storage {node} lost");
        let nid = node.nid();
        match node.state() {
            NodeState::Pending => {
                // Forgotten, so that it is not let in when it comes back.
                if let Some(node) = self.forget(key) {
                    self.broadcast_removed(io, &node);
                }
            }
            // An operator did it already.
            NodeState::Down | NodeState::Unknown => return Service::Operational,
            NodeState::Running => {
                self.nm.set_state(key, NodeState::Down);
                self.broadcast_nodes(io, &[key]);
            }
        }
        if self.truncate_tid.is_some() {
            return Service::Stopped;
        }
        let nm = &self.nm;
        let changes = self.pt.outdate(nid, |nid| nm.state_of(nid) == NodeState::Running);
        self.broadcast_partition_changes(io, changes);
        if self.is_operational() { Service::Operational } else { Service::Stopped }
    }

    /// A storage does not serve clients any more: nothing is waited for from it.
    pub fn storage_lost(&mut self, io: &mut Io<'_, Master>, nid: NodeId, conn: ConnId) {
        self.starting.remove(&nid);
        self.ready.remove(&nid);
        let without = self.tm.storage_lost(nid);
        for ttid in without {
            self.confirm(io, ttid);
        }
        self.tm.retry();
        self.complete_transactions(io);
        pack::storage_lost(self, io, nid, conn);
    }

    /// A transaction goes on without a storage that did not lock it. It is only committed once those that
    /// store its metadata have the partition table that says so, because recovery relies on that:
    /// 1. S1 is lost: version 2 says that it is out-of-date. S2 stores it, S3 is dead.
    /// 2. S2 locks a transaction. S3 is found to be lost, the client is told that it is committed.
    /// 3. S2 dies before it stores version 3, which says that S3 is out-of-date; so does the master.
    /// 4. All come back. S3 should have version 2 if anything was committed with it, and does not: it
    ///    looks as if S1 had everything.
    ///
    /// A storage that has the transaction answers this question once all that it was told is on disk.
    fn confirm(&mut self, io: &mut Io<'_, Master>, ttid: Ttid) {
        let table = self.pt.table();
        let ptid = table.ptid();
        let readable: BTreeSet<NodeId> =
            table.readable(ttid.partition(table.partitions())).collect();
        for nid in self.tm.confirm(ttid, ptid, |nid| readable.contains(&nid)) {
            if let Some(conn) = self.conn_of(nid) {
                io.ask(conn, Packet::AskFinalTID { ttid }, Ticket::Confirm(ttid));
            }
        }
    }
}
