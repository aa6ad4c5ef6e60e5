// SPDX-License-Identifier: GPL-2.0-or-later
//! Simulated clusters: the cores of production in a world made of one seed.
//!
//! - [`process`]: one core and what stands for its threads;
//! - [`network`]: how bytes travel: delays, cuts, resets, partitions;
//! - [`world`]: the queue of events, the virtual clock, hosts and connections.
//!
//! The world plugs in at the byte boundary, so that a run covers handshake, framing, dispatch,
//! phases, transactions and the transaction logic of storages. Nothing depends on anything but the
//! seed: a failing run is replayed by its seed.

pub mod network;
pub mod process;
pub mod world;
