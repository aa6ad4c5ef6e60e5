// SPDX-License-Identifier: GPL-2.0-or-later
//! A database that is cut back to an older state, as a phase of its own.
//!
//! The manual says to stop applications before, and that all storages have to be there. What was
//! seen before is checked before: it speaks of transactions that never happened, afterwards. Then
//! applications work on what is left.

use std::time::Duration;

use neo_common::prng::Prng;
use neo_common::types::Tid;
use neo_ctl::Command;

use super::{END_MAX, RECOVERY_MAX, end_work, recover, rest};
use crate::cluster::{Cluster, End, Insist, Role};
use crate::model::Violation;

/// How long applications work on what is left.
const WORK: Duration = Duration::from_secs(3);

/// Cuts the database back, and goes on.
pub(super) fn truncate(cluster: &mut Cluster, prng: &mut Prng) -> Result<(), Violation> {
    let Some(tid) = choose(cluster, prng) else { return Ok(()) };
    for host in cluster.hosts(Role::Client) {
        let end = if prng.one_in(2) { End::Terminate } else { End::Kill };
        cluster.end(host, end);
        // An application that is closed does not come back by itself.
        cluster.keep_down(host);
    }
    cluster.check_history();
    let since = cluster.world.now();
    cluster.run_until(since + Duration::from_secs(1));
    // The admin may still look for the master, or have found one that does not know yet that another one
    // is the primary.
    cluster.command(Command::PrintIds, Insist::Yes);
    cluster.command(Command::Truncate(tid), Insist::Yes);
    let until = cluster.world.now() + END_MAX;
    if cluster.run_while(until, |cluster| cluster.is_operating()) {
        return Err(Violation("the operator waits for ever".into()));
    }
    if !cluster.is_right() {
        return Ok(());
    }
    if cluster.last_command().is_none_or(|exit| exit.status != 0) {
        let text = cluster.last_command().map(|exit| exit.stderr.clone() + &exit.stdout);
        return Err(Violation(format!("the database cannot be cut back to {tid}: {text:?}")));
    }
    cluster.cut_back(tid);
    if prng.one_in(3) {
        // It truncates when it is back.
        let hosts = cluster.hosts(Role::Storage);
        let host = *prng.choose(&hosts).expect("there is a storage");
        let pause = Duration::from_micros(prng.below(20_000) as u64);
        cluster.run_until(cluster.world.now() + pause);
        cluster.restart(host, End::Kill, Duration::from_millis(500));
    }
    // It stops serving, then serves again.
    let until = cluster.world.now() + Duration::from_secs(1);
    cluster.run_while(until, |cluster| cluster.serving_master().is_some());
    let until = cluster.world.now() + RECOVERY_MAX;
    if cluster.run_while(until, |cluster| !cluster.is_serving()) {
        return Err(Violation(format!(
            "the cluster does not serve after it was cut back to {tid}: {}",
            cluster.describe()
        )));
    }
    if !cluster.is_right() {
        return Ok(());
    }
    rest(cluster)?;
    cluster.start_workload();
    cluster.start_all();
    cluster.run_until(cluster.world.now() + WORK);
    recover(cluster)?;
    end_work(cluster)?;
    rest(cluster)
}

/// A transaction that can be the last one: it comes after those that made the objects that
/// applications work on, and no pack comes after it.
fn choose(cluster: &mut Cluster, prng: &mut Prng) -> Option<Tid> {
    if cluster.serving_master().is_none() || cluster.is_operating() {
        return None;
    }
    let first = cluster.scene.get().populated_by()?;
    let scene = cluster.scene.get();
    let last_pack = scene.model.last_pack().unwrap_or(Tid::ZERO);
    let tids: Vec<Tid> =
        scene.model.committed_tids().filter(|tid| *tid >= first && *tid > last_pack).collect();
    let (_, choice) = tids.split_last()?;
    prng.choose(choice).copied()
}
