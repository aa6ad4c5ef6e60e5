// SPDX-License-Identifier: GPL-2.0-or-later
//! A master and a storage in threads of the test, on loopback sockets: enough of a cluster to try
//! the threads and sockets of a client. One partition, everything in memory.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use neo_client::compression::Stored;
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{
    CellState, ErrorCode, Map, MsgId, NodeState, NodeType, OutBuffer, Packet,
};
use neo_common::types::{NodeId, Oid, Tid, Ttid};

/// A revision of an object.
#[derive(Clone)]
struct Revision {
    tid: Tid,
    stored: Stored,
}

#[derive(Default)]
struct Pending {
    writes: BTreeMap<Oid, Stored>,
}

/// What the tests may change while it runs.
#[derive(Default)]
pub struct Faults {
    /// Answers to `AskObject` wait until that many of them have been received.
    pub hold_until: usize,
    /// `AskObject` for these is never answered.
    pub silent: BTreeSet<Oid>,
    /// The connection of the client that commits is closed instead of answering.
    pub lose_finish: bool,
    /// The master accepts nobody.
    pub not_ready: bool,
    /// Revisions that can be undone are packed away.
    pub packed: BTreeSet<Oid>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Oid, Vec<Revision>>,
    transactions: BTreeMap<Tid, (Vec<Oid>, [bytes::Bytes; 3])>,
    last_tid: u64,
    last_oid: u64,
    pending: BTreeMap<Ttid, Pending>,
    metadata: BTreeMap<Ttid, [bytes::Bytes; 3]>,
    committed: BTreeMap<Ttid, Tid>,
    locked: BTreeMap<Oid, Ttid>,
    timestamp: f64,
    clients: i32,
    /// Connections of clients to the master.
    masters: HashMap<u64, (TcpStream, u32)>,
    streams: HashMap<u64, TcpStream>,
    next_stream: u64,
    held: Vec<(u64, MsgId, Packet)>,
    /// Stores that wait for a lock.
    waiting: Vec<(u64, MsgId, Packet)>,
    closed: bool,
    faults: Faults,
    /// Packets received by the storage and the master.
    received: u64,
}

/// The cluster.
pub struct Fake {
    state: Arc<Mutex<State>>,
    pub master: SocketAddr,
    storage: SocketAddr,
}

fn listen(address: Option<SocketAddr>) -> TcpListener {
    let address = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    TcpListener::bind(address).unwrap()
}

impl Fake {
    pub fn start() -> Self {
        let (master, storage) = (listen(None), listen(None));
        let state = State { last_tid: 1000, last_oid: 1000, ..State::default() };
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            master: master.local_addr().unwrap(),
            storage: storage.local_addr().unwrap(),
        };
        fake.accept(master, true);
        fake.accept(storage, false);
        fake
    }

    fn accept(&self, listener: TcpListener, is_master: bool) {
        let state = Arc::clone(&self.state);
        let storage = self.storage;
        let master = self.master;
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut guard = state.lock().unwrap();
                if guard.closed {
                    return;
                }
                let id = guard.next_stream;
                guard.next_stream += 1;
                guard.streams.insert(id, stream.try_clone().unwrap());
                drop(guard);
                let state = Arc::clone(&state);
                let connection = Connection { id, state, stream, is_master, master, storage };
                thread::spawn(move || connection.run());
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes how it behaves.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock().faults);
    }

    /// Closes all connections.
    pub fn disconnect(&self) {
        let mut state = self.lock();
        for (_, stream) in state.streams.drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Puts objects in the database, as of the last tid.
    pub fn fill(&self, count: u64, data: impl Fn(u64) -> Vec<u8>) {
        let mut state = self.lock();
        let tid = Tid::new(state.last_tid);
        for number in 1..=count {
            let stored = neo_client::Compression::default().store(&data(number).into());
            state.objects.insert(Oid::new(number), vec![Revision { tid, stored }]);
        }
    }

    /// Damages the stored data of an object.
    pub fn damage(&self, oid: Oid) {
        let mut state = self.lock();
        state.objects.get_mut(&oid).unwrap()[0].stored.checksum = [9; 20];
    }

    pub fn received(&self) -> u64 {
        self.lock().received
    }

    pub fn last_tid(&self) -> Tid {
        Tid::new(self.lock().last_tid)
    }

    /// Another client commits.
    pub fn commit(&self, oids: &[Oid], data: &[u8]) -> Tid {
        let mut state = self.lock();
        state.last_tid += 1;
        let tid = Tid::new(state.last_tid);
        for oid in oids {
            let stored = neo_client::Compression::None.store(&data.to_vec().into());
            state.objects.entry(*oid).or_default().push(Revision { tid, stored });
        }
        state.invalidate(None, tid, oids.to_vec());
        tid
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.lock().closed = true;
        self.disconnect();
        let _ = TcpStream::connect(self.master);
        let _ = TcpStream::connect(self.storage);
    }
}

fn encode(id: MsgId, packet: &Packet) -> Vec<u8> {
    let mut out = OutBuffer::default();
    packet.encode(Some(id), &mut out);
    out.take().concat()
}

impl State {
    fn invalidate(&mut self, except: Option<u64>, tid: Tid, oids: Vec<Oid>) {
        let packet = Packet::InvalidateObjects { tid, oids };
        for (id, (stream, next_id)) in &mut self.masters {
            if Some(*id) != except {
                let _ = stream.write_all(&encode(*next_id, &packet));
                *next_id += 1;
            }
        }
    }

    fn object(&self, oid: Oid, at: Option<Tid>, before: Option<Tid>) -> Packet {
        let error = |code| Packet::Error { code, message: oid.to_string() };
        let Some(revisions) = self.objects.get(&oid) else {
            return error(ErrorCode::OidDoesNotExist);
        };
        let index = match (at, before) {
            (Some(at), _) => revisions.iter().position(|r| r.tid == at),
            (None, before) => revisions.iter().rposition(|r| before.is_none_or(|b| r.tid < b)),
        };
        let Some(index) = index else { return error(ErrorCode::OidNotFound) };
        let Revision { tid, stored } = revisions[index].clone();
        Packet::AnswerObject {
            oid,
            serial: tid,
            next_serial: revisions.get(index + 1).map(|r| r.tid),
            compression: stored.compression,
            checksum: stored.checksum,
            data: stored.data,
            data_serial: None,
        }
    }

    /// Releases the locks, and answers to who waited for them.
    fn drop_transaction(&mut self, ttid: Ttid) {
        self.pending.remove(&ttid);
        self.locked.retain(|_, owner| *owner != ttid);
        for (conn, id, packet) in std::mem::take(&mut self.waiting) {
            match self.store(&packet) {
                None => self.waiting.push((conn, id, packet)),
                Some(answer) => {
                    if let Some(stream) = self.streams.get_mut(&conn) {
                        let _ = stream.write_all(&encode(id, &answer));
                    }
                }
            }
        }
    }

    /// Stores or checks; `None` if another transaction has the lock. (The tests store in the order
    /// of oids: there is no deadlock.)
    fn store(&mut self, packet: &Packet) -> Option<Packet> {
        let (oid, serial, ttid) = match packet {
            Packet::AskStoreObject { oid, serial, ttid, .. }
            | Packet::AskCheckCurrentSerial { oid, serial, ttid } => (*oid, *serial, *ttid),
            other => panic!("{other:?}"),
        };
        if self.locked.get(&oid).is_some_and(|owner| *owner != ttid) {
            return None;
        }
        let current = self.objects.get(&oid).and_then(|r| r.last()).map(|r| r.tid);
        let conflict = current.filter(|current| *current != serial);
        if conflict.is_none() {
            self.locked.insert(oid, ttid);
        }
        if let Packet::AskStoreObject { compression, checksum, data, .. } = packet {
            if conflict.is_none() {
                let (compression, data) = (Some(*compression), data.clone());
                let stored = Stored { compression, checksum: *checksum, data };
                self.pending.entry(ttid).or_default().writes.insert(oid, stored);
            }
            return Some(Packet::AnswerStoreObject { conflict });
        }
        Some(Packet::AnswerCheckCurrentSerial { conflict })
    }
}

struct Connection {
    id: u64,
    state: Arc<Mutex<State>>,
    stream: TcpStream,
    is_master: bool,
    master: SocketAddr,
    storage: SocketAddr,
}

impl Connection {
    fn run(mut self) {
        let mut frames = FrameBuffer::default();
        frames.trust();
        let mut buffer = vec![0; 1 << 16];
        let _ = self.stream.write_all(&HANDSHAKE);
        let mut packets = VecDeque::new();
        while let Ok(len @ 1..) = self.stream.read(&mut buffer) {
            if frames.feed(&buffer[..len], &mut packets).is_err() {
                break;
            }
            for (id, packet) in packets.drain(..) {
                self.handle(id.unwrap_or(0), packet);
            }
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut state = self.state.lock().unwrap();
        state.masters.remove(&self.id);
        state.streams.remove(&self.id);
    }

    /// Several threads may write to a connection: all do it with the mutex.
    fn handle(&self, id: MsgId, packet: Packet) {
        let mut state = self.state.lock().unwrap();
        state.received += 1;
        let mut out = Vec::new();
        self.answers(&mut state, id, packet, &mut out);
        // The client is gone: this is noticed by the next read.
        let _ = (&self.stream).write_all(&out);
    }

    fn answers(&self, state: &mut State, id: MsgId, packet: Packet, out: &mut Vec<u8>) {
        let answer = match packet {
            Packet::RequestIdentification { .. } => return self.identify(state, id, out),
            Packet::AskLastTransaction {} => {
                Packet::AnswerLastTransaction { tid: Tid::new(state.last_tid) }
            }
            Packet::Ping {} => Packet::Pong {},
            Packet::AskNewOIDs { count } => {
                let first = state.last_oid + 1;
                state.last_oid += u64::from(count);
                Packet::AnswerNewOIDs { oids: (first..=state.last_oid).map(Oid::new).collect() }
            }
            Packet::AskObject { oid, at, before } => {
                if state.faults.silent.contains(&oid) {
                    return;
                }
                let answer = state.object(oid, at, before);
                if state.held.len() + 1 < state.faults.hold_until {
                    state.held.push((self.id, id, answer));
                    return;
                }
                state.faults.hold_until = 0;
                for (stream, id, answer) in std::mem::take(&mut state.held) {
                    assert_eq!(stream, self.id);
                    out.extend(encode(id, &answer));
                }
                answer
            }
            packet => match self.transaction(state, id, packet) {
                Some(answer) => answer,
                None => return,
            },
        };
        out.extend(encode(id, &answer));
    }

    fn identify(&self, state: &mut State, id: MsgId, out: &mut Vec<u8>) {
        let nid = |t, index| NodeId::of(t, index);
        if !self.is_master {
            let my_nid = nid(NodeType::Storage, 1);
            let node_type = NodeType::Storage;
            out.extend(encode(
                id,
                &Packet::AcceptIdentification { node_type, my_nid, your_nid: None },
            ));
            return;
        }
        if state.faults.not_ready {
            let code = ErrorCode::NotReady;
            out.extend(encode(id, &Packet::Error { code, message: "Retry Later".into() }));
            return;
        }
        state.clients += 1;
        state.timestamp += 1.0;
        let me = nid(NodeType::Client, state.clients as u32);
        let my_nid = nid(NodeType::Master, 1);
        let accept =
            Packet::AcceptIdentification { node_type: NodeType::Master, my_nid, your_nid: me };
        out.extend(encode(id, &accept));
        let running = NodeState::Running;
        let storage = nid(NodeType::Storage, 1);
        let nodes = vec![
            (NodeType::Client, None, me, running, Some(1.0)),
            (NodeType::Master, Some(self.master), my_nid, running, None),
            (NodeType::Storage, Some(self.storage), storage, running, Some(0.5)),
        ];
        let timestamp = state.timestamp;
        out.extend(encode(0, &Packet::NotifyNodeInformation { timestamp, nodes }));
        let rows = vec![vec![(storage.unwrap(), CellState::UpToDate)]];
        out.extend(encode(1, &Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows }));
        state.masters.insert(self.id, (self.stream.try_clone().unwrap(), 2));
    }

    fn transaction(&self, state: &mut State, id: MsgId, packet: Packet) -> Option<Packet> {
        Some(match packet {
            Packet::AskBeginTransaction { tid } => {
                state.last_tid += u64::from(tid.is_none());
                let ttid = tid.map_or(Ttid::new(state.last_tid), Tid::as_ttid);
                Packet::AnswerBeginTransaction { ttid }
            }
            packet @ (Packet::AskStoreObject { .. } | Packet::AskCheckCurrentSerial { .. }) => {
                match state.store(&packet) {
                    Some(answer) => answer,
                    None => {
                        state.waiting.push((self.id, id, packet));
                        return None;
                    }
                }
            }
            Packet::AskStoreTransaction { ttid, user, description, extension, .. } => {
                state.metadata.insert(ttid, [user, description, extension]);
                Packet::AnswerStoreTransaction {}
            }
            Packet::AskFinishTransaction { ttid, oids, .. } => {
                state.last_tid += 1;
                let tid = Tid::new(state.last_tid);
                let pending = state.pending.remove(&ttid).unwrap_or_default();
                for (oid, stored) in pending.writes {
                    state.objects.entry(oid).or_default().push(Revision { tid, stored });
                }
                let metadata = state.metadata.remove(&ttid).unwrap_or_default();
                state.transactions.insert(tid, (oids.clone(), metadata));
                state.committed.insert(ttid, tid);
                state.drop_transaction(ttid);
                state.invalidate(Some(self.id), tid, oids);
                if std::mem::take(&mut state.faults.lose_finish) {
                    let _ = self.stream.shutdown(Shutdown::Both);
                    return None;
                }
                Packet::AnswerTransactionFinished { ttid, tid }
            }
            Packet::AskFinalTID { ttid } => {
                Packet::AnswerFinalTID { tid: state.committed.get(&ttid).copied() }
            }
            Packet::AbortTransaction { ttid, .. } => {
                state.drop_transaction(ttid);
                return None;
            }
            Packet::AskTIDsFrom { min_tid, max_tid, length, .. } => {
                let tids = state.transactions.range(min_tid..).map(|(tid, _)| *tid);
                let tids = tids.take_while(|tid| *tid <= max_tid);
                Packet::AnswerTIDsFrom { tids: tids.take(length as usize).collect() }
            }
            Packet::AskTIDs { first, last, .. } => {
                let tids = state.transactions.keys().rev().skip(first as usize);
                Packet::AnswerTIDs { tids: tids.take((last - first) as usize).copied().collect() }
            }
            Packet::AskTransactionInformation { tid } => match state.transactions.get(&tid) {
                None => Packet::Error { code: ErrorCode::TidNotFound, message: String::new() },
                Some((oids, [user, description, extension])) => {
                    Packet::AnswerTransactionInformation {
                        tid,
                        user: user.clone(),
                        description: description.clone(),
                        extension: extension.clone(),
                        packed: false,
                        oids: oids.clone(),
                    }
                }
            },
            Packet::AskObjectUndoSerial { undone_tid, oids, .. } => {
                let mut serials = Map::default();
                for oid in oids.into_iter().filter(|oid| !state.faults.packed.contains(oid)) {
                    let tids: Vec<Tid> = state.objects[&oid].iter().map(|r| r.tid).collect();
                    let current = *tids.last().unwrap();
                    let target = tids.iter().rev().find(|tid| **tid < undone_tid).copied();
                    serials.0.push((oid, (current, target, current == undone_tid)));
                }
                Packet::AnswerObjectUndoSerial { serials }
            }
            Packet::AskOIDsFrom { length, min_oid, .. } => {
                let mut oids = state.objects.range(min_oid..).map(|(oid, _)| *oid);
                let some = oids.by_ref().take(length as usize).collect();
                Packet::AnswerOIDsFrom { next_oid: oids.next(), oids: some }
            }
            Packet::AskObjectHistory { oid, first, last } => {
                let revisions = state.objects.get(&oid).map_or(&[][..], Vec::as_slice);
                let history = revisions.iter().rev().skip(first as usize);
                let history = history.take((last - first) as usize);
                let history = history.map(|r| (r.tid, r.stored.data.len() as u64)).collect();
                Packet::AnswerObjectHistory { oid, history }
            }
            other => panic!("{other:?}"),
        })
    }
}
