# SPDX-License-Identifier: GPL-2.0-or-later
"""A network of its own for the nodes of a cluster, that can be cut.

Each node lives in a network namespace, linked to a bridge in the one of the tests:

    tests, clients --- bridge ---+--- master_0  10.x.y.2
                   10.x.y.1      +--- storage_0 10.x.y.3
                                 ...

A cut takes down the end of the link that is on the bridge. So what is sent
vanishes in both directions and nobody is told, as when a switch is unplugged.

Two nodes are cut from each other, in one direction or both, by a wrong hardware
address in the table of neighbours of the sender: what it sends goes nowhere.

It needs root and the command `ip` of iproute2: see `missing`.
"""

import os
import random
import shutil
import subprocess


def missing():
    """Why there can not be such a network, or None."""
    if os.geteuid():
        return 'network namespaces need root'
    if not shutil.which('ip') or not shutil.which('nsenter'):
        return 'the commands ip (iproute2) and nsenter (util-linux) are needed'
    name = f'neot{os.getpid()}'
    for command in (['netns', 'add', name],
                    ['link', 'add', name, 'type', 'bridge'],
                    ['link', 'add', f'v{name}', 'type', 'veth', 'peer', 'name', f'w{name}']):
        result = subprocess.run(['ip', *command], capture_output=True, text=True)
        if result.returncode:
            break
    for command in (['netns', 'del', name], ['link', 'del', name], ['link', 'del', f'v{name}']):
        subprocess.run(['ip', *command], capture_output=True)
    if result.returncode:
        return f'network namespaces do not work here: {result.stderr.strip()}'
    return None


def ip(*args):
    subprocess.run(['ip', *map(str, args)], check=True, stdin=subprocess.DEVNULL)


class Network:
    """Use as a context manager, around the life of the processes."""

    def __init__(self):
        self.tag = f'n{os.getpid() % 100000:05}'   # names of interfaces have 15 bytes at most
        self.subnet = f'10.{random.randrange(64, 250)}.{random.randrange(256)}'
        self.names = []

    def __enter__(self):
        ip('link', 'add', self.tag, 'type', 'bridge')
        ip('addr', 'add', f'{self.subnet}.1/24', 'dev', self.tag)
        ip('link', 'set', self.tag, 'up')
        return self

    def __exit__(self, *_):
        for i in range(len(self.names)):
            for command in (['link', 'del', self._link(i)], ['netns', 'del', self._namespace(i)]):
                subprocess.run(['ip', *command], stdin=subprocess.DEVNULL)
        subprocess.run(['ip', 'link', 'del', self.tag], stdin=subprocess.DEVNULL)

    def _namespace(self, index):
        return f'{self.tag}-{index}'

    def _link(self, index):
        return f'{self.tag}v{index}'

    def _index(self, name):
        """Number of a node; its namespace is made the first time."""
        if name in self.names:
            return self.names.index(name)
        index = len(self.names)
        self.names.append(name)
        namespace, link = self._namespace(index), self._link(index)
        inside = f'{self.tag}w{index}'
        ip('netns', 'add', namespace)
        ip('link', 'add', link, 'type', 'veth', 'peer', 'name', inside, 'netns', namespace)
        ip('link', 'set', link, 'master', self.tag)
        ip('link', 'set', link, 'up')
        ip('-n', namespace, 'addr', 'add', f'{self.address(name)}/24', 'dev', inside)
        ip('-n', namespace, 'link', 'set', inside, 'up')
        ip('-n', namespace, 'link', 'set', 'lo', 'up')
        return index

    def address(self, name):
        return f'{self.subnet}.{self._index(name) + 2}'

    def prefix(self, name):
        """How to execute a command there, without another process in between."""
        return ['nsenter', f'--net=/var/run/netns/{self._namespace(self._index(name))}', '--']

    def _towards(self, sender, receiver):
        """Arguments of `ip` about what `sender` sends to `receiver`. `None`: the tests."""
        address = f'{self.subnet}.1' if receiver is None else self.address(receiver)
        if sender is None:
            return [], [address, 'dev', self.tag]
        index = self._index(sender)
        return ['-n', self._namespace(index)], [address, 'dev', f'{self.tag}w{index}']

    def cut_pair(self, sender, receiver):
        """What `sender` sends to `receiver` vanishes. `None`: the tests, with the clients."""
        where, whom = self._towards(sender, receiver)
        ip(*where, 'neigh', 'replace', *whom, 'lladdr', '02:00:00:00:00:01', 'nud', 'permanent')

    def mend_pair(self, sender, receiver):
        where, whom = self._towards(sender, receiver)
        ip(*where, 'neigh', 'del', *whom)

    def cut(self, name):
        ip('link', 'set', self._link(self._index(name)), 'down')

    def mend(self, name):
        ip('link', 'set', self._link(self._index(name)), 'up')
