// SPDX-License-Identifier: GPL-2.0-or-later
//! Where cells go: the balance of the partition table. Upstream: master/pt.py, `tweak`.
//!
//! What is wanted:
//! - all nodes have the same number of cells that are not FEEDING, give or take one;
//! - objects created together are spread over many nodes, because oids are consecutive;
//! - cells of a partition are as far as possible from each other, by the topology paths of their
//!   nodes (room, machine, disk...): if there are enough rooms no two cells are in the same one,
//!   otherwise they are spread evenly over rooms, and deeper levels are looked at;
//! - as little replication as possible to get there, and none at all if the nodes are the same as
//!   in the last call.
//!
//! How: an optimal table is generated for anonymous nodes, as a list of *options* (sets of
//! partitions, one per node). Then each node takes an option. A first search only allows options
//! that contain all cells of the node; if it fails, a second one looks at options in order of cost
//! (readable cells to discard, then other cells), and at nodes with the most to lose first.
//!
//! ```text
//!   12 partitions, 1 replica, 5 nodes      the same up to a permutation of nodes
//!     UU... ..UU. U...U .UU.. ...UU          ..UU. U...U .UU.. ...UU UU...
//! ```
//!
//! Cells that the new table does not have become FEEDING as long as there are not enough readable
//! cells in it, then they are discarded. Cells of ignored nodes are never touched: to get rid of a
//! node, its whole database is dropped later.
//!
//! The result only depends on the arguments. Both searches are bounded (upstream's are not): if the
//! second one does not end, the topology is ignored, and then it cannot fail.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use neo_common::protocol::CellState;
use neo_common::types::{NodeId, Partition};

use super::{Changes, PartitionTable, PartitionTableError};

/// Topology paths of nodes, from the most shared level.
pub type Topology<'a> = BTreeMap<NodeId, &'a [Bytes]>;

/// Options that a search looks at before it gives up. Good topologies rarely need more than some
/// hundreds; the worst that is known to succeed needs half of this.
const STEPS_MAX: usize = 1_000_000;

/// A node that may get cells.
struct Candidate {
    nid: NodeId,
    /// Its cells.
    cells: BTreeMap<Partition, CellState>,
}

/// An optimal table for anonymous nodes.
struct Plan {
    partitions: u32,
    /// Wanted number of cells of each partition.
    repeats: usize,
    /// Different sets of partitions, the biggest first.
    options: Vec<Vec<Partition>>,
    /// How many nodes take each option.
    counts: Vec<usize>,
}

/// In which order a node looks at options.
struct Wish {
    /// Index of the candidate.
    candidate: usize,
    /// Indexes of options.
    options: Vec<usize>,
}

impl PartitionTable {
    /// Balances the table over its members, except the ignored ones.
    ///
    /// # Errors
    /// If all nodes are ignored.
    pub fn tweak(
        &mut self,
        ignored: &BTreeSet<NodeId>,
        topology: &Topology<'_>,
    ) -> Result<Changes, PartitionTableError> {
        let candidates: Vec<Candidate> = self
            .members
            .iter()
            .filter(|nid| !ignored.contains(nid))
            .map(|&nid| Candidate { nid, cells: BTreeMap::new() })
            .collect();
        if candidates.is_empty() {
            return Err(PartitionTableError::NoNode);
        }
        let candidates = self.with_cells(candidates);
        let plan = Plan::new(self.partitions(), self.table.replicas(), candidates.len());
        let levels = Levels::new(&candidates, topology, plan.repeats);
        let solution = [Some(&levels), None]
            .into_iter()
            .find_map(|levels| {
                let wishes = plan.wishes_without_replication(&candidates);
                let kept = wishes.and_then(|wishes| search(&plan, levels, &wishes));
                kept.or_else(|| search(&plan, levels, &plan.wishes_by_cost(&candidates)))
            })
            .expect("without topology, each node can take any option that is left");
        Ok(self.apply(&plan, candidates, solution))
    }

    fn with_cells(&self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        for (partition, row) in (0..).zip(self.table.rows()) {
            for cell in row {
                if let Ok(index) = candidates.binary_search_by_key(&cell.nid, |c| c.nid) {
                    candidates[index].cells.insert(partition, cell.state);
                }
            }
        }
        candidates
    }

    /// `solution`: candidates with the partitions that they get, in the order of the search.
    fn apply(
        &mut self,
        plan: &Plan,
        mut candidates: Vec<Candidate>,
        solution: Vec<(usize, usize)>,
    ) -> Changes {
        let new_state = if self.table.ptid().is_none() {
            self.table.set_ptid(Some(1));
            CellState::UpToDate
        } else {
            CellState::OutOfDate
        };
        let mut changes = Vec::new();
        // Readable cells that the wanted cells of each partition lack.
        let mut lacking = vec![plan.repeats; self.partitions() as usize];
        let mut discarded = BTreeMap::<Partition, Vec<(NodeId, CellState)>>::new();
        for (candidate, option) in solution {
            let Candidate { nid, cells } = &mut candidates[candidate];
            for &partition in &plan.options[option] {
                let old = cells.remove(&partition);
                let new = match old {
                    None => new_state,
                    Some(CellState::Feeding) => CellState::UpToDate,
                    Some(state) => state,
                };
                if old.is_some_and(CellState::is_readable) {
                    lacking[partition as usize] -= 1;
                }
                if old != Some(new) {
                    self.put_cell(partition, *nid, new);
                    changes.push((partition, *nid, new));
                }
            }
            for (partition, state) in std::mem::take(cells) {
                discarded.entry(partition).or_default().push((*nid, state));
            }
        }
        for (partition, cells) in discarded {
            let lacking = &mut lacking[partition as usize];
            for (nid, old) in cells {
                let new = if *lacking > 0 && old.is_readable() {
                    *lacking -= 1;
                    CellState::Feeding
                } else {
                    CellState::Discarded
                };
                if new != old {
                    self.put_cell(partition, nid, new);
                    changes.push((partition, nid, new));
                }
            }
        }
        changes
    }
}

impl Plan {
    fn new(partitions: u32, replicas: u32, node_count: usize) -> Self {
        let repeats = node_count.min(replicas as usize + 1);
        let mut rows = vec![Vec::new(); node_count];
        let cells = (0..partitions).flat_map(|p| std::iter::repeat_n(p, repeats));
        for (index, partition) in cells.enumerate() {
            rows[index % node_count].push(partition);
        }
        // The order makes the result look like the example of the module documentation.
        rows.sort_by(|a: &Vec<_>, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let mut options: Vec<Vec<Partition>> = Vec::new();
        let mut counts = Vec::new();
        for row in rows {
            if options.last() == Some(&row) {
                *counts.last_mut().expect("one for each option") += 1;
            } else {
                options.push(row);
                counts.push(1);
            }
        }
        Self { partitions, repeats, options, counts }
    }

    /// Options that contain all cells of a node, for each node. `None` if a node has no such
    /// option.
    fn wishes_without_replication(&self, candidates: &[Candidate]) -> Option<Vec<Wish>> {
        let wish = |(candidate, Candidate { cells, .. }): (usize, &Candidate)| {
            let assigned = cells.iter().filter(|(_, state)| **state != CellState::Feeding);
            let assigned: Vec<Partition> = assigned.map(|(partition, _)| *partition).collect();
            let fits = |option: &usize| {
                let option = &self.options[*option];
                assigned.iter().all(|partition| option.binary_search(partition).is_ok())
            };
            let options: Vec<usize> = (0..self.options.len()).filter(fits).collect();
            (!options.is_empty()).then_some(Wish { candidate, options })
        };
        candidates.iter().enumerate().map(wish).collect()
    }

    /// All options by cost, for each node; nodes with the biggest difference between best and
    /// worst first. (Looking at all permutations would take a time of the order of n!.)
    fn wishes_by_cost(&self, candidates: &[Candidate]) -> Vec<Wish> {
        let mut wishes: Vec<_> = candidates
            .iter()
            .enumerate()
            .map(|(candidate, Candidate { cells, .. })| {
                let cost = |index: usize| {
                    let option = &self.options[index];
                    let (mut readable, mut other) = (0_i64, 0_i64);
                    for (partition, state) in cells {
                        if option.binary_search(partition).is_err() {
                            *if state.is_readable() { &mut readable } else { &mut other } += 1;
                        }
                    }
                    (readable, other, index)
                };
                let mut costs: Vec<_> = (0..self.options.len()).map(cost).collect();
                costs.sort_unstable();
                let (min, max) = (costs[0], costs[costs.len() - 1]);
                let options = costs.iter().map(|(.., index)| *index).collect();
                ((min.0 - max.0, min.1 - max.1, candidate), options)
            })
            .collect();
        wishes.sort();
        wishes.into_iter().map(|((.., candidate), options)| Wish { candidate, options }).collect()
    }
}

/// Gives an option to each node, in the order of the wishes. `None` if it is not possible, or not
/// found soon enough.
fn search(plan: &Plan, levels: Option<&Levels>, wishes: &[Wish]) -> Option<Vec<(usize, usize)>> {
    let mut left = plan.counts.clone();
    let mut used = levels.map(|levels| Used::new(levels, plan.partitions));
    // For each node that has an option, and one more: how many wishes were looked at.
    let mut looked = vec![0];
    for _ in 0..STEPS_MAX {
        let depth = looked.len() - 1;
        let wish = &wishes[depth];
        let Some(&option) = wish.options.get(looked[depth]) else {
            // Another option for the node before.
            looked.pop();
            let previous = &wishes[looked.len().checked_sub(1)?];
            let taken = previous.options[*looked.last()? - 1];
            left[taken] += 1;
            if let Some(used) = &mut used {
                used.remove(previous.candidate, &plan.options[taken]);
            }
            continue;
        };
        looked[depth] += 1;
        let fits = left[option] > 0
            && used.as_mut().is_none_or(|used| used.try_add(wish.candidate, &plan.options[option]));
        if !fits {
            continue;
        }
        left[option] -= 1;
        if depth + 1 == wishes.len() {
            let pairs = wishes.iter().zip(looked);
            return Some(pairs.map(|(wish, n)| (wish.candidate, wish.options[n - 1])).collect());
        }
        looked.push(0);
    }
    log::warn!("the search of an optimal partition table was given up");
    None
}

/// The topology: a tree with nodes as leaves, down to the level that is looked at.
struct Levels {
    /// For each candidate, the tree nodes above it, from the root.
    paths: Vec<Vec<usize>>,
    /// For each tree node, those with the same parent (itself included).
    siblings: Vec<BTreeSet<usize>>,
    /// For each level: greatest number of cells of a partition below a tree node, and how many
    /// siblings may have that number.
    limits: Vec<(u16, usize)>,
}

impl Levels {
    fn new(candidates: &[Candidate], topology: &Topology<'_>, repeats: usize) -> Self {
        let mut levels = Self {
            paths: vec![Vec::new(); candidates.len()],
            siblings: Vec::new(),
            limits: Vec::new(),
        };
        if repeats <= 1 {
            return levels;
        }
        let path = |c: &Candidate| topology.get(&c.nid).copied().unwrap_or_default();
        let paths: Vec<&[Bytes]> = candidates.iter().map(path).collect();
        let depth_max = paths.iter().map(|path| path.len()).min().unwrap_or(0);
        for depth in 1..=depth_max {
            let mut sizes = BTreeMap::<&[Bytes], usize>::new();
            for path in &paths {
                *sizes.entry(&path[..depth]).or_default() += 1;
            }
            let (count, max) = (sizes.len(), sizes.values().copied().max().unwrap_or(0));
            let is_even = sizes.values().all(|size| *size == max);
            if !is_even && max * repeats > candidates.len() {
                break;
            }
            let (quotient, rest) = (repeats / count, repeats % count);
            let limit = if rest > 0 { (quotient + 1, rest) } else { (quotient, count) };
            levels.limits.push((limit.0 as u16, limit.1));
            if count >= repeats {
                levels.build(&paths, depth);
                return levels;
            }
        }
        log::warn!(
            "Can't maximize resiliency: fix the topology of your storage nodes and make sure \
             they're all running. {} storage device failure(s) may be enough to lose all the \
             database.",
            repeats - 1
        );
        levels
    }

    fn build(&mut self, paths: &[&[Bytes]], depth: usize) {
        let mut tree = BTreeMap::<&[Bytes], usize>::new();
        for (candidate, path) in paths.iter().enumerate() {
            for level in 1..=depth {
                let next = tree.len();
                let index = *tree.entry(&path[..level]).or_insert(next);
                self.paths[candidate].push(index);
            }
        }
        let mut children = BTreeMap::<&[Bytes], BTreeSet<usize>>::new();
        for (path, index) in &tree {
            children.entry(&path[..path.len() - 1]).or_default().insert(*index);
        }
        self.siblings = vec![BTreeSet::new(); tree.len()];
        for (path, index) in &tree {
            self.siblings[*index] = children[&path[..path.len() - 1]].clone();
        }
    }
}

/// Cells that are given during a search, by partition then tree node.
struct Used<'a> {
    levels: &'a Levels,
    counts: Vec<u16>,
}

impl<'a> Used<'a> {
    fn new(levels: &'a Levels, partitions: u32) -> Self {
        Self { levels, counts: vec![0; levels.siblings.len() * partitions as usize] }
    }

    /// Counts of a partition, by tree node.
    fn of(&mut self, partition: Partition) -> &mut [u16] {
        let len = self.levels.siblings.len();
        &mut self.counts[partition as usize * len..][..len]
    }

    /// Gives cells to a node, unless some would be too close to each other.
    fn try_add(&mut self, candidate: usize, option: &[Partition]) -> bool {
        let levels = self.levels;
        let path = &levels.paths[candidate];
        for partition in option {
            let counts = self.of(*partition);
            for (&index, &(max, max_count)) in path.iter().zip(&levels.limits) {
                let count = counts[index];
                let at_max = || {
                    let siblings = levels.siblings[index].iter();
                    siblings.filter(|sibling| counts[**sibling] == max).count()
                };
                if count == max || (count + 1 == max && at_max() == max_count) {
                    return false;
                }
            }
        }
        self.add(candidate, option, |count| count + 1);
        true
    }

    fn remove(&mut self, candidate: usize, option: &[Partition]) {
        self.add(candidate, option, |count| count - 1);
    }

    fn add(&mut self, candidate: usize, option: &[Partition], change: impl Fn(u16) -> u16) {
        let levels = self.levels;
        for partition in option {
            let counts = self.of(*partition);
            for &index in &levels.paths[candidate] {
                counts[index] = change(counts[index]);
            }
        }
    }
}
