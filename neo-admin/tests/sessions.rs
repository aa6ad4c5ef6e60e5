// SPDX-License-Identifier: GPL-2.0-or-later
//! Recorded sessions of an upstream admin, replayed: our admin is told what the upstream one was
//! told, and must say what it said, with the same ids.
//!
//! Packets of different connections were recorded at different processes, so their relative order is
//! only roughly right. What the admin sends to the master tells what it must have received before:
//! if it did not, the next requests of other peers are brought forward. Commands whose origin was not
//! recorded are made up, from a connection of their own.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, VecDeque};

use common::session::{Event, Recorded, load, normal};
use common::{Harness, config};
use neo_common::engine::ConnId;
use neo_common::protocol::Packet;

/// How far apart two recorders may be, in seconds.
const JITTER: f64 = 0.1;

struct Replay {
    h: Harness,
    events: VecDeque<Recorded>,
    /// Name of the connection to the master.
    master: &'static str,
    conns: BTreeMap<String, ConnId>,
    /// Connections that were not recorded.
    made_up: Vec<ConnId>,
    /// Number of packets received from the admin and compared.
    heard: usize,
}

impl Replay {
    fn new(h: Harness, events: Vec<Recorded>, master: &'static str) -> Self {
        let (conns, made_up) = Default::default();
        Self { h, events: events.into(), master, conns, made_up, heard: 0 }
    }

    fn run(mut self) -> (Harness, usize) {
        while let Some(recorded) = self.events.pop_front() {
            self.step(recorded);
        }
        for (name, conn) in &self.conns {
            assert!(self.h.is_quiet(*conn), "{name}: unexpected {:?}", self.h.sent[conn]);
        }
        for conn in &self.made_up {
            assert_eq!(self.h.sent[conn].len(), 1, "{:?}", self.h.sent[conn]);
        }
        (self.h, self.heard)
    }

    fn step(&mut self, Recorded { time, conn: name, event }: Recorded) {
        match event {
            Event::Opened => {
                let (conn, _) = self.h.connects.pop_front().expect("the admin connects");
                self.h.connected(conn);
                self.conns.insert(name, conn);
            }
            Event::Accepted => {
                let conn = self.h.accept();
                self.conns.insert(name, conn);
            }
            Event::In((id, packet)) => {
                let conn = self.conns[&name];
                self.h.answer(conn, id.unwrap(), packet);
            }
            Event::Out((id, packet)) => {
                let conn = self.conns[&name];
                if name == self.master {
                    self.wait_for(time, conn, &packet);
                }
                let (sent_id, sent) = self.h.take(conn);
                assert_eq!((sent_id, normal(sent)), (id, normal(packet)), "{name} at {time}");
                self.heard += 1;
            }
            Event::Closed => self.h.close(self.conns[&name]),
        }
    }

    /// Brings requests of other peers forward until the admin has said something to the master. If
    /// that does not help, `request` is made by a peer that was not recorded.
    fn wait_for(&mut self, time: f64, conn: ConnId, request: &Packet) {
        while self.h.is_quiet(conn) {
            let next = self.events.iter().position(|recorded| {
                recorded.conn != self.master
                    && recorded.time < time + JITTER
                    && matches!(recorded.event, Event::In(_) | Event::Accepted)
            });
            match next {
                Some(index) => {
                    let recorded = self.events.remove(index).unwrap();
                    self.step(recorded);
                }
                None => {
                    let ctl = self.h.accept();
                    self.h.send(ctl, request.clone());
                    self.made_up.push(ctl);
                    assert!(!self.h.is_quiet(conn), "{request:?} at {time} has no cause");
                }
            }
        }
    }
}

/// A cluster exercised with nearly every command of neoctl, from an admin that has no master to the
/// end of the cluster.
#[test]
fn neoctl_commands() {
    let events = load("f-neoctl-commands", "A1");
    let h = Harness::new(config("foxtrot", 26001, 26021));
    let (h, heard) = Replay::new(h, events, "c2").run();
    assert_eq!((h.exit, heard), (Some(0), 155));
}

/// The admin of a cluster that has a backup: the admin of the backup reports to it, and both
/// clusters are in the summary.
#[test]
fn upstream_of_a_backup_cluster() {
    let events = load("g-backup-cluster", "up.A1");
    let mut config = config("golf", 27001, 27021);
    config.backups = vec!["golfbackup".into()];
    let (h, heard) = Replay::new(Harness::new(config), events, "c1").run();
    assert_eq!((h.exit, heard), (Some(0), 33));
}

/// The admin of a backup cluster reports to the one of the upstream cluster, and relays its
/// questions to the master.
#[test]
fn admin_of_a_backup_cluster() {
    let events = load("g-backup-cluster", "bk.A1");
    let h = Harness::new(config("golfbackup", 27101, 27121));
    let (h, heard) = Replay::new(h, events, "c6").run();
    assert_eq!((h.exit, heard), (Some(0), 87));
}
