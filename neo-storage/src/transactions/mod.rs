// SPDX-License-Identifier: GPL-2.0-or-later
//! Pending transactions and their locks. Upstream: storage/transactions.py.
//!
//! This is where it is decided whether a transaction may go on. It does not touch the database nor
//! a connection: requests come in, decisions come out as [`Effect`]s, and the owner brings the
//! results of what was asked ([`Transactions::checked`], [`Transactions::voted`], ...).
//!
//! ```text
//!   Storing --vote--> Voting --voted--> Voted --lock--> Locking --locked--> Locked
//!      |                 |                |                                   | unlock
//!      +-----------------+----- abort ----+                                   v
//!                                                       (gone) <--unlocked-- Unlocking
//! ```
//!
//! **Write locks.** A store or a check of an object locks it until the transaction ends. The serial
//! on which it is based must be that of the last revision, else it is a conflict. If the object is
//! locked already, the request waits; waiting requests are retried in order of ttid when the lock is
//! released. When the older transaction waits for the younger one, which is not voted, there may be a
//! deadlock: the client of the younger is notified, and locks again (`AskRelockObject`) behind the
//! older.
//!
//! **Checks.** The last revision of an object is known from [`last_tids`], from the lock itself, or
//! asked from the database. As long as such a check is on its way, all requests for the object are
//! parked in order of arrival: if a later one took the lock first, the older one would look like a
//! deadlock, or worse, a conflict like none.
//!
//! **Load locks.** From lock to unlock, nobody can tell whether the new revision exists.
//!
//! **Locks are held until the unlock is visible to readers** ([`Transactions::unlocked`]), so a
//! load or a check that starts later sees the new revision.
//!
//! **Lockless stores.** A cell that is out of date can not check anything: stores are accepted
//! blindly, other cells check. How they become locks before the cell may be declared up-to-date is
//! in `replicated.rs`.
//!
//! What a client sends out of order (a store after the vote, a vote while a store waits, a ttid of
//! somebody else) is refused.

mod ended;
mod inspect;
pub mod last_tids;
mod locks;
mod replicated;
mod spill;

use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::Fault;
use neo_common::planted;
use neo_common::protocol::{ErrorCode, MsgId, Packet};
use neo_common::types::{ConnId, NodeId, Oid, Partition, Tid, Ttid};

use crate::database::{Content, DataId, ObjectRecord, Refused, StoreCheck};
use crate::limits::{CLIENT_TRANSACTIONS_MAX, TRANSACTION_OIDS_MAX, WAITING_REQUEST_BYTES};

use ended::Ended;
use last_tids::{LastTid, LastTids};
pub use spill::Spill;

/// How a partition takes stores here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellMode {
    /// No cell: stores are ignored.
    Unassigned,
    /// Out of date: stores are accepted without lock.
    Replicating,
    /// Complete up to this tid; some stores may still be without lock.
    Replicated(Tid),
    /// All stores have locks, and the master was told so.
    Announced,
    /// Readable, as far as this node knows.
    Readable,
}

impl CellMode {
    const fn takes_locks(self) -> bool {
        matches!(self, Self::Replicated(_) | Self::Announced | Self::Readable)
    }
}

/// A store, check or relock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Who waits for the answer.
    pub conn: ConnId,
    /// Request to be answered.
    pub id: MsgId,
    /// Transaction.
    pub ttid: Ttid,
    /// Object.
    pub oid: Oid,
    /// What is asked.
    pub kind: RequestKind,
}

/// See [`Request`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// `AskStoreObject`.
    Store {
        /// Revision on which it is based.
        serial: Tid,
        /// What is stored, unless the data of `data_tid` is.
        content: Content,
        /// Undo: revision whose data is used again.
        data_tid: Option<Tid>,
    },
    /// `AskCheckCurrentSerial`.
    Check {
        /// Revision that must be the last one.
        serial: Tid,
    },
    /// `AskRelockObject`.
    Relock,
}

/// A request that could not be processed at once.
#[derive(Debug)]
struct Pending {
    request: Request,
    /// Of the transaction, which may be aborted and begin again with the same ttid.
    instance: u64,
    /// Whether the revision to take data from exists, once asked.
    data_exists: Option<bool>,
    /// What it costs to let it wait.
    bytes: usize,
}

impl Pending {
    fn new(request: Request, instance: u64) -> Self {
        let data = match &request.kind {
            RequestKind::Store { content: Content::Value(value), .. } => value.data.len(),
            RequestKind::Store { .. } | RequestKind::Check { .. } | RequestKind::Relock => 0,
        };
        Self { request, instance, data_exists: None, bytes: data + WAITING_REQUEST_BYTES }
    }
}

/// What the owner must do.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Answer a request.
    Answer(ConnId, MsgId, Packet),
    /// A request that waited turns out to be wrong.
    Refuse(ConnId, MsgId, Fault),
    /// Ask the database, then call [`Transactions::checked`].
    Check(StoreCheck),
    /// Tell the client that holds the lock.
    NotifyDeadlock(NodeId, Ttid, Oid),
    /// Answer a relock with this conflict, and the data of this row; then release it.
    GiveBack {
        /// Who waits for the answer.
        conn: ConnId,
        /// Request to be answered.
        id: MsgId,
        /// Serial of the store, and tid of the conflict.
        conflict: (Tid, Tid),
        /// Where the data is.
        data_id: DataId,
    },
    /// Spilled data that is not needed any more.
    Release(DataId),
    /// Tell the master that the cell is complete up to this tid.
    Replicated(Partition, Tid),
}

/// How far a transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Objects are being stored and checked.
    Storing,
    /// The vote is being written.
    Voting,
    /// The vote is durable.
    Voted,
    /// The database refused the vote: it can only be aborted.
    Refused,
    /// Committed by the master; the tid is being written.
    Locking(Tid),
    /// The tid is durable.
    Locked(Tid),
    /// The final rows are being written.
    Unlocking(Tid),
}

impl State {
    /// Final tid.
    const fn tid(self) -> Option<Tid> {
        match self {
            Self::Locking(tid) | Self::Locked(tid) | Self::Unlocking(tid) => Some(tid),
            Self::Storing | Self::Voting | Self::Voted | Self::Refused => None,
        }
    }
}

/// Data of a stored object.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Data {
    /// To be given to the vote.
    Held(Content),
    /// Being written ahead of the vote; kept in case it has to be given back.
    Spilling(u64, Content),
    /// Given to the vote.
    Voted,
}

#[derive(Debug)]
struct Stored {
    data: Data,
    data_tid: Option<Tid>,
}

/// An object that a transaction stored or checked.
#[derive(Debug)]
struct Item {
    serial: Tid,
    /// Accepted without lock and without check.
    lockless: bool,
    /// The client was told to lock again.
    deadlock: bool,
    /// `None`: only checked.
    store: Option<Stored>,
}

#[derive(Debug)]
struct Transaction {
    client: NodeId,
    instance: u64,
    state: State,
    /// Voted with its metadata.
    metadata: bool,
    /// Something of it was given to the database.
    in_database: bool,
    items: BTreeMap<Oid, Item>,
    /// Objects whose lockless store was dropped because of a conflict. The client must store them
    /// again: see `replicated.rs`.
    dropped: BTreeSet<Oid>,
    /// Requests that are parked or waiting.
    pending_count: usize,
    /// Requests that wait for a lock, by object and arrival.
    waiting: BTreeSet<(Oid, u64)>,
    spill: Option<u64>,
    held_bytes: usize,
}

impl Transaction {
    fn is_voted(&self) -> bool {
        self.state != State::Storing
    }
}

#[derive(Debug)]
struct WriteLock {
    ttid: Ttid,
    /// Last revision of the object. `None`: not known, the lock comes from a lockless store.
    last: Option<LastTid>,
}

/// A check that is on its way.
#[derive(Debug, Default)]
struct Checking {
    data_tid: Option<Tid>,
    /// The cell changed since: the result means nothing.
    stale: bool,
    parked: Vec<Pending>,
}

/// What remains to be done for a vote.
#[derive(PartialEq, Eq, Debug)]
pub enum VoteStep {
    /// Nothing to write.
    Done,
    /// Data is being spilled: vote again when [`Transactions::spilled`] says so.
    Later,
    /// To be written.
    Write(Vec<ObjectRecord>),
}

/// What remains to be done for an unlock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnlockStep {
    /// Final tid.
    pub tid: Tid,
    /// Whether it was voted with metadata.
    pub metadata: bool,
    /// Whether there is anything to write.
    pub in_database: bool,
}

/// What remains to be done for an abort.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AbortStep {
    /// Transaction.
    pub ttid: Ttid,
    /// Whether it was voted.
    pub voted: bool,
    /// Spilled data that was not voted.
    pub spilled: Vec<DataId>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Transactions {
    partitions: u32,
    modes: Vec<CellMode>,
    transactions: BTreeMap<Ttid, Transaction>,
    write_locks: BTreeMap<Oid, WriteLock>,
    load_locks: BTreeMap<Oid, Ttid>,
    /// What is known of last revisions. Also filled by loads.
    pub last_tids: LastTids,
    waiting: BTreeMap<(Oid, Ttid, u64), Pending>,
    checking: BTreeMap<Oid, Checking>,
    /// Which transactions were aborted.
    pub ended: Ended,
    last_locked: Tid,
    next_instance: u64,
    arrival: u64,
    next_spill: u64,
    held_bytes: usize,
    waiting_bytes: usize,
    effects: Vec<Effect>,
}

impl Transactions {
    /// No transaction. Partitions are `modes.len()` > 0.
    pub fn new(modes: Vec<CellMode>) -> Self {
        assert!(!modes.is_empty(), "a table has partitions");
        Self {
            partitions: modes.len() as u32,
            modes,
            transactions: BTreeMap::new(),
            write_locks: BTreeMap::new(),
            load_locks: BTreeMap::new(),
            last_tids: LastTids::default(),
            waiting: BTreeMap::new(),
            checking: BTreeMap::new(),
            ended: Ended::default(),
            last_locked: Tid::ZERO,
            next_instance: 0,
            arrival: 0,
            next_spill: 0,
            held_bytes: 0,
            waiting_bytes: 0,
            effects: Vec::new(),
        }
    }

    /// What is to be done since the last time. The order matters.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }
    /// Whether there is something to be done.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }
    /// Number of transactions.
    pub fn len(&self) -> usize {
        self.transactions.len()
    }
    /// Whether there is no transaction.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }
    /// How a partition takes stores.
    pub fn mode(&self, partition: Partition) -> CellMode {
        self.modes.get(partition as usize).copied().unwrap_or(CellMode::Unassigned)
    }
    fn mode_of(&self, oid: Oid) -> CellMode {
        self.mode(oid.partition(self.partitions))
    }
    /// Bytes of requests that wait for a lock or a check.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    // Reads.

    /// Whether a load has to wait for an unlock.
    pub fn is_load_locked(&self, oid: Oid) -> bool {
        !self.load_locks.is_empty() && self.load_locks.contains_key(&oid)
    }
    /// Whether transactions up to this tid are between lock and unlock.
    pub fn is_locked_tid(&self, max_tid: Tid) -> bool {
        self.transactions.values().any(|txn| txn.state.tid().is_some_and(|tid| tid <= max_tid))
    }
    /// Greatest tid of the transactions that are between lock and unlock.
    pub fn max_locked_tid(&self) -> Option<Tid> {
        self.transactions.values().filter_map(|txn| txn.state.tid()).max()
    }
    /// Final tid of a transaction that is voted with its metadata: `Some(None)` if not locked.
    /// `None` if there is no such transaction.
    pub fn final_tid(&self, ttid: Ttid) -> Option<Option<Tid>> {
        self.transactions.get(&ttid).filter(|txn| txn.metadata).map(|txn| txn.state.tid())
    }
    /// The revision of an object in a transaction that stored it, for an undo that goes on: the
    /// revision whose data is used again, else the ttid. Upstream: `getObjectFromTransaction`.
    pub fn stored_tid(&self, ttid: Ttid, oid: Oid) -> Option<Tid> {
        let stored = self.transactions.get(&ttid)?.items.get(&oid)?.store.as_ref()?;
        Some(stored.data_tid.unwrap_or(ttid.as_tid()))
    }

    // Life of a transaction.

    /// Registers a transaction of a client, unless it is already.
    ///
    /// # Errors
    /// If it is not a possible ttid, or that of another client.
    pub fn register(&mut self, client: NodeId, ttid: Ttid) -> Result<(), Fault> {
        if let Some(txn) = self.transactions.get(&ttid) {
            return if txn.client == client { Ok(()) } else { Err(unknown(ttid)) };
        }
        if ttid == Ttid::ZERO || ttid.as_tid() > Tid::MAX {
            return Err(unknown(ttid));
        }
        // Only counted when there are many.
        if self.transactions.len() >= CLIENT_TRANSACTIONS_MAX
            && self.transactions.values().filter(|txn| txn.client == client).count()
                >= CLIENT_TRANSACTIONS_MAX
        {
            return Err(Fault::protocol("too many transactions"));
        }
        log::debug!("register ttid={ttid} client={client}");
        self.next_instance += 1;
        let transaction = Transaction {
            client,
            instance: self.next_instance,
            state: State::Storing,
            metadata: false,
            in_database: false,
            items: BTreeMap::new(),
            dropped: BTreeSet::new(),
            pending_count: 0,
            waiting: BTreeSet::new(),
            spill: None,
            held_bytes: 0,
        };
        self.transactions.insert(ttid, transaction);
        Ok(())
    }

    /// Whether a transaction is known, and of this client.
    pub fn is_of(&self, ttid: Ttid, client: NodeId) -> bool {
        self.transactions.get(&ttid).is_some_and(|txn| txn.client == client)
    }

    /// Begins the vote. Call it again after [`VoteStep::Later`].
    ///
    /// # Errors
    /// If the transaction is unknown, voted already, or has requests that are not answered; or if it
    /// has a conflict that nobody told its client.
    pub fn vote(&mut self, client: NodeId, ttid: Ttid, metadata: bool) -> Result<VoteStep, Fault> {
        let txn = self.transactions.get_mut(&ttid).filter(|txn| txn.client == client);
        let txn = txn.ok_or_else(|| unknown(ttid))?;
        if txn.is_voted() {
            return Err(Fault::protocol(format!("ttid {ttid} is voted already")));
        }
        if txn.pending_count != 0 {
            return Err(Fault::protocol(format!("vote of ttid {ttid} before its last answer")));
        }
        if let Some(oid) = txn.dropped.first() {
            // The cells that should have reported the conflict were discarded before. PROTOCOL_ERROR
            // is what all clients understand, but there is no reason to close the connection.
            let message = format!("conflict on oid {oid} was not reported by a readable cell");
            log::warn!("vote of ttid {ttid} refused: {message}");
            return Err(Fault::Error(ErrorCode::ProtocolError, message));
        }
        if txn.items.len() >= TRANSACTION_OIDS_MAX {
            return Err(Fault::protocol("too many modified OIDs"));
        }
        if txn.spill.is_some() {
            return Ok(VoteStep::Later);
        }
        log::debug!("vote ttid={ttid}");
        txn.metadata = metadata;
        self.held_bytes -= std::mem::take(&mut txn.held_bytes);
        let mut objects = Vec::with_capacity(txn.items.len());
        for (oid, item) in &mut txn.items {
            let Some(stored) = &mut item.store else { continue };
            let data = std::mem::replace(&mut stored.data, Data::Voted);
            let Data::Held(content) = data else {
                unreachable!("no spill is on its way: {data:?}")
            };
            objects.push(ObjectRecord { oid: *oid, data_tid: stored.data_tid, content });
        }
        if objects.is_empty() && !metadata {
            txn.state = State::Voted;
            return Ok(VoteStep::Done);
        }
        txn.state = State::Voting;
        txn.in_database = true;
        Ok(VoteStep::Write(objects))
    }

    /// The vote is durable, or refused. Nothing happens if it was aborted meanwhile.
    pub fn voted(&mut self, ttid: Ttid, result: Result<(), Refused>) {
        if let Some(txn) = self.transactions.get_mut(&ttid).filter(|t| t.state == State::Voting) {
            txn.state = match result {
                Ok(()) => State::Voted,
                Err(refused) => {
                    log::error!("vote refused ttid={ttid}: {refused:?}");
                    State::Refused
                }
            };
        }
    }

    /// The master gives the final tid. Returns whether it has to be written; then call
    /// [`Self::locked`] once it is durable.
    ///
    /// # Errors
    /// If the transaction is not voted, or if the tid can not be right.
    pub fn lock(&mut self, ttid: Ttid, tid: Tid) -> Result<bool, Fault> {
        let txn = self.transactions.get_mut(&ttid).ok_or_else(|| unknown(ttid))?;
        if txn.state != State::Voted {
            return Err(Fault::protocol(format!("ttid {ttid} is not voted")));
        }
        // A transaction can only be found again by its ttid if both belong to the same partition.
        let congruent = ttid.partition(self.partitions) == tid.partition(self.partitions);
        let increasing = self.last_locked < tid && ttid.as_tid() <= tid && tid <= Tid::MAX;
        if !congruent || !increasing {
            return Err(Fault::protocol(format!("invalid tid {tid} for ttid {ttid}")));
        }
        log::debug!("lock ttid={ttid} tid={tid}");
        self.last_locked = tid;
        for (oid, item) in &txn.items {
            if item.store.is_some() && !planted!(ForgottenLoadLock) {
                self.load_locks.insert(*oid, ttid);
            }
        }
        txn.state = if txn.metadata { State::Locking(tid) } else { State::Locked(tid) };
        Ok(txn.metadata)
    }

    /// The final tid is durable.
    pub fn locked(&mut self, ttid: Ttid) {
        if let Some(txn) = self.transactions.get_mut(&ttid)
            && let State::Locking(tid) = txn.state
        {
            txn.state = State::Locked(tid);
        }
    }

    /// The master commits. Call [`Self::unlocked`] once the final rows are visible to readers.
    ///
    /// # Errors
    /// If the transaction is not locked.
    pub fn unlock(&mut self, ttid: Ttid) -> Result<UnlockStep, Fault> {
        let txn = self.transactions.get_mut(&ttid).ok_or_else(|| unknown(ttid))?;
        let State::Locked(tid) = txn.state else {
            return Err(Fault::protocol(format!("ttid {ttid} is not locked")));
        };
        log::debug!("unlock ttid={ttid} tid={tid}");
        txn.state = State::Unlocking(tid);
        Ok(UnlockStep { tid, metadata: txn.metadata, in_database: txn.in_database })
    }

    /// The final rows are visible: releases all locks. Returns the objects that can be loaded again.
    pub fn unlocked(&mut self, ttid: Ttid) -> Vec<Oid> {
        let Some(txn) = self.transactions.get(&ttid) else { return Vec::new() };
        let State::Unlocking(tid) = txn.state else { return Vec::new() };
        let txn = self.transactions.remove(&ttid).expect("found above");
        let mut loadable = Vec::new();
        for (oid, item) in &txn.items {
            if item.store.is_some() && self.load_locks.get(oid) == Some(&ttid) {
                self.load_locks.remove(oid);
                loadable.push(*oid);
            }
        }
        self.release_locks(ttid, &txn, Some(tid));
        loadable
    }

    /// Aborts a transaction, unless it is locked or unknown.
    pub fn abort(&mut self, ttid: Ttid) -> Option<AbortStep> {
        self.transactions.get(&ttid).filter(|txn| txn.state.tid().is_none())?;
        log::debug!("abort ttid={ttid}");
        let txn = self.transactions.remove(&ttid).expect("found above");
        self.held_bytes -= txn.held_bytes;
        let spilled = txn.items.values().filter_map(|item| match &item.store.as_ref()?.data {
            Data::Held(Content::Spilled(data_id)) => Some(*data_id),
            Data::Held(_) | Data::Spilling(..) | Data::Voted => None,
        });
        let step = AbortStep { ttid, voted: txn.in_database, spilled: spilled.collect() };
        for (oid, arrival) in &txn.waiting {
            let pending = self.waiting.remove(&(*oid, ttid, *arrival)).expect("indexed");
            self.waiting_bytes -= pending.bytes;
            log::debug!("forget request oid={oid} ttid={ttid}");
            self.answer(&pending.request, Some(Tid::ZERO));
        }
        self.release_locks(ttid, &txn, None);
        Some(step)
    }

    /// Transactions of a client that are not locked, and not voted unless said so.
    pub fn of_client(&self, client: NodeId, even_if_voted: bool) -> Vec<Ttid> {
        let is_concerned = |txn: &Transaction| {
            txn.client == client && txn.state.tid().is_none() && (even_if_voted || !txn.is_voted())
        };
        let concerned = self.transactions.iter().filter(|(_, txn)| is_concerned(txn));
        concerned.map(|(ttid, _)| *ttid).collect()
    }
}

fn unknown(ttid: Ttid) -> Fault {
    Fault::protocol(format!("unknown ttid {ttid}"))
}

#[cfg(test)]
mod tests;
