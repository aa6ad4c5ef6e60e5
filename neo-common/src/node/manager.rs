// SPDX-License-Identifier: GPL-2.0-or-later
//! Nodes with their indexes.
//!
//! Three indexes (id, address, connection) point to keys, and one function at the bottom checks that
//! they agree with the nodes. No id, address or connection belongs to two nodes: a change that
//! would break this is refused and tells which other node has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

use super::{Link, Node, NodeKey};
use crate::protocol::{NodeEntry, NodeState, NodeType};
use crate::types::{ConnId, NodeId};

/// Another node has this id, address or connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeConflict(
    /// The node that has it.
    pub NodeKey,
);

impl fmt::Display for NodeConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conflict with another {} node", self.0.node_type())
    }
}
impl std::error::Error for NodeConflict {}

/// Who a peer is, by what it says of itself: see [`NodeManager::identity`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// The primary master told about it, with the same id timestamp.
    Known(NodeKey),
    /// The primary master may tell soon: wait for the next `NotifyNodeInformation`.
    NotYet,
    /// Not connected to the primary master any more.
    Unknown,
}

/// All known nodes.
#[derive(Clone, Debug, Default)]
pub struct NodeManager {
    nodes: BTreeMap<NodeKey, Node>,
    by_nid: BTreeMap<NodeId, NodeKey>,
    by_address: BTreeMap<SocketAddr, NodeKey>,
    by_connection: BTreeMap<ConnId, NodeKey>,
    next_serial: u64,
    /// Of the last `NotifyNodeInformation`; 0 before.
    pub(super) timestamp: f64,
    masters_changed: bool,
}

impl NodeManager {
    /// Knows nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets which notifications were received, as needed before another primary master is
    /// listened to. The nodes stay.
    pub fn reset(&mut self) {
        self.timestamp = 0.0;
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The node with this key, unless it was removed.
    pub fn get(&self, key: NodeKey) -> Option<&Node> {
        self.nodes.get(&key)
    }
    /// The node with this id.
    pub fn by_nid(&self, nid: NodeId) -> Option<&Node> {
        self.by_nid.get(&nid).map(|key| &self.nodes[key])
    }
    /// The node that listens there.
    pub fn by_address(&self, address: SocketAddr) -> Option<&Node> {
        self.by_address.get(&address).map(|key| &self.nodes[key])
    }
    /// The node at the other end of this connection.
    pub fn by_connection(&self, conn: ConnId) -> Option<&Node> {
        self.by_connection.get(&conn).map(|key| &self.nodes[key])
    }
    /// State of the node with this id; [`NodeState::Unknown`] if there is none.
    pub fn state_of(&self, nid: NodeId) -> NodeState {
        self.by_nid(nid).map_or(NodeState::Unknown, Node::state)
    }

    /// All nodes, by type then by age.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }
    /// Nodes of a type, the oldest first.
    pub fn of_type(&self, node_type: NodeType) -> impl Iterator<Item = &Node> {
        let first = NodeKey { node_type, serial: 0 };
        let last = NodeKey { node_type, serial: u64::MAX };
        self.nodes.range(first..=last).map(|(_, node)| node)
    }
    /// Masters.
    pub fn masters(&self) -> impl Iterator<Item = &Node> {
        self.of_type(NodeType::Master)
    }
    /// Storages.
    pub fn storages(&self) -> impl Iterator<Item = &Node> {
        self.of_type(NodeType::Storage)
    }
    /// Clients.
    pub fn clients(&self) -> impl Iterator<Item = &Node> {
        self.of_type(NodeType::Client)
    }
    /// Admins.
    pub fn admins(&self) -> impl Iterator<Item = &Node> {
        self.of_type(NodeType::Admin)
    }
    /// Nodes in a state.
    pub fn in_state(&self, state: NodeState) -> impl Iterator<Item = &Node> {
        self.iter().filter(move |node| node.state == state)
    }
    /// Nodes with an established connection, by type then by age.
    pub fn connected(&self) -> impl Iterator<Item = &Node> {
        self.iter().filter(|node| node.is_connected())
    }
    /// Nodes with which identification packets were exchanged, by type then by age.
    pub fn identified(&self) -> impl Iterator<Item = &Node> {
        self.iter().filter(|node| node.is_identified())
    }

    /// Who the peer is that claims an id and the id timestamp given by the primary master.
    ///
    /// Only notifications of the master are trusted, otherwise there could be conflicts of ids. They
    /// may be late: then the master accepted the peer after the last one that was received.
    pub fn identity(&self, nid: NodeId, id_timestamp: f64) -> Identity {
        match self.by_nid(nid) {
            Some(node) if node.id_timestamp == Some(id_timestamp) => Identity::Known(node.key),
            _ if self.timestamp < id_timestamp => Identity::NotYet,
            _ => Identity::Unknown,
        }
    }

    /// Adds a node, or completes the one that has this id or this address already. A new node gets
    /// `state`, an existing one keeps its own.
    ///
    /// # Errors
    /// If id and address belong to different nodes, or to a node that has another id, another
    /// address or another type.
    ///
    /// # Panics
    /// If `state` is [`NodeState::Unknown`].
    pub fn create(
        &mut self,
        node_type: NodeType,
        address: Option<SocketAddr>,
        nid: Option<NodeId>,
        state: NodeState,
    ) -> Result<NodeKey, NodeConflict> {
        let by_nid = nid.and_then(|nid| self.by_nid.get(&nid).copied());
        let by_address = address.and_then(|address| self.by_address.get(&address).copied());
        let key = match (by_nid, by_address) {
            (None, None) => return Ok(self.add(node_type, address, nid, state)),
            (Some(a), Some(b)) if a != b => return Err(NodeConflict(b)),
            (Some(key), _) | (_, Some(key)) => key,
        };
        let node = &self.nodes[&key];
        let differs = key.node_type != node_type
            || (nid.is_some() && node.nid.is_some() && node.nid != nid)
            || (address.is_some() && node.address.is_some() && node.address != address);
        if differs {
            return Err(NodeConflict(key));
        }
        // The indexes were just looked up: neither can conflict.
        if nid.is_some() {
            self.set_nid(key, nid)?;
        }
        if address.is_some() {
            self.set_address(key, address)?;
        }
        Ok(key)
    }

    /// Adds a master that is known by its address, if it is not known yet.
    ///
    /// # Errors
    /// If another type of node listens there.
    pub fn create_master(&mut self, address: SocketAddr) -> Result<NodeKey, NodeConflict> {
        self.create(NodeType::Master, Some(address), None, NodeState::Down)
    }

    /// Forgets a node. Its connection, if any, is the caller's to close.
    pub fn remove(&mut self, key: NodeKey) -> Option<Node> {
        let node = self.nodes.remove(&key)?;
        if let Some(nid) = node.nid {
            self.by_nid.remove(&nid);
        }
        if let Some(address) = node.address {
            self.by_address.remove(&address);
        }
        if let Some(conn) = node.connection() {
            self.by_connection.remove(&conn);
        }
        self.masters_changed |= node.is_master();
        self.check_invariants();
        Some(node)
    }

    /// Changes the id. Nothing happens if the node was removed.
    ///
    /// # Errors
    /// If another node has it.
    pub fn set_nid(&mut self, key: NodeKey, nid: Option<NodeId>) -> Result<(), NodeConflict> {
        let Some(node) = self.nodes.get_mut(&key) else { return Ok(()) };
        if let Some(other) = nid.and_then(|nid| self.by_nid.get(&nid)).filter(|k| **k != key) {
            return Err(NodeConflict(*other));
        }
        if let Some(old) = std::mem::replace(&mut node.nid, nid) {
            self.by_nid.remove(&old);
        }
        if let Some(new) = nid {
            self.by_nid.insert(new, key);
        }
        self.check_invariants();
        Ok(())
    }

    /// Changes the listening address. Nothing happens if the node was removed.
    ///
    /// # Errors
    /// If another node listens there.
    pub fn set_address(
        &mut self,
        key: NodeKey,
        address: Option<SocketAddr>,
    ) -> Result<(), NodeConflict> {
        let Some(node) = self.nodes.get_mut(&key) else { return Ok(()) };
        if let Some(other) =
            address.and_then(|address| self.by_address.get(&address)).filter(|k| **k != key)
        {
            return Err(NodeConflict(*other));
        }
        let old = std::mem::replace(&mut node.address, address);
        self.masters_changed |= node.is_master() && old != address;
        if let Some(old) = old {
            self.by_address.remove(&old);
        }
        if let Some(new) = address {
            self.by_address.insert(new, key);
        }
        self.check_invariants();
        Ok(())
    }

    /// Changes the state and returns the previous one; `None` if the node was removed.
    ///
    /// # Panics
    /// If `state` is [`NodeState::Unknown`]: such a node must be removed.
    pub fn set_state(&mut self, key: NodeKey, state: NodeState) -> Option<NodeState> {
        assert_ne!(state, NodeState::Unknown, "an unknown node is removed");
        let node = self.nodes.get_mut(&key)?;
        Some(std::mem::replace(&mut node.state, state))
    }

    /// Remembers when the primary master identified the node.
    pub fn set_id_timestamp(&mut self, key: NodeKey, id_timestamp: Option<f64>) {
        if let Some(node) = self.nodes.get_mut(&key) {
            node.id_timestamp = id_timestamp;
        }
    }

    /// Remembers the topology path of a storage.
    pub fn set_devpath(&mut self, key: NodeKey, devpath: Vec<Bytes>) {
        if let Some(node) = self.nodes.get_mut(&key) {
            node.devpath = devpath;
        }
    }

    /// Changes the connection of the node, or how far identification got on it. The connection
    /// that is replaced is returned: the caller closes it. `None` if there was none, or if it stays.
    ///
    /// # Errors
    /// If it is the connection of another node.
    pub fn set_link(&mut self, key: NodeKey, link: Link) -> Result<Option<ConnId>, NodeConflict> {
        let Some(node) = self.nodes.get_mut(&key) else { return Ok(None) };
        let conn = link.connection();
        if let Some(other) =
            conn.and_then(|conn| self.by_connection.get(&conn)).filter(|k| **k != key)
        {
            return Err(NodeConflict(*other));
        }
        let old = std::mem::replace(&mut node.link, link).connection();
        if let Some(old) = old {
            self.by_connection.remove(&old);
        }
        if let Some(conn) = conn {
            self.by_connection.insert(conn, key);
        }
        self.check_invariants();
        Ok(old.filter(|old| Some(*old) != conn))
    }

    /// A connection is lost: its node has none any more. Returns this node.
    pub fn unlink(&mut self, conn: ConnId) -> Option<NodeKey> {
        let key = self.by_connection.remove(&conn)?;
        if let Some(node) = self.nodes.get_mut(&key) {
            node.link = Link::Closed;
        }
        self.check_invariants();
        Some(key)
    }

    /// Addresses of all known masters, sorted.
    pub fn master_addresses(&self) -> Vec<SocketAddr> {
        let addresses: BTreeSet<_> = self.masters().filter_map(Node::address).collect();
        addresses.into_iter().collect()
    }

    /// The addresses of the masters if they may have changed since the last call: what must be
    /// written to the dynamic master list.
    pub fn take_changed_masters(&mut self) -> Option<Vec<SocketAddr>> {
        std::mem::take(&mut self.masters_changed).then(|| self.master_addresses())
    }

    /// All nodes as in `NotifyNodeInformation`, by type then by age.
    pub fn entries(&self) -> Vec<NodeEntry> {
        self.iter().map(Node::entry).collect()
    }

    fn add(
        &mut self,
        node_type: NodeType,
        address: Option<SocketAddr>,
        nid: Option<NodeId>,
        state: NodeState,
    ) -> NodeKey {
        assert_ne!(state, NodeState::Unknown, "an unknown node is not created");
        let key = NodeKey { node_type, serial: self.next_serial };
        self.next_serial += 1;
        if let Some(nid) = nid {
            self.by_nid.insert(nid, key);
        }
        if let Some(address) = address {
            self.by_address.insert(address, key);
        }
        self.masters_changed |= node_type == NodeType::Master && address.is_some();
        let node = Node {
            key,
            nid,
            address,
            state,
            link: Link::Closed,
            id_timestamp: None,
            devpath: Vec::new(),
        };
        self.nodes.insert(key, node);
        self.check_invariants();
        key
    }

    /// Indexes and nodes agree. A sweep: only in debug builds, and only while it is cheap.
    fn check_invariants(&self) {
        if !cfg!(debug_assertions) || self.nodes.len() > 64 {
            return;
        }
        let (mut nids, mut addresses, mut connections) = (0, 0, 0);
        for (key, node) in &self.nodes {
            assert_eq!(*key, node.key);
            assert_ne!(node.state, NodeState::Unknown, "{node}");
            if let Some(nid) = node.nid {
                assert_eq!(self.by_nid.get(&nid), Some(key), "{node}");
                nids += 1;
            }
            if let Some(address) = node.address {
                assert_eq!(self.by_address.get(&address), Some(key), "{node}");
                addresses += 1;
            }
            if let Some(conn) = node.connection() {
                assert_eq!(self.by_connection.get(&conn), Some(key), "{node}");
                connections += 1;
            }
        }
        assert_eq!(nids, self.by_nid.len());
        assert_eq!(addresses, self.by_address.len());
        assert_eq!(connections, self.by_connection.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }
    fn storage(index: u32) -> NodeId {
        NodeId::of(NodeType::Storage, index).unwrap()
    }

    /// A node is found by its id, address and connection, also after each of them changed, and by
    /// nothing once it is removed.
    #[test]
    fn indexes_follow_changes() {
        let mut nm = NodeManager::new();
        let s = NodeType::Storage;
        let key = nm.create(s, Some(address(1)), Some(storage(1)), NodeState::Pending).unwrap();
        assert_eq!(nm.set_link(key, Link::Connecting(ConnId::new(7))), Ok(None));
        assert!(!nm.get(key).unwrap().is_connected());
        assert_eq!(nm.set_link(key, Link::Identified(ConnId::new(7))), Ok(None));
        assert_eq!(nm.by_nid(storage(1)).map(Node::key), Some(key));
        assert_eq!(nm.by_address(address(1)).map(Node::key), Some(key));
        assert_eq!(nm.by_connection(ConnId::new(7)).map(Node::key), Some(key));

        nm.set_nid(key, Some(storage(2))).unwrap();
        nm.set_address(key, Some(address(2))).unwrap();
        assert_eq!(nm.set_link(key, Link::Connected(ConnId::new(8))), Ok(Some(ConnId::new(7))));
        assert_eq!(nm.by_nid(storage(1)), None);
        assert_eq!(nm.by_address(address(1)), None);
        assert_eq!(nm.by_connection(ConnId::new(7)), None);
        let node = nm.by_nid(storage(2)).unwrap();
        assert_eq!(node.entry(), (s, Some(address(2)), Some(storage(2)), NodeState::Pending, None));
        assert_eq!(node.to_string(), "S2 127.0.0.1:2");

        let node = nm.remove(key).unwrap();
        assert_eq!(node.connection(), Some(ConnId::new(8)));
        assert!(nm.is_empty() && nm.remove(key).is_none());
        assert_eq!(nm.unlink(ConnId::new(8)), None);
        assert_eq!(nm.set_nid(key, Some(storage(2))), Ok(()));
        assert_eq!(nm.by_nid(storage(2)), None);
    }

    /// Losing a connection loses the identification with it.
    #[test]
    fn unlink_ends_identification() {
        let mut nm = NodeManager::new();
        let key = nm.create(NodeType::Client, None, None, NodeState::Running).unwrap();
        nm.set_link(key, Link::Identified(ConnId::new(1))).unwrap();
        assert_eq!(nm.identified().count(), 1);
        assert_eq!(nm.unlink(ConnId::new(1)), Some(key));
        assert_eq!((nm.identified().count(), nm.connected().count()), (0, 0));
        assert_eq!(nm.len(), 1);
    }

    /// `create` completes what is known, and refuses to mix two nodes.
    #[test]
    fn create_completes_or_refuses() {
        let mut nm = NodeManager::new();
        let m1 = NodeId::of(NodeType::Master, 1).unwrap();
        let m2 = NodeId::of(NodeType::Master, 2).unwrap();
        let a = nm.create_master(address(1)).unwrap();
        assert_eq!(nm.create_master(address(1)), Ok(a));
        let m = NodeType::Master;
        let down = NodeState::Down;
        assert_eq!(nm.create(m, Some(address(1)), Some(m1), NodeState::Running), Ok(a));
        assert_eq!(nm.get(a).unwrap().state(), down, "an existing node keeps its state");
        assert_eq!(nm.create(m, Some(address(2)), Some(m1), down), Err(NodeConflict(a)));
        assert_eq!(nm.create(m, Some(address(1)), Some(m2), down), Err(NodeConflict(a)));
        assert_eq!(
            nm.create(NodeType::Storage, Some(address(1)), None, down),
            Err(NodeConflict(a))
        );
        let b = nm.create(m, None, Some(m2), down).unwrap();
        assert_eq!(nm.create(m, Some(address(1)), Some(m2), down), Err(NodeConflict(a)));
        assert_eq!(nm.set_nid(b, Some(m1)), Err(NodeConflict(a)));
        assert_eq!(nm.set_address(b, Some(address(1))), Err(NodeConflict(a)));
        nm.set_link(a, Link::Connected(ConnId::new(1))).unwrap();
        assert_eq!(nm.set_link(b, Link::Connected(ConnId::new(1))), Err(NodeConflict(a)));
        assert_eq!(nm.get(b).unwrap().entry(), (m, None, Some(m2), down, None));
        assert_eq!(nm.masters().count(), 2);
        assert_eq!(nm.storages().count(), 0);
    }

    /// The list of masters is to be written after each change of it, and only then.
    #[test]
    fn changed_masters_are_told_once() {
        let mut nm = NodeManager::new();
        assert_eq!(nm.take_changed_masters(), None);
        let b = nm.create_master(address(2)).unwrap();
        nm.create_master(address(1)).unwrap();
        assert_eq!(nm.take_changed_masters(), Some(vec![address(1), address(2)]));
        assert_eq!(nm.take_changed_masters(), None);
        nm.create(NodeType::Storage, Some(address(9)), None, NodeState::Down).unwrap();
        nm.set_address(b, Some(address(2))).unwrap();
        assert_eq!(nm.take_changed_masters(), None);
        nm.set_address(b, Some(address(3))).unwrap();
        assert_eq!(nm.take_changed_masters(), Some(vec![address(1), address(3)]));
        nm.remove(b);
        assert_eq!(nm.take_changed_masters(), Some(vec![address(1)]));
    }
}
