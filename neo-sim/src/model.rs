// SPDX-License-Identifier: GPL-2.0-or-later
//! What a correct cluster contains: a sequential model of the object store.
//!
//! Each transaction that an application begins is an [`Attempt`]. What becomes of it is learned from
//! what the cluster says to anybody: the answer to the commit, an invalidation, a load that returns
//! what it wrote. Once known to be committed, it is so for ever, and its place in the history of each
//! object must fit: what it stored, or checked, was based on the revision just before it. An attempt
//! whose outcome nobody knows (the client died while it committed) is *in doubt* until somebody sees
//! it, or until the end, when databases are looked at.
//!
//! The model knows nothing of how the cluster works but this: which tid the master gave to which
//! ttid (`Model::assigned`), so that a tid that is seen names an attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use neo_common::types::{Oid, Tid, Ttid};

/// Names an [`Attempt`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AttemptId(pub usize);

/// Something that a correct cluster never does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Result of a check.
pub type Checked = Result<(), Violation>;

/// Fails a check unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($arg:tt)+) => {
        if !$condition {
            return Err($crate::model::Violation(format!($($arg)+)));
        }
    };
}
pub(crate) use ensure;

/// What a revision contains.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Data.
    Data(Bytes),
    /// Nothing: deleted, or creation undone.
    Nothing {
        /// Whether other clients are told. Like upstream's, clients do not tell that an object is
        /// deleted: only garbage is.
        told: bool,
    },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(data) => {
                let text = String::from_utf8_lossy(data);
                write!(f, "{:?}", text.split('\n').next().unwrap_or_default())
            }
            Self::Nothing { .. } => f.write_str("nothing"),
        }
    }
}

/// What a transaction does to an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// Revision on which it is based; ZERO for a new object.
    pub base: Tid,
    /// What it becomes.
    pub content: Content,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Not decided: the commit was not asked.
    Open,
    /// The commit was asked.
    Finishing,
    /// The commit was asked, and nobody waits for the answer any more.
    InDoubt,
    /// Committed.
    Committed(Tid),
    /// Not committed, and never will be.
    Aborted,
}

/// Metadata of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Who.
    pub user: Bytes,
    /// What.
    pub description: Bytes,
}

/// What is packed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pack {
    /// Revisions that are not current then are removed.
    pub tid: Tid,
    /// Objects; all if `None`.
    pub oids: Option<BTreeSet<Oid>>,
}

/// A transaction that an application began.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which client.
    pub client: usize,
    /// Its temporary id.
    pub ttid: Ttid,
    /// What it stores.
    pub writes: BTreeMap<Oid, Write>,
    /// Serials that it relies on, without storing.
    pub checks: BTreeMap<Oid, Tid>,
    /// Pack order that it carries.
    pub pack: Option<Pack>,
    /// Who and what.
    pub metadata: Metadata,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// See the module documentation.
#[derive(Default)]
pub struct Model {
    attempts: Vec<Attempt>,
    by_ttid: BTreeMap<Ttid, Vec<AttemptId>>,
    /// Ttids to which the master gave a tid.
    assigned: BTreeMap<Tid, BTreeSet<Ttid>>,
    committed: BTreeMap<Tid, AttemptId>,
    /// Committed revisions.
    revisions: BTreeMap<Oid, BTreeMap<Tid, AttemptId>>,
    /// Pack orders whose commit was asked.
    packs: Vec<AttemptId>,
}

impl Model {
    // What applications do.

    /// A transaction begins.
    pub fn begin(&mut self, client: usize, ttid: Ttid) -> AttemptId {
        let id = AttemptId(self.attempts.len());
        self.attempts.push(Attempt {
            client,
            ttid,
            writes: BTreeMap::new(),
            checks: BTreeMap::new(),
            pack: None,
            metadata: Metadata::default(),
            outcome: Outcome::Open,
        });
        self.by_ttid.entry(ttid).or_default().push(id);
        id
    }
    /// An attempt.
    pub fn attempt(&self, id: AttemptId) -> &Attempt {
        &self.attempts[id.0]
    }
    /// An attempt whose outcome is open.
    pub fn attempt_mut(&mut self, id: AttemptId) -> &mut Attempt {
        &mut self.attempts[id.0]
    }
    /// All attempts.
    pub fn attempts(&self) -> impl DoubleEndedIterator<Item = (AttemptId, &Attempt)> {
        self.attempts.iter().enumerate().map(|(index, attempt)| (AttemptId(index), attempt))
    }
    /// The commit is asked.
    pub fn finishing(&mut self, id: AttemptId) {
        let attempt = &mut self.attempts[id.0];
        assert_eq!(attempt.outcome, Outcome::Open, "a commit is asked once");
        attempt.outcome = Outcome::Finishing;
        if attempt.pack.is_some() {
            self.packs.push(id);
        }
    }
    /// The application is told that it is not committed, or aborts it.
    ///
    /// # Errors
    /// If it is known to be committed.
    pub fn aborted(&mut self, id: AttemptId) -> Checked {
        let attempt = &mut self.attempts[id.0];
        if let Outcome::Committed(tid) = attempt.outcome {
            let ttid = attempt.ttid;
            return Err(Violation(format!("{ttid} is committed as {tid}, its client was told no")));
        }
        attempt.outcome = Outcome::Aborted;
        Ok(())
    }
    /// The client of these attempts is gone.
    pub fn client_gone(&mut self, client: usize) {
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.client == client) {
            attempt.outcome = match attempt.outcome {
                Outcome::Open => Outcome::Aborted,
                Outcome::Finishing => Outcome::InDoubt,
                other => other,
            };
        }
    }

    // What the cluster says.

    /// The master gives a tid to a transaction.
    pub fn assign(&mut self, ttid: Ttid, tid: Tid) {
        self.assigned.entry(tid).or_default().insert(ttid);
    }

    /// A transaction with this tid is committed.
    ///
    /// # Errors
    /// If no attempt can have it, or if it does not fit in the history.
    pub fn learn(&mut self, tid: Tid) -> Checked {
        if self.committed.contains_key(&tid) {
            return Ok(());
        }
        let ttids = self.assigned.get(&tid).into_iter().flatten();
        let ids = ttids.filter_map(|ttid| self.by_ttid.get(ttid)).flatten().copied();
        let possible = |id: &AttemptId| {
            matches!(self.attempts[id.0].outcome, Outcome::Finishing | Outcome::InDoubt)
        };
        let ids: Vec<AttemptId> = ids.filter(possible).collect();
        match ids[..] {
            [id] => self.committed(id, tid),
            [] => Err(Violation(format!(
                "{tid} was given to {:?}, no such transaction can be committed: {:?}",
                self.assigned.get(&tid),
                self.assigned
                    .get(&tid)
                    .into_iter()
                    .flatten()
                    .filter_map(|ttid| self.by_ttid.get(ttid))
                    .flatten()
                    .map(|id| &self.attempts[id.0])
                    .collect::<Vec<_>>()
            ))),
            _ => Err(Violation(format!("several transactions can have {tid}: {ids:?}"))),
        }
    }

    /// This attempt is committed with this tid.
    ///
    /// # Errors
    /// If it cannot be, or if it does not fit in the history.
    pub fn committed(&mut self, id: AttemptId, tid: Tid) -> Checked {
        let Attempt { ttid, outcome, .. } = self.attempts[id.0];
        match outcome {
            Outcome::Committed(known) if known == tid => return Ok(()),
            Outcome::Finishing | Outcome::InDoubt => {}
            outcome => {
                return Err(Violation(format!("{ttid} is {outcome:?}, and committed as {tid}")));
            }
        }
        ensure!(ttid.as_tid() <= tid, "{ttid} is committed as {tid}, which is earlier");
        if let Some(other) = self.committed.insert(tid, id) {
            return Err(Violation(format!("{tid} was given to {:?} and to {ttid}", other)));
        }
        self.attempts[id.0].outcome = Outcome::Committed(tid);
        let attempt = self.attempts[id.0].clone();
        // What it is based on is committed too.
        for base in
            attempt.writes.values().map(|write| write.base).chain(attempt.checks.values().copied())
        {
            if base != Tid::ZERO {
                self.learn(base)?;
            }
        }
        for oid in attempt.writes.keys() {
            self.revisions.entry(*oid).or_default().insert(tid, id);
        }
        self.check_place(tid)?;
        // Those that were based on what was there before.
        let later: BTreeSet<Tid> = attempt
            .writes
            .keys()
            .filter_map(|oid| Some(*self.revisions[oid].range(tid.next()?..).next()?.0))
            .collect();
        for tid in later {
            self.check_place(tid)?;
        }
        Ok(())
    }

    /// Checks that a committed transaction is based on what was just before it.
    fn check_place(&self, tid: Tid) -> Checked {
        let attempt = &self.attempts[self.committed[&tid].0];
        for (oid, write) in &attempt.writes {
            let before = self.last_before(*oid, tid).unwrap_or(Tid::ZERO);
            ensure!(
                before == write.base || self.is_forgotten(*oid, before),
                "lost update of {oid}: {tid} is based on {}, but {before} is between",
                write.base
            );
        }
        for (oid, serial) in &attempt.checks {
            let before = self.last_before(*oid, tid).unwrap_or(Tid::ZERO);
            ensure!(
                before == *serial || self.is_forgotten(*oid, before),
                "write skew on {oid}: {tid} relies on {serial}, but {before} is between"
            );
        }
        Ok(())
    }

    /// Whether an object whose last revision is this one may have been packed away completely.
    /// Nothing is known of it then, and (as with FileStorage) any serial is accepted.
    fn is_forgotten(&self, oid: Oid, last: Tid) -> bool {
        matches!(self.content(oid, last), Some(Content::Nothing { .. }))
            && self.may_be_packed(oid, last, self.packs.len())
    }

    /// Whether an object may be deleted, and packed away completely.
    pub fn is_gone(&self, oid: Oid) -> bool {
        self.revisions(oid).next_back().is_some_and(|last| self.is_forgotten(oid, last))
    }

    /// Checks the place of all transactions again, those that were committed out of order included.
    ///
    /// # Errors
    /// The first one that does not fit.
    pub fn check_places(&self) -> Checked {
        self.committed.keys().try_for_each(|tid| self.check_place(*tid))
    }

    // What is known.

    /// Last known revision of an object before a tid.
    pub fn last_before(&self, oid: Oid, before: Tid) -> Option<Tid> {
        Some(*self.revisions.get(&oid)?.range(..before).next_back()?.0)
    }
    /// Known revisions of an object.
    pub fn revisions(&self, oid: Oid) -> impl DoubleEndedIterator<Item = Tid> {
        self.revisions.get(&oid).into_iter().flat_map(BTreeMap::keys).copied()
    }
    /// Known revisions of an object between two tids, both excluded.
    pub fn revisions_between(&self, oid: Oid, after: Tid, end: Tid) -> impl Iterator<Item = Tid> {
        let range = after.next().filter(|first| *first < end).map(|first| first..end);
        let revisions = self.revisions.get(&oid);
        let found = range.zip(revisions).map(|(range, revisions)| revisions.range(range));
        found.into_iter().flatten().map(|(tid, _)| *tid)
    }
    /// Objects that have revisions.
    pub fn oids(&self) -> impl Iterator<Item = Oid> {
        self.revisions.keys().copied()
    }
    /// What a revision contains, if it is known.
    pub fn content(&self, oid: Oid, tid: Tid) -> Option<&Content> {
        let id = self.revisions.get(&oid)?.get(&tid)?;
        self.attempts[id.0].writes.get(&oid).map(|write| &write.content)
    }
    /// Transactions that are known to be committed.
    pub fn committed_tids(&self) -> impl DoubleEndedIterator<Item = Tid> {
        self.committed.keys().copied()
    }
    /// Transactions that are known to be committed, between two tids (the first one excluded).
    pub fn committed_between(
        &self,
        after: Tid,
        last: Tid,
    ) -> impl Iterator<Item = (Tid, &Attempt)> {
        let range = after.next().filter(|first| *first <= last).map(|first| first..=last);
        range
            .into_iter()
            .flat_map(|range| self.committed.range(range))
            .map(|(tid, id)| (*tid, &self.attempts[id.0]))
    }
    /// A transaction that is known to be committed.
    pub fn transaction(&self, tid: Tid) -> Option<&Attempt> {
        self.committed.get(&tid).map(|id| &self.attempts[id.0])
    }
    /// Attempts with this ttid.
    pub fn by_ttid(&self, ttid: Ttid) -> &[AttemptId] {
        self.by_ttid.get(&ttid).map_or(&[], Vec::as_slice)
    }

    /// Whether one of the first `packs_count` packs that were ordered may have removed a revision.
    pub fn may_be_packed(&self, oid: Oid, tid: Tid, packs_count: usize) -> bool {
        self.packs.iter().take(packs_count).any(|id| {
            let attempt = &self.attempts[id.0];
            attempt.outcome != Outcome::Aborted
                && attempt.pack.as_ref().is_some_and(|pack| self.is_removed(oid, tid, pack))
        })
    }
    /// Whether a pack that is committed removes a revision.
    pub fn is_packed(&self, oid: Oid, tid: Tid) -> bool {
        self.is_packed_until(oid, tid, Tid::MAX)
    }
    /// The same for packs that were ordered up to some transaction.
    pub fn is_packed_until(&self, oid: Oid, tid: Tid, last_pack: Tid) -> bool {
        self.packs.iter().any(|id| {
            let attempt = &self.attempts[id.0];
            matches!(attempt.outcome, Outcome::Committed(pack) if pack <= last_pack)
                && attempt.pack.as_ref().is_some_and(|pack| self.is_removed(oid, tid, pack))
        })
    }
    /// Pack orders whose commit was asked so far.
    pub fn packs_count(&self) -> usize {
        self.packs.len()
    }
    /// Whether an object may be concerned by one of the first packs that were ordered.
    pub fn may_pack(&self, oid: Oid, packs_count: usize) -> bool {
        self.packs.iter().take(packs_count).any(|id| {
            let attempt = &self.attempts[id.0];
            let pack = attempt.pack.as_ref().filter(|_| attempt.outcome != Outcome::Aborted);
            pack.is_some_and(|pack| pack.oids.as_ref().is_none_or(|oids| oids.contains(&oid)))
        })
    }

    fn is_removed(&self, oid: Oid, tid: Tid, pack: &Pack) -> bool {
        let is_concerned = pack.oids.as_ref().is_none_or(|oids| oids.contains(&oid));
        if !is_concerned || tid > pack.tid {
            return false;
        }
        let is_nothing = matches!(self.content(oid, tid), Some(Content::Nothing { .. }));
        let last = pack.tid.next().and_then(|end| self.last_before(oid, end));
        is_nothing || last.is_some_and(|last| last > tid)
    }

    /// The last transaction that ordered a pack and may be committed.
    pub fn last_pack(&self) -> Option<Tid> {
        let packs = self.packs.iter().filter_map(|id| match self.attempts[id.0].outcome {
            Outcome::Committed(tid) => Some(tid),
            _ => None,
        });
        packs.max()
    }

    // The end.

    /// The database was cut back: what was committed after a tid never happened.
    pub fn truncate(&mut self, last: Tid) {
        let Some(first) = last.next() else { return };
        for (tid, id) in self.committed.split_off(&first) {
            let attempt = &mut self.attempts[id.0];
            attempt.outcome = Outcome::Aborted;
            for oid in attempt.writes.keys() {
                if let Some(revisions) = self.revisions.get_mut(oid) {
                    revisions.remove(&tid);
                }
            }
        }
        self.revisions.retain(|_, revisions| !revisions.is_empty());
        drop(self.assigned.split_off(&first));
    }

    /// What databases contain decides what is in doubt: `tids` are those of all transactions there.
    ///
    /// # Errors
    /// If something is there that cannot be, or something is not there that must be.
    pub fn settle(&mut self, tids: &BTreeMap<Tid, Ttid>) -> Checked {
        for (tid, ttid) in tids {
            let ids = self.by_ttid.get(ttid).map_or(&[][..], Vec::as_slice);
            let found = ids.iter().find(|id| match self.attempts[id.0].outcome {
                Outcome::Committed(known) => known == *tid,
                Outcome::Finishing | Outcome::InDoubt => true,
                Outcome::Open | Outcome::Aborted => false,
            });
            let Some(id) = found.copied() else {
                let attempts: Vec<_> = ids.iter().map(|id| &self.attempts[id.0]).collect();
                return Err(Violation(format!(
                    "transaction {tid} (ttid {ttid}) is stored, and none can be: {attempts:?}"
                )));
            };
            self.committed(id, *tid)?;
        }
        for (tid, id) in &self.committed {
            let attempt = &self.attempts[id.0];
            ensure!(tids.contains_key(tid), "committed transaction {tid} is lost: {attempt:?}");
        }
        for attempt in &mut self.attempts {
            if matches!(attempt.outcome, Outcome::Finishing | Outcome::InDoubt) {
                attempt.outcome = Outcome::Aborted;
            }
        }
        self.check_places()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tid(n: u64) -> Tid {
        Tid::new(n)
    }

    fn write(base: u64, text: &'static str) -> Write {
        Write { base: tid(base), content: Content::Data(Bytes::from_static(text.as_bytes())) }
    }

    /// Begins a transaction that stores one object, and asks for its commit as `n`.
    fn finish(model: &mut Model, n: u64, base: u64) -> AttemptId {
        let id = model.begin(0, Ttid::new(n));
        model.attempt_mut(id).writes.insert(Oid::new(7), write(base, "x"));
        model.finishing(id);
        model.assign(Ttid::new(n), tid(n));
        id
    }

    /// Commits that are told out of order fit, as long as each is based on the one before.
    #[test]
    fn a_chain_of_updates_fits_in_any_order() {
        let mut model = Model::default();
        let one = finish(&mut model, 1, 0);
        let two = finish(&mut model, 2, 1);
        assert_eq!(model.committed(two, tid(2)), Ok(()));
        // It was learned from what the second one is based on.
        assert_eq!(model.attempt(one).outcome, Outcome::Committed(tid(1)));
        assert_eq!(model.committed(one, tid(1)), Ok(()));
        assert_eq!(model.revisions(Oid::new(7)).collect::<Vec<_>>(), [tid(1), tid(2)]);
    }

    /// Two transactions based on the same revision: one update is lost, whatever is told first.
    #[test]
    fn a_lost_update_is_seen() {
        for first in [2, 3] {
            let mut model = Model::default();
            finish(&mut model, 1, 0);
            let ids = [finish(&mut model, 2, 1), finish(&mut model, 3, 1)];
            assert_eq!(model.committed(ids[first - 2], tid(first as u64)), Ok(()));
            let other = 5 - first;
            let result = model.committed(ids[other - 2], tid(other as u64));
            assert!(result.unwrap_err().0.contains("lost update"));
        }
    }

    /// A transaction that checks a revision which another one replaces before it.
    #[test]
    fn a_write_skew_is_seen() {
        let mut model = Model::default();
        let one = finish(&mut model, 1, 0);
        model.committed(one, tid(1)).unwrap();
        let skewed = model.begin(0, Ttid::new(2));
        model.attempt_mut(skewed).checks.insert(Oid::new(7), tid(1));
        model.finishing(skewed);
        let between = finish(&mut model, 3, 1);
        model.committed(between, tid(3)).unwrap();
        assert!(model.committed(skewed, tid(4)).unwrap_err().0.contains("write skew"));
    }

    /// What was acknowledged must be stored, what was refused must not.
    #[test]
    fn databases_decide_only_what_is_in_doubt() {
        let mut model = Model::default();
        let one = finish(&mut model, 1, 0);
        model.committed(one, tid(1)).unwrap();
        finish(&mut model, 2, 1);
        model.client_gone(0);
        let with = BTreeMap::from([(tid(1), Ttid::new(1)), (tid(2), Ttid::new(2))]);
        model.settle(&with).unwrap();
        assert_eq!(model.committed_tids().collect::<Vec<_>>(), [tid(1), tid(2)]);
        assert!(model.settle(&BTreeMap::new()).unwrap_err().0.contains("lost"));

        let mut model = Model::default();
        let refused = finish(&mut model, 1, 0);
        model.aborted(refused).unwrap();
        let stored = BTreeMap::from([(tid(1), Ttid::new(1))]);
        assert!(model.settle(&stored).unwrap_err().0.contains("none can be"));
    }

    /// What was committed after a tid is gone, and its objects are as they were before.
    #[test]
    fn what_is_truncated_never_happened() {
        let mut model = Model::default();
        for n in 1..=3 {
            let id = finish(&mut model, n, n - 1);
            model.committed(id, tid(n)).unwrap();
        }
        model.truncate(tid(2));
        assert_eq!(model.committed_tids().collect::<Vec<_>>(), [tid(1), tid(2)]);
        assert_eq!(model.revisions(Oid::new(7)).collect::<Vec<_>>(), [tid(1), tid(2)]);
        assert!(model.learn(tid(3)).is_err());
        let with = BTreeMap::from([1, 2, 3].map(|n| (tid(n), Ttid::new(n))));
        assert!(model.settle(&with).unwrap_err().0.contains("none can be"));
        // Another transaction takes the place.
        let id = finish(&mut model, 4, 2);
        model.committed(id, tid(4)).unwrap();
        model.truncate(tid(0));
        assert_eq!(model.oids().count(), 0);
    }

    /// A pack removes all but the last revision at its time, and that one too if it has no data.
    #[test]
    fn a_pack_removes_what_is_not_current() {
        let mut model = Model::default();
        for n in 1..=4 {
            let id = finish(&mut model, n, n - 1);
            model.committed(id, tid(n)).unwrap();
        }
        let pack = model.begin(0, Ttid::new(5));
        model.attempt_mut(pack).pack = Some(Pack { tid: tid(3), oids: None });
        model.finishing(pack);
        let removed = |model: &Model| {
            model.revisions(Oid::new(7)).filter(|t| model.may_be_packed(Oid::new(7), *t, 1)).count()
        };
        assert_eq!(removed(&model), 2);
        assert!(!model.is_packed(Oid::new(7), tid(1)));
        model.committed(pack, tid(5)).unwrap();
        assert!(model.is_packed(Oid::new(7), tid(1)));
        assert!(!model.is_packed(Oid::new(7), tid(3)));
    }
}
