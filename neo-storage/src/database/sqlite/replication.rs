// SPDX-License-Identifier: GPL-2.0-or-later
//! Rows that come from other nodes, directly to the final tables.
//!
//! A replication that was interrupted may send what is there already. Equal rows are skipped, except that
//! a transaction becomes packed if it is so at the source; different ones are refused and left alone: it
//! is not for a database to say who is right.

use neo_common::types::{Oid, Partition, Tid};
use rusqlite::{Connection, OptionalExtension, params};

use super::background::{delete_revision, delete_transaction};
use super::read::SqliteReader;
use super::references::References;
use super::transactions::insert_pack;
use super::{int, schema};
use crate::database::manager::{self, key};
use crate::database::records::*;
use crate::database::{Error, Reader};

pub fn add_transactions(
    reader: &mut SqliteReader,
    partitions: u32,
    transactions: &[ReplicatedTransaction],
) -> Result<Result<(), ReplicationConflict>, Error> {
    for ReplicatedTransaction { info } in transactions {
        let TransactionInfo { tid, record, pack } = info;
        let partition = tid.partition(partitions);
        let inserted = reader
            .connection()
            .prepare_cached("INSERT OR IGNORE INTO trans VALUES (?,?,?,?,?,?,?,?)")?
            .execute(params![
                partition,
                int(tid.get()),
                record.packed,
                manager::join_oids(&record.oids),
                &record.user[..],
                &record.description[..],
                &record.extension[..],
                int(record.ttid.get()),
            ])?;
        if inserted == 0 {
            let existing = reader.transaction(partition, *tid)?.map(|existing| existing.record);
            let Some(existing) = existing.filter(|existing| existing.is_same(record)) else {
                return Ok(Err(ReplicationConflict::Transaction(*tid)));
            };
            if record.packed && !existing.packed {
                reader
                    .connection()
                    .prepare_cached("UPDATE trans SET packed=1 WHERE partition=? AND tid=?")?
                    .execute(params![partition, int(tid.get())])?;
            }
        }
        if let Some(pack) = pack {
            insert_pack(reader.connection(), *tid, pack)?;
        }
    }
    Ok(Ok(()))
}

pub fn add_objects(
    connection: &Connection,
    references: &mut References,
    partitions: u32,
    objects: &[ReplicatedObject],
) -> Result<Result<(), ReplicationConflict>, Error> {
    let mut insert = connection.prepare_cached("INSERT INTO obj VALUES (?,?,?,?,?)")?;
    for ReplicatedObject { tid, object } in objects {
        let ObjectRecord { oid, data_tid, content } = object;
        let partition = oid.partition(partitions);
        let value = match content {
            Content::Value(value) => Some(value),
            _ => None,
        };
        if let Some(existing) = revision(connection, partition, *oid, *tid)? {
            if existing.has(value) && existing.value_tid == data_tid.map(|tid| int(tid.get())) {
                continue;
            }
            return Ok(Err(ReplicationConflict::Object(*oid, *tid)));
        }
        let shared = match data_tid {
            // The same data as that of another revision is stored once.
            Some(data_tid) => revision(connection, partition, *oid, *data_tid)?,
            None => None,
        };
        let data_id = match (value, shared) {
            (None, _) => None,
            (Some(value), Some(shared)) if shared.has(Some(value)) => shared.data_id,
            (Some(value), _) => match references.store(connection, partition, value)? {
                Some(data_id) => Some(data_id.0),
                None => return Ok(Err(ReplicationConflict::Collision(*oid, *tid))),
            },
        };
        let data_tid = data_tid.map(|tid| int(tid.get()));
        insert.execute(params![partition, int(oid.get()), int(tid.get()), data_id, data_tid])?;
    }
    Ok(Ok(()))
}

/// A revision without its data.
struct Existing {
    data_id: Option<i64>,
    value_tid: Option<i64>,
    hash: Option<Vec<u8>>,
    compression: Option<u8>,
}

impl Existing {
    fn has(&self, value: Option<&Value>) -> bool {
        match value {
            None => self.data_id.is_none(),
            Some(value) => {
                self.hash.as_deref() == Some(&value.checksum[..])
                    && self.compression == Some(value.compression)
            }
        }
    }
}

fn revision(
    connection: &Connection,
    partition: Partition,
    oid: Oid,
    tid: Tid,
) -> Result<Option<Existing>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT data_id, value_tid, hash, compression FROM obj LEFT JOIN data ON id = data_id
         WHERE partition=? AND oid=? AND tid=?",
    )?;
    let key = params![partition, int(oid.get()), int(tid.get())];
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Existing {
            data_id: row.get(0)?,
            value_tid: row.get(1)?,
            hash: row.get(2)?,
            compression: row.get(3)?,
        })
    };
    Ok(statement.query_row(key, row).optional()?)
}

pub fn end_chunk(
    connection: &Connection,
    references: &References,
    partitions: u32,
    end: &ChunkEnd,
) -> Result<Vec<Tid>, Error> {
    for tid in end.delete_transactions.iter().filter(|tid| **tid <= Tid::MAX) {
        delete_transaction(connection, tid.partition(partitions), int(tid.get()))?;
    }
    let mut data_ids = Vec::new();
    for (oid, tid) in &end.delete_objects {
        if oid.get() <= i64::MAX as u64 && *tid <= Tid::MAX {
            let (partition, oid, tid) = (oid.partition(partitions), oid.get(), tid.get());
            data_ids.extend(delete_revision(connection, partition, int(oid), int(tid))?);
        }
    }
    references.prune(connection, &data_ids)?;
    if let Some(pack_id) = end.source_pack_id.filter(|tid| *tid <= Tid::MAX) {
        connection
            .prepare_cached("UPDATE pt SET pack=?1 WHERE partition=?2 AND pack>?1")?
            .execute(params![int(pack_id.get()), end.partition])?;
    }
    let config = manager::parse_config(|name| schema::config(connection, name))?;
    if let (Some(tid), Some(nid)) = (end.cell_tid.filter(|tid| *tid <= Tid::MAX), config.nid) {
        connection
            .prepare_cached("UPDATE pt SET tid=? WHERE partition=? AND nid=? AND tid>=0")?
            .execute(params![int(tid.get()), end.partition, nid.get()])?;
    }
    if config.backup_tid.is_some() && end.backup_tid.is_some() {
        let text = end.backup_tid.map(|tid| tid.min(Tid::MAX).to_string());
        schema::set_config(connection, key::BACKUP_TID, text.as_deref())?;
    }
    sign_packs(connection, &end.approved, &end.rejected)
}

pub fn sign_packs(
    connection: &Connection,
    approved: &[Tid],
    rejected: &[Tid],
) -> Result<Vec<Tid>, Error> {
    let mut statement = connection.prepare_cached("UPDATE pack SET approved=? WHERE tid=?")?;
    let mut signed = Vec::new();
    for (approval, tids) in [(true, approved), (false, rejected)] {
        for &tid in tids.iter().filter(|tid| **tid <= Tid::MAX) {
            if statement.execute(params![approval, int(tid.get())])? != 0 {
                signed.push(tid);
            }
        }
    }
    Ok(signed)
}
