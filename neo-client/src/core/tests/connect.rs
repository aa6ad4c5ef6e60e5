// SPDX-License-Identifier: GPL-2.0-or-later
//! Becoming ready, being refused, reconnecting, closing.

use super::*;

/// Nothing is opened before the first call; then the client says who it is, and is ready once it
/// knows the nodes, the table and the last tid.
#[test]
fn first_call_connects() {
    let mut world = World::new(&[&[1], &[1]]);
    world.assert_silent();
    assert_eq!(world.last_known_tid(), None);
    let call = world.call(Call::Connect);
    world.accept_master();
    assert!(matches!(world.reply(call), Ok(Answer::Partitions(2))));
    assert_eq!(world.last_known_tid(), Some(tid(100)));
    world.assert_silent();
}

/// A read-only client says so; it begins no transaction.
#[test]
fn read_only_clients_say_so() {
    let mut world = World::with_options(&[&[1]], |options| options.read_only = true);
    world.call(Call::Connect);
    let request = world.next();
    let Packet::RequestIdentification { extra, .. } = request.packet else { panic!("{request:?}") };
    assert_eq!(extra.0, [(Bytes::from("read_only"), neo_common::protocol::Value::Bool(true))]);
    let refused = Error::ReadOnly(String::new());
    assert_error(world.ask(Call::Begin { tid: None }), &refused);
    assert_error(world.ask(Call::NewOid), &refused);
}

/// A wrong name is told to all who wait, and the search stops until the next call.
#[test]
fn refusals_are_told() {
    let mut world = World::new(&[&[1]]);
    let calls = [world.call(Call::Connect), world.load(1, None)];
    let request = world.next();
    let message = String::from("invalid cluster name");
    let code = ErrorCode::ProtocolError;
    world.answer(&request, Packet::Error { code, message: message.clone() });
    for call in calls {
        assert_error(world.reply(call), &Error::Refused(message.clone()));
    }
    assert!(!world.has_conn(master_address()));
    world.sleep(Duration::from_secs(10));
    world.assert_silent();
    let call = world.call(Call::Connect);
    world.accept_master();
    assert!(world.is_replied(call));
}

/// A cluster that is backing up only accepts read-only clients.
#[test]
fn read_only_cluster() {
    let mut world = World::new(&[&[1]]);
    let call = world.call(Call::Connect);
    let request = world.next();
    world.error(&request, ErrorCode::ReadOnlyAccess);
    assert!(matches!(failure(world.reply(call)), Error::ReadOnly(_)));
    assert!(!world.has_conn(master_address()), "upstream does not close by itself");
}

/// A cluster that is not ready, or not operational, is tried again after a second.
#[test]
fn clusters_that_are_not_ready_are_waited_for() {
    let mut world = World::new(&[&[1]]);
    let call = world.call(Call::Connect);
    let request = world.next();
    world.error(&request, ErrorCode::NotReady);
    world.assert_silent();
    world.sleep(Duration::from_secs(1));
    let request = world.next();
    let accept = Packet::AcceptIdentification {
        node_type: NodeType::Master,
        my_nid: Some(master_nid()),
        your_nid: Some(me()),
    };
    world.answer(&request, accept);
    world.node_information(request.conn, &[1]);
    let rows = world.rows.clone();
    world.notify(request.conn, Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
    let last = world.next();
    world.answer(&last, Packet::AnswerLastTransaction { tid: tid(1) });
    assert!(!world.has_conn(master_address()), "storage 1 is down");
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    assert!(world.is_replied(call));
}

/// With a timeout, calls fail when no master is found; the next ones wait again.
#[test]
fn unreachable_masters() {
    let mut world = World::with_options(&[&[1]], |options| {
        options.connect_timeout = Some(Duration::from_secs(5));
    });
    world.refusing.push(master_address());
    let call = world.load(1, None);
    world.sleep(Duration::from_secs(4));
    assert!(!world.is_replied(call));
    world.sleep(Duration::from_secs(2));
    assert_error(world.reply(call), &Error::Unreachable);
    world.refusing.clear();
    let call = world.call(Call::Connect);
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    assert!(world.is_replied(call));
    world.sleep(Duration::from_secs(10));
}

/// Without timeout, the search goes on for ever, an attempt per second.
#[test]
fn masters_are_waited_for() {
    let mut world = World::new(&[&[1]]);
    world.refusing.push(master_address());
    let call = world.call(Call::Connect);
    world.sleep(Duration::from_secs(3600));
    assert!(!world.is_replied(call));
    world.refusing.clear();
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    assert!(world.is_replied(call));
}

/// Reserved oids are given one by one, and given up with the connection.
#[test]
fn oids_are_reserved() {
    let mut world = World::ready(&[&[1]]);
    let calls: Vec<CallId> = (0..3).map(|_| world.call(Call::NewOid)).collect();
    let request = world.next();
    assert_eq!(request.packet, Packet::AskNewOIDs { count: 100 });
    world.answer(&request, Packet::AnswerNewOIDs { oids: vec![oid(8), oid(9)] });
    let given = |reply| match reply {
        Ok(Answer::Oid(oid)) => oid,
        other => panic!("{other:?}"),
    };
    assert_eq!(given(world.reply(calls[0])), oid(8));
    assert_eq!(given(world.reply(calls[1])), oid(9));
    assert!(!world.is_replied(calls[2]));
    let request = world.next();
    world.answer(&request, Packet::AnswerNewOIDs { oids: vec![oid(10), oid(11)] });
    assert_eq!(given(world.reply(calls[2])), oid(10));
    assert_eq!(given(world.ask(Call::LastOid)), oid(10));
    world.close(world.master());
    world.sleep(Duration::from_secs(1));
    world.accept_master();
    let call = world.call(Call::NewOid);
    let request = world.next();
    world.answer(&request, Packet::AnswerNewOIDs { oids: vec![oid(20)] });
    assert_eq!(given(world.reply(call)), oid(20));
    let call = world.call(Call::NewOid);
    let request = world.next();
    world.error(&request, ErrorCode::ReadOnlyAccess);
    assert!(matches!(failure(world.reply(call)), Error::ReadOnly(_)));
}

/// A node that is not running any more is not talked to.
#[test]
fn connections_to_stopped_storages_are_closed() {
    let mut world = World::ready(&[&[1, 2]]);
    let call = world.load(1, None);
    let first = if world.has_conn(address(1)) { 1 } else { 2 };
    world.accept_storage(first);
    assert_eq!(world.next_to(first).packet, ask_object(1, 101));
    world.node_information(world.master(), &[first]);
    assert!(!world.has_conn(address(first)));
    world.accept_storage(3 - first);
    let request = world.next_to(3 - first);
    world.answer(&request, answer_object(1, 50, None));
    assert_eq!(world.loaded(call), record(1, 50, None));
}

/// Closing fails what is under way and what comes next.
#[test]
fn close_fails_everything() {
    let mut world = World::ready(&[&[1]]);
    let t = world.begin(101);
    let store = world.store(t, 1, 0, b"x");
    assert!(matches!(world.reply(store), Ok(Answer::Done)), "there is room for more");
    let wait = world.call(Call::WaitStores { ttid: t });
    let calls = [
        wait,
        world.load(1, None),
        world.load(1, None),
        world.call(Call::NewOid),
        world.call(Call::Sync),
        world.call(Call::Begin { tid: None }),
    ];
    assert!(matches!(world.ask(Call::Close), Ok(Answer::Done)));
    for call in calls {
        assert_error(world.reply(call), &Error::Closed);
    }
    assert!(!world.has_conn(master_address()) && !world.has_conn(address(1)));
    let call = world.load(1, None);
    assert_error(world.reply(call), &Error::Closed);
    assert!(matches!(world.ask(Call::Abort { ttid: t }), Ok(Answer::Done)));
    world.sleep(Duration::from_secs(100));
    assert_eq!(world.engine.app.pending_count(), 0);
    assert!(world.replies.is_empty());
    world.sent.clear();
    assert_eq!(world.engine.deadline(), None);
}

/// What no master would send closes the connection, and nothing else.
#[test]
fn nonsense_of_a_master_is_survived() {
    let nonsense = [
        Packet::NotifyPartitionChanges { ptid: 1, replicas: 0, changes: vec![] },
        Packet::NotifyNodeInformation { timestamp: f64::NAN, nodes: vec![] },
        Packet::SendPartitionTable { ptid: Some(2), replicas: 0, rows: rows(&[&[1], &[1]]) },
        Packet::AskBeginTransaction { tid: None },
    ];
    for packet in nonsense {
        let mut world = World::ready(&[&[1]]);
        let conn = world.master();
        world.notify(conn, packet);
        assert!(!world.peers.contains_key(&conn));
        world.sent.clear();
        world.sleep(Duration::from_secs(1));
        world.accept_master();
    }
}
