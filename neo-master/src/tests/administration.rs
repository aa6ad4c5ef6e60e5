// SPDX-License-Identifier: GPL-2.0-or-later
//! The commands of operators: results and refusals are the texts of upstream.

use neo_common::engine::ConnId;
use neo_common::protocol::{CellState, ClusterState, ErrorCode, Map, NodeState, Packet};
use neo_common::types::{NodeId, Tid};

use super::harness::*;
use crate::cluster::Startup;
use crate::phase::Phase;

#[track_caller]
fn denied(h: &mut Harness, admin: ConnId, packet: Packet, text: &str) {
    assert_eq!(h.ask_error(admin, packet), (ErrorCode::Denied, text.into()));
    assert!(!h.is_closed(admin));
}
#[track_caller]
fn acked(h: &mut Harness, admin: ConnId, packet: Packet, text: &str) {
    assert_eq!(h.ask_error(admin, packet), (ErrorCode::Ack, text.into()));
}
fn set_node(nid: NodeId, state: NodeState) -> Packet {
    Packet::SetNodeState { nid, state }
}
fn tweak(dry_run: bool, ignored: &[NodeId]) -> Packet {
    Packet::TweakPartitionTable { dry_run, ignored: ignored.to_vec() }
}
/// Changes in the last `NotifyPartitionChanges`.
#[track_caller]
fn changes(h: &mut Harness, conn: ConnId) -> (u64, String) {
    let (_, packet) = h.until(conn, "NotifyPartitionChanges");
    let Packet::NotifyPartitionChanges { ptid, changes, .. } = packet else { unreachable!() };
    let letter = |state| match state {
        CellState::OutOfDate => 'O',
        CellState::UpToDate => 'U',
        CellState::Feeding => 'F',
        CellState::Discarded => 'D',
        CellState::Corrupted => 'C',
    };
    let change = |(partition, nid, state)| format!("{partition}{nid}{}", letter(state));
    let changes: Vec<String> = changes.into_iter().map(change).collect();
    (ptid, changes.join(" "))
}
fn table(h: &Harness, count: u32) -> String {
    format(&h.engine.app.cluster.pt.table().to_wire(), count)
}
/// A replication that succeeds.
#[track_caller]
fn replicate(h: &mut Harness, storage: ConnId, partition: u32) {
    let partitions = vec![partition];
    h.ask(storage, Packet::AskUnfinishedTransactions { partitions });
    h.send(storage, Packet::NotifyReplicationDone { partition, tid: Tid::ZERO });
}

#[test]
fn cluster_states() {
    let (mut h, admin, _) = Harness::running(2, 0, 1);
    let set = |state| Packet::SetClusterState { state };
    for state in [ClusterState::Running, ClusterState::Recovering, ClusterState::BackingUp] {
        denied(&mut h, admin, set(state), "Invalid state requested");
    }
    for state in [ClusterState::Verifying, ClusterState::StoppingBackup] {
        denied(&mut h, admin, set(state), "Can not switch to this state");
    }
    let text = "No upstream cluster to backup defined in configuration";
    denied(&mut h, admin, set(ClusterState::StartingBackup), text);
    h.client();
    let text = "Can not switch to STARTING_BACKUP state with pending transactions or connected \
                clients";
    denied(&mut h, admin, set(ClusterState::StartingBackup), text);
}

#[test]
fn commands_are_refused_during_recovery() {
    let mut h = Harness::new(options(2, 0));
    let admin = h.admin();
    let text = |name| format!("{name} RPC can not be used in RECOVERING state");
    for (name, packet) in [
        ("addPendingNodes", Packet::AddPendingNodes { nids: vec![] }),
        ("setNumReplicas", Packet::SetNumReplicas { replicas: 1 }),
        ("tweakPartitionTable", tweak(true, &[])),
        ("truncate", Packet::Truncate { tid: Tid::ZERO }),
    ] {
        denied(&mut h, admin, packet, &text(name));
    }
}

/// The part of the recorded session `f-neoctl-commands` that changes the partition table.
#[test]
fn tweak_add_and_replicas() {
    let (mut h, admin, storages) = Harness::running(4, 1, 2);
    let client = h.client();
    let third = h.storage(None, 10_003);
    // Pending nodes are ignored.
    let rows_before = rows("UU UU UU UU");
    let answer = h.ask(admin, tweak(false, &[]));
    assert_eq!(
        answer,
        Packet::AnswerTweakPartitionTable { changed: false, rows: rows_before.clone() }
    );
    acked(&mut h, admin, Packet::AddPendingNodes { nids: vec![s(3)] }, "Nodes added: S3");
    h.ready(&[third]);
    let simulated = h.ask(admin, tweak(true, &[]));
    let Packet::AnswerTweakPartitionTable { changed: true, rows } = &simulated else { panic!() };
    assert_eq!(format(rows, 3), "UU. UFO FUO UU.");
    assert_eq!(table(&h, 3), "UU. UU. UU. UU.", "it was simulated");
    for conn in [admin, client, third] {
        h.all(conn);
    }
    let id = h.send(admin, tweak(false, &[]));
    for conn in [admin, client, third, storages[0]] {
        assert_eq!(changes(&mut h, conn), (2, "1S3O 2S3O 1S2F 2S1F".into()));
    }
    h.check_answered(admin, id, &simulated);
    // Replicated one after the other: FEEDING cells leave.
    replicate(&mut h, third, 1);
    assert_eq!(changes(&mut h, client), (3, "1S3U 1S2D".into()));
    replicate(&mut h, third, 2);
    assert_eq!(changes(&mut h, client), (4, "2S3U 2S1D".into()));
    assert_eq!(table(&h, 3), "UU. U.U .UU UU.");
    // Twice: ignored.
    h.send(third, Packet::NotifyReplicationDone { partition: 2, tid: Tid::ZERO });
    assert!(!h.is_closed(third));
    assert_eq!(h.all(client), []);

    acked(&mut h, admin, Packet::SetNumReplicas { replicas: 0 }, "");
    let (_, packet) = h.until(client, "NotifyPartitionChanges");
    assert_eq!(packet, Packet::NotifyPartitionChanges { ptid: 5, replicas: 0, changes: vec![] });
    for replicas in [-1, 512, i64::MAX] {
        let packet = Packet::SetNumReplicas { replicas };
        denied(&mut h, admin, packet, "invalid number of replicas");
    }
    denied(&mut h, admin, tweak(false, &[s(1), s(2), s(3)]), "Can't remove all nodes.");
    // A cell that the node does not have.
    h.send(third, Packet::NotifyReplicationDone { partition: 0, tid: Tid::ZERO });
    let (_, error) = h.until(third, "Error");
    assert_eq!(error, Packet::error(ErrorCode::ProtocolError, "Non-assigned partition"));
    assert!(h.is_closed(third));
    denied(&mut h, admin, tweak(false, &[]), "tweak: down nodes must be listed explicitly");
    let answer = h.ask(admin, tweak(true, &[s(3)]));
    assert!(matches!(answer, Packet::AnswerTweakPartitionTable { .. }));
}

#[test]
fn kill_and_drop() {
    let (mut h, admin, storages) = Harness::running(2, 1, 2);
    let (nowhere, master) = (s(9), m(1));
    denied(&mut h, admin, set_node(nowhere, NodeState::Down), "unknown node");
    for state in [NodeState::Running, NodeState::Pending] {
        let text = format!("can not switch node to {state} state");
        denied(&mut h, admin, set_node(s(1), state), &text);
    }
    let text = "can not switch node to UNKNOWN state";
    denied(&mut h, admin, set_node(master, NodeState::Unknown), text);
    let text = "can not kill primary master node";
    denied(&mut h, admin, set_node(master, NodeState::Down), text);
    let client = h.client();
    denied(&mut h, admin, set_node(c(1), NodeState::Down), "can not switch node to DOWN state");
    let text = "a running node must be stopped before removal";
    denied(&mut h, admin, set_node(s(1), NodeState::Unknown), text);

    h.all(storages[0]);
    acked(&mut h, admin, set_node(s(1), NodeState::Down), "state changed");
    // It is told, so that it exits.
    let (_, packet) = h.until(storages[0], "NotifyNodeInformation");
    let Packet::NotifyNodeInformation { nodes, .. } = packet else { unreachable!() };
    assert_eq!((nodes[0].2, nodes[0].3), (Some(s(1)), NodeState::Down));
    assert!(h.is_closed(storages[0]));
    // The partition table changes first.
    let names = h.names(client);
    assert_eq!(names, ["NotifyPartitionChanges", "NotifyNodeInformation"]);
    assert_eq!(table(&h, 2), "OU OU");
    acked(&mut h, admin, set_node(s(1), NodeState::Down), "node already in DOWN state");

    let text = "Refuse to drop nodes that contain the only readable copies of partition 0";
    denied(&mut h, admin, set_node(s(2), NodeState::Down), text);
    acked(&mut h, admin, set_node(s(1), NodeState::Unknown), "node permanently removed");
    assert_eq!(changes(&mut h, client), (3, "0S1D 1S1D".into()));
    assert_eq!(table(&h, 2), ".U .U");
    let (_, packet) = h.until(client, "NotifyNodeInformation");
    let Packet::NotifyNodeInformation { nodes, .. } = packet else { unreachable!() };
    assert_eq!((nodes[0].2, nodes[0].3), (Some(s(1)), NodeState::Unknown));
    denied(&mut h, admin, set_node(s(1), NodeState::Unknown), "unknown node");

    // It comes back as a new one.
    let back = h.storage(Some(s(1)), 10_001);
    assert_eq!(h.names(back), ["NotifyNodeInformation", "SendPartitionTable"]);
    acked(&mut h, admin, set_node(s(1), NodeState::Unknown), "state changed");
    assert!(h.is_closed(back));
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

/// A killed storage is not waited for by transactions.
#[test]
fn kill_while_locking() {
    let (mut h, admin, storages) = Harness::running(1, 1, 2);
    let client = h.client();
    let ttid = h.begin(client);
    let id = h.finish(client, ttid, &[1]);
    let tid = h.lock(storages[1]);
    acked(&mut h, admin, set_node(s(1), NodeState::Down), "state changed");
    h.confirm(storages[1], ttid);
    h.check_answered(client, id, &Packet::AnswerTransactionFinished { ttid, tid });
}

/// Upstream makes all cells out-of-date in this case, because no storage runs during recovery.
#[test]
fn kill_during_recovery_does_not_outdate_cells() {
    let (mut h, admin, storages) = Harness::running(1, 1, 3);
    h.close(storages[0]);
    h.close(storages[1]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Recovering);
    let (id, _) = h.until(storages[2], "AskRecovery");
    let recovery = Packet::AnswerRecovery { ptid: Some(2), backup_tid: None, truncate_tid: None };
    h.answer(storages[2], id, recovery);
    let (id, _) = h.until(storages[2], "AskPartitionTable");
    let table = Packet::AnswerPartitionTable { ptid: 2, replicas: 1, rows: rows("OU.") };
    h.answer(storages[2], id, table);
    acked(&mut h, admin, set_node(s(3), NodeState::Down), "state changed");
    assert_eq!(self::table(&h, 3), "OU.");
    let two = h.with_table(2, 10_002, (2, 1, "OU."));
    h.verify(&[two]);
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
}

#[test]
fn truncate() {
    let (mut h, admin, storages) = Harness::running(1, 0, 1);
    let (client, storage) = (h.client(), storages[0]);
    let first = h.commit(client, &storages, &[1]);
    let second = h.commit(client, &storages, &[1]);
    let order = |tid| Packet::Truncate { tid };
    let text = "Truncating after last transaction does nothing";
    denied(&mut h, admin, order(second), text);
    let text = "Truncating before first transaction is probably not what you intended to do";
    denied(&mut h, admin, order(first.previous().unwrap()), text);
    h.all(storage);
    acked(&mut h, admin, order(first), "");
    assert!(h.is_closed(client));
    let names = h.take_all(storage);
    assert_eq!(names[0].1, Packet::StopOperation {});
    assert_eq!(names[1].1, Packet::Truncate { tid: first });
    let (id, _) = names.iter().find(|(_, p)| matches!(p, Packet::AskRecovery {})).unwrap();
    let recovery =
        |truncate_tid| Packet::AnswerRecovery { ptid: Some(1), backup_tid: None, truncate_tid };
    h.answer(storage, *id, recovery(Some(first)));
    let (id, _) = h.until(storage, "AskPartitionTable");
    let table = Packet::AnswerPartitionTable { ptid: 1, replicas: 0, rows: rows("U") };
    h.answer(storage, id, table);
    let (id, _) = h.until(storage, "AskLockedTransactions");
    assert_eq!(
        h.ask(admin, Packet::AskRecovery {}),
        Packet::AnswerRecovery { ptid: Some(1), backup_tid: None, truncate_tid: Some(first) }
    );
    h.answer(storage, id, Packet::AnswerLockedTransactions { transactions: Map::default() });
    let (id, _) = h.until(storage, "AskLastIDs");
    let ids = Packet::AnswerLastIDs { last_tid: Some(first), last_oid: None, first_tid: first };
    h.answer(storage, id, ids);
    let (id, _) = h.until(storage, "AskPackOrders");
    h.answer(storage, id, Packet::AnswerPackOrders { orders: vec![] });
    h.ready(&[storage]);
    assert_eq!(h.engine.app.cluster.last_tid, first);
    assert_eq!(h.engine.app.cluster.truncate_tid, None);
    // What was truncated is not reused.
    let client = h.client();
    assert!(h.begin(client).as_tid() > second);
}

/// All storages must know the truncation before any of them does it.
#[test]
fn truncation_is_given_to_all_storages() {
    let mut h = Harness::new(options(1, 0));
    let tid = Tid::new(100);
    let recovery =
        |truncate_tid| Packet::AnswerRecovery { ptid: Some(3), backup_tid: None, truncate_tid };
    let one = h.storage(Some(s(1)), 1);
    let (id, _) = h.until(one, "AskRecovery");
    h.answer(one, id, recovery(Some(tid)));
    let (id, _) = h.until(one, "AskPartitionTable");
    let table = Packet::AnswerPartitionTable { ptid: 3, replicas: 1, rows: rows("UO U.") };
    h.answer(one, id, table);
    // S1 has all data, but S2 must be there too.
    assert!(matches!(h.engine.app.phase, Phase::Recovery(_)));
    let two = h.storage(Some(s(2)), 2);
    let (id, _) = h.until(two, "AskRecovery");
    h.answer(two, id, recovery(Some(Tid::new(200))));
    h.answer_table(two, (3, 1, "UO U."));
    assert!(matches!(h.engine.app.phase, Phase::Recovery(_)));
    assert_eq!(h.recv(two), Packet::Truncate { tid });
    let (id, _) = h.until(two, "AskRecovery");
    h.answer(two, id, recovery(Some(tid)));
    h.answer_table(two, (3, 1, "UO U."));
    assert!(matches!(h.engine.app.phase, Phase::Verification(_)));
    // Lost before it is truncated: again, and not without it.
    h.close(two);
    assert!(matches!(h.engine.app.phase, Phase::Recovery(_)));
    assert_eq!(h.engine.app.cluster.startup, Startup::WhenComplete);
}

#[test]
fn repair() {
    let (mut h, admin, storages) = Harness::running(2, 0, 2);
    for storage in &storages {
        h.all(*storage);
    }
    let order = |nids: &[NodeId]| Packet::Repair { nids: nids.to_vec(), dry_run: true };
    denied(&mut h, admin, order(&[s(1), s(9)]), "invalid storage node S9");
    assert_eq!(h.all(storages[0]), []);
    acked(&mut h, admin, order(&[s(2)]), "");
    assert_eq!(h.all(storages[0]), []);
    assert_eq!(h.all(storages[1]), [Packet::NotifyRepair { dry_run: true }]);
}

#[test]
fn check_replicas() {
    let (mut h, admin, storages) = Harness::running(3, 1, 2);
    let client = h.client();
    let tid = h.commit(client, &storages, &[0, 1, 2]);
    let order = |partitions, max_tid| Packet::CheckReplicas {
        partitions: Map(partitions),
        min_tid: Tid::new(1),
        max_tid,
    };
    denied(&mut h, admin, order(vec![(3, None)], None), "invalid partition 3");
    denied(&mut h, admin, order(vec![(0, Some(s(9)))], None), "invalid storage node S9");
    for storage in &storages {
        h.all(*storage);
    }
    // One node does it all.
    acked(&mut h, admin, order(vec![(0, None), (2, Some(s(1)))], None), "");
    let check = |partition, source| Packet::CheckPartition {
        partition,
        source: (String::new(), source),
        min_tid: Tid::new(1),
        max_tid: tid,
    };
    assert_eq!(h.all(storages[0]), []);
    assert_eq!(h.all(storages[1]), [check(0, None), check(2, Some(address(10_001)))]);
    acked(&mut h, admin, order(vec![(0, None)], Some(Tid::ZERO)), "");
    assert_eq!(h.all(storages[1]), [], "nothing to check");
    // Nothing to compare with.
    h.close(storages[0]);
    h.all(storages[1]);
    acked(&mut h, admin, order(vec![(0, None)], None), "");
    assert_eq!(h.all(storages[1]), []);
}

#[test]
fn flush_log_is_relayed() {
    let (mut h, admin, storages) = Harness::running(1, 0, 1);
    let client = h.client();
    h.all(storages[0]);
    h.send(admin, Packet::FlushLog {});
    assert_eq!(h.all(storages[0]), [Packet::FlushLog {}]);
    assert_eq!(h.all(client), [Packet::FlushLog {}]);
    assert_eq!(h.all(admin).len(), 1, "only the news of the client");
}

/// The machine of a storage that was dropped may come back: nobody else gets its id.
#[test]
fn ids_of_dropped_storages_are_not_given_again() {
    let (mut h, admin, storages) = Harness::running(1, 0, 1);
    let request =
        |port| Harness::request(neo_common::protocol::NodeType::Storage, None, Some(port));
    for (index, is_kept) in [(2, true), (3, false), (3, true), (4, true)] {
        let mut request = request(20 + index as u16);
        let Packet::RequestIdentification { extra, .. } = &mut request else { unreachable!() };
        extra.0.push(("new_nid".into(), neo_common::protocol::Value::Array(Vec::new())));
        let (conn, nid) = h.identify(request);
        assert_eq!(nid, s(index));
        if !is_kept {
            h.close(conn);
            // It was not let in: it left nothing.
            continue;
        }
        acked(&mut h, admin, set_node(nid, NodeState::Unknown), "state changed");
    }
    assert_eq!(h.engine.app.cluster.state, ClusterState::Running);
    assert!(!h.is_closed(storages[0]));
}

/// A cloned storage gets a new id, and cells that it has to complete.
#[test]
fn new_nid() {
    let (mut h, admin, _) = Harness::running(3, 0, 1);
    h.all(admin);
    let conn = h.connect();
    let mut request = Harness::request(neo_common::protocol::NodeType::Storage, None, None);
    let Packet::RequestIdentification { extra, .. } = &mut request else { unreachable!() };
    let list = [0, 2].map(neo_common::protocol::Value::Int).to_vec();
    extra.0.push(("new_nid".into(), neo_common::protocol::Value::Array(list)));
    let Packet::AcceptIdentification { your_nid, .. } = h.ask(conn, request) else { panic!() };
    assert_eq!(your_nid, Some(s(2)));
    let packets = h.all(admin);
    let names: Vec<_> = packets.iter().map(Packet::name).collect();
    assert_eq!(names, ["NotifyNodeInformation", "NotifyPartitionChanges"]);
    assert_eq!(table(&h, 2), "UO U. UO");
    assert_eq!(h.names(conn), ["NotifyNodeInformation", "SendPartitionTable"]);
    h.close(conn);
    // With this id, it runs.
    let back = h.storage(Some(s(2)), 7);
    assert_eq!(h.names(back), ["NotifyNodeInformation", "SendPartitionTable", "StartOperation"]);
}
