// SPDX-License-Identifier: GPL-2.0-or-later
//! Partition table, own cells, truncation.

use neo_common::types::{NodeId, Partition, Tid, Ttid};

use super::background::delete_rows;
use super::references::References;
use super::row::Columns;
use super::session::Session;
use super::{int, params, schema, sql, transactions};
use crate::database::Error;
use crate::database::manager::{self, PtRow, key};
use crate::database::records::{PartitionTableChange, Progress, StoredConfig};

/// Configuration keys that are about the cluster.
pub fn config(session: &mut Session) -> Result<StoredConfig, Error> {
    let all = schema::all_config(session)?;
    let look_up = |name: &str| {
        let found = all.iter().find(|(key, _)| key == name);
        Ok(found.map(|(_, value)| value.clone()))
    };
    manager::parse_config(look_up)
}

/// All rows of `pt`, ordered.
pub fn rows(session: &mut Session) -> Result<Vec<PtRow>, Error> {
    let sql = "SELECT `partition`, nid, tid, pack FROM pt ORDER BY `partition`, nid";
    session.rows(sql, (), |row| {
        let mut columns = Columns::new(row);
        let partition = columns.number()?;
        let nid = NodeId::new(columns.number()?)
            .ok_or_else(|| Error::Corrupted("table pt has a cell of node 0".into()))?;
        Ok(PtRow { partition, nid, tid: columns.int()?, pack: columns.optional_int()? })
    })
}

/// Rows of own cells.
pub fn own_rows(session: &mut Session, config: &StoredConfig) -> Result<Vec<PtRow>, Error> {
    let mut rows = rows(session)?;
    rows.retain(|row| config.nid == Some(row.nid));
    Ok(rows)
}

/// Greatest tid of transactions and that of objects of a partition, −1 if none.
pub fn last_tids(session: &mut Session, partition: Partition) -> Result<(i64, i64), Error> {
    let sql = "SELECT (SELECT MAX(tid) FROM trans FORCE INDEX (PRIMARY) WHERE `partition`=?), \
               MAX(tid) FROM obj FORCE INDEX (tid) WHERE `partition`=?";
    let Some(row) = session.row(sql, params![partition, partition])? else { return Ok((-1, -1)) };
    let mut columns = Columns::new(row);
    let trans = columns.optional_int()?;
    Ok((trans.unwrap_or(-1), columns.optional_int()?.unwrap_or(-1)))
}

pub fn set_nid(session: &mut Session, nid: NodeId) -> Result<(), Error> {
    if let Some(old) = schema::config(session, key::NID)? {
        let (old, new) = (old.parse::<i32>().unwrap_or(0), nid.get());
        if old != new {
            // A row of the new id, if any, is replaced.
            session.write(&format!(
                "DELETE b FROM pt AS a JOIN pt AS b ON a.`partition` = b.`partition` \
                 WHERE a.nid={old} AND b.nid={new}"
            ))?;
            session.write(&format!("UPDATE pt SET nid={new} WHERE nid={old}"))?;
        }
    }
    schema::set_config(session, key::NID, Some(&nid.get().to_string()))
}

struct StoredRows<'a>(&'a mut Session);

impl manager::Rows for StoredRows<'_> {
    fn last_tids(&mut self, partition: Partition) -> Result<(i64, i64), Error> {
        last_tids(self.0, partition)
    }
    fn first_unfinished(&mut self) -> Result<Option<Ttid>, Error> {
        let sql = "SELECT MIN(ttid) FROM \
                   (SELECT MIN(ttid) AS ttid FROM ttrans UNION ALL SELECT MIN(tid) FROM tobj) AS t";
        let Some(row) = self.0.row(sql, ())? else { return Ok(None) };
        let ttid = Columns::new(row).optional_int()?;
        Ok(ttid.map(|ttid| Ttid::new(ttid as u64)))
    }
}

pub fn change(
    session: &mut Session,
    references: &mut References,
    change: &PartitionTableChange,
) -> Result<Vec<Partition>, Error> {
    let config = config(session)?;
    let rows = rows(session)?;
    let update = manager::encode_change(change, &config, &rows, &mut StoredRows(session))?;
    for (partition, nid) in update.delete {
        let nid = nid.get();
        session.write(&format!("DELETE FROM pt WHERE `partition`={partition} AND nid={nid}"))?;
    }
    for rows in update.upsert.chunks(sql::KEYS_MAX) {
        let mut statement = String::from("INSERT INTO pt VALUES ");
        for (index, PtRow { partition, nid, tid, pack }) in rows.iter().enumerate() {
            statement.push_str(if index == 0 { "(" } else { ",(" });
            sql::list(&mut statement, [(*partition).into(), nid.get().into(), *tid]);
            statement.push(',');
            sql::optional_int(&mut statement, *pack);
            statement.push(')');
        }
        statement.push_str(" ON DUPLICATE KEY UPDATE tid=VALUES(tid)");
        session.write(&statement)?;
    }
    if let Some(nid) = update.dropped {
        schema::set_config(session, key::DROPPED, Some(&nid.get().to_string()))?;
    }
    schema::set_config(session, key::PTID, Some(&change.ptid.to_string()))?;
    schema::set_config(session, key::REPLICAS, Some(&change.replicas.to_string()))?;
    for &partition in &change.drop_temporary {
        transactions::drop_temporary(session, references, partition)?;
    }
    references.release_and_prune(session, &change.release)?;
    Ok(update.to_drop)
}

pub fn set_backup_tid(session: &mut Session, tid: Option<Tid>) -> Result<(), Error> {
    let text = tid.map(|tid| tid.to_string());
    schema::set_config(session, key::BACKUP_TID, text.as_deref())
}

pub fn set_truncate_tid(session: &mut Session, tid: Tid) -> Result<(), Error> {
    schema::set_config(session, key::BACKUP_TID, None)?;
    schema::set_config(session, key::TRUNCATE_TID, Some(&tid.to_string()))
}

pub fn set_packed(session: &mut Session, partition: Partition, pack_id: Tid) -> Result<(), Error> {
    let pack_id = int(pack_id.get());
    // Cells of other nodes have none.
    session.write(&format!(
        "UPDATE pt SET pack={pack_id} WHERE `partition`={partition} AND pack IS NOT NULL"
    ))
}

/// A slice of the planned truncation.
///
/// It may stop anywhere and start again: the plan is only removed, with what remains of it, by the
/// last slice.
pub fn truncate(
    session: &mut Session,
    references: &References,
    rows_max: u32,
) -> Result<Progress, Error> {
    let config = config(session)?;
    let Some(truncate_tid) = config.truncate_tid else {
        return Ok(Progress { deleted: 0, done: true });
    };
    let limit = int(truncate_tid.get());
    let mut deleted = 0;
    let own_rows = own_rows(session, &config)?;
    for row in &own_rows {
        let rest = u64::from(rows_max.max(1)) - deleted;
        deleted += delete_rows(session, references, row.partition, Some(limit), rest)?;
        if deleted >= u64::from(rows_max.max(1)) {
            return Ok(Progress { deleted, done: false });
        }
    }
    for row in own_rows.iter().filter(|row| row.tid > limit) {
        let (partition, nid) = (row.partition, row.nid.get());
        session.write(&format!(
            "UPDATE pt SET tid={limit} WHERE `partition`={partition} AND nid={nid}"
        ))?;
    }
    schema::set_config(session, key::TRUNCATE_TID, None)?;
    Ok(Progress { deleted, done: true })
}
