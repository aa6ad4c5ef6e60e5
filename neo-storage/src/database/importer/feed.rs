// SPDX-License-Identifier: GPL-2.0-or-later
//! The thread that reads and compresses what the writer is going to store.
//!
//! It goes ahead of the writer by a few batches, so that neither waits for the other in general.
//! Transactions of any size go through in the memory of some batches: objects go first, and the
//! transaction itself, which makes them count, with the last of them.

use std::fs::File;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use neo_common::logging::NodeName;
use neo_common::types::Tid;
use neo_filestorage::{Reader, Source as _};

use super::super::Error;
use super::super::records::*;
use super::source::{Source, transaction};

/// Bytes of data of a batch, about: what a client waits for at most.
const BATCH_BYTES: usize = 512 << 10;
/// Objects and transactions of a batch, at most.
const BATCH_LEN: usize = 200;
/// Batches that wait for the writer.
const QUEUE_LEN: usize = 16;

/// What is stored at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Objects; those of a transaction come before it.
    pub objects: Vec<ReplicatedObject>,
    /// Transactions that are complete with these objects.
    pub transactions: Vec<ReplicatedTransaction>,
    /// With this batch, all is there up to this tid; `None` if no transaction ends in it.
    pub complete: Option<Tid>,
    /// Bytes of the file that were read so far.
    pub read_bytes: u64,
    /// Nothing follows.
    pub is_last: bool,
}

/// The thread, seen from the writer.
pub struct Feed {
    /// `None` once it is dropped: this ends the thread.
    batches: Option<Receiver<Result<Batch, Error>>>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Reads what comes after `imported`.
    pub fn start(source: Arc<Source>, imported: Tid) -> Result<Self, Error> {
        let (sender, batches) = bounded(QUEUE_LEN);
        let node = NodeName::current();
        let run = move || {
            node.set();
            let mut reading =
                Reading { source: &source, batch: Batch::default(), bytes: 0, sender };
            if let Err(Stop::Failed(error)) = reading.run(imported) {
                // Only fails if the writer is gone.
                let _ = reading.sender.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("neo-import".into()).spawn(run);
        let thread = thread.map_err(|cause| {
            Error::Backend("start of thread neo-import".into(), Box::new(cause))
        })?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// The next batch, if it is ready.
    pub fn next(&self) -> Option<Result<Batch, Error>> {
        match self.batches.as_ref()?.try_recv() {
            Ok(batch) => Some(batch),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                let why = "the thread that reads the source ended";
                Some(Err(Error::Backend("import".into(), why.into())))
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, it said so.
            let _ = thread.join();
        }
    }
}

enum Stop {
    Failed(Error),
    /// The writer wants no more.
    Gone,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Reading<'a> {
    source: &'a Source,
    batch: Batch,
    /// Bytes of data in the batch.
    bytes: usize,
    sender: Sender<Result<Batch, Error>>,
}

impl Reading<'_> {
    fn run(&mut self, imported: Tid) -> Result<(), Stop> {
        let first = Tid::new(imported.get() + 1);
        let mut reader = self.source.reader_from(first)?;
        let failed = |error| Stop::Failed(self.source.failure(error));
        while let Some(info) = reader.next_transaction().map_err(failed)? {
            let mut oids = Vec::new();
            while let Some(record) = reader.next_record().map_err(failed)? {
                if self.source.is_superseded(reader.position()) {
                    continue;
                }
                oids.push(record.oid);
                let content = match &record.data {
                    None => Content::Deleted,
                    Some(data) => {
                        let value = self.source.value(record.oid, info.tid, data)?;
                        self.bytes += value.data.len();
                        Content::Value(value)
                    }
                };
                let object = ObjectRecord { oid: record.oid, data_tid: record.data_txn, content };
                self.batch.objects.push(ReplicatedObject { tid: info.tid, object });
                self.send_if_full(&reader)?;
            }
            self.bytes += oids.len() * 8;
            let tid = info.tid;
            let info = transaction(info, oids);
            self.batch.transactions.push(ReplicatedTransaction { info });
            self.batch.complete = Some(tid);
            self.send_if_full(&reader)?;
        }
        self.batch.is_last = true;
        self.batch.complete = Some(self.source.last_tid());
        self.send(&reader)
    }

    fn send_if_full(&mut self, reader: &Reader<Arc<File>>) -> Result<(), Stop> {
        let len = self.batch.objects.len() + self.batch.transactions.len();
        if self.bytes < BATCH_BYTES && len < BATCH_LEN {
            return Ok(());
        }
        self.send(reader)
    }

    fn send(&mut self, reader: &Reader<Arc<File>>) -> Result<(), Stop> {
        self.bytes = 0;
        self.batch.read_bytes = reader.position();
        let batch = mem::take(&mut self.batch);
        self.sender.send(Ok(batch)).map_err(|_| Stop::Gone)
    }
}
