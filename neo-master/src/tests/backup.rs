// SPDX-License-Identifier: GPL-2.0-or-later
//! Backup mode: what the recorded session does not show.

use std::time::Duration;

use neo_common::engine::ConnId;
use neo_common::protocol::{
    CellState, ClusterState, ErrorCode, Map, NodeState, NodeType, Packet, Rows, Value,
};
use neo_common::types::Tid;

use super::harness::*;
use crate::app::{Options, OptionsError, Upstream};
use crate::cluster::Startup;
use crate::{Master, phase::Phase};

const PORT: u16 = 30_001;

fn backup_options(partitions: u32, replicas: u32) -> Options {
    let upstream = Some(Upstream { cluster: "golf".into(), masters: vec![address(PORT)] });
    Options { upstream, ..options(partitions, replicas) }
}
fn set(h: &mut Harness, admin: ConnId, state: ClusterState) -> (ErrorCode, String) {
    h.ask_error(admin, Packet::SetClusterState { state })
}
fn table(partitions: u32) -> Rows {
    vec![vec![(s(1), CellState::UpToDate)]; partitions as usize]
}
fn state(h: &Harness) -> ClusterState {
    h.engine.app.cluster.state
}
/// Upstream accepts us, and is at this tid.
#[track_caller]
fn follow(h: &mut Harness, partitions: u32, tid: Tid) -> ConnId {
    let conn = h.accept(PORT);
    let (id, request) = h.until(conn, "RequestIdentification");
    let Packet::RequestIdentification { node_type, nid: _, cluster, extra, .. } = request else {
        unreachable!()
    };
    assert_eq!((node_type, cluster.as_str()), (NodeType::Client, "golf"));
    assert_eq!(extra.0, [("backup".into(), Value::text(CLUSTER))]);
    let (my_nid, your_nid) = (Some(m(1)), Some(c(7)));
    let node_type = NodeType::Master;
    h.answer(conn, id, Packet::AcceptIdentification { node_type, my_nid, your_nid });
    let run = NodeState::Running;
    let nodes = vec![
        (NodeType::Client, None, Some(c(7)), run, Some(3.0)),
        (NodeType::Master, Some(address(PORT)), Some(m(1)), run, None),
        (NodeType::Storage, Some(address(30_011)), Some(s(1)), run, Some(1.0)),
    ];
    h.send(conn, Packet::NotifyNodeInformation { timestamp: 10.0, nodes });
    let rows = table(partitions);
    h.send(conn, Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
    assert_eq!(state(h), ClusterState::BackingUp);
    let (id, _) = h.until(conn, "AskLastTransaction");
    h.answer(conn, id, Packet::AnswerLastTransaction { tid });
    let (id, _) = h.until(conn, "AskPackOrders");
    h.answer(conn, id, Packet::AnswerPackOrders { orders: vec![] });
    conn
}
/// Tid, cluster and partitions of an order to replicate.
#[track_caller]
fn order(h: &mut Harness, storage: ConnId) -> (Tid, String, Vec<(u32, Option<u16>)>) {
    let (_, packet) = h.until(storage, "Replicate");
    let Packet::Replicate { tid, upstream_name, sources: Map(sources) } = packet else {
        unreachable!()
    };
    let sources = sources.into_iter().map(|(p, address)| (p, address.map(|a| a.port())));
    (tid, upstream_name, sources.collect())
}
fn done(h: &mut Harness, storage: ConnId, partition: u32, tid: Tid) {
    h.send(storage, Packet::NotifyReplicationDone { partition, tid });
}

#[test]
fn options_that_make_no_sense() {
    let upstream = |cluster: &str, masters: &[u16]| Upstream {
        cluster: cluster.into(),
        masters: masters.iter().map(|port| address(*port)).collect(),
    };
    let check = |upstream, backup, expected| {
        let options = Options { upstream, backup, ..options(1, 0) };
        assert_eq!(Master::new(options).map(drop), Err(expected));
    };
    check(Some(upstream(CLUSTER, &[1])), false, OptionsError::SameUpstream);
    check(Some(upstream("golf", &[])), false, OptionsError::NoUpstreamMaster);
    check(None, true, OptionsError::NoUpstream);
}

/// `--backup` on an empty database: no transaction was ever possible before.
#[test]
fn backup_at_once() {
    let options = Options { backup: true, ..backup_options(1, 0) };
    let mut h = Harness::new(options);
    let admin = h.admin();
    let storage = h.recovering(None, 1, None);
    h.start(admin);
    for name in ["AskLockedTransactions", "AskLastIDs", "AskPackOrders"] {
        let (id, _) = h.until(storage, name);
        let answer = match name {
            "AskLastIDs" => no_ids(),
            "AskPackOrders" => Packet::AnswerPackOrders { orders: vec![] },
            _ => Packet::AnswerLockedTransactions { transactions: Map::default() },
        };
        h.answer(storage, id, answer);
    }
    assert_eq!(h.until(storage, "StartOperation").1, Packet::StartOperation { backup: true });
    assert_eq!(state(&h), ClusterState::StartingBackup);
    assert!(h.connects.is_empty(), "the storage is not ready");
    h.send(storage, Packet::NotifyReady {});
    let tid = Tid::new(100);
    follow(&mut h, 1, tid);
    assert_eq!(order(&mut h, storage), (tid, "golf".into(), vec![(0, Some(30_011))]));
}

/// A backup database without upstream cluster.
#[test]
fn storages_with_a_backup_tid_need_an_upstream_cluster() {
    let mut h = Harness::new(options(1, 0));
    let storage = h.storage(Some(s(1)), 1);
    let (id, _) = h.until(storage, "AskRecovery");
    let backup_tid = Some(Tid::new(7));
    h.answer(storage, id, Packet::AnswerRecovery { ptid: Some(3), backup_tid, truncate_tid: None });
    let (id, _) = h.until(storage, "AskPartitionTable");
    h.answer(storage, id, Packet::AnswerPartitionTable { ptid: 3, replicas: 0, rows: table(1) });
    let (id, _) = h.until(storage, "AskLastIDs");
    h.answer(storage, id, no_ids());
    let (id, _) = h.until(storage, "AskPackOrders");
    h.answer(storage, id, Packet::AnswerPackOrders { orders: vec![] });
    assert_eq!(h.exit, Some(1));
}

/// Upstream is lost: clients are disconnected, and it is looked for again. Nothing that was
/// complete is fetched again from it.
#[test]
fn upstream_lost() {
    let (mut h, admin, storages) = Harness::running_with(backup_options(2, 0), 1);
    assert_eq!(set(&mut h, admin, ClusterState::StartingBackup).0, ErrorCode::Ack);
    let storage = storages[0];
    let tid = Tid::new(100);
    let upstream = follow(&mut h, 2, tid);
    let wanted = vec![(0, Some(30_011)), (1, Some(30_011))];
    assert_eq!(order(&mut h, storage), (tid, "golf".into(), wanted));
    done(&mut h, storage, 0, tid);
    let client = h.client_with(vec![("read_only", Value::Bool(true))]);
    let last = h.ask(client, Packet::AskLastTransaction {});
    assert_eq!(last, Packet::AnswerLastTransaction { tid: Tid::ZERO }, "not everywhere");
    done(&mut h, storage, 1, tid);
    assert_eq!(h.ask(client, Packet::AskLastTransaction {}), Packet::AnswerLastTransaction { tid });
    // A transaction that touches one partition: the other one is complete.
    let second = Tid::new(102);
    h.send(upstream, Packet::InvalidatePartitions { tid: second, partitions: vec![] });
    assert_eq!(order(&mut h, storage), (second, String::new(), vec![(1, None)]));
    assert_eq!(order(&mut h, storage).2, [(0, Some(30_011))]);
    h.advance(Duration::from_secs(5));
    h.close(upstream);
    assert!(h.is_closed(client));
    assert_eq!(state(&h), ClusterState::StartingBackup);
    assert_eq!(h.engine.app.cluster.backup_tid, Some(Tid::new(101)));
    let late = h.connect();
    let request = Harness::request(NodeType::Client, None, None);
    assert_eq!(h.ask_error(late, request).0, ErrorCode::NotReady);
    h.all(storage);
    follow(&mut h, 2, second);
    assert_eq!(order(&mut h, storage), (second, "golf".into(), vec![(0, Some(30_011))]));
}

/// What upstream tells that makes no sense.
#[test]
fn wrong_upstream() {
    let start = || {
        let (mut h, admin, _) = Harness::running_with(backup_options(2, 0), 1);
        set(&mut h, admin, ClusterState::StartingBackup);
        let conn = follow(&mut h, 2, Tid::new(100));
        (h, conn)
    };
    for packet in [
        Packet::SendPartitionTable { ptid: Some(2), replicas: 0, rows: table(3) },
        Packet::InvalidatePartitions { tid: Tid::new(100), partitions: vec![] },
        Packet::InvalidatePartitions { tid: Tid::MAX, partitions: vec![] },
        Packet::NotifyPartitionChanges { ptid: 1, replicas: 0, changes: vec![] },
        Packet::StartOperation { backup: false },
    ] {
        let (mut h, conn) = start();
        h.send(conn, packet);
        assert!(h.is_closed(conn));
        assert_eq!(state(&h), ClusterState::StartingBackup);
    }
    // Partitions that do not exist are ignored; upstream is about to close.
    let (mut h, conn) = start();
    h.send(conn, Packet::InvalidatePartitions { tid: Tid::new(101), partitions: vec![9] });
    h.send(conn, Packet::StopOperation {});
    assert!(!h.is_closed(conn));
}

/// Upstream was truncated: the mode is left, in case this cluster has to be truncated too.
#[test]
fn upstream_truncated() {
    let (mut h, admin, storages) = Harness::running_with(backup_options(1, 0), 1);
    let client = h.client();
    let last = h.commit(client, &storages, &[1]);
    let text = set(&mut h, admin, ClusterState::StartingBackup).1;
    assert!(text.contains("connected clients"), "{text}");
    h.close(client);
    assert_eq!(set(&mut h, admin, ClusterState::StartingBackup).0, ErrorCode::Ack);
    h.all(storages[0]);
    follow_until_left(&mut h, last.previous().unwrap());
    let names = h.names(storages[0]);
    let expected = ["StopOperation", "Truncate", "NotifyNodeInformation"];
    assert_eq!(names.iter().filter(|name| expected.contains(*name)).count(), 3, "{names:?}");
    assert_eq!(state(&h), ClusterState::Recovering);
    assert_eq!(h.engine.app.cluster.startup, Startup::Restart, "nothing is lost");
}
fn follow_until_left(h: &mut Harness, tid: Tid) {
    let conn = h.accept(PORT);
    let (id, _) = h.until(conn, "RequestIdentification");
    let (my_nid, your_nid) = (Some(m(1)), Some(c(7)));
    let node_type = NodeType::Master;
    h.answer(conn, id, Packet::AcceptIdentification { node_type, my_nid, your_nid });
    h.send(conn, Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows: table(1) });
    let (id, _) = h.until(conn, "AskLastTransaction");
    h.answer(conn, id, Packet::AnswerLastTransaction { tid });
    assert!(h.is_closed(conn));
}

/// Cells that are late complete each other before the truncation. The operator may change his mind.
#[test]
fn stopping_waits_for_late_cells() {
    let (mut h, admin, storages) = Harness::running_with(backup_options(1, 1), 2);
    set(&mut h, admin, ClusterState::StartingBackup);
    let tid = Tid::new(100);
    let upstream = follow(&mut h, 1, tid);
    let is_primary = |packets: &[Packet]| {
        packets.iter().any(
            |p| matches!(p, Packet::Replicate { upstream_name, .. } if upstream_name == "golf"),
        )
    };
    let received = storages.iter().map(|storage| h.all(*storage)).collect::<Vec<_>>();
    let first = usize::from(!is_primary(&received[0]));
    let (primary, other) = (storages[first], storages[1 - first]);
    done(&mut h, primary, 0, tid);
    let (_, name, sources) = order(&mut h, other);
    assert_eq!((name.as_str(), sources), ("", vec![(0, Some(10_001 + first as u16))]));
    assert_eq!(set(&mut h, admin, ClusterState::StoppingBackup).0, ErrorCode::Ack);
    assert!(h.is_closed(upstream));
    assert_eq!(state(&h), ClusterState::StoppingBackup);
    let conn = h.connect();
    let request = Harness::request(NodeType::Storage, None, Some(7));
    assert_eq!(h.ask_error(conn, request).0, ErrorCode::NotReady);
    assert_eq!(set(&mut h, admin, ClusterState::StartingBackup).0, ErrorCode::Ack);
    assert_eq!(state(&h), ClusterState::StartingBackup);
    assert_eq!(set(&mut h, admin, ClusterState::StoppingBackup).0, ErrorCode::Ack);
    done(&mut h, other, 0, tid);
    assert_eq!(h.until(other, "Truncate").1, Packet::Truncate { tid });
    assert!(matches!(h.engine.app.phase, Phase::Recovery(_)));
    assert_eq!(h.engine.app.cluster.backup_tid, None);
}

/// The cell that fetches from upstream is lost: the other one takes over.
#[test]
fn primary_cell_lost() {
    let (mut h, admin, storages) = Harness::running_with(backup_options(1, 1), 2);
    set(&mut h, admin, ClusterState::StartingBackup);
    let tid = Tid::new(100);
    follow(&mut h, 1, tid);
    let is_order = |packet: &Packet| matches!(packet, Packet::Replicate { .. });
    let first = usize::from(!h.all(storages[0]).iter().any(is_order));
    h.close(storages[first]);
    let expected = (tid, "golf".into(), vec![(0, Some(30_011))]);
    assert_eq!(order(&mut h, storages[1 - first]), expected);
    // A report about the future or about nothing closes the connection.
    done(&mut h, storages[1 - first], 0, Tid::new(101));
    assert!(h.is_closed(storages[1 - first]));
}
