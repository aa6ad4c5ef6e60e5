// SPDX-License-Identifier: GPL-2.0-or-later
//! What stories are made with.

// The result of a step comes back to the story that made it.
#![allow(clippy::disallowed_types)]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use neo_common::types::{Oid, Tid};
use neo_sim::cluster::{Cluster, End, Options, Role};
use neo_sim::disk::Pace;
use neo_sim::network::HostId;
use neo_sim::workload;
use neo_sim::workload::scene::Kind;
use neo_sim::workload::session::{Found, Result, Session};
use neo_sim::workload::value::Value;

/// How long anything may take.
const STEP_MAX: Duration = Duration::from_secs(120);

/// A cluster, and a story that happens in it.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
}

/// The result of a step that goes on.
pub struct Step<T>(Rc<RefCell<Option<T>>>);

impl<T> Step<T> {
    /// Whether it came to an end.
    pub fn is_over(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// A cluster with one master.
pub fn options(storages: usize, clients: usize) -> Options {
    Options {
        masters: 1,
        storages,
        spares: 0,
        partitions: storages as u32,
        replicas: 0,
        clients,
        autostart: Some(storages as u32),
        pace: Pace::FINE,
        database: Default::default(),
        cache_bytes: 1 << 20,
        workload: workload::Options::MIX,
    }
}

impl Stage {
    /// A cluster that serves, whose clients are idle.
    pub fn new(storages: usize, clients: usize) -> Self {
        Self::with(options(storages, clients))
    }

    /// The same, for a cluster with these options.
    pub fn with(options: Options) -> Self {
        let mut stage = Self { cluster: Cluster::new(1, options) };
        stage.cluster.start_all();
        stage.serve();
        stage
    }

    /// Waits until the cluster serves.
    #[track_caller]
    pub fn serve(&mut self) {
        self.wait("the cluster to serve", Cluster::is_serving);
    }

    /// Lets time pass.
    #[track_caller]
    pub fn sleep(&mut self, ms: u64) {
        self.cluster.run_until(self.cluster.world.now() + Duration::from_millis(ms));
        self.check();
    }

    /// Lets time pass until a condition holds.
    #[track_caller]
    pub fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Cluster) -> bool) {
        let until = self.cluster.world.now() + STEP_MAX;
        let timed_out = self.cluster.run_while(until, |cluster| !condition(cluster));
        self.check();
        assert!(!timed_out, "waited for {what}: {}", self.cluster.describe());
    }

    /// Nothing wrong was seen.
    #[track_caller]
    pub fn check(&self) {
        let scene = self.cluster.scene.get();
        let violations: Vec<String> = scene.violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    // Nodes.

    pub fn master(&self) -> HostId {
        self.cluster.host(Role::Master, 0)
    }
    pub fn storage(&self, index: usize) -> HostId {
        self.cluster.host(Role::Storage, index)
    }
    pub fn client(&self, index: usize) -> HostId {
        self.cluster.host(Role::Client, index)
    }
    /// Kills a process. It is not started again.
    pub fn kill(&mut self, host: HostId) {
        self.cluster.end(host, End::Kill);
    }
    /// Starts a process.
    pub fn start(&mut self, host: HostId) {
        self.cluster.start(host);
    }

    // Applications.

    /// Begins to do something in a thread of the application above a client.
    pub fn begin<T: 'static, F>(
        &mut self,
        client: usize,
        act: impl FnOnce(Session) -> F + 'static,
    ) -> Step<T>
    where
        F: Future<Output = T> + 'static,
    {
        let result = Rc::new(RefCell::new(None));
        let step = Step(Rc::clone(&result));
        let host = self.client(client);
        self.cluster.spawn(host, |session| async move {
            let value = act(session).await;
            *result.borrow_mut() = Some(value);
        });
        step
    }

    /// Waits for the end of something.
    #[track_caller]
    pub fn end<T>(&mut self, step: &Step<T>) -> T {
        self.wait("the end of a step", |_| step.is_over());
        step.0.borrow_mut().take().expect("it is over")
    }

    /// Does something in a thread of the application above a client, and waits for it.
    #[track_caller]
    pub fn act<T: 'static, F>(
        &mut self,
        client: usize,
        act: impl FnOnce(Session) -> F + 'static,
    ) -> T
    where
        F: Future<Output = T> + 'static,
    {
        let step = self.begin(client, act);
        self.end(&step)
    }

    /// Creates an object; returns its oid and its first serial.
    #[track_caller]
    pub fn create(&mut self, client: usize, amount: i64) -> (Oid, Tid) {
        self.act(client, move |mut session| async move {
            let oid = session.new_oid().await.unwrap();
            let txn = session.begin().await.unwrap();
            let data = value(&session, amount);
            session.store(&txn, oid, Tid::ZERO, Some(data), None).await.unwrap();
            let tid = session.commit(&txn).await.unwrap();
            (oid, tid)
        })
    }

    /// Changes an object in a transaction of its own.
    #[track_caller]
    pub fn change(&mut self, client: usize, oid: Oid, serial: Tid, amount: i64) -> Result<Tid> {
        self.act(client, move |session| change(session, oid, serial, amount))
    }

    /// Loads the current revision: its serial and amount.
    #[track_caller]
    pub fn load(&mut self, client: usize, oid: Oid) -> Option<(Tid, i64)> {
        self.act(client, move |mut session| async move {
            session.sync().await.unwrap();
            match session.load(oid, None).await.unwrap() {
                Found::Revision(tid, data) => Some((tid, Value::decode(&data).unwrap().amount)),
                Found::Nothing(_) | Found::Missing => None,
            }
        })
    }

    /// The end of the story: nothing is left behind, and all that was seen fits.
    #[track_caller]
    pub fn finish(mut self) {
        let until = self.cluster.world.now() + STEP_MAX;
        let timed_out = self.cluster.run_until_idle(until);
        self.check();
        assert!(!timed_out, "storages are never idle: {}", self.cluster.describe());
        if let Err(violation) = self.cluster.check_rest() {
            panic!("{violation}");
        }
        self.cluster.check_history();
        self.check();
    }
}

/// Changes an object in a transaction of its own.
pub async fn change(mut session: Session, oid: Oid, serial: Tid, amount: i64) -> Result<Tid> {
    let txn = session.begin().await?;
    let data = value(&session, amount);
    if let Err(error) = session.store(&txn, oid, serial, Some(data), None).await {
        session.abort(&txn).await;
        return Err(error);
    }
    session.commit(&txn).await
}

/// Data with an amount; conflicts are errors.
pub fn value(session: &Session, amount: i64) -> Bytes {
    let nonce = session.scene.get().nonce();
    Value { kind: Kind::Account, amount, nonce }.encode(0)
}
