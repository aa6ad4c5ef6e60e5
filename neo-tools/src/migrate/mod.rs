// SPDX-License-Identifier: GPL-2.0-or-later
//! Copying a `Data.fs` to a cluster, and a cluster to a `Data.fs`. Upstream: scripts/neomigrate.py.
//!
//! - [`to_cluster`]: the file is checked from end to end before anything is written;
//! - [`to_file`]: the file gets its name once it is whole and on disk;
//! - [`progress`]: the bar on a terminal.
//!
//! Tids, metadata, the order of records, and which revisions share their data (undo) are kept.

pub mod progress;
pub mod to_cluster;
pub mod to_file;

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use neo_client::{Client, Options};
use neo_common::config::{Address, MigrateOptions};
use neo_common::logging::{self, LogOptions};

/// Any failure, to be shown to the user.
pub type Failure = Box<dyn Error>;

/// How long to look for the primary master.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The direction of a copy.
enum Direction<'a> {
    ToCluster(&'a Path, Vec<SocketAddr>),
    ToFile(Vec<SocketAddr>, &'a Path),
}

/// Does what the options say.
///
/// # Errors
/// Whatever prevents it; what is to be known is in the message.
pub fn run(options: &MigrateOptions) -> Result<(), Failure> {
    if options.tls.is_some() {
        return Err("TLS is not available yet: remove --ca, --cert and --key".into());
    }
    logging::setup(&LogOptions { file: options.logfile.clone(), ..LogOptions::default() })?;
    let direction = direction(options)?;
    let (source, destination) = (&options.source, &options.destination);
    let start = Instant::now();
    if !options.quiet {
        println!("Migrating from {source} to {destination}");
    }
    let copied = match direction {
        Direction::ToCluster(path, masters) => to_cluster::copy(options, path, masters)?,
        Direction::ToFile(masters, path) => to_file::copy(options, masters, path)?,
    };
    if !options.quiet {
        println!("{copied}");
        println!("Migration done in {:.5}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Which of source and destination is a file. The source is one if it exists, as upstream decides;
/// if it does not, it must look like masters, and the destination must not.
fn direction(options: &MigrateOptions) -> Result<Direction<'_>, Failure> {
    let (source, destination) = (&options.source, &options.destination);
    let source_path = Path::new(source);
    if source_path.exists() {
        return Ok(Direction::ToCluster(source_path, masters(destination)?));
    }
    match (masters(source), masters(destination)) {
        (Ok(masters), Err(_)) => Ok(Direction::ToFile(masters, Path::new(destination))),
        (Ok(_), Ok(_)) => Err(format!(
            "both {source} and {destination} are addresses: one of them must be a file"
        )
        .into()),
        (Err(_), _) => Err(format!("{source}: no such file").into()),
    }
}

fn masters(text: &str) -> Result<Vec<SocketAddr>, Failure> {
    let wrong = |e: &dyn Error| format!("{text}: neither a file nor addresses of masters: {e}");
    let addresses = Address::parse_list(text).map_err(|e| wrong(&e))?;
    if addresses.is_empty() {
        return Err("no master is given".into());
    }
    let resolve = |address: &Address| address.resolve().map_err(|e| wrong(&e).into());
    addresses.iter().map(resolve).collect()
}

/// A client that is connected, or a clear error.
fn connect(options: Options, where_: &str) -> Result<Client, Failure> {
    let cluster = options.cluster.clone();
    let options = Options { connect_timeout: Some(CONNECT_TIMEOUT), ..options };
    let client = Client::open(options)?;
    client
        .connect()
        .map_err(|e| format!("can not connect to cluster {cluster} at {where_}: {e}"))?;
    Ok(client)
}
