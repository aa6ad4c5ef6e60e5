// SPDX-License-Identifier: GPL-2.0-or-later
//! Options that all daemons have. Upstream: lib/app.py.

use std::path::PathBuf;

use super::Exit;
use super::address::Address;
use super::environment::Environment;
use super::options::Opt;
use super::settings::Settings;
use crate::types::NodeId;

/// Certificates for encrypted connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificate authorities and revocation lists, PEM.
    pub ca: PathBuf,
    /// Certificate of this node, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Options of neomaster, neostorage and neoadmin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaemonOptions {
    /// Name of the cluster.
    pub cluster: String,
    /// Known masters.
    pub masters: Vec<Address>,
    /// Where to listen.
    pub bind: Address,
    /// Name in the logs, if not the usual one.
    pub name: Option<String>,
    /// Where to log, if anywhere.
    pub logfile: Option<PathBuf>,
    /// Where addresses of masters are kept.
    pub dynamic_master_list: Option<PathBuf>,
    /// Encryption; all nodes of a cluster or none.
    pub tls: Option<TlsFiles>,
    /// Node id to ask for (tests), or to set for a storage.
    pub nid: Option<NodeId>,
}

/// Options of all executables that log and connect.
pub fn common_options() -> Vec<Opt> {
    vec![
        Opt::value(Some('l'), "logfile", "FILE", "log to this file"),
        Opt::value(None, "ca", "FILE", "(TLS) certificate authority in PEM format"),
        Opt::value(None, "cert", "FILE", "(TLS) certificate in PEM format"),
        Opt::value(None, "key", "FILE", "(TLS) private key in PEM format"),
        Opt::flag(Some('v'), "verbose", "(obsolete) ignored").old(),
    ]
}

/// Options of all daemons.
pub fn daemon_options(
    section: &'static str,
    bind: &'static str,
    masters: Option<&'static str>,
) -> Vec<Opt> {
    let masters_help = "addresses of master nodes, separated by spaces";
    let mut masters_option = Opt::value(Some('m'), "masters", "LIST", masters_help);
    masters_option.default = masters;
    let mut options = common_options();
    options.extend([
        Opt::value(Some('f'), "file", "FILE", "read options from this file"),
        Opt::value(Some('s'), "section", "NAME", "section of the file").default(section),
        Opt::value(Some('c'), "cluster", "NAME", "name of the cluster").required(),
        masters_option,
        Opt::value(Some('b'), "bind", "ADDRESS", "where to listen").default(bind),
        Opt::value(
            Some('D'),
            "dynamic-master-list",
            "FILE",
            "keep the addresses of master nodes in this file",
        ),
        Opt::value(Some('i'), "nid", "NUMBER", "node id to ask for (tests)"),
        Opt::value(Some('n'), "name", "NAME", "(obsolete) name in the logs").old(),
        Opt::value(Some('u'), "uuid", "HEX", "(obsolete) ignored").old(),
    ]);
    options
}

/// The encryption options: all three, or none.
///
/// # Errors
/// If only some are given.
pub fn tls<E: Environment>(settings: &Settings<'_, E>) -> Result<Option<TlsFiles>, Exit> {
    match (settings.path("ca")?, settings.path("cert")?, settings.path("key")?) {
        (None, None, None) => Ok(None),
        (Some(ca), Some(cert), Some(key)) => Ok(Some(TlsFiles { ca, cert, key })),
        _ => Err(settings.failure("encryption needs all of --ca, --cert and --key")),
    }
}

impl DaemonOptions {
    /// From the settings of a table made with [`daemon_options`].
    ///
    /// # Errors
    /// If a value is wrong.
    pub fn new<E: Environment>(settings: &mut Settings<'_, E>) -> Result<Self, Exit> {
        settings.warn_ignored("uuid", "node ids are given by the primary master, see --nid");
        let nid = settings.bounded::<i32>("nid")?;
        if nid == Some(0) {
            return Err(settings.refuse_value("nid", "0 is not a node id"));
        }
        let bind = settings.address("bind", Some(0))?;
        Ok(Self {
            cluster: settings.required("cluster")?,
            masters: settings.addresses("masters")?.unwrap_or_default(),
            bind: bind.ok_or_else(|| settings.error("argument -b/--bind: missing"))?,
            name: settings.text("name")?,
            logfile: settings.path("logfile")?,
            dynamic_master_list: settings.path("dynamic-master-list")?,
            tls: tls(settings)?,
            nid: nid.and_then(NodeId::new),
        })
    }

    /// For nodes that look for the primary master: refuses to look nowhere.
    ///
    /// # Errors
    /// If no master is known and there is no dynamic list either.
    pub fn check_masters<E: Environment>(&self, settings: &Settings<'_, E>) -> Result<(), Exit> {
        if self.masters.is_empty() && self.dynamic_master_list.is_none() {
            return Err(settings.refuse_value("masters", "at least one master must be given"));
        }
        Ok(())
    }
}
