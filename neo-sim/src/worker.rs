// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that runs the seeds that it reads, and writes what came out.
//!
//! ```text
//!   stdin:  SEED
//!   stdout: figures FINGERPRINT TIME_US EVENTS PACKETS COMMITS
//!           count N WHAT ...
//!           fault N WHAT ...
//!           violation TEXT ...        (line ends escaped)
//!           end
//! ```

// A driver: the watchdog is a thread with a clock.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neo_sim::run::{self, Report};

use crate::arguments::Arguments;

/// Real time that one seed may take.
const SEED_MAX: Duration = Duration::from_secs(600);

/// One seed out of so many is run twice.
const TWICE_ONE_IN: u64 = 50;

/// Runs until the end of standard input.
pub fn run(arguments: &Arguments) {
    let finished = Arc::new(AtomicU64::new(0));
    watch(Arc::clone(&finished));
    for line in std::io::stdin().lock().lines() {
        let Ok(Ok(seed)) = line.map(|line| line.trim().parse::<u64>()) else { return };
        let settings = arguments.settings(seed);
        let report = match seed % TWICE_ONE_IN {
            3 => run::run_twice(&settings),
            _ => run::run(&settings),
        };
        finished.fetch_add(1, Ordering::SeqCst);
        if write(&report).is_err() {
            return;
        }
    }
}

fn write(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let Report { violations, fingerprint, time, events, packets, commits, counts, faults } = report;
    let time_us = time.as_micros();
    writeln!(out, "figures {fingerprint} {time_us} {events} {packets} {commits}")?;
    for (what, count) in counts {
        writeln!(out, "count {count} {what}")?;
    }
    for (what, count) in faults {
        writeln!(out, "fault {count} {what}")?;
    }
    for violation in violations {
        writeln!(out, "violation {}", violation.to_string().replace('\n', "\\n"))?;
    }
    writeln!(out, "end")?;
    out.flush()
}

/// Ends the process if a seed takes too long.
fn watch(finished: Arc<AtomicU64>) {
    let watch = move || {
        let mut last = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let count = finished.load(Ordering::SeqCst);
            if count != last.0 {
                last = (count, Instant::now());
            } else if last.1.elapsed() > SEED_MAX {
                eprintln!("a seed takes more than {SEED_MAX:?}");
                std::process::abort();
            }
        }
    };
    std::thread::spawn(watch);
}
