// SPDX-License-Identifier: GPL-2.0-or-later
//! A simulated cluster: masters, storages with their disks, admins, clients with their applications,
//! and an operator. It starts, kills and restarts processes, carries calls and replies between
//! applications and clients, and shows every packet to the checkers.
//!
//! - `processes`: how they start and end;
//! - `applications`: what runs above clients, its calls and replies;
//! - `operator`: commands of `neoctl`;
//! - `storages`: whether what storages know and say agrees with their databases;
//! - `watch`: what nodes are doing, and whether it is right.

mod applications;
mod operator;
mod processes;
mod storages;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use neo_admin::Admin;
use neo_client::core::ClientCore;
use neo_common::prng::Prng;
use neo_common::protocol::Packet;
use neo_common::types::{NodeId, Tid};
use neo_master::Master;
use neo_storage::Storage;
use neo_storage::database::memory::Disk;

use crate::checkers::commits::Commits;
use crate::checkers::table::Tables;
use crate::disk::{DiskLanes, Pace};
use crate::faults::Faults;
use crate::network::HostId;
use crate::process::{CoreProcess, Simple};
use crate::workload;
use crate::workload::scene::Scene;
use crate::world::World;
use crate::world::tap::Seen;
use applications::Application;
use operator::Operator;

pub use operator::{Insist, Order, Step, Until};
pub use processes::End;

/// Name of all simulated clusters.
pub const NAME: &str = "sim";

/// A master.
pub type MasterProcess = CoreProcess<Master, Simple<Master>>;
/// A storage.
pub type StorageProcess = CoreProcess<Storage, DiskLanes>;
/// An admin.
pub type AdminProcess = CoreProcess<Admin, Simple<Admin>>;
/// A client.
pub type ClientProcess = CoreProcess<ClientCore, Simple<ClientCore>>;

/// How a cluster is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Masters.
    pub masters: usize,
    /// Storages at start.
    pub storages: usize,
    /// Storages that are not started until the operator adds them.
    pub spares: usize,
    /// Partitions.
    pub partitions: u32,
    /// Replicas.
    pub replicas: u32,
    /// Clients.
    pub clients: usize,
    /// Storages needed to start by itself; `None`: the operator starts it.
    pub autostart: Option<u32>,
    /// How fast disks are.
    pub pace: Pace,
    /// How databases behave.
    pub database: neo_storage::database::memory::Options,
    /// Bytes of the caches of clients.
    pub cache_bytes: usize,
    /// What applications do.
    pub workload: workload::Options,
}

/// What runs on a host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A master.
    Master,
    /// A storage.
    Storage,
    /// An admin.
    Admin,
    /// A client.
    Client,
    /// The operator's tool.
    Operator,
}

/// See the module documentation.
pub struct Cluster {
    /// Hosts, network, time.
    pub world: World,
    /// What applications share.
    pub scene: Scene,
    /// How it was made.
    pub options: Options,
    roles: Vec<Role>,
    disks: BTreeMap<HostId, Disk>,
    applications: BTreeMap<HostId, Application>,
    next_client: usize,
    /// Whom each master called what last: two of them may give the same id before one is elected.
    hosts_of: BTreeMap<(HostId, NodeId), HostId>,
    /// How masters called nodes last.
    nids: BTreeMap<HostId, NodeId>,
    /// Storages that the operator dropped since they exist no more.
    dropped: BTreeSet<NodeId>,
    /// Storages that were never started.
    spares: BTreeSet<HostId>,
    /// What ends there is not started again by itself.
    kept_down: BTreeSet<HostId>,
    /// Their processes may be told to exit.
    may_exit: BTreeSet<HostId>,
    /// The same by the names of nodes: masters may have given one to another host meanwhile.
    killed: BTreeSet<NodeId>,
    /// Disks that are not as they usually are.
    paces: BTreeMap<HostId, Pace>,
    restarts: BTreeSet<(Duration, HostId)>,
    is_working: bool,
    has_served: bool,
    /// The client whose application makes the objects that all work on.
    populating: Option<usize>,
    /// Processes that end are not restarted, and may end.
    pub is_closing: bool,
    /// Disks may fail.
    pub disks_may_fail: bool,
    operator: Operator,
    /// When invariants are checked next.
    invariants_at: Duration,
    /// When what storages believe is compared with their databases next.
    beliefs_at: Duration,
    commits: Commits,
    tables: Tables,
    prng: Prng,
    /// Whether packets are shown to who makes faults, and which were.
    is_shown: bool,
    shown: Vec<(HostId, HostId, Packet)>,
}

impl Cluster {
    /// A cluster whose processes are not started.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut prng = Prng::new(seed ^ 0x5eed);
        let mut cluster = Self {
            world: World::new(prng.next_u64()),
            scene: Scene::default(),
            roles: Vec::new(),
            disks: BTreeMap::new(),
            applications: BTreeMap::new(),
            next_client: 0,
            hosts_of: BTreeMap::new(),
            nids: BTreeMap::new(),
            dropped: BTreeSet::new(),
            spares: BTreeSet::new(),
            kept_down: BTreeSet::new(),
            may_exit: BTreeSet::new(),
            killed: BTreeSet::new(),
            paces: BTreeMap::new(),
            restarts: BTreeSet::new(),
            is_working: false,
            has_served: false,
            populating: None,
            is_closing: false,
            disks_may_fail: options.pace.fail_one_in != 0,
            operator: Operator::default(),
            invariants_at: Duration::ZERO,
            beliefs_at: Duration::ZERO,
            commits: Commits::default(),
            tables: Tables::default(),
            options,
            prng,
            is_shown: false,
            shown: Vec::new(),
        };
        cluster.scene.get().has_one_master = cluster.options.masters == 1;
        for (role, count) in [
            (Role::Master, cluster.options.masters),
            (Role::Storage, cluster.options.storages),
            (Role::Admin, 1),
            (Role::Client, cluster.options.clients),
        ] {
            for _ in 0..count {
                cluster.add_host(role);
            }
        }
        cluster.operator.host = cluster.add_host(Role::Operator);
        for _ in 0..cluster.options.spares {
            let host = cluster.add_host(Role::Storage);
            cluster.spares.insert(host);
        }
        cluster
    }

    /// Adds a host for a node.
    pub fn add_host(&mut self, role: Role) -> HostId {
        let host = self.world.add_host();
        self.roles.push(role);
        if role == Role::Storage {
            self.disks.insert(host, Disk::new());
        }
        host
    }

    /// What runs on a host.
    pub fn role(&self, host: HostId) -> Role {
        self.roles[host.0]
    }

    /// Hosts with a role.
    pub fn hosts(&self, role: Role) -> Vec<HostId> {
        let hosts = (0..self.roles.len()).map(HostId);
        hosts.filter(|host| self.roles[host.0] == role).collect()
    }

    /// Host of the nth node with a role.
    pub fn host(&self, role: Role, index: usize) -> HostId {
        self.hosts(role)[index]
    }

    /// Storages that were never started.
    pub fn spares(&self) -> Vec<HostId> {
        self.spares.iter().copied().collect()
    }
    /// Transactions that masters told to be committed.
    pub fn commits_count(&self) -> u64 {
        self.commits.count()
    }

    /// Changes of cells that masters told.
    pub fn cell_changes_count(&self) -> u64 {
        self.tables.changes_count
    }

    /// Whether the cluster ever served.
    pub fn has_served(&self) -> bool {
        self.has_served
    }

    /// The database was cut back.
    pub fn cut_back(&mut self, last: Tid) {
        self.commits.truncate(last);
        self.scene.get().truncate(last);
    }

    // Time.

    /// Lets time pass until then, unless something is wrong.
    pub fn run_until(&mut self, until: Duration) {
        self.run_while(until, |_| true);
    }

    /// Lets time pass as long as a condition holds, at most until then. Returns whether the
    /// condition still holds.
    pub fn run_while(
        &mut self,
        until: Duration,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        while self.is_right() && condition(self) {
            if self.world.now() >= until {
                return true;
            }
            let next = self.next_at().map_or(until, |at| at.min(until));
            self.world.step(next);
            self.observe();
            self.due();
            self.check_invariants();
        }
        false
    }

    /// Lets time pass until then; faults see every packet.
    pub fn run_with(&mut self, until: Duration, faults: &mut Faults) {
        self.run_while(until, |cluster| {
            for (from, to, packet) in std::mem::take(&mut cluster.shown) {
                faults.sent(cluster, from, to, &packet);
            }
            cluster.is_shown = faults.waits_for_packet();
            true
        });
    }

    /// Whether nothing wrong was seen.
    pub fn is_right(&self) -> bool {
        self.scene.get().violations.is_empty()
    }

    /// When something has to be done that the world does not know of.
    fn next_at(&self) -> Option<Duration> {
        let restart = self.restarts.first().map(|(at, _)| *at);
        let alarms = self.applications.iter().filter_map(|(host, application)| {
            let at = application.port.alarm_at()?;
            Some(self.world.paused_until(*host).map_or(at, |until| at.max(until)))
        });
        alarms.chain(restart).chain(self.operator.next_at()).min()
    }

    /// Does what is due.
    fn due(&mut self) {
        let now = self.world.now();
        for host in self.world.take_ended() {
            self.ended(host);
        }
        while let Some((_, host)) = self.restarts.first().copied().filter(|(at, _)| *at <= now) {
            if self.kept_down.contains(&host) {
                self.restarts.pop_first();
            } else {
                self.start(host);
            }
        }
        // Most events are of no application.
        let mut next = self.applications.keys().next().copied();
        while let Some(host) = next {
            self.pump(host);
            let later = (Bound::Excluded(host), Bound::Unbounded);
            next = self.applications.range(later).next().map(|(host, _)| *host);
        }
        self.operate();
    }

    /// Shows the packets that were sent to the checkers.
    fn observe(&mut self) {
        for Seen { from, to, link, packet, .. } in self.world.take_seen() {
            let role = self.role(from);
            let life = (role == Role::Master).then(|| self.world.life(from));
            if let (Some(_), Packet::AcceptIdentification { your_nid: Some(nid), .. }) =
                (life, &packet)
            {
                self.hosts_of.insert((from, *nid), to);
                self.nids.insert(to, *nid);
            }
            if matches!(packet, Packet::StartOperation { .. }) {
                self.has_served = true;
            }
            let host_of = |nid| self.hosts_of.get(&(from, nid)).copied();
            let checked = self.tables.sent(from, life, &packet, host_of);
            // With the oids of a former primary master that does not know it yet, nothing can be committed
            // but a conflict.
            let is_late = matches!(packet, Packet::AnswerNewOIDs { .. }) && self.is_replaced(from);
            let mut scene = self.scene.get();
            scene.check(checked);
            if let Some(life) = life.filter(|_| !is_late) {
                let checked = self.commits.sent(&mut scene.model, (from, life), link, &packet);
                scene.check(checked);
            }
            drop(scene);
            if let Packet::NotifyReplicationDone { partition, tid } = packet {
                let checked = self.check_replicated(from, partition, tid);
                self.scene.get().check(checked);
            }
            if self.is_shown {
                self.shown.push((from, to, packet));
            }
        }
    }
}
