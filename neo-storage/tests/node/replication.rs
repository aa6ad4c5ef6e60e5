// SPDX-License-Identifier: GPL-2.0-or-later
//! Replication and checks, as the node that fetches and as the source.

use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::ConnId;
use neo_common::protocol::{ErrorCode, Map, MsgId, NodeType, Packet};
use neo_common::types::{Tid, ZERO_HASH};
use neo_storage::database::memory::Disk;
use neo_storage::database::{CellNext, Done, Read};

use crate::harness::*;

fn add_transaction(n: u64, oids: &[u64]) -> Packet {
    Packet::AddTransaction {
        tid: tid(n),
        user: Bytes::from_static(b"u"),
        description: Bytes::new(),
        extension: Bytes::new(),
        packed: false,
        ttid: ttid(n - 1),
        oids: oids.iter().map(|n| oid(*n)).collect(),
        pack: None,
    }
}

fn add_object(oid_: u64, serial: u64, data: &str) -> Packet {
    Packet::AddObject {
        oid: oid(oid_),
        serial: tid(serial),
        compression: 0,
        checksum: checksum(data.as_bytes()),
        data: Bytes::copy_from_slice(data.as_bytes()),
        data_serial: None,
    }
}

/// A node with a cell that is out of date (partition 1 of 2); storage 2 has everything.
fn replicating() -> Node {
    let rows = vec![row(&[(2, U)]), row(&[(2, U), (1, O)])];
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[2]);
    node.recover(rows);
    node.operate(false);
    node
}

/// The node asks which transactions are unfinished: these, up to that tid.
#[track_caller]
fn unfinished(node: &mut Node, partitions: &[u32], max_tid: u64, ttids: &[u64]) {
    let (id, packet) = node.told().unwrap();
    let partitions = partitions.to_vec();
    assert_eq!(packet, Packet::AskUnfinishedTransactions { partitions });
    let ttids = ttids.iter().map(|n| ttid(*n)).collect();
    let answer = Packet::AnswerUnfinishedTransactions { max_tid: tid(max_tid), ttids };
    let master = node.master.unwrap();
    node.write_as(master, id, &answer);
}

/// The node connects to another storage, which accepts it.
#[track_caller]
fn accept_node(node: &mut Node, n: u32) -> ConnId {
    let conn = node.connected(storage_address(n));
    let (id, request) = node.receive(conn).unwrap();
    let Packet::RequestIdentification { node_type, nid, id_timestamp, .. } = request else {
        panic!("{request:?}");
    };
    assert_eq!((node_type, nid), (NodeType::Storage, Some(s(1))));
    assert_eq!(id_timestamp, Some(id_timestamp_of(1)));
    node.write_as(conn, id, &accepted(Some(s(n)), Some(s(1))));
    conn
}

#[track_caller]
fn expect_transactions(node: &mut Node, conn: ConnId, range: (u64, u64), known: &[u64]) -> MsgId {
    let (id, packet) = node.receive(conn).expect("AskFetchTransactions");
    let Packet::AskFetchTransactions { partition, length, min_tid, max_tid, known: k, .. } = packet
    else {
        panic!("{packet:?}");
    };
    assert_eq!((partition, length), (1, 1000));
    assert_eq!((min_tid.get(), max_tid.get()), range);
    assert_eq!(k, known.iter().map(|n| tid(*n)).collect::<Vec<_>>());
    id
}

#[track_caller]
fn expect_objects(
    node: &mut Node,
    conn: ConnId,
    (min, min_oid, max): (u64, u64, u64),
    known: &[(u64, u64)],
) -> MsgId {
    let (id, packet) = node.receive(conn).expect("AskFetchObjects");
    let Packet::AskFetchObjects { partition, min_tid, max_tid, min_oid: o, known: k, .. } = packet
    else {
        panic!("{packet:?}");
    };
    assert_eq!((partition, min_tid.get(), o.get(), max_tid.get()), (1, min, min_oid, max));
    let flat = k.into_iter().flat_map(|(t, oids)| oids.into_iter().map(move |o| (t, o)));
    assert_eq!(
        flat.collect::<Vec<_>>(),
        known.iter().map(|(t, o)| (tid(*t), oid(*o))).collect::<Vec<_>>()
    );
    id
}

fn answer_transactions(node: &mut Node, conn: ConnId, id: MsgId, next: Option<u64>) {
    let answer = Packet::AnswerFetchTransactions {
        next_tid: next.map(tid),
        to_delete: Vec::new(),
        completed_pack: None,
    };
    node.write_as(conn, id, &answer);
}

fn answer_objects(node: &mut Node, conn: ConnId, id: MsgId, next: Option<(u64, u64)>) {
    let answer = Packet::AnswerFetchObjects {
        next_tid: next.map(|(t, _)| tid(t)),
        next_oid: next.map(|(_, o)| oid(o)),
        to_delete: Map::default(),
    };
    node.write_as(conn, id, &answer);
}

/// At the end, the node asks for packs that it has not done. There is none.
#[track_caller]
fn no_pack(node: &mut Node, completed: u64) {
    let (id, packet) = node.told().expect("AskPackOrders");
    assert_eq!(packet, Packet::AskPackOrders { min_tid: tid(completed + 1) });
    let master = node.master.unwrap();
    node.write_as(master, id, &Packet::AnswerPackOrders { orders: Vec::new() });
}

fn next_tid(node: &mut Node) -> CellNext {
    let Done::CellNextTids(next) = node.latest(Read::CellNextTids) else { panic!() };
    next.into_iter().find(|(partition, _)| *partition == 1).unwrap().1
}

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

/// A node with transactions 11 and 13 in partition 1, whose storage 2 asks.
fn feeding() -> (Node, ConnId, ConnId) {
    let mut node = Node::serving_table(vec![row(&[(1, U)]), row(&[(1, U), (2, O)])], &[2]);
    let client = node.client(1);
    node.commit(client, 3, 11, &[(1, 0, "a"), (3, 0, "b")]);
    node.commit(client, 13, 15, &[(1, 11, "c"), (2, 0, "other")]);
    let storage = node.storage(2);
    (node, client, storage)
}

fn fetch_transactions(length: u32, max_tid: u64, known: &[u64]) -> Packet {
    Packet::AskFetchTransactions {
        partition: 1,
        length,
        min_tid: tid(0),
        max_tid: tid(max_tid),
        known: known.iter().map(|n| tid(*n)).collect(),
        ask_pack_info: true,
    }
}

fn fetch_objects(length: u32, min_tid: u64, min_oid: u64, known: &[(u64, u64)]) -> Packet {
    Packet::AskFetchObjects {
        partition: 1,
        length,
        min_tid: tid(min_tid),
        max_tid: tid(99),
        min_oid: oid(min_oid),
        known: known.iter().map(|(t, o)| (tid(*t), vec![oid(*o)])).collect(),
    }
}

/// The source sends what is missing, by chunks, and tells what to delete: only what the chunk is
/// about.
#[test]
fn source() {
    let (mut node, _, storage) = feeding();
    let id = node.send(storage, fetch_transactions(1, 99, &[9, 14, 77]));
    let Packet::AddTransaction { tid: t, oids, ttid: tt, .. } = node.answer(storage, id) else {
        panic!();
    };
    assert_eq!((t, tt, oids), (tid(11), ttid(3), vec![oid(1), oid(3)]));
    let answer = Packet::AnswerFetchTransactions {
        next_tid: Some(tid(15)),
        to_delete: vec![tid(9), tid(14)],
        completed_pack: Some(Tid::ZERO),
    };
    assert_eq!(node.answer(storage, id), answer);
    let id = node.send(storage, fetch_transactions(1000, 99, &[11, 15, 77]));
    let answer = Packet::AnswerFetchTransactions {
        next_tid: None,
        to_delete: vec![tid(77)],
        completed_pack: Some(Tid::ZERO),
    };
    assert_eq!(node.answer(storage, id), answer);

    let id = node.send(storage, fetch_objects(2, 0, 0, &[(11, 1), (12, 1), (77, 1)]));
    let object = Packet::AddObject {
        oid: oid(3),
        serial: tid(11),
        compression: 0,
        checksum: checksum(b"b"),
        data: Bytes::from_static(b"b"),
        data_serial: None,
    };
    assert_eq!(node.answer(storage, id), object);
    let answer = Packet::AnswerFetchObjects {
        next_tid: Some(tid(15)),
        next_oid: Some(oid(1)),
        to_delete: Map(vec![(tid(12), vec![oid(1)])]),
    };
    assert_eq!(node.answer(storage, id), answer);
    let id = node.send(storage, fetch_objects(1000, 15, 1, &[]));
    assert_eq!(node.answer(storage, id), add_object(1, 15, "c"));
    let answer =
        Packet::AnswerFetchObjects { next_tid: None, next_oid: None, to_delete: Map::default() };
    assert_eq!(node.answer(storage, id), answer);
}

/// Deletions are replicated, with their own form on the wire. Upstream: testDeleteObject.
#[test]
fn delete_object() {
    let (mut node, client, storage) = feeding();
    let delete = Packet::AskStoreObject {
        oid: oid(1),
        serial: tid(15),
        compression: 0,
        checksum: ZERO_HASH,
        data: Bytes::new(),
        data_serial: None,
        ttid: ttid(17),
    };
    node.ask(client, delete);
    node.ask(client, store_transaction(17, &[1]));
    node.lock(17, 19);
    node.unlock(17);
    let id = node.send(storage, fetch_objects(1000, 19, 0, &[]));
    let object = Packet::AddObject {
        oid: oid(1),
        serial: tid(19),
        compression: 0,
        checksum: ZERO_HASH,
        data: Bytes::new(),
        data_serial: None,
    };
    assert_eq!(node.answer(storage, id), object);
}

/// A big chunk is cut: the rest is for the next request.
#[test]
fn big_chunks_are_cut() {
    let mut node = Node::serving_table(vec![row(&[(1, U)]), row(&[(1, U), (2, O)])], &[2]);
    let client = node.client(1);
    let big = "x".repeat(3 << 20);
    let stores = [(1, 0, big.as_str()), (3, 0, &big), (5, 0, &big), (7, 0, &big)];
    node.commit(client, 3, 11, &stores);
    let storage = node.storage(2);
    let mut from = (0, 0);
    let mut received = Vec::new();
    let mut requests = 0;
    loop {
        let id = node.send(storage, fetch_objects(1000, from.0, from.1, &[(11, 9)]));
        requests += 1;
        let next = loop {
            match node.answer(storage, id) {
                Packet::AddObject { oid, .. } => received.push(oid.get()),
                Packet::AnswerFetchObjects { next_tid, next_oid, to_delete } => {
                    // Object 9 does not exist; it is only deleted by the last chunk.
                    assert_eq!(to_delete.0.is_empty(), next_tid.is_some());
                    break next_tid.zip(next_oid);
                }
                packet => panic!("{packet:?}"),
            }
        };
        let Some((t, o)) = next else { break };
        from = (t.get(), o.get());
    }
    assert_eq!(received, [1, 3, 5, 7]);
    assert!(requests > 1);
}

/// What is being committed is waited for; what is not readable is refused.
#[test]
fn source_that_can_not() {
    let (mut node, client, storage) = feeding();
    node.vote(client, 17, &[(1, 15, "d")]);
    node.lock(17, 21);
    let id = node.send(storage, fetch_transactions(1000, 21, &[11, 15]));
    node.expect_nothing(storage);
    node.unlock(17);
    let packet = node.answer(storage, id);
    assert!(matches!(packet, Packet::AddTransaction { .. }), "{packet:?}");
    node.answer(storage, id);
    let mut other = fetch_transactions(1000, 21, &[]);
    if let Packet::AskFetchTransactions { partition, .. } = &mut other {
        *partition = 5;
    }
    let error = node.ask_error(storage, other);
    assert_eq!(error, (ErrorCode::ReplicationError, "partition 5 not readable".into()));
    // It is dropped in the middle.
    node.hold_reads = true;
    let id = node.send(storage, fetch_objects(1000, 0, 0, &[]));
    let changes = vec![(1, s(1), DISCARDED), (1, s(2), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    node.hold_reads = false;
    node.run();
    let error = Packet::error(ErrorCode::ReplicationError, "partition 1 dropped");
    assert_eq!(node.answer(storage, id), error);
    assert_eq!(node.ask(storage, Packet::Ping {}), Packet::Pong {});
}

/// Two storages that connect to each other at the same time keep one connection: that of the greater
/// nid.
#[test]
fn simultaneous_connections() {
    let mut node = replicating();
    unfinished(&mut node, &[1], 11, &[]);
    let conn = node.connected(storage_address(2));
    let (_, request) = node.receive(conn).unwrap();
    assert!(matches!(request, Packet::RequestIdentification { .. }));
    let accepted_conn = node.storage(2);
    assert!(node.is_closed(conn));
    // The other direction: it is used for the replication, after a while.
    node.advance(Duration::from_secs(1));
    expect_transactions(&mut node, accepted_conn, (0, 11), &[]);
    let again = node.accept();
    let request = identification(NodeType::Storage, Some(s(2)), id_timestamp_of(2));
    let error = node.ask_error(again, request);
    assert_eq!(error, (ErrorCode::ProtocolError, "already connected".into()));
}

/// A storage of a backup cluster has no id here; it may fetch.
#[test]
fn anonymous_storage() {
    let (mut node, ..) = feeding();
    let conn = node.accept();
    let answer = node.ask(conn, identification(NodeType::Storage, None, 0.0));
    assert_eq!(answer, accepted(None, None));
    let id = node.send(conn, fetch_objects(1000, 15, 0, &[]));
    assert_eq!(node.answer(conn, id), add_object(1, 15, "c"));
}

/// Digests of ranges, and the check of a partition against its replicas.
#[test]
fn check_replicas() {
    let rows = vec![row(&[(1, U)]), row(&[(1, U), (2, U), (3, U)])];
    let mut node = Node::serving_table(rows, &[2, 3]);
    let client = node.client(1);
    node.commit(client, 3, 11, &[(1, 0, "a")]);
    let storage = node.storage(2);
    let tids = Packet::AskCheckTIDRange {
        partition: 1,
        length: 40_000,
        min_tid: tid(0),
        max_tid: tid(99),
    };
    let serials = Packet::AskCheckSerialRange {
        partition: 1,
        length: 40_000,
        min_tid: tid(0),
        max_tid: tid(99),
        min_oid: oid(0),
    };
    let tid_digest = node.ask(storage, tids.clone());
    let serial_digest = node.ask(storage, serials.clone());
    let expected =
        Packet::AnswerCheckTIDRange { count: 1, checksum: checksum(b"11"), max_tid: tid(11) };
    assert_eq!(tid_digest, expected);
    let expected = Packet::AnswerCheckSerialRange {
        count: 1,
        tid_checksum: checksum(b"11"),
        max_tid: tid(11),
        oid_checksum: checksum(b"1"),
        max_oid: oid(1),
    };
    assert_eq!(serial_digest, expected);

    let check = |source| Packet::CheckPartition {
        partition: 1,
        source: (String::new(), source),
        min_tid: tid(0),
        max_tid: tid(99),
    };
    // All agree.
    node.tell(check(None));
    let third = accept_node(&mut node, 3);
    for digest in [&tid_digest, &serial_digest] {
        for conn in [storage, third] {
            let (id, packet) = node.receive(conn).unwrap();
            let expected = if *digest == tid_digest { &tids } else { &serials };
            assert_eq!(packet, *expected);
            node.write_as(conn, id, digest);
        }
    }
    assert!(node.told().is_none());
    // With ourselves as reference, the one that differs is told; the check goes on with the other.
    node.tell(check(Some(storage_address(1))));
    let (id, _) = node.receive(storage).unwrap();
    let none = Packet::AnswerCheckTIDRange { count: 0, checksum: ZERO_HASH, max_tid: Tid::ZERO };
    node.write_as(storage, id, &none);
    let (id, _) = node.receive(third).unwrap();
    node.write_as(third, id, &tid_digest);
    let corrupted = |n| Packet::NotifyPartitionCorrupted { partition: 1, nids: vec![Some(s(n))] };
    assert_eq!(node.told().unwrap().1, corrupted(2));
    let (id, packet) = node.receive(third).unwrap();
    assert_eq!(packet, serials);
    node.write_as(third, id, &serial_digest);
    assert!(node.told().is_none());
    // Nodes that are lost in the middle.
    node.tell(check(None));
    node.receive(storage).unwrap();
    let (id, _) = node.receive(third).unwrap();
    node.close(storage);
    node.write_as(third, id, &tid_digest);
    node.receive(third).unwrap();
    node.close(third);
    assert!(node.told().is_none());
    // Nobody to compare with.
    let check = Packet::CheckPartition {
        partition: 0,
        source: (String::new(), None),
        min_tid: tid(0),
        max_tid: tid(99),
    };
    node.tell(check);
    assert!(node.told().is_none());
}

// Backup mode.

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
