// SPDX-License-Identifier: GPL-2.0-or-later
//! The same loads through the Python package, in a process of an interpreter that has it.
//!
//! So what Python adds to the cost of a load is seen beside the Rust client. Nothing of Python is
//! linked: the interpreter is a child with a small program, which measures itself. What is in the
//! cache is compared with what Python can do at best: look it up in a dictionary and copy it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use neo_common::types::Oid;

use super::cluster::Target;
use super::figures::{Better, Column};
use super::workloads::LOAD_BYTES;
use crate::migrate::Failure;

const PROGRAM: &str = include_str!("python.py");

/// Threads that load at the same time.
const THREADS: usize = 8;

/// Loads these objects with an interpreter.
///
/// # Errors
/// It can not be run, has no package `neo`, or the cluster can not be reached.
pub fn load(
    interpreter: &Path,
    target: &Target,
    objects: &[Oid],
    sheet: &mut Column<'_>,
) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", interpreter.display());
    let masters: Vec<String> = target.masters.iter().map(ToString::to_string).collect();
    let mut child = Command::new(interpreter)
        .args(["-c", PROGRAM, &masters.join(" "), &target.cluster, &THREADS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let oids: String = objects.iter().map(|oid| format!("{:016x}\n", oid.get())).collect();
    if let Some(mut stdin) = child.stdin.take() {
        // If it does not read, it ended, and has said why.
        let _ = stdin.write_all(oids.as_bytes());
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[p50, p99, cpu, rate, cpu_of_threads, hit, copy] = figures.as_slice() else {
        return Err(failed(&format_args!("{}, without figures", output.status)).into());
    };
    let kib = LOAD_BYTES >> 10;
    let group = format!("load {kib} KiB, one after the other, from Python");
    sheet.add(&group, "p50", "µs", Better::Lower, p50);
    sheet.add(&group, "p99", "µs", Better::Lower, p99);
    sheet.add(&group, "CPU of client per load", "µs", Better::Lower, cpu);
    let group = format!("load {kib} KiB, {THREADS} threads of Python");
    sheet.add(&group, "loads", "1/s", Better::Higher, rate);
    sheet.add(&group, "CPU of client per load", "µs", Better::Lower, cpu_of_threads);
    let group = format!("cache hit of {kib} KiB, from Python");
    sheet.add(&group, "load", "µs", Better::Lower, hit);
    sheet.add(&group, "bytes(dict[oid])", "µs", Better::Lower, copy);
    Ok(())
}
