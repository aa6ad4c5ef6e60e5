// SPDX-License-Identifier: GPL-2.0-or-later
//! Locks on one cell.

use super::*;

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
