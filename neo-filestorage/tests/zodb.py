#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reader and writer of Data.fs against ZODB itself.

    zodb.py [--tool PROGRAM] [FILE ...]

It needs a Python that has the package ZODB. PROGRAM is the example `filestorage` of this crate,
built with cargo if not given. Besides the given files, some are made here, with what is rare.

For each file: the reader gives what ZODB's iterator gives; a copy made by reader and writer is one
for ZODB in all respects (it is opened without a warning, its index is rebuilt, all that the storage
can tell is the same), and ZODB goes on working with it: commit, undo, pack. Finally, a file is read
again and again while ZODB writes to it.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.scripts import fstest
from ZODB.serialize import referencesf
from ZODB.utils import p64, u64

HERE = os.path.dirname(os.path.abspath(__file__))


def build_tool():
    """Path of the example, built."""
    root = os.path.join(HERE, "..", "..")
    command = ["cargo", "build", "--package", "neo-filestorage", "--example", "filestorage",
               "--message-format", "json"]
    output = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "filestorage":
            return message["executable"]
    sys.exit("cargo did not tell where the example is")


class NoWarning(logging.Handler):
    """Everything that ZODB finds strange in a file is an error here."""

    def emit(self, record):
        # It ignores the index that it wrote itself for a file without transaction.
        if record.msg == "Ignoring index for %s" and os.path.getsize(record.args[0]) < 100:
            return
        raise AssertionError(f"ZODB warns: {record.getMessage()}")


class Checker:
    def __init__(self, tool, directory):
        self.tool = tool
        self.directory = directory

    def path(self, name):
        return os.path.join(self.directory, name)

    def run(self, *args):
        return subprocess.run([self.tool, *args], check=True, stdout=subprocess.PIPE).stdout

    def list(self, path):
        return [json.loads(line) for line in self.run("list", path).splitlines()]

    def check(self, path):
        expected = listing(path)
        assert self.list(path) == expected, f"{path}: the reader and ZODB differ"
        copy = self.path(f"copy of {os.path.basename(path)}")
        self.run("copy", path, copy)
        fstest.check(copy)
        assert listing(copy) == expected, f"{path}: the copy differs"
        with contextlib.closing(FileStorage(path, read_only=True)) as original, \
                contextlib.closing(FileStorage(copy)) as copied:
            a, b = knowledge(original), knowledge(copied)
        for what, value in a.items():
            assert value == b[what], f"{path}: {what} of the copy differs"
        self.work(copy)
        records = sum(len(txn["records"]) for txn in expected)
        print(f"ok: {os.path.basename(path)}: {len(expected)} transactions, {records} records")

    def work(self, path):
        """ZODB goes on with the copy."""
        before = listing(path)
        storage = FileStorage(path)
        manager = transaction.TransactionManager()
        db = ZODB.DB(storage)
        connection = db.open(manager)
        root = connection.root()
        root["new"] = PersistentMapping(value=1)
        manager.commit()
        root["new"]["value"] = 2
        manager.commit()
        db.undo(base64.encodebytes(storage.lastTransaction()).rstrip(), manager.get())
        manager.commit()
        assert root["new"]["value"] == 1
        connection.close()
        db.close()
        fstest.check(path)
        after = self.list(path)
        assert after == listing(path)
        # In an empty file, the root object comes first.
        added = 3 if before else 4
        assert after[:len(before)] == before and len(after) == len(before) + added
        with contextlib.closing(FileStorage(path)) as storage:
            storage.pack(4_000_000_000, referencesf)
        assert self.list(path) == listing(path)
        db = ZODB.DB(path)
        with db.transaction() as connection:
            assert connection.root()["new"]["value"] == 1
        db.close()

    def check_growing(self, transactions):
        """Reads what ZODB has finished, while it commits and aborts."""
        path = self.path("growing.fs")
        storage = FileStorage(path, create=True)
        errors = []

        def write():
            prng = random.Random(0)
            tids = {}
            for _ in range(transactions):
                txn = TransactionMetaData("writer", "x" * prng.randrange(200))
                storage.tpc_begin(txn)
                oids = {p64(prng.randrange(50)) for _ in range(prng.randrange(6))}
                for oid in oids:
                    data = prng.randbytes(prng.choice([10, 1000, 1000, 100_000]))
                    storage.store(oid, tids.get(oid, p64(0)), data, "", txn)
                storage.tpc_vote(txn)
                if prng.randrange(3) == 0:
                    storage.tpc_abort(txn)
                else:
                    tids.update(dict.fromkeys(oids, storage.tpc_finish(txn)))

        def write_and_tell():
            try:
                write()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=write_and_tell)
        thread.start()
        seen = [[]]
        while thread.is_alive():
            seen.append(self.list(path))
        storage.close()
        assert not errors, errors
        final = listing(path)
        for before, after in zip(seen, seen[1:] + [final]):
            assert after[:len(before)] == before, "what was read once must remain"
        lengths = {len(listed) for listed in seen}
        assert len(lengths) > 4, f"only {len(lengths)} states were seen"
        print(f"ok: {len(lengths)} states of a file while {len(final)} transactions were written")


def listing(path):
    """What ZODB's iterator gives, in the form of the tool's list."""
    result = []
    with contextlib.closing(FileStorage(path, read_only=True)) as storage:
        for txn in storage.iterator():
            records = []
            for record in txn:
                assert record.tid == txn.tid
                data = record.data
                records.append({
                    "oid": record.oid.hex(),
                    "size": None if data is None else len(data),
                    "sha1": None if data is None else hashlib.sha1(data).hexdigest(),
                    "data_txn": record.data_txn and record.data_txn.hex(),
                })
            result.append({
                "tid": txn.tid.hex(),
                "status": txn.status,
                "user": txn.user.hex(),
                "description": txn.description.hex(),
                "ext": txn.extension_bytes.hex(),
                "records": records,
            })
    return result


def knowledge(storage):
    """What a storage can tell besides its iterator."""
    last = storage._oid
    oids = [p64(number) for number in range(u64(last) + 1)]

    def ask(method, *args):
        try:
            return method(*args)
        except POSKeyError as error:
            return repr(error)

    return {
        "last transaction": storage.lastTransaction(),
        "length": len(storage),
        "size": storage.getSize(),
        "last oid": last,
        "load": [ask(storage.load, oid) for oid in oids],
        "load before": [ask(storage.loadBefore, oid, storage.lastTransaction()) for oid in oids],
        "history": [ask(storage.history, oid, 10**6) for oid in oids],
        "undo log": storage.undoLog(0, 10**6),
    }


def make_rare(path):
    """A file with what ordinary applications hardly ever write."""
    storage = FileStorage(path, create=True)
    manager = transaction.TransactionManager()
    db = ZODB.DB(storage)
    connection = db.open(manager)
    root = connection.root()

    def commit():
        manager.commit()
        return base64.encodebytes(storage.lastTransaction()).rstrip()

    def undo(*tids):
        db.undoMultiple(list(tids), manager.get())
        return commit()

    # An object twice in a transaction: two undos at once.
    root["a"] = PersistentMapping(value=0)
    commit()
    changes = []
    for value in range(1, 4):
        root["a"]["value"] = value
        changes.append(commit())
    both = undo(changes[2], changes[1])
    assert root["a"]["value"] == 1
    undo(both)
    assert root["a"]["value"] == 3

    # Creation undone, redone, undone: a back-pointer to a record without data.
    root["b"] = PersistentMapping()
    last = commit()
    for _ in range(6):
        last = undo(last)

    # Metadata of the greatest length, of no length, with all bytes.
    txn = manager.get()
    txn.user = "é" * 32767 + "x"
    txn.description = "ж" * 32767
    txn.setExtendedInfo("data", bytes(range(256)) * 200)
    root["c"] = PersistentMapping()
    commit()

    # Restored records, said to come from a transaction that has nothing of the object.
    for data_txn in [None, storage.getTid(p64(0))]:
        def restore(txn):
            data = b"restored" * 3
            storage.restore(p64(10**4), storage._tid, data, "", data_txn, txn)
            storage.restore(p64(10**4 + 1), storage._tid, None, "", data_txn, txn)
        commit_raw(storage, restore)

    # Data shorter than a position, and the object deleted, and that undone.
    oid = p64(10**4 + 2)
    tid = commit_raw(storage, lambda txn: storage.store(oid, p64(0), b".", "", txn))
    tid = commit_raw(storage, lambda txn: storage.deleteObject(oid, tid, txn))
    undo_id = base64.encodebytes(tid).rstrip()
    commit_raw(storage, lambda txn: storage.undo(undo_id, txn))
    assert storage.load(oid)[0] == b"."
    connection.close()
    db.close()
    twice = [txn for txn in listing(path)
             if len({record["oid"] for record in txn["records"]}) < len(txn["records"])]
    assert twice, "an object should be twice in a transaction"


def commit_raw(storage, change):
    """A transaction that is none of a connection; its tid."""
    txn = TransactionMetaData()
    storage.tpc_begin(txn)
    change(txn)
    storage.tpc_vote(txn)
    return storage.tpc_finish(txn)


def make_empty(path):
    FileStorage(path, create=True).close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", help="the example `filestorage`, built")
    parser.add_argument("--growing", type=int, default=1500,
                        help="transactions of the file that is read while it grows")
    parser.add_argument("files", nargs="*", metavar="FILE")
    args = parser.parse_args()
    shared = os.environ.get("NEO_SHARED") or os.path.join(HERE, "..", "..", "..", "shared")
    files = [os.path.join(shared, "filestorage", name) for name in ("basic.fs", "packed.fs")]
    logging.getLogger().addHandler(NoWarning(level=logging.WARNING))
    with tempfile.TemporaryDirectory() as directory:
        checker = Checker(args.tool or build_tool(), directory)
        for make in (make_rare, make_empty):
            path = checker.path(f"{make.__name__[5:]}.fs")
            make(path)
            files.append(path)
        for seed, option in ((1, []), (2, ["--pack"])):
            path = checker.path(f"made {seed}.fs")
            script = os.path.join(HERE, "..", "..", "scripts", "make_data_fs.py")
            subprocess.run(
                [sys.executable, script, "--seed", str(seed), "--transactions", "1500",
                 "--megabytes", "1", "--big-megabytes", "2", *option, path],
                check=True, stdout=subprocess.DEVNULL)
            files.append(path)
        for path in files + args.files:
            checker.check(path)
        checker.check_growing(args.growing)


if __name__ == "__main__":
    main()
