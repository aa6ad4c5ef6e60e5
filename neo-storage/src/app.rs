// SPDX-License-Identifier: GPL-2.0-or-later
//! The storage node as a core: what all its phases share, and the entry points of the engine.
//! Upstream: storage/app.py.
//!
//! The phases are in [`crate::phase`]; what the node does while it serves clients is in
//! [`crate::operation`]. Everything that touches the disk is a [`Job`], whose result comes back with
//! an [`After`].

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use neo_common::engine::bootstrap::{self, Bootstrap, Bootstrapping};
use neo_common::engine::{App, CallId, EXIT_BY_SIGNAL, Handled, Handler, Io, Signal};
use neo_common::node::{ListKind, NodeKey, NodeManager};
use neo_common::partition_table::PartitionTable;
use neo_common::protocol::{CellState, Map, MsgId, NodeType, Packet, Rows, Value};
use neo_common::types::{ConnId, NodeId, Partition, Tid};

use crate::database::{self, Read, StoredCell, StoredConfig, Write};
use crate::handlers::identification::{Identification, IdentificationHandler};
use crate::handlers::{client, initialization, master, storage};
use crate::operation::{self, Operation, OperationAfter};
use crate::phase::{self, Phase, Start, Transition};
use crate::transactions::Transactions;

/// What a storage must be told to exist.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// Masters known at start.
    pub masters: Vec<SocketAddr>,
    /// Where clients and other storages connect.
    pub address: SocketAddr,
    /// Node id to begin with (for tests). One that is stored already wins.
    pub nid: Option<NodeId>,
    /// Topology path, for the placement of replicas: host name and device of the database.
    pub devpath: Vec<String>,
    /// Ask for a new node id for a cloned database, store it and end.
    pub new_nid: bool,
    /// Do not process pack orders.
    pub disable_pack: bool,
    /// Keep the data of discarded cells.
    pub disable_drop_partitions: bool,
    /// Whether changes of the list of masters are worth a [`Job::SaveMasters`].
    pub save_masters: bool,
}

/// What the database says when it is opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// Its configuration.
    pub config: StoredConfig,
    /// Its partition table.
    pub cells: Vec<StoredCell>,
}

/// Work for another thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// For the database.
    Database(database::Job),
    /// Write the dynamic list of masters.
    SaveMasters(Vec<SocketAddr>),
}

/// Result of a [`Job`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// Of the database.
    Database(database::Done),
    /// Whether the list of masters was written.
    MastersSaved(Result<(), String>),
}

/// What to do when a job is done.
#[derive(Clone, PartialEq, Debug)]
pub enum After {
    /// Nothing.
    Nothing,
    /// Send this answer.
    Answer(ConnId, MsgId, Packet),
    /// End the process.
    Exit(i32),
    /// Remember what has to be dropped.
    TableStored,
    /// A slice of the truncation is done.
    Truncated(ConnId, MsgId),
    /// Tell how far packs are, then look for the last ids.
    LastIdsPacked(ConnId, MsgId),
    /// Tell the last ids.
    LastIds(ConnId, MsgId),
    /// Tell the unfinished transactions.
    Unfinished(ConnId, MsgId),
    /// Tell the final tid.
    FinalTid(ConnId, MsgId),
    /// Tell the pack orders.
    PackOrders(ConnId, MsgId),
    /// Remember which of these pack orders are not here yet.
    PacksSigned {
        /// Approved pack ids.
        approved: Vec<Tid>,
        /// Rejected pack ids.
        rejected: Vec<Tid>,
    },
    /// Something that the node needs to know before it serves.
    Starting {
        /// What was asked before is ignored.
        attempt: u32,
        /// What is known now.
        what: Start,
    },
    /// Give a client what it reads.
    Read(client::read::ReadAfter),
    /// The operation goes on, unless it is another one.
    Operation {
        /// Number of the operation that submitted the job.
        epoch: u32,
        /// What to do.
        after: OperationAfter,
    },
}

/// What to do with an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ticket {
    /// We identify, to a master or a storage.
    Identification,
    /// Transactions to wait for before these partitions are complete; number of the question.
    Unfinished(Vec<Partition>, u64),
    /// The next pack order after this one.
    PackOrders(Tid),
    /// Replication; number of the request.
    Fetch(u64),
    /// The end of the replication of a partition; number of the attempt.
    Confirm(u64),
    /// Check of replicas; number of the request.
    Check(u64),
}

/// Named timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// Look for a source of replication again.
    Replicator,
}

/// What all phases share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) config: Config,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) nodes: NodeManager,
    pub(crate) table: PartitionTable,
    /// Connection to the primary master.
    pub(crate) master: Option<ConnId>,
    /// Whether the next list of nodes is the full one.
    pub(crate) list: ListKind,
    /// Present in backup mode.
    pub(crate) backup_tid: Option<Tid>,
    /// A truncation has to be done.
    pub(crate) truncate_tid: Option<Tid>,
    /// Last approved pack order.
    pub(crate) last_pack_id: Tid,
    /// Last completed pack that the master was told.
    pub(crate) completed_pack_id: Tid,
    /// Node id that own cells of the stored table have.
    pub(crate) stored_nid: Option<NodeId>,
    /// See [`crate::database::StoredConfig::dropped`].
    dropped: Option<NodeId>,
    /// Partitions whose data does not belong here any more.
    pub(crate) to_drop: BTreeSet<Partition>,
    /// Peers that wait to be known.
    pub(crate) identifications: Vec<Identification>,
    /// Number of operations that were started or ended.
    pub(crate) epoch: u32,
    /// Number of times that a start was attempted.
    attempt: u32,
    /// Nothing is read from clients and storages.
    pub(crate) is_congested: bool,
    /// Clients that import transactions, and up to which tid these are marked as packed.
    pub(crate) packed_until: BTreeMap<NodeId, Tid>,
}

/// Property of a storage: see [`crate::database::StoredConfig::dropped`].
const DROPPED: &[u8] = b"dropped";

impl Shared {
    /// Own node id, once given by a master (or stored).
    pub(crate) fn nid(&self) -> Option<NodeId> {
        self.bootstrap.nid
    }
    /// The partition table changed. `greatest` is the greatest id in it before: masters are told if it is
    /// gone, because nobody else remembers it.
    pub(crate) fn note_dropped(&mut self, greatest: Option<NodeId>) {
        if greatest > self.dropped && self.table.nodes().max() < greatest {
            self.set_dropped(greatest);
        }
    }
    fn set_dropped(&mut self, nid: Option<NodeId>) {
        self.dropped = nid;
        let extra = &mut self.bootstrap.extra.0;
        extra.retain(|(key, _)| key != DROPPED);
        extra.extend(nid.map(|nid| (Bytes::from_static(DROPPED), Value::Int(nid.get().into()))));
    }
    /// Partitions that can be read here.
    pub(crate) fn readable(&self) -> Vec<Partition> {
        self.nid().map(|nid| self.table.readable_of(nid).collect()).unwrap_or_default()
    }
    /// Whether the own cell of a partition is readable.
    pub(crate) fn is_readable(&self, partition: Partition) -> bool {
        self.nid().is_some_and(|nid| self.table.is_readable(partition, nid))
    }
    /// State of the own cell of a partition.
    pub(crate) fn cell_state(&self, partition: Partition) -> Option<CellState> {
        self.nid().and_then(|nid| self.table.cell_state(partition, nid))
    }
    /// A number that no attempt to start had.
    pub(crate) fn next_attempt(&mut self) -> u32 {
        self.attempt += 1;
        self.attempt
    }
    /// Sends a notification to the primary master.
    pub(crate) fn notify_master(&self, io: &mut Io<'_, Storage>, packet: Packet) {
        if let Some(master) = self.master {
            io.send(master, packet);
        }
    }
}

/// A storage node.
#[derive(Debug)]
pub struct Storage {
    pub(crate) phase: Phase,
    pub(crate) shared: Shared,
}

impl Storage {
    /// A storage that is not connected to anything.
    ///
    /// # Errors
    /// What is wrong with the stored partition table, or if there is none although `new_nid` needs
    /// one.
    pub fn new(config: Config, stored: Stored) -> Result<Self, String> {
        let mut nodes = NodeManager::new();
        for address in &config.masters {
            nodes.create_master(*address).map_err(|error| error.to_string())?;
        }
        let table = stored_table(&stored)?;
        // Without a table, this node was not part of the cluster yet: see `phase::identified`.
        let own = stored.config.nid.filter(|_| table.ptid().is_some());
        let assigned: Vec<Partition> = own
            .map(|nid| table.cells_of(nid).map(|(partition, _)| partition).collect())
            .unwrap_or_default();
        if config.new_nid && assigned.is_empty() {
            return Err("database is empty".into());
        }
        // A new nid is for a node without address: it does not stay.
        let (nid, address, new_nid) = match config.new_nid {
            true => (None, None, assigned),
            false => (own.or(config.nid), Some(config.address), Vec::new()),
        };
        let text = |text: &String| Value::text(text);
        let extra = Map(vec![
            (
                Bytes::from_static(b"devpath"),
                Value::Array(config.devpath.iter().map(text).collect()),
            ),
            (
                Bytes::from_static(b"new_nid"),
                Value::Array(new_nid.into_iter().map(|p| Value::Int(p.into())).collect()),
            ),
        ]);
        let bootstrap =
            Bootstrap::new(NodeType::Storage, config.cluster.clone(), nid, address, extra);
        let shared = Shared {
            config,
            bootstrap,
            nodes,
            table,
            master: None,
            list: ListKind::Full,
            backup_tid: stored.config.backup_tid,
            truncate_tid: stored.config.truncate_tid,
            last_pack_id: Tid::ZERO,
            completed_pack_id: Tid::ZERO,
            stored_nid: own,
            dropped: None,
            to_drop: BTreeSet::new(),
            identifications: Vec::new(),
            epoch: 0,
            attempt: 0,
            is_congested: false,
            packed_until: BTreeMap::new(),
        };
        let mut app = Self { phase: Phase::Bootstrap, shared };
        app.shared.set_dropped(stored.config.dropped);
        Ok(app)
    }

    /// Own node id.
    pub fn nid(&self) -> Option<NodeId> {
        self.shared.nid()
    }
    /// Whether clients are served.
    pub fn is_operational(&self) -> bool {
        matches!(self.phase, Phase::Operation(_))
    }
    /// Partition table as this node knows it.
    pub fn table(&self) -> &PartitionTable {
        &self.shared.table
    }
    /// Present in backup mode: what clients may see.
    pub fn backup_tid(&self) -> Option<Tid> {
        self.shared.backup_tid
    }
    /// Transactions under way and their locks, while clients are served.
    pub fn transactions(&self) -> Option<&Transactions> {
        match &self.phase {
            Phase::Operation(operation) => Some(&operation.transactions),
            _ => None,
        }
    }
    /// State and shared state, while clients are served.
    pub(crate) fn operation(&mut self) -> Option<(&mut Operation, &mut Shared)> {
        match &mut self.phase {
            Phase::Operation(operation) => Some((operation, &mut self.shared)),
            _ => None,
        }
    }

    /// Checks that what is known in several places agrees. For tests: it looks at everything.
    pub fn check_invariants(&self) {
        if let Phase::Operation(operation) = &self.phase {
            operation.check_invariants(&self.shared);
        }
    }

    fn dump(&self) {
        let shared = &self.shared;
        log::info!("phase: {}", self.phase.name());
        let nodes = neo_common::node::format::format_nodes(&shared.nodes.entries());
        log::info!("nodes:\n{}", nodes.join("\n"));
        let lines = shared.table.format([], |nid| shared.nodes.state_of(nid));
        log::info!("partition table (ptid={:?}):\n{}", shared.table.ptid(), lines.join("\n"));
        if let Phase::Operation(operation) = &self.phase {
            operation.dump();
        }
    }
}

/// The partition table as it was stored.
fn stored_table(stored: &Stored) -> Result<PartitionTable, String> {
    let mut table = PartitionTable::new();
    let Some(ptid) = stored.config.ptid else { return Ok(table) };
    let mut rows = Rows::new();
    for cell in &stored.cells {
        let index = cell.partition as usize;
        if index >= neo_common::limits::PARTITIONS_MAX as usize {
            return Err(format!("invalid partition {index} in the database"));
        }
        if rows.len() <= index {
            rows.resize(index + 1, Vec::new());
        }
        rows[index].push((cell.nid, cell.state));
    }
    let replicas = stored.config.replicas.unwrap_or_default();
    table.load(Some(ptid), replicas, &rows).map_err(|error| error.to_string())?;
    Ok(table)
}

/// Submits a job that changes the database.
pub(crate) fn write(io: &mut Io<'_, Storage>, job: Write, after: After) {
    io.submit(Job::Database(database::Job::Write(job)), after);
}
/// Submits a read of what is visible.
pub(crate) fn read(io: &mut Io<'_, Storage>, job: Read, after: After) {
    io.submit(Job::Database(database::Job::Read(job)), after);
}
/// Submits a read of what was written so far.
pub(crate) fn read_latest(io: &mut Io<'_, Storage>, job: Read, after: After) {
    io.submit(Job::Database(database::Job::ReadLatest(job)), after);
}

/// Takes the result of a job, which is of the kind that belongs to the job.
macro_rules! done {
    ($done:expr, $kind:ident) => {
        match $done {
            $crate::database::Done::$kind(value) => value,
            other => unreachable!("result of another job: {other:?}"),
        }
    };
}
pub(crate) use done;

impl Bootstrapping for Storage {
    fn bootstrap(&mut self) -> (&mut Bootstrap, &mut NodeManager) {
        (&mut self.shared.bootstrap, &mut self.shared.nodes)
    }
    fn identification_ticket() -> Ticket {
        Ticket::Identification
    }
    fn identified(&mut self, io: &mut Io<'_, Self>, conn: ConnId, _: NodeKey) -> Handled {
        phase::identified(self, io, conn)
    }
}

impl App for Storage {
    type Job = Job;
    type Done = Done;
    type After = After;
    type Ticket = Ticket;
    type Call = Infallible;
    type Reply = Infallible;
    type Timer = Timer;
    type Transition = Transition;

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        &IdentificationHandler
    }
    fn start(&mut self, _: &mut Io<'_, Self>) {}

    fn job_done(&mut self, io: &mut Io<'_, Self>, after: After, done: Done) {
        let done = match done {
            Done::Database(done) => done,
            Done::MastersSaved(Ok(())) => return,
            Done::MastersSaved(Err(error)) => {
                log::error!("list of masters not saved: {error}");
                return;
            }
        };
        match after {
            After::Nothing => {}
            After::Answer(conn, id, packet) => io.answer(conn, id, packet),
            After::Exit(status) => io.exit(status),
            After::TableStored => {
                let partitions = done!(done, PartitionTableChanged);
                operation::to_drop(self, io, partitions);
            }
            After::Truncated(conn, id) => initialization::truncated(self, io, conn, id, done),
            After::LastIdsPacked(conn, id) => initialization::packed(self, io, conn, id, done),
            After::LastIds(conn, id) => initialization::last_ids(io, conn, id, done),
            After::Unfinished(conn, id) => initialization::unfinished(io, conn, id, done),
            After::FinalTid(conn, id) => {
                let tid = done!(done, FinalTid);
                io.answer(conn, id, Packet::AnswerFinalTID { tid });
            }
            After::PackOrders(conn, id) => master::pack_orders(io, conn, id, done),
            After::PacksSigned { approved, rejected } => {
                master::packs_signed(self, &approved, &rejected, &done!(done, Signed));
            }
            After::Starting { attempt, what } => phase::started(self, io, attempt, what, done),
            After::Read(after) => client::read::read_done(self, io, after, done),
            After::Operation { epoch, after } => {
                let is_current = epoch == self.shared.epoch;
                match self.operation() {
                    Some((operation, shared)) if is_current => {
                        operation::job_done(operation, shared, io, after, done);
                    }
                    _ => operation::late_job_done(io, after),
                }
            }
        }
    }

    fn call(&mut self, _: &mut Io<'_, Self>, _: CallId, call: Infallible) {
        match call {}
    }

    fn timer(&mut self, io: &mut Io<'_, Self>, timer: Timer) {
        match timer {
            Timer::Replicator => storage::retry_source(self, io),
        }
    }

    fn signal(&mut self, io: &mut Io<'_, Self>, signal: Signal) {
        match signal {
            Signal::Terminate => phase::stop(self, io, Write::Flush, EXIT_BY_SIGNAL),
            Signal::FlushLog => log::logger().flush(),
            Signal::DumpState => self.dump(),
            // The log belongs to the process, not to the core.
            Signal::ReopenLog => {}
        }
    }

    fn transition(&mut self, io: &mut Io<'_, Self>, transition: Transition) {
        phase::apply(self, io, transition);
    }

    fn advance(&mut self, io: &mut Io<'_, Self>) {
        match &mut self.phase {
            Phase::Bootstrap => bootstrap::poll(self, io),
            Phase::Operation(operation) => operation::advance(operation, &mut self.shared, io),
            Phase::Initialization | Phase::Starting(_) | Phase::Stopping => {}
        }
        if self.shared.config.save_masters
            && let Some(masters) = self.shared.nodes.take_changed_masters()
        {
            io.submit(Job::SaveMasters(masters), After::Nothing);
        }
    }

    fn label(&self) -> String {
        self.nid().map_or_else(|| "S".into(), |nid| nid.to_string())
    }
}
