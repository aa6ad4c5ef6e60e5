// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neoctl. Upstream: neoctl/neoctl.py.

use std::path::PathBuf;

use super::Exit;
use super::address::Address;
use super::daemon::{TlsFiles, common_options, tls};
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};

/// Port of admin nodes.
const ADMIN_PORT: u16 = 9999;

/// Options of neoctl.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CtlOptions {
    /// The admin node to talk to.
    pub address: Address,
    /// Where to log, if anywhere.
    pub logfile: Option<PathBuf>,
    /// Encryption.
    pub tls: Option<TlsFiles>,
    /// Print for programs.
    pub json: bool,
    /// The command with its arguments, as they are.
    pub command: Vec<String>,
}

/// What neoctl accepts.
pub fn table() -> Table {
    let mut options = common_options();
    options.extend([
        Opt::value(Some('a'), "address", "ADDRESS", "address of an admin node")
            .default("127.0.0.1:9999"),
        Opt::flag(None, "json", "print in JSON; only for print commands").ours(),
        Opt::value(None, "handler", "NAME", "(obsolete) ignored").old(),
    ]);
    Table {
        program: "neoctl",
        description: "Control of a NEO cluster. Without command, the list of commands is shown.",
        options,
        positionals: "[COMMAND [ARGUMENT ...]]",
        takes_remainder: true,
    }
}

impl CtlOptions {
    /// Understands the command line, except the command.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let settings = Settings::new(&table, args, env)?;
        let address = settings.address("address", Some(ADMIN_PORT))?;
        let options = Self {
            address: address.ok_or_else(|| settings.error("argument -a/--address: missing"))?,
            logfile: settings.path("logfile")?,
            tls: tls(&settings)?,
            json: settings.flag("json")?,
            command: settings.positionals().to_vec(),
        };
        Ok(settings.loaded(options))
    }
}
