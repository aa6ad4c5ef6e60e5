// SPDX-License-Identifier: GPL-2.0-or-later
//! Finding the primary master and identifying to it. Upstream: lib/bootstrap.py.
//!
//! Storages, admins and clients try the known masters in turn, one at a time, until one accepts
//! them. A secondary master answers `NotPrimaryMaster`, with all the masters that it knows and
//! which one is the primary, if it knows. An address that failed less than a second ago is waited
//! for by the engine.
//!
//! ```text
//!   Idle --poll--> connecting --completed--> RequestIdentification asked
//!    ^                 | failed                 | AcceptIdentification --> App::identified
//!    |                 v                        | NotPrimaryMaster     --> next target
//!    +-----------------+<--------- lost --------+
//! ```
//!
//! The application calls [`poll`] from `advance` as long as it has no primary master, and changes
//! the handler of the connection in [`Bootstrapping::identified`], which is called before the next
//! packet of the master is looked at.

use std::net::SocketAddr;

use bytes::Bytes;

use super::{App, ConnId, Fault, Handled, Handler, Io, Lost, base_error};
use crate::node::{Link, NodeKey, NodeManager};
use crate::protocol::{ErrorCode, Map, MsgId, NodeState, NodeType, Packet, Value};
use crate::types::NodeId;

/// Masters that peers may add to the list: more is a mistake.
const MASTERS_MAX: usize = 256;

/// Who this node is, and how far the search got.
#[derive(Debug)]
pub struct Bootstrap {
    /// Type of this node.
    pub node_type: NodeType,
    /// Name of the cluster.
    pub cluster: String,
    /// Own id: what is wished for, then what the primary master gave.
    pub nid: Option<NodeId>,
    /// Own listening address; `None` for clients.
    pub address: Option<SocketAddr>,
    /// Last argument of `RequestIdentification`.
    pub extra: Map<Bytes, Value>,
    /// Own id timestamp, told by the primary master; other nodes than masters want it.
    pub id_timestamp: Option<f64>,
    /// Where the search is.
    conn: Option<ConnId>,
    /// Last master that was tried.
    last: Option<SocketAddr>,
    /// Master to try next, if one was designated.
    next: Option<SocketAddr>,
}

impl Bootstrap {
    /// A search that has not begun.
    pub fn new(
        node_type: NodeType,
        cluster: String,
        nid: Option<NodeId>,
        address: Option<SocketAddr>,
        extra: Map<Bytes, Value>,
    ) -> Self {
        Self {
            node_type,
            cluster,
            nid,
            address,
            extra,
            id_timestamp: None,
            conn: None,
            last: None,
            next: None,
        }
    }

    /// The connection being tried, if any.
    pub fn connection(&self) -> Option<ConnId> {
        self.conn
    }

    /// The designated master, or the one after the last in order of address.
    fn choose(&mut self, nodes: &NodeManager) -> Option<SocketAddr> {
        let masters = nodes.master_addresses();
        let next = self.next.take().or_else(|| {
            let after = |last| masters.iter().find(|address| **address > last);
            self.last.and_then(after).or(masters.first()).copied()
        });
        self.last = next;
        next
    }
}

/// A node that looks for the primary master.
pub trait Bootstrapping: App {
    /// The search and the known nodes.
    fn bootstrap(&mut self) -> (&mut Bootstrap, &mut NodeManager);
    /// The ticket of `RequestIdentification` (its value is not looked at).
    fn identification_ticket() -> Self::Ticket;
    /// The primary master accepted us: `bootstrap().nid` is our id, `primary` is its node, marked
    /// as running and identified. Typically changes the handler of the connection and the phase.
    fn identified(&mut self, io: &mut Io<'_, Self>, conn: ConnId, primary: NodeKey) -> Handled;
    /// The master refused. By default the error is logged and the search goes on with the next
    /// master once the connection is closed.
    fn refused(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        let _ = (io, conn); // for implementers
        base_error(code, &message)
    }
}

/// Goes on with the search: connects to the next master if no connection is being tried.
pub fn poll<A: Bootstrapping>(app: &mut A, io: &mut Io<'_, A>) {
    let (bootstrap, nodes) = app.bootstrap();
    if bootstrap.conn.is_some() || io.is_exiting() {
        return;
    }
    let Some(address) = bootstrap.choose(nodes) else { return };
    let conn = io.connect(address, &BootstrapHandler);
    bootstrap.conn = Some(conn);
    bootstrap.id_timestamp = None;
    nodes.reset();
    if let Some(key) = nodes.by_address(address).map(crate::node::Node::key) {
        let old = nodes.set_link(key, Link::Connecting(conn));
        debug_assert_eq!(old, Ok(None), "a master that is tried has no connection");
    }
    log::debug!("connecting to master {address}");
}

/// Ends the search: the connection being tried, if any, is closed.
pub fn cancel<A: Bootstrapping>(app: &mut A, io: &mut Io<'_, A>) {
    let (bootstrap, _) = app.bootstrap();
    if let Some(conn) = bootstrap.conn.take() {
        io.close(conn);
    }
}

/// Handler of the connection being tried. Upstream: `BootstrapManager`.
pub struct BootstrapHandler;

impl<A: Bootstrapping> Handler<A> for BootstrapHandler {
    fn name(&self) -> &'static str {
        "BootstrapManager"
    }

    fn completed(&self, app: &mut A, io: &mut Io<'_, A>, conn: ConnId) {
        let (bootstrap, nodes) = app.bootstrap();
        if let Some(key) = nodes.by_connection(conn).map(crate::node::Node::key) {
            let old = nodes.set_link(key, Link::Connected(conn));
            debug_assert_eq!(old, Ok(None), "same connection");
        }
        let request = Packet::RequestIdentification {
            node_type: bootstrap.node_type,
            nid: bootstrap.nid,
            address: bootstrap.address,
            cluster: bootstrap.cluster.clone(),
            id_timestamp: None,
            extra: bootstrap.extra.clone(),
        };
        io.ask(conn, request, A::identification_ticket());
    }

    fn packet(
        &self,
        app: &mut A,
        io: &mut Io<'_, A>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::NotPrimaryMaster { primary, masters } => {
                let (bootstrap, nodes) = app.bootstrap();
                for &address in &masters {
                    if nodes.by_address(address).is_none() && nodes.masters().count() < MASTERS_MAX
                    {
                        nodes.create_master(address).map_err(|e| Fault::protocol(e.to_string()))?;
                    }
                }
                if let Some(index) = primary {
                    let address = masters.get(index as usize);
                    let address = address.ok_or_else(|| Fault::protocol("no such master"))?;
                    bootstrap.next = Some(*address).filter(|a| nodes.by_address(*a).is_some());
                }
                io.close(conn);
                Ok(())
            }
            Packet::Ping {} => {
                io.answer(conn, id, Packet::Pong {});
                Ok(())
            }
            _ => Err(Fault::Unexpected),
        }
    }

    fn answer(
        &self,
        app: &mut A,
        io: &mut Io<'_, A>,
        conn: ConnId,
        _ticket: A::Ticket,
        packet: Packet,
    ) -> Handled {
        let Packet::AcceptIdentification { node_type, my_nid, your_nid } = packet else {
            return Err(Fault::Unexpected);
        };
        if node_type != NodeType::Master {
            return Err(Fault::Close);
        }
        let nid = your_nid.ok_or_else(|| Fault::protocol("No UUID supplied"))?;
        let master_nid = my_nid.ok_or_else(|| Fault::protocol("invalid uuids"))?;
        let (bootstrap, nodes) = app.bootstrap();
        let key = nodes.by_connection(conn).ok_or(Fault::Close)?.key();
        if let Some(other) = nodes.by_nid(master_nid).map(crate::node::Node::key)
            && other != key
        {
            let freed = nodes.set_nid(other, None);
            debug_assert_eq!(freed, Ok(()), "nothing conflicts with no id");
        }
        let conflict = |e: crate::node::NodeConflict| Fault::protocol(e.to_string());
        nodes.set_nid(key, my_nid).map_err(conflict)?;
        nodes.set_state(key, NodeState::Running);
        nodes.set_link(key, Link::Identified(conn)).map_err(conflict)?;
        bootstrap.nid = Some(nid);
        bootstrap.id_timestamp = None;
        bootstrap.conn = None;
        io.set_nid(conn, my_nid);
        log::info!("connected to primary master {master_nid} as {nid}");
        app.identified(io, conn, key)
    }

    fn error(
        &self,
        app: &mut A,
        io: &mut Io<'_, A>,
        conn: ConnId,
        _ticket: Option<A::Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        app.refused(io, conn, code, message)
    }

    fn lost(
        &self,
        app: &mut A,
        _io: &mut Io<'_, A>,
        conn: ConnId,
        _why: Lost,
        _tickets: Vec<A::Ticket>,
    ) {
        let (bootstrap, nodes) = app.bootstrap();
        nodes.unlink(conn);
        if bootstrap.conn == Some(conn) {
            bootstrap.conn = None;
        }
    }
}
