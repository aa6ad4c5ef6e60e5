# SPDX-License-Identifier: GPL-2.0-or-later
"""An administrator of a cluster with replicas that is never at rest."""

from cluster import wait_for
from replicas import all_up_to_date, cells, nid_of

# A replication starts again after each fault.
REPLICATED_WITHIN = 120


class Administrator:
    """Adds, empties, drops storages: a step whenever it is asked, never waiting for the end.

    Commands may be refused: a node that is needed may be down just now.
    """

    def __init__(self, cluster, rng, replicas, storages_max=6):
        self.cluster = cluster
        self.random = rng
        self.replicas = replicas
        self.storages_min, self.storages_max = len(cluster.storages), storages_max
        self.members = list(cluster.storages)
        self.joining = None
        self.leaving = None
        self.added = self.dropped = self.tweaked = 0

    def ctl(self, *args):
        result = self.cluster.ctl_run(*args)
        text = (result.stdout + result.stderr).strip().replace('\n', ' / ')
        print(f'    neoctl {" ".join(args)}: {text}', flush=True)
        return not result.returncode

    def step(self):
        if self.joining:
            self.join()
        elif self.leaving:
            self.leave()
        else:
            self.begin(self.random.choice(self.choices()))

    def choices(self):
        """What may be begun now."""
        choices = ['tweak']
        if len(self.members) < self.storages_max:
            choices.append('join')
        if len(self.members) > self.storages_min:
            choices.append('leave')
        return choices

    def begin(self, choice):
        if choice == 'join':
            self.joining = self.cluster.new_storage().start()
            self.members.append(self.joining)
        elif choice == 'leave':
            self.leaving = self.random.choice(self.members)
            self.leave()
        else:
            self.tweaked += self.ctl('tweak')

    def join(self):
        nid = nid_of(self.cluster, self.joining)
        states = {x[0]: x[3] for x in self.cluster.node_list('storage')}
        if states.get(nid) == 'PENDING':
            self.ctl('add', nid)
        elif states.get(nid) == 'RUNNING' and self.ctl('tweak'):
            self.joining = None
            self.added += 1

    def leave(self):
        nid = nid_of(self.cluster, self.leaving)
        if not all_up_to_date(self.cluster, self.replicas, without=nid):
            self.ctl('tweak', nid)
            return
        # Nobody needs its data any more.
        if self.leaving.alive:
            self.leaving.kill9()
            wait_for(lambda: any(x[0] == nid and x[3] == 'DOWN' for x in self.cluster.node_list()),
                     'the master to notice')
        if self.ctl('drop', nid):
            self.members.remove(self.leaving)
            self.leaving = None
            self.dropped += 1

    def wait_replicated(self):
        """Each partition has all its copies, without counting those that leave."""
        nid = self.leaving and nid_of(self.cluster, self.leaving)

        def replicated():
            if all_up_to_date(self.cluster, self.replicas, without=nid):
                return True
            # It may have been refused.
            if nid:
                self.cluster.ctl_run('tweak', nid)
            return False
        try:
            wait_for(replicated, 'the end of replication', REPLICATED_WITHIN, .5)
        except TimeoutError as e:
            raise TimeoutError(f'{e}: {cells(self.cluster)} without {nid}') from None

    def victims(self):
        """Nodes to which something may happen."""
        storages = [x for x in self.members if x.alive]
        return [*self.cluster.masters, *storages, self.cluster.admin]
