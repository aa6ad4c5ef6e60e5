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
//! Packs make this incomplete: they also remove the deletion of an object, with the object.
//! 1. An object is deleted while this node is away.
//! 2. The source packs: it has nothing of the object any more.
//! 3. This node is back, and only compares what is newer than what it had: for it, the object would
//!    exist for ever.
//!
//! The same may happen while a pack goes on at the source: the object is still there when its range is
//! compared, its deletion is not there any more when it is the turn of the deletion. So before the end, the
//! master is asked if there are packs that this cell has not done; if there are, objects are compared from
//! the beginning, so that there are two such comparisons with one source: what the first one could not get
//! was gone before the second one began.
//!
//! Transactions are compared by their tids, so that nothing is said of those that both have. This is not
//! enough for a new cell:
//! 1. A cell of this node is discarded; its data is to be deleted, which takes time.
//! 2. The others do a full pack, which marks transactions: they can not be undone any more.
//! 3. The partition is given back to this node: the new cell has done all packs, for what it is going to
//!    fetch.
//!
//! Transactions that are left of the first cell would not be marked, for ever. So the source is not told of
//! those that a pack of the cell may have marked: it sends them again, and those that it does not send are
//! deleted here.
//!
//! A node can not rely on others to fetch what is being committed, so cells that are out of date are
//! written too:
//! 1. ask the master which transactions are not finished; from this answer on, new transactions are
//!    stored here in full;
//! 2. replicate up to the last transaction;
//! 3. wait until the transactions of 1. are finished, and replicate again up to the last of them;
//! 4. when no store without lock remains, tell the master.
//!
//! In backup mode, orders come from the master (`replicate`), which also says from where.
//!
//! What is received is checked against what was asked: an object that belongs elsewhere would
//! corrupt a cell. A source that fails is tried again after a while, other partitions come first.

mod fetch;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use neo_common::engine::{Fault, Handled, Io};
use neo_common::node::NodeKey;
use neo_common::planted;
use neo_common::protocol::{CellState, Map, MsgId, Packet};
use neo_common::types::{ConnId, Oid, Partition, Tid, Ttid};

use crate::app::{Shared, Storage, Ticket, Timer};
use crate::database::{CellNext, ReplicatedObject, ReplicatedTransaction, Write};
use crate::handlers::master::OwnCells;
use crate::limits::RETRY_SOURCE_DELAY;
use crate::operation::{Operation, OperationAfter, write_for};

pub(crate) use fetch::{
    add_object, add_transaction, confirmed, fetched_objects, fetched_transactions, job_done,
};
pub(crate) use source::{close_client, connect_node, connected, connection_lost, identify};

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
    /// The cell is new, and its transactions were not all compared: some may be left of another cell.
    is_new: bool,
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
            is_new: next_trans == Some(Tid::ZERO) && max_ttid.is_some(),
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
    /// Waits for the master: are there packs that this cell has not done?
    Confirming,
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
    /// Own transactions of the range that the source was not told of, and that it did not send yet.
    untold: BTreeSet<Tid>,
    /// Comparisons of all objects from the beginning that are finished.
    full_passes: u32,
    /// The current comparison of objects began at the beginning.
    is_full: bool,
    /// Objects are being compared again.
    is_again: bool,
    /// Objects are complete, whatever was packed.
    is_confirmed: bool,
    /// Received rows that are not given to the database yet.
    transactions: Vec<ReplicatedTransaction>,
    objects: Vec<ReplicatedObject>,
    bytes: usize,
    /// Jobs that store received rows.
    add_jobs: u32,
}

/// What the master orders in backup mode: `Replicate`.
#[derive(Debug)]
struct Order {
    tid: Tid,
    upstream_name: String,
    sources: Map<Partition, Option<SocketAddr>>,
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
    upstream: BTreeMap<SocketAddr, source::Upstream>,
    /// Orders that wait until it is known where cells resume, while backup mode begins.
    parked: Option<Vec<Order>>,
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

    /// Whether replication waits for the end of a transaction.
    pub fn awaits(&self, ttid: Ttid) -> bool {
        self.ttids.contains(&ttid)
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
        let max_ttid = ttids.iter().max().copied().filter(|_| !planted!(UnfinishedNotAwaited));
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

    /// Backup mode is about to begin; `false` if it was told already.
    ///
    /// 1. The master tells to begin, and what to replicate right behind it.
    /// 2. The database is asked where cells resume.
    /// 3. A partition with little data is replicated.
    /// 4. The answer of the database arrives, from before that.
    ///
    /// If the cell took it, the backup tid would stay at the beginning until the next transaction
    /// upstream: readers would see nothing, and without the upstream cluster everything would be
    /// truncated. So orders wait for the answer.
    pub(crate) fn backup_starting(&mut self) -> bool {
        self.parked.is_none() && {
            self.parked = Some(Vec::new());
            true
        }
    }

    /// Backup mode begins: where readable cells resume.
    fn backup_started(&mut self, next_tids: &[(Partition, CellNext)]) {
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
                // All were aborted: nothing more to fetch, but the end has to be confirmed.
                log::debug!("all unfinished transactions are aborted partition={partition}");
                let tid = cell.next_obj.and_then(Tid::previous).unwrap_or(Tid::ZERO);
                replicator.orders.insert(*partition, tid);
            }
        }
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
    let order = Order { tid, upstream_name: upstream_name.to_owned(), sources };
    match &mut operation.replicator.parked {
        Some(parked) => parked.push(order),
        None => obey(operation, shared, io, order),
    }
    Ok(())
}

/// Backup mode begins: where readable cells resume, according to the database.
pub(crate) fn backup_started(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    next_tids: &[(Partition, CellNext)],
) {
    operation.replicator.backup_started(next_tids);
    for order in operation.replicator.parked.take().unwrap_or_default() {
        obey(operation, shared, io, order);
    }
}

fn obey(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    Order { tid, upstream_name, sources }: Order,
) {
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
                replicator.sources.insert(partition, (address, upstream_name.clone()));
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
    if let Some(parked) = &mut replicator.parked {
        parked.retain(|order| order.upstream_name.is_empty());
    }
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
        let Some(source) = source::choose_source(replicator, shared, io, partition) else {
            log::debug!("no source for partition {partition}");
            if let Some(cell) = replicator.cells.get_mut(&partition) {
                cell.retry_at = now + RETRY_SOURCE_DELAY;
            }
            continue;
        };
        let previous = replicator.last_conn;
        let (conn, is_identified) = source::connection(replicator, shared, io, &source);
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
            untold: BTreeSet::new(),
            full_passes: 0,
            is_full: false,
            is_again: false,
            // In a backup cluster, orders are replicated as well, before what they pack.
            is_confirmed: shared.backup_tid.is_some(),
            transactions: Vec::new(),
            objects: Vec::new(),
            bytes: 0,
            add_jobs: 0,
        });
        if let Some(previous) = previous.filter(|previous| *previous != conn) {
            close_client(operation, io, previous);
        }
        if is_identified {
            fetch::fetch(operation, shared, io);
        }
        return;
    }
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
