// SPDX-License-Identifier: GPL-2.0-or-later
//! A whole `Data.fs`, read in any order and by several threads.
//!
//! For a storage node that serves a FileStorage while it imports it. The file is read once from end
//! to end when it is opened, without its data: this checks it as [`Reader`] does, and tells where
//! the last record of each object is. ZODB's own index (`Data.fs.index`) is not needed, and not
//! trusted. From then on the file must not change.
//!
//! # What is remembered
//!
//! - By oid, position of the last record: 7 to 11 bytes per object, see [`Index`]. Earlier records
//!   are found by going back from there.
//! - One tid with its position for every [`MARK_DISTANCE`] bytes.
//! - Records whose `previous` is not the record that comes before in the file: a pack leaves such
//!   ones when it keeps an earlier revision only because an undo refers to it.
//! - Records that count for nothing, because another one of the same object follows in the same
//!   transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use neo_common::types::{Oid, Tid};

use crate::back_pointer::{BackPointers, Extent};
use crate::error::{Damage, ReadError};
use crate::format::{
    BACK_RECORD_SIZE, RECORD_HEADER_SIZE, RecordHeader, START, STATUS_PACKED, STATUS_UNDONE,
    TRANSACTION_HEADER_SIZE, TransactionHeader,
};
use crate::index::Index;
use crate::input::{Input, ReadAt};
use crate::reader::{Reader, Unfinished, damaged, resolve};
use crate::source::{Progress, Source, Status, TransactionInfo};

/// Bytes between two tids whose position is remembered, at least.
const MARK_DISTANCE: u64 = 256 << 10;

/// A FileStorage that does not change.
#[derive(Debug)]
pub struct Indexed<F> {
    file: F,
    /// Without a window: only to look.
    input: Input<F>,
    index: Index,
    marks: Vec<(Tid, u64)>,
    /// By position of a record, that of the one before, if it is not what the record says.
    previous: BTreeMap<u64, u64>,
    superseded: BTreeSet<u64>,
    /// Where the last transaction ends.
    end: u64,
    summary: Summary,
}

/// What is in a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Transactions.
    pub transactions: u64,
    /// Records of all of them.
    pub records: u64,
    /// Tid of the first transaction; `None` if there is none.
    pub first_tid: Option<Tid>,
    /// Tid of the last one.
    pub last_tid: Tid,
    /// The greatest oid; `None` if there is no object.
    pub last_oid: Option<Oid>,
    /// Most objects of a transaction, and its tid.
    pub biggest: (u64, Tid),
    /// What was left out at the end.
    pub unfinished: Option<Unfinished>,
}

/// Where a transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionPlace {
    /// Its id.
    pub tid: Tid,
    pos: u64,
    header: TransactionHeader,
}

impl TransactionPlace {
    /// Where it ends.
    fn end(&self) -> u64 {
        self.pos + self.header.length + 8
    }
}

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordPlace {
    /// The object.
    pub oid: Oid,
    /// Transaction that wrote it.
    pub tid: Tid,
    pos: u64,
    header: RecordHeader,
    /// If there is no data in the record: where it is instead, 0 if nowhere.
    target: u64,
}

impl Indexed<Arc<File>> {
    /// Opens a file. See [`Reader::open`].
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub fn open(path: &Path, progress: impl FnMut(Progress)) -> Result<Self, ReadError> {
        Self::read(Reader::open(path)?.map(Arc::new), progress)
    }
}

impl<F: ReadAt + Clone> Indexed<F> {
    /// Reads anything that has bytes at positions. `progress` is called after each transaction.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn new(file: F, progress: impl FnMut(Progress)) -> Result<Self, ReadError> {
        Self::read(Reader::new(file)?, progress)
    }

    fn read(mut reader: Reader<F>, mut progress: impl FnMut(Progress)) -> Result<Self, ReadError> {
        let (mut index, mut summary) = (Index::default(), Summary::default());
        let (mut marks, mut mark_pos) = (Vec::new(), START);
        let (mut previous, mut superseded) = (BTreeMap::new(), BTreeSet::new());
        // Position of each object of the transaction, and of its record before this transaction.
        let mut own: BTreeMap<Oid, (u64, u64)> = BTreeMap::new();
        while let Some(info) = reader.next_transaction()? {
            summary.transactions += 1;
            summary.first_tid.get_or_insert(info.tid);
            summary.last_tid = info.tid;
            if reader.position() >= mark_pos {
                marks.push((info.tid, reader.position()));
                mark_pos = reader.position() + MARK_DISTANCE;
            }
            own.clear();
            while let Some((header, pos)) = reader.next_place()? {
                summary.records += 1;
                let before = match own.get(&header.oid) {
                    Some(&(own_pos, before)) => {
                        superseded.insert(own_pos);
                        before
                    }
                    None => index.get(header.oid).unwrap_or(0),
                };
                if header.previous != before {
                    previous.insert(pos, before);
                }
                own.insert(header.oid, (pos, before));
                index.insert(header.oid, pos);
            }
            let count = own.len() as u64;
            if count > summary.biggest.0 {
                summary.biggest = (count, info.tid);
            }
            progress(reader.progress());
        }
        summary.last_oid = index.last_oid();
        summary.unfinished = reader.unfinished();
        let end = reader.end();
        let file = reader.into_file();
        let input = Input::new(file.clone());
        Ok(Self { file, input, index, marks, previous, superseded, end, summary })
    }

    /// A reader of the transactions from this tid on.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn reader_from(&self, tid: Tid) -> Result<Reader<F>, ReadError> {
        let place = self.transactions(tid).next().transpose()?;
        let pos = place.map_or(self.end, |place| place.pos);
        Ok(Reader::resume(self.file.clone(), pos, Tid::ZERO, self.end))
    }
}

impl<F: ReadAt> Indexed<F> {
    /// What is in the file.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Bytes of the transactions.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Whether the record at this position counts for nothing: another one of the same object
    /// follows in the same transaction.
    pub fn is_superseded(&self, pos: u64) -> bool {
        self.superseded.contains(&pos)
    }

    /// Whether the object has a record.
    pub fn contains(&self, oid: Oid) -> bool {
        self.index.get(oid).is_some()
    }

    /// Objects from this one on, ascending, deleted ones included.
    pub fn oids_from(&self, oid: Oid) -> impl Iterator<Item = Oid> {
        self.index.oids_from(oid)
    }

    /// Records of an object, newest first.
    pub fn revisions(&self, oid: Oid) -> impl Iterator<Item = Result<RecordPlace, ReadError>> {
        let mut next = self.index.get(oid).unwrap_or(0);
        std::iter::from_fn(move || {
            if next == 0 {
                return None;
            }
            let place = self.record(next);
            next = match &place {
                Ok(place) => {
                    let previous = self.previous.get(&next).copied();
                    previous.unwrap_or(place.header.previous)
                }
                Err(_) => 0,
            };
            Some(place)
        })
    }

    /// Transactions from this tid on, ascending.
    pub fn transactions(
        &self,
        tid: Tid,
    ) -> impl Iterator<Item = Result<TransactionPlace, ReadError>> {
        let mark = self.marks.partition_point(|(mark, _)| *mark <= tid).saturating_sub(1);
        let mut pos = self.marks.get(mark).map_or(self.end, |(_, pos)| *pos);
        let all = std::iter::from_fn(move || {
            if pos >= self.end {
                return None;
            }
            let place = self.transaction_at(pos);
            pos = place.as_ref().map_or(self.end, TransactionPlace::end);
            Some(place)
        });
        all.filter(move |place| {
            place
                .as_ref()
                .map_or(true, |place| place.tid >= tid && place.header.status != STATUS_UNDONE)
        })
    }

    /// All transactions, the last one first.
    pub fn transactions_back(&self) -> impl Iterator<Item = Result<TransactionPlace, ReadError>> {
        let mut pos = self.end;
        let all = std::iter::from_fn(move || {
            if pos <= START {
                return None;
            }
            let place = self.transaction_before(pos);
            pos = place.as_ref().map_or(START, |place| place.pos);
            Some(place)
        });
        all.filter(|place| {
            place.as_ref().map_or(true, |place| place.header.status != STATUS_UNDONE)
        })
    }

    /// A transaction.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn transaction(&self, tid: Tid) -> Result<Option<TransactionPlace>, ReadError> {
        let first = self.transactions(tid).next().transpose()?;
        Ok(first.filter(|place| place.tid == tid))
    }

    /// All of a transaction but its records.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn info(&self, place: &TransactionPlace) -> Result<TransactionInfo, ReadError> {
        let mut metadata = vec![0; place.header.metadata_size()];
        self.look(place.pos + TRANSACTION_HEADER_SIZE as u64, &mut metadata)?;
        let mut metadata = Bytes::from(metadata);
        let user = metadata.split_to(place.header.user_size.into());
        let description = metadata.split_to(place.header.description_size.into());
        let status = match place.header.status {
            STATUS_PACKED => Status::Packed,
            _ => Status::Finished,
        };
        Ok(TransactionInfo { tid: place.tid, status, user, description, extension: metadata })
    }

    /// Records of a transaction that count, in the order of the file.
    pub fn records(
        &self,
        place: &TransactionPlace,
    ) -> impl Iterator<Item = Result<RecordPlace, ReadError>> {
        let (mut pos, end) = (place.pos + place.header.size(), place.pos + place.header.length);
        let all = std::iter::from_fn(move || {
            if pos >= end {
                return None;
            }
            let record = self.record(pos);
            let size = record.as_ref().ok().and_then(|record| record.header.record_size());
            pos = size.and_then(|size| pos.checked_add(size)).unwrap_or(end);
            Some(record)
        });
        all.filter(|record| {
            record.as_ref().map_or(true, |record| !self.superseded.contains(&record.pos))
        })
    }

    /// Data of a record, and tid of the earlier record that has the same data, if it says so.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn data(&self, place: &RecordPlace) -> Result<(Option<Bytes>, Option<Tid>), ReadError> {
        let (extent, data_txn) = self.content(place)?;
        let Some(extent) = extent else { return Ok((None, data_txn)) };
        // Bounded by the file, in which it was when it was opened.
        let mut data = vec![0; usize::try_from(extent.size).expect("checked by the reader")];
        self.look(extent.pos, &mut data)?;
        Ok((Some(data.into()), data_txn))
    }

    /// Number of bytes of the data of a record, `None` if it has none; and tid of the earlier record
    /// that has the same data, if it says so.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn data_size(&self, place: &RecordPlace) -> Result<(Option<u64>, Option<Tid>), ReadError> {
        let (extent, data_txn) = self.content(place)?;
        Ok((extent.map(|extent| extent.size), data_txn))
    }

    fn content(&self, place: &RecordPlace) -> Result<(Option<Extent>, Option<Tid>), ReadError> {
        let RecordPlace { pos, header, target, .. } = *place;
        if header.data_size > 0 {
            let pos = pos + RECORD_HEADER_SIZE as u64;
            return Ok((Some(Extent { pos, size: header.data_size }), None));
        }
        if target == 0 {
            return Ok((None, None));
        }
        let mut back_pointers = BackPointers::default();
        let (extent, tid) = resolve(&self.input, &mut back_pointers, pos, header, target)?;
        Ok((extent, Some(tid)))
    }

    fn record(&self, pos: u64) -> Result<RecordPlace, ReadError> {
        let mut bytes = [0; BACK_RECORD_SIZE];
        self.look(pos, &mut bytes)?;
        let (header, target) = bytes.split_at(RECORD_HEADER_SIZE);
        let header = RecordHeader::decode(header.try_into().expect("split at the size"));
        let target = match header.data_size {
            0 => u64::from_be_bytes(target.try_into().expect("8 bytes follow a header")),
            _ => 0,
        };
        let place = RecordPlace { oid: header.oid, tid: header.tid, pos, header, target };
        let end = header.record_size().and_then(|size| pos.checked_add(size));
        // It was checked: if the file was changed since, do not go astray.
        if header.transaction >= pos || end.is_none_or(|end| end > self.end) {
            return Err(self.changed(pos));
        }
        Ok(place)
    }

    fn transaction_at(&self, pos: u64) -> Result<TransactionPlace, ReadError> {
        let mut bytes = [0; TRANSACTION_HEADER_SIZE];
        self.look(pos, &mut bytes)?;
        let header = TransactionHeader::decode(&bytes);
        let end = pos.checked_add(header.length).and_then(|end| end.checked_add(8));
        if header.length < header.size() || end.is_none_or(|end| end > self.end) {
            return Err(self.changed(pos));
        }
        Ok(TransactionPlace { tid: header.tid, pos, header })
    }

    /// The transaction that ends at `end`.
    fn transaction_before(&self, end: u64) -> Result<TransactionPlace, ReadError> {
        let mut bytes = [0; 8];
        self.look(end - 8, &mut bytes)?;
        let length = u64::from_be_bytes(bytes);
        let pos = (end - 8).checked_sub(length).filter(|pos| *pos >= START);
        let place = self.transaction_at(pos.ok_or_else(|| self.changed(end - 8))?)?;
        if place.end() != end {
            return Err(self.changed(end - 8));
        }
        Ok(place)
    }

    fn look(&self, pos: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let size = self.input.look(pos, buffer).map_err(|source| ReadError::Io { pos, source })?;
        if size < buffer.len() {
            return Err(damaged(pos, Damage::Shrunk { file_size: pos + size as u64 }));
        }
        Ok(())
    }

    fn changed(&self, pos: u64) -> ReadError {
        damaged(pos, Damage::Changed)
    }
}
