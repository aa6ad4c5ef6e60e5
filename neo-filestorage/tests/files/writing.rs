// SPDX-License-Identifier: GPL-2.0-or-later
//! What the writer writes, and what it refuses.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use neo_common::types::{Oid, Tid};
use neo_filestorage::{
    Reader, Record, Source, Status, Transaction, TransactionInfo, WriteError, Writer,
};

use crate::common::{info, read, record, transaction, undone, written};

fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

/// Its name appears with the whole file, not before; a writer that is dropped leaves nothing.
#[test]
fn file_appears_when_it_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("Data.fs");
    let mut writer = Writer::create(&path).unwrap();
    writer.write(&transaction(1, &[record(0, "data")])).unwrap();
    assert_eq!(names(directory.path()), ["Data.fs.part"]);
    drop(writer);
    assert!(names(directory.path()).is_empty());

    let mut writer = Writer::create(&path).unwrap();
    writer.write(&transaction(1, &[record(0, "data")])).unwrap();
    let written = writer.finish().unwrap();
    assert_eq!((written.transactions, written.records), (1, 1));
    assert_eq!(names(directory.path()), ["Data.fs"]);
    assert_eq!(Reader::open(&path).unwrap().next().unwrap().unwrap().records.len(), 1);
}

/// Nothing that exists is written over, not even what comes while it writes.
#[test]
fn existing_files_are_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("Data.fs");
    for taken in ["Data.fs", "Data.fs.index", "Data.fs.part"] {
        let taken = directory.path().join(taken);
        fs::write(&taken, "precious").unwrap();
        let error = Writer::create(&path).unwrap_err();
        assert!(matches!(&error, WriteError::Exists(path) if *path == taken), "{error}");
        assert!(error.to_string().contains("already exists"), "{error}");
        assert_eq!(fs::read(&taken).unwrap(), b"precious");
        fs::remove_file(&taken).unwrap();
    }
    std::os::unix::fs::symlink(directory.path().join("nowhere"), &path).unwrap();
    assert!(matches!(Writer::create(&path), Err(WriteError::Exists(_))));
    fs::remove_file(&path).unwrap();

    let writer = Writer::create(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(writer.finish(), Err(WriteError::Exists(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(directory.path()), ["Data.fs"]);

    let error = Writer::create(&directory.path().join("no/such/Data.fs")).unwrap_err();
    assert!(matches!(&error, WriteError::Io { .. }), "{error}");
}

/// What the format cannot hold is refused, and after that everything: no file appears.
#[test]
fn what_cannot_be_held_is_refused() {
    let long = |size| Bytes::from(vec![b'x'; size]);
    let with = |change: fn(&mut TransactionInfo, Bytes), size| {
        let mut info = info(5);
        change(&mut info, long(size));
        Transaction { info, records: vec![] }
    };
    let empty = Record { oid: Oid::new(3), data: Some(Bytes::new()), data_txn: None };
    let cases = [
        (transaction(1, &[]), "transaction 0000000000000001 comes after 0000000000000001"),
        (transaction(0, &[]), "transaction 0000000000000000 comes after 0000000000000001"),
        (with(|info, long| info.user = long, 65536), "has 65536 bytes of user, a FileStorage"),
        (with(|info, long| info.description = long, 70000), "has 70000 bytes of description"),
        (with(|info, long| info.extension = long, 65536), "has 65536 bytes of extension"),
        (transaction(2, &[empty]), "object 0000000000000003 of transaction 0000000000000002 has"),
    ];
    for (refused, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("Data.fs");
        let mut writer = Writer::create(&path).unwrap();
        writer.write(&transaction(1, &[record(0, "data")])).unwrap();
        let error = writer.write(&refused).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(matches!(writer.begin(&info(9)), Err(WriteError::Failed)));
        assert!(matches!(writer.finish(), Err(WriteError::Failed)));
        assert!(names(directory.path()).is_empty());
    }
}

/// A transaction that was not ended is no transaction: no file appears.
#[test]
fn open_transaction_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&directory.path().join("Data.fs")).unwrap();
    writer.begin(&info(7)).unwrap();
    writer.store(&record(0, "data")).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert_eq!(error, "transaction 0000000000000007 is incomplete");
    assert!(names(directory.path()).is_empty());
}

/// The longest metadata, all statuses, no record, no data, data of any size: all is read as it was
/// written, also what does not fit in the buffer of the writer and the window of the reader.
#[test]
fn what_is_written_is_read() {
    let long = Bytes::from((0..65535).map(|i| i as u8).collect::<Vec<_>>());
    let big = "0123456789abcdef".repeat(200_000);
    let transactions = [
        Transaction {
            info: TransactionInfo {
                tid: Tid::new(1),
                status: Status::Packed,
                user: long.clone(),
                description: long.slice(1..),
                extension: long.slice(7..),
            },
            records: vec![record(u64::MAX, "x")],
        },
        transaction(2, &[]),
        transaction(3, &[record(1, "1234567"), record(2, &big), record(3, &big[..700_000])]),
        transaction(4, &[undone(2, Some(&big), 3), record(1, &big[..140_000])]),
        transaction(u64::MAX, &[Record { oid: Oid::new(1), data: None, data_txn: None }]),
    ];
    let bytes = written(&transactions);
    assert!(bytes.len() < 2 * big.len(), "the data of a back-pointer is there once");
    let (found, result) = read(&bytes);
    assert!(result.is_ok(), "{result:?}");
    assert!(found == transactions);
}

/// The hint is followed if the revision it names has the same data, else the data is written.
#[test]
fn back_pointers_are_written_if_they_lead_to_the_same() {
    let deleted = Record { data: None, ..record(1, "") };
    let transactions = [
        transaction(10, &[record(1, "a"), record(2, "other")]),
        transaction(20, &[record(1, "b")]),
        transaction(30, &[deleted]),
        // To a revision far back, to a back-pointer, to no data.
        transaction(40, &[undone(1, Some("a"), 10)]),
        transaction(50, &[undone(1, Some("a"), 40)]),
        transaction(60, &[undone(1, None, 30)]),
        transaction(70, &[undone(1, None, 60)]),
    ];
    let bytes = written(&transactions);
    let (found, _) = read(&bytes);
    assert_eq!(found, transactions);

    // Other data, more, less, no revision of that tid, none of that object at all, data instead of none.
    let unusable = [
        undone(1, Some("c"), 20),
        undone(1, Some("bb"), 20),
        undone(2, Some("oth"), 10),
        undone(1, Some("b"), 25),
        undone(1, Some("b"), 5),
        undone(9, Some("b"), 20),
        undone(1, None, 20),
        undone(1, Some("b"), 30),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("Data.fs");
    let mut writer = Writer::create(&path).unwrap();
    for transaction in &transactions[..3] {
        writer.write(transaction).unwrap();
    }
    for (tid, record) in (100..).zip(&unusable) {
        writer.write(&transaction(tid, std::slice::from_ref(record))).unwrap();
    }
    let written = writer.finish().unwrap();
    assert_eq!((written.back_pointers, written.hints_unused), (0, unusable.len() as u64));
    let (found, _) = read(&fs::read(&path).unwrap());
    for (transaction, record) in found[3..].iter().zip(unusable) {
        assert_eq!(transaction.records, [Record { data_txn: None, ..record }]);
    }
}

/// An oid twice in a transaction, as ZODB writes it when several transactions are undone at once:
/// both records have the same previous one, and the second one counts.
#[test]
fn oid_may_be_twice_in_a_transaction() {
    let transactions = [
        transaction(10, &[record(1, "a")]),
        transaction(20, &[record(1, "b")]),
        transaction(30, &[undone(1, Some("a"), 10), record(1, "c"), record(1, "d")]),
        transaction(40, &[undone(1, Some("d"), 30)]),
        transaction(50, &[undone(1, Some("b"), 20)]),
    ];
    let bytes = written(&transactions);
    let (found, result) = read(&bytes);
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(found, transactions);
    // Previous pointers of the records with oid 1, in the order of the file.
    let mut oid_tid = 1_u64.to_be_bytes().to_vec();
    oid_tid.extend(30_u64.to_be_bytes());
    let previous: Vec<u64> = bytes
        .windows(24)
        .filter(|window| window[..16] == oid_tid)
        .map(|window| u64::from_be_bytes(window[16..].try_into().unwrap()))
        .collect();
    assert_eq!(previous.len(), 3);
    assert!(previous[0] > 0 && previous.iter().all(|&pos| pos == previous[0]), "{previous:?}");
}
