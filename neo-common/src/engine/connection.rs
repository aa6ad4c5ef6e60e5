// SPDX-License-Identifier: GPL-2.0-or-later
//! State of one connection: ids, expected answers and queue of handlers.
//!
//! Upstream: lib/connection.py, `Connection` and `HandlerSwitcher`. A queued handler takes over
//! only once the current one has all its answers. A request made while a packet of the connection
//! is being handled belongs to the current handler, otherwise to the newest one.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::App;
use super::handler::Handler;
use crate::protocol::frame::FrameBuffer;
use crate::protocol::{MsgId, OutBuffer};
use crate::types::NodeId;

/// A handler and the answers that it waits for.
struct Stage<A: App> {
    handler: &'static dyn Handler<A>,
    /// Code of the answer, and what to do with it, by id of the request.
    expected: BTreeMap<MsgId, (u16, A::Ticket)>,
}

/// State of one connection.
pub(super) struct Connection<A: App> {
    pub address: SocketAddr,
    pub accepted: bool,
    /// When it was attempted, for connections that we open.
    pub attempted_at: Duration,
    pub connected: bool,
    /// Closed by us, `lost` not delivered yet.
    pub closing: bool,
    pub nid: Option<NodeId>,
    pub frames: FrameBuffer,
    pub out: OutBuffer,
    /// In the list of connections that have something to send.
    pub dirty: bool,
    /// Nothing is read from the peer.
    pub paused: bool,
    /// The peer does not read what is sent to it.
    pub full: bool,
    /// We use the peer; the peer uses us (only meaningful between storages).
    pub client: bool,
    pub server: bool,
    /// When to give up the client role.
    pub idle_at: Option<Duration>,
    /// Id of the last packet dispatched, for errors in reply to nothing in particular.
    pub peer_id: Option<MsgId>,
    next_id: MsgId,
    stages: VecDeque<Stage<A>>,
}

impl<A: App> Connection<A> {
    pub fn new(address: SocketAddr, accepted: bool, handler: &'static dyn Handler<A>) -> Self {
        Self {
            address,
            accepted,
            attempted_at: Duration::ZERO,
            connected: accepted,
            closing: false,
            nid: None,
            frames: FrameBuffer::default(),
            out: OutBuffer::default(),
            dirty: false,
            paused: false,
            full: false,
            client: !accepted,
            server: accepted,
            idle_at: None,
            peer_id: None,
            next_id: 0,
            stages: VecDeque::from([Stage { handler, expected: BTreeMap::new() }]),
        }
    }
    pub fn next_id(&mut self) -> MsgId {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }
    pub fn handler(&self) -> &'static dyn Handler<A> {
        self.stages[0].handler
    }
    pub fn is_pending(&self) -> bool {
        !self.stages[0].expected.is_empty()
    }
    pub fn set_handler(&mut self, handler: &'static dyn Handler<A>) {
        if self.stages.len() == 1 && !self.is_pending() {
            self.stages[0].handler = handler;
        } else {
            self.stages.push_back(Stage { handler, expected: BTreeMap::new() });
        }
    }
    pub fn expect(&mut self, id: MsgId, code: u16, ticket: A::Ticket, handling: bool) {
        let index = if handling { 0 } else { self.stages.len() - 1 };
        let old = self.stages[index].expected.insert(id, (code, ticket));
        assert!(old.is_none(), "2^32 requests without answer on one connection");
    }
    /// Takes what was expected for that answer, and who waits for it. A peer may answer a later handler
    /// before an earlier one: what it is asked does not all take the same way through its database.
    pub fn expected(&mut self, id: MsgId) -> Option<(&'static dyn Handler<A>, u16, A::Ticket)> {
        self.stages.iter_mut().find_map(|stage| {
            let (code, ticket) = stage.expected.remove(&id)?;
            Some((stage.handler, code, ticket))
        })
    }
    /// Lets queued handlers take over.
    pub fn switch(&mut self) {
        while self.stages.len() > 1 && !self.is_pending() {
            self.stages.pop_front();
        }
    }
    /// Requests that will never be answered, oldest first.
    pub fn into_tickets(self) -> (&'static dyn Handler<A>, Vec<A::Ticket>) {
        let handler = self.stages[0].handler;
        let tickets = self.stages.into_iter().flat_map(|stage| stage.expected.into_values());
        (handler, tickets.map(|(_, ticket)| ticket).collect())
    }
}
