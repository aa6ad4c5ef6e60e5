# SPDX-License-Identifier: GPL-2.0-or-later
"""What a ZODB application does with a storage, on a cluster of 3 storages: objects and concurrency.

ZODB's own tests of storages go further; this is the everyday part, each feature
used the way that applications use it, mostly through `ZODB.DB`.
"""

import random
import threading
import time

import pytest
import transaction
from BTrees.OOBTree import OOBTree
from ZODB.POSException import ConflictError, ReadConflictError
from ZODB.utils import load_current, z64

from cluster import PATIENCE
from objects import Item, Stubborn, Sum


# Objects


def test_objects(open_root, shared):
    """Objects of many sizes come back as they were stored, in another client."""
    manager, root = open_root()
    rng = random.Random(0)
    sizes = [0, 1, 255, 256, 4096, 65535, 65536, 10**6, 5 * 10**6]
    content = {(size, kind): data for size in sizes for kind, data in (
        ('zeros', bytes(size)), ('random', rng.randbytes(size)))}
    for key, data in content.items():
        root[key] = Item(data=data)
    manager.commit()
    other = shared.db()
    manager, root = open_root(other)
    assert {key: item.data for key, item in root.items()} == content
    manager.abort()
    other.close()


def test_object_of_20_mb(open_root, shared):
    """Packets of more than 16 MiB."""
    manager, root = open_root()
    data = random.Random(1).randbytes(20 << 20)
    root['big'] = Item(data=data)
    manager.commit()
    other = shared.db()
    manager, root = open_root(other)
    assert root['big'].data == data
    manager.abort()
    other.close()


@pytest.mark.parametrize('compress', [True, False, (0, 9)])     # zlib, level 9
def test_compression(shared, compress):
    """Data written with any setting is read with any other."""
    db = shared.db(compress=compress)
    with db.transaction() as conn:
        item = conn.root()['compress', compress] = Item(data=b'x' * 10000)
    oid = item._p_oid
    db.close()
    plain = shared.storage(compress=not compress)
    assert b'x' * 10000 in load_current(plain, oid)[0]


def test_btree(open_root, shared):
    """A BTree that grows, splits and shrinks over many transactions."""
    manager, root = open_root()
    tree = root['tree'] = OOBTree()
    manager.commit()
    model = {}
    rng = random.Random(2)
    for _ in range(40):
        for _ in range(50):
            key = rng.randrange(1000)
            if rng.random() < .7:
                tree[key] = model[key] = rng.random()
            elif key in model:
                del tree[key], model[key]
        manager.commit()
    other = shared.db()
    manager, root = open_root(other)
    assert dict(root['tree']) == model
    root['tree']._check()
    manager.abort()
    other.close()


def test_transaction_of_2000_objects(open_root, shared):
    manager, root = open_root()
    root['items'] = [Item(number=i) for i in range(2000)]
    manager.commit()
    other = shared.db()
    manager, root = open_root(other)
    assert [x.number for x in root['items']] == list(range(2000))
    manager.abort()
    other.close()


def test_savepoint_and_abort(open_root):
    manager, root = open_root()
    root['a'] = Item(value=1)
    manager.commit()
    root['a'].value = 2
    savepoint = manager.savepoint()
    root['a'].value = 3
    root['b'] = Item(value=1)
    manager.savepoint(optimistic=True)
    savepoint.rollback()
    assert root['a'].value == 2 and 'b' not in root
    manager.abort()
    assert root['a'].value == 1
    manager, root = open_root()
    assert root['a'].value == 1 and 'b' not in root


def test_new_oids_are_unique(shared):
    """Two clients are never given the same oid."""
    storages = [shared.storage() for _ in range(2)]
    oids = [storages[i % 2].new_oid() for i in range(1000)]
    assert len(set(oids)) == len(oids)
    assert z64 not in oids


# Concurrency


def test_threads(db, open_root, request):
    """Many threads on one storage, each with its connection: all they write is there."""
    manager, root = open_root()
    root['tree'] = OOBTree()
    for i in range(16):
        root[i] = Item(numbers=[])
    manager.commit()
    errors = []

    def work(i):
        manager = transaction.TransactionManager()
        conn = db.open(manager)
        try:
            mine = conn.root()[request.node.name][i]
            for number in range(20):
                with manager:
                    mine.numbers = mine.numbers + [number]
                # Reads of what others write, too.
                with manager:
                    for j in range(16):
                        seen = conn.root()[request.node.name][j].numbers
                        assert seen == list(range(len(seen)))
        except BaseException as e:
            errors.append(e)
        finally:
            manager.abort()
            conn.close()
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
        assert not thread.is_alive(), 'hang'
    assert not errors, errors
    manager.begin()
    assert [root[i].numbers for i in range(16)] == [list(range(20))] * 16


def test_conflict(open_root, shared):
    """The second of two concurrent changes is refused, in the same client or another."""
    other_client = shared.db()
    for other in None, other_client:
        manager1, root1 = open_root()
        root1['a'] = Item(value=1)
        manager1.commit()
        manager2, root2 = open_root(other)
        root1['a'].value = 2
        root2['a'].value = 3
        manager1.commit()
        with pytest.raises(ConflictError) as info:
            manager2.commit()
        assert info.value.oid == root1['a']._p_oid
        assert not isinstance(info.value, ReadConflictError)
        manager2.abort()
        assert root2['a'].value == 2
        root2['a'].value = 4
        manager2.commit()
        manager1.begin()
        assert root1['a'].value == 4
        manager2.abort()
        root2._p_jar.close()
        del root2


def test_conflict_resolution(open_root, shared):
    """Resolved by the class, if it knows how; seen by everybody."""
    other_client = shared.db()
    manager1, root1 = open_root()
    root1['sum'] = Sum()
    root1['stubborn'] = Stubborn()
    manager1.commit()
    for other in None, other_client:
        manager2, root2 = open_root(other)
        before = root2['sum'].value
        root1['sum'].value += 1
        root2['sum'].value += 10
        manager1.commit()
        manager2.commit()
        manager2.begin()
        assert root2['sum'].value == before + 11
        manager1.begin()
        assert root1['sum'].value == before + 11
        root1['stubborn'].value += 1
        root2['stubborn'].value += 10
        manager1.commit()
        with pytest.raises(ConflictError):
            manager2.commit()
        manager2.abort()
        manager2.begin()


def test_three_way_resolution(open_root):
    """Several conflicts on the same object, each resolved against the newest."""
    manager, root = open_root()
    root['sum'] = Sum()
    manager.commit()
    others = [open_root() for _ in range(5)]
    for i, (_, other) in enumerate(others):
        other['sum'].value += 10 ** i
    for other_manager, _ in others:
        other_manager.commit()
    manager.begin()
    assert root['sum'].value == 11111


def test_read_current(open_root):
    """An object that was only read, but must not have changed."""
    manager1, root1 = open_root()
    root1['read'] = Item(value=0)
    root1['written'] = Item(value=0)
    manager1.commit()
    manager2, root2 = open_root()
    assert root2['read'].value == 0
    root2['written'].value = 1
    root2._p_jar.readCurrent(root2['read'])
    root1['read'].value = 1
    manager1.commit()
    with pytest.raises(ReadConflictError):
        manager2.commit()
    manager2.abort()
    assert root2['read'].value == 1
    assert root2['written'].value == 0
    root2['written'].value = 2
    root2._p_jar.readCurrent(root2['read'])
    manager2.commit()


def test_invalidations(open_root, shared):
    """A change is seen by the other client at its next transaction, not before."""
    other = shared.db()
    manager1, root1 = open_root()
    root1['a'] = Item(value=0)
    manager1.commit()
    manager2, root2 = open_root(other)
    for value in range(1, 20):
        assert root2['a'].value == value - 1
        root1['a'].value = value
        manager1.commit()
        root2._p_jar.cacheMinimize()
        assert root2['a'].value == value - 1     # still its snapshot
        manager2.begin()
        assert root2['a'].value == value


def test_snapshot_of_two_objects(open_root, shared):
    """A reader never sees half of a commit, while a writer goes on."""
    manager1, root1 = open_root()
    root1['a'] = Item(value=0)
    root1['b'] = Item(value=0)
    manager1.commit()
    other = shared.db(cache_size=1000)
    manager2, root2 = open_root(other)
    stop = threading.Event()
    errors = []

    def write():
        try:
            while not stop.is_set():
                root1['a'].value += 1
                root1['b'].value += 1
                manager1.commit()
        except BaseException as e:
            errors.append(e)
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    seen = set()
    deadline = time.monotonic() + PATIENCE
    while len(seen) < 50 and time.monotonic() < deadline and not errors:
        manager2.begin()
        root2._p_jar.cacheMinimize()
        assert root2['a'].value == root2['b'].value
        seen.add(root2['a'].value)
    stop.set()
    writer.join(PATIENCE)
    assert not errors and not writer.is_alive()
    assert len(seen) >= 50
