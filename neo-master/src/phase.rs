// SPDX-License-Identifier: GPL-2.0-or-later
//! What the master is doing, and how it changes. Upstream: master/app.py, `playPrimaryRole`,
//! `playSecondaryRole`.
//!
//! ```text
//!               +--------------------- another master wins ------------------> Secondary
//!               |   +------------- all other masters are down or secondary ------+
//!               |   v
//!   start --> Recovery --> Verification --> Service or Backup
//!               ^                |             |     the last readable cell of a partition is
//!               +----------------+-------------+     lost, or truncation
//!
//!   any but Secondary --set cluster stopping--> Stopping --no transaction left--> Closing (exit)
//! ```
//!
//! [`Master::change_phase`] is the only place that changes the phase. It runs between two packets.

use neo_common::engine::{ConnId, Io, bootstrap};
use neo_common::node::{Node, NodeKey};
use neo_common::protocol::{ClusterState, NodeState, NodeType, Packet};
use neo_common::types::Tid;

use crate::app::Master;
use crate::backup::{Backup, NO_UPSTREAM};
use crate::cluster::{Cluster, Startup};
use crate::recovery::Recovery;
use crate::secondary::Secondary;
use crate::verification::Verification;

/// What the master is doing.
#[derive(Debug)]
pub enum Phase {
    /// Waiting for storages that hold all data, and for the end of an election.
    Recovery(Recovery),
    /// Finishing what was decided.
    Verification(Verification),
    /// Serving clients.
    Service,
    /// Following another cluster.
    Backup(Backup),
    /// Waiting for the transactions that are being finished.
    Stopping,
    /// Not started, or about to exit.
    Closing,
    /// Another master is primary.
    Secondary(Secondary),
}

/// A change of phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// Storages are there: verify.
    Verify,
    /// Everything is verified: serve clients.
    Serve,
    /// The cluster is not operational any more, or has to be truncated: recover.
    Recover {
        /// Where to truncate.
        truncate: Option<Tid>,
    },
    /// The operator wants to follow the upstream cluster (again).
    StartBackup,
    /// Stop following the upstream cluster.
    StopBackup,
    /// All cells are complete up to the backup tid: truncate there and recover.
    LeaveBackup,
    /// The operator wants to stop.
    Stop,
    /// Nothing is waited for any more: exit.
    Close,
    /// This master wins, or is alone.
    PlayPrimary,
    /// Another master wins.
    PlaySecondary(NodeKey),
}

impl Phase {
    /// For logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Recovery(_) => "recovery",
            Self::Verification(_) => "verification",
            Self::Service => "service",
            Self::Backup(_) => "backup",
            Self::Stopping => "stopping",
            Self::Closing => "closing",
            Self::Secondary(_) => "secondary",
        }
    }

    /// Checks whether the phase has what it waits for.
    pub fn advance(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
    ) -> Option<Transition> {
        match self {
            Self::Recovery(recovery) => recovery.advance(cluster, io),
            Self::Verification(verification) => verification.advance(cluster, io),
            Self::Stopping => (!cluster.tm.has_pending()).then_some(Transition::Close),
            Self::Secondary(secondary) => secondary.advance(cluster, io),
            Self::Backup(backup) => backup.advance(cluster),
            Self::Service | Self::Closing => None,
        }
    }
}

impl Master {
    /// Applies a change of phase. One that came too late, because the phase changed meanwhile, is
    /// ignored.
    pub fn change_phase(&mut self, io: &mut Io<'_, Self>, transition: Transition) {
        if matches!(transition, Transition::Recover { .. } | Transition::Stop) {
            self.leave_upstream(io);
        }
        let Self { cluster, phase, .. } = self;
        let is_verifying = matches!(phase, Phase::Verification(_));
        match (transition, &mut *phase) {
            (Transition::Verify, Phase::Recovery(_)) => {
                cluster.tm.reset();
                cluster.set_state(io, ClusterState::Verifying);
                *phase = Phase::Verification(Verification::new(cluster));
            }
            (Transition::Serve, Phase::Verification(_)) => *phase = serve(cluster, io),
            (
                Transition::Recover { truncate },
                Phase::Verification(_) | Phase::Service | Phase::Backup(_),
            ) => {
                log::error!("No longer operational");
                // Automatic restart, except if this truncates or tries to.
                cluster.startup = match cluster.truncate_tid.or(truncate) {
                    // Not known yet what there is: all are still waited for.
                    None if is_verifying && cluster.startup == Startup::WhenComplete => {
                        Startup::WhenComplete
                    }
                    None => Startup::Restart,
                    Some(_) => Startup::WhenComplete,
                };
                cluster.truncate_order = truncate.or(cluster.truncate_order);
                stop_operation(cluster, io, truncate);
                *phase = Phase::Recovery(Recovery::start(cluster, io));
            }
            (Transition::StartBackup, Phase::Service | Phase::Backup(_))
                if cluster.options.upstream.is_some() =>
            {
                begin_backup(cluster, io);
                *phase = Phase::Backup(Backup::start(cluster, io));
            }
            (Transition::StopBackup, Phase::Backup(_)) => {
                self.leave_upstream(io);
                if let Phase::Backup(backup) = &mut self.phase {
                    backup.stop(&mut self.cluster, io);
                }
            }
            (Transition::LeaveBackup, Phase::Backup(_)) => {
                leave_backup(cluster, io);
                *phase = Phase::Recovery(Recovery::start(cluster, io));
            }
            (Transition::Recover { .. } | Transition::Close, Phase::Stopping) => {
                close(cluster, io, 0);
                *phase = Phase::Closing;
            }
            (
                Transition::Stop,
                Phase::Recovery(_) | Phase::Verification(_) | Phase::Service | Phase::Backup(_),
            ) => {
                cluster.set_state(io, ClusterState::Stopping);
                cluster.is_stopping = true;
                *phase = Phase::Stopping;
            }
            (Transition::PlayPrimary, Phase::Closing | Phase::Secondary(_)) if !io.is_exiting() => {
                *phase = Phase::Recovery(play_primary(cluster, io));
            }
            (Transition::PlaySecondary(key), Phase::Recovery(_)) => {
                *phase = Phase::Secondary(Secondary::start(cluster, io, key));
            }
            (late, phase) => log::debug!("too late in {}: {late:?}", phase.name()),
        }
    }

    /// The upstream cluster is not followed any more.
    fn leave_upstream(&mut self, io: &mut Io<'_, Self>) {
        if let Phase::Backup(backup) = &mut self.phase {
            backup.unfollow(&mut self.cluster, io);
            bootstrap::cancel(self, io);
        }
    }
}

/// Verification is done.
fn serve(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Phase {
    cluster.has_table = true;
    if cluster.options.backup && cluster.last_tid == Tid::ZERO {
        cluster.pt.set_backup_tids(|_| Tid::ZERO);
        cluster.backup_tid = Some(Tid::ZERO);
    }
    if cluster.backup_tid.is_none() {
        log::info!("provide service");
        cluster.set_state(io, ClusterState::Running);
        Phase::Service
    } else if cluster.options.upstream.is_some() {
        Phase::Backup(Backup::start(cluster, io))
    } else {
        log::error!("{NO_UPSTREAM}");
        close(cluster, io, 1);
        Phase::Closing
    }
}

/// From now on, storages are complete up to the last transaction.
fn begin_backup(cluster: &mut Cluster, io: &mut Io<'_, Master>) {
    if cluster.backup_tid.is_some() {
        cluster.pt.clear_replicating();
        return;
    }
    let tid = cluster.last_tid;
    cluster.backup_tid = Some(tid);
    cluster.pt.set_backup_tids(|_| tid);
    for (nid, conn) in cluster.storages().collect::<Vec<_>>() {
        if cluster.is_running(nid) {
            io.send(conn, Packet::StartOperation { backup: true });
        }
    }
}

/// All storages are truncated at the backup tid, even if this changes nothing: that is how they
/// leave the backup mode.
fn leave_backup(cluster: &mut Cluster, io: &mut Io<'_, Master>) {
    let Some(tid) = cluster.backup_tid.take() else { return };
    if tid < cluster.last_tid {
        log::warn!("Truncating at {tid} (last_tid was {})", cluster.last_tid);
    }
    // Nothing is lost without the storages that are missing if nothing is truncated.
    cluster.startup = if tid < cluster.last_tid { Startup::WhenComplete } else { Startup::Restart };
    cluster.pt.clear_replicating();
    stop_operation(cluster, io, Some(tid));
}

/// Begins to play the primary role, with no connection.
fn play_primary(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Recovery {
    log::info!("play the primary role");
    disconnect_all(cluster, io, None);
    if cluster.own_nid().is_none() {
        let address = Some(cluster.options.bind);
        let nid = cluster.new_nid(None, address, NodeType::Master);
        cluster.set_own_nid(io, nid.expect("there are less than 2^24 masters"));
    }
    cluster.nm.set_state(cluster.own, NodeState::Running);
    cluster.nm.set_id_timestamp(cluster.own, None);
    cluster.primary_since = Some(cluster.next_timestamp(io.now()));
    // Not restarted automatically after an election, otherwise data could be split: with 2 machines
    // that have a master and a storage each, and 1 replica, a network failure would make the
    // secondary master primary and each storage would go its own way.
    cluster.startup = Startup::WhenComplete;
    Recovery::start(cluster, io)
}

/// Closes all connections but one, and forgets who was there, except masters.
pub fn disconnect_all(cluster: &mut Cluster, io: &mut Io<'_, Master>, kept: Option<ConnId>) {
    for conn in io.connections().filter(|conn| Some(*conn) != kept).collect::<Vec<_>>() {
        cluster.nm.unlink(conn);
        io.close(conn);
    }
    let others = cluster.nm.iter().filter(|node| !node.is_master());
    for key in others.map(Node::key).collect::<Vec<_>>() {
        cluster.forget(key);
    }
    cluster.clear_ready();
}

/// Ends the service: storages wait for the end of the next recovery, clients are disconnected.
fn stop_operation(cluster: &mut Cluster, io: &mut Io<'_, Master>, truncate: Option<Tid>) {
    cluster.clear_ready();
    let mut changed = Vec::new();
    let nodes: Vec<_> = cluster
        .nm
        .storages()
        .chain(cluster.nm.clients())
        .filter_map(|node| Some((node.key(), node.identified()?, node.is_running())))
        .collect();
    for (key, conn, is_running) in nodes {
        io.send(conn, Packet::StopOperation {});
        if key.node_type() == NodeType::Client {
            io.abort(conn);
            continue;
        }
        if let Some(tid) = truncate {
            io.send(conn, Packet::Truncate { tid });
        }
        if is_running {
            cluster.nm.set_state(key, NodeState::Pending);
            changed.push(key);
        }
    }
    cluster.broadcast_nodes(io, &changed);
}

/// Tells storages to exit, closes all connections and exits.
fn close(cluster: &mut Cluster, io: &mut Io<'_, Master>, status: i32) {
    log::info!("asking remaining nodes to shut down");
    let storages: Vec<_> = cluster
        .nm
        .storages()
        .filter_map(|node| Some((node.established()?, node.entry())))
        .collect();
    for (conn, (node_type, address, nid, ..)) in storages {
        cluster.send_own_entry(io, conn, (node_type, address, nid, NodeState::Down, None));
    }
    for conn in io.connections().collect::<Vec<_>>() {
        io.abort(conn);
    }
    io.exit(status);
}
