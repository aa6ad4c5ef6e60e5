// SPDX-License-Identifier: GPL-2.0-or-later
//! Options of neoadmin. Upstream: admin/app.py.

use super::address::Address;
use super::daemon::{DaemonOptions, daemon_options};
use super::environment::Environment;
use super::options::{Opt, Table};
use super::settings::{Loaded, Settings};
use super::{Exit, Secret};

/// Port of mail servers.
const SMTP_PORT: u16 = 25;

/// User and password for the mail server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SmtpAuth {
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// Options of neoadmin.
#[derive(Clone, PartialEq, Debug)]
pub struct AdminOptions {
    /// Those of all daemons.
    pub daemon: DaemonOptions,
    /// Warn if a backup cluster is more than that many seconds late.
    pub monitor_maxlag: f64,
    /// Who is told about problems.
    pub monitor_email: Vec<String>,
    /// Names of backup clusters to monitor.
    pub monitor_backup: Vec<String>,
    /// Mail server.
    pub smtp: Address,
    /// Encrypt the connection to the mail server.
    pub smtp_tls: bool,
    /// User and password for the mail server.
    pub smtp_auth: Option<SmtpAuth>,
}

/// What neoadmin accepts.
pub fn table() -> Table {
    let mut options = daemon_options("admin", "127.0.0.1:9999", Some("127.0.0.1:10000"));
    options.extend([
        Opt::value(
            None,
            "monitor-maxlag",
            "SECONDS",
            "warn if a backup cluster is later than that",
        )
        .default("0.0"),
        Opt::value(None, "monitor-email", "EMAIL", "who is told about problems (repeatable)")
            .repeatable(),
        Opt::value(None, "monitor-backup", "NAME", "backup cluster to monitor (repeatable)")
            .repeatable(),
        Opt::value(None, "smtp", "HOST[:PORT]", "mail server").default("localhost"),
        Opt::flag(None, "smtp-tls", "use STARTTLS with the mail server"),
        Opt::value(None, "smtp-auth", "USER:PASS", "user and password for the mail server"),
    ]);
    Table {
        program: "neoadmin",
        description: "NEO admin node",
        options,
        positionals: "",
        takes_remainder: false,
    }
}

impl AdminOptions {
    /// Understands the command line and the file that it names.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn parse(args: &[String], env: &impl Environment) -> Result<Loaded<Self>, Exit> {
        let table = table();
        let mut settings = Settings::new(&table, args, env)?;
        let daemon = DaemonOptions::new(&mut settings)?;
        daemon.check_masters(&settings)?;
        let smtp = settings.address("smtp", Some(SMTP_PORT))?;
        let smtp_auth = match settings.text("smtp-auth")? {
            None => None,
            Some(text) => match text.split_once(':') {
                Some((user, password)) => {
                    Some(SmtpAuth { user: user.into(), password: Secret::new(password) })
                }
                // Without the text: it may be a password.
                None => return Err(settings.refuse_value("smtp-auth", "not USER:PASS")),
            },
        };
        let options = Self {
            daemon,
            monitor_maxlag: settings.float("monitor-maxlag")?.unwrap_or_default(),
            monitor_email: settings.list("monitor-email")?,
            monitor_backup: settings.list("monitor-backup")?,
            smtp: smtp.ok_or_else(|| settings.error("argument --smtp: missing"))?,
            smtp_tls: settings.flag("smtp-tls")?,
            smtp_auth,
        };
        Ok(settings.loaded(options))
    }
}
