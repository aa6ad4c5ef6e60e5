// SPDX-License-Identifier: GPL-2.0-or-later
//! Random sequences of operations: memory and SQLite give the same results, all along and at the
//! end, with crashes in between, and with and without deduplication.

use std::collections::BTreeMap;

use neo_common::protocol::enums::CellState;
use neo_common::types::{Oid, Tid, Ttid};
use neo_storage::database::*;
use proptest::prelude::*;

use crate::harness::*;

/// Objects are few, so that operations meet.
const OIDS: u64 = 9;

/// One step of a scenario. Numbers are turned into something valid when it is executed.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction is voted: objects, kind of content, data.
    Vote {
        objects: Vec<(u64, Kind, u8)>,
        metadata: bool,
        pack: bool,
        spill: bool,
    },
    /// A voted transaction is locked.
    Lock(usize),
    /// A voted or locked transaction is unlocked.
    Unlock(usize),
    /// A transaction that is not locked is aborted.
    Abort(usize),
    /// A transaction is validated, as by verification.
    Validate(usize),
    Commit,
    Crash {
        drop_unfinished: bool,
    },
    Pack {
        back: u64,
        partition: u32,
        oids_max: u32,
        partial: bool,
    },
    Sign {
        back: u64,
        approve: bool,
    },
    Truncate {
        back: u64,
        rows_max: u32,
    },
    DropPartition {
        partition: u32,
        rows_max: u32,
    },
    Cell {
        partition: u32,
        node: i32,
        state: CellState,
    },
    AddTransaction {
        back: u64,
    },
    AddObject {
        back: u64,
        oid: u64,
        kind: Kind,
        data: u8,
    },
    EndChunk {
        partition: u32,
        back: u64,
        oid: u64,
    },
    Orphans {
        dry_run: bool,
    },
    Check {
        oid: u64,
        back: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Value,
    Deleted,
    /// Back to a revision that may exist or not; the data is there or not.
    Undo {
        back: u64,
        fallback: bool,
    },
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Value),
        1 => Just(Kind::Deleted),
        2 => (0..12_u64, any::<bool>()).prop_map(|(back, fallback)| Kind::Undo { back, fallback }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let objects = prop::collection::btree_map(0..OIDS, (kind(), 0..4_u8), 0..4);
    let objects = objects.prop_map(|objects: BTreeMap<_, _>| {
        objects.into_iter().map(|(oid, (kind, data))| (oid, kind, data)).collect()
    });
    let vote = (objects, any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.2))
        .prop_map(|(objects, metadata, pack, spill)| Step::Vote { objects, metadata, pack, spill });
    let partition = || 0..PARTITIONS;
    let state = prop_oneof![
        Just(CellState::OutOfDate),
        Just(CellState::UpToDate),
        Just(CellState::Feeding),
        Just(CellState::Corrupted),
        Just(CellState::Discarded),
    ];
    prop_oneof![
        8 => vote,
        6 => (0..4_usize).prop_map(Step::Lock),
        8 => (0..4_usize).prop_map(Step::Unlock),
        2 => (0..4_usize).prop_map(Step::Abort),
        1 => (0..4_usize).prop_map(Step::Validate),
        4 => Just(Step::Commit),
        1 => any::<bool>().prop_map(|drop_unfinished| Step::Crash { drop_unfinished }),
        2 => (0..20_u64, partition(), 1..4_u32, any::<bool>()).prop_map(
            |(back, partition, oids_max, partial)| Step::Pack { back, partition, oids_max, partial }),
        1 => (0..20_u64, any::<bool>()).prop_map(|(back, approve)| Step::Sign { back, approve }),
        1 => (0..10_u64, 1..6_u32).prop_map(|(back, rows_max)| Step::Truncate { back, rows_max }),
        1 => (partition(), 1..6_u32).prop_map(
            |(partition, rows_max)| Step::DropPartition { partition, rows_max }),
        1 => (partition(), 1..3_i32, state).prop_map(
            |(partition, node, state)| Step::Cell { partition, node, state }),
        2 => (0..20_u64).prop_map(|back| Step::AddTransaction { back }),
        3 => (0..20_u64, 0..OIDS, kind(), 0..4_u8).prop_map(
            |(back, oid, kind, data)| Step::AddObject { back, oid, kind, data }),
        2 => (partition(), 0..20_u64, 0..OIDS).prop_map(
            |(partition, back, oid)| Step::EndChunk { partition, back, oid }),
        1 => any::<bool>().prop_map(|dry_run| Step::Orphans { dry_run }),
        3 => (0..OIDS, 0..20_u64).prop_map(|(oid, back)| Step::Check { oid, back }),
    ]
}

/// A voted transaction.
struct Voted {
    ttid: Ttid,
    tid: Option<Tid>,
    metadata: bool,
}

struct Scenario {
    db: Mirror,
    /// Last id that was given; ttids and tids are drawn from it.
    clock: u64,
    voted: Vec<Voted>,
}

impl Scenario {
    fn past(&self, back: u64) -> Tid {
        Tid::new(self.clock.saturating_sub(back))
    }

    /// A tid that is congruent to a ttid.
    fn tid_for(&mut self, ttid: Ttid) -> Tid {
        let partitions = u64::from(PARTITIONS);
        self.clock += 1;
        while self.clock % partitions != ttid.get() % partitions {
            self.clock += 1;
        }
        Tid::new(self.clock)
    }

    fn object(&self, number: u64, kind: Kind, data: u8) -> ObjectRecord {
        let data = "x".repeat(usize::from(data) * 700);
        match kind {
            Kind::Value => store(number, &data),
            Kind::Deleted => delete(number),
            Kind::Undo { back, fallback: true } => {
                undo(number, self.past(back).get(), Content::Value(value(&data)))
            }
            Kind::Undo { back, fallback: false } => {
                undo(number, self.past(back).get(), Content::MustExist)
            }
        }
    }

    fn run(mut self, step: Step) -> Self {
        match step {
            Step::Vote { objects, metadata, pack, spill } => {
                self.clock += 1;
                let objects = objects.into_iter();
                let objects =
                    objects.map(|(oid, kind, data)| self.object(oid, kind, data)).collect();
                self.vote(objects, metadata, pack, spill);
            }
            Step::Lock(index) => {
                if let Some(index) = self.pick(index, |voted| voted.metadata && voted.tid.is_none())
                {
                    let ttid = self.voted[index].ttid;
                    let tid = self.tid_for(ttid);
                    self.voted[index].tid = Some(tid);
                    self.db.execute(Write::Lock {
                        ttid,
                        tid,
                        approve_pack: tid.get().is_multiple_of(2),
                    });
                }
            }
            Step::Unlock(index) => {
                if let Some(index) =
                    self.pick(index, |voted| !voted.metadata || voted.tid.is_some())
                {
                    let Voted { ttid, tid, metadata } = self.voted.remove(index);
                    let tid = tid.unwrap_or_else(|| self.tid_for(ttid));
                    self.db.execute(Write::Unlock { ttid, tid, metadata });
                }
            }
            Step::Abort(index) => {
                if let Some(index) = self.pick(index, |voted| voted.tid.is_none()) {
                    let ttid = self.voted.remove(index).ttid;
                    self.db.execute(Write::Abort { ttid, spilled: Vec::new() });
                }
            }
            Step::Validate(index) => {
                if let Some(index) = self.pick(index, |_| true) {
                    let Voted { ttid, tid, .. } = self.voted.remove(index);
                    let tid = tid.unwrap_or_else(|| self.tid_for(ttid));
                    self.db.execute(Write::Validate { ttid, tid });
                }
            }
            Step::Commit => self.db.commit(),
            Step::Crash { drop_unfinished } => {
                self.db = self.db.crash();
                self.recover();
                if drop_unfinished {
                    self.db.write(Write::DropUnfinished);
                    self.voted.clear();
                }
            }
            Step::Truncate { back, rows_max } => {
                self.db.execute(Write::SetTruncateTid(self.past(back)));
                self.db.execute(Write::Truncate { rows_max });
            }
            step => self.run_background(step),
        }
        self
    }

    fn run_background(&mut self, step: Step) {
        match step {
            Step::Pack { back, partition, oids_max, partial } => {
                let own = (0..OIDS).map(oid).filter(|oid| oid.partition(PARTITIONS) == partition);
                let scope = match partial {
                    true => PackScope::Oids(own.take(oids_max as usize).collect()),
                    false => PackScope::From { min_oid: Oid::ZERO, oids_max },
                };
                let pack_tid = self.past(back);
                if !partial {
                    let (min_tid, tids_max) = (Tid::ZERO, oids_max);
                    self.db.execute(Write::MarkPacked { partition, min_tid, pack_tid, tids_max });
                }
                self.db.execute(Write::Pack { partition, pack_tid, scope });
                self.db.execute(Write::SetPacked { partition, pack_id: self.past(back) });
            }
            Step::Sign { back, approve } => {
                let (mut approved, mut rejected) = (vec![self.past(back)], Vec::new());
                if !approve {
                    std::mem::swap(&mut approved, &mut rejected);
                }
                self.db.execute(Write::SignPacks { approved, rejected });
            }
            Step::DropPartition { partition, rows_max } => {
                self.db.execute(Write::DropPartition { partition, rows_max });
            }
            Step::Cell { partition, node, state } => {
                self.db.execute(change(ChangeScope::Listed, [(partition, node, state)]));
            }
            // Replication never fetches a transaction that is still to be unlocked here.
            Step::AddTransaction { back } | Step::AddObject { back, .. }
                if self.voted.iter().any(|voted| voted.tid == Some(self.past(back))) => {}
            Step::AddTransaction { back } => {
                let tid = self.past(back);
                let record = record(tid.get(), vec![oid(back)]);
                let info = TransactionInfo { tid, record, pack: None };
                let transactions = vec![ReplicatedTransaction { info }];
                self.db.execute(Write::AddTransactions { partitions: PARTITIONS, transactions });
            }
            Step::AddObject { back, oid, kind, data } => {
                let object = self.object(oid, kind, data);
                // A source always sends the data.
                if !matches!(object.content, Content::MustExist) {
                    let objects = vec![ReplicatedObject { tid: self.past(back), object }];
                    self.db.execute(Write::AddObjects { partitions: PARTITIONS, objects });
                }
            }
            Step::EndChunk { partition, back, oid } => {
                let tid = self.past(back);
                let end = ChunkEnd {
                    partition,
                    delete_transactions: vec![tid],
                    delete_objects: vec![(crate::harness::oid(oid), tid)],
                    source_pack_id: Some(tid),
                    cell_tid: Some(tid),
                    backup_tid: None,
                    approved: vec![self.past(back + 1)],
                    rejected: Vec::new(),
                };
                self.db.execute(Write::EndChunk { partitions: PARTITIONS, end: Box::new(end) });
            }
            Step::Orphans { dry_run } => {
                self.db.execute(Write::PruneOrphans { after: None, rows_max: 3, dry_run });
            }
            Step::Check { oid, back } => self.check(crate::harness::oid(oid), self.past(back)),
            step => unreachable!("{step:?}"),
        }
    }

    fn vote(&mut self, mut objects: Vec<ObjectRecord>, metadata: bool, pack: bool, spill: bool) {
        let ttid = Ttid::new(self.clock);
        let mut spilled = Vec::new();
        if spill {
            let partitions = PARTITIONS;
            let job = Write::Spill { partitions, objects: objects.clone() };
            if let Some(Done::Spilled(Ok(contents))) = self.db.execute(job) {
                for (object, content) in objects.iter_mut().zip(contents) {
                    if let Content::Spilled(data_id) = content {
                        spilled.push(data_id);
                    }
                    object.content = content;
                }
            }
        }
        let oids = objects.iter().map(|object| object.oid).collect();
        let pack = (metadata && pack).then(|| PackOrder {
            approved: None,
            partial: self.clock.is_multiple_of(2),
            oids: self.clock.is_multiple_of(2).then(|| vec![oid(1)]),
            pack_tid: self.past(3),
        });
        let vote = Write::Vote(Box::new(Vote {
            ttid,
            partitions: PARTITIONS,
            objects,
            transaction: metadata.then(|| record(ttid.get(), oids)),
            pack,
        }));
        match self.db.write(vote) {
            Done::Voted(Ok(())) => self.voted.push(Voted { ttid, tid: None, metadata }),
            Done::Voted(Err(_)) => {
                self.db.execute(Write::Abort { ttid, spilled });
            }
            done => panic!("{done:?}"),
        }
    }

    /// What is known about transactions after a restart is what the database says.
    fn recover(&mut self) {
        let Done::Unfinished(unfinished) = self.db.read(Read::Unfinished) else {
            panic!("unfinished")
        };
        let metadata = |ttid| {
            let voted = self.voted.iter().find(|voted| voted.ttid == ttid);
            voted.is_none_or(|voted| voted.metadata)
        };
        let voted = unfinished.into_iter();
        let voted = voted.map(|(ttid, tid)| Voted { ttid, tid, metadata: metadata(ttid) });
        self.voted = voted.collect();
    }

    fn pick(&self, index: usize, valid: impl Fn(&Voted) -> bool) -> Option<usize> {
        let valid: Vec<_> =
            self.voted.iter().enumerate().filter(|(_, voted)| valid(voted)).collect();
        valid.get(index % valid.len().max(1)).map(|(index, _)| *index)
    }

    /// Questions about an object and a time.
    fn check(&mut self, oid: Oid, tid: Tid) {
        let partition = oid.partition(PARTITIONS);
        let own = Some(tid).filter(|tid| tid.get() % 4 == 0);
        for (at, before) in [(None, None), (Some(tid), None), (None, Some(tid))] {
            self.db.read(Read::Load { partition, oid, at, before });
            self.db.latest(Read::Load { partition, oid, at, before });
        }
        let checks = vec![StoreCheck { oid, data_tid: Some(tid) }];
        self.db.read(Read::CheckStores { partitions: PARTITIONS, checks });
        for ltid in [None, Some(self.past(5))] {
            let objects = (0..OIDS).map(|number| (crate::harness::oid(number), own)).collect();
            let search = UndoSearch { partitions: PARTITIONS, ltid, undone_tid: tid, objects };
            self.db.read(Read::FindUndo(search));
        }
        self.db.read(Read::History { partition, oid, offset: 1, length: 2 });
        self.db.read(Read::FinalTid { partition, ttid: tid.as_ttid() });
        let (min_tid, max_tid, length) = (self.past(10), tid, 5);
        self.db.read(Read::TidsFrom { partition, min_tid, max_tid, length });
        self.db.read(Read::CheckTidRange { partition, min_tid, max_tid, length });
        self.db.read(Read::RevisionsFrom { partition, min_tid, min_oid: oid, max_tid, length });
        self.db.read(Read::CheckSerialRange { partition, min_tid, min_oid: oid, max_tid, length });
        let (partitions, min_oid) = (PARTITIONS, oid);
        self.db.read(Read::OidsFrom { partition, partitions, min_oid, tid, length: 2 });
    }
}

fn run(steps: Vec<Step>, dedup: bool) {
    let mut scenario = Scenario { db: Mirror::with_table(dedup), clock: 20, voted: Vec::new() };
    for step in steps {
        scenario = scenario.run(step);
    }
    scenario.db.commit();
    scenario.db.check_all();
    // Whatever happened, all data is accounted for once nothing is in progress.
    scenario.db.write(Write::DropUnfinished);
    scenario.db.check_all();
    let all = Write::PruneOrphans { after: None, rows_max: 1000, dry_run: false };
    scenario.db.write(all);
    assert_eq!(scenario.db.orphans(), 0);
    scenario.db.check_all();
}

/// `PROPTEST_CASES` overrides the number of cases.
fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: 96, ..default },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn backends_agree(steps in prop::collection::vec(step(), 1..80), dedup in any::<bool>()) {
        run(steps, dedup);
    }
}
