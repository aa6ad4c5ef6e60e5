// SPDX-License-Identifier: GPL-2.0-or-later
//! Recorded sessions of an upstream master, replayed: ours is told what the upstream one was told,
//! and must say what it said, on each connection in the same order.
//!
//! Tids depend on the clock: each one that upstream gave stands for the one that we give in the
//! same place. Time stamps are not compared, nor the order of what has none.
//!
//! Packets of different connections were recorded at different processes, so their relative order
//! is only roughly right. When upstream said something that we have no reason to say yet, what comes
//! next on other connections is brought forward.

mod recorded;
mod replay;

pub use recorded::{hex, shared};
use replay::Replay;

use super::harness::{address, options};
use crate::app::Upstream;

struct Session {
    name: &'static str,
    node: &'static str,
    cluster: &'static str,
    port: u16,
    masters: &'static [u16],
    /// Name and port of the master of the upstream cluster.
    upstream: Option<(&'static str, u16)>,
    partitions: u32,
    replicas: u32,
    restart_at: f64,
    /// Until there, in seconds.
    until: f64,
    /// When processes were killed: the end of their connections was not recorded.
    lost: &'static [(f64, &'static str)],
    /// What the choices of the master follow from.
    seed: u64,
    /// Packets of the master.
    packets: usize,
}

/// A session of one master and its cluster, as a whole.
const ONE_MASTER: Session = Session {
    name: "",
    node: "M1",
    cluster: "",
    port: 0,
    masters: &[],
    upstream: None,
    partitions: 0,
    replicas: 0,
    restart_at: f64::INFINITY,
    until: f64::INFINITY,
    lost: &[],
    seed: 1,
    packets: 0,
};

const SESSIONS: &[Session] = &[
    Session {
        name: "a-bootstrap",
        cluster: "alpha",
        port: 21001,
        partitions: 4,
        packets: 25,
        ..ONE_MASTER
    },
    Session {
        name: "b-client-operations",
        cluster: "bravo",
        port: 22001,
        partitions: 4,
        // Then upstream gives a ttid again that was given up.
        until: 3.558,
        packets: 99,
        ..ONE_MASTER
    },
    Session {
        name: "c-conflict-deadlock",
        cluster: "charlie",
        port: 23001,
        partitions: 2,
        packets: 109,
        ..ONE_MASTER
    },
    Session {
        name: "d-add-storage-replication",
        cluster: "delta",
        port: 24001,
        partitions: 3,
        packets: 139,
        ..ONE_MASTER
    },
    Session {
        name: "e-crash-recovery-verification",
        cluster: "echo",
        port: 25001,
        partitions: 2,
        restart_at: 11.0,
        lost: &[(1.8, "c2"), (6.107, "c3"), (14.1, "c18"), (14.1001, "c17")],
        packets: 329,
        ..ONE_MASTER
    },
    Session {
        name: "f-neoctl-commands",
        cluster: "foxtrot",
        port: 26001,
        masters: &[26_002],
        partitions: 4,
        replicas: 1,
        lost: &[(24.05, "c3")],
        packets: 345,
        ..ONE_MASTER
    },
    Session {
        name: "g-backup-cluster",
        node: "up.M1",
        cluster: "golf",
        port: 27001,
        partitions: 3,
        packets: 93,
        ..ONE_MASTER
    },
    Session {
        name: "g-backup-cluster",
        node: "bk.M1",
        cluster: "golfbackup",
        port: 27101,
        upstream: Some(("golf", 27_001)),
        partitions: 3,
        replicas: 1,
        lost: &[(12.279, "c5")],
        seed: 13,
        packets: 207,
        ..ONE_MASTER
    },
    Session {
        name: "h-master-election",
        cluster: "hotel",
        port: 28001,
        masters: &[28_002, 28_003],
        partitions: 2,
        packets: 38,
        ..ONE_MASTER
    },
    Session {
        name: "i-pack-orders-after-restart",
        cluster: "packs",
        port: 29801,
        partitions: 2,
        replicas: 2,
        lost: &[(1.5, "c1")],
        packets: 48,
        ..ONE_MASTER
    },
    Session {
        name: "k-mutual-replication-closeclient",
        cluster: "kilo",
        port: 31301,
        partitions: 6,
        // Then there is a client that was not recorded.
        until: 4.57,
        packets: 46,
        ..ONE_MASTER
    },
];

#[test]
fn replay() {
    for session in SESSIONS {
        println!("{}", session.name);
        let mut options = options(session.partitions, session.replicas);
        session.cluster.clone_into(&mut options.cluster);
        options.bind = address(session.port);
        options.masters = session.masters.iter().map(|port| address(*port)).collect();
        options.upstream = session
            .upstream
            .map(|(name, port)| Upstream { cluster: name.into(), masters: vec![address(port)] });
        let compared =
            Replay::new(options, recorded::load(session), session.restart_at, session.seed).run();
        assert_eq!(compared, session.packets);
    }
}
