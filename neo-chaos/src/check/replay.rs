// SPDX-License-Identifier: GPL-2.0-or-later
//! What applications did and saw, told to the sequential model of the simulator.
//!
//! Each transaction whose commit was asked becomes an attempt: acknowledged, refused, or in doubt (the
//! process was killed). Databases tell which ttid got which tid, so that a tid that anybody saw names an
//! attempt; what was in doubt and seen by nobody is settled by them as well.

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::types::{Oid, Tid, Ttid};
use neo_sim::checkers::reads::{self, Asked, History, OidWalk, Read, Walk};
use neo_sim::checkers::rest::Contents;
use neo_sim::checkers::told::Told as ToldChecker;
use neo_sim::model::{AttemptId, Checked, Content, Metadata, Model, Pack, Violation, Write};

use super::parse::{Got, How, Load, Process, Told, Txn};
use crate::history::digest;

/// See the module documentation.
pub struct Replay<'a> {
    histories: &'a [Process],
    /// What a correct cluster contains.
    pub model: Model,
    attempts: Vec<(&'a Txn, AttemptId)>,
    /// When packs were asked, in the order in which the model knows them.
    packs: Vec<u64>,
    data: BTreeMap<String, Bytes>,
}

impl<'a> Replay<'a> {
    /// Tells the model all that was asked, and which tids there are.
    pub fn new(histories: &'a [Process], contents: &[Contents]) -> Self {
        let mut txns: Vec<(&Process, &Txn)> = histories
            .iter()
            .flat_map(|process| process.txns.iter().map(move |txn| (process, txn)))
            .collect();
        txns.sort_by_key(|(_, txn)| txn.asked.unwrap_or(txn.begin));
        let mut replay = Self {
            histories,
            model: Model::default(),
            attempts: Vec::new(),
            packs: Vec::new(),
            data: BTreeMap::new(),
        };
        for (process, txn) in &txns {
            replay.add(process.index, txn);
        }
        let mut by_tid = BTreeMap::new();
        let known = contents.iter().flat_map(Contents::transactions);
        let told = txns.iter().filter_map(|(_, txn)| {
            let tid = *txn.end.as_ref()?.outcome.as_ref().ok()?;
            Some((tid, txn.ttid))
        });
        for (tid, ttid) in known.chain(told) {
            replay.model.assign(ttid, tid);
            by_tid.insert(tid, ttid);
        }
        replay.undo(&by_tid);
        replay
    }

    /// What is undone becomes what it was before: the last revision before. (Not the one on which the
    /// undone transaction was based: any serial is accepted for an object that is packed away.)
    fn undo(&mut self, by_tid: &BTreeMap<Tid, Ttid>) {
        let asked: BTreeMap<Ttid, AttemptId> = self
            .attempts
            .iter()
            .filter(|(txn, _)| txn.asked.is_some())
            .map(|(txn, id)| (txn.ttid, *id))
            .collect();
        let mut revisions: BTreeMap<Oid, BTreeMap<Tid, AttemptId>> = BTreeMap::new();
        let mut undoes: BTreeMap<AttemptId, Tid> = BTreeMap::new();
        for (tid, ttid) in by_tid {
            let Some(id) = asked.get(ttid) else { continue };
            undoes.insert(*id, *tid);
            for oid in self.model.attempt(*id).writes.keys() {
                revisions.entry(*oid).or_default().insert(*tid, *id);
            }
        }
        // What is undone was committed before, so it is known already, even if it is an undo.
        for (txn, id) in &self.attempts {
            let Some(undone) = txn.undo else { continue };
            for (oid, ..) in &txn.writes {
                let revisions = revisions.get(oid);
                let before = revisions.and_then(|all| all.range(..undone).next_back());
                let before = before.map(|(_, id)| &self.model.attempt(*id).writes[oid].content);
                let content = match before {
                    Some(Content::Data(data)) => Content::Data(data.clone()),
                    // Others are told of it unless the revision before is packed away.
                    Some(Content::Nothing { .. }) | None => {
                        let tid = undoes.get(id);
                        Content::Nothing { told: tid.is_some_and(|tid| self.is_told(*tid, *oid)) }
                    }
                };
                let attempt = self.model.attempt_mut(*id);
                attempt.writes.get_mut(oid).expect("it was added").content = content;
            }
        }
    }

    /// Whether any client was told that a transaction changed an object.
    fn is_told(&self, tid: Tid, oid: Oid) -> bool {
        let told = self.histories.iter().flat_map(|process| &process.told);
        told.into_iter().any(|(_, told)| match told {
            Told::Other(other, oids) => *other == tid && oids.contains(&oid),
            Told::Own(_) | Told::Cache => false,
        })
    }

    fn add(&mut self, client: usize, txn: &'a Txn) {
        let id = self.model.begin(client, txn.ttid);
        self.attempts.push((txn, id));
        let attempt = self.model.attempt_mut(id);
        for (oid, base, data, told) in &txn.writes {
            let content = match data {
                // A reference, not a copy.
                Some(data) => Content::Data(data.clone()),
                None => Content::Nothing { told: *told },
            };
            attempt.writes.insert(*oid, Write { base: *base, content });
            if let Some(data) = data {
                self.data.insert(digest(data), data.clone());
            }
        }
        attempt.checks = txn.checks.iter().copied().collect();
        attempt.pack = txn.pack.as_ref().map(|(tid, oids)| Pack {
            tid: *tid,
            oids: oids.as_ref().map(|oids| oids.iter().copied().collect()),
        });
        attempt.metadata =
            Metadata { user: txn.user.clone(), description: txn.description.clone() };
        if let Some(asked) = txn.asked {
            self.model.finishing(id);
            if txn.pack.is_some() {
                self.packs.push(asked);
            }
        }
    }

    /// What clients were answered. What has no answer remains in doubt.
    pub fn outcomes(&mut self) -> Vec<Checked> {
        let mut checks = Vec::new();
        for (txn, id) in &self.attempts {
            match (txn.asked, txn.end.as_ref().map(|end| &end.outcome)) {
                (Some(_), Some(Ok(tid))) => checks.push(self.model.committed(*id, *tid)),
                (Some(_), None | Some(Err((_, false)))) => {}
                (None, _) | (Some(_), Some(Err((_, true)))) => {
                    checks.push(self.model.aborted(*id));
                }
            }
        }
        checks
    }

    fn packs_count(&self, time: u64) -> usize {
        self.packs.iter().filter(|asked| **asked <= time).count()
    }

    /// All that was loaded.
    pub fn loads(&mut self) -> Vec<Checked> {
        let mut checks = Vec::new();
        for process in self.histories {
            for load in &process.loads {
                let read = self.read(process.index, load);
                checks.push(read.check(&mut self.model, true).map_err(|Violation(text)| {
                    let Load { begin, end, .. } = load;
                    Violation(format!(
                        "{} {} at {begin}..{end}: {text}",
                        process.kind, process.index
                    ))
                }));
            }
        }
        checks
    }

    fn read(&self, client: usize, load: &Load) -> Read {
        let next = |tid: Tid| tid.next().unwrap_or(Tid::INVALID);
        let asked = match load.how {
            How::At(tid) => Asked::At(tid),
            How::Before(tid) | How::Cached(tid) => Asked::Before { low: tid, high: tid },
            // The client takes its last tid of some moment between request and reply.
            How::Current => Asked::Before { low: next(load.last), high: next(load.after) },
        };
        // A revision without next one was current when the client had this last tid, or a later one.
        let mut last_tid = load.last;
        let got = match &load.got {
            Got::Data { serial, next, digest } => {
                if next.is_none() {
                    last_tid = Tid::ZERO;
                }
                let unknown = || Bytes::from(format!("data with the digest {digest}"));
                let data = self.data.get(digest).cloned().unwrap_or_else(unknown);
                let (serial, next) = (*serial, next.flatten());
                reads::Got::Revision { serial, next, content: Content::Data(data) }
            }
            Got::Nothing(serial) => reads::Got::Nothing { serial: *serial },
            Got::Missing => reads::Got::Missing,
            Got::KeyError => self.key_error(load, asked),
        };
        let note = match load.how {
            How::Cached(_) => "cached",
            _ => "loaded",
        };
        let packs_count = self.packs_count(load.end);
        Read { client, oid: load.oid, asked, got, last_tid, packs_count, note }
    }

    /// Nothing if there is a revision without data that may have been read, else missing.
    fn key_error(&self, load: &Load, asked: Asked) -> reads::Got {
        let mut serials = Vec::new();
        match asked {
            Asked::At(tid) => serials.push(tid),
            Asked::Before { low, high } => {
                let last = self.model.last_before(load.oid, low);
                // It may have been changed while it was read.
                let later = self.model.revisions(load.oid).filter(|tid| (low..high).contains(tid));
                serials.extend(last.into_iter().chain(later));
            }
        }
        let is_nothing =
            |tid: &Tid| matches!(self.model.content(load.oid, *tid), Some(Content::Nothing { .. }));
        match serials.into_iter().rev().find(is_nothing) {
            Some(serial) => reads::Got::Nothing { serial },
            None => reads::Got::Missing,
        }
    }

    /// Histories of objects.
    pub fn histories(&self) -> Vec<Checked> {
        let all = self.histories.iter().flat_map(|process| &process.histories);
        let checks = all.map(|(end, oid, count_max, tids, last_tid)| {
            let packs_count = self.packs_count(*end);
            let (oid, count_max, last_tid) = (*oid, *count_max, *last_tid);
            History { oid, tids: tids.clone(), count_max, last_tid, packs_count }.check(&self.model)
        });
        checks.collect()
    }

    /// Iterations over transactions.
    pub fn walks(&self) -> Vec<Checked> {
        let all = self.histories.iter().flat_map(|process| &process.walks);
        let walk = |(start, stop, tids): &(Tid, Tid, Vec<Tid>)| Walk {
            start: *start,
            stop: *stop,
            tids: tids.clone(),
        };
        all.map(|found| walk(found).check(&self.model)).collect()
    }

    /// Lists of oids.
    pub fn oid_walks(&self) -> Vec<Checked> {
        let all = self.histories.iter().flat_map(|process| &process.oid_walks);
        let checks = all.map(|(end, tid, oids)| {
            let packs_count = self.packs_count(*end);
            OidWalk { tid: *tid, oids: oids.clone(), packs_count }.check(&self.model)
        });
        checks.collect()
    }

    /// What each process was told, in order.
    pub fn told(&mut self) -> Vec<Checked> {
        let mut checks = Vec::new();
        for process in self.histories {
            let mut checker = ToldChecker::new(process.index);
            for (last, told) in &process.told {
                let mut checked = checker.last_tid(*last);
                match told {
                    Told::Other(tid, oids) => {
                        checked =
                            checked.and_then(|()| checker.invalidate(&mut self.model, *tid, oids));
                        checker.delivered(*tid);
                    }
                    Told::Own(tid) => checker.delivered(*tid),
                    Told::Cache => checker.forgotten(),
                }
                checks.push(checked);
            }
            checks.push(checker.check(&self.model));
        }
        checks
    }

    /// Sums that applications computed.
    pub fn sums(&self) -> Vec<Checked> {
        let all = self.histories.iter().flat_map(|process| &process.sums);
        let checks = all.map(|(begin, before, sum, count)| {
            let expected = count * neo_sim::workload::write::ACCOUNT;
            if *sum == expected {
                return Ok(());
            }
            Err(Violation(format!(
                "at {begin}, the sum of {count} accounts before {before} is {sum}, not {expected}"
            )))
        });
        checks.collect()
    }
}
