# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples of docs/client.md do what it says.

Each section with examples gets a cluster and an empty folder of its own, and its
blocks are run in their order:

    python    in one namespace
    xml       saved as zodb.conf and read by ZODB, or by Zope if there is a `<zodb_db>`
    ini       URIs are resolved
    sh        by bash, in the folder, which has a Data.fs

Other kinds of blocks are for the reader.
"""

import configparser
import os
import re
import subprocess
import sys

import pytest
import transaction
import ZODB.config
from ZODB.FileStorage import FileStorage

from cluster import ROOT, bin_dir
from zope_site import environment, python

DOCUMENT = ROOT / 'docs' / 'client.md'
KINDS = 'python', 'xml', 'ini', 'sh', 'text'


def sections():
    """{title: [(kind, text)]}"""
    result = {}
    for part in re.split(r'^## ', DOCUMENT.read_text(), flags=re.M)[1:]:
        title, text = part.split('\n', 1)
        result[title] = re.findall(r'^```(\w+)\n(.*?)^```$', text, re.M | re.S)
    return result


SECTIONS = sections()
EXAMPLES = {title: blocks for title, blocks in SECTIONS.items()
            if any(kind != 'text' for kind, _ in blocks)}


def test_document():
    """What is known to be there is found."""
    assert {kind for blocks in SECTIONS.values() for kind, _ in blocks} == set(KINDS)
    for title in ('ZODB', 'Zope', 'Plone', 'Pyramid and other users of zodburi',
                  'Moving from FileStorage', 'Moving from ZEO', 'Tuning'):
        assert title in EXAMPLES
    assert 'docs/client.md' in (ROOT / 'README.md').read_text()


ZOPE = '''if 1:
    import sys
    import transaction
    from persistent.mapping import PersistentMapping
    from ZODB.blob import Blob
    from Zope2.Startup.options import ZopeWSGIOptions

    options = ZopeWSGIOptions(configfile=sys.argv[1])
    options()
    db = options.configroot.dbtab.getDatabase('/')
    with db.transaction() as connection:
        root = connection.root()
        assert ('key' in root) == (sys.argv[2] == 'again')
        if sys.argv[2] == 'again':
            assert root['key']['a'] == 1
            if 'blob' in root:
                assert root['blob'].open().read() == b'content'
        else:
            root['key'] = PersistentMapping(a=1)
            if 'blobstorage' in open(sys.argv[1]).read():
                root['blob'] = Blob(b'content')
    db.close()
'''


class Runner:
    """The examples of one section."""

    def __init__(self, new_cluster, directory, monkeypatch):
        self.new_cluster = new_cluster
        self.directory = directory
        self.cluster = None
        self.namespace = {'__name__': 'example'}
        monkeypatch.chdir(directory)
        db = ZODB.DB(FileStorage('Data.fs'))
        for i in range(10):
            with db.transaction() as connection:
                connection.root()[i] = i
        self.last_tid = db.storage.lastTransaction()
        db.close()

    def adapt(self, text):
        if self.cluster is None:
            self.cluster = self.new_cluster(storages=2, name='demo').start()
        assert 'demo' in text or '10000' not in text
        return text.replace('127.0.0.1:10000', self.cluster.master_nodes)

    def python(self, text):
        exec(compile(self.adapt(text), str(DOCUMENT), 'exec'), self.namespace)
        transaction.abort()

    def xml(self, text):
        text = self.adapt(text)
        if '<zodb_db' in text:
            text = text.replace('/path/to/instance', str(self.directory))
            (self.directory / 'zope.conf').write_text(text)
            for when in 'first', 'again':
                subprocess.run([python(), '-c', ZOPE, 'zope.conf', when], check=True, timeout=120,
                               env=environment(self.directory))
        else:
            (self.directory / 'zodb.conf').write_text(text)
            ZODB.config.databaseFromString(text).close()

    def ini(self, text):
        from zodburi import resolve_uri
        config = configparser.ConfigParser(interpolation=None)
        config.read_string(self.adapt(text))
        for section in config.sections():
            for key, uri in config[section].items():
                assert key.endswith('.uri')
                factory, options = resolve_uri(uri)
                ZODB.DB(factory(), **options).close()

    def sh(self, text):
        path = os.pathsep.join([str(bin_dir()), os.path.dirname(sys.executable),
                                os.environ['PATH']])
        subprocess.run(['bash', '-euo', 'pipefail', '-c', self.adapt(text)], check=True,
                       timeout=120, env={**os.environ, 'PATH': path})

    def text(self, text):
        pass


@pytest.mark.timeout(900)   # Zope may have to be installed
@pytest.mark.parametrize('title', EXAMPLES)
def test_examples(new_cluster, tmp_path, monkeypatch, title, capsys):
    runner = Runner(new_cluster, tmp_path, monkeypatch)
    stop = None
    try:
        if 'ZEO' in title:
            import ZEO
            address, stop = ZEO.server(str(tmp_path / 'Data.fs'), threaded=True)
        for kind, text in EXAMPLES[title]:
            if stop is not None:
                assert "('127.0.0.1', 8100)" in text
                text = text.replace("('127.0.0.1', 8100)", repr(address))
            getattr(runner, kind)(text)
    finally:
        if stop is not None:
            stop()
    output = capsys.readouterr().out
    if title == 'ZODB':
        assert output.startswith('hello\ngood bye\n')
        storage = runner.cluster.storage()
        with ZODB.DB(storage).transaction() as connection:
            assert connection.root()['greeting'] == 'good bye'
    elif title.startswith('Moving from'):
        storage = runner.cluster.storage()
        assert storage.lastTransaction() == runner.last_tid
        assert len(list(storage.iterator())) == 11
    elif title == 'Tuning':
        assert output == '0\n'
    if 'FileStorage' in title:
        copy = FileStorage('copy.fs', read_only=True)
        assert copy.lastTransaction() == runner.last_tid
        copy.close()


def test_links():
    """What the document refers to exists."""
    for link in re.findall(r'\]\(([^)]+)\)', DOCUMENT.read_text()):
        if link.startswith('http'):
            continue
        path, _, anchor = link.partition('#')
        target = (DOCUMENT.parent / path).resolve() if path else DOCUMENT
        assert target.exists(), link
        if anchor:
            titles = re.findall(r'^#+ (.*)$', target.read_text(), re.M)
            assert anchor in {re.sub(r'[^a-z0-9 -]', '', x.lower()).replace(' ', '-')
                              for x in titles}, link
