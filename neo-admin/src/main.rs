// SPDX-License-Identifier: GPL-2.0-or-later
//! `neoadmin`: command line, then [`Admin`] in the event loop.

use std::process::ExitCode;

use neo_admin::Admin;
use neo_admin::host::Jobs;
use neo_admin::options::{PROGRAM, Prepared, prepare};
use neo_common::config::{AdminOptions, Exit, System, arguments};
use neo_common::engine::Engine;
use neo_common::logging::{DEFAULT_NAME, LogOptions, setup};
use neo_common::net::{self, Options, clock};

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    match start() {
        Ok(exit) => exit.process(),
        Err(exit) => exit.report(),
    }
}

fn start() -> Result<net::Exit, Exit> {
    let loaded = AdminOptions::parse(&arguments(PROGRAM)?, &System)?;
    let daemon = &loaded.options.daemon;
    let name = daemon.name.clone().unwrap_or_else(|| DEFAULT_NAME.into());
    let log_options = LogOptions { name, file: daemon.logfile.clone(), ..LogOptions::default() };
    setup(&log_options).map_err(|error| Exit::failure(PROGRAM, format!("log file: {error}")))?;
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    let Prepared { config, listener, master_list } = prepare(loaded.options)?;
    log::info!("listening on {}", listener.address());
    let engine = Engine::new(Admin::new(config), clock::seed());
    let options = Options { listener: Some(listener), signals: true };
    net::run(engine, options, |waker| {
        // Waking up may fail only if the loop is gone.
        let wake = move || drop(waker.wake());
        Jobs::start(master_list, wake).expect("a thread can be started")
    })
    .map_err(|error| Exit::failure(PROGRAM, error))
}
