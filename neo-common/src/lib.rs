// SPDX-License-Identifier: GPL-2.0-or-later
//! What all NEO nodes share.
//!
//! ```text
//!            net (drivers: sockets, threads, clocks; feature "net")
//!             |  Input                    ^  Output
//!             v                           |
//!            engine (connections, expected answers, handlers, timers, outbox)
//!             |                           ^
//!             v                           |
//!            node, partition_table       protocol (packets, codec, frame)
//!                          \             /
//!                           types, limits, time, prng
//! ```
//!
//! Everything below `net` is pure: no socket, thread, clock or unseeded random number.

#[cfg(feature = "compression")]
pub mod compression;
pub mod config;
pub mod engine;
pub mod limits;
pub mod logging;
pub mod master_list;
#[cfg(feature = "net")]
pub mod net;
pub mod node;
pub mod partition_table;
pub mod planted;
pub mod prng;
pub mod protocol;
pub mod time;
pub mod types;
