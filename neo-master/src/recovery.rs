// SPDX-License-Identifier: GPL-2.0-or-later
//! Recovery: finding the latest partition table, and the storages without which the cluster cannot
//! start. Upstream: master/recovery.py.
//!
//! Each storage that identifies is asked `AskRecovery`, then `AskPartitionTable` if it has one; the module
//! `versions` tells which of them counts. Upstream asks one storage that has the greatest ptid.
//!
//! ```text
//!  table known?   who must be there                                        by
//!  yes            all nodes with a readable cell (all nodes, to truncate)  nothing else
//!  yes            a readable cell of each partition                        `neoctl start`, or the
//!                                                                          service was interrupted
//!  no             at least one storage                                     `neoctl start`
//!  no             N storages                                               `--autostart N`
//! ```
//!
//! and all of them have answered what they were asked. A pending truncation is given to storages
//! that do not know it before.
//!
//! Two things are safer than upstream's after an interruption of the service. A new table is not
//! made if there was one. And only the last table of this master allows an automatic restart, because each
//! one is the beginning of a history that a storage may go on with alone:
//! 1. S1 and S2 are up-to-date. S2 is lost: its cells become out-of-date (version 2, told to S1).
//! 2. S1 is lost, with or without transactions that were committed meanwhile.
//! 3. S2 is back with version 1, which says that its cells are readable.
//!
//! To restart with S2 alone would lose what only S1 has; or if there is nothing, transactions would be
//! committed on S2 that another master does not see, if it meets S1 first. The same may have happened under
//! another master: a version that this one did not tell shows that there was one, so a master that is not
//! the only one begins with a version of its own.
//!
//! An election may take place meanwhile: as long as this phase lasts, the master keeps connecting
//! to the other masters that it knows, so that each pair of masters is compared.
//!
//! Unlike upstream, a table is never created when a storage has one that could not be got yet.

mod learn;
mod masters;
mod versions;
mod wait;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::Io;
use neo_common::node::Node;
use neo_common::partition_table::PartitionTable as Table;
use neo_common::planted;
use neo_common::protocol::{CellState, ClusterState, NodeState, Packet};
use neo_common::types::{NodeId, Partition, Ptid, Tid};

use crate::app::Master;
use crate::cluster::{Cluster, Startup};
use crate::partition_table::PartitionTable;
use crate::phase::Transition;
pub use learn::ask_recovery;
use masters::{connect_masters, disconnect_masters};
use versions::Versions;
use wait::Wait;

/// State of a recovery.
#[derive(Debug, Default)]
pub struct Recovery {
    versions: Versions,
    /// The one that counts.
    loaded: Option<Table>,
    /// Cells that are not readable, whatever it says.
    outdated: Vec<(Partition, NodeId)>,
    /// Storages that have no table, hence no data.
    empty: BTreeSet<NodeId>,
    backup_tids: BTreeMap<NodeId, Option<Tid>>,
    truncate_tids: BTreeMap<NodeId, Option<Tid>>,
    /// A storage is lost: another table may count.
    must_choose: bool,
    /// What is waited for, as it was told last.
    told: Option<Wait>,
    /// Other masters must be tried (again).
    pub try_masters: bool,
}

impl Recovery {
    /// Asks all storages that are there.
    pub fn start(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Self {
        log::info!("begin the recovery of the status");
        cluster.told_ptid = cluster.told_ptid.max(cluster.pt.table().ptid());
        let (partitions, replicas) = (cluster.options.partitions, cluster.options.replicas);
        cluster.pt = PartitionTable::new(partitions, replicas).expect("checked at start");
        cluster.set_state(io, ClusterState::Recovering);
        Self { try_masters: true, ..Self::default() }
    }

    /// Ends once all that is needed is there.
    pub fn advance(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
    ) -> Option<Transition> {
        if std::mem::take(&mut self.try_masters) {
            connect_masters(cluster, io);
        }
        if std::mem::take(&mut self.must_choose) {
            if self.versions.choose().map(|(_, table)| table) != self.loaded.as_ref()
                && let Err(fault) = self.load(cluster, io)
            {
                log::error!("{fault}");
            }
            let outdated = self.loaded.as_ref().map(|table| self.versions.outdated(table));
            self.outdated = outdated.unwrap_or_default();
        }
        let nids = match self.startable(cluster) {
            Ok(nids) => nids,
            Err(wait) => {
                // What they answer may change it.
                let is_asking = cluster.storages().any(|(_, conn)| io.is_pending(conn));
                if !is_asking && self.told.as_ref() != Some(&wait) {
                    log::info!("{wait}");
                    self.told = Some(wait);
                }
                return None;
            }
        };
        let is_busy = |nid: &NodeId| cluster.conn_of(*nid).is_none_or(|conn| io.is_pending(conn));
        if nids.is_empty() || nids.iter().any(is_busy) {
            return None;
        }
        if cluster.pt.is_filled() && self.send_truncate(cluster, io) {
            return None;
        }
        self.finish(cluster, io, nids);
        Some(Transition::Verify)
    }

    /// Storages that will run, if they are enough.
    fn startable(&self, cluster: &Cluster) -> Result<BTreeSet<NodeId>, Wait> {
        match cluster.pt.is_filled() {
            true => self.startable_with_table(cluster),
            false => self.startable_without(cluster),
        }
    }

    fn startable_with_table(&self, cluster: &Cluster) -> Result<BTreeSet<NodeId>, Wait> {
        let is_pending = |nid: &NodeId| cluster.nm.state_of(*nid) == NodeState::Pending;
        let absent = |nids: &BTreeSet<NodeId>| -> Vec<NodeId> {
            nids.iter().copied().filter(|nid| !is_pending(nid)).collect()
        };
        let ptid = cluster.pt.table().ptid();
        let pt = self.effective(&cluster.pt);
        let Some(readable) = pt.operational_nodes(|nid| is_pending(&nid)) else {
            return Err(Wait::Cells(absent(&pt.table().readable_nodes())));
        };
        let is_old = (ptid < cluster.lock_ptid
            || ptid < cluster.former_lock_ptid && ptid < self.former_lock_ptid(cluster))
            && !planted!(StartWithOldTable);
        let announced = self.versions.greatest_missing().filter(|other| Some(*other) > ptid);
        let is_enough = match (cluster.startup, announced) {
            (Startup::Forced, _) => true,
            // A storage was lost before it sent a later one, or is not back yet.
            (_, Some(announced)) => return Err(Wait::Announced(announced)),
            _ if is_old => return Err(Wait::OldTable(ptid)),
            (Startup::WhenComplete, _) => planted!(SplitAfterElection),
            (Startup::Restart, _) if planted!(StartWithOldTable) => true,
            (Startup::Restart, _) => {
                ptid == cluster.told_ptid && self.versions.greatest() <= cluster.told_ptid
            }
        };
        if is_enough {
            return Ok(readable.into_iter().filter(is_pending).collect());
        }
        let needed = if cluster.truncate_tid.is_some() {
            cluster.pt.table().nodes().collect()
        } else {
            readable
        };
        match absent(&needed) {
            nids if nids.is_empty() => Ok(needed),
            nids => Err(Wait::Others(nids)),
        }
    }

    fn startable_without(&self, cluster: &Cluster) -> Result<BTreeSet<NodeId>, Wait> {
        if !self.versions.is_empty() {
            return Err(Wait::Table);
        }
        let nids: BTreeSet<NodeId> = cluster.storages().map(|(nid, _)| nid).collect();
        let count = nids.len();
        if count == 0 {
            return Err(Wait::Storages);
        }
        let autostart = cluster.options.autostart.filter(|count| *count > 0);
        let is_enough = match cluster.startup {
            Startup::Forced => true,
            _ if cluster.has_table => return Err(Wait::Table),
            Startup::Restart => true,
            Startup::WhenComplete => autostart.is_some_and(|count| nids.len() >= count as usize),
        };
        is_enough.then_some(nids).ok_or(Wait::NewDatabase(count, autostart))
    }

    /// Up to which version earlier masters may have committed transactions. A storage that was not there
    /// when the cluster was started last, and is now, may show that it was less: otherwise the cluster would
    /// wait for ever for a version that was never stored where it was needed.
    fn former_lock_ptid(&self, cluster: &Cluster) -> Option<Ptid> {
        let former = cluster.former_lock_ptid?;
        let tables = self.versions.tables_of(former);
        tables.map(|table| self.versions.lock_ptid(table)).max().unwrap_or(Some(former))
    }

    /// The table to start with: it gets a number once the cluster starts.
    fn effective<'a>(&self, pt: &'a PartitionTable) -> Cow<'a, PartitionTable> {
        let mut pt = Cow::Borrowed(pt);
        for (partition, nid) in &self.outdated {
            let changed = pt.to_mut().set_cell(*partition, *nid, CellState::OutOfDate);
            debug_assert!(changed.is_ok(), "the cell exists");
        }
        pt
    }

    /// Gives a pending truncation to the storages that do not know it. Whether there were any.
    fn send_truncate(&self, cluster: &Cluster, io: &mut Io<'_, Master>) -> bool {
        let Some(tid) = cluster.truncate_tid else { return false };
        let mut sent = false;
        for (nid, other) in &self.truncate_tids {
            if other.is_some_and(|other| other <= tid) {
                continue;
            }
            if let Some(conn) = cluster.conn_of(*nid) {
                io.send(conn, Packet::Truncate { tid });
                ask_recovery(io, conn);
                sent = true;
            }
        }
        sent
    }

    fn finish(&self, cluster: &mut Cluster, io: &mut Io<'_, Master>, mut nids: BTreeSet<NodeId>) {
        log::info!("startup allowed");
        // From now on, it is known which ids are in use.
        cluster.newcomers.clear();
        let is_new = !cluster.pt.is_filled();
        let mut has_changed = !self.outdated.is_empty();
        if !is_new {
            cluster.has_table = true;
            // Before this master, transactions may have been committed up to this version.
            let table = cluster.pt.table();
            let former = self.former_lock_ptid(cluster);
            cluster.former_lock_ptid = former.max(self.versions.lock_ptid(table));
            let unlocked = self.loaded.as_ref().map_or_else(Vec::new, |table| {
                self.versions.unlocked(table, |nid| cluster.conn_of(nid).is_some())
            });
            cluster.pt = self.effective(&cluster.pt).into_owned();
            has_changed |= !unlocked.is_empty();
            for (partition, nid) in unlocked {
                log::info!("{nid} may miss in partition {partition} what others have locked");
                let changed = cluster.pt.set_cell(partition, nid, CellState::OutOfDate);
                debug_assert!(changed.is_ok(), "the cell exists");
            }
            let connected = |nid: &NodeId| cluster.conn_of(*nid).is_some();
            nids = cluster.pt.table().nodes().filter(connected).collect();
        }
        let mut changed = Vec::new();
        for nid in &nids {
            if let Some(key) = cluster.nm.by_nid(*nid).map(Node::key) {
                cluster.nm.set_state(key, NodeState::Running);
                changed.push(key);
            }
        }
        changed.extend(disconnect_masters(cluster, io));
        cluster.broadcast_nodes(io, &changed);
        if is_new {
            log::info!("creating a new partition table");
            let nids: Vec<NodeId> = nids.into_iter().collect();
            let mut pt = cluster.pt.clone();
            pt.make(&nids, &cluster.topology()).expect("there is at least one node");
            // If the cluster was interrupted before it served, a storage that is away may have got
            // another table. It must not look as recent as this one.
            if let Some(told_ptid) = cluster.told_ptid {
                pt.begin_ptids(told_ptid);
            }
            cluster.pt = pt;
            cluster.send_to_admins(io, &cluster.partition_table());
        } else {
            let Cluster { pt, nm, told_ptid, .. } = &mut *cluster;
            let changes = pt.outdate(None, |nid| nm.state_of(nid) == NodeState::Running);
            let is_common = *told_ptid <= pt.table().ptid() && self.versions.all_have(pt.table());
            // A former primary master that finds this version again must see that it was replaced.
            let is_own = *told_ptid == pt.table().ptid() || nm.masters().count() <= 1;
            if !(is_own && changes.is_empty() && is_common) {
                let known = [*told_ptid, self.versions.greatest(), pt.table().ptid()];
                pt.begin_ptids(known.into_iter().flatten().max().unwrap_or_default());
                let packet = match has_changed {
                    false => cluster.current_version(changes),
                    true => cluster.partition_table(),
                };
                cluster.send_to_admins(io, &packet);
            }
            if cluster.backup_tid.is_some() {
                let tid_of = |nid: NodeId| self.backup_tids.get(&nid).copied().flatten();
                cluster.pt.set_backup_tids(|nid| tid_of(nid).unwrap_or(Tid::ZERO));
                cluster.backup_tid = Some(cluster.pt.backup_tid());
            }
        }
    }
}
