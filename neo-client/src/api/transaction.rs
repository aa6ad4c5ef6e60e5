// SPDX-License-Identifier: GPL-2.0-or-later
//! A transaction under way, as an application sees it.
//!
//! ```text
//!   begin --> store, delete, check, undo ... --> vote --> finish
//!                       \------ any failure ------> abort (or drop)
//! ```
//!
//! Stores are sent to all cells without waiting, and answered while the application goes on. A storage
//! answers a store of an object that was changed meanwhile with the current serial: a *conflict*.
//! Conflicts are resolved by the [`Resolver`] given to [`crate::Client::begin`], in the thread that
//! calls a method of the transaction, with no lock held: it may load from the same client.

use bytes::Bytes;
use neo_common::types::{Oid, Tid, Ttid};

use super::client::{Client, unexpected};
use crate::call::{Answer, Call};
use crate::compression::Stored;
use crate::error::{Conflict, Error, Result};

/// Who resolves conflicts: `tryToResolveConflict` of ZODB.
pub trait Resolver: Send {
    /// Returns the data to store instead of `conflict.data`, based on `conflict.committed`.
    ///
    /// # Errors
    /// [`Error::Conflict`], or anything else: the transaction must be aborted.
    fn resolve(&mut self, conflict: Conflict) -> Result<Bytes>;
}

/// Resolves nothing: each conflict is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoResolution;

impl Resolver for NoResolution {
    fn resolve(&mut self, conflict: Conflict) -> Result<Bytes> {
        Err(Error::Conflict(conflict))
    }
}

/// Metadata of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Who.
    pub user: Bytes,
    /// What.
    pub description: Bytes,
    /// Pickled dictionary, or nothing.
    pub extension: Bytes,
}

/// How far it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Open,
    Voted,
    Ended,
}

/// A transaction under way. Dropping it aborts it.
pub struct Transaction {
    pub(super) client: Client,
    pub(super) resolver: Box<dyn Resolver>,
    pub(super) ttid: Ttid,
    stage: Stage,
}

impl Transaction {
    pub(super) fn begin(
        client: Client,
        tid: Option<Tid>,
        resolver: Box<dyn Resolver>,
    ) -> Result<Self> {
        match client.shared.call(Call::Begin { tid })? {
            Answer::Begun(ttid) => Ok(Self { client, resolver, ttid, stage: Stage::Open }),
            other => Err(unexpected(&other)),
        }
    }

    /// Its temporary id.
    pub fn ttid(&self) -> Ttid {
        self.ttid
    }

    /// The client that began it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether [`Transaction::vote`] succeeded.
    pub fn is_voted(&self) -> bool {
        self.stage == Stage::Voted
    }

    /// Stores an object that is based on revision `serial` (ZERO if it is new).
    ///
    /// # Errors
    /// Of this store or an earlier one: conflicts that could not be resolved, no storage available.
    pub fn store(&mut self, oid: Oid, serial: Tid, data: Bytes) -> Result<()> {
        self.store_from(oid, serial, Some(data), None)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// Those of [`Transaction::store`].
    pub fn delete(&mut self, oid: Oid, serial: Tid) -> Result<()> {
        self.store_from(oid, serial, None, None)
    }

    /// Stores an object whose data is that of an earlier revision, `data_serial`, as an undo does.
    /// `data` is given too, for cells that do not have that revision yet. Without `data` and
    /// `data_serial`, deletes the object.
    ///
    /// # Errors
    /// Those of [`Transaction::store`].
    pub fn store_from(
        &mut self,
        oid: Oid,
        serial: Tid,
        data: Option<Bytes>,
        data_serial: Option<Tid>,
    ) -> Result<()> {
        self.expect(Stage::Open)?;
        let answer = self.send_store(oid, serial, data, data_serial, None)?;
        self.settle(answer)
    }

    /// Makes sure that `serial` is the current serial of an object until the commit is over.
    ///
    /// # Errors
    /// [`Error::ReadConflict`] (here or later, at the latest in [`Transaction::vote`]), and those of
    /// [`Transaction::store`].
    pub fn check_current_serial(&mut self, oid: Oid, serial: Tid) -> Result<()> {
        self.expect(Stage::Open)?;
        let ttid = self.ttid;
        let answer = self.client.shared.call(Call::CheckSerial { ttid, oid, serial })?;
        self.settle(answer)
    }

    /// Makes this transaction order a pack up to `tid`, of the given objects or of all.
    ///
    /// # Errors
    /// If it is voted already.
    pub fn set_pack(&mut self, oids: Option<Vec<Oid>>, tid: Tid) -> Result<()> {
        self.expect(Stage::Open)?;
        let oids = oids.map(|mut oids| {
            oids.sort_unstable();
            oids.dedup();
            oids
        });
        self.client.shared.call(Call::SetPack { ttid: self.ttid, pack: (oids, tid) })?;
        Ok(())
    }

    /// Undoes what transaction `tid` did, and returns the objects that change. The undo has effect
    /// once this transaction is committed.
    ///
    /// # Errors
    /// [`Error::Undo`] if later changes cannot be reconciled or revisions were packed away.
    pub fn undo(&mut self, tid: Tid) -> Result<Vec<Oid>> {
        self.expect(Stage::Open)?;
        super::undo::undo(self, tid)
    }

    /// First phase of the commit: after it, the commit does not fail any more for reasons of the
    /// application. Returns the objects whose conflicts were resolved. Voting again does nothing.
    ///
    /// # Errors
    /// Those of stores, and those of the vote. The transaction must be aborted then.
    pub fn vote(&mut self, metadata: &Metadata) -> Result<Vec<Oid>> {
        if self.stage == Stage::Voted {
            return Ok(Vec::new());
        }
        self.expect(Stage::Open)?;
        loop {
            let vote = Call::Vote {
                ttid: self.ttid,
                user: metadata.user.clone(),
                description: metadata.description.clone(),
                extension: metadata.extension.clone(),
            };
            match self.client.shared.call(vote)? {
                Answer::Resolved(oids) => {
                    self.stage = Stage::Voted;
                    return Ok(oids);
                }
                answer => self.settle(answer)?,
            }
        }
    }

    /// Second phase of the commit. `callback` is called with the tid, in this thread, before other
    /// threads see it as [`Client::last_tid`] and before later invalidations are delivered.
    ///
    /// # Errors
    /// [`Error::Incomplete`] or [`Error::NotCommitted`]: the transaction is not committed.
    /// [`Error::OutcomeUnknown`]: the client was closed meanwhile.
    pub fn finish(&mut self, callback: impl FnOnce(Tid)) -> Result<Tid> {
        self.expect(Stage::Voted)?;
        // From here on there is nothing to abort.
        self.stage = Stage::Ended;
        match self.client.shared.call(Call::Finish { ttid: self.ttid })? {
            Answer::Finished(tid) => {
                let turn = Turn(&self.client);
                callback(tid);
                drop(turn);
                Ok(tid)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Aborts. Does nothing once it is finished or aborted.
    pub fn abort(&mut self) {
        if self.stage != Stage::Ended {
            self.stage = Stage::Ended;
            // If the client is closed, the cluster aborts by itself.
            let _ = self.client.shared.call(Call::Abort { ttid: self.ttid });
        }
    }

    fn expect(&self, stage: Stage) -> Result<()> {
        match (self.stage, stage) {
            (Stage::Ended, _) => Err(Error::Transaction("the transaction is over")),
            (Stage::Voted, Stage::Open) => Err(Error::Transaction("the transaction is voted")),
            (Stage::Open, Stage::Voted) => Err(Error::Transaction("the transaction is not voted")),
            _ => Ok(()),
        }
    }

    fn send_store(
        &self,
        oid: Oid,
        serial: Tid,
        data: Option<Bytes>,
        data_serial: Option<Tid>,
        resolves: Option<Tid>,
    ) -> Result<Answer> {
        let stored = match &data {
            Some(data) => self.client.options().compression.store(data),
            None => Stored::nothing(),
        };
        let ttid = self.ttid;
        let call = Call::Store { ttid, oid, serial, stored, data, data_serial, resolves };
        self.client.shared.call(call)
    }

    /// Waits until all stores are answered and all conflicts resolved.
    pub(super) fn wait_stores(&mut self) -> Result<()> {
        loop {
            match self.client.shared.call(Call::WaitStores { ttid: self.ttid })? {
                Answer::Done => return Ok(()),
                answer => self.settle(answer)?,
            }
        }
    }

    /// Resolves the conflicts of an answer, and those that come out of storing again.
    fn settle(&mut self, answer: Answer) -> Result<()> {
        let mut answers = vec![answer];
        while let Some(answer) = answers.pop() {
            let conflicts = match answer {
                Answer::Done => continue,
                Answer::Conflicts(conflicts) => conflicts,
                other => return Err(unexpected(&other)),
            };
            for conflict in conflicts {
                let (oid, committed) = (conflict.oid, conflict.committed);
                let data = self.resolver.resolve(conflict)?;
                log::info!("conflict on {oid}@{committed} resolved");
                answers.push(self.send_store(oid, committed, Some(data), None, Some(committed))?);
            }
        }
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.abort();
    }
}

/// The turn of this thread to tell what was committed: the client goes on when it ends, even by a
/// panic.
struct Turn<'a>(&'a Client);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Once closed, there is nothing to go on with.
        let _ = self.0.shared.call(Call::Delivered);
    }
}
