# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator does meanwhile: storages come and go, copies are more or less."""

from collections import Counter

from administrator import Administrator
from replicas import replicas_of


class Operator(Administrator):
    """An administrator who also changes how many copies there are. (Packs are ordered by clients.)"""

    def __init__(self, run, replicas):
        super().__init__(run.cluster, run.random, replicas)
        self.run = run
        self.counts = Counter()

    def ctl(self, *args):
        result = self.cluster.ctl_run(*args)
        text = (result.stdout + result.stderr).strip().replace('\n', ' / ')
        self.run.say(f'neoctl {" ".join(args)}: {text}')
        self.counts[' '.join(args[:2]) if args[0] == 'set' else args[0]] += not result.returncode
        return not result.returncode

    def choices(self):
        return [*super().choices(), 'tweak', 'replicas']

    def begin(self, choice):
        if choice != 'replicas':
            super().begin(choice)
            return
        replicas = self.random.choice([x for x in (1, 1, 2) if x != self.replicas] or [1])
        self.set_replicas(replicas)

    def insist(self):
        """An order that was accepted is forgotten if all are killed before storages have stored it."""
        if replicas_of(self.cluster) not in (None, self.replicas):
            self.set_replicas(self.replicas)

    def set_replicas(self, replicas):
        if self.ctl('set', 'replicas', str(replicas)):
            self.replicas = replicas
        self.ctl('tweak')
