// SPDX-License-Identifier: GPL-2.0-or-later
//! A file that ZODB appends to while it is read.

use std::cell::Cell;
use std::io;

use neo_filestorage::{Damage, ReadAt, ReadError, Reader, Source, Transaction, Unfinished};

use crate::common::{positions, read, record, transaction, written};

/// A file that changes each time its size is asked for: the next state, the last one for ever.
struct Changing {
    states: Vec<Vec<u8>>,
    asked: Cell<usize>,
}

impl Changing {
    fn new(states: &[&[u8]]) -> Self {
        let states = states.iter().map(|state| state.to_vec()).collect();
        Self { states, asked: Cell::new(0) }
    }
    fn state(&self) -> &[u8] {
        &self.states[self.asked.get().saturating_sub(1).min(self.states.len() - 1)]
    }
}

impl ReadAt for Changing {
    fn read_at(&self, pos: u64, buffer: &mut [u8]) -> io::Result<usize> {
        io::Cursor::new(self.state()).read_at(pos, buffer)
    }
    fn size(&self) -> io::Result<u64> {
        self.asked.set(self.asked.get() + 1);
        Ok(self.state().len() as u64)
    }
}

type Read = (Vec<Transaction>, Result<Option<Unfinished>, ReadError>);

fn read_changing(states: &[&[u8]]) -> Read {
    let mut reader = Reader::new(Changing::new(states)).unwrap();
    let mut transactions = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(transaction)) => transactions.push(transaction),
            Ok(None) => return (transactions, Ok(reader.unfinished())),
            Err(error) => return (transactions, Err(error)),
        }
    }
}

/// Three transactions, the file with them, where they begin and end.
fn three() -> (Vec<Transaction>, Vec<u8>, Vec<usize>) {
    let big = "x".repeat(300);
    let transactions = vec![
        transaction(10, &[record(1, "one")]),
        transaction(20, &[record(1, &big)]),
        transaction(30, &[record(2, "three"), record(3, "four")]),
    ];
    let bytes = written(&transactions);
    assert_eq!(read(&bytes).0, transactions);
    let positions = positions(&bytes);
    (transactions, bytes, positions)
}

/// The same with the transaction at `pos` voted, not finished.
fn voted(bytes: &[u8], pos: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[pos + 16] = b'c';
    bytes
}

/// A transaction that is finished between two looks is given, though it was voted or half there at
/// first; what comes after it is not, since reading began before.
#[test]
fn transaction_under_way_that_finishes_is_read() {
    let (transactions, bytes, at) = three();
    let voted = voted(&bytes[..at[2]], at[1]);
    for cut in [at[1] + 5, at[1] + 20, at[1] + 100, at[2]] {
        let (read, result) = read_changing(&[&voted[..cut], &bytes]);
        assert_eq!(read, transactions[..2], "cut at {cut}");
        assert_eq!(result.unwrap(), None);
    }
}

/// A transaction that is still under way is left out, and reported as it is at last.
#[test]
fn transaction_under_way_is_left_out() {
    let (transactions, bytes, at) = three();
    let voted = voted(&bytes[..at[2]], at[1]);
    let (read, result) = read_changing(&[&voted[..at[1] + 5], &voted[..at[1] + 90]]);
    assert_eq!(read, transactions[..1]);
    assert_eq!(result.unwrap(), Some(Unfinished { pos: at[1] as u64, size: 90 }));
    // Aborted.
    let (read, result) = read_changing(&[&voted, &bytes[..at[1]]]);
    assert_eq!(read, transactions[..1]);
    assert_eq!(result.unwrap(), None);
}

/// A vote of something big that is aborted, followed by a vote of something smaller at the same
/// place: seen with the size of the first, the second looks unfinished with more behind.
#[test]
fn vote_after_an_aborted_one_is_no_damage() {
    let (transactions, bytes, at) = three();
    let big = voted(&bytes[..at[2]], at[1]);
    let mut small = written(&[transactions[0].clone(), transactions[2].clone()]);
    small[at[1] + 16] = b'c';
    let mut mixed = small.clone();
    mixed.resize(big.len(), 0);
    let (read, result) = read_changing(&[&mixed, &small]);
    assert_eq!(read, transactions[..1]);
    let size = (small.len() - at[1]) as u64;
    assert_eq!(result.unwrap(), Some(Unfinished { pos: at[1] as u64, size }));
    // It remains damage if it stays so.
    let (_, result) = read_changing(&[&mixed]);
    assert!(matches!(
        result,
        Err(ReadError::Damaged { damage: Damage::UnfinishedInside { .. }, .. })
    ));
}

/// A file that loses what was promised is an error, not an end.
#[test]
fn file_that_shrinks_is_damaged() {
    let (transactions, bytes, at) = three();
    // Cut below what was read, seen at the end of it.
    let (read, result) = read_changing(&[&voted(&bytes, at[2]), &bytes[..at[1]]]);
    assert_eq!(read, transactions[..2]);
    let error = result.unwrap_err().to_string();
    let place = format!("damaged at position {}: the file was cut to {}", at[2], at[1]);
    assert!(error.starts_with(&place), "{error}");
}
