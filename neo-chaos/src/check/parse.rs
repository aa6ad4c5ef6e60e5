// SPDX-License-Identifier: GPL-2.0-or-later
//! Lines of histories, as values.
//!
//! A line that cannot be understood is an error: what is not checked must not look as if it were. Only
//! the last line of a process that was killed may be cut.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use bytes::Bytes;
use neo_common::types::{Oid, Tid, Ttid};
use serde_json::Value as Json;

use crate::Failure;

/// A transaction whose commit was asked, or that was aborted before.
#[derive(Debug)]
pub struct Txn {
    /// Its temporary id.
    pub ttid: Ttid,
    /// What the application wanted.
    pub operation: String,
    /// Who.
    pub user: Bytes,
    /// What, different for each.
    pub description: Bytes,
    /// Object, base, data, whether others are told if there is none.
    pub writes: Vec<(Oid, Tid, Option<Bytes>, bool)>,
    /// Serials that it relies on.
    pub checks: Vec<(Oid, Tid)>,
    /// Pack that it orders.
    pub pack: Option<(Tid, Option<Vec<Oid>>)>,
    /// Transaction that it undoes: its writes tell no data then.
    pub undo: Option<Tid>,
    /// When it began.
    pub begin: u64,
    /// When the commit was asked; `None` if it was not.
    pub asked: Option<u64>,
    /// `None` if there was no answer.
    pub end: Option<End>,
}

/// Answer to a commit.
#[derive(Debug)]
pub struct End {
    /// When.
    pub time: u64,
    /// The tid; or the error, and whether it is surely not committed.
    pub outcome: Result<Tid, (String, bool)>,
}

/// What a load gave.
#[derive(Debug)]
pub struct Load {
    /// What was asked.
    pub how: How,
    /// Of which object.
    pub oid: Oid,
    /// The last tid that the client told before.
    pub last: Tid,
    /// The last tid that the client told after.
    pub after: Tid,
    /// What was replied.
    pub got: Got,
    /// When it was asked.
    pub begin: u64,
    /// When it was replied.
    pub end: u64,
}

/// Which revision was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The last one before.
    Before(Tid),
    /// This one.
    At(Tid),
    /// The last one.
    Current,
    /// The last one before, from the cache only.
    Cached(Tid),
}

/// The revision, with the digest of its data. `next`: `None` if it was not told.
#[derive(Debug)]
pub enum Got {
    /// A revision.
    Data { serial: Tid, next: Option<Option<Tid>>, digest: String },
    /// A revision without data.
    Nothing(Tid),
    /// No revision.
    Missing,
    /// The exception of Python does not tell whether there is nothing, or no revision.
    KeyError,
}

/// What an application was told.
#[derive(Debug)]
pub enum Told {
    /// A transaction of another client.
    Other(Tid, Vec<Oid>),
    /// One of this client is committed.
    Own(Tid),
    /// To forget all that is cached.
    Cache,
}

/// What one process did.
#[derive(Debug, Default)]
pub struct Process {
    /// `rust` or `python`.
    pub kind: String,
    /// Which process.
    pub index: usize,
    /// Its transactions.
    pub txns: Vec<Txn>,
    /// What it loaded.
    pub loads: Vec<Load>,
    /// Begin, snapshot, sum, number of accounts.
    pub sums: Vec<(u64, Tid, i64, i64)>,
    /// End, object, number asked, tids, last tid.
    pub histories: Vec<(u64, Oid, usize, Vec<Tid>, Tid)>,
    /// Start, stop, tids.
    pub walks: Vec<(Tid, Tid, Vec<Tid>)>,
    /// End, tid, oids.
    pub oid_walks: Vec<(u64, Tid, Vec<Oid>)>,
    /// The last tid before, and what.
    pub told: Vec<(Option<Tid>, Told)>,
    /// Operation, step, error of calls that failed.
    pub failures: Vec<(String, String, String)>,
    /// Time of the first line.
    pub first: u64,
    /// Time of the last line.
    pub last: u64,
    /// It came to its end, and was not killed.
    pub is_closed: bool,
}

/// Reads all histories of a directory, in order of process.
pub fn read(directory: &Path) -> Result<Vec<Process>, Failure> {
    let mut processes = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("client-") && name.ends_with(".jsonl") {
            processes.push(process(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        }
    }
    processes.sort_by_key(|process| process.index);
    Ok(processes)
}

fn process(path: &Path) -> Result<Process, Failure> {
    let mut process = Process::default();
    let mut open = BTreeMap::new();
    let mut reader = BufReader::new(std::fs::File::open(path)?);
    let mut text = String::new();
    let mut number = 0;
    while reader.read_line(&mut text)? > 0 {
        number += 1;
        if !text.ends_with('\n') {
            // It was killed while it wrote.
            break;
        }
        let line: Json = serde_json::from_str(&text)?;
        add(&mut process, &mut open, &line)
            .ok_or_else(|| format!("line {number} is not understood: {text}"))?;
        text.clear();
    }
    Ok(process)
}

fn add(process: &mut Process, open: &mut BTreeMap<u64, usize>, line: &Json) -> Option<()> {
    let (begin, end) = (line["b"].as_u64()?, line["e"].as_u64());
    if process.first == 0 {
        process.first = begin;
    }
    process.last = end.unwrap_or(begin);
    match line["k"].as_str()? {
        "client" => {
            process.kind = text(&line["kind"])?;
            process.index = line["index"].as_u64()? as usize;
        }
        "txn" => {
            open.insert(line["id"].as_u64()?, process.txns.len());
            process.txns.push(txn(line)?);
        }
        "end" => {
            let txn = &mut process.txns[open.remove(&line["id"].as_u64()?)?];
            let outcome = match tid(&line["tid"]) {
                Some(tid) => Ok(tid),
                None => Err((text(&line["error"])?, line["certain"].as_bool()?)),
            };
            txn.end = Some(End { time: end?, outcome });
        }
        "fail" => {
            if let Some(ttid) = tid(&line["ttid"]) {
                let mut txn = empty(ttid.as_ttid(), begin);
                txn.operation = text(&line["op"])?;
                process.txns.push(txn);
            }
            if let Some(error) = text(&line["error"]) {
                let step = text(&line["step"]).unwrap_or_default();
                process.failures.push((text(&line["op"])?, step, error));
            }
        }
        "load" => process.loads.push(load(line)?),
        "sum" => {
            let (sum, count) = (line["sum"].as_i64()?, line["count"].as_i64()?);
            process.sums.push((begin, tid(&line["before"])?, sum, count));
        }
        "history" => {
            let max = line["max"].as_u64()? as usize;
            let (oid, last) = (oid(&line["oid"])?, tid(&line["last"])?);
            process.histories.push((end?, oid, max, list(&line["tids"], tid)?, last));
        }
        "walk" => {
            let (start, stop) = (tid(&line["start"])?, tid(&line["stop"])?);
            process.walks.push((start, stop, list(&line["tids"], tid)?));
        }
        "oids" => process.oid_walks.push((end?, tid(&line["tid"])?, list(&line["oids"], oid)?)),
        "told" => {
            let told = match line["what"].as_str()? {
                "other" => Told::Other(tid(&line["tid"])?, list(&line["oids"], oid)?),
                "own" => Told::Own(tid(&line["tid"])?),
                "cache" => Told::Cache,
                _ => return None,
            };
            process.told.push((tid(&line["last"]), told));
        }
        "packs" => {}
        "closed" => process.is_closed = true,
        _ => return None,
    }
    Some(())
}

fn empty(ttid: Ttid, begin: u64) -> Txn {
    Txn {
        ttid,
        operation: String::new(),
        user: Bytes::new(),
        description: Bytes::new(),
        writes: Vec::new(),
        checks: Vec::new(),
        pack: None,
        undo: None,
        begin,
        asked: None,
        end: None,
    }
}

fn txn(line: &Json) -> Option<Txn> {
    let mut txn = empty(tid(&line["ttid"])?.as_ttid(), line["b"].as_u64()?);
    txn.asked = Some(line["e"].as_u64()?);
    txn.operation = text(&line["op"])?;
    txn.user = text(&line["user"])?.into();
    txn.description = text(&line["desc"])?.into();
    txn.writes = list(&line["writes"], |item| {
        let data = if item[2].is_null() { None } else { Some(text(&item[2])?.into()) };
        Some((oid(&item[0])?, tid(&item[1])?, data, item[3].as_bool()?))
    })?;
    txn.checks = list(&line["checks"], |item| Some((oid(&item[0])?, tid(&item[1])?)))?;
    txn.undo = tid(&line["undo"]);
    if !line["pack"].is_null() {
        let pack = &line["pack"];
        let oids = if pack["oids"].is_null() { None } else { Some(list(&pack["oids"], oid)?) };
        txn.pack = Some((tid(&pack["tid"])?, oids));
    }
    Some(txn)
}

fn load(line: &Json) -> Option<Load> {
    let arg = tid(&line["arg"]);
    let how = match line["how"].as_str()? {
        "before" => How::Before(arg?),
        "at" => How::At(arg?),
        "current" => How::Current,
        "cached" => How::Cached(arg?),
        _ => return None,
    };
    let got = match line["got"].as_str()? {
        "data" => {
            let next = &line["next"];
            let next = match next.as_str() {
                Some("?") => None,
                Some(_) => Some(Some(tid(next)?)),
                None => Some(None),
            };
            Got::Data { serial: tid(&line["serial"])?, next, digest: text(&line["sha"])? }
        }
        "nothing" => Got::Nothing(tid(&line["serial"])?),
        "missing" => Got::Missing,
        "keyerror" => Got::KeyError,
        _ => return None,
    };
    Some(Load {
        how,
        oid: oid(&line["oid"])?,
        last: tid(&line["last"]).unwrap_or(Tid::ZERO),
        after: tid(&line["after"]).unwrap_or(Tid::ZERO),
        got,
        begin: line["b"].as_u64()?,
        end: line["e"].as_u64()?,
    })
}

fn text(json: &Json) -> Option<String> {
    json.as_str().map(str::to_owned)
}

fn number(json: &Json) -> Option<u64> {
    json.as_str()
        .filter(|text| text.len() == 16)
        .and_then(|text| u64::from_str_radix(text, 16).ok())
}

fn tid(json: &Json) -> Option<Tid> {
    number(json).map(Tid::new)
}

fn oid(json: &Json) -> Option<Oid> {
    number(json).map(Oid::new)
}

fn list<T>(json: &Json, parse: impl Fn(&Json) -> Option<T>) -> Option<Vec<T>> {
    json.as_array()?.iter().map(parse).collect()
}
