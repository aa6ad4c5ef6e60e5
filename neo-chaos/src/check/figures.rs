// SPDX-License-Identifier: GPL-2.0-or-later
//! What the report tells: operations, errors, and how long the service was interrupted. And errors that
//! must not be.

use std::collections::BTreeMap;
use std::path::Path;

use neo_sim::model::{Checked, Violation};
use serde_json::{Value as Json, json};

use super::parse::Process;
use crate::Failure;

/// A fault, from when it began to when all is as it should be again (but not yet noticed).
#[derive(Debug)]
pub struct Fault {
    kind: String,
    target: String,
    begin: u64,
    end: u64,
}

/// Reads the list of faults.
pub fn read_faults(path: &Path) -> Result<Vec<Fault>, Failure> {
    let mut faults = Vec::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let json: Json = serde_json::from_str(line)?;
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let (Some(begin), Some(end)) = (json["b"].as_u64(), json["e"].as_u64()) else {
            return Err(format!("not a fault: {line}").into());
        };
        faults.push(Fault { kind: text("kind"), target: text("target"), begin, end });
    }
    Ok(faults)
}

/// What no fault excuses, at the beginning of an error: of clients in Rust, in Python.
const NEVER: [&str; 16] = [
    "Transaction:",
    "Invalid:",
    "Foreign:",
    "Forked:",
    "WrongChecksum:",
    "TidNotFound:",
    "Unreachable:",
    "ReadOnly:",
    "StorageTransactionError:",
    "ReadOnlyError:",
    "NEOStorageWrongChecksum:",
    "ValueError:",
    "TypeError:",
    "AssertionError:",
    "AttributeError:",
    "NEOStorageError: no transaction",
];

/// What Python clients may raise.
const PYTHON: [&str; 5] =
    ["ConflictError:", "ReadConflictError:", "POSKeyError:", "UndoError:", "NEOStorageError:"];

/// Errors that must not be.
pub fn errors(histories: &[Process]) -> Vec<Checked> {
    let mut checks = Vec::new();
    for process in histories {
        let failures = process
            .failures
            .iter()
            .map(|(operation, step, error)| (format!("{operation}, {step}"), error));
        let ends = process.txns.iter().filter_map(|txn| {
            let (error, _) = txn.end.as_ref()?.outcome.as_ref().err()?;
            Some((format!("{}, finish", txn.operation), error))
        });
        for (what, error) in failures.chain(ends) {
            let is_known = process.kind != "python" || PYTHON.iter().any(|x| error.starts_with(x));
            let is_wrong = !is_known || NEVER.iter().any(|never| error.starts_with(never));
            checks.push(if is_wrong {
                Err(Violation(format!("{} {}: {what}: {error}", process.kind, process.index)))
            } else {
                Ok(())
            });
        }
    }
    checks
}

/// An error without what it is about.
fn error_name(error: &str) -> String {
    let is_id = |word: &str| {
        word.starts_with("0x") || (word.len() >= 16 && word.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let (kind, text) = error.split_once(": ").unwrap_or((error, ""));
    // These tell serials and oids.
    if kind.ends_with("Conflict") || kind.ends_with("ConflictError") || kind.ends_with("KeyError") {
        return kind.to_owned();
    }
    let words: Vec<&str> = text
        .split(' ')
        .map(|word| {
            let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            let is_number = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit());
            if is_id(bare) || is_number { "#" } else { word }
        })
        .collect();
    format!("{kind}: {}", words.join(" "))
}

type Counts = BTreeMap<String, BTreeMap<String, u64>>;

fn count(counts: &mut Counts, what: &str, kind: &str) {
    *counts.entry(what.to_owned()).or_default().entry(kind.to_owned()).or_default() += 1;
}

/// All figures.
pub fn figures(histories: &[Process], faults: &[Fault]) -> Json {
    let (mut operations, mut errors) = (Counts::new(), Counts::new());
    let (mut acknowledged, mut refused, mut unknown) = (Counts::new(), 0_u64, 0_u64);
    for process in histories {
        let kind = &*process.kind;
        for txn in process.txns.iter().filter(|txn| txn.asked.is_some()) {
            match txn.end.as_ref().map(|end| &end.outcome) {
                Some(Ok(_)) => {
                    count(&mut operations, &txn.operation, kind);
                    count(&mut acknowledged, "transactions", kind);
                }
                Some(Err((error, certain))) => {
                    count(&mut errors, &error_name(error), kind);
                    if *certain { refused += 1 } else { unknown += 1 }
                }
                None => unknown += 1,
            }
        }
        for (_, _, error) in &process.failures {
            count(&mut errors, &error_name(error), kind);
        }
        for (what, number) in [
            ("loads", process.loads.len()),
            ("sums", process.sums.len()),
            ("histories", process.histories.len()),
            ("iterations", process.walks.len()),
            ("lists of oids", process.oid_walks.len()),
            ("invalidations", process.told.len()),
        ] {
            let counts = operations.entry(what.to_owned()).or_default();
            *counts.entry(kind.to_owned()).or_default() += number as u64;
        }
    }
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for fault in faults {
        *kinds.entry(&fault.kind).or_default() += 1;
    }
    let (longest, returns) = interruptions(histories, faults);
    json!({
        "operations": operations, "errors": errors, "acknowledged": acknowledged,
        "refused_commits": refused, "unknown_commits": unknown, "faults": kinds,
        "longest": longest, "returns": returns,
    })
}

/// When commits of a process were acknowledged.
fn acknowledged(process: &Process) -> Vec<u64> {
    let mut times: Vec<u64> = process
        .txns
        .iter()
        .filter_map(|txn| txn.end.as_ref().filter(|end| end.outcome.is_ok()))
        .map(|end| end.time)
        .collect();
    times.sort_unstable();
    times
}

/// The longest time without any commit, and for each kind of fault how long it took, after its end,
/// until each process had committed again.
fn interruptions(histories: &[Process], faults: &[Fault]) -> (Json, Json) {
    // Workers only: those that commit more than a handful.
    let workers: Vec<(&Process, Vec<u64>)> = histories
        .iter()
        .map(|process| (process, acknowledged(process)))
        .filter(|(process, times)| process.index != 0 && !times.is_empty())
        .collect();
    let mut all: Vec<u64> = workers.iter().flat_map(|(_, times)| times.iter().copied()).collect();
    all.sort_unstable();
    let longest = all.windows(2).map(|pair| (pair[1] - pair[0], pair[0])).max();
    let longest = longest.map(|(duration, begin)| {
        let around: Vec<String> = faults
            .iter()
            .filter(|fault| fault.begin < begin + duration && fault.end + 1_000_000 > begin)
            .map(|fault| format!("{} {}", fault.kind, fault.target))
            .collect();
        json!({"seconds": seconds(duration), "at": begin, "faults": around})
    });
    let mut returns: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for fault in faults {
        let mut slowest = 0;
        for (process, times) in &workers {
            if process.first > fault.end || process.last < fault.end {
                continue;
            }
            let index = times.partition_point(|time| *time < fault.end);
            if let Some(time) = times.get(index) {
                slowest = slowest.max(time - fault.end);
            }
        }
        let entry = returns.entry(&fault.kind).or_default();
        *entry = (entry.0 + 1, entry.1 + slowest, entry.2.max(slowest));
    }
    let returns: BTreeMap<&str, Json> = returns
        .into_iter()
        .map(|(kind, (count, total, max))| {
            (kind, json!({"mean": seconds(total / count), "longest": seconds(max)}))
        })
        .collect();
    (json!(longest), json!(returns))
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}
