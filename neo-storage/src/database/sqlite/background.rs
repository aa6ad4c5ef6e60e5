// SPDX-License-Identifier: GPL-2.0-or-later
//! Background tasks, by slices: pack, removal of partitions, search for orphan data.

use neo_common::types::{Oid, Partition, Tid};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::int;
use super::references::References;
use crate::database::Error;
use crate::database::records::{DataId, OrphanProgress, PackProgress, PackScope, Progress};

/// An object with a revision at or before the time of the pack.
struct Packable {
    oid: i64,
    /// Revisions at or before the time of the pack.
    count: i64,
    /// The last of them.
    tid: i64,
    /// Whether it has no data.
    is_deleted: bool,
}

// With a single MAX(), SQLite takes other columns from the row that has the maximum.
const PACKABLE_FROM: &str = "SELECT oid, COUNT(*), MAX(tid), data_id IS NULL FROM obj
    WHERE partition=? AND oid>=? AND tid<=? GROUP BY oid ORDER BY oid LIMIT ?";

const PACKABLE: &str = "SELECT oid, COUNT(*), MAX(tid), data_id IS NULL FROM obj
    WHERE partition=? AND oid=? AND tid<=? GROUP BY oid";

pub fn pack(
    connection: &Connection,
    references: &References,
    partition: Partition,
    pack_tid: Tid,
    scope: &PackScope,
) -> Result<PackProgress, Error> {
    let pack_tid = int(pack_tid.get());
    let mut progress = PackProgress { next_oid: None, deleted: 0 };
    let mut packables = Vec::new();
    match scope {
        PackScope::From { min_oid, oids_max } => {
            let mut statement = connection.prepare_cached(PACKABLE_FROM)?;
            let range = params![partition, int(min_oid.get()), pack_tid, oids_max];
            for packable in statement.query_map(range, packable)? {
                packables.push(packable?);
            }
            if packables.len() == *oids_max as usize {
                let last = packables.last().map(|packable| Oid::new(packable.oid as u64));
                progress.next_oid = last.and_then(Oid::next);
            }
        }
        PackScope::Oids(oids) => {
            let mut statement = connection.prepare_cached(PACKABLE)?;
            for oid in oids.iter().filter(|oid| oid.get() <= i64::MAX as u64) {
                let key = params![partition, int(oid.get()), pack_tid];
                packables.extend(statement.query_row(key, packable).optional()?);
            }
        }
    }
    let mut delete = connection.prepare_cached(
        "DELETE FROM obj WHERE partition=? AND oid=? AND tid<? RETURNING data_id",
    )?;
    let mut data_ids = Vec::new();
    for Packable { oid, count, tid, is_deleted } in packables {
        if count == 1 && !is_deleted {
            continue;
        }
        let mut rows = delete.query(params![partition, oid, tid + i64::from(is_deleted)])?;
        while let Some(row) = rows.next()? {
            progress.deleted += 1;
            data_ids.extend(row.get::<_, Option<i64>>(0)?.map(DataId));
        }
    }
    references.prune(connection, &data_ids)?;
    Ok(progress)
}

/// Marks transactions as packed; returns where to resume.
pub fn mark_packed(
    connection: &Connection,
    partition: Partition,
    min_tid: Tid,
    pack_tid: Tid,
    tids_max: u32,
) -> Result<Option<Tid>, Error> {
    let pack_tid = int(pack_tid.get());
    let last: Option<i64> = connection
        .prepare_cached(
            "SELECT tid FROM trans WHERE partition=? AND tid>=? AND tid<=? AND NOT packed
             ORDER BY tid LIMIT 1 OFFSET ?",
        )?
        .query_row(params![partition, int(min_tid.get()), pack_tid, tids_max.max(1) - 1], |row| {
            row.get(0)
        })
        .optional()?;
    connection
        .prepare_cached(
            "UPDATE trans SET packed=1 WHERE partition=? AND tid>=? AND tid<=? AND NOT packed",
        )?
        .execute(params![partition, int(min_tid.get()), last.unwrap_or(pack_tid)])?;
    Ok(last.and_then(|tid| Tid::new(tid as u64).next()))
}

fn packable(row: &Row<'_>) -> rusqlite::Result<Packable> {
    let (oid, count, tid) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(Packable { oid, count, tid, is_deleted: row.get(3)? })
}

pub fn drop_partition(
    connection: &Connection,
    references: &References,
    partition: Partition,
    rows_max: u32,
) -> Result<Progress, Error> {
    let rows_max = u64::from(rows_max.max(1));
    let deleted = delete_rows(connection, references, partition, None, rows_max)?;
    Ok(Progress { deleted, done: deleted < rows_max })
}

/// Deletes at most `rows_max` revisions, with their data, then transactions, with their pack orders,
/// of a partition; only those after a tid if given. Fewer are deleted if there are no more.
pub fn delete_rows(
    connection: &Connection,
    references: &References,
    partition: Partition,
    after: Option<i64>,
    rows_max: u64,
) -> Result<u64, Error> {
    let after = after.unwrap_or(-1);
    let revisions: Vec<(i64, i64)> = connection
        .prepare_cached(
            "SELECT oid, tid FROM obj WHERE partition=? AND tid>? ORDER BY tid, oid LIMIT ?",
        )?
        .query_map(params![partition, after, int(rows_max)], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut data_ids = Vec::new();
    for &(oid, tid) in &revisions {
        data_ids.extend(delete_revision(connection, partition, oid, tid)?);
    }
    references.prune(connection, &data_ids)?;
    let rest = rows_max - revisions.len() as u64;
    let tids: Vec<i64> = connection
        .prepare_cached("SELECT tid FROM trans WHERE partition=? AND tid>? ORDER BY tid LIMIT ?")?
        .query_map(params![partition, after, int(rest)], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for &tid in &tids {
        delete_transaction(connection, partition, tid)?;
    }
    Ok((revisions.len() + tids.len()) as u64)
}

/// Deletes a revision, if it exists. Returns its data, to be pruned.
pub fn delete_revision(
    connection: &Connection,
    partition: Partition,
    oid: i64,
    tid: i64,
) -> Result<Option<DataId>, Error> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM obj WHERE partition=? AND oid=? AND tid=? RETURNING data_id",
    )?;
    let mut rows = statement.query(params![partition, oid, tid])?;
    let mut data_id = None;
    while let Some(row) = rows.next()? {
        data_id = row.get::<_, Option<i64>>(0)?.map(DataId);
    }
    Ok(data_id)
}

/// Deletes a transaction and its pack order, if it exists.
pub fn delete_transaction(
    connection: &Connection,
    partition: Partition,
    tid: i64,
) -> Result<(), Error> {
    connection.prepare_cached("DELETE FROM pack WHERE tid=?")?.execute([tid])?;
    connection
        .prepare_cached("DELETE FROM trans WHERE partition=? AND tid=?")?
        .execute(params![partition, tid])?;
    Ok(())
}

pub fn prune_orphans(
    connection: &Connection,
    references: &References,
    after: Option<DataId>,
    rows_max: u32,
    dry_run: bool,
) -> Result<OrphanProgress, Error> {
    let rows_max = rows_max.max(1);
    let mut statement = connection.prepare_cached(
        "SELECT id, EXISTS (SELECT 1 FROM obj WHERE data_id=id) FROM data
         WHERE id>? ORDER BY id LIMIT ?",
    )?;
    let after = after.map_or(i64::MIN, |data_id| data_id.0);
    let mut rows = statement.query(params![after, rows_max])?;
    let (mut last, mut count) = (None, 0);
    let mut orphans = Vec::new();
    while let Some(row) = rows.next()? {
        let data_id = DataId(row.get(0)?);
        (last, count) = (Some(data_id), count + 1);
        if !row.get::<_, bool>(1)? && !references.is_held(data_id) {
            orphans.push(data_id);
        }
    }
    let deleted = if dry_run { 0 } else { references.prune(connection, &orphans)? };
    let after = last.filter(|_| count == rows_max);
    Ok(OrphanProgress { found: orphans.len() as u64, deleted, after })
}
