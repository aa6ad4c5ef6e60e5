# SPDX-License-Identifier: GPL-2.0-or-later
"""neomigrate: a `Data.fs` goes into a cluster and comes back, record for record.

NEO_TESTS_MIGRATE: size of the generated file, `TRANSACTIONS MEGABYTES BIG_MEGABYTES`
as `scripts/make_data_fs.py` takes them (default "1500 3 2"; before a release,
"20000 50 20").
"""

import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import load_current, u64

from cluster import PATIENCE, ROOT, executable, free_port, run, shared_dir, wait_for

upstream_fails = pytest.mark.upstream_fails

SIZE = os.environ.get('NEO_TESTS_MIGRATE', '1500 3 2').split()
# Seconds that one migration may take.
LIMIT = 120 + float(SIZE[1]) * 20


@pytest.fixture(scope='module')
def data_fs(tmp_path_factory):
    """A function that gives the path of a `Data.fs` by name, not to be changed."""
    directory = tmp_path_factory.mktemp('fs')
    made = {}

    def path(name):
        if name not in made:
            made[name] = directory / (name + '.fs')
            if name.startswith('generated'):
                transactions, megabytes, big = SIZE
                subprocess.run(
                    [sys.executable, ROOT / 'scripts' / 'make_data_fs.py', '--transactions',
                     transactions, '--megabytes', megabytes, '--big-megabytes', big,
                     *(['--pack'] if name == 'generated_packed' else []), made[name]],
                    check=True, timeout=LIMIT)
            else:
                # The original lies where an index and a lock cannot be written.
                shutil.copyfile(shared_dir() / 'filestorage' / (name + '.fs'), made[name])
        return made[name]
    return path


def transactions(storage):
    """Everything that iteration gives, one transaction at a time."""
    for txn in storage.iterator():
        yield {'tid': txn.tid.hex(), 'status': txn.status, 'user': txn.user,
               'description': txn.description, 'extension': txn.extension_bytes,
               'records': [{'oid': x.oid.hex(), 'tid': x.tid.hex(), 'data': x.data,
                            'data_txn': x.data_txn and x.data_txn.hex()} for x in txn]}


# What upstream does not keep, nor the order of the objects in a transaction.
LOST_BY_UPSTREAM = 'status', 'data_txn'


def assert_same(source, result, ignore=()):
    """Compare two storages, order included unless something is ignored."""
    def kept(txn):
        txn = {k: v for k, v in txn.items() if k not in ignore}
        txn['records'] = [{k: v for k, v in x.items() if k not in ignore}
                          for x in txn['records']]
        if ignore:
            txn['records'].sort(key=lambda x: x['oid'])
        return txn
    count = 0
    left, right = transactions(source), transactions(result)
    for expected in left:
        count += 1
        found = next(right, None)
        assert found is not None, f'ends before {expected["tid"]}'
        assert kept(found) == kept(expected)
    assert next(right, None) is None, 'more transactions than expected'
    return count


def assert_same_loads(source, result):
    """Compare what `load` gives for each object that iteration has met."""
    for oid in {x.oid for txn in source.iterator() for x in txn}:
        try:
            expected = load_current(source, oid)
        except POSKeyError:
            with pytest.raises(POSKeyError):
                load_current(result, oid)
        else:
            assert load_current(result, oid) == expected


def neomigrate(cluster, source, destination, *options, timeout=LIMIT, **kw):
    return run('neomigrate', '-c', cluster.name, *options, source, destination,
               timeout=timeout, **kw)


def open_fs(path):
    return FileStorage(str(path), read_only=True)


def is_empty(cluster):
    return 'last_tid = 0x0 ' in cluster.ctl('print', 'ids')


# Round trips


def round_trip(cluster, path, tmp_path, ignore=()):
    result = neomigrate(cluster, path, cluster.master_nodes)
    assert result.returncode == 0, result.stderr
    assert f'Migrating from {path} to {cluster.master_nodes}\n' in result.stdout
    assert re.search(r'Migration done in \d+\.\d{5}$', result.stdout.rstrip())
    source = open_fs(path)
    storage = cluster.storage()
    assert assert_same(source, storage, ignore) == len(list(source.iterator())) > 1
    assert storage.lastTransaction() == source.lastTransaction()
    assert_same_loads(source, storage)
    # The cluster goes on from there.
    assert u64(storage.new_oid()) > max(u64(x.oid) for txn in source.iterator() for x in txn)
    back = tmp_path / 'back.fs'
    result = neomigrate(cluster, cluster.master_nodes, back, '-q')
    assert result.returncode == 0, result.stderr
    assert result.stdout == ''
    assert_same(source, open_fs(back), ignore)
    assert_same_loads(source, open_fs(back))


@upstream_fails('drops the status `p` and data_txn')
@pytest.mark.timeout(LIMIT * 4)
@pytest.mark.parametrize('name', ['basic', 'packed', 'generated', 'generated_packed'])
def test_round_trip(cluster3, data_fs, tmp_path, name):
    """`Data.fs` to 3 storages with 12 partitions and back."""
    round_trip(cluster3, data_fs(name), tmp_path)


@pytest.mark.parametrize('name', ['basic', 'packed'])
def test_round_trip_without_undo_links(cluster3, data_fs, tmp_path, name):
    """The same, without what upstream does not keep."""
    round_trip(cluster3, data_fs(name), tmp_path, LOST_BY_UPSTREAM)


def test_one_partition(new_cluster, data_fs, tmp_path):
    round_trip(new_cluster(partitions=1).start(), data_fs('basic'), tmp_path,
               LOST_BY_UPSTREAM)


@upstream_fails('release 0.9 only')
def test_old_syntax(cluster, data_fs, tmp_path):
    """`-s SOURCE -d DESTINATION`, as in release 0.9, with long and short options."""
    path = data_fs('basic')
    result = run('neomigrate', '-v', '-s', path, '-d', cluster.master_nodes, '-c', cluster.name)
    assert result.returncode == 0, result.stderr
    back = tmp_path / 'back.fs'
    result = run('neomigrate', f'--source={cluster.master_nodes}', '--destination', back,
                 '--cluster', cluster.name)
    assert result.returncode == 0, result.stderr
    assert assert_same(open_fs(path), open_fs(back)) > 1


@upstream_fails('leaves entries out of undoLog when there are several storages')
def test_zodb_on_the_result(cluster3, data_fs):
    """An application works on the migrated database, old transactions can be undone."""
    path = data_fs('basic')
    assert neomigrate(cluster3, path, cluster3.master_nodes).returncode == 0
    import ZODB
    fs = ZODB.DB(open_fs(path))
    db = cluster3.db()
    with fs.transaction() as expected, db.transaction() as conn:
        assert sorted(conn.root()) == sorted(expected.root())
        conn.root()['new'] = 1
    # Newest first; the one just made comes on top.
    assert [x['description'] for x in db.undoLog(1, 6)] == [
        x['description'] for x in fs.undoLog(0, 5)]
    with db.transaction() as conn:
        assert conn.root()['new'] == 1
    fs.close()


@upstream_fails('shows no progress')
def test_progress(cluster, data_fs):
    """On a terminal, how far it is."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [executable('neomigrate'), '-c', cluster.name, data_fs('basic'), cluster.master_nodes],
        stdin=subprocess.DEVNULL, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b''
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:
        pass    # the other side is closed
    os.close(leader)
    assert process.wait(PATIENCE) == 0
    assert b'%' in shown and b'Migration done' in shown


# Errors: a clear message, a status that is not 0, nothing half done


def assert_refused(result, *words):
    assert result.returncode not in (0, None)
    assert result.returncode > 0, f'killed by signal {-result.returncode}'
    assert result.stderr.strip()
    for word in 'Traceback', 'panicked':
        assert word not in result.stderr
    assert len(result.stderr.splitlines()) <= 4, result.stderr
    for word in words:
        assert str(word) in result.stderr


@upstream_fails('takes the path for the address of a master node')
def test_missing_source(cluster, tmp_path):
    missing = tmp_path / 'missing' / 'Data.fs'
    result = neomigrate(cluster, missing, cluster.master_nodes, cwd=tmp_path)
    assert_refused(result, missing)
    assert is_empty(cluster)
    assert not (tmp_path / cluster.master_nodes).exists()


def damage(path, how):
    size = path.stat().st_size
    with open(path, 'r+b') as f:
        if how == 'not a FileStorage':
            f.write(random.Random(0).randbytes(size))
        elif how == 'empty':
            f.truncate(0)
        elif how == 'cut':
            # In the middle of the last transaction.
            f.seek(-8, os.SEEK_END)
            length = u64(f.read(8))
            f.truncate(size - length // 2)
        elif how == 'hole':
            f.seek(size // 2)
            f.write(bytes(4096))
        elif how == 'length of a transaction':
            source = open_fs(path)
            tids = [x.tid for x in source.iterator()]
            source.close()
            content = path.read_bytes()
            pos = content.index(tids[len(tids) // 2])
            f.seek(pos + 8)
            f.write((1 << 40).to_bytes(8, 'big'))
    return path


@upstream_fails('stops silently, or shows a traceback')
@pytest.mark.parametrize('how', [
    'not a FileStorage', 'empty', 'cut', 'hole', 'length of a transaction'])
def test_damaged_source(cluster, data_fs, tmp_path, how):
    """Refused, with the file name, before anything is in the cluster."""
    path = tmp_path / 'damaged.fs'
    shutil.copyfile(data_fs('basic'), path)
    damage(path, how)
    result = neomigrate(cluster, path, cluster.master_nodes)
    assert_refused(result, path)
    assert is_empty(cluster), 'part of a damaged file looks like a whole database'


@upstream_fails('waits for ever')
def test_unreachable_cluster(new_cluster, data_fs, tmp_path):
    nowhere = f'127.0.0.1:{free_port()}'
    cluster = new_cluster()
    result = neomigrate(cluster, data_fs('basic'), nowhere, timeout=PATIENCE * 2)
    assert_refused(result, nowhere)
    back = tmp_path / 'back.fs'
    result = neomigrate(cluster, nowhere, back, timeout=PATIENCE * 2)
    assert_refused(result, nowhere)
    assert os.listdir(tmp_path) == [cluster.directory.name]


@upstream_fails('waits for ever')
def test_wrong_cluster_name(cluster, data_fs):
    result = run('neomigrate', '-c', 'other', data_fs('basic'), cluster.master_nodes,
                 timeout=PATIENCE * 2)
    assert_refused(result, 'other')
    assert is_empty(cluster)


@upstream_fails('a traceback')
def test_cluster_that_is_not_empty(cluster, data_fs):
    """Refused, and what was there is not touched."""
    db = cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = 1
    last = db.storage.lastTransaction()
    ids = cluster.ctl('print', 'ids')
    result = neomigrate(cluster, data_fs('basic'), cluster.master_nodes)
    assert_refused(result, 'empty')
    assert cluster.ctl('print', 'ids') == ids
    storage = cluster.storage()
    assert storage.lastTransaction() == last
    assert len(list(storage.iterator())) == len(list(db.storage.iterator())) == 2


@upstream_fails('appends to the file, or shows a traceback')
@pytest.mark.parametrize('content', ['FileStorage', 'something else'])
def test_destination_exists(cluster, data_fs, tmp_path, content):
    """Never overwritten."""
    with cluster.db().transaction() as conn:
        conn.root()['a'] = 1
    back = tmp_path / 'back.fs'
    if content == 'FileStorage':
        shutil.copyfile(data_fs('packed'), back)
    else:
        back.write_text('precious')
    before = back.read_bytes()
    result = neomigrate(cluster, cluster.master_nodes, back)
    assert_refused(result, back)
    assert back.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([back.name, cluster.directory.name])


@upstream_fails('leaves a file')
@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_export(cluster, data_fs, tmp_path, sig):
    """Nothing at the destination that looks like a whole `Data.fs`.

    The storage is frozen, so that the export cannot end before it is interrupted.
    """
    assert neomigrate(cluster, data_fs('basic'), cluster.master_nodes).returncode == 0
    storage, = cluster.storages
    os.kill(storage.pid, signal.SIGSTOP)
    back = tmp_path / 'back.fs'
    process = subprocess.Popen(
        [executable('neomigrate'), '-c', cluster.name, cluster.master_nodes, str(back)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(x[1] == 'CLIENT' for x in cluster.node_list()),
                 'neomigrate to be connected')
        process.send_signal(sig)
        assert process.wait(PATIENCE) != 0
    finally:
        process.kill()
        process.wait()
        os.kill(storage.pid, signal.SIGCONT)
    assert not back.exists()


def test_usage():
    """Without arguments: usage, status 2."""
    result = run('neomigrate')
    assert result.returncode == 2
    assert result.stderr.lower().startswith('usage: neomigrate')
