// SPDX-License-Identifier: GPL-2.0-or-later
//! The FileStorage that is imported, as a database sees it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use neo_common::compression::Compression;
use neo_common::limits::DATA_BYTES_MAX;
use neo_common::types::{Oid, Tid};
use neo_filestorage::{
    Indexed, Progress, ReadError, Reader, RecordPlace, Status, Summary, TransactionPlace,
};

use super::super::Error;
use super::super::records::*;
use crate::limits::TRANSACTION_OIDS_MAX;

/// Time between two lines in the log while the file is read at start.
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// A FileStorage that nobody writes to.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: Indexed<Arc<File>>,
    compression: Compression,
    /// Keeps applications from opening the file to write.
    _lock: Option<File>,
}

impl Source {
    /// Opens a file and reads it from end to end.
    ///
    /// # Errors
    /// It can not be opened, is in use, is damaged, is empty, or has something that NEO can not hold.
    pub fn open(path: &Path, compression: Compression) -> Result<Self, Error> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let lock = lock(&path)?;
        log::info!("{}: looking for its objects", path.display());
        let mut report_at = Instant::now() + REPORT_PERIOD;
        let progress = |progress: Progress| {
            if Instant::now() >= report_at {
                report_at = Instant::now() + REPORT_PERIOD;
                let percent = progress.done as f64 * 100.0 / progress.total.max(1) as f64;
                log::info!("{}: {percent:.1} % read", path.display());
            }
        };
        let file = Indexed::open(&path, progress).map_err(|error| failure(&path, error))?;
        let source = Self { path, file, compression, _lock: lock };
        source.check()?;
        Ok(source)
    }

    fn check(&self) -> Result<(), Error> {
        let summary = self.summary();
        let refuse = |why: String| Err(refused(&self.path, &why));
        if summary.first_tid.is_none() {
            return refuse("there is nothing to import: it has no transaction".into());
        }
        // The last tid must have a successor.
        if summary.last_tid >= Tid::MAX {
            return refuse(format!("tid {} is too great", summary.last_tid));
        }
        if let Some(oid) = summary.last_oid.filter(|oid| oid.get() > i64::MAX as u64) {
            return refuse(format!("oid {oid} is too great"));
        }
        let (count, tid) = summary.biggest;
        let count_max = TRANSACTION_OIDS_MAX;
        if count >= count_max as u64 {
            return refuse(format!(
                "transaction {tid} has {count} objects, the most that can be stored is {}",
                count_max - 1
            ));
        }
        if let Some(unfinished) = summary.unfinished {
            log::warn!(
                "{}: {} bytes of a transaction that was not finished are ignored at position {}",
                self.path.display(),
                unfinished.size,
                unfinished.pos
            );
        }
        log::info!(
            "{}: {} transactions, {} records, {} bytes, last tid={}",
            self.path.display(),
            summary.transactions,
            summary.records,
            self.file.size(),
            summary.last_tid
        );
        Ok(())
    }

    /// Name of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in the file.
    pub fn summary(&self) -> &Summary {
        self.file.summary()
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Last tid of the file.
    pub fn last_tid(&self) -> Tid {
        self.summary().last_tid
    }

    /// Reads in sequence, from this tid on.
    pub fn reader_from(&self, tid: Tid) -> Result<Reader<Arc<File>>, Error> {
        self.file.reader_from(tid).map_err(|error| self.failure(error))
    }

    /// Whether a record at this position does not count.
    pub fn is_superseded(&self, pos: u64) -> bool {
        self.file.is_superseded(pos)
    }

    /// Whether the object has a revision here.
    pub fn contains(&self, oid: Oid) -> bool {
        self.file.contains(oid)
    }

    /// Objects from this one on, ascending.
    pub fn oids_from(&self, oid: Oid) -> impl Iterator<Item = Oid> {
        self.file.oids_from(oid)
    }

    /// Revisions of an object, newest first.
    pub fn revisions(&self, oid: Oid) -> impl Iterator<Item = Result<RecordPlace, Error>> {
        self.file.revisions(oid).map(|place| place.map_err(|error| self.failure(error)))
    }

    /// Exactly this revision, if it exists.
    pub fn revision_at(&self, oid: Oid, tid: Tid) -> Result<Option<RecordPlace>, Error> {
        for place in self.revisions(oid) {
            let place = place?;
            if place.tid <= tid {
                return Ok(Some(place).filter(|place| place.tid == tid));
            }
        }
        Ok(None)
    }

    /// Transactions from this tid on, ascending.
    pub fn transactions(&self, tid: Tid) -> impl Iterator<Item = Result<TransactionPlace, Error>> {
        self.file.transactions(tid).map(|place| place.map_err(|error| self.failure(error)))
    }

    /// All transactions, the last one first.
    pub fn transactions_back(&self) -> impl Iterator<Item = Result<TransactionPlace, Error>> {
        self.file.transactions_back().map(|place| place.map_err(|error| self.failure(error)))
    }

    /// Objects of a transaction, in its order.
    pub fn oids(&self, place: &TransactionPlace) -> Result<Vec<Oid>, Error> {
        let records = self.file.records(place);
        let oids: Result<_, _> = records.map(|record| record.map(|record| record.oid)).collect();
        oids.map_err(|error| self.failure(error))
    }

    /// A transaction, as it is imported.
    pub fn transaction(&self, tid: Tid) -> Result<Option<TransactionInfo>, Error> {
        let place = self.file.transaction(tid).map_err(|error| self.failure(error))?;
        let Some(place) = place else { return Ok(None) };
        let info = self.file.info(&place).map_err(|error| self.failure(error))?;
        Ok(Some(transaction(info, self.oids(&place)?)))
    }

    /// Number of bytes of a record, `None` if it has no data, and its data tid.
    pub fn data_size(&self, place: &RecordPlace) -> Result<(Option<u64>, Option<Tid>), Error> {
        self.file.data_size(place).map_err(|error| self.failure(error))
    }

    /// A revision as a client gets it: not compressed, because it is read only once in general.
    pub fn load(&self, place: &RecordPlace) -> Result<Revision, Error> {
        let (data, data_tid) = self.file.data(place).map_err(|error| self.failure(error))?;
        let value = match data {
            Some(data) if data.len() > DATA_BYTES_MAX => {
                Some(self.value(place.oid, place.tid, &data)?)
            }
            data => data.map(|data| value_of(&data, Compression::None)),
        };
        Ok(Revision { tid: place.tid, next_tid: None, value, data_tid })
    }

    /// A revision as it is imported.
    pub fn revision(&self, place: &RecordPlace) -> Result<Revision, Error> {
        let (data, data_tid) = self.file.data(place).map_err(|error| self.failure(error))?;
        let value = data.map(|data| self.value(place.oid, place.tid, &data)).transpose()?;
        Ok(Revision { tid: place.tid, next_tid: None, value, data_tid })
    }

    /// Data as it is stored.
    pub fn value(&self, oid: Oid, tid: Tid, data: &bytes::Bytes) -> Result<Value, Error> {
        let value = value_of(data, self.compression);
        if value.data.len() > DATA_BYTES_MAX {
            let (size, size_max) = (value.data.len(), DATA_BYTES_MAX);
            let why = format!(
                "object {oid} of transaction {tid} has {size} bytes once compressed, the most that \
                 a cluster accepts is {size_max}"
            );
            return Err(refused(&self.path, &why));
        }
        Ok(value)
    }

    /// What to say when the file can not be read any more.
    pub fn failure(&self, error: ReadError) -> Error {
        failure(&self.path, error)
    }
}

fn value_of(data: &bytes::Bytes, compression: Compression) -> Value {
    let stored = compression.store(data);
    let compression = stored.compression.and_then(|number| u8::try_from(number).ok());
    Value {
        compression: compression.expect("0 or 1"),
        checksum: stored.checksum,
        data: stored.data,
    }
}

/// An imported transaction. Upstream: `transactionAsTuple`.
pub fn transaction(info: neo_filestorage::TransactionInfo, oids: Vec<Oid>) -> TransactionInfo {
    let neo_filestorage::TransactionInfo { tid, status, user, description, extension } = info;
    let packed = status == Status::Packed;
    let ttid = tid.as_ttid();
    let record = TransactionRecord { oids, user, description, extension, packed, ttid };
    TransactionInfo { tid, record, pack: None }
}

/// Shares the lock that ZODB takes to write, if its file is there.
fn lock(path: &Path) -> Result<Option<File>, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let Ok(file) = File::open(&name) else { return Ok(None) };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(refused(path, "in use by an application, which must be stopped first"))
        }
        // Some file systems have no locks.
        Err(std::fs::TryLockError::Error(error)) => {
            log::warn!("{}: can not be locked: {error}", path.display());
            Ok(None)
        }
    }
}

fn failure(path: &Path, error: ReadError) -> Error {
    Error::Source(path.to_owned(), Box::new(error))
}

fn refused(path: &Path, why: &str) -> Error {
    Error::Source(path.to_owned(), why.into())
}
