// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections that are taken over, from the inputs that the fuzzer starts with and what it found.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use neo_common::prng::Prng;
use neo_sim::cluster::Role;
use neo_sim::takeover;

const ROLES: [(&str, Role); 4] = [
    ("connection_master", Role::Master),
    ("connection_storage", Role::Storage),
    ("connection_admin", Role::Admin),
    ("connection_client", Role::Client),
];

/// Inputs of `fuzz/seeds`, as they are and with some bytes changed.
#[test]
fn seeds_of_the_fuzzer() {
    for (target, role) in ROLES {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let mut paths: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{}", directory.display());
        let mut prng = Prng::new(1);
        for path in paths {
            println!("{}", path.display());
            let bytes = fs::read(&path).unwrap();
            takeover::run(role, &bytes);
            for _ in 0..3 {
                let mut changed = bytes.clone();
                for _ in 0..1 + prng.below(4) {
                    let at = prng.below(changed.len());
                    changed[at] = prng.below(256) as u8;
                }
                takeover::run(role, &changed);
            }
        }
    }
}

/// NEO_TESTS_RECORD=1: makes the inputs that the fuzzer starts with anew, when the protocol changed.
#[test]
fn record() {
    let record = std::env::var_os("NEO_TESTS_RECORD").is_some();
    for (target, role) in ROLES {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let mut count = 0;
        for step in [1, 2, 4, 8, 16, 32, 64, 100, 150, 200] {
            for which in 0..4 {
                let started = Instant::now();
                let Some(bytes) = takeover::record(role, step, which) else { continue };
                count += 1;
                assert!(started.elapsed() < Duration::from_secs(20));
                if record {
                    fs::create_dir_all(&directory).unwrap();
                    fs::write(directory.join(format!("{step}_{which}")), bytes).unwrap();
                }
            }
            if !record && count > 0 {
                break;
            }
        }
        assert!(count > 0, "{target}: nothing arrives");
    }
}
