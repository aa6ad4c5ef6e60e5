// SPDX-License-Identifier: GPL-2.0-or-later
//! What the application asks the core, and what the core says.
//!
//! A [`Call`] is a step that the core can do alone, retries included: it never needs the application
//! to go on, except where the reply says so (data to verify, conflicts to resolve, events to
//! deliver). What a ZODB application calls is made of them in `api`.

use std::net::SocketAddr;

use bytes::Bytes;
use neo_common::engine::CallId;
use neo_common::protocol::{PackRequest, Packet};
use neo_common::types::{Oid, Partition, Tid, Ttid};

use crate::compression::Stored;
use crate::error::{Conflict, Error};

/// Names a load whose data the application has to verify.
pub type LoadId = u64;

/// What the application asks.
#[derive(Debug)]
pub enum Call {
    /// Wait until the cluster can be used. Reply: [`Answer::Partitions`].
    Connect,
    /// Number of partitions of the cluster: replied at once except before the first connection.
    /// Reply: [`Answer::Partitions`].
    Partitions,
    /// Load through the cache: the revision `at` a tid, or the last one `before` a tid, or the
    /// current one. Reply: [`Answer::Cached`], or [`Answer::Object`] that is to be verified and
    /// given back with [`Call::Loaded`] or [`Call::Rejected`].
    Load {
        /// The object.
        oid: Oid,
        /// Exact serial.
        at: Option<Tid>,
        /// Exclusive upper bound.
        before: Option<Tid>,
    },
    /// The data of a load, verified and decompressed, for the cache. Replied at once:
    /// [`Answer::Cached`], with the `next_serial` that takes into account what was invalidated
    /// meanwhile.
    Loaded {
        /// The load.
        load: LoadId,
        /// The data.
        data: Bytes,
    },
    /// The data of a load is damaged: try another cell. Reply as for [`Call::Load`].
    Rejected {
        /// The load.
        load: LoadId,
    },
    /// Nobody waits for this load any more. Replied at once.
    Forget {
        /// The load.
        load: LoadId,
    },
    /// Ask a cell that can be read, bypassing the cache. Reply: [`Answer::Packet`], the answer to
    /// the packet.
    Read {
        /// Partition that is read.
        partition: Partition,
        /// The request.
        packet: Packet,
        /// Transaction of which the storages that failed must not be asked, if any.
        ttid: Option<Ttid>,
    },
    /// Reserve an oid. Reply: [`Answer::Oid`].
    NewOid,
    /// Greatest oid given by [`Call::NewOid`]. Replied at once: [`Answer::Oid`].
    LastOid,
    /// Wait until everything that was committed before is delivered. Reply: [`Answer::Tid`], the
    /// last tid.
    Sync,
    /// Ask the master something that has an answer, again after each loss of the connection. Reply:
    /// [`Answer::Packet`].
    Master {
        /// The request.
        packet: Packet,
    },
    /// Forget what is cached.
    ClearCache,
    /// Tell events from now on ([`Answer::Event`]) to [`EVENTS`]. Replied at once.
    Listen,
    /// The event, or [`Answer::Finished`], was dealt with: go on with the next one. Replied at once.
    Delivered,

    /// Begin a transaction, with an imposed tid when importing. Reply: [`Answer::Begun`].
    Begin {
        /// Tid that the transaction shall have.
        tid: Option<Tid>,
    },
    /// Store an object. Reply: [`Answer::Done`] as soon as there is room for more data, or
    /// [`Answer::Conflicts`].
    Store {
        /// The transaction.
        ttid: Ttid,
        /// The object.
        oid: Oid,
        /// Serial of the revision on which it is based; ZERO for a new object.
        serial: Tid,
        /// What is sent.
        stored: Stored,
        /// What is kept, for the cache and for conflicts; `None` for a deletion.
        data: Option<Bytes>,
        /// Revision whose data is used again.
        data_serial: Option<Tid>,
        /// Serial of the conflict that this resolves.
        resolves: Option<Tid>,
    },
    /// Check that a serial is current, until the end of the transaction. Reply as for
    /// [`Call::Store`].
    CheckSerial {
        /// The transaction.
        ttid: Ttid,
        /// The object.
        oid: Oid,
        /// Its expected serial.
        serial: Tid,
    },
    /// Make the transaction contain a pack order. Replied at once.
    SetPack {
        /// The transaction.
        ttid: Ttid,
        /// Oids (all if `None`) and pack tid.
        pack: PackRequest,
    },
    /// Keep all data of the transaction, whatever it takes, because it may be needed again. (But
    /// not what is a copy of an earlier revision.) Replied at once.
    KeepData {
        /// The transaction.
        ttid: Ttid,
    },
    /// Data that this transaction stored. Replied at once: [`Answer::Data`] or [`Answer::CopyOf`].
    StoredData {
        /// The transaction.
        ttid: Ttid,
        /// The object.
        oid: Oid,
    },
    /// Wait until all stores and checks are answered. Reply: [`Answer::Done`] or
    /// [`Answer::Conflicts`].
    WaitStores {
        /// The transaction.
        ttid: Ttid,
    },
    /// Vote, if all is stored. Reply: [`Answer::Resolved`]. Otherwise like [`Call::WaitStores`]: to be
    /// called again, because a lock may be given back (to avoid a deadlock) until the vote begins.
    Vote {
        /// The transaction.
        ttid: Ttid,
        /// Who.
        user: Bytes,
        /// What.
        description: Bytes,
        /// Pickled metadata.
        extension: Bytes,
    },
    /// Commit. Reply: [`Answer::Finished`]; nobody sees the new last tid, and no later invalidation
    /// is told, before [`Call::Delivered`].
    Finish {
        /// The transaction.
        ttid: Ttid,
    },
    /// Abort. Replied at once.
    Abort {
        /// The transaction.
        ttid: Ttid,
    },
    /// Fail all calls and close all connections. Replied at once.
    Close,
}

/// The id of what is told without being asked.
pub const EVENTS: CallId = CallId(u64::MAX);

/// Reply to a call.
pub type Reply = Result<Answer, Error>;

/// What the core says.
#[derive(Debug)]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// Number of partitions of the cluster.
    Partitions(u32),
    /// What the cache has, or a verified load.
    Cached(Record),
    /// A revision as it is stored.
    Object(LoadedObject),
    /// What a peer answered.
    Packet(Packet),
    /// An oid.
    Oid(Oid),
    /// A tid.
    Tid(Option<Tid>),
    /// A transaction began.
    Begun(Ttid),
    /// Conflicts to resolve: each with a [`Call::Store`] that tells which serial it resolves.
    Conflicts(Vec<Conflict>),
    /// The vote succeeded; the objects whose conflicts were resolved.
    Resolved(Vec<Oid>),
    /// Data that was stored.
    Data(Option<Bytes>),
    /// The data that was stored is not kept, but that revision has the same.
    CopyOf(Tid),
    /// The transaction is committed with this tid.
    Finished(Tid),
    /// All masters that are known, to be saved: it is not followed by anything.
    Masters(Vec<SocketAddr>),
    /// Something to be told; to be followed by [`Call::Delivered`].
    Event(Event),
}

/// What is told to a [`crate::Listener`], in order of commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Another client changed these objects.
    Invalidate {
        /// The transaction.
        tid: Tid,
        /// Objects that it changed.
        oids: Vec<Oid>,
    },
    /// It is not known what changed since the last event.
    InvalidateCache,
    /// The connection to the primary master was lost.
    Disconnected,
}

/// One revision of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Decompressed data.
    pub data: Bytes,
    /// Transaction that wrote it.
    pub serial: Tid,
    /// Next transaction that changed the object; `None` if there was none yet.
    pub next_serial: Option<Tid>,
}

/// One revision of an object, as a storage sent it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadedObject {
    /// To tell what became of it.
    pub load: LoadId,
    /// Transaction that wrote it.
    pub serial: Tid,
    /// Next transaction that changed the object, when the storage looked.
    pub next_serial: Option<Tid>,
    /// The data.
    pub stored: Stored,
    /// Earlier revision that has the same data, if it was an undo.
    pub data_serial: Option<Tid>,
}
