// SPDX-License-Identifier: GPL-2.0-or-later
//! Logging: lines as upstream writes them, and failures that repeat. Upstream: lib/logger.py.
//!
//! ```text
//! 2026-11-21 22:47:41.0780 WARNING   NEO        [administration:188] no node added
//! ```
//!
//! Local time with tenths of milliseconds, level, name, module and line, message. A message of several
//! lines has the same beginning on each.
//!
//! - [`setup`](fn@setup) (driver): standard error gets warnings and errors, or what `RUST_LOG` says; a
//!   log file, if there is one, gets more. Every line is written at once, and the file can be
//!   reopened after it was renamed.
//! - [`PacketRecord`]: packets. If there is a log file, the last ones are kept in memory and written
//!   when there is a warning or an error, when a signal or `neoctl flush_log` asks, and at the end.
//!   So they are in the file behind lines that are later: `neolog` sorts.
//! - [`Repeated`]: the first failure of a series is logged, then only how many there were.

mod line;
#[cfg(feature = "net")]
#[allow(unsafe_code)] // Explained there.
mod local_time;
mod packet;
#[cfg(feature = "net")]
mod recent;
mod repeated;
#[cfg(feature = "net")]
mod sink;

pub use line::{LocalTime, write_line};
#[cfg(feature = "net")]
pub use local_time::local_time;
pub use packet::{PACKET_LEVEL, PACKETS, PacketRecord};
pub use repeated::Repeated;
#[cfg(feature = "net")]
pub use sink::{DEFAULT_NAME, LogOptions, NodeName, reopen, setup, setup_daemon};
