# SPDX-License-Identifier: GPL-2.0-or-later
"""Storages on MariaDB: a server that is killed under load, and the first steps of
an administrator, word for word.

NEO_TESTS_MYSQL_ROUNDS: kills under load (default 4; before a release, 100).
NEO_TESTS_SEED: what is killed (default: drawn, and printed).
"""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import mariadb
from cluster import PATIENCE, bin_dir, run
from test_kill import check_nothing_left
from workload import Load

ROUNDS = int(os.environ.get('NEO_TESTS_MYSQL_ROUNDS', '4'))


@pytest.fixture
def server():
    """A server that keeps what it promises."""
    with mariadb.Server(*mariadb.DURABLE) as server:
        yield server


class Supervisor:
    """Starts storages again that ended because of their database."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.restarts = 0

    def look(self):
        for node in self.cluster.storages:
            if not node.alive:
                status = node.process.returncode
                assert status in (1, -signal.SIGKILL), f'{node}: {status}\n{node.output()}'
                node.start()
                self.restarts += 1
        return True


@pytest.mark.timeout(ROUNDS * 40 + 300)
def test_kill_database_server(new_cluster, server):
    """`kill -9` of the server, of storages, of both, and a server that is away for a while.

    A storage may end with its server: then it says why, ends with status 1, and its
    supervisor starts it again. Sums are exact and nothing acknowledged is lost.
    """
    seed = int(os.environ.get('NEO_TESTS_SEED') or random.randrange(10**6))
    print(f'NEO_TESTS_SEED={seed}')
    rng = random.Random(seed)
    cluster = new_cluster(storages=2, server=server)
    for node in cluster.storages:
        node.args += '--wait', '60'
    cluster.start()
    supervisor = Supervisor(cluster)
    kinds = ['server', 'storage', 'both', 'away']
    longest = 0
    with Load(cluster, processes=2, threads=4, seed=seed, may_fail=True) as load:
        load.wait_each(PATIENCE)
        for number in range(ROUNDS):
            kind = kinds[number] if number < len(kinds) else rng.choice(kinds)
            target = sum(load.acked) + rng.randint(1, 40)
            load.wait(lambda: supervisor.look() and sum(load.acked) >= target, PATIENCE,
                      'progress')
            print(f'round {number}: {kind}', end='', flush=True)
            if kind != 'storage':
                server.kill9()
            if kind in ('storage', 'both'):
                rng.choice(cluster.storages).kill9()
            if kind == 'away':
                time.sleep(rng.random())
                # Those that were writing ended; they wait for the server when started again.
                supervisor.look()
            start = time.monotonic()
            if kind != 'storage':
                server.start()
            before = load._per_process()
            load.wait(lambda: supervisor.look() and all(
                x > y for x, y in zip(load._per_process(), before)), 2 * PATIENCE,
                'each process to commit')
            took = time.monotonic() - start
            print(f', commits after {took:.1f} s', flush=True)
            longest = max(longest, took)
            load.check_snapshot()
        supervisor.look()
        load.stop()
    print(f"{len(load.outcomes['acked'])} transactions acknowledged, "
          f"{len(load.outcomes['unknown'])} of unknown outcome, {supervisor.restarts} storages "
          f"started again, longest {longest:.1f} s")
    assert load.outcomes['acked']
    supervisor.look()
    cluster.wait_running()
    load.check_history()
    for status in cluster.stop().values():
        assert status == 0
    check_nothing_left(cluster)


def test_options(new_cluster, server):
    """`--engine`, `--wait`, `--dedup` and `--reset` as seen from a database."""
    cluster = new_cluster(server=server)
    storage, = cluster.storages
    storage.args += '--dedup', '--engine', 'InnoDB', '--wait', '-1'
    server.kill9()
    cluster.spawn()
    time.sleep(.5)
    assert storage.alive
    server.start()
    cluster.start()
    with cluster.open_database(0) as db:
        assert db.execute("SHOW INDEX FROM data WHERE Key_name='hash'").fetchall()
    cluster.stop()
    result = run('neostorage', *storage.args, '--reset')
    assert (result.returncode, result.stdout) == (0, ''), result
    with cluster.open_database(0) as db:
        assert not db.execute('SHOW TABLES').fetchall()
    result = run('neostorage', *storage.args, '--engine', 'TokuDB')
    assert result.returncode == 1 and 'TokuDB' in result.stderr


def test_refusals(new_cluster, server):
    """What can not be opened is told on standard error, with status 1."""
    cluster = new_cluster(storages=2, server=server).start()
    locked, storage = cluster.storages
    result = run('neostorage', *locked.args)
    assert (result.returncode, result.stderr) == (1, 'error: database is locked\n')
    cluster.stop()

    def refused(*args):
        result = run('neostorage', *storage.args, *args)
        assert result.returncode == 1 and result.stderr, result
        return result.stderr
    assert "does not match" in refused('--cluster', 'foreign')
    assert 'Unknown database' in refused('--database', f'root@missing{server.socket}')
    assert 'connection to database' in refused('--database', 'root@neo/no/such/socket')
    server.execute("UPDATE config SET value='5' WHERE name='version'", 'neo2')
    assert 'can not be downgraded' in refused()


# First steps. Nodes have the ports of the documentation, so they need a network of their own.

LOOPBACK_UP = '''
import fcntl, socket, struct
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 0x41))
'''


@pytest.fixture
def isolated(server, tmp_path):
    """A function that runs a shell script where nobody else uses the network."""
    namespaces = ['unshare', '--net', '--pid', '--fork', '--kill-child']
    for prefix in namespaces, [*namespaces, '--user', '--map-root-user']:
        if subprocess.run([*prefix, 'true'], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip('namespaces do not work here: run it as root')

    def script(text):
        path = tmp_path / 'script'
        path.write_text(textwrap.dedent(text))
        env = dict(os.environ, MYSQL_UNIX_PORT=str(server.socket),
                   PATH=f'{bin_dir()}{os.pathsep}{os.environ["PATH"]}', PYTHON=sys.executable)
        result = subprocess.run(
            [*prefix, 'sh', '-c', '"$PYTHON" -c "$1" && exec timeout 100 sh -eu "$2"', 'sh',
             LOOPBACK_UP, path],
            cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        print(result.stdout)
        assert result.returncode == 0, result.stdout
        return result.stdout
    return script


# What an application does.
CLIENT = '''
import sys, ZODB
from neo.client.Storage import Storage
db = ZODB.DB(Storage(master_nodes='127.0.0.1:10000', name=sys.argv[1]))
with db.transaction() as conn:
    conn.root()['count'] = conn.root().get('count', 0) + 1
    print('count', conn.root()['count'])
db.close()
'''


@pytest.fixture
def client(tmp_path):
    path = tmp_path / 'client.py'
    path.write_text(CLIENT)
    return path


def test_quick_start_of_0_9(server, isolated, client):
    """The commands of the documentation of upstream 0.9."""
    server.execute("CREATE DATABASE `database`")
    server.execute("CREATE USER user@localhost IDENTIFIED BY 'passwd'")
    server.execute("GRANT ALL ON `database`.* TO user@localhost")
    output = isolated(f'''
        neomaster --cluster=X &
        neostorage --cluster=X --database=user:passwd@database &
        neoadmin --cluster=X &
        until neoctl start; do sleep .1; done
        until [ "$(neoctl print cluster)" = RUNNING ]; do sleep .1; done
        "$PYTHON" {client} X
        "$PYTHON" {client} X
        neoctl print node
        neoctl set cluster stopping
        wait
        ''')
    assert 'Cluster state changed' in output
    assert 'count 1\ncount 2\n' in output
    assert '| STORAGE |' in output and '127.0.0.1:10000' in output
    assert server.execute('SELECT COUNT(*) FROM trans', 'database')[0][0] >= 2


NEO_CONF = '''
# Common parameters.
[DEFAULT]
cluster: test
masters: 127.0.0.1:10000
replicas: 0
partitions: 12
;upstream_cluster: test2
;upstream_masters: 127.0.0.1:30000

[admin]
bind: 127.0.0.1:9999
;logfile: ~/log/admin.log

[master_01]
bind: 127.0.0.1:10000

[storage_01]
database: neo:neo@neo1
bind: 127.0.0.1:20000
'''

SUPERVISOR_CONF = '''
[supervisord]
nodaemon=true
logfile=supervisord.log
pidfile=supervisord.pid

[unix_http_server]
file=sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://sock

[group:neo]
programs=master_01,storage_01,admin

[program:storage_01]
priority=10
command=neostorage -s storage_01 -f {conf}

[program:master_01]
priority=20
command=neomaster -s master_01 -f {conf}

[program:admin]
priority=20
command=neoadmin -s admin -f {conf}
'''


def test_supervisor(server, isolated, client, tmp_path):
    """The example `neo.conf` of upstream, under supervisor as its README says.

    A node that is killed is started again; all are stopped as supervisor does.
    """
    server.execute("CREATE DATABASE neo1")
    server.execute("CREATE USER neo@localhost IDENTIFIED BY 'neo'")
    server.execute("GRANT ALL ON neo1.* TO neo@localhost")
    conf = tmp_path / 'neo.conf'
    conf.write_text(NEO_CONF)
    (tmp_path / 'supervisord.conf').write_text(SUPERVISOR_CONF.format(conf=conf))
    output = isolated(f'''
        ctl() {{ "$PYTHON" -m supervisor.supervisorctl -c supervisord.conf "$@"; }}
        running() {{ until [ "$(neoctl print cluster)" = RUNNING ]; do sleep .1; done; }}
        "$PYTHON" -m supervisor.supervisord -c supervisord.conf >/dev/null 2>&1 &
        until neoctl start; do sleep .1; done
        running
        "$PYTHON" {client} test
        for node in storage_01 master_01 admin; do
            old=$(ctl pid neo:$node)
            kill -9 $old
            until new=$(ctl pid neo:$node) && [ "$new" != "$old" ] && [ "$new" != 0 ]; do
                sleep .1
            done
            running
            "$PYTHON" {client} test
        done
        until [ "$(ctl status | grep -c RUNNING)" = 3 ]; do sleep .1; done
        ctl status
        ctl stop neo:*
        ctl status || true
        ctl shutdown
        wait
        ''')
    assert [x for x in output.splitlines() if x.startswith('count')] == [
        f'count {i}' for i in range(1, 5)]
    assert output.count('RUNNING   pid') == 3
    assert output.count('STOPPED') == 3
    assert server.execute('SELECT COUNT(*) FROM ttrans', 'neo1') == ((0,),)


def test_password_in_a_file(server, isolated, client, tmp_path):
    """A password with a `%`, that is doubled in a configuration file."""
    server.execute("CREATE DATABASE neo1")
    server.execute(f"CREATE USER neo@localhost IDENTIFIED BY '{mariadb.PASSWORD}'")
    server.execute("GRANT ALL ON neo1.* TO neo@localhost")
    password = mariadb.PASSWORD.replace('%', '%%')
    conf = tmp_path / 'neo.conf'
    conf.write_text(NEO_CONF.replace('neo:neo@', f'neo:{password}@'))
    isolated(f'''
        neomaster -s master_01 -f {conf} --autostart 1 &
        neostorage -s storage_01 -f {conf} &
        neoadmin -f {conf} &
        until [ "$(neoctl print cluster)" = RUNNING ]; do sleep .1; done
        "$PYTHON" {client} test
        neoctl set cluster stopping
        wait
        ''')
