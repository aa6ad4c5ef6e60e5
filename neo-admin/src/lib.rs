// SPDX-License-Identifier: GPL-2.0-or-later
//! The admin node: relays the commands of `neoctl` to the primary master, and watches the cluster.
//!
//! ```text
//!   neoctl --requests--> CtlHandler --relayed (Ticket::Relay)--> primary master
//!          <--answers---     | own answers                          |
//!                            v                                      v
//!                     nodes, partition table, state  <------  MasterHandler
//!                            |
//!                        Monitoring <--- BackupHandler   (admins of backup clusters)
//!                            |      ---> UpstreamHandler (admin of the upstream cluster)
//!                            v
//!                 answers to `print summary`, e-mails
//! ```
//!
//! - [`app`]: the node itself, [`Admin`];
//! - `handlers`: what it does with the packets of each kind of peer;
//! - [`monitor`]: health of this cluster and of its backups;
//! - [`mail`]: notifications by e-mail;
//! - `options`, `host`, `smtp`: command line and jobs of the process (feature `net`).
//!
//! Upstream: neo/admin.

pub mod app;
mod handlers;
#[cfg(feature = "net")]
pub mod host;
pub mod mail;
pub mod monitor;
#[cfg(feature = "net")]
pub mod options;
#[cfg(feature = "net")]
pub mod smtp;

pub use app::{Admin, Config, Job};

/// What is answered, and reported, without primary master.
pub const NOT_CONNECTED_MESSAGE: &str = "Not connected to a primary master.";
