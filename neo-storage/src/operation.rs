// SPDX-License-Identifier: GPL-2.0-or-later
//! A node that serves: transactions, replication, checks, packs and background tasks.
//!
//! Handlers change the state of this module; what [`Transactions`] decided is done in `advance`,
//! after each packet. Conflict checks are gathered there: as long as some are on their way to the
//! database, the next ones wait in order to go together.

use std::collections::BTreeMap;

use neo_common::engine::{Fault, Io};
use neo_common::planted;
use neo_common::protocol::{CellState, ErrorCode, MsgId, Packet};
use neo_common::types::{ConnId, NodeId, Oid, Partition, Tid, Ttid};

use crate::app::{After, Shared, Storage, done, read, read_latest, write};
use crate::background::{Background, BackgroundAfter};
use crate::checker::{Checker, CheckerAfter};
use crate::database::{
    self, CellNext, Content, DataId, Done, PackOrder, PackedCell, Read, Refused, StoreCheck,
    TransactionRecord, Write,
};
use crate::handlers::{client, refuse, storage};
use crate::limits::{CHECK_JOBS_MAX, CHECKS_LEN_MAX, JOBS_HIGH, JOBS_LOW};
use crate::pack::{Pack, PackAfter};
use crate::reads::{Delayed, DelayedRead, Reads};
use crate::replicator::{Replicator, ReplicatorAfter};
use crate::transactions::{AbortStep, CellMode, Effect, Spill, Transactions, VoteStep};

/// What to do when a job of the operation is done.
#[derive(Clone, PartialEq, Debug)]
pub enum OperationAfter {
    /// Last revisions of these objects.
    Checked(Vec<StoreCheck>),
    /// The vote is durable.
    Voted {
        /// Who waits for the answer.
        conn: ConnId,
        /// Request to be answered.
        id: MsgId,
        /// Transaction.
        ttid: Ttid,
        /// Answer if it is not refused.
        answer: Packet,
        /// Spilled data, to be released if it is refused.
        spilled: Vec<DataId>,
    },
    /// The final tid is durable.
    Locked {
        /// Who waits for the answer.
        conn: ConnId,
        /// Request to be answered.
        id: MsgId,
        /// Transaction.
        ttid: Ttid,
    },
    /// The final rows are visible.
    Unlocked(Ttid),
    /// Data is written ahead of the vote.
    Spilled {
        /// See [`Spill`].
        id: u64,
        /// Transaction.
        ttid: Ttid,
        /// Objects.
        oids: Vec<Oid>,
    },
    /// Data for conflict resolution.
    GivenBack {
        /// Who waits for the answer.
        conn: ConnId,
        /// Request to be answered.
        id: MsgId,
        /// Serial of the store, and tid of the conflict.
        conflict: (Tid, Tid),
    },
    /// See [`crate::background`].
    Background(BackgroundAfter),
    /// See [`crate::pack`].
    Pack(PackAfter),
    /// See [`crate::replicator`].
    Replicator(ReplicatorAfter),
    /// See [`crate::checker`].
    Checker(CheckerAfter),
    /// See [`crate::handlers::storage`].
    Served(storage::ServedAfter),
    /// Where replication resumes in backup mode.
    BackupStarted,
    /// Last ids, for the first backup tid.
    BackupLastIds,
}

/// A vote that waits for data to be written ahead.
#[derive(Debug)]
pub(crate) struct VoteRequest {
    pub conn: ConnId,
    pub id: MsgId,
    pub client: NodeId,
    pub info: Option<(TransactionRecord, Option<PackOrder>)>,
}

/// State of a node that serves.
#[derive(Debug)]
pub struct Operation {
    pub(crate) transactions: Transactions,
    pub(crate) replicator: Replicator,
    pub(crate) checker: Checker,
    pub(crate) pack: Pack,
    pub(crate) background: Background,
    pub(crate) feeding: storage::Feeding,
    pub(crate) reads: Reads,
    pub(crate) delayed: Delayed,
    late_votes: BTreeMap<Ttid, VoteRequest>,
    checks: Vec<StoreCheck>,
    check_jobs: usize,
}

impl Operation {
    /// Nobody is served yet.
    pub(crate) fn new(
        shared: &Shared,
        next_tids: Vec<(Partition, CellNext)>,
        packed: &[PackedCell],
    ) -> Self {
        let mode = |partition| match shared.cell_state(partition) {
            Some(CellState::UpToDate | CellState::Feeding) => CellMode::Readable,
            Some(CellState::OutOfDate) => CellMode::Replicating,
            Some(CellState::Corrupted | CellState::Discarded) | None => CellMode::Unassigned,
        };
        let modes = (0..shared.table.partitions()).map(mode).collect();
        Self {
            transactions: Transactions::new(modes),
            replicator: Replicator::new(next_tids),
            checker: Checker::default(),
            pack: Pack::new(packed),
            background: Background::default(),
            feeding: storage::Feeding::default(),
            reads: Reads::default(),
            delayed: Delayed::default(),
            late_votes: BTreeMap::new(),
            checks: Vec::new(),
            check_jobs: 0,
        }
    }

    /// Goes on with what was in progress before.
    pub(crate) fn begin(&mut self, shared: &mut Shared, io: &mut Io<'_, Storage>) {
        self.replicator.begin(shared, io);
        self.background.poll(shared, io);
        self.pack.maybe_pack(&self.replicator, shared, io);
    }

    /// Lines about transactions, for the log.
    pub(crate) fn dump(&self) {
        for line in self.transactions.dump() {
            log::info!("{line}");
        }
        log::info!("replicator: {:?}", self.replicator);
        log::info!("checker: {:?}", self.checker);
    }

    /// See [`Storage::check_invariants`].
    pub(crate) fn check_invariants(&self, shared: &Shared) {
        self.transactions.check_invariants();
        for partition in 0..shared.table.partitions() {
            let mode = self.transactions.mode(partition);
            let expected = match shared.cell_state(partition) {
                Some(CellState::UpToDate | CellState::Feeding) => mode == CellMode::Readable,
                Some(CellState::OutOfDate) => {
                    mode != CellMode::Readable && mode != CellMode::Unassigned
                }
                Some(CellState::Corrupted | CellState::Discarded) | None => {
                    mode == CellMode::Unassigned
                }
            };
            assert!(expected, "partition {partition} in {mode:?}");
        }
        self.delayed.check_invariants(&self.transactions);
    }

    // Reads that wait.

    /// Tries delayed reads again: those of these objects, and those that depend on tids.
    pub(crate) fn retry_reads(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        loadable: &[Oid],
    ) {
        let reads = self.delayed.take(&self.transactions, loadable);
        for DelayedRead { conn, id, packet } in reads {
            if !io.is_open(conn) {
                continue;
            }
            let handled = match packet {
                Packet::AskFetchTransactions { .. } | Packet::AskCheckTIDRange { .. } => {
                    storage::serve(self, shared, io, conn, id, packet)
                }
                packet => client::read::read_again(self, shared, io, conn, id, packet),
            };
            if let Err(fault) = handled {
                refuse(io, conn, id, &fault);
            }
        }
        let Self { checker, replicator, transactions, .. } = self;
        checker.poll(replicator, transactions, shared, io);
    }

    /// Reads of these partitions do not wait any more, whatever their answer.
    fn retry_discarded(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        partitions: &[Partition],
    ) {
        let count = shared.table.partitions();
        let is_gone = |oid: &&Oid| partitions.contains(&oid.partition(count));
        let oids: Vec<Oid> = self.delayed.oids().filter(is_gone).copied().collect();
        self.retry_reads(shared, io, &oids);
    }

    // Transactions.

    /// Votes, once nothing has to be written ahead any more.
    pub(crate) fn vote(
        &mut self,
        shared: &Shared,
        io: &mut Io<'_, Storage>,
        ttid: Ttid,
        request: VoteRequest,
    ) -> Result<(), Fault> {
        let VoteRequest { conn, id, client, .. } = request;
        let step = self.transactions.vote(client, ttid, request.info.is_some())?;
        let answer = match request.info {
            Some(_) => Packet::AnswerStoreTransaction {},
            None => Packet::AnswerVoteTransaction {},
        };
        match step {
            VoteStep::Done => io.answer(conn, id, answer),
            VoteStep::Later => {
                self.late_votes.insert(ttid, request);
            }
            VoteStep::Write(objects) => {
                let (transaction, pack) = match request.info {
                    Some((transaction, pack)) => (Some(transaction), pack),
                    None => (None, None),
                };
                let spilled = objects.iter().filter_map(|object| match object.content {
                    Content::Spilled(data_id) => Some(data_id),
                    Content::Value(_) | Content::Deleted | Content::MustExist => None,
                });
                let spilled = spilled.collect();
                let partitions = shared.table.partitions();
                let vote = database::Vote { ttid, partitions, objects, transaction, pack };
                // The answer leaves after the commit.
                let after = OperationAfter::Voted { conn, id, ttid, answer, spilled };
                self.write(shared, io, Write::Vote(Box::new(vote)), after);
            }
        }
        Ok(())
    }

    /// Writes data ahead of the vote if a transaction holds too much of it.
    pub(crate) fn maybe_spill(&mut self, shared: &Shared, io: &mut Io<'_, Storage>, ttid: Ttid) {
        let Some(Spill { id, ttid, objects }) = self.transactions.take_spill(ttid) else { return };
        let oids = objects.iter().map(|object| object.oid).collect();
        let job = Write::Spill { partitions: shared.table.partitions(), objects };
        self.write(shared, io, job, OperationAfter::Spilled { id, ttid, oids });
    }

    /// Aborts a transaction, unless it is locked.
    pub(crate) fn abort(&mut self, io: &mut Io<'_, Storage>, ttid: Ttid) {
        if let Some(late) = self.late_votes.remove(&ttid) {
            let fault = Fault::protocol(format!("unknown ttid {ttid}"));
            refuse(io, late.conn, late.id, &fault);
        }
        if let Some(AbortStep { ttid, voted, spilled }) = self.transactions.abort(ttid)
            && (voted || !spilled.is_empty())
            && !planted!(AbortKeepsRows)
        {
            write(io, Write::Abort { ttid, spilled }, After::Nothing);
        }
    }

    /// Aborts the transactions of a client, except those that are locked.
    pub(crate) fn abort_for(
        &mut self,
        io: &mut Io<'_, Storage>,
        client: NodeId,
        even_if_voted: bool,
    ) {
        for ttid in self.transactions.of_client(client, even_if_voted) {
            self.abort(io, ttid);
        }
    }

    /// The master commits a transaction.
    pub(crate) fn unlock(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        ttid: Ttid,
    ) -> Result<(), Fault> {
        let step = self.transactions.unlock(ttid)?;
        if step.in_database {
            let job = Write::Unlock { ttid, tid: step.tid, metadata: step.metadata };
            self.write(shared, io, job, OperationAfter::Unlocked(ttid));
        } else {
            self.unlocked(shared, io, ttid);
        }
        Ok(())
    }

    fn unlocked(&mut self, shared: &mut Shared, io: &mut Io<'_, Storage>, ttid: Ttid) {
        let loadable = self.transactions.unlocked(ttid);
        self.retry_reads(shared, io, &loadable);
    }

    /// Own cells are gone: returns spilled data that is not needed any more.
    pub(crate) fn discarded(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        partitions: &[Partition],
    ) -> Vec<DataId> {
        let released = self.transactions.discarded(partitions);
        self.retry_discarded(shared, io, partitions);
        released
    }

    /// Submits a job whose result matters only to this operation.
    pub(crate) fn write(
        &self,
        shared: &Shared,
        io: &mut Io<'_, Storage>,
        job: Write,
        after: OperationAfter,
    ) {
        write(io, job, After::Operation { epoch: shared.epoch, after });
    }
}

/// Submits a read whose result matters only to the current operation.
pub(crate) fn read_for(
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    job: Read,
    after: OperationAfter,
) {
    read(io, job, After::Operation { epoch: shared.epoch, after });
}

/// Submits a read of what was written so far.
pub(crate) fn read_latest_for(
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    job: Read,
    after: OperationAfter,
) {
    read_latest(io, job, After::Operation { epoch: shared.epoch, after });
}

/// Submits a change whose result matters only to the current operation.
pub(crate) fn write_for(
    shared: &Shared,
    io: &mut Io<'_, Storage>,
    job: Write,
    after: OperationAfter,
) {
    write(io, job, After::Operation { epoch: shared.epoch, after });
}

/// Partitions were taken from this node.
pub(crate) fn to_drop(app: &mut Storage, io: &mut Io<'_, Storage>, partitions: Vec<Partition>) {
    if partitions.is_empty() {
        return;
    }
    if app.shared.config.disable_drop_partitions {
        log::info!("don't drop data for partitions {partitions:?}");
        return;
    }
    // They may have come back while the change was being stored.
    let shared = &mut app.shared;
    let gone = partitions.into_iter().filter(|p| shared.cell_state(*p).is_none());
    let gone: Vec<Partition> = gone.collect();
    shared.to_drop.extend(gone);
    if let Some((operation, shared)) = app.operation() {
        operation.background.poll(shared, io);
    }
}

/// Does what was decided, after each input. Cheap when nothing was.
pub(crate) fn advance(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>) {
    if operation.transactions.has_effects() {
        perform(operation, shared, io);
    }
    if !operation.checks.is_empty() && operation.check_jobs < CHECK_JOBS_MAX {
        let count = operation.checks.len().min(CHECKS_LEN_MAX);
        let checks: Vec<StoreCheck> = operation.checks.drain(..count).collect();
        operation.check_jobs += 1;
        let job = Read::CheckStores {
            partitions: shared.table.partitions(),
            checks: checks.clone(), // the answer has no oids
        };
        read_for(shared, io, job, OperationAfter::Checked(checks));
    }
    let jobs_len = io.jobs_len();
    if shared.is_congested {
        if jobs_len < JOBS_LOW {
            set_congested(shared, io, false);
        }
    } else if jobs_len > JOBS_HIGH {
        set_congested(shared, io, true);
    }
}

/// Stops or resumes reading from peers, but never from the master: what it says ends what others
/// wait for.
fn set_congested(shared: &mut Shared, io: &mut Io<'_, Storage>, congested: bool) {
    log::debug!("congested: {congested}, jobs={}", io.jobs_len());
    shared.is_congested = congested;
    let conns: Vec<ConnId> = io.connections().filter(|c| Some(*c) != shared.master).collect();
    for conn in conns {
        if congested {
            io.pause(conn);
        } else {
            io.resume(conn);
        }
    }
}

fn perform(operation: &mut Operation, shared: &mut Shared, io: &mut Io<'_, Storage>) {
    let mut released = Vec::new();
    for effect in operation.transactions.take_effects() {
        match effect {
            Effect::Answer(conn, id, packet) => io.answer(conn, id, packet),
            Effect::Refuse(conn, id, fault) => refuse(io, conn, id, &fault),
            Effect::Check(check) => operation.checks.push(check),
            Effect::NotifyDeadlock(client, ttid, oid) => {
                // If the client is gone, its transactions are about to be aborted.
                let node = shared.nodes.by_nid(client);
                if let Some(conn) = node.and_then(neo_common::node::Node::identified) {
                    io.send(conn, Packet::NotifyDeadlock { ttid, oid });
                }
            }
            Effect::GiveBack { conn, id, conflict, data_id } => {
                let after = OperationAfter::GivenBack { conn, id, conflict };
                read_latest_for(shared, io, Read::Data(data_id), after);
                // In order after the read.
                released.push(data_id);
            }
            Effect::Release(data_id) => released.push(data_id),
            Effect::Replicated(partition, tid) => {
                log::info!("replicated partition={partition} tid={tid}");
                shared.notify_master(io, Packet::NotifyReplicationDone { partition, tid });
            }
        }
    }
    if !released.is_empty() {
        write(io, Write::Release(released), After::Nothing);
    }
}

/// A job of a past operation is done.
pub(crate) fn late_job_done(io: &mut Io<'_, Storage>, after: OperationAfter) {
    // The master takes no other answer before this one, even if it does not wait for it any more;
    // and it is true.
    if let OperationAfter::Locked { conn, id, ttid } = after {
        io.answer(conn, id, Packet::AnswerInformationLocked { ttid });
    }
}

/// A job of this operation is done.
pub(crate) fn job_done(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    after: OperationAfter,
    done: Done,
) {
    match after {
        OperationAfter::Checked(checks) => {
            operation.check_jobs -= 1;
            let results = done!(done, StoresChecked);
            assert_eq!(checks.len(), results.len(), "one result per check");
            for (check, result) in checks.iter().zip(results) {
                operation.transactions.checked(check.oid, result.last_tid, result.data_tid_exists);
            }
        }
        OperationAfter::Voted { conn, id, ttid, answer, spilled } => {
            let result = done!(done, Voted);
            operation.transactions.voted(ttid, result);
            match result {
                Ok(()) => io.answer(conn, id, answer),
                Err(refused) => {
                    if !spilled.is_empty() {
                        write(io, Write::Release(spilled), After::Nothing);
                    }
                    refuse_vote(io, conn, id, refused);
                }
            }
        }
        OperationAfter::Locked { conn, id, ttid } => {
            operation.transactions.locked(ttid);
            io.answer(conn, id, Packet::AnswerInformationLocked { ttid });
        }
        OperationAfter::Unlocked(ttid) => operation.unlocked(shared, io, ttid),
        OperationAfter::Spilled { id, ttid, oids } => {
            let votes = match done!(done, Spilled) {
                Ok(contents) => operation.transactions.spilled(ttid, id, &oids, contents),
                Err(refused) => {
                    log::error!("data not written ahead ttid={ttid}: {refused:?}");
                    operation.transactions.spill_refused(ttid, id)
                }
            };
            if votes && let Some(request) = operation.late_votes.remove(&ttid) {
                let (conn, id) = (request.conn, request.id);
                if let Err(fault) = operation.vote(shared, io, ttid, request) {
                    refuse(io, conn, id, &fault);
                }
            }
        }
        OperationAfter::GivenBack { conn, id, conflict: (serial, tid) } => {
            let value = done!(done, Data).expect("spilled data is there until it is released");
            let data = (u32::from(value.compression), value.checksum, value.data);
            let conflict = Some((serial, tid, Some(data)));
            io.answer(conn, id, Packet::AnswerRelockObject { conflict });
        }
        OperationAfter::Background(after) => {
            operation.background.job_done(shared, io, after, done);
        }
        OperationAfter::Pack(after) => {
            let Operation { pack, replicator, transactions, .. } = operation;
            pack.job_done(replicator, transactions, shared, io, after, done);
        }
        OperationAfter::Replicator(after) => {
            crate::replicator::job_done(operation, shared, io, after, done);
        }
        OperationAfter::Checker(after) => {
            let Operation { checker, replicator, transactions, .. } = operation;
            checker.job_done(replicator, transactions, shared, io, after, done);
        }
        OperationAfter::Served(after) => storage::served(operation, shared, io, after, done),
        OperationAfter::BackupLastIds => {
            let last_tid = done!(done, LastIds).last_tid.unwrap_or(Tid::ZERO);
            start_backup(shared, io, last_tid);
        }
        OperationAfter::BackupStarted => {
            let next_tids = done!(done, CellNextTids);
            crate::replicator::backup_started(operation, shared, io, &next_tids);
        }
    }
}

/// Enters backup mode while serving. Upstream: storage/replicator.py, `startOperation`.
pub(crate) fn start_backup(shared: &mut Shared, io: &mut Io<'_, Storage>, backup_tid: Tid) {
    if shared.backup_tid.is_some() {
        return;
    }
    shared.backup_tid = Some(backup_tid);
    write(io, Write::SetBackupTid(Some(backup_tid)), After::Nothing);
    read_latest_for(shared, io, Read::CellNextTids, OperationAfter::BackupStarted);
}

fn refuse_vote(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId, refused: Refused) {
    match refused {
        Refused::UndoPack(oid) => {
            let message = format!("Could not undo for oid {oid}");
            io.answer(conn, id, Packet::error(ErrorCode::UndoPackError, message));
        }
        Refused::Collision(oid) => {
            let fault = Fault::protocol(format!("hash collision for oid {oid}"));
            refuse(io, conn, id, &fault);
        }
        Refused::InvalidOid(oid) => {
            refuse(io, conn, id, &Fault::protocol(format!("invalid oid {oid}")));
        }
        Refused::MetadataTooLong => {
            let message = "user, description or extension is longer than 65535 bytes";
            refuse(io, conn, id, &Fault::protocol(message));
        }
    }
}
