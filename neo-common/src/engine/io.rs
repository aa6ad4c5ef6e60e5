// SPDX-License-Identifier: GPL-2.0-or-later
//! What goes in and out of a core, and [`Io`]: all that a handler may do to the outside.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::connection::Connection;
use super::handler::Handler;
use super::{App, State, Wake};
use crate::limits::IDLE_CLIENT_DELAY;
use crate::prng::Prng;
use crate::protocol::{MsgId, Packet};
use crate::time::Now;
use crate::types::NodeId;

pub use crate::types::ConnId;

/// Names a job until it is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(pub u64);

/// Names a call of an application until it is replied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId(pub u64);

/// A signal of the operating system that a node reacts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM, SIGINT: stop cleanly.
    Terminate,
    /// SIGRTMIN: write what is only in memory to the log.
    FlushLog,
    /// SIGRTMIN+1: reopen the log.
    ReopenLog,
    /// SIGRTMIN+2: log the state of the node.
    DumpState,
}

/// What a driver tells a core.
pub enum Input<'a, A: App> {
    /// A peer connected to us. The driver took the id with [`super::Engine::new_conn`].
    Accepted(ConnId, SocketAddr),
    /// An [`Output::Connect`] succeeded.
    Connected(ConnId),
    /// Bytes received, in order.
    Bytes(ConnId, &'a [u8]),
    /// Much of what was sent to the peer waits because it does not read (`true`), or not any more.
    Full(ConnId, bool),
    /// The connection failed, or was closed by the peer. Bytes received before came before.
    Closed(ConnId),
    /// A job is done.
    JobDone(JobId, A::Done),
    /// The application asks something.
    Call(CallId, A::Call),
    /// The deadline is reached (or not: waking up for nothing is harmless).
    Timeout,
    /// A signal was received.
    Signal(Signal),
}

/// Whether what was sent before is still worth delivering when closing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Send what is queued, then close.
    Yes,
    /// Close now.
    No,
}

/// What a core tells its driver.
pub enum Output<A: App> {
    /// Open a connection; the answer is `Connected` or `Closed`.
    Connect(ConnId, SocketAddr),
    /// Send.
    Bytes(ConnId, Vec<Bytes>),
    /// Close; nothing is told about that connection any more.
    Close(ConnId, Flush),
    /// Stop (`false`) or resume (`true`) reading from the peer, whose bytes wait in its buffers.
    Read(ConnId, bool),
    /// Do (in order, if the job wants so) and report with `JobDone`.
    Submit(JobId, A::Job),
    /// Reply to a call.
    Reply(CallId, A::Reply),
    /// End the process with this status, once everything is flushed.
    Exit(i32),
}

impl<A: App> fmt::Debug for Output<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(conn, address) => write!(f, "Connect({conn:?}, {address})"),
            Self::Bytes(conn, bytes) => {
                write!(f, "Bytes({conn:?}, {})", bytes.iter().map(Bytes::len).sum::<usize>())
            }
            Self::Close(conn, flush) => write!(f, "Close({conn:?}, {flush:?})"),
            Self::Read(conn, resume) => write!(f, "Read({conn:?}, {resume})"),
            Self::Submit(id, job) => write!(f, "Submit({id:?}, {job:?})"),
            Self::Reply(id, _) => write!(f, "Reply({id:?})"),
            Self::Exit(status) => write!(f, "Exit({status})"),
        }
    }
}

/// Why a connection is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// It could not be opened.
    Failed,
    /// The peer or the network closed it.
    ByPeer,
    /// We closed or aborted it.
    ByUs,
}

/// All that a handler, a phase or a continuation may do to the outside.
pub struct Io<'a, A: App> {
    pub(super) state: &'a mut State<A>,
}

impl<A: App> Io<'_, A> {
    /// The time of this input.
    pub fn now(&self) -> Now {
        self.state.now
    }
    /// The seeded generator of this node.
    pub fn prng(&mut self) -> &mut Prng {
        &mut self.state.prng
    }

    // Connections.

    /// Opens a connection. It is attempted later if the last attempt to that address failed less
    /// than [`crate::limits::RECONNECT_DELAY`] ago.
    pub fn connect(&mut self, address: SocketAddr, handler: &'static dyn Handler<A>) -> ConnId {
        self.state.connect(address, handler)
    }
    /// Forgets that connections to that address failed: it is known to be good, or somebody waits.
    pub fn waive_delay(&mut self, address: SocketAddr) {
        self.state.retry_at.remove(&address);
    }
    /// Whether packets can be sent: neither lost nor being closed.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some()
    }
    fn conn(&self, conn: ConnId) -> Option<&Connection<A>> {
        self.state.conns.get(&conn).filter(|c| !c.closing)
    }
    fn conn_mut(&mut self, conn: ConnId) -> Option<&mut Connection<A>> {
        self.state.conns.get_mut(&conn).filter(|c| !c.closing)
    }
    /// Open connections, in order of creation.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.state.conns.iter().filter(|(_, c)| !c.closing).map(|(id, _)| *id)
    }
    /// Address of the peer, even while the connection is being lost.
    pub fn address(&self, conn: ConnId) -> Option<SocketAddr> {
        self.state.conns.get(&conn).map(|c| c.address)
    }
    /// Node at the other end, once identified.
    pub fn nid(&self, conn: ConnId) -> Option<NodeId> {
        self.state.conns.get(&conn).and_then(|c| c.nid)
    }
    /// Tells which node is at the other end: big packets are accepted from now on.
    pub fn set_nid(&mut self, conn: ConnId, nid: Option<NodeId>) {
        if let Some(c) = self.conn_mut(conn) {
            c.nid = nid;
            c.frames.trust();
        }
    }
    /// Accepts big packets from a peer that has no nid.
    pub fn trust(&mut self, conn: ConnId) {
        if let Some(c) = self.conn_mut(conn) {
            c.frames.trust();
        }
    }
    /// Whether the peer opened the connection.
    pub fn is_accepted(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(|c| c.accepted)
    }
    /// Whether any packet was received.
    pub fn has_received(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(|c| c.peer_id.is_some())
    }
    /// Whether answers are expected by the current handler.
    pub fn is_pending(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(Connection::is_pending)
    }
    /// Changes the handler: now, or once the current one has all its answers.
    pub fn set_handler(&mut self, conn: ConnId, handler: &'static dyn Handler<A>) {
        if let Some(c) = self.conn_mut(conn) {
            c.set_handler(handler);
        }
    }
    /// Closes at once; `lost` is delivered after the current handler returns.
    pub fn close(&mut self, conn: ConnId) {
        self.state.close(conn, Flush::No);
    }
    /// Stops reading, sends what is queued, then closes. `lost` is delivered after the current
    /// handler returns.
    pub fn abort(&mut self, conn: ConnId) {
        self.state.close(conn, Flush::Yes);
    }

    /// Stops reading from a peer that asks faster than we can do. What it sent before is still
    /// handled. Never done to the primary master.
    pub fn pause(&mut self, conn: ConnId) {
        self.set_paused(conn, true);
    }
    /// Reads again.
    pub fn resume(&mut self, conn: ConnId) {
        self.set_paused(conn, false);
    }
    fn set_paused(&mut self, conn: ConnId, paused: bool) {
        if let Some(c) = self.conn_mut(conn)
            && c.paused != paused
        {
            c.paused = paused;
            self.state.outputs.push_back(Output::Read(conn, !paused));
        }
    }

    /// Whether the peer does not read what is sent to it: what it asks can wait. See
    /// [`Handler::drained`].
    pub fn is_full(&self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(|c| c.full)
    }

    // Packets.

    /// Sends a notification. Nothing happens if the connection is closed.
    pub fn send(&mut self, conn: ConnId, packet: Packet) {
        if let Some(c) = self.conn_mut(conn) {
            let id = c.next_id();
            self.state.put(conn, Some(id), &packet);
        }
    }
    /// Sends a request; its answer comes with `ticket`. Tickets without answer come with `lost`.
    /// `false`, and the ticket is dropped, if the connection is closed.
    pub fn ask(&mut self, conn: ConnId, packet: Packet, ticket: A::Ticket) -> bool {
        self.ask_with_id(conn, packet, ticket).is_some()
    }
    /// Like [`Io::ask`]; returns the id of the request, which the packets that belong to it have
    /// (`AddObject`, `AddTransaction`).
    pub fn ask_with_id(
        &mut self,
        conn: ConnId,
        packet: Packet,
        ticket: A::Ticket,
    ) -> Option<MsgId> {
        let handling = self.state.handling == Some(conn);
        let c = self.conn_mut(conn)?;
        let id = c.next_id();
        c.expect(id, packet.answer_code().expect("a request is asked"), ticket, handling);
        self.state.put(conn, Some(id), &packet);
        Some(id)
    }
    /// Replies to the packet that has this id. Nothing happens if the connection is closed.
    pub fn answer(&mut self, conn: ConnId, id: MsgId, packet: Packet) {
        debug_assert!(packet.is_answer(), "{}", packet.name());
        self.send_as(conn, id, packet);
    }
    /// Sends a packet that belongs to the request with this id (`AddObject`, `AddTransaction`).
    pub fn send_as(&mut self, conn: ConnId, id: MsgId, packet: Packet) {
        if self.is_open(conn) {
            self.state.put(conn, Some(id), &packet);
        }
    }
    /// Bytes queued by the core for that peer since the driver last took them.
    pub fn queued_bytes(&self, conn: ConnId) -> usize {
        self.conn(conn).map_or(0, |c| c.out.len())
    }

    // Both ends of a connection between storages (upstream: asClient, asServer, closeClient).

    /// We use the peer.
    pub fn as_client(&mut self, conn: ConnId) {
        if let Some(c) = self.conn_mut(conn) {
            c.client = true;
            if let Some(at) = c.idle_at.take() {
                self.state.wakes.remove(&(at, Wake::Idle(conn)));
            }
        }
    }
    /// The peer uses us.
    pub fn as_server(&mut self, conn: ConnId) {
        if let Some(c) = self.conn_mut(conn) {
            c.server = true;
        }
    }
    /// Whether we use the peer, and whether it uses us.
    pub fn roles(&self, conn: ConnId) -> (bool, bool) {
        self.conn(conn).map_or((false, false), |c| (c.client, c.server))
    }
    /// We do not need the peer any more: after a while, tell it or close.
    pub fn close_client(&mut self, conn: ConnId) {
        let at = self.state.now.monotonic + IDLE_CLIENT_DELAY;
        if let Some(c) = self.conn_mut(conn)
            && c.client
        {
            let old = c.idle_at.replace(at);
            if let Some(old) = old {
                self.state.wakes.remove(&(old, Wake::Idle(conn)));
            }
            self.state.wakes.insert((at, Wake::Idle(conn)));
        }
    }
    /// The peer does not use us any more (`CloseClient` received).
    pub fn peer_closed_client(&mut self, conn: ConnId) {
        if let Some(c) = self.conn_mut(conn) {
            c.server = false;
            if !c.client {
                self.close(conn);
            }
        }
    }

    // Everything else.

    /// Submits a job; `after` tells what to do with its result.
    pub fn submit(&mut self, job: A::Job, after: A::After) -> JobId {
        let id = JobId(self.state.next_job);
        self.state.next_job += 1;
        self.state.jobs.insert(id, after);
        self.state.outputs.push_back(Output::Submit(id, job));
        id
    }
    /// Number of jobs that are not done.
    pub fn jobs_len(&self) -> usize {
        self.state.jobs.len()
    }
    /// Replies to a call.
    pub fn reply(&mut self, call: CallId, reply: A::Reply) {
        self.state.outputs.push_back(Output::Reply(call, reply));
    }
    /// Fires `timer` after `delay`, instead of when it was set before.
    pub fn set_timer(&mut self, timer: A::Timer, delay: Duration) {
        self.state.timers.insert(timer, self.state.now.monotonic + delay);
    }
    /// Forgets a timer.
    pub fn cancel_timer(&mut self, timer: A::Timer) {
        self.state.timers.remove(&timer);
    }
    /// Whether a timer is set.
    pub fn has_timer(&self, timer: A::Timer) -> bool {
        self.state.timers.contains_key(&timer)
    }
    /// Asks for a change of phase, applied before the next packet. The last one wins.
    pub fn transition(&mut self, transition: A::Transition) {
        self.state.transition = Some(transition);
    }
    /// Ends the process with this status (or [`super::EXIT_BY_SIGNAL`]), once everything is
    /// flushed.
    pub fn exit(&mut self, status: i32) {
        if !self.state.exited {
            self.state.exited = true;
            self.state.exit = Some(status);
        }
    }
    /// Whether [`Io::exit`] was called.
    pub fn is_exiting(&self) -> bool {
        self.state.exited
    }
}
