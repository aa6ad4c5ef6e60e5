// SPDX-License-Identifier: GPL-2.0-or-later
//! Signals of the operating system as inputs of a core.
//!
//! SIGTERM and SIGINT stop the node cleanly; the process then ends like their default action, so
//! that supervisors see what they expect. Real-time signals are upstream's: RTMIN flushes the log,
//! RTMIN+1 reopens it, RTMIN+2 dumps the state. All others keep their default action.

use std::io;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::engine::Signal;

/// Signals that are handled.
pub(super) fn signals() -> io::Result<Signals> {
    let rtmin = libc::SIGRTMIN();
    Signals::new([SIGTERM, SIGINT, rtmin, rtmin + 1, rtmin + 2])
}

/// What a signal means.
pub(super) fn meaning(signal: i32) -> Signal {
    match signal - libc::SIGRTMIN() {
        0 => Signal::FlushLog,
        1 => Signal::ReopenLog,
        2 => Signal::DumpState,
        _ => Signal::Terminate,
    }
}

/// Ends this process like the default action of `signal`.
pub fn die(signal: i32) -> ! {
    // The error is that the signal is not one: then exit is all that is left.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
    std::process::exit(128 + signal);
}
