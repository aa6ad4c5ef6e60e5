// SPDX-License-Identifier: GPL-2.0-or-later
//! Databases of a cluster where nothing happens any more: what was acknowledged is there, whole, on
//! all readable cells, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use neo_client::compression::Stored;
use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};
use neo_storage::database::{
    CommitLevel, Database, Error, Loaded, Revision, TransactionRecord, Unfinished, Value,
};

use crate::model::{Checked, Content, Model, Violation, ensure};

/// What is stored for an object by a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    value: Option<Value>,
    data_tid: Option<Tid>,
}

/// What a database has of one partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Cell {
    transactions: BTreeMap<Tid, TransactionRecord>,
    objects: BTreeMap<(Tid, Oid), Row>,
}

/// What the database of one storage contains.
#[derive(Clone, Debug)]
pub struct Contents {
    nid: NodeId,
    /// Readable ones only.
    cells: BTreeMap<Partition, Cell>,
    unfinished: Unfinished,
    orphans: u64,
}

impl Contents {
    /// Reads a database.
    ///
    /// # Errors
    /// Those of the database.
    pub fn read(
        database: &mut dyn Database,
        nid: NodeId,
        readable: impl Iterator<Item = Partition>,
    ) -> Result<Self, Error> {
        let mut cells = BTreeMap::new();
        let reader = database.latest();
        for partition in readable {
            let mut cell = Cell::default();
            for tid in reader.tids_from(partition, Tid::ZERO, Tid::MAX, u32::MAX)? {
                if let Some(info) = reader.transaction(partition, tid)? {
                    cell.transactions.insert(tid, info.record);
                }
            }
            let revisions =
                reader.revisions_from(partition, Tid::ZERO, Oid::ZERO, Tid::MAX, u32::MAX)?;
            for (tid, oid) in revisions {
                if let Loaded::Found(Revision { value, data_tid, .. }) =
                    reader.load(partition, oid, Some(tid), None)?
                {
                    cell.objects.insert((tid, oid), Row { value, data_tid });
                }
            }
            cells.insert(partition, cell);
        }
        let unfinished = reader.unfinished()?;
        database.begin(CommitLevel::Visible)?;
        let orphans = database.prune_orphans(None, u32::MAX, true)?.found;
        database.commit()?;
        Ok(Self { nid, cells, unfinished, orphans })
    }

    /// Transactions of its cells.
    pub fn transactions(&self) -> impl Iterator<Item = (Tid, Ttid)> {
        let transactions = self.cells.values().flat_map(|cell| &cell.transactions);
        transactions.map(|(tid, record)| (*tid, record.ttid))
    }
    /// Revisions of objects of its cells.
    pub fn revisions_count(&self) -> usize {
        self.cells.values().map(|cell| cell.objects.len()).sum()
    }
}

/// Checks all databases of a cluster, and settles what the model was in doubt of. `packed`: all pack
/// orders are completed.
///
/// # Errors
/// What is wrong.
pub fn check(model: &mut Model, partitions: u32, all: &[Contents], packed: bool) -> Checked {
    for Contents { nid, unfinished, orphans, .. } in all {
        ensure!(unfinished.is_empty(), "{nid} has unfinished transactions: {unfinished:?}");
        ensure!(*orphans == 0, "{nid} has {orphans} rows of data that nothing refers to");
    }
    let cells = readable_cells(partitions, all)?;
    let tids = transactions(&cells, partitions)?;
    model.settle(&tids)?;
    let mut found = BTreeSet::new();
    for (partition, cell) in &cells {
        for (tid, record) in &cell.transactions {
            check_metadata(model, *tid, record)?;
        }
        for ((tid, oid), row) in &cell.objects {
            ensure!(oid.partition(partitions) == *partition, "{oid} is in partition {partition}");
            check_row(model, *tid, *oid, row)?;
            found.insert((*tid, *oid));
        }
    }
    for oid in model.oids().collect::<Vec<_>>() {
        for tid in model.revisions(oid) {
            let is_packed = model.is_packed(oid, tid);
            let is_found = found.contains(&(tid, oid));
            ensure!(is_found || is_packed, "revision {tid} of {oid} is lost");
            ensure!(!packed || !is_found || !is_packed, "revision {tid} of {oid} is not packed");
        }
    }
    Ok(())
}

/// One readable cell of each partition, equal to the others.
fn readable_cells(partitions: u32, all: &[Contents]) -> Result<Vec<(Partition, &Cell)>, Violation> {
    let mut cells = Vec::new();
    for partition in 0..partitions {
        let mut readable = all.iter().filter_map(|c| Some((c.nid, c.cells.get(&partition)?)));
        let Some((nid, cell)) = readable.next() else {
            return Err(Violation(format!("no readable cell of partition {partition}")));
        };
        for (other_nid, other) in readable {
            if other != cell {
                return Err(difference(partition, (nid, cell), (other_nid, other)));
            }
        }
        cells.push((partition, cell));
    }
    Ok(cells)
}

fn difference(
    partition: Partition,
    (nid, cell): (NodeId, &Cell),
    (other_nid, other): (NodeId, &Cell),
) -> Violation {
    let tids = |cell: &Cell| cell.transactions.keys().copied().collect::<BTreeSet<_>>();
    let rows = |cell: &Cell| cell.objects.keys().copied().collect::<BTreeSet<_>>();
    let (tids, other_tids) = (tids(cell), tids(other));
    let (rows, other_rows) = (rows(cell), rows(other));
    let records = cell.transactions.iter().filter_map(|(tid, record)| {
        let other = other.transactions.get(tid).filter(|other| *other != record)?;
        Some(format!("{tid}: {record:?} / {other:?}"))
    });
    let objects = cell.objects.iter().filter_map(|(key, row)| {
        let other = other.objects.get(key).filter(|other| *other != row)?;
        Some(format!("{key:?}: {row:?} / {other:?}"))
    });
    let unequal: Vec<String> = records.chain(objects).take(3).collect();
    Violation(format!(
        "readable cells of partition {partition} differ: only in {nid}: {:?} {:?}; only in \
         {other_nid}: {:?} {:?}; unequal: {unequal:?}",
        tids.difference(&other_tids).collect::<Vec<_>>(),
        rows.difference(&other_rows).collect::<Vec<_>>(),
        other_tids.difference(&tids).collect::<Vec<_>>(),
        other_rows.difference(&rows).collect::<Vec<_>>(),
    ))
}

fn transactions(
    cells: &[(Partition, &Cell)],
    partitions: u32,
) -> Result<BTreeMap<Tid, Ttid>, Violation> {
    let mut tids = BTreeMap::new();
    for (partition, cell) in cells {
        for (tid, record) in &cell.transactions {
            ensure!(
                tid.partition(partitions) == *partition,
                "transaction {tid} is in partition {partition}"
            );
            tids.insert(*tid, record.ttid);
        }
    }
    Ok(tids)
}

fn check_metadata(model: &Model, tid: Tid, record: &TransactionRecord) -> Checked {
    let attempt = model.transaction(tid).expect("settled");
    let mut oids = record.oids.clone();
    oids.sort_unstable();
    let expected: Vec<Oid> = attempt.writes.keys().copied().collect();
    ensure!(
        oids == expected
            && record.user == attempt.metadata.user
            && record.description == attempt.metadata.description,
        "transaction {tid} is stored with other metadata: {record:?} instead of {attempt:?}"
    );
    Ok(())
}

fn check_row(model: &Model, tid: Tid, oid: Oid, row: &Row) -> Checked {
    let Some(expected) = model.content(oid, tid) else {
        return Err(Violation(format!("a revision {tid} of {oid} is stored, nobody wrote it")));
    };
    let data = match &row.value {
        None => None,
        Some(Value { compression, checksum, data }) => {
            let compression = Some(u32::from(*compression));
            let stored = Stored { compression, checksum: *checksum, data: data.clone() };
            let Ok(data) = stored.load() else {
                return Err(Violation(format!("revision {tid} of {oid} is damaged")));
            };
            Some(data)
        }
    };
    let matches = match (expected, &data) {
        (Content::Data(expected), Some(data)) => expected == data,
        (Content::Nothing { .. }, None) => true,
        _ => false,
    };
    let data = data.map(Content::Data);
    ensure!(matches, "revision {tid} of {oid} is {data:?} instead of {expected:?}");
    Ok(())
}
