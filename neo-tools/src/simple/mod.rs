// SPDX-License-Identifier: GPL-2.0-or-later
//! `neosimple`: a whole cluster in one process, to try things or for a small site.
//! Upstream: scripts/simple.py, which is a tool for tests.
//!
//! ```text
//!   neosimple: plan --> a thread per node, each with its own event loop (net::run)
//!                           masters, storages, admin  --- TCP on loopback, as between processes
//!              control: what neoctl would send to the admin (print cluster, set cluster stopping)
//! ```
//!
//! - [`plan`]: names, addresses and databases;
//! - [`nodes`]: the threads;
//! - [`control`]: commands for the cluster.
//!
//! The nodes are those of `neomaster`, `neostorage` and `neoadmin`: other nodes can join the cluster,
//! and these executables can take over the databases. Whatever ends the process ends all nodes at
//! once, which is as safe as `kill -9` of each of them.

pub mod control;
pub mod nodes;
pub mod plan;

use std::fmt;
use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use neo_common::config::SimpleOptions;
use neo_common::logging::{self, LogOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::migrate::Failure;
use control::command;
use nodes::{Ended, Nodes};
use plan::Plan;

/// Between two looks at the state of a cluster that starts.
const POLL_PERIOD: Duration = Duration::from_millis(50);

/// When a cluster that starts is late, and something should be said.
const START_DELAY: Duration = Duration::from_secs(10);

/// How long nodes may take to end.
const STOP_DELAY: Duration = Duration::from_secs(15);

/// What the main thread waits for.
pub enum Event {
    /// A node ended.
    Ended(Ended),
    /// The process shall end.
    Signal,
}

/// Runs a cluster until it is told to stop.
///
/// # Errors
/// A node can not start, or ended although nobody asked for it.
pub fn run(options: &SimpleOptions) -> Result<(), Failure> {
    let plan = Plan::new(options)?;
    let file = options.logger.then(|| plan.directory.join("neosimple.log"));
    logging::setup(&LogOptions { file, ..LogOptions::default() })?;
    let (sender, events) = channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, reopen_signal()])?;
    let signal_sender = sender.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == reopen_signal() {
                if let Err(error) = logging::reopen() {
                    log::error!("log not reopened: {error}");
                }
            } else if signal_sender.send(Event::Signal).is_err() {
                return;
            }
        }
    })?;
    let mut cluster = Cluster { nodes: Nodes::start(&plan, sender)?, plan, events };
    let result = cluster.run();
    if options.cleanup_on_delete && result.is_ok() {
        cluster.plan.remove()?;
    }
    result
}

/// As other nodes: the log was renamed.
fn reopen_signal() -> i32 {
    libc::SIGRTMIN() + 1
}

/// Prints a line. Whoever does not listen misses it.
fn say(text: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

struct Cluster {
    plan: Plan,
    nodes: Nodes,
    events: Receiver<Event>,
}

impl Cluster {
    fn run(&mut self) -> Result<(), Failure> {
        say(self.plan.nodes(&self.nodes));
        let event = match self.wait_until_running()? {
            Some(event) => event,
            None => {
                say(self.plan.usage(&self.nodes));
                self.events.recv()?
            }
        };
        match event {
            Event::Signal => self.stop(),
            Event::Ended(ended) => self.ended(ended),
        }
    }

    /// Nothing if the cluster runs, or what happened before.
    fn wait_until_running(&mut self) -> Result<Option<Event>, Failure> {
        let start = Instant::now();
        let mut is_late = false;
        loop {
            let state = command(self.nodes.admin, &["print", "cluster"]);
            if state.stdout == "RUNNING\n" {
                return Ok(None);
            }
            if start.elapsed() > START_DELAY && !std::mem::replace(&mut is_late, true) {
                let state = state.stdout + &state.stderr;
                say(format_args!("Still waiting for the cluster: {}", state.trim_end()));
            }
            match self.events.recv_timeout(POLL_PERIOD) {
                Err(RecvTimeoutError::Timeout) => {}
                event => return Ok(Some(event?)),
            }
        }
    }

    /// Like `neoctl set cluster stopping`.
    fn stop(&mut self) -> Result<(), Failure> {
        say("Stopping...");
        let reply = command(self.nodes.admin, &["set", "cluster", "stopping"]);
        if reply.status != 0 {
            // It never ran: there is nothing to finish, and ending the process is enough.
            log::info!("cluster not stopped: {}", reply.stderr.trim_end());
            return Ok(());
        }
        self.wait_for_all()
    }

    /// A node ended before we asked: all of them do if somebody stopped the cluster.
    fn ended(&mut self, ended: Ended) -> Result<(), Failure> {
        ended.check()?;
        self.nodes.count -= 1;
        self.wait_for_all()
    }

    fn wait_for_all(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + STOP_DELAY;
        while self.nodes.count > 0 {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended(ended)) => {
                    ended.check()?;
                    self.nodes.count -= 1;
                }
                Ok(Event::Signal) => {
                    return Err("interrupted while the cluster was stopping".into());
                }
                Err(_) => {
                    return Err(format!(
                        "{} nodes did not end within {} s",
                        self.nodes.count,
                        STOP_DELAY.as_secs()
                    )
                    .into());
                }
            }
        }
        say("Stopped.");
        Ok(())
    }
}
