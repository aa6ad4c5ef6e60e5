// SPDX-License-Identifier: GPL-2.0-or-later
//! What stands for the database lanes of a storage: the same group commit as in production, on the
//! memory backend, with the times and failures of a disk.
//!
//! ```text
//!   write lane   idle --job--> executing --> committing (durable) --------> idle, reported
//!                                  ^  \--> deferred (up to a second) --^
//!                                  +---- job ----+
//!   read lanes   each job is executed at some time, and reported at some later time
//! ```
//!
//! A commit takes time at the end of which it happens, or not if the process dies meanwhile. Read
//! lanes overtake each other, sometimes by seconds: a thread may have to wait for a page, or for its turn,
//! while others go on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use neo_common::engine::{CallId, JobId};
use neo_common::prng::Prng;
use neo_storage::database::executor::{Executor as Lanes, Reports};
use neo_storage::database::job::{Job as DatabaseJob, LaneKind};
use neo_storage::database::memory::{Disk, Memory, Options};
use neo_storage::database::{Database, Error, Write};
use neo_storage::{Done, Job, Storage, Stored};

use crate::process::{Executor, Failed};

/// How fast a disk is, and how often it fails.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Least time of anything, in microseconds.
    pub min_us: u64,
    /// Most, in the usual case.
    pub max_us: u64,
    /// One commit out of so many takes up to 100 times longer; 0: never.
    pub stall_one_in: u64,
    /// One commit out of so many fails; 0: never.
    pub fail_one_in: u64,
    /// The result of one read out of so many comes late, by up to some seconds; 0: never.
    pub late_one_in: u64,
    /// Most time of a slice of a background task: packs of large databases take hours.
    pub slice_max_us: u64,
    /// Nothing can be written.
    pub is_full: bool,
}

/// How late the result of a read may come, in microseconds.
const LATE_MAX_US: usize = 5_000_000;

/// How long a commit takes at most: a slow disk that also stalls would not be back in time after all faults.
const STALL_MAX: Duration = Duration::from_secs(20);

impl Pace {
    /// A good disk.
    pub const FINE: Self = Self {
        min_us: 30,
        max_us: 600,
        stall_one_in: 0,
        fail_one_in: 0,
        late_one_in: 0,
        slice_max_us: 0,
        is_full: false,
    };

    fn time(&self, prng: &mut Prng) -> Duration {
        let spread = (self.max_us - self.min_us) as usize + 1;
        Duration::from_micros(self.min_us + prng.below(spread) as u64)
    }

    /// How long it takes until the result of a read is known.
    fn report_time(&self, prng: &mut Prng) -> Duration {
        let time = self.time(prng);
        if self.late_one_in != 0 && prng.one_in(self.late_one_in) {
            // In half of the cases, long enough for the service to be interrupted and resumed.
            let max_us = if prng.one_in(2) { LATE_MAX_US } else { 1 << prng.below(20) };
            return time + Duration::from_micros(prng.below(max_us) as u64);
        }
        time
    }

    fn commit_time(&self, prng: &mut Prng) -> Duration {
        let time = self.time(prng);
        if self.stall_one_in != 0 && prng.one_in(self.stall_one_in) {
            return STALL_MAX.min(time * (1 + prng.below(100) as u32));
        }
        time
    }
}

/// What the write lane is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WriteLane {
    Idle,
    /// Executes what is queued then.
    Executing(Duration),
    /// What is executed is committed then, unless something comes that is urgent.
    Deferred(Duration),
    /// Committed then.
    Committing(Duration),
}

/// The database lanes of a simulated storage.
pub struct DiskLanes {
    lanes: Lanes<JobId>,
    /// Of everything that is random here.
    prng: Prng,
    /// How fast it is.
    pub pace: Pace,
    /// Writes that are queued, and whether each is a slice of a background task.
    queued: VecDeque<bool>,
    write: WriteLane,
    /// What is executed is committed then at the latest.
    deadline: Option<Duration>,
    /// When the reads that are queued are executed, oldest first.
    reads_at: VecDeque<Duration>,
    /// What is done, and when it is reported.
    done: BTreeMap<(Duration, u64), (JobId, Done)>,
    sequence: u64,
    /// Nothing is executed before: connections to the database are lost.
    lost_until: Duration,
    /// The database is not found again: the process ends then.
    fails_at: Option<Duration>,
}

/// How long a database that was lost is waited for (as the MySQL backend does).
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Opens the database of a storage: what it says, and its lanes.
///
/// # Errors
/// Those of the database.
pub fn open(
    disk: &Disk,
    cluster: &str,
    options: Options,
    pace: Pace,
    prng: Prng,
) -> Result<(Stored, DiskLanes), Error> {
    let mut database = Memory::open(disk, cluster, options)?;
    let reader = database.latest();
    let stored = Stored { config: reader.config()?, cells: reader.partition_table()? };
    let lanes = DiskLanes {
        lanes: Lanes::new(Box::new(database))?,
        prng,
        pace,
        queued: VecDeque::new(),
        write: WriteLane::Idle,
        deadline: None,
        reads_at: VecDeque::new(),
        done: BTreeMap::new(),
        sequence: 0,
        lost_until: Duration::ZERO,
        fails_at: None,
    };
    Ok((stored, lanes))
}

impl DiskLanes {
    /// The process dies now: a commit that is on its way may happen, or not.
    pub fn die(&mut self) {
        if matches!(self.write, WriteLane::Committing(_)) && self.prng.one_in(2) {
            // If it fails, it does not happen.
            let _ = self.lanes.commit();
        }
    }

    /// Connections to the database are lost until then. A transaction that is not committed is lost
    /// with them: the process ends.
    pub fn lose(&mut self, now: Duration, until: Duration) {
        let is_open = self.lanes.commit_delay().is_some();
        self.fails_at = match is_open {
            true => Some(now),
            false => (until > now + RECONNECT_MAX).then_some(now + RECONNECT_MAX),
        };
        self.lost_until = until;
        if let WriteLane::Executing(at) = self.write {
            self.write = WriteLane::Executing(at.max(until));
        }
        for at in &mut self.reads_at {
            *at = (*at).max(until);
        }
    }

    /// The database, to look at it.
    pub fn database(&mut self) -> &mut dyn Database {
        self.lanes.database()
    }

    /// Whether everything that was submitted is done and committed.
    pub fn is_idle(&self) -> bool {
        self.write == WriteLane::Idle && self.reads_at.is_empty() && self.done.is_empty()
    }

    fn report(&mut self, at: Duration, reports: Reports<JobId>) {
        for (id, done) in reports {
            self.done.insert((at, self.sequence), (id, Done::Database(done)));
            self.sequence += 1;
        }
    }

    fn work_on_writes(&mut self, now: Duration) -> Result<(), Failed> {
        match self.write {
            WriteLane::Executing(at) if at <= now => {
                if self.pace.is_full {
                    return Err(Failed);
                }
                // Not everything that is queued may have been seen.
                let count = match self.prng.one_in(4) {
                    true => 1 + self.prng.below(self.queued.len()),
                    false => self.queued.len(),
                };
                self.queued.drain(..count);
                let reports = self.lanes.write(count).map_err(failed)?;
                self.report(now, reports);
                let pace = self.pace;
                self.write = match self.lanes.commit_delay() {
                    None => WriteLane::Idle,
                    Some(Duration::ZERO) => {
                        WriteLane::Committing(now + pace.commit_time(&mut self.prng))
                    }
                    Some(delay) => {
                        let at = now + delay;
                        let at = self.deadline.map_or(at, |deadline| deadline.min(at));
                        self.deadline = Some(at);
                        WriteLane::Deferred(at)
                    }
                };
            }
            WriteLane::Deferred(at) if at <= now => {
                let time = self.pace.commit_time(&mut self.prng);
                self.write = WriteLane::Committing(now + time);
            }
            WriteLane::Committing(at) if at <= now => {
                if self.pace.fail_one_in != 0 && self.prng.one_in(self.pace.fail_one_in) {
                    // Whether a commit that fails happened is not known.
                    self.die();
                    return Err(Failed);
                }
                let reports = self.lanes.commit().map_err(failed)?;
                self.report(now, reports);
                self.deadline = None;
                self.write = WriteLane::Idle;
            }
            _ => return Ok(()),
        }
        self.begin_writes(now);
        Ok(())
    }

    /// Begins to execute what is queued, if the lane is free.
    fn begin_writes(&mut self, now: Duration) {
        if !self.queued.is_empty() && matches!(self.write, WriteLane::Idle | WriteLane::Deferred(_))
        {
            let mut time = self.pace.time(&mut self.prng);
            if self.pace.slice_max_us != 0 && self.queued.contains(&true) {
                time +=
                    Duration::from_micros(self.prng.below(self.pace.slice_max_us as usize) as u64);
            }
            let at = (now + time).max(self.lost_until);
            self.write = WriteLane::Executing(at);
        }
    }
}

/// Whether this is a slice of a task that takes long in a large database.
fn is_slice(job: &DatabaseJob) -> bool {
    matches!(
        job,
        DatabaseJob::Write(
            Write::Pack { .. }
                | Write::MarkPacked { .. }
                | Write::DropPartition { .. }
                | Write::PruneOrphans { .. }
        )
    )
}

fn failed(error: Error) -> Failed {
    log::error!("{error}");
    Failed
}

impl Executor<Storage> for DiskLanes {
    fn submit(&mut self, id: JobId, job: Job, now: Duration) {
        let job = match job {
            Job::Database(job) => job,
            Job::SaveMasters(_) => {
                self.done.insert((now, self.sequence), (id, Done::MastersSaved(Ok(()))));
                self.sequence += 1;
                return;
            }
        };
        match job.lane() {
            LaneKind::Write => {
                self.queued.push_back(is_slice(&job));
                self.lanes.submit(id, job);
                self.begin_writes(now);
            }
            LaneKind::Read => {
                let at = (now + self.pace.time(&mut self.prng)).max(self.lost_until);
                let at = self.reads_at.back().map_or(at, |last| at.max(*last));
                self.reads_at.push_back(at);
                self.lanes.submit(id, job);
            }
        }
    }

    fn work_at(&self) -> Option<Duration> {
        let write_at = match self.write {
            WriteLane::Idle => None,
            WriteLane::Executing(at) | WriteLane::Deferred(at) | WriteLane::Committing(at) => {
                Some(at)
            }
        };
        let done_at = self.done.first_key_value().map(|((at, _), _)| *at);
        let times = [write_at, self.reads_at.front().copied(), done_at, self.fails_at];
        times.into_iter().flatten().min()
    }

    fn work(&mut self, now: Duration) -> Result<Vec<(JobId, Done)>, Failed> {
        if self.fails_at.is_some_and(|at| at <= now) {
            // A commit that is on its way may happen.
            self.die();
            return Err(Failed);
        }
        while self.reads_at.front().is_some_and(|at| *at <= now) {
            self.reads_at.pop_front();
            if let Some(report) = self.lanes.read().map_err(failed)? {
                let at = now + self.pace.report_time(&mut self.prng);
                self.report(at, vec![report]);
            }
        }
        self.work_on_writes(now)?;
        let mut reports = Vec::new();
        while let Some(entry) = self.done.first_entry().filter(|entry| entry.key().0 <= now) {
            reports.push(entry.remove());
        }
        Ok(reports)
    }

    fn reply(&mut self, _: CallId, reply: std::convert::Infallible) {
        match reply {}
    }
}
