// SPDX-License-Identifier: GPL-2.0-or-later
//! Changes of the memory backend.

use std::time::Duration;

use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use super::store::{ObjRow, Store, TtransRow};
use super::table::Layer;
use super::{Memory, MemoryReader, read};
use crate::database::manager::{self, PtRow, key};
use crate::database::records::*;
use crate::database::{CommitLevel, Database, Error, Reader};

struct StoredRows<'a>(&'a Store);

impl manager::Rows for StoredRows<'_> {
    fn last_tids(&mut self, partition: Partition) -> Result<(i64, i64), Error> {
        Ok(read::last_tids(self.0, Layer::Latest, partition))
    }
    fn first_unfinished(&mut self) -> Result<Option<Ttid>, Error> {
        let ttrans = self.0.ttrans.layer(Layer::Latest).keys().copied();
        let tobj = self.0.tobj.layer(Layer::Latest).keys().map(|(ttid, _)| *ttid);
        Ok(ttrans.chain(tobj).min())
    }
}

impl Memory {
    fn set_config(&self, key: &'static str, value: Option<String>) {
        match value {
            Some(value) => self.change().config.insert(key, value),
            None => self.change().config.remove(&key),
        };
    }

    /// Deletes at most `rows_max` revisions after a tid, then transactions.
    fn delete_rows(&self, partition: Partition, after: Option<Tid>, rows_max: u64) -> u64 {
        let min_tid = after.map_or(Some(Tid::ZERO), Tid::next).unwrap_or(Tid::INVALID);
        let mut store = self.change();
        let first = (partition, min_tid, Oid::ZERO);
        let revisions = store.obj_by_tid.layer(Layer::Latest);
        let revisions = revisions.range(first..(partition + 1, Tid::ZERO, Oid::ZERO));
        let revisions: Vec<_> = revisions.take(rows_max as usize).map(|(key, ())| *key).collect();
        let mut data_ids = Vec::new();
        for &(_, tid, oid) in &revisions {
            let row = store.remove_obj(&(partition, oid, tid));
            data_ids.extend(row.and_then(|row| row.data_id));
        }
        let rest = rows_max as usize - revisions.len();
        let tids = store.trans.layer(Layer::Latest);
        let tids = tids.range((partition, min_tid)..(partition + 1, Tid::ZERO));
        let tids: Vec<_> = tids.take(rest).map(|(key, _)| *key).collect();
        for key in &tids {
            store.trans.remove(key);
            store.pack.remove(&key.1);
        }
        drop(store);
        self.prune(&data_ids);
        (revisions.len() + tids.len()) as u64
    }

    fn config(&mut self) -> Result<StoredConfig, Error> {
        self.reader.config()
    }

    fn own_rows(&mut self) -> Result<Vec<PtRow>, Error> {
        let config = self.config()?;
        let mut rows = self.contents().pt_rows(Layer::Latest);
        rows.retain(|row| config.nid == Some(row.nid));
        Ok(rows)
    }

    fn drop_temporary(&mut self, partition: Partition) {
        let mut store = self.change();
        let rows = store.tobj.layer(Layer::Latest).iter();
        let rows: Vec<_> = rows
            .filter(|(_, (other, _))| *other == partition)
            .map(|(key, (_, row))| (*key, row.data_id))
            .collect();
        for (key, _) in &rows {
            store.tobj.remove(key);
        }
        let ttids = store.ttrans.layer(Layer::Latest).iter();
        let ttids: Vec<_> =
            ttids.filter(|(_, row)| row.partition == partition).map(|(ttid, _)| *ttid).collect();
        for ttid in ttids {
            store.ttrans.remove(&ttid);
            store.pack.remove(&ttid.as_tid());
        }
        drop(store);
        let data_ids: Vec<_> = rows.into_iter().filter_map(|(_, data_id)| data_id).collect();
        self.release_and_prune(&data_ids);
    }
}

impl Database for Memory {
    fn latest(&mut self) -> &mut dyn Reader {
        &mut self.reader
    }

    fn begin(&mut self, level: CommitLevel) -> Result<(), Error> {
        if self.transaction.is_some_and(|current| current < level) {
            self.commit()?;
        }
        self.transaction = self.transaction.or(Some(level));
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        if let Some(level) = self.transaction.take() {
            self.contents().commit(level);
        }
        Ok(())
    }

    fn visible_delay(&self) -> Duration {
        self.options.visible_delay
    }

    fn reader(&self) -> Result<Box<dyn Reader>, Error> {
        let disk = self.reader.disk.clone();
        Ok(Box::new(MemoryReader { disk, layer: Layer::Visible }))
    }

    fn set_nid(&mut self, nid: NodeId) -> Result<(), Error> {
        for row in self.own_rows()? {
            let mut store = self.change();
            store.pt.remove(&(row.partition, row.nid));
            store.pt.insert((row.partition, nid), (row.tid, row.pack));
        }
        self.set_config(key::NID, Some(nid.get().to_string()));
        Ok(())
    }

    fn change_partition_table(
        &mut self,
        change: &PartitionTableChange,
    ) -> Result<Vec<Partition>, Error> {
        let config = self.config()?;
        let mut store = self.change();
        let rows = store.pt_rows(Layer::Latest);
        let update = manager::encode_change(change, &config, &rows, &mut StoredRows(&store))?;
        for key in &update.delete {
            store.pt.remove(key);
        }
        for PtRow { partition, nid, tid, pack } in update.upsert {
            let current = store.pt.layer(Layer::Latest).get(&(partition, nid)).copied();
            let pack = current.map_or(pack, |(_, pack)| pack);
            store.pt.insert((partition, nid), (tid, pack));
        }
        drop(store);
        if let Some(nid) = update.dropped {
            self.set_config(key::DROPPED, Some(nid.get().to_string()));
        }
        self.set_config(key::PTID, Some(change.ptid.to_string()));
        self.set_config(key::REPLICAS, Some(change.replicas.to_string()));
        for &partition in &change.drop_temporary {
            self.drop_temporary(partition);
        }
        self.release_and_prune(&change.release);
        Ok(update.to_drop)
    }

    fn set_backup_tid(&mut self, tid: Option<Tid>) -> Result<(), Error> {
        self.set_config(key::BACKUP_TID, tid.map(|tid| tid.to_string()));
        Ok(())
    }

    fn set_truncate_tid(&mut self, tid: Tid) -> Result<(), Error> {
        self.set_config(key::BACKUP_TID, None);
        self.set_config(key::TRUNCATE_TID, Some(tid.to_string()));
        Ok(())
    }

    fn truncate(&mut self, rows_max: u32) -> Result<Progress, Error> {
        let Some(limit) = self.config()?.truncate_tid else {
            return Ok(Progress { deleted: 0, done: true });
        };
        let rows_max = u64::from(rows_max.max(1));
        let mut deleted = 0;
        let own_rows = self.own_rows()?;
        for row in &own_rows {
            deleted += self.delete_rows(row.partition, Some(limit), rows_max - deleted);
            if deleted >= rows_max {
                return Ok(Progress { deleted, done: false });
            }
        }
        let limit = limit.get() as i64;
        for row in own_rows.iter().filter(|row| row.tid > limit) {
            self.change().pt.insert((row.partition, row.nid), (limit, row.pack));
        }
        self.set_config(key::TRUNCATE_TID, None);
        Ok(Progress { deleted, done: true })
    }

    fn drop_unfinished(&mut self) -> Result<(), Error> {
        let mut store = self.change();
        let ttids: Vec<_> = store.ttrans.layer(Layer::Latest).keys().copied().collect();
        for ttid in ttids {
            store.pack.remove(&ttid.as_tid());
        }
        store.ttrans.clear();
        store.tobj.clear();
        drop(store);
        let data_ids: Vec<_> = std::mem::take(&mut self.held).into_keys().collect();
        self.prune(&data_ids);
        Ok(())
    }

    fn spill(
        &mut self,
        partitions: u32,
        objects: &[ObjectRecord],
    ) -> Result<Result<Vec<Content>, Refused>, Error> {
        let content = |data_id: Option<DataId>| data_id.map_or(Content::Deleted, Content::Spilled);
        let resolved = self.resolve(partitions, objects);
        Ok(resolved.map(|data_ids| data_ids.into_iter().map(content).collect()))
    }

    fn release(&mut self, data_ids: &[DataId]) -> Result<(), Error> {
        self.release_and_prune(data_ids);
        Ok(())
    }

    fn vote(&mut self, vote: &Vote) -> Result<Result<(), Refused>, Error> {
        let data_ids = match self.resolve(vote.partitions, &vote.objects) {
            Ok(data_ids) => data_ids,
            Err(refused) => return Ok(Err(refused)),
        };
        let mut store = self.change();
        for (object, data_id) in vote.objects.iter().zip(data_ids) {
            let partition = object.oid.partition(vote.partitions);
            let row = ObjRow { data_id, value_tid: object.data_tid };
            let replaced = store.tobj.insert((vote.ttid, object.oid), (partition, row));
            assert!(replaced.is_none(), "{} is voted twice", vote.ttid);
        }
        if let Some(record) = &vote.transaction {
            let record = TransactionRecord { ttid: vote.ttid, ..record.clone() };
            let partition = vote.ttid.partition(vote.partitions);
            store.ttrans.insert(vote.ttid, TtransRow { partition, tid: None, record });
        }
        if let Some(pack) = &vote.pack {
            insert_pack(&mut store, vote.ttid.as_tid(), pack);
        }
        Ok(Ok(()))
    }

    fn lock(&mut self, ttid: Ttid, tid: Tid, approve_pack: bool) -> Result<(), Error> {
        let mut store = self.change();
        let row = store.ttrans.layer(Layer::Latest).get(&ttid).cloned();
        if let Some(row) = row {
            store.ttrans.insert(ttid, TtransRow { tid: Some(tid), ..row });
        }
        if approve_pack {
            sign(&mut store, ttid.as_tid(), true);
        }
        Ok(())
    }

    fn unlock(&mut self, ttid: Ttid, tid: Tid, metadata: bool) -> Result<(), Error> {
        let mut store = self.change();
        if metadata {
            if let Some(row) = store.ttrans.remove(&ttid) {
                let replaced = store.trans.insert((row.partition, tid), row.record);
                assert!(replaced.is_none(), "two transactions with tid {tid}");
            }
            if let Some(pack) = store.pack.remove(&ttid.as_tid()) {
                store.pack.insert(tid, pack);
            }
        }
        let mut data_ids = Vec::new();
        for ((partition, oid), row) in store.remove_tobj(ttid) {
            store.insert_obj((partition, oid, tid), row);
            data_ids.extend(row.data_id);
        }
        drop(store);
        self.let_go(&data_ids);
        Ok(())
    }

    fn abort(&mut self, ttid: Ttid, spilled: &[DataId]) -> Result<(), Error> {
        let mut store = self.change();
        let rows = store.remove_tobj(ttid);
        if store.ttrans.remove(&ttid).is_some() {
            store.pack.remove(&ttid.as_tid());
        }
        drop(store);
        let mut data_ids: Vec<_> = rows.iter().filter_map(|(_, row)| row.data_id).collect();
        data_ids.extend(spilled);
        self.release_and_prune(&data_ids);
        Ok(())
    }

    fn sign_packs(&mut self, approved: &[Tid], rejected: &[Tid]) -> Result<Vec<Tid>, Error> {
        let mut store = self.change();
        let all = approved.iter().map(|id| (*id, true));
        let all = all.chain(rejected.iter().map(|id| (*id, false)));
        Ok(all
            .filter(|(id, approval)| sign(&mut store, *id, *approval))
            .map(|(id, _)| id)
            .collect())
    }

    fn pack(
        &mut self,
        partition: Partition,
        pack_tid: Tid,
        scope: &PackScope,
    ) -> Result<PackProgress, Error> {
        let mut store = self.change();
        let mut progress = PackProgress { next_oid: None, deleted: 0 };
        let obj = store.obj.layer(Layer::Latest);
        let all = (partition, Oid::ZERO, Tid::ZERO)..(partition + 1, Oid::ZERO, Tid::ZERO);
        let in_time = obj.range(all).map(|(key, row)| (key.1, key.2, row.data_id));
        let in_time = in_time.filter(|(_, tid, _)| *tid <= pack_tid);
        let mut oids: Vec<Oid> = in_time.clone().map(|(oid, ..)| oid).collect();
        oids.dedup();
        match scope {
            PackScope::From { min_oid, oids_max } => {
                oids.retain(|oid| oid >= min_oid);
                oids.truncate(*oids_max as usize);
                if oids.len() == *oids_max as usize {
                    progress.next_oid = oids.last().and_then(|oid| oid.next());
                }
            }
            PackScope::Oids(scope) => oids.retain(|oid| scope.contains(oid)),
        }
        let mut delete = Vec::new();
        for oid in oids {
            let revisions: Vec<_> = in_time.clone().filter(|(other, ..)| *other == oid).collect();
            let (&(_, _, last_data), older) = revisions.split_last().expect("it has one");
            let revisions = if last_data.is_some() { older } else { &revisions[..] };
            delete.extend(revisions.iter().map(|(oid, tid, _)| (partition, *oid, *tid)));
        }
        let mut data_ids = Vec::new();
        for key in &delete {
            progress.deleted += 1;
            data_ids.extend(store.remove_obj(key).and_then(|row| row.data_id));
        }
        drop(store);
        self.prune(&data_ids);
        Ok(progress)
    }

    fn mark_packed(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        pack_tid: Tid,
        tids_max: u32,
    ) -> Result<Option<Tid>, Error> {
        let mut store = self.change();
        let trans = store.trans.layer(Layer::Latest).range((partition, min_tid)..);
        let in_time = trans.take_while(|(key, _)| **key <= (partition, pack_tid));
        let todo = in_time.filter(|(_, record)| !record.packed).take(tids_max as usize);
        let todo: Vec<_> = todo.map(|(key, record)| (*key, record.clone())).collect();
        let is_full = todo.len() == tids_max as usize;
        let last = todo.last().filter(|_| is_full).map(|((_, tid), _)| *tid);
        for (key, record) in todo {
            store.trans.insert(key, TransactionRecord { packed: true, ..record });
        }
        Ok(last.and_then(Tid::next))
    }

    fn set_packed(&mut self, partition: Partition, pack_id: Tid) -> Result<(), Error> {
        for row in self.own_rows()?.iter().filter(|row| row.partition == partition) {
            let pack = Some(pack_id.get() as i64);
            self.change().pt.insert((partition, row.nid), (row.tid, pack));
        }
        Ok(())
    }

    fn drop_partition(&mut self, partition: Partition, rows_max: u32) -> Result<Progress, Error> {
        let rows_max = u64::from(rows_max.max(1));
        let deleted = self.delete_rows(partition, None, rows_max);
        Ok(Progress { deleted, done: deleted < rows_max })
    }

    fn prune_orphans(
        &mut self,
        after: Option<DataId>,
        rows_max: u32,
        dry_run: bool,
    ) -> Result<OrphanProgress, Error> {
        let rows_max = rows_max.max(1) as usize;
        let store = self.change();
        let data_ids = store.data.layer(Layer::Latest).keys();
        let data_ids = data_ids.filter(|data_id| after.is_none_or(|after| **data_id > after));
        let seen: Vec<_> = data_ids.take(rows_max).copied().collect();
        let orphans = seen
            .iter()
            .filter(|data_id| store.references(**data_id) == 0 && !self.held.contains_key(data_id));
        let orphans: Vec<_> = orphans.copied().collect();
        drop(store);
        let deleted = if dry_run { 0 } else { self.prune(&orphans) };
        let after = seen.last().copied().filter(|_| seen.len() == rows_max);
        Ok(OrphanProgress { found: orphans.len() as u64, deleted, after })
    }

    fn add_transactions(
        &mut self,
        partitions: u32,
        transactions: &[ReplicatedTransaction],
    ) -> Result<Result<(), ReplicationConflict>, Error> {
        let mut store = self.change();
        for ReplicatedTransaction { info } in transactions {
            let key = (info.tid.partition(partitions), info.tid);
            match store.trans.layer(Layer::Latest).get(&key) {
                None => {
                    store.trans.insert(key, info.record.clone());
                }
                Some(record) if record.is_same(&info.record) => {
                    if info.record.packed && !record.packed {
                        store.trans.insert(key, info.record.clone());
                    }
                }
                Some(_) => return Ok(Err(ReplicationConflict::Transaction(info.tid))),
            }
            if let Some(pack) = &info.pack {
                insert_pack(&mut store, info.tid, pack);
            }
        }
        Ok(Ok(()))
    }

    fn add_objects(
        &mut self,
        partitions: u32,
        objects: &[ReplicatedObject],
    ) -> Result<Result<(), ReplicationConflict>, Error> {
        for ReplicatedObject { tid, object } in objects {
            let ObjectRecord { oid, data_tid, ref content } = *object;
            let partition = oid.partition(partitions);
            let value = match content {
                Content::Value(value) => Some(value),
                _ => None,
            };
            let stored = |tid: Tid| {
                let store = self.contents();
                let row = *store.obj.layer(Layer::Latest).get(&(partition, oid, tid))?;
                let data = store.data.layer(Layer::Latest);
                let stored = row.data_id.and_then(|data_id| data.get(&data_id).cloned());
                let key = |value: &Value| (value.checksum, value.compression);
                Some((row, stored.as_ref().map(key) == value.map(key)))
            };
            match stored(*tid) {
                None => {}
                Some((row, true)) if row.value_tid == data_tid => continue,
                Some(_) => return Ok(Err(ReplicationConflict::Object(oid, *tid))),
            }
            let shared = data_tid.and_then(stored).filter(|(_, is_same)| *is_same);
            let data_id = match (value, shared) {
                (None, _) => None,
                (Some(_), Some((row, _))) => row.data_id,
                (Some(value), None) => match self.store(partition, value) {
                    Some(data_id) => Some(data_id),
                    None => return Ok(Err(ReplicationConflict::Collision(oid, *tid))),
                },
            };
            let row = ObjRow { data_id, value_tid: data_tid };
            self.change().insert_obj((partition, oid, *tid), row);
        }
        Ok(Ok(()))
    }

    fn end_chunk(&mut self, partitions: u32, end: &ChunkEnd) -> Result<Vec<Tid>, Error> {
        let mut store = self.change();
        for tid in &end.delete_transactions {
            store.trans.remove(&(tid.partition(partitions), *tid));
            store.pack.remove(tid);
        }
        let mut data_ids = Vec::new();
        for (oid, tid) in &end.delete_objects {
            let row = store.remove_obj(&(oid.partition(partitions), *oid, *tid));
            data_ids.extend(row.and_then(|row| row.data_id));
        }
        drop(store);
        self.prune(&data_ids);
        for row in self.own_rows()?.iter().filter(|row| row.partition == end.partition) {
            let (mut tid, mut pack) = (row.tid, row.pack);
            if let (Some(source), Some(own)) = (end.source_pack_id, pack) {
                pack = Some(own.min(source.get() as i64));
            }
            if let Some(cell_tid) = end.cell_tid.filter(|_| tid >= 0) {
                tid = cell_tid.get() as i64;
            }
            self.change().pt.insert((row.partition, row.nid), (tid, pack));
        }
        if let (Some(_), Some(tid)) = (self.config()?.backup_tid, end.backup_tid) {
            self.set_backup_tid(Some(tid))?;
        }
        self.sign_packs(&end.approved, &end.rejected)
    }

    fn flush(&mut self) -> Result<(), Error> {
        // A durable commit is about all changes.
        Ok(())
    }

    fn erase(&mut self) -> Result<(), Error> {
        self.change().erase();
        self.held.clear();
        self.next_ids.clear();
        Ok(())
    }
}

/// Stores a pack order; one that is there already wins.
fn insert_pack(store: &mut Store, id: Tid, pack: &PackOrder) {
    if !store.pack.layer(Layer::Latest).contains_key(&id) {
        store.pack.insert(id, pack.clone());
    }
}

fn sign(store: &mut Store, id: Tid, approval: bool) -> bool {
    let order = store.pack.layer(Layer::Latest).get(&id).cloned();
    match order {
        Some(order) => {
            store.pack.insert(id, PackOrder { approved: Some(approval), ..order });
            true
        }
        None => false,
    }
}
