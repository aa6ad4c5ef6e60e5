# SPDX-License-Identifier: GPL-2.0-or-later
"""Garbage collection after a pack, for storages that are opened with `pack_gc`.

A cluster cannot collect garbage, because it does not know what a record refers to: the client does it,
as FileStorage does.

- What exists at the time of the pack lives on if it can be reached from the root object at that time,
  or from any revision after it.
- All else is deleted, in transactions like any other; then the revisions of what was deleted are packed
  away, whatever the time of the pack is.

Everything is read once. References from other databases are not known. Like with any storage of ZODB, an
application must not use an object again that was unreachable already at the time of the pack.
"""

import logging

from ZODB.POSException import ConflictError, POSKeyError
from ZODB.utils import p64, u64, z64

logger = logging.getLogger('neo')

# Objects that are asked at once, and that are deleted in one transaction.
BATCH = 1000


class Collector(object):

    def __init__(self, native, tid, referencesf, resolve):
        self._native = native
        self._tid = tid
        self._references = referencesf
        self._resolve = resolve
        # Reachable objects, as numbers; and those that are still to be looked at.
        self._alive = set()
        self._todo = []
        self._looked_until = tid

    def garbage(self):
        """Sorted oids that are not reachable."""
        self._reach([z64])
        while True:
            self._follow()
            last = self._native.sync()
            if last <= self._looked_until:
                break
            self._look_at_later(last)
        return [oid for oid in self._native.oids(self._tid) if u64(oid) not in self._alive]

    def _reach(self, oids):
        for oid in oids:
            number = u64(oid)
            if number not in self._alive:
                self._alive.add(number)
                self._todo.append(oid)

    def _follow(self):
        """Reach what reachable objects refer to at the time of the pack."""
        before = p64(u64(self._tid) + 1)
        while self._todo:
            oids, self._todo[-BATCH:] = self._todo[-BATCH:], []
            self._native.prefetch(oids, before)
            for oid in oids:
                try:
                    found = self._native.load_before(oid, before)
                except POSKeyError:
                    continue
                if found is not None:
                    self._reach(self._references(found[0]))

    def _look_at_later(self, last):
        """Reach what was changed after the time of the pack, and what it refers to."""
        transactions = self._native.iterate(p64(u64(self._looked_until) + 1), last)
        while transactions.next_transaction() is not None:
            while True:
                record = transactions.next_record()
                if record is None:
                    break
                self._reach(record[:1])
                if record[1] is not None:
                    self._reach(self._references(record[1]))
        self._looked_until = last

    def delete(self, garbage, description):
        """Delete objects; return the tid of the last deletion, and what was deleted."""
        tid = None
        deleted = []
        for start in range(0, len(garbage), BATCH):
            oids = garbage[start:start + BATCH]
            transaction = self._native.begin(self._resolve)
            try:
                for oid in oids:
                    transaction.delete(oid, self._native.load_before(
                        oid, p64(u64(self._tid) + 1))[1])
                transaction.vote(b'', description, b'')
                tid = transaction.finish()
            except (ConflictError, POSKeyError) as e:
                # Somebody knows them: they will be looked at again by the next pack.
                logger.warning("garbage is not deleted: %s", e)
                transaction.abort()
            except BaseException:
                transaction.abort()
                raise
            else:
                deleted += oids
        return tid, deleted
