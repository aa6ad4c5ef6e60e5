// SPDX-License-Identifier: GPL-2.0-or-later
//! Replication and checks, as the node that fetches and as the source.

mod backup;
mod cell;
mod source;

use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::ConnId;
use neo_common::protocol::{ErrorCode, Map, MsgId, NodeType, Packet};
use neo_common::types::{Tid, ZERO_HASH};
use neo_storage::database::memory::Disk;
use neo_storage::database::{CellNext, Done, Read};

use crate::harness::*;

pub fn add_transaction(n: u64, oids: &[u64]) -> Packet {
    Packet::AddTransaction {
        tid: tid(n),
        user: Bytes::from_static(b"u"),
        description: Bytes::new(),
        extension: Bytes::new(),
        packed: false,
        ttid: ttid(n - 1),
        oids: oids.iter().map(|n| oid(*n)).collect(),
        pack: None,
    }
}

pub fn add_object(oid_: u64, serial: u64, data: &str) -> Packet {
    Packet::AddObject {
        oid: oid(oid_),
        serial: tid(serial),
        compression: 0,
        checksum: checksum(data.as_bytes()),
        data: Bytes::copy_from_slice(data.as_bytes()),
        data_serial: None,
    }
}

/// A node with a cell that is out of date (partition 1 of 2); storage 2 has everything.
pub fn replicating() -> Node {
    let rows = vec![row(&[(2, U)]), row(&[(2, U), (1, O)])];
    let mut node = Node::start(config(), Disk::new(), 1);
    node.identify(&[2]);
    node.recover(rows);
    node.operate(false);
    node
}

/// The node asks which transactions are unfinished: these, up to that tid.
#[track_caller]
pub fn unfinished(node: &mut Node, partitions: &[u32], max_tid: u64, ttids: &[u64]) {
    let (id, packet) = node.told().unwrap();
    let partitions = partitions.to_vec();
    assert_eq!(packet, Packet::AskUnfinishedTransactions { partitions });
    let ttids = ttids.iter().map(|n| ttid(*n)).collect();
    let answer = Packet::AnswerUnfinishedTransactions { max_tid: tid(max_tid), ttids };
    let master = node.master.unwrap();
    node.write_as(master, id, &answer);
}

/// The node connects to another storage, which accepts it.
#[track_caller]
pub fn accept_node(node: &mut Node, n: u32) -> ConnId {
    let conn = node.connected(storage_address(n));
    let (id, request) = node.receive(conn).unwrap();
    let Packet::RequestIdentification { node_type, nid, id_timestamp, .. } = request else {
        panic!("{request:?}");
    };
    assert_eq!((node_type, nid), (NodeType::Storage, Some(s(1))));
    assert_eq!(id_timestamp, Some(id_timestamp_of(1)));
    node.write_as(conn, id, &accepted(Some(s(n)), Some(s(1))));
    conn
}

#[track_caller]
pub fn expect_transactions(
    node: &mut Node,
    conn: ConnId,
    range: (u64, u64),
    known: &[u64],
) -> MsgId {
    let (id, packet) = node.receive(conn).expect("AskFetchTransactions");
    let Packet::AskFetchTransactions { partition, length, min_tid, max_tid, known: k, .. } = packet
    else {
        panic!("{packet:?}");
    };
    assert_eq!((partition, length), (1, 1000));
    assert_eq!((min_tid.get(), max_tid.get()), range);
    assert_eq!(k, known.iter().map(|n| tid(*n)).collect::<Vec<_>>());
    id
}

#[track_caller]
pub fn expect_objects(
    node: &mut Node,
    conn: ConnId,
    (min, min_oid, max): (u64, u64, u64),
    known: &[(u64, u64)],
) -> MsgId {
    let (id, packet) = node.receive(conn).expect("AskFetchObjects");
    let Packet::AskFetchObjects { partition, min_tid, max_tid, min_oid: o, known: k, .. } = packet
    else {
        panic!("{packet:?}");
    };
    assert_eq!((partition, min_tid.get(), o.get(), max_tid.get()), (1, min, min_oid, max));
    let flat = k.into_iter().flat_map(|(t, oids)| oids.into_iter().map(move |o| (t, o)));
    assert_eq!(
        flat.collect::<Vec<_>>(),
        known.iter().map(|(t, o)| (tid(*t), oid(*o))).collect::<Vec<_>>()
    );
    id
}

pub fn answer_transactions(node: &mut Node, conn: ConnId, id: MsgId, next: Option<u64>) {
    let answer = Packet::AnswerFetchTransactions {
        next_tid: next.map(tid),
        to_delete: Vec::new(),
        completed_pack: None,
    };
    node.write_as(conn, id, &answer);
}

pub fn answer_objects(node: &mut Node, conn: ConnId, id: MsgId, next: Option<(u64, u64)>) {
    let answer = Packet::AnswerFetchObjects {
        next_tid: next.map(|(t, _)| tid(t)),
        next_oid: next.map(|(_, o)| oid(o)),
        to_delete: Map::default(),
    };
    node.write_as(conn, id, &answer);
}

/// At the end, the node asks for packs that it has not done. There is none.
#[track_caller]
pub fn no_pack(node: &mut Node, completed: u64) {
    let (id, packet) = node.told().expect("AskPackOrders");
    assert_eq!(packet, Packet::AskPackOrders { min_tid: tid(completed + 1) });
    let master = node.master.unwrap();
    node.write_as(master, id, &Packet::AnswerPackOrders { orders: Vec::new() });
}

pub fn next_tid(node: &mut Node) -> CellNext {
    let Done::CellNextTids(next) = node.latest(Read::CellNextTids) else { panic!() };
    next.into_iter().find(|(partition, _)| *partition == 1).unwrap().1
}
