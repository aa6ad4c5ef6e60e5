// SPDX-License-Identifier: GPL-2.0-or-later
//! `neosimple`: a cluster in one process.

use std::process::ExitCode;

use neo_common::config::{Exit, SimpleOptions, System, arguments};
use neo_tools::simple;

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    let options = arguments("neosimple").and_then(|args| SimpleOptions::parse(&args, &System));
    let result = options.and_then(|loaded| {
        simple::run(&loaded.options).map_err(|error| Exit::failure("neosimple", error))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}
