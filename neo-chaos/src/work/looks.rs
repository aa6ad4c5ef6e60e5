// SPDX-License-Identifier: GPL-2.0-or-later
//! Operations that look: sums, old states, histories, iteration.

use neo_client::{Error, Result, Transactions};
use neo_common::types::{Oid, Tid};
use neo_sim::workload::scene::Kind;
use neo_sim::workload::value::Value;
use serde_json::json;

use super::session::{Found, Which, Worker};
use crate::history::{digest, now};

/// Transactions that an iteration goes back, at most.
const WALK_LEN: usize = 40;
/// Transactions whose records are read in the end, at most: a part of them, if there are more.
const READ_LEN: usize = 20_000;

impl Worker {
    /// Adds all accounts up in one snapshot.
    pub fn sum(&mut self) -> Result<()> {
        let begin = now();
        let before = self.snapshot()?;
        let oids = self.choose(Kind::Account, usize::MAX);
        if self.prng.one_in(2) {
            self.shared.client.prefetch(&oids, before)?;
        }
        let mut sum = 0;
        for oid in &oids {
            match self.load(*oid, Which::Before(before))? {
                Found::Revision(_, data) => sum += Value::decode(&data).map_or(0, |v| v.amount),
                Found::Nothing(_) | Found::Missing => {}
            }
        }
        self.shared.history.write(&json!({
            "k": "sum", "th": self.number, "b": begin, "e": now(), "before": before.to_string(),
            "sum": sum, "count": oids.len(),
        }));
        Ok(())
    }

    /// Reads old states: before some transaction, or exactly a revision, or the current one.
    pub fn past(&mut self) -> Result<()> {
        for _ in 0..1 + self.prng.below(5) {
            let last = self.shared.client.last_tid()?;
            let (Some(oid), Some(tid)) = (self.any_object(), self.any_transaction(usize::MAX))
            else {
                return Ok(());
            };
            match self.prng.below(4) {
                0 => {
                    self.load(oid, Which::Current)?;
                }
                1 => {
                    self.load(oid, Which::At(tid))?;
                }
                2 => {
                    self.peek(oid, tid.min(last));
                }
                // Of what this client does not know yet, it can know nothing.
                _ => {
                    let before = tid.min(last).next().unwrap_or(tid);
                    self.load(oid, Which::Before(before))?;
                }
            }
        }
        Ok(())
    }

    /// Asks for the history of an object.
    pub fn history(&mut self) -> Result<()> {
        let last = self.shared.client.last_tid()?;
        let Some(oid) = self.any_object() else { return Ok(()) };
        let max = 1 + self.prng.below(30);
        let begin = now();
        let tids: Vec<String> = match self.shared.client.history(oid, max as u64) {
            Ok(history) => history.iter().map(|(tid, _)| tid.to_string()).collect(),
            Err(error) if error.is_key_error() => Vec::new(),
            Err(error) => return Err(error),
        };
        self.shared.history.write(&json!({
            "k": "history", "th": self.number, "b": begin, "e": now(), "oid": oid.to_string(),
            "max": max, "tids": tids, "last": last.to_string(),
        }));
        Ok(())
    }

    /// Iterates over the last transactions, with their records.
    pub fn walk(&mut self) -> Result<()> {
        let last = self.shared.client.last_tid()?;
        let Some(start) = self.any_transaction(WALK_LEN).filter(|tid| *tid <= last) else {
            return Ok(());
        };
        self.walk_range(start, last, 1)?;
        Ok(())
    }

    /// Iterates over a range, and over the records of one transaction out of so many. Returns packs.
    fn walk_range(&mut self, start: Tid, stop: Tid, one_in: usize) -> Result<Vec<Tid>> {
        let begin = now();
        let mut transactions = self.shared.client.iterate(Some(start), Some(stop));
        let (mut tids, mut packs) = (Vec::new(), Vec::new());
        while let Some(info) = transactions.next_transaction()? {
            if tids.len().is_multiple_of(one_in) {
                self.records(&mut transactions, info.tid)?;
            }
            if info.description.ends_with(b" pack") {
                packs.push(info.tid);
            }
            tids.push(info.tid.to_string());
        }
        self.shared.history.write(&json!({
            "k": "walk", "th": self.number, "b": begin, "e": now(), "start": start.to_string(),
            "stop": stop.to_string(), "tids": tids,
        }));
        Ok(packs)
    }

    fn records(&self, transactions: &mut Transactions, tid: Tid) -> Result<()> {
        loop {
            let begin = now();
            let Some(record) = transactions.next_record()? else { return Ok(()) };
            let mut line = json!({
                "k": "load", "th": self.number, "b": begin, "e": now(), "how": "at",
                "oid": record.oid.to_string(), "arg": tid.to_string(),
                "serial": record.tid.to_string(), "next": "?",
                "got": if record.data.is_some() { "data" } else { "nothing" },
            });
            if let Some(data) = &record.data {
                line["sha"] = json!(digest(data));
            }
            self.shared.history.write(&line);
        }
    }

    /// Asks which objects exist.
    pub fn oids(&mut self) -> Result<()> {
        let begin = now();
        let tid = self.shared.client.last_tid()?;
        let oids = self.shared.client.oids(Some(tid), Oid::ZERO, None);
        let oids = oids.map(|oid| oid.map(|oid| oid.to_string())).collect::<Result<Vec<_>>>()?;
        self.shared.history.write(&json!({
            "k": "oids", "th": self.number, "b": begin, "e": now(), "tid": tid.to_string(),
            "oids": oids,
        }));
        Ok(())
    }

    /// Reads all transactions back. Returns the packs.
    pub fn read_all(&mut self) -> Result<Vec<Tid>> {
        let last = self.shared.client.sync()?;
        let count = self.count(last)?;
        let packs = self.walk_range(Tid::ZERO, last, 1 + count / READ_LEN)?;
        self.oids()?;
        Ok(packs)
    }

    fn count(&self, last: Tid) -> Result<usize> {
        let mut transactions = self.shared.client.iterate(None, Some(last));
        let mut count = 0;
        while transactions.next_transaction()?.is_some() {
            count += 1;
        }
        if count == 0 { Err(Error::Invalid("the database is empty")) } else { Ok(count) }
    }
}
