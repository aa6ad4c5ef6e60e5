// SPDX-License-Identifier: GPL-2.0-or-later
//! One transaction: what it does, and what becomes of it, in the history.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use neo_client::{Client, Conflict, Error, Metadata, Resolver, Result, Transaction};
use neo_common::types::{Oid, Tid};
use neo_sim::workload::value::Value;
use serde_json::{Value as Json, json};

use super::session::{Shared, Worker, error_text};
use crate::history::{now, tid_json};

/// What the transaction will do to an object.
#[derive(Clone, Debug)]
struct Write {
    base: Tid,
    data: Option<Bytes>,
    /// Whether other clients are told of a revision without data.
    told: bool,
}

#[derive(Debug, Default)]
struct Draft {
    writes: BTreeMap<Oid, Write>,
    checks: BTreeMap<Oid, Tid>,
    pack: Option<(Tid, Option<Vec<Oid>>)>,
    undo: Option<Tid>,
}

impl Draft {
    fn write(&mut self, oid: Oid, base: Tid, data: Option<Bytes>, told: bool) {
        self.checks.remove(&oid);
        self.writes.insert(oid, Write { base, data, told });
    }

    fn to_json(&self) -> (Json, Json, Json) {
        let text = |data: &Bytes| String::from_utf8_lossy(data).into_owned();
        let writes: Vec<Json> = self
            .writes
            .iter()
            .map(|(oid, Write { base, data, told })| {
                json!([oid.to_string(), base.to_string(), data.as_ref().map(text), told])
            })
            .collect();
        let checks: Vec<Json> = self
            .checks
            .iter()
            .map(|(oid, tid)| json!([oid.to_string(), tid.to_string()]))
            .collect();
        let oids = |oids: &Vec<Oid>| oids.iter().map(Oid::to_string).collect::<Vec<_>>();
        let pack = self
            .pack
            .as_ref()
            .map(|(tid, some)| json!({"tid": tid.to_string(), "oids": some.as_ref().map(oids)}));
        (json!(writes), json!(checks), json!(pack))
    }
}

/// A transaction under way. It is aborted if it is dropped.
pub struct Attempt {
    shared: Arc<Shared>,
    thread: u64,
    operation: &'static str,
    inner: Transaction,
    draft: Arc<Mutex<Draft>>,
    id: u64,
    begin: u64,
    steps: Vec<Json>,
}

impl Attempt {
    /// Begins. `resolves`: whether conflicts of counters are resolved.
    pub fn begin(worker: &Worker, operation: &'static str, resolves: bool) -> Result<Self> {
        let shared = Arc::clone(&worker.shared);
        let begin = now();
        let draft = Arc::default();
        let resolver = CounterResolver {
            client: shared.client.clone(),
            shared: Arc::clone(&shared),
            draft: Arc::clone(&draft),
            resolves,
        };
        let inner = shared.client.begin(None, Box::new(resolver))?;
        let id = shared.nonce();
        let steps = vec![json!(["begin", begin, now()])];
        let thread = worker.number;
        Ok(Self { shared, thread, operation, inner, draft, id, begin, steps })
    }

    fn step<T>(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&mut Transaction) -> Result<T>,
    ) -> Result<T> {
        let begin = now();
        let result = call(&mut self.inner);
        self.steps.push(json!([name, begin, now()]));
        result
    }

    /// Stores an object, or deletes it.
    pub fn store(&mut self, oid: Oid, base: Tid, data: Option<Bytes>) -> Result<()> {
        self.lock().write(oid, base, data.clone(), false);
        match data {
            Some(data) => self.step("store", |inner| inner.store(oid, base, data)),
            None => self.step("delete", |inner| inner.delete(oid, base)),
        }
    }

    /// Relies on a revision.
    pub fn check(&mut self, oid: Oid, serial: Tid) -> Result<()> {
        {
            let mut draft = self.lock();
            if !draft.writes.contains_key(&oid) {
                draft.checks.insert(oid, serial);
            }
        }
        self.step("check", |inner| inner.check_current_serial(oid, serial))
    }

    /// Undoes a transaction, and returns its objects. They shall become what they were before: nobody
    /// knows it for sure, but who looks at all histories.
    pub fn undo(&mut self, tid: Tid, oids: &[Oid]) -> Result<Vec<Oid>> {
        {
            let mut draft = self.lock();
            draft.undo = Some(tid);
            oids.iter().for_each(|oid| draft.write(*oid, tid, None, true));
        }
        self.step("undo", |inner| inner.undo(tid))
    }

    /// Orders a pack.
    pub fn set_pack(&mut self, tid: Tid, oids: Option<Vec<Oid>>) -> Result<()> {
        self.lock().pack = Some((tid, oids.clone()));
        self.step("pack", |inner| inner.set_pack(oids, tid))
    }

    /// Votes and commits.
    pub fn commit(mut self) -> Result<Tid> {
        let user = format!("client {}", self.shared.index());
        let description = format!("{:x} {}", self.id, self.operation);
        let metadata = Metadata {
            user: user.clone().into(),
            description: description.clone().into(),
            extension: Bytes::new(),
        };
        self.step("vote", |inner| inner.vote(&metadata))?;
        let (writes, checks, pack) = self.lock().to_json();
        let undo = tid_json(self.lock().undo);
        let asked = now();
        self.shared.history.write(&json!({
            "k": "txn", "th": self.thread, "id": self.id, "op": self.operation,
            "ttid": self.inner.ttid().to_string(), "user": user, "desc": description,
            "writes": writes, "checks": checks, "pack": pack, "undo": undo,
            "steps": self.steps,
            "b": self.begin, "e": asked,
        }));
        let shared = Arc::clone(&self.shared);
        let result = self.inner.finish(|tid| shared.told(tid, None));
        let mut line =
            json!({"k": "end", "th": self.thread, "id": self.id, "b": asked, "e": now()});
        match &result {
            Ok(tid) => {
                line["tid"] = json!(tid.to_string());
                shared.history.write(&line);
                shared.history.acknowledged();
            }
            Err(error) => {
                line["error"] = json!(error_text(error));
                line["certain"] = json!(!matches!(error, Error::OutcomeUnknown(_)));
                shared.history.write(&line);
            }
        }
        result
    }

    /// Gives up: after an error, or on purpose.
    pub fn give_up(mut self, error: Option<&Error>) {
        let step = self.steps.last().map_or(Json::Null, |step| step[0].clone());
        self.inner.abort();
        self.shared.history.write(&json!({
            "k": "fail", "th": self.thread, "op": self.operation, "step": step,
            "ttid": self.inner.ttid().to_string(), "steps": self.steps,
            "error": error.map(error_text), "b": self.begin, "e": now(),
        }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Draft> {
        self.draft.lock().expect("no thread panics with the draft")
    }
}

/// Resolves conflicts of counters.
struct CounterResolver {
    client: Client,
    shared: Arc<Shared>,
    draft: Arc<Mutex<Draft>>,
    resolves: bool,
}

impl Resolver for CounterResolver {
    fn resolve(&mut self, conflict: Conflict) -> Result<Bytes> {
        let (oid, committed_tid) = (conflict.oid, conflict.committed);
        if !self.resolves {
            return Err(Error::Conflict(conflict));
        }
        let Some(own) = conflict.data.clone() else { return Err(Error::Conflict(conflict)) };
        let committed = match &conflict.committed_data {
            Some(data) => data.clone(),
            None => self.client.load_serial(oid, committed_tid)?.data,
        };
        let base = self.client.load_serial(oid, conflict.base)?.data;
        let resolved = Value::resolve(&base, &committed, &own, self.shared.nonce());
        let data = resolved.ok_or(Error::Conflict(conflict))?;
        let mut draft = self.draft.lock().expect("no thread panics with the draft");
        draft.write(oid, committed_tid, Some(data.clone()), false);
        Ok(data)
    }
}
