// SPDX-License-Identifier: GPL-2.0-or-later
//! What a client tells its application: invalidations in order, each once, and a last tid that never
//! runs ahead of them.

use std::collections::BTreeSet;

use neo_common::types::{Oid, Tid};

use crate::model::{Checked, Content, Model, ensure};

/// A time without gap: from a tid that the client knew to be the last one, all later ones are told.
#[derive(Clone, Debug)]
struct Segment {
    start: Tid,
    end: Tid,
    told: BTreeSet<Tid>,
}

/// What one client process told.
#[derive(Debug)]
pub struct Told {
    client: usize,
    segments: Vec<Segment>,
    last_tid: Option<Tid>,
    /// What the application has dealt with since the last tid was looked at: tids that it may be
    /// now.
    allowed: BTreeSet<Tid>,
    /// It was told that it is not known what changed: the last tid may jump.
    may_jump: bool,
    /// The client is closed: nothing is in order any more.
    is_closed: bool,
}

impl Told {
    /// Of a process that starts.
    pub fn new(client: usize) -> Self {
        Self {
            client,
            segments: Vec::new(),
            last_tid: None,
            allowed: BTreeSet::new(),
            may_jump: true,
            is_closed: false,
        }
    }

    /// The application closes the client.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// Another client committed; it is dealt with once [`Told::delivered`] is called.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn invalidate(&mut self, model: &mut Model, tid: Tid, oids: &[Oid]) -> Checked {
        model.learn(tid)?;
        let attempt = model.transaction(tid).expect("just learned");
        let expected: BTreeSet<Oid> = attempt
            .writes
            .iter()
            .filter(|(_, write)| write.content != Content::Nothing { told: false })
            .map(|(oid, _)| *oid)
            .collect();
        let told: BTreeSet<Oid> = oids.iter().copied().collect();
        ensure!(told == expected, "wrong invalidation of {tid}: {told:?} instead of {expected:?}");
        ensure!(
            self.last_tid.is_some_and(|last| last < tid),
            "client {} tells {tid} after {:?}",
            self.client,
            self.last_tid
        );
        Ok(())
    }

    /// The application has dealt with a transaction, of others or its own.
    pub fn delivered(&mut self, tid: Tid) {
        self.allowed.insert(tid);
        if let Some(segment) = self.segments.last_mut() {
            segment.told.insert(tid);
        }
    }

    /// The application has forgotten all that it had cached.
    pub fn forgotten(&mut self) {
        self.may_jump = true;
    }

    /// The last tid that the client tells now.
    ///
    /// # Errors
    /// If it moved without reason.
    pub fn last_tid(&mut self, last_tid: Option<Tid>) -> Checked {
        if self.is_closed {
            return Ok(());
        }
        let allowed = std::mem::take(&mut self.allowed);
        let may_jump = std::mem::take(&mut self.may_jump);
        let (Some(tid), old) = (last_tid, self.last_tid) else {
            // Not connected yet.
            self.may_jump = may_jump;
            return Ok(());
        };
        if Some(tid) == old {
            // Later, when the connection is made; or told to be the same.
            self.may_jump = may_jump && old.is_none();
            if may_jump && old.is_some() {
                self.begin_segment(tid);
            }
            return Ok(());
        }
        self.last_tid = Some(tid);
        if may_jump {
            self.begin_segment(tid);
            return Ok(());
        }
        ensure!(
            allowed.contains(&tid) && old.is_none_or(|old| old < tid),
            "client {} moves its last tid from {old:?} to {tid}, after {allowed:?} only",
            self.client
        );
        if let Some(segment) = self.segments.last_mut() {
            segment.end = tid;
        }
        Ok(())
    }

    fn begin_segment(&mut self, start: Tid) {
        self.segments.push(Segment { start, end: start, told: BTreeSet::new() });
    }

    /// Checks that nothing was left out, once all is known.
    ///
    /// # Errors
    /// If something was.
    pub fn check(&self, model: &Model) -> Checked {
        for Segment { start, end, told } in &self.segments {
            for (tid, attempt) in model.committed_between(*start, *end) {
                ensure!(
                    told.contains(&tid) || attempt.client == self.client,
                    "client {} was never told of {tid}, but went from {start} to {end}",
                    self.client
                );
            }
        }
        Ok(())
    }
}
