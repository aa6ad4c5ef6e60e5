# SPDX-License-Identifier: GPL-2.0-or-later
"""Blobs, in a directory that all clients share: ZODB's `BlobStorage` around a NEO storage.

Nothing is to be done to have this: `ZODB.blob.BlobStorage(directory, storage)`, and `<blobstorage>`
in a configuration, give a `BlobStorage` of this module if the storage is a NEO storage.

ZODB's own wrapper names the files by oid and tid, and takes the tid from `storage._tid` while the
transaction is stored. A cluster gives a tid when it commits. So files wait in the temporary directory,
named by the temporary id of the transaction, until then:

    storeBlob         tmp/OID-TTID.neo      committed or not: `final_tid` tells
    tpc_finish        .../OID/TID.blob

A client that dies in between leaves the file in the first place, and another client can be told that
the transaction is committed before the file was moved. Whoever does not find a blob looks there, asks
what became of the transaction, and moves the file. It is also why the file is on disk before the vote.
"""

import logging
import os
import threading
import time

import ZODB.blob
from ZODB.POSException import POSKeyError
from ZODB.utils import oid_repr, repr_to_oid, tid_repr

logger = logging.getLogger('neo')

SUFFIX = '.neo'

# Seconds after which a file whose transaction is not committed is removed by a pack: it was aborted by
# the death of its client.
ABANDONED = 7 * 86400

_ZODBBlobStorage = ZODB.blob.BlobStorage


class BlobStorage(_ZODBBlobStorage):
    """ZODB's wrapper, for a storage that does not know its tids before it commits."""

    def __init__(self, base_directory, storage, layout='automatic'):
        super(BlobStorage, self).__init__(base_directory, storage, layout)
        self._neo = storage
        # The process may change its working directory.
        self._temporary = os.path.abspath(self.fshelper.temp_dir)
        # Transactions under way: id -> names of files in the temporary directory.
        self._waiting = {}
        self._waiting_lock = threading.Lock()

    def registerDB(self, db):
        super(BlobStorage, self).registerDB(db)
        # ZODB's wrapper keeps it for itself: the database would not hear of other clients.
        self._neo.registerDB(db)

    # Committing.

    def storeBlob(self, oid, oldserial, data, blobfilename, version, transaction):
        assert not version, "Versions aren't supported."
        if isinstance(oldserial, str):  # as ZODB's own tests do
            oldserial = oldserial.encode('latin-1')
        self._neo.store(oid, oldserial, data, '', transaction)
        self._wait(oid, blobfilename, transaction)

    def _wait(self, oid, source, transaction, move=True):
        """Put a file where it waits for the end of the transaction."""
        name = oid_repr(oid) + '-' + tid_repr(self._neo.ttid(transaction)) + SUFFIX
        target = os.path.join(self._temporary, name)
        with self._waiting_lock:
            self._waiting.setdefault(id(transaction), {})[oid] = name
        if move:
            ZODB.blob.rename_or_copy_blob(source, target)
        else:
            if os.path.exists(target):
                os.remove(target)
            ZODB.blob.link_or_copy(source, target)
        _flush(target)

    def tpc_finish(self, transaction, f=None):
        def finished(tid):
            # Before anybody here hears of the transaction.
            with self._waiting_lock:
                waiting = self._waiting.pop(id(transaction), {})
            for oid, name in waiting.items():
                try:
                    self._move(oid, name, tid)
                except Exception:
                    # It is committed. Who needs the blob will try again.
                    logger.exception("blob %s of transaction %s", oid_repr(oid), tid_repr(tid))
            if f is not None:
                f(tid)
        tid = self._neo.tpc_finish(transaction, finished)
        self._blob_tpc_finish()
        return tid

    def tpc_abort(self, transaction):
        self._neo.tpc_abort(transaction)
        with self._waiting_lock:
            waiting = self._waiting.pop(id(transaction), {})
        for name in waiting.values():
            try:
                os.remove(os.path.join(self._temporary, name))
            except FileNotFoundError:
                pass
        self._blob_tpc_abort()

    def _move(self, oid, name, tid):
        """Put a file of a committed transaction in its place, unless somebody did."""
        directory = self.fshelper.getPathForOID(oid, create=True)
        target = self.fshelper.getBlobFilename(oid, tid)
        try:
            os.replace(os.path.join(self._temporary, name), target)
        except FileNotFoundError:
            if not os.path.exists(target):
                raise
        else:
            _flush(directory)

    # Loading.

    def loadBlob(self, oid, serial):
        try:
            return super(BlobStorage, self).loadBlob(oid, serial)
        except POSKeyError:
            if not self._recover(oid):
                raise
        return super(BlobStorage, self).loadBlob(oid, serial)

    def _recover(self, oid=None):
        """Move files of committed transactions, all of them or those of an object."""
        prefix = '' if oid is None else oid_repr(oid) + '-'
        moved = False
        for name in os.listdir(self._temporary):
            if not (name.startswith(prefix) and name.endswith(SUFFIX)):
                continue
            found, _, ttid = name[:-len(SUFFIX)].partition('-')
            try:
                found, ttid = repr_to_oid(found), repr_to_oid(ttid)
            except ValueError:
                continue  # not ours
            tid = self._neo.final_tid(ttid)
            if tid is not None:
                try:
                    self._move(found, name, tid)
                    moved = True
                except FileNotFoundError:
                    pass  # aborted meanwhile, or packed
            elif oid is None:
                self._remove_if_abandoned(name)
        return moved

    def _remove_if_abandoned(self, name):
        path = os.path.join(self._temporary, name)
        try:
            if os.path.getmtime(path) < time.time() - ABANDONED:
                os.remove(path)
        except FileNotFoundError:
            pass

    # Undo and pack.

    def undo(self, transaction_id, transaction):
        result = self._neo.undo(transaction_id, transaction)
        for oid in result[1]:
            if not os.path.isdir(self.fshelper.getPathForOID(oid)):
                continue
            # What becomes current again is what was before.
            try:
                before = self._neo.loadBefore(oid, transaction_id)
            except POSKeyError:
                before = None
            if before is None:
                continue  # its creation is undone
            try:
                source = self.loadBlob(oid, before[1])
            except POSKeyError:
                continue  # not a blob then
            self._wait(oid, source, transaction, move=False)
        return result

    def pack(self, packtime, referencesf):
        self._recover()
        return super(BlobStorage, self).pack(packtime, referencesf)

    # Copies of other storages.

    def restoreBlob(self, oid, serial, data, blobfilename, prev_txn, transaction):
        self._neo.restore(oid, serial, data, '', prev_txn, transaction)
        self._wait(oid, blobfilename, transaction)

    def copyTransactionsFrom(self, other, verbose=0):
        ZODB.blob.copyTransactionsFromTo(other, self)


def _flush(path):
    """Make sure that a file, or the names in a directory, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _new(cls, base_directory=None, storage=None, *args, **kw):
    if cls is _ZODBBlobStorage and getattr(storage, 'neo_storage', False):
        cls = BlobStorage
    return object.__new__(cls)


def install():
    """Make ZODB's class give that of this module for NEO storages."""
    _ZODBBlobStorage.__new__ = staticmethod(_new)
