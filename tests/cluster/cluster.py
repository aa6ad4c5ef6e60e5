# SPDX-License-Identifier: GPL-2.0-or-later
"""A NEO cluster of real processes on loopback.

NEO_TESTS_ADAPTER=MySQL: storages have databases of a private MariaDB server, see
`mariadb`.

Every node is a process of an executable of `NEO_BIN_DIR` (default: the newest
built of `target/release` and `target/debug`), started with the command line
that an administrator would use. The tests speak to it through `neoctl` and
through the Python package `neo`, whichever is importable.

Rules kept here so that no test has to think of them:

- a process never outlives the test process, even if that one is killed
  (`setpriv --pdeathsig`), and is only ever ended by its pid;
- ports are free ones outside the range that the kernel gives to outgoing
  connections, so that they are still free when a node is restarted;
- nothing sleeps for luck: `wait_for` polls a condition until a deadline;
- a node that died without being told to, or that panicked, fails the test.
"""

import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import mariadb

ROOT = Path(__file__).resolve().parents[2]

# The tests also run against upstream's nodes and client, to be checked
# themselves: what upstream is known to do wrong is then an expected failure.
UPSTREAM = os.environ.get('NEO_TESTS_UPSTREAM', '') not in ('', '0')

# Seconds to wait for something that should happen at once.
PATIENCE = float(os.environ.get('NEO_TESTS_PATIENCE', '30'))


def shared_dir():
    """Directory of the reference data, beside the checkout."""
    path = Path(os.environ.get('NEO_SHARED', ROOT.parent / 'shared'))
    if not path.is_dir():
        raise FileNotFoundError(
            f'reference data not found in {path}: set NEO_SHARED')
    return path


def bin_dir():
    """Directory of the executables under test."""
    path = os.environ.get('NEO_BIN_DIR')
    if path:
        return Path(path).resolve()
    for profile in 'release', 'debug':
        path = ROOT / 'target' / profile
        if (path / 'neomaster').exists():
            return path
    raise FileNotFoundError(
        'no executables: run `cargo build --release` or set NEO_BIN_DIR')


def executable(name):
    path = bin_dir() / name
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(f'{path} is missing: run `cargo build --release`')
    return str(path)


def wait_for(condition, what, timeout=PATIENCE, interval=.02):
    """Poll `condition` until it returns something true, and return that.

    `what` completes the sentence "timeout while waiting for ...".
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f'timeout after {timeout:g} s while waiting for {what}')
        time.sleep(interval)


_ports_given = set()


def free_port():
    """A TCP port of 127.0.0.1 that nobody uses and that is given only once."""
    with open('/proc/sys/net/ipv4/ip_local_port_range') as f:
        first_ephemeral = int(f.read().split()[0])
    lowest = min(10000, first_ephemeral // 2)
    while True:
        port = random.randrange(lowest, first_ephemeral)
        if port in _ports_given:
            continue
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(('127.0.0.1', port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


def run(command, *args, timeout=PATIENCE, **kw):
    """Run an executable of NEO to its end. Returns a CompletedProcess (text)."""
    return subprocess.run([executable(command), *map(str, args)], text=True,
                          stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=timeout, **kw)


class NeoctlError(Exception):
    """neoctl ended with a status other than 0."""

    def __init__(self, result):
        super().__init__(f'{result.args[1:]}: status {result.returncode}: '
                         f'{result.stdout}{result.stderr}')
        self.result = result


class Node:
    """One process, that can be started again after it ended."""

    def __init__(self, name, command, args, directory, prefix=()):
        self.name = name
        self.command = command
        self.prefix = prefix    # of the command line: what executes the process elsewhere
        self.args = [str(x) for x in args]
        self.env = {}           # in addition to the environment of the tests
        self.stderr = Path(directory) / (name + '.stderr')
        self.process = None
        self._may_end = False

    def __repr__(self):
        return f'<{self.name} pid={self.pid}>'

    @property
    def pid(self):
        return self.process.pid if self.process else None

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def start(self):
        assert not self.alive, f'{self.name} already runs'
        # The signal of setpriv is sent when the *thread* that started the
        # process ends.
        assert threading.current_thread() is threading.main_thread()
        env = {**os.environ, **self.env}
        env.setdefault('RUST_BACKTRACE', '1')
        with open(self.stderr, 'ab') as err:
            self.process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', *self.prefix, executable(self.command), *self.args],
                stdin=subprocess.DEVNULL, stdout=err, stderr=err, env=env)
        self._may_end = False
        return self

    def signal(self, sig):
        if self.alive:
            self._may_end = True
            os.kill(self.pid, sig)

    def wait(self, timeout=10):
        """Wait for the end of the process. Returns its status (-N: by signal N)."""
        self._may_end = True
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f'{self.name} still runs after {timeout} s') from None

    def terminate(self):
        """SIGTERM; the node has 10 s to end. Returns its status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill9(self):
        self.signal(signal.SIGKILL)
        self.wait()

    def complaints(self):
        """What went wrong with this process, that no test asked for."""
        if self.process is not None and not self._may_end and not self.alive:
            yield f'{self.name} ended by itself, status {self.process.returncode}'
        if 'panicked at' in self.output():
            yield f'{self.name} panicked'

    def output(self):
        try:
            return self.stderr.read_text(errors='replace')
        except FileNotFoundError:
            return ''


class Cluster:
    """Masters, storages and one admin node. Use as a context manager.

    Nothing is started by the constructor: see `start`, or start each of
    `masters`, `storages`, `admin` (or `nodes`, all of them).
    """

    def __init__(self, directory, storages=1, partitions=12, replicas=0,
                 masters=1, autostart=None, name='test', adapter=None, network=None,
                 server=None):
        self.directory = Path(directory)
        self.name = name
        self.network = network      # None for loopback, else see `network.Network`
        self.adapter = 'MySQL' if server else adapter or os.environ.get(
            'NEO_TESTS_ADAPTER', 'SQLite')
        self.server = server        # of `mariadb`
        if self.adapter == 'MySQL':
            self.server = server or mariadb.shared()
            self._databases = []
        self._clients = []
        master_names = [f'master_{i}' for i in range(masters)]
        addresses = [self._address(x, 10000) for x in master_names]
        self.master_nodes = ' '.join(addresses)
        self.admin_address = self._address('admin', 9999)
        master_options = ['--partitions', partitions, '--replicas', replicas]
        if autostart is not None:
            master_options += ['--autostart', autostart]
        self.masters = [self._node(name, 'neomaster', '--bind', address, *master_options)
                        for name, address in zip(master_names, addresses)]
        self.storages = []
        for _ in range(storages):
            self.new_storage()
        self.admin = self._node('admin', 'neoadmin', '--bind', self.admin_address)

    def _address(self, name, port):
        if self.network is None:
            return f'127.0.0.1:{free_port()}'
        return f'{self.network.address(name)}:{port}'

    def _node(self, name, command, *args):
        args = [*args, '--cluster', self.name, '--masters', self.master_nodes]
        if os.environ.get('NEO_TESTS_LOGFILE'):
            args += ['--logfile', self.directory / (name + '.log')]
        prefix = () if self.network is None else self.network.prefix(name)
        return Node(name, command, args, self.directory, prefix)

    def new_storage(self, *args):
        """One more storage, not started."""
        index = len(self.storages)
        name = f'storage_{index}'
        host = '127.0.0.1' if self.network is None else self.network.address(name)
        self.storages.append(self._node(
            name, 'neostorage', '--bind', f'{host}:0',
            '--adapter', self.adapter, '--database', self.database(index), *args))
        return self.storages[-1]

    @property
    def nodes(self):
        return [*self.masters, *self.storages, self.admin]

    def database(self, index):
        """Database string of a storage: for SQLite, the path of its file."""
        if self.adapter == 'MySQL':
            while index >= len(self._databases):
                self._databases.append(self.server.new_database())
            return f'root@{self._databases[index]}{self.server.socket}'
        return self.directory / f'storage_{index}.sqlite'

    @contextlib.contextmanager
    def open_database(self, index, read_only=False):
        """A connection that does not go through NEO; what it changes is committed.

        None if `read_only`, and there is no database yet.
        """
        if self.adapter == 'MySQL':
            with mariadb.Connection(self.server, self._databases[index]) as db:
                exists = not read_only or db.execute("SHOW TABLES LIKE 'config'").fetchone()
                yield db if exists else None
        elif read_only:
            uri = f'file:{self.database(index)}?mode=ro'
            try:
                db = sqlite3.connect(uri, uri=True, timeout=5)
                db.execute('SELECT * FROM config')
            except sqlite3.OperationalError:
                yield None
                return
            with contextlib.closing(db):
                yield db
        else:
            with contextlib.closing(sqlite3.connect(self.database(index))) as db, db:
                yield db

    # Life

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, tb):
        complaints = [x for node in self.nodes for x in node.complaints()]
        # Servers first: closing a client may otherwise wait for a stuck one.
        self.kill9()
        for client in self._clients:
            try:
                client.close()
            except Exception:
                pass  # the test is over, and its cluster too
        if complaints and exc_type is None:
            raise AssertionError('; '.join(complaints))

    def spawn(self):
        """Start every process, wait for nothing."""
        for node in self.nodes:
            node.start()

    def start(self, timeout=PATIENCE):
        """Start every process that does not run; the cluster is RUNNING on return."""
        for node in self.nodes:
            if not node.alive:
                node.start()
        self.wait_pending_or_running(timeout)
        wait_for(self._try_to_start, 'the cluster to accept to start', timeout)
        self.wait_running(timeout)
        return self

    def _try_to_start(self):
        """`neoctl start`, unless it runs already. A storage may not have answered the master yet."""
        if self.state() == 'RUNNING':
            return True
        result = self.ctl_run('start')
        if 'Can not switch to this state' in result.stderr:
            return False    # it has just started by itself
        if result.returncode and 'is entering cluster' not in result.stderr:
            raise NeoctlError(result)
        return not result.returncode

    def stop(self):
        """`neoctl set cluster stopping`. Returns the exit status of each node."""
        self.ctl('set', 'cluster', 'stopping')
        return {node.name: node.wait() for node in self.nodes}

    def kill9(self):
        for node in self.nodes:
            node.kill9() if node.alive else None

    # neoctl

    def ctl_run(self, *args, timeout=PATIENCE):
        """Run neoctl. Returns a CompletedProcess."""
        return run('neoctl', '-a', self.admin_address, *args, timeout=timeout)

    def ctl(self, *args):
        """Output of a neoctl command, without the last newline."""
        result = self.ctl_run(*args)
        if result.returncode:
            raise NeoctlError(result)
        return result.stdout.removesuffix('\n')

    def state(self):
        """State of the cluster, or None if the admin node does not know it (yet)."""
        try:
            return self.ctl('print', 'cluster')
        except NeoctlError:
            return None

    def node_list(self, kind=None):
        """`neoctl print node`: list of (nid, type, address, state), [] if not ready."""
        try:
            text = self.ctl('print', 'node', *([kind] if kind else []))
        except NeoctlError:
            return []
        if text == 'Empty list!':
            return []
        return [tuple(x.strip() for x in line.split('|')[:4]) for line in text.splitlines()]

    def wait_state(self, state, timeout=PATIENCE):
        seen = []

        def reached():
            seen.append(self.state())
            return seen[-1] == state
        try:
            wait_for(reached, f'the state {state}', timeout)
        except TimeoutError as e:
            raise TimeoutError(f'{e} (it is {seen[-1]})') from None

    def wait_running(self, timeout=PATIENCE):
        self.wait_state('RUNNING', timeout)

    def wait_pending(self, count, timeout=PATIENCE):
        wait_for(lambda: sum(x[3] == 'PENDING' for x in self.node_list('storage')) == count,
                 f'{count} pending storages', timeout)

    def wait_pending_or_running(self, timeout=PATIENCE):
        """Ready for `neoctl start`, or started by itself because it is not new."""
        wait_for(lambda: self.state() == 'RUNNING' or all(
            x[3] == 'PENDING' for x in self.node_list('storage'))
            and len(self.node_list('storage')) == len(self.storages),
            'all storages to be pending', timeout)

    # Clients

    def storage(self, **kw):
        """A new client: `neo.client.Storage.Storage`."""
        from neo.client.Storage import Storage
        client = Storage(master_nodes=self.master_nodes, name=self.name, **kw)
        self._clients.append(client)
        return client

    def db(self, **kw):
        """A new `ZODB.DB` on a new client."""
        import ZODB
        return ZODB.DB(self.storage(**kw))
