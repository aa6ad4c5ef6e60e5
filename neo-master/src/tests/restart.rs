// SPDX-License-Identifier: GPL-2.0-or-later
//! Back to recovery, and which table the cluster starts with then.

use neo_common::engine::ConnId;
use neo_common::protocol::{ClusterState, ErrorCode, NodeState, Packet};
use neo_common::types::Tid;

use super::harness::*;

/// The last readable cell of a partition is lost: clients are disconnected, storages wait, and the
/// cluster restarts by itself when the storage is back.
#[test]
fn loss_of_operational_state_and_restart() {
    let (mut h, admin, storages) = Harness::running(2, 0, 2);
    let client = h.client();
    for storage in &storages {
        h.all(*storage);
    }
    h.all(admin);
    h.commit(client, &storages, &[1, 2, 3, 4]);
    h.close(storages[0]);
    let names = h.names(client);
    assert_eq!(names, ["NotifyNodeInformation", "StopOperation"]);
    assert!(h.is_closed(client));
    let expected = [
        "NotifyNodeInformation",
        "StopOperation",
        "NotifyNodeInformation",
        "NotifyClusterInformation",
        "AskRecovery",
        "NotifyNodeInformation",
    ];
    let packets = h.take_all(storages[1]);
    let names: Vec<_> = packets.iter().map(|(_, packet)| packet.name()).collect();
    assert_eq!(names, expected);
    let state_of = |(_, packet): &(_, Packet)| match packet {
        Packet::NotifyNodeInformation { nodes, .. } => (nodes[0].2, nodes[0].3),
        other => panic!("{other:?}"),
    };
    assert_eq!(state_of(&packets[0]), (Some(s(1)), NodeState::Down));
    assert_eq!(state_of(&packets[2]), (Some(s(2)), NodeState::Pending));
    assert_eq!(state_of(&packets[5]), (Some(c(1)), NodeState::Unknown));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);

    let two = storages[1];
    h.send(two, Packet::NotifyReplicationDone { partition: 0, tid: Tid::ZERO });
    assert!(!h.is_closed(two), "it crossed the news");
    let recovery = Packet::AnswerRecovery { ptid: Some(1), backup_tid: None, truncate_tid: None };
    h.answer(two, packets[4].0, recovery);
    let (id, _) = h.until(two, "AskPartitionTable");
    let table = Packet::AnswerPartitionTable { ptid: 1, replicas: 0, rows: rows("U. .U") };
    h.answer(two, id, table);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    // The restart needs no operator.
    let one = h.with_table(1, 10_001, (1, 0, "U. .U"));
    h.verify(&[one, two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    let pt = h.engine.app.cluster.pt.table();
    assert_eq!((pt.ptid(), format(&pt.to_wire(), 2)), (Some(1), "U. .U".into()));
}

/// A cluster with 2 replicas of which S2 is lost first, then S1. S2 is back, with its table.
fn first_lost_is_back(commits: usize) -> (Harness, ConnId, ConnId) {
    let (mut h, admin, storages) = Harness::running(1, 1, 2);
    let client = h.client();
    h.commit(client, &storages, &[1]);
    h.close(storages[1]);
    for _ in 0..commits {
        h.commit(client, &storages[..1], &[1]);
    }
    h.close(storages[0]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let two = h.recovering(Some(s(2)), 10_002, Some(1));
    let (id, _) = h.until(two, "AskPartitionTable");
    let rows = rows("UU");
    h.answer(two, id, Packet::AnswerPartitionTable { ptid: 1, replicas: 1, rows });
    (h, admin, two)
}

/// Nothing was committed after S2 was lost, but S1 may know that it is the only one that is up-to-date: it
/// could go on alone. Upstream restarts with S2 (testRestartStoragesWithReplicas), and what is committed then
/// is lost if another master meets S1 first.
#[test]
fn no_restart_with_the_storage_that_was_lost_first() {
    let (mut h, _, two) = first_lost_is_back(0);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    // S1 was not told: nothing is out-of-date.
    let one = h.with_table(1, 10_001, (1, 1, "UU"));
    h.verify(&[one, two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    assert_eq!(format(&h.engine.app.cluster.pt.table().to_wire(), 2), "UU");
    // It was.
    let (mut h, _, two) = first_lost_is_back(0);
    let one = h.with_table(1, 10_001, (2, 1, "UO"));
    h.verify(&[one, two]);
    assert_eq!(format(&h.engine.app.cluster.pt.table().to_wire(), 2), "UO");
}

/// S1 has a version that this master never told: there was another one meanwhile, under which more may have
/// been committed on S2.
#[test]
fn no_restart_with_the_table_of_another_master() {
    let (mut h, admin, storages) = Harness::running(1, 1, 2);
    let client = h.client();
    h.commit(client, &storages, &[1]);
    h.close(storages[1]);
    h.close(storages[0]);
    let one = h.with_table(1, 10_001, (5, 1, "UU"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    h.verify(&[one]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// S1 has version 2 of the table, where the cells of S2 are out-of-date. The other way round is another
/// version: if S1 is believed later, all that was committed without it is lost.
#[test]
fn two_storages_never_have_two_tables_of_the_same_version() {
    let (mut h, admin, two) = first_lost_is_back(0);
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    h.verify(&[two]);
    let table = h.engine.app.cluster.pt.table();
    assert_eq!((table.ptid(), format(&table.to_wire(), 2)), (Some(1 << 16), "OU".into()));
}

/// S2 misses transactions that were acknowledged: S1 is waited for, because it has them.
#[test]
fn no_restart_without_what_was_committed() {
    let (mut h, _, two) = first_lost_is_back(1);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let one = h.recovering(Some(s(1)), 10_001, Some(2));
    let (id, _) = h.until(one, "AskPartitionTable");
    let rows = rows("UO");
    h.answer(one, id, Packet::AnswerPartitionTable { ptid: 2, replicas: 1, rows });
    h.verify(&[one, two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    assert_eq!(format(&h.engine.app.cluster.pt.table().to_wire(), 2), "UO");

    // Unless the operator knows better.
    let (mut h, admin, two) = first_lost_is_back(1);
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    h.verify(&[two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// The service is interrupted, and the first storage to come is a new one: no new database is made
/// of it.
#[test]
fn no_new_table_after_an_interruption() {
    let options = crate::Options { autostart: Some(1), ..options(1, 0) };
    let mut h = Harness::new(options);
    let one = h.recovering(None, 1, None);
    // Interrupted before it is known whether the table was stored: the same again.
    h.close(one);
    let one = h.recovering(Some(s(1)), 1, None);
    h.verify(&[one]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    h.close(one);
    let new = h.recovering(None, 2, None);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    assert!(!h.engine.app.cluster.pt.is_filled());
    // Unless the operator wants so.
    let admin = h.admin();
    h.start(admin);
    h.verify(&[new]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// S1 has a later table, told by a master that S2 never heard: it does not count, but what S1 locked with it is
/// finished, and S3 may miss it.
#[test]
fn cells_that_miss_what_was_locked_are_out_of_date() {
    let mut h = Harness::new(options(1, 2));
    let tables = ["UUO", "UUU", "UUU"];
    let ptids = [6, 5, 5];
    let storages: Vec<ConnId> = (1..=3)
        .map(|index| h.recovering(Some(s(index)), index as u16, Some(ptids[index as usize - 1])))
        .collect();
    for ((storage, table), ptid) in storages.iter().zip(tables).zip(ptids) {
        h.answer_table(*storage, (ptid, 2, table));
    }
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    let table = h.engine.app.cluster.pt.table();
    assert!(table.ptid() > Some(6));
    assert_eq!(format(&table.to_wire(), 3), "UUO");
    for (storage, is_asked) in storages.iter().zip([true, true, false]) {
        let names = h.names(*storage);
        assert!(names.contains(&"SendPartitionTable"));
        assert_eq!(names.contains(&"AskLockedTransactions"), is_asked);
    }
}

/// S1 is started without S2, and lost before anybody stores the version of that start.
fn started_without_knowing_what_s2_has() -> Harness {
    let mut h = Harness::new(options(1, 1));
    let admin = h.admin();
    let one = h.with_table(1, 10_001, (2, 1, "UU"));
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    h.close(one);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    h
}

/// S2 shows that nothing was committed with the version that S1 has: the cluster starts with what both
/// had, and does not wait for ever for another storage that has that version (seed 48803).
#[test]
fn a_version_that_was_not_stored_where_it_is_needed_is_not_waited_for() {
    let mut h = started_without_knowing_what_s2_has();
    let one = h.with_table(1, 10_001, (2, 1, "UU"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let two = h.with_table(2, 10_002, (1, 1, "UU"));
    h.verify(&[one, two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// As long as only S2 is there, transactions may have been committed without it.
#[test]
fn a_version_that_may_have_been_committed_with_is_waited_for() {
    let mut h = started_without_knowing_what_s2_has();
    h.with_table(2, 10_002, (1, 1, "OU"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
}
