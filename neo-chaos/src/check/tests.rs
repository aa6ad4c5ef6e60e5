// SPDX-License-Identifier: GPL-2.0-or-later
//! Histories made by hand.

use std::path::Path;

use neo_common::types::{Oid, Tid};
use neo_sim::model::{Checked, Content};
use serde_json::{Value, json};

use super::figures::{figures, read_faults};
use super::parse::{self, Process};
use super::replay::Replay;

fn id(n: u64) -> String {
    format!("{n:016x}")
}

/// A commit of objects (oid, base, data), asked at `time` with the ttid `n`, acknowledged as `n + 1`.
fn commit(n: u64, time: u64, writes: Value) -> [Value; 2] {
    [
        json!({"k": "txn", "id": n, "op": "blobs", "ttid": id(n), "user": "u", "desc": "d",
               "writes": writes, "checks": [], "pack": null, "b": time, "e": time + 1}),
        json!({"k": "end", "id": n, "tid": id(n + 1), "b": time + 1, "e": time + 2}),
    ]
}

fn write(path: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(path, text).unwrap();
}

fn histories(clients: &[&[Value]]) -> Vec<Process> {
    let directory = tempfile::tempdir().unwrap();
    for (i, lines) in clients.iter().enumerate() {
        let index = i + 1;
        let first = json!({"k": "client", "kind": "rust", "index": index, "pid": 1, "b": 1});
        let lines: Vec<Value> = [&[first], *lines].concat();
        write(&directory.path().join(format!("client-{index}.jsonl")), &lines);
    }
    parse::read(directory.path()).unwrap()
}

fn all(checks: Vec<Checked>) -> Checked {
    checks.into_iter().collect()
}

#[test]
fn a_line_that_is_cut_is_the_last_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("client-1.jsonl");
    let first = "{\"k\": \"client\", \"kind\": \"rust\", \"index\": 1, \"b\": 1}\n";
    std::fs::write(&path, format!("{first}{{\"k\": \"clo")).unwrap();
    let found = parse::read(directory.path()).unwrap();
    assert!(found.len() == 1 && !found[0].is_closed);
    std::fs::write(&path, format!("{first}{{\"k\": \"clo\n{first}")).unwrap();
    assert!(parse::read(directory.path()).is_err());
    std::fs::write(&path, format!("{first}{{\"k\": \"what\", \"b\": 1}}\n")).unwrap();
    assert!(parse::read(directory.path()).unwrap_err().to_string().contains("line 2"));
}

/// What is undone is what it was before, also if that was undone itself, by another client.
#[test]
fn an_undo_is_known_from_what_it_undoes() {
    let undo = |n: u64, time, undone: u64| {
        let mut lines = commit(n, time, json!([[id(7), id(undone), null, true]]));
        lines[0]["undo"] = json!(id(undone));
        lines
    };
    let one = [
        commit(10, 10, json!([[id(7), id(0), "first", false]])),
        commit(20, 20, json!([[id(7), id(11), null, false]])),
    ];
    let two = [undo(30, 30, 21), undo(40, 40, 31)];
    let histories = histories(&[&one.concat(), &two.concat()]);
    let mut replay = Replay::new(&histories, &[]);
    assert_eq!(all(replay.outcomes()), Ok(()));
    let content = |n| replay.model.content(Oid::new(7), Tid::new(n)).cloned();
    assert_eq!(content(31), Some(Content::Data("first".into())));
    assert_eq!(content(41), Some(Content::Nothing { told: false }));
}

/// A client that was not told of a deletion changes the object that was packed away meanwhile, and
/// undoes it: it becomes what it was, not what this client knew.
#[test]
fn an_undo_does_not_bring_back_what_was_packed_away() {
    let mut undo = commit(60, 60, json!([[id(7), id(51), null, true]]));
    undo[0]["undo"] = json!(id(51));
    let mut pack = commit(30, 30, json!([]));
    pack[0]["pack"] = json!({"tid": id(25), "oids": null});
    let lines = [
        commit(10, 10, json!([[id(7), id(0), "first", false]])),
        commit(20, 20, json!([[id(7), id(11), null, false]])),
        pack,
        commit(50, 50, json!([[id(7), id(11), "second", false]])),
        undo,
    ];
    let told = json!({"k": "told", "what": "other", "tid": id(61), "oids": [id(7)], "b": 70});
    for is_told in [false, true] {
        let others = if is_told { vec![told.clone()] } else { vec![] };
        let histories = histories(&[&lines.concat(), &others]);
        let mut replay = Replay::new(&histories, &[]);
        assert_eq!(all(replay.outcomes()), Ok(()));
        let content = replay.model.content(Oid::new(7), Tid::new(61));
        assert_eq!(content, Some(&Content::Nothing { told: is_told }));
    }
}

/// A client that is killed leaves a commit of which only others can tell.
#[test]
fn a_commit_without_answer_is_in_doubt_until_it_is_seen() {
    let killed = &commit(10, 10, json!([[id(7), id(0), "x", false]]))[..1];
    let other = commit(20, 20, json!([[id(7), id(11), "y", false]]));
    let told = json!({"k": "end", "id": 10, "tid": id(11), "b": 1, "e": 1});
    let first = histories(&[killed, &other]);
    // Nobody knows the tid: what the second one is based on was never written.
    let mut replay = Replay::new(&first, &[]);
    assert!(all(replay.outcomes()).is_err());
    let second = histories(&[&[killed[0].clone(), told], &other]);
    assert_eq!(all(Replay::new(&second, &[]).outcomes()), Ok(()));
}

/// A pack excuses what is missing only once it was ordered.
#[test]
fn what_was_read_before_a_pack_is_not_missing() {
    let first = commit(10, 10, json!([[id(7), id(0), "x", false]]));
    let second = commit(20, 20, json!([[id(7), id(11), "y", false]]));
    let mut pack = commit(30, 30, json!([]));
    pack[0]["pack"] = json!({"tid": id(25), "oids": null});
    let missing = |time| {
        json!({"k": "load", "how": "at", "oid": id(7), "arg": id(11), "last": id(31), "got": "missing",
               "b": time, "e": time + 1})
    };
    let check = |line| {
        let lines = [first.clone(), second.clone(), pack.clone()].concat();
        let histories = histories(&[&lines, &[line]]);
        let mut replay = Replay::new(&histories, &[]);
        assert_eq!(all(replay.outcomes()), Ok(()));
        all(replay.loads())
    };
    assert!(check(missing(25)).is_err());
    assert_eq!(check(missing(50)), Ok(()));
}

#[test]
fn interruptions_are_measured_from_the_end_of_faults() {
    let times = [1_000_000, 2_000_000, 9_000_000];
    let lines: Vec<Value> = times.iter().flat_map(|t| commit(*t, *t - 2, json!([]))).collect();
    let histories = histories(&[&lines]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("faults.jsonl");
    write(&path, &[json!({"kind": "kill", "target": "x", "b": 3_000_000, "e": 5_000_000})]);
    let figures = figures(&histories, &read_faults(&path).unwrap());
    assert_eq!(figures["longest"]["seconds"], json!(7.0));
    assert_eq!(figures["longest"]["faults"], json!(["kill x"]));
    assert_eq!(figures["returns"]["kill"]["longest"], json!(4.0));
    assert_eq!(figures["acknowledged"]["transactions"]["rust"], json!(3));
}
