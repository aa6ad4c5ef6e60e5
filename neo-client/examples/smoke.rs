// SPDX-License-Identifier: GPL-2.0-or-later
//! Does a bit of everything on a running cluster, and says how long it took.
//!
//! ```text
//! cargo run -p neo-client --example smoke -- CLUSTER MASTER...   # smoke test 127.0.0.1:10000
//! ```
//!
//! The database of the cluster grows: use one that is for trying.

// Threads and clocks of a program.
#![allow(clippy::disallowed_methods)]

use std::error::Error as StdError;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use neo_client::{
    Client, Conflict, Error, Metadata, NoResolution, Options, Resolver, Result, Transaction,
};
use neo_common::types::{Oid, Tid};

type AnyResult<T> = std::result::Result<T, Box<dyn StdError>>;

/// Shows what a step took.
fn step<T, E>(
    name: &str,
    f: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let start = Instant::now();
    let result = f();
    let outcome = if result.is_ok() { "ok" } else { "FAILED" };
    println!("{name:<40} {outcome:>6} {:>10.1?}", start.elapsed());
    result
}

fn check(what: &str, condition: bool) -> AnyResult<()> {
    if condition { Ok(()) } else { Err(what.into()) }
}

fn metadata(description: &'static str) -> Metadata {
    Metadata { user: "smoke".into(), description: description.into(), extension: Bytes::new() }
}

fn commit(client: &Client, f: impl FnOnce(&mut Transaction) -> Result<()>) -> Result<Tid> {
    let mut transaction = client.begin(None, Box::new(NoResolution))?;
    f(&mut transaction)?;
    transaction.vote(&metadata("a step"))?;
    transaction.finish(|_| {})
}

fn number(data: &[u8]) -> i64 {
    std::str::from_utf8(data).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MIN)
}

struct Adder(Client);

impl Resolver for Adder {
    fn resolve(&mut self, conflict: Conflict) -> Result<Bytes> {
        let base = number(&self.0.load_serial(conflict.oid, conflict.base)?.data);
        let committed = number(&self.0.load_serial(conflict.oid, conflict.committed)?.data);
        let mine = number(conflict.data.as_deref().unwrap_or_default());
        Ok((committed + mine - base).to_string().into())
    }
}

fn revisions(client: &Client, other: &Client) -> AnyResult<()> {
    let oid = client.new_oid()?;
    let first = commit(client, |t| t.store(oid, Tid::ZERO, "one".into()))?;
    check("other client", other.sync()? >= first && other.load(oid)?.data == "one")?;
    let second = commit(other, |t| t.store(oid, first, "two".into()))?;
    client.sync()?;
    check("second revision", client.load(oid)?.serial == second)?;
    let before = client.load_before(oid, second)?.ok_or("no first revision")?;
    check("first revision", before.data == "one" && before.next_serial == Some(second))?;
    check("before", client.load_before(oid, first)?.is_none())?;
    check("history", client.history(oid, 10)?.iter().map(|h| h.0).eq([second, first]))?;
    let conflict = commit(client, |t| t.store(oid, first, "three".into()));
    check("conflict", matches!(conflict, Err(Error::Conflict(_))))?;

    let undo = commit(client, |t| t.undo(second).map(|_| ()))?;
    let undone = client.load(oid)?;
    check("undo", undone.data == "one" && undone.serial == undo)?;
    let deleted = commit(client, |t| t.delete(oid, undo))?;
    check("deleted", matches!(client.load(oid), Err(Error::CreationUndone { .. })))?;
    check("before deletion", client.load_before(oid, deleted)?.is_some())?;
    let unknown = Oid::new(u64::MAX >> 2);
    check("unknown", matches!(client.load(unknown), Err(Error::OidDoesNotExist(_))))?;

    let records: Vec<_> = client.iterate(Some(first), None).collect::<Result<_>>()?;
    let tids: Vec<Tid> = records.iter().map(|record| record.info.tid).collect();
    check("iteration", tids == [first, second, undo, deleted])?;
    check("back-pointer", records[2].records[0].data_txn == Some(first))?;
    check("undo log", client.undo_log().take(4).map(|i| i.map(|i| i.tid)).rev_eq(&tids)?)?;
    Ok(())
}

trait RevEq {
    fn rev_eq(self, tids: &[Tid]) -> Result<bool>;
}

impl<I: Iterator<Item = Result<Tid>>> RevEq for I {
    fn rev_eq(self, tids: &[Tid]) -> Result<bool> {
        let mut found = self.collect::<Result<Vec<_>>>()?;
        found.reverse();
        Ok(found == tids)
    }
}

/// Threads of both clients increment two counters in one transaction.
fn counters(clients: &[Client; 2]) -> AnyResult<()> {
    const THREADS: usize = 8;
    const ROUNDS: i64 = 25;
    let oids = [clients[0].new_oid()?, clients[0].new_oid()?];
    commit(&clients[0], |t| oids.iter().try_for_each(|o| t.store(*o, Tid::ZERO, "0".into())))?;
    clients[1].sync()?;
    let threads = (0..THREADS).map(|index| {
        let client = clients[index % 2].clone();
        thread::spawn(move || -> Result<()> {
            for round in 0..ROUNDS {
                let mut transaction = client.begin(None, Box::new(Adder(client.clone())))?;
                let mut order = oids;
                // Opposite orders, to provoke deadlocks.
                if (round as usize + index).is_multiple_of(2) {
                    order.reverse();
                }
                for oid in order {
                    let record = client.load(oid)?;
                    let next = (number(&record.data) + 1).to_string();
                    transaction.store(oid, record.serial, next.into())?;
                }
                transaction.vote(&metadata("increment"))?;
                transaction.finish(|_| {})?;
            }
            Ok(())
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    clients[0].sync()?;
    for oid in oids {
        let total = number(&clients[0].load(oid)?.data);
        check(&format!("counter is {total}"), total == THREADS as i64 * ROUNDS)?;
    }
    Ok(())
}

/// Many objects of 4 KiB; loads one by one, then many at once, then from the cache.
fn loads(options: &Options) -> AnyResult<()> {
    const COUNT: u64 = 5000;
    let client = Client::open(options.clone())?;
    let oids: Vec<Oid> = (0..COUNT).map(|_| client.new_oid()).collect::<Result<_>>()?;
    let mut seed = 7_u64;
    let mut data = || {
        let words = (0..512).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 8).to_le_bytes()
        });
        Bytes::from(words.flatten().collect::<Vec<u8>>())
    };
    let start = Instant::now();
    commit(&client, |t| oids.iter().try_for_each(|o| t.store(*o, Tid::ZERO, data())))?;
    let time = start.elapsed();
    println!("  {COUNT} objects of 4 KiB stored in one transaction: {time:.1?}");
    let before = client.last_tid()?.next().ok_or("no last tid")?;

    let cold = Client::open(options.clone())?;
    cold.connect()?;
    let mut times = Vec::new();
    for oid in oids.iter().take(2000) {
        let start = Instant::now();
        cold.load_before(*oid, before)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("  uncached load: p50 {:.1?}, p99 {:.1?}", times[1000], times[1980]);

    let cold = Client::open(options.clone())?;
    let start = Instant::now();
    cold.prefetch(&oids, before)?;
    println!("  prefetch: {:.0}/s", COUNT as f64 / start.elapsed().as_secs_f64());

    for threads in [8, 32] {
        let cold = Client::open(options.clone())?;
        cold.connect()?;
        let start = Instant::now();
        let chunks = oids.chunks(oids.len() / threads).map(<[Oid]>::to_vec);
        let threads_ = chunks.map(|chunk| {
            let client = cold.clone();
            thread::spawn(move || {
                chunk.iter().try_for_each(|oid| client.load_before(*oid, before).map(|_| ()))
            })
        });
        for thread in threads_.collect::<Vec<_>>() {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        let rate = COUNT as f64 / start.elapsed().as_secs_f64();
        println!("  loads of {threads} threads: {rate:.0}/s");
    }

    let oid = oids[0];
    cold.load_before(oid, before)?;
    let start = Instant::now();
    for _ in 0..100_000 {
        cold.load_before(oid, before)?;
    }
    println!("  cache hit: {:.0?}", start.elapsed() / 100_000);

    let start = Instant::now();
    let mut bytes = 0;
    let mut transactions = client.iterate(None, None);
    while transactions.next_transaction()?.is_some() {
        while let Some(record) = transactions.next_record()? {
            bytes += record.data.map_or(0, |data| data.len());
        }
    }
    let rate = bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("  iteration: {rate:.0} MB/s of {} MB", bytes / 1_000_000);
    let count = client.current_records(oids[0]).filter(Result::is_ok).count();
    check("current records", count as u64 == COUNT)
}

fn commits(options: &Options) -> AnyResult<()> {
    for threads in [1, 8] {
        let clients: Vec<Client> =
            (0..threads).map(|_| Client::open(options.clone())).collect::<Result<_>>()?;
        let start = Instant::now();
        let threads_ = clients.into_iter().map(|client| {
            thread::spawn(move || -> Result<u32> {
                let start = Instant::now();
                let mut count = 0;
                while start.elapsed() < Duration::from_secs(2) {
                    let oids = [client.new_oid()?, client.new_oid()?, client.new_oid()?];
                    let data = Bytes::from(vec![7; 500]);
                    commit(&client, |t| {
                        oids.iter().try_for_each(|o| t.store(*o, Tid::ZERO, data.clone()))
                    })?;
                    count += 1;
                }
                Ok(count)
            })
        });
        let mut count = 0;
        for thread in threads_.collect::<Vec<_>>() {
            count += thread.join().map_err(|_| "a thread panicked")??;
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        println!("  commits of {threads} clients: {rate:.0}/s");
    }
    Ok(())
}

fn main() -> AnyResult<()> {
    let mut arguments = std::env::args().skip(1);
    let cluster = arguments.next().ok_or("usage: smoke CLUSTER MASTER...")?;
    let masters =
        arguments.map(|address| address.parse()).collect::<std::result::Result<_, _>>()?;
    let mut options = Options::new(cluster, masters);
    options.connect_timeout = Some(Duration::from_secs(10));
    options.cache_bytes = 64 << 20;
    let clients = [Client::open(options.clone())?, Client::open(options.clone())?];
    step("connect", || clients[0].connect())?;
    step("revisions, undo, deletion, iteration", || revisions(&clients[0], &clients[1]))?;
    step("counters with conflicts and deadlocks", || counters(&clients))?;
    step("loads", || loads(&options))?;
    step("commits", || commits(&options))?;
    step("pack", || {
        let tid = clients[0].last_tid()?;
        clients[0].pack(tid, None, true).map(|_| ())
    })?;
    step("close", || -> Result<()> {
        clients.iter().for_each(Client::close);
        Ok(())
    })?;
    Ok(())
}
