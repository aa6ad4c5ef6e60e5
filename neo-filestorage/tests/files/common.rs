// SPDX-License-Identifier: GPL-2.0-or-later
//! Samples, small files made on the spot, and shorthands.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use neo_common::types::{Oid, Tid};
use neo_filestorage::{ReadError, Reader, Record, Source, Transaction, TransactionInfo, Writer};

/// Both reference files, without suffix.
pub const SAMPLES: [&str; 2] = ["basic", "packed"];

/// A file of the reference data for FileStorage.
pub fn shared(name: &str) -> PathBuf {
    let shared = std::env::var_os("NEO_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    shared.join("filestorage").join(name)
}

pub fn sample(name: &str) -> Vec<u8> {
    let path = shared(&format!("{name}.fs"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn info(tid: u64) -> TransactionInfo {
    TransactionInfo { tid: Tid::new(tid), ..TransactionInfo::default() }
}

pub fn record(oid: u64, data: &str) -> Record {
    Record { oid: Oid::new(oid), data: Some(Bytes::from(data.to_owned())), data_txn: None }
}

pub fn undone(oid: u64, data: Option<&str>, data_txn: u64) -> Record {
    Record {
        oid: Oid::new(oid),
        data: data.map(|data| Bytes::from(data.to_owned())),
        data_txn: Some(Tid::new(data_txn)),
    }
}

/// A transaction with a user, so that its header is longer than the shortest.
pub fn transaction(tid: u64, records: &[Record]) -> Transaction {
    let info = TransactionInfo { user: "user".into(), ..info(tid) };
    Transaction { info, records: records.to_vec() }
}

/// The bytes of a file with these transactions.
pub fn written(transactions: &[Transaction]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("Data.fs");
    let mut writer = Writer::create(&path).unwrap();
    for transaction in transactions {
        writer.write(transaction).unwrap();
    }
    let size = writer.finish().unwrap().size;
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

/// What is read until the end or an error.
pub fn read(bytes: &[u8]) -> (Vec<Transaction>, Result<(), ReadError>) {
    let mut transactions = Vec::new();
    let mut reader = match Reader::new(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (transactions, Err(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(transaction)) => transactions.push(transaction),
            Ok(None) => return (transactions, Ok(())),
            Err(error) => return (transactions, Err(error)),
        }
    }
}

/// Where each transaction begins, and where the last one ends.
pub fn positions(bytes: &[u8]) -> Vec<usize> {
    let mut reader = Reader::new(Cursor::new(bytes)).unwrap();
    let mut positions = Vec::new();
    while reader.next_transaction().unwrap().is_some() {
        positions.push(reader.position() as usize);
    }
    positions.push(reader.progress().done as usize);
    positions
}
