// SPDX-License-Identifier: GPL-2.0-or-later
//! `Data.fs`: reader and writer of ZODB's FileStorage format, without Python.
//!
//! For the tools that copy between a FileStorage and a NEO cluster, and for storage nodes that import
//! one. What goes through it is [`TransactionInfo`] and [`Record`], from any [`Source`].
//!
//! ```text
//!  Data.fs --Reader--> Source: next_transaction, next_record, next_record, ... --Writer--> Data.fs
//!  cluster --client--> Source                \--compare--/
//! ```
//!
//! # The format
//!
//! Facts from the package `ZODB`, module `ZODB.FileStorage.format`; all numbers are big-endian.
//!
//! ```text
//!  file         "FS21" (Python 2) or "FS30" (Python 3), then transactions until the end
//!
//!  transaction  8 tid          strictly increasing
//!               8 length       of the transaction without its last 8 bytes
//!               1 status       ' ' finished, 'p' packed, 'u' undone (to be ignored),
//!                              'c' voted but not finished: the end of the file
//!               2 2 2 lengths  of user, description, extension, which follow
//!               . records      until `length` is used up; there may be none
//!               8 length       again, so that the file can be read backwards
//!
//!  record       8 oid
//!               8 tid          that of the transaction
//!               8 position     of the previous record of this oid, 0 if none
//!               8 position     of the transaction
//!               2 zero         (length of a version name, in files of the last century)
//!               8 length       of the data that follows; 0: a back-pointer follows instead
//!               8 position     of the earlier record of this oid that has the data;
//!                              0: no data (object deleted, or its creation undone)
//! ```
//!
//! A back-pointer, written by an undo, may lead to another one. What a record gives as
//! [`Record::data_txn`] is the tid of the record that its own back-pointer leads to, as ZODB's
//! iterator does, although the data may come from further back.
//!
//! An undo of several transactions at once writes an oid several times in a transaction. Only the
//! last one counts; it is given nevertheless, and written again.
//!
//! # Strictness
//!
//! ZODB's iterator stops silently at whatever it does not understand. Here, everything that is not
//! the end of the file or a transaction under way at the end of it is an error with a position,
//! because what comes after would be lost without anybody noticing.

mod back_pointer;
mod compare;
mod error;
mod format;
mod fuzz;
mod index;
mod indexed;
mod input;
mod output;
mod reader;
mod source;
mod writer;

pub use compare::{CompareError, Compared, Difference, compare};
pub use error::{BackPointerFault, Damage, ReadError, WriteError};
pub use fuzz::fuzz_one;
pub use indexed::{Indexed, RecordPlace, Summary, TransactionPlace};
pub use input::ReadAt;
pub use reader::{DATA_BYTES_MAX, Reader, Unfinished};
pub use source::{Progress, Record, Source, Status, Transaction, TransactionInfo, Unit};
pub use writer::{Writer, Written};
