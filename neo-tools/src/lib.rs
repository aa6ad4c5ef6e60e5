// SPDX-License-Identifier: GPL-2.0-or-later
//! Tools around a NEO cluster.
//!
//! - [`mod@bench`]: `neobench`, how fast a cluster is;
//! - [`logs`]: `neolog`, what nodes logged;
//! - [`migrate`]: `neomigrate`, from and to `Data.fs`;
//! - [`simple`]: `neosimple`, a cluster in one process.
//!
//! They are programs of one user, not cores: they may read clocks and start threads.

// Not cores; see above.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod bench;
pub mod logs;
pub mod migrate;
pub mod simple;
