// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory backend: the model that other backends are compared with, and the disk of simulated nodes.
//!
//! It is deterministic, and it has the crash semantics of a real database: a [`Disk`] outlives the
//! [`Memory`] that uses it, and [`Disk::crash`] loses what was not committed, or not synced. See
//! [`table`] for how.

// A disk has two kinds of users, the writer and readers, like a file. Nothing waits for the lock
// when a single thread executes jobs.
#![allow(clippy::disallowed_types)]

pub mod table;

mod read;
mod references;
mod store;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::records::DataId;
use super::{CommitLevel, Error, manager};
use store::Store;
pub use table::{Crash, Layer};

/// What remains of a node that stops.
#[derive(Clone, Default, Debug)]
pub struct Disk(Arc<Mutex<Store>>);

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses what a crash of its user, or of the machine, destroys. The [`Memory`] that uses it must
    /// not be used any more.
    pub fn crash(&self, crash: Crash) {
        self.contents().crash(crash);
    }

    /// A copy of what would remain after a crash, on another disk.
    pub fn crashed(&self, crash: Crash) -> Self {
        let mut store = self.contents().clone();
        store.crash(crash);
        Self(Arc::new(Mutex::new(store)))
    }

    /// A reader of what was done, what is committed, or what a loss of power would leave.
    pub fn reader(&self, layer: Layer) -> MemoryReader {
        MemoryReader { disk: self.clone(), layer }
    }

    fn contents(&self) -> std::sync::MutexGuard<'_, Store> {
        self.0.lock().expect("no panic while the store is locked")
    }
}

/// How a [`Memory`] behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Equal data is stored once.
    pub dedup: bool,
    /// See [`super::Database::visible_delay`].
    pub visible_delay: Duration,
}

/// The writer of a disk.
pub struct Memory {
    reader: MemoryReader,
    options: Options,
    /// Guarantee of the transaction that is open.
    transaction: Option<CommitLevel>,
    /// References of voted transactions and of spilled data.
    held: BTreeMap<DataId, u32>,
    /// Next data id of each range, once known.
    next_ids: BTreeMap<i64, i64>,
}

/// A reader of a disk.
pub struct MemoryReader {
    disk: Disk,
    layer: Layer,
}

impl Memory {
    /// Opens a disk, for a cluster.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignCluster`] if it was used for another one.
    pub fn open(disk: &Disk, cluster: &str, options: Options) -> Result<Self, Error> {
        let mut store = disk.contents();
        match store.config.layer(Layer::Latest).get(manager::key::NAME) {
            None => {
                store.config.insert(manager::key::NAME, cluster.to_owned());
                store.commit(CommitLevel::Durable);
            }
            Some(name) if name == cluster => {}
            Some(name) => {
                let (wanted, found) = (cluster.to_owned(), name.clone());
                return Err(Error::ForeignCluster { wanted, found });
            }
        }
        Ok(Self {
            reader: MemoryReader { disk: disk.clone(), layer: Layer::Latest },
            options,
            transaction: None,
            held: store.held(),
            next_ids: BTreeMap::new(),
        })
    }

    fn contents(&self) -> std::sync::MutexGuard<'_, Store> {
        self.reader.disk.contents()
    }
}
