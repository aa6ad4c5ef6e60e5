# SPDX-License-Identifier: GPL-2.0-or-later
"""What nodes cost while idle, and what strangers can do to them: nothing."""

import os
import re
import resource
import socket
import time

import pytest

from cluster import PATIENCE, wait_for

upstream_fails = pytest.mark.upstream_fails

HANDSHAKE = b'\x92\xa3NEO\x05'


def cpu_seconds(node):
    fields = open(f'/proc/{node.pid}/stat').read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def memory_mb(node):
    with open(f'/proc/{node.pid}/status') as f:
        return int(re.search(r'VmRSS:\s+(\d+) kB', f.read())[1]) / 1024


def port_of(cluster, node):
    """Port that a node listens on, found in what neoctl prints."""
    kind = node.command.removeprefix('neo').upper()
    address, = [x[2] for x in cluster.node_list() if x[1] == kind]
    return int(address.rpartition(':')[2])


def connect(port, timeout=PATIENCE):
    return socket.create_connection(('127.0.0.1', port), timeout=timeout)


def test_idle(new_cluster):
    """Nodes of an idle cluster, a client connected, use no CPU."""
    cluster = new_cluster(storages=2).start()
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = 1
    # What remains to be done in the background is done when a second passes without CPU.
    duration = 4

    def used():
        before = {node: cpu_seconds(node) for node in cluster.nodes}
        time.sleep(duration)    # the measurement itself
        return {node.name: cpu_seconds(node) - before[node] for node in cluster.nodes}
    wait_for(lambda: max(used().values()) <= .02, f'{duration} s without CPU')
    db.close()


def test_1000_idle_connections(new_cluster):
    """1,000 connections that say nothing cost a storage less than 50 MB, and no CPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f'only {hard} open files are allowed here: ulimit -n 4096')
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    cluster = new_cluster().start()
    storage, = cluster.storages
    port = port_of(cluster, storage)
    before = memory_mb(storage)
    connections = []
    try:
        for _ in range(1000):
            connections.append(connect(port))
            connections[-1].sendall(HANDSHAKE)
        for s in connections:
            assert s.recv(6, socket.MSG_WAITALL) == HANDSHAKE
        cost = memory_mb(storage) - before
        print(f'{cost:.1f} MB')
        assert cost < 50
        db = cluster.db()
        with db.transaction() as conn:
            conn.root()['a'] = 1
        db.close()
    finally:
        for s in connections:
            s.close()


STRANGERS = {
    'garbage': bytes(range(256)),
    'http': b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n',
    'tls': b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    'other version': b'\x92\xa3NEO\x06',
    'not a packet': HANDSHAKE + b'\x01',
    'not msgpack': HANDSHAKE + b'\xc1',
    'two fields': HANDSHAKE + b'\x92\x00\x01',
    'unknown code': HANDSHAKE + b'\x93\x00\xcd\x7f\x00\x90',
    'answer that nobody asked for': HANDSHAKE + b'\x93\x00\xcd\x80\x01\x90',
    'huge string': HANDSHAKE + b'\x93\x00\x01\x91\xc6\xff\xff\xff\xff',
    'deep': HANDSHAKE + b'\x93\x00\x01' + b'\x91' * 100000,
    'bad enumeration': HANDSHAKE + b'\x93\x00\x01\x96\xd4\x04\x7f\xc0\xc0\xc4\x00\xc0\x80',
    'unknown extension': HANDSHAKE + b'\x93\x00\x01\x91\xd4\x63\x00',
    'text': HANDSHAKE + b'\x93\x00\x01\x91\xa1x',
}


@upstream_fails('some of these stop a node, or are kept')
def test_strangers(new_cluster):
    """What is not NEO, or not well formed, closes that connection only, with one line."""
    cluster = new_cluster().start()
    for node in cluster.nodes:
        port = port_of(cluster, node)
        for what, content in STRANGERS.items():
            lines = len(node.output().splitlines())
            with connect(port, timeout=5) as s:
                try:
                    s.sendall(content)
                    while s.recv(65536):
                        pass
                except TimeoutError:
                    pytest.fail(f'{node.name} keeps the connection: {what}')
                except ConnectionError:
                    pass    # closed before everything was sent
            assert node.alive, what
            assert len(node.output().splitlines()) - lines <= 1, what
    assert cluster.state() == 'RUNNING'
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = 1
    db.close()


def test_half_handshake(cluster):
    """A peer that stops in the middle of the handshake or of a packet disturbs nobody."""
    halves = []
    for node in cluster.nodes:
        for content in b'', HANDSHAKE[:3], HANDSHAKE + b'\x93\x00':
            halves.append(connect(port_of(cluster, node)))
            halves[-1].sendall(content)
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = 1
    db.close()
    for s in halves:
        s.close()
    assert cluster.state() == 'RUNNING'


def test_memory_of_nodes(cluster):
    """For information: what each node takes after a little work."""
    db = cluster.db()
    for i in range(100):
        with db.transaction() as conn:
            conn.root()[i] = 'x' * 100
    db.close()
    for node in cluster.nodes:
        print(f'{node.name}: {memory_mb(node):.1f} MB')
        assert memory_mb(node) < 200
