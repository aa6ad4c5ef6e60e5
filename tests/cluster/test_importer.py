# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapter Importer: a `Data.fs` is served while it is imported, whatever happens meanwhile."""

import os
import random
import shutil
import subprocess
import sys

import pytest
import transaction
from persistent.mapping import PersistentMapping
from ZODB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import load_current, p64, u64

from cluster import ROOT, UPSTREAM, Cluster, run, shared_dir, wait_for
from test_migrate import assert_same, assert_same_loads, neomigrate, open_fs, transactions

pytestmark = pytest.mark.skipif(UPSTREAM, reason='upstream needs a FileStorage that it may write')

CONFIGURATION = """\
[neo]
adapter={adapter}
database={database}
{more}
[root]
storage=
  <filestorage>
    path {path}
  </filestorage>
{end}"""


def configure(cluster, path, index=0, more='', end=''):
    """The storage imports `path` into the database that it would have. Returns its file."""
    node = cluster.storages[index]
    database = str(cluster.database(index)).replace('%', '%%')
    configuration = cluster.directory / f'importer_{index}.conf'
    configuration.write_text(CONFIGURATION.format(
        adapter=cluster.adapter, database=database, path=path, more=more, end=end))
    set_adapter(node, 'Importer', configuration)
    return configuration


def set_adapter(node, adapter, database):
    node.args[node.args.index('--adapter') + 1] = adapter
    node.args[node.args.index('--database') + 1] = str(database)


def state(cluster):
    """(last tid of the source, last tid that is imported) as committed."""
    with cluster.open_database(0, read_only=True) as db:
        if db is None:
            return None
        row = db.execute("SELECT value FROM config WHERE name='import'").fetchone()
    if row is None:
        return None
    value = row[0].decode() if isinstance(row[0], bytes) else row[0]
    last, _, imported = value.split()
    return last, imported


def is_finished(cluster):
    found = state(cluster)
    return found and found[0] == found[1]


def wait_imported(cluster, timeout=120):
    def is_said():
        # With log files, it is there that it is said.
        return os.environ.get('NEO_TESTS_LOGFILE') or \
            'All data are imported' in cluster.storages[0].output()
    wait_for(lambda: is_finished(cluster) and is_said(), 'the end of the import', timeout)


@pytest.fixture
def generated(tmp_path):
    """A file that takes a while."""
    path = tmp_path / 'Data.fs'
    subprocess.run([sys.executable, ROOT / 'scripts' / 'make_data_fs.py', '--transactions',
                    '6000', '--megabytes', '40', '--big-megabytes', '3', path],
                   check=True, timeout=120)
    return path


def fingerprint(path):
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, path.read_bytes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize('name', ['basic', 'packed'])
def test_files_of_zodb(tmp_path, name):
    """What is imported is what neomigrate would copy: the way back gives the same file. The source
    is not changed, and not needed any more in the end; then the node runs on its database alone."""
    path = tmp_path / 'Data.fs'
    shutil.copyfile(shared_dir() / 'filestorage' / (name + '.fs'), path)
    source = open_fs(path)
    before = fingerprint(path)
    with Cluster(tmp_path, partitions=5) as cluster:
        configure(cluster, path)
        cluster.start()
        storage = cluster.storage()
        assert storage.lastTransaction() == source.lastTransaction()
        assert u64(storage.new_oid()) > max(u64(x.oid) for t in source.iterator() for x in t)
        assert_same_loads(source, storage)
        wait_imported(cluster)
        assert assert_same(source, storage) > 1
        assert_same_loads(source, storage)
        storage.close()
        assert fingerprint(path) == before
        moved = tmp_path / 'moved.fs'
        path.rename(moved)
        # Once with the same configuration, then without it.
        for adapter in None, cluster.adapter:
            cluster.stop()
            if adapter:
                set_adapter(cluster.storages[0], adapter, cluster.database(0))
            cluster.start()
            back = tmp_path / f'back_{adapter}.fs'
            result = neomigrate(cluster, cluster.master_nodes, back, '-q')
            assert result.returncode == 0, result.stderr
            assert_same(open_fs(moved), open_fs(back))


def commit(db, number):
    connection = db.open(transaction_manager=transaction.TransactionManager())
    try:
        root = connection.root()
        if 'imported' not in root:
            root['imported'] = PersistentMapping()
        root['imported'][number] = PersistentMapping(number=number)
        connection.transaction_manager.commit()
    finally:
        connection.close()


@pytest.mark.timeout(600)
def test_kill(tmp_path, generated):
    """The storage is killed again and again: the import goes on where it was, nothing of the source
    nor of what clients commit is lost, and any object can be loaded all the time."""
    source = open_fs(generated)
    oids = sorted({x.oid for t in source.iterator() for x in t})
    root = load_current(source, p64(0))
    rng = random.Random(1)
    with Cluster(tmp_path, partitions=12) as cluster:
        configure(cluster, generated)
        cluster.start()
        node = cluster.storages[0]
        storage = cluster.storage()
        commits = kills = 0
        assert load_current(storage, p64(0)) == root
        while not is_finished(cluster):
            for oid in rng.sample(oids[1:], 20):
                try:
                    expected = load_current(source, oid)
                except POSKeyError:
                    with pytest.raises(POSKeyError):
                        load_current(storage, oid)
                else:
                    assert load_current(storage, oid) == expected
            db = DB(cluster.storage())
            commits += 1
            commit(db, commits)
            db.close()
            if kills < 5:
                node.kill9()
                kills += 1
                node.start()
                cluster.wait_running()
        assert kills, 'the import was over at once'
        wait_imported(cluster)
        # All of the source, then what was committed; and the cluster has nothing else.
        expected = list(transactions(source))
        found = transactions(storage)
        for txn in expected:
            assert next(found) == txn
        assert len(list(found)) == commits
        db = DB(cluster.storage())
        connection = db.open()
        imported = connection.root()['imported']
        assert sorted(imported) == list(range(1, commits + 1))
        assert all(value['number'] == number for number, value in imported.items())
        connection.close()
        db.close()
        # No data is left that nothing refers to.
        cluster.stop()
        with cluster.open_database(0, read_only=True) as sql:
            assert sql.execute('SELECT COUNT(*) FROM data WHERE id NOT IN'
                               ' (SELECT data_id FROM obj WHERE data_id IS NOT NULL)'
                               ).fetchone()[0] == 0


@pytest.mark.timeout(300)
def test_change_what_is_not_imported(tmp_path, generated):
    """While its only copy is in the source, an object is changed, undone and deleted, and its
    history is complete."""
    fs = FileStorage(str(generated))
    db = DB(fs)
    connection = db.open()
    counter = connection.root()['counter'] = PersistentMapping(value=0)
    transaction.commit()
    counter['value'] = 1
    transaction.commit()
    oid = counter._p_oid
    tids = [x['tid'] for x in fs.history(oid, size=10)]
    connection.close()
    db.close()
    with Cluster(tmp_path, partitions=12) as cluster:
        configure(cluster, generated)
        cluster.start()
        # The last transactions of the source are the last to be imported: this takes longer than what
        # is done here. The tests of the database do the same at each step of an import.
        db = DB(cluster.storage())
        connection = db.open()
        counter = connection.root()['counter']
        assert counter['value'] == 1
        counter['value'] = 2
        transaction.commit()
        history = [x['tid'] for x in db.history(oid, size=10)]
        assert history[1:] == tids and len(history) == 3
        db.undo(history[0])
        transaction.commit()
        assert counter['value'] == 1
        # The last transaction of the source, below what clients committed: nothing else than it
        # changed the object, once the others are undone.
        db.undo(tids[0])
        transaction.commit()
        assert counter['value'] == 0
        del connection.root()['counter']
        transaction.commit()
        assert 'counter' not in connection.root()
        wait_imported(cluster)
        assert [x['tid'] for x in db.history(oid, size=10)][-2:] == tids
        connection.close()
        db.close()
        expected = list(transactions(open_fs(generated)))
        found = transactions(cluster.storage())
        for txn in expected:
            assert next(found) == txn
        assert len(list(found)) == 4


def test_refusals(tmp_path):
    """What can not be imported is refused when the node starts: exit status 1, a message that tells
    what to do, and nothing is touched."""
    path = tmp_path / 'Data.fs'
    shutil.copyfile(shared_dir() / 'filestorage' / 'basic.fs', path)
    with Cluster(tmp_path) as cluster:
        for more, end, expected in [
            ('writeback=true', '', 'writeback=true is not supported'),
            ('', '[foo]\noid=123\nstorage=<filestorage>\n  path x\n  </filestorage>\n',
             'to merge several databases'),
            ('', 'foo=421\n', 'a mount point ([root] foo='),
        ]:
            configuration = configure(cluster, path, more=more, end=end)
            result = run('neostorage', *cluster.storages[0].args)
            assert result.returncode == 1
            assert expected in result.stderr and str(configuration) in result.stderr
        configuration = configure(cluster, path)
        configuration.write_text(configuration.read_text().replace('filestorage', 'zeoclient'))
        result = run('neostorage', *cluster.storages[0].args)
        assert result.returncode == 1 and 'neomigrate' in result.stderr
        assert state(cluster) is None
        configuration = configure(cluster, tmp_path / 'absent.fs')
        result = run('neostorage', *cluster.storages[0].args)
        assert result.returncode == 1 and 'absent.fs: cannot open' in result.stderr
        with open(path, 'r+b') as f:
            f.truncate(path.stat().st_size - 10)
        configure(cluster, path)
        result = run('neostorage', *cluster.storages[0].args)
        assert result.returncode == 1 and 'Data.fs: damaged at position' in result.stderr


def test_not_without_the_adapter(tmp_path, generated):
    """A database that misses a part of the source is not opened without it."""
    with Cluster(tmp_path) as cluster:
        configure(cluster, generated)
        cluster.start()
        cluster.storages[0].kill9()
        assert not is_finished(cluster)
        set_adapter(cluster.storages[0], cluster.adapter, cluster.database(0))
        result = run('neostorage', *cluster.storages[0].args)
        assert result.returncode == 1
        assert 'not everything is imported' in result.stderr
