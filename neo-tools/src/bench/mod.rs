// SPDX-License-Identifier: GPL-2.0-or-later
//! `neobench`: how fast a cluster is, through the client of this project.
//!
//! ```text
//!   targets: a running cluster, or one (or two) started for the purpose    cluster, process
//!      |
//!   for each workload, for each round, for each target:                   workloads
//!      |        time, CPU time of each node and of the client
//!      v
//!   sheet of figures (median of the rounds, ratio)  -->  table or JSON    figures, report, machine
//! ```
//!
//! Two sets of executables, or two kinds of databases, are compared by alternating between two clusters, round by round: what
//! disturbs the machine disturbs both. A cluster that is not measured is idle.
//!
//! Figures depend on the machine, so nothing here ever fails because of one.

mod cluster;
mod figures;
mod machine;
mod mariadb;
#[allow(unsafe_code)] // Explained there.
mod process;
mod python;
mod report;
mod signals;
mod workloads;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use neo_common::config::BenchOptions;
use neo_common::config::bench::Workload;
use neo_common::logging::{self, LogOptions};

use crate::migrate::Failure;
use cluster::{Adapter, Started, Target};
use figures::Sheet;
use machine::Machine;
use report::Report;
use workloads::{Bench, Scale};

/// Where databases are created by default. Unlike those of `/tmp`, its files are on a disk on all
/// systems: durability costs nothing in memory.
const TEMP_DIR: &str = "/var/tmp";

/// Does what the options say, and prints the figures.
///
/// # Errors
/// Whatever prevents it; what is to be known is in the message.
pub fn run(options: &BenchOptions) -> Result<(), Failure> {
    logging::setup(&LogOptions::default())?;
    let scale = Scale::new(options);
    let temp_dir = options.temp_dir.clone().unwrap_or_else(|| TEMP_DIR.into());
    let machine = Machine::examine(options.running.is_none().then_some(temp_dir.as_path()))?;
    let (targets, _started) = targets(options, &temp_dir)?;
    let sheet = measure(options, &scale, &targets)?;
    let report = Report { options, machine, targets: &targets, scale, sheet };
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// The clusters to measure; the processes that were started end with the second value.
fn targets(
    options: &BenchOptions,
    temp_dir: &Path,
) -> Result<(Vec<Target>, Option<Started>), Failure> {
    if let Some(running) = &options.running {
        return Ok((vec![Target::running(running)?], None));
    }
    let own = match &options.bin_dir {
        Some(path) => path.clone(),
        None => beside_us()?,
    };
    let mut started = Started::new(temp_dir)?;
    signals::end_processes_when_interrupted(started.processes())?;
    let mut targets = Vec::new();
    for bin_dir in std::iter::once(&own).chain(&options.compare) {
        for adapter in [Adapter::Sqlite, Adapter::MariaDb] {
            if adapter == Adapter::Sqlite || options.mariadb {
                let (storages, partitions) = (options.storages, options.partitions);
                targets.push(started.start(bin_dir, adapter, storages, partitions)?);
            }
        }
    }
    Ok((targets, Some(started)))
}

/// Directory of the executable of this process.
fn beside_us() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?;
    Ok(path.parent().map(Into::into).unwrap_or_default())
}

fn measure(options: &BenchOptions, scale: &Scale, targets: &[Target]) -> Result<Sheet, Failure> {
    let tell = std::io::stderr().is_terminal();
    let mut sheet = Sheet::new(targets.len());
    let mut benches = Vec::new();
    for target in targets {
        benches.push(Bench::new(target, scale, options.python.as_deref())?);
    }
    let needs_objects = |workload| matches!(workload, Workload::Load | Workload::Iterate);
    let mut is_filled = false;
    for workload in &options.workloads {
        if needs_objects(*workload) && !std::mem::replace(&mut is_filled, true) {
            for bench in &mut benches {
                bench.fill()?;
            }
        }
        for round in 1..=scale.rounds {
            for (column, bench) in benches.iter_mut().enumerate() {
                if tell {
                    let Target { label, .. } = &targets[column];
                    eprintln!("neobench: {workload:?}, round {round}/{}, {label}", scale.rounds);
                }
                bench.sample(*workload, &mut sheet.column(column))?;
            }
        }
    }
    Ok(sheet)
}
