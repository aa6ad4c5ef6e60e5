// SPDX-License-Identifier: GPL-2.0-or-later
//! What removes data: pack and truncation.

use super::*;

/// A pack keeps the last revision at its time, or nothing if it is a deletion; by slices, or for
/// given objects.
#[test]
fn pack_removes_old_revisions() {
    let mut db = Mirror::with_table(false);
    for (number, data) in [(1, "a"), (4, "b"), (7, "c")] {
        db.transaction(10 + number, 10 + number, vec![store(number, data)]);
        db.transaction(20 + number, 20 + number, vec![store(number, "new")]);
    }
    db.transaction(33, 33, vec![delete(7)]);
    db.transaction(36, 36, vec![store(4, "after")]);
    let scope = |from: u64| PackScope::From { min_oid: oid(from), oids_max: 2 };
    let pack = |from| Write::Pack { partition: 1, pack_tid: tid(35), scope: scope(from) };
    let packed = |next: Option<u64>, deleted| {
        Done::Packed(PackProgress { next_oid: next.map(Oid::new), deleted })
    };
    let partial = PackScope::Oids(vec![oid(1), oid(10), Oid::INVALID]);
    let partial = Write::Pack { partition: 1, pack_tid: tid(35), scope: partial };
    assert_eq!(db.write(partial), packed(None, 1));
    assert_eq!(db.write(pack(0)), packed(Some(5), 1));
    assert_eq!(db.write(pack(5)), packed(None, 3));
    assert_eq!(db.history(1), [21]);
    assert_eq!(db.history(4), [36, 24]);
    assert_eq!(db.load(7, None, None), Loaded::DoesNotExist);
    assert_eq!(db.orphans(), 0);
    // Transactions are left alone.
    let tids = Read::Tids { partitions: vec![0, 1, 2], offset: 0, length: 99 };
    let Done::Tids(tids) = db.read(tids) else { panic!("tids") };
    assert_eq!(tids.len(), 8);
    db.write(Write::SetPacked { partition: 1, pack_id: tid(50) });
    let Done::PackedCells(cells) = db.read(Read::PackedCells) else { panic!("cells") };
    let ids: Vec<_> = cells.iter().map(|cell| cell.pack_id.get()).collect();
    assert_eq!(ids, [0, 50, 0]);
    db.check_all();
}

/// A full pack marks the transactions up to its time, by slices; those of other partitions are not
/// its business.
#[test]
fn pack_marks_transactions() {
    let mut db = Mirror::with_table(false);
    let tids = [11, 14, 17, 18, 20, 23];
    for number in tids {
        db.transaction(number, number, vec![store(1, "a")]);
    }
    let mark = |db: &mut Mirror, min_tid| {
        let (min_tid, pack_tid) = (tid(min_tid), tid(20));
        let mark = Write::MarkPacked { partition: 2, min_tid, pack_tid, tids_max: 2 };
        let Done::Marked(next) = db.write(mark) else { panic!("marked") };
        next.map(Tid::get)
    };
    let marked = |db: &mut Mirror| -> Vec<u64> {
        let read = |db: &mut Mirror, number: u64| {
            let partition = (number % 3) as u32;
            let found = db.read(Read::Transaction { partition, tid: tid(number) });
            let Done::Transactions(found) = found else { panic!("transactions") };
            found[0].as_ref().unwrap().record.packed
        };
        tids.into_iter().filter(|number| read(db, *number)).collect()
    };
    assert_eq!(mark(&mut db, 0), Some(15));
    assert_eq!(marked(&mut db), [11, 14]);
    assert_eq!(mark(&mut db, 15), Some(21));
    assert_eq!(mark(&mut db, 21), None);
    assert_eq!(marked(&mut db), [11, 14, 17, 20]);
    // Again: nothing to do.
    assert_eq!(mark(&mut db, 0), None);
    assert_eq!(mark(&mut db, 99), None);
    assert_eq!(marked(&mut db), [11, 14, 17, 20]);
    db.check_all();
}

/// Pack orders are known by their transaction, signed, listed by readable partition.
#[test]
fn pack_orders_are_signed() {
    let mut db = Mirror::with_table(false);
    for (ttid, oids) in [(10, None), (21, Some(vec![oid(1), oid(2)])), (32, None)] {
        let (partial, pack_tid) = (oids.is_some(), tid(5));
        db.write(Write::Vote(Box::new(Vote {
            ttid: Ttid::new(ttid),
            partitions: PARTITIONS,
            objects: Vec::new(),
            transaction: Some(record(ttid, Vec::new())),
            pack: Some(PackOrder { approved: None, partial, oids, pack_tid }),
        })));
        let (ttid, tid) = (Ttid::new(ttid), tid(ttid + 3));
        db.write(Write::Lock { ttid, tid, approve_pack: ttid.get() == 32 });
        db.write(Write::Unlock { ttid, tid, metadata: true });
    }
    let sign = Write::SignPacks { approved: vec![tid(13), tid(99)], rejected: vec![tid(24)] };
    assert_eq!(db.write(sign), Done::Signed(vec![tid(13), tid(24)]));
    let orders = |db: &mut Mirror, readable: &[u32], min_id| {
        let readable = readable.to_vec();
        match db.read(Read::PackOrders { readable, partitions: PARTITIONS, min_id: tid(min_id) }) {
            Done::PackOrders(orders) => {
                orders.iter().map(|(id, order)| (id.get(), order.approved)).collect::<Vec<_>>()
            }
            done => panic!("{done:?}"),
        }
    };
    let all = [(13, Some(true)), (24, Some(false)), (35, Some(true))];
    assert_eq!(orders(&mut db, &[0, 1, 2], 0), all);
    assert_eq!(orders(&mut db, &[0, 1, 2], 14), all[1..]);
    assert_eq!(orders(&mut db, &[1], 0), all[..1]);
    db.check_all();
}

/// A truncation is planned, survives crashes, is done by slices, and removes everything later.
#[test]
fn truncation() {
    let mut db = Mirror::with_table(false);
    db.write(Write::SetBackupTid(Some(tid(30))));
    for number in 1..9 {
        db.transaction(10 * number, 10 * number + 3, vec![store(number, "a"), store(0, "b")]);
    }
    let out_of_date = [(0, 1, CellState::OutOfDate), (1, 2, CellState::UpToDate)];
    db.write(change(ChangeScope::Listed, out_of_date));
    db.write(Write::SetTruncateTid(tid(43)));
    let mut slices = 0;
    loop {
        slices += 1;
        let mut crashed = db.crash();
        let Done::Progress(progress) = crashed.write(Write::Truncate { rows_max: 3 }) else {
            panic!("a slice")
        };
        db = crashed;
        if progress.done {
            break;
        }
    }
    assert!(slices > 3, "{slices}");
    let tids = Read::Tids { partitions: vec![0, 1, 2], offset: 0, length: 99 };
    let expected = [43, 33, 23, 13].map(Tid::new).to_vec();
    assert_eq!(db.read(tids), Done::Tids(expected));
    assert_eq!(db.history(0), [43, 33, 23, 13]);
    let Done::Config(config) = db.read(Read::Config) else { panic!("config") };
    assert_eq!((config.backup_tid, config.truncate_tid), (None, None));
    assert_eq!(db.orphans(), 0);
    // The cell was complete up to 30 (backup mode): it still is.
    let Done::CellNextTids(next) = db.read(Read::CellNextTids) else { panic!("next") };
    assert_eq!(next[0], (0, CellNext::OutOfDate(tid(31))));
    let done = Done::Progress(Progress { deleted: 0, done: true });
    assert_eq!(db.write(Write::Truncate { rows_max: 3 }), done);
    db.check_all();
}

/// A cell that was readable remembers up to where it is complete; truncation sets it back.
#[test]
fn an_outdated_cell_is_set_back_by_truncation() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 12, vec![store(3, "a")]);
    db.transaction(20, 21, vec![store(3, "b")]);
    db.write(change(ChangeScope::Listed, [(0, 1, CellState::OutOfDate)]));
    let next = |db: &mut Mirror| match db.read(Read::CellNextTids) {
        Done::CellNextTids(next) => next[0].1,
        done => panic!("{done:?}"),
    };
    assert_eq!(next(&mut db), CellNext::OutOfDate(tid(22)));
    db.write(Write::SetTruncateTid(tid(15)));
    db.write(Write::Truncate { rows_max: 99 });
    assert_eq!(next(&mut db), CellNext::OutOfDate(tid(16)));
    db.check_all();
}
