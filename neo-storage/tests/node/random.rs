// SPDX-License-Identifier: GPL-2.0-or-later
//! Random valid packets from each kind of peer, in each phase: the node may refuse, disconnect or
//! end, but it never panics, its state stays coherent, and a sane cluster can use it afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::ConnId;
use neo_common::prng::Prng;
use neo_common::protocol::{
    CellState, ClusterState, ErrorCode, Map, MsgId, NodeState, NodeType, PackOids, Packet,
};
use neo_common::types::{INVALID_PARTITION, Oid, Tid, Ttid, ZERO_HASH};
use neo_storage::database::memory::Disk;

use crate::harness::*;

const SEEDS: u64 = 400;
const STEPS: usize = 250;

struct Any<'a>(&'a mut Prng);

impl Any<'_> {
    fn n(&mut self, bound: usize) -> u64 {
        self.0.below(bound) as u64
    }
    fn tid(&mut self) -> Tid {
        match self.n(20) {
            0 => Tid::ZERO,
            1 => Tid::MAX,
            2 => Tid::INVALID,
            _ => tid(self.n(60)),
        }
    }
    fn ttid(&mut self) -> Ttid {
        self.tid().as_ttid()
    }
    fn oid(&mut self) -> Oid {
        match self.n(30) {
            0 => Oid::INVALID,
            _ => oid(self.n(6)),
        }
    }
    fn partition(&mut self) -> u32 {
        match self.n(30) {
            0 => INVALID_PARTITION,
            _ => self.n(4) as u32,
        }
    }
    fn opt<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.0.one_in(2) { None } else { Some(value(self)) }
    }
    fn list<T>(&mut self, value: impl Fn(&mut Self) -> T) -> Vec<T> {
        let len = self.n(4);
        (0..len).map(|_| value(self)).collect()
    }
    fn state(&mut self) -> CellState {
        let states = [U, U, O, CellState::Feeding, CellState::Corrupted, DISCARDED];
        states[self.0.below(states.len())]
    }
    fn packet(&mut self) -> Packet {
        match self.n(46) {
            0 => identification(
                [NodeType::Client, NodeType::Storage, NodeType::Master][self.0.below(3)],
                self.opt(|any| if any.0.one_in(2) { c(1) } else { s(2) }),
                0.5,
            ),
            1 => Packet::AskRecovery {},
            2 => Packet::AskLastIDs {},
            3 => Packet::AskPartitionTable {},
            4 => Packet::AskLockedTransactions {},
            5 => Packet::AskFinalTID { ttid: self.ttid() },
            6 => Packet::ValidateTransaction { ttid: self.ttid(), tid: self.tid() },
            7 => Packet::AskLockInformation { ttid: self.ttid(), tid: self.tid(), pack: true },
            8 => Packet::NotifyUnlockInformation { ttid: self.ttid() },
            9 => Packet::AskRelockObject { ttid: self.ttid(), oid: self.oid() },
            10..16 => {
                let data = ["", "a", "b"][self.0.below(3)];
                let deleted = data.is_empty() && self.0.one_in(2);
                Packet::AskStoreObject {
                    oid: self.oid(),
                    serial: self.tid(),
                    compression: self.n(2) as u32,
                    checksum: if deleted { ZERO_HASH } else { checksum(data.as_bytes()) },
                    data: Bytes::from_static(data.as_bytes()),
                    data_serial: self.opt(Self::tid),
                    ttid: self.ttid(),
                }
            }
            16 => Packet::AbortTransaction { ttid: self.ttid(), nids: Vec::new() },
            17 | 18 => Packet::AskStoreTransaction {
                ttid: self.ttid(),
                user: Bytes::new(),
                description: Bytes::new(),
                extension: Bytes::new(),
                oids: self.list(Self::oid),
                pack: self.opt(|any| (any.opt(|any| any.list(Self::oid)), any.tid())),
            },
            19 => Packet::AskVoteTransaction { ttid: self.ttid() },
            20 | 21 => Packet::AskObject {
                oid: self.oid(),
                at: self.opt(Self::tid),
                before: self.opt(Self::tid),
            },
            22 => {
                Packet::AskTIDs { first: self.n(3), last: self.n(5), partition: self.partition() }
            }
            23 => Packet::AskTransactionInformation { tid: self.tid() },
            24 => Packet::AskObjectHistory { oid: self.oid(), first: self.n(3), last: self.n(5) },
            25 => Packet::AskObjectUndoSerial {
                ttid: self.ttid(),
                ltid: self.tid(),
                undone_tid: self.tid(),
                oids: self.list(Self::oid),
            },
            26 => Packet::AskTIDsFrom {
                min_tid: self.tid(),
                max_tid: self.tid(),
                length: self.n(5) as u32,
                partition: self.partition(),
            },
            27 => Packet::AskOIDsFrom {
                partition: self.partition(),
                length: self.n(5) as u32,
                min_oid: self.oid(),
                tid: self.tid(),
            },
            28 => Packet::AskPackOrders { min_tid: self.tid() },
            29 => Packet::NotifyPackSigned {
                approved: self.list(Self::tid),
                rejected: self.list(Self::tid),
            },
            30 => Packet::CheckPartition {
                partition: self.partition(),
                source: (
                    if self.0.one_in(2) { String::new() } else { "up".into() },
                    self.opt(|any| storage_address(any.n(4) as u32)),
                ),
                min_tid: self.tid(),
                max_tid: self.tid(),
            },
            31 => Packet::AskCheckTIDRange {
                partition: self.partition(),
                length: self.n(5) as u32,
                min_tid: self.tid(),
                max_tid: self.tid(),
            },
            32 => Packet::AskCheckSerialRange {
                partition: self.partition(),
                length: self.n(5) as u32,
                min_tid: self.tid(),
                max_tid: self.tid(),
                min_oid: self.oid(),
            },
            33 => Packet::AskCheckCurrentSerial {
                ttid: self.ttid(),
                oid: self.oid(),
                serial: self.tid(),
            },
            34 => Packet::NotifyTransactionFinished {
                ttid: self.ttid(),
                max_tid: self.opt(Self::tid),
            },
            35 => Packet::Replicate {
                tid: self.tid(),
                upstream_name: if self.0.one_in(2) { String::new() } else { "up".into() },
                sources: Map(self.list(|any| {
                    (any.partition(), any.opt(|any| storage_address(any.n(4) as u32)))
                })),
            },
            36 => Packet::AskFetchTransactions {
                partition: self.partition(),
                length: self.n(5) as u32,
                min_tid: self.tid(),
                max_tid: self.tid(),
                known: self.list(Self::tid),
                ask_pack_info: self.0.one_in(2),
            },
            37 => Packet::AskFetchObjects {
                partition: self.partition(),
                length: self.n(5) as u32,
                min_tid: self.tid(),
                max_tid: self.tid(),
                min_oid: self.oid(),
                known: Map(self.list(|any| (any.tid(), any.list(Self::oid)))),
            },
            38 => Packet::AddTransaction {
                tid: self.tid(),
                user: Bytes::new(),
                description: Bytes::new(),
                extension: Bytes::new(),
                packed: false,
                ttid: self.ttid(),
                oids: self.list(Self::oid),
                pack: self.opt(|any| {
                    let oids = any.opt(|any| PackOids::List(any.list(Self::oid)));
                    (any.opt(|any| any.0.one_in(2)), oids.is_some(), oids, any.tid())
                }),
            },
            39 => Packet::AddObject {
                oid: self.oid(),
                serial: self.tid(),
                compression: 0,
                checksum: checksum(b"a"),
                data: Bytes::from_static(b"a"),
                data_serial: self.opt(Self::tid),
            },
            40 => Packet::NotifyRepair { dry_run: self.0.one_in(2) },
            41 => Packet::NotifyPartitionChanges {
                ptid: self.n(4),
                replicas: 0,
                changes: self.list(|any| (any.partition(), s(1 + any.n(3) as u32), any.state())),
            },
            42 => Packet::StartOperation { backup: self.0.one_in(3) },
            43 => match self.n(4) {
                0 => Packet::StopOperation {},
                1 => Packet::Truncate { tid: self.tid() },
                2 => Packet::NotifyClusterInformation { state: ClusterState::StoppingBackup },
                _ => Packet::CloseClient {},
            },
            44 => Packet::Error {
                code: [ErrorCode::ReplicationError, ErrorCode::CheckingError, ErrorCode::Ack]
                    [self.0.below(3)],
                message: String::new(),
            },
            _ => Packet::Ping {},
        }
    }

    /// An answer to a request of the node.
    fn answer(&mut self, request: &Packet) -> Option<Packet> {
        if self.0.one_in(20) {
            return Some(Packet::error(ErrorCode::ReplicationError, ""));
        }
        Some(match request {
            Packet::RequestIdentification { .. } => {
                let nid = self.opt(|any| if any.0.one_in(4) { s(3) } else { s(2) });
                accepted(nid, nid.map(|_| s(1)))
            }
            Packet::AskUnfinishedTransactions { .. } => Packet::AnswerUnfinishedTransactions {
                max_tid: self.tid(),
                ttids: self.list(Self::ttid),
            },
            Packet::AskPackOrders { .. } => Packet::AnswerPackOrders {
                orders: self.list(|any| {
                    let oids = any.opt(|any| PackOids::List(any.list(Self::oid)));
                    (any.tid(), any.opt(|any| !any.0.one_in(5)), oids.is_some(), oids, any.tid())
                }),
            },
            Packet::AskFetchTransactions { .. } => Packet::AnswerFetchTransactions {
                next_tid: self.opt(Self::tid),
                to_delete: self.list(Self::tid),
                completed_pack: self.opt(Self::tid),
            },
            Packet::AskFetchObjects { .. } => Packet::AnswerFetchObjects {
                next_tid: self.opt(Self::tid),
                next_oid: self.opt(Self::oid),
                to_delete: Map(self.list(|any| (any.tid(), any.list(Self::oid)))),
            },
            Packet::AskCheckTIDRange { .. } => Packet::AnswerCheckTIDRange {
                count: self.n(50_000) as u32,
                checksum: ZERO_HASH,
                max_tid: self.tid(),
            },
            Packet::AskCheckSerialRange { .. } => Packet::AnswerCheckSerialRange {
                count: self.n(50_000) as u32,
                tid_checksum: ZERO_HASH,
                max_tid: self.tid(),
                oid_checksum: ZERO_HASH,
                max_oid: self.oid(),
            },
            _ => return None,
        })
    }
}

/// A node with its peers; those that were disconnected come back.
struct World {
    node: Node,
    prng: Prng,
    peers: Vec<ConnId>,
    /// Requests of the node that wait for an answer.
    requests: Vec<(ConnId, MsgId, Packet)>,
    is_calm: bool,
    /// Sane transactions: votes that are asked, and those that are answered or locked.
    votes: BTreeMap<(ConnId, MsgId), u64>,
    voted: Vec<u64>,
    locks: BTreeMap<MsgId, u64>,
    locked: Vec<u64>,
    /// Last ttid and tid.
    last_tid: u64,
    committed: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let node = Node::start(config(), Disk::new(), seed);
        let mut world = Self {
            node,
            prng: prng.fork(),
            peers: Vec::new(),
            requests: Vec::new(),
            is_calm: seed.is_multiple_of(2),
            votes: BTreeMap::new(),
            voted: Vec::new(),
            locks: BTreeMap::new(),
            locked: Vec::new(),
            last_tid: 1000,
            committed: 0,
        };
        world.bring_up();
        world
    }

    /// A sane master makes the node serve, if it does not.
    fn bring_up(&mut self) {
        let node = &mut self.node;
        (node.hold_reads, node.hold_writes) = (false, false);
        node.run();
        if let Some(master) = node.master.filter(|master| !node.is_closed(*master)) {
            node.close(master);
        }
        for _ in 0..5 {
            node.advance(Duration::from_secs(1));
            if node.is_connecting() {
                break;
            }
        }
        while !node.is_connecting_to(master_address()) {
            assert!(node.is_connecting(), "{:?} exit={:?}", node.engine.app, node.exit);
            node.refuse_connection();
            node.advance(Duration::from_secs(1));
        }
        node.identify(&[2, 3]);
        let clients =
            [1, 2].map(|n| (NodeType::Client, None, Some(c(n)), NodeState::Running, Some(0.5)));
        node.notify_nodes(clients.to_vec());
        let rows = (0..4).map(|_| match self.prng.below(4) {
            0 => row(&[(1, O), (2, U)]),
            1 => row(&[(2, U)]),
            _ => row(&[(1, U), (2, U)]),
        });
        node.recover(rows.collect());
        self.peers.clear();
        self.requests.clear();
        self.votes.clear();
        self.voted.clear();
        self.locks.clear();
        self.locked.clear();
        if !self.prng.one_in(6) {
            self.node.operate(self.prng.one_in(5));
        }
    }

    fn step(&mut self) {
        let node = &mut self.node;
        self.peers.retain(|conn| !node.is_closed(*conn));
        for conn in self.peers.iter().copied().chain(node.master) {
            while let Some((id, packet)) = node.receive(conn) {
                match packet {
                    Packet::AnswerStoreTransaction {} => {
                        self.voted.extend(self.votes.remove(&(conn, id)));
                    }
                    Packet::AnswerInformationLocked { .. } => {
                        self.locked.extend(self.locks.remove(&id));
                    }
                    packet => self.requests.push((conn, id, packet)),
                }
            }
        }
        if self.prng.one_in(3) && !self.is_master_lost() {
            self.commit_step();
        }
        let node = &mut self.node;
        // In calm runs, transactions get further.
        let choice = self.prng.below(30);
        match choice {
            8.. if self.is_calm && !self.prng.one_in(8) => {}
            0 => node.hold_reads = !node.hold_reads,
            1 => node.hold_writes = !node.hold_writes,
            2 => node.advance(Duration::from_secs(1 + self.prng.below(100) as u64)),
            3 if !self.peers.is_empty() => {
                let conn = self.peers.swap_remove(self.prng.below(self.peers.len()));
                node.close(conn);
            }
            4..8 => {
                let conn = node.accept();
                self.peers.push(conn);
                let (node_type, nid) = match self.prng.below(4) {
                    0 => (NodeType::Client, Some(c(1))),
                    1 => (NodeType::Client, Some(c(2))),
                    2 => (NodeType::Storage, Some(s(2))),
                    _ => (NodeType::Storage, None),
                };
                let id_timestamp = match node_type {
                    NodeType::Storage => id_timestamp_of(2),
                    _ => 0.5,
                };
                node.send(conn, identification(node_type, nid, id_timestamp));
            }
            8 if node.is_connecting() && !node.is_connecting_to(master_address()) => {
                if self.prng.one_in(3) {
                    node.refuse_connection();
                } else {
                    let conn = node.connected_anywhere();
                    self.peers.push(conn);
                }
            }
            9..14 if !self.requests.is_empty() => {
                let (conn, id, request) =
                    self.requests.swap_remove(self.prng.below(self.requests.len()));
                if !node.is_closed(conn)
                    && let Some(answer) = Any(&mut self.prng).answer(&request)
                {
                    node.write_as(conn, id, &answer);
                }
            }
            14..18 => {
                // Follow the table of the node, else nearly all changes are refused.
                let mut packet = Any(&mut self.prng).packet();
                if let Packet::NotifyPartitionChanges { ptid, .. } = &mut packet {
                    *ptid = node.engine.app.table().ptid().unwrap_or_default() + 1;
                }
                if let Some(master) = node.master.filter(|master| !node.is_closed(*master)) {
                    node.send(master, packet);
                }
            }
            _ if !self.peers.is_empty() => {
                let conn = self.peers[self.prng.below(self.peers.len())];
                let packet = Any(&mut self.prng).packet();
                node.send(conn, packet);
            }
            _ => {}
        }
        self.node.engine.app.check_invariants();
    }

    /// What a sane client or master does next.
    fn commit_step(&mut self) {
        self.last_tid += 1 + self.prng.below(3) as u64;
        match self.prng.below(3) {
            0 if !self.locked.is_empty() => {
                let ttid_ = self.locked.swap_remove(self.prng.below(self.locked.len()));
                self.node.unlock(ttid_);
                self.committed += 1;
            }
            1 if !self.voted.is_empty() => {
                let ttid_ = self.voted.swap_remove(self.prng.below(self.voted.len()));
                self.last_tid += 4 - (self.last_tid - ttid_) % 4;
                let (ttid_, tid_) = (ttid(ttid_), tid(self.last_tid));
                let lock = Packet::AskLockInformation { ttid: ttid_, tid: tid_, pack: false };
                self.locks.insert(self.node.tell(lock), ttid_.get());
            }
            _ if !self.peers.is_empty() => {
                let conn = self.peers[self.prng.below(self.peers.len())];
                let oids: Vec<u64> = (0..3).map(|_| self.prng.below(200) as u64).collect();
                for oid in &oids {
                    let serial = if self.prng.one_in(30) { self.last_tid } else { 0 };
                    self.node.send(conn, store(self.last_tid, *oid, serial, "data"));
                }
                let id = self.node.send(conn, store_transaction(self.last_tid, &oids));
                self.votes.insert((conn, id), self.last_tid);
            }
            _ => {}
        }
    }

    fn is_master_lost(&self) -> bool {
        self.node.master.is_none_or(|master| self.node.is_closed(master))
    }
}

#[test]
fn random_packets() {
    let first = std::env::var("NEO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = first.map_or(0..SEEDS, |seed| seed..seed + 1);
    let (mut operational, mut committed) = (0, 0);
    for seed in seeds {
        println!("replay with NEO_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            if world.node.exit.is_some() {
                break;
            }
            operational += usize::from(world.node.engine.app.is_operational());
            // It was sent nonsense, or stopped.
            if world.is_master_lost() || world.prng.one_in(100) {
                world.bring_up();
            }
        }
        committed += world.committed;
        if world.node.exit.is_none() {
            // After all that, a sane cluster can use it.
            world.bring_up();
        }
    }
    if first.is_none() {
        println!("{operational} steps in operation, {committed} transactions committed");
        assert!(operational > SEEDS as usize * STEPS / 4, "only {operational} steps in operation");
        assert!(committed > SEEDS as usize, "only {committed} transactions committed");
    }
}
