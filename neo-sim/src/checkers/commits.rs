// SPDX-License-Identifier: GPL-2.0-or-later
//! What masters give: tids in increasing order, oids once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use neo_common::protocol::Packet;
use neo_common::types::{Oid, Tid};

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
            Packet::AskLockInformation { ttid, tid, .. } => model.assign(*ttid, *tid),
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
