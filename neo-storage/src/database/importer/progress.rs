// SPDX-License-Identifier: GPL-2.0-or-later
//! What the log says while an import goes on.

use std::time::{Duration, Instant};

use neo_common::types::Tid;

/// Time between two lines in the log.
const REPORT_PERIOD: Duration = Duration::from_secs(60);
/// Time before the first one.
const FIRST_REPORT: Duration = Duration::from_secs(10);

/// How fast it goes.
#[derive(Debug)]
pub struct Pace {
    total_bytes: u64,
    started: Option<(Instant, u64)>,
    report_at: Option<Instant>,
    /// Bytes of the file read so far.
    bytes: u64,
    objects: u64,
    transactions: u64,
}

impl Pace {
    /// Of a file of that size.
    pub fn new(total_bytes: u64) -> Self {
        Self { total_bytes, started: None, report_at: None, bytes: 0, objects: 0, transactions: 0 }
    }

    /// A batch was stored. Says so from time to time.
    pub fn advance(&mut self, bytes: u64, objects: usize, transactions: usize, imported: Tid) {
        let now = Instant::now();
        self.started.get_or_insert((now, bytes));
        let report_at = *self.report_at.get_or_insert(now + FIRST_REPORT);
        self.bytes = self.bytes.max(bytes);
        self.objects += objects as u64;
        self.transactions += transactions as u64;
        if now >= report_at {
            self.report_at = Some(now + REPORT_PERIOD);
            log::info!("importing tid={imported} {}", self.line(now));
        }
    }

    /// For the last line.
    pub fn summary(&self) -> String {
        self.line(Instant::now())
    }

    fn line(&self, now: Instant) -> String {
        let Self { total_bytes, bytes, objects, transactions, .. } = *self;
        let percent = bytes as f64 * 100.0 / total_bytes.max(1) as f64;
        let mut line = format!("{percent:.1} % transactions={transactions} objects={objects}");
        if let Some((started, first_bytes)) = self.started {
            let seconds = (now - started).as_secs_f64();
            let rate = (bytes - first_bytes) as f64 / seconds.max(0.001);
            line.push_str(&format!(" rate={:.1}MB/s", rate / 1e6));
            if rate > 0.0 && bytes < total_bytes {
                let left = (total_bytes - bytes) as f64 / rate;
                line.push_str(&format!(" remaining={}", duration(left)));
            }
        }
        line
    }
}

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0) as u64;
    match minutes {
        0 => format!("{seconds:.0}s"),
        1..60 => format!("{minutes}min"),
        _ => format!("{}h{:02}min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rate and remaining time come from what was read since the start, not since the beginning of
    /// the file.
    #[test]
    fn line() {
        let now = Instant::now();
        let mut pace = Pace::new(10_000_000);
        pace.started = Some((now, 4_000_000));
        pace.bytes = 5_000_000;
        let line = pace.line(now + Duration::from_secs(20));
        assert_eq!(line, "50.0 % transactions=0 objects=0 rate=0.1MB/s remaining=1min");
        assert_eq!(duration(7.0), "7s");
        assert_eq!(duration(3725.0), "1h02min");
    }
}
