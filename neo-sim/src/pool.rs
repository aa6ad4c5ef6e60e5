// SPDX-License-Identifier: GPL-2.0-or-later
//! Many seeds, by worker processes: see [`crate::worker`].

// A driver: it has a thread for each worker, and a clock.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neo_common::planted;

use crate::arguments::Arguments;
use crate::totals::Totals;

/// How often a long run says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

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
    let told_at = Mutex::new(started_at);
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
                    if arguments.progress {
                        tell(&mut told_at.lock().expect("no thread panicked"), &totals, count);
                    }
                }
                worker.into_iter().for_each(Worker::end);
            });
        }
    });
    let totals = totals.into_inner().expect("no thread panicked");
    match arguments.markdown {
        true => totals.print_markdown(first, started_at.elapsed()),
        false => totals.print(started_at.elapsed()),
    }
    if totals.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says how far the run is, if that was not said for a while.
fn tell(told_at: &mut Instant, totals: &Mutex<Totals>, count: u64) {
    if told_at.elapsed() >= PROGRESS_EVERY {
        *told_at = Instant::now();
        let totals = totals.lock().expect("no thread panicked");
        eprintln!("{} of {count} seeds, {} failed", totals.seeds_count(), totals.failed.len());
    }
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
