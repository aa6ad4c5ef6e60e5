// SPDX-License-Identifier: GPL-2.0-or-later
//! Ctrl-C and its like: the nodes are ended and their files removed, then this process ends.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::cluster::Processes;

/// From now on, a signal that asks this process to end also ends the given ones.
///
/// # Errors
/// Those of the operating system.
pub fn end_processes_when_interrupted(processes: Processes) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            processes.end();
            // The shell shall see what happened. The error is that it is no signal.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    })?;
    Ok(())
}
