// SPDX-License-Identifier: GPL-2.0-or-later
//! The client core: a value that takes calls of the application and packets of the cluster.
//!
//! - [`master`]: finding the primary, becoming ready, requests to it;
//! - [`storages`]: connections to storages, made when needed;
//! - [`reads`]: which cell is asked, and which one next;
//! - [`loads`]: loads through the cache, and what is invalidated meanwhile;
//! - [`stores`], [`commits`]: transactions, with their state in [`crate::transactions`];
//! - [`deliveries`]: what the application is told, in order of commit;
//! - [`oids`]: reserved oids.
//!
//! What cannot go on without the master is *parked* and goes on when the client is ready again:
//! callers do not notice that the master was restarted, except transactions under way.
//!
//! ```text
//!                 first call                 accepted            last tid known, table operational
//!   idle (unused) ----------> bootstrapping ----------> initializing ----------> ready
//!     ^  refused for good          ^                         | lost                | lost
//!     +----------------------------+-------------------------+---------------------+
//! ```

pub mod commits;
pub mod deliveries;
pub mod loads;
pub mod master;
pub mod oids;
pub mod reads;
pub mod storages;
pub mod stores;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::bootstrap::{self, Bootstrap};
use neo_common::engine::{App, CallId, ConnId, Handler, Io, Signal};
use neo_common::node::NodeManager;
use neo_common::partition_table::PartitionTable;
use neo_common::protocol::{Map, NodeType, Packet, Value};
use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use self::deliveries::Deliveries;
use self::loads::Loads;
use self::master::{MasterLink, MasterOp};
use self::oids::OidPool;
use self::reads::Read;
use self::storages::StorageLink;
use crate::cache::Cache;
use crate::call::{Answer, Call, EVENTS, Record};
use crate::error::Error;
use crate::handlers;
use crate::options::Options;
use crate::transactions::Transaction;

/// Names something that was asked and is not replied yet. A load has the id of the operation that
/// reads it.
pub type OpId = u64;

/// What to do with an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ticket {
    /// Identification.
    Identify,
    /// The last tid, which completes the initialisation.
    LastTransaction,
    /// An operation on the master.
    Master(OpId),
    /// A read from a storage.
    Read(OpId),
    /// The master was pinged before a read is tried again.
    Round(OpId),
    /// A store or a check, with the number of the write.
    Store(Ttid, Oid, u64),
    /// A lock that was given back to avoid a deadlock.
    Relock(Ttid, Oid),
    /// A vote.
    Vote(Ttid),
    /// Whether the commit is possible without the storages that failed.
    FailedVote(Ttid),
    /// The commit.
    Finish(Ttid),
}

/// Named timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// Ping the master, then try that read again.
    Retry(OpId),
    /// That operation has waited long enough for a master.
    Unreachable(OpId),
}

/// Something that was asked and is not replied yet.
#[derive(Debug)]
pub enum Op {
    /// Waits until the client is ready.
    Connect(CallId),
    /// A load that waits until the client is ready: only then the last tid is known.
    Load(CallId, LoadRequest),
    /// A read from any cell that can be read.
    Read(Read),
    /// A request to the master.
    Master(MasterOp),
}

/// What is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadRequest {
    /// The object.
    pub oid: Oid,
    /// Exact serial.
    pub at: Option<Tid>,
    /// Exclusive upper bound.
    pub before: Option<Tid>,
}

/// The client node.
#[derive(Debug)]
pub struct ClientCore {
    options: Options,
    bootstrap: Bootstrap,
    nodes: NodeManager,
    table: PartitionTable,
    /// Number of partitions, which never changes; known after the first connection.
    partitions: Option<u32>,
    master: MasterLink,
    storages: BTreeMap<NodeId, StorageLink>,
    /// Until when a storage to which the connection failed is only asked if there is no other.
    failures: BTreeMap<NodeId, Duration>,
    cache: Cache,
    loads: Loads,
    ops: BTreeMap<OpId, Op>,
    next_op: OpId,
    /// Operations that wait until the client is ready.
    parked: BTreeSet<OpId>,
    transactions: BTreeMap<Ttid, Transaction>,
    /// Transactions whose commit was asked, and who waits for it.
    finishing: BTreeMap<Ttid, (CallId, Transaction)>,
    deliveries: Deliveries,
    /// Last tid that was received; [`Deliveries`] has the last one that was told.
    received_tid: Option<Tid>,
    oids: OidPool,
    closed: bool,
}

impl ClientCore {
    /// A client that has not begun to connect.
    pub fn new(options: Options) -> Self {
        let mut extra = Map::default();
        if options.read_only {
            extra.0.push((Bytes::from_static(b"read_only"), Value::Bool(true)));
        }
        let cluster = options.cluster.clone();
        let mut nodes = NodeManager::new();
        for address in &options.masters {
            // Listed twice is known already.
            let _ = nodes.create_master(*address);
        }
        Self {
            cache: Cache::new(options.cache_bytes),
            options,
            bootstrap: Bootstrap::new(NodeType::Client, cluster, None, None, extra),
            nodes,
            table: PartitionTable::new(),
            partitions: None,
            master: MasterLink::default(),
            storages: BTreeMap::new(),
            failures: BTreeMap::new(),
            loads: Loads::default(),
            ops: BTreeMap::new(),
            next_op: 1,
            parked: BTreeSet::new(),
            transactions: BTreeMap::new(),
            finishing: BTreeMap::new(),
            deliveries: Deliveries::default(),
            received_tid: None,
            oids: OidPool::default(),
            closed: false,
        }
    }

    /// The last tid that was told to the application; `None` before the first connection.
    pub fn last_tid(&self) -> Option<Tid> {
        self.deliveries.last_tid()
    }

    /// What the cache has: the revision before a tid, or the current one.
    pub fn cached(&mut self, oid: Oid, before: Option<Tid>) -> Option<Record> {
        let before = before.or_else(|| self.last_tid()?.next())?;
        self.cache.load_before(oid, before)
    }

    /// The cache, for statistics.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Number of calls, loads and transactions under way, for tests and logs.
    pub fn pending_count(&self) -> usize {
        self.ops.len() + self.loads.len() + self.transactions.len() + self.finishing.len()
    }

    fn partition_of_oid(&self, oid: Oid) -> Option<Partition> {
        self.partitions.map(|partitions| oid.partition(partitions))
    }

    fn insert_op(&mut self, op: Op) -> OpId {
        let id = self.next_op;
        self.next_op += 1;
        self.ops.insert(id, op);
        id
    }

    fn simple_call(&mut self, io: &mut Io<'_, Self>, id: CallId, call: Call) {
        match call {
            Call::Connect => {
                let op = self.insert_op(Op::Connect(id));
                self.resume(io, op);
            }
            Call::Partitions => match self.partitions {
                Some(partitions) => io.reply(id, Ok(Answer::Partitions(partitions))),
                None => self.simple_call(io, id, Call::Connect),
            },
            Call::LastOid => io.reply(id, Ok(Answer::Oid(self.oids.last()))),
            Call::ClearCache => {
                self.cache.clear();
                io.reply(id, Ok(Answer::Done));
            }
            Call::Listen => {
                self.deliveries.listen();
                io.reply(id, Ok(Answer::Done));
            }
            Call::Delivered => {
                self.deliveries.delivered(io);
                io.reply(id, Ok(Answer::Done));
            }
            Call::Close => self.close(io, id),
            other => {
                debug_assert!(false, "{other:?} is not simple");
                io.reply(id, Err(Error::Transaction("not a call")));
            }
        }
    }

    /// Fails everything and closes all connections.
    fn close(&mut self, io: &mut Io<'_, Self>, id: CallId) {
        self.closed = true;
        bootstrap::cancel(self, io);
        let conns: Vec<ConnId> = io.connections().collect();
        for conn in conns {
            io.close(conn);
        }
        self.fail_parked(io, &Error::Closed);
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            self.fail_op(io, op, Error::Closed);
        }
        self.oids.clear();
        self.fail_transactions(io, &Error::Closed);
        for (ttid, (call, _)) in std::mem::take(&mut self.finishing) {
            io.reply(call, Err(Error::OutcomeUnknown(ttid)));
        }
        self.deliveries.close(io);
        io.reply(id, Ok(Answer::Done));
    }

    /// Ends an operation that cannot succeed.
    fn fail_op(&mut self, io: &mut Io<'_, Self>, id: OpId, error: Error) {
        self.parked.remove(&id);
        io.cancel_timer(Timer::Retry(id));
        io.cancel_timer(Timer::Unreachable(id));
        match self.ops.remove(&id) {
            None => {}
            Some(Op::Connect(call) | Op::Load(call, _)) => io.reply(call, Err(error)),
            Some(Op::Read(read)) => self.read_failed(io, read, error),
            Some(Op::Master(op)) => self.master_op_failed(io, op, error),
        }
    }
}

impl App for ClientCore {
    type Job = Infallible;
    type Done = Infallible;
    type After = Infallible;
    type Ticket = Ticket;
    type Call = Call;
    type Reply = crate::call::Reply;
    type Timer = Timer;
    type Transition = Infallible;

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        // A client does not listen: nobody can connect.
        &handlers::storage::StorageHandler
    }

    fn start(&mut self, _: &mut Io<'_, Self>) {}

    fn job_done(&mut self, _: &mut Io<'_, Self>, after: Infallible, _: Infallible) {
        match after {}
    }

    fn call(&mut self, io: &mut Io<'_, Self>, id: CallId, call: Call) {
        let over = matches!(
            call,
            Call::Loaded { .. }
                | Call::Forget { .. }
                | Call::Delivered
                | Call::Abort { .. }
                | Call::LastOid
                | Call::Close
        );
        if self.closed && !over {
            io.reply(id, Err(Error::Closed));
            return;
        }
        match call {
            Call::Load { oid, at, before } => self.load(io, id, LoadRequest { oid, at, before }),
            Call::Loaded { load, data } => self.loaded(io, id, load, data),
            Call::Rejected { load } => self.rejected(io, id, load),
            Call::Forget { load } => {
                self.end_load(io, load);
                io.reply(id, Ok(Answer::Done));
            }
            Call::Read { partition, packet, ttid } => self.read(io, id, partition, packet, ttid),
            Call::NewOid => self.new_oid(io, id),
            Call::Sync => self.master_call(io, MasterOp::Sync(id)),
            Call::Master { packet } => self.master_call(io, MasterOp::Packet(id, packet)),
            Call::Begin { tid } => self.begin(io, id, tid),
            Call::Store { ttid, oid, serial, stored, data, data_serial, resolves } => {
                let packet = Packet::AskStoreObject {
                    oid,
                    serial,
                    compression: stored.compression.unwrap_or_default(),
                    checksum: stored.checksum,
                    data: stored.data,
                    data_serial,
                    ttid,
                };
                self.store(io, id, ttid, packet, data, resolves);
            }
            Call::CheckSerial { ttid, oid, serial } => {
                self.check_serial(io, id, ttid, oid, serial);
            }
            Call::SetPack { ttid, pack } => {
                self.with_transaction(io, id, ttid, |transaction| transaction.pack = Some(pack));
            }
            Call::KeepData { ttid } => {
                self.with_transaction(io, id, ttid, Transaction::keep_all);
            }
            Call::StoredData { ttid, oid } => self.stored_data(io, id, ttid, oid),
            Call::WaitStores { ttid } => self.wait_stores(io, id, ttid),
            Call::Vote { ttid, user, description, extension } => {
                self.vote(io, id, ttid, user, description, extension);
            }
            Call::Finish { ttid } => self.finish(io, id, ttid),
            Call::Abort { ttid } => self.abort(io, id, ttid),
            call => self.simple_call(io, id, call),
        }
    }

    fn timer(&mut self, io: &mut Io<'_, Self>, timer: Timer) {
        match timer {
            Timer::Retry(op) => self.next_round(io, op),
            Timer::Unreachable(op) => {
                if self.parked.contains(&op) {
                    self.fail_op(io, op, Error::Unreachable);
                }
            }
        }
    }

    fn signal(&mut self, _: &mut Io<'_, Self>, _: Signal) {}

    fn transition(&mut self, _: &mut Io<'_, Self>, transition: Infallible) {
        match transition {}
    }

    fn advance(&mut self, io: &mut Io<'_, Self>) {
        if self.must_bootstrap() {
            bootstrap::poll(self, io);
        }
        if self.options.dynamic_master_list.is_some()
            && let Some(masters) = self.nodes.take_changed_masters()
        {
            io.reply(EVENTS, Ok(Answer::Masters(masters)));
        }
    }

    fn label(&self) -> String {
        self.bootstrap.nid.map_or_else(|| "C".into(), |nid| nid.to_string())
    }
}
