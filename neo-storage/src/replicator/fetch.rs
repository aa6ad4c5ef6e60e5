// SPDX-License-Identifier: GPL-2.0-or-later
//! What a source sends: chunk by chunk, checked, stored, recorded. See the parent module.

use std::collections::BTreeMap;

use neo_common::engine::{Fault, Handled, Io};
use neo_common::limits::FETCH_COUNT;
use neo_common::node::Node;
use neo_common::planted;
use neo_common::protocol::{CellState, Map, MsgId, Packet};
use neo_common::types::{ConnId, Oid, Partition, Tid, ZERO_HASH};

use super::{Current, Replicator, ReplicatorAfter, Source, Step, abort, poll};
use crate::app::{Shared, Storage, Ticket, done};
use crate::database::{
    ChunkEnd, Content, Done, ObjectRecord, PackOrder, Read, ReplicatedObject,
    ReplicatedTransaction, TransactionInfo, TransactionRecord, Value, Write,
};
use crate::limits::{ADD_BYTES, WAITING_REQUEST_BYTES};
use crate::operation::{Operation, OperationAfter, read_latest_for, write_for};
use crate::pack::Pack;

/// Jobs of received rows that are not done, above which nothing more is read from the source.
const ADD_JOBS_MAX: u32 = 3;

impl Replicator {
    /// The current replication, if these rows belong to its current request.
    fn receiving(&mut self, conn: ConnId, id: MsgId) -> Option<&mut Current> {
        self.current.as_mut().filter(|current| {
            current.conn == conn && matches!(current.step, Step::Fetching { id: i, .. } if i == id)
        })
    }

    /// The current replication, if this is the answer to its current request.
    pub(super) fn answered(&mut self, request: u64) -> Option<&mut Current> {
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

    /// Which of the own transactions of the range the source is told of. See the parent module.
    fn tell_known(&mut self, attempt: u64, pack: &Pack, mut known: Vec<Tid>) -> Vec<Tid> {
        let Self { current: Some(current), cells, .. } = self else { return known };
        let is_new = cells.get(&current.partition).is_some_and(|cell| cell.is_new);
        if is_new && current.attempt == attempt {
            let packed = pack.completed(current.partition).unwrap_or(Tid::ZERO);
            let told = known.split_off(known.partition_point(|tid| *tid <= packed));
            current.untold = known.into_iter().collect();
            known = told;
        }
        known
    }

    /// Pack orders that were replicated are signed now.
    fn signed(&mut self, partition: Partition, signed: &[Tid]) {
        if let Some(cell) = self.cells.get_mut(&partition) {
            cell.approved.retain(|id| !signed.contains(id));
            cell.rejected.retain(|id| !signed.contains(id));
        }
    }
}

/// Begins to fetch the current partition.
pub(super) fn fetch(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>) {
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
    current.untold.remove(&tid);
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
    if planted!(ReplicationSkipsFirst) && current.objects.is_empty() {
        return Ok(());
    }
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

/// `AnswerFetchTransactions`: a chunk of transactions is complete.
pub(crate) fn fetched_transactions(
    operation: &mut Operation,
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    request: u64,
    next_tid: Option<Tid>,
    mut delete_transactions: Vec<Tid>,
    source_pack_id: Option<Tid>,
) -> Handled {
    let partitions = shared.table.partitions();
    let source_pack_id = source_pack_id.filter(|_| !planted!(PackNotRepeated));
    let Some(current) = operation.replicator.answered(request) else { return Ok(()) };
    for tid in &delete_transactions {
        check_range(current, partitions, *tid)?;
    }
    if next_tid.is_some_and(|next| next <= current.min_tid || next > current.tid) {
        return Err(invalid("next transaction"));
    }
    flush(current, shared, io);
    // Later ones are for the next chunks.
    let missing = std::mem::take(&mut current.untold).into_iter();
    delete_transactions.extend(missing.filter(|tid| next_tid.is_none_or(|next| *tid < next)));
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
            cell.is_new = false;
            end.cell_tid = Some(current.tid).filter(|_| planted!(ReplicationProgressTooEarly));
            end.approved.clone_from(&cell.approved);
            end.rejected.clone_from(&cell.rejected);
            end_chunk(shared, io, end, None, None);
            let min_tid = cell.next_obj.unwrap_or(Tid::ZERO);
            current.is_full = min_tid == Tid::ZERO;
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
        // What was reached before remains true.
        Some(_) if current.is_again => None,
        Some((tid, _)) => {
            cell.next_obj = Some(tid);
            end.cell_tid = tid.previous();
            None
        }
        None => {
            cell.next_obj = current.tid.next();
            if planted!(ReplicationSkipsRange) {
                cell.next_obj = cell.next_obj.max(replicator.orders.get(&partition).copied());
            }
            end.cell_tid = Some(current.tid);
            current.full_passes += u32::from(current.is_full);
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
    if planted!(ReplicationKeepsDeleted) {
        (end.delete_transactions, end.delete_objects) = Default::default();
    }
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
            let Operation { replicator, pack, .. } = operation;
            let known = replicator.tell_known(attempt, pack, known);
            let Some(current) = replicator.attempted(attempt) else { return };
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

/// Asks the master whether something may have been packed that this cell has not packed.
fn confirm(current: &mut Current, packed: Option<Tid>, shared: &Shared, io: &mut Io<'_, Storage>) {
    current.step = Step::Confirming;
    let min_tid = packed.and_then(Tid::next).unwrap_or(Tid::ZERO);
    if let Some(master) = shared.master {
        // If the connection is closed, the operation ends.
        io.ask(master, Packet::AskPackOrders { min_tid }, Ticket::Confirm(current.attempt));
    }
}

/// The master told whether there are packs that the cell of this attempt has not done.
pub(crate) fn confirmed(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    attempt: u64,
    is_packed: bool,
) {
    let Some(current) = operation.replicator.attempted(attempt) else { return };
    if current.step != Step::Confirming {
        return;
    }
    if is_packed && current.full_passes < 2 {
        log::debug!("compare partition {} from the beginning: it was packed", current.partition);
        current.is_again = true;
        current.is_full = true;
        return list_objects(current, shared, io, Tid::ZERO, Oid::ZERO);
    }
    current.is_confirmed = true;
    current.step = Step::Ending;
    finish(operation, shared, io, attempt);
}

/// A partition is replicated, and it is on disk. Upstream: `finish`.
fn finish(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>, attempt: u64) {
    let replicator = &mut operation.replicator;
    let is_ended =
        |current: &&mut Current| current.attempt == attempt && current.step == Step::Ending;
    let Some(current) = replicator.current.as_mut().filter(is_ended) else { return };
    let partition = current.partition;
    let Some(cell) = replicator.cells.get(&partition) else { return };
    let is_ordered_again =
        replicator.orders.contains_key(&partition) && !replicator.sources.contains_key(&partition);
    let is_last = cell.max_ttid.is_none() && !is_ordered_again;
    if is_last && !current.is_confirmed {
        return confirm(current, operation.pack.completed(partition), shared, io);
    }
    log::debug!("partition {partition} replicated up to {} from {:?}", current.tid, current.source);
    let (tid, conn) = (current.tid, current.conn);
    replicator.current = None;
    if is_last {
        operation.transactions.replicated(partition, tid);
    } else {
        log::debug!("unfinished transactions: {:?}", replicator.ttids);
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
