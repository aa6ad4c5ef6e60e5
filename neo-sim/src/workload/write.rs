// SPDX-License-Identifier: GPL-2.0-or-later
//! Operations that write: transfers, counters, objects that come and go.

use bytes::Bytes;
use neo_client::Error;
use neo_client::call::Call;
use neo_common::types::{Oid, Tid};

use super::Options;
use super::scene::Kind;
use super::session::{Found, Result, Session, Transaction};
use super::value::Value;

/// What each account contains at first.
pub const ACCOUNT: i64 = 100;

/// Objects that come and go, at most.
const BLOBS_COUNT_MAX: usize = 40;

impl Session {
    fn filler(&mut self, options: &Options) -> usize {
        self.prng.below(options.filler_max + 1)
    }

    fn value(&mut self, kind: Kind, amount: i64, filler_len: usize) -> Bytes {
        let nonce = self.scene.get().nonce();
        Value { kind, amount, nonce }.encode(filler_len)
    }

    /// So many different objects of a kind, or as many as there are.
    pub(super) fn choose(&mut self, kind: Kind, count: usize) -> Vec<Oid> {
        let scene = self.scene.clone();
        let mut oids = scene.get().objects.get(&kind).cloned().unwrap_or_default();
        self.prng.shuffle(&mut oids);
        oids.truncate(count);
        oids
    }

    /// The snapshot that a transaction begins with.
    pub(super) async fn snapshot(&mut self) -> Result<Tid> {
        let last = match self.prng.one_in(4) {
            true => self.sync().await?,
            false => self.last_tid().await?,
        };
        Ok(last.next().unwrap_or(last))
    }

    /// Loads what a transaction needs, from the cache first.
    async fn load_value(&mut self, oid: Oid, before: Tid) -> Result<Option<(Tid, Value)>> {
        let peeked = match self.prng.one_in(2) {
            true => self.peek(oid, Some(before)).await,
            false => None,
        };
        let (serial, data) = match peeked {
            Some(record) => (record.serial, record.data),
            None => match self.load(oid, Some(before)).await? {
                Found::Revision(serial, data) => (serial, data),
                Found::Nothing(_) | Found::Missing => return Ok(None),
            },
        };
        Ok(Value::decode(&data).map(|value| (serial, value)))
    }

    /// Whether this transaction is given up here, on purpose.
    fn gives_up(&mut self, options: &Options) -> bool {
        options.abort_one_in != 0 && self.prng.one_in(options.abort_one_in)
    }

    /// Goes on with a transaction, and ends it.
    pub(super) async fn end(
        &mut self,
        options: &Options,
        txn: &Transaction,
        stored: Result<()>,
    ) -> Result<Option<Tid>> {
        if let Err(error) = stored {
            self.abort(txn).await;
            return Err(error);
        }
        if self.gives_up(options) {
            self.abort(txn).await;
            return Ok(None);
        }
        if let Err(error) = self.vote(txn).await {
            self.abort(txn).await;
            return Err(error);
        }
        if self.gives_up(options) {
            self.abort(txn).await;
            return Ok(None);
        }
        self.finish(txn).await.map(Some)
    }

    pub(super) async fn transfer(&mut self, options: &Options, checked: bool) -> Result<()> {
        let before = self.snapshot().await?;
        let oids = self.choose(Kind::Account, 3);
        let [from, to, others @ ..] = &oids[..] else { return Ok(()) };
        let (from, to) = (*from, *to);
        let (Some((from_serial, from_value)), Some((to_serial, to_value))) =
            (self.load_value(from, before).await?, self.load_value(to, before).await?)
        else {
            return Ok(());
        };
        let relied = match (checked, others.first()) {
            (true, Some(oid)) => {
                self.load_value(*oid, before).await?.map(|(serial, _)| (*oid, serial))
            }
            _ => None,
        };
        let amount = 1 + self.prng.below(10) as i64;
        let filler_len = self.filler(options);
        let from_data = self.value(Kind::Account, from_value.amount - amount, filler_len);
        let to_data = self.value(Kind::Account, to_value.amount + amount, filler_len);
        let txn = self.begin().await?;
        let stored = async {
            if let Some((oid, serial)) = relied {
                self.check_current(&txn, oid, serial).await?;
            }
            self.store(&txn, from, from_serial, Some(from_data), None).await?;
            if checked && self.prng.one_in(2) {
                // Of an object that is stored as well.
                self.check_current(&txn, to, to_serial).await?;
            }
            self.store(&txn, to, to_serial, Some(to_data), None).await
        };
        let stored = stored.await;
        self.end(options, &txn, stored).await?;
        Ok(())
    }

    pub(super) async fn increment(&mut self, options: &Options) -> Result<()> {
        let before = self.snapshot().await?;
        let count = 1 + self.prng.below(3);
        let oids = self.choose(Kind::Counter, count);
        let mut values = Vec::new();
        for oid in oids {
            if let Some((serial, value)) = self.load_value(oid, before).await? {
                values.push((oid, serial, value.amount));
            }
        }
        let txn = self.begin().await?;
        let stored = async {
            for (oid, serial, amount) in values {
                let data = self.value(Kind::Counter, amount + 1, 0);
                self.store(&txn, oid, serial, Some(data), None).await?;
            }
            Ok(())
        };
        let stored = stored.await;
        self.end(options, &txn, stored).await?;
        Ok(())
    }

    pub(super) async fn blobs(&mut self, options: &Options) -> Result<()> {
        let before = self.snapshot().await?;
        let count = 1 + self.prng.below(4);
        let mut changes = Vec::new();
        for oid in self.choose(Kind::Blob, count) {
            let serial = match self.load(oid, Some(before)).await? {
                Found::Revision(serial, _) | Found::Nothing(serial) => serial,
                Found::Missing => continue,
            };
            let deleted = self.prng.one_in(5);
            changes.push((oid, serial, deleted));
        }
        let deleted_count = changes.iter().filter(|(_, _, deleted)| *deleted).count();
        let existing = self.scene.get().objects.get(&Kind::Blob).map_or(0, Vec::len);
        let mut created = Vec::new();
        if existing < BLOBS_COUNT_MAX {
            for _ in 0..self.prng.below(3) {
                let oid = self.new_oid().await?;
                changes.push((oid, Tid::ZERO, false));
                created.push(oid);
            }
        }
        let txn = self.begin().await?;
        let stored = async {
            for (oid, serial, deleted) in changes {
                let filler_len = self.filler(options);
                let data = self.value(Kind::Blob, 0, filler_len);
                self.store(&txn, oid, serial, Some(data).filter(|_| !deleted), None).await?;
                if self.prng.one_in(10) {
                    // Again in the same transaction.
                    let data = self.value(Kind::Blob, 1, 0);
                    self.store(&txn, oid, serial, Some(data), None).await?;
                }
            }
            Ok(())
        };
        let stored = stored.await;
        if self.end(options, &txn, stored).await?.is_some() {
            let mut scene = self.scene.get();
            (0..deleted_count).for_each(|_| scene.count("objects deleted"));
            scene.created(Kind::Blob, &created);
        }
        Ok(())
    }

    pub(super) async fn empty(&mut self) -> Result<()> {
        let txn = self.begin().await?;
        self.commit(&txn).await?;
        Ok(())
    }

    /// Makes accounts and counters, in a few transactions.
    pub(super) async fn populate(&mut self, options: &Options) -> Result<()> {
        let missing = |session: &Self, kind, count: usize| {
            count - session.scene.get().objects.get(&kind).map_or(0, Vec::len)
        };
        // All accounts at once: their sum is right from the beginning.
        for (kind, count) in
            [(Kind::Account, options.accounts_count), (Kind::Counter, options.counters_count)]
        {
            let count = missing(self, kind, count);
            if count == 0 {
                continue;
            }
            let txn = self.begin().await?;
            let mut oids = Vec::new();
            let stored = async {
                for _ in 0..count {
                    let oid = self.new_oid().await?;
                    let amount = if kind == Kind::Account { ACCOUNT } else { 0 };
                    let data = self.value(kind, amount, 10);
                    self.store(&txn, oid, Tid::ZERO, Some(data), None).await?;
                    oids.push(oid);
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = stored.await {
                self.abort(&txn).await;
                return Err(error);
            }
            self.commit(&txn).await?;
            self.scene.get().created(kind, &oids);
        }
        Ok(())
    }

    /// Asks something that the master must answer.
    pub(super) async fn master(
        &mut self,
        packet: neo_common::protocol::Packet,
    ) -> Result<neo_common::protocol::Packet> {
        match self.call(Call::Master { packet }).await? {
            neo_client::call::Answer::Packet(packet) => Ok(packet),
            other => Err(Self::unexpected(&other)),
        }
    }
}
