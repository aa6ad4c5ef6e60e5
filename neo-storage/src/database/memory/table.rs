// SPDX-License-Identifier: GPL-2.0-or-later
//! A table in memory with the layers of a database: what the writer did, what is visible to
//! readers, what is on disk.

use std::collections::{BTreeMap, BTreeSet};

use crate::database::CommitLevel;

/// Which state of a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Layer {
    /// All changes, committed or not.
    Latest,
    /// What was committed.
    Visible,
    /// What was committed and is on disk.
    Durable,
}

/// What a crash destroys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process dies: what is not committed is lost.
    Process,
    /// The machine dies: what is not on disk is lost.
    Power,
}

/// An ordered table. Each layer is a map of its own, so that a reader needs no merging; a commit
/// copies the keys that changed.
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    latest: BTreeMap<K, V>,
    visible: BTreeMap<K, V>,
    durable: BTreeMap<K, V>,
    /// Keys that may differ between `latest` and `visible`.
    changed: BTreeSet<K>,
    /// Keys that may differ between `visible` and `durable`.
    unsynced: BTreeSet<K>,
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// The map of a layer.
    pub fn layer(&self, layer: Layer) -> &BTreeMap<K, V> {
        match layer {
            Layer::Latest => &self.latest,
            Layer::Visible => &self.visible,
            Layer::Durable => &self.durable,
        }
    }

    /// Sets a row; returns the one that it replaces.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.changed.insert(key.clone());
        self.latest.insert(key, value)
    }

    /// Deletes a row; returns it.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.latest.remove(key);
        if removed.is_some() {
            self.changed.insert(key.clone());
        }
        removed
    }

    /// Deletes all rows.
    pub fn clear(&mut self) {
        self.changed.extend(std::mem::take(&mut self.latest).into_keys());
    }

    /// Commits all changes.
    pub fn commit(&mut self, level: CommitLevel) {
        for key in &self.changed {
            copy(key, &self.latest, &mut self.visible);
        }
        self.unsynced.append(&mut self.changed);
        if level == CommitLevel::Durable {
            for key in std::mem::take(&mut self.unsynced) {
                copy(&key, &self.visible, &mut self.durable);
            }
        }
    }

    /// Loses what a crash destroys.
    pub fn crash(&mut self, crash: Crash) {
        if crash == Crash::Power {
            for key in &self.unsynced {
                copy(key, &self.durable, &mut self.visible);
            }
            self.changed.append(&mut self.unsynced);
        }
        for key in std::mem::take(&mut self.changed) {
            copy(&key, &self.visible, &mut self.latest);
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            latest: BTreeMap::new(),
            visible: BTreeMap::new(),
            durable: BTreeMap::new(),
            changed: BTreeSet::new(),
            unsynced: BTreeSet::new(),
        }
    }
}

fn copy<K: Ord + Clone, V: Clone>(key: &K, from: &BTreeMap<K, V>, to: &mut BTreeMap<K, V>) {
    match from.get(key) {
        Some(value) => to.insert(key.clone(), value.clone()),
        None => to.remove(key),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(table: &Table<u32, &str>) -> [String; 3] {
        [Layer::Latest, Layer::Visible, Layer::Durable]
            .map(|layer| table.layer(layer).values().copied().collect::<String>())
    }

    /// The same changes, committed in both ways, then each kind of crash.
    #[test]
    fn layers_follow_commits_and_crashes() {
        let mut table = Table::default();
        table.insert(1, "a");
        table.insert(2, "b");
        assert_eq!(layers(&table), ["ab", "", ""]);
        table.commit(CommitLevel::Durable);
        assert_eq!(layers(&table), ["ab", "ab", "ab"]);
        table.remove(&1);
        table.commit(CommitLevel::Visible);
        table.insert(2, "c");
        assert_eq!(layers(&table), ["c", "b", "ab"]);

        let mut killed = table.clone();
        killed.crash(Crash::Process);
        assert_eq!(layers(&killed), ["b", "b", "ab"]);
        killed.commit(CommitLevel::Durable);
        assert_eq!(layers(&killed), ["b", "b", "b"]);

        table.crash(Crash::Power);
        assert_eq!(layers(&table), ["ab", "ab", "ab"]);
        table.clear();
        assert_eq!(layers(&table), ["", "ab", "ab"]);
    }
}
