// SPDX-License-Identifier: GPL-2.0-or-later
//! What the native half logs goes to Python's `logging`, to the logger `neo`.
//!
//! Records are handed over by a thread of its own. Whoever logs may hold a lock that threads of the
//! application wait for, and must not wait for the interpreter.
// Not a core: it is called by any thread.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, TryLockError};
use std::thread;

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Records that wait. More are dropped: the application is busy, or is never going to look.
const QUEUE_LEN: usize = 1000;

/// Attempts to get the queue. In a child process, it may be locked for ever.
const ATTEMPTS: u32 = 1000;

struct Entry {
    level: Level,
    file: Option<String>,
    line: u32,
    message: String,
}

struct Queue {
    /// Process of the thread that hands over.
    process: u32,
    sender: SyncSender<Entry>,
}

struct ToPython {
    queue: Mutex<Option<Queue>>,
}

static LOGGER: ToPython = ToPython { queue: Mutex::new(None) };

/// From now on, records go to Python.
pub fn start() {
    // Another one may be there if an application in Rust embeds Python.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Which records are worth to be handed over. They are filtered by `logging` too.
pub fn set_level(debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
}

impl Log for ToPython {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("neo_") || metadata.target().starts_with("_native")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let entry = Entry {
            level: record.level(),
            file: record.file().map(String::from),
            line: record.line().unwrap_or(0),
            message: record.args().to_string(),
        };
        for _ in 0..ATTEMPTS {
            match self.queue.try_lock() {
                Ok(mut queue) => return send(&mut queue, entry),
                Err(TryLockError::Poisoned(error)) => return send(&mut error.into_inner(), entry),
                Err(TryLockError::WouldBlock) => thread::yield_now(),
            }
        }
    }

    fn flush(&self) {}
}

fn send(queue: &mut Option<Queue>, entry: Entry) {
    let process = std::process::id();
    // Threads do not survive a fork.
    if queue.as_ref().is_none_or(|queue| queue.process != process) {
        let (sender, receiver) = sync_channel(QUEUE_LEN);
        let thread = thread::Builder::new().name("neo-log".into());
        *queue = thread.spawn(move || hand_over(&receiver)).ok().map(|_| Queue { process, sender });
    }
    if let Some(queue) = queue {
        let _ = queue.sender.try_send(entry);
    }
}

fn hand_over(receiver: &Receiver<Entry>) {
    while let Ok(entry) = receiver.recv() {
        // `None`: the interpreter ends.
        let Some(result) = Python::try_attach(|py| tell(py, &entry)) else { return };
        if let Err(error) = result {
            Python::try_attach(|py| error.print(py));
        }
    }
}

/// Upstream's names of levels are those of `logging`.
fn tell(py: Python<'_>, entry: &Entry) -> PyResult<()> {
    let level = match entry.level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug | Level::Trace => 10,
    };
    let logger = py.import("logging")?.call_method1("getLogger", ("neo",))?;
    if !logger.call_method1("isEnabledFor", (level,))?.is_truthy()? {
        return Ok(());
    }
    let args = PyTuple::empty(py);
    let file = entry.file.as_deref().unwrap_or("neo");
    let exception: Option<Py<PyAny>> = None;
    let record = logger.call_method(
        "makeRecord",
        ("neo", level, file, entry.line, &entry.message, args, exception),
        None::<&Bound<'_, PyDict>>,
    )?;
    logger.call_method1("handle", (record,))?;
    Ok(())
}
