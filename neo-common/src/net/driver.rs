// SPDX-License-Identifier: GPL-2.0-or-later
//! Feeds one engine from sockets, and does what it says.
//!
//! The driver does not wait: whoever owns the [`mio::Poll`] calls [`Driver::on_event`] for each
//! event, then [`Driver::flush`] once. So it serves the event loop of a node ([`super::run()`]) as
//! well as a client whose threads take turns at waiting.
//!
//! Sockets are registered edge-triggered for both directions, once. A peer that sends without end
//! is read a few times per turn, then the others come first; a peer that does not read what it asked
//! for is not read from until it does.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Interest, Registry, Token};

use super::clock::Clock;
use super::listener::Listener;
use super::socket::{ReadOutcome, Socket, Stage};
use crate::engine::{App, CallId, ConnId, Engine, Flush, Input, JobId, Output, Signal};
use crate::limits::{OUT_BYTES_HIGH, READ_BYTES};

/// What the driver gives away: jobs and replies.
pub trait Host<A: App> {
    /// Takes a job. It is reported later through [`Host::done`].
    fn submit(&mut self, id: JobId, job: A::Job);
    /// All jobs of this turn were submitted: the moment to wake up workers.
    fn submitted(&mut self) {}
    /// A job that is done, if any.
    fn done(&mut self) -> Option<(JobId, A::Done)>;
    /// Takes the reply to a call.
    fn reply(&mut self, id: CallId, reply: A::Reply);
}

/// Token of the listening socket.
pub const LISTENER: Token = Token(usize::MAX);
/// Token of the waker: jobs are done, or another thread wants something.
pub const WAKER: Token = Token(usize::MAX - 1);
/// Token of signals.
pub const SIGNALS: Token = Token(usize::MAX - 2);

/// Reads of one peer per turn, before others get theirs.
const READS_PER_TURN: usize = 4;

/// How long a closed connection may take to send its last words.
const CLOSING_DELAY: Duration = Duration::from_secs(5);

/// How long to wait before accepting again when the process has no file descriptor left.
const ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// One engine and its sockets.
pub struct Driver<A: App, H: Host<A>> {
    /// The node. After anything done to it directly, call [`Driver::flush`].
    pub engine: Engine<A>,
    /// Where jobs and replies go.
    pub host: H,
    registry: Registry,
    listener: Option<Listener>,
    sockets: BTreeMap<ConnId, Socket>,
    /// Sockets that may have more to read, without a new event.
    ready: Vec<ConnId>,
    /// When closing sockets are dropped.
    closing: Vec<(Duration, ConnId)>,
    accept_at: Option<Duration>,
    clock: Clock,
    scratch: Box<[u8]>,
    exit: Option<i32>,
}

impl<A: App, H: Host<A>> Driver<A, H> {
    /// Starts the node.
    ///
    /// # Errors
    /// If the listening socket cannot be registered.
    pub fn new(
        engine: Engine<A>,
        host: H,
        registry: Registry,
        mut listener: Option<Listener>,
    ) -> io::Result<Self> {
        if let Some(listener) = &mut listener {
            registry.register(&mut listener.socket, LISTENER, Interest::READABLE)?;
        }
        let mut driver = Self {
            engine,
            host,
            registry,
            listener,
            sockets: BTreeMap::new(),
            ready: Vec::new(),
            closing: Vec::new(),
            accept_at: None,
            clock: Clock::default(),
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
            exit: None,
        };
        let now = driver.clock.now();
        driver.engine.start(now);
        driver.flush();
        Ok(driver)
    }

    /// Tells the engine about something that is not an event of a socket.
    pub fn input(&mut self, input: Input<'_, A>) {
        let now = self.clock.now();
        self.engine.handle(input, now);
    }

    /// A signal was received.
    pub fn signal(&mut self, signal: Signal) {
        self.input(Input::Signal(signal));
    }

    /// An event of the listening socket or of a connection. Others are ignored.
    pub fn on_event(&mut self, event: &Event) {
        match event.token() {
            LISTENER => self.accept(),
            WAKER | SIGNALS => {}
            Token(conn) => {
                let conn = ConnId::new(conn as u64);
                if event.is_writable() || event.is_error() {
                    self.writable(conn);
                }
                if event.is_read_closed()
                    && let Some(socket) = self.sockets.get_mut(&conn)
                {
                    // Remembered even if nothing is read now: it is not told again.
                    socket.ending = true;
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.readable(conn);
                }
            }
        }
    }

    /// Takes what workers have done.
    pub fn take_done(&mut self) {
        while let Some((id, done)) = self.host.done() {
            self.input(Input::JobDone(id, done));
        }
    }

    /// What is due without an event: timers, sockets with more to read.
    pub fn on_time(&mut self) {
        let now = self.clock.now();
        if self.engine.deadline().is_some_and(|at| at <= now.monotonic) {
            self.engine.handle(Input::Timeout, now);
        }
        for conn in std::mem::take(&mut self.ready) {
            self.readable(conn);
        }
        if self.accept_at.is_some_and(|at| at <= now.monotonic) {
            self.accept_at = None;
            self.accept();
        }
        if self.closing.first().is_some_and(|(at, _)| *at <= now.monotonic) {
            let (due, rest) = std::mem::take(&mut self.closing)
                .into_iter()
                .partition(|(at, _)| *at <= now.monotonic);
            self.closing = rest;
            let due: Vec<(Duration, ConnId)> = due;
            for (_, conn) in due {
                self.drop_socket(conn);
            }
        }
    }

    /// How long the owner of the poll may wait; `None`: for ever.
    pub fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let closing = self.closing.first().map(|(at, _)| *at);
        let at = [self.engine.deadline(), closing, self.accept_at].into_iter().flatten().min()?;
        Some(at.saturating_sub(self.clock.now().monotonic))
    }

    /// Exit status, once the core wants to end and everything is sent (or cannot be).
    pub fn exit_status(&self) -> Option<i32> {
        let unsent = self.sockets.values().any(|s| s.out_len() != 0);
        self.exit.filter(|_| !unsent)
    }

    /// Exit status that the core wants, even if something is not sent yet.
    pub fn wants_exit(&self) -> Option<i32> {
        self.exit
    }

    /// Does what the engine says, until it has nothing more to say.
    pub fn flush(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            self.output(output);
        }
        self.host.submitted();
    }

    /// Like [`Driver::flush`], but what is to be sent waits for more.
    pub fn flush_urgent(&mut self) {
        while let Some(output) = self.engine.poll_urgent() {
            self.output(output);
        }
        self.host.submitted();
    }

    fn output(&mut self, output: Output<A>) {
        match output {
            Output::Bytes(conn, chunks) => {
                if let Some(socket) = self.sockets.get_mut(&conn) {
                    socket.queue(chunks);
                    if socket.stage == Stage::Open {
                        self.write(conn);
                    }
                }
            }
            Output::Submit(id, job) => self.host.submit(id, job),
            Output::Reply(id, reply) => self.host.reply(id, reply),
            Output::Connect(conn, address) => {
                if let Err(error) = self.connect(conn, address) {
                    log::debug!("can not connect to {address}: {error}");
                    self.input(Input::Closed(conn));
                }
            }
            Output::Close(conn, flush) => self.close(conn, flush),
            Output::Read(conn, resume) => {
                if let Some(socket) = self.sockets.get_mut(&conn) {
                    socket.paused = !resume;
                    if resume {
                        self.ready.push(conn);
                    }
                }
            }
            Output::Exit(status) => self.exit = Some(status),
        }
    }

    fn connect(&mut self, conn: ConnId, address: std::net::SocketAddr) -> io::Result<()> {
        let socket = Socket::connect(address)?;
        self.insert(conn, socket)
    }

    fn insert(&mut self, conn: ConnId, mut socket: Socket) -> io::Result<()> {
        let token = Token(usize::try_from(conn.get()).expect("ids fit in a word"));
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut socket.stream, token, interest)?;
        self.sockets.insert(conn, socket);
        Ok(())
    }

    fn accept(&mut self) {
        loop {
            let Some(listener) = &self.listener else { return };
            match listener.socket.accept() {
                Ok((stream, address)) => {
                    let conn = self.engine.new_conn();
                    let accepted = Socket::accept(stream).and_then(|s| self.insert(conn, s));
                    match accepted {
                        Ok(()) => self.input(Input::Accepted(conn, address)),
                        Err(error) => log::debug!("connection from {address} lost: {error}"),
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Usually no file descriptor left. There is no other event for the connections
                    // that wait, and trying at once would loop.
                    log::error!("can not accept connections: {error}");
                    self.accept_at = Some(self.clock.now().monotonic + ACCEPT_DELAY);
                    return;
                }
            }
        }
    }

    fn writable(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        if socket.stage == Stage::Connecting {
            match socket.finish_connect() {
                Ok(true) => self.input(Input::Connected(conn)),
                Ok(false) => return,
                Err(error) => {
                    log::debug!("can not connect ({conn:?}): {error}");
                    self.broken(conn);
                    return;
                }
            }
        }
        self.write(conn);
    }

    fn write(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        if let Err(error) = socket.write() {
            log::debug!("{conn:?} broken: {error}");
            self.broken(conn);
            return;
        }
        let is_full = socket.out_len() >= OUT_BYTES_HIGH;
        if is_full != std::mem::replace(&mut socket.full, is_full) {
            if !is_full {
                self.ready.push(conn);
            }
            self.input(Input::Full(conn, is_full));
        }
    }

    fn readable(&mut self, conn: ConnId) {
        for _ in 0..READS_PER_TURN {
            let Some(socket) = self.sockets.get_mut(&conn) else { return };
            if socket.stage == Stage::Connecting {
                return;
            }
            // Its bytes wait in the kernel. When it is resumed, or has read what it asked for, the
            // connection is put in the list of those to read.
            if socket.stage == Stage::Open
                && (socket.paused || (socket.accepted && socket.out_len() >= OUT_BYTES_HIGH))
            {
                return;
            }
            let outcome = socket.read(&mut self.scratch);
            let (len, more) = match outcome {
                ReadOutcome::Some(len) => (len, true),
                // The end comes behind the last bytes, without another event.
                ReadOutcome::Drained(len) => (len, len != 0 && socket.ending),
                ReadOutcome::Closed => {
                    self.broken(conn);
                    return;
                }
            };
            if len != 0 && socket.stage == Stage::Open {
                let now = self.clock.now();
                self.engine.handle(Input::Bytes(conn, &self.scratch[..len]), now);
            }
            if !more {
                return;
            }
        }
        self.ready.push(conn);
    }

    /// The peer closed, or the network broke.
    fn broken(&mut self, conn: ConnId) {
        let closing = self.sockets.get(&conn).is_some_and(|s| s.stage == Stage::Closing);
        self.drop_socket(conn);
        if closing {
            self.closing.retain(|(_, c)| *c != conn);
        } else {
            self.input(Input::Closed(conn));
        }
    }

    fn close(&mut self, conn: ConnId, flush: Flush) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        if flush == Flush::No || socket.stage == Stage::Connecting {
            self.drop_socket(conn);
            return;
        }
        socket.stage = Stage::Closing;
        socket.paused = false;
        self.closing.push((self.clock.now().monotonic + CLOSING_DELAY, conn));
        self.ready.push(conn);
        self.write(conn);
    }

    fn drop_socket(&mut self, conn: ConnId) {
        if let Some(mut socket) = self.sockets.remove(&conn) {
            // Closing the descriptor does it anyway.
            let _ = self.registry.deregister(&mut socket.stream);
        }
    }
}
