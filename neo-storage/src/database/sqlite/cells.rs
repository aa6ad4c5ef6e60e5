// SPDX-License-Identifier: GPL-2.0-or-later
//! Partition table, own cells, truncation.

use neo_common::types::{NodeId, Partition, Tid, Ttid};
use rusqlite::{Connection, params};

use super::background::delete_rows;
use super::references::References;
use super::{int, schema, transactions};
use crate::database::Error;
use crate::database::manager::{self, PtRow, key};
use crate::database::records::{PartitionTableChange, Progress, StoredConfig};

/// All rows of `pt`, ordered.
pub fn rows(connection: &Connection) -> Result<Vec<PtRow>, Error> {
    let sql = "SELECT partition, nid, tid, pack FROM pt ORDER BY partition, nid";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut result = Vec::new();
    while let Some(row) = rows.next()? {
        let nid = NodeId::new(row.get(1)?)
            .ok_or_else(|| Error::Corrupted("table pt has a cell of node 0".into()))?;
        let (partition, tid, pack) = (row.get(0)?, row.get(2)?, row.get(3)?);
        result.push(PtRow { partition, nid, tid, pack });
    }
    Ok(result)
}

/// Rows of own cells.
pub fn own_rows(connection: &Connection, config: &StoredConfig) -> Result<Vec<PtRow>, Error> {
    let mut rows = rows(connection)?;
    rows.retain(|row| config.nid == Some(row.nid));
    Ok(rows)
}

/// Greatest tid of transactions and that of objects of a partition, −1 if none.
pub fn last_tids(connection: &Connection, partition: Partition) -> Result<(i64, i64), Error> {
    let last = |sql| {
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_row([partition], |row| row.get::<_, Option<i64>>(0))
    };
    let trans = last("SELECT MAX(tid) FROM trans WHERE partition=?")?;
    let obj = last("SELECT MAX(tid) FROM obj WHERE partition=?")?;
    Ok((trans.unwrap_or(-1), obj.unwrap_or(-1)))
}

pub fn set_nid(connection: &Connection, nid: NodeId) -> Result<(), Error> {
    if let Some(old) = schema::config(connection, key::NID)? {
        connection
            .prepare_cached("UPDATE OR REPLACE pt SET nid=? WHERE nid=?")?
            .execute(params![nid.get(), old.parse::<i32>().unwrap_or(0)])?;
    }
    schema::set_config(connection, key::NID, Some(&nid.get().to_string()))
}

struct StoredRows<'a>(&'a Connection);

impl manager::Rows for StoredRows<'_> {
    fn last_tids(&mut self, partition: Partition) -> Result<(i64, i64), Error> {
        last_tids(self.0, partition)
    }
    fn first_unfinished(&mut self) -> Result<Option<Ttid>, Error> {
        let sql = "SELECT MIN(ttid) FROM \
                   (SELECT MIN(ttid) AS ttid FROM ttrans UNION ALL SELECT MIN(tid) FROM tobj)";
        let ttid: Option<i64> = self.0.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(ttid.map(|ttid| Ttid::new(ttid as u64)))
    }
}

pub fn change(
    connection: &Connection,
    references: &mut References,
    change: &PartitionTableChange,
) -> Result<Vec<Partition>, Error> {
    let config = manager::parse_config(|name| schema::config(connection, name))?;
    let rows = rows(connection)?;
    let update = manager::encode_change(change, &config, &rows, &mut StoredRows(connection))?;
    let mut delete = connection.prepare_cached("DELETE FROM pt WHERE partition=? AND nid=?")?;
    for (partition, nid) in update.delete {
        delete.execute(params![partition, nid.get()])?;
    }
    let mut upsert = connection.prepare_cached(
        "INSERT INTO pt VALUES (?,?,?,?) ON CONFLICT (partition, nid) DO UPDATE SET tid=excluded.tid",
    )?;
    for PtRow { partition, nid, tid, pack } in update.upsert {
        upsert.execute(params![partition, nid.get(), tid, pack])?;
    }
    if let Some(nid) = update.dropped {
        schema::set_config(connection, key::DROPPED, Some(&nid.get().to_string()))?;
    }
    schema::set_config(connection, key::PTID, Some(&change.ptid.to_string()))?;
    schema::set_config(connection, key::REPLICAS, Some(&change.replicas.to_string()))?;
    for &partition in &change.drop_temporary {
        transactions::drop_temporary(connection, references, i64::from(partition))?;
    }
    references.release_and_prune(connection, &change.release)?;
    Ok(update.to_drop)
}

pub fn set_backup_tid(connection: &Connection, tid: Option<Tid>) -> Result<(), Error> {
    let text = tid.map(|tid| tid.to_string());
    schema::set_config(connection, key::BACKUP_TID, text.as_deref())
}

pub fn set_truncate_tid(connection: &Connection, tid: Tid) -> Result<(), Error> {
    schema::set_config(connection, key::BACKUP_TID, None)?;
    schema::set_config(connection, key::TRUNCATE_TID, Some(&tid.to_string()))
}

pub fn set_packed(
    connection: &Connection,
    partition: Partition,
    pack_id: Tid,
) -> Result<(), Error> {
    // Cells of other nodes have none.
    connection
        .prepare_cached("UPDATE pt SET pack=? WHERE partition=? AND pack IS NOT NULL")?
        .execute(params![int(pack_id.get()), partition])?;
    Ok(())
}

/// A slice of the planned truncation.
///
/// It may stop anywhere and start again: the plan is only removed, with what remains of it, by the
/// last slice.
pub fn truncate(
    connection: &Connection,
    references: &References,
    rows_max: u32,
) -> Result<Progress, Error> {
    let config = manager::parse_config(|name| schema::config(connection, name))?;
    let Some(truncate_tid) = config.truncate_tid else {
        return Ok(Progress { deleted: 0, done: true });
    };
    let limit = int(truncate_tid.get());
    let mut deleted = 0;
    let own_rows = own_rows(connection, &config)?;
    for row in &own_rows {
        let rest = u64::from(rows_max.max(1)) - deleted;
        deleted += delete_rows(connection, references, row.partition, Some(limit), rest)?;
        if deleted >= u64::from(rows_max.max(1)) {
            return Ok(Progress { deleted, done: false });
        }
    }
    let mut set_back =
        connection.prepare_cached("UPDATE pt SET tid=? WHERE partition=? AND nid=?")?;
    for row in own_rows.iter().filter(|row| row.tid > limit) {
        set_back.execute(params![limit, row.partition, row.nid.get()])?;
    }
    schema::set_config(connection, key::TRUNCATE_TID, None)?;
    Ok(Progress { deleted, done: true })
}
