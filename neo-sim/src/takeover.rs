// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection whose other end is taken over.
//!
//! A small cluster starts as usual. At some time, one connection of one node (the victim) is taken
//! over: what its peer sends is dropped from then on, and other bytes arrive instead. So any bytes get
//! to each handler behind a handshake and an identification that were valid, in any phase, with
//! questions of the victim under way.
//!
//! ```text
//!  byte 0     when: up to 4 s, finer at the beginning
//!  byte 1     which connection of the victim
//!  byte 2     how the rest is cut
//!  rest       what arrives
//! ```
//!
//! This is what the fuzzer runs (`fuzz/fuzz_targets/connection_*.rs`), from conversations that were
//! recorded in the same way ([`record`]).

// What the wrapper of a process and its owner share, in one thread: this is a driver.
#![allow(clippy::disallowed_types)]

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::ConnId;
use neo_common::time::Now;

use crate::cluster::{
    AdminProcess, ClientProcess, Cluster, MasterProcess, Options, Role, StorageProcess,
};
use crate::disk::Pace;
use crate::network::HostId;
use crate::process::{Effect, Failed, Happening, Process};
use crate::workload;
use crate::world::START;

/// Time that the first byte stands for: nodes meet in the first milliseconds, then serve.
fn time_of(step: u8) -> Duration {
    Duration::from_micros(u64::from(step).pow(2) * 1000 / 16)
}

/// Time between two pieces.
const PIECE_PERIOD: Duration = Duration::from_millis(5);

/// Pieces at most.
const PIECES_MAX: usize = 8;

/// How long the cluster goes on afterwards.
const AFTER: Duration = Duration::from_secs(2);

/// Bytes that are recorded of a conversation.
const RECORD_BYTES_MAX: usize = 3000;

/// Connections of the victim, and what is done with them.
#[derive(Default)]
struct Wires {
    open: BTreeSet<ConnId>,
    taken: Option<ConnId>,
    /// What arrives at it is kept, and not dropped.
    is_recording: bool,
    recorded: Vec<u8>,
}

/// A process whose connections are known.
struct Wrapped {
    inner: Box<dyn Process>,
    wires: Rc<RefCell<Wires>>,
}

impl Process for Wrapped {
    fn start(&mut self, now: Now) {
        self.inner.start(now);
    }
    fn new_conn(&mut self) -> ConnId {
        self.inner.new_conn()
    }
    fn happen(&mut self, happening: Happening, now: Now) -> Result<(), Failed> {
        {
            let mut wires = self.wires.borrow_mut();
            match &happening {
                Happening::Accepted(conn, _) | Happening::Connected(conn) => {
                    wires.open.insert(*conn);
                }
                Happening::Closed(conn) => {
                    wires.open.remove(conn);
                }
                Happening::Bytes(conn, bytes) if wires.taken == Some(*conn) => {
                    if !wires.is_recording {
                        return Ok(());
                    }
                    wires.recorded.extend_from_slice(bytes);
                }
                _ => {}
            }
        }
        self.inner.happen(happening, now)
    }
    fn effect(&mut self, now: Duration) -> Option<Effect> {
        let effect = self.inner.effect(now);
        if let Some(Effect::Close(conn, _)) = &effect {
            self.wires.borrow_mut().open.remove(conn);
        }
        effect
    }
    fn deadline(&self) -> Option<Duration> {
        self.inner.deadline()
    }
    fn work_at(&self) -> Option<Duration> {
        self.inner.work_at()
    }
    fn label(&self) -> String {
        self.inner.label()
    }
    fn as_any(&mut self) -> &mut dyn Any {
        self.inner.as_any()
    }
}

/// A cluster with a victim, at the time of a takeover.
struct Scene {
    cluster: Cluster,
    victim: HostId,
    role: Role,
    wires: Rc<RefCell<Wires>>,
}

impl Scene {
    /// `None` if the victim has no connection at that time.
    fn new(role: Role, step: u8, which: u8) -> Option<Self> {
        let options = Options {
            masters: 1,
            storages: 2,
            spares: 0,
            partitions: 2,
            replicas: 1,
            clients: 1,
            autostart: Some(2),
            pace: Pace::FINE,
            database: Default::default(),
            cache_bytes: 1 << 16,
            workload: workload::Options::MIX,
        };
        let mut cluster = Cluster::new(7, options);
        cluster.start_all();
        cluster.start_workload();
        let victim = cluster.host(role, 0);
        let wires = Rc::new(RefCell::new(Wires::default()));
        let shared = wires.clone();
        cluster.world.wrap(victim, |inner| Box::new(Wrapped { inner, wires: shared }));
        cluster.run_until(START + time_of(step));
        let taken = {
            let wires = wires.borrow();
            let count = wires.open.len();
            wires.open.iter().nth(usize::from(which) % count.max(1)).copied()
        };
        wires.borrow_mut().taken = Some(taken?);
        Some(Self { cluster, victim, role, wires })
    }

    /// Lets time pass. Nobody looks at what nodes tell each other: it may be wrong now.
    fn pass(&mut self, time: Duration) {
        let until = self.cluster.world.now() + time;
        while self.cluster.world.step(until) {
            self.cluster.world.take_seen();
        }
    }

    /// Bytes arrive on the connection, if it is still open. Whether it was.
    fn arrive(&mut self, bytes: &[u8]) -> bool {
        let conn = {
            let wires = self.wires.borrow();
            wires.taken.filter(|conn| wires.open.contains(conn))
        };
        let Some(conn) = conn else { return false };
        let happening = Happening::Bytes(conn, Bytes::copy_from_slice(bytes));
        let (world, victim) = (&mut self.cluster.world, self.victim);
        let told = match self.role {
            Role::Master => {
                world.with::<MasterProcess, _>(victim, |p, now| p.happen(happening, now))
            }
            Role::Storage => {
                world.with::<StorageProcess, _>(victim, |p, now| p.happen(happening, now))
            }
            Role::Admin => world.with::<AdminProcess, _>(victim, |p, now| p.happen(happening, now)),
            Role::Client => {
                world.with::<ClientProcess, _>(victim, |p, now| p.happen(happening, now))
            }
            Role::Operator => None,
        };
        told.is_some()
    }
}

/// Takes over a connection of a node, as the bytes say. See the module documentation.
///
/// # Panics
/// If the victim panics.
pub fn run(role: Role, bytes: &[u8]) {
    let Some((&[step, which, cut], stream)) = bytes.split_first_chunk() else { return };
    let Some(mut scene) = Scene::new(role, step, which) else { return };
    let size = (usize::from(cut) * 8 + 1).max(stream.len() / PIECES_MAX + 1);
    for piece in stream.chunks(size) {
        if !scene.arrive(piece) {
            break;
        }
        scene.pass(PIECE_PERIOD);
    }
    scene.pass(AFTER);
}

/// Input of [`run`] with what really arrives on a connection; `None` if nothing does.
pub fn record(role: Role, step: u8, which: u8) -> Option<Vec<u8>> {
    let mut scene = Scene::new(role, step, which)?;
    scene.wires.borrow_mut().is_recording = true;
    let until = scene.cluster.world.now() + Duration::from_millis(500);
    scene.cluster.run_until(until);
    let mut wires = scene.wires.borrow_mut();
    wires.recorded.truncate(RECORD_BYTES_MAX);
    let recorded = std::mem::take(&mut wires.recorded);
    (!recorded.is_empty()).then(|| [&[step, which, 0xff][..], &recorded].concat())
}
