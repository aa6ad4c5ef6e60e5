// SPDX-License-Identifier: GPL-2.0-or-later
//! `--database` from any text, for SQLite and for MySQL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neo_storage::database::{mysql, sqlite};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for home in [None, Some("/home/neo")] {
        // An error is shown.
        if let Err(error) = sqlite::url::Url::parse(&text, home) {
            assert!(!error.to_string().is_empty());
        }
        match mysql::url::Url::parse(&text, home) {
            Ok(url) => {
                assert!(!url.describe().is_empty());
                let _ = url.user();
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
