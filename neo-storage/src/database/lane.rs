// SPDX-License-Identifier: GPL-2.0-or-later
//! The threads that execute jobs.
//!
//! ```text
//!   reactor --submit--> [ bounded channel ] --> neo-write    one thread, group commit
//!           --submit--> [ bounded channel ] --> neo-read-N   any idle one takes the next jobs
//!           <--poll---- [ bounded channel ] <-- results, a batch at a time; then one wake-up
//!                                               neo-upkeep   checkpoints, beside the lanes
//! ```
//!
//! - The write lane takes what is queued, executes all of it in one transaction, reports what needs
//!   no commit, commits once, reports the rest. While it syncs, the next batch gathers.
//! - A read lane takes its share of what is queued, and executes small jobs in one snapshot.
//! - [`Lanes::submit`] never blocks and never drops: beyond the capacity of a channel, jobs wait in
//!   the reactor's hands, and [`Lanes::is_congested`] tells it to stop reading from clients. A full
//!   channel of results makes lanes wait for the reactor.
//! - A failure or a panic in a thread ends the process: what was promised is on disk, and a restart
//!   is safe; going on is not.

// A driver: it has threads and waits.
#![allow(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select};
use neo_common::logging::NodeName;

use super::execute::execute_read;
use super::executor::{Reports, Writer};
use super::job::{Done, Job, LaneKind, Read};
use super::{Database, Error, Maintenance, Reader, Work};

/// Jobs that a channel holds. Beyond, the lanes are congested.
pub const QUEUE_LEN: usize = 1024;

/// Jobs that the write lane executes before it commits.
const WRITE_BATCH_LEN_MAX: usize = 512;

/// Small jobs that a read lane executes before it reports.
const READ_BATCH_LEN_MAX: usize = 64;

/// Results that may wait for the reactor, in batches.
const RESULTS_LEN: usize = 1024;

/// Time between two slices of what a database does on its own, if there are always jobs: it goes on,
/// and jobs go first most of the time.
const WORK_PERIOD: Duration = Duration::from_millis(20);

/// How long what a database does on its own is gathered in one transaction. Jobs that are durable
/// wait for what it wrote.
const WORK_COMMIT_DELAY: Duration = Duration::from_millis(100);

/// How often a database is asked whether it is ready to do something on its own.
const WORK_POLL_PERIOD: Duration = Duration::from_millis(1);

/// Pause between two rounds of upkeep.
const UPKEEP_PERIOD: Duration = Duration::from_millis(100);

/// How often the end of threads is looked at.
const STOP_PERIOD: Duration = Duration::from_millis(1);

/// Wakes the reactor up: there are results. Called once until they are polled.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// Told that a lane can not go on.
pub type OnFailure = Arc<dyn Fn(&Error) + Send + Sync>;

/// How to start [`Lanes`].
#[derive(Clone)]
pub struct Options {
    /// Number of read lanes; 0 is the number of cores, at least 2.
    pub read_lanes: usize,
    /// Wakes the reactor up.
    pub notify: Notify,
    /// What to do if the database fails. By default, [`exit_on_failure`].
    pub on_failure: OnFailure,
}

impl Options {
    /// The default options, with a waker.
    pub fn new(notify: Notify) -> Self {
        Self { read_lanes: 0, notify, on_failure: Arc::new(exit_on_failure) }
    }
}

/// Says what failed and ends the process.
pub fn exit_on_failure(error: &Error) {
    match log::log_enabled!(log::Level::Error) {
        true => log::error!("{error}"),
        false => eprintln!("{error}"),
    }
    std::process::exit(1);
}

/// Handle on the threads. `I` is what the caller calls a job by.
pub struct Lanes<I> {
    write: Queue<I, Job>,
    read: Queue<I, Read>,
    results: Receiver<Reports<I>>,
    /// Results of a batch that is being polled.
    ready: std::vec::IntoIter<(I, Done)>,
    /// Whether the reactor was told that there are results.
    is_notified: Arc<AtomicBool>,
    in_flight: usize,
    writer: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
    /// Its end stops the upkeep.
    upkeep: Option<Sender<()>>,
}

/// A bounded channel, and the jobs that it has no room for.
struct Queue<I, J> {
    /// `None` once closed.
    sender: Option<Sender<(I, J)>>,
    overflow: VecDeque<(I, J)>,
}

impl<I, J> Queue<I, J> {
    fn submit(&mut self, id: I, job: J) {
        self.overflow.push_back((id, job));
        self.flush();
    }

    fn flush(&mut self) {
        let Some(sender) = &self.sender else { return };
        while let Some(job) = self.overflow.pop_front() {
            match sender.try_send(job) {
                Ok(()) => {}
                // If the lane is gone, the process is ending.
                Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                    self.overflow.push_front(job);
                    return;
                }
            }
        }
    }

    /// The lane ends once it has done what is in the channel.
    fn close(&mut self) {
        self.sender = None;
    }
}

impl<I: Send + 'static> Lanes<I> {
    /// Starts the threads.
    pub fn start(db: Box<dyn Database>, options: &Options) -> Result<Self, Error> {
        let read_lanes = match options.read_lanes {
            0 => thread::available_parallelism().map_or(2, |cores| cores.get().max(2)),
            count => count,
        };
        let (results_sender, results) = bounded(RESULTS_LEN);
        let is_notified = Arc::new(AtomicBool::new(false));
        let reporter = Reporter {
            results: results_sender,
            is_notified: is_notified.clone(),
            notify: options.notify.clone(),
            on_failure: options.on_failure.clone(),
        };
        let mut others = Vec::new();
        let (read_sender, reads) = bounded(QUEUE_LEN);
        for index in 0..read_lanes {
            let reader = db.reader()?;
            let lane =
                ReadLane { reader, jobs: reads.clone(), read_lanes, reporter: reporter.clone() };
            others.push(spawn(format!("neo-read-{index}"), move || lane.run())?);
        }
        let (upkeep, upkeep_end) = bounded(0);
        let (due_sender, due) = bounded(1);
        if let Some(maintenance) = db.maintenance()? {
            let reporter = reporter.clone();
            let run = move || keep_up(maintenance, &due, &upkeep_end, &reporter);
            others.push(spawn("neo-upkeep".into(), run)?);
        }
        let (write_sender, writes) = bounded(QUEUE_LEN);
        let lane = WriteLane {
            writer: Writer::new(db),
            jobs: writes,
            upkeep_due: due_sender,
            deadline: None,
            worked_at: None,
            reporter,
        };
        let writer = spawn("neo-write".into(), move || lane.run())?;
        Ok(Self {
            write: Queue { sender: Some(write_sender), overflow: VecDeque::new() },
            read: Queue { sender: Some(read_sender), overflow: VecDeque::new() },
            results,
            ready: Vec::new().into_iter(),
            is_notified,
            in_flight: 0,
            writer,
            others,
            upkeep: Some(upkeep),
        })
    }

    /// Hands over a job. It never blocks.
    pub fn submit(&mut self, id: I, job: Job) {
        self.in_flight += 1;
        match (job.lane(), job) {
            (LaneKind::Read, Job::Read(read)) => self.read.submit(id, read),
            (_, job) => self.write.submit(id, job),
        }
    }

    /// Next result, if any. To be called until there is none, after each wake-up.
    pub fn poll(&mut self) -> Option<(I, Done)> {
        self.write.flush();
        self.read.flush();
        let report = match self.ready.next() {
            Some(report) => Some(report),
            None => {
                self.ready = self.next_batch().unwrap_or_default().into_iter();
                self.ready.next()
            }
        };
        self.in_flight -= usize::from(report.is_some());
        report
    }

    fn next_batch(&mut self) -> Option<Reports<I>> {
        if let Ok(batch) = self.results.try_recv() {
            return Some(batch);
        }
        // A lane that sent its batch and found the flag set did so before this store, so that the
        // batch is seen now; otherwise it wakes us up again.
        self.is_notified.store(false, Ordering::SeqCst);
        self.results.try_recv().ok()
    }

    /// Waits for a result, for programs without a reactor. `None` once `timeout` has passed.
    pub fn wait(&mut self, timeout: Duration) -> Option<(I, Done)> {
        if let Some(report) = self.poll() {
            return Some(report);
        }
        let deadline = Instant::now() + timeout;
        while self.in_flight != 0 {
            match self.results.recv_deadline(deadline) {
                Ok(batch) => self.ready = batch.into_iter(),
                Err(_) => return None,
            }
            if let Some(report) = self.poll() {
                return Some(report);
            }
        }
        None
    }

    /// Jobs that are submitted and not polled yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Executes all that was submitted, commits it, ends the threads and closes the database.
    /// Returns the results that were not polled.
    pub fn stop(mut self) -> Reports<I> {
        self.finish()
    }
}

impl<I> Lanes<I> {
    /// See [`Self::stop`]. Nothing can be submitted any more.
    fn finish(&mut self) -> Reports<I> {
        let mut reports: Reports<I> = std::mem::take(&mut self.ready).collect();
        while self.is_congested() && !self.writer.is_finished() {
            self.write.flush();
            self.read.flush();
            self.wait_for_threads(&mut reports);
        }
        // The writer ends last: the last connection to a file cleans up, and others can not.
        self.read.close();
        self.upkeep = None;
        while self.others.iter().any(|thread| !thread.is_finished()) {
            self.wait_for_threads(&mut reports);
        }
        self.write.close();
        while !self.writer.is_finished() {
            self.wait_for_threads(&mut reports);
        }
        // All threads that send are gone.
        reports.extend(self.results.try_iter().flatten());
        reports
    }

    /// Gives time to the threads, and room for their results.
    fn wait_for_threads(&self, reports: &mut Reports<I>) {
        match self.results.recv_timeout(STOP_PERIOD) {
            Ok(batch) => reports.extend(batch),
            Err(RecvTimeoutError::Timeout) => {}
            // The last one is about to end.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(STOP_PERIOD),
        }
    }

    /// Whether the source of jobs should be slowed down.
    pub fn is_congested(&self) -> bool {
        !self.write.overflow.is_empty() || !self.read.overflow.is_empty()
    }
}

/// Like [`Lanes::stop`]: a database is never left behind by a program that goes on.
impl<I> Drop for Lanes<I> {
    fn drop(&mut self) {
        self.finish();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let node = NodeName::current();
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        let _guard = PanicGuard;
        node.set();
        run();
    });
    thread.map_err(|cause| Error::Backend(format!("start of thread {name}"), Box::new(cause)))
}

/// Ends the process when its thread panics (in release mode, the panic does).
struct PanicGuard;

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("a database thread panicked: the process ends");
            std::process::abort();
        }
    }
}

/// The way back to the reactor.
struct Reporter<I> {
    results: Sender<Reports<I>>,
    is_notified: Arc<AtomicBool>,
    notify: Notify,
    on_failure: OnFailure,
}

impl<I> Reporter<I> {
    fn send(&self, reports: Reports<I>) {
        if reports.is_empty() || self.results.send(reports).is_err() {
            return;
        }
        if !self.is_notified.swap(true, Ordering::SeqCst) {
            (self.notify)();
        }
    }

    fn fail(&self, error: &Error) {
        (self.on_failure)(error);
        // Only tests go on: so that they see it.
        if !self.is_notified.swap(true, Ordering::SeqCst) {
            (self.notify)();
        }
    }
}

impl<I> Clone for Reporter<I> {
    fn clone(&self) -> Self {
        Self {
            results: self.results.clone(),
            is_notified: self.is_notified.clone(),
            notify: self.notify.clone(),
            on_failure: self.on_failure.clone(),
        }
    }
}

struct WriteLane<I> {
    writer: Writer<I>,
    jobs: Receiver<(I, Job)>,
    upkeep_due: Sender<()>,
    /// When the next commit is due.
    deadline: Option<Instant>,
    /// When the database did something on its own.
    worked_at: Option<Instant>,
    reporter: Reporter<I>,
}

impl<I> WriteLane<I> {
    fn run(mut self) {
        loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.reporter.fail(&error),
            }
        }
    }

    /// Executes a batch, or commits what is due, or lets the database do what it has to do on its
    /// own. `false` at the end.
    fn step(&mut self) -> Result<bool, Error> {
        let work = self.writer.work()?;
        let is_late = || self.worked_at.is_none_or(|at| at.elapsed() >= WORK_PERIOD);
        if work == Work::Now && (self.jobs.is_empty() || is_late()) {
            self.do_work()?;
        }
        let wait_until = match work {
            Work::None => self.deadline,
            Work::Later => {
                let soon = Instant::now() + WORK_POLL_PERIOD;
                Some(self.deadline.map_or(soon, |deadline| deadline.min(soon)))
            }
            Work::Now => Some(Instant::now()),
        };
        let first = match wait_until {
            Some(deadline) => self.jobs.recv_deadline(deadline),
            None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(first) => {
                let rest = self.jobs.try_iter().take(WRITE_BATCH_LEN_MAX - 1);
                let mut reports = Vec::new();
                self.writer.execute([first].into_iter().chain(rest), &mut reports)?;
                self.reporter.send(reports);
                match self.writer.commit_delay() {
                    Some(Duration::ZERO) => self.commit()?,
                    Some(delay) => self.commit_within(delay),
                    None => {}
                }
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => {
                if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    self.commit()?;
                }
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.commit()?;
                Ok(false)
            }
        }
    }

    fn do_work(&mut self) -> Result<(), Error> {
        self.writer.do_work()?;
        self.worked_at = Some(Instant::now());
        self.commit_within(WORK_COMMIT_DELAY);
        Ok(())
    }

    fn commit_within(&mut self, delay: Duration) {
        let deadline = Instant::now() + delay;
        self.deadline = Some(self.deadline.unwrap_or(deadline).min(deadline));
    }

    fn commit(&mut self) -> Result<(), Error> {
        let mut reports = Vec::new();
        self.writer.commit(&mut reports)?;
        self.deadline = None;
        self.reporter.send(reports);
        // Full: it is due already. Disconnected: this backend needs none.
        let _ = self.upkeep_due.try_send(());
        Ok(())
    }
}

struct ReadLane<I> {
    reader: Box<dyn Reader>,
    jobs: Receiver<(I, Read)>,
    read_lanes: usize,
    reporter: Reporter<I>,
}

impl<I> ReadLane<I> {
    fn run(mut self) {
        while let Ok(first) = self.jobs.recv() {
            if let Err(error) = self.step(first) {
                return self.reporter.fail(&error);
            }
        }
    }

    /// Executes a batch: small jobs together, then at most one that is not.
    fn step(&mut self, first: (I, Read)) -> Result<(), Error> {
        // A share of what is queued: the others are for the other lanes.
        let share = (self.jobs.len() / self.read_lanes).min(READ_BATCH_LEN_MAX - 1);
        let mut small = Vec::with_capacity(share + 1);
        let mut big = None;
        for (id, read) in [first].into_iter().chain(self.jobs.try_iter().take(share)) {
            match read.is_small() {
                true => small.push((id, read)),
                // The iterator is lazy: what follows stays in the channel.
                false => {
                    big = Some((id, read));
                    break;
                }
            }
        }
        let has_snapshot = small.len() > 1;
        if has_snapshot {
            self.reader.open_snapshot()?;
        }
        let mut reports = Vec::with_capacity(small.len());
        for (id, read) in small {
            reports.push((id, execute_read(self.reader.as_mut(), read)?));
        }
        if has_snapshot {
            self.reader.close_snapshot()?;
        }
        self.reporter.send(reports);
        if let Some((id, read)) = big {
            let done = execute_read(self.reader.as_mut(), read)?;
            self.reporter.send(vec![(id, done)]);
        }
        Ok(())
    }
}

/// Runs upkeep after commits, with a pause in between, until `end` is disconnected.
fn keep_up<I>(
    mut maintenance: Box<dyn Maintenance>,
    due: &Receiver<()>,
    end: &Receiver<()>,
    reporter: &Reporter<I>,
) {
    loop {
        select! {
            recv(due) -> due => if due.is_err() { return },
            recv(end) -> _ => return,
        }
        if let Err(error) = maintenance.run() {
            return reporter.fail(&error);
        }
        match end.recv_timeout(UPKEEP_PERIOD) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}
