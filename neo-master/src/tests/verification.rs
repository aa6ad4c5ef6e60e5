// SPDX-License-Identifier: GPL-2.0-or-later
//! Verification: what was decided is finished, the rest is not.

use neo_common::engine::ConnId;
use neo_common::protocol::{ClusterState, Packet};
use neo_common::types::{Tid, Ttid};

use super::harness::*;

/// A cluster that is being verified: storages were not asked anything yet.
fn verifying(table: &str) -> (Harness, Vec<ConnId>) {
    let mut h = Harness::new(options(1, 0));
    let count = table.split_whitespace().next().unwrap().len() as u16;
    let storages: Vec<ConnId> =
        (1..=count).map(|index| h.recovering(Some(s(index.into())), index, Some(5))).collect();
    // The first one is always needed.
    for storage in storages.iter().rev() {
        h.answer_table(*storage, (5, 1, table));
    }
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    (h, storages)
}

#[track_caller]
fn answer_locked(h: &mut Harness, conn: ConnId, transactions: &[(u64, Option<u64>)]) {
    let (id, _) = h.until(conn, "AskLockedTransactions");
    let pair = |(ttid, tid): &(u64, Option<u64>)| (Ttid::new(*ttid), tid.map(Tid::new));
    let transactions = transactions.iter().map(pair).collect();
    h.answer(conn, id, Packet::AnswerLockedTransactions { transactions });
}
#[track_caller]
fn answer_final(h: &mut Harness, conn: ConnId, ttid: u64, tid: Option<u64>) {
    let (id, packet) = h.until(conn, "AskFinalTID");
    assert_eq!(packet, Packet::AskFinalTID { ttid: Ttid::new(ttid) });
    h.answer(conn, id, Packet::AnswerFinalTID { tid: tid.map(Tid::new) });
}
/// Transactions that a storage is told to finish, up to the next question.
fn validated(h: &mut Harness, conn: ConnId) -> Vec<(u64, u64)> {
    let validated = |packet: Packet| match packet {
        Packet::ValidateTransaction { ttid, tid } => Some((ttid.get(), tid.get())),
        _ => None,
    };
    h.all(conn).into_iter().filter_map(validated).collect()
}

/// Locked somewhere: all nodes that know it finish it, even those that only voted.
#[test]
fn locked_transactions_are_finished() {
    let (mut h, storages) = verifying("UUU UUU");
    answer_locked(&mut h, storages[0], &[(10, None), (12, None), (14, Some(15))]);
    answer_locked(&mut h, storages[1], &[(10, Some(20)), (14, Some(15))]);
    answer_locked(&mut h, storages[2], &[]);
    // Nobody locked 12: those who do not list it may have unlocked it.
    answer_final(&mut h, storages[2], 12, None);
    answer_final(&mut h, storages[1], 12, None);
    // As long as it is not sure that all have it, somebody must know that it is not finished.
    for storage in &storages[1..] {
        assert_eq!(h.names(*storage), [] as [&str; 0]);
    }
    let (_, packet) = h.until(storages[0], "ValidateTransaction");
    assert_eq!(packet, Packet::ValidateTransaction { ttid: Ttid::new(10), tid: Tid::new(20) });
    // Something else remains to be done before it can tell its last ids.
    h.answer_recovery(storages[0], Some(5));
    assert_eq!(validated(&mut h, storages[0]), [(14, 15)]);
    assert_eq!(validated(&mut h, storages[1]), [(10, 20), (14, 15)]);
    assert_eq!(validated(&mut h, storages[2]), []);
}

/// S2 knows what was decided about a transaction that S1 only voted. S1 is lost before it finished it: if S2
/// had been told at the same time, nobody would know any more that S1 has something to finish.
#[test]
fn a_storage_is_lost_before_it_finished_a_transaction() {
    let (mut h, storages) = verifying("UU UO");
    answer_locked(&mut h, storages[0], &[(10, None)]);
    answer_locked(&mut h, storages[1], &[(10, Some(20))]);
    h.until(storages[0], "AskLastIDs");
    h.close(storages[0]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    assert_eq!(validated(&mut h, storages[1]), []);
}

/// The same, but another node has unlocked it already.
#[test]
fn transactions_unlocked_elsewhere_are_finished() {
    let (mut h, storages) = verifying("UUU UUU");
    answer_locked(&mut h, storages[0], &[(12, None)]);
    answer_locked(&mut h, storages[1], &[]);
    answer_locked(&mut h, storages[2], &[]);
    answer_final(&mut h, storages[2], 12, Some(18));
    // It is enough.
    assert!(h.names(storages[1]).iter().all(|name| *name != "AskFinalTID"));
    assert_eq!(validated(&mut h, storages[0]), [(12, 18)]);
}

/// Only nodes with a readable cell of the partition of the ttid are asked; one that is lost
/// meanwhile is not waited for.
#[test]
fn only_readable_cells_are_asked() {
    let (mut h, storages) = verifying("UUO. .U.U .UU.");
    // S3 and S4 have readable cells elsewhere.
    for storage in &storages[1..] {
        answer_locked(&mut h, *storage, &[]);
    }
    // Partition 0.
    answer_locked(&mut h, storages[0], &[(12, None)]);
    for storage in &storages[2..] {
        assert!(h.names(*storage).iter().all(|name| *name != "AskFinalTID"));
    }
    h.until(storages[1], "AskFinalTID");
    h.close(storages[1]);
    assert_eq!(validated(&mut h, storages[0]), []);
    // The last cell that may know is that of S1 itself.
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    for storage in [storages[0], storages[2], storages[3]] {
        assert!(!h.is_closed(storage));
    }
}

/// Nodes without readable cells are not asked what they have, but what their last ids are.
#[test]
fn outdated_nodes_are_not_asked() {
    let (mut h, storages) = verifying("UO UO");
    let names = h.names(storages[1]);
    assert!(!names.contains(&"AskLastIDs"));
    answer_locked(&mut h, storages[0], &[]);
    let names = [names, h.names(storages[1])].concat();
    assert!(!names.contains(&"AskLockedTransactions"));
    assert!(names.contains(&"AskLastIDs"));
}

/// The last commit of the former master was only told to S1, like the loss of the others, and the master
/// died before S1 heard of it. Whatever the others say, S1 must not become out-of-date before it told
/// what it has locked.
#[test]
fn a_storage_that_may_know_the_last_commit_is_waited_for() {
    let (mut h, storages) = verifying("UU UU");
    answer_locked(&mut h, storages[1], &[(10, None)]);
    h.close(storages[0]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    h.answer_recovery(storages[1], Some(5));
    h.answer_table(storages[1], (5, 1, "UU UU"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering, "without S1");
    let one = h.with_table(1, 1, (5, 1, "UU UU"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    answer_locked(&mut h, one, &[(10, Some(20))]);
    answer_locked(&mut h, storages[1], &[(10, None)]);
    assert_eq!(validated(&mut h, storages[1]), [(10, 20)]);
    // It is enough that it said so.
    h.close(one);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
}

/// A storage without cell does not answer what recovery asks, since its machine is dead: it is not
/// waited for. In verification it is asked its last ids; then the loss is noticed.
#[test]
fn a_storage_lost_before_it_answered_recovery_is_not_waited_for() {
    let mut h = Harness::new(options(1, 0));
    let dead = h.storage(Some(s(2)), 2);
    let storage = h.recovering(Some(s(1)), 1, Some(5));
    let (id, _) = h.until(storage, "AskPartitionTable");
    let table = Packet::AnswerPartitionTable { ptid: 5, replicas: 0, rows: rows("U") };
    h.answer(storage, id, table);
    answer_locked(&mut h, storage, &[]);
    h.until(dead, "AskLastIDs");
    let (id, _) = h.until(storage, "AskLastIDs");
    h.answer(storage, id, no_ids());
    assert!(h.names(storage).iter().all(|name| *name != "AskPackOrders"));
    h.close(dead);
    h.until(storage, "AskPackOrders");
}

/// The last readable cell is lost: back to recovery, and what was asked before means nothing in the
/// next verification.
#[test]
fn interrupted_verification() {
    let (mut h, storages) = verifying("U. .U");
    let (old, _) = h.until(storages[1], "AskLockedTransactions");
    h.close(storages[0]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let transactions = [(Ttid::new(7), Some(Tid::new(9)))].into_iter().collect();
    h.answer(storages[1], old, Packet::AnswerLockedTransactions { transactions });
    assert!(!h.is_closed(storages[1]));
    // The new handler has taken over.
    h.answer_recovery(storages[1], Some(5));
    h.answer_table(storages[1], (5, 1, "U. .U"));
    let one = h.with_table(1, 1, (5, 1, "U. .U"));
    answer_locked(&mut h, one, &[]);
    answer_locked(&mut h, storages[1], &[]);
    assert_eq!(validated(&mut h, storages[1]), []);
}

/// The clock is late: ids that the last master may have given as ttids are not given again.
#[test]
fn a_late_clock_does_not_make_ttids_repeat() {
    let late = Tid::new(Tid::MAX.get() / 2);
    let (mut h, storages) = verifying("U");
    answer_locked(&mut h, storages[0], &[]);
    let (id, _) = h.until(storages[0], "AskLastIDs");
    let ids = Packet::AnswerLastIDs { last_tid: Some(late), last_oid: None, first_tid: late };
    h.answer(storages[0], id, ids);
    let (id, _) = h.until(storages[0], "AskPackOrders");
    h.answer(storages[0], id, Packet::AnswerPackOrders { orders: Vec::new() });
    h.ready(&storages);
    let client = h.client();
    let ttid = h.begin(client);
    assert!(ttid.get() > late.get() + 1, "{ttid} just after {late}");
}
