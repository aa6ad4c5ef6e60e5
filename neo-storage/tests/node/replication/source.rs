// SPDX-License-Identifier: GPL-2.0-or-later
//! The other side: what a storage gives to those that replicate, and the comparison of replicas.

use super::*;

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
