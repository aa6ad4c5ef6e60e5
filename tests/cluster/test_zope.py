# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Zope on a cluster: configured, used and moved as its users do.

Needs CPython 3.11 and, the first time, access to PyPI: see `zope_site`.
"""

import html
import re
import subprocess
import threading

import pytest
import transaction

from cluster import run
from zope_site import FILESTORAGE, NEOSTORAGE, Zope, environment, python

pytestmark = pytest.mark.timeout(900)

VERIFY = '''if 1:
    import logging, sys
    import ZODB.config
    from zodbverify.verify import verify_zodb
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    verify_zodb(ZODB.config.storageFromURL(sys.argv[1]))
'''


def zodbverify(cluster, directory):
    """(records, records that can not be loaded), and what zodbverify said."""
    conf = directory / 'verify.conf'
    conf.write_text(f'''
        %import neo.client
        <NEOStorage>
            master_nodes {cluster.master_nodes}
            name {cluster.name}
            read-only true
        </NEOStorage>''')
    result = subprocess.run([python(), '-c', VERIFY, conf], text=True, capture_output=True,
                            env=environment(directory), timeout=300)
    assert result.returncode == 0, result.stderr
    scanned, = re.findall(r'Scanned (\d+) records', result.stderr)
    bad, = re.findall(r'Found (\d+) records that could not be loaded', result.stderr)
    return int(scanned), int(bad), result.stderr


def restart(cluster):
    """Stop the whole cluster as an administrator does, and start it again."""
    for status in cluster.stop().values():
        assert status == 0
    for node in cluster.nodes:
        node.start()
    cluster.wait_running()


def add_page(zope, name, text):
    """A DTML method, through the management interface; it shows who it is and a counter."""
    zope.post('/manage_addProduct/OFSP/addDTMLMethod', id=name, title='', file=text,
              submit='Add')


def test_page(cluster3, tmp_path):
    """A page is made and changed through HTTP; Zope and the cluster restart; it is there."""
    database = NEOSTORAGE.format(master_nodes=cluster3.master_nodes, name=cluster3.name)
    with Zope(tmp_path / 'zope', database) as zope:
        assert zope.get('/page') is None
        add_page(zope, 'page', 'first <dtml-var expr="1 + 1">')
        assert zope.get('/page') == 'first 2'
        zope.post('/page/manage_edit', data='second <dtml-var expr="6 * 7">', title='')
        assert zope.get('/page') == 'second 42'
        zope.stop()
        restart(cluster3)
        zope.start()
        assert zope.get('/page') == 'second 42'
        # The cluster restarts under a Zope that runs: it goes on.
        restart(cluster3)
        assert zope.get('/page') == 'second 42'
        zope.post('/page/manage_edit', data='third', title='')
        assert zope.get('/page') == 'third'
        # What another instance does is seen, and several requests at once do no harm.
        with Zope(tmp_path / 'other', database) as other:
            assert other.get('/page') == 'third'
            other.post('/page/manage_edit', data='fourth', title='')
            assert zope.get('/page') == 'fourth'
            errors = []

            def use(instance, index):
                try:
                    for i in range(5):
                        add_page(instance, f'page{index}_{i}', f'{index} {i}')
                        assert instance.get(f'/page{index}_{i}') == f'{index} {i}'
                except BaseException as e:
                    errors.append(e)
            threads = [threading.Thread(target=use, args=((zope, other)[i % 2], i))
                       for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors, errors
            for i in range(4):
                assert zope.get(f'/page{i}_4') == f'{i} 4'


def test_move_from_filestorage(new_cluster, tmp_path):
    """A site is moved from a Data.fs with neomigrate; only zope.conf changes; zodbverify is
    content."""
    directory = tmp_path / 'zope'
    with Zope(directory, FILESTORAGE) as zope:
        add_page(zope, 'page', 'from <dtml-var expr="\'a file\'">')
        for i in range(5):
            add_page(zope, f'page{i}', 'another')
        zope.post('/page/manage_edit', data='from a file, changed', title='')
        assert zope.get('/page') == 'from a file, changed'
        zope.stop()
        cluster = new_cluster(storages=2).start()
        result = run('neomigrate', '-c', cluster.name, directory / 'Data.fs',
                     cluster.master_nodes, timeout=120)
        assert result.returncode == 0, result.stderr
        scanned, bad, text = zodbverify(cluster, directory)
        assert scanned > 10 and bad == 0, text
        (directory / 'Data.fs').unlink()

        zope.use(NEOSTORAGE.format(master_nodes=cluster.master_nodes, name=cluster.name))
        zope.start()
        assert zope.get('/page') == 'from a file, changed'
        zope.post('/page/manage_edit', data='on a cluster', title='')
        assert zope.get('/page') == 'on a cluster'
        # Undone through the management interface, back to revisions that were migrated.
        database = '/Control_Panel/Database/main'
        for age, expected in enumerate(['from a file, changed', 'from a file']):
            changes = re.findall(r'name="transaction_info:list" value="([^"]*)"',
                                 zope.get(database + '/manage_UndoForm'))
            change = [html.unescape(x) for x in changes
                      if '/page/manage_edit' in x and 'Undo' not in x][age]
            zope.post(database + '/manage_undo_transactions', **{'transaction_info:list': change})
            assert zope.get('/page') == expected
    again, bad, text = zodbverify(cluster, directory)
    assert again >= scanned and bad == 0, text
    # zodbverify would have said something.
    storage = cluster.storage()
    txn = transaction.Transaction()
    storage.tpc_begin(txn)
    storage.store(storage.new_oid(), b'\0' * 8, b'cno.such.module\nclass\n.', '', txn)
    storage.tpc_vote(txn)
    storage.tpc_finish(txn)
    assert zodbverify(cluster, directory)[:2] == (again + 1, 1)
