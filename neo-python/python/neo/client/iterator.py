# SPDX-License-Identifier: GPL-2.0-or-later
"""Transactions and records as ZODB wants them."""

from persistent.TimeStamp import TimeStamp
from ZODB.BaseStorage import DataRecord, TransactionRecord
from ZODB._compat import loads


class Transaction(TransactionRecord):
    """A transaction of an iterator; iterating over it gives its records, each time."""

    def __init__(self, iterator, native, info):
        tid, user, description, extension, packed, oids = info
        super(Transaction, self).__init__(
            tid, 'p' if packed else ' ', user, description, extension)
        self._iterator = iterator
        self._native = native
        self._oids = oids

    def __iter__(self):
        # As long as the iterator is there, what it asked ahead is used.
        if self._iterator.take(self):
            next_record = self._iterator.native.next_record
        else:
            next_record = iter(self._native.records(self.tid, self._oids)).__next__
        while True:
            try:
                record = next_record()
            except StopIteration:
                return
            if record is None:
                return
            oid, data, data_txn = record
            yield DataRecord(oid, self.tid, data, data_txn)


class TransactionIterator(object):
    """Transactions in order of tid, from `start` to `stop` included."""

    def __init__(self, client, start=None, stop=None):
        self._client = client
        self.native = client.iterate(start, stop)
        self._current = None

    def __iter__(self):
        return self

    def __next__(self):
        if self.native is None:
            raise StopIteration
        info = self.native.next_transaction()
        if info is None:
            self.close()
            raise StopIteration
        self._current = transaction = Transaction(self, self._client, info)
        return transaction

    next = __next__

    def take(self, transaction):
        """Whether the records to come are those of this transaction, all of them."""
        if self._current is transaction and self.native is not None:
            self._current = None
            return True
        return False

    def close(self):
        self.native = self._current = None


def _metadata(info):
    extension = info[3]
    entry = loads(extension) if extension else {}
    entry.update(time=TimeStamp(info[0]).timeTime(), user_name=info[1], description=info[2])
    return entry


def undo_entry(info):
    """Entry of undoLog."""
    entry = _metadata(info)
    entry['id'] = info[0]
    return entry


def history_entry(info, size):
    """Entry of history."""
    entry = _metadata(info)
    entry.update(tid=info[0], version='', size=size)
    return entry
