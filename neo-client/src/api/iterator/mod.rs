// SPDX-License-Identifier: GPL-2.0-or-later
//! Walking over transactions, records and oids. Upstream: client/iterator.py, and
//! `transactionLog`, `undoLog`, `oids` of client/app.py.
//!
//! Tids and oids are spread over partitions: each partition gives its own in order, a bit at a time,
//! and they are merged. What belongs to the next tids (metadata, then objects) is asked before the
//! caller wants it, within bounds of number and bytes.
//!
//! - here: transactions with their records;
//! - `oids`: oids, current records;
//! - `undo_log`: transactions, newest first;
//! - `merge`: what the partitions have, merged.
//!
//! These iterators bypass the cache. What is committed while they run does not show up: the end is
//! fixed when the first item is asked for.

mod merge;
mod oids;
mod undo_log;

use std::collections::VecDeque;

use bytes::Bytes;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Partition, Tid};

use self::merge::Tids;
use super::client::{Client, unexpected};
use super::pipeline::{Ordered, WINDOW_LEN};
use crate::call::Call;
use crate::compression::Stored;
use crate::error::{Error, Result};
use crate::filestorage;

pub use oids::{CurrentRecord, CurrentRecords, Oids};
pub use undo_log::UndoLog;

/// Bytes of object data that may be received before the caller wants them.
const AHEAD_BYTES_MAX: usize = 8 << 20;

/// Metadata of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionInfo {
    /// Its id.
    pub tid: Tid,
    /// Who.
    pub user: Bytes,
    /// What.
    pub description: Bytes,
    /// Pickled dictionary, or nothing.
    pub extension: Bytes,
    /// Whether some of its objects may have been packed away.
    pub packed: bool,
    /// Objects that it wrote.
    pub oids: Vec<Oid>,
}

impl TryFrom<Packet> for TransactionInfo {
    type Error = Error;
    fn try_from(packet: Packet) -> Result<Self> {
        match packet {
            Packet::AnswerTransactionInformation {
                tid,
                user,
                description,
                extension,
                packed,
                oids,
            } => Ok(Self { tid, user, description, extension, packed, oids }),
            other => Err(unexpected(&other)),
        }
    }
}

/// What a transaction did to an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataRecord {
    /// The object.
    pub oid: Oid,
    /// The transaction.
    pub tid: Tid,
    /// Its new data; `None`: it was deleted, or its creation undone.
    pub data: Option<Bytes>,
    /// Earlier revision of which an undo used the data.
    pub data_txn: Option<Tid>,
}

fn read(partition: Partition, packet: Packet) -> Call {
    Call::Read { partition, packet, ttid: None }
}

/// Objects of one transaction after the other: requests are made ahead.
struct Objects {
    requests: Ordered,
    /// Object and transaction of each request.
    asked: VecDeque<(Oid, Tid)>,
    /// Mean size of what came, to bound what is on its way.
    mean_bytes: usize,
}

impl Objects {
    fn new(client: &Client) -> Self {
        Self {
            requests: Ordered::new(&client.shared),
            asked: VecDeque::new(),
            mean_bytes: AHEAD_BYTES_MAX / 16,
        }
    }

    fn has_room(&self) -> bool {
        let len = self.asked.len();
        len < WINDOW_LEN && (len == 0 || len * self.mean_bytes < AHEAD_BYTES_MAX)
    }

    fn push(&mut self, partitions: u32, oid: Oid, tid: Tid) -> Result<()> {
        let packet = Packet::AskObject { oid, at: Some(tid), before: None };
        self.requests.push(read(oid.partition(partitions), packet))?;
        self.asked.push_back((oid, tid));
        Ok(())
    }

    /// The oldest one; `Ok(None)` if it was packed away.
    fn pop(&mut self, client: &Client) -> Option<Result<Option<DataRecord>>> {
        let (oid, tid) = self.asked.pop_front()?;
        let packet = self.requests.pop_packet()?;
        Some(self.record(client, oid, tid, packet))
    }

    fn record(
        &mut self,
        client: &Client,
        oid: Oid,
        tid: Tid,
        packet: Result<Packet>,
    ) -> Result<Option<DataRecord>> {
        let (serial, stored, data_txn) = match packet {
            Ok(Packet::AnswerObject {
                serial, compression, checksum, data, data_serial, ..
            }) => (serial, Stored { compression, checksum, data }, data_serial),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if error.is_key_error() => return Ok(None),
            Err(error) => return Err(error),
        };
        if serial != tid {
            return Err(Error::Refused(format!("asked for {oid} at {tid}, got {serial}")));
        }
        self.mean_bytes = (self.mean_bytes * 7 + stored.data.len()) / 8 + 1;
        let data = if stored.is_nothing() {
            None
        } else {
            match stored.load() {
                Ok(data) => Some(data),
                // The usual way to load knows how to look for another cell.
                Err(_) => Some(client.load_serial(oid, tid)?.data),
            }
        };
        Ok(Some(DataRecord { oid, tid, data, data_txn }))
    }
}

/// Records of one transaction.
pub struct Records {
    client: Client,
    tid: Tid,
    oids: std::vec::IntoIter<Oid>,
    objects: Option<(u32, Objects)>,
}

impl Records {
    fn new(client: Client, tid: Tid, oids: Vec<Oid>) -> Self {
        Self { client, tid, oids: oids.into_iter(), objects: None }
    }

    fn next_record(&mut self) -> Result<Option<DataRecord>> {
        if self.objects.is_none() {
            self.objects = Some((self.client.partitions()?, Objects::new(&self.client)));
        }
        let Some((partitions, objects)) = &mut self.objects else { return Ok(None) };
        loop {
            while objects.has_room()
                && let Some(oid) = self.oids.next()
            {
                objects.push(*partitions, oid, self.tid)?;
            }
            match objects.pop(&self.client) {
                None => return Ok(None),
                Some(Ok(None)) => {}
                Some(record) => return record,
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<DataRecord>;
    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().transpose()
    }
}

impl Client {
    /// Records of a transaction. Those that were packed away are skipped.
    pub fn records(&self, info: &TransactionInfo) -> Records {
        Records::new(self.clone(), info.tid, info.oids.clone())
    }
}

/// A transaction with all its records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionRecord {
    /// Its metadata.
    pub info: TransactionInfo,
    /// Its records, without those that were packed away.
    pub records: Vec<DataRecord>,
}

/// Transactions in order, with their records, one by one: [`Transactions::next_transaction`], then
/// [`Transactions::next_record`] as long as wanted. As an [`Iterator`], whole transactions, which
/// must fit in memory.
pub struct Transactions {
    client: Client,
    start: Option<Tid>,
    stop: Option<Tid>,
    state: Option<Walk>,
    failed: Option<Error>,
}

struct Walk {
    first: Tid,
    partitions: u32,
    tids: Tids,
    ended: bool,
    infos: Ordered,
    /// Transactions whose metadata is known, with the number of objects asked.
    known: VecDeque<(TransactionInfo, usize)>,
    objects: Objects,
    /// Transaction whose records are being given, and how many of its objects were asked and
    /// given.
    current: Option<Current>,
}

struct Current {
    info: TransactionInfo,
    asked: usize,
    given: usize,
}

impl Transactions {
    pub(in crate::api) fn new(client: Client, start: Option<Tid>, stop: Option<Tid>) -> Self {
        Self { client, start, stop, state: None, failed: None }
    }

    /// The next transaction, or `None` at the end. Records of the current one that were not asked
    /// for are skipped.
    ///
    /// # Errors
    /// After an error, it goes on failing.
    pub fn next_transaction(&mut self) -> Result<Option<TransactionInfo>> {
        self.guard(|this| {
            let walk = this.walk()?;
            walk.0.next_transaction(walk.1)
        })
    }

    /// The next record of the current transaction, or `None` after the last one.
    ///
    /// # Errors
    /// As [`Transactions::next_transaction`].
    pub fn next_record(&mut self) -> Result<Option<DataRecord>> {
        self.guard(|this| {
            let walk = this.walk()?;
            walk.0.next_record(walk.1)
        })
    }

    fn guard<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = f(self);
        self.failed = result.as_ref().err().cloned();
        result
    }

    fn walk(&mut self) -> Result<(&mut Walk, &Client)> {
        if self.state.is_none() {
            let tids = Tids::new(&self.client, self.start, self.stop)?;
            self.state = Some(Walk {
                first: self.start.unwrap_or(Tid::ZERO),
                partitions: tids.partitions(),
                tids,
                ended: false,
                infos: Ordered::new(&self.client.shared),
                known: VecDeque::new(),
                objects: Objects::new(&self.client),
                current: None,
            });
        }
        let walk = self.state.as_mut().ok_or(Error::Closed)?;
        Ok((walk, &self.client))
    }
}

impl Walk {
    fn next_transaction(&mut self, client: &Client) -> Result<Option<TransactionInfo>> {
        // Objects that were asked but not wanted.
        if let Some(current) = self.current.take() {
            for _ in current.given..current.asked {
                self.objects.pop(client).transpose()?;
            }
        }
        self.ask_ahead()?;
        if self.known.is_empty() {
            self.take_info()?;
        }
        self.ask_ahead()?;
        let Some((info, asked)) = self.known.pop_front() else { return Ok(None) };
        self.current = Some(Current { info: info.clone(), asked, given: 0 });
        Ok(Some(info))
    }

    fn next_record(&mut self, client: &Client) -> Result<Option<DataRecord>> {
        loop {
            self.ask_ahead()?;
            let Some(current) = &mut self.current else { return Ok(None) };
            if current.given == current.info.oids.len() {
                return Ok(None);
            }
            current.given += 1;
            match self.objects.pop(client).transpose()? {
                Some(Some(record)) => return Ok(Some(record)),
                // Packed away.
                Some(None) => {}
                None => return Err(unexpected(&"no request")),
            }
        }
    }

    /// Keeps the windows full.
    fn ask_ahead(&mut self) -> Result<()> {
        while !self.ended && self.infos.len() + self.known.len() < WINDOW_LEN {
            match self.tids.next()? {
                Some(tid) => {
                    let packet = Packet::AskTransactionInformation { tid };
                    self.infos.push(read(tid.partition(self.partitions), packet))?;
                }
                None => self.ended = true,
            }
        }
        // Metadata that is there already is cheap to take; otherwise the objects of the known
        // transactions are enough to keep the connections busy.
        let known_objects: usize = self.known.iter().map(|(info, n)| info.oids.len() - n).sum();
        if known_objects < WINDOW_LEN && self.known.len() < WINDOW_LEN / 2 {
            for _ in 0..(WINDOW_LEN / 2).min(self.infos.len()) {
                self.take_info()?;
            }
        }
        let current = self.current.iter_mut();
        let current = current.map(|current| (&current.info, &mut current.asked));
        let known = self.known.iter_mut().map(|(info, asked)| (&*info, asked));
        'all: for (info, asked) in current.chain(known) {
            while *asked < info.oids.len() {
                if !self.objects.has_room() {
                    break 'all;
                }
                self.objects.push(self.partitions, info.oids[*asked], info.tid)?;
                *asked += 1;
            }
        }
        self.infos.flush();
        self.objects.requests.flush();
        Ok(())
    }

    fn take_info(&mut self) -> Result<()> {
        if let Some(packet) = self.infos.pop_packet() {
            self.known.push_back((packet?.try_into()?, 0));
        }
        Ok(())
    }
}

impl Iterator for Transactions {
    type Item = Result<TransactionRecord>;
    fn next(&mut self) -> Option<Self::Item> {
        let next = |this: &mut Self| {
            let Some(info) = this.next_transaction()? else { return Ok(None) };
            let mut records = Vec::with_capacity(info.oids.len());
            while let Some(record) = this.next_record()? {
                records.push(record);
            }
            Ok(Some(TransactionRecord { info, records }))
        };
        // An error is told once to a `for` loop.
        if self.failed.is_some() { None } else { next(self).transpose() }
    }
}

impl filestorage::Source for Transactions {
    type Error = Error;

    fn next_transaction(&mut self) -> Result<Option<filestorage::TransactionInfo>> {
        let info = Self::next_transaction(self)?;
        Ok(info.map(|info| filestorage::TransactionInfo {
            tid: info.tid,
            status: match info.packed {
                false => filestorage::Status::Finished,
                true => filestorage::Status::Packed,
            },
            user: info.user,
            description: info.description,
            extension: info.extension,
        }))
    }

    fn next_record(&mut self) -> Result<Option<filestorage::Record>> {
        let record = Self::next_record(self)?;
        Ok(record.map(|DataRecord { oid, data, data_txn, .. }| filestorage::Record {
            oid,
            data,
            data_txn,
        }))
    }

    fn progress(&self) -> filestorage::Progress {
        let unit = filestorage::Unit::Tids;
        let Some(walk) = &self.state else {
            return filestorage::Progress { done: 0, total: 0, unit };
        };
        let (first, stop) = (walk.first.get(), walk.tids.stop.get());
        let at = walk.current.as_ref().map_or(first, |current| current.info.tid.get());
        let total = stop.saturating_sub(first);
        let done = if walk.ended && walk.current.is_none() { total } else { at - first };
        filestorage::Progress { done: done.min(total), total, unit }
    }
}
