// SPDX-License-Identifier: GPL-2.0-or-later
//! What must hold in each state that was ever committed, whoever saw it: accounts add up, and each
//! increment of a counter counts.

use std::collections::BTreeMap;

use neo_common::types::{Oid, Tid};
use neo_sim::model::{Checked, Content, Model, Violation};
use neo_sim::workload::scene::Kind;
use neo_sim::workload::value::Value;
use neo_sim::workload::write::ACCOUNT;

use crate::work::Objects;

fn amount(model: &Model, oid: Oid, tid: Tid) -> Option<i64> {
    match model.content(oid, tid)? {
        Content::Data(data) => Some(Value::decode(data)?.amount),
        Content::Nothing { .. } => None,
    }
}

/// The sum of all accounts, after each transaction.
pub fn sums(model: &Model, objects: &Objects) -> Vec<Checked> {
    let accounts = objects.0.get(&Kind::Account).cloned().unwrap_or_default();
    let expected = accounts.len() as i64 * ACCOUNT;
    let mut amounts: BTreeMap<Oid, i64> = accounts.iter().map(|oid| (*oid, 0)).collect();
    let mut checks = Vec::new();
    for (tid, attempt) in model.committed_between(Tid::ZERO, Tid::MAX) {
        let mut changed = false;
        for oid in attempt.writes.keys() {
            if let Some(known) = amounts.get_mut(oid) {
                *known = amount(model, *oid, tid).unwrap_or(i64::MIN / 1000);
                changed = true;
            }
        }
        if changed {
            let sum: i64 = amounts.values().sum();
            checks.push(if sum == expected {
                Ok(())
            } else {
                Err(Violation(format!(
                    "after {tid}, the sum of accounts is {sum}, not {expected}: {attempt:?}"
                )))
            });
        }
    }
    checks
}

/// Each increment is one more than the revision before, whatever was resolved.
pub fn counters(model: &Model, objects: &Objects) -> Vec<Checked> {
    let mut checks = Vec::new();
    for oid in objects.0.get(&Kind::Counter).into_iter().flatten() {
        let mut before = None;
        for tid in model.revisions(*oid) {
            let now = amount(model, *oid, tid);
            let increments = model
                .transaction(tid)
                .is_some_and(|attempt| attempt.metadata.description.ends_with(b" increment"));
            if increments {
                let right = before.zip(now).is_some_and(|(before, now)| now == before + 1);
                checks.push(if right {
                    Ok(())
                } else {
                    Err(Violation(format!("{tid} increments {oid} from {before:?} to {now:?}")))
                });
            }
            before = now;
        }
    }
    checks
}
