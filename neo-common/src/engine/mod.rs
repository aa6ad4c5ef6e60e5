// SPDX-License-Identifier: GPL-2.0-or-later
//! The engine that all nodes share: connections, dispatch of packets, timers, outbox.
//!
//! ```text
//!   Input --> Engine::handle --> frame --> expected answer? --> current Handler
//!                                                                 | &mut App, &mut Io
//!                                                                 v
//!   driver <-- Engine::poll_output <-- outputs, bytes of dirty connections
//! ```
//!
//! What it guarantees:
//! - one input at a time, to completion;
//! - packets received before a connection is lost are handled before `lost`;
//! - `lost` is told exactly once, with the requests that will not be answered; a `close` from
//!   inside a handler is delivered as `lost` after that handler returns;
//! - a change of phase ([`Io::transition`]) is applied between two packets;
//! - [`App::advance`] runs after each packet, loss, job, call, timer and signal;
//! - results never depend on how outputs are batched.
//!
//! It reads no clock and draws no random number of its own: both are arguments.

pub mod bootstrap;
mod connection;
pub mod event_queue;
mod handler;
mod io;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use connection::Connection;

pub use event_queue::EventQueue;
pub use handler::{Fault, Handled, Handler, UNFINISHED, base_error};
pub use io::{CallId, ConnId, Flush, Input, Io, JobId, Lost, Output, Signal};

use crate::limits::{IDLE_CLIENT_DELAY, RECONNECT_DELAY};
use crate::logging::{PACKETS, PacketRecord};
use crate::prng::Prng;
use crate::protocol::frame::HANDSHAKE;
use crate::protocol::{ErrorCode, MsgId, Packet};
use crate::time::Now;

/// Exit status that stands for: end like the default action of the signal received.
pub const EXIT_BY_SIGNAL: i32 = -1;

/// A node: state and continuations. What is not used is `()` or [`std::convert::Infallible`].
pub trait App: Sized + 'static {
    /// Work for another thread.
    type Job: fmt::Debug;
    /// Its result.
    type Done;
    /// What to do with the result.
    type After;
    /// What to do with an answer.
    type Ticket;
    /// What the application asks.
    type Call;
    /// Its reply.
    type Reply;
    /// Named timers: at most one of each is set.
    type Timer: Ord + Copy;
    /// A change of phase.
    type Transition;

    /// Handler of connections that peers open.
    fn acceptor(&self) -> &'static dyn Handler<Self>;
    /// First of all.
    fn start(&mut self, io: &mut Io<'_, Self>);
    /// A job is done.
    fn job_done(&mut self, io: &mut Io<'_, Self>, after: Self::After, done: Self::Done);
    /// The application asks something.
    fn call(&mut self, io: &mut Io<'_, Self>, id: CallId, call: Self::Call);
    /// A timer fires; it is not set any more.
    fn timer(&mut self, io: &mut Io<'_, Self>, timer: Self::Timer);
    /// A signal was received.
    fn signal(&mut self, io: &mut Io<'_, Self>, signal: Signal);
    /// Applies a change of phase, between two packets.
    fn transition(&mut self, io: &mut Io<'_, Self>, transition: Self::Transition);
    /// Checks the conditions of the current phase; called after everything that could change them.
    fn advance(&mut self, io: &mut Io<'_, Self>);
    /// Short name for logs (`S1`).
    fn label(&self) -> String;
}

/// Why the engine wakes up by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Wake {
    /// A delayed connection may be attempted.
    Connect(ConnId),
    /// A connection that we do not use any more.
    Idle(ConnId),
}

/// State of the engine beside the application.
struct State<A: App> {
    now: Now,
    prng: Prng,
    conns: BTreeMap<ConnId, Connection<A>>,
    next_conn: u64,
    /// Addresses that failed, and when they may be tried again.
    retry_at: BTreeMap<SocketAddr, Duration>,
    jobs: BTreeMap<JobId, A::After>,
    next_job: u64,
    timers: BTreeMap<A::Timer, Duration>,
    wakes: BTreeSet<(Duration, Wake)>,
    /// Connections closed by us whose loss is not told yet.
    closing: VecDeque<ConnId>,
    /// Connection whose packet is being handled.
    handling: Option<ConnId>,
    transition: Option<A::Transition>,
    outputs: VecDeque<Output<A>>,
    /// Connections that have something to send.
    dirty: Vec<ConnId>,
    exited: bool,
    exit: Option<i32>,
}

impl<A: App> State<A> {
    fn insert(&mut self, conn: ConnId, connection: Connection<A>) {
        self.conns.insert(conn, connection);
        self.put_raw(conn, |c| c.out.put(&HANDSHAKE));
    }

    fn put(&mut self, conn: ConnId, id: Option<MsgId>, packet: &Packet) {
        self.log_packet(conn, '>', id, packet);
        self.put_raw(conn, |c| packet.encode(id, &mut c.out));
    }

    fn log_packet(&self, conn: ConnId, direction: char, id: Option<MsgId>, packet: &Packet) {
        // Not for nothing: the peer has to be looked up.
        if log::log_enabled!(target: PACKETS, log::Level::Trace)
            && let Some(c) = self.conns.get(&conn)
        {
            let peer = (c.nid, c.address);
            log::trace!(target: PACKETS, "{}", PacketRecord { id, direction, peer, packet });
        }
    }

    fn put_raw(&mut self, conn: ConnId, write: impl FnOnce(&mut Connection<A>)) {
        let c = self.conns.get_mut(&conn).expect("only open connections send");
        write(c);
        if !c.dirty {
            c.dirty = true;
            self.dirty.push(conn);
        }
    }

    fn connect(&mut self, address: SocketAddr, handler: &'static dyn Handler<A>) -> ConnId {
        let conn = ConnId::new(self.next_conn);
        self.next_conn += 1;
        let now = self.now.monotonic;
        self.retry_at.retain(|_, at| *at > now);
        let at = self.retry_at.get(&address).copied();
        let mut connection = Connection::new(address, false, handler);
        connection.attempted_at = at.unwrap_or(now);
        self.insert(conn, connection);
        match at {
            Some(at) => {
                self.wakes.insert((at, Wake::Connect(conn)));
            }
            None => self.outputs.push_back(Output::Connect(conn, address)),
        }
        conn
    }

    fn close(&mut self, conn: ConnId, flush: Flush) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        if c.closing {
            return;
        }
        c.closing = true;
        if flush == Flush::Yes && c.connected && !c.out.is_empty() {
            let bytes = c.out.take();
            self.outputs.push_back(Output::Bytes(conn, bytes));
        }
        // A delayed attempt that has not begun is unknown to the driver.
        if !self.wakes.remove(&(c.attempted_at, Wake::Connect(conn))) {
            self.outputs.push_back(Output::Close(conn, flush));
        }
        self.closing.push_back(conn);
    }

    /// Removes a connection, and remembers its address if it did not last.
    fn forget(&mut self, conn: ConnId) -> Option<Connection<A>> {
        let c = self.conns.get(&conn)?;
        let now = self.now.monotonic;
        if let Some(at) = c.idle_at {
            self.wakes.remove(&(at, Wake::Idle(conn)));
        }
        let retry_at = c.attempted_at + RECONNECT_DELAY;
        if !c.accepted && now < retry_at {
            self.retry_at.insert(c.address, retry_at);
        }
        self.conns.remove(&conn)
    }
}

/// A node that runs: the application and the state of its connections.
pub struct Engine<A: App> {
    /// The node.
    pub app: A,
    state: State<A>,
    packets: VecDeque<(Option<MsgId>, Packet)>,
}

impl<A: App> Engine<A> {
    /// Builds an engine that draws from `seed`; nothing happens before [`Engine::start`].
    pub fn new(app: A, seed: u64) -> Self {
        let state = State {
            now: Now::default(),
            prng: Prng::new(seed),
            conns: BTreeMap::new(),
            next_conn: 1,
            retry_at: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 1,
            timers: BTreeMap::new(),
            wakes: BTreeSet::new(),
            closing: VecDeque::new(),
            handling: None,
            transition: None,
            outputs: VecDeque::new(),
            dirty: Vec::new(),
            exited: false,
            exit: None,
        };
        Self { app, state, packets: VecDeque::new() }
    }

    /// Starts the node.
    pub fn start(&mut self, now: Now) {
        self.state.now = now;
        self.app.start(&mut Io { state: &mut self.state });
        self.settle();
    }

    /// An id for a connection that the driver accepts.
    pub fn new_conn(&mut self) -> ConnId {
        let conn = ConnId::new(self.state.next_conn);
        self.state.next_conn += 1;
        conn
    }

    /// Tells the node what happened.
    pub fn handle(&mut self, input: Input<'_, A>, now: Now) {
        debug_assert!(now.monotonic >= self.state.now.monotonic, "monotonic time went back");
        self.state.now = now;
        match input {
            Input::Accepted(conn, address) => {
                let connection = Connection::new(address, true, self.app.acceptor());
                self.state.insert(conn, connection);
            }
            Input::Connected(conn) => self.connected(conn),
            Input::Bytes(conn, bytes) => self.bytes(conn, bytes),
            Input::Full(conn, is_full) => self.full(conn, is_full),
            Input::Closed(conn) => self.closed(conn),
            Input::JobDone(id, done) => {
                let after = self.state.jobs.remove(&id).expect("a job is done once");
                self.app.job_done(&mut Io { state: &mut self.state }, after, done);
                self.settle();
            }
            Input::Call(id, call) => {
                self.app.call(&mut Io { state: &mut self.state }, id, call);
                self.settle();
            }
            Input::Timeout => self.timeout(),
            Input::Signal(signal) => {
                self.app.signal(&mut Io { state: &mut self.state }, signal);
                self.settle();
            }
        }
    }

    fn connected(&mut self, conn: ConnId) {
        let Some(c) = self.state.conns.get_mut(&conn).filter(|c| !c.closing) else { return };
        c.connected = true;
        if !c.dirty && !c.out.is_empty() {
            c.dirty = true;
            self.state.dirty.push(conn);
        }
        let handler = c.handler();
        handler.completed(&mut self.app, &mut Io { state: &mut self.state }, conn);
        self.settle();
    }

    fn bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(c) = self.state.conns.get_mut(&conn).filter(|c| !c.closing) else { return };
        let mut packets = std::mem::take(&mut self.packets);
        let result = c.frames.feed(bytes, &mut packets);
        for (id, packet) in packets.drain(..) {
            // The connection may be closed by any of its packets.
            if self.state.conns.get(&conn).is_none_or(|c| c.closing) {
                break;
            }
            self.packet(conn, id, packet);
            self.settle();
        }
        self.packets = packets;
        if let Err(malformed) = result
            && let Some(c) = self.state.conns.get(&conn).filter(|c| !c.closing)
        {
            let peer = c.nid.map_or_else(|| c.address.to_string(), |nid| nid.to_string());
            log::warn!("{}: malformed packet from {peer}: {malformed}", self.app.label());
            self.state.close(conn, Flush::No);
            self.settle();
        }
    }

    fn packet(&mut self, conn: ConnId, id: Option<MsgId>, packet: Packet) {
        self.state.log_packet(conn, '<', id, &packet);
        let c = self.state.conns.get_mut(&conn).expect("checked by the caller");
        let mut handler = c.handler();
        let name = packet.name();
        let answers = packet.is_answer();
        // Id of what we reply to: answers do not become the packet in reply to which errors are
        // sent unless they are expected.
        let (ticket, expected) = match (answers, id) {
            (true, Some(id)) => match c.expected(id) {
                Some((waiting, code, ticket)) => {
                    handler = waiting;
                    (Some(ticket), Some(code))
                }
                None => (None, None),
            },
            _ => (None, None),
        };
        let code = packet.code();
        let is_error = matches!(packet, Packet::Error { .. });
        if answers && !is_error && expected != Some(code) {
            let message = format!("Unexpected answer: {name}");
            log::error!("{}: unexpected answer {name} from {}", self.app.label(), c.address);
            let id = c.peer_id;
            c.switch();
            self.state.put(conn, id, &Packet::error(ErrorCode::ProtocolError, message));
            self.state.close(conn, Flush::Yes);
            // The request that was waiting for another answer is lost with the connection.
            if let Some(ticket) = ticket {
                self.lose(conn, Lost::ByUs, vec![ticket]);
            }
            return;
        }
        c.peer_id = id;
        self.state.handling = Some(conn);
        let app = &mut self.app;
        let io = &mut Io { state: &mut self.state };
        let handled = match (packet, ticket) {
            (Packet::Error { code, message }, ticket) => {
                handler.error(app, io, conn, ticket, code, message)
            }
            (packet, Some(ticket)) => handler.answer(app, io, conn, ticket, packet),
            (packet, None) => {
                handler.packet(app, io, conn, id.expect("decoded packets have an id"), packet)
            }
        };
        self.state.handling = None;
        if let Err(fault) = handled {
            self.fault(conn, id, handler.name(), name, &fault);
        }
        if let Some(c) = self.state.conns.get_mut(&conn) {
            c.switch();
        }
    }

    /// Treats what the peer did wrong.
    fn fault(
        &mut self,
        conn: ConnId,
        id: Option<MsgId>,
        handler: &str,
        packet: &str,
        fault: &Fault,
    ) {
        if self.state.conns.get(&conn).is_none_or(|c| c.closing) {
            return;
        }
        let (code, message, close) = match fault {
            Fault::Unexpected => {
                let message = format!("unexpected packet: no handler found in {handler}");
                log::error!("{}: unexpected packet {packet} in {handler}", self.app.label());
                (ErrorCode::ProtocolError, message, true)
            }
            Fault::Protocol(message) => (ErrorCode::ProtocolError, message.clone(), true),
            Fault::NotReady(message) => (ErrorCode::NotReady, message.clone(), true),
            Fault::Error(code, message) => (*code, message.clone(), false),
            Fault::Close => {
                self.state.close(conn, Flush::No);
                return;
            }
        };
        self.state.put(conn, id, &Packet::Error { code, message });
        if close {
            self.state.close(conn, Flush::Yes);
        }
    }

    fn full(&mut self, conn: ConnId, is_full: bool) {
        let Some(c) = self.state.conns.get_mut(&conn).filter(|c| !c.closing) else { return };
        c.full = is_full;
        if !is_full {
            let handler = c.handler();
            handler.drained(&mut self.app, &mut Io { state: &mut self.state }, conn);
            self.settle();
        }
    }

    fn closed(&mut self, conn: ConnId) {
        let Some(c) = self.state.conns.get(&conn).filter(|c| !c.closing) else { return };
        let why = if c.connected { Lost::ByPeer } else { Lost::Failed };
        self.lose(conn, why, Vec::new());
        self.settle();
    }

    /// Tells the handler that its connection is gone.
    fn lose(&mut self, conn: ConnId, why: Lost, mut tickets: Vec<A::Ticket>) {
        let Some(c) = self.state.conns.get_mut(&conn) else { return };
        // Nothing can be sent any more, but the handler may still ask who it was.
        c.closing = true;
        let address = c.address;
        let (handler, rest) = {
            let nid = c.nid;
            let accepted = c.accepted;
            let c = self.state.forget(conn).expect("found above");
            let (handler, rest) = c.into_tickets();
            let mut shell = Connection::new(address, accepted, handler);
            shell.nid = nid;
            shell.closing = true;
            self.state.conns.insert(conn, shell);
            (handler, rest)
        };
        tickets.extend(rest);
        handler.lost(&mut self.app, &mut Io { state: &mut self.state }, conn, why, tickets);
        self.state.conns.remove(&conn);
    }

    fn timeout(&mut self) {
        let now = self.state.now.monotonic;
        while let Some(&(at, wake)) = self.state.wakes.first()
            && at <= now
        {
            self.state.wakes.pop_first();
            self.wake(wake);
            self.settle();
        }
        let due = self.state.timers.iter().filter(|(_, at)| **at <= now);
        let mut due: Vec<_> = due.map(|(timer, at)| (*at, *timer)).collect();
        due.sort();
        for (at, timer) in due {
            // An earlier timer may have cancelled or moved it.
            if self.state.timers.get(&timer) == Some(&at) {
                self.state.timers.remove(&timer);
                self.app.timer(&mut Io { state: &mut self.state }, timer);
                self.settle();
            }
        }
    }

    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Connect(conn) => {
                if let Some(c) = self.state.conns.get(&conn) {
                    let address = c.address;
                    self.state.outputs.push_back(Output::Connect(conn, address));
                }
            }
            // Upstream: lib/connection.py, `_closeClient`.
            Wake::Idle(conn) => {
                let now = self.state.now.monotonic;
                let Some(c) = self.state.conns.get_mut(&conn) else { return };
                c.idle_at = None;
                if c.is_pending() {
                    let at = now + IDLE_CLIENT_DELAY;
                    c.idle_at = Some(at);
                    self.state.wakes.insert((at, Wake::Idle(conn)));
                } else if c.server {
                    c.client = false;
                    Io { state: &mut self.state }.send(conn, Packet::CloseClient {});
                } else {
                    self.state.close(conn, Flush::No);
                }
            }
        }
    }

    /// Delivers losses, applies changes of phase and checks conditions until nothing changes.
    fn settle(&mut self) {
        loop {
            while let Some(conn) = self.state.closing.pop_front() {
                self.lose(conn, Lost::ByUs, Vec::new());
            }
            let io = &mut Io { state: &mut self.state };
            if let Some(transition) = io.state.transition.take() {
                self.app.transition(io, transition);
                continue;
            }
            self.app.advance(io);
            if self.state.closing.is_empty() && self.state.transition.is_none() {
                return;
            }
        }
    }

    /// What to do outside, in order. `None`: nothing until the next input or [`Engine::deadline`].
    pub fn poll_output(&mut self) -> Option<Output<A>> {
        if let Some(output) = self.state.outputs.pop_front() {
            return Some(output);
        }
        while let Some(conn) = self.state.dirty.pop() {
            if let Some(c) = self.state.conns.get_mut(&conn) {
                c.dirty = false;
                if c.connected && !c.out.is_empty() {
                    return Some(Output::Bytes(conn, c.out.take()));
                }
            }
        }
        self.state.exit.take().map(Output::Exit)
    }

    /// Like [`Engine::poll_output`], without the bytes to send: those wait for more.
    pub fn poll_urgent(&mut self) -> Option<Output<A>> {
        self.state.outputs.pop_front()
    }

    /// Bytes that wait for [`Engine::poll_output`].
    pub fn unsent_bytes(&self) -> usize {
        let dirty = self.state.dirty.iter().filter_map(|conn| self.state.conns.get(conn));
        dirty.filter(|c| c.connected).map(|c| c.out.len()).sum()
    }

    /// When [`Input::Timeout`] is due, on the monotonic clock.
    pub fn deadline(&self) -> Option<Duration> {
        let wake = self.state.wakes.first().map(|(at, _)| *at);
        let timer = self.state.timers.values().min().copied();
        match (wake, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests;
