// SPDX-License-Identifier: GPL-2.0-or-later
//! What simulated applications do: several threads per client, each one operation after the other.
//!
//! - [`scene`]: what they share;
//! - [`session`]: one thread, with the interface of the client;
//! - [`value`]: data of objects;
//! - [`mod@write`]: transfers, counters, objects that come and go;
//! - [`look`]: sums, history, iteration, undo, pack;
//! - [`outcome`]: whether transactions of others are committed.

pub mod look;
pub mod outcome;
pub mod scene;
pub mod session;
pub mod value;
pub mod write;

use std::time::Duration;

use neo_client::Error;
use neo_client::call::{Call, Event};
use neo_client::compression::Compression;
use neo_common::prng::Prng;

use crate::port::{Dealt, Port};
use session::Session;

/// What applications do, and how often. Weights are relative.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Threads per client.
    pub threads: usize,
    /// Whether they are in each other's way all the time.
    pub is_crowded: bool,
    /// Mean pause between two operations, in microseconds.
    pub pause_us: u64,
    /// One step out of so many is followed by a pause; 0: never.
    pub dawdle_one_in: u64,
    /// Accounts.
    pub accounts_count: usize,
    /// Counters.
    pub counters_count: usize,
    /// Most bytes that mean nothing in an object.
    pub filler_max: usize,
    /// One transaction out of so many is aborted at some step; 0: never.
    pub abort_one_in: u64,
    /// Compression of clients.
    pub compressed: bool,
    /// Weight of each kind of operation, in the order of [`Operation`].
    pub weights: [u32; Operation::ALL.len()],
}

/// What an application does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Moves an amount between accounts.
    Transfer,
    /// Moves an amount, relying on a third account.
    CheckedTransfer,
    /// Increments counters.
    Increment,
    /// Writes, creates or deletes objects.
    Blobs,
    /// Adds all accounts up.
    Sum,
    /// Reads old states.
    Past,
    /// Asks for histories.
    History,
    /// Undoes a transaction.
    Undo,
    /// Walks over transactions, or oids.
    Walk,
    /// Packs.
    Pack,
    /// A transaction without object.
    Empty,
    /// Asks which transactions are committed.
    Outcomes,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Transfer,
        Self::CheckedTransfer,
        Self::Increment,
        Self::Blobs,
        Self::Sum,
        Self::Past,
        Self::History,
        Self::Undo,
        Self::Walk,
        Self::Pack,
        Self::Empty,
        Self::Outcomes,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::CheckedTransfer => "checked transfer",
            Self::Increment => "increment",
            Self::Blobs => "blobs",
            Self::Sum => "sum",
            Self::Past => "past",
            Self::History => "history",
            Self::Undo => "undo",
            Self::Walk => "walk",
            Self::Pack => "pack",
            Self::Empty => "empty",
            Self::Outcomes => "outcomes",
        }
    }
}

impl Options {
    /// The usual mix.
    pub const MIX: Self = Self {
        threads: 2,
        is_crowded: false,
        pause_us: 40_000,
        dawdle_one_in: 0,
        accounts_count: 6,
        counters_count: 3,
        filler_max: 300,
        abort_one_in: 15,
        compressed: true,
        weights: [20, 12, 16, 14, 6, 6, 3, 5, 2, 1, 1, 1],
    };

    /// Many threads that change the same few objects, mostly: requests wait for locks, clients are
    /// told to lock again, and conflicts are resolved several times.
    pub fn crowd(prng: &mut Prng) -> Self {
        let mut options = Self::MIX;
        options.is_crowded = true;
        options.threads = 3 + prng.below(4);
        options.pause_us = 1_000 << prng.below(6);
        options.dawdle_one_in = if prng.one_in(2) { 0 } else { 3 + prng.below(30) as u64 };
        options.accounts_count = 2 + prng.below(4);
        options.counters_count = 1 + prng.below(2);
        options.filler_max = [30, 3000][prng.below(2)];
        options.weights = [20, 20, 20, 0, 1, 0, 0, 0, 0, 0, 0, 1];
        options.bounded()
    }

    /// A mix drawn from a seed.
    pub fn draw(prng: &mut Prng) -> Self {
        if prng.one_in(4) {
            return Self::crowd(prng);
        }
        let mut options = Self::MIX;
        options.threads = 1 + prng.below(3);
        options.pause_us = 2_000 << prng.below(8);
        options.dawdle_one_in = if prng.one_in(2) { 0 } else { 3 + prng.below(30) as u64 };
        options.accounts_count = 2 + prng.below(10);
        options.counters_count = 1 + prng.below(5);
        options.filler_max = [0, 30, 300, 3000, 100_000][prng.below(5)];
        options.abort_one_in = if prng.one_in(3) { 0 } else { 3 + prng.below(30) as u64 };
        // Compression of much data is most of the time of a run.
        options.compressed = prng.one_in(if options.filler_max > 300 { 6 } else { 2 });
        for weight in &mut options.weights {
            *weight = match prng.below(6) {
                0 => 0,
                1 => *weight * 5,
                _ => *weight,
            };
        }
        if options.weights.iter().all(|weight| *weight == 0) {
            options.weights[0] = 1;
        }
        options.bounded()
    }

    /// What is stored stays in memory until the end of the run, so big values are not stored often: at
    /// most 250 bytes per millisecond and thread.
    fn bounded(mut self) -> Self {
        self.pause_us = self.pause_us.max(self.filler_max as u64 * 4);
        self
    }

    /// Whether transactions are committed, sooner or later.
    pub fn writes(&self) -> bool {
        let weight = |operation| self.weights[operation as usize];
        self.abort_one_in != 1
            && [Operation::Transfer, Operation::Increment, Operation::Blobs, Operation::Empty]
                .into_iter()
                .any(|operation| weight(operation) > 0)
    }

    /// How clients compress.
    pub fn compression(&self) -> Compression {
        match self.compressed {
            true => Compression::default(),
            false => Compression::None,
        }
    }

    fn choose(&self, prng: &mut Prng) -> Operation {
        let total: u32 = self.weights.iter().sum();
        let mut n = prng.below(total as usize) as u32;
        for (operation, weight) in Operation::ALL.into_iter().zip(self.weights) {
            if n < weight {
                return operation;
            }
            n -= weight;
        }
        Operation::Transfer
    }
}

/// The thread that is told what other clients commit. It ends with its process only.
pub async fn listen(port: Port, mut prng: Prng, dawdle_one_in: u64) {
    // The client may be closed: then there is no event.
    let _ = port.call(Call::Listen).await;
    loop {
        let dealt = match port.event().await {
            Event::Invalidate { tid, oids } => {
                port.put_dealt(Dealt::Invalidation(tid, oids));
                Some(Dealt::Transaction(tid))
            }
            Event::InvalidateCache => Some(Dealt::Everything),
            Event::Disconnected => None,
        };
        if dawdle_one_in != 0 && prng.one_in(dawdle_one_in) {
            port.sleep(Duration::from_micros(prng.below(50_000) as u64)).await;
        }
        dealt.into_iter().for_each(|dealt| port.put_dealt(dealt));
        let _ = port.call(Call::Delivered).await;
    }
}

/// One thread: an operation after the other.
pub async fn work(mut session: Session, options: Options) {
    while !session.port.is_stopping() {
        let pause = session.prng.below(2 * options.pause_us as usize) as u64;
        session.port.sleep(Duration::from_micros(pause)).await;
        let operation = options.choose(&mut session.prng);
        let result = match operation {
            Operation::Transfer => session.transfer(&options, false).await,
            Operation::CheckedTransfer => session.transfer(&options, true).await,
            Operation::Increment => session.increment(&options).await,
            Operation::Blobs => session.blobs(&options).await,
            Operation::Sum => session.sum().await,
            Operation::Past => session.past().await,
            Operation::History => session.history().await,
            Operation::Undo => session.undo(&options).await,
            Operation::Walk => session.walk().await,
            Operation::Pack => session.pack().await,
            Operation::Empty => session.empty().await,
            Operation::Outcomes => session.outcomes().await,
        };
        match result {
            Ok(()) => session.scene.get().count(operation.name()),
            Err(Error::Closed) => return,
            Err(error) => session.scene.get().failed(operation.name(), &error),
        }
    }
}

/// Makes the objects that applications work on, and waits for it.
pub async fn populate(mut session: Session, options: Options) {
    loop {
        match session.populate(&options).await {
            Ok(()) => return,
            Err(Error::Closed) => return,
            Err(error) => session.scene.get().failed("populate", &error),
        }
        session.port.sleep(Duration::from_millis(100)).await;
    }
}
