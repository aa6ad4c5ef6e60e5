// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions, loads, and lists.

use super::*;

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
