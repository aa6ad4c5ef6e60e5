# SPDX-License-Identifier: GPL-2.0-or-later
"""Log files (`-l`), the signals about them, and `neolog`."""

import os
import re
import signal
import subprocess
import time

import pytest

from cluster import executable, run, wait_for


@pytest.fixture
def logged(new_cluster):
    """A running cluster whose nodes log to files."""
    cluster = new_cluster(storages=2)
    for node in cluster.nodes:
        if '--logfile' not in node.args:
            node.args += ['--logfile', log_of(cluster, node)]
    return cluster.start()


def log_of(cluster, node):
    return str(cluster.directory / f'{node.name}.log')


def text_of(cluster, node):
    with open(log_of(cluster, node)) as f:
        return f.read()


def neolog(*args):
    result = run('neolog', *args)
    assert (result.returncode, result.stderr) == (0, ''), result
    return result.stdout.splitlines()


def put(cluster):
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = 'b' * 3000
    db.close()


def test_packets_are_written_on_request(logged):
    """At once: what changes. On request: the last packets."""
    put(logged)
    storage = logged.storages[0]
    assert ' INFO ' in text_of(logged, storage)
    assert ' PACKET ' not in text_of(logged, storage)
    storage.signal(signal.SIGRTMIN)
    storage._may_end = False
    wait_for(lambda: ' PACKET ' in text_of(logged, storage), 'the packets of the storage')
    assert ' PACKET ' not in text_of(logged, logged.masters[0])
    logged.ctl('flush_log')
    for node in logged.nodes:
        wait_for(lambda: ' PACKET ' in text_of(logged, node), f'the packets of {node}')
    # Object data is cut.
    assert max(map(len, text_of(logged, storage).splitlines())) < 700
    # Each node ends well, and writes what it had.
    count = text_of(logged, storage).count('PACKET')
    assert set(logged.stop().values()) == {0}
    assert text_of(logged, storage).count('PACKET') > count


def test_neolog(logged):
    put(logged)
    master, storage = logged.masters[0], logged.storages[0]
    logged.stop()
    files = [log_of(logged, x) for x in logged.nodes]
    lines = neolog(*files)
    assert lines == sorted(lines, key=lambda x: x[:24]), 'by date'
    packet = re.compile(r'\S+ \S+ PACKET    (\w+) +#0x[0-9a-f]{4,} (\w+) +[<>] ')
    names = [packet.match(x).groups() for x in lines if ' PACKET ' in x]
    assert {x[0] for x in names} >= {'master_0', 'storage_0', 'storage_1', 'admin'}
    assert {'AskBeginTransaction', 'AskStoreObject', 'AskFinishTransaction'} <= {
        x[1] for x in names}
    assert not any('AskStoreObject {' in x for x in lines)
    assert any('AskStoreObject {' in x for x in neolog('-a', *files))
    only = neolog('--node', 'master_0', *files)
    assert only and all(x[35:].startswith('master_0 ') for x in only)
    assert only == [x for x in lines if x[35:].startswith('master_0 ')]
    # From a date, a number of seconds ago, or a UNIX time.
    middle = lines[len(lines) // 2][:24]
    assert neolog('--from', middle, *files) == [x for x in lines if x[:24] >= middle]
    assert neolog('--from=-3600', *files) == lines
    assert neolog('--from', str(time.time() + 60), *files) == []
    # Standard input.
    with open(log_of(logged, storage)) as f:
        result = subprocess.run([executable('neolog'), '-'], stdin=f, capture_output=True, text=True)
    assert len(result.stdout.splitlines()) == len(neolog(log_of(logged, storage)))
    assert 'cluster state' in '\n'.join(neolog(log_of(logged, master)))


def test_neolog_mistakes(tmp_path):
    for args, status in (([], 2), (['-s', '0', 'x'], 2), (['-F', 'x', 'y'], 2),
                         ([tmp_path / 'none'], 1), (['--from', 'x', tmp_path / 'none'], 1)):
        result = run('neolog', *args)
        assert result.returncode == status and 'neolog: ' in result.stderr, args
        assert 'panicked' not in result.stderr
    assert run('neolog', '--help').returncode == 0


def test_a_log_file_is_only_text(tmp_path):
    """Whatever is in a file, it is shown, and never obeyed."""
    path = tmp_path / 'x.log'
    path.write_bytes(b'2026-11-21 22:47:41.0780 INFO      NEO        [x:1] \x1b]0;title\x07'
                     + os.urandom(10000) + b'\nimport os; os.abort()\n' + b'y' * (3 << 20))
    result = subprocess.run([executable('neolog'), '-a', str(path)], capture_output=True)
    assert result.returncode == 0
    assert b'\x1b' not in result.stdout and b'\\u{1b}]0;title\\u{7}' in result.stdout


def test_rotation_and_follow(logged):
    """A file is renamed, RTMIN+1 opens a new one, and `neolog -f` follows."""
    storage = logged.storages[0]
    path = log_of(logged, storage)
    output = open(logged.directory / 'follow.out', 'w+')
    follow = subprocess.Popen([executable('neolog'), '-f', '-s', '.05', '-F', str(storage.pid), path],
                              stdout=output)
    try:
        def shown(text):
            return lambda: text in open(output.name).read()

        def put_is_shown():
            # The tid, hence the hour, says which of the 2 storages keeps the transaction.
            put(logged)
            return 'AskStoreTransaction' in open(output.name).read()
        wait_for(put_is_shown, 'neolog to show packets')
        os.rename(path, path + '.1')
        os.kill(storage.pid, signal.SIGRTMIN + 1)
        wait_for(lambda: os.path.exists(path), 'a new file')
        logged.ctl('set', 'replicas', '1')
        logged.ctl('tweak')
        wait_for(lambda: 'replicated' in text_of(logged, storage), 'the new file to be used')
        wait_for(shown('replicated partition'), 'neolog to go on with the new file')
        os.kill(storage.pid, signal.SIGRTMIN + 2)
        wait_for(shown('ransactions'), 'the state of the storage')
        assert storage.alive
    finally:
        follow.kill()
        follow.wait()
        output.close()
