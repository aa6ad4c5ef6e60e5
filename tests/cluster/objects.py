# SPDX-License-Identifier: GPL-2.0-or-later
"""Persistent classes of the tests, importable by every process."""

from persistent import Persistent


class Item(Persistent):
    """Anything, as attributes. Concurrent changes conflict."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Sum(Persistent):
    """A number; concurrent changes are added."""

    value = 0

    def _p_resolveConflict(self, old, saved, new):
        saved['value'] = saved.get('value', 0) + new.get('value', 0) - old.get('value', 0)
        return saved


class Stubborn(Sum):
    """Conflicts are looked at, and refused."""

    def _p_resolveConflict(self, old, saved, new):
        from ZODB.POSException import ConflictError
        raise ConflictError('no')
