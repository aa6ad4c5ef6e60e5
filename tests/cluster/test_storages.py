# SPDX-License-Identifier: GPL-2.0-or-later
"""Storages that leave and come back, that are copied, that miss things.

Names of tests are those of the scenarios that they show (docs/scenarios.md).
"""

import shutil
import sqlite3
import time

import pytest

from cluster import wait_for
from replicas import cells, compare_replicas, nid_of, wait_all_up_to_date

SOON = 30


def states(cluster):
    return {x[0]: x[3] for x in cluster.node_list('storage')}


def wait_node(cluster, nid, state):
    wait_for(lambda: states(cluster).get(nid) == state, f'{nid} to be {state}')


def put(db, *keys):
    with db.transaction() as conn:
        for key in keys:
            conn.root()[key] = key


def keys(cluster):
    db = cluster.db()
    with db.transaction() as conn:
        found = set(conn.root())
    db.close()
    return found


@pytest.fixture
def cluster2(new_cluster):
    """Two storages with the same data, and a client that writes to them."""
    cluster = new_cluster(storages=2, replicas=1).start()
    db = cluster.db()
    put(db, 1)
    wait_all_up_to_date(cluster, 1, SOON)
    cluster.test_db = db
    return cluster


def test_drop_node_then_restart_cluster(cluster2):
    """A storage that was dropped comes back as a new one, without losing what others have."""
    cluster = cluster2
    first = cluster.storages[0]
    nid = nid_of(cluster, first)
    first.kill9()
    wait_node(cluster, nid, 'DOWN')
    assert cluster.ctl('drop', nid) == 'node permanently removed'
    assert nid not in states(cluster)
    put(cluster.test_db, 2)
    first.start()
    cluster.wait_pending(1)
    cluster.stop()
    cluster.spawn()
    cluster.wait_running()
    cluster.wait_pending(1)
    assert keys(cluster) == {1, 2}
    assert cluster.ctl('add', 'all').startswith('Nodes added: S')
    cluster.ctl('tweak')
    wait_all_up_to_date(cluster, 1, SOON)
    table = cells(cluster)
    cluster.stop()
    assert compare_replicas(cluster, table)


def test_restart_with_missing_storage(cluster2):
    """`start` goes without a storage that is missing; it catches up when it is back."""
    cluster = cluster2
    cluster.stop()
    late = cluster.storages[1]
    for node in cluster.masters[0], cluster.storages[0], cluster.admin:
        node.start()
    cluster.wait_pending(1)
    time.sleep(1)
    assert cluster.state() == 'RECOVERING'
    wait_for(lambda: not cluster.ctl_run('start').returncode, 'the cluster to accept to start')
    cluster.wait_running()
    db = cluster.db()
    put(db, 2)
    assert states(cluster)[nid_of(cluster, late)] == 'DOWN'
    late.start()
    wait_all_up_to_date(cluster, 1, SOON)
    put(db, 3)
    db.close()
    cluster.storages[0].kill9()
    assert keys(cluster) == {1, 2, 3}


def test_restart_storages_with_replicas(cluster2):
    """Without the storage that was alone up-to-date in the end, the cluster does not start."""
    cluster = cluster2
    first, last = cluster.storages
    first.kill9()
    wait_node(cluster, nid_of(cluster, first), 'DOWN')
    put(cluster.test_db, 2)
    last.kill9()
    cluster.wait_state('RECOVERING')
    first.start()
    wait_for(lambda: states(cluster).get(nid_of(cluster, first)) == 'PENDING', 'the first storage')
    time.sleep(1)
    assert cluster.state() == 'RECOVERING'
    # Not by itself, that is: the operator could give up transaction 2 with `start`.
    last.start()
    cluster.wait_running()
    wait_all_up_to_date(cluster, 1, SOON)
    assert keys(cluster) == {1, 2}


def test_split_and_make_resilient_using_clone(new_cluster):
    """The database of a storage is copied, and the copy enters under another node id."""
    cluster = new_cluster(storages=1).start()
    db = cluster.db()
    put(db, *range(100))
    db.close()
    cluster.stop()
    clone = cluster.new_storage('--new-nid')
    shutil.copy(cluster.database(0), cluster.database(1))
    for node in cluster.masters[0], cluster.storages[0], cluster.admin:
        node.start()
    cluster.wait_running()
    # It only asks for another id, and ends.
    clone.start()
    assert clone.wait() == 0
    assert nid_of(cluster, clone) not in (None, nid_of(cluster, cluster.storages[0]))
    clone.args.remove('--new-nid')
    wait_node(cluster, nid_of(cluster, clone), 'DOWN')
    clone.start()
    wait_node(cluster, nid_of(cluster, clone), 'RUNNING')
    # Both have everything.
    wait_for(lambda: set(''.join(cells(cluster).values())) == {'U'}, 'the copy to catch up')
    before = cluster.ctl('print', 'pt')
    cluster.ctl('tweak', '-n')
    assert cluster.ctl('print', 'pt') == before, 'dry run'
    cluster.ctl('set', 'replicas', '1')
    cluster.ctl('tweak')
    wait_all_up_to_date(cluster, 1, SOON)
    cluster.storages[0].kill9()
    wait_node(cluster, nid_of(cluster, cluster.storages[0]), 'DOWN')
    assert keys(cluster) == set(range(100))
    db = cluster.db()
    put(db, 100)
    db.close()
    # The copy can replace the original.
    nid = nid_of(cluster, cluster.storages[0])
    cluster.ctl('set', 'replicas', '0')
    cluster.ctl('tweak', nid)
    assert cluster.ctl('drop', nid) == 'node permanently removed'
    assert keys(cluster) == set(range(101))


def test_new_nid_of_an_empty_database(new_cluster):
    cluster = new_cluster(storages=1).start()
    clone = cluster.new_storage('--new-nid').start()
    assert clone.wait() == 1
    assert 'database is empty' in clone.output()


def test_prune_orphan(cluster2):
    """Data that nothing refers to is counted, then deleted."""
    cluster = cluster2
    cluster.stop()
    with sqlite3.connect(cluster.database(0)) as db:
        db.execute("INSERT INTO data VALUES ((SELECT max(id) + 1 FROM data), x'00', 0, x'ff')")
    cluster.spawn()
    cluster.wait_running()

    def orphans():
        with sqlite3.connect(cluster.database(0)) as db:
            return db.execute("SELECT count(*) FROM data WHERE value=x'ff'").fetchone()[0]
    cluster.ctl('prune_orphan', '1', 'all')
    time.sleep(1)
    assert orphans() == 1
    cluster.ctl('prune_orphan', '0', 'all')
    wait_for(lambda: orphans() == 0, 'the orphan to be deleted')
    assert keys(cluster) == {1}


def test_check_replicas(cluster2):
    """`check` finds a row that a replica lost, and the master logs it."""
    cluster = cluster2
    put(cluster.test_db, *range(2, 30))
    cluster.stop()
    with sqlite3.connect(cluster.database(1)) as db:
        partition, = db.execute('SELECT partition FROM trans ORDER BY tid DESC LIMIT 1').fetchone()
        db.execute('DELETE FROM trans WHERE tid=(SELECT max(tid) FROM trans)')
    # Another row is the last one now: the cluster has not forgotten.
    cluster.spawn()
    cluster.wait_running()
    assert cluster.ctl('check', ':') == ''
    wait_for(lambda: 'corrupt' in cluster.masters[0].output().lower(), 'the master to log it')
    assert f'Partition {partition} corrupted in: ' in cluster.masters[0].output()


def test_identify_unknown_master(new_cluster, tmp_path):
    """A master that others do not list joins them, and can take over."""
    cluster = new_cluster(masters=2, storages=1)
    known, unknown = cluster.masters
    # The first one and the storage only know the first one; the second knows both.
    alone = cluster.master_nodes.split()[0]
    for node in known, cluster.storages[0]:
        node.args[node.args.index('--masters') + 1] = alone
    known.start()
    cluster.admin.start()
    wait_for(lambda: cluster.state() == 'RECOVERING', 'the primary master')
    unknown.start()
    wait_for(lambda: [x[3] for x in cluster.node_list('master')] == ['RUNNING'] * 2, 'both masters')
    cluster.storages[0].start()
    cluster.wait_pending(1)
    wait_for(lambda: not cluster.ctl_run('start').returncode, 'the cluster to accept to start')
    cluster.wait_running()
    put(cluster.db(), 1)
    known.kill9()
    wait_for(lambda: cluster.ctl_run('print', 'primary').stdout.startswith('M'), 'a new primary')
    cluster.wait_running()
    assert keys(cluster) == {1}
