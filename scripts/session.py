# SPDX-License-Identifier: GPL-2.0-or-later
"""A short ZODB session on a NEO cluster: what any application does.

    python scripts/session.py MASTERS CLUSTER
"""

import sys
from datetime import datetime, timezone

import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from neo.client.Storage import Storage
from persistent.mapping import PersistentMapping


def main(masters, cluster):
    # Only this line knows about NEO.
    db = ZODB.DB(Storage(master_nodes=masters, name=cluster))

    # Store: objects that are reachable from the root are saved by the commit.
    with db.transaction('write a note') as connection:
        root = connection.root()
        if 'notes' not in root:
            root['notes'] = OOBTree()
        when = datetime.now(timezone.utc).isoformat()
        root['notes'][when] = PersistentMapping(text='hello', visitor=len(root['notes']) + 1)
    print('stored note', when)

    # Read: with another client, as another process would.
    other_db = ZODB.DB(Storage(master_nodes=masters, name=cluster))
    with other_db.transaction() as connection:
        notes = connection.root()['notes']
        print('read note', notes.maxKey(), dict(notes[notes.maxKey()]))
        print('notes so far:', len(notes))
        assert notes.maxKey() == when

    # Change it there. The first client learns of it, and never sees half of a transaction.
    with other_db.transaction('change it') as connection:
        connection.root()['notes'][when]['text'] = 'changed'
    connection = db.open(transaction_manager=transaction.TransactionManager(explicit=True))
    connection.transaction_manager.begin()
    print('the first client reads', connection.root()['notes'][when]['text'])
    assert connection.root()['notes'][when]['text'] == 'changed'
    connection.transaction_manager.abort()
    connection.close()

    # History is kept until it is packed.
    for entry in db.undoLog(0, 2):
        print('transaction', entry['description'])
    other_db.close()
    db.close()


if __name__ == '__main__':
    main(*sys.argv[1:])
