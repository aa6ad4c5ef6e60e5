// SPDX-License-Identifier: GPL-2.0-or-later
//! Rules of the database, one by one.

use neo_common::protocol::enums::CellState;
use neo_common::types::{Oid, Tid, Ttid};
use neo_storage::database::*;

use crate::harness::*;

fn tid(number: u64) -> Tid {
    Tid::new(number)
}

fn ttid(number: u64) -> Ttid {
    Ttid::new(number)
}

/// The life of a transaction, step by step: nothing is visible before the unlock, everything after.
#[test]
fn a_transaction_is_visible_once_unlocked() {
    let mut db = Mirror::with_table(false);
    let objects = vec![store(1, "a"), store(2, "b"), delete(3)];
    let record = record(10, vec![oid(1), oid(2), oid(3)]);
    assert_eq!(db.write(vote(10, objects, Some(record.clone()))), Done::Voted(Ok(())));
    let unfinished = |tid: Option<u64>| Done::Unfinished([(ttid(10), tid.map(Tid::new))].into());
    assert_eq!(db.read(Read::Unfinished), unfinished(None));
    assert_eq!(db.load(1, None, None), Loaded::DoesNotExist);

    db.write(Write::Lock { ttid: ttid(10), tid: tid(13), approve_pack: false });
    assert_eq!(db.read(Read::Unfinished), unfinished(Some(13)));
    assert_eq!(db.load(1, None, None), Loaded::DoesNotExist);
    let final_tid = Read::FinalTid { partition: 1, ttid: ttid(10) };
    assert_eq!(db.read(final_tid.clone()), Done::FinalTid(None));

    db.write(Write::Unlock { ttid: ttid(10), tid: tid(13), metadata: true });
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(Unfinished::new()));
    assert_eq!(db.read(final_tid), Done::FinalTid(Some(tid(13))));
    assert_eq!(db.last(1).as_deref(), Some(&b"a"[..]));
    assert_eq!(db.last(3), None);
    let info = TransactionInfo { tid: tid(13), record, pack: None };
    let transaction = db.read(Read::Transaction { partition: 1, tid: tid(13) });
    assert_eq!(transaction, Done::Transactions(vec![Some(info)]));
    let last = LastIds { last_tid: Some(tid(13)), last_oid: Some(oid(3)), first_tid: tid(13) };
    assert_eq!(db.read(Read::LastIds { readable: vec![0, 1, 2] }), Done::LastIds(last));
    db.check_all();
}

/// The last ids are about readable partitions only: what remains of a cell that left, or is not
/// complete yet, does not count. Upstream: testStorageBackendLastIDs.
#[test]
fn last_ids_of_readable_partitions() {
    let mut db = Mirror::with_table(false);
    let objects = vec![store(1, "a"), store(2, "b")];
    db.write(vote(10, objects, Some(record(10, vec![oid(1), oid(2)]))));
    db.write(Write::Lock { ttid: ttid(10), tid: tid(13), approve_pack: false });
    db.write(Write::Unlock { ttid: ttid(10), tid: tid(13), metadata: true });
    // Its transaction is in partition 1, its objects in 1 and 2.
    for (readable, last_tid, last_oid) in [
        (vec![0, 1, 2], Some(tid(13)), Some(oid(2))),
        (vec![1], Some(tid(13)), Some(oid(1))),
        (vec![2], Some(tid(13)), Some(oid(2))),
        (vec![0], None, None),
        (vec![], None, None),
    ] {
        let Done::LastIds(ids) = db.read(Read::LastIds { readable: readable.clone() }) else {
            panic!()
        };
        assert_eq!((ids.last_tid, ids.last_oid), (last_tid, last_oid), "{readable:?}");
    }
    db.check_all();
}

/// On a node without the metadata, there is nothing to lock.
#[test]
fn objects_are_committed_without_metadata() {
    let mut db = Mirror::with_table(false);
    db.write(vote(10, vec![store(1, "a")], None));
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished([(ttid(10), None)].into()));
    db.write(Write::Unlock { ttid: ttid(10), tid: tid(13), metadata: false });
    assert_eq!(db.history(1), [13]);
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(Unfinished::new()));
    db.check_all();
}

/// What is not committed is for the writer only.
#[test]
fn readers_see_what_is_committed() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 13, vec![store(1, "a")]);
    db.write(vote(20, vec![store(1, "b")], None));
    let unlock = Write::Unlock { ttid: ttid(20), tid: tid(23), metadata: false };
    assert_eq!(db.execute(unlock), None, "reported before it is visible");
    assert_eq!(db.history(1), [13]);
    let history = Read::History { partition: 1, oid: oid(1), offset: 0, length: 9 };
    assert_eq!(db.latest(history), Done::History(vec![(tid(23), 1), (tid(13), 1)]));
    db.commit();
    assert_eq!(db.history(1), [23, 13]);
}

/// Each way to ask for a revision, on both sides of each boundary.
#[test]
fn loads_at_and_before() {
    let mut db = Mirror::with_table(false);
    for (ttid, tid, data) in [(10, 11, "a"), (20, 21, "b"), (30, 31, "c")] {
        db.transaction(ttid, tid, vec![store(1, data)]);
    }
    let found = |loaded| match loaded {
        Loaded::Found(Revision { tid, next_tid, value, .. }) => {
            let data = value.unwrap().data;
            Some((tid.get(), next_tid.map(Tid::get), String::from_utf8(data.to_vec()).unwrap()))
        }
        Loaded::NotAtThatTid => None,
        Loaded::DoesNotExist => panic!("it exists"),
    };
    let revision = |tid, next, data: &str| Some((tid, next, data.to_owned()));
    assert_eq!(found(db.load(1, None, None)), revision(31, None, "c"));
    assert_eq!(found(db.load(1, Some(11), None)), revision(11, Some(21), "a"));
    assert_eq!(found(db.load(1, Some(12), None)), None);
    assert_eq!(found(db.load(1, Some(31), None)), revision(31, None, "c"));
    assert_eq!(found(db.load(1, None, Some(11))), None);
    assert_eq!(found(db.load(1, None, Some(12))), revision(11, Some(21), "a"));
    assert_eq!(found(db.load(1, None, Some(21))), revision(11, Some(21), "a"));
    assert_eq!(found(db.load(1, None, Some(22))), revision(21, Some(31), "b"));
    assert_eq!(found(db.load(1, None, Some(32))), revision(31, None, "c"));
    assert_eq!(found(db.load(1, None, Some(0))), None);
    // `at` wins.
    assert_eq!(found(db.load(1, Some(11), Some(32))), revision(11, Some(21), "a"));
    assert_eq!(db.load(4, None, Some(32)), Loaded::DoesNotExist);
    assert_eq!(db.load(4, Some(11), None), Loaded::DoesNotExist);
}

/// Identifiers that SQLite can not hold exist in no database, and cut no range.
#[test]
fn identifiers_have_63_bits() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 11, vec![store(1, "a")]);
    let big = 1 << 63;
    assert_eq!(db.load(big, None, None), Loaded::DoesNotExist);
    assert_eq!(db.load(1, Some(big), None), Loaded::NotAtThatTid);
    assert!(matches!(db.load(1, None, Some(u64::MAX)), Loaded::Found(_)));
    let refused = Done::Voted(Err(Refused::InvalidOid(oid(big))));
    assert_eq!(db.write(vote(20, vec![store(2, "b"), store(big, "c")], None)), refused);
    let refused = Done::Voted(Err(Refused::InvalidOid(oid(2))));
    assert_eq!(db.write(vote(20, vec![store(2, "b"), store(2, "c")], None)), refused);
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(Unfinished::new()));

    let (max_tid, length) = (Tid::INVALID, 9);
    let range = Read::TidsFrom { partition: 1, min_tid: tid(0), max_tid, length };
    assert_eq!(db.read(range), Done::Tids(vec![tid(11)]).clone());
    let range = Read::TidsFrom { partition: 1, min_tid: tid(big), max_tid, length };
    assert_eq!(db.read(range), Done::Tids(Vec::new()));
    let (partition, min_tid) = (1, tid(11));
    let min_oid = Oid::INVALID;
    let range = Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length };
    assert_eq!(db.read(range), Done::Revisions(Vec::new()));
    let checks = vec![
        StoreCheck { oid: oid(big), data_tid: None },
        StoreCheck { oid: oid(1), data_tid: Some(tid(big)) },
        StoreCheck { oid: oid(1), data_tid: Some(tid(11)) },
    ];
    let none = StoreChecked { last_tid: None, data_tid_exists: false };
    let checked = |data_tid_exists| StoreChecked { last_tid: Some(tid(11)), data_tid_exists };
    let expected = Done::StoresChecked(vec![none, checked(false), checked(true)]);
    assert_eq!(db.read(Read::CheckStores { partitions: PARTITIONS, checks }), expected);
    let search = |undone, objects: &[u64]| {
        let objects = objects.iter().map(|number| (oid(*number), None)).collect();
        Read::FindUndo(UndoSearch {
            partitions: PARTITIONS,
            ltid: None,
            undone_tid: tid(undone),
            objects,
        })
    };
    let undo = UndoFound::Undo { current_tid: tid(11), undo_tid: None, is_current: true };
    let expected = vec![UndoFound::NothingToUndo, undo, UndoFound::NothingToUndo];
    assert_eq!(db.read(search(11, &[big, 1, 4])), Done::Undo(expected));
    assert_eq!(db.read(search(big, &[1])), Done::Undo(vec![UndoFound::NothingToUndo]));
}

/// Equal data is stored twice without deduplication, once with it, and goes with its last user.
#[test]
fn data_is_deleted_with_its_last_reference() {
    for dedup in [false, true] {
        let mut db = Mirror::with_table(dedup);
        let data = |db: &mut Mirror| {
            let ids = [0, 1, 2].into_iter().flat_map(|p: i64| (p << 48)..(p << 48) + 9);
            ids.filter(|id| db.latest(Read::Data(DataId(*id))) != Done::Data(None)).count()
        };
        db.transaction(10, 11, vec![store(1, "a"), store(2, "a")]);
        assert_eq!(data(&mut db), if dedup { 1 } else { 2 });
        // An undo refers to the data of the revision that it restores.
        db.transaction(20, 21, vec![store(1, "b")]);
        let count = data(&mut db);
        db.transaction(30, 31, vec![undo(1, 11, Content::MustExist)]);
        assert_eq!(data(&mut db), count);
        assert_eq!(db.last(1).as_deref(), Some(&b"a"[..]));
        // Revisions 11 and 21 go, the data of 11 stays.
        let scope = PackScope::Oids(vec![oid(1)]);
        let pack = Write::Pack { partition: 1, pack_tid: tid(31), scope };
        let packed = Done::Packed(PackProgress { next_oid: None, deleted: 2 });
        assert_eq!(db.write(pack.clone()), packed);
        assert_eq!(db.write(pack), Done::Packed(PackProgress { next_oid: None, deleted: 0 }));
        assert_eq!(data(&mut db), count - 1);
        assert_eq!(db.last(1).as_deref(), Some(&b"a"[..]));
        assert_eq!(db.orphans(), 0);
        // A voted transaction that undoes to what is packed meanwhile holds the data.
        db.transaction(40, 41, vec![store(1, "c")]);
        db.write(vote(50, vec![undo(1, 31, Content::MustExist)], None));
        let scope = PackScope::From { min_oid: oid(0), oids_max: 9 };
        db.write(Write::Pack { partition: 1, pack_tid: tid(41), scope });
        assert_eq!(db.history(1), [41]);
        db.write(Write::Unlock { ttid: ttid(50), tid: tid(51), metadata: false });
        assert_eq!(db.last(1).as_deref(), Some(&b"a"[..]));
        db.check_all();
    }
}

/// With deduplication, different data with the same hash is refused, never confused.
#[test]
fn a_hash_collision_is_refused() {
    let mut db = Mirror::with_table(true);
    db.transaction(10, 11, vec![store(1, "a")]);
    let mut forged = value("a");
    forged.data = value("b").data;
    let forged = ObjectRecord { content: Content::Value(forged), ..store(2, "") };
    let refused = Refused::Collision(oid(2));
    let objects = vec![store(4, "c"), forged.clone()];
    assert_eq!(db.write(vote(20, objects.clone(), None)), Done::Voted(Err(refused)));
    let spill = Write::Spill { partitions: PARTITIONS, objects };
    assert_eq!(db.write(spill), Done::Spilled(Err(refused)));
    assert_eq!(db.orphans(), 0, "data of a refused transaction remains");
    let object = ReplicatedObject { tid: tid(20), object: forged };
    let add = Write::AddObjects { partitions: PARTITIONS, objects: vec![object] };
    let conflict = ReplicationConflict::Collision(oid(2), tid(20));
    assert_eq!(db.write(add), Done::Added(Err(conflict)));
    db.check_all();
}

/// An undo to a revision that was packed is refused on a readable cell; on another one, which may
/// simply lack it, the data that the client sent is stored.
#[test]
fn undo_to_a_missing_revision() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 11, vec![store(1, "a")]);
    let objects = vec![store(4, "d"), undo(1, 9, Content::MustExist)];
    let refused = Done::Voted(Err(Refused::UndoPack(oid(1))));
    assert_eq!(db.write(vote(20, objects, None)), refused);
    assert_eq!(db.orphans(), 0);
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(Unfinished::new()));
    db.transaction(30, 31, vec![undo(1, 9, Content::Value(value("sent")))]);
    assert_eq!(db.last(1).as_deref(), Some(&b"sent"[..]));
    db.transaction(40, 41, vec![undo(1, 9, Content::Deleted)]);
    assert_eq!(db.last(1), None);
    // Undo of a creation that exists: its data wins, even if there is none.
    db.transaction(50, 51, vec![undo(1, 41, Content::Value(value("ignored")))]);
    assert_eq!(db.last(1), None);
    db.check_all();
}

/// Nothing remains of an aborted transaction, be it voted or only spilled; nor of its pack order.
#[test]
fn abort_leaves_nothing() {
    let mut db = Mirror::with_table(false);
    let pack = PackOrder { approved: None, partial: false, oids: None, pack_tid: tid(5) };
    let spill = Write::Spill { partitions: PARTITIONS, objects: vec![store(1, "a"), delete(2)] };
    let Done::Spilled(Ok(contents)) = db.write(spill) else { panic!("it is not refused") };
    let [Content::Spilled(data_id), Content::Deleted] = contents[..] else {
        panic!("{contents:?}")
    };
    assert_eq!(db.latest(Read::Data(data_id)), Done::Data(Some(value("a"))));
    assert_eq!(db.orphans(), 0, "spilled data is held");
    db.write(Write::Vote(Box::new(Vote {
        ttid: ttid(10),
        partitions: PARTITIONS,
        objects: vec![store(4, "b")],
        transaction: Some(record(10, vec![oid(4)])),
        pack: Some(pack.clone()),
    })));
    let orders =
        Read::PackOrders { readable: vec![0, 1, 2], partitions: PARTITIONS, min_id: tid(0) };
    // It is not an order before the transaction is committed.
    assert_eq!(db.read(orders.clone()), Done::PackOrders(Vec::new()));
    db.write(Write::Abort { ttid: ttid(10), spilled: vec![data_id] });
    assert_eq!(db.latest(Read::Data(data_id)), Done::Data(None));
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(Unfinished::new()));
    assert_eq!(db.orphans(), 0);
    // If it were still there, it would go with this one.
    db.transaction(10, 13, vec![store(4, "b")]);
    assert_eq!(db.read(orders), Done::PackOrders(Vec::new()));
    db.check_all();
}

/// Spilled data is voted without being stored again, and it is an orphan if the process dies before.
#[test]
fn spilled_data_is_voted_or_orphaned() {
    let mut db = Mirror::with_table(false);
    let spill = |db: &mut Mirror, data: &str| {
        let objects = vec![store(1, data)];
        match db.write(Write::Spill { partitions: PARTITIONS, objects }) {
            Done::Spilled(Ok(mut contents)) => contents.pop().unwrap(),
            done => panic!("{done:?}"),
        }
    };
    let content = spill(&mut db, "a");
    db.transaction(10, 11, vec![ObjectRecord { content, ..store(1, "") }]);
    assert_eq!(db.last(1).as_deref(), Some(&b"a"[..]));
    spill(&mut db, "b");
    assert_eq!(db.orphans(), 0);
    let mut db = db.crash();
    assert_eq!(db.orphans(), 1);
    db.write(Write::PruneOrphans { after: None, rows_max: 9, dry_run: false });
    assert_eq!(db.orphans(), 0);
    // Start of operation forgets spilled data of the operation before.
    spill(&mut db, "c");
    db.write(Write::DropUnfinished);
    assert_eq!(db.orphans(), 0);
    db.check_all();
}

/// After a crash, verification finds voted and locked transactions, finishes some, drops the rest.
#[test]
fn verification_finishes_or_drops() {
    let mut db = Mirror::with_table(false);
    db.transaction(10, 11, vec![store(1, "a")]);
    db.write(vote(20, vec![store(1, "b")], Some(record(20, vec![oid(1)]))));
    db.write(vote(22, vec![store(2, "c")], Some(record(22, vec![oid(2)]))));
    db.write(vote(23, vec![store(4, "d"), undo(1, 11, Content::MustExist)], None));
    db.write(Write::Lock { ttid: ttid(20), tid: tid(23), approve_pack: false });
    // Not committed: lost.
    db.execute(Write::Lock { ttid: ttid(22), tid: tid(25), approve_pack: false });
    let mut db = db.crash();
    let unfinished = [(ttid(20), Some(tid(23))), (ttid(22), None), (ttid(23), None)];
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(unfinished.into()));
    assert_eq!(db.orphans(), 0, "data of voted transactions is held after a restart");

    db.write(Write::Validate { ttid: ttid(20), tid: tid(23) });
    assert_eq!(db.last(1).as_deref(), Some(&b"b"[..]));
    db.write(Write::DropUnfinished);
    assert_eq!(db.read(Read::Unfinished), Done::Unfinished(Unfinished::new()));
    assert_eq!(db.history(1), [23, 11]);
    assert_eq!(db.load(2, None, None), Loaded::DoesNotExist);
    assert_eq!(db.orphans(), 0);
    db.check_all();
}

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

/// Lists are cut where asked, and resume where they stopped.
#[test]
fn lists_resume() {
    let mut db = Mirror::with_table(false);
    for number in 0..20 {
        let objects = vec![store(number, "abc"), store(number + 20, "abc")];
        db.transaction(100 + number, 100 + number, objects);
    }
    db.transaction(130, 130, vec![delete(6)]);
    let mut oids = Vec::new();
    let mut next = Some(Oid::ZERO);
    while let Some(min_oid) = next {
        let (partition, partitions, tid) = (0, PARTITIONS, Tid::MAX);
        let read = Read::OidsFrom { partition, partitions, min_oid, tid, length: 4 };
        let Done::Oids(found) = db.read(read) else { panic!("oids") };
        oids.extend(found.oids.iter().map(|oid| oid.get()));
        next = found.next_oid;
    }
    let expected: Vec<_> = (0..40).filter(|number| number % 3 == 0 && *number != 6).collect();
    assert_eq!(oids, expected);

    let mut revisions = Vec::new();
    let (mut min_tid, mut min_oid) = (Tid::ZERO, Oid::ZERO);
    loop {
        let max_tid = tid(118);
        let read = Read::RevisionsFrom { partition: 0, min_tid, min_oid, max_tid, length: 4 };
        let Done::Revisions(mut found) = db.read(read) else { panic!("revisions") };
        if found.len() < 4 {
            revisions.append(&mut found);
            break;
        }
        (min_tid, min_oid) = found.pop().unwrap();
        revisions.append(&mut found);
    }
    assert!(revisions.is_sorted());
    assert_eq!(revisions.len(), 13);
    // A list of objects is cut by size, but one is always returned.
    for (bytes_max, count) in [(0, 1), (3, 1), (4, 2), (100, 13)] {
        let revisions = revisions.clone();
        let read = Read::FetchObjects { partition: 0, revisions, bytes_max };
        let Done::Objects(objects) = db.read(read) else { panic!("objects") };
        assert_eq!(objects.len(), count, "{bytes_max}");
        assert!(objects.iter().all(Option::is_some));
    }
    let gone = vec![(tid(999), oid(0))];
    let read = Read::FetchObjects { partition: 0, revisions: gone, bytes_max: 9 };
    assert_eq!(db.read(read), Done::Objects(vec![None]));
    let tids = |offset, length| Read::Tids { partitions: vec![0, 2], offset, length };
    let expected: Vec<_> = [119, 117, 116, 114].map(Tid::new).to_vec();
    assert_eq!(db.read(tids(0, 4)), Done::Tids(expected.clone()));
    assert_eq!(db.read(tids(1, 2)), Done::Tids(expected[1..3].to_vec()));
    assert_eq!(db.read(tids(u64::MAX, 2)), Done::Tids(Vec::new()));
    assert_eq!(db.read(tids(0, 0)), Done::Tids(Vec::new()));
    db.check_all();
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
