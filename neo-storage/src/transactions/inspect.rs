// SPDX-License-Identifier: GPL-2.0-or-later
//! Looking at transactions: for the log, and for tests.

use std::collections::BTreeMap;

use neo_common::types::Oid;

use super::Transactions;
use super::last_tids::LastTid;

impl Transactions {
    /// Lines about all transactions and locks, for the log.
    pub fn dump(&self) -> Vec<String> {
        let mut lines = vec!["Transactions:".to_owned()];
        for (ttid, txn) in &self.transactions {
            lines.push(format!(
                "    {ttid} {} {:?} objects={} pending={}",
                txn.client,
                txn.state,
                txn.items.len(),
                txn.pending_count
            ));
        }
        lines.push("  Read locks:".into());
        lines.extend(self.load_locks.iter().map(|(oid, ttid)| format!("    {oid} by {ttid}")));
        lines.push("  Write locks:".into());
        lines.extend(
            self.write_locks.iter().map(|(oid, lock)| format!("    {oid} by {}", lock.ttid)),
        );
        lines.push("  Pending events:".into());
        lines.extend(self.waiting.keys().map(|(oid, ttid, _)| format!("    {oid} for {ttid}")));
        lines
    }

    /// Last revisions of objects, as far as they are known here, but for objects whose next revision
    /// is being committed: the database may have it already.
    pub fn last_revisions(&self) -> impl Iterator<Item = (Oid, LastTid)> {
        let locks = self.write_locks.iter();
        let locked = locks.filter_map(|(oid, lock)| Some((*oid, lock.last?)));
        let known = self.last_tids.iter().chain(locked);
        known.filter(|(oid, _)| !self.is_load_locked(*oid))
    }

    /// Checks that locks, items and counters agree. For tests: it looks at everything.
    pub fn check_invariants(&self) {
        for (oid, lock) in &self.write_locks {
            let txn = self.transactions.get(&lock.ttid);
            let txn = txn.unwrap_or_else(|| panic!("{oid} locked by unknown {}", lock.ttid));
            let item = txn.items.get(oid);
            let item = item.unwrap_or_else(|| panic!("{oid} locked by {} for nothing", lock.ttid));
            if !item.lockless {
                let last = lock.last.unwrap_or_else(|| panic!("{oid} locked without check"));
                // Of an object without revision, nothing is known.
                let is_current = last.is_none_or(|last| last == item.serial);
                assert!(is_current, "{oid} locked at {} after {last:?}", item.serial);
            }
        }
        for (oid, ttid) in &self.load_locks {
            let txn = self.transactions.get(ttid);
            let locked = txn.is_some_and(|t| t.state.tid().is_some() && t.items.contains_key(oid));
            assert!(locked, "{oid} load-locked by {ttid}");
        }
        let mut counts = BTreeMap::<u64, usize>::new();
        let parked = self.checking.values().flat_map(|checking| &checking.parked);
        let mut bytes = 0;
        for pending in self.waiting.values().chain(parked) {
            *counts.entry(pending.instance).or_default() += 1;
            bytes += pending.bytes;
        }
        assert_eq!(self.waiting_bytes, bytes);
        self.check_waiting();
        for (ttid, txn) in &self.transactions {
            let count = counts.get(&txn.instance).copied().unwrap_or_default();
            assert_eq!(txn.pending_count, count, "pending requests of {ttid}");
            for (oid, item) in &txn.items {
                let locked = self.write_locks.get(oid).is_some_and(|lock| lock.ttid == *ttid);
                assert!(
                    locked || item.lockless || txn.pending_count != 0,
                    "{oid} of {ttid} without lock"
                );
                let mode = self.mode_of(*oid);
                assert!(mode.takes_locks() || item.lockless, "{oid} of {ttid} in {mode:?}");
            }
            for (oid, arrival) in &txn.waiting {
                assert!(self.waiting.contains_key(&(*oid, *ttid, *arrival)));
            }
        }
        let held: usize = self.transactions.values().map(|txn| txn.held_bytes).sum();
        assert_eq!(self.held_bytes, held);
    }

    /// Checks that whoever waits for a lock waits for somebody, who was told if he may wait as well.
    fn check_waiting(&self) {
        for (oid, ttid, _) in self.waiting.keys() {
            if self.checking.contains_key(oid) {
                continue;
            }
            let lock = self.write_locks.get(oid).filter(|lock| lock.ttid != *ttid);
            let lock = lock.unwrap_or_else(|| panic!("{ttid} waits for nobody to lock {oid}"));
            let holder = &self.transactions[&lock.ttid];
            let item = &holder.items[oid];
            assert!(
                lock.ttid < *ttid || holder.is_voted() || item.deadlock,
                "{ttid} waits for {} to lock {oid}, which was not told",
                lock.ttid
            );
        }
    }
}
