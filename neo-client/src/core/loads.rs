// SPDX-License-Identifier: GPL-2.0-or-later
//! Loads through the cache. Upstream: client/app.py, `load`.
//!
//! Between the request and the moment when the data is in the cache, others may commit. The answer
//! of the storage may or may not know about it:
//!
//! 1. A thread asks for the current revision of an object, 5.
//! 2. The storage answers: 5, and nothing newer.
//! 3. Another client commits 7, which changes the object. The master sends the invalidation.
//! 4. The invalidation arrives first. There is nothing to invalidate in the cache yet.
//! 5. The answer arrives. If it went to the cache as it is, 5 would be current for ever.
//!
//! So each load remembers what invalidates its object meanwhile, until its data is in the cache. The
//! first of these tids after the serial is its next serial. A request that the storage handles after
//! the commit waits there until the revision is visible, so nothing is missed.
//!
//! A storage may tell a tid before the master does, in a conflict. To load that revision, what the master
//! says is waited for: it may say that a storage lost its cells before it got the revision, and that storage
//! does not know it yet. (Upstream: `sync` before it resolves a conflict.)
//!
//! Loads of the same object wait for the first of them: they probably want the same.

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::engine::{CallId, Io};
use neo_common::planted;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Tid};

use super::master::MasterOp;
use super::reads::Reader;
use super::{ClientCore, LoadRequest, Op};
use crate::call::{Answer, LoadId, LoadedObject, Record};
use crate::compression::Stored;
use crate::error::Error;

/// Changes of an object that are remembered while it is being loaded.
const INVALIDATED_LEN_MAX: usize = 1000;

/// Whether the master was heard since a load was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    Yes,
    No,
}

/// A load that is not complete.
#[derive(Debug)]
struct Load {
    request: LoadRequest,
    call: CallId,
    /// What the storage said, once it did: serial and next serial.
    answer: Option<(Tid, Option<Tid>)>,
    /// Transactions that changed the object since, oldest first.
    invalidated: Vec<Tid>,
    /// Something may have been missed: the data must not go to the cache.
    discard: bool,
    /// Other loads of the same object.
    waiting: Vec<(CallId, LoadRequest)>,
}

/// All loads that are not complete.
#[derive(Debug, Default)]
pub struct Loads {
    loads: BTreeMap<LoadId, Load>,
    by_oid: BTreeMap<Oid, LoadId>,
}

impl Loads {
    pub(super) fn len(&self) -> usize {
        self.loads.len()
    }

    /// An object was changed.
    pub(super) fn invalidate(&mut self, oid: Oid, tid: Tid) {
        if let Some(load) = self.by_oid.get(&oid).and_then(|id| self.loads.get_mut(id))
            && !planted!(LoadOvertaken)
        {
            if load.invalidated.len() < INVALIDATED_LEN_MAX {
                load.invalidated.push(tid);
            } else {
                load.discard = true;
            }
        }
    }

    /// It is not known what was changed.
    pub(super) fn discard(&mut self) {
        for load in self.loads.values_mut() {
            load.discard = true;
        }
    }
}

impl ClientCore {
    pub(super) fn load(&mut self, io: &mut Io<'_, Self>, call: CallId, request: LoadRequest) {
        self.load_once(io, call, request, Heard::No);
    }

    /// `heard`: whether what the master says was waited for.
    pub(super) fn load_once(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        request: LoadRequest,
        heard: Heard,
    ) {
        let LoadRequest { oid, at, before } = request;
        // Without bound: not something more recent than what was told to the application.
        let before = match (at, before, self.last_tid()) {
            (None, None, None) => {
                let op = self.insert_op(Op::Load(call, request));
                self.resume(io, op);
                return;
            }
            (None, None, Some(last)) => last.next(),
            // Greater ones do not fit in a database.
            _ => before.map(|before| before.min(Tid::MAX)),
        };
        let cached = match (at, before) {
            (Some(at), _) => self.cache.load_at(oid, at),
            (None, Some(before)) => self.cache.load_before(oid, before),
            (None, None) => None,
        };
        if let Some(record) = cached {
            io.reply(call, Ok(Answer::Cached(record)));
            return;
        }
        let Some(partition) = self.partition_of_oid(oid) else {
            let op = self.insert_op(Op::Load(call, request));
            self.resume(io, op);
            return;
        };
        if at > self.received_tid && heard == Heard::No {
            self.master_call(io, MasterOp::Load(call, request));
            return;
        }
        if let Some(id) = self.loads.by_oid.get(&oid)
            && let Some(load) = self.loads.loads.get_mut(id)
        {
            load.waiting.push((call, request));
            return;
        }
        self.cache.count_miss();
        let request = LoadRequest { oid, at, before };
        // The operation and the load have the same id.
        let id = self.next_op;
        let load = Load {
            request,
            call,
            answer: None,
            invalidated: Vec::new(),
            discard: false,
            waiting: Vec::new(),
        };
        self.loads.loads.insert(id, load);
        self.loads.by_oid.insert(oid, id);
        // Upstream's storages want one bound at most.
        let packet = Packet::AskObject { oid, at, before: before.filter(|_| at.is_none()) };
        let op = self.start_read(io, Reader::Load(id), partition, packet, None);
        debug_assert_eq!(op, id);
    }

    /// A storage sent a revision.
    pub(super) fn load_answer(&mut self, io: &mut Io<'_, Self>, id: LoadId, packet: Packet) {
        let Some(load) = self.loads.loads.get_mut(&id) else { return };
        let Packet::AnswerObject {
            oid,
            serial,
            next_serial,
            compression,
            checksum,
            data,
            data_serial,
        } = packet
        else {
            let error = Error::Refused(format!("unexpected {}", packet.name()));
            self.fail_op(io, id, error);
            return;
        };
        let LoadRequest { oid: asked, at, before } = load.request;
        let as_asked = oid == asked
            && at.is_none_or(|at| serial == at)
            && (at.is_some() || before.is_none_or(|before| serial < before))
            && next_serial.is_none_or(|next| next > serial);
        if !as_asked {
            log::error!("a storage sent {oid}@{serial} instead of {asked}@{at:?} or <{before:?}");
            self.reject_cell(io, id);
            return;
        }
        let stored = Stored { compression, checksum, data };
        if stored.is_nothing() {
            self.fail_op(io, id, Error::CreationUndone { oid, serial });
            return;
        }
        load.answer = Some((serial, next_serial));
        let object = LoadedObject { load: id, serial, next_serial, stored, data_serial };
        io.reply(load.call, Ok(Answer::Object(object)));
    }

    /// The application has verified and decompressed the data.
    pub(super) fn loaded(&mut self, io: &mut Io<'_, Self>, call: CallId, id: LoadId, data: Bytes) {
        let Some((serial, next, load)) = self.loads.loads.get(&id).and_then(|load| {
            let (serial, next) = load.answer?;
            Some((serial, next, load))
        }) else {
            io.reply(call, Err(self.unknown_load()));
            return;
        };
        let oid = load.request.oid;
        // If something was missed, the first one that is known may not be the first one.
        let invalidated = load.invalidated.iter().copied().find(|tid| *tid > serial);
        let next = next.or(invalidated.filter(|_| !load.discard));
        // What is newer than the last invalidation will be invalidated later: it is too early.
        let known = self.received_tid.is_some_and(|last| serial <= last);
        if !load.discard && known {
            let data = data.clone(); // a reference, not a copy
            self.cache.store(oid, data, serial, next);
        }
        io.reply(call, Ok(Answer::Cached(Record { data, serial, next_serial: next })));
        self.end_load(io, id);
    }

    /// The data is damaged.
    pub(super) fn rejected(&mut self, io: &mut Io<'_, Self>, call: CallId, id: LoadId) {
        let load = self.loads.loads.get_mut(&id);
        let Some(load) = load.and_then(|load| load.answer.take().map(|_| load)) else {
            io.reply(call, Err(self.unknown_load()));
            return;
        };
        load.call = call;
        self.reject_cell(io, id);
    }

    /// Why a load was forgotten while the application verified its data.
    fn unknown_load(&self) -> Error {
        if self.closed { Error::Closed } else { Error::Truncated }
    }

    pub(super) fn load_failed(&mut self, io: &mut Io<'_, Self>, id: LoadId, error: Error) {
        if let Some(load) = self.loads.loads.get(&id)
            // Otherwise the call is replied already.
            && load.answer.is_none()
        {
            io.reply(load.call, Err(error));
        }
        self.end_load(io, id);
    }

    /// Forgets a load, and goes on with those that waited for it.
    pub(super) fn end_load(&mut self, io: &mut Io<'_, Self>, id: LoadId) {
        self.ops.remove(&id);
        let Some(load) = self.loads.loads.remove(&id) else { return };
        self.loads.by_oid.remove(&load.request.oid);
        for (call, request) in load.waiting {
            if self.closed {
                io.reply(call, Err(Error::Closed));
            } else {
                self.load(io, call, request);
            }
        }
    }
}
