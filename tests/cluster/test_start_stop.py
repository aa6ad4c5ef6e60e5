# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes are started, stopped and looked at: processes, states, `neoctl`."""

import re
import signal

import pytest
import transaction

from cluster import wait_for
from replicas import nid_of

upstream_fails = pytest.mark.upstream_fails


def write(cluster, key, value):
    """Store `value` under `key` of the root object, through a new client."""
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()[key] = value
    db.close()


def read(cluster):
    """Content of the root object, through a new client."""
    db = cluster.db()
    with db.transaction() as conn:
        content = dict(conn.root())
    db.close()
    return content


# Start


@pytest.mark.parametrize('order', ['MSA', 'ASM', 'SMA', 'SAM', 'AMS'])
def test_any_order(new_cluster, order):
    """Each node waits for the others, whichever comes first.

    A node is started when the previous one already tries to reach the others.
    """
    cluster = new_cluster()
    nodes = {'M': cluster.masters[0], 'S': cluster.storages[0], 'A': cluster.admin}
    for kind in order:
        nodes[kind].start()
        # Running means more than started: it listens, or it did retry.
        wait_for(lambda: nodes[kind].alive, 'the process')
        if kind == 'A':
            wait_for(lambda: 'not connected' not in cluster.ctl_run('print', 'cluster').stderr,
                     'the admin node to listen')
    cluster.wait_state('RECOVERING')
    cluster.wait_pending(1)

    def answer():
        """To `neoctl start`, once the storage has told the master what it has."""
        result = cluster.ctl_run('start')
        return 'is entering cluster' not in result.stderr and result
    assert wait_for(answer, 'the storage to answer').stdout == 'Cluster state changed\n'
    cluster.wait_running()
    write(cluster, 'order', order)
    assert read(cluster) == {'order': order}


def test_no_admin_no_storage(new_cluster):
    """What neoctl says when there is nobody to answer, or nothing to start."""
    cluster = new_cluster()
    result = cluster.ctl_run('print', 'cluster')
    assert (result.returncode, result.stdout, result.stderr) == (1, '', 'ERROR: not connected\n')
    cluster.admin.start()
    message = 'ERROR: Not connected to a primary master.\n'
    wait_for(lambda: cluster.ctl_run('print', 'cluster').stderr == message, message)
    for command in ('print', 'cluster'), ('print', 'node'), ('print', 'pt'), ('start',):
        result = cluster.ctl_run(*command)
        assert (result.returncode, result.stdout, result.stderr) == (1, '', message)
    cluster.masters[0].start()
    cluster.wait_state('RECOVERING')
    result = cluster.ctl_run('start')
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr == 'Cannot exit recovery without any storage node\n'


def test_autostart(new_cluster):
    """`--autostart 3`: starts when 3 storages are there, not before."""
    cluster = new_cluster(storages=3, autostart=3)
    for node in cluster.masters[0], cluster.admin, *cluster.storages[:2]:
        node.start()
    cluster.wait_pending(2)
    assert cluster.state() == 'RECOVERING'
    cluster.storages[2].start()
    cluster.wait_running()
    assert [x[0] for x in cluster.node_list('storage')] == ['S1', 'S2', 'S3']
    write(cluster, 'a', 1)
    assert read(cluster) == {'a': 1}


def test_data_is_spread(cluster3):
    """Objects and transactions go to the storages that the partition table says."""
    db = cluster3.db()
    conn = db.open()
    for i in range(24):
        conn.root()[i] = type(conn.root())()
        transaction.commit()
    conn.close()
    db.close()
    cluster3.stop()
    for i in range(3):
        with cluster3.open_database(i) as database:
            nid, = database.execute("SELECT value FROM config WHERE name='nid'").fetchone()
            for table in 'obj', 'trans':
                partitions = {x for x, in database.execute(
                    f'SELECT DISTINCT "partition" FROM {table}')}
                # S1 has partitions 0, 3, 6, 9.
                assert {x % 3 for x in partitions} == {int(nid) - 1}, (table, partitions)


# Stop


def test_stopping(new_cluster):
    """`set cluster stopping` ends every node with status 0, clients or not."""
    cluster = new_cluster(storages=2).start()
    write(cluster, 'a', 1)
    db = cluster.db()
    conn = db.open()
    assert conn.root()['a'] == 1
    assert cluster.ctl('set', 'cluster', 'stopping') == 'Cluster state changed'
    assert {node.name: node.wait() for node in cluster.nodes} == dict.fromkeys(
        (node.name for node in cluster.nodes), 0)


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_signal(new_cluster, sig):
    """SIGTERM and SIGINT end a node cleanly: status 0, or ended by that signal."""
    cluster = new_cluster().start()
    write(cluster, 'a', 1)
    for node in cluster.nodes:
        node.signal(sig)
        assert node.wait() in (0, -sig), node
    cluster.start()
    assert read(cluster) == {'a': 1}


def test_restart_one(new_cluster):
    """Each node in turn is stopped and started; clients that stay go on working."""
    cluster = new_cluster(storages=2).start()
    db = cluster.db()
    for value, node in enumerate(cluster.nodes):
        node.terminate()
        node.start()
        cluster.wait_running()
        with db.transaction() as conn:
            conn.root()['a'] = value
    assert read(cluster) == {'a': value}


def test_restart_all(new_cluster):
    """Data, last ids and node ids survive stops of any kind."""
    cluster = new_cluster(storages=3).start()

    def nids():
        return [x[0] for x in cluster.node_list() if x[1] != 'CLIENT']
    before = nids()
    content = {}
    for how in 'stopping', 'terminate', 'kill9':
        for i in range(5):
            content[how, i] = i
            write(cluster, (how, i), i)
        ids = cluster.ctl('print', 'ids').splitlines()
        if how == 'stopping':
            cluster.stop()
        else:
            for node in cluster.nodes:
                getattr(node, how)()
        # A cluster that has data starts by itself.
        cluster.spawn()
        cluster.wait_running()
        assert read(cluster) == content
        assert nids() == before
        assert cluster.ctl('print', 'ids').splitlines()[:2] == ids[:2]
    layout = cluster.ctl('print', 'pt').splitlines()[1:]
    assert layout == ['             10v',
                      'S1 R U..U..U..U..',
                      'S2 R .U..U..U..U.',
                      'S3 R ..U..U..U..U']


@upstream_fails('it does not tell')
def test_what_is_waited_for(new_cluster):
    """The master tells why the cluster does not start, and whether `neoctl start` would help."""
    cluster = new_cluster(storages=2, replicas=1)
    master, (first, second) = cluster.masters[0], cluster.storages

    log = cluster.directory / 'log'
    master.args += ['--logfile', log]

    def told(text):
        wait_for(lambda: text in log.read_text(), f'the master to tell {text!r}')
    master.start()
    wait_for(log.exists, 'the log')
    told('waiting for storages')
    for node in cluster.admin, first, second:
        node.start()
    told('waiting for `neoctl start`, to create a database; storages: 2')
    cluster.start()
    write(cluster, 'a', 1)
    absent = nid_of(cluster, second)
    cluster.stop()
    for node in master, cluster.admin, first:
        node.start()
    told(f'waiting for storages that may have more than others: {absent}; `neoctl start` starts')
    wait_for(lambda: cluster.ctl_run('start').returncode == 0, 'the cluster to accept to start')
    cluster.wait_running()
    # The first one alone has what is committed now.
    write(cluster, 'b', 2)
    first.kill9()
    second.start()
    told('waiting for storages with a later partition table than version 1: transactions may be')
    first.start()
    cluster.wait_running()
    assert read(cluster) == {'a': 1, 'b': 2}


def test_reset_database(new_cluster):
    """`--reset` empties the database of a storage, then ends with status 0."""
    cluster = new_cluster().start()
    write(cluster, 'a', 1)
    cluster.stop()
    storage = cluster.storages[0]
    storage.args.append('--reset')
    storage.start()
    assert storage.wait() == 0, storage.output()
    storage.args.remove('--reset')
    cluster.spawn()
    cluster.wait_pending(1)
    assert cluster.state() == 'RECOVERING'
    assert cluster.ctl('print', 'ids').splitlines()[0] == 'last_oid = 0x0'


def test_foreign_cluster(new_cluster):
    """A storage refuses a database of another cluster and touches nothing."""
    cluster = new_cluster().start()
    write(cluster, 'a', 1)
    cluster.stop()
    storage = cluster.storages[0]
    name = storage.args.index(cluster.name)
    storage.args[name] = 'foreign'
    storage.start()
    assert storage.wait() == 1
    assert cluster.name in storage.output()
    with cluster.open_database(0) as db:
        assert db.execute("SELECT value FROM config WHERE name='name'").fetchone()[0] in (
            cluster.name, cluster.name.encode())
    storage.args[name] = cluster.name
    cluster.spawn()
    cluster.wait_running()
    assert read(cluster) == {'a': 1}


def test_database_is_locked(new_cluster):
    """A second storage on the same database is refused; the first goes on."""
    cluster = new_cluster(storages=2)
    first, second = cluster.storages
    second.args[second.args.index(str(cluster.database(1)))] = str(cluster.database(0))
    for node in cluster.masters[0], cluster.admin, first:
        node.start()
    cluster.wait_pending(1)
    second.start()
    assert second.wait() == 1
    assert 'database is locked' in second.output()
    cluster.ctl('start')
    cluster.wait_running()
    write(cluster, 'a', 1)
    assert read(cluster) == {'a': 1}


# neoctl

DATE = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?'
PORT = r'127\.0\.0\.1:\d+'


def test_print_before_start(new_cluster):
    cluster = new_cluster(storages=2)
    cluster.spawn()
    cluster.wait_pending(2)
    assert cluster.ctl('print', 'cluster') == 'RECOVERING'
    assert cluster.ctl('print', 'primary') == 'M1'
    assert cluster.ctl('print', 'pt') == '# ptid: None, replicas: 0\n'
    assert cluster.ctl('print', 'pt', '0', '2') == '# ptid: None, replicas: 0\n000 |\n001 |'
    assert cluster.ctl('print', 'ids') == '''\
last_oid = 0x0
last_tid = 0x0 (1900-01-01 00:00:00)
last_ptid = None'''
    assert cluster.ctl('print', 'node', 'client') == 'Empty list!'
    assert re.fullmatch(rf'''S1 \| STORAGE \| {PORT} \| PENDING \| {DATE}
S2 \| STORAGE \| {PORT} \| PENDING \| {DATE}''', cluster.ctl('print', 'node', 'storage'))


def test_print(new_cluster):
    cluster = new_cluster(storages=3).start()
    assert cluster.ctl('print', 'cluster') == 'RUNNING'
    assert cluster.ctl('print', 'primary') == 'M1'
    assert re.fullmatch(rf'''A1 \| ADMIN   \| {cluster.admin_address} \| RUNNING \| {DATE}
M1 \| MASTER  \| {cluster.master_nodes} \| RUNNING \| None
S1 \| STORAGE \| {PORT} \| RUNNING \| {DATE}
S2 \| STORAGE \| {PORT} \| RUNNING \| {DATE}
S3 \| STORAGE \| {PORT} \| RUNNING \| {DATE}''', cluster.ctl('print', 'node'))
    # Columns are as wide as the list shown needs.
    assert cluster.ctl('print', 'node', 'MASTER') == \
        f'M1 | MASTER | {cluster.master_nodes} | RUNNING | None'
    assert cluster.ctl('print', 'pt') == '''\
# ptid: 1, replicas: 0
             10v
S1 R U..U..U..U..
S2 R .U..U..U..U.
S3 R ..U..U..U..U'''
    assert cluster.ctl('print', 'pt', '1', '3') == '''\
# ptid: 1, replicas: 0
001 | S2 - UP_TO_DATE |
002 | S3 - UP_TO_DATE |'''
    rows = cluster.ctl('print', 'pt', '9').splitlines()
    assert rows == ['# ptid: 1, replicas: 0',
                    '009 | S1 - UP_TO_DATE |',
                    '010 | S2 - UP_TO_DATE |',
                    '011 | S3 - UP_TO_DATE |']
    assert cluster.ctl('print', 'ids') == '''\
last_oid = 0x0
last_tid = 0x0 (1900-01-01 00:00:00)
last_ptid = 1'''


def test_print_ids_and_client(cluster):
    """Ids of the last transaction and object; a client is listed while connected."""
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = type(conn.root())()
    tid = int.from_bytes(db.storage.lastTransaction(), 'big')
    ids = cluster.ctl('print', 'ids')
    assert re.fullmatch(rf'''last_oid = 0x[1-9a-f][0-9a-f]*
last_tid = 0x{tid:x} \({DATE}\)
last_ptid = 1''', ids)
    from ZODB.TimeStamp import TimeStamp
    stamp = TimeStamp(tid.to_bytes(8, 'big'))
    assert f'({stamp.year()}-{stamp.month():02}-{stamp.day():02} {stamp.hour():02}:' in ids
    assert re.fullmatch(rf'C1 \| CLIENT \|  \| RUNNING \| {DATE}',
                        cluster.ctl('print', 'node', 'client'))
    db.close()
    wait_for(lambda: cluster.ctl('print', 'node', 'client') == 'Empty list!',
             'the client to be forgotten')


def test_print_pt_down(new_cluster):
    """A table of at most 10 partitions has no ruler; a node that left shows as D."""
    cluster = new_cluster(storages=2, partitions=5).start()
    assert cluster.ctl('print', 'pt') == '''\
# ptid: 1, replicas: 0
S1 R U.U.U
S2 R .U.U.'''
    cluster.storages[1].terminate()
    cluster.wait_state('RECOVERING')
    wait_for(lambda: sorted(x[3] for x in cluster.node_list('storage')) == ['DOWN', 'PENDING'],
             'a storage to be down')
    # Which one was S2 depends on who came first.
    assert cluster.ctl('print', 'pt') in (
        '# ptid: 1, replicas: 0\nS1 D U.U.U\nS2 P .U.U.',
        '# ptid: 1, replicas: 0\nS1 P U.U.U\nS2 D .U.U.')
    # Without a readable cell in each partition, the cluster waits for it.
    cluster.storages[1].start()
    cluster.wait_running()


def test_start_twice(cluster):
    for command in ('start',), ('set', 'cluster', 'verifying'), ('set', 'cluster', 'VERIFYING'):
        result = cluster.ctl_run(*command)
        assert result.returncode == 1
        assert result.stdout == ''
        assert result.stderr == 'Can not switch to this state\n'
    for state in 'recovering', 'running':
        result = cluster.ctl_run('set', 'cluster', state)
        assert (result.returncode, result.stdout, result.stderr) == (
            1, '', 'Invalid state requested\n')


@pytest.mark.parametrize('command', ['foo', 'foo bar', 'print foo', 'set', 'set foo 1', 'PRINT node'])
def test_invalid_command(cluster, command):
    result = cluster.ctl_run(*command.split())
    assert result.returncode == 1
    assert result.stdout == ''
    if command != 'set':
        assert result.stderr == f'invalid command: {command}\n'
    assert cluster.ctl('print', 'cluster') == 'RUNNING'


@upstream_fails('Python tracebacks')
@pytest.mark.parametrize('command', [
    'print', 'set', 'print node bogus', 'print node storage extra', 'print cluster extra',
    'print ids extra', 'set cluster', 'set cluster bogus', 'set cluster running extra',
    'start extra', 'print pt x', 'print pt 5 100', 'print pt 0 1 S0x'])
def test_wrong_arguments(cluster, command):
    """A clear message and status 1; the cluster does not suffer."""
    result = cluster.ctl_run(*command.split())
    assert result.returncode == 1
    assert result.stdout == ''
    assert 1 <= len(result.stderr.splitlines()) <= 2, result.stderr
    assert 'panicked' not in result.stderr
    assert cluster.ctl('print', 'cluster') == 'RUNNING'


def test_usage(new_cluster):
    """neoctl without a command lists the commands, no admin node needed."""
    result = new_cluster().ctl_run()
    assert result.returncode == 0
    assert result.stderr == ''
    lines = result.stdout.splitlines()
    assert lines[0] == 'Available commands:'
    for command in 'print', 'set', 'start':
        assert command in lines
    for command in 'ids', 'pt', 'node', 'cluster', 'primary':
        assert any(x.split()[:1] == [command] and x.startswith('  ') for x in lines), command
