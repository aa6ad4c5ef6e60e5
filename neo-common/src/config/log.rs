// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neolog. Upstream: scripts/neolog.py.

use std::path::PathBuf;

use super::Exit;
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};

/// Options of neolog.
#[derive(Clone, PartialEq, Debug)]
pub struct LogViewOptions {
    /// Show the bodies of packets.
    pub all: bool,
    /// Go on with what is added to the files.
    pub follow: bool,
    /// Processes to be told to flush their log, when following.
    pub flush: Vec<i32>,
    /// Only these nodes.
    pub nodes: Vec<String>,
    /// Seconds between two looks at the files.
    pub sleep_interval: f64,
    /// Where to begin: a number of seconds (UNIX time, or before now if negative), or a date.
    pub from: Option<String>,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// What neolog accepts.
pub fn table() -> Table {
    Table {
        program: "neolog",
        description: "Shows log files (option -l of the nodes), sorted by date. `-` is standard \
                      input: for compressed files, `zcat FILE | neolog -`.",
        options: vec![
            Opt::flag(Some('a'), "all", "show the bodies of packets"),
            Opt::flag(Some('f'), "follow", "go on with what is added to the files"),
            Opt::value(
                Some('F'),
                "flush",
                "PID",
                "with -f, ask this process to write (repeatable)",
            )
            .repeatable(),
            Opt::value(Some('n'), "node", "NAME", "only show this node (repeatable)").repeatable(),
            Opt::value(Some('s'), "sleep-interval", "SECONDS", "with -f, between two looks")
                .default("1.0"),
            Opt::value(
                None,
                "from",
                "TIME",
                "begin there: UNIX time, seconds before now if negative, or a date",
            ),
            Opt::flag(Some('A'), "decompress", "(obsolete) ignored"),
            Opt::flag(Some('N'), "no-nid", "(obsolete) ignored"),
        ],
        positionals: "FILE...",
        takes_remainder: false,
    }
}

impl LogViewOptions {
    /// Understands the command line.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let settings = Settings::new(&table, args, env)?;
        if settings.positionals().is_empty() {
            return Err(settings.error("the following arguments are required: file"));
        }
        let sleep_interval = settings.float("sleep-interval")?.unwrap_or(1.0);
        if !(0.01..=86_400.0).contains(&sleep_interval) {
            return Err(settings.error("argument -s/--sleep-interval: out of range"));
        }
        let mut flush = Vec::new();
        for text in settings.list("flush")? {
            match text.parse() {
                Ok(pid) if pid > 0 => flush.push(pid),
                _ => {
                    return Err(settings.error(format!("argument -F/--flush: invalid pid: {text}")));
                }
            }
        }
        let options = Self {
            all: settings.flag("all")?,
            follow: settings.flag("follow")?,
            flush,
            nodes: settings.list("node")?,
            sleep_interval,
            from: settings.text("from")?,
            files: settings.positionals().iter().map(PathBuf::from).collect(),
        };
        Ok(settings.loaded(options))
    }
}
