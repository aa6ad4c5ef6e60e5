// SPDX-License-Identifier: GPL-2.0-or-later
//! A master that is told what was recorded, and compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use neo_common::engine::ConnId;
use neo_common::protocol::codec::{Wire, Writer};
use neo_common::protocol::{MsgId, OutBuffer, Packet, Value};
use neo_common::time::{Now, tid_from_time};
use neo_common::types::Tid;

use super::recorded::{Event, Raw, Recorded, raw};
use crate::Options;
use crate::tests::harness::Harness;

/// How late the master may hear what was recorded, in seconds.
const LATE: f64 = 0.006;

/// How early it may hear something, compared to what was recorded elsewhere.
const EARLY: f64 = 0.1;

const ASK_PARTITION_TABLE: i128 = 0x0009;
const ANSWER_PARTITION_TABLE: i128 = 0x8009;
/// When the session was recorded, in seconds: from the first time stamp that the master told.
fn began_at(events: &VecDeque<Recorded>) -> f64 {
    let timestamp = events.iter().find_map(|recorded| match &recorded.event {
        Event::Out((_, 0x0006, args)) => match args[0] {
            Value::Float(timestamp) => Some(timestamp - recorded.time),
            _ => None,
        },
        _ => None,
    });
    timestamp.unwrap()
}

fn at(began_at: f64, time: f64) -> Now {
    let realtime_us = ((began_at + time) * 1e6) as u64;
    Now { monotonic: Duration::from_secs_f64(10.0 + time), realtime_us }
}

pub(super) struct Replay {
    h: Harness,
    began_at: f64,
    restart_at: f64,
    events: VecDeque<Recorded>,
    /// What the master must be told, and may not know yet.
    pending: VecDeque<Recorded>,
    /// What it should say now.
    expected: Option<Raw>,
    conns: BTreeMap<String, ConnId>,
    /// Ids of our questions, by those of upstream.
    ids: BTreeMap<(String, i128), i128>,
    /// Our tids, by those of upstream.
    tids: BTreeMap<u64, u64>,
    /// Partition tables that storages told. Upstream asks one of the storages that have the greatest
    /// ptid, we ask all of them.
    tables: Vec<(f64, Vec<Value>)>,
    /// When the last event was recorded.
    time: f64,
    compared: usize,
}

impl Replay {
    pub(super) fn new(
        options: Options,
        events: VecDeque<Recorded>,
        restart_at: f64,
        seed: u64,
    ) -> Self {
        let (pending, expected, conns, ids, tids) = Default::default();
        let began_at = began_at(&events);
        let h = Harness::seeded(options, at(began_at, -1.0), seed);
        let mut compared = 0;
        let mut tables = Vec::new();
        let (asks, events): (VecDeque<Recorded>, VecDeque<Recorded>) =
            events.into_iter().partition(|recorded| {
                matches!(
                    recorded.event,
                    Event::Out((_, ASK_PARTITION_TABLE, _))
                        | Event::In((_, ANSWER_PARTITION_TABLE, _))
                )
            });
        for recorded in asks {
            match recorded.event {
                Event::In((.., args)) => tables.push((recorded.time, args)),
                // We ask it too, and more.
                _ => compared += 1,
            }
        }
        Self {
            h,
            began_at,
            restart_at,
            events,
            pending,
            expected,
            conns,
            ids,
            tids,
            tables,
            time: 0.0,
            compared,
        }
    }

    pub(super) fn run(mut self) -> usize {
        let restart_at = self.restart_at;
        let mut restarted = false;
        while let Some(recorded) = self.events.pop_front() {
            while let Some(index) = self.possible(None)
                && self.pending[index].time < recorded.time - LATE
            {
                self.feed(index);
            }
            if recorded.time > restart_at && !restarted {
                restarted = true;
                let options = self.h.engine.app.cluster.options.clone();
                self.h = Harness::seeded(options, at(self.began_at, restart_at), 1);
            }
            match recorded.event {
                Event::Out(expected) => self.output(&recorded.conn, recorded.time, expected),
                _ => self.pending.push_back(recorded),
            }
        }
        while let Some(index) = self.possible(None) {
            self.feed(index);
        }
        self.compared
    }

    /// Our master must say this next on a connection.
    fn output(&mut self, label: &str, time: f64, expected: Raw) {
        let is_answer = expected.1 & 0x8000 != 0;
        self.expected = Some(expected.clone());
        loop {
            if let Some(conn) = self.conns.get(label)
                && let Some(mut sent) = self.h.next(*conn)
            {
                // News of nodes that were lost at the same time come in any order.
                if let (Some(theirs), Some(ours)) = (states(&expected), states_of(&sent.1))
                    && theirs != ours
                {
                    let second = self.h.next(*conn);
                    self.h.put_back_second(*conn, sent);
                    match second {
                        Some(second) => sent = second,
                        None => {
                            let index = self.possible(None);
                            self.feed(index.unwrap_or_else(|| panic!("{label} {expected:?}")));
                            continue;
                        }
                    }
                }
                self.compare(label, time, expected, sent);
                return;
            }
            // Answers are due to their requests. News come from elsewhere.
            let same = self.possible(Some(label)).filter(|_| is_answer);
            match same.or_else(|| self.possible(None)) {
                Some(index) => self.feed(index),
                None => self.bring_forward(label, time, &expected),
            }
        }
    }

    /// The first input that may happen now: nothing is told on a connection that the master did not
    /// open yet.
    fn possible(&self, label: Option<&str>) -> Option<usize> {
        let mut blocked = BTreeSet::new();
        self.pending.iter().position(|recorded| {
            let is_early = matches!(recorded.event, Event::Opened) && self.h.connects.is_empty();
            if is_early {
                blocked.insert(&recorded.conn);
            }
            !blocked.contains(&recorded.conn) && label.is_none_or(|label| label == recorded.conn)
        })
    }

    /// Something must happen first on another connection, although it was recorded later.
    fn bring_forward(&mut self, label: &str, time: f64, expected: &Raw) {
        let mut blocked = BTreeSet::from([label.to_owned()]);
        let index = self.events.iter().position(|recorded| {
            let is_said = match (&recorded.event, self.conns.get(&recorded.conn)) {
                (Event::Out(_), Some(conn)) => !self.h.is_quiet(*conn),
                (Event::Out(_), None) => false,
                _ => true,
            };
            if !is_said {
                blocked.insert(recorded.conn.clone());
            }
            is_said && !blocked.contains(&recorded.conn)
        });
        let next = index.and_then(|index| self.events.remove(index));
        match next.filter(|next| next.time < time + EARLY) {
            Some(Recorded { time, conn, event: Event::Out(expected) }) => {
                self.output(&conn, time, expected);
            }
            Some(next) => self.pending.push_back(next),
            None => panic!("{label} {time}: we do not say {expected:?}"),
        }
    }

    fn feed(&mut self, index: usize) {
        let Some(Recorded { time, conn: label, event }) = self.pending.remove(index) else {
            return;
        };
        self.h.now = self.h.now.max(at(self.began_at, time));
        self.time = time;
        match event {
            Event::Accepted => {
                let conn = self.h.connect();
                self.conns.insert(label, conn);
            }
            Event::Opened => {
                let (conn, address) = *self.h.connects.front().expect("it connects");
                assert_eq!(conn, self.h.accept(address.port()));
                self.conns.insert(label, conn);
            }
            Event::In(packet) => {
                self.input(&label, packet);
                self.answer_tables();
            }
            Event::Out(_) => unreachable!("not an input"),
            Event::Killed => self.h.close(self.conns[&label]),
            Event::Closed => {
                let conn = self.conns[&label];
                // A master that is killed does not say all.
                let is_killed = (self.restart_at - 2.0..self.restart_at).contains(&time);
                while let Some((_, packet)) = self.h.next(conn).filter(|_| !is_killed) {
                    // What the peer did not read before it closed.
                    let is_news = packet.answer_code().is_none() && !packet.is_answer();
                    assert!(is_news, "{label} {time}: upstream did not say {packet:?}");
                }
                if !self.h.is_closed(conn) {
                    self.h.close(conn);
                }
            }
        }
    }

    fn input(&mut self, label: &str, (id, code, args): Raw) {
        let conn = self.conns[label];
        if self.h.is_closed(conn) {
            return;
        }
        if code == 0x0012 {
            self.align(label, id);
        }
        let id = if code & 0x8000 == 0 { id } else { self.ids[&(label.to_owned(), id)] };
        let args = args.into_iter().map(|value| self.translate(value)).collect();
        let packet = Value::Array(vec![Value::Int(id), Value::Int(code), Value::Array(args)]);
        let mut out = OutBuffer::default();
        packet.encode(&mut Writer::new(&mut out));
        self.h.bytes(conn, &out.take().concat());
    }

    /// Storages have the table that one of them told upstream, at that time.
    fn answer_tables(&mut self) {
        let time = self.time - EARLY;
        let conns: Vec<ConnId> = self.conns.values().copied().collect();
        for conn in conns {
            for id in self.h.take_named(conn, "AskPartitionTable") {
                let next = self.tables.iter().find(|(at, _)| *at >= time);
                let (_, args) = next.or(self.tables.last()).expect("one was recorded");
                let args = Value::Array(args.clone());
                let packet = Value::Array(vec![
                    Value::Int(id.into()),
                    Value::Int(ANSWER_PARTITION_TABLE),
                    args,
                ]);
                let mut out = OutBuffer::default();
                packet.encode(&mut Writer::new(&mut out));
                self.h.bytes(conn, &out.take().concat());
            }
        }
    }

    /// A transaction is about to begin: its ttid must belong to the same partition as that of
    /// upstream, because that decides which storages are involved.
    fn align(&mut self, label: &str, id: i128) {
        let expected = self.events.iter().filter(|recorded| recorded.conn == label);
        let mut expected = expected.filter_map(|recorded| match &recorded.event {
            Event::Out(raw) => Some(raw),
            _ => None,
        });
        let is_answer = |raw: &&Raw| (raw.0, raw.1) == (id, 0x8012);
        let answer = self.expected.as_ref().filter(is_answer).or_else(|| expected.find(is_answer));
        let Some(Value::Bin(ttid)) = answer.map(|(.., args)| &args[0]) else { return };
        let partitions = self.h.engine.app.cluster.pt.partitions();
        let partition = number(ttid).map(|ttid| Tid::new(ttid).partition(partitions));
        while Some(tid_from_time(self.h.now.realtime_us).partition(partitions)) != partition {
            self.h.now.realtime_us += 1;
        }
    }

    /// From what peers of upstream said to what they would have said to us.
    fn translate(&self, value: Value) -> Value {
        let all = |values: Vec<Value>| values.into_iter().map(|v| self.translate(v)).collect();
        match value {
            Value::Bin(bytes) => match number(&bytes).and_then(|tid| self.our_tid(tid)) {
                Some(tid) => Value::Bin(tid.to_be_bytes().to_vec().into()),
                None => Value::Bin(bytes),
            },
            Value::Array(values) => Value::Array(all(values)),
            Value::Map(pairs) => Value::Map(
                pairs.into_iter().map(|(k, v)| (self.translate(k), self.translate(v))).collect(),
            ),
            other => other,
        }
    }

    fn our_tid(&self, tid: u64) -> Option<u64> {
        // Or the one before.
        let before = || Some(self.tids.get(&tid.checked_add(1)?)? - 1);
        self.tids.get(&tid).copied().or_else(before)
    }

    fn compare(
        &mut self,
        label: &str,
        time: f64,
        theirs: Raw,
        (id, packet): (Option<MsgId>, Packet),
    ) {
        let context = format!("{label} at {time}: {theirs:?}\nours: {packet:?}");
        let mut out = OutBuffer::default();
        packet.encode(id, &mut out);
        let ours = raw(&out.take().concat());
        assert_eq!(theirs.1, ours.1, "{context}");
        if theirs.1 & 0x8000 == 0 {
            self.ids.insert((label.to_owned(), theirs.0), ours.0);
        } else {
            assert_eq!(theirs.0, ours.0, "{context}");
        }
        let (mut a, mut b) = (theirs.2, ours.2);
        if theirs.1 == 0x0006 {
            for args in [&mut a, &mut b] {
                if let Value::Array(nodes) = &mut args[1] {
                    // Whatever order the others have.
                    nodes.sort_by_key(|node| format!("{node:?}").replace("DOWN", ""));
                    nodes.sort_by_key(|node| match node {
                        Value::Array(entry) => format!("{:?} {:?}", entry[2], entry[1]),
                        _ => String::new(),
                    });
                }
            }
        }
        assert_eq!(a.len(), b.len(), "{context}");
        for (a, b) in a.iter().zip(&b) {
            assert!(self.is_same(a, b), "{context}");
        }
        self.compared += 1;
    }

    fn is_same(&mut self, theirs: &Value, ours: &Value) -> bool {
        match (theirs, ours) {
            (Value::Float(_), Value::Float(_)) => true,
            (Value::Bin(a), Value::Bin(b)) => match (number(a), number(b)) {
                (Some(a), Some(b)) if is_given(a) && is_given(b) => {
                    let ours = self.our_tid(a).unwrap_or(b);
                    *self.tids.entry(a).or_insert(ours) == b
                }
                // A ttid in a message.
                _ => {
                    a == b || (is_same_text(a, "unknown ttid ") && is_same_text(b, "unknown ttid "))
                }
            },
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.is_same(a, b))
            }
            // Versions of the partition table after a start that leaves something unknown.
            (Value::Int(a), Value::Int(b)) if (1 << 16..2 << 16).contains(b) => *a <= *b,
            // Oids of a pack order, which upstream joins by mistake.
            (Value::Bin(a), Value::Array(b)) => {
                let bytes = |value: &Value| match value {
                    Value::Bin(bytes) => bytes.to_vec(),
                    _ => Vec::new(),
                };
                *a == b.iter().flat_map(bytes).collect::<Vec<u8>>()
            }
            (a, b) => a == b,
        }
    }
}

/// Ids and states of nodes, in news of nodes.
fn states(packet: &Raw) -> Option<Vec<String>> {
    let (_, 0x0006, args) = packet else { return None };
    let Value::Array(nodes) = &args[1] else { return None };
    let state = |node: &Value| match node {
        Value::Array(entry) => format!("{:?} {:?}", entry[2], entry[3]),
        _ => String::new(),
    };
    let mut states: Vec<String> = nodes.iter().map(state).collect();
    states.sort();
    Some(states)
}
fn states_of(packet: &Packet) -> Option<Vec<String>> {
    let mut out = OutBuffer::default();
    packet.encode(Some(0), &mut out);
    states(&raw(&out.take().concat()))
}

fn is_same_text(bytes: &[u8], start: &str) -> bool {
    bytes.starts_with(start.as_bytes())
}
fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}
/// Whether a number is a tid of these years.
fn is_given(number: u64) -> bool {
    (0x0400_0000_0000_0000..0x0500_0000_0000_0000).contains(&number)
}
