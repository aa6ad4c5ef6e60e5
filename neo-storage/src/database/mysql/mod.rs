// SPDX-License-Identifier: GPL-2.0-or-later
//! MySQL and MariaDB backend.
//!
//! - [`url`]: grammar of `--database`; [`server`]: connecting, settings, the lock of a database;
//!   [`session`]: a connection with its transaction, and what to do when it fails; [`schema`]: tables
//!   and upgrades.
//! - `sql`, `row`, `error`, `bigdata`: text of statements, columns of rows, codes of the server, values
//!   above 16 MiB.
//! - `read`: queries; `references`: rows of object data and who refers to them; `transactions`: vote,
//!   lock, unlock, abort; `cells`: partition table and truncation; `replication`: rows from other
//!   nodes; `background`: pack, drop, orphans.
//!
//! # Connections
//!
//! One writes, the others read, all in `REPEATABLE READ`: readers see what is committed and wait for
//! nobody. Upstream has a second connection that writes, for its background tasks, and then an unlock
//! may wait for rows that a pack has locked. Here everything that writes is in one order, on one
//! connection, so there is nobody to wait for. Whether a commit is on disk is a setting of the server
//! (`innodb_flush_log_at_trx_commit`), so that each commit costs the same; a warning tells if the
//! server is not durable.
//!
//! A connection that holds a lock of the name `<database>.neostorage` owns the database: a second
//! node, of ours or of upstream, is refused.

pub mod server;
pub mod session;
pub mod url;

mod background;
mod bigdata;
mod cells;
mod error;
mod read;
mod references;
mod replication;
mod row;
pub mod schema;
mod sql;
mod transactions;

use std::path::{Path, PathBuf};
use std::time::Duration;

use neo_common::types::{NodeId, Partition, Tid, Ttid};

use super::records::*;
use super::{CommitLevel, Database, Error, Reader};
use read::MySqlReader;
use references::References;
use server::{Role, Server};
use session::Session;
use url::Url;

pub use neo_common::config::storage::Wait;

/// Values of a prepared statement.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        mysql::Params::Positional(vec![$(mysql::Value::from($value)),*])
    };
}
use params;

/// How long a commit that needs not be durable waits for another one to go with: about the time of
/// a commit. Nobody but those who use the same objects wait for it.
const VISIBLE_DELAY: Duration = Duration::from_millis(1);

/// Engine of new tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The one that every server has.
    #[default]
    InnoDb,
    /// A log-structured tree, for servers that have it.
    RocksDb,
}

impl Engine {
    /// From `--engine`.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name.to_ascii_lowercase().as_str() {
            "innodb" => Ok(Self::InnoDb),
            "rocksdb" => Ok(Self::RocksDb),
            _ => Err(Error::Url(format!("engine {name:?} is neither InnoDB nor RocksDB"))),
        }
    }

    /// As in the definition of a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InnoDb => "InnoDB",
            Self::RocksDb => "RocksDB",
        }
    }
}

/// How to open a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `--database`.
    pub database: String,
    /// `--cluster`: recorded in a new database, compared with an existing one.
    pub cluster: String,
    /// `--dedup`, for a new database.
    pub dedup: bool,
    /// `--engine`, for new tables.
    pub engine: Engine,
    /// `--wait`.
    pub wait: Wait,
    /// What `~` stands for in `database`.
    pub home: Option<String>,
    /// `MYSQL_UNIX_PORT`.
    pub default_socket: Option<String>,
}

/// The connection that writes, with the lock on the database.
pub struct MySql {
    reader: MySqlReader,
    references: References,
}

impl MySql {
    /// Opens a database; creates its tables if there are none, upgrades them if they are old.
    ///
    /// # Errors
    ///
    /// If it can not be opened, nothing was changed, except by an upgrade that was interrupted: it
    /// goes on the next time.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let mut session = Self::connect(options)?;
        let found = schema::look(&mut session)?;
        if let schema::Found::Version(_, Some(name)) = &found
            && *name != options.cluster
        {
            let (wanted, found) = (options.cluster.clone(), name.clone());
            return Err(Error::ForeignCluster { wanted, found });
        }
        schema::set_up(&mut session, &found, options.engine, options.dedup, &options.cluster)?;
        if !session.server().facts().is_durable {
            log::warn!(
                "the database server does not write each commit to disk: the last ones may be lost if \
                 it is killed. Set innodb_flush_log_at_trx_commit (or rocksdb_...) to 1, and sync_binlog if \
                 it has a binary log"
            );
        }
        let references = References::load(&mut session)?;
        background::process_todel(&mut session, &references)?;
        Ok(Self { reader: MySqlReader::new(session), references })
    }

    /// `--reset`: replaces a database, of whatever cluster and version, by an empty one.
    pub fn reset(options: &Options) -> Result<(), Error> {
        let mut session = Self::connect(options)?;
        schema::erase(&mut session)?;
        drop(session);
        Ok(())
    }

    /// Folder of the data of the server, if it is one of this machine.
    pub fn path(&self) -> PathBuf {
        let path: &Path = &self.reader.server().facts().data_folder;
        path.to_owned()
    }

    fn connect(options: &Options) -> Result<Session, Error> {
        let url = Url::parse(&options.database, options.home.as_deref())?;
        let Options { engine, wait, ref default_socket, .. } = *options;
        Session::open(Server::new(url, engine, wait, default_socket.clone()), Role::Writer)
    }

    fn session(&mut self) -> &mut Session {
        self.reader.session()
    }
}

impl MySql {
    /// A value of table `config`.
    pub(super) fn config_value(&mut self, name: &str) -> Result<Option<String>, Error> {
        schema::config(self.session(), name)
    }

    /// Sets it.
    pub(super) fn set_config_value(&mut self, name: &str, value: &str) -> Result<(), Error> {
        schema::set_config(self.session(), name, Some(value))
    }
}

impl Database for MySql {
    fn latest(&mut self) -> &mut dyn Reader {
        &mut self.reader
    }

    fn begin(&mut self, _: CommitLevel) -> Result<(), Error> {
        self.session().begin();
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.session().commit()
    }

    fn visible_delay(&self) -> Duration {
        VISIBLE_DELAY
    }

    fn reader(&self) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(self.reader.reader()?))
    }

    fn set_nid(&mut self, nid: NodeId) -> Result<(), Error> {
        cells::set_nid(self.session(), nid)
    }

    fn change_partition_table(
        &mut self,
        change: &PartitionTableChange,
    ) -> Result<Vec<Partition>, Error> {
        cells::change(self.reader.session(), &mut self.references, change)
    }

    fn set_backup_tid(&mut self, tid: Option<Tid>) -> Result<(), Error> {
        cells::set_backup_tid(self.session(), tid)
    }

    fn set_truncate_tid(&mut self, tid: Tid) -> Result<(), Error> {
        cells::set_truncate_tid(self.session(), tid)
    }

    fn truncate(&mut self, rows_max: u32) -> Result<Progress, Error> {
        cells::truncate(self.reader.session(), &self.references, rows_max)
    }

    fn drop_unfinished(&mut self) -> Result<(), Error> {
        transactions::drop_unfinished(self.reader.session(), &mut self.references)
    }

    fn spill(
        &mut self,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Result<Vec<Content>, Refused>, Error> {
        transactions::spill(self.reader.session(), &mut self.references, partitions, objects)
    }

    fn release(&mut self, data_ids: &[DataId]) -> Result<(), Error> {
        self.references.release_and_prune(self.reader.session(), data_ids)
    }

    fn vote(&mut self, vote: &Vote) -> Result<Result<(), Refused>, Error> {
        transactions::vote(self.reader.session(), &mut self.references, vote)
    }

    fn lock(&mut self, ttid: Ttid, tid: Tid, approve_pack: bool) -> Result<(), Error> {
        transactions::lock(self.session(), ttid, tid, approve_pack)
    }

    fn unlock(&mut self, ttid: Ttid, tid: Tid, metadata: bool) -> Result<(), Error> {
        transactions::unlock(self.reader.session(), &mut self.references, ttid, tid, metadata)
    }

    fn abort(&mut self, ttid: Ttid, spilled: &[DataId]) -> Result<(), Error> {
        transactions::abort(self.reader.session(), &mut self.references, ttid, spilled)
    }

    fn sign_packs(&mut self, approved: &[Tid], rejected: &[Tid]) -> Result<Vec<Tid>, Error> {
        replication::sign_packs(self.session(), approved, rejected)
    }

    fn pack(
        &mut self,
        partition: Partition,
        pack_tid: Tid,
        scope: &PackScope,
    ) -> Result<PackProgress, Error> {
        background::pack(self.reader.session(), &self.references, partition, pack_tid, scope)
    }

    fn mark_packed(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        pack_tid: Tid,
        tids_max: u32,
    ) -> Result<Option<Tid>, Error> {
        background::mark_packed(self.session(), partition, min_tid, pack_tid, tids_max)
    }

    fn set_packed(&mut self, partition: Partition, pack_id: Tid) -> Result<(), Error> {
        cells::set_packed(self.session(), partition, pack_id)
    }

    fn drop_partition(&mut self, partition: Partition, rows_max: u32) -> Result<Progress, Error> {
        background::drop_partition(self.reader.session(), &self.references, partition, rows_max)
    }

    fn prune_orphans(
        &mut self,
        after: Option<DataId>,
        rows_max: u32,
        dry_run: bool,
    ) -> Result<OrphanProgress, Error> {
        let session = self.reader.session();
        background::prune_orphans(session, &self.references, after, rows_max, dry_run)
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
        let session = self.reader.session();
        replication::add_objects(session, &mut self.references, partitions, objects)
    }

    fn end_chunk(&mut self, partitions: u32, end: &ChunkEnd) -> Result<Vec<Tid>, Error> {
        replication::end_chunk(self.reader.session(), &self.references, partitions, end)
    }

    fn flush(&mut self) -> Result<(), Error> {
        // Each commit is as durable as the server makes it.
        Ok(())
    }

    fn erase(&mut self) -> Result<(), Error> {
        schema::erase(self.reader.session())?;
        self.references.clear();
        // What follows in the same batch is about an empty database.
        self.session().begin();
        Ok(())
    }
}

/// An identifier as a signed integer, for all backends alike. [`execute`](fn@super::execute) checked that it
/// fits.
fn int(id: u64) -> i64 {
    debug_assert!(id <= i64::MAX as u64, "{id:#x} does not fit");
    id as i64
}
