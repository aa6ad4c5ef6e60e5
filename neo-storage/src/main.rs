// SPDX-License-Identifier: GPL-2.0-or-later
//! `neostorage`: command line and database, then [`Storage`] in the event loop.

use std::process::ExitCode;

use neo_common::config::{Exit, StorageOptions, System, arguments};
use neo_common::engine::Engine;
use neo_common::logging::setup_daemon;
use neo_common::net::{self, Options, clock};
use neo_storage::Storage;
use neo_storage::database::lane::exit_on_failure;
use neo_storage::host::Jobs;
use neo_storage::prepare::{PROGRAM, Prepared, prepare};

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    match start() {
        Ok(exit) => exit.process(),
        Err(exit) => exit.report(),
    }
}

fn start() -> Result<net::Exit, Exit> {
    let loaded = StorageOptions::parse(&arguments(PROGRAM)?, &System)?;
    setup_daemon(PROGRAM, &loaded.options.daemon, &loaded.warnings)?;
    let Prepared { config, stored, database, listener, master_list } = prepare(loaded.options)?;
    log::info!("listening on {}", listener.address());
    let storage = Storage::new(config, stored).map_err(|error| Exit::failure(PROGRAM, error))?;
    let engine = Engine::new(storage, clock::seed());
    let options = Options { listener: Some(listener), signals: true };
    net::run(engine, options, |waker| {
        Jobs::start(database, master_list, waker).unwrap_or_else(|error| {
            exit_on_failure(&error);
            unreachable!("the process ended");
        })
    })
    .map_err(|error| Exit::failure(PROGRAM, error))
}
