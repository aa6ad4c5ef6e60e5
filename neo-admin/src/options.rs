// SPDX-License-Identifier: GPL-2.0-or-later
//! From the command line of `neoadmin` to the [`Config`] of its core.

use std::fmt::Display;
use std::path::PathBuf;

use neo_common::config::{Address, AdminOptions, Exit};
use neo_common::master_list;
use neo_common::net::Listener;

use crate::app::Config;
use crate::mail::MailConfig;

/// Name of the program, for messages.
pub const PROGRAM: &str = "neoadmin";

/// What is needed to run.
#[derive(Debug)]
pub struct Prepared {
    /// For the core.
    pub config: Config,
    /// Bound already.
    pub listener: Listener,
    /// The dynamic master list.
    pub master_list: Option<PathBuf>,
}

fn failure(error: impl Display) -> Exit {
    Exit::failure(PROGRAM, error)
}

/// Looks up names, binds the listening socket and reads the dynamic master list.
///
/// # Errors
/// [`Exit`] with what is wrong.
pub fn prepare(options: AdminOptions) -> Result<Prepared, Exit> {
    let AdminOptions { daemon, .. } = &options;
    if daemon.cluster.is_empty() {
        return Err(failure("cluster name must be non-empty"));
    }
    if daemon.tls.is_some() {
        return Err(failure("encryption (--ca, --cert, --key) is not available yet"));
    }
    let resolve = |address: &Address| {
        address.resolve().map_err(|error| failure(format_args!("{address}: {error}")))
    };
    let mut masters = daemon.masters.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = &daemon.dynamic_master_list {
        let list = master_list::load(path);
        masters.extend(list.map_err(|error| failure(format_args!("{}: {error}", path.display())))?);
    }
    let bind = resolve(&daemon.bind)?;
    let listener = Listener::bind(bind)
        .map_err(|error| failure(format_args!("can not listen on {bind}: {error}")))?;
    let mail = mail_config(&options);
    let AdminOptions { daemon, monitor_maxlag, monitor_backup, .. } = options;
    let config = Config {
        cluster: daemon.cluster,
        masters,
        address: listener.address(),
        nid: daemon.nid,
        backups: monitor_backup,
        max_lag: monitor_maxlag,
        mail,
        save_masters: daemon.dynamic_master_list.is_some(),
    };
    Ok(Prepared { config, listener, master_list: daemon.dynamic_master_list })
}

fn mail_config(options: &AdminOptions) -> Option<MailConfig> {
    if options.monitor_email.is_empty() {
        return None;
    }
    if options.smtp_tls {
        log::error!("--smtp-tls is not available yet: e-mails will not be sent");
    }
    Some(MailConfig {
        recipients: options.monitor_email.clone(),
        sender: sender(),
        host: host_name(),
        smtp: options.smtp.clone(),
        starttls: options.smtp_tls,
        auth: options.smtp_auth.clone(),
    })
}

/// `$EMAIL`, or the user at this host.
fn sender() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    variable("EMAIL").unwrap_or_else(|| {
        let user = variable("LOGNAME").or_else(|| variable("USER"));
        format!("{}@{}", user.unwrap_or_else(|| "neo".into()), host_name())
    })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".into() } else { name.into() }
}
