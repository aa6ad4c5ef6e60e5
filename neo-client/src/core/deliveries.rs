// SPDX-License-Identifier: GPL-2.0-or-later
//! What the application is told, one thing at a time, in order of commit.
//!
//! The master tells in one sequence what others committed, and that own transactions are finished.
//! The application must be told in that order, by different threads: a listener is called for what
//! others committed, the thread that commits is told about its own. The last tid that readers see
//! moves when the application says that it has dealt with it:
//!
//! ```text
//!   received:  Invalidate 7   Finished 8   Invalidate 9   Barrier (a sync)
//!                   |
//!                   v told, then `delivered`, then the last tid is 7, then the next one is told
//! ```

use std::collections::VecDeque;

use neo_common::engine::{CallId, Io};
use neo_common::planted;
use neo_common::types::Tid;

use super::ClientCore;
use crate::call::{Answer, EVENTS, Event};
use crate::error::Error;

/// Oids that may wait for the listener. Above, it is told to forget everything.
const OIDS_LEN_MAX: usize = 1 << 20;

#[derive(Debug)]
enum Delivery {
    /// Something for the listener, and the last tid afterwards.
    Event(Event, Option<Tid>),
    /// An own transaction is committed.
    Finished(CallId, Tid),
    /// Somebody waits until all of the above is delivered.
    Barrier(CallId),
}

/// What the application is still to be told.
#[derive(Debug, Default)]
pub struct Deliveries {
    listening: bool,
    queue: VecDeque<Delivery>,
    oids_len: usize,
    /// What is being told, if anything: the last tid afterwards.
    busy: Option<Option<Tid>>,
    last_tid: Option<Tid>,
    closed: bool,
}

impl Deliveries {
    /// The last tid that was told.
    pub fn last_tid(&self) -> Option<Tid> {
        self.last_tid
    }

    /// Events are told from now on, rather than dropped.
    pub(super) fn listen(&mut self) {
        self.listening = true;
    }

    /// The first connection: nothing to forget.
    pub(super) fn start(&mut self, tid: Tid) {
        self.last_tid = self.last_tid.max(Some(tid));
    }

    pub(super) fn event(
        &mut self,
        io: &mut Io<'_, ClientCore>,
        mut event: Event,
        tid: Option<Tid>,
    ) {
        if let Event::Invalidate { oids, .. } = &event {
            self.oids_len += oids.len();
            if self.listening && self.oids_len > OIDS_LEN_MAX {
                self.oids_len -= oids.len();
                event = Event::InvalidateCache;
                // The same again would not say more.
                if let Some(Delivery::Event(Event::InvalidateCache, last)) = self.queue.back_mut() {
                    *last = tid;
                    return;
                }
            }
        }
        self.queue.push_back(Delivery::Event(event, tid));
        self.pump(io);
    }

    pub(super) fn finished(&mut self, io: &mut Io<'_, ClientCore>, call: CallId, tid: Tid) {
        self.queue.push_back(Delivery::Finished(call, tid));
        self.pump(io);
    }

    pub(super) fn barrier(&mut self, io: &mut Io<'_, ClientCore>, call: CallId) {
        self.queue.push_back(Delivery::Barrier(call));
        self.pump(io);
    }

    /// What was being told is dealt with.
    pub(super) fn delivered(&mut self, io: &mut Io<'_, ClientCore>) {
        if let Some(tid) = self.busy.take() {
            self.adopt(tid);
        }
        self.pump(io);
    }

    fn adopt(&mut self, tid: Option<Tid>) {
        // After a truncation the last tid goes back.
        if tid.is_some() {
            self.last_tid = tid;
        }
    }

    fn pump(&mut self, io: &mut Io<'_, ClientCore>) {
        while self.busy.is_none()
            && let Some(delivery) = self.queue.pop_front()
        {
            match delivery {
                Delivery::Event(event, tid) => {
                    if let Event::Invalidate { oids, .. } = &event {
                        self.oids_len -= oids.len();
                    }
                    if self.listening && !self.closed {
                        if planted!(InvalidatedAfterLastTid) {
                            self.adopt(tid);
                        }
                        io.reply(EVENTS, Ok(Answer::Event(event)));
                        self.busy = Some(tid);
                    } else {
                        self.adopt(tid);
                    }
                }
                Delivery::Finished(call, tid) => {
                    io.reply(call, Ok(Answer::Finished(tid)));
                    self.busy = Some(Some(tid).max(self.last_tid));
                }
                Delivery::Barrier(call) => io.reply(call, Ok(Answer::Tid(self.last_tid))),
            }
        }
    }

    /// Tells those that wait what they can still be told.
    pub(super) fn close(&mut self, io: &mut Io<'_, ClientCore>) {
        self.closed = true;
        for delivery in std::mem::take(&mut self.queue) {
            match delivery {
                Delivery::Event(..) => {}
                Delivery::Finished(call, tid) => io.reply(call, Ok(Answer::Finished(tid))),
                Delivery::Barrier(call) => io.reply(call, Err(Error::Closed)),
            }
        }
        self.oids_len = 0;
    }
}
