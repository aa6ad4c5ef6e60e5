// SPDX-License-Identifier: GPL-2.0-or-later
//! Time as an argument: what a driver tells a core.

use std::time::Duration;

/// The two clocks, read once by the driver for each input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// Time since an arbitrary origin; it never goes back. Timers and delays use it.
    pub monotonic: Duration,
    /// Microseconds since 1970-01-01 UTC; it may jump. Tids and id timestamps use it.
    pub realtime_us: u64,
}

impl Now {
    /// Seconds since 1970-01-01 UTC, as on the wire.
    pub fn realtime_seconds(self) -> f64 {
        self.realtime_us as f64 / 1e6
    }
}
