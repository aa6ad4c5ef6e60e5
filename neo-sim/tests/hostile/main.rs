// SPDX-License-Identifier: GPL-2.0-or-later
//! Peers that do not keep to the protocol, among the nodes of a cluster with transactions under way:
//! no node may panic, loop, or end because of them.
//!
//! NEO_TESTS_HOSTILE_SEEDS: how many runs of each kind (default 40). A run that fails is repeated with
//! NEO_TESTS_HOSTILE_SEED.
// Tests may unwrap.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod takeover;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use neo_common::prng::Prng;
use neo_common::protocol::NodeType;
use neo_sim::cluster::{Cluster, NAME, Options, Role};
use neo_sim::disk::Pace;
use neo_sim::hostile::{self, Hostile, Sample};
use neo_sim::network::HostId;
use neo_sim::workload;
use serde_json::Value as Json;

/// All roles.
const ROLES: &[NodeType] =
    &[NodeType::Master, NodeType::Storage, NodeType::Client, NodeType::Admin];

/// What upstream's nodes said to each other.
fn samples() -> Vec<Sample> {
    let root = std::env::var_os("NEO_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let path = root.join("protocol/vectors.jsonl");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()));
    let unhex = |hex: &str| -> Bytes {
        let digits = (0..hex.len()).step_by(2);
        digits.map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    };
    text.lines()
        .map(|line| {
            let json: Json = serde_json::from_str(line).unwrap();
            hostile::sample(&unhex(json["hex"].as_str().unwrap())).unwrap()
        })
        // The biggest are as good as smaller ones.
        .filter(|(_, args)| format!("{args:?}").len() < 10_000)
        .collect()
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    match number("NEO_TESTS_HOSTILE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("NEO_TESTS_HOSTILE_SEEDS").unwrap_or(40)).collect(),
    }
}

fn cluster(prng: &mut Prng, masters: usize) -> Cluster {
    let storages = 1 + prng.below(3);
    let options = Options {
        masters,
        storages,
        spares: 0,
        partitions: 3,
        replicas: prng.below(storages) as u32,
        clients: 2,
        autostart: Some(storages as u32),
        pace: Pace::FINE,
        database: Default::default(),
        cache_bytes: 1 << 16,
        workload: workload::Options::MIX,
    };
    Cluster::new(prng.next_u64(), options)
}

/// A peer that talks to these nodes.
fn stranger(
    cluster: &mut Cluster,
    host: HostId,
    targets: &[HostId],
    roles: &[NodeType],
    samples: &[Sample],
    prng: &mut Prng,
) {
    let options = hostile::Options {
        cluster: NAME.into(),
        targets: targets.iter().map(|host| cluster.world.address(*host)).collect(),
        masters: targets.iter().filter(|host| cluster.role(**host) == Role::Master).count(),
        roles: roles.to_vec(),
        samples: samples.to_vec(),
        period: Duration::from_micros(200 + prng.below(5000) as u64),
    };
    cluster.world.strangers.insert(host);
    cluster.world.start(host, Box::new(Hostile::new(options, prng.fork())));
}

/// Lets time pass; nobody looks at what nodes tell each other.
fn pass(cluster: &mut Cluster, time: Duration) {
    let until = cluster.world.now() + time;
    while cluster.world.step(until) {
        cluster.world.take_seen();
    }
}

fn nodes(cluster: &Cluster) -> Vec<HostId> {
    let roles = [Role::Master, Role::Storage, Role::Admin];
    roles.into_iter().flat_map(|role| cluster.hosts(role)).collect()
}

/// Clients, admins and storages that nobody invited.
#[test]
fn strangers() {
    let samples = samples();
    for seed in seeds() {
        println!("NEO_TESTS_HOSTILE_SEED={seed}");
        let mut prng = Prng::new(seed);
        let mut cluster = cluster(&mut prng, 1 + (seed % 2) as usize);
        cluster.start_all();
        let until = cluster.world.now() + Duration::from_secs(60);
        assert!(!cluster.run_while(until, |cluster| !cluster.is_serving()), "it does not start");
        cluster.start_workload();
        let warm_up = Duration::from_millis(prng.below(1500) as u64);
        cluster.run_until(cluster.world.now() + warm_up);
        cluster.world.take_ended();

        let targets = nodes(&cluster);
        // A false admin may stop the cluster, and a storage change its table: not in all runs.
        let roles = match seed % 3 {
            0 => &[NodeType::Client][..],
            1 => &[NodeType::Client, NodeType::Storage],
            _ => ROLES,
        };
        for _ in 0..1 + prng.below(3) {
            let host = cluster.world.add_host();
            stranger(&mut cluster, host, &targets, roles, &samples, &mut prng);
        }
        pass(&mut cluster, Duration::from_secs(20));
    }
}

/// A master that is in the list of all nodes.
#[test]
fn false_master() {
    let samples = samples();
    for seed in seeds() {
        println!("NEO_TESTS_HOSTILE_SEED={seed}");
        let mut prng = Prng::new(seed);
        let mut cluster = cluster(&mut prng, 1 + (seed % 2) as usize);
        let targets = nodes(&cluster);
        let host = cluster.host(Role::Master, 0);
        stranger(&mut cluster, host, &targets, ROLES, &samples, &mut prng);
        cluster.start_all();
        pass(&mut cluster, Duration::from_secs(20));
    }
}

/// Storages that the master was told of.
#[test]
fn false_storage() {
    let samples = samples();
    for seed in seeds() {
        println!("NEO_TESTS_HOSTILE_SEED={seed}");
        let mut prng = Prng::new(seed);
        let mut cluster = cluster(&mut prng, 1);
        let targets = nodes(&cluster);
        let host = cluster.host(Role::Storage, 0);
        stranger(&mut cluster, host, &targets, ROLES, &samples, &mut prng);
        cluster.start_all();
        pass(&mut cluster, Duration::from_secs(20));
    }
}
