// SPDX-License-Identifier: GPL-2.0-or-later
//! What is measured: clusters that are started for it, or one that runs.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use neo_client::{Client, Compression, Error, Options};
use neo_common::config::bench::RunningCluster;
use neo_common::types::Tid;
use tempfile::TempDir;

use super::mariadb::Server;
use super::process;
use crate::migrate::Failure;

/// How long a cluster may take to be usable.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to look for a cluster that is said to run.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Lines that are shown of what a node that ended too early said.
const LINES_SHOWN: usize = 5;

/// A process of a node. Those with the same name are counted together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Usually its kind.
    pub name: String,
    /// Its number.
    pub pid: u32,
}

/// A cluster to measure.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name in the table.
    pub label: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Its masters.
    pub masters: Vec<SocketAddr>,
    /// Processes that are known.
    pub nodes: Vec<Node>,
}

impl Target {
    /// A cluster that runs already.
    ///
    /// # Errors
    /// It can not be reached, has data although nobody said that it may be written to, or a process
    /// does not exist.
    pub fn running(options: &RunningCluster) -> Result<Self, Failure> {
        let mut masters = Vec::new();
        for address in &options.masters {
            masters.push(address.resolve().map_err(|error| format!("{address}: {error}"))?);
        }
        let mut nodes = Vec::new();
        for (name, pid) in &options.pids {
            let program = process::name(*pid).map_err(|_| format!("there is no process {pid}"))?;
            let name = if name.is_empty() { &program } else { name };
            nodes.push(Node { name: name.clone(), pid: *pid });
        }
        let cluster = options.name.clone();
        let target = Self { label: cluster.clone(), cluster, masters, nodes };
        let client = target.client_within(CONNECT_TIMEOUT)?;
        let last_tid = client.last_tid()?;
        client.close();
        if last_tid != Tid::ZERO && !options.force {
            return Err(format!(
                "cluster {} has data. Measuring adds objects that nothing refers to: use --force if \
                 that is what you want.",
                target.cluster
            )
            .into());
        }
        Ok(target)
    }

    /// A new client, connected: without cache, and without compression, because it is not what is
    /// measured.
    ///
    /// # Errors
    /// If the cluster can not be reached.
    pub fn client(&self) -> Result<Client, Failure> {
        self.client_within(START_TIMEOUT)
    }

    fn client_within(&self, timeout: Duration) -> Result<Client, Failure> {
        let client = Client::open(Options {
            cache_bytes: 0,
            compression: Compression::None,
            connect_timeout: Some(timeout),
            ..Options::new(&self.cluster, self.masters.clone())
        })?;
        let connected = client.connect();
        connected
            .map_err(|error| format!("can not connect to cluster {}: {error}", self.cluster))?;
        Ok(client)
    }
}

/// Processes that must end with us, and the directory of their files.
#[derive(Clone, Default)]
pub struct Processes {
    /// Each with the file that has its output.
    children: Arc<Mutex<Vec<(PathBuf, Child)>>>,
    /// Removed when it is dropped.
    directory: Arc<Mutex<Option<TempDir>>>,
}

impl Processes {
    /// Ends all of them at once (what they wrote is of no use to anybody), and removes their files.
    pub fn end(&self) {
        let mut children = lock(&self.children);
        for (_, child) in children.iter_mut() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        children.clear();
        drop(lock(&self.directory).take());
    }

    /// Who ended too early, and what it said at last.
    fn ended(&self) -> Option<String> {
        for (output, child) in lock(&self.children).iter_mut() {
            if let Ok(Some(status)) = child.try_wait() {
                let text = std::fs::read_to_string(&output).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
                let name = output.file_stem().unwrap_or_default().display();
                return Some(format!("{name} ended ({status}):\n{last}"));
            }
        }
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever happened, the processes must be ended.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What storages keep their data in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adapter {
    /// A file each.
    Sqlite,
    /// A database each, of one server.
    MariaDb,
}

/// Clusters that were started. They end when this is dropped.
pub struct Started {
    processes: Processes,
    directory: PathBuf,
    count: usize,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.processes.end();
    }
}

impl Started {
    /// None yet; their files will be in a new directory inside the given one.
    ///
    /// # Errors
    /// If it can not be created.
    pub fn new(temp_dir: &Path) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new()
            .prefix("neobench-")
            .tempdir_in(temp_dir)
            .map_err(|error| format!("{}: {error}; see --temp-dir", temp_dir.display()))?;
        let processes = Processes::default();
        let path = directory.path().to_owned();
        *lock(&processes.directory) = Some(directory);
        Ok(Self { processes, directory: path, count: 0 })
    }

    /// What must end with us.
    pub fn processes(&self) -> Processes {
        self.processes.clone()
    }

    /// Starts a cluster with the executables of a directory, and waits until it can be used.
    ///
    /// # Errors
    /// A program is missing, a node ends, or it takes too long.
    pub fn start(
        &mut self,
        bin_dir: &Path,
        adapter: Adapter,
        storages: u32,
        partitions: u32,
    ) -> Result<Target, Failure> {
        self.count += 1;
        let directory = self.directory.join(self.count.to_string());
        std::fs::create_dir(&directory)?;
        let cluster = format!("bench{}", self.count);
        let [master, admin] = free_addresses()?;
        let mut target = Target {
            label: bin_dir.display().to_string(),
            cluster: cluster.clone(),
            masters: vec![master],
            nodes: Vec::new(),
        };
        let server = match adapter {
            Adapter::Sqlite => None,
            Adapter::MariaDb => {
                target.label.push_str(", MariaDB");
                let server = Server::start(directory.join("mariadb"), storages)?;
                target.nodes.push(Node { name: "mariadb".into(), pid: server.child.id() });
                Some(server)
            }
        };
        let databases: Vec<Vec<String>> = (1..=storages)
            .map(|index| match &server {
                None => {
                    let path = directory.join(format!("storage{index}.sqlite"));
                    let path = path.display().to_string();
                    ["--adapter", "SQLite", "--database", &path].map(Into::into).into()
                }
                Some(server) => {
                    let database = server.database(index);
                    ["--adapter", "MySQL", "--wait", "60", "--database", &database]
                        .map(Into::into)
                        .into()
                }
            })
            .collect();
        if let Some(server) = server {
            lock(&self.processes.children).push((server.output, server.child));
        }
        let common = |bind: String| {
            let masters = master.to_string();
            ["--cluster", &cluster, "--masters", &masters, "--bind", &bind].map(Into::into)
        };
        let mut start = |kind: &str, name: &str, bind: String, args: &[String]| {
            let program = bin_dir.join(format!("neo{kind}"));
            let output = directory.join(format!("{name}.output"));
            let args = [&common(bind)[..], args].concat();
            let child = File::create(&output)
                .and_then(|file| process::spawn(&program, &args, file))
                .map_err(|error| format!("{}: {error}", program.display()))?;
            target.nodes.push(Node { name: kind.into(), pid: child.id() });
            lock(&self.processes.children).push((output, child));
            Ok::<_, String>(())
        };
        let numbers =
            ["--partitions", &partitions.to_string(), "--autostart", &storages.to_string()]
                .map(Into::into);
        start("master", "master", master.to_string(), &numbers)?;
        for (index, database) in (1..).zip(&databases) {
            start("storage", &format!("storage{index}"), "127.0.0.1:0".into(), database)?;
        }
        start("admin", "admin", admin.to_string(), &[])?;
        self.wait_until_usable(&target)?;
        Ok(target)
    }

    fn wait_until_usable(&self, target: &Target) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        let client = Client::open(Options {
            connect_timeout: Some(Duration::from_millis(500)),
            ..Options::new(&target.cluster, target.masters.clone())
        })?;
        loop {
            if let Some(message) = self.processes.ended() {
                return Err(message.into());
            }
            match client.connect() {
                Ok(_) => break,
                // Until the master listens, and while it waits for storages.
                Err(Error::Unreachable | Error::Refused(_)) if Instant::now() < deadline => {}
                Err(error) => return Err(format!("{}: {error}", target.label).into()),
            }
        }
        client.close();
        Ok(())
    }
}

/// Addresses on which nobody listens.
fn free_addresses<const N: usize>() -> io::Result<[SocketAddr; N]> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // All are bound at the same time, so that they differ.
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind(any)?);
    }
    let mut addresses = [any; N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}
