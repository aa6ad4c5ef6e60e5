// SPDX-License-Identifier: GPL-2.0-or-later
//! Applications of a cluster, above their clients: they carry calls and replies.

use neo_common::engine::Input;

use super::{ClientProcess, Cluster, Role};
use crate::checkers::told::Told;
use crate::network::HostId;
use crate::port::{Dealt, Port, Tasks, Wish};
use crate::workload::{self, session::Session};

/// An application and its client.
pub(super) struct Application {
    /// Number of this life: each has its own.
    client: usize,
    pub(super) port: Port,
    tasks: Tasks,
    pub(super) told: Told,
    /// A task was added, and did not run yet.
    is_fresh: bool,
}

impl Cluster {
    /// Makes what listens above a client that starts.
    pub(super) fn open_application(&mut self, host: HostId) {
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
    }

    /// Lets applications run above all clients, now and when they are started again.
    pub fn start_workload(&mut self) {
        self.is_working = true;
        for host in self.hosts(Role::Client) {
            self.start_application(host);
        }
    }

    /// Lets an application run above a client.
    pub(super) fn start_application(&mut self, host: HostId) {
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

    /// Closes a client as an application does at its end.
    pub(super) fn close_client(&mut self, host: HostId) {
        let Some(application) = self.applications.get_mut(&host) else { return };
        application.told.close();
        let port = application.port.clone();
        // Nobody waits for the reply, but the others get theirs.
        drop(port.call(neo_client::call::Call::Close));
        self.pump(host);
    }

    pub(super) fn application_gone(&mut self, host: HostId) {
        let Some(application) = self.applications.remove(&host) else { return };
        let mut scene = self.scene.get();
        scene.model.client_gone(application.client);
        scene.told.push(application.told);
        // The tasks end here, wherever they are.
        drop(scene);
        drop(application.tasks);
    }

    /// Whether applications run.
    pub fn is_working(&self) -> bool {
        self.is_working
    }

    /// Whether applications commit transactions.
    pub fn writes(&self) -> bool {
        self.options.workload.writes()
    }

    /// Threads of applications that have not come to an end, but those that listen.
    pub fn busy_threads(&self) -> usize {
        self.applications.values().map(|a| a.tasks.len().saturating_sub(1)).sum()
    }

    /// Carries calls and replies between an application and its client.
    pub(super) fn pump(&mut self, host: HostId) {
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
}
