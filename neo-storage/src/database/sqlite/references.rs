// SPDX-License-Identifier: GPL-2.0-or-later
//! Rows of object data: how they are stored, who refers to them, when they are deleted.
//!
//! Upstream: storage/database/manager.py, `holdData`, `releaseData`; sqlite.py, `storeData`,
//! `_pruneData`.

use std::collections::BTreeMap;

use neo_common::types::{Oid, Partition, Tid};
use rusqlite::{Connection, OptionalExtension, params};

use super::{int, schema};
use crate::database::records::{Content, DataId, ObjectRecord, Refused, Value};
use crate::database::{Error, manager};

/// Uncommitted references, and how ids are given.
pub struct References {
    /// References of voted transactions (rows of `tobj`) and of spilled data, per row of `data`.
    held: BTreeMap<DataId, u32>,
    /// Next id of each range, once known. See [`manager::data_id_range`].
    next_ids: BTreeMap<i64, i64>,
    /// Equal data is stored once.
    dedup: bool,
}

/// Data for a row of `obj` or `tobj`.
pub struct Resolved {
    /// Row of `data`; `None` for a deletion.
    pub data_id: Option<DataId>,
    /// Whether a reference was counted for it.
    pub held: bool,
}

impl References {
    /// Counts the references of voted transactions.
    pub fn load(connection: &Connection) -> Result<Self, Error> {
        let mut statement = connection.prepare(
            "SELECT data_id, COUNT(*) FROM tobj WHERE data_id IS NOT NULL GROUP BY data_id",
        )?;
        let held = statement
            .query_map([], |row| Ok((DataId(row.get(0)?), row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(Self { held, next_ids: BTreeMap::new(), dedup: schema::is_dedup(connection)? })
    }

    /// Forgets everything: there is no data any more.
    pub fn clear(&mut self) {
        self.held.clear();
        self.next_ids.clear();
    }

    /// Forgets all references and returns what they were about.
    pub fn take(&mut self) -> Vec<DataId> {
        std::mem::take(&mut self.held).into_keys().collect()
    }

    /// Adds a reference.
    pub fn hold(&mut self, data_id: DataId) {
        *self.held.entry(data_id).or_default() += 1;
    }

    /// Removes a reference.
    pub fn release(&mut self, data_id: DataId) {
        match self.held.get_mut(&data_id) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                self.held.remove(&data_id);
            }
            // Going on is safe: at worst the data is deleted when a committed revision goes.
            None => log::error!("released data that was not held data_id={}", data_id.0),
        }
    }

    /// Removes a reference to each of these rows, and deletes those without any.
    pub fn release_and_prune(
        &mut self,
        connection: &Connection,
        data_ids: &[DataId],
    ) -> Result<(), Error> {
        for &data_id in data_ids {
            self.release(data_id);
        }
        self.prune(connection, data_ids).map(drop)
    }

    /// Deletes those of these rows that nothing refers to. Returns how many.
    pub fn prune(&self, connection: &Connection, data_ids: &[DataId]) -> Result<u64, Error> {
        let mut statement = connection.prepare_cached(
            "DELETE FROM data WHERE id=?1 AND NOT EXISTS (SELECT 1 FROM obj WHERE data_id=?1)",
        )?;
        let mut pruned = 0;
        for data_id in data_ids {
            if !self.held.contains_key(data_id) {
                pruned += statement.execute([data_id.0])? as u64;
            }
        }
        Ok(pruned)
    }

    /// Whether a voted transaction or a spilled object refers to it.
    pub fn is_held(&self, data_id: DataId) -> bool {
        self.held.contains_key(&data_id)
    }

    /// Finds or stores the data of an object that is voted or spilled, and holds it.
    pub fn resolve(
        &mut self,
        connection: &Connection,
        partition: Partition,
        object: &ObjectRecord,
    ) -> Result<Result<Resolved, Refused>, Error> {
        if let Content::Spilled(data_id) = object.content {
            return Ok(Ok(Resolved { data_id: Some(data_id), held: false }));
        }
        let existing = match object.data_tid {
            Some(tid) => revision_data(connection, partition, object.oid, tid)?,
            None => None,
        };
        let data_id = match (existing, &object.content) {
            (Some(data_id), _) => data_id,
            (None, Content::MustExist) => return Ok(Err(Refused::UndoPack(object.oid))),
            (None, Content::Value(value)) => match self.store(connection, partition, value)? {
                Some(data_id) => Some(data_id),
                None => return Ok(Err(Refused::Collision(object.oid))),
            },
            (None, Content::Deleted | Content::Spilled(_)) => None,
        };
        if let Some(data_id) = data_id {
            self.hold(data_id);
        }
        Ok(Ok(Resolved { data_id, held: data_id.is_some() }))
    }

    /// Stores data, or finds equal data. `None` if different data has the same hash.
    pub fn store(
        &mut self,
        connection: &Connection,
        partition: Partition,
        value: &Value,
    ) -> Result<Option<DataId>, Error> {
        if self.dedup
            && let Some((data_id, is_equal)) = find_equal(connection, value)?
        {
            return Ok(is_equal.then_some(data_id));
        }
        let (first, last) = manager::data_id_range(partition);
        let data_id = match self.next_ids.get(&first) {
            Some(&next) => next,
            None => next_id(connection, first, last)?,
        };
        if data_id > last {
            return Err(Error::Corrupted(format!("no data id left for partition {partition}")));
        }
        // Old databases have a unique index on the hash only, whatever the compression.
        let mut statement =
            connection.prepare_cached("INSERT OR IGNORE INTO data VALUES (?,?,?,?)")?;
        let Value { compression, checksum, data } = value;
        let row = params![data_id, &checksum[..], compression, &data[..]];
        if statement.execute(row)? == 0 {
            return Ok(None);
        }
        self.next_ids.insert(first, data_id + 1);
        Ok(Some(DataId(data_id)))
    }
}

/// Data of a committed revision: outer `None` if there is no such revision.
pub fn revision_data(
    connection: &Connection,
    partition: Partition,
    oid: Oid,
    tid: Tid,
) -> Result<Option<Option<DataId>>, Error> {
    let mut statement = connection
        .prepare_cached("SELECT data_id FROM obj WHERE partition=? AND oid=? AND tid=?")?;
    let key = params![partition, int(oid.get()), int(tid.get())];
    let row = |row: &rusqlite::Row<'_>| Ok(row.get::<_, Option<i64>>(0)?.map(DataId));
    Ok(statement.query_row(key, row).optional()?)
}

/// Row with the same hash, and whether its content is the same too.
fn find_equal(connection: &Connection, value: &Value) -> Result<Option<(DataId, bool)>, Error> {
    let mut statement =
        connection.prepare_cached("SELECT id, value FROM data WHERE hash=? AND compression=?")?;
    let mut rows = statement.query(params![&value.checksum[..], value.compression])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let is_equal = row.get_ref(1)?.as_bytes().is_ok_and(|data| data == value.data);
    Ok(Some((DataId(row.get(0)?), is_equal)))
}

fn next_id(connection: &Connection, first: i64, last: i64) -> Result<i64, Error> {
    let mut statement =
        connection.prepare_cached("SELECT MAX(id) FROM data WHERE id BETWEEN ? AND ?")?;
    let max: Option<i64> = statement.query_row([first, last], |row| row.get(0))?;
    Ok(max.map_or(first, |max| max + 1))
}
