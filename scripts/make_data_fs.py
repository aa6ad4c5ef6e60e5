#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Make a Data.fs for tests: big enough, with everything that a FileStorage can hold.

    make_data_fs.py [--seed N] [--transactions N] [--megabytes N] [--big-megabytes N] [--pack] FILE

It needs a Python that has the package ZODB. The same arguments and the same versions of Python and
ZODB give the same bytes: transaction ids are drawn from the seed instead of the clock. Prints what
the file holds as JSON, and fails if something is missing that the file should have.

Content: BTrees with persistent values, lengths, lists; undo, undo of undo, undo of the creation of
objects, undo of a change of the biggest object; deleted objects; transactions without record; users
and descriptions that are not ASCII; extended information.
"""

import argparse
import base64
import calendar
import json
import os
import random
import sys
import tempfile

import transaction
import ZODB
import ZODB.FileStorage.FileStorage as file_storage_module
from BTrees.IOBTree import IOBTree
from BTrees.Length import Length
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64

USERS = ["", "admin", "zoé", "Jürgen Müller", "山田 太郎", "о́льга", "a\tb\\c\"d'"]
SUBJECTS = ["", "/site/page", "déplacé", "入力", "📦 shipped", "ligne 1\nligne 2", "%s {} \x01"]
# 2021-06-30 00:00, as a ZODB time stamp: minutes in the high half, parts of a minute in the low one.
FIRST_TID = ((((2021 - 1900) * 12 + 5) * 31 + 29) * 24 * 60) << 32


class Storage(FileStorage):
    """FileStorage whose transaction ids come from a seed."""

    def __init__(self, path, seed):
        self._next_tid = FIRST_TID
        self._prng = random.Random(f"tids {seed}")
        super().__init__(path, create=True)

    def tpc_begin(self, txn, tid=None, status=" "):
        # Some milliseconds to some seconds later.
        self._next_tid += self._prng.randrange(1 << 17, 1 << 29)
        super().tpc_begin(txn, p64(self._next_tid), status)


class Maker:
    def __init__(self, path, seed, big_megabytes):
        self.prng = random.Random(f"content {seed}")
        self.storage = Storage(path, seed)
        self.manager = transaction.TransactionManager()
        # No warning about the biggest object: it is big on purpose.
        self.db = ZODB.DB(self.storage, cache_size=20_000, large_record_size=1 << 30)
        self.connection = self.db.open(self.manager)
        self.root = self.connection.root()
        self.committed = 1
        self.big_megabytes = big_megabytes
        self.spare = []

    def commit(self, with_metadata=True):
        txn = self.manager.get()
        if with_metadata:
            txn.user = self.prng.choice(USERS)
            txn.description = self.prng.choice(SUBJECTS)
            if self.prng.randrange(5) == 0:
                txn.setExtendedInfo("request", f"é{self.prng.randrange(10**6)}")
                txn.setExtendedInfo("parts", (self.committed, None, b"\x00\xff"))
            if self.prng.randrange(2000) == 0:
                txn.description = "long " * 5000
        self.manager.commit()
        self.committed += 1

    def undo(self, tid):
        """Undo a transaction, which must be the last one that changed its objects."""
        self.db.undo(base64.encodebytes(tid).rstrip(), self.manager.get())
        self.commit()

    def text(self, size_max):
        # A few words, so that it can be compressed like real data.
        words = [f"word{self.prng.randrange(400)}" for _ in range(12)]
        size = self.prng.randrange(20, size_max)
        return (" ".join(words) * (size // 80 + 1))[:size]

    def create(self):
        root = self.root
        root["users"] = OOBTree()
        root["by_number"] = IOBTree()
        root["big_numbers"] = LOBTree()
        root["folder"] = PersistentMapping()
        root["log"] = PersistentList()
        root["count"] = Length()
        root["big"] = PersistentMapping()
        self.commit()

    def store_big(self):
        """The biggest object, changed to something small, and the change undone."""
        big = self.root["big"]
        big["data"] = self.prng.randbytes(self.big_megabytes << 20)
        self.commit()
        del big["data"]
        self.commit()
        self.undo(self.storage.lastTransaction())
        self.connection.cacheMinimize()

    def change(self):
        """An ordinary transaction."""
        prng, root = self.prng, self.root
        for _ in range(prng.choice([1, 1, 1, 1, 2, 5])):
            number = prng.randrange(1 << 30)
            kind = prng.randrange(5)
            if kind == 0:
                root["users"][f"user{number}"] = PersistentMapping(name=self.text(900))
            elif kind == 1:
                root["by_number"][number] = self.text(60)
            elif kind == 2:
                root["big_numbers"][number << 32] = PersistentList([self.text(1500)])
            elif kind == 3:
                folder = root["folder"]
                item = PersistentMapping(text=self.text(600), number=number)
                folder[f"item{number % 50}"] = item
            else:
                log = root["log"]
                log.append(self.text(60))
                del log[:-20]
        root["count"].change(1)
        self.commit()

    def create_spare(self):
        """An object, and later the reference to it removed, so that it can be deleted."""
        folder = self.root["folder"]
        folder["spare"] = spare = PersistentMapping(text=self.text(500))
        self.commit()
        self.spare.append(spare._p_oid)
        del folder["spare"]
        self.commit()

    def delete(self):
        """Delete objects that nothing refers to."""
        txn = TransactionMetaData("garbage collection", "")
        self.storage.tpc_begin(txn)
        for oid in self.spare:
            self.storage.deleteObject(oid, self.storage.getTid(oid), txn)
        self.storage.tpc_vote(txn)
        self.storage.tpc_finish(txn)
        self.spare.clear()
        self.committed += 1

    def empty(self):
        """A transaction without record."""
        txn = TransactionMetaData("", "nothing", {"empty": True})
        self.storage.tpc_begin(txn)
        self.storage.tpc_vote(txn)
        self.storage.tpc_finish(txn)
        self.committed += 1

    def undo_creation(self):
        folder = self.root["folder"]
        folder["undone"] = PersistentMapping(text=self.text(100))
        self.commit()
        self.undo(self.storage.lastTransaction())

    def undo_often(self):
        """Undo of undo of undo: back-pointers that lead to back-pointers."""
        self.change()
        for _ in range(self.prng.randrange(1, 6)):
            self.undo(self.storage.lastTransaction())

    def step(self):
        draw = self.prng.randrange(1000)
        if draw < 5:
            self.undo_creation()
        elif draw < 15:
            self.undo_often()
        elif draw < 20:
            self.create_spare()
        elif draw < 22 and self.spare:
            self.delete()
        elif draw < 24:
            self.empty()
        else:
            self.change()
        if draw % 50 == 0:
            self.connection.cacheGC()

    def pack(self):
        """Pack up to here."""
        self.manager.abort()
        # These are garbage now.
        self.spare.clear()
        # After the last transaction, or it would be the last one that is kept.
        minutes, part = divmod(u64(self.storage.lastTransaction()) + 1, 1 << 32)
        days, minutes = divmod(minutes, 24 * 60)
        months, day = divmod(days, 31)
        year, month = divmod(months, 12)
        seconds = calendar.timegm((1900 + year, month + 1, day + 1, 0, minutes, 0))
        self.storage.pack(seconds + part * 60 / 2**32, referencesf)

    def make(self, transactions, megabytes, pack):
        self.create()
        self.store_big()
        while self.committed < transactions or self.storage.getSize() < megabytes << 20:
            self.step()
            if pack and self.committed >= transactions // 2:
                pack = False
                self.pack()
        self.manager.abort()
        self.connection.close()
        self.db.close()


def summary(path):
    """What ZODB's iterator finds."""
    found = dict.fromkeys(
        ("transactions", "packed", "empty", "records", "undo_records", "without_data",
         "with_extension", "not_ascii", "biggest_object"), 0)
    storage = FileStorage(path, read_only=True)
    oids = set()
    for txn in storage.iterator():
        found["transactions"] += 1
        found["packed"] += txn.status == "p"
        found["with_extension"] += bool(txn.extension_bytes)
        found["not_ascii"] += not (txn.user + txn.description).isascii()
        records = 0
        for record in txn:
            records += 1
            oids.add(record.oid)
            found["undo_records"] += record.data_txn is not None
            if record.data is None:
                found["without_data"] += 1
            else:
                found["biggest_object"] = max(found["biggest_object"], len(record.data))
        found["records"] += records
        found["empty"] += records == 0
    found["objects"] = len(oids)
    found["bytes"] = storage.getSize()
    storage.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transactions", type=int, default=20_000, help="at least")
    parser.add_argument("--megabytes", type=int, default=50, help="at least, of 2**20 bytes")
    parser.add_argument("--big-megabytes", type=int, default=20, help="size of one object")
    parser.add_argument("--pack", action="store_true", help="pack in the middle")
    parser.add_argument("file")
    args = parser.parse_args()
    if os.path.exists(args.file):
        sys.exit(f"{args.file} already exists")
    # Nobody needs the file if the machine fails, and 20,000 times fsync take long.
    file_storage_module.fsync = None
    directory = os.path.dirname(os.path.abspath(args.file))
    with tempfile.TemporaryDirectory(prefix=".make_data_fs.", dir=directory) as temporary:
        path = os.path.join(temporary, "Data.fs")
        maker = Maker(path, args.seed, args.big_megabytes)
        maker.make(args.transactions, args.megabytes, args.pack)
        found = summary(path)
        # Without the files that ZODB keeps beside it.
        os.rename(path, args.file)
    print(json.dumps({"file": args.file, "seed": args.seed, **found}))
    missing = [name for name, count in found.items() if not count]
    if not args.pack:
        missing.remove("packed")
    if args.transactions >= 5000 and missing:
        sys.exit(f"the file should have: {', '.join(missing)}")


if __name__ == "__main__":
    main()
