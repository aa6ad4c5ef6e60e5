// SPDX-License-Identifier: GPL-2.0-or-later
//! `neoctl`: command line, then [`Ctl`] in the event loop.

use std::convert::Infallible;
use std::io::Write as _;
use std::process::ExitCode;

use log::LevelFilter;
use neo_common::config::{CtlOptions, Exit, System, arguments};
use neo_common::engine::{CallId, Engine, JobId};
use neo_common::logging::{self, LogOptions};
use neo_common::net::{self, Host, Options, clock};
use neo_ctl::dialog::{Dialog, Step, error, failure};
use neo_ctl::{Command, Ctl, commands};

const PROGRAM: &str = "neoctl";

neo_common::no_planted_bugs!();

fn main() -> ExitCode {
    match run() {
        Ok(exit) => exit.process(),
        Err(exit) => exit.report(),
    }
}

fn run() -> Result<net::Exit, Exit> {
    let options = CtlOptions::parse(&arguments(PROGRAM)?, &System)?.options;
    // Who logs such a short process wants to see everything.
    let file_level = LevelFilter::Trace;
    let log = LogOptions { file: options.logfile, file_level, ..LogOptions::default() };
    logging::setup(&log).map_err(|why| Exit::failure(PROGRAM, format_args!("log file: {why}")))?;
    let (words, json) = commands::take_json(&options.command, options.json).map_err(failure)?;
    let command = commands::parse(&words).map_err(failure)?;
    if command == Command::Usage
        && let (_, Step::End(exit)) = Dialog::start(command.clone())
    {
        return Err(exit);
    }
    if options.tls.is_some() {
        return Err(error("encryption is not supported yet"));
    }
    let address = options.address;
    let admin = address.resolve().map_err(|why| error(format_args!("{address}: {why}")))?;
    let ctl = Ctl::new(admin, command);
    let engine = Engine::new(if json { ctl.in_json() } else { ctl }, clock::seed());
    net::run(engine, Options::default(), |_| Terminal).map_err(error)
}

/// Prints what is to be printed.
struct Terminal;

impl Host<Ctl> for Terminal {
    fn submit(&mut self, _: JobId, exit: Exit) {
        // The reader of our output may be gone; there is nobody else to tell.
        let _ = std::io::stdout().write_all(exit.stdout.as_bytes());
        let _ = std::io::stderr().write_all(exit.stderr.as_bytes());
    }
    fn done(&mut self) -> Option<(JobId, Infallible)> {
        None
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}
