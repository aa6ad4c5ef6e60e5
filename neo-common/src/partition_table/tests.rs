// SPDX-License-Identifier: GPL-2.0-or-later
use CellState::{Corrupted, Discarded, Feeding, OutOfDate, UpToDate};
use proptest::prelude::*;

use super::*;
use crate::protocol::{NodeState, NodeType, WireEnum};

fn s(index: u32) -> NodeId {
    NodeId::of(NodeType::Storage, index).unwrap()
}

/// 3 partitions on 3 nodes: one of each state.
fn table() -> PartitionTable {
    let mut table = PartitionTable::new();
    let rows = vec![
        vec![(s(2), UpToDate), (s(1), OutOfDate)],
        vec![(s(1), Feeding), (s(3), UpToDate)],
        vec![(s(3), Corrupted), (s(1), UpToDate), (s(2), Discarded)],
    ];
    table.load(Some(7), 1, &rows).unwrap();
    table
}

/// Cells are found by partition and by node, in the order in which they came.
#[test]
fn look_ups() {
    let table = table();
    assert_eq!((table.ptid(), table.replicas(), table.partitions()), (Some(7), 1, 3));
    assert_eq!(table.readable(0).collect::<Vec<_>>(), [s(2)]);
    assert_eq!(table.writable(0).collect::<Vec<_>>(), [s(2), s(1)]);
    assert_eq!(table.readable(1).collect::<Vec<_>>(), [s(1), s(3)]);
    assert_eq!(table.writable(2).collect::<Vec<_>>(), [s(1)]);
    assert_eq!(table.readable(3).count() + table.writable(u32::MAX).count(), 0);
    assert_eq!(table.readable_of(s(1)).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(table.outdated_of(s(1)).collect::<Vec<_>>(), [0]);
    assert_eq!(table.cells_of(s(3)).collect::<Vec<_>>(), [(1, UpToDate), (2, Corrupted)]);
    assert_eq!(table.cell_state(2, s(3)), Some(Corrupted));
    assert_eq!(table.cell_state(2, s(2)), None);
    assert!(table.is_assigned(2, s(3)) && !table.is_readable(2, s(3)));
    assert_eq!(table.nodes().collect::<Vec<_>>(), [s(1), s(2), s(3)]);
    assert_eq!(table.readable_nodes().into_iter().collect::<Vec<_>>(), [s(1), s(2), s(3)]);
    assert_eq!((table.assigned_count(s(1)), table.has_cells(s(4))), (2, false));
    assert_eq!(table.partition_of_oid(Oid::new(5)), Some(2));
    assert_eq!(table.partition_of_tid(Tid::new(6)), Some(0));
    assert_eq!(PartitionTable::new().partition_of_oid(Oid::new(5)), None);
    let rows = table.to_wire();
    let mut copy = PartitionTable::new();
    copy.load(Some(7), 1, &rows).unwrap();
    assert_eq!(copy, table);
    let mut rows_reversed = rows.clone();
    rows_reversed.iter_mut().for_each(|row| row.reverse());
    copy.load(Some(7), 1, &rows_reversed).unwrap();
    assert_eq!(copy, table, "the order of cells means nothing");
    rows_reversed[0].pop();
    copy.load(Some(7), 1, &rows_reversed).unwrap();
    assert_ne!(copy, table);
    assert_eq!(table.wire_rows(1, 1), rows[1..2]);
    assert!(table.wire_rows(9, 9).is_empty());
}

/// Each partition needs one readable cell on a running node.
#[test]
fn operational() {
    let table = table();
    assert!(table.filled());
    assert!(table.operational(|_| true));
    assert!(table.operational(|nid| nid != s(3)));
    assert!(!table.operational(|nid| nid != s(2)), "partition 0");
    assert!(!table.operational(|nid| nid != s(1)), "partition 2");
    assert!(!PartitionTable::new().operational(|_| true));
    let mut empty = PartitionTable::with_partitions(2, 0).unwrap();
    assert!(!empty.filled() && !empty.operational(|_| true));
    empty.set_cell(1, s(1), UpToDate).unwrap();
    assert!(!empty.filled());
    empty.set_cell(0, s(1), OutOfDate).unwrap();
    assert!(empty.filled() && !empty.operational(|_| true));
    empty.set_cell(0, s(1), Feeding).unwrap();
    assert!(empty.operational(|_| true));
    empty.clear();
    assert_eq!(empty, PartitionTable::with_partitions(2, 0).unwrap());
}

/// Changes add, change and remove cells, and lead to the next version.
#[test]
fn updates() {
    let mut table = table();
    assert!(table.follows(8) && !table.follows(9) && !table.follows(7));
    let changes = [(0, s(1), UpToDate), (1, s(1), Discarded), (2, s(4), OutOfDate)];
    let update = table.update(8, 2, &changes).unwrap();
    assert!(!update.first_outdated, "a cell was not readable already");
    assert_eq!((table.ptid(), table.replicas()), (Some(8), 2));
    assert_eq!(table.cells_of(s(1)).collect::<Vec<_>>(), [(0, UpToDate), (2, UpToDate)]);
    assert_eq!(table.cells_of(s(4)).collect::<Vec<_>>(), [(2, OutOfDate)]);
    let _ = table.update(9, 2, &[(2, s(4), Discarded)]).unwrap();
    assert!(!table.has_cells(s(4)));
    let _ = table.update(12, 2, &[]).unwrap();
    assert_eq!(table.ptid(), Some(12));
}

/// The first cell that becomes outdated is told, the next ones are not, nor are new cells.
#[test]
fn first_outdated_cell() {
    let mut table = PartitionTable::new();
    table.load(Some(1), 1, &vec![vec![(s(1), UpToDate), (s(2), UpToDate)]; 2]).unwrap();
    let mut outdated = |ptid, changes: &[_]| table.update(ptid, 1, changes).unwrap().first_outdated;
    assert!(!outdated(2, &[(0, s(1), Feeding), (1, s(1), Discarded)]));
    assert!(outdated(3, &[(0, s(1), OutOfDate)]));
    assert!(!outdated(4, &[(0, s(2), OutOfDate)]));
    assert!(!outdated(5, &[(0, s(1), UpToDate), (0, s(2), UpToDate)]));
    assert!(!outdated(6, &[(0, s(3), OutOfDate)]));
}

/// What no primary master would send is refused as a whole.
#[test]
fn refusals() {
    let mut table = table();
    let before = table.clone();
    for ptid in [0, 6, 7] {
        let error = TableError::WrongPtid { current: Some(7), received: ptid };
        assert_eq!(table.update(ptid, 0, &[(0, s(1), UpToDate)]), Err(error));
    }
    let changes = [(0, s(1), UpToDate), (3, s(1), UpToDate)];
    assert_eq!(table.update(8, 0, &changes), Err(TableError::Partition(3)));
    let too_many = vec![vec![]; PARTITIONS_MAX as usize + 1];
    assert_eq!(table.load(Some(9), 0, &too_many), Err(TableError::TooManyPartitions(65_536)));
    assert!(PartitionTable::with_partitions(65_536, 0).is_err());
    let too_many = vec![vec![], vec![(s(1), UpToDate); CELLS_MAX + 1]];
    assert_eq!(table.load(Some(9), 0, &too_many), Err(TableError::TooManyCells(1)));
    let too_many = vec![(2, s(1), UpToDate); CELLS_MAX];
    assert_eq!(table.update(8, 0, &too_many), Err(TableError::TooManyCells(2)));
    assert_eq!(table, before);
    let error = TableError::WrongPtid { current: None, received: 1 };
    assert_eq!(PartitionTable::new().update(1, 0, &[]), Err(error));
    assert!(!PartitionTable::new().follows(1));
}

/// The two formats of `neoctl print pt`, with and without ruler, and the alignment of ids.
#[test]
fn formats() {
    let mut table = PartitionTable::new();
    let rows: Rows = (0..24).map(|_| vec![(s(1), OutOfDate), (s(2), UpToDate)]).collect();
    table.load(Some(4), 1, &rows).unwrap();
    let state = |nid| if nid == s(1) { NodeState::Down } else { NodeState::Running };
    let expected = "
             10v       20v
S1 D OOOOOOOOOOOOOOOOOOOOOOOO
S2 R UUUUUUUUUUUUUUUUUUUUUUUU";
    assert_eq!(table.format([], state).join("\n"), expected.trim_start_matches('\n'));
    assert_eq!(format_rows(9, &rows[..1].to_vec()), ["009 | S1 - OUT_OF_DATE | S2 - UP_TO_DATE |"]);
    assert_eq!(format_rows(u32::MAX, &vec![vec![]; 2]), ["4294967295 |", "4294967296 |"]);

    let rows = vec![vec![(s(2), Feeding), (s(10), Corrupted)], vec![]];
    table.load(None, 0, &rows).unwrap();
    let state = |nid| if nid == s(3) { NodeState::Pending } else { NodeState::Unknown };
    assert_eq!(table.format([s(3), s(2)], state), ["S2  U F.", "S3  P ..", "S10 U C."]);
    assert_eq!(PartitionTable::new().format([], state), Vec::<String>::new());
    assert_eq!(PartitionTable::new().format([s(3)], state), ["S3 P "]);
}

proptest! {
    /// Whatever the sequence of changes, the counters are those of the rows.
    #[test]
    fn counters_agree_with_rows(
        changes in prop::collection::vec((0_u32..4, 1_u32..5, 0_usize..5), 0..60)
    ) {
        let mut table = PartitionTable::with_partitions(4, 1).unwrap();
        for (partition, index, state) in changes {
            table.set_cell(partition, s(index), CellState::ALL[state]).unwrap();
            let cells = table.rows().iter().flatten();
            prop_assert!(cells.clone().all(|cell| cell.state != Discarded));
            for index in 1..5 {
                let own = cells.clone().filter(|cell| cell.nid == s(index));
                prop_assert_eq!(table.has_cells(s(index)), own.clone().count() != 0);
                let assigned = own.filter(|cell| cell.state != Feeding).count();
                prop_assert_eq!(table.assigned_count(s(index)) as usize, assigned);
            }
            prop_assert_eq!(table.filled(), table.rows().iter().all(|row| !row.is_empty()));
        }
    }
}
