// SPDX-License-Identifier: GPL-2.0-or-later
//! From lockless stores to locks, when the replication of a partition ends. Upstream:
//! storage/transactions.py, `replicating`, `replicated`, `_notifyReplicated`, `readable`,
//! `discarded`.
//!
//! Once a partition is [`CellMode::Replicated`]:
//! 1. each object with lockless stores is locked by the youngest of them, which delays new
//!    transactions; older ones share the lock;
//! 2. when no object of the partition is shared any more, the last revisions of these objects are
//!    asked from the database;
//! 3. then the stores are checked: those with a conflict are dropped, because readable cells report
//!    the conflict and the client will store again; the others become locks like any other. If these
//!    cells were discarded before they reported it (the store was waiting there, and this one makes
//!    them superfluous), nobody has the store: then the vote is refused here;
//! 4. the master is told: this node does not rely on other cells any more to check locks.
//!
//! Step 3 waits for transactions that are being unlocked, because their own revision could be taken
//! for a conflict.

use neo_common::planted;
use neo_common::types::{Oid, Partition, Tid};

use super::{CellMode, Checking, Content, Data, DataId, Effect, Item, Transactions, WriteLock};

impl Transactions {
    /// These partitions are out of date: stores are accepted without lock.
    pub fn replicating(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.set_mode(*partition, CellMode::Replicating);
        }
    }

    /// The partition is complete up to this tid. The master is told at once if it is readable
    /// (backup mode), otherwise as soon as there is no lockless store any more.
    pub fn replicated(&mut self, partition: Partition, tid: Tid) {
        match self.mode(partition) {
            CellMode::Readable => self.effects.push(Effect::Replicated(partition, tid)),
            CellMode::Unassigned => {}
            CellMode::Replicating | CellMode::Replicated(_) | CellMode::Announced => {
                self.set_mode(partition, CellMode::Replicated(tid));
                self.settle_replicated();
            }
        }
    }

    /// The master made these cells readable.
    pub fn readable(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.set_mode(*partition, CellMode::Readable);
        }
    }

    /// These cells are gone, with all that is stored or locked there. Returns spilled data that is
    /// not needed any more.
    pub fn discarded(&mut self, partitions: &[Partition]) -> Vec<DataId> {
        for partition in partitions {
            self.set_mode(*partition, CellMode::Unassigned);
        }
        let count = self.partitions;
        let is_gone = |oid: &Oid| partitions.contains(&oid.partition(count));
        self.load_locks.retain(|oid, _| !is_gone(oid));
        self.write_locks.retain(|oid, _| !is_gone(oid));
        let mut removed = Vec::<(_, Item)>::new();
        for (ttid, txn) in &mut self.transactions {
            txn.dropped.retain(|oid| !is_gone(oid));
            let gone: Vec<Oid> = txn.items.keys().filter(|oid| is_gone(oid)).copied().collect();
            let items = gone.iter().filter_map(|oid| txn.items.remove(oid));
            removed.extend(items.map(|item| (*ttid, item)));
        }
        let mut spilled = Vec::new();
        for (ttid, item) in removed {
            if let Some(Data::Held(content)) = item.store.map(|stored| stored.data) {
                self.unhold(ttid, &content);
                if let Content::Spilled(data_id) = content {
                    spilled.push(data_id);
                }
            }
        }
        let waiting: Vec<Oid> =
            self.waiting.keys().map(|(oid, ..)| *oid).filter(|oid| is_gone(oid)).collect();
        for oid in waiting {
            self.retry(oid);
        }
        self.settle_replicated();
        spilled
    }

    fn set_mode(&mut self, partition: Partition, mode: CellMode) {
        let Some(current) = self.modes.get_mut(partition as usize) else { return };
        let old = std::mem::replace(current, mode);
        if old.takes_locks() && mode.takes_locks() {
            return;
        }
        let count = self.partitions;
        self.last_tids.forget(count, |forgotten| forgotten == partition);
        for (oid, Checking { stale, .. }) in &mut self.checking {
            *stale |= oid.partition(count) == partition;
        }
    }

    /// Goes on with partitions that are replicated and have lockless stores.
    pub(super) fn settle_replicated(&mut self) {
        let mut pending = Vec::new();
        for (partition, mode) in (0..).zip(&self.modes) {
            if let CellMode::Replicated(tid) = mode {
                pending.push((partition, *tid));
            }
        }
        if pending.is_empty() {
            return;
        }
        let mut lockless = self.share_locks();
        let mut announced = Vec::new();
        for (partition, tid) in pending {
            let oids = lockless.remove(&partition).unwrap_or(Some(Vec::new()));
            let Some(oids) = oids else { continue };
            if self.convert_locks(&oids) {
                self.set_mode(partition, CellMode::Announced);
                self.effects.push(Effect::Replicated(partition, tid));
                announced.extend(oids);
            }
        }
        for oid in announced {
            self.retry(oid);
        }
    }

    /// Gives the locks of lockless stores to the youngest transaction of each object. Returns these
    /// objects by partition; `None` if the stores of the partition can not become locks yet.
    fn share_locks(&mut self) -> std::collections::BTreeMap<Partition, Option<Vec<Oid>>> {
        let mut lockless = std::collections::BTreeMap::<Partition, Option<Vec<Oid>>>::new();
        // Sorted by ttid.
        for (ttid, txn) in &self.transactions {
            for (oid, _) in txn.items.iter().filter(|(_, item)| item.lockless) {
                let partition = oid.partition(self.partitions);
                if !matches!(self.mode(partition), CellMode::Replicated(_)) {
                    continue;
                }
                let oids = lockless.entry(partition).or_insert_with(|| Some(Vec::new()));
                let last = match self.write_locks.get(oid) {
                    None => None,
                    Some(lock) => {
                        if lock.ttid != *ttid {
                            *oids = None;
                        }
                        lock.last
                    }
                };
                self.write_locks.insert(*oid, WriteLock { ttid: *ttid, last });
                if txn.state.is_unlocking() {
                    *oids = None;
                }
                if let Some(oids) = oids {
                    oids.push(*oid);
                }
            }
        }
        lockless
    }

    /// Turns the lockless stores of a partition into locks, if the last revisions are known and no
    /// voted transaction would lose a store.
    fn convert_locks(&mut self, oids: &[Oid]) -> bool {
        let mut known = true;
        for oid in oids {
            let lock = self.write_locks.get_mut(oid).expect("shared locks are taken");
            if lock.last.is_none() {
                lock.last = self.last_tids.get(*oid);
            }
            if lock.last.is_none() {
                known = false;
                if !self.checking.contains_key(oid) {
                    self.start_check(*oid, None);
                }
            }
        }
        if !known {
            return false;
        }
        let mut conflicts = Vec::new();
        for oid in oids {
            let lock = &self.write_locks[oid];
            let txn = &self.transactions[&lock.ttid];
            let serial = txn.items[oid].serial;
            let last = lock.last.flatten().filter(|_| !planted!(LocklessNotChecked));
            if last.is_some_and(|tid| tid != serial) {
                if txn.is_voted() {
                    // A readable cell would have refused it: the client is wrong. The cell stays out
                    // of date until this transaction ends.
                    log::error!("conflict in a voted transaction oid={oid} ttid={}", lock.ttid);
                    return false;
                }
                conflicts.push(*oid);
            }
        }
        for oid in oids {
            let lock = &self.write_locks[oid];
            let txn = self.transactions.get_mut(&lock.ttid).expect("a lock has a transaction");
            txn.items.get_mut(oid).expect("a lock is for an item").lockless = false;
        }
        for oid in conflicts {
            let ttid = self.write_locks[&oid].ttid;
            log::debug!("drop lockless store oid={oid} ttid={ttid}");
            self.release_lock(oid, None);
            let txn = self.transactions.get_mut(&ttid).expect("a lock has a transaction");
            let item = txn.items.remove(&oid).expect("a lock is for an item");
            txn.dropped.insert(oid);
            self.drop_item(ttid, item);
        }
        true
    }
}
