// SPDX-License-Identifier: GPL-2.0-or-later
//! One simulated process: an engine, and an executor in place of its threads.

use std::any::Any;
use std::collections::VecDeque;
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

/// The executor cannot go on: the process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed;

/// What stands for the threads of a process: executes jobs and takes replies.
pub trait Executor<A: App> {
    /// Takes a job.
    fn submit(&mut self, id: JobId, job: A::Job, now: Duration);
    /// When it wants to work, if ever.
    fn work_at(&self) -> Option<Duration>;
    /// Works; what is done, in order.
    ///
    /// # Errors
    /// After one, the process ends.
    fn work(&mut self, now: Duration) -> Result<Vec<(JobId, A::Done)>, Failed>;
    /// Takes the reply to a call.
    fn reply(&mut self, id: CallId, reply: A::Reply);
}

/// A process, whatever its core.
pub trait Process: Any {
    /// Starts.
    fn start(&mut self, now: Now);
    /// An id for a connection that it accepts.
    fn new_conn(&mut self) -> ConnId;
    /// Tells what happened.
    ///
    /// # Errors
    /// If it died of it.
    fn happen(&mut self, happening: Happening, now: Now) -> Result<(), Failed>;
    /// What it does, in order, until `None`.
    fn effect(&mut self, now: Duration) -> Option<Effect>;
    /// When it wants [`Happening::Timeout`].
    fn deadline(&self) -> Option<Duration>;
    /// When it wants [`Happening::Work`].
    fn work_at(&self) -> Option<Duration>;
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
    fn happen(&mut self, happening: Happening, now: Now) -> Result<(), Failed> {
        let input = match &happening {
            Happening::Accepted(conn, address) => Input::Accepted(*conn, *address),
            Happening::Connected(conn) => Input::Connected(*conn),
            Happening::Bytes(conn, bytes) => Input::Bytes(*conn, bytes),
            Happening::Closed(conn) => Input::Closed(*conn),
            Happening::Timeout => Input::Timeout,
            Happening::Signal(signal) => Input::Signal(*signal),
            Happening::Work => {
                for (id, done) in self.executor.work(now.monotonic)? {
                    self.engine.handle(Input::JobDone(id, done), now);
                }
                return Ok(());
            }
        };
        self.engine.handle(input, now);
        Ok(())
    }
    fn effect(&mut self, now: Duration) -> Option<Effect> {
        loop {
            return Some(match self.engine.poll_output()? {
                Output::Connect(conn, address) => Effect::Connect(conn, address),
                Output::Bytes(conn, chunks) => Effect::Bytes(conn, chunks),
                Output::Close(conn, flush) => Effect::Close(conn, flush),
                Output::Read(conn, resume) => Effect::Read(conn, resume),
                Output::Exit(status) => Effect::Exit(status),
                Output::Submit(id, job) => {
                    self.executor.submit(id, job, now);
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
    fn work_at(&self) -> Option<Duration> {
        self.executor.work_at()
    }
    fn label(&self) -> String {
        self.engine.app.label()
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// The executor of a process without threads worth the name: its jobs are done at once, what they
/// are and the replies are kept for who wants to look.
pub struct Simple<A: App> {
    done: fn(&A::Job) -> Option<A::Done>,
    results: Vec<(JobId, A::Done)>,
    /// Jobs that were submitted, oldest first.
    pub jobs: VecDeque<A::Job>,
    /// Replies, oldest first.
    pub replies: VecDeque<(CallId, A::Reply)>,
    work_at: Option<Duration>,
}

impl<A: App> Simple<A> {
    /// Jobs that it keeps.
    const JOBS_LEN_MAX: usize = 100;

    /// `done`: the result of each job; `None` if there is never one.
    pub fn new(done: fn(&A::Job) -> Option<A::Done>) -> Self {
        Self {
            done,
            results: Vec::new(),
            jobs: VecDeque::new(),
            replies: VecDeque::new(),
            work_at: None,
        }
    }
}

impl<A: App> Executor<A> for Simple<A> {
    fn submit(&mut self, id: JobId, job: A::Job, now: Duration) {
        if let Some(done) = (self.done)(&job) {
            self.results.push((id, done));
            self.work_at.get_or_insert(now);
        }
        if self.jobs.len() == Self::JOBS_LEN_MAX {
            self.jobs.pop_front();
        }
        self.jobs.push_back(job);
    }
    fn work_at(&self) -> Option<Duration> {
        self.work_at
    }
    fn work(&mut self, _: Duration) -> Result<Vec<(JobId, A::Done)>, Failed> {
        self.work_at = None;
        Ok(std::mem::take(&mut self.results))
    }
    fn reply(&mut self, id: CallId, reply: A::Reply) {
        self.replies.push_back((id, reply));
    }
}
