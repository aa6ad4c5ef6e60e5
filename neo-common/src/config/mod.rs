// SPDX-License-Identifier: GPL-2.0-or-later
//! Command lines and configuration files of all executables.
//!
//! ```text
//! argv --> options (prefixes, repeats, clusters; crate getopts) --+
//!                                                                +--> settings --> MasterOptions...
//! neo.conf --> ini (sections, [DEFAULT], %(x)s, continuations) --+
//! ```
//!
//! - [`options`]: option tables and what command lines may look like;
//! - [`ini`]: the dialect of configuration files;
//! - [`settings`]: precedence (command line, section, `[DEFAULT]`, built-in default) and types;
//! - [`address`]: `host:port` and lists of them;
//! - [`daemon`], [`master`], [`storage`], [`admin`], [`ctl`], [`mod@log`], [`migrate`], [`simple`], [`mod@bench`]: the
//!   tables of the executables and the plain structs that they give.
//!
//! What scripts and supervisor files of upstream rely on is followed (lib/config.py on Python's
//! argparse and configparser), the spellings of version 0.9 included. An old spelling whose meaning
//! changed is refused with a message, never guessed.
//!
//! Parsing is pure: reading the file and looking up home directories go through [`Environment`].
//! Nothing here ends the process: an [`Exit`] says with which status and text it should end.

pub mod address;
pub mod admin;
pub mod bench;
pub mod ctl;
pub mod daemon;
pub mod environment;
pub mod ini;
pub mod log;
pub mod master;
pub mod migrate;
pub mod options;
pub mod settings;
pub mod simple;
pub mod storage;
#[cfg(test)]
mod tests;

use std::fmt;

pub use address::{Address, AddressError};
pub use admin::AdminOptions;
pub use bench::BenchOptions;
pub use ctl::CtlOptions;
pub use daemon::{DaemonOptions, TlsFiles};
pub use environment::Environment;
#[cfg(feature = "net")]
pub use environment::{System, arguments};
pub use log::LogViewOptions;
pub use master::MasterOptions;
pub use migrate::MigrateOptions;
pub use settings::Loaded;
pub use simple::SimpleOptions;
pub use storage::StorageOptions;

/// Why there is nothing to run: help was asked, or something is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Exit status: 0 after `--help` and `--version`, 2 for a wrong command line, 1 for what is wrong
    /// in the configuration.
    pub status: u8,
    /// To be printed on standard output.
    pub stdout: String,
    /// To be printed on standard error.
    pub stderr: String,
}

impl Exit {
    /// Success: a text that was asked for.
    pub fn success(stdout: impl Into<String>) -> Self {
        Self { status: 0, stdout: stdout.into(), stderr: String::new() }
    }
    /// Wrong configuration: `PROGRAM: error: MESSAGE`, status 1.
    pub fn failure(program: &str, message: impl fmt::Display) -> Self {
        let stderr = format!("{program}: error: {message}\n");
        Self { status: 1, stdout: String::new(), stderr }
    }
    /// Wrong command line: usage and `PROGRAM: error: MESSAGE`, status 2.
    pub fn usage(program: &str, usage: &str, message: impl fmt::Display) -> Self {
        let stderr = format!("{usage}\n{program}: error: {message}\n");
        Self { status: 2, stdout: String::new(), stderr }
    }
    /// Prints the texts and gives the status to return from `main`.
    pub fn report(self) -> std::process::ExitCode {
        use std::io::Write as _;
        // The reader of our output may be gone; there is nobody else to tell.
        let _ = std::io::stdout().write_all(self.stdout.as_bytes());
        let _ = std::io::stderr().write_all(self.stderr.as_bytes());
        self.status.into()
    }
}

/// A text with a password: it is not printed with `{:?}`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text, for who needs it. It must not be logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// For fuzzing: the first byte chooses an executable, lines up to an empty one are its arguments,
/// the rest is the configuration file. Whatever comes out, nothing panics.
pub fn fuzz_one(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let end = rest.windows(2).position(|pair| pair == b"\n\n").unwrap_or(rest.len());
    let args: Vec<String> = String::from_utf8_lossy(&rest[..end]).lines().map(Into::into).collect();
    let file = rest.get(end + 2..).unwrap_or_default().to_vec();
    let env = environment::Fixed { file: Some(file), home: Some("/home/neo".into()) };
    let _ = match choice % 7 {
        0 => MasterOptions::parse(&args, &env).err(),
        1 => StorageOptions::parse(&args, &env).err(),
        2 => AdminOptions::parse(&args, &env).err(),
        3 => CtlOptions::parse(&args, &env).err(),
        4 => MigrateOptions::parse(&args, &env).err(),
        5 => SimpleOptions::parse(&args, &env).err(),
        _ => BenchOptions::parse(&args, &env).err(),
    };
}
