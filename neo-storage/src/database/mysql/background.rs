// SPDX-License-Identifier: GPL-2.0-or-later
//! Background tasks, by slices: pack, removal of partitions, search for orphan data.
//!
//! They use the connection of the writer, like everything else that writes: no task ever waits for
//! the lock of a row that another one has.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use neo_common::types::{Oid, Partition, Tid};

use super::read::is_revision;
use super::references::References;
use super::row::Columns;
use super::session::Session;
use super::{int, params, sql};
use crate::database::Error;
use crate::database::records::{DataId, OrphanProgress, PackProgress, PackScope, Progress};

/// Conditions in one statement.
const KEYS_MAX: usize = 256;

/// Rows of table `todel` that are processed in one transaction.
const TODEL_ROWS: usize = 10_000;

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

pub fn pack(
    session: &mut Session,
    references: &References,
    partition: Partition,
    pack_tid: Tid,
    scope: &PackScope,
) -> Result<PackProgress, Error> {
    let tid = int(pack_tid.get());
    let mut progress = PackProgress { next_oid: None, deleted: 0 };
    let mut packables = Vec::new();
    match scope {
        PackScope::From { min_oid, oids_max } => {
            let condition = format!(
                "`partition`={partition} AND oid>={} AND tid<={tid} \
                 GROUP BY oid ORDER BY oid LIMIT {oids_max}",
                int(min_oid.get())
            );
            packables = find_packable(session, partition, &condition)?;
            if packables.len() == *oids_max as usize {
                let last = packables.last().map(|packable| Oid::new(packable.oid as u64));
                progress.next_oid = last.and_then(Oid::next);
            }
        }
        PackScope::Oids(oids) => {
            let oids: Vec<_> = oids.iter().filter(|oid| oid.get() <= i64::MAX as u64).collect();
            for oids in oids.chunks(KEYS_MAX) {
                let mut list = String::new();
                sql::list(&mut list, oids.iter().map(|oid| int(oid.get())));
                let condition = format!(
                    "`partition`={partition} AND oid IN ({list}) AND tid<={tid} GROUP BY oid"
                );
                packables.extend(find_packable(session, partition, &condition)?);
            }
        }
    }
    packables.retain(|packable| packable.count != 1 || packable.is_deleted);
    for packables in packables.chunks(KEYS_MAX) {
        let mut condition = format!("`partition`={partition} AND (");
        for (index, Packable { oid, tid, is_deleted, .. }) in packables.iter().enumerate() {
            let separator = if index == 0 { "" } else { " OR " };
            // Writing to a string can not fail.
            let _ =
                write!(condition, "{separator}oid={oid} AND tid<{}", tid + i64::from(*is_deleted));
        }
        condition.push(')');
        progress.deleted += delete_objects(session, references, "PRIMARY", &condition)?;
    }
    Ok(progress)
}

/// Marks transactions as packed; returns where to resume.
pub fn mark_packed(
    session: &mut Session,
    partition: Partition,
    min_tid: Tid,
    pack_tid: Tid,
    tids_max: u32,
) -> Result<Option<Tid>, Error> {
    let pack_tid = int(pack_tid.get());
    let not_packed =
        format!("`partition`={partition} AND tid>={} AND NOT packed AND tid<=", int(min_tid.get()));
    let last = session.row(
        &format!(
            "SELECT tid FROM trans FORCE INDEX (PRIMARY) WHERE {not_packed}{pack_tid} \
             ORDER BY tid LIMIT 1 OFFSET {}",
            tids_max.max(1) - 1
        ),
        (),
    )?;
    let last = last.map(|row| Columns::new(row).int()).transpose()?;
    let max_tid = last.unwrap_or(pack_tid);
    session.write(&format!("UPDATE trans SET packed=1 WHERE {not_packed}{max_tid}"))?;
    Ok(last.and_then(|tid| Tid::new(tid as u64).next()))
}

fn find_packable(
    session: &mut Session,
    partition: Partition,
    condition: &str,
) -> Result<Vec<Packable>, Error> {
    let query = format!(
        "SELECT obj.oid, count, obj.tid, data_id IS NULL FROM (
            SELECT oid, COUNT(*) AS count, MAX(tid) AS tid FROM obj FORCE INDEX (PRIMARY)
            WHERE {condition}
         ) AS last JOIN obj FORCE INDEX (PRIMARY)
         ON `partition`={partition} AND obj.oid = last.oid AND obj.tid = last.tid
         ORDER BY obj.oid"
    );
    session.rows(&query, (), |row| {
        let mut columns = Columns::new(row);
        let (oid, count, tid) = (columns.int()?, columns.int()?, columns.int()?);
        Ok(Packable { oid, count, tid, is_deleted: columns.boolean()? })
    })
}

/// Deletes the revisions that meet a condition, with their data. Returns how many.
fn delete_objects(
    session: &mut Session,
    references: &References,
    index: &str,
    condition: &str,
) -> Result<u64, Error> {
    let table = format!("FROM obj FORCE INDEX ({index}) WHERE {condition}");
    let data_ids = session.rows(&format!("SELECT data_id {table}"), (), |row| {
        Ok(Columns::new(row).optional_int()?.map(DataId))
    })?;
    if data_ids.is_empty() {
        return Ok(0);
    }
    // Only this form of DELETE takes the name of an index.
    session.write(&format!("DELETE obj {table}"))?;
    let deleted = data_ids.len() as u64;
    let data_ids: Vec<_> = data_ids.into_iter().flatten().collect();
    references.prune(session, &data_ids)?;
    Ok(deleted)
}

/// Deletes revisions that may exist or not, with their data.
pub fn delete_revisions(
    session: &mut Session,
    references: &References,
    partition: Partition,
    revisions: &[(Tid, Oid)],
) -> Result<(), Error> {
    for revisions in revisions.chunks(KEYS_MAX) {
        let condition = is_revision(partition, revisions);
        delete_objects(session, references, "PRIMARY", &condition)?;
    }
    Ok(())
}

/// Deletes transactions that may exist or not, with their pack orders.
pub fn delete_transactions(
    session: &mut Session,
    partitions: u32,
    tids: impl Iterator<Item = Tid>,
) -> Result<(), Error> {
    let mut by_partition = BTreeMap::<Partition, Vec<i64>>::new();
    for tid in tids {
        by_partition.entry(tid.partition(partitions)).or_default().push(int(tid.get()));
    }
    for (partition, tids) in by_partition {
        delete_tids(session, partition, &tids)?;
    }
    Ok(())
}

fn delete_tids(session: &mut Session, partition: Partition, tids: &[i64]) -> Result<(), Error> {
    for tids in tids.chunks(sql::KEYS_MAX) {
        let mut list = String::new();
        sql::list(&mut list, tids.iter().copied());
        session.write(&format!("DELETE FROM pack WHERE tid IN ({list})"))?;
        let condition = format!("`partition`={partition} AND tid IN ({list})");
        session.write(&format!("DELETE FROM trans WHERE {condition}"))?;
    }
    Ok(())
}

pub fn drop_partition(
    session: &mut Session,
    references: &References,
    partition: Partition,
    rows_max: u32,
) -> Result<Progress, Error> {
    let rows_max = u64::from(rows_max.max(1));
    let deleted = delete_rows(session, references, partition, None, rows_max)?;
    Ok(Progress { deleted, done: deleted < rows_max })
}

/// Deletes at most `rows_max` revisions, with their data, then transactions, with their pack orders,
/// of a partition; only those after a tid if given. Fewer are deleted if there are no more.
pub fn delete_rows(
    session: &mut Session,
    references: &References,
    partition: Partition,
    after: Option<i64>,
    rows_max: u64,
) -> Result<u64, Error> {
    let after = after.map_or(String::new(), |tid| format!(" AND tid>{tid}"));
    let rows_max = int(rows_max);
    // The last row of the slice.
    let table = format!("FROM obj FORCE INDEX (tid) WHERE `partition`={partition}{after}");
    let last = session.row(
        &format!(
            "SELECT tid, oid FROM (SELECT tid, oid {table} ORDER BY tid, oid LIMIT {rows_max}) AS x \
             ORDER BY tid DESC, oid DESC LIMIT 1"
        ),
        (),
    )?;
    let mut deleted = 0;
    if let Some(row) = last {
        let mut columns = Columns::new(row);
        let (tid, oid) = (columns.int()?, columns.int()?);
        let condition =
            format!("`partition`={partition}{after} AND (tid<{tid} OR tid={tid} AND oid<={oid})");
        deleted = delete_objects(session, references, "tid", &condition)?;
    }
    let rest = rows_max - int(deleted);
    let tids = session.rows(
        &format!(
            "SELECT tid FROM trans FORCE INDEX (PRIMARY) \
             WHERE `partition`={partition}{after} ORDER BY tid LIMIT {rest}"
        ),
        (),
        |row| Columns::new(row).int(),
    )?;
    delete_tids(session, partition, &tids)?;
    Ok(deleted + tids.len() as u64)
}

pub fn prune_orphans(
    session: &mut Session,
    references: &References,
    after: Option<DataId>,
    rows_max: u32,
    dry_run: bool,
) -> Result<OrphanProgress, Error> {
    let rows_max = rows_max.max(1);
    let sql = "SELECT id, EXISTS (SELECT 1 FROM obj FORCE INDEX (data_id) WHERE data_id = id)
         FROM data FORCE INDEX (PRIMARY) WHERE id>? ORDER BY id LIMIT ?";
    let after = after.map_or(-1, |data_id| data_id.0);
    let rows = session.rows(sql, params![after, rows_max], |row| {
        let mut columns = Columns::new(row);
        Ok((DataId(columns.int()?), columns.boolean()?))
    })?;
    let is_orphan =
        |&&(data_id, is_used): &&(DataId, bool)| !is_used && !references.is_held(data_id);
    let orphans: Vec<_> = rows.iter().filter(is_orphan).map(|(data_id, _)| *data_id).collect();
    let deleted = if dry_run { 0 } else { references.prune(session, &orphans)? };
    let after = rows.last().filter(|_| rows.len() == rows_max as usize);
    let after = after.map(|(data_id, _)| *data_id);
    Ok(OrphanProgress { found: orphans.len() as u64, deleted, after })
}

/// Deletes what upstream planned to delete: its background tasks list data in table `todel`.
pub fn process_todel(session: &mut Session, references: &References) -> Result<(), Error> {
    loop {
        let query = format!("SELECT data_id FROM todel ORDER BY data_id LIMIT {TODEL_ROWS}");
        let data_ids = session.rows(&query, (), |row| Ok(DataId(Columns::new(row).int()?)))?;
        let Some(last) = data_ids.last() else { return Ok(()) };
        session.begin();
        let pruned = references.prune(session, &data_ids)?;
        session.write(&format!("DELETE FROM todel WHERE data_id<={}", last.0))?;
        session.commit()?;
        log::info!("deleted {pruned} data rows that were planned to be");
    }
}
