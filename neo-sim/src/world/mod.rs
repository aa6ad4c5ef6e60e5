// SPDX-License-Identifier: GPL-2.0-or-later
//! The queue of events, the virtual clock, and hosts.
//!
//! An event is taken, told to one process, and what the process does becomes new events. Two events
//! at the same time keep their order of creation. Everything that happens is folded into a
//! fingerprint: two runs of the same seed must have the same one.
//!
//! - `links`: connections between hosts;
//! - [`tap`]: the packets on their way: who looks at them, and who holds them.

mod links;
pub mod tap;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use neo_common::engine::{ConnId, Signal};
use neo_common::prng::Prng;
use neo_common::time::Now;

use crate::network::{Cuts, HostId, Weather};
use crate::process::{Effect, Happening, Process};
use links::{Link, LinkId};
use tap::{Hold, HoldId, Seen};

/// Microseconds since 1970 when the world begins: 2026-01-01.
const EPOCH_US: u64 = 1_767_225_600_000_000;

/// Virtual time when the world begins. Not zero: a deadline of zero would hide mistakes.
pub const START: Duration = Duration::from_secs(1000);

/// Events at one instant above which nothing makes progress any more.
const EVENTS_PER_INSTANT_MAX: u32 = 100_000;

enum Event {
    /// A connection attempt arrives at an address.
    Attempt(LinkId, SocketAddr),
    /// Something arrives at an end of a connection.
    Arrive(LinkId, usize, Happening),
    /// What waits at an end may be told now.
    Resume(LinkId, usize),
    /// The deadline of a process may be reached.
    Timeout(HostId, u64),
    /// The threads of a process had time to work.
    Work(HostId, u64),
}

/// A machine with at most one process.
struct Host {
    address: SocketAddr,
    process: Option<Box<dyn Process>>,
    /// Counts processes: one that restarts does not hear of what was for its predecessor.
    life: u64,
    /// Difference between its real clock and the true time.
    clock_us: i64,
    /// How much faster its real clock runs, in millionths.
    drift_ppm: i64,
    /// The process does nothing until then (SIGSTOP).
    stopped_until: Duration,
    conns: BTreeMap<ConnId, (LinkId, usize)>,
    timeout_at: Option<Duration>,
    work_at: Option<Duration>,
    exit: Option<i32>,
    /// Last name of its process.
    label: String,
}

/// The world.
pub struct World {
    now: Duration,
    /// Drawn from for everything that the world decides.
    pub prng: Prng,
    /// How bad the network is.
    pub weather: Weather,
    /// Who does not hear whom.
    pub cuts: Cuts,
    /// Hosts that refuse connections.
    pub refusing: BTreeSet<HostId>,
    /// Hosts where connection attempts hang.
    pub hanging: BTreeSet<HostId>,
    /// Connection attempts that were refused by a host where something listens.
    pub connects_refused: u64,
    /// Connection attempts that hung.
    pub connects_hung: u64,
    /// Prints the story.
    pub trace: bool,
    /// Hosts that may send anything: nobody looks at their packets.
    pub strangers: BTreeSet<HostId>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    hosts: Vec<Host>,
    links: BTreeMap<LinkId, Link>,
    next_link: u64,
    holds: BTreeMap<HoldId, Hold>,
    next_hold: u64,
    seen: Vec<Seen>,
    /// Hosts whose process ended by itself.
    ended: Vec<HostId>,
    fingerprint: u64,
    events: u64,
    packets: u64,
    events_now: u32,
}

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        Self {
            now: START,
            prng: Prng::new(seed),
            weather: Weather::FINE,
            cuts: Cuts::default(),
            refusing: BTreeSet::new(),
            hanging: BTreeSet::new(),
            connects_refused: 0,
            connects_hung: 0,
            trace: false,
            strangers: BTreeSet::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            hosts: Vec::new(),
            links: BTreeMap::new(),
            next_link: 0,
            holds: BTreeMap::new(),
            next_hold: 0,
            seen: Vec::new(),
            ended: Vec::new(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            events: 0,
            packets: 0,
            events_now: 0,
        }
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.now
    }
    /// Depends on all that happened: equal for two runs of the same seed.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
    /// Events so far.
    pub fn events_count(&self) -> u64 {
        self.events
    }
    /// Packets so far.
    pub fn packets_count(&self) -> u64 {
        self.packets
    }

    // Hosts.

    /// Adds a machine, without process. Its address is its number.
    pub fn add_host(&mut self) -> HostId {
        let id = HostId(self.hosts.len());
        let n = u8::try_from(id.0 + 1).expect("a small cluster");
        self.hosts.push(Host {
            address: SocketAddr::from(([10, 0, 0, n], 10_000)),
            process: None,
            life: 0,
            clock_us: 0,
            drift_ppm: 0,
            stopped_until: Duration::ZERO,
            conns: BTreeMap::new(),
            timeout_at: None,
            work_at: None,
            exit: None,
            label: "host".into(),
        });
        id
    }
    /// Number of machines.
    pub fn hosts_len(&self) -> usize {
        self.hosts.len()
    }
    /// Where the process of a host listens.
    pub fn address(&self, host: HostId) -> SocketAddr {
        self.hosts[host.0].address
    }
    /// Whether a process runs there.
    pub fn is_running(&self, host: HostId) -> bool {
        self.hosts[host.0].process.is_some()
    }
    /// Status with which the last process ended by itself.
    pub fn exit_status(&self, host: HostId) -> Option<i32> {
        self.hosts[host.0].exit
    }
    /// Number of processes that were started there.
    pub fn life(&self, host: HostId) -> u64 {
        self.hosts[host.0].life
    }
    /// Name of its process, or of the last one, and number of the host: names may change.
    pub fn label(&self, host: HostId) -> String {
        let h = &self.hosts[host.0];
        let label = h.process.as_ref().map_or_else(|| h.label.clone(), |process| process.label());
        format!("{label}@{}", host.0)
    }

    // Clocks.

    /// Time as the process of a host sees it.
    pub fn now_at(&self, host: HostId) -> Now {
        let h = &self.hosts[host.0];
        let elapsed = (self.now - START).as_micros() as i64;
        let drift = elapsed * h.drift_ppm / 1_000_000;
        let realtime = EPOCH_US as i64 + elapsed + drift + h.clock_us;
        Now { monotonic: self.now, realtime_us: realtime.max(0) as u64 }
    }
    /// Moves the real clock of a host.
    pub fn shift_clock(&mut self, host: HostId, by_us: i64) {
        self.story(host, || format!("clock moves by {:+.6} s", by_us as f64 / 1e6));
        self.hosts[host.0].clock_us += by_us;
    }
    /// Makes the real clock of a host faster or slower, in millionths.
    pub fn set_drift(&mut self, host: HostId, ppm: i64) {
        self.hosts[host.0].drift_ppm = ppm;
    }

    // Processes.

    /// Starts a process on a host that has none.
    pub fn start(&mut self, host: HostId, mut process: Box<dyn Process>) {
        assert!(!self.is_running(host), "one process at a time");
        let now = self.now_at(host);
        process.start(now);
        let h = &mut self.hosts[host.0];
        h.life += 1;
        h.label = process.label();
        h.process = Some(process);
        h.exit = None;
        h.work_at = None;
        h.timeout_at = None;
        h.stopped_until = Duration::ZERO;
        self.story(host, || "starts".into());
        self.effects(host);
    }

    /// Puts something around the process of a host.
    pub fn wrap(&mut self, host: HostId, wrap: impl FnOnce(Box<dyn Process>) -> Box<dyn Process>) {
        let h = &mut self.hosts[host.0];
        h.process = h.process.take().map(wrap);
    }

    /// Kills the process: nothing of it is left but what its disk has. Peers notice soon.
    pub fn crash(&mut self, host: HostId) {
        self.end(host, None, || "crashes".into());
    }

    /// The machine dies: peers notice after `silence`.
    pub fn power_off(&mut self, host: HostId, silence: Duration) {
        let h = &mut self.hosts[host.0];
        let Some(process) = h.process.take() else { return };
        h.label = process.label();
        self.story(host, || "loses power".into());
        self.drop_connections_late(host, silence);
    }

    /// The process ends, with this status if by itself.
    fn end(&mut self, host: HostId, status: Option<i32>, how: impl FnOnce() -> String) {
        let h = &mut self.hosts[host.0];
        let Some(process) = h.process.take() else { return };
        h.label = process.label();
        h.exit = status;
        if status.is_some() {
            self.ended.push(host);
        }
        self.story(host, how);
        self.drop_connections(host);
    }

    /// Stops the process for a while (SIGSTOP, SIGCONT).
    pub fn pause(&mut self, host: HostId, delay: Duration) {
        self.story(host, || format!("is paused for {delay:?}"));
        self.hosts[host.0].stopped_until = self.now + delay;
    }
    /// Lets a paused process go on.
    pub fn unpause(&mut self, host: HostId) {
        // What waits for the former end of the pause happens then, at the latest.
        self.hosts[host.0].stopped_until = self.now;
    }

    /// Until when the process of a host is paused, if it is.
    pub fn paused_until(&self, host: HostId) -> Option<Duration> {
        Some(self.hosts[host.0].stopped_until).filter(|until| *until > self.now)
    }
    /// Hosts whose process ended by itself since the last time.
    pub fn take_ended(&mut self) -> Vec<HostId> {
        std::mem::take(&mut self.ended)
    }

    /// The process of a host, if it runs and is of that type.
    pub fn process<P: Process>(&mut self, host: HostId) -> Option<&mut P> {
        self.hosts[host.0].process.as_mut()?.as_any().downcast_mut()
    }

    /// Does something with the process of a host, then what the process wants.
    pub fn with<P: Process, R>(
        &mut self,
        host: HostId,
        act: impl FnOnce(&mut P, Now) -> R,
    ) -> Option<R> {
        let now = self.now_at(host);
        let process: &mut P = self.process(host)?;
        let result = act(process, now);
        self.effects(host);
        Some(result)
    }

    /// Sends a signal.
    pub fn signal(&mut self, host: HostId, signal: Signal) {
        self.story(host, || format!("receives {signal:?}"));
        self.tell(host, Happening::Signal(signal));
    }

    // Time.

    /// When the next event happens.
    pub fn next_at(&self) -> Option<Duration> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the next event happen, unless it is later than `until`; then the time is `until`, and
    /// the result is `false`.
    ///
    /// # Panics
    /// If time does not pass any more.
    pub fn step(&mut self, until: Duration) -> bool {
        match self.queue.first_entry() {
            Some(entry) if entry.key().0 <= until => {
                let ((at, _), event) = entry.remove_entry();
                if at > self.now {
                    self.now = at;
                    self.events_now = 0;
                }
                self.events_now += 1;
                assert!(self.events_now < EVENTS_PER_INSTANT_MAX, "time does not pass any more");
                self.events += 1;
                self.event(event);
                true
            }
            _ => {
                self.now = self.now.max(until);
                false
            }
        }
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.queue.insert((at, self.sequence), event);
        self.sequence += 1;
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Attempt(link, address) => self.attempt(link, address),
            Event::Arrive(link, side, happening) => self.arrive(link, side, happening),
            Event::Resume(link, side) => self.resume(link, side),
            Event::Timeout(host, life) => {
                let now = self.now;
                let h = &mut self.hosts[host.0];
                // Otherwise an earlier one was set meanwhile, which sets the next one.
                if h.life == life && h.timeout_at == Some(now) {
                    h.timeout_at = None;
                    if now < h.stopped_until {
                        let at = h.stopped_until;
                        h.timeout_at = Some(at);
                        self.push(at, Event::Timeout(host, life));
                    } else {
                        self.tell(host, Happening::Timeout);
                    }
                }
            }
            Event::Work(host, life) => {
                let now = self.now;
                let h = &mut self.hosts[host.0];
                if h.life == life && h.work_at == Some(now) {
                    h.work_at = None;
                    if now < h.stopped_until {
                        let at = h.stopped_until;
                        h.work_at = Some(at);
                        self.push(at, Event::Work(host, life));
                    } else {
                        self.tell(host, Happening::Work);
                    }
                }
            }
        }
    }

    // What processes do.

    fn tell(&mut self, host: HostId, happening: Happening) {
        self.note(host, &happening);
        let now = self.now_at(host);
        let Some(process) = self.hosts[host.0].process.as_mut() else { return };
        if process.happen(happening, now).is_ok() {
            self.effects(host);
        } else {
            self.end(host, Some(1), || "dies of a failure of its database".into());
        }
    }

    /// Does what a process wants.
    fn effects(&mut self, host: HostId) {
        let now = self.now;
        while let Some(effect) = self.hosts[host.0].process.as_mut().and_then(|p| p.effect(now)) {
            match effect {
                Effect::Connect(conn, address) => self.connect(host, conn, address),
                Effect::Bytes(conn, chunks) => self.bytes(host, conn, &chunks),
                Effect::Close(conn, flush) => self.close(host, conn, flush),
                Effect::Read(conn, resume) => self.read(host, conn, resume),
                Effect::Exit(status) => {
                    self.end(host, Some(status), || format!("exits with status {status}"));
                    return;
                }
            }
        }
        self.wake_ups(host);
    }

    fn wake_ups(&mut self, host: HostId) {
        let now = self.now;
        let h = &mut self.hosts[host.0];
        let Some(process) = &h.process else { return };
        let life = h.life;
        let deadline = process.deadline().map(|at| at.max(now));
        let work_at = process.work_at().map(|at| at.max(now));
        if let Some(at) = deadline.filter(|at| h.timeout_at.is_none_or(|t| *at < t)) {
            h.timeout_at = Some(at);
            self.push(at, Event::Timeout(host, life));
        }
        let h = &mut self.hosts[host.0];
        if let Some(at) = work_at.filter(|at| h.work_at.is_none_or(|t| *at < t)) {
            h.work_at = Some(at);
            self.push(at, Event::Work(host, life));
        }
    }

    // The story.

    /// Folds what happens into the fingerprint.
    fn note(&mut self, host: HostId, happening: &Happening) {
        let (kind, value) = match happening {
            Happening::Accepted(conn, _) => (1, conn.get()),
            Happening::Connected(conn) => (2, conn.get()),
            Happening::Bytes(conn, bytes) => (3, conn.get() ^ ((bytes.len() as u64) << 32)),
            Happening::Closed(conn) => (4, conn.get()),
            Happening::Timeout => (5, 0),
            Happening::Signal(_) => (6, 0),
            Happening::Work => (7, 0),
        };
        for value in [self.now.as_nanos() as u64, host.0 as u64, kind, value] {
            self.fold(value);
        }
    }

    /// Folds a value into the fingerprint.
    pub fn fold(&mut self, value: u64) {
        self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x0100_0000_01b3);
    }

    fn story(&self, host: HostId, what: impl FnOnce() -> String) {
        if self.trace {
            self.tell_story(&format!("{}: {}", self.label(host), what()));
        }
    }

    /// A line of the story.
    pub fn tell_story(&self, line: &str) {
        if self.trace {
            println!("{:>12.6} {line}", (self.now - START).as_secs_f64());
        }
    }
}
