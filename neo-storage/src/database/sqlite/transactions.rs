// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions on disk: from the vote to the final tables, or to nothing.
//!
//! | step | changes |
//! |---|---|
//! | vote | `data`, `tobj` with the ttid in column tid; `ttrans` with tid NULL; `pack` with the ttid |
//! | lock | `ttrans.tid` |
//! | unlock | `ttrans` row to `trans`, `pack.tid`, `tobj` rows to `obj` |
//! | abort | all of it deleted, with data that nothing refers to any more |

use neo_common::types::{Oid, Tid, Ttid};
use rusqlite::{Connection, params};

use super::int;
use super::references::References;
use crate::database::records::*;
use crate::database::{Error, manager};

const INSERT_TOBJ: &str = "INSERT INTO tobj VALUES (?,?,?,?,?)";

const INSERT_TTRANS: &str = "INSERT INTO ttrans VALUES (?,NULL,?,?,?,?,?,?)";

/// The pack order of a voted transaction has its ttid as id.
const DELETE_PACK: &str =
    "DELETE FROM pack WHERE tid=?1 AND EXISTS (SELECT 1 FROM ttrans WHERE ttid=?1)";

pub fn spill(
    connection: &Connection,
    references: &mut References,
    partitions: u32,
    objects: &[ObjectRecord],
) -> Result<Result<Vec<Content>, Refused>, Error> {
    let resolved = match resolve(connection, references, partitions, objects)? {
        Ok(resolved) => resolved,
        Err(refused) => return Ok(Err(refused)),
    };
    let content = |data_id: Option<DataId>| data_id.map_or(Content::Deleted, Content::Spilled);
    Ok(Ok(resolved.into_iter().map(content).collect()))
}

pub fn vote(
    connection: &Connection,
    references: &mut References,
    vote: &Vote,
) -> Result<Result<(), Refused>, Error> {
    let resolved = match resolve(connection, references, vote.partitions, &vote.objects)? {
        Ok(resolved) => resolved,
        Err(refused) => return Ok(Err(refused)),
    };
    let ttid = int(vote.ttid.get());
    let mut statement = connection.prepare_cached(INSERT_TOBJ)?;
    for (object, data_id) in vote.objects.iter().zip(resolved) {
        let partition = object.oid.partition(vote.partitions);
        let data_id = data_id.map(|data_id| data_id.0);
        let value_tid = object.data_tid.map(|tid| int(tid.get()));
        statement.execute(params![partition, int(object.oid.get()), ttid, data_id, value_tid])?;
    }
    if let Some(record) = &vote.transaction {
        let TransactionRecord { oids, user, description, extension, packed, ttid: _ } = record;
        connection.prepare_cached(INSERT_TTRANS)?.execute(params![
            vote.ttid.partition(vote.partitions),
            packed,
            manager::join_oids(oids),
            &user[..],
            &description[..],
            &extension[..],
            ttid,
        ])?;
    }
    if let Some(pack) = &vote.pack {
        insert_pack(connection, vote.ttid.as_tid(), pack)?;
    }
    Ok(Ok(()))
}

/// Data of each object, held. If one is refused, nothing is held or stored.
fn resolve(
    connection: &Connection,
    references: &mut References,
    partitions: u32,
    objects: &[ObjectRecord],
) -> Result<Result<Vec<Option<DataId>>, Refused>, Error> {
    let mut data_ids = Vec::with_capacity(objects.len());
    let mut held = Vec::new();
    for object in objects {
        let partition = object.oid.partition(partitions);
        match references.resolve(connection, partition, object)? {
            Ok(resolved) => {
                held.extend(resolved.data_id.filter(|_| resolved.held));
                data_ids.push(resolved.data_id);
            }
            Err(refused) => {
                references.release_and_prune(connection, &held)?;
                return Ok(Err(refused));
            }
        }
    }
    Ok(Ok(data_ids))
}

/// Stores a pack order. One that is there already wins: it may be signed.
pub fn insert_pack(connection: &Connection, id: Tid, pack: &PackOrder) -> Result<(), Error> {
    let PackOrder { approved, partial, oids, pack_tid } = pack;
    let oids = oids.as_deref().map(|oids: &[Oid]| manager::join_oids(oids));
    connection
        .prepare_cached("INSERT OR IGNORE INTO pack VALUES (?,?,?,?,?)")?
        .execute(params![int(id.get()), approved, partial, oids, int(pack_tid.get())])?;
    Ok(())
}

pub fn lock(
    connection: &Connection,
    ttid: Ttid,
    tid: Tid,
    approve_pack: bool,
) -> Result<(), Error> {
    let (ttid, tid) = (int(ttid.get()), int(tid.get()));
    connection.prepare_cached("UPDATE ttrans SET tid=? WHERE ttid=?")?.execute([tid, ttid])?;
    if approve_pack {
        connection.prepare_cached("UPDATE pack SET approved=1 WHERE tid=?")?.execute([ttid])?;
    }
    Ok(())
}

pub fn unlock(
    connection: &Connection,
    references: &mut References,
    ttid: Ttid,
    tid: Tid,
    metadata: bool,
) -> Result<(), Error> {
    let (ttid, tid) = (int(ttid.get()), int(tid.get()));
    if metadata {
        connection
            .prepare_cached(
                "INSERT OR FAIL INTO trans
                 SELECT partition, ?, packed, oids, user, description, ext, ttid
                 FROM ttrans WHERE ttid=?",
            )?
            .execute([tid, ttid])?;
        connection.prepare_cached("UPDATE pack SET tid=? WHERE tid=?")?.execute([tid, ttid])?;
        connection.prepare_cached("DELETE FROM ttrans WHERE ttid=?")?.execute([ttid])?;
    }
    connection
        .prepare_cached(
            "INSERT OR FAIL INTO obj SELECT partition, oid, ?, data_id, value_tid
             FROM tobj WHERE tid=?",
        )?
        .execute([tid, ttid])?;
    for data_id in delete_tobj(connection, "DELETE FROM tobj WHERE tid=? RETURNING data_id", ttid)?
    {
        references.release(data_id);
    }
    Ok(())
}

pub fn abort(
    connection: &Connection,
    references: &mut References,
    ttid: Ttid,
    spilled: &[DataId],
) -> Result<(), Error> {
    let ttid = int(ttid.get());
    let mut data_ids =
        delete_tobj(connection, "DELETE FROM tobj WHERE tid=? RETURNING data_id", ttid)?;
    connection.prepare_cached(DELETE_PACK)?.execute([ttid])?;
    connection.prepare_cached("DELETE FROM ttrans WHERE ttid=?")?.execute([ttid])?;
    data_ids.extend(spilled);
    references.release_and_prune(connection, &data_ids)
}

pub fn drop_unfinished(connection: &Connection, references: &mut References) -> Result<(), Error> {
    connection.execute_batch(
        "DELETE FROM pack WHERE tid IN (SELECT ttid FROM ttrans);
         DELETE FROM ttrans;
         DELETE FROM tobj",
    )?;
    let data_ids = references.take();
    references.prune(connection, &data_ids).map(drop)
}

/// Deletes the temporary rows of a partition that is discarded.
pub fn drop_temporary(
    connection: &Connection,
    references: &mut References,
    partition: i64,
) -> Result<(), Error> {
    let sql = "DELETE FROM tobj WHERE partition=? RETURNING data_id";
    let data_ids = delete_tobj(connection, sql, partition)?;
    connection
        .prepare_cached(
            "DELETE FROM pack WHERE tid IN (SELECT ttid FROM ttrans WHERE partition=?)",
        )?
        .execute([partition])?;
    connection.prepare_cached("DELETE FROM ttrans WHERE partition=?")?.execute([partition])?;
    references.release_and_prune(connection, &data_ids)
}

/// Executes a deletion of rows of `tobj`. Returns the data they referred to.
fn delete_tobj(connection: &Connection, sql: &str, key: i64) -> Result<Vec<DataId>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([key])?;
    let mut data_ids = Vec::new();
    while let Some(row) = rows.next()? {
        data_ids.extend(row.get::<_, Option<i64>>(0)?.map(DataId));
    }
    Ok(data_ids)
}
