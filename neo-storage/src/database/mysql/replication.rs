// SPDX-License-Identifier: GPL-2.0-or-later
//! Rows that come from other nodes, directly to the final tables.
//!
//! A replication that was interrupted may send what is there already. Equal rows are skipped, except that
//! a transaction becomes packed if it is so at the source; different ones are refused and left alone: it
//! is not for a database to say who is right.

use std::collections::BTreeMap;

use neo_common::types::{Oid, Partition, Tid};

use super::background::{delete_revisions, delete_transactions};
use super::bigdata;
use super::read::{MySqlReader, is_revision};
use super::references::{References, Values};
use super::row::Columns;
use super::session::Session;
use super::transactions::{ObjRow, Rows, add_transaction, fits, insert_pack};
use super::{cells, int, sql};
use crate::database::manager::key;
use crate::database::records::*;
use crate::database::{Error, Reader};

/// Revisions that are looked for in one statement.
const KEYS_MAX: usize = 256;

pub fn add_transactions(
    reader: &mut MySqlReader,
    partitions: u32,
    transactions: &[ReplicatedTransaction],
) -> Result<Result<(), ReplicationConflict>, Error> {
    let mut added = BTreeMap::new();
    let mut rows = Rows::new("INSERT INTO trans VALUES ");
    for transactions in transactions.chunks(KEYS_MAX) {
        let tids = transactions.iter().map(|transaction| transaction.info.tid);
        let existing = existing_transactions(reader.session(), partitions, tids)?;
        for ReplicatedTransaction { info } in transactions {
            let TransactionInfo { tid, record, pack } = info;
            let partition = tid.partition(partitions);
            let conflict = match added.get(tid) {
                Some(&other) => !record.is_same(other),
                None if existing.contains(tid) => {
                    let existing = reader.transaction(partition, *tid)?;
                    let existing = existing.map(|existing| existing.record);
                    let existing = existing.filter(|existing| existing.is_same(record));
                    if record.packed && existing.as_ref().is_some_and(|e| !e.packed) {
                        set_packed(reader.session(), partition, *tid)?;
                    }
                    existing.is_none()
                }
                None if !fits(record) => true,
                None => {
                    let session = reader.session();
                    let tid = Some(*tid);
                    add_transaction(session, &mut rows, partition, tid, record, record.ttid)?;
                    added.insert(info.tid, record);
                    false
                }
            };
            if conflict {
                rows.send(reader.session())?;
                return Ok(Err(ReplicationConflict::Transaction(*tid)));
            }
            if let Some(pack) = pack {
                insert_pack(reader.session(), *tid, pack)?;
            }
        }
    }
    rows.send(reader.session())?;
    Ok(Ok(()))
}

fn set_packed(session: &mut Session, partition: Partition, tid: Tid) -> Result<(), Error> {
    let tid = int(tid.get());
    session.write(&format!("UPDATE trans SET packed=1 WHERE `partition`={partition} AND tid={tid}"))
}

fn existing_transactions(
    session: &mut Session,
    partitions: u32,
    tids: impl Iterator<Item = Tid>,
) -> Result<Vec<Tid>, Error> {
    let mut by_partition = BTreeMap::<Partition, Vec<i64>>::new();
    for tid in tids {
        by_partition.entry(tid.partition(partitions)).or_default().push(int(tid.get()));
    }
    let mut existing = Vec::new();
    for (partition, tids) in by_partition {
        let mut query = format!(
            "SELECT tid FROM trans FORCE INDEX (PRIMARY) WHERE `partition`={partition} AND tid IN ("
        );
        sql::list(&mut query, tids);
        query.push(')');
        existing.extend(session.rows(&query, (), |row| Columns::new(row).tid())?);
    }
    Ok(existing)
}

pub fn add_objects(
    session: &mut Session,
    references: &mut References,
    partitions: u32,
    objects: &[ReplicatedObject],
) -> Result<Result<(), ReplicationConflict>, Error> {
    let mut rows = Rows::new("INSERT INTO obj VALUES ");
    let mut values = Values::default();
    let mut conflict = None;
    let mut added = BTreeMap::new();
    for objects in objects.chunks(KEYS_MAX) {
        let existing = existing_objects(session, partitions, objects)?;
        for ReplicatedObject { tid, object } in objects {
            let ObjectRecord { oid, data_tid, content } = object;
            let partition = oid.partition(partitions);
            let value = match content {
                Content::Value(value) => Some(value),
                _ => None,
            };
            if value.is_some_and(|value| value.compression >= bigdata::FLAG) {
                conflict = Some(ReplicationConflict::Object(*oid, *tid));
                break;
            }
            let find = |tid: Tid| added.get(&(tid, *oid)).or_else(|| existing.get(&(tid, *oid)));
            if let Some(existing) = find(*tid) {
                if existing.has(value) && existing.value_tid == *data_tid {
                    continue;
                }
                conflict = Some(ReplicationConflict::Object(*oid, *tid));
                break;
            }
            // The same data as that of another revision is stored once.
            let shared = data_tid.and_then(find).filter(|shared| shared.has(value));
            let data_id = match (value, shared) {
                (None, _) => None,
                (Some(_), Some(shared)) => shared.data_id,
                (Some(value), None) => {
                    match references.store(session, &mut values, partition, value)? {
                        Some(data_id) => Some(data_id),
                        None => {
                            conflict = Some(ReplicationConflict::Collision(*oid, *tid));
                            break;
                        }
                    }
                }
            };
            let row = ObjRow { partition, oid: *oid, tid: *tid, data_id, value_tid: *data_tid };
            rows.add(session, |sql| row.append(sql))?;
            let digest = value.map(|value| (value.checksum.to_vec(), value.compression));
            added.insert((*tid, *oid), Existing { data_id, value_tid: *data_tid, digest });
        }
        if conflict.is_some() {
            break;
        }
    }
    values.send(session)?;
    rows.send(session)?;
    Ok(conflict.map_or(Ok(()), Err))
}

/// A revision without its data.
struct Existing {
    data_id: Option<DataId>,
    value_tid: Option<Tid>,
    /// Hash and compression.
    digest: Option<(Vec<u8>, u8)>,
}

impl Existing {
    fn has(&self, value: Option<&Value>) -> bool {
        match value {
            None => self.data_id.is_none(),
            Some(value) => self.digest.as_ref().is_some_and(|(hash, compression)| {
                hash[..] == value.checksum && *compression == value.compression
            }),
        }
    }
}

/// Those of these revisions, and of those that they share data with, that exist.
fn existing_objects(
    session: &mut Session,
    partitions: u32,
    objects: &[ReplicatedObject],
) -> Result<BTreeMap<(Tid, Oid), Existing>, Error> {
    let mut by_partition = BTreeMap::<Partition, Vec<(Tid, Oid)>>::new();
    for ReplicatedObject { tid, object } in objects {
        let keys = by_partition.entry(object.oid.partition(partitions)).or_default();
        keys.push((*tid, object.oid));
        keys.extend(object.data_tid.map(|tid| (tid, object.oid)));
    }
    let mut existing = BTreeMap::new();
    for (partition, keys) in by_partition {
        let query = format!(
            "SELECT tid, oid, data_id, value_tid, hash, compression \
             FROM obj FORCE INDEX (PRIMARY) LEFT JOIN data ON id = data_id WHERE {}",
            is_revision(partition, &keys)
        );
        existing.extend(session.rows(&query, (), |row| {
            let mut columns = Columns::new(row);
            let key = (columns.tid()?, Oid::new(columns.int()? as u64));
            let data_id = columns.optional_int()?.map(DataId);
            let value_tid = columns.optional_tid()?;
            let hash = columns.optional_bytes()?;
            let compression = columns.optional_int()?.unwrap_or(0) as u8 & !bigdata::FLAG;
            let digest = hash.map(|hash| (hash.to_vec(), compression));
            Ok((key, Existing { data_id, value_tid, digest }))
        })?);
    }
    Ok(existing)
}

pub fn end_chunk(
    session: &mut Session,
    references: &References,
    partitions: u32,
    end: &ChunkEnd,
) -> Result<Vec<Tid>, Error> {
    let tids = end.delete_transactions.iter().filter(|tid| **tid <= Tid::MAX);
    delete_transactions(session, partitions, tids.copied())?;
    let mut by_partition = BTreeMap::<Partition, Vec<(Tid, Oid)>>::new();
    for (oid, tid) in &end.delete_objects {
        if oid.get() <= i64::MAX as u64 && *tid <= Tid::MAX {
            by_partition.entry(oid.partition(partitions)).or_default().push((*tid, *oid));
        }
    }
    for (partition, revisions) in by_partition {
        delete_revisions(session, references, partition, &revisions)?;
    }
    if let Some(pack_id) = end.source_pack_id.filter(|tid| *tid <= Tid::MAX) {
        let (pack_id, partition) = (int(pack_id.get()), end.partition);
        session.write(&format!(
            "UPDATE pt SET pack={pack_id} WHERE `partition`={partition} AND pack>{pack_id}"
        ))?;
    }
    let config = cells::config(session)?;
    if let (Some(tid), Some(nid)) = (end.cell_tid.filter(|tid| *tid <= Tid::MAX), config.nid) {
        let (tid, partition, nid) = (int(tid.get()), end.partition, nid.get());
        session.write(&format!(
            "UPDATE pt SET tid={tid} WHERE `partition`={partition} AND nid={nid} AND tid>=0"
        ))?;
    }
    if config.backup_tid.is_some() && end.backup_tid.is_some() {
        let text = end.backup_tid.map(|tid| tid.min(Tid::MAX).to_string());
        super::schema::set_config(session, key::BACKUP_TID, text.as_deref())?;
    }
    sign_packs(session, &end.approved, &end.rejected)
}

pub fn sign_packs(
    session: &mut Session,
    approved: &[Tid],
    rejected: &[Tid],
) -> Result<Vec<Tid>, Error> {
    let mut signed = Vec::new();
    for (approval, tids) in [(1, approved), (0, rejected)] {
        let tids: Vec<_> = tids.iter().copied().filter(|tid| *tid <= Tid::MAX).collect();
        for tids in tids.chunks(sql::KEYS_MAX) {
            let mut list = String::new();
            sql::list(&mut list, tids.iter().map(|tid| int(tid.get())));
            let query = format!("SELECT tid FROM pack WHERE tid IN ({list})");
            let known = session.rows(&query, (), |row| Columns::new(row).tid())?;
            signed.extend(tids.iter().copied().filter(|tid| known.contains(tid)));
            session.write(&format!("UPDATE pack SET approved={approval} WHERE tid IN ({list})"))?;
        }
    }
    Ok(signed)
}
