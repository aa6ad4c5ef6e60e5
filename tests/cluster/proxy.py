# SPDX-License-Identifier: GPL-2.0-or-later
"""The network between clients and nodes, that can be broken at will.

Nodes tell their addresses to each other, so clients would go around a proxy
that merely listens somewhere else. `Network` therefore works like a gateway
that translates addresses: what passes through its proxies names the proxies.

    storages --> registrar --> master      what storages say of themselves
    clients  --> master proxy --> master   what the master says of all nodes
    clients  --> storage proxy --> storage

A port above 255 takes three bytes in a packet, so one address replaces another
one without changing any length.
"""

import select
import socket
import struct
import threading

from cluster import PATIENCE, free_port

BUFFER = 1 << 18
UP, DOWN = 'up', 'down'     # requests; answers and notifications


def _address(port):
    """What is common to all encodings of an address in a packet."""
    assert port > 255
    return b'127.0.0.1\xcd' + struct.pack('>H', port)


class _Pipe:
    """One direction of a connection."""

    def __init__(self, source, target, translations):
        self.source = source
        self.target = target
        self.translations = translations
        self.buffer = bytearray()
        self.translated = 0     # bytes of the buffer that may be sent
        self.ended = False

    def read(self):
        data = self.source.recv(BUFFER)
        if not data:
            self.ended = True
        self.buffer += data
        start = max(0, self.translated - 16)
        for old, new in self.translations:
            at = self.buffer.find(old, start)
            while at >= 0:
                self.buffer[at:at + len(old)] = new
                at = self.buffer.find(old, at + len(new))
        self.translated = len(self.buffer)
        if not self.ended:
            # An address may begin at the end. A byte or two say nothing: a packet that ends like that by
            # chance would wait for the next one.
            for old, _ in self.translations:
                for length in range(len(old) - 1, 3, -1):
                    if self.buffer.endswith(old[:length]):
                        self.translated = min(self.translated, len(self.buffer) - length)
                        break

    def write(self, limit):
        sent = self.target.send(self.buffer[:min(self.translated, limit)])
        del self.buffer[:sent]
        self.translated -= sent
        return sent


class Proxy:
    """What lies between clients and one node. All connections share its troubles."""

    def __init__(self, port, up=(), down=()):
        self._target = '127.0.0.1', port
        self.port = free_port()
        self._translations = {UP: up, DOWN: down}
        self._listener = socket.create_server(('127.0.0.1', self.port))
        self._waker, self._wake = socket.socketpair()
        self._lock = threading.Condition()
        self._links = []
        self._budgets = {}          # direction: bytes until the cut
        self._held = set()          # directions
        self._forgotten = []
        self.forwarded = {UP: 0, DOWN: 0}
        self.cuts = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=f'proxy-{port}')
        self._thread.start()

    # Troubles

    def cut(self, direction, after=0):
        """Reset the connection on which so many more bytes have passed in a direction."""
        with self._changed():
            self._budgets[direction] = after

    def wait_cut(self, count=1, timeout=PATIENCE):
        with self._lock:
            assert self._lock.wait_for(lambda: self.cuts >= count, timeout), 'nothing was cut'

    def hold(self, direction):
        """Let nothing pass in a direction, until `release`."""
        with self._changed():
            self._held.add(direction)

    def release(self):
        with self._changed():
            self._held.clear()

    def forget(self):
        """Forget the connections that exist, as gateways do with idle ones.

        Nobody is told; who sends something is answered by a reset.
        """
        with self._changed():
            self._forgotten += self._links

    def reset(self):
        """Reset the connections that exist."""
        with self._changed():
            for link in list(self._links):
                self._reset(link)

    def close(self):
        with self._changed():
            self._closed = True
        self._thread.join()

    def links(self):
        """Number of connections."""
        with self._lock:
            return len(self._links)

    # Inside

    def _changed(self):
        proxy = self

        class Changed:
            def __enter__(self):
                proxy._lock.acquire()

            def __exit__(self, *_):
                proxy._lock.release()
                proxy._wake.send(b'.')
        return Changed()

    def _run(self):
        while True:
            with self._lock:
                if self._closed:
                    for link in list(self._links):
                        self._reset(link)
                    self._listener.close()
                    return
                readers, writers = [self._waker, self._listener], []
                for link in self._links:
                    for direction, pipe in link.items():
                        if len(pipe.buffer) < BUFFER and not pipe.ended:
                            readers.append(pipe.source)
                        if pipe.translated and direction not in self._held:
                            writers.append(pipe.target)
            readable, writable, _ = select.select(readers, writers, [])
            with self._lock:
                if self._waker in readable:
                    self._waker.recv(4096)
                if self._listener in readable:
                    self._accept()
                for link in list(self._links):
                    try:
                        self._serve(link, readable, writable)
                    except OSError:
                        self._reset(link)

    def _accept(self):
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target, 1)
        except OSError:
            self._close(client)
            return
        for s in client, server:
            s.setblocking(False)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links.append({UP: _Pipe(client, server, self._translations[UP]),
                            DOWN: _Pipe(server, client, self._translations[DOWN])})

    def _serve(self, link, readable, writable):
        for direction, pipe in link.items():
            if pipe.source in readable and not pipe.ended and len(pipe.buffer) < BUFFER:
                pipe.read()
                if link in self._forgotten and pipe.buffer:
                    self._reset(link)
                    return
        for direction, pipe in link.items():
            if direction in self._held:
                continue
            budget = self._budgets.get(direction)
            if pipe.translated and budget == 0:
                del self._budgets[direction]
                self.cuts += 1
                self._lock.notify_all()
                self._reset(link)
                return
            if pipe.translated and pipe.target in writable:
                sent = pipe.write(len(pipe.buffer) if budget is None else budget)
                self.forwarded[direction] += sent
                if budget is not None:
                    self._budgets[direction] = budget - sent
        if any(pipe.ended and not pipe.buffer for pipe in link.values()):
            # Nodes close both directions at once.
            self._links.remove(link)
            for pipe in link.values():
                pipe.source.close()

    def _reset(self, link):
        if link in self._links:
            self._links.remove(link)
            for pipe in link.values():
                self._close(pipe.source)

    @staticmethod
    def _close(s):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        s.close()


class Network:
    """Proxies in front of the only master and of all storages of a cluster, not started yet."""

    def __init__(self, cluster):
        master, = cluster.masters
        master_port = int(cluster.master_nodes.rpartition(':')[2])
        ports = [free_port() for _ in cluster.storages]
        self.storages = [Proxy(port) for port in ports]
        self._registrar = Proxy(
            master_port, up=[(_address(port), _address(proxy.port))
                             for port, proxy in zip(ports, self.storages)])
        self.master = Proxy(master_port)
        self.master._translations[DOWN] = [(_address(master_port), _address(self.master.port))]
        for node, port in zip(cluster.storages, ports):
            node.args[node.args.index('--bind') + 1] = f'127.0.0.1:{port}'
            node.args[node.args.index('--masters') + 1] = f'127.0.0.1:{self._registrar.port}'
        # For clients; the admin has its own command line already.
        cluster.master_nodes = f'127.0.0.1:{self.master.port}'

    def proxies(self):
        return [self._registrar, self.master, *self.storages]

    def close(self):
        for proxy in self.proxies():
            proxy.close()
