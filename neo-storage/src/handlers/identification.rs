// SPDX-License-Identifier: GPL-2.0-or-later
//! Who connects. Upstream: storage/handlers/identification.py.
//!
//! Only what the primary master notified is trusted, otherwise there could be conflicts of ids. Such
//! a notification may be late, even if the master expects us not to reject the connection: a request
//! with an id timestamp after the last notification waits for the next one. Requests also wait while
//! the node is about to serve.

use bytes::Bytes;
use neo_common::engine::{Fault, Handled, Handler, Io, Lost};
use neo_common::node::{Identity, Link};
use neo_common::protocol::{Map, MsgId, NodeType, Packet, Value};
use neo_common::types::{ConnId, NodeId, Tid};

use super::client::{ClientHandler, ReadOnlyClientHandler};
use super::refuse;
use super::storage::StorageHandler;
use crate::app::{Storage, Ticket};
use crate::phase::Phase;

/// A request that waits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Identification {
    conn: ConnId,
    id: MsgId,
    node_type: NodeType,
    nid: Option<NodeId>,
    id_timestamp: Option<f64>,
    packed_until: Option<Tid>,
}

/// What becomes of a request.
enum Outcome {
    Accepted,
    Delayed,
}

/// Handler of connections that are not identified.
pub struct IdentificationHandler;

impl Handler<Storage> for IdentificationHandler {
    fn name(&self) -> &'static str {
        "IdentificationHandler"
    }

    fn packet(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        let Packet::RequestIdentification { node_type, nid, cluster, id_timestamp, extra, .. } =
            packet
        else {
            return Err(Fault::Unexpected);
        };
        if cluster != app.shared.config.cluster {
            log::error!("reject an alien cluster");
            return Err(Fault::protocol("invalid cluster name"));
        }
        if app.shared.identifications.iter().any(|other| other.conn == conn) {
            return Err(Fault::Unexpected);
        }
        let packed_until = packed_until(&extra)?;
        let request = Identification { conn, id, node_type, nid, id_timestamp, packed_until };
        if let Outcome::Delayed = identify(app, io, request)? {
            log::debug!("identification delayed nid={nid:?}");
            app.shared.identifications.push(request);
        }
        Ok(())
    }

    fn lost(
        &self,
        app: &mut Storage,
        _: &mut Io<'_, Storage>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        log::debug!("a connection was lost during identification");
        app.shared.identifications.retain(|request| request.conn != conn);
    }
}

/// Tries again what waits.
pub(crate) fn retry(app: &mut Storage, io: &mut Io<'_, Storage>) {
    for request in std::mem::take(&mut app.shared.identifications) {
        if !io.is_open(request.conn) {
            continue;
        }
        match identify(app, io, request) {
            Ok(Outcome::Accepted) => {}
            Ok(Outcome::Delayed) => app.shared.identifications.push(request),
            Err(fault) => refuse(io, request.conn, request.id, &fault),
        }
    }
}

fn identify(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    request: Identification,
) -> Result<Outcome, Fault> {
    let Identification { conn, id, node_type, nid, id_timestamp, packed_until } = request;
    let operation = match &mut app.phase {
        Phase::Operation(operation) => operation,
        Phase::Starting(_) => return Ok(Outcome::Delayed),
        Phase::Bootstrap | Phase::Initialization | Phase::Stopping => {
            return Err(Fault::retry_later());
        }
    };
    let shared = &mut app.shared;
    let own = shared.nid().expect("the node serves");
    let Some(nid) = nid else {
        // A storage of a backup cluster.
        if node_type != NodeType::Storage {
            return Err(Fault::protocol("reject anonymous non-storage node"));
        }
        io.set_handler(conn, &StorageHandler);
        io.trust(conn);
        io.answer(conn, id, accept(None, None));
        return Ok(Outcome::Accepted);
    };
    if nid == own {
        return Err(Fault::protocol("uuid conflict or loopback connection"));
    }
    let unknown = || Fault::NotReady("unknown by master".into());
    let key = match shared.nodes.identity(nid, id_timestamp.ok_or_else(unknown)?) {
        Identity::Known(key) => key,
        Identity::NotYet => return Ok(Outcome::Delayed),
        Identity::Unknown => return Err(unknown()),
    };
    let node = shared.nodes.get(key).ok_or_else(unknown)?;
    if node.node_type() != node_type {
        return Err(Fault::protocol("invalid node type"));
    }
    let old = node.connection();
    let (handler, force): (&'static dyn Handler<Storage>, bool) = match node_type {
        NodeType::Client if !node.is_running() => return Err(unknown()),
        NodeType::Client if shared.backup_tid.is_some() => (&ReadOnlyClientHandler, false),
        NodeType::Client => (&ClientHandler, false),
        // Two storages that connect to each other at the same time agree on which one to keep.
        NodeType::Storage => (&StorageHandler, own < nid),
        NodeType::Master | NodeType::Admin => {
            return Err(Fault::protocol("reject non-client-or-storage node"));
        }
    };
    if let Some(old) = old {
        if !force || io.has_received(old) {
            // It may also be a network failure that only the peer noticed. At worst, keepalive
            // packets end the old connection in about a minute.
            return Err(Fault::protocol("already connected"));
        }
        shared.nodes.unlink(old);
        io.close(old);
    }
    let linked = shared.nodes.set_link(key, Link::Identified(conn));
    linked.map_err(|_| Fault::protocol("already connected"))?;
    io.set_nid(conn, Some(nid));
    io.set_handler(conn, handler);
    if node_type == NodeType::Client {
        operation.transactions.ended.connected(conn);
    }
    if let Some(tid) = packed_until.filter(|_| node_type == NodeType::Client) {
        shared.packed_until.insert(nid, tid);
    }
    if shared.is_congested {
        io.pause(conn);
    }
    io.answer(conn, id, accept(Some(own), Some(nid)));
    Ok(Outcome::Accepted)
}

/// An addition of this project, for the import of a `Data.fs`: transactions of this client up to
/// that tid are marked as packed. The protocol has no argument for it.
fn packed_until(extra: &Map<Bytes, Value>) -> Result<Option<Tid>, Fault> {
    let Some((_, value)) = extra.0.iter().find(|(key, _)| &**key == b"packed_until") else {
        return Ok(None);
    };
    match value {
        Value::Bin(tid) => (&**tid).try_into().ok().map(|tid| Some(Tid::from_bytes(tid))),
        _ => None,
    }
    .ok_or_else(|| Fault::protocol("invalid packed_until"))
}

fn accept(my_nid: Option<NodeId>, your_nid: Option<NodeId>) -> Packet {
    Packet::AcceptIdentification { node_type: NodeType::Storage, my_nid, your_nid }
}
