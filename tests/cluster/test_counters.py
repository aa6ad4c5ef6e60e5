# SPDX-License-Identifier: GPL-2.0-or-later
"""Concurrent clients lose no update: exact sums, no deadlock, no hang.

NEO_TESTS_COUNTERS_SECONDS: how long (default 10; before a release, 60).
NEO_TESTS_SEED: what the clients choose (default: drawn, and printed).
"""

import os
import random
import time

import pytest

from cluster import PATIENCE
from workload import Load

SECONDS = float(os.environ.get('NEO_TESTS_COUNTERS_SECONDS', '10'))


@pytest.mark.timeout(SECONDS * 3 + 180)
def test_counters(cluster3):
    """4 processes of 4 threads, 3 storages; see `workload` for what is checked."""
    seed = int(os.environ.get('NEO_TESTS_SEED') or random.randrange(10**6))
    print(f'NEO_TESTS_SEED={seed}')
    start = time.monotonic()
    with Load(cluster3, processes=4, threads=4, seed=seed) as load:
        load.wait_each(PATIENCE)
        while time.monotonic() < start + SECONDS:
            load.wait_progress(20, PATIENCE)
        load.check_snapshot()
        load.stop()
    print(f"{len(load.outcomes['acked'])} transactions, conflicts: {dict(load.conflicts)}")
    assert not load.outcomes['unknown']
    assert load.check_history() == len(load.outcomes['acked'])
    # Otherwise there was nothing to see.
    assert all(load.conflicts[x] for x in ('count', 'move', 'resolved'))
    for status in cluster3.stop().values():
        assert status == 0


def test_the_checks_see_damage(cluster3):
    """A transaction that is lost, torn or unexpected does not go unnoticed."""
    with Load(cluster3, processes=1, threads=2) as load:
        load.wait_progress(20, PATIENCE)
        load.stop()
    count = load.check_history()
    acked = load.outcomes['acked']
    last = max(acked, key=acked.get)
    tid = int.from_bytes(acked[last], 'big')

    # Unexpected: as if its client had been told of a conflict.
    load.outcomes['acked'] = {k: v for k, v in acked.items() if k != last}
    with pytest.raises(AssertionError, match='failed for its client, but is stored'):
        load.check_history()
    load.outcomes['unknown'] = {last: 'an error'}
    assert load.check_history() == count
    load.outcomes = {'acked': acked, 'unknown': {}}

    def damage(*queries):
        cluster3.stop()
        for i in range(len(cluster3.storages)):
            with cluster3.open_database(i) as db:
                for query in queries:
                    db.execute(query, {'tid': tid})
        cluster3.spawn()
        cluster3.wait_running()

    # Torn: its objects are missing.
    damage('DELETE FROM obj WHERE tid=:tid', "UPDATE trans SET oids=x'' WHERE tid=:tid")
    with pytest.raises(AssertionError, match='is not whole'):
        load.check_history()

    # Lost.
    damage('DELETE FROM trans WHERE tid=:tid')
    with pytest.raises(AssertionError, match='acknowledged, but lost'):
        load.check_history()
