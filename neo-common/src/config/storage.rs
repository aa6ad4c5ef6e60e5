// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neostorage. Upstream: storage/app.py.

use std::time::Duration;

use super::daemon::{DaemonOptions, daemon_options};
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};
use super::{Exit, Secret};

/// Kind of database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adapter {
    /// MySQL or MariaDB; upstream's two Python bindings are the same to us.
    MySql,
    /// SQLite.
    Sqlite,
    /// Another ZODB that is being imported.
    Importer,
}

/// How long to wait for a database that does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Then it is an error.
    AtMost(Duration),
    /// As long as it takes.
    Forever,
}

/// Options of neostorage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageOptions {
    /// Those of all daemons.
    pub daemon: DaemonOptions,
    /// Kind of database.
    pub adapter: Adapter,
    /// Where the database is; the syntax depends on the adapter. It may have a password.
    pub database: Secret,
    /// Engine of a new MySQL database.
    pub engine: Option<String>,
    /// How long to wait for the database.
    pub wait: Wait,
    /// Store equal data once, in a new database.
    pub dedup: bool,
    /// Erase the database and exit.
    pub reset: bool,
    /// Keep the data of cells that are dropped.
    pub disable_drop_partitions: bool,
    /// Do not pack.
    pub disable_pack: bool,
    /// Ask another node id for a copy of the database of another node, and exit.
    pub new_nid: bool,
}

const ADAPTERS: &[(&str, Adapter)] = &[
    ("Importer", Adapter::Importer),
    ("MySQL", Adapter::MySql),
    ("MySQLdb", Adapter::MySql),
    ("PyMySQL", Adapter::MySql),
    ("SQLite", Adapter::Sqlite),
];

/// What neostorage accepts.
pub fn table() -> Table {
    let mut options = daemon_options("storage", "127.0.0.1", Some("127.0.0.1:10000"));
    options.extend([
        Opt::value(
            Some('a'),
            "adapter",
            "NAME",
            "kind of database: Importer, MySQL, MySQLdb, PyMySQL or SQLite",
        )
        .default("MySQL"),
        Opt::value(
            Some('d'),
            "database",
            "STRING",
            "SQLite: a path or a 'file:' URI; MySQL: [user[:password]@]database[unix_socket]",
        )
        .required(),
        Opt::value(
            Some('w'),
            "wait",
            "SECONDS",
            "how long to wait for the database before giving up, -1 for ever",
        )
        .default("0"),
        Opt::value(Some('e'), "engine", "NAME", "engine of a new MySQL database"),
        Opt::flag(None, "dedup", "store equal data once, in a new database"),
        Opt::flag(None, "reset", "erase the database, if there is one, and exit"),
        Opt::flag(None, "disable-drop-partitions", "keep the data of dropped cells"),
        Opt::flag(None, "disable-pack", "do not process any pack order"),
        Opt::flag(
            None,
            "new-nid",
            "ask the cluster for another node id, because the database is a copy of that of another \
             node; store it and exit",
        ),
        Opt::flag(Some('R'), "reset-and-run", "(obsolete) refused, see --reset").old(),
    ]);
    Table {
        program: "neostorage",
        description: "NEO storage node",
        options,
        positionals: "",
        takes_remainder: false,
    }
}

impl StorageOptions {
    /// Understands the command line and the file that it names.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let mut settings = Settings::new(&table, args, env)?;
        if settings.is_on_command_line("reset-and-run") {
            return Err(settings.error(
                "argument -R: not supported any more, because it erased the database at each start; \
                 use --reset, which erases it and exits",
            ));
        }
        let daemon = DaemonOptions::new(&mut settings)?;
        daemon.check_masters(&settings)?;
        let reset = settings.flag("reset")?;
        if reset && !settings.is_on_command_line("reset") {
            // A supervisor would erase the database each time that it starts the node.
            let why = "erasing the database must be asked on the command line";
            return Err(settings.refuse_value("reset", why));
        }
        let options = Self {
            daemon,
            adapter: settings.choice("adapter", ADAPTERS)?.unwrap_or(Adapter::MySql),
            database: settings.secret("database")?.unwrap_or_default(),
            engine: settings.text("engine")?,
            wait: Wait::from_seconds(settings.float("wait")?.unwrap_or_default()),
            dedup: settings.flag("dedup")?,
            reset,
            disable_drop_partitions: settings.flag("disable-drop-partitions")?,
            disable_pack: settings.flag("disable-pack")?,
            new_nid: settings.flag("new-nid")?,
        };
        Ok(settings.loaded(options))
    }
}

impl Adapter {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        ADAPTERS.iter().find(|(known, _)| *known == name).map(|(_, adapter)| *adapter)
    }
}

impl Wait {
    /// From a number of seconds; a negative one is for ever.
    pub fn from_seconds(seconds: f64) -> Self {
        if seconds < 0.0 {
            return Self::Forever;
        }
        // More than a duration can be is for ever.
        Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::AtMost)
    }
}
