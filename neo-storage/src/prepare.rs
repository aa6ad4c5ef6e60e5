// SPDX-License-Identifier: GPL-2.0-or-later
//! From the command line of `neostorage` to the [`Config`] of its core and an open database.

use std::fmt::Display;
use std::net::SocketAddr;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use neo_common::config::storage::Adapter;
use neo_common::config::{Address, Exit, StorageOptions};
use neo_common::master_list;
use neo_common::net::Listener;

use crate::app::{Config, Stored};
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
    match options.adapter {
        Adapter::Sqlite => {}
        Adapter::MySql => return Err(failure("adapter MySQL is not available yet")),
        Adapter::Importer => return Err(failure("adapter Importer is not available yet")),
    }
    let sqlite = sqlite::Options {
        database: options.database.reveal().to_owned(),
        cluster: daemon.cluster.clone(),
        dedup: options.dedup,
        home: std::env::var("HOME").ok(),
    };
    if options.reset {
        Sqlite::reset(&sqlite).map_err(|error| database_failure(&error))?;
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
    let mut database = Sqlite::open(&sqlite).map_err(|error| database_failure(&error))?;
    let stored = stored(&mut database).map_err(|error| database_failure(&error))?;
    let devpath = topology_path(database.path()).map_err(failure)?;
    let bind = resolve(&daemon.bind)?;
    let listener = Listener::bind(bind)
        .map_err(|error| failure(format_args!("can not listen on {bind}: {error}")))?;
    let config = config(&options, masters, listener.address(), devpath);
    let master_list = options.daemon.dynamic_master_list;
    Ok(Prepared { config, stored, database: Box::new(database), listener, master_list })
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
/// # Errors
/// If the file of the database can not be looked at.
pub fn topology_path(database: &Path) -> std::io::Result<Vec<String>> {
    let device = std::fs::metadata(database)?.st_dev();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(vec![host.to_owned(), device.to_string()])
}
