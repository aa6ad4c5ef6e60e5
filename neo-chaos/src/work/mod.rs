// SPDX-License-Identifier: GPL-2.0-or-later
//! The clients in Rust: threads of transactions on few objects that all clients share.
//!
//! - [`mod@session`]: one client, its history, loads;
//! - [`attempt`]: one transaction, from begin to its outcome;
//! - [`writes`]: transfers, counters, objects that come and go, undo, pack;
//! - [`looks`]: sums, old states, histories, iteration.
//!
//! Operations and values are those of the simulator; the workers in Python (`harness/worker.py`) do
//! the same.

mod attempt;
mod looks;
mod session;
mod writes;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use neo_client::{Client, Error};
use neo_common::prng::Prng;
use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::history::{History, now};
pub use session::Objects;
use session::{Shared, Worker};

/// Operations of a worker, with how often they are done. In Python: the same table in `worker.py`.
const WEIGHTS: [(&str, usize); 11] = [
    ("transfer", 20),
    ("checked transfer", 14),
    ("increment", 16),
    ("blobs", 14),
    ("undo", 4),
    ("empty", 1),
    ("sum", 8),
    ("past", 8),
    ("history", 3),
    ("walk", 2),
    ("oids", 1),
];

/// Of so many operations, one is a pack, by one thread of one process.
const PACK_ONE_IN: u64 = 150;

fn session(arguments: &Arguments, index: u64, objects: Objects) -> Result<Arc<Shared>, Failure> {
    let history = History::create(&arguments.path("history")?, index)?;
    let client = Client::open(arguments.client_options()?)?;
    let shared = Arc::new(Shared::new(client, history, index, objects));
    shared.listen();
    Ok(shared)
}

/// Makes the objects that all clients share.
pub fn populate(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.path("objects")?;
    let shared = session(arguments, 0, Objects::default())?;
    let mut worker = Worker::new(Arc::clone(&shared), 0, Prng::new(0));
    let objects = worker.populate()?;
    std::fs::write(path, objects.to_json().to_string())?;
    shared.close();
    Ok(())
}

/// Works until the standard input ends.
pub fn work(arguments: &Arguments) -> Result<(), Failure> {
    let index: u64 = arguments.number("index")?;
    let seed: u64 = arguments.number("seed")?;
    let threads: u64 = arguments.number("threads")?;
    let pause = Duration::from_millis(arguments.number("pause")?);
    let text = std::fs::read_to_string(arguments.path("objects")?)?;
    let objects = Objects::from_json(&serde_json::from_str(&text)?)?;
    let shared = session(arguments, index, objects)?;
    let mut handles = Vec::new();
    for number in 0..threads {
        // Prng is splitmix: seeds that are close give numbers that are not.
        let prng = Prng::new((seed << 20) ^ (index << 8) ^ number);
        let worker = Worker::new(Arc::clone(&shared), number, prng);
        let builder = std::thread::Builder::new().name(format!("worker-{number}"));
        handles.push(builder.spawn(move || run(worker, pause))?);
    }
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    shared.stopping.store(true, Ordering::Relaxed);
    let panicked = handles.into_iter().filter_map(|handle| handle.join().err()).count();
    shared.close();
    if panicked > 0 { Err(format!("{panicked} threads panicked").into()) } else { Ok(()) }
}

fn run(mut worker: Worker, pause: Duration) {
    let total: usize = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    while !worker.shared.stopping.load(Ordering::Relaxed) {
        std::thread::sleep(pause.mul_f64(worker.prng.below(2000) as f64 / 1000.0));
        let mut n = worker.prng.below(total);
        let mut operation = "";
        for (name, weight) in WEIGHTS {
            if n < weight {
                operation = name;
                break;
            }
            n -= weight;
        }
        if worker.number == 0 && worker.prng.one_in(PACK_ONE_IN) {
            operation = "pack";
        }
        let begin = now();
        let result = match operation {
            "transfer" => worker.transfer(false),
            "checked transfer" => worker.transfer(true),
            "increment" => worker.increment(),
            "blobs" => worker.blobs(),
            "undo" => worker.undo(),
            "empty" => worker.empty(),
            "sum" => worker.sum(),
            "past" => worker.past(),
            "history" => worker.history(),
            "walk" => worker.walk(),
            "oids" => worker.oids(),
            _ => worker.pack(),
        };
        match result {
            Ok(()) => {}
            Err(Error::Closed) => return,
            Err(error) => {
                // Transactions tell it themselves.
                if !worker.is_told(&error) {
                    worker.failed(operation, "read", begin, &error);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Waits for all packs, then reads everything back.
pub fn read(arguments: &Arguments) -> Result<(), Failure> {
    let shared = session(arguments, arguments.number("index")?, Objects::default())?;
    let mut worker = Worker::new(Arc::clone(&shared), 0, Prng::new(0));
    let packs = worker.read_all()?;
    for pack in &packs {
        shared.client.wait_for_pack(*pack)?;
    }
    shared.history.write(&json!({"k": "packs", "b": now(), "count": packs.len()}));
    shared.close();
    Ok(())
}
