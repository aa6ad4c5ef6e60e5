// SPDX-License-Identifier: GPL-2.0-or-later
//! Packs and other background tasks.

use bytes::Bytes;
use neo_common::protocol::{CellState, ErrorCode, MsgId, PackOids, Packet};
use neo_common::types::Ttid;
use neo_storage::database::memory::Disk;
use neo_storage::database::{Done, Read};

use crate::harness::*;

/// The node asks for the order after `packed`; this is the answer.
#[track_caller]
fn order(node: &mut Node, packed: u64, order: Option<(u64, Option<Vec<u64>>, u64)>) {
    let (id, packet) = node.told().expect("AskPackOrders");
    assert_eq!(packet, Packet::AskPackOrders { min_tid: tid(packed + 1) });
    answer_order(node, id, order);
}

fn answer_order(node: &mut Node, id: MsgId, order: Option<(u64, Option<Vec<u64>>, u64)>) {
    let orders = order.into_iter().map(|(pack_id, oids, pack_tid)| {
        let oids: Option<Vec<_>> = oids.map(|oids| oids.into_iter().map(oid).collect());
        (tid(pack_id), Some(true), oids.is_some(), oids.map(PackOids::List), tid(pack_tid))
    });
    let answer = Packet::AnswerPackOrders { orders: orders.collect() };
    let master = node.master.unwrap();
    node.write_as(master, id, &answer);
}

#[track_caller]
fn expect_completed(node: &mut Node, pack_id: u64) {
    let completed = Packet::NotifyPackCompleted { tid: tid(pack_id) };
    assert_eq!(node.told().expect("NotifyPackCompleted").1, completed);
}

fn sign(node: &mut Node, approved: u64) {
    node.tell(Packet::NotifyPackSigned { approved: vec![tid(approved)], rejected: vec![] });
}

/// Objects 1 and 2 of two partitions, each with revisions at 4, 6 and 8 (+ the partition).
fn with_history(mut node: Node) -> Node {
    let client = node.client(1);
    for oid in [1, 2] {
        let p = oid % 2;
        let mut last = 0;
        for n in [4, 6, 8] {
            // In the partition of the object, for readable tids.
            node.commit(client, 10 * oid + n + p - 2, 10 * oid + n + p, &[(oid, last, "x")]);
            last = 10 * oid + n + p;
        }
    }
    node
}

fn history(node: &mut Node, oid_: u64) -> Vec<u64> {
    let offset = 0;
    let partition = (oid_ % 2) as u32;
    let job = Read::History { partition, oid: oid(oid_), offset, length: 99 };
    let Done::History(history) = node.latest(job) else { panic!() };
    history.into_iter().map(|(tid, _)| tid.get()).collect()
}

/// Old revisions are removed, partition by partition; the master is told once all are done.
#[test]
fn pack() {
    let mut node = with_history(Node::serving(2));
    assert_eq!(history(&mut node, 1), [19, 17, 15]);
    assert_eq!(history(&mut node, 2), [28, 26, 24]);
    sign(&mut node, 40);
    order(&mut node, 0, Some((40, None, 26)));
    assert_eq!(history(&mut node, 1), [19]);
    assert_eq!(history(&mut node, 2), [28, 26]);
    expect_completed(&mut node, 40);
    assert!(node.told().is_none());
    // It is remembered.
    let mut node = Node::start(config(), node.disk.clone(), 1);
    node.identify(&[]);
    node.tell(Packet::AskLastIDs {});
    expect_completed(&mut node, 40);
}

/// What was packed cannot be undone, even where the revisions are not the last ones; the transactions
/// are marked.
#[test]
fn undo_of_what_was_packed() {
    let mut node = with_history(Node::serving(2));
    let client = node.client(2);
    let undo = |undone: u64, number: u64| Packet::AskObjectUndoSerial {
        ttid: Ttid::new(90),
        ltid: tid(89),
        undone_tid: tid(undone),
        oids: vec![oid(number)],
    };
    let refused =
        |answer: Packet| matches!(answer, Packet::Error { code: ErrorCode::OidNotFound, .. });
    sign(&mut node, 42);
    order(&mut node, 0, Some((40, Some(vec![2]), 25)));
    expect_completed(&mut node, 40);
    assert!(!refused(node.ask(client, undo(26, 2))));
    // Of a partial order, only the objects.
    assert!(!refused(node.ask(client, undo(15, 1))));
    order(&mut node, 40, Some((42, None, 26)));
    expect_completed(&mut node, 42);
    for (undone, number) in [(24, 2), (26, 2), (15, 1), (19, 1)] {
        assert!(refused(node.ask(client, undo(undone, number))), "{undone}");
    }
    assert!(!refused(node.ask(client, undo(28, 2))));
    for (number, expected) in [(15, true), (24, true), (26, true), (28, false)] {
        let answer = node.ask(client, Packet::AskTransactionInformation { tid: tid(number) });
        let Packet::AnswerTransactionInformation { packed, .. } = answer else { panic!() };
        assert_eq!(packed, expected, "{number}");
    }
}

/// Several orders, one after the other, the second one partial. Upstream: testPartial.
#[test]
fn partial() {
    let mut node = with_history(Node::serving(2));
    sign(&mut node, 42);
    order(&mut node, 0, Some((40, Some(vec![1, 7]), 99)));
    assert_eq!(history(&mut node, 1), [19]);
    assert_eq!(history(&mut node, 2), [28, 26, 24]);
    expect_completed(&mut node, 40);
    // The oids as a storage of upstream sends them.
    let (id, packet) = node.told().unwrap();
    assert_eq!(packet, Packet::AskPackOrders { min_tid: tid(41) });
    let joined = [oid(2).to_bytes(), oid(9).to_bytes()].concat();
    let oids = Some(PackOids::Joined(Bytes::from(joined)));
    let orders = vec![(tid(42), Some(true), true, oids, tid(99))];
    let master = node.master.unwrap();
    node.write_as(master, id, &Packet::AnswerPackOrders { orders });
    assert_eq!(history(&mut node, 2), [28]);
    expect_completed(&mut node, 42);
}

/// A deleted object disappears with its last revision: what was known of it is forgotten.
#[test]
fn packed_deletion() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.commit(client, 4, 6, &[(1, 0, "x")]);
    let mut delete = store(7, 1, 6, "");
    if let Packet::AskStoreObject { checksum, .. } = &mut delete {
        *checksum = neo_common::types::ZERO_HASH;
    }
    node.ask(client, delete);
    node.ask(client, store_transaction(7, &[1]));
    node.lock(7, 8);
    node.unlock(7);
    sign(&mut node, 9);
    order(&mut node, 0, Some((9, None, 8)));
    expect_completed(&mut node, 9);
    assert_eq!(node.ask_error(client, load(1)).0, ErrorCode::OidDoesNotExist);
    let answer = node.ask(client, store(10, 1, 0, "again"));
    assert_eq!(answer, Packet::AnswerStoreObject { conflict: None });
}

/// Orders are kept, and processed once packs are enabled again. Upstream: testDisablePack.
#[test]
fn disable_pack() {
    let mut disabled = config();
    disabled.disable_pack = true;
    let mut node = Node::start(disabled, Disk::new(), 1);
    node.identify(&[]);
    node.recover(vec![row(&[(1, U)]), row(&[(1, U)])]);
    node.operate(false);
    let mut node = with_history(node);
    sign(&mut node, 40);
    expect_completed(&mut node, 40);
    assert!(node.told().is_none());
    let mut node = Node::start(config(), node.disk.clone(), 1);
    node.identify(&[]);
    node.recover(vec![row(&[(1, U)]), row(&[(1, U)])]);
    node.operate(false);
    assert_eq!(history(&mut node, 1).len(), 3);
    sign(&mut node, 40);
    order(&mut node, 0, Some((40, None, 99)));
    assert_eq!(history(&mut node, 1), [19]);
}

/// The order that a transaction carries: stored with the vote, approved with the lock, told to the
/// master as a list.
#[test]
fn pack_order_of_a_transaction() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    let vote = Packet::AskStoreTransaction {
        ttid: ttid(4),
        user: Bytes::new(),
        description: Bytes::new(),
        extension: Bytes::new(),
        oids: Vec::new(),
        pack: Some((Some(vec![oid(3), oid(5)]), tid(2))),
    };
    node.ask(client, vote);
    let lock = Packet::AskLockInformation { ttid: ttid(4), tid: tid(6), pack: true };
    node.ask_from_master(lock);
    node.unlock(4);
    let oids = Some(PackOids::List(vec![oid(3), oid(5)]));
    let orders = vec![(tid(6), Some(true), true, oids, tid(2))];
    let answer = node.ask_from_master(Packet::AskPackOrders { min_tid: tid(5) });
    assert_eq!(answer, Packet::AnswerPackOrders { orders });
    let answer = node.ask_from_master(Packet::AskPackOrders { min_tid: tid(7) });
    assert_eq!(answer, Packet::AnswerPackOrders { orders: Vec::new() });
}

/// The cell leaves while it is being packed: the others go on.
#[test]
fn cell_discarded_during_pack() {
    let rows = vec![row(&[(1, U)]), row(&[(1, U)])];
    let mut node = with_history(Node::serving_table(rows, &[2]));
    sign(&mut node, 40);
    node.hold_writes = true;
    order(&mut node, 0, Some((40, None, 99)));
    let changes = vec![(0, s(1), DISCARDED), (0, s(2), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    node.hold_writes = false;
    node.run();
    expect_completed(&mut node, 40);
    assert_eq!(history(&mut node, 1), [19]);
    assert!(history(&mut node, 2).is_empty(), "dropped");
}

/// A cell that feeds is not packed. The pack is completed once it leaves, or is packed as the others
/// are.
#[test]
fn feeding_cell_during_pack() {
    for is_kept in [false, true] {
        let rows = vec![row(&[(1, CellState::Feeding), (2, O)]), row(&[(1, U)])];
        let mut node = with_history(Node::serving_table(rows, &[2]));
        sign(&mut node, 40);
        order(&mut node, 0, Some((40, None, 99)));
        assert!(node.told().is_none());
        let changes = match is_kept {
            true => vec![(0, s(1), U)],
            false => vec![(0, s(2), U), (0, s(1), DISCARDED)],
        };
        node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
        if is_kept {
            order(&mut node, 0, Some((40, None, 99)));
        }
        expect_completed(&mut node, 40);
        assert_eq!(history(&mut node, 1), [19]);
    }
}

/// An order that no master would give.
#[test]
fn wrong_order() {
    for orders in [
        vec![(tid(0), Some(true), false, None, tid(9))],
        vec![(tid(40), None, false, None, tid(9))],
        vec![(tid(40), Some(true), true, Some(PackOids::Joined(Bytes::from_static(b"x"))), tid(9))],
    ] {
        let mut node = Node::serving(1);
        sign(&mut node, 40);
        let (id, _) = node.told().unwrap();
        let master = node.master.unwrap();
        node.write_as(master, id, &Packet::AnswerPackOrders { orders });
        assert!(node.is_closed(master));
    }
    // It does not know it any more: nothing happens.
    let mut node = Node::serving(1);
    sign(&mut node, 40);
    order(&mut node, 0, None);
    assert!(node.told().is_none());
}

/// Data that nothing refers to is found, and removed unless it is a dry run; uncommitted data stays.
/// Upstream: testPruneOrphan.
#[test]
fn prune_orphan() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.commit(client, 4, 6, &[(1, 0, "kept")]);
    node.vote(client, 7, &[(2, 0, "voted")]);
    for dry_run in [true, false] {
        node.tell(Packet::NotifyRepair { dry_run });
    }
    node.lock(7, 8);
    node.unlock(7);
    assert_eq!(node.load(client, 1), (6, "kept".into()));
    assert_eq!(node.load(client, 2), (8, "voted".into()));
    assert!(node.told().is_none());
}

/// Data of discarded cells is deleted, in slices, unless the option forbids it. Upstream:
/// testDropPartitions.
#[test]
fn drop_partitions() {
    for disabled in [false, true] {
        let mut options = config();
        options.disable_drop_partitions = disabled;
        let mut node = Node::start(options, Disk::new(), 1);
        node.identify(&[2]);
        node.recover(vec![row(&[(1, U)]), row(&[(1, U)])]);
        node.operate(false);
        let mut node = with_history(node);
        let changes = vec![(1, s(1), DISCARDED), (1, s(2), U)];
        node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
        assert_eq!(history(&mut node, 1).is_empty(), !disabled);
        assert_eq!(history(&mut node, 2).len(), 3);
        // Whatever is in the database, it is not told.
        node.tell(Packet::StopOperation {});
        node.tell(Packet::AskLastIDs {});
        while let Some((_, packet)) = node.told() {
            if let Packet::AnswerLastIDs { last_tid, last_oid, first_tid } = packet {
                let expected = (Some(tid(28)), Some(oid(2)), tid(24));
                assert_eq!((last_tid, last_oid, first_tid), expected);
            }
        }
    }
}
