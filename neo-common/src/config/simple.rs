// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neosimple, which runs a whole cluster in one process.
//!
//! Upstream's (scripts/simple.py) is a tool for tests: it always needs names of databases, and its
//! options are the arguments of a Python function. Those that make sense are accepted, with `_` or
//! `-` in their names; names of databases are optional and only their number matters when
//! `--storages` is not given.

use std::path::PathBuf;

use super::Exit;
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};
use super::storage::Adapter;
use crate::limits::PARTITIONS_MAX;

/// Options of neosimple.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimpleOptions {
    /// Name of the cluster.
    pub name: Option<String>,
    /// Directory of databases and logs.
    pub data_dir: Option<PathBuf>,
    /// Kind of database.
    pub adapter: Adapter,
    /// Names of databases, if given.
    pub databases: Vec<String>,
    /// Number of storages, at least 1.
    pub storages: u32,
    /// Number of masters, at least 1.
    pub masters: u32,
    /// Number of partitions of a new cluster, from 1 to [`PARTITIONS_MAX`].
    pub partitions: Option<u32>,
    /// Replicas of a new cluster.
    pub replicas: u32,
    /// IP address on which all nodes listen.
    pub bind_ip: Option<String>,
    /// Port of the first master; any free one if 0.
    pub master_port: Option<u16>,
    /// Port of the admin; any free one if 0.
    pub admin_port: Option<u16>,
    /// Erase existing databases at start.
    pub clear_databases: bool,
    /// Erase databases at the end.
    pub cleanup_on_delete: bool,
    /// A log file in the data directory.
    pub logger: bool,
    /// Seed of what is random (name, ports).
    pub seed: Option<String>,
}

/// Storages of a cluster in one process: enough to try things.
const NODES_MAX: u32 = 64;

/// What neosimple accepts.
pub fn table() -> Table {
    let options = vec![
        Opt::value(None, "data-dir", "DIR", "directory of the databases").ours(),
        Opt::value(None, "storages", "NUMBER", "number of storage nodes").ours(),
        Opt::value(None, "master-port", "PORT", "port of the first master node").ours(),
        Opt::value(None, "admin-port", "PORT", "port of the admin node").ours(),
        Opt::value(None, "adapter", "NAME", "kind of database: SQLite or MySQL").default("SQLite"),
        Opt::flag(None, "autostart", "start a new cluster at once (always done)"),
        Opt::value(None, "bind-ip", "IP", "IP address to listen on"),
        Opt::value(None, "address-type", "NUMBER", "2 for IPv4, 10 for IPv6"),
        Opt::flag(None, "cleanup-on-delete", "erase the databases at the end"),
        Opt::flag(None, "clear-databases", "erase existing databases at start"),
        Opt::flag(None, "logger", "also write to neosimple.log in the data directory"),
        Opt::value(None, "master-count", "NUMBER", "number of master nodes").default("1"),
        Opt::value(None, "name", "NAME", "name of the cluster"),
        Opt::value(None, "partitions", "NUMBER", "partitions of a new cluster"),
        Opt::value(None, "replicas", "NUMBER", "replicas of a new cluster").default("0"),
        Opt::value(None, "seed", "TEXT", "makes what is random reproducible"),
        Opt::value(None, "temp-dir", "DIR", "same as --data-dir"),
    ];
    Table {
        program: "neosimple",
        description: "Runs a NEO cluster in one process, to try things or for a small site.",
        options,
        positionals: "[DB ...]",
        takes_remainder: false,
    }
}

impl SimpleOptions {
    /// Understands the command line.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let settings = Settings::new(&table, args, env)?;
        let adapters = [("MySQL", Adapter::MySql), ("SQLite", Adapter::Sqlite)];
        let count = |long: &str, max: u32| match settings.integer(long)? {
            Some(count) if count < 1 || count > i64::from(max) => {
                let why = format!("must be from 1 to {max}");
                Err(settings.refuse_value(long, why))
            }
            count => Ok(count.map(|count| count as u32)),
        };
        let databases = settings.positionals().to_vec();
        if databases.len() > NODES_MAX as usize {
            return Err(settings.error(format!("at most {NODES_MAX} databases")));
        }
        let address_type = settings.integer("address-type")?;
        let bind_ip = match (settings.text("bind-ip")?, address_type) {
            (Some(ip), _) if ip.parse::<std::net::IpAddr>().is_err() => {
                return Err(settings.refuse_value("bind-ip", "not an IP address"));
            }
            (Some(ip), _) => Some(ip),
            (None, None) => None,
            (None, Some(2)) => Some("127.0.0.1".into()),
            (None, Some(10)) => Some("::1".into()),
            (None, Some(_)) => {
                return Err(settings.refuse_value("address-type", "neither 2 nor 10"));
            }
        };
        let data_dir = match settings.path("data-dir")? {
            None => settings.path("temp-dir")?,
            path => path,
        };
        let options = Self {
            name: settings.text("name")?,
            data_dir,
            adapter: settings.choice("adapter", &adapters)?.unwrap_or(Adapter::Sqlite),
            storages: count("storages", NODES_MAX)?.unwrap_or(databases.len().max(1) as u32),
            databases,
            masters: count("master-count", NODES_MAX)?.unwrap_or(1),
            partitions: count("partitions", PARTITIONS_MAX)?,
            replicas: settings.bounded("replicas")?.unwrap_or_default(),
            bind_ip,
            master_port: settings.bounded("master-port")?,
            admin_port: settings.bounded("admin-port")?,
            clear_databases: settings.flag("clear-databases")?,
            cleanup_on_delete: settings.flag("cleanup-on-delete")?,
            logger: settings.flag("logger")?,
            seed: settings.text("seed")?,
        };
        Ok(settings.loaded(options))
    }
}
