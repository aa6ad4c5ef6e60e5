// SPDX-License-Identifier: GPL-2.0-or-later
//! Group commit, and execution of jobs without any thread.
//!
//! [`Writer`] is what the write lane runs: it executes a batch of jobs in one database transaction,
//! commits at most once, and says what may be reported when. [`Executor`] is the single-threaded
//! driver of the simulator and of tests: the same writer, and a reader that only sees what is
//! committed.

use std::collections::VecDeque;
use std::time::Duration;

use neo_common::limits::DEFERRED_COMMIT_DELAY;

use super::execute::{execute, execute_read};
use super::job::{Done, Durability, Job, LaneKind};
use super::{CommitLevel, Database, Error, Reader, Work};

/// Results, with what the caller calls jobs by.
pub type Reports<I> = Vec<(I, Done)>;

/// Executes jobs of the write lane.
pub struct Writer<I> {
    db: Box<dyn Database>,
    /// Executed, to be reported once committed.
    waiting: Reports<I>,
    /// Whether one of them must be durable.
    is_urgent: bool,
    /// Whether something is not committed.
    is_dirty: bool,
}

impl<I> Writer<I> {
    /// A writer with nothing in progress.
    pub fn new(db: Box<dyn Database>) -> Self {
        Self { db, waiting: Vec::new(), is_urgent: false, is_dirty: false }
    }

    /// Executes jobs in order, in one transaction. Results that need no commit are appended to
    /// `reports`. Then see [`Self::commit_delay`].
    pub fn execute(
        &mut self,
        jobs: impl IntoIterator<Item = (I, Job)>,
        reports: &mut Reports<I>,
    ) -> Result<(), Error> {
        let jobs: Vec<_> = jobs.into_iter().collect();
        let is_urgent = jobs.iter().any(|(_, job)| job.durability() == Durability::Durable);
        if jobs.iter().any(|(_, job)| matches!(job, Job::Write(_))) {
            // If a transaction is open that is not going to be durable, this ends it. What waits for
            // that is reported after the next commit, which comes soon.
            self.db.begin(if is_urgent { CommitLevel::Durable } else { CommitLevel::Visible })?;
            self.is_dirty = true;
        }
        self.is_urgent |= is_urgent;
        for (id, job) in jobs {
            let durability = job.durability();
            let done = execute(self.db.as_mut(), job)?;
            match durability {
                Durability::Executed => reports.push((id, done)),
                Durability::Visible | Durability::Durable => self.waiting.push((id, done)),
            }
        }
        Ok(())
    }

    /// How long the next commit may wait for other jobs to go with; `None` if there is nothing to
    /// commit.
    pub fn commit_delay(&self) -> Option<Duration> {
        if self.is_urgent {
            Some(Duration::ZERO)
        } else if !self.waiting.is_empty() {
            Some(self.db.visible_delay())
        } else {
            self.is_dirty.then_some(DEFERRED_COMMIT_DELAY)
        }
    }

    /// Whether the database has something to do on its own.
    pub fn work(&mut self) -> Result<Work, Error> {
        self.db.work()
    }

    /// Does a slice of it. It needs no durability: what is lost is done again.
    pub fn do_work(&mut self) -> Result<(), Error> {
        self.db.begin(CommitLevel::Visible)?;
        self.is_dirty = true;
        self.db.do_work()
    }

    /// Commits what is executed. What waited for it is appended to `reports`.
    pub fn commit(&mut self, reports: &mut Reports<I>) -> Result<(), Error> {
        self.db.commit()?;
        self.is_dirty = false;
        self.is_urgent = false;
        reports.append(&mut self.waiting);
        Ok(())
    }

    /// The database: to open readers, or to look at it.
    pub fn database(&mut self) -> &mut dyn Database {
        self.db.as_mut()
    }
}

/// Executes jobs when told to. Dropping it is a crash of the process: what is not committed is lost.
pub struct Executor<I> {
    // Dropped before the writer: the last connection to a file cleans up.
    reader: Box<dyn Reader>,
    writer: Writer<I>,
    writes: VecDeque<(I, Job)>,
    reads: VecDeque<(I, Job)>,
}

impl<I> Executor<I> {
    /// An executor with nothing to do.
    pub fn new(db: Box<dyn Database>) -> Result<Self, Error> {
        let reader = db.reader()?;
        Ok(Self {
            writer: Writer::new(db),
            reader,
            writes: VecDeque::new(),
            reads: VecDeque::new(),
        })
    }

    /// Queues a job for its lane.
    pub fn submit(&mut self, id: I, job: Job) {
        match job.lane() {
            LaneKind::Write => self.writes.push_back((id, job)),
            LaneKind::Read => self.reads.push_back((id, job)),
        }
    }

    /// Executes the oldest read that is queued, if any.
    pub fn read(&mut self) -> Result<Option<(I, Done)>, Error> {
        let Some((id, job)) = self.reads.pop_front() else { return Ok(None) };
        let (Job::Read(read) | Job::ReadLatest(read)) = job else {
            unreachable!("writes have their own queue")
        };
        Ok(Some((id, execute_read(self.reader.as_mut(), read)?)))
    }

    /// Executes up to `jobs_max` jobs of the write lane. Results that need a commit are kept.
    pub fn write(&mut self, jobs_max: usize) -> Result<Reports<I>, Error> {
        let count = jobs_max.min(self.writes.len());
        let mut reports = Vec::new();
        self.writer.execute(self.writes.drain(..count), &mut reports)?;
        Ok(reports)
    }

    /// See [`Writer::commit_delay`].
    pub fn commit_delay(&self) -> Option<Duration> {
        self.writer.commit_delay()
    }

    /// Commits, and returns the results that waited for it.
    pub fn commit(&mut self) -> Result<Reports<I>, Error> {
        let mut reports = Vec::new();
        self.writer.commit(&mut reports)?;
        Ok(reports)
    }

    /// Does everything that is queued: writes first, one commit, then reads.
    pub fn run(&mut self) -> Result<Reports<I>, Error> {
        let mut reports = self.write(usize::MAX)?;
        reports.extend(self.commit()?);
        while let Some(report) = self.read()? {
            reports.push(report);
        }
        Ok(reports)
    }

    /// Does a slice of what the database has to do on its own, if it is ready. It is not committed.
    pub fn work(&mut self) -> Result<Work, Error> {
        let work = self.writer.work()?;
        if work == Work::Now {
            self.writer.do_work()?;
        }
        Ok(work)
    }

    /// The database, to look at it.
    pub fn database(&mut self) -> &mut dyn Database {
        self.writer.database()
    }
}
