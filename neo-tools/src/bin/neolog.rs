// SPDX-License-Identifier: GPL-2.0-or-later
//! `neolog`: shows the log files of nodes.

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use neo_common::config::{Exit, LogViewOptions, System, arguments};
use neo_tools::logs;

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    let options = arguments("neolog").and_then(|args| LogViewOptions::parse(&args, &System));
    let result = options.and_then(|loaded| {
        let mut output = io::BufWriter::new(io::stdout().lock());
        match logs::run(&loaded.options, &mut output) {
            // The reader has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(|error| Exit::failure("neolog", error)),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}
