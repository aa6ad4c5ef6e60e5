// SPDX-License-Identifier: GPL-2.0-or-later
//! What can be wrong with a `Data.fs`, said with the position where it is wrong.

use std::{error, fmt, io, path::PathBuf};

use neo_common::types::{Oid, Tid};

/// Why a file cannot be read.
#[derive(Debug)]
pub enum ReadError {
    /// It cannot be opened.
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system failed to give its content.
    Io {
        /// Where, in bytes from the beginning.
        pos: u64,
        /// Why.
        source: io::Error,
    },
    /// Its content is not what ZODB writes.
    Damaged {
        /// Where the transaction or record begins that is wrong, in bytes from the beginning.
        pos: u64,
        /// What is wrong.
        damage: Damage,
    },
    /// An object is bigger than the reader was told to accept.
    ObjectTooBig {
        /// Where its record begins, in bytes from the beginning.
        pos: u64,
        /// The object.
        oid: Oid,
        /// Bytes of its data.
        size: u64,
        /// Bytes accepted.
        size_max: u64,
    },
    /// The reader was used again after one of the errors above.
    Failed,
}

/// What is wrong at a position of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// The first bytes are not those of a FileStorage.
    NotFileStorage {
        /// What is there: 4 bytes, less if the file is shorter.
        found: Vec<u8>,
    },
    /// The file ends inside the header of a transaction.
    HeaderCut {
        /// Bytes left of the header.
        size: u64,
    },
    /// The file ends before the transaction does.
    TransactionCut {
        /// Where the transaction should end; `None` beyond all numbers.
        end: Option<u64>,
        /// Where the file ends.
        file_size: u64,
    },
    /// The file became shorter than what was read of it.
    Shrunk {
        /// Where it ends now.
        file_size: u64,
    },
    /// What is there is not what was there when the file was opened.
    Changed,
    /// The transaction is shorter than its own header.
    LengthTooSmall {
        /// Its length.
        length: u64,
        /// That of its header.
        header: u64,
    },
    /// The length after the transaction is not the one before it.
    LengthMismatch {
        /// The one before.
        before: u64,
        /// The one after.
        after: u64,
    },
    /// The transaction has an unknown status.
    Status(u8),
    /// The transaction is marked as unfinished but more follows it.
    UnfinishedInside {
        /// Bytes that follow.
        following: u64,
    },
    /// The tid is not greater than the one before.
    TidOrder {
        /// Of this transaction.
        tid: Tid,
        /// Of the transaction before.
        previous: Tid,
    },
    /// The record goes beyond the end of its transaction.
    RecordTooLong {
        /// Where the record should end; `None` beyond all numbers.
        end: Option<u64>,
        /// Where the records of the transaction end.
        transaction_end: u64,
    },
    /// The record says that it belongs to another transaction.
    RecordTransaction {
        /// Position it gives.
        found: u64,
        /// Position of the transaction it is in.
        expected: u64,
    },
    /// The record has another tid than its transaction.
    RecordTid {
        /// Of the record.
        found: Tid,
        /// Of the transaction.
        expected: Tid,
    },
    /// The record belongs to a version, which no ZODB supports any more.
    Version,
    /// The previous record of the object is said to be after this one.
    Previous {
        /// Position it gives.
        previous: u64,
    },
    /// The record that a back-pointer leads to is not one that it can lead to.
    BackPointer {
        /// The object.
        oid: Oid,
        /// Where the back-pointer leads to.
        target: u64,
        /// What is wrong with that.
        fault: BackPointerFault,
    },
}

/// What is wrong with the target of a back-pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackPointerFault {
    /// It is not before the record that leads to it, or before the first transaction.
    Outside,
    /// There is a record of another object, or no record at all.
    OtherObject(Oid),
    /// It is no record of the transaction that it claims to belong to.
    NoRecord,
}

/// Why a file cannot be written.
#[derive(Debug)]
pub enum WriteError {
    /// There is already a file of that name, or an index that would be taken for one of the new
    /// file, or a file of the name that is used while writing.
    Exists(PathBuf),
    /// The operating system refuses.
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tid is not greater than the one before.
    TidOrder {
        /// Of this transaction.
        tid: Tid,
        /// Of the transaction before.
        previous: Tid,
    },
    /// User, description or extension is longer than the format allows.
    MetadataTooLong {
        /// The transaction.
        tid: Tid,
        /// Which one.
        field: &'static str,
        /// Its bytes.
        size: usize,
    },
    /// Data of 0 bytes, which the format cannot tell from no data.
    EmptyData {
        /// The transaction.
        tid: Tid,
        /// The object.
        oid: Oid,
    },
    /// The file would be bigger than what ZODB's index can address (2^48 bytes).
    FileTooBig,
    /// The last transaction was not ended.
    TransactionOpen(Tid),
    /// The writer was used again after one of the errors above.
    Failed,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, source } => write!(f, "cannot open {}: {source}", path.display()),
            Self::Io { pos, source } => write!(f, "cannot read at position {pos}: {source}"),
            Self::Damaged { pos: 0, damage: damage @ Damage::NotFileStorage { .. } } => {
                write!(f, "{damage}")
            }
            Self::Damaged { pos, damage } => write!(f, "damaged at position {pos}: {damage}"),
            Self::ObjectTooBig { pos, oid, size, size_max } => write!(
                f,
                "object {oid} at position {pos} has {size} bytes, more than the {size_max} accepted"
            ),
            Self::Failed => write!(f, "reading has already failed"),
        }
    }
}

impl error::Error for ReadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Open { source, .. } | Self::Io { source, .. } => Some(source),
            Self::Damaged { .. } | Self::ObjectTooBig { .. } | Self::Failed => None,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFileStorage { found } if found.is_empty() => {
                write!(f, "not a FileStorage: the file is empty")
            }
            Self::NotFileStorage { found } => write!(
                f,
                "not a FileStorage: it begins with \"{}\" instead of \"FS30\" or \"FS21\"",
                found.escape_ascii()
            ),
            Self::HeaderCut { size } => {
                write!(f, "the file ends {size} bytes after the beginning of a transaction")
            }
            Self::TransactionCut { end: Some(end), file_size } => write!(
                f,
                "the transaction goes to position {end} but the file ends at {file_size}: \
                 truncated, or a wrong length"
            ),
            Self::TransactionCut { end: None, .. } => {
                write!(f, "the transaction has an impossible length")
            }
            Self::Shrunk { file_size } => {
                write!(f, "the file was cut to {file_size} bytes while it was read")
            }
            Self::Changed => write!(f, "the file was changed while it was in use"),
            Self::LengthTooSmall { length, header } => write!(
                f,
                "the transaction has a length of {length} bytes, less than its header of {header}"
            ),
            Self::LengthMismatch { before, after } => write!(
                f,
                "the length of the transaction is {before} at its beginning and {after} at its end"
            ),
            Self::Status(status) => {
                write!(f, "unknown status \"{}\" of a transaction", status.escape_ascii())
            }
            Self::UnfinishedInside { following } => write!(
                f,
                "the transaction was not finished, although {following} more bytes follow"
            ),
            Self::TidOrder { tid, previous } => {
                write!(f, "tid {tid} comes after {previous}, which is not smaller")
            }
            Self::RecordTooLong { end: Some(end), transaction_end } => write!(
                f,
                "the record goes to position {end}, its transaction only to {transaction_end}"
            ),
            Self::RecordTooLong { end: None, .. } => {
                write!(f, "the record has an impossible length")
            }
            Self::RecordTransaction { found, expected } => write!(
                f,
                "the record belongs to a transaction at {found} but is in the one at {expected}"
            ),
            Self::RecordTid { found, expected } => {
                write!(f, "the record has tid {found}, its transaction {expected}")
            }
            Self::Version => write!(f, "the record belongs to a version, these are not supported"),
            Self::Previous { previous } => {
                write!(f, "the previous record is said to be at {previous}, which comes later")
            }
            Self::BackPointer { oid, target, fault } => {
                write!(f, "the data of object {oid} is said to be at {target}, but ")?;
                match fault {
                    BackPointerFault::Outside => write!(f, "it must be in an earlier record"),
                    BackPointerFault::OtherObject(other) => {
                        write!(f, "a record of {other} seems to be there")
                    }
                    BackPointerFault::NoRecord => write!(f, "no valid record is there"),
                }
            }
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(path) => {
                write!(f, "{} already exists: move or remove it first", path.display())
            }
            Self::Io { path, source } => write!(f, "cannot write {}: {source}", path.display()),
            Self::TidOrder { tid, previous } => {
                write!(f, "transaction {tid} comes after {previous}, which is not smaller")
            }
            Self::MetadataTooLong { tid, field, size } => write!(
                f,
                "transaction {tid} has {size} bytes of {field}, a FileStorage holds at most 65535"
            ),
            Self::EmptyData { tid, oid } => write!(
                f,
                "object {oid} of transaction {tid} has data of 0 bytes, which a FileStorage cannot \
                 hold"
            ),
            Self::FileTooBig => write!(f, "a FileStorage cannot be bigger than 2^48 bytes"),
            Self::TransactionOpen(tid) => write!(f, "transaction {tid} is incomplete"),
            Self::Failed => write!(f, "writing has already failed"),
        }
    }
}

impl error::Error for WriteError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Exists(_)
            | Self::TidOrder { .. }
            | Self::MetadataTooLong { .. }
            | Self::EmptyData { .. }
            | Self::FileTooBig
            | Self::TransactionOpen(_)
            | Self::Failed => None,
        }
    }
}
