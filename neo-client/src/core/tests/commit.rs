// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions: stores, conflicts, locks, votes, storages that fail.

use neo_common::types::ZERO_HASH;

use super::*;
use crate::error::Conflict;

const STORED: Packet = Packet::AnswerStoreObject { conflict: None };

fn conflict_with(number: u64) -> Packet {
    Packet::AnswerStoreObject { conflict: Some(tid(number)) }
}

/// Stores an object on storages that are connected, and returns the requests.
fn store(world: &mut World, t: Ttid, number: u64, serial: u64, data: &[u8]) -> Vec<Sent> {
    let call = world.store(t, number, serial, data);
    assert!(matches!(world.reply(call), Ok(Answer::Done)));
    world.drain()
}

/// A client connected to all storages of `cells`.
fn connected(cells: &[&[u32]]) -> World {
    let mut world = World::ready(cells);
    let t = world.begin(1);
    for partition in 0..cells.len() as u64 {
        let call = world.store(t, partition, 0, b"");
        world.reply(call).unwrap();
    }
    for index in 1..10 {
        if world.has_conn(address(index)) {
            world.accept_storage(index);
        }
    }
    world.sent.retain(|sent| !matches!(sent.packet, Packet::AskStoreObject { .. }));
    world.assert_silent();
    world.ask(Call::Abort { ttid: t }).unwrap();
    world.sent.clear();
    world
}

fn vote_all(world: &mut World, t: Ttid) -> CallId {
    let vote = world.vote(t);
    while let Some(request) = world.sent.pop_front() {
        match request.packet {
            Packet::AskStoreTransaction { .. } => {
                world.answer(&request, Packet::AnswerStoreTransaction {});
            }
            Packet::AskVoteTransaction { .. } => {
                world.answer(&request, Packet::AnswerVoteTransaction {});
            }
            other => panic!("{other:?}"),
        }
    }
    vote
}

#[track_caller]
fn conflicts(reply: Reply) -> Vec<Conflict> {
    match reply {
        Ok(Answer::Conflicts(conflicts)) => conflicts,
        other => panic!("{other:?}"),
    }
}

/// The whole life of a transaction on two partitions with replicas, packet by packet.
#[test]
fn commit() {
    let mut world = World::ready(&[&[1, 2], &[2, 3]]);
    let t = world.begin(103);
    let call = world.store(t, 2, 50, b"two");
    assert!(matches!(world.reply(call), Ok(Answer::Done)));
    // What is stored waits until the storages accept us.
    world.accept_storage(1);
    world.accept_storage(2);
    let stores = world.drain();
    assert_eq!(stores.iter().map(|s| s.to).collect::<Vec<_>>(), [address(1), address(2)]);
    let Packet::AskStoreObject { oid: o, serial, compression, checksum, data, data_serial, ttid } =
        stores[0].packet.clone()
    else {
        panic!("{stores:?}")
    };
    assert_eq!((o, serial, compression, data_serial, ttid), (oid(2), tid(50), 0, None, t));
    assert_eq!((&data[..], checksum), (&b"two"[..], crate::compression::checksum(b"two")));
    // A deletion.
    let stored = Stored::nothing();
    let (serial, data, data_serial, resolves) = (tid(60), None, None, None);
    let call = Call::Store { ttid: t, oid: oid(4), serial, stored, data, data_serial, resolves };
    assert!(matches!(world.ask(call), Ok(Answer::Done)));
    let deletions = world.drain();
    assert!(matches!(&deletions[0].packet, Packet::AskStoreObject { checksum, data, .. }
        if *checksum == ZERO_HASH && data.is_empty()));
    // A check, in the other partition.
    let check = Call::CheckSerial { ttid: t, oid: oid(1), serial: tid(70) };
    assert!(matches!(world.ask(check), Ok(Answer::Done)));
    world.accept_storage(3);
    let checks = world.drain();
    assert_eq!(checks.len(), 2);
    for request in checks {
        assert!(
            matches!(request.packet, Packet::AskCheckCurrentSerial { oid: o, .. } if o == oid(1))
        );
        world.answer(&request, Packet::AnswerCheckCurrentSerial { conflict: None });
    }
    let wait = world.call(Call::WaitStores { ttid: t });
    for request in stores.iter().chain(&deletions) {
        assert!(!world.is_replied(wait));
        world.answer(request, STORED);
    }
    assert!(matches!(world.reply(wait), Ok(Answer::Done)));

    let (user, description) = (Bytes::from("user"), Bytes::from("description"));
    let extension = Bytes::from("extension");
    let vote = Call::Vote { ttid: t, user, description, extension };
    let vote = world.call(vote);
    // The metadata goes to the cells of the ttid, the others only vote.
    let metadata = Packet::AskStoreTransaction {
        ttid: t,
        user: "user".into(),
        description: "description".into(),
        extension: "extension".into(),
        oids: vec![oid(2), oid(4)],
        pack: None,
    };
    for (index, packet) in
        [(2, metadata.clone()), (3, metadata), (1, Packet::AskVoteTransaction { ttid: t })]
    {
        let request = world.next_to(index);
        assert_eq!(request.packet, packet);
        assert!(!world.is_replied(vote));
        let answer = match index {
            1 => Packet::AnswerVoteTransaction {},
            _ => Packet::AnswerStoreTransaction {},
        };
        world.answer(&request, answer);
    }
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(oids)) if oids.is_empty()));

    let finish = world.call(Call::Finish { ttid: t });
    let request = world.next();
    let expected = Packet::AskFinishTransaction {
        ttid: t,
        oids: vec![oid(2)],
        deleted: vec![0],
        checked: vec![1],
        pack: None,
    };
    assert_eq!((request.to, request.packet.clone()), (master_address(), expected));
    world.answer(&request, Packet::AnswerTransactionFinished { ttid: t, tid: tid(105) });
    assert!(matches!(world.reply(finish), Ok(Answer::Finished(t)) if t == tid(105)));
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(105)));
    world.assert_silent();
    assert_eq!(world.engine.app.pending_count(), 0);
    assert!(world.ask(Call::Finish { ttid: t }).is_err());
}

/// One replica is faster than the other: its conflict is resolved and stored again before the other
/// one reports the same conflict, which is then ignored; a newer one is not.
#[test]
fn conflict_on_replicas() {
    let mut world = connected(&[&[1, 2]]);
    let t = world.begin(101);
    let first = store(&mut world, t, 1, 50, b"new");
    world.answer(&first[0], conflict_with(90));
    let wait = world.call(Call::WaitStores { ttid: t });
    let expected = Conflict {
        oid: oid(1),
        committed: tid(90),
        base: tid(50),
        data: Some("new".into()),
        committed_data: None,
    };
    assert_eq!(conflicts(world.reply(wait)), [expected]);
    let resolved = |data: &'static [u8], committed| {
        store_call(ttid(101), oid(1), tid(committed), data.into(), Some(tid(committed)))
    };
    assert!(matches!(world.ask(resolved(b"merged", 90)), Ok(Answer::Done)));
    let second = world.drain();
    assert!(matches!(&second[1].packet, Packet::AskStoreObject { serial, data, .. }
        if *serial == tid(90) && &data[..] == b"merged"));
    world.answer(&second[0], STORED);
    let wait = world.call(Call::WaitStores { ttid: t });
    world.answer(&first[1], conflict_with(90));
    assert!(!world.is_replied(wait), "known already");
    world.answer(&second[1], conflict_with(95));
    let again = conflicts(world.reply(wait));
    assert_eq!((again[0].committed, again[0].base), (tid(95), tid(90)));
    assert_eq!(again[0].data.as_deref(), Some(&b"merged"[..]));
    assert!(matches!(world.ask(resolved(b"merged again", 95)), Ok(Answer::Done)));
    let third = world.drain();
    for request in &third {
        world.answer(request, STORED);
    }
    assert!(matches!(world.ask(Call::WaitStores { ttid: t }), Ok(Answer::Done)));
    let vote = vote_all(&mut world, t);
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(oids)) if oids == [oid(1)]));
}

/// A positive answer to an older store does not count for the last one.
#[test]
fn answers_to_older_stores_do_not_count() {
    let mut world = connected(&[&[1, 2]]);
    let t = world.begin(101);
    let first = store(&mut world, t, 1, 50, b"a");
    world.answer(&first[0], conflict_with(90));
    let wait = world.call(Call::WaitStores { ttid: t });
    conflicts(world.reply(wait));
    let call = store_call(t, oid(1), tid(90), "b".into(), Some(tid(90)));
    assert!(matches!(world.ask(call), Ok(Answer::Done)));
    let second = world.drain();
    world.answer(&second[0], STORED);
    let wait = world.call(Call::WaitStores { ttid: t });
    world.answer(&first[1], STORED);
    assert!(!world.is_replied(wait));
    let data = |world: &mut World| world.ask(Call::StoredData { ttid: t, oid: oid(1) });
    assert!(matches!(data(&mut world), Ok(Answer::Data(Some(d))) if &d[..] == b"b"));
    world.answer(&second[1], STORED);
    assert!(matches!(world.reply(wait), Ok(Answer::Done)));
    assert!(matches!(data(&mut world), Ok(Answer::Data(Some(d))) if &d[..] == b"b"));
}

/// A conflict is told early, with the next store.
#[test]
fn conflicts_are_told_early() {
    let mut world = connected(&[&[1]]);
    let t = world.begin(101);
    let first = store(&mut world, t, 1, 50, b"a");
    world.answer(&first[0], conflict_with(90));
    let call = world.store(t, 2, 0, b"b");
    assert_eq!(conflicts(world.reply(call))[0].oid, oid(1));
    // Once.
    let second = world.drain();
    world.answer(&second[0], STORED);
    let wait = world.call(Call::WaitStores { ttid: t });
    assert_error(world.reply(wait), &Error::NotStored(0));
}

/// A check that fails is an error, now or at the latest before the vote.
#[test]
fn failed_checks() {
    let mut world = connected(&[&[1]]);
    let t = world.begin(101);
    let check = Call::CheckSerial { ttid: t, oid: oid(1), serial: tid(50) };
    world.ask(check).unwrap();
    let request = world.next();
    world.answer(&request, Packet::AnswerCheckCurrentSerial { conflict: Some(tid(90)) });
    let expected = Error::ReadConflict { oid: oid(1), committed: tid(90), base: tid(50) };
    assert_error(world.ask(Call::WaitStores { ttid: t }), &expected);
    let vote = world.vote(t);
    assert_error(world.reply(vote), &expected);
}

/// An older transaction wants the lock: it is given back and taken again, on all storages that
/// ask. If the object was changed meanwhile, the data comes back and the conflict is resolved.
#[test]
fn deadlock_avoidance() {
    let mut world = connected(&[&[1, 2]]);
    let t = world.begin(105);
    let stores = store(&mut world, t, 1, 50, b"mine");
    let deadlock = Packet::NotifyDeadlock { ttid: t, oid: oid(1) };
    world.answer(&stores[0], STORED);
    world.answer(&stores[1], STORED);
    let wait = world.call(Call::WaitStores { ttid: t });
    assert!(matches!(world.reply(wait), Ok(Answer::Done)));
    // The application has not voted yet.
    world.notify(stores[0].conn, deadlock.clone());
    world.notify(stores[1].conn, deadlock.clone());
    let relocks = world.drain();
    assert!(relocks.iter().all(|s| s.packet == Packet::AskRelockObject { ttid: t, oid: oid(1) }));
    assert_eq!(relocks.len(), 2);
    // The vote does not begin before the answers.
    let wait = world.vote(t);
    world.answer(&relocks[0], Packet::AnswerRelockObject { conflict: None });
    assert!(!world.is_replied(wait));
    let stored = Compression::None.store(&"mine".into());
    let conflict = |number| {
        let data = (0, stored.checksum, stored.data.clone());
        Packet::AnswerRelockObject { conflict: Some((tid(50), tid(number), Some(data))) }
    };
    world.answer(&relocks[1], conflict(90));
    let told = conflicts(world.reply(wait));
    assert_eq!((told[0].committed, told[0].base), (tid(90), tid(50)));
    assert_eq!(told[0].data.as_deref(), Some(&b"mine"[..]));
    // Another node can only report the same.
    world.notify(stores[0].conn, deadlock.clone());
    let relock = world.next();
    world.answer(&relock, conflict(90));
    let call = store_call(t, oid(1), tid(90), "merged".into(), Some(tid(90)));
    world.ask(call).unwrap();
    let again = world.drain();
    // And again while it is being written, by a relock that began before.
    world.notify(stores[1].conn, deadlock.clone());
    let relock = world.next();
    world.answer(&relock, conflict(90));
    world.answer(&again[0], STORED);
    world.answer(&again[1], STORED);
    world.ask(Call::WaitStores { ttid: t }).unwrap();
    let vote = world.vote(t);
    // Too late: this transaction waits for no lock any more.
    world.notify(stores[1].conn, deadlock);
    assert!(world.sent.iter().all(|s| !matches!(s.packet, Packet::AskRelockObject { .. })));
    while let Some(request) = world.sent.pop_front() {
        world.answer(&request, Packet::AnswerStoreTransaction {});
    }
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(oids)) if oids == [oid(1)]));
}

/// Relocking a check that fails is a read conflict; damaged data is an error; a transaction that
/// does not exist is ignored.
#[test]
fn deadlock_avoidance_that_fails() {
    let mut world = connected(&[&[1]]);
    let conn = world.conn(address(1));
    world.notify(conn, Packet::NotifyDeadlock { ttid: ttid(7), oid: oid(1) });
    world.assert_silent();
    let t = world.begin(105);
    world.ask(Call::CheckSerial { ttid: t, oid: oid(1), serial: tid(50) }).unwrap();
    let request = world.next();
    world.answer(&request, Packet::AnswerCheckCurrentSerial { conflict: None });
    world.notify(conn, Packet::NotifyDeadlock { ttid: t, oid: oid(1) });
    let relock = world.next();
    let conflict = Some((tid(50), tid(90), None));
    world.answer(&relock, Packet::AnswerRelockObject { conflict });
    let expected = Error::ReadConflict { oid: oid(1), committed: tid(90), base: tid(50) };
    assert_error(world.ask(Call::WaitStores { ttid: t }), &expected);

    let t = world.begin(106);
    let stores = store(&mut world, t, 2, 50, b"x");
    world.answer(&stores[0], STORED);
    world.notify(conn, Packet::NotifyDeadlock { ttid: t, oid: oid(2) });
    let relock = world.next();
    let conflict = Some((tid(50), tid(90), Some((0, [1; 20], "x".into()))));
    world.answer(&relock, Packet::AnswerRelockObject { conflict });
    let expected = Error::WrongChecksum { oid: oid(2), serial: tid(50) };
    assert_error(world.ask(Call::WaitStores { ttid: t }), &expected);
}

/// A storage is lost during the stores: the master is asked whether it can be left out. It does not
/// come back into the transaction, even if it is connected again.
#[test]
fn storages_lost_during_stores() {
    for code in [ErrorCode::Ack, ErrorCode::IncompleteTransaction] {
        let mut world = connected(&[&[1, 2]]);
        let t = world.begin(101);
        let first = store(&mut world, t, 1, 50, b"x");
        world.answer(&first[0], STORED);
        let wait = world.call(Call::WaitStores { ttid: t });
        world.close(first[1].conn);
        assert!(matches!(world.reply(wait), Ok(Answer::Done)));
        let second = store(&mut world, t, 2, 50, b"y");
        assert_eq!(second.len(), 1);
        assert_eq!(second[0].to, address(1));
        world.answer(&second[0], STORED);
        let vote = world.vote(t);
        let request = world.next();
        assert_eq!(request.to, address(1));
        world.answer(&request, Packet::AnswerStoreTransaction {});
        let request = world.next();
        assert_eq!(request.packet, Packet::FailedVote { ttid: t, nids: vec![storage(2)] });
        assert!(!world.is_replied(vote));
        world.error(&request, code);
        match code {
            ErrorCode::Ack => assert!(matches!(world.reply(vote), Ok(Answer::Resolved(_)))),
            _ => assert_error(world.reply(vote), &Error::Incomplete),
        }
        world.assert_silent();
    }
}

/// The master knows that the storage is down: there is nothing to decide.
#[test]
fn storages_that_are_down_are_left_out() {
    let mut world = connected(&[&[1, 2]]);
    world.node_information(world.master(), &[2]);
    let t = world.begin(101);
    let stores = store(&mut world, t, 1, 50, b"x");
    assert_eq!(stores.len(), 1);
    world.answer(&stores[0], STORED);
    let vote = vote_all(&mut world, t);
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(_))));
    // No storage at all.
    world.node_information(world.master(), &[1, 2]);
    let t = world.begin(102);
    let call = world.store(t, 1, 50, b"x");
    assert_error(world.reply(call), &Error::NotStored(0));
    let vote = world.vote(t);
    assert_error(world.reply(vote), &Error::NotStored(0));
}

/// A storage is lost during the vote.
#[test]
fn storages_lost_during_the_vote() {
    let mut world = connected(&[&[1, 2]]);
    let t = world.begin(101);
    for request in store(&mut world, t, 1, 50, b"x") {
        world.answer(&request, STORED);
    }
    let vote = world.vote(t);
    let requests = world.drain();
    world.close(requests[0].conn);
    world.answer(&requests[1], Packet::AnswerStoreTransaction {});
    let request = world.next();
    assert_eq!(request.packet, Packet::FailedVote { ttid: t, nids: vec![storage(1)] });
    // Asked once.
    world.close(requests[1].conn);
    world.assert_silent();
    world.error(&request, ErrorCode::Ack);
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(_))));
    // A voted transaction survives the loss of connections to storages.
    let finish = world.call(Call::Finish { ttid: t });
    let request = world.next();
    world.answer(&request, Packet::AnswerTransactionFinished { ttid: t, tid: tid(103) });
    assert!(matches!(world.reply(finish), Ok(Answer::Finished(_))));
}

/// Stores without lock protect nothing: one cell at least must hold the lock if another failed.
#[test]
fn lockless_stores() {
    let lockless = Packet::AnswerStoreObject { conflict: Some(Tid::ZERO) };
    // Cell 2 is being replicated.
    let mut world = connected(&[&[1, 2]]);
    let t = world.begin(101);
    let stores = store(&mut world, t, 1, 50, b"x");
    world.answer(&stores[0], STORED);
    world.answer(&stores[1], lockless.clone());
    let vote = vote_all(&mut world, t);
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(_))));
    // The other one is lost.
    let t = world.begin(102);
    let stores = store(&mut world, t, 1, 50, b"x");
    world.answer(&stores[1], lockless);
    world.close(stores[0].conn);
    world.ask(Call::WaitStores { ttid: t }).unwrap();
    let vote = vote_all(&mut world, t);
    assert_error(world.reply(vote), &Error::NotStored(0));
}

/// A storage refuses a store.
#[test]
fn refused_stores() {
    let refused = Error::Refused("0000000000000001".into());
    let undo = Error::Undo { reason: "data to go back to was packed away", oid: Some(oid(1)) };
    for (code, expected) in [
        (ErrorCode::ReadOnlyAccess, Error::ReadOnly("0000000000000001".into())),
        (ErrorCode::UndoPackError, undo),
        (ErrorCode::ProtocolError, refused),
    ] {
        let mut world = connected(&[&[1]]);
        let t = world.begin(101);
        let stores = store(&mut world, t, 1, 50, b"x");
        world.error(&stores[0], code);
        assert_error(world.ask(Call::WaitStores { ttid: t }), &expected);
        assert!(matches!(world.ask(Call::Abort { ttid: t }), Ok(Answer::Done)));
    }
}

/// Data that waits for storages is bounded: the application waits too.
#[test]
fn stores_wait_for_room() {
    let mut world = connected(&[&[1]]);
    let t = world.begin(101);
    let big = vec![7; 12 << 20];
    let first = store(&mut world, t, 1, 0, &big);
    let call = world.store(t, 2, 0, &big);
    assert!(!world.is_replied(call), "24 MiB wait, 20 are allowed");
    world.answer(&first[0], STORED);
    assert!(matches!(world.reply(call), Ok(Answer::Done)));
    let second = world.next();
    world.answer(&second, STORED);
    // What was written is kept for the cache, but not more than fits.
    let data = |world: &mut World, o| match world.ask(Call::StoredData { ttid: t, oid: oid(o) }) {
        Ok(Answer::Data(data)) => data.is_some(),
        other => panic!("{other:?}"),
    };
    assert!(data(&mut world, 1));
    assert!(!data(&mut world, 2));
    // Unless the application may need it again.
    world.ask(Call::KeepData { ttid: t }).unwrap();
    let third = store(&mut world, t, 3, 0, &big);
    world.answer(&third[0], STORED);
    assert!(data(&mut world, 3));
    // And unless it can be loaded from somewhere else: undoing a large transaction costs no more.
    let mut call = store_call(t, oid(4), tid(60), big.into(), None);
    let Call::Store { data_serial, .. } = &mut call else { panic!("not a store") };
    *data_serial = Some(tid(50));
    let call = world.call(call);
    let fourth = world.next();
    world.answer(&fourth, STORED);
    assert!(matches!(world.reply(call), Ok(Answer::Done)));
    let answer = world.ask(Call::StoredData { ttid: t, oid: oid(4) });
    assert!(matches!(answer, Ok(Answer::CopyOf(serial)) if serial == tid(50)), "{answer:?}");
}

/// Aborting tells the storages that take part, and the master which ones do.
#[test]
fn abort() {
    let mut world = connected(&[&[1], &[2]]);
    let t = world.begin(101);
    let stores = store(&mut world, t, 2, 0, b"x");
    let waiting = world.call(Call::WaitStores { ttid: t });
    world.ask(Call::Abort { ttid: t }).unwrap();
    assert!(matches!(failure(world.reply(waiting)), Error::Transaction(_)));
    let to_storage = world.next_to(1);
    let expected = Packet::AbortTransaction { ttid: t, nids: vec![] };
    assert_eq!((to_storage.to, to_storage.packet), (address(1), expected));
    let to_master = world.next();
    let expected = Packet::AbortTransaction { ttid: t, nids: vec![storage(1)] };
    assert_eq!((to_master.to, to_master.packet), (master_address(), expected));
    world.assert_silent();
    // The answer comes too late.
    world.answer(&stores[0], conflict_with(50));
    assert_eq!(world.engine.app.pending_count(), 0);
    assert!(world.ask(Call::WaitStores { ttid: t }).is_err());
}

/// What was to be stored on a storage that has not accepted us yet is forgotten by an abort.
#[test]
fn abort_before_the_storage_accepts() {
    let mut world = World::ready(&[&[1]]);
    let t = world.begin(101);
    let call = world.store(t, 1, 0, b"x");
    world.reply(call).unwrap();
    world.ask(Call::Abort { ttid: t }).unwrap();
    let to_master = world.next_to_master();
    assert!(matches!(to_master.packet, Packet::AbortTransaction { .. }));
    world.accept_storage(1);
    world.assert_silent();
}

/// The storage dies before it accepts us.
#[test]
fn storage_that_never_accepts() {
    let mut world = World::ready(&[&[1, 2]]);
    let t = world.begin(101);
    let call = world.store(t, 1, 0, b"x");
    world.reply(call).unwrap();
    world.accept_storage(1);
    world.close(world.conn(address(2)));
    let request = world.next_to(1);
    world.answer(&request, STORED);
    assert!(matches!(world.ask(Call::WaitStores { ttid: t }), Ok(Answer::Done)));
    world.sent.clear();
    let vote = world.vote(t);
    let request = world.next();
    world.answer(&request, Packet::AnswerStoreTransaction {});
    let request = world.next();
    assert_eq!(request.packet, Packet::FailedVote { ttid: t, nids: vec![storage(2)] });
    world.error(&request, ErrorCode::Ack);
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(_))));
}

/// A transaction with an imposed tid, and one that carries a pack order.
#[test]
fn imposed_tid_and_pack() {
    let mut world = connected(&[&[1]]);
    let call = world.call(Call::Begin { tid: Some(tid(200)) });
    let request = world.next();
    assert_eq!(request.packet, Packet::AskBeginTransaction { tid: Some(tid(200)) });
    world.answer(&request, Packet::AnswerBeginTransaction { ttid: ttid(201) });
    assert!(matches!(failure(world.reply(call)), Error::Refused(_)), "another one was given");
    let call = world.call(Call::Begin { tid: Some(tid(200)) });
    let request = world.next();
    world.answer(&request, Packet::AnswerBeginTransaction { ttid: ttid(200) });
    let t = ttid(200);
    assert!(matches!(world.reply(call), Ok(Answer::Begun(begun)) if begun == t));
    let pack = (Some(vec![oid(1)]), tid(90));
    world.ask(Call::SetPack { ttid: t, pack: pack.clone() }).unwrap();
    let vote = world.vote(t);
    let request = world.next();
    assert!(
        matches!(&request.packet, Packet::AskStoreTransaction { pack: Some(p), .. } if *p == pack)
    );
    world.answer(&request, Packet::AnswerStoreTransaction {});
    world.reply(vote).unwrap();
    world.call(Call::Finish { ttid: t });
    let request = world.next();
    assert!(
        matches!(&request.packet, Packet::AskFinishTransaction { pack: Some(p), .. } if *p == pack)
    );
}

/// Steps in the wrong order are refused.
#[test]
fn wrong_order() {
    let mut world = connected(&[&[1]]);
    let t = world.begin(101);
    assert!(matches!(failure(world.ask(Call::Finish { ttid: t })), Error::Transaction(_)));
    let stores = store(&mut world, t, 1, 0, b"x");
    let vote = world.vote(t);
    assert!(!world.is_replied(vote), "a store is pending");
    world.answer(&stores[0], STORED);
    assert!(matches!(world.reply(vote), Ok(Answer::Done)), "to be called again");
    world.assert_silent();
    let vote = vote_all(&mut world, t);
    world.reply(vote).unwrap();
    let call = world.store(t, 2, 0, b"x");
    assert!(matches!(failure(world.reply(call)), Error::Transaction(_)), "voted");
    assert!(world.ask(Call::WaitStores { ttid: ttid(999) }).is_err());
    // An object that is stored does not need to be checked.
    let t = world.begin(102);
    store(&mut world, t, 1, 50, b"x");
    world.ask(Call::CheckSerial { ttid: t, oid: oid(1), serial: tid(50) }).unwrap();
    world.assert_silent();
}
