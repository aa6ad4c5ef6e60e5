// SPDX-License-Identifier: GPL-2.0-or-later
//! The threads of the nodes.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread;

use neo_common::config::Exit;
use neo_common::engine::Engine;
use neo_common::logging::NodeName;
use neo_common::net::{self, Options, clock};
use neo_storage::database::lane::exit_on_failure;
use neo_storage::host::Jobs;
use neo_storage::prepare::Prepared;

use super::Event;
use super::plan::Plan;
use crate::migrate::Failure;

/// A node that ended.
pub struct Ended {
    name: String,
    result: io::Result<net::Exit>,
}

impl Ended {
    /// Whether it ended as nodes of a cluster that is stopped do.
    ///
    /// # Errors
    /// What happened otherwise.
    pub fn check(self) -> Result<(), Failure> {
        match self.result {
            Ok(net::Exit::Status(0)) => Ok(()),
            Ok(exit) => Err(format!("{} ended: {exit:?}", self.name).into()),
            Err(error) => Err(format!("{} failed: {error}", self.name).into()),
        }
    }
}

/// Nodes that run.
pub struct Nodes {
    /// Where the admin listens.
    pub admin: SocketAddr,
    /// Where storages listen, in the order of their databases.
    pub storages: Vec<SocketAddr>,
    /// How many nodes did not end.
    pub count: usize,
    events: Sender<Event>,
}

impl Nodes {
    /// Starts all nodes.
    ///
    /// # Errors
    /// If one of them can not start: the others end with the process.
    pub fn start(plan: &Plan, events: Sender<Event>) -> Result<Self, Failure> {
        let mut nodes = Self { admin: plan.admin, storages: Vec::new(), count: 0, events };
        for (number, bind) in (1..).zip(&plan.masters) {
            nodes.start_master(plan, number, *bind)?;
        }
        for (number, database) in (1..).zip(&plan.databases) {
            nodes.start_storage(plan, number, database)?;
        }
        nodes.start_admin(plan)?;
        Ok(nodes)
    }

    fn start_master(
        &mut self,
        plan: &Plan,
        number: usize,
        bind: SocketAddr,
    ) -> Result<(), Failure> {
        let prepared = neo_master::prepare::prepare(plan.master(bind)).map_err(text)?;
        let master =
            neo_master::Master::new(prepared.options).map_err(|error| error.to_string())?;
        let options = Options { listener: Some(prepared.listener), signals: false };
        self.spawn(format!("master {number}"), move || {
            let jobs = neo_master::host::Jobs::new(prepared.master_list);
            net::run(Engine::new(master, clock::seed()), options, |_| jobs)
        })
    }

    fn start_storage(
        &mut self,
        plan: &Plan,
        number: usize,
        database: &Path,
    ) -> Result<(), Failure> {
        let prepared = neo_storage::prepare::prepare(plan.storage(database))
            .map_err(|exit| format!("{}: {}", database.display(), text(exit)))?;
        let Prepared { config, stored, database, listener, master_list } = prepared;
        self.storages.push(listener.address());
        let storage = neo_storage::Storage::new(config, stored)?;
        let options = Options { listener: Some(listener), signals: false };
        self.spawn(format!("storage {number}"), move || {
            net::run(Engine::new(storage, clock::seed()), options, |waker| {
                Jobs::start(database, master_list, waker).unwrap_or_else(|error| {
                    exit_on_failure(&error);
                    unreachable!("the process ended");
                })
            })
        })
    }

    fn start_admin(&mut self, plan: &Plan) -> Result<(), Failure> {
        let prepared = neo_admin::options::prepare(plan.admin()).map_err(text)?;
        self.admin = prepared.listener.address();
        let options = Options { listener: Some(prepared.listener), signals: false };
        self.spawn("admin".into(), move || {
            let admin = neo_admin::Admin::new(prepared.config);
            net::run(Engine::new(admin, clock::seed()), options, |waker| {
                // Waking up may fail only if the loop is gone.
                let wake = move || drop(waker.wake());
                neo_admin::host::Jobs::start(prepared.master_list, wake)
                    .expect("a thread can be started")
            })
        })
    }

    fn spawn(
        &mut self,
        name: String,
        node: impl FnOnce() -> io::Result<net::Exit> + Send + 'static,
    ) -> Result<(), Failure> {
        let events = self.events.clone();
        let thread = thread::Builder::new().name(name.clone());
        thread.spawn(move || {
            NodeName::new(&name.replace(' ', "")).set();
            let result = node();
            // Nobody listens any more once the process ends.
            let _ = events.send(Event::Ended(Ended { name, result }));
        })?;
        self.count += 1;
        Ok(())
    }
}

/// What an executable would have printed.
fn text(exit: Exit) -> Failure {
    let message = exit.stderr.trim_end();
    let message = message.split_once(": error: ").map_or(message, |(_, message)| message);
    message.into()
}
