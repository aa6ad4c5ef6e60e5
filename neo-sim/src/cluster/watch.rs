// SPDX-License-Identifier: GPL-2.0-or-later
//! Looking at the nodes of a cluster: what they are doing, and whether it is right.

use std::time::Duration;

use neo_client::core::ClientCore;
use neo_common::node::Node;
use neo_common::protocol::{CellState, ClusterState};
use neo_storage::database::Reader as _;
use neo_storage::database::memory::Layer;

use super::{ClientProcess, Cluster, MasterProcess, Role, StorageProcess};
use crate::checkers::rest::{self, Contents};
use crate::model::{Checked, Violation, ensure};
use crate::network::HostId;

/// For how long nobody has anything to do when nothing is left to do: longer than a question and its
/// answer take in bad weather.
const QUIET: Duration = Duration::from_secs(5);

impl Cluster {
    /// The primary master that is in service, if any.
    pub fn serving_master(&mut self) -> Option<HostId> {
        self.hosts(Role::Master).into_iter().find(|host| {
            self.world
                .process::<MasterProcess>(*host)
                .is_some_and(|process| process.engine.app.cluster.state == ClusterState::Running)
        })
    }

    /// Storages that serve.
    pub fn serving_storages(&mut self) -> Vec<HostId> {
        let mut hosts = self.hosts(Role::Storage);
        hosts.retain(|host| {
            let process = self.world.process::<StorageProcess>(*host);
            process.is_some_and(|process| process.engine.app.is_operational())
        });
        hosts
    }

    /// Whether all storages wait for a new cluster to start.
    pub(super) fn is_startable(&mut self) -> bool {
        let storages = self.hosts(Role::Storage).len() - self.spares.len();
        self.hosts(Role::Master).into_iter().any(|host| {
            self.world.process::<MasterProcess>(host).is_some_and(|process| {
                let cluster = &process.engine.app.cluster;
                cluster.state == ClusterState::Recovering
                    && !cluster.pt.is_filled()
                    && cluster.storages().count() == storages
            })
        })
    }

    /// Whether the cluster serves, with all storages that have cells.
    pub fn is_serving(&mut self) -> bool {
        let Some(master) = self.serving_master() else { return false };
        let Some(process) = self.world.process::<MasterProcess>(master) else { return false };
        let cluster = &process.engine.app.cluster;
        // A storage without cell may be pending for ever.
        cluster.pt.table().nodes().all(|nid| cluster.ready().contains_key(&nid))
    }

    /// Whether there is nothing more to do in any storage: nothing is stored or packed, all cells
    /// are replicated, and nobody has a transaction. (Clients that lost power are noticed late.)
    pub fn is_idle(&mut self) -> bool {
        let storages = self.hosts(Role::Storage).into_iter().all(|host| {
            if self.spares.contains(&host) {
                return true;
            }
            let process = self.world.process::<StorageProcess>(host);
            process.is_some_and(|process| {
                let transactions = process.engine.app.transactions();
                process.executor.is_idle() && transactions.is_none_or(|t| t.is_empty())
            })
        });
        let master = self.serving_master();
        let master = master.and_then(|host| self.world.process::<MasterProcess>(host));
        storages
            && master.is_none_or(|master| {
                let cluster = &master.engine.app.cluster;
                let table = cluster.pt.table();
                cluster.tm.iter().next().is_none()
                    && table.nodes().all(|nid| table.outdated_of(nid).next().is_none())
            })
    }

    /// Lets time pass until the cluster serves and nothing is left to do, at most until then. Returns
    /// whether there is still something to do.
    ///
    /// A storage that waits for an answer looks idle, whatever it does next: it asks which pack comes
    /// next, for example, once a cell is up-to-date. So nobody must have anything to do for a while.
    pub fn run_until_idle(&mut self, until: Duration) -> bool {
        let mut busy_at = self.world.now();
        self.run_while(until, |cluster| {
            let now = cluster.world.now();
            if !cluster.is_serving() || !cluster.is_idle() {
                busy_at = now;
            }
            now < busy_at + QUIET
        })
    }

    /// Whether storages have a later partition table than a master: another one has replaced it.
    pub(super) fn is_replaced(&mut self, host: HostId) -> bool {
        let Some(process) = self.world.process::<MasterProcess>(host) else { return false };
        let own = process.engine.app.cluster.pt.table().ptid();
        self.disks.values().any(|disk| {
            let config = disk.reader(Layer::Latest).config();
            config.is_ok_and(|config| config.ptid > own)
        })
    }

    /// What all nodes are doing, for who looks for the cause of a problem.
    pub fn describe(&mut self) -> String {
        let mut lines = Vec::new();
        for host in (0..self.roles.len()).map(HostId) {
            let label = self.world.label(host);
            let what = if let Some(process) = self.world.process::<MasterProcess>(host) {
                let master = &process.engine.app;
                let nodes: Vec<String> = master.cluster.nm.iter().map(Node::to_string).collect();
                format!("{} {} {nodes:?}", master.cluster.state, master.phase.name())
            } else if let Some(process) = self.world.process::<StorageProcess>(host) {
                let app = &process.engine.app;
                let transactions =
                    app.transactions().map(neo_storage::transactions::Transactions::dump);
                format!("serves={} {transactions:?}", app.is_operational())
            } else if let Some(process) = self.world.process::<ClientProcess>(host) {
                let app = &process.engine.app;
                let what = if app.pending_count() == 0 { String::new() } else { waiting(app) };
                format!("pending={} {what}", app.pending_count())
            } else if self.world.is_running(host) {
                "runs".into()
            } else {
                "is down".into()
            };
            lines.push(format!("\n  {label}: {what}"));
        }
        lines.concat()
    }

    /// Checks the databases, and what processes still hold.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_rest(&mut self) -> Checked {
        let Some(master) = self.serving_master() else {
            return Err(Violation("the cluster does not serve".into()));
        };
        let process = self.world.process::<MasterProcess>(master).expect("it serves");
        let cluster = &process.engine.app.cluster;
        let table = cluster.pt.table().clone();
        let open: Vec<_> = cluster.tm.iter().map(|(ttid, _)| ttid).collect();
        ensure!(open.is_empty(), "the master has open transactions: {open:?}");
        let mut all = Vec::new();
        for host in self.hosts(Role::Storage) {
            let label = self.world.label(host);
            let Some(process) = self.world.process::<StorageProcess>(host) else { continue };
            let Some(nid) = process.engine.app.nid() else { continue };
            let Some(transactions) = process.engine.app.transactions() else {
                // A storage that was never used may have the id of another one.
                let is_known = self.hosts_of.get(&(master, nid)) == Some(&host);
                ensure!(!is_known || !table.has_cells(nid), "{label} does not serve");
                continue;
            };
            transactions.check_invariants();
            let lines = transactions.dump();
            ensure!(transactions.is_empty(), "{label} still has {lines:#?}");
            let database = process.executor.database();
            let contents = Contents::read(database, nid, table.readable_of(nid));
            all.push(contents.map_err(|error| Violation(format!("{label}: {error}")))?);
        }
        for host in self.hosts(Role::Client) {
            let label = self.world.label(host);
            let Some(process) = self.world.process::<ClientProcess>(host) else { continue };
            let pending = process.engine.app.pending_count();
            ensure!(pending == 0, "{label} still has {pending} operations");
        }
        rest::check(&mut self.scene.get().model, table.partitions(), &all, true)
    }

    /// Checks that each partition has as many cells as are wanted, all of them up-to-date, once
    /// somebody asked for it and nothing happens any more.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_balance(&mut self) -> Checked {
        let master = self.serving_master().ok_or_else(|| Violation("no master serves".into()))?;
        let process = self.world.process::<MasterProcess>(master).expect("it serves");
        let cluster = &process.engine.app.cluster;
        let table = cluster.pt.table();
        // Those that were not added have no cell.
        let running = cluster.nm.storages().filter(|node| node.is_running()).count();
        let wanted = running.min(table.replicas() as usize + 1);
        for partition in 0..table.partitions() {
            let cells = table.cells(partition);
            ensure!(
                cells.len() == wanted && cells.iter().all(|cell| cell.state == CellState::UpToDate),
                "after a tweak, partition {partition} has {cells:?}, wanted are {wanted} cells"
            );
        }
        Ok(())
    }

    /// Checks again all that was seen, now that all is known.
    pub fn check_history(&mut self) {
        let mut scene = self.scene.get();
        let scene = &mut *scene;
        let mut checks: Vec<Checked> = Vec::new();
        for read in &scene.reads {
            checks.push(read.check(&mut scene.model, true));
        }
        checks.extend(scene.histories.iter().map(|history| history.check(&scene.model)));
        checks.extend(scene.walks.iter().map(|walk| walk.check(&scene.model)));
        checks.extend(scene.oid_walks.iter().map(|walk| walk.check(&scene.model)));
        let told = scene.told.iter().chain(self.applications.values().map(|a| &a.told));
        checks.extend(told.map(|told| told.check(&scene.model)));
        for checked in checks {
            if let Err(violation) = checked {
                scene.violations.push(violation);
            }
        }
    }
}

/// What a client waits for: loads, operations and transactions, without its cache and its nodes.
fn waiting(app: &ClientCore) -> String {
    let text = format!("{app:?}");
    let from = text.find("loads: Loads").unwrap_or(0);
    let mut text = text[from..].to_owned();
    text.truncate(text.char_indices().nth(3000).map_or(text.len(), |(end, _)| end));
    text
}
