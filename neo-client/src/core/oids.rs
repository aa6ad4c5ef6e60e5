// SPDX-License-Identifier: GPL-2.0-or-later
//! Reserved oids. Upstream: client/app.py, `new_oid`.
//!
//! They are reserved at the primary master by hundreds, and given up with the connection to it:
//! another master does not know that they were reserved.

use std::collections::VecDeque;

use neo_common::engine::{CallId, Io};
use neo_common::limits::NEW_OIDS_COUNT;
use neo_common::types::Oid;

use super::ClientCore;
use super::master::MasterOp;
use crate::call::Answer;
use crate::error::Error;

/// Oids that nobody else gets.
#[derive(Debug, Default)]
pub struct OidPool {
    /// Reserved, not given yet.
    oids: VecDeque<Oid>,
    /// Who waits for one.
    waiting: VecDeque<CallId>,
    /// Whether more are asked.
    asked: bool,
    /// The greatest one given.
    last: Oid,
}

impl OidPool {
    pub(super) fn last(&self) -> Oid {
        self.last
    }
    /// Gives up what is reserved.
    pub(super) fn clear(&mut self) {
        self.oids.clear();
    }
    fn give(&mut self) -> Option<Oid> {
        let oid = self.oids.pop_front()?;
        self.last = self.last.max(oid);
        Some(oid)
    }
}

impl ClientCore {
    pub(super) fn new_oid(&mut self, io: &mut Io<'_, Self>, call: CallId) {
        if self.options.read_only {
            io.reply(call, Err(Error::ReadOnly(String::new())));
            return;
        }
        if let Some(oid) = self.oids.give() {
            io.reply(call, Ok(Answer::Oid(oid)));
            return;
        }
        self.oids.waiting.push_back(call);
        self.ask_oids(io);
    }

    fn ask_oids(&mut self, io: &mut Io<'_, Self>) {
        if !self.oids.asked {
            self.oids.asked = true;
            self.master_call(io, MasterOp::NewOids);
        }
    }

    /// The master reserved these.
    pub(super) fn new_oids(&mut self, io: &mut Io<'_, Self>, oids: Vec<Oid>) {
        if oids.is_empty() {
            self.new_oids_failed(io, Error::Refused("the master gave no oid".into()));
            return;
        }
        self.oids.asked = false;
        self.oids.oids.extend(oids.into_iter().take(NEW_OIDS_COUNT as usize));
        while !self.oids.waiting.is_empty() {
            let Some(oid) = self.oids.give() else {
                self.ask_oids(io);
                return;
            };
            if let Some(call) = self.oids.waiting.pop_front() {
                io.reply(call, Ok(Answer::Oid(oid)));
            }
        }
    }

    pub(super) fn new_oids_failed(&mut self, io: &mut Io<'_, Self>, error: Error) {
        self.oids.asked = false;
        for call in std::mem::take(&mut self.oids.waiting) {
            io.reply(call, Err(error.clone()));
        }
    }
}
