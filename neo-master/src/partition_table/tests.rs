// SPDX-License-Identifier: GPL-2.0-or-later
//! Exact results of the operations on the partition table. Most layouts are facts that upstream's
//! own tests state (master/testMasterPT.py): the same commands must give the same tables.

use bytes::Bytes;
use neo_common::prng::Prng;
use neo_common::types::NodeType;

use super::*;

use CellState::{Discarded, Feeding, OutOfDate, UpToDate};

fn nid(index: u32) -> NodeId {
    NodeId::of(NodeType::Storage, index).unwrap()
}
fn nids(indexes: impl IntoIterator<Item = u32>) -> Vec<NodeId> {
    indexes.into_iter().map(nid).collect()
}
fn set(indexes: impl IntoIterator<Item = u32>) -> BTreeSet<NodeId> {
    indexes.into_iter().map(nid).collect()
}
fn empty(partitions: u32, replicas: u32) -> PartitionTable {
    PartitionTable::new(partitions, replicas).unwrap()
}
/// A table of which only some cells matter.
fn table(partitions: u32, replicas: u32, cells: &[(Partition, u32, CellState)]) -> PartitionTable {
    let mut pt = empty(partitions, replicas);
    pt.table.set_ptid(Some(1));
    for &(partition, index, state) in cells {
        pt.set_cell(partition, nid(index), state).unwrap();
    }
    pt
}
/// One text per row, one letter per member, `.` without cell.
fn format(pt: &PartitionTable) -> Vec<String> {
    let letter = |partition, nid| match pt.table.cell_state(partition, nid) {
        None => '.',
        Some(OutOfDate) => 'O',
        Some(UpToDate) => 'U',
        Some(Feeding) => 'F',
        Some(_) => '?',
    };
    let row = |partition| pt.members.iter().map(|nid| letter(partition, *nid)).collect();
    (0..pt.partitions()).map(row).collect()
}
#[track_caller]
fn check(pt: &PartitionTable, rows: &str) {
    assert_eq!(format(pt).join(" "), rows.split_whitespace().collect::<Vec<_>>().join(" "));
}
/// Tweaks, and checks that a second time does nothing.
#[track_caller]
fn tweak_with(pt: &mut PartitionTable, ignored: &BTreeSet<NodeId>, paths: &Paths) -> Changes {
    let changes = pt.tweak(ignored, &paths.topology()).unwrap();
    assert_eq!(pt.tweak(ignored, &paths.topology()), Ok(vec![]));
    changes
}
#[track_caller]
fn tweak(pt: &mut PartitionTable) -> Changes {
    tweak_with(pt, &set([]), &Paths::default())
}
/// All replications succeed, in order of partition.
fn replicate(pt: &mut PartitionTable) {
    let all: Vec<Partition> = (0..pt.partitions()).collect();
    for nid in pt.members.clone() {
        pt.set_updatable(nid, &all);
    }
    for partition in all {
        let row = pt.cells(partition).to_vec();
        for cell in row.iter().filter(|cell| cell.state == OutOfDate) {
            pt.set_up_to_date(cell.nid, partition).unwrap();
        }
    }
}
fn sorted(changes: &Changes) -> Vec<(Partition, u32, CellState)> {
    let mut changes: Vec<_> = changes.iter().map(|(p, nid, s)| (*p, nid.index(), *s)).collect();
    changes.sort();
    changes
}
fn count(changes: &Changes, state: CellState) -> usize {
    changes.iter().filter(|change| change.2 == state).count()
}

/// Topology paths of nodes 1, 2...
#[derive(Default)]
struct Paths(Vec<Vec<Bytes>>);

impl Paths {
    /// A character is a level.
    fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let level = |level: char| Bytes::from(level.to_string());
        Self(paths.into_iter().map(|path| path.chars().map(level).collect()).collect())
    }
    fn topology(&self) -> Topology<'_> {
        (1..).zip(&self.0).map(|(index, path)| (nid(index), path.as_slice())).collect()
    }
}

#[test]
fn a_new_table_is_empty() {
    let mut pt = empty(5, 3);
    assert!(!pt.is_filled() && !pt.operational(|_| true));
    assert_eq!((pt.partitions(), pt.table().replicas()), (5, 3));
    assert_eq!(pt.table().to_wire(), vec![vec![]; 5]);
    assert_eq!(pt.make(&[], &Topology::new()), Err(PartitionTableError::NoNode));
    assert!(!pt.is_filled() && !pt.operational(|_| true));
    assert_eq!(pt.table().ptid(), None);
}

#[test]
fn make_spreads_partitions() {
    for (partitions, replicas, expected) in [
        (3, 0, "U.. .U. ..U"),
        (5, 1, "UU.. ..UU UU.. ..UU UU.."),
        (9, 2, "UUU. UU.U U.UU .UUU UUU. UU.U U.UU .UUU UUU."),
    ] {
        let mut pt = empty(partitions, replicas);
        pt.make(&nids(1..=4), &Topology::new()).unwrap();
        check(&pt, expected);
        assert!(pt.is_filled() && pt.operational(|_| true) && !pt.operational(|_| false));
        assert_eq!(pt.table().ptid(), Some(1));

        let mut pt = empty(partitions, replicas);
        pt.make(&nids([1]), &Topology::new()).unwrap();
        check(&pt, &"U ".repeat(partitions as usize));
    }
}

#[test]
fn outdate_keeps_the_cells_that_allow_a_restart() {
    let cells = [(0, 1, OutOfDate), (1, 2, UpToDate), (2, 3, UpToDate), (3, 4, UpToDate)];
    let mut pt = table(4, 3, &cells);
    let is_running = |n| n == nid(1) || n == nid(4);
    let changes = pt.outdate(None, is_running);
    assert_eq!(sorted(&changes), [(1, 2, OutOfDate), (2, 3, OutOfDate)]);
    check(&pt, "O... .O.. ..O. ...U");

    // S3 is lost. It was the last one to serve partition 1, not partition 0; FEEDING cells leave.
    let cells = [(0, 2, UpToDate), (0, 3, UpToDate), (1, 3, UpToDate), (1, 2, OutOfDate)];
    let mut pt = table(3, 1, &[&cells[..], &[(2, 3, Feeding), (2, 2, UpToDate)]].concat());
    let changes = pt.outdate(Some(nid(3)), |n| n == nid(2));
    assert_eq!(sorted(&changes), [(0, 3, OutOfDate), (2, 3, Discarded)]);
    check(&pt, "UO OU U.");
    // Nothing is told twice.
    assert_eq!(pt.outdate(Some(nid(3)), |n| n == nid(2)), []);
    // Another node is lost: the cell of S3 in partition 1 must not be chosen at restart any more
    // than that of the other.
    assert_eq!(sorted(&pt.outdate(Some(nid(2)), |_| false)), [(1, 3, OutOfDate)]);
}

#[test]
fn drop_refuses_to_lose_data() {
    let cells = [
        (0, 1, OutOfDate),
        (1, 2, Feeding),
        (1, 3, OutOfDate),
        (2, 1, OutOfDate),
        (2, 2, Feeding),
        (2, 3, UpToDate),
    ];
    let mut pt = table(3, 0, &cells);
    let before = pt.clone();
    assert_eq!(
        sorted(&pt.drop_nodes(&set([1]), Drop::Simulate).unwrap()),
        [(0, 1, Discarded), (2, 1, Discarded), (2, 2, UpToDate)]
    );
    assert_eq!(
        sorted(&pt.drop_nodes(&set([3]), Drop::Simulate).unwrap()),
        [(1, 2, UpToDate), (1, 3, Discarded), (2, 2, UpToDate), (2, 3, Discarded)]
    );
    let error = pt.drop_nodes(&set([2]), Drop::Apply).unwrap_err();
    assert_eq!(error, PartitionTableError::OnlyReadable(1));
    assert_eq!(
        error.to_string(),
        "Refuse to drop nodes that contain the only readable copies of partition 1"
    );
    assert_eq!(pt, before);

    pt.set_cell(1, nid(3), UpToDate).unwrap();
    assert_eq!(
        sorted(&pt.drop_nodes(&set([2]), Drop::Apply).unwrap()),
        [(1, 2, Discarded), (2, 2, Discarded)]
    );
    check(&pt, "O. .U OU");
    pt.set_cell(0, nid(1), UpToDate).unwrap();
    assert_eq!(sorted(&tweak(&mut pt)), [(2, 3, Feeding)]);
}

#[test]
fn cells_become_up_to_date_only_by_a_replication_that_counts() {
    let mut pt = table(2, 1, &[(0, 1, Feeding), (0, 2, OutOfDate), (0, 3, UpToDate)]);
    assert_eq!(pt.set_up_to_date(nid(2), 1), Err(PartitionTableError::NotAssigned));
    assert_eq!(pt.set_up_to_date(nid(2), 7), Err(PartitionTableError::NotAssigned));
    assert_eq!(pt.set_up_to_date(nid(2), 0), Ok(vec![]));
    pt.set_updatable(nid(2), &[0, 1, 7]);
    // Outdated again meanwhile: an older replication does not count any more.
    pt.set_cell(0, nid(2), OutOfDate).unwrap();
    assert_eq!(pt.set_up_to_date(nid(2), 0), Ok(vec![]));
    pt.set_updatable(nid(2), &[0]);
    let changes = pt.set_up_to_date(nid(2), 0).unwrap();
    assert_eq!(changes, [(0, nid(2), UpToDate), (0, nid(1), Discarded)]);
    assert_eq!(pt.set_up_to_date(nid(2), 0), Ok(vec![]));
}

#[test]
fn feeding_cells_leave_one_by_one_and_those_that_only_feed_first() {
    let cells = [(0, 1, Feeding), (0, 2, Feeding), (0, 3, OutOfDate), (0, 4, OutOfDate)];
    let mut pt = table(2, 1, &[&cells[..], &[(1, 1, UpToDate)]].concat());
    pt.set_updatable(nid(3), &[0]);
    pt.set_updatable(nid(4), &[0]);
    let changes = pt.set_up_to_date(nid(3), 0).unwrap();
    assert_eq!(changes[1..], [(0, nid(2), Discarded)], "2 readable cells remain");
    let changes = pt.set_up_to_date(nid(4), 0).unwrap();
    assert_eq!(changes[1..], [(0, nid(1), Discarded)]);

    // As many as before remain, if they were not enough.
    let mut pt = table(2, 2, &[&cells[..], &[(1, 1, UpToDate)]].concat());
    pt.set_updatable(nid(3), &[0]);
    pt.set_updatable(nid(4), &[0]);
    assert_eq!(pt.set_up_to_date(nid(3), 0).unwrap().len(), 1);
    let changes = pt.set_up_to_date(nid(4), 0).unwrap();
    assert_eq!(changes[1..], [(0, nid(1), Discarded), (0, nid(2), Discarded)]);

    // No replica.
    let cells = [(0, 1, Feeding), (0, 2, Feeding), (0, 3, OutOfDate), (0, 4, OutOfDate)];
    let mut pt = table(1, 0, &cells);
    pt.set_updatable(nid(3), &[0]);
    let changes = pt.set_up_to_date(nid(3), 0).unwrap();
    assert_eq!(changes[1..], [(0, nid(1), Discarded), (0, nid(2), Discarded)]);
}

#[test]
fn tweak_from_a_messy_table() {
    let cells = [
        (0, 1, Discarded),
        (0, 2, UpToDate),
        (1, 1, Feeding),
        (1, 2, Feeding),
        (1, 3, OutOfDate),
        (2, 1, Feeding),
        (2, 2, UpToDate),
        (2, 3, UpToDate),
        (3, 1, UpToDate),
        (3, 2, UpToDate),
        (3, 3, UpToDate),
        (3, 4, UpToDate),
        (4, 1, UpToDate),
        (4, 5, UpToDate),
    ];
    let mut pt = table(5, 2, &cells);
    check(&pt, ".U... FFO.. FUU.. UUUU. U...U");
    let changes = tweak(&mut pt);
    check(&pt, ".UO.O UU.O. UFU.O .UUU. U..OU");
    let counts = [Discarded, Feeding, OutOfDate, UpToDate].map(|state| count(&changes, state));
    assert_eq!(counts, [2, 1, 5, 3]);
    replicate(&mut pt);
    check(&pt, ".UU.U UU.U. U.U.U .UUU. U..UU");
    assert!(pt.drop_nodes(&set(2..=4), Drop::Apply).is_err());
    assert_eq!(pt.drop_nodes(&set(2..=3), Drop::Simulate).unwrap().len(), 6);
    assert_eq!(pt.drop_nodes(&set([2]), Drop::Apply).unwrap().len(), 3);
    assert_eq!(pt.add_nodes(nids([2])), nids([2]));
    check(&pt, "..U.U U..U. U.U.U ..UU. U..UU");
    assert_eq!(tweak(&mut pt).len(), 3);
    check(&pt, ".OU.U UO.U. U.U.U .OUU. U..UU");
}

#[test]
fn tweak_after_each_new_node_or_after_all() {
    let twelve_0 = "U... .U.. ..U. ...U U... .U.. ..U. ...U U... .U.. ..U. ...U";
    let twelve_1 = "UU... ..UU. U...U .UU.. ...UU UU... ..UU. U...U .UU.. ...UU UU... ..UU.";
    let thirteen_2 = "U.UU. .U.UU UUU.. ..UUU UU..U U.UU. .U.UU UUU.. ..UUU UU..U \
                      U.UU. .U.UU UUU..";
    let thirteen_2_at_once = "UUU.. U..UU .UUU. UU..U ..UUU UUU.. U..UU .UUU. UU..U ..UUU \
                              UUU.. U..UU .UUU.";
    for (partitions, replicas, one_by_one, at_once) in [
        (12, 0, twelve_0, twelve_0),
        (12, 1, twelve_1, twelve_1),
        (13, 2, thirteen_2, thirteen_2_at_once),
    ] {
        let first = replicas + 1;
        let mut pt = empty(partitions, replicas);
        pt.make(&nids(1..=first), &Topology::new()).unwrap();
        let made = pt.clone();
        for index in first + 1..=(first + 3).min(5) {
            assert_eq!(pt.add_nodes(nids([index])), nids([index]));
            tweak(&mut pt);
            replicate(&mut pt);
        }
        check(&pt, one_by_one);

        let mut pt = made;
        for index in first + 1..=(first + 3).min(5) {
            pt.add_nodes(nids([index]));
            tweak(&mut pt);
        }
        replicate(&mut pt);
        check(&pt, at_once);
    }
}

#[test]
fn tweak_does_not_touch_ignored_nodes() {
    let mut pt = empty(7, 0);
    pt.make(&nids([1]), &Topology::new()).unwrap();
    pt.add_nodes(nids(2..=3));
    check(&pt, "U.. U.. U.. U.. U.. U.. U..");
    tweak_with(&mut pt, &set([1]), &Paths::default());
    replicate(&mut pt);
    check(&pt, "UU. U.U UU. U.U UU. U.U UU.");
    let error = pt.tweak(&set(1..=3), &Topology::new()).unwrap_err();
    assert_eq!(error.to_string(), "Can't remove all nodes.");
}

/// Any table can be balanced, with and without topology, and then it is stable.
#[test]
fn tweak_of_random_big_tables() {
    for seed in 0..8 {
        let mut prng = Prng::new(seed);
        let paths = Paths::new(["0", "1", "2", "3", "4", "0", "1", "2", "3", "4", "0"]);
        for paths in [Paths::default(), paths] {
            let mut pt = table(1000, 2, &[]);
            for partition in 0..1000 {
                let mut nodes: Vec<u32> = (1..=11).collect();
                prng.shuffle(&mut nodes);
                let len = 1 + prng.below(10);
                let mut state = UpToDate;
                for index in &nodes[..len] {
                    pt.set_cell(partition, nid(*index), state).unwrap();
                    if prng.below(len) == 0 {
                        state = OutOfDate;
                    }
                }
            }
            tweak_with(&mut pt, &set([]), &paths);
            assert!(pt.operational(|_| true));
            replicate(&mut pt);
            let assigned = (1..=11).map(|index| pt.table.assigned_count(nid(index)));
            assert!(assigned.clone().max().unwrap() - assigned.min().unwrap() <= 1);
            for partition in 0..1000 {
                assert_eq!(pt.cells(partition).len(), 3);
            }
        }
    }
}

#[test]
fn tweak_spreads_cells_over_the_topology() {
    let mut pt = empty(48, 2);
    pt.make(&nids(1..=16), &Topology::new()).unwrap();
    let texts: Vec<String> = (0..16).map(|index| format!("{:03b}", index / 2)).collect();
    let paths = Paths::new(texts.iter().map(String::as_str));
    let changes = tweak_with(&mut pt, &set([]), &paths);
    assert_eq!((count(&changes, OutOfDate), count(&changes, Feeding)), (96, 96));
    assert_eq!(changes.len(), 192);
    replicate(&mut pt);

    struct Case {
        /// All nodes have the same number of cells (then the table is repeated).
        even: bool,
        partitions: u32,
        replicas: u32,
        paths: &'static [&'static str],
        tweaked: &'static str,
        made: &'static str,
    }
    const SEVEN: &[&str] = &["0", "0", "0", "1", "1", "2", "2"];
    for case in [
        Case {
            even: true,
            partitions: 2,
            replicas: 2,
            paths: &["00", "01", "02", "10", "11", "12"],
            tweaked: "UU...U ..UUU.",
            made: "UU.U.. ..U.UU",
        },
        Case {
            even: true,
            partitions: 7,
            replicas: 1,
            paths: SEVEN,
            tweaked: "U.....U .U.U... ..U.U.. U....U. .U....U ..UU... ....UU.",
            made: "U..U... .U...U. ..U.U.. U.....U .U.U... ..U..U. ....U.U",
        },
        Case {
            even: true,
            partitions: 4,
            replicas: 1,
            paths: &["0", "0", "0", "1", "1", "1", "2", "2"],
            tweaked: "U......U .U.U.... ..U.U... .....UU.",
            made: "U..U.... .U..U... ..U...U. .....U.U",
        },
        Case {
            even: true,
            partitions: 9,
            replicas: 1,
            paths: &["0", "0", "0", "1", "1", "1", "2", "2", "2"],
            tweaked: "U.......U .U.U..... ..U.U.... .....UU.. U......U. .U......U \
                      ..UU..... ....U.U.. .....U.U.",
            made: "U..U..... .U....U.. ..U.U.... .....U.U. U.......U .U.U..... \
                   ..U...U.. ....U..U. .....U..U",
        },
        Case {
            even: false,
            partitions: 8,
            replicas: 1,
            paths: SEVEN,
            tweaked: "U.....U .U.U... ..U.U.. U....U. .U....U ..UU... ....UU. U.....U",
            made: "U..U... .U...U. ..U.U.. U.....U .U.U... ..U..U. ....U.U U..U...",
        },
        // Here no topology is possible: it is ignored, and the first table stays.
        Case {
            even: true,
            partitions: 6,
            replicas: 1,
            paths: &["00", "01", "1"],
            tweaked: "UU. U.U .UU UU. U.U .UU",
            made: "UU. U.U .UU UU. U.U .UU",
        },
        Case {
            even: true,
            partitions: 5,
            replicas: 2,
            paths: &["0", "1", "2", "3", "3"],
            tweaked: "UUU.. U..UU .UUU. UU..U ..UUU",
            made: "UUU.. U..UU .UUU. UU..U ..UUU",
        },
    ] {
        let repeat = if case.even { 7 } else { 1 };
        let nodes = nids(1..=case.paths.len() as u32);
        let paths = Paths::new(case.paths.iter().copied());
        let mut pt = empty(case.partitions * repeat, case.replicas);
        pt.make(&nodes, &Topology::new()).unwrap();
        let changes = tweak_with(&mut pt, &set([]), &paths);
        assert_eq!(changes.is_empty(), case.tweaked == case.made);
        replicate(&mut pt);
        check(&pt, &format!("{} ", case.tweaked).repeat(repeat as usize));

        let mut pt = empty(case.partitions * repeat, case.replicas);
        pt.make(&nodes, &paths.topology()).unwrap();
        check(&pt, &format!("{} ", case.made).repeat(repeat as usize));
        assert_eq!(pt.tweak(&set([]), &paths.topology()), Ok(vec![]));
    }
}

/// A storage chooses its topology path: it cannot make the master search for long, and there is
/// always a result.
#[test]
fn tweak_is_bounded() {
    for seed in 0..30 {
        let mut prng = Prng::new(seed);
        let count = 3 + prng.below(12) as u32;
        let depth = 1 + prng.below(4);
        let texts: Vec<String> = (0..count)
            .map(|_| (0..depth).map(|_| char::from(b'0' + prng.below(3) as u8)).collect())
            .collect();
        let paths = Paths::new(texts.iter().map(String::as_str));
        let mut pt = empty(1 + prng.below(60) as u32, 1 + prng.below(4) as u32);
        pt.make(&nids(1..=2), &Topology::new()).unwrap();
        pt.add_nodes(nids(3..=count));
        tweak_with(&mut pt, &set([]), &paths);
    }
}

#[test]
fn load_replaces_everything() {
    let mut pt = table(2, 0, &[(0, 1, OutOfDate), (1, 9, UpToDate)]);
    pt.set_updatable(nid(1), &[0]);
    pt.load(7, 1, &vec![vec![(nid(1), OutOfDate), (nid(2), UpToDate)]]).unwrap();
    assert_eq!((pt.table().ptid(), pt.table().replicas(), pt.partitions()), (Some(7), 1, 1));
    assert_eq!(pt.members, set([1, 2]));
    assert_eq!(pt.set_up_to_date(nid(1), 0), Ok(vec![]));
    assert_eq!(pt.next_ptid(), 8);
    assert!(pt.is_filled());
    assert_eq!(pt.operational_nodes(|n| n == nid(1)), None);
    assert_eq!(pt.operational_nodes(|n| n == nid(2)), Some(set([2])));
    pt.load(8, 0, &vec![vec![(nid(1), UpToDate)], vec![]]).unwrap();
    assert!(!pt.is_filled());
}
