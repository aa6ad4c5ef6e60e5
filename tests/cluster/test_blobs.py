# SPDX-License-Identifier: GPL-2.0-or-later
"""Blobs in a directory that clients share, with ZODB's wrapper around the storage.

ZODB's own tests of blobs are in `certification`; here is what only a cluster can do: several clients,
transactions at the same time, clients that die.
"""

import os
import subprocess
import sys
import time

import pytest
import transaction
import ZODB
import ZODB.blob
import ZODB.config
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError
from ZODB.utils import z64

from cluster import ROOT


@pytest.fixture
def directory(tmp_path):
    return tmp_path / 'blobs'


@pytest.fixture
def opened(cluster3, directory):
    """A function that opens a database on a client of its own, as Plone's zope.conf does."""
    databases = []

    def open():
        databases.append(ZODB.config.databaseFromString(f'''
            %import neo.client
            <zodb>
                <blobstorage>
                    blob-dir {directory}
                    <NEOStorage>
                        master_nodes {cluster3.master_nodes}
                        name test
                    </NEOStorage>
                </blobstorage>
            </zodb>'''))
        return databases[-1]
    yield open
    for db in databases:
        db.close()


def files(directory):
    """Files of blobs, and those that wait for a transaction."""
    found = [os.path.join(path, name) for path, _, names in os.walk(directory) for name in names]
    return ([x for x in found if x.endswith('.blob')], [x for x in found if x.endswith('.neo')])


def write(db, **blobs):
    with db.transaction() as conn:
        for name, data in blobs.items():
            if not hasattr(conn.root, name):
                setattr(conn.root, name, ZODB.blob.Blob())
            with getattr(conn.root, name).open('w') as f:
                f.write(data)


def read(db, *names):
    with db.transaction() as conn:
        result = []
        for name in names:
            with getattr(conn.root, name).open() as f:
                result.append(f.read())
        return result


def test_two_clients(opened, directory):
    """What one commits is seen by the other, and by itself after both were opened again."""
    one, two = opened(), opened()
    big = os.urandom(3 << 20)
    for i in range(10):
        write(one, a=b'a%d' % i, b=b'b%d' % i)
        assert read(two, 'a', 'b') == [b'a%d' % i, b'b%d' % i]
        write(two, a=big)
        assert read(one, 'a', 'b') == [big, b'b%d' % i]
    assert files(directory)[1] == []
    assert len(files(directory)[0]) == 30
    assert read(opened(), 'a', 'b') == [big, b'b9']


def test_invalidations_reach_the_database(opened):
    """ZODB's wrapper keeps the database from hearing of other clients."""
    one, two = opened(), opened()
    with one.transaction() as conn:
        conn.root.value = 0
    manager = transaction.TransactionManager()
    conn = two.open(manager)
    for value in range(1, 5):
        manager.begin()
        assert conn.root.value == value - 1
        with one.transaction() as other:
            other.root.value = value
    manager.abort()
    conn.close()


def test_undo_and_pack(opened, directory):
    db = opened()
    for i in range(3):
        write(db, a=b'%d' % i)
    time.sleep(.01)
    packed = time.time()
    time.sleep(.01)
    for i in range(3, 5):
        write(db, a=b'%d' % i)
    for expected in b'3', b'4', b'3':
        db.undo(db.undoLog(0, 1)[0]['id'])
        transaction.commit()
        assert read(db, 'a') == read(opened(), 'a') == [expected]
    assert len(files(directory)[0]) == 8
    db.pack(packed)
    assert len(files(directory)[0]) == 6
    assert read(db, 'a') == [b'3']
    db.pack()
    assert len(files(directory)[0]) == 1
    assert read(opened(), 'a') == [b'3']


def test_restart(opened, cluster3):
    write(opened(), a=b'before')
    cluster3.stop()
    cluster3.spawn()
    cluster3.wait_running()
    db = opened()
    assert read(db, 'a') == [b'before']
    write(db, a=b'after')
    assert read(opened(), 'a') == [b'after']


def begin_blob(storage, directory, data):
    """A transaction that is voted, with one new blob: (transaction, oid)."""
    txn = TransactionMetaData()
    source = os.path.join(storage.temporaryDirectory(), 'source')
    with open(source, 'wb') as f:
        f.write(data)
    oid = storage.new_oid()
    storage.tpc_begin(txn)
    storage.storeBlob(oid, z64, b'record', source, '', txn)
    storage.tpc_vote(txn)
    return txn, oid


def test_transactions_at_the_same_time(opened, directory):
    """One is aborted, the other one keeps its file."""
    storage = opened().storage
    first, oid = begin_blob(storage, directory, b'first')
    second, aborted = begin_blob(storage, directory, b'second')
    assert [len(x) for x in files(directory)] == [0, 2]
    storage.tpc_abort(second)
    assert [len(x) for x in files(directory)] == [0, 1]
    tid = storage.tpc_finish(first)
    assert [len(x) for x in files(directory)] == [1, 0]
    with storage.openCommittedBlobFile(oid, tid) as f:
        assert f.read() == b'first'
    with pytest.raises(POSKeyError):
        storage.loadBlob(aborted, tid)


def test_uncommitted_blob_is_nobodys(opened, directory):
    """A pack of another client leaves it alone."""
    storage, other = opened().storage, opened()
    txn, oid = begin_blob(storage, directory, b'data')
    other.pack()
    with pytest.raises(POSKeyError):
        other.storage.loadBlob(oid, other.storage.lastTransaction())
    tid = storage.tpc_finish(txn)
    with other.storage.openCommittedBlobFile(oid, tid) as f:
        assert f.read() == b'data'


def test_abandoned_file(opened, directory):
    """What a client left that died before it committed is removed after a week."""
    db = opened()
    txn, oid = begin_blob(db.storage, directory, b'data')
    name, = files(directory)[1]
    db.storage._neo.tpc_abort(txn)      # as if it had died: the file is left
    db.pack()
    assert files(directory)[1] == [name]
    old = time.time() - 8 * 86400
    os.utime(name, (old, old))
    db.pack()
    assert files(directory)[1] == []


@pytest.mark.parametrize('pack', [False, True])
def test_death_after_commit(opened, cluster3, directory, pack):
    """A client dies once its transaction is committed, before the file has its name."""
    opened()
    result = subprocess.run([sys.executable, '-c', '''if 1:
        import os, sys
        import ZODB.blob
        from neo.client.Storage import Storage
        sys.path.insert(0, sys.argv[4])
        from test_blobs import begin_blob
        storage = ZODB.blob.BlobStorage(
            sys.argv[3], Storage(master_nodes=sys.argv[1], name=sys.argv[2]))
        txn, oid = begin_blob(storage, sys.argv[3], b'precious')
        def die(*_):
            sys.stdout.flush()
            os._exit(9)
        storage._move = die
        print(oid.hex())
        storage.tpc_finish(txn)
        ''', cluster3.master_nodes, cluster3.name, str(directory),
        str(ROOT / 'tests' / 'cluster')], capture_output=True, text=True)
    assert result.returncode == 9, result.stderr
    oid = bytes.fromhex(result.stdout.strip())
    assert [len(x) for x in files(directory)] == [0, 1]
    db = opened()
    if pack:
        db.pack()
    tid = db.storage.getTid(oid)
    with db.storage.openCommittedBlobFile(oid, tid) as f:
        assert f.read() == b'precious'
    assert [len(x) for x in files(directory)] == [1, 0]


def test_other_wrappers_are_zodbs(tmp_path):
    """Only NEO storages get another class."""
    from ZODB.MappingStorage import MappingStorage
    import neo.client.Storage  # noqa: F401
    storage = ZODB.blob.BlobStorage(str(tmp_path), MappingStorage())
    assert type(storage) is ZODB.blob.BlobStorage
