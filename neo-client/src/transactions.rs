// SPDX-License-Identifier: GPL-2.0-or-later
//! State of a transaction under way, on the client's side. Upstream: client/transactions.py.
//!
//! Each object that is stored (or checked) is first *being written*: requests were sent to all cells
//! of its partition. When all of them have answered, it is *written*, and its data is only kept for
//! the cache.
//!
//! ```text
//!               all cells answered (or are lost)
//!   writing ---------------------------------------> written
//!      ^  | conflict                                    | lock given back, and conflict
//!      |  v                                             |
//!      |  conflict --> told to the application          |
//!      |                    | resolved: stored again    |
//!      +--------------------+<--------------------------+
//! ```
//!
//! Races to know about:
//!
//! - A cell may be much faster than another: a conflict may be resolved and stored again on all
//!   cells before the slow one has reported it. So writes are numbered: only answers to the last
//!   write of an object count, but an older answer can still tell a newer conflict.
//! - A storage that is being replicated answers that it stored without lock (*lockless*). If this is
//!   so for all cells of a partition, nothing protects the transaction.
//! - A storage to which the connection is lost forgets what was stored: it never comes back into the
//!   transaction, even if it is connected again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use neo_common::engine::CallId;
use neo_common::protocol::PackRequest;
use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use crate::error::{Conflict, Error};

/// What is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Data, to be cached.
    Data(Bytes),
    /// No data: deletion, or data of an earlier revision that has none.
    Nothing,
    /// There was data, but too much of it to be kept.
    Dropped,
    /// Nothing is stored: the serial is only checked.
    Checked,
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Nothing | Self::Dropped | Self::Checked => 0,
        }
    }
}

/// A write that not all cells have answered.
#[derive(Debug)]
struct Writing {
    value: Value,
    serial: Tid,
    /// Number of this write.
    number: u64,
    /// Storages that have not answered.
    nodes: Vec<NodeId>,
}

/// A conflict that is not resolved.
#[derive(Clone, Copy, Debug)]
struct Pending {
    committed: Tid,
    /// The application was told.
    told: bool,
}

/// How far a transaction got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Objects are stored.
    Storing,
    /// The vote was asked: no lock is given back any more.
    Voting,
    /// The master was asked whether the storages that failed can be left out.
    Deciding,
    /// It can be committed.
    Voted,
}

/// What the application waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Room for more data.
    Room,
    /// All answers.
    Answers,
    /// The result of the vote.
    Vote,
}

/// What to tell an application that waits.
#[derive(Debug)]
pub enum Told {
    /// Go on.
    Done,
    /// Resolve these first.
    Conflicts(Vec<Conflict>),
    /// All votes are there.
    Voted,
    /// It failed.
    Failed(Error),
}

/// A transaction under way.
#[derive(Debug)]
pub struct Transaction {
    ttid: Ttid,
    /// How far it got.
    pub stage: Stage,
    /// Why it cannot be committed any more.
    pub error: Option<Error>,
    /// Pack order that it contains.
    pub pack: Option<PackRequest>,
    /// Who waits, and for what.
    pub waiting: Option<(CallId, Want)>,
    /// Requests without answer.
    pub pending: u32,
    /// Storages that take part; `true` once lost.
    nodes: BTreeMap<NodeId, bool>,
    /// Position of each object in the order of the first stores.
    order: BTreeMap<Oid, usize>,
    writing: BTreeMap<Oid, Writing>,
    written: BTreeMap<Oid, Value>,
    writing_bytes: usize,
    written_bytes: usize,
    /// Above, the application waits, and what is written is not kept.
    bytes_max: usize,
    keep_all: bool,
    last_number: u64,
    conflicts: BTreeMap<Oid, Pending>,
    resolved: BTreeMap<Oid, Tid>,
    deleted: BTreeSet<Oid>,
    /// Objects that get the data of an earlier revision again: it can be loaded from there.
    copies: BTreeMap<Oid, Tid>,
    /// Storages that stored without lock, by partition.
    lockless: BTreeMap<Partition, BTreeSet<NodeId>>,
}

impl Transaction {
    /// A transaction in which nothing was stored. `bytes_max`: data that may wait for storages.
    pub fn new(ttid: Ttid, bytes_max: usize) -> Self {
        Self {
            ttid,
            stage: Stage::Storing,
            error: None,
            pack: None,
            waiting: None,
            pending: 0,
            nodes: BTreeMap::new(),
            order: BTreeMap::new(),
            writing: BTreeMap::new(),
            written: BTreeMap::new(),
            writing_bytes: 0,
            written_bytes: 0,
            bytes_max,
            keep_all: false,
            last_number: 0,
            conflicts: BTreeMap::new(),
            resolved: BTreeMap::new(),
            deleted: BTreeSet::new(),
            copies: BTreeMap::new(),
            lockless: BTreeMap::new(),
        }
    }

    /// Keeps all data from now on, except copies of earlier revisions.
    pub fn keep_all(&mut self) {
        self.keep_all = true;
    }

    /// What this transaction stored for an object, if it is known.
    pub fn data(&self, oid: Oid) -> Option<Bytes> {
        let value = self.writing.get(&oid).map(|writing| &writing.value);
        match value.or_else(|| self.written.get(&oid))? {
            Value::Data(data) => Some(data.clone()), // a reference, not a copy
            Value::Nothing | Value::Dropped | Value::Checked => None,
        }
    }

    /// Whether an object is stored or checked already.
    pub fn contains(&self, oid: Oid) -> bool {
        self.writing.contains_key(&oid) || self.written.contains_key(&oid)
    }

    // Storages.

    /// Storages that take part, lost ones included.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }
    /// Storages that take part and are not lost.
    pub fn alive(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, lost)| !**lost).map(|(nid, _)| *nid)
    }
    /// Storages that missed something.
    pub fn lost(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, lost)| **lost).map(|(nid, _)| *nid)
    }
    /// Whether a storage missed something.
    pub fn is_lost(&self, nid: NodeId) -> bool {
        self.nodes.get(&nid).copied().unwrap_or_default()
    }
    /// A storage takes part.
    pub fn involve(&mut self, nid: NodeId) {
        self.nodes.entry(nid).or_default();
    }

    /// A storage is lost, or could not be reached. Does nothing if it does not take part.
    pub fn node_lost(&mut self, nid: NodeId) {
        let Some(lost) = self.nodes.get_mut(&nid) else { return };
        *lost = true;
        let waiting = self.writing.iter().filter(|(_, writing)| writing.nodes.contains(&nid));
        for oid in waiting.map(|(oid, _)| *oid).collect::<Vec<_>>() {
            self.answered(nid, oid, None);
        }
    }

    // Writes.

    /// A new write: the number that its answers shall have.
    pub fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A store or a check was sent to these storages.
    pub fn written_to(
        &mut self,
        oid: Oid,
        value: Value,
        serial: Tid,
        number: u64,
        nodes: Vec<NodeId>,
    ) {
        self.forget(oid);
        let next = self.order.len();
        self.order.entry(oid).or_insert(next);
        self.writing_bytes += value.len();
        self.writing.insert(oid, Writing { value, serial, number, nodes });
    }

    /// The object is to be deleted, or not any more.
    pub fn set_deleted(&mut self, oid: Oid, deleted: bool) {
        if deleted {
            self.deleted.insert(oid);
        } else {
            self.deleted.remove(&oid);
        }
    }

    /// The data of the object is that of an earlier revision, or not any more.
    pub fn set_copy(&mut self, oid: Oid, of: Option<Tid>) {
        match of {
            Some(serial) => self.copies.insert(oid, serial),
            None => self.copies.remove(&oid),
        };
    }

    /// The revision that has the data that was stored for an object, if it is a copy.
    pub fn copy_of(&self, oid: Oid) -> Option<Tid> {
        self.copies.get(&oid).copied()
    }

    fn forget(&mut self, oid: Oid) {
        if let Some(old) = self.writing.remove(&oid) {
            self.writing_bytes -= old.value.len();
        }
        if let Some(old) = self.written.remove(&oid) {
            self.written_bytes -= old.len();
        }
    }

    /// The conflict with `committed` is resolved by what is about to be stored.
    pub fn resolve(&mut self, oid: Oid, committed: Tid) {
        self.resolved.insert(oid, committed);
        if self.conflicts.get(&oid).is_some_and(|pending| pending.committed <= committed) {
            self.conflicts.remove(&oid);
        } else if let Some(newer) = self.conflicts.get_mut(&oid) {
            newer.told = false;
        }
    }

    /// A storage has answered the last write of an object (or never will). `number`: that of the
    /// write that it answers; `None` for any.
    fn answered(&mut self, nid: NodeId, oid: Oid, number: Option<u64>) -> bool {
        let Some(writing) = self.writing.get_mut(&oid) else { return false };
        if number.is_some_and(|number| number != writing.number) {
            return false;
        }
        let Some(index) = writing.nodes.iter().position(|node| *node == nid) else { return false };
        writing.nodes.swap_remove(index);
        if writing.nodes.is_empty()
            && !self.conflicts.contains_key(&oid)
            && let Some(writing) = self.writing.remove(&oid)
        {
            let len = writing.value.len();
            self.writing_bytes -= len;
            let mut value = writing.value;
            let may_drop = !self.keep_all || self.copies.contains_key(&oid);
            if self.written_bytes + len > self.bytes_max && len != 0 && may_drop {
                value = Value::Dropped;
            }
            self.written_bytes += value.len();
            self.written.insert(oid, value);
        }
        true
    }

    /// A storage stored it.
    pub fn stored(&mut self, nid: NodeId, oid: Oid, number: u64) {
        self.answered(nid, oid, Some(number));
    }

    /// A storage stored it without lock.
    pub fn stored_lockless(&mut self, nid: NodeId, oid: Oid, number: u64, partition: Partition) {
        if self.answered(nid, oid, Some(number)) {
            self.lockless.entry(partition).or_default().insert(nid);
        }
    }

    /// A storage reports that the object was changed by `committed`. The conflict stays as long as
    /// it is not resolved: there is no need to wait for the other storages.
    pub fn conflict(&mut self, oid: Oid, committed: Tid) {
        let resolved = self.resolved.get(&oid).is_some_and(|resolved| *resolved >= committed);
        if resolved || !self.writing.contains_key(&oid) {
            return;
        }
        let pending = self.conflicts.entry(oid).or_insert(Pending { committed, told: false });
        if pending.committed < committed {
            *pending = Pending { committed, told: false };
        }
    }

    /// Whether the value that was stored for an object was given to the storages for good, so that
    /// a conflict brings it back.
    pub fn is_written(&self, oid: Oid) -> bool {
        self.written.contains_key(&oid)
    }

    /// A lock that was given back could not be taken again: the object was changed by `committed`
    /// since `serial`. `data`: what the storage gives back, if anything.
    pub fn relock_conflict(&mut self, oid: Oid, serial: Tid, committed: Tid, data: Option<Bytes>) {
        if let Some(kept) = self.written.remove(&oid) {
            self.written_bytes -= kept.len();
            let value = data.map_or(kept, Value::Data);
            self.writing_bytes += value.len();
            let number = self.next_number();
            self.writing.insert(oid, Writing { value, serial, number, nodes: Vec::new() });
        }
        self.conflict(oid, committed);
    }

    // What the application is told.

    /// What to tell now, if anything.
    pub fn tell(&mut self, want: Want) -> Option<Told> {
        if let Some(error) = &self.error {
            return Some(Told::Failed(error.clone()));
        }
        if want == Want::Vote {
            return (self.pending == 0 && self.stage == Stage::Voting).then_some(Told::Voted);
        }
        match self.untold_conflicts() {
            Err(error) => {
                self.error = Some(error.clone());
                return Some(Told::Failed(error));
            }
            Ok(conflicts) if !conflicts.is_empty() => return Some(Told::Conflicts(conflicts)),
            Ok(_) => {}
        }
        let done = match want {
            Want::Room => self.writing_bytes < self.bytes_max || self.pending == 0,
            _ => self.pending == 0,
        };
        done.then_some(Told::Done)
    }

    fn untold_conflicts(&mut self) -> Result<Vec<Conflict>, Error> {
        let mut conflicts = Vec::new();
        for (oid, pending) in &mut self.conflicts {
            if std::mem::replace(&mut pending.told, true) {
                continue;
            }
            let Some(writing) = self.writing.get(oid) else { continue };
            let (committed, base) = (pending.committed, writing.serial);
            let data = match &writing.value {
                Value::Data(data) => Some(data.clone()), // a reference, not a copy
                Value::Nothing | Value::Dropped => None,
                Value::Checked => {
                    return Err(Error::ReadConflict { oid: *oid, committed, base });
                }
            };
            conflicts.push(Conflict { oid: *oid, committed, base, data, committed_data: None });
        }
        Ok(conflicts)
    }

    /// An object that not all storages have answered, or whose conflict is not resolved.
    pub fn unwritten(&self) -> Option<Oid> {
        self.writing.keys().next().copied()
    }

    /// Objects whose conflicts were resolved.
    pub fn resolved(&self) -> Vec<Oid> {
        self.resolved.keys().copied().collect()
    }

    /// A partition in which no storage holds the locks, given its storages.
    pub fn unprotected(&self, cells: impl Fn(Partition) -> Vec<NodeId>) -> Option<Partition> {
        let protected = |partition: &Partition, lockless: &BTreeSet<NodeId>| {
            cells(*partition).iter().any(|nid| !lockless.contains(nid) && !self.is_lost(*nid))
        };
        self.lockless.iter().find(|(p, nids)| !protected(p, nids)).map(|(p, _)| *p)
    }

    /// Objects that are changed, deleted ones included, in the order in which they were stored:
    /// iteration gives them back like that, whatever the order of the answers.
    pub fn changed(&self) -> impl Iterator<Item = Oid> {
        let changed = self.written.iter().filter(|(_, value)| **value != Value::Checked);
        let mut oids: Vec<Oid> = changed.map(|(oid, _)| *oid).collect();
        oids.sort_by_key(|oid| self.order.get(oid));
        oids.into_iter()
    }
    /// Objects that are changed but not deleted.
    pub fn stored_oids(&self) -> impl Iterator<Item = Oid> {
        self.changed().filter(|oid| !self.deleted.contains(oid))
    }
    /// Objects that are deleted.
    pub fn deleted_oids(&self) -> impl Iterator<Item = Oid> {
        self.changed().filter(|oid| self.deleted.contains(oid))
    }
    /// Objects whose serial is checked.
    pub fn checked_oids(&self) -> impl Iterator<Item = Oid> {
        self.written.iter().filter(|(_, value)| **value == Value::Checked).map(|(oid, _)| *oid)
    }
    /// What was written, for the cache.
    pub fn into_values(self) -> impl Iterator<Item = (Oid, Value)> {
        self.written.into_iter()
    }
    /// Its temporary id.
    pub fn ttid(&self) -> Ttid {
        self.ttid
    }
}
