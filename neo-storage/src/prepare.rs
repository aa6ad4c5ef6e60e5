// SPDX-License-Identifier: GPL-2.0-or-later
//! From the command line of `neostorage` to the [`Config`] of its core and an open database.

use std::fmt::Display;
use std::net::SocketAddr;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use neo_common::config::environment::expand_user;
use neo_common::config::storage::{Adapter, Wait};
use neo_common::config::{Address, Exit, Secret, StorageOptions, System};
use neo_common::master_list;
use neo_common::net::Listener;

use crate::app::{Config, Stored};
use crate::database::importer::config::Config as ImporterConfig;
use crate::database::importer::{self, Destination, Importer};
use crate::database::mysql::{self, Engine, MySql};
use crate::database::sqlite::{self, Sqlite};
use crate::database::{Database, Error};

/// Name of the program, for messages.
pub const PROGRAM: &str = "neostorage";

/// What is needed to run.
pub struct Prepared {
    /// For the core.
    pub config: Config,
    /// What the database says.
    pub stored: Stored,
    /// Opened, and locked against other processes.
    pub database: Box<dyn Database>,
    /// Bound already.
    pub listener: Listener,
    /// The dynamic master list.
    pub master_list: Option<PathBuf>,
}

fn failure(error: impl Display) -> Exit {
    Exit::failure(PROGRAM, error)
}

fn database_failure(error: &Error) -> Exit {
    match error {
        // Exactly upstream's message, without the name of the program.
        Error::Locked => Exit { status: 1, stdout: String::new(), stderr: format!("{error}\n") },
        error => failure(error),
    }
}

/// Opens the database, looks up names, reads the dynamic master list and binds the listening socket.
/// With `--reset`, the database is erased and there is nothing to run.
///
/// # Errors
/// [`Exit`] with what is wrong, or with success after `--reset`.
pub fn prepare(options: StorageOptions) -> Result<Prepared, Exit> {
    let StorageOptions { daemon, .. } = &options;
    if daemon.cluster.is_empty() {
        return Err(failure("cluster name must be non-empty"));
    }
    if daemon.tls.is_some() {
        return Err(failure("encryption (--ca, --cert, --key) is not available yet"));
    }
    let source = Source::new(&options)?;
    if options.reset {
        source.reset().map_err(|error| database_failure(&error))?;
        return Err(Exit::success(""));
    }
    let resolve = |address: &Address| {
        address.resolve().map_err(|error| failure(format_args!("{address}: {error}")))
    };
    let mut masters = daemon.masters.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = &daemon.dynamic_master_list {
        let list = master_list::load(path);
        masters.extend(list.map_err(|error| failure(format_args!("{}: {error}", path.display())))?);
    }
    masters.sort_unstable();
    masters.dedup();
    let (mut database, path) = source.open().map_err(|error| database_failure(&error))?;
    let stored = stored(database.as_mut()).map_err(|error| database_failure(&error))?;
    let devpath = topology_path(&path).map_err(failure)?;
    let bind = resolve(&daemon.bind)?;
    let listener = Listener::bind(bind)
        .map_err(|error| failure(format_args!("can not listen on {bind}: {error}")))?;
    let mut config = config(&options, masters, listener.address(), devpath);
    if source.is_importer() && !config.disable_pack {
        // Upstream never processes orders with this adapter. They wait for the next start without it.
        log::info!("packs are disabled as long as the adapter is Importer");
        config.disable_pack = true;
    }
    let master_list = options.daemon.dynamic_master_list;
    Ok(Prepared { config, stored, database, listener, master_list })
}

/// A database that is not open yet.
enum Source {
    Sqlite(sqlite::Options),
    MySql(mysql::Options),
    /// One of the above, with what is imported into it.
    Importer(Box<Source>, ImporterConfig),
}

impl Source {
    fn new(options: &StorageOptions) -> Result<Self, Exit> {
        if options.adapter != Adapter::Importer {
            let (engine, wait) = (options.engine.as_deref(), options.wait);
            return Self::native(options, options.adapter, &options.database, engine, wait);
        }
        let path = expand_user(&System, options.database.reveal());
        let (config, warnings) = ImporterConfig::load(&path).map_err(failure)?;
        for warning in warnings {
            log::warn!("{}: {warning}", path.display());
        }
        let engine = config.engine.as_deref();
        let destination =
            Self::native(options, config.adapter, &config.database, engine, config.wait)?;
        Ok(Self::Importer(Box::new(destination), config))
    }

    fn native(
        options: &StorageOptions,
        adapter: Adapter,
        database: &Secret,
        engine: Option<&str>,
        wait: Wait,
    ) -> Result<Self, Exit> {
        let database = database.reveal().to_owned();
        let cluster = options.daemon.cluster.clone();
        let (dedup, home) = (options.dedup, std::env::var("HOME").ok());
        match adapter {
            Adapter::Sqlite => Ok(Self::Sqlite(sqlite::Options { database, cluster, dedup, home })),
            Adapter::MySql => {
                let engine = engine.map(Engine::parse).transpose();
                let engine = engine.map_err(failure)?.unwrap_or_default();
                let default_socket = std::env::var("MYSQL_UNIX_PORT").ok();
                Ok(Self::MySql(mysql::Options {
                    database,
                    cluster,
                    dedup,
                    engine,
                    wait,
                    home,
                    default_socket,
                }))
            }
            Adapter::Importer => Err(failure("an importer can not import into another one")),
        }
    }

    fn is_importer(&self) -> bool {
        matches!(self, Self::Importer(..))
    }

    fn reset(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(options) => Sqlite::reset(options),
            Self::MySql(options) => MySql::reset(options),
            Self::Importer(destination, _) => destination.reset(),
        }
    }

    /// Opens it. The path tells on which device it is.
    fn open(&self) -> Result<(Box<dyn Database>, PathBuf), Error> {
        if let Self::Importer(destination, config) = self {
            let (destination, path) = destination.open_native()?;
            let source = || importer::source::Source::open(&config.source, config.compression);
            let importer = Importer::open(destination, source)?;
            return Ok((Box::new(importer), path));
        }
        let (mut database, path) = self.open_native()?;
        importer::check_complete(database.as_mut())?;
        Ok((database, path))
    }

    fn open_native(&self) -> Result<(Box<dyn Destination>, PathBuf), Error> {
        Ok(match self {
            Self::Sqlite(options) => {
                let database = Sqlite::open(options)?;
                let path = database.path().to_owned();
                (Box::new(database), path)
            }
            Self::MySql(options) => {
                let database = MySql::open(options)?;
                let path = database.path();
                (Box::new(database), path)
            }
            Self::Importer(destination, _) => destination.open_native()?,
        })
    }
}

fn config(
    options: &StorageOptions,
    masters: Vec<SocketAddr>,
    address: SocketAddr,
    devpath: Vec<String>,
) -> Config {
    Config {
        cluster: options.daemon.cluster.clone(),
        masters,
        address,
        nid: options.daemon.nid,
        devpath,
        new_nid: options.new_nid,
        disable_pack: options.disable_pack,
        disable_drop_partitions: options.disable_drop_partitions,
        save_masters: options.daemon.dynamic_master_list.is_some(),
    }
}

/// What a database says when it is opened.
///
/// # Errors
/// Those of the database.
pub fn stored(database: &mut dyn Database) -> Result<Stored, Error> {
    let reader = database.latest();
    Ok(Stored { config: reader.config()?, cells: reader.partition_table()? })
}

/// Host and device, so that replicas are placed on different ones. Upstream: `getTopologyPath`.
///
/// The folder of a database server may be out of reach, or on another machine: then it stands for
/// the device.
///
/// # Errors
/// If the file of the database can not be looked at.
pub fn topology_path(database: &Path) -> std::io::Result<Vec<String>> {
    let device = match std::fs::metadata(database) {
        Ok(metadata) => metadata.st_dev().to_string(),
        Err(_) if database.to_str().is_some_and(|path| path.ends_with('/')) => {
            database.display().to_string()
        }
        Err(error) => return Err(error),
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(vec![host.to_owned(), device])
}
