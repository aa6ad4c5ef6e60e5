// SPDX-License-Identifier: GPL-2.0-or-later
//! The operator of a cluster: commands of `neoctl`, one after the other, and what is done with hands
//! between them.

// The operator's tool leaves its result where the operator finds it: this is a driver.
#![allow(clippy::disallowed_types)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use neo_common::config::Exit;
use neo_common::engine::{CallId, Engine, JobId};
use neo_common::node::Node;
use neo_common::protocol::ClusterState;
use neo_common::types::NodeId;
use neo_ctl::commands::Storages;
use neo_ctl::{Command, Ctl};

use super::{Cluster, MasterProcess, Role};
use crate::network::HostId;
use crate::process::{CoreProcess, Executor, Failed};

/// How long the operator waits for the end of a command.
const COMMAND_MAX: Duration = Duration::from_secs(30);

/// How often something is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type CtlProcess = CoreProcess<Ctl, CtlExecutor>;

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

/// A command, of which some need to know what nodes are called then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// As it is.
    Plain(Command),
    /// Adds a storage.
    Add(HostId),
    /// Stops a node.
    Kill(HostId),
    /// Forgets a storage.
    Drop(HostId),
    /// Moves cells, away from these and from those that do not run.
    Tweak {
        /// Only shows what it would do.
        dry_run: bool,
        /// Storages to empty.
        hosts: Vec<HostId>,
    },
}

/// What the operator waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Until {
    /// A storage waits to be added.
    Pending(HostId),
    /// No cell is out-of-date.
    Copied,
    /// Nothing runs there.
    Down(Vec<HostId>),
    /// The end of the time.
    Never,
}

/// What the operator does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Gives a command.
    Order(Order, Insist),
    /// What ends on these hosts is not started again by itself.
    KeepDown(Vec<HostId>),
    /// Starts what does not run on a host, and lets it be started again from now on.
    Start(HostId),
    /// Waits, for so long at most.
    Wait(Until, Duration),
}

/// What the operator has to do.
pub(super) struct Operator {
    /// Where the tool runs.
    pub(super) host: HostId,
    steps: VecDeque<Step>,
    /// Where the tool leaves its result, while it runs, and when it was started.
    running: Option<(Rc<RefCell<Option<Exit>>>, Duration)>,
    /// When the operator goes on.
    go_on_at: Duration,
    /// When what is waited for is not waited for any more.
    patient_until: Option<Duration>,
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

impl Default for Operator {
    fn default() -> Self {
        Self {
            host: HostId(0),
            steps: VecDeque::new(),
            running: None,
            go_on_at: Duration::ZERO,
            patient_until: None,
            last: None,
            starts: false,
            look_at: Duration::ZERO,
        }
    }
}

impl Operator {
    /// When there is something to do, but what follows the end of a command.
    pub(super) fn next_at(&self) -> Option<Duration> {
        match (self.steps.is_empty(), &self.running) {
            (_, Some((_, since))) => Some(*since + COMMAND_MAX),
            (false, None) => Some(self.go_on_at),
            (true, None) => self.starts.then_some(self.look_at),
        }
    }
}

impl Cluster {
    /// Tells the operator to give a command, after what he was told before.
    pub fn command(&mut self, command: Command, insist: Insist) {
        self.instruct([Step::Order(Order::Plain(command), insist)]);
    }
    /// Tells the operator to do something, after what he was told before.
    pub fn instruct(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.operator.steps.extend(steps);
    }
    /// Whether the operator has something to do.
    pub fn is_operating(&self) -> bool {
        !self.operator.steps.is_empty()
    }
    /// What the operator's tool printed last.
    pub fn last_command(&self) -> Option<&Exit> {
        self.operator.last.as_ref()
    }
    /// Forgets what the operator has to do, what is being done included.
    pub fn dismiss_operator(&mut self) {
        if self.operator.running.take().is_some() {
            self.world.crash(self.operator.host);
        }
        self.operator.steps.clear();
        self.operator.patient_until = None;
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
        let is_busy = self.is_operating() || self.operator.running.is_some();
        if !self.operator.starts || now < self.operator.look_at || is_busy {
            return;
        }
        self.operator.look_at = now + Duration::from_secs(1);
        // Later, it would be an order to go on without what is not there.
        if !self.has_served && self.is_startable() {
            self.command(Command::SetCluster(ClusterState::Verifying), Insist::No);
        }
    }

    /// Lets the operator drop storages again: a former primary master that did not know yet that it was
    /// replaced may have accepted the order.
    pub fn forget_orders(&mut self) {
        self.dropped.clear();
    }

    /// Lets the operator drop storages that were lost before they had stored which ids they have: they
    /// have others since, or wait to be added although they have cells. It is refused if one has the
    /// only copy of anything.
    pub fn drop_lost(&mut self) {
        if self.is_operating() {
            return;
        }
        let Some(cluster) = self.serving_cluster() else { return };
        let is_pending = |nid| cluster.nm.by_nid(nid).is_some_and(Node::is_pending);
        let nodes: Vec<(NodeId, bool)> =
            cluster.pt.table().nodes().map(|nid| (nid, is_pending(nid))).collect();
        for (nid, is_pending) in nodes {
            let host = self.nids.iter().find(|(_, other)| **other == nid).map(|(host, _)| *host);
            if (host.is_some() && !is_pending) || !self.dropped.insert(nid) {
                continue;
            }
            self.scene.get().count("storages dropped that had lost their ids");
            match host {
                None => self.command(Command::Drop(nid), Insist::Yes),
                Some(host) => self.instruct([
                    Step::KeepDown(vec![host]),
                    Step::Order(Order::Kill(host), Insist::No),
                    Step::Wait(Until::Down(vec![host]), COMMAND_MAX),
                    Step::Order(Order::Drop(host), Insist::No),
                    Step::Start(host),
                ]),
            }
        }
    }

    /// Lets the operator go on.
    pub(super) fn operate(&mut self) {
        self.look();
        if !self.command_ended() {
            return;
        }
        let now = self.world.now();
        while now >= self.operator.go_on_at
            && let Some(step) = self.operator.steps.front().cloned()
        {
            match step {
                Step::Order(order, _) => match self.resolve(&order) {
                    Some(command) => return self.run_tool(command),
                    // Nobody knows such a node.
                    None => drop(self.operator.steps.pop_front()),
                },
                Step::KeepDown(hosts) => {
                    self.kept_down.extend(hosts);
                    self.operator.steps.pop_front();
                }
                Step::Start(host) => {
                    self.operator.steps.pop_front();
                    self.kept_down.remove(&host);
                    self.spares.remove(&host);
                    self.start(host);
                }
                Step::Wait(until, time) => {
                    let end = *self.operator.patient_until.get_or_insert(now + time);
                    if now < end && !self.is_reached(&until) {
                        self.operator.go_on_at = end.min(now + LOOK_EVERY);
                        return;
                    }
                    self.operator.patient_until = None;
                    self.operator.steps.pop_front();
                }
            }
        }
    }

    /// Whether no command is under way; takes the result of the one that ended.
    fn command_ended(&mut self) -> bool {
        let host = self.operator.host;
        let Some((result, since)) = &self.operator.running else { return true };
        if self.world.is_running(host) {
            if self.world.now() < *since + COMMAND_MAX {
                return false;
            }
            // The operator loses patience.
            self.world.crash(host);
        }
        let exit = result.borrow_mut().take();
        self.operator.running = None;
        let succeeded = exit.as_ref().is_some_and(|exit| exit.status == 0);
        if let Some(exit) = &exit {
            self.world.tell_story(&format!("neoctl: {}{}", exit.stdout, exit.stderr));
        }
        self.operator.last = exit;
        if let Some(Step::Order(order, insist)) = self.operator.steps.front() {
            let name = order.name();
            let outcome = if succeeded { "accepted" } else { "refused" };
            self.scene.get().count(&format!("neoctl {name} ({outcome})"));
            if *insist == Insist::Yes && !succeeded {
                self.operator.go_on_at = self.world.now() + Duration::from_secs(1);
            } else {
                self.operator.steps.pop_front();
            }
        }
        true
    }

    fn run_tool(&mut self, command: Command) {
        self.world.tell_story(&format!("the operator: {command:?}"));
        let admins = self.hosts(Role::Admin);
        let admin = self.world.address(*self.prng.choose(&admins).expect("there is an admin"));
        let result = Rc::new(RefCell::new(None));
        self.operator.running = Some((Rc::clone(&result), self.world.now()));
        let engine = Engine::new(Ctl::new(admin, command), self.prng.next_u64());
        let process: CtlProcess = CoreProcess { engine, executor: CtlExecutor(result) };
        let host = self.operator.host;
        self.world.start(host, Box::new(process));
    }

    /// The command, now that nodes have names; `None` if they have not.
    fn resolve(&mut self, order: &Order) -> Option<Command> {
        Some(match order {
            Order::Plain(command) => {
                if *command == Command::SetCluster(ClusterState::Stopping) {
                    let hosts = (0..self.roles.len()).map(HostId);
                    self.may_exit.extend(hosts);
                }
                command.clone()
            }
            Order::Add(host) => Command::Add(Storages::These(vec![self.nid(*host)?])),
            Order::Kill(host) => {
                let nid = self.nid(*host)?;
                self.may_exit.insert(*host);
                self.killed.insert(nid);
                Command::Kill(nid)
            }
            Order::Drop(host) => {
                // It is told when it comes back.
                let nid = self.nid(*host)?;
                self.may_exit.insert(*host);
                self.killed.insert(nid);
                Command::Drop(nid)
            }
            Order::Tweak { dry_run, hosts } => {
                let storages = self.hosts(Role::Storage).into_iter();
                let listed = storages
                    .filter(|host| hosts.contains(host) || !self.world.is_running(*host))
                    .collect::<Vec<_>>();
                let nids = listed.into_iter().filter_map(|host| self.nid(host)).collect();
                Command::Tweak { dry_run: *dry_run, nids }
            }
        })
    }

    /// The node of a host, as masters called it last.
    pub fn nid(&self, host: HostId) -> Option<NodeId> {
        self.nids.get(&host).copied()
    }

    fn is_reached(&mut self, until: &Until) -> bool {
        match until {
            Until::Never => false,
            Until::Down(hosts) => hosts.iter().all(|host| !self.world.is_running(*host)),
            Until::Pending(host) => {
                let nid = self.nid(*host);
                self.serving_cluster().is_some_and(|cluster| {
                    let node = nid.and_then(|nid| cluster.nm.by_nid(nid));
                    node.is_some_and(Node::is_pending)
                })
            }
            Until::Copied => self.serving_cluster().is_some_and(|cluster| {
                let table = cluster.pt.table();
                table.nodes().all(|nid| table.outdated_of(nid).next().is_none())
            }),
        }
    }

    fn serving_cluster(&mut self) -> Option<&neo_master::cluster::Cluster> {
        let master = self.serving_master()?;
        Some(&self.world.process::<MasterProcess>(master)?.engine.app.cluster)
    }
}

impl Order {
    /// First words of the command, for figures.
    const fn name(&self) -> &'static str {
        match self {
            Self::Add(_) | Self::Plain(Command::Add(_)) => "add",
            Self::Kill(_) | Self::Plain(Command::Kill(_)) => "kill",
            Self::Drop(_) | Self::Plain(Command::Drop(_)) => "drop",
            Self::Tweak { .. } | Self::Plain(Command::Tweak { .. }) => "tweak",
            Self::Plain(command) => match command {
                Command::SetCluster(_) => "set cluster",
                Command::SetReplicas(_) => "set replicas",
                Command::Check { .. } => "check",
                Command::Truncate(_) => "truncate",
                Command::PruneOrphan { .. } => "prune_orphan",
                Command::FlushLog => "flush_log",
                _ => "print",
            },
        }
    }
}
