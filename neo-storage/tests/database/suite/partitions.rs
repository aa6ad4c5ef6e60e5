// SPDX-License-Identifier: GPL-2.0-or-later
//! The partition table, what comes and goes with cells, replication, backup.

use super::*;

/// Dropping a partition removes its rows by slices and touches no other one.
#[test]
fn partitions_are_dropped() {
    let mut db = Mirror::with_table(false);
    for number in 1..6 {
        db.transaction(number, number, vec![store(0, "a"), store(1, "b"), store(3, "c")]);
    }
    let discard = change(ChangeScope::Listed, [(0, 1, CellState::Discarded)]);
    assert_eq!(db.write(discard), Done::PartitionTableChanged(vec![0]));
    let slice = Write::DropPartition { partition: 0, rows_max: 4 };
    let progress = |deleted, done| Done::Progress(Progress { deleted, done });
    assert_eq!(db.write(slice.clone()), progress(4, false));
    assert_eq!(db.write(slice.clone()), progress(4, false));
    assert_eq!(db.write(slice.clone()), progress(3, true));
    assert_eq!(db.write(slice), progress(0, true));
    assert_eq!(db.history(1), [5, 4, 3, 2, 1]);
    assert_eq!(db.orphans(), 0);
    db.check_all();
}

/// The rows of voted transactions in a discarded partition go with it, in the same commit.
#[test]
fn discarding_drops_temporary_rows() {
    let mut db = Mirror::with_table(false);
    db.write(vote(10, vec![store(0, "a"), store(1, "b")], Some(record(10, Vec::new()))));
    db.write(vote(12, vec![store(3, "c")], Some(record(12, Vec::new()))));
    let spill = Write::Spill { partitions: PARTITIONS, objects: vec![store(6, "d")] };
    let Done::Spilled(Ok(contents)) = db.write(spill) else { panic!("spilled") };
    let Content::Spilled(data_id) = contents[0] else { panic!("{contents:?}") };
    let mut discard = change(ChangeScope::Listed, [(0, 1, CellState::Discarded)]);
    if let Write::ChangePartitionTable(change) = &mut discard {
        change.drop_temporary = vec![0];
        change.release = vec![data_id];
    }
    db.write(discard);
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished([(ttid(10), None)].into()));
    assert_eq!(db.orphans(), 0);
    db.write(Write::Unlock { ttid: ttid(10), tid: tid(13), metadata: true });
    assert_eq!(db.load(0, None, None), Loaded::DoesNotExist);
    assert_eq!(db.history(1), [13]);
    db.check_all();
}

/// The table is replaced or changed; other nodes only have states; a new nid renames own cells.
#[test]
fn partition_table() {
    let mut db = Mirror::with_table(false);
    let state = |db: &mut Mirror| match db.read(Read::PartitionTable) {
        Done::PartitionTable(cells) => {
            cells.iter().map(|c| (c.partition, c.nid.get(), c.state)).collect::<Vec<_>>()
        }
        done => panic!("{done:?}"),
    };
    use CellState::{Corrupted, Discarded, Feeding, OutOfDate, UpToDate};
    let cells = [(0, 1, Feeding), (0, 2, OutOfDate), (1, 1, Corrupted), (2, 1, UpToDate)];
    let changed = Done::PartitionTableChanged(Vec::new());
    assert_eq!(db.write(change(ChangeScope::Listed, cells)), changed);
    assert_eq!(state(&mut db), cells);
    db.write(Write::SetNid(nid(5)));
    let cells = [(0, 2, OutOfDate), (0, 5, Feeding), (1, 5, Corrupted), (2, 5, UpToDate)];
    assert_eq!(state(&mut db), cells);
    let Done::CellNextTids(next) = db.read(Read::CellNextTids) else { panic!("next") };
    assert_eq!(next, [(0, CellNext::Readable), (2, CellNext::Readable)]);
    let cells = [(0, 5, Discarded), (2, 2, UpToDate)];
    assert_eq!(db.write(change(ChangeScope::Listed, cells)), Done::PartitionTableChanged(vec![0]));
    let full = [(0, 2, UpToDate), (1, 5, UpToDate), (3, 2, UpToDate)];
    let changed = Done::PartitionTableChanged(vec![0, 2, 3]);
    assert_eq!(db.write(change(ChangeScope::Full, full)), changed);
    assert_eq!(state(&mut db), full);
    assert_eq!(db.dropped(), None);
    // Nobody else must get id 5.
    db.write(change(ChangeScope::Listed, [(1, 5, Discarded), (1, 2, UpToDate)]));
    assert_eq!(db.dropped(), Some(nid(5)));
    db.write(change(ChangeScope::Listed, [(1, 4, UpToDate)]));
    db.write(change(ChangeScope::Listed, [(1, 4, Discarded)]));
    assert_eq!(db.dropped(), Some(nid(5)));
    db.check_all();
}

/// The first transaction begins before the second one, and gets a later tid. The second one is not finished
/// when the cell becomes out of date: its last tid says nothing (seed 814).
#[test]
fn a_cell_with_an_unfinished_transaction_is_not_complete_up_to_its_last_tid() {
    let next = |db: &mut Mirror| {
        db.write(change(ChangeScope::Listed, [(0, 1, CellState::OutOfDate)]));
        let Done::CellNextTids(next) = db.read(Read::CellNextTids) else { panic!("next") };
        next.into_iter().find(|(partition, _)| *partition == 0).unwrap().1
    };
    let first = |db: &mut Mirror| db.transaction(20, 81, vec![store(3, "a")]);
    let mut db = Mirror::with_table(false);
    first(&mut db);
    assert_eq!(next(&mut db), CellNext::OutOfDate(tid(82)));

    let mut db = Mirror::with_table(false);
    let vote = vote(40, vec![store(6, "b")], Some(record(40, vec![oid(6)])));
    assert_eq!(db.write(vote), Done::Voted(Ok(())));
    db.write(Write::Lock { ttid: ttid(40), tid: tid(60), approve_pack: false });
    first(&mut db);
    assert_eq!(next(&mut db), CellNext::OutOfDate(tid(40)));

    // A node that does not store the metadata.
    let mut db = Mirror::with_table(false);
    db.write(crate::harness::vote(40, vec![store(6, "b")], None));
    first(&mut db);
    assert_eq!(next(&mut db), CellNext::OutOfDate(tid(40)));
    db.check_all();
}

/// Replication stores rows directly, skips what is there, refuses what differs, deletes what the
/// source does not have, and records how far it is, durably, at the end of a chunk.
#[test]
fn replication() {
    let mut db = Mirror::with_table(false);
    db.write(change(ChangeScope::Listed, [(1, 1, CellState::Discarded)]));
    let mut added = change(ChangeScope::Listed, [(1, 1, CellState::OutOfDate)]);
    if let Write::ChangePartitionTable(change) = &mut added {
        change.last_pack_id = tid(90);
    }
    db.write(added);
    let info = |number| TransactionInfo {
        tid: tid(number),
        record: record(number, vec![oid(1)]),
        pack: Some(PackOrder { approved: None, partial: false, oids: None, pack_tid: tid(1) }),
    };
    let transactions = |infos: &[TransactionInfo]| Write::AddTransactions {
        partitions: PARTITIONS,
        transactions: infos.iter().cloned().map(|info| ReplicatedTransaction { info }).collect(),
    };
    let objects = |objects: &[(u64, ObjectRecord)]| Write::AddObjects {
        partitions: PARTITIONS,
        objects: objects
            .iter()
            .map(|(number, object)| ReplicatedObject { tid: tid(*number), object: object.clone() })
            .collect(),
    };
    let ok = Done::Added(Ok(()));
    assert_eq!(db.write(transactions(&[info(10), info(13)])), ok);
    assert_eq!(db.write(transactions(&[info(13), info(16)])), ok);
    let mut other = info(13);
    other.record.user = value("other").data;
    let conflict = ReplicationConflict::Transaction(tid(13));
    assert_eq!(db.write(transactions(&[other])), Done::Added(Err(conflict)));
    // What is packed at the source is packed; copies are not packed at the same time.
    let mut packed = info(13);
    packed.record.packed = true;
    for again in [packed, info(13)] {
        assert_eq!(db.write(transactions(&[again])), ok);
        let read = Read::Transaction { partition: 1, tid: tid(13) };
        let Done::Transactions(found) = db.read(read) else { panic!("transactions") };
        assert!(found[0].as_ref().unwrap().record.packed);
    }
    let mut invalid = info(16);
    invalid.tid = Tid::INVALID;
    let conflict = Done::Added(Err(ReplicationConflict::InvalidId));
    assert_eq!(db.write(transactions(&[invalid])), conflict);

    let undone = |data| undo(1, 10, Content::Value(value(data)));
    let rows = [(10, store(1, "a")), (13, delete(1)), (16, undone("a"))];
    assert_eq!(db.write(objects(&rows)), ok);
    assert_eq!(db.write(objects(&rows)), ok);
    for row in [(10, store(1, "b")), (13, store(1, "a")), (16, store(1, "a")), (10, delete(1))] {
        let conflict = ReplicationConflict::Object(oid(1), tid(row.0));
        assert_eq!(db.write(objects(&[row])), Done::Added(Err(conflict)));
    }
    assert_eq!(db.orphans(), 0);
    let end = ChunkEnd {
        partition: 1,
        delete_transactions: vec![tid(16), tid(99), Tid::INVALID],
        delete_objects: vec![(oid(1), tid(16)), (oid(4), tid(16)), (Oid::INVALID, tid(1))],
        source_pack_id: Some(tid(50)),
        cell_tid: Some(tid(13)),
        backup_tid: Some(tid(13)),
        approved: vec![tid(10), tid(16)],
        rejected: vec![tid(13)],
    };
    let end = Write::EndChunk { partitions: PARTITIONS, end: Box::new(end) };
    assert_eq!(db.write(end), Done::Signed(vec![tid(10), tid(13)]));
    let mut db = db.crash();
    let Done::CellNextTids(next) = db.read(Read::CellNextTids) else { panic!("next") };
    assert_eq!(next[1], (1, CellNext::OutOfDate(tid(14))));
    let Done::PackedCells(cells) = db.read(Read::PackedCells) else { panic!("cells") };
    assert_eq!(cells[1].pack_id, tid(50));
    let Done::Config(config) = db.read(Read::Config) else { panic!("config") };
    assert_eq!(config.backup_tid, None, "it is not in backup mode");
    assert_eq!(db.history(1), [13, 10]);
    assert_eq!(db.last(1), None);
    // Only while the cell is out of date.
    db.write(change(ChangeScope::Listed, [(1, 1, CellState::UpToDate)]));
    let end = ChunkEnd { partition: 1, cell_tid: Some(tid(20)), ..ChunkEnd::default() };
    db.write(Write::EndChunk { partitions: PARTITIONS, end: Box::new(end) });
    let Done::CellNextTids(next) = db.read(Read::CellNextTids) else { panic!("next") };
    assert_eq!(next[1], (1, CellNext::Readable));
    db.check_all();
}

/// In backup mode, readable cells follow another cluster.
#[test]
fn backup_mode() {
    let mut db = Mirror::with_table(false);
    db.transaction(9, 12, vec![store(3, "a")]);
    db.write(Write::SetBackupTid(Some(tid(5))));
    let next = |db: &mut Mirror| match db.read(Read::CellNextTids) {
        Done::CellNextTids(next) => next.into_iter().map(|(_, next)| next).collect::<Vec<_>>(),
        done => panic!("{done:?}"),
    };
    let backup = |trans, obj| CellNext::Backup(tid(trans), tid(obj));
    assert_eq!(next(&mut db), [backup(13, 12), backup(6, 6), backup(6, 6)]);
    let end = ChunkEnd { backup_tid: Some(tid(7)), ..ChunkEnd::default() };
    db.write(Write::EndChunk { partitions: PARTITIONS, end: Box::new(end) });
    assert_eq!(next(&mut db), [backup(13, 12), backup(8, 8), backup(8, 8)]);
    db.write(Write::SetBackupTid(Some(Tid::ZERO)));
    assert_eq!(next(&mut db), [backup(13, 12), backup(0, 0), backup(0, 0)]);
    db.write(Write::SetBackupTid(None));
    assert_eq!(next(&mut db), [CellNext::Readable; 3]);
}

/// Erasing leaves an empty database.
#[test]
fn erase() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 12, vec![store(3, "a")]);
    db.write(vote(20, vec![store(3, "b")], None));
    assert_eq!(db.write(Write::Flush), Done::Finished);
    db.write(Write::Erase);
    let mut db = db.crash();
    let Done::Config(config) = db.read(Read::Config) else { panic!("config") };
    assert_eq!(config, StoredConfig { name: Some(CLUSTER.into()), ..StoredConfig::default() });
    assert_eq!(db.load(3, None, None), Loaded::DoesNotExist);
    db.check_all();
}
