// SPDX-License-Identifier: GPL-2.0-or-later
//! One seed, from start to verdict.
//!
//! ```text
//!   start, populate | work, with faults | no more faults: serve again   | end of work | rest
//!                                       | within a bound, all calls are |  checks of databases
//!                                       | answered                      |  and of all that was seen
//! ```

mod truncate;

use std::collections::BTreeMap;
use std::time::Duration;

use neo_common::prng::Prng;
use neo_common::protocol::ClusterState;
use neo_ctl::Command;
use neo_ctl::commands::Storages;
use neo_storage::database::memory;

use crate::cluster::{Cluster, End, Insist, Options, Order, Role, Step};
use crate::faults::{Faults, Kind, Kinds, Level, Plan};
use crate::model::Violation;
use crate::workload;
use crate::workload::scene::Counts;
use crate::world::START;

/// How often the operator looks for what no node can mend by itself, as long as there is no service.
const REPAIR_EVERY: Duration = Duration::from_secs(20);
/// How long a cluster may take to serve again once nothing goes wrong any more. Longer than a
/// connection attempt that hangs, twice, and than the silence of a host without power.
const RECOVERY_MAX: Duration = Duration::from_secs(90);

/// How long a new cluster may take to start. Connection attempts may hang several times.
const START_MAX: Duration = Duration::from_secs(150);

/// How long applications may take to end what they are doing.
const END_MAX: Duration = Duration::from_secs(60);

/// How long background tasks may take: a machine without power is noticed late, and then storages
/// replicate what they missed.
const REST_MAX: Duration = Duration::from_secs(60);

/// What a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What all is drawn from.
    pub seed: u64,
    /// How many faults.
    pub level: Level,
    /// How long faults last.
    pub duration: Duration,
    /// Prints the story.
    pub trace: bool,
    /// Copies of each partition beside the first one, at most; `None`: drawn.
    pub replicas: Option<u32>,
    /// Clients, at most; `None`: drawn.
    pub clients: Option<usize>,
    /// Kinds of faults that there may be.
    pub kinds: Kinds,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong; empty if all is right.
    pub violations: Vec<Violation>,
    /// Equal for two runs of the same seed.
    pub fingerprint: u64,
    /// Simulated time.
    pub time: Duration,
    /// Events of the world.
    pub events: u64,
    /// Packets that were sent.
    pub packets: u64,
    /// Transactions that were committed.
    pub commits: u64,
    /// What applications did and which errors they got.
    pub counts: Counts,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
}

/// How the cluster of a seed is made, and what goes wrong in it.
pub fn draw(settings: &Settings) -> (Options, Plan) {
    let mut prng = Prng::new(settings.seed);
    let plan = Plan::draw(&mut prng, settings.level, settings.kinds);
    let storages = 1 + prng.below(4);
    let spares = prng.below(3);
    let replicas = prng.below(3) as u32;
    let options = Options {
        masters: match settings.level {
            Level::Swarm => 1 + prng.below(6).saturating_sub(3),
            Level::Off | Level::Lite => 1,
        },
        storages,
        spares,
        // Those without cell would be of no use.
        partitions: (storages + prng.below(12)) as u32,
        replicas: settings.replicas.unwrap_or(replicas).min(storages as u32 - 1),
        clients: 1 + prng.below(3),
        // With spare storages, a master that restarts could take them for a new cluster.
        autostart: (prng.one_in(2) && spares == 0).then_some(storages as u32),
        pace: plan.pace,
        database: memory::Options {
            dedup: prng.one_in(2),
            visible_delay: match prng.one_in(3) {
                true => Duration::from_millis(prng.below(1000) as u64),
                false => Duration::ZERO,
            },
        },
        cache_bytes: [1000, 10_000, 1 << 20][prng.below(3)],
        workload: match settings.level {
            Level::Off if prng.one_in(2) => workload::Options::MIX,
            Level::Off | Level::Lite | Level::Swarm => workload::Options::draw(&mut prng),
        },
    };
    let mut options = options;
    if options.workload.is_crowded {
        options.clients += prng.below(3);
    }
    options.clients = options.clients.min(settings.clients.unwrap_or(usize::MAX)).max(1);
    (options, plan)
}

/// Runs a seed.
pub fn run(settings: &Settings) -> Report {
    let (options, plan) = draw(settings);
    let mut cluster = Cluster::new(settings.seed, options);
    cluster.world.trace = settings.trace;
    if settings.trace {
        println!("{:#?}\n{plan:#?}", cluster.options);
    }
    cluster.scene.get().strict = settings.level == Level::Off;
    let mut faults = Faults::new(settings.seed, plan, &mut cluster);
    let mut prng = Prng::new(settings.seed ^ 0x0de7);
    if let Err(violation) = phases(&mut cluster, &mut faults, &mut prng, settings) {
        cluster.scene.get().violations.push(violation);
    }
    let mut report = Report {
        fingerprint: cluster.world.fingerprint(),
        time: cluster.world.now() - START,
        events: cluster.world.events_count(),
        packets: cluster.world.packets_count(),
        commits: cluster.commits_count(),
        faults: faults.figures(&cluster),
        ..Report::default()
    };
    let mut scene = cluster.scene.get();
    report.violations = std::mem::take(&mut scene.violations);
    report.counts = std::mem::take(&mut scene.counts);
    report
}

/// Runs a seed twice. That both runs are not the same is a violation.
pub fn run_twice(settings: &Settings) -> Report {
    let mut report = run(settings);
    if run(settings).fingerprint != report.fingerprint {
        report.violations.push(Violation("two runs of this seed differ".into()));
    }
    report
}

fn phases(
    cluster: &mut Cluster,
    faults: &mut Faults,
    prng: &mut Prng,
    settings: &Settings,
) -> Result<(), Violation> {
    start(cluster, prng);
    // A new cluster that is interrupted while it is made is seldom of interest.
    if !prng.one_in(8) {
        let until = START + START_MAX;
        if cluster.run_while(until, |cluster| !cluster.is_serving()) {
            return Err(Violation(format!("the cluster does not start: {}", cluster.describe())));
        }
        faults.begin(cluster);
    }
    // A crowd does a lot in little time.
    let divisor = if cluster.options.workload.is_crowded { 4 } else { 1 };
    let end = cluster.world.now() + settings.duration / divisor;
    with_faults(cluster, faults, end);
    faults.stop(cluster);
    if let Err(violation) = recover(cluster) {
        if cluster.has_served() {
            return Err(violation);
        }
        // Some storages have a partition table with others that never got it. There is no data yet:
        // the operator erases everything and tries again.
        cluster.world.tell_story("all databases are erased");
        cluster.erase();
        recover(cluster)?;
    }
    end_work(cluster)?;
    rest(cluster)?;
    let conditions = faults.conditions();
    if conditions.has(Kind::TweakAtEnd) {
        tweak(cluster)?;
    }
    if conditions.has(Kind::Truncate) {
        truncate::truncate(cluster, prng)?;
    }
    // What is on disk is enough.
    if conditions.has(Kind::RestartAtEnd) {
        restart(cluster, prng)?;
        recover(cluster)?;
        rest(cluster)?;
    }
    cluster.check_history();
    Ok(())
}

/// Moves cells as the operator does who wants everything to be in order again.
fn tweak(cluster: &mut Cluster) -> Result<(), Violation> {
    try_tweak(cluster)?;
    // One that was away when all were added comes back as one that is not used.
    if cluster.is_right() && cluster.check_balance().is_err() {
        try_tweak(cluster)?;
    }
    match cluster.is_right() {
        true => cluster.check_balance(),
        false => Ok(()),
    }
}

fn try_tweak(cluster: &mut Cluster) -> Result<(), Violation> {
    // Storages that had no cell yet when a master was restarted are not used before they are added again.
    let add = Order::Plain(Command::Add(Storages::All));
    let tweak = Order::Tweak { dry_run: false, hosts: Vec::new() };
    cluster.instruct([add, tweak].map(|order| Step::Order(order, Insist::Yes)));
    let until = cluster.world.now() + END_MAX;
    if cluster.run_while(until, |cluster| cluster.is_operating()) {
        return Err(Violation(format!("cells cannot be moved: {:?}", cluster.last_command())));
    }
    rest(cluster)
}

fn start(cluster: &mut Cluster, prng: &mut Prng) {
    let mut hosts: Vec<_> = [Role::Master, Role::Storage, Role::Admin, Role::Client]
        .into_iter()
        .flat_map(|role| cluster.hosts(role))
        .collect();
    hosts.retain(|host| !cluster.spares().contains(host));
    prng.shuffle(&mut hosts);
    for host in hosts {
        cluster.start(host);
        let pause = Duration::from_micros(prng.below(100_000) as u64);
        cluster.run_until(cluster.world.now() + pause);
    }
    if cluster.options.autostart.is_none() {
        cluster.start_by_operator();
    }
    cluster.start_workload();
}

fn with_faults(cluster: &mut Cluster, faults: &mut Faults, end: Duration) {
    while cluster.world.now() < end && cluster.is_right() {
        let next = faults.next_at().map_or(end, |at| at.min(end));
        cluster.run_with(next, faults);
        faults.due(cluster);
    }
}

/// Waits until the cluster serves, with everybody.
fn recover(cluster: &mut Cluster) -> Result<(), Violation> {
    let since = cluster.world.now();
    let mut repair_at = since + REPAIR_EVERY;
    let timed_out = cluster.run_while(since + RECOVERY_MAX, |cluster| {
        cluster.drop_lost();
        !is_repaired(cluster, &mut repair_at)
    });
    if timed_out {
        return Err(Violation(format!(
            "the cluster does not serve {RECOVERY_MAX:?} after the end of all faults: {}",
            cluster.describe()
        )));
    }
    // Those that lost patience for ever are not served.
    let commits = cluster.commits_count();
    cluster.run_until(cluster.world.now() + Duration::from_secs(2));
    let since = cluster.world.now();
    let mut repair_at = since + REPAIR_EVERY;
    let timed_out = cluster.run_while(since + RECOVERY_MAX, |cluster| {
        // It may have been interrupted again by what was under way.
        is_repaired(cluster, &mut repair_at);
        cluster.is_working() && cluster.writes() && cluster.commits_count() == commits
    });
    if timed_out && cluster.is_working() && cluster.writes() {
        return Err(Violation(format!(
            "no transaction is committed {RECOVERY_MAX:?} after the cluster serves again: {}",
            cluster.describe()
        )));
    }
    Ok(())
}

/// Whether the cluster serves. If it does not for long, the operator does what the manual says.
fn is_repaired(cluster: &mut Cluster, at: &mut Duration) -> bool {
    let is_serving = cluster.is_serving();
    if !is_serving && cluster.world.now() >= *at {
        *at += REPAIR_EVERY;
        cluster.forget_orders();
        cluster.erase_namesake();
    }
    is_serving
}

/// Lets applications come to an end.
fn end_work(cluster: &mut Cluster) -> Result<(), Violation> {
    cluster.stop_workload();
    let until = cluster.world.now() + END_MAX;
    if cluster.run_while(until, |cluster| cluster.busy_threads() != 0) {
        return Err(Violation(format!(
            "{} threads of applications do not come to an end: {}",
            cluster.busy_threads(),
            cluster.describe()
        )));
    }
    Ok(())
}

/// Lets background tasks come to an end, and looks at all databases.
fn rest(cluster: &mut Cluster) -> Result<(), Violation> {
    let until = cluster.world.now() + REST_MAX;
    if cluster.run_until_idle(until.min(cluster.world.now() + REPAIR_EVERY)) {
        // What was accepted is lost if the cluster was interrupted before those that are needed stored it.
        cluster.forget_orders();
        cluster.drop_lost();
    }
    if cluster.run_until_idle(until) {
        return Err(Violation(format!("storages are never idle: {}", cluster.describe())));
    }
    if !cluster.is_right() {
        return Ok(());
    }
    cluster.check_rest()
}

/// Stops everything and starts it again, in one of several ways.
fn restart(cluster: &mut Cluster, prng: &mut Prng) -> Result<(), Violation> {
    let way = prng.below(3);
    cluster.world.tell_story("everything is stopped and started again");
    cluster.is_closing = true;
    if way == 0 {
        cluster.command(Command::SetCluster(ClusterState::Stopping), Insist::Yes);
        let until = cluster.world.now() + END_MAX;
        // Other masters, and storages that are not there, are not told to stop.
        let mut expected = cluster.serving_storages();
        expected.extend(cluster.serving_master());
        let timed_out =
            cluster.run_while(until, |c| expected.iter().any(|host| c.world.is_running(*host)));
        if timed_out {
            return Err(Violation(format!("the cluster does not stop: {}", cluster.describe())));
        }
        cluster.dismiss_operator();
    }
    for role in [Role::Master, Role::Storage, Role::Admin, Role::Client] {
        for host in cluster.hosts(role) {
            let end = if way == 1 { End::Kill } else { End::Power(Duration::from_secs(1)) };
            cluster.end(host, end);
        }
    }
    cluster.run_until(cluster.world.now() + Duration::from_secs(2));
    cluster.is_closing = false;
    cluster.start_all();
    Ok(())
}
