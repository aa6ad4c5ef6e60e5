// SPDX-License-Identifier: GPL-2.0-or-later
//! `neo-chaos`: what `scripts/chaos` needs in Rust. Cluster, faults and report are the script's.
//!
//! ```text
//!   neo-chaos populate --masters A,B --cluster NAME --history FILE --objects FILE
//!   neo-chaos work     --masters A,B --cluster NAME --history FILE --objects FILE
//!                      --index N --seed N --threads N --pause MILLISECONDS
//!   neo-chaos read     --masters A,B --cluster NAME --history FILE --index N
//!   neo-chaos check    --directory DIR --cluster NAME --partitions N
//! ```
//!
//! `populate` makes the objects that all clients share. `work` runs threads of transactions until its
//! standard input ends. `read` waits for all packs, then reads everything back. Each writes a history
//! ([`history`]), as the workers in Python do. `check` compares all histories and databases with the
//! model of the simulator ([`check`]).

// A driver: threads, clocks and files are its business.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod arguments;
mod check;
mod history;
mod work;

use std::process::ExitCode;

use arguments::Arguments;

/// What a command ends with, if not with success.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let result = Arguments::parse(words).and_then(|arguments| match command.as_str() {
        "populate" => work::populate(&arguments),
        "work" => work::work(&arguments),
        "read" => work::read(&arguments),
        "check" => check::check(&arguments),
        _ => Err(format!("unknown command {command:?}: populate, work, read or check").into()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("neo-chaos {command}: {failure}");
            ExitCode::FAILURE
        }
    }
}
