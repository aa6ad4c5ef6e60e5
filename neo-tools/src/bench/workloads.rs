// SPDX-License-Identifier: GPL-2.0-or-later
//! What is done to a cluster, and timed.
//!
//! | Workload | What it does |
//! |---|---|
//! | import | one client, one transaction after the other, each with an imposed tid |
//! | fill | (not timed) writes the objects that are loaded and iterated |
//! | iterate | one client reads all transactions that were written so far, with their data |
//! | load | one client loads objects in random order, without cache: one after the other, then pipelined |
//! | | with an interpreter: the same from Python, one after the other, then by 8 threads |
//! | commit | 1, 8, 32 clients, a thread each, commit transactions with new objects |
//!
//! Data is random: neither the client nor a database can compress it.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use neo_client::{Client, Metadata, NoResolution};
use neo_common::config::BenchOptions;
use neo_common::config::bench::Workload;
use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid};

use super::cluster::Target;
use super::figures::{Better, Column, Latencies};
use super::{process, python};
use crate::migrate::Failure;

/// Bytes of an object that is loaded.
pub const LOAD_BYTES: usize = 4096;
/// Objects of a transaction that is committed.
pub const COMMIT_OBJECTS: usize = 3;
/// Bytes of each of them.
pub const COMMIT_BYTES: usize = 500;
/// Objects of a transaction that is imported.
pub const IMPORT_OBJECTS: usize = 4;
/// Bytes of each of them.
pub const IMPORT_BYTES: usize = 1000;
/// How many at once.
pub const CONCURRENCY: [usize; 3] = [1, 8, 32];

/// Objects of a transaction of [`Bench::fill`].
const FILL_OBJECTS: usize = 100;

/// Loads between two looks at the clock, when pipelined. At the end of each series nothing is under
/// way for a moment, so that it should be long.
const SERIES_LEN: usize = 4000;

/// How much is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    /// How many times.
    pub rounds: u32,
    /// Transactions to import.
    pub import: usize,
    /// Objects to load.
    pub objects: usize,
    /// How long what has no natural end is done.
    pub duration: Duration,
}

impl Scale {
    /// What the options say.
    pub fn new(options: &BenchOptions) -> Self {
        let (rounds, import, objects, duration) = match options.quick {
            true => (1, 200, 2_000, Duration::from_millis(500)),
            false => (3, 2_000, 10_000, Duration::from_secs(3)),
        };
        Self { rounds: options.rounds.unwrap_or(rounds), import, objects, duration }
    }
}

/// One cluster under test.
pub struct Bench<'a> {
    target: &'a Target,
    scale: &'a Scale,
    /// Interpreter.
    python: Option<&'a Path>,
    client: Client,
    prng: Prng,
    /// What was there before.
    start: Tid,
    /// What can be loaded.
    objects: Vec<Oid>,
}

impl<'a> Bench<'a> {
    /// Connects. `python`: interpreter to load with too, if any.
    ///
    /// # Errors
    /// Those of the client.
    pub fn new(
        target: &'a Target,
        scale: &'a Scale,
        python: Option<&'a Path>,
    ) -> Result<Self, Failure> {
        let client = target.client()?;
        let start = client.last_tid()?;
        Ok(Self { target, scale, python, client, prng: Prng::new(0), start, objects: Vec::new() })
    }

    /// Does something once.
    ///
    /// # Errors
    /// Those of the client, and of processes that do not exist any more.
    pub fn sample(&mut self, what: Workload, sheet: &mut Column<'_>) -> Result<(), Failure> {
        match what {
            Workload::Import => self.import(sheet),
            Workload::Iterate => self.iterate(sheet),
            Workload::Load => self.load(sheet),
            Workload::Commit => self.commit(sheet),
        }
    }

    /// Writes what can be loaded.
    ///
    /// # Errors
    /// Those of the client.
    pub fn fill(&mut self) -> Result<(), Failure> {
        while self.objects.len() < self.scale.objects {
            let mut transaction = self.client.begin(None, Box::new(NoResolution))?;
            for _ in 0..FILL_OBJECTS {
                let oid = self.client.new_oid()?;
                transaction.store(oid, Tid::ZERO, random(&mut self.prng, LOAD_BYTES))?;
                self.objects.push(oid);
            }
            transaction.vote(&Metadata::default())?;
            transaction.finish(|_| {})?;
        }
        self.prng.shuffle(&mut self.objects);
        Ok(())
    }

    fn import(&mut self, sheet: &mut Column<'_>) -> Result<(), Failure> {
        let mut tid = self.client.sync()?;
        let mut transactions = Vec::new();
        for _ in 0..self.scale.import {
            tid = tid.next().ok_or("no greater tid is possible")?;
            let mut records = Vec::new();
            for _ in 0..IMPORT_OBJECTS {
                let oid = self.client.new_oid()?;
                records.push((oid, random(&mut self.prng, IMPORT_BYTES)));
            }
            transactions.push((tid, records));
        }
        let meter = Meter::start(self.target)?;
        for (tid, records) in transactions {
            commit(&self.client, Some(tid), records)?;
        }
        let count = self.scale.import;
        let bytes = count * IMPORT_OBJECTS * IMPORT_BYTES;
        let seconds = meter.seconds();
        let group = "import, small transactions";
        sheet.add(group, "speed", "MB/s", Better::Higher, bytes as f64 / 1e6 / seconds);
        sheet.add(group, "transactions", "1/s", Better::Higher, count as f64 / seconds);
        meter.cpu("transaction", count, group, sheet)
    }

    fn iterate(&self, sheet: &mut Column<'_>) -> Result<(), Failure> {
        self.client.sync()?;
        let (mut records, mut bytes) = (0, 0);
        let meter = Meter::start(self.target)?;
        let mut transactions = self.client.iterate(self.start.next(), None);
        while transactions.next_transaction()?.is_some() {
            while let Some(record) = transactions.next_record()? {
                records += 1;
                bytes += record.data.map_or(0, |data| data.len());
            }
        }
        let seconds = meter.seconds();
        let group = "iterate over all transactions";
        sheet.add(group, "speed", "MB/s", Better::Higher, bytes as f64 / 1e6 / seconds);
        sheet.add(group, "objects", "1/s", Better::Higher, f64::from(records) / seconds);
        meter.cpu("object", records as usize, group, sheet)
    }

    fn load(&mut self, sheet: &mut Column<'_>) -> Result<(), Failure> {
        let before = self.client.sync()?.next().ok_or("no greater tid is possible")?;
        let mut latencies = Latencies::default();
        let meter = Meter::start(self.target)?;
        for oid in &self.objects {
            let start = Instant::now();
            let record = self.client.load(*oid)?;
            latencies.push(start.elapsed());
            if record.data.len() != LOAD_BYTES {
                return Err(format!("object {oid} has {} bytes", record.data.len()).into());
            }
        }
        let group = "load 4 KiB, one after the other";
        let count = latencies.len();
        sheet.add(group, "p50", "µs", Better::Lower, latencies.percentile(50));
        sheet.add(group, "p99", "µs", Better::Lower, latencies.percentile(99));
        meter.cpu("load", count, group, sheet)?;

        for window in CONCURRENCY {
            let group = format!("load 4 KiB, {window} under way");
            let mut series = self.objects.chunks(SERIES_LEN).cycle();
            let mut count = 0;
            let meter = Meter::start(self.target)?;
            while meter.elapsed() < self.scale.duration {
                let oids = series.next().ok_or("there is no object")?;
                self.client.prefetch_with(oids, before, window)?;
                count += oids.len();
            }
            let rate = count as f64 / meter.seconds();
            sheet.add(&group, "loads", "1/s", Better::Higher, rate);
            meter.cpu("load", count, &group, sheet)?;
        }
        match self.python {
            Some(interpreter) => python::load(interpreter, self.target, &self.objects, sheet),
            None => Ok(()),
        }
    }

    fn commit(&mut self, sheet: &mut Column<'_>) -> Result<(), Failure> {
        for count in CONCURRENCY {
            let plural = if count == 1 { "" } else { "s" };
            let group = format!("commit 3 × 500 B, {count} client{plural}");
            let mut clients = Vec::new();
            for _ in 0..count {
                clients.push((self.target.client()?, self.prng.fork()));
            }
            let ready = Barrier::new(count + 1);
            let duration = self.scale.duration;
            let (meter, results) = thread::scope(|scope| {
                let run = |(client, prng): (Client, Prng)| {
                    let ready = &ready;
                    scope.spawn(move || {
                        // The first one opens connections to storages.
                        let warm = commit_random(&client, &mut prng.clone());
                        ready.wait();
                        let result = warm.and_then(|()| commit_for(&client, prng, duration));
                        client.close();
                        result
                    })
                };
                let threads: Vec<_> = clients.into_iter().map(run).collect();
                ready.wait();
                let meter = Meter::start(self.target);
                let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                    thread.join().expect("threads return their errors")
                };
                (meter, threads.into_iter().map(join).collect::<Vec<_>>())
            });
            let meter = meter?;
            let seconds = meter.seconds();
            let mut latencies = Latencies::default();
            for result in results {
                latencies.extend(result?);
            }
            let total = latencies.len();
            sheet.add(&group, "commits", "1/s", Better::Higher, total as f64 / seconds);
            sheet.add(&group, "p50", "µs", Better::Lower, latencies.percentile(50));
            sheet.add(&group, "p99", "µs", Better::Lower, latencies.percentile(99));
            meter.cpu("commit", total, &group, sheet)?;
        }
        Ok(())
    }
}

fn random(prng: &mut Prng, len: usize) -> Bytes {
    let words = (0..len.div_ceil(8)).flat_map(|_| prng.next_u64().to_le_bytes());
    words.take(len).collect()
}

fn commit(
    client: &Client,
    tid: Option<Tid>,
    records: impl IntoIterator<Item = (Oid, Bytes)>,
) -> neo_client::Result<Tid> {
    let mut transaction = client.begin(tid, Box::new(NoResolution))?;
    for (oid, data) in records {
        transaction.store(oid, Tid::ZERO, data)?;
    }
    transaction.vote(&Metadata::default())?;
    transaction.finish(|_| {})
}

fn commit_random(client: &Client, prng: &mut Prng) -> neo_client::Result<()> {
    let mut records = Vec::with_capacity(COMMIT_OBJECTS);
    for _ in 0..COMMIT_OBJECTS {
        records.push((client.new_oid()?, random(prng, COMMIT_BYTES)));
    }
    commit(client, None, records)?;
    Ok(())
}

fn commit_for(
    client: &Client,
    mut prng: Prng,
    duration: Duration,
) -> neo_client::Result<Latencies> {
    let begin = Instant::now();
    let mut latencies = Latencies::default();
    while begin.elapsed() < duration {
        let start = Instant::now();
        commit_random(client, &mut prng)?;
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

/// Time, and CPU time of everybody, since it was started.
struct Meter<'a> {
    target: &'a Target,
    start: Instant,
    cpu: Vec<(&'a str, Duration)>,
}

impl<'a> Meter<'a> {
    fn start(target: &'a Target) -> Result<Self, Failure> {
        let cpu = cpu_times(target)?;
        Ok(Self { target, start: Instant::now(), cpu })
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn seconds(&self) -> f64 {
        self.elapsed().as_secs_f64().max(1e-9)
    }

    /// Adds the CPU time per operation, for each kind of node and the client.
    fn cpu(
        &self,
        operation: &str,
        count: usize,
        group: &str,
        sheet: &mut Column<'_>,
    ) -> Result<(), Failure> {
        let mut names: Vec<&str> = Vec::new();
        let now = cpu_times(self.target)?;
        let used = |name| -> f64 {
            let pairs = now.iter().zip(&self.cpu).filter(|((n, _), _)| *n == name);
            pairs.map(|((_, now), (_, before))| now.saturating_sub(*before).as_secs_f64()).sum()
        };
        for (name, _) in &now {
            if !names.contains(name) {
                names.push(name);
                let label = format!("CPU of {name} per {operation}");
                let value = used(*name) * 1e6 / count.max(1) as f64;
                sheet.add(group, &label, "µs", Better::Lower, value);
            }
        }
        Ok(())
    }
}

fn cpu_times(target: &Target) -> Result<Vec<(&str, Duration)>, Failure> {
    let of = |name, pid| {
        process::cpu_time(pid)
            .map_err(|error| format!("a node ended while it was measured: {error}"))
            .map(|time| (name, time))
    };
    let nodes = target.nodes.iter().map(|node| of(node.name.as_str(), node.pid));
    // 0 is this process.
    Ok(nodes.chain([of("client", 0)]).collect::<Result<_, _>>()?)
}
