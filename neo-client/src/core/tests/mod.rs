// SPDX-License-Identifier: GPL-2.0-or-later
//! The core against a master and storages played by hand.

mod commit;
mod connect;
mod deliver;
mod load;
mod outcome;
mod races;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{CallId, ConnId, Engine, Input, Output};
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{
    CellState, ErrorCode, MsgId, NodeState, NodeType, OutBuffer, Packet, Rows,
};
use neo_common::time::Now;
use neo_common::types::{NodeId, Oid, Tid, Ttid};

use super::ClientCore;
use crate::call::{Answer, Call, EVENTS, Event, LoadedObject, Record, Reply};
use crate::compression::{Compression, Stored};
use crate::error::Error;
use crate::options::Options;

pub fn oid(number: u64) -> Oid {
    Oid::new(number)
}
pub fn tid(number: u64) -> Tid {
    Tid::new(number)
}
pub fn ttid(number: u64) -> Ttid {
    Ttid::new(number)
}
pub fn storage(index: u32) -> NodeId {
    NodeId::of(NodeType::Storage, index).unwrap()
}
pub fn me() -> NodeId {
    NodeId::of(NodeType::Client, 1).unwrap()
}
fn master_nid() -> NodeId {
    NodeId::of(NodeType::Master, 1).unwrap()
}
pub fn master_address() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}
pub fn address(index: u32) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 1].into(), 100 + index as u16)
}

/// The other end of a connection.
struct Peer {
    address: SocketAddr,
    frames: FrameBuffer,
    next_id: MsgId,
    greeted: bool,
}

/// A packet that the client sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    pub conn: ConnId,
    pub to: SocketAddr,
    pub id: MsgId,
    pub packet: Packet,
}

/// A client and what surrounds it.
pub struct World {
    pub engine: Engine<ClientCore>,
    pub now: Now,
    peers: BTreeMap<ConnId, Peer>,
    /// Packets that the client sent, not looked at yet.
    pub sent: VecDeque<Sent>,
    pub replies: BTreeMap<CallId, Reply>,
    pub events: VecDeque<Event>,
    next_call: u64,
    /// Addresses where nobody listens.
    pub refusing: Vec<SocketAddr>,
    pub rows: Rows,
    pub last_tid: Tid,
    timestamp: f64,
}

/// Rows where all cells are up-to-date: `[[1, 2], [2]]`.
pub fn rows(cells: &[&[u32]]) -> Rows {
    let cell = |index: &u32| (storage(*index), CellState::UpToDate);
    cells.iter().map(|row| row.iter().map(cell).collect()).collect()
}

impl World {
    /// A client that has not connected.
    pub fn new(cells: &[&[u32]]) -> Self {
        Self::with_options(cells, |_| {})
    }

    pub fn with_options(cells: &[&[u32]], change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new("test", vec![master_address()]);
        options.compression = Compression::None;
        change(&mut options);
        let mut engine = Engine::new(ClientCore::new(options), 1);
        let now = Now { monotonic: Duration::from_secs(1000), realtime_us: 0 };
        engine.start(now);
        Self {
            engine,
            now,
            peers: BTreeMap::new(),
            sent: VecDeque::new(),
            replies: BTreeMap::new(),
            events: VecDeque::new(),
            next_call: 1,
            refusing: Vec::new(),
            rows: rows(cells),
            last_tid: tid(100),
            timestamp: 1.0,
        }
    }

    /// A client that is connected and ready, with last tid 100.
    pub fn ready(cells: &[&[u32]]) -> Self {
        Self::new(cells).connected()
    }

    pub fn connected(mut self) -> Self {
        let call = self.call(Call::Connect);
        self.accept_master();
        assert!(matches!(self.reply(call), Ok(Answer::Partitions(_))));
        self
    }

    /// Moves what the engine says to where it can be looked at.
    fn pump(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Connect(conn, address) => {
                    if self.refusing.contains(&address) {
                        self.engine.handle(Input::Closed(conn), self.now);
                        continue;
                    }
                    let frames = FrameBuffer::default();
                    let peer = Peer { address, frames, next_id: 0, greeted: false };
                    self.peers.insert(conn, peer);
                    self.engine.handle(Input::Connected(conn), self.now);
                }
                Output::Bytes(conn, bytes) => {
                    let peer = self.peers.get_mut(&conn).expect("bytes to an open connection");
                    peer.frames.trust();
                    let mut packets = VecDeque::new();
                    for chunk in bytes {
                        peer.frames.feed(&chunk, &mut packets).unwrap();
                    }
                    let to = peer.address;
                    self.sent.extend(packets.into_iter().map(|(id, packet)| Sent {
                        conn,
                        to,
                        id: id.unwrap(),
                        packet,
                    }));
                }
                Output::Close(conn, _) => {
                    self.peers.remove(&conn);
                }
                Output::Reply(EVENTS, reply) => match reply {
                    Ok(Answer::Event(event)) => self.events.push_back(event),
                    other => panic!("{other:?}"),
                },
                Output::Reply(call, reply) => {
                    assert!(self.replies.insert(call, reply).is_none(), "replied twice");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    // The application.

    pub fn call(&mut self, call: Call) -> CallId {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.engine.handle(Input::Call(id, call), self.now);
        self.pump();
        id
    }
    /// The reply to a call, which must be there.
    pub fn reply(&mut self, call: CallId) -> Reply {
        self.replies.remove(&call).expect("replied")
    }
    pub fn is_replied(&self, call: CallId) -> bool {
        self.replies.contains_key(&call)
    }
    /// Makes a call that is replied at once.
    pub fn ask(&mut self, call: Call) -> Reply {
        let call = self.call(call);
        self.reply(call)
    }
    pub fn load(&mut self, number: u64, before: Option<u64>) -> CallId {
        self.call(Call::Load { oid: oid(number), at: None, before: before.map(tid) })
    }
    pub fn store(&mut self, t: Ttid, number: u64, serial: u64, data: &[u8]) -> CallId {
        let data = Bytes::copy_from_slice(data);
        let call = store_call(t, oid(number), tid(serial), data, None);
        self.call(call)
    }
    pub fn vote(&mut self, ttid: Ttid) -> CallId {
        let empty = Bytes::new;
        self.call(Call::Vote { ttid, user: empty(), description: empty(), extension: empty() })
    }
    pub fn last_known_tid(&self) -> Option<Tid> {
        self.engine.app.last_tid()
    }
    /// The reply to a load that a storage answered, given back as verified.
    pub fn loaded(&mut self, call: CallId) -> Record {
        let object = object(self.reply(call));
        let data = object.stored.load().unwrap();
        match self.ask(Call::Loaded { load: object.load, data }) {
            Ok(Answer::Cached(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    // Peers.

    /// The next packet that the client sent.
    pub fn next(&mut self) -> Sent {
        self.sent.pop_front().expect("something was sent")
    }
    /// The next packet, which must be for a storage.
    pub fn next_to(&mut self, index: u32) -> Sent {
        let to = address(index);
        let at = self.sent.iter().position(|sent| sent.to == to).expect("sent to that storage");
        self.sent.remove(at).unwrap()
    }
    pub fn next_to_master(&mut self) -> Sent {
        let to = master_address();
        let at = self.sent.iter().position(|sent| sent.to == to).expect("sent to the master");
        self.sent.remove(at).unwrap()
    }
    /// All packets sent, by address, then in order.
    pub fn drain(&mut self) -> Vec<Sent> {
        let mut sent: Vec<Sent> = self.sent.drain(..).collect();
        sent.sort_by_key(|sent| sent.to);
        sent
    }
    pub fn assert_silent(&self) {
        assert!(self.sent.is_empty(), "{:?}", self.sent);
    }
    fn feed(&mut self, conn: ConnId, id: Option<MsgId>, packet: &Packet) {
        let mut out = OutBuffer::default();
        let peer = self.peers.get_mut(&conn).expect("an open connection");
        if !std::mem::replace(&mut peer.greeted, true) {
            out.put(&HANDSHAKE);
        }
        let id = id.unwrap_or_else(|| {
            peer.next_id += 1;
            peer.next_id - 1
        });
        packet.encode(Some(id), &mut out);
        let bytes = out.take().concat();
        self.engine.handle(Input::Bytes(conn, &bytes), self.now);
        self.pump();
    }
    pub fn answer(&mut self, request: &Sent, packet: Packet) {
        self.feed(request.conn, Some(request.id), &packet);
    }
    pub fn error(&mut self, request: &Sent, code: ErrorCode) {
        let message = "0000000000000001".into();
        self.answer(request, Packet::Error { code, message });
    }
    pub fn notify(&mut self, conn: ConnId, packet: Packet) {
        self.feed(conn, None, &packet);
    }
    /// The peer closes.
    pub fn close(&mut self, conn: ConnId) {
        self.peers.remove(&conn);
        self.engine.handle(Input::Closed(conn), self.now);
        self.pump();
    }
    /// The last connection that was opened to an address.
    pub fn conn(&self, to: SocketAddr) -> ConnId {
        let (conn, _) = self.peers.iter().rev().find(|(_, p)| p.address == to).expect("connected");
        *conn
    }
    pub fn has_conn(&self, to: SocketAddr) -> bool {
        self.peers.values().any(|peer| peer.address == to)
    }
    pub fn master(&self) -> ConnId {
        self.conn(master_address())
    }
    pub fn sleep(&mut self, delay: Duration) {
        let until = self.now.monotonic + delay;
        while let Some(at) = self.engine.deadline().filter(|at| *at <= until) {
            self.now.monotonic = self.now.monotonic.max(at);
            self.engine.handle(Input::Timeout, self.now);
            self.pump();
        }
        self.now.monotonic = until;
    }

    // What a master does.

    pub fn node_information(&mut self, conn: ConnId, down: &[u32]) {
        self.timestamp += 1.0;
        let running = Some(NodeState::Running);
        let mut nodes = vec![
            (NodeType::Client, None, Some(me()), NodeState::Running, Some(1.5)),
            (
                NodeType::Master,
                Some(master_address()),
                Some(master_nid()),
                NodeState::Running,
                None,
            ),
        ];
        let mut indexes: Vec<u32> = self.rows.iter().flatten().map(|(n, _)| n.index()).collect();
        indexes.sort_unstable();
        indexes.dedup();
        for index in indexes {
            let state = running.filter(|_| !down.contains(&index)).unwrap_or(NodeState::Down);
            let nid = Some(storage(index));
            nodes.push((NodeType::Storage, Some(address(index)), nid, state, Some(0.5)));
        }
        let timestamp = self.timestamp;
        self.notify(conn, Packet::NotifyNodeInformation { timestamp, nodes });
    }

    /// Accepts the client as a primary master does; it becomes ready.
    pub fn accept_master(&mut self) {
        let request = self.next_to_master();
        assert!(
            matches!(&request.packet, Packet::RequestIdentification { cluster, node_type, .. }
                if cluster == "test" && *node_type == NodeType::Client),
            "{request:?}"
        );
        let accept = Packet::AcceptIdentification {
            node_type: NodeType::Master,
            my_nid: Some(master_nid()),
            your_nid: Some(me()),
        };
        self.answer(&request, accept);
        self.node_information(request.conn, &[]);
        let rows = self.rows.clone();
        self.notify(request.conn, Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
        let last = self.next_to_master();
        assert_eq!(last.packet, Packet::AskLastTransaction {});
        let tid = self.last_tid;
        self.answer(&last, Packet::AnswerLastTransaction { tid });
    }

    /// Accepts the client as a storage does.
    pub fn accept_storage(&mut self, index: u32) {
        let request = self.next_to(index);
        let Packet::RequestIdentification { nid, id_timestamp, .. } = request.packet else {
            panic!("{request:?}")
        };
        assert_eq!((nid, id_timestamp), (Some(me()), Some(1.5)));
        let accept = Packet::AcceptIdentification {
            node_type: NodeType::Storage,
            my_nid: Some(storage(index)),
            your_nid: Some(me()),
        };
        self.answer(&request, accept);
    }

    /// Begins a transaction.
    pub fn begin(&mut self, number: u64) -> Ttid {
        let call = self.call(Call::Begin { tid: None });
        let request = self.next_to_master();
        assert_eq!(request.packet, Packet::AskBeginTransaction { tid: None });
        self.answer(&request, Packet::AnswerBeginTransaction { ttid: ttid(number) });
        match self.reply(call) {
            Ok(Answer::Begun(begun)) => assert_eq!(begun, ttid(number)),
            other => panic!("{other:?}"),
        }
        ttid(number)
    }

    /// Another client commits.
    pub fn invalidate(&mut self, number: u64, oids: &[u64]) {
        let oids = oids.iter().map(|number| oid(*number)).collect();
        self.notify(self.master(), Packet::InvalidateObjects { tid: tid(number), oids });
    }
}

pub fn store_call(ttid: Ttid, oid: Oid, serial: Tid, data: Bytes, resolves: Option<Tid>) -> Call {
    let stored = Compression::None.store(&data);
    Call::Store { ttid, oid, serial, stored, data: Some(data), data_serial: None, resolves }
}

/// What a storage answers to `AskObject`.
pub fn answer_object(number: u64, serial: u64, next: Option<u64>) -> Packet {
    let stored = Compression::None.store(&content(number, serial));
    Packet::AnswerObject {
        oid: oid(number),
        serial: tid(serial),
        next_serial: next.map(tid),
        compression: stored.compression,
        checksum: stored.checksum,
        data: stored.data,
        data_serial: None,
    }
}

/// What the played storages have at a revision.
pub fn content(number: u64, serial: u64) -> Bytes {
    format!("{number}@{serial}").into()
}

pub fn record(number: u64, serial: u64, next: Option<u64>) -> Record {
    Record { data: content(number, serial), serial: tid(serial), next_serial: next.map(tid) }
}

#[track_caller]
pub fn cached(reply: Reply) -> Record {
    match reply {
        Ok(Answer::Cached(record)) => record,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub fn object(reply: Reply) -> LoadedObject {
    match reply {
        Ok(Answer::Object(object)) => object,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub fn failure(reply: Reply) -> Error {
    reply.expect_err("a failure")
}

/// The error, compared by its text.
#[track_caller]
pub fn assert_error(reply: Reply, expected: &Error) {
    let error = failure(reply);
    assert_eq!(
        (std::mem::discriminant(&error), error.to_string()),
        (std::mem::discriminant(expected), expected.to_string())
    );
}

pub fn ask_object(number: u64, before: u64) -> Packet {
    Packet::AskObject { oid: oid(number), at: None, before: Some(tid(before)) }
}

pub fn stored_nothing() -> Packet {
    let Stored { compression, checksum, data } = Stored::nothing();
    Packet::AnswerObject {
        oid: oid(1),
        serial: tid(60),
        next_serial: None,
        compression,
        checksum,
        data,
        data_serial: None,
    }
}
