# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that load a cluster, and the proof that nothing was lost or torn.

Several processes of several threads run transactions of three kinds against
shared objects:

    count N     increment a counter; concurrent increments conflict
    length N    increment a `BTrees.Length`; the client resolves the conflicts
    move A B N  move an amount between two accounts

Accounts go by pairs that may not be overdrawn together: an account is debited
after a look at its partner, declared with `readCurrent`. Two debits of a pair at
the same time, one on each side (write skew), would break the rule.

In addition, each transaction changes all the cells of a ledger that belongs to
the thread alone. The cells lie in different partitions, and tell the number of
the transaction. So a torn transaction shows as cells that differ, and a lost one
as a number that went back.

The description of a transaction says what it does. In the end, `check_history`
reads all transactions back, does again what they say on a model, and compares:

- each acknowledged transaction is there, under the tid that was acknowledged;
- whatever else is there has an unknown outcome (an error during the commit), and
  was never answered by a conflict;
- each transaction holds exactly the objects that it should have changed;
- the values in the database are those of the model.
"""

import faulthandler
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter as Counts

import transaction
from BTrees.Length import Length
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError

from cluster import UPSTREAM

COUNTERS = 3
LENGTHS = 3
PAIRS = 8
OPENING_BALANCE = 100
CELLS = 4


class Counter(Persistent):
    value = 0


class Total(Length):
    """A `BTrees.Length` that tells whether conflicts were resolved."""

    resolved = 0    # in this process, by any object

    def _p_resolveConflict(self, *states):
        Total.resolved += 1
        return super()._p_resolveConflict(*states)


class Account(Persistent):
    balance = OPENING_BALANCE


class Cell(Persistent):
    number = 0


def populate(db, threads):
    """Store the objects on which `threads` threads will work."""
    with db.transaction() as conn:
        root = conn.root()
        root['counters'] = [Counter() for _ in range(COUNTERS)]
        root['lengths'] = [Total() for _ in range(LENGTHS)]
        root['accounts'] = [Account() for _ in range(2 * PAIRS)]
        root['ledgers'] = ledgers = PersistentMapping()
        for thread in range(threads):
            ledgers[thread] = [Cell() for _ in range(CELLS)]


# Inside a client process


class Worker(threading.Thread):
    """One thread of transactions, with a connection of its own."""

    def __init__(self, new_db, index, seed, may_fail, acked, attempts):
        super().__init__(name=f'worker-{index}', daemon=True)
        self.new_db = new_db
        self.index = index
        self.random = random.Random(f'{seed}/{index}')
        self.may_fail = may_fail
        self.acked = acked          # shared: number of the last acknowledged transaction
        self.attempts = attempts    # shared: how many were begun
        self.stopping = threading.Event()
        self.outcomes = {'acked': {}, 'unknown': {}}  # attempt: tid or error
        self.conflicts = Counts()
        self.errors = []            # outside of commit: nothing is at stake
        self.crash = None

    def run(self):
        try:
            while not self.stopping.is_set():
                self.session()
        except BaseException as e:
            self.crash = f'{type(e).__name__}: {e}'
            raise

    def session(self):
        """Transactions on one connection, until something fails."""
        manager = transaction.TransactionManager(explicit=True)
        conn = None
        try:
            conn = self.new_db().open(manager)
            while not self.stopping.is_set():
                manager.begin()
                self.attempt(manager, conn.root())
        except Exception as e:
            if not self.may_fail:
                raise
            self.errors.append(f'{type(e).__name__}: {e}')
            self.stopping.wait(.05)
        finally:
            if conn is not None:
                try:
                    manager.abort()
                except Exception:
                    pass  # no transaction is begun, or its storage is gone
                conn.close()

    def attempt(self, manager, root):
        self.attempts[self.index] += 1
        name = f'{self.index}.{self.attempts[self.index]}'
        kind = 'read'
        try:
            cells = root['ledgers'][self.index]
            number = cells[0].number + 1
            for cell in cells:
                assert cell.number == number - 1, f'torn: {[x.number for x in cells]}'
                cell.number = number
            assert number > self.acked[self.index], (
                f'lost: {number} follows acknowledged {self.acked[self.index]}')
            action = self.act(root)
            kind = action.partition(' ')[0]
            manager.get().note(f'{name} {number} {action}')
        except ConflictError:
            self.conflicts[kind] += 1
            manager.abort()
            return
        try:
            manager.commit()
        except ConflictError:
            self.conflicts[kind] += 1
            manager.abort()
        except Exception as e:
            self.outcomes['unknown'][name] = f'{type(e).__name__}: {e}'
            raise
        else:
            self.outcomes['acked'][name] = cells[0]._p_serial
            self.acked[self.index] = number

    def act(self, root):
        kind = self.random.choice(['count', 'length', 'move'])
        if kind == 'count':
            i = self.random.randrange(COUNTERS)
            root['counters'][i].value += 1
            return f'count {i}'
        if kind == 'length':
            i = self.random.randrange(LENGTHS)
            root['lengths'][i].change(1)
            return f'length {i}'
        accounts = root['accounts']
        source, target = self.random.sample(range(2 * PAIRS), 2)
        partner = accounts[source ^ 1]
        limit = accounts[source].balance + partner.balance
        if target != source ^ 1:
            # After the look: the serial of an object that is not loaded means nothing.
            partner._p_jar.readCurrent(partner)
        assert limit >= 0, f'pair {source} is overdrawn: {limit}'
        amount = self.random.randint(0, limit)
        accounts[source].balance -= amount
        accounts[target].balance += amount
        return f'move {source} {target} {amount}'


def client_process(pipe, log, storage_args, indexes, seed, may_fail, acked, attempts):
    """Main function of a client process. Ends with its parent, whatever happens."""
    log = open(log, 'a', buffering=1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log)
    import ZODB
    from neo.client.Storage import Storage

    def new_db():
        return ZODB.DB(Storage(**storage_args), pool_size=2 * len(indexes))
    db = new_db()
    # Upstream's client may be unusable for ever once a node was lost.
    workers = [Worker(new_db if UPSTREAM and may_fail else lambda: db,
                      i, seed, may_fail, acked, attempts) for i in indexes]
    for worker in workers:
        worker.start()
    try:
        pipe.recv()
    except EOFError:
        os._exit(1)
    for worker in workers:
        worker.stopping.set()
    for worker in workers:
        worker.join()
    for worker in workers:
        pipe.send((worker.index, worker.outcomes, worker.conflicts, worker.errors,
                   worker.crash))
    db.close()
    pipe.send(Total.resolved)


# In the test


class Load:
    """Client processes at work. Use as a context manager, then look at the results."""

    def __init__(self, cluster, processes=4, threads=4, seed=0, may_fail=False):
        self.cluster = cluster
        self.thread_count = processes * threads
        db = cluster.db()
        populate(db, self.thread_count)
        db.close()
        context = multiprocessing.get_context('spawn')
        self.acked = context.RawArray('Q', self.thread_count)
        self.attempts = context.RawArray('Q', self.thread_count)
        self.outcomes = {'acked': {}, 'unknown': {}}
        self.conflicts = Counts()
        self.errors = Counts()
        self.processes = []
        self.logs = []
        storage_args = {'master_nodes': cluster.master_nodes, 'name': cluster.name}
        for i in range(processes):
            pipe, theirs = context.Pipe()
            log = cluster.directory / f'client_{i}.stderr'
            indexes = range(i * threads, (i + 1) * threads)
            process = context.Process(target=client_process, daemon=True, args=(
                theirs, log, storage_args, indexes, seed, may_fail, self.acked, self.attempts))
            self.processes.append((process, pipe))
            self.logs.append(log)
            process.start()
            theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, tb):
        for process, pipe in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def wait_progress(self, transactions, timeout):
        """Wait until so many more transactions are acknowledged, over all threads."""
        target = sum(self.acked) + transactions
        self.wait(lambda: sum(self.acked) >= target, timeout,
                  f'{transactions} more transactions')

    def wait_each(self, timeout):
        """Wait until each process has a transaction acknowledged from now on."""
        before = self._per_process()
        self.wait(lambda: all(x > y for x, y in zip(self._per_process(), before)), timeout,
                  'each process to commit')

    def _per_process(self):
        n = self.thread_count // len(self.processes)
        return [sum(self.acked[i:i + n]) for i in range(0, self.thread_count, n)]

    def wait(self, condition, timeout, what):
        deadline = time.monotonic() + timeout
        while not condition():
            for i, (process, _) in enumerate(self.processes):
                if not process.is_alive():
                    raise AssertionError(f'client {i} died:\n{self._log(i)}')
            if time.monotonic() > deadline:
                raise TimeoutError(f'hang? timeout after {timeout:g} s while waiting for '
                                   f'{what}\n{self.stacks()}')
            time.sleep(.005)

    def _log(self, i):
        return self.logs[i].read_text()[-6000:]

    def stacks(self):
        """Where each thread of each client is."""
        sizes = [log.stat().st_size for log in self.logs]
        for process, _ in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and any(
                log.stat().st_size == size for log, size in zip(self.logs, sizes)):
            time.sleep(.02)
        return '\n'.join(f'-- client {i}\n{self._log(i)}' for i in range(len(self.logs)))

    def stop(self, timeout=30):
        """Stop the clients and collect what they were told."""
        for _, pipe in self.processes:
            pipe.send('stop')
        crashes = []
        for i, (process, pipe) in enumerate(self.processes):
            while True:
                if not pipe.poll(timeout):
                    raise TimeoutError(f'hang: client {i} does not stop\n{self.stacks()}')
                try:
                    answer = pipe.recv()
                except EOFError:
                    raise AssertionError(f'client {i} died:\n{self._log(i)}') from None
                if isinstance(answer, int):
                    self.conflicts['resolved'] += answer
                    break
                index, outcomes, conflicts, errors, crash = answer
                for key, value in outcomes.items():
                    self.outcomes[key].update(value)
                self.conflicts.update(conflicts)
                self.errors.update(errors)
                if crash:
                    crashes.append(f'thread {index}: {crash}')
            process.join(timeout)
        assert not crashes, '\n'.join(crashes)

    # Checks

    def check_snapshot(self, acked=None):
        """One look at the database while it changes, by a new client."""
        acked = list(self.acked) if acked is None else acked
        db = self.cluster.db()
        with db.transaction() as conn:
            root = conn.root()
            for thread, cells in root['ledgers'].items():
                numbers = [x.number for x in cells]
                assert len(set(numbers)) == 1, f'torn: {numbers} in ledger {thread}'
                assert numbers[0] >= acked[thread], (
                    f'lost: ledger {thread} is at {numbers[0]}, acknowledged {acked[thread]}')
            balances = [x.balance for x in root['accounts']]
            assert sum(balances) == 2 * PAIRS * OPENING_BALANCE, balances
            for i in range(0, 2 * PAIRS, 2):
                assert balances[i] + balances[i + 1] >= 0, balances
        db.close()

    def check_history(self):
        """Read all transactions back and replay them. Returns how many there are."""
        db = self.cluster.db()
        acked = dict(self.outcomes['acked'])
        unknown = self.outcomes['unknown']
        model = {'count': [0] * COUNTERS, 'length': [0] * LENGTHS,
                 'accounts': [OPENING_BALANCE] * (2 * PAIRS), 'ledgers': [0] * self.thread_count}
        with db.transaction() as conn:
            root = conn.root()
            oids = {kind: [x._p_oid for x in root[key]] for kind, key in (
                ('count', 'counters'), ('length', 'lengths'), ('move', 'accounts'))}
            cells = {thread: {x._p_oid for x in ledger}
                     for thread, ledger in root['ledgers'].items()}
            count = 0
            previous = b''
            for txn in db.storage.iterator():
                assert txn.tid > previous, 'tids do not increase'
                previous = txn.tid
                words = txn.description.decode().split()
                if len(words) < 3 or '.' not in words[0]:
                    continue  # creation of the database and of the objects
                count += 1
                name, number, kind, *numbers = words
                numbers = [int(x) for x in numbers]
                thread = int(name.partition('.')[0])
                if name in acked:
                    assert acked.pop(name) == txn.tid, f'{name}: not the acknowledged tid'
                else:
                    assert name in unknown, f'{name} failed for its client, but is stored'
                assert int(number) == model['ledgers'][thread] + 1, f'{name}: a number is missing'
                model['ledgers'][thread] += 1
                if kind == 'move':
                    source, target, amount = numbers
                    model['accounts'][source] -= amount
                    model['accounts'][target] += amount
                    changed = {oids[kind][source], oids[kind][target]}
                    assert model['accounts'][source] + model['accounts'][source ^ 1] >= 0, (
                        f'{name}: the pair of account {source} is overdrawn')
                else:
                    model[kind][numbers[0]] += 1
                    changed = {oids[kind][numbers[0]]}
                stored = [x.oid for x in txn]
                assert len(stored) == len(set(stored)), f'{name}: an object twice'
                assert set(stored) == cells[thread] | changed, f'{name} is not whole'
            assert not acked, f'acknowledged, but lost: {acked}'
            assert [x.value for x in root['counters']] == model['count']
            assert [x() for x in root['lengths']] == model['length']
            assert [x.balance for x in root['accounts']] == model['accounts']
            assert [{x.number for x in root['ledgers'][i]} for i in range(self.thread_count)] == [
                {x} for x in model['ledgers']]
        db.close()
        return count
