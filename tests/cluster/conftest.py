# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the cluster tests, and what is shown and kept when one fails."""

import faulthandler
import os
import signal

import pytest
import transaction
from persistent.mapping import PersistentMapping

from cluster import UPSTREAM, Cluster

LOG_LINES_SHOWN = 30


def pytest_configure(config):
    # In the background of a script, SIGINT is ignored, and would be by all processes started here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        'markers', 'upstream_fails(reason): upstream is known to fail this test; an expected '
        'failure when NEO_TESTS_UPSTREAM=1')
    capture = config.pluginmanager.getplugin('capturemanager')
    with capture.global_and_fixture_disabled():
        config.stash[_stderr] = os.fdopen(os.dup(2), 'w')


_stderr = pytest.StashKey()


def pytest_report_header(config):
    from cluster import bin_dir
    import neo
    try:
        executables = bin_dir()
    except FileNotFoundError as e:
        executables = e
    return [f'executables: {executables}', f'client: {list(neo.__path__)}']


def pytest_collection_modifyitems(items):
    if UPSTREAM:
        for item in items:
            for mark in item.iter_markers('upstream_fails'):
                item.add_marker(pytest.mark.xfail(reason=mark.args[0], strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the end of the output of each node of a failed test."""
    report = yield
    if report.failed:
        for cluster in getattr(item, 'clusters', ()):
            for node in cluster.nodes:
                lines = node.output().splitlines()[-LOG_LINES_SHOWN:]
                if lines:
                    report.sections.append((f'end of {node.stderr}', '\n'.join(lines)))
    return report


@pytest.fixture(autouse=True)
def watchdog(request):
    """End the run, stacks printed, if a test hangs where no signal can interrupt it.

    The limit of each test (pytest-timeout) interrupts Python code only: a client
    that blocks in native code would never return to it.
    """
    limit = float(request.config.getini('timeout'))
    mark = request.node.get_closest_marker('timeout')
    if mark:
        limit = mark.args[0]
    faulthandler.dump_traceback_later(limit + 30, exit=True,
                                      file=request.config.stash[_stderr])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def new_cluster(request, tmp_path):
    """A function that makes a cluster, not started, in a directory of its own."""
    request.node.clusters = clusters = []

    def new(**kw):
        directory = tmp_path / f'cluster{len(clusters)}'
        directory.mkdir()
        clusters.append(Cluster(directory, **kw))
        return clusters[-1]
    yield new
    errors = []
    for cluster in clusters:
        try:
            cluster.__exit__(None, None, None)
        except AssertionError as e:
            errors.append(e)
    if errors:
        raise errors[0]


@pytest.fixture
def cluster(new_cluster):
    """One storage, running."""
    return new_cluster().start()


@pytest.fixture
def cluster3(new_cluster):
    """Three storages, 12 partitions, running."""
    return new_cluster(storages=3).start()


@pytest.fixture(scope='module')
def module_cluster(tmp_path_factory):
    """One cluster for the tests of a file that only use it."""
    with Cluster(tmp_path_factory.mktemp('cluster'), storages=3) as cluster:
        yield cluster.start()


@pytest.fixture
def shared(module_cluster):
    """The cluster of the file; each test takes a key of its own in the root object."""
    return module_cluster


@pytest.fixture
def db(shared, request):
    db = shared.db()
    with db.transaction() as conn:
        conn.root()[request.node.name] = PersistentMapping()
    yield db
    db.close()


@pytest.fixture
def open_root(request, db):
    """A function that opens a connection with its own transaction manager.

    Returns (transaction manager, mapping of this test).
    """
    connections = []

    def open(database=None):
        manager = transaction.TransactionManager()
        conn = (database or db).open(manager)
        # Unlike `open`, this makes sure to see what other clients have committed.
        manager.begin()
        connections.append((manager, conn))
        return manager, conn.root()[request.node.name]
    yield open
    for manager, conn in connections:
        manager.abort()
        conn.close()
