// SPDX-License-Identifier: GPL-2.0-or-later
//! Several calls of one thread at once.

use std::sync::Arc;

use super::slots::SlotId;
use super::{Shared, unlock};
use crate::call::{Call, Reply};
use crate::error::{Error, Result};

/// Calls that one thread has under way.
pub(crate) struct Session {
    shared: Arc<Shared>,
    slot: Option<SlotId>,
    next_tag: u32,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, slot: None, next_tag: 0 }
    }

    /// Makes a call; its reply comes with the returned tag. It is sent by [`Session::flush`] or
    /// [`Session::wait`].
    pub fn submit(&mut self, call: Call) -> Result<u32> {
        let mut state = self.shared.enter()?;
        let slot = *self.slot.get_or_insert_with(|| state.driver.host.open());
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        self.shared.submit(&mut state, slot, tag, call);
        Ok(tag)
    }

    /// Sends what was not sent yet.
    pub fn flush(&mut self) {
        // Whatever is wrong is told to who waits.
        if let Ok(mut state) = self.shared.enter() {
            self.shared.flush(&mut state);
            unlock(state);
        }
    }

    /// Waits for the next reply, in any order.
    pub fn wait(&mut self) -> Result<(u32, Reply)> {
        let mut state = self.shared.enter()?;
        let slot = self.slot.ok_or(Error::Invalid("no call to wait for"))?;
        self.shared.flush(&mut state);
        if !state.driver.host.has_reply(slot) && !state.driver.host.is_pending(slot) {
            unlock(state);
            return Err(Error::Invalid("no call to wait for"));
        }
        match self.shared.wait(state, slot, false) {
            Ok((state, reply)) => {
                unlock(state);
                Ok(reply)
            }
            Err(error) => {
                // The slot is closed.
                self.slot = None;
                Err(error)
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(slot) = self.slot
            && let Ok(mut state) = self.shared.enter()
        {
            state.driver.host.close(slot);
            self.shared.flush(&mut state);
            unlock(state);
        }
    }
}
