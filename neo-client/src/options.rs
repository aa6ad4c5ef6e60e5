// SPDX-License-Identifier: GPL-2.0-or-later
//! How a client is opened. Upstream: client/app.py, `Application.__init__`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use neo_common::types::Tid;

use crate::compression::Compression;

/// Default of [`Options::cache_bytes`]. Upstream: client/cache.py, 20 MiB.
pub const CACHE_BYTES: usize = 20 << 20;

/// How a client is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Name of the cluster.
    pub cluster: String,
    /// Known masters: at least one, here or in the file below.
    pub masters: Vec<SocketAddr>,
    /// File with more masters, kept up-to-date with all masters that were ever heard of.
    pub dynamic_master_list: Option<PathBuf>,
    /// Only read. A cluster in backup mode accepts no other client.
    pub read_only: bool,
    /// Bytes of object data that the cache may hold. Also bounds the data of a transaction that
    /// waits for storages.
    pub cache_bytes: usize,
    /// Compression of what is stored.
    pub compression: Compression,
    /// Transactions up to this tid, when imported with their own tid, are marked as packed. The
    /// protocol has no argument for it: storages of this project are told when the connection is
    /// made, others ignore it and the mark is lost.
    pub packed_until: Option<Tid>,
    /// Return data although its checksum is wrong in all cells, for rescue operations.
    pub ignore_wrong_checksum: bool,
    /// How long calls wait for a primary master before they fail with
    /// [`crate::Error::Unreachable`]. `None`: for ever, like upstream.
    pub connect_timeout: Option<Duration>,
}

impl Options {
    /// With upstream's defaults.
    pub fn new(cluster: impl Into<String>, masters: Vec<SocketAddr>) -> Self {
        Self {
            cluster: cluster.into(),
            masters,
            dynamic_master_list: None,
            read_only: false,
            cache_bytes: CACHE_BYTES,
            compression: Compression::default(),
            packed_until: None,
            ignore_wrong_checksum: false,
            connect_timeout: None,
        }
    }
}
