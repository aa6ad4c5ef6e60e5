// SPDX-License-Identifier: GPL-2.0-or-later
//! The master among peers played by hand.

mod administration;
mod backup;
mod commit;
mod election;
mod harness;
mod pack;
mod probes;
mod random;
mod restart;
mod sessions;
mod start;
mod verification;
