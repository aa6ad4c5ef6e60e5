// SPDX-License-Identifier: GPL-2.0-or-later
//! Several masters: who becomes primary, and what happens when it is gone.

use std::time::Duration;

use neo_common::engine::ConnId;
use neo_common::protocol::{ClusterState, ErrorCode, NodeState, NodeType, Packet};
use neo_common::types::NodeId;

use super::harness::*;
use crate::app::Job;
use crate::cluster::Startup;
use crate::phase::Phase;

fn masters(ports: &[u16]) -> Harness {
    let mut options = options(2, 0);
    options.masters = ports.iter().map(|port| address(*port)).collect();
    Harness::new(options)
}
/// `RequestIdentification` of another master, primary since this many seconds after this one (which
/// began at once), or secondary.
fn request(port: u16, seconds: Option<f64>) -> Packet {
    let mut request = Harness::request(NodeType::Master, None, Some(port));
    if let Packet::RequestIdentification { id_timestamp, .. } = &mut request {
        *id_timestamp = seconds.map(|seconds| START_US as f64 / 1e6 + seconds);
    }
    request
}
#[track_caller]
fn accept(h: &mut Harness, conn: ConnId, my_nid: NodeId, your_nid: NodeId) {
    let (id, _) = h.until(conn, "RequestIdentification");
    let (node_type, my_nid, your_nid) = (NodeType::Master, Some(my_nid), Some(your_nid));
    h.answer(conn, id, Packet::AcceptIdentification { node_type, my_nid, your_nid });
}
fn entry(port: u16, nid: NodeId, state: NodeState) -> neo_common::protocol::NodeEntry {
    (NodeType::Master, Some(address(port)), Some(nid), state, Some(1.0))
}
fn is_primary(h: &Harness) -> bool {
    h.engine.app.cluster.primary_since.is_some()
}

/// Each other master is tried, again and again, with the time at which the election began.
#[test]
fn other_masters_are_tried() {
    let mut h = masters(&[20_001, 20_002, 10_000]);
    assert_eq!(h.connects.len(), 2);
    let conn = h.accept(20_001);
    let (_, packet) = h.until(conn, "RequestIdentification");
    let Packet::RequestIdentification { node_type, nid, address, id_timestamp, .. } = packet else {
        unreachable!()
    };
    assert_eq!(
        (node_type, nid, address),
        (NodeType::Master, Some(m(1)), Some(super::harness::address(10_000)))
    );
    assert_eq!(id_timestamp, Some(START_US as f64 / 1e6));
    // One that is not there is tried again a second later.
    h.refuse(20_002);
    assert!(h.connects.is_empty());
    h.advance(Duration::from_secs(1));
    assert_eq!(h.connects.len(), 1);
    assert!(is_primary(&h));
}

/// The other one is primary since longer: it accepts us, and that is how we know.
#[test]
fn to_be_accepted_is_to_have_lost() {
    let mut h = masters(&[20_001, 20_002]);
    let storage = h.recovering(None, 1, None);
    let conn = h.accept(20_001);
    accept(&mut h, conn, m(1), m(3));
    assert!(matches!(h.engine.app.phase, Phase::Secondary(_)));
    assert_eq!(h.engine.app.cluster.own_nid(), Some(m(3)));
    assert!(h.is_closed(storage), "it will find the primary");
    assert!(!h.is_closed(conn) && h.connects.is_empty());
    assert!(!is_primary(&h));

    // The primary tells who is there.
    let nodes =
        vec![entry(10_000, m(3), NodeState::Running), entry(20_001, m(1), NodeState::Running)];
    h.send(conn, Packet::NotifyNodeInformation { timestamp: 5.0, nodes });
    // Storages are sent there.
    let storage = h.connect();
    h.send(storage, Harness::request(NodeType::Storage, None, Some(1)));
    let packet = h.recv(storage);
    let Packet::NotPrimaryMaster { primary, masters } = packet else { panic!("{packet:?}") };
    assert_eq!(masters[primary.unwrap() as usize], address(20_001));
    assert!(masters.contains(&address(20_002)), "the operator listed it");
    assert!(h.is_closed(storage));
    // With the wrong name, they are not.
    let alien = h.connect();
    let mut request = Harness::request(NodeType::Storage, None, Some(1));
    if let Packet::RequestIdentification { cluster, .. } = &mut request {
        "other".clone_into(cluster);
    }
    let expected = (ErrorCode::ProtocolError, "invalid cluster name".into());
    assert_eq!(h.ask_error(alien, request), expected);
    // The cluster stops, and so do we.
    h.send(conn, Packet::NotifyClusterInformation { state: ClusterState::Running });
    assert_eq!(h.exit, None);
    h.send(conn, Packet::NotifyClusterInformation { state: ClusterState::Stopping });
    assert_eq!(h.exit, Some(0));
}

/// A master that began before us connects: we follow it, on a connection of our own.
#[test]
fn the_older_one_wins() {
    let mut h = masters(&[20_001]);
    let conn = h.connect();
    h.send(conn, request(20_001, Some(-1.0)));
    assert!(h.is_closed(conn));
    assert_eq!(h.all(conn), []);
    assert!(!is_primary(&h));
    let conn = h.accept(20_001);
    let (_, packet) = h.until(conn, "RequestIdentification");
    assert!(matches!(packet, Packet::RequestIdentification { id_timestamp: None, .. }));
}

/// The same time: addresses decide, as texts then by port.
#[test]
fn ties_are_decided_by_address() {
    for (port, wins) in [(9_999, true), (20_001, false)] {
        let mut h = masters(&[]);
        let conn = h.connect();
        h.send(conn, request(port, Some(0.0)));
        assert_eq!(is_primary(&h), !wins);
        assert_eq!(h.is_closed(conn), wins);
    }
}

/// A younger one is accepted as secondary, although it is not in our list; if we were connecting to
/// it, that connection is given up.
#[test]
fn younger_masters_become_secondary() {
    let mut h = masters(&[20_001]);
    h.jobs.clear();
    let ours = h.accept(20_001);
    let admin = h.admin();
    for (port, nid) in [(20_001, m(2)), (20_009, m(3))] {
        let conn = h.connect();
        let answer = h.ask(conn, request(port, Some(1.0)));
        let Packet::AcceptIdentification { my_nid, your_nid, .. } = answer else { panic!() };
        assert_eq!((my_nid, your_nid), (Some(m(1)), Some(nid)));
        let Packet::NotifyNodeInformation { nodes, .. } = h.recv(conn) else { panic!() };
        assert!(nodes.iter().all(|entry| entry.0 == NodeType::Master));
    }
    assert!(h.is_closed(ours) && h.connects.is_empty());
    let expected = vec![address(10_000), address(20_001), address(20_009)];
    assert_eq!(h.jobs, [Job::SaveMasters(expected)]);

    // They are told the state, and killed like storages.
    let secondary = h.connect();
    h.ask(secondary, request(20_002, None));
    h.all(secondary);
    let storage = h.recovering(None, 1, None);
    h.start(admin);
    h.verify(&[storage]);
    let verifying = Packet::NotifyClusterInformation { state: ClusterState::Verifying };
    assert_eq!(h.recv(secondary), verifying);
    let killed = Packet::SetNodeState { nid: m(4), state: NodeState::Down };
    assert_eq!(h.ask_error(admin, killed).1, "state changed");
    let (_, packet) = h.until(secondary, "NotifyNodeInformation");
    let Packet::NotifyNodeInformation { nodes, .. } = packet else { unreachable!() };
    assert_eq!((nodes[0].2, nodes[0].3), (Some(m(4)), NodeState::Down));
    h.close(secondary);
    assert_eq!(h.engine.app.cluster.nm.by_nid(m(4)).unwrap().state(), NodeState::Down);
}

/// Told by a secondary who the primary is.
#[test]
fn secondaries_tell_who_is_primary() {
    let mut h = masters(&[20_001]);
    let conn = h.accept(20_001);
    let masters = vec![address(20_001), address(20_002), address(10_000)];
    // It does not know.
    h.send(conn, Packet::NotPrimaryMaster { primary: None, masters: masters.clone() });
    assert!(is_primary(&h));
    // There is a new one.
    assert_eq!(h.connects.front().unwrap().1, address(20_002));
    // It believes that we are: nothing to learn.
    h.send(conn, Packet::NotPrimaryMaster { primary: Some(2), masters: masters.clone() });
    assert!(is_primary(&h));
    // Out of range.
    h.send(conn, Packet::NotPrimaryMaster { primary: Some(3), masters: masters.clone() });
    assert!(h.is_closed(conn) && is_primary(&h));
    h.advance(Duration::from_secs(1));
    let conn = h.accept(20_001);
    h.send(conn, Packet::NotPrimaryMaster { primary: Some(1), masters });
    assert!(!is_primary(&h));
    // The connection to it was in progress: it begins again.
    assert_eq!(h.connects.len(), 1);
    assert_eq!(h.connects[0].1, address(20_002));
}

/// The primary is lost: it is tried again, then the others, then we take over. The cluster is not
/// restarted without all nodes.
#[test]
fn fail_over() {
    let mut h = masters(&[20_001, 20_002]);
    let conn = h.accept(20_001);
    accept(&mut h, conn, m(1), m(2));
    h.advance(Duration::from_secs(10));
    h.close(conn);
    assert_eq!(h.connects.len(), 1);
    h.refuse(20_001);
    assert!(!is_primary(&h));
    // Somebody who wants to know is told that we do not.
    let storage = h.connect();
    h.send(storage, Harness::request(NodeType::Storage, None, Some(1)));
    assert!(matches!(h.recv(storage), Packet::NotPrimaryMaster { primary: None, .. }));
    h.refuse(20_002);
    assert!(is_primary(&h));
    assert_eq!(h.engine.app.cluster.own_nid(), Some(m(2)), "ids stay");
    assert_eq!(h.engine.app.cluster.startup, Startup::WhenComplete);
    let since = h.engine.app.cluster.primary_since.unwrap();
    assert!(since >= START_US as f64 / 1e6 + 10.0);
}

/// While we look for a primary, a master that plays this role tells us.
#[test]
fn a_primary_that_connects_is_followed() {
    let mut h = masters(&[20_001, 20_002]);
    let conn = h.accept(20_001);
    accept(&mut h, conn, m(1), m(2));
    h.advance(Duration::from_secs(10));
    h.close(conn);
    let other = h.connect();
    h.send(other, request(20_002, Some(5.0)));
    assert!(h.is_closed(other));
    assert_eq!(h.connects.len(), 1);
    let conn = h.accept(20_002);
    accept(&mut h, conn, m(3), m(2));
    // Not any more once it is known.
    let third = h.connect();
    h.send(third, request(20_003, Some(6.0)));
    let Packet::NotPrimaryMaster { primary: Some(index), masters } = h.recv(third) else {
        panic!()
    };
    assert_eq!(masters[index as usize], address(20_002));
}

/// What a primary tells that makes no sense, or that we should exit.
#[test]
fn notifications_of_the_primary() {
    let start = || {
        let mut h = masters(&[20_001]);
        let conn = h.accept(20_001);
        accept(&mut h, conn, m(1), m(2));
        (h, conn)
    };
    let own = entry(10_000, m(2), NodeState::Running);
    let notify = |timestamp, nodes| Packet::NotifyNodeInformation { timestamp, nodes };
    let storage = (NodeType::Storage, Some(address(1)), Some(s(1)), NodeState::Running, None);
    for nodes in [
        vec![],
        vec![own, storage],
        vec![entry(10_000, m(5), NodeState::Running)],
        vec![entry(20_005, m(2), NodeState::Running)],
    ] {
        let (mut h, conn) = start();
        h.send(conn, notify(1.0, nodes));
        assert!(h.is_closed(conn));
        assert_eq!(h.exit, None);
    }
    // Not in order.
    let (mut h, conn) = start();
    h.send(conn, notify(2.0, vec![own]));
    h.send(conn, notify(2.0, vec![own]));
    assert!(h.is_closed(conn));
    // Killed, or forgotten by address.
    for nodes in [
        vec![entry(10_000, m(2), NodeState::Down)],
        vec![(NodeType::Master, Some(address(10_000)), None, NodeState::Unknown, None)],
    ] {
        let (mut h, conn) = start();
        h.send(conn, notify(1.0, nodes));
        assert_eq!(h.exit, Some(0));
    }
}

/// Answers to our identification that make no sense.
#[test]
fn wrong_answers_to_identification() {
    for (node_type, my_nid, your_nid) in [
        (NodeType::Storage, Some(m(1)), Some(m(2))),
        (NodeType::Master, None, Some(m(2))),
        (NodeType::Master, Some(m(1)), None),
        (NodeType::Master, Some(m(1)), Some(m(1))),
        (NodeType::Master, Some(s(1)), Some(m(1))),
        (NodeType::Master, Some(m(1)), Some(s(1))),
    ] {
        let mut h = masters(&[20_001]);
        let conn = h.accept(20_001);
        let (id, _) = h.until(conn, "RequestIdentification");
        h.answer(conn, id, Packet::AcceptIdentification { node_type, my_nid, your_nid });
        assert!(h.is_closed(conn) && is_primary(&h));
    }
}
