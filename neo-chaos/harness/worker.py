# SPDX-License-Identifier: GPL-2.0-or-later
"""A client in Python: the same operations as those of `neo-chaos work`, and the same history.

It uses the interface of ZODB storages, without ZODB on top: what is checked is what storages promise
to ZODB. `neo-chaos/src/history.rs` tells what the lines of a history mean.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections import deque

from neo.client.Storage import Storage
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import ConflictError, POSKeyError, UndoError
from ZODB import utils
from ZODB.utils import p64, u64, z64

# Data is no pickle here, and a ConflictError would look into it for a class.
utils.get_pickle_metadata = lambda data: ('', '')

# Operations, with how often they are done: as WEIGHTS of `neo-chaos/src/work/mod.rs`.
WEIGHTS = {
    'transfer': 20, 'checked transfer': 14, 'increment': 16, 'blobs': 14, 'undo': 4, 'empty': 1,
    'sum': 8, 'past': 8, 'history': 3, 'walk': 2}
BLOBS_MAX = 40
ABORT_ONE_IN = 20
UNDO_AGE_MAX = 5    # seconds; see UNDO_AGE_MAX in `neo-chaos/src/work/writes.rs`
RECENT = 40


def now():
    return time.time_ns() // 1000


def text(tid):
    return None if tid is None else tid.hex()


def following(tid):
    return p64(u64(tid) + 1)


def age(tid):
    """Seconds since a tid was given."""
    from persistent.TimeStamp import TimeStamp
    return time.time() - TimeStamp(tid).timeTime()


def decode(data):
    """Kind, amount."""
    words = data.partition(b'\n')[0].split()
    return words[0], int(words[1])


def error_text(error):
    return f'{type(error).__name__}: {error}'


class History:

    def __init__(self, path, index):
        self.file = open(path, 'wb', buffering=0)
        self.acks = os.open(os.path.splitext(path)[0] + '.acks', os.O_WRONLY | os.O_CREAT)
        self.count = 0
        self.lock = threading.Lock()
        self.write(k='client', kind='python', index=index, pid=os.getpid(), b=now())

    def write(self, **line):
        data = json.dumps(line).encode() + b'\n'
        with self.lock:
            self.file.write(data)

    def acknowledged(self):
        with self.lock:
            self.count += 1
            os.pwrite(self.acks, self.count.to_bytes(8, 'little'), 0)


class Counting(Storage):
    """A storage that resolves conflicts of counters, without pickles."""

    def prepare(self, client):
        self._client = client
        self._current = threading.local()

    def tryToResolveConflict(self, oid, committed, base, data, committed_data=b''):
        attempt = self._current.attempt
        error = ConflictError(oid=oid, serials=(committed, base))
        if not attempt.resolves or data is None:
            raise error
        states = [self.loadSerial(oid, base), committed_data or self.loadSerial(oid, committed), data]
        if decode(data)[0] != b'c':
            raise error
        before, theirs, ours = (decode(x)[1] for x in states)
        data = self._client.value('c', theirs + ours - before)
        attempt.wrote(oid, committed, data)
        return data


class Client:
    """What threads share, and what ZODB.DB is to a storage."""

    def __init__(self, args):
        self.index = args.index
        self.history = History(args.history, args.index)
        self.lock = threading.Lock()
        self.next = 0
        self.recent = deque(maxlen=RECENT)
        with open(args.objects) as f:
            self.objects = {kind: [bytes.fromhex(x) for x in oids]
                            for kind, oids in json.load(f).items()}
        self.stopping = threading.Event()
        self.storage = Counting(master_nodes=args.masters.replace(',', ' '), name=args.cluster)
        self.storage.prepare(self)
        self.storage.registerDB(self)

    def nonce(self):
        with self.lock:
            self.next += 1
            return self.index << 32 | self.next

    def value(self, kind, amount, filler=0):
        nonce = self.nonce()
        noise = random.Random(nonce)
        letters = ''.join(noise.choices('abcdefghijklmnopqrstuvwxyz', k=filler // 2))
        return f'{kind} {amount} {nonce}\n{letters}{"." * (filler // 2)}'.encode()

    # What the storage tells

    def invalidate(self, tid, oids, version=''):
        self.told('other', tid, [x.hex() for x in oids])

    def invalidateCache(self):
        self.history.write(k='told', what='cache', b=now(), last=text(self.storage.lastTransaction()))

    def told(self, what, tid, oids=None):
        self.history.write(k='told', what=what, tid=text(tid), oids=oids, b=now(),
                           last=text(self.storage.lastTransaction()))
        self.recent.append(tid)

    # Stand-ins for what ZODB.DB offers

    references = None
    transform_record_data = untransform_record_data = staticmethod(lambda data: data)


class Attempt:
    """One transaction."""

    def __init__(self, worker, operation, resolves=False):
        self.client, self.storage = worker.client, worker.storage
        self.worker = worker
        self.operation = operation
        self.resolves = resolves
        self.begin = now()
        self.id = self.client.nonce()
        self.user = f'client {self.client.index}'
        self.description = f'{self.id:x} {operation}'
        self.metadata = TransactionMetaData(self.user, self.description)
        self.writes, self.checks = {}, {}
        self.undone = None
        self.steps = []
        self.storage._current.attempt = self
        self.step('begin', self.storage.tpc_begin, self.metadata)
        self.ttid = self.storage.ttid(self.metadata)

    def step(self, name, call, *args):
        begin = now()
        try:
            return call(*args)
        finally:
            self.steps.append((name, begin, now()))

    def wrote(self, oid, base, data, told=False):
        self.checks.pop(oid, None)
        self.writes[oid] = base, data, told

    def store(self, oid, base, data):
        self.wrote(oid, base, data)
        if data is None:
            self.step('delete', self.storage.deleteObject, oid, base, self.metadata)
        else:
            self.step('store', self.storage.store, oid, base, data, '', self.metadata)

    def check(self, oid, serial):
        if oid not in self.writes:
            self.checks[oid] = serial
        self.step('check', self.storage.checkCurrentSerialInTransaction, oid, serial, self.metadata)

    def undo(self, tid, oids):
        """They shall become what they were before: who looks at all histories knows what."""
        self.undone = tid
        for oid in oids:
            self.wrote(oid, tid, None, True)
        return self.step('undo', self.storage.undo, tid, self.metadata)[1]

    def commit(self):
        self.step('vote', self.storage.tpc_vote, self.metadata)
        asked = now()
        self.worker.told_failure = True
        self.client.history.write(
            k='txn', th=self.worker.number, id=self.id, op=self.operation, ttid=text(self.ttid),
            user=self.user, desc=self.description, pack=None, undo=text(self.undone), steps=self.steps, b=self.begin,
            e=asked, checks=[(x.hex(), y.hex()) for x, y in self.checks.items()],
            writes=[(oid.hex(), base.hex(), None if data is None else data.decode(), told)
                    for oid, (base, data, told) in self.writes.items()])
        line = {'k': 'end', 'th': self.worker.number, 'id': self.id, 'b': asked}
        try:
            tid = self.storage.tpc_finish(
                self.metadata, lambda tid: self.client.told('own', tid))
        except Exception as e:
            self.client.history.write(e=now(), error=error_text(e), **line,
                                      certain='before it was known' not in str(e))
            raise
        self.client.history.write(e=now(), tid=text(tid), **line)
        self.client.history.acknowledged()

    def give_up(self, error=None):
        self.storage.tpc_abort(self.metadata)
        self.client.history.write(
            k='fail', th=self.worker.number, op=self.operation, step=self.steps[-1][0],
            ttid=text(self.ttid), steps=self.steps, b=self.begin, e=now(),
            error=error and error_text(error))


class Worker(threading.Thread):

    def __init__(self, client, number, seed, pause):
        super().__init__(name=f'worker-{number}')
        self.client, self.storage = client, client.storage
        self.number = number
        self.random = random.Random(f'{seed}/{client.index}/{number}')
        self.pause = pause
        self.told_failure = False
        self.crash = None

    def run(self):
        names, weights = zip(*WEIGHTS.items())
        while not self.client.stopping.is_set():
            time.sleep(self.pause * self.random.random() * 2)
            name, = self.random.choices(names, weights)
            self.told_failure = False
            begin = now()
            try:
                getattr(self, name.replace(' ', '_'))()
            except Exception as e:
                if not self.told_failure:
                    self.client.history.write(k='fail', th=self.number, op=name, step='read', b=begin,
                                              e=now(), error=error_text(e))
                if not isinstance(e, (ConflictError, POSKeyError, UndoError)):
                    time.sleep(.02)

    # Helpers

    def one_in(self, n):
        return self.random.randrange(n) == 0

    def filler(self):
        return self.random.choices(
            [self.random.randrange(200), 3000, 20000], [290, 9, 1])[0]

    def choose(self, kind, count):
        oids = self.client.objects[kind]
        return self.random.sample(oids, min(count, len(oids)))

    def any_object(self):
        return self.random.choice([x for oids in self.client.objects.values() for x in oids])

    def any_transaction(self, among=RECENT):
        tids = list(self.client.recent)[-among:]
        return self.random.choice(tids) if tids else None

    def snapshot(self):
        if self.one_in(4):
            self.storage.sync()
        return following(self.storage.lastTransaction())

    def load(self, oid, how, arg=None):
        """(serial, data or None), None without revision or if it is not known which."""
        last = text(self.storage.lastTransaction())
        begin = now()
        line = {}
        result = None
        try:
            if how == 'before':
                found = self.storage.loadBefore(oid, arg)
                if found is None:
                    line = {'got': 'missing'}
                else:
                    data, serial, following = found
                    line = {'next': text(following)}
            elif how == 'at':
                data, serial = self.storage.loadSerial(oid, arg), arg
                line = {'next': '?'}
            else:
                data, serial = self.storage.load(oid)
                line = {'next': '?'}
            if 'got' not in line:
                line.update(got='data', serial=text(serial), sha=hashlib.sha1(data).hexdigest())
                result = serial, data
        except POSKeyError:
            line = {'got': 'keyerror'}
        self.client.history.write(
            k='load', th=self.number, b=begin, e=now(), how=how, oid=oid.hex(), arg=text(arg),
            last=last, after=text(self.storage.lastTransaction()), **line)
        return result

    def attempt(self, operation, act, resolves=False):
        attempt = Attempt(self, operation, resolves)
        try:
            act(attempt)
            if self.one_in(ABORT_ONE_IN):
                attempt.give_up()
                return False
            attempt.commit()
        except Exception as e:
            if not self.told_failure:
                self.told_failure = True
                attempt.give_up(e)
            raise
        return True

    # Operations

    def transfer(self, checked=False):
        before = self.snapshot()
        source, target, other = self.choose('account', 3)
        found = [self.load(x, 'before', before) for x in (source, target)]
        relied = self.load(other, 'before', before) if checked else None
        if None in found:
            return
        (source_serial, source_data), (target_serial, target_data) = found
        amount = self.random.randint(1, 10)

        def act(attempt):
            if relied:
                attempt.check(other, relied[0])
            attempt.store(source, source_serial, self.client.value(
                'a', decode(source_data)[1] - amount, self.filler()))
            if checked and self.one_in(2):
                attempt.check(target, target_serial)
            attempt.store(target, target_serial, self.client.value(
                'a', decode(target_data)[1] + amount))
        self.attempt('checked transfer' if checked else 'transfer', act)

    def checked_transfer(self):
        self.transfer(True)

    def increment(self):
        before = self.snapshot()
        found = [(oid, self.load(oid, 'before', before))
                 for oid in self.choose('counter', self.random.randint(1, 3))]

        def act(attempt):
            for oid, revision in found:
                if revision:
                    serial, data = revision
                    attempt.store(oid, serial, self.client.value('c', decode(data)[1] + 1))
        self.attempt('increment', act, resolves=True)

    def blobs(self):
        before = self.snapshot()
        changes = []
        for oid in self.choose('blob', self.random.randint(1, 4)):
            revision = self.load(oid, 'before', before)
            # The exception does not tell the serial of a revision without data.
            if revision:
                changes.append((oid, revision[0], self.one_in(5)))
        created = []
        if len(self.client.objects['blob']) < BLOBS_MAX:
            created = [self.storage.new_oid() for _ in range(self.random.randrange(3))]
        changes += [(oid, z64, False) for oid in created]

        def act(attempt):
            for oid, serial, deleted in changes:
                attempt.store(oid, serial, None if deleted else self.client.value(
                    'b', 0, self.filler()))
                if self.one_in(10):
                    attempt.store(oid, serial, self.client.value('b', 1))
        if self.attempt('blobs', act):
            self.client.objects['blob'].extend(created)

    def undo(self):
        undone = self.any_transaction(10)
        if undone is None or age(undone) > UNDO_AGE_MAX:
            return
        entry = next((x for x in self.storage.iterator(undone, undone) if x.tid == undone), None)
        oids = [record.oid for record in entry] if entry else []
        for oid in oids:
            # It may have been created, or be without data: which one is not told.
            if not self.load(oid, 'before', undone) or not self.is_current(oid, undone):
                return
        if not oids:
            return

        def act(attempt):
            for oid in attempt.undo(undone, oids):
                if not self.is_current(oid, undone):
                    raise UndoError('not the last change')
            if age(undone) > UNDO_AGE_MAX:
                raise UndoError('too old')
        self.attempt('undo', act)

    def is_current(self, oid, tid):
        revision = self.load(oid, 'current')
        return revision is not None and revision[0] == tid

    def empty(self):
        self.attempt('empty', lambda _: None)

    def sum(self):
        begin = now()
        before = self.snapshot()
        accounts = self.choose('account', 1 << 30)
        if self.one_in(2):
            self.storage.prefetch(accounts, before)
        found = [self.load(oid, 'before', before) for oid in accounts]
        self.client.history.write(
            k='sum', th=self.number, b=begin, e=now(), before=before.hex(), count=len(accounts),
            sum=sum(decode(data)[1] for _, data in filter(None, found)))

    def past(self):
        for _ in range(self.random.randint(1, 5)):
            last = self.storage.lastTransaction()
            oid, tid = self.any_object(), self.any_transaction()
            if tid is None:
                return
            how = self.random.choice(['current', 'at', 'before'])
            if how == 'before':
                tid = following(min(tid, last))
            self.load(oid, how, None if how == 'current' else tid)

    def history(self):
        last = self.storage.lastTransaction()
        oid, size = self.any_object(), self.random.randint(1, 30)
        begin = now()
        try:
            tids = [x['tid'].hex() for x in self.storage.history(oid, size)]
        except POSKeyError:
            tids = []
        self.client.history.write(k='history', th=self.number, b=begin, e=now(), oid=oid.hex(),
                                  max=size, tids=tids, last=last.hex())

    def walk(self):
        last = self.storage.lastTransaction()
        start = self.any_transaction()
        if start is None or start > last:
            return
        begin = now()
        tids = []
        for entry in self.storage.iterator(start, last):
            tids.append(entry.tid.hex())
            for record in entry:
                line = {'got': 'nothing'} if record.data is None else {
                    'got': 'data', 'sha': hashlib.sha1(record.data).hexdigest()}
                self.client.history.write(
                    k='load', th=self.number, b=begin, e=now(), how='at', oid=record.oid.hex(),
                    arg=entry.tid.hex(), serial=record.tid.hex(), next='?', **line)
        self.client.history.write(k='walk', th=self.number, b=begin, e=now(), start=start.hex(),
                                  stop=last.hex(), tids=tids)


def main():
    parser = argparse.ArgumentParser()
    for name in 'masters', 'cluster', 'history', 'objects':
        parser.add_argument('--' + name, required=True)
    for name in 'index', 'seed', 'threads', 'pause':
        parser.add_argument('--' + name, required=True, type=int)
    args = parser.parse_args()
    client = Client(args)
    workers = [Worker(client, i, args.seed, args.pause / 1000) for i in range(args.threads)]
    for worker in workers:
        worker.start()
    sys.stdin.buffer.read()
    client.stopping.set()
    for worker in workers:
        worker.join()
    client.storage.close()
    client.history.write(k='closed', b=now())


if __name__ == '__main__':
    main()
