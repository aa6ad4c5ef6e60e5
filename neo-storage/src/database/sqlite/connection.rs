// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to a SQLite file: how they are opened and tuned, and what to do if another process
//! uses the file.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::url::Url;
use crate::database::Error;

/// Bytes of the file that are read through a memory map: the maximum that SQLite was built for.
/// Reading a page that is in the page cache then costs neither a system call nor a copy.
const MMAP_BYTES: i64 = 0x7fff_0000;

/// KiB of page cache of the writer, which keeps modified pages until the end of a transaction.
const WRITER_CACHE_KIB: i32 = 16 << 10;

/// KiB of page cache of a reader, which mostly uses the memory map.
const READER_CACHE_KIB: i32 = 2 << 10;

/// Prepared statements that are kept: more than there are.
const STATEMENTS_MAX: usize = 128;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The only one that writes.
    Writer,
    /// A read lane.
    Reader,
    /// Checkpoints.
    Maintenance,
}

/// Opens an existing file.
pub fn open(url: &Url, role: Role) -> Result<Connection, Error> {
    let flags = match role {
        Role::Reader => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Role::Writer | Role::Maintenance => OpenFlags::SQLITE_OPEN_READ_WRITE,
    } | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(&url.path, flags)?;
    wait_if_busy(&mut connection)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Otherwise, statements are compiled again each time that a bound value changes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    let kib = if role == Role::Writer { WRITER_CACHE_KIB } else { READER_CACHE_KIB };
    let cache_size = url.cache_size.clone().unwrap_or_else(|| (-kib).to_string());
    pragma(&connection, "cache_size", &cache_size)?;
    pragma(&connection, "mmap_size", &MMAP_BYTES.to_string())?;
    // Never a temporary file for a small request.
    pragma(&connection, "temp_store", "memory")?;
    if let Some(synchronous) = &url.synchronous {
        pragma(&connection, "synchronous", synchronous)?;
    }
    Ok(connection)
}

/// Statements wait for other connections, as long as it takes.
pub fn wait_if_busy(connection: &mut Connection) -> Result<(), Error> {
    Ok(connection.busy_handler(Some(wait))?)
}

/// Executes a PRAGMA and returns what it answers, if anything.
pub fn pragma(connection: &Connection, name: &str, value: &str) -> Result<Option<String>, Error> {
    let mut statement = connection.prepare(&format!("PRAGMA {name} = {value}"))?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(match row.get_ref(0)? {
        rusqlite::types::ValueRef::Integer(number) => number.to_string(),
        value => value.as_str().map_err(rusqlite::Error::from)?.to_owned(),
    }))
}

/// Bytes that are reserved at the end of each page, from the header of a file. `None` if the file
/// is new.
pub fn reserved_bytes(path: &Path) -> std::io::Result<Option<u8>> {
    use std::io::Read;
    let mut header = [0; 100];
    let mut file = std::fs::File::open(path)?;
    match file.read_exact(&mut header) {
        Ok(()) => Ok(Some(header[20])),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Busy handler: another connection has the file. Upstream retries forever too: with a rollback
/// journal, any process that reads the file delays a commit.
#[allow(clippy::disallowed_methods)] // A lane may block: it is a thread of its own.
fn wait(attempt: i32) -> bool {
    const DELAY_MAX_MS: u64 = 20;
    let delay_ms = DELAY_MAX_MS.min(1 << attempt.clamp(0, 10));
    if attempt == 100 {
        log::warn!("the database is used by another process, waiting for it");
    }
    thread::sleep(Duration::from_millis(delay_ms));
    true
}
