// SPDX-License-Identifier: GPL-2.0-or-later
//! Locks, by hand: one cell, a database that is a map, answers written as short texts.

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

/// A store on a locked object waits until the owner is finished, then conflicts.
#[test]
fn delayed_store() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.store(4, 1, 0);
    bench.store(8, 1, 0);
    bench.store(12, 1, 0);
    bench.expect(&["4.1 ok"]);
    bench.commit(4, 16);
    bench.expect(&["8.1 conflict 16", "12.1 conflict 16"]);
    // With the right serial, the first of them takes the lock, and the other waits again.
    bench.store(8, 1, 16);
    bench.store(12, 1, 16);
    bench.expect(&["8.1 ok"]);
    bench.abort(8);
    bench.expect(&["12.1 ok"]);
}

/// Waiting stores get the lock in order of ttid, whatever their order of arrival.
#[test]
fn delayed_stores_are_ordered_by_ttid() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.store(1, 1, 0);
    for ttid in [9, 5, 7] {
        bench.store(ttid, 1, 0);
    }
    bench.abort(1);
    bench.expect(&["1.1 ok", "5.1 ok"]);
    bench.abort(5);
    bench.abort(7);
    bench.expect(&["7.1 ok", "9.1 ok"]);
}

/// Two transactions lock two objects in opposite order: the younger one is told to lock again, once,
/// and both commit.
#[test]
fn deadlock_avoidance() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.store(4, 1, 0);
    bench.store(8, 2, 0);
    bench.store(8, 1, 0);
    bench.store(4, 2, 0);
    bench.expect(&["4.1 ok", "8.2 ok", "deadlock 8.2"]);
    // Retrying does not notify again.
    bench.tm.retry(oid(2));
    bench.settle();
    bench.expect(&[]);
    bench.relock(8, 2);
    bench.expect(&["4.2 ok"]);
    bench.commit(4, 12);
    bench.expect(&["8.1 conflict 12", "8.2 relock conflict 0 12 8@2"]);
    bench.store(8, 1, 12);
    bench.store(8, 2, 12);
    bench.expect(&["8.1 ok", "8.2 ok"]);
    bench.commit(8, 16);
    assert!(bench.tm.is_empty() && bench.tm.write_locks.is_empty());
}

/// The older transaction is aborted: the younger one has its lock again, without conflict.
#[test]
fn relock_without_conflict() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.store(8, 2, 0);
    bench.store(4, 2, 0);
    bench.relock(8, 2);
    bench.abort(4);
    bench.expect(&["8.2 ok", "deadlock 8.2", "4.2 ok", "8.2 relocked"]);
    assert_eq!(bench.vote(8).len(), 1);
}

/// The younger transaction votes instead of locking again: the older one waits for it, and then
/// conflicts. A relock that comes late, or that nobody asked for, does nothing.
#[test]
fn vote_instead_of_relock() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.store(8, 2, 0);
    bench.store(4, 2, 0);
    bench.expect(&["8.2 ok", "deadlock 8.2"]);
    bench.vote(8);
    bench.store(3, 2, 0);
    bench.expect(&[]);
    bench.lock(8, 12);
    bench.unlock(8);
    bench.expect(&["3.2 conflict 12", "4.2 conflict 12"]);
    bench.relock(8, 2);
    bench.relock(4, 2);
    bench.expect(&["8.2 relocked", "4.2 relocked"]);
}

/// Relock of an object that was only checked: the conflict has no data.
#[test]
fn failed_check_current_during_deadlock_avoidance() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.check(8, 2, 0);
    bench.store(4, 2, 0);
    bench.relock(8, 2);
    bench.commit(4, 12);
    bench.expect(&["8.2 ok", "deadlock 8.2", "4.2 ok", "8.2 relock conflict 0 12 none"]);
    assert!(bench.vote(8).is_empty());
}

/// A store that arrives while the previous transaction is locked but not unlocked waits instead of
/// conflicting, even if it is older; and while the unlock is not visible yet.
#[test]
fn delayed_unlock_information() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.store(8, 1, 0);
    bench.vote(8);
    bench.lock(8, 12);
    bench.store(4, 1, 12);
    bench.store(16, 1, 12);
    assert!(bench.tm.is_load_locked(oid(1)));
    bench.tm.unlock(Ttid::new(8)).unwrap();
    bench.store(20, 1, 12);
    bench.expect(&["8.1 ok"]);
    assert!(bench.tm.is_load_locked(oid(1)) && bench.tm.is_locked_tid(Tid::new(12)));
    assert!(!bench.tm.is_locked_tid(Tid::new(11)));
    bench.committed.insert(oid(1), Tid::new(12));
    assert_eq!(bench.tm.unlocked(Ttid::new(8)), [oid(1)]);
    bench.settle();
    bench.expect(&["4.1 ok"]);
    assert!(!bench.tm.is_load_locked(oid(1)) && !bench.tm.is_locked_tid(Tid::MAX));
}

/// An aborted transaction whose store was not processed yet leaves no lock.
#[test]
fn abort_transaction() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.hold_checks = true;
    bench.store(4, 1, 0);
    bench.store(4, 2, 0);
    bench.store(8, 2, 0);
    bench.abort(4);
    bench.hold_checks = false;
    bench.settle();
    bench.expect(&["4.1 zero", "4.2 zero", "8.2 ok"]);
    assert_eq!(bench.tm.write_locks.keys().collect::<Vec<_>>(), [&oid(2)]);
    // Neither does one that waits for a lock.
    bench.store(12, 2, 0);
    bench.abort(12);
    bench.abort(8);
    bench.expect(&["12.2 zero"]);
    assert!(bench.tm.is_empty() && bench.tm.write_locks.is_empty() && bench.tm.waiting.is_empty());
}

/// While the last revision is being asked, requests are parked in order of arrival: the first one
/// gets the lock, a later and older one is a deadlock, as if the answer had been immediate.
#[test]
fn check_in_flight_parks_later_stores() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.committed.insert(oid(1), Tid::new(2));
    bench.hold_checks = true;
    bench.store(8, 1, 2);
    bench.store(4, 1, 2);
    bench.check(12, 1, 2);
    assert_eq!(bench.checks.len(), 1, "one check for all");
    bench.expect(&[]);
    bench.answer_check(0);
    bench.settle();
    bench.expect(&["8.1 ok", "deadlock 8.1"]);
    // What is known needs no other check.
    bench.abort(8);
    bench.abort(4);
    bench.expect(&["4.1 ok", "12.1 ok"]);
    assert!(bench.checks.is_empty());
}

/// A transaction that is aborted and begins again with the same ttid is another one: what was parked
/// for the first is not stored in the second.
#[test]
fn parked_request_of_an_aborted_transaction() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.hold_checks = true;
    bench.store(4, 1, 0);
    bench.abort(4);
    bench.store(4, 2, 0);
    bench.hold_checks = false;
    bench.settle();
    bench.expect(&["4.1 zero", "4.2 ok"]);
    assert_eq!(bench.vote(4).iter().map(|o| o.oid).collect::<Vec<_>>(), [oid(2)]);
}

/// A cell that is out of date accepts everything, without lock.
#[test]
fn conflict_with_out_of_date_cell() {
    let mut bench = Bench::new(CellMode::Replicating);
    bench.committed.insert(oid(1), Tid::new(3));
    bench.store(4, 1, 0);
    bench.store(8, 1, 2);
    bench.check(8, 5, 7);
    bench.expect(&["4.1 zero", "8.1 zero", "8.5 zero"]);
    assert!(bench.tm.write_locks.is_empty() && bench.checks.is_empty());
    bench.commit(4, 12);
    assert!(bench.tm.write_locks.is_empty());
}

/// No cell: nothing is stored.
#[test]
fn store_to_an_unassigned_partition_is_ignored() {
    let mut bench = Bench::new(CellMode::Unassigned);
    bench.store(4, 1, 0);
    bench.expect(&["4.1 zero"]);
    assert!(bench.vote(4).is_empty());
}

/// The master is only told that a partition is replicated once there is a single lockless store per
/// object, and each was checked.
#[test]
fn notify_replicated() {
    let mut bench = Bench::new(CellMode::Replicating);
    bench.committed.insert(oid(1), Tid::new(2));
    bench.store(4, 1, 2);
    bench.store(8, 1, 2);
    bench.store(8, 5, 0);
    bench.tm.replicated(1, Tid::new(2));
    bench.settle();
    bench.expect(&["4.1 zero", "8.1 zero", "8.5 zero"]);
    // Younger transactions wait; an older one shares the lock.
    bench.store(12, 1, 2);
    bench.store(3, 1, 2);
    bench.expect(&["3.1 zero"]);
    bench.abort(8);
    bench.expect(&[]);
    // The store of 3 is not based on what 4 commits.
    bench.commit(4, 16);
    bench.expect(&["replicated 1 2", "12.1 conflict 16"]);
    assert!(bench.is_dropped(3, 1));
    bench.tm.readable(&[1]);
    bench.store(13, 1, 16);
    bench.expect(&["13.1 ok"]);
}

/// A lockless store without conflict becomes a lock like any other.
#[test]
fn lockless_store_becomes_a_lock() {
    let mut bench = Bench::new(CellMode::Replicating);
    bench.committed.insert(oid(1), Tid::new(2));
    bench.hold_checks = true;
    bench.store(4, 1, 2);
    bench.tm.replicated(1, Tid::new(3));
    bench.settle();
    bench.store(8, 1, 2);
    bench.expect(&["4.1 zero"]);
    bench.hold_checks = false;
    bench.settle();
    bench.expect(&["replicated 1 3"]);
    bench.store(3, 1, 2);
    bench.expect(&["deadlock 4.1"]);
    bench.relock(4, 1);
    bench.expect(&["3.1 ok"]);
    bench.abort(3);
    bench.expect(&["4.1 relocked"]);
    assert_eq!(bench.vote(4).len(), 1);
}

/// The client resolves a conflict reported by a readable cell, and stores again here while the
/// partition becomes replicated.
#[test]
fn lockless_write_during_conflict_resolution() {
    let mut bench = Bench::new(CellMode::Replicating);
    bench.store(4, 1, 0);
    bench.committed.insert(oid(1), Tid::new(3));
    bench.store(8, 1, 3);
    bench.tm.replicated(1, Tid::new(3));
    bench.settle();
    bench.expect(&["4.1 zero", "8.1 zero"]);
    // Resolved: stored again, still without lock since 8 shares it.
    bench.store(4, 1, 3);
    bench.expect(&["4.1 zero"]);
    bench.commit(8, 12);
    bench.expect(&["replicated 1 3"]);
    bench.store(4, 1, 12);
    bench.expect(&["4.1 ok"]);
    assert_eq!(bench.vote(4)[0].content, value("4@1"));
}

/// While a transaction is being unlocked, its own revision must not look like a conflict; a check
/// that was on its way means nothing any more.
#[test]
fn late_lockless_write() {
    let mut bench = Bench::new(CellMode::Replicating);
    bench.committed.insert(oid(1), Tid::new(2));
    bench.store(4, 1, 2);
    bench.store(8, 1, 2);
    bench.vote(8);
    bench.lock(8, 12);
    bench.hold_checks = true;
    bench.tm.unlock(Ttid::new(8)).unwrap();
    bench.committed.insert(oid(1), Tid::new(12));
    bench.tm.replicated(1, Tid::new(2));
    bench.settle();
    bench.expect(&["4.1 zero", "8.1 zero"]);
    bench.tm.unlocked(Ttid::new(8));
    bench.settle();
    bench.expect(&["replicated 1 2"]);
    assert!(bench.is_dropped(4, 1));
    bench.store(4, 1, 12);
    bench.expect(&["4.1 ok"]);
    assert_eq!(bench.vote(4).len(), 1);
}

/// A lockless store is dropped because of a conflict, and the cells that should have reported it are
/// discarded just then: the transaction can not be committed without it.
#[test]
fn conflict_that_nobody_reports() {
    let replicated = || {
        let mut bench = Bench::new(CellMode::Replicating);
        bench.committed.insert(oid(1), Tid::new(3));
        bench.store(4, 1, 0);
        bench.check(4, 5, 1);
        bench.committed.insert(oid(5), Tid::new(3));
        bench.tm.replicated(1, Tid::new(3));
        bench.settle();
        bench.expect(&["4.1 zero", "4.5 zero", "replicated 1 3"]);
        assert!(bench.is_dropped(4, 1));
        bench
    };
    // It would take both.
    let mut bench = replicated();
    bench.store(4, 1, 3);
    bench.expect(&["4.1 ok"]);
    assert!(bench.is_dropped(4, 5));
    bench.check(4, 5, 3);
    bench.expect(&["4.5 ok"]);
    assert_eq!(bench.vote(4).len(), 1);
    // Without cell, it is not our business.
    let mut bench = replicated();
    bench.tm.discarded(&[1]);
    assert!(bench.vote(4).is_empty());
    // Nothing is left after an abort.
    let mut bench = replicated();
    bench.abort(4);
    bench.store(8, 1, 3);
    bench.expect(&["8.1 ok"]);
    assert_eq!(bench.vote(8).len(), 1);
}

/// A cell that is discarded takes its locks and stores with it; what waited is ignored.
#[test]
fn discarded_cell() {
    let mut bench = Bench::new(CellMode::Readable);
    for object in [1, 2] {
        bench.store(4, object, 0);
        bench.store(8, object, 0);
    }
    bench.vote(4);
    bench.lock(4, 12);
    assert!(bench.tm.discarded(&[1]).is_empty());
    bench.settle();
    bench.expect(&["4.1 ok", "4.2 ok", "8.1 zero"]);
    assert!(!bench.tm.is_load_locked(oid(1)) && bench.tm.is_load_locked(oid(2)));
    bench.unlock(4);
    bench.expect(&["8.2 conflict 12"]);
    // It comes back, out of date.
    bench.tm.replicating(&[1]);
    bench.store(8, 1, 12);
    bench.expect(&["8.1 zero"]);
}

/// A check that was on its way when the cell left and came back is asked again.
#[test]
fn stale_check() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.hold_checks = true;
    bench.store(4, 1, 5);
    bench.tm.discarded(&[1]);
    bench.tm.replicating(&[1]);
    bench.tm.replicated(1, Tid::new(5));
    bench.committed.insert(oid(1), Tid::new(6));
    bench.settle();
    bench.expect(&["replicated 1 5"]);
    bench.answer_check(0);
    bench.settle();
    bench.expect(&[]);
    bench.hold_checks = false;
    bench.settle();
    bench.expect(&["4.1 conflict 6"]);
}

/// Undo: the revision must exist, if the cell is readable; the data is that of this revision.
#[test]
fn undo_of_a_packed_revision() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.committed.insert(oid(1), Tid::new(30));
    bench.undo(4, 1, 30, 200);
    assert!(bench.log[0].contains("UndoPackError"), "{:?}", bench.log);
    bench.log.clear();
    bench.undo(4, 1, 30, 10);
    assert_eq!(bench.tm.stored_tid(Ttid::new(4), oid(1)), Some(Tid::new(10)));
    // Another undo in the same transaction is based on the first one.
    bench.undo(4, 1, 30, 9);
    bench.undo(4, 1, 10, 9);
    let refused = bench.log.remove(1);
    assert!(refused.contains("is after"), "{refused}");
    bench.expect(&["4.1 ok", "4.1 ok"]);
}

/// What a client may not do.
#[test]
fn requests_that_are_refused() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.committed.insert(oid(1), Tid::new(5));
    let store = |serial| RequestKind::Store {
        serial: Tid::new(serial),
        content: Content::Deleted,
        data_tid: None,
    };
    // A revision that does not exist yet: found out when the database has answered.
    bench.request(4, 1, store(6)).unwrap();
    assert!(bench.log.pop().unwrap().contains("is after"));
    assert!(bench.request(4, 1, store(6)).is_err(), "known now");
    // A ttid of somebody else, or that no master gives.
    assert!(bench.tm.register(client(9), Ttid::new(4)).is_err());
    assert!(bench.tm.register(client(9), Ttid::ZERO).is_err());
    assert!(bench.tm.register(client(9), Ttid::INVALID).is_err());
    assert!(bench.tm.vote(client(9), Ttid::new(4), true).is_err());
    assert!(bench.tm.vote(client(4), Ttid::new(5), true).is_err());
    // A vote while a store waits, a store after the vote, a second vote.
    bench.store(4, 1, 5);
    bench.store(8, 1, 5);
    assert!(bench.tm.vote(client(8), Ttid::new(8), true).is_err());
    bench.vote(4);
    assert!(bench.request(4, 2, store(0)).is_err());
    assert!(bench.tm.vote(client(4), Ttid::new(4), true).is_err());
    // A tid in the wrong partition, in the past, too big; twice; without vote.
    for tid in [9, 0, u64::MAX - 3] {
        assert!(bench.tm.lock(Ttid::new(4), Tid::new(tid)).is_err(), "{tid}");
    }
    assert!(bench.tm.lock(Ttid::new(8), Tid::new(12)).is_err());
    assert!(bench.tm.unlock(Ttid::new(4)).is_err());
    bench.lock(4, 12);
    assert!(bench.tm.lock(Ttid::new(4), Tid::new(16)).is_err());
    assert!(bench.tm.abort(Ttid::new(4)).is_none(), "locked ones are never aborted");
    assert!(bench.tm.of_client(client(4), true).is_empty());
    bench.unlock(4);
    assert!(bench.tm.unlock(Ttid::new(4)).is_err());
}

/// Data above the budget is written ahead; what changes meanwhile is released.
#[test]
fn spill() {
    let mut bench = Bench::new(CellMode::Readable);
    let big = |n: usize| {
        Content::Value(Value {
            compression: 0,
            checksum: ZERO_HASH,
            data: Bytes::from(vec![n as u8; 6 << 20]),
        })
    };
    let store = |n| RequestKind::Store { serial: Tid::ZERO, content: big(n), data_tid: None };
    let ttid = Ttid::new(4);
    for object in [1, 2] {
        bench.request(4, object, store(object as usize)).unwrap();
        assert_eq!(bench.tm.take_spill(ttid), None);
    }
    bench.request(4, 3, store(3)).unwrap();
    let spill = bench.tm.take_spill(ttid).unwrap();
    assert_eq!(spill.objects.len(), 3);
    assert_eq!(bench.tm.take_spill(ttid), None, "one at a time");
    // One is stored again, the vote waits for the spill.
    bench.store(4, 2, 0);
    assert_eq!(bench.tm.vote(client(4), ttid, true), Ok(VoteStep::Later));
    let oids: Vec<Oid> = spill.objects.iter().map(|object| object.oid).collect();
    let contents = (1..=3).map(|n| Content::Spilled(DataId(n))).collect();
    assert!(bench.tm.spilled(ttid, spill.id, &oids, contents));
    bench.log.clear();
    bench.settle();
    bench.expect(&["release 2"]);
    let contents: Vec<Content> = bench.vote(4).into_iter().map(|object| object.content).collect();
    assert_eq!(contents, [Content::Spilled(DataId(1)), value("4@2"), Content::Spilled(DataId(3))]);
    // Aborted before the data is written: all is released.
    for object in [5, 6, 7] {
        bench.request(8, object, store(1)).unwrap();
    }
    let spill = bench.tm.take_spill(Ttid::new(8)).unwrap();
    assert_eq!(bench.tm.abort(Ttid::new(8)).unwrap().spilled, []);
    bench.log.clear();
    let contents = (4..=6).map(|n| Content::Spilled(DataId(n))).collect();
    let oids: Vec<Oid> = spill.objects.iter().map(|object| object.oid).collect();
    assert!(!bench.tm.spilled(Ttid::new(8), spill.id, &oids, contents));
    bench.settle();
    bench.expect(&["release 4", "release 5", "release 6"]);
}

/// Random requests on few objects, with checks that are late: nothing panics, locks stay coherent,
/// and what is committed is always based on the last revision.
#[test]
fn random_transactions() {
    for seed in 0..300 {
        let mut prng = Prng::new(seed);
        let mode = if prng.one_in(3) { CellMode::Replicating } else { CellMode::Readable };
        let mut bench = Bench::new(mode);
        bench.hold_checks = true;
        let mut tid = 1000;
        for _ in 0..400 {
            let ttid = 1 + prng.below(8) as u64;
            let object = prng.below(5) as u64;
            let last = bench.committed.get(&oid(object)).map_or(0, |tid| tid.get());
            match prng.below(14) {
                0..6 => {
                    let kind = match prng.below(4) {
                        0 => RequestKind::Check { serial: Tid::new(last) },
                        _ => RequestKind::Store {
                            serial: Tid::new(if prng.one_in(5) { last / 2 } else { last }),
                            content: value("x"),
                            data_tid: None,
                        },
                    };
                    let _ = bench.request(ttid, object, kind); // refusals are fine
                }
                6..9 if !bench.checks.is_empty() => {
                    let index = prng.below(bench.checks.len());
                    bench.answer_check(index);
                }
                9 => bench.abort(ttid),
                10..12 => {
                    let Ok(step) = bench.tm.vote(client(ttid as u32), Ttid::new(ttid), true) else {
                        continue;
                    };
                    let VoteStep::Write(objects) = step else { panic!("{step:?}") };
                    bench.tm.voted(Ttid::new(ttid), Ok(()));
                    let txn = &bench.tm.transactions[&Ttid::new(ttid)];
                    for object in objects {
                        let item = &txn.items[&object.oid];
                        let last = bench.committed.get(&object.oid).copied().unwrap_or(Tid::ZERO);
                        assert!(item.lockless || item.serial == last, "seed {seed}");
                    }
                    tid += u64::from(PARTITIONS) + ttid % 4;
                    let congruent = tid / 4 * 4 + ttid % 4 + 4;
                    tid = congruent;
                    bench.lock(ttid, congruent);
                    bench.unlock(ttid);
                }
                12 => {
                    for line in std::mem::take(&mut bench.log) {
                        let Some(line) = line.strip_prefix("deadlock ") else { continue };
                        let (ttid, object) = line.split_once('.').unwrap();
                        bench.relock(ttid.parse().unwrap(), object.parse().unwrap());
                    }
                }
                13 => {
                    let partition = prng.below(4) as Partition;
                    match bench.tm.mode(partition) {
                        CellMode::Unassigned => bench.tm.replicating(&[partition]),
                        CellMode::Replicating => bench.tm.replicated(partition, Tid::new(tid)),
                        CellMode::Announced => bench.tm.readable(&[partition]),
                        CellMode::Readable if prng.one_in(10) => {
                            bench.tm.discarded(&[partition]);
                        }
                        CellMode::Replicated(_) | CellMode::Readable => {}
                    }
                }
                _ => {}
            }
            bench.settle();
        }
        // In the end, everything can be finished.
        bench.hold_checks = false;
        bench.settle();
        for ttid in 1..9 {
            bench.abort(ttid);
        }
        assert!(bench.tm.is_empty() && bench.tm.write_locks.is_empty(), "seed {seed}");
        assert!(bench.tm.waiting.is_empty() && bench.tm.checking.is_empty(), "seed {seed}");
        assert_eq!((bench.tm.waiting_bytes, bench.tm.held_bytes), (0, 0), "seed {seed}");
        let modes = &bench.tm.modes;
        assert!(!modes.iter().any(|mode| matches!(mode, CellMode::Replicated(_))), "seed {seed}");
    }
}
