// SPDX-License-Identifier: GPL-2.0-or-later
//! Walking over transactions, records and oids. Upstream: client/iterator.py, and
//! `transactionLog`, `undoLog`, `oids` of client/app.py.
//!
//! Tids and oids are spread over partitions: each partition gives its own in order, a bit at a time,
//! and they are merged. What belongs to the next tids (metadata, then objects) is asked before the
//! caller wants it, within bounds of number and bytes.
//!
//! These iterators bypass the cache. What is committed while they run does not show up: the end is
//! fixed when the first item is asked for.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Partition, Tid};

use super::client::{Client, unexpected};
use super::pipeline::{Ordered, WINDOW_LEN};
use crate::call::Call;
use crate::compression::Stored;
use crate::error::{Error, Result};
use crate::filestorage;

/// Tids or oids asked from a partition at once.
const CHUNK_LEN: u32 = 200;

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

/// A revision that is current.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CurrentRecord {
    /// The object.
    pub oid: Oid,
    /// Transaction that wrote it.
    pub tid: Tid,
    /// Its data.
    pub data: Bytes,
}

fn read(partition: Partition, packet: Packet) -> Call {
    Call::Read { partition, packet, ttid: None }
}

/// What one partition has in order: tids or oids.
struct Row<T> {
    items: VecDeque<T>,
    /// From where to ask for more; `None` at the end.
    next: Option<T>,
}

/// Merges what the partitions have.
struct Merge<T> {
    rows: Vec<Row<T>>,
    requests: Ordered,
}

impl<T: Copy + Ord> Merge<T> {
    /// `start`: `None` if there is nothing.
    fn new(client: &Client, start: Option<T>) -> Result<Self> {
        let partitions = client.partitions()?;
        let row = || Row { items: VecDeque::new(), next: start };
        let rows = (0..partitions).map(|_| row()).collect();
        Ok(Self { rows, requests: Ordered::new(&client.shared) })
    }

    /// Removes and returns the smallest item.
    fn pop(
        &mut self,
        request: impl Fn(Partition, T) -> Packet,
        answer: impl Fn(Packet) -> Result<(Vec<T>, Option<T>)>,
    ) -> Result<Option<T>> {
        loop {
            let mut asked = VecDeque::new();
            for (partition, row) in (0..).zip(&self.rows) {
                if row.items.is_empty()
                    && let Some(next) = row.next
                {
                    self.requests.push(read(partition, request(partition, next)))?;
                    asked.push_back(partition);
                }
            }
            if asked.is_empty() {
                break;
            }
            while let (Some(partition), Some(packet)) =
                (asked.pop_front(), self.requests.pop_packet())
            {
                let row = &mut self.rows[partition as usize];
                let (items, next) = answer(packet?)?;
                // A storage that does not go on would be asked the same for ever.
                let goes_on = next.is_none_or(|next| row.next.is_none_or(|before| next > before));
                if !goes_on || !items.is_sorted() {
                    return Err(Error::Refused("a storage does not answer in order".into()));
                }
                *row = Row { items: items.into(), next };
            }
        }
        let first = self.rows.iter_mut().filter(|row| !row.items.is_empty());
        let first = first.min_by_key(|row| row.items[0]);
        Ok(first.and_then(|row| row.items.pop_front()))
    }
}

/// Tids in a range, ascending.
struct Tids {
    merge: Merge<Tid>,
    stop: Tid,
}

impl Tids {
    fn new(client: &Client, start: Option<Tid>, stop: Option<Tid>) -> Result<Self> {
        let last = client.last_tid()?;
        let stop = stop.map_or(last, |stop| stop.min(last));
        let start = Some(start.unwrap_or_default()).filter(|start| *start <= stop);
        Ok(Self { merge: Merge::new(client, start)?, stop })
    }

    fn next(&mut self) -> Result<Option<Tid>> {
        let stop = self.stop;
        self.merge.pop(
            |partition, min_tid| Packet::AskTIDsFrom {
                min_tid,
                max_tid: stop,
                length: CHUNK_LEN,
                partition,
            },
            |packet| match packet {
                Packet::AnswerTIDsFrom { tids } => {
                    let more = tids.len() >= CHUNK_LEN as usize;
                    let next = tids.last().filter(|_| more).and_then(|last| last.next());
                    Ok((tids, next.filter(|next| *next <= stop)))
                }
                other => Err(unexpected(&other)),
            },
        )
    }
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
    pub(super) fn new(client: Client, start: Option<Tid>, stop: Option<Tid>) -> Self {
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
                partitions: tids.merge.rows.len() as u32,
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

/// Oids in ascending order.
pub struct Oids {
    client: Client,
    tid: Option<Tid>,
    min_oid: Oid,
    max_oid: Option<Oid>,
    state: Option<(Merge<Oid>, Tid)>,
    ended: bool,
}

impl Oids {
    pub(super) fn new(
        client: Client,
        tid: Option<Tid>,
        min_oid: Oid,
        max_oid: Option<Oid>,
    ) -> Self {
        Self { client, tid, min_oid, max_oid, state: None, ended: false }
    }

    fn next_oid(&mut self) -> Result<Option<Oid>> {
        if self.state.is_none() {
            let tid = match self.tid {
                Some(tid) => tid,
                None => self.client.last_tid()?,
            };
            self.state = Some((Merge::new(&self.client, Some(self.min_oid))?, tid));
        }
        let Some((merge, tid)) = &mut self.state else { return Ok(None) };
        let tid = *tid;
        let max = self.max_oid.unwrap_or(Oid::INVALID);
        let oid = merge.pop(
            |partition, min_oid| Packet::AskOIDsFrom { partition, length: 1000, min_oid, tid },
            |packet| match packet {
                Packet::AnswerOIDsFrom { next_oid, oids } => {
                    Ok((oids, next_oid.filter(|next| *next <= max)))
                }
                other => Err(unexpected(&other)),
            },
        )?;
        Ok(oid.filter(|oid| *oid <= max))
    }
}

impl Iterator for Oids {
    type Item = Result<Oid>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_oid().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Current revisions in order of oid.
pub struct CurrentRecords {
    client: Client,
    oids: Oids,
    before: Option<Tid>,
    requests: Ordered,
    asked: VecDeque<Oid>,
    ended: bool,
}

impl CurrentRecords {
    pub(super) fn new(client: Client, min_oid: Oid) -> Self {
        let requests = Ordered::new(&client.shared);
        let oids = Oids::new(client.clone(), None, min_oid, None);
        Self { client, oids, before: None, requests, asked: VecDeque::new(), ended: false }
    }

    fn next_record(&mut self) -> Result<Option<CurrentRecord>> {
        let before = match self.before {
            Some(before) => before,
            None => {
                let last = self.client.last_tid()?;
                self.oids.tid = Some(last);
                *self.before.insert(last.next().unwrap_or(last))
            }
        };
        loop {
            while self.asked.len() < WINDOW_LEN
                && let Some(oid) = self.oids.next().transpose()?
            {
                let packet = Packet::AskObject { oid, at: None, before: Some(before) };
                self.requests.push(read(self.client.partition_of(oid.get())?, packet))?;
                self.asked.push_back(oid);
            }
            self.requests.flush();
            let Some(oid) = self.asked.pop_front() else { return Ok(None) };
            match self.requests.pop_packet() {
                Some(Ok(Packet::AnswerObject { serial, compression, checksum, data, .. })) => {
                    let stored = Stored { compression, checksum, data };
                    if stored.is_nothing() {
                        continue;
                    }
                    let data = match stored.load() {
                        Ok(data) => data,
                        Err(_) => self.client.load_serial(oid, serial)?.data,
                    };
                    return Ok(Some(CurrentRecord { oid, tid: serial, data }));
                }
                Some(Ok(other)) => return Err(unexpected(&other)),
                // Deleted by a pack meanwhile.
                Some(Err(error)) if error.is_key_error() => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for CurrentRecords {
    type Item = Result<CurrentRecord>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_record().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Transactions, newest first.
///
/// The protocol has positions per partition only: the newest `n` of all are among the newest `n` of
/// each partition. `n` doubles as the caller goes on. (Upstream adds up positions of different
/// storages, which is wrong.)
pub struct UndoLog {
    client: Client,
    /// Tids known so far, the newest last.
    tids: Vec<Tid>,
    /// Number of newest tids that each partition gave; all if `complete`.
    depth: u64,
    complete: bool,
    last_given: Option<Tid>,
    infos: VecDeque<TransactionInfo>,
    ended: bool,
}

impl UndoLog {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            tids: Vec::new(),
            depth: 0,
            complete: false,
            last_given: None,
            infos: VecDeque::new(),
            ended: false,
        }
    }

    fn next_info(&mut self) -> Result<Option<TransactionInfo>> {
        while self.infos.is_empty() {
            if self.tids.is_empty() {
                if self.complete {
                    return Ok(None);
                }
                self.go_deeper()?;
                continue;
            }
            let partitions = self.client.partitions()?;
            let mut requests = Ordered::new(&self.client.shared);
            for _ in 0..WINDOW_LEN.min(self.tids.len()) {
                let Some(tid) = self.tids.pop() else { break };
                self.last_given = Some(tid);
                let packet = Packet::AskTransactionInformation { tid };
                requests.push(read(tid.partition(partitions), packet))?;
            }
            while let Some(packet) = requests.pop_packet() {
                match packet {
                    Ok(packet) => self.infos.push_back(packet.try_into()?),
                    // Packed away meanwhile.
                    Err(Error::TidNotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.infos.pop_front())
    }

    fn go_deeper(&mut self) -> Result<()> {
        let partitions = self.client.partitions()?;
        self.depth = if self.depth == 0 { 32 } else { self.depth * 4 };
        let mut requests = Ordered::new(&self.client.shared);
        for partition in 0..partitions {
            let packet = Packet::AskTIDs { first: 0, last: self.depth, partition };
            requests.push(read(partition, packet))?;
        }
        // A partition that gave all it was asked for may have more below its oldest one.
        let mut safe_from = Tid::ZERO;
        let mut tids = BTreeMap::new();
        while let Some(packet) = requests.pop_packet() {
            let Packet::AnswerTIDs { tids: row } = packet? else { continue };
            if row.len() as u64 >= self.depth {
                let oldest = row.iter().min().copied().unwrap_or_default();
                safe_from = safe_from.max(oldest);
            }
            tids.extend(row.into_iter().map(|tid| (tid, ())));
        }
        self.complete = safe_from == Tid::ZERO;
        let below = |tid: &Tid| self.last_given.is_none_or(|last| *tid < last);
        self.tids = tids.into_keys().filter(|tid| *tid >= safe_from && below(tid)).collect();
        Ok(())
    }
}

impl Iterator for UndoLog {
    type Item = Result<TransactionInfo>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_info().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
