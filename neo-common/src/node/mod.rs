// SPDX-License-Identifier: GPL-2.0-or-later
//! The nodes of the cluster, as this node knows them. Upstream: lib/node.py.
//!
//! - [`NodeManager`]: who is there, by id, by address, by connection;
//! - [`update`]: what a `NotifyNodeInformation` of the primary master changes;
//! - [`mod@format`]: the table of nodes of `neoctl print node` and of the logs.
//!
//! A node has an id, an address, both or (rarely, a master that is being forgotten) none of them,
//! and each can change: a master is first known by its address only, a client by its id only, and
//! the primary master may give another id to a node that comes back. What never changes is its
//! [`NodeKey`], so that is what is stored by whoever must remember a node. Keys are never reused by
//! a manager.
//!
//! The manager does not own connections: it remembers their [`ConnId`] and how far identification
//! got ([`Link`]). Whoever removes a node closes its connection.

pub mod format;
pub mod manager;
pub mod update;

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

use crate::protocol::{NodeEntry, NodeState, NodeType};
use crate::types::{ConnId, NodeId, nid_str};

pub use manager::{Identity, NodeConflict, NodeManager};
pub use update::{ListKind, NodeEvent, OwnEntry, Update, UpdateError};

/// Name of a node inside one [`NodeManager`], whatever its id and address become.
///
/// Keys sort by type of node, then by age.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeKey {
    node_type: NodeType,
    serial: u64,
}

impl NodeKey {
    /// Kind of node; it never changes.
    pub const fn node_type(self) -> NodeType {
        self.node_type
    }
}

/// Connection to a node, and how far identification got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Link {
    /// No connection.
    #[default]
    Closed,
    /// Being established.
    Connecting(ConnId),
    /// Established; identification packets have not been exchanged.
    Connected(ConnId),
    /// Identification succeeded.
    Identified(ConnId),
}

impl Link {
    /// The connection, established or not.
    pub const fn connection(self) -> Option<ConnId> {
        match self {
            Self::Closed => None,
            Self::Connecting(conn) | Self::Connected(conn) | Self::Identified(conn) => Some(conn),
        }
    }
}

/// One node. Changes go through the [`NodeManager`], which keeps its indexes right.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    key: NodeKey,
    nid: Option<NodeId>,
    address: Option<SocketAddr>,
    state: NodeState,
    link: Link,
    id_timestamp: Option<f64>,
    devpath: Vec<Bytes>,
}

impl Node {
    /// Name of this node in its manager.
    pub const fn key(&self) -> NodeKey {
        self.key
    }
    /// Kind of node.
    pub const fn node_type(&self) -> NodeType {
        self.key.node_type
    }
    /// Whether it is a master.
    pub fn is_master(&self) -> bool {
        self.node_type() == NodeType::Master
    }
    /// Whether it is a storage.
    pub fn is_storage(&self) -> bool {
        self.node_type() == NodeType::Storage
    }
    /// Whether it is a client.
    pub fn is_client(&self) -> bool {
        self.node_type() == NodeType::Client
    }
    /// Whether it is an admin.
    pub fn is_admin(&self) -> bool {
        self.node_type() == NodeType::Admin
    }
    /// Its id; `None` as long as the primary master did not tell.
    pub const fn nid(&self) -> Option<NodeId> {
        self.nid
    }
    /// Where it listens; `None` for clients, which do not.
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }
    /// Never [`NodeState::Unknown`]: such a node is forgotten.
    pub const fn state(&self) -> NodeState {
        self.state
    }
    /// Whether it is connected to the primary master and part of the cluster.
    pub fn is_running(&self) -> bool {
        self.state == NodeState::Running
    }
    /// Whether it is connected to the primary master but not part of the cluster (yet).
    pub fn is_pending(&self) -> bool {
        self.state == NodeState::Pending
    }
    /// Whether it is not connected to the primary master.
    pub fn is_down(&self) -> bool {
        self.state == NodeState::Down
    }
    /// When the primary master identified it, as a time stamp that no other identification shares.
    pub const fn id_timestamp(&self) -> Option<f64> {
        self.id_timestamp
    }
    /// Topology path of a storage, from the most shared level to its device; for the placement of
    /// replicas.
    pub fn devpath(&self) -> &[Bytes] {
        &self.devpath
    }
    /// Connection and identification.
    pub const fn link(&self) -> Link {
        self.link
    }
    /// Its connection, established or not.
    pub const fn connection(&self) -> Option<ConnId> {
        self.link.connection()
    }
    /// Its connection if packets can be sent on it.
    pub const fn established(&self) -> Option<ConnId> {
        match self.link {
            Link::Connected(conn) | Link::Identified(conn) => Some(conn),
            Link::Closed | Link::Connecting(_) => None,
        }
    }
    /// Its connection if identification succeeded on it.
    pub const fn identified(&self) -> Option<ConnId> {
        match self.link {
            Link::Identified(conn) => Some(conn),
            Link::Closed | Link::Connecting(_) | Link::Connected(_) => None,
        }
    }
    /// Whether packets can be sent to it.
    pub const fn is_connected(&self) -> bool {
        self.established().is_some()
    }
    /// Whether identification packets were exchanged.
    pub const fn is_identified(&self) -> bool {
        self.identified().is_some()
    }
    /// As in `NotifyNodeInformation` and `AnswerNodeList`.
    pub const fn entry(&self) -> NodeEntry {
        (self.key.node_type, self.address, self.nid, self.state, self.id_timestamp)
    }
}

/// `S1 127.0.0.1:20000`, for logs.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nid.is_none() {
            write!(f, "{} ", self.node_type())?;
        }
        f.write_str(&nid_str(self.nid))?;
        match self.address {
            Some(address) => write!(f, " {address}"),
            None => Ok(()),
        }
    }
}
