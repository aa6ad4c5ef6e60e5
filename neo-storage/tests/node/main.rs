// SPDX-License-Identifier: GPL-2.0-or-later
//! The storage node as a whole, by hand: packets in, packets out, over the memory backend.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod client;
mod harness;
mod packs;
mod random;
mod replication;
mod start;
