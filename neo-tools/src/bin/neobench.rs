// SPDX-License-Identifier: GPL-2.0-or-later
//! `neobench`: measures a cluster.

use std::process::ExitCode;

use neo_common::config::{BenchOptions, Exit, System, arguments};
use neo_tools::bench;

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    let options = arguments("neobench").and_then(|args| BenchOptions::parse(&args, &System));
    let result = options.and_then(|loaded| {
        bench::run(&loaded.options).map_err(|error| Exit::failure("neobench", error))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}
