// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions on disk: from the vote to the final tables, or to nothing.
//!
//! | step | changes |
//! |---|---|
//! | vote | `data`, `tobj` with the ttid in column tid; `ttrans` with tid NULL; `pack` with the ttid |
//! | lock | `ttrans.tid` |
//! | unlock | `ttrans` row to `trans`, `pack.tid`, `tobj` rows to `obj` |
//! | abort | all of it deleted, with data that nothing refers to any more |

use neo_common::types::{Oid, Partition, Tid, Ttid};

use super::references::References;
use super::session::Session;
use super::{int, params, sql};
use crate::database::records::*;
use crate::database::{Error, manager};

/// Bytes of a `BLOB`, the type of the metadata of transactions.
pub const METADATA_BYTES_MAX: usize = 0xffff;

/// Whether the columns have room for the metadata of a transaction. ZODB's own storages have the
/// same limit.
pub fn fits(record: &TransactionRecord) -> bool {
    [&record.user, &record.description, &record.extension]
        .into_iter()
        .all(|bytes| bytes.len() <= METADATA_BYTES_MAX)
}

pub fn spill(
    session: &mut Session,
    references: &mut References,
    partitions: u32,
    objects: &[ObjectRecord],
) -> Result<Result<Vec<Content>, Refused>, Error> {
    let resolved = match references.resolve(session, partitions, objects)? {
        Ok(resolved) => resolved,
        Err(refused) => return Ok(Err(refused)),
    };
    let content = |data_id: Option<DataId>| data_id.map_or(Content::Deleted, Content::Spilled);
    Ok(Ok(resolved.into_iter().map(|found| content(found.data_id)).collect()))
}

pub fn vote(
    session: &mut Session,
    references: &mut References,
    vote: &Vote,
) -> Result<Result<(), Refused>, Error> {
    if vote.transaction.as_ref().is_some_and(|record| !fits(record)) {
        return Ok(Err(Refused::MetadataTooLong));
    }
    let resolved = match references.resolve(session, vote.partitions, &vote.objects)? {
        Ok(resolved) => resolved,
        Err(refused) => return Ok(Err(refused)),
    };
    let mut rows = Rows::new("INSERT INTO tobj VALUES ");
    for (object, found) in vote.objects.iter().zip(resolved) {
        let partition = object.oid.partition(vote.partitions);
        if let Some(data_id) = found.data_id {
            references.voted(vote.ttid, partition, data_id);
        }
        let row = ObjRow {
            partition,
            oid: object.oid,
            tid: vote.ttid.as_tid(),
            data_id: found.data_id,
            value_tid: object.data_tid,
        };
        rows.add(session, |sql| row.append(sql))?;
    }
    rows.send(session)?;
    if let Some(record) = &vote.transaction {
        let partition = vote.ttid.partition(vote.partitions);
        let mut rows = Rows::new("INSERT INTO ttrans VALUES ");
        add_transaction(session, &mut rows, partition, None, record, vote.ttid)?;
        rows.send(session)?;
    }
    if let Some(pack) = &vote.pack {
        insert_pack(session, vote.ttid.as_tid(), pack)?;
    }
    Ok(Ok(()))
}

/// Row of `obj` or `tobj`.
#[derive(Clone, Copy)]
pub struct ObjRow {
    pub partition: Partition,
    pub oid: Oid,
    pub tid: Tid,
    pub data_id: Option<DataId>,
    pub value_tid: Option<Tid>,
}

impl ObjRow {
    pub fn append(&self, sql: &mut String) {
        sql.push('(');
        sql::list(sql, [self.partition.into(), int(self.oid.get()), int(self.tid.get())]);
        sql.push(',');
        sql::optional_int(sql, self.data_id.map(|data_id| data_id.0));
        sql.push(',');
        sql::optional_int(sql, self.value_tid.map(|tid| int(tid.get())));
        sql.push(')');
    }
}

/// A statement of many rows.
pub struct Rows {
    start: &'static str,
    statement: String,
}

impl Rows {
    pub fn new(start: &'static str) -> Self {
        Self { start, statement: String::new() }
    }

    pub fn add(
        &mut self,
        session: &mut Session,
        append: impl FnOnce(&mut String),
    ) -> Result<(), Error> {
        self.statement.push_str(if self.statement.is_empty() { self.start } else { "," });
        append(&mut self.statement);
        if self.statement.len() >= Session::statement_bytes() { self.send(session) } else { Ok(()) }
    }

    pub fn send(&mut self, session: &mut Session) -> Result<(), Error> {
        if !self.statement.is_empty() {
            session.write(&self.statement)?;
            self.statement.clear();
        }
        Ok(())
    }
}

/// Bytes of a list of oids from which it is sent as it is, by a prepared statement: as digits, the
/// longest one is longer than a packet may be.
const OIDS_ALONE_BYTES: usize = 1 << 20;

/// Adds a row of `trans` or `ttrans`.
pub fn add_transaction(
    session: &mut Session,
    rows: &mut Rows,
    partition: Partition,
    tid: Option<Tid>,
    record: &TransactionRecord,
    ttid: Ttid,
) -> Result<(), Error> {
    let TransactionRecord { oids, user, description, extension, packed, ttid: _ } = record;
    if oids.len() * size_of::<Oid>() >= OIDS_ALONE_BYTES {
        let sql = format!("{}(?,?,?,?,?,?,?,?)", rows.start);
        let row = params![
            partition,
            tid.map(|tid| int(tid.get())),
            *packed,
            manager::join_oids(oids),
            &user[..],
            &description[..],
            &extension[..],
            int(ttid.get()),
        ];
        return session.execute(&sql, row).map(drop);
    }
    rows.add(session, |sql| append_transaction(sql, partition, tid, record, ttid))
}

fn append_transaction(
    statement: &mut String,
    partition: Partition,
    tid: Option<Tid>,
    record: &TransactionRecord,
    ttid: Ttid,
) {
    let TransactionRecord { oids, user, description, extension, packed, ttid: _ } = record;
    statement.push('(');
    sql::int(statement, partition);
    statement.push(',');
    sql::optional_int(statement, tid.map(|tid| int(tid.get())));
    statement.push(',');
    sql::int(statement, *packed);
    for value in [&manager::join_oids(oids)[..], user, description, extension] {
        statement.push(',');
        sql::bytes(statement, value);
    }
    statement.push(',');
    sql::int(statement, int(ttid.get()));
    statement.push(')');
}

/// Stores a pack order. One that is there already wins: it may be signed.
pub fn insert_pack(session: &mut Session, id: Tid, pack: &PackOrder) -> Result<(), Error> {
    let PackOrder { approved, partial, oids, pack_tid } = pack;
    let oids = oids.as_deref().map(|oids: &[Oid]| manager::join_oids(oids));
    // Rare, and its list may be long.
    let sql = "INSERT INTO pack VALUES (?,?,?,?,?) ON DUPLICATE KEY UPDATE tid=tid";
    let row = params![int(id.get()), *approved, *partial, oids, int(pack_tid.get())];
    session.execute(sql, row).map(drop)
}

pub fn lock(session: &mut Session, ttid: Ttid, tid: Tid, approve_pack: bool) -> Result<(), Error> {
    let (ttid, tid) = (int(ttid.get()), int(tid.get()));
    session.write(&format!("UPDATE ttrans SET tid={tid} WHERE ttid={ttid}"))?;
    if approve_pack {
        session.write(&format!("UPDATE pack SET approved=1 WHERE tid={ttid}"))?;
    }
    Ok(())
}

pub fn unlock(
    session: &mut Session,
    references: &mut References,
    ttid: Ttid,
    tid: Tid,
    metadata: bool,
) -> Result<(), Error> {
    let (id, tid) = (int(ttid.get()), int(tid.get()));
    if metadata {
        session.write(&format!(
            "INSERT INTO trans SELECT `partition`, {tid}, packed, oids, user, description, ext, ttid \
             FROM ttrans WHERE ttid={id}"
        ))?;
        session.write(&format!("UPDATE pack SET tid={tid} WHERE tid={id}"))?;
        session.write(&format!("DELETE FROM ttrans WHERE ttid={id}"))?;
    }
    session.write(&format!(
        "INSERT INTO obj SELECT `partition`, oid, {tid}, data_id, value_tid FROM tobj WHERE tid={id}"
    ))?;
    session.write(&format!("DELETE FROM tobj WHERE tid={id}"))?;
    for data_id in references.take_voted(ttid) {
        references.release(data_id);
    }
    Ok(())
}

pub fn abort(
    session: &mut Session,
    references: &mut References,
    ttid: Ttid,
    spilled: &[DataId],
) -> Result<(), Error> {
    let id = int(ttid.get());
    session.write(&format!("DELETE FROM tobj WHERE tid={id}"))?;
    // The pack order of a voted transaction has its ttid as id.
    session.write(&format!(
        "DELETE FROM pack WHERE tid={id} AND EXISTS (SELECT 1 FROM ttrans WHERE ttid={id})"
    ))?;
    session.write(&format!("DELETE FROM ttrans WHERE ttid={id}"))?;
    let mut data_ids = references.take_voted(ttid);
    data_ids.extend(spilled);
    references.release_and_prune(session, &data_ids)
}

pub fn drop_unfinished(session: &mut Session, references: &mut References) -> Result<(), Error> {
    session.write("DELETE FROM pack WHERE tid IN (SELECT ttid FROM ttrans)")?;
    session.write("DELETE FROM ttrans")?;
    session.write("DELETE FROM tobj")?;
    let data_ids = references.take();
    references.prune(session, &data_ids).map(drop)
}

/// Deletes the temporary rows of a partition that is discarded.
pub fn drop_temporary(
    session: &mut Session,
    references: &mut References,
    partition: Partition,
) -> Result<(), Error> {
    session.write(&format!("DELETE FROM tobj WHERE `partition`={partition}"))?;
    session.write(&format!(
        "DELETE FROM pack WHERE tid IN (SELECT ttid FROM ttrans WHERE `partition`={partition})"
    ))?;
    session.write(&format!("DELETE FROM ttrans WHERE `partition`={partition}"))?;
    let data_ids = references.take_voted_in(partition);
    references.release_and_prune(session, &data_ids)
}
