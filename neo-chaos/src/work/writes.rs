// SPDX-License-Identifier: GPL-2.0-or-later
//! Operations that write: transfers, counters, objects that come and go, undo, pack.

use std::time::Duration;

use bytes::Bytes;
use neo_client::{Error, Result};
use neo_common::time::{tid_from_time, time_from_tid};
use neo_common::types::{Oid, Tid};
use neo_sim::workload::scene::Kind;
use neo_sim::workload::write::ACCOUNT;

use super::attempt::Attempt;
use super::session::{Found, Objects, Which, Worker};
use crate::history::now;

/// Objects of each kind that all clients share.
const ACCOUNTS_COUNT: usize = 16;
const COUNTERS_COUNT: usize = 4;
const BLOBS_COUNT: usize = 12;
/// Objects that a process makes and may delete, at most, with those that all share.
const BLOBS_COUNT_MAX: usize = 40;
/// One transaction out of so many is aborted at some step, on purpose.
const ABORT_ONE_IN: u64 = 20;
/// Only what is younger is undone, and only what is older is packed: a storage can not tell an object
/// that was created from one whose earlier revisions were packed away (see `docs/simulation.md`).
const UNDO_AGE_MAX: Duration = Duration::from_secs(5);
const PACK_AGE_MIN: Duration = Duration::from_secs(40);

impl Worker {
    fn filler(&mut self) -> usize {
        match self.prng.below(300) {
            0 => 20_000,
            1..10 => 3_000,
            _ => self.prng.below(200),
        }
    }

    /// Runs a transaction to its end.
    fn attempt(
        &mut self,
        operation: &'static str,
        resolves: bool,
        act: impl FnOnce(&mut Self, &mut Attempt) -> Result<()>,
    ) -> Result<bool> {
        let mut attempt = Attempt::begin(self, operation, resolves)?;
        let result = act(self, &mut attempt);
        if result.is_ok() && !self.prng.one_in(ABORT_ONE_IN) {
            return match attempt.commit() {
                Ok(_) => Ok(true),
                Err(error) => {
                    self.told_failure = true;
                    Err(error)
                }
            };
        }
        attempt.give_up(result.as_ref().err());
        self.told_failure = result.is_err();
        result.map(|()| false)
    }

    /// Moves an amount between accounts. `checked`: relying on a third account.
    pub fn transfer(&mut self, checked: bool) -> Result<()> {
        let before = self.snapshot()?;
        let oids = self.choose(Kind::Account, 3);
        let [from, to, other] = oids[..] else { return Ok(()) };
        let (Some((from_serial, from_value)), Some((to_serial, to_value))) =
            (self.load_value(from, before)?, self.load_value(to, before)?)
        else {
            return Ok(());
        };
        let relied = if checked { self.load_value(other, before)? } else { None };
        let amount = 1 + self.prng.below(10) as i64;
        let operation = if checked { "checked transfer" } else { "transfer" };
        self.attempt(operation, false, |worker, attempt| {
            if let Some((serial, _)) = relied {
                attempt.check(other, serial)?;
            }
            let filler_len = worker.filler();
            let data = worker.value(Kind::Account, from_value.amount - amount, filler_len);
            attempt.store(from, from_serial, Some(data))?;
            if checked && worker.prng.one_in(2) {
                // Of an object that is stored as well.
                attempt.check(to, to_serial)?;
            }
            let data = worker.value(Kind::Account, to_value.amount + amount, 0);
            attempt.store(to, to_serial, Some(data))
        })?;
        Ok(())
    }

    /// Increments counters; conflicts are resolved.
    pub fn increment(&mut self) -> Result<()> {
        let before = self.snapshot()?;
        let count = 1 + self.prng.below(3);
        let mut values = Vec::new();
        for oid in self.choose(Kind::Counter, count) {
            if let Some((serial, value)) = self.load_value(oid, before)? {
                values.push((oid, serial, value.amount));
            }
        }
        self.attempt("increment", true, |worker, attempt| {
            for (oid, serial, amount) in values {
                let data = worker.value(Kind::Counter, amount + 1, 0);
                attempt.store(oid, serial, Some(data))?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Writes, creates and deletes objects.
    pub fn blobs(&mut self) -> Result<()> {
        let before = self.snapshot()?;
        let count = 1 + self.prng.below(4);
        let existing = self.choose(Kind::Blob, usize::MAX).len();
        let mut changes = Vec::new();
        for oid in self.choose(Kind::Blob, count) {
            let serial = match self.load(oid, Which::Before(before))? {
                Found::Revision(serial, _) | Found::Nothing(serial) => serial,
                Found::Missing => continue,
            };
            changes.push((oid, serial, self.prng.one_in(5)));
        }
        let mut created = Vec::new();
        if existing < BLOBS_COUNT_MAX {
            for _ in 0..self.prng.below(3) {
                created.push(self.shared.client.new_oid()?);
            }
        }
        changes.extend(created.iter().map(|oid| (*oid, Tid::ZERO, false)));
        let is_committed = self.attempt("blobs", false, |worker, attempt| {
            for (oid, serial, deleted) in changes {
                let filler_len = worker.filler();
                let data = worker.value(Kind::Blob, 0, filler_len);
                attempt.store(oid, serial, Some(data).filter(|_| !deleted))?;
                if worker.prng.one_in(10) {
                    // Again in the same transaction.
                    let data = worker.value(Kind::Blob, 1, 0);
                    attempt.store(oid, serial, Some(data))?;
                }
            }
            Ok(())
        })?;
        if is_committed {
            self.shared.add_blobs(&created);
        }
        Ok(())
    }

    /// A transaction without object.
    pub fn empty(&mut self) -> Result<()> {
        self.attempt("empty", false, |_, _| Ok(()))?;
        Ok(())
    }

    /// Undoes a recent transaction, if nothing was changed since.
    pub fn undo(&mut self) -> Result<()> {
        let is_young = |tid: Tid| age(tid).is_some_and(|age| age < UNDO_AGE_MAX);
        let Some(undone) = self.any_transaction(10).filter(|tid| is_young(*tid)) else {
            return Ok(());
        };
        let info = match self.shared.client.transaction_info(undone) {
            // A former primary master may have told it.
            Err(Error::TidNotFound(_)) => return Ok(()),
            info => info?,
        };
        if info.oids.is_empty() {
            return Ok(());
        }
        for oid in &info.oids {
            // If it was created: see `PACK_AGE_MIN`.
            if self.load(*oid, Which::Before(undone))? == Found::Missing
                || !self.is_current(*oid, undone)?
            {
                return Ok(());
            }
        }
        self.attempt("undo", false, |worker, attempt| {
            let undo = || Error::Undo { reason: "not the last change", oid: None };
            let oids = attempt.undo(undone, &info.oids)?;
            // What it is based on is not told. It can only be later than before, and not later than now.
            for oid in oids {
                if !worker.is_current(oid, undone)? {
                    return Err(undo());
                }
            }
            if is_young(undone) { Ok(()) } else { Err(undo()) }
        })?;
        Ok(())
    }

    fn is_current(&self, oid: Oid, tid: Tid) -> Result<bool> {
        Ok(match self.load(oid, Which::Current)? {
            Found::Revision(serial, _) | Found::Nothing(serial) => serial == tid,
            Found::Missing => false,
        })
    }

    /// Orders a pack of all objects or some.
    pub fn pack(&mut self) -> Result<()> {
        let oids = match self.prng.one_in(2) {
            true => None,
            false => {
                let mut oids: Vec<Oid> = (0..4).filter_map(|_| self.any_object()).collect();
                oids.sort_unstable();
                oids.dedup();
                Some(oids)
            }
        };
        let last = self.shared.client.sync()?;
        let Some(tid) = earlier(last, PACK_AGE_MIN) else { return Ok(()) };
        self.attempt("pack", false, |_, attempt| attempt.set_pack(tid, oids))?;
        Ok(())
    }

    /// Makes the objects that all clients share, one kind at a time.
    pub fn populate(&mut self) -> Result<Objects> {
        let mut objects = Objects::default();
        for (kind, count, amount) in [
            (Kind::Account, ACCOUNTS_COUNT, ACCOUNT),
            (Kind::Counter, COUNTERS_COUNT, 0),
            (Kind::Blob, BLOBS_COUNT, 0),
        ] {
            let mut oids = Vec::new();
            for _ in 0..count {
                oids.push(self.shared.client.new_oid()?);
            }
            let mut attempt = Attempt::begin(self, "populate", false)?;
            for oid in &oids {
                let data: Bytes = self.value(kind, amount, 10);
                attempt.store(*oid, Tid::ZERO, Some(data))?;
            }
            attempt.commit()?;
            objects.0.insert(kind, oids);
        }
        Ok(objects)
    }
}

/// How long ago a tid was given, if that is in the past.
fn age(tid: Tid) -> Option<Duration> {
    let time = u64::try_from(time_from_tid(tid)).ok()?;
    now().checked_sub(time).map(Duration::from_micros)
}

/// A tid of an earlier time.
fn earlier(tid: Tid, by: Duration) -> Option<Tid> {
    let time = u64::try_from(time_from_tid(tid)).ok()?.checked_sub(by.as_micros() as u64)?;
    Some(tid_from_time(time))
}
