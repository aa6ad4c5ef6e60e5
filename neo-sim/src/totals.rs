// SPDX-License-Identifier: GPL-2.0-or-later
//! Figures of many seeds, and how they are printed.

use std::collections::BTreeMap;
use std::time::Duration;

/// Errors of applications that are worth a line.
const ERRORS_LEN_MAX: usize = 12;

/// What came out so far.
#[derive(Default)]
pub struct Totals {
    /// Seeds where all is right.
    pub passed: u64,
    /// Seeds where something is wrong.
    pub failed: Vec<u64>,
    time: Duration,
    events: u64,
    packets: u64,
    commits: u64,
    /// What applications did and which errors they got.
    counts: BTreeMap<String, u64>,
    /// Faults by kind, and the number of seeds that had any.
    faults: BTreeMap<String, (u64, u64)>,
}

impl Totals {
    /// Takes a line of a worker.
    pub fn add(&mut self, line: &str, violations: &mut Vec<String>) {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (number, what) = rest.split_once(' ').unwrap_or((rest, ""));
        let number: u64 = number.parse().unwrap_or_default();
        match kind {
            "figures" => {
                let numbers: Vec<u64> = rest.split(' ').filter_map(|n| n.parse().ok()).collect();
                let [_, time_us, events, packets, commits] = numbers[..] else { return };
                self.time += Duration::from_micros(time_us);
                self.events += events;
                self.packets += packets;
                self.commits += commits;
            }
            "count" => *self.counts.entry(what.into()).or_default() += number,
            "fault" => {
                let (count, seeds) = self.faults.entry(what.into()).or_default();
                *count += number;
                *seeds += 1;
            }
            _ => violations.push(rest.into()),
        }
    }

    /// Seeds so far.
    pub fn seeds_count(&self) -> u64 {
        self.passed + self.failed.len() as u64
    }

    /// Prints figures and verdict, as text.
    pub fn print(&self, elapsed: Duration) {
        println!("done by applications: {}", list(self.done()));
        println!("errors told to them: {}", list(self.errors()));
        let faults = self.faults.iter().map(|(kind, (count, _))| (kind.as_str(), *count));
        println!("faults: {}", list(faults));
        println!(
            "{} seeds: {:.1} h simulated in {:.0} s, {} transactions, {} packets, {} events",
            self.seeds_count(),
            self.time.as_secs_f64() / 3600.0,
            elapsed.as_secs_f64(),
            self.commits,
            self.packets,
            self.events,
        );
        if !self.failed.is_empty() {
            println!("failed seeds: {:?}", self.failed);
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
    }

    /// Prints the same as tables. `first`: the first seed.
    pub fn print_markdown(&self, first: u64, elapsed: Duration) {
        let last = first + self.seeds_count().saturating_sub(1);
        println!("| | |\n|---|---:|");
        for (what, figure) in [
            ("Seeds", format!("{first} to {last}")),
            ("Passed", self.passed.to_string()),
            ("Failed", self.failed.len().to_string()),
            ("Simulated time, h", format!("{:.1}", self.time.as_secs_f64() / 3600.0)),
            ("Real time, min", format!("{:.1}", elapsed.as_secs_f64() / 60.0)),
            ("Transactions committed", self.commits.to_string()),
            ("Packets", self.packets.to_string()),
            ("Events", self.events.to_string()),
        ] {
            println!("| {what} | {figure} |");
        }
        println!("\n| Kind | Times | in so many seeds |\n|---|---:|---:|");
        for (kind, (count, seeds)) in &self.faults {
            println!("| {kind} | {count} | {seeds} |");
        }
        println!("\n| Done by applications and the operator | Times |\n|---|---:|");
        self.done().for_each(|(what, count)| println!("| {what} | {count} |"));
        println!("\n| Errors told to applications | Times |\n|---|---:|");
        self.errors().into_iter().for_each(|(what, count)| println!("| {what} | {count} |"));
        if !self.failed.is_empty() {
            println!("\nFailed: {:?}.", self.failed);
        }
    }

    fn done(&self) -> impl Iterator<Item = (&str, u64)> {
        let done = self.counts.iter().filter(|(what, _)| !what.contains(": "));
        done.map(|(what, count)| (what.as_str(), *count))
    }

    /// Most frequent ones, whatever was being done.
    fn errors(&self) -> Vec<(&str, u64)> {
        let mut by_error = BTreeMap::<&str, u64>::new();
        for (what, count) in &self.counts {
            if let Some((_, error)) = what.split_once(": ") {
                *by_error.entry(error).or_default() += count;
            }
        }
        let mut errors: Vec<_> = by_error.into_iter().collect();
        errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        errors.truncate(ERRORS_LEN_MAX);
        errors
    }
}

fn list<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let words = counts.into_iter().map(|(what, count)| format!("{what} {count}"));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of two seeds are added up; what is not a figure is a violation.
    #[test]
    fn lines_of_workers_are_added_up() {
        let mut totals = Totals::default();
        let mut violations = Vec::new();
        for line in [
            "figures 77 2000000 10 5 3",
            "count 4 transfer",
            "count 2 transfer: Conflict",
            "fault 3 cut",
            "figures 78 1000000 1 1 1",
            "count 1 undo: Conflict",
            "fault 2 cut",
            "violation something is wrong",
        ] {
            totals.add(line, &mut violations);
        }
        assert_eq!(violations, ["something is wrong"]);
        assert_eq!((totals.time.as_secs(), totals.commits), (3, 4));
        assert_eq!(totals.faults["cut"], (5, 2));
        assert_eq!(totals.done().collect::<Vec<_>>(), [("transfer", 4)]);
        assert_eq!(totals.errors(), [("Conflict", 3)]);
    }
}
