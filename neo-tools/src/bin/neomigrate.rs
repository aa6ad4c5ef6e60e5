// SPDX-License-Identifier: GPL-2.0-or-later
//! `neomigrate`: copies a `Data.fs` to a cluster, or a cluster to a `Data.fs`.

use std::process::ExitCode;

use neo_common::config::{Exit, MigrateOptions, System, arguments};
use neo_tools::migrate;

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    let options = arguments("neomigrate").and_then(|args| MigrateOptions::parse(&args, &System));
    let result = options.and_then(|loaded| {
        for warning in &loaded.warnings {
            eprintln!("neomigrate: warning: {warning}");
        }
        migrate::run(&loaded.options).map_err(|error| Exit::failure("neomigrate", error))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}
