# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command of neoctl on a real cluster, compared with stored transcripts.

A transcript (`transcripts/NAME.txt`) has, for each command: the command, what was
printed on standard output, on standard error (`! `), and the exit status unless it
is 0. What changes at each run is replaced: dates, tids, ports.

    $ neoctl drop S1
    ! a running node must be stopped before removal
    [1]

NEO_TESTS_RECORD=1 writes the transcripts instead. With NEO_TESTS_UPSTREAM=1, they
are compared with what upstream prints. Commands on which both differ on purpose
are in transcripts of their own, which upstream is not asked.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest

from cluster import UPSTREAM, run, wait_for
from replicas import nid_of, wait_all_up_to_date

TRANSCRIPTS = Path(__file__).parent / 'transcripts'
RECORD = os.environ.get('NEO_TESTS_RECORD')
only_ours = pytest.mark.skipif(UPSTREAM, reason='upstream prints something else, or nothing')

REPLACED = [
    (re.compile(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?'), '<DATE>'),
    (re.compile(r'127\.0\.0\.1:\d{5}'), '127.0.0.1:<PORT>'),
    (re.compile(r'ltid=[0-9a-f]{16}'), 'ltid=<TID>'),
    (re.compile(r'last_tid = 0x[0-9a-f]{14,}'), 'last_tid = <TID>'),
    (re.compile(r'backup_tid = 0x[0-9a-f]{14,}'), 'backup_tid = <TID>'),
    (re.compile(r'lag=(ε|[\d.]+)'), 'lag=<LAG>'),
    (re.compile(r'last_oid = 0x[0-9a-f]+'), 'last_oid = <OID>'),
    (re.compile(r'ptid(:| =) [1-9]\d+'), r'ptid\1 <PTID>'),   # depends on how changes are grouped
    # Where the log says that it comes from.
    (re.compile(r'^<DATE> (WARNING|ERROR) .*'), None),
]


def normalise(text):
    lines = []
    for line in text.splitlines():
        for pattern, replacement in REPLACED:
            if replacement is None:
                if pattern.match(line):
                    line = None
                    break
            else:
                line = pattern.sub(replacement, line)
        if line is not None:
            lines.append(line.rstrip())
    return lines


class Transcript:
    """Commands that are executed, as a text. Compared at the end of the `with` block."""

    def __init__(self, name, cluster):
        self.path = TRANSCRIPTS / f'{name}.txt'
        self.cluster = cluster
        self.lines = []

    def __enter__(self):
        return self

    def __exit__(self, exc_type, *_):
        if exc_type:
            print('\n'.join(self.lines))
            return
        if RECORD:
            self.path.write_text('\n'.join(self.lines) + '\n')
        assert self.lines == self.path.read_text().splitlines()

    def comment(self, text):
        self.lines += ['', f'# {text}', '']

    def __call__(self, command, address=None):
        words = command.split()
        options = []
        while words and words[0].startswith('-'):
            options.append(words.pop(0))
        result = run('neoctl', *options, '-a', address or self.cluster.admin_address, *words)
        self.lines.append(f'$ neoctl {command}'.rstrip())
        self.lines += normalise(result.stdout)
        self.lines += [f'! {x}' for x in normalise(result.stderr)]
        if result.returncode:
            self.lines.append(f'[{result.returncode}]')
        return result


@pytest.fixture
def cluster(new_cluster):
    """2 masters, 3 storages that wait for `start`; node ids are in the order of the names."""
    cluster = new_cluster(masters=2, storages=3, replicas=1)
    cluster.masters[0].start()
    cluster.admin.start()
    wait_for(lambda: cluster.state() == 'RECOVERING', 'the primary master')
    cluster.masters[1].start()
    wait_for(lambda: len(cluster.node_list('master')) == 2
             and {x[3] for x in cluster.node_list('master')} == {'RUNNING'}, 'both masters')
    for i, storage in enumerate(cluster.storages):
        storage.start()
        cluster.wait_pending(i + 1)
    return cluster


def start(cluster):
    wait_for(lambda: not cluster.ctl_run('start').returncode, 'the cluster to accept to start')
    cluster.wait_running()


def test_usage(cluster):
    """Without command: the list of all commands, status 0. The texts are our own."""
    result = cluster.ctl_run()
    assert result.returncode == 0 and not result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == 'Available commands:'
    names = {x.split()[0] for x in lines[1:] if x and not x.startswith(' ')}
    assert {'print', 'set', 'check', 'start', 'add', 'tweak', 'drop', 'kill', 'prune_orphan',
            'truncate', 'flush_log'} <= names
    for word in 'ids', 'pt', 'node', 'cluster', 'primary', 'summary', 'replicas':
        assert any(x.startswith(f'  {word}') for x in lines), word


def test_not_connected(new_cluster):
    cluster = new_cluster()
    with Transcript('not_connected', cluster) as neoctl:
        neoctl.comment('Nobody listens there.')
        neoctl('print cluster')
        neoctl('flush_log')
        neoctl.comment('An admin that has not found a primary master yet.')
        cluster.admin.start()
        wait_for(lambda: 'not connected' not in cluster.ctl_run('print', 'cluster').stderr,
                 'the admin to listen')
        for command in ('print cluster', 'print node', 'print pt', 'print ids', 'print primary',
                        'print summary', 'start', 'add all', 'tweak', 'drop S1', 'kill S1',
                        'check :', 'prune_orphan 1 all', 'truncate tid:1', 'set replicas 1',
                        'set cluster stopping'):
            neoctl(command)


@only_ours
def test_flush_log_not_connected(new_cluster):
    """Upstream does not answer notifications, so its neoctl does not know."""
    cluster = new_cluster()
    cluster.admin.start()
    wait_for(lambda: 'not connected' not in cluster.ctl_run('print', 'cluster').stderr,
             'the admin to listen')
    with Transcript('flush_log', cluster) as neoctl:
        neoctl('flush_log')


def test_recovering(cluster):
    """A new cluster, before `start`."""
    with Transcript('recovering', cluster) as neoctl:
        for command in ('print cluster', 'print primary', 'print node', 'print node storage',
                        'print node MASTER', 'print node client', 'print pt', 'print pt 0 2',
                        'print ids', 'print summary', 'add all', 'tweak', 'set replicas 0',
                        'truncate tid:1', 'set cluster recovering', 'set cluster running',
                        'set cluster starting_backup', 'set cluster stopping_backup'):
            neoctl(command)


def test_running(cluster):
    """A cluster at work; what is refused, then a life of storages."""
    with Transcript('running', cluster) as neoctl:
        wait_for(lambda: not neoctl.lines.clear() and not neoctl('start').returncode,
                 'the cluster to accept to start')
        cluster.wait_running()
        wait_all_up_to_date(cluster, 1, 30)
        for command in ('print cluster', 'print primary', 'print node', 'print node storage',
                        'print pt', 'print pt 1', 'print pt 1 3', 'print pt 0 0 S1',
                        'print pt 0 2 S1', 'print ids', 'print summary'):
            neoctl(command)
        neoctl.comment('Refused.')
        for command in ('start', 'set cluster verifying', 'set cluster running',
                        'set cluster starting_backup', 'set cluster stopping_backup',
                        'set cluster backingup', 'set replicas -1',
                        'kill M1', 'kill S9', 'drop S9', 'drop S1', 'drop M2', 'kill A1',
                        'truncate tid:0x1000000000000', 'truncate 1325421296',
                        'prune_orphan 0 S9', 'prune_orphan 0 M1'):
            neoctl(command)
        neoctl.comment('Nothing to do.')
        for command in ('add all', 'add S1', 'tweak', 'tweak -n', 'check 0: 1:S1', 'check 0:',
                        'check', 'prune_orphan 0 all', 'prune_orphan 1 S1 S2', 'flush_log'):
            neoctl(command)
        neoctl.comment('One more storage.')
        storage = cluster.new_storage().start()
        cluster.wait_pending(1)
        neoctl('print node storage')
        neoctl('add S1 S4')
        wait_for(lambda: cluster.node_list('storage')[-1][3] == 'RUNNING', 'S4 to run')
        neoctl('tweak -n')
        neoctl('tweak')
        wait_all_up_to_date(cluster, 1, 30)
        neoctl('print pt')
        neoctl.comment('One less.')
        neoctl('tweak -n S1')
        neoctl('tweak S1')
        wait_all_up_to_date(cluster, 1, 30, without='S1')
        neoctl('print pt')
        assert nid_of(cluster, cluster.storages[0]) == 'S1'
        neoctl('kill S1')
        cluster.storages[0].wait()
        neoctl('kill S1')
        neoctl('tweak')
        neoctl('print summary')
        neoctl('drop S1')
        neoctl('drop S1')
        neoctl('print node storage')
        neoctl.comment('Another number of replicas.')
        neoctl('set replicas 0')
        neoctl('tweak')
        wait_all_up_to_date(cluster, 0, 30)
        neoctl('print pt')
        neoctl('kill S2')
        neoctl('set replicas 1')
        neoctl('tweak')
        wait_all_up_to_date(cluster, 1, 30)
        neoctl('print pt')
        neoctl.comment('A storage is missing, then forgotten.')
        storage.kill9()
        wait_for(lambda: 'DOWN' in cluster.ctl('print', 'node', 'storage'), 'S4 to be down')
        neoctl('print pt')
        neoctl('print summary')
        neoctl('kill S2')
        neoctl('drop S4')
        neoctl('print pt')
        neoctl('tweak')
        neoctl.comment('Masters.')
        neoctl('kill M2')
        cluster.masters[1].wait()
        wait_for(lambda: 'DOWN' in cluster.ctl('print', 'node', 'master')
                 or len(cluster.node_list('master')) == 1, 'M2 to be gone')
        neoctl('print node master')
        neoctl('set cluster stopping')
    for node in cluster.masters[0], *cluster.storages[1:3], cluster.admin:
        assert node.wait() == 0


def test_backup(new_cluster):
    """A backup cluster in its states, and the summary of the one that it follows."""
    upstream = new_cluster(name='main')
    upstream.admin.args += ['--monitor-backup', 'safe', '--monitor-maxlag', '1000']
    upstream.start()
    db = upstream.db()
    cluster = new_cluster(name='safe')
    cluster.masters[0].args += ['--upstream-cluster', 'main',
                                '--upstream-masters', upstream.master_nodes]
    cluster.start()
    with db.transaction() as conn:
        conn.root()[0] = 0
    last = re.search('last_tid = (0x[0-9a-f]+)', upstream.ctl('print', 'ids'))[1]
    with Transcript('backup', cluster) as neoctl:
        neoctl('set cluster stopping_backup')
        neoctl('set cluster starting_backup')
        cluster.wait_state('BACKINGUP')
        wait_for(lambda: f'backup_tid = {last}' in cluster.ctl('print', 'ids'), 'the backup')
        for command in ('print cluster', 'print ids', 'print pt', 'print node storage',
                        'print summary', 'start', 'set cluster starting_backup',
                        'set cluster running', 'truncate tid:1', 'tweak', 'add all',
                        'set replicas 0', 'prune_orphan 1 all', 'flush_log'):
            neoctl(command)
        neoctl.comment('The cluster that it follows.')
        wait_for(lambda: upstream.ctl('print', 'summary').startswith('# {}'), 'both to be well')
        neoctl('print summary', upstream.admin_address)
        neoctl.comment('On its own.')
        neoctl('set cluster stopping_backup')
        cluster.wait_running()
        neoctl('print cluster')
        neoctl('print summary')
    db.close()


def test_truncate(cluster):
    start(cluster)
    db = cluster.db()
    for i in range(2):
        with db.transaction() as conn:
            conn.root()[i] = i
    first, *_, last = [int.from_bytes(x.tid, 'big') for x in db.storage.iterator()]
    db.close()
    with Transcript('truncate', cluster) as neoctl:
        neoctl('truncate tid:1')
        neoctl(f'truncate tid:{last}')
        neoctl.lines[-3] = '$ neoctl truncate tid:<LAST>'
        neoctl(f'truncate tid:0x{first:x}')
        neoctl.lines[-1] = '$ neoctl truncate tid:<FIRST>'
        cluster.wait_running()
        neoctl('print cluster')
    assert f'last_tid = 0x{first:x} ' in cluster.ctl('print', 'ids')


@only_ours
def test_mistakes(cluster):
    """Upstream ends with a Python traceback for nearly all of these, with the same status."""
    start(cluster)
    with Transcript('mistakes', cluster) as neoctl:
        for command in ('foo', 'print foo', 'set foo', 'print', 'set', 'print node bogus',
                        'print node storage master', 'print cluster now', 'print ids now',
                        'print pt x', 'print pt 1 2 3', 'print pt 1 2 S1 4', 'set cluster',
                        'set cluster bogus', 'set replicas', 'set replicas x', 'start now',
                        'add foo', 'drop', 'drop S1 S2', 'drop foo', 'kill', 'kill foo',
                        'tweak foo', 'check foo', 'check 0', 'check x:', 'check 0:x',
                        'check tid:1 tid:2 tid:3', 'prune_orphan', 'prune_orphan 2 all',
                        'prune_orphan 0 foo', 'truncate', 'truncate x', 'truncate tid:x',
                        'flush_log now'):
            neoctl(command)
        neoctl.comment('On these, either the master or the neoctl of upstream fails.')
        for command in ('check 0:S9', 'check 12:', 'check :', 'check :S1', 'check 0: tid:1',
                        'check 0: 1:S1 tid:0 tid:0x1000000000000'):
            neoctl(command)
        neoctl.comment('Numbers that were tids in 1.12.')
        for command in 'truncate 0', 'truncate 257684787499560686', 'check 0: 1':
            neoctl(command)


@only_ours
def test_version_0_9(cluster):
    """Spellings of 0.9 are accepted if they can not mean something else, else explained."""
    start(cluster)
    uuid = '53caea5066c690063f90d8e582039128'
    with Transcript('version_0_9', cluster) as neoctl:
        for command in ('-v print cluster', '--handler=admin print cluster',
                        'print node STORAGE', 'print node MASTER', 'print pt 0 1',
                        f'print pt 0 1 {uuid}', 'set cluster RUNNING', 'set cluster VERIFYING',
                        f'set node {uuid} DOWN', 'set node S1 DOWN 1', 'set node S1 RUNNING',
                        f'add {uuid}', f'drop {uuid}'):
            neoctl(command)


@only_ours
def test_json(cluster):
    """`--json`, for programs: an extension."""
    start(cluster)
    wait_all_up_to_date(cluster, 1, 30)

    def neoctl(*args):
        result = cluster.ctl_run(*args)
        assert (result.returncode, result.stderr) == (0, ''), args
        return json.loads(result.stdout)
    for json_ in ('print', '--json'), ('--json', 'print'):
        assert neoctl(*json_, 'cluster') == {'cluster_state': 'RUNNING'}
    assert neoctl('--json', 'print', 'primary') == {'primary': 'M1'}
    ids = neoctl('print', 'ids', '--json')
    assert set(ids) == {'last_oid', 'last_tid', 'last_ptid', 'last_tid_date', 'backup_tid'}
    assert ids['last_tid'] == '0' * 16 and ids['last_ptid'] == 1 and ids['backup_tid'] is None
    nodes = neoctl('print', 'node', '--json')
    assert [x['nid'] for x in nodes] == ['A1', 'M1', 'M2', 'S1', 'S2', 'S3']
    assert nodes[1] == {'nid': 'M1', 'type': 'MASTER', 'state': 'RUNNING', 'id_timestamp': None,
                        'address': cluster.master_nodes.split()[0]}
    assert abs(nodes[3]['id_timestamp'] - time.time()) < 60
    assert [x['nid'] for x in neoctl('print', 'node', 'storage', '--json')] == ['S1', 'S2', 'S3']
    pt = neoctl('print', 'pt', '--json')
    assert (pt['ptid'], pt['replicas'], pt['first'], len(pt['rows'])) == (1, 1, 0, 12)
    assert all(len(x) == 2 and set(x.values()) == {'UP_TO_DATE'} for x in pt['rows'])
    part = neoctl('print', 'pt', '1', '3', '--json')
    assert part['first'] == 1 and part['rows'] == pt['rows'][1:3]
    summary = neoctl('print', 'summary', '--json')
    assert summary['warning'] == summary['problem'] == []
    assert summary['summary'].startswith('RUNNING; UP_TO_DATE=24; ')
    # Errors are what they are without it.
    result = cluster.ctl_run('--json', 'print', 'foo')
    assert (result.returncode, result.stdout) == (1, '')
    result = cluster.ctl_run('drop', 'S1', '--json')
    assert result.returncode == 1
