// SPDX-License-Identifier: GPL-2.0-or-later
//! Several fake peers around one [`Engine<Master>`]. Time only passes when a test says so.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use neo_common::engine::{ConnId, Engine, Input, Output};
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{
    CellState, ErrorCode, Map, MsgId, NodeType, OutBuffer, Packet, Rows, Value,
};
use neo_common::time::Now;
use neo_common::types::{NodeId, Oid, Ptid, Tid, Ttid};

use crate::app::{Job, Master, Options};

pub const CLUSTER: &str = "test";
pub const START_US: u64 = 1_795_300_967_000_000;

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
pub fn s(index: u32) -> NodeId {
    NodeId::of(NodeType::Storage, index).unwrap()
}
pub fn m(index: u32) -> NodeId {
    NodeId::of(NodeType::Master, index).unwrap()
}
pub fn c(index: u32) -> NodeId {
    NodeId::of(NodeType::Client, index).unwrap()
}

/// The other end of a connection.
struct Peer {
    frames: FrameBuffer,
    received: VecDeque<(Option<MsgId>, Packet)>,
    next_id: MsgId,
    /// The master closed it.
    closed: bool,
}

pub struct Harness {
    pub engine: Engine<Master>,
    pub now: Now,
    peers: BTreeMap<ConnId, Peer>,
    /// Connections that the master wants to open.
    pub connects: VecDeque<(ConnId, SocketAddr)>,
    pub jobs: Vec<Job>,
    pub exit: Option<i32>,
}

pub fn options(partitions: u32, replicas: u32) -> Options {
    Options {
        cluster: CLUSTER.into(),
        bind: address(10_000),
        masters: Vec::new(),
        autostart: None,
        nid: None,
        partitions,
        replicas,
        upstream: None,
        backup: false,
    }
}

impl Harness {
    pub fn new(options: Options) -> Self {
        let now = Now { monotonic: Duration::from_secs(1), realtime_us: START_US };
        Self::seeded(options, now, 1)
    }
    /// A master that starts at some time, and whose choices follow from a seed.
    pub fn seeded(options: Options, now: Now, seed: u64) -> Self {
        let mut engine = Engine::new(Master::new(options).unwrap(), seed);
        engine.start(now);
        let mut harness = Self {
            engine,
            now,
            peers: BTreeMap::new(),
            connects: VecDeque::new(),
            jobs: Vec::new(),
            exit: None,
        };
        harness.flush();
        harness
    }

    fn add_peer(&mut self, conn: ConnId) {
        let mut frames = FrameBuffer::default();
        frames.trust();
        let peer = Peer { frames, received: VecDeque::new(), next_id: 0, closed: false };
        self.peers.insert(conn, peer);
    }
    fn input(&mut self, input: Input<'_, Master>) {
        self.engine.handle(input, self.now);
        self.flush();
    }
    fn flush(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Connect(conn, address) => self.connects.push_back((conn, address)),
                Output::Bytes(conn, bytes) => {
                    if let Some(peer) = self.peers.get_mut(&conn) {
                        peer.frames.feed(&bytes.concat(), &mut peer.received).unwrap();
                    }
                }
                Output::Close(conn, _) => {
                    self.connects.retain(|(other, _)| *other != conn);
                    if let Some(peer) = self.peers.get_mut(&conn) {
                        peer.closed = true;
                    }
                }
                Output::Read(..) => {}
                Output::Submit(id, job) => {
                    self.jobs.push(job);
                    self.engine.handle(Input::JobDone(id, ()), self.now);
                }
                Output::Reply(_, reply) => match reply {},
                Output::Exit(status) => self.exit = Some(status),
            }
        }
    }

    // Time.

    pub fn advance(&mut self, duration: Duration) {
        self.now.monotonic += duration;
        self.now.realtime_us += duration.as_micros() as u64;
        self.input(Input::Timeout);
    }

    // Connections.

    /// A peer connects.
    pub fn connect(&mut self) -> ConnId {
        let conn = self.connect_silently();
        self.input(Input::Bytes(conn, &HANDSHAKE));
        conn
    }
    /// A peer connects, and says nothing.
    pub fn connect_silently(&mut self) -> ConnId {
        let conn = self.engine.new_conn();
        self.add_peer(conn);
        self.input(Input::Accepted(conn, address(50_000)));
        conn
    }
    /// A connection that the master opens is established.
    #[track_caller]
    pub fn accept(&mut self, port: u16) -> ConnId {
        let index = self.connects.iter().position(|(_, a)| *a == address(port)).unwrap();
        let (conn, _) = self.connects.remove(index).unwrap();
        self.add_peer(conn);
        self.input(Input::Connected(conn));
        self.input(Input::Bytes(conn, &HANDSHAKE));
        conn
    }
    /// A connection that the master opens fails.
    #[track_caller]
    pub fn refuse(&mut self, port: u16) {
        let index = self.connects.iter().position(|(_, a)| *a == address(port)).unwrap();
        let (conn, _) = self.connects.remove(index).unwrap();
        self.input(Input::Closed(conn));
    }
    /// The peer closes.
    pub fn close(&mut self, conn: ConnId) {
        self.peers.remove(&conn);
        self.input(Input::Closed(conn));
    }
    pub fn is_closed(&self, conn: ConnId) -> bool {
        self.peers.get(&conn).is_none_or(|peer| peer.closed)
    }

    // Packets.

    fn raw(&mut self, conn: ConnId, id: MsgId, packet: &Packet) {
        let mut out = OutBuffer::default();
        packet.encode(Some(id), &mut out);
        self.input(Input::Bytes(conn, &out.take().concat()));
    }
    /// Sends bytes.
    pub fn bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        self.input(Input::Bytes(conn, bytes));
    }
    /// Whether all that was received was taken.
    pub fn is_quiet(&self, conn: ConnId) -> bool {
        self.peers.get(&conn).is_none_or(|peer| peer.received.is_empty())
    }
    /// Takes the next packet, if there is one.
    pub fn next(&mut self, conn: ConnId) -> Option<(Option<MsgId>, Packet)> {
        self.peers.get_mut(&conn)?.received.pop_front()
    }
    /// Takes all requests of this name, before their turn. Returns their ids.
    pub fn take_named(&mut self, conn: ConnId, name: &str) -> Vec<MsgId> {
        let mut ids = Vec::new();
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.received.retain(|(id, packet)| {
                let is_taken = packet.name() == name;
                ids.extend(id.filter(|_| is_taken));
                !is_taken
            });
        }
        ids
    }
    /// The inverse of [`Self::next`], behind the one that follows.
    pub fn put_back_second(&mut self, conn: ConnId, packet: (Option<MsgId>, Packet)) {
        let received = &mut self.peers.get_mut(&conn).unwrap().received;
        received.insert(received.len().min(1), packet);
    }
    /// Sends a request or a notification; returns its id.
    pub fn send(&mut self, conn: ConnId, packet: Packet) -> MsgId {
        let peer = self.peers.get_mut(&conn).unwrap();
        let id = peer.next_id;
        peer.next_id += 1;
        self.raw(conn, id, &packet);
        id
    }
    pub fn answer(&mut self, conn: ConnId, id: MsgId, packet: Packet) {
        self.raw(conn, id, &packet);
    }
    /// Takes all that was received, with ids.
    pub fn take_all(&mut self, conn: ConnId) -> Vec<(MsgId, Packet)> {
        let received = self.peers.get_mut(&conn).unwrap().received.drain(..);
        received.map(|(id, packet)| (id.unwrap_or(MsgId::MAX), packet)).collect()
    }
    /// Takes all that was received.
    pub fn all(&mut self, conn: ConnId) -> Vec<Packet> {
        self.take_all(conn).into_iter().map(|(_, packet)| packet).collect()
    }
    /// Takes all that was received, by name.
    pub fn names(&mut self, conn: ConnId) -> Vec<&'static str> {
        self.all(conn).iter().map(Packet::name).collect()
    }
    #[track_caller]
    pub fn take(&mut self, conn: ConnId) -> (MsgId, Packet) {
        let next = self.peers.get_mut(&conn).unwrap().received.pop_front();
        let (id, packet) = next.expect("nothing was received");
        (id.unwrap(), packet)
    }
    #[track_caller]
    pub fn recv(&mut self, conn: ConnId) -> Packet {
        self.take(conn).1
    }
    /// Takes a packet by name, and what was received before it is dropped.
    #[track_caller]
    pub fn until(&mut self, conn: ConnId, name: &str) -> (MsgId, Packet) {
        let mut seen = Vec::new();
        while let Some((id, packet)) = self.peers.get_mut(&conn).unwrap().received.pop_front() {
            if packet.name() == name {
                return (id.unwrap_or(u32::MAX), packet);
            }
            seen.push(packet.name());
        }
        panic!("no {name} in {seen:?}");
    }
    /// Asks, and takes the answer. What was received before it is dropped.
    #[track_caller]
    pub fn ask(&mut self, conn: ConnId, packet: Packet) -> Packet {
        let id = self.send(conn, packet);
        let received = &mut self.peers.get_mut(&conn).unwrap().received;
        while let Some((other, packet)) = received.pop_front() {
            if packet.is_answer() && other == Some(id) {
                return packet;
            }
        }
        panic!("no answer");
    }
    /// Asks, and takes the error that answers.
    #[track_caller]
    pub fn ask_error(&mut self, conn: ConnId, packet: Packet) -> (ErrorCode, String) {
        match self.ask(conn, packet) {
            Packet::Error { code, message } => (code, message),
            other => panic!("{other:?}"),
        }
    }
    #[track_caller]
    pub fn check_answered(&mut self, conn: ConnId, id: MsgId, packet: &Packet) {
        assert_eq!(self.until(conn, packet.name()), (id, packet.clone()));
    }

    // Nodes.

    pub fn request(node_type: NodeType, nid: Option<NodeId>, port: Option<u16>) -> Packet {
        Packet::RequestIdentification {
            node_type,
            nid,
            address: port.map(address),
            cluster: CLUSTER.into(),
            id_timestamp: None,
            extra: Map::default(),
        }
    }
    /// Connects and identifies.
    #[track_caller]
    pub fn identify(&mut self, request: Packet) -> (ConnId, NodeId) {
        let conn = self.connect();
        match self.ask(conn, request) {
            Packet::AcceptIdentification { node_type: NodeType::Master, my_nid, your_nid } => {
                assert_eq!(my_nid, self.engine.app.cluster.own_nid());
                (conn, your_nid.unwrap())
            }
            other => panic!("{other:?}"),
        }
    }
    /// A storage, before it is asked anything.
    #[track_caller]
    pub fn storage(&mut self, nid: Option<NodeId>, port: u16) -> ConnId {
        self.identify(Self::request(NodeType::Storage, nid, Some(port))).0
    }
    /// A storage that has answered what recovery asks first.
    #[track_caller]
    pub fn recovering(&mut self, nid: Option<NodeId>, port: u16, ptid: Option<Ptid>) -> ConnId {
        let conn = self.storage(nid, port);
        self.answer_recovery(conn, ptid);
        conn
    }
    #[track_caller]
    pub fn answer_recovery(&mut self, conn: ConnId, ptid: Option<Ptid>) {
        let (id, _) = self.until(conn, "AskRecovery");
        let answer = Packet::AnswerRecovery { ptid, backup_tid: None, truncate_tid: None };
        self.answer(conn, id, answer);
    }
    /// A storage has this table: version, replicas, rows.
    #[track_caller]
    pub fn answer_table(&mut self, conn: ConnId, (ptid, replicas, text): (Ptid, u32, &str)) {
        let (id, _) = self.until(conn, "AskPartitionTable");
        self.answer(conn, id, Packet::AnswerPartitionTable { ptid, replicas, rows: rows(text) });
    }
    /// A storage that has an id and this table.
    #[track_caller]
    pub fn with_table(&mut self, index: u32, port: u16, table: (Ptid, u32, &str)) -> ConnId {
        let conn = self.recovering(Some(s(index)), port, Some(table.0));
        self.answer_table(conn, table);
        conn
    }
    #[track_caller]
    pub fn admin(&mut self) -> ConnId {
        let conn = self.identify(Self::request(NodeType::Admin, None, Some(9999))).0;
        self.all(conn);
        conn
    }
    #[track_caller]
    pub fn client(&mut self) -> ConnId {
        let (conn, _) = self.identify(Self::request(NodeType::Client, None, None));
        self.all(conn);
        conn
    }
    #[track_caller]
    pub fn client_with(&mut self, extra: Vec<(&'static str, Value)>) -> ConnId {
        let mut request = Self::request(NodeType::Client, None, None);
        if let Packet::RequestIdentification { extra: map, .. } = &mut request {
            map.0.extend(extra.into_iter().map(|(key, value)| (key.into(), value)));
        }
        let (conn, _) = self.identify(request);
        self.all(conn);
        conn
    }

    /// Answers what verification asks, until the storages are started, then they are ready.
    #[track_caller]
    pub fn verify(&mut self, storages: &[ConnId]) {
        for name in ["AskLockedTransactions", "AskLastIDs", "AskPackOrders"] {
            for conn in storages {
                // Nodes without readable cells are only asked their last ids.
                let received = &self.peers[conn].received;
                if !received.iter().any(|(_, packet)| packet.name() == name) {
                    continue;
                }
                let (id, question) = self.until(*conn, name);
                let answer = match question {
                    Packet::AskLockedTransactions {} => {
                        Packet::AnswerLockedTransactions { transactions: Map::default() }
                    }
                    Packet::AskLastIDs {} => {
                        self.send(*conn, Packet::NotifyPackCompleted { tid: Tid::ZERO });
                        no_ids()
                    }
                    _ => Packet::AnswerPackOrders { orders: Vec::new() },
                };
                self.answer(*conn, id, answer);
            }
        }
        self.ready(storages);
    }
    #[track_caller]
    pub fn ready(&mut self, storages: &[ConnId]) {
        for conn in storages {
            self.until(*conn, "StartOperation");
            self.send(*conn, Packet::NotifyReady {});
            self.all(*conn);
        }
    }

    /// A new cluster that serves: an admin and storages.
    #[track_caller]
    pub fn running(partitions: u32, replicas: u32, storages: u16) -> (Self, ConnId, Vec<ConnId>) {
        Self::running_with(options(partitions, replicas), storages)
    }
    /// The same with any options.
    #[track_caller]
    pub fn running_with(options: Options, storages: u16) -> (Self, ConnId, Vec<ConnId>) {
        let cluster = options.cluster.clone();
        let mut harness = Self::new(options);
        // Peers all say the same name.
        CLUSTER.clone_into(&mut harness.engine.app.cluster.options.cluster);
        let admin = harness.admin();
        let storages: Vec<ConnId> =
            (1..=storages).map(|i| harness.recovering(None, 10_000 + i, None)).collect();
        assert_eq!(harness.start(admin), (ErrorCode::Ack, "Cluster state changed".into()));
        harness.verify(&storages);
        harness.all(admin);
        harness.engine.app.cluster.options.cluster = cluster;
        (harness, admin, storages)
    }
    /// `neoctl start`.
    #[track_caller]
    pub fn start(&mut self, admin: ConnId) -> (ErrorCode, String) {
        let state = neo_common::protocol::ClusterState::Verifying;
        self.ask_error(admin, Packet::SetClusterState { state })
    }

    // Transactions.

    #[track_caller]
    pub fn begin(&mut self, client: ConnId) -> Ttid {
        match self.ask(client, Packet::AskBeginTransaction { tid: None }) {
            Packet::AnswerBeginTransaction { ttid } => ttid,
            other => panic!("{other:?}"),
        }
    }
    pub fn finish(&mut self, client: ConnId, ttid: Ttid, oids: &[u64]) -> MsgId {
        let oids = oids.iter().copied().map(Oid::new).collect();
        let (deleted, checked, pack) = (Vec::new(), Vec::new(), None);
        self.send(client, Packet::AskFinishTransaction { ttid, oids, deleted, checked, pack })
    }
    /// A storage locks what it is asked to; returns the tid.
    #[track_caller]
    pub fn lock(&mut self, storage: ConnId) -> Tid {
        let (id, Packet::AskLockInformation { ttid, tid, .. }) =
            self.until(storage, "AskLockInformation")
        else {
            unreachable!()
        };
        self.answer(storage, id, Packet::AnswerInformationLocked { ttid });
        tid
    }
    /// A storage says that what it was told is on disk, because another one was lost while it locked this.
    #[track_caller]
    pub fn confirm(&mut self, storage: ConnId, ttid: Ttid) {
        let (id, packet) = self.until(storage, "AskFinalTID");
        assert_eq!(packet, Packet::AskFinalTID { ttid });
        self.answer(storage, id, Packet::AnswerFinalTID { tid: None });
    }
    /// A whole transaction.
    #[track_caller]
    pub fn commit(&mut self, client: ConnId, storages: &[ConnId], oids: &[u64]) -> Tid {
        let ttid = self.begin(client);
        let id = self.finish(client, ttid, oids);
        let tids: Vec<Tid> = storages.iter().map(|storage| self.lock(*storage)).collect();
        let tid = tids[0];
        assert!(tids.iter().all(|other| *other == tid));
        self.check_answered(client, id, &Packet::AnswerTransactionFinished { ttid, tid });
        for storage in storages {
            self.until(*storage, "NotifyUnlockInformation");
        }
        tid
    }
}

pub fn no_ids() -> Packet {
    Packet::AnswerLastIDs { last_tid: None, last_oid: None, first_tid: Tid::MAX }
}

/// Rows from texts: `U.` means that S1 has an up-to-date cell, S2 none.
pub fn rows(text: &str) -> Rows {
    let state = |letter| match letter {
        'U' => Some(CellState::UpToDate),
        'O' => Some(CellState::OutOfDate),
        'F' => Some(CellState::Feeding),
        _ => None,
    };
    text.split_whitespace()
        .map(|row| (1..).zip(row.chars()).filter_map(|(i, l)| Some((s(i), state(l)?))).collect())
        .collect()
}
/// The inverse of [`rows`], for `count` storages.
pub fn format(rows: &Rows, count: u32) -> String {
    let letter = |row: &Vec<(NodeId, CellState)>, index| match row
        .iter()
        .find(|(nid, _)| *nid == s(index))
        .map(|(_, state)| *state)
    {
        None => '.',
        Some(CellState::UpToDate) => 'U',
        Some(CellState::OutOfDate) => 'O',
        Some(CellState::Feeding) => 'F',
        Some(_) => '?',
    };
    let rows = rows.iter().map(|row| (1..=count).map(|i| letter(row, i)).collect());
    rows.collect::<Vec<String>>().join(" ")
}
