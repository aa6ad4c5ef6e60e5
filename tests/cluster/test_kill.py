# SPDX-License-Identifier: GPL-2.0-or-later
"""`kill -9` of a random node under load, again and again.

No acknowledged commit is lost, no transaction is torn, and the cluster is
RUNNING again within 10 s of each restart; see `workload` for how it is checked.

NEO_TESTS_KILL_ROUNDS: how many (default 5; before a release, 100).
NEO_TESTS_SEED: what is killed and what the clients choose (default: drawn, and
printed; the moment of a kill still depends on the machine).
NEO_TESTS_KILL_KINDS: kinds of nodes to choose from (default: "master storage admin").
"""

import os
import random
import time

import pytest

from cluster import PATIENCE, UPSTREAM
from workload import Load

ROUNDS = int(os.environ.get('NEO_TESTS_KILL_ROUNDS', '5'))
KINDS = os.environ.get('NEO_TESTS_KILL_KINDS', 'master storage admin').split()
RUNNING_AGAIN_WITHIN = 10   # seconds


def check_nothing_left(cluster, storages=None):
    """The databases (of these storages) hold finished transactions only."""
    for i, storage in enumerate(cluster.storages):
        if storages is not None and storage not in storages:
            continue
        with cluster.open_database(i) as db:
            for what, query in (
                    ('transactions', 'SELECT count(*) FROM ttrans'),
                    ('objects', 'SELECT count(*) FROM tobj'),
                    ('data', 'SELECT count(*) FROM data WHERE id NOT IN '
                             '(SELECT data_id FROM obj WHERE data_id IS NOT NULL)')):
                if what == 'data' and UPSTREAM:
                    continue  # it leaves the data of dropped transactions: `prune_orphan`
                left, = db.execute(query).fetchone()
                assert left == 0, f'storage {i}: {left} unfinished {what}'


@pytest.mark.timeout(ROUNDS * 25 + 300)
def test_kill_random_node(cluster3):
    seed = int(os.environ.get('NEO_TESTS_SEED') or random.randrange(10**6))
    print(f'NEO_TESTS_SEED={seed}')
    rng = random.Random(seed)
    victims = [x for x in cluster3.nodes if x.command.removeprefix('neo') in KINDS]
    longest = 0
    with Load(cluster3, processes=2, threads=4, seed=seed, may_fail=True) as load:
        load.wait_each(PATIENCE)
        for number in range(ROUNDS):
            node = rng.choice(victims)
            load.wait_progress(rng.randint(1, 40), PATIENCE)
            print(f'round {number}: {node}', end='', flush=True)
            node.kill9()
            start = time.monotonic()
            node.start()
            cluster3.wait_running(RUNNING_AGAIN_WITHIN)
            running = time.monotonic() - start
            load.wait_each(PATIENCE)
            print(f', RUNNING after {running:.1f} s, commits after '
                  f'{time.monotonic() - start:.1f} s', flush=True)
            longest = max(longest, running)
            load.check_snapshot()
            assert cluster3.state() == 'RUNNING'
        load.stop()
    print(f"{len(load.outcomes['acked'])} transactions acknowledged, "
          f"{len(load.outcomes['unknown'])} of unknown outcome, longest {longest:.1f} s")
    print(f'conflicts: {dict(load.conflicts)}')
    print(f"unknown: {dict(load.errors)}")
    load.check_history()
    for status in cluster3.stop().values():
        assert status == 0
    check_nothing_left(cluster3)


def test_kill_all(cluster3):
    """All nodes at once, as when the power fails; they come back in another order."""
    with Load(cluster3, processes=2, threads=2, may_fail=True) as load:
        for _ in range(3):
            load.wait_progress(20, PATIENCE)
            acked = list(load.acked)
            cluster3.kill9()
            for node in reversed(cluster3.nodes):
                node.start()
            cluster3.wait_running()
            load.check_snapshot(acked)
        load.wait_each(PATIENCE)
        load.stop()
    load.check_history()
    cluster3.stop()
    check_nothing_left(cluster3)


def test_kill_after_commit(cluster3):
    """Commits acknowledged to a client are there after the nodes died at once."""
    import transaction
    db = cluster3.db()
    for i in range(5):
        with db.transaction() as conn:
            conn.root()[i] = type(conn.root())()
            conn.root()[i][i] = i
        cluster3.kill9()
        cluster3.spawn()
        cluster3.wait_running()
        other = cluster3.db()
        with other.transaction() as conn:
            assert {k: dict(v) for k, v in conn.root().items()} == {
                k: {k: k} for k in range(i + 1)}
        other.close()
    transaction.abort()
