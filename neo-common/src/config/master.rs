// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neomaster. Upstream: master/app.py.

use super::Exit;
use super::address::Address;
use super::daemon::{DaemonOptions, daemon_options};
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};
use crate::limits::PARTITIONS_MAX;

/// The cluster to back up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// Its name, different from that of this cluster.
    pub cluster: String,
    /// Its masters.
    pub masters: Vec<Address>,
}

/// Options of neomaster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterOptions {
    /// Those of all daemons.
    pub daemon: DaemonOptions,
    /// Number of partitions of a new cluster, from 1 to [`PARTITIONS_MAX`].
    pub partitions: u32,
    /// Replicas of a new cluster.
    pub replicas: u32,
    /// Start a new cluster when that many storages are pending; at least 1.
    pub autostart: Option<u32>,
    /// The cluster to back up, if any.
    pub upstream: Option<Upstream>,
    /// Start an empty cluster as a backup at once.
    pub backup: bool,
}

/// What neomaster accepts.
pub fn table() -> Table {
    let mut options = daemon_options("master", "127.0.0.1:10000", None);
    options.extend([
        Opt::value(Some('r'), "replicas", "NUMBER", "replicas of a new cluster").default("0"),
        Opt::value(Some('p'), "partitions", "NUMBER", "partitions of a new cluster").default("100"),
        Opt::value(
            Some('A'),
            "autostart",
            "NUMBER",
            "start a new cluster as soon as that many storage nodes are pending; it should be the \
             number of all storage nodes",
        ),
        Opt::value(Some('C'), "upstream-cluster", "NAME", "name of the cluster to back up"),
        Opt::value(Some('M'), "upstream-masters", "LIST", "masters of the cluster to back up"),
        Opt::flag(Some('B'), "backup", "if the cluster is empty, start it as a backup"),
    ]);
    Table {
        program: "neomaster",
        description: "NEO master node",
        options,
        positionals: "",
        takes_remainder: false,
    }
}

impl MasterOptions {
    /// Understands the command line and the file that it names.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let mut settings = Settings::new(&table, args, env)?;
        let daemon = DaemonOptions::new(&mut settings)?;
        let replicas = settings.integer("replicas")?.unwrap_or_default();
        let partitions = settings.integer("partitions")?.unwrap_or_default();
        if replicas < 0 {
            return Err(settings.failure("replicas must be a positive integer"));
        }
        if partitions <= 0 {
            return Err(settings.failure("partitions must be more than zero"));
        }
        if partitions > i64::from(PARTITIONS_MAX) {
            let message = format!("partitions must be at most {PARTITIONS_MAX}");
            return Err(settings.failure(message));
        }
        let upstream = upstream(&settings, &daemon.cluster)?;
        let backup = settings.flag("backup")?;
        if backup && upstream.is_none() {
            let message = "backup needs --upstream-cluster and --upstream-masters";
            return Err(settings.failure(message));
        }
        let options = Self {
            partitions: partitions as u32,
            replicas: settings.bounded("replicas")?.unwrap_or_default(),
            // Upstream takes 0 as none.
            autostart: settings.bounded("autostart")?.filter(|count| *count != 0),
            upstream,
            backup,
            daemon,
        };
        Ok(settings.loaded(options))
    }
}

fn upstream<E: Environment>(
    settings: &Settings<'_, E>,
    own_cluster: &str,
) -> Result<Option<Upstream>, Exit> {
    let masters = settings.addresses("upstream-masters")?.unwrap_or_default();
    let Some(cluster) = settings.text("upstream-cluster")? else { return Ok(None) };
    if cluster == own_cluster {
        let message = "upstream cluster name must be different from cluster name";
        return Err(settings.failure(message));
    }
    if masters.is_empty() {
        return Err(settings.failure("upstream_masters must be given with upstream_cluster"));
    }
    Ok(Some(Upstream { cluster, masters }))
}
