// SPDX-License-Identifier: GPL-2.0-or-later
//! What operators do: the simulated one does it as the manual says.

use std::time::Duration;

use neo_common::types::Tid;
use neo_ctl::Command;
use neo_sim::cluster::{Cluster, Insist, Options, Order, Role, Step, Until};
use neo_sim::disk::Pace;

use super::stage::{Stage, options};

pub const LONG: Duration = Duration::from_secs(30);

pub fn give(order: Order) -> Step {
    Step::Order(order, Insist::No)
}

impl Stage {
    /// The operator does something, and all commands are accepted.
    #[track_caller]
    pub fn operate(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.cluster.instruct(steps);
        self.wait("the operator", |cluster| !cluster.is_operating());
        let refused: Vec<String> = self.cluster.scene.get().counts.keys().cloned().collect();
        let refused = refused.iter().find(|what| what.contains("(refused)"));
        assert_eq!(refused, None, "{:?}", self.cluster.last_command());
    }
}

/// A spare storage is added and gets cells; the first one is emptied and dropped, and is another node
/// when it comes back. Nothing is lost, and each partition has the cells that are wanted.
#[test]
fn storages_are_added_and_dropped() {
    let mut stage = Stage::with(Options { spares: 1, replicas: 1, partitions: 6, ..options(2, 1) });
    let objects: Vec<_> = (0..6).map(|amount| (stage.create(0, amount), amount)).collect();
    let spare = stage.cluster.spares()[0];
    assert!(!stage.cluster.world.is_running(spare));
    let tweak = |hosts| give(Order::Tweak { dry_run: false, hosts });
    stage.operate([
        Step::Start(spare),
        Step::Wait(Until::Pending(spare), LONG),
        give(Order::Add(spare)),
        tweak(vec![]),
        Step::Wait(Until::Copied, LONG),
    ]);
    assert_eq!(stage.cluster.check_balance(), Ok(()));
    let first = stage.storage(0);
    stage.operate([
        tweak(vec![first]),
        Step::Wait(Until::Copied, LONG),
        Step::KeepDown(vec![first]),
        give(Order::Kill(first)),
        Step::Wait(Until::Down(vec![first]), LONG),
        give(Order::Drop(first)),
        Step::Start(first),
        Step::Wait(Until::Pending(first), LONG),
        give(Order::Plain(Command::PrintSummary)),
    ]);
    stage.serve();
    assert_eq!(stage.cluster.check_balance(), Ok(()));
    for ((oid, tid), amount) in objects {
        assert_eq!(stage.load(0, oid), Some((tid, amount)));
    }
    stage.finish();
}

/// A storage is dropped while it is down, and what it has is packed on the other one. When it gets cells
/// again, its former data is still there, as deleting it takes time: all of that is marked as packed.
#[test]
fn what_a_dropped_storage_had_is_packed() {
    let mut stage = Stage::with(Options { replicas: 1, partitions: 6, ..options(2, 1) });
    let mut last = Tid::ZERO;
    for amount in 0..6 {
        let (oid, mut serial) = stage.create(0, amount);
        for amount in 10..13 {
            serial = stage.change(0, oid, serial, amount).unwrap();
        }
        last = serial;
    }
    let first = stage.storage(0);
    stage.operate([
        Step::KeepDown(vec![first]),
        give(Order::Kill(first)),
        Step::Wait(Until::Down(vec![first]), LONG),
        give(Order::Drop(first)),
    ]);
    stage.act(0, move |mut session| async move {
        let txn = session.begin().await.unwrap();
        session.set_pack(&txn, last, None).await.unwrap();
        session.commit(&txn).await.unwrap();
    });
    stage.sleep(1000);
    stage.cluster.set_pace(first, Pace { min_us: 50_000, max_us: 60_000, ..Pace::FINE });
    stage.operate([
        Step::Start(first),
        Step::Wait(Until::Pending(first), LONG),
        give(Order::Add(first)),
    ]);
    // It begins to delete, partition by partition, and is told which pack is the last one.
    stage.wait("the storage to serve", |cluster| cluster.serving_storages().contains(&first));
    stage.sleep(10);
    stage.operate([
        give(Order::Tweak { dry_run: false, hosts: vec![] }),
        Step::Wait(Until::Copied, LONG),
    ]);
    assert_eq!(stage.cluster.check_balance(), Ok(()));
    stage.finish();
}

/// The database is cut back: what was committed later is gone, and the next transaction takes its place.
#[test]
fn a_database_is_cut_back() {
    let mut stage = Stage::new(2, 1);
    let (oid, tid) = stage.create(0, 1);
    stage.change(0, oid, tid, 2).unwrap();
    let client = stage.client(0);
    stage.kill(client);
    stage.operate([give(Order::Plain(Command::Truncate(tid)))]);
    stage.cluster.cut_back(tid);
    stage.wait("the service to end", |cluster| cluster.serving_master().is_none());
    stage.serve();
    stage.start(client);
    assert_eq!(stage.load(0, oid), Some((tid, 1)));
    stage.change(0, oid, tid, 3).unwrap();
    stage.finish();
}

/// Everything is stopped by a command, stays down as long as it is not started, and serves again.
#[test]
fn a_cluster_is_stopped_and_started() {
    let mut stage = Stage::new(2, 1);
    let (oid, tid) = stage.create(0, 1);
    let mut hosts = stage.cluster.hosts(Role::Storage);
    hosts.push(stage.master());
    stage.operate([
        Step::KeepDown(hosts.clone()),
        give(Order::Plain(Command::SetCluster(neo_common::protocol::ClusterState::Stopping))),
        Step::Wait(Until::Down(hosts.clone()), LONG),
    ]);
    stage.sleep(5000);
    assert!(hosts.iter().all(|host| !stage.cluster.world.is_running(*host)));
    stage.operate(hosts.into_iter().map(Step::Start));
    stage.wait("the cluster to serve", Cluster::is_serving);
    assert_eq!(stage.load(0, oid), Some((tid, 1)));
    stage.finish();
}
