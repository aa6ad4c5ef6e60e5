# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces of ZODB that the storage has, and what real programs do with them.

ZODB's own tests are in `certification`; here is what they do not look at.
"""

import ast
import importlib
import itertools
import subprocess
import sys
import threading
import time
import types
from inspect import signature
from pathlib import Path

import neo.client
import pytest
import ZODB
import ZODB.config
import ZODB.interfaces
from persistent.mapping import PersistentMapping
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError, POSKeyError, ReadConflictError, UndoError
from ZODB.TimeStamp import TimeStamp
from ZODB.serialize import referencesf
from ZODB.utils import load_current, maxtid, p64, u64, z64
from zope.interface.verify import verifyObject

from cluster import wait_for
from objects import Item


@pytest.fixture
def storage(module_cluster):
    storage = module_cluster.storage()
    yield storage
    storage.close()


def commit(storage, *stores, tid=None, status=' ', **metadata):
    """One transaction: (oid, serial, data) for each object."""
    txn = TransactionMetaData(**metadata)
    storage.tpc_begin(txn, *([tid, status] if tid else []))
    for oid, serial, data in stores:
        if data is None:
            storage.deleteObject(oid, serial, txn)
        else:
            storage.store(oid, serial, data, '', txn)
    storage.tpc_vote(txn)
    return storage.tpc_finish(txn)


def revisions(storage, *values):
    """A new object with these revisions: its oid and the tids."""
    oid = storage.new_oid()
    tids = [z64]
    for value in values:
        tids.append(commit(storage, (oid, tids[-1], value)))
    return oid, tids[1:]


# Declarations


@pytest.mark.parametrize('name', [
    'IStorage', 'IStorageIteration', 'IStorageUndoable', 'IExternalGC', 'ReadVerifyingStorage',
    'IStorageRestoreable', 'IStorageCurrentRecordIteration', 'IPrefetchStorage',
    'IMultiCommitStorage'])
def test_interface(storage, name):
    verifyObject(getattr(ZODB.interfaces, name), storage)


@pytest.mark.parametrize('name', ['IMVCCStorage', 'IMVCCPrefetchStorage', 'IBlobStorage'])
def test_not_declared(storage, name):
    """ZODB must see to snapshots; blobs need its wrapper."""
    assert not getattr(ZODB.interfaces, name).providedBy(storage)


def test_constructor():
    """The keywords and defaults of upstream."""
    from neo.client.Storage import Storage
    parameters = signature(Storage).parameters
    defaults = {name: x.default for name, x in parameters.items() if x.default is not x.empty}
    assert list(parameters)[:2] == ['master_nodes', 'name']
    assert defaults == dict(
        read_only=False, compress=None, logfile=None, cache_size=20 << 20,
        dynamic_master_list=None, ca=None, cert=None, key=None, ignore_wrong_checksum=False,
        # Only here:
        connect_timeout=None, pack_gc=False)


def test_about(module_cluster, storage):
    assert storage.sortKey() == storage.getName() == 'NEOStorage(test)'
    assert isinstance(storage.sortKey(), str)
    assert storage.supportsUndo() is True
    assert storage.isReadOnly() is False
    assert module_cluster.storage(read_only=True).isReadOnly() is True


def test_len(new_cluster):
    """Objects are counted; a storage without any is still a storage."""
    cluster = new_cluster(storages=3).start()
    storage = cluster.storage()
    assert len(storage) == 0 and storage.getSize() == 0 and storage
    oids = [storage.new_oid() for _ in range(30)]
    commit(storage, *[(oid, z64, b'x') for oid in oids])
    tid = storage.lastTransaction()
    # Another client, that was never given an oid.
    other = cluster.storage()
    assert len(other) == 30 and other.getSize() > 0
    commit(other, *[(oid, tid, None) for oid in oids[:10]])
    storage.sync()
    assert len(other) == len(storage) == 20


# Loading


def test_load_before(storage):
    oid, tids = revisions(storage, b'1', b'2', b'3')
    assert storage.loadBefore(oid, maxtid) == (b'3', tids[2], None)
    assert storage.loadBefore(oid, tids[2]) == (b'2', tids[1], tids[2])
    assert storage.loadBefore(oid, tids[0]) is None
    assert storage.loadBeforeEx(oid, maxtid) == (b'3', tids[2])
    assert storage.loadBeforeEx(oid, tids[2]) == (b'2', tids[1])
    assert storage.loadBeforeEx(oid, tids[0]) is None
    assert storage.load(oid) == storage.load(oid, '') == (b'3', tids[2])
    assert storage.getTid(oid) == tids[2]
    with pytest.raises(POSKeyError):
        storage.loadBeforeEx(p64(1 << 50), maxtid)
    with pytest.raises(POSKeyError):
        storage.getTid(p64(1 << 50))


def test_load_before_nothing(storage):
    """`multi-zodb-check-refs` of zc.zodbdgc asks for this."""
    oid, _ = revisions(storage, b'1')
    assert storage.loadBefore(oid, b'') is None
    with pytest.raises(ValueError):
        storage.loadBefore(oid, b'short')


def test_prefetch(module_cluster, storage):
    oids = [storage.new_oid() for _ in range(100)]
    tid = commit(storage, *[(oid, z64, b'data %s' % oid) for oid in oids])
    other = module_cluster.storage()
    # Iterated once, and what does not exist is ignored.
    other.prefetch(iter(oids + [p64(1 << 50)]), p64(u64(tid) + 1))
    assert [load_current(other, oid) for oid in oids] == [(b'data %s' % oid, tid) for oid in oids]


def test_load_is_not_ahead_of_last_transaction(module_cluster, storage):
    """Who sees a revision is also told that it is committed."""
    other = module_cluster.storage()
    oid, (serial,) = revisions(storage, b'0')
    for value in range(30):
        serial = commit(storage, (oid, serial, b'%d' % value))
        new = storage.new_oid()
        tid = commit(storage, (new, z64, b'x'))
        # The new one is not in the cache: it comes from the cluster.
        assert other.loadBefore(new, maxtid)[1] == tid <= other.lastTransaction()
        assert other.loadBefore(oid, maxtid)[1] == serial


def test_callbacks_may_load(module_cluster, storage):
    """They are called before the last transaction moves, and must not wait for that."""
    oid, (serial,) = revisions(storage, b'0')
    told = []

    class Database:
        def invalidate(self, tid, oids):
            told.append((tid, list(oids), other.loadBefore(oid, maxtid), other.lastTransaction()))

        def invalidateCache(self):
            pass
    other = module_cluster.storage()
    other.registerDB(Database())
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    storage.store(oid, serial, b'1', '', txn)
    storage.tpc_vote(txn)
    seen = []
    tid = storage.tpc_finish(txn, lambda tid: seen.append(
        (tid, storage.loadBefore(oid, maxtid), storage.lastTransaction())))
    assert seen == [(tid, (b'1', tid, None), serial)]
    other.sync()
    assert told == [(tid, [oid], (b'1', tid, None), serial)]


# Transactions


def test_delete_object(storage):
    oid, (first, second) = revisions(storage, b'1', b'2')
    with pytest.raises(ConflictError):
        commit(storage, (oid, first, None))
    tid = commit(storage, (oid, second, None))
    with pytest.raises(POSKeyError):
        load_current(storage, oid)
    assert storage.loadBefore(oid, tid) == (b'2', second, tid)
    record, = list(next(storage.iterator(tid)))
    assert (record.oid, record.tid, record.data) == (oid, tid, None)


def test_check_current_serial(storage):
    oid, (first, second) = revisions(storage, b'1', b'2')
    for serial, error in (second, None), (first, ReadConflictError):
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        storage.store(storage.new_oid(), z64, b'x', '', txn)
        if error:
            with pytest.raises(error):
                storage.checkCurrentSerialInTransaction(oid, serial, txn)
                storage.tpc_vote(txn)
            storage.tpc_abort(txn)
        else:
            storage.checkCurrentSerialInTransaction(oid, serial, txn)
            storage.tpc_vote(txn)
            storage.tpc_finish(txn)


def test_check_current_serial_lasts(module_cluster, storage):
    """What was checked cannot change until the commit is over."""
    oid, (serial,) = revisions(storage, b'1')
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    storage.store(storage.new_oid(), z64, b'x', '', txn)
    storage.checkCurrentSerialInTransaction(oid, serial, txn)
    storage.tpc_vote(txn)
    other = module_cluster.storage()
    done = []
    thread = threading.Thread(target=lambda: done.append(commit(other, (oid, serial, b'2'))))
    thread.start()
    thread.join(.3)
    assert not done
    tid = storage.tpc_finish(txn)
    thread.join(20)
    assert done[0] > tid


def test_user_and_extension(storage):
    """Text and bytes that are not ASCII, in undoLog, undoInfo, history and iterator."""
    oid = storage.new_oid()
    tid = commit(storage, (oid, z64, b'x'), user='ü', description='é\n', extension={'k': [1, 'ö']})
    txn, = list(storage.iterator(tid, tid))
    assert (txn.user, txn.description, txn.extension) == (
        'ü'.encode(), 'é\n'.encode(), {'k': [1, 'ö']})
    undo = storage.undoLog(0, 1)[0]
    assert undo == storage.undoInfo(0, 1)[0]
    assert (undo['id'], undo['user_name'], undo['description'], undo['k']) == (
        tid, 'ü'.encode(), 'é\n'.encode(), [1, 'ö'])
    assert abs(undo['time'] - time.time()) < 600
    history, = storage.history(oid)
    assert (history['tid'], history['user_name'], history['description'], history['k']) == (
        tid, 'ü'.encode(), 'é\n'.encode(), [1, 'ö'])
    assert history['size'] and history['time'] == undo['time']
    assert storage.undoInfo(0, 5, {'user_name': 'ü'.encode(), 'k': [1, 'ö']})[0]['id'] == tid


def test_undo_log_positions(storage):
    """A negative `last` is a number of entries; filters come first."""
    oid, tids = revisions(storage, *[b'%d' % i for i in range(10)])
    tids.reverse()

    def mine(entry):
        return entry['id'] in tids[::2]
    assert [x['id'] for x in storage.undoLog(0, 3)] == tids[:3]
    assert [x['id'] for x in storage.undoLog(2, 5)] == tids[2:5]
    assert [x['id'] for x in storage.undoLog(2, -5)] == tids[2:7]
    assert [x['id'] for x in storage.undoLog(0, 2, mine)] == tids[:4:2]
    assert [x['id'] for x in storage.undoLog(1, -2, mine)] == tids[2:6:2]
    assert storage.undoLog(3, 3) == []


def test_undo_returns_oids(storage):
    oid, tids = revisions(storage, b'1', b'2')
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    assert storage.undo(tids[1], txn)[1] == [oid]
    storage.tpc_vote(txn)
    tid = storage.tpc_finish(txn)
    assert load_current(storage, oid) == (b'1', tid)
    record, = list(next(storage.iterator(tid)))
    assert (record.data, record.data_txn) == (b'1', tids[0])
    with pytest.raises(UndoError):
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        try:
            storage.undo(p64(12345), txn)
        finally:
            storage.tpc_abort(txn)


# Iteration


def test_iterator_protocol(storage):
    """Any number of times, partly, out of order; `next` is there, as zodbtools has it."""
    oid, tids = revisions(storage, *[b'%d' % i for i in range(5)])
    iterator = storage.iterator(tids[0])
    assert iterator.next().tid == tids[0]
    assert next(iterator).tid == tids[1]
    rest = list(iterator)
    assert [x.tid for x in rest] == tids[2:]
    for _ in range(2):
        assert [[r.data for r in txn] for txn in reversed(rest)] == [[b'4'], [b'3'], [b'2']]
    with pytest.raises(StopIteration):
        next(iterator)
    iterator.close()
    assert [x.tid for x in storage.iterator(tids[1], tids[3])] == tids[1:4]
    for txn in storage.iterator(tids[4]):
        assert ZODB.interfaces.IStorageTransactionInformation.providedBy(txn)
        assert all(ZODB.interfaces.IStorageRecordInformation.providedBy(r) for r in txn)


def test_record_iternext(new_cluster):
    """All current records, in order: zodbverify and zodbupdate need it."""
    storage = new_cluster(storages=3).start().storage()
    with pytest.raises(ValueError):
        storage.record_iternext()
    oids = [storage.new_oid() for _ in range(50)]
    tid = commit(storage, *[(oid, z64, b'1 %s' % oid) for oid in oids])
    changed = commit(storage, *[(oid, tid, b'2 %s' % oid) for oid in oids[::3]])
    commit(storage, (oids[-1], tid, None))
    expected = [(oid, changed, b'2 %s' % oid) if i % 3 == 0 else (oid, tid, b'1 %s' % oid)
                for i, oid in enumerate(oids[:-1])]
    for _ in range(2):
        found, cookie = [], None
        while True:
            *record, cookie = storage.record_iternext(cookie)
            found.append(tuple(record))
            if cookie is None:
                break
        assert found == expected


# Copies


def test_restore(new_cluster, tmp_path):
    """A Data.fs with undone and deleted objects: tids, status and back-pointers are the same."""
    source = FileStorage(str(tmp_path / 'Data.fs'))
    oid, tids = revisions(source, b'1', b'2')
    for undone in tids[1], None:
        txn = TransactionMetaData()
        source.tpc_begin(txn)
        source.undo(undone_id(source, undone), txn)
        source.tpc_vote(txn)
        source.tpc_finish(txn)
    commit(source, (source.new_oid(), z64, b'other'), user='me', extension={'a': 1})
    destination = new_cluster(storages=3).start().storage()
    destination.copyTransactionsFrom(source)
    assert contents(destination) == contents(source)
    # What comes later, incrementally.
    last = destination.lastTransaction()
    commit(source, (oid, source.lastTransaction() and load_current(source, oid)[1], b'3'))
    for txn in source.iterator(p64(u64(last) + 1)):
        destination.tpc_begin(txn, txn.tid, txn.status)
        for record in txn:
            destination.restore(record.oid, record.tid, record.data, '', record.data_txn, txn)
        destination.tpc_vote(txn)
        destination.tpc_finish(txn)
    assert contents(destination) == contents(source)
    assert load_current(destination, oid) == load_current(source, oid)
    # And back.
    copy = FileStorage(str(tmp_path / 'Copy.fs'))
    copy.copyTransactionsFrom(destination)
    assert contents(copy) == contents(source)
    copy.close()
    source.close()


def undone_id(source, tid):
    """Id of a transaction in the undo log; of the last one if not given."""
    return next(x['id'] for x in source.undoLog(0, 10)
                if tid is None or TimeStamp(tid).timeTime() == x['time'])


def contents(storage):
    return [(txn.tid, txn.status, txn.user, txn.description, txn.extension_bytes,
             sorted((r.oid, r.tid, r.data, r.data_txn) for r in txn))
            for txn in storage.iterator()]


# Packs, and what ERP5 uses


def test_app_oids(new_cluster):
    storage = new_cluster(storages=3).start().storage()
    oids = [storage.new_oid() for _ in range(40)]
    first = commit(storage, *[(oid, z64, b'x') for oid in oids[:30]])
    second = commit(storage, *[(oid, z64, b'x') for oid in oids[30:]])
    third = commit(storage, (oids[3], first, None))
    assert list(storage.app.oids(first)) == oids[:30]
    assert list(storage.app.oids(second)) == oids
    assert list(storage.app.oids(third)) == oids[:3] + oids[4:]
    assert list(storage.app.oids(third, oids[35])) == oids[35:]
    assert list(storage.app.oids(third, oids[5], oids[7])) == oids[5:8]
    # An iterator: what is not taken is not asked.
    assert list(itertools.islice(storage.app.oids(third, oids[10]), 2)) == oids[10:12]


def test_app_pack(new_cluster):
    """A partial pack, as an external garbage collector does it."""
    storage = new_cluster(storages=3).start().storage()
    objects = [revisions(storage, b'1', b'2', b'3') for _ in range(4)]
    last = storage.lastTransaction()
    storage.app.pack(last, [oid for oid, _ in objects[:2]])
    assert [len(storage.history(oid, 9)) for oid, _ in objects] == [1, 1, 3, 3]
    storage.app.pack(last)
    assert [len(storage.history(oid, 9)) for oid, _ in objects] == [1] * 4
    assert [load_current(storage, oid)[0] for oid, _ in objects] == [b'3'] * 4


def test_pack_waits(new_cluster):
    """When `pack` returns, it is done; the undo log has only what can be undone."""
    cluster = new_cluster(storages=3).start()
    storage = cluster.storage()
    before = [revisions(storage, b'1', b'2') for _ in range(12)]
    tid = storage.lastTransaction()
    time.sleep(.01)
    now = time.time()
    time.sleep(.01)
    after, tids = revisions(storage, b'1', b'2')
    storage.pack(now, referencesf)
    assert [len(storage.history(oid, 9)) for oid, _ in before] == [1] * 12
    assert [x['id'] for x in storage.undoLog()] == tids[::-1]
    # It is remembered, and known to others.
    other = cluster.storage()
    assert [x['id'] for x in other.undoLog()] == tids[::-1]
    assert {txn.tid: txn.status for txn in other.iterator()}[tid] == 'p'
    txn = TransactionMetaData()
    other.tpc_begin(txn)
    with pytest.raises(UndoError):
        other.undo(tid, txn)
    other.tpc_abort(txn)


def test_undo_of_packed_transaction_after_restart(new_cluster):
    cluster = new_cluster(storages=3).start()
    storage = cluster.storage()
    objects = [revisions(storage, b'1', b'2') for _ in range(12)]
    storage.pack(time.time(), referencesf)
    storage.close()
    cluster.stop()
    cluster.spawn()
    cluster.wait_running()
    storage = cluster.storage()
    for oid, tids in objects:
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        with pytest.raises(UndoError):
            storage.undo(tids[1], txn)
        storage.tpc_abort(txn)
        assert load_current(storage, oid) == (b'2', tids[1])


def test_pack_collects_garbage_only_if_asked(new_cluster):
    cluster = new_cluster(storages=3).start()
    db = ZODB.DB(cluster.storage())
    with db.transaction() as conn:
        conn.root.kept = PersistentMapping(child=PersistentMapping())
        conn.root.unlinked = PersistentMapping(child=Item(value=1))
    with db.transaction() as conn:
        unlinked = conn.root.unlinked
        oids = [unlinked._p_oid, unlinked['child']._p_oid]
        del conn.root.unlinked
    time.sleep(.01)
    now = time.time()
    time.sleep(.01)
    with db.transaction() as conn:
        conn.root.later = PersistentMapping(child=Item(value=2))
        later = [conn.root.later, conn.root.later['child']]
    oids_later = [x._p_oid for x in later]
    with db.transaction() as conn:
        del conn.root.later
    db.pack(now)
    assert {u64(x) for x in oids} < {u64(x) for x in db.storage.app.oids()}
    collecting = ZODB.DB(cluster.storage(pack_gc=True))
    collecting.pack(now)
    for oid in oids:
        with pytest.raises(POSKeyError):
            load_current(collecting.storage, oid)
        with pytest.raises(POSKeyError):
            collecting.storage.history(oid)
    # Not reachable any more, but after the time of the pack.
    for oid in oids_later:
        assert load_current(collecting.storage, oid)
    db.open().root.kept['child']._p_activate()
    assert [x['description'] for x in db.undoLog(0, 9)] == ['', '']


# In the process


@pytest.mark.parametrize('name', ['_native', 'Storage', 'app', 'zodburi'])
def test_stubs(name):
    """The type stubs have the methods and parameters that there are."""
    module = importlib.import_module('neo.client.' + name)
    stub = ast.parse(Path(neo.client.__file__).with_name(name + '.pyi').read_text())

    def parameters(node):
        args = node.args
        return [x.arg for x in args.posonlyargs + args.args + args.kwonlyargs]

    def check(node, function):
        assert list(signature(function).parameters) == parameters(node), node.name
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            check(node, getattr(module, node.name))
        elif isinstance(node, ast.ClassDef):
            members = vars(getattr(module, node.name))
            stubs = {x.name: x for x in node.body if isinstance(x, ast.FunctionDef)}
            public = {x for x in members if not x.startswith('_')}
            assert {x for x in stubs if not x.startswith('_')} == \
                {x for x in public if not isinstance(members[x], bool)}
            for method in public & stubs.keys():
                if not isinstance(members[method], (property, types.GetSetDescriptorType)):
                    check(stubs[method], members[method])


@pytest.mark.parametrize('module', ['neo', 'neo.client', 'neo.client.config', 'neo.client.zodburi'])
def test_import_is_cheap(module):
    """Nothing that is big is imported before a storage is opened."""
    code = f'import sys, {module}; print([x for x in sys.modules if x in big])'
    big = {'neo.client._native', 'neo.client.Storage'}
    if module != 'neo.client.config':       # which is of no use without ZODB
        big |= {'ZODB', 'persistent', 'transaction'}
    result = subprocess.run([sys.executable, '-c', f'big = {big!r}; {code}'],
                            capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


def test_many_clients_in_one_process(module_cluster):
    """Opening 64 storages is not slowed down by the others."""
    start = time.monotonic()
    storages = [module_cluster.storage() for _ in range(64)]
    last = {x.lastTransaction() for x in storages}
    for storage in storages:
        storage.close()
    assert len(last) == 1
    assert time.monotonic() - start < 15


def test_close_while_others_run(module_cluster, capfd):
    """Storages are opened and closed while others work: nobody notices."""
    stay = module_cluster.storage()
    oid, (serial,) = revisions(stay, b'0')
    stop = threading.Event()
    errors = []

    def work():
        try:
            while not stop.is_set():
                load_current(module_cluster_storage, oid)
        except BaseException as e:
            errors.append(e)
    module_cluster_storage = stay
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        storage = module_cluster.storage()
        load_current(storage, oid)
        storage.close()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not errors
    assert capfd.readouterr().err == ''


def test_logging(new_cluster, caplog, tmp_path):
    """What the native half logs goes to the logger `neo`, and to the file of the option."""
    import logging
    cluster = new_cluster().start()
    with caplog.at_level(logging.INFO, 'neo'):
        storage = cluster.storage(logfile=str(tmp_path / 'client.log'))
        cluster.masters[0].kill9()
        wait_for(lambda: any(r.name == 'neo' and r.levelno == logging.ERROR
                             for r in caplog.records), 'an error')
    storage.close()
    wait_for(lambda: 'ERROR     neo' in (tmp_path / 'client.log').read_text(), 'the log file')


def test_dynamic_master_list(new_cluster, tmp_path):
    """Masters that were heard of are found later, although the option does not have them."""
    cluster = new_cluster(masters=2).start()
    path = tmp_path / 'masters'
    first = cluster.storage(dynamic_master_list=str(path))
    for address in cluster.master_nodes.split():
        host, port = address.split(':')
        wait_for(lambda: path.exists() and f'"{host}", {port}' in path.read_text(),
                 f'{address} in the list')
    first.close()
    from neo.client.Storage import Storage
    from cluster import free_port
    storage = Storage(f'127.0.0.1:{free_port()}', 'test', dynamic_master_list=str(path))
    assert storage.lastTransaction() == z64
    storage.close()


def test_zconfig_options(module_cluster):
    """Every key, also those that only this implementation has."""
    storage = ZODB.config.storageFromString(f'''
        %import neo.client
        <NEOStorage>
            master_nodes {module_cluster.master_nodes}
            name test
            compress zlib=3
            read-only false
            cache-size 5MB
            ignore-wrong-checksum false
            pack-gc true
        </NEOStorage>''')
    assert storage._pack_gc
    storage.close()


@pytest.mark.parametrize('value', ['1', 'true', 'on', 'yes', 'True'])
def test_zodburi_read_only(module_cluster, value):
    """zodbtools has it so."""
    from neo.client.zodburi import resolve_uri
    masters = module_cluster.master_nodes.replace(' ', ',')
    factory, database = resolve_uri(f'neo://test@{masters}?read_only={value}&pack_gc=0')
    storage = factory()
    assert storage.isReadOnly() and not database
    storage.close()
