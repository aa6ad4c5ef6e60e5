# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong. Each fault begins, lasts, and is over when its function returns."""

import contextlib
import os
import signal

import reset

PAUSE = 5                   # seconds that a process is stopped
CUTS = [3, 5, 5, 10, 10, 20, 40]
SLOW = [.05, .2, 1, 2]      # seconds that each fsync takes longer
SLOW_FOR = [5, 10, 15]
FULL_FOR = [1, 3, 8]


class Faults:
    """Draws faults. `run`: a `run.Run`."""

    def __init__(self, run):
        self.run = run
        self.random = run.random
        kinds = {'kill': 4, 'kill two': 2, 'kill all': 1, 'stop and start': 1, 'pause': 4,
                 'kill client': 1, 'pause client': 1}
        if run.can_reset:
            kinds.update({'reset': 3, 'reset client': 1})
        if run.network:
            kinds.update({'cut': 4, 'cut pair': 4, 'cut one way': 3})
        if run.library:
            kinds['slow disk'] = 4
        if run.library and not run.servers:
            # (MariaDB expects that it can always write to what it has allocated.)
            kinds['full disk'] = 2
        if run.servers:
            kinds.update({'kill server': 3, 'pause server': 2})
        self.kinds = kinds

    def draw(self):
        """A fault, as (kind, target, function without argument)."""
        kind, = self.random.choices(list(self.kinds), list(self.kinds.values()))
        target, function = getattr(self, kind.replace(' ', '_'))()
        return kind, target, function

    def _node(self):
        return self.random.choice(self.run.victims())

    def _storage(self):
        storages = self.run.cluster.storages
        return self.random.choice([x for x in self.run.victims() if x in storages])

    # Nodes

    def kill(self):
        node, delay = self._node(), self.random.choice([0, 0, 1, 5])

        def act():
            node.kill9()
            self.run.sleep(delay)
            node.start()
        return f'{node.name}, started after {delay} s', act

    def kill_two(self):
        """At once; they come back in any order."""
        nodes = self.random.sample(self.run.victims(), 2)
        delays = [self.random.choice([0, 0, 1, 3]) for _ in nodes]

        def act():
            for node in nodes:
                node.signal(signal.SIGKILL)
            for node in nodes:
                node.wait()
            for node, delay in zip(nodes, delays):
                self.run.sleep(delay)
                node.start()
        return f'{nodes[0].name} and {nodes[1].name}', act

    def kill_all(self):
        nodes = self.run.victims()
        self.random.shuffle(nodes)

        def act():
            for node in nodes:
                node.signal(signal.SIGKILL)
            for node in nodes:
                node.wait()
            self._start(nodes)
        return 'all nodes', act

    def _start(self, nodes):
        for node in nodes:
            self.run.sleep(self.random.random() / 4)
            node.start()

    def stop_and_start(self):
        """By the operator."""
        nodes = self.run.victims()
        self.random.shuffle(nodes)

        def act():
            if self.run.stop(nodes):
                self._start(nodes)
        return 'the cluster', act

    def pause(self):
        node = self._node()
        return f'{node.name} for {PAUSE} s', lambda: self._stopped(lambda number: os.kill(node.pid, number))

    def _stopped(self, send):
        send(signal.SIGSTOP)
        try:
            self.run.sleep(PAUSE)
        finally:
            send(signal.SIGCONT)

    # Clients

    def kill_client(self):
        client = self.random.choice(self.run.crew.clients)
        return str(client), lambda: self.run.crew.replace(client)

    def pause_client(self):
        client = self.random.choice(self.run.crew.clients)
        return f'{client} for {PAUSE} s', lambda: self._stopped(client.signal)

    # Connections

    def reset(self):
        node = self._node()
        return self._resets(node.name, lambda: node.pid)

    def reset_client(self):
        client = self.random.choice(self.run.crew.clients)
        return self._resets(client, lambda: client.pid)

    def _resets(self, name, pid):
        share, times = self.random.choice([.3, 1]), self.random.randint(1, 4)

        def act():
            for _ in range(times):
                self.run.resets += reset.reset(pid(), self.random, share)
                self.run.sleep(self.random.random())
        what = 'all connections' if share == 1 else 'some connections'
        return f'{what} of {name}, {times} times', act

    # Network

    def cut(self):
        node, duration = self._node(), self.random.choice(CUTS)

        def act():
            self.run.network.cut(node.name)
            try:
                self.run.sleep(duration)
            finally:
                self.run.network.mend(node.name)
        return f'{node.name} for {duration} s', act

    def cut_pair(self, ways=2):
        """A node and another one, or the clients, do not hear each other."""
        node = self._node()
        others = [x.name for x in self.run.victims() if x is not node]
        other = self.random.choice([None, None, *others])
        pairs = [(node.name, other), (other, node.name)]
        self.random.shuffle(pairs)
        pairs, duration = pairs[:ways], self.random.choice(CUTS)

        def act():
            with contextlib.ExitStack() as stack:
                for pair in pairs:
                    self.run.network.cut_pair(*pair)
                    stack.callback(self.run.network.mend_pair, *pair)
                self.run.sleep(duration)
        text = ' and '.join(f'{x or "clients"} to {y or "clients"}' for x, y in pairs)
        return f'{text} for {duration} s', act

    def cut_one_way(self):
        """Only one of them does not hear the other."""
        return self.cut_pair(1)

    # Disks and databases

    def slow_disk(self):
        node = self._storage()
        delay, duration = self.random.choice(SLOW), self.random.choice(SLOW_FOR)

        def act():
            with self.run.disk(node).bad(delay):
                self.run.sleep(duration)
        return f'{node.name}, {delay:g} s per fsync for {duration} s', act

    def full_disk(self):
        """The storage ends, and is started again once there is room."""
        node, duration = self._storage(), self.random.choice(FULL_FOR)

        def act():
            with self.run.disk(node).bad(full=True):
                self.run.sleep(duration)
            self.run.excuse(node)
        return f'{node.name} for {duration} s', act

    def kill_server(self):
        """The database server of a storage, which may end because of it."""
        node, delay = self._storage(), self.random.choice([0, 1, 3])
        server = self.run.server(node)

        def act():
            # It may end by itself, and is then started again.
            self.run.excuse(node)
            server.kill9()
            self.run.sleep(delay)
            server.start()
        return f'that of {node.name}, started after {delay} s', act

    def pause_server(self):
        node = self._storage()
        server = self.run.server(node)

        def act():
            self.run.excuse(node)
            self._stopped(server.signal)
        return f'that of {node.name} for {PAUSE} s', act
