// SPDX-License-Identifier: GPL-2.0-or-later
//! Replication: bringing own cells up-to-date from other nodes. Upstream: storage/replicator.py,
//! whose header explains the algorithm.
//!
//! Replication is per partition, one at a time, in chunks: transactions first, then objects. For
//! each chunk, the node sends what it has in the range; the source sends what is missing, and
//! answers with what has to be deleted.
//!
//! ```text
//!   poll --> connect --> list own transactions --> AskFetchTransactions --> AddTransaction...
//!                ^          |  next chunk <------------------- AnswerFetchTransactions
//!                |          v last chunk
//!                |       list own objects --> AskFetchObjects --> AddObject...
//!                |          ^  next chunk <---------------- AnswerFetchObjects
//!                |          v last chunk
//!                +------ the end is on disk --> Transactions::replicated --> NotifyReplicationDone
//! ```
//!
//! A node can not rely on others to fetch what is being committed, so cells that are out of date are
//! written too:
//! 1. ask the master which transactions are not finished; from this answer on, new transactions are
//!    stored here in full;
//! 2. replicate up to the last transaction;
//! 3. wait until the transactions of 1. are finished, and replicate again up to the last of them;
//! 4. when no store without lock remains, tell the master.
//!
//! In backup mode, orders come from the master ([`replicate`]), which also says from where.
//!
//! What is received is checked against what was asked: an object that belongs elsewhere would
//! corrupt a cell. A source that fails is tried again after a while, other partitions come first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use neo_common::engine::{Fault, Handled, Io};
use neo_common::limits::FETCH_COUNT;
use neo_common::node::{Link, Node, NodeKey};
use neo_common::protocol::{CellState, Map, MsgId, NodeType, Packet};
use neo_common::types::{ConnId, Oid, Partition, Tid, Ttid, ZERO_HASH};

use crate::app::{Shared, Storage, Ticket, Timer, done};
use crate::database::{
    CellNext, ChunkEnd, Content, Done, ObjectRecord, PackOrder, Read, ReplicatedObject,
    ReplicatedTransaction, TransactionInfo, TransactionRecord, Value, Write,
};
use crate::handlers::master::OwnCells;
use crate::handlers::storage::StorageHandler;
use crate::limits::{ADD_BYTES, RETRY_SOURCE_DELAY, WAITING_REQUEST_BYTES};
use crate::operation::{Operation, OperationAfter, read_latest_for, write_for};

/// What to do when a job is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicatorAfter {
    /// Own transactions of the range: ask for the others.
    ListedTransactions(u64),
    /// Own objects of the range: ask for the others.
    ListedObjects(u64),
    /// Received rows are stored.
    Added(u64),
    /// A chunk is on disk.
    ChunkEnded {
        /// Partition.
        partition: Partition,
        /// Backup tid from now on.
        backup_tid: Option<Tid>,
        /// The replication of the partition is finished.
        finished: Option<u64>,
    },
    /// The backup tid is on disk.
    BackupTid(Tid),
}

/// State of an own cell.
#[derive(Debug)]
struct Cell {
    /// First transaction to replicate; `None`: nothing to replicate.
    next_trans: Option<Tid>,
    /// First object to replicate.
    next_obj: Option<Tid>,
    /// Greatest ttid of the unfinished transactions to wait for; INVALID as long as they are not
    /// known.
    max_ttid: Option<Ttid>,
    /// Number of the question about unfinished transactions that counts.
    question: u64,
    /// Pack orders that are signed and not here yet (backup mode).
    approved: Vec<Tid>,
    rejected: Vec<Tid>,
    /// When it may be tried again.
    retry_at: Duration,
}

impl Cell {
    fn new(next_trans: Option<Tid>, next_obj: Option<Tid>, max_ttid: Option<Ttid>) -> Self {
        Self {
            next_trans,
            next_obj,
            max_ttid,
            question: 0,
            approved: Vec::new(),
            rejected: Vec::new(),
            retry_at: Duration::ZERO,
        }
    }
}

/// Where a partition is replicated from.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    /// A node of this cluster.
    Node(NodeKey),
    /// A node of the upstream cluster, with the name of that cluster.
    Upstream(SocketAddr, String),
}

/// Connection to a node of the upstream cluster, where this node has no id.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Upstream {
    conn: ConnId,
    /// Name of the cluster.
    name: String,
    is_identified: bool,
}

/// How far the current partition is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Waits for the connection.
    Connecting,
    /// Waits for own rows.
    Listing,
    /// Waits for an answer of the source.
    Fetching {
        /// Number of the request: that of the answer.
        request: u64,
        /// Id of the request: that of the rows that come before the answer.
        id: MsgId,
    },
    /// Waits for the end to be on disk.
    Ending,
}

/// The partition that is being replicated.
#[derive(Debug)]
struct Current {
    /// Tells results of previous attempts apart.
    attempt: u64,
    partition: Partition,
    /// Up to where.
    tid: Tid,
    source: Source,
    conn: ConnId,
    step: Step,
    /// Nothing was asked yet: the source has to tell its pack status.
    is_first: bool,
    /// Start of the range that is being fetched.
    min_tid: Tid,
    min_oid: Oid,
    /// Received rows that are not given to the database yet.
    transactions: Vec<ReplicatedTransaction>,
    objects: Vec<ReplicatedObject>,
    bytes: usize,
    /// Jobs that store received rows.
    add_jobs: u32,
}

/// State of replication.
#[derive(Debug, Default)]
pub struct Replicator {
    cells: BTreeMap<Partition, Cell>,
    /// Partitions to replicate, up to which tid.
    orders: BTreeMap<Partition, Tid>,
    /// Sources imposed by the master (backup mode), with the name of the upstream cluster.
    sources: BTreeMap<Partition, (SocketAddr, String)>,
    /// Unfinished transactions to wait for.
    ttids: BTreeSet<Ttid>,
    current: Option<Current>,
    /// Connections to nodes of the upstream cluster.
    upstream: BTreeMap<SocketAddr, Upstream>,
    /// Connection that was used last.
    last_conn: Option<ConnId>,
    attempt: u64,
    question: u64,
    request: u64,
}

impl Replicator {
    /// Nothing is replicated.
    pub fn new(next_tids: Vec<(Partition, CellNext)>) -> Self {
        let cells = next_tids.into_iter().map(|(partition, next)| {
            let cell = match next {
                CellNext::OutOfDate(tid) => Cell::new(Some(tid), Some(tid), Some(Ttid::INVALID)),
                CellNext::Backup(trans, obj) => Cell::new(Some(trans), Some(obj), None),
                CellNext::Readable => Cell::new(None, None, None),
            };
            (partition, cell)
        });
        Self { cells: cells.collect(), ..Self::default() }
    }

    /// Asks what is needed to replicate cells that are out of date.
    pub(crate) fn begin(&mut self, shared: &Shared, io: &mut Io<'_, Storage>) {
        let outdated = self.cells.iter().filter(|(_, cell)| cell.max_ttid.is_some());
        let outdated: Vec<Partition> = outdated.map(|(partition, _)| *partition).collect();
        self.ask_unfinished(shared, io, outdated);
    }

    fn ask_unfinished(
        &mut self,
        shared: &Shared,
        io: &mut Io<'_, Storage>,
        partitions: Vec<Partition>,
    ) {
        let Some(master) = shared.master.filter(|_| !partitions.is_empty()) else { return };
        self.question += 1;
        for partition in &partitions {
            if let Some(cell) = self.cells.get_mut(partition) {
                cell.question = self.question;
            }
        }
        let ticket = Ticket::Unfinished(partitions.clone(), self.question);
        // If the connection is closed, the operation ends.
        io.ask(master, Packet::AskUnfinishedTransactions { partitions }, ticket);
    }

    /// The master told which transactions to wait for. Upstream: `setUnfinishedTIDList`.
    pub(crate) fn set_unfinished(
        &mut self,
        partitions: &[Partition],
        question: u64,
        max_tid: Tid,
        ttids: &[Ttid],
    ) {
        self.ttids.extend(ttids);
        let max_ttid = ttids.iter().max().copied();
        for partition in partitions {
            // It may have been discarded, and added again, meanwhile.
            let cell = self.cells.get_mut(partition);
            if let Some(cell) = cell.filter(|cell| cell.question == question) {
                cell.max_ttid = max_ttid;
                self.orders.insert(*partition, max_tid);
            }
        }
    }

    /// Whether it is safe to pack a partition: in backup mode, what the order is about must be
    /// there. Upstream: `filterPackable`.
    pub(crate) fn is_packable(&self, shared: &Shared, partition: Partition, pack_id: Tid) -> bool {
        if shared.backup_tid.is_none() {
            return true;
        }
        let Some(cell) = self.cells.get(&partition) else { return false };
        let is_before = |next: Option<Tid>| next.is_some_and(|tid| tid <= pack_id);
        !is_before(cell.next_trans) && !is_before(cell.next_obj)
    }

    /// Remembers pack orders that were signed before they are replicated.
    pub(crate) fn keep_signed(&mut self, partitions: u32, approved: &[Tid], rejected: &[Tid]) {
        for (ids, is_approved) in [(approved, true), (rejected, false)] {
            for id in ids {
                if let Some(cell) = self.cells.get_mut(&id.partition(partitions)) {
                    if is_approved { &mut cell.approved } else { &mut cell.rejected }.push(*id);
                }
            }
        }
    }

    /// Backup mode begins: where readable cells resume.
    pub(crate) fn backup_started(&mut self, next_tids: &[(Partition, CellNext)]) {
        for (partition, next) in next_tids {
            if let (Some(cell), CellNext::Backup(trans, obj)) =
                (self.cells.get_mut(partition), next)
            {
                (cell.next_trans, cell.next_obj) = (Some(*trans), Some(*obj));
            }
        }
    }

    /// Up to where all readable cells are complete. Upstream: `getBackupTID`.
    fn backup_tid(&self, shared: &Shared) -> Tid {
        let is_outdated = |partition| shared.cell_state(partition) == Some(CellState::OutOfDate);
        let readable = self.cells.iter().filter(|(partition, _)| !is_outdated(**partition));
        let next = readable.flat_map(|(_, cell)| [cell.next_trans, cell.next_obj]).flatten().min();
        next.and_then(Tid::previous).unwrap_or(Tid::ZERO)
    }

    /// The backup tid to record, if it changes.
    fn new_backup_tid(&self, shared: &Shared) -> Option<Tid> {
        let old = shared.backup_tid?;
        Some(self.backup_tid(shared)).filter(|tid| *tid != old)
    }

    /// Whether this connection is used to fetch.
    pub(crate) fn uses(&self, conn: ConnId) -> bool {
        self.current.as_ref().is_some_and(|current| current.conn == conn)
    }

    /// Whether it is a connection to the upstream cluster.
    pub(crate) fn is_upstream(&self, conn: ConnId) -> bool {
        self.upstream.values().any(|upstream| upstream.conn == conn)
    }

    /// A connection to a node of the upstream cluster, and whether it is identified.
    pub(crate) fn connect_upstream(
        &mut self,
        io: &mut Io<'_, Storage>,
        address: SocketAddr,
        name: &str,
    ) -> (ConnId, bool) {
        if let Some(upstream) = self.upstream.get(&address)
            && upstream.name == name
            && io.is_open(upstream.conn)
        {
            io.as_client(upstream.conn);
            return (upstream.conn, upstream.is_identified);
        }
        let conn = io.connect(address, &StorageHandler);
        let upstream = Upstream { conn, name: name.to_owned(), is_identified: false };
        self.upstream.insert(address, upstream);
        (conn, false)
    }

    /// The current replication, if these rows belong to its current request.
    fn receiving(&mut self, conn: ConnId, id: MsgId) -> Option<&mut Current> {
        self.current.as_mut().filter(|current| {
            current.conn == conn && matches!(current.step, Step::Fetching { id: i, .. } if i == id)
        })
    }

    /// The current replication, if this is the answer to its current request.
    fn answered(&mut self, request: u64) -> Option<&mut Current> {
        self.current.as_mut().filter(
            |current| matches!(current.step, Step::Fetching { request: r, .. } if r == request),
        )
    }

    /// The current replication, unless it is another one.
    fn attempted(&mut self, attempt: u64) -> Option<&mut Current> {
        self.current.as_mut().filter(|current| current.attempt == attempt)
    }

    /// Asks the source, and waits for its answer.
    fn ask(&mut self, io: &mut Io<'_, Storage>, request: Packet) {
        let Some(current) = &mut self.current else { return };
        self.request += 1;
        let ticket = Ticket::Fetch(self.request);
        // If the connection is closed, its loss is about to be told.
        if let Some(id) = io.ask_with_id(current.conn, request, ticket) {
            current.step = Step::Fetching { request: self.request, id };
        }
    }

    /// Pack orders that were replicated are signed now.
    fn signed(&mut self, partition: Partition, signed: &[Tid]) {
        if let Some(cell) = self.cells.get_mut(&partition) {
            cell.approved.retain(|id| !signed.contains(id));
            cell.rejected.retain(|id| !signed.contains(id));
        }
    }
}

/// A transaction is finished, committed or not. Upstream: `transactionFinished`.
pub(crate) fn transaction_finished(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    ttid: Ttid,
    max_tid: Option<Tid>,
) {
    let replicator = &mut operation.replicator;
    if !replicator.ttids.remove(&ttid) {
        return;
    }
    let min_ttid = replicator.ttids.first().copied().unwrap_or(Ttid::INVALID);
    let current = replicator.current.as_ref().map(|current| current.partition);
    let mut complete = Vec::new();
    for (partition, cell) in &mut replicator.cells {
        let Some(max_ttid) = cell.max_ttid.filter(|ttid| *ttid != Ttid::INVALID) else { continue };
        if let Some(max_tid) = max_tid {
            // Not the most efficient while other transactions are unfinished, but then it is
            // replicated even if they are all aborted.
            replicator.orders.insert(*partition, max_tid);
        }
        if max_ttid < min_ttid {
            cell.max_ttid = None;
            if current != Some(*partition) && !replicator.orders.contains_key(partition) {
                // All were aborted. Up to where it was replicated is not known any more, but this is
                // not wrong, and ignored by the master.
                complete.push((*partition, max_ttid.as_tid()));
            }
        }
    }
    for (partition, tid) in complete {
        log::debug!("all unfinished transactions are aborted partition={partition}");
        operation.transactions.replicated(partition, tid);
    }
    poll(operation, shared, io);
}

/// Own cells changed. Upstream: `notifyPartitionChanges`.
pub(crate) fn cells_changed(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    delta: &OwnCells,
) {
    let replicator = &mut operation.replicator;
    let mut is_aborted = false;
    for partition in &delta.discarded {
        replicator.cells.remove(partition);
        replicator.orders.remove(partition);
        replicator.sources.remove(partition);
        is_aborted |= replicator.current.as_ref().is_some_and(|c| c.partition == *partition);
    }
    for partition in &delta.added {
        // A new cell.
        let cell = Cell::new(Some(Tid::ZERO), Some(Tid::ZERO), Some(Ttid::INVALID));
        replicator.cells.insert(*partition, cell);
    }
    operation.transactions.replicating(&delta.added);
    operation.replicator.ask_unfinished(shared, io, delta.added.clone());
    operation.transactions.readable(&delta.readable);
    if is_aborted {
        abort(operation, shared, io, "partition discarded");
    }
}

/// The master orders to replicate (backup mode). Upstream: `backup`.
pub(crate) fn replicate(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    tid: Tid,
    upstream_name: &str,
    sources: Map<Partition, Option<SocketAddr>>,
) -> Handled {
    if tid >= Tid::MAX {
        return Err(Fault::protocol("invalid tid to replicate"));
    }
    let replicator = &mut operation.replicator;
    let current = replicator.current.as_ref().map(|current| current.partition);
    let mut is_changed = false;
    for (partition, source) in sources {
        let Some(cell) = replicator.cells.get_mut(&partition) else {
            log::debug!("no cell to replicate partition={partition}");
            continue;
        };
        match source {
            Some(address) => {
                replicator.sources.insert(partition, (address, upstream_name.to_owned()));
                replicator.orders.insert(partition, tid);
                cell.retry_at = Duration::ZERO;
            }
            // There may be a few useless orders: nothing to do if it is being replicated.
            None if current == Some(partition) || replicator.orders.contains_key(&partition) => {}
            None => {
                cell.next_trans = tid.next();
                cell.next_obj = tid.next();
                is_changed = true;
            }
        }
    }
    if is_changed && let Some(backup_tid) = replicator.new_backup_tid(shared) {
        let after = OperationAfter::Replicator(ReplicatorAfter::BackupTid(backup_tid));
        write_for(shared, io, Write::SetBackupTid(Some(backup_tid)), after);
    }
    poll(operation, shared, io);
    Ok(())
}

/// Leaves the upstream cluster. Upstream: `stop`.
pub(crate) fn stop(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>) {
    let replicator = &mut operation.replicator;
    if let Some(current) = &replicator.current
        && let Source::Upstream(..) = current.source
    {
        log::info!("cancel replication of partition {}", current.partition);
        replicator.current = None;
    }
    for upstream in std::mem::take(&mut replicator.upstream).into_values() {
        io.close(upstream.conn);
    }
    // Cancel all orders from the upstream cluster.
    let Replicator { orders, sources, .. } = replicator;
    orders.retain(|partition, tid| match sources.get(partition) {
        Some((address, name)) if !name.is_empty() => {
            log::info!("cancel replication of partition {partition} from {address} up to {tid}");
            false
        }
        _ => true,
    });
    // Make cells equal.
    poll(operation, shared, io);
}

/// Begins with the next partition, if none is being replicated. Upstream: `_nextPartition`.
pub(crate) fn poll(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>) {
    loop {
        let replicator = &mut operation.replicator;
        if replicator.current.is_some() || replicator.orders.is_empty() {
            return;
        }
        let now = io.now().monotonic;
        // The partition that is furthest behind first, to raise the backup tid as soon as possible;
        // then one without unfinished transaction.
        let candidates = replicator.orders.iter().filter_map(|(partition, tid)| {
            let cell = replicator.cells.get(partition)?;
            let key = (cell.next_obj, cell.max_ttid.is_some(), *partition);
            (cell.retry_at <= now).then_some((key, *tid))
        });
        let Some(((_, _, partition), tid)) = candidates.min() else {
            let retry = replicator.orders.keys().filter_map(|p| replicator.cells.get(p));
            if let Some(at) = retry.map(|cell| cell.retry_at).min() {
                io.set_timer(Timer::Replicator, at.saturating_sub(now));
            }
            return;
        };
        let Some(source) = choose_source(replicator, shared, io, partition) else {
            log::debug!("no source for partition {partition}");
            if let Some(cell) = replicator.cells.get_mut(&partition) {
                cell.retry_at = now + RETRY_SOURCE_DELAY;
            }
            continue;
        };
        let previous = replicator.last_conn;
        let (conn, is_identified) = connection(replicator, shared, io, &source);
        replicator.last_conn = Some(conn);
        replicator.attempt += 1;
        replicator.current = Some(Current {
            attempt: replicator.attempt,
            partition,
            tid,
            source,
            conn,
            step: Step::Connecting,
            is_first: true,
            min_tid: Tid::ZERO,
            min_oid: Oid::ZERO,
            transactions: Vec::new(),
            objects: Vec::new(),
            bytes: 0,
            add_jobs: 0,
        });
        if let Some(previous) = previous.filter(|previous| *previous != conn) {
            close_client(operation, io, previous);
        }
        if is_identified {
            fetch(operation, shared, io);
        }
        return;
    }
}

/// Node of a partition to fetch from, at random among those that can be read.
fn choose_source(
    replicator: &Replicator,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    partition: Partition,
) -> Option<Source> {
    let own = shared.nid();
    if let Some((address, name)) = replicator.sources.get(&partition) {
        return match shared.nodes.by_address(*address) {
            Some(node) if name.is_empty() && node.is_storage() && node.nid() != own => {
                Some(Source::Node(node.key()))
            }
            _ if !name.is_empty() => Some(Source::Upstream(*address, name.clone())),
            _ => None,
        };
    }
    let nodes = shared.table.readable(partition).filter(|nid| Some(*nid) != own);
    let nodes = nodes.filter_map(|nid| shared.nodes.by_nid(nid));
    let usable = nodes.filter(|node| node.is_running() && node.address().is_some());
    let usable: Vec<NodeKey> = usable.map(Node::key).collect();
    io.prng().choose(&usable).map(|key| Source::Node(*key))
}

/// A connection to a source, and whether it is identified.
fn connection(
    replicator: &mut Replicator,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    source: &Source,
) -> (ConnId, bool) {
    match source {
        Source::Node(key) => connect_node(shared, io, *key),
        Source::Upstream(address, name) => replicator.connect_upstream(io, *address, name),
    }
}

/// A connection to another storage of the cluster, and whether it is identified. It is opened if
/// needed; the node must have an address then.
pub(crate) fn connect_node(
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    key: NodeKey,
) -> (ConnId, bool) {
    let node = shared.nodes.get(key).expect("chosen among known nodes");
    if let Some(conn) = node.connection().filter(|conn| io.is_open(*conn)) {
        io.as_client(conn);
        return (conn, node.is_identified());
    }
    let address = node.address().expect("chosen among nodes that can be reached");
    let conn = io.connect(address, &StorageHandler);
    let linked = shared.nodes.set_link(key, Link::Connecting(conn));
    debug_assert!(linked.is_ok(), "a new connection belongs to no node");
    (conn, false)
}

/// A connection that we opened is up: identify. Upstream: `RequestIdentification` of
/// `_nextPartition`.
pub(crate) fn identify(
    replicator: &Replicator,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    if let Some(key) = shared.nodes.by_connection(conn).map(Node::key) {
        let linked = shared.nodes.set_link(key, Link::Connected(conn));
        debug_assert!(linked.is_ok(), "same connection");
    }
    let upstream = replicator.upstream.values().find(|upstream| upstream.conn == conn);
    let upstream = upstream.map(|upstream| upstream.name.clone());
    let request = Packet::RequestIdentification {
        node_type: NodeType::Storage,
        nid: shared.nid().filter(|_| upstream.is_none()),
        address: Some(shared.config.address),
        cluster: upstream.unwrap_or_else(|| shared.config.cluster.clone()),
        id_timestamp: shared.bootstrap.id_timestamp,
        extra: Map::default(),
    };
    io.ask(conn, request, Ticket::Identification);
}

/// A storage accepted us.
pub(crate) fn connected(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    let replicator = &mut operation.replicator;
    for upstream in replicator.upstream.values_mut() {
        upstream.is_identified |= upstream.conn == conn;
    }
    if let Some(current) = &replicator.current
        && current.conn == conn
        && current.step == Step::Connecting
    {
        fetch(operation, shared, io);
    }
}

/// Begins to fetch the current partition.
fn fetch(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>) {
    let replicator = &mut operation.replicator;
    let Some(current) = &mut replicator.current else { return };
    let Some(cell) = replicator.cells.get_mut(&current.partition) else { return };
    // The order may be newer than when it was chosen.
    let order = replicator.orders.remove(&current.partition);
    current.tid = order.unwrap_or(current.tid);
    if let Some((address, name)) = replicator.sources.get(&current.partition) {
        let is_same = match &current.source {
            Source::Upstream(old, old_name) => old == address && old_name == name,
            Source::Node(key) => {
                let node = shared.nodes.get(*key);
                name.is_empty() && node.and_then(Node::address) == Some(*address)
            }
        };
        if !is_same {
            replicator.orders.entry(current.partition).or_insert(current.tid);
            return abort(operation, shared, io, "source changed");
        }
    }
    let min_tid = *cell.next_trans.get_or_insert(Tid::ZERO);
    cell.next_obj.get_or_insert(Tid::ZERO);
    log::debug!(
        "replicate partition={} min_tid={min_tid} max_tid={} from {:?}",
        current.partition,
        current.tid,
        current.source
    );
    list_transactions(current, shared, io, min_tid);
}

fn list_transactions(
    current: &mut Current,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    min_tid: Tid,
) {
    current.min_tid = min_tid;
    current.step = Step::Listing;
    let (partition, max_tid) = (current.partition, current.tid);
    let job = Read::TidsFrom { partition, min_tid, max_tid, length: FETCH_COUNT };
    let after = ReplicatorAfter::ListedTransactions(current.attempt);
    read_latest_for(shared, io, job, OperationAfter::Replicator(after));
}

fn list_objects(
    current: &mut Current,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    min_tid: Tid,
    min_oid: Oid,
) {
    (current.min_tid, current.min_oid) = (min_tid, min_oid);
    current.step = Step::Listing;
    let (partition, max_tid) = (current.partition, current.tid);
    let job = Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length: FETCH_COUNT };
    let after = ReplicatorAfter::ListedObjects(current.attempt);
    read_latest_for(shared, io, job, OperationAfter::Replicator(after));
}

/// The replication of the current partition can not go on. Upstream: `abort`.
pub(crate) fn abort(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    why: &str,
) {
    let replicator = &mut operation.replicator;
    let Some(current) = replicator.current.take() else { return };
    io.resume(current.conn);
    log::warn!("replication aborted partition={} ({why})", current.partition);
    if let Some(cell) = replicator.cells.get_mut(&current.partition) {
        // Other partitions first, and never without pause: the source may refuse for a while.
        cell.retry_at = io.now().monotonic + RETRY_SOURCE_DELAY;
        replicator.orders.entry(current.partition).or_insert(current.tid);
    }
    poll(operation, shared, io);
}

/// The source refused a request.
pub(crate) fn refused(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    request: u64,
    message: &str,
) {
    if operation.replicator.answered(request).is_some() {
        abort(operation, shared, io, message);
    }
}

/// A connection to another storage is gone.
pub(crate) fn connection_lost(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
) {
    operation.replicator.upstream.retain(|_, upstream| upstream.conn != conn);
    if operation.replicator.uses(conn) {
        abort(operation, shared, io, "connection lost");
    }
}

/// We do not need this connection any more, unless the checker does.
pub(crate) fn close_client(operation: &Operation, io: &mut Io<'_, Storage>, conn: ConnId) {
    if !operation.replicator.uses(conn) && !operation.checker.uses(conn) {
        io.close_client(conn);
    }
}

// What the source sends.

/// `AddTransaction`. Ignored if it belongs to an old request.
pub(crate) fn add_transaction(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    let partitions = shared.table.partitions();
    let Some(current) = operation.replicator.receiving(conn, id) else { return Ok(()) };
    let Packet::AddTransaction { tid, user, description, extension, packed, ttid, oids, pack } =
        packet
    else {
        return Err(Fault::Unexpected);
    };
    check_range(current, partitions, tid)?;
    let pack = pack.map(|(approved, partial, oids, pack_tid)| {
        let oids = oids.map(|oids| oids.into_list().ok_or_else(|| invalid("pack order")));
        Ok(PackOrder { approved, partial, oids: oids.transpose()?, pack_tid })
    });
    current.bytes +=
        WAITING_REQUEST_BYTES + oids.len() * 8 + user.len() + description.len() + extension.len();
    let record = TransactionRecord { oids, user, description, extension, packed, ttid };
    let info = TransactionInfo { tid, record, pack: pack.transpose()? };
    current.transactions.push(ReplicatedTransaction { info });
    if current.bytes > ADD_BYTES {
        flush(current, shared, io);
    }
    Ok(())
}

/// `AddObject`. Ignored if it belongs to an old request.
pub(crate) fn add_object(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    let partitions = shared.table.partitions();
    let Some(current) = operation.replicator.receiving(conn, id) else { return Ok(()) };
    let Packet::AddObject { oid, serial: tid, compression, checksum, data, data_serial: data_tid } =
        packet
    else {
        return Err(Fault::Unexpected);
    };
    check_object(current, partitions, tid, oid)?;
    let compression = u8::try_from(compression).map_err(|_| invalid("compression"))?;
    current.bytes += WAITING_REQUEST_BYTES + data.len();
    let content = match data.is_empty() && checksum == ZERO_HASH {
        true => Content::Deleted,
        false => Content::Value(Value { compression, checksum, data }),
    };
    let object = ObjectRecord { oid, data_tid, content };
    current.objects.push(ReplicatedObject { tid, object });
    if current.bytes > ADD_BYTES {
        flush(current, shared, io);
    }
    Ok(())
}

fn invalid(what: &str) -> Fault {
    Fault::protocol(format!("invalid {what} in a replication"))
}

fn check_range(current: &Current, partitions: u32, tid: Tid) -> Handled {
    let is_own = tid.partition(partitions) == current.partition;
    match is_own && current.min_tid <= tid && tid <= current.tid {
        true => Ok(()),
        false => Err(invalid("transaction")),
    }
}

fn check_object(current: &Current, partitions: u32, tid: Tid, oid: Oid) -> Handled {
    let is_own = oid.partition(partitions) == current.partition;
    match is_own && (current.min_tid, current.min_oid) <= (tid, oid) && tid <= current.tid {
        true => Ok(()),
        false => Err(invalid("object")),
    }
}

/// Gives received rows to the database. Nothing more is read from the source while much waits there.
fn flush(current: &mut Current, shared: &Shared, io: &mut Io<'_, Storage>) {
    current.bytes = 0;
    let partitions = shared.table.partitions();
    let transactions = std::mem::take(&mut current.transactions);
    let objects = std::mem::take(&mut current.objects);
    let mut jobs = Vec::new();
    if !transactions.is_empty() {
        jobs.push(Write::AddTransactions { partitions, transactions });
    }
    if !objects.is_empty() {
        jobs.push(Write::AddObjects { partitions, objects });
    }
    for job in jobs {
        current.add_jobs += 1;
        let after = ReplicatorAfter::Added(current.attempt);
        write_for(shared, io, job, OperationAfter::Replicator(after));
    }
    if current.add_jobs > ADD_JOBS_MAX {
        io.pause(current.conn);
    }
}

/// Jobs of received rows that are not done, above which nothing more is read from the source.
const ADD_JOBS_MAX: u32 = 3;

/// `AnswerFetchTransactions`: a chunk of transactions is complete.
pub(crate) fn fetched_transactions(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    request: u64,
    next_tid: Option<Tid>,
    delete_transactions: Vec<Tid>,
    source_pack_id: Option<Tid>,
) -> Handled {
    let partitions = shared.table.partitions();
    let Some(current) = operation.replicator.answered(request) else { return Ok(()) };
    for tid in &delete_transactions {
        check_range(current, partitions, *tid)?;
    }
    if next_tid.is_some_and(|next| next <= current.min_tid || next > current.tid) {
        return Err(invalid("next transaction"));
    }
    flush(current, shared, io);
    let partition = current.partition;
    let Replicator { current: Some(current), cells, .. } = &mut operation.replicator else {
        return Ok(());
    };
    let Some(cell) = cells.get_mut(&partition) else { return Ok(()) };
    if let Some(pack_id) = source_pack_id {
        operation.pack.lower(partition, pack_id);
    }
    let mut end =
        ChunkEnd { partition, delete_transactions, source_pack_id, ..ChunkEnd::default() };
    match next_tid {
        Some(next_tid) => {
            cell.next_trans = Some(next_tid);
            end_chunk(shared, io, end, None, None);
            list_transactions(current, shared, io, next_tid);
        }
        None => {
            cell.next_trans = current.tid.next();
            end.approved.clone_from(&cell.approved);
            end.rejected.clone_from(&cell.rejected);
            end_chunk(shared, io, end, None, None);
            let min_tid = cell.next_obj.unwrap_or(Tid::ZERO);
            list_objects(current, shared, io, min_tid, Oid::ZERO);
        }
    }
    Ok(())
}

/// `AnswerFetchObjects`: a chunk of objects is complete.
pub(crate) fn fetched_objects(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    request: u64,
    next: Option<(Tid, Oid)>,
    to_delete: Map<Tid, Vec<Oid>>,
) -> Handled {
    let partitions = shared.table.partitions();
    let Some(current) = operation.replicator.answered(request) else { return Ok(()) };
    let partition = current.partition;
    let mut delete_objects = Vec::new();
    for (tid, oids) in to_delete {
        for oid in oids {
            check_object(current, partitions, tid, oid)?;
            delete_objects.push((oid, tid));
        }
    }
    let start = (current.min_tid, current.min_oid);
    if next.is_some_and(|next| next <= start || next.0 > current.tid) {
        return Err(invalid("next object"));
    }
    flush(current, shared, io);
    let replicator = &mut operation.replicator;
    let Replicator { current: Some(current), cells, .. } = replicator else { return Ok(()) };
    let Some(cell) = cells.get_mut(&partition) else { return Ok(()) };
    let attempt = current.attempt;
    let mut end = ChunkEnd { partition, delete_objects, ..ChunkEnd::default() };
    let finished = match next {
        Some((tid, _)) => {
            cell.next_obj = Some(tid);
            end.cell_tid = tid.previous();
            None
        }
        None => {
            cell.next_obj = current.tid.next();
            end.cell_tid = Some(current.tid);
            current.step = Step::Ending;
            Some(attempt)
        }
    };
    let backup_tid = replicator.new_backup_tid(shared);
    end_chunk(shared, io, end, backup_tid, finished);
    if let (Some((tid, oid)), Some(current)) = (next, &mut replicator.current) {
        list_objects(current, shared, io, tid, oid);
    }
    Ok(())
}

fn end_chunk(
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    mut end: ChunkEnd,
    backup_tid: Option<Tid>,
    finished: Option<u64>,
) {
    let partitions = shared.table.partitions();
    end.backup_tid = backup_tid;
    let partition = end.partition;
    let after = ReplicatorAfter::ChunkEnded { partition, backup_tid, finished };
    let job = Write::EndChunk { partitions, end: Box::new(end) };
    write_for(shared, io, job, OperationAfter::Replicator(after));
}

/// A job is done.
pub(crate) fn job_done(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    after: ReplicatorAfter,
    done: Done,
) {
    match after {
        ReplicatorAfter::ListedTransactions(attempt) => {
            let known = done!(done, Tids);
            let Some(current) = operation.replicator.attempted(attempt) else { return };
            let request = Packet::AskFetchTransactions {
                partition: current.partition,
                length: FETCH_COUNT,
                min_tid: current.min_tid,
                max_tid: current.tid,
                known,
                ask_pack_info: std::mem::take(&mut current.is_first),
            };
            operation.replicator.ask(io, request);
        }
        ReplicatorAfter::ListedObjects(attempt) => {
            let mut known = BTreeMap::<Tid, Vec<Oid>>::new();
            for (tid, oid) in done!(done, Revisions) {
                known.entry(tid).or_default().push(oid);
            }
            let Some(current) = operation.replicator.attempted(attempt) else { return };
            let request = Packet::AskFetchObjects {
                partition: current.partition,
                length: FETCH_COUNT,
                min_tid: current.min_tid,
                max_tid: current.tid,
                min_oid: current.min_oid,
                known: Map(known.into_iter().collect()),
            };
            operation.replicator.ask(io, request);
        }
        ReplicatorAfter::Added(attempt) => {
            let added = done!(done, Added);
            let Some(current) = operation.replicator.attempted(attempt) else { return };
            current.add_jobs -= 1;
            if current.add_jobs <= ADD_JOBS_MAX && !shared.is_congested {
                io.resume(current.conn);
            }
            if let Err(conflict) = added {
                log::error!("replication of partition {}: {conflict:?}", current.partition);
                abort(operation, shared, io, "conflict");
            }
        }
        ReplicatorAfter::ChunkEnded { partition, backup_tid, finished } => {
            let signed = done!(done, Signed);
            operation.replicator.signed(partition, &signed);
            if backup_tid.is_some() {
                shared.backup_tid = backup_tid;
            }
            if let Some(attempt) = finished {
                finish(operation, shared, io, attempt);
            }
        }
        ReplicatorAfter::BackupTid(tid) => shared.backup_tid = Some(tid),
    }
}

/// A partition is replicated, and it is on disk. Upstream: `finish`.
fn finish(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>, attempt: u64) {
    let replicator = &mut operation.replicator;
    let is_ended =
        |current: &mut Current| current.attempt == attempt && current.step == Step::Ending;
    let Some(current) = replicator.current.take_if(is_ended) else { return };
    let Current { partition, tid, source, conn, .. } = current;
    log::debug!("partition {partition} replicated up to {tid} from {source:?}");
    let Some(cell) = replicator.cells.get(&partition) else { return };
    let is_ordered_again =
        replicator.orders.contains_key(&partition) && !replicator.sources.contains_key(&partition);
    if cell.max_ttid.is_some() || is_ordered_again {
        log::debug!("unfinished transactions: {:?}", replicator.ttids);
    } else {
        operation.transactions.replicated(partition, tid);
    }
    // This source is good.
    if let Some(address) = io.address(conn) {
        io.waive_delay(address);
    }
    if shared.cell_state(partition) == Some(CellState::UpToDate) {
        // Only useful in backup mode.
        operation.pack.maybe_pack(&operation.replicator, shared, io);
    }
    poll(operation, shared, io);
}
