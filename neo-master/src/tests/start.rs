// SPDX-License-Identifier: GPL-2.0-or-later
//! From nothing to the service.

use neo_common::protocol::{ClusterState, ErrorCode, NodeState, NodeType, Packet};
use neo_common::types::{Oid, Tid};

use super::harness::*;

/// The story of the recorded session `a-bootstrap`: the same packets in the same order on each
/// connection.
#[test]
fn bootstrap() {
    let mut h = Harness::new(options(4, 0));
    let (storage, nid) = h.identify(Harness::request(NodeType::Storage, None, Some(21_011)));
    assert_eq!(nid, s(1));
    let Packet::NotifyNodeInformation { nodes, .. } = h.recv(storage) else { panic!() };
    let entry = nodes[0];
    assert_eq!(
        (entry.0, entry.1, entry.2, entry.3),
        (NodeType::Storage, Some(address(21_011)), Some(s(1)), NodeState::Pending)
    );
    let master = (NodeType::Master, Some(address(10_000)), Some(m(1)), NodeState::Running, None);
    assert_eq!(nodes[1..], [master]);
    let (id, question) = h.take(storage);
    assert_eq!((id, question), (1, Packet::AskRecovery {}));
    h.answer(
        storage,
        1,
        Packet::AnswerRecovery { ptid: None, backup_tid: None, truncate_tid: None },
    );
    assert_eq!(h.names(storage), [""; 0]);

    let (admin, _) = h.identify(Harness::request(NodeType::Admin, None, Some(21_021)));
    let Packet::NotifyNodeInformation { nodes, .. } = h.recv(admin) else { panic!() };
    assert_eq!(nodes[0].0, NodeType::Admin);
    assert_eq!(nodes.len(), 3);
    let rows = vec![vec![]; 4];
    assert_eq!(h.recv(admin), Packet::SendPartitionTable { ptid: None, replicas: 0, rows });
    assert_eq!(
        h.ask(admin, Packet::AskClusterState {}),
        Packet::AnswerClusterState { state: Some(ClusterState::Recovering) }
    );

    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    let expected = ["NotifyNodeInformation", "SendPartitionTable", "NotifyClusterInformation"];
    assert_eq!(h.names(admin), expected);
    let expected = [
        "NotifyNodeInformation",
        "NotifyClusterInformation",
        "SendPartitionTable",
        "AskLockedTransactions",
    ];
    assert_eq!(h.names(storage), expected);
    let transactions = Default::default();
    h.answer(storage, 5, Packet::AnswerLockedTransactions { transactions });
    assert_eq!(h.take(storage), (6, Packet::AskLastIDs {}));
    h.send(storage, Packet::NotifyPackCompleted { tid: Tid::ZERO });
    h.answer(storage, 6, no_ids());
    assert_eq!(h.take(storage), (7, Packet::AskPackOrders { min_tid: Tid::new(1) }));
    h.answer(storage, 7, Packet::AnswerPackOrders { orders: vec![] });
    let running = Packet::NotifyClusterInformation { state: ClusterState::Running };
    assert_eq!(h.all(admin), std::slice::from_ref(&running));
    assert_eq!(h.all(storage), [running, Packet::StartOperation { backup: false }]);
    assert_eq!(
        h.ask(admin, Packet::AskLastTransaction {}),
        Packet::AnswerLastTransaction { tid: Tid::ZERO }
    );
    h.send(storage, Packet::NotifyReady {});
    assert_eq!(h.names(storage), [""; 0]);

    let id = h.send(admin, Packet::SetClusterState { state: ClusterState::Stopping });
    let stopping = Packet::NotifyClusterInformation { state: ClusterState::Stopping };
    assert_eq!(h.take(admin), (id, Packet::ack("Cluster state changed")));
    assert_eq!(h.recv(admin), stopping);
    assert_eq!(h.recv(storage), stopping);
    let Packet::NotifyNodeInformation { nodes, .. } = h.recv(storage) else { panic!() };
    let down = (NodeType::Storage, Some(address(21_011)), Some(s(1)), NodeState::Down, None);
    assert_eq!(nodes, [down]);
    assert!(h.is_closed(storage) && h.is_closed(admin));
    assert_eq!(h.exit, Some(0));
}

#[test]
fn start_is_refused_without_storage_or_while_one_is_asked() {
    let mut h = Harness::new(options(2, 0));
    let admin = h.admin();
    let denied = |text: &str| (ErrorCode::Denied, text.to_owned());
    assert_eq!(h.start(admin), denied("Cannot exit recovery without any storage node"));
    let storage = h.storage(None, 1);
    assert_eq!(h.start(admin), denied("Cannot exit recovery now: node S1 is entering cluster"));
    h.answer_recovery(storage, None);
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    assert_eq!(h.start(admin), denied("Can not switch to this state"));
}

#[test]
fn autostart_waits_for_enough_storages() {
    let mut options = options(2, 0);
    options.autostart = Some(2);
    let mut h = Harness::new(options);
    let one = h.recovering(None, 1, None);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let two = h.recovering(None, 2, None);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    h.verify(&[one, two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// The table of the greatest version is loaded; the cluster starts alone once all nodes with
/// readable cells are there.
#[test]
fn restart_with_the_latest_table() {
    let mut h = Harness::new(options(7, 0));
    let admin = h.admin();
    let one = h.recovering(Some(s(1)), 1, Some(4));
    let two = h.recovering(Some(s(2)), 2, Some(5));
    h.answer_table(two, (5, 1, "UO. UU. .UU"));
    // Too late.
    h.answer_table(one, (4, 1, "U. U. U."));
    assert_eq!(h.engine.app.cluster.pt.table().ptid(), Some(5));
    let Packet::NotifyNodeInformation { nodes, .. } = h.until(admin, "NotifyNodeInformation").1
    else {
        panic!()
    };
    assert_eq!(nodes[0].2, Some(s(1)));
    let names = h.names(admin);
    assert_eq!(
        names,
        ["NotifyNodeInformation", "NotifyNodeInformation", "SendPartitionTable"],
        "S2, then S3 which is only known from the table, then the table"
    );
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let three = h.with_table(3, 3, (5, 1, "UO. UU. .UU"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    h.verify(&[one, two, three]);
    let names = h.names(admin);
    assert_eq!(
        names,
        [
            "NotifyNodeInformation",
            "NotifyNodeInformation",
            "NotifyPartitionChanges",
            "NotifyClusterInformation",
            "NotifyClusterInformation"
        ],
        "S1 does not have version 5: there is another one"
    );
    assert_eq!(format(&h.engine.app.cluster.pt.table().to_wire(), 3), "UO. UU. .UU");
}

/// `start` does not wait for nodes whose cells are readable elsewhere. Their cells become
/// out-of-date.
#[test]
fn forced_start_with_a_missing_storage() {
    let mut h = Harness::new(options(7, 0));
    let admin = h.admin();
    let one = h.recovering(Some(s(1)), 1, Some(5));
    assert_eq!(
        h.start(admin),
        (ErrorCode::Denied, "Cannot exit recovery now: node S1 is entering cluster".into())
    );
    let (id, _) = h.until(one, "AskPartitionTable");
    let table = Packet::AnswerPartitionTable { ptid: 5, replicas: 1, rows: rows("UU. .UU") };
    h.answer(one, id, table);
    // Not enough for the second partition.
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let three = h.with_table(3, 3, (5, 1, "UU. .UU"));
    h.verify(&[one, three]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    let pt = h.engine.app.cluster.pt.table();
    assert_eq!((pt.ptid(), format(&pt.to_wire(), 3)), (Some(1 << 16), "UO. .OU".into()));
    let (_, packet) = h.until(admin, "NotifyPartitionChanges");
    let Packet::NotifyPartitionChanges { ptid: 65536, changes, .. } = packet else { panic!() };
    assert_eq!(changes.len(), 2);
    // S2 is back.
    let two = h.storage(Some(s(2)), 2);
    let names = h.names(two);
    assert_eq!(names, ["NotifyNodeInformation", "SendPartitionTable", "StartOperation"]);
}

/// The storage that has the table is lost before it tells it: it is waited for. No table is made
/// instead.
#[test]
fn storage_lost_during_recovery() {
    let mut options = options(2, 0);
    options.autostart = Some(1);
    let mut h = Harness::new(options);
    let one = h.recovering(Some(s(1)), 1, Some(5));
    h.until(one, "AskPartitionTable");
    let two = h.recovering(Some(s(2)), 2, Some(5));
    h.close(one);
    h.until(two, "AskPartitionTable");
    h.close(two);
    let three = h.with_table(3, 3, (4, 0, "..U"));
    assert_eq!(h.engine.app.cluster.pt.table().ptid(), Some(4));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering, "a later one is known");
    let one = h.with_table(1, 1, (5, 0, "U.."));
    let (id, _) = h.until(one, "AskLockedTransactions");
    h.answer(one, id, Packet::AnswerLockedTransactions { transactions: Default::default() });
    // S3 has no cell, so only its last ids matter.
    for storage in [one, three] {
        let (id, _) = h.until(storage, "AskLastIDs");
        h.answer(storage, id, no_ids());
    }
    let (id, _) = h.until(one, "AskPackOrders");
    h.answer(one, id, Packet::AnswerPackOrders { orders: vec![] });
    h.ready(&[one]);
    assert_eq!(h.names(three), ["NotifyClusterInformation"]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// S3 was dropped, which S1 does not know yet when it is the first one to answer.
#[test]
fn a_dropped_storage_is_forgotten() {
    let mut h = Harness::new(options(1, 1));
    let admin = h.admin();
    let one = h.with_table(1, 1, (4, 1, "OUO"));
    let two = h.with_table(2, 2, (5, 1, "OU."));
    h.verify(&[one, two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    assert!(h.engine.app.cluster.nm.by_nid(s(3)).is_none());
    let told = h.take_all(admin).into_iter().rev().find_map(|(_, packet)| match packet {
        Packet::NotifyNodeInformation { nodes, .. } => {
            nodes.into_iter().find(|node| node.2 == Some(s(3)))
        }
        _ => None,
    });
    assert_eq!(told.map(|node| node.3), Some(NodeState::Unknown));
}

/// A master that was restarted gave the id of a storage without cells again. If that one comes back first, it
/// is not believed to have anything.
#[test]
fn storage_with_the_id_of_another_one() {
    for is_first in [true, false] {
        let mut h = Harness::new(options(1, 1));
        let other = is_first.then(|| h.with_table(2, 3, (3, 1, "U.")));
        let one = h.with_table(1, 1, (5, 1, "UU"));
        let other = other.unwrap_or_else(|| h.with_table(2, 3, (3, 1, "U.")));
        assert!(h.is_closed(other), "{is_first}");
        assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
        let two = h.with_table(2, 2, (4, 1, "UO"));
        h.verify(&[one, two]);
        assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    }
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    for (ptid, rows) in [
        (5, vec![]),
        (6, rows("U")),
        (5, vec![vec![(c(1), neo_common::protocol::CellState::UpToDate)]]),
    ] {
        let mut h = Harness::new(options(2, 0));
        let one = h.recovering(Some(s(1)), 1, Some(5));
        let (id, _) = h.until(one, "AskPartitionTable");
        h.answer(one, id, Packet::AnswerPartitionTable { ptid, replicas: 0, rows });
        assert!(h.is_closed(one));
        assert!(!h.engine.app.cluster.pt.is_filled());
    }
}

/// What identification checks.
#[test]
fn identification_is_refused() {
    let (mut h, _, storages) = Harness::running(2, 0, 2);
    let storage = |nid, port| Harness::request(NodeType::Storage, nid, Some(port));
    let mut alien = storage(None, 7);
    if let Packet::RequestIdentification { cluster, .. } = &mut alien {
        *cluster = "other".into();
    }
    let error = |text: &str| (ErrorCode::ProtocolError, text.to_owned());
    for (request, expected) in [
        (alien, error("invalid cluster name")),
        (storage(None, 10_000), error("address conflict")),
        // The nid of one, the address of another, or both.
        (storage(Some(s(1)), 7), error("already connected")),
        (storage(None, 10_001), error("already connected")),
        (storage(Some(s(1)), 10_001), error("already connected")),
        // It has to say which partitions it wants.
        (Harness::request(NodeType::Storage, None, None), error("")),
        (Harness::request(NodeType::Master, None, None), error("address is missing")),
    ] {
        let conn = h.connect();
        assert_eq!(h.ask_error(conn, request), expected);
        assert!(h.is_closed(conn));
    }
    // Temporary ids are given again.
    let (_, nid) = h.identify(Harness::request(NodeType::Client, Some(c(3)), None));
    assert_eq!(nid, c(3));
    let (_, nid) = h.identify(Harness::request(NodeType::Client, Some(c(3)), None));
    assert_eq!(nid, c(1));
    let (_, nid) = h.identify(Harness::request(NodeType::Client, Some(s(1)), None));
    assert_eq!(nid, c(2));
    let (_, nid) = h.identify(Harness::request(NodeType::Client, Some(m(1)), None));
    assert_eq!(nid, c(4));
    assert!(!h.is_closed(storages[0]));
    // Nothing else than identification is accepted before it.
    let conn = h.connect();
    assert_eq!(h.ask(conn, Packet::Ping {}), Packet::Pong {});
    let (code, message) = h.ask_error(conn, Packet::AskNewOIDs { count: 1 });
    assert_eq!(code, ErrorCode::ProtocolError);
    assert_eq!(message, "unexpected packet: no handler found in IdentificationHandler");
}

/// A storage that comes back takes the address of one that is down.
#[test]
fn the_address_of_a_storage_that_is_down_is_free() {
    let (mut h, _, storages) = Harness::running(2, 1, 2);
    h.close(storages[0]);
    h.close(storages[1]);
    let two = h.storage(Some(s(2)), 10_001);
    let Packet::NotifyNodeInformation { nodes, .. } = h.recv(two) else { panic!() };
    assert_eq!((nodes[0].1, nodes[0].2), (Some(address(10_001)), Some(s(2))));
    assert!(nodes.iter().any(|entry| entry.2 == Some(s(1)) && entry.1.is_none()));
}

#[test]
fn clients_wait_for_the_service() {
    let mut h = Harness::new(options(2, 0));
    let conn = h.connect();
    let request = Harness::request(NodeType::Client, None, None);
    assert_eq!(h.ask_error(conn, request), (ErrorCode::NotReady, "Retry Later".into()));
    assert!(h.is_closed(conn));
}

/// A storage with an empty database joins while the cluster runs: it waits for `add`.
#[test]
fn new_storages_are_pending_until_added() {
    let (mut h, admin, storages) = Harness::running(2, 0, 1);
    let new = h.storage(None, 7);
    assert_eq!(h.names(new), ["NotifyNodeInformation", "SendPartitionTable"]);
    let (code, text) = h.ask_error(admin, Packet::AddPendingNodes { nids: vec![s(1), s(2)] });
    assert_eq!((code, text.as_str()), (ErrorCode::Ack, "Nodes added: S2"));
    assert_eq!(h.names(new), ["StartOperation", "NotifyNodeInformation"]);
    let (_, text) = h.ask_error(admin, Packet::AddPendingNodes { nids: vec![s(1), s(2)] });
    assert_eq!(text, "No node added");
    // Lost before it was ready: known, so that it runs when it is back.
    h.close(new);
    h.all(storages[0]);
    let new = h.storage(Some(s(2)), 7);
    assert_eq!(h.names(new), ["NotifyNodeInformation", "SendPartitionTable", "StartOperation"]);
    // Another one that was never added is forgotten.
    let other = h.storage(None, 8);
    h.close(other);
    let Some(Packet::NotifyNodeInformation { nodes, .. }) = h.all(admin).pop() else { panic!() };
    assert_eq!((nodes[0].2, nodes[0].3), (Some(s(3)), NodeState::Unknown));
    assert!(h.engine.app.cluster.nm.by_nid(s(3)).is_none());
}

/// Ids are those of the storages, and go on from there.
#[test]
fn ids_go_on_after_a_restart() {
    let mut h = Harness::new(options(1, 0));
    let admin = h.admin();
    let one = h.recovering(None, 1, None);
    h.start(admin);
    let (id, _) = h.until(one, "AskLockedTransactions");
    h.answer(one, id, Packet::AnswerLockedTransactions { transactions: Default::default() });
    let (id, _) = h.until(one, "AskLastIDs");
    // From a clock that was ahead.
    let last = Tid::new(0x7000_0000_0000_0000);
    let ids = Packet::AnswerLastIDs {
        last_tid: Some(last),
        last_oid: Some(Oid::new(41)),
        first_tid: Tid::new(3),
    };
    h.answer(one, id, ids.clone());
    let (id, question) = h.until(one, "AskPackOrders");
    assert_eq!(question, Packet::AskPackOrders { min_tid: Tid::ZERO }, "it told no completed pack");
    h.answer(one, id, Packet::AnswerPackOrders { orders: vec![] });
    h.ready(&[one]);
    assert_eq!(h.ask(admin, Packet::AskLastIDs {}), ids);
    let client = h.client();
    assert_eq!(
        h.ask(client, Packet::AskNewOIDs { count: 2 }),
        Packet::AnswerNewOIDs { oids: vec![Oid::new(42), Oid::new(43)] }
    );
    let tid = h.commit(client, &[one], &[42]);
    assert!(tid > last);
    assert_eq!(h.ask(client, Packet::AskLastTransaction {}), Packet::AnswerLastTransaction { tid });
}

/// A storage is lost before it answers what it was asked during the service, when the cluster
/// recovers already: the table that recovery found stays as it is.
#[test]
fn late_loss_of_a_storage_leaves_the_table_alone() {
    let (mut h, _, storages) = Harness::running(2, 0, 2);
    let client = h.client();
    let ttid = h.begin(client);
    h.finish(client, ttid, &[0, 1]);
    h.until(storages[0], "AskLockInformation");
    h.close(storages[1]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    // The other one is back, with the table.
    let back = h.recovering(Some(s(2)), 10_002, Some(1));
    let (id, _) = h.until(back, "AskPartitionTable");
    let table = rows("U. .U");
    let answer = Packet::AnswerPartitionTable { ptid: 1, replicas: 0, rows: table.clone() };
    h.answer(back, id, answer);
    h.close(storages[0]);
    assert_eq!(h.names(back), ["NotifyNodeInformation"; 1]);
    let found = h.engine.app.cluster.pt.table();
    assert_eq!((found.ptid(), found.to_wire()), (Some(1), table));
}

/// The master was restarted, and a new storage comes before the one whose id it gets. It is not taken
/// for it: neither when the partition table is found, nor when the other one comes.
#[test]
fn new_storage_is_not_taken_for_an_old_one() {
    for comes_back_first in [false, true] {
        let mut h = Harness::new(options(2, 0));
        let new = h.recovering(None, 10_003, None);
        assert_eq!(h.engine.app.cluster.nm.by_nid(s(1)).unwrap().address(), Some(address(10_003)));
        if comes_back_first {
            h.recovering(Some(s(1)), 10_001, Some(1));
            assert!(h.is_closed(new));
        }
        let two = h.recovering(Some(s(2)), 10_002, Some(1));
        let first = if comes_back_first { None } else { Some(two) };
        if let Some(conn) = first {
            let (id, _) = h.until(conn, "AskPartitionTable");
            let rows = rows("U. .U");
            h.answer(conn, id, Packet::AnswerPartitionTable { ptid: 1, replicas: 0, rows });
            assert!(h.is_closed(new));
            assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
            h.with_table(1, 10_001, (1, 0, "U. .U"));
            assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
        }
        assert_eq!(h.engine.app.cluster.nm.by_nid(s(1)).unwrap().address(), Some(address(10_001)));
        // The new one is given another id.
        let (_, nid) = h.identify(Harness::request(NodeType::Storage, None, Some(10_003)));
        assert_eq!(nid, s(3));
    }
}

/// A storage whose database was erased comes back while its cells are waited for.
#[test]
fn erased_storage_is_another_one() {
    let mut h = Harness::new(options(2, 0));
    let one = h.recovering(Some(s(1)), 10_001, Some(1));
    let two = h.recovering(Some(s(2)), 10_002, Some(1));
    h.close(one);
    let (id, _) = h.until(two, "AskPartitionTable");
    let rows = rows("U. .U");
    h.answer(two, id, Packet::AnswerPartitionTable { ptid: 1, replicas: 0, rows });
    let (_, nid) = h.identify(Harness::request(NodeType::Storage, None, Some(10_001)));
    assert_eq!(nid, s(3));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    h.with_table(1, 10_004, (1, 0, "U. .U"));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
}

/// The cluster is interrupted before it serves, and no storage that has its first table comes back:
/// the next one has another version.
#[test]
fn a_table_that_is_made_again_has_a_later_version() {
    let mut h = Harness::new(options(1, 0));
    let admin = h.admin();
    let storage = h.recovering(None, 10_001, None);
    assert_eq!(h.start(admin).0, ErrorCode::Ack);
    assert_eq!(h.engine.app.cluster.pt.table().ptid(), Some(1));
    h.close(storage);
    h.recovering(None, 10_002, None);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Verifying);
    assert_eq!(h.engine.app.cluster.pt.table().ptid(), Some(1 << 16));
}

/// A storage remembers that another one was dropped before this master started: a newcomer that got the same
/// id gets another one.
#[test]
fn ids_that_storages_remember_are_not_given_again() {
    let mut h = Harness::new(options(1, 0));
    let (early, nid) = h.identify(Harness::request(NodeType::Storage, None, Some(1)));
    assert_eq!(nid, s(1));
    let mut request = Harness::request(NodeType::Storage, Some(s(2)), Some(2));
    let Packet::RequestIdentification { extra, .. } = &mut request else { unreachable!() };
    extra.0.push(("dropped".into(), neo_common::protocol::Value::Int(4)));
    h.identify(request);
    assert!(h.is_closed(early));
    let (_, nid) = h.identify(Harness::request(NodeType::Storage, None, Some(1)));
    assert_eq!(nid, s(5));
    // Not an id of a storage.
    let mut request = Harness::request(NodeType::Storage, Some(s(3)), Some(3));
    let Packet::RequestIdentification { extra, .. } = &mut request else { unreachable!() };
    extra.0.push(("dropped".into(), neo_common::protocol::Value::Int(-4)));
    let conn = h.connect();
    assert_eq!(h.ask_error(conn, request).0, ErrorCode::ProtocolError);
}
