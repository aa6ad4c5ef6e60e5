// SPDX-License-Identifier: GPL-2.0-or-later
//! Tables of schema version 4, and upgrades from older versions.
//!
//! Names, columns and their order are upstream's, which opens the same database and uses
//! `INSERT ... VALUES` and `SELECT *`. Upstream: storage/database/mysql.py, `_setup`, `_migrate*`.
//!
//! A statement that defines a table ends the transaction that is open, so an upgrade can be
//! interrupted anywhere: each step can be done again, and the new version is recorded by its end.

use super::row::Columns;
use super::session::Session;
use super::{Engine, sql};
use crate::database::manager::key;
use crate::database::{Error, SCHEMA_VERSION};

/// A table.
struct Table {
    name: &'static str,
    /// With a number in braces where an index has a column family, see [`FAMILIES`].
    columns: &'static str,
}

/// Column families of RocksDB, as comments of the indices that they are for.
const FAMILIES: &[&str] = &[
    " COMMENT 'cf_neo_append_meta'",
    " COMMENT 'rev:cf_neo_obj_pk'",
    " COMMENT 'cf_neo_append'",
    " COMMENT 'cf_neo_no_comp'",
];

const CONFIG: Table = Table {
    name: "config",
    columns: "name VARBINARY(255) NOT NULL PRIMARY KEY, value VARBINARY(255) NULL",
};

const PT: Table = Table {
    name: "pt",
    columns: "`partition` SMALLINT UNSIGNED NOT NULL, nid INT NOT NULL, tid BIGINT NOT NULL, \
        pack BIGINT UNSIGNED, PRIMARY KEY (`partition`, nid)",
};

/// Layout of version 3.
const PT_WITHOUT_PACK: Table = Table {
    name: "pt",
    columns: "`partition` SMALLINT UNSIGNED NOT NULL, nid INT NOT NULL, tid BIGINT NOT NULL, \
        PRIMARY KEY (`partition`, nid)",
};

const PACK: Table = Table {
    name: "pack",
    columns: "tid BIGINT UNSIGNED NOT NULL PRIMARY KEY, approved BOOLEAN, \
        partial BOOLEAN NOT NULL, oids MEDIUMBLOB, pack_tid BIGINT UNSIGNED",
};

const TRANS: Table = Table {
    name: "trans",
    columns: "`partition` SMALLINT UNSIGNED NOT NULL, tid BIGINT UNSIGNED NOT NULL, \
        packed BOOLEAN NOT NULL, oids MEDIUMBLOB NOT NULL, user BLOB NOT NULL, \
        description BLOB NOT NULL, ext BLOB NOT NULL, ttid BIGINT UNSIGNED NOT NULL, \
        PRIMARY KEY (`partition`, tid){0}",
};

const OBJ: Table = Table {
    name: "obj",
    columns: "`partition` SMALLINT UNSIGNED NOT NULL, oid BIGINT UNSIGNED NOT NULL, \
        tid BIGINT UNSIGNED NOT NULL, data_id BIGINT UNSIGNED NULL, \
        value_tid BIGINT UNSIGNED NULL, PRIMARY KEY (`partition`, oid, tid){1}, \
        KEY tid (`partition`, tid, oid){0}, KEY (data_id){0}",
};

const DATA: Table = Table {
    name: "data",
    columns: "id BIGINT UNSIGNED NOT NULL, hash BINARY(20) NOT NULL, \
        compression TINYINT UNSIGNED NULL, value MEDIUMBLOB NOT NULL, PRIMARY KEY (id){2}",
};

/// What deduplication adds to [`DATA`].
const DEDUP: &str = ", UNIQUE (hash, compression){3}";

const BIGDATA: Table = Table {
    name: "bigdata",
    columns: "id INT UNSIGNED NOT NULL AUTO_INCREMENT, value MEDIUMBLOB NOT NULL, \
        PRIMARY KEY (id){2}",
};

const TTRANS: Table = Table {
    name: "ttrans",
    columns: "`partition` SMALLINT UNSIGNED NOT NULL, tid BIGINT UNSIGNED, \
        packed BOOLEAN NOT NULL, oids MEDIUMBLOB NOT NULL, user BLOB NOT NULL, \
        description BLOB NOT NULL, ext BLOB NOT NULL, ttid BIGINT UNSIGNED NOT NULL, \
        PRIMARY KEY (ttid){3}",
};

const TOBJ: Table = Table {
    name: "tobj",
    columns: "`partition` SMALLINT UNSIGNED NOT NULL, oid BIGINT UNSIGNED NOT NULL, \
        tid BIGINT UNSIGNED NOT NULL, data_id BIGINT UNSIGNED NULL, \
        value_tid BIGINT UNSIGNED NULL, PRIMARY KEY (tid, oid){3}",
};

const TODEL: Table =
    Table { name: "todel", columns: "data_id BIGINT UNSIGNED NOT NULL, PRIMARY KEY (data_id){3}" };

/// In the order of creation, after [`CONFIG`].
const TABLES: [&Table; 9] = [&PT, &PACK, &TRANS, &OBJ, &DATA, &BIGDATA, &TTRANS, &TOBJ, &TODEL];

impl Table {
    fn create(&self, name: &str, extra: &str, engine: Engine) -> String {
        let mut columns = format!("{}{extra}", self.columns);
        for (index, family) in FAMILIES.iter().enumerate() {
            let comment = if engine == Engine::RocksDb { family } else { "" };
            columns = columns.replace(&format!("{{{index}}}"), comment);
        }
        format!("CREATE TABLE {name} ({columns}) ENGINE={}", engine.name())
    }
}

/// What an existing database holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// No NEO database.
    Nothing,
    /// A database of this version that can be opened, and the name of its cluster.
    Version(u32, Option<String>),
}

/// Looks at a database without changing it.
pub fn look(session: &mut Session) -> Result<Found, Error> {
    if !has_table(session, CONFIG.name)? {
        if has_table(session, "obj_short")? {
            return Err(ancient());
        }
        return Ok(Found::Nothing);
    }
    let version = match config(session, key::VERSION)? {
        None => 0,
        Some(text) => {
            text.parse().map_err(|_| Error::Corrupted(format!("version in config is {text:?}")))?
        }
    };
    if version > SCHEMA_VERSION {
        return Err(Error::Newer(version));
    }
    let name = config(session, key::NAME)?;
    if version < 1 {
        let has_old = has_table(session, OBJ.name)? && !has_column(session, OBJ.name, "data_id")?;
        if has_old || has_table(session, "obj_short")? {
            return Err(ancient());
        }
        if has_rows(session, TTRANS.name)? || has_rows(session, TOBJ.name)? {
            return Err(Error::Upgrade(
                "there are unfinished transactions; use an older version of NEO to verify them"
                    .into(),
            ));
        }
    }
    check_engines(session)?;
    Ok(Found::Version(version, name))
}

fn ancient() -> Error {
    Error::Upgrade(
        "it was made by NEO 0.9 or 0.10, whose format is another one. Export it with that version \
         (neomigrate -c CLUSTER MASTERS Data.fs) and import the file into a new cluster; or upgrade \
         it by hand to version 1.0 with the SQL statements of the file UPGRADE.rst of NEO 1.0"
            .into(),
    )
}

/// Tables that do not know transactions would lose what was promised.
fn check_engines(session: &mut Session) -> Result<(), Error> {
    let tables = session.rows(
        "SELECT TABLE_NAME, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()",
        (),
        |row| {
            let mut columns = Columns::new(row);
            Ok((columns.optional_text()?, columns.optional_text()?))
        },
    )?;
    for (table, engine) in tables {
        let (table, engine) = (table.unwrap_or_default(), engine.unwrap_or_default());
        let is_ours = table == CONFIG.name || TABLES.iter().any(|ours| ours.name == table);
        if is_ours && !["InnoDB", "ROCKSDB", "RocksDB", "TokuDB"].contains(&engine.as_str()) {
            return Err(Error::Upgrade(format!(
                "the engine of table {table} is {engine:?}, that has no transactions"
            )));
        }
    }
    Ok(())
}

/// Creates what is missing and upgrades what is old. `found` is what [`look`] returned.
pub fn set_up(
    session: &mut Session,
    found: &Found,
    engine: Engine,
    dedup: bool,
    cluster: &str,
) -> Result<(), Error> {
    match found {
        Found::Nothing => {
            session.define(&CONFIG.create(CONFIG.name, "", engine))?;
            let version = SCHEMA_VERSION.to_string();
            committed(session, |session| set_config(session, key::VERSION, Some(&version)))?;
        }
        Found::Version(version, _) => {
            for version in version + 1..=SCHEMA_VERSION {
                log::info!("upgrading the database to version {version}");
                upgrade(session, version, engine)?;
                let version = version.to_string();
                committed(session, |session| set_config(session, key::VERSION, Some(&version)))?;
            }
        }
    }
    for table in TABLES {
        let extra = if dedup && table.name == DATA.name { DEDUP } else { "" };
        let name = format!("IF NOT EXISTS {}", table.name);
        session.define(&table.create(&name, extra, engine))?;
    }
    if config(session, key::NAME)?.is_none() {
        committed(session, |session| set_config(session, key::NAME, Some(cluster)))?;
    }
    Ok(())
}

/// Drops all tables.
pub fn erase(session: &mut Session) -> Result<(), Error> {
    let mut names = String::from(CONFIG.name);
    for table in TABLES {
        names.push_str(", ");
        names.push_str(table.name);
    }
    // What an interrupted upgrade left, and a table of version 0.9.
    session.define(&format!("DROP TABLE IF EXISTS {names}, new_obj, new_pt, obj_short"))
}

/// Whether equal data is stored once: there is a unique index.
pub fn is_dedup(session: &mut Session) -> Result<bool, Error> {
    let sql = "SHOW INDEX FROM data WHERE Key_name = 'hash'";
    Ok(session.row(sql, ())?.is_some())
}

fn committed(
    session: &mut Session,
    action: impl FnOnce(&mut Session) -> Result<(), Error>,
) -> Result<(), Error> {
    session.begin();
    action(session)?;
    session.commit()
}

fn upgrade(session: &mut Session, version: u32, engine: Engine) -> Result<(), Error> {
    match version {
        // `look` checked that it is empty. It is created again with the current definition.
        1 => session.define("DROP TABLE IF EXISTS ttrans"),
        // The primary key became (partition, oid, tid).
        2 => rewrite(session, &OBJ, engine, "*"),
        // From (rid, nid, state) to (partition, nid, tid); the states had other numbers.
        3 => rewrite(
            session,
            &PT_WITHOUT_PACK,
            engine,
            "rid AS `partition`, nid, CASE state WHEN 0 THEN -1 WHEN 2 THEN -2 ELSE 1 - state END \
             AS tid",
        ),
        4 => {
            committed(session, |session| set_config(session, key::PARTITIONS, None))?;
            let nid = config(session, key::NID)?.and_then(|text| text.parse::<i32>().ok());
            // Done already, if only the version was not recorded.
            if has_column(session, PT.name, "pack")? {
                return Ok(());
            }
            let select = match nid {
                Some(nid) => format!("*, IF(nid={nid}, 0, NULL) AS pack"),
                None => "*, NULL AS pack".into(),
            };
            rewrite(session, &PT, engine, &select)
        }
        _ => unreachable!("versions are 1 to {SCHEMA_VERSION}"),
    }
}

/// Replaces a table by one with another definition and the same rows.
///
/// If this was interrupted, `new_X` is incomplete as long as X exists; without X, only renaming
/// remains to be done.
fn rewrite(
    session: &mut Session,
    table: &Table,
    engine: Engine,
    select: &str,
) -> Result<(), Error> {
    let (old, new) = (table.name, format!("new_{}", table.name));
    if has_table(session, old)? {
        // Step 3 done already, if only the version was not recorded.
        if table.name == PT.name && select.starts_with("rid") && !has_column(session, old, "rid")? {
            return Ok(());
        }
        session.define(&format!("DROP TABLE IF EXISTS {new}"))?;
        let create = table.create(&new, "", engine);
        session.define(&format!("{create} SELECT {select} FROM {old}"))?;
        session.define(&format!("DROP TABLE {old}"))?;
    } else if !has_table(session, &new)? {
        return Ok(());
    }
    session.define(&format!("ALTER TABLE {new} RENAME TO {old}"))
}

fn has_table(session: &mut Session, name: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM information_schema.TABLES \
        WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?";
    Ok(session.row(sql, (name,))?.is_some())
}

fn has_column(session: &mut Session, table: &str, column: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM information_schema.COLUMNS \
        WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? AND COLUMN_NAME = ?";
    Ok(session.row(sql, (table, column))?.is_some())
}

fn has_rows(session: &mut Session, table: &str) -> Result<bool, Error> {
    if !has_table(session, table)? {
        return Ok(false);
    }
    Ok(session.row(&format!("SELECT 1 FROM {table} LIMIT 1"), ())?.is_some())
}

/// Value of a key in table `config`.
pub fn config(session: &mut Session, name: &str) -> Result<Option<String>, Error> {
    match session.row("SELECT value FROM config WHERE name=?", (name.as_bytes(),))? {
        Some(row) => Columns::new(row).optional_text(),
        None => Ok(None),
    }
}

/// All of table `config`.
pub fn all_config(session: &mut Session) -> Result<Vec<(String, String)>, Error> {
    let rows = session.rows("SELECT name, value FROM config", (), |row| {
        let mut columns = Columns::new(row);
        Ok((columns.optional_text()?, columns.optional_text()?))
    })?;
    Ok(rows.into_iter().filter_map(|(name, value)| Some((name?, value?))).collect())
}

/// Sets a key of table `config`, or deletes it.
pub fn set_config(session: &mut Session, name: &str, value: Option<&str>) -> Result<(), Error> {
    let mut text = String::new();
    match value {
        Some(value) => {
            text.push_str("REPLACE INTO config VALUES (");
            sql::bytes(&mut text, name.as_bytes());
            text.push(',');
            sql::bytes(&mut text, value.as_bytes());
            text.push(')');
        }
        None => {
            text.push_str("DELETE FROM config WHERE name=");
            sql::bytes(&mut text, name.as_bytes());
        }
    }
    session.write(&text)
}
