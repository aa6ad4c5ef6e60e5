// SPDX-License-Identifier: GPL-2.0-or-later
//! Failures that repeat: the first one is logged, then a count from time to time.
//!
//! ```
//! # use std::time::Duration;
//! # use neo_common::logging::Repeated;
//! # let (mut refused, now, error) = (Repeated::default(), Duration::ZERO, "refused");
//! if let Some(count) = refused.failed(now) {
//!     log::warn!("connection to master failed count={count}: {error}");
//! }
//! // ...
//! if let Some(count) = refused.succeeded() {
//!     log::info!("connected to master after failures={count}");
//! }
//! ```

use std::time::Duration;

/// Between two counts.
const INTERVAL: Duration = Duration::from_secs(60);

/// A series of failures of the same thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Repeated {
    count: u64,
    logged_at: Duration,
}

impl Repeated {
    /// It failed (again) at a monotonic time. How many times, if that is to be logged now.
    #[must_use]
    pub fn failed(&mut self, now: Duration) -> Option<u64> {
        self.count += 1;
        let is_due = self.count == 1 || now.saturating_sub(self.logged_at) >= INTERVAL;
        is_due.then(|| {
            self.logged_at = now;
            self.count
        })
    }

    /// It works. How many times it failed before, if it did.
    pub fn succeeded(&mut self) -> Option<u64> {
        let count = std::mem::take(self).count;
        Some(count).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First, then once per minute with the count; a success starts again.
    #[test]
    fn series() {
        let mut repeated = Repeated::default();
        let at = Duration::from_secs;
        assert_eq!(repeated.succeeded(), None);
        let logged: Vec<_> =
            (100..300).filter_map(|s| Some((s, repeated.failed(at(s))?))).collect();
        assert_eq!(logged, [(100, 1), (160, 61), (220, 121), (280, 181)]);
        assert_eq!(repeated.succeeded(), Some(200));
        assert_eq!(repeated.succeeded(), None);
        assert_eq!(repeated.failed(at(300)), Some(1));
    }
}
