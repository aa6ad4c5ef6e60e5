// SPDX-License-Identifier: GPL-2.0-or-later
//! What is copied, and where it comes from.
//!
//! [`Source`] is the common face of everything that can be iterated transaction by transaction: a
//! `Data.fs`, a cluster. It hands out records one by one, so that a transaction of any size goes
//! through in the memory of one object.

use std::error::Error;

use bytes::Bytes;
use neo_common::types::{Oid, Tid};

/// What happened to a transaction since it was committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Status {
    /// Committed, and all its records are there.
    #[default]
    Finished,
    /// A pack has been at it: some of its records may be gone, and it cannot be undone.
    Packed,
}

/// A transaction without its records.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TransactionInfo {
    /// Its id.
    pub tid: Tid,
    /// Whether it was packed.
    pub status: Status,
    /// Who made it, usually UTF-8.
    pub user: Bytes,
    /// What it is about, usually UTF-8.
    pub description: Bytes,
    /// Extended information as stored: a pickle, or nothing.
    pub extension: Bytes,
}

/// What a transaction did to an object. Its tid is that of the transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The object.
    pub oid: Oid,
    /// Its new data; `None`: it is deleted, or its creation undone.
    pub data: Option<Bytes>,
    /// Tid of an earlier revision of the same object that has the same data, if the source says so
    /// (after an undo).
    pub data_txn: Option<Tid>,
}

/// A whole transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// All but its records.
    pub info: TransactionInfo,
    /// In the order of the source.
    pub records: Vec<Record>,
}

/// What [`Progress`] counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Bytes of a file.
    Bytes,
    /// Distance between tids: time, not amount of data.
    Tids,
}

/// How far a source has been read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Of `total`; it never decreases.
    pub done: u64,
    /// What there was when reading began; never less than `done`.
    pub total: u64,
    /// What both count.
    pub unit: Unit,
}

/// Something that can be read transaction by transaction, in the order of tids.
pub trait Source {
    /// Why it cannot be read.
    type Error: Error;

    /// The next transaction, or `None` at the end. Records of the current one that were not asked
    /// for are skipped.
    ///
    /// # Errors
    /// After an error the source is of no more use: it goes on failing.
    fn next_transaction(&mut self) -> Result<Option<TransactionInfo>, Self::Error>;

    /// The next record of the current transaction, or `None` after the last one.
    ///
    /// # Errors
    /// As [`Source::next_transaction`]. What was given of the transaction must not be committed.
    fn next_record(&mut self) -> Result<Option<Record>, Self::Error>;

    /// How far it has been read.
    fn progress(&self) -> Progress;

    /// The next transaction with all its records, which must fit in memory; `None` at the end.
    ///
    /// # Errors
    /// As [`Source::next_transaction`].
    fn next(&mut self) -> Result<Option<Transaction>, Self::Error> {
        let Some(info) = self.next_transaction()? else { return Ok(None) };
        let mut records = Vec::new();
        while let Some(record) = self.next_record()? {
            records.push(record);
        }
        Ok(Some(Transaction { info, records }))
    }
}

impl<S: Source + ?Sized> Source for &mut S {
    type Error = S::Error;

    fn next_transaction(&mut self) -> Result<Option<TransactionInfo>, Self::Error> {
        (**self).next_transaction()
    }
    fn next_record(&mut self) -> Result<Option<Record>, Self::Error> {
        (**self).next_record()
    }
    fn progress(&self) -> Progress {
        (**self).progress()
    }
}
