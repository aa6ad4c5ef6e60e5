// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to other masters, as long as an election may take place.

use neo_common::engine::Io;
use neo_common::node::{Link, NodeKey};
use neo_common::protocol::NodeState;

use crate::app::Master;
use crate::cluster::Cluster;
use crate::handlers::election::ElectionHandler;

/// Connects to all known masters to which there is no connection.
pub(super) fn connect_masters(cluster: &mut Cluster, io: &mut Io<'_, Master>) {
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
pub(super) fn disconnect_masters(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Vec<NodeKey> {
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
