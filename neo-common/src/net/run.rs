// SPDX-License-Identifier: GPL-2.0-or-later
//! The event loop of a node process.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Waker};

use super::driver::{Driver, Host, SIGNALS, WAKER};
use super::listener::Listener;
use super::signal;
use crate::engine::{App, CallId, EXIT_BY_SIGNAL, Engine, JobId, Signal};

/// How long an ending node tries to send what is queued.
const EXIT_DELAY: Duration = Duration::from_secs(3);

/// Events taken at once.
const EVENTS_LEN: usize = 1024;

/// How a node ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// Cleanly, because of this signal.
    Signal(i32),
}

impl Exit {
    /// Ends this process that way.
    pub fn process(self) -> ! {
        match self {
            Self::Status(status) => std::process::exit(status),
            Self::Signal(signal) => signal::die(signal),
        }
    }
}

/// What a node wants of the loop beside its engine.
#[derive(Debug, Default)]
pub struct Options {
    /// Where peers connect.
    pub listener: Option<Listener>,
    /// Whether signals of the process are for this node.
    pub signals: bool,
}

/// For nodes without jobs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoJobs;

impl<A: App<Job = Infallible, Done = Infallible, Reply = Infallible>> Host<A> for NoJobs {
    fn submit(&mut self, _: JobId, job: Infallible) {
        match job {}
    }
    fn done(&mut self) -> Option<(JobId, Infallible)> {
        None
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}

/// Runs a node until it ends.
///
/// `host` builds what takes the jobs, given the waker with which other threads tell that some are
/// done (once per batch) or want [`Signal::Terminate`] through a `done`.
///
/// # Errors
/// Those of the operating system that leave no way to go on.
pub fn run<A: App, H: Host<A>>(
    engine: Engine<A>,
    options: Options,
    host: impl FnOnce(Arc<Waker>) -> H,
) -> io::Result<Exit> {
    let mut poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let mut signals = if options.signals { Some(signal::signals()?) } else { None };
    if let Some(signals) = &mut signals {
        poll.registry().register(signals, SIGNALS, Interest::READABLE)?;
    }
    let registry = poll.registry().try_clone()?;
    let mut driver = Driver::new(engine, host(waker), registry, options.listener)?;
    let mut events = Events::with_capacity(EVENTS_LEN);
    let mut received = None;
    let mut exit_at = None;
    loop {
        if let Some(status) = driver.wants_exit() {
            let at = *exit_at.get_or_insert_with(|| Instant::now() + EXIT_DELAY);
            if driver.exit_status().is_some() || Instant::now() >= at {
                // What happened last may tell why it ends.
                log::logger().flush();
                return Ok(match (status, received) {
                    (EXIT_BY_SIGNAL, Some(signal)) => Exit::Signal(signal),
                    (EXIT_BY_SIGNAL, None) => Exit::Status(0),
                    _ => Exit::Status(status),
                });
            }
        }
        let mut timeout = driver.timeout();
        if exit_at.is_some() {
            timeout = Some(timeout.unwrap_or(EXIT_DELAY).min(Duration::from_millis(100)));
        }
        match poll.poll(&mut events, timeout) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        for event in &events {
            match event.token() {
                WAKER => {}
                SIGNALS => {
                    for number in signals.iter_mut().flat_map(|s| s.pending()) {
                        let signal = signal::meaning(number);
                        // Asked twice: the first time did not work.
                        if signal == Signal::Terminate && received.replace(number).is_some() {
                            return Ok(Exit::Signal(number));
                        }
                        // The log belongs to the process, not to the core.
                        if signal == Signal::ReopenLog
                            && let Err(error) = crate::logging::reopen()
                        {
                            log::error!("log not reopened: {error}");
                        }
                        driver.signal(signal);
                    }
                }
                _ => driver.on_event(event),
            }
        }
        driver.take_done();
        driver.on_time();
        driver.flush();
    }
}
