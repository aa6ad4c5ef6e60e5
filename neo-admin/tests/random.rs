// SPDX-License-Identifier: GPL-2.0-or-later
//! Peers that send anything at any time: the admin never panics, says only well-formed things, and
//! works again once they are gone.
//!
//! Packets are those of the vectors, from any peer, with ids that often are expected ones; sometimes
//! a byte is wrong. Which ones, and when connections open, close and time passes, follows from a seed.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::session::{hex, shared};
use common::{Harness, address, config};
use neo_admin::app::Job;
use neo_common::config::Address;
use neo_common::engine::{ConnId, Signal};
use neo_common::prng::Prng;
use neo_common::protocol::codec::Reader;
use neo_common::protocol::{ClusterState, Map, NodeState, NodeType, OutBuffer, Packet};

struct Vectors {
    all: Vec<Packet>,
    /// Those that an admin has something to do with.
    relevant: Vec<Packet>,
    by_code: BTreeMap<u16, Vec<Packet>>,
}

impl Vectors {
    fn load() -> Self {
        let path = shared().join("protocol/vectors.jsonl");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()));
        let mut all = Vec::new();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let bytes = hex(line["hex"].as_str().unwrap());
            all.push(Packet::decode(&mut Reader::new(&bytes)).unwrap().1);
        }
        let mut by_code = BTreeMap::<u16, Vec<Packet>>::new();
        for packet in &all {
            by_code.entry(packet.code()).or_default().push(packet.clone());
        }
        let relevant: BTreeSet<u16> = [
            0x0001, 0x0002, 0x0006, 0x0007, 0x0008, 0x000a, 0x000b, 0x0024, 0x0025, 0x0028, 0x002a,
            0x002d, 0x002e, 0x003c, 0x0046, 0x0047, 0x0048, 0x0049, 0x8000, 0x8001, 0x8007, 0x802e,
            0x803c,
        ]
        .into();
        let relevant = all.iter().filter(|p| relevant.contains(&p.code())).cloned().collect();
        Self { all, relevant, by_code }
    }
    fn draw(&self, prng: &mut Prng) -> Packet {
        let list = if prng.one_in(4) { &self.all } else { &self.relevant };
        prng.choose(list).unwrap().clone()
    }
}

fn identify(cluster: &str) -> Packet {
    Packet::RequestIdentification {
        node_type: NodeType::Admin,
        nid: None,
        address: None,
        cluster: cluster.into(),
        id_timestamp: None,
        extra: Map::default(),
    }
}

struct Chaos<'a> {
    h: Harness,
    prng: Prng,
    vectors: &'a Vectors,
    open: Vec<ConnId>,
}

impl Chaos<'_> {
    fn step(&mut self) {
        // What the admin closed is gone.
        let closed = &self.h.closed;
        self.open.retain(|conn| !closed.contains(conn));
        let conn = self.prng.choose(&self.open).copied();
        match (self.prng.below(20), conn) {
            (0, _) => {
                let conn = self.h.accept();
                self.open.push(conn);
                if self.prng.one_in(2) {
                    self.h.send(conn, identify("copy"));
                }
            }
            (1 | 2, _) => {
                if let Some((conn, _)) = self.h.connects.pop_front()
                    && !self.h.closed.contains(&conn)
                {
                    if self.prng.one_in(3) {
                        self.h.close(conn);
                    } else {
                        self.h.connected(conn);
                        self.open.push(conn);
                    }
                }
            }
            (3, Some(conn)) if self.prng.one_in(4) => {
                self.h.close(conn);
                self.open.retain(|open| *open != conn);
            }
            (4, _) => {
                let most = if self.prng.one_in(8) { 700_000 } else { 1_500 };
                let delay = self.prng.below(most);
                self.h.wait(Duration::from_millis(delay as u64));
            }
            (5, _) => {
                if let Some((id, job)) = self.h.jobs.pop_front() {
                    assert!(matches!(job, Job::Mail(_) | Job::SaveMasters(_)));
                    let done = if self.prng.one_in(2) { Ok(()) } else { Err("no".into()) };
                    self.h.job_done(id, done);
                }
            }
            (6, _) => self.h.signal(Signal::DumpState),
            (7..=12, Some(conn)) => self.answer(conn),
            (_, Some(conn)) => self.speak(conn),
            (_, None) => {}
        }
    }

    /// A plausible answer to something that the admin asked there.
    fn answer(&mut self, conn: ConnId) {
        let sent = self.h.sent.entry(conn).or_default();
        let Some((Some(id), request)) = sent.pop_front() else { return };
        let Some(code) = request.answer_code() else { return };
        let mut answer = self.prng.choose(&self.vectors.by_code[&code]).unwrap().clone();
        if let Packet::RequestIdentification { extra, .. } = request {
            let is_master = !extra.0.is_empty();
            let (node_type, nid) = match is_master {
                true => (NodeType::Master, Some(common::nid(NodeType::Master, 1))),
                false => (NodeType::Admin, None),
            };
            let your_nid = Some(common::nid(NodeType::Admin, 1)).filter(|_| is_master);
            answer = Packet::AcceptIdentification { node_type, my_nid: nid, your_nid };
        }
        let accepted =
            matches!(answer, Packet::AcceptIdentification { node_type: NodeType::Master, .. });
        self.h.answer(conn, id, answer);
        if accepted && !self.h.closed.contains(&conn) {
            let nodes = [
                (NodeType::Storage, 1, NodeState::Running),
                (NodeType::Master, 1, NodeState::Running),
                (NodeType::Admin, 1, NodeState::Running),
            ];
            self.h.notify_nodes(conn, &nodes);
        }
    }

    /// Anything.
    fn speak(&mut self, conn: ConnId) {
        let packet = match self.prng.below(8) {
            0 => Packet::NotifyUpstreamAdmin { address: address(self.prng.below(9) as u16) },
            1 => Packet::AskMonitorInformation {},
            2 => {
                let states = [ClusterState::Running, ClusterState::BackingUp];
                let state = *self.prng.choose(&states).unwrap();
                Packet::NotifyClusterInformation { state }
            }
            _ => self.vectors.draw(&mut self.prng),
        };
        let mut out = OutBuffer::default();
        packet.encode(Some(self.prng.below(12) as u32), &mut out);
        let mut bytes = out.take().concat();
        if self.prng.one_in(40) {
            let index = self.prng.below(bytes.len());
            bytes[index] = self.prng.next_u64() as u8;
        }
        let cut = self.prng.below(bytes.len());
        self.h.bytes(conn, &bytes[..cut]);
        // The engine ignores what comes after it closed; a driver would not even read it.
        self.h.bytes(conn, &bytes[cut..]);
    }
}

#[test]
fn anything_at_any_time() {
    let vectors = Vectors::load();
    let mut relayed_count = 0;
    let mut identified_count = 0;
    for seed in 0..400 {
        let mail = neo_admin::mail::MailConfig {
            recipients: vec!["ops@example.com".into()],
            sender: "neo@example.com".into(),
            host: "localhost".into(),
            smtp: Address { host: "localhost".into(), port: 25 },
            starttls: false,
            auth: None,
        };
        let config = neo_admin::Config {
            backups: vec!["copy".into()],
            mail: Some(mail).filter(|_| seed % 2 == 0),
            save_masters: seed % 3 == 0,
            ..config("test", 1, 2)
        };
        eprintln!("seed {seed}");
        let h = Harness::new(config);
        let mut chaos = Chaos { h, prng: Prng::new(seed), vectors: &vectors, open: Vec::new() };
        for _ in 0..400 {
            chaos.step();
            if chaos.h.exit.is_some() {
                break;
            }
            identified_count += usize::from(chaos.h.engine.app.primary().is_some());
        }
        relayed_count += chaos.h.sent.values().flatten().count();
        if chaos.h.exit.is_some() {
            // The cluster was told to be stopping, and the master closed.
            assert_eq!(chaos.h.exit, Some(0));
        }
    }
    // The test means something only if the admin was often at work.
    assert!(identified_count > 5000, "{identified_count}");
    assert!(relayed_count > 1000, "{relayed_count}");
}
