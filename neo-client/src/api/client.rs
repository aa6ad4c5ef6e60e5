// SPDX-License-Identifier: GPL-2.0-or-later
//! The client, as an application sees it. Upstream: client/app.py, `Application`.

use std::sync::Arc;

use bytes::Bytes;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Partition, Tid, Ttid};

use super::iterator::{CurrentRecords, Oids, TransactionInfo, Transactions, UndoLog};
use super::pipeline::{WINDOW_LEN, load_many};
use super::transaction::{Metadata, NoResolution, Resolver, Transaction};
use crate::call::{Answer, Call, LoadId, LoadedObject, Record};
use crate::compression::Damaged;
use crate::driver::Shared;
use crate::error::{Error, Result};
use crate::options::Options;

/// Description of the transactions that carry a pack order. Upstream: client/app.py,
/// `TXN_PACK_DESC`.
const PACK_DESCRIPTION: &[u8] = b"IStorage.pack";

/// Who wants to know what other clients commit: a `ZODB.DB`.
///
/// Called from the background thread of the client, one event at a time, in order of commit, with no
/// lock held. The next event, and the new [`Client::last_tid`], wait until it returns.
pub trait Listener: Send + Sync {
    /// Another client committed `tid`, which changed these objects.
    fn invalidate(&self, tid: Tid, oids: &[Oid]);
    /// It is not known what changed: forget everything that is cached (after a reconnection).
    fn invalidate_cache(&self);
    /// The connection to the primary master was lost. The client reconnects by itself.
    fn disconnected(&self) {}
}

/// A client of one cluster. Clones are the same client.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    _closer: Arc<Closer>,
}

/// Closes the client when its last clone is dropped. (The background thread shares the rest.)
struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Client {
    /// Opens a client. The connection is made by the first call that needs it, or
    /// [`Client::connect`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if the options make no sense; [`Error::Foreign`] if the list of masters
    /// cannot be read, or the operating system refuses what is needed.
    pub fn open(options: Options) -> Result<Self> {
        let shared = Shared::open(options)?;
        Ok(Self { _closer: Arc::new(Closer(Arc::clone(&shared))), shared })
    }

    /// How it was opened.
    pub fn options(&self) -> &Options {
        self.shared.options()
    }

    /// Waits until the cluster can be used; returns its number of partitions.
    ///
    /// # Errors
    /// [`Error::Unreachable`] after [`Options::connect_timeout`]; [`Error::Refused`] if there is no
    /// such cluster there; [`Error::ReadOnly`] if it only accepts read-only clients.
    pub fn connect(&self) -> Result<u32> {
        match self.shared.call(Call::Connect)? {
            Answer::Partitions(partitions) => Ok(partitions),
            other => Err(unexpected(&other)),
        }
    }

    /// Closes all connections. All calls that wait, and all next ones, fail with
    /// [`Error::Closed`]. Transactions that were not finished are aborted by the cluster. Waits for
    /// the listener to return, unless it is the listener that closes. Dropping the last clone closes
    /// too.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Tells a listener what other clients commit, from now on. There is one at most: a
    /// second one replaces the first.
    pub fn set_listener(&self, listener: Arc<dyn Listener>) {
        self.shared.set_listener(listener);
    }

    /// Lets a function decide whether threads that wait go on: it is called by each thread that has
    /// waited for a while, several times per second, and when a signal interrupts it. If it fails,
    /// the call fails with its error. (So that Python can be interrupted.) A commit is waited for
    /// whatever it says.
    pub fn set_interrupt(&self, interrupt: Arc<dyn Fn() -> Result<()> + Send + Sync>) {
        self.shared.set_interrupt(interrupt);
    }

    // Reading.

    /// Loads the current revision, as of the last tid.
    ///
    /// # Errors
    /// See [`Error`]; those that [`Error::is_key_error`] tells mean that there is no data.
    pub fn load(&self, oid: Oid) -> Result<Record> {
        self.load_with(oid, None, None)
    }

    /// Loads the last revision before a tid (exclusive). `None`: the object did not exist yet.
    ///
    /// # Errors
    /// [`Error::OidDoesNotExist`] if there is no revision at all, [`Error::CreationUndone`] if the
    /// revision is a deletion, and others.
    pub fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Record>> {
        match self.load_with(oid, None, Some(before)) {
            Err(Error::OidNotFound(_)) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Like [`Client::load_before`], for who does not need the next serial.
    ///
    /// # Errors
    /// Those of [`Client::load_before`].
    pub fn load_before_ex(&self, oid: Oid, before: Tid) -> Result<Option<(Bytes, Tid)>> {
        Ok(self.load_before(oid, before)?.map(|record| (record.data, record.serial)))
    }

    /// Loads the revision that a transaction wrote.
    ///
    /// # Errors
    /// [`Error::OidNotFound`] if it wrote none.
    pub fn load_serial(&self, oid: Oid, serial: Tid) -> Result<Record> {
        self.load_with(oid, Some(serial), None)
    }

    /// What the cache has, without waiting for anything: neither for the network nor for a lock.
    /// `None`: use [`Client::load`] or [`Client::load_before`].
    pub fn try_cached(&self, oid: Oid, before: Option<Tid>) -> Option<Record> {
        self.shared.try_cached(oid, before)
    }

    /// Loads objects into the cache, many at once. Objects that do not exist are ignored.
    ///
    /// # Errors
    /// If a storage cannot be asked.
    pub fn prefetch(&self, oids: &[Oid], before: Tid) -> Result<()> {
        self.prefetch_with(oids, before, WINDOW_LEN)
    }

    /// Like [`Client::prefetch`], with at most `window` requests under way.
    ///
    /// # Errors
    /// Those of [`Client::prefetch`].
    pub fn prefetch_with(&self, oids: &[Oid], before: Tid, window: usize) -> Result<()> {
        let loads = oids.iter().map(|oid| (*oid, None, Some(before)));
        load_many(&self.shared, window, loads, |_, result| match result {
            Err(error) if !error.is_key_error() => Err(error),
            _ => Ok(()),
        })
    }

    fn load_with(&self, oid: Oid, at: Option<Tid>, before: Option<Tid>) -> Result<Record> {
        let mut answer = self.shared.load(oid, at, before)?;
        // First damaged revision, in case all are.
        let mut damaged = None;
        loop {
            let object = match answer {
                Answer::Cached(record) => return Ok(record),
                Answer::Object(object) => object,
                other => return Err(unexpected(&other)),
            };
            match verify(oid, &object) {
                Ok(data) => return self.loaded(object.load, data),
                Err(Damaged) => {
                    log::error!("wrong checksum for {oid}@{}", object.serial);
                    let load = object.load;
                    let first = damaged.get_or_insert(object);
                    answer = match self.shared.call(Call::Rejected { load }) {
                        Ok(answer) => answer,
                        Err(Error::NoStorage(_)) => return self.rescue(oid, first),
                        Err(error) => return Err(error),
                    };
                }
            }
        }
    }

    fn loaded(&self, load: LoadId, data: Bytes) -> Result<Record> {
        match self.shared.call(Call::Loaded { load, data })? {
            Answer::Cached(record) => Ok(record),
            other => Err(unexpected(&other)),
        }
    }

    /// All cells have damaged data.
    fn rescue(&self, oid: Oid, object: &LoadedObject) -> Result<Record> {
        if !self.options().ignore_wrong_checksum {
            return Err(Error::WrongChecksum { oid, serial: object.serial });
        }
        Ok(Record {
            data: object.stored.decompress().unwrap_or_default(),
            serial: object.serial,
            next_serial: object.next_serial,
        })
    }

    /// Tids and stored sizes of the last revisions of an object, newest first.
    ///
    /// # Errors
    /// [`Error::OidNotFound`] if there is none.
    pub fn history(&self, oid: Oid, count: u64) -> Result<Vec<(Tid, u64)>> {
        let partition = self.partition_of(oid.get())?;
        let packet = Packet::AskObjectHistory { oid, first: 0, last: count };
        match self.read(partition, packet)? {
            Packet::AnswerObjectHistory { history, .. } => Ok(history),
            other => Err(unexpected(&other)),
        }
    }

    /// Metadata of a transaction.
    ///
    /// # Errors
    /// [`Error::TidNotFound`] if it does not exist.
    pub fn transaction_info(&self, tid: Tid) -> Result<TransactionInfo> {
        let partition = self.partition_of(tid.get())?;
        self.read(partition, Packet::AskTransactionInformation { tid })?.try_into()
    }

    /// The tid of a transaction, if it is committed: of any client, at any time. Meanwhile, and if it
    /// was aborted, `None`.
    ///
    /// # Errors
    /// If a storage cannot be asked.
    pub fn final_tid(&self, ttid: Ttid) -> Result<Option<Tid>> {
        let partition = self.partition_of(ttid.get())?;
        match self.read(partition, Packet::AskFinalTID { ttid })? {
            Packet::AnswerFinalTID { tid } => Ok(tid),
            other => Err(unexpected(&other)),
        }
    }

    /// Transactions from `start` to `stop`, both included, in order, with their records. By default
    /// from the first one to the last tid of now.
    pub fn iterate(&self, start: Option<Tid>, stop: Option<Tid>) -> Transactions {
        Transactions::new(self.clone(), start, stop)
    }

    /// Transactions, newest first. (Filters are the caller's, so that positions count what passes.)
    pub fn undo_log(&self) -> UndoLog {
        UndoLog::new(self.clone())
    }

    /// Oids of objects that exist at a tid (default: now), in ascending order.
    pub fn oids(&self, tid: Option<Tid>, min_oid: Oid, max_oid: Option<Oid>) -> Oids {
        Oids::new(self.clone(), tid, min_oid, max_oid)
    }

    /// Current revisions of all objects from an oid on, in order of oid, as of the last tid of now.
    pub fn current_records(&self, min_oid: Oid) -> CurrentRecords {
        CurrentRecords::new(self.clone(), min_oid)
    }

    // Ids.

    /// Reserves an oid.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], or the connection's.
    pub fn new_oid(&self) -> Result<Oid> {
        match self.shared.call(Call::NewOid)? {
            Answer::Oid(oid) => Ok(oid),
            other => Err(unexpected(&other)),
        }
    }

    /// The greatest oid that [`Client::new_oid`] returned; ZERO if none: upstream's idea of the
    /// number of objects.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn last_oid(&self) -> Result<Oid> {
        match self.shared.call(Call::LastOid)? {
            Answer::Oid(oid) => Ok(oid),
            other => Err(unexpected(&other)),
        }
    }

    /// The last transaction that was delivered to this client. Only waits (for the connection) as
    /// long as it never was connected.
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    pub fn last_tid(&self) -> Result<Tid> {
        loop {
            if let Some(tid) = self.shared.last_tid()? {
                return Ok(tid);
            }
            self.connect()?;
        }
    }

    /// Like [`Client::last_tid`], but without waiting: `None` before the first connection, and after a
    /// fork.
    pub fn known_tid(&self) -> Option<Tid> {
        self.shared.last_tid().ok().flatten()
    }

    /// Waits until everything that was committed before this call is delivered; returns the last
    /// tid.
    ///
    /// # Errors
    /// The connection's.
    pub fn sync(&self) -> Result<Tid> {
        match self.shared.call(Call::Sync)? {
            Answer::Tid(tid) => Ok(tid.unwrap_or(Tid::ZERO)),
            other => Err(unexpected(&other)),
        }
    }

    // Writing.

    /// Begins a transaction. With `tid`, it will have that tid, which must be greater than the
    /// last one, and there must be no other transaction meanwhile.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Refused`], or the connection's.
    pub fn begin(&self, tid: Option<Tid>, resolver: Box<dyn Resolver>) -> Result<Transaction> {
        Transaction::begin(self.clone(), tid, resolver)
    }

    /// Orders to remove revisions that are not current at `tid`, of the given objects only or of
    /// all; waits for the end of the pack if `wait`. Returns the id of the order; `None` if there is
    /// nothing to do.
    ///
    /// # Errors
    /// Those of a transaction.
    pub fn pack(&self, tid: Tid, oids: Option<Vec<Oid>>, wait: bool) -> Result<Option<Tid>> {
        // The master accepts no pack tid in the future.
        let tid = tid.min(self.last_tid()?);
        if tid == Tid::ZERO {
            return Ok(None);
        }
        let mut transaction = self.begin(None, Box::new(NoResolution))?;
        transaction.set_pack(oids, tid)?;
        let description = Bytes::from_static(PACK_DESCRIPTION);
        transaction.vote(&Metadata { description, ..Metadata::default() })?;
        let id = transaction.finish(|_| {})?;
        if wait {
            self.wait_for_pack(id)?;
        }
        Ok(Some(id))
    }

    /// Waits until a pack is completed. What is cached of older revisions is forgotten.
    ///
    /// # Errors
    /// The connection's.
    pub fn wait_for_pack(&self, id: Tid) -> Result<()> {
        self.shared.call(Call::Master { packet: Packet::WaitForPack { tid: id } })?;
        self.shared.call(Call::ClearCache)?;
        Ok(())
    }

    // For the other modules of the interface.

    /// Number of partitions. Only waits before the first connection.
    pub(super) fn partitions(&self) -> Result<u32> {
        match self.shared.call(Call::Partitions)? {
            Answer::Partitions(partitions) => Ok(partitions),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn partition_of(&self, number: u64) -> Result<Partition> {
        let partitions = self.partitions()?;
        Ok((number % u64::from(partitions)) as Partition)
    }

    pub(super) fn read(&self, partition: Partition, packet: Packet) -> Result<Packet> {
        match self.shared.call(Call::Read { partition, packet, ttid: None })? {
            Answer::Packet(packet) => Ok(packet),
            other => Err(unexpected(&other)),
        }
    }
}

/// Verified data of an object.
pub(super) fn verify(_oid: Oid, object: &LoadedObject) -> Result<Bytes, Damaged> {
    object.stored.load()
}

/// The core gives each call its own kind of answer: anything else is a defect of this crate. It is
/// reported rather than ending the application.
pub(super) fn unexpected(what: &dyn std::fmt::Debug) -> Error {
    log::error!("unexpected answer: {what:?}");
    Error::Refused("unexpected answer".into())
}
