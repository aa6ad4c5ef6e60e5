// SPDX-License-Identifier: GPL-2.0-or-later
//! The master node: what the engine runs. Upstream: master/app.py.
//!
//! [`Master`] is a [`Cluster`] (state that all phases share) and, beside it, a [`Phase`] (what the
//! node is doing now): handlers borrow both.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;

use neo_common::engine::{App, CallId, EXIT_BY_SIGNAL, Handler, Io, Signal, bootstrap};
use neo_common::limits::{CELLS_MAX, PARTITIONS_MAX};
use neo_common::types::{NodeId, Tid, Ttid, nid_str};

use crate::backup;
use crate::cluster::Cluster;
use crate::commit;
use crate::handlers;
use crate::phase::{Phase, Transition};

/// What the operator chose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Name of the cluster.
    pub cluster: String,
    /// Where this master listens, as the others are told.
    pub bind: SocketAddr,
    /// Other masters (its own address may be among them).
    pub masters: Vec<SocketAddr>,
    /// Pending storages needed to create a database automatically; `None`: never.
    pub autostart: Option<u32>,
    /// Wished id, for tests.
    pub nid: Option<NodeId>,
    /// Partitions of a new database.
    pub partitions: u32,
    /// Replicas of a new database.
    pub replicas: u32,
    /// The cluster to back up.
    pub upstream: Option<Upstream>,
    /// Become a backup cluster at once if the database is empty.
    pub backup: bool,
}

/// The cluster to back up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// Its name.
    pub cluster: String,
    /// Its masters.
    pub masters: Vec<SocketAddr>,
}

/// Options that make no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionsError {
    /// There must be at least one.
    NoPartition,
    /// More than a table can have.
    TooManyPartitions,
    /// More than a partition can have cells.
    TooManyReplicas,
    /// A cluster cannot back up itself.
    SameUpstream,
    /// The upstream cluster has no master.
    NoUpstreamMaster,
    /// There is nothing to back up.
    NoUpstream,
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPartition => f.write_str("partitions must be more than zero"),
            Self::TooManyPartitions => write!(f, "partitions must be at most {PARTITIONS_MAX}"),
            Self::TooManyReplicas => write!(f, "replicas must be less than {CELLS_MAX}"),
            Self::SameUpstream => {
                f.write_str("upstream cluster name must be different from cluster name")
            }
            Self::NoUpstreamMaster => f.write_str("at least one upstream master must be defined"),
            Self::NoUpstream => f.write_str(backup::NO_UPSTREAM),
        }
    }
}
impl std::error::Error for OptionsError {}

impl Options {
    fn check(&self) -> Result<(), OptionsError> {
        if self.partitions == 0 {
            return Err(OptionsError::NoPartition);
        }
        if self.partitions > PARTITIONS_MAX {
            return Err(OptionsError::TooManyPartitions);
        }
        if self.replicas as usize >= CELLS_MAX {
            return Err(OptionsError::TooManyReplicas);
        }
        match &self.upstream {
            Some(upstream) if upstream.cluster == self.cluster => Err(OptionsError::SameUpstream),
            Some(upstream) if upstream.masters.is_empty() => Err(OptionsError::NoUpstreamMaster),
            None if self.backup => Err(OptionsError::NoUpstream),
            Some(_) | None => Ok(()),
        }
    }
}

/// What to do with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ticket {
    /// `AskRecovery`, `AskPartitionTable`.
    Recovery,
    /// What a verification asks; the number tells which one.
    Verification(u32),
    /// `AskLockInformation`.
    Lock(Ttid),
    /// `AskFinalTID` for a transaction that lost a storage while it was being locked.
    Confirm(Ttid),
    /// `AskPackOrders` to storages, because somebody wants old ones.
    PackOrders {
        /// Which request.
        request: u64,
        /// Which part of it.
        query: u64,
    },
    /// `RequestIdentification` to another master.
    Identification,
    /// `AskLastTransaction` to the upstream master.
    Upstream,
    /// `AskPackOrders` to the upstream master; what is known from there will be told to storages.
    UpstreamPackOrders(Tid),
}

/// What the driver does for a master.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Write the list of all known masters, sorted, to the dynamic master list if there is one.
    SaveMasters(Vec<SocketAddr>),
}

/// The master node.
#[derive(Debug)]
pub struct Master {
    /// State that all phases share.
    pub cluster: Cluster,
    /// What it is doing.
    pub phase: Phase,
    /// The cluster that is backed up, if any.
    pub upstream: backup::Upstream,
}

impl Master {
    /// A master that has not started.
    ///
    /// # Errors
    /// If the options make no sense.
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        let upstream = backup::Upstream::new(&options);
        let cluster = Cluster::new(options).map_err(|_| OptionsError::TooManyPartitions)?;
        Ok(Self { cluster, phase: Phase::Closing, upstream })
    }

    /// Logs all that helps to understand what is going on.
    fn log(&self) {
        let Cluster { nm, pt, tm, state, .. } = &self.cluster;
        log::info!("cluster state: {state}, phase: {}", self.phase.name());
        log::info!("nodes: {}", nm.len());
        for line in neo_common::node::format::format_nodes(&nm.entries()) {
            log::info!(" * {line}");
        }
        for line in pt.table().format([], |nid| nm.state_of(nid)) {
            log::info!("pt: {line}");
        }
        tm.log();
    }
}

impl App for Master {
    type Job = Job;
    type Done = ();
    type After = ();
    type Ticket = Ticket;
    type Call = Infallible;
    type Reply = Infallible;
    type Timer = Infallible;
    type Transition = Transition;

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        handlers::acceptor(&self.phase)
    }
    fn start(&mut self, io: &mut Io<'_, Self>) {
        self.transition(io, Transition::PlayPrimary);
    }
    fn job_done(&mut self, _: &mut Io<'_, Self>, (): (), (): ()) {}
    fn call(&mut self, _: &mut Io<'_, Self>, _: CallId, call: Infallible) {
        match call {}
    }
    fn timer(&mut self, _: &mut Io<'_, Self>, timer: Infallible) {
        match timer {}
    }
    fn signal(&mut self, io: &mut Io<'_, Self>, signal: Signal) {
        match signal {
            // Nothing is lost: whatever was decided is in the storages.
            Signal::Terminate => io.exit(EXIT_BY_SIGNAL),
            // The logger does it.
            Signal::FlushLog | Signal::ReopenLog => log::logger().flush(),
            Signal::DumpState => self.log(),
        }
    }
    fn transition(&mut self, io: &mut Io<'_, Self>, transition: Transition) {
        self.change_phase(io, transition);
        // A phase may have nothing to wait for.
        self.advance(io);
    }
    fn advance(&mut self, io: &mut Io<'_, Self>) {
        commit::retry_delayed(self, io);
        if let Some(transition) = self.phase.advance(&mut self.cluster, io) {
            io.transition(transition);
        }
        if matches!(&self.phase, Phase::Backup(backup) if backup.wants_upstream()) {
            bootstrap::poll(self, io);
        }
        if let Some(masters) = self.cluster.nm.take_changed_masters() {
            io.submit(Job::SaveMasters(masters), ());
        }
    }
    fn label(&self) -> String {
        let nid = self.cluster.own_nid();
        if nid.is_none() { "M?".into() } else { nid_str(nid) }
    }
}
