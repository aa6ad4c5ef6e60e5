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
