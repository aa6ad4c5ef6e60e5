// SPDX-License-Identifier: GPL-2.0-or-later
//! One thread of an application: what the blocking interface of the client crate does with calls,
//! with each result told to the model.

use std::time::Duration;

use bytes::Bytes;
use neo_client::call::{Answer, Call};
use neo_client::compression::{Compression, Stored};
use neo_client::{Conflict, Error, Record};
use neo_common::prng::Prng;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Partition, Tid, Ttid};

use super::scene::Scene;
use crate::checkers::reads::{Asked, Got, Read};
use crate::model::{AttemptId, Content, Metadata, Outcome, Pack, Violation, Write};
use crate::port::{Dealt, Port, Replied};

/// Result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a load found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// A revision.
    Revision(Tid, Bytes),
    /// A revision without data.
    Nothing(Tid),
    /// None.
    Missing,
}

/// A transaction under way.
#[derive(Debug)]
pub struct Transaction {
    /// Its temporary id.
    pub ttid: Ttid,
    /// In the model.
    pub attempt: AttemptId,
}

/// What resolves conflicts: from data of base, committed and own revision.
pub type Resolve = fn(&[u8], &[u8], &[u8], u64) -> Option<Bytes>;

/// One thread of an application.
pub struct Session {
    /// Its client.
    pub port: Port,
    /// What it shares with others.
    pub scene: Scene,
    /// Number of the client process: each life has its own.
    pub client: usize,
    /// What it decides with.
    pub prng: Prng,
    /// How it compresses.
    pub compression: Compression,
    /// How it resolves conflicts.
    pub resolve: Resolve,
    /// One step out of so many is followed by a pause; 0: never.
    pub dawdle_one_in: u64,
}

impl Session {
    /// Takes its time, sometimes.
    async fn dawdle(&mut self) {
        if self.dawdle_one_in != 0 && self.prng.one_in(self.dawdle_one_in) {
            let delay = Duration::from_micros(self.prng.below(50_000) as u64);
            self.port.sleep(delay).await;
        }
    }

    /// Makes a call whose reply has nothing to check.
    pub async fn call(&mut self, call: Call) -> Result<Answer> {
        self.port.call(call).await.reply
    }

    // Reading.

    /// Loads the last revision before a tid, or the current one.
    pub async fn load(&mut self, oid: Oid, before: Option<Tid>) -> Result<Found> {
        self.load_with(oid, None, before).await
    }

    /// Loads exactly a revision.
    pub async fn load_at(&mut self, oid: Oid, at: Tid) -> Result<Found> {
        self.load_with(oid, Some(at), None).await
    }

    async fn load_with(&mut self, oid: Oid, at: Option<Tid>, before: Option<Tid>) -> Result<Found> {
        let mut replied = self.port.call(Call::Load { oid, at, before }).await;
        let last_before = replied.last_before;
        let mut note = "cached";
        // What is current according to the cache is so now; a storage said so when it looked.
        let mut as_of = None;
        if let Ok(Answer::Object(object)) = replied.reply {
            note = "loaded";
            as_of = Some(last_before.unwrap_or(Tid::ZERO));
            let Ok(data) = object.stored.load() else {
                let text = format!("{oid} at {} is damaged", object.serial);
                self.scene.get().violations.push(Violation(text));
                return Err(Error::WrongChecksum { oid, serial: object.serial });
            };
            self.dawdle().await;
            replied = self.port.call(Call::Loaded { load: object.load, data }).await;
        }
        let last_after = replied.last_after;
        let (found, got) = match replied.reply {
            Ok(Answer::Cached(Record { data, serial, next_serial })) => {
                let content = Content::Data(data.clone()); // a reference, not a copy
                (
                    Found::Revision(serial, data),
                    Got::Revision { serial, next: next_serial, content },
                )
            }
            Ok(other) => return Err(Self::unexpected(&other)),
            Err(Error::CreationUndone { serial, .. }) => {
                (Found::Nothing(serial), Got::Nothing { serial })
            }
            Err(Error::OidNotFound(_) | Error::OidDoesNotExist(_)) => {
                (Found::Missing, Got::Missing)
            }
            Err(error) => return Err(error),
        };
        let as_of = as_of.or(last_after);
        self.checked_read(oid, at, before, (last_before, last_after), got, (note, as_of));
        Ok(found)
    }

    /// What the cache has.
    pub async fn peek(&mut self, oid: Oid, before: Option<Tid>) -> Option<Record> {
        let Replied { reply, last_before, last_after } = self.port.peek(oid, before).await;
        if let Some(Record { data, serial, next_serial }) = &reply {
            let content = Content::Data(data.clone()); // a reference, not a copy
            let got = Got::Revision { serial: *serial, next: *next_serial, content };
            let last = (last_before, last_after);
            self.checked_read(oid, None, before, last, got, ("peeked", last_after));
        }
        reply
    }

    fn checked_read(
        &self,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
        (last_before, last_after): (Option<Tid>, Option<Tid>),
        got: Got,
        (note, as_of): (&'static str, Option<Tid>),
    ) {
        // Without bound, the client takes its last tid of some moment between request and reply.
        let next = |tid: Option<Tid>| tid.and_then(Tid::next).unwrap_or(Tid::ZERO);
        let asked = match (at, before) {
            (Some(at), _) => Asked::At(at),
            (None, Some(before)) => Asked::Before { low: before, high: before },
            (None, None) => Asked::Before { low: next(last_before), high: next(last_after) },
        };
        let mut scene = self.scene.get();
        let packs_count = scene.model.packs_count();
        let last_tid = as_of.unwrap_or(Tid::ZERO);
        let client = self.client;
        scene.count("loads");
        scene.read(Read { client, oid, asked, got, last_tid, packs_count, note });
    }

    /// Asks a storage.
    pub async fn read(&mut self, partition: Partition, packet: Packet) -> Result<Packet> {
        match self.call(Call::Read { partition, packet, ttid: None }).await? {
            Answer::Packet(packet) => Ok(packet),
            other => Err(Self::unexpected(&other)),
        }
    }

    /// Number of partitions.
    pub async fn partitions(&mut self) -> Result<u32> {
        match self.call(Call::Partitions).await? {
            Answer::Partitions(partitions) => Ok(partitions),
            other => Err(Self::unexpected(&other)),
        }
    }

    /// The last tid, waiting for the connection if there was none yet.
    pub async fn last_tid(&mut self) -> Result<Tid> {
        loop {
            if let Some(tid) = self.port.last_tid() {
                return Ok(tid);
            }
            self.call(Call::Connect).await?;
        }
    }

    /// Waits until all that was committed before is delivered.
    pub async fn sync(&mut self) -> Result<Tid> {
        let known = {
            let scene = self.scene.get();
            scene.model.committed_tids().next_back().unwrap_or(Tid::ZERO)
        };
        match self.call(Call::Sync).await? {
            Answer::Tid(tid) => {
                let tid = tid.unwrap_or(Tid::ZERO);
                if tid < known && self.scene.get().has_one_master {
                    let text = format!("a sync gives {tid}, {known} was committed before");
                    self.scene.get().violations.push(Violation(text));
                }
                Ok(tid)
            }
            other => Err(Self::unexpected(&other)),
        }
    }

    /// Reserves an oid.
    pub async fn new_oid(&mut self) -> Result<Oid> {
        match self.call(Call::NewOid).await? {
            Answer::Oid(oid) => Ok(oid),
            other => Err(Self::unexpected(&other)),
        }
    }

    // Writing.

    /// Begins a transaction.
    pub async fn begin(&mut self) -> Result<Transaction> {
        match self.call(Call::Begin { tid: None }).await? {
            Answer::Begun(ttid) => {
                let attempt = self.scene.get().model.begin(self.client, ttid);
                Ok(Transaction { ttid, attempt })
            }
            other => Err(Self::unexpected(&other)),
        }
    }

    /// Stores an object.
    pub async fn store(
        &mut self,
        txn: &Transaction,
        oid: Oid,
        serial: Tid,
        data: Option<Bytes>,
        data_serial: Option<Tid>,
    ) -> Result<()> {
        self.dawdle().await;
        let answer = self.send_store(txn, oid, serial, data, data_serial, None).await?;
        self.settle(txn, answer).await
    }

    async fn send_store(
        &mut self,
        txn: &Transaction,
        oid: Oid,
        serial: Tid,
        data: Option<Bytes>,
        data_serial: Option<Tid>,
        resolves: Option<Tid>,
    ) -> Result<Answer> {
        let stored = match &data {
            Some(data) => self.compression.store(data),
            None => Stored::nothing(),
        };
        let content = match &data {
            Some(data) => Content::Data(data.clone()), // a reference, not a copy
            None => Content::Nothing { told: data_serial.is_some() },
        };
        {
            let mut scene = self.scene.get();
            let attempt = scene.model.attempt_mut(txn.attempt);
            attempt.checks.remove(&oid);
            attempt.writes.insert(oid, Write { base: serial, content });
        }
        let ttid = txn.ttid;
        self.call(Call::Store { ttid, oid, serial, stored, data, data_serial, resolves }).await
    }

    /// Makes sure that a revision is current until the end of the transaction.
    pub async fn check_current(&mut self, txn: &Transaction, oid: Oid, serial: Tid) -> Result<()> {
        {
            let mut scene = self.scene.get();
            let attempt = scene.model.attempt_mut(txn.attempt);
            if !attempt.writes.contains_key(&oid) {
                attempt.checks.insert(oid, serial);
            }
            scene.count("serials checked");
        }
        let answer = self.call(Call::CheckSerial { ttid: txn.ttid, oid, serial }).await?;
        self.settle(txn, answer).await
    }

    /// Waits until all stores are answered and all conflicts resolved.
    pub async fn wait_stores(&mut self, txn: &Transaction) -> Result<()> {
        loop {
            match self.call(Call::WaitStores { ttid: txn.ttid }).await? {
                Answer::Done => return Ok(()),
                answer => self.settle(txn, answer).await?,
            }
        }
    }

    /// Resolves the conflicts of an answer, and those that come out of storing again.
    async fn settle(&mut self, txn: &Transaction, answer: Answer) -> Result<()> {
        let mut answers = vec![answer];
        while let Some(answer) = answers.pop() {
            let conflicts = match answer {
                Answer::Done => continue,
                Answer::Conflicts(conflicts) => conflicts,
                other => return Err(Self::unexpected(&other)),
            };
            for conflict in conflicts {
                let (oid, committed) = (conflict.oid, conflict.committed);
                let data = self.resolve_conflict(conflict).await?;
                self.scene.get().count("conflicts resolved");
                let stored =
                    self.send_store(txn, oid, committed, Some(data), None, Some(committed));
                answers.push(stored.await?);
            }
        }
        Ok(())
    }

    async fn resolve_conflict(&mut self, conflict: Conflict) -> Result<Bytes> {
        let failed = || Error::Conflict(conflict.clone());
        let Some(own) = conflict.data.clone() else { return Err(failed()) };
        let committed = match &conflict.committed_data {
            Some(data) => data.clone(),
            None => match self.load_at(conflict.oid, conflict.committed).await? {
                Found::Revision(_, data) => data,
                Found::Nothing(_) | Found::Missing => return Err(failed()),
            },
        };
        let Found::Revision(_, base) = self.load_at(conflict.oid, conflict.base).await? else {
            return Err(failed());
        };
        let nonce = self.scene.get().nonce();
        (self.resolve)(&base, &committed, &own, nonce).ok_or_else(failed)
    }

    /// Makes a transaction order a pack.
    pub async fn set_pack(
        &mut self,
        txn: &Transaction,
        tid: Tid,
        oids: Option<Vec<Oid>>,
    ) -> Result<()> {
        let pack = Pack { tid, oids: oids.as_ref().map(|oids| oids.iter().copied().collect()) };
        self.scene.get().model.attempt_mut(txn.attempt).pack = Some(pack);
        self.call(Call::SetPack { ttid: txn.ttid, pack: (oids, tid) }).await?;
        Ok(())
    }

    /// Votes.
    pub async fn vote(&mut self, txn: &Transaction) -> Result<()> {
        self.dawdle().await;
        let (user, description) = {
            let mut scene = self.scene.get();
            let nonce = scene.nonce();
            let user = Bytes::from(format!("user {}", self.client));
            let description = Bytes::from(format!("transaction {nonce}"));
            let metadata = Metadata { user: user.clone(), description: description.clone() };
            scene.model.attempt_mut(txn.attempt).metadata = metadata;
            (user, description)
        };
        loop {
            let (user, description) = (user.clone(), description.clone());
            let extension = Bytes::new();
            let vote = Call::Vote { ttid: txn.ttid, user, description, extension };
            match self.call(vote).await? {
                Answer::Resolved(_) => return Ok(()),
                // A lock was given back meanwhile.
                answer => self.settle(txn, answer).await?,
            }
        }
    }

    /// Commits.
    pub async fn finish(&mut self, txn: &Transaction) -> Result<Tid> {
        self.dawdle().await;
        self.scene.get().model.finishing(txn.attempt);
        let reply = self.call(Call::Finish { ttid: txn.ttid }).await;
        match reply {
            Ok(Answer::Finished(tid)) => {
                {
                    let mut scene = self.scene.get();
                    let checked = scene.model.committed(txn.attempt, tid);
                    scene.check(checked);
                    scene.count("commits");
                }
                self.dawdle().await;
                self.delivered(tid).await;
                Ok(tid)
            }
            Ok(other) => Err(Self::unexpected(&other)),
            Err(error) => {
                let mut scene = self.scene.get();
                // Otherwise it remains in doubt.
                if !matches!(error, Error::OutcomeUnknown(_)) {
                    let checked = scene.model.aborted(txn.attempt);
                    scene.check(checked);
                }
                Err(error)
            }
        }
    }

    /// The application has dealt with an own transaction.
    async fn delivered(&mut self, tid: Tid) {
        self.port.put_dealt(Dealt::Transaction(tid));
        // The client may be closed.
        let _ = self.call(Call::Delivered).await;
    }

    /// Aborts.
    pub async fn abort(&mut self, txn: &Transaction) {
        {
            let mut scene = self.scene.get();
            if scene.model.attempt(txn.attempt).outcome == Outcome::Open {
                let checked = scene.model.aborted(txn.attempt);
                scene.check(checked);
            }
            scene.count("aborts");
        }
        // If the client is closed, the cluster aborts by itself.
        let _ = self.call(Call::Abort { ttid: txn.ttid }).await;
    }

    /// Votes and commits; aborts if the vote fails, as applications do.
    pub async fn commit(&mut self, txn: &Transaction) -> Result<Tid> {
        if let Err(error) = self.vote(txn).await {
            self.abort(txn).await;
            return Err(error);
        }
        self.finish(txn).await
    }

    /// The core gives each call its own kind of answer.
    pub fn unexpected(answer: &Answer) -> Error {
        Error::Foreign(std::sync::Arc::new(std::io::Error::other(format!(
            "unexpected answer: {answer:?}"
        ))))
    }
}
