# SPDX-License-Identifier: GPL-2.0-or-later
"""`storage.app`: what tools of ERP5 use beside the interfaces of ZODB."""

from ZODB.POSException import POSKeyError

from .exception import NEOStorageNotFoundError


class Application(object):

    def __init__(self, native):
        self._native = native

    @property
    def last_tid(self):
        return self._native.last_tid()

    def oids(self, tid=None, min_oid=None, max_oid=None):
        """Iterate over the oids of the objects that exist at a tid."""
        return self._native.oids(tid, min_oid, max_oid)

    def pack(self, tid, oids=None):
        """Pack up to a tid, all objects or those listed; return once it is done."""
        return self._native.pack(tid, None if oids is None else list(oids))

    def load(self, oid, tid=None, before_tid=None):
        """(data, serial, next serial)"""
        try:
            if tid:
                return self._native.load_serial(oid, tid), tid, None
            if before_tid:
                result = self._native.load_before(oid, before_tid)
                if result is None:
                    raise NEOStorageNotFoundError(oid)
                return result
            return self._native.load(oid)
        except POSKeyError:
            raise NEOStorageNotFoundError(oid)

    def sync(self):
        self._native.sync()

    def close(self):
        self._native.close()
