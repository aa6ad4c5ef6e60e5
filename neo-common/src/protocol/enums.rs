// SPDX-License-Identifier: GPL-2.0-or-later
//! Enumerations of the wire: extension types 0, 1, 3 and 4 with one byte, and error codes.
//!
//! Names and numbers are upstream's (lib/protocol.py); `Display` gives the upstream name.

use std::fmt;
use std::str::FromStr;

pub use crate::types::NodeType;

/// An enumeration of the wire.
pub trait WireEnum: Copy + Sized + 'static {
    /// msgpack extension type: index of the enumeration.
    const EXT: i8;
    /// All items, in order of number.
    const ALL: &'static [Self];
    /// Number of the item.
    fn number(self) -> u8;
    /// Item with that number.
    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|item| item.number() == number)
    }
    /// Upstream's name of the item.
    fn name(self) -> &'static str;
}

/// Unknown name of an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownName(pub String);

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown name {:?}", self.0)
    }
}
impl std::error::Error for UnknownName {}

macro_rules! wire_enum {
    ($name:ident, $ext:literal, { $($item:ident => $text:literal),* $(,)? }) => {
        impl WireEnum for $name {
            const EXT: i8 = $ext;
            const ALL: &'static [Self] = &[$(Self::$item),*];
            fn number(self) -> u8 {
                self as u8
            }
            fn name(self) -> &'static str {
                match self { $(Self::$item => $text),* }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
        impl FromStr for $name {
            type Err = UnknownName;
            /// Any case is accepted, as `neoctl` does.
            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|item| item.name().eq_ignore_ascii_case(text))
                    .ok_or_else(|| UnknownName(text.to_owned()))
            }
        }
    };
}

/// State of a cell: what one node is allowed to do with one partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum CellState {
    /// Written but not read: some data is missing.
    OutOfDate = 0,
    /// Read and written.
    UpToDate = 1,
    /// Like up-to-date, and dropped as soon as other cells replace it.
    Feeding = 2,
    /// Neither read nor written (never produced by default).
    Corrupted = 3,
    /// Removed from the table (only in notifications of changes).
    Discarded = 4,
}
wire_enum!(CellState, 0, {
    OutOfDate => "OUT_OF_DATE", UpToDate => "UP_TO_DATE", Feeding => "FEEDING",
    Corrupted => "CORRUPTED", Discarded => "DISCARDED",
});

impl CellState {
    /// Whether reads are served from such a cell.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::UpToDate | Self::Feeding)
    }
    /// Whether stores are sent to such a cell.
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::OutOfDate | Self::UpToDate | Self::Feeding)
    }
}

/// State of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ClusterState {
    /// Waiting for storages that hold all data.
    Recovering = 0,
    /// Finishing what was decided, dropping what was not.
    Verifying = 1,
    /// Serving clients.
    Running = 2,
    /// Ending on an operator's request.
    Stopping = 3,
    /// Looking for the upstream cluster.
    StartingBackup = 4,
    /// Following the upstream cluster.
    BackingUp = 5,
    /// Cutting back to a consistent state before running.
    StoppingBackup = 6,
}
wire_enum!(ClusterState, 1, {
    Recovering => "RECOVERING", Verifying => "VERIFYING", Running => "RUNNING",
    Stopping => "STOPPING", StartingBackup => "STARTING_BACKUP", BackingUp => "BACKINGUP",
    StoppingBackup => "STOPPING_BACKUP",
});

/// State of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum NodeState {
    /// In a notification: forget that node.
    Unknown = 0,
    /// Not connected.
    Down = 1,
    /// Connected and usable.
    Running = 2,
    /// Connected, not part of the cluster (yet).
    Pending = 3,
}
wire_enum!(NodeState, 3, {
    Unknown => "UNKNOWN", Down => "DOWN", Running => "RUNNING", Pending => "PENDING",
});

wire_enum!(NodeType, 4, {
    Master => "MASTER", Storage => "STORAGE", Client => "CLIENT", Admin => "ADMIN",
});

/// Code of an `Error` packet: a plain integer, never an extension.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)] // The protocol document describes each; the names say it.
pub enum ErrorCode {
    Ack = 0,
    Denied = 1,
    NotReady = 2,
    OidNotFound = 3,
    TidNotFound = 4,
    OidDoesNotExist = 5,
    ProtocolError = 6,
    ReplicationError = 7,
    CheckingError = 8,
    BackendNotImplemented = 9,
    NonReadableCell = 10,
    ReadOnlyAccess = 11,
    IncompleteTransaction = 12,
    UndoPackError = 13,
}
wire_enum!(ErrorCode, 2, {
    Ack => "ACK", Denied => "DENIED", NotReady => "NOT_READY", OidNotFound => "OID_NOT_FOUND",
    TidNotFound => "TID_NOT_FOUND", OidDoesNotExist => "OID_DOES_NOT_EXIST",
    ProtocolError => "PROTOCOL_ERROR", ReplicationError => "REPLICATION_ERROR",
    CheckingError => "CHECKING_ERROR", BackendNotImplemented => "BACKEND_NOT_IMPLEMENTED",
    NonReadableCell => "NON_READABLE_CELL", ReadOnlyAccess => "READ_ONLY_ACCESS",
    IncompleteTransaction => "INCOMPLETE_TRANSACTION", UndoPackError => "UNDO_PACK_ERROR",
});
