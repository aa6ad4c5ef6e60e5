// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads a `Data.fs` from its beginning to its last complete transaction.
//!
//! Memory: the window, one object, and the positions that [`BackPointers`] remembers. Lengths are
//! believed only as far as the file goes: both lengths of a transaction are compared before
//! anything of it is given.
//!
//! # A file that is being written
//!
//! ZODB appends a transaction with status `c`, flushes, then changes the status. So what has
//! another status is complete and never changes, and what has status `c`, or is too short to have
//! a status, is a transaction under way, at which reading ends. The size is taken when reading
//! begins: transactions committed later are not read, except one that was under way there and then.
//!
//! A transaction that looks wrong at the end of the file may only have been seen at the wrong time,
//! through the window or with the old size. It is looked at again before anything is said about it:
//!
//! 1. the size is taken while a big transaction is being voted;
//! 2. the window is read: status `c`;
//! 3. that one is aborted, another one committed at the same place, more follow;
//! 4. the header in the window is of something that no longer exists.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use neo_common::types::{Oid, Tid};

use crate::back_pointer::{BackPointers, Body, Extent};
use crate::error::{BackPointerFault, Damage, ReadError};
use crate::format::{
    BACK_RECORD_SIZE, MAGIC_2, MAGIC_3, RECORD_HEADER_SIZE, RecordHeader, START, STATUS_CHECKPOINT,
    STATUS_FINISHED, STATUS_OFFSET, STATUS_PACKED, STATUS_UNDONE, TRANSACTION_HEADER_SIZE,
    TransactionHeader,
};
use crate::input::{Input, ReadAt, WINDOW_SIZE};
use crate::source::{Progress, Record, Source, Status, TransactionInfo, Unit};

/// Bytes of an object that a reader accepts if not told otherwise. What a cluster accepts depends
/// on how well it compresses; this only bounds memory.
pub const DATA_BYTES_MAX: u64 = 1 << 30;

/// Data up to this size is copied out of the window.
const WINDOW_DATA_SIZE: usize = WINDOW_SIZE / 4;

/// How often the end of a file that changes is looked at. Each look but the first has a fresh
/// header and a size taken before it; see the race above.
const LOOKS: u32 = 3;

/// A transaction at the end of a file that was not finished: being committed by a running ZODB, or
/// left by one that stopped in the middle. ZODB drops it when it opens the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// Where it begins.
    pub pos: u64,
    /// Bytes from there to the end of the file.
    pub size: u64,
}

/// The transaction being read.
#[derive(Clone, Copy, Debug)]
struct Current {
    tid: Tid,
    /// Where it begins.
    pos: u64,
    /// Where its records end.
    end: u64,
}

/// Where the reader is.
#[derive(Clone, Copy, Debug)]
enum Step {
    Between,
    Inside(Current),
    End,
    Failed,
}

/// What is at a position where a transaction should begin.
enum Look {
    Complete(TransactionHeader),
    Unfinished(u64),
    /// Wrong unless it was looked at while it changed.
    Doubtful(Damage),
}

/// Reads a FileStorage.
#[derive(Debug)]
pub struct Reader<F> {
    input: Input<F>,
    /// Where the file ended when reading began.
    file_size: u64,
    /// What comes next.
    pos: u64,
    /// What was given last.
    given_pos: u64,
    step: Step,
    last_tid: Tid,
    back_pointers: BackPointers,
    unfinished: Option<Unfinished>,
    data_bytes_max: u64,
}

impl Reader<File> {
    /// Opens a file. It may be in use by a ZODB.
    ///
    /// # Errors
    /// It is not there, not readable, not a regular file, or does not begin like a FileStorage.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let open = || {
            let file = File::open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            Ok(file)
        };
        let file = open().map_err(|source| ReadError::Open { path: path.to_owned(), source })?;
        Self::new(file)
    }
}

impl<F: ReadAt> Reader<F> {
    /// Reads from anything that has bytes at positions.
    ///
    /// # Errors
    /// It does not begin like a FileStorage.
    pub fn new(file: F) -> Result<Self, ReadError> {
        let mut input = Input::new(file);
        let at_start = |source| ReadError::Io { pos: 0, source };
        let file_size = input.size().map_err(at_start)?;
        let found = input.forward(0, START as usize).map_err(at_start)?;
        if found != MAGIC_2 && found != MAGIC_3 {
            return Err(damaged(0, Damage::NotFileStorage { found: found.to_vec() }));
        }
        Ok(Self {
            input,
            file_size,
            pos: START,
            given_pos: 0,
            step: Step::Between,
            last_tid: Tid::ZERO,
            back_pointers: BackPointers::default(),
            unfinished: None,
            data_bytes_max: DATA_BYTES_MAX,
        })
    }

    /// Reads a part of a file that was read before: from the transaction at `pos`, which comes after
    /// `last_tid`, to `end`.
    pub(crate) fn resume(file: F, pos: u64, last_tid: Tid, end: u64) -> Self {
        Self {
            input: Input::new(file),
            file_size: end,
            pos,
            given_pos: 0,
            step: Step::Between,
            last_tid,
            back_pointers: BackPointers::default(),
            unfinished: None,
            data_bytes_max: DATA_BYTES_MAX,
        }
    }

    /// Accepts objects of up to that many bytes, instead of [`DATA_BYTES_MAX`].
    #[must_use]
    pub fn with_data_bytes_max(mut self, data_bytes_max: u64) -> Self {
        self.data_bytes_max = data_bytes_max;
        self
    }

    /// Position of the transaction or record that was given last.
    pub fn position(&self) -> u64 {
        self.given_pos
    }

    /// What was left out at the end of the file, known once it is reached.
    pub fn unfinished(&self) -> Option<Unfinished> {
        self.unfinished
    }

    /// Where what was read of the file ends.
    pub(crate) fn end(&self) -> u64 {
        self.pos
    }

    /// The file.
    pub(crate) fn into_file(self) -> F {
        self.input.into_file()
    }

    /// The same, on another handle of the same file.
    pub(crate) fn map<G>(self, change: impl FnOnce(F) -> G) -> Reader<G> {
        let Self { input, file_size, pos, given_pos, step, last_tid, .. } = self;
        Reader {
            input: input.map(change),
            file_size,
            pos,
            given_pos,
            step,
            last_tid,
            back_pointers: self.back_pointers,
            unfinished: self.unfinished,
            data_bytes_max: self.data_bytes_max,
        }
    }

    /// As [`Source::next_record`] but only looks where things are: header of the record and its
    /// position, after making sure that its data can be read.
    pub(crate) fn next_place(&mut self) -> Result<Option<(RecordHeader, u64)>, ReadError> {
        match self.step {
            Step::Between | Step::End => Ok(None),
            Step::Inside(current) => self.guarded(|reader| reader.look_at_record(current)),
            Step::Failed => Err(ReadError::Failed),
        }
    }

    fn read_transaction(&mut self) -> Result<Option<TransactionInfo>, ReadError> {
        loop {
            let pos = self.pos;
            let Some(header) = self.transaction_header(pos)? else { return Ok(None) };
            // Checked by `look`.
            let end = pos + header.length;
            self.check_second_length(pos, end, header.length)?;
            if header.tid <= self.last_tid {
                let damage = Damage::TidOrder { tid: header.tid, previous: self.last_tid };
                return Err(damaged(pos, damage));
            }
            self.last_tid = header.tid;
            let status = match header.status {
                STATUS_FINISHED => Status::Finished,
                STATUS_PACKED => Status::Packed,
                STATUS_UNDONE => {
                    // As if it were not there: ZODB does not index it either.
                    self.pos = end + 8;
                    continue;
                }
                other => return Err(damaged(pos, Damage::Status(other))),
            };
            let metadata =
                self.bytes(pos + TRANSACTION_HEADER_SIZE as u64, header.metadata_size())?;
            let (user, rest) = metadata.split_at(header.user_size.into());
            let (description, extension) = rest.split_at(header.description_size.into());
            let info = TransactionInfo {
                tid: header.tid,
                status,
                user: Bytes::copy_from_slice(user),
                description: Bytes::copy_from_slice(description),
                extension: Bytes::copy_from_slice(extension),
            };
            self.step = Step::Inside(Current { tid: header.tid, pos, end });
            self.given_pos = pos;
            self.pos = pos + header.size();
            return Ok(Some(info));
        }
    }

    /// Header of the transaction at `pos`, which ends inside the file and is finished. `None` at
    /// the end, also if what is there is unfinished.
    fn transaction_header(&mut self, pos: u64) -> Result<Option<TransactionHeader>, ReadError> {
        if pos >= self.file_size {
            return Ok(None);
        }
        let mut file_size = self.file_size;
        let mut looks = 0;
        loop {
            looks += 1;
            match self.look(pos, file_size)? {
                Look::Complete(header) => return Ok(Some(header)),
                Look::Unfinished(size) if looks > 1 => {
                    self.unfinished = (size > 0).then_some(Unfinished { pos, size });
                    return Ok(None);
                }
                Look::Doubtful(damage) if looks >= LOOKS => return Err(damaged(pos, damage)),
                Look::Unfinished(_) | Look::Doubtful(_) => {}
            }
            file_size = self.input.size().map_err(|source| ReadError::Io { pos, source })?;
            if file_size < pos {
                return Err(damaged(pos, Damage::Shrunk { file_size }));
            }
            self.input.forget();
        }
    }

    /// What is at `pos` in a file of that size.
    fn look(&mut self, pos: u64, file_size: u64) -> Result<Look, ReadError> {
        let left = file_size - pos;
        let bytes = self
            .input
            .forward(pos, TRANSACTION_HEADER_SIZE)
            .map_err(|source| ReadError::Io { pos, source })?;
        let bytes = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        let Ok(bytes) = <&[u8; TRANSACTION_HEADER_SIZE]>::try_from(bytes) else {
            return Ok(match bytes.get(STATUS_OFFSET) {
                None | Some(&STATUS_CHECKPOINT) => Look::Unfinished(left),
                Some(_) => Look::Doubtful(Damage::HeaderCut { size: bytes.len() as u64 }),
            });
        };
        let header = TransactionHeader::decode(bytes);
        // After its second length.
        let end = pos.checked_add(header.length).and_then(|end| end.checked_add(8));
        let end_inside = end.filter(|&end| end <= file_size);
        Ok(match header.status {
            STATUS_CHECKPOINT => match end_inside {
                Some(end) if end < file_size => {
                    Look::Doubtful(Damage::UnfinishedInside { following: file_size - end })
                }
                _ => Look::Unfinished(left),
            },
            STATUS_FINISHED | STATUS_PACKED | STATUS_UNDONE => {
                if end_inside.is_none() {
                    Look::Doubtful(Damage::TransactionCut { end, file_size })
                } else if header.length < header.size() {
                    let damage =
                        Damage::LengthTooSmall { length: header.length, header: header.size() };
                    return Err(damaged(pos, damage));
                } else {
                    Look::Complete(header)
                }
            }
            other => return Err(damaged(pos, Damage::Status(other))),
        })
    }

    fn check_second_length(&mut self, pos: u64, end: u64, before: u64) -> Result<(), ReadError> {
        let mut bytes = [0; 8];
        self.look_full(end, &mut bytes)?;
        let after = u64::from_be_bytes(bytes);
        if before != after {
            return Err(damaged(pos, Damage::LengthMismatch { before, after }));
        }
        Ok(())
    }

    fn read_record(&mut self, current: Current) -> Result<Option<Record>, ReadError> {
        let pos = self.pos;
        if self.is_over(current) {
            return Ok(None);
        }
        let (header, end) = self.record_header(pos, current)?;
        let (extent, data_txn) = self.content(pos, header)?;
        let data = extent.map(|extent| self.data(pos, header.oid, extent)).transpose()?;
        self.given_pos = pos;
        self.pos = end;
        Ok(Some(Record { oid: header.oid, data, data_txn }))
    }

    fn look_at_record(
        &mut self,
        current: Current,
    ) -> Result<Option<(RecordHeader, u64)>, ReadError> {
        let pos = self.pos;
        if self.is_over(current) {
            return Ok(None);
        }
        let (header, end) = self.record_header(pos, current)?;
        if let (Some(extent), _) = self.content(pos, header)? {
            self.check_size(pos, header.oid, extent)?;
        }
        self.given_pos = pos;
        self.pos = end;
        Ok(Some((header, pos)))
    }

    /// Whether the transaction has no more records: then it is left.
    fn is_over(&mut self, current: Current) -> bool {
        let is_over = self.pos == current.end;
        if is_over {
            self.pos = current.end + 8;
            self.step = Step::Between;
        }
        is_over
    }

    /// Where the data of the record at `pos` is, and tid of the record that its back-pointer leads
    /// to.
    fn content(
        &mut self,
        pos: u64,
        header: RecordHeader,
    ) -> Result<(Option<Extent>, Option<Tid>), ReadError> {
        let body_pos = pos + RECORD_HEADER_SIZE as u64;
        if header.data_size > 0 {
            return Ok((Some(Extent { pos: body_pos, size: header.data_size }), None));
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.bytes(body_pos, 8)?);
        match u64::from_be_bytes(bytes) {
            0 => Ok((None, None)),
            target => {
                let (found, tid) =
                    resolve(&self.input, &mut self.back_pointers, pos, header, target)?;
                Ok((found, Some(tid)))
            }
        }
    }

    /// Header of the record at `pos`, and where the record ends.
    fn record_header(
        &mut self,
        pos: u64,
        current: Current,
    ) -> Result<(RecordHeader, u64), ReadError> {
        let too_long =
            |end| damaged(pos, Damage::RecordTooLong { end, transaction_end: current.end });
        let header_end = pos + RECORD_HEADER_SIZE as u64;
        if header_end > current.end {
            return Err(too_long(Some(header_end)));
        }
        let mut bytes = [0; RECORD_HEADER_SIZE];
        bytes.copy_from_slice(self.bytes(pos, RECORD_HEADER_SIZE)?);
        let header = RecordHeader::decode(&bytes);
        let end = header.record_size().and_then(|size| pos.checked_add(size));
        let Some(end_inside) = end.filter(|&end| end <= current.end) else {
            return Err(too_long(end));
        };
        let damage = if header.version_size != 0 {
            Damage::Version
        } else if header.transaction != current.pos {
            Damage::RecordTransaction { found: header.transaction, expected: current.pos }
        } else if header.tid != current.tid {
            Damage::RecordTid { found: header.tid, expected: current.tid }
        } else if header.previous >= pos {
            Damage::Previous { previous: header.previous }
        } else {
            return Ok((header, end_inside));
        };
        Err(damaged(pos, damage))
    }

    /// Data of the record at `pos`, which is at `extent`.
    fn data(&mut self, pos: u64, oid: Oid, extent: Extent) -> Result<Bytes, ReadError> {
        self.check_size(pos, oid, extent)?;
        let size = usize::try_from(extent.size).expect("an address space has 64 bits");
        if size <= WINDOW_DATA_SIZE && extent.pos > pos {
            return Ok(Bytes::copy_from_slice(self.bytes(extent.pos, size)?));
        }
        let mut data = vec![0; size];
        self.look_full(extent.pos, &mut data)?;
        Ok(data.into())
    }

    fn check_size(&self, pos: u64, oid: Oid, extent: Extent) -> Result<(), ReadError> {
        let (size, size_max) = (extent.size, self.data_bytes_max);
        if size > size_max {
            return Err(ReadError::ObjectTooBig { pos, oid, size, size_max });
        }
        Ok(())
    }

    /// The next bytes, which are known to be in the file.
    fn bytes(&mut self, pos: u64, size: usize) -> Result<&[u8], ReadError> {
        let bytes =
            self.input.forward(pos, size).map_err(|source| ReadError::Io { pos, source })?;
        if bytes.len() < size {
            let file_size = pos + bytes.len() as u64;
            return Err(damaged(pos, Damage::Shrunk { file_size }));
        }
        Ok(bytes)
    }

    /// Bytes of elsewhere, which are known to be in the file.
    fn look_full(&self, pos: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let size = self.input.look(pos, buffer).map_err(|source| ReadError::Io { pos, source })?;
        if size < buffer.len() {
            return Err(damaged(pos, Damage::Shrunk { file_size: pos + size as u64 }));
        }
        Ok(())
    }

    /// Runs a step, after whose failure there is no other.
    fn guarded<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let result = run(self);
        if result.is_err() {
            self.step = Step::Failed;
        }
        result
    }
}

impl<F: ReadAt> Source for Reader<F> {
    type Error = ReadError;

    fn next_transaction(&mut self) -> Result<Option<TransactionInfo>, ReadError> {
        match self.step {
            Step::Between => {}
            Step::Inside(current) => self.pos = current.end + 8,
            Step::End => return Ok(None),
            Step::Failed => return Err(ReadError::Failed),
        }
        // Without a transaction unless one is found.
        self.step = Step::End;
        self.guarded(Self::read_transaction)
    }

    fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        match self.step {
            Step::Between | Step::End => Ok(None),
            Step::Inside(current) => self.guarded(|reader| reader.read_record(current)),
            Step::Failed => Err(ReadError::Failed),
        }
    }

    fn progress(&self) -> Progress {
        // An unfinished transaction counts as read.
        let left_out = self.unfinished.map_or(0, |unfinished| unfinished.size);
        let done = self.pos + left_out;
        Progress { done, total: self.file_size.max(done), unit: Unit::Bytes }
    }
}

/// Where the data is of the record at `pos`, whose back-pointer leads to `target`, and tid of the
/// record there.
pub(crate) fn resolve<F: ReadAt>(
    input: &Input<F>,
    back_pointers: &mut BackPointers,
    pos: u64,
    header: RecordHeader,
    target: u64,
) -> Result<(Option<Extent>, Tid), ReadError> {
    let read = |target, before| {
        target_record(input, header, target, before).map_err(|fault| match fault {
            TargetFault::Wrong(fault) => {
                damaged(pos, Damage::BackPointer { oid: header.oid, target, fault })
            }
            TargetFault::Io(source) => ReadError::Io { pos: target, source },
        })
    };
    let (tid, body) = read(target, pos)?;
    let found = back_pointers
        .follow(target, body, |target, before| read(target, before).map(|(_, body)| body))?;
    Ok((found, tid))
}

/// Why [`target_record`] fails.
enum TargetFault {
    Wrong(BackPointerFault),
    Io(io::Error),
}

impl From<io::Error> for TargetFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Tid and body of the record at `target`, to which the back-pointer of the record `from` leads,
/// directly or not. It must be wholly before `before`, and look like what it should be from all
/// sides.
fn target_record<F: ReadAt>(
    input: &Input<F>,
    from: RecordHeader,
    target: u64,
    before: u64,
) -> Result<(Tid, Body), TargetFault> {
    let first = START + TRANSACTION_HEADER_SIZE as u64;
    if target < first || target.saturating_add(RECORD_HEADER_SIZE as u64) > before {
        return Err(TargetFault::Wrong(BackPointerFault::Outside));
    }
    let mut bytes = [0; BACK_RECORD_SIZE];
    let found = input.look(target, &mut bytes)?;
    let (head, tail) = bytes.split_at(RECORD_HEADER_SIZE);
    let header = RecordHeader::decode(head.try_into().expect("split at the size of a header"));
    if header.oid != from.oid {
        return Err(TargetFault::Wrong(BackPointerFault::OtherObject(header.oid)));
    }
    let no_record = || TargetFault::Wrong(BackPointerFault::NoRecord);
    let end = header.record_size().and_then(|size| target.checked_add(size));
    let end = end.filter(|&end| end <= before).ok_or_else(no_record)?;
    // The last 8 bytes matter only if they are in the record.
    let needed = (end - target).min(BACK_RECORD_SIZE as u64);
    if (found as u64) < needed || header.version_size != 0 || header.tid > from.tid {
        return Err(no_record());
    }
    let mut bytes = [0; TRANSACTION_HEADER_SIZE];
    if !(START..target).contains(&header.transaction)
        || input.look(header.transaction, &mut bytes)? < bytes.len()
    {
        return Err(no_record());
    }
    let transaction = TransactionHeader::decode(&bytes);
    let records = header.transaction.saturating_add(transaction.size());
    let records_end = header.transaction.saturating_add(transaction.length);
    if transaction.tid != header.tid || target < records || end > records_end {
        return Err(no_record());
    }
    let body = if header.data_size > 0 {
        let pos = target + RECORD_HEADER_SIZE as u64;
        Body::Data(Extent { pos, size: header.data_size })
    } else {
        Body::BackPointer(u64::from_be_bytes(tail.try_into().expect("8 bytes follow a header")))
    };
    Ok((header.tid, body))
}

pub(crate) fn damaged(pos: u64, damage: Damage) -> ReadError {
    ReadError::Damaged { pos, damage }
}
