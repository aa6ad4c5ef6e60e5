// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions, by hand: a database that is a map, answers written as short texts.

mod cells;
mod locks;
mod requests;

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::prng::Prng;
use neo_common::protocol::Packet;
use neo_common::types::{ConnId, NodeId, NodeType, Oid, Tid, Ttid, ZERO_HASH};

use super::*;
use crate::database::Value;

const PARTITIONS: u32 = 4;

/// Transactions, their database, and what was answered.
struct Bench {
    tm: Transactions,
    committed: BTreeMap<Oid, Tid>,
    /// Checks that are on their way, oldest first, with what the database said.
    checks: Vec<(StoreCheck, LastTid)>,
    hold_checks: bool,
    log: Vec<String>,
    next_id: MsgId,
}

fn client(n: u32) -> NodeId {
    NodeId::of(NodeType::Client, n).unwrap()
}

fn oid(n: u64) -> Oid {
    Oid::new(n)
}

fn value(text: &str) -> Content {
    let data = Bytes::copy_from_slice(text.as_bytes());
    Content::Value(Value { compression: 0, checksum: ZERO_HASH, data })
}

impl Bench {
    fn new(mode: CellMode) -> Self {
        Self {
            tm: Transactions::new(vec![mode; PARTITIONS as usize]),
            committed: BTreeMap::new(),
            checks: Vec::new(),
            hold_checks: false,
            log: Vec::new(),
            next_id: 0,
        }
    }

    /// Transaction n belongs to client n; its requests are logged as `n.oid`.
    fn request(&mut self, ttid: u64, object: u64, kind: RequestKind) -> Result<(), Fault> {
        self.next_id += 1;
        if kind != RequestKind::Relock {
            self.tm.register(client(ttid as u32), Ttid::new(ttid))?;
        }
        let request = Request {
            conn: ConnId::new(ttid),
            id: object as MsgId,
            ttid: Ttid::new(ttid),
            oid: oid(object),
            kind,
        };
        let result = self.tm.request(client(ttid as u32), request);
        self.settle();
        result
    }

    fn store(&mut self, ttid: u64, object: u64, serial: u64) {
        let content = value(&format!("{ttid}@{object}"));
        let kind = RequestKind::Store { serial: Tid::new(serial), content, data_tid: None };
        self.request(ttid, object, kind).unwrap();
    }

    fn undo(&mut self, ttid: u64, object: u64, serial: u64, data_tid: u64) {
        let kind = RequestKind::Store {
            serial: Tid::new(serial),
            content: Content::Deleted,
            data_tid: Some(Tid::new(data_tid)),
        };
        self.request(ttid, object, kind).unwrap();
    }

    fn check(&mut self, ttid: u64, object: u64, serial: u64) {
        self.request(ttid, object, RequestKind::Check { serial: Tid::new(serial) }).unwrap();
    }

    fn relock(&mut self, ttid: u64, object: u64) {
        self.request(ttid, object, RequestKind::Relock).unwrap();
    }

    fn vote(&mut self, ttid: u64) -> Vec<ObjectRecord> {
        let step = self.tm.vote(client(ttid as u32), Ttid::new(ttid), true).unwrap();
        let VoteStep::Write(objects) = step else { panic!("{step:?}") };
        self.tm.voted(Ttid::new(ttid), Ok(()));
        objects
    }

    /// Whether the vote is refused because of this object.
    fn is_dropped(&mut self, ttid: u64, object: u64) -> bool {
        let result = self.tm.vote(client(ttid as u32), Ttid::new(ttid), true);
        let Err(Fault::Error(ErrorCode::ProtocolError, message)) = result else { return false };
        message.contains(&oid(object).to_string())
    }

    fn lock(&mut self, ttid: u64, tid: u64) {
        assert!(self.tm.lock(Ttid::new(ttid), Tid::new(tid)).unwrap());
        self.tm.locked(Ttid::new(ttid));
    }

    fn unlock(&mut self, ttid: u64) {
        let stores: Vec<Oid> = self.tm.transactions[&Ttid::new(ttid)]
            .items
            .iter()
            .filter(|(_, item)| item.store.is_some())
            .map(|(oid, _)| *oid)
            .collect();
        let step = self.tm.unlock(Ttid::new(ttid)).unwrap();
        for oid in stores {
            self.committed.insert(oid, step.tid);
        }
        self.tm.unlocked(Ttid::new(ttid));
        self.settle();
    }

    fn commit(&mut self, ttid: u64, tid: u64) {
        self.vote(ttid);
        self.lock(ttid, tid);
        self.unlock(ttid);
    }

    fn abort(&mut self, ttid: u64) {
        self.tm.abort(Ttid::new(ttid));
        self.settle();
    }

    /// Performs the effects, and checks unless they are held.
    fn settle(&mut self) {
        loop {
            for effect in self.tm.take_effects() {
                let line = match effect {
                    Effect::Answer(conn, id, packet) => {
                        format!("{}.{id} {}", conn.get(), text(&packet))
                    }
                    Effect::Refuse(conn, id, fault) => format!("{}.{id} {fault}", conn.get()),
                    Effect::Check(check) => {
                        let last = self.committed.get(&check.oid).copied();
                        self.checks.push((check, last));
                        continue;
                    }
                    Effect::NotifyDeadlock(nid, ttid, oid) => {
                        assert_eq!(nid, client(ttid.get() as u32));
                        format!("deadlock {}.{}", ttid.get(), oid.get())
                    }
                    Effect::GiveBack { conn, id, .. } => format!("{}.{id} give back", conn.get()),
                    Effect::Release(data_id) => format!("release {}", data_id.0),
                    Effect::Replicated(partition, tid) => {
                        format!("replicated {partition} {}", tid.get())
                    }
                };
                self.log.push(line);
            }
            self.tm.check_invariants();
            if self.hold_checks || self.checks.is_empty() {
                break;
            }
            self.answer_check(0);
        }
    }

    fn answer_check(&mut self, index: usize) {
        let (check, last) = self.checks.remove(index);
        // Revisions of undo tests: any tid below 100 exists.
        let exists = check.data_tid.is_some_and(|tid| tid.get() < 100);
        self.tm.checked(check.oid, last, exists);
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) {
        assert_eq!(std::mem::take(&mut self.log), lines);
    }
}

fn text(packet: &Packet) -> String {
    let conflict = match packet {
        Packet::AnswerStoreObject { conflict } | Packet::AnswerCheckCurrentSerial { conflict } => {
            conflict
        }
        Packet::AnswerRelockObject { conflict: None } => return "relocked".into(),
        Packet::AnswerRelockObject { conflict: Some((serial, tid, data)) } => {
            let data = data.as_ref().map_or("none".into(), |(_, _, data)| {
                String::from_utf8(data.to_vec()).expect("data of tests is text")
            });
            return format!("relock conflict {} {} {data}", serial.get(), tid.get());
        }
        packet => return format!("{packet:?}"),
    };
    match conflict {
        None => "ok".into(),
        Some(Tid::ZERO) => "zero".into(),
        Some(tid) => format!("conflict {}", tid.get()),
    }
}
