// SPDX-License-Identifier: GPL-2.0-or-later
//! From a `Data.fs` to a cluster.
//!
//! The file is read twice. First from end to end, without doing anything: a damaged file is refused
//! before the cluster has any of it, because part of a database looks like a whole one. Then
//! transaction by transaction, each with its own tid.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use neo_client::filestorage::{Reader, Source, Status, TransactionInfo};
use neo_client::{Client, Metadata, NoResolution, Options};
use neo_common::config::MigrateOptions;
use neo_common::types::{Oid, Tid};

use super::progress::Bar;
use super::{Failure, connect};

/// What the first pass learns.
#[derive(Default)]
struct Survey {
    transactions: u64,
    records: u64,
    /// All transactions up to this one are packed.
    packed_until: Option<Tid>,
    /// Transactions after it that are packed too: their status is lost.
    packed_later: u64,
}

/// Copies all transactions of a file to an empty cluster.
///
/// # Errors
/// The file is damaged; the cluster cannot be reached, is not empty, or fails.
pub fn copy(
    options: &MigrateOptions,
    path: &Path,
    masters: Vec<SocketAddr>,
) -> Result<String, Failure> {
    let survey = survey(path, options.quiet)?;
    if survey.packed_later != 0 {
        log::warn!(
            "{} transactions are marked as packed after one that is not: the mark is lost",
            survey.packed_later
        );
    }
    let client_options = Options {
        cache_bytes: 0,
        packed_until: survey.packed_until,
        ..Options::new(&options.cluster, masters)
    };
    let client = connect(client_options, &options.destination)?;
    let cluster = &options.cluster;
    let last_tid = client.last_tid()?;
    if last_tid != Tid::ZERO {
        return Err(format!("cluster {cluster} is not empty: its last tid is {last_tid}").into());
    }
    let mut copy = Copy { client, serials: HashMap::new(), transactions: 0 };
    let total = survey.transactions;
    copy.run(path, options.quiet).map_err(|error| {
        let done = copy.transactions;
        format!(
            "{error}\nCluster {cluster} has {done} of {total} transactions: it is not complete, \
             erase it before trying again."
        )
    })?;
    copy.client.close();
    Ok(format!("{total} transactions, {} records", survey.records))
}

fn survey(path: &Path, quiet: bool) -> Result<Survey, Failure> {
    let fail = |e: neo_client::filestorage::ReadError| format!("{}: {e}", path.display());
    let mut source = Reader::open(path).map_err(fail)?;
    let bar = Bar::new("checking", source.progress(), quiet);
    let mut survey = Survey::default();
    let mut all_packed = true;
    while let Some(info) = source.next_transaction().map_err(fail)? {
        survey.transactions += 1;
        match info.status {
            Status::Packed if all_packed => survey.packed_until = Some(info.tid),
            Status::Packed => survey.packed_later += 1,
            Status::Finished => all_packed = false,
        }
        while source.next_record().map_err(fail)?.is_some() {
            survey.records += 1;
        }
        bar.update(source.progress());
    }
    if let Some(unfinished) = source.unfinished() {
        log::warn!("{}: ignored: {unfinished:?}", path.display());
    }
    bar.finish();
    Ok(survey)
}

/// The second pass.
struct Copy {
    client: Client,
    /// Last serial of each object: what its next revision is based on.
    serials: HashMap<Oid, Tid>,
    transactions: u64,
}

impl Copy {
    fn run(&mut self, path: &Path, quiet: bool) -> Result<(), Failure> {
        let mut source = Reader::open(path)?;
        let bar = Bar::new("copying ", source.progress(), quiet);
        while let Some(info) = source.next_transaction()? {
            self.transaction(&info, &mut source)?;
            self.transactions += 1;
            bar.update(source.progress());
        }
        bar.finish();
        Ok(())
    }

    fn transaction(
        &mut self,
        info: &TransactionInfo,
        source: &mut impl Source<Error = neo_client::filestorage::ReadError>,
    ) -> Result<(), Failure> {
        let mut transaction = self.client.begin(Some(info.tid), Box::new(NoResolution))?;
        let mut oids = Vec::new();
        while let Some(record) = source.next_record()? {
            let oid = record.oid;
            let serial = self.serials.get(&oid).copied().unwrap_or(Tid::ZERO);
            transaction.store_from(oid, serial, record.data, record.data_txn)?;
            oids.push(oid);
        }
        transaction.vote(&Metadata {
            user: info.user.clone(),
            description: info.description.clone(),
            extension: info.extension.clone(),
        })?;
        let tid = transaction.finish(|_| {})?;
        if tid != info.tid {
            return Err(format!("transaction {} was committed as {tid}", info.tid).into());
        }
        self.serials.extend(oids.into_iter().map(|oid| (oid, tid)));
        Ok(())
    }
}
