// SPDX-License-Identifier: GPL-2.0-or-later
//! What goes wrong. Each seed draws which kinds of faults it has, and how often: some have none, some
//! one kind only, some many. (*Swarm testing*, Groce and others, 2012: a mix of everything hides
//! what needs a long time without some kind of fault.)
//!
//! - `kind`: what there is;
//! - `plan`: which of it a seed has;
//! - `orders`: what the operator does.

mod kind;
mod orders;
mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use neo_common::prng::Prng;
use neo_common::protocol::Packet;

use crate::cluster::{Cluster, End, Role};
use crate::disk::Pace;
use crate::network::HostId;
use crate::world::World;

pub use kind::{Kind, Kinds};
pub use plan::{Level, Plan};

/// Packets at which a [`Kind::Moment`] may happen.
const MOMENTS: [&str; 27] = [
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
    "NotifyReplicationDone",
    "NotifyPartitionChanges",
    "AnswerBeginTransaction",
];

/// What ends by itself after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cure {
    Join(HostId, HostId),
    Disk(HostId),
    /// It is overloaded: in the end, its connections to the master may break as well.
    Overload(HostId, bool),
    Connects(HostId),
}

/// What happens at a [`Kind::Moment`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Moment {
    name: &'static str,
    at_sender: bool,
}

/// How long after a packet something may happen: a commit takes less, most of the time.
const LATER_MAX_US: usize = 50_000;

/// What is about to happen after a [`Moment`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Blow {
    name: &'static str,
    from: HostId,
    to: HostId,
    /// Which of both it hits, unless it hits the connection, or all storages.
    host: HostId,
}

/// Makes things go wrong.
pub struct Faults {
    /// Of the kind that is happening: what one kind draws does not depend on the others.
    prng: Prng,
    prngs: BTreeMap<Kind, Prng>,
    plan: Plan,
    next: Vec<(Duration, Kind)>,
    cures: Vec<(Duration, Cure)>,
    moment: Option<Moment>,
    blows: Vec<(Duration, Blow)>,
    /// What went wrong, by kind.
    pub counts: BTreeMap<Kind, u64>,
}

impl Faults {
    /// Nothing went wrong yet.
    pub fn new(seed: u64, plan: Plan, cluster: &mut Cluster) -> Self {
        let mut faults = Self {
            prng: Prng::new(seed ^ 0xfa17),
            prngs: BTreeMap::new(),
            plan,
            next: Vec::new(),
            cures: Vec::new(),
            moment: None,
            blows: Vec::new(),
            counts: BTreeMap::new(),
        };
        for kind in faults.plan.all_kinds().iter() {
            let seed = faults.prng.next_u64() ^ seed.rotate_left(1 + kind as u32);
            faults.prngs.insert(kind, Prng::new(seed));
            if kind.is_condition() {
                faults.counts.insert(kind, 1);
            }
        }
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
            self.swap(kind);
            let at = cluster.world.now() + self.delay(mean);
            self.swap(kind);
            self.next.push((at, kind));
        }
    }

    /// Draws for a kind from here on, or not any more.
    fn swap(&mut self, kind: Kind) {
        let prng = self.prngs.get_mut(&kind).expect("each kind of the plan has one");
        std::mem::swap(&mut self.prng, prng);
    }

    fn delay(&mut self, mean: Duration) -> Duration {
        Duration::from_micros(1 + self.prng.below(2 * mean.as_micros() as usize) as u64)
    }

    fn down(&mut self) -> Duration {
        Duration::from_micros(self.prng.below(self.plan.down_max.as_micros() as usize + 1) as u64)
    }

    /// What holds for the whole run, and what is done at its end.
    pub fn conditions(&self) -> Kinds {
        self.plan.conditions
    }

    /// What happened, by name.
    pub fn figures(&self, cluster: &Cluster) -> BTreeMap<&'static str, u64> {
        let mut figures: BTreeMap<_, _> =
            self.counts.iter().map(|(kind, count)| (kind.name(), *count)).collect();
        let World { connects_hung, connects_refused, .. } = cluster.world;
        for (what, count) in
            [("(connects hung)", connects_hung), ("(connects refused)", connects_refused)]
        {
            if count != 0 {
                figures.insert(what, count);
            }
        }
        figures
    }

    /// When something goes wrong next, if ever.
    pub fn next_at(&self) -> Option<Duration> {
        let next = self.next.iter().map(|(at, _)| *at);
        let ends = self.cures.iter().map(|(at, _)| *at);
        next.chain(ends).chain(self.blows.iter().map(|(at, _)| *at)).min()
    }

    /// Makes go wrong what is due.
    pub fn due(&mut self, cluster: &mut Cluster) {
        let now = cluster.world.now();
        while let Some(index) = self.cures.iter().position(|(at, _)| *at <= now) {
            let (_, cure) = self.cures.swap_remove(index);
            self.cure(cluster, cure);
        }
        while let Some(index) = self.blows.iter().position(|(at, _)| *at <= now) {
            let (_, blow) = self.blows.swap_remove(index);
            self.swap(Kind::Moment);
            self.strike(cluster, blow);
            self.swap(Kind::Moment);
        }
        for index in 0..self.next.len() {
            let (at, kind) = self.next[index];
            if at > now {
                continue;
            }
            let mean = self.plan.kinds.iter().find(|(other, _)| *other == kind);
            let mean = mean.map_or(Duration::from_secs(10), |(_, mean)| *mean);
            self.swap(kind);
            self.next[index].0 = now + self.delay(mean);
            if self.happen(cluster, kind) {
                *self.counts.entry(kind).or_default() += 1;
            }
            self.swap(kind);
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
            Cure::Overload(host, breaks) => {
                cluster.set_pace(host, self.plan.pace);
                if let Some(master) = cluster.serving_master().filter(|_| breaks) {
                    cluster.world.reset_between(host, master);
                }
            }
            Cure::Connects(host) => {
                cluster.world.refusing.remove(&host);
                cluster.world.hanging.remove(&host);
            }
        }
    }

    /// Nothing goes wrong any more, and what did is repaired.
    pub fn stop(&mut self, cluster: &mut Cluster) {
        cluster.world.tell_story("no more faults");
        self.next.clear();
        self.moment = None;
        self.blows.clear();
        for (_, cure) in std::mem::take(&mut self.cures) {
            self.cure(cluster, cure);
        }
        cluster.world.cuts.heal();
        cluster.world.weather.hang_one_in = 0;
        cluster.dismiss_operator();
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

    fn restart(&mut self, cluster: &mut Cluster, host: HostId, end: End) -> bool {
        let delay = self.down();
        let was_running = cluster.world.is_running(host);
        cluster.restart(host, end, delay);
        was_running
    }

    /// Makes something go wrong. Returns whether anything was done.
    fn happen(&mut self, cluster: &mut Cluster, kind: Kind) -> bool {
        match kind {
            Kind::KillMaster => self.kill(cluster, Role::Master),
            Kind::KillStorage => self.kill(cluster, Role::Storage),
            Kind::KillClient => self.kill(cluster, Role::Client),
            Kind::KillAdmin => self.kill(cluster, Role::Admin),
            Kind::KillPrimary => {
                let Some(host) = cluster.serving_master() else { return false };
                self.restart(cluster, host, End::Kill);
                true
            }
            Kind::Terminate => {
                let host = self.any_host(cluster);
                self.restart(cluster, host, End::Terminate)
            }
            Kind::Power => {
                let host = self.any_host(cluster);
                self.power_off(cluster, host)
            }
            Kind::Blackout => self.blackout(cluster),
            Kind::Pause => {
                let host = self.any_host(cluster);
                let delay = self.delay(Duration::from_secs(3));
                cluster.world.pause(host, delay);
                true
            }
            Kind::Clock => {
                // Those of masters matter most: ids are made of them.
                let host = match self.prng.one_in(2) {
                    true => self.host(cluster, &[Role::Master]),
                    false => self.any_host(cluster),
                };
                // From a few microseconds to an hour, in both directions.
                let by_us = 1_i64 << self.prng.below(32);
                let by_us = if self.prng.one_in(2) { by_us } else { -by_us };
                cluster.world.shift_clock(host, by_us);
                true
            }
            Kind::Reset
            | Kind::ResetOneSide
            | Kind::ResetPair
            | Kind::Cut
            | Kind::CutOneWay
            | Kind::Isolate
            | Kind::IsolatePrimary
            | Kind::RefuseConnects
            | Kind::HangConnects => self.network(cluster, kind),
            Kind::SlowPacks => self.slow_packs(cluster),
            Kind::SlowCommit
            | Kind::LateReads
            | Kind::FailingCommit
            | Kind::DiskFull
            | Kind::LostLane => self.database(cluster, kind),
            Kind::Moment => {
                let name = *self.prng.choose(&MOMENTS).expect("there are some");
                self.moment = Some(Moment { name, at_sender: self.prng.one_in(2) });
                true
            }
            Kind::AddStorage
            | Kind::DropStorage
            | Kind::SetReplicas
            | Kind::Tweak
            | Kind::KillNode
            | Kind::Look
            | Kind::StopCluster => self.order(cluster, kind),
            Kind::Drift
            | Kind::Weather
            | Kind::SlowDisks
            | Kind::TweakAtEnd
            | Kind::Truncate
            | Kind::RestartAtEnd => false,
        }
    }

    fn network(&mut self, cluster: &mut Cluster, kind: Kind) -> bool {
        let host = match kind {
            Kind::IsolatePrimary => match cluster.serving_master() {
                Some(host) => host,
                None => return false,
            },
            _ => self.any_host(cluster),
        };
        match kind {
            Kind::Reset => cluster.world.reset_one(host),
            Kind::ResetOneSide => cluster.world.reset_one_side(host),
            Kind::ResetPair => {
                let other = self.any_host(cluster);
                cluster.world.reset_between(host, other);
            }
            Kind::Isolate | Kind::IsolatePrimary => self.isolate(cluster, host),
            Kind::RefuseConnects | Kind::HangConnects => self.shut(cluster, host, kind),
            _ => return self.cut(cluster, host, kind == Kind::Cut),
        }
        true
    }

    fn kill(&mut self, cluster: &mut Cluster, role: Role) -> bool {
        let host = self.host(cluster, &[role]);
        self.restart(cluster, host, End::Kill)
    }

    fn power_off(&mut self, cluster: &mut Cluster, host: HostId) -> bool {
        // Peers notice when their keepalive probes fail, or when the machine is back.
        let silence = self.delay(Duration::from_secs(5));
        self.restart(cluster, host, End::Power(silence))
    }

    /// All storages lose power.
    fn blackout(&mut self, cluster: &mut Cluster) -> bool {
        let hosts = cluster.hosts(Role::Storage).into_iter();
        hosts.filter(|host| self.power_off(cluster, *host)).count() != 0
    }

    fn cut(&mut self, cluster: &mut Cluster, from: HostId, both: bool) -> bool {
        let to = self.any_host(cluster);
        if from == to {
            return false;
        }
        let end = cluster.world.now() + self.delay(Duration::from_secs(4));
        let (one, other) = (cluster.world.label(from), cluster.world.label(to));
        cluster.world.tell_story(&format!("{other} does not hear {one} (both ways: {both})"));
        cluster.world.cuts.cut(from, to);
        self.cures.push((end, Cure::Join(from, to)));
        if both {
            cluster.world.cuts.cut(to, from);
            self.cures.push((end, Cure::Join(to, from)));
        }
        true
    }

    fn isolate(&mut self, cluster: &mut Cluster, host: HostId) {
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

    /// Connection attempts to a host are refused, or hang.
    fn shut(&mut self, cluster: &mut Cluster, host: HostId, kind: Kind) {
        let label = cluster.world.label(host);
        cluster.world.tell_story(&format!("{label}: {}", kind.name()));
        match kind {
            Kind::RefuseConnects => cluster.world.refusing.insert(host),
            _ => cluster.world.hanging.insert(host),
        };
        let end = cluster.world.now() + self.delay(Duration::from_secs(4));
        self.cures.push((end, Cure::Connects(host)));
    }

    fn database(&mut self, cluster: &mut Cluster, kind: Kind) -> bool {
        let host = self.host(cluster, &[Role::Storage]);
        let now = cluster.world.now();
        let end = now + self.delay(Duration::from_secs(3));
        let label = cluster.world.label(host);
        cluster.world.tell_story(&format!("{label}: {}", kind.name()));
        let mut pace = self.plan.pace;
        match kind {
            Kind::SlowCommit => {
                pace.min_us *= 10;
                pace.max_us *= 100;
            }
            Kind::LateReads => {
                pace.late_one_in = 5 + self.prng.below(40) as u64;
                cluster.set_pace(host, pace);
                self.cures.push((end, Cure::Overload(host, self.prng.one_in(2))));
                return true;
            }
            Kind::FailingCommit => pace.fail_one_in = 1 + self.prng.below(20) as u64,
            Kind::DiskFull => pace.is_full = true,
            _ => {
                let running = cluster.lose_lane(host, end);
                cluster.disks_may_fail |= running;
                return running;
            }
        }
        cluster.disks_may_fail |= kind != Kind::SlowCommit;
        cluster.set_pace(host, pace);
        self.cures.push((end, Cure::Disk(host)));
        true
    }

    /// The slices of packs take up to half a second, as if databases were large: tables change, and
    /// cells are replicated, while they go on.
    fn slow_packs(&mut self, cluster: &mut Cluster) -> bool {
        let slice_max_us = 1 << (12 + self.prng.below(8));
        let end = cluster.world.now() + self.delay(Duration::from_secs(5));
        cluster.world.tell_story("packs are slow");
        for host in cluster.hosts(Role::Storage) {
            cluster.set_pace(host, Pace { slice_max_us, ..self.plan.pace });
            self.cures.push((end, Cure::Disk(host)));
        }
        true
    }

    /// A packet was sent.
    pub fn sent(&mut self, cluster: &mut Cluster, from: HostId, to: HostId, packet: &Packet) {
        let Some(Moment { name, at_sender }) = self.moment.filter(|m| m.name == packet.name())
        else {
            return;
        };
        self.moment = None;
        let host = if at_sender { from } else { to };
        if cluster.role(host) == Role::Operator {
            return;
        }
        self.swap(Kind::Moment);
        // Right then, or when others know of it as well, or not yet.
        let delay = match self.prng.one_in(2) {
            true => Duration::ZERO,
            false => Duration::from_micros(self.prng.below(LATER_MAX_US) as u64),
        };
        let blow = Blow { name, from, to, host };
        match delay.is_zero() {
            true => self.strike(cluster, blow),
            false => self.blows.push((cluster.world.now() + delay, blow)),
        }
        self.swap(Kind::Moment);
    }

    fn strike(&mut self, cluster: &mut Cluster, Blow { name, from, to, host }: Blow) {
        cluster.world.tell_story(&format!("moment: {name}"));
        match self.prng.below(6) {
            0 => cluster.world.reset_between(from, to),
            1 => drop(self.power_off(cluster, host)),
            2 => {
                let delay = self.delay(Duration::from_secs(2));
                cluster.world.pause(host, delay);
            }
            3 => drop(self.blackout(cluster)),
            _ => drop(self.restart(cluster, host, End::Kill)),
        }
    }

    /// Whether it matters which packets are sent.
    pub fn waits_for_packet(&self) -> bool {
        self.moment.is_some()
    }
}
