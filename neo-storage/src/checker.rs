// SPDX-License-Identifier: GPL-2.0-or-later
//! Checking that the cells of a partition are equal. Upstream: storage/checker.py.
//!
//! The master chooses a node, which compares digests of ranges: first of transactions, then of
//! object revisions. All nodes with a readable cell take part, this one included, and maybe a node
//! of the upstream cluster. Those that differ from the reference (or all, if there is none) are told
//! to the master.
//!
//! As upstream's, it does not know about packs: cells that are not packed up to the same order
//! differ.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use neo_common::engine::{Fault, Handled, Io};
use neo_common::node::{Node, NodeKey};
use neo_common::protocol::{CellState, Packet};
use neo_common::types::{ConnId, NodeId, Oid, Partition, Tid};

use crate::app::{Shared, Storage, Ticket, done};
use crate::database::{Done, Read, SerialDigest, TidDigest};
use crate::limits::{CHECK_COUNT, CHECK_QUEUE_LEN_MAX};
use crate::operation::{OperationAfter, read_for};
use crate::replicator::{self, Replicator};
use crate::transactions::Transactions;

/// What to do when the own digest is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckerAfter {
    request: u64,
}

/// A partition to check.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Check {
    partition: Partition,
    /// Name of the cluster (empty: this one) and address of the reference, if there is one.
    source: (String, Option<SocketAddr>),
    min_tid: Tid,
    max_tid: Tid,
}

/// Digest of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Digest {
    Tids(TidDigest),
    Serials(SerialDigest),
}

/// One of the nodes that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The connection is not ready.
    Connecting,
    /// Nothing is asked.
    Idle,
    /// Digest of the current range is asked.
    Asked(u64),
    /// Digest of the current range.
    Answered(Digest),
}

/// A node that is compared; `None` is this one.
type Peer = Option<ConnId>;

/// The partition that is being checked.
#[derive(Debug)]
struct Current {
    check: Check,
    /// The node that is right.
    reference: Option<Peer>,
    peers: BTreeMap<Peer, State>,
    /// Begins once what is being committed is visible.
    is_waiting: bool,
    next_tid: Tid,
    /// `None`: transactions are being checked.
    next_oid: Option<Oid>,
}

/// State of checks.
#[derive(Debug, Default)]
pub struct Checker {
    queue: VecDeque<Check>,
    current: Option<Current>,
    request: u64,
}

impl Checker {
    /// The master orders to check a partition.
    ///
    /// # Errors
    /// If it orders too many checks.
    pub fn check(
        &mut self,
        partition: Partition,
        source: (String, Option<SocketAddr>),
        min_tid: Tid,
        max_tid: Tid,
    ) -> Handled {
        if self.queue.len() >= CHECK_QUEUE_LEN_MAX {
            return Err(Fault::protocol("too many partitions to check"));
        }
        self.queue.push_back(Check { partition, source, min_tid, max_tid });
        Ok(())
    }

    /// Whether this connection is used to check.
    pub(crate) fn uses(&self, conn: ConnId) -> bool {
        self.current.as_ref().is_some_and(|current| current.peers.contains_key(&Some(conn)))
    }

    /// Begins what can be begun.
    pub(crate) fn poll(
        &mut self,
        replicator: &mut Replicator,
        transactions: &Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
    ) {
        if self.current.is_none() {
            self.next_partition(replicator, shared, io);
        }
        if let Some(current) = &mut self.current
            && current.is_waiting
            && !transactions.is_locked_tid(current.check.max_tid)
        {
            current.is_waiting = false;
            log::debug!("check partition {}", current.check.partition);
            self.ask_range(shared, io);
        }
    }

    /// Chooses the next partition that can be checked. Upstream: `_nextPartition`.
    fn next_partition(
        &mut self,
        replicator: &mut Replicator,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
    ) {
        let mut unused: BTreeSet<ConnId> = BTreeSet::new();
        if let Some(current) = self.current.take() {
            unused.extend(current.peers.into_keys().flatten());
        }
        while let Some(check) = self.queue.pop_front() {
            match prepare(replicator, shared, io, &check) {
                Ok((peers, reference)) => {
                    unused.retain(|conn| !peers.contains_key(&Some(*conn)));
                    self.current = Some(Current {
                        next_tid: check.min_tid,
                        next_oid: None,
                        is_waiting: true,
                        reference,
                        peers,
                        check,
                    });
                    break;
                }
                Err((why, conns)) => {
                    log::error!("failed to start checking partition {} ({why})", check.partition);
                    unused.extend(conns);
                }
            }
        }
        for conn in unused.into_iter().filter(|conn| !replicator.uses(*conn)) {
            io.close_client(conn);
        }
    }

    /// A storage accepted us.
    pub(crate) fn connected(&mut self, shared: &Shared, io: &mut Io<'_, Storage>, conn: ConnId) {
        let Some(current) = &mut self.current else { return };
        if let Some(state @ State::Connecting) = current.peers.get_mut(&Some(conn)) {
            *state = State::Idle;
            if !current.is_waiting {
                self.ask_range(shared, io);
            }
        }
    }

    /// Asks the digest of the current range to those that were not asked.
    fn ask_range(&mut self, shared: &Shared, io: &mut Io<'_, Storage>) {
        let Some(current) = &mut self.current else { return };
        let Check { partition, max_tid, .. } = current.check;
        let (min_tid, length) = (current.next_tid, CHECK_COUNT);
        for (peer, state) in current.peers.iter_mut().filter(|(_, s)| **s == State::Idle) {
            self.request += 1;
            let request = self.request;
            *state = State::Asked(request);
            match (*peer, current.next_oid) {
                (None, None) => {
                    let job = Read::CheckTidRange { partition, min_tid, max_tid, length };
                    let after = OperationAfter::Checker(CheckerAfter { request });
                    read_for(shared, io, job, after);
                }
                (None, Some(min_oid)) => {
                    let job =
                        Read::CheckSerialRange { partition, min_tid, min_oid, max_tid, length };
                    let after = OperationAfter::Checker(CheckerAfter { request });
                    read_for(shared, io, job, after);
                }
                // If the connection is closed, its loss is about to be told.
                (Some(conn), None) => {
                    let packet = Packet::AskCheckTIDRange { partition, length, min_tid, max_tid };
                    io.ask(conn, packet, Ticket::Check(request));
                }
                (Some(conn), Some(min_oid)) => {
                    let packet = Packet::AskCheckSerialRange {
                        partition,
                        length,
                        min_tid,
                        max_tid,
                        min_oid,
                    };
                    io.ask(conn, packet, Ticket::Check(request));
                }
            }
        }
    }

    /// A connection is gone, or the node refuses.
    pub(crate) fn connection_lost(
        &mut self,
        replicator: &mut Replicator,
        transactions: &Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
    ) {
        let Some(current) = &mut self.current else { return };
        if current.peers.remove(&Some(conn)).is_none() {
            return;
        }
        let partition = current.check.partition;
        if current.reference == Some(Some(conn)) || current.peers.len() <= 1 {
            log::warn!("check of partition {partition} aborted");
            self.next_partition(replicator, shared, io);
            self.poll(replicator, transactions, shared, io);
        } else {
            log::warn!("node lost but keep up checking partition {partition}");
            self.compare(replicator, transactions, shared, io);
        }
    }

    /// Own digest is known.
    pub(crate) fn job_done(
        &mut self,
        replicator: &mut Replicator,
        transactions: &Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        after: CheckerAfter,
        done: Done,
    ) {
        let digest = match done {
            Done::TidDigest(digest) => Digest::Tids(digest),
            done => Digest::Serials(done!(done, SerialDigest)),
        };
        self.digested(replicator, transactions, shared, io, after.request, digest);
    }

    /// A storage answered.
    pub(crate) fn answered(
        &mut self,
        replicator: &mut Replicator,
        transactions: &Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        request: u64,
        packet: &Packet,
    ) -> Handled {
        let digest = match *packet {
            Packet::AnswerCheckTIDRange { count, checksum, max_tid } => {
                Digest::Tids(TidDigest { count, checksum, max_tid })
            }
            Packet::AnswerCheckSerialRange {
                count,
                tid_checksum,
                max_tid,
                oid_checksum,
                max_oid,
            } => Digest::Serials(SerialDigest {
                count,
                tid_checksum,
                max_tid,
                oid_checksum,
                max_oid,
            }),
            _ => return Err(Fault::Unexpected),
        };
        self.digested(replicator, transactions, shared, io, request, digest);
        Ok(())
    }

    fn digested(
        &mut self,
        replicator: &mut Replicator,
        transactions: &Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        request: u64,
        digest: Digest,
    ) {
        let Some(current) = &mut self.current else { return };
        // Answers to old requests are ignored: nothing was done to cancel them.
        let mut states = current.peers.values_mut();
        if let Some(state) = states.find(|state| **state == State::Asked(request)) {
            *state = State::Answered(digest);
            self.compare(replicator, transactions, shared, io);
        }
    }

    /// Compares digests once all are known. Upstream: `checkRange`.
    fn compare(
        &mut self,
        replicator: &mut Replicator,
        transactions: &Transactions,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
    ) {
        let Some(current) = &mut self.current else { return };
        let mut digests = BTreeMap::new();
        for (peer, state) in &current.peers {
            let State::Answered(digest) = state else { return };
            digests.insert(*peer, *digest);
        }
        let Some(first) = digests.values().next().copied() else { return };
        let mut agreed = Some(first);
        if digests.values().any(|digest| *digest != first) {
            agreed = current.reference.and_then(|reference| digests.get(&reference).copied());
            let wrong = digests.iter().filter(|(_, digest)| Some(**digest) != agreed);
            let wrong: Vec<Peer> = wrong.map(|(peer, _)| *peer).collect();
            let partition = current.check.partition;
            let mut nids: Vec<Option<NodeId>> = Vec::new();
            for peer in &wrong {
                current.peers.remove(peer);
                nids.push(match peer {
                    None => shared.nid(),
                    Some(conn) => io.nid(*conn),
                });
            }
            for conn in wrong.into_iter().flatten().filter(|conn| !replicator.uses(*conn)) {
                io.close_client(conn);
            }
            log::warn!("partition {partition} corrupted in: {nids:?}");
            shared.notify_master(io, Packet::NotifyPartitionCorrupted { partition, nids });
        }
        let is_aborted = current.peers.len() <= 1;
        let goes_on = match agreed {
            Some(digest) if !is_aborted => current.advance(digest),
            _ => false,
        };
        if is_aborted {
            log::warn!("check of partition {} aborted", current.check.partition);
            self.queue.clear();
        }
        if goes_on {
            self.ask_range(shared, io);
        } else {
            self.next_partition(replicator, shared, io);
            self.poll(replicator, transactions, shared, io);
        }
    }
}

impl Current {
    /// Goes to the next range; `false` if there is none.
    fn advance(&mut self, digest: Digest) -> bool {
        let position =
            |current: &Self| (current.next_oid.is_some(), current.next_tid, current.next_oid);
        let before = position(self);
        match digest {
            Digest::Tids(digest) if digest.count < CHECK_COUNT => {
                self.next_tid = self.check.min_tid;
                self.next_oid = Some(Oid::ZERO);
            }
            Digest::Tids(digest) => {
                self.next_tid = digest.max_tid.next().unwrap_or(Tid::INVALID);
            }
            Digest::Serials(digest) if digest.count < CHECK_COUNT => {
                let Check { partition, min_tid, max_tid, .. } = self.check;
                log::debug!("partition {partition} checked from {min_tid} to {max_tid}");
                return false;
            }
            Digest::Serials(digest) => {
                self.next_tid = digest.max_tid;
                self.next_oid = Some(digest.max_oid.next().unwrap_or(Oid::INVALID));
            }
        }
        for state in self.peers.values_mut() {
            *state = State::Idle;
        }
        // Whatever others answer, it ends.
        before < position(self)
    }
}

type Prepared = (BTreeMap<Peer, State>, Option<Peer>);

/// Looks for the nodes to compare, and connects to them; or says why it is not possible, with the
/// connections that are not needed.
fn prepare(
    replicator: &mut Replicator,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    check: &Check,
) -> Result<Prepared, (&'static str, Vec<ConnId>)> {
    let partition = check.partition;
    if matches!(shared.cell_state(partition), None | Some(CellState::OutOfDate)) {
        return Err(("discarded or out-of-date", Vec::new()));
    }
    let own = shared.nid();
    let mut peers = BTreeMap::new();
    let mut connect = |shared: &mut Shared, io: &mut Io<'_, Storage>, key: NodeKey| {
        let (conn, is_identified) = replicator::connect_node(shared, io, key);
        let state = if is_identified { State::Idle } else { State::Connecting };
        peers.insert(Some(conn), state);
    };
    let cells = shared.table.readable(partition).filter(|nid| Some(*nid) != own);
    let nodes = cells.filter_map(|nid| shared.nodes.by_nid(nid));
    let nodes = nodes.filter(|node| node.is_running() && node.address().is_some());
    let keys: Vec<NodeKey> = nodes.map(Node::key).collect();
    for key in keys {
        connect(shared, io, key);
    }
    let mut reference = None;
    if let (name, Some(address)) = &check.source {
        if name.is_empty() {
            let node = shared.nodes.by_address(*address);
            reference = match node {
                Some(node) if node.nid() == own => Some(None),
                Some(node) => node.connection().map(Some).filter(|peer| peers.contains_key(peer)),
                None => None,
            };
            if reference.is_none() {
                return Err(("unavailable source", peers.into_keys().flatten().collect()));
            }
        } else {
            let (conn, is_identified) = replicator.connect_upstream(io, *address, name);
            let state = if is_identified { State::Idle } else { State::Connecting };
            peers.insert(Some(conn), state);
            reference = Some(Some(conn));
        }
    }
    if peers.is_empty() {
        return Err(("no replica", Vec::new()));
    }
    peers.insert(None, State::Idle);
    Ok((peers, reference))
}
