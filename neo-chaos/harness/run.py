# SPDX-License-Identifier: GPL-2.0-or-later
"""A run: the cluster, its clients, faults until the time is over, then the checks."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
import traceback
from pathlib import Path

import disk
import mariadb
import network
import report
import reset
from cluster import Cluster, NeoctlError, executable
from clients import Crew
from faults import Faults
from operations import Operator
from replicas import cells, nid_of, wait_all_up_to_date

MASTERS, STORAGES, PARTITIONS, REPLICAS = 3, 4, 12, 1
KINDS = ['rust', 'rust', 'python', 'python']
THREADS, PAUSE = 3, 100         # pause of each thread between operations, in milliseconds
BACK_WITHIN = 15                # seconds
STOP_WITHIN = 10
HANG = 90                       # it is over, rather than slow
REPLICATED_WITHIN = 180
PROGRESS = 10
LOG_BYTES_MAX = 200 << 20


class Servers:
    """A database server for each storage, as `cluster.server`."""

    def __init__(self, library, directory):
        self._library, self._directory = library, directory
        self.all = []
        self.disks = []

    def get(self, index):
        while index >= len(self.all):
            path = self._directory / f'disk_{len(self.disks)}'
            self.disks.append(disk.Disk(self._library, path) if self._library else None)
            env = self.disks[-1].env if self._library else None
            self.all.append(mariadb.Server(*mariadb.DURABLE, env=env))
            self.all[-1].new_database()
        return self.all[index]


class ChaosCluster(Cluster):
    """With MySQL, each storage has a server of its own."""

    def __exit__(self, *_):
        # What there is to complain about is in the report.
        super().__exit__(Interrupted, None, None)

    def database(self, index):
        if self.adapter == 'MySQL':
            return f'root@neo1{self.server.get(index).socket}'
        return super().database(index)

    @contextlib.contextmanager
    def open_database(self, index, read_only=False):
        if self.adapter != 'MySQL':
            with super().open_database(index, read_only) as db:
                yield db
            return
        with mariadb.Connection(self.server.get(index), 'neo1') as db:
            exists = not read_only or db.execute("SHOW TABLES LIKE 'config'").fetchone()
            yield db if exists else None


class Interrupted(Exception):
    """The run can not go on."""


class Run:

    def __init__(self, minutes, adapter, seed, directory):
        self.minutes, self.adapter, self.seed = minutes, adapter, seed
        self.directory = Path(directory)
        self.random = random.Random(seed)
        self.began = time.time()
        self.duration = 0
        self.failures, self.missing = [], []
        self.resets = self.restarts = self.rounds = 0
        self.network = self.servers = self.crew = self.cluster = self.operator = None
        self._excused = {}
        self._said = 0
        self._disks = {}
        self.what = 'start'
        self.network_wanted = True
        self.executable = executable('neostorage')

    # Output

    def say(self, text):
        now = time.time() - self.began
        print(f'{now:7.1f} {text}', flush=True)
        self._said = time.monotonic()

    def fail(self, text):
        self.failures.append(text)
        self.say(f'FAILED: {text}')

    def lack(self, what):
        self.missing.append(what)
        print(f'\n*** NOT TESTED: {what} ***\n', flush=True)

    # Time passes

    def sleep(self, seconds):
        end = time.monotonic() + seconds
        while True:
            self.look()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, .25))

    def look(self):
        """Something that never waits: progress, supervision."""
        if self.crew and time.monotonic() > self._said + PROGRESS:
            self.say(f'{self.what}: {self.crew.total()} transactions, {self.rounds} faults')
            self.rotate()
        self.supervise()

    def rotate(self):
        """Logs of long runs: the last two files of each node are kept."""
        for node in self.cluster.nodes:
            path = self.directory / f'{node.name}.log'
            if node.alive and path.exists() and path.stat().st_size > LOG_BYTES_MAX:
                path.rename(path.with_suffix('.log.1'))
                os.kill(node.pid, signal.SIGRTMIN + 1)

    def excuse(self, node, seconds=60):
        """This storage may end by itself, with status 1: its database server fails."""
        self._excused[node] = time.monotonic() + seconds

    def supervise(self):
        """Start storages again that ended because of their database server."""
        for node, until in list(self._excused.items()):
            if time.monotonic() > until:
                del self._excused[node]
            elif node.process and node.process.poll() == 1:
                node.start()
                self.restarts += 1

    def victims(self):
        return self.operator.victims()

    def disk(self, node):
        index = self.cluster.storages.index(node)
        return self.servers.disks[index] if self.servers else self._disks[node]

    def server(self, node):
        return self.servers.get(self.cluster.storages.index(node))

    # The cluster

    @contextlib.contextmanager
    def up(self):
        """A cluster that serves; nothing is left of it."""
        with contextlib.ExitStack() as stack:
            why = network.missing() if self.network_wanted else 'not wanted'
            if why:
                self.lack(f'cuts of the network ({why}): only kill, pause and reset')
            else:
                self.network = stack.enter_context(network.Network())
            why = reset.missing()
            self.can_reset = not why
            if why:
                self.lack(f'reset connections ({why})')
            self.library = disk.build(self.directory)
            if not self.library:
                self.lack('slow disks (no C compiler)')
            if self.adapter == 'MySQL':
                self.servers = Servers(self.library, self.directory)
                stack.callback(self._end_servers)
            self.cluster = stack.enter_context(self._cluster())
            self.describe()
            self.cluster.start()
            yield

    def _cluster(self):
        cluster = ChaosCluster(
            self.directory, masters=MASTERS, storages=0, partitions=PARTITIONS, replicas=REPLICAS,
            name='chaos', adapter=self.adapter, network=self.network, server=self.servers)
        new_storage = cluster.new_storage

        def new(*args):
            if self.adapter == 'MySQL':
                args += '--wait', '60'
            node = new_storage(*args)
            if self.library and not self.servers:
                path = self.directory / f'disk_{len(self._disks)}'
                self._disks[node] = disk.Disk(self.library, path)
                node.env = self._disks[node].env
            return node
        cluster.new_storage = new
        for _ in range(STORAGES):
            cluster.new_storage()
        return cluster

    def _end_servers(self):
        for server in self.servers.all:
            if self.failures:
                server.kill9()
            else:
                server.remove()

    def describe(self):
        self.adapter_version = self.adapter
        if self.servers:
            version = self.servers.get(0).execute('SELECT version()')[0][0]
            self.adapter_version = f'MariaDB {version}'
        where = 'each in a network namespace' if self.network else 'on loopback'
        self.description = (f'{MASTERS} masters, {STORAGES} storages and spare ones, 1 admin, '
                            f'{where}; {PARTITIONS} partitions, {REPLICAS} replica')
        self.clients_description = (
            f'{KINDS.count("rust")} processes in Rust, {KINDS.count("python")} in Python, '
            f'{THREADS} threads each')

    def helper(self, command, *args):
        """Runs a command of neo-chaos to its end."""
        args = [executable('neo-chaos'), command, *map(str, args)]
        return subprocess.run(args, stdin=subprocess.DEVNULL, text=True, capture_output=True)

    def client_args(self, index):
        return ('--masters', self.cluster.master_nodes.replace(' ', ','), '--cluster', 'chaos',
                '--history', self.directory / f'client-{index}.jsonl', '--index', index,
                '--objects', self.directory / 'objects.json')

    # The run

    def run(self, faults=None):
        """Returns the text of the report. `faults`: who draws them, by default `Faults`."""
        verdict = None
        with self.up():
            result = self.helper('populate', *self.client_args(0))
            if result.returncode:
                raise RuntimeError(f'no objects could be made: {result.stderr}')
            self.crew = Crew(self.cluster, self.directory, self.seed, KINDS, THREADS, PAUSE)
            self.operator = Operator(self, REPLICAS)
            start = time.monotonic()
            try:
                self.chaos(start + self.minutes * 60, faults or Faults(self))
                self.duration = time.monotonic() - start
                self.settle()
                verdict = self.verdict()
            except Exception as e:
                self.duration = self.duration or time.monotonic() - start
                if not isinstance(e, (Interrupted, TimeoutError, NeoctlError)):
                    traceback.print_exc()
                self.fail(f'{type(e).__name__}: {e}')
                self.give_up()
            finally:
                self.crew.kill9()
            for node in self.cluster.nodes:
                self.failures += node.complaints()
                node._may_end = True    # told already
        return report.write(self, verdict)

    def chaos(self, deadline, faults):
        self.what = 'first commits'
        self.back('the start')
        with open(self.directory / 'faults.jsonl', 'w') as log:
            while time.monotonic() < deadline:
                kind, target, act = faults.draw()
                self.what = f'{kind} {target}'
                before = self.crew.total()
                begin = time.time_ns() // 1000
                self.say(f'{kind}: {target}')
                act()
                self.rounds += 1
                end = time.time_ns() // 1000
                json.dump({'kind': kind, 'target': str(target), 'b': begin, 'e': end}, log)
                log.write('\n')
                log.flush()
                during = self.crew.total() - before
                self.what = f'after {kind} {target}'
                took = self.back(self.what)
                self.say(f'  {during} commits meanwhile, all commit again after {took:.1f} s')
                self.check_processes()
                self.operator.step()
                self.what = 'between faults'
                if self.random.random() < .4:
                    # As an administrator would: no second fault before the first one is mended.
                    self.replicated()
                else:
                    self.sleep(self.random.random() * 6)

    def check_processes(self):
        problems = self.crew.complaints()
        for node in self.cluster.nodes:
            if node not in self._excused:
                problems += node.complaints()
        if problems:
            raise Interrupted('; '.join(problems))

    def back(self, after):
        """Each client process commits again. Returns the time that it took."""
        start = time.monotonic()
        before = self.crew.acks()
        while True:
            now = self.crew.acks()
            waiting = [i for i in before if now[i] <= before[i]]
            took = time.monotonic() - start
            if not waiting:
                break
            problems = self.crew.complaints()
            if problems:
                raise Interrupted('; '.join(problems))
            if took > HANG:
                raise Interrupted(f'clients {waiting} never commit {after}: {self.state()}')
            if took > BACK_WITHIN and not getattr(self, '_late', None):
                self._late = f'clients {waiting} do not commit within {BACK_WITHIN} s {after}'
                self.say(f'{self._late}: {self.state()}')
            self.look()
            time.sleep(.02)
        late, self._late = getattr(self, '_late', None), None
        if late:
            raise Interrupted(f'{late}, but after {took:.1f} s')
        return took

    def state(self):
        return f'{self.cluster.state()} {self.cluster.node_list()} {cells(self.cluster)}'

    def replicated(self):
        nid = self.operator.leaving and nid_of(self.cluster, self.operator.leaving)
        end = time.monotonic() + REPLICATED_WITHIN
        while True:
            self.look()
            try:
                wait_all_up_to_date(self.cluster, self.operator.replicas, 0, without=nid)
                return
            except TimeoutError as e:
                if time.monotonic() > end:
                    raise Interrupted(f'no end of replication: {e} {self.state()}') from None
            # It may have been refused, or forgotten.
            self.operator.insist()
            self.cluster.ctl_run('tweak', *filter(None, [nid]))
            self.sleep(.5)

    def settle(self):
        """Everything is mended, clients stop, packs end, the cluster stops."""
        self.what = 'the end of it all'
        self.say('no more faults')
        while self.operator.joining or self.operator.leaving:
            self.operator.step()
            self.sleep(1)
        self.operator.set_replicas(REPLICAS)
        self.replicated()
        self.back('at the end')
        last = self.crew.last_index()
        problems = self.crew.stop()
        if problems:
            raise Interrupted('; '.join(problems))
        self.say(f'{self.crew.total()} transactions; everything is read back')
        result = self.helper('read', *self.client_args(last))
        if result.returncode:
            raise Interrupted(f'not everything can be read: {result.stderr}')
        self.replicated()
        # Transactions are unlocked, and what they do not need any more deleted, a bit later.
        self.sleep(3)
        self.write_storages()
        if not self.stop(self.victims()):
            raise Interrupted(f'the cluster does not stop: {self.state()}')

    def stop(self, nodes):
        """The operator stops the cluster, then those that were not connected at this moment."""
        deadline = time.monotonic() + BACK_WITHIN
        while sum(x[0][0] in 'MSA' and x[3] in ('RUNNING', 'PENDING')
                  for x in self.cluster.node_list()) < len(nodes):
            if time.monotonic() > deadline:
                raise Interrupted(f'not all nodes are running: {self.state()}')
            self.sleep(.2)
        if not self.operator.ctl('set', 'cluster', 'stopping'):
            return False
        for node in nodes:
            try:
                status = node.wait(STOP_WITHIN)
            except TimeoutError:
                self.say(f'{node.name} was not told to stop')
                status = node.terminate()
            if status:
                raise Interrupted(f'{node.name} ends with status {status}')
        return True

    def write_storages(self):
        """Which database has which readable cells."""
        table = cells(self.cluster)
        indexes = {nid_of(self.cluster, node): self.cluster.storages.index(node)
                   for node in self.operator.members}
        storages = [
            {'nid': nid, 'adapter': self.adapter, 'database': str(self.cluster.database(indexes[nid])),
             'readable': [i for i, state in enumerate(row) if state in 'UF']}
            for nid, row in table.items()]
        (self.directory / 'storages.json').write_text(json.dumps(storages))

    def verdict(self):
        self.say('everything is checked')
        result = self.helper('check', '--directory', self.directory, '--cluster', 'chaos',
                             '--partitions', PARTITIONS)
        print(result.stdout, end='')
        path = self.directory / 'verdict.json'
        if not path.exists():
            self.fail(f'neo-chaos check: {result.stderr}')
            return None
        verdict = json.loads(path.read_text())
        # Without the revisions that are told with them: the file has all.
        self.failures += [x.splitlines()[0] for x in verdict['violations']]
        return verdict

    def give_up(self):
        """What can be learned from a cluster that does not serve as it should."""
        try:
            self.say(f'state: {self.state()}')
            self.cluster.ctl_run('flush_log')
        except Exception as e:
            self.say(f'no state: {e}')
