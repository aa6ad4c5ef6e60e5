// SPDX-License-Identifier: GPL-2.0-or-later
//! From the command line of `neomaster` to the [`Options`] of its core.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;

use neo_common::config::{Address, Exit, MasterOptions};
use neo_common::master_list;
use neo_common::net::Listener;

use crate::app::{Options, Upstream};

/// Name of the program, for messages.
pub const PROGRAM: &str = "neomaster";

/// What is needed to run.
#[derive(Debug)]
pub struct Prepared {
    /// For the core.
    pub options: Options,
    /// Bound already.
    pub listener: Listener,
    /// The dynamic master list.
    pub master_list: Option<PathBuf>,
}

fn failure(error: impl Display) -> Exit {
    Exit::failure(PROGRAM, error)
}

fn resolve(address: &Address) -> Result<SocketAddr, Exit> {
    address.resolve().map_err(|error| failure(format_args!("{address}: {error}")))
}

/// Looks up names, reads the dynamic master list and binds the listening socket.
///
/// # Errors
/// [`Exit`] with what is wrong.
pub fn prepare(options: MasterOptions) -> Result<Prepared, Exit> {
    let MasterOptions { daemon, partitions, replicas, autostart, upstream, backup } = options;
    if daemon.cluster.is_empty() {
        return Err(failure("cluster name must be non-empty"));
    }
    if daemon.tls.is_some() {
        return Err(failure("encryption (--ca, --cert, --key) is not available yet"));
    }
    let mut masters = daemon.masters.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = &daemon.dynamic_master_list {
        let list = master_list::load(path);
        masters.extend(list.map_err(|error| failure(format_args!("{}: {error}", path.display())))?);
    }
    let upstream = match upstream {
        Some(upstream) => {
            let masters = upstream.masters.iter().map(resolve).collect::<Result<_, _>>()?;
            Some(Upstream { cluster: upstream.cluster, masters })
        }
        None => None,
    };
    let bind = resolve(&daemon.bind)?;
    let listener = Listener::bind(bind)
        .map_err(|error| failure(format_args!("can not listen on {bind}: {error}")))?;
    let options = Options {
        cluster: daemon.cluster,
        bind: listener.address(),
        masters,
        autostart,
        nid: daemon.nid,
        partitions,
        replicas,
        upstream,
        backup,
    };
    Ok(Prepared { options, listener, master_list: daemon.dynamic_master_list })
}
