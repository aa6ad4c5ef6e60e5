# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines and configuration files of the executables.

What a node understood is seen from outside: the address that it listens on, the
number of partitions, the identifier that it got.
"""

import pytest

from cluster import free_port, run, wait_for

upstream_fails = pytest.mark.upstream_fails


@pytest.fixture
def config_cluster(new_cluster, tmp_path):
    """A cluster whose nodes get all their options from a file that the test writes.

    `start(text, master=.., storage=.., admin=..)`: lists of arguments.
    """
    cluster = new_cluster()

    def start(text, **arguments):
        path = tmp_path / 'neo.conf'
        path.write_text(text.format(masters=cluster.master_nodes, admin=cluster.admin_address,
                                    database=cluster.database(0)))
        for node, kind in ((cluster.masters[0], 'master'), (cluster.storages[0], 'storage'),
                           (cluster.admin, 'admin')):
            node.args = [str(path) if x == 'FILE' else x for x in arguments[kind]]
            node.start()
        cluster.wait_pending(1)
        cluster.ctl('start')
        cluster.wait_running()
        return cluster
    return start


def partitions(cluster):
    """Number of partitions, read in the table that neoctl shows."""
    return len(cluster.ctl('print', 'pt').splitlines()[-1].split()[-1])


# Executables


@pytest.mark.parametrize('command', ['neomaster', 'neostorage', 'neoadmin', 'neoctl'])
def test_help(command):
    for option in '-h', '--help':
        result = run(command, option)
        assert result.returncode == 0
        assert result.stdout.startswith(('usage: ' + command, 'Usage: ' + command))
        assert '--logfile' in result.stdout


@pytest.mark.parametrize('command, arguments, message', [
    ('neomaster', '-c x --bogus', '--bogus'),
    ('neomaster', '', '--cluster'),
    ('neostorage', '-c x -m 127.0.0.1:1', '--database'),
    ('neoadmin', '', '--cluster'),
    ('neomaster', '-c x -p y', 'partitions'),
    ('neomaster', '-c x --partitions', 'partitions'),
    ('neostorage', '-c x -d y -a Bogus', 'Bogus'),
    ('neostorage', '-c x -d y --disable 1', '--disable'),
    ('neoctl', '--bogus', '--bogus'),
])
def test_usage_error(command, arguments, message):
    """Wrong options: usage and a message on stderr, status 2."""
    result = run(command, *arguments.split())
    assert result.returncode == 2
    assert result.stdout == ''
    assert result.stderr.lower().startswith('usage: ' + command)
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f'{command}: error: ') and message in last


@pytest.mark.parametrize('arguments, message', [
    ('-p 0', 'partitions must be more than zero'),
    ('-p -1', 'partitions must be more than zero'),
    ('-r -1', 'replicas must be a positive integer'),
])
def test_wrong_value(arguments, message):
    result = run('neomaster', '-c', 'x', '-m', '', *arguments.split())
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == message


# Command line


def test_old_and_short_spellings(new_cluster):
    """Unique prefixes, glued values, the last of repeated options wins."""
    cluster = new_cluster()
    master, storage, admin = cluster.nodes
    master.args = ['--clus', 'wrong', f'-c{cluster.name}', f'--bind={cluster.master_nodes}',
                   '--part', '3', '-p', '5', '-r0']
    storage.args = ['--clu', cluster.name, '--mast', cluster.master_nodes, '-aSQLite',
                    '--data', str(cluster.database(0)), '-b', '127.0.0.1:0']
    admin.args = ['-c', cluster.name, '-m', '127.0.0.1:1', f'-m{cluster.master_nodes}',
                  f'-b{cluster.admin_address}']
    cluster.start()
    assert partitions(cluster) == 5
    result = run('neoctl', '--addr', cluster.admin_address, 'print', 'cluster')
    assert (result.returncode, result.stdout) == (0, 'RUNNING\n')


@upstream_fails('HEAD does not know the options of release 0.9 any more')
def test_spellings_of_0_9(new_cluster):
    """`-v`, `-n NAME`, and master nodes separated by `/`."""
    cluster = new_cluster(masters=1)
    unused = f'127.0.0.1:{free_port()}'
    masters = f'{cluster.master_nodes}/{unused}'
    master, storage, admin = cluster.nodes
    master.args = ['-v', '-n', 'm1', '-c', cluster.name, '-b', cluster.master_nodes,
                   '-m', masters, '-p', '5']
    storage.args = ['--verbose', '--name', 's1', '-c', cluster.name, '-m', masters,
                    '-a', 'SQLite', '-d', str(cluster.database(0)), '-b', '127.0.0.1:0']
    admin.args = ['-v', '-c', cluster.name, '-m', masters, '-b', cluster.admin_address]
    cluster.start()
    assert partitions(cluster) == 5
    result = run('neoctl', '-v', '-a', cluster.admin_address, 'print', 'cluster')
    assert (result.returncode, result.stdout) == (0, 'RUNNING\n')


def test_reset_of_0_9_is_refused(new_cluster):
    """`-R` emptied the database in release 0.9 and was dropped later: never guessed."""
    cluster = new_cluster().start()
    cluster.db().close()
    cluster.stop()
    size = cluster.database(0).stat().st_size
    storage = cluster.storages[0]
    storage.args.append('-R')
    storage.start()
    assert storage.wait() == 2
    assert '-R' in storage.output()
    assert cluster.database(0).stat().st_size == size


@pytest.mark.parametrize('form', [['--nid', '{}'], ['--nid={}'], ['-i', '{}'], ['-i{}']])
def test_nid(new_cluster, form):
    """Identifiers given by hand, negative for all but storages."""
    cluster = new_cluster()
    for node, nid in zip(cluster.nodes, (-268435456 + 3, 5, -805306368 + 7)):
        node.args[:0] = [x.format(nid) for x in form]
    cluster.start()
    assert [x[0] for x in cluster.node_list()] == ['A7', 'M3', 'S5']
    assert cluster.ctl('print', 'primary') == 'M3'


# Configuration file

CONFIG = '''\
# Comment
[DEFAULT]
cluster: test
masters: {masters}
partitions = 7
replicas: 0

[admin]
bind: {admin}

[master]
bind: {masters}
; comment
[storage]
adapter: SQLite
database: {database}
bind: 127.0.0.1:0
no_such_option: is ignored
'''


@upstream_fails('-f alone: on Python 3, required options must be on the command line too')
def test_config_file_alone(config_cluster):
    """Everything is in the file, in the section of the kind of the node."""
    cluster = config_cluster(CONFIG, master=['-f', 'FILE'], storage=['--file', 'FILE'],
                             admin=['-f', 'FILE'])
    assert partitions(cluster) == 7


def required(**arguments):
    """What upstream on Python 3 needs on the command line, file or not."""
    add = ['-c', 'test', '-f', 'FILE']
    return {'master': add + arguments.get('master', []),
            'storage': add + arguments['storage'],
            'admin': add + arguments.get('admin', [])}


def test_precedence(config_cluster, new_cluster):
    """Command line over section over [DEFAULT] over what is built in."""
    for partitions_wanted, text, master in (
            (7, CONFIG, []),
            (6, CONFIG.replace('; comment', 'partitions: 6'), []),
            (6, CONFIG.replace('; comment', 'PARTITIONS = 6'), []),
            (9, CONFIG.replace('; comment', 'partitions: 6'), ['--part', '9']),
            (100, CONFIG.replace('partitions = 7', ''), [])):
        database = new_cluster().database(0)  # a new one each time
        cluster = config_cluster(text, **required(
            master=master, storage=['-d', str(database)]))
        assert partitions(cluster) == partitions_wanted
        cluster.stop()


def test_sections(config_cluster, new_cluster):
    """`-s` chooses the section; values may refer to others."""
    text = CONFIG.replace('[master]', '[first master]\npartitions: 1%(replicas)s').replace(
        '[storage]', '[st_1]')
    cluster = config_cluster(text, **required(
        master=['-s', 'first master'],
        storage=['--section', 'st_1', '-d', str(new_cluster().database(0))]))
    assert partitions(cluster) == 10


@upstream_fails('a traceback for a file without the section or that does not exist')
@pytest.mark.parametrize('arguments, message', [
    (['-s', 'nowhere'], 'nowhere'), (['-f', '/nonexistent/neo.conf'], '/nonexistent/neo.conf')])
def test_config_missing(tmp_path, arguments, message):
    """A missing file or section: a clear error, status 1."""
    path = tmp_path / 'neo.conf'
    path.write_text('[master]\ncluster: x\n')
    result = run('neomaster', '-c', 'x', '-f', path, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_masters_that_do_not_answer(new_cluster):
    """A storage that finds no master keeps trying, and is found when one starts."""
    cluster = new_cluster()
    cluster.storages[0].start()
    cluster.admin.start()
    wait_for(lambda: 'primary master' in cluster.ctl_run('print', 'cluster').stderr,
             'the admin node')
    assert cluster.storages[0].alive
    cluster.masters[0].start()
    cluster.wait_pending(1)
