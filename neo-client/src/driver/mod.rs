// SPDX-License-Identifier: GPL-2.0-or-later
//! Sockets and threads of a client: leader and followers.
//!
//! The engine, its sockets and the replies are one [`State`] under one mutex, held for as long as it
//! takes to handle what is there, never while waiting. A thread that makes a call puts it in the
//! engine and writes the request to the socket itself. Then:
//!
//! - if nobody waits on the sockets, it becomes the *leader*: it waits (without the mutex), reads and
//!   handles everything that arrives, for all, until its own reply is there. Then it wakes up
//!   a follower to lead;
//! - otherwise it is a *follower*: it sleeps until it has a reply or is to lead.
//!
//! So a load that misses the cache is a write, a wait and a read, all in the calling thread.
//!
//! The background thread (see [`background`]) leads when no caller does for a while, and calls the
//! listener. It starts with the first call.
//!
//! ```text
//!   caller:      call -> engine -> write ... lead: epoll_wait, read -> engine -> reply
//!   caller 2:    call -> engine -> write ... follow: sleep ......................^ woken up
//!   background:  sleep, 5 ms at a time, as long as callers lead; then lead
//! ```

// A driver: threads, and one mutex around the engine.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod background;
mod fork;
mod session;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Waker};
use neo_common::engine::{Engine, Input};
use neo_common::net::Driver;
use neo_common::net::clock::{self, Clock};
use neo_common::net::driver::WAKER;
use neo_common::types::{Oid, Tid};

use self::fork::Process;
use self::slots::{NOBODY, Replies, SlotId, call_id};
use crate::api::Listener;
use crate::call::{Answer, Call, Record, Reply};
use crate::core::ClientCore;
use crate::error::{Error, Result};
use crate::options::Options;

pub(crate) use session::Session;

/// Events taken at once.
const EVENTS_LEN: usize = 256;

/// No last tid yet.
const NO_TID: u64 = u64::MAX;

/// What all clones of a client share.
pub(crate) struct Shared {
    options: Options,
    process: Process,
    clock: Clock,
    state: Mutex<State>,
    /// Only the leader takes it: nobody ever waits for it.
    poll: Mutex<(Poll, Events)>,
    waker: Waker,
    /// Where the background thread sleeps.
    background: Condvar,
    listener: Mutex<Option<Arc<dyn Listener>>>,
    /// Copy of what the core says, to be read without the mutex.
    last_tid: AtomicU64,
    closed: AtomicBool,
}

/// Who waits on the sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leader {
    Nobody,
    Somebody {
        /// Until when it waits if nothing happens; `None`: for ever. ZERO as long as it does not
        /// wait.
        until: Option<Duration>,
        /// Whose reply it waits for; `None`: the background thread, which waits for events.
        slot: Option<SlotId>,
    },
}

/// What the mutex protects.
struct State {
    driver: Driver<ClientCore, Replies>,
    leader: Leader,
    /// Sleeping threads without reply, in order of arrival: the first one leads next.
    followers: Vec<SlotId>,
    /// Number of times that callers led or followed, to see whether they still do.
    turns: u64,
    /// The background thread wants to know when the leader leaves.
    background_waits: bool,
    thread: Option<JoinHandle<()>>,
    started: bool,
}

type Guard<'a> = MutexGuard<'a, State>;

impl Shared {
    pub fn open(options: Options) -> Result<Arc<Self>> {
        let poll = Poll::new().map_err(Error::foreign)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(Error::foreign)?;
        let registry = poll.registry().try_clone().map_err(Error::foreign)?;
        let engine = Engine::new(ClientCore::new(options.clone()), clock::seed());
        let driver = Driver::new(engine, Replies::default(), registry, None);
        let state = State {
            driver: driver.map_err(Error::foreign)?,
            leader: Leader::Nobody,
            followers: Vec::new(),
            turns: 0,
            background_waits: false,
            thread: None,
            started: false,
        };
        Ok(Arc::new(Self {
            options,
            process: Process::current(),
            clock: Clock::default(),
            state: Mutex::new(state),
            poll: Mutex::new((poll, Events::with_capacity(EVENTS_LEN))),
            waker,
            background: Condvar::new(),
            listener: Mutex::new(None),
            last_tid: AtomicU64::new(NO_TID),
            closed: AtomicBool::new(false),
        }))
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The last tid that was told.
    pub fn last_tid(&self) -> Option<Tid> {
        Some(self.last_tid.load(Ordering::Acquire)).filter(|tid| *tid != NO_TID).map(Tid::new)
    }

    /// What the cache has, if the mutex is free.
    pub fn try_cached(&self, oid: Oid, before: Option<Tid>) -> Option<Record> {
        if !self.process.is_current() || self.closed.load(Ordering::Relaxed) {
            return None;
        }
        self.state.try_lock().ok()?.driver.engine.app.cached(oid, before)
    }

    /// Loads through the cache: a hit costs no more than the mutex and a look-up.
    pub fn load(self: &Arc<Self>, oid: Oid, at: Option<Tid>, before: Option<Tid>) -> Reply {
        if at.is_none()
            && let Some(record) = self.enter()?.driver.engine.app.cached(oid, before)
        {
            return Ok(Answer::Cached(record));
        }
        self.call(Call::Load { oid, at, before })
    }

    /// Makes a call and waits for its reply.
    pub fn call(self: &Arc<Self>, call: Call) -> Reply {
        let mut state = self.enter()?;
        let slot = state.driver.host.open();
        self.submit(&mut state, slot, 0, call);
        self.flush(&mut state);
        let (mut state, reply) = self.wait(state, slot)?;
        state.driver.host.close(slot);
        drop(state);
        reply.1
    }

    /// A thread that makes several calls at once.
    pub fn session(self: &Arc<Self>) -> Session {
        Session::new(Arc::clone(self))
    }

    pub fn set_listener(self: &Arc<Self>, listener: Arc<dyn Listener>) {
        if let Ok(mut current) = self.listener.lock() {
            *current = Some(listener);
        }
        // Once closed there is nothing to listen to.
        let _ = self.call(Call::Listen);
    }

    /// Fails all calls, and waits for the background thread.
    pub fn close(&self) {
        if !self.process.is_current() || self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        self.input(&mut state, Call::Close);
        self.flush(&mut state);
        self.background.notify_all();
        let thread = state.thread.take();
        drop(state);
        // Failing to wake up a leader means that there is none.
        let _ = self.waker.wake();
        if let Some(thread) = thread
            // The listener may close the client.
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of that thread was reported by itself.
            let _ = thread.join();
        }
    }

    /// Takes the mutex for a call.
    fn enter(self: &Arc<Self>) -> Result<Guard<'_>> {
        if !self.process.is_current() {
            return Err(Error::Forked);
        }
        let mut state = self.lock()?;
        if !state.started && !self.closed.load(Ordering::Relaxed) {
            state.thread = Some(background::start(self)?);
            state.started = true;
        }
        Ok(state)
    }

    /// If a thread panicked while it held the mutex, nothing can be trusted any more.
    fn lock(&self) -> Result<Guard<'_>> {
        self.state.lock().map_err(|_| Error::Closed)
    }

    /// Puts a call in the engine. What it sends is written by [`Shared::flush`].
    fn submit(&self, state: &mut State, slot: SlotId, tag: u32, call: Call) {
        state.driver.host.expect(slot);
        state.driver.input(Input::Call(call_id(slot, tag), call));
    }

    /// A call whose reply nobody wants.
    fn input(&self, state: &mut State, call: Call) {
        state.driver.input(Input::Call(NOBODY, call));
    }

    /// Does what the engine says, and wakes up who has a reply.
    fn flush(&self, state: &mut State) {
        state.driver.flush();
        while let Some(orphan) = state.driver.host.orphans.pop() {
            self.input(state, orphan);
            state.driver.flush();
        }
        while let Some(slot) = state.driver.host.awake.pop() {
            state.followers.retain(|follower| *follower != slot);
            state.driver.host.slot(slot).condvar.notify_one();
        }
        if !state.driver.host.events.is_empty() {
            self.background.notify_one();
        }
        let last_tid = state.driver.engine.app.last_tid().map_or(NO_TID, Tid::get);
        self.last_tid.store(last_tid, Ordering::Release);
        self.check_leader(state);
    }

    /// Wakes up the leader if it has something to do: what it waits for came out of a call of
    /// another thread, or there is a timer earlier than it thinks.
    fn check_leader(&self, state: &mut State) {
        let Leader::Somebody { until, slot } = state.leader else { return };
        if until == Some(Duration::ZERO) {
            return;
        }
        let done = match slot {
            Some(slot) => state.driver.host.has_reply(slot),
            None => !state.driver.host.events.is_empty(),
        };
        let earlier = || {
            let at = self.clock.now().monotonic + state.driver.timeout()?;
            until.is_none_or(|until| at < until).then_some(())
        };
        if done || earlier().is_some() {
            // Told once: it looks by itself when it is awake.
            state.leader = Leader::Somebody { until: Some(Duration::ZERO), slot };
            // An error could only be that the descriptor is closed, and it is not.
            let _ = self.waker.wake();
        }
    }

    /// Waits for a reply, reading from sockets if nobody else does.
    fn wait<'a>(&'a self, mut state: Guard<'a>, slot: SlotId) -> Result<(Guard<'a>, (u32, Reply))> {
        loop {
            if let Some(reply) = state.driver.host.pop(slot) {
                self.hand_over(&mut state);
                return Ok((state, reply));
            }
            state.turns += 1;
            if state.leader == Leader::Nobody {
                let done = |state: &mut State| state.driver.host.has_reply(slot);
                state = self.lead(state, Some(slot), done)?;
            } else {
                let condvar = Arc::clone(&state.driver.host.slot(slot).condvar);
                state.driver.host.slot(slot).sleeping = true;
                state.followers.push(slot);
                state = condvar.wait(state).map_err(|_| Error::Closed)?;
                state.driver.host.slot(slot).sleeping = false;
                state.followers.retain(|follower| *follower != slot);
            }
        }
    }

    /// Waits on the sockets and handles what arrives, until `done`.
    fn lead<'a>(
        &'a self,
        mut state: Guard<'a>,
        slot: Option<SlotId>,
        mut done: impl FnMut(&mut State) -> bool,
    ) -> Result<Guard<'a>> {
        let mut poll = self.poll.lock().map_err(|_| Error::Closed)?;
        let (poll, events) = &mut *poll;
        while !done(&mut state) {
            let timeout = state.driver.timeout();
            // Never ZERO: the clock has begun before.
            let until = timeout.map(|timeout| self.clock.now().monotonic + timeout);
            state.leader = Leader::Somebody { until, slot };
            drop(state);
            let result = poll.poll(events, timeout);
            state = self.lock()?;
            if let Err(error) = result
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                state.leader = Leader::Nobody;
                return Err(Error::foreign(error));
            }
            // While it handles things, the leader looks at the time itself.
            state.leader = Leader::Somebody { until: Some(Duration::ZERO), slot };
            for event in &*events {
                state.driver.on_event(event);
            }
            state.driver.on_time();
            self.flush(&mut state);
        }
        state.leader = Leader::Nobody;
        Ok(state)
    }

    /// Somebody must lead if others wait.
    fn hand_over(&self, state: &mut State) {
        if state.leader != Leader::Nobody {
            return;
        }
        if let Some(follower) = state.followers.first() {
            state.driver.host.slot(*follower).condvar.notify_one();
        } else if state.background_waits || state.driver.timeout() == Some(Duration::ZERO) {
            state.background_waits = false;
            self.background.notify_one();
        }
    }
}
