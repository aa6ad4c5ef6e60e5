# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster with replicas under load, while nodes fail and storages come and go.

3 masters, 4 storages or more, 2 copies of 12 partitions. In each round, something
happens to one random node (or two): `kill -9`, a pause of 5 s (SIGSTOP), or the loss
of its network, as a whole or towards one other node. Between rounds, storages are
added, emptied, dropped, and the table is balanced. The clients are those of
`workload`, which tells what they prove.

Never lost, never torn; each client process commits again within 15 s of the end of
each fault; in the end, all copies are equal.

NEO_TESTS_REPLICA_ROUNDS: kills and pauses (default 8; before a release, 200).
NEO_TESTS_CUT_ROUNDS: network losses (default 3; before a release, 50).
NEO_TESTS_CUTS: how long, in seconds, to choose from.
NEO_TESTS_SEED: what is done (default: drawn, and printed).
"""

import os
import random
import signal
import sqlite3
import time

import pytest

import network
from administrator import REPLICATED_WITHIN, Administrator
from cluster import PATIENCE, Cluster
from replicas import cells, compare_replicas, wait_all_up_to_date
from test_kill import check_nothing_left
from workload import Load

ROUNDS = int(os.environ.get('NEO_TESTS_REPLICA_ROUNDS', '8'))
CUT_ROUNDS = int(os.environ.get('NEO_TESTS_CUT_ROUNDS', '3'))
REPLICAS = 1
BACK_WITHIN = 15    # seconds
# `UNACKNOWLEDGED_MAX` in neo-common/src/limits.rs, and a bit.
NOTICED_WITHIN = 22
PAUSE = 5
# Most cuts are shorter than what it takes TCP to give up.
CUTS = [float(x) for x in os.environ.get('NEO_TESTS_CUTS', '3 5 5 10 10 20 40 100').split()]


def kill(rng, node, _):
    node.kill9()
    time.sleep(rng.choice([0, 0, 1, 5]))
    node.start()


def kill_two(rng, node, cluster):
    """At once, and they come back in any order."""
    other = rng.choice([x for x in cluster.nodes if x.alive and x is not node])
    nodes = [node, other]
    print(f' and {other}', end='', flush=True)
    for x in nodes:
        x.signal(signal.SIGKILL)
    for x in nodes:
        x.wait()
    rng.shuffle(nodes)
    for x in nodes:
        time.sleep(rng.choice([0, 0, 1, 3]))
        x.start()


def pause(_, node, __):
    node.signal(signal.SIGSTOP)
    time.sleep(PAUSE)
    node.signal(signal.SIGCONT)


def cut(rng, node, cluster):
    cluster.network.cut(node.name)
    try:
        duration = rng.choice(CUTS)
        print(f' for {duration:g} s', end='', flush=True)
        time.sleep(duration)
    finally:
        cluster.network.mend(node.name)


def cut_pair(rng, node, cluster):
    """The node and another one, or the clients, do not hear each other, or only one of them."""
    others = [x.name for x in cluster.nodes if x.alive and x is not node]
    other = rng.choice([None, None, *others])
    pairs = [(node.name, other), (other, node.name)]
    if rng.random() < .3:
        del pairs[rng.randrange(2)]
    duration = rng.choice(CUTS)
    for pair in pairs:
        cluster.network.cut_pair(*pair)
    print(f' {" and ".join(f"{x} to {y}" for x, y in pairs)} for {duration:g} s', end='', flush=True)
    try:
        time.sleep(duration)
    finally:
        for pair in pairs:
            cluster.network.mend_pair(*pair)


def disturb(cluster, rounds, faults):
    """All of it: `rounds` faults under load, then the checks."""
    seed = int(os.environ.get('NEO_TESTS_SEED') or random.randrange(10**6))
    print(f'NEO_TESTS_SEED={seed}')
    rng = random.Random(seed)
    administrator = Administrator(cluster, rng, REPLICAS)
    interruptions = []
    with Load(cluster, processes=2, threads=3, seed=seed, may_fail=True) as load:
        load.wait_each(PATIENCE)
        for number in range(rounds):
            node = rng.choice(administrator.victims())
            fault = rng.choice(faults)
            before = sum(load.acked)
            print(f'round {number}: {fault.__name__} {node}', end='', flush=True)
            fault(rng, node, cluster)
            during = sum(load.acked) - before
            over = time.monotonic()
            try:
                load.wait_each(BACK_WITHIN)
            except TimeoutError:
                # To know whether it is slow or over.
                print(f'\nINTERRUPTED: {cluster.state()} {cluster.node_list()} {cells(cluster)}')
                load.wait_each(4 * BACK_WITHIN)
                print(f'back after {time.monotonic() - over:.1f} s')
                raise
            interruptions.append(time.monotonic() - over)
            print(f', {during} commits, then after {interruptions[-1]:.1f} s', flush=True)
            administrator.step()
            if rng.random() < .5:
                # As an administrator would: no second fault before the first one is mended.
                administrator.wait_replicated()
            else:
                load.wait_progress(rng.randint(1, 40), PATIENCE)
            if number % 10 == 9:
                load.check_snapshot()
        while administrator.joining or administrator.leaving:
            administrator.step()
            time.sleep(1)
        cluster.ctl('tweak')
        wait_all_up_to_date(cluster, REPLICAS, REPLICATED_WITHIN)
        load.check_snapshot()
        load.stop()
    print(f"{len(load.outcomes['acked'])} transactions acknowledged, "
          f"{len(load.outcomes['unknown'])} of unknown outcome; interrupted for "
          f'{max(interruptions):.1f} s at most, {sum(interruptions) / rounds:.2f} s on average')
    print(f'conflicts: {dict(load.conflicts)}')
    print(f'unknown: {dict(load.errors)}')
    print(f'storages: {administrator.added} added, {administrator.dropped} dropped, '
          f'{administrator.tweaked} times balanced')
    load.check_history()
    wait_all_up_to_date(cluster, REPLICAS, REPLICATED_WITHIN)
    table = cells(cluster)
    # Who is there now: the first ones may be gone before the command returns.
    nodes = administrator.victims()
    cluster.ctl('set', 'cluster', 'stopping')
    for node in nodes:
        assert node.wait() == 0, node
    check_nothing_left(cluster, administrator.members)
    print(f'{compare_replicas(cluster, table)} rows are equal')


@pytest.mark.timeout(ROUNDS * 40 + 600)
def test_kill_and_pause(new_cluster):
    cluster = new_cluster(masters=3, storages=4, replicas=REPLICAS).start()
    disturb(cluster, ROUNDS, [kill, kill, pause, pause, kill_two])


@pytest.fixture
def networked(request, tmp_path):
    """A cluster whose nodes can lose their network."""
    reason = network.missing()
    if reason:
        pytest.skip(f'NOT TESTED, nodes that lose their network: {reason}')
    with network.Network() as net, \
            Cluster(tmp_path, masters=3, storages=4, replicas=REPLICAS, network=net) as cluster:
        request.node.clusters = [cluster]
        yield cluster.start()


@pytest.mark.timeout(CUT_ROUNDS * 100 + 600)
def test_cut_network(networked):
    disturb(networked, CUT_ROUNDS, [cut, cut_pair])


@pytest.mark.parametrize('kind', ['storage', 'primary master'])
def test_machine_that_vanishes(networked, kind):
    """Nobody is told, and requests are under way: the others go on without it."""
    if kind == 'storage':
        node = networked.storages[1]
    else:
        addresses = {x[0]: x[2] for x in networked.node_list('master')}
        primary = addresses[networked.ctl('print', 'primary')]
        node, = [x for x in networked.masters if primary in x.args]
    with Load(networked, processes=2, threads=2, may_fail=True) as load:
        load.wait_each(PATIENCE)
        networked.network.cut(node.name)
        time.sleep(NOTICED_WITHIN)
        load.wait_each(PATIENCE)
        networked.network.mend(node.name)
        load.wait_each(BACK_WITHIN)
        load.stop()
    load.check_history()
    wait_all_up_to_date(networked, REPLICAS, REPLICATED_WITHIN)


def test_the_comparison_sees_damage(new_cluster):
    """A row that is missing, or that differs, does not go unnoticed."""
    cluster = new_cluster(storages=2, replicas=REPLICAS)
    if cluster.adapter != 'SQLite':
        pytest.skip('it restores files')
    cluster.start()
    with Load(cluster, processes=1, threads=2) as load:
        load.wait_progress(20, PATIENCE)
        load.stop()
    table = cells(cluster)
    cluster.stop()
    assert compare_replicas(cluster, table) > 80
    with sqlite3.connect(cluster.database(1)) as db:
        for name, query in (
                ('trans', 'DELETE FROM trans WHERE tid=(SELECT max(tid) FROM trans)'),
                ('trans', "UPDATE trans SET user='x' WHERE tid=(SELECT max(tid) FROM trans)"),
                ('obj', 'DELETE FROM obj WHERE tid=(SELECT max(tid) FROM trans)'),
                ('obj', 'UPDATE obj SET value_tid=1 WHERE tid=(SELECT max(tid) FROM trans)'),
                ('obj', "UPDATE data SET value=x'00' WHERE id=(SELECT max(id) FROM data)")):
            backup = sqlite3.connect(':memory:')
            db.backup(backup)
            db.execute(query)
            db.commit()
            with pytest.raises(AssertionError, match=f', {name}:'):
                compare_replicas(cluster, table)
            backup.backup(db)
    assert compare_replicas(cluster, table) > 80
