// SPDX-License-Identifier: GPL-2.0-or-later
//! What a database of a storage node must do, whatever the backend.
//!
//! - `suite`: rules by hand, each on the memory backend and on SQLite, that must agree.
//! - `property`: random sequences of operations, on both, that must agree.
//! - `reference`: databases written by upstream, with the answers that upstream gives.
//! - `opening`: what is refused, upgraded, locked.
//! - `crash`: what remains after the end of a process.
//! - `lanes`: threads and group commit.

// Tests use threads and deadlines, and helpers of tests unwrap like tests do.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod crash;
mod harness;
mod lanes;
mod opening;
mod property;
mod reference;
mod suite;
