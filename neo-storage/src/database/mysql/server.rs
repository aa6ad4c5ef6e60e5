// SPDX-License-Identifier: GPL-2.0-or-later
//! How a connection to the server is made, and what is checked then.
//!
//! Upstream: storage/database/mysql.py, `_tryConnect`.

// A lane may block: it is a thread of its own. Waiting for a server needs a clock.
#![allow(clippy::disallowed_methods)]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};

use super::error::{Cause, failure};
use super::url::{Place, Url, default_socket};
use super::{Engine, Wait};
use crate::database::Error;

/// The greatest object that is one row, written as hexadecimal digits, fits. Upstream's minimum.
pub const PACKET_BYTES_MIN: usize = 32769 << 10;

/// Bytes of a packet that no server exceeds.
const CLIENT_PACKET_BYTES_MAX: usize = 1 << 30;

/// How long a server that was lost is waited for, at least: it is restarted by somebody else.
const RECONNECT_TIME: Duration = Duration::from_secs(5);

/// Pause before trying to connect again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The same, for a server that is not there when the node starts.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long the server may take to notice that the process before this one was killed.
const FIRST_LOCK_SECONDS: u32 = 1;

/// How long the server may take to notice that a connection is lost, and to release its lock.
const STALE_LOCK_SECONDS: u32 = 10;

/// Prepared statements that are kept: more than there are.
const STATEMENTS_MAX: usize = 128;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The only one that writes: it holds the lock of the database.
    Writer,
    /// A read lane.
    Reader,
}

/// What must not change when a connection is replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Bytes of a statement at most.
    pub packet_bytes_max: usize,
    /// A lock wait timeout ends the transaction, instead of the statement.
    pub timeout_rolls_back: bool,
    /// What is committed survives a crash of the server.
    pub is_durable: bool,
    /// Which run of the server it is.
    run: Run,
    /// Folder of the data.
    pub data_folder: PathBuf,
}

/// A run of the server. A server makes another socket each time it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    socket: Option<(u64, i64, i64)>,
    /// Seconds since the epoch, with an error of one second.
    started: i64,
}

impl Run {
    fn is_same(&self, other: &Self) -> bool {
        self.socket == other.socket && self.started.abs_diff(other.started) <= 2
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Server {
    url: Url,
    engine: Engine,
    wait: Wait,
    /// `MYSQL_UNIX_PORT`.
    default_socket: Option<String>,
    /// Facts of the first connection.
    facts: Option<Facts>,
}

impl Server {
    /// A server that was not contacted yet.
    pub fn new(url: Url, engine: Engine, wait: Wait, default_socket: Option<String>) -> Self {
        Self { url, engine, wait, default_socket, facts: None }
    }

    /// What the server was found to be.
    pub fn facts(&self) -> &Facts {
        self.facts.as_ref().expect("the first connection is made before any use")
    }

    /// Opens the first connection, waiting for the server as long as `--wait` says.
    pub fn connect_first(&mut self, role: Role) -> Result<Conn, Error> {
        let (conn, facts) = self.retry(role, self.wait, FIRST_RETRY_DELAY)?;
        log::info!("connected to {}", self.url.describe());
        self.facts = Some(facts);
        Ok(conn)
    }

    /// Opens another connection.
    pub fn connect(&self, role: Role) -> Result<Conn, Error> {
        let wait = match self.wait {
            Wait::AtMost(time) => Wait::AtMost(time.max(RECONNECT_TIME)),
            Wait::Forever => Wait::Forever,
        };
        let (conn, facts) = self.retry(role, wait, RETRY_DELAY)?;
        let known = self.facts();
        if !known.run.is_same(&facts.run) {
            if !(known.is_durable && facts.is_durable) {
                return Err(failure(
                    "the server was restarted",
                    "it does not guarantee that what was committed before is still there \
                     (innodb_flush_log_at_trx_commit, or sync_binlog, is not 1)",
                ));
            }
            log::warn!("the server was restarted");
        }
        Ok(conn)
    }

    fn retry(&self, role: Role, wait: Wait, delay: Duration) -> Result<(Conn, Facts), Error> {
        let start = Instant::now();
        let mut last = String::new();
        loop {
            let error = match self.try_open(role) {
                Ok((_, facts, _)) if facts.packet_bytes_max < PACKET_BYTES_MIN => {
                    return Err(small_packets(facts.packet_bytes_max));
                }
                Ok((_, _, false)) => return Err(Error::Locked),
                Ok((conn, facts, true)) => return Ok((conn, facts)),
                Err(error) => error,
            };
            if let Wait::AtMost(time) = wait
                && start.elapsed() + delay > time
            {
                return Err(failure(
                    format!("connection to {}", self.url.describe()),
                    Cause(error),
                ));
            }
            let text = Cause(error).to_string();
            if text != last {
                log::warn!("can not connect to {}, waiting: {text}", self.url.describe());
                last = text;
            }
            thread::sleep(delay);
        }
    }

    /// A connection, and whether the database is ours.
    fn try_open(&self, role: Role) -> mysql::Result<(Conn, Facts, bool)> {
        let mut conn = self.try_connect()?;
        let facts = self.look(&mut conn)?;
        let is_ours = role == Role::Reader || self.lock(&mut conn)?;
        Ok((conn, facts, is_ours))
    }

    fn try_connect(&self) -> mysql::Result<Conn> {
        let opts = OptsBuilder::new()
            .user(self.url.user())
            .pass(self.url.password.clone())
            .db_name(Some(self.url.database.clone()))
            .prefer_socket(false)
            // The limit is that of the server.
            .max_allowed_packet(Some(CLIENT_PACKET_BYTES_MAX))
            .stmt_cache_size(STATEMENTS_MAX);
        let opts = match &self.url.place {
            Place::Tcp(host, port) => opts.ip_or_hostname(Some(host.clone())).tcp_port(*port),
            Place::Socket(path) => opts.socket(Some(path.clone())),
            Place::DefaultSocket => opts.socket(Some(self.socket())),
        };
        let mut conn = Conn::new(opts)?;
        conn.query_drop(
            "SET SESSION wait_timeout = 2147483, \
             SESSION sql_mode = 'TRADITIONAL,NO_ENGINE_SUBSTITUTION', \
             SESSION group_concat_max_len = 4294967295, autocommit = 1",
        )?;
        // Whatever the default of the server: readers must see neither half of a transaction nor
        // wait for the writer.
        conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")?;
        if self.engine == Engine::RocksDb {
            conn.query_drop("SET SESSION rocksdb_max_row_locks = 1073741824")?;
        }
        Ok(conn)
    }

    fn socket(&self) -> String {
        default_socket(self.default_socket.as_deref())
    }

    fn look(&self, conn: &mut Conn) -> mysql::Result<Facts> {
        let run = self.run(conn)?;
        let (packet_bytes_max, timeout_rolls_back, data_folder) = (0, false, PathBuf::new());
        let mut facts =
            Facts { packet_bytes_max, timeout_rolls_back, is_durable: true, run, data_folder };
        let variables: Vec<(String, String)> = conn.query(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('max_allowed_packet', 'datadir', \
             'innodb_flush_log_at_trx_commit', 'innodb_rollback_on_timeout', \
             'rocksdb_flush_log_at_trx_commit', 'rocksdb_rollback_on_timeout', \
             'log_bin', 'sync_binlog')",
        )?;
        let (mut has_binary_log, mut is_binary_log_durable) = (false, true);
        for (name, value) in variables {
            match name.as_str() {
                "max_allowed_packet" => facts.packet_bytes_max = value.parse().unwrap_or(0),
                "datadir" => facts.data_folder = value.into(),
                "innodb_rollback_on_timeout" | "rocksdb_rollback_on_timeout" => {
                    facts.timeout_rolls_back |= value == "ON";
                }
                "innodb_flush_log_at_trx_commit" if self.engine == Engine::InnoDb => {
                    facts.is_durable = matches!(value.as_str(), "1" | "3");
                }
                "rocksdb_flush_log_at_trx_commit" if self.engine == Engine::RocksDb => {
                    facts.is_durable = value == "1";
                }
                "log_bin" => has_binary_log = value == "ON",
                "sync_binlog" => is_binary_log_durable = value == "1",
                _ => {}
            }
        }
        // With a binary log, recovery drops what is not there.
        facts.is_durable &= !has_binary_log || is_binary_log_durable;
        Ok(facts)
    }

    fn run(&self, conn: &mut Conn) -> mysql::Result<Run> {
        let path = match &self.url.place {
            Place::Tcp(..) => None,
            Place::Socket(path) => Some(path.clone()),
            Place::DefaultSocket => Some(self.socket()),
        };
        let socket = path.and_then(|path| std::fs::metadata(path).ok());
        let socket = socket.map(|file| (file.ino(), file.ctime(), file.ctime_nsec()));
        let now: Option<i64> = conn.query_first("SELECT UNIX_TIMESTAMP()")?;
        let uptime: Option<(String, i64)> = conn.query_first("SHOW GLOBAL STATUS LIKE 'Uptime'")?;
        let started = now.unwrap_or(0) - uptime.map_or(0, |(_, seconds)| seconds);
        Ok(Run { socket, started })
    }

    /// Whether the database is not used by another process.
    fn lock(&self, conn: &mut Conn) -> mysql::Result<bool> {
        let seconds = if self.facts.is_some() { STALE_LOCK_SECONDS } else { FIRST_LOCK_SECONDS };
        let name = format!("{}.neostorage", self.url.database);
        let locked: Option<Option<i64>> =
            conn.exec_first("SELECT GET_LOCK(?, ?)", (name, seconds))?;
        Ok(locked.flatten() == Some(1))
    }
}

fn small_packets(bytes: usize) -> Error {
    failure(
        "settings of the server",
        format!(
            "max_allowed_packet is {bytes} bytes; it must be {}k at least",
            PACKET_BYTES_MIN >> 10
        ),
    )
}
