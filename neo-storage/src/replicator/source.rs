// SPDX-License-Identifier: GPL-2.0-or-later
//! Where a partition is replicated from, and the connections to other storages. See the parent module.

use std::net::SocketAddr;

use neo_common::engine::Io;
use neo_common::node::{Link, Node, NodeKey};
use neo_common::protocol::{Map, NodeType, Packet};
use neo_common::types::{ConnId, Partition};

use super::fetch::fetch;
use super::{Replicator, Source, Step, abort};
use crate::app::{Shared, Storage, Ticket};
use crate::handlers::storage::StorageHandler;
use crate::operation::Operation;

/// Connection to a node of the upstream cluster, where this node has no id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Upstream {
    pub conn: ConnId,
    /// Name of the cluster.
    pub name: String,
    pub is_identified: bool,
}

impl Replicator {
    /// Whether it is a connection to the upstream cluster.
    pub(crate) fn is_upstream(&self, conn: ConnId) -> bool {
        self.upstream.values().any(|upstream| upstream.conn == conn)
    }

    /// A connection to a node of the upstream cluster, and whether it is identified.
    pub(crate) fn connect_upstream(
        &mut self,
        io: &mut Io<'_, Storage>,
        address: SocketAddr,
        name: &str,
    ) -> (ConnId, bool) {
        if let Some(upstream) = self.upstream.get(&address)
            && upstream.name == name
            && io.is_open(upstream.conn)
        {
            io.as_client(upstream.conn);
            return (upstream.conn, upstream.is_identified);
        }
        let conn = io.connect(address, &StorageHandler);
        let upstream = Upstream { conn, name: name.to_owned(), is_identified: false };
        self.upstream.insert(address, upstream);
        (conn, false)
    }
}

/// Node of a partition to fetch from, at random among those that can be read.
pub(super) fn choose_source(
    replicator: &Replicator,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    partition: Partition,
) -> Option<Source> {
    let own = shared.nid();
    if let Some((address, name)) = replicator.sources.get(&partition) {
        return match shared.nodes.by_address(*address) {
            Some(node) if name.is_empty() && node.is_storage() && node.nid() != own => {
                Some(Source::Node(node.key()))
            }
            _ if !name.is_empty() => Some(Source::Upstream(*address, name.clone())),
            _ => None,
        };
    }
    let nodes = shared.table.readable(partition).filter(|nid| Some(*nid) != own);
    let nodes = nodes.filter_map(|nid| shared.nodes.by_nid(nid));
    let usable = nodes.filter(|node| node.is_running() && node.address().is_some());
    let usable: Vec<NodeKey> = usable.map(Node::key).collect();
    io.prng().choose(&usable).map(|key| Source::Node(*key))
}

/// A connection to a source, and whether it is identified.
pub(super) fn connection(
    replicator: &mut Replicator,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    source: &Source,
) -> (ConnId, bool) {
    match source {
        Source::Node(key) => connect_node(shared, io, *key),
        Source::Upstream(address, name) => replicator.connect_upstream(io, *address, name),
    }
}

/// A connection to another storage of the cluster, and whether it is identified. It is opened if
/// needed; the node must have an address then.
pub(crate) fn connect_node(
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    key: NodeKey,
) -> (ConnId, bool) {
    let node = shared.nodes.get(key).expect("chosen among known nodes");
    if let Some(conn) = node.connection().filter(|conn| io.is_open(*conn)) {
        io.as_client(conn);
        return (conn, node.is_identified());
    }
    let address = node.address().expect("chosen among nodes that can be reached");
    let conn = io.connect(address, &StorageHandler);
    let linked = shared.nodes.set_link(key, Link::Connecting(conn));
    debug_assert!(linked.is_ok(), "a new connection belongs to no node");
    (conn, false)
}

/// A connection that we opened is up: identify. Upstream: `RequestIdentification` of
/// `_nextPartition`.
pub(crate) fn identify(
    replicator: &Replicator,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    if let Some(key) = shared.nodes.by_connection(conn).map(Node::key) {
        let linked = shared.nodes.set_link(key, Link::Connected(conn));
        debug_assert!(linked.is_ok(), "same connection");
    }
    let upstream = replicator.upstream.values().find(|upstream| upstream.conn == conn);
    let upstream = upstream.map(|upstream| upstream.name.clone());
    let request = Packet::RequestIdentification {
        node_type: NodeType::Storage,
        nid: shared.nid().filter(|_| upstream.is_none()),
        address: Some(shared.config.address),
        cluster: upstream.unwrap_or_else(|| shared.config.cluster.clone()),
        id_timestamp: shared.bootstrap.id_timestamp,
        extra: Map::default(),
    };
    io.ask(conn, request, Ticket::Identification);
}

/// A storage accepted us.
pub(crate) fn connected(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    let replicator = &mut operation.replicator;
    for upstream in replicator.upstream.values_mut() {
        upstream.is_identified |= upstream.conn == conn;
    }
    if let Some(current) = &replicator.current
        && current.conn == conn
        && current.step == Step::Connecting
    {
        fetch(operation, shared, io);
    }
}

/// A connection to another storage is gone.
pub(crate) fn connection_lost(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    operation.replicator.upstream.retain(|_, upstream| upstream.conn != conn);
    if operation.replicator.uses(conn) {
        abort(operation, shared, io, "connection lost");
    }
}

/// We do not need this connection any more, unless the checker does.
pub(crate) fn close_client(operation: &Operation, io: &mut Io<'_, Storage>, conn: ConnId) {
    if !operation.replicator.uses(conn) && !operation.checker.uses(conn) {
        io.close_client(conn);
    }
}
