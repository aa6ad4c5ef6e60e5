// SPDX-License-Identifier: GPL-2.0-or-later
//! Looks for less with which a seed still fails in the same way: fewer kinds of faults, fewer clients
//! and replicas, a shorter time.
//!
//! Each attempt is a run of the seed by a worker, as a panic or a loop must not end the search. The
//! *way* in which it fails is the first line of the violation, without ids and numbers. What a kind
//! of fault draws does not depend on the others, but what nodes do meanwhile does: an attempt may
//! fail in another way, or not at all, without the kind having to do with it. What is found is small,
//! not the smallest.

use std::process::ExitCode;
use std::time::Duration;

use neo_sim::run::draw;

use crate::arguments::Arguments;
use crate::pool::{self, Worker};

/// Shortest time that is tried.
const DURATION_MIN: Duration = Duration::from_secs(1);

/// Shrinks, and prints the command that replays what is left.
pub fn run(arguments: &Arguments, seed: u64) -> ExitCode {
    let Some((way, text)) = attempt(arguments, seed) else {
        println!("seed {seed} does not fail");
        return ExitCode::SUCCESS;
    };
    println!("seed {seed} fails: {text}");
    let (smallest, text) = shrink(arguments.clone(), seed, text, |arguments| {
        attempt(arguments, seed).filter(|(other, _)| *other == way).map(|(_, text)| text)
    });
    println!("{text}\nsmaller, replay it with: {}", pool::command(&smallest, seed));
    ExitCode::FAILURE
}

/// Tries less and less. `attempt`: how it fails with these arguments, if it fails in the same way.
fn shrink(
    mut best: Arguments,
    seed: u64,
    mut text: String,
    mut attempt: impl FnMut(&Arguments) -> Option<String>,
) -> (Arguments, String) {
    // What makes the other attempts fast comes first.
    loop {
        let mut progressed = false;
        let (options, plan) = draw(&best.settings(seed));
        let mut candidates = Vec::new();
        candidates
            .extend(shorter(best.duration).map(|duration| Arguments { duration, ..best.clone() }));
        candidates.extend(
            (1..options.clients)
                .map(|clients| Arguments { clients: Some(clients), ..best.clone() }),
        );
        candidates.extend(
            (0..options.replicas)
                .map(|replicas| Arguments { replicas: Some(replicas), ..best.clone() }),
        );
        for candidate in candidates {
            if let Some(other) = attempt(&candidate) {
                println!("still fails: {}", candidate.repeated().join(" "));
                (best, text, progressed) = (candidate, other, true);
                break;
            }
        }
        let mut kinds = plan.all_kinds();
        for kind in plan.all_kinds().iter() {
            let less = Arguments { kinds: kinds.without(kind), ..best.clone() };
            if let Some(other) = attempt(&less) {
                println!("still fails without {}", kind.name());
                kinds = less.kinds;
                (best, text, progressed) = (less, other, true);
            }
        }
        if !progressed {
            // Only what is there is worth a word.
            best.kinds = kinds;
            return (best, text);
        }
    }
}

/// Shorter times, shortest first.
fn shorter(duration: Duration) -> impl Iterator<Item = Duration> {
    [8, 4, 2]
        .into_iter()
        .map(move |divisor| Duration::from_secs(duration.as_secs() / divisor))
        .chain([Duration::from_secs(duration.as_secs() * 4 / 5)])
        .filter(move |shorter| *shorter >= DURATION_MIN && *shorter < duration)
}

/// Runs a seed: how it fails, and the whole text, if it fails.
fn attempt(arguments: &Arguments, seed: u64) -> Option<(String, String)> {
    let mut worker = Worker::start(arguments).expect("a worker can be started");
    let lines = worker.run(seed);
    worker.end();
    let Some(lines) = lines else {
        let text = "the process died".to_owned();
        return Some((text.clone(), text));
    };
    let text = lines.iter().find_map(|line| line.strip_prefix("violation "))?;
    Some((way(text), text.replace("\\n", "\n")))
}

/// What is left of a violation without what differs each time.
fn way(text: &str) -> String {
    let line = text.split("\\n").next().unwrap_or_default();
    let words = line.split([' ', ':', ',', '(', ')', '[', ']', '{', '}', '"']);
    let same =
        words.filter(|word| !word.is_empty() && !word.contains(|c: char| c.is_ascii_digit()));
    same.take(8).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use neo_sim::faults::Kinds;

    use super::*;

    fn arguments(text: &str) -> Arguments {
        Arguments::parse(text.split_whitespace().map(str::to_owned)).unwrap().unwrap()
    }

    /// A failure that needs two kinds, 5 s and nothing else is shrunk to that.
    #[test]
    fn what_does_not_matter_is_removed() {
        // A seed that has many kinds.
        let seed = (0..1000)
            .find(|seed| {
                let (options, plan) = draw(&arguments("--faults swarm").settings(*seed));
                plan.all_kinds().iter().count() > 12 && options.clients > 2 && options.replicas > 1
            })
            .unwrap();
        let all = arguments("--faults swarm");
        let mut kinds = draw(&all.settings(seed)).1.all_kinds().iter().skip(3);
        let (one, two) = (kinds.next().unwrap(), kinds.next().unwrap());
        let attempt = |arguments: &Arguments| {
            let kinds = draw(&arguments.settings(seed)).1.all_kinds();
            let fails = kinds.has(one) && kinds.has(two) && arguments.duration.as_secs() >= 5;
            fails.then(|| "text".to_owned())
        };
        let (smallest, _) = shrink(all, seed, String::new(), attempt);
        assert_eq!(smallest.kinds, Kinds::NONE.with(one).with(two));
        assert_eq!((smallest.clients, smallest.replicas), (Some(1), Some(0)));
        assert_eq!(smallest.duration.as_secs(), 5);
        assert!(attempt(&smallest).is_some());
    }

    /// Two failures of the same kind have the same words.
    #[test]
    fn a_way_to_fail_has_no_numbers() {
        let one = way("lost update of 000000000000006e: 03f is based on 02a, but 02b is between");
        let two =
            way("lost update of 00000000000000f1: 0aa is based on 0ab, but 0cc is between\\nmore");
        assert_eq!(one, two);
        assert_ne!(one, way("write skew on 000000000000006e: 03f relies on 02a"));
    }
}
