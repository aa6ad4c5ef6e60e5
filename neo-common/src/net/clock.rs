// SPDX-License-Identifier: GPL-2.0-or-later
//! The only place where clocks are read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::time::Now;

/// Reads the monotonic and the real clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock {
    /// The time now.
    pub fn now(&self) -> Now {
        let realtime = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic: self.origin.elapsed(),
            realtime_us: u64::try_from(realtime.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// A seed that differs from process to process: not for secrets.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64) ^ (u64::from(std::process::id()) << 40)
}
