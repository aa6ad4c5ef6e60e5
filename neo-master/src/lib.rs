// SPDX-License-Identifier: GPL-2.0-or-later
//! The master node.
//!
//! One *primary* master drives the cluster: it identifies nodes, owns the partition table, gives
//! out ids, and drives two-phase commit. The others are *secondary*, ready to take over.
//!
//! ```text
//!   app (Master) = phase beside cluster
//!                    |            |
//!     recovery, verification,   nodes, partition_table, transactions, pack
//!     secondary, backup           |
//!                    \            commit (between clients and storages)
//!                     \          /
//!                      handlers (one per kind of peer and situation)
//! ```

pub mod app;
pub mod backup;
pub mod cluster;
pub mod commit;
pub mod handlers;
#[cfg(feature = "net")]
pub mod host;
pub mod pack;
pub mod partition_table;
pub mod phase;
#[cfg(feature = "net")]
pub mod prepare;
pub mod recovery;
pub mod secondary;
pub mod transactions;
pub mod verification;

#[cfg(test)]
mod tests;

pub use app::{Job, Master, Options, OptionsError, Upstream};
