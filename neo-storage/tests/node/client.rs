// SPDX-License-Identifier: GPL-2.0-or-later
//! What clients see.

use bytes::Bytes;
use neo_common::engine::UNFINISHED;
use neo_common::protocol::{ErrorCode, Map, NodeState, NodeType, Packet};
use neo_common::types::{INVALID_PARTITION, Oid, Tid, ZERO_HASH};
use neo_storage::database::{Done, Read};

use crate::harness::*;

const OK: Packet = Packet::AnswerStoreObject { conflict: None };

fn conflict(n: u64) -> Packet {
    Packet::AnswerStoreObject { conflict: Some(tid(n)) }
}

/// Store, vote, lock, unlock, load; and what is read of it.
#[test]
fn basic_store() {
    let mut node = Node::serving(2);
    let client = node.client(1);
    node.commit(client, 4, 10, &[(1, 0, "one"), (2, 0, "two")]);
    node.commit(client, 13, 15, &[(1, 10, "uno")]);
    assert_eq!(node.load(client, 1), (15, "uno".into()));
    let before = Packet::AskObject { oid: oid(1), at: None, before: Some(tid(15)) };
    let expected = Packet::AnswerObject {
        oid: oid(1),
        serial: tid(10),
        next_serial: Some(tid(15)),
        compression: Some(0),
        checksum: checksum(b"one"),
        data: Bytes::from_static(b"one"),
        data_serial: None,
    };
    assert_eq!(node.ask(client, before), expected);
    let at = Packet::AskObject { oid: oid(1), at: Some(tid(10)), before: None };
    assert_eq!(node.ask(client, at), expected);
    let at = Packet::AskObject { oid: oid(1), at: Some(tid(11)), before: None };
    let error = node.ask_error(client, at);
    assert_eq!(error, (ErrorCode::OidNotFound, "0000000000000001".into()));
    let error = node.ask_error(client, load(7));
    assert_eq!(error, (ErrorCode::OidDoesNotExist, "0000000000000007".into()));
    let history = Packet::AskObjectHistory { oid: oid(1), first: 0, last: 10 };
    let expected = vec![(tid(15), 3), (tid(10), 3)];
    let expected = Packet::AnswerObjectHistory { oid: oid(1), history: expected };
    assert_eq!(node.ask(client, history), expected);
    let history = Packet::AskObjectHistory { oid: oid(7), first: 0, last: 10 };
    assert_eq!(node.ask_error(client, history).0, ErrorCode::OidNotFound);
    let info = node.ask(client, Packet::AskTransactionInformation { tid: tid(10) });
    let Packet::AnswerTransactionInformation { user, oids, .. } = info else { panic!("{info:?}") };
    assert_eq!((&user[..], oids), (&b"user"[..], vec![oid(1), oid(2)]));
    let info = Packet::AskTransactionInformation { tid: tid(11) };
    let error = (ErrorCode::TidNotFound, "000000000000000b does not exist".into());
    assert_eq!(node.ask_error(client, info), error);
    let tids = Packet::AskTIDs { first: 0, last: 9, partition: INVALID_PARTITION };
    let expected = Packet::AnswerTIDs { tids: vec![tid(15), tid(10)] };
    assert_eq!(node.ask(client, tids), expected);
    let tids =
        Packet::AskTIDsFrom { min_tid: Tid::ZERO, max_tid: Tid::MAX, length: 9, partition: 0 };
    assert_eq!(node.ask(client, tids), Packet::AnswerTIDsFrom { tids: vec![tid(10)] });
}

/// Deleted objects, and objects whose creation is undone.
#[test]
fn deletion() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.commit(client, 4, 10, &[(1, 0, "one")]);
    let delete = Packet::AskStoreObject {
        oid: oid(1),
        serial: tid(10),
        compression: 0,
        checksum: ZERO_HASH,
        data: Bytes::new(),
        data_serial: None,
        ttid: ttid(11),
    };
    assert_eq!(node.ask(client, delete), OK);
    node.ask(client, store_transaction(11, &[1]));
    node.lock(11, 12);
    node.unlock(11);
    let expected = Packet::AnswerObject {
        oid: oid(1),
        serial: tid(12),
        next_serial: None,
        compression: None,
        checksum: ZERO_HASH,
        data: Bytes::new(),
        data_serial: None,
    };
    assert_eq!(node.ask(client, load(1)), expected);
    let oids = |at: u64| Packet::AskOIDsFrom {
        partition: 0,
        length: 10,
        min_oid: Oid::ZERO,
        tid: tid(at),
    };
    let answer = node.ask(client, oids(11));
    assert_eq!(answer, Packet::AnswerOIDsFrom { next_oid: None, oids: vec![oid(1)] });
    let answer = node.ask(client, oids(12));
    assert_eq!(answer, Packet::AnswerOIDsFrom { next_oid: None, oids: Vec::new() });
}

/// A store of a locked object is answered when the other transaction is finished. Upstream:
/// testDelayedStore.
#[test]
fn delayed_store() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    assert_eq!(node.ask(a, store(4, 1, 0, "a")), OK);
    let id = node.send(b, store(5, 1, 0, "b"));
    node.expect_nothing(b);
    node.ask(a, store_transaction(4, &[1]));
    node.lock(4, 10);
    node.expect_nothing(b);
    node.unlock(4);
    assert_eq!(node.answer(b, id), conflict(10));
    assert_eq!(node.ask(b, store(5, 1, 10, "b")), OK);
}

/// Upstream: testDeadlockAvoidance, on one storage.
#[test]
fn deadlock_avoidance() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    assert_eq!(node.ask(a, store(4, 1, 0, "a1")), OK);
    assert_eq!(node.ask(b, store(5, 2, 0, "b2")), OK);
    let b1 = node.send(b, store(5, 1, 0, "b1"));
    let a2 = node.send(a, store(4, 2, 0, "a2"));
    let notified = node.receive(b).unwrap().1;
    assert_eq!(notified, Packet::NotifyDeadlock { ttid: ttid(5), oid: oid(2) });
    let relock = node.send(b, Packet::AskRelockObject { ttid: ttid(5), oid: oid(2) });
    assert_eq!(node.answer(a, a2), OK);
    node.expect_nothing(b);
    node.ask(a, store_transaction(4, &[1, 2]));
    node.lock(4, 10);
    node.unlock(4);
    assert_eq!(node.answer(b, b1), conflict(10));
    let data = (0, checksum(b"b2"), Bytes::from_static(b"b2"));
    let expected = Packet::AnswerRelockObject { conflict: Some((Tid::ZERO, tid(10), Some(data))) };
    assert_eq!(node.answer(b, relock), expected);
    node.commit(b, 5, 11, &[(1, 10, "b1"), (2, 10, "b2")]);
    assert_eq!(node.load(a, 2), (11, "b2".into()));
}

/// A load of an object between lock and unlock is answered once, after the unlock is visible.
/// Upstream: testReadLockVsAskObject.
#[test]
fn read_lock_vs_ask_object() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    node.commit(a, 4, 10, &[(1, 0, "old"), (2, 0, "other")]);
    node.vote(a, 11, &[(1, 10, "new")]);
    assert_eq!(node.load(b, 1), (10, "old".into()), "voted only");
    node.lock(11, 12);
    let loads = [node.send(b, load(1)), node.send(b, load(1))];
    let history = node.send(b, Packet::AskObjectHistory { oid: oid(1), first: 0, last: 1 });
    let undo = Packet::AskObjectUndoSerial {
        ttid: ttid(20),
        ltid: Tid::MAX,
        undone_tid: tid(10),
        oids: vec![oid(1)],
    };
    let undo = node.send(b, undo);
    node.expect_nothing(b);
    assert_eq!(node.load(b, 2), (10, "other".into()));
    // Until the unlock is committed.
    node.hold_writes = true;
    node.unlock(11);
    node.expect_nothing(b);
    node.hold_writes = false;
    node.run();
    for id in loads {
        let answer = node.answer(b, id);
        let Packet::AnswerObject { serial, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(serial, tid(12));
    }
    let expected = Packet::AnswerObjectHistory { oid: oid(1), history: vec![(tid(12), 3)] };
    assert_eq!(node.answer(b, history), expected);
    let serials = Map(vec![(oid(1), (tid(12), None, false))]);
    assert_eq!(node.answer(b, undo), Packet::AnswerObjectUndoSerial { serials });
    node.expect_nothing(b);
}

/// Upstream: testReadLockVsAskTIDsFrom.
#[test]
fn read_lock_vs_ask_tids_from() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    node.vote(a, 4, &[(1, 0, "a")]);
    node.lock(4, 10);
    let ask = |max: u64| Packet::AskTIDsFrom {
        min_tid: Tid::ZERO,
        max_tid: tid(max),
        length: 9,
        partition: 0,
    };
    assert_eq!(node.ask(b, ask(9)), Packet::AnswerTIDsFrom { tids: Vec::new() });
    let id = node.send(b, ask(10));
    let oids = Packet::AskOIDsFrom { partition: 0, length: 9, min_oid: oid(0), tid: tid(10) };
    let oids = node.send(b, oids);
    let tids = node.send(b, Packet::AskTIDs { first: 0, last: 9, partition: 0 });
    let info = node.send(b, Packet::AskTransactionInformation { tid: tid(10) });
    node.expect_nothing(b);
    // What begins to be committed later is not waited for.
    node.vote(a, 11, &[(2, 0, "b")]);
    node.lock(11, 12);
    node.unlock(4);
    assert_eq!(node.answer(b, id), Packet::AnswerTIDsFrom { tids: vec![tid(10)] });
    assert_eq!(node.answer(b, oids), Packet::AnswerOIDsFrom { next_oid: None, oids: vec![oid(1)] });
    assert_eq!(node.answer(b, tids), Packet::AnswerTIDs { tids: vec![tid(10)] });
    let info = node.answer(b, info);
    assert!(matches!(info, Packet::AnswerTransactionInformation { .. }), "{info:?}");
    node.unlock(11);
}

/// The answers to a vote and to a lock leave after the commit that holds what they promise.
#[test]
fn durable_before_answer() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    assert_eq!(node.ask(client, store(4, 1, 0, "a")), OK);
    node.hold_writes = true;
    let vote = node.send(client, store_transaction(4, &[1]));
    node.expect_nothing(client);
    // Executed, not committed.
    let reports = node.executor.write(usize::MAX).unwrap();
    assert!(reports.is_empty());
    node.hold_writes = false;
    node.run();
    assert_eq!(node.answer(client, vote), Packet::AnswerStoreTransaction {});
    node.hold_writes = true;
    node.tell(Packet::AskLockInformation { ttid: ttid(4), tid: tid(10), pack: false });
    assert!(node.told().is_none());
    // Nobody learns that it is committed before it is on disk, not even the master.
    node.tell(Packet::AskFinalTID { ttid: ttid(4) });
    assert!(node.told().is_none());
    node.hold_writes = false;
    node.run();
    let locked = Packet::AnswerInformationLocked { ttid: ttid(4) };
    assert_eq!(node.told().unwrap().1, locked);
    assert_eq!(node.told().unwrap().1, Packet::AnswerFinalTID { tid: Some(tid(10)) });
}

/// A node that is only involved in checks: nothing is written, but the lock is held until the end.
/// Upstream: testReadVerifyingStorage.
#[test]
fn read_verifying_storage() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    node.commit(a, 4, 10, &[(1, 0, "a")]);
    let check = |ttid_: u64, serial: u64| Packet::AskCheckCurrentSerial {
        ttid: ttid(ttid_),
        oid: oid(1),
        serial: tid(serial),
    };
    let answer = node.ask(a, check(11, 0));
    assert_eq!(answer, Packet::AnswerCheckCurrentSerial { conflict: Some(tid(10)) });
    let answer = node.ask(a, check(11, 10));
    assert_eq!(answer, Packet::AnswerCheckCurrentSerial { conflict: None });
    let id = node.send(b, store(12, 1, 10, "b"));
    let answer = node.ask(a, Packet::AskVoteTransaction { ttid: ttid(11) });
    assert_eq!(answer, Packet::AnswerVoteTransaction {});
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
    node.lock(11, 13);
    node.expect_nothing(b);
    node.unlock(11);
    assert_eq!(node.answer(b, id), OK, "a check leaves no revision");
}

/// Aborting after the vote leaves nothing. Upstream: testAbortVotedTransaction.
#[test]
fn abort_voted_transaction() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    node.vote(a, 4, &[(1, 0, "a")]);
    let id = node.send(b, store(5, 1, 0, "b"));
    node.expect_nothing(b);
    node.send(a, Packet::AbortTransaction { ttid: ttid(4), nids: Vec::new() });
    assert_eq!(node.answer(b, id), OK);
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
    // Also by the master; a locked transaction is never aborted, whoever asks.
    node.ask(b, store_transaction(5, &[1]));
    node.lock(5, 10);
    node.tell(Packet::AbortTransaction { ttid: ttid(5), nids: Vec::new() });
    node.send(b, Packet::AbortTransaction { ttid: ttid(5), nids: Vec::new() });
    node.unlock(5);
    assert_eq!(node.load(a, 1), (10, "b".into()));
    // Somebody else can not abort.
    node.vote(a, 11, &[(2, 0, "a")]);
    node.send(b, Packet::AbortTransaction { ttid: ttid(11), nids: Vec::new() });
    node.lock(11, 12);
}

/// A client that is disconnected loses what it did not vote; what it voted is kept until the master
/// tells that it is gone.
#[test]
fn lost_client() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    node.vote(a, 4, &[(1, 0, "a")]);
    assert_eq!(node.ask(a, store(5, 2, 0, "a")), OK);
    let id1 = node.send(b, store(6, 1, 0, "b"));
    let id2 = node.send(b, store(6, 2, 0, "b"));
    node.close(a);
    assert_eq!(node.answer(b, id2), OK);
    node.expect_nothing(b);
    node.notify_nodes(vec![(NodeType::Client, None, Some(c(1)), NodeState::Unknown, Some(1.5))]);
    assert_eq!(node.answer(b, id1), OK);
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
}

/// What a client sent before it gave a transaction up may arrive after the master told so: it must not
/// begin the transaction again. (Simulator: seed 966.)
#[test]
fn late_store_of_an_aborted_transaction() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    let abort = |n| Packet::AbortTransaction { ttid: ttid(n), nids: Vec::new() };
    let is_refused = |(code, message): (ErrorCode, String)| {
        code == ErrorCode::ProtocolError && message.ends_with("is aborted")
    };
    // Nothing is known of the first one, something of the second one.
    assert_eq!(node.ask(a, store(6, 2, 0, "a")), OK);
    node.tell(abort(5));
    node.tell(abort(6));
    assert!(is_refused(node.ask_error(a, store(5, 1, 0, "a"))));
    assert!(is_refused(node.ask_error(a, store(6, 2, 0, "a"))));
    let check = Packet::AskCheckCurrentSerial { ttid: ttid(5), oid: oid(1), serial: tid(0) };
    assert!(is_refused(node.ask_error(a, check)));
    assert!(is_refused(node.ask_error(a, store_transaction(5, &[1]))));
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
    // Others, and other transactions, go on.
    node.commit(b, 7, 10, &[(1, 0, "b")]);
    node.commit(a, 8, 11, &[(2, 0, "a")]);
    // The client comes to the end of it: a tid that it imposes may be tried again.
    node.send(a, abort(5));
    node.commit(a, 5, 12, &[(3, 0, "a")]);
    node.send(a, abort(9));
    node.tell(abort(9));
    node.commit(a, 9, 13, &[(4, 0, "a")]);
    // Also on a new connection.
    node.close(a);
    let again = node.client(1);
    node.commit(again, 6, 14, &[(5, 0, "a")]);
}

/// A client whose nid is taken back is disconnected. Upstream: testRecycledClientUUID.
#[test]
fn recycled_client_nid() {
    let mut node = Node::serving(1);
    let a = node.client(1);
    node.notify_nodes(vec![(NodeType::Client, None, Some(c(1)), NodeState::Unknown, Some(1.5))]);
    assert!(node.is_closed(a));
    let again = node.client(1);
    assert_eq!(node.ask(again, Packet::Ping {}), Packet::Pong {});
}

/// After the master was lost, a client asks what became of its transaction: it has to ask again as long as
/// that is up to a master.
#[test]
fn client_failure_during_tpc_finish() {
    let mut node = Node::serving(2);
    let client = node.client(1);
    node.vote(client, 4, &[(1, 0, "a")]);
    let ask = |n: u64| Packet::AskFinalTID { ttid: ttid(n) };
    let refusal = |message: &str| (ErrorCode::NonReadableCell, message.to_owned());
    assert_eq!(node.ask_error(client, ask(4)), refusal(UNFINISHED), "not committed so far");
    node.lock(4, 10);
    assert_eq!(node.ask_error(client, ask(4)), refusal(""), "nobody knows");
    node.unlock(4);
    assert_eq!(node.ask(client, ask(4)), Packet::AnswerFinalTID { tid: Some(tid(10)) });
    assert_eq!(node.ask(client, ask(6)), Packet::AnswerFinalTID { tid: None });
}

/// Undo: search, store with the data of another revision, conflict if it was packed.
#[test]
fn undo() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.commit(client, 4, 10, &[(1, 0, "a")]);
    node.commit(client, 11, 12, &[(1, 10, "b")]);
    let search = |undone: u64| Packet::AskObjectUndoSerial {
        ttid: ttid(13),
        ltid: tid(100),
        undone_tid: tid(undone),
        oids: vec![oid(1), oid(5)],
    };
    let answer = node.ask(client, search(12));
    let serials = Map(vec![(oid(1), (tid(12), Some(tid(10)), true))]);
    assert_eq!(answer, Packet::AnswerObjectUndoSerial { serials });
    let undo = |ttid_: u64, serial: u64, data_serial: u64| Packet::AskStoreObject {
        oid: oid(1),
        serial: tid(serial),
        compression: 0,
        checksum: ZERO_HASH,
        data: Bytes::new(),
        data_serial: Some(tid(data_serial)),
        ttid: ttid(ttid_),
    };
    let error = node.ask_error(client, undo(13, 12, 9));
    assert_eq!(error.0, ErrorCode::UndoPackError);
    assert_eq!(node.ask(client, undo(13, 12, 10)), OK);
    // What was already undone in this transaction is taken into account.
    let serials = Map(vec![(oid(1), (tid(10), None, true))]);
    let answer = node.ask(client, search(10));
    assert_eq!(answer, Packet::AnswerObjectUndoSerial { serials });
    node.ask(client, store_transaction(13, &[1]));
    node.lock(13, 14);
    node.unlock(13);
    let answer = node.ask(client, load(1));
    let Packet::AnswerObject { data, data_serial, .. } = answer else { panic!("{answer:?}") };
    assert_eq!((text(&data), data_serial), ("a".into(), Some(tid(10))));
}

/// A slow disk: the result of a load comes when the next operation has begun. The revision that was
/// the last one when it was read is not any more.
#[test]
fn a_load_of_the_past_operation_does_not_lose_an_update() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.commit(client, 4, 10, &[(1, 0, "a")]);
    node.hold_reads = true;
    node.send(client, load(1));
    let (job, done) = node.executor.read().unwrap().unwrap();
    node.hold_reads = false;
    node.commit(client, 11, 12, &[(1, 10, "b")]);
    node.tell(Packet::StopOperation {});
    node.operate(false);
    node.job_done(job, done);
    node.run();
    let client = node.client(2);
    assert_eq!(node.ask(client, store(13, 1, 10, "lost")), conflict(12));
}

/// Partitions that are not readable here are refused, whatever is in the database.
#[test]
fn client_reading_during_tweak() {
    let rows = vec![row(&[(1, U)]), row(&[(1, U)]), row(&[(2, U)])];
    let mut node = Node::serving_table(rows, &[2]);
    let client = node.client(1);
    node.commit(client, 3, 6, &[(0, 0, "zero"), (1, 0, "one")]);
    // A load is on its way when the cell leaves.
    node.hold_reads = true;
    let id = node.send(client, load(1));
    let changes = vec![(1, s(1), DISCARDED), (1, s(2), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    node.hold_reads = false;
    node.run();
    let refused = Packet::Error { code: ErrorCode::NonReadableCell, message: String::new() };
    assert_eq!(node.answer(client, id), refused);
    for packet in [
        load(1),
        load(2),
        Packet::AskObjectHistory { oid: oid(1), first: 0, last: 1 },
        Packet::AskTIDs { first: 0, last: 1, partition: 1 },
        Packet::AskTIDs { first: 0, last: 1, partition: 77 },
        Packet::AskTIDsFrom { min_tid: tid(0), max_tid: tid(9), length: 1, partition: 2 },
        Packet::AskOIDsFrom { partition: 1, length: 1, min_oid: oid(0), tid: tid(9) },
        Packet::AskTransactionInformation { tid: tid(7) },
    ] {
        assert_eq!(node.ask(client, packet), refused);
    }
    assert_eq!(node.load(client, 0), (6, "zero".into()));
    // Stores to partitions that are not here are ignored.
    assert_eq!(node.ask(client, store(9, 1, 6, "x")), conflict(0));
    // The data of the cell that left is dropped.
    let found = node.latest(Read::RevisionsFrom {
        partition: 1,
        min_tid: Tid::ZERO,
        min_oid: oid(0),
        max_tid: Tid::MAX,
        length: 9,
    });
    assert_eq!(found, Done::Revisions(Vec::new()));
}

/// A cell is discarded in the middle of a commit: what remains is committed. Upstream:
/// testCommitVsDiscardedCell.
#[test]
fn commit_vs_discarded_cell() {
    let mut node = Node::serving_table(vec![row(&[(1, U)]), row(&[(1, U)])], &[2]);
    let (a, b) = (node.client(1), node.client(2));
    node.vote(a, 4, &[(0, 0, "zero"), (1, 0, "one")]);
    let id = node.send(b, store(5, 1, 0, "b"));
    node.lock(4, 10);
    let waiting = node.send(b, load(1));
    let changes = vec![(1, s(1), DISCARDED), (1, s(2), U)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    assert_eq!(node.answer(b, waiting), Packet::error(ErrorCode::NonReadableCell, ""));
    assert_eq!(node.answer(b, id), conflict(0));
    node.unlock(4);
    assert_eq!(node.load(b, 0), (10, "zero".into()));
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
}

/// What clients may not do closes their connection, and nothing else.
#[test]
fn requests_that_are_refused() {
    let mut node = Node::serving(1);
    let good = node.client(1);
    node.commit(good, 4, 10, &[(1, 0, "a")]);
    let mut bad_checksum = store(11, 1, 10, "a");
    let mut bad_compression = bad_checksum.clone();
    if let Packet::AskStoreObject { checksum, .. } = &mut bad_checksum {
        checksum[3] ^= 1;
    }
    if let Packet::AskStoreObject { compression, .. } = &mut bad_compression {
        *compression = 2;
    }
    let packets = [
        bad_checksum,
        bad_compression,
        store(u64::MAX, 1, 10, "a"),
        store(0, 1, 10, "a"),
        store(11, u64::MAX, 0, "a"),
        store(11, 1, 11, "a"),
        Packet::AskVoteTransaction { ttid: ttid(11) },
        Packet::AskObjectHistory { oid: oid(1), first: 5, last: 5 },
        Packet::AskTIDs { first: 5, last: 4, partition: 0 },
        Packet::NotifyUnlockInformation { ttid: ttid(4) },
        Packet::NotifyTransactionFinished { ttid: ttid(4), max_tid: None },
        Packet::AskFetchTransactions {
            partition: 0,
            length: 1,
            min_tid: tid(0),
            max_tid: tid(9),
            known: Vec::new(),
            ask_pack_info: false,
        },
        Packet::AnswerStoreObject { conflict: None },
    ];
    for (n, packet) in (2..).zip(packets) {
        let conn = node.client(n);
        let name = packet.name();
        node.send(conn, packet);
        assert!(node.is_closed(conn), "{name}");
        let (_, error) = node.receive(conn).unwrap();
        assert!(matches!(error, Packet::Error { code: ErrorCode::ProtocolError, .. }), "{name}");
    }
    assert_eq!(node.load(good, 1), (10, "a".into()));
    assert_eq!(node.ask(good, store(12, 1, 10, "b")), OK, "no lock remains");
}

/// Ids that no database can hold are not found, and harm nothing.
#[test]
fn ids_out_of_range() {
    let mut node = Node::serving(2);
    let client = node.client(1);
    node.commit(client, 4, 10, &[(1, 0, "a")]);
    assert_eq!(node.ask_error(client, load(u64::MAX)).0, ErrorCode::OidDoesNotExist);
    let before = Packet::AskObject { oid: oid(1), at: None, before: Some(Tid::INVALID) };
    assert!(matches!(node.ask(client, before), Packet::AnswerObject { .. }));
    let at = Packet::AskObject { oid: oid(1), at: Some(Tid::INVALID), before: None };
    assert_eq!(node.ask_error(client, at).0, ErrorCode::OidNotFound);
    let info = Packet::AskTransactionInformation { tid: Tid::INVALID };
    assert_eq!(node.ask_error(client, info).0, ErrorCode::TidNotFound);
    let final_tid = Packet::AskFinalTID { ttid: ttid(u64::MAX) };
    assert_eq!(node.ask(client, final_tid), Packet::AnswerFinalTID { tid: None });
    let undo = Packet::AskObjectUndoSerial {
        ttid: ttid(u64::MAX),
        ltid: Tid::INVALID,
        undone_tid: Tid::INVALID,
        oids: vec![Oid::INVALID, oid(1)],
    };
    let nothing = Packet::AnswerObjectUndoSerial { serials: Map::default() };
    assert_eq!(node.ask(client, undo), nothing);
}

/// When clients ask more than the database can do, nothing is read from them for a while; the master
/// is heard.
#[test]
fn backpressure() {
    let mut node = Node::serving(1);
    let clients: Vec<_> = (1..6).map(|n| node.client(n)).collect();
    node.hold_reads = true;
    let mut count = 0;
    while !clients.iter().all(|client| node.is_paused(*client)) {
        for client in &clients {
            node.send(*client, load(1));
        }
        count += 1;
        assert!(count < 2000);
    }
    assert!(!node.is_paused(node.master.unwrap()));
    let other = node.client(9);
    assert!(node.is_paused(other), "who comes later waits too");
    node.hold_reads = false;
    node.run();
    for client in clients {
        assert!(!node.is_paused(client));
        let answers = std::iter::from_fn(|| node.receive(client)).count();
        assert_eq!(answers, count);
    }
    assert!(!node.is_paused(other));
}

/// A client has a limited number of reads on their way; the others wait, in order. Beyond, nothing is
/// read from it, but others are served.
#[test]
fn reads_of_one_client_are_limited() {
    let mut node = Node::serving(1);
    let (client, other) = (node.client(1), node.client(2));
    node.commit(client, 4, 6, &[(1, 0, "a")]);
    node.hold_reads = true;
    let mut ids = Vec::new();
    while !node.is_paused(client) {
        ids.push(node.send(client, load(1)));
        assert!(ids.len() < 10_000);
    }
    assert!(!node.is_paused(other));
    node.hold_reads = false;
    node.run();
    assert!(!node.is_paused(client));
    for id in ids {
        assert!(matches!(node.answer(client, id), Packet::AnswerObject { .. }));
    }
}

/// A client that does not read gets nothing more from the database until it does; big answers are few
/// at a time.
#[test]
fn client_that_does_not_read() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    let big = "x".repeat(4 << 20);
    node.commit(client, 4, 6, &[(1, 0, &big)]);
    node.full(client, true);
    let ids: Vec<_> = (0..50).map(|_| node.send(client, load(1))).collect();
    assert_eq!(node.ask(client, Packet::Ping {}), Packet::Pong {});
    node.expect_nothing(client);
    node.hold_reads = true;
    node.full(client, false);
    // The size of answers is not known yet.
    assert_eq!(node.engine_jobs(), 50);
    node.hold_reads = false;
    node.run();
    for id in ids {
        assert!(matches!(node.answer(client, id), Packet::AnswerObject { .. }));
    }
    node.hold_reads = true;
    let ids: Vec<_> = (0..50).map(|_| node.send(client, load(1))).collect();
    assert!(node.engine_jobs() < 12, "{} at a time", node.engine_jobs());
    node.hold_reads = false;
    node.run();
    for id in ids {
        assert!(matches!(node.answer(client, id), Packet::AnswerObject { .. }));
    }
    // It goes away with reads that wait.
    node.full(client, true);
    node.send(client, load(1));
    node.close(client);
}

/// A transaction with a lot of data: it is written ahead of the vote, and given back from there when a
/// conflict comes up. Upstream: testFailedConflictOnBigValueDuringDeadlockAvoidance.
#[test]
fn failed_conflict_on_big_value_during_deadlock_avoidance() {
    let mut node = Node::serving(1);
    let (a, b) = (node.client(1), node.client(2));
    let big = |n: u64| n.to_string().repeat(6 << 20);
    for n in 1..=4 {
        assert_eq!(node.ask(b, store(9, n, 0, &big(n))), OK);
    }
    let id = node.send(a, store(5, 2, 0, "a"));
    let notified = node.receive(b).unwrap().1;
    assert_eq!(notified, Packet::NotifyDeadlock { ttid: ttid(9), oid: oid(2) });
    let relock = node.send(b, Packet::AskRelockObject { ttid: ttid(9), oid: oid(2) });
    assert_eq!(node.answer(a, id), OK);
    node.ask(a, store_transaction(5, &[2]));
    node.lock(5, 10);
    node.unlock(5);
    let answer = node.answer(b, relock);
    let Packet::AnswerRelockObject { conflict: Some((serial, last, Some(data))) } = answer else {
        panic!("{answer:?}");
    };
    assert_eq!((serial, last), (Tid::ZERO, tid(10)));
    assert!(data.2 == big(2).as_bytes() && data.1 == checksum(&data.2));
    assert_eq!(node.ask(b, store(9, 2, 10, "resolved")), OK);
    node.ask(b, store_transaction(9, &[1, 2, 3, 4]));
    node.lock(9, 12);
    node.unlock(9);
    assert_eq!(node.load(a, 2), (12, "resolved".into()));
    for n in [1, 3, 4] {
        assert!(node.load(a, n) == (12, big(n)), "{n}");
    }
    // What was given back is not kept, nor what is aborted.
    for n in 5..9 {
        assert_eq!(node.ask(b, store(13, n, 0, &big(n))), OK);
    }
    node.send(b, Packet::AbortTransaction { ttid: ttid(13), nids: Vec::new() });
    node.tell(Packet::NotifyRepair { dry_run: true });
    assert_eq!(node.data_rows(), 5, "four, and the one of the other client");
}
