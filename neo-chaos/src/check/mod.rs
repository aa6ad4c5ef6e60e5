// SPDX-License-Identifier: GPL-2.0-or-later
//! After the run: all histories and databases against the model and the checkers of the simulator.
//!
//! - [`parse`]: lines of histories, as values;
//! - [`databases`]: what the storages have, of the cells that are readable;
//! - [`replay`]: what applications did, told to the sequential model (`neo_sim::model`);
//! - [`amounts`]: sums and counters, in each state that was ever committed;
//! - [`figures`]: operations, errors, interruptions.
//!
//! The directory of a run has `client-*.jsonl` (see [`crate::history`]), `faults.jsonl` (`kind`, `b`,
//! `e`), `storages.json` (`nid`, `adapter`, `database`, `readable`), and `objects.json`. The result is
//! `verdict.json` there: figures, and what is wrong.
//!
//! Everything is known when this begins, so the order in which things are told to the model does not
//! matter, but for packs: what was read before a pack was ordered must not be missing.

mod amounts;
mod databases;
mod figures;
mod parse;
mod replay;
#[cfg(test)]
mod tests;

use neo_sim::checkers::rest;
use neo_sim::model::Checked;
use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::work::Objects;
use replay::Replay;

/// Failures of one kind that are told; the others are counted.
const TOLD_MAX: usize = 10;

/// What is wrong, by what was checked.
#[derive(Default)]
struct Verdict {
    violations: Vec<String>,
    checks: Vec<(&'static str, usize, usize)>,
}

impl Verdict {
    fn check(&mut self, what: &'static str, results: impl IntoIterator<Item = Checked>) {
        let (mut count, mut wrong) = (0, 0);
        for result in results {
            count += 1;
            if let Err(violation) = result {
                wrong += 1;
                if wrong <= TOLD_MAX {
                    self.violations.push(format!("{what}: {violation}"));
                }
            }
        }
        self.checks.push((what, count, wrong));
    }
}

/// The command `check`.
pub fn check(arguments: &Arguments) -> Result<(), Failure> {
    let directory = arguments.path("directory")?;
    let partitions: u32 = arguments.number("partitions")?;
    let cluster = arguments.text("cluster")?;
    let contents = databases::read(&directory.join("storages.json"), cluster)?;
    let histories = parse::read(&directory)?;
    let text = std::fs::read_to_string(directory.join("objects.json"))?;
    let objects = Objects::from_json(&serde_json::from_str(&text)?)?;
    let faults = figures::read_faults(&directory.join("faults.jsonl"))?;

    let mut verdict = Verdict::default();
    let mut replay = Replay::new(&histories, &contents);
    verdict.check("outcomes", replay.outcomes());
    let rest = rest::check(&mut replay.model, partitions, &contents, true);
    verdict.check("databases", [rest]);
    verdict.check("places in history", [replay.model.check_places()]);
    verdict.check("loads", replay.loads());
    verdict.check("histories", replay.histories());
    verdict.check("iterations", replay.walks());
    verdict.check("lists of oids", replay.oid_walks());
    verdict.check("invalidations", replay.told());
    verdict.check("sums", amounts::sums(&replay.model, &objects).into_iter().chain(replay.sums()));
    verdict.check("counters", amounts::counters(&replay.model, &objects));
    verdict.check("errors", figures::errors(&histories));

    let mut result = figures::figures(&histories, &faults);
    let revisions: usize = contents.iter().map(|contents| contents.revisions_count()).sum();
    result["rows_compared"] = json!(revisions);
    result["committed"] = json!(replay.model.committed_tids().count());
    result["checks"] = json!(verdict.checks);
    result["violations"] = json!(verdict.violations);
    std::fs::write(directory.join("verdict.json"), serde_json::to_string_pretty(&result)?)?;
    for violation in &verdict.violations {
        println!("VIOLATION: {violation}");
    }
    match verdict.violations.len() {
        0 => Ok(()),
        count => Err(format!("{count} violations").into()),
    }
}
