# SPDX-License-Identifier: GPL-2.0-or-later
"""The same as `test_zodb`: undo, history, two-phase commit by hand, pack."""

import sqlite3
import time

import pytest
import transaction
from ZODB.POSException import POSKeyError, ReadOnlyError, StorageTransactionError, UndoError
from ZODB.utils import load_current, p64, u64, z64

from cluster import wait_for
from objects import Item, Sum

upstream_fails = pytest.mark.upstream_fails


# Undo, history, iteration


def undo_id(db, description):
    return next(x['id'] for x in db.undoLog(0, 50) if x['description'] == description)


def test_undo(db, open_root):
    """A change, a creation and an undo are undone."""
    manager, root = open_root()
    root['a'] = Item(value=1)
    manager.commit()
    for text, change in (('change', lambda: setattr(root['a'], 'value', 2)),
                         ('create', lambda: root.__setitem__('b', Item(value=1)))):
        change()
        manager.get().note(text)
        manager.get().setUser('someone')
        manager.commit()
    entry = next(x for x in db.undoLog(0, 10) if x['description'] in ('create', b'create'))
    assert entry['user_name'] in ('/ someone', b'/ someone', 'someone', b'someone')
    assert abs(entry['time'] - time.time()) < 60
    created = root['b']._p_oid
    for text, value, present in (('create', 2, False), ('change', 1, False)):
        db.undo(undo_id(db, text), manager.get())
        manager.get().note(f'undo {text}')
        manager.commit()
        assert root['a'].value == value
        assert ('b' in root) == present
    with pytest.raises(POSKeyError):
        load_current(db.storage, created)
    for text, value, present in (('undo change', 2, False), ('undo create', 2, True)):
        db.undo(undo_id(db, text), manager.get())
        manager.commit()
        assert root['a'].value == value
        assert ('b' in root) == present
    assert root['b'].value == 1


def test_undo_conflict(db, open_root):
    """What was changed since cannot be undone, unless the class resolves it."""
    manager, root = open_root()
    root['a'] = Item(value=0)
    root['sum'] = Sum()
    manager.commit()
    for step in 1, 2:
        for name, amount in ('a', 1), ('sum', 10 ** step):
            root[name].value += amount
            manager.get().note(f'{name} {step}')
            manager.commit()
    with pytest.raises(UndoError):
        db.undo(undo_id(db, 'a 1'), manager.get())
        manager.commit()
    manager.abort()
    assert root['a'].value == 2
    db.undo(undo_id(db, 'sum 1'), manager.get())
    manager.commit()
    assert root['sum'].value == 100


def test_history(db, open_root):
    manager, root = open_root()
    item = root['a'] = Item(value=0)
    manager.commit()
    tids = [item._p_serial]
    for value in range(1, 5):
        item.value = value
        manager.get().note(f'value {value}')
        manager.commit()
        tids.insert(0, item._p_serial)
    history = db.storage.history(item._p_oid, 10)
    assert [x['tid'] for x in history] == tids
    assert [x['description'] for x in history[:-1]] in (
        [f'value {x}'.encode() for x in (4, 3, 2, 1)], [f'value {x}' for x in (4, 3, 2, 1)])
    assert all(x['size'] > 10 for x in history)
    assert len(db.storage.history(item._p_oid)) == 1
    assert [x['tid'] for x in db.history(item._p_oid, 3)] == tids[:3]
    with pytest.raises(KeyError):
        db.storage.history(p64(1 << 40))


def test_load(db, open_root):
    """load, loadBefore, loadSerial and getTid over the revisions of an object."""
    manager, root = open_root()
    item = root['a'] = Item(value=0)
    manager.commit()
    oid = item._p_oid
    tids = [item._p_serial]
    for value in range(1, 4):
        item.value = value
        manager.commit()
        tids.append(item._p_serial)
    storage = db.storage
    data = [storage.loadSerial(oid, tid) for tid in tids]
    assert len(set(data)) == 4
    assert load_current(storage, oid) == (data[-1], tids[-1])
    for i, tid in enumerate(tids):
        after = tids[i + 1] if i < 3 else None
        assert storage.loadBefore(oid, p64(u64(tid) + 1)) == (data[i], tid, after)
        before = (data[i - 1], tids[i - 1], tid) if i else None
        assert storage.loadBefore(oid, tid) == before
    assert storage.getTid(oid) == tids[-1]
    nowhere = p64(1 << 40)
    with pytest.raises(POSKeyError):
        storage.loadBefore(nowhere, p64(u64(tids[-1]) + 1))
    with pytest.raises(POSKeyError):
        load_current(storage, nowhere)
    with pytest.raises(KeyError):
        storage.getTid(nowhere)


@upstream_fails('an assertion fails in the cache of the client')
def test_load_serial_that_never_was(db, open_root):
    manager, root = open_root()
    item = root['a'] = Item(value=0)
    manager.commit()
    assert db.storage.loadSerial(item._p_oid, item._p_serial)
    with pytest.raises(POSKeyError):
        db.storage.loadSerial(item._p_oid, p64(u64(item._p_serial) + 1))


def test_old_snapshot(db, open_root):
    """A connection opened at a time of the past."""
    manager, root = open_root()
    root['a'] = Item(value=0)
    manager.commit()
    tids = []
    for value in range(1, 4):
        root['a'].value = value
        manager.commit()
        tids.append(root['a']._p_serial)
    for value, tid in enumerate(tids, 1):
        old = db.open(transaction.TransactionManager(), at=tid)
        assert old.get(root['a']._p_oid).value == value
        old.close()


def test_iterator(db, open_root):
    """All transactions, in order, with their metadata and objects."""
    manager, root = open_root()
    start = db.storage.lastTransaction()
    expected = []
    for i in range(30):
        root[i] = Item(value=i)
        txn = manager.get()
        txn.note(f'number {i} é')
        txn.setUser('ü')
        txn.setExtendedInfo('key', i)
        manager.commit()
        expected.append((root[i]._p_serial, {root[i]._p_oid, root._p_oid}))
    found = list(db.storage.iterator(p64(u64(start) + 1)))
    assert [x.tid for x in found] == [x[0] for x in expected]
    for i, (txn, (tid, oids)) in enumerate(zip(found, expected)):
        assert txn.description == f'number {i} é'.encode()
        assert 'ü'.encode() in txn.user
        assert txn.extension == {'key': i}
        assert txn.status == ' '
        records = list(txn)
        assert {x.oid for x in records} == oids and len(records) == 2
        for record in records:
            assert record.tid == tid
            assert record.data == db.storage.loadSerial(record.oid, tid)
    middle = db.storage.iterator(expected[10][0], expected[19][0])
    assert [x.tid for x in middle] == [x[0] for x in expected[10:20]]
    assert list(db.storage.iterator(p64(u64(expected[-1][0]) + 1))) == []


def test_delete_object(db, open_root):
    """`deleteObject`: gone for loads, kept in the history."""
    manager, root = open_root()
    item = root['a'] = Item(value=1)
    manager.commit()
    oid, serial = item._p_oid, item._p_serial
    del root['a'], item
    manager.commit()
    txn = manager.get()
    storage = db.storage
    storage.tpc_begin(txn)
    storage.deleteObject(oid, serial, txn)
    storage.tpc_vote(txn)
    tid = storage.tpc_finish(txn)
    with pytest.raises(POSKeyError):
        load_current(storage, oid)
    assert storage.loadBefore(oid, tid)[1:] == (serial, tid)
    last = list(storage.iterator(tid))
    assert [(x.oid, x.data) for x in last[0]] == [(oid, None)]


# Two-phase commit, by hand


def test_tpc(db, open_root):
    """Begin, store, vote, and then abort or finish; the callback of `tpc_finish`."""
    storage = db.storage
    manager, root = open_root()
    oid = storage.new_oid()
    serial = z64
    for finish in False, True, True:
        txn = manager.begin()
        with pytest.raises(StorageTransactionError):
            storage.store(oid, serial, b'data', '', txn)
        storage.tpc_begin(txn)
        storage.store(oid, serial, b'data', '', txn)
        storage.tpc_vote(txn)
        before = storage.lastTransaction()
        if finish:
            called = []
            tid = storage.tpc_finish(txn, lambda tid: called.append(
                (tid, storage.lastTransaction())))
            assert called == [(tid, before)]
            assert storage.lastTransaction() == tid > before
            serial = tid
        else:
            storage.tpc_abort(txn)
            storage.tpc_abort(txn)      # nothing to do, no error
            with pytest.raises(POSKeyError):
                load_current(storage, oid)
            assert storage.lastTransaction() == before
    assert load_current(storage, oid) == (b'data', serial)


def test_abort_frees_locks(shared):
    """What an aborted transaction stored can be stored at once by another client."""
    storages = [shared.storage() for _ in range(2)]
    oid = storages[0].new_oid()
    for i in range(10):
        txn = transaction.Transaction()
        storage = storages[i % 2]
        storage.tpc_begin(txn)
        storage.store(oid, z64, b'data', '', txn)
        if i % 3:
            storage.tpc_vote(txn)
        storage.tpc_abort(txn)


def test_lost_client(shared):
    """A client that dies between vote and finish does not block the others."""
    import subprocess
    import sys
    holder = subprocess.Popen([sys.executable, '-c', '''if 1:
        import sys, transaction
        from neo.client.Storage import Storage
        from ZODB.utils import z64
        storage = Storage(master_nodes=sys.argv[1], name=sys.argv[2])
        oid = storage.new_oid()
        txn = transaction.Transaction()
        storage.tpc_begin(txn)
        storage.store(oid, z64, b'lost', '', txn)
        storage.tpc_vote(txn)
        print(oid.hex(), flush=True)
        sys.stdin.read()
        ''', shared.master_nodes, shared.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        oid = bytes.fromhex(holder.stdout.readline().decode())
        assert oid
    finally:
        holder.kill()
        holder.wait()
    storage = shared.storage()
    txn = transaction.Transaction()
    storage.tpc_begin(txn)
    storage.store(oid, z64, b'found', '', txn)
    storage.tpc_vote(txn)
    tid = storage.tpc_finish(txn)
    assert load_current(storage, oid) == (b'found', tid)


def test_given_tid(shared):
    """`tpc_begin` with a tid, as tools that copy a database do."""
    storage = shared.storage()
    tid = p64(u64(storage.lastTransaction()) + 1000)
    oid = storage.new_oid()
    txn = transaction.Transaction()
    storage.tpc_begin(txn, tid, ' ')
    storage.store(oid, z64, b'data', '', txn)
    storage.tpc_vote(txn)
    assert storage.tpc_finish(txn) == tid
    assert load_current(storage, oid) == (b'data', tid)
    assert storage.lastTransaction() == tid
    # Not after the last one: refused, nothing happens.
    txn = transaction.Transaction()
    with pytest.raises(Exception):
        storage.tpc_begin(txn, tid, ' ')
    storage.tpc_abort(txn)
    assert storage.lastTransaction() == tid


def test_empty_transaction(shared):
    """A transaction without object is stored too."""
    storage = shared.storage()
    txn = transaction.Transaction()
    txn.note('empty')
    storage.tpc_begin(txn)
    storage.tpc_vote(txn)
    tid = storage.tpc_finish(txn)
    last = list(storage.iterator(tid))
    assert [(x.tid, x.description, list(x)) for x in last] == [(tid, b'empty', [])]


def test_read_only(shared, open_root):
    manager, root = open_root()
    item = root['a'] = Item(value=1)
    manager.commit()
    storage = shared.storage(read_only=True)
    assert storage.isReadOnly()
    assert load_current(storage, item._p_oid)[1] == item._p_serial
    txn = transaction.Transaction()
    for call in (lambda: storage.tpc_begin(txn), storage.new_oid,
                 lambda: storage.store(item._p_oid, item._p_serial, b'', '', txn)):
        with pytest.raises(ReadOnlyError):
            call()


def test_sync(shared):
    """`sync`: what another client has committed is known on return."""
    storages = [shared.storage() for _ in range(2)]
    for i in range(20):
        writer, reader = storages[i % 2], storages[1 - i % 2]
        txn = transaction.Transaction()
        writer.tpc_begin(txn)
        writer.store(writer.new_oid(), z64, b'data', '', txn)
        writer.tpc_vote(txn)
        tid = writer.tpc_finish(txn)
        reader.sync()
        assert reader.lastTransaction() == tid


# Pack


def test_pack(cluster3):
    """Pack removes old revisions, keeps what is current, and what came after its time."""
    db = cluster3.db()
    manager = transaction.TransactionManager()
    conn = db.open(manager)
    items = conn.root()['items'] = [Item(value=0) for _ in range(24)]
    manager.commit()
    serials = []
    for value in range(1, 4):
        for item in items:
            item.value = value
        manager.commit()
        serials.append(items[0]._p_serial)
    # The time of the second of the three, and a bit: one revision more is kept.
    from ZODB.TimeStamp import TimeStamp
    db.storage.pack(TimeStamp(serials[1]).timeTime() + 1e-5, None)
    expected = list(reversed(serials[1:]))
    for item in items:
        wait_for(lambda: [x['tid'] for x in db.storage.history(item._p_oid, 10)] == expected,
                 'the storages to have packed')
    conn.cacheMinimize()
    assert [x.value for x in items] == [3] * 24
    fresh = cluster3.storage()      # nothing in its cache
    with pytest.raises(POSKeyError):
        fresh.loadSerial(items[0]._p_oid, serials[0])
    assert fresh.loadSerial(items[0]._p_oid, serials[1])
    # Again, up to now; then the cluster goes on, also after a restart.
    db.pack()
    for item in items:
        wait_for(lambda: len(db.storage.history(item._p_oid, 10)) == 1, 'the second pack')
    items[0].value = 4
    manager.commit()
    manager.abort()
    conn.close()
    cluster3.stop()
    cluster3.spawn()
    cluster3.wait_running()
    other = cluster3.db()
    with other.transaction() as conn:
        assert [x.value for x in conn.root()['items']] == [4] + [3] * 23
        oids = [x._p_oid for x in conn.root()['items']]
    assert [len(other.storage.history(x, 10)) for x in oids] == [2] + [1] * 23


@upstream_fails('undoes the creation of the object')
def test_undo_after_pack(cluster):
    """A transaction that was packed away cannot be undone."""
    db = cluster.db()
    manager = transaction.TransactionManager()
    conn = db.open(manager)
    item = conn.root()['a'] = Item(value=0)
    manager.commit()
    for value in 1, 2:
        item.value = value
        manager.get().note(f'value {value}')
        manager.commit()
    packed = undo_id(db, 'value 2')
    db.pack()
    wait_for(lambda: len(db.storage.history(item._p_oid, 10)) == 1, 'the pack')
    with pytest.raises(UndoError):
        db.undo(packed, manager.get())
        manager.commit()
    manager.abort()
    assert item.value == 2


# The database files


def test_other_process_reads_database(cluster):
    """SQLite files can be read while the node works, and hold what was committed."""
    if cluster.adapter != 'SQLite':
        pytest.skip('about files')
    db = cluster.db()
    manager = transaction.TransactionManager()
    conn = db.open(manager)
    item = conn.root()['a'] = Item(value=0)
    manager.commit()
    uri = f'file:{cluster.database(0)}?mode=ro'
    reader = sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None)
    assert reader.execute("SELECT value FROM config WHERE name='version'").fetchone()[0] in (
        '4', b'4', 4)
    for value in range(1, 10):
        item.value = value
        manager.commit()
        oid = u64(item._p_oid)

        def revisions():
            return reader.execute('SELECT count(*) FROM obj WHERE oid=?', (oid,)).fetchone()[0]
        # A transaction may be unlocked a moment after the answer.
        wait_for(lambda: revisions() == value + 1, 'the revision to be visible')
    # A reader that takes its time sees its snapshot.
    reader.execute('BEGIN')
    before = revisions()
    for _ in range(3):
        assert revisions() == before
    reader.execute('COMMIT')
    reader.close()
    conn.close()
