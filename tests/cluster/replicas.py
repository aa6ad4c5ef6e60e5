# SPDX-License-Identifier: GPL-2.0-or-later
"""Storages that come and go, and the comparison of the copies that they hold."""

import contextlib
import itertools
import re

from cluster import wait_for


def nid_of(cluster, node):
    """Node id of a storage (`S1`) as its database knows it, None before it has one."""
    with cluster.open_database(cluster.storages.index(node), read_only=True) as db:
        row = db and db.execute("SELECT value FROM config WHERE name='nid'").fetchone()
    nid = row and row[0]
    return nid and f"S{nid.decode() if isinstance(nid, bytes) else nid}"


def cells(cluster):
    """The partition table as `{nid: letters}`, None if it can not be had now."""
    result = cluster.ctl_run('print', 'pt')
    if result.returncode:
        return None
    rows = [x.split() for x in result.stdout.splitlines() if x.startswith('S')]
    return {nid: row for nid, _, row in rows}


def replicas_of(cluster):
    """Copies of each partition beside the first, as ordered; None if it can not be had now."""
    result = cluster.ctl_run('print', 'pt')
    found = re.match(r'# ptid: \d+, replicas: (\d+)', result.stdout)
    return found and int(found[1])


def all_up_to_date(cluster, replicas, without=None):
    """Whether each partition has all its copies, nothing more and nothing less.

    `without`: a storage that is about to leave, whose cells do not count.
    """
    table = cells(cluster)
    if not table:
        return False
    columns = list(zip(*(row for nid, row in table.items() if nid != without)))
    return all(set(x) <= {'U', '.'} and x.count('U') == replicas + 1 for x in columns)


def wait_all_up_to_date(cluster, replicas, timeout, without=None):
    seen = []

    def reached():
        seen.append(cells(cluster))
        return all_up_to_date(cluster, replicas, without)
    try:
        wait_for(reached, 'all cells to be up to date', timeout, .2)
    except TimeoutError as e:
        raise TimeoutError(f'{e}: {seen[-1]}') from None


# What a cell holds, in an order that does not depend on the storage. `data.id` does.
TABLES = {
    'trans': 'SELECT tid, packed, oids, user, description, ext, ttid FROM trans'
             ' WHERE "partition"=? ORDER BY tid',
    'obj': 'SELECT oid, tid, value_tid, hash, compression, value FROM obj'
           ' LEFT JOIN data ON data_id=id WHERE "partition"=? ORDER BY oid, tid',
}


def compare_replicas(cluster, table, ignore=()):
    """Compare the cells of a cluster that is stopped. `table`: as `cells` gave it.

    `ignore`: columns that may differ. Returns the number of rows that were found equal.
    """
    indexes = {nid_of(cluster, node): i for i, node in enumerate(cluster.storages)}
    count = 0
    for partition, column in enumerate(zip(*table.values())):
        nids = [nid for nid, state in zip(table, column) if state == 'U']
        with contextlib.ExitStack() as stack:
            dbs = [stack.enter_context(cluster.open_database(indexes[nid], read_only=True))
                   for nid in nids]
            for name, query in TABLES.items():
                for column in ignore:
                    query = query.replace(f' {column},', '')
                for rows in itertools.zip_longest(
                        *(db.execute(query, (partition,)) for db in dbs)):
                    assert len(set(rows)) == 1, (
                        f'partition {partition}, {name}: {dict(zip(nids, rows))}')
                    count += len(rows)
    return count
