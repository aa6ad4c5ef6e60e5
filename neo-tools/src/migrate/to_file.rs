// SPDX-License-Identifier: GPL-2.0-or-later
//! From a cluster to a `Data.fs`.

use std::net::SocketAddr;
use std::path::Path;

use neo_client::Options;
use neo_client::filestorage::{Source, Writer};
use neo_common::config::MigrateOptions;

use super::progress::Bar;
use super::{Failure, connect};

/// Copies all transactions of the cluster to a new file.
///
/// # Errors
/// The file exists, or cannot be written; the cluster cannot be reached, or fails.
pub fn copy(
    options: &MigrateOptions,
    masters: Vec<SocketAddr>,
    path: &Path,
) -> Result<String, Failure> {
    if path.exists() {
        return Err(format!("{}: file exists", path.display()).into());
    }
    let client_options =
        Options { read_only: true, cache_bytes: 0, ..Options::new(&options.cluster, masters) };
    let client = connect(client_options, &options.source)?;
    let mut source = client.iterate(None, None);
    let mut writer = Writer::create(path)?;
    let bar = Bar::new("copying", source.progress(), options.quiet);
    while let Some(info) = Source::next_transaction(&mut source)? {
        writer.begin(&info)?;
        while let Some(record) = Source::next_record(&mut source)? {
            writer.store(&record)?;
        }
        writer.end()?;
        bar.update(source.progress());
    }
    let written = writer.finish()?;
    bar.finish();
    client.close();
    Ok(format!("{} transactions, {} bytes", written.transactions, written.size))
}
