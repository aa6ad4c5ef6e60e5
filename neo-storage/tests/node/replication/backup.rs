// SPDX-License-Identifier: GPL-2.0-or-later
//! Backup mode.

use super::*;

/// A cluster that follows another one: orders, upstream and internal sources, backup tid, what
/// clients see, and the way out.
#[test]
fn backup_normal_case() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[2]);
    node.recover(vec![row(&[(1, U)]), row(&[(1, U), (2, U)])]);
    node.operate(true);
    assert_eq!(node.engine.app.backup_tid(), Some(Tid::ZERO));
    let client = node.client(1);
    assert_eq!(node.ask_error(client, store(3, 1, 0, "x")).0, ErrorCode::ReadOnlyAccess);
    assert_eq!(node.ask_error(client, load(1)).0, ErrorCode::OidDoesNotExist);

    // Partition 1 from the upstream cluster, nothing to fetch for 0.
    let upstream = storage_address(77);
    node.tell(Packet::Replicate {
        tid: tid(11),
        upstream_name: "up".into(),
        sources: Map(vec![(0, None), (1, Some(upstream))]),
    });
    let conn = node.connected(upstream);
    let (id, request) = node.receive(conn).unwrap();
    let Packet::RequestIdentification { nid, cluster, .. } = request else { panic!() };
    assert_eq!((nid, cluster.as_str()), (None, "up"));
    node.write_as(conn, id, &accepted(None, None));
    let id = expect_transactions(&mut node, conn, (0, 11), &[]);
    node.write_as(conn, id, &add_transaction(11, &[1]));
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (0, 0, 11), &[]);
    node.write_as(conn, id, &add_object(1, 11, "a"));
    answer_objects(&mut node, conn, id, None);
    let done = Packet::NotifyReplicationDone { partition: 1, tid: tid(11) };
    assert_eq!(node.told().unwrap().1, done);
    assert_eq!(node.engine.app.backup_tid(), Some(tid(11)));
    assert_eq!(node.load(client, 1), (11, "a".into()));

    // The next order comes while the source is known; clients see up to the backup tid only.
    node.tell(Packet::Replicate {
        tid: tid(13),
        upstream_name: "up".into(),
        sources: Map(vec![(1, Some(upstream))]),
    });
    let id = expect_transactions(&mut node, conn, (12, 13), &[]);
    node.write_as(conn, id, &add_transaction(13, &[1]));
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (12, 0, 13), &[]);
    node.write_as(conn, id, &add_object(1, 13, "b"));
    answer_objects(&mut node, conn, id, None);
    assert!(node.told().is_some());
    assert_eq!(node.engine.app.backup_tid(), Some(tid(11)), "partition 0 is late");
    assert_eq!(node.load(client, 1), (11, "a".into()));
    let tids = Packet::AskTIDsFrom { min_tid: tid(0), max_tid: Tid::MAX, length: 9, partition: 1 };
    assert_eq!(node.ask(client, tids), Packet::AnswerTIDsFrom { tids: vec![tid(11)] });
    let info = Packet::AskTransactionInformation { tid: tid(13) };
    assert_eq!(node.ask_error(client, info).0, ErrorCode::TidNotFound);
    let history = Packet::AskObjectHistory { oid: oid(1), first: 0, last: 9 };
    let expected = Packet::AnswerObjectHistory { oid: oid(1), history: vec![(tid(11), 1)] };
    assert_eq!(node.ask(client, history), expected);
    let sources = Map(vec![(0, None)]);
    node.tell(Packet::Replicate { tid: tid(13), upstream_name: String::new(), sources });
    assert_eq!(node.engine.app.backup_tid(), Some(tid(13)));
    assert_eq!(node.load(client, 1), (13, "b".into()));

    // From the other cell of the same cluster.
    node.tell(Packet::Replicate {
        tid: tid(15),
        upstream_name: String::new(),
        sources: Map(vec![(0, None), (1, Some(storage_address(2)))]),
    });
    let internal = accept_node(&mut node, 2);
    expect_transactions(&mut node, internal, (14, 15), &[]);

    // After a restart, the backup tid is not overestimated.
    let mut node = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(node.engine.app.backup_tid(), Some(tid(13)));
    node.identify(&[2]);
    let recovery =
        Packet::AnswerRecovery { ptid: Some(1), backup_tid: Some(tid(13)), truncate_tid: None };
    assert_eq!(node.ask_from_master(Packet::AskRecovery {}), recovery);
    node.recover(vec![row(&[(1, U)]), row(&[(1, U), (2, U)])]);
    node.operate(true);
    assert_eq!(node.engine.app.backup_tid(), Some(tid(13)));
    // The way out: truncation at the backup tid.
    node.tell(Packet::NotifyClusterInformation {
        state: neo_common::protocol::ClusterState::StoppingBackup,
    });
    node.tell(Packet::StopOperation {});
    node.tell(Packet::Truncate { tid: tid(13) });
    let recovery =
        Packet::AnswerRecovery { ptid: Some(2), backup_tid: None, truncate_tid: Some(tid(13)) };
    assert_eq!(node.ask_from_master(Packet::AskRecovery {}), recovery);
    node.tell(Packet::AskLastIDs {});
    node.operate_after_ids();
    let client = node.client(1);
    assert_eq!(
        node.ask(client, store(17, 1, 13, "x")),
        Packet::AnswerStoreObject { conflict: None }
    );
}

/// Backup mode begins while the node serves: what it is ordered to replicate right behind that waits
/// for the database, which tells where cells resume.
#[test]
fn backup_orders_before_the_database_answers() {
    let mut node = Node::serving(2);
    let upstream = storage_address(77);
    (node.hold_reads, node.hold_writes) = (true, true);
    node.tell(Packet::StartOperation { backup: true });
    // Told twice: the same beginning.
    node.tell(Packet::StartOperation { backup: true });
    node.tell(Packet::Replicate {
        tid: tid(11),
        upstream_name: "up".into(),
        sources: Map(vec![(0, None), (1, Some(upstream))]),
    });
    assert!(!node.is_connecting());
    (node.hold_reads, node.hold_writes) = (false, false);
    node.run();
    let conn = node.connected(upstream);
    let (id, _) = node.receive(conn).unwrap();
    node.write_as(conn, id, &accepted(None, None));
    let id = expect_transactions(&mut node, conn, (0, 11), &[]);
    node.write_as(conn, id, &add_transaction(11, &[1]));
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (0, 0, 11), &[]);
    node.write_as(conn, id, &add_object(1, 11, "a"));
    answer_objects(&mut node, conn, id, None);
    assert_eq!(node.engine.app.backup_tid(), Some(tid(11)));
    let client = node.client(1);
    assert_eq!(node.load(client, 1), (11, "a".into()));
    // On disk too: this is what decides whether the data survives without the upstream cluster.
    let node = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(node.engine.app.backup_tid(), Some(tid(11)));
}

/// Stopping the backup cancels what comes from upstream, not what makes cells equal.
#[test]
fn stopping_backup() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[2]);
    node.recover(vec![row(&[(1, U), (2, U)]), row(&[(1, U), (2, U)])]);
    node.operate(true);
    let upstream = storage_address(77);
    node.tell(Packet::Replicate {
        tid: tid(11),
        upstream_name: "up".into(),
        sources: Map(vec![(0, Some(upstream))]),
    });
    let conn = node.connected(upstream);
    let (id, _) = node.receive(conn).unwrap();
    node.write_as(conn, id, &accepted(None, None));
    node.receive(conn).unwrap();
    node.tell(Packet::Replicate {
        tid: tid(11),
        upstream_name: String::new(),
        sources: Map(vec![(1, Some(storage_address(2)))]),
    });
    node.tell(Packet::NotifyClusterInformation {
        state: neo_common::protocol::ClusterState::StoppingBackup,
    });
    assert!(node.is_closed(conn));
    let internal = accept_node(&mut node, 2);
    expect_transactions(&mut node, internal, (0, 11), &[]);
    assert!(!node.is_connecting());
}
