// SPDX-License-Identifier: GPL-2.0-or-later
//! Processes of a cluster: how they are started, ended, and started again.

use std::collections::BTreeMap;
use std::time::Duration;

use neo_admin::Admin;
use neo_client::core::ClientCore;
use neo_common::engine::{Engine, Signal};
use neo_common::types::{NodeId, Ptid};
use neo_master::Master;
use neo_storage::Storage;
use neo_storage::database::memory::{Crash, Disk};

use super::{Cluster, NAME, Options, Role, StorageProcess};
use crate::disk::{self, Pace};
use crate::model::Violation;
use crate::network::HostId;
use crate::process::{CoreProcess, Simple};

/// How a process ends that does not want to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// SIGKILL.
    Kill,
    /// The machine loses power; its peers notice so much later.
    Power(Duration),
    /// SIGTERM, or the application closes.
    Terminate,
}

impl Cluster {
    /// Starts the process of a host.
    pub fn start(&mut self, host: HostId) {
        self.restarts.retain(|(_, other)| *other != host);
        if self.world.is_running(host) {
            return;
        }
        match self.role(host) {
            Role::Master => self.start_master(host),
            Role::Storage => self.start_storage(host),
            Role::Admin => self.start_admin(host),
            Role::Client => {
                self.start_client(host);
                if self.is_working {
                    self.start_application(host);
                }
            }
            Role::Operator => {}
        }
    }

    fn masters(&self) -> Vec<std::net::SocketAddr> {
        self.hosts(Role::Master).into_iter().map(|host| self.world.address(host)).collect()
    }

    fn start_master(&mut self, host: HostId) {
        let options = neo_master::Options {
            cluster: NAME.into(),
            bind: self.world.address(host),
            masters: self.masters(),
            autostart: self.options.autostart,
            nid: None,
            partitions: self.options.partitions,
            replicas: self.options.replicas,
            upstream: None,
            backup: false,
        };
        let master = Master::new(options).expect("the options make sense");
        let engine = Engine::new(master, self.prng.next_u64());
        let process = CoreProcess { engine, executor: Simple::new(|_| Some(())) };
        self.world.start(host, Box::new(process));
    }

    fn start_storage(&mut self, host: HostId) {
        let disk = &self.disks[&host];
        // Whatever the last process did not commit is gone with it.
        disk.crash(Crash::Process);
        let config = neo_storage::Config {
            cluster: NAME.into(),
            masters: self.masters(),
            address: self.world.address(host),
            nid: None,
            devpath: vec![format!("host{}", host.0)],
            new_nid: false,
            disable_pack: false,
            disable_drop_partitions: false,
            save_masters: false,
        };
        let Options { database, pace, .. } = self.options;
        let pace = self.paces.get(&host).copied().unwrap_or(pace);
        let opened = disk::open(disk, NAME, database, pace, self.prng.fork());
        let (stored, lanes) = opened.expect("a simulated disk can be opened");
        let storage = Storage::new(config, stored).expect("the stored table is valid");
        let engine = Engine::new(storage, self.prng.next_u64());
        self.world.start(host, Box::new(CoreProcess { engine, executor: lanes }));
    }

    fn start_admin(&mut self, host: HostId) {
        let config = neo_admin::Config {
            cluster: NAME.into(),
            masters: self.masters(),
            address: self.world.address(host),
            nid: None,
            backups: Vec::new(),
            max_lag: 0.0,
            mail: None,
            save_masters: false,
        };
        let engine = Engine::new(Admin::new(config), self.prng.next_u64());
        let process = CoreProcess { engine, executor: Simple::<Admin>::new(|_| None) };
        self.world.start(host, Box::new(process));
    }

    fn start_client(&mut self, host: HostId) {
        let mut options = neo_client::Options::new(NAME, self.masters());
        options.cache_bytes = self.options.cache_bytes;
        let engine = Engine::new(ClientCore::new(options), self.prng.next_u64());
        let process = CoreProcess { engine, executor: Simple::<ClientCore>::new(|_| None) };
        self.open_application(host);
        self.world.start(host, Box::new(process));
        self.pump(host);
    }

    /// Ends the process of a host.
    pub fn end(&mut self, host: HostId, end: End) {
        if !self.world.is_running(host) {
            return;
        }
        match (self.role(host), end) {
            (Role::Client, End::Terminate) => self.close_client(host),
            (_, End::Terminate) => {
                self.world.signal(host, Signal::Terminate);
                return;
            }
            _ => {}
        }
        if let Some(process) = self.world.process::<StorageProcess>(host) {
            process.executor.die();
        }
        match end {
            End::Power(silence) => {
                self.world.power_off(host, silence);
                if let Some(disk) = self.disks.get(&host) {
                    disk.crash(Crash::Power);
                }
            }
            End::Kill | End::Terminate => self.world.crash(host),
        }
        self.application_gone(host);
    }

    /// Ends the process of a host, and starts it again later.
    pub fn restart(&mut self, host: HostId, end: End, delay: Duration) {
        if self.spares.contains(&host) {
            return;
        }
        self.end(host, end);
        if !self.world.is_running(host) {
            self.restarts.insert((self.world.now() + delay, host));
        }
    }

    /// A process ended by itself.
    pub(super) fn ended(&mut self, host: HostId) {
        let role = self.role(host);
        let status = self.world.exit_status(host);
        self.application_gone(host);
        if role == Role::Operator || self.is_closing {
            return;
        }
        let expected = match (role, status) {
            (_, Some(neo_common::engine::EXIT_BY_SIGNAL)) => true,
            (Role::Storage, Some(1)) => self.disks_may_fail,
            // Somebody said that it is DOWN.
            (Role::Storage | Role::Master | Role::Admin, Some(0)) => {
                let nid = self.nids.get(&host);
                self.may_exit.contains(&host) || nid.is_some_and(|nid| self.killed.contains(nid))
            }
            _ => false,
        };
        if !expected {
            let text = format!("{} exits with status {status:?}", self.world.label(host));
            self.scene.get().violations.push(Violation(text));
        }
        let delay = Duration::from_micros(100_000 + self.prng.below(2_000_000) as u64);
        self.restarts.insert((self.world.now() + delay, host));
    }

    /// What ends on a host is not started again by itself.
    pub fn keep_down(&mut self, host: HostId) {
        self.kept_down.insert(host);
    }

    /// Starts again all that is down, but storages that were never started.
    pub fn start_all(&mut self) {
        self.kept_down.clear();
        for host in (0..self.roles.len()).map(HostId) {
            if !self.world.is_running(host) && !self.spares.contains(&host) {
                self.start(host);
            }
        }
    }

    /// Erases all databases, and starts everything again.
    pub fn erase(&mut self) {
        for host in (0..self.roles.len()).map(HostId) {
            self.end(host, End::Kill);
        }
        for disk in self.disks.values_mut() {
            *disk = Disk::new();
        }
        self.start_all();
    }

    /// Lets the operator erase the database of a storage that has the id of another one, if there is one: a
    /// master gives ids that storages store, and if it is restarted while one that has no cell is down, it
    /// gives the same again. The one that has cells, or else the later table, is kept.
    pub fn erase_namesake(&mut self) {
        let mut known: BTreeMap<NodeId, (bool, Option<Ptid>, HostId)> = BTreeMap::new();
        for host in self.hosts(Role::Storage) {
            let Some(process) = self.world.process::<StorageProcess>(host) else { continue };
            let storage = &process.engine.app;
            let Some(nid) = storage.nid() else { continue };
            let entry = (storage.table().has_cells(nid), storage.table().ptid(), host);
            let Some(other) = known.insert(nid, entry) else { continue };
            let (_, _, erased) = entry.min(other);
            self.scene.get().count("storages erased that had the id of another one");
            self.world
                .tell_story(&format!("the database of {} is erased", self.world.label(erased)));
            self.end(erased, End::Kill);
            self.disks.insert(erased, Disk::new());
            return self.start(erased);
        }
    }

    /// Changes how the disk of a storage is, from now on.
    pub fn set_pace(&mut self, host: HostId, pace: Pace) {
        self.paces.insert(host, pace);
        if let Some(process) = self.world.process::<StorageProcess>(host) {
            process.executor.pace = pace;
        }
    }

    /// A storage is not connected to its database until then. Returns whether it runs.
    pub fn lose_lane(&mut self, host: HostId, until: Duration) -> bool {
        let lost = self.world.with::<StorageProcess, _>(host, |process, now| {
            process.executor.lose(now.monotonic, until);
        });
        lost.is_some()
    }
}
