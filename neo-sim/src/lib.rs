// SPDX-License-Identifier: GPL-2.0-or-later
//! Simulated clusters: the cores of production in a world made of one seed.
//!
//! ```text
//!   workload (applications) --calls--> port --> client core ┐
//!                                                           |   world: events, virtual clock,
//!   masters, storages (disk: lanes on a memory backend),    +-- hosts, connections (bytes cut,
//!   admins, the operator's tool                             |   delayed, reset by seed)
//!                                                           ┘
//!   faults --> cluster (starts, kills, cuts)    checkers <-- packets, replies, databases, model
//! ```
//!
//! - [`process`]: one core and what stands for its threads;
//! - [`network`]: how bytes travel: delays, cuts, resets, partitions;
//! - [`world`]: the queue of events, the virtual clock, hosts and connections;
//! - [`disk`]: the lanes of a storage, with the times and failures of a disk;
//! - [`port`]: threads of an application above a client;
//! - [`cluster`]: all nodes, the operator, and how they are killed and started again;
//! - [`workload`]: what applications do;
//! - [`model`], [`checkers`]: what a correct cluster contains, and what it never does;
//! - [`faults`]: what goes wrong, drawn from the seed;
//! - [`hostile`]: a peer that does not keep to the protocol;
//! - [`takeover`]: a connection whose other end is taken over;
//! - [`run`]: one seed, from start to verdict.
//!
//! The world plugs in at the byte boundary, so that a run covers handshake, framing, dispatch,
//! phases, transactions and the transaction logic of storages. Nothing depends on anything but the
//! seed: a failing run is replayed by its seed.

pub mod checkers;
pub mod cluster;
pub mod disk;
pub mod faults;
pub mod hostile;
pub mod model;
pub mod network;
pub mod port;
pub mod process;
pub mod run;
pub mod takeover;
pub mod workload;
pub mod world;
