// SPDX-License-Identifier: GPL-2.0-or-later
//! Private MariaDB servers, in temporary folders, with their own sockets. Nothing of the system is
//! used but the programs.
//!
//! - `NEO_TESTS_MYSQL_SOCKET`: socket of a server that runs already, where root needs no password;
//!   without it, each test process starts one (`scripts/test` starts one for all of them).
//! - `NEO_DB_MYSQLD`, `NEO_DB_INSTALL`: the programs, if not in the usual places.
//! - `NEO_TESTS_MYSQL=0`: do without; `NEO_TESTS_MYSQL=1`: fail if there is no server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};
use neo_storage::database::Error;
use neo_storage::database::mysql::{Engine, MySql, Options, Wait};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A folder that all tests may use, and that stays: an empty folder of data is copied from there.
const CACHE: &str = env!("CARGO_TARGET_TMPDIR");

fn program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin", "/usr/libexec"]);
    let mut found =
        folders.flat_map(|folder| names.iter().map(move |name| Path::new(folder).join(name)));
    found.find(|path| path.is_file())
}

/// Whether there is a server for tests; says so if not.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let wanted = std::env::var("NEO_TESTS_MYSQL").unwrap_or_default();
        if wanted == "0" {
            eprintln!("SKIPPED: MariaDB, because NEO_TESTS_MYSQL is 0");
            return false;
        }
        let found = program("NEO_DB_MYSQLD", &["mariadbd", "mysqld"]).is_some()
            || std::env::var_os("NEO_TESTS_MYSQL_SOCKET").is_some();
        assert!(found || wanted != "1", "MariaDB is not installed: set NEO_DB_MYSQLD");
        if !found {
            eprintln!("SKIPPED: MariaDB is not installed; set NEO_DB_MYSQLD");
        }
        found
    })
}

/// A server of its own, that is killed when dropped.
pub struct Server {
    process: Option<Child>,
    folder: Option<TempDir>,
    pub socket: PathBuf,
    settings: Vec<String>,
}

/// Settings of a server that keeps what it promises.
pub const DURABLE: &[&str] = &["--innodb-flush-log-at-trx-commit=1"];

/// Settings of a server whose machine never fails.
const FAST: &[&str] = &[
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-flush-method=nosync",
];

impl Server {
    /// A new server, with additional settings.
    pub fn start(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&template(), &folder.path().join("data"));
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let socket = folder.path().join("s.sock");
        let mut server = Self { process: None, folder: Some(folder), socket, settings };
        server.restart();
        server
    }

    /// Starts it again, on the same data.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.wait_until_ready();
    }

    /// Starts it, without waiting.
    pub fn spawn(&mut self) {
        let folder = self.folder.as_ref().expect("our own server").path();
        let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program("NEO_DB_MYSQLD", &["mariadbd", "mysqld"]).expect("installed"))
            .arg("--no-defaults")
            .arg(format!("--datadir={}", folder.join("data").display()))
            .arg(format!("--socket={}", self.socket.display()))
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .args(["--skip-networking", "--max-allowed-packet=64M", "--performance-schema=OFF"])
            .args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"])
            .args(&self.settings)
            .args(as_root())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(spawn(command));
    }

    /// Changes a setting, for the next start.
    pub fn set(&mut self, setting: &str) {
        let name = setting.split('=').next().expect("a name");
        self.settings.retain(|other| other.split('=').next() != Some(name));
        self.settings.push(setting.to_owned());
    }

    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.try_connect().is_err() {
            let process = self.process.as_mut().expect("started");
            if process.try_wait().unwrap().is_some() || Instant::now() > deadline {
                panic!("MariaDB does not start: {}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        let folder = self.folder.as_ref().expect("our own server").path();
        fs::read_to_string(folder.join("log")).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn try_connect(&self) -> mysql::Result<Conn> {
        let socket = self.socket.to_str().unwrap().to_owned();
        Conn::new(OptsBuilder::new().user(Some("root")).socket(Some(socket)).prefer_socket(false))
    }

    /// A connection of an administrator.
    pub fn connect(&self) -> Conn {
        self.try_connect().unwrap()
    }

    /// A new database.
    pub fn scratch(&self) -> Scratch {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("neo_{}_{number}", std::process::id());
        self.connect().query_drop(format!("CREATE DATABASE {name}")).unwrap();
        Scratch { name, socket: self.socket.clone() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn as_root() -> Option<&'static str> {
    use std::os::unix::fs::MetadataExt;
    (fs::metadata("/proc/self").unwrap().uid() == 0).then_some("--user=root")
}

/// Starts a process that ends with this one, however that ends.
fn spawn(mut command: Command) -> Child {
    // The signal of setpriv comes when the *thread* that started the process ends.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        sender.send(command.spawn().expect("setpriv (util-linux) is installed")).unwrap();
        loop {
            thread::park();
        }
    });
    receiver.recv().unwrap()
}

/// An empty folder of data, made once.
fn template() -> PathBuf {
    let path = Path::new(CACHE).join("mariadb-template-1");
    if path.is_dir() {
        return path;
    }
    let folder = tempfile::tempdir_in(CACHE).unwrap();
    let data = folder.path().join("data");
    let install = program("NEO_DB_INSTALL", &["mariadb-install-db", "mysql_install_db"]);
    let output = Command::new(install.expect("mariadb-install-db is installed"))
        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .args(["--innodb-log-file-size=16M", "--skip-name-resolve"])
        .arg(format!("--datadir={}", data.display()))
        .args(as_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Another process may have been faster.
    match fs::rename(&data, &path) {
        Ok(()) => {}
        Err(_) => assert!(path.is_dir()),
    }
    path
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The server that tests share, that have nothing to do to it.
fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| match std::env::var_os("NEO_TESTS_MYSQL_SOCKET") {
        Some(socket) => {
            Server { process: None, folder: None, socket: socket.into(), settings: Vec::new() }
        }
        None => Server::start(FAST),
    })
}

/// A database that is dropped in the end.
pub struct Scratch {
    pub name: String,
    pub socket: PathBuf,
}

impl Scratch {
    /// A new database on the shared server; `None` if there is no server.
    pub fn new() -> Option<Self> {
        is_available().then(|| shared().scratch())
    }

    /// How to open it.
    pub fn options(&self, cluster: &str, dedup: bool) -> Options {
        Options {
            database: format!("root@{}{}", self.name, self.socket.display()),
            cluster: cluster.into(),
            dedup,
            engine: Engine::InnoDb,
            wait: Wait::AtMost(Duration::ZERO),
            home: None,
            default_socket: None,
        }
    }

    pub fn open(&self, cluster: &str, dedup: bool) -> Result<MySql, Error> {
        MySql::open(&self.options(cluster, dedup))
    }

    /// A connection that does not go through our code.
    pub fn connect(&self) -> Conn {
        let socket = self.socket.to_str().unwrap().to_owned();
        let opts = OptsBuilder::new().user(Some("root")).socket(Some(socket)).prefer_socket(false);
        Conn::new(opts.db_name(Some(self.name.clone()))).unwrap()
    }

    /// Executes statements.
    pub fn run(&self, sql: &str) {
        self.connect().query_drop(sql).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The server may be gone, or be made unusable by its test.
        let socket = self.socket.to_str().unwrap().to_owned();
        let opts = OptsBuilder::new().user(Some("root")).socket(Some(socket)).prefer_socket(false);
        if let Ok(mut conn) = Conn::new(opts) {
            let _ = conn.query_drop(format!("DROP DATABASE IF EXISTS {}", self.name));
        }
    }
}
