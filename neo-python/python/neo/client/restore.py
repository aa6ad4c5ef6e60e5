# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying transactions as they are: tids, metadata and back-pointers."""

from ZODB.POSException import POSKeyError
from ZODB.TimeStamp import TimeStamp
from ZODB.utils import oid_repr, z64


class Restorer(object):
    """Knows on which serial a restored revision is based.

    A cluster checks each store against the current serial, also when the tid is imposed.
    """

    def __init__(self, native):
        self._native = native
        # Last serial of the objects restored by this storage.
        self._serials = {}

    def _serial(self, oid):
        try:
            return self._serials[oid]
        except KeyError:
            pass
        try:
            return self._native.history(oid, 1)[0][0]
        except (POSKeyError, IndexError):
            return z64

    def _has(self, oid, serial, data):
        try:
            return self._native.load_serial(oid, serial) == data
        except POSKeyError:
            return False

    def restore(self, transaction, oid, serial, data, prev_txn):
        base = self._serial(oid)
        if prev_txn is not None and data is not None and not self._has(oid, prev_txn, data):
            # It was packed away here, for example.
            prev_txn = None
        transaction.store_from(oid, base, data, prev_txn)
        self._serials[oid] = serial

    def copy(self, storage, source, verbose):
        for txn in source.iterator():
            if verbose:
                print(TimeStamp(txn.tid))
            storage.tpc_begin(txn, txn.tid, txn.status)
            try:
                for record in txn:
                    if verbose > 1:
                        print(oid_repr(record.oid), len(record.data or b''))
                    storage.restore(record.oid, record.tid, record.data, '', record.data_txn, txn)
                storage.tpc_vote(txn)
                storage.tpc_finish(txn)
            except BaseException:
                storage.tpc_abort(txn)
                raise
