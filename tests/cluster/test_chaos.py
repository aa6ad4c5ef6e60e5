# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge of `scripts/chaos` is not blind: what is changed in the histories or in the
databases of a run that passed is seen.

`scripts/chaos` itself is run by `scripts/test chaos`.
"""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from cluster import ROOT, executable

sys.path.insert(0, str(ROOT / 'neo-chaos' / 'harness'))

SECONDS = 8


@pytest.fixture(scope='module')
def passed(tmp_path_factory):
    """The directory of a short run without faults."""
    from run import Run

    class Quiet(Run):
        def draw(self):
            return 'nothing', 'nowhere', lambda: self.sleep(SECONDS)

    run = Quiet(SECONDS / 120, 'SQLite', 1, tmp_path_factory.mktemp('chaos'))
    run.network_wanted = False
    run.run(faults=run)
    assert not run.failures
    return run.directory


class Copy:
    """A copy of a run, to be damaged."""

    def __init__(self, directory, path):
        shutil.copytree(directory, path)
        self.path = path
        self.storages = json.loads((path / 'storages.json').read_text())
        for storage in self.storages:
            storage['database'] = storage['database'].replace(str(directory), str(path))
        (path / 'storages.json').write_text(json.dumps(self.storages))

    def check(self):
        """What is wrong."""
        result = subprocess.run(
            [executable('neo-chaos'), 'check', '--directory', self.path, '--cluster', 'chaos',
             '--partitions', '12'], stdin=subprocess.DEVNULL, text=True, capture_output=True)
        if result.returncode == 0:
            return ''
        assert 'violations' in result.stderr, result.stderr
        return result.stdout

    def execute(self, sql, *args, storages=None):
        """In all databases, or some. Returns the number of rows that changed."""
        count = 0
        for storage in self.storages[:storages]:
            with contextlib.closing(sqlite3.connect(storage['database'])) as db, db:
                count += db.execute(sql, args).rowcount
        return count

    def delete(self, where, *args, storages=None):
        """Revisions, with their data."""
        count = self.execute(f'DELETE FROM obj WHERE {where}', *args, storages=storages)
        self.execute('DELETE FROM data WHERE id NOT IN'
                     ' (SELECT data_id FROM obj WHERE data_id IS NOT NULL)', storages=storages)
        return count

    def edit(self, condition, change):
        """Replace the first such line."""
        for path in sorted(self.path.glob('client-[1-9].jsonl')):
            lines = [json.loads(x) for x in path.read_text().splitlines()]
            for i, line in enumerate(lines):
                if i and condition(line):
                    lines[i:i + 1] = change(line)
                    path.write_text(''.join(json.dumps(x) + '\n' for x in lines))
                    return
        raise AssertionError('there is no such line')


@pytest.fixture
def copy(passed, tmp_path):
    return Copy(passed, tmp_path / 'copy')


def test_nothing_changed(copy):
    assert copy.check() == ''


def last_acknowledged(copy):
    """(tid, oid) of the last acknowledged transaction that stored an object."""
    found = None
    for path in copy.path.glob('client-*.jsonl'):
        writes = {}
        for line in map(json.loads, path.read_text().splitlines()):
            if line['k'] == 'txn' and line['writes']:
                writes[line['id']] = line['writes'][0][0]
            elif line['k'] == 'end' and 'tid' in line and line['id'] in writes:
                found = max(found or ('',), (line['tid'], writes[line['id']]))
    return [int(x, 16) for x in found]


def test_a_transaction_is_lost(copy):
    tid, _ = last_acknowledged(copy)
    assert copy.execute('DELETE FROM trans WHERE tid=?', tid)
    assert copy.delete('tid=?', tid)
    assert 'is lost' in copy.check()


def test_a_transaction_is_half_there(copy):
    tid, oid = last_acknowledged(copy)
    assert copy.delete('tid=? AND oid=?', tid, oid)
    assert 'is lost' in copy.check()


def test_copies_differ(copy):
    assert copy.delete('tid=(SELECT max(tid) FROM obj)', storages=1)
    assert 'differ' in copy.check()


def test_data_is_damaged(copy):
    assert copy.execute("UPDATE data SET value=x'00'")
    assert 'damaged' in copy.check()


def test_something_unfinished_remains(copy):
    assert copy.execute('INSERT INTO ttrans SELECT * FROM trans LIMIT 1')
    assert 'unfinished' in copy.check()


def before(tid):
    return f'{int(tid, 16) - 1:016x}'


def acknowledged(line):
    return line['k'] == 'end' and 'tid' in line


def load(line):
    return line['k'] == 'load' and line['got'] == 'data' and line['how'] == 'before'


def without(line, *names):
    return {name: value for name, value in line.items() if name not in names}


def with_base(line, base):
    """The first write is based on another revision."""
    (oid, _, *rest), *others = line['writes']
    return {**line, 'writes': [[oid, base, *rest], *others]}


# What is said, which line is changed, what it becomes.
EDITS = {
    'refused, but stored': (
        'none can be', acknowledged,
        lambda x: [{**without(x, 'tid'), 'error': 'NotCommitted: x', 'certain': True}]),
        'another tid': (
        'no such transaction can be committed', acknowledged, lambda x: [{**x, 'tid': before(x['tid'])}]),
    'a lost update': (
        'lost update',
        lambda x: x['k'] == 'txn' and x['writes'] and int(x['writes'][0][1], 16),
        lambda x: [with_base(x, f'{1:016x}')]),
    'a write skew': (
        'write skew', lambda x: x['k'] == 'txn' and x['checks'],
        lambda x: [{**x, 'checks': [[x['checks'][0][0], f'{1:016x}']]}]),
    'other data is read': ('wrong read', load, lambda x: [{**x, 'sha': '0' * 40}]),
    'a stale revision is read': (
        'wrong read', lambda x: load(x) and x['next'] not in (None, '?'),
        lambda x: [{**x, 'arg': f"{int(x['next'], 16) + 1:016x}"}]),
    'a revision that is too recent is read': (
        'wrong read', load, lambda x: [{**x, 'arg': x['serial']}]),
    'a revision is missing': (
        'wrong read', load, lambda x: [{**without(x, 'serial', 'next', 'sha'), 'got': 'missing'}]),
    'an invalidation is forgotten': (
        'last tid', lambda x: x.get('what') == 'other', lambda x: []),
    'an invalidation tells too little': (
        'wrong invalidation', lambda x: x.get('what') == 'other' and x['oids'],
        lambda x: [{**x, 'oids': x['oids'][1:]}]),
    'a wrong sum': (
        'the sum of', lambda x: x['k'] == 'sum', lambda x: [{**x, 'sum': x['sum'] + 1}]),
    'an iteration leaves one out': (
        'wrong iteration', lambda x: x['k'] == 'walk' and x['tids'],
        lambda x: [{**x, 'tids': x['tids'][1:]}]),
    'a history leaves one out': (
        'wrong history', lambda x: x['k'] == 'history' and len(x['tids']) > 1,
        lambda x: [{**x, 'tids': x['tids'][1:]}]),
    'an object is not listed': (
        'wrong list', lambda x: x['k'] == 'oids', lambda x: [{**x, 'oids': x['oids'][1:]}]),
    'an error that must not be': (
        'errors', lambda x: x['k'] == 'sum',
        lambda x: [x, {'k': 'fail', 'op': 'sum', 'step': 'read', 'b': 1, 'e': 1,
                       'error': 'WrongChecksum: of something'}]),
}


@pytest.mark.parametrize('name', EDITS)
def test_what_a_history_tells(copy, name):
    message, condition, change = EDITS[name]
    copy.edit(condition, change)
    assert message in copy.check()
