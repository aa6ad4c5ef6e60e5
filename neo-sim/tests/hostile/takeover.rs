// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections that are taken over, from the inputs that the fuzzer starts with and what it found.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use neo_common::prng::Prng;
use neo_common::protocol::Value;
use neo_sim::cluster::Role;
use neo_sim::{hostile, takeover};

use super::samples;

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
        for step in [2, 5, 8, 12, 17, 24, 40, 90, 160] {
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
        if record {
            for (index, stream) in streams_of_samples().iter().enumerate() {
                let which = index as u8 % 4;
                let bytes = [&[90, which, 0xff][..], stream].concat();
                fs::write(directory.join(format!("samples_{index}")), bytes).unwrap();
            }
        }
    }
}

/// One packet of each kind, some of them in each stream.
fn streams_of_samples() -> Vec<Vec<u8>> {
    let by_code: BTreeMap<i128, Vec<Value>> = samples().into_iter().collect();
    let packets: Vec<_> = by_code.into_iter().collect();
    let streams = packets.chunks(16).map(|packets| {
        let encoded = packets.iter().zip(1..).map(|((code, args), id)| {
            let args = Value::Array(args.clone());
            hostile::encode(&Value::Array(vec![Value::Int(id), Value::Int(*code), args]))
        });
        encoded.collect::<Vec<_>>().concat()
    });
    streams.collect()
}
