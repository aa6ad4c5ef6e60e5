// SPDX-License-Identifier: GPL-2.0-or-later
//! Failures during the commit, verification, recovery.

use neo_ctl::Command;
use neo_sim::cluster::{Options, Order, Role, Step, Until};

use super::operations::{LONG, give};
use super::stage::{Stage, options};

/// A new storage comes before those that have the data, when the master was restarted: it must not
/// be taken for one of them.
#[test]
fn new_storage_is_not_taken_for_an_old_one() {
    let mut stage = Stage::new(2, 1);
    let (oid, tid) = stage.create(0, 1);
    let (other, other_tid) = stage.create(0, 2);
    let nodes = [stage.storage(0), stage.storage(1), stage.master()];
    for host in nodes {
        stage.kill(host);
    }
    let new = stage.cluster.add_host(Role::Storage);
    stage.start(stage.master());
    stage.start(new);
    stage.sleep(1500);
    stage.start(nodes[0]);
    stage.start(nodes[1]);
    stage.serve();
    assert_eq!(stage.load(0, oid), Some((tid, 1)));
    assert_eq!(stage.load(0, other), Some((other_tid, 2)));
    stage.finish();
}

/// The storage that was lost first does not start alone after an interruption, even if nothing was committed
/// since. Otherwise, what is committed on it then would be lost if the master is restarted and meets the
/// other one first, which was told that it is the only one to have everything.
#[test]
fn the_storage_that_was_lost_last_is_waited_for() {
    let mut stage = Stage::with(Options { replicas: 1, ..options(2, 1) });
    let (oid, tid) = stage.create(0, 1);
    let [first, last] = [stage.storage(1), stage.storage(0)];
    stage.kill(first);
    stage.sleep(2000);
    stage.kill(last);
    stage.wait("the service to end", |cluster| cluster.serving_master().is_none());
    stage.start(first);
    stage.sleep(10_000);
    assert_eq!(stage.cluster.serving_master(), None);
    stage.start(last);
    stage.serve();
    assert_eq!(stage.load(0, oid), Some((tid, 1)));
    stage.change(0, oid, tid, 2).unwrap();
    stage.finish();
}

/// A storage without cells is down when the master is restarted, which gives its id again, to one that gets
/// cells. When everything is started again, the first one is not taken for the other one, whoever is first.
#[test]
fn two_storages_have_the_same_id() {
    let mut stage = Stage::with(Options { replicas: 1, partitions: 6, ..options(2, 1) });
    let objects: Vec<_> = (0..6).map(|amount| (stage.create(0, amount), amount)).collect();
    let [empty, used] = [0; 2].map(|_| stage.cluster.add_host(Role::Storage));
    let add = |host| {
        let wait = Step::Wait(Until::Pending(host), LONG);
        [Step::Start(host), wait, give(Order::Add(host))]
    };
    stage.operate(add(empty));
    stage.sleep(1000);
    let others = [stage.storage(0), stage.storage(1), stage.master()];
    stage.kill(empty);
    stage.kill(stage.master());
    stage.start(stage.master());
    stage.serve();
    stage.operate(add(used));
    assert_eq!(stage.cluster.nid(empty), stage.cluster.nid(used));
    let tweak = Command::Tweak { dry_run: false, nids: vec![] };
    stage.operate([give(Order::Plain(tweak)), Step::Wait(Until::Copied, LONG)]);
    assert_eq!(stage.cluster.check_balance(), Ok(()));
    for host in others.into_iter().chain([used]) {
        stage.kill(host);
    }
    stage.start(stage.master());
    stage.start(empty);
    stage.sleep(1500);
    stage.start(others[0]);
    stage.start(others[1]);
    stage.sleep(5000);
    assert_eq!(stage.cluster.serving_master(), None);
    stage.start(used);
    stage.serve();
    stage.cluster.erase_namesake();
    stage.wait("another id", |cluster| cluster.nid(empty) != cluster.nid(used));
    for ((oid, tid), amount) in objects {
        assert_eq!(stage.load(0, oid), Some((tid, amount)));
    }
    stage.finish();
}
