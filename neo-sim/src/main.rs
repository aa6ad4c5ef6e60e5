// SPDX-License-Identifier: GPL-2.0-or-later
//! Runs simulated clusters: one seed, with its story, or many seeds on all cores.
//!
//! Many seeds are run by *workers*, which are processes of this same program: a panic, a loop or a
//! leak in one of them is a failed seed, and the others go on. See [`pool`].

mod arguments;
mod pool;
mod shrink;
mod totals;
mod worker;

use std::process::ExitCode;

use arguments::{Arguments, Mode};
use neo_common::planted::{self, Bug};
use neo_sim::faults::Kind;
use neo_sim::run::{Report, run, run_twice};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("neo-sim: error: {message}\n{}", arguments::USAGE);
            return ExitCode::from(2);
        }
    };
    if let Some(level) = arguments.log {
        log::set_logger(&StdoutLog).expect("it is set once");
        log::set_max_level(level);
    }
    if let Some(Err(message)) = arguments.planted.map(planted::choose) {
        eprintln!("neo-sim: error: {message}");
        return ExitCode::from(2);
    }
    match arguments.mode {
        Mode::Bugs => {
            for bug in Bug::ALL {
                println!("{} {:?} {}", bug.name(), bug.needs(), bug.description().trim());
            }
            ExitCode::SUCCESS
        }
        Mode::Kinds => {
            Kind::ALL.iter().for_each(|kind| println!("{}", kind.name()));
            ExitCode::SUCCESS
        }
        Mode::One(seed) => one(&arguments, seed),
        Mode::Shrink(seed) => shrink::run(&arguments, seed),
        Mode::Many { first, count } => pool::run(&arguments, first, count),
        Mode::Worker => {
            worker::run(&arguments);
            ExitCode::SUCCESS
        }
    }
}

/// Replays one seed.
fn one(arguments: &Arguments, seed: u64) -> ExitCode {
    let settings = arguments.settings(seed);
    let report = match arguments.twice {
        true => run_twice(&settings),
        false => run(&settings),
    };
    let Report { violations, fingerprint, time, events, packets, commits, counts, faults } =
        &report;
    for (what, count) in counts {
        println!("{count:>8} {what}");
    }
    for (what, count) in faults {
        println!("{count:>8} faults: {what}");
    }
    println!(
        "seed {seed} ({:?}): {:.1} s simulated, {events} events, {packets} packets, \
         {commits} transactions, fingerprint {fingerprint:016x}",
        settings.level,
        time.as_secs_f64()
    );
    for violation in violations {
        println!("VIOLATION: {violation}");
    }
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Log lines of the nodes, among the story.
struct StdoutLog;

impl log::Log for StdoutLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        println!("             {} {}: {}", record.level(), record.target(), record.args());
    }
    fn flush(&self) {}
}
