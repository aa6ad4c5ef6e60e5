// SPDX-License-Identifier: GPL-2.0-or-later
//! Known races and failures, each as a short story in a simulated cluster.
//!
//! A story is made with a [`stage::Stage`]: applications do one thing after the other, packets are
//! held between two nodes, nodes are killed at a chosen moment. At the end, databases and all that
//! was read are checked against the model.
// Tests may unwrap; not every scenario uses every helper.
#![allow(clippy::unwrap_used, dead_code)]

mod faults;
mod operations;
mod recovery;
mod stage;
