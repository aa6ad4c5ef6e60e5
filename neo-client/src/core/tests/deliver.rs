// SPDX-License-Identifier: GPL-2.0-or-later
//! The order in which the application is told.

use super::*;

fn committing(world: &mut World, number: u64, oids: &[u64]) -> (CallId, Sent) {
    let t = world.begin(number);
    for o in oids {
        world.store(t, *o, 0, b"mine");
    }
    if !world.engine.app.storages.contains_key(&storage(1)) || !world.sent.is_empty() {
        if matches!(world.sent[0].packet, Packet::RequestIdentification { .. }) {
            world.accept_storage(1);
        }
        while let Some(request) = world.sent.pop_front() {
            world.answer(&request, Packet::AnswerStoreObject { conflict: None });
        }
    }
    let vote = world.vote(t);
    let request = world.next();
    world.answer(&request, Packet::AnswerStoreTransaction {});
    assert!(matches!(world.reply(vote), Ok(Answer::Resolved(_))));
    let call = world.call(Call::Finish { ttid: t });
    (call, world.next_to_master())
}

fn finished(ttid_: u64, tid_: u64) -> Packet {
    Packet::AnswerTransactionFinished { ttid: ttid(ttid_), tid: tid(tid_) }
}

/// The last tid moves when the listener has been told, one event at a time, in order; own commits
/// have their place in it.
#[test]
fn last_tid_follows_what_was_told() {
    let mut world = World::ready(&[&[1]]);
    assert!(matches!(world.ask(Call::Listen), Ok(Answer::Done)));
    let (finish, request) = committing(&mut world, 101, &[1]);
    world.invalidate(105, &[2]);
    world.invalidate(106, &[3]);
    world.answer(&request, finished(101, 107));
    world.invalidate(108, &[4]);
    let sync = world.call(Call::Sync);
    let ping = world.next();
    world.answer(&ping, Packet::Pong {});

    let event = |number, o| Event::Invalidate { tid: tid(number), oids: vec![oid(o)] };
    assert_eq!(world.events, [event(105, 2)]);
    assert_eq!(world.last_known_tid(), Some(tid(100)));
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(105)));
    assert_eq!(world.events, [event(105, 2), event(106, 3)]);
    assert!(!world.is_replied(finish));
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(106)));
    assert!(matches!(world.reply(finish), Ok(Answer::Finished(t)) if t == tid(107)));
    assert_eq!(world.events.len(), 2, "the committer comes first");
    // A load sees no later than what was told.
    let call = world.load(9, None);
    let request = world.next_to(1);
    assert_eq!(request.packet, ask_object(9, 107));
    world.answer(&request, answer_object(9, 50, None));
    world.loaded(call);
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(107)));
    assert_eq!(world.events.back(), Some(&event(108, 4)));
    assert!(!world.is_replied(sync));
    world.ask(Call::Delivered).unwrap();
    assert!(matches!(world.reply(sync), Ok(Answer::Tid(Some(t))) if t == tid(108)));
    assert_eq!(world.last_known_tid(), Some(tid(108)));
}

/// Without listener, nothing waits.
#[test]
fn nobody_listens() {
    let mut world = World::ready(&[&[1]]);
    world.invalidate(105, &[2]);
    assert_eq!(world.last_known_tid(), Some(tid(105)));
    assert!(world.events.is_empty());
}

/// What was committed is in the cache for the next load, and what it replaces is not current.
#[test]
fn commits_fill_the_cache() {
    let mut world = World::ready(&[&[1]]);
    let (finish, request) = committing(&mut world, 101, &[1]);
    world.answer(&request, finished(101, 102));
    assert!(world.is_replied(finish));
    let call = world.load(1, None);
    let request = world.next();
    assert_eq!(request.packet, ask_object(1, 101), "not told yet");
    world.answer(&request, answer_object(1, 50, Some(102)));
    assert_eq!(world.loaded(call), record(1, 50, Some(102)));
    world.ask(Call::Delivered).unwrap();
    let call = world.load(1, None);
    let hit = cached(world.reply(call));
    assert_eq!((&hit.data[..], hit.serial, hit.next_serial), (&b"mine"[..], tid(102), None));
    let call = world.load(1, Some(102));
    assert_eq!(cached(world.reply(call)), record(1, 50, Some(102)));
}

/// After a reconnection, everything that was current is forgotten if something was missed.
#[test]
fn reconnection_invalidates_the_cache() {
    let mut world = World::ready(&[&[1]]);
    world.ask(Call::Listen).unwrap();
    let call = world.load(1, None);
    world.accept_storage(1);
    let request = world.next();
    world.answer(&request, answer_object(1, 50, None));
    world.loaded(call);
    // Nothing was missed.
    world.close(world.master());
    assert_eq!(world.events.pop_front(), Some(Event::Disconnected));
    world.ask(Call::Delivered).unwrap();
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    assert!(world.events.is_empty());
    let call = world.load(1, None);
    assert_eq!(cached(world.reply(call)), record(1, 50, None));
    // Something was.
    world.close(world.master());
    world.last_tid = tid(120);
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    assert_eq!(world.events.pop_front(), Some(Event::Disconnected));
    assert_eq!(world.last_known_tid(), Some(tid(100)));
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.events.pop_front(), Some(Event::InvalidateCache));
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(120)));
    let call = world.load(1, None);
    assert!(!world.is_replied(call));
}

/// Invalidations that come before the answer about the last tid are ignored: it covers them.
#[test]
fn early_invalidations_are_ignored() {
    let mut world = World::new(&[&[1]]);
    world.ask(Call::Listen).unwrap();
    world.call(Call::Connect);
    let request = world.next();
    let accept = Packet::AcceptIdentification {
        node_type: NodeType::Master,
        my_nid: Some(master_nid()),
        your_nid: Some(me()),
    };
    world.answer(&request, accept);
    world.node_information(request.conn, &[]);
    let rows = world.rows.clone();
    world.notify(request.conn, Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
    world.invalidate(90, &[1]);
    assert_eq!(world.last_known_tid(), None);
    let last = world.next();
    world.answer(&last, Packet::AnswerLastTransaction { tid: tid(90) });
    assert_eq!(world.last_known_tid(), Some(tid(90)));
    assert!(world.events.is_empty());
}
