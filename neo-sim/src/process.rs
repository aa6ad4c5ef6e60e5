// SPDX-License-Identifier: GPL-2.0-or-later
//! One simulated process: an engine, and an executor in place of its threads.

use std::any::Any;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{App, CallId, ConnId, Engine, Flush, Input, JobId, Output, Signal};
use neo_common::time::Now;

/// What happens to a process.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A peer connected.
    Accepted(ConnId, SocketAddr),
    /// A connection that it opened is up.
    Connected(ConnId),
    /// Bytes arrived.
    Bytes(ConnId, Bytes),
    /// A connection failed or was closed.
    Closed(ConnId),
    /// Its deadline is reached.
    Timeout,
    /// A signal.
    Signal(Signal),
    /// The threads of its executor had time to work.
    Work,
}

/// What a process does to the world.
#[derive(Debug)]
pub enum Effect {
    /// Opens a connection.
    Connect(ConnId, SocketAddr),
    /// Sends.
    Bytes(ConnId, Vec<Bytes>),
    /// Closes.
    Close(ConnId, Flush),
    /// Stops or resumes reading.
    Read(ConnId, bool),
    /// Ends.
    Exit(i32),
}

/// What stands for the threads of a process: executes jobs and takes replies.
pub trait Executor<A: App> {
    /// Takes a job.
    fn submit(&mut self, id: JobId, job: A::Job);
    /// Works; what is done, in order. `None`: an error after which the process ends.
    fn work(&mut self) -> Option<Vec<(JobId, A::Done)>>;
    /// Whether there is something to do.
    fn has_work(&self) -> bool;
    /// Takes the reply to a call.
    fn reply(&mut self, id: CallId, reply: A::Reply);
}

/// A process, whatever its core.
pub trait Process: Any {
    /// Starts.
    fn start(&mut self, now: Now);
    /// An id for a connection that it accepts.
    fn new_conn(&mut self) -> ConnId;
    /// Tells what happened. `false`: it died.
    fn happen(&mut self, happening: Happening, now: Now) -> bool;
    /// What it does, in order, until `None`.
    fn effect(&mut self) -> Option<Effect>;
    /// When it wants [`Happening::Timeout`].
    fn deadline(&self) -> Option<Duration>;
    /// Whether it wants [`Happening::Work`].
    fn has_work(&self) -> bool;
    /// Short name, for stories.
    fn label(&self) -> String;
    /// For who knows its type.
    fn as_any(&mut self) -> &mut dyn Any;
}

/// A core and its executor.
pub struct CoreProcess<A: App, E: Executor<A>> {
    /// The core.
    pub engine: Engine<A>,
    /// Its threads.
    pub executor: E,
}

impl<A: App, E: Executor<A> + 'static> Process for CoreProcess<A, E> {
    fn start(&mut self, now: Now) {
        self.engine.start(now);
    }
    fn new_conn(&mut self) -> ConnId {
        self.engine.new_conn()
    }
    fn happen(&mut self, happening: Happening, now: Now) -> bool {
        let input = match &happening {
            Happening::Accepted(conn, address) => Input::Accepted(*conn, *address),
            Happening::Connected(conn) => Input::Connected(*conn),
            Happening::Bytes(conn, bytes) => Input::Bytes(*conn, bytes),
            Happening::Closed(conn) => Input::Closed(*conn),
            Happening::Timeout => Input::Timeout,
            Happening::Signal(signal) => Input::Signal(*signal),
            Happening::Work => {
                let Some(done) = self.executor.work() else { return false };
                for (id, done) in done {
                    self.engine.handle(Input::JobDone(id, done), now);
                }
                return true;
            }
        };
        self.engine.handle(input, now);
        true
    }
    fn effect(&mut self) -> Option<Effect> {
        loop {
            return Some(match self.engine.poll_output()? {
                Output::Connect(conn, address) => Effect::Connect(conn, address),
                Output::Bytes(conn, chunks) => Effect::Bytes(conn, chunks),
                Output::Close(conn, flush) => Effect::Close(conn, flush),
                Output::Read(conn, resume) => Effect::Read(conn, resume),
                Output::Exit(status) => Effect::Exit(status),
                Output::Submit(id, job) => {
                    self.executor.submit(id, job);
                    continue;
                }
                Output::Reply(id, reply) => {
                    self.executor.reply(id, reply);
                    continue;
                }
            });
        }
    }
    fn deadline(&self) -> Option<Duration> {
        self.engine.deadline()
    }
    fn has_work(&self) -> bool {
        self.executor.has_work()
    }
    fn label(&self) -> String {
        self.engine.app.label()
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
