// SPDX-License-Identifier: GPL-2.0-or-later
//! Writes a `Data.fs` that ZODB opens as its own.
//!
//! [`Writer::begin`], [`Writer::store`] for each record, [`Writer::end`], for each transaction;
//! then [`Writer::finish`]. Records go to the file at once, whatever the size of the transaction:
//! its length, which comes first, is filled in at its end.
//!
//! # Back-pointers
//!
//! [`Record::data_txn`] is a hint, as for ZODB: if the object has a revision of that tid in the file
//! and this one has the same data (it is read and compared), a back-pointer to it is written. If
//! not, the data is, and [`Written::hints_unused`] counts it: what is packed in the source is an
//! ordinary reason. The revision is found by going back from the last one of the object, one read
//! per revision in between; for an undo there are usually one or two.
//!
//! # Memory
//!
//! A buffer of 1 MiB, and the position of each object: see [`Index`].

use std::cmp::Ordering;
use std::path::Path;

use bytes::Bytes;
use neo_common::types::Tid;

use crate::back_pointer::{BackPointers, Body, Extent};
use crate::error::WriteError;
use crate::format::{
    LENGTH_OFFSET, MAGIC_3, METADATA_SIZE_MAX, RECORD_HEADER_SIZE, RecordHeader, STATUS_FINISHED,
    STATUS_PACKED, TRANSACTION_HEADER_SIZE, TransactionHeader,
};
use crate::index::{Index, POSITION_END};
use crate::output::Output;
use crate::source::{Record, Status, Transaction, TransactionInfo};

/// Bytes of data that are compared at a time.
const COMPARE_SIZE: usize = 64 << 10;

/// What is in a file that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// Transactions.
    pub transactions: u64,
    /// Records of all of them.
    pub records: u64,
    /// Records that are back-pointers to the data of another one.
    pub back_pointers: u64,
    /// Records with a [`Record::data_txn`] that has not, or not the same, data here; their data was
    /// written.
    pub hints_unused: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// Writes a FileStorage. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    output: Output,
    index: Index,
    back_pointers: BackPointers,
    /// The transaction being written, and where it begins.
    current: Option<(Tid, u64)>,
    last_tid: Tid,
    written: Written,
    /// After an error, what is in the file is not known.
    is_failed: bool,
}

impl Writer {
    /// Begins a file, which is called `path` followed by `.part` until it is finished.
    ///
    /// # Errors
    /// A file of one of these names exists, or an index that belongs to `path`; or the operating
    /// system refuses.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let mut output = Output::create(path)?;
        output.append(&MAGIC_3)?;
        Ok(Self {
            output,
            index: Index::default(),
            back_pointers: BackPointers::default(),
            current: None,
            last_tid: Tid::ZERO,
            written: Written::default(),
            is_failed: false,
        })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// Its tid is not greater than the one before, its metadata is too long, or the operating
    /// system refuses.
    ///
    /// # Panics
    /// If the one before was not ended.
    pub fn begin(&mut self, info: &TransactionInfo) -> Result<(), WriteError> {
        self.guarded(|writer| {
            assert!(writer.current.is_none(), "transaction {:?} was not ended", writer.current);
            writer.write_header(info)
        })
    }

    /// Adds a record to the transaction.
    ///
    /// # Errors
    /// Its data is of 0 bytes, or the operating system refuses.
    ///
    /// # Panics
    /// If there is no transaction.
    pub fn store(&mut self, record: &Record) -> Result<(), WriteError> {
        self.guarded(|writer| {
            let (tid, transaction) = writer.current.expect("a record belongs to a transaction");
            writer.write_record(tid, transaction, record)
        })
    }

    /// Ends the transaction.
    ///
    /// # Errors
    /// The operating system refuses.
    ///
    /// # Panics
    /// If there is no transaction.
    pub fn end(&mut self) -> Result<(), WriteError> {
        self.guarded(|writer| {
            let (_, pos) = writer.current.take().expect("only what was begun is ended");
            let length = (writer.output.position() - pos).to_be_bytes();
            writer.output.overwrite(pos + LENGTH_OFFSET, &length)?;
            writer.output.append(&length)?;
            writer.written.transactions += 1;
            Ok(())
        })
    }

    /// Adds a whole transaction.
    ///
    /// # Errors
    /// Those of [`Writer::begin`], [`Writer::store`] and [`Writer::end`].
    ///
    /// # Panics
    /// If the one before was not ended.
    pub fn write(&mut self, transaction: &Transaction) -> Result<(), WriteError> {
        self.begin(&transaction.info)?;
        for record in &transaction.records {
            self.store(record)?;
        }
        self.end()
    }

    /// Puts everything on disk, then gives the file its name.
    ///
    /// # Errors
    /// Something failed before, the last transaction was not ended, a file of that name appeared
    /// meanwhile, or the operating system refuses. There is no file then, unless the error is about
    /// its directory or about the removal of the other name.
    pub fn finish(self) -> Result<Written, WriteError> {
        if self.is_failed {
            return Err(WriteError::Failed);
        }
        if let Some((tid, _)) = self.current {
            return Err(WriteError::TransactionOpen(tid));
        }
        let written = Written { size: self.output.position(), ..self.written };
        self.output.publish()?;
        Ok(written)
    }

    fn write_header(&mut self, info: &TransactionInfo) -> Result<(), WriteError> {
        let tid = info.tid;
        if tid <= self.last_tid {
            return Err(WriteError::TidOrder { tid, previous: self.last_tid });
        }
        let size = |field, bytes: &Bytes| {
            let size = bytes.len();
            u16::try_from(size).map_err(|_| WriteError::MetadataTooLong { tid, field, size })
        };
        let header = TransactionHeader {
            tid,
            length: 0,
            status: match info.status {
                Status::Finished => STATUS_FINISHED,
                Status::Packed => STATUS_PACKED,
            },
            user_size: size("user", &info.user)?,
            description_size: size("description", &info.description)?,
            extension_size: size("extension", &info.extension)?,
        };
        let pos = self.output.position();
        self.output.append(&header.encode())?;
        for bytes in [&info.user, &info.description, &info.extension] {
            self.output.append(bytes)?;
        }
        self.last_tid = tid;
        self.current = Some((tid, pos));
        Ok(())
    }

    fn write_record(
        &mut self,
        tid: Tid,
        transaction: u64,
        record: &Record,
    ) -> Result<(), WriteError> {
        let oid = record.oid;
        let pos = self.output.position();
        let size_max = record.data.as_ref().map_or(0, Bytes::len) as u64 + MARGIN;
        if pos.checked_add(size_max).is_none_or(|end| end >= POSITION_END) {
            return Err(WriteError::FileTooBig);
        }
        if record.data.as_ref().is_some_and(Bytes::is_empty) {
            return Err(WriteError::EmptyData { tid, oid });
        }
        let last = self.index.get(oid);
        let target = match (record.data_txn, last) {
            (Some(data_txn), Some(last)) => self.target(last, data_txn, &record.data)?,
            _ => None,
        };
        let data = if target.is_some() { None } else { record.data.as_ref() };
        let header = RecordHeader {
            oid,
            tid,
            previous: self.previous(last, transaction)?,
            transaction,
            version_size: 0,
            data_size: data.map_or(0, |data| data.len() as u64),
        };
        self.output.append(&header.encode())?;
        match data {
            Some(data) => self.output.append(data)?,
            None => self.output.append(&target.unwrap_or(0).to_be_bytes())?,
        }
        self.index.insert(oid, pos);
        self.written.records += 1;
        self.written.back_pointers += u64::from(target.is_some());
        self.written.hints_unused += u64::from(record.data_txn.is_some() && target.is_none());
        Ok(())
    }

    /// Position of the last record of an oid in an earlier transaction, 0 if there is none; `last`
    /// is that of its last record.
    fn previous(&self, last: Option<u64>, transaction: u64) -> Result<u64, WriteError> {
        match last {
            Some(last) if last >= transaction => Ok(self.record_header(last)?.previous),
            Some(last) => Ok(last),
            None => Ok(0),
        }
    }

    /// Position of the record of tid `data_txn` that is, or comes before, the one at `last`, if it
    /// has the same data.
    fn target(
        &mut self,
        last: u64,
        data_txn: Tid,
        data: &Option<Bytes>,
    ) -> Result<Option<u64>, WriteError> {
        let mut target = last;
        loop {
            let header = self.record_header(target)?;
            match header.tid.cmp(&data_txn) {
                Ordering::Equal => break,
                Ordering::Greater if header.previous > 0 => target = header.previous,
                Ordering::Greater | Ordering::Less => return Ok(None),
            }
        }
        let output = &self.output;
        let found = self
            .back_pointers
            .follow(target, body(output, target)?, |target, _| body(output, target))?;
        let is_same = match (found, data) {
            (None, None) => true,
            (Some(extent), Some(data)) => self.has_data(extent, data)?,
            (None, Some(_)) | (Some(_), None) => false,
        };
        Ok(is_same.then_some(target))
    }

    fn has_data(&self, extent: Extent, data: &[u8]) -> Result<bool, WriteError> {
        if extent.size != data.len() as u64 {
            return Ok(false);
        }
        let mut buffer = vec![0; COMPARE_SIZE.min(data.len())];
        let mut pos = extent.pos;
        for piece in data.chunks(COMPARE_SIZE) {
            let found = &mut buffer[..piece.len()];
            self.output.read(pos, found)?;
            if found != piece {
                return Ok(false);
            }
            pos += piece.len() as u64;
        }
        Ok(true)
    }

    fn record_header(&self, pos: u64) -> Result<RecordHeader, WriteError> {
        record_header(&self.output, pos)
    }

    /// Runs a step, after whose failure there is no other.
    fn guarded(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if self.is_failed {
            return Err(WriteError::Failed);
        }
        self.is_failed = true;
        run(self)?;
        self.is_failed = false;
        Ok(())
    }
}

/// Bytes that a transaction of one record needs at most, besides the data.
const MARGIN: u64 = 1 << 20;

const _: () = assert!(
    MARGIN > (TRANSACTION_HEADER_SIZE + 3 * METADATA_SIZE_MAX + RECORD_HEADER_SIZE + 16) as u64
);

fn record_header(output: &Output, pos: u64) -> Result<RecordHeader, WriteError> {
    let mut bytes = [0; RECORD_HEADER_SIZE];
    output.read(pos, &mut bytes)?;
    Ok(RecordHeader::decode(&bytes))
}

/// What the record at `pos`, written before, has after its header.
fn body(output: &Output, pos: u64) -> Result<Body, WriteError> {
    let size = record_header(output, pos)?.data_size;
    let pos = pos + RECORD_HEADER_SIZE as u64;
    if size > 0 {
        return Ok(Body::Data(Extent { pos, size }));
    }
    let mut bytes = [0; 8];
    output.read(pos, &mut bytes)?;
    Ok(Body::BackPointer(u64::from_be_bytes(bytes)))
}
