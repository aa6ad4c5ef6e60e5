// SPDX-License-Identifier: GPL-2.0-or-later
//! One storage node driven by hand: its peers are connections on which packets are written and read
//! by the test, its database is in memory.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{ConnId, Engine, Input, JobId, Output};
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{
    CellState, ErrorCode, MsgId, NodeEntry, NodeState, NodeType, OutBuffer, Packet, Rows,
};
use neo_common::time::Now;
use neo_common::types::{Hash, NodeId, Oid, Tid, Ttid};
use neo_storage::database::executor::Executor;
use neo_storage::database::memory::{Disk, Memory, Options};
use neo_storage::database::{self, Database, Done as DatabaseDone};
use neo_storage::{Config, Done, Job, Storage, Stored};
use sha1::{Digest, Sha1};

pub const CLUSTER: &str = "test";

pub fn master_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 10_000))
}
pub fn storage_address(n: u32) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 20_000 + n as u16))
}
pub fn s(n: u32) -> NodeId {
    NodeId::of(NodeType::Storage, n).unwrap()
}
pub fn c(n: u32) -> NodeId {
    NodeId::of(NodeType::Client, n).unwrap()
}
pub fn oid(n: u64) -> Oid {
    Oid::new(n)
}
pub fn tid(n: u64) -> Tid {
    Tid::new(n)
}
pub fn ttid(n: u64) -> Ttid {
    Ttid::new(n)
}
pub fn checksum(data: &[u8]) -> Hash {
    Sha1::digest(data).into()
}
pub fn store(ttid_: u64, oid_: u64, serial: u64, data: &str) -> Packet {
    Packet::AskStoreObject {
        oid: oid(oid_),
        serial: tid(serial),
        compression: 0,
        checksum: checksum(data.as_bytes()),
        data: Bytes::copy_from_slice(data.as_bytes()),
        data_serial: None,
        ttid: ttid(ttid_),
    }
}
pub fn store_transaction(ttid_: u64, oids: &[u64]) -> Packet {
    Packet::AskStoreTransaction {
        ttid: ttid(ttid_),
        user: Bytes::from_static(b"user"),
        description: Bytes::from_static(b"description"),
        extension: Bytes::new(),
        oids: oids.iter().map(|n| oid(*n)).collect(),
        pack: None,
    }
}
pub fn load(oid_: u64) -> Packet {
    Packet::AskObject { oid: oid(oid_), at: None, before: None }
}
pub fn row(cells: &[(u32, CellState)]) -> Vec<(NodeId, CellState)> {
    cells.iter().map(|(n, state)| (s(*n), *state)).collect()
}
pub const U: CellState = CellState::UpToDate;
pub const O: CellState = CellState::OutOfDate;
pub const DISCARDED: CellState = CellState::Discarded;

/// The other end of a connection.
#[derive(Default)]
struct Peer {
    frames: FrameBuffer,
    received: VecDeque<(Option<MsgId>, Packet)>,
    next_id: MsgId,
    is_closed: bool,
    is_paused: bool,
}

/// A node and its peers.
pub struct Node {
    pub engine: Engine<Storage>,
    pub executor: Executor<JobId>,
    pub disk: Disk,
    pub now: Now,
    pub exit: Option<i32>,
    /// Reads and writes wait until they are let go.
    pub hold_reads: bool,
    pub hold_writes: bool,
    peers: BTreeMap<ConnId, Peer>,
    connects: VecDeque<(ConnId, SocketAddr)>,
    timestamp: f64,
    jobs: usize,
    pub master: Option<ConnId>,
}

pub fn config() -> Config {
    Config {
        cluster: CLUSTER.into(),
        masters: vec![master_address()],
        address: storage_address(1),
        nid: None,
        devpath: vec!["host".into(), "1".into()],
        new_nid: false,
        disable_pack: false,
        disable_drop_partitions: false,
        save_masters: false,
    }
}

pub fn stored(database: &mut dyn Database) -> Stored {
    let reader = database.latest();
    Stored { config: reader.config().unwrap(), cells: reader.partition_table().unwrap() }
}

impl Node {
    /// A node that just started, on this disk.
    pub fn start(config: Config, disk: Disk, seed: u64) -> Self {
        let mut database = Memory::open(&disk, CLUSTER, Options::default()).unwrap();
        let stored = stored(&mut database);
        let storage = Storage::new(config, stored).unwrap();
        let now = Now { monotonic: Duration::from_secs(100), realtime_us: 1_800_000_000_000_000 };
        let mut node = Self {
            engine: Engine::new(storage, seed),
            executor: Executor::new(Box::new(database)).unwrap(),
            disk,
            now,
            exit: None,
            hold_reads: false,
            hold_writes: false,
            peers: BTreeMap::new(),
            connects: VecDeque::new(),
            timestamp: 0.0,
            jobs: 0,
            master: None,
        };
        node.engine.start(now);
        node.run();
        node
    }

    /// A node that serves alone a table of `partitions`.
    pub fn serving(partitions: u32) -> Self {
        let rows = (0..partitions).map(|_| row(&[(1, U)])).collect();
        Self::serving_table(rows, &[])
    }

    /// A node that serves with this table; other storages are running.
    pub fn serving_table(rows: Rows, others: &[u32]) -> Self {
        let mut node = Self::start(config(), Disk::new(), 1);
        node.identify(others);
        node.recover(rows);
        node.operate(false);
        node
    }

    /// Does what the node says until it waits for its peers.
    pub fn run(&mut self) {
        loop {
            let mut is_idle = true;
            while let Some(output) = self.engine.poll_output() {
                is_idle = false;
                self.output(output);
            }
            let mut reports = Vec::new();
            if !self.hold_writes {
                reports.extend(self.executor.write(usize::MAX).unwrap());
                reports.extend(self.executor.commit().unwrap());
            }
            while !self.hold_reads
                && let Some(report) = self.executor.read().unwrap()
            {
                reports.push(report);
            }
            for (id, done) in reports {
                is_idle = false;
                self.job_done(id, done);
            }
            if is_idle {
                return;
            }
        }
    }

    pub fn job_done(&mut self, id: JobId, done: DatabaseDone) {
        self.jobs -= 1;
        self.engine.handle(Input::JobDone(id, Done::Database(done)), self.now);
    }

    fn output(&mut self, output: Output<Storage>) {
        match output {
            Output::Connect(conn, address) => {
                self.peers.insert(conn, Peer::default());
                self.connects.push_back((conn, address));
            }
            Output::Bytes(conn, bytes) => {
                let peer = self.peers.get_mut(&conn).expect("a connection");
                peer.frames.trust();
                peer.frames.feed(&bytes.concat(), &mut peer.received).expect("well-formed");
            }
            Output::Close(conn, _) => {
                self.peers.get_mut(&conn).expect("a connection").is_closed = true;
                self.connects.retain(|(other, _)| *other != conn);
            }
            Output::Read(conn, resume) => {
                self.peers.get_mut(&conn).expect("a connection").is_paused = !resume;
            }
            Output::Submit(id, Job::Database(job)) => {
                self.jobs += 1;
                self.executor.submit(id, job);
            }
            Output::Submit(id, Job::SaveMasters(_)) => {
                self.engine.handle(Input::JobDone(id, Done::MastersSaved(Ok(()))), self.now);
            }
            Output::Reply(..) => panic!("nothing was called"),
            Output::Exit(status) => self.exit = Some(status),
        }
    }

    /// Lets time pass.
    pub fn advance(&mut self, delay: Duration) {
        self.now.monotonic += delay;
        self.now.realtime_us += delay.as_micros() as u64;
        self.engine.handle(Input::Timeout, self.now);
        self.run();
    }

    // Connections.

    /// The node connects to that address.
    #[track_caller]
    pub fn connected(&mut self, address: SocketAddr) -> ConnId {
        let (conn, actual) = self.connects.pop_front().expect("a connection is attempted");
        assert_eq!(actual, address);
        self.engine.handle(Input::Connected(conn), self.now);
        self.engine.handle(Input::Bytes(conn, &HANDSHAKE), self.now);
        self.run();
        conn
    }
    pub fn is_connecting(&self) -> bool {
        !self.connects.is_empty()
    }
    pub fn is_connecting_to(&self, address: SocketAddr) -> bool {
        self.connects.front().is_some_and(|(_, other)| *other == address)
    }
    pub fn connected_anywhere(&mut self) -> ConnId {
        let address = self.connects.front().expect("a connection is attempted").1;
        self.connected(address)
    }
    pub fn refuse_connection(&mut self) {
        let (conn, _) = self.connects.pop_front().expect("a connection is attempted");
        self.engine.handle(Input::Closed(conn), self.now);
        self.run();
    }

    /// Somebody connects.
    pub fn accept(&mut self) -> ConnId {
        let conn = self.engine.new_conn();
        self.peers.insert(conn, Peer::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 50_000));
        self.engine.handle(Input::Accepted(conn, address), self.now);
        self.engine.handle(Input::Bytes(conn, &HANDSHAKE), self.now);
        self.run();
        conn
    }

    /// The peer closes.
    pub fn close(&mut self, conn: ConnId) {
        self.peers.get_mut(&conn).expect("a connection").is_closed = true;
        self.engine.handle(Input::Closed(conn), self.now);
        self.run();
    }
    /// The peer does not read what is sent to it, or does again.
    pub fn full(&mut self, conn: ConnId, is_full: bool) {
        self.engine.handle(Input::Full(conn, is_full), self.now);
        self.run();
    }
    /// Jobs that are submitted and not done.
    pub fn engine_jobs(&self) -> usize {
        self.jobs
    }
    pub fn is_closed(&self, conn: ConnId) -> bool {
        self.peers[&conn].is_closed
    }
    pub fn is_paused(&self, conn: ConnId) -> bool {
        self.peers[&conn].is_paused
    }

    // Packets.

    pub fn write_as(&mut self, conn: ConnId, id: MsgId, packet: &Packet) {
        let mut out = OutBuffer::default();
        packet.encode(Some(id), &mut out);
        self.engine.handle(Input::Bytes(conn, &out.take().concat()), self.now);
        self.run();
    }
    /// Sends a request or a notification; its id.
    pub fn send(&mut self, conn: ConnId, packet: Packet) -> MsgId {
        let peer = self.peers.get_mut(&conn).expect("a connection");
        let id = peer.next_id;
        peer.next_id += 1;
        self.write_as(conn, id, &packet);
        id
    }
    /// Next packet of the node on a connection, if any.
    pub fn receive(&mut self, conn: ConnId) -> Option<(MsgId, Packet)> {
        let (id, packet) = self.peers.get_mut(&conn).expect("a connection").received.pop_front()?;
        Some((id.expect("an id"), packet))
    }
    /// Nothing was sent.
    #[track_caller]
    pub fn expect_nothing(&mut self, conn: ConnId) {
        let packet = self.receive(conn);
        assert!(packet.is_none(), "{packet:?}");
    }
    /// Next packet of the node, in reply to `id`.
    #[track_caller]
    pub fn answer(&mut self, conn: ConnId, id: MsgId) -> Packet {
        let (actual, packet) = self.receive(conn).expect("an answer");
        assert_eq!(actual, id, "{packet:?}");
        packet
    }
    /// Sends a request and returns its answer.
    #[track_caller]
    pub fn ask(&mut self, conn: ConnId, packet: Packet) -> Packet {
        let id = self.send(conn, packet);
        self.answer(conn, id)
    }
    /// Sends a request that is refused with this error.
    #[track_caller]
    pub fn ask_error(&mut self, conn: ConnId, packet: Packet) -> (ErrorCode, String) {
        match self.ask(conn, packet) {
            Packet::Error { code, message } => (code, message),
            packet => panic!("{packet:?}"),
        }
    }
    pub fn tell(&mut self, packet: Packet) -> MsgId {
        let master = self.master.expect("a master");
        self.send(master, packet)
    }
    #[track_caller]
    pub fn ask_from_master(&mut self, packet: Packet) -> Packet {
        let master = self.master.expect("a master");
        self.ask(master, packet)
    }
    pub fn told(&mut self) -> Option<(MsgId, Packet)> {
        let master = self.master.expect("a master");
        self.receive(master)
    }

    // The master.

    pub fn next_timestamp(&mut self) -> f64 {
        self.timestamp += 1.0;
        self.timestamp
    }

    /// The node finds the master and is told who it is.
    #[track_caller]
    pub fn identify(&mut self, others: &[u32]) {
        let conn = self.connected(master_address());
        let (id, request) = self.receive(conn).expect("a request");
        let Packet::RequestIdentification { node_type, cluster, address, .. } = request else {
            panic!("{request:?}");
        };
        assert_eq!((node_type, cluster.as_str()), (NodeType::Storage, CLUSTER));
        assert_eq!(address, Some(storage_address(1)));
        let accept = Packet::AcceptIdentification {
            node_type: NodeType::Master,
            my_nid: NodeId::of(NodeType::Master, 1),
            your_nid: Some(s(1)),
        };
        self.write_as(conn, id, &accept);
        self.master = Some(conn);
        let mut nodes = vec![storage_entry(1, NodeState::Running)];
        nodes.extend(others.iter().map(|n| storage_entry(*n, NodeState::Running)));
        self.notify_nodes(nodes);
    }

    pub fn notify_nodes(&mut self, nodes: Vec<NodeEntry>) {
        let timestamp = self.next_timestamp();
        self.tell(Packet::NotifyNodeInformation { timestamp, nodes });
    }

    /// Recovery and verification with this table.
    #[track_caller]
    pub fn recover(&mut self, rows: Rows) {
        let ptid = Some(self.engine.app.table().ptid().unwrap_or_default() + 1);
        self.tell(Packet::SendPartitionTable { ptid, replicas: 0, rows });
        let master = self.master.expect("a master");
        let id = self.send(master, Packet::AskLastIDs {});
        let mut answers = Vec::new();
        while let Some(packet) = self.receive(master) {
            answers.push(packet);
        }
        assert_eq!(answers.last().expect("last ids").0, id);
    }

    /// The cluster is running.
    #[track_caller]
    pub fn operate(&mut self, backup: bool) {
        self.tell(Packet::StartOperation { backup });
        let packet = self.told();
        assert!(matches!(packet, Some((_, Packet::NotifyReady {}))), "{packet:?}");
        assert!(self.engine.app.is_operational());
    }

    /// Takes the last ids, then the cluster is running.
    #[track_caller]
    pub fn operate_after_ids(&mut self) {
        while let Some((_, packet)) = self.told() {
            if matches!(packet, Packet::AnswerLastIDs { .. }) {
                return self.operate(false);
            }
        }
        panic!("no last ids");
    }

    /// A client that the master announced, connected and identified.
    #[track_caller]
    pub fn client(&mut self, n: u32) -> ConnId {
        let id_timestamp = self.timestamp + 0.5;
        let entry = (NodeType::Client, None, Some(c(n)), NodeState::Running, Some(id_timestamp));
        self.notify_nodes(vec![entry]);
        self.connect_client(n, id_timestamp)
    }

    #[track_caller]
    pub fn connect_client(&mut self, n: u32, id_timestamp: f64) -> ConnId {
        let conn = self.accept();
        let answer = self.ask(conn, identification(NodeType::Client, Some(c(n)), id_timestamp));
        assert_eq!(answer, accepted(Some(s(1)), Some(c(n))));
        conn
    }

    /// Another storage connects.
    #[track_caller]
    pub fn storage(&mut self, n: u32) -> ConnId {
        let conn = self.accept();
        let request = identification(NodeType::Storage, Some(s(n)), id_timestamp_of(n));
        assert_eq!(self.ask(conn, request), accepted(Some(s(1)), Some(s(n))));
        conn
    }

    // Transactions.

    /// Stores and votes.
    #[track_caller]
    pub fn vote(&mut self, conn: ConnId, ttid_: u64, stores: &[(u64, u64, &str)]) {
        for (oid, serial, data) in stores {
            let answer = self.ask(conn, store(ttid_, *oid, *serial, data));
            assert_eq!(answer, Packet::AnswerStoreObject { conflict: None });
        }
        let oids: Vec<u64> = stores.iter().map(|(oid, ..)| *oid).collect();
        let answer = self.ask(conn, store_transaction(ttid_, &oids));
        assert_eq!(answer, Packet::AnswerStoreTransaction {});
    }
    #[track_caller]
    pub fn lock(&mut self, ttid_: u64, tid_: u64) {
        let lock = Packet::AskLockInformation { ttid: ttid(ttid_), tid: tid(tid_), pack: false };
        let answer = self.ask_from_master(lock);
        assert_eq!(answer, Packet::AnswerInformationLocked { ttid: ttid(ttid_) });
    }
    pub fn unlock(&mut self, ttid_: u64) {
        self.tell(Packet::NotifyUnlockInformation { ttid: ttid(ttid_) });
    }
    #[track_caller]
    pub fn commit(&mut self, conn: ConnId, ttid_: u64, tid_: u64, stores: &[(u64, u64, &str)]) {
        self.vote(conn, ttid_, stores);
        self.lock(ttid_, tid_);
        self.unlock(ttid_);
    }

    /// Data of the last revision.
    #[track_caller]
    pub fn load(&mut self, conn: ConnId, oid_: u64) -> (u64, String) {
        match self.ask(conn, load(oid_)) {
            Packet::AnswerObject { serial, data, .. } => (serial.get(), text(&data)),
            packet => panic!("{packet:?}"),
        }
    }

    /// Rows of object data, orphans included.
    pub fn data_rows(&mut self) -> u64 {
        let mut after = None;
        let mut count = 0;
        let database = self.executor.database();
        for n in 0..1000 {
            // Ids are not dense in general; here they are.
            let id = database::DataId(n);
            if database.latest().data(id).unwrap().is_some() {
                count += 1;
                after = Some(id);
            }
        }
        assert!(after.is_none_or(|id| id.0 < 900), "look further");
        count
    }

    /// What is on disk, read beside the node.
    pub fn latest(&mut self, job: database::Read) -> DatabaseDone {
        database::execute_read(self.executor.database().latest(), job).unwrap()
    }
}

pub fn text(data: &[u8]) -> String {
    String::from_utf8(data.to_vec()).expect("data of tests is text")
}

pub fn id_timestamp_of(n: u32) -> f64 {
    0.1 + f64::from(n) / 1000.0
}

pub fn storage_entry(n: u32, state: NodeState) -> NodeEntry {
    let id_timestamp = Some(id_timestamp_of(n));
    (NodeType::Storage, Some(storage_address(n)), Some(s(n)), state, id_timestamp)
}

pub fn identification(node_type: NodeType, nid: Option<NodeId>, id_timestamp: f64) -> Packet {
    Packet::RequestIdentification {
        node_type,
        nid,
        address: None,
        cluster: CLUSTER.into(),
        id_timestamp: Some(id_timestamp),
        extra: Default::default(),
    }
}

pub fn accepted(my_nid: Option<NodeId>, your_nid: Option<NodeId>) -> Packet {
    Packet::AcceptIdentification { node_type: NodeType::Storage, my_nid, your_nid }
}
