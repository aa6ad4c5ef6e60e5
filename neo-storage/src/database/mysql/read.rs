// SPDX-License-Identifier: GPL-2.0-or-later
//! Queries of the MySQL backend.
//!
//! Indices are given by name: the optimizer sometimes prefers to sort all rows of a partition.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;

use bytes::Bytes;
use mysql::{Params, Row};
use neo_common::types::{Hash, Oid, Partition, Tid, Ttid, ZERO_HASH};

use super::bigdata::{self, Reference};
use super::row::Columns;
use super::server::Server;
use super::session::Session;
use super::{cells, int, params};
use crate::database::records::*;
use crate::database::{Error, Reader, manager};

/// Objects whose last tid is looked for in one statement.
const CHECKS_MAX: usize = 64;

/// Revisions that are fetched in one statement at most.
const FETCH_MAX: usize = 256;

/// Revisions of the first statement, when their size is not known.
const FETCH_FIRST: usize = 4;

/// The last revision: there is no next one.
const LOAD_LAST: &str = "SELECT NULL, tid, value_tid, data_id, compression, hash, value
    FROM obj FORCE INDEX (PRIMARY) LEFT JOIN data ON id = data_id
    WHERE `partition`=? AND oid=? ORDER BY tid DESC LIMIT 1";

const LOAD_AT: &str = "SELECT (SELECT n.tid FROM obj AS n FORCE INDEX (PRIMARY)
         WHERE n.`partition`=? AND n.oid=? AND n.tid>? ORDER BY n.tid LIMIT 1),
        tid, value_tid, data_id, compression, hash, value
    FROM obj FORCE INDEX (PRIMARY) LEFT JOIN data ON id = data_id
    WHERE `partition`=? AND oid=? AND tid=?";

/// The revision that follows the last one before `before` is the first one from there on.
const LOAD_BEFORE: &str = "SELECT (SELECT n.tid FROM obj AS n FORCE INDEX (PRIMARY)
         WHERE n.`partition`=? AND n.oid=? AND n.tid>=? ORDER BY n.tid LIMIT 1),
        tid, value_tid, data_id, compression, hash, value
    FROM obj FORCE INDEX (PRIMARY) LEFT JOIN data ON id = data_id
    WHERE `partition`=? AND oid=? AND tid<? ORDER BY tid DESC LIMIT 1";

const LAST_TID: &str = "SELECT tid FROM obj FORCE INDEX (PRIMARY)
    WHERE `partition`=? AND oid=? ORDER BY tid DESC LIMIT 1";

const HAS_REVISION: &str = "SELECT 1 FROM obj WHERE `partition`=? AND oid=? AND tid=?";

const TRANSACTION: &str = "SELECT trans.oids, user, description, ext, packed, ttid,
        pack.tid, approved, partial, pack.oids IS NOT NULL, pack_tid
    FROM trans LEFT JOIN pack ON pack.tid = trans.tid
    WHERE `partition`=? AND trans.tid=?";

const TIDS_FROM: &str = "SELECT tid FROM trans FORCE INDEX (PRIMARY)
    WHERE `partition`=? AND tid>=? AND tid<=? ORDER BY tid LIMIT ?";

/// Two ranges of the index. It does not know how to use `(tid, oid) >= (?, ?)`.
const REVISIONS_FROM: &str = "SELECT tid, oid FROM obj FORCE INDEX (tid)
    WHERE `partition`=? AND tid<=? AND (tid=? AND oid>=? OR tid>?) ORDER BY tid, oid LIMIT ?";

/// A connection that reads.
pub struct MySqlReader {
    session: Session,
}

impl MySqlReader {
    pub fn new(session: Session) -> Self {
        Self { session }
    }

    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Another connection to the same server.
    pub fn reader(&self) -> Result<Self, Error> {
        Ok(Self { session: self.session.reader()? })
    }

    /// The server.
    pub fn server(&self) -> &Server {
        self.session.server()
    }
}

impl Reader for MySqlReader {
    fn open_snapshot(&mut self) -> Result<(), Error> {
        self.session.open_snapshot();
        Ok(())
    }

    fn close_snapshot(&mut self) -> Result<(), Error> {
        self.session.close_snapshot()
    }

    fn config(&mut self) -> Result<StoredConfig, Error> {
        cells::config(&mut self.session)
    }

    fn partition_table(&mut self) -> Result<Vec<StoredCell>, Error> {
        cells::rows(&mut self.session)?.iter().map(manager::PtRow::cell).collect()
    }

    fn cell_next_tids(&mut self) -> Result<Vec<(Partition, CellNext)>, Error> {
        self.session.in_snapshot(|session| {
            let config = cells::config(session)?;
            let mut result = Vec::new();
            for row in cells::own_rows(session, &config)? {
                let partition = row.partition;
                let last_tids = || cells::last_tids(session, partition);
                let next = manager::cell_next(&row, config.backup_tid, last_tids)?;
                result.extend(next.map(|next| (partition, next)));
            }
            Ok(result)
        })
    }

    fn packed_cells(&mut self) -> Result<Vec<PackedCell>, Error> {
        let rows = cells::rows(&mut self.session)?;
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
        self.session.fold(sql, params![int(min_id.get())], Vec::new, |orders, row| {
            let mut columns = Columns::new(row);
            let id = columns.tid()?;
            if readable.contains(&id.partition(partitions)) {
                orders.push((id, pack_order(&mut columns)?));
            }
            Ok(())
        })
    }

    fn unfinished(&mut self) -> Result<Unfinished, Error> {
        // One statement, so one state. Rows with metadata come last and win.
        let sql =
            "SELECT DISTINCT 0, tid, NULL FROM tobj UNION ALL SELECT 1, ttid, tid FROM ttrans";
        let rows = self.session.rows(sql, (), |row| {
            let mut columns = Columns::new(row);
            let has_metadata = columns.boolean()?;
            Ok((has_metadata, Ttid::new(columns.int()? as u64), columns.optional_tid()?))
        })?;
        let (metadata, objects): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.0);
        Ok(objects.into_iter().chain(metadata).map(|(_, ttid, tid)| (ttid, tid)).collect())
    }

    fn final_tid(&mut self, partition: Partition, ttid: Ttid) -> Result<Option<Tid>, Error> {
        let sql = "SELECT tid FROM trans FORCE INDEX (PRIMARY)
            WHERE `partition`=? AND tid>=? AND ttid=? ORDER BY tid LIMIT 1";
        let ttid = int(ttid.get());
        let row = self.session.row(sql, params![partition, ttid, ttid])?;
        row.map(|row| Columns::new(row).tid()).transpose()
    }

    fn last_ids(&mut self, readable: &[Partition]) -> Result<LastIds, Error> {
        let sql = "SELECT MAX(oid), (SELECT MIN(tid) FROM trans FORCE INDEX (PRIMARY)
            WHERE `partition`=?) FROM obj FORCE INDEX (PRIMARY) WHERE `partition`=?";
        self.session.in_snapshot(|session| {
            let mut ids = LastIds { last_tid: None, last_oid: None, first_tid: Tid::MAX };
            for &partition in readable {
                let (trans, obj) = cells::last_tids(session, partition)?;
                let last = u64::try_from(trans.max(obj)).ok().map(Tid::new);
                ids.last_tid = ids.last_tid.max(last);
                let Some(row) = session.row(sql, params![partition, partition])? else { continue };
                let mut columns = Columns::new(row);
                let last = columns.optional_int()?;
                ids.last_oid = ids.last_oid.max(last.map(|oid| Oid::new(oid as u64)));
                ids.first_tid = ids.first_tid.min(columns.optional_tid()?.unwrap_or(Tid::MAX));
            }
            Ok(ids)
        })
    }

    fn load(
        &mut self,
        partition: Partition,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
    ) -> Result<Loaded, Error> {
        // Nearly always one statement; otherwise, all must see the same state.
        if let Some(loaded) = load(&mut self.session, partition, oid, at, before, false)? {
            return Ok(loaded);
        }
        let loaded =
            self.session.in_snapshot(|session| load(session, partition, oid, at, before, true))?;
        Ok(loaded.expect("nothing is left to another call"))
    }

    fn check_stores(
        &mut self,
        partitions: u32,
        checks: &[StoreCheck],
    ) -> Result<Vec<StoreChecked>, Error> {
        let mut result = Vec::with_capacity(checks.len());
        for checks in checks.chunks(CHECKS_MAX) {
            let last_tids = match checks {
                [check] => {
                    let key = params![check.oid.partition(partitions), int(check.oid.get())];
                    let row = self.session.row(LAST_TID, key)?;
                    vec![row.map(|row| Columns::new(row).tid()).transpose()?]
                }
                checks => last_tids(&mut self.session, partitions, checks)?,
            };
            for (check, last_tid) in checks.iter().zip(last_tids) {
                let data_tid_exists = match check.data_tid {
                    Some(tid) => {
                        let partition = check.oid.partition(partitions);
                        let key = params![partition, int(check.oid.get()), int(tid.get())];
                        self.session.row(HAS_REVISION, key)?.is_some()
                    }
                    None => false,
                };
                result.push(StoreChecked { last_tid, data_tid_exists });
            }
        }
        Ok(result)
    }

    fn data(&mut self, data_id: DataId) -> Result<Option<Value>, Error> {
        let sql = "SELECT compression, hash, value FROM data WHERE id=?";
        self.session.in_snapshot(|session| {
            let Some(row) = session.row(sql, params![data_id.0])? else { return Ok(None) };
            match value(&mut Columns::new(row))? {
                Some(Stored::Value(value)) => Ok(Some(value)),
                Some(Stored::Big(big)) => big.load(session),
                None => Ok(None),
            }
        })
    }

    fn history(
        &mut self,
        partition: Partition,
        oid: Oid,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(Tid, u64)>, Error> {
        let sql = "SELECT tid, LENGTH(value), IF(compression >= 128, value, NULL)
            FROM obj FORCE INDEX (PRIMARY) LEFT JOIN data ON id = data_id
            WHERE `partition`=? AND oid=? ORDER BY tid DESC LIMIT ? OFFSET ?";
        let key = params![partition, int(oid.get()), length, int(offset)];
        self.session.rows(sql, key, |row| {
            let mut columns = Columns::new(row);
            let tid = columns.tid()?;
            let length = columns.optional_int()?.unwrap_or(0) as u64;
            Ok((
                tid,
                match columns.optional_bytes()? {
                    Some(reference) => Reference::decode(&reference)?.length.into(),
                    None => length,
                },
            ))
        })
    }

    fn find_undo(&mut self, search: &UndoSearch) -> Result<Vec<UndoFound>, Error> {
        let UndoSearch { partitions, ltid, undone_tid, ref objects } = *search;
        self.session.in_snapshot(|session| {
            let mut result = Vec::with_capacity(objects.len());
            for &(oid, own_tid) in objects {
                let history = undo_history(session, oid.partition(partitions), oid, undone_tid)?;
                result.push(match history {
                    Some(history) => manager::find_undo(&history, undone_tid, ltid, own_tid),
                    None => UndoFound::NothingToUndo,
                });
            }
            Ok(result)
        })
    }

    fn transaction(
        &mut self,
        partition: Partition,
        tid: Tid,
    ) -> Result<Option<TransactionInfo>, Error> {
        let row = self.session.row(TRANSACTION, params![partition, int(tid.get())])?;
        let Some(row) = row else { return Ok(None) };
        let mut columns = Columns::new(row);
        let record = TransactionRecord {
            oids: manager::split_oids(&columns.bytes()?)?,
            user: columns.bytes()?,
            description: columns.bytes()?,
            extension: columns.bytes()?,
            packed: columns.boolean()?,
            ttid: Ttid::new(columns.int()? as u64),
        };
        if columns.optional_tid()?.is_none() {
            return Ok(Some(TransactionInfo { tid, record, pack: None }));
        }
        let approved = columns.optional_int()?.map(|approved| approved != 0);
        let (partial, has_oids) = (columns.boolean()?, columns.boolean()?);
        let pack_tid = columns.optional_tid()?.unwrap_or(Tid::ZERO);
        // Alone, because a row must not be longer than a packet. They never change.
        let oids = match has_oids {
            true => {
                let sql = "SELECT oids FROM pack WHERE tid=?";
                let row = self.session.row(sql, params![int(tid.get())])?;
                let Some(row) = row else { return Ok(None) };
                Some(manager::split_oids(&Columns::new(row).bytes()?)?)
            }
            false => None,
        };
        let pack = Some(PackOrder { approved, partial, oids, pack_tid });
        Ok(Some(TransactionInfo { tid, record, pack }))
    }

    fn tids(
        &mut self,
        partitions: &[Partition],
        offset: u64,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        // The greatest `offset + length` tids, smallest on top. Each partition is read in
        // descending order, only those that are greater than the smallest one.
        let wanted = offset.saturating_add(u64::from(length)).min(i64::MAX as u64);
        let sql = "SELECT tid FROM trans FORCE INDEX (PRIMARY)
            WHERE `partition`=? AND tid>? ORDER BY tid DESC LIMIT ?";
        let greatest = self.session.in_snapshot(|session| {
            let mut greatest = BinaryHeap::new();
            for &partition in partitions {
                let smallest = match greatest.peek() {
                    Some(&Reverse(smallest)) if greatest.len() as u64 >= wanted => smallest,
                    _ => -1_i64,
                };
                let key = params![partition, smallest, int(wanted)];
                for tid in session.rows(sql, key, |row| Columns::new(row).int())? {
                    greatest.push(Reverse(tid));
                }
                while greatest.len() as u64 > wanted {
                    greatest.pop();
                }
            }
            Ok(greatest)
        })?;
        // Ascending order of `Reverse` is descending order of tids.
        let greatest = greatest.into_sorted_vec().into_iter();
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(greatest.skip(skipped).map(|Reverse(tid)| Tid::new(tid as u64)).collect())
    }

    fn tids_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        let range = params![partition, int(min_tid.get()), int(max_tid.get()), length];
        self.session.rows(TIDS_FROM, range, |row| Columns::new(row).tid())
    }

    fn oids_from(
        &mut self,
        partition: Partition,
        partitions: u32,
        min_oid: Oid,
        tid: Tid,
        length: u32,
    ) -> Result<OidsFound, Error> {
        let sql = "SELECT oid, data_id IS NULL FROM obj FORCE INDEX (PRIMARY) JOIN (
                SELECT `partition`, oid, MAX(tid) AS tid FROM obj FORCE INDEX (PRIMARY)
                WHERE `partition`=? AND oid>=? AND tid<=? GROUP BY oid ORDER BY oid LIMIT ?
            ) AS last USING (`partition`, oid, tid) ORDER BY oid";
        let range = params![partition, int(min_oid.get()), int(tid.get()), length];
        let rows = self.session.rows(sql, range, |row| {
            let mut columns = Columns::new(row);
            Ok((columns.int()? as u64, columns.boolean()?))
        })?;
        let next_oid = match rows.last() {
            Some((last, _)) if rows.len() == length as usize => {
                Some(Oid::new(last + u64::from(partitions)))
            }
            _ => None,
        };
        let oids = rows.into_iter().filter(|(_, is_deleted)| !is_deleted);
        Ok(OidsFound { next_oid, oids: oids.map(|(oid, _)| Oid::new(oid)).collect() })
    }

    fn revisions_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<(Tid, Oid)>, Error> {
        let range = revisions_range(partition, min_tid, min_oid, max_tid, length);
        self.session.rows(REVISIONS_FROM, range, serial)
    }

    fn fetch_objects(
        &mut self,
        partition: Partition,
        revisions: &[(Tid, Oid)],
        bytes_max: usize,
    ) -> Result<Vec<Option<Revision>>, Error> {
        self.session.in_snapshot(|session| {
            let mut result = Vec::with_capacity(revisions.len());
            let (mut size, mut count) = (0, FETCH_FIRST);
            while result.len() < revisions.len() {
                let next = &revisions[result.len()..];
                let mut found = fetch(session, partition, &next[..count.min(next.len())])?;
                for &(tid, oid) in &next[..count.min(next.len())] {
                    let revision = match found.remove(&(tid, oid)) {
                        Some(found) => found.complete(session, oid)?,
                        None => None,
                    };
                    let value = revision.as_ref().and_then(|revision| revision.value.as_ref());
                    size += value.map_or(0, |value| value.data.len());
                    result.push(revision);
                    if size >= bytes_max {
                        return Ok(result);
                    }
                }
                // As many as should fit, from what was seen.
                let average = (size / result.len()).max(1);
                count = ((bytes_max - size) / average).clamp(1, FETCH_MAX);
            }
            Ok(result)
        })
    }

    fn check_tid_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<TidDigest, Error> {
        let range = params![partition, int(min_tid.get()), int(max_tid.get()), length];
        let tids = self.session.rows(TIDS_FROM, range, |row| Columns::new(row).tid())?;
        manager::digest_tids(tids.into_iter().map(Ok))
    }

    fn check_serial_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<SerialDigest, Error> {
        let range = revisions_range(partition, min_tid, min_oid, max_tid, length);
        let serials = self.session.rows(REVISIONS_FROM, range, serial)?;
        manager::digest_serials(serials.into_iter().map(Ok))
    }
}

fn revisions_range(
    partition: Partition,
    min_tid: Tid,
    min_oid: Oid,
    max_tid: Tid,
    length: u32,
) -> Params {
    let (tid, oid, max_tid) = (int(min_tid.get()), int(min_oid.get()), int(max_tid.get()));
    params![partition, max_tid, tid, oid, tid, length]
}

fn serial(row: Row) -> Result<(Tid, Oid), Error> {
    let mut columns = Columns::new(row);
    Ok((columns.tid()?, Oid::new(columns.int()? as u64)))
}

/// One revision. `None` if more than one statement is needed, unless `may_continue`.
fn load(
    session: &mut Session,
    partition: Partition,
    oid: Oid,
    at: Option<Tid>,
    before: Option<Tid>,
    may_continue: bool,
) -> Result<Option<Loaded>, Error> {
    let id = int(oid.get());
    let row = match (at, before) {
        (Some(at), _) => {
            let at = int(at.get());
            session.row(LOAD_AT, params![partition, id, at, partition, id, at])?
        }
        (None, Some(before)) => {
            let before = int(before.get());
            session.row(LOAD_BEFORE, params![partition, id, before, partition, id, before])?
        }
        (None, None) => session.row(LOAD_LAST, params![partition, id])?,
    };
    if let Some(row) = row {
        let mut columns = Columns::new(row);
        let next_tid = columns.optional_tid()?;
        let Some(found) = found(&mut columns, oid, next_tid)? else {
            return Ok(Some(Loaded::NotAtThatTid));
        };
        if found.big.is_some() && !may_continue {
            return Ok(None);
        }
        let revision = found.complete(session, oid)?;
        return Ok(Some(revision.map_or(Loaded::NotAtThatTid, Loaded::Found)));
    }
    if at.or(before).is_none() {
        return Ok(Some(Loaded::DoesNotExist));
    }
    if !may_continue {
        return Ok(None);
    }
    Ok(Some(match session.row(LAST_TID, params![partition, id])? {
        Some(_) => Loaded::NotAtThatTid,
        None => Loaded::DoesNotExist,
    }))
}

/// Last tids of several objects, in one statement.
fn last_tids(
    session: &mut Session,
    partitions: u32,
    checks: &[StoreCheck],
) -> Result<Vec<Option<Tid>>, Error> {
    let mut sql = String::from("SELECT ");
    for (index, check) in checks.iter().enumerate() {
        let (partition, oid) = (check.oid.partition(partitions), check.oid.get());
        let separator = if index == 0 { "" } else { "," };
        // Writing to a string can not fail.
        let _ = write!(
            sql,
            "{separator}(SELECT tid FROM obj FORCE INDEX (PRIMARY) \
             WHERE `partition`={partition} AND oid={oid} ORDER BY tid DESC LIMIT 1)"
        );
    }
    let row = session.row(&sql, ())?;
    let mut columns = Columns::new(row.expect("a query of constants has a row"));
    checks.iter().map(|_| columns.optional_tid()).collect()
}

fn undo_history(
    session: &mut Session,
    partition: Partition,
    oid: Oid,
    undone_tid: Tid,
) -> Result<Option<manager::UndoHistory>, Error> {
    let sql = "SELECT tid FROM obj FORCE INDEX (PRIMARY)
        WHERE `partition`=? AND oid=? AND tid<=? ORDER BY tid DESC LIMIT 2";
    let key = params![partition, int(oid.get()), int(undone_tid.get())];
    let last = session.rows(sql, key.clone(), |row| Columns::new(row).tid())?;
    if last.first() != Some(&undone_tid) {
        return Ok(None);
    }
    let sql = "SELECT tid, value_tid FROM obj FORCE INDEX (PRIMARY)
        WHERE `partition`=? AND oid=? AND tid>? ORDER BY tid";
    let later = session.rows(sql, key, |row| {
        let mut columns = Columns::new(row);
        Ok((columns.tid()?, columns.optional_tid()?))
    })?;
    Ok(Some(manager::UndoHistory { previous: last.get(1).copied(), later }))
}

/// Revisions of a partition, in one statement.
fn fetch(
    session: &mut Session,
    partition: Partition,
    revisions: &[(Tid, Oid)],
) -> Result<BTreeMap<(Tid, Oid), Found>, Error> {
    let columns = "SELECT oid, tid, value_tid, data_id, compression, hash, value
        FROM obj FORCE INDEX (PRIMARY) LEFT JOIN data ON id = data_id WHERE";
    let sql = format!("{columns} {}", is_revision(partition, revisions));
    let rows = session.rows(&sql, (), |row| {
        let mut columns = Columns::new(row);
        let oid = Oid::new(columns.int()? as u64);
        let found = found(&mut columns, oid, None)?;
        Ok(found.map(|found| ((found.tid, oid), found)))
    })?;
    Ok(rows.into_iter().flatten().collect())
}

/// Condition that selects these revisions of a partition.
pub fn is_revision(partition: Partition, revisions: &[(Tid, Oid)]) -> String {
    let mut sql = format!("`partition`={partition} AND (");
    for (index, (tid, oid)) in revisions.iter().enumerate() {
        let separator = if index == 0 { "" } else { " OR " };
        // Writing to a string can not fail.
        let _ = write!(sql, "{separator}oid={} AND tid={}", oid.get(), tid.get());
    }
    sql.push(')');
    sql
}

/// A revision whose data may still have to be read.
struct Found {
    tid: Tid,
    next_tid: Option<Tid>,
    data_tid: Option<Tid>,
    value: Option<Value>,
    big: Option<Big>,
}

impl Found {
    /// `None` if data is missing: it must not be taken for a deletion.
    fn complete(self, session: &mut Session, oid: Oid) -> Result<Option<Revision>, Error> {
        let Self { tid, next_tid, data_tid, mut value, big } = self;
        if let Some(big) = big {
            value = big.load(session)?;
            if value.is_none() {
                log::error!("the data of an object is missing oid={oid} tid={tid}");
                return Ok(None);
            }
        }
        Ok(Some(Revision { tid, next_tid, value, data_tid }))
    }
}

/// Columns tid, value_tid, data_id, compression, hash, value. `None` if the data row is missing.
fn found(columns: &mut Columns, oid: Oid, next_tid: Option<Tid>) -> Result<Option<Found>, Error> {
    let tid = columns.tid()?;
    let data_tid = columns.optional_tid()?;
    let mut found = Found { tid, next_tid, data_tid, value: None, big: None };
    if columns.optional_int()?.is_some() {
        match value(columns)? {
            Some(Stored::Value(value)) => found.value = Some(value),
            Some(Stored::Big(big)) => found.big = Some(big),
            None => {
                log::error!("the data of an object is missing oid={oid} tid={tid}");
                return Ok(None);
            }
        }
    }
    Ok(Some(found))
}

/// A row of `data`.
enum Stored {
    Value(Value),
    Big(Big),
}

/// A value that is elsewhere.
struct Big {
    compression: u8,
    checksum: Hash,
    reference: Reference,
}

impl Big {
    /// `None` if a part of it is missing.
    fn load(&self, session: &mut Session) -> Result<Option<Value>, Error> {
        let Self { compression, checksum, reference } = *self;
        let data = bigdata::load(session, reference)?;
        Ok(data.map(|data| Value { compression, checksum, data }))
    }
}

/// Columns compression, hash, value. `None` if there is no row.
fn value(columns: &mut Columns) -> Result<Option<Stored>, Error> {
    let compression = columns.optional_int()?;
    let hash = columns.optional_bytes()?;
    let (Some(hash), Some(data)) = (hash, columns.optional_bytes()?) else { return Ok(None) };
    let compression = u8::try_from(compression.unwrap_or(0)).unwrap_or(0);
    let checksum = checksum(&hash);
    Ok(Some(match compression & bigdata::FLAG {
        0 => Stored::Value(Value { compression, checksum, data }),
        _ => Stored::Big(Big {
            compression: compression & !bigdata::FLAG,
            checksum,
            reference: Reference::decode(&data)?,
        }),
    }))
}

fn checksum(hash: &Bytes) -> Hash {
    // Never seen, but a hash that is not one must not stop the node.
    hash[..].try_into().unwrap_or(ZERO_HASH)
}

/// Columns approved, partial, oids, pack_tid.
fn pack_order(columns: &mut Columns) -> Result<PackOrder, Error> {
    Ok(PackOrder {
        approved: columns.optional_int()?.map(|approved| approved != 0),
        partial: columns.boolean()?,
        oids: columns.optional_bytes()?.map(|oids| manager::split_oids(&oids)).transpose()?,
        pack_tid: columns.optional_tid()?.unwrap_or(Tid::ZERO),
    })
}
