// SPDX-License-Identifier: GPL-2.0-or-later
//! Operations that look at what there is, and those that change the past: undo and pack.

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_client::Error;
use neo_client::call::{Answer, Call};
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Partition, Tid};

use super::Options;
use super::scene::Kind;
use super::session::{Found, Result, Session, Transaction};
use super::value::Value;
use super::write::ACCOUNT;
use crate::checkers::reads::{History, OidWalk, Walk};
use crate::model::{Attempt, Content, Model, Violation};

/// Tids or oids asked at once.
const CHUNK_LEN: u32 = 50;

impl Session {
    /// Adds all accounts up in one snapshot.
    pub(super) async fn sum(&mut self) -> Result<()> {
        let before = self.snapshot().await?;
        let oids = self.choose(Kind::Account, usize::MAX);
        let mut sum = 0;
        for oid in &oids {
            match self.load(*oid, Some(before)).await? {
                Found::Revision(_, data) => sum += Value::decode(&data).map_or(0, |v| v.amount),
                // Before the beginning.
                Found::Nothing(_) | Found::Missing => return Ok(()),
            }
        }
        let expected = oids.len() as i64 * ACCOUNT;
        if sum != expected {
            let mut scene = self.scene.get();
            let culprit = culprit(&scene.model, &oids, expected, before);
            let text = format!(
                "the sum of accounts before {before} is {sum}, not {expected}; in the model, it is \
                 wrong since {culprit:?}"
            );
            scene.violations.push(Violation(text));
        }
        Ok(())
    }

    /// Any object that was ever used.
    fn any_object(&mut self) -> Option<Oid> {
        let scene = self.scene.clone();
        let scene = scene.get();
        let oids: Vec<Oid> = scene.objects.values().flatten().copied().collect();
        self.prng.choose(&oids).copied()
    }

    /// A transaction that is known to be committed.
    fn any_transaction(&mut self, recent: bool) -> Option<Tid> {
        let scene = self.scene.clone();
        let scene = scene.get();
        let len = if recent { 10 } else { usize::MAX };
        let tids: Vec<Tid> = scene.model.committed_tids().rev().take(len).collect();
        self.prng.choose(&tids).copied()
    }

    /// Reads old states: before some transaction, or exactly a revision, or the current one.
    pub(super) async fn past(&mut self) -> Result<()> {
        for _ in 0..1 + self.prng.below(5) {
            let last = self.last_tid().await?;
            let (Some(oid), Some(tid)) = (self.any_object(), self.any_transaction(false)) else {
                return Ok(());
            };
            match self.prng.below(4) {
                0 => {
                    self.load(oid, None).await?;
                }
                1 => {
                    self.load_at(oid, tid).await?;
                }
                2 => {
                    self.peek(oid, None).await;
                }
                // Of what this client does not know yet, it can know nothing.
                _ => {
                    let before = tid.min(last).next().unwrap_or(tid);
                    self.load(oid, Some(before)).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks for the history of an object, and for metadata.
    pub(super) async fn history(&mut self) -> Result<()> {
        let last_tid = self.last_tid().await?;
        let partitions = self.partitions().await?;
        if let Some(oid) = self.any_object() {
            let count_max = 1 + self.prng.below(30);
            let packet = Packet::AskObjectHistory { oid, first: 0, last: count_max as u64 };
            let tids = match self.read(oid.partition(partitions), packet).await {
                Ok(Packet::AnswerObjectHistory { history, .. }) => {
                    history.into_iter().map(|(tid, _)| tid).collect()
                }
                Ok(_) => return Ok(()),
                Err(error) if error.is_key_error() => Vec::new(),
                Err(error) => return Err(error),
            };
            let mut scene = self.scene.get();
            let packs_count = scene.model.packs_count();
            scene.histories.push(History { oid, tids, count_max, last_tid, packs_count });
        }
        if let Some(tid) = self.any_transaction(false).filter(|tid| *tid <= last_tid) {
            self.information(partitions, tid).await?;
        }
        Ok(())
    }

    /// Metadata of a transaction that is committed.
    async fn information(&mut self, partitions: u32, tid: Tid) -> Result<Vec<Oid>> {
        let packet = Packet::AskTransactionInformation { tid };
        let answer = self.read(tid.partition(partitions), packet).await?;
        let Packet::AnswerTransactionInformation { user, description, oids, .. } = answer else {
            return Ok(Vec::new());
        };
        let mut scene = self.scene.get();
        if let Some(attempt) = scene.model.transaction(tid) {
            let expected: Vec<Oid> = attempt.writes.keys().copied().collect();
            let mut sorted = oids.clone();
            sorted.sort_unstable();
            let metadata = &attempt.metadata;
            if metadata.user != user || metadata.description != description || sorted != expected {
                let text = format!(
                    "wrong metadata of {tid}: {user:?} {description:?} {oids:?} instead of \
                     {attempt:?}"
                );
                scene.violations.push(Violation(text));
            }
        }
        Ok(oids)
    }

    /// Walks over transactions, or over oids, from all partitions.
    pub(super) async fn walk(&mut self) -> Result<()> {
        let last = self.last_tid().await?;
        let partitions = self.partitions().await?;
        if self.prng.one_in(3) {
            return self.walk_oids(partitions, last).await;
        }
        let start = match self.prng.one_in(3) {
            true => Tid::ZERO,
            false => self.any_transaction(false).unwrap_or(Tid::ZERO),
        };
        let mut tids = Vec::new();
        for partition in 0..partitions {
            tids.extend(self.walk_partition(partition, start, last).await?);
        }
        tids.sort_unstable();
        let looked_at: Vec<Tid> = (0..3).filter_map(|_| self.prng.choose(&tids).copied()).collect();
        self.scene.get().walks.push(Walk { start, stop: last, tids });
        for tid in looked_at {
            for oid in self.information(partitions, tid).await? {
                self.load_at(oid, tid).await?;
            }
        }
        Ok(())
    }

    async fn walk_partition(
        &mut self,
        partition: Partition,
        mut min_tid: Tid,
        max_tid: Tid,
    ) -> Result<Vec<Tid>> {
        let mut found = Vec::new();
        loop {
            let packet = Packet::AskTIDsFrom { min_tid, max_tid, length: CHUNK_LEN, partition };
            let Packet::AnswerTIDsFrom { tids } = self.read(partition, packet).await? else {
                return Ok(found);
            };
            let more = tids.len() >= CHUNK_LEN as usize;
            found.extend(&tids);
            match tids.last().filter(|_| more).and_then(|tid| tid.next()) {
                Some(next) if next <= max_tid => min_tid = next,
                _ => return Ok(found),
            }
        }
    }

    async fn walk_oids(&mut self, partitions: u32, tid: Tid) -> Result<()> {
        let mut found = Vec::new();
        for partition in 0..partitions {
            let mut min_oid = Oid::ZERO;
            loop {
                let packet = Packet::AskOIDsFrom { partition, length: CHUNK_LEN, min_oid, tid };
                let answer = self.read(partition, packet).await?;
                let Packet::AnswerOIDsFrom { next_oid, oids } = answer else { return Ok(()) };
                found.extend(oids);
                match next_oid {
                    Some(next) if next > min_oid => min_oid = next,
                    _ => break,
                }
            }
        }
        found.sort_unstable();
        let mut scene = self.scene.get();
        let packs_count = scene.model.packs_count();
        scene.oid_walks.push(OidWalk { tid, oids: found, packs_count });
        Ok(())
    }

    /// Undoes a recent transaction.
    pub(super) async fn undo(&mut self, options: &Options) -> Result<()> {
        let last = self.last_tid().await?;
        let Some(undone) = self.any_transaction(true).filter(|tid| *tid <= last) else {
            return Ok(());
        };
        let partitions = self.partitions().await?;
        let oids = self.information(partitions, undone).await?;
        let txn = self.begin().await?;
        let stored = self.undo_in(&txn, partitions, undone, &oids).await;
        self.end(options, &txn, stored).await?;
        Ok(())
    }

    async fn undo_in(
        &mut self,
        txn: &Transaction,
        partitions: u32,
        undone_tid: Tid,
        oids: &[Oid],
    ) -> Result<()> {
        let ttid = txn.ttid;
        self.call(Call::KeepData { ttid }).await?;
        self.wait_stores(txn).await?;
        let mut rows = BTreeMap::<Partition, Vec<Oid>>::new();
        for oid in oids {
            rows.entry(oid.partition(partitions)).or_default().push(*oid);
        }
        let ltid = self.last_tid().await?.next().unwrap_or(Tid::MAX);
        let mut found = BTreeMap::new();
        for (partition, oids) in rows {
            let packet = Packet::AskObjectUndoSerial { ttid, ltid, undone_tid, oids };
            match self.call(Call::Read { partition, packet, ttid: Some(ttid) }).await? {
                Answer::Packet(Packet::AnswerObjectUndoSerial { serials }) => found.extend(serials),
                other => return Err(Self::unexpected(&other)),
            }
        }
        // As a whole or not at all: the others may be packed away.
        if let Some(oid) = oids.iter().find(|oid| !found.contains_key(oid)) {
            return Err(Error::Undo { reason: "simulated application", oid: Some(*oid) });
        }
        for (oid, (current, target, is_current)) in found {
            self.undo_object(txn, undone_tid, oid, current, target, is_current).await?;
        }
        self.wait_stores(txn).await
    }

    async fn undo_object(
        &mut self,
        txn: &Transaction,
        undone: Tid,
        oid: Oid,
        current: Tid,
        target: Option<Tid>,
        is_current: bool,
    ) -> Result<()> {
        let cannot = || Error::Undo { reason: "simulated application", oid: Some(oid) };
        // A storage cannot tell an object that was created by the undone transaction from one whose
        // earlier revisions were packed away since, as upstream: to undo would delete the object.
        // Applications do not undo what they have packed.
        if target.is_none() && self.scene.get().model.last_before(oid, undone).is_some() {
            return Err(cannot());
        }
        if is_current {
            let data = match target {
                None => None,
                Some(target) => match self.load_at(oid, target).await? {
                    Found::Revision(_, data) => Some(data),
                    Found::Nothing(_) => None,
                    Found::Missing => return Err(cannot()),
                },
            };
            return self.store(txn, oid, current, data, target).await;
        }
        let target = target.ok_or_else(cannot)?;
        let mut revisions = Vec::new();
        for tid in [undone, current, target] {
            match self.load_at(oid, tid).await? {
                Found::Revision(_, data) => revisions.push(data),
                Found::Nothing(_) | Found::Missing => return Err(cannot()),
            }
        }
        let nonce = self.scene.get().nonce();
        let data: Option<Bytes> =
            (self.resolve)(&revisions[0], &revisions[1], &revisions[2], nonce);
        self.store(txn, oid, current, Some(data.ok_or_else(cannot)?), None).await
    }

    /// Orders a pack, and sometimes waits for it.
    pub(super) async fn pack(&mut self) -> Result<()> {
        let last = self.last_tid().await?;
        let Some(tid) = self.any_transaction(false).filter(|tid| *tid <= last) else {
            return Ok(());
        };
        let oids = match self.prng.one_in(2) {
            true => None,
            false => {
                let mut oids: Vec<Oid> = (0..4).filter_map(|_| self.any_object()).collect();
                oids.sort_unstable();
                oids.dedup();
                Some(oids).filter(|oids| !oids.is_empty())
            }
        };
        let txn = self.begin().await?;
        if let Err(error) = self.set_pack(&txn, tid, oids).await {
            self.abort(&txn).await;
            return Err(error);
        }
        let id = self.commit(&txn).await?;
        if self.prng.one_in(2) {
            self.master(Packet::WaitForPack { tid: id }).await?;
            self.call(Call::ClearCache).await?;
        }
        Ok(())
    }
}

/// The first transaction after which the sum is wrong in the model, if any.
fn culprit(model: &Model, oids: &[Oid], expected: i64, before: Tid) -> Option<(Tid, Attempt)> {
    let amount = |oid: Oid, end: Tid| {
        let last = model.last_before(oid, end)?;
        match model.content(oid, last)? {
            Content::Data(data) => Some(Value::decode(data)?.amount),
            Content::Nothing { .. } => None,
        }
    };
    let sum = |end: Tid| oids.iter().map(|oid| amount(*oid, end)).sum::<Option<i64>>();
    let mut tids = model.committed_tids().filter(|tid| *tid < before);
    let tid = tids.find(|tid| tid.next().and_then(sum).is_some_and(|sum| sum != expected))?;
    Some((tid, model.transaction(tid)?.clone()))
}
