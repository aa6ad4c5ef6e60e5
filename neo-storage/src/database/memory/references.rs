// SPDX-License-Identifier: GPL-2.0-or-later
//! Object data of the memory backend, and who refers to it.

use std::sync::MutexGuard;

use neo_common::types::Partition;

use super::Memory;
use super::store::Store;
use super::table::Layer;
use crate::database::manager;
use crate::database::records::{Content, DataId, ObjectRecord, Refused, Value};

impl Memory {
    /// The store, in a transaction.
    pub(super) fn change(&self) -> MutexGuard<'_, Store> {
        assert!(self.transaction.is_some(), "changes are made between begin and commit");
        self.contents()
    }

    pub(super) fn hold(&mut self, data_id: DataId) {
        *self.held.entry(data_id).or_default() += 1;
    }

    pub(super) fn let_go(&mut self, data_ids: &[DataId]) {
        for data_id in data_ids {
            let count = self.held.get_mut(data_id).expect("released data is held");
            *count -= 1;
            if *count == 0 {
                self.held.remove(data_id);
            }
        }
    }

    pub(super) fn prune(&self, data_ids: &[DataId]) -> u64 {
        let mut store = self.change();
        let is_orphan = |store: &Store, data_id: &DataId| {
            !self.held.contains_key(data_id) && store.references(*data_id) == 0
        };
        let mut pruned = 0;
        for data_id in data_ids {
            if is_orphan(&store, data_id) && store.data.remove(data_id).is_some() {
                pruned += 1;
            }
        }
        pruned
    }

    pub(super) fn release_and_prune(&mut self, data_ids: &[DataId]) {
        self.let_go(data_ids);
        self.prune(data_ids);
    }

    /// Stores data, or finds equal data. `None` if different data has the same hash.
    pub(super) fn store(&mut self, partition: Partition, value: &Value) -> Option<DataId> {
        let mut store = self.change();
        if self.options.dedup {
            let same_hash = |stored: &&Value| {
                stored.checksum == value.checksum && stored.compression == value.compression
            };
            let data = store.data.layer(Layer::Latest);
            if let Some((data_id, stored)) = data.iter().find(|(_, stored)| same_hash(stored)) {
                return (stored == value).then_some(*data_id);
            }
        }
        let (first, last) = manager::data_id_range(partition);
        let next = self.next_ids.get(&first).copied().unwrap_or_else(|| {
            let range = store.data.layer(Layer::Latest).range(DataId(first)..=DataId(last));
            range.last().map_or(first, |(data_id, _)| data_id.0 + 1)
        });
        store.data.insert(DataId(next), value.clone());
        drop(store);
        self.next_ids.insert(first, next + 1);
        Some(DataId(next))
    }

    /// Data of each object, held. If one is refused, nothing is held or stored.
    pub(super) fn resolve(
        &mut self,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Vec<Option<DataId>>, Refused> {
        let mut held = Vec::new();
        let mut data_ids = Vec::new();
        for object in objects {
            match self.resolve_one(partitions, object) {
                Ok(data_id) => {
                    if !matches!(object.content, Content::Spilled(_)) {
                        held.extend(data_id);
                    }
                    data_ids.push(data_id);
                }
                Err(refused) => {
                    self.release_and_prune(&held);
                    return Err(refused);
                }
            }
        }
        Ok(data_ids)
    }

    pub(super) fn resolve_one(
        &mut self,
        partitions: u32,
        object: &ObjectRecord,
    ) -> Result<Option<DataId>, Refused> {
        let ObjectRecord { oid, data_tid, ref content } = *object;
        let partition = oid.partition(partitions);
        if let Content::Spilled(data_id) = *content {
            return Ok(Some(data_id));
        }
        let existing = data_tid.and_then(|tid| {
            self.contents().obj.layer(Layer::Latest).get(&(partition, oid, tid)).copied()
        });
        let data_id = match (existing, content) {
            (Some(row), _) => row.data_id,
            (None, Content::MustExist) => return Err(Refused::UndoPack(oid)),
            (None, Content::Value(value)) => {
                Some(self.store(partition, value).ok_or(Refused::Collision(oid))?)
            }
            (None, Content::Deleted | Content::Spilled(_)) => None,
        };
        if let Some(data_id) = data_id {
            self.hold(data_id);
        }
        Ok(data_id)
    }
}
