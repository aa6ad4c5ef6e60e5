// SPDX-License-Identifier: GPL-2.0-or-later
//! Logic that backends share: what rows mean, without a query.
//!
//! Upstream: storage/database/manager.py, `changePartitionTable`, `findUndoTID`,
//! `iterCellNextTIDs`.

use std::collections::{BTreeMap, BTreeSet};

use neo_common::planted;
use neo_common::protocol::enums::{CellState, WireEnum};
use neo_common::types::{Hash, NodeId, Oid, Partition, Tid, Ttid, ZERO_HASH};
use sha1::{Digest, Sha1};

use super::records::{
    CellNext, ChangeScope, PartitionTableChange, SerialDigest, StoredConfig, TidDigest, UndoFound,
};
use super::{Error, PackedCell, StoredCell};

/// Names in the `config` table.
pub mod key {
    /// Schema version.
    pub const VERSION: &str = "version";
    /// Cluster name.
    pub const NAME: &str = "name";
    /// Own node id.
    pub const NID: &str = "nid";
    /// Id of the partition table.
    pub const PTID: &str = "ptid";
    /// Replicas of the partition table.
    pub const REPLICAS: &str = "replicas";
    /// See [`super::StoredConfig::backup_tid`].
    pub const BACKUP_TID: &str = "backup_tid";
    /// See [`super::StoredConfig::truncate_tid`].
    pub const TRUNCATE_TID: &str = "truncate_tid";
    /// See [`super::StoredConfig::dropped`].
    pub const DROPPED: &str = "dropped";
    /// Number of partitions; up to version 3 only.
    pub const PARTITIONS: &str = "partitions";
}

/// Row of table `pt`, in its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtRow {
    /// Row of the partition table.
    pub partition: Partition,
    /// Node.
    pub nid: NodeId,
    /// Negated state, or the tid up to which an own cell is complete.
    pub tid: i64,
    /// Last completed pack; `None` for cells of other nodes.
    pub pack: Option<i64>,
}

impl PtRow {
    /// State that column `tid` stands for.
    pub fn state(&self) -> Result<CellState, Error> {
        let number = 0.max(self.tid.saturating_neg());
        u8::try_from(number)
            .ok()
            .and_then(CellState::from_number)
            .filter(|state| *state != CellState::Discarded)
            .ok_or_else(|| Error::Corrupted(format!("unknown cell state {number}")))
    }

    /// The cell, without what is only known to its own node.
    pub fn cell(&self) -> Result<StoredCell, Error> {
        Ok(StoredCell { partition: self.partition, nid: self.nid, state: self.state()? })
    }

    /// Pack status, if the cell has one.
    pub fn packed(&self) -> Option<PackedCell> {
        let pack_id = Tid::new(self.pack? as u64);
        let up_to_date = self.tid == state_tid(CellState::UpToDate);
        Some(PackedCell { partition: self.partition, pack_id, up_to_date })
    }
}

/// Value of column `tid` for all cells but own ones that are out of date.
pub fn state_tid(state: CellState) -> i64 {
    -i64::from(state.number())
}

/// Reads the configuration of a cluster, given a way to look up a key.
pub fn parse_config(
    mut look_up: impl FnMut(&str) -> Result<Option<String>, Error>,
) -> Result<StoredConfig, Error> {
    let mut config = StoredConfig { name: look_up(key::NAME)?, ..StoredConfig::default() };
    if let Some(nid) = parsed(&mut look_up, key::NID, |text| text.parse().ok())? {
        let invalid = || Error::Corrupted(format!("{} in config is {nid}", key::NID));
        config.nid = Some(NodeId::new(nid).ok_or_else(invalid)?);
    }
    config.ptid = parsed(&mut look_up, key::PTID, |text| text.parse().ok())?;
    config.replicas = parsed(&mut look_up, key::REPLICAS, |text| text.parse().ok())?;
    config.backup_tid = parsed(&mut look_up, key::BACKUP_TID, parse_tid)?;
    config.truncate_tid = parsed(&mut look_up, key::TRUNCATE_TID, parse_tid)?;
    let parse_nid = |text: &str| text.parse().ok().and_then(NodeId::new);
    config.dropped = parsed(&mut look_up, key::DROPPED, parse_nid)?;
    Ok(config)
}

fn parsed<T>(
    look_up: &mut impl FnMut(&str) -> Result<Option<String>, Error>,
    name: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(text) = look_up(name)? else { return Ok(None) };
    match parse(&text) {
        Some(value) => Ok(Some(value)),
        None => Err(Error::Corrupted(format!("{name} in config is {text:?}"))),
    }
}

/// 16 hexadecimal digits, that fit in a signed integer.
fn parse_tid(text: &str) -> Option<Tid> {
    if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(text, 16).ok().map(Tid::new).filter(|tid| *tid <= Tid::MAX)
}

/// What a [`PartitionTableChange`] does to table `pt`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PtUpdate {
    /// Rows to insert; if there is such a row already, only its `tid` is updated.
    pub upsert: Vec<PtRow>,
    /// Rows to delete.
    pub delete: Vec<(Partition, NodeId)>,
    /// Partitions whose data does not belong to the node any more, ascending.
    pub to_drop: Vec<Partition>,
    /// New value of [`StoredConfig::dropped`].
    pub dropped: Option<NodeId>,
}

/// What a change of the partition table has to know of the rows in a database.
pub trait Rows {
    /// Greatest tid of transactions and that of objects, −1 if none.
    fn last_tids(&mut self, partition: Partition) -> Result<(i64, i64), Error>;
    /// Smallest ttid that is not finished, in any partition.
    fn first_unfinished(&mut self) -> Result<Option<Ttid>, Error>;
}

/// Encodes a change of the partition table. `rows` are the current ones.
pub fn encode_change(
    change: &PartitionTableChange,
    config: &StoredConfig,
    rows: &[PtRow],
    database: &mut impl Rows,
) -> Result<PtUpdate, Error> {
    let mut first_unfinished = None;
    let mut last_tid = |partition| {
        let first = match first_unfinished {
            Some(first) => first,
            None => *first_unfinished.insert(database.first_unfinished()?),
        };
        let (trans, obj) = database.last_tids(partition)?;
        Ok(last_without_hole(trans.max(obj).max(0), first))
    };
    let is_own = |nid: NodeId| config.nid == Some(nid);
    let own_tids: BTreeMap<Partition, i64> =
        rows.iter().filter(|row| is_own(row.nid)).map(|row| (row.partition, row.tid)).collect();
    let mut update = PtUpdate::default();
    let mut assigned = BTreeSet::new();
    let mut to_drop = BTreeSet::new();
    let mut delete: BTreeSet<(Partition, NodeId)> = match change.scope {
        ChangeScope::Full => rows.iter().map(|row| (row.partition, row.nid)).collect(),
        ChangeScope::Listed => BTreeSet::new(),
    };
    for &StoredCell { partition, nid, state } in &change.cells {
        let own = is_own(nid);
        if state == CellState::Discarded {
            delete.insert((partition, nid));
            if own {
                to_drop.insert(partition);
            }
            continue;
        }
        delete.remove(&(partition, nid));
        let mut pack = None;
        if own {
            assigned.insert(partition);
            pack = Some(if state.is_readable() { 0 } else { change.last_pack_id.get() as i64 });
        }
        let tid = if own && state == CellState::OutOfDate {
            let current = own_tids.get(&partition).copied();
            complete_up_to(current, config.backup_tid, || last_tid(partition))?
        } else {
            state_tid(state)
        };
        update.upsert.push(PtRow { partition, nid, tid, pack });
    }
    if change.scope == ChangeScope::Full
        && let Some(last) = change.cells.iter().map(|cell| cell.partition).max()
    {
        to_drop.extend(0..=last);
    }
    update.dropped =
        dropped(rows, &update.upsert, &delete).filter(|nid| config.dropped < Some(*nid));
    update.delete.extend(delete);
    update.to_drop.extend(to_drop.difference(&assigned));
    Ok(update)
}

/// The node with the greatest id, if no row of it remains.
fn dropped(
    rows: &[PtRow],
    upsert: &[PtRow],
    delete: &BTreeSet<(Partition, NodeId)>,
) -> Option<NodeId> {
    let greatest = rows.iter().map(|row| row.nid).max()?;
    let kept = rows.iter().filter(|row| !delete.contains(&(row.partition, row.nid)));
    kept.chain(upsert).all(|row| row.nid < greatest).then_some(greatest)
}

/// Up to which tid an own cell that becomes, or stays, out of date is complete.
fn complete_up_to(
    current: Option<i64>,
    backup_tid: Option<Tid>,
    last_tid: impl FnOnce() -> Result<i64, Error>,
) -> Result<i64, Error> {
    match current {
        None => Ok(0),
        Some(tid) if tid >= 0 => Ok(tid),
        Some(tid) if tid == state_tid(CellState::Corrupted) => Ok(0),
        // In backup mode, the last transactions of a readable cell may be incomplete. Upstream
        // ignores a backup tid of 0 here, and would trust whatever was replicated first.
        Some(_) => backup_tid.map_or_else(last_tid, |tid| Ok(tid.get() as i64)),
    }
}

/// Up to which tid a readable cell has everything. Transactions are not finished in the order of their tids:
/// 1. T1 gets its ttid before T2, and its tid after it. All storages lock them, then all die.
/// 2. Verification finishes T1, then T2. S1 dies in between, S2 has both.
/// 3. The cluster starts without S1, whose cells become out-of-date: it drops T2, which is before its last tid.
///
/// Upstream replicates what comes after the last tid. What is not finished cannot be before its ttid.
fn last_without_hole(last_tid: i64, first_unfinished: Option<Ttid>) -> i64 {
    // A ttid is what a client sent: negative values of a cell mean states.
    let before = first_unfinished.and_then(|ttid| i64::try_from(ttid.get().saturating_sub(1)).ok());
    before.map_or(last_tid, |before| last_tid.min(before))
}

/// Where the replication of an own cell resumes; `None` for a corrupted one. `last_tids` gives the
/// greatest tid of transactions and that of objects, −1 if none.
pub fn cell_next(
    row: &PtRow,
    backup_tid: Option<Tid>,
    last_tids: impl FnOnce() -> Result<(i64, i64), Error>,
) -> Result<Option<CellNext>, Error> {
    if row.tid >= 0 {
        let next = if row.tid == 0 { 0 } else { row.tid as u64 + 1 };
        return Ok(Some(CellNext::OutOfDate(Tid::new(next))));
    }
    if !row.state()?.is_readable() {
        return Ok(None);
    }
    let Some(backup_tid) = backup_tid else { return Ok(Some(CellNext::Readable)) };
    let next = match backup_tid.get() {
        0 => 0,
        tid => tid as i64 + 1,
    };
    // A readable cell has no hole: it is fine to resume from the last rows. A transaction is
    // replicated as a whole, but not all its objects may be there: check its tid again.
    let (trans, obj) = last_tids()?;
    let tid = |value: i64| Tid::new(value as u64);
    Ok(Some(CellNext::Backup(tid(next.max(trans + 1)), tid(next.max(obj)))))
}

/// History of an object around the transaction to undo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UndoHistory {
    /// Last revision before the transaction to undo.
    pub previous: Option<Tid>,
    /// Revisions after it, ascending, with their data tids.
    pub later: Vec<(Tid, Option<Tid>)>,
}

/// Undo search for an object that was modified by `undone_tid`.
///
/// `own_tid` is the revision in the undoing transaction, if any; `ltid` the exclusive upper bound of
/// what it sees otherwise. Revisions with equal data form a chain through their data tids; the
/// greatest tid of a chain is always chosen, so that a pack needs not update data tids: what it
/// leaves is the end of the chain.
pub fn find_undo(
    history: &UndoHistory,
    undone_tid: Tid,
    ltid: Option<Tid>,
    own_tid: Option<Tid>,
) -> UndoFound {
    let mut undone_tid = undone_tid;
    let is_visible = |tid: Tid| ltid.is_none_or(|ltid| tid < ltid);
    let current_tid = match own_tid {
        Some(tid) => tid,
        None => match history.later.iter().rev().find(|(tid, _)| is_visible(*tid)) {
            Some((tid, _)) => *tid,
            None if is_visible(undone_tid) => undone_tid,
            None => return UndoFound::NotVisible,
        },
    };
    let mut is_current = current_tid == undone_tid || planted!(UndoOverwritesLater);
    let mut undo_tid = history.previous;
    for &(tid, data_tid) in &history.later {
        if data_tid.is_none() {
            continue;
        }
        if data_tid == undo_tid {
            undo_tid = Some(tid);
        } else if data_tid == Some(undone_tid) {
            if current_tid == tid {
                is_current = true;
            } else {
                undone_tid = tid;
            }
        }
    }
    UndoFound::Undo { current_tid, undo_tid, is_current }
}

/// SHA-1 of decimal numbers joined by commas.
#[derive(Default)]
struct Joined {
    hash: Sha1,
    count: u32,
}

impl Joined {
    fn push(&mut self, number: u64) {
        if self.count != 0 {
            self.hash.update(b",");
        }
        self.hash.update(number.to_string());
        self.count += 1;
    }

    fn finish(self) -> Hash {
        if self.count == 0 { ZERO_HASH } else { self.hash.finalize().into() }
    }
}

/// Digest of ascending tids. Upstream: `checkTIDRange`.
pub fn digest_tids<E>(tids: impl Iterator<Item = Result<Tid, E>>) -> Result<TidDigest, E> {
    let mut joined = Joined::default();
    let mut max_tid = Tid::ZERO;
    for tid in tids {
        max_tid = tid?;
        joined.push(max_tid.get());
    }
    Ok(TidDigest { count: joined.count, checksum: joined.finish(), max_tid })
}

/// Digest of ascending (tid, oid). Upstream: `checkSerialRange`.
pub fn digest_serials<E>(
    serials: impl Iterator<Item = Result<(Tid, Oid), E>>,
) -> Result<SerialDigest, E> {
    let (mut tids, mut oids) = (Joined::default(), Joined::default());
    let mut last = (Tid::ZERO, Oid::ZERO);
    for serial in serials {
        last = serial?;
        tids.push(last.0.get());
        oids.push(last.1.get());
    }
    Ok(SerialDigest {
        count: tids.count,
        tid_checksum: tids.finish(),
        max_tid: last.0,
        oid_checksum: oids.finish(),
        max_oid: last.1,
    })
}

/// Concatenation of oids, as stored.
pub fn join_oids(oids: &[Oid]) -> Vec<u8> {
    oids.iter().flat_map(|oid| oid.to_bytes()).collect()
}

/// Inverse of [`join_oids`].
pub fn split_oids(bytes: &[u8]) -> Result<Vec<Oid>, Error> {
    let (oids, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Error::Corrupted(format!("a list of oids has {} bytes", bytes.len())));
    }
    Ok(oids.iter().map(|oid| Oid::from_bytes(*oid)).collect())
}

/// First id that may be given to data of a partition, and the first one of the next range.
///
/// There are 2^15 ranges of positive 64-bit integers; greater partitions share them, which is
/// harmless because ids are opaque.
pub fn data_id_range(partition: Partition) -> (i64, i64) {
    let first = i64::from(partition & 0x7fff) << 48;
    (first, first | 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tid(value: u64) -> Tid {
        Tid::new(value)
    }

    /// Chains of equal revisions, through undo and undo of undo, by hand.
    /// Last tid of every partition, and first ttid that is not finished.
    struct Stored(i64, Option<u64>);

    impl Rows for Stored {
        fn last_tids(&mut self, _: Partition) -> Result<(i64, i64), Error> {
            Ok((self.0, -1))
        }
        fn first_unfinished(&mut self) -> Result<Option<Ttid>, Error> {
            Ok(self.1.map(Ttid::new))
        }
    }

    #[test]
    fn what_is_not_finished_is_replicated() {
        assert_eq!(last_without_hole(99, None), 99);
        assert_eq!(last_without_hole(99, Some(Ttid::new(120))), 99);
        assert_eq!(last_without_hole(99, Some(Ttid::new(99))), 98);
        assert_eq!(last_without_hole(99, Some(Ttid::new(50))), 49);
        assert_eq!(last_without_hole(0, Some(Ttid::new(50))), 0);
        assert_eq!(last_without_hole(99, Some(Ttid::new(0))), 0);
        assert_eq!(last_without_hole(99, Some(Ttid::new(u64::MAX))), 99);
    }

    #[test]
    fn undo_follows_equal_revisions() {
        let history = |previous: Option<u64>, later: &[(u64, Option<u64>)]| UndoHistory {
            previous: previous.map(tid),
            later: later.iter().map(|(t, v)| (tid(*t), v.map(tid))).collect(),
        };
        let undo = |current: u64, undo: Option<u64>, is_current| UndoFound::Undo {
            current_tid: tid(current),
            undo_tid: undo.map(tid),
            is_current,
        };
        // Last transaction: back to the previous revision, or to nothing.
        assert_eq!(
            find_undo(&history(Some(10), &[]), tid(20), None, None),
            undo(20, Some(10), true)
        );
        assert_eq!(find_undo(&history(None, &[]), tid(20), None, None), undo(20, None, true));
        // Modified later.
        let h = history(Some(10), &[(30, None)]);
        assert_eq!(find_undo(&h, tid(20), None, None), undo(30, Some(10), false));
        // ... but not for a transaction that does not see it.
        assert_eq!(find_undo(&h, tid(20), Some(tid(30)), None), undo(20, Some(10), true));
        assert_eq!(find_undo(&h, tid(20), Some(tid(20)), None), UndoFound::NotVisible);
        // Undone at 30 (equal to 10): the greatest equal tid is chosen.
        let h = history(Some(10), &[(30, Some(10))]);
        assert_eq!(find_undo(&h, tid(20), None, None), undo(30, Some(30), false));
        // Undone at 30, and again at 40: 40 equals 20, and it is the current one.
        let h = history(Some(10), &[(30, Some(10)), (40, Some(20))]);
        assert_eq!(find_undo(&h, tid(20), None, None), undo(40, Some(30), true));
        // Modified by the undoing transaction itself.
        assert_eq!(find_undo(&h, tid(20), None, Some(tid(50))), undo(50, Some(30), false));
    }

    /// The column `tid` of an own cell through its life; other cells only have a state.
    #[test]
    fn own_cells_remember_how_complete_they_are() {
        let nid = NodeId::new(1).unwrap();
        let other = NodeId::new(2).unwrap();
        let mut config = StoredConfig { nid: Some(nid), ..StoredConfig::default() };
        let change = |nid, state| PartitionTableChange {
            ptid: 2,
            replicas: 0,
            cells: vec![StoredCell { partition: 0, nid, state }],
            scope: ChangeScope::Listed,
            last_pack_id: tid(7),
            drop_temporary: Vec::new(),
            release: Vec::new(),
        };
        let row = |tid| PtRow { partition: 0, nid, tid, pack: Some(0) };
        let out_of_date = change(nid, CellState::OutOfDate);
        let encode = |change: &_, config: &_, rows: &[PtRow]| {
            encode_change(change, config, rows, &mut Stored(99, None)).unwrap()
        };
        let new_tid = |config: &_, rows: &[PtRow]| encode(&out_of_date, config, rows).upsert[0].tid;
        assert_eq!(new_tid(&config, &[]), 0);
        assert_eq!(new_tid(&config, &[row(5)]), 5);
        assert_eq!(new_tid(&config, &[row(-1)]), 99);
        assert_eq!(new_tid(&config, &[row(-2)]), 99);
        assert_eq!(new_tid(&config, &[row(-3)]), 0);
        config.backup_tid = Some(tid(42));
        assert_eq!(new_tid(&config, &[row(-1)]), 42);
        config.backup_tid = Some(Tid::ZERO);
        assert_eq!(new_tid(&config, &[row(-1)]), 0);
        config.backup_tid = None;

        assert_eq!(encode(&out_of_date, &config, &[]).upsert[0].pack, Some(7));
        let up_to_date = encode(&change(nid, CellState::UpToDate), &config, &[]);
        assert_eq!(up_to_date.upsert, [PtRow { partition: 0, nid, tid: -1, pack: Some(0) }]);
        let foreign = encode(&change(other, CellState::OutOfDate), &config, &[]);
        assert_eq!(foreign.upsert, [PtRow { partition: 0, nid: other, tid: 0, pack: None }]);

        let discarded = encode(&change(nid, CellState::Discarded), &config, &[row(-1)]);
        assert_eq!((discarded.delete, discarded.to_drop), (vec![(0, nid)], vec![0]));
        let mut full = change(other, CellState::UpToDate);
        full.scope = ChangeScope::Full;
        let full = encode(&full, &config, &[row(-1)]);
        assert_eq!((full.delete, full.to_drop), (vec![(0, nid)], vec![0]));
    }

    /// A node that is gone is remembered if its id could be given again.
    #[test]
    fn the_greatest_id_is_remembered() {
        let nid = |index| NodeId::new(index).unwrap();
        let row = |partition, index| PtRow { partition, nid: nid(index), tid: -1, pack: None };
        let rows = [row(0, 1), row(0, 2), row(1, 2), row(1, 3)];
        let mut config = StoredConfig { nid: Some(nid(1)), ..StoredConfig::default() };
        let encode = |config: &_, scope, cells: &[(u32, i32, CellState)]| {
            let cells = cells.iter();
            let cells = cells.map(|&(partition, index, state)| StoredCell {
                partition,
                nid: nid(index),
                state,
            });
            let change = PartitionTableChange {
                ptid: 2,
                replicas: 0,
                cells: cells.collect(),
                scope,
                last_pack_id: Tid::ZERO,
                drop_temporary: Vec::new(),
                release: Vec::new(),
            };
            encode_change(&change, config, &rows, &mut Stored(-1, None)).unwrap().dropped
        };
        let (listed, full) = (ChangeScope::Listed, ChangeScope::Full);
        let (up, gone) = (CellState::UpToDate, CellState::Discarded);
        assert_eq!(encode(&config, listed, &[(1, 3, gone)]), Some(nid(3)));
        assert_eq!(
            encode(&config, listed, &[(0, 3, up), (1, 3, gone)]),
            None,
            "it has another cell"
        );
        assert_eq!(encode(&config, listed, &[(0, 2, gone), (1, 2, gone)]), None, "3 is greater");
        assert_eq!(encode(&config, listed, &[(1, 3, gone), (1, 4, up)]), None, "4 is greater");
        assert_eq!(encode(&config, full, &[(0, 1, up), (1, 2, up)]), Some(nid(3)));
        config.dropped = Some(nid(5));
        assert_eq!(encode(&config, full, &[(0, 1, up), (1, 2, up)]), None, "5 is greater");
    }

    #[test]
    fn configuration_is_parsed_strictly() {
        let parse = |name: &'static str, value: &'static str| {
            parse_config(|key| Ok((key == name).then(|| value.to_owned())))
        };
        assert_eq!(parse("nid", "-5").unwrap().nid, NodeId::new(-5));
        assert_eq!(parse("ptid", "12").unwrap().ptid, Some(12));
        let tid = parse("backup_tid", "000000000000000a").unwrap().backup_tid;
        assert_eq!(tid, Some(Tid::new(10)));
        for (name, value) in
            [("nid", "0"), ("nid", "S1"), ("ptid", "-1"), ("backup_tid", "a"), ("truncate_tid", "")]
        {
            assert!(matches!(parse(name, value), Err(Error::Corrupted(_))), "{name}={value}");
        }
        assert!(parse("truncate_tid", "ffffffffffffffff").is_err());
    }

    #[test]
    fn oids_are_joined_and_split() {
        let oids = [Oid::new(1), Oid::new(0x0102_0304_0506_0708)];
        assert_eq!(split_oids(&join_oids(&oids)).unwrap(), oids);
        assert!(split_oids(&[0; 9]).is_err());
    }
}
