# SPDX-License-Identifier: GPL-2.0-or-later
"""The ZODB storage of a NEO cluster.

    >>> from neo.client.Storage import Storage
    >>> storage = Storage(master_nodes="127.0.0.1:10000", name="demo")
    >>> db = ZODB.DB(storage)

One storage serves any number of threads; several transactions may be under way at the same time.
What is here is what only ZODB knows: metadata, conflict resolution, the shape of results. All the
rest is native.
"""

import itertools
import threading
import time

from persistent.TimeStamp import TimeStamp
from ZODB import ConflictResolution, POSException
from ZODB.interfaces import (
    IExternalGC, IMultiCommitStorage, IPrefetchStorage, IStorageCurrentRecordIteration,
    IStorageIteration, IStorageRestoreable, IStorageUndoable, ReadVerifyingStorage)
from ZODB.UndoLogCompatible import UndoLogCompatible
from ZODB.utils import maxtid, p64, u64, z64
from zope.interface import implementer

from . import _native, blob, logs, options
from .app import Application
from .gc import Collector
from .iterator import TransactionIterator, history_entry, undo_entry
from .restore import Restorer


blob.install()

# Description of the transactions that order a pack.
PACK_DESCRIPTION = b'IStorage.pack'

# Up to so many objects are counted.
COUNTED = 10000


def tid_from_time(t):
    """First tid of a time in seconds since 1970."""
    return TimeStamp(*time.gmtime(t)[:5] + (t % 60,)).raw()


# Not IMVCCPrefetchStorage, although there is `prefetch`: it extends IMVCCStorage, and ZODB would take
# this storage for one that gives each connection its own view, and leave out what does that.
@implementer(IMultiCommitStorage, IPrefetchStorage, IStorageIteration, IStorageUndoable,
             IStorageRestoreable, IStorageCurrentRecordIteration, IExternalGC, ReadVerifyingStorage)
class Storage(ConflictResolution.ConflictResolvingStorage, UndoLogCompatible):
    """Storage in a NEO cluster.

    master_nodes: addresses of the masters, "host:port host:port" (or a list)
    name: name of the cluster
    compress: boolean, "zlib" or "zlib=N"
    read_only: only read; a cluster in backup mode accepts no other client
    logfile: file to which the client logs
    cache_size: bytes of the cache, as a number or a text like "20MB"
    dynamic_master_list: file with more masters, kept up-to-date
    ignore_wrong_checksum: return damaged data instead of raising
    pack_gc: a pack also removes what cannot be reached from the root object
    connect_timeout: seconds after which calls fail when there is no cluster; None: never
    """

    def __init__(self, master_nodes, name, compress=None, logfile=None, read_only=False,
                 cache_size=20 << 20, dynamic_master_list=None, ca=None, cert=None, key=None,
                 ignore_wrong_checksum=False, connect_timeout=None, pack_gc=False):
        if ca or cert or key:
            raise ValueError("TLS is not available yet: remove the options ca, cert and key")
        logs.start(logfile)
        self.__name__ = 'NEOStorage(%s)' % name
        self._read_only = bool(read_only)
        self._pack_gc = bool(pack_gc)
        self._native = _native.Client(
            name, options.addresses(master_nodes), read_only=self._read_only,
            compress=options.compression_level(compress),
            cache_size=options.size(cache_size),
            ignore_wrong_checksum=bool(ignore_wrong_checksum),
            dynamic_master_list=dynamic_master_list or None,
            connect_timeout=connect_timeout)
        self.app = Application(self._native)
        # Transactions under way, by identity.
        self._transactions = {}
        self._lock = threading.Lock()
        self._records = None
        self._restorer = Restorer(self._native)
        self._native.connect()
        if type(self).loadBefore is Storage.loadBefore:
            # What ZODB calls most, without a Python frame: a sixth of the cost of a cache hit.
            self.loadBefore = self._native.load_before
        if self._read_only:
            # ZODB looks for what a read-only storage must refuse before any transaction.
            self.store = self.undo = self.restore = self.deleteObject = self._refuse

    def _refuse(self, *args, **kw):
        raise POSException.ReadOnlyError()

    # About the storage.

    #: Tells wrappers that need more than ZODB's interfaces: see the module `blob`.
    neo_storage = True

    def getName(self):
        return self.__name__

    def sortKey(self):
        """Order in which the storages of a transaction vote."""
        return self.__name__

    def isReadOnly(self):
        return self._read_only

    def supportsUndo(self):
        return True

    def __len__(self):
        """Number of objects, if there are less than 10,000. If there are more: oids given so far,
        as far as this client knows."""
        count = sum(1 for _ in itertools.islice(self.app.oids(), COUNTED))
        return count if count < COUNTED else max(count, u64(self._native.last_oid()))

    def __bool__(self):
        return True

    def getSize(self):
        """Rough number of bytes; what ZODB's base class estimates."""
        return len(self) * 300

    def registerDB(self, db):
        self._native.set_listener(db)

    def close(self):
        self._native.close()

    def sync(self, force=True):
        """Wait until all that was committed before is known here."""
        self._native.sync()

    def lastTransaction(self):
        return self._native.last_tid()

    # Loading.

    def load(self, oid, version=''):
        return self._native.load(oid)[:2]

    def loadEx(self, oid, version=''):
        return self._native.load(oid)[:2] + ('',)

    def loadBefore(self, oid, tid):
        return self._native.load_before(oid, tid)

    def loadBeforeEx(self, oid, tid):
        """Like loadBefore, without the tid of the next revision."""
        result = self.loadBefore(oid, tid)
        return result and result[:2]

    def loadSerial(self, oid, serial):
        return self._native.load_serial(oid, serial)

    def getTid(self, oid):
        """Serial of the current revision: as `load_current` of ZODB."""
        found = self._native.load_before(oid, maxtid)
        if found is None:
            raise POSException.POSKeyError(oid)
        return found[1]

    def prefetch(self, oids, tid):
        """Load objects into the cache, many at once."""
        self._native.prefetch(list(oids), tid)

    # Committing.

    def tpc_begin(self, transaction, tid=None, status=' '):
        if self._read_only:
            raise POSException.ReadOnlyError()
        with self._lock:
            if id(transaction) in self._transactions:
                raise POSException.StorageTransactionError(
                    "Duplicate tpc_begin calls for same transaction")
            self._transactions[id(transaction)] = transaction, None
        try:
            native = self._native.begin(self._resolve, tid)
        except BaseException:
            self._forget(transaction)
            raise
        with self._lock:
            self._transactions[id(transaction)] = transaction, native

    def _under_way(self, transaction):
        found, native = self._transactions.get(id(transaction), (None, None))
        if native is None or found is not transaction:
            raise POSException.StorageTransactionError(self, transaction)
        return native

    def _forget(self, transaction):
        with self._lock:
            return self._transactions.pop(id(transaction), (None, None))[1]

    def _resolve(self, oid, committed, base, data, committed_data):
        if committed_data is None:
            committed_data = b''
        return self.tryToResolveConflict(oid, committed, base, data, committed_data)

    def new_oid(self):
        if self._read_only:
            raise POSException.ReadOnlyError()
        return self._native.new_oid()

    def store(self, oid, serial, data, version, transaction):
        assert not version, "versions are not supported"
        self._under_way(transaction).store(oid, serial or z64, data)

    def deleteObject(self, oid, serial, transaction):
        self._under_way(transaction).delete(oid, serial)

    def checkCurrentSerialInTransaction(self, oid, serial, transaction):
        self._under_way(transaction).check_current_serial(oid, serial)

    def ttid(self, transaction):
        """Temporary id of a transaction under way."""
        return self._under_way(transaction).ttid

    def final_tid(self, ttid):
        """The tid of a transaction of any client, if it is committed."""
        return self._native.final_tid(ttid)

    def tpc_vote(self, transaction):
        return self._under_way(transaction).vote(
            _as_bytes(transaction.user), _as_bytes(transaction.description),
            _extension_bytes(transaction))

    def tpc_finish(self, transaction, f=None):
        native = self._under_way(transaction)
        try:
            return native.finish(f)
        finally:
            self._forget(transaction)

    def tpc_abort(self, transaction):
        found, native = self._transactions.get(id(transaction), (None, None))
        if found is transaction:
            self._forget(transaction)
            if native is not None:
                native.abort()

    # Undo and history.

    def undo(self, transaction_id, transaction):
        return None, self._under_way(transaction).undo(transaction_id)

    def undoLog(self, first=0, last=-20, filter=None):
        """Transactions, newest first. A negative `last` is a number of entries.

        Positions count entries that pass the filter. What cannot be undone is not there: what was
        packed, and orders to pack.
        """
        if last < 0:
            last = first - last
        result = []
        position = 0
        for info in self._native.undo_log():
            if position >= last or info[4]:  # all older ones are packed too
                break
            if info[2] == PACK_DESCRIPTION:
                continue
            entry = undo_entry(info)
            if filter is None or filter(entry):
                if position >= first:
                    result.append(entry)
                position += 1
        return result

    def history(self, oid, size=1):
        return [history_entry(self._native.transaction_info(tid), length)
                for tid, length in self._native.history(oid, size)]

    # Iteration and copy.

    def iterator(self, start=None, stop=None):
        return TransactionIterator(self._native, start, stop)

    def record_iternext(self, next=None):
        """Current records one by one: (oid, tid, data, next oid or None)."""
        oid = next or z64
        records = self._records
        if records is None or records[0] != oid:
            iterator = self._native.current_records(oid)
            current = _next(iterator)
            if current is None:
                raise ValueError("no object from oid %d on" % u64(oid))
        else:
            iterator, current = records[1:]
        following = _next(iterator)
        if following is None:
            self._records = None
            return current + (None,)
        self._records = following[0], iterator, following
        return current + (following[0],)

    def copyTransactionsFrom(self, other, verbose=0):
        """Copy all transactions of another storage, with their tids and back-pointers."""
        self._restorer.copy(self, other, verbose)

    def restore(self, oid, serial, data, version, prev_txn, transaction):
        assert not version, "versions are not supported"
        self._restorer.restore(self._under_way(transaction), oid, serial, data, prev_txn)

    def pack(self, t, referencesf=None, gc=None):
        """Remove revisions that are not current at time `t`; return once it is done.

        gc: whether to remove unreachable objects too; by default, what `pack_gc` says.
        """
        if self._read_only:
            raise POSException.ReadOnlyError()
        gc = self._pack_gc if gc is None else gc
        if gc and referencesf is None:
            raise ValueError("references are needed to collect garbage")
        tid = min(tid_from_time(t), self._native.sync())
        self._native.pack(tid)
        if gc:
            # Now nobody can undo what made it garbage.
            self._collect_garbage(tid, referencesf)

    def _collect_garbage(self, tid, referencesf):
        collector = Collector(self._native, tid, referencesf, self._resolve)
        garbage = collector.garbage()
        tid, deleted = collector.delete(garbage, PACK_DESCRIPTION)
        if deleted:
            self._native.pack(tid, deleted)


def _next(iterator):
    for item in iterator:
        return item


def _as_bytes(text):
    return text.encode('utf-8') if isinstance(text, str) else bytes(text)


def _extension_bytes(transaction):
    try:
        return transaction.extension_bytes
    except AttributeError:  # ZODB < 5.6
        from ZODB._compat import _protocol, dumps
        extension = transaction.extension
        return dumps(extension, _protocol) if extension else b''


__all__ = ['Storage', 'p64', 'tid_from_time']
