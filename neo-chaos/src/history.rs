// SPDX-License-Identifier: GPL-2.0-or-later
//! What a client process did and was told: a file of JSON lines, one per event.
//!
//! Ids are texts of 16 hexadecimal digits, times are microseconds since 1970, of the clock that all
//! processes of the machine share. `k` tells what a line is, `b` and `e` when the call began and ended,
//! `th` which thread made it.
//!
//! | `k` | What | Other fields |
//! |---|---|---|
//! | `client` | first line | `kind` (rust or python), `index` (no other process has it), `pid` |
//! | `txn` | a commit is asked | `id`, `op`, `ttid`, `user`, `desc`, `writes` (oid, base, data or null, told), `checks` (oid, serial), `pack` (tid, oids or null), `undo` (tid of what is undone: the data of writes is that of the revisions before), `steps` (name, begin, end) |
//! | `end` | its answer | `id`, `tid`; or `error` and `certain`: whether it is surely not committed |
//! | `fail` | a transaction was aborted before; or another call failed | `op`, `step`, `error`; `ttid` and `steps` of a transaction |
//! | `load` | a revision was read | `how` (before, at, current, cached), `oid`, `arg`, `last` and `after` (last tids that the client told before and after), `got` (data, nothing, missing, keyerror), `serial`, `next` (`?` if not told), `sha` (SHA-1 of the data) |
//! | `sum` | all accounts in one snapshot | `before`, `sum`, `count` |
//! | `history` | revisions of an object | `oid`, `max`, `tids`, `last` |
//! | `walk` | transactions of a range | `start`, `stop`, `tids` |
//! | `oids` | objects that exist | `tid`, `oids` |
//! | `told` | what the application is told, in order | `what` (other, own, cache), `tid`, `oids`, `last` |
//! | `closed` | last line of a process that was told to stop | |
//!
//! A line is in the file before the call that it announces is made, and right after one that it
//! reports, so that the death of the process loses nothing that matters.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use neo_common::types::Tid;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::Failure;

/// Microseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

/// The digest by which data is named.
pub fn digest(data: &[u8]) -> String {
    Sha1::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tid, or nothing.
pub fn tid_json(tid: Option<Tid>) -> Value {
    tid.map_or(Value::Null, |tid| json!(tid.to_string()))
}

/// A history that is being written.
pub struct History {
    file: Mutex<File>,
    /// Number of commits that were acknowledged, for who watches the progress: 8 bytes.
    acks: File,
    acks_count: Mutex<u64>,
}

impl History {
    /// A new one, with its first line. Beside it, with the suffix `acks`, the number of commits.
    pub fn create(path: &Path, index: u64) -> Result<Self, Failure> {
        let history = Self {
            file: Mutex::new(File::create(path)?),
            acks: File::create(path.with_extension("acks"))?,
            acks_count: Mutex::new(0),
        };
        history.write(&json!({
            "k": "client", "kind": "rust", "index": index, "pid": std::process::id(), "b": now(),
        }));
        Ok(history)
    }

    /// Adds a line. Without it the run means nothing: if it cannot be written, the process ends.
    pub fn write(&self, line: &Value) {
        let mut text = line.to_string();
        text.push('\n');
        let mut file = self.file.lock().expect("no thread panics with the file");
        file.write_all(text.as_bytes()).expect("the history can be written");
    }

    /// One more commit was acknowledged.
    pub fn acknowledged(&self) {
        let mut count = self.acks_count.lock().expect("no thread panics with the count");
        *count += 1;
        self.acks.write_all_at(&count.to_le_bytes(), 0).expect("the progress can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_progress_are_written_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.jsonl");
        let history = History::create(&path, 7).unwrap();
        history.write(&json!({"k": "closed"}));
        history.acknowledged();
        history.acknowledged();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (lines.len(), &lines[0]["index"], &lines[1]["k"]),
            (2, &json!(7), &json!("closed"))
        );
        let acks = std::fs::read(path.with_extension("acks")).unwrap();
        assert_eq!(acks, 2_u64.to_le_bytes());
    }
}
