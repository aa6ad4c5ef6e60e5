// SPDX-License-Identifier: GPL-2.0-or-later
//! What stands for the threads of an application above a client: tasks that make calls and wait.
//!
//! A task is an `async` function: it reads like code above the blocking interface of the client
//! crate, and the compiler makes the state machine of it. A [`Port`] is what the tasks of one client
//! process share: the calls that they make, the replies that they wait for, and the time.
//!
//! Nothing runs by itself: the owner of the client applies the calls, brings the replies and polls.

// Tasks of one thread share a port: this is a driver.
#![allow(clippy::disallowed_types)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use neo_client::Record;
use neo_client::call::{Call, EVENTS, Event, Reply};
use neo_common::engine::CallId;
use neo_common::types::{Oid, Tid};

/// Something that a task wants from the client.
#[derive(Debug)]
pub enum Wish {
    /// A call of its interface.
    Call(CallId, Call),
    /// What its cache has, without a call.
    Peek(CallId, Oid, Option<Tid>),
}

/// Reply to a [`Wish`], with the last tid that the client told when it was made and now.
#[derive(Debug)]
pub struct Replied<T> {
    /// The reply.
    pub reply: T,
    /// Last tid when the call was made.
    pub last_before: Option<Tid>,
    /// Last tid when the reply was there.
    pub last_after: Option<Tid>,
}

/// What the application has dealt with, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dealt {
    /// It is told what another client committed.
    Invalidation(Tid, Vec<Oid>),
    /// It has dealt with a transaction, of others or its own.
    Transaction(Tid),
    /// It has forgotten all that it had cached.
    Everything,
}

#[derive(Default)]
struct State {
    now: Duration,
    last_tid: Option<Tid>,
    next_call: u64,
    wishes: VecDeque<Wish>,
    replies: BTreeMap<CallId, Replied<Reply>>,
    peeked: BTreeMap<CallId, Replied<Option<Record>>>,
    /// Last tid when each call was made that is not replied.
    pending: BTreeMap<CallId, Option<Tid>>,
    events: VecDeque<Event>,
    dealt: Vec<Dealt>,
    alarms: BTreeSet<Duration>,
    stopping: bool,
}

/// Between the tasks of an application and its client.
#[derive(Clone, Default)]
pub struct Port(Rc<RefCell<State>>);

impl Port {
    // For tasks.

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.0.borrow().now
    }
    /// The last tid that the client told.
    pub fn last_tid(&self) -> Option<Tid> {
        self.0.borrow().last_tid
    }
    /// Whether tasks should come to an end.
    pub fn is_stopping(&self) -> bool {
        self.0.borrow().stopping
    }
    /// Makes a call and waits for the reply.
    pub fn call(&self, call: Call) -> impl Future<Output = Replied<Reply>> + use<> {
        let id = self.next_id();
        let mut state = self.0.borrow_mut();
        let last_tid = state.last_tid;
        state.pending.insert(id, last_tid);
        state.wishes.push_back(Wish::Call(id, call));
        self.wait(move |state| state.replies.remove(&id))
    }
    /// Looks into the cache.
    pub fn peek(
        &self,
        oid: Oid,
        before: Option<Tid>,
    ) -> impl Future<Output = Replied<Option<Record>>> + use<> {
        let id = self.next_id();
        self.0.borrow_mut().wishes.push_back(Wish::Peek(id, oid, before));
        self.wait(move |state| state.peeked.remove(&id))
    }
    /// Waits for the next event.
    pub fn event(&self) -> impl Future<Output = Event> + use<> {
        self.wait(|state| state.events.pop_front())
    }
    /// Tells what the application has dealt with, before it says so to the client.
    pub fn put_dealt(&self, dealt: Dealt) {
        self.0.borrow_mut().dealt.push(dealt);
    }
    /// Waits.
    pub fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> {
        let at = self.now() + delay;
        self.0.borrow_mut().alarms.insert(at);
        self.wait(move |state| (state.now >= at).then_some(()))
    }

    fn wait<T, F: FnMut(&mut State) -> Option<T>>(
        &self,
        mut ready: F,
    ) -> impl Future<Output = T> + use<T, F> {
        let state = Rc::clone(&self.0);
        std::future::poll_fn(move |_| match ready(&mut state.borrow_mut()) {
            Some(value) => Poll::Ready(value),
            None => Poll::Pending,
        })
    }

    fn next_id(&self) -> CallId {
        let mut state = self.0.borrow_mut();
        state.next_call += 1;
        CallId(state.next_call)
    }

    // For the owner of the client.

    /// Tells the time, and the last tid of the client.
    pub fn set_now(&self, now: Duration, last_tid: Option<Tid>) {
        let mut state = self.0.borrow_mut();
        state.now = now;
        state.last_tid = last_tid;
    }
    /// Tells tasks to come to an end.
    pub fn stop(&self) {
        self.0.borrow_mut().stopping = true;
    }
    /// Whether a task wants something.
    pub fn has_wish(&self) -> bool {
        !self.0.borrow().wishes.is_empty()
    }
    /// The next thing that a task wants.
    pub fn take_wish(&self) -> Option<Wish> {
        self.0.borrow_mut().wishes.pop_front()
    }
    /// Brings a reply of the client. `last_tid`: what it tells now.
    pub fn put_reply(&self, id: CallId, reply: Reply, last_tid: Option<Tid>) {
        let mut state = self.0.borrow_mut();
        if id == EVENTS {
            if let Ok(neo_client::call::Answer::Event(event)) = reply {
                state.events.push_back(event);
            }
            return;
        }
        let last_before = state.pending.remove(&id).expect("a call is replied once");
        let replied = Replied { reply, last_before, last_after: last_tid };
        state.replies.insert(id, replied);
    }
    /// Brings what the cache has.
    pub fn put_peeked(&self, id: CallId, record: Option<Record>, last_tid: Option<Tid>) {
        let replied = Replied { reply: record, last_before: last_tid, last_after: last_tid };
        self.0.borrow_mut().peeked.insert(id, replied);
    }
    /// What the application has dealt with since the last time.
    pub fn take_dealt(&self) -> Vec<Dealt> {
        std::mem::take(&mut self.0.borrow_mut().dealt)
    }
    /// When a task wants to go on.
    pub fn alarm_at(&self) -> Option<Duration> {
        self.0.borrow().alarms.first().copied()
    }
    /// Forgets the alarms that are due.
    pub fn clear_alarms(&self) {
        let mut state = self.0.borrow_mut();
        let now = state.now;
        state.alarms.retain(|at| *at > now);
    }
    /// Calls that are not replied.
    pub fn pending_count(&self) -> usize {
        self.0.borrow().pending.len()
    }
}

/// Tasks of one process.
#[derive(Default)]
pub struct Tasks(Vec<Pin<Box<dyn Future<Output = ()>>>>);

impl Tasks {
    /// Adds a task.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.push(Box::pin(task));
    }
    /// Lets all tasks go on as far as they can.
    pub fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        self.0.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
    }
    /// Tasks that have not come to an end.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether all tasks have come to an end.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
