// SPDX-License-Identifier: GPL-2.0-or-later
//! Any bytes on an identified connection of a running master: see `neo_sim::takeover`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neo_sim::cluster::Role;

fuzz_target!(|bytes: &[u8]| neo_sim::takeover::run(Role::Master, bytes));
