// SPDX-License-Identifier: GPL-2.0-or-later
//! Backup cluster: following another cluster. Upstream: master/backup_app.py.
//!
//! The storages of a backup cluster replicate from those of the *upstream* cluster. Their master is
//! a client of the upstream master: invalidations tell which partitions changed, and it tells its
//! storages what to replicate, from where and up to which tid.
//!
//! For each partition, one cell (the *primary*) fetches from upstream; the others fetch from it.
//! All cells are UP_TO_DATE, up to their own *backup tid*. It cannot be guessed from what they store,
//! because most transactions do not touch most partitions: so storages are also told up to where a
//! partition that did not change is complete ([`Packet::Replicate`] without source). When the
//! cluster leaves this mode it is truncated at the *backup tid* of the cluster, the greatest tid
//! for which it has everything.
//!
//! ```text
//!   Waiting ------> Connecting -------> Following ------> Stopping --> truncation, recovery
//!   (all readable    (upstream           |    ^            (cells complete each other)
//!    cells ready)     master found)      |    |
//!      ^                                 v    |
//!      +------------- upstream lost -----+    set cluster stopping_backup, or upstream truncated
//! ```
//!
//! Nodes of both clusters have ids of their own: the master uses the id that it gets from upstream
//! only with upstream, and storages connect anonymously.

mod orders;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use neo_common::engine::bootstrap::Bootstrap;
use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::node::{Node, NodeManager};
use neo_common::partition_table::PartitionTable as Table;
use neo_common::protocol::{ClusterState, Map, NodeType, Packet, Value};
use neo_common::types::{NodeId, Partition, Tid};

use crate::app::{Master, Options, Ticket};
use crate::cluster::Cluster;
use crate::phase::Transition;

/// What an operator is told who wants a backup cluster without saying of what.
pub const NO_UPSTREAM: &str = "No upstream cluster to backup defined in configuration";

/// The upstream cluster, seen by one of its clients.
#[derive(Debug)]
pub struct Upstream {
    /// The search for its primary master.
    pub bootstrap: Bootstrap,
    /// Its nodes.
    pub nm: NodeManager,
    /// Whether the next list of nodes is the full one.
    pub wants_full_list: bool,
}

impl Upstream {
    /// Knows the masters of the options. Without upstream cluster, it is never used.
    pub fn new(options: &Options) -> Self {
        let mut nm = NodeManager::new();
        let mut name = String::new();
        if let Some(upstream) = &options.upstream {
            name.clone_from(&upstream.cluster);
            for address in &upstream.masters {
                nm.create_master(*address).expect("there are only masters");
            }
        }
        let extra = Map(vec![("backup".into(), Value::text(&options.cluster))]);
        let bootstrap = Bootstrap::new(NodeType::Client, name, None, None, extra);
        Self { bootstrap, nm, wants_full_list: true }
    }

    /// Address of an admin of the upstream cluster that monitors us, if there is one.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.nm.admins().find(|node| node.is_running()).and_then(Node::address)
    }
}

/// How far the backup got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Waiting,
    Connecting,
    Following,
    Stopping,
}

/// State of the backup mode.
#[derive(Debug)]
pub struct Backup {
    step: Step,
    /// Connection to the upstream master, while following.
    conn: Option<ConnId>,
    /// Table of the upstream cluster.
    table: Option<Table>,
    /// Which cell of each partition fetches from upstream.
    primaries: BTreeMap<Partition, NodeId>,
    /// For each partition, tids that changed it and that some readable cells do not have.
    tids: Vec<Vec<Tid>>,
    /// Until all partitions were ordered to replicate once.
    ignore_invalidations: bool,
    /// Until older pack orders are known.
    ignore_pack_notifications: bool,
}

/// What storages can store.
fn check_tid(tid: Tid) -> Handled {
    if tid < Tid::MAX { Ok(()) } else { Err(Fault::protocol("invalid tid")) }
}

impl Backup {
    /// Waits for storages, then looks for upstream.
    pub fn start(cluster: &mut Cluster, io: &mut Io<'_, Master>) -> Self {
        log::info!("provide backup");
        cluster.set_state(io, ClusterState::StartingBackup);
        Self {
            step: Step::Waiting,
            conn: None,
            table: None,
            primaries: BTreeMap::new(),
            tids: vec![Vec::new(); cluster.pt.partitions() as usize],
            ignore_invalidations: true,
            ignore_pack_notifications: true,
        }
    }

    /// Whether the upstream master must be looked for.
    pub fn wants_upstream(&self) -> bool {
        self.step == Step::Connecting
    }
    /// Connection to the upstream master.
    pub const fn connection(&self) -> Option<ConnId> {
        self.conn
    }

    /// Checks what is waited for.
    pub fn advance(&mut self, cluster: &Cluster) -> Option<Transition> {
        match self.step {
            Step::Waiting => {
                let nids = cluster.pt.table().readable_nodes();
                if nids.iter().all(|nid| cluster.ready().contains_key(nid)) {
                    self.step = Step::Connecting;
                }
                None
            }
            // Cells that are late complete themselves from others, so that UP_TO_DATE means it.
            // What is unfinished from upstream will be truncated.
            Step::Stopping => {
                let tid = cluster.backup_tid.unwrap_or(Tid::ZERO);
                (cluster.pt.shared_backup_tid() >= tid).then_some(Transition::LeaveBackup)
            }
            Step::Connecting | Step::Following => None,
        }
    }

    /// The upstream master accepted us.
    pub fn follow(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>, conn: ConnId) {
        self.step = Step::Following;
        self.conn = Some(conn);
        cluster.set_state(io, ClusterState::BackingUp);
        io.ask(conn, Packet::AskLastTransaction {}, Ticket::Upstream);
        let next = cluster.backup_tid.and_then(Tid::next).unwrap_or(Tid::ZERO);
        // Decisions about orders that are known may be news.
        let min_tid = cluster.pm.first_unsigned().map_or(next, |tid| tid.min(next));
        io.ask(conn, Packet::AskPackOrders { min_tid }, Ticket::UpstreamPackOrders(min_tid));
    }

    /// The connection to upstream is lost, or given up: clients are disconnected.
    pub fn unfollow(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>) {
        if let Some(conn) = self.conn.take() {
            cluster.backup_tid = Some(cluster.pt.backup_tid());
            io.close(conn);
            for (client, _) in cluster.clients().collect::<Vec<_>>() {
                io.close(client);
            }
        }
        self.table = None;
    }

    /// Upstream is lost: it is looked for again.
    pub fn restart(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>) {
        log::error!("upstream master is down");
        self.unfollow(cluster, io);
        cluster.pt.clear_replicating();
        *self = Self::start(cluster, io);
    }

    /// Stops following, as soon as cells have completed each other.
    pub fn stop(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>) {
        self.unfollow(cluster, io);
        self.step = Step::Stopping;
        cluster.set_state(io, ClusterState::StoppingBackup);
    }

    // What upstream tells.

    /// Its whole partition table.
    ///
    /// # Errors
    /// If it does not have as many partitions as ours.
    pub fn load(&mut self, cluster: &Cluster, table: Table) -> Handled {
        if table.partitions() != cluster.pt.partitions() {
            log::error!(
                "inconsistent number of partitions: {} upstream, {} here",
                table.partitions(),
                cluster.pt.partitions()
            );
            return Err(Fault::Close);
        }
        self.table = Some(table);
        Ok(())
    }
    /// Its partition table, to be updated.
    pub const fn table_mut(&mut self) -> Option<&mut Table> {
        self.table.as_mut()
    }
    /// A storage of upstream from which a partition can be read.
    pub fn source(
        &self,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        partition: Partition,
    ) -> Option<SocketAddr> {
        let addresses = self.sources(upstream, partition);
        io.prng().choose(&addresses).copied()
    }
    fn sources(&self, upstream: &Upstream, partition: Partition) -> Vec<SocketAddr> {
        let readable = self.table.iter().flat_map(|table| table.readable(partition));
        let nodes = readable.filter_map(|nid| upstream.nm.by_nid(nid));
        nodes.filter_map(Node::address).collect()
    }

    /// Its last transaction, at the beginning.
    ///
    /// # Errors
    /// If its partition table is not known.
    pub fn last_transaction(
        &mut self,
        cluster: &mut Cluster,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        tid: Tid,
    ) -> Handled {
        if self.table.is_none() {
            return Err(Fault::protocol("partition table expected first"));
        }
        check_tid(tid)?;
        if tid < cluster.last_tid {
            log::error!(
                "Upstream DB truncated. Leaving backup mode in case this backup DB needs to be \
                 truncated."
            );
            io.transition(Transition::StopBackup);
            return Ok(());
        }
        // Nobody knows which partitions were modified meanwhile: all must be replicated. As long as
        // storages have not checked, our backup tid stays below `tid`. The tid before is something
        // between our last one and this one, so this one is good enough. This is also done if
        // nothing changed, to resume replications that were interrupted.
        let all = (0..cluster.pt.partitions()).collect();
        self.invalidate(cluster, upstream, io, tid, tid, &all);
        self.ignore_invalidations = false;
        Ok(())
    }

    /// A transaction upstream.
    ///
    /// # Errors
    /// If it is not the next one.
    pub fn invalidate_partitions(
        &mut self,
        cluster: &mut Cluster,
        upstream: &Upstream,
        io: &mut Io<'_, Master>,
        tid: Tid,
        partitions: Vec<Partition>,
    ) -> Handled {
        if self.ignore_invalidations {
            return Ok(());
        }
        check_tid(tid)?;
        let last_tid = cluster.last_tid;
        if tid <= last_tid {
            return Err(Fault::protocol("tids must increase"));
        }
        let mut partitions: BTreeSet<Partition> = partitions.into_iter().collect();
        partitions.insert(tid.partition(cluster.pt.partitions()));
        self.invalidate(cluster, upstream, io, tid, last_tid, &partitions);
        Ok(())
    }

    // Pack orders.

    /// Upstream decided about pack orders.
    pub fn pack_signed(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
        conn: ConnId,
        approved: &[Tid],
        rejected: &[Tid],
    ) {
        if self.ignore_pack_notifications {
            return;
        }
        let signed = approved.iter().map(|tid| (*tid, true));
        let signed = signed.chain(rejected.iter().map(|tid| (*tid, false)));
        // First known and first unknown.
        let (mut known, mut unknown) = (None::<Tid>, None::<Tid>);
        for (tid, approval) in signed {
            let first = if cluster.pm.sign(tid, approval) { &mut known } else { &mut unknown };
            *first = Some(first.map_or(tid, |first| first.min(tid)));
        }
        match (known, unknown) {
            (known, Some(unknown)) => {
                let ticket = Ticket::UpstreamPackOrders(known.map_or(unknown, |k| k.min(unknown)));
                io.ask(conn, Packet::AskPackOrders { min_tid: unknown }, ticket);
            }
            (Some(known), None) => broadcast_signed(cluster, io, known),
            (None, None) => {}
        }
    }

    /// Orders of upstream are known from `min_tid`.
    pub fn pack_orders_known(&mut self, cluster: &Cluster, io: &mut Io<'_, Master>, min_tid: Tid) {
        broadcast_signed(cluster, io, min_tid);
        self.ignore_pack_notifications = false;
    }
}

fn broadcast_signed(cluster: &Cluster, io: &mut Io<'_, Master>, min_tid: Tid) {
    let (approved, rejected) = cluster.pm.signed(min_tid);
    if approved.is_empty() && rejected.is_empty() {
        return;
    }
    for ready in cluster.ready().values() {
        let (approved, rejected) = (approved.clone(), rejected.clone());
        io.send(ready.conn, Packet::NotifyPackSigned { approved, rejected });
    }
}

/// Tells an admin where the admin of the upstream cluster is, to report to it.
pub fn notify_upstream_admin(cluster: &Cluster, upstream: &Upstream, io: &mut Io<'_, Master>) {
    let Some(address) = upstream.admin() else { return };
    let admins = cluster.nm.admins().filter_map(|node| node.nid().zip(node.identified()));
    if let Some((_, conn)) = admins.min() {
        io.send(conn, Packet::NotifyUpstreamAdmin { address });
    }
}
