// SPDX-License-Identifier: GPL-2.0-or-later
//! What the operator does while applications work and things go wrong.
//!
//! Each action is a list of steps ([`Step`]), as the manual of operations has them. Any of them may
//! be refused, or fail half-way: the operator goes on with the next one.

use std::time::Duration;

use neo_common::protocol::ClusterState;
use neo_common::types::Tid;
use neo_ctl::Command;
use neo_ctl::commands::{CheckedPartitions, Storages};

use super::{Faults, Kind};
use crate::cluster::{Cluster, Insist, Order, Role, Step, Until};
use crate::network::HostId;

/// Replicas that the operator asks for, at most.
const REPLICAS_MAX: usize = 2;

const fn give(order: Order) -> Step {
    Step::Order(order, Insist::No)
}

impl Faults {
    /// Lets the operator do something, if he is not busy.
    pub(super) fn order(&mut self, cluster: &mut Cluster, kind: Kind) -> bool {
        if cluster.is_operating() {
            return false;
        }
        let steps = match kind {
            Kind::AddStorage => self.add(cluster),
            Kind::DropStorage => self.drop_storage(cluster),
            Kind::SetReplicas => {
                let replicas = self.prng.below(REPLICAS_MAX + 1) as u32;
                let mut steps = vec![give(Order::Plain(Command::SetReplicas(replicas)))];
                self.maybe_tweak(&mut steps);
                steps
            }
            Kind::Tweak => {
                let hosts = match self.prng.one_in(3) {
                    true => vec![self.host(cluster, &[Role::Storage])],
                    false => Vec::new(),
                };
                vec![give(Order::Tweak { dry_run: self.prng.one_in(5), hosts })]
            }
            Kind::KillNode => {
                let host = self.host(cluster, &[Role::Master, Role::Storage]);
                vec![give(Order::Kill(host))]
            }
            Kind::StopCluster => self.stop_cluster(cluster),
            _ => vec![give(Order::Plain(self.look()))],
        };
        cluster.instruct(steps);
        true
    }

    fn maybe_tweak(&mut self, steps: &mut Vec<Step>) {
        if !self.prng.one_in(3) {
            steps.push(give(Order::Tweak { dry_run: false, hosts: Vec::new() }));
        }
    }

    /// A new storage if there is one, otherwise any that is not used.
    fn add(&mut self, cluster: &Cluster) -> Vec<Step> {
        let mut steps = match self.prng.choose(&cluster.spares()).copied() {
            Some(host) => vec![
                Step::Start(host),
                Step::Wait(Until::Pending(host), Duration::from_secs(20)),
                give(match self.prng.one_in(2) {
                    true => Order::Add(host),
                    false => Order::Plain(Command::Add(Storages::All)),
                }),
            ],
            None => vec![give(Order::Plain(Command::Add(Storages::All)))],
        };
        self.maybe_tweak(&mut steps);
        steps
    }

    /// Its process must be stopped before, and nobody starts it again before it is dropped. Often, its
    /// cells are copied to others before.
    fn drop_storage(&mut self, cluster: &Cluster) -> Vec<Step> {
        let host = self.host(cluster, &[Role::Storage]);
        let mut steps = Vec::new();
        if !self.prng.one_in(4) {
            steps.push(give(Order::Tweak { dry_run: false, hosts: vec![host] }));
            steps.push(Step::Wait(Until::Copied, Duration::from_secs(10)));
        }
        steps.extend([
            Step::KeepDown(vec![host]),
            give(Order::Kill(host)),
            Step::Wait(Until::Down(vec![host]), Duration::from_secs(2)),
            give(Order::Drop(host)),
        ]);
        if self.prng.one_in(2) {
            // The others get what it had, or not, before it is back.
            steps.push(Step::Wait(Until::Never, Duration::from_secs(2)));
        }
        steps.push(Step::Start(host));
        steps
    }

    fn look(&mut self) -> Command {
        let all = CheckedPartitions::All(None);
        match self.prng.below(9) {
            0 => Command::PrintCluster,
            1 => Command::PrintPrimary,
            2 => Command::PrintNode(None),
            3 => Command::PrintPt { first: 0, last: 0, nid: None },
            4 => Command::PrintIds,
            5 => Command::PrintSummary,
            6 => Command::Check { partitions: all, min_tid: Tid::ZERO, max_tid: None },
            7 => {
                let dry_run = self.prng.one_in(2);
                Command::PruneOrphan { dry_run, storages: Storages::All }
            }
            _ => Command::FlushLog,
        }
    }

    /// Everything is stopped by a command. What ends is started again by its supervisor, or, if the
    /// operator told it not to, once all is down.
    fn stop_cluster(&mut self, cluster: &Cluster) -> Vec<Step> {
        let stop = give(Order::Plain(Command::SetCluster(ClusterState::Stopping)));
        if self.prng.one_in(2) {
            return vec![stop];
        }
        let mut hosts: Vec<HostId> = cluster.hosts(Role::Storage);
        hosts.extend(cluster.hosts(Role::Master));
        hosts.retain(|host| !cluster.spares().contains(host));
        self.prng.shuffle(&mut hosts);
        let mut steps = vec![
            Step::KeepDown(hosts.clone()),
            stop,
            Step::Wait(Until::Down(hosts.clone()), Duration::from_secs(3)),
        ];
        for host in hosts {
            let pause = Duration::from_millis(self.prng.below(200) as u64);
            steps.extend([Step::Wait(Until::Never, pause), Step::Start(host)]);
        }
        steps
    }
}
