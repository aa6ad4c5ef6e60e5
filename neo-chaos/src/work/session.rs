// SPDX-License-Identifier: GPL-2.0-or-later
//! One client with its history: what it is told, and what its threads load.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use neo_client::{Client, Error, Listener, Record, Result};
use neo_common::prng::Prng;
use neo_common::types::{Oid, Tid};
use neo_sim::workload::scene::Kind;
use neo_sim::workload::value::Value;
use serde_json::{Value as Json, json};

use crate::Failure;
use crate::history::{History, digest, now, tid_json};

/// Transactions that are remembered, to be looked at or undone.
const RECENT_LEN: usize = 40;

/// Objects that all clients share.
#[derive(Clone, Debug, Default)]
pub struct Objects(pub BTreeMap<Kind, Vec<Oid>>);

const KINDS: [(Kind, &str); 3] =
    [(Kind::Account, "account"), (Kind::Counter, "counter"), (Kind::Blob, "blob")];

impl Objects {
    /// As it is given to clients in Python too.
    pub fn to_json(&self) -> Json {
        let texts = |kind| self.0.get(&kind).into_iter().flatten().map(Oid::to_string);
        KINDS.into_iter().map(|(kind, name)| (name, texts(kind).collect::<Vec<_>>())).collect()
    }

    /// The inverse.
    pub fn from_json(json: &Json) -> Result<Self, Failure> {
        let mut objects = BTreeMap::new();
        for (kind, name) in KINDS {
            let oids = json[name].as_array().ok_or_else(|| format!("no {name}"))?;
            let parse = |oid: &Json| {
                let number = oid.as_str().and_then(|text| u64::from_str_radix(text, 16).ok());
                number.map(Oid::new).ok_or_else(|| format!("no oid: {oid}"))
            };
            objects.insert(kind, oids.iter().map(parse).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Self(objects))
    }
}

/// What the threads of a process share.
pub struct Shared {
    /// The client.
    pub client: Client,
    /// Where all is written.
    pub history: History,
    /// Whether threads shall end.
    pub stopping: AtomicBool,
    index: u64,
    next: AtomicU64,
    objects: Mutex<Objects>,
    recent: Mutex<VecDeque<Tid>>,
}

impl Shared {
    /// A process, at its beginning.
    pub fn new(client: Client, history: History, index: u64, objects: Objects) -> Self {
        Self {
            client,
            history,
            stopping: AtomicBool::new(false),
            index,
            next: AtomicU64::new(0),
            objects: Mutex::new(objects),
            recent: Mutex::default(),
        }
    }

    /// Records what the client is told, from now on.
    pub fn listen(self: &Arc<Self>) {
        self.client.set_listener(Arc::new(Ear(Arc::clone(self))));
    }

    /// Ends.
    pub fn close(&self) {
        self.client.close();
        self.history.write(&json!({"k": "closed", "b": now()}));
    }

    /// A number that nobody else gets, in any process.
    pub fn nonce(&self) -> u64 {
        (self.index << 32) | self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Number of the process.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Records that this transaction is dealt with: one of this client, if `oids` is `None`.
    pub fn told(&self, tid: Tid, oids: Option<&[Oid]>) {
        let oids = oids.map(|oids| oids.iter().map(Oid::to_string).collect::<Vec<_>>());
        self.history.write(&json!({
            "k": "told", "what": if oids.is_some() { "other" } else { "own" },
            "tid": tid.to_string(), "oids": oids, "b": now(),
            "last": tid_json(self.client.known_tid()),
        }));
        let mut recent = self.recent.lock().expect("no thread panics with it");
        recent.push_back(tid);
        if recent.len() > RECENT_LEN {
            recent.pop_front();
        }
    }

    /// Adds an object that this process made.
    pub fn add_blobs(&self, oids: &[Oid]) {
        let mut objects = self.objects.lock().expect("no thread panics with it");
        objects.0.entry(Kind::Blob).or_default().extend(oids);
    }
}

struct Ear(Arc<Shared>);

impl Listener for Ear {
    fn invalidate(&self, tid: Tid, oids: &[Oid]) {
        self.0.told(tid, Some(oids));
    }
    fn invalidate_cache(&self) {
        let last = tid_json(self.0.client.known_tid());
        self.0.history.write(&json!({"k": "told", "what": "cache", "last": last, "b": now()}));
    }
}

/// What is at an oid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// A revision.
    Revision(Tid, Bytes),
    /// A revision without data.
    Nothing(Tid),
    /// No revision.
    Missing,
}

/// Which revision.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// The last one before this tid.
    Before(Tid),
    /// This one.
    At(Tid),
    /// The current one.
    Current,
}

/// One thread.
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Which.
    pub number: u64,
    /// What it decides with.
    pub prng: Prng,
    /// The last failure is already in the history.
    pub told_failure: bool,
}

impl Worker {
    /// A thread, at its beginning.
    pub fn new(shared: Arc<Shared>, number: u64, prng: Prng) -> Self {
        Self { shared, number, prng, told_failure: false }
    }

    /// Whether an error, of the operation that just ended, is in the history.
    pub fn is_told(&mut self, _: &Error) -> bool {
        std::mem::take(&mut self.told_failure)
    }

    /// Records that a call failed that belongs to no transaction.
    pub fn failed(&self, operation: &str, step: &str, begin: u64, error: &Error) {
        self.shared.history.write(&json!({
            "k": "fail", "th": self.number, "op": operation, "step": step, "b": begin, "e": now(),
            "error": error_text(error),
        }));
    }

    /// Data that nobody else stores.
    pub fn value(&mut self, kind: Kind, amount: i64, filler_len: usize) -> Bytes {
        Value { kind, amount, nonce: self.shared.nonce() }.encode(filler_len)
    }

    /// So many different objects of a kind, or as many as there are.
    pub fn choose(&mut self, kind: Kind, count: usize) -> Vec<Oid> {
        let objects = self.shared.objects.lock().expect("no thread panics with it");
        let mut oids = objects.0.get(&kind).cloned().unwrap_or_default();
        drop(objects);
        self.prng.shuffle(&mut oids);
        oids.truncate(count);
        oids
    }

    /// Any object.
    pub fn any_object(&mut self) -> Option<Oid> {
        let objects = self.shared.objects.lock().expect("no thread panics with it");
        let oids: Vec<Oid> = objects.0.values().flatten().copied().collect();
        drop(objects);
        self.prng.choose(&oids).copied()
    }

    /// A transaction that was told not long ago, among so many.
    pub fn any_transaction(&mut self, among: usize) -> Option<Tid> {
        let recent = self.shared.recent.lock().expect("no thread panics with it");
        let tids: Vec<Tid> = recent.iter().rev().take(among).copied().collect();
        drop(recent);
        self.prng.choose(&tids).copied()
    }

    /// The snapshot that a transaction begins with: a tid before which everything is known.
    pub fn snapshot(&mut self) -> Result<Tid> {
        let client = &self.shared.client;
        let last = match self.prng.one_in(4) {
            true => client.sync()?,
            false => client.last_tid()?,
        };
        Ok(last.next().unwrap_or(last))
    }

    /// Loads a revision, and records it.
    pub fn load(&self, oid: Oid, which: Which) -> Result<Found> {
        let client = &self.shared.client;
        let last = client.known_tid();
        let begin = now();
        let result = match which {
            Which::Before(before) => client.load_before(oid, before),
            Which::At(at) => client.load_serial(oid, at).map(Some),
            Which::Current => client.load(oid).map(Some),
        };
        let (how, arg) = match which {
            Which::Before(tid) => ("before", Some(tid)),
            Which::At(tid) => ("at", Some(tid)),
            Which::Current => ("current", None),
        };
        let found = match result {
            Ok(Some(record)) => {
                self.loaded(how, oid, arg, (last, begin), &record);
                return Ok(Found::Revision(record.serial, record.data));
            }
            Err(Error::CreationUndone { serial, .. }) => Found::Nothing(serial),
            Ok(None) | Err(Error::OidNotFound(_) | Error::OidDoesNotExist(_)) => Found::Missing,
            Err(error) => return Err(error),
        };
        let serial = if let Found::Nothing(serial) = found { Some(serial) } else { None };
        self.shared.history.write(&json!({
            "k": "load", "th": self.number, "b": begin, "e": now(), "how": how,
            "oid": oid.to_string(), "arg": tid_json(arg), "last": tid_json(last),
            "after": tid_json(client.known_tid()), "serial": tid_json(serial),
            "got": if serial.is_some() { "nothing" } else { "missing" },
        }));
        Ok(found)
    }

    /// What the cache has, without waiting for anything.
    pub fn peek(&self, oid: Oid, before: Tid) -> Option<(Tid, Bytes)> {
        let last = self.shared.client.known_tid();
        let begin = now();
        let record = self.shared.client.try_cached(oid, Some(before))?;
        self.loaded("cached", oid, Some(before), (last, begin), &record);
        Some((record.serial, record.data))
    }

    fn loaded(
        &self,
        how: &str,
        oid: Oid,
        arg: Option<Tid>,
        (last, begin): (Option<Tid>, u64),
        record: &Record,
    ) {
        self.shared.history.write(&json!({
            "k": "load", "th": self.number, "b": begin, "e": now(), "how": how,
            "oid": oid.to_string(), "arg": tid_json(arg), "last": tid_json(last),
            "after": tid_json(self.shared.client.known_tid()),
            "got": "data", "serial": record.serial.to_string(),
            "next": tid_json(record.next_serial), "sha": digest(&record.data),
        }));
    }

    /// Loads what a transaction needs, from the cache first.
    pub fn load_value(&mut self, oid: Oid, before: Tid) -> Result<Option<(Tid, Value)>> {
        let peeked = if self.prng.one_in(2) { self.peek(oid, before) } else { None };
        let (serial, data) = match peeked {
            Some(found) => found,
            None => match self.load(oid, Which::Before(before))? {
                Found::Revision(serial, data) => (serial, data),
                Found::Nothing(_) | Found::Missing => return Ok(None),
            },
        };
        Ok(Value::decode(&data).map(|value| (serial, value)))
    }
}

/// An error as the history has it.
pub fn error_text(error: &Error) -> String {
    format!("{}: {error}", neo_sim::workload::scene::error_name(error))
}
