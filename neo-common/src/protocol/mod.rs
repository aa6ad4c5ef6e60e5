// SPDX-License-Identifier: GPL-2.0-or-later
//! What is on the wire: protocol 5, a msgpack stream.
//!
//! - [`packets`]: the table of packets, [`Packet`];
//! - [`enums`]: states, types and error codes;
//! - [`codec`]: how values are written and read;
//! - [`frame`]: handshake and splitting of a byte stream.

pub mod codec;
pub mod enums;
pub mod frame;
pub mod packets;

pub use codec::{Malformed, Map, OutBuffer, Value};
pub use enums::{CellState, ClusterState, ErrorCode, NodeState, NodeType, WireEnum};
pub use packets::{MsgId, NodeEntry, PackOids, PackOrder, PackRequest, Packet, Rows, StoredData};
