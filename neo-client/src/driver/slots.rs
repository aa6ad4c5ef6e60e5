// SPDX-License-Identifier: GPL-2.0-or-later
//! Who gets which reply.
//!
//! A *slot* belongs to a thread that makes calls. The id of a call is the number of its slot and a
//! tag that the thread chose. A slot that is given back while calls are under way is used again only
//! once they are replied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar};

use neo_common::engine::{CallId, JobId};
use neo_common::net::Host;

use crate::call::{Answer, Call, EVENTS, Event, Reply};
use crate::core::ClientCore;

/// Number of a slot.
pub(super) type SlotId = u32;

/// For calls whose reply nobody wants.
pub(super) const NOBODY: CallId = CallId(u64::MAX - 1);

/// The id of a call.
pub(super) fn call_id(slot: SlotId, tag: u32) -> CallId {
    CallId(u64::from(slot) << 32 | u64::from(tag))
}

/// Replies of one thread.
#[derive(Default)]
pub(super) struct Slot {
    replies: VecDeque<(u32, Reply)>,
    /// Calls without reply.
    pending: u32,
    /// The thread sleeps until there is a reply, or it has to read.
    pub sleeping: bool,
    /// The thread does not want replies any more.
    dead: bool,
    /// Where the thread sleeps.
    pub condvar: Arc<Condvar>,
}

/// Replies of all threads, and events.
#[derive(Default)]
pub(super) struct Replies {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    /// For the listener.
    pub events: VecDeque<Event>,
    /// To be saved.
    pub masters: Option<Vec<SocketAddr>>,
    /// Sleeping threads that have a reply.
    pub awake: Vec<SlotId>,
    /// What has to be done because nobody wants a reply.
    pub orphans: Vec<Call>,
}

impl Replies {
    /// Whether the background thread has something to do.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty() || self.masters.is_some()
    }

    pub fn open(&mut self) -> SlotId {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        self.slots.push(Slot::default());
        // A slot per thread or iterator: memory ends before numbers do.
        (self.slots.len() - 1) as SlotId
    }

    pub fn slot(&mut self, slot: SlotId) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    /// A call is made.
    pub fn expect(&mut self, slot: SlotId) {
        self.slot(slot).pending += 1;
    }

    pub fn pop(&mut self, slot: SlotId) -> Option<(u32, Reply)> {
        self.slot(slot).replies.pop_front()
    }

    pub fn has_reply(&mut self, slot: SlotId) -> bool {
        !self.slot(slot).replies.is_empty()
    }

    /// Whether calls of a slot are still to be replied.
    pub fn is_pending(&mut self, slot: SlotId) -> bool {
        self.slot(slot).pending != 0
    }

    pub fn close(&mut self, id: SlotId) {
        let slot = self.slot(id);
        let unwanted = std::mem::take(&mut slot.replies);
        slot.dead = true;
        if slot.pending == 0 {
            self.release(id);
        }
        for (_, reply) in unwanted {
            self.orphan(reply);
        }
    }

    fn release(&mut self, id: SlotId) {
        self.slot(id).dead = false;
        self.free.push(id);
    }

    /// What the core waits for although the thread is gone.
    fn orphan(&mut self, reply: Reply) {
        match reply {
            Ok(Answer::Object(object)) => self.orphans.push(Call::Forget { load: object.load }),
            Ok(Answer::Begun(ttid)) => self.orphans.push(Call::Abort { ttid }),
            Ok(Answer::Finished(_)) => self.orphans.push(Call::Delivered),
            _ => {}
        }
    }
}

impl Host<ClientCore> for Replies {
    fn submit(&mut self, _: JobId, job: Infallible) {
        match job {}
    }

    fn done(&mut self) -> Option<(JobId, Infallible)> {
        None
    }

    fn reply(&mut self, id: CallId, reply: Reply) {
        if id == EVENTS {
            match reply {
                Ok(Answer::Event(event)) => self.events.push_back(event),
                Ok(Answer::Masters(masters)) => self.masters = Some(masters),
                _ => {}
            }
            return;
        }
        if id == NOBODY {
            return;
        }
        let (slot_id, tag) = ((id.0 >> 32) as SlotId, id.0 as u32);
        let Some(slot) = self.slots.get_mut(slot_id as usize) else { return };
        slot.pending = slot.pending.saturating_sub(1);
        if slot.dead {
            if slot.pending == 0 {
                self.release(slot_id);
            }
            self.orphan(reply);
            return;
        }
        slot.replies.push_back((tag, reply));
        if slot.sleeping {
            slot.sleeping = false;
            self.awake.push(slot_id);
        }
    }
}
