// SPDX-License-Identifier: GPL-2.0-or-later
//! A peer that does not keep to the protocol.
//!
//! It connects to nodes, and accepts connections if a node believes it to be one of its kind. It
//! usually introduces itself properly, with a role of its choice, because what comes before the
//! identification is little. Then it sends packets that it got as samples, in any order and with wrong
//! values: numbers at the ends of their ranges, identifiers that it heard from its peers, lists too
//! long, items missing, other types. It answers requests, rightly or not. Sometimes it sends bytes
//! that are no packet at all, or closes in the middle of one.
//!
//! Nothing that it does may make a node panic, loop, or grow: see `tests/hostile`.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{ConnId, Flush};
use neo_common::prng::Prng;
use neo_common::protocol::NodeType;
use neo_common::protocol::codec::{Reader, Wire};
use neo_common::protocol::frame::HANDSHAKE;
use neo_common::protocol::{OutBuffer, Value};
use neo_common::time::Now;

use crate::process::{Effect, Failed, Happening, Process};

/// Bit of the code of answers.
const ANSWER: i128 = 0x8000;

/// Code of `RequestIdentification`.
const IDENTIFY: i128 = 1;

/// Code of `NotifyNodeInformation`.
const NODES: i128 = 6;

/// How often something closed a connection before it is hardly ever said again.
const REFUSED_MAX: u32 = 2;

/// Values of its peers that it remembers.
const HEARD_LEN_MAX: usize = 200;

/// Connections at once.
const CONNS_LEN_MAX: usize = 12;

/// Numbers that are wrong in most places.
const NUMBERS: [i128; 16] = [
    0,
    1,
    -1,
    2,
    12,
    255,
    65_536,
    i32::MAX as i128,
    i32::MIN as i128,
    -0x2000_0000,
    0x1000_0001,
    u32::MAX as i128,
    i64::MAX as i128,
    i64::MIN as i128,
    u64::MAX as i128,
    1 << 40,
];

/// One packet that it may send: code and arguments.
pub type Sample = (i128, Vec<Value>);

/// What it is told about the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the cluster.
    pub cluster: String,
    /// How many of the targets, at the beginning, are masters: they give identities.
    pub masters: usize,
    /// Nodes to connect to.
    pub targets: Vec<SocketAddr>,
    /// What it says that it is.
    pub roles: Vec<NodeType>,
    /// What it sends.
    pub samples: Vec<Sample>,
    /// Mean time between two packets.
    pub period: Duration,
}

#[derive(Default)]
struct Conn {
    is_connected: bool,
    /// The handshake of the peer arrived.
    is_greeted: bool,
    accepted: bool,
    next_id: u32,
    buffer: Vec<u8>,
    /// Requests of the peer that were not answered.
    asked: VecDeque<(i128, i128)>,
    /// Address of the peer, if it is one of the targets, and role that was played.
    door: Option<Door>,
    /// Code of what was said last.
    last: i128,
    /// The peer gave it a node id.
    is_registered: bool,
}

/// Where something is said: to whom, as what (index of its roles).
type Door = (SocketAddr, usize);

/// Who it is, in some role.
#[derive(Clone, Default, Debug)]
struct Identity {
    nid: Option<Value>,
    timestamp: Option<Value>,
}

/// See the module documentation.
pub struct Hostile {
    options: Options,
    prng: Prng,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    heard: Vec<Value>,
    /// By role.
    identities: Vec<Identity>,
    /// How often something closed the connection.
    refused: BTreeMap<(Door, i128), u32>,
    effects: VecDeque<Effect>,
    at: Duration,
    /// Packets sent.
    pub sent: u64,
}

impl Hostile {
    /// Draws what it does from `prng`.
    ///
    /// # Panics
    /// Without samples, targets or roles.
    pub fn new(options: Options, prng: Prng) -> Self {
        assert!(!options.samples.is_empty() && !options.targets.is_empty());
        assert!(!options.roles.is_empty());
        Self {
            prng,
            conns: BTreeMap::new(),
            next_conn: 1,
            heard: Vec::new(),
            identities: vec![Identity::default(); options.roles.len()],
            refused: BTreeMap::new(),
            effects: VecDeque::new(),
            at: Duration::ZERO,
            sent: 0,
            options,
        }
    }

    fn act(&mut self) {
        if self.conns.len() < CONNS_LEN_MAX && (self.conns.is_empty() || self.prng.one_in(10)) {
            let id = self.new_conn();
            let (address, role) = self.door();
            self.conns.insert(id, Conn { door: Some((address, role)), ..Conn::default() });
            self.effects.push_back(Effect::Connect(id, address));
        }
        let ready = self.conns.iter().filter(|(_, conn)| conn.is_connected);
        let ready: Vec<ConnId> = ready.map(|(id, _)| *id).collect();
        let Some(id) = self.prng.choose(&ready).copied() else { return };
        // As long as the connection that it comes from lasts, an identity is good for others.
        if self.conns[&id].is_registered && !self.prng.one_in(30) {
            return;
        }
        if self.prng.one_in(200) {
            self.conns.remove(&id);
            self.effects.push_back(Effect::Close(id, Flush::No));
            return;
        }
        let packet = self.packet(id);
        let mut bytes = encode(&packet);
        if self.prng.one_in(100) {
            self.spoil(&mut bytes);
        }
        self.send(id, bytes);
    }

    /// Where to knock, as what.
    fn door(&mut self) -> Door {
        let role = self.prng.below(self.options.roles.len());
        let targets = &self.options.targets;
        // Without identity, only masters listen.
        let known = self.identities[role].nid.is_some() || self.options.masters == 0;
        let targets = if known { targets } else { &targets[..self.options.masters] };
        let open: Vec<_> = targets
            .iter()
            .filter(|address| !self.is_refused((**address, role), IDENTIFY))
            .collect();
        let any = self.prng.one_in(20);
        let address = self.prng.choose(&open).filter(|_| !any).map(|address| **address);
        let address = address.or_else(|| self.prng.choose(&self.options.targets).copied());
        (address.expect("there are targets"), role)
    }

    fn is_refused(&self, door: Door, code: i128) -> bool {
        self.refused.get(&(door, code)).is_some_and(|count| *count > REFUSED_MAX)
    }

    /// The next thing to say.
    fn packet(&mut self, id: ConnId) -> Value {
        let answers = self.prng.one_in(2);
        let conn = self.conns.get_mut(&id).expect("it is connected");
        let door = conn.door;
        let question = if answers { conn.asked.pop_front() } else { None };
        let (number, sample) = match question {
            Some((number, code)) => (number, self.sample(Some(code | ANSWER), door)),
            None => {
                let number = i128::from(conn.next_id);
                conn.next_id += 1;
                (number, self.sample(None, door))
            }
        };
        let (code, mut args) = sample;
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.last = code;
        }
        for _ in 0..self.prng.below(4).saturating_sub(1) {
            let at = self.prng.below(args.len().max(1));
            self.change_one(&mut args, at);
        }
        if self.prng.one_in(100) {
            args.pop();
        }
        Value::Array(vec![Value::Int(number), Value::Int(code), Value::Array(args)])
    }

    /// An answer of this code, or something to begin with.
    fn sample(&mut self, answer: Option<i128>, door: Option<Door>) -> Sample {
        let anything = self.prng.one_in(50);
        let is_refused = |code| door.is_some_and(|door| self.is_refused(door, code));
        let fits = |sample: &&Sample| match answer {
            _ if anything => true,
            Some(code) => sample.0 == code,
            None => sample.0 & ANSWER == 0 && sample.0 != IDENTIFY && !is_refused(sample.0),
        };
        let fit: Vec<&Sample> = self.options.samples.iter().filter(fits).collect();
        // All packets as often, however many samples there are.
        let codes: BTreeSet<i128> = fit.iter().map(|sample| sample.0).collect();
        let codes: Vec<i128> = codes.into_iter().collect();
        if let Some(code) = self.prng.choose(&codes).copied() {
            let fit: Vec<&Sample> = fit.into_iter().filter(|sample| sample.0 == code).collect();
            if let Some(sample) = self.prng.choose(&fit) {
                return (*sample).clone();
            }
        }
        self.prng.choose(&self.options.samples).expect("there are samples").clone()
    }

    fn change_one(&mut self, args: &mut [Value], at: usize) {
        if let Some(arg) = args.get_mut(at) {
            let old = std::mem::replace(arg, Value::Nil);
            *arg = self.changed(old);
        }
    }

    /// A value that is a little, or entirely, wrong.
    fn changed(&mut self, value: Value) -> Value {
        match value {
            _ if self.prng.one_in(12) => self.any(),
            Value::Array(mut items) if !items.is_empty() => {
                match self.prng.below(4) {
                    0 => drop(items.pop()),
                    1 => {
                        let item = items[0].clone();
                        let len = [1, 3, 1000][self.prng.below(3)];
                        items.extend(std::iter::repeat_n(item, len));
                    }
                    _ => {
                        let at = self.prng.below(items.len());
                        self.change_one(&mut items, at);
                    }
                }
                Value::Array(items)
            }
            Value::Map(mut pairs) if !pairs.is_empty() => {
                let at = self.prng.below(pairs.len());
                let (key, item) = pairs[at].clone();
                pairs[at] = if self.prng.one_in(2) {
                    (self.changed(key), item)
                } else {
                    (key, self.changed(item))
                };
                Value::Map(pairs)
            }
            Value::Bin(old) => self.bin(old.len()),
            Value::Int(_) => self.number(),
            Value::Item(ext, _) => Value::Item(ext, self.prng.below(9) as u8),
            _ => self.any(),
        }
    }

    fn any(&mut self) -> Value {
        match self.prng.below(8) {
            0 => Value::Nil,
            1 => Value::Bool(self.prng.one_in(2)),
            2 | 3 => self.number(),
            4 => Value::Float(f64::NAN),
            5 => Value::Array(Vec::new()),
            6 => Value::Item(self.prng.below(9) as i8, self.prng.below(9) as u8),
            _ => self.bin(8),
        }
    }

    fn number(&mut self) -> Value {
        let heard: Vec<&Value> = self.heard.iter().filter(|v| matches!(v, Value::Int(_))).collect();
        if self.prng.one_in(3)
            && let Some(value) = self.prng.choose(&heard)
        {
            return (*value).clone();
        }
        Value::Int(self.prng.choose(&NUMBERS).copied().unwrap_or_default())
    }

    /// Bytes, of a length that is right for most.
    fn bin(&mut self, len: usize) -> Value {
        let heard: Vec<&Value> = self.heard.iter().filter(|v| matches!(v, Value::Bin(_))).collect();
        if !self.prng.one_in(4)
            && let Some(value) = self.prng.choose(&heard)
        {
            return (*value).clone();
        }
        let len = if self.prng.one_in(10) { self.prng.below(40) } else { len };
        let byte = [0, 0xff, 0x7f, 3][self.prng.below(4)];
        let mut bytes = vec![byte; len];
        if let Some(last) = bytes.last_mut() {
            *last = self.prng.below(256) as u8;
        }
        Value::Bin(bytes.into())
    }

    /// Makes bytes that are no packet any more.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        match self.prng.below(3) {
            0 => bytes.truncate(self.prng.below(bytes.len())),
            1 => {
                let at = self.prng.below(bytes.len());
                bytes[at] = self.prng.below(256) as u8;
            }
            _ => bytes.extend([0xdd, 0xff, 0xff, 0xff, 0xff]),
        }
    }

    fn send(&mut self, id: ConnId, bytes: Vec<u8>) {
        self.sent += 1;
        self.effects.push_back(Effect::Bytes(id, vec![bytes.into()]));
    }

    /// Says hello, usually.
    fn connected(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.is_connected = true;
        let accepted = conn.accepted;
        if self.prng.one_in(50) {
            return;
        }
        self.send(id, HANDSHAKE.to_vec());
        if !accepted && !self.prng.one_in(20) {
            let conn = self.conns.get_mut(&id).expect("just seen");
            conn.next_id = 1;
            conn.last = IDENTIFY;
            let role = conn.door.map_or(0, |door| door.1);
            let hello = self.identification(role);
            self.send(id, encode(&hello));
        }
    }

    fn identification(&mut self, role: usize) -> Value {
        let Identity { nid, timestamp } = self.identities[role].clone();
        let nid = match self.prng.below(20) {
            0 => self.number(),
            1 => Value::Nil,
            _ => nid.unwrap_or(Value::Nil),
        };
        let timestamp = timestamp.filter(|_| !self.prng.one_in(20)).unwrap_or(Value::Nil);
        let address = match self.options.roles[role] {
            NodeType::Client => Value::Nil,
            _ if self.prng.one_in(6) => Value::Nil,
            _ => {
                let port = [10_000, 10_001, 10_001, 10_001, 10_001, 0, -1][self.prng.below(7)];
                let host = ["10.0.0.77", "10.0.0.77", "10.0.0.1", "nowhere"][self.prng.below(4)];
                Value::Array(vec![Value::text(host), Value::Int(port)])
            }
        };
        let args = vec![
            Value::item(self.options.roles[role]),
            nid,
            address,
            Value::text(&self.options.cluster),
            timestamp,
            Value::Map(Vec::new()),
        ];
        Value::Array(vec![Value::Int(0), Value::Int(IDENTIFY), Value::Array(args)])
    }

    /// Remembers who it is.
    fn learn(&mut self, id: ConnId, code: i128, args: &Value) {
        let Value::Array(args) = args else { return };
        let role = self.conns.get(&id).and_then(|conn| conn.door).map(|door| door.1);
        match (code, role) {
            (code, Some(role)) if code == IDENTIFY | ANSWER => {
                if let Some(nid @ Value::Int(_)) = args.get(2) {
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.is_registered = true;
                    }
                    self.identities[role] = Identity { nid: Some(nid.clone()), timestamp: None };
                }
            }
            (NODES, _) => {
                let Some(Value::Array(nodes)) = args.get(1) else { return };
                for node in nodes {
                    let Value::Array(node) = node else { continue };
                    let known = self.identities.iter_mut();
                    for identity in known.filter(|known| known.nid.as_ref() == node.get(2)) {
                        identity.timestamp = node.get(4).cloned();
                    }
                }
            }
            _ => {}
        }
    }

    /// Listens: remembers identifiers, and what it was asked.
    fn bytes(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.buffer.extend_from_slice(bytes);
        if !conn.is_greeted && conn.buffer.len() >= HANDSHAKE.len() {
            conn.is_greeted = true;
            conn.buffer.drain(..HANDSHAKE.len());
        }
        if !conn.is_greeted {
            return;
        }
        loop {
            let conn = self.conns.get_mut(&id).expect("just seen");
            let mut reader = Reader::new(&conn.buffer);
            let Ok(value) = Value::decode(&mut reader) else { return };
            let left = reader.remaining();
            conn.buffer.drain(..conn.buffer.len() - left);
            let Value::Array(frame) = value else { continue };
            if let [Value::Int(number), Value::Int(code), args] = &frame[..] {
                // Notifications are answered as well.
                if code & ANSWER == 0 {
                    conn.asked.push_back((*number, *code));
                }
                self.hear(args);
                self.learn(id, *code, args);
            }
        }
    }

    fn closed(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if let Some((_, role)) = conn.door.filter(|_| conn.is_registered) {
            self.identities[role] = Identity::default();
        }
        if let Some(door) = conn.door.filter(|_| conn.is_connected) {
            *self.refused.entry((door, conn.last)).or_default() += 1;
        }
        // Doors that were closed may be open now.
        if self.prng.one_in(1000) {
            self.refused.clear();
        }
    }

    fn hear(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.hear(item)),
            Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
                self.hear(key);
                self.hear(value);
            }),
            Value::Int(_) | Value::Bin(_) if self.heard.len() < HEARD_LEN_MAX => {
                self.heard.push(value.clone());
            }
            Value::Int(_) | Value::Bin(_) => {
                let at = self.prng.below(HEARD_LEN_MAX);
                self.heard[at] = value.clone();
            }
            _ => {}
        }
    }
}

/// A packet as it is sent.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = OutBuffer::default();
    value.encode(&mut neo_common::protocol::codec::Writer::new(&mut out));
    out.take().concat()
}

impl Process for Hostile {
    fn start(&mut self, now: Now) {
        self.at = now.monotonic;
    }
    fn new_conn(&mut self) -> ConnId {
        self.next_conn += 1;
        ConnId::new(self.next_conn)
    }
    fn happen(&mut self, happening: Happening, now: Now) -> Result<(), Failed> {
        match happening {
            Happening::Accepted(id, _) => {
                self.conns.insert(id, Conn { accepted: true, ..Conn::default() });
                self.connected(id);
            }
            Happening::Connected(id) => self.connected(id),
            Happening::Bytes(id, bytes) => self.bytes(id, &bytes),
            Happening::Closed(id) => self.closed(id),
            Happening::Timeout => {
                if self.at <= now.monotonic {
                    self.act();
                    let us = self.options.period.as_micros() as usize * 2;
                    self.at = now.monotonic + Duration::from_micros(self.prng.below(us) as u64 + 1);
                }
            }
            Happening::Signal(_) | Happening::Work => {}
        }
        Ok(())
    }
    fn effect(&mut self, _: Duration) -> Option<Effect> {
        self.effects.pop_front()
    }
    fn deadline(&self) -> Option<Duration> {
        Some(self.at)
    }
    fn work_at(&self) -> Option<Duration> {
        None
    }
    fn label(&self) -> String {
        "hostile".into()
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// The arguments of a packet in the form of samples.
///
/// # Errors
/// If it is not a packet.
pub fn sample(packet: &Bytes) -> Result<Sample, String> {
    let mut reader = Reader::new(packet);
    match Value::decode(&mut reader).map_err(|error| error.to_string())? {
        Value::Array(frame) => match <[Value; 3]>::try_from(frame) {
            Ok([_, Value::Int(code), Value::Array(args)]) => Ok((code, args)),
            other => Err(format!("not a packet: {other:?}")),
        },
        other => Err(format!("not a packet: {other:?}")),
    }
}
