# SPDX-License-Identifier: GPL-2.0-or-later
"""Client processes, in Rust and in Python: started, killed, watched."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster import executable

WORKER = Path(__file__).with_name('worker.py')
# All calls come to their end within that, once the cluster serves.
STOP_WITHIN = 60


class Client:
    """One process."""

    def __init__(self, kind, index, directory, cluster, seed, threads, pause):
        self.kind = kind
        self.index = index
        self.history = Path(directory) / f'client-{index}.jsonl'
        self.stderr = Path(directory) / f'client-{index}.stderr'
        program = [executable('neo-chaos'), 'work']
        if kind == 'python':
            program = [sys.executable, WORKER]
        args = [
            *program, '--masters', cluster.master_nodes.replace(' ', ','), '--cluster', cluster.name,
            '--history', self.history, '--objects', Path(directory) / 'objects.json',
            '--index', index, '--seed', seed, '--threads', threads, '--pause', pause]
        with open(self.stderr, 'ab') as err:
            self.process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', *map(str, args)],
                stdin=subprocess.PIPE, stdout=err, stderr=err,
                env={**os.environ, 'RUST_BACKTRACE': '1'})

    def __repr__(self):
        return f'{self.kind} client {self.index}'

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process.poll() is None

    def acks(self):
        """How many commits were acknowledged so far."""
        try:
            with open(self.history.with_suffix('.acks'), 'rb') as f:
                return int.from_bytes(f.read(8), 'little')
        except FileNotFoundError:
            return 0

    def signal(self, number):
        os.kill(self.pid, number)

    def kill9(self):
        if self.alive:
            self.signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()

    def ask_to_stop(self):
        self.process.stdin.close()

    def wait(self, timeout):
        return self.process.wait(timeout)

    def complaint(self):
        """What is wrong with a process that nobody killed, or None."""
        text = self.stderr.read_text(errors='replace')
        if not self.alive:
            return f'{self} ended, status {self.process.returncode}: {text[-3000:]}'
        return f'{self} panicked: {text[-3000:]}' if 'panicked at' in text else None


class Crew:
    """Client processes at work, each of which may be replaced by a new one."""

    def __init__(self, cluster, directory, seed, kinds, threads, pause):
        self._args = Path(directory), cluster, seed, threads, pause
        self._next = 0
        self.clients = []
        self.gone = 0       # commits of those that were killed
        for kind in kinds:
            self.clients.append(self._new(kind))

    def _new(self, kind):
        self._next += 1
        directory, cluster, seed, threads, pause = self._args
        return Client(kind, self._next, directory, cluster, seed, threads, pause)

    def replace(self, client):
        """Kill a client; another one takes its place."""
        client.kill9()
        self.gone += client.acks()
        self.clients[self.clients.index(client)] = self._new(client.kind)

    def last_index(self):
        """Index for one more process."""
        return self._next + 1

    def acks(self):
        """Acknowledged commits, by process."""
        return {client.index: client.acks() for client in self.clients}

    def total(self):
        return self.gone + sum(self.acks().values())

    def complaints(self):
        return [x for x in (client.complaint() for client in self.clients) if x]

    def stop(self):
        """All of them. Returns what is wrong."""
        problems = []
        for client in self.clients:
            client.ask_to_stop()
        for client in self.clients:
            try:
                status = client.wait(STOP_WITHIN)
                if status:
                    problems.append(client.complaint())
            except subprocess.TimeoutExpired:
                problems.append(f'{client} does not stop within {STOP_WITHIN} s')
        return problems

    def kill9(self):
        for client in self.clients:
            client.kill9()
