// SPDX-License-Identifier: GPL-2.0-or-later
//! The admin node as a core. Upstream: admin/app.py.
//!
//! There are two phases: without primary master, it is looked for and every request is refused;
//! with one, the admin follows nodes, partition table and state of the cluster. When the connection
//! is lost the search begins again, unless the cluster is stopping: then the admin ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;

use neo_common::engine::bootstrap::{self, Bootstrap, Bootstrapping};
use neo_common::engine::{
    App, CallId, ConnId, EXIT_BY_SIGNAL, Fault, Handled, Handler, Io, Signal,
};
use neo_common::node::format::format_nodes;
use neo_common::node::{ListKind, NodeKey, NodeManager};
use neo_common::partition_table::PartitionTable;
use neo_common::protocol::{
    ClusterState, ErrorCode, Map, MsgId, NodeEntry, NodeType, Packet, Value,
};
use neo_common::types::{NodeId, nid_str};

use crate::NOT_CONNECTED_MESSAGE;
use crate::handlers::{CtlHandler, MasterHandler};
use crate::mail::{Mail, MailConfig};
use crate::monitor::{Change, Monitoring, Upstream};

/// Requests of one peer that wait for an answer above which nothing more is read from it.
const PENDING_MAX: u32 = 64;

/// What an admin must be told to exist.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// Masters known at start.
    pub masters: Vec<SocketAddr>,
    /// Where `neoctl` and other admins connect.
    pub address: SocketAddr,
    /// Wished node id (for tests).
    pub nid: Option<NodeId>,
    /// Names of the backup clusters whose admins report here.
    pub backups: Vec<String>,
    /// Seconds that a backup may be late before it is worth a warning.
    pub max_lag: f64,
    /// Who is told by e-mail about changes of health; `None`: nobody.
    pub mail: Option<MailConfig>,
    /// Whether changes of the list of masters are worth a [`Job::SaveMasters`].
    pub save_masters: bool,
}

/// Work for another thread.
#[derive(Clone, PartialEq, Debug)]
pub enum Job {
    /// Write the dynamic list of masters.
    SaveMasters(Vec<SocketAddr>),
    /// Send an e-mail.
    Mail(Mail),
}

/// What to do with the result of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// Nothing but to log a failure.
    SaveMasters,
    /// Remember whether the last e-mail was sent.
    Mail,
}

/// What to do with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ticket {
    /// We identify.
    Identification,
    /// Our own question: the state of the cluster.
    ClusterState,
    /// Our own question: last ids, for the monitoring.
    LastIds,
    /// The answer is for that request of that peer.
    Relay {
        /// The peer.
        conn: ConnId,
        /// Its request.
        id: MsgId,
    },
}

/// Named timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// Of [`Monitoring`]: nobody answers any more, or time to look whether backups are late.
    Monitor,
}

/// The primary master, once identified to it.
#[derive(Clone, Copy, Debug)]
struct Primary {
    conn: ConnId,
    nid: Option<NodeId>,
    /// Whether the next list of nodes is the full one.
    list: ListKind,
}

/// State of an admin node.
pub struct Admin {
    nodes: NodeManager,
    bootstrap: Bootstrap,
    primary: Option<Primary>,
    /// `None` until the primary master tells.
    table: Option<PartitionTable>,
    save_masters: bool,
    /// Number of requests of each peer that wait for an answer.
    pending: BTreeMap<ConnId, u32>,
    pub(crate) monitoring: Monitoring,
    pub(crate) upstream: Upstream,
}

impl Admin {
    /// An admin that is not connected to anything.
    pub fn new(config: Config) -> Self {
        let mut nodes = NodeManager::new();
        for address in config.masters {
            nodes.create_master(address).expect("only masters are known");
        }
        let names = config.backups.iter().map(|name| Value::text(name)).collect();
        let extra = Map(vec![(Bytes::from_static(b"backup"), Value::Array(names))]);
        let bootstrap = Bootstrap::new(
            NodeType::Admin,
            config.cluster.clone(),
            config.nid,
            Some(config.address),
            extra,
        );
        let monitoring =
            Monitoring::new(config.cluster, config.backups, config.max_lag, config.mail);
        Self {
            nodes,
            bootstrap,
            primary: None,
            table: None,
            save_masters: config.save_masters,
            pending: BTreeMap::new(),
            monitoring,
            upstream: Upstream::default(),
        }
    }

    /// Name of the cluster.
    pub fn cluster(&self) -> &str {
        &self.bootstrap.cluster
    }
    /// State of the cluster; `None` if unknown.
    pub fn cluster_state(&self) -> Option<ClusterState> {
        self.monitoring.cluster_state()
    }
    /// Known nodes.
    pub fn nodes(&self) -> &NodeManager {
        &self.nodes
    }
    /// Partition table, once known.
    pub fn table(&self) -> Option<&PartitionTable> {
        self.table.as_ref()
    }
    /// Connection to the primary master.
    pub fn primary(&self) -> Option<ConnId> {
        self.primary.map(|primary| primary.conn)
    }
    /// Id of the primary master.
    pub fn primary_nid(&self) -> Option<NodeId> {
        self.primary.and_then(|primary| primary.nid)
    }

    /// Connection to the primary master, or what peers are told without it.
    pub(crate) fn connected(&self, io: &Io<'_, Self>) -> Result<ConnId, Fault> {
        self.primary()
            .filter(|conn| io.is_open(*conn))
            .ok_or_else(|| Fault::NotReady(NOT_CONNECTED_MESSAGE.into()))
    }

    /// Asks the primary master in the name of a peer.
    pub(crate) fn relay(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        id: MsgId,
        request: Packet,
    ) -> Handled {
        let primary = self.connected(io)?;
        log::debug!("relay {} of {conn:?}", request.name());
        io.ask(primary, request, Ticket::Relay { conn, id });
        self.add_pending(io, conn);
        Ok(())
    }

    /// Gives a peer what the primary master answered. Upstream: `MasterEventHandler.dispatch`.
    pub(crate) fn relayed(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        id: MsgId,
        answer: Packet,
    ) {
        let broken = matches!(answer, Packet::Error { code: ErrorCode::ProtocolError, .. });
        io.answer(conn, id, answer);
        self.remove_pending(io, conn);
        if broken {
            io.abort(conn);
        }
    }

    /// A request of that peer will be answered later.
    pub(crate) fn add_pending(&mut self, io: &mut Io<'_, Self>, conn: ConnId) {
        let count = self.pending.entry(conn).or_default();
        *count += 1;
        if *count > PENDING_MAX {
            io.pause(conn);
        }
    }
    /// It is answered.
    pub(crate) fn remove_pending(&mut self, io: &mut Io<'_, Self>, conn: ConnId) {
        // Not there if the peer is gone.
        let Some(count) = self.pending.get_mut(&conn) else { return };
        *count -= 1;
        match *count {
            PENDING_MAX => io.resume(conn),
            0 => drop(self.pending.remove(&conn)),
            _ => {}
        }
    }
    /// The peer is gone.
    pub(crate) fn forget_peer(&mut self, conn: ConnId) {
        self.pending.remove(&conn);
        self.monitoring.forget_asking(conn);
    }

    /// The primary master tells about nodes.
    pub(crate) fn update_nodes(
        &mut self,
        io: &mut Io<'_, Self>,
        timestamp: f64,
        list: &[NodeEntry],
    ) -> Handled {
        let Some(primary) = &mut self.primary else { return Ok(()) };
        let kind = std::mem::replace(&mut primary.list, ListKind::Changes);
        let table = self.table.as_ref();
        let has_cells = |nid| table.is_some_and(|table| table.has_cells(nid));
        self.nodes
            .update(self.bootstrap.nid, kind, timestamp, list, has_cells)
            .map_err(|e| Fault::protocol(e.to_string()))?;
        self.table_updated(io);
        Ok(())
    }

    /// The primary master gives the partition table.
    pub(crate) fn set_table(&mut self, io: &mut Io<'_, Self>, table: PartitionTable) {
        log::debug!("partition table loaded (ptid={:?})", table.ptid());
        self.table = Some(table);
        self.table_updated(io);
    }

    /// The table, to be changed.
    pub(crate) fn table_mut(&mut self) -> Option<&mut PartitionTable> {
        self.table.as_mut()
    }

    /// Nodes or cells changed: so may have the health. Upstream: `partitionTableUpdated`.
    pub(crate) fn table_updated(&mut self, io: &mut Io<'_, Self>) {
        let Some(table) = &self.table else { return };
        let change = Change::of_table(table, &self.nodes);
        self.own_changed(io, change);
    }

    /// The health of this cluster changed.
    pub(crate) fn own_changed(&mut self, io: &mut Io<'_, Self>, change: Change) {
        let primary = self.primary();
        if let Some(change) = self.monitoring.own_changed(io, primary, change) {
            self.upstream.send(io, change);
        }
        self.answer_monitors(io);
    }

    /// Sends the answers to `AskMonitorInformation` that are ready.
    pub(crate) fn answer_monitors(&mut self, io: &mut Io<'_, Self>) {
        for (conn, id, answer) in self.monitoring.take_answers() {
            io.answer(conn, id, answer);
            self.remove_pending(io, conn);
        }
    }

    /// The connection to the primary master is gone. Upstream: `MasterEventHandler.connectionClosed`
    /// and `Application._run`.
    pub(crate) fn primary_lost(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        tickets: Vec<Ticket>,
    ) {
        self.nodes.unlink(conn);
        if self.primary() != Some(conn) {
            return;
        }
        for ticket in tickets {
            if let Ticket::Relay { conn, id } = ticket {
                let message = "connection to master lost";
                self.relayed(io, conn, id, Packet::error(ErrorCode::ProtocolError, message));
            }
        }
        self.primary = None;
        self.table = None;
        self.bootstrap.nid = None;
        if self.cluster_state() == Some(ClusterState::Stopping) {
            log::info!("cluster is stopping: bye");
            io.exit(0);
            return;
        }
        log::error!("primary master is down");
        // A list of nodes without any master would leave nowhere to look for the next one.
        if let Some(address) = io.address(conn)
            && self.nodes.masters().next().is_none()
            && let Err(conflict) = self.nodes.create_master(address)
        {
            log::error!("no master is known any more, {address}: {conflict}");
        }
        if let Some(change) = self.monitoring.primary_lost(io) {
            self.upstream.send(io, change);
        }
        self.answer_monitors(io);
    }

    fn dump(&self) {
        log::info!("primary master: {}", nid_str(self.primary_nid()));
        log::info!("nodes:\n{}", format_nodes(&self.nodes.entries()).join("\n"));
        if let Some(table) = &self.table {
            let lines = table.format([], |nid| self.nodes.state_of(nid));
            log::info!("partition table (ptid={:?}):\n{}", table.ptid(), lines.join("\n"));
        }
        log::info!("monitoring: {:?}", self.monitoring);
    }
}

impl Bootstrapping for Admin {
    fn bootstrap(&mut self) -> (&mut Bootstrap, &mut NodeManager) {
        (&mut self.bootstrap, &mut self.nodes)
    }
    fn identification_ticket() -> Ticket {
        Ticket::Identification
    }
    fn identified(&mut self, io: &mut Io<'_, Self>, conn: ConnId, primary: NodeKey) -> Handled {
        let nid = self.nodes.get(primary).and_then(|node| node.nid());
        self.primary = Some(Primary { conn, nid, list: ListKind::Full });
        io.set_handler(conn, &MasterHandler);
        io.ask(conn, Packet::AskClusterState {}, Ticket::ClusterState);
        Ok(())
    }
}

impl App for Admin {
    type Job = Job;
    type Done = Result<(), String>;
    type After = After;
    type Ticket = Ticket;
    type Call = Infallible;
    type Reply = Infallible;
    type Timer = Timer;
    type Transition = Infallible;

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        &CtlHandler
    }
    fn start(&mut self, _: &mut Io<'_, Self>) {}
    fn job_done(&mut self, io: &mut Io<'_, Self>, after: After, done: Result<(), String>) {
        match (after, done) {
            (After::SaveMasters, Ok(())) => {}
            (After::SaveMasters, Err(e)) => log::error!("list of masters not saved: {e}"),
            (After::Mail, done) => {
                self.monitoring.mail_done(io, self.primary(), done);
                self.answer_monitors(io);
            }
        }
    }
    fn call(&mut self, _: &mut Io<'_, Self>, _: CallId, call: Infallible) {
        match call {}
    }
    fn timer(&mut self, io: &mut Io<'_, Self>, timer: Timer) {
        match timer {
            Timer::Monitor => self.monitoring.timer(io, self.primary()),
        }
        self.answer_monitors(io);
    }
    fn signal(&mut self, io: &mut Io<'_, Self>, signal: Signal) {
        match signal {
            Signal::Terminate => io.exit(EXIT_BY_SIGNAL),
            Signal::FlushLog => log::logger().flush(),
            Signal::DumpState => self.dump(),
            // The log belongs to the process, not to the core.
            Signal::ReopenLog => {}
        }
    }
    fn transition(&mut self, _: &mut Io<'_, Self>, transition: Infallible) {
        match transition {}
    }
    fn advance(&mut self, io: &mut Io<'_, Self>) {
        if self.primary.is_none() {
            bootstrap::poll(self, io);
        }
        if self.save_masters
            && let Some(masters) = self.nodes.take_changed_masters()
        {
            io.submit(Job::SaveMasters(masters), After::SaveMasters);
        }
    }
    fn label(&self) -> String {
        self.bootstrap.nid.map_or_else(|| "A".into(), |nid| nid.to_string())
    }
}
