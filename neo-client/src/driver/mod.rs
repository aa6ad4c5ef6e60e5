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
//! So a load that misses the cache is a write, a wait and a read, all in the calling thread. What a
//! transaction stores is sent together, with the next call that waits or within a few milliseconds.
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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Waker};
use neo_common::engine::{Engine, Input};
use neo_common::master_list;
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

/// Bytes of stores that may wait for more.
const UNSENT_BYTES_MAX: usize = 64 << 10;

/// How often threads that wait ask whether to go on.
const INTERRUPT_DELAY: Duration = Duration::from_millis(250);

/// Tells a thread that waits whether to go on.
pub(crate) type Interrupt = Arc<dyn Fn() -> Result<()> + Send + Sync>;

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
    interrupt: Mutex<Option<Interrupt>>,
    /// Whether there is one.
    interruptible: AtomicBool,
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

/// What the background thread does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Background {
    /// It leads, calls the listener, or did not start.
    Awake,
    /// It looks again soon.
    Napping,
    /// It wants to know when the leader leaves.
    Waiting,
}

/// What the mutex protects.
struct State {
    driver: Driver<ClientCore, Replies>,
    leader: Leader,
    /// Sleeping threads without reply, in order of arrival: the first one leads next.
    followers: Vec<SlotId>,
    /// Number of times that callers led or followed, to see whether they still do.
    turns: u64,
    /// What the background thread does.
    background: Background,
    /// Threads to be woken up once the mutex is free: they would only wait for it.
    wake: Vec<Arc<Condvar>>,
    thread: Option<JoinHandle<()>>,
    started: bool,
}

/// After [`Shared::flush`], it is to be given to [`unlock`].
type Guard<'a> = MutexGuard<'a, State>;

impl Shared {
    pub fn open(mut options: Options) -> Result<Arc<Self>> {
        if let Some(path) = &options.dynamic_master_list {
            options.masters.extend(master_list::load(path).map_err(Error::foreign)?);
        }
        if options.masters.is_empty() {
            return Err(Error::Invalid("no master is given"));
        }
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
            background: Background::Awake,
            wake: Vec::new(),
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
            interrupt: Mutex::new(None),
            interruptible: AtomicBool::new(false),
            last_tid: AtomicU64::new(NO_TID),
            closed: AtomicBool::new(false),
        }))
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The last tid that was told.
    ///
    /// # Errors
    /// In a child of the process that opened the client, where it would never move.
    pub fn last_tid(&self) -> Result<Option<Tid>> {
        if !self.process.is_current() {
            return Err(Error::Forked);
        }
        let tid = self.last_tid.load(Ordering::Acquire);
        Ok((tid != NO_TID).then(|| Tid::new(tid)))
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
        // What a transaction stores is sent together; someone must look soon if it is forgotten.
        let may_wait = matches!(call, Call::Store { .. } | Call::CheckSerial { .. })
            && state.leader == Leader::Nobody
            && state.background == Background::Napping;
        // The outcome of a commit must be known.
        let patient = matches!(call, Call::Finish { .. });
        let slot = state.driver.host.open();
        self.submit(&mut state, slot, 0, call);
        state.driver.flush_urgent();
        if !(may_wait
            && state.driver.host.has_reply(slot)
            && state.driver.engine.unsent_bytes() < UNSENT_BYTES_MAX)
        {
            self.flush(&mut state);
        }
        let (mut state, reply) = self.wait(state, slot, patient)?;
        state.driver.host.close(slot);
        unlock(state);
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

    pub fn set_interrupt(&self, interrupt: Interrupt) {
        if let Ok(mut current) = self.interrupt.lock() {
            *current = Some(interrupt);
            self.interruptible.store(true, Ordering::Relaxed);
        }
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
        unlock(state);
        // An error could only be that the descriptor is closed, and it is not.
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
            let condvar = Arc::clone(&state.driver.host.slot(slot).condvar);
            state.wake.push(condvar);
        }
        if state.driver.host.has_event() {
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
            None => state.driver.host.has_event(),
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

    /// Waits for a reply, reading from sockets if nobody else does. Unless it is `patient`, it can be
    /// interrupted: then the slot is closed.
    fn wait<'a>(
        &'a self,
        mut state: Guard<'a>,
        slot: SlotId,
        patient: bool,
    ) -> Result<(Guard<'a>, (u32, Reply))> {
        loop {
            if let Some(reply) = state.driver.host.pop(slot) {
                self.hand_over(&mut state);
                return Ok((state, reply));
            }
            state.turns += 1;
            let mut interrupted = Ok(());
            if state.leader == Leader::Nobody {
                let done = |state: &mut State, result: Result<()>| {
                    interrupted = result;
                    (interrupted.is_err() && !patient) || state.driver.host.has_reply(slot)
                };
                state = self.lead(state, Some(slot), done)?;
            } else {
                (state, interrupted) = self.follow(state, slot)?;
            }
            if let (Err(error), false) = (interrupted, patient) {
                state.driver.host.close(slot);
                self.hand_over(&mut state);
                unlock(state);
                return Err(error);
            }
        }
    }

    /// Sleeps until there is a reply, or nobody leads, or it is time to ask whether to go on.
    fn follow<'a>(&'a self, mut state: Guard<'a>, slot: SlotId) -> Result<(Guard<'a>, Result<()>)> {
        let condvar = Arc::clone(&state.driver.host.slot(slot).condvar);
        state.driver.host.slot(slot).sleeping = true;
        state.followers.push(slot);
        for condvar in state.wake.drain(..) {
            condvar.notify_one();
        }
        let mut interrupted = Ok(());
        if self.interruptible.load(Ordering::Relaxed) {
            let (guard, waited) =
                condvar.wait_timeout(state, INTERRUPT_DELAY).map_err(|_| Error::Closed)?;
            state = guard;
            if waited.timed_out() {
                drop(state);
                interrupted = self.check_interrupt();
                state = self.lock()?;
            }
        } else {
            state = condvar.wait(state).map_err(|_| Error::Closed)?;
        }
        state.driver.host.slot(slot).sleeping = false;
        state.followers.retain(|follower| *follower != slot);
        Ok((state, interrupted))
    }

    /// Waits on the sockets and handles what arrives, until `done`, which is also told when it is
    /// interrupted.
    fn lead<'a>(
        &'a self,
        mut state: Guard<'a>,
        slot: Option<SlotId>,
        mut done: impl FnMut(&mut State, Result<()>) -> bool,
    ) -> Result<Guard<'a>> {
        let mut poll = self.poll.lock().map_err(|_| Error::Closed)?;
        let (poll, events) = &mut *poll;
        let mut interrupted = Ok(());
        // What other threads left to be sent.
        self.flush(&mut state);
        while !done(&mut state, interrupted) {
            let mut timeout = state.driver.timeout();
            // Never ZERO: the clock has begun before.
            let until = timeout.map(|timeout| self.clock.now().monotonic + timeout);
            let interruptible = slot.is_some() && self.interruptible.load(Ordering::Relaxed);
            if interruptible {
                timeout = Some(timeout.unwrap_or(INTERRUPT_DELAY).min(INTERRUPT_DELAY));
            }
            state.leader = Leader::Somebody { until, slot };
            unlock(state);
            let result = poll.poll(events, timeout);
            let nothing = result.is_err() || events.is_empty();
            interrupted = if interruptible && nothing { self.check_interrupt() } else { Ok(()) };
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
            let condvar = Arc::clone(&state.driver.host.slot(*follower).condvar);
            state.wake.push(condvar);
        } else if state.background == Background::Waiting
            || state.driver.timeout() == Some(Duration::ZERO)
        {
            state.background = Background::Awake;
            self.background.notify_one();
        }
    }
}

/// Frees the mutex, then wakes up who has to be.
fn unlock(mut state: Guard<'_>) {
    let wake = std::mem::take(&mut state.wake);
    drop(state);
    for condvar in wake {
        condvar.notify_one();
    }
}

impl Shared {
    /// Asks whether to go on waiting. The mutex must be free.
    fn check_interrupt(&self) -> Result<()> {
        let interrupt = self.interrupt.lock().map_or(None, |interrupt| interrupt.clone());
        interrupt.map_or(Ok(()), |interrupt| interrupt())
    }
}
