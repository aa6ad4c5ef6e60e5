// SPDX-License-Identifier: GPL-2.0-or-later
//! Reads that wait: for an unlock (`Delayed`), or for previous reads of the same client
//! ([`Reads`]).
//!
//! A client may ask for a lot at once, and be slow to read the answers. What it asked beyond a limit
//! is kept as it was asked, which is little, until previous answers are sent. The limit follows the
//! size of its last answers, so that the answers of one client to come take a bounded amount of
//! memory; small objects are not limited in practice.

use std::collections::{BTreeMap, VecDeque};

use neo_common::engine::{Fault, Io};
use neo_common::protocol::{MsgId, Packet};
use neo_common::types::{ConnId, Oid, Tid};

use crate::app::Storage;
use crate::limits::{
    DEFERRED_READS_HIGH, DELAYED_READS_MAX, READ_BYTES_HIGH, READS_MAX, READS_MIN,
};
use crate::transactions::Transactions;

/// A read that waits for an unlock.
#[derive(Debug)]
pub(crate) struct DelayedRead {
    pub conn: ConnId,
    pub id: MsgId,
    pub packet: Packet,
}

/// Reads that wait for unlocks, of clients and other storages.
#[derive(Debug, Default)]
pub(crate) struct Delayed {
    /// Reads of objects between lock and unlock.
    loads: BTreeMap<Oid, Vec<DelayedRead>>,
    /// Reads up to a tid that is between lock and unlock.
    reads: Vec<(Tid, DelayedRead)>,
    count: usize,
}

impl Delayed {
    /// Lets a read wait for the unlock of an object.
    pub fn add_load(&mut self, oid: Oid, read: DelayedRead) -> Result<(), Fault> {
        self.count()?;
        self.loads.entry(oid).or_default().push(read);
        Ok(())
    }

    /// Lets a read wait for the unlock of all transactions up to this tid.
    pub fn add_read(&mut self, max_tid: Tid, read: DelayedRead) -> Result<(), Fault> {
        self.count()?;
        self.reads.push((max_tid, read));
        Ok(())
    }

    fn count(&mut self) -> Result<(), Fault> {
        if self.count >= DELAYED_READS_MAX {
            return Err(Fault::protocol("too many reads wait for unlocks"));
        }
        self.count += 1;
        Ok(())
    }

    /// Objects that reads wait for.
    pub fn oids(&self) -> impl Iterator<Item = &Oid> {
        self.loads.keys()
    }

    /// Takes the reads that do not have to wait any more: those of these objects, and those up to a
    /// tid that is unlocked.
    pub fn take(&mut self, transactions: &Transactions, loadable: &[Oid]) -> Vec<DelayedRead> {
        let mut ready = Vec::new();
        if !self.loads.is_empty() {
            for oid in loadable {
                ready.extend(self.loads.remove(oid).unwrap_or_default());
            }
        }
        for (max_tid, read) in std::mem::take(&mut self.reads) {
            if transactions.is_locked_tid(max_tid) {
                self.reads.push((max_tid, read));
            } else {
                ready.push(read);
            }
        }
        self.count -= ready.len();
        ready
    }

    /// Checks that no read waits for nothing. For tests.
    pub fn check_invariants(&self, transactions: &Transactions) {
        let loads: usize = self.loads.values().map(Vec::len).sum();
        assert_eq!(self.count, loads + self.reads.len());
        for oid in self.loads.keys() {
            assert!(transactions.is_load_locked(*oid), "reads of {oid} wait for nothing");
        }
        for (tid, _) in &self.reads {
            assert!(transactions.is_locked_tid(*tid), "reads up to {tid} wait for nothing");
        }
    }
}

/// Reads of one client.
#[derive(Debug, Default)]
struct PeerReads {
    in_flight: usize,
    /// Average size of its last answers, in bytes.
    answer_bytes: usize,
    deferred: VecDeque<(MsgId, Packet)>,
    is_paused: bool,
}

impl PeerReads {
    fn limit(&self) -> usize {
        (READ_BYTES_HIGH / self.answer_bytes.max(1)).clamp(READS_MIN, READS_MAX)
    }
}

/// Reads of all clients.
#[derive(Debug, Default)]
pub struct Reads {
    peers: BTreeMap<ConnId, PeerReads>,
}

impl Reads {
    /// Whether a read has to wait.
    pub(crate) fn is_limited(&self, io: &Io<'_, Storage>, conn: ConnId) -> bool {
        self.peers
            .get(&conn)
            .is_some_and(|peer| peer.in_flight >= peer.limit() || !peer.deferred.is_empty())
            || io.is_full(conn)
    }

    /// Lets a read wait.
    pub(crate) fn defer(
        &mut self,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) {
        let peer = self.peers.entry(conn).or_default();
        peer.deferred.push_back((id, packet));
        if peer.deferred.len() > DEFERRED_READS_HIGH {
            peer.is_paused = true;
            io.pause(conn);
        }
    }

    /// A read is on its way.
    pub(crate) fn begin(&mut self, conn: ConnId) {
        self.peers.entry(conn).or_default().in_flight += 1;
    }

    /// A read is answered, with about that many bytes.
    pub(crate) fn end(&mut self, conn: ConnId, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.in_flight = peer.in_flight.saturating_sub(1);
            peer.answer_bytes = (peer.answer_bytes * 7 + bytes) / 8;
        }
    }

    /// Whether reads wait.
    pub(crate) fn has_deferred(&self, conn: ConnId) -> bool {
        self.peers.get(&conn).is_some_and(|peer| !peer.deferred.is_empty())
    }

    /// The next read that does not have to wait any more.
    pub(crate) fn next(
        &mut self,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        is_congested: bool,
    ) -> Option<(MsgId, Packet)> {
        if io.is_full(conn) {
            return None;
        }
        let peer = self.peers.get_mut(&conn).filter(|peer| peer.in_flight < peer.limit())?;
        let next = peer.deferred.pop_front();
        if peer.is_paused && peer.deferred.len() <= DEFERRED_READS_HIGH / 2 && !is_congested {
            peer.is_paused = false;
            io.resume(conn);
        }
        next
    }

    /// The client is gone.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        self.peers.remove(&conn);
    }
}
