// SPDX-License-Identifier: GPL-2.0-or-later
//! What masters give: tids in increasing order, ttids and oids once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use neo_common::protocol::Packet;
use neo_common::types::{Oid, Tid, Ttid};

use crate::model::{Checked, Model, ensure};
use crate::network::HostId;

/// What was given so far.
#[derive(Debug, Default)]
pub struct Commits {
    /// Transactions that were told to be committed, with the process of the master.
    told: BTreeMap<Tid, (HostId, u64)>,
    /// Last one that was told on each connection, by its number.
    last: BTreeMap<u64, Tid>,
    /// Process of the master that gave oids, and which.
    oids: Option<((HostId, u64), BTreeSet<Oid>)>,
    ids: Ids,
}

/// Ttids that were given, and tids, which are taken from the same sequence.
///
/// A client that lost its master while it committed asks the next one what became of the ttid, so two
/// transactions must not have the same. A master that does not know what the former one gave leaves a gap
/// if its clock is late. Otherwise both take them from clocks, and chance may have it that they do so in
/// the same microsecond of both, which is not worth a word once.
#[derive(Debug, Default)]
struct Ids {
    given: BTreeMap<Tid, (HostId, u64)>,
    /// Process of the master that gave the last one.
    last: Option<(HostId, u64)>,
    /// How many it gave since another one did, and which of them that one, or a former one, gave too.
    count: usize,
    repeated: Vec<Tid>,
}

/// Only the first ids that a master gives can follow those that it found.
const FIRST_IDS: usize = 16;

impl Ids {
    fn begun(&mut self, ttid: Ttid, master: (HostId, u64)) -> Checked {
        let former = self.given.get(&ttid.as_tid());
        ensure!(former != Some(&master), "ttid {ttid} is given twice");
        self.used(ttid.as_tid(), master)
    }

    /// It may be told several times.
    fn used(&mut self, tid: Tid, master: (HostId, u64)) -> Checked {
        if self.last != Some(master) {
            (self.last, self.count) = (Some(master), 0);
            self.repeated.clear();
        }
        let former = self.given.insert(tid, master);
        if former == Some(master) {
            return Ok(());
        }
        self.count += 1;
        if former.is_some() && self.count <= FIRST_IDS {
            self.repeated.push(tid);
        }
        let repeated = &self.repeated;
        ensure!(repeated.len() < 2, "ids {repeated:?} are given, another master gave them before");
        Ok(())
    }
}

impl Commits {
    /// Transactions that were told to be committed.
    pub fn count(&self) -> u64 {
        self.told.len() as u64
    }

    /// The database was cut back: tids after this one, and oids, may be given again.
    pub fn truncate(&mut self, last: Tid) {
        self.told.retain(|tid, _| *tid <= last);
        self.last.clear();
        self.oids = None;
        self.ids = Ids::default();
    }

    /// A master sends a packet. `life`: which process; `link`: number of the connection.
    ///
    /// # Errors
    /// If it must not.
    pub fn sent(
        &mut self,
        model: &mut Model,
        (master, life): (HostId, u64),
        link: u64,
        packet: &Packet,
    ) -> Checked {
        match packet {
            Packet::AskLockInformation { ttid, tid, .. } => {
                model.assign(*ttid, *tid);
                self.ids.used(*tid, (master, life))?;
            }
            Packet::AnswerTransactionFinished { tid, .. }
            | Packet::InvalidateObjects { tid, .. } => {
                let last = self.last.insert(link, *tid).unwrap_or(Tid::ZERO);
                ensure!(last < *tid, "tids go back: {tid} is told after {last}");
                if let Entry::Vacant(entry) = self.told.entry(*tid) {
                    entry.insert((master, life));
                    let mut later = self.told.range(*tid..).skip(1);
                    // One process tells several transactions at once, to each host in order.
                    let later = later.find(|(_, other)| **other != (master, life));
                    ensure!(later.is_none(), "tids go back: {tid} is committed after {later:?}");
                    model.learn(*tid)?;
                }
            }
            Packet::AnswerBeginTransaction { ttid } => {
                self.ids.begun(*ttid, (master, life))?;
            }
            Packet::AnswerNewOIDs { oids } => {
                let key = (master, life);
                if self.oids.as_ref().is_none_or(|(other, _)| *other != key) {
                    self.oids = Some((key, BTreeSet::new()));
                }
                let given = &mut self.oids.as_mut().expect("just set").1;
                for oid in oids {
                    ensure!(given.insert(*oid), "oid {oid} is given twice");
                    // Of an object that was deleted and packed away, nothing is left after a restart,
                    // as with upstream and FileStorage.
                    let used = model.revisions(*oid).next().filter(|_| !model.is_gone(*oid));
                    ensure!(used.is_none(), "oid {oid} is given, {used:?} stored it before");
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A master repeats nothing, and does not follow those that did not store what they gave.
    #[test]
    fn ttids_are_given_once() {
        let (one, other) = ((HostId(0), 1), (HostId(0), 2));
        let mut ids = Ids::default();
        let mut give = |ttid, master| ids.begun(Ttid::new(ttid), master).is_ok();
        assert!((1..=5).all(|ttid| give(ttid, one)));
        assert!(!give(5, one));
        // Once is chance.
        assert!(give(4, other) && give(8, other));
        assert!(!give(5, other));
        assert!((11..=30).all(|ttid| give(ttid, one)));
        assert!((31..=50).all(|ttid| give(ttid, other)));
        assert!(give(17, other) && give(18, other), "clocks, and chance");
        // A tid is told to each storage.
        assert!((0..2).all(|_| ids.used(Tid::new(60), one).is_ok()));
        assert!((0..2).all(|_| ids.used(Tid::new(60), other).is_ok()));
        assert!(ids.begun(Ttid::new(60), other).is_err());
    }
}
