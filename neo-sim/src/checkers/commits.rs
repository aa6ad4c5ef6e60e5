// SPDX-License-Identifier: GPL-2.0-or-later
//! What masters give: tids in increasing order, oids once.

use std::collections::BTreeSet;

use neo_common::protocol::Packet;
use neo_common::types::{Oid, Tid};

use crate::model::{Checked, Model, ensure};
use crate::network::HostId;

/// What was given so far.
#[derive(Debug, Default)]
pub struct Commits {
    /// Transaction whose commit was told last, by any master.
    last_tid: Tid,
    /// Process of the master that gave oids, and which.
    oids: Option<((HostId, u64), BTreeSet<Oid>)>,
    /// Transactions that were told to be committed.
    pub count: u64,
}

impl Commits {
    /// A master sends a packet. `life`: which process.
    ///
    /// # Errors
    /// If it must not.
    pub fn sent(
        &mut self,
        model: &mut Model,
        (master, life): (HostId, u64),
        packet: &Packet,
    ) -> Checked {
        match packet {
            Packet::AskLockInformation { ttid, tid, .. } => model.assign(*ttid, *tid),
            Packet::AnswerTransactionFinished { tid, .. }
            | Packet::InvalidateObjects { tid, .. } => {
                if *tid != self.last_tid {
                    ensure!(
                        *tid > self.last_tid,
                        "tids go back: {tid} is committed after {}",
                        self.last_tid
                    );
                    self.last_tid = *tid;
                    self.count += 1;
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
                    let used = model.revisions(*oid).next();
                    ensure!(used.is_none(), "oid {oid} is given, {used:?} stored it before");
                }
            }
            _ => {}
        }
        Ok(())
    }
}
