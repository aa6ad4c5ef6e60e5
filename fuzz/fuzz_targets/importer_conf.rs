// SPDX-License-Identifier: GPL-2.0-or-later
//! An `importer.conf` from any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neo_common::config::storage::Adapter;
use neo_storage::database::importer::config::Config;

fuzz_target!(|bytes: &[u8]| match Config::parse(bytes) {
    Ok((config, _)) => {
        assert_ne!(config.adapter, Adapter::Importer);
        assert!(!config.database.reveal().is_empty());
        assert!(!config.source.as_os_str().is_empty());
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
