// SPDX-License-Identifier: GPL-2.0-or-later
//! A configuration file and a command line from any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| neo_common::config::fuzz_one(bytes));
