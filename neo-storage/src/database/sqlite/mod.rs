// SPDX-License-Identifier: GPL-2.0-or-later
//! SQLite backend.
//!
//! - [`url`]: grammar of `--database`; [`lock`]: one process per file; [`schema`]: tables and
//!   upgrades; [`connection`]: opening and tuning.
//! - `read`: queries; `references`: rows of object data and who refers to them; `transactions`:
//!   vote, lock, unlock, abort; `cells`: partition table and truncation; `replication`: rows from
//!   other nodes; `background`: pack, drop, orphans.
//!
//! # Journal
//!
//! A write-ahead log is used unless the database string asks for something else: readers and the
//! writer do not wait for each other, another process may read the file at any time, a durable
//! commit is one `fdatasync`, and a commit that needs not be durable is none
//! (`synchronous=NORMAL`, which only syncs the log before its content goes to the database file).
//! Upstream opens such a file like any other. The writer checkpoints rarely: a thread with its own
//! connection does it without blocking anyone, see `Checkpointer`.
//!
//! With a rollback journal, a commit waits for readers, and each one is durable.

pub mod connection;
pub mod lock;
pub mod schema;
pub mod url;

mod background;
mod cells;
mod read;
mod references;
mod replication;
mod transactions;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use neo_common::types::{NodeId, Partition, Tid, Ttid};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::records::*;
use super::{CommitLevel, Database, Error, Maintenance, Reader};
use connection::Role;
use lock::FileLock;
use read::SqliteReader;
use references::References;
use url::Url;

/// Pages in the log above which the writer itself checkpoints, after a commit. The background
/// checkpoints keep what remains to be done then short; it is what lets the log start again from
/// its beginning under a load that never stops.
const WRITER_CHECKPOINT_PAGES: u32 = 16 << 10;

/// Bytes that the log keeps on disk when it starts again from its beginning.
const LOG_BYTES_MAX: u64 = WRITER_CHECKPOINT_PAGES as u64 * 4096;

/// Bytes of the log above which it is worth a checkpoint in background.
const BACKGROUND_CHECKPOINT_BYTES: u64 = 4 << 20;

/// How long a commit waits for another one with a rollback journal, where it is expensive.
const ROLLBACK_VISIBLE_DELAY: Duration = Duration::from_millis(20);

/// How long other processes are waited for in order to change the journal mode.
const JOURNAL_MODE_DELAY: Duration = Duration::from_secs(2);

/// How to open a database.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// `--database`.
    pub database: String,
    /// `--cluster`: recorded in a new database, compared with an existing one.
    pub cluster: String,
    /// `--dedup`.
    pub dedup: bool,
    /// What `~` stands for in `database`.
    pub home: Option<String>,
}

/// The connection that writes, with the lock on the file.
pub struct Sqlite {
    // Dropped before the lock.
    reader: SqliteReader,
    references: References,
    url: Url,
    journal: Journal,
    /// Guarantee of the transaction that is open.
    transaction: Option<CommitLevel>,
    /// What `PRAGMA synchronous` is set for.
    synchronous: CommitLevel,
    _lock: FileLock,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Journal {
    WriteAheadLog,
    Rollback,
}

impl Sqlite {
    /// Opens a database; creates it if it does not exist, upgrades it if it is old.
    ///
    /// # Errors
    ///
    /// If it can not be opened, nothing was changed.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let (url, lock, mut connection) = Self::connect(options)?;
        let found = schema::look(&connection)?;
        if let schema::Found::Version(_, Some(name)) = &found
            && *name != options.cluster
        {
            let (wanted, found) = (options.cluster.clone(), name.clone());
            return Err(Error::ForeignCluster { wanted, found });
        }
        // From here on, it is ours: the last connection may merge the log.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        let journal = set_journal(&mut connection, &url)?;
        schema::set_up(&connection, &found, options.dedup)?;
        if schema::config(&connection, super::manager::key::NAME)?.is_none() {
            let name = Some(options.cluster.as_str());
            schema::set_config(&connection, super::manager::key::NAME, name)?;
        }
        let references = References::load(&connection)?;
        Ok(Self {
            reader: SqliteReader::new(connection),
            references,
            url,
            journal,
            transaction: None,
            synchronous: CommitLevel::Durable,
            _lock: lock,
        })
    }

    /// `--reset`: replaces a database, of whatever cluster and version, by an empty one.
    pub fn reset(options: &Options) -> Result<(), Error> {
        let (_, lock, connection) = Self::connect(options)?;
        schema::transaction(&connection, || schema::erase(&connection))?;
        drop((connection, lock));
        Self::open(options).map(drop)
    }

    /// File of the database. Nothing else in this process may open it: closing it would drop the
    /// POSIX locks of SQLite.
    pub fn path(&self) -> &Path {
        &self.url.path
    }

    fn connect(options: &Options) -> Result<(Url, FileLock, Connection), Error> {
        let mut url = Url::parse(&options.database, options.home.as_deref())?;
        let backend = |cause: std::io::Error, path: &Path| {
            Error::Backend(path.display().to_string(), Box::new(cause))
        };
        match File::create_new(&url.path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(backend(cause, &url.path));
            }
            _ => {}
        }
        // So that all connections open the same file, whatever becomes of the current folder.
        url.path = fs::canonicalize(&url.path).map_err(|cause| backend(cause, &url.path))?;
        let metadata = fs::metadata(&url.path).map_err(|cause| backend(cause, &url.path))?;
        let lock = FileLock::acquire(&metadata)?;
        let reserved = connection::reserved_bytes(&url.path);
        if reserved.map_err(|cause| backend(cause, &url.path))? == Some(8) {
            // Pages that we would write had no valid checksum.
            return Err(Error::Url("the database was created with cksumvfs=1".into()));
        }
        let has_log = fs::metadata(log_path(&url.path)).is_ok_and(|metadata| metadata.len() != 0);
        let connection = connection::open(&url, Role::Writer)?;
        // A log that was left by a process that was killed stays as it is if we refuse the database.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
        Ok((url, lock, connection))
    }
}

/// File of the write-ahead log.
fn log_path(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Sets the journal mode: what was asked, else a write-ahead log if possible.
fn set_journal(connection: &mut Connection, url: &Url) -> Result<Journal, Error> {
    let wanted = url.journal_mode.as_deref().unwrap_or("wal");
    // Changing the mode needs the file for ourselves: do not wait forever for others to close it.
    connection.busy_timeout(JOURNAL_MODE_DELAY)?;
    let mode = match connection::pragma(connection, "journal_mode", wanted) {
        Ok(mode) => mode.unwrap_or_default(),
        Err(Error::Backend(_, cause)) if is_busy(cause.as_ref()) => {
            let sql = "PRAGMA journal_mode";
            connection.query_row(sql, [], |row| row.get(0))?
        }
        Err(error) => return Err(error),
    };
    connection::wait_if_busy(connection)?;
    if mode != wanted {
        log::warn!("journal mode is {mode:?}: it can not be changed to {wanted:?} now");
    }
    if mode != "wal" {
        return Ok(Journal::Rollback);
    }
    connection::pragma(connection, "wal_autocheckpoint", &WRITER_CHECKPOINT_PAGES.to_string())?;
    connection::pragma(connection, "journal_size_limit", &LOG_BYTES_MAX.to_string())?;
    Ok(Journal::WriteAheadLog)
}

fn is_busy(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    cause.downcast_ref::<rusqlite::Error>().is_some_and(|error| {
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        )
    })
}

impl Sqlite {
    fn connection(&self) -> &Connection {
        self.reader.connection()
    }

    /// A value of table `config`.
    pub(super) fn config_value(&mut self, name: &str) -> Result<Option<String>, Error> {
        schema::config(self.connection(), name)
    }

    /// Sets it.
    pub(super) fn set_config_value(&mut self, name: &str, value: &str) -> Result<(), Error> {
        schema::set_config(self.connection(), name, Some(value))
    }
}

impl Database for Sqlite {
    fn latest(&mut self) -> &mut dyn Reader {
        &mut self.reader
    }

    fn begin(&mut self, sync: CommitLevel) -> Result<(), Error> {
        match self.transaction {
            Some(current) if current >= sync => return Ok(()),
            Some(_) => self.commit()?,
            None => {}
        }
        let mut sync = sync;
        if self.journal == Journal::Rollback || self.url.synchronous.is_some() {
            sync = CommitLevel::Durable;
        } else if self.synchronous != sync {
            let level = if sync == CommitLevel::Durable { "full" } else { "normal" };
            connection::pragma(self.connection(), "synchronous", level)?;
            self.synchronous = sync;
        }
        self.connection().prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        self.transaction = Some(sync);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        if self.transaction.take().is_some() {
            self.connection().prepare_cached("COMMIT")?.execute([])?;
        }
        Ok(())
    }

    fn visible_delay(&self) -> Duration {
        match self.journal {
            Journal::WriteAheadLog => Duration::ZERO,
            Journal::Rollback => ROLLBACK_VISIBLE_DELAY,
        }
    }

    fn reader(&self) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(SqliteReader::new(connection::open(&self.url, Role::Reader)?)))
    }

    fn maintenance(&self) -> Result<Option<Box<dyn Maintenance>>, Error> {
        if self.journal == Journal::Rollback {
            return Ok(None);
        }
        let connection = connection::open(&self.url, Role::Maintenance)?;
        let log_path = log_path(&self.url.path);
        Ok(Some(Box::new(Checkpointer { connection, log_path })))
    }

    fn set_nid(&mut self, nid: NodeId) -> Result<(), Error> {
        cells::set_nid(self.connection(), nid)
    }

    fn change_partition_table(
        &mut self,
        change: &PartitionTableChange,
    ) -> Result<Vec<Partition>, Error> {
        cells::change(self.reader.connection(), &mut self.references, change)
    }

    fn set_backup_tid(&mut self, tid: Option<Tid>) -> Result<(), Error> {
        cells::set_backup_tid(self.connection(), tid)
    }

    fn set_truncate_tid(&mut self, tid: Tid) -> Result<(), Error> {
        cells::set_truncate_tid(self.connection(), tid)
    }

    fn truncate(&mut self, rows_max: u32) -> Result<Progress, Error> {
        cells::truncate(self.connection(), &self.references, rows_max)
    }

    fn drop_unfinished(&mut self) -> Result<(), Error> {
        transactions::drop_unfinished(self.reader.connection(), &mut self.references)
    }

    fn spill(
        &mut self,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Result<Vec<Content>, Refused>, Error> {
        let connection = self.reader.connection();
        transactions::spill(connection, &mut self.references, partitions, objects)
    }

    fn release(&mut self, data_ids: &[DataId]) -> Result<(), Error> {
        self.references.release_and_prune(self.reader.connection(), data_ids)
    }

    fn vote(&mut self, vote: &Vote) -> Result<Result<(), Refused>, Error> {
        transactions::vote(self.reader.connection(), &mut self.references, vote)
    }

    fn lock(&mut self, ttid: Ttid, tid: Tid, approve_pack: bool) -> Result<(), Error> {
        transactions::lock(self.connection(), ttid, tid, approve_pack)
    }

    fn unlock(&mut self, ttid: Ttid, tid: Tid, metadata: bool) -> Result<(), Error> {
        let connection = self.reader.connection();
        transactions::unlock(connection, &mut self.references, ttid, tid, metadata)
    }

    fn abort(&mut self, ttid: Ttid, spilled: &[DataId]) -> Result<(), Error> {
        transactions::abort(self.reader.connection(), &mut self.references, ttid, spilled)
    }

    fn sign_packs(&mut self, approved: &[Tid], rejected: &[Tid]) -> Result<Vec<Tid>, Error> {
        replication::sign_packs(self.connection(), approved, rejected)
    }

    fn pack(
        &mut self,
        partition: Partition,
        pack_tid: Tid,
        scope: &PackScope,
    ) -> Result<PackProgress, Error> {
        background::pack(self.connection(), &self.references, partition, pack_tid, scope)
    }

    fn mark_packed(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        pack_tid: Tid,
        tids_max: u32,
    ) -> Result<Option<Tid>, Error> {
        background::mark_packed(self.connection(), partition, min_tid, pack_tid, tids_max)
    }

    fn set_packed(&mut self, partition: Partition, pack_id: Tid) -> Result<(), Error> {
        cells::set_packed(self.connection(), partition, pack_id)
    }

    fn drop_partition(&mut self, partition: Partition, rows_max: u32) -> Result<Progress, Error> {
        background::drop_partition(self.connection(), &self.references, partition, rows_max)
    }

    fn prune_orphans(
        &mut self,
        after: Option<DataId>,
        rows_max: u32,
        dry_run: bool,
    ) -> Result<OrphanProgress, Error> {
        let connection = self.reader.connection();
        background::prune_orphans(connection, &self.references, after, rows_max, dry_run)
    }

    fn add_transactions(
        &mut self,
        partitions: u32,
        transactions: &[ReplicatedTransaction],
    ) -> Result<Result<(), ReplicationConflict>, Error> {
        replication::add_transactions(&mut self.reader, partitions, transactions)
    }

    fn add_objects(
        &mut self,
        partitions: u32,
        objects: &[ReplicatedObject],
    ) -> Result<Result<(), ReplicationConflict>, Error> {
        let connection = self.reader.connection();
        replication::add_objects(connection, &mut self.references, partitions, objects)
    }

    fn end_chunk(&mut self, partitions: u32, end: &ChunkEnd) -> Result<Vec<Tid>, Error> {
        replication::end_chunk(self.connection(), &self.references, partitions, end)
    }

    fn flush(&mut self) -> Result<(), Error> {
        // The log is only synced by a commit that writes a page, and a row that does not change is
        // not written.
        schema::set_config(self.connection(), "flush", Some(""))?;
        schema::set_config(self.connection(), "flush", None)
    }

    fn erase(&mut self) -> Result<(), Error> {
        schema::erase(self.connection())?;
        self.references.clear();
        Ok(())
    }
}

/// Moves the content of the write-ahead log to the database file, beside the lanes.
struct Checkpointer {
    connection: Connection,
    log_path: PathBuf,
}

impl Maintenance for Checkpointer {
    fn run(&mut self) -> Result<(), Error> {
        // The log does not shrink when it is recycled: its size only tells that it is worth asking.
        let size = fs::metadata(&self.log_path).map_or(0, |metadata| metadata.len());
        if size >= BACKGROUND_CHECKPOINT_BYTES {
            // Passive: it does as much as possible without waiting for anybody.
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(Box::new(error)),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupted(error.to_string())
            }
            _ => Self::Backend("SQLite".into(), Box::new(error)),
        }
    }
}

/// An identifier as SQLite holds it. [`execute`](fn@super::execute) checked that it fits.
fn int(id: u64) -> i64 {
    debug_assert!(id <= i64::MAX as u64, "{id:#x} does not fit");
    id as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Job, Write, execute};

    /// A full disk is told as such, to an operator who has to make room.
    #[test]
    fn no_space_left() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("db").to_str().unwrap().into();
        let options = Options { database, cluster: "c".into(), ..Options::default() };
        let mut db = Sqlite::open(&options).unwrap();
        connection::pragma(db.connection(), "max_page_count", "1").unwrap();
        db.begin(CommitLevel::Durable).unwrap();
        let content = Content::Value(Value {
            compression: 0,
            checksum: [1; 20],
            data: vec![0; 100_000].into(),
        });
        let objects = vec![ObjectRecord { oid: 1.into(), data_tid: None, content }];
        let error = execute(&mut db, Job::Write(Write::Spill { partitions: 1, objects }));
        let error = error.expect_err("there is no room");
        assert!(matches!(error, Error::Full(_)), "{error:?}");
        assert!(error.to_string().starts_with("no space left for the database"), "{error}");
    }
}
