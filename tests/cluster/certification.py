# SPDX-License-Identifier: GPL-2.0-or-later
"""ZODB's own tests of storages, as classes that run on clusters of real processes.

`certify(storages, partitions)` gives, for one shape of cluster, one test class per group of tests
that the package ZODB ships in `ZODB.tests`. Nothing of ZODB's tests is copied or changed: what is
added here is how a storage is opened. Every test gets new clusters, with empty databases.

Starting a cluster takes a second, nearly all of it spent waiting. So a few are always being started
in advance: see `Pool`.

The number of tests of each group, and those that are expected to fail, are in a table of
`docs/compatibility.md`: `python tests/cluster/certification.py` prints what it must be, and a test
compares.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import pytest
import transaction
import ZODB
import ZODB.blob
import ZODB.FileStorage
import ZODB.MappingStorage
from ZODB.tests import (
    BasicStorage, ConflictResolution, HistoryStorage, IteratorStorage, MTStorage, PackableStorage,
    PersistentStorage, ReadOnlyStorage, RecoveryStorage, RevisionStorage, Synchronization,
    TransactionalUndoStorage, racetest, test_prefetch, testblob, testConnection,
    testConnectionSavepoint, testDB, testZODB)
from ZODB.tests.StorageTestBase import StorageTestBase
from ZODB.tests.util import clear_transaction_syncs

from cluster import Cluster, bin_dir

# (class, method): why it cannot pass. An alarm is raised if it does.
EXPECTED_FAILURES = {}

# Where each class comes from, for the documentation.
WHAT = {
    'Basic': '`BasicStorage`, with `racetest`',
    'Conflict': '`ConflictResolution.ConflictResolvingStorage`',
    'History': '`HistoryStorage`',
    'Iterator': '`IteratorStorage`, also extended',
    'MT': '`MTStorage`',
    'Packable': '`PackableStorage`, also with optional GC',
    'PackableUndo': '`PackableStorage.PackableUndoStorage`',
    'Persistent': '`PersistentStorage`',
    'ReadOnly': '`ReadOnlyStorage`',
    'Recovery': '`RecoveryStorage`, between two clusters',
    'Revision': '`RevisionStorage`',
    'Synchronized': '`Synchronization`',
    'Undo': '`TransactionalUndoStorage`, `ConflictResolution.ConflictResolvingTransUndoStorage`',
    'Prefetch': '`test_prefetch`',
    'DB': '`testDB`, its class',
    'ZODB': '`testZODB`',
    'Connection': '`testConnection`',
    'Savepoint': '`testConnectionSavepoint`',
    'ExternalGC': '`IExternalGC.test`, with blobs',
    'Blob': '`testblob.storage_reusable_suite`, with recovery and packing',
}

# Before ZODB 6, the tests of storages are methods named `check...`.
PREFIXES = 'test', 'check'


class Pool:
    """Clusters of one shape, some of them starting in advance."""

    AHEAD = 3

    def __init__(self, storages, partitions):
        self.storages = storages
        self.partitions = partitions
        self._directory = None
        self._ahead = []
        self._count = 0

    def open(self, directory):
        self._directory = Path(directory)
        # ZODB's tests change the working directory.
        os.environ['NEO_BIN_DIR'] = str(bin_dir())

    def close(self):
        for cluster in self._ahead:
            cluster.kill9()
        self._ahead.clear()

    def _spawn(self):
        self._count += 1
        directory = self._directory / str(self._count)
        directory.mkdir()
        # The master starts the cluster by itself: neither an admin nor anybody to wait is needed.
        cluster = Cluster(directory, storages=self.storages, partitions=self.partitions,
                          autostart=self.storages)
        for node in cluster.masters + cluster.storages:
            node.start()
        self._ahead.append(cluster)

    def take(self):
        """A cluster that nobody used. (The client waits until it is ready.)"""
        while len(self._ahead) <= self.AHEAD:
            self._spawn()
        return self._ahead.pop(0)


class Certified:
    """Gives each test its clusters, and looks after their nodes at the end."""

    pool = None
    storage_options = {}

    def run(self, result=None):
        self.clusters = {}
        try:
            # Some tests replace the clock by one that runs ahead. Tids are given by the master, which
            # has the real one.
            with mock.patch('ZODB.tests.util._TimeWrapper.__enter__', lambda _: None), \
                    mock.patch('ZODB.tests.util._TimeWrapper.install_fakes', lambda _: None), \
                    permissions_matter():
                return super().run(result)
        finally:
            # Some leave connections open.
            clear_transaction_syncs()
            transaction.abort()
            # Raises if a node died or panicked.
            for cluster in self.clusters.values():
                cluster.__exit__(None, None, None)
                shutil.rmtree(cluster.directory)

    def neo(self, name='', **kw):
        """A new client of the cluster that this test knows by a name."""
        if name not in self.clusters:
            self.clusters[name] = self.pool.take()
        return self.clusters[name].storage(**{**self.storage_options, **kw})


@contextlib.contextmanager
def permissions_matter():
    """For root too: a test expects that a file cannot be opened for writing."""
    class Header(ctypes.Structure):
        _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]

    class Sets(ctypes.Structure):
        _fields_ = [('effective', ctypes.c_uint32), ('permitted', ctypes.c_uint32),
                    ('inheritable', ctypes.c_uint32)]
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = Header(0x20080522, 0), (Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), 'capget')
    effective = sets[0].effective
    sets[0].effective &= ~(1 << 1)      # CAP_DAC_OVERRIDE
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), 'capset')
    try:
        yield
    finally:
        sets[0].effective = effective
        if libc.capset(ctypes.byref(header), sets):
            raise OSError(ctypes.get_errno(), 'capset')


class WithStorage(Certified, StorageTestBase):
    """For the tests that find a storage in `self._storage`."""

    def setUp(self):
        super().setUp()
        self.open()

    def open(self, **kw):
        self._storage = self.neo(**kw)

    def _new_storage_client(self):
        return self.neo()


class WithDestination(WithStorage):
    """For those that copy to `self._dst`, the storage of another cluster."""

    def open(self, **kw):
        super().open(**kw)
        self._dst = self.neo('destination')

    def tearDown(self):
        self._dst.close()
        super().tearDown()


class Replaced(Certified):
    """For those that make their storages themselves: what they get is on clusters.

    MappingStorage and FileStorage give the storage of a cluster, one for each name.
    """

    def run(self, result=None):
        numbers = itertools.count()

        def mapping_storage(name=None):
            return self.neo(f'mapping {next(numbers)} {name}')

        def file_storage(path, create=False, blob_dir=None):
            storage = self.neo(path)
            return ZODB.blob.BlobStorage(blob_dir, storage) if blob_dir else storage
        with mock.patch('ZODB.MappingStorage.MappingStorage', mapping_storage), \
                mock.patch('ZODB.FileStorage.FileStorage', file_storage):
            return super().run(result)


class WithBlobs(Certified):
    """For those that make storages with `create_storage`: ZODB's wrapper around our storage."""

    def create_storage(self, name='data', blob_dir=None):
        return ZODB.blob.BlobStorage(blob_dir or name + '.bobs', self.neo(name))


def tests_of(suite):
    """The tests of a suite, by name."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def suite_class(name, base, make_suite, **members):
    """A class with one method for each test of a suite that `make_suite(factory)` makes.

    The factory makes storages, as `create_storage` of a test does.
    """
    running = []

    def factory(*args):
        return running[-1].create_storage(*args)

    def method(test):
        def run(self):
            result = unittest.TestResult()
            running.append(self)
            try:
                test.run(result)
            finally:
                running.pop()
            assert result.testsRun == 1
            for _, text in result.failures + result.errors:
                self.fail(text)
        return run
    for test in tests_of(make_suite(factory)):
        short = test.id().rsplit('.', 1)[-1] if 'txt' not in test.id() else test.id()
        short = ''.join(c if c.isalnum() else '_' for c in short)
        short = short if short.startswith('test') else 'test_' + short
        assert short not in members, short
        members[short] = method(test)
    return type(name, (base, unittest.TestCase), members)


def groups():
    """The classes, by name, without their clusters."""
    def group(name, base, *mixins, **members):
        found[name] = type(name, (base, *mixins), members)
    found = {}
    # Some tests expect that a pack collects garbage.
    collecting = {'pack_gc': True}
    race_tests = () if issubclass(BasicStorage.BasicStorage, racetest.RaceTests) \
        else (racetest.RaceTests,)
    group('Basic', WithStorage, BasicStorage.BasicStorage, *race_tests)
    group('Conflict', WithStorage, ConflictResolution.ConflictResolvingStorage)
    group('History', WithStorage, HistoryStorage.HistoryStorage)
    group('Iterator', WithStorage, IteratorStorage.IteratorStorage,
          IteratorStorage.ExtendedIteratorStorage, use_extension_bytes=True)
    group('MT', WithStorage, MTStorage.MTStorage)
    group('Packable', WithStorage, PackableStorage.PackableStorageWithOptionalGC,
          storage_options=collecting)
    group('PackableUndo', WithStorage, PackableStorage.PackableUndoStorage,
          storage_options=collecting)
    group('Persistent', WithStorage, PersistentStorage.PersistentStorage)
    group('ReadOnly', WithStorage, ReadOnlyStorage.ReadOnlyStorage)
    group('Recovery', WithDestination, RecoveryStorage.RecoveryStorage,
          storage_options=collecting)
    group('Revision', WithStorage, RevisionStorage.RevisionStorage)
    group('Synchronized', WithStorage, Synchronization.SynchronizedStorage)
    group('Undo', WithStorage, TransactionalUndoStorage.TransactionalUndoStorage,
          ConflictResolution.ConflictResolvingTransUndoStorage)

    group('Prefetch', Replaced, test_prefetch.PrefetchTests)
    group('DB', Replaced, testDB.DBTests)
    group('ZODB', Replaced, testZODB.ZODBTests)
    found['Connection'] = suite_class('Connection', Replaced, lambda _: testConnection.test_suite())
    found['Savepoint'] = suite_class(
        'Savepoint', Replaced, lambda _: testConnectionSavepoint.test_suite())

    found['ExternalGC'] = suite_class(
        'ExternalGC', WithBlobs, lambda factory: unittest.TestSuite(
            [PackableStorage.IExternalGC_suite(factory)]))
    found['Blob'] = suite_class('Blob', WithBlobs, lambda factory: testblob.storage_reusable_suite(
        'Neo', factory, test_blob_storage_recovery=True, test_packing=True),
        storage_options=collecting)
    return found


def test_names(cls):
    return [name for name in dir(cls) if name.startswith(PREFIXES) and callable(getattr(cls, name))]


def certify(storages, partitions):
    """Names of a module: the classes, and the fixture that they need."""
    pool = Pool(storages, partitions)

    @pytest.fixture(scope='module', autouse=True)
    def clusters():
        with tempfile.TemporaryDirectory(prefix='neo-certification-') as directory:
            pool.open(directory)
            try:
                yield
            finally:
                pool.close()
    names = {'clusters': clusters}
    for name, cls in groups().items():
        members = {'pool': pool, '__test__': True}
        for test in test_names(cls):
            function = getattr(cls, test)
            reason = EXPECTED_FAILURES.get((name, test))
            if reason or not test.startswith('test'):
                # A copy, to be marked or renamed.
                @functools.wraps(function)
                def copy(self, function=function):
                    return function(self)
                if reason:
                    copy = pytest.mark.xfail(strict=True, reason=reason)(copy)
                members['test' + test.removeprefix('check').removeprefix('test')] = copy
        names['Test' + name] = type('Test' + name, (cls,), members)
    return names


def table():
    """Lines of the table in docs/compatibility.md."""
    rows = []
    for name, cls in groups().items():
        tests = test_names(cls)
        failures = {test: reason for (group, test), reason in EXPECTED_FAILURES.items()
                    if group == name}
        assert failures.keys() <= set(tests)
        reasons = '; '.join(f'`{test}`: {reason}' for test, reason in failures.items())
        rows.append((name, WHAT[name], len(tests) - len(failures), reasons or 'none'))
    yield '| Test class | Of `ZODB.tests` | Passed | Expected failures |'
    yield '|---|---|---|---|'
    for name, what, passed, reasons in rows:
        yield f'| {name} | {what} | {passed} | {reasons} |'
    yield f'| | | {sum(row[2] for row in rows)} | {len(EXPECTED_FAILURES) or "none"} |'


if __name__ == '__main__':
    print('\n'.join(table()))
