// SPDX-License-Identifier: GPL-2.0-or-later
//! On what it was measured: figures without that mean nothing.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use neo_common::time::DateTime;

use super::figures::Latencies;

/// How many times the disk is asked to be durable.
const SYNC_COUNT: usize = 50;

/// What matters of a machine.
#[derive(Clone, PartialEq, Debug)]
pub struct Machine {
    /// Day, UTC.
    pub date: String,
    /// Model of the processor.
    pub processor: String,
    /// Cores that can be used.
    pub cores: usize,
    /// Kernel.
    pub system: String,
    /// Where databases are, if that is known.
    pub disk: Option<Disk>,
}

/// Where databases are.
#[derive(Clone, PartialEq, Debug)]
pub struct Disk {
    /// Kind of file system.
    pub file_system: String,
    /// How long it takes to make 4 KiB durable: median, in microseconds.
    pub sync_us: f64,
}

impl Machine {
    /// Looks at this one.
    ///
    /// # Errors
    /// If nothing can be written to the directory of databases.
    pub fn examine(directory: Option<&Path>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = DateTime::from_unix_us(now.as_micros() as i64);
        let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let disk = match directory {
            None => None,
            Some(path) => Some(Disk {
                file_system: file_system(path).unwrap_or_else(|| "unknown file system".into()),
                sync_us: sync_us(path).map_err(|error| {
                    format!("can not write to {}: {error}; see --temp-dir", path.display())
                })?,
            }),
        };
        Ok(Self {
            date: format!("{:04}-{:02}-{:02}", date.year, date.month, date.day),
            processor: model.unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("Linux {}", read("/proc/sys/kernel/osrelease")),
            disk,
        })
    }
}

/// Kind of the file system of a directory.
fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (mount_point, kind) = (words.next()?, words.next()?);
        path.starts_with(mount_point).then_some((mount_point.len(), kind))
    });
    // The deepest one, and of those the last one, which hides the others.
    mounts.max_by_key(|(len, _)| *len).map(|(_, kind)| kind.into())
}

fn sync_us(directory: &Path) -> io::Result<f64> {
    let mut file = tempfile::tempfile_in(directory)?;
    let mut latencies = Latencies::default();
    for _ in 0..SYNC_COUNT {
        // Appended, as a journal is.
        file.write_all(&[1; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        latencies.push(start.elapsed());
    }
    Ok(latencies.percentile(50))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All is known of a real machine; a directory that does not exist is an error.
    #[test]
    fn examine() {
        let machine = Machine::examine(Some(Path::new("/var/tmp"))).unwrap();
        assert!(machine.date.len() == 10 && machine.date.as_str() > "2026");
        assert!(machine.cores > 0 && !machine.processor.is_empty());
        assert!(machine.system.len() > "Linux ".len());
        assert_ne!(machine.disk.unwrap().file_system, "unknown file system");
        let error = Machine::examine(Some(Path::new("/no/such/directory"))).unwrap_err();
        assert!(error.starts_with("can not write to /no/such/directory: "), "{error}");
        assert_eq!(file_system(Path::new("/proc/self")).as_deref(), Some("proc"));
    }
}
