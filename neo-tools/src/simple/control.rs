// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands for the cluster, as `neoctl` does them.

use std::convert::Infallible;
use std::net::SocketAddr;

use neo_common::config::Exit;
use neo_common::engine::{CallId, Engine, JobId};
use neo_common::net::{self, Host, Options, clock};
use neo_ctl::dialog::{error, failure};
use neo_ctl::{Ctl, commands};

/// Executes a command, and returns what `neoctl` would print.
pub fn command(admin: SocketAddr, words: &[&str]) -> Exit {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let command = match commands::parse(&words) {
        Ok(command) => command,
        Err(why) => return failure(why),
    };
    let engine = Engine::new(Ctl::new(admin, command), clock::seed());
    // Its text comes out through the host.
    let (sender, texts) = std::sync::mpsc::channel();
    match net::run(engine, Options::default(), move |_| Texts(sender)) {
        Ok(_) => texts.recv().unwrap_or_else(|_| error("no answer")),
        Err(why) => error(why),
    }
}

/// Where the only job of a [`Ctl`] goes: telling the result.
struct Texts(std::sync::mpsc::Sender<Exit>);

impl Host<Ctl> for Texts {
    fn submit(&mut self, _: JobId, exit: Exit) {
        // The receiver lives as long as the event loop.
        let _ = self.0.send(exit);
    }
    fn done(&mut self) -> Option<(JobId, Infallible)> {
        None
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}
