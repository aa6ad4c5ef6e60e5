// SPDX-License-Identifier: GPL-2.0-or-later
//! A private MariaDB server for the storages of a cluster: its data and its socket are beside the
//! files of the cluster, and it ends with us. Nothing of the system is used but the programs.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::process;
use crate::migrate::Failure;

/// A server that is starting.
pub struct Server {
    /// Its process.
    pub child: Child,
    /// What it says.
    pub output: PathBuf,
    directory: PathBuf,
}

impl Server {
    /// Starts a server with so many empty databases, durable as a server of an administrator is.
    ///
    /// # Errors
    /// The programs are missing, or they fail.
    pub fn start(directory: PathBuf, databases: u32) -> Result<Self, Failure> {
        fs::create_dir(&directory)?;
        let data = directory.join("data");
        let user = (process::is_root()).then_some("--user=root");
        let install = program("NEO_DB_INSTALL", &["mariadb-install-db", "mysql_install_db"])?;
        let result = Command::new(&install)
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", data.display()))
            .args(user)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{}: {error}", install.display()))?;
        if !result.status.success() {
            let message = String::from_utf8_lossy(&result.stderr);
            return Err(format!("{}: {message}", install.display()).into());
        }
        let init = directory.join("init.sql");
        let create = (1..=databases).map(|number| format!("CREATE DATABASE neo{number};\n"));
        fs::write(&init, create.collect::<String>())?;
        let output = directory.join("mariadb.output");
        let mut args = vec![
            "--no-defaults".into(),
            format!("--datadir={}", data.display()),
            format!("--socket={}", directory.join("s").display()),
            format!("--pid-file={}", directory.join("pid").display()),
            format!("--init-file={}", init.display()),
            "--skip-networking".into(),
            "--max-allowed-packet=64M".into(),
            "--innodb-buffer-pool-size=512M".into(),
            "--innodb-log-file-size=256M".into(),
            "--performance-schema=OFF".into(),
        ];
        args.extend(user.map(Into::into));
        let server = program("NEO_DB_MYSQLD", &["mariadbd", "mysqld"])?;
        let child = process::spawn(&server, &args, File::create(&output)?)
            .map_err(|error| format!("{}: {error}", server.display()))?;
        Ok(Self { child, output, directory })
    }

    /// `--database` of a storage, numbered from 1.
    pub fn database(&self, number: u32) -> String {
        format!("root@neo{number}{}", self.directory.join("s").display())
    }
}

/// A program that is often not in the `PATH` of users.
fn program(variable: &str, names: &[&str]) -> Result<PathBuf, Failure> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let path = env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin", "/usr/libexec"]);
    let mut found =
        folders.flat_map(|folder| names.iter().map(move |name| Path::new(folder).join(name)));
    let missing = || format!("{} is missing: install mariadb-server, or set {variable}", names[0]);
    Ok(found.find(|path| path.is_file()).ok_or_else(missing)?)
}
