// SPDX-License-Identifier: GPL-2.0-or-later
//! The operator of a cluster: commands of `neoctl`, one after the other.

// The operator's tool leaves its result where the operator finds it: this is a driver.
#![allow(clippy::disallowed_types)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use neo_common::config::Exit;
use neo_common::engine::{CallId, Engine, JobId};
use neo_common::protocol::ClusterState;
use neo_ctl::{Command, Ctl};

use super::{Cluster, Role};
use crate::process::{CoreProcess, Executor, Failed};

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

/// What the operator does.
#[derive(Default)]
pub(super) struct Operator {
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

impl Operator {
    /// When there is something to do, but what follows the end of a command.
    pub(super) fn next_at(&self) -> Option<Duration> {
        match (self.commands.is_empty(), &self.running) {
            (false, None) => Some(self.retry_at),
            (true, _) if self.starts => Some(self.look_at),
            _ => None,
        }
    }
}

impl Cluster {
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

    pub(super) fn operate(&mut self) {
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
}
