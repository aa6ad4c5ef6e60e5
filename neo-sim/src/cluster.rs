// SPDX-License-Identifier: GPL-2.0-or-later
//! A simulated cluster: masters, storages with their disks, admins, clients with their applications,
//! and an operator. It starts, kills and restarts processes, carries calls and replies between
//! applications and clients, and shows every packet to the checkers.

// The operator's tool leaves its result where the operator finds it: this is a driver.
#![allow(clippy::disallowed_types)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use neo_admin::Admin;
use neo_client::core::ClientCore;
use neo_common::config::Exit;
use neo_common::engine::{CallId, Engine, Input, JobId, Signal};
use neo_common::node::Node;
use neo_common::prng::Prng;
use neo_common::protocol::{ClusterState, Packet};
use neo_common::types::NodeId;
use neo_ctl::{Command, Ctl};
use neo_master::Master;
use neo_storage::Storage;
use neo_storage::database::memory::{Crash, Disk};

use crate::checkers::commits::Commits;
use crate::checkers::rest::{self, Contents};
use crate::checkers::table::Tables;
use crate::checkers::told::Told;
use crate::disk::{self, DiskLanes, Pace};
use crate::faults::Faults;
use crate::model::{Checked, Violation, ensure};
use crate::network::HostId;
use crate::port::{Dealt, Port, Tasks, Wish};
use crate::process::{CoreProcess, Executor, Failed, Simple};
use crate::workload::scene::Scene;
use crate::workload::{self, session::Session};
use crate::world::World;
use crate::world::tap::Seen;

/// Name of all simulated clusters.
pub const NAME: &str = "sim";

/// How often the invariants of storages are checked.
const INVARIANTS_EVERY: Duration = Duration::from_millis(50);

/// A master.
pub type MasterProcess = CoreProcess<Master, Simple<Master>>;
/// A storage.
pub type StorageProcess = CoreProcess<Storage, DiskLanes>;
/// An admin.
pub type AdminProcess = CoreProcess<Admin, Simple<Admin>>;
/// A client.
pub type ClientProcess = CoreProcess<ClientCore, Simple<ClientCore>>;
type CtlProcess = CoreProcess<Ctl, CtlExecutor>;

/// How a cluster is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Masters.
    pub masters: usize,
    /// Storages at start.
    pub storages: usize,
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

/// How a process ends that does not want to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// SIGKILL.
    Kill,
    /// The machine loses power; its peers notice so much later.
    Power(Duration),
    /// SIGTERM, or the application closes.
    Terminate,
}

/// An application and its client.
struct Application {
    /// Number of this life: each has its own.
    client: usize,
    port: Port,
    tasks: Tasks,
    told: Told,
    /// A task was added, and did not run yet.
    is_fresh: bool,
}

/// Takes what the operator's tool prints.
struct CtlExecutor(Rc<RefCell<Option<Exit>>>);

impl Executor<Ctl> for CtlExecutor {
    fn submit(&mut self, _: JobId, job: Exit, _: Duration) {
        *self.0.borrow_mut() = Some(job);
    }
    fn work_at(&self) -> Option<Duration> {
        None
    }
    fn work(&mut self, _: Duration) -> Result<Vec<(JobId, Infallible)>, Failed> {
        Ok(Vec::new())
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}

/// What the operator does.
#[derive(Default)]
struct Operator {
    commands: VecDeque<(Command, Insist)>,
    /// Where the tool leaves its result, while it runs.
    running: Option<Rc<RefCell<Option<Exit>>>>,
    retry_at: Duration,
    last: Option<Exit>,
    /// Looks whether the cluster is to be started, and when next.
    starts: bool,
    look_at: Duration,
}

/// What the operator does if a command is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insist {
    /// Tries again until it works.
    Yes,
    /// Leaves it.
    No,
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
    hosts_of: BTreeMap<NodeId, HostId>,
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
            restarts: BTreeSet::new(),
            is_working: false,
            has_served: false,
            populating: None,
            is_closing: false,
            disks_may_fail: options.pace.fail_one_in != 0,
            operator: Operator::default(),
            invariants_at: Duration::ZERO,
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
            (Role::Operator, 1),
        ] {
            for _ in 0..count {
                cluster.add_host(role);
            }
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
    /// Transactions that masters told to be committed.
    pub fn commits_count(&self) -> u64 {
        self.commits.count()
    }
    /// Changes of cells that masters told.
    pub fn cell_changes_count(&self) -> u64 {
        self.tables.changes_count
    }

    // Processes.

    /// Starts the process of a host.
    pub fn start(&mut self, host: HostId) {
        self.restarts.retain(|(_, other)| *other != host);
        if self.world.is_running(host) {
            return;
        }
        match self.role(host) {
            Role::Master => self.start_master(host),
            Role::Storage => self.start_storage(host),
            Role::Admin => self.start_admin(host),
            Role::Client => self.start_client(host),
            Role::Operator => {}
        }
    }

    fn masters(&self) -> Vec<std::net::SocketAddr> {
        self.hosts(Role::Master).into_iter().map(|host| self.world.address(host)).collect()
    }

    fn start_master(&mut self, host: HostId) {
        let options = neo_master::Options {
            cluster: NAME.into(),
            bind: self.world.address(host),
            masters: self.masters(),
            autostart: self.options.autostart,
            nid: None,
            partitions: self.options.partitions,
            replicas: self.options.replicas,
            upstream: None,
            backup: false,
        };
        let master = Master::new(options).expect("the options make sense");
        let engine = Engine::new(master, self.prng.next_u64());
        let process = CoreProcess { engine, executor: Simple::new(|_| Some(())) };
        self.world.start(host, Box::new(process));
    }

    fn start_storage(&mut self, host: HostId) {
        let disk = &self.disks[&host];
        // Whatever the last process did not commit is gone with it.
        disk.crash(Crash::Process);
        let config = neo_storage::Config {
            cluster: NAME.into(),
            masters: self.masters(),
            address: self.world.address(host),
            nid: None,
            devpath: vec![format!("host{}", host.0)],
            new_nid: false,
            disable_pack: false,
            disable_drop_partitions: false,
            save_masters: false,
        };
        let Options { database, pace, .. } = self.options;
        let opened = disk::open(disk, NAME, database, pace, self.prng.fork());
        let (stored, lanes) = opened.expect("a simulated disk can be opened");
        let storage = Storage::new(config, stored).expect("the stored table is valid");
        let engine = Engine::new(storage, self.prng.next_u64());
        self.world.start(host, Box::new(CoreProcess { engine, executor: lanes }));
    }

    fn start_admin(&mut self, host: HostId) {
        let config = neo_admin::Config {
            cluster: NAME.into(),
            masters: self.masters(),
            address: self.world.address(host),
            nid: None,
            backups: Vec::new(),
            max_lag: 0.0,
            mail: None,
            save_masters: false,
        };
        let engine = Engine::new(Admin::new(config), self.prng.next_u64());
        let process = CoreProcess { engine, executor: Simple::<Admin>::new(|_| None) };
        self.world.start(host, Box::new(process));
    }

    fn start_client(&mut self, host: HostId) {
        let mut options = neo_client::Options::new(NAME, self.masters());
        options.cache_bytes = self.options.cache_bytes;
        let engine = Engine::new(ClientCore::new(options), self.prng.next_u64());
        let process = CoreProcess { engine, executor: Simple::<ClientCore>::new(|_| None) };
        let client = self.next_client;
        self.next_client += 1;
        let mut application = Application {
            client,
            port: Port::default(),
            tasks: Tasks::default(),
            told: Told::new(client),
            is_fresh: true,
        };
        let dawdle_one_in = self.options.workload.dawdle_one_in;
        let Application { tasks, port, .. } = &mut application;
        tasks.spawn(workload::listen(port.clone(), self.prng.fork(), dawdle_one_in));
        self.applications.insert(host, application);
        self.world.start(host, Box::new(process));
        self.pump(host);
    }

    /// Ends the process of a host.
    pub fn end(&mut self, host: HostId, end: End) {
        if !self.world.is_running(host) {
            return;
        }
        match (self.role(host), end) {
            (Role::Client, End::Terminate) => self.close_client(host),
            (_, End::Terminate) => {
                self.world.signal(host, Signal::Terminate);
                return;
            }
            _ => {}
        }
        if let Some(process) = self.world.process::<StorageProcess>(host) {
            process.executor.die();
        }
        match end {
            End::Power(silence) => {
                self.world.power_off(host, silence);
                if let Some(disk) = self.disks.get(&host) {
                    disk.crash(Crash::Power);
                }
            }
            End::Kill | End::Terminate => self.world.crash(host),
        }
        self.application_gone(host);
    }

    /// Ends the process of a host, and starts it again later.
    pub fn restart(&mut self, host: HostId, end: End, delay: Duration) {
        self.end(host, end);
        if !self.world.is_running(host) {
            self.restarts.insert((self.world.now() + delay, host));
        }
    }

    /// Closes a client as an application does at its end.
    fn close_client(&mut self, host: HostId) {
        let Some(application) = self.applications.get_mut(&host) else { return };
        application.told.close();
        let port = application.port.clone();
        // Nobody waits for the reply, but the others get theirs.
        drop(port.call(neo_client::call::Call::Close));
        self.pump(host);
    }

    fn application_gone(&mut self, host: HostId) {
        let Some(application) = self.applications.remove(&host) else { return };
        let mut scene = self.scene.get();
        scene.model.client_gone(application.client);
        scene.told.push(application.told);
        // The tasks end here, wherever they are.
        drop(scene);
        drop(application.tasks);
    }

    /// Starts again all that is down.
    pub fn start_all(&mut self) {
        for host in (0..self.roles.len()).map(HostId) {
            if !self.world.is_running(host) {
                self.start(host);
                if self.is_working && self.role(host) == Role::Client {
                    self.start_application(host);
                }
            }
        }
    }

    /// Lets applications run above all clients, now and when they are started again.
    pub fn start_workload(&mut self) {
        self.is_working = true;
        for host in self.hosts(Role::Client) {
            self.start_application(host);
        }
    }

    /// Lets an application run above a client.
    fn start_application(&mut self, host: HostId) {
        let workload = self.options.workload.clone();
        // One of them makes the objects that all work on.
        let populating = self.populating.is_some_and(|client| {
            self.applications.values().any(|application| application.client == client)
        });
        if !populating && let Some(application) = self.applications.get(&host) {
            self.populating = Some(application.client);
            let workload = workload.clone();
            self.spawn(host, |session| workload::populate(session, workload));
        }
        for _ in 0..workload.threads {
            let workload = workload.clone();
            self.spawn(host, |session| workload::work(session, workload));
        }
    }

    /// Runs a task above the client of a host.
    pub fn spawn<T: Future<Output = ()> + 'static>(
        &mut self,
        host: HostId,
        task: impl FnOnce(Session) -> T,
    ) {
        let Some(application) = self.applications.get_mut(&host) else { return };
        let session = Session {
            port: application.port.clone(),
            scene: self.scene.clone(),
            client: application.client,
            prng: self.prng.fork(),
            compression: self.options.workload.compression(),
            resolve: workload::value::Value::resolve,
            dawdle_one_in: self.options.workload.dawdle_one_in,
        };
        application.tasks.spawn(task(session));
        application.is_fresh = true;
        self.pump(host);
    }

    /// Tells applications to come to an end.
    pub fn stop_workload(&mut self) {
        self.is_working = false;
        for application in self.applications.values() {
            application.port.stop();
        }
        for host in self.hosts(Role::Client) {
            self.pump(host);
        }
    }

    /// Whether applications run.
    pub fn is_working(&self) -> bool {
        self.is_working
    }
    /// Whether applications commit transactions.
    pub fn writes(&self) -> bool {
        self.options.workload.writes()
    }
    /// Whether the cluster ever served.
    pub fn has_served(&self) -> bool {
        self.has_served
    }
    /// Erases all databases, and starts everything again.
    pub fn erase(&mut self) {
        for host in (0..self.roles.len()).map(HostId) {
            self.end(host, End::Kill);
        }
        for disk in self.disks.values_mut() {
            *disk = Disk::new();
        }
        self.start_all();
    }
    /// Changes the speed of the disk of a storage, until its process ends.
    pub fn set_pace(&mut self, host: HostId, pace: Pace) {
        if let Some(process) = self.world.process::<StorageProcess>(host) {
            process.executor.pace = pace;
        }
    }

    /// Threads of applications that have not come to an end, but those that listen.
    pub fn busy_threads(&self) -> usize {
        self.applications.values().map(|a| a.tasks.len().saturating_sub(1)).sum()
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

    /// Checks from time to time that what storages know in several places agrees, above all that
    /// whoever waits for a lock waits for somebody.
    fn check_invariants(&mut self) {
        let now = self.world.now();
        if now < self.invariants_at {
            return;
        }
        self.invariants_at = now + INVARIANTS_EVERY;
        for host in self.hosts(Role::Storage) {
            if let Some(process) = self.world.process::<StorageProcess>(host) {
                process.engine.app.check_invariants();
            }
        }
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
        let operator = (!self.operator.commands.is_empty() && self.operator.running.is_none())
            .then_some(self.operator.retry_at);
        let look = (self.operator.starts && self.operator.commands.is_empty())
            .then_some(self.operator.look_at);
        alarms.chain(restart).chain(operator).chain(look).min()
    }

    /// Does what is due.
    fn due(&mut self) {
        let now = self.world.now();
        for host in self.world.take_ended() {
            self.ended(host);
        }
        while let Some((_, host)) = self.restarts.first().copied().filter(|(at, _)| *at <= now) {
            self.start(host);
            if self.is_working && self.role(host) == Role::Client {
                self.start_application(host);
            }
        }
        let hosts: Vec<HostId> = self.applications.keys().copied().collect();
        for host in hosts {
            self.pump(host);
        }
        self.operate();
    }

    /// A process ended by itself.
    fn ended(&mut self, host: HostId) {
        let role = self.role(host);
        let status = self.world.exit_status(host);
        self.application_gone(host);
        if role == Role::Operator || self.is_closing {
            return;
        }
        let expected = match (role, status) {
            (_, Some(neo_common::engine::EXIT_BY_SIGNAL)) => true,
            (Role::Storage, Some(1)) => self.disks_may_fail,
            _ => false,
        };
        if !expected {
            let text = format!("{} exits with status {status:?}", self.world.label(host));
            self.scene.get().violations.push(Violation(text));
        }
        let delay = Duration::from_micros(100_000 + self.prng.below(2_000_000) as u64);
        self.restarts.insert((self.world.now() + delay, host));
    }

    /// Carries calls and replies between an application and its client.
    fn pump(&mut self, host: HostId) {
        if self.world.paused_until(host).is_some() {
            return;
        }
        let now = self.world.now();
        let Self { world, applications, scene, .. } = self;
        let Some(application) = applications.get_mut(&host) else { return };
        let Application { port, tasks, told, is_fresh, .. } = application;
        let mut first = std::mem::take(is_fresh)
            || port.has_wish()
            || port.alarm_at().is_some_and(|at| at <= now);
        loop {
            let Some(process) = world.process::<ClientProcess>(host) else { return };
            let last_tid = process.engine.app.last_tid();
            let mut progressed = std::mem::take(&mut first);
            while let Some((id, reply)) = process.executor.replies.pop_front() {
                port.put_reply(id, reply, last_tid);
                progressed = true;
            }
            if !progressed {
                return;
            }
            let checked = told.last_tid(last_tid);
            scene.get().check(checked);
            port.set_now(now, last_tid);
            port.clear_alarms();
            tasks.poll();
            for dealt in port.take_dealt() {
                match dealt {
                    Dealt::Invalidation(tid, oids) => {
                        let mut scene = scene.get();
                        let checked = told.invalidate(&mut scene.model, tid, &oids);
                        scene.check(checked);
                    }
                    Dealt::Transaction(tid) => told.delivered(tid),
                    Dealt::Everything => told.forgotten(),
                }
            }
            while let Some(wish) = port.take_wish() {
                world.with::<ClientProcess, _>(host, |process, now| match wish {
                    Wish::Call(id, call) => process.engine.handle(Input::Call(id, call), now),
                    Wish::Peek(id, oid, before) => {
                        let app = &mut process.engine.app;
                        let record = app.cached(oid, before);
                        port.put_peeked(id, record, app.last_tid());
                        first = true;
                    }
                });
            }
            let process = world.process::<ClientProcess>(host);
            let last_tid = process.and_then(|process| process.engine.app.last_tid());
            let checked = told.last_tid(last_tid);
            scene.get().check(checked);
        }
    }

    /// Shows the packets that were sent to the checkers.
    fn observe(&mut self) {
        for Seen { from, to, link, packet, .. } in self.world.take_seen() {
            let role = self.role(from);
            let life = (role == Role::Master).then(|| self.world.life(from));
            if let (Some(_), Packet::AcceptIdentification { your_nid: Some(nid), .. }) =
                (life, &packet)
            {
                self.hosts_of.insert(*nid, to);
            }
            if matches!(packet, Packet::StartOperation { .. }) {
                self.has_served = true;
            }
            let hosts_of = &self.hosts_of;
            let checked = self.tables.sent(from, life, &packet, |nid| hosts_of.get(&nid).copied());
            let mut scene = self.scene.get();
            scene.check(checked);
            if let Some(life) = life {
                let checked = self.commits.sent(&mut scene.model, (from, life), link, &packet);
                scene.check(checked);
            }
            if self.is_shown {
                self.shown.push((from, to, packet));
            }
        }
    }

    // The operator.

    /// Tells the operator to do something, after what he was told before.
    pub fn command(&mut self, command: Command, insist: Insist) {
        self.operator.commands.push_back((command, insist));
    }
    /// Whether the operator has something to do.
    pub fn is_operating(&self) -> bool {
        !self.operator.commands.is_empty()
    }
    /// What the operator's tool printed last.
    pub fn last_command(&self) -> Option<&Exit> {
        self.operator.last.as_ref()
    }
    /// Forgets what the operator has to do.
    pub fn dismiss_operator(&mut self) {
        self.operator.commands.clear();
    }

    /// Tells the operator to start the cluster as soon as all storages are there, again if it was
    /// interrupted before it had a partition table.
    pub fn start_by_operator(&mut self) {
        self.operator.starts = true;
        self.operator.look_at = self.world.now();
    }

    /// The operator looks whether the cluster is to be started.
    fn look(&mut self) {
        let now = self.world.now();
        if !self.operator.starts || now < self.operator.look_at || self.is_operating() {
            return;
        }
        self.operator.look_at = now + Duration::from_secs(1);
        if self.is_startable() {
            self.command(Command::SetCluster(ClusterState::Verifying), Insist::No);
        }
    }

    fn operate(&mut self) {
        self.look();
        let host = self.host(Role::Operator, 0);
        if let Some(result) = &self.operator.running {
            if self.world.is_running(host) {
                return;
            }
            let exit = result.borrow_mut().take();
            self.operator.running = None;
            let succeeded = exit.as_ref().is_some_and(|exit| exit.status == 0);
            if let Some(exit) = &exit {
                self.world.tell_story(&format!("neoctl: {}{}", exit.stdout, exit.stderr));
            }
            self.operator.last = exit;
            match self.operator.commands.front() {
                Some((_, Insist::Yes)) if !succeeded => {
                    self.operator.retry_at = self.world.now() + Duration::from_secs(1);
                }
                _ => drop(self.operator.commands.pop_front()),
            }
        }
        if self.world.now() < self.operator.retry_at {
            return;
        }
        let Some((command, _)) = self.operator.commands.front() else { return };
        let command = command.clone();
        let admins = self.hosts(Role::Admin);
        let admin = self.world.address(*self.prng.choose(&admins).expect("there is an admin"));
        let result = Rc::new(RefCell::new(None));
        self.operator.running = Some(Rc::clone(&result));
        let engine = Engine::new(Ctl::new(admin, command), self.prng.next_u64());
        let process: CtlProcess = CoreProcess { engine, executor: CtlExecutor(result) };
        self.world.start(host, Box::new(process));
    }

    // Looking at nodes.

    /// The primary master that is in service, if any.
    pub fn serving_master(&mut self) -> Option<HostId> {
        self.hosts(Role::Master).into_iter().find(|host| {
            self.world
                .process::<MasterProcess>(*host)
                .is_some_and(|process| process.engine.app.cluster.state == ClusterState::Running)
        })
    }

    /// Storages that serve.
    pub fn serving_storages(&mut self) -> Vec<HostId> {
        let mut hosts = self.hosts(Role::Storage);
        hosts.retain(|host| {
            let process = self.world.process::<StorageProcess>(*host);
            process.is_some_and(|process| process.engine.app.is_operational())
        });
        hosts
    }

    /// Whether all storages wait for a new cluster to start.
    fn is_startable(&mut self) -> bool {
        let storages = self.hosts(Role::Storage).len();
        self.hosts(Role::Master).into_iter().any(|host| {
            self.world.process::<MasterProcess>(host).is_some_and(|process| {
                let cluster = &process.engine.app.cluster;
                cluster.state == ClusterState::Recovering
                    && !cluster.pt.is_filled()
                    && cluster.storages().count() == storages
            })
        })
    }

    /// Whether the cluster serves, with all storages that have cells.
    pub fn is_serving(&mut self) -> bool {
        let Some(master) = self.serving_master() else { return false };
        let Some(process) = self.world.process::<MasterProcess>(master) else { return false };
        let cluster = &process.engine.app.cluster;
        // A storage without cell may be pending for ever.
        cluster.pt.table().nodes().all(|nid| cluster.ready().contains_key(&nid))
    }

    /// Whether there is nothing more to do in any storage: nothing is stored or packed, all cells
    /// are replicated, and nobody has a transaction. (Clients that lost power are noticed late.)
    pub fn is_idle(&mut self) -> bool {
        let storages = self.hosts(Role::Storage).into_iter().all(|host| {
            let process = self.world.process::<StorageProcess>(host);
            process.is_some_and(|process| {
                let transactions = process.engine.app.transactions();
                process.executor.is_idle() && transactions.is_none_or(|t| t.is_empty())
            })
        });
        let master = self.serving_master();
        let master = master.and_then(|host| self.world.process::<MasterProcess>(host));
        storages
            && master.is_none_or(|master| {
                let cluster = &master.engine.app.cluster;
                let table = cluster.pt.table();
                cluster.tm.iter().next().is_none()
                    && table.nodes().all(|nid| table.outdated_of(nid).next().is_none())
            })
    }

    /// What all nodes are doing, for who looks for the cause of a problem.
    pub fn describe(&mut self) -> String {
        let mut lines = Vec::new();
        for host in (0..self.roles.len()).map(HostId) {
            let label = self.world.label(host);
            let what = if let Some(process) = self.world.process::<MasterProcess>(host) {
                let master = &process.engine.app;
                let nodes: Vec<String> = master.cluster.nm.iter().map(Node::to_string).collect();
                format!("{} {} {nodes:?}", master.cluster.state, master.phase.name())
            } else if let Some(process) = self.world.process::<StorageProcess>(host) {
                let app = &process.engine.app;
                let transactions =
                    app.transactions().map(neo_storage::transactions::Transactions::dump);
                format!("serves={} {transactions:?}", app.is_operational())
            } else if let Some(process) = self.world.process::<ClientProcess>(host) {
                let app = &process.engine.app;
                let what = if app.pending_count() == 0 { String::new() } else { waiting(app) };
                format!("pending={} {what}", app.pending_count())
            } else if self.world.is_running(host) {
                "runs".into()
            } else {
                "is down".into()
            };
            lines.push(format!("\n  {label}: {what}"));
        }
        lines.concat()
    }

    /// Checks the databases, and what processes still hold.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_rest(&mut self) -> Checked {
        let Some(master) = self.serving_master() else {
            return Err(Violation("the cluster does not serve".into()));
        };
        let process = self.world.process::<MasterProcess>(master).expect("it serves");
        let cluster = &process.engine.app.cluster;
        let table = cluster.pt.table().clone();
        let open: Vec<_> = cluster.tm.iter().map(|(ttid, _)| ttid).collect();
        ensure!(open.is_empty(), "the master has open transactions: {open:?}");
        let mut all = Vec::new();
        for host in self.hosts(Role::Storage) {
            let label = self.world.label(host);
            let Some(process) = self.world.process::<StorageProcess>(host) else { continue };
            let Some(nid) = process.engine.app.nid() else { continue };
            let Some(transactions) = process.engine.app.transactions() else {
                ensure!(!table.has_cells(nid), "{label} does not serve");
                continue;
            };
            transactions.check_invariants();
            let lines = transactions.dump();
            ensure!(transactions.is_empty(), "{label} still has {lines:#?}");
            let database = process.executor.database();
            let contents = Contents::read(database, nid, table.readable_of(nid));
            all.push(contents.map_err(|error| Violation(format!("{label}: {error}")))?);
        }
        for host in self.hosts(Role::Client) {
            let label = self.world.label(host);
            let Some(process) = self.world.process::<ClientProcess>(host) else { continue };
            let pending = process.engine.app.pending_count();
            ensure!(pending == 0, "{label} still has {pending} operations");
        }
        rest::check(&mut self.scene.get().model, table.partitions(), &all, true)
    }

    /// Checks again all that was seen, now that all is known.
    pub fn check_history(&mut self) {
        let mut scene = self.scene.get();
        let scene = &mut *scene;
        let mut checks: Vec<Checked> = Vec::new();
        for read in &scene.reads {
            checks.push(read.check(&mut scene.model, true));
        }
        checks.extend(scene.histories.iter().map(|history| history.check(&scene.model)));
        checks.extend(scene.walks.iter().map(|walk| walk.check(&scene.model)));
        checks.extend(scene.oid_walks.iter().map(|walk| walk.check(&scene.model)));
        let told = scene.told.iter().chain(self.applications.values().map(|a| &a.told));
        checks.extend(told.map(|told| told.check(&scene.model)));
        for checked in checks {
            if let Err(violation) = checked {
                scene.violations.push(violation);
            }
        }
    }
}

/// What a client waits for: loads, operations and transactions, without its cache and its nodes.
fn waiting(app: &ClientCore) -> String {
    let text = format!("{app:?}");
    let from = text.find("loads: Loads").unwrap_or(0);
    let mut text = text[from..].to_owned();
    text.truncate(text.char_indices().nth(3000).map_or(text.len(), |(end, _)| end));
    text
}
