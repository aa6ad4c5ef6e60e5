// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neomigrate. Upstream: scripts/neomigrate.py.
//!
//! Two syntaxes: `neomigrate -c CLUSTER SOURCE DESTINATION`, and that of version 0.9 with `-s` and
//! `-d`. Source and destination are a file or a list of masters; which is which is found out by
//! who opens them.

use std::path::PathBuf;

use super::Exit;
use super::daemon::{TlsFiles, common_options, tls};
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};

/// Options of neomigrate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MigrateOptions {
    /// Name of the cluster.
    pub cluster: String,
    /// From where: a file if it exists, else masters.
    pub source: String,
    /// To where: the other kind.
    pub destination: String,
    /// Print nothing on standard output.
    pub quiet: bool,
    /// Where to log, if anywhere.
    pub logfile: Option<PathBuf>,
    /// Encryption.
    pub tls: Option<TlsFiles>,
}

/// What neomigrate accepts.
pub fn table() -> Table {
    let mut options = common_options();
    options.extend([
        Opt::value(Some('c'), "cluster", "NAME", "name of the cluster").required(),
        Opt::flag(Some('q'), "quiet", "print nothing on standard output"),
        Opt::value(Some('s'), "source", "SOURCE", "(obsolete) the source").old(),
        Opt::value(Some('d'), "destination", "DESTINATION", "(obsolete) the destination").old(),
    ]);
    Table {
        program: "neomigrate",
        description: "Copies a FileStorage to NEO, or NEO to a FileStorage. One of SOURCE and \
                      DESTINATION is a path, the other one is a list of master nodes.",
        options,
        positionals: "SOURCE DESTINATION",
        takes_remainder: false,
    }
}

impl MigrateOptions {
    /// Understands the command line.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let settings = Settings::new(&table, args, env)?;
        let mut positionals = settings.positionals().iter().cloned();
        let source = settings.text("source")?.or_else(|| positionals.next());
        let destination = settings.text("destination")?.or_else(|| positionals.next());
        let rest: Vec<String> = positionals.collect();
        if !rest.is_empty() {
            return Err(settings.error(format!("unrecognized arguments: {}", rest.join(" "))));
        }
        let given = [("source", &source), ("destination", &destination)];
        let missing: Vec<&str> =
            given.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        let (Some(source), Some(destination)) = (source, destination) else {
            let missing = missing.join(", ");
            return Err(settings.error(format!("the following arguments are required: {missing}")));
        };
        if source.is_empty() || destination.is_empty() {
            return Err(settings.error("source and destination must not be empty"));
        }
        let options = Self {
            cluster: settings.required("cluster")?,
            source,
            destination,
            quiet: settings.flag("quiet")?,
            logfile: settings.path("logfile")?,
            tls: tls(&settings)?,
        };
        Ok(settings.loaded(options))
    }
}
