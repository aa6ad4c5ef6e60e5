# SPDX-License-Identifier: GPL-2.0-or-later
"""What an application sees when its cluster or its network is in trouble.

The rules that these tests check, one trouble each:

- loads go on as soon as they can, and return the right data;
- what fails, fails with an exception of ZODB that says what happened;
- the outcome of a commit is the one that is reported;
- no thread waits for ever, unless for a cluster that is away: then it goes on
  when the cluster is back, and it ends when the client is closed or interrupted.
"""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import transaction
from ZODB import POSException
from ZODB.POSException import ConflictError, ReadOnlyError, StorageError
from ZODB.utils import p64, u64, z64

from cluster import PATIENCE, wait_for
from proxy import DOWN, UP, Network
from workload import Load

from neo.client.exception import NEOStorageWrongChecksum

BIG = os.urandom(300_000)   # more than one read of a socket, and does not compress


# Helpers


class Task(threading.Thread):
    """A call in a thread: `result()` returns or raises what it did, or tells that it hangs."""

    def __init__(self, function, *args):
        super().__init__(daemon=True)
        self.call = function, args
        self.start()

    def run(self):
        function, args = self.call
        try:
            self.value, self.error = function(*args), None
        except BaseException as e:
            self.value, self.error = None, e

    def result(self, timeout=PATIENCE):
        self.join(timeout)
        assert not self.is_alive(), f'hang: {self.call} after {timeout} s'
        if self.error is not None:
            raise self.error
        return self.value


def commit(storage, changes, before_finish=lambda: None, serial=z64):
    """One transaction: {oid: data}. Returns its tid."""
    txn = transaction.Transaction()
    storage.tpc_begin(txn)
    try:
        for oid, data in changes.items():
            storage.store(oid, serial, data, '', txn)
        storage.tpc_vote(txn)
        before_finish()
    except BaseException:
        storage.tpc_abort(txn)
        raise
    return storage.tpc_finish(txn)


def load(storage, oid):
    return storage.loadBefore(oid, b'\x7f' + b'\xff' * 7)[:2]


def is_committed(cluster, oid):
    """What a client that knows nothing of the story finds."""
    storage = cluster.storage()
    try:
        return load(storage, oid)
    except POSException.POSKeyError:
        return None
    finally:
        storage.close()


@pytest.fixture
def network(new_cluster):
    """A cluster whose clients reach it through proxies: `network.cluster`, running."""
    cluster = new_cluster(storages=1)
    network = Network(cluster)
    network.cluster = cluster.start()
    yield network
    network.close()


# Nodes that restart, under load


def killed(*nodes):
    """Kill nodes and start them again."""
    for node in nodes:
        node.kill9()
    for node in nodes:
        node.start()


def stopped(*nodes):
    """Stop nodes as an administrator does, and start them again."""
    for node in nodes:
        node.terminate()
    for node in nodes:
        node.start()


@pytest.mark.parametrize('how', [stopped, killed], ids=lambda f: f.__name__)
@pytest.mark.parametrize('which', ['master', 'storage', 'all', 'replica'])
def test_restart_under_load(new_cluster, which, how):
    """Threads that load and commit go on after nodes were restarted; nothing is lost."""
    replicas = int(which == 'replica')
    cluster = new_cluster(storages=1 + replicas, replicas=replicas).start()
    nodes = {'master': cluster.masters, 'storage': cluster.storages,
             'replica': cluster.storages[:1], 'all': cluster.nodes}[which]
    with Load(cluster, processes=2, threads=3, may_fail=True) as load:
        load.wait_each(PATIENCE)
        for _ in range(2):
            how(*nodes)
            cluster.wait_running()
            load.wait_each(PATIENCE)
        load.stop()
    # Only StorageError, beside the conflicts that are counted apart.
    print(dict(load.errors))
    assert {x.partition(':')[0] for x in load.errors} <= {'NEOStorageError'}, dict(load.errors)
    assert load.check_history() > 0


def test_load_waits_for_the_cluster(cluster):
    """A load while the cluster is away waits, and succeeds when it is back."""
    storage = cluster.storage(cache_size=0)
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'data'})
    cluster.kill9()
    tasks = [Task(load, storage, oid) for _ in range(4)] + [Task(storage.sync)]
    for node in cluster.nodes:
        node.start()
    for task in tasks[:-1]:
        assert task.result() == (b'data', tid)
    tasks[-1].result()


def test_transaction_of_a_former_master(cluster):
    """A transaction that was begun at a master that is gone fails; the next one works."""
    storage = cluster.storage()
    oid = storage.new_oid()
    txn = transaction.Transaction()
    storage.tpc_begin(txn)
    storage.store(oid, z64, b'lost', '', txn)
    cluster.masters[0].kill9()
    cluster.masters[0].start()
    with pytest.raises(StorageError, match='connection to the primary master was lost'):
        # It may be voted on the storages before the loss is known.
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            storage.store(oid, z64, b'lost', '', txn)
    storage.tpc_abort(txn)
    tid = commit(storage, {oid: b'found'})
    assert load(storage, oid) == (b'found', tid)


# The network


@pytest.mark.parametrize('after', [0, 1, 9, 1000, 65536, len(BIG)])
def test_reset_in_the_middle_of_an_answer(network, after):
    """A load whose answer is cut at any byte is asked again."""
    writer = network.cluster.storage()
    oid = writer.new_oid()
    tid = commit(writer, {oid: BIG})
    storage = network.cluster.storage(cache_size=0)
    assert load(storage, oid) == (BIG, tid)     # connected
    proxy, = network.storages
    proxy.cut(DOWN, after)
    assert Task(load, storage, oid).result() == (BIG, tid)
    proxy.wait_cut()
    assert load(storage, oid) == (BIG, tid)


def test_resets_under_load(network):
    """Connections that are reset again and again, to the master and to the storage."""
    cluster = network.cluster
    with Load(cluster, processes=1, threads=4, may_fail=True) as load:
        load.wait_each(PATIENCE)
        for i in range(6):
            proxy = (network.master, network.storages[0])[i % 2]
            direction = (DOWN, UP)[i // 2 % 2]
            cuts = proxy.cuts
            proxy.cut(direction, 137 * i)
            proxy.wait_cut(cuts + 1)
            load.wait_each(PATIENCE)
        load.stop()
    assert {x.partition(':')[0] for x in load.errors} <= {'NEOStorageError'}, dict(load.errors)
    assert load.check_history() > 0


def test_store_to_a_connection_that_is_reset(network):
    """A transaction whose stores are lost fails at once and can be tried again."""
    storage = network.cluster.storage()
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'first'})
    network.storages[0].cut(UP, 100_000)
    with pytest.raises(StorageError, match='no storage available to write to partition'):
        Task(commit, storage, {oid: BIG}, lambda: None, tid).result()
    network.storages[0].wait_cut()
    assert load(storage, oid) == (b'first', tid)
    tid = commit(storage, {oid: BIG}, serial=tid)
    assert load(storage, oid) == (BIG, tid)


@pytest.mark.parametrize('after', [0, 1, 12])
def test_answer_to_the_commit_is_lost(network, after):
    """The master committed, but its answer is lost: the client asks, and reports the commit."""
    storage = network.cluster.storage()
    other = network.cluster.storage()
    oid = storage.new_oid()
    tid = Task(commit, storage, {oid: b'data'},
               lambda: network.master.cut(DOWN, after)).result()
    network.master.wait_cut()
    assert tid == storage.lastTransaction()
    assert load(storage, oid) == (b'data', tid)
    assert is_committed(network.cluster, oid) == (b'data', tid)
    other.sync()
    assert other.lastTransaction() == tid
    # The history goes on.
    assert commit(storage, {oid: b'more'}, serial=tid) > tid


def test_request_to_commit_is_lost(network):
    """The master was never asked to commit: the client asks, and reports the failure."""
    storage = network.cluster.storage()
    oid = storage.new_oid()
    before = storage.lastTransaction()
    with pytest.raises(StorageError, match='is not committed: the connection to the master'):
        Task(commit, storage, {oid: b'data'}, lambda: network.master.cut(UP)).result()
    network.master.wait_cut()
    assert is_committed(network.cluster, oid) is None
    storage.sync()
    assert storage.lastTransaction() == before
    tid = commit(storage, {oid: b'again'})
    assert load(storage, oid) == (b'again', tid)


@pytest.mark.parametrize('direction', [UP, DOWN])
def test_outcome_is_known_after_all_restarted(network, direction):
    """The answer is lost and all nodes die: what the client reports is what is there."""
    cluster = network.cluster
    storage = cluster.storage()
    oids = {storage.new_oid(): b'data' for _ in range(3)}
    task = Task(commit, storage, oids, lambda: network.master.cut(direction))
    network.master.wait_cut()
    cluster.kill9()
    for node in cluster.nodes:
        node.start()
    cluster.wait_running()
    try:
        tid = task.result()
    except StorageError as e:
        assert re.search('is not committed', str(e))
        tid = None
    found = {is_committed(cluster, oid) for oid in oids}
    assert found == {tid and (b'data', tid)}
    if direction is UP:
        # The storages were never told to lock: nobody could have committed it.
        assert tid is None


def test_invalidations_that_were_missed(network):
    """What others committed while the connection was lost is seen afterwards."""
    cluster = network.cluster
    db, other = cluster.db(), cluster.db()
    with db.transaction() as conn:
        conn.root()['a'] = 0
    conn = db.open(transaction.TransactionManager())
    assert conn.root()['a'] == 0
    # The client does not notice before it is connected again, and the other one commits.
    network.master.hold(DOWN)
    network.master.reset()
    network.master.release()
    with other.transaction() as c:
        c.root()['a'] = 1
    conn.transaction_manager.begin()
    assert conn.root()['a'] == 1
    conn.transaction_manager.abort()
    conn.close()


@pytest.mark.parametrize('which', ['master', 'storages', 'both'])
def test_idle_connection_that_was_forgotten(network, which):
    """After a long time without traffic, a gateway has forgotten the connections."""
    storage = network.cluster.storage(cache_size=0)
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'data'})
    assert load(storage, oid) == (b'data', tid)
    if which != 'storages':
        network.master.forget()
    if which != 'master':
        network.storages[0].forget()
    assert Task(load, storage, oid).result() == (b'data', tid)
    Task(storage.sync).result()
    deadline = time.monotonic() + PATIENCE
    while True:
        # One transaction may fail: it was begun, or stored, on what was forgotten.
        try:
            tid = Task(commit, storage, {oid: b'more'}, lambda: None, tid).result()
            break
        except StorageError:
            assert time.monotonic() < deadline
    assert load(storage, oid) == (b'more', tid)


def test_connections_are_kept_alive(cluster):
    """The kernel probes idle connections: a gateway does not forget them, and a peer that is gone
    is noticed."""
    storage = cluster.storage(cache_size=0)
    oid = storage.new_oid()
    commit(storage, {oid: b'data'})
    inodes = set()
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            inodes.update(re.findall(r'socket:\[(\d+)\]', os.readlink(f'/proc/self/fd/{fd}')))

    def timers():
        """Timer of each connection of this process; 02 is that of the probes."""
        with open('/proc/self/net/tcp') as f:
            rows = [line.split() for line in f.readlines()[1:]]
        return [row[5].partition(':') for row in rows
                if row[9] in inodes and row[3] == '01']
    wait_for(lambda: timers() and {x[0] for x in timers()} == {'02'}, 'idle connections')
    assert len(timers()) >= 2   # master, storage
    longest = max(int(x[2], 16) for x in timers()) / os.sysconf('SC_CLK_TCK')
    assert longest <= 60


# The cluster stops


def test_cluster_stopping(cluster):
    """Threads that load and commit while the cluster is told to stop, and is started again."""
    storages = [cluster.storage(cache_size=0) for _ in range(2)]
    oids = [storage.new_oid() for storage in storages for _ in range(2)]
    tids = {oid: commit(storages[0], {oid: b'0'}) for oid in oids}
    ending = threading.Event()
    errors = []

    def work(storage, oid):
        number = 0
        while not ending.is_set():
            try:
                data, serial = load(storage, oid)
                assert int(data) >= number, 'lost'
                number = int(data)
                commit(storage, {oid: b'%d' % (number + 1)}, serial=serial)
                number += 1
            except StorageError as e:
                errors.append(e)
        return number
    tasks = [Task(work, storages[i % 2], oid) for i, oid in enumerate(oids)]
    wait_for(lambda: all(load(storages[0], oid)[1] > tids[oid] for oid in oids), 'commits')
    for status in cluster.stop().values():
        assert status == 0
    # Nobody guesses, nobody spins: those that wait, wait.
    count = len(errors)
    assert all(task.is_alive() for task in tasks)
    assert count <= len(tasks)
    for node in cluster.nodes:
        node.start()
    cluster.wait_running()
    last = {oid: load(storages[0], oid)[1] for oid in oids}
    wait_for(lambda: all(load(storages[0], oid)[1] > last[oid] for oid in oids), 'commits')
    ending.set()
    numbers = [task.result() for task in tasks]
    for number, oid in zip(numbers, oids):
        assert int(load(storages[0], oid)[0]) == number
    assert all(re.search('connection to the primary master was lost|is not committed|refused|'
                         'can not be left out|no storage available', str(e)) for e in errors), errors


# No cluster


def test_connect_timeout(cluster):
    """With `connect_timeout`, calls do not wait for a cluster that is away for longer."""
    storage = cluster.storage(cache_size=0, connect_timeout=1)
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'data'})
    cluster.kill9()
    for call in (lambda: load(storage, oid), storage.sync, lambda: commit(storage, {oid: b''})):
        with pytest.raises(StorageError, match='no primary master could be reached'):
            Task(call).result()
    for node in cluster.nodes:
        node.start()
    cluster.wait_running()
    assert load(storage, oid) == (b'data', tid)


def test_interrupt(cluster):
    """Ctrl-C ends a call that waits for a cluster that is away."""
    code = '''if 1:
        import sys
        from neo.client.Storage import Storage
        def open_storage():
            return Storage(master_nodes=sys.argv[1], name=sys.argv[2])
        storage = open_storage()
        print('open', flush=True)
        for call in storage.sync, open_storage:
            sys.stdin.readline()
            try:
                print('waits', flush=True)
                call()
            except KeyboardInterrupt:
                print('interrupted', flush=True)
    '''
    with subprocess.Popen(
            [sys.executable, '-c', code, cluster.master_nodes, cluster.name], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        def is_asleep():
            with open(f'/proc/{process.pid}/stat') as f:
                return f.read().rpartition(') ')[2][0] == 'S'
        try:
            assert process.stdout.readline() == 'open\n'
            cluster.kill9()
            for _ in range(2):
                process.stdin.write('go\n')
                process.stdin.flush()
                assert process.stdout.readline() == 'waits\n'
                wait_for(is_asleep, 'the call')
                process.send_signal(signal.SIGINT)
                assert Task(process.stdout.readline).result() == 'interrupted\n'
        finally:
            process.kill()


@pytest.mark.parametrize('busy', ['loading', 'waiting'])
def test_close_while_threads_load(cluster, busy):
    """Closing ends what other threads wait for, with a clear error."""
    storage = cluster.storage(cache_size=0)
    oids = [storage.new_oid() for _ in range(8)]
    commit(storage, dict.fromkeys(oids, b'data'))

    def work(oid):
        while True:
            load(storage, oid)
    if busy == 'waiting':
        cluster.kill9()
    tasks = [Task(work, oid) for oid in oids]
    txn = transaction.Transaction()
    if busy == 'loading':
        storage.tpc_begin(txn)
        storage.store(storage.new_oid(), z64, b'data', '', txn)
    else:
        tasks.append(Task(storage.sync))
        tasks.append(Task(storage.tpc_begin, txn))
    Task(storage.close).result()
    for task in tasks:
        with pytest.raises(StorageError, match='the client is closed'):
            task.result()
    with pytest.raises(StorageError, match='the client is closed'):
        load(storage, oids[0])
    if busy == 'loading':
        with pytest.raises(StorageError, match='the client is closed'):
            storage.tpc_vote(txn)
    storage.tpc_abort(txn)
    storage.close()     # twice does no harm


def test_close_during_commit(network):
    """Closing while the outcome of a commit is not known says so."""
    storage = network.cluster.storage()
    oid = storage.new_oid()
    asked = []

    def before_finish():
        network.master.hold(DOWN)
        asked.append(network.master.forwarded[UP])
    task = Task(commit, storage, {oid: b'data'}, before_finish)
    wait_for(lambda: asked and network.master.forwarded[UP] > asked[0], 'the commit to be asked')
    Task(storage.close).result()
    with pytest.raises(StorageError, match='closed before it was known whether'):
        task.result()


# Clients of another kind


def test_read_only_client(cluster):
    """A read-only client reads, sees what others commit, and refuses to write."""
    writer = cluster.db()
    with writer.transaction() as conn:
        conn.root()['a'] = 1
    reader = cluster.db(read_only=True)
    storage = reader.storage
    assert storage.isReadOnly()
    with reader.transaction() as conn:
        assert conn.root()['a'] == 1
    with writer.transaction() as conn:
        conn.root()['a'] = 2
    storage.sync()
    with reader.transaction() as conn:
        assert conn.root()['a'] == 2
    txn = transaction.Transaction()
    for call in (storage.new_oid, lambda: storage.tpc_begin(txn),
                 lambda: storage.store(z64, z64, b'', '', txn),
                 lambda: storage.deleteObject(z64, z64, txn),
                 lambda: storage.undo(z64, txn)):
        with pytest.raises(ReadOnlyError):
            call()
    with pytest.raises(ReadOnlyError):
        with reader.transaction() as conn:
            conn.root()['a'] = 3
    # It survives the trouble of others.
    cluster.masters[0].kill9()
    cluster.masters[0].start()
    cluster.wait_running()
    with reader.transaction() as conn:
        assert conn.root()['a'] == 2


def test_fork(cluster):
    """A child process is told to open its own storage; its parent notices nothing."""
    storage = cluster.storage(cache_size=0)
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'data'})
    ending = threading.Event()

    def work():
        count = 0
        while not ending.is_set():
            assert load(storage, oid) == (b'data', tid)
            count += 1
        return count
    tasks = [Task(work) for _ in range(3)]
    for _ in range(5):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            # Nothing of pytest may run here.
            try:
                signal.alarm(int(PATIENCE))
                lines = []
                for call in (lambda: load(storage, oid), storage.sync, storage.new_oid,
                             storage.lastTransaction,
                             lambda: storage.tpc_begin(transaction.Transaction())):
                    try:
                        call()
                        lines.append('no error')
                    except StorageError as e:
                        lines.append(str(e))
                storage.close()
                from neo.client.Storage import Storage
                own = Storage(master_nodes=cluster.master_nodes, name=cluster.name)
                lines.append(repr(load(own, oid) == (b'data', tid)))
                own.close()
                del own
                os.write(writer, '\n'.join(lines).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as f:
            lines = f.read().splitlines()
        assert os.waitpid(pid, 0)[1] == 0
        assert lines[-1] == 'True', lines
        for line in lines[:-1]:
            assert 'opened before a fork' in line, lines
    ending.set()
    assert all(task.result() > 0 for task in tasks)
    tid = commit(storage, {oid: b'more'}, serial=tid)
    assert load(storage, oid) == (b'more', tid)


def test_conflict_is_a_conflict(network):
    """Trouble of the network does not turn conflicts into other errors, nor others into conflicts."""
    storage, other = (network.cluster.storage() for _ in range(2))
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'0'})
    commit(other, {oid: b'1'}, serial=tid)
    network.storages[0].reset()
    for _ in range(2):
        try:
            commit(storage, {oid: b'2'}, serial=tid)
        except ConflictError as e:
            assert e.oid == oid
            break
        except StorageError:
            pass    # the store went to the connection that was reset
    else:
        pytest.fail('no conflict')


# Data


def test_damaged_object(cluster):
    """An object whose only copy is damaged is an error, unless it is to be rescued."""
    storage = cluster.storage()
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'right data'})
    cluster.stop()
    with sqlite3.connect(cluster.database(0)) as db:
        assert db.execute("UPDATE data SET value='wrong data' WHERE value=?",
                          (b'right data',)).rowcount == 1
    for node in cluster.nodes:
        node.start()
    cluster.wait_running()
    with pytest.raises(NEOStorageWrongChecksum, match='wrong checksum of object'):
        Task(load, cluster.storage(), oid).result()
    rescue = cluster.storage(ignore_wrong_checksum=True)
    assert load(rescue, oid) == (b'wrong data', tid)
    # What was loaded before is still in the cache of the first one; others are as they were.
    assert storage.loadBefore(oid, tid) is None
    tid = commit(storage, {oid: b'new data'}, serial=tid)
    assert load(cluster.storage(), oid) == (b'new data', tid)


def test_client_of_a_backup_cluster(new_cluster):
    """A cluster in backup mode takes read-only clients; others are told why it refuses them."""
    cluster = new_cluster(name='origin').start()
    storage = cluster.storage()
    oid = storage.new_oid()
    tid = commit(storage, {oid: b'data'})
    backup = new_cluster(name='copy')
    backup.masters[0].args += ['--upstream-cluster', cluster.name,
                               '--upstream-masters', cluster.master_nodes]
    backup.start()
    backup.ctl('set', 'cluster', 'starting_backup')
    backup.wait_state('BACKINGUP')
    with pytest.raises(ReadOnlyError):
        Task(backup.storage).result()
    with pytest.raises(ReadOnlyError):
        Task(commit, backup.storage(read_only=True), {oid: b''}).result()

    def seen(data, tid):
        # As upstream's masters, ours do not tell clients what is copied: they see what was there when
        # they connected.
        reader = backup.storage(read_only=True)
        try:
            found = reader.loadBefore(oid, p64(u64(reader.lastTransaction()) + 1))
        except POSException.POSKeyError:
            return False
        finally:
            reader.close()
        return found and found[:2] == (data, tid)
    for data, following in (b'data', b'more'), (b'more', b'even more'):
        wait_for(lambda: seen(data, tid), 'the transaction to be copied')
        tid = commit(storage, {oid: following}, serial=tid)
