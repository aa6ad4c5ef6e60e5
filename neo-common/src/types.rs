// SPDX-License-Identifier: GPL-2.0-or-later
//! Identifiers: look-alike numbers with types of their own.
//!
//! Converting between them is a visible step (`Tid::from(u64)`, `Ttid::as_tid`), because mixing a
//! *ttid* with a *tid* or an *oid* is how data gets lost. They print the way upstream prints them:
//! 16 lower-case hexadecimal digits, and `S1`, `M2`, ... for nodes.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

macro_rules! p64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Smallest value: 8 null bytes.
            pub const ZERO: Self = Self(0);
            /// 8 bytes `ff`: no value at all.
            pub const INVALID: Self = Self(u64::MAX);

            /// From the number that the 8 big-endian bytes stand for.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// The number that the 8 big-endian bytes stand for.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// From 8 big-endian bytes.
            pub fn from_bytes(bytes: [u8; 8]) -> Self {
                Self(BigEndian::read_u64(&bytes))
            }
            /// The 8 big-endian bytes, as on the wire and in ZODB.
            pub fn to_bytes(self) -> [u8; 8] {
                let mut bytes = [0; 8];
                BigEndian::write_u64(&mut bytes, self.0);
                bytes
            }
            /// Next greater value; `None` after the greatest one.
            pub fn next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }
            /// Next smaller value; `None` before the smallest one.
            pub fn previous(self) -> Option<Self> {
                self.0.checked_sub(1).map(Self)
            }
            /// Partition that holds it, in a table of `partitions` > 0 rows.
            pub fn partition(self, partitions: u32) -> Partition {
                (self.0 % u64::from(partitions)) as Partition
            }
        }
        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

p64! {
    /// Transaction id: a ZODB time stamp, given by the primary master at commit.
    Tid
}
p64! {
    /// Temporary transaction id: names a transaction from begin to commit.
    Ttid
}
p64! {
    /// Object id.
    Oid
}

impl Tid {
    /// Greatest tid: signed 64-bit maximum (SQLite has no unsigned integer).
    pub const MAX: Self = Self(i64::MAX as u64);
}

impl Ttid {
    /// The number of this ttid as a tid (they are drawn from the same sequence).
    pub const fn as_tid(self) -> Tid {
        Tid(self.0)
    }
}

impl Tid {
    /// This tid used as a ttid: a transaction whose final tid was imposed, or a replicated one.
    pub const fn as_ttid(self) -> Ttid {
        Ttid(self.0)
    }
}

/// Name of a connection inside one process: given once, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(u64);

impl ConnId {
    /// From the number that the engine or its driver chose.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Index of a row of the partition table, from 0.
pub type Partition = u32;

/// "All partitions" in `AskTIDs`.
pub const INVALID_PARTITION: Partition = u32::MAX;

/// Version of the partition table, from 1; it grows by 1 with each change.
pub type Ptid = u64;

/// SHA-1 of object data as stored.
pub type Hash = [u8; 20];

/// Hash of no data: deletion, or creation undone.
pub const ZERO_HASH: Hash = [0; 20];

/// Kind of node, from the high byte of a [`NodeId`] or the `NodeTypes` enumeration of the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum NodeType {
    /// Drives transactions, or is a spare that would.
    Master = 0,
    /// Keeps objects.
    Storage = 1,
    /// ZODB application.
    Client = 2,
    /// Relays `neoctl` commands and monitors.
    Admin = 3,
}

/// Node id (*uuid* in upstream): signed 32-bit, the high byte tells the kind of node.
///
/// Storage ids are positive and permanent, the others are negative and temporary. 0 is invalid and
/// cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(i32);

impl NodeId {
    /// From the number on the wire; `None` if 0.
    pub const fn new(value: i32) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }
    /// Number `index` (from 1) of the namespace of a node type. `None` if out of range.
    pub const fn of(node_type: NodeType, index: u32) -> Option<Self> {
        if index == 0 || index > 0xff_ffff {
            return None;
        }
        Some(Self((Self::namespace(node_type) << 24) + index as i32))
    }
    /// The number on the wire and in databases.
    pub const fn get(self) -> i32 {
        self.0
    }
    /// Temporary ids (all but storages') are never persisted.
    pub const fn is_temporary(self) -> bool {
        self.0 < 0
    }
    /// High byte of the ids of a node type. Upstream: lib/protocol.py, `UUID_NAMESPACES`.
    pub const fn namespace(node_type: NodeType) -> i32 {
        match node_type {
            NodeType::Storage => 0,
            NodeType::Master => -0x10,
            NodeType::Client => -0x20,
            NodeType::Admin => -0x30,
        }
    }
    /// Node type that the high byte stands for, if any.
    pub const fn node_type(self) -> Option<NodeType> {
        match self.0 >> 24 {
            0 => Some(NodeType::Storage),
            -0x10 => Some(NodeType::Master),
            -0x20 => Some(NodeType::Client),
            -0x30 => Some(NodeType::Admin),
            _ => None,
        }
    }
    /// Number in its namespace: low 24 bits.
    pub const fn index(self) -> u32 {
        (self.0 & 0xff_ffff) as u32
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.node_type() {
            Some(NodeType::Master) => 'M',
            Some(NodeType::Storage) => 'S',
            Some(NodeType::Client) => 'C',
            Some(NodeType::Admin) => 'A',
            None => '?',
        };
        // Padding applies to the whole text, as tables need.
        f.pad(&format!("{letter}{}", self.index()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Prints `Some(nid)` as `S1` and `None` as `None`, like upstream's `uuid_str`.
pub fn nid_str(nid: Option<NodeId>) -> String {
    nid.map_or_else(|| "None".into(), |nid| nid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_print_and_convert_like_upstream() {
        assert_eq!(NodeId::of(NodeType::Storage, 1).unwrap().get(), 1);
        assert_eq!(NodeId::of(NodeType::Master, 1).unwrap().get(), -268435455);
        assert_eq!(NodeId::of(NodeType::Client, 1).unwrap().get(), -536870911);
        assert_eq!(NodeId::of(NodeType::Admin, 1).unwrap().get(), -805306367);
        for (value, text) in [(1, "S1"), (-268435454, "M2"), (-536870911, "C1"), (-805306367, "A1")]
        {
            let nid = NodeId::new(value).unwrap();
            assert_eq!(nid.to_string(), text);
            assert_eq!(NodeId::of(nid.node_type().unwrap(), nid.index()), Some(nid));
        }
        assert_eq!(NodeId::new(0), None);
        assert_eq!(NodeId::of(NodeType::Client, 0), None);
        assert_eq!(NodeId::of(NodeType::Client, 1 << 24), None);
    }

    #[test]
    fn identifiers_round_trip_through_bytes() {
        let tid = Tid::new(0x040d_2c93_dcdc_4433);
        assert_eq!(tid.to_string(), "040d2c93dcdc4433");
        assert_eq!(Tid::from_bytes(tid.to_bytes()), tid);
        assert_eq!(tid.partition(12), (0x040d_2c93_dcdc_4433_u64 % 12) as u32);
        assert_eq!(Oid::INVALID.next(), None);
        assert_eq!(Oid::ZERO.previous(), None);
    }
}
