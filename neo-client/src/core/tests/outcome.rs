// SPDX-License-Identifier: GPL-2.0-or-later
//! The master is lost during a transaction; the outcome of a commit is found out, never guessed.

use super::*;

/// A transaction with one object on storage 1, voted; the commit is asked.
fn committing(world: &mut World) -> (Ttid, CallId) {
    let t = voted(world);
    let call = world.call(Call::Finish { ttid: t });
    let request = world.next_to_master();
    assert!(matches!(request.packet, Packet::AskFinishTransaction { .. }));
    (t, call)
}

fn voted(world: &mut World) -> Ttid {
    let t = world.begin(101);
    let call = world.store(t, 1, 50, b"x");
    world.reply(call).unwrap();
    world.accept_storage(1);
    let request = world.next();
    world.answer(&request, Packet::AnswerStoreObject { conflict: None });
    let vote = world.vote(t);
    let request = world.next();
    world.answer(&request, Packet::AnswerStoreTransaction {});
    world.reply(vote).unwrap();
    t
}

fn reconnect(world: &mut World) {
    world.close(world.master());
    world.sleep(Duration::from_secs(1));
    world.accept_master();
}

/// The master is lost before the commit was asked: the transaction fails.
#[test]
fn lost_before_the_commit() {
    let mut world = World::ready(&[&[1]]);
    let t = voted(&mut world);
    reconnect(&mut world);
    assert_error(world.ask(Call::Finish { ttid: t }), &Error::MasterLost);
    // Nobody is going to abort it, and the new master does not know it.
    assert_eq!(world.engine.app.pending_count(), 0);
    assert!(!world.sent.iter().any(|sent| matches!(sent.packet, Packet::AbortTransaction { .. })));

    let mut world = World::ready(&[&[1]]);
    let t = world.begin(101);
    let call = world.store(t, 1, 50, b"x");
    world.reply(call).unwrap();
    let wait = world.call(Call::WaitStores { ttid: t });
    world.close(world.master());
    assert_error(world.reply(wait), &Error::MasterLost);
    // A new one waits until the master is back.
    let begin = world.call(Call::Begin { tid: None });
    world.sent.clear();
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    let request = world.next_to_master();
    world.answer(&request, Packet::AnswerBeginTransaction { ttid: ttid(150) });
    assert!(matches!(world.reply(begin), Ok(Answer::Begun(_))));
    // The commit was not asked because there was no master.
    let vote = world.vote(t);
    assert_error(world.reply(vote), &Error::MasterLost);
}

/// The answer is lost, and the master says that it is committed.
#[test]
fn committed_according_to_the_master() {
    let mut world = World::ready(&[&[1]]);
    world.ask(Call::Listen).unwrap();
    let (t, finish) = committing(&mut world);
    world.last_tid = tid(120);
    reconnect(&mut world);
    let request = world.next();
    assert_eq!(request.packet, Packet::AskFinalTID { ttid: t });
    assert!(!world.is_replied(finish));
    world.answer(&request, Packet::AnswerFinalTID { tid: Some(tid(110)) });
    // In order: disconnected, cache to be forgotten, then the committer.
    assert!(!world.is_replied(finish));
    world.ask(Call::Delivered).unwrap();
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.events, [Event::Disconnected, Event::InvalidateCache]);
    assert!(
        matches!(world.reply(finish), Ok(Answer::Finished(committed)) if committed == tid(110))
    );
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(120)), "the last tid does not go back");
    // Others may have changed the object since: the cache must not believe that ours is current.
    let call = world.load(1, None);
    assert!(!world.is_replied(call));
}

/// The master says that it is not committed.
#[test]
fn not_committed() {
    let mut world = World::ready(&[&[1]]);
    let (t, finish) = committing(&mut world);
    reconnect(&mut world);
    let request = world.next();
    world.answer(&request, Packet::AnswerFinalTID { tid: None });
    assert_error(world.reply(finish), &Error::NotCommitted(t));
    assert_eq!(world.last_known_tid(), Some(tid(100)));
    assert_eq!(world.engine.app.pending_count(), 0);
}

/// The master does not know: a storage with the partition of the ttid does. Whatever is lost
/// meanwhile is asked again, as long as it takes.
#[test]
fn outcome_according_to_storages() {
    for outcome in [None, Some(tid(110))] {
        let mut world = World::with_options(&[&[1, 2]], |options| {
            options.connect_timeout = Some(Duration::from_secs(3));
        });
        world = world.connected();
        let t = {
            let t = world.begin(101);
            let call = world.store(t, 1, 50, b"x");
            world.reply(call).unwrap();
            world.accept_storage(1);
            world.accept_storage(2);
            while let Some(request) = world.sent.pop_front() {
                world.answer(&request, Packet::AnswerStoreObject { conflict: None });
            }
            let vote = world.vote(t);
            while let Some(request) = world.sent.pop_front() {
                world.answer(&request, Packet::AnswerStoreTransaction {});
            }
            world.reply(vote).unwrap();
            t
        };
        let finish = world.call(Call::Finish { ttid: t });
        world.next_to_master();
        // The master is away for longer than the timeout of other calls.
        world.refusing.push(master_address());
        world.close(world.master());
        let other = world.call(Call::Connect);
        world.sleep(Duration::from_secs(100));
        assert_error(world.reply(other), &Error::Unreachable);
        assert!(!world.is_replied(finish));
        world.refusing.clear();
        world.last_tid = tid(120);
        world.sleep(Duration::from_secs(1));
        world.accept_master();
        // Lost again before it answers.
        assert_eq!(world.next().packet, Packet::AskFinalTID { ttid: t });
        reconnect(&mut world);
        let request = world.next();
        assert_eq!(request.packet, Packet::AskFinalTID { ttid: t });
        world.answer(&request, Packet::AnswerFinalTID { tid: Some(Tid::MAX) });
        let first = if world.has_conn(address(1)) { 1 } else { 2 };
        world.accept_storage(first);
        let request = world.next();
        assert_eq!(request.packet, Packet::AskFinalTID { ttid: t });
        world.close(request.conn);
        world.accept_storage(3 - first);
        let request = world.next();
        assert!(!world.is_replied(finish));
        world.answer(&request, Packet::AnswerFinalTID { tid: outcome });
        match outcome {
            Some(committed) => {
                assert!(matches!(world.reply(finish), Ok(Answer::Finished(t)) if t == committed));
            }
            None => assert_error(world.reply(finish), &Error::NotCommitted(t)),
        }
    }
}

/// The connection was lost, not the master: the commit goes on, and its invalidation comes before
/// the answer about the outcome.
#[test]
fn commit_that_ends_after_the_reconnection() {
    let mut world = World::ready(&[&[1]]);
    world.ask(Call::Listen).unwrap();
    let (t, finish) = committing(&mut world);
    reconnect(&mut world);
    let request = world.next();
    assert_eq!(request.packet, Packet::AskFinalTID { ttid: t });
    world.invalidate(110, &[1]);
    world.answer(&request, Packet::AnswerFinalTID { tid: Some(tid(110)) });
    world.ask(Call::Delivered).unwrap();
    world.ask(Call::Delivered).unwrap();
    assert!(matches!(world.reply(finish), Ok(Answer::Finished(t)) if t == tid(110)));
    world.ask(Call::Delivered).unwrap();
    assert_eq!(world.last_known_tid(), Some(tid(110)));
    // In the other order, the application is told once.
    world.invalidate(110, &[1]);
    assert_eq!(world.events.len(), 2);
}

/// The client is closed before the outcome is known.
#[test]
fn outcome_unknown() {
    let mut world = World::ready(&[&[1]]);
    let (t, finish) = committing(&mut world);
    world.ask(Call::Close).unwrap();
    assert_error(world.reply(finish), &Error::OutcomeUnknown(t));

    let mut world = World::ready(&[&[1]]);
    let (t, finish) = committing(&mut world);
    world.close(world.master());
    world.ask(Call::Close).unwrap();
    assert_error(world.reply(finish), &Error::OutcomeUnknown(t));
    assert_eq!(world.engine.app.pending_count(), 0);
}

/// The master answers for another transaction: it cannot be believed, so it is asked again.
#[test]
fn answer_for_another_transaction() {
    let mut world = World::ready(&[&[1]]);
    let t = voted(&mut world);
    let finish = world.call(Call::Finish { ttid: t });
    let request = world.next_to_master();
    world.answer(&request, Packet::AnswerTransactionFinished { ttid: ttid(7), tid: tid(110) });
    assert!(!world.is_replied(finish));
    assert!(!world.has_conn(master_address()));
    world.sent.clear();
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    let request = world.next();
    assert_eq!(request.packet, Packet::AskFinalTID { ttid: t });
    world.answer(&request, Packet::AnswerFinalTID { tid: None });
    assert_error(world.reply(finish), &Error::NotCommitted(t));
}

/// The master refuses the commit.
#[test]
fn refused_commit() {
    let mut world = World::ready(&[&[1]]);
    let t = voted(&mut world);
    let finish = world.call(Call::Finish { ttid: t });
    let request = world.next_to_master();
    world.error(&request, ErrorCode::IncompleteTransaction);
    assert_error(world.reply(finish), &Error::Incomplete);
    assert_eq!(world.engine.app.pending_count(), 0);
}

/// The master is lost while it decides about storages that failed.
#[test]
fn lost_during_the_decision() {
    let mut world = World::ready(&[&[1, 2]]);
    let t = world.begin(101);
    let call = world.store(t, 1, 50, b"x");
    world.reply(call).unwrap();
    world.accept_storage(1);
    world.close(world.conn(address(2)));
    let request = world.next_to(1);
    world.answer(&request, Packet::AnswerStoreObject { conflict: None });
    world.sent.clear();
    let vote = world.vote(t);
    let request = world.next();
    world.answer(&request, Packet::AnswerStoreTransaction {});
    assert!(matches!(world.next().packet, Packet::FailedVote { .. }));
    world.close(world.master());
    assert_error(world.reply(vote), &Error::MasterLost);
}
