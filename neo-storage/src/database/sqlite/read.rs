// SPDX-License-Identifier: GPL-2.0-or-later
//! Queries of the SQLite backend.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use neo_common::types::{Hash, Oid, Partition, Tid, Ttid, ZERO_HASH};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{cells, int, schema};
use crate::database::records::*;
use crate::database::{Error, Reader, manager};

/// Revision without the next one, exactly at a tid: columns of [`revision`].
const FETCH: &str = "SELECT tid, value_tid, data_id, compression, hash, value
    FROM obj LEFT JOIN data ON id = data_id
    WHERE partition=?1 AND oid=?2 AND tid=?3";

/// The last revision: there is no next one.
const LOAD_LAST: &str = "SELECT tid, value_tid, data_id, compression, hash, value
    FROM obj LEFT JOIN data ON id = data_id
    WHERE partition=?1 AND oid=?2 ORDER BY tid DESC LIMIT 1";

const LOAD_AT: &str = "SELECT tid, value_tid, data_id, compression, hash, value,
        (SELECT n.tid FROM obj AS n WHERE n.partition=?1 AND n.oid=?2 AND n.tid>?3
         ORDER BY n.tid LIMIT 1)
    FROM obj LEFT JOIN data ON id = data_id
    WHERE partition=?1 AND oid=?2 AND tid=?3";

/// The revision that follows the last one before `before` is the first one from there on.
const LOAD_BEFORE: &str = "SELECT tid, value_tid, data_id, compression, hash, value,
        (SELECT n.tid FROM obj AS n WHERE n.partition=?1 AND n.oid=?2 AND n.tid>=?3
         ORDER BY n.tid LIMIT 1)
    FROM obj LEFT JOIN data ON id = data_id
    WHERE partition=?1 AND oid=?2 AND tid<?3 ORDER BY tid DESC LIMIT 1";

const LAST_TID: &str = "SELECT tid FROM obj WHERE partition=? AND oid=? ORDER BY tid DESC LIMIT 1";

const HAS_REVISION: &str = "SELECT 1 FROM obj WHERE partition=? AND oid=? AND tid=?";

const TRANSACTION: &str = "SELECT trans.oids, user, description, ext, packed, ttid,
        pack.tid, approved, partial, pack.oids, pack_tid
    FROM trans LEFT JOIN pack ON pack.tid = trans.tid
    WHERE partition=?1 AND trans.tid=?2";

/// A connection that reads.
pub struct SqliteReader {
    connection: Connection,
}

impl SqliteReader {
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn undo_history(
        &self,
        partition: Partition,
        oid: Oid,
        undone_tid: Tid,
    ) -> Result<Option<manager::UndoHistory>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tid FROM obj WHERE partition=? AND oid=? AND tid<=? ORDER BY tid DESC LIMIT 2",
        )?;
        let key = params![partition, int(oid.get()), int(undone_tid.get())];
        let mut rows = statement.query(key)?;
        match rows.next()? {
            Some(row) if tid(row, 0)? == undone_tid => {}
            _ => return Ok(None),
        }
        let previous = rows.next()?.map(|row| tid(row, 0)).transpose()?;
        let mut statement = self.connection.prepare_cached(
            "SELECT tid, value_tid FROM obj WHERE partition=? AND oid=? AND tid>? ORDER BY tid",
        )?;
        let later = statement.query_map(key, |row| Ok((tid(row, 0)?, optional_tid(row, 1)?)))?;
        Ok(Some(manager::UndoHistory { previous, later: later.collect::<Result<_, _>>()? }))
    }
}

impl Reader for SqliteReader {
    fn open_snapshot(&mut self) -> Result<(), Error> {
        self.connection.prepare_cached("BEGIN")?.execute([])?;
        Ok(())
    }

    fn close_snapshot(&mut self) -> Result<(), Error> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    fn config(&mut self) -> Result<StoredConfig, Error> {
        manager::parse_config(|name| schema::config(&self.connection, name))
    }

    fn partition_table(&mut self) -> Result<Vec<StoredCell>, Error> {
        cells::rows(&self.connection)?.iter().map(manager::PtRow::cell).collect()
    }

    fn cell_next_tids(&mut self) -> Result<Vec<(Partition, CellNext)>, Error> {
        let config = self.config()?;
        let mut result = Vec::new();
        for row in cells::own_rows(&self.connection, &config)? {
            let partition = row.partition;
            let last_tids = || cells::last_tids(&self.connection, partition);
            let next = manager::cell_next(&row, config.backup_tid, last_tids)?;
            result.extend(next.map(|next| (partition, next)));
        }
        Ok(result)
    }

    fn packed_cells(&mut self) -> Result<Vec<PackedCell>, Error> {
        let rows = cells::rows(&self.connection)?;
        Ok(rows.iter().filter_map(manager::PtRow::packed).collect())
    }

    fn pack_orders(
        &mut self,
        readable: &[Partition],
        partitions: u32,
        min_id: Tid,
    ) -> Result<Vec<(Tid, PackOrder)>, Error> {
        let sql = "SELECT tid, approved, partial, oids, pack_tid FROM pack \
                   WHERE tid>=? AND tid NOT IN (SELECT ttid FROM ttrans) ORDER BY tid";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([int(min_id.get())])?;
        let mut result = Vec::new();
        while let Some(row) = rows.next()? {
            let id = tid(row, 0)?;
            if readable.contains(&id.partition(partitions)) {
                result.push((id, pack_order(row, 1)?));
            }
        }
        Ok(result)
    }

    fn unfinished(&mut self) -> Result<Unfinished, Error> {
        let ttid =
            |row: &Row<'_>| Ok::<_, rusqlite::Error>(Ttid::new(row.get::<_, i64>(0)? as u64));
        let mut result = Unfinished::new();
        let mut statement = self.connection.prepare_cached("SELECT DISTINCT tid FROM tobj")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            result.insert(ttid(row)?, None);
        }
        let mut statement = self.connection.prepare_cached("SELECT ttid, tid FROM ttrans")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            result.insert(ttid(row)?, optional_tid(row, 1)?);
        }
        Ok(result)
    }

    fn final_tid(&mut self, partition: Partition, ttid: Ttid) -> Result<Option<Tid>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tid FROM trans WHERE partition=?1 AND tid>=?2 AND ttid=?2 ORDER BY tid LIMIT 1",
        )?;
        let ttid = int(ttid.get());
        Ok(statement.query_row(params![partition, ttid], |row| tid(row, 0)).optional()?)
    }

    fn last_ids(&mut self, readable: &[Partition]) -> Result<LastIds, Error> {
        let mut last_oid =
            self.connection.prepare_cached("SELECT MAX(oid) FROM obj WHERE partition=?")?;
        let mut first_tid =
            self.connection.prepare_cached("SELECT MIN(tid) FROM trans WHERE partition=?")?;
        let mut ids = LastIds { last_tid: None, last_oid: None, first_tid: Tid::MAX };
        for &partition in readable {
            let (trans, obj) = cells::last_tids(&self.connection, partition)?;
            let last = u64::try_from(trans.max(obj)).ok().map(Tid::new);
            ids.last_tid = ids.last_tid.max(last);
            let last = last_oid.query_row([partition], |row| row.get::<_, Option<i64>>(0))?;
            ids.last_oid = ids.last_oid.max(last.map(|oid| Oid::new(oid as u64)));
            let first = first_tid.query_row([partition], |row| optional_tid(row, 0))?;
            ids.first_tid = ids.first_tid.min(first.unwrap_or(Tid::MAX));
        }
        Ok(ids)
    }

    fn load(
        &mut self,
        partition: Partition,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
    ) -> Result<Loaded, Error> {
        let id = int(oid.get());
        let (sql, bound) = match (at, before) {
            (Some(at), _) => (LOAD_AT, at),
            (None, Some(before)) => (LOAD_BEFORE, before),
            (None, None) => (LOAD_LAST, Tid::ZERO),
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = match at.or(before) {
            Some(_) => statement.query(params![partition, id, int(bound.get())])?,
            None => statement.query(params![partition, id])?,
        };
        if let Some(row) = rows.next()? {
            let next_tid = match at.or(before) {
                Some(_) => optional_tid(row, 6)?,
                None => None,
            };
            return Ok(match revision(row, oid, next_tid)? {
                Some(revision) => Loaded::Found(revision),
                None => Loaded::NotAtThatTid,
            });
        }
        if at.or(before).is_none() {
            return Ok(Loaded::DoesNotExist);
        }
        let mut statement = self.connection.prepare_cached(LAST_TID)?;
        Ok(match statement.exists(params![partition, id])? {
            true => Loaded::NotAtThatTid,
            false => Loaded::DoesNotExist,
        })
    }

    fn check_stores(
        &mut self,
        partitions: u32,
        checks: &[StoreCheck],
    ) -> Result<Vec<StoreChecked>, Error> {
        let mut last_tid = self.connection.prepare_cached(LAST_TID)?;
        let mut result = Vec::with_capacity(checks.len());
        for &StoreCheck { oid, data_tid } in checks {
            let partition = oid.partition(partitions);
            let key = params![partition, int(oid.get())];
            let last_tid = last_tid.query_row(key, |row| tid(row, 0)).optional()?;
            let data_tid_exists = match data_tid {
                Some(tid) => self.connection.prepare_cached(HAS_REVISION)?.exists(params![
                    partition,
                    int(oid.get()),
                    int(tid.get())
                ])?,
                None => false,
            };
            result.push(StoreChecked { last_tid, data_tid_exists });
        }
        Ok(result)
    }

    fn data(&mut self, data_id: DataId) -> Result<Option<Value>, Error> {
        let sql = "SELECT compression, hash, value FROM data WHERE id=?";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([data_id.0], |row| value(row, 0)).optional()?)
    }

    fn history(
        &mut self,
        partition: Partition,
        oid: Oid,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(Tid, u64)>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tid, COALESCE(LENGTH(value), 0) FROM obj LEFT JOIN data ON id = data_id
             WHERE partition=? AND oid=? ORDER BY tid DESC LIMIT ? OFFSET ?",
        )?;
        let key = params![partition, int(oid.get()), length, int(offset)];
        let rows =
            statement.query_map(key, |row| Ok((tid(row, 0)?, row.get::<_, i64>(1)? as u64)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn find_undo(&mut self, search: &UndoSearch) -> Result<Vec<UndoFound>, Error> {
        let UndoSearch { partitions, ltid, undone_tid, ref objects } = *search;
        let mut result = Vec::with_capacity(objects.len());
        for &(oid, own_tid) in objects {
            let history = self.undo_history(oid.partition(partitions), oid, undone_tid)?;
            result.push(match history {
                Some(history) => manager::find_undo(&history, undone_tid, ltid, own_tid),
                None => UndoFound::NothingToUndo,
            });
        }
        Ok(result)
    }

    fn transaction(
        &mut self,
        partition: Partition,
        tid: Tid,
    ) -> Result<Option<TransactionInfo>, Error> {
        let mut statement = self.connection.prepare_cached(TRANSACTION)?;
        let mut rows = statement.query(params![partition, int(tid.get())])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let record = TransactionRecord {
            oids: manager::split_oids(row.get_ref(0)?.as_bytes().map_err(bad_type)?)?,
            user: bytes(row, 1)?,
            description: bytes(row, 2)?,
            extension: bytes(row, 3)?,
            packed: row.get(4)?,
            ttid: Ttid::new(row.get::<_, i64>(5)? as u64),
        };
        let pack = match row.get_ref(6)? {
            ValueRef::Null => None,
            _ => Some(pack_order(row, 7)?),
        };
        Ok(Some(TransactionInfo { tid, record, pack }))
    }

    fn tids(
        &mut self,
        partitions: &[Partition],
        offset: u64,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        // The greatest `offset + length` tids, smallest on top. Each partition is read in
        // descending order, only as long as it contributes.
        let wanted =
            usize::try_from(offset.saturating_add(u64::from(length))).unwrap_or(usize::MAX);
        let mut greatest = BinaryHeap::new();
        let sql = "SELECT tid FROM trans WHERE partition=? ORDER BY tid DESC";
        let mut statement = self.connection.prepare_cached(sql)?;
        for &partition in partitions {
            let mut rows = statement.query([partition])?;
            while let Some(row) = rows.next()? {
                let tid = tid(row, 0)?;
                if greatest.len() >= wanted {
                    match greatest.peek() {
                        Some(&Reverse(smallest)) if smallest < tid => greatest.pop(),
                        _ => break,
                    };
                }
                greatest.push(Reverse(tid));
            }
        }
        // Ascending order of `Reverse` is descending order of tids.
        let greatest = greatest.into_sorted_vec().into_iter().map(|Reverse(tid)| tid);
        Ok(greatest.skip(usize::try_from(offset).unwrap_or(usize::MAX)).collect())
    }

    fn tids_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        let mut statement = self.connection.prepare_cached(TIDS_FROM)?;
        let range = params![partition, int(min_tid.get()), int(max_tid.get()), length];
        let rows = statement.query_map(range, |row| tid(row, 0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn oids_from(
        &mut self,
        partition: Partition,
        partitions: u32,
        min_oid: Oid,
        tid: Tid,
        length: u32,
    ) -> Result<OidsFound, Error> {
        // With a single MAX(), SQLite takes other columns from the row that has the maximum.
        let mut statement = self.connection.prepare_cached(
            "SELECT oid, data_id IS NULL, MAX(tid) FROM obj
             WHERE partition=? AND oid>=? AND tid<=? GROUP BY oid ORDER BY oid LIMIT ?",
        )?;
        let range = params![partition, int(min_oid.get()), int(tid.get()), length];
        let mut rows = statement.query(range)?;
        let mut found = OidsFound { next_oid: None, oids: Vec::new() };
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let oid = row.get::<_, i64>(0)? as u64;
            count += 1;
            if count == length {
                found.next_oid = Some(Oid::new(oid + u64::from(partitions)));
            }
            if !row.get::<_, bool>(1)? {
                found.oids.push(Oid::new(oid));
            }
        }
        Ok(found)
    }

    fn revisions_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<(Tid, Oid)>, Error> {
        let mut statement = self.connection.prepare_cached(REVISIONS_FROM)?;
        let (tid, oid, max_tid) = (int(min_tid.get()), int(min_oid.get()), int(max_tid.get()));
        let rows = statement.query_map(params![partition, tid, oid, max_tid, length], serial)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn fetch_objects(
        &mut self,
        partition: Partition,
        revisions: &[(Tid, Oid)],
        bytes_max: usize,
    ) -> Result<Vec<Option<Revision>>, Error> {
        let mut statement = self.connection.prepare_cached(FETCH)?;
        let mut result = Vec::with_capacity(revisions.len());
        let mut size = 0;
        for &(tid, oid) in revisions {
            let mut rows = statement.query(params![partition, int(oid.get()), int(tid.get())])?;
            let found = match rows.next()? {
                Some(row) => revision(row, oid, None)?,
                None => None,
            };
            let value = found.as_ref().and_then(|revision| revision.value.as_ref());
            size += value.map_or(0, |value| value.data.len());
            result.push(found);
            if size >= bytes_max {
                break;
            }
        }
        Ok(result)
    }

    fn check_tid_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<TidDigest, Error> {
        let mut statement = self.connection.prepare_cached(TIDS_FROM)?;
        let range = params![partition, int(min_tid.get()), int(max_tid.get()), length];
        Ok(manager::digest_tids(statement.query_map(range, |row| tid(row, 0))?)?)
    }

    fn check_serial_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<SerialDigest, Error> {
        let mut statement = self.connection.prepare_cached(REVISIONS_FROM)?;
        let (tid, oid, max_tid) = (int(min_tid.get()), int(min_oid.get()), int(max_tid.get()));
        let range = params![partition, tid, oid, max_tid, length];
        Ok(manager::digest_serials(statement.query_map(range, serial)?)?)
    }
}

const TIDS_FROM: &str = "SELECT tid FROM trans WHERE partition=? AND tid>=? AND tid<=?
    ORDER BY tid LIMIT ?";

/// A range of the index (partition, tid, oid).
const REVISIONS_FROM: &str = "SELECT tid, oid FROM obj
    WHERE partition=?1 AND (tid, oid) >= (?2, ?3) AND tid<=?4
    ORDER BY tid, oid LIMIT ?5";

fn serial(row: &Row<'_>) -> rusqlite::Result<(Tid, Oid)> {
    Ok((tid(row, 0)?, Oid::new(row.get::<_, i64>(1)? as u64)))
}

/// Columns tid, value_tid, data_id, compression, hash, value. `None` if the data row is missing: it
/// must not be taken for a deletion.
fn revision(row: &Row<'_>, oid: Oid, next_tid: Option<Tid>) -> Result<Option<Revision>, Error> {
    let tid = tid(row, 0)?;
    let value = match (row.get_ref(2)?, row.get_ref(4)?) {
        (ValueRef::Null, _) => None,
        (_, ValueRef::Null) => {
            log::error!("the data of an object is missing oid={oid} tid={tid}");
            return Ok(None);
        }
        _ => Some(value(row, 3)?),
    };
    Ok(Some(Revision { tid, next_tid, value, data_tid: optional_tid(row, 1)? }))
}

/// Columns compression, hash, value.
fn value(row: &Row<'_>, column: usize) -> rusqlite::Result<Value> {
    Ok(Value {
        compression: row.get::<_, Option<u8>>(column)?.unwrap_or(0),
        checksum: hash(row, column + 1)?,
        data: bytes(row, column + 2)?,
    })
}

fn hash(row: &Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    let hash = row.get_ref(column)?.as_bytes().map_err(bad_type)?;
    // Never seen, but a hash that is not one must not stop the node.
    Ok(hash.try_into().unwrap_or(ZERO_HASH))
}

/// Columns approved, partial, oids, pack_tid.
fn pack_order(row: &Row<'_>, column: usize) -> Result<PackOrder, Error> {
    let oids = row.get_ref(column + 2)?.as_bytes_or_null().map_err(bad_type)?;
    Ok(PackOrder {
        approved: row.get(column)?,
        partial: row.get(column + 1)?,
        oids: oids.map(manager::split_oids).transpose()?,
        pack_tid: tid(row, column + 3)?,
    })
}

fn tid(row: &Row<'_>, column: usize) -> rusqlite::Result<Tid> {
    Ok(Tid::new(row.get::<_, i64>(column)? as u64))
}

fn optional_tid(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Tid>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|tid| Tid::new(tid as u64)))
}

/// The only copy of object data on its way from a page to a socket.
fn bytes(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    let bytes = row.get_ref(column)?.as_bytes_or_null().map_err(bad_type)?;
    Ok(bytes.map(Bytes::copy_from_slice).unwrap_or_default())
}

fn bad_type(error: rusqlite::types::FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(error))
}
