// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of transactions that are not voted: big ones are written ahead of their vote.

use neo_common::types::{Oid, Ttid};

use super::{Data, Effect, Transactions};
use crate::database::{Content, ObjectRecord};
use crate::limits::{HELD_BYTES_HIGH, SPILL_BYTES_MIN, TRANSACTION_BYTES_HIGH};

/// Data to be written ahead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spill {
    /// To be given back with the result.
    pub id: u64,
    /// Transaction.
    pub ttid: Ttid,
    /// What to write.
    pub objects: Vec<ObjectRecord>,
}

impl Transactions {
    /// Counts data that a transaction holds from now on.
    pub(super) fn hold(&mut self, ttid: Ttid, content: &Content) {
        if let Content::Value(value) = content
            && let Some(txn) = self.transactions.get_mut(&ttid)
        {
            txn.held_bytes += value.data.len();
            self.held_bytes += value.data.len();
        }
    }

    /// Uncounts data that a transaction does not hold any more.
    pub(super) fn unhold(&mut self, ttid: Ttid, content: &Content) {
        if let Content::Value(value) = content
            && let Some(txn) = self.transactions.get_mut(&ttid)
        {
            txn.held_bytes -= value.data.len();
            self.held_bytes -= value.data.len();
        }
    }

    /// What should be written ahead after a store of `ttid`, if anything. Each transaction spills
    /// once at a time.
    pub fn take_spill(&mut self, ttid: Ttid) -> Option<Spill> {
        let can_spill = |txn: &&super::Transaction, min: usize| {
            txn.spill.is_none() && !txn.is_voted() && txn.held_bytes > min
        };
        let big = self.transactions.get(&ttid).filter(|txn| can_spill(txn, TRANSACTION_BYTES_HIGH));
        let ttid = match big {
            Some(_) => ttid,
            None if self.held_bytes > HELD_BYTES_HIGH => {
                let candidates =
                    self.transactions.iter().filter(|(_, txn)| can_spill(txn, SPILL_BYTES_MIN));
                *candidates.max_by_key(|(_, txn)| txn.held_bytes)?.0
            }
            None => return None,
        };
        self.next_spill += 1;
        let id = self.next_spill;
        let txn = self.transactions.get_mut(&ttid).expect("chosen above");
        txn.spill = Some(id);
        self.held_bytes -= std::mem::take(&mut txn.held_bytes);
        let mut objects = Vec::new();
        for (oid, item) in &mut txn.items {
            if let Some(stored) = &mut item.store
                && let Data::Held(content @ Content::Value(_)) = &stored.data
            {
                // A reference to the data, which is only freed once it is written.
                let content = content.clone();
                stored.data = Data::Spilling(id, content.clone());
                objects.push(ObjectRecord { oid: *oid, data_tid: stored.data_tid, content });
            }
        }
        log::debug!("spill ttid={ttid} objects={}", objects.len());
        Some(Spill { id, ttid, objects })
    }

    /// The data is written. Returns whether a vote may have waited for it. What was removed or
    /// replaced meanwhile is released.
    pub fn spilled(&mut self, ttid: Ttid, id: u64, oids: &[Oid], contents: Vec<Content>) -> bool {
        assert_eq!(oids.len(), contents.len(), "one content per object");
        let mut txn = self.transactions.get_mut(&ttid).filter(|txn| txn.spill == Some(id));
        for (oid, content) in oids.iter().zip(contents) {
            let item = txn.as_mut().and_then(|txn| txn.items.get_mut(oid));
            match item.and_then(|item| item.store.as_mut()) {
                Some(stored) if matches!(&stored.data, Data::Spilling(n, _) if *n == id) => {
                    stored.data = Data::Held(content);
                }
                _ => {
                    if let Content::Spilled(data_id) = content {
                        self.effects.push(Effect::Release(data_id));
                    }
                }
            }
        }
        match txn {
            Some(txn) => {
                txn.spill = None;
                true
            }
            None => false,
        }
    }

    /// The database refused to write the data ahead: it stays in memory, and the vote will be
    /// refused for the same reason.
    pub fn spill_refused(&mut self, ttid: Ttid, id: u64) -> bool {
        let txn = self.transactions.get_mut(&ttid).filter(|txn| txn.spill == Some(id));
        let Some(txn) = txn else { return false };
        txn.spill = None;
        let mut bytes = 0;
        for stored in txn.items.values_mut().filter_map(|item| item.store.as_mut()) {
            if let Data::Spilling(_, content) = &stored.data {
                let content = content.clone();
                if let Content::Value(value) = &content {
                    bytes += value.data.len();
                }
                stored.data = Data::Held(content);
            }
        }
        txn.held_bytes += bytes;
        self.held_bytes += bytes;
        true
    }
}
