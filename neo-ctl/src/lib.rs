// SPDX-License-Identifier: GPL-2.0-or-later
//! neoctl: commands for a cluster, through an admin node. Upstream: neo/neoctl.
//!
//! ```text
//! arguments --> commands::parse --> Command --> Dialog <--> admin node --> text, exit status
//! ```
//!
//! - [`commands`]: what can be asked, and its grammar;
//! - [`arguments`]: node ids, tids and numbers;
//! - [`dialog`]: the requests that a command takes, and what its answers become;
//! - [`output`]: the exact texts;
//! - [`usage`]: the list of commands;
//! - [`app`]: the node that carries a dialog to an admin.
//!
//! Scripts read the output: texts, streams and statuses are upstream's. Success is status 0 and a
//! text on standard output; a command that is refused or wrong is status 1 and a text on standard
//! error.

pub mod app;
pub mod arguments;
pub mod commands;
pub mod dialog;
pub mod json;
pub mod output;
pub mod usage;

pub use app::Ctl;
pub use commands::Command;
pub use dialog::Dialog;
