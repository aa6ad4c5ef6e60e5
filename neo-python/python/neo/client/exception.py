# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions that are not ZODB's own."""

from ZODB import POSException


class NEOStorageError(POSException.StorageError):
    """What happened to the storage, in its message."""


class NEOStorageWrongChecksum(NEOStorageError):
    """The data of an object is damaged in all cells."""


class NEOStorageNotFoundError(NEOStorageError):
    """The object does not exist at the given tid (`storage.app.load` only)."""


class NEOStorageDoesNotExistError(NEOStorageNotFoundError):
    """The object has no revision at all."""


class NEOStorageCreationUndoneError(NEOStorageDoesNotExistError):
    """The object was deleted, or its creation was undone."""
