// SPDX-License-Identifier: GPL-2.0-or-later
//! Loads: the cache, the choice of the cell, and what happens meanwhile.

use neo_common::engine::UNFINISHED;

use super::*;

/// A miss asks a storage, with the last tid as bound; then the cache answers.
#[test]
fn misses_fill_the_cache() {
    let mut world = World::ready(&[&[1], &[2]]);
    let call = world.load(3, None);
    world.accept_storage(2);
    let request = world.next();
    assert_eq!((request.to, request.packet.clone()), (address(2), ask_object(3, 101)));
    world.answer(&request, answer_object(3, 50, None));
    assert_eq!(world.loaded(call), record(3, 50, None));
    for before in [None, Some(51), Some(1000)] {
        let call = world.load(3, before);
        assert_eq!(cached(world.reply(call)), record(3, 50, None));
    }
    let reply = world.ask(Call::Load { oid: oid(3), at: Some(tid(50)), before: None });
    assert_eq!(cached(reply), record(3, 50, None));
    world.assert_silent();
    let call = world.load(3, Some(50));
    let request = world.next();
    assert_eq!(request.packet, ask_object(3, 50));
    world.answer(&request, answer_object(3, 40, Some(50)));
    assert_eq!(world.loaded(call), record(3, 40, Some(50)));
    let call = world.load(3, Some(45));
    assert_eq!(cached(world.reply(call)), record(3, 40, Some(50)));
}

/// Before the first connection, a load waits until the last tid is known.
#[test]
fn loads_wait_for_the_first_connection() {
    let mut world = World::new(&[&[1]]);
    let calls = [world.load(1, None), world.load(2, Some(60))];
    world.accept_master();
    world.accept_storage(1);
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 101));
    world.answer(&request, answer_object(1, 50, None));
    let request = world.next();
    assert_eq!(request.packet, ask_object(2, 60));
    world.answer(&request, answer_object(2, 50, None));
    assert_eq!(world.loaded(calls[0]), record(1, 50, None));
    assert_eq!(world.loaded(calls[1]), record(2, 50, None));
}

/// Each kind of missing object has its own error, and nothing is cached.
#[test]
fn missing_objects() {
    let mut world = World::ready(&[&[1]]);
    let first = world.load(1, None);
    world.accept_storage(1);
    for (index, expected) in [
        (0, Error::OidDoesNotExist(oid(1))),
        (1, Error::OidNotFound(oid(1))),
        (2, Error::CreationUndone { oid: oid(1), serial: tid(60) }),
        (3, Error::Refused("0000000000000001".into())),
    ] {
        let call = if index == 0 { first } else { world.load(1, None) };
        let request = world.next();
        match index {
            0 => world.error(&request, ErrorCode::OidDoesNotExist),
            1 => world.error(&request, ErrorCode::OidNotFound),
            2 => world.answer(&request, stored_nothing()),
            _ => world.error(&request, ErrorCode::BackendNotImplemented),
        }
        assert_error(world.reply(call), &expected);
    }
    assert_eq!(world.engine.app.pending_count(), 0);
}

/// Loads of the same object wait for the first; then the cache answers, or each goes on.
#[test]
fn loads_of_the_same_object_wait() {
    let mut world = World::ready(&[&[1]]);
    let calls = [world.load(1, None), world.load(1, None), world.load(1, Some(40))];
    world.accept_storage(1);
    let request = world.next();
    world.assert_silent();
    world.answer(&request, answer_object(1, 50, None));
    assert!(!world.is_replied(calls[1]), "the data is not verified yet");
    assert_eq!(world.loaded(calls[0]), record(1, 50, None));
    assert_eq!(cached(world.reply(calls[1])), record(1, 50, None));
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 40));
    world.answer(&request, answer_object(1, 30, Some(50)));
    assert_eq!(world.loaded(calls[2]), record(1, 30, Some(50)));
    // If the first one fails, the others try by themselves.
    let calls = [world.load(2, None), world.load(2, None)];
    let request = world.next();
    world.error(&request, ErrorCode::OidDoesNotExist);
    assert!(world.is_replied(calls[0]));
    let request = world.next();
    world.answer(&request, answer_object(2, 50, None));
    assert_eq!(world.loaded(calls[1]), record(2, 50, None));
}

/// The race told in `loads`: another client commits while the answer is on its way, in each
/// possible order.
#[test]
fn invalidation_during_a_load() {
    // Before the answer.
    let mut world = World::ready(&[&[1]]);
    let call = world.load(1, None);
    world.accept_storage(1);
    let request = world.next();
    world.invalidate(101, &[1, 2]);
    world.invalidate(102, &[1]);
    world.answer(&request, answer_object(1, 50, None));
    assert_eq!(world.loaded(call), record(1, 50, Some(101)));
    let call = world.load(1, None);
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 103));
    // Between the answer and the moment when its data is verified.
    world.answer(&request, answer_object(1, 102, None));
    world.invalidate(103, &[1]);
    assert_eq!(world.loaded(call), record(1, 102, Some(103)));
    let call = world.load(1, None);
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 104));
    // The storage knew already.
    world.invalidate(104, &[1]);
    world.answer(&request, answer_object(1, 103, Some(104)));
    assert_eq!(world.loaded(call), record(1, 103, Some(104)));
    // What is invalidated may be older than what is loaded.
    let call = world.load(1, Some(200));
    let request = world.next();
    world.invalidate(105, &[1]);
    world.answer(&request, answer_object(1, 105, None));
    assert_eq!(world.loaded(call), record(1, 105, None));
    let call = world.load(1, None);
    assert_eq!(cached(world.reply(call)), record(1, 105, None));
}

/// A revision that is newer than the last invalidation received is not cached: its own
/// invalidation is still to come.
#[test]
fn revisions_from_the_future_are_not_cached() {
    let mut world = World::ready(&[&[1]]);
    let call = world.load(1, Some(Tid::MAX.get()));
    world.accept_storage(1);
    let request = world.next();
    world.answer(&request, answer_object(1, 101, None));
    assert_eq!(world.loaded(call), record(1, 101, None));
    let call = world.load(1, None);
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 101));
    world.answer(&request, answer_object(1, 50, Some(101)));
    assert_eq!(world.loaded(call), record(1, 50, Some(101)));
}

/// A cell that is not readable any more: another one, then the master is pinged, because it is
/// about to tell about it.
#[test]
fn cells_that_are_not_readable() {
    let mut world = World::ready(&[&[1, 2]]);
    let call = world.load(1, None);
    let first = if world.has_conn(address(1)) { 1 } else { 2 };
    world.accept_storage(first);
    let request = world.next();
    world.error(&request, ErrorCode::NonReadableCell);
    world.accept_storage(3 - first);
    let request = world.next();
    world.error(&request, ErrorCode::NonReadableCell);
    let ping = world.next();
    assert_eq!((ping.to, ping.packet.clone()), (master_address(), Packet::Ping {}));
    let changes = vec![(0, storage(first), CellState::OutOfDate)];
    world.notify(world.master(), Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    world.answer(&ping, Packet::Pong {});
    let request = world.next();
    assert_eq!(request.to, address(3 - first));
    world.answer(&request, answer_object(1, 50, None));
    assert_eq!(world.loaded(call), record(1, 50, None));
}

/// Whether a transaction of another client is committed: not so far. If it is locked, it is not known: the
/// master is heard, then asked again.
#[test]
fn outcome_of_a_transaction_of_another_client() {
    let mut world = World::ready(&[&[1]]);
    let ask = || {
        let packet = Packet::AskFinalTID { ttid: ttid(90) };
        Call::Read { partition: 0, packet, ttid: None }
    };
    let call = world.call(ask());
    world.accept_storage(1);
    let request = world.next();
    let refusal =
        |message: &str| Packet::Error { code: ErrorCode::NonReadableCell, message: message.into() };
    world.answer(&request, refusal(UNFINISHED));
    let tid_of = |reply| match reply {
        Ok(Answer::Packet(Packet::AnswerFinalTID { tid })) => tid,
        other => panic!("{other:?}"),
    };
    assert_eq!(tid_of(world.reply(call)), None);
    let call = world.call(ask());
    let request = world.next();
    world.answer(&request, refusal(""));
    let ping = world.next_to_master();
    assert!(!world.is_replied(call));
    world.answer(&ping, Packet::Pong {});
    let request = world.next();
    world.answer(&request, Packet::AnswerFinalTID { tid: Some(tid(95)) });
    assert_eq!(tid_of(world.reply(call)), Some(tid(95)));
}

/// A conflict tells a tid that the master has not told yet: what it says before the storage is asked, is that
/// this storage has just lost its cells (seed 14324).
#[test]
fn a_revision_that_only_a_storage_told_waits_for_the_master() {
    let mut world = World::ready(&[&[1, 2]]);
    let call = world.call(Call::Load { oid: oid(1), at: Some(tid(200)), before: None });
    let ping = world.next();
    assert_eq!((ping.to, ping.packet.clone()), (master_address(), Packet::Ping {}));
    world.assert_silent();
    let changes = vec![(0, storage(1), CellState::OutOfDate)];
    world.notify(world.master(), Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    world.answer(&ping, Packet::Pong {});
    world.accept_storage(2);
    let request = world.next();
    let asked = Packet::AskObject { oid: oid(1), at: Some(tid(200)), before: None };
    assert_eq!((request.to, request.packet.clone()), (address(2), asked));
    world.answer(&request, answer_object(1, 200, None));
    assert_eq!(world.loaded(call), record(1, 200, None));
    // One that the master has told needs no ping.
    world.call(Call::Load { oid: oid(1), at: Some(tid(60)), before: None });
    assert_eq!(world.next().to, address(2));
}

/// A storage that dies, refuses, or is not ready: the other one is asked, and is preferred from then
/// on.
#[test]
fn storages_that_fail_are_avoided() {
    for failure in 0..3 {
        let mut world = World::ready(&[&[1, 2]]);
        if failure == 0 {
            world.refusing.push(address(1));
        }
        for number in 0..50 {
            let call = world.load(number, None);
            while !world.is_replied(call) {
                let request = world.next();
                match request.packet {
                    Packet::RequestIdentification { .. } if request.to == address(1) => {
                        if failure == 1 {
                            world.error(&request, ErrorCode::NotReady);
                        } else {
                            world.sent.push_front(request);
                            world.accept_storage(1);
                        }
                    }
                    Packet::RequestIdentification { .. } => {
                        world.sent.push_front(request);
                        world.accept_storage(2);
                    }
                    _ if request.to == address(1) => world.close(request.conn),
                    _ => world.answer(&request, answer_object(number, 50, None)),
                }
            }
            assert_eq!(world.loaded(call), record(number, 50, None));
        }
        assert!(!world.has_conn(address(1)));
        assert_eq!(world.engine.app.failures.len(), 1);
    }
}

/// The only storage cannot be reached although the master says that it runs: rounds get rare,
/// and the load fails after half a minute. In between, reconnecting would have helped.
#[test]
fn reads_are_given_up() {
    let mut world = World::ready(&[&[1]]);
    world.refusing.push(address(1));
    let call = world.load(1, None);
    let mut pings = 0;
    for _ in 0..100 {
        while let Some(request) = world.sent.pop_front() {
            assert_eq!(request.packet, Packet::Ping {});
            pings += 1;
            world.answer(&request, Packet::Pong {});
        }
        if world.is_replied(call) {
            break;
        }
        world.sleep(Duration::from_secs(1));
    }
    assert_error(world.reply(call), &Error::NoStorage(0));
    assert!((5..60).contains(&pings), "{pings}");

    let call = world.load(1, None);
    for _ in 0..5 {
        while let Some(ping) = world.sent.pop_front() {
            world.answer(&ping, Packet::Pong {});
        }
        world.sleep(Duration::from_secs(1));
    }
    world.refusing.clear();
    while !world.has_conn(address(1)) {
        world.sleep(Duration::from_millis(100));
        while world.sent.front().is_some_and(|sent| sent.packet == Packet::Ping {}) {
            let ping = world.next();
            world.answer(&ping, Packet::Pong {});
        }
    }
    world.accept_storage(1);
    let request = world.next();
    world.answer(&request, answer_object(1, 50, None));
    assert_eq!(world.loaded(call), record(1, 50, None));
}

/// Damaged data is not returned: the other cell is asked. If both are damaged, the load fails at
/// once.
#[test]
fn damaged_data() {
    let mut world = World::ready(&[&[1, 2]]);
    let call = world.load(1, None);
    let first = if world.has_conn(address(1)) { 1 } else { 2 };
    world.accept_storage(first);
    let request = world.next();
    world.answer(&request, answer_object(1, 50, None));
    let load = object(world.reply(call)).load;
    let again = world.call(Call::Rejected { load });
    world.accept_storage(3 - first);
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 101));
    world.answer(&request, answer_object(1, 50, None));
    let load = object(world.reply(again)).load;
    assert_error(world.ask(Call::Rejected { load }), &Error::NoStorage(0));
    assert_eq!(world.engine.app.pending_count(), 0);
    // A load that was forgotten is not accepted any more.
    assert!(world.ask(Call::Loaded { load, data: Bytes::new() }).is_err());
}

/// A storage that answers something else than what was asked is not believed.
#[test]
fn wrong_answers_are_rejected() {
    let wrong =
        [answer_object(2, 50, None), answer_object(1, 101, None), answer_object(1, 50, Some(50))];
    for answer in wrong {
        let mut world = World::ready(&[&[1]]);
        let call = world.load(1, None);
        world.accept_storage(1);
        let request = world.next();
        world.answer(&request, answer);
        assert_error(world.reply(call), &Error::NoStorage(0));
    }
}

/// The master is restarted while a load is under way: the caller does not notice.
#[test]
fn loads_survive_the_master() {
    let mut world = World::ready(&[&[1]]);
    let calls = [world.load(1, None), world.load(2, None)];
    world.accept_storage(1);
    let request = world.next();
    world.next();
    world.answer(&request, answer_object(1, 50, None));
    world.close(world.master());
    assert!(!world.has_conn(address(1)), "the next master may give another nid");
    let late = world.load(3, None);
    world.sleep(Duration::from_secs(1));
    world.last_tid = tid(110);
    world.accept_master();
    // The data that is being verified is good, but may not be current any more.
    assert_eq!(world.loaded(calls[0]), record(1, 50, None));
    world.accept_storage(1);
    let mut asked: Vec<Packet> = world.sent.iter().map(|sent| sent.packet.clone()).collect();
    asked.sort_by_key(|packet| format!("{packet:?}"));
    assert_eq!(asked, [ask_object(2, 101), ask_object(3, 101)]);
    while let Some(request) = world.sent.pop_front() {
        let Packet::AskObject { oid, .. } = request.packet else { panic!() };
        world.answer(&request, answer_object(oid.get(), 50, None));
    }
    assert_eq!(world.loaded(calls[1]), record(2, 50, None));
    assert_eq!(world.loaded(late), record(3, 50, None));
    let call = world.load(1, None);
    assert!(!world.is_replied(call), "nothing of before is current");
}

/// The database was cut back: what was being read belongs to a history that does not exist.
#[test]
fn truncation_fails_reads() {
    let mut world = World::ready(&[&[1]]);
    let call = world.load(1, None);
    world.accept_storage(1);
    let request = world.next();
    world.answer(&request, answer_object(1, 50, None));
    world.loaded(call);
    let call = world.load(2, None);
    world.close(world.master());
    world.sleep(Duration::from_secs(1));
    world.last_tid = tid(60);
    world.accept_master();
    assert_error(world.reply(call), &Error::Truncated);
    assert_eq!(world.last_known_tid(), Some(tid(60)));
    let call = world.load(1, Some(55));
    assert!(!world.is_replied(call), "nothing is cached any more");
}

/// Reads that bypass the cache give the answer as it is.
#[test]
fn raw_reads() {
    let mut world = World::ready(&[&[1], &[2]]);
    let packet = Packet::AskTransactionInformation { tid: tid(7) };
    let call = world.call(Call::Read { partition: 1, packet: packet.clone(), ttid: None });
    world.accept_storage(2);
    let request = world.next();
    assert_eq!(request.packet, packet);
    world.error(&request, ErrorCode::TidNotFound);
    assert_error(world.reply(call), &Error::TidNotFound(tid(7)));
    let packet = Packet::AskTIDs { first: 0, last: 5, partition: 1 };
    let call = world.call(Call::Read { partition: 1, packet, ttid: None });
    let request = world.next();
    world.answer(&request, Packet::AnswerTIDs { tids: vec![tid(3)] });
    match world.reply(call) {
        Ok(Answer::Packet(Packet::AnswerTIDs { tids })) => assert_eq!(tids, [tid(3)]),
        other => panic!("{other:?}"),
    }
}
