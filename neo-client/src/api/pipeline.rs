// SPDX-License-Identifier: GPL-2.0-or-later
//! Many requests at once from one thread.
//!
//! A round trip costs much more than a request, so whoever needs many answers keeps a window of
//! requests under way: [`Ordered`] gives the answers in the order of the requests.

use std::collections::VecDeque;
use std::sync::Arc;

use neo_common::protocol::Packet;
use neo_common::types::{Oid, Tid};

use super::client::{unexpected, verify};
use crate::call::{Answer, Call, Reply};
use crate::driver::{Session, Shared};
use crate::error::{Error, Result};

/// Requests that one thread keeps under way.
pub(super) const WINDOW_LEN: usize = 64;

/// Replies in the order of the calls.
pub(super) struct Ordered {
    session: Session,
    /// Replies received, from the oldest call that was not popped.
    replies: VecDeque<Option<Reply>>,
    /// Number of the first of them.
    first: u32,
}

impl Ordered {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { session: shared.session(), replies: VecDeque::new(), first: 0 }
    }

    /// Calls whose reply was not popped.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Makes a call. It is sent with the next ones, at the latest by [`Ordered::flush`] or
    /// [`Ordered::pop`].
    pub fn push(&mut self, call: Call) -> Result<()> {
        let tag = self.session.submit(call)?;
        debug_assert_eq!(tag, self.first.wrapping_add(self.replies.len() as u32));
        self.replies.push_back(None);
        Ok(())
    }

    /// Sends what was not sent yet.
    pub fn flush(&mut self) {
        self.session.flush();
    }

    /// Waits for the reply to the oldest call; `None` if there is none.
    pub fn pop(&mut self) -> Option<Reply> {
        loop {
            let oldest = self.replies.front_mut()?;
            if let Some(reply) = oldest.take() {
                self.replies.pop_front();
                self.first = self.first.wrapping_add(1);
                return Some(reply);
            }
            match self.session.wait() {
                Ok((tag, reply)) => {
                    let index = tag.wrapping_sub(self.first) as usize;
                    self.replies[index] = Some(reply);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next answer, of a [`Call::Read`].
    pub fn pop_packet(&mut self) -> Option<Result<Packet>> {
        self.pop().map(|reply| match reply? {
            Answer::Packet(packet) => Ok(packet),
            other => Err(unexpected(&other)),
        })
    }
}

/// Loads through the cache, with at most `window` requests under way, and tells `done` about each
/// result.
pub(super) fn load_many(
    shared: &Arc<Shared>,
    window: usize,
    loads: impl Iterator<Item = (Oid, Option<Tid>, Option<Tid>)>,
    mut done: impl FnMut(Oid, Result<()>) -> Result<()>,
) -> Result<()> {
    let mut session = shared.session();
    let mut loads = loads.fuse();
    // Objects under way, by tag.
    let mut oids = std::collections::BTreeMap::new();
    loop {
        while oids.len() < window.max(1)
            && let Some((oid, at, before)) = loads.next()
        {
            oids.insert(session.submit(Call::Load { oid, at, before })?, oid);
        }
        if oids.is_empty() {
            return Ok(());
        }
        let (tag, reply) = session.wait()?;
        let Some(oid) = oids.remove(&tag) else { continue };
        match reply {
            Ok(Answer::Cached(_)) => done(oid, Ok(()))?,
            Ok(Answer::Object(object)) => match verify(oid, &object) {
                Ok(data) => {
                    shared.call(Call::Loaded { load: object.load, data })?;
                    done(oid, Ok(()))?;
                }
                Err(_) => {
                    oids.insert(session.submit(Call::Rejected { load: object.load })?, oid);
                }
            },
            Ok(other) => return Err(unexpected(&other)),
            // All cells have damaged data: whoever really wants it will be told.
            Err(Error::NoStorage(_)) => done(oid, Ok(()))?,
            Err(error) => done(oid, Err(error))?,
        }
    }
}
