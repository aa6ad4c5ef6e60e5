// SPDX-License-Identifier: GPL-2.0-or-later
//! `neomaster`: command line, then [`Master`] in the event loop.

use std::process::ExitCode;

use neo_common::config::{Exit, MasterOptions, System, arguments};
use neo_common::engine::Engine;
use neo_common::logging::setup_daemon;
use neo_common::net::{self, Options, clock};
use neo_master::Master;
use neo_master::host::Jobs;
use neo_master::prepare::{PROGRAM, Prepared, prepare};

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    match start() {
        Ok(exit) => exit.process(),
        Err(exit) => exit.report(),
    }
}

fn start() -> Result<net::Exit, Exit> {
    let loaded = MasterOptions::parse(&arguments(PROGRAM)?, &System)?;
    setup_daemon(PROGRAM, &loaded.options.daemon, &loaded.warnings)?;
    let Prepared { options, listener, master_list } = prepare(loaded.options)?;
    log::info!("listening on {}", listener.address());
    let master = Master::new(options).map_err(|error| Exit::failure(PROGRAM, error))?;
    let engine = Engine::new(master, clock::seed());
    let options = Options { listener: Some(listener), signals: true };
    net::run(engine, options, |_| Jobs::new(master_list))
        .map_err(|error| Exit::failure(PROGRAM, error))
}
