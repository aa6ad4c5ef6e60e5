// SPDX-License-Identifier: GPL-2.0-or-later
//! Many seeds, by worker processes: see [`crate::worker`].

// A driver: it has a thread for each worker, and a clock.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neo_common::planted;

use crate::arguments::Arguments;

/// Errors of applications that are worth a line.
const ERRORS_LEN_MAX: usize = 12;

/// What came out so far.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: Vec<u64>,
    time: Duration,
    events: u64,
    packets: u64,
    commits: u64,
    counts: BTreeMap<String, u64>,
    faults: BTreeMap<String, u64>,
}

/// A worker and the ends of its pipes.
pub struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    /// If this program cannot be started.
    pub fn start(arguments: &Arguments) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--worker")
            .args(arguments.repeated())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, stdin, stdout })
    }

    /// Lines that the worker writes about a seed; `None` if it died.
    pub fn run(&mut self, seed: u64) -> Option<Vec<String>> {
        writeln!(self.stdin, "{seed}").ok()?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "end" => return Some(lines),
                line => lines.push(line.to_owned()),
            }
        }
    }
}

impl Worker {
    /// Ends it.
    pub fn end(self) {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        // It ends with its input, if it is not dead already.
        let _ = child.wait();
    }
}

/// Runs seeds on all cores; prints figures and the verdict.
pub fn run(arguments: &Arguments, first: u64, count: u64) -> ExitCode {
    let started_at = Instant::now();
    let next = AtomicU64::new(0);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                let mut worker = None;
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        break;
                    }
                    one(arguments, &mut worker, first + index, &totals);
                }
                worker.into_iter().for_each(Worker::end);
            });
        }
    });
    let totals = totals.into_inner().expect("no thread panicked");
    print_totals(&totals, started_at.elapsed());
    if totals.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(arguments: &Arguments, worker: &mut Option<Worker>, seed: u64, totals: &Mutex<Totals>) {
    if worker.is_none() {
        *worker = Some(Worker::start(arguments).expect("a worker can be started"));
    }
    let lines = worker.as_mut().and_then(|worker| worker.run(seed));
    if lines.is_none()
        && let Some(worker) = worker.take()
    {
        worker.end();
    }
    let mut totals = totals.lock().expect("no thread panicked");
    let mut violations = Vec::new();
    for line in lines.iter().flatten() {
        totals.add(line, &mut violations);
    }
    if lines.is_none() {
        violations.push("the process died (its last words are above)".into());
    }
    if violations.is_empty() {
        totals.passed += 1;
        return;
    }
    totals.failed.push(seed);
    for violation in &violations {
        println!("seed {seed}: {}", violation.replace("\\n", "\n"));
    }
    println!("seed {seed} FAILED, replay it with: {}", command(arguments, seed));
}

/// The command that replays a seed.
pub fn command(arguments: &Arguments, seed: u64) -> String {
    let profile = if cfg!(debug_assertions) { "" } else { "--release " };
    // In a target folder of its own, so that nothing else is built with this feature.
    let features = match planted::ENABLED {
        true => "--features planted --target-dir target/planted ",
        false => "",
    };
    let mut words = vec![format!("cargo run {profile}{features}-p neo-sim -- --seed {seed}")];
    words.extend(arguments.repeated());
    words.push("--trace".into());
    words.join(" ")
}

impl Totals {
    /// Takes a line of a worker.
    fn add(&mut self, line: &str, violations: &mut Vec<String>) {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "figures" => {
                let numbers: Vec<u64> = rest.split(' ').filter_map(|n| n.parse().ok()).collect();
                let [_, time_us, events, packets, commits] = numbers[..] else { return };
                self.time += Duration::from_micros(time_us);
                self.events += events;
                self.packets += packets;
                self.commits += commits;
            }
            "count" | "fault" => {
                let (count, what) = rest.split_once(' ').unwrap_or((rest, ""));
                let map = if kind == "count" { &mut self.counts } else { &mut self.faults };
                *map.entry(what.into()).or_default() += count.parse::<u64>().unwrap_or_default();
            }
            _ => violations.push(rest.into()),
        }
    }
}

fn print_totals(totals: &Totals, elapsed: Duration) {
    let list = |counts: Vec<(&String, &u64)>| -> String {
        counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    };
    let (errors, done): (Vec<_>, Vec<_>) =
        totals.counts.iter().partition(|(what, _)| what.contains(": "));
    println!("done by applications: {}", list(done));
    let mut by_error = BTreeMap::<String, u64>::new();
    for (what, count) in errors {
        let error = what.split_once(": ").map_or(what.as_str(), |(_, error)| error);
        *by_error.entry(error.into()).or_default() += count;
    }
    let mut errors: Vec<_> = by_error.iter().collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    errors.truncate(ERRORS_LEN_MAX);
    println!("errors told to them: {}", list(errors));
    println!("faults: {}", list(totals.faults.iter().collect()));
    println!(
        "{} seeds: {:.1} h simulated in {:.0} s, {} transactions, {} packets, {} events",
        totals.passed + totals.failed.len() as u64,
        totals.time.as_secs_f64() / 3600.0,
        elapsed.as_secs_f64(),
        totals.commits,
        totals.packets,
        totals.events,
    );
    if !totals.failed.is_empty() {
        println!("failed seeds: {:?}", totals.failed);
    }
    println!("{} passed, {} failed", totals.passed, totals.failed.len());
}
