// SPDX-License-Identifier: GPL-2.0-or-later
//! Failures during the commit, verification, recovery.

use neo_sim::cluster::Role;

use super::stage::Stage;

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
