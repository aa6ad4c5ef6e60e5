// SPDX-License-Identifier: GPL-2.0-or-later
//! The queue of events, the virtual clock, hosts and their connections.
//!
//! An event is taken, told to one process, and what the process does becomes new events. Two events
//! at the same time keep their order of creation. Everything that happens is folded into a
//! fingerprint: two runs of the same seed must have the same one.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{ConnId, Flush, Signal};
use neo_common::prng::Prng;
use neo_common::time::Now;

use crate::network::{Cuts, HostId, Weather};
use crate::process::{Effect, Happening, Process};

/// Microseconds since 1970 when the world begins: 2026-01-01.
const EPOCH_US: u64 = 1_767_225_600_000_000;

/// How often what is sent to a host that does not hear is tried again.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// How long a connection attempt hangs before it fails.
const HANG: Duration = Duration::from_secs(20);

/// Names a connection of the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct LinkId(u64);

/// One end of a connection.
#[derive(Clone, Debug)]
struct End {
    host: HostId,
    /// Life of the process: a process that restarts does not hear of its former connections.
    life: u64,
    conn: ConnId,
    /// When the last piece towards this end arrives: the next ones are not earlier.
    arrival: Duration,
    /// Nothing more is delivered to this end.
    deaf: bool,
    /// The process does not read; what arrives waits.
    paused: bool,
    /// What arrived and is not told yet.
    waiting: VecDeque<Happening>,
    /// An event will try to tell it.
    resuming: bool,
}

/// A connection: the end that opened it, and the other once accepted.
#[derive(Clone, Debug)]
struct Link {
    ends: [Option<End>; 2],
}

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
    life: u64,
    /// Difference between its real clock and the true time.
    clock_us: i64,
    /// The process does nothing until then (SIGSTOP).
    stopped_until: Duration,
    conns: BTreeMap<ConnId, (LinkId, usize)>,
    timeout_at: Option<Duration>,
    working: bool,
    exit: Option<i32>,
}

/// How long the threads of a process take for one batch of jobs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Least time.
    pub min_us: u64,
    /// Most.
    pub max_us: u64,
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
    /// How fast databases are.
    pub pace: Pace,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    hosts: Vec<Host>,
    links: BTreeMap<LinkId, Link>,
    next_link: u64,
    fingerprint: u64,
    /// Prints the story.
    pub trace: bool,
}

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        Self {
            // Not zero: a deadline of zero would hide mistakes.
            now: Duration::from_secs(1000),
            prng: Prng::new(seed),
            weather: Weather::FINE,
            cuts: Cuts::default(),
            pace: Pace { min_us: 50, max_us: 500 },
            queue: BTreeMap::new(),
            sequence: 0,
            hosts: Vec::new(),
            links: BTreeMap::new(),
            next_link: 0,
            fingerprint: 0xcbf2_9ce4_8422_2325,
            trace: false,
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
    /// Adds a machine, without process. Its address is its number.
    pub fn add_host(&mut self) -> HostId {
        let id = HostId(self.hosts.len());
        let n = u8::try_from(id.0 + 1).expect("a small cluster");
        self.hosts.push(Host {
            address: SocketAddr::from(([10, 0, 0, n], 10_000)),
            process: None,
            life: 0,
            clock_us: 0,
            stopped_until: Duration::ZERO,
            conns: BTreeMap::new(),
            timeout_at: None,
            working: false,
            exit: None,
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
    /// Time as the process of a host sees it.
    pub fn now_at(&self, host: HostId) -> Now {
        let realtime = EPOCH_US as i64 + self.now.as_micros() as i64 + self.hosts[host.0].clock_us;
        Now { monotonic: self.now, realtime_us: realtime.max(0) as u64 }
    }
    /// Moves the real clock of a host.
    pub fn shift_clock(&mut self, host: HostId, by_us: i64) {
        self.story(host, || format!("clock moves by {by_us} us"));
        self.hosts[host.0].clock_us += by_us;
    }

    /// Starts a process on a host that has none.
    pub fn start(&mut self, host: HostId, mut process: Box<dyn Process>) {
        assert!(!self.is_running(host), "one process at a time");
        let now = self.now_at(host);
        process.start(now);
        let h = &mut self.hosts[host.0];
        h.life += 1;
        h.process = Some(process);
        h.exit = None;
        h.working = false;
        h.timeout_at = None;
        h.stopped_until = Duration::ZERO;
        self.story(host, || "starts".into());
        self.effects(host);
    }

    /// Kills the process: nothing of it is left but what its disk has.
    pub fn crash(&mut self, host: HostId) {
        if self.hosts[host.0].process.take().is_some() {
            self.story(host, || "crashes".into());
            self.drop_connections(host);
        }
    }

    fn drop_connections(&mut self, host: HostId) {
        for (link, side) in std::mem::take(&mut self.hosts[host.0].conns).into_values() {
            let reset = self.prng.one_in(2);
            self.hang_up(link, side, reset);
        }
    }

    /// Stops the process for a while (SIGSTOP, SIGCONT).
    pub fn pause(&mut self, host: HostId, delay: Duration) {
        self.story(host, || format!("is paused for {delay:?}"));
        self.hosts[host.0].stopped_until = self.now + delay;
    }

    /// Breaks a random connection of a host. What is on its way may be lost.
    pub fn reset_one(&mut self, host: HostId) {
        let conns: Vec<_> = self.hosts[host.0].conns.iter().map(|(c, l)| (*c, *l)).collect();
        let Some(&(_, (link, side))) = self.prng.choose(&conns) else { return };
        self.story(host, || format!("loses {link:?}"));
        self.reset(link, side);
        self.reset(link, 1 - side);
    }

    /// Lets an end learn that the connection is broken, maybe before what was sent arrives.
    fn reset(&mut self, link: LinkId, side: usize) {
        let at = self.now + self.weather.delay(&mut self.prng);
        if let Some(end) = self.end_mut(link, side) {
            let happening = Happening::Closed(end.conn);
            self.push(at, Event::Arrive(link, side, happening));
        }
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
        self.tell(host, Happening::Signal(signal));
    }

    /// When the next event happens.
    pub fn next_at(&self) -> Option<Duration> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the next event happen, unless it is later than `until`; then the time is `until`, and
    /// the result is `false`.
    pub fn step(&mut self, until: Duration) -> bool {
        match self.queue.first_entry() {
            Some(entry) if entry.key().0 <= until => {
                let ((at, _), event) = entry.remove_entry();
                self.now = self.now.max(at);
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
            Event::Resume(link, side) => {
                if let Some(end) = self.end_mut(link, side) {
                    end.resuming = false;
                    self.deliver(link, side);
                }
            }
            Event::Timeout(host, life) => {
                let h = &mut self.hosts[host.0];
                if h.life == life && h.process.is_some() {
                    h.timeout_at = None;
                    if self.now < h.stopped_until {
                        let at = h.stopped_until;
                        h.timeout_at = Some(at);
                        self.push(at, Event::Timeout(host, life));
                    } else {
                        self.tell(host, Happening::Timeout);
                    }
                }
            }
            Event::Work(host, life) => {
                let h = &mut self.hosts[host.0];
                if h.life == life && h.process.is_some() {
                    if self.now < h.stopped_until {
                        let at = h.stopped_until;
                        self.push(at, Event::Work(host, life));
                    } else {
                        h.working = false;
                        self.tell(host, Happening::Work);
                    }
                }
            }
        }
    }

    fn attempt(&mut self, link: LinkId, address: SocketAddr) {
        let Some(from) = self.links.get(&link).and_then(|l| l.ends[0].clone()) else { return };
        let target = (0..self.hosts.len()).map(HostId).find(|h| self.address(*h) == address);
        let hears = |w: &Self, to| !w.cuts.is_cut(from.host, to) && !w.cuts.is_cut(to, from.host);
        let accepts = target.filter(|to| self.is_running(*to) && hears(self, *to));
        let Some(to) = accepts else {
            // Nobody answers at all if the network is cut, otherwise the refusal is quick.
            let silent = target.is_some_and(|to| !hears(self, to));
            let delay = if silent { HANG } else { self.weather.delay(&mut self.prng) };
            self.send(link, 0, delay, Happening::Closed);
            return;
        };
        let h = &mut self.hosts[to.0];
        let conn = h.process.as_mut().expect("checked above").new_conn();
        h.conns.insert(conn, (link, 1));
        let end = End {
            host: to,
            life: h.life,
            conn,
            arrival: self.now,
            deaf: false,
            paused: false,
            waiting: VecDeque::new(),
            resuming: false,
        };
        self.links.get_mut(&link).expect("found above").ends[1] = Some(end);
        let peer = self.address(from.host);
        self.arrive(link, 1, Happening::Accepted(conn, peer));
        let delay = self.weather.delay(&mut self.prng);
        self.send(link, 0, delay, Happening::Connected);
    }

    /// Lets something arrive at an end, after what was sent before.
    fn send(
        &mut self,
        link: LinkId,
        side: usize,
        delay: Duration,
        what: impl FnOnce(ConnId) -> Happening,
    ) {
        let now = self.now;
        let Some(end) = self.end_mut(link, side) else { return };
        let at = (now + delay).max(end.arrival);
        end.arrival = at;
        let happening = what(end.conn);
        self.push(at, Event::Arrive(link, side, happening));
    }

    fn end_mut(&mut self, link: LinkId, side: usize) -> Option<&mut End> {
        self.links.get_mut(&link)?.ends[side].as_mut()
    }

    fn arrive(&mut self, link: LinkId, side: usize, happening: Happening) {
        if let Some(end) = self.end_mut(link, side) {
            end.waiting.push_back(happening);
            self.deliver(link, side);
        }
    }

    /// Tells a process what arrived at its end of a connection, as far as it listens.
    fn deliver(&mut self, link: LinkId, side: usize) {
        while let Some(l) = self.links.get_mut(&link) {
            let peer = l.ends[1 - side].as_ref().map(|end| end.host);
            let Some(end) = l.ends[side].as_mut() else { return };
            let (host, life) = (end.host, end.life);
            let h = &self.hosts[host.0];
            if end.deaf || h.life != life || h.process.is_none() {
                end.waiting.clear();
                return;
            }
            // TCP sends again until it is heard.
            let late = if self.now < h.stopped_until {
                Some(h.stopped_until)
            } else if peer.is_some_and(|peer| self.cuts.is_cut(peer, host)) {
                Some(self.now + RETRANSMIT)
            } else {
                None
            };
            if let Some(at) = late {
                if !end.waiting.is_empty() && !std::mem::replace(&mut end.resuming, true) {
                    self.push(at, Event::Resume(link, side));
                }
                return;
            }
            if end.paused && matches!(end.waiting.front(), Some(Happening::Bytes(..))) {
                return;
            }
            let Some(happening) = end.waiting.pop_front() else { return };
            if let Happening::Closed(conn) = happening {
                end.deaf = true;
                self.hosts[host.0].conns.remove(&conn);
            }
            self.tell(host, happening);
        }
    }

    fn tell(&mut self, host: HostId, happening: Happening) {
        self.note(host, &happening);
        let now = self.now_at(host);
        let Some(process) = self.hosts[host.0].process.as_mut() else { return };
        if process.happen(happening, now) {
            self.effects(host);
        } else {
            self.story(host, || "dies of a failure of its database".into());
            self.hosts[host.0].process = None;
            self.hosts[host.0].exit = Some(1);
            self.drop_connections(host);
        }
    }

    /// Does what a process wants.
    fn effects(&mut self, host: HostId) {
        while let Some(effect) = self.hosts[host.0].process.as_mut().and_then(|p| p.effect()) {
            match effect {
                Effect::Connect(conn, address) => self.connect(host, conn, address),
                Effect::Bytes(conn, chunks) => self.bytes(host, conn, &chunks),
                Effect::Close(conn, flush) => {
                    if let Some((link, side)) = self.hosts[host.0].conns.remove(&conn) {
                        let reset = flush == Flush::No && self.prng.one_in(4);
                        self.hang_up(link, side, reset);
                    }
                }
                Effect::Read(conn, resume) => self.read(host, conn, resume),
                Effect::Exit(status) => {
                    self.story(host, || format!("exits with status {status}"));
                    self.hosts[host.0].process = None;
                    self.hosts[host.0].exit = Some(status);
                    self.drop_connections(host);
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
        let works = process.has_work() && !h.working;
        if let Some(at) = deadline
            && h.timeout_at.is_none_or(|t| at < t)
        {
            h.timeout_at = Some(at);
            self.push(at, Event::Timeout(host, life));
        }
        if works {
            self.hosts[host.0].working = true;
            let spread = (self.pace.max_us - self.pace.min_us) as usize + 1;
            let us = self.pace.min_us + self.prng.below(spread) as u64;
            self.push(now + Duration::from_micros(us), Event::Work(host, life));
        }
    }

    fn connect(&mut self, host: HostId, conn: ConnId, address: SocketAddr) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let h = &mut self.hosts[host.0];
        h.conns.insert(conn, (link, 0));
        let end = End {
            host,
            life: h.life,
            conn,
            arrival: self.now,
            deaf: false,
            paused: false,
            waiting: VecDeque::new(),
            resuming: false,
        };
        self.links.insert(link, Link { ends: [Some(end), None] });
        if self.weather.hang_one_in != 0 && self.prng.one_in(self.weather.hang_one_in) {
            self.send(link, 0, HANG, Happening::Closed);
            return;
        }
        let delay = self.weather.delay(&mut self.prng);
        self.push(self.now + delay, Event::Attempt(link, address));
    }

    fn bytes(&mut self, host: HostId, conn: ConnId, chunks: &[Bytes]) {
        let Some(&(link, side)) = self.hosts[host.0].conns.get(&conn) else { return };
        let mut bytes = Bytes::from(chunks.concat());
        let pieces = 1 + self.prng.below(self.weather.pieces_max);
        for i in 0..pieces {
            let rest = pieces - i - 1;
            let len = if rest == 0 { bytes.len() } else { self.prng.below(bytes.len() + 1) };
            let piece = bytes.split_to(len);
            if !piece.is_empty() {
                let delay = self.weather.delay(&mut self.prng);
                self.send(link, 1 - side, delay, |conn| Happening::Bytes(conn, piece));
            }
        }
    }

    /// One end closes: the other learns it after what was sent before, or loses some of it.
    fn hang_up(&mut self, link: LinkId, side: usize, reset: bool) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if let Some(end) = &mut l.ends[side] {
            end.deaf = true;
        }
        if reset {
            self.reset(link, 1 - side);
        } else {
            let delay = self.weather.delay(&mut self.prng);
            self.send(link, 1 - side, delay, Happening::Closed);
        }
    }

    fn read(&mut self, host: HostId, conn: ConnId, resume: bool) {
        let Some(&(link, side)) = self.hosts[host.0].conns.get(&conn) else { return };
        let now = self.now;
        let Some(end) = self.end_mut(link, side) else { return };
        end.paused = !resume;
        // Not at once: the process is in the middle of something.
        if resume && !end.waiting.is_empty() && !std::mem::replace(&mut end.resuming, true) {
            self.push(now, Event::Resume(link, side));
        }
    }

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
            self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn story(&mut self, host: HostId, what: impl FnOnce() -> String) {
        if self.trace {
            let h = &self.hosts[host.0];
            let label =
                h.process.as_ref().map_or_else(|| format!("host {}", host.0), |p| p.label());
            println!("{:>12.6} {label}: {}", self.now.as_secs_f64(), what());
        }
    }
}
