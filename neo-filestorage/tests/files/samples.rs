// SPDX-License-Identifier: GPL-2.0-or-later
//! Files written by ZODB, read and written back.

use std::fs;

use neo_filestorage::{Reader, Source, Status, Unit, Writer, compare};
use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::common::{SAMPLES, sample, shared};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifest(name: &str) -> Value {
    let path = shared(&format!("{name}.fs.manifest.json"));
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Each transaction and record is what ZODB's iterator gave, at the same position.
#[test]
fn samples_read_as_their_manifests_say() {
    for name in SAMPLES {
        let manifest = manifest(name);
        let mut reader = Reader::open(&shared(&format!("{name}.fs"))).unwrap();
        let mut records_count = 0;
        for expected in manifest["transactions"].as_array().unwrap() {
            let info = reader.next_transaction().unwrap().expect("as many as in the manifest");
            assert_eq!(expected["pos"], reader.position(), "{name} {info:?}");
            assert_eq!(expected["tid"], info.tid.to_string());
            let status = match info.status {
                Status::Finished => " ",
                Status::Packed => "p",
            };
            assert_eq!(expected["status"], status, "{name} {info:?}");
            assert_eq!(expected["user"], hex(&info.user), "{name} {info:?}");
            assert_eq!(expected["description"], hex(&info.description), "{name} {info:?}");
            assert_eq!(expected["ext"], hex(&info.extension), "{name} {info:?}");
            for expected in expected["records"].as_array().unwrap() {
                let record = reader.next_record().unwrap().expect("as many as in the manifest");
                let place = format!("{name} {} {}", info.tid, record.oid);
                assert_eq!(expected["pos"], reader.position(), "{place}");
                assert_eq!(expected["tid"], info.tid.to_string(), "{place}");
                assert_eq!(expected["oid"], record.oid.to_string(), "{place}");
                let data_txn = record.data_txn.map(|tid| tid.to_string());
                assert_eq!(expected["data_txn"], Value::from(data_txn), "{place}");
                let size = record.data.as_ref().map(|data| data.len());
                assert_eq!(expected["size"], Value::from(size), "{place}");
                let sha1 = record.data.as_ref().map(|data| hex(&Sha1::digest(data)));
                assert_eq!(expected["sha1"], Value::from(sha1), "{place}");
                records_count += 1;
            }
            assert_eq!(reader.next_record().unwrap(), None);
        }
        assert_eq!(reader.next_transaction().unwrap(), None, "{name}");
        assert_eq!(reader.unfinished(), None, "{name}");
        assert!(records_count > 100, "{name} is a sample of some size");
    }
}

/// A sample that goes through reader and writer comes out byte for byte as it was, back-pointers
/// and pointers to previous records included.
#[test]
fn samples_are_written_back_byte_for_byte() {
    for name in SAMPLES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("Data.fs");
        let mut reader = Reader::open(&shared(&format!("{name}.fs"))).unwrap();
        let mut writer = Writer::create(&path).unwrap();
        while let Some(transaction) = reader.next().unwrap() {
            writer.write(&transaction).unwrap();
        }
        let written = writer.finish().unwrap();
        assert_eq!(written.hints_unused, 0, "{name}");
        assert!(written.back_pointers >= 7, "{name}: {written:?}");
        let copy = fs::read(&path).unwrap();
        let original = sample(name);
        let difference = copy.iter().zip(&original).position(|(a, b)| a != b);
        assert_eq!((difference, copy.len()), (None, original.len()), "{name}");

        let original = Reader::open(&shared(&format!("{name}.fs"))).unwrap();
        let compared = compare(original, Reader::open(&path).unwrap()).unwrap();
        assert_eq!(compared.transactions, written.transactions, "{name}");
        assert_eq!(compared.records, written.records, "{name}");
    }
}

/// The two samples are told apart, with the place.
#[test]
fn different_samples_differ() {
    let [a, b] = SAMPLES.map(|name| Reader::open(&shared(&format!("{name}.fs"))).unwrap());
    let error = compare(a, b).unwrap_err().to_string();
    let expected = "transaction #0: tid differs: 040d2cae64821455 / 040d2cae66bf3000";
    assert_eq!(error, expected);
}

/// Progress counts bytes of the file, never goes back, and ends at the end.
#[test]
fn progress_goes_from_0_to_the_size_of_the_file() {
    for name in SAMPLES {
        let mut reader = Reader::open(&shared(&format!("{name}.fs"))).unwrap();
        let mut last = reader.progress();
        assert_eq!((last.total, last.unit), (sample(name).len() as u64, Unit::Bytes));
        while reader.next_transaction().unwrap().is_some() {
            while reader.next_record().unwrap().is_some() {
                let progress = reader.progress();
                assert!(progress.done > last.done, "{progress:?} after {last:?}");
                assert_eq!(progress.total, last.total);
                last = progress;
            }
        }
        assert_eq!(reader.progress().done, last.total);
    }
}

/// Records that are not asked for are skipped: the same transactions come.
#[test]
fn records_can_be_skipped() {
    let open = || Reader::open(&shared("basic.fs")).unwrap();
    let (mut whole, mut hasty) = (open(), open());
    while let Some(transaction) = whole.next().unwrap() {
        assert_eq!(hasty.next_transaction().unwrap(), Some(transaction.info));
        // Sometimes one of them.
        if transaction.records.len() > 1 {
            assert_eq!(hasty.next_record().unwrap().as_ref(), transaction.records.first());
        }
    }
    assert_eq!(hasty.next_transaction().unwrap(), None);
    assert_eq!(hasty.next_record().unwrap(), None);
}
