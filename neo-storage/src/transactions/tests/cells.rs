// SPDX-License-Identifier: GPL-2.0-or-later
//! Cells that are not readable, or that change meanwhile.

use super::*;

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
