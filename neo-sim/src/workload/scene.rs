// SPDX-License-Identifier: GPL-2.0-or-later
//! What all applications of a run share: the model, what was read, the objects that they use, and
//! figures.

// Tasks of one thread share it: this is a driver.
#![allow(clippy::disallowed_types)]

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::Rc;

use neo_client::Error;
use neo_common::types::{Oid, Tid};

use crate::checkers::reads::{History, OidWalk, Read, Walk};
use crate::checkers::told::Told;
use crate::model::{Checked, Model, Violation};

/// Kinds of objects, and what applications do with them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Amounts move between them; their sum never changes; conflicts are errors.
    Account,
    /// Incremented; conflicts are resolved.
    Counter,
    /// Written, deleted.
    Blob,
}

impl Kind {
    /// Letter that data begins with.
    pub const fn letter(self) -> char {
        match self {
            Self::Account => 'a',
            Self::Counter => 'c',
            Self::Blob => 'b',
        }
    }
}

/// What happened, by name.
pub type Counts = BTreeMap<String, u64>;

/// See the module documentation.
#[derive(Default)]
pub struct SceneState {
    /// What a correct cluster contains.
    pub model: Model,
    /// What is wrong, oldest first.
    pub violations: Vec<Violation>,
    /// Objects that exist, or did.
    pub objects: BTreeMap<Kind, Vec<Oid>>,
    /// What was loaded.
    pub reads: Vec<Read>,
    /// Histories that were asked.
    pub histories: Vec<History>,
    /// Iterations.
    pub walks: Vec<Walk>,
    /// Lists of oids.
    pub oid_walks: Vec<OidWalk>,
    /// What clients that are gone told.
    pub told: Vec<Told>,
    /// What applications did, and which errors they got.
    pub counts: Counts,
    /// Whether every error is a violation: nothing fails.
    pub strict: bool,
    /// Whether a master that answers is the only one. (One that is cut from storages notices late
    /// that another one took over, and its clients see an older state.)
    pub has_one_master: bool,
    next_nonce: u64,
}

impl SceneState {
    /// Records what is wrong, if anything.
    pub fn check(&mut self, checked: Checked) {
        if let Err(violation) = checked {
            self.violations.push(violation);
        }
    }
    /// Counts something.
    pub fn count(&mut self, what: &str) {
        match self.counts.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.counts.insert(what.to_owned(), 1);
            }
        }
    }
    /// A number that nobody got before.
    pub fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }
    /// The transaction with which all that applications need exists; `None` if something does not.
    pub fn populated_by(&self) -> Option<Tid> {
        let mut last = None;
        for kind in [Kind::Account, Kind::Counter] {
            for oid in self.objects.get(&kind)? {
                last = last.max(Some(self.model.revisions(*oid).next()?));
            }
        }
        last
    }

    /// There are new objects of a kind. An oid may be given again once its object is deleted and packed away,
    /// and the master restarted.
    pub fn created(&mut self, kind: Kind, oids: &[Oid]) {
        for others in self.objects.values_mut() {
            others.retain(|oid| !oids.contains(oid));
        }
        self.objects.entry(kind).or_default().extend(oids);
    }

    /// The database was cut back: what was seen before, and checked, is of another future.
    pub fn truncate(&mut self, last: Tid) {
        self.model.truncate(last);
        self.reads.clear();
        self.histories.clear();
        self.walks.clear();
        self.oid_walks.clear();
        self.told.clear();
        let Self { model, objects, .. } = self;
        for oids in objects.values_mut() {
            oids.retain(|oid| model.revisions(*oid).next().is_some());
        }
    }

    /// Checks a read now, and keeps it to check it again.
    pub fn read(&mut self, read: Read) {
        let checked = read.check(&mut self.model, false);
        self.check(checked);
        self.reads.push(read);
    }
    /// An operation failed. Some errors are never right.
    pub fn failed(&mut self, what: &str, error: &Error) {
        let name = error_name(error);
        self.count(&format!("{what}: {name}"));
        let is_conflict = matches!(error, Error::Conflict(_) | Error::ReadConflict { .. });
        let never = matches!(
            error,
            Error::Transaction(_)
                | Error::Invalid(_)
                | Error::Foreign(_)
                | Error::Forked
                | Error::WrongChecksum { .. }
                | Error::TidNotFound(_)
                | Error::Unreachable
                | Error::ReadOnly(_)
        );
        // Nothing is ever truncated, but a client may find a former primary master that does not
        // know yet that it lost its storages, and which is behind the new one.
        let never = never || (self.has_one_master && matches!(error, Error::Truncated));
        let is_undo = matches!(error, Error::Undo { .. }) || error.is_key_error();
        if never || (self.strict && !is_conflict && !is_undo) {
            let text = format!("{what} fails with an error that must not be: {error:?}");
            self.violations.push(Violation(text));
        }
    }
}

/// A short name of an error, without what it is about.
pub fn error_name(error: &Error) -> String {
    let text = match error {
        Error::Refused(message) => {
            // Ids make no two messages equal.
            let is_id = |word: &&str| word.len() == 16 && u64::from_str_radix(word, 16).is_ok();
            let words: Vec<&str> = message.split(' ').filter(|word| !is_id(word)).collect();
            return format!("Refused({})", words.join(" "));
        }
        error => format!("{error:?}"),
    };
    text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

/// Shared [`SceneState`].
#[derive(Clone, Default)]
pub struct Scene(Rc<RefCell<SceneState>>);

impl Scene {
    /// The state. Not to be kept while something is waited for.
    pub fn get(&self) -> RefMut<'_, SceneState> {
        self.0.borrow_mut()
    }
}
