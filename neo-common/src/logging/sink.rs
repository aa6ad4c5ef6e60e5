// SPDX-License-Identifier: GPL-2.0-or-later
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]
// A driver: it reads the clock, and all threads share the log file.
//! Where lines go: standard error, through env_logger, and a file.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::recent::Recent;
use super::{PACKETS, local_time, write_line};
use crate::config::{DaemonOptions, Exit};

/// Name in the lines, if there is no other one.
pub const DEFAULT_NAME: &str = "NEO";

/// What is logged where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Name in the lines.
    pub name: String,
    /// Level of standard error; the variable `RUST_LOG` wins.
    pub level: LevelFilter,
    /// A file to append to.
    pub file: Option<PathBuf>,
    /// Level of the file.
    pub file_level: LevelFilter,
}

impl Default for LogOptions {
    /// Warnings and errors on standard error; what changes in the file, if one is added.
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.into(),
            level: LevelFilter::Warn,
            file: None,
            file_level: LevelFilter::Info,
        }
    }
}

struct Logger {
    name: String,
    stderr: env_logger::Logger,
    file: Option<LogFile>,
}

struct LogFile {
    path: PathBuf,
    level: LevelFilter,
    output: Mutex<Output>,
}

struct Output {
    file: File,
    /// Packets that are not written.
    packets: Recent,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

thread_local! {
    static NODE: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

/// Node for which a thread works, if the process has several. Threads that it starts must be told:
/// give them what [`NodeName::current`] returns, and let them [`NodeName::set`] it.
#[derive(Clone, Default, Debug)]
pub struct NodeName(Option<Arc<str>>);

impl NodeName {
    /// A name that replaces that of [`LogOptions`] in the lines.
    pub fn new(name: &str) -> Self {
        Self(Some(name.into()))
    }

    /// That of this thread.
    pub fn current() -> Self {
        NODE.with_borrow(|name| Self(name.clone()))
    }

    /// What this thread logs from now on is said by this node.
    pub fn set(self) {
        NODE.set(self.0);
    }

    fn or<'a>(&'a self, default: &'a str) -> &'a str {
        self.0.as_deref().unwrap_or(default)
    }
}

/// Starts logging, once per process: next calls do nothing.
///
/// # Errors
/// If the file cannot be opened.
pub fn setup(options: &LogOptions) -> io::Result<()> {
    let file = match &options.file {
        None => None,
        Some(path) => {
            let output = Output { file: open(path)?, packets: Recent::default() };
            let (path, level) = (path.clone(), options.file_level);
            Some(LogFile { path, level, output: Mutex::new(output) })
        }
    };
    let name = options.name.clone();
    let stderr = env_logger::Builder::new()
        .filter_level(options.level)
        .parse_default_env()
        .format(move |output, record| {
            write_line(output, local_time(now_us()), NodeName::current().or(&name), record)
        })
        .build();
    let logger = Logger { name: options.name.clone(), stderr, file };
    let level = logger.level();
    let logger = LOGGER.get_or_init(|| logger);
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// Starts logging of a daemon as its options say, and tells what is dubious about them.
///
/// # Errors
/// [`Exit`] if the log file cannot be opened.
pub fn setup_daemon(
    program: &str,
    daemon: &DaemonOptions,
    warnings: &[String],
) -> Result<(), Exit> {
    let mut options = LogOptions { file: daemon.logfile.clone(), ..LogOptions::default() };
    if let Some(name) = &daemon.name {
        options.name.clone_from(name);
    }
    setup(&options).map_err(|error| {
        let path = daemon.logfile.as_deref().unwrap_or(Path::new(""));
        Exit::failure(program, format_args!("log file {}: {error}", path.display()))
    })?;
    for warning in warnings {
        log::warn!("{warning}");
    }
    Ok(())
}

/// Opens the file again, because it was renamed.
///
/// # Errors
/// If it cannot be opened; then the previous one is still written to.
pub fn reopen() -> io::Result<()> {
    let file = LOGGER.get().and_then(|logger| logger.file.as_ref());
    if let Some(LogFile { path, output, .. }) = file {
        let new = open(path)?;
        lock(output).file = new;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    // A panic of another thread in the middle of a line does no harm to the next one.
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl Logger {
    fn level(&self) -> LevelFilter {
        // Packets are traces.
        let file = self.file.as_ref().map_or(LevelFilter::Off, |_| LevelFilter::Trace);
        self.stderr.filter().max(file)
    }
}

impl LogFile {
    /// Other crates only have their say above INFO: what they do is their business.
    fn accepts(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.target() == PACKETS {
            return true;
        }
        metadata.level() <= self.level
            && (metadata.target().starts_with("neo") || metadata.level() <= LevelFilter::Warn)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.stderr.enabled(metadata)
            || self.file.as_ref().is_some_and(|file| file.accepts(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        self.stderr.log(record);
        if let Some(file) = self.file.as_ref().filter(|file| file.accepts(record.metadata())) {
            // A log that cannot be written is no reason to stop, and there is nobody to tell.
            let node = NodeName::current();
            let name = node.or(&self.name);
            let mut line = Vec::new();
            let _ = write_line(&mut line, local_time(now_us()), name, record);
            let Output { file, packets } = &mut *lock(&file.output);
            if record.target() == PACKETS {
                packets.push(line);
                return;
            }
            if record.level() <= Level::Warn {
                let _ = packets.flush(file);
            }
            let _ = file.write_all(&line);
        }
    }

    /// Writes the packets that are in memory.
    fn flush(&self) {
        if let Some(file) = &self.file {
            let Output { file, packets } = &mut *lock(&file.output);
            let _ = packets.flush(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file gets lines of its level, at once, and a new file is opened on request. (Standard
    /// error is not looked at. This is the only test that sets the logger of the process.)
    #[test]
    fn file() {
        let dir = std::env::temp_dir().join(format!("neo-logging-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("neo.log");
        std::fs::write(&path, "before\n").unwrap();
        let wrong = LogOptions { file: Some(dir.clone()), ..LogOptions::default() };
        assert!(setup(&wrong).is_err(), "a directory");
        let options = LogOptions { name: "S1".into(), file: Some(path.clone()), ..wrong };
        setup(&options).unwrap();
        log::info!(target: "neo_test", "one");
        log::debug!(target: "neo_test", "not logged");
        log::info!(target: "other", "not logged");
        // Other tests of this process may log as well.
        let lines = |name: &str| -> Vec<String> {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            let numbers = ["] one", "] two", "] three", "not logged", "before"];
            let is_ours = |line: &&str| numbers.iter().any(|end| line.ends_with(end));
            text.lines().filter(is_ours).map(Into::into).collect()
        };
        let text = lines("neo.log");
        assert_eq!((text.len(), text[0].as_str()), (2, "before"));
        assert!(
            text[1].contains(" INFO      S1         [") && text[1].ends_with("] one"),
            "{text:?}"
        );

        std::fs::rename(&path, dir.join("neo.log.1")).unwrap();
        log::info!(target: "neo_test", "two");
        assert!(!path.exists());
        reopen().unwrap();
        NodeName::new("M1").set();
        let node = NodeName::current();
        std::thread::spawn(|| {
            node.set();
            log::info!(target: "neo_test", "three");
        })
        .join()
        .unwrap();
        assert_eq!((lines("neo.log.1").len(), lines("neo.log").len()), (3, 1));
        assert!(lines("neo.log")[0].contains(" M1 "));

        // Packets are written on request, or with the next warning.
        let packet = |text: &str| log::trace!(target: PACKETS, "#0x0001 {text}] packet");
        let packets = || {
            let text = std::fs::read_to_string(&path).unwrap();
            text.lines().filter(|line| line.ends_with("] packet")).count()
        };
        packet("Ping");
        log::info!(target: "neo_test", "four");
        assert_eq!(packets(), 0);
        log::logger().flush();
        assert_eq!(packets(), 1);
        packet("Pong");
        log::warn!(target: "neo_test", "five");
        assert_eq!(packets(), 2);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(" PACKET    M1 "), "{text}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
