// SPDX-License-Identifier: GPL-2.0-or-later
//! A cell that is out of date.

use super::*;

/// A whole replication, by chunks; it resumes where it was, deletes what the source does not have,
/// and the cell serves once the master says so.
#[test]
fn replicate() {
    let mut node = replicating();
    unfinished(&mut node, &[1], 21, &[]);
    let conn = accept_node(&mut node, 2);
    let id = expect_transactions(&mut node, conn, (0, 21), &[]);
    node.write_as(conn, id, &add_transaction(11, &[1]));
    answer_transactions(&mut node, conn, id, Some(13));
    let id = expect_transactions(&mut node, conn, (13, 21), &[]);
    node.write_as(conn, id, &add_transaction(13, &[1, 3]));
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (0, 0, 21), &[]);
    node.write_as(conn, id, &add_object(1, 11, "one"));
    answer_objects(&mut node, conn, id, Some((13, 3)));
    // Rows of another request are ignored.
    node.write_as(conn, id, &add_object(9, 13, "late"));
    let id = expect_objects(&mut node, conn, (13, 3, 21), &[]);
    assert_eq!(next_tid(&mut node), CellNext::OutOfDate(tid(13)));
    node.write_as(conn, id, &add_object(3, 13, "three"));
    assert!(node.told().is_none());
    // The end is on disk before it is told.
    node.hold_writes = true;
    answer_objects(&mut node, conn, id, None);
    assert!(node.told().is_none());
    node.hold_writes = false;
    node.run();
    no_pack(&mut node, 0);
    let done = Packet::NotifyReplicationDone { partition: 1, tid: tid(21) };
    assert_eq!(node.told().unwrap().1, done);
    assert_eq!(next_tid(&mut node), CellNext::OutOfDate(tid(22)));
    let client = node.client(1);
    assert_eq!(node.ask_error(client, load(3)).0, ErrorCode::NonReadableCell);
    let changes = vec![(1, s(1), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    assert_eq!(node.load(client, 3), (13, "three".into()));
    assert_eq!(
        node.ask(client, store(30, 1, 11, "x")),
        Packet::AnswerStoreObject { conflict: None }
    );
}

/// A cell with a hole resumes from where it was readable last; what the source does not have is
/// deleted. Upstream: testResumingReplication.
#[test]
fn resuming_replication() {
    let mut node = Node::serving_table(vec![row(&[(2, U)]), row(&[(1, U), (2, U)])], &[2]);
    let client = node.client(1);
    node.commit(client, 3, 11, &[(1, 0, "a")]);
    node.commit(client, 13, 15, &[(1, 11, "b"), (3, 0, "c")]);
    let mut node = Node::start(config(), node.disk.clone(), 1);
    node.identify(&[2]);
    node.recover(vec![row(&[(2, U)]), row(&[(1, O), (2, U)])]);
    node.operate(false);
    unfinished(&mut node, &[1], 31, &[]);
    let conn = accept_node(&mut node, 2);
    let id = expect_transactions(&mut node, conn, (16, 31), &[]);
    node.write_as(conn, id, &add_transaction(21, &[1]));
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (16, 0, 31), &[]);
    node.write_as(conn, id, &add_object(1, 21, "d"));
    answer_objects(&mut node, conn, id, Some((21, 3)));
    // The connection is lost: what was received is not asked again.
    node.close(conn);
    assert!(!node.is_connecting());
    node.advance(Duration::from_secs(1));
    let conn = accept_node(&mut node, 2);
    let id = expect_transactions(&mut node, conn, (32, 31), &[]);
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (21, 0, 31), &[(21, 1)]);
    let to_delete = Map(vec![(tid(21), vec![oid(1)])]);
    let answer = Packet::AnswerFetchObjects { next_tid: None, next_oid: None, to_delete };
    node.write_as(conn, id, &answer);
    no_pack(&mut node, 0);
    let done = Packet::NotifyReplicationDone { partition: 1, tid: tid(31) };
    assert_eq!(node.told().unwrap().1, done);
    let changes = vec![(1, s(1), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 3, replicas: 0, changes });
    let client = node.client(1);
    assert_eq!(node.load(client, 1), (15, "b".into()));
}

/// A transaction that was not finished when the replication began is waited for, then replicated.
/// Upstream: testReplicationBlockedByUnfinished.
#[test]
fn replication_blocked_by_unfinished() {
    let mut node = replicating();
    unfinished(&mut node, &[1], 11, &[7, 9]);
    let conn = accept_node(&mut node, 2);
    let id = expect_transactions(&mut node, conn, (0, 11), &[]);
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (0, 0, 11), &[]);
    answer_objects(&mut node, conn, id, None);
    assert!(node.told().is_none());
    node.tell(Packet::NotifyTransactionFinished { ttid: ttid(7), max_tid: Some(tid(21)) });
    let id = expect_transactions(&mut node, conn, (12, 21), &[]);
    node.write_as(conn, id, &add_transaction(21, &[1]));
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (12, 0, 21), &[]);
    node.write_as(conn, id, &add_object(1, 21, "a"));
    answer_objects(&mut node, conn, id, None);
    assert!(node.told().is_none());
    // The last one is aborted: nothing more to fetch.
    node.tell(Packet::AbortTransaction { ttid: ttid(9), nids: Vec::new() });
    let id = expect_transactions(&mut node, conn, (22, 21), &[]);
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (22, 0, 21), &[]);
    answer_objects(&mut node, conn, id, None);
    no_pack(&mut node, 0);
    let (_, packet) = node.told().unwrap();
    assert!(matches!(packet, Packet::NotifyReplicationDone { partition: 1, .. }), "{packet:?}");
}

/// What was packed meanwhile may have taken a deletion away: objects are compared from the beginning,
/// until there are 2 such comparisons with one source.
#[test]
fn packed_meanwhile() {
    let mut node = Node::serving_table(vec![row(&[(2, U)]), row(&[(1, U), (2, U)])], &[2]);
    let client = node.client(1);
    node.commit(client, 3, 11, &[(1, 0, "a"), (3, 0, "b")]);
    let mut node = Node::start(config(), node.disk.clone(), 1);
    node.identify(&[2]);
    node.recover(vec![row(&[(2, U)]), row(&[(1, O), (2, U)])]);
    node.operate(false);
    unfinished(&mut node, &[1], 31, &[]);
    let conn = accept_node(&mut node, 2);
    let id = expect_transactions(&mut node, conn, (12, 31), &[]);
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (12, 0, 31), &[]);
    answer_objects(&mut node, conn, id, None);
    let (id, packet) = node.told().expect("AskPackOrders");
    assert_eq!(packet, Packet::AskPackOrders { min_tid: tid(1) });
    let order = (tid(21), Some(true), false, None, tid(19));
    let master = node.master.unwrap();
    node.write_as(master, id, &Packet::AnswerPackOrders { orders: vec![order.clone()] });
    // Object 3 was deleted, and packed.
    let id = expect_objects(&mut node, conn, (0, 0, 31), &[(11, 1), (11, 3)]);
    let to_delete = Map(vec![(tid(11), vec![oid(3)])]);
    let answer = Packet::AnswerFetchObjects { next_tid: None, next_oid: None, to_delete };
    node.write_as(conn, id, &answer);
    for _ in 0..2 {
        let (id, packet) = node.told().expect("AskPackOrders");
        assert_eq!(packet, Packet::AskPackOrders { min_tid: tid(1) });
        node.write_as(master, id, &Packet::AnswerPackOrders { orders: vec![order.clone()] });
        if let Some((id, packet)) = node.receive(conn) {
            assert!(
                matches!(packet, Packet::AskFetchObjects { min_tid: Tid::ZERO, .. }),
                "{packet:?}"
            );
            answer_objects(&mut node, conn, id, None);
        }
    }
    let done = Packet::NotifyReplicationDone { partition: 1, tid: tid(31) };
    assert_eq!(node.told().unwrap().1, done);
    let changes = vec![(1, s(1), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 3, replicas: 0, changes });
    let client = node.client(1);
    assert_eq!(node.load(client, 1), (11, "a".into()));
    assert_eq!(node.ask_error(client, load(3)).0, ErrorCode::OidDoesNotExist);
}

/// Data is left of a cell that was discarded, and a new cell takes its place. Transactions up to the last
/// pack are sent again, as whether they are packed is not known; those that the source does not send are
/// deleted.
#[test]
fn packed_before_the_cell_was_back() {
    let mut options = config();
    options.disable_drop_partitions = true;
    let mut node = Node::start(options, Disk::new(), 1);
    node.identify(&[2]);
    node.recover(vec![row(&[(2, U)]), row(&[(1, U), (2, U)])]);
    node.operate(false);
    let client = node.client(1);
    node.commit(client, 9, 11, &[(1, 0, "a")]);
    node.commit(client, 11, 13, &[(3, 0, "b")]);
    node.commit(client, 13, 15, &[(1, 11, "c")]);
    node.commit(client, 39, 41, &[(1, 15, "d")]);
    let changes = vec![(1, s(1), DISCARDED)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    node.tell(Packet::NotifyPackSigned { approved: vec![tid(31)], rejected: vec![] });
    let changes = vec![(1, s(1), O)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 3, replicas: 0, changes });
    unfinished(&mut node, &[1], 51, &[]);
    let conn = accept_node(&mut node, 2);
    let packed = |n: u64| {
        let mut packet = add_transaction(n, &[1]);
        if let Packet::AddTransaction { ttid: t, packed, user, description, .. } = &mut packet {
            (*t, *packed) = (ttid(n - 2), true);
            (*user, *description) =
                (Bytes::from_static(b"user"), Bytes::from_static(b"description"));
        }
        packet
    };
    let id = expect_transactions(&mut node, conn, (0, 51), &[41]);
    node.write_as(conn, id, &packed(11));
    answer_transactions(&mut node, conn, id, Some(15));
    let id = expect_transactions(&mut node, conn, (15, 51), &[41]);
    node.write_as(conn, id, &packed(15));
    let (next_tid, completed_pack) = (None, Some(tid(31)));
    let to_delete = Vec::new();
    let answer = Packet::AnswerFetchTransactions { next_tid, to_delete, completed_pack };
    node.write_as(conn, id, &answer);
    let known = [(11, 1), (13, 3), (15, 1), (41, 1)];
    let id = expect_objects(&mut node, conn, (0, 0, 51), &known);
    let to_delete = Map(vec![(tid(11), vec![oid(1)]), (tid(13), vec![oid(3)])]);
    let answer = Packet::AnswerFetchObjects { next_tid: None, next_oid: None, to_delete };
    node.write_as(conn, id, &answer);
    no_pack(&mut node, 31);
    let done = Packet::NotifyReplicationDone { partition: 1, tid: tid(51) };
    assert_eq!(node.told().unwrap().1, done);
    let changes = vec![(1, s(1), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 4, replicas: 0, changes });
    for (n, expected) in [(11, Some(true)), (13, None), (15, Some(true)), (41, Some(false))] {
        let found = match node.ask(client, Packet::AskTransactionInformation { tid: tid(n) }) {
            Packet::AnswerTransactionInformation { packed, .. } => Some(packed),
            Packet::Error { code: ErrorCode::TidNotFound, .. } => None,
            packet => panic!("{packet:?}"),
        };
        assert_eq!(found, expected, "{n}");
    }
}

/// Stores during the replication take no lock; they become locks before the master is told, once
/// only one per object remains. Upstream: testNotifyReplicated.
#[test]
fn notify_replicated() {
    let mut node = replicating();
    unfinished(&mut node, &[1], 11, &[]);
    let conn = accept_node(&mut node, 2);
    let (a, b) = (node.client(1), node.client(2));
    let lockless = Packet::AnswerStoreObject { conflict: Some(Tid::ZERO) };
    assert_eq!(node.ask(a, store(21, 1, 11, "a")), lockless);
    assert_eq!(node.ask(b, store(23, 1, 11, "b")), lockless);
    let id = expect_transactions(&mut node, conn, (0, 11), &[]);
    answer_transactions(&mut node, conn, id, None);
    let id = expect_objects(&mut node, conn, (0, 0, 11), &[]);
    node.write_as(conn, id, &add_object(1, 11, "old"));
    answer_objects(&mut node, conn, id, None);
    no_pack(&mut node, 0);
    assert!(node.told().is_none());
    node.ask(a, store_transaction(21, &[1]));
    node.lock(21, 31);
    node.unlock(21);
    let done = Packet::NotifyReplicationDone { partition: 1, tid: tid(11) };
    assert_eq!(node.told().unwrap().1, done);
    // The store of b was not based on it: the client is told by the other cell, and stores again.
    assert_eq!(node.ask(b, store(23, 1, 31, "b")), Packet::AnswerStoreObject { conflict: None });
}

/// A source that refuses is tried again after a while, not at once; other partitions come first.
#[test]
fn replication_aborted_by_source() {
    let rows = vec![row(&[(2, U), (1, O)]), row(&[(3, U), (1, O)])];
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[2, 3]);
    node.recover(rows);
    node.operate(false);
    unfinished(&mut node, &[0, 1], 11, &[]);
    let conn = accept_node(&mut node, 2);
    let (id, _) = node.receive(conn).unwrap();
    let error = Packet::error(ErrorCode::ReplicationError, "partition 0 not readable");
    node.write_as(conn, id, &error);
    let other = accept_node(&mut node, 3);
    let id = expect_transactions(&mut node, other, (0, 11), &[]);
    answer_transactions(&mut node, other, id, None);
    let id = expect_objects(&mut node, other, (0, 0, 11), &[]);
    answer_objects(&mut node, other, id, None);
    no_pack(&mut node, 0);
    assert!(matches!(node.told().unwrap().1, Packet::NotifyReplicationDone { partition: 1, .. }));
    node.expect_nothing(conn);
    node.advance(Duration::from_secs(1));
    let (_, packet) = node.receive(conn).unwrap();
    assert!(matches!(packet, Packet::AskFetchTransactions { partition: 0, .. }));
}

/// The cell leaves in the middle: the replication is aborted, late rows are ignored. It may come
/// back at once: then the old answer about unfinished transactions does not count.
#[test]
fn aborting_replication() {
    let mut node = replicating();
    unfinished(&mut node, &[1], 11, &[]);
    let conn = accept_node(&mut node, 2);
    let id = expect_transactions(&mut node, conn, (0, 11), &[]);
    let change = |node: &mut Node, ptid, state| {
        let changes = vec![(1, s(1), state)];
        node.tell(Packet::NotifyPartitionChanges { ptid, replicas: 0, changes });
    };
    change(&mut node, 2, DISCARDED);
    node.write_as(conn, id, &add_transaction(11, &[1]));
    answer_transactions(&mut node, conn, id, None);
    node.expect_nothing(conn);
    change(&mut node, 3, O);
    let (first, _) = node.told().unwrap();
    change(&mut node, 4, DISCARDED);
    change(&mut node, 5, O);
    let (second, _) = node.told().unwrap();
    let answer = Packet::AnswerUnfinishedTransactions { max_tid: tid(11), ttids: Vec::new() };
    let master = node.master.unwrap();
    node.write_as(master, first, &answer);
    node.expect_nothing(conn);
    node.write_as(master, second, &answer);
    expect_transactions(&mut node, conn, (0, 11), &[]);
}

/// Rows that were not asked for are refused: they would corrupt a cell.
#[test]
fn wrong_source() {
    let wrong = [
        add_transaction(10, &[1]),
        add_transaction(13, &[1]),
        Packet::AnswerFetchTransactions {
            next_tid: Some(tid(0)),
            to_delete: Vec::new(),
            completed_pack: None,
        },
        Packet::AnswerFetchTransactions {
            next_tid: None,
            to_delete: vec![tid(99)],
            completed_pack: None,
        },
    ];
    for packet in wrong {
        let mut node = replicating();
        unfinished(&mut node, &[1], 11, &[]);
        let conn = accept_node(&mut node, 2);
        let id = expect_transactions(&mut node, conn, (0, 11), &[]);
        node.write_as(conn, id, &packet);
        assert!(node.is_closed(conn), "{packet:?}");
        node.advance(Duration::from_secs(2));
        assert!(node.is_connecting());
    }
    let wrong = [
        add_object(2, 11, "partition"),
        add_object(1, 13, "tid"),
        Packet::AnswerFetchObjects {
            next_tid: Some(tid(0)),
            next_oid: Some(oid(0)),
            to_delete: Map::default(),
        },
        Packet::AnswerFetchObjects {
            next_tid: None,
            next_oid: None,
            to_delete: Map(vec![(tid(11), vec![oid(2)])]),
        },
    ];
    for packet in wrong {
        let mut node = replicating();
        unfinished(&mut node, &[1], 11, &[]);
        let conn = accept_node(&mut node, 2);
        let id = expect_transactions(&mut node, conn, (0, 11), &[]);
        answer_transactions(&mut node, conn, id, None);
        let id = expect_objects(&mut node, conn, (0, 0, 11), &[]);
        node.write_as(conn, id, &packet);
        assert!(node.is_closed(conn), "{packet:?}");
    }
}
