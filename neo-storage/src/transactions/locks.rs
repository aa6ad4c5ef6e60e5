// SPDX-License-Identifier: GPL-2.0-or-later
//! Write locks: stores, checks, waiting and relocking. See the parent module.
//!
//! Upstream: storage/transactions.py, `lockObject`, `storeObject`, `checkCurrentSerial`,
//! `relockObject`. There, the last revision is read from the database in the middle of `lockObject`;
//! here the request is put aside until the database has answered, then it is tried again.

use neo_common::engine::Fault;
use neo_common::planted;
use neo_common::protocol::{ErrorCode, MsgId, Packet};
use neo_common::types::{ConnId, NodeId, Oid, Tid, Ttid};

use super::last_tids::LastTid;
use super::{
    CellMode, Checking, Data, Effect, Item, Pending, Request, RequestKind, State, Stored,
    Transaction, Transactions, WriteLock, unknown,
};
use crate::database::{Content, StoreCheck};
use crate::limits::{TRANSACTION_OIDS_MAX, WAITING_BYTES_MAX};

/// Outcome of an attempt to lock.
enum Locking {
    /// The lock is ours now.
    Locked,
    /// The lock was ours, and is kept on the same revision.
    Kept,
    /// Accepted without lock.
    Lockless,
    /// There is no cell.
    Unassigned,
    /// Another revision was committed.
    Conflict(Tid),
    /// Somebody else has the lock.
    Delayed,
    /// The last revision is not known.
    Unchecked,
}

/// Outcome of an attempt to process a request.
enum Attempt {
    /// It is answered.
    Done,
    /// It waits for a lock.
    Delayed,
    /// It waits for the database, which also has to look for this revision.
    Unchecked(Option<Tid>),
}

impl Transactions {
    /// Processes a store, check or relock of a registered transaction of this client. It is answered
    /// now or later, through [`Effect`]s.
    ///
    /// # Errors
    /// If the client may not ask this.
    pub fn request(&mut self, client: NodeId, request: Request) -> Result<(), Fault> {
        let Request { ttid, oid, .. } = request;
        let txn = self.transactions.get_mut(&ttid).filter(|txn| txn.client == client);
        let Some(txn) = txn else {
            if request.kind == RequestKind::Relock {
                log::debug!("forget relock oid={oid} ttid={ttid}");
                self.answer(&request, None);
                return Ok(());
            }
            return Err(unknown(ttid));
        };
        if txn.is_voted() {
            return Err(Fault::protocol(format!("oid {oid} after the vote of ttid {ttid}")));
        }
        if txn.items.len() + txn.pending_count >= TRANSACTION_OIDS_MAX {
            return Err(Fault::protocol("too many modified OIDs"));
        }
        if self.waiting_bytes > WAITING_BYTES_MAX {
            return Err(Fault::protocol("too much data waits for locks"));
        }
        txn.pending_count += 1;
        let pending = Pending::new(request, txn.instance);
        if pending.request.kind == RequestKind::Relock && !self.release_for_relock(ttid, oid) {
            self.done(&pending);
            self.answer(&pending.request, None);
            return Ok(());
        }
        if let Some(checking) = self.checking.get_mut(&oid) {
            self.waiting_bytes += pending.bytes;
            checking.parked.push(pending);
            return Ok(());
        }
        self.try_request(pending)
    }

    /// The database answered a check.
    pub fn checked(&mut self, oid: Oid, last: LastTid, data_tid_exists: bool) {
        let Some(checking) = self.checking.remove(&oid) else { return };
        let Checking { data_tid, stale, mut parked } = checking;
        let stale = stale && !planted!(StaleCheckBelieved);
        let takes_locks = self.mode_of(oid).takes_locks();
        if !stale && takes_locks {
            match self.write_locks.get_mut(&oid) {
                Some(lock) => lock.last = Some(lock.last.unwrap_or(last)),
                None => self.last_tids.insert(oid, last),
            }
        }
        if !stale && data_tid.is_some() {
            let range = (oid, Ttid::ZERO, 0)..=(oid, Ttid::INVALID, u64::MAX);
            let waiting = self.waiting.range_mut(range).map(|(_, pending)| pending);
            for pending in waiting.chain(&mut parked) {
                if let RequestKind::Store { data_tid: wanted, .. } = &pending.request.kind
                    && *wanted == data_tid
                {
                    pending.data_exists = Some(data_tid_exists);
                }
            }
        }
        // Those that wait were there before those that are parked.
        self.retry(oid);
        for pending in parked {
            self.waiting_bytes -= pending.bytes;
            if let Some(checking) = self.checking.get_mut(&oid) {
                self.waiting_bytes += pending.bytes;
                checking.parked.push(pending);
                continue;
            }
            let (conn, id) = (pending.request.conn, pending.request.id);
            if let Err(fault) = self.try_request(pending) {
                self.effects.push(Effect::Refuse(conn, id, fault));
            }
        }
        self.settle_replicated();
    }

    fn try_request(&mut self, mut pending: Pending) -> Result<(), Fault> {
        let oid = pending.request.oid;
        match self.attempt(&mut pending) {
            Ok(Attempt::Done) => self.done(&pending),
            Ok(Attempt::Delayed) => {
                let ttid = pending.request.ttid;
                self.arrival += 1;
                let txn = self.transactions.get_mut(&ttid).expect("only known ones are delayed");
                txn.waiting.insert((oid, self.arrival));
                self.waiting_bytes += pending.bytes;
                self.waiting.insert((oid, ttid, self.arrival), pending);
            }
            Ok(Attempt::Unchecked(data_tid)) => {
                self.waiting_bytes += pending.bytes;
                self.start_check(oid, data_tid).parked.push(pending);
            }
            Err(fault) => {
                self.done(&pending);
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Tries again what waits for the lock of an object, in order of ttid.
    pub(super) fn retry(&mut self, oid: Oid) {
        if self.waiting.is_empty() {
            return;
        }
        let range = (oid, Ttid::ZERO, 0)..=(oid, Ttid::INVALID, u64::MAX);
        let keys: Vec<_> = self.waiting.range(range).map(|(key, _)| *key).collect();
        for key in keys {
            // The result will try again.
            if self.checking.contains_key(&oid) {
                return;
            }
            let Some(mut pending) = self.waiting.remove(&key) else { continue };
            match self.attempt(&mut pending) {
                Ok(Attempt::Delayed) => {
                    self.waiting.insert(key, pending);
                    continue;
                }
                Ok(Attempt::Unchecked(data_tid)) => {
                    self.waiting.insert(key, pending);
                    self.start_check(oid, data_tid);
                    return;
                }
                Ok(Attempt::Done) => {}
                Err(fault) => {
                    let Request { conn, id, .. } = pending.request;
                    self.effects.push(Effect::Refuse(conn, id, fault));
                }
            }
            if let Some(txn) = self.transactions.get_mut(&key.1) {
                txn.waiting.remove(&(oid, key.2));
            }
            self.waiting_bytes -= pending.bytes;
            self.done(&pending);
        }
    }

    /// A request is not pending any more.
    fn done(&mut self, pending: &Pending) {
        if let Some(txn) = self.transactions.get_mut(&pending.request.ttid)
            && txn.instance == pending.instance
        {
            txn.pending_count -= 1;
        }
    }

    pub(super) fn start_check(&mut self, oid: Oid, data_tid: Option<Tid>) -> &mut Checking {
        let checking = self.checking.entry(oid).or_insert_with(|| {
            self.effects.push(Effect::Check(StoreCheck { oid, data_tid }));
            Checking { data_tid, ..Checking::default() }
        });
        debug_assert_eq!(checking.data_tid, data_tid, "one check at a time for {oid}");
        checking
    }

    fn attempt(&mut self, pending: &mut Pending) -> Result<Attempt, Fault> {
        let Request { ttid, oid, .. } = pending.request;
        let txn = self.transactions.get(&ttid).filter(|txn| txn.instance == pending.instance);
        let Some(txn) = txn else {
            log::debug!("forget request oid={oid} ttid={ttid}");
            self.answer(&pending.request, Some(Tid::ZERO));
            return Ok(Attempt::Done);
        };
        match pending.request.kind {
            RequestKind::Store { serial, data_tid, .. } => {
                self.attempt_store(pending, serial, data_tid)
            }
            RequestKind::Check { serial } => match txn.items.get(&oid) {
                Some(item) if item.serial == serial => {
                    let lockless = item.lockless;
                    self.answer(&pending.request, lockless.then_some(Tid::ZERO));
                    Ok(Attempt::Done)
                }
                Some(_) => Err(Fault::protocol(format!("oid {oid} checked at another serial"))),
                None if planted!(CheckSerialIgnored)
                    || planted!(CheckDoesNotLock)
                        && self.last_tids.get(oid) == Some(Some(serial))
                        && !self.write_locks.contains_key(&oid) =>
                {
                    self.answer(&pending.request, None);
                    Ok(Attempt::Done)
                }
                None => {
                    let outcome = self.lock_object(ttid, oid, serial)?;
                    let item = || Item { serial, lockless: false, deadlock: false, store: None };
                    Ok(self.finish(pending, outcome, item))
                }
            },
            RequestKind::Relock => self.attempt_relock(&pending.request),
        }
    }

    fn attempt_store(
        &mut self,
        pending: &mut Pending,
        serial: Tid,
        data_tid: Option<Tid>,
    ) -> Result<Attempt, Fault> {
        let Request { ttid, oid, conn, id, .. } = pending.request;
        // Only a readable cell knows that a revision does not exist any more.
        let must_exist = data_tid.is_some() && self.mode_of(oid) == CellMode::Readable;
        if must_exist {
            match pending.data_exists {
                None => return Ok(Attempt::Unchecked(data_tid)),
                Some(true) => {}
                Some(false) => {
                    let message = format!("Could not undo for oid {oid}");
                    let error = Packet::error(ErrorCode::UndoPackError, message);
                    self.effects.push(Effect::Answer(conn, id, error));
                    return Ok(Attempt::Done);
                }
            }
        }
        let outcome = self.lock_object(ttid, oid, serial)?;
        if !matches!(outcome, Locking::Locked | Locking::Kept | Locking::Lockless) {
            return Ok(self.finish(pending, outcome, || unreachable!("nothing is stored")));
        }
        let RequestKind::Store { content, .. } = &mut pending.request.kind else {
            unreachable!("the caller matched a store");
        };
        let content = std::mem::replace(content, Content::Deleted);
        let content = if must_exist { Content::MustExist } else { content };
        self.hold(ttid, &content);
        let store = Some(Stored { data: Data::Held(content), data_tid });
        let item = || Item { serial, lockless: false, deadlock: false, store };
        Ok(self.finish(pending, outcome, item))
    }

    /// Records the outcome of an attempt to lock, and answers.
    fn finish(
        &mut self,
        pending: &Pending,
        outcome: Locking,
        item: impl FnOnce() -> Item,
    ) -> Attempt {
        let Request { ttid, oid, .. } = pending.request;
        let answer = match outcome {
            Locking::Delayed => return Attempt::Delayed,
            Locking::Unchecked => return Attempt::Unchecked(None),
            Locking::Conflict(last) => Some(last),
            Locking::Unassigned => Some(Tid::ZERO),
            Locking::Locked | Locking::Kept | Locking::Lockless => {
                let lockless = matches!(outcome, Locking::Lockless);
                let mut item = Item { lockless, ..item() };
                let txn = self.transactions.get_mut(&ttid).expect("checked by the caller");
                if let Some(old) = txn.items.remove(&oid) {
                    item.deadlock = old.deadlock;
                    if matches!(outcome, Locking::Kept) {
                        item.serial = old.serial;
                    }
                    self.drop_item(ttid, old);
                }
                let txn = self.transactions.get_mut(&ttid).expect("checked by the caller");
                txn.items.insert(oid, item);
                txn.dropped.remove(&oid);
                lockless.then_some(Tid::ZERO)
            }
        };
        self.answer(&pending.request, answer);
        Attempt::Done
    }

    /// Whether there is a lock to take again; then it is released, and what waits for it tried.
    fn release_for_relock(&mut self, ttid: Ttid, oid: Oid) -> bool {
        let item = self.transactions.get_mut(&ttid).and_then(|txn| txn.items.get_mut(&oid));
        // The partition may have been dropped.
        let Some(item) = item.filter(|item| item.deadlock && !item.lockless) else {
            log::debug!("nothing to relock oid={oid} ttid={ttid}");
            return false;
        };
        item.deadlock = false;
        if self.write_locks.get(&oid).is_some_and(|lock| lock.ttid == ttid) {
            self.release_lock(oid, None);
            // The older transaction goes first, then we are likely delayed.
            self.retry(oid);
        }
        true
    }

    fn attempt_relock(&mut self, request: &Request) -> Result<Attempt, Fault> {
        let Request { ttid, oid, conn, id, .. } = *request;
        let txn = &self.transactions[&ttid];
        let owned = self.write_locks.get(&oid).is_some_and(|lock| lock.ttid == ttid);
        let serial = match txn.items.get(&oid) {
            Some(item) if !owned => item.serial,
            // Dropped with its partition, or locked again by another store.
            _ => {
                self.answer(request, None);
                return Ok(Attempt::Done);
            }
        };
        match self.lock_object(ttid, oid, serial)? {
            Locking::Delayed => return Ok(Attempt::Delayed),
            Locking::Unchecked => return Ok(Attempt::Unchecked(None)),
            Locking::Locked | Locking::Kept => self.answer(request, None),
            // Dropped with its partition, which may be back already.
            Locking::Lockless | Locking::Unassigned => self.answer(request, None),
            Locking::Conflict(last) => {
                // The data goes back to the client, which may not have it any more, for conflict
                // resolution.
                let conflict = (serial, last);
                match self.unstore(ttid, oid) {
                    Some(Content::Spilled(data_id)) => {
                        self.effects.push(Effect::GiveBack { conn, id, conflict, data_id });
                    }
                    Some(Content::Value(value)) => {
                        let data = (u32::from(value.compression), value.checksum, value.data);
                        let conflict = Some((serial, last, Some(data)));
                        let packet = Packet::AnswerRelockObject { conflict };
                        self.effects.push(Effect::Answer(conn, id, packet));
                    }
                    Some(Content::Deleted | Content::MustExist) | None => {
                        let conflict = Some((serial, last, None));
                        let packet = Packet::AnswerRelockObject { conflict };
                        self.effects.push(Effect::Answer(conn, id, packet));
                    }
                }
            }
        }
        Ok(Attempt::Done)
    }

    /// Removes an object from a transaction that is not voted. Returns its data, unless it was only
    /// checked; spilled data is not released.
    pub(super) fn unstore(&mut self, ttid: Ttid, oid: Oid) -> Option<Content> {
        let txn = self.transactions.get_mut(&ttid)?;
        let stored = txn.items.remove(&oid)?.store?;
        match stored.data {
            Data::Held(content) => {
                self.unhold(ttid, &content);
                Some(content)
            }
            Data::Spilling(_, content) => Some(content),
            Data::Voted => None,
        }
    }

    /// Releases what an item that is replaced or removed holds.
    pub(super) fn drop_item(&mut self, ttid: Ttid, item: Item) {
        if let Some(Stored { data: Data::Held(content), .. }) = item.store {
            self.unhold(ttid, &content);
            if let Content::Spilled(data_id) = content {
                self.effects.push(Effect::Release(data_id));
            }
        }
    }

    /// Takes a write lock, if `serial` is current. Upstream: `lockObject`.
    fn lock_object(&mut self, ttid: Ttid, oid: Oid, serial: Tid) -> Result<Locking, Fault> {
        match self.mode_of(oid) {
            CellMode::Unassigned => return Ok(Locking::Unassigned),
            // We may not have all data to check for conflicts, and we missed stores that would lock
            // this one. But the transaction may have begun after the replication, and then we are
            // expected to store it in full. At least one other cell, readable, does the check.
            CellMode::Replicating => return Ok(Locking::Lockless),
            CellMode::Replicated(_) | CellMode::Announced | CellMode::Readable => {}
        }
        let Some(lock) = self.write_locks.get(&oid) else {
            let Some(last) = self.last_tids.get(oid) else { return Ok(Locking::Unchecked) };
            // Locking before reporting a conflict would avoid to resolve it several times. But this
            // would be against the optimism of ZODB.
            if let Some(tid) = last
                && tid != serial
            {
                return conflict(oid, ttid, serial, tid);
            }
            log::trace!("lock oid={oid} ttid={ttid}");
            self.write_locks.insert(oid, WriteLock { ttid, last: Some(last) });
            return Ok(Locking::Locked);
        };
        let txn = &self.transactions[&ttid];
        let item = txn.items.get(&oid);
        let holder = lock.ttid;
        if holder == ttid {
            let item = item.expect("a lock is for an item");
            if item.lockless {
                return Ok(Locking::Lockless);
            }
            let last = lock.last.flatten();
            // What follows an undo must be based on the revision whose data is used again. What
            // follows a store, on the same revision as this store, or on the store itself (an undo
            // after one that was a resolved conflict).
            let data_tid = item.store.as_ref().and_then(|stored| stored.data_tid);
            let based_on_store =
                data_tid.is_none() && item.store.is_some() && serial == ttid.as_tid();
            return match data_tid.or(last).filter(|tid| *tid != serial && !based_on_store) {
                Some(tid) => conflict(oid, ttid, serial, tid),
                None => Ok(Locking::Kept),
            };
        }
        let other = &self.transactions[&holder];
        if holder < ttid || other.is_voted() || planted!(LockOrderIgnored) {
            // We are younger: wait until the lock is released. Wait as well (instead of a conflict)
            // if the client is so fast that it commits another transaction before we processed
            // NotifyUnlockInformation. Or the holder is voted, then there is no deadlock.
            log::debug!("lock delayed oid={oid} ttid={ttid} by={holder}");
            return Ok(Locking::Delayed);
        }
        if item.is_some_and(|item| item.lockless) {
            // A lock was not taken during the replication, and after a conflict we are asked to take
            // it again. The current lock is a special one, that only delays new transactions.
            return Ok(Locking::Lockless);
        }
        // We are older: we may hold locks that the holder waits for.
        let other_item = &other.items[&oid];
        if other_item.lockless {
            return Ok(Locking::Lockless);
        }
        if !other_item.deadlock {
            let client = other.client;
            log::debug!("deadlock oid={oid} ttid={ttid} with={holder}");
            self.notify_deadlock(client, holder, oid);
        }
        Ok(Locking::Delayed)
    }

    /// Asks the holder to lock again. It keeps the lock for the moment, in case it can vote.
    fn notify_deadlock(&mut self, client: NodeId, holder: Ttid, oid: Oid) {
        let item = self.transactions.get_mut(&holder).and_then(|txn| txn.items.get_mut(&oid));
        item.expect("a lock is for an item").deadlock = true;
        self.effects.push(Effect::NotifyDeadlock(client, holder, oid));
    }

    /// Releases a lock; `committed` if the object has a new revision.
    pub(super) fn release_lock(&mut self, oid: Oid, committed: Option<Tid>) {
        let Some(lock) = self.write_locks.remove(&oid) else { return };
        let committed = committed.filter(|_| !planted!(ConflictWithWrongSerial));
        if let Some(last) = committed.map(Some).or(lock.last) {
            self.last_tids.insert(oid, last);
        }
    }

    /// Releases all locks of a transaction that is finished and not registered any more.
    pub(super) fn release_locks(&mut self, ttid: Ttid, txn: &Transaction, committed: Option<Tid>) {
        let mut released = Vec::with_capacity(txn.items.len());
        for (oid, item) in &txn.items {
            let committed = committed.filter(|_| item.store.is_some());
            if committed.is_some()
                && let Some(checking) = self.checking.get_mut(oid)
            {
                checking.stale = true;
            }
            match self.write_locks.get(oid) {
                Some(_) if planted!(CheckedStaysLocked) && item.store.is_none() => {}
                Some(lock) if lock.ttid == ttid => {
                    self.release_lock(*oid, committed);
                    released.push(*oid);
                }
                // Another lockless store has the lock: what it will be checked against changed.
                Some(_) if committed.is_some() => {
                    self.write_locks.get_mut(oid).expect("just seen").last = Some(committed);
                }
                // A relock that was delayed, or a lockless store.
                Some(_) => {}
                None => {
                    if let Some(tid) = committed
                        && self.mode_of(*oid).takes_locks()
                    {
                        self.last_tids.insert(*oid, Some(tid));
                    }
                }
            }
        }
        // Lockless stores get the lock before those that wait for it.
        self.settle_replicated();
        for oid in released {
            if !planted!(WaitersForgotten) || committed.is_some() {
                self.retry(oid);
            }
        }
    }

    /// Answers a request; for a relock, whatever `conflict` is, there is none.
    pub(super) fn answer(&mut self, request: &Request, conflict: Option<Tid>) {
        let packet = match &request.kind {
            RequestKind::Store { .. } => Packet::AnswerStoreObject { conflict },
            RequestKind::Check { .. } => Packet::AnswerCheckCurrentSerial { conflict },
            RequestKind::Relock => Packet::AnswerRelockObject { conflict: None },
        };
        let (conn, id): (ConnId, MsgId) = (request.conn, request.id);
        self.effects.push(Effect::Answer(conn, id, packet));
    }
}

/// Conflict with a later revision. A client that knows a later revision than the last one is wrong.
fn conflict(oid: Oid, ttid: Ttid, serial: Tid, last: Tid) -> Result<Locking, Fault> {
    if serial > last {
        return Err(Fault::protocol(format!("serial {serial} of oid {oid} is after {last}")));
    }
    log::debug!("conflict oid={oid} ttid={ttid} with={last}");
    Ok(Locking::Conflict(last))
}

impl State {
    /// Whether it is being committed: its rows may be visible or not.
    pub(super) const fn is_unlocking(self) -> bool {
        matches!(self, Self::Unlocking(_))
    }
}
