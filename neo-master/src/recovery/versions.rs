// SPDX-License-Identifier: GPL-2.0-or-later
//! Which partition table to start with, among those that storages kept.
//!
//! Upstream takes the one with the greatest ptid. But a version may have been told to some storages
//! only, none of which matters for it, before its master died:
//! 1. Version 5: S1 and S3 are up-to-date, S2 is out-of-date.
//! 2. A master loses S1 for a moment and tells version 6: "S1 is out-of-date". Only S2 hears it, then this
//!    master dies.
//! 3. The next master finds S1 and S3, with version 5. It loses S3, and tells another version 6 to S1, in
//!    which S3 is out-of-date. Transactions are committed, on S1 only.
//! 4. Everything stops; S2 and S3 are the first ones to be back. By its number, the table of S2 is as good
//!    as any, and says that S3 has everything.
//!
//! Nothing was ever committed in a partition under a version that a storage with a readable cell of it does
//! not have: each storage that takes part in a transaction is told the version before. So a version is
//! - *refuted* if each partition has a readable cell whose storage is there and does not have it, nor a
//!   later one: it is as if it had never existed;
//! - otherwise believed, and those that are readable in it are waited for.
//!
//! A refuted version counts for those that have it: a storage that was told that its cells are out-of-date
//! dropped what was not finished, and may have deleted partitions. So its cells are out-of-date in the table
//! to start with as well.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use neo_common::partition_table::PartitionTable as Table;
use neo_common::planted;
use neo_common::protocol::CellState;
use neo_common::types::{NodeId, Partition, Ptid};

/// What a storage has.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Version {
    ptid: Ptid,
    /// `None` until it is received.
    table: Option<Table>,
}

/// How many storages that are lost count: one that reconnects under other ids must not take all memory.
const LOST_MAX: usize = 64;

/// What storages have. Those that are lost meanwhile count as well.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    by_nid: BTreeMap<NodeId, Version>,
    lost: VecDeque<NodeId>,
}

impl Versions {
    /// A storage announces a table, or says that it has none.
    pub fn announce(&mut self, nid: NodeId, ptid: Option<Ptid>) {
        self.lost.retain(|other| *other != nid);
        match ptid {
            Some(ptid) => self.by_nid.insert(nid, Version { ptid, table: None }),
            None => self.by_nid.remove(&nid),
        };
    }

    /// A storage is lost. What it had is forgotten once many others were lost after it.
    pub fn lose(&mut self, nid: NodeId) {
        if !self.by_nid.contains_key(&nid) || self.lost.contains(&nid) {
            return;
        }
        self.lost.push_back(nid);
        if self.lost.len() > LOST_MAX
            && let Some(nid) = self.lost.pop_front()
        {
            self.by_nid.remove(&nid);
        }
    }

    /// The table that a storage has announced. `false` if it is not that one.
    pub fn receive(&mut self, nid: NodeId, table: Table) -> bool {
        let version = self.by_nid.get_mut(&nid);
        let announced = version.filter(|version| table.ptid() == Some(version.ptid));
        announced.map(|version| version.table = Some(table)).is_some()
    }

    /// Storages that cannot be those that later tables mean: they have a table of their own, in which they
    /// have no cell, whereas they would be readable. Before a cell becomes readable, its node stores that it
    /// is out-of-date.
    pub fn others(&self) -> Vec<NodeId> {
        let is_other = |nid, own: &Table| {
            let mut later = self.tables().filter(|(_, table)| table.ptid() > own.ptid());
            !own.has_cells(nid) && later.any(|(_, table)| is_readable_in(table, nid))
        };
        self.tables().filter(|(nid, own)| is_other(*nid, own)).map(|(nid, _)| nid).collect()
    }

    /// It was another storage: what it has says nothing of this one.
    pub fn forget(&mut self, nid: NodeId) {
        self.by_nid.remove(&nid);
        self.lost.retain(|other| *other != nid);
    }

    /// Whether no storage has any table.
    pub fn is_empty(&self) -> bool {
        self.by_nid.is_empty()
    }
    /// Greatest version.
    pub fn greatest(&self) -> Option<Ptid> {
        self.by_nid.values().map(|version| version.ptid).max()
    }
    /// Greatest version whose table is not received.
    pub fn greatest_missing(&self) -> Option<Ptid> {
        let missing = self.by_nid.values().filter(|version| version.table.is_none());
        missing.map(|version| version.ptid).max()
    }
    /// Whether a storage announced a table that is not received yet.
    pub fn is_missing(&self, nid: NodeId) -> bool {
        self.by_nid.get(&nid).is_some_and(|version| version.table.is_none())
    }

    /// The table to start with, and a storage that has it.
    pub fn choose(&self) -> Option<(NodeId, &Table)> {
        let mut candidates: Vec<(NodeId, &Table)> = Vec::new();
        for (nid, table) in self.tables() {
            match candidates.iter_mut().find(|(_, other)| *other == table) {
                // One that has readable cells knows best what else there is to know.
                Some((other, _)) if !is_readable_in(table, *other) => *other = nid,
                Some(_) => {}
                None => candidates.push((nid, table)),
            }
        }
        candidates.sort_by_key(|(nid, table)| (table.ptid(), is_readable_in(table, *nid)));
        if planted!(StalePartitionTable) {
            return candidates.first().copied();
        }
        let last = candidates.last().copied();
        let standing = candidates.into_iter().rev().find(|(_, table)| !self.is_refuted(table));
        // If no version stands, nothing was ever committed: any of them is right.
        standing.or(last)
    }

    /// Whether all nodes of this table have it, and nobody has another one.
    pub fn all_have(&self, table: &Table) -> bool {
        let is_same = |version: &Version| version.table.as_ref() == Some(table);
        self.by_nid.values().all(is_same) && table.nodes().all(|nid| self.by_nid.contains_key(&nid))
    }

    /// Tables of a version. Two masters may have told different ones.
    pub fn tables_of(&self, ptid: Ptid) -> impl Iterator<Item = &Table> {
        self.tables().map(|(_, table)| table).filter(move |table| table.ptid() == Some(ptid))
    }

    fn tables(&self) -> impl Iterator<Item = (NodeId, &Table)> {
        self.by_nid.iter().filter_map(|(nid, version)| Some((*nid, version.table.as_ref()?)))
    }

    /// Readable cells of a table that are not readable by what their nodes have. With a later version, that
    /// is what they were told. With an older one, either it was told by another master that nobody else
    /// heard, and they dropped what was not finished; or they have just become readable, and nothing is lost
    /// if they are replicated again.
    pub fn outdated(&self, table: &Table) -> Vec<(Partition, NodeId)> {
        let mut outdated = BTreeSet::new();
        for (nid, own) in self.tables() {
            // It may have been replicated since, with another master.
            if self.lost.contains(&nid) && own.ptid() < table.ptid() {
                continue;
            }
            let is_readable =
                |partition| own.cell_state(partition, nid).is_some_and(CellState::is_readable);
            let readable = table.readable_of(nid);
            outdated.extend(readable.filter(|p| !is_readable(*p)).map(|p| (p, nid)));
        }
        // Two masters may each have put another node out-of-date. Nothing was committed with either
        // version: the node with the greatest one keeps its cell, and what it has not dropped. Or one was
        // replicated, and the other one has learned that it is not needed any more.
        for partition in 0..table.partitions() {
            let is_outdated = |nid: &NodeId| outdated.contains(&(partition, *nid));
            if table.readable(partition).all(|nid| is_outdated(&nid)) {
                let ptid = |nid: &NodeId| self.by_nid.get(nid).map(|version| version.ptid);
                if let Some(kept) = table.readable(partition).max_by_key(ptid) {
                    outdated.remove(&(partition, kept));
                }
            }
        }
        outdated.into_iter().collect()
    }

    /// Readable cells of a table that may miss a part of what others have locked: a refuted version also counts
    /// for what was locked with it.
    /// 1. Version 5: S1, S2 and S3 are up-to-date. A client cannot store on S3: the master disconnects it,
    ///    tells version 6, in which S3 is out-of-date, then asks S1 and S2 to lock the transaction.
    /// 2. S1 does. S2 and the master die before. Nothing was committed with version 6, which S2 lacks.
    /// 3. The cluster starts with version 5. Verification finishes what S1 locked on S1 and S2, and S3 would be
    ///    up-to-date without it.
    ///
    /// So cells that are not readable in a later table become out-of-date, where others that are there are
    /// readable in all of them. This is stored before anything is verified, because a verification may be
    /// interrupted; but those that have these cells are waited for, they may have gone on with another master.
    pub fn unlocked(
        &self,
        table: &Table,
        is_there: impl Fn(NodeId) -> bool,
    ) -> Vec<(Partition, NodeId)> {
        let mut later: Vec<&Table> = Vec::new();
        for (_, other) in self.tables() {
            let is_later = other.ptid() > table.ptid();
            if (is_later || other.ptid() == table.ptid() && other != table)
                && !later.contains(&other)
            {
                later.push(other);
            }
        }
        if later.is_empty() {
            return Vec::new();
        }
        let outdated: BTreeSet<_> = self.outdated(table).into_iter().collect();
        let mut unlocked = Vec::new();
        for partition in 0..table.partitions() {
            let is_in = |other: &&Table, nid| {
                other.cell_state(partition, nid).is_some_and(CellState::is_readable)
            };
            let left =
                table.readable(partition).filter(|nid| !outdated.contains(&(partition, *nid)));
            let (known, unknown): (Vec<_>, Vec<_>) =
                left.partition(|nid| later.iter().all(|other| is_in(other, *nid)));
            if known.into_iter().any(&is_there) {
                unlocked.extend(unknown.into_iter().map(|nid| (partition, nid)));
            }
        }
        unlocked
    }

    /// Up to which version of this table or of an older one transactions may be committed. All that are
    /// readable in a partition are told the version before they lock a transaction in it.
    /// One that is lost may have been told since.
    pub fn lock_ptid(&self, table: &Table) -> Option<Ptid> {
        let ptid = table.ptid()?;
        let version = |nid| self.by_nid.get(&nid).filter(|_| !self.lost.contains(&nid));
        let ptid_of = |nid| version(nid).map_or(ptid, |version| version.ptid.min(ptid));
        let common = |partition| table.readable(partition).map(ptid_of).min();
        (0..table.partitions()).filter_map(common).max()
    }

    fn is_refuted(&self, table: &Table) -> bool {
        let lacks = |nid| {
            // One that is lost may have got it since, from another master to which it went back.
            !self.lost.contains(&nid)
                && self.by_nid.get(&nid).is_some_and(|version| {
                    let is_other = |other: &Table| other != table;
                    Some(version.ptid) < table.ptid()
                        || Some(version.ptid) == table.ptid()
                            && version.table.as_ref().is_some_and(is_other)
                })
        };
        (0..table.partitions()).all(|partition| table.readable(partition).any(lacks))
    }
}

fn is_readable_in(table: &Table, nid: NodeId) -> bool {
    table.cells_of(nid).any(|(_, state)| state.is_readable())
}

#[cfg(test)]
mod tests {
    use neo_common::partition_table::Cell;
    use neo_common::protocol::NodeType;

    use super::*;

    fn nid(index: u32) -> NodeId {
        NodeId::of(NodeType::Storage, index).unwrap()
    }

    /// One partition; `U` up-to-date or `O` out-of-date for S1, S2...
    fn table(ptid: Ptid, row: &str) -> Table {
        let cells =
            (1..).zip(row.chars()).filter(|(_, letter)| *letter != '.').map(|(i, letter)| {
                (nid(i), if letter == 'U' { CellState::UpToDate } else { CellState::OutOfDate })
            });
        let mut table = Table::new();
        table.load(Some(ptid), 1, &vec![cells.collect()]).unwrap();
        table
    }

    fn two_partitions(ptid: Ptid, first: &str, second: &str) -> Table {
        let cells = |row: &str| table(ptid, row).to_wire().remove(0);
        let mut table = Table::new();
        table.load(Some(ptid), 1, &vec![cells(first), cells(second)]).unwrap();
        table
    }

    /// What S1, S2... have.
    fn versions(tables: &[Option<(Ptid, &str)>]) -> Versions {
        let mut versions = Versions::default();
        for (index, entry) in (1..).zip(tables) {
            let Some((ptid, row)) = entry else { continue };
            versions.announce(nid(index), Some(*ptid));
            assert!(versions.receive(nid(index), table(*ptid, row)));
        }
        versions
    }

    fn chosen(tables: &[Option<(Ptid, &str)>]) -> Option<(NodeId, Ptid, String)> {
        let versions = versions(tables);
        let (nid, table) = versions.choose()?;
        let outdated = versions.outdated(table);
        let is_up_to_date = |cell: &Cell| cell.is_readable() && !outdated.contains(&(0, cell.nid));
        let letter = |cell| if is_up_to_date(cell) { 'U' } else { 'O' };
        let row = table.cells(0).iter().map(letter).collect();
        Some((nid, table.ptid().unwrap(), row))
    }

    #[track_caller]
    fn check(tables: &[Option<(Ptid, &str)>], expected: (u32, Ptid, &str)) {
        assert_eq!(chosen(tables), Some((nid(expected.0), expected.1, expected.2.to_owned())));
    }

    #[test]
    fn no_table() {
        let mut versions = Versions::default();
        assert_eq!(versions.choose(), None);
        assert!(versions.is_empty());
        versions.announce(nid(1), Some(3));
        assert_eq!(versions.choose(), None);
        assert_eq!(versions.greatest_missing(), Some(3));
        assert!(versions.is_missing(nid(1)));
        assert!(!versions.receive(nid(1), table(2, "U")), "another one was announced");
        assert!(versions.receive(nid(1), table(3, "U")));
        assert_eq!((versions.greatest_missing(), versions.greatest()), (None, Some(3)));
        versions.announce(nid(1), None);
        assert!(versions.is_empty());
    }

    #[test]
    fn lost_storages_are_bounded() {
        let mut versions = Versions::default();
        for index in 1..=1000 {
            versions.announce(nid(index), Some(1));
            versions.lose(nid(index));
            versions.lose(nid(index));
        }
        assert_eq!((versions.by_nid.len(), versions.lost.len()), (LOST_MAX, LOST_MAX));
        // One that is back is not forgotten for having been lost.
        versions.announce(nid(1000), Some(1));
        (1..=999).for_each(|index| {
            versions.announce(nid(index), Some(1));
            versions.lose(nid(index));
        });
        assert_eq!(versions.by_nid.len(), LOST_MAX + 1);
        assert!(versions.by_nid.contains_key(&nid(1000)));
    }

    #[test]
    fn the_latest_one() {
        check(&[Some((5, "UUU")), Some((7, "OUU")), Some((7, "OUU"))], (2, 7, "OUU"));
        // S3 was not told yet that it is up-to-date: nothing was committed since.
        check(&[Some((5, "UUU")), Some((7, "OUU")), Some((6, "OUO"))], (3, 6, "OUO"));
        // Also if only a storage that is out-of-date is there: the others may have it.
        check(&[Some((5, "UUU")), Some((7, "OOU")), None], (2, 7, "OOU"));
    }

    #[test]
    fn another_storage_of_the_same_name() {
        let others = |tables: &[_]| versions(tables).others();
        assert_eq!(others(&[Some((5, ".U")), Some((7, "UU"))]), [nid(1)]);
        assert_eq!(others(&[Some((5, "OU")), Some((7, "UU"))]), [], "it was replicated since");
        assert_eq!(others(&[Some((5, ".U")), Some((7, "OU"))]), [], "it will be");
        assert_eq!(others(&[Some((7, ".U")), Some((5, "UU"))]), [], "its cell was discarded since");
        let mut versions = versions(&[Some((5, ".U")), Some((7, "UU"))]);
        versions.forget(nid(1));
        assert_eq!(versions.lock_ptid(&table(7, "UU")), Some(7));
    }

    #[test]
    fn transactions_are_locked_with_a_version_that_all_have() {
        let lock_ptid = |tables: &[_], ptid, row| versions(tables).lock_ptid(&table(ptid, row));
        assert_eq!(
            lock_ptid(&[Some((5, "UUU")), Some((7, "OUU")), Some((7, "OUU"))], 7, "OUU"),
            Some(7)
        );
        // S2 is readable, and was never told version 6 or 7.
        assert_eq!(
            lock_ptid(&[Some((7, "UUO")), Some((5, "UUU")), Some((6, "UUO"))], 7, "UUO"),
            Some(5)
        );
        // S2 is not there: it may have it.
        assert_eq!(lock_ptid(&[Some((7, "UUO")), None], 7, "UUO"), Some(7));
        // A later version was not confirmed.
        assert_eq!(lock_ptid(&[Some((8, "UO"))], 7, "UO"), Some(7));
    }

    #[test]
    fn who_has_data_knows_best() {
        check(&[Some((5, "OU")), Some((5, "OU"))], (2, 5, "OU"));
        check(&[Some((5, "UO")), Some((5, "UO"))], (1, 5, "UO"));
    }

    /// Steps of the module's documentation.
    #[test]
    fn a_version_that_nobody_with_data_has() {
        let (s1, s2, s3) = (Some((6, "UOO")), Some((6, "OOU")), Some((5, "UOU")));
        // S2 alone: S3 may have it.
        check(&[None, s2, None], (2, 6, "OOU"));
        // S3 does not have it. By what it has, S1 is needed.
        check(&[None, s2, s3], (3, 5, "UOU"));
        check(&[s1, s2, s3], (1, 6, "UOO"));
        // S2 is not needed to know.
        check(&[s1, None, s3], (1, 6, "UOO"));
        // At the same number, a table of who has data in it comes first.
        check(&[s1, s2, None], (1, 6, "UOO"));
    }

    /// 1. S1 and S2 are told version 4 by a master that is not in service yet; it becomes version 5 without
    ///    S2, and this master is lost. S1 goes on with the former one, which puts S2 and S3 out-of-date.
    /// 2. S3 was told version 5 only.
    #[test]
    fn a_version_that_a_readable_storage_never_had() {
        check(&[Some((3, "UOO")), None, Some((5, "UOU"))], (1, 3, "UOO"));
        // S1 is needed to know that.
        check(&[None, None, Some((5, "UOU"))], (3, 5, "UOU"));
        // One partition is enough for transactions.
        let two = two_partitions(5, "UOU", "OOU");
        let mut versions = versions(&[Some((3, "UOO"))]);
        versions.announce(nid(3), Some(5));
        assert!(versions.receive(nid(3), two.clone()));
        assert_eq!(versions.choose(), Some((nid(3), &two)));
    }

    #[test]
    fn who_was_told_that_it_is_out_of_date() {
        // S1 does not know that it was alone, but the others know that they had to drop something.
        check(&[Some((1, "UUU")), Some((3, "UOO")), Some((3, "UOO"))], (1, 1, "UOO"));
        check(&[Some((1, "UUU")), Some((3, "UOO")), None], (1, 1, "UOU"));
        // Or that they do not belong to the partition any more.
        check(&[Some((1, "UU")), Some((3, "U.")), None], (1, 1, "UO"));
    }

    /// S1 read its table from its database, S2 had it in memory.
    #[test]
    fn the_order_of_cells_means_nothing() {
        let mut rows = table(5, "UUO").to_wire();
        rows[0].reverse();
        let mut other = Table::new();
        other.load(Some(5), 1, &rows).unwrap();
        let mut versions = versions(&[Some((5, "UUO")), None, Some((4, "UUU"))]);
        versions.announce(nid(2), Some(5));
        assert!(versions.receive(nid(2), other));
        assert_eq!(versions.choose().unwrap().1.ptid(), Some(5));
    }

    /// Only S3 heard another master, which knows S1 as it was before. It may have a partition of its own.
    #[test]
    fn who_was_told_so_by_another_master() {
        let two = two_partitions(5, "UU.", "..U");
        let mut versions = versions(&[Some((3, "OU.")), Some((1, "UU."))]);
        versions.announce(nid(3), Some(5));
        assert!(versions.receive(nid(3), two.clone()));
        assert_eq!(versions.choose(), Some((nid(3), &two)));
        assert_eq!(versions.outdated(&two), [(0, nid(1))]);
    }

    #[test]
    fn two_masters_that_put_another_node_out_of_date() {
        let (s1, s2, s3) = (Some((1, ".UU")), Some((2, ".OU")), Some((2, ".UO")));
        check(&[None, s2, s3], (3, 2, "UO"));
        check(&[s1, Some((2, ".OU")), Some((3, ".UO"))], (2, 2, "OU"));
    }

    /// What a storage locked with a version that does not count must not be missed by a readable cell.
    #[test]
    fn what_was_locked_with_a_refuted_version() {
        let unlocked = |tables: &[_], there: &[u32]| {
            let versions = versions(tables);
            let (_, table) = versions.choose().unwrap();
            let unlocked = versions.unlocked(table, |nid| there.contains(&nid.index()));
            (table.ptid().unwrap(), unlocked)
        };
        let (s1, s2, s3) = (Some((6, "UUO")), Some((5, "UUU")), Some((5, "UUU")));
        assert_eq!(unlocked(&[s1, s2, s3], &[1, 2, 3]), (5, vec![(0, nid(3))]));
        assert_eq!(unlocked(&[s1, s2, None], &[1, 2]), (5, vec![(0, nid(3))]));
        // Somebody who is there must keep a cell.
        assert_eq!(unlocked(&[s1, s2, s3], &[3]), (5, vec![]));
        // These know themselves that they are out-of-date.
        let tables = [Some((5, "UUU")), Some((6, "UOU")), Some((7, "UUO"))];
        assert_eq!(unlocked(&tables, &[1, 2, 3]), (5, vec![]));
        assert_eq!(unlocked(&[s2, s2, s3], &[1, 2, 3]), (5, vec![]));
    }

    /// S3 says what it has, is lost without notice, and is replicated with another master. What it said is
    /// nothing against a later table, in which it is needed.
    #[test]
    fn what_a_lost_storage_said_does_not_count_against_later_tables() {
        let mut versions = versions(&[Some((9, "UOU")), Some((7, "UOO")), Some((5, "UUO"))]);
        assert_eq!(versions.choose().unwrap().1.ptid(), Some(7), "S3 does not have version 9");
        versions.lose(nid(3));
        let (_, chosen) = versions.choose().unwrap();
        assert_eq!(chosen.ptid(), Some(9));
        assert_eq!(versions.outdated(chosen), []);
        // It is back, and has it indeed.
        versions.announce(nid(3), Some(9));
        assert!(versions.receive(nid(3), table(9, "UOU")));
        assert_eq!(versions.choose().unwrap().1.ptid(), Some(9));
    }

    #[test]
    fn an_old_disk_is_not_believed() {
        // S1 was away since version 3. S3 is needed.
        check(&[Some((3, "UUU")), Some((9, "OOU")), None], (2, 9, "OOU"));
        check(&[Some((3, "UUU")), Some((9, "OOU")), Some((9, "OOU"))], (3, 9, "OOU"));
    }
}
