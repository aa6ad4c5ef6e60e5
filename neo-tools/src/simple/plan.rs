// SPDX-License-Identifier: GPL-2.0-or-later
//! What is going to be started: names, addresses and databases.
//!
//! Nothing has to be remembered between two runs: with the same options, the same nodes find the
//! same databases and listen on the same ports, except storages, whose address nobody needs to know.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use neo_common::config::storage::{Adapter, Wait};
use neo_common::config::{
    Address, AdminOptions, DaemonOptions, MasterOptions, Secret, SimpleOptions, StorageOptions,
};
use neo_storage::database::sqlite::{self, Sqlite};

use super::nodes::Nodes;
use crate::migrate::Failure;

/// Where databases are, if it is not said.
const DIRECTORY: &str = "neo-data";
/// Name of the cluster, if it is not said.
const CLUSTER: &str = "neo";
/// Partitions of a new cluster, if it is not said: enough to spread it later over 12 storages.
const PARTITIONS: u32 = 12;
/// Port of the first master. The others have the next ones.
const MASTER_PORT: u16 = 10000;
/// Port of the admin.
const ADMIN_PORT: u16 = 9999;
/// What SQLite writes beside a database.
const DATABASE_SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// All nodes of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Of the databases.
    pub directory: PathBuf,
    /// Name of the cluster.
    pub cluster: String,
    /// Where masters listen.
    pub masters: Vec<SocketAddr>,
    /// Where the admin listens; the port may be 0.
    pub admin: SocketAddr,
    /// One per storage.
    pub databases: Vec<PathBuf>,
    partitions: u32,
    replicas: u32,
}

impl Plan {
    /// From options; creates the directory, and erases databases if it was asked.
    ///
    /// # Errors
    /// A database that is not available, or a file system that refuses.
    pub fn new(options: &SimpleOptions) -> Result<Self, Failure> {
        if options.adapter != Adapter::Sqlite {
            return Err("only SQLite is available yet".into());
        }
        let directory = options.data_dir.clone().unwrap_or_else(|| DIRECTORY.into());
        fs::create_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let directory = directory.canonicalize()?;
        let ip = match &options.bind_ip {
            Some(ip) => ip.parse()?,
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let mut plan = Self {
            cluster: options.name.clone().unwrap_or_else(|| CLUSTER.into()),
            masters: master_addresses(ip, options)?,
            admin: SocketAddr::new(ip, options.admin_port.unwrap_or(ADMIN_PORT)),
            databases: databases(&directory, options)?,
            partitions: options.partitions.unwrap_or(PARTITIONS),
            replicas: options.replicas,
            directory,
        };
        if options.clear_databases {
            plan.clear()?;
            plan.databases = databases(&plan.directory, options)?;
        }
        Ok(plan)
    }

    /// Removes the databases, unless a process uses one.
    fn clear(&self) -> Result<(), Failure> {
        for path in self.databases.iter().filter(|path| path.exists()) {
            let options = sqlite::Options {
                database: path.display().to_string(),
                cluster: self.cluster.clone(),
                dedup: false,
                home: None,
            };
            Sqlite::reset(&options).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        self.remove()
    }

    /// Removes the databases, which nobody uses any more.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self) -> Result<(), Failure> {
        for database in &self.databases {
            for suffix in DATABASE_SUFFIXES {
                let mut path = database.clone().into_os_string();
                path.push(suffix);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result.map_err(|e| format!("{}: {e}", Path::new(&path).display()))?,
                }
            }
        }
        Ok(())
    }

    /// Options of the master that listens there.
    pub fn master(&self, bind: SocketAddr) -> MasterOptions {
        MasterOptions {
            daemon: self.daemon(bind),
            partitions: self.partitions,
            replicas: self.replicas,
            autostart: Some(self.databases.len() as u32),
            upstream: None,
            backup: false,
        }
    }

    /// Options of the storage with that database.
    pub fn storage(&self, database: &Path) -> StorageOptions {
        StorageOptions {
            daemon: self.daemon(SocketAddr::new(self.admin.ip(), 0)),
            adapter: Adapter::Sqlite,
            database: Secret::new(database.display().to_string()),
            engine: None,
            wait: Wait::AtMost(std::time::Duration::ZERO),
            dedup: false,
            reset: false,
            disable_drop_partitions: false,
            disable_pack: false,
            new_nid: false,
        }
    }

    /// Options of the admin.
    pub fn admin(&self) -> AdminOptions {
        AdminOptions {
            daemon: self.daemon(self.admin),
            monitor_maxlag: 0.,
            monitor_email: Vec::new(),
            monitor_backup: Vec::new(),
            smtp: Address { host: "localhost".into(), port: 25 },
            smtp_tls: false,
            smtp_auth: None,
        }
    }

    fn daemon(&self, bind: SocketAddr) -> DaemonOptions {
        DaemonOptions {
            cluster: self.cluster.clone(),
            masters: self.masters.iter().map(address).collect(),
            bind: address(&bind),
            name: None,
            logfile: None,
            dynamic_master_list: None,
            tls: None,
            nid: None,
        }
    }

    /// What is being started, for the user.
    pub fn nodes(&self, nodes: &Nodes) -> String {
        let mut text =
            format!("Cluster {}, databases in {}\n", self.cluster, self.directory.display());
        for address in &self.masters {
            text += &format!("  master   {address}\n");
        }
        for (address, database) in nodes.storages.iter().zip(&self.databases) {
            let name = database.file_name().unwrap_or_default().display();
            text += &format!("  storage  {address}, {name}\n");
        }
        text + &format!("  admin    {}", nodes.admin)
    }

    /// What can be done with a cluster that runs, for the user.
    pub fn usage(&self, nodes: &Nodes) -> String {
        let Self { cluster, .. } = self;
        let (url, masters, admin) = (self.url(), join(&self.masters, " "), nodes.admin);
        format!(
            "RUNNING\n\
             \n\
             URL       {url}\n\
             Python    from neo.client.Storage import Storage\n          \
             storage = Storage(master_nodes='{masters}', name='{cluster}')\n\
             Look      neoctl -a {admin} print node\n\
             Stop      Ctrl-C, or: neoctl -a {admin} set cluster stopping\n"
        )
    }

    /// For `zodburi`.
    fn url(&self) -> String {
        format!("neo://{}@{}", quote(&self.cluster), join(&self.masters, ","))
    }
}

fn address(address: &SocketAddr) -> Address {
    Address { host: address.ip().to_string(), port: address.port() }
}

fn join(addresses: &[SocketAddr], separator: &str) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(separator)
}

/// Percent-encodes what has a meaning in a URL.
fn quote(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let quoted = text.bytes().map(|byte| match byte {
        _ if is_plain(byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    quoted.collect()
}

/// Masters must know each other's address before any of them listens.
fn master_addresses(ip: IpAddr, options: &SimpleOptions) -> Result<Vec<SocketAddr>, Failure> {
    let first = options.master_port.unwrap_or(MASTER_PORT);
    if first != 0 {
        let last = u32::from(first) + options.masters - 1;
        if last > u32::from(u16::MAX) {
            return Err(format!("there is no port {last} for the last master").into());
        }
        return Ok((first..=last as u16).map(|port| SocketAddr::new(ip, port)).collect());
    }
    // All are bound at the same time, so that they differ.
    let mut listeners = Vec::new();
    for _ in 0..options.masters {
        listeners.push(TcpListener::bind((ip, 0))?);
    }
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// Those that were named, then numbered ones. The cluster can not start without those that exist
/// from previous runs, so that they are never left out.
fn databases(directory: &Path, options: &SimpleOptions) -> Result<Vec<PathBuf>, Failure> {
    let mut names = options.databases.clone();
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() || name.contains('/') || names[..index].contains(name) {
            return Err(format!("'{name}' is not a name for another database").into());
        }
    }
    let path = |name: &String| directory.join(format!("{name}.sqlite"));
    for number in 1.. {
        let name = format!("storage{number}");
        let is_wanted = names.len() < options.storages as usize || path(&name).exists();
        if !is_wanted {
            break;
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names.iter().map(path).collect())
}

#[cfg(test)]
mod tests {
    use neo_common::config::System;

    use super::*;

    fn plan(directory: &Path, line: &str) -> Result<Plan, String> {
        let args = format!("--data-dir {} {line}", directory.display());
        let args: Vec<String> = args.split_whitespace().map(Into::into).collect();
        let options = SimpleOptions::parse(&args, &System).unwrap().options;
        Plan::new(&options).map_err(|error| error.to_string())
    }

    fn names(plan: &Plan) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        plan.databases.iter().map(name).collect()
    }

    /// Addresses and names without options, and with them.
    #[test]
    fn addresses() {
        let directory = tempfile::tempdir().unwrap();
        let default = plan(&directory.path().join("new"), "").unwrap();
        assert_eq!(default.url(), "neo://neo@127.0.0.1:10000");
        assert_eq!((default.admin.port(), names(&default)), (9999, vec!["storage1.sqlite".into()]));
        let line = "--name a/b --bind-ip ::1 --master-count 2 --master-port 7 --admin-port 0";
        let other = plan(directory.path(), line).unwrap();
        assert_eq!(other.url(), "neo://a%2Fb@[::1]:7,[::1]:8");
        assert_eq!(join(&other.masters, " "), "[::1]:7 [::1]:8");
        assert_eq!(other.master(other.masters[1]).daemon.bind.to_string(), "[::1]:8");
        let free = plan(directory.path(), "--master-port 0 --master-count 3").unwrap().masters;
        assert!(free.iter().all(|address| address.port() != 0) && free[0] != free[1]);
        let error = plan(directory.path(), "--master-port 65535 --master-count 2").unwrap_err();
        assert_eq!(error, "there is no port 65536 for the last master");
        assert!(plan(directory.path(), "--adapter MySQL").unwrap_err().contains("only SQLite"));
    }

    /// A database that exists is never left out, and is only erased on request.
    #[test]
    fn existing_databases() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert_eq!(names(&plan(directory, "b a").unwrap()), ["b.sqlite", "a.sqlite"]);
        let three = plan(directory, "a --storages 3").unwrap();
        assert_eq!(names(&three), ["a.sqlite", "storage1.sqlite", "storage2.sqlite"]);
        for wrong in ["a a", "../a"] {
            assert!(plan(directory, wrong).unwrap_err().ends_with("for another database"));
        }
        for number in 1..=3 {
            fs::write(directory.join(format!("storage{number}.sqlite")), "").unwrap();
        }
        assert_eq!(plan(directory, "").unwrap().databases.len(), 3);
        assert_eq!(plan(directory, "--storages 4").unwrap().databases.len(), 4);
        let options = sqlite::Options {
            database: directory.join("storage2.sqlite").display().to_string(),
            ..sqlite::Options::default()
        };
        let in_use = Sqlite::open(&options).unwrap();
        let error = plan(directory, "--clear-databases").unwrap_err();
        assert!(error.contains("storage2.sqlite: ") && error.contains("locked"), "{error}");
        drop(in_use);
        assert_eq!(plan(directory, "--clear-databases").unwrap().databases.len(), 1);
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    }
}
