// SPDX-License-Identifier: GPL-2.0-or-later
//! What a fuzzer runs: any bytes taken for a `Data.fs`.

use std::io::Cursor;

use neo_common::types::Tid;

use crate::reader::Reader;
use crate::source::Source;

/// Bytes of an object accepted while fuzzing.
const DATA_BYTES_MAX: u64 = 64 << 10;

/// Reads `bytes` as a FileStorage, to the end or to the first error, and checks on the way what must
/// hold whatever they are.
///
/// # Panics
/// If something does not hold.
pub fn fuzz_one(bytes: &[u8]) {
    let Ok(reader) = Reader::new(Cursor::new(bytes)) else { return };
    let mut reader = reader.with_data_bytes_max(DATA_BYTES_MAX);
    let (mut last_tid, mut last_pos, mut last_done) = (Tid::ZERO, 0, 0);
    let mut advanced = |reader: &Reader<_>| {
        let (pos, progress) = (reader.position(), reader.progress());
        assert!(pos > last_pos, "{pos} comes after {last_pos}");
        assert!(last_done <= progress.done && progress.done <= progress.total, "{progress:?}");
        assert!(progress.total <= bytes.len() as u64, "{progress:?}");
        (last_pos, last_done) = (pos, progress.done);
    };
    loop {
        let info = match reader.next_transaction() {
            Ok(Some(info)) => info,
            Ok(None) => break,
            Err(_) => return assert_failed(&mut reader),
        };
        advanced(&reader);
        assert!(info.tid > last_tid, "tid {} comes after {last_tid}", info.tid);
        last_tid = info.tid;
        loop {
            match reader.next_record() {
                Ok(Some(record)) => {
                    let size = record.data.map_or(1, |data| data.len() as u64);
                    assert!((1..=DATA_BYTES_MAX).contains(&size), "{size} bytes");
                    assert!(record.data_txn.is_none_or(|tid| tid <= info.tid));
                    advanced(&reader);
                }
                Ok(None) => break,
                Err(_) => return assert_failed(&mut reader),
            }
        }
    }
    let progress = reader.progress();
    assert_eq!(progress.done, progress.total, "everything is read or known to be left out");
}

/// An error is final.
fn assert_failed<F: crate::input::ReadAt>(reader: &mut Reader<F>) {
    assert!(reader.next_transaction().is_err());
    assert!(reader.next_record().is_err());
}
