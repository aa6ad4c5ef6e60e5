// SPDX-License-Identifier: GPL-2.0-or-later
//! What storages of a backup cluster are told to replicate, and what they report. Upstream:
//! master/backup_app.py, `invalidatePartitions`, `triggerBackup`, `notifyReplicationDone` and
//! `nodeLost`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use neo_common::engine::{ConnId, Fault, Io};
use neo_common::node::Node;
use neo_common::protocol::{Map, Packet};
use neo_common::types::{NodeId, Partition, Tid};

use super::{Backup, Step, Upstream};
use crate::app::Master;
use crate::cluster::Cluster;
use crate::partition_table::{BackupCell, Changes};

/// An order to replicate.
fn replicate(tid: Tid, name: &str, sources: Vec<(Partition, Option<SocketAddr>)>) -> Packet {
    Packet::Replicate { tid, upstream_name: name.to_owned(), sources: Map(sources) }
}

fn address_of(cluster: &Cluster, nid: NodeId) -> Option<SocketAddr> {
    cluster.nm.by_nid(nid).and_then(Node::address)
}

impl Backup {
    /// A transaction upstream changed some partitions.
    pub(super) fn invalidate(
        &mut self,
        cluster: &mut Cluster,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        tid: Tid,
        previous: Tid,
        changed: &BTreeSet<Partition>,
    ) {
        cluster.last_tid = tid;
        cluster.tm.set_last_tid(tid);
        let mut triggered = BTreeSet::new();
        let mut untouched = BTreeMap::<NodeId, Vec<(Partition, Option<SocketAddr>)>>::new();
        for partition in 0..cluster.pt.partitions() {
            let last_max = self.tids[partition as usize].last().copied().unwrap_or(previous);
            if changed.contains(&partition) {
                triggered.extend(self.changed(cluster, io, partition, tid, previous));
                continue;
            }
            // Complete cells stay so, without replication; those that are about to be too.
            for (nid, _) in cluster.pt.backup_cells(partition) {
                let cell = cluster.pt.backup_cell_mut(partition, nid);
                if last_max <= cell.tid {
                    cell.tid = tid;
                    untouched.entry(nid).or_default().push((partition, None));
                } else if last_max <= cell.replicating {
                    cell.replicating = tid;
                }
            }
        }
        for (nid, partitions) in untouched {
            if let Some(ready) = cluster.ready().get(&nid) {
                io.send(ready.conn, replicate(tid, "", partitions));
            }
        }
        for nid in triggered {
            self.trigger(cluster, upstream, io, nid);
        }
    }

    /// A partition has changed. Returns the nodes that may have to fetch from upstream.
    fn changed(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
        partition: Partition,
        tid: Tid,
        previous: Tid,
    ) -> Vec<NodeId> {
        // At the beginning: nodes that have all data of upstream already.
        let mut complete = Vec::new();
        let mut late = Vec::new();
        for (nid, cell) in cluster.pt.backup_cells(partition) {
            let is_ready = cluster.ready().contains_key(&nid);
            if cell.tid == previous {
                if previous == tid {
                    complete.extend(is_ready.then_some(nid));
                    continue;
                }
                // With tids t0 to t3 and a cell that is only modified by t0 and t3, it could be
                // said to be complete up to t0, t1, t2 or t3 - 1. If t0 was chosen, leaving the
                // backup mode would lose data whenever the last transaction did not touch all
                // partitions.
                cluster.pt.backup_cell_mut(partition, nid).tid =
                    tid.previous().unwrap_or(Tid::ZERO);
            }
            late.extend(is_ready.then_some(nid));
        }
        if let Entry::Vacant(entry) = self.primaries.entry(partition) {
            let candidates = if complete.is_empty() { &late } else { &complete };
            if let Some(nid) = io.prng().choose(candidates) {
                entry.insert(*nid);
            }
        }
        if late.is_empty() {
            return late;
        }
        self.tids[partition as usize].push(tid);
        if complete.is_empty() {
            return late;
        }
        if let Some(primary) = self.primaries.get(&partition) {
            Self::trigger_secondaries(cluster, io, *primary, partition, tid);
        }
        Vec::new()
    }

    /// Orders a node to fetch from upstream the partitions of which it is the primary.
    fn trigger(
        &self,
        cluster: &mut Cluster,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        nid: NodeId,
    ) {
        let Some(conn) = cluster.conn_of(nid) else { return };
        let tid = cluster.last_tid;
        let partitions: Vec<Partition> =
            cluster.pt.table().cells_of(nid).map(|(partition, _)| partition).collect();
        let mut sources = Vec::new();
        // As few connections as possible.
        let mut used = BTreeSet::new();
        for partition in partitions {
            let last = self.tids[partition as usize].last();
            if self.primaries.get(&partition) != Some(&nid)
                || last.is_none_or(|last| cluster.pt.backup_cell(partition, nid).aim() >= *last)
            {
                continue;
            }
            let mut addresses = self.sources(upstream, partition);
            io.prng().shuffle(&mut addresses);
            let known = addresses.iter().find(|address| used.contains(*address));
            let Some(source) = known.or(addresses.last()).copied() else { continue };
            used.insert(source);
            cluster.pt.backup_cell_mut(partition, nid).replicating = tid;
            sources.push((partition, Some(source)));
        }
        if !sources.is_empty() {
            io.send(conn, replicate(tid, &upstream.bootstrap.cluster, sources));
        }
    }

    /// Orders the other cells of a partition to fetch from the primary one.
    fn trigger_secondaries(
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
        primary: NodeId,
        partition: Partition,
        tid: Tid,
    ) {
        let Some(source) = address_of(cluster, primary) else { return };
        for (nid, cell) in cluster.pt.backup_cells(partition) {
            if cell.aim() < tid
                && let Some(conn) = cluster.conn_of(nid)
            {
                cluster.pt.backup_cell_mut(partition, nid).replicating = tid;
                io.send(conn, replicate(tid, "", vec![(partition, Some(source))]));
            }
        }
    }

    // What storages tell.

    /// A cell is complete up to a tid. Returns the changes of the partition table.
    ///
    /// # Errors
    /// If there is no such cell, or it cannot be so far.
    pub fn replication_done(
        &mut self,
        cluster: &mut Cluster,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        (nid, conn): (NodeId, ConnId),
        partition: Partition,
        mut tid: Tid,
    ) -> Result<Changes, Fault> {
        let state = cluster.pt.table().cell_state(partition, nid);
        let state = state.ok_or_else(|| Fault::protocol("Non-assigned partition"))?;
        if tid > cluster.last_tid {
            return Err(Fault::protocol("replicated up to the future"));
        }
        if !state.is_readable() && !cluster.pt.is_updatable(nid, partition) {
            // Late: about an older replication.
            return Ok(Changes::new());
        }
        let readable = cluster.pt.backup_cells(partition);
        let tids = &mut self.tids[partition as usize];
        if let Some(first) = tids.first() {
            if tid < *first {
                cluster.pt.backup_cell_mut(partition, nid).replicating = tid;
            } else if let Some(next) = tids.get(tids.partition_point(|other| *other <= tid)) {
                tid = next.previous().unwrap_or(Tid::ZERO);
            } else if tid < cluster.last_tid {
                tid = cluster.last_tid;
                io.send(conn, replicate(tid, "", vec![(partition, None)]));
            }
        }
        cluster.pt.backup_cell_mut(partition, nid).tid = tid;
        let primary = self.primaries.get(&partition).copied();
        let is_primary = primary == Some(nid);
        let changes = if is_primary {
            Changes::new()
        } else {
            let changes = cluster.pt.set_up_to_date(nid, partition);
            changes.map_err(|error| Fault::protocol(error.to_string()))?
        };
        // Forget tids that all cells have.
        let tid_of = |(other, cell): &(NodeId, BackupCell)| {
            if *other == nid { tid } else { cell.tid }
        };
        let min = readable.iter().map(tid_of).min().unwrap_or(tid);
        let tids = &mut self.tids[partition as usize];
        tids.drain(..tids.partition_point(|other| *other <= min));
        if !changes.is_empty() {
            // It was out-of-date.
            if let Some(primary) = primary {
                let max = cluster.pt.backup_cell(partition, primary).tid;
                let source = address_of(cluster, primary);
                if tid < max && source.is_some() {
                    cluster.pt.backup_cell_mut(partition, nid).replicating = max;
                    io.send(conn, replicate(max, "", vec![(partition, source)]));
                }
            }
            return Ok(changes);
        }
        if self.step == Step::Following {
            self.trigger(cluster, upstream, io, nid);
        }
        if is_primary {
            Self::trigger_secondaries(cluster, io, nid, partition, tid);
        }
        Ok(changes)
    }

    /// A storage is lost: other cells replace it as primary. Its cells are out-of-date already.
    pub fn node_lost(
        &mut self,
        cluster: &mut Cluster,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        lost: NodeId,
    ) {
        if self.step != Step::Following {
            return;
        }
        let mut triggered = BTreeSet::new();
        let partitions = self.primaries.iter().filter(|(_, nid)| **nid == lost);
        for partition in partitions.map(|(partition, _)| *partition).collect::<Vec<_>>() {
            let cells = cluster.pt.backup_cells(partition);
            // The first of those that are the farthest.
            let best = cells.iter().rev().max_by_key(|(_, cell)| cell.tid).copied();
            let Some((primary, BackupCell { tid, .. })) = best else {
                self.primaries.remove(&partition);
                continue;
            };
            self.primaries.insert(partition, primary);
            let source = address_of(cluster, primary);
            for (nid, cell) in cells {
                cluster.pt.backup_cell_mut(partition, nid).replicating = tid;
                if cell.tid < tid
                    && let Some(conn) = cluster.conn_of(nid)
                {
                    io.send(conn, replicate(tid, "", vec![(partition, source)]));
                }
            }
            triggered.insert(primary);
        }
        for nid in triggered {
            self.trigger(cluster, upstream, io, nid);
        }
    }
}
