// SPDX-License-Identifier: GPL-2.0-or-later
//! `neosimple` and `neobench` as processes.

// Tests of programs wait and read clocks.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use neo_client::{Client, Metadata, NoResolution, Options};
use neo_common::types::{Oid, Tid};

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster in one process, killed at the end of the test.
struct Simple {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    master: SocketAddr,
    admin: SocketAddr,
}

impl Simple {
    /// Starts it on free ports, and waits until it says that it runs.
    fn start(directory: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_neosimple"))
            .args(["--master-port", "0", "--admin-port", "0", "--data-dir"])
            .arg(directory)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut master, mut admin) = (None, None);
        loop {
            let line = lines.next().expect("neosimple runs").unwrap();
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("master"), Some(address)) => master = address.parse().ok(),
                (Some("admin"), Some(address)) => admin = address.parse().ok(),
                (Some("RUNNING"), _) => break,
                _ => {}
            }
        }
        Self { child, lines, master: master.unwrap(), admin: admin.unwrap() }
    }

    fn client(&self, cluster: &str) -> Client {
        Client::open(Options {
            connect_timeout: Some(PATIENCE),
            ..Options::new(cluster, vec![self.master])
        })
        .unwrap()
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for its end. Returns what it said since it ran.
    fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let lines = self.lines.by_ref().map(Result::unwrap).collect();
        (self.child.wait().unwrap(), lines)
    }
}

impl Drop for Simple {
    fn drop(&mut self) {
        // It has usually ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

fn commit(client: &Client, data: &str) -> (Oid, Tid) {
    let oid = client.new_oid().unwrap();
    let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
    transaction.store(oid, Tid::ZERO, data.to_owned().into()).unwrap();
    transaction.vote(&Metadata::default()).unwrap();
    (oid, transaction.finish(|_| {}).unwrap())
}

/// What is committed is there after a clean stop by each signal, and after `kill -9`.
#[test]
fn simple_keeps_data() {
    let directory = tempfile::tempdir().unwrap();
    let mut written = Vec::<(Oid, Tid, String)>::new();
    for (round, name) in ["INT", "TERM", "KILL", "TERM"].into_iter().enumerate() {
        // The number of storages is only said once.
        let args: &[&str] = if round == 0 { &["--storages", "3"] } else { &[] };
        let cluster = Simple::start(directory.path(), args);
        let client = cluster.client("neo");
        for (oid, tid, data) in &written {
            let record = client.load(*oid).unwrap();
            assert_eq!((record.serial, &record.data[..]), (*tid, data.as_bytes()));
        }
        let data = format!("round {round}");
        let (oid, tid) = commit(&client, &data);
        written.push((oid, tid, data));
        client.close();
        cluster.signal(name);
        let (status, lines) = cluster.wait();
        if name == "KILL" {
            assert_eq!(status.signal(), Some(9));
        } else {
            assert!(status.success(), "{name}: {status}");
            assert_eq!(lines.last().unwrap(), "Stopped.");
        }
    }
    let is_database =
        |entry: &fs::DirEntry| entry.path().extension().is_some_and(|e| e == "sqlite");
    let entries = fs::read_dir(directory.path()).unwrap().map(Result::unwrap);
    assert_eq!(entries.filter(is_database).count(), 3);
}

/// Somebody else may stop the cluster; databases can be erased before and after.
#[test]
fn simple_is_stopped_from_outside() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Simple::start(directory.path(), &["--name", "a b", "db"]);
    commit(&cluster.client("a b"), "data");
    let admin = cluster.admin;
    let reply = neo_tools::simple::control::command(admin, &["set", "cluster", "stopping"]);
    assert_eq!((reply.status, &*reply.stdout), (0, "Cluster state changed\n"));
    assert!(cluster.wait().0.success());

    // Another name is refused, unless the database is erased.
    let other = |args: &[&str]| {
        let args = [&["--master-port", "0", "--admin-port", "0", "--data-dir"], args].concat();
        Command::new(env!("CARGO_BIN_EXE_neosimple")).args(args).output().unwrap()
    };
    let path = directory.path().to_str().unwrap();
    let Output { status, stderr, .. } = other(&[path, "--name", "c", "db"]);
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.starts_with("neosimple: error: ") && stderr.contains("db.sqlite"), "{stderr}");
    let args = ["--clear-databases", "--cleanup-on-delete", "--logger", "--name", "c", "db"];
    let cluster = Simple::start(directory.path(), &args);
    assert_eq!(cluster.client("c").last_tid().unwrap(), Tid::ZERO);
    cluster.signal("TERM");
    assert!(cluster.wait().0.success());
    let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["neosimple.log"]);
}

/// A node that can not start ends the process, with the reason.
#[test]
fn simple_without_port() {
    let directory = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_neosimple"))
        .args(["--master-port", "0", "--admin-port", &port, "--data-dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains(&format!("can not listen on 127.0.0.1:{port}")), "{stderr}");
}

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neobench"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// All workloads on a running cluster: every figure is there. A second time, there is data.
#[test]
fn bench_of_a_running_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Simple::start(directory.path(), &["--storages", "2"]);
    let (masters, pid) = (cluster.master.to_string(), format!("all={}", cluster.child.id()));
    let args = ["--quick", "--cluster", "neo", "--masters", &masters, "--pids", &pid];
    let output = bench(&args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["figures"].as_array().unwrap();
    let figure = |group: &str, name: &str| {
        let mut found = figures.iter().filter(|row| row["group"] == group && row["name"] == name);
        let value = found.next().map(|row| row["median"][0].as_f64().unwrap());
        value.unwrap_or_else(|| panic!("{group}: {name}: {report:#}"))
    };
    for (group, name) in [
        ("import, small transactions", "speed"),
        ("iterate over all transactions", "speed"),
        ("load 4 KiB, one after the other", "p50"),
        ("load 4 KiB, one after the other", "p99"),
        ("load 4 KiB, 1 under way", "loads"),
        ("load 4 KiB, 8 under way", "loads"),
        ("load 4 KiB, 32 under way", "CPU of all per load"),
        ("commit 3 × 500 B, 1 client", "commits"),
        ("commit 3 × 500 B, 8 clients", "commits"),
        ("commit 3 × 500 B, 32 clients", "CPU of all per commit"),
        ("commit 3 × 500 B, 32 clients", "CPU of client per commit"),
        ("memory", "all, peak"),
        ("memory", "all, at the end, without files"),
    ] {
        assert!(figure(group, name) > 0., "{group}: {name}");
    }

    let output = bench(&args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("neobench: error: cluster neo has data."), "{stderr}");
    let output = bench(&args).args(["--force", "--only", "import"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("\nimport, small transactions\n"), "{table}");
    assert!(!table.contains("commit 3"));
}

/// Loads from Python are measured by the interpreter: its figures are taken, its failure is told.
#[test]
fn bench_of_python() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Simple::start(directory.path(), &[]);
    let (masters, python) = (cluster.master.to_string(), directory.path().join("python"));
    let run = |program: &str| {
        fs::write(&python, format!("#!/bin/sh\nread oid\n{program}\n")).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        let args = ["--quick", "--cluster", "neo", "--force", "--only", "load", "--masters"];
        bench(&args).arg(&masters).arg("--python").arg(&python).output().unwrap()
    };
    let output = run("[ ${#oid} = 16 ] && echo 11.5 12.5 13.5 && echo 14.5 15.5 16.5 17.5");
    let table = String::from_utf8(output.stdout).unwrap();
    let (_, table) = table.split_once("\nload 4 KiB, one after the other, from Python\n").unwrap();
    for figure in ["11.5", "12.5", "13.5", "14.5", "15.5", "16.5", "17.5", "8 threads of Python"] {
        assert!(table.contains(figure), "{figure}: {table}");
    }
    let output = run("exit 3");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("python: exit status: 3, without figures"), "{stderr}");
}

/// Executables that do the same whatever they are asked, for [`bench`].
fn programs(directory: &Path, script: &str) {
    for name in ["neomaster", "neostorage", "neoadmin"] {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A node that ends is an error that shows what it said; nothing stays on the disk.
#[test]
fn bench_of_a_broken_node() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let args = ["--bin-dir", path.to_str().unwrap(), "--temp-dir", path.to_str().unwrap()];
    let output = bench(&args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && stderr.contains("neomaster: No such file"),
        "{stderr}"
    );
    programs(path, "echo no luck; exit 3");
    let output = bench(&args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("ended (exit status: 3):\nno luck"), "{stderr}");
    assert_eq!(fs::read_dir(path).unwrap().count(), 3);
}

/// Whatever ends it, its nodes end too.
#[test]
fn bench_is_interrupted() {
    for name in ["INT", "TERM", "KILL"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let pids = path.join("pids");
        programs(path, &format!("echo $$ >> {}; exec sleep 1000", pids.display()));
        let path = path.to_str().unwrap();
        let mut child = bench(&["--bin-dir", path, "--temp-dir", path]).spawn().unwrap();
        let started = wait_for(|| {
            let text = fs::read_to_string(&pids).unwrap_or_default();
            let pids: Vec<u32> = text.lines().map_while(|line| line.parse().ok()).collect();
            (pids.len() == 3).then_some(pids)
        });
        signal(&child, name);
        let status = child.wait().unwrap();
        assert!(status.signal().is_some(), "{name}: {status}");
        for pid in started {
            let is_there = || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                !stat.is_empty() && !stat.contains(") Z ")
            };
            wait_for(|| (!is_there()).then_some(()));
        }
        if name != "KILL" {
            assert_eq!(fs::read_dir(path).unwrap().count(), 4, "{name}: its directory is gone");
        }
    }
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "timeout");
        std::thread::sleep(Duration::from_millis(10));
    }
}
