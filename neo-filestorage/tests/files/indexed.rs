// SPDX-License-Identifier: GPL-2.0-or-later
//! Reading in any order agrees with reading in sequence.

// A file that changes under its reader is shared with the test.
#![allow(clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::io::Cursor;

use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid};
use neo_filestorage::{Damage, Indexed, ReadAt, ReadError, Record, Source, Transaction};

use crate::common::{SAMPLES, positions, read, record, sample, transaction, undone, written};

fn open(bytes: &[u8]) -> Indexed<Cursor<&[u8]>> {
    Indexed::new(Cursor::new(bytes), |_| {}).unwrap()
}

/// Records of a transaction that count.
fn last_of_each(records: &[Record]) -> Vec<Record> {
    let mut kept: Vec<Record> = Vec::new();
    for record in records {
        kept.retain(|other| other.oid != record.oid);
        kept.push(record.clone());
    }
    kept
}

/// All that can be asked, compared with the transactions that are read in sequence.
fn check(bytes: &[u8]) {
    let (transactions, result) = read(bytes);
    result.unwrap();
    let file = open(bytes);
    let summary = file.summary();
    assert_eq!(summary.transactions, transactions.len() as u64);
    assert_eq!(summary.first_tid, transactions.first().map(|t| t.info.tid));
    assert_eq!(summary.last_tid, transactions.last().map_or(Tid::ZERO, |t| t.info.tid));
    let mut history: BTreeMap<Oid, Vec<(Tid, Record)>> = BTreeMap::new();
    for Transaction { info, records } in &transactions {
        let place = file.transaction(info.tid).unwrap().unwrap();
        assert_eq!(file.info(&place).unwrap(), *info);
        let found: Vec<_> = file.records(&place).collect::<Result<_, _>>().unwrap();
        let expected = last_of_each(records);
        assert_eq!(found.len(), expected.len());
        for (place, record) in found.iter().zip(&expected) {
            assert_eq!((place.oid, place.tid), (record.oid, info.tid));
        }
        for record in expected {
            history.entry(record.oid).or_default().insert(0, (info.tid, record));
        }
        let absent = Tid::new(info.tid.get() + 1);
        let follows = transactions.iter().any(|other| other.info.tid == absent);
        assert_eq!(file.transaction(absent).unwrap().is_some(), follows);
    }
    assert_eq!(summary.last_oid, history.keys().last().copied());
    assert!(file.oids_from(Oid::ZERO).eq(history.keys().copied()));
    for (oid, expected) in &history {
        assert!(file.contains(*oid));
        let found: Vec<_> = file.revisions(*oid).collect::<Result<_, _>>().unwrap();
        assert_eq!(found.len(), expected.len(), "{oid}");
        for (place, (tid, record)) in found.iter().zip(expected) {
            assert_eq!((place.oid, place.tid), (*oid, *tid));
            let (data, data_txn) = file.data(place).unwrap();
            assert_eq!((&data, data_txn), (&record.data, record.data_txn));
            let size = data.map(|data| data.len() as u64);
            assert_eq!(file.data_size(place).unwrap(), (size, data_txn));
        }
    }
    let nothing = Oid::new(summary.last_oid.map_or(0, |oid| oid.get() + 1));
    assert!(!file.contains(nothing) && file.revisions(nothing).next().is_none());
    let tids: Vec<Tid> = transactions.iter().map(|transaction| transaction.info.tid).collect();
    for (index, tid) in tids.iter().enumerate() {
        let found: Vec<_> = file.transactions(*tid).map(|place| place.unwrap().tid).collect();
        assert_eq!(found, tids[index..]);
        let mut reader = file.reader_from(*tid).unwrap();
        for transaction in &transactions[index..] {
            assert_eq!(reader.next().unwrap().as_ref(), Some(transaction));
        }
        assert_eq!(reader.next().unwrap(), None);
    }
    assert!(file.transactions(Tid::new(summary.last_tid.get() + 1)).next().is_none());
    let back: Vec<_> = file.transactions_back().map(|place| place.unwrap().tid).collect();
    assert!(back.iter().eq(tids.iter().rev()));
}

/// The files that ZODB wrote: undo, undo of undo, deletions, a packed one.
#[test]
fn samples_agree() {
    for name in SAMPLES {
        check(&sample(name));
    }
}

/// Files made at random: many transactions (so that tids are looked for from marks), objects with
/// long histories, undo, deletions, and objects that are written twice in a transaction.
#[test]
fn random_files_agree() {
    for seed in 0..5 {
        let mut prng = Prng::new(seed);
        let mut known: BTreeMap<u64, Vec<(u64, Option<String>)>> = BTreeMap::new();
        let mut transactions = Vec::new();
        for tid in 1..400 {
            let tid = tid * 3;
            let mut records = Vec::new();
            for _ in 0..prng.below(6) {
                let oid = prng.below(40) as u64 * 100;
                let history = known.entry(oid).or_default();
                let (new, data) = match prng.below(10) {
                    0 => (undone(oid, None, 0), None),
                    1 | 2 if !history.is_empty() => {
                        let (tid, data) = history[prng.below(history.len())].clone();
                        (undone(oid, data.as_deref(), tid), data)
                    }
                    _ => {
                        let data = "x".repeat(1 + prng.below(3000));
                        (record(oid, &data), Some(data))
                    }
                };
                let new = match &data {
                    None => Record { data_txn: None, ..new },
                    Some(_) => new,
                };
                records.push(new);
                history.retain(|(other, _)| *other != tid);
                history.push((tid, data));
            }
            transactions.push(transaction(tid, &records));
        }
        check(&written(&transactions));
    }
    check(&written(&[]));
}

/// A `previous` that skips a record, as a pack leaves it, hides nothing.
#[test]
fn wrong_previous_is_known() {
    let data = ["one", "two", "three"];
    let transactions: Vec<_> =
        (1..).zip(data).map(|(tid, data)| transaction(tid, &[record(7, data)])).collect();
    let mut bytes = written(&transactions);
    let third = positions(&bytes)[2] + 23 + "user".len();
    bytes[third + 16..third + 24].fill(0);
    let file = open(&bytes);
    let found: Vec<_> = file.revisions(Oid::new(7)).map(|place| place.unwrap().tid.get()).collect();
    assert_eq!(found, [3, 2, 1]);
}

/// What is damaged is refused when the file is opened, with its position.
#[test]
fn damage_is_told_at_once() {
    let bytes =
        written(&[transaction(1, &[record(7, "one")]), transaction(2, &[record(7, "two")])]);
    let second = positions(&bytes)[1];
    let open = |bytes: &[u8]| Indexed::new(Cursor::new(bytes), |_| {}).map(drop);
    let error = open(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { pos, .. } if pos == second as u64), "{error}");
    for byte in [8, 37] {
        let mut bytes = bytes.clone();
        bytes[second + byte] ^= 0xff;
        assert!(matches!(open(&bytes), Err(ReadError::Damaged { .. })), "byte {byte}");
    }
}

/// A file that is changed below is an error, not garbage.
#[test]
fn change_is_an_error() {
    use std::cell::RefCell;
    #[derive(Clone)]
    struct Shared(std::rc::Rc<RefCell<Vec<u8>>>);
    impl ReadAt for Shared {
        fn read_at(&self, pos: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
            Cursor::new(&*self.0.borrow()).read_at(pos, buffer)
        }
        fn size(&self) -> std::io::Result<u64> {
            Ok(self.0.borrow().len() as u64)
        }
    }
    let bytes =
        written(&[transaction(1, &[record(7, "one")]), transaction(2, &[record(7, "two")])]);
    let shared = Shared(std::rc::Rc::new(RefCell::new(bytes)));
    let file = Indexed::new(shared.clone(), |_| {}).unwrap();
    shared.0.borrow_mut().truncate(60);
    let error = file.revisions(Oid::new(7)).next().unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Damaged { damage: Damage::Shrunk { .. }, .. }), "{error}");
    shared.0.borrow_mut().resize(1000, 0xff);
    assert!(file.revisions(Oid::new(7)).next().unwrap().is_err());
    assert!(file.transactions_back().next().unwrap().is_err());
}
