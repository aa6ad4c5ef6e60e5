// SPDX-License-Identifier: GPL-2.0-or-later
//! Background tasks other than packs: dropping the data of partitions that left this node, and
//! pruning orphan data. Upstream: storage/database/manager.py, `BackgroundWorker`.
//!
//! A task is done in slices, one at a time: the next one is submitted when the previous is done. So
//! a client waits behind one slice at most, and [`Pace`] keeps slices short.

use std::time::Duration;

use neo_common::engine::Io;
use neo_common::types::Partition;

use crate::app::{Shared, Storage, done};
use crate::database::{DataId, Done, Write};
use crate::limits::{SLICE_ROWS, SLICE_ROWS_MAX, SLICE_ROWS_MIN, SLICE_TIME};
use crate::operation::{OperationAfter, write_for};

/// What to do when a slice is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackgroundAfter {
    /// Go on with this partition, or the next one.
    Dropped(Partition),
    /// Go on.
    Pruned,
}

/// Size of slices, from the time that they take, waiting for clients included.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rows: u32,
    started_at: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows: SLICE_ROWS, started_at: Duration::ZERO }
    }
}

impl Pace {
    /// Begins a slice; number of rows.
    pub fn start(&mut self, io: &Io<'_, Storage>) -> u32 {
        self.started_at = io.now().monotonic;
        self.rows
    }
    /// The slice is done.
    pub fn end(&mut self, io: &Io<'_, Storage>) {
        let elapsed = io.now().monotonic.saturating_sub(self.started_at);
        self.rows = match elapsed {
            elapsed if elapsed > SLICE_TIME * 2 => self.rows / 2,
            elapsed if elapsed < SLICE_TIME / 2 => self.rows.saturating_mul(2),
            _ => self.rows,
        }
        .clamp(SLICE_ROWS_MIN, SLICE_ROWS_MAX);
    }
}

/// A search for orphan data.
#[derive(Clone, Copy, Debug)]
struct Orphans {
    dry_run: bool,
    after: Option<DataId>,
    found: u64,
    deleted: u64,
}

/// State of background tasks.
#[derive(Debug, Default)]
pub struct Background {
    orphans: Option<Orphans>,
    is_busy: bool,
    /// Revisions and transactions of dropped partitions that were deleted.
    deleted: u64,
    pace: Pace,
}

impl Background {
    /// Searches for orphan data, and prunes it unless `dry_run`.
    pub fn prune_orphans(&mut self, dry_run: bool) {
        if self.orphans.is_some() {
            log::error!("already repairing");
            return;
        }
        log::info!("searching for orphan records...");
        self.orphans = Some(Orphans { dry_run, after: None, found: 0, deleted: 0 });
    }

    /// Begins the next slice, if none is in progress.
    pub fn poll(&mut self, shared: &Shared, io: &mut Io<'_, Storage>) {
        if self.is_busy {
            return;
        }
        let rows_max = self.pace.start(io);
        let (job, after) = if let Some(partition) = shared.to_drop.first().copied() {
            (Write::DropPartition { partition, rows_max }, BackgroundAfter::Dropped(partition))
        } else if let Some(Orphans { dry_run, after, .. }) = self.orphans {
            (Write::PruneOrphans { after, rows_max, dry_run }, BackgroundAfter::Pruned)
        } else {
            return;
        };
        self.is_busy = true;
        write_for(shared, io, job, OperationAfter::Background(after));
    }

    /// A slice is done.
    pub(crate) fn job_done(
        &mut self,
        shared: &mut Shared,
        io: &mut Io<'_, Storage>,
        after: BackgroundAfter,
        done: Done,
    ) {
        self.is_busy = false;
        self.pace.end(io);
        match after {
            BackgroundAfter::Dropped(partition) => {
                let progress = done!(done, Progress);
                self.deleted += progress.deleted;
                // If it came back meanwhile, what remains is replicated or deleted by replication.
                if progress.done && shared.to_drop.remove(&partition) {
                    // Most often there was nothing: the whole table is received at each start.
                    if self.deleted != 0 {
                        log::info!("dropped partition={partition} rows={}", self.deleted);
                    }
                    self.deleted = 0;
                }
            }
            BackgroundAfter::Pruned => {
                let progress = done!(done, Orphans);
                if let Some(orphans) = &mut self.orphans {
                    orphans.found += progress.found;
                    orphans.deleted += progress.deleted;
                    orphans.after = progress.after;
                    if progress.after.is_none() {
                        let Orphans { found, deleted, .. } = *orphans;
                        log::info!("found {found} orphan records, deleted {deleted}");
                        self.orphans = None;
                    }
                }
            }
        }
        self.poll(shared, io);
    }
}
