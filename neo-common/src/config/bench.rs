// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neobench, which upstream does not have.

use std::path::PathBuf;

use super::Exit;
use super::address::Address;
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};
use crate::limits::PARTITIONS_MAX;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Workload {
    /// Small transactions with imposed tids.
    Import,
    /// All transactions with their objects.
    Iterate,
    /// Objects that no cache has.
    Load,
    /// Small transactions.
    Commit,
}

impl Workload {
    /// All of them, in the order in which they run.
    pub const ALL: [(&'static str, Self); 4] = [
        ("import", Self::Import),
        ("iterate", Self::Iterate),
        ("load", Self::Load),
        ("commit", Self::Commit),
    ];
}

/// A cluster that runs already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunningCluster {
    /// Its name.
    pub name: String,
    /// Its masters, at least one.
    pub masters: Vec<Address>,
    /// Names of nodes and their processes.
    pub pids: Vec<(String, u32)>,
    /// Write to it although it has data.
    pub force: bool,
}

/// Options of neobench.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BenchOptions {
    /// Measure this one instead of starting one.
    pub running: Option<RunningCluster>,
    /// Where the executables of nodes are; `None`: beside that of neobench.
    pub bin_dir: Option<PathBuf>,
    /// Executables to compare with.
    pub compare: Option<PathBuf>,
    /// Measure storages on a private MariaDB server too.
    pub mariadb: bool,
    /// Where databases are created; `None`: where the system has files that survive a restart.
    pub temp_dir: Option<PathBuf>,
    /// Number of storages, at least 1.
    pub storages: u32,
    /// Number of partitions, from 1 to [`PARTITIONS_MAX`].
    pub partitions: u32,
    /// How many times each measurement is done, at least 1; `None`: as many as usual.
    pub rounds: Option<u32>,
    /// What is measured, without repetition.
    pub workloads: Vec<Workload>,
    /// Interpreter with the Python package, to load from Python too.
    pub python: Option<PathBuf>,
    /// Less data and time: the figures are rough.
    pub quick: bool,
    /// Print JSON instead of a table.
    pub json: bool,
}

/// Nodes of one kind on one machine.
const STORAGES_MAX: u32 = 64;

/// Repetitions beyond which nobody waits.
const ROUNDS_MAX: u32 = 1000;

/// What neobench accepts.
pub fn table() -> Table {
    let options = vec![
        Opt::value(Some('c'), "cluster", "NAME", "measure a running cluster, with --masters"),
        Opt::value(Some('m'), "masters", "LIST", "masters of the running cluster"),
        Opt::value(
            None,
            "pids",
            "LIST",
            "processes of the running cluster, as NAME=PID or PID, separated by spaces: to measure \
             their CPU time and memory",
        ),
        Opt::flag(None, "force", "write to the running cluster although it has data"),
        Opt::value(None, "bin-dir", "DIR", "executables of nodes, if not beside neobench"),
        Opt::value(
            None,
            "compare",
            "DIR",
            "do the same with the executables of nodes of this directory, and show how many times \
             they are slower",
        ),
        Opt::flag(
            None,
            "mariadb",
            "measure a second cluster too, whose storages are on a private MariaDB server",
        ),
        Opt::value(None, "temp-dir", "DIR", "create databases there (default: /var/tmp)"),
        Opt::value(None, "storages", "NUMBER", "number of storage nodes").default("1"),
        Opt::value(None, "partitions", "NUMBER", "number of partitions").default("12"),
        Opt::value(None, "rounds", "NUMBER", "how many times to measure, for the median"),
        Opt::value(None, "only", "LIST", "some of import, iterate, load, commit"),
        Opt::value(
            None,
            "python",
            "PROGRAM",
            "interpreter that has the Python package `neo`: measure loads from there too",
        ),
        Opt::flag(Some('q'), "quick", "less data and time: rough figures"),
        Opt::flag(None, "json", "print JSON instead of a table"),
    ];
    Table {
        program: "neobench",
        description: "Measures a NEO cluster: one that it starts, or one that runs.",
        options,
        positionals: "",
        takes_remainder: false,
    }
}

impl BenchOptions {
    /// Understands the command line.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let settings = Settings::new(&table, args, env)?;
        let count = |long: &str, max: u32| match settings.integer(long)? {
            Some(count) if count < 1 || count > i64::from(max) => {
                Err(settings.refuse_value(long, format_args!("must be from 1 to {max}")))
            }
            count => Ok(count.map(|count| count as u32)),
        };
        let options = Self {
            running: running(&settings)?,
            bin_dir: settings.path("bin-dir")?,
            compare: settings.path("compare")?,
            mariadb: settings.flag("mariadb")?,
            temp_dir: settings.path("temp-dir")?,
            storages: count("storages", STORAGES_MAX)?.unwrap_or(1),
            partitions: count("partitions", PARTITIONS_MAX)?.unwrap_or(1),
            rounds: count("rounds", ROUNDS_MAX)?,
            workloads: workloads(&settings)?,
            python: settings.path("python")?,
            quick: settings.flag("quick")?,
            json: settings.flag("json")?,
        };
        Ok(settings.loaded(options))
    }
}

/// A running cluster excludes whatever says how to start one.
fn running<E: Environment>(settings: &Settings<'_, E>) -> Result<Option<RunningCluster>, Exit> {
    let refuse_with = |names: &[&str], why: &str| {
        let used = names.iter().find(|long| settings.is_on_command_line(long));
        used.map_or(Ok(()), |long| Err(settings.refuse_value(long, why)))
    };
    let Some(name) = settings.text("cluster")? else {
        refuse_with(&["masters", "pids", "force"], "only with --cluster")?;
        return Ok(None);
    };
    refuse_with(
        &["bin-dir", "compare", "mariadb", "temp-dir", "storages", "partitions"],
        "not with --cluster: it is about a cluster to start",
    )?;
    let masters = settings.addresses("masters")?.unwrap_or_default();
    if masters.is_empty() {
        return Err(settings.refuse_value("masters", "needed with --cluster"));
    }
    let mut pids = Vec::new();
    for word in settings.text("pids")?.unwrap_or_default().split([' ', ',']) {
        let (name, pid) = word.split_once('=').unwrap_or(("", word));
        match pid.parse() {
            Ok(pid) if pid != 0 => pids.push((name.to_owned(), pid)),
            _ if word.is_empty() => {}
            _ => {
                let why = format!("'{word}' is neither PID nor NAME=PID");
                return Err(settings.refuse_value("pids", why));
            }
        }
    }
    Ok(Some(RunningCluster { name, masters, pids, force: settings.flag("force")? }))
}

fn workloads<E: Environment>(settings: &Settings<'_, E>) -> Result<Vec<Workload>, Exit> {
    let Some(only) = settings.text("only")? else {
        return Ok(Workload::ALL.map(|(_, workload)| workload).to_vec());
    };
    let words: Vec<&str> = only.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let known = |word: &str| Workload::ALL.iter().find(|(name, _)| *name == word);
    if let Some(word) = words.iter().find(|word| known(word).is_none()) {
        let names = Workload::ALL.map(|(name, _)| name).join(", ");
        let why = format!("'{word}' is none of {names}");
        return Err(settings.refuse_value("only", why));
    }
    let is_wanted = |(name, _): &&(&str, _)| words.contains(name);
    Ok(Workload::ALL.iter().filter(is_wanted).map(|(_, workload)| *workload).collect())
}
