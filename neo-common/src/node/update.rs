// SPDX-License-Identifier: GPL-2.0-or-later
//! What a `NotifyNodeInformation` of the primary master changes. Upstream: lib/node.py,
//! `NodeManager.update`.
//!
//! The first notification after identification is the full list, whatever was known before must
//! be forgotten if it is not listed; the next ones are changes. An entry in state UNKNOWN means:
//! forget that node. Every list is checked against what is known before anything is changed, so a
//! refused one leaves the manager as it was.
//!
//! The manager cannot close connections, stop the node, or abort the transactions of a client that
//! disappeared: it returns [`Update`], which tells all that happened, in order.

use std::fmt;

use super::{Node, NodeKey, NodeManager};
use crate::protocol::{NodeEntry, NodeState};
use crate::types::{NodeId, nid_str};

/// What happened to a node.
#[derive(Clone, PartialEq, Debug)]
pub enum NodeEvent {
    /// It was not known before.
    Created(NodeKey),
    /// Its state, address, id or id timestamp were told again, changed or not.
    Updated {
        /// The node.
        key: NodeKey,
        /// Its state before.
        old_state: NodeState,
    },
    /// It is forgotten. Its connection must be closed, and it must leave the partition table if it
    /// is still there.
    Removed(Node),
}

/// What the primary master says of this node itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OwnEntry {
    /// DOWN: exit. UNKNOWN, for a storage: erase the database and exit.
    pub state: NodeState,
    /// To be sent with `RequestIdentification` to other nodes than masters.
    pub id_timestamp: Option<f64>,
}

/// What a notification changed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Update {
    /// What happened, in order.
    pub events: Vec<NodeEvent>,
    /// The own entry, if it was listed. It is also in `events`.
    pub own: Option<OwnEntry>,
}

/// A notification that no primary master would send. Nothing is changed; the connection to it
/// cannot be trusted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum UpdateError {
    /// Notifications must have strictly increasing time stamps.
    Timestamp {
        /// Of the last one.
        last: f64,
        /// Of this one.
        received: f64,
    },
    /// An entry has neither id nor address.
    Anonymous,
    /// The node with that id or address has another type.
    NodeType(Option<NodeId>),
    /// Id and address belong to two nodes.
    Discrepancy(Option<NodeId>),
    /// The full list must have this node.
    OwnEntryMissing,
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp { last, received } => {
                write!(f, "node information of {received} after that of {last}")
            }
            Self::Anonymous => f.write_str("node information without node id and address"),
            Self::NodeType(nid) => write!(f, "type of node {} changed", nid_str(*nid)),
            Self::Discrepancy(nid) => {
                write!(f, "node {} has the address of another node", nid_str(*nid))
            }
            Self::OwnEntryMissing => f.write_str("own entry missing in the list of nodes"),
        }
    }
}
impl std::error::Error for UpdateError {}

/// Whether a notification is all that there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListKind {
    /// The first one after identification.
    Full,
    /// Any next one.
    Changes,
}

impl NodeManager {
    /// Applies a notification of the primary master.
    ///
    /// `own_nid` is the id of this node, given by `AcceptIdentification`. `has_cells` tells which
    /// storages are in the partition table: those stay known even if a full list omits them,
    /// because they own data (the table is received right after the list).
    ///
    /// # Errors
    /// [`UpdateError`]; then nothing is changed.
    pub fn update(
        &mut self,
        own_nid: Option<NodeId>,
        kind: ListKind,
        timestamp: f64,
        list: &[NodeEntry],
        has_cells: impl Fn(NodeId) -> bool,
    ) -> Result<Update, UpdateError> {
        self.check_update(own_nid, kind, timestamp, list)?;
        self.timestamp = timestamp;
        let mut update = Update::default();
        let mut listed = Vec::with_capacity(list.len());
        for entry in list {
            let (_, _, nid, state, id_timestamp) = *entry;
            if nid.is_some() && nid == own_nid {
                update.own = Some(OwnEntry { state, id_timestamp });
            }
            listed.extend(self.apply_entry(entry, &mut update.events));
        }
        if kind == ListKind::Full {
            listed.sort_unstable();
            self.forget_others(&listed, has_cells, &mut update.events);
        }
        Ok(update)
    }

    fn check_update(
        &self,
        own_nid: Option<NodeId>,
        kind: ListKind,
        timestamp: f64,
        list: &[NodeEntry],
    ) -> Result<(), UpdateError> {
        if timestamp.is_nan() || timestamp <= self.timestamp {
            return Err(UpdateError::Timestamp { last: self.timestamp, received: timestamp });
        }
        for &(node_type, address, nid, _, _) in list {
            if nid.is_none() && address.is_none() {
                return Err(UpdateError::Anonymous);
            }
            let by_nid = nid.and_then(|nid| self.by_nid(nid));
            let by_address = address.and_then(|address| self.by_address(address));
            if by_address.or(by_nid).is_some_and(|node| node.node_type() != node_type) {
                return Err(UpdateError::NodeType(nid));
            }
            let discrepancy =
                matches!((by_nid, by_address), (Some(a), Some(b)) if a.key() != b.key());
            if discrepancy && kind == ListKind::Changes {
                return Err(UpdateError::Discrepancy(nid));
            }
        }
        let is_own = |entry: &NodeEntry| entry.2.is_some() && entry.2 == own_nid;
        if kind == ListKind::Full && !list.iter().any(is_own) {
            return Err(UpdateError::OwnEntryMissing);
        }
        Ok(())
    }

    /// Returns the node of the entry, unless it is to be forgotten.
    fn apply_entry(&mut self, entry: &NodeEntry, events: &mut Vec<NodeEvent>) -> Option<NodeKey> {
        let (node_type, address, nid, state, id_timestamp) = *entry;
        let by_nid = nid.and_then(|nid| self.by_nid(nid)).map(Node::key);
        let by_address = address.and_then(|address| self.by_address(address)).map(Node::key);
        let key = match by_address.or(by_nid) {
            _ if state == NodeState::Unknown => {
                // Also when it is not known: then there is nothing to forget.
                let node = by_address.or(by_nid).and_then(|key| self.remove(key));
                events.extend(node.map(NodeEvent::Removed));
                return None;
            }
            None => {
                let key = self
                    .create(node_type, address, nid, state)
                    .expect("neither the id nor the address is known");
                events.push(NodeEvent::Created(key));
                key
            }
            Some(key) => {
                // The address wins: the id was given to another node since this one left.
                if let Some(other) = by_nid.filter(|other| *other != key) {
                    self.set_nid(other, None).expect("nothing conflicts with no id");
                }
                self.set_nid(key, nid).expect("the id was just freed");
                self.set_address(key, address).expect("no other node has the address");
                let old_state = self.set_state(key, state).expect("the node was just found");
                events.push(NodeEvent::Updated { key, old_state });
                key
            }
        };
        self.set_id_timestamp(key, id_timestamp);
        Some(key)
    }

    /// After a full list: the nodes that are not in it belong to the past.
    fn forget_others(
        &mut self,
        listed: &[NodeKey],
        has_cells: impl Fn(NodeId) -> bool,
        events: &mut Vec<NodeEvent>,
    ) {
        let others: Vec<NodeKey> = self
            .iter()
            .filter(|node| listed.binary_search(&node.key()).is_err())
            .filter(|node| !(node.is_storage() && node.nid().is_some_and(&has_cells)))
            .map(Node::key)
            .collect();
        events
            .extend(others.into_iter().filter_map(|key| self.remove(key)).map(NodeEvent::Removed));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::node::{Identity, Link};
    use crate::protocol::NodeType;
    use crate::types::ConnId;

    fn address(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    }
    fn nid(node_type: NodeType, index: u32) -> Option<NodeId> {
        NodeId::of(node_type, index)
    }
    const S: NodeType = NodeType::Storage;
    const C: NodeType = NodeType::Client;
    const M: NodeType = NodeType::Master;

    /// A storage that knows a master by its address, and was just told everything.
    fn started() -> NodeManager {
        let mut nm = NodeManager::new();
        nm.create_master(address(1).unwrap()).unwrap();
        let list = [
            (S, address(3), nid(S, 1), NodeState::Running, Some(5.5)),
            (M, address(1), nid(M, 1), NodeState::Running, None),
            (C, None, nid(C, 1), NodeState::Running, Some(4.5)),
        ];
        let update = nm.update(nid(S, 1), ListKind::Full, 6.0, &list, |_| false).unwrap();
        assert_eq!(
            update.own,
            Some(OwnEntry { state: NodeState::Running, id_timestamp: Some(5.5) })
        );
        assert_eq!(update.events.len(), 3);
        nm
    }

    /// The first list creates and completes nodes, and gives the own id timestamp.
    #[test]
    fn full_list() {
        let nm = started();
        assert_eq!(nm.len(), 3);
        let master = nm.by_address(address(1).unwrap()).unwrap();
        assert_eq!((master.nid(), master.state()), (nid(M, 1), NodeState::Running));
        let client = nm.by_nid(nid(C, 1).unwrap()).unwrap();
        assert_eq!((client.address(), client.id_timestamp()), (None, Some(4.5)));
    }

    /// A full list forgets what it does not list, except storages that have cells.
    #[test]
    fn full_list_forgets_the_rest() {
        let mut nm = started();
        let list = [(S, address(3), nid(S, 1), NodeState::Pending, Some(8.0))];
        nm.create(S, address(5), nid(S, 5), NodeState::Down).unwrap();
        nm.create(S, address(6), nid(S, 6), NodeState::Down).unwrap();
        nm.reset();
        let has_cells = |n| Some(n) == nid(S, 5);
        let update = nm.update(nid(S, 1), ListKind::Full, 1.0, &list, has_cells).unwrap();
        let removed: Vec<_> = update
            .events
            .iter()
            .filter_map(|event| match event {
                NodeEvent::Removed(node) => node.nid(),
                NodeEvent::Created(_) | NodeEvent::Updated { .. } => None,
            })
            .collect();
        assert_eq!(removed.len(), 3);
        assert!(removed.contains(&nid(M, 1).unwrap()) && removed.contains(&nid(C, 1).unwrap()));
        assert!(removed.contains(&nid(S, 6).unwrap()));
        assert_eq!(nm.len(), 2);
        assert!(nm.by_nid(nid(S, 5).unwrap()).is_some());
    }

    /// UNKNOWN forgets a node and gives its connection to be closed; for an unknown node it is void.
    #[test]
    fn unknown_state_forgets() {
        let mut nm = started();
        let client = nm.by_nid(nid(C, 1).unwrap()).unwrap().key();
        nm.set_link(client, Link::Identified(ConnId::new(3))).unwrap();
        let list = [
            (C, None, nid(C, 1), NodeState::Unknown, Some(4.5)),
            (C, None, nid(C, 2), NodeState::Unknown, Some(4.7)),
        ];
        let update = nm.update(nid(S, 1), ListKind::Changes, 7.0, &list, |_| false).unwrap();
        let [NodeEvent::Removed(node)] = &update.events[..] else { panic!("{update:?}") };
        assert_eq!((node.key(), node.connection()), (client, Some(ConnId::new(3))));
        assert_eq!((update.own, nm.len()), (None, 2));
    }

    /// Changes of state, id and address of a node keep its key; the own entry is told apart.
    #[test]
    fn changes_keep_the_key() {
        let mut nm = started();
        let master = nm.by_address(address(1).unwrap()).unwrap().key();
        let storage = nm.by_nid(nid(S, 1).unwrap()).unwrap().key();
        let list = [
            (M, address(1), nid(M, 2), NodeState::Down, None),
            (S, address(4), nid(S, 1), NodeState::Down, Some(9.0)),
            (S, address(9), nid(S, 2), NodeState::Pending, Some(9.1)),
        ];
        let update = nm.update(nid(S, 1), ListKind::Changes, 9.5, &list, |_| false).unwrap();
        assert_eq!(update.own, Some(OwnEntry { state: NodeState::Down, id_timestamp: Some(9.0) }));
        let old_state = NodeState::Running;
        assert_eq!(update.events[0], NodeEvent::Updated { key: master, old_state });
        assert_eq!(update.events[1], NodeEvent::Updated { key: storage, old_state });
        assert!(matches!(update.events[2], NodeEvent::Created(_)));
        assert_eq!(nm.get(master).unwrap().nid(), nid(M, 2));
        assert_eq!(nm.get(storage).unwrap().address(), address(4));
        assert_eq!(nm.by_nid(nid(M, 1).unwrap()), None);
    }

    /// After a restart of the master, the id of a known node may be that of another address.
    #[test]
    fn full_list_moves_an_id_to_another_address() {
        let mut nm = started();
        let other = nm.create(M, address(2), nid(M, 2), NodeState::Down).unwrap();
        let list = [
            (M, address(2), nid(M, 1), NodeState::Running, None),
            (M, address(1), nid(M, 2), NodeState::Running, None),
            (S, address(3), nid(S, 1), NodeState::Running, Some(8.0)),
        ];
        let changes = nm.update(nid(S, 1), ListKind::Changes, 8.0, &list, |_| false);
        assert_eq!(changes, Err(UpdateError::Discrepancy(nid(M, 1))));
        nm.update(nid(S, 1), ListKind::Full, 8.0, &list, |_| false).unwrap();
        assert_eq!(nm.by_nid(nid(M, 1).unwrap()).map(Node::key), Some(other));
        assert_eq!(nm.masters().count(), 2);
    }

    /// What a primary master would not send is refused, and changes nothing.
    #[test]
    fn refused_lists_change_nothing() {
        let mut nm = started();
        let before = nm.entries();
        let own = (S, address(3), nid(S, 1), NodeState::Down, Some(7.0));
        let run = NodeState::Running;
        let cases: [(f64, ListKind, Vec<NodeEntry>, UpdateError); 5] = [
            (
                6.0,
                ListKind::Changes,
                vec![own],
                UpdateError::Timestamp { last: 6.0, received: 6.0 },
            ),
            (7.0, ListKind::Changes, vec![own, (C, None, None, run, None)], UpdateError::Anonymous),
            (
                7.0,
                ListKind::Changes,
                vec![own, (C, address(1), nid(C, 7), run, None)],
                UpdateError::NodeType(nid(C, 7)),
            ),
            (
                7.0,
                ListKind::Changes,
                vec![own, (S, None, nid(C, 1), run, None)],
                UpdateError::NodeType(nid(C, 1)),
            ),
            (
                7.0,
                ListKind::Full,
                vec![(C, None, nid(C, 1), run, None)],
                UpdateError::OwnEntryMissing,
            ),
        ];
        for (timestamp, kind, list, error) in cases {
            let result = nm.update(nid(S, 1), kind, timestamp, &list, |_| false);
            assert_eq!(result, Err(error));
            assert_eq!(nm.entries(), before, "{error}");
        }
        let nan = nm.update(nid(S, 1), ListKind::Changes, f64::NAN, &[own], |_| false);
        assert!(matches!(nan, Err(UpdateError::Timestamp { .. })));
    }

    /// A peer is recognised by id and id timestamp; a newer time stamp than the last notification
    /// may only be early.
    #[test]
    fn identity_of_a_peer() {
        let nm = started();
        let client = nm.by_nid(nid(C, 1).unwrap()).unwrap().key();
        assert_eq!(nm.identity(nid(C, 1).unwrap(), 4.5), Identity::Known(client));
        assert_eq!(nm.identity(nid(C, 1).unwrap(), 4.0), Identity::Unknown);
        assert_eq!(nm.identity(nid(C, 2).unwrap(), 5.0), Identity::Unknown);
        assert_eq!(nm.identity(nid(C, 1).unwrap(), 6.5), Identity::NotYet);
        assert_eq!(nm.identity(nid(C, 2).unwrap(), 6.5), Identity::NotYet);
        assert_eq!(nm.identity(nid(C, 1).unwrap(), f64::NAN), Identity::Unknown);
    }
}
