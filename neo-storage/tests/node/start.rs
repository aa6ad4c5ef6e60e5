// SPDX-License-Identifier: GPL-2.0-or-later
//! From the search of the master to the operation, and back.

use std::time::Duration;

use neo_common::protocol::{CellState, ErrorCode, Map, NodeState, NodeType, Packet};
use neo_common::types::{NodeId, Tid};
use neo_storage::database::memory::Disk;
use neo_storage::database::{Done, Read};

use crate::harness::*;

/// A new node identifies, gets its id and its first table, and serves.
#[test]
fn first_start() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[]);
    assert_eq!(node.engine.app.nid(), Some(s(1)));
    let answer = node.ask_from_master(Packet::AskRecovery {});
    let nothing = Packet::AnswerRecovery { ptid: None, backup_tid: None, truncate_tid: None };
    assert_eq!(answer, nothing);
    let rows = vec![row(&[(1, U)]), row(&[(1, U)])];
    node.tell(Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows: rows.clone() });
    let answer = node.ask_from_master(Packet::AskLockedTransactions {});
    assert_eq!(answer, Packet::AnswerLockedTransactions { transactions: Map::default() });
    node.tell(Packet::AskLastIDs {});
    let completed = node.told().unwrap().1;
    assert_eq!(completed, Packet::NotifyPackCompleted { tid: Tid::ZERO });
    let ids = Packet::AnswerLastIDs { last_tid: None, last_oid: None, first_tid: Tid::MAX };
    assert_eq!(node.told().unwrap().1, ids);
    let answer = node.ask_from_master(Packet::AskPackOrders { min_tid: tid(1) });
    assert_eq!(answer, Packet::AnswerPackOrders { orders: Vec::new() });
    node.operate(false);

    // After a restart, it has kept its id and its table.
    let mut node = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(node.engine.app.nid(), Some(s(1)));
    node.identify(&[]);
    let answer = node.ask_from_master(Packet::AskRecovery {});
    let recovery = Packet::AnswerRecovery { ptid: Some(1), backup_tid: None, truncate_tid: None };
    assert_eq!(answer, recovery);
    let answer = node.ask_from_master(Packet::AskPartitionTable {});
    assert_eq!(answer, Packet::AnswerPartitionTable { ptid: 1, replicas: 0, rows });
}

/// Found by hostile peers: there was a panic.
#[test]
fn operation_without_table() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[]);
    let master = node.master.unwrap();
    node.tell(Packet::StartOperation { backup: false });
    let message = "no partition table to operate with".into();
    assert_eq!(node.told().unwrap().1, Packet::Error { code: ErrorCode::ProtocolError, message });
    assert!(node.is_closed(master) && !node.engine.app.is_operational());
}

/// A table with too many cells in its second row does not replace the one that is known.
#[test]
fn wrong_table() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[]);
    let rows = vec![row(&[(1, U)]), row(&[(1, U)])];
    node.recover(rows.clone());
    let master = node.master.unwrap();
    let many: Vec<_> = (1..10_000).map(|n| (n, U)).collect();
    node.tell(Packet::SendPartitionTable {
        ptid: Some(2),
        replicas: 0,
        rows: vec![row(&[(1, U)]), row(&many)],
    });
    assert!(node.is_closed(master));
    assert_eq!(node.engine.app.table().ptid(), Some(1));
    assert_eq!(node.engine.app.table().partitions(), 2);
}

/// The node id is only kept once the node is part of a cluster.
#[test]
fn node_id_without_table() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[]);
    node.ask_from_master(Packet::AskRecovery {});
    assert_eq!(node.engine.app.nid(), Some(s(1)));
    let master = node.master.take().unwrap();
    node.close(master);
    assert_eq!(node.engine.app.nid(), None);
    let mut node = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(node.engine.app.nid(), None);
    node.identify(&[]);
    node.recover(vec![row(&[(2, U)])]);
    let mut node = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(node.engine.app.nid(), Some(s(1)));
    node.identify(&[]);
    let master = node.master.take().unwrap();
    node.close(master);
    assert_eq!(node.engine.app.nid(), Some(s(1)));
    // As wished, as long as the master does not say otherwise.
    let mut wished = config();
    wished.nid = Some(s(5));
    let node = Node::start(wished.clone(), node.disk.clone(), 1);
    assert_eq!(node.engine.app.nid(), Some(s(1)));
    assert_eq!(Node::start(wished, Disk::new(), 1).engine.app.nid(), Some(s(5)));
}

/// Nobody is served before the operation; afterwards only who the master announced. A client that is
/// faster than its announcement waits for it.
#[test]
fn id_timestamp() {
    let mut node = Node::start(config(), Disk::new(), 1);
    let conn = node.accept();
    let request = identification(NodeType::Client, Some(c(1)), 1.0);
    assert_eq!(node.ask_error(conn, request.clone()).0, ErrorCode::NotReady);
    assert!(node.is_closed(conn));
    node.identify(&[]);
    node.recover(vec![row(&[(1, U)])]);
    node.operate(false);

    // Announced with another timestamp: the nid belongs to somebody else now.
    let early = node.next_timestamp() + 0.5;
    let conn = node.accept();
    let id = node.send(conn, identification(NodeType::Client, Some(c(1)), early));
    node.expect_nothing(conn);
    node.notify_nodes(vec![(NodeType::Client, None, Some(c(1)), NodeState::Running, Some(early))]);
    assert_eq!(node.answer(conn, id), accepted(Some(s(1)), Some(c(1))));
    let late = node.accept();
    let error = node.ask_error(late, identification(NodeType::Client, Some(c(1)), early - 0.1));
    assert_eq!(error, (ErrorCode::NotReady, "unknown by master".into()));
    // One connection per client.
    let twice = node.accept();
    let error = node.ask_error(twice, identification(NodeType::Client, Some(c(1)), early));
    assert_eq!(error, (ErrorCode::ProtocolError, "already connected".into()));

    // Neither strangers, nor ourselves, nor other nodes.
    let refused = |node: &mut Node, request: Packet, message: &str| {
        let conn = node.accept();
        assert_eq!(node.ask_error(conn, request), (ErrorCode::ProtocolError, message.into()));
        assert!(node.is_closed(conn));
    };
    let mut alien = identification(NodeType::Client, Some(c(2)), 1.0);
    if let Packet::RequestIdentification { cluster, .. } = &mut alien {
        *cluster = "other".into();
    }
    refused(&mut node, alien, "invalid cluster name");
    let request = identification(NodeType::Storage, Some(s(1)), 0.1);
    refused(&mut node, request, "uuid conflict or loopback connection");
    let request = identification(NodeType::Client, None, 0.1);
    refused(&mut node, request, "reject anonymous non-storage node");
    let conn = node.accept();
    node.send(conn, load(1));
    assert!(node.is_closed(conn));
}

/// Requests that arrive while the node is about to serve are not lost.
#[test]
fn start_operation() {
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[]);
    node.recover(vec![row(&[(1, U)])]);
    node.notify_nodes(vec![(NodeType::Client, None, Some(c(1)), NodeState::Running, Some(1.5))]);
    node.hold_writes = true;
    node.tell(Packet::StartOperation { backup: false });
    let conn = node.accept();
    let id = node.send(conn, identification(NodeType::Client, Some(c(1)), 1.5));
    node.expect_nothing(conn);
    assert!(node.told().is_none());
    // The table changes meanwhile: what was read is read again.
    let changes = vec![(0, s(1), CellState::Feeding)];
    node.tell(Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes });
    node.hold_writes = false;
    node.run();
    assert_eq!(node.told().unwrap().1, Packet::NotifyReady {});
    assert_eq!(node.answer(conn, id), accepted(Some(s(1)), Some(c(1))));
}

/// When operation stops, all but the master are disconnected; it can start again.
#[test]
fn stop_operation() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.vote(client, 4, &[(1, 0, "a")]);
    node.tell(Packet::StopOperation {});
    assert!(node.is_closed(client) && !node.engine.app.is_operational());
    // What was voted is still there for the verification.
    let answer = node.ask_from_master(Packet::AskLockedTransactions {});
    let transactions = Map(vec![(ttid(4), None)]);
    assert_eq!(answer, Packet::AnswerLockedTransactions { transactions });
    node.recover(vec![row(&[(1, U)])]);
    node.operate(false);
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
    let client = node.client(2);
    let (code, _) = node.ask_error(client, load(1));
    assert_eq!(code, ErrorCode::OidDoesNotExist);
}

/// The service is interrupted while a lock is being written: the master gets its answer before those
/// to its next questions, otherwise it would refuse these.
#[test]
fn answer_information_locked_during_recovery() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.vote(client, 4, &[(1, 0, "a")]);
    node.hold_writes = true;
    node.tell(Packet::AskLockInformation { ttid: ttid(4), tid: tid(14), pack: false });
    node.tell(Packet::StopOperation {});
    node.tell(Packet::AskRecovery {});
    assert_eq!(node.told(), None);
    node.hold_writes = false;
    node.run();
    let answers = [node.told().unwrap().1, node.told().unwrap().1];
    assert_eq!(answers.each_ref().map(Packet::name), ["AnswerInformationLocked", "AnswerRecovery"]);
}

/// The verification commits what is known to be committed; the rest is dropped at the start of the
/// operation.
#[test]
fn verification_commit_unfinished_transactions() {
    let mut node = Node::serving(2);
    let client = node.client(1);
    node.vote(client, 4, &[(1, 0, "locked")]);
    node.lock(4, 14);
    node.vote(client, 6, &[(2, 0, "voted")]);
    node.vote(client, 8, &[(3, 0, "dropped")]);
    let mut node = Node::start(config(), node.disk.clone(), 1);
    node.identify(&[]);
    let ask = Packet::AskLockedTransactions {};
    let transactions = Map(vec![(ttid(4), Some(tid(14))), (ttid(6), None), (ttid(8), None)]);
    node.tell(Packet::SendPartitionTable {
        ptid: Some(1),
        replicas: 0,
        rows: vec![row(&[(1, U)]), row(&[(1, U)])],
    });
    assert_eq!(node.ask_from_master(ask), Packet::AnswerLockedTransactions { transactions });
    assert_eq!(
        node.ask_from_master(Packet::AskFinalTID { ttid: ttid(8) }),
        Packet::AnswerFinalTID { tid: None }
    );
    node.tell(Packet::ValidateTransaction { ttid: ttid(4), tid: tid(14) });
    node.tell(Packet::ValidateTransaction { ttid: ttid(6), tid: tid(16) });
    let answer = node.ask_from_master(Packet::AskFinalTID { ttid: ttid(6) });
    assert_eq!(answer, Packet::AnswerFinalTID { tid: Some(tid(16)) });
    node.tell(Packet::AskLastIDs {});
    node.told().unwrap();
    let ids = Packet::AnswerLastIDs {
        last_tid: Some(tid(16)),
        last_oid: Some(oid(2)),
        first_tid: tid(14),
    };
    assert_eq!(node.told().unwrap().1, ids);
    node.operate(false);
    let client = node.client(2);
    assert_eq!(node.load(client, 1), (14, "locked".into()));
    assert_eq!(node.load(client, 2), (16, "voted".into()));
    assert_eq!(node.ask_error(client, load(3)).0, ErrorCode::OidDoesNotExist);
    assert_eq!(node.latest(Read::Unfinished), Done::Unfinished(Default::default()));
}

/// A truncation is executed before the last ids are told, also if the node restarts in between.
#[test]
fn truncate() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.commit(client, 4, 10, &[(1, 0, "a")]);
    node.commit(client, 11, 12, &[(1, 10, "b"), (2, 0, "c")]);
    node.tell(Packet::StopOperation {});
    node.tell(Packet::Truncate { tid: tid(10) });
    let recovery =
        Packet::AnswerRecovery { ptid: Some(1), backup_tid: None, truncate_tid: Some(tid(10)) };
    assert_eq!(node.ask_from_master(Packet::AskRecovery {}), recovery);
    let mut node = Node::start(config(), node.disk.clone(), 1);
    node.identify(&[]);
    assert_eq!(node.ask_from_master(Packet::AskRecovery {}), recovery);
    node.tell(Packet::AskLastIDs {});
    node.told().unwrap();
    let ids = Packet::AnswerLastIDs {
        last_tid: Some(tid(10)),
        last_oid: Some(oid(1)),
        first_tid: tid(10),
    };
    assert_eq!(node.told().unwrap().1, ids);
    let recovery = Packet::AnswerRecovery { ptid: Some(1), backup_tid: None, truncate_tid: None };
    assert_eq!(node.ask_from_master(Packet::AskRecovery {}), recovery);
    node.operate(false);
    let client = node.client(1);
    assert_eq!(node.load(client, 1), (10, "a".into()));
}

/// Told to be DOWN, the node ends once all is on disk; UNKNOWN, its database is erased.
#[test]
fn told_to_end() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    node.notify_nodes(vec![storage_entry(1, NodeState::Down)]);
    assert_eq!(node.exit, Some(0));
    assert!(node.is_closed(client));
    let restarted = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(restarted.engine.app.table().ptid(), Some(1));

    let mut node = Node::serving(1);
    node.notify_nodes(vec![storage_entry(1, NodeState::Unknown)]);
    assert_eq!(node.exit, Some(0));
    let restarted = Node::start(config(), node.disk.clone(), 1);
    assert_eq!((restarted.engine.app.table().ptid(), restarted.engine.app.nid()), (None, None));
}

/// The master is lost: peers are disconnected, the search begins again, with the same id.
#[test]
fn master_lost() {
    let mut node = Node::serving(1);
    let client = node.client(1);
    let master = node.master.take().unwrap();
    node.close(master);
    assert!(node.is_closed(client) && !node.is_connecting(), "not at once");
    node.advance(Duration::from_secs(1));
    node.refuse_connection();
    node.advance(Duration::from_secs(1));
    node.identify(&[]);
    assert_eq!(node.engine.app.nid(), Some(s(1)));
}

/// A clone of a database asks for another id, stores it and ends; own cells follow.
#[test]
fn new_nid() {
    let node = Node::serving_table(vec![row(&[(1, U)]), row(&[(2, U)]), row(&[(1, U)])], &[2]);
    let mut new_nid = config();
    new_nid.new_nid = true;
    let mut node = Node::start(new_nid.clone(), node.disk.clone(), 1);
    let conn = node.connected(master_address());
    let (id, request) = node.receive(conn).unwrap();
    let Packet::RequestIdentification { nid, address, extra, .. } = request else {
        panic!("{request:?}");
    };
    assert_eq!((nid, address), (None, None));
    let listed = extra.0.iter().find(|(key, _)| &key[..] == b"new_nid").unwrap();
    assert_eq!(format!("{:?}", listed.1), "Array([Int(0), Int(2)])");
    let accept = Packet::AcceptIdentification {
        node_type: NodeType::Master,
        my_nid: NodeId::of(NodeType::Master, 1),
        your_nid: Some(s(7)),
    };
    node.write_as(conn, id, &accept);
    assert_eq!(node.exit, Some(0));
    let restarted = Node::start(config(), node.disk.clone(), 1);
    assert_eq!(restarted.engine.app.nid(), Some(s(7)));
    assert_eq!(restarted.engine.app.table().cells_of(s(7)).count(), 2);
    // Nothing to clone.
    let empty = neo_storage::Storage::new(new_nid, Default::default());
    assert_eq!(empty.unwrap_err(), "database is empty");
}

/// What no master would say closes the connection to it.
#[test]
fn wrong_master() {
    let wrong: Vec<fn(&mut Node) -> Packet> = vec![
        |_| Packet::NotifyPartitionChanges { ptid: 3, replicas: 0, changes: Vec::new() },
        |_| Packet::NotifyPartitionChanges { ptid: 2, replicas: 0, changes: vec![(9, s(1), U)] },
        |_| Packet::NotifyUnlockInformation { ttid: ttid(1) },
        |_| Packet::AskLockInformation { ttid: ttid(1), tid: tid(2), pack: false },
        |_| Packet::NotifyNodeInformation { timestamp: 0.0, nodes: Vec::new() },
        |_| Packet::AskObject { oid: oid(1), at: None, before: None },
        |_| Packet::AnswerPackOrders { orders: Vec::new() },
        |node| {
            let client = node.client(1);
            node.vote(client, 4, &[(1, 0, "a")]);
            Packet::AskLockInformation { ttid: ttid(4), tid: tid(3), pack: false }
        },
    ];
    for (index, packet) in wrong.into_iter().enumerate() {
        let mut node = Node::serving(1);
        let packet = packet(&mut node);
        node.tell(packet);
        let master = node.master.unwrap();
        assert!(node.is_closed(master), "{index}");
        assert!(!node.engine.app.is_operational(), "{index}");
    }
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[]);
    let rows = vec![row(&[(1, U)]), Vec::new()];
    node.tell(Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
    assert!(node.is_closed(node.master.unwrap()));
}
