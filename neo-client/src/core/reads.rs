// SPDX-License-Identifier: GPL-2.0-or-later
//! Reading from any cell that can be read. Upstream: client/app.py, `_askStorageForRead`.
//!
//! A random cell is asked, preferably of a storage to which the connection did not fail recently.
//! If it cannot answer, the next one is. When all were tried in vain, the master is pinged, because
//! the answer comes behind all changes of nodes and of the partition table that it has sent; then
//! all are tried again. The first such rounds follow each other at once, the next ones with growing
//! delays. Storages that cannot be reached although the master says that they run are given up
//! after [`READ_DELAY_MAX`]; a partition without any storage is waited for, since the master
//! disconnects clients when the cluster is not operational.

use std::collections::BTreeSet;
use std::time::Duration;

use neo_common::engine::{CallId, Io, UNFINISHED};
use neo_common::planted;
use neo_common::protocol::{ErrorCode, Packet};
use neo_common::types::{NodeId, Oid, Partition, Ttid};

use super::storages::StorageLink;
use super::{ClientCore, Op, OpId, Ticket, Timer};
use crate::call::{Answer, LoadId};
use crate::error::Error;

/// How long storages of a partition may fail before a read does.
pub const READ_DELAY_MAX: Duration = Duration::from_secs(30);

/// Rounds without delay.
const FAST_ROUNDS: u32 = 2;
const ROUND_DELAY_MIN: Duration = Duration::from_millis(10);
const ROUND_DELAY_MAX: Duration = Duration::from_secs(1);

/// Who wants the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reader {
    /// The application, as it is.
    Call(CallId),
    /// A load through the cache.
    Load(LoadId),
    /// A commit whose outcome the master does not know.
    Outcome(Ttid),
}

/// A read that is not answered yet.
#[derive(Debug)]
pub struct Read {
    pub(super) reader: Reader,
    partition: Partition,
    packet: Packet,
    /// Transaction whose lost storages may have missed what it stored.
    ttid: Option<Ttid>,
    /// Storage that is asked.
    asked: Option<NodeId>,
    /// Storages that could not answer in this round.
    tried: BTreeSet<NodeId>,
    /// Storages whose answer was damaged.
    rejected: BTreeSet<NodeId>,
    rounds: u32,
    /// When a storage failed for the first time.
    failing_since: Option<Duration>,
}

impl Read {
    /// The storages that failed may do better once the master is back.
    pub(super) fn start_again(&mut self) {
        self.tried.clear();
        self.rounds = 0;
        self.failing_since = None;
    }

    /// Whether the outcome of a commit depends on it.
    pub(super) fn is_outcome(&self) -> bool {
        matches!(self.reader, Reader::Outcome(_))
    }
}

impl ClientCore {
    pub(super) fn read(
        &mut self,
        io: &mut Io<'_, Self>,
        call: CallId,
        partition: Partition,
        packet: Packet,
        ttid: Option<Ttid>,
    ) {
        self.start_read(io, Reader::Call(call), partition, packet, ttid);
    }

    pub(super) fn start_read(
        &mut self,
        io: &mut Io<'_, Self>,
        reader: Reader,
        partition: Partition,
        packet: Packet,
        ttid: Option<Ttid>,
    ) -> OpId {
        let id = self.insert_op(Op::Read(Read {
            reader,
            partition,
            packet,
            ttid,
            asked: None,
            tried: BTreeSet::new(),
            rejected: BTreeSet::new(),
            rounds: 0,
            failing_since: None,
        }));
        self.resume(io, id);
        id
    }

    /// Asks the next cell.
    pub(super) fn try_read(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        if self.ready_conn().is_none() {
            self.park(io, id);
            return;
        }
        let Some(Op::Read(read)) = self.ops.get(&id) else { return };
        let Some(nid) = self.choose_cell(io, read) else {
            self.no_cell(io, id);
            return;
        };
        let packet = read.packet.clone();
        if let Some(Op::Read(read)) = self.ops.get_mut(&id) {
            read.asked = Some(nid);
        }
        if let Some(StorageLink::Ready { conn }) = self.storages.get(&nid) {
            // `false` if it is being closed: then it is told as lost soon, but not for this read.
            if !io.ask(*conn, packet, Ticket::Read(id)) {
                self.cell_failed(io, id, nid);
            }
            return;
        }
        match self.storage_link(io, nid) {
            Some(link) => link.push_read(id),
            None => self.cell_failed(io, id, nid),
        }
    }

    /// A random readable cell among those that can be asked; first those that did not fail.
    fn choose_cell(&self, io: &mut Io<'_, Self>, read: &Read) -> Option<NodeId> {
        let now = io.now().monotonic;
        let transaction = read.ttid.and_then(|ttid| self.transactions.get(&ttid));
        let all = planted!(OutOfDateReadable).then(|| self.table.writable(read.partition));
        let readable = self.table.readable(read.partition);
        let candidates = readable.chain(all.into_iter().flatten()).filter(|nid| {
            !read.tried.contains(nid)
                && !read.rejected.contains(nid)
                && self.is_running(*nid)
                && !transaction.is_some_and(|transaction| transaction.is_lost(*nid))
        });
        let (mut good, mut bad) = (0, None::<(Duration, NodeId)>);
        let mut chosen = None;
        for nid in candidates {
            match self.failures.get(&nid).filter(|until| **until > now) {
                // Each good one replaces the choice with the right probability.
                None => {
                    good += 1;
                    if good == 1 || io.prng().below(good) == 0 {
                        chosen = Some(nid);
                    }
                }
                // Otherwise the one that failed the longest ago.
                Some(until) => {
                    if bad.is_none_or(|(at, _)| *until < at) {
                        bad = Some((*until, nid));
                    }
                }
            }
        }
        chosen.or(bad.map(|(_, nid)| nid))
    }

    /// What is asked.
    pub(super) fn read_packet(&self, id: OpId) -> Option<Packet> {
        match self.ops.get(&id) {
            Some(Op::Read(read)) => Some(read.packet.clone()),
            _ => None,
        }
    }

    /// No cell is left to be asked.
    fn no_cell(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        let Some(Op::Read(read)) = self.ops.get_mut(&id) else { return };
        let rejected = |nid| read.rejected.contains(&nid);
        let all_damaged =
            !read.rejected.is_empty() && self.table.readable(read.partition).all(rejected);
        let given_up = read
            .failing_since
            .is_some_and(|since| io.now().monotonic - since > READ_DELAY_MAX && !read.is_outcome());
        if all_damaged || given_up {
            let error = Error::NoStorage(read.partition);
            self.fail_op(io, id, error);
            return;
        }
        read.asked = None;
        read.rounds += 1;
        read.tried.clear();
        if read.rounds <= FAST_ROUNDS {
            self.next_round(io, id);
        } else {
            let doublings = (read.rounds - FAST_ROUNDS - 1).min(10);
            let delay = ROUND_DELAY_MIN.saturating_mul(1 << doublings).min(ROUND_DELAY_MAX);
            io.set_timer(Timer::Retry(id), delay);
        }
    }

    /// Pings the master before a read is tried again.
    pub(super) fn next_round(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        if !self.ops.contains_key(&id) {
            return;
        }
        let asked =
            self.ready_conn().is_some_and(|conn| io.ask(conn, Packet::Ping {}, Ticket::Round(id)));
        if !asked {
            self.park(io, id);
        }
    }

    /// All that the master sent before is known.
    pub(crate) fn round_over(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        self.try_read(io, id);
    }

    /// A storage could not be asked, or is gone.
    pub(super) fn cell_failed(&mut self, io: &mut Io<'_, Self>, id: OpId, nid: NodeId) {
        let now = io.now().monotonic;
        if let Some(Op::Read(read)) = self.ops.get_mut(&id) {
            read.failing_since.get_or_insert(now);
            read.tried.insert(nid);
            self.try_read(io, id);
        }
    }

    /// The answer to a read.
    pub(crate) fn read_answer(&mut self, io: &mut Io<'_, Self>, id: OpId, packet: Packet) {
        let Some(Op::Read(read)) = self.ops.get(&id) else { return };
        match (read.reader, packet) {
            (Reader::Call(call), packet) => {
                self.ops.remove(&id);
                io.reply(call, Ok(Answer::Packet(packet)));
            }
            // The operation stays as long as the data may turn out to be damaged.
            (Reader::Load(load), packet) => self.load_answer(io, load, packet),
            (Reader::Outcome(ttid), Packet::AnswerFinalTID { tid }) => {
                self.ops.remove(&id);
                self.outcome(io, ttid, tid);
            }
            (Reader::Outcome(ttid), packet) => {
                self.ops.remove(&id);
                let error = Error::Refused(format!("unexpected {}", packet.name()));
                self.outcome_failed(io, ttid, error);
            }
        }
    }

    /// What a cell answered cannot be used: another one is asked.
    pub(super) fn reject_cell(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        if let Some(Op::Read(read)) = self.ops.get_mut(&id) {
            let asked = read.asked.take();
            read.rejected.extend(asked);
            self.try_read(io, id);
        }
    }

    /// A storage refused a read.
    pub(crate) fn read_error(
        &mut self,
        io: &mut Io<'_, Self>,
        id: OpId,
        code: ErrorCode,
        message: String,
    ) {
        let Some(Op::Read(read)) = self.ops.get_mut(&id) else { return };
        let oid = match &read.packet {
            Packet::AskObject { oid, .. } | Packet::AskObjectHistory { oid, .. } => *oid,
            // The message names the object.
            _ => u64::from_str_radix(&message, 16).map_or(Oid::ZERO, Oid::new),
        };
        let error = match code {
            // To who does not wait for its end, it is not committed.
            ErrorCode::NonReadableCell
                if message == UNFINISHED
                    && !planted!(OutcomeAwaited)
                    && matches!(
                        (read.reader, &read.packet),
                        (Reader::Call(_), Packet::AskFinalTID { .. })
                    ) =>
            {
                self.read_answer(io, id, Packet::AnswerFinalTID { tid: None });
                return;
            }
            // The partition table is about to change: this is not a failure of the storage.
            ErrorCode::NonReadableCell => {
                log::info!("non readable cell");
                let asked = read.asked.take();
                read.tried.extend(asked);
                self.try_read(io, id);
                return;
            }
            ErrorCode::NotReady => {
                if let Some(nid) = read.asked.take() {
                    self.cell_failed(io, id, nid);
                }
                return;
            }
            ErrorCode::OidNotFound => Error::OidNotFound(oid),
            ErrorCode::OidDoesNotExist => Error::OidDoesNotExist(oid),
            ErrorCode::TidNotFound => match &read.packet {
                Packet::AskTransactionInformation { tid } => Error::TidNotFound(*tid),
                _ => Error::Refused(message),
            },
            ErrorCode::ReadOnlyAccess => Error::ReadOnly(message),
            _ => Error::Refused(message),
        };
        self.fail_op(io, id, error);
    }

    /// A read ends without an answer.
    pub(super) fn read_failed(&mut self, io: &mut Io<'_, Self>, read: Read, error: Error) {
        match read.reader {
            Reader::Call(call) => io.reply(call, Err(error)),
            Reader::Load(load) => self.load_failed(io, load, error),
            Reader::Outcome(ttid) => self.outcome_failed(io, ttid, error),
        }
    }
}
