// SPDX-License-Identifier: GPL-2.0-or-later
//! An admin core whose peers are played by hand.

#![allow(clippy::unwrap_used, dead_code)]

pub mod session;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use neo_admin::app::Job;
use neo_admin::{Admin, Config};
use neo_common::engine::{ConnId, Engine, Input, JobId, Output, Signal};
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{ClusterState, NodeState, NodeType, OutBuffer, Packet};
use neo_common::time::Now;
use neo_common::types::NodeId;

pub type Received = (Option<u32>, Packet);

/// The admin, and what it sent to each peer.
pub struct Harness {
    pub engine: Engine<Admin>,
    pub now: Now,
    /// What each peer received since it last looked.
    pub sent: BTreeMap<ConnId, VecDeque<Received>>,
    frames: BTreeMap<ConnId, FrameBuffer>,
    /// Connections that the admin wants to open.
    pub connects: VecDeque<(ConnId, SocketAddr)>,
    /// Connections that the admin closed.
    pub closed: BTreeSet<ConnId>,
    /// Connections from which nothing is to be read.
    pub paused: BTreeSet<ConnId>,
    pub jobs: VecDeque<(JobId, Job)>,
    pub exit: Option<i32>,
    /// Next id of each peer.
    ids: BTreeMap<ConnId, u32>,
}

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
pub fn nid(node_type: NodeType, index: u32) -> NodeId {
    NodeId::of(node_type, index).unwrap()
}

pub fn config(cluster: &str, master: u16, port: u16) -> Config {
    Config {
        cluster: cluster.into(),
        masters: vec![address(master)],
        address: address(port),
        nid: None,
        backups: vec![],
        max_lag: 0.0,
        mail: None,
        save_masters: false,
    }
}

impl Harness {
    pub fn new(config: Config) -> Self {
        let engine = Engine::new(Admin::new(config), 1);
        let now = Now { monotonic: Duration::from_secs(1), realtime_us: 1_795_301_550_000_000 };
        let mut harness = Self {
            engine,
            now,
            sent: BTreeMap::new(),
            frames: BTreeMap::new(),
            connects: VecDeque::new(),
            closed: BTreeSet::new(),
            paused: BTreeSet::new(),
            jobs: VecDeque::new(),
            exit: None,
            ids: BTreeMap::new(),
        };
        harness.engine.start(harness.now);
        harness.drain();
        harness
    }

    /// Connected to a primary master, in this state, with one partition on one storage.
    pub fn running(config: Config, state: ClusterState) -> (Self, ConnId) {
        let mut h = Self::new(config);
        let master = h.accept_admin(&[(NodeType::Storage, 1, NodeState::Running)]);
        let (id, packet) = h.take(master);
        assert_eq!(packet, Packet::AskClusterState {});
        h.answer(master, id.unwrap(), Packet::AnswerClusterState { state: Some(state) });
        (h, master)
    }

    /// Lets the admin identify; the master tells about these nodes and a table with one partition
    /// on S1.
    pub fn accept_admin(&mut self, nodes: &[(NodeType, u32, NodeState)]) -> ConnId {
        let (master, _) = self.connects.pop_front().expect("the admin looks for a master");
        self.connected(master);
        let (id, request) = self.take(master);
        assert!(matches!(request, Packet::RequestIdentification { .. }), "{request:?}");
        let accept = Packet::AcceptIdentification {
            node_type: NodeType::Master,
            my_nid: Some(nid(NodeType::Master, 1)),
            your_nid: Some(nid(NodeType::Admin, 1)),
        };
        self.answer(master, id.unwrap(), accept);
        let own = (NodeType::Admin, 1, NodeState::Running);
        let primary = (NodeType::Master, 1, NodeState::Running);
        let all: Vec<_> = nodes.iter().copied().chain([own, primary]).collect();
        self.notify_nodes(master, &all);
        let rows =
            vec![vec![(nid(NodeType::Storage, 1), neo_common::protocol::CellState::UpToDate)]];
        self.send(master, Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
        master
    }

    pub fn notify_nodes(&mut self, master: ConnId, nodes: &[(NodeType, u32, NodeState)]) {
        self.now.realtime_us += 1000;
        let timestamp = self.now.realtime_seconds();
        let entry = |&(node_type, index, state): &(NodeType, u32, NodeState)| {
            // M1 listens on port 1, and so on.
            let address = (node_type == NodeType::Master).then(|| address(index as u16));
            (node_type, address, Some(nid(node_type, index)), state, Some(timestamp))
        };
        let nodes = nodes.iter().map(entry).collect();
        self.send(master, Packet::NotifyNodeInformation { timestamp, nodes });
    }

    /// A peer connects.
    pub fn accept(&mut self) -> ConnId {
        let conn = self.engine.new_conn();
        self.engine.handle(Input::Accepted(conn, address(5000)), self.now);
        self.bytes(conn, &HANDSHAKE);
        conn
    }
    /// A connection of the admin succeeds.
    pub fn connected(&mut self, conn: ConnId) {
        self.engine.handle(Input::Connected(conn), self.now);
        self.bytes(conn, &HANDSHAKE);
    }
    /// A peer sends bytes.
    pub fn bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        self.engine.handle(Input::Bytes(conn, bytes), self.now);
        self.drain();
    }
    /// A peer sends a packet; its id.
    pub fn send(&mut self, conn: ConnId, packet: Packet) -> u32 {
        let next = self.ids.entry(conn).or_default();
        let id = *next;
        *next += 1;
        self.answer(conn, id, packet);
        id
    }
    /// A peer sends a packet with that id.
    pub fn answer(&mut self, conn: ConnId, id: u32, packet: Packet) {
        let mut out = OutBuffer::default();
        packet.encode(Some(id), &mut out);
        self.bytes(conn, &out.take().concat());
    }
    /// A peer asks and is answered at once.
    pub fn ask(&mut self, conn: ConnId, packet: Packet) -> Packet {
        let id = self.send(conn, packet);
        let (answer_id, answer) = self.take(conn);
        assert_eq!(answer_id, Some(id));
        answer
    }
    /// A peer disconnects, or a connection attempt fails.
    pub fn close(&mut self, conn: ConnId) {
        self.engine.handle(Input::Closed(conn), self.now);
        self.drain();
    }
    /// Time passes.
    pub fn wait(&mut self, delay: Duration) {
        self.now.monotonic += delay;
        self.now.realtime_us += delay.as_micros() as u64;
        self.engine.handle(Input::Timeout, self.now);
        self.drain();
    }
    pub fn signal(&mut self, signal: Signal) {
        self.engine.handle(Input::Signal(signal), self.now);
        self.drain();
    }
    pub fn job_done(&mut self, id: JobId, done: Result<(), String>) {
        self.engine.handle(Input::JobDone(id, done), self.now);
        self.drain();
    }

    /// The next packet that this peer received.
    pub fn take(&mut self, conn: ConnId) -> Received {
        self.sent.get_mut(&conn).and_then(VecDeque::pop_front).expect("a packet was sent")
    }
    /// Whether this peer received nothing more.
    pub fn is_quiet(&self, conn: ConnId) -> bool {
        self.sent.get(&conn).is_none_or(VecDeque::is_empty)
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Connect(conn, address) => self.connects.push_back((conn, address)),
                Output::Bytes(conn, bytes) => {
                    let frames = self.frames.entry(conn).or_default();
                    frames.trust();
                    let packets = self.sent.entry(conn).or_default();
                    frames.feed(&bytes.concat(), packets).unwrap();
                }
                Output::Close(conn, _) => assert!(self.closed.insert(conn), "closed twice"),
                Output::Submit(id, job) => self.jobs.push_back((id, job)),
                Output::Exit(status) => self.exit = Some(status),
                Output::Read(conn, true) => assert!(self.paused.remove(&conn)),
                Output::Read(conn, false) => assert!(self.paused.insert(conn)),
                Output::Reply(_, reply) => match reply {},
            }
        }
    }
}
