// SPDX-License-Identifier: GPL-2.0-or-later
//! Files that are not as ZODB writes them: an error that says where, or a clean end where ZODB sees
//! one; never anything else.

use std::io::Cursor;

use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid};
use neo_filestorage::{
    BackPointerFault, Damage, ReadError, Reader, Record, Source, Unfinished, fuzz_one,
};

use crate::common::{SAMPLES, positions, read, record, sample, transaction, undone, written};

/// A few transactions with everything that is interesting, and their positions.
fn small() -> (Vec<u8>, Vec<usize>) {
    let bytes = written(&[
        transaction(10, &[record(1, "first"), record(2, "long enough for an oid")]),
        transaction(20, &[record(1, "second")]),
        transaction(30, &[undone(1, Some("first"), 10)]),
        transaction(40, &[undone(1, Some("first"), 30), record(2, "more")]),
    ]);
    let positions = positions(&bytes);
    (bytes, positions)
}

const HEADER: usize = 23 + 4;

/// Where and what.
fn damage(bytes: &[u8]) -> (u64, Damage) {
    match read(bytes).1 {
        Err(ReadError::Damaged { pos, damage }) => (pos, damage),
        other => panic!("{other:?}"),
    }
}

fn set(bytes: &mut [u8], pos: usize, value: u64) {
    bytes[pos..pos + 8].copy_from_slice(&value.to_be_bytes());
}

/// What is not a FileStorage is called so.
#[test]
fn other_files_are_refused() {
    for (bytes, expected) in [
        (&b""[..], "not a FileStorage: the file is empty"),
        (b"FS", "not a FileStorage: it begins with \"FS\" instead of \"FS30\" or \"FS21\""),
        (b"PK\x03\x04....", "not a FileStorage: it begins with \"PK\\x03\\x04\" instead"),
        (b"FS22................................", "not a FileStorage: it begins with \"FS22\""),
    ] {
        let error = read(bytes).1.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (path, expected) in [
        (directory.path().join("absent"), "No such file"),
        (directory.path().to_owned(), "not a regular file"),
    ] {
        let error = Reader::open(&path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot open {}: ", path.display())), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

/// Both generations of ZODB, and files without transaction.
#[test]
fn both_magics_are_accepted() {
    let (mut bytes, _) = small();
    let expected = read(&bytes).0;
    assert_eq!(expected.len(), 4);
    bytes[..4].copy_from_slice(b"FS21");
    let (transactions, result) = read(&bytes);
    assert!(result.is_ok() && transactions == expected);
    assert!(read(b"FS30").1.is_ok());
}

/// Each field that can be wrong gives its own error, at the position of the transaction or record.
#[test]
fn wrong_fields_are_told() {
    let (good, at) = small();
    let records = at[2] + HEADER;
    type Change = Box<dyn Fn(&mut Vec<u8>)>;
    type Case = (&'static str, Change, u64, Damage);
    let end = good.len() as u64;
    // The second record, and its data.
    let second = at[0] + HEADER + 42 + 5;
    let inside = second + 42;
    let case =
        |name, change: Change, pos: usize, damage| -> Case { (name, change, pos as u64, damage) };
    let (at1, at2, at3) = (at[1], at[2], at[3]);
    let length = (at[2] - at[1] - 8) as u64;
    let back = |target, fault| Damage::BackPointer { oid: Oid::new(1), target, fault };
    let cases = [
        case(
            "tid that repeats",
            Box::new(move |b| set(b, at1, 10)),
            at1,
            Damage::TidOrder { tid: Tid::new(10), previous: Tid::new(10) },
        ),
        case(
            "length beyond the end",
            Box::new(move |b| set(b, at1 + 8, end)),
            at1,
            Damage::TransactionCut { end: Some(at1 as u64 + end + 8), file_size: end },
        ),
        case(
            "length beyond all numbers",
            Box::new(move |b| set(b, at1 + 8, u64::MAX - 3)),
            at1,
            Damage::TransactionCut { end: None, file_size: end },
        ),
        case(
            "length less than the header",
            Box::new(move |b| set(b, at1 + 8, 26)),
            at1,
            Damage::LengthTooSmall { length: 26, header: 27 },
        ),
        case(
            "lengths that differ",
            Box::new(move |b| set(b, at2 - 8, 5)),
            at1,
            Damage::LengthMismatch { before: length, after: 5 },
        ),
        case("status", Box::new(move |b| b[at1 + 16] = b'x'), at1, Damage::Status(b'x')),
        case(
            "status of an unfinished transaction with more behind",
            Box::new(move |b| b[at1 + 16] = b'c'),
            at1,
            Damage::UnfinishedInside { following: end - at2 as u64 },
        ),
        case(
            "record of another transaction",
            Box::new(move |b| set(b, records + 24, 4)),
            records,
            Damage::RecordTransaction { found: 4, expected: at2 as u64 },
        ),
        case(
            "tid of a record",
            Box::new(move |b| set(b, records + 8, 20)),
            records,
            Damage::RecordTid { found: Tid::new(20), expected: Tid::new(30) },
        ),
        case("version", Box::new(move |b| b[records + 33] = 1), records, Damage::Version),
        case(
            "previous record after this one",
            Box::new(move |b| set(b, records + 16, records as u64)),
            records,
            Damage::Previous { previous: records as u64 },
        ),
        case(
            "record longer than its transaction",
            Box::new(move |b| set(b, records + 34, 9)),
            records,
            Damage::RecordTooLong {
                end: Some(records as u64 + 51),
                transaction_end: at3 as u64 - 8,
            },
        ),
        case(
            "record longer than all numbers",
            Box::new(move |b| set(b, records + 34, u64::MAX - 9)),
            records,
            Damage::RecordTooLong { end: None, transaction_end: at3 as u64 - 8 },
        ),
        case(
            "record shorter than its header",
            Box::new(move |b| set(b, records + 34, 1)),
            records + 43,
            Damage::RecordTooLong {
                end: Some(records as u64 + 85),
                transaction_end: at3 as u64 - 8,
            },
        ),
        case(
            "back-pointer to itself",
            Box::new(move |b| set(b, records + 42, records as u64)),
            records,
            back(records as u64, BackPointerFault::Outside),
        ),
        case(
            "back-pointer forward",
            Box::new(move |b| set(b, records + 42, end - 100)),
            records,
            back(end - 100, BackPointerFault::Outside),
        ),
        case(
            "back-pointer outside",
            Box::new(move |b| set(b, records + 42, u64::MAX)),
            records,
            back(u64::MAX, BackPointerFault::Outside),
        ),
        case(
            "back-pointer to the beginning",
            Box::new(move |b| set(b, records + 42, 1)),
            records,
            back(1, BackPointerFault::Outside),
        ),
        case(
            "back-pointer to another object",
            Box::new(move |b| set(b, records + 42, second as u64)),
            records,
            back(second as u64, BackPointerFault::OtherObject(Oid::new(2))),
        ),
        case(
            "back-pointer to what only begins like a record of the object",
            Box::new(move |b| {
                set(b, inside, 1);
                set(b, records + 42, inside as u64);
            }),
            records,
            back(inside as u64, BackPointerFault::NoRecord),
        ),
    ];
    for (name, change, pos, expected) in cases {
        let mut bytes = good.clone();
        change(&mut bytes);
        assert_eq!(damage(&bytes), (pos, expected), "{name}");
    }
}

/// A back-pointer into metadata or data is not followed even if what is there looks like a record
/// of the right object.
#[test]
fn forged_records_are_not_followed() {
    let forged = |tid: u64, transaction: usize, size: u64| {
        let mut bytes = [1, tid, 0, transaction as u64].map(u64::to_be_bytes).concat();
        bytes.extend([0; 2]);
        bytes.extend(size.to_be_bytes());
        bytes.push(b'x');
        bytes
    };
    // In the user of the first transaction, which begins at 4.
    let user = forged(10, 4, 1);
    let in_user = 4 + 23;
    // In the data of its record, with a transaction of its own.
    let later = in_user + user.len() + 42;
    let mut data = [99_u64, 500].map(u64::to_be_bytes).concat();
    data.extend(b" \0\0\0\0\0\0");
    let in_data = later + data.len();
    data.extend(forged(99, later, 1));
    // In the second transaction, beside a record that it overlaps.
    let second = later + data.len() + 8;
    let overlapping = second + HEADER + 42;
    let beside = forged(20, second, 10);
    let record_pos = overlapping + beside.len();

    let bytes_record = |oid, bytes: Vec<u8>| Record {
        oid: Oid::new(oid),
        data: Some(bytes.into()),
        data_txn: None,
    };
    let mut first = transaction(10, &[bytes_record(2, data)]);
    first.info.user = user.into();
    let none = Record { data: None, ..record(1, "") };
    let good = written(&[first, transaction(20, &[bytes_record(3, beside), none])]);
    assert!(read(&good).1.is_ok());
    for target in [in_user, in_data, overlapping] {
        let mut bytes = good.clone();
        set(&mut bytes, record_pos + 42, target as u64);
        let fault = BackPointerFault::NoRecord;
        let damage_expected =
            Damage::BackPointer { oid: Oid::new(1), target: target as u64, fault };
        assert_eq!(damage(&bytes), (record_pos as u64, damage_expected));
    }
}

/// What a damaged file has before the damage is given, and after the error nothing more.
#[test]
fn errors_are_final_and_come_late() {
    let (mut bytes, at) = small();
    let expected = read(&bytes).0;
    bytes[at[2] + 16] = b'x';
    let mut reader = Reader::new(Cursor::new(&bytes)).unwrap();
    assert_eq!(reader.next().unwrap().as_ref(), Some(&expected[0]));
    assert_eq!(reader.next().unwrap().as_ref(), Some(&expected[1]));
    let error = reader.next().unwrap_err().to_string();
    let place = format!("damaged at position {}: unknown status \"x\" of a transaction", at[2]);
    assert_eq!(error, place);
    assert!(matches!(reader.next(), Err(ReadError::Failed)));
    assert!(matches!(reader.next_record(), Err(ReadError::Failed)));
}

/// A transaction marked as undone, as ZODB did long ago, is as if it were not there.
#[test]
fn transactions_undone_in_place_are_skipped() {
    let (mut bytes, at) = small();
    let mut expected = read(&bytes).0;
    bytes[at[1] + 16] = b'u';
    expected.remove(1);
    let (transactions, result) = read(&bytes);
    assert!(result.is_ok() && transactions == expected);
}

/// An unfinished transaction at the end is left out and reported, cut or not, as ZODB would drop it.
#[test]
fn unfinished_transaction_at_the_end_is_left_out() {
    let (mut bytes, at) = small();
    let expected = read(&bytes).0;
    bytes[at[3] + 16] = b'c';
    for end in at[3]..=bytes.len() {
        let mut reader = Reader::new(Cursor::new(&bytes[..end])).unwrap();
        for expected in &expected[..3] {
            assert_eq!(reader.next().unwrap().as_ref(), Some(expected));
        }
        assert_eq!(reader.next().unwrap(), None);
        let size = (end - at[3]) as u64;
        let unfinished = (size > 0).then_some(Unfinished { pos: at[3] as u64, size });
        assert_eq!(reader.unfinished(), unfinished);
        assert_eq!(reader.progress().done, end as u64);
    }
}

/// A file cut anywhere else than between two transactions is damaged there. (Cut before the status
/// of a transaction, it could as well be one that is just being appended.)
#[test]
fn truncated_files_are_damaged() {
    let (bytes, at) = small();
    for end in 4..=bytes.len() {
        let index = at.iter().rposition(|&pos| pos <= end).unwrap();
        let (transactions, result) = read(&bytes[..end]);
        assert_eq!(transactions.len(), index, "cut at {end}");
        if end - at[index] <= 16 {
            assert!(result.is_ok(), "cut at {end}: {result:?}");
            continue;
        }
        let expected = if end - at[index] < 23 {
            Damage::HeaderCut { size: (end - at[index]) as u64 }
        } else {
            Damage::TransactionCut { end: Some(at[index + 1] as u64), file_size: end as u64 }
        };
        assert_eq!(damage(&bytes[..end]), (at[index] as u64, expected), "cut at {end}");
    }
}

/// Anything behind the last transaction is damage there, be it zeros, text or a part of the file.
#[test]
fn garbage_at_the_end_is_damage() {
    for name in SAMPLES {
        let good = sample(name);
        for garbage in [&[0; 17][..], &[0; 5000], &[b'#'; 40], &good[4..4000], &good[1..2000]] {
            let bytes = [&good[..], garbage].concat();
            let (pos, _) = damage(&bytes);
            assert_eq!(pos, good.len() as u64, "{name}");
        }
    }
}

/// Objects above the accepted size are refused, whether there or behind a back-pointer.
#[test]
fn big_objects_are_refused_if_told_so() {
    let bytes = written(&[
        transaction(10, &[record(1, "12345"), record(2, "123456")]),
        transaction(20, &[undone(2, Some("123456"), 10)]),
    ]);
    let at = positions(&bytes);
    let open = || Reader::new(Cursor::new(&bytes)).unwrap().with_data_bytes_max(5);
    let refused = |error: ReadError, pos: usize| {
        let expected = format!(
            "object 0000000000000002 at position {pos} has 6 bytes, more than the 5 accepted"
        );
        assert_eq!(error.to_string(), expected);
    };
    let mut reader = open();
    reader.next_transaction().unwrap();
    assert_eq!(reader.next_record().unwrap(), Some(record(1, "12345")));
    refused(reader.next_record().unwrap_err(), at[0] + HEADER + 42 + 5);

    let mut reader = open();
    reader.next_transaction().unwrap();
    reader.next_transaction().unwrap();
    refused(reader.next_record().unwrap_err(), at[1] + HEADER);
}

/// A length that no file can have costs nothing: it is compared with the file first.
#[test]
fn huge_lengths_are_not_believed() {
    let huge = 1_u64 << 40;
    let mut bytes = b"FS30\0\0\0\0\0\0\0\x01".to_vec();
    bytes.extend(huge.to_be_bytes());
    bytes.extend(b" \0\0\0\0\0\0");
    bytes.extend([0; 100]);
    let end = Some(4 + huge + 8);
    let file_size = bytes.len() as u64;
    assert_eq!(damage(&bytes), (4, Damage::TransactionCut { end, file_size }));
}

/// Whatever happens to the bytes of a file, reading ends in order, and says something only where
/// there is something to say.
#[test]
fn mutated_files_end_in_order() {
    let (small, _) = small();
    fuzz_one(&small);
    for (name, good, rounds) in [
        ("small", small, 20_000),
        ("basic", sample("basic"), 1500),
        ("packed", sample("packed"), 1500),
    ] {
        for seed in 0..rounds {
            let bytes = mutated(&good, &mut Prng::new(seed));
            let result = std::panic::catch_unwind(|| fuzz_one(&bytes));
            assert!(result.is_ok(), "{name}, seed {seed}");
        }
    }
}

/// `good` with one to four changes of different kinds.
fn mutated(good: &[u8], prng: &mut Prng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=prng.below(4) {
        let (pos, other) = (prng.below(bytes.len()), prng.below(bytes.len()));
        match prng.below(8) {
            0 => bytes[pos] ^= 1 << prng.below(8),
            1 => bytes[pos] = prng.next_u64() as u8,
            2 => bytes.truncate(pos.max(1)),
            3 => drop(bytes.drain(pos..bytes.len().min(pos + 1 + prng.below(60)))),
            4 => {
                let size = 1 + prng.below(60);
                let piece: Vec<u8> = (0..size).map(|_| prng.next_u64() as u8).collect();
                bytes.splice(pos..pos, piece);
            }
            5 => {
                let piece = bytes[other..bytes.len().min(other + 1 + prng.below(200))].to_vec();
                bytes.splice(pos..pos, piece);
            }
            // Numbers of 8 bytes, small ones and those at the limits.
            6 => write_number(&mut bytes, pos, prng),
            // The same where headers are, near the beginning.
            _ => write_number(&mut bytes, 4 + prng.below(120), prng),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

fn write_number(bytes: &mut [u8], pos: usize, prng: &mut Prng) {
    let size = bytes.len() as u64;
    let values = [0, 1, 7, 8, 23, 42, size - 1, size, size + 1, u64::MAX, u64::MAX - 7, 1 << 63];
    let value = match prng.below(2) {
        0 => prng.next_u64() % (size + 10),
        _ => values[prng.below(values.len())],
    };
    let value = value.to_be_bytes();
    for (byte, value) in bytes.iter_mut().skip(pos).zip(value) {
        *byte = value;
    }
}
