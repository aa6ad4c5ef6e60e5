# SPDX-License-Identifier: GPL-2.0-or-later
"""Backup clusters, and the monitoring of both, with a mail server that is a thread of the test.

Names of tests are those of the scenarios that they show (docs/scenarios.md).
"""

import re
import socket
import sqlite3
import threading

import pytest

from cluster import wait_for

SOON = 30


class MailServer(threading.Thread):
    """Receives e-mails, one session at a time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(('127.0.0.1', 0))
        self.address = '127.0.0.1:%d' % self.socket.getsockname()[1]
        self.mails = []     # (sender, recipients, text)
        self.refuse = False
        self.start()

    def run(self):
        while True:
            conn, _ = self.socket.accept()
            with conn:
                try:
                    self.session(conn)
                except OSError:
                    pass

    def session(self, conn):
        lines = conn.makefile('r', encoding='utf-8', newline='\r\n')

        def say(text):
            conn.sendall(text.encode() + b'\r\n')
        say('220 test')
        sender, recipients = None, []
        for line in lines:
            line = line.removesuffix('\r\n')
            verb = line.upper()
            if verb.startswith('MAIL FROM:'):
                sender = line[10:].strip().strip('<>')
                say('451 try later' if self.refuse else '250 ok')
            elif verb.startswith('RCPT TO:'):
                recipients.append(line[8:].strip().strip('<>'))
                say('250 ok')
            elif verb == 'DATA':
                say('354 go on')
                text = []
                for line in lines:
                    if line == '.\r\n':
                        break
                    text.append(line.removesuffix('\r\n').removeprefix('.'))
                self.mails.append((sender, recipients, '\n'.join(text)))
                say('250 ok')
            elif verb == 'QUIT':
                say('221 bye')
                return
            else:
                say('250 ok')   # HELO, EHLO, RSET

    def subjects(self):
        return [re.search('^Subject: (.*)$', x[2], re.M)[1] for x in self.mails]


@pytest.fixture
def mail_server():
    return MailServer()


@pytest.fixture
def upstream(new_cluster, mail_server):
    """A cluster with 2 storages whose admin sends e-mails, and watches the backup `safe`."""
    cluster = new_cluster(storages=2, name='main')
    cluster.admin.args += ['--monitor-email', 'ops@example.com', '--monitor-email',
                           'boss@example.com', '--smtp', mail_server.address,
                           '--monitor-backup', 'safe', '--monitor-maxlag', '1000']
    return cluster.start()


@pytest.fixture
def backup(new_cluster, upstream):
    """Not started."""
    cluster = new_cluster(storages=2, name='safe')
    for node in cluster.masters:
        node.args += ['--upstream-cluster', upstream.name,
                      '--upstream-masters', upstream.master_nodes]
    return cluster


def put(cluster, *keys):
    db = cluster.db()
    with db.transaction() as conn:
        for key in keys:
            conn.root()[key] = key
    db.close()


def keys(cluster, **kw):
    db = cluster.db(**kw)
    with db.transaction() as conn:
        found = set(conn.root())
    db.close()
    return found


def last_tid(cluster):
    return re.search('last_tid = (0x[0-9a-f]+)', cluster.ctl('print', 'ids'))[1]


def backup_tid(cluster):
    found = re.search('backup_tid = (0x[0-9a-f]+)', cluster.ctl('print', 'ids'))
    return found and found[1]


def wait_same(backup, upstream):
    wait_for(lambda: backup_tid(backup) == last_tid(upstream), 'the backup to catch up', SOON)


def start_backup(cluster):
    cluster.start()
    assert cluster.ctl('set', 'cluster', 'starting_backup') == 'Cluster state changed'
    cluster.wait_state('BACKINGUP')


def test_backup_normal_case(upstream, backup):
    """It catches up, follows, survives restarts, is read-only, and becomes a cluster of its own."""
    from ZODB.POSException import ReadOnlyError
    put(upstream, *range(100))
    start_backup(backup)
    wait_same(backup, upstream)
    for i in range(100, 110):
        put(upstream, i)
    wait_same(backup, upstream)
    assert keys(backup, read_only=True) == set(range(110))
    with pytest.raises(ReadOnlyError):
        put(backup, 'no')
    # Both are restarted.
    backup.kill9()
    put(upstream, 110)
    backup.spawn()
    backup.wait_state('BACKINGUP')
    wait_same(backup, upstream)
    upstream.kill9()
    upstream.spawn()
    upstream.wait_running()
    put(upstream, 111)
    wait_same(backup, upstream)
    # A node of each.
    upstream.storages[0].kill9()
    backup.storages[0].kill9()
    upstream.storages[0].start()
    backup.storages[0].start()
    upstream.wait_running()
    put(upstream, 112)
    wait_for(lambda: backup.state() == 'BACKINGUP', 'the backup to go on', SOON)
    wait_same(backup, upstream)
    # On its own.
    backup.ctl('set', 'cluster', 'stopping_backup')
    backup.wait_running()
    put(backup, 'own')
    assert keys(backup) == {*range(113), 'own'}
    assert keys(upstream) == set(range(113))
    assert set(backup.stop().values()) == set(upstream.stop().values()) == {0}


def test_backup_at_once(upstream, backup):
    """`--backup` starts an empty cluster as a backup."""
    put(upstream, 1)
    for node in backup.masters:
        node.args += ['--backup', '--autostart', '2']
    backup.spawn()
    backup.wait_state('BACKINGUP')
    wait_same(backup, upstream)
    assert keys(backup, read_only=True) == {1}


def test_backup_from_upstream_with_secondary_master(new_cluster):
    """The master that the backup asks first is not the primary one; then another one is."""
    upstream = new_cluster(masters=3, storages=1, name='main')
    upstream.masters[1].start()
    upstream.admin.start()
    wait_for(lambda: upstream.state() == 'RECOVERING', 'the primary master')
    upstream.start()
    backup = new_cluster(storages=1, name='safe')
    for node in backup.masters:
        node.args += ['--upstream-cluster', upstream.name,
                      '--upstream-masters', upstream.master_nodes.split()[0]]
    put(upstream, 1)
    start_backup(backup)
    wait_same(backup, upstream)
    upstream.masters[1].kill9()
    upstream.wait_running()
    put(upstream, 2)
    wait_same(backup, upstream)
    assert keys(backup, read_only=True) == {1, 2}
    upstream.masters[1].start()


def test_backup_pack(upstream, backup):
    """A pack of the main cluster is done by the backup, also where it is replicated meanwhile."""
    start_backup(backup)
    db = upstream.db()
    for i in range(30):
        with db.transaction() as conn:
            conn.root()['n'] = i
    db.pack()
    for i in range(30, 40):
        with db.transaction() as conn:
            conn.root()['n'] = i
    db.close()
    wait_same(backup, upstream)

    def rows(cluster):
        count = 0
        for i in range(len(cluster.storages)):
            with sqlite3.connect(f'file:{cluster.database(i)}?mode=ro', uri=True) as db:
                count += db.execute('SELECT count(*) FROM obj').fetchone()[0]
        return count
    # The last revision that was packed, and later ones.
    wait_for(lambda: rows(upstream) == 11, 'the pack of the main cluster')
    wait_for(lambda: rows(backup) == 11, 'the pack of the backup')


def test_backup_needs_an_upstream(new_cluster):
    """`--backup` without `--upstream-*` ends with a message."""
    cluster = new_cluster()
    cluster.masters[0].args += ['--backup']
    assert cluster.masters[0].start().wait() in (1, 2)
    assert 'upstream' in cluster.masters[0].output()


def test_monitoring(upstream, backup, mail_server):
    """Summaries and e-mails follow the health of the cluster and of its backup."""
    wait_for(lambda: mail_server.mails, 'the first e-mail')
    sender, recipients, text = mail_server.mails[-1]
    assert recipients == ['ops@example.com', 'boss@example.com']
    assert 'To: ops@example.com, boss@example.com' in text
    # The backup is not there.
    first, *lines = upstream.ctl('print', 'summary').splitlines()
    assert first == '# {"problem": ["safe"]}'
    assert lines[0].startswith('RUNNING; UP_TO_DATE=12; ltid=')
    assert 'safe' in lines
    start_backup(backup)
    put(upstream, 1)
    wait_same(backup, upstream)
    wait_for(lambda: upstream.ctl('print', 'summary').startswith('# {}'), 'the news of the backup')
    lines = upstream.ctl('print', 'summary').splitlines()
    assert re.fullmatch(r'    BACKINGUP; UP_TO_DATE=12; ltid=[0-9a-f]{16}; lag=(ε|[\d.]+)',
                        lines[lines.index('safe') + 1]), lines
    wait_for(lambda: mail_server.subjects()[-1] == 'NEO monitoring: OK', 'a good news')
    # A storage of the backup, then of the main cluster.
    mail_server.refuse = True
    backup.storages[0].kill9()
    wait_for(lambda: 'problem' in upstream.ctl('print', 'summary').splitlines()[0],
             'the problem of the backup')
    assert 'A notification could not be sent' in upstream.ctl('print', 'summary')
    mail_server.refuse = False
    # A question is an occasion to try again.
    wait_for(lambda: upstream.ctl('print', 'summary')
             and mail_server.subjects()[-1].startswith('NEO monitoring: PROBLEM'), 'the e-mail')
    assert 'A notification could not be sent' in mail_server.mails[-1][2]
    backup.storages[0].start()
    wait_for(lambda: upstream.ctl('print', 'summary').startswith('# {}'), 'good news', SOON)
    upstream.storages[0].kill9()
    wait_for(lambda: any('PROBLEM' in x and 'main' in x for x in mail_server.subjects()),
             'the e-mail about the main cluster')
    upstream.storages[0].start()
    upstream.wait_running()


def test_monitor_maxlag(upstream, backup, mail_server):
    """A backup that is late is a warning."""
    upstream.admin.terminate()
    args = upstream.admin.args
    args[args.index('--monitor-maxlag') + 1] = '0.000001'
    upstream.admin.start()
    put(upstream, 1)
    start_backup(backup)
    wait_same(backup, upstream)
    # Its storages are gone, its master and its admin can still tell.
    wait_for(lambda: upstream.ctl_run('print', 'summary').stdout.startswith('# {'), 'the admin')
    for storage in backup.storages:
        storage.kill9()
    put(upstream, 2)

    def late():
        first, *lines = upstream.ctl('print', 'summary').splitlines()
        return first if 'warning' in first or 'problem' in first else None
    assert '"safe"' in wait_for(late, 'a warning')
