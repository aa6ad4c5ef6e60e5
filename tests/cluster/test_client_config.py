# SPDX-License-Identifier: GPL-2.0-or-later
"""How an application says where its cluster is: ZConfig and zodburi."""

import json
import os
import subprocess
import sys

import pytest
import transaction
import ZConfig
import ZODB.config
from ZODB.utils import z64

# What upstream's section has, and what it is by default. There are more here.
KEYS = {
    'master_nodes': None, 'name': None, 'compress': None, 'read-only': None, 'logfile': None,
    'cache-size': 20 << 20, 'dynamic_master_list': None, 'ignore-wrong-checksum': None,
    'ca': None, 'cert': None, 'key': None,
}


def section(tag='NEOStorage', **keys):
    lines = ''.join(f'    {key.replace("__", "-")} {value}\n' for key, value in keys.items())
    return f'%import neo.client\n<{tag}>\n{lines}</{tag}>\n'


@pytest.fixture
def arguments(monkeypatch):
    """What `Storage` is called with, rather than opening one."""
    import neo.client.Storage
    calls = []

    class Recorder:
        def __init__(self, **kw):
            calls.append(kw)
    monkeypatch.setattr(neo.client.Storage, 'Storage', Recorder)
    return calls


@pytest.fixture
def pem(tmp_path):
    """Existing files, for what is about TLS."""
    files = {}
    for name in 'ca', 'cert', 'key':
        files[name] = tmp_path / f'{name}.pem'
        files[name].write_text('')
    return files


# ZConfig


def test_all_keys(arguments, pem, tmp_path):
    """Each key of the section arrives as the argument of the same name, converted."""
    ZODB.config.storageFromString(section(
        master_nodes='127.0.0.1:10000 [::1]:10001', name='main', compress='zlib=3',
        read__only='yes', logfile=tmp_path / 'client.log', cache__size='1GB',
        dynamic_master_list=tmp_path / 'masters', ignore__wrong__checksum='on',
        connect__timeout='2.5', **pem))
    call, = arguments
    expected = dict(
        master_nodes='127.0.0.1:10000 [::1]:10001', name='main', compress='zlib=3',
        read_only=True, logfile=str(tmp_path / 'client.log'), cache_size=1 << 30,
        dynamic_master_list=str(tmp_path / 'masters'), ignore_wrong_checksum=True,
        connect_timeout=2.5, **{name: str(path) for name, path in pem.items()})
    assert {key.replace('-', '_') for key in KEYS} < set(expected)
    assert {key: call[key] for key in expected} == expected


def test_defaults(arguments):
    """What is not said is upstream's default; the name of the section has no case."""
    for tag in 'NEOStorage', 'neostorage', 'NeoStorage':
        ZODB.config.storageFromString(section(tag, master_nodes='a:1', name='main'))
    expected = {key.replace('-', '_'): default for key, default in KEYS.items()}
    expected.update(master_nodes='a:1', name='main')
    for call in arguments:
        assert {key: call[key] for key in expected} == expected
        # What is not upstream's changes nothing either.
        assert {call[key] for key in set(call) - set(expected)} == {None}
    assert len(arguments) == 3


@pytest.mark.parametrize('text, value', [
    ('true', True), ('false', False), ('on', True), ('no', False), ('zlib', 'zlib'),
    ('zlib=9', 'zlib=9')])
def test_compress(arguments, text, value):
    ZODB.config.storageFromString(section(master_nodes='a:1', name='main', compress=text))
    assert arguments[0]['compress'] == value


@pytest.mark.parametrize('keys, message', [
    (dict(name='main'), 'no values for'),
    (dict(master_nodes='a:1'), 'no values for'),
    (dict(master_nodes='a:1', name='main', unknown='1'), 'not a known key'),
    (dict(master_nodes='a:1', name='main', compress='lzma'), "not a valid 'compress' option"),
    (dict(master_nodes='a:1', name='main', compress='zlib=10'), "not a valid 'compress' option"),
    (dict(master_nodes='a:1', name='main', read__only='maybe'), 'boolean'),
    (dict(master_nodes='a:1', name='main', cache__size='many'), 'many'),
    (dict(master_nodes='a:1', name='main', logfile='/no/such/directory/log'), '/no/such'),
    (dict(master_nodes='a:1', name='main', dynamic_master_list='/no/such/directory/x'), '/no/such'),
    (dict(master_nodes='a:1', name='main', ca='/no/such/ca.pem'), '/no/such'),
], ids=lambda x: x if isinstance(x, str) else '+'.join(x))
def test_wrong_section(arguments, keys, message):
    """A mistake is told when the configuration is read, before anything is opened."""
    with pytest.raises(ZConfig.ConfigurationError, match=message):
        ZODB.config.storageFromString(section(**keys))
    assert arguments == []


@pytest.mark.parametrize('options', ['', '?ca={ca}&cert={cert}&key={key}', '?key={key}'])
def test_tls_is_refused(pem, options):
    """There is no TLS yet: a clear error, rather than a connection without it."""
    if options:
        from zodburi import resolve_uri
        factory, _ = resolve_uri('neo://main@127.0.0.1:1' + options.format(**pem))
    else:
        def factory():
            return ZODB.config.storageFromString(
                section(master_nodes='127.0.0.1:1', name='main', **pem))
    with pytest.raises(ValueError, match='TLS is not available yet'):
        factory()


def test_database(cluster, tmp_path):
    """A database from a configuration file, with all options that change what can be seen."""
    conf = tmp_path / 'zodb.conf'
    conf.write_text('%import neo.client\n<zodb main>\n  pool-size 3\n' + section(
        master_nodes=cluster.master_nodes, name=cluster.name, compress='false',
        logfile=tmp_path / 'client.log', dynamic_master_list=tmp_path / 'masters',
        cache__size='1MB', connect__timeout=30).partition('\n')[2] + '</zodb>\n')
    # In a process of its own: there can be only one log file.
    code = '''if 1:
        import sys, transaction, ZODB.config
        db = ZODB.config.databaseFromURL(sys.argv[1])
        assert (db.database_name, db.pool.size) == ('main', 3)
        with db.transaction() as conn:
            conn.root()['text'] = 'x' * 10000
            oid = conn.root()._p_oid
        assert db.storage.history(oid)[0]['size'] > 10000
        db.close()
    '''
    subprocess.run([sys.executable, '-c', code, conf], check=True, timeout=60)
    assert (tmp_path / 'client.log').exists()
    host, port = cluster.master_nodes.split(':')
    assert json.loads((tmp_path / 'masters').read_text()) == [[host, int(port)]]
    # The list is enough to find the cluster.
    storage = ZODB.config.storageFromString(section(
        master_nodes='127.0.0.1:1', name=cluster.name,
        dynamic_master_list=tmp_path / 'masters', read__only='true'))
    assert storage.isReadOnly()
    assert len(storage.loadBefore(z64, b'\x7f' + b'\xff' * 7)[0]) > 10000
    storage.close()


# zodburi


def resolve(uri):
    """(arguments of Storage, options of the database)"""
    from neo.client.zodburi import parse
    return parse(uri)


def test_uri():
    assert resolve('neo://main@127.0.0.1:10000') == (
        dict(master_nodes='127.0.0.1:10000', name='main'), {})
    assert resolve('neo://a%2Fb%40c@m1:1,[::1]:2,m3') == (
        dict(master_nodes='m1:1 [::1]:2 m3', name='a/b@c'), {})


def test_uri_options(arguments, pem, tmp_path):
    """Options of the storage, in both spellings, and options of the database."""
    from zodburi import resolve_uri
    for sign in '_', '-':
        options = '&'.join(f'{key.replace("_", sign)}={value}' for key, value in dict(
            compress='zlib=3', read_only=1, logfile=tmp_path / 'log', cache_size='1MB',
            dynamic_master_list=tmp_path / 'masters', ignore_wrong_checksum='true',
            connect_timeout=5, **pem).items())
        factory, database = resolve_uri(f'neo://main@m1:1,m2:2?{options}&connection_pool_size=3'
                                        '&connection_cache_size=100&database_name=other')
        factory()
        assert database == dict(pool_size=3, cache_size=100, database_name='other')
        assert arguments.pop() == dict(
            master_nodes='m1:1 m2:2', name='main', compress='zlib=3', read_only=True,
            logfile=str(tmp_path / 'log'), cache_size='1MB', connect_timeout=5,
            dynamic_master_list=str(tmp_path / 'masters'), ignore_wrong_checksum=True,
            **{name: str(path) for name, path in pem.items()})


@pytest.mark.parametrize('value, expected', [
    ('1', True), ('true', True), ('yes', True), ('on', True), ('True', True),
    ('0', False), ('false', False), ('no', False), ('off', False)])
def test_uri_boolean(value, expected):
    """As zodbtools writes them, and as ZConfig does."""
    assert resolve(f'neo://main@m?read_only={value}')[0]['read_only'] is expected
    assert resolve(f'neo://main@m?compress={value}')[0]['compress'] is expected


@pytest.mark.parametrize('uri, message', [
    ('file://main@m', 'expected neo:// or neos:// scheme'),
    ('neo://main@m/path', 'path'),
    ('neo://main@m#fragment', 'fragment'),
    ('neo://m', 'expected name@master1,master2'),
    ('neo://main@', 'expected name@master1,master2'),
    ('neo://@m', 'expected name@master1,master2'),
    ('neo://main@m?name=other', 'invalid option name'),
    ('neo://main@m?master-nodes=other', 'invalid option master-nodes'),
    ('neo://main@m?read_only=maybe', 'read_only: not a boolean'),
    ('neo://main@m?connect_timeout=soon', 'connect_timeout'),
])
def test_wrong_uri(uri, message):
    with pytest.raises(ValueError, match=message) as e:
        resolve(uri)
    assert uri in str(e.value)


def test_neos(arguments, pem, monkeypatch):
    """`neos://` wants TLS: credentials come from the URI, otherwise from the environment."""
    for name in pem:
        monkeypatch.delenv('NEO_' + name.upper(), raising=False)
    with pytest.raises(ValueError, match=r'option ca not specified and \$NEO_CA not set'):
        resolve('neos://main@m')
    monkeypatch.setenv('NEO_CA', str(pem['ca']))
    monkeypatch.setenv('NEO_CERT', '')
    with pytest.raises(ValueError, match=r'option cert not specified and \$NEO_CERT not set'):
        resolve('neos://main@m')
    monkeypatch.setenv('NEO_CERT', str(pem['cert']))
    monkeypatch.setenv('NEO_KEY', '/other/key.pem')
    assert resolve(f'neos://main@m?key={pem["key"]}') == (
        dict(master_nodes='m', name='main', **{k: str(v) for k, v in pem.items()}), {})
    # Without `s`, the environment does not matter.
    assert resolve('neo://main@m') == (dict(master_nodes='m', name='main'), {})


def test_database_of_uri(cluster):
    """The way of pyramid_zodbconn: the URI gives a factory and the options of the database."""
    from zodburi import resolve_uri
    factory, options = resolve_uri(
        f'neo://{cluster.name}@{cluster.master_nodes.replace(" ", ",")}'
        '?compress=0&connection_pool_size=2')
    db = ZODB.DB(factory(), **options)
    assert db.pool.size == 2
    with db.transaction() as conn:
        conn.root()['a'] = 1
    db.close()
    factory, options = resolve_uri(f'neo://{cluster.name}@{cluster.master_nodes}?read-only=yes')
    db = ZODB.DB(factory(), **options)
    conn = db.open(transaction.TransactionManager())
    assert conn.root()['a'] == 1
    conn.close()
    db.close()


def test_unknown_database_option():
    """zodburi tells what nobody understands."""
    from zodburi import UnknownDatabaseKeywords, resolve_uri
    with pytest.raises(UnknownDatabaseKeywords, match='spelling'):
        resolve_uri('neo://main@127.0.0.1:1?spelling=wrong')


@pytest.mark.parametrize('scheme', ['neo', 'neos'])
def test_entry_points(scheme):
    from importlib.metadata import entry_points
    from neo.client.zodburi import resolve_uri
    points = entry_points()
    points = (points.select(group='zodburi.resolvers') if hasattr(points, 'select')
              else points['zodburi.resolvers'])
    assert {x.load() for x in points if x.name == scheme} == {resolve_uri}


def test_import_is_cheap():
    """`import neo` and the resolver do not load the native half, nor ZODB."""
    code = ('import neo, neo.client, neo.client.zodburi, sys\n'
            'sys.exit(any(x in sys.modules for x in ("neo.client._native", "ZODB")))')
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60, env=os.environ)
