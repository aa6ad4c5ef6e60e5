// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests that are refused, big transactions, and anything at any time.

use super::*;

/// Undo: the revision must exist, if the cell is readable; the data is that of this revision.
#[test]
fn undo_of_a_packed_revision() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.committed.insert(oid(1), Tid::new(30));
    bench.undo(4, 1, 30, 200);
    assert!(bench.log[0].contains("UndoPackError"), "{:?}", bench.log);
    bench.log.clear();
    bench.undo(4, 1, 30, 10);
    assert_eq!(bench.tm.stored_tid(Ttid::new(4), oid(1)), Some(Tid::new(10)));
    // Another undo in the same transaction is based on the first one.
    bench.undo(4, 1, 30, 9);
    bench.undo(4, 1, 10, 9);
    let refused = bench.log.remove(1);
    assert!(refused.contains("is after"), "{refused}");
    bench.expect(&["4.1 ok", "4.1 ok"]);
}

/// What a client may not do.
#[test]
fn requests_that_are_refused() {
    let mut bench = Bench::new(CellMode::Readable);
    bench.committed.insert(oid(1), Tid::new(5));
    let store = |serial| RequestKind::Store {
        serial: Tid::new(serial),
        content: Content::Deleted,
        data_tid: None,
    };
    // A revision that does not exist yet: found out when the database has answered.
    bench.request(4, 1, store(6)).unwrap();
    assert!(bench.log.pop().unwrap().contains("is after"));
    assert!(bench.request(4, 1, store(6)).is_err(), "known now");
    // A ttid of somebody else, or that no master gives.
    assert!(bench.tm.register(client(9), Ttid::new(4)).is_err());
    assert!(bench.tm.register(client(9), Ttid::ZERO).is_err());
    assert!(bench.tm.register(client(9), Ttid::INVALID).is_err());
    assert!(bench.tm.vote(client(9), Ttid::new(4), true).is_err());
    assert!(bench.tm.vote(client(4), Ttid::new(5), true).is_err());
    // A vote while a store waits, a store after the vote, a second vote.
    bench.store(4, 1, 5);
    bench.store(8, 1, 5);
    assert!(bench.tm.vote(client(8), Ttid::new(8), true).is_err());
    bench.vote(4);
    assert!(bench.request(4, 2, store(0)).is_err());
    assert!(bench.tm.vote(client(4), Ttid::new(4), true).is_err());
    // A tid in the wrong partition, in the past, too big; twice; without vote.
    for tid in [9, 0, u64::MAX - 3] {
        assert!(bench.tm.lock(Ttid::new(4), Tid::new(tid)).is_err(), "{tid}");
    }
    assert!(bench.tm.lock(Ttid::new(8), Tid::new(12)).is_err());
    assert!(bench.tm.unlock(Ttid::new(4)).is_err());
    bench.lock(4, 12);
    assert!(bench.tm.lock(Ttid::new(4), Tid::new(16)).is_err());
    assert!(bench.tm.abort(Ttid::new(4)).is_none(), "locked ones are never aborted");
    assert!(bench.tm.of_client(client(4), true).is_empty());
    bench.unlock(4);
    assert!(bench.tm.unlock(Ttid::new(4)).is_err());
}

/// Data above the budget is written ahead; what changes meanwhile is released.
#[test]
fn spill() {
    let mut bench = Bench::new(CellMode::Readable);
    let big = |n: usize| {
        Content::Value(Value {
            compression: 0,
            checksum: ZERO_HASH,
            data: Bytes::from(vec![n as u8; 6 << 20]),
        })
    };
    let store = |n| RequestKind::Store { serial: Tid::ZERO, content: big(n), data_tid: None };
    let ttid = Ttid::new(4);
    for object in [1, 2] {
        bench.request(4, object, store(object as usize)).unwrap();
        assert_eq!(bench.tm.take_spill(ttid), None);
    }
    bench.request(4, 3, store(3)).unwrap();
    let spill = bench.tm.take_spill(ttid).unwrap();
    assert_eq!(spill.objects.len(), 3);
    assert_eq!(bench.tm.take_spill(ttid), None, "one at a time");
    // One is stored again, the vote waits for the spill.
    bench.store(4, 2, 0);
    assert_eq!(bench.tm.vote(client(4), ttid, true), Ok(VoteStep::Later));
    let oids: Vec<Oid> = spill.objects.iter().map(|object| object.oid).collect();
    let contents = (1..=3).map(|n| Content::Spilled(DataId(n))).collect();
    assert!(bench.tm.spilled(ttid, spill.id, &oids, contents));
    bench.log.clear();
    bench.settle();
    bench.expect(&["release 2"]);
    let contents: Vec<Content> = bench.vote(4).into_iter().map(|object| object.content).collect();
    assert_eq!(contents, [Content::Spilled(DataId(1)), value("4@2"), Content::Spilled(DataId(3))]);
    // Aborted before the data is written: all is released.
    for object in [5, 6, 7] {
        bench.request(8, object, store(1)).unwrap();
    }
    let spill = bench.tm.take_spill(Ttid::new(8)).unwrap();
    assert_eq!(bench.tm.abort(Ttid::new(8)).unwrap().spilled, []);
    bench.log.clear();
    let contents = (4..=6).map(|n| Content::Spilled(DataId(n))).collect();
    let oids: Vec<Oid> = spill.objects.iter().map(|object| object.oid).collect();
    assert!(!bench.tm.spilled(Ttid::new(8), spill.id, &oids, contents));
    bench.settle();
    bench.expect(&["release 4", "release 5", "release 6"]);
}

/// Random requests on few objects, with checks that are late: nothing panics, locks stay coherent,
/// and what is committed is always based on the last revision.
#[test]
fn random_transactions() {
    for seed in 0..300 {
        let mut prng = Prng::new(seed);
        let mode = if prng.one_in(3) { CellMode::Replicating } else { CellMode::Readable };
        let mut bench = Bench::new(mode);
        bench.hold_checks = true;
        let mut tid = 1000;
        for _ in 0..400 {
            let ttid = 1 + prng.below(8) as u64;
            let object = prng.below(5) as u64;
            let last = bench.committed.get(&oid(object)).map_or(0, |tid| tid.get());
            match prng.below(14) {
                0..6 => {
                    let kind = match prng.below(4) {
                        0 => RequestKind::Check { serial: Tid::new(last) },
                        _ => RequestKind::Store {
                            serial: Tid::new(if prng.one_in(5) { last / 2 } else { last }),
                            content: value("x"),
                            data_tid: None,
                        },
                    };
                    let _ = bench.request(ttid, object, kind); // refusals are fine
                }
                6..9 if !bench.checks.is_empty() => {
                    let index = prng.below(bench.checks.len());
                    bench.answer_check(index);
                }
                9 => bench.abort(ttid),
                10..12 => {
                    let Ok(step) = bench.tm.vote(client(ttid as u32), Ttid::new(ttid), true) else {
                        continue;
                    };
                    let VoteStep::Write(objects) = step else { panic!("{step:?}") };
                    bench.tm.voted(Ttid::new(ttid), Ok(()));
                    let txn = &bench.tm.transactions[&Ttid::new(ttid)];
                    for object in objects {
                        let item = &txn.items[&object.oid];
                        let last = bench.committed.get(&object.oid).copied().unwrap_or(Tid::ZERO);
                        assert!(item.lockless || item.serial == last, "seed {seed}");
                    }
                    tid += u64::from(PARTITIONS) + ttid % 4;
                    let congruent = tid / 4 * 4 + ttid % 4 + 4;
                    tid = congruent;
                    bench.lock(ttid, congruent);
                    bench.unlock(ttid);
                }
                12 => {
                    for line in std::mem::take(&mut bench.log) {
                        let Some(line) = line.strip_prefix("deadlock ") else { continue };
                        let (ttid, object) = line.split_once('.').unwrap();
                        bench.relock(ttid.parse().unwrap(), object.parse().unwrap());
                    }
                }
                13 => {
                    let partition = prng.below(4) as Partition;
                    match bench.tm.mode(partition) {
                        CellMode::Unassigned => bench.tm.replicating(&[partition]),
                        CellMode::Replicating => bench.tm.replicated(partition, Tid::new(tid)),
                        CellMode::Announced => bench.tm.readable(&[partition]),
                        CellMode::Readable if prng.one_in(10) => {
                            bench.tm.discarded(&[partition]);
                        }
                        CellMode::Replicated(_) | CellMode::Readable => {}
                    }
                }
                _ => {}
            }
            bench.settle();
        }
        // In the end, everything can be finished.
        bench.hold_checks = false;
        bench.settle();
        for ttid in 1..9 {
            bench.abort(ttid);
        }
        assert!(bench.tm.is_empty() && bench.tm.write_locks.is_empty(), "seed {seed}");
        assert!(bench.tm.waiting.is_empty() && bench.tm.checking.is_empty(), "seed {seed}");
        assert_eq!((bench.tm.waiting_bytes, bench.tm.held_bytes), (0, 0), "seed {seed}");
        let modes = &bench.tm.modes;
        assert!(!modes.iter().any(|mode| matches!(mode, CellMode::Replicated(_))), "seed {seed}");
    }
}
