// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads of objects: snapshot reads, exact revisions, history, iteration.
//!
//! A read is checked twice: when it is replied, with what is known then, and at the end, when it is
//! known what was committed. Both checks are the same function.

use std::collections::BTreeSet;

use neo_common::types::{Oid, Tid};

use crate::model::{Checked, Content, Model, Violation, ensure};

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The last revision before some tid between these: they differ if the client chose the tid.
    Before {
        /// Smallest.
        low: Tid,
        /// Greatest.
        high: Tid,
    },
    /// Exactly this revision.
    At(Tid),
}

/// What was replied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Got {
    /// A revision, and the next one.
    Revision {
        /// Its tid.
        serial: Tid,
        /// The tid of the next one; `None` if it is current.
        next: Option<Tid>,
        /// Its data.
        content: Content,
    },
    /// A revision without data.
    Nothing {
        /// Its tid.
        serial: Tid,
    },
    /// There is none.
    Missing,
}

/// A read of an object.
#[derive(Clone, Debug)]
pub struct Read {
    /// Who read.
    pub client: usize,
    /// What.
    pub oid: Oid,
    /// See [`Asked`].
    pub asked: Asked,
    /// See [`Got`].
    pub got: Got,
    /// The last tid that the client told when it looked: a revision without next one was current.
    pub last_tid: Tid,
    /// Packs that were ordered when it replied.
    pub packs_count: usize,
    /// How it was read.
    pub note: &'static str,
}

impl Read {
    /// Checks it against what is known. `is_final`: all is known.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn check(&self, model: &mut Model, is_final: bool) -> Checked {
        self.try_check(model, is_final).map_err(|Violation(text)| {
            let revisions: Vec<String> = model
                .revisions(self.oid)
                .map(|tid| format!("{tid} {:?}", model.content(self.oid, tid)))
                .collect();
            Violation(format!("wrong read: {text}\n  {self:?}\n  revisions: {revisions:#?}"))
        })
    }

    fn try_check(&self, model: &mut Model, is_final: bool) -> Checked {
        let (serial, content) = match &self.got {
            Got::Revision { serial, content, .. } => (*serial, Some(content)),
            Got::Nothing { serial } => (*serial, None),
            Got::Missing => return self.check_missing(model, is_final),
        };
        model.learn(serial)?;
        match (model.content(self.oid, serial), content) {
            (None, _) => {
                return Err(Violation(format!("{serial} did not store {}", self.oid)));
            }
            (Some(expected), Some(got)) => {
                ensure!(expected == got, "{serial} stored {expected:?}, got {got:?}");
            }
            (Some(expected), None) => {
                let is_nothing = matches!(expected, Content::Nothing { .. });
                ensure!(is_nothing, "{serial} stored {expected:?}, got nothing");
            }
        }
        match self.asked {
            Asked::At(at) => ensure!(serial == at, "another revision than asked"),
            Asked::Before { low, high } => {
                ensure!(serial < high, "a revision that is too recent");
                self.check_none_between(model, serial, low, "a stale revision")?;
            }
        }
        if let Got::Revision { next, .. } = self.got {
            self.check_next(model, serial, next)?;
        }
        Ok(())
    }

    fn check_next(&self, model: &mut Model, serial: Tid, next: Option<Tid>) -> Checked {
        match next {
            Some(next) => {
                ensure!(next > serial, "the next revision is not later");
                model.learn(next)?;
                ensure!(model.content(self.oid, next).is_some(), "{next} is not a revision");
                self.check_none_between(model, serial, next, "not the next revision")
            }
            None => {
                let end = self.last_tid.next().unwrap_or(Tid::INVALID);
                self.check_none_between(model, serial, end, "said to be current, and it is not")
            }
        }
    }

    fn check_none_between(&self, model: &Model, after: Tid, end: Tid, what: &str) -> Checked {
        let mut between = model.revisions_between(self.oid, after, end);
        match between.find(|tid| !self.is_hidden(model, *tid)) {
            None => Ok(()),
            Some(tid) => Err(Violation(format!("{what}: {tid} is between {after} and {end}"))),
        }
    }

    /// Whether the client may not have been told of a revision.
    fn is_hidden(&self, model: &Model, tid: Tid) -> bool {
        matches!(model.content(self.oid, tid), Some(Content::Nothing { told: false }))
            && model.transaction(tid).is_some_and(|attempt| attempt.client != self.client)
    }

    fn check_missing(&self, model: &Model, is_final: bool) -> Checked {
        if !is_final && model.may_pack(self.oid, self.packs_count) {
            // What was packed depends on what is not known yet.
            return Ok(());
        }
        let expected = match self.asked {
            Asked::At(at) => model.content(self.oid, at).map(|_| at),
            Asked::Before { low, .. } => model.last_before(self.oid, low),
        };
        match expected {
            Some(tid) if !model.may_be_packed(self.oid, tid, self.packs_count) => {
                Err(Violation(format!("missing, instead of {tid}")))
            }
            _ => Ok(()),
        }
    }
}

/// Tids of the revisions of an object, newest first.
#[derive(Clone, Debug)]
pub struct History {
    /// The object.
    pub oid: Oid,
    /// What was replied.
    pub tids: Vec<Tid>,
    /// How many were asked.
    pub count_max: usize,
    /// The last tid that the client told before it asked.
    pub last_tid: Tid,
    /// Packs that were ordered when it was replied.
    pub packs_count: usize,
}

impl History {
    /// Checks it, once all is known.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn check(&self, model: &Model) -> Checked {
        let end = self.tids.first().and_then(|tid| tid.next()).unwrap_or(Tid::ZERO);
        let end = end.max(self.last_tid.next().unwrap_or(Tid::INVALID));
        let expected: Vec<Tid> =
            model.revisions(self.oid).rev().filter(|tid| *tid < end).take(self.count_max).collect();
        let kept = |tid: &Tid| !model.may_be_packed(self.oid, *tid, self.packs_count);
        let missing = expected.iter().find(|tid| !self.tids.contains(tid) && kept(tid));
        let unknown = self.tids.iter().find(|tid| model.content(self.oid, **tid).is_none());
        let sorted = self.tids.is_sorted_by(|a, b| a > b);
        ensure!(
            missing.is_none() && unknown.is_none() && sorted,
            "wrong history: missing {missing:?}, unknown {unknown:?}, expected {expected:?}: \
             {self:?}"
        );
        Ok(())
    }
}

/// Tids of all transactions in a range.
#[derive(Clone, Debug)]
pub struct Walk {
    /// First.
    pub start: Tid,
    /// Last, included; not later than the last tid that the client told.
    pub stop: Tid,
    /// What was found, in order.
    pub tids: Vec<Tid>,
}

impl Walk {
    /// Checks it, once all is known.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn check(&self, model: &Model) -> Checked {
        let after = self.start.previous().unwrap_or(Tid::ZERO);
        let expected: BTreeSet<Tid> =
            model.committed_between(after, self.stop).map(|(tid, _)| tid).collect();
        let found: BTreeSet<Tid> = self.tids.iter().copied().collect();
        let missing = expected.difference(&found).next();
        let unknown = found.difference(&expected).next();
        ensure!(
            missing.is_none() && unknown.is_none() && self.tids.is_sorted(),
            "wrong iteration from {} to {}: missing {missing:?}, unknown {unknown:?}",
            self.start,
            self.stop
        );
        Ok(())
    }
}

/// Oids that exist at a tid.
#[derive(Clone, Debug)]
pub struct OidWalk {
    /// When; not later than the last tid that the client told.
    pub tid: Tid,
    /// What was found.
    pub oids: Vec<Oid>,
    /// Packs that were ordered when it ended.
    pub packs_count: usize,
}

impl OidWalk {
    /// Checks it, once all is known.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn check(&self, model: &Model) -> Checked {
        let end = self.tid.next().unwrap_or(Tid::INVALID);
        let all: BTreeSet<Oid> = self.oids.iter().copied().collect();
        for oid in model.oids() {
            let last = model.last_before(oid, end);
            let exists =
                last.is_some_and(|last| matches!(model.content(oid, last), Some(Content::Data(_))));
            let packed = last.is_some_and(|last| model.may_be_packed(oid, last, self.packs_count));
            let found = all.contains(&oid);
            ensure!(
                exists == found || (packed && !found),
                "wrong list of oids at {}: {oid} found={found} exists={exists}",
                self.tid
            );
        }
        ensure!(self.oids.is_sorted(), "oids are not in order");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use neo_common::types::Ttid;

    use super::*;
    use crate::model::Write;

    const OID: Oid = Oid::new(7);

    fn content(n: u64) -> Content {
        Content::Data(Bytes::from(n.to_string()))
    }

    /// Revisions 1 to `count` of one object.
    fn model(count: u64) -> Model {
        let mut model = Model::default();
        for n in 1..=count {
            let id = model.begin(0, Ttid::new(n));
            let write = Write { base: Tid::new(n - 1), content: content(n) };
            model.attempt_mut(id).writes.insert(OID, write);
            model.finishing(id);
            model.assign(Ttid::new(n), Tid::new(n));
            model.committed(id, Tid::new(n)).unwrap();
        }
        model
    }

    fn read(before: u64, got: Got, last: u64) -> Read {
        let before = Tid::new(before);
        Read {
            client: 1,
            oid: OID,
            asked: Asked::Before { low: before, high: before },
            got,
            last_tid: Tid::new(last),
            packs_count: 0,
            note: "",
        }
    }

    fn revision(serial: u64, next: Option<u64>) -> Got {
        Got::Revision {
            serial: Tid::new(serial),
            next: next.map(Tid::new),
            content: content(serial),
        }
    }

    /// A snapshot has one right answer.
    #[test]
    fn only_the_last_revision_before_the_snapshot_is_right() {
        let mut model = model(3);
        let mut check = |before, got, last| read(before, got, last).check(&mut model, true);
        assert_eq!(check(3, revision(2, Some(3)), 3), Ok(()));
        assert!(check(3, revision(1, Some(2)), 3).unwrap_err().0.contains("stale"));
        assert!(check(2, revision(2, Some(3)), 3).unwrap_err().0.contains("too recent"));
        assert!(check(3, Got::Missing, 3).unwrap_err().0.contains("missing"));
        assert!(check(3, Got::Nothing { serial: Tid::new(2) }, 3).is_err());
        assert_eq!(check(1, Got::Missing, 3), Ok(()));
    }

    /// A revision is current as long as the client was told of no later one.
    #[test]
    fn a_revision_that_was_replaced_is_not_current() {
        let mut model = model(3);
        let mut check = |next, last| read(3, revision(2, next), last).check(&mut model, true);
        assert_eq!(check(None, 2), Ok(()));
        assert!(check(None, 3).unwrap_err().0.contains("current"));
        assert!(check(Some(4), 3).is_err());
    }

    /// Nobody committed what is read.
    #[test]
    fn data_of_nobody_is_seen() {
        let mut model = model(1);
        let got = revision(2, None);
        assert!(read(3, got, 2).check(&mut model, true).is_err());
    }
}
