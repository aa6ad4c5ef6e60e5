// SPDX-License-Identifier: GPL-2.0-or-later
//! The primary master: finding it, becoming ready, asking it, losing it.
//! Upstream: client/app.py, `_connectToPrimaryNode`; client/handlers/master.py.
//!
//! The search begins with the first call and never ends: when the master is lost, it begins again
//! at once, so that invalidations go on arriving. All connections to storages are closed with it,
//! because the next master may give another id to this client.
//!
//! Right after it accepted us, the master sends the nodes and the partition table. We ask for the
//! last tid: until it is known, invalidations are ignored. If it is not what we know, something was
//! missed, and everything that was current is forgotten.

use neo_common::engine::bootstrap::{Bootstrap, Bootstrapping};
use neo_common::engine::{CallId, ConnId, Fault, Handled, Io};
use neo_common::node::{ListKind, NodeEvent, NodeKey, NodeManager};
use neo_common::planted;
use neo_common::protocol::{ErrorCode, NodeEntry, NodeState, Packet};
use neo_common::types::{Oid, Tid, Ttid};

use super::loads::Heard;
use super::{ClientCore, LoadRequest, Op, OpId, Ticket, Timer};
use crate::call::{Answer, Event};
use crate::error::Error;
use crate::handlers::master::PrimaryHandler;

/// How far the connection to the primary master got.
#[derive(Debug, Default)]
pub struct MasterLink {
    /// Whether anybody ever wanted to be connected.
    wanted: bool,
    conn: Option<ConnId>,
    /// Whether the list of nodes was received on this connection.
    listed: bool,
    ready: bool,
}

/// A request to the master. Asked again on the next connection if this one is lost.
#[derive(Debug)]
pub enum MasterOp {
    /// Anything that has an answer.
    Packet(CallId, Packet),
    /// `AskBeginTransaction`.
    Begin(CallId, Option<Tid>),
    /// `Ping`, then what was received before is delivered.
    Sync(CallId),
    /// `Ping`, then a load.
    Load(CallId, LoadRequest),
    /// `AskNewOIDs`.
    NewOids,
    /// `AskFinalTID`, because the answer to the commit was lost.
    FinalTid(Ttid),
}

impl MasterOp {
    fn packet(&self) -> Packet {
        match self {
            Self::Packet(_, packet) => packet.clone(),
            Self::Begin(_, tid) => Packet::AskBeginTransaction { tid: *tid },
            Self::Sync(_) | Self::Load(..) => Packet::Ping {},
            Self::NewOids => Packet::AskNewOIDs { count: neo_common::limits::NEW_OIDS_COUNT },
            Self::FinalTid(ttid) => Packet::AskFinalTID { ttid: *ttid },
        }
    }
}

impl Bootstrapping for ClientCore {
    fn bootstrap(&mut self) -> (&mut Bootstrap, &mut NodeManager) {
        (&mut self.bootstrap, &mut self.nodes)
    }

    fn identification_ticket() -> Ticket {
        Ticket::Identify
    }

    fn identified(&mut self, io: &mut Io<'_, Self>, conn: ConnId, _: NodeKey) -> Handled {
        self.master = MasterLink { wanted: true, conn: Some(conn), listed: false, ready: false };
        self.table.clear();
        io.set_handler(conn, &PrimaryHandler);
        io.ask(conn, Packet::AskLastTransaction {}, Ticket::LastTransaction);
        Ok(())
    }

    fn refused(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        let error = match code {
            // The cluster is not running (yet): the search goes on.
            ErrorCode::NotReady => {
                log::info!("cluster not ready: {message}");
                io.close(conn);
                return Ok(());
            }
            ErrorCode::ReadOnlyAccess => Error::ReadOnly(message),
            _ => Error::Refused(message),
        };
        // Trying again would not help: tell who waits, and try again for the next call.
        log::error!("refused by the master: {error}");
        self.master.wanted = false;
        io.close(conn);
        self.fail_parked(io, &error);
        Ok(())
    }
}

impl ClientCore {
    /// Whether the search for the primary master must go on.
    pub(super) fn must_bootstrap(&self) -> bool {
        self.master.wanted && self.master.conn.is_none() && !self.closed
    }

    pub(super) fn ready_conn(&self) -> Option<ConnId> {
        self.master.conn.filter(|_| self.master.ready)
    }

    /// Makes an operation wait until the client is ready.
    pub(super) fn park(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        self.master.wanted = true;
        self.parked.insert(id);
        if let Some(Op::Read(read)) = self.ops.get_mut(&id) {
            read.start_again();
        }
        if let Some(delay) = self.options.connect_timeout
            && !self.is_outcome(id)
            && !io.has_timer(Timer::Unreachable(id))
        {
            io.set_timer(Timer::Unreachable(id), delay);
        }
    }

    /// Whether an operation asks for the outcome of a commit: that is waited for, whatever it takes.
    fn is_outcome(&self, id: OpId) -> bool {
        match self.ops.get(&id) {
            Some(Op::Master(MasterOp::FinalTid(_))) => true,
            Some(Op::Read(read)) => read.is_outcome(),
            _ => false,
        }
    }

    /// Goes on with an operation, now or when the client is ready.
    pub(super) fn resume(&mut self, io: &mut Io<'_, Self>, id: OpId) {
        let Some(conn) = self.ready_conn() else {
            self.park(io, id);
            return;
        };
        match self.ops.get_mut(&id) {
            None => {}
            Some(Op::Connect(call)) => {
                let call = *call;
                self.ops.remove(&id);
                io.reply(call, Ok(Answer::Partitions(self.table.partitions())));
            }
            Some(Op::Load(call, request)) => {
                let (call, request) = (*call, *request);
                self.ops.remove(&id);
                self.load(io, call, request);
            }
            Some(Op::Read(_)) => self.try_read(io, id),
            Some(Op::Master(op)) => {
                let packet = op.packet();
                if !io.ask(conn, packet, Ticket::Master(id)) {
                    // Being closed: told soon.
                    self.park(io, id);
                }
            }
        }
    }

    pub(super) fn master_call(&mut self, io: &mut Io<'_, Self>, op: MasterOp) {
        let id = self.insert_op(Op::Master(op));
        self.resume(io, id);
    }

    /// Fails what waits for the master, except to know the outcome of a commit.
    pub(super) fn fail_parked(&mut self, io: &mut Io<'_, Self>, error: &Error) {
        for id in std::mem::take(&mut self.parked) {
            if !self.closed && self.is_outcome(id) {
                self.park(io, id);
                continue;
            }
            self.fail_op(io, id, error.clone());
        }
    }

    pub(super) fn master_op_failed(&mut self, io: &mut Io<'_, Self>, op: MasterOp, error: Error) {
        match op {
            MasterOp::Packet(call, _)
            | MasterOp::Begin(call, _)
            | MasterOp::Sync(call)
            | MasterOp::Load(call, _) => {
                io.reply(call, Err(error));
            }
            MasterOp::NewOids => self.new_oids_failed(io, error),
            MasterOp::FinalTid(ttid) => self.outcome_failed(io, ttid, error),
        }
    }

    /// An answer to an operation.
    pub(crate) fn master_answer(&mut self, io: &mut Io<'_, Self>, id: OpId, packet: Packet) {
        let Some(Op::Master(op)) = self.ops.remove(&id) else { return };
        match (op, packet) {
            (MasterOp::Packet(call, _), packet) => io.reply(call, Ok(Answer::Packet(packet))),
            (MasterOp::Begin(call, tid), Packet::AnswerBeginTransaction { ttid }) => {
                self.begun(io, call, tid, ttid);
            }
            (MasterOp::Sync(call), _) => self.deliveries.barrier(io, call),
            (MasterOp::Load(call, request), _) => self.load_once(io, call, request, Heard::Yes),
            (MasterOp::NewOids, Packet::AnswerNewOIDs { oids }) => self.new_oids(io, oids),
            (MasterOp::FinalTid(ttid), Packet::AnswerFinalTID { tid }) => {
                self.outcome_of_master(io, ttid, tid);
            }
            (op, packet) => {
                // The engine checks the type of answers.
                let error = Error::Refused(format!("unexpected {}", packet.name()));
                self.master_op_failed(io, op, error);
            }
        }
    }

    /// The master refused an operation.
    pub(crate) fn master_error(
        &mut self,
        io: &mut Io<'_, Self>,
        id: OpId,
        code: ErrorCode,
        message: String,
    ) {
        let error = match code {
            ErrorCode::ReadOnlyAccess => Error::ReadOnly(message),
            _ => Error::Refused(message),
        };
        self.fail_op(io, id, error);
    }

    /// Nodes that changed.
    pub(crate) fn node_information(
        &mut self,
        io: &mut Io<'_, Self>,
        timestamp: f64,
        list: &[NodeEntry],
    ) -> Handled {
        let kind = if self.master.listed { ListKind::Changes } else { ListKind::Full };
        let table = &self.table;
        let update = self
            .nodes
            .update(self.bootstrap.nid, kind, timestamp, list, |nid| table.has_cells(nid))
            .map_err(|error| Fault::protocol(error.to_string()))?;
        self.master.listed = true;
        if let Some(own) = update.own {
            if own.state != NodeState::Running {
                log::error!("the master says that this client is {}", own.state);
                return Err(Fault::Close);
            }
            self.bootstrap.id_timestamp = own.id_timestamp;
        }
        for event in update.events {
            let conn = match event {
                NodeEvent::Removed(node) => node.connection(),
                NodeEvent::Created(key) | NodeEvent::Updated { key, .. } => {
                    let node = self.nodes.get(key).filter(|node| !node.is_running());
                    node.and_then(|node| node.connection())
                }
            };
            // The master that speaks is running, whatever it says of itself.
            if let Some(conn) = conn.filter(|conn| Some(*conn) != self.master.conn) {
                io.close(conn);
            }
        }
        Ok(())
    }

    pub(crate) fn load_table(&mut self, packet: Packet) -> Handled {
        let result = match packet {
            Packet::SendPartitionTable { ptid, replicas, rows } => {
                self.table.load(ptid, replicas, &rows).map(|()| false)
            }
            Packet::NotifyPartitionChanges { ptid, replicas, changes } => {
                self.table.update(ptid, replicas, &changes).map(|update| update.first_outdated)
            }
            _ => return Err(Fault::Unexpected),
        };
        if result.map_err(|error| Fault::protocol(error.to_string()))? {
            log::info!("a cell is not readable any more");
        }
        match self.partitions {
            Some(partitions) if partitions != self.table.partitions() => {
                // Not the database that we know: nothing can go on.
                Err(Fault::protocol("the number of partitions changed"))
            }
            _ => Ok(()),
        }
    }

    /// The last piece of the initialisation.
    pub(crate) fn last_transaction(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        tid: Tid,
    ) -> Handled {
        let nodes = &self.nodes;
        let running = |nid| nodes.by_nid(nid).is_some_and(neo_common::node::Node::is_running);
        if !self.table.operational(running) {
            log::info!("the cluster is not operational");
            io.close(conn);
            return Ok(());
        }
        self.partitions = Some(self.table.partitions());
        self.master.ready = true;
        match self.received_tid.replace(tid) {
            None => self.deliveries.start(tid),
            Some(known) if known == tid || planted!(ReconnectKeepsCache) => {}
            Some(known) => {
                if known < tid {
                    self.cache.clear_current();
                } else {
                    log::warn!("the database was cut back from {known} to {tid}");
                    self.cache.clear();
                    self.fail_truncated(io);
                }
                // What is being loaded must not refill the cache.
                self.loads.discard();
                self.deliveries.event(io, Event::InvalidateCache, Some(tid));
            }
        }
        log::info!("connected and ready, last tid {tid}");
        for id in std::mem::take(&mut self.parked) {
            io.cancel_timer(Timer::Unreachable(id));
            self.resume(io, id);
        }
        Ok(())
    }

    /// Reads that began before the database was cut back would mix two histories.
    fn fail_truncated(&mut self, io: &mut Io<'_, Self>) {
        let reads = self.ops.iter().filter(|(_, op)| match op {
            Op::Read(read) => !read.is_outcome(),
            _ => false,
        });
        for id in reads.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.fail_op(io, id, Error::Truncated);
        }
    }

    /// Another client committed.
    pub(crate) fn invalidate_objects(&mut self, io: &mut Io<'_, Self>, tid: Tid, oids: Vec<Oid>) {
        let Some(last) = self.received_tid.filter(|_| self.master.ready) else { return };
        for oid in &oids {
            self.invalidate(*oid, tid);
        }
        if tid <= last {
            // An own transaction whose outcome was asked: the application knows already.
            return;
        }
        self.received_tid = Some(tid);
        self.deliveries.event(io, Event::Invalidate { tid, oids }, Some(tid));
    }

    pub(super) fn invalidate(&mut self, oid: Oid, tid: Tid) {
        self.cache.invalidate(oid, tid);
        self.loads.invalidate(oid, tid);
    }

    /// The connection to the primary master is gone.
    pub(crate) fn master_lost(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        tickets: Vec<Ticket>,
    ) {
        self.nodes.unlink(conn);
        if self.master.conn != Some(conn) {
            return;
        }
        let was_ready = self.master.ready;
        self.master.conn = None;
        self.master.ready = false;
        self.table.clear();
        self.oids.clear();
        for conn in self.storages.values().map(super::storages::StorageLink::conn) {
            io.close(conn);
        }
        if was_ready && !self.closed {
            log::error!("connection to the primary master lost");
            self.deliveries.event(io, Event::Disconnected, None);
        }
        self.fail_transactions(io, &Error::MasterLost);
        for ticket in tickets {
            match ticket {
                Ticket::Master(id) | Ticket::Round(id) if self.ops.contains_key(&id) => {
                    self.park(io, id);
                }
                Ticket::Finish(ttid) => self.ask_outcome(io, ttid),
                // FailedVote: the transaction has failed. Others are not asked to the master.
                _ => {}
            }
        }
    }
}
