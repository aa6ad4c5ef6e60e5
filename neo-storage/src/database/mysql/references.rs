// SPDX-License-Identifier: GPL-2.0-or-later
//! Rows of object data: how they are stored, who refers to them, when they are deleted.
//!
//! Upstream: storage/database/manager.py, `holdData`, `releaseData`; mysql.py, `storeData`,
//! `_pruneData`.

use std::collections::{BTreeMap, BTreeSet};

use neo_common::types::{Hash, Oid, Partition, Tid, Ttid};

use super::bigdata::{self, Reference};
use super::error::is_duplicate;
use super::row::Columns;
use super::session::Session;
use super::{int, params, schema, sql};
use crate::database::records::{Content, DataId, ObjectRecord, Refused, Value};
use crate::database::{Error, manager};

/// Bytes of a value from which it is sent alone, as it is, by a prepared statement.
const ALONE_BYTES: usize = 64 << 10;

/// Uncommitted references, and how ids are given.
pub struct References {
    /// References of voted transactions (rows of `tobj`) and of spilled data, per row of `data`.
    held: BTreeMap<DataId, u32>,
    /// Data of the rows of `tobj`, so that a transaction is finished without reading them.
    voted: BTreeMap<Ttid, Vec<(Partition, DataId)>>,
    /// Next id of each range, once known. See [`manager::data_id_range`].
    next_ids: BTreeMap<i64, i64>,
    /// Equal data is stored once.
    dedup: bool,
}

/// Data for a row of `obj` or `tobj`.
#[derive(Clone, Copy)]
pub struct Resolved {
    /// Row of `data`; `None` for a deletion.
    pub data_id: Option<DataId>,
    /// Whether a reference was counted for it.
    pub held: bool,
}

impl References {
    /// Counts the references of voted transactions.
    pub fn load(session: &mut Session) -> Result<Self, Error> {
        let dedup = schema::is_dedup(session)?;
        let sql = "SELECT tid, `partition`, data_id FROM tobj WHERE data_id IS NOT NULL";
        let rows = session.rows(sql, (), |row| {
            let mut columns = Columns::new(row);
            let ttid = Ttid::new(columns.int()? as u64);
            Ok((ttid, columns.number()?, DataId(columns.int()?)))
        })?;
        let (held, voted, next_ids) = Default::default();
        let mut references = Self { held, voted, next_ids, dedup };
        for (ttid, partition, data_id) in rows {
            references.hold(data_id);
            references.voted(ttid, partition, data_id);
        }
        Ok(references)
    }

    /// Forgets everything: there is no data any more.
    pub fn clear(&mut self) {
        self.held.clear();
        self.voted.clear();
        self.next_ids.clear();
    }

    /// Forgets all references and returns what they were about.
    pub fn take(&mut self) -> Vec<DataId> {
        self.voted.clear();
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

    /// Records that a row of `tobj` refers to data that is held.
    pub fn voted(&mut self, ttid: Ttid, partition: Partition, data_id: DataId) {
        self.voted.entry(ttid).or_default().push((partition, data_id));
    }

    /// Data that the rows of `tobj` of a transaction refer to. They are forgotten; it is still held.
    pub fn take_voted(&mut self, ttid: Ttid) -> Vec<DataId> {
        let rows = self.voted.remove(&ttid).unwrap_or_default();
        rows.into_iter().map(|(_, data_id)| data_id).collect()
    }

    /// The same, for the rows of a partition.
    pub fn take_voted_in(&mut self, partition: Partition) -> Vec<DataId> {
        let mut data_ids = Vec::new();
        for rows in self.voted.values_mut() {
            rows.retain(|(other, data_id)| {
                if *other == partition {
                    data_ids.push(*data_id);
                }
                *other != partition
            });
        }
        self.voted.retain(|_, rows| !rows.is_empty());
        data_ids
    }

    /// Removes a reference to each of these rows, and deletes those without any.
    pub fn release_and_prune(
        &mut self,
        session: &mut Session,
        data_ids: &[DataId],
    ) -> Result<(), Error> {
        for &data_id in data_ids {
            self.release(data_id);
        }
        self.prune(session, data_ids).map(drop)
    }

    /// Deletes those of these rows that nothing refers to. Returns how many.
    pub fn prune(&self, session: &mut Session, data_ids: &[DataId]) -> Result<u64, Error> {
        let candidates: BTreeSet<i64> = data_ids
            .iter()
            .filter(|data_id| !self.held.contains_key(data_id))
            .map(|data_id| data_id.0)
            .collect();
        let candidates: Vec<_> = candidates.into_iter().collect();
        let mut pruned = 0;
        for candidates in candidates.chunks(sql::KEYS_MAX) {
            let mut query = String::from(
                "SELECT id, IF(compression >= 128, value, NULL) FROM data \
                 LEFT JOIN obj FORCE INDEX (data_id) ON data_id = id \
                 WHERE data_id IS NULL AND id IN (",
            );
            sql::list(&mut query, candidates.iter().copied());
            query.push(')');
            let rows = session.rows(&query, (), |row| {
                let mut columns = Columns::new(row);
                Ok((columns.int()?, columns.optional_bytes()?))
            })?;
            let mut chunks = Vec::new();
            for reference in rows.iter().filter_map(|(_, reference)| reference.as_ref()) {
                chunks.extend(Reference::decode(reference)?.ids());
            }
            delete(session, "data", rows.iter().map(|(id, _)| *id))?;
            delete(session, "bigdata", chunks.into_iter())?;
            pruned += rows.len() as u64;
        }
        Ok(pruned)
    }

    /// Whether a voted transaction or a spilled object refers to it.
    pub fn is_held(&self, data_id: DataId) -> bool {
        self.held.contains_key(&data_id)
    }

    /// Finds or stores the data of objects that are voted or spilled, and holds it. If one is
    /// refused, nothing is held or stored.
    pub fn resolve(
        &mut self,
        session: &mut Session,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Result<Vec<Resolved>, Refused>, Error> {
        let mut resolved = Vec::with_capacity(objects.len());
        let mut values = Values::default();
        let mut refused = None;
        for object in objects {
            let partition = object.oid.partition(partitions);
            match self.resolve_one(session, &mut values, partition, object)? {
                Ok(found) => resolved.push(found),
                Err(reason) => {
                    refused = Some(reason);
                    break;
                }
            }
        }
        let held = |resolved: &[Resolved]| -> Vec<DataId> {
            resolved.iter().filter(|found| found.held).filter_map(|found| found.data_id).collect()
        };
        match refused {
            None => {
                values.send(session)?;
                Ok(Ok(resolved))
            }
            Some(refused) => {
                // What was not sent needs not be.
                self.release_and_prune(session, &held(&resolved))?;
                Ok(Err(refused))
            }
        }
    }

    fn resolve_one(
        &mut self,
        session: &mut Session,
        values: &mut Values,
        partition: Partition,
        object: &ObjectRecord,
    ) -> Result<Result<Resolved, Refused>, Error> {
        if let Content::Spilled(data_id) = object.content {
            return Ok(Ok(Resolved { data_id: Some(data_id), held: false }));
        }
        let existing = match object.data_tid {
            Some(tid) => revision_data(session, partition, object.oid, tid)?,
            None => None,
        };
        let data_id = match (existing, &object.content) {
            (Some(data_id), _) => data_id,
            (None, Content::MustExist) => return Ok(Err(Refused::UndoPack(object.oid))),
            (None, Content::Value(value)) => match self.store(session, values, partition, value)? {
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

    /// Stores data, or finds equal data. `None` if different data has the same hash. The rows are
    /// only in the database after [`Values::send`].
    pub fn store(
        &mut self,
        session: &mut Session,
        values: &mut Values,
        partition: Partition,
        value: &Value,
    ) -> Result<Option<DataId>, Error> {
        if self.dedup
            && let Some((data_id, is_equal)) = values.find_equal(session, value)?
        {
            return Ok(is_equal.then_some(data_id));
        }
        let (first, last) = manager::data_id_range(partition);
        let id = match self.next_ids.get(&first) {
            Some(&next) => next,
            None => next_id(session, first, last)?,
        };
        if id > last {
            return Err(Error::Corrupted(format!("no data id left for partition {partition}")));
        }
        if !values.insert(session, id, value, self.dedup)? {
            return Ok(None);
        }
        self.next_ids.insert(first, id + 1);
        Ok(Some(DataId(id)))
    }
}

/// Rows of `data` that are sent together.
#[derive(Default)]
pub struct Values {
    statement: String,
}

const INSERT: &str = "INSERT INTO data VALUES ";

impl Values {
    /// Adds a row. `false` if another row has the same hash.
    fn insert(
        &mut self,
        session: &mut Session,
        id: i64,
        value: &Value,
        is_unique: bool,
    ) -> Result<bool, Error> {
        let Value { compression, checksum, data } = value;
        if data.len() >= bigdata::BYTES_MIN {
            let reference = bigdata::store(session, data)?;
            let compression = compression | bigdata::FLAG;
            return insert_alone(session, id, compression, checksum, &reference.encode());
        }
        if is_unique || data.len() >= ALONE_BYTES {
            return insert_alone(session, id, *compression, checksum, data);
        }
        self.statement.push_str(if self.statement.is_empty() { INSERT } else { "," });
        self.statement.push('(');
        sql::int(&mut self.statement, id);
        self.statement.push(',');
        sql::bytes(&mut self.statement, checksum);
        self.statement.push(',');
        sql::int(&mut self.statement, *compression);
        self.statement.push(',');
        sql::bytes(&mut self.statement, data);
        self.statement.push(')');
        if self.statement.len() >= Session::statement_bytes() {
            self.send(session)?;
        }
        Ok(true)
    }

    /// Hands the rows over to the session.
    pub fn send(&mut self, session: &mut Session) -> Result<(), Error> {
        if !self.statement.is_empty() {
            session.write(&self.statement)?;
            self.statement.clear();
        }
        Ok(())
    }

    /// Row with the same hash, and whether its content is the same too.
    fn find_equal(
        &mut self,
        session: &mut Session,
        value: &Value,
    ) -> Result<Option<(DataId, bool)>, Error> {
        let is_big = value.data.len() >= bigdata::BYTES_MIN;
        let compression = value.compression | if is_big { bigdata::FLAG } else { 0 };
        let sql = "SELECT id, value FROM data WHERE hash=? AND compression=?";
        let Some(row) = session.row(sql, params![&value.checksum[..], compression])? else {
            return Ok(None);
        };
        let mut columns = Columns::new(row);
        let data_id = DataId(columns.int()?);
        let mut data = Some(columns.bytes()?);
        if is_big {
            let reference = Reference::decode(data.as_deref().unwrap_or_default())?;
            data = bigdata::load(session, reference)?;
        }
        Ok(Some((data_id, data.as_ref() == Some(&value.data))))
    }
}

/// Old databases have a unique index on the hash only, whatever the compression.
fn insert_alone(
    session: &mut Session,
    id: i64,
    compression: u8,
    checksum: &Hash,
    data: &[u8],
) -> Result<bool, Error> {
    const DUPLICATE: u64 = 1;
    let row = params![id, &checksum[..], compression, data];
    let result = session.execute_or("INSERT INTO data VALUES (?,?,?,?)", row, |error| {
        is_duplicate(error).then_some(DUPLICATE)
    })?;
    Ok(result != DUPLICATE)
}

fn delete(
    session: &mut Session,
    table: &str,
    ids: impl ExactSizeIterator<Item = i64>,
) -> Result<(), Error> {
    if ids.len() == 0 {
        return Ok(());
    }
    let mut statement = format!("DELETE FROM {table} WHERE id IN (");
    sql::list(&mut statement, ids);
    statement.push(')');
    session.write(&statement)
}

/// Data of a committed revision: outer `None` if there is no such revision.
pub fn revision_data(
    session: &mut Session,
    partition: Partition,
    oid: Oid,
    tid: Tid,
) -> Result<Option<Option<DataId>>, Error> {
    let sql = "SELECT data_id FROM obj WHERE `partition`=? AND oid=? AND tid=?";
    let row = session.row(sql, params![partition, int(oid.get()), int(tid.get())])?;
    row.map(|row| Ok(Columns::new(row).optional_int()?.map(DataId))).transpose()
}

fn next_id(session: &mut Session, first: i64, last: i64) -> Result<i64, Error> {
    let sql = "SELECT MAX(id) FROM data WHERE id BETWEEN ? AND ?";
    let row = session.row(sql, params![first, last])?;
    let max = row.map(|row| Columns::new(row).optional_int()).transpose()?.flatten();
    Ok(max.map_or(first, |max| max + 1))
}
