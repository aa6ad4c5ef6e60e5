// SPDX-License-Identifier: GPL-2.0-or-later
//! What a database of a storage node must do, whatever the backend.
//!
//! - `suite`: rules by hand, each on the memory backend, on SQLite and on MariaDB, that must agree.
//! - `property`: random sequences of operations, on all of them, that must agree.
//! - `reference`: databases written by upstream, with the answers that upstream gives.
//! - `opening`: what is refused, upgraded, locked.
//! - `importer`: a FileStorage that is served while it is imported.
//! - `crash`: what remains after the end of a process.
//! - `lanes`: threads and group commit.
//! - `mysql`: what only concerns MySQL and MariaDB; `server`: a private server for tests.
//!
//! MariaDB is started by the tests themselves, see `server`. Without it, what needs it is skipped, and
//! said so.

// Tests use threads and deadlines, and helpers of tests unwrap like tests do.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod crash;
mod harness;
mod importer;
mod lanes;
mod mysql;
mod opening;
mod property;
mod reference;
mod server;
mod suite;
