// SPDX-License-Identifier: GPL-2.0-or-later
//! A `Data.fs` from any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| neo_filestorage::fuzz_one(bytes));
