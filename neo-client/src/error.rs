// SPDX-License-Identifier: GPL-2.0-or-later
//! What can go wrong for the application.
//!
//! Variants are chosen by what a ZODB storage has to raise; the first line of each says which
//! exception of `ZODB.POSException` it is.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use neo_common::types::{Oid, Partition, Tid, Ttid};

/// Any error that is not ours, kept as it is (for example a Python exception of a resolver).
pub type Foreign = Arc<dyn std::error::Error + Send + Sync + 'static>;

/// Why a call failed.
#[derive(Clone, Debug)]
pub enum Error {
    /// POSKeyError. The object exists, but not at the given tid.
    OidNotFound(Oid),
    /// POSKeyError. There is no revision of this object at all.
    OidDoesNotExist(Oid),
    /// POSKeyError. The object has no data at the given tid: it was deleted, or its creation was
    /// undone.
    CreationUndone {
        /// The object.
        oid: Oid,
        /// Transaction that removed the data.
        serial: Tid,
    },
    /// No transaction has this tid. (UndoError when undoing, otherwise StorageError.)
    TidNotFound(Tid),
    /// ConflictError. The object was changed since `base`, and this could not be resolved.
    Conflict(Conflict),
    /// ReadConflictError. An object on which the transaction depends was changed.
    ReadConflict {
        /// The object.
        oid: Oid,
        /// Its current serial.
        committed: Tid,
        /// What the transaction was based on.
        base: Tid,
    },
    /// ReadConflictError. The database was cut back to an older state while reading.
    Truncated,
    /// ReadOnlyError. The client or the cluster is read-only.
    ReadOnly(String),
    /// UndoError. The transaction cannot be undone.
    Undo {
        /// Why.
        reason: &'static str,
        /// Object that prevents it.
        oid: Option<Oid>,
    },
    /// StorageTransactionError. The transaction is not in a state where this is possible.
    Transaction(&'static str),
    /// StorageError. The data is damaged in all cells that could be asked.
    WrongChecksum {
        /// The object.
        oid: Oid,
        /// Its serial.
        serial: Tid,
    },
    /// StorageError. No storage that holds this partition could be reached, although the cluster is
    /// operational.
    NoStorage(Partition),
    /// StorageError. No storage took a store or a check of the transaction, or not for sure.
    NotStored(Partition),
    /// StorageError. The connection to the primary master was lost since the transaction began.
    MasterLost,
    /// StorageError. Storages that failed during the vote cannot be left out.
    Incomplete,
    /// StorageError. A peer refused a request.
    Refused(String),
    /// StorageError. No primary master was found within [`crate::Options::connect_timeout`].
    Unreachable,
    /// StorageError. Whether the transaction was committed could not be found out, because the
    /// client was closed meanwhile.
    OutcomeUnknown(Ttid),
    /// StorageError. The transaction was not committed: the cluster stopped before it could be.
    NotCommitted(Ttid),
    /// StorageError. The client is closed.
    Closed,
    /// StorageError. The process was forked since the client was opened; open another one.
    Forked,
    /// ValueError. A size or an argument is out of range.
    Invalid(&'static str),
    /// Whatever a [`crate::Resolver`] failed with.
    Foreign(Foreign),
}

/// Two transactions changed the same object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The object.
    pub oid: Oid,
    /// Serial of the revision that was committed meanwhile.
    pub committed: Tid,
    /// Serial of the revision on which `data` is based.
    pub base: Tid,
    /// Data that was to be stored; `None` for a deletion.
    pub data: Option<Bytes>,
    /// Data of the committed revision, if it is known already.
    pub committed_data: Option<Bytes>,
}

impl Error {
    /// Keeps an error of the application.
    pub fn foreign(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Foreign(Arc::new(error))
    }

    /// Whether ZODB calls this a POSKeyError.
    pub const fn is_key_error(&self) -> bool {
        matches!(
            self,
            Self::OidNotFound(_) | Self::OidDoesNotExist(_) | Self::CreationUndone { .. }
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OidNotFound(oid) => write!(f, "object {oid} does not exist at that tid"),
            Self::OidDoesNotExist(oid) => write!(f, "object {oid} does not exist"),
            Self::CreationUndone { oid, serial } => {
                write!(f, "object {oid} was deleted or its creation undone by {serial}")
            }
            Self::TidNotFound(tid) => write!(f, "no transaction {tid}"),
            Self::Conflict(c) => {
                write!(f, "object {} was changed by {} since {}", c.oid, c.committed, c.base)
            }
            Self::ReadConflict { oid, committed, base } => {
                write!(f, "object {oid} that was read at {base} was changed by {committed}")
            }
            Self::Truncated => f.write_str("the database was cut back to an older state"),
            Self::ReadOnly(message) if message.is_empty() => f.write_str("read-only access"),
            Self::ReadOnly(message) => f.write_str(message),
            Self::Undo { reason, oid: None } => f.write_str(reason),
            Self::Undo { reason, oid: Some(oid) } => write!(f, "{reason}: object {oid}"),
            Self::Transaction(what) | Self::Invalid(what) => f.write_str(what),
            Self::WrongChecksum { oid, serial } => {
                write!(f, "wrong checksum of object {oid} at {serial}")
            }
            Self::NoStorage(partition) => {
                write!(f, "no storage available to read partition {partition}")
            }
            Self::NotStored(partition) => {
                write!(f, "no storage available to write to partition {partition}")
            }
            Self::MasterLost => f.write_str("connection to the primary master was lost"),
            Self::Incomplete => f.write_str(
                "storages for which the vote failed can not be left out without making the \
                 cluster non-operational",
            ),
            Self::Refused(message) => write!(f, "refused by a node: {message}"),
            Self::Unreachable => f.write_str("no primary master could be reached"),
            Self::OutcomeUnknown(ttid) => {
                write!(f, "the client was closed before it was known whether {ttid} is committed")
            }
            Self::NotCommitted(ttid) => {
                write!(f, "{ttid} is not committed: the connection to the master was lost")
            }
            Self::Closed => f.write_str("the client is closed"),
            Self::Forked => f.write_str(
                "this client was opened before a fork; open another one in this process",
            ),
            Self::Foreign(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Foreign(error) => Some(&**error),
            _ => None,
        }
    }
}

/// Result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
