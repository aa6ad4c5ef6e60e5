// SPDX-License-Identifier: GPL-2.0-or-later
//! The storage node: keeps objects with their history, and locks them for transactions.
//!
//! ```text
//!   peers --packets--> handlers --> Operation { Transactions, Replicator, Checker, Pack, ... }
//!                                       | Job                    ^ Done
//!                                       v                        |
//!                                  database lanes (one writer, several readers)
//! ```
//!
//! - [`app`]: the core itself, [`Storage`], and what all phases share;
//! - [`phase`]: from the search of the primary master to the operation;
//! - [`operation`]: the node while it serves;
//! - [`transactions`]: locks, conflicts, deadlock avoidance; [`reads`]: what clients may ask at once;
//! - [`replicator`], [`checker`]: work with other storages; [`pack`], [`background`]: own tasks;
//! - [`handlers`]: what it does with the packets of each kind of peer;
//! - [`database`]: what it keeps;
//! - `prepare`, `host`: command line, and threads of the process (feature `net`).
//!
//! Upstream: neo/storage.

pub mod app;
pub mod background;
pub mod checker;
pub mod database;
pub mod handlers;
#[cfg(feature = "net")]
pub mod host;
pub mod limits;
pub mod operation;
pub mod pack;
pub mod phase;
#[cfg(feature = "net")]
pub mod prepare;
pub mod reads;
pub mod replicator;
pub mod transactions;

pub use app::{Config, Done, Job, Storage, Stored};
