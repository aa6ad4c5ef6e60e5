// SPDX-License-Identifier: GPL-2.0-or-later
//! Faults of the simulated world: each does what it says, and a cluster survives it.

use std::time::Duration;

use neo_sim::disk::Pace;

use super::stage::Stage;

/// A connection breaks, and the other side does not know before it sends something: who reconnects is
/// let in, and calls are answered.
#[test]
fn a_connection_breaks_on_one_side() {
    let mut stage = Stage::new(1, 1);
    let (oid, tid) = stage.create(0, 1);
    for host in [stage.storage(0), stage.client(0), stage.master()].repeat(4) {
        stage.cluster.world.reset_one_side(host);
        assert_eq!(stage.load(0, oid), Some((tid, 1)));
    }
    // Later than any silence.
    stage.sleep(25_000);
    stage.serve();
    stage.finish();
}

/// A client that starts finds a storage that refuses connections, then one where they hang: it waits.
#[test]
fn connections_are_refused_or_hang() {
    let mut stage = Stage::new(1, 1);
    let (oid, tid) = stage.create(0, 1);
    let (client, storage) = (stage.client(0), stage.storage(0));
    for hangs in [false, true] {
        stage.kill(client);
        stage.start(client);
        match hangs {
            true => stage.cluster.world.hanging.insert(storage),
            false => stage.cluster.world.refusing.insert(storage),
        };
        let step = stage.begin(0, move |mut session| async move {
            session.sync().await.unwrap();
            session.load(oid, None).await.unwrap()
        });
        stage.sleep(3000);
        assert!(!step.is_over());
        let world = &mut stage.cluster.world;
        assert!(if hangs { world.connects_hung > 0 } else { world.connects_refused > 0 });
        world.refusing.clear();
        world.hanging.clear();
        stage.end(&step);
        assert_eq!(stage.load(0, oid), Some((tid, 1)));
    }
    stage.finish();
}

/// A storage whose disk is full ends, and again when it is started; with place, it serves, and what was
/// acknowledged is there.
#[test]
fn a_disk_is_full() {
    let mut stage = Stage::new(1, 1);
    let (oid, tid) = stage.create(0, 1);
    let storage = stage.storage(0);
    let life = stage.cluster.world.life(storage);
    stage.cluster.disks_may_fail = true;
    stage.cluster.set_pace(storage, Pace { is_full: true, ..Pace::FINE });
    let step = stage.begin(0, move |session| super::stage::change(session, oid, tid, 2));
    stage.wait("the storage to end twice", |cluster| cluster.world.life(storage) >= life + 2);
    stage.cluster.set_pace(storage, Pace::FINE);
    let changed = stage.end(&step);
    stage.serve();
    let (serial, amount) = stage.load(0, oid).unwrap();
    match changed {
        Ok(changed) => assert_eq!((serial, amount), (changed, 2)),
        Err(_) => assert!((serial, amount) == (tid, 1) || amount == 2),
    }
    stage.change(0, oid, serial, 3).unwrap();
    stage.finish();
}

/// A storage that is without its database for a moment answers late; without it for long, it ends.
#[test]
fn a_database_is_lost() {
    let mut stage = Stage::new(1, 1);
    let (oid, tid) = stage.create(0, 1);
    // Nothing is left to commit.
    stage.sleep(3000);
    let (client, storage) = (stage.client(0), stage.storage(0));
    let life = stage.cluster.world.life(storage);
    for (seconds, ends) in [(2, false), (20, true)] {
        // Its cache is empty.
        stage.kill(client);
        stage.start(client);
        let since = stage.cluster.world.now();
        stage.cluster.disks_may_fail = ends;
        assert!(stage.cluster.lose_lane(storage, since + Duration::from_secs(seconds)));
        assert_eq!(stage.load(0, oid), Some((tid, 1)));
        assert!(stage.cluster.world.now() >= since + Duration::from_secs(2));
        assert_eq!(stage.cluster.world.life(storage) > life, ends);
    }
    stage.finish();
}
