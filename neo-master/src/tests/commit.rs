// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions: between clients and storages.

use std::time::Duration;

use neo_common::engine::ConnId;
use neo_common::protocol::{CellState, ClusterState, ErrorCode, NodeState, Packet};
use neo_common::types::{Oid, Tid, Ttid};

use super::harness::*;

const PARTITIONS: u32 = 6;

fn protocol(text: &str) -> (ErrorCode, String) {
    (ErrorCode::ProtocolError, text.into())
}

/// The story of a commit, with all that each node is told, in order.
#[test]
fn commit() {
    let (mut h, _, storages) = Harness::running(PARTITIONS, 0, 3);
    let (client, other) = (h.client(), h.client());
    for conn in storages.iter().chain([&client]) {
        h.all(*conn);
    }
    let ttid = h.begin(client);
    let partition = ttid.partition(PARTITIONS);
    // Objects of the partition of the ttid, and of the next one: 2 storages out of 3 are involved.
    let base = u64::from(PARTITIONS) * 10 + u64::from(partition);
    let id = h.finish(client, ttid, &[base, base + 1]);
    let first = storages[partition as usize % 3];
    let second = storages[(partition as usize + 1) % PARTITIONS as usize % 3];
    let (lock, question) = h.take(first);
    let Packet::AskLockInformation { ttid: asked, tid, pack: false } = question else { panic!() };
    assert_eq!(asked, ttid);
    assert!(tid > ttid.as_tid());
    assert_eq!(tid.partition(PARTITIONS), partition);
    let (second_lock, same) = h.take(second);
    assert_eq!(same, question);
    let third = *storages.iter().find(|conn| ![first, second].contains(*conn)).unwrap();
    assert_eq!(h.all(third), []);
    h.answer(first, lock, Packet::AnswerInformationLocked { ttid });
    assert_eq!((h.all(first), h.all(client)), (vec![], vec![]));
    assert_eq!(
        h.ask(other, Packet::AskLastTransaction {}),
        Packet::AnswerLastTransaction { tid: Tid::ZERO }
    );
    h.answer(second, second_lock, Packet::AnswerInformationLocked { ttid });
    assert_eq!(h.take(client), (id, Packet::AnswerTransactionFinished { ttid, tid }));
    let oids = vec![Oid::new(base), Oid::new(base + 1)];
    assert_eq!(h.all(other), [Packet::InvalidateObjects { tid, oids }]);
    for storage in [first, second] {
        assert_eq!(h.all(storage), [Packet::NotifyUnlockInformation { ttid }]);
    }
    assert_eq!((h.all(third), h.all(client)), (vec![], vec![]));
    let last = h.ask(other, Packet::AskLastTransaction {});
    assert_eq!(last, Packet::AnswerLastTransaction { tid });
    // Oids that were stored are not given.
    let Packet::AnswerNewOIDs { oids } = h.ask(other, Packet::AskNewOIDs { count: 1 }) else {
        panic!()
    };
    assert_eq!(oids, [Oid::new(base + 2)]);
}

/// Deleted objects count as changes, checked ones do not. A master of a backup cluster gets
/// partitions instead of objects.
#[test]
fn deleted_and_checked_partitions() {
    let (mut h, _, storages) = Harness::running(PARTITIONS, 0, 3);
    let (client, other) = (h.client(), h.client());
    let name = neo_common::protocol::Value::text("backup");
    let backup = h.client_with(vec![
        ("backup", name),
        ("read_only", neo_common::protocol::Value::Bool(true)),
    ]);
    let ttid = h.begin(client);
    let partition = ttid.partition(PARTITIONS);
    let (deleted, checked) = ((partition + 1) % PARTITIONS, (partition + 2) % PARTITIONS);
    let finish = Packet::AskFinishTransaction {
        ttid,
        oids: vec![],
        deleted: vec![deleted, deleted],
        checked: vec![checked],
        pack: None,
    };
    h.send(client, finish);
    let tid = storages.iter().map(|storage| h.lock(*storage)).max().unwrap();
    assert_eq!(h.all(other), [Packet::InvalidateObjects { tid, oids: vec![] }]);
    let expected = Packet::InvalidatePartitions { tid, partitions: vec![deleted] };
    assert_eq!(h.all(backup), [expected]);
}

/// Transactions end in the order in which they were asked to finish, whatever the order of locks.
#[test]
fn commits_end_in_order() {
    let (mut h, _, storages) = Harness::running(1, 1, 2);
    let clients: Vec<ConnId> = (0..3).map(|_| h.client()).collect();
    // They begin in another order than they finish.
    let ttids: Vec<Ttid> = clients.iter().map(|client| h.begin(*client)).collect();
    assert!(ttids.is_sorted());
    let order = [2, 0, 1];
    let ids = order.map(|i| h.finish(clients[i], ttids[i], &[i as u64]));
    let mut tids = Vec::new();
    let mut locks = Vec::new();
    for _ in order {
        let (id, packet) = h.until(storages[0], "AskLockInformation");
        let Packet::AskLockInformation { ttid, tid, .. } = packet else { panic!() };
        locks.push((id, ttid));
        tids.push(tid);
        h.lock(storages[1]);
    }
    assert!(tids.is_sorted() && tids[0] > ttids[2].as_tid());
    for (id, ttid) in locks[1..].iter().rev() {
        h.answer(storages[0], *id, Packet::AnswerInformationLocked { ttid: *ttid });
        for client in &clients {
            assert!(!h.names(*client).contains(&"AnswerTransactionFinished"));
        }
    }
    h.answer(storages[0], locks[0].0, Packet::AnswerInformationLocked { ttid: locks[0].1 });
    for (n, i) in order.into_iter().enumerate() {
        let received = h.take_all(clients[i]);
        let answers: Vec<_> = received.iter().map(|(_, packet)| packet.name()).collect();
        let mut expected = ["InvalidateObjects"; 3];
        expected[n] = "AnswerTransactionFinished";
        assert_eq!(answers, expected);
        assert_eq!(received[n].0, ids[n]);
    }
}

/// Tids increase although the clock steps back, and they are not reused after an abort.
#[test]
fn ids_increase_whatever_the_clock_does() {
    let (mut h, _, storages) = Harness::running(PARTITIONS, 0, 3);
    let client = h.client();
    let mut last = h.begin(client).as_tid();
    for step in [0, 5_000_000, -3_600_000_000_i64, 0, 1, -1] {
        h.now.realtime_us = h.now.realtime_us.checked_add_signed(step).unwrap();
        h.now.monotonic += Duration::from_millis(1);
        let aborted = h.begin(client);
        assert!(aborted.as_tid() > last, "{aborted} after {last}");
        h.send(client, Packet::AbortTransaction { ttid: aborted, nids: vec![] });
        let ttid = h.begin(client);
        assert!(ttid > aborted);
        h.finish(client, ttid, &[0, 1, 2]);
        let tid = storages.iter().map(|storage| h.lock(*storage)).max().unwrap();
        assert!(tid > ttid.as_tid());
        assert_eq!(tid.partition(PARTITIONS), ttid.partition(PARTITIONS));
        last = tid;
    }
}

#[test]
fn imposed_tids() {
    let (mut h, _, storages) = Harness::running(1, 0, 1);
    let client = h.client();
    let first = h.commit(client, &storages, &[1]);
    let begin = |tid| Packet::AskBeginTransaction { tid: Some(tid) };
    // Not greater than the last one.
    for tid in [first, Tid::ZERO] {
        let client = h.client();
        let text = "new TID must be greater than the last committed one";
        assert_eq!(h.ask_error(client, begin(tid)), protocol(text));
        assert!(h.is_closed(client));
    }
    let other = h.client();
    assert_eq!(h.ask_error(other, begin(Tid::MAX)), protocol("invalid TID"));

    let imposed = Tid::new(first.get() + 12_345);
    let answer = h.ask(client, begin(imposed));
    assert_eq!(answer, Packet::AnswerBeginTransaction { ttid: imposed.as_ttid() });
    let alone = "There can't be concurrent transactions when a TID is specified for any of them.";
    for packet in [begin(Tid::new(imposed.get() + 1)), Packet::AskBeginTransaction { tid: None }] {
        let other = h.client();
        assert_eq!(h.ask_error(other, packet), protocol(alone));
    }
    let id = h.finish(client, imposed.as_ttid(), &[1]);
    assert_eq!(h.lock(storages[0]), imposed);
    let answer = Packet::AnswerTransactionFinished { ttid: imposed.as_ttid(), tid: imposed };
    h.check_answered(client, id, &answer);

    // With another transaction before.
    let other = h.client();
    let ttid = h.begin(other);
    assert!(ttid.as_tid() > imposed);
    let third = h.client();
    assert_eq!(h.ask_error(third, begin(Tid::new(ttid.get() + 1))), protocol(alone));
    // Given up: it does not block the queue.
    h.send(other, Packet::AbortTransaction { ttid, nids: vec![] });
    let imposed = Tid::new(ttid.get() + 1);
    h.ask(client, begin(imposed));
    h.send(client, Packet::AbortTransaction { ttid: imposed.as_ttid(), nids: vec![] });
    let tid = h.commit(client, &storages, &[1]);
    assert!(tid > imposed);
}

/// Nobody finishes or aborts what does not exist or belongs to another client.
#[test]
fn foreign_and_unknown_ttids() {
    let (mut h, _, storages) = Harness::running(1, 0, 1);
    let client = h.client();
    let ttid = h.begin(client);
    for ttid in [Ttid::new(1), ttid] {
        let text = protocol(&format!("unknown ttid {ttid}"));
        let finish = Packet::AskFinishTransaction {
            ttid,
            oids: vec![],
            deleted: vec![],
            checked: vec![],
            pack: None,
        };
        let vote = Packet::FailedVote { ttid, nids: vec![s(1)] };
        let abort = Packet::AbortTransaction { ttid, nids: vec![s(1)] };
        for packet in [finish, vote, abort] {
            let other = h.client();
            assert_eq!(h.ask_error(other, packet), text);
            assert!(h.is_closed(other));
        }
    }
    h.finish(client, ttid, &[1]);
    let abort = Packet::AbortTransaction { ttid, nids: vec![] };
    let text = protocol(&format!("commit already requested for ttid {ttid}"));
    assert_eq!(h.ask_error(client, abort), text);
    assert!(h.is_closed(client));
    // It goes on.
    let tid = h.lock(storages[0]);
    assert_eq!(h.engine.app.cluster.last_tid, tid);

    let client = h.client();
    let ttid = h.begin(client);
    let (oids, checked) = (vec![], vec![1]);
    let finish = Packet::AskFinishTransaction { ttid, oids, deleted: vec![], checked, pack: None };
    assert_eq!(h.ask_error(client, finish), protocol("invalid partition"));
}

/// A storage that locks what it was not asked to is disconnected.
#[test]
fn wrong_locks() {
    let (mut h, _, storages) = Harness::running(1, 1, 2);
    let client = h.client();
    let ttid = h.begin(client);
    h.finish(client, ttid, &[1]);
    let (id, _) = h.until(storages[0], "AskLockInformation");
    let wrong = Packet::AnswerInformationLocked { ttid: Ttid::new(1) };
    h.answer(storages[0], id, wrong);
    assert!(h.is_closed(storages[0]));
    // The other one is enough.
    let tid = h.lock(storages[1]);
    h.confirm(storages[1], ttid);
    assert_eq!(h.engine.app.cluster.last_tid, tid);
    // An error is as good as a loss.
    let ttid = h.begin(client);
    h.finish(client, ttid, &[1]);
    let (id, _) = h.until(storages[1], "AskLockInformation");
    h.answer(storages[1], id, Packet::error(ErrorCode::NonReadableCell, ""));
    assert!(h.is_closed(storages[1]));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
}

/// A client disappears: what it had not asked to finish is aborted, the rest goes on.
#[test]
fn lost_clients() {
    let (mut h, _, storages) = Harness::running(1, 0, 1);
    let storage = storages[0];
    let client = h.client();
    let finishing = h.begin(client);
    let waited = h.begin(client);
    h.begin(client);
    // A replication waits for all of them.
    let unfinished = h.ask(storage, Packet::AskUnfinishedTransactions { partitions: vec![] });
    let Packet::AnswerUnfinishedTransactions { max_tid: Tid::ZERO, ttids } = unfinished else {
        panic!("{unfinished:?}")
    };
    assert_eq!(ttids.len(), 3);
    let later = h.begin(client);
    h.finish(client, finishing, &[1]);
    h.close(client);
    let packets = h.take_all(storage);
    let aborted: Vec<Ttid> = packets
        .iter()
        .filter_map(|(_, packet)| match packet {
            Packet::AbortTransaction { ttid, nids } if nids.is_empty() => Some(*ttid),
            _ => None,
        })
        .collect();
    assert_eq!(aborted, ttids[1..], "not {later}, which it does not know");
    assert!(aborted.contains(&waited));
    let Some((_, Packet::NotifyNodeInformation { nodes, .. })) = packets.last() else { panic!() };
    assert_eq!((nodes[0].2, nodes[0].3), (Some(c(1)), NodeState::Unknown));

    // The client is back and wants to know.
    let client = h.client();
    let id = h.send(client, Packet::AskFinalTID { ttid: finishing });
    assert_eq!(h.ask(client, Packet::Ping {}), Packet::Pong {}, "the answer waits");
    assert_eq!(
        h.ask(client, Packet::AskFinalTID { ttid: waited }),
        Packet::AnswerFinalTID { tid: Some(Tid::MAX) },
        "another master may know it"
    );
    let (lock, tid) = packets
        .iter()
        .find_map(|(id, packet)| match packet {
            Packet::AskLockInformation { tid, .. } => Some((*id, *tid)),
            _ => None,
        })
        .unwrap();
    h.answer(storage, lock, Packet::AnswerInformationLocked { ttid: finishing });
    let received = h.take_all(client);
    assert_eq!(received[0].1, Packet::InvalidateObjects { tid, oids: vec![Oid::new(1)] });
    assert_eq!(received[1..], [(id, Packet::AnswerFinalTID { tid: Some(tid) })]);
    assert_eq!(
        h.all(storage)[1..],
        [
            Packet::NotifyUnlockInformation { ttid: finishing },
            Packet::NotifyTransactionFinished { ttid: finishing, max_tid: Some(tid) },
        ]
    );
    assert_eq!(
        h.ask(client, Packet::AskFinalTID { ttid: finishing }),
        Packet::AnswerFinalTID { tid: Some(Tid::MAX) },
        "storages know"
    );
}

/// An abort is relayed to the storages that the client tells, and to those that wait for it.
#[test]
fn abort() {
    let (mut h, _, storages) = Harness::running(1, 2, 3);
    let client = h.client();
    let ttid = h.begin(client);
    let waiting = h.client();
    let id = h.send(waiting, Packet::AskFinalTID { ttid });
    h.ask(storages[2], Packet::AskUnfinishedTransactions { partitions: vec![] });
    for storage in &storages {
        h.all(*storage);
    }
    h.send(client, Packet::AbortTransaction { ttid, nids: vec![s(1), s(9)] });
    let abort = Packet::AbortTransaction { ttid, nids: vec![] };
    assert_eq!(h.all(storages[1]), []);
    for storage in [storages[0], storages[2]] {
        assert_eq!(h.all(storage), std::slice::from_ref(&abort));
    }
    assert_eq!(h.take(waiting), (id, Packet::AnswerFinalTID { tid: None }));
}

/// New transactions wait as long as a storage is starting; those of lost clients are forgotten.
#[test]
fn begin_waits_for_storages_that_start() {
    let (mut h, admin, _) = Harness::running(1, 0, 1);
    let (client, lost) = (h.client(), h.client());
    let storage = h.storage(None, 7);
    h.ask(admin, Packet::AddPendingNodes { nids: vec![s(2)] });
    let id = h.send(client, Packet::AskBeginTransaction { tid: None });
    h.send(lost, Packet::AskBeginTransaction { tid: None });
    let ping = h.ask(client, Packet::Ping {});
    assert_eq!(ping, Packet::Pong {});
    h.close(lost);
    h.ready(&[storage]);
    let (answered, _) = h.until(client, "AnswerBeginTransaction");
    assert_eq!(answered, id);
    assert_eq!(h.engine.app.cluster.tm.iter().count(), 1);
    // Twice is no harm. A storage that was not asked to start is not ready.
    h.send(storage, Packet::NotifyReady {});
    assert!(!h.is_closed(storage));
    let pending = h.storage(None, 8);
    h.send(pending, Packet::NotifyReady {});
    assert!(h.is_closed(pending));
}

/// A storage that joins after the beginning of a transaction is not involved in it.
#[test]
fn storages_that_join_later_are_not_involved() {
    let (mut h, admin, storages) = Harness::running(1, 1, 1);
    let client = h.client();
    let before = h.begin(client);
    let new = h.storage(None, 7);
    h.ask(admin, Packet::AddPendingNodes { nids: vec![s(2)] });
    h.ready(&[new]);
    h.ask(admin, Packet::TweakPartitionTable { dry_run: false, ignored: vec![] });
    let after = h.begin(client);
    h.all(new);
    h.finish(client, before, &[1]);
    assert_eq!(h.all(new), []);
    h.lock(storages[0]);
    h.finish(client, after, &[1]);
    let tid = h.lock(storages[0]);
    assert_eq!(h.lock(new), tid);
}

/// A storage is lost between lock and answer: the others are enough, once they have stored that its cells
/// are out-of-date.
#[test]
fn storage_lost_while_locking() {
    let (mut h, _, storages) = Harness::running(2, 1, 2);
    let client = h.client();
    let ttid = h.begin(client);
    let id = h.finish(client, ttid, &[0, 1]);
    let tid = h.lock(storages[1]);
    assert!(h.all(client).is_empty());
    h.close(storages[0]);
    assert_eq!(h.names(client), ["NotifyNodeInformation", "NotifyPartitionChanges"]);
    h.confirm(storages[1], ttid);
    assert_eq!(h.take(client), (id, Packet::AnswerTransactionFinished { ttid, tid }));
    h.until(storages[1], "NotifyUnlockInformation");
    // Recovery must not go back behind the table that lets it be committed without S1.
    assert_eq!(h.engine.app.cluster.lock_ptid, h.engine.app.cluster.pt.table().ptid());
}

/// The same with one that has not locked it yet either: two answers are needed. Then another one is lost, and
/// what was confirmed is not the last version any more.
#[test]
fn storages_lost_one_after_the_other_while_locking() {
    let (mut h, _, storages) = Harness::running(1, 2, 3);
    let client = h.client();
    let ttid = h.begin(client);
    h.finish(client, ttid, &[0]);
    h.close(storages[0]);
    let tid = h.lock(storages[2]);
    h.confirm(storages[2], ttid);
    // S2 has not answered.
    h.close(storages[1]);
    assert_eq!(h.engine.app.cluster.last_tid, Tid::ZERO);
    h.confirm(storages[2], ttid);
    assert_eq!(h.engine.app.cluster.last_tid, tid);
    assert_eq!(h.engine.app.cluster.lock_ptid, h.engine.app.cluster.pt.table().ptid());
}

/// What a storage answers once the service is interrupted is for nobody.
#[test]
fn late_confirmations() {
    let (mut h, _, storages) = Harness::running(2, 1, 4);
    let client = h.client();
    let ttid = h.begin(client);
    h.finish(client, ttid, &[0, 1]);
    let table = h.engine.app.cluster.pt.table();
    let is_of_metadata =
        |index: &usize| table.readable(ttid.partition(2)).any(|nid| nid == s(*index as u32 + 1));
    let (metadata, others): (Vec<_>, Vec<_>) = (0..4).partition(is_of_metadata);
    for index in [metadata[0], others[0], others[1]] {
        h.close(storages[index]);
    }
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let storage = storages[metadata[1]];
    let asked = h.take_named(storage, "AskFinalTID");
    assert!(!asked.is_empty());
    // It does not serve any more, and says so.
    for id in asked {
        h.answer(storage, id, Packet::error(ErrorCode::NonReadableCell, ""));
    }
    assert!(!h.is_closed(storage));
}

/// Clients that could not reach some storages: the master decides so that the cluster stays
/// operational. Upstream: testMasterArbitratingVote.
#[test]
fn arbitration_of_votes() {
    let (mut h, _, storages) = Harness::running(1, 1, 2);
    let (first, second) = (h.client(), h.client());
    let (ttid, other) = (h.begin(first), h.begin(second));
    let failed = |ttid, index| Packet::FailedVote { ttid, nids: vec![s(index)] };
    // Nothing failed that matters.
    assert_eq!(h.ask_error(first, failed(ttid, 9)), (ErrorCode::Ack, String::new()));
    // S1 can be left alone, but not both.
    let both = Packet::FailedVote { ttid, nids: vec![s(1), s(2)] };
    assert_eq!(h.ask_error(first, both).0, ErrorCode::IncompleteTransaction);
    assert_eq!(h.ask_error(first, failed(ttid, 1)).0, ErrorCode::Ack);
    // If the first transaction is committed, S2 is the only one.
    let id = h.send(second, failed(other, 2));
    h.ask(second, Packet::Ping {});
    for storage in &storages {
        h.all(*storage);
    }
    h.finish(first, ttid, &[1]);
    // The loss of S1 is told before anything is locked.
    assert!(h.is_closed(storages[0]));
    let names = h.names(storages[1]);
    let expected = ["NotifyNodeInformation", "NotifyPartitionChanges", "AskLockInformation"];
    assert_eq!(names, expected);
    assert_eq!(h.engine.app.cluster.pt.table().cell_state(0, s(1)), Some(CellState::OutOfDate));
    let refused = Packet::error(ErrorCode::IncompleteTransaction, "");
    h.check_answered(second, id, &refused);
}

/// The same, but the first transaction is aborted.
#[test]
fn arbitration_of_votes_after_an_abort() {
    let (mut h, _, storages) = Harness::running(1, 1, 2);
    let (first, second) = (h.client(), h.client());
    let (ttid, other) = (h.begin(first), h.begin(second));
    let failed = |ttid, index| Packet::FailedVote { ttid, nids: vec![s(index)] };
    assert_eq!(h.ask_error(first, failed(ttid, 1)).0, ErrorCode::Ack);
    let id = h.send(second, failed(other, 2));
    h.send(first, Packet::AbortTransaction { ttid, nids: vec![] });
    h.check_answered(second, id, &Packet::ack(""));
    // S1 is lost before S2 could be left alone.
    h.close(storages[0]);
    let id = h.finish(second, other, &[1]);
    h.check_answered(second, id, &Packet::error(ErrorCode::IncompleteTransaction, ""));
    let abort = Packet::AbortTransaction { ttid: other, nids: vec![] };
    assert_eq!(h.until(storages[1], "AbortTransaction").1, abort);
    assert!(!h.engine.app.cluster.tm.has_pending());
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// The cluster stops: what is being finished ends, nothing begins.
#[test]
fn stopping_waits_for_transactions() {
    let (mut h, admin, storages) = Harness::running(1, 0, 1);
    let client = h.client();
    let ttid = h.begin(client);
    let stop = Packet::SetClusterState { state: ClusterState::Stopping };
    assert_eq!(h.ask_error(admin, stop.clone()).0, ErrorCode::Ack);
    h.send(client, Packet::AskBeginTransaction { tid: None });
    let id = h.finish(client, ttid, &[1]);
    let late = h.connect();
    let request = Harness::request(neo_common::protocol::NodeType::Client, None, None);
    assert_eq!(h.ask_error(late, request).0, ErrorCode::NotReady);
    assert_eq!(h.exit, None);
    let tid = h.lock(storages[0]);
    let received = h.take_all(client);
    assert!(received.contains(&(id, Packet::AnswerTransactionFinished { ttid, tid })));
    assert!(received.iter().all(|(_, packet)| packet.name() != "AnswerBeginTransaction"));
    assert_eq!(h.exit, Some(0));
    assert!(h.is_closed(client) && h.is_closed(admin));
    let packets = h.names(storages[0]);
    assert_eq!(packets, ["NotifyUnlockInformation", "NotifyNodeInformation",]);
}

/// It stops although the cluster is not operational any more.
#[test]
fn stopping_does_not_wait_for_lost_storages() {
    let (mut h, admin, storages) = Harness::running(1, 0, 1);
    let client = h.client();
    let ttid = h.begin(client);
    h.ask(admin, Packet::SetClusterState { state: ClusterState::Stopping });
    h.finish(client, ttid, &[1]);
    assert_eq!(h.exit, None);
    h.close(storages[0]);
    assert_eq!(h.exit, Some(0));
}

#[test]
fn read_only_clients() {
    let (mut h, _, _) = Harness::running(2, 0, 1);
    let client = h.client_with(vec![("read_only", neo_common::protocol::Value::Bool(true))]);
    let ttid = Ttid::new(1);
    let refused = "read-only access as requested by the client";
    for packet in [
        Packet::AskBeginTransaction { tid: None },
        Packet::AskNewOIDs { count: 1 },
        Packet::AskFinalTID { ttid },
        Packet::AbortTransaction { ttid, nids: vec![] },
        Packet::FailedVote { ttid, nids: vec![] },
    ] {
        let expected = (ErrorCode::ReadOnlyAccess, refused.to_owned());
        assert_eq!(h.ask_error(client, packet), expected);
    }
    for packet in [
        Packet::AskLastTransaction {},
        Packet::AskLastIDs {},
        Packet::AskRecovery {},
        Packet::AskClusterState {},
        Packet::AskPackOrders { min_tid: Tid::ZERO },
        Packet::WaitForPack { tid: Tid::new(1) },
        Packet::Ping {},
    ] {
        let name = packet.name();
        let answer = h.ask(client, packet);
        assert!(!matches!(answer, Packet::Error { .. }), "{name}");
    }
    assert!(!h.is_closed(client));
}

#[test]
fn new_oids_are_bounded() {
    let (mut h, _, _) = Harness::running(2, 0, 1);
    let client = h.client();
    let mut oids = |count| match h.ask(client, Packet::AskNewOIDs { count }) {
        Packet::AnswerNewOIDs { oids } => oids,
        other => panic!("{other:?}"),
    };
    assert_eq!(oids(0), []);
    assert_eq!(oids(2), [Oid::new(1), Oid::new(2)]);
    let max = neo_common::limits::NEW_OIDS_COUNT_MAX;
    assert_eq!(oids(u32::MAX).len(), max as usize);
    assert_eq!(oids(1), [Oid::new(3 + u64::from(max))]);
    h.engine.app.cluster.tm.set_last_oid(Oid::new(u64::MAX - 2));
    let (code, text) = h.ask_error(client, Packet::AskNewOIDs { count: 2 });
    assert_eq!((code, text.as_str()), (ErrorCode::ProtocolError, "no more oid"));
}
