// SPDX-License-Identifier: GPL-2.0-or-later
//! Tables of schema version 4, and upgrades from older versions.
//!
//! Names, columns and their order are upstream's, which opens the same files and uses
//! `INSERT ... VALUES` and `SELECT *`. Upstream: storage/database/sqlite.py, `_setup`, `_migrate*`.
//!
//! Each step of an upgrade is one database transaction that ends by recording the new version. Since
//! upstream does not use transactions here, an upgrade that it began may have left a table `new_X`
//! behind: see `rewrite`.

use rusqlite::{Connection, OptionalExtension};

use crate::database::manager::key;
use crate::database::{Error, SCHEMA_VERSION};

/// A table, with `{}` in place of its name, and its indices.
struct Table {
    name: &'static str,
    definition: &'static str,
    indices: &'static [&'static str],
}

const CONFIG: Table = Table {
    name: "config",
    definition: "name TEXT NOT NULL PRIMARY KEY, value TEXT) WITHOUT ROWID",
    indices: &[],
};

const PT: Table = Table {
    name: "pt",
    definition: "partition INTEGER NOT NULL, nid INTEGER NOT NULL, tid INTEGER NOT NULL, \
        pack INTEGER, PRIMARY KEY (partition, nid)) WITHOUT ROWID",
    indices: &[],
};

/// Layout of version 3.
const PT_WITHOUT_PACK: &str = "partition INTEGER NOT NULL, nid INTEGER NOT NULL, \
    tid INTEGER NOT NULL, PRIMARY KEY (partition, nid)) WITHOUT ROWID";

const PACK: Table = Table {
    name: "pack",
    definition: "tid INTEGER PRIMARY KEY, approved BOOLEAN, partial BOOLEAN NOT NULL, oids BLOB, \
        pack_tid INTEGER)",
    indices: &[],
};

const TRANS: Table = Table {
    name: "trans",
    definition: "partition INTEGER NOT NULL, tid INTEGER NOT NULL, packed BOOLEAN NOT NULL, \
        oids BLOB NOT NULL, user BLOB NOT NULL, description BLOB NOT NULL, ext BLOB NOT NULL, \
        ttid INTEGER NOT NULL, PRIMARY KEY (partition, tid)) WITHOUT ROWID",
    indices: &[],
};

const OBJ: Table = Table {
    name: "obj",
    definition: "partition INTEGER NOT NULL, oid INTEGER NOT NULL, tid INTEGER NOT NULL, \
        data_id INTEGER, value_tid INTEGER, PRIMARY KEY (partition, oid, tid)) WITHOUT ROWID",
    indices: &[
        "CREATE INDEX IF NOT EXISTS _obj_i1 ON obj(partition, tid, oid)",
        "CREATE INDEX IF NOT EXISTS _obj_i2 ON obj(data_id)",
    ],
};

const DATA: Table = Table {
    name: "data",
    definition: "id INTEGER PRIMARY KEY, hash BLOB NOT NULL, compression INTEGER NOT NULL, \
        value BLOB NOT NULL)",
    indices: &[],
};

const TTRANS: Table = Table {
    name: "ttrans",
    definition: "partition INTEGER NOT NULL, tid INTEGER, packed BOOLEAN NOT NULL, \
        oids BLOB NOT NULL, user BLOB NOT NULL, description BLOB NOT NULL, ext BLOB NOT NULL, \
        ttid INTEGER NOT NULL)",
    indices: &[],
};

const TOBJ: Table = Table {
    name: "tobj",
    definition: "partition INTEGER NOT NULL, oid INTEGER NOT NULL, tid INTEGER NOT NULL, \
        data_id INTEGER, value_tid INTEGER, PRIMARY KEY (tid, oid)) WITHOUT ROWID",
    indices: &[],
};

/// In the order of creation. CONFIG comes first: without it, there is no database.
const TABLES: [&Table; 8] = [&CONFIG, &PT, &PACK, &TRANS, &OBJ, &DATA, &TTRANS, &TOBJ];

/// Unique index of deduplication.
const DEDUP: &str = "CREATE UNIQUE INDEX IF NOT EXISTS _data_i1 ON data(hash, compression)";

impl Table {
    fn create(&self, connection: &Connection) -> Result<(), Error> {
        connection.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {} ({}",
            self.name, self.definition
        ))?;
        for index in self.indices {
            connection.execute_batch(index)?;
        }
        Ok(())
    }
}

/// What an existing file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// No NEO database.
    Nothing,
    /// A database of this version that can be opened, and the name of its cluster.
    Version(u32, Option<String>),
}

/// Looks at a file without changing it.
pub fn look(connection: &Connection) -> Result<Found, Error> {
    if !has_table(connection, CONFIG.name)? {
        return Ok(Found::Nothing);
    }
    let version = match config(connection, key::VERSION)? {
        None => 0,
        Some(text) => {
            text.parse().map_err(|_| Error::Corrupted(format!("version in config is {text:?}")))?
        }
    };
    if version > SCHEMA_VERSION {
        return Err(Error::Newer(version));
    }
    if version < 1 && (has_rows(connection, TTRANS.name)? || has_rows(connection, TOBJ.name)?) {
        return Err(Error::Upgrade(
            "there are unfinished transactions; use an older version of NEO to verify them".into(),
        ));
    }
    Ok(Found::Version(version, config(connection, key::NAME)?))
}

/// Creates what is missing and upgrades what is old. `found` is what [`look`] returned.
pub fn set_up(connection: &Connection, found: &Found, dedup: bool) -> Result<(), Error> {
    if let Found::Version(version, _) = found {
        for version in version + 1..=SCHEMA_VERSION {
            log::info!("upgrading the database to version {version}");
            transaction(connection, || {
                upgrade(connection, version)?;
                set_config(connection, key::VERSION, Some(&version.to_string()))
            })?;
        }
    }
    transaction(connection, || {
        for table in TABLES {
            table.create(connection)?;
        }
        if dedup {
            connection.execute_batch(DEDUP)?;
        }
        if *found == Found::Nothing {
            set_config(connection, key::VERSION, Some(&SCHEMA_VERSION.to_string()))?;
        }
        Ok(())
    })
}

/// Drops all tables. The caller has a transaction.
pub fn erase(connection: &Connection) -> Result<(), Error> {
    for table in TABLES {
        connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", table.name))?;
    }
    Ok(())
}

/// Whether equal data is stored once: there is a unique index.
pub fn is_dedup(connection: &Connection) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM pragma_index_list('data') WHERE \"unique\"";
    Ok(connection.query_row(sql, [], |_| Ok(())).optional()?.is_some())
}

/// Runs `action` in a transaction. It is rolled back if it fails.
pub fn transaction<T>(
    connection: &Connection,
    action: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let result = action();
    match result {
        Ok(_) => connection.execute_batch("COMMIT")?,
        Err(_) => connection.execute_batch("ROLLBACK")?,
    }
    result
}

fn upgrade(connection: &Connection, version: u32) -> Result<(), Error> {
    match version {
        // `look` checked that it is empty. It is created again with the current definition.
        1 => Ok(connection.execute_batch("DROP TABLE IF EXISTS ttrans")?),
        // The primary key became (partition, oid, tid).
        2 => rewrite(connection, OBJ.name, OBJ.definition, "*"),
        // From (rid, nid, state) to (partition, nid, tid); the states had other numbers.
        3 => rewrite(
            connection,
            PT.name,
            PT_WITHOUT_PACK,
            "rid, nid, CASE state WHEN 0 THEN -1 WHEN 2 THEN -2 ELSE 1 - state END",
        ),
        4 => {
            set_config(connection, key::PARTITIONS, None)?;
            let nid = config(connection, key::NID)?.and_then(|text| text.parse::<i32>().ok());
            let pack = match nid {
                Some(nid) => format!("*, CASE nid WHEN {nid} THEN 0 END"),
                None => "*, NULL".into(),
            };
            rewrite(connection, PT.name, PT.definition, &pack)
        }
        _ => unreachable!("versions are 1 to {SCHEMA_VERSION}"),
    }
}

/// Replaces a table by one with another definition and the same rows.
///
/// An interrupted upgrade by upstream may have left `new_X`: beside X, it is incomplete; without X,
/// only renaming remained to be done.
fn rewrite(
    connection: &Connection,
    table: &str,
    definition: &str,
    select: &str,
) -> Result<(), Error> {
    let new = format!("new_{table}");
    if has_table(connection, table)? {
        connection.execute_batch(&format!(
            "DROP TABLE IF EXISTS {new};
             CREATE TABLE {new} ({definition};
             INSERT INTO {new} SELECT {select} FROM {table};
             DROP TABLE {table}"
        ))?;
    } else if !has_table(connection, &new)? {
        return Ok(());
    }
    Ok(connection.execute_batch(&format!("ALTER TABLE {new} RENAME TO {table}"))?)
}

fn has_table(connection: &Connection, name: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM sqlite_master WHERE type='table' AND name=?";
    Ok(connection.query_row(sql, [name], |_| Ok(())).optional()?.is_some())
}

fn has_rows(connection: &Connection, table: &str) -> Result<bool, Error> {
    if !has_table(connection, table)? {
        return Ok(false);
    }
    let sql = format!("SELECT 1 FROM {table} LIMIT 1");
    Ok(connection.query_row(&sql, [], |_| Ok(())).optional()?.is_some())
}

/// Value of a key in table `config`.
pub fn config(connection: &Connection, name: &str) -> Result<Option<String>, Error> {
    let mut statement = connection.prepare_cached("SELECT value FROM config WHERE name=?")?;
    let mut rows = statement.query([name])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    // Python 2 stored texts as texts, but be lenient: it is only about the type of a value.
    match row.get_ref(0)?.as_bytes_or_null() {
        Ok(None) => Ok(None),
        Ok(Some(text)) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
        Err(_) => Ok(Some(row.get::<_, i64>(0)?.to_string())),
    }
}

/// Sets a key of table `config`, or deletes it.
pub fn set_config(connection: &Connection, name: &str, value: Option<&str>) -> Result<(), Error> {
    match value {
        Some(value) => {
            connection.prepare_cached("REPLACE INTO config VALUES (?,?)")?.execute([name, value])?
        }
        None => connection.prepare_cached("DELETE FROM config WHERE name=?")?.execute([name])?,
    };
    Ok(())
}
