// SPDX-License-Identifier: GPL-2.0-or-later
//! Adapter `Importer`: a FileStorage that is served while it is imported.
//!
//! ```text
//!   read lanes ----> Merged --+--> Source (Data.fs)           up to its last tid
//!                             +--> destination (SQLite, MySQL)   after it
//!   write lane ----> Importer ---> destination
//!                       ^
//!                       | batches
//!                neo-import (thread) <-- Data.fs
//! ```
//!
//! - [`config`]: the file that `--database` names; [`source`]: the FileStorage; [`merge`]: reads;
//!   `feed`: the thread that reads ahead; [`state`]: how far it is; `progress`: the log.
//!
//! The destination is a normal database: transactions of clients go to it, with tids after those of
//! the source, because the master is told the last tid and oid of the source. Imported transactions
//! are written as if they were replicated: such rows are skipped if they are there already. How far
//! the import is goes to disk with them, so it resumes exactly where a process stopped.
//!
//! The writer imports a batch when it has nothing else to do, and once in a while if it always has
//! (see the write lane). Once everything is imported, the source is not needed any more, also if the
//! node is started again with this adapter; it should be started with that of the destination.
//!
//! # Differences with upstream (storage/database/importer.py)
//!
//! - History, undo, the list of transactions and replication work during an import.
//! - How far the import is, and of which file, is stored: a file that was changed since is refused.
//! - Other kinds of sources, several sources and write-back are refused: see [`config`].
//! - As upstream, packs wait for a start without this adapter, and nothing can be truncated at a tid
//!   of the source.

// A driver: it has a thread, and measures how fast it goes.
#![allow(clippy::disallowed_methods)]

pub mod config;
pub mod merge;
pub mod source;
pub mod state;

mod feed;
mod progress;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use super::mysql::MySql;
use super::records::*;
use super::sqlite::Sqlite;
use super::{CommitLevel, Database, Error, Maintenance, Reader, Work};
use feed::{Batch, Feed};
use merge::{Inner, Merged};
use progress::Pace;
use source::Source;
use state::{KEY, Shared, Stored, UPSTREAM_KEY};

/// A database that data can be imported to.
pub trait Destination: Database {
    /// A value of table `config`.
    fn setting(&mut self, name: &str) -> Result<Option<String>, Error>;
    /// Sets it, in the transaction that is open if there is one.
    fn set_setting(&mut self, name: &str, value: &str) -> Result<(), Error>;
}

impl Destination for Sqlite {
    fn setting(&mut self, name: &str) -> Result<Option<String>, Error> {
        self.config_value(name)
    }
    fn set_setting(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.set_config_value(name, value)
    }
}

impl Destination for MySql {
    fn setting(&mut self, name: &str) -> Result<Option<String>, Error> {
        self.config_value(name)
    }
    fn set_setting(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.set_config_value(name, value)
    }
}

/// The connection that writes.
struct Writer(Box<dyn Destination>);

impl Inner for Writer {
    fn reader(&mut self) -> &mut dyn Reader {
        self.0.latest()
    }
}

/// The destination, and the source as long as it is needed.
pub struct Importer {
    /// The thread uses the source: it is dropped first.
    feed: Option<Feed>,
    merged: Merged<Writer>,
    /// `None` once everything is imported.
    source: Option<Arc<Source>>,
    shared: Arc<Shared>,
    stored: Stored,
    /// Partitions of this node. `None`: to be looked up.
    assigned: Option<BTreeSet<Partition>>,
    /// A batch that is ready.
    next: Option<Result<Batch, Error>>,
    pace: Pace,
}

/// Whether something is left to import into a database that is opened without this adapter.
///
/// # Errors
/// If so: what is not imported would be missing.
pub fn check_complete(db: &mut dyn Destination) -> Result<(), Error> {
    let Some(text) = db.setting(KEY)? else { return Ok(()) };
    let stored = Stored::parse(&text)?;
    if stored.is_finished() {
        return Ok(());
    }
    Err(Error::Import(format!(
        "not everything is imported: the last transaction is {}, and that of the source is {}. Use \
         adapter Importer until the log says that all data are imported",
        stored.imported, stored.last_tid
    )))
}

impl Importer {
    /// Puts a source before a destination. `open_source` is not called if nothing of it is needed.
    ///
    /// # Errors
    /// If the source can not be read, or is not the one that was imported so far, or the destination
    /// has something else.
    pub fn open(
        mut destination: Box<dyn Destination>,
        open_source: impl FnOnce() -> Result<Source, Error>,
    ) -> Result<Self, Error> {
        let stored = destination.setting(KEY)?.map(|text| Stored::parse(&text)).transpose()?;
        let (source, stored) = match stored {
            Some(stored) if stored.is_finished() => {
                log::warn!("{}", finished_message());
                (None, stored)
            }
            Some(stored) => {
                let source = open_source()?;
                check_same(&source, &stored)?;
                log::info!("the import goes on after tid={}", stored.imported);
                (Some(Arc::new(source)), stored)
            }
            None => {
                check_empty(destination.as_mut())?;
                let source = open_source()?;
                let summary = source.summary();
                let last_oid = summary.last_oid.unwrap_or(Oid::ZERO);
                let (last_tid, imported) = (summary.last_tid, Tid::ZERO);
                let stored = Stored { last_tid, last_oid, imported };
                destination.begin(CommitLevel::Durable)?;
                destination.set_setting(KEY, &stored.to_string())?;
                destination.commit()?;
                (Some(Arc::new(source)), stored)
            }
        };
        let shared = Arc::new(Shared::new(&stored));
        let pace = Pace::new(source.as_ref().map_or(0, |source| source.size()));
        let merged = Merged::new(Writer(destination), source.clone(), shared.clone());
        let mut importer =
            Self { feed: None, merged, source, shared, stored, assigned: None, next: None, pace };
        importer.look_up_partitions()?;
        Ok(importer)
    }

    /// Whether everything is imported and committed.
    pub fn is_finished(&self) -> bool {
        self.shared.imported() >= self.shared.last_tid()
    }

    fn db(&mut self) -> &mut dyn Destination {
        self.merged.inner.0.as_mut()
    }

    /// Partitions that this node has.
    fn look_up_partitions(&mut self) -> Result<(), Error> {
        let reader = self.db().latest();
        let (nid, cells) = (reader.config()?.nid, reader.partition_table()?);
        let partitions = cells.iter().map(|cell| cell.partition + 1).max().unwrap_or(0);
        let own = cells.iter().filter(|cell| Some(cell.nid) == nid);
        let assigned = own.map(|cell| cell.partition).collect();
        self.shared.set_partitions(partitions);
        self.assigned = Some(assigned);
        Ok(())
    }

    /// The next batch becomes `self.next`, if it is ready.
    fn look_for_batch(&mut self) -> Result<Work, Error> {
        let Some(source) = &self.source else { return Ok(Work::None) };
        if self.next.is_some() {
            return Ok(Work::Now);
        }
        if self.stored.is_finished() {
            return Ok(Work::None);
        }
        if self.shared.partitions() == 0 {
            return Ok(Work::None);
        }
        let feed = match &self.feed {
            Some(feed) => feed,
            None => self.feed.insert(Feed::start(source.clone(), self.stored.imported)?),
        };
        self.next = feed.next();
        Ok(if self.next.is_some() { Work::Now } else { Work::Later })
    }

    fn store(&mut self, batch: Batch) -> Result<(), Error> {
        let partitions = self.shared.partitions();
        if self.assigned.is_none() {
            self.look_up_partitions()?;
        }
        let assigned = self.assigned.as_ref().expect("looked up");
        let Batch { mut objects, mut transactions, complete, read_bytes, is_last } = batch;
        if assigned.len() != partitions as usize {
            // The others belong to other nodes, which replicated them.
            objects.retain(|object| assigned.contains(&object.object.oid.partition(partitions)));
            transactions.retain(|transaction| {
                assigned.contains(&transaction.info.tid.partition(partitions))
            });
        }
        if is_last {
            self.db().begin(CommitLevel::Durable)?;
        }
        let (objects_len, transactions_len) = (objects.len(), transactions.len());
        let added = self.db().add_objects(partitions, &objects)?;
        added.map_err(conflict)?;
        let added = self.db().add_transactions(partitions, &transactions)?;
        added.map_err(conflict)?;
        if let Some(tid) = complete {
            self.stored.imported = tid;
            let text = self.stored.to_string();
            self.db().set_setting(KEY, &text)?;
        }
        self.pace.advance(read_bytes, objects_len, transactions_len, self.stored.imported);
        Ok(())
    }

    /// Revisions of the source that are about to be referred to, because of an undo, are imported
    /// before the others.
    fn import_referred(&mut self, partitions: u32, objects: &[ObjectRecord]) -> Result<(), Error> {
        let Some(source) = self.source.clone() else { return Ok(()) };
        let mut referred = Vec::new();
        for object in objects {
            let Some(tid) = object.data_tid else { continue };
            if tid <= self.stored.imported || tid > self.stored.last_tid {
                continue;
            }
            if let Some(place) = source.revision_at(object.oid, tid)? {
                let Revision { value, data_tid, .. } = source.revision(&place)?;
                let content = value.map_or(Content::Deleted, Content::Value);
                let object = ObjectRecord { oid: object.oid, data_tid, content };
                referred.push(ReplicatedObject { tid, object });
            }
        }
        if !referred.is_empty() {
            self.db().add_objects(partitions, &referred)?.map_err(conflict)?;
        }
        Ok(())
    }

    /// All that was written is committed: readers may rely on it.
    fn committed(&mut self) {
        if self.shared.imported() == self.stored.imported {
            return;
        }
        self.shared.set_imported(self.stored.imported);
        if self.stored.is_finished() {
            self.feed = None;
            log::warn!("{}", finished_message());
            log::info!("imported {}", self.pace.summary());
        }
    }

    /// Why something can not be done as long as not everything is imported.
    fn not_during_import(&self, what: &str) -> Result<(), Error> {
        if self.is_finished() {
            return Ok(());
        }
        Err(Error::Import(format!("{what} is not possible before everything is imported")))
    }
}

/// Upstream's message begins with these words, that people look for.
fn finished_message() -> &'static str {
    "All data are imported. Start this node with the adapter and the database of the destination \
     when it suits: the source is not needed any more."
}

fn conflict(conflict: ReplicationConflict) -> Error {
    Error::Import(format!(
        "the database has something else than the source: {conflict:?}. It was not filled from this \
         file"
    ))
}

fn check_same(source: &Source, stored: &Stored) -> Result<(), Error> {
    let summary = source.summary();
    if summary.last_tid == stored.last_tid
        && summary.last_oid.unwrap_or(Oid::ZERO) == stored.last_oid
    {
        return Ok(());
    }
    Err(Error::Import(format!(
        "{} is not the file that was imported so far: its last transaction is {} instead of {}. If \
         it was written to since, these transactions can not be imported",
        source.path().display(),
        summary.last_tid,
        stored.last_tid
    )))
}

fn check_empty(destination: &mut dyn Destination) -> Result<(), Error> {
    if destination.setting(UPSTREAM_KEY)?.is_some() {
        return Err(Error::Import(
            "an import was begun by the storage node in Python: it has to be finished with it, or \
             the database to be erased (--reset)"
                .into(),
        ));
    }
    let reader = destination.latest();
    let cells = reader.partition_table()?;
    let mut partitions: Vec<Partition> = cells.iter().map(|cell| cell.partition).collect();
    partitions.dedup();
    let ids = reader.last_ids(&partitions)?;
    if ids.last_tid.is_some() || ids.last_oid.is_some() {
        return Err(Error::Import(
            "the destination is not empty, and no import was begun in it: erase it (--reset) or use \
             another one"
                .into(),
        ));
    }
    Ok(())
}

impl Database for Importer {
    fn latest(&mut self) -> &mut dyn Reader {
        &mut self.merged
    }

    fn begin(&mut self, sync: CommitLevel) -> Result<(), Error> {
        self.db().begin(sync)
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.db().commit()?;
        self.committed();
        Ok(())
    }

    fn visible_delay(&self) -> Duration {
        self.merged.inner.0.visible_delay()
    }

    fn reader(&self) -> Result<Box<dyn Reader>, Error> {
        let reader = self.merged.inner.0.reader()?;
        Ok(Box::new(Merged::new(reader, self.source.clone(), self.shared.clone())))
    }

    fn maintenance(&self) -> Result<Option<Box<dyn Maintenance>>, Error> {
        self.merged.inner.0.maintenance()
    }

    fn work(&mut self) -> Result<Work, Error> {
        self.look_for_batch()
    }

    fn do_work(&mut self) -> Result<(), Error> {
        match self.next.take() {
            Some(batch) => self.store(batch?),
            None => Ok(()),
        }
    }

    fn set_nid(&mut self, nid: NodeId) -> Result<(), Error> {
        self.db().set_nid(nid)?;
        self.look_up_partitions()
    }

    fn change_partition_table(
        &mut self,
        change: &PartitionTableChange,
    ) -> Result<Vec<Partition>, Error> {
        let to_drop = self.db().change_partition_table(change)?;
        self.look_up_partitions()?;
        Ok(to_drop)
    }

    fn set_backup_tid(&mut self, tid: Option<Tid>) -> Result<(), Error> {
        if tid.is_some() {
            self.not_during_import("backup mode")?;
        }
        self.db().set_backup_tid(tid)
    }

    fn set_truncate_tid(&mut self, tid: Tid) -> Result<(), Error> {
        if tid < self.shared.last_tid() {
            self.not_during_import("a truncation at a transaction of the source")?;
        }
        self.db().set_truncate_tid(tid)
    }

    fn truncate(&mut self, rows_max: u32) -> Result<Progress, Error> {
        self.db().truncate(rows_max)
    }

    fn drop_unfinished(&mut self) -> Result<(), Error> {
        self.db().drop_unfinished()
    }

    fn spill(
        &mut self,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Result<Vec<Content>, Refused>, Error> {
        self.import_referred(partitions, objects)?;
        self.db().spill(partitions, objects)
    }

    fn release(&mut self, data_ids: &[DataId]) -> Result<(), Error> {
        self.db().release(data_ids)
    }

    fn vote(&mut self, vote: &Vote) -> Result<Result<(), Refused>, Error> {
        self.import_referred(vote.partitions, &vote.objects)?;
        self.db().vote(vote)
    }

    fn lock(&mut self, ttid: Ttid, tid: Tid, approve_pack: bool) -> Result<(), Error> {
        self.db().lock(ttid, tid, approve_pack)
    }

    fn unlock(&mut self, ttid: Ttid, tid: Tid, metadata: bool) -> Result<(), Error> {
        self.db().unlock(ttid, tid, metadata)
    }

    fn abort(&mut self, ttid: Ttid, spilled: &[DataId]) -> Result<(), Error> {
        self.db().abort(ttid, spilled)
    }

    fn sign_packs(&mut self, approved: &[Tid], rejected: &[Tid]) -> Result<Vec<Tid>, Error> {
        self.db().sign_packs(approved, rejected)
    }

    fn pack(
        &mut self,
        partition: Partition,
        pack_tid: Tid,
        scope: &PackScope,
    ) -> Result<PackProgress, Error> {
        self.not_during_import("a pack")?;
        self.db().pack(partition, pack_tid, scope)
    }

    fn mark_packed(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        pack_tid: Tid,
        tids_max: u32,
    ) -> Result<Option<Tid>, Error> {
        self.not_during_import("a pack")?;
        self.db().mark_packed(partition, min_tid, pack_tid, tids_max)
    }

    fn set_packed(&mut self, partition: Partition, pack_id: Tid) -> Result<(), Error> {
        self.not_during_import("a pack")?;
        self.db().set_packed(partition, pack_id)
    }

    fn drop_partition(&mut self, partition: Partition, rows_max: u32) -> Result<Progress, Error> {
        self.db().drop_partition(partition, rows_max)
    }

    fn prune_orphans(
        &mut self,
        after: Option<DataId>,
        rows_max: u32,
        dry_run: bool,
    ) -> Result<OrphanProgress, Error> {
        self.db().prune_orphans(after, rows_max, dry_run)
    }

    fn add_transactions(
        &mut self,
        partitions: u32,
        transactions: &[ReplicatedTransaction],
    ) -> Result<Result<(), ReplicationConflict>, Error> {
        self.db().add_transactions(partitions, transactions)
    }

    fn add_objects(
        &mut self,
        partitions: u32,
        objects: &[ReplicatedObject],
    ) -> Result<Result<(), ReplicationConflict>, Error> {
        self.db().add_objects(partitions, objects)
    }

    fn end_chunk(&mut self, partitions: u32, end: &ChunkEnd) -> Result<Vec<Tid>, Error> {
        self.db().end_chunk(partitions, end)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.db().flush()
    }

    fn erase(&mut self) -> Result<(), Error> {
        self.feed = None;
        self.next = None;
        self.source = None;
        self.db().erase()
    }
}
