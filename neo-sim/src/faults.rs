// SPDX-License-Identifier: GPL-2.0-or-later
//! What goes wrong. Each seed draws which kinds of faults it has, and how often: some have none, some
//! one kind only, some many. (*Swarm testing*, Groce and others, 2012: a mix of everything hides
//! what needs a long time without some kind of fault.)

use std::time::Duration;

use neo_common::prng::Prng;
use neo_common::protocol::Packet;

use crate::cluster::{Cluster, End, Role};
use crate::disk::Pace;
use crate::network::{HostId, Weather};

/// How many faults there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// None, on a quiet network.
    Off,
    /// Few kinds, with time to recover in between.
    Lite,
    /// Anything.
    Swarm,
}

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// SIGKILL of a master.
    KillMaster,
    /// SIGKILL of a storage.
    KillStorage,
    /// SIGKILL of a client.
    KillClient,
    /// SIGKILL of an admin.
    KillAdmin,
    /// A clean end of any process.
    Terminate,
    /// A machine loses power, and what was not on its disk.
    Power,
    /// All storages lose power.
    Blackout,
    /// A connection breaks.
    Reset,
    /// All connections between two hosts break.
    ResetPair,
    /// A process is stopped for a while.
    Pause,
    /// A host does not hear another one for a while, one way or both.
    Cut,
    /// A host is cut from all others for a while.
    Isolate,
    /// A clock jumps.
    Clock,
    /// A disk is very slow for a while, or fails.
    Disk,
    /// Something happens to a node at the moment when it sends, or is sent, some packet.
    Moment,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::KillMaster,
        Self::KillStorage,
        Self::KillClient,
        Self::KillAdmin,
        Self::Terminate,
        Self::Power,
        Self::Blackout,
        Self::Reset,
        Self::ResetPair,
        Self::Pause,
        Self::Cut,
        Self::Isolate,
        Self::Clock,
        Self::Disk,
        Self::Moment,
    ];

    /// For figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillMaster => "kill master",
            Self::KillStorage => "kill storage",
            Self::KillClient => "kill client",
            Self::KillAdmin => "kill admin",
            Self::Terminate => "terminate",
            Self::Power => "power",
            Self::Blackout => "blackout",
            Self::Reset => "reset",
            Self::ResetPair => "reset pair",
            Self::Pause => "pause",
            Self::Cut => "cut",
            Self::Isolate => "isolate",
            Self::Clock => "clock",
            Self::Disk => "disk",
            Self::Moment => "moment",
        }
    }
}

/// Packets at which a [`Kind::Moment`] may happen.
const MOMENTS: [&str; 26] = [
    "AskFinishTransaction",
    "AskLockInformation",
    "AnswerInformationLocked",
    "NotifyUnlockInformation",
    "AnswerTransactionFinished",
    "AskStoreTransaction",
    "AnswerStoreTransaction",
    "AskVoteTransaction",
    "AskStoreObject",
    "AnswerStoreObject",
    "AskRelockObject",
    "AskCheckCurrentSerial",
    "InvalidateObjects",
    "AnswerObject",
    "AbortTransaction",
    "AskFinalTID",
    "AnswerFinalTID",
    "RequestIdentification",
    "AnswerRecovery",
    "AnswerLockedTransactions",
    "ValidateTransaction",
    "AnswerLastIDs",
    "StartOperation",
    "NotifyReady",
    "NotifyPartitionChanges",
    "AnswerBeginTransaction",
];

/// What goes wrong, and how often.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Kinds of faults, with the mean time between two of them.
    pub kinds: Vec<(Kind, Duration)>,
    /// How long a process stays down, at most.
    pub down_max: Duration,
    /// The network.
    pub weather: Weather,
    /// The disks.
    pub pace: Pace,
    /// How wrong the speed of clocks is, in millionths.
    pub drift_ppm: i64,
}

impl Plan {
    /// Nothing goes wrong.
    pub const QUIET: Self = Self {
        kinds: Vec::new(),
        down_max: Duration::ZERO,
        weather: Weather::FINE,
        pace: Pace::FINE,
        drift_ppm: 0,
    };

    /// Draws a plan.
    pub fn draw(prng: &mut Prng, level: Level) -> Self {
        match level {
            Level::Off => Self::QUIET,
            Level::Lite => Self::draw_lite(prng),
            // Including none.
            Level::Swarm if prng.one_in(12) => Self { weather: Weather::draw(prng), ..Self::QUIET },
            Level::Swarm => Self::draw_swarm(prng),
        }
    }

    fn draw_lite(prng: &mut Prng) -> Self {
        let mut kinds = Kind::ALL.to_vec();
        prng.shuffle(&mut kinds);
        kinds.truncate(1 + prng.below(2));
        let kinds = kinds.into_iter().map(|kind| (kind, Duration::from_secs(10))).collect();
        Self { kinds, down_max: Duration::from_secs(2), ..Self::QUIET }
    }

    fn draw_swarm(prng: &mut Prng) -> Self {
        let one_in = 1 + prng.below(6) as u64;
        let mut kinds = Vec::new();
        for kind in Kind::ALL {
            if prng.one_in(one_in) {
                let ms = 200_u64 << prng.below(8);
                kinds.push((kind, Duration::from_millis(ms)));
            }
        }
        let min_us = 10 + prng.below(500) as u64;
        let pace = match prng.one_in(2) {
            true => Pace::FINE,
            false => Pace {
                min_us,
                max_us: min_us + prng.below(20_000) as u64,
                stall_one_in: if prng.one_in(2) { 0 } else { 5 + prng.below(200) as u64 },
                fail_one_in: 0,
            },
        };
        Self {
            kinds,
            down_max: Duration::from_millis(10_u64 << prng.below(11)),
            weather: Weather::draw(prng),
            pace,
            drift_ppm: if prng.one_in(2) { 0 } else { prng.below(100_000) as i64 },
        }
    }
}

/// What ends by itself after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cure {
    Join(HostId, HostId),
    Disk(HostId),
}

/// What happens at a [`Kind::Moment`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Moment {
    name: &'static str,
    at_sender: bool,
}

/// Makes things go wrong.
pub struct Faults {
    prng: Prng,
    plan: Plan,
    next: Vec<(Duration, Kind)>,
    cures: Vec<(Duration, Cure)>,
    moment: Option<Moment>,
    /// What went wrong, by kind.
    pub counts: std::collections::BTreeMap<Kind, u64>,
}

impl Faults {
    /// Nothing went wrong yet.
    pub fn new(seed: u64, plan: Plan, cluster: &mut Cluster) -> Self {
        let mut faults = Self {
            prng: Prng::new(seed ^ 0xfa17),
            plan,
            next: Vec::new(),
            cures: Vec::new(),
            moment: None,
            counts: std::collections::BTreeMap::new(),
        };
        cluster.world.weather = faults.plan.weather;
        for host in (0..cluster.world.hosts_len()).map(HostId) {
            let drift = faults.prng.below(2 * faults.plan.drift_ppm as usize + 1) as i64;
            cluster.world.set_drift(host, drift - faults.plan.drift_ppm);
        }
        faults.begin(cluster);
        faults
    }

    /// Begins to make things go wrong, from now on.
    pub fn begin(&mut self, cluster: &Cluster) {
        self.next.clear();
        for (kind, mean) in self.plan.kinds.clone() {
            let at = cluster.world.now() + self.delay(mean);
            self.next.push((at, kind));
        }
    }

    fn delay(&mut self, mean: Duration) -> Duration {
        Duration::from_micros(1 + self.prng.below(2 * mean.as_micros() as usize) as u64)
    }

    fn down(&mut self) -> Duration {
        Duration::from_micros(self.prng.below(self.plan.down_max.as_micros() as usize + 1) as u64)
    }

    /// When something goes wrong next, if ever.
    pub fn next_at(&self) -> Option<Duration> {
        let next = self.next.iter().map(|(at, _)| *at);
        next.chain(self.cures.iter().map(|(at, _)| *at)).min()
    }

    /// Makes go wrong what is due.
    pub fn due(&mut self, cluster: &mut Cluster) {
        let now = cluster.world.now();
        while let Some(index) = self.cures.iter().position(|(at, _)| *at <= now) {
            let (_, cure) = self.cures.swap_remove(index);
            self.cure(cluster, cure);
        }
        for index in 0..self.next.len() {
            let (at, kind) = self.next[index];
            if at > now {
                continue;
            }
            let mean = self.plan.kinds.iter().find(|(other, _)| *other == kind);
            let mean = mean.map_or(Duration::from_secs(10), |(_, mean)| *mean);
            self.next[index].0 = now + self.delay(mean);
            self.happen(cluster, kind);
        }
    }

    fn cure(&mut self, cluster: &mut Cluster, cure: Cure) {
        match cure {
            Cure::Join(from, to) => {
                let (one, other) = (cluster.world.label(from), cluster.world.label(to));
                cluster.world.tell_story(&format!("{other} hears {one} again"));
                cluster.world.cuts.join(from, to);
            }
            Cure::Disk(host) => cluster.set_pace(host, self.plan.pace),
        }
    }

    /// Nothing goes wrong any more, and what did is repaired.
    pub fn stop(&mut self, cluster: &mut Cluster) {
        cluster.world.tell_story("no more faults");
        self.next.clear();
        self.moment = None;
        for (_, cure) in std::mem::take(&mut self.cures) {
            self.cure(cluster, cure);
        }
        cluster.world.cuts.heal();
        cluster.world.weather.hang_one_in = 0;
        for host in (0..cluster.world.hosts_len()).map(HostId) {
            cluster.world.unpause(host);
        }
        cluster.start_all();
    }

    fn host(&mut self, cluster: &Cluster, roles: &[Role]) -> HostId {
        let hosts: Vec<HostId> = roles.iter().flat_map(|role| cluster.hosts(*role)).collect();
        *self.prng.choose(&hosts).expect("each role has a host")
    }

    fn any_host(&mut self, cluster: &Cluster) -> HostId {
        self.host(cluster, &[Role::Master, Role::Storage, Role::Storage, Role::Client, Role::Admin])
    }

    fn restart(&mut self, cluster: &mut Cluster, host: HostId, end: End) {
        let delay = self.down();
        cluster.restart(host, end, delay);
    }

    fn happen(&mut self, cluster: &mut Cluster, kind: Kind) {
        *self.counts.entry(kind).or_default() += 1;
        match kind {
            Kind::KillMaster => self.kill(cluster, Role::Master),
            Kind::KillStorage => self.kill(cluster, Role::Storage),
            Kind::KillClient => self.kill(cluster, Role::Client),
            Kind::KillAdmin => self.kill(cluster, Role::Admin),
            Kind::Terminate => {
                let host = self.any_host(cluster);
                self.restart(cluster, host, End::Terminate);
            }
            Kind::Power => {
                let host = self.any_host(cluster);
                self.power_off(cluster, host);
            }
            Kind::Blackout => {
                for host in cluster.hosts(Role::Storage) {
                    self.power_off(cluster, host);
                }
            }
            Kind::Reset => {
                let host = self.any_host(cluster);
                cluster.world.reset_one(host);
            }
            Kind::ResetPair => {
                let (one, other) = (self.any_host(cluster), self.any_host(cluster));
                cluster.world.reset_between(one, other);
            }
            Kind::Pause => {
                let host = self.any_host(cluster);
                let delay = self.delay(Duration::from_secs(3));
                cluster.world.pause(host, delay);
            }
            Kind::Cut => self.cut(cluster),
            Kind::Isolate => self.isolate(cluster),
            Kind::Clock => {
                let host = self.any_host(cluster);
                // From a few microseconds to an hour, in both directions.
                let by_us = 1_i64 << self.prng.below(32);
                let by_us = if self.prng.one_in(2) { by_us } else { -by_us };
                cluster.world.shift_clock(host, by_us);
            }
            Kind::Disk => self.disk(cluster),
            Kind::Moment => {
                let name = *self.prng.choose(&MOMENTS).expect("there are some");
                self.moment = Some(Moment { name, at_sender: self.prng.one_in(2) });
            }
        }
    }

    fn kill(&mut self, cluster: &mut Cluster, role: Role) {
        let host = self.host(cluster, &[role]);
        self.restart(cluster, host, End::Kill);
    }

    fn power_off(&mut self, cluster: &mut Cluster, host: HostId) {
        // Peers notice when their keepalive probes fail, or when the machine is back.
        let silence = self.delay(Duration::from_secs(5));
        self.restart(cluster, host, End::Power(silence));
    }

    fn cut(&mut self, cluster: &mut Cluster) {
        let (from, to) = (self.any_host(cluster), self.any_host(cluster));
        if from == to {
            return;
        }
        let both = self.prng.one_in(2);
        let end = cluster.world.now() + self.delay(Duration::from_secs(4));
        let (one, other) = (cluster.world.label(from), cluster.world.label(to));
        cluster.world.tell_story(&format!("{other} does not hear {one} (both ways: {both})"));
        cluster.world.cuts.cut(from, to);
        self.cures.push((end, Cure::Join(from, to)));
        if both {
            cluster.world.cuts.cut(to, from);
            self.cures.push((end, Cure::Join(to, from)));
        }
    }

    fn isolate(&mut self, cluster: &mut Cluster) {
        let host = self.any_host(cluster);
        let label = cluster.world.label(host);
        cluster.world.tell_story(&format!("{label} is cut from all others"));
        let end = cluster.world.now() + self.delay(Duration::from_secs(4));
        for other in (0..cluster.world.hosts_len()).map(HostId).filter(|other| *other != host) {
            cluster.world.cuts.cut(host, other);
            cluster.world.cuts.cut(other, host);
            self.cures.push((end, Cure::Join(host, other)));
            self.cures.push((end, Cure::Join(other, host)));
        }
    }

    fn disk(&mut self, cluster: &mut Cluster) {
        let host = self.host(cluster, &[Role::Storage]);
        let mut pace = self.plan.pace;
        if self.prng.one_in(3) {
            cluster.disks_may_fail = true;
            pace.fail_one_in = 1 + self.prng.below(20) as u64;
        } else {
            pace.min_us *= 10;
            pace.max_us *= 100;
        }
        cluster.set_pace(host, pace);
        let end = cluster.world.now() + self.delay(Duration::from_secs(3));
        self.cures.push((end, Cure::Disk(host)));
    }

    /// A packet was sent.
    pub fn sent(&mut self, cluster: &mut Cluster, from: HostId, to: HostId, packet: &Packet) {
        let Some(Moment { at_sender, .. }) = self.moment.filter(|m| m.name == packet.name()) else {
            return;
        };
        self.moment = None;
        let host = if at_sender { from } else { to };
        if cluster.role(host) == Role::Operator {
            return;
        }
        cluster.world.tell_story(&format!("moment: {}", packet.name()));
        match self.prng.below(5) {
            0 => cluster.world.reset_between(from, to),
            1 => self.power_off(cluster, host),
            2 => {
                let delay = self.delay(Duration::from_secs(2));
                cluster.world.pause(host, delay);
            }
            _ => self.restart(cluster, host, End::Kill),
        }
    }

    /// Whether it matters which packets are sent.
    pub fn waits_for_packet(&self) -> bool {
        self.moment.is_some()
    }
}
