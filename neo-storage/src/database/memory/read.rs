// SPDX-License-Identifier: GPL-2.0-or-later
//! Queries of the memory backend: the plainest code that gives the right answer.

use std::ops::Bound::{Excluded, Included};

use neo_common::types::{Oid, Partition, Tid, Ttid};

use super::MemoryReader;
use super::store::{ObjRow, Store};
use super::table::Layer;
use crate::database::records::*;
use crate::database::{Error, Reader, manager};

/// One layer of the store.
struct View<'a> {
    store: &'a Store,
    layer: Layer,
}

impl MemoryReader {
    fn view<T>(&self, read: impl FnOnce(View<'_>) -> T) -> T {
        read(View { store: &self.disk.contents(), layer: self.layer })
    }
}

impl View<'_> {
    fn config(&self) -> Result<StoredConfig, Error> {
        manager::parse_config(|name| Ok(self.store.config.layer(self.layer).get(name).cloned()))
    }

    /// Revisions of an object with a tid in a range, ascending.
    fn revisions(
        &self,
        partition: Partition,
        oid: Oid,
        tids: std::ops::RangeInclusive<Tid>,
    ) -> impl DoubleEndedIterator<Item = (Tid, ObjRow)> + '_ {
        let (min, max) = tids.into_inner();
        let obj = self.store.obj.layer(self.layer);
        // An empty range would panic.
        let bounds = match min <= max {
            true => (Included((partition, oid, min)), Included((partition, oid, max))),
            false => (Included((partition, oid, min)), Excluded((partition, oid, min))),
        };
        obj.range(bounds).map(|(&(_, _, tid), &row)| (tid, row))
    }

    fn all_revisions(
        &self,
        partition: Partition,
        oid: Oid,
    ) -> impl DoubleEndedIterator<Item = (Tid, ObjRow)> + '_ {
        self.revisions(partition, oid, Tid::ZERO..=Tid::MAX)
    }

    fn revision(&self, tid: Tid, row: ObjRow, next_tid: Option<Tid>) -> Revision {
        let data = self.store.data.layer(self.layer);
        let value = row
            .data_id
            .map(|data_id| data.get(&data_id).expect("revisions refer to existing data").clone());
        Revision { tid, next_tid, value, data_tid: row.value_tid }
    }

    /// Tids of transactions in a range, ascending.
    fn tids(
        &self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
    ) -> impl DoubleEndedIterator<Item = Tid> + '_ {
        let trans = self.store.trans.layer(self.layer);
        let bounds = match min_tid <= max_tid {
            true => (Included((partition, min_tid)), Included((partition, max_tid))),
            false => (Included((partition, min_tid)), Excluded((partition, min_tid))),
        };
        trans.range(bounds).map(|(&(_, tid), _)| tid)
    }

    /// Revisions in (tid, oid) order.
    fn serials(
        &self,
        partition: Partition,
        min: (Tid, Oid),
        max_tid: Tid,
    ) -> impl DoubleEndedIterator<Item = (Tid, Oid)> + '_ {
        let first = (partition, min.0, min.1);
        let bounds = match min.0 <= max_tid {
            true => (Included(first), Included((partition, max_tid, Oid::INVALID))),
            false => (Included(first), Excluded(first)),
        };
        let index = self.store.obj_by_tid.layer(self.layer);
        index.range(bounds).map(|(&(_, tid, oid), ())| (tid, oid))
    }

    fn last_tids(&self, partition: Partition) -> (i64, i64) {
        last_tids(self.store, self.layer, partition)
    }

    fn transaction(&self, partition: Partition, tid: Tid) -> Option<TransactionInfo> {
        let record = self.store.trans.layer(self.layer).get(&(partition, tid))?.clone();
        let pack = self.store.pack.layer(self.layer).get(&tid).cloned();
        Some(TransactionInfo { tid, record, pack })
    }
}

/// Greatest tid of transactions and that of objects, −1 if none.
pub fn last_tids(store: &Store, layer: Layer, partition: Partition) -> (i64, i64) {
    let view = View { store, layer };
    let number = |tid: Option<Tid>| tid.map_or(-1, |tid| tid.get() as i64);
    let trans = view.tids(partition, Tid::ZERO, Tid::MAX).next_back();
    let obj = view.serials(partition, (Tid::ZERO, Oid::ZERO), Tid::MAX).next_back();
    (number(trans), number(obj.map(|(tid, _)| tid)))
}

impl Reader for MemoryReader {
    // Nothing changes while a single thread reads; lanes that share a store accept that a batch sees
    // several states.
    fn open_snapshot(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn close_snapshot(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn config(&mut self) -> Result<StoredConfig, Error> {
        self.view(|view| view.config())
    }

    fn partition_table(&mut self) -> Result<Vec<StoredCell>, Error> {
        self.view(|view| view.store.pt_rows(view.layer).iter().map(|row| row.cell()).collect())
    }

    fn cell_next_tids(&mut self) -> Result<Vec<(Partition, CellNext)>, Error> {
        self.view(|view| {
            let config = view.config()?;
            let mut result = Vec::new();
            for row in view.store.pt_rows(view.layer) {
                if config.nid == Some(row.nid) {
                    let last_tids = || Ok(view.last_tids(row.partition));
                    let next = manager::cell_next(&row, config.backup_tid, last_tids)?;
                    result.extend(next.map(|next| (row.partition, next)));
                }
            }
            Ok(result)
        })
    }

    fn packed_cells(&mut self) -> Result<Vec<PackedCell>, Error> {
        let rows = self.view(|view| view.store.pt_rows(view.layer));
        Ok(rows.iter().filter_map(manager::PtRow::packed).collect())
    }

    fn pack_orders(
        &mut self,
        readable: &[Partition],
        partitions: u32,
        min_id: Tid,
    ) -> Result<Vec<(Tid, PackOrder)>, Error> {
        Ok(self.view(|view| {
            let orders = view.store.pack.layer(view.layer).range(min_id..);
            let unfinished = view.store.ttrans.layer(view.layer);
            orders
                .filter(|(id, _)| readable.contains(&id.partition(partitions)))
                .filter(|(id, _)| !unfinished.contains_key(&id.as_ttid()))
                .map(|(id, order)| (*id, order.clone()))
                .collect()
        }))
    }

    fn unfinished(&mut self) -> Result<Unfinished, Error> {
        Ok(self.view(|view| {
            let tobj = view.store.tobj.layer(view.layer).keys().map(|(ttid, _)| (*ttid, None));
            let ttrans = view.store.ttrans.layer(view.layer).iter();
            tobj.chain(ttrans.map(|(ttid, row)| (*ttid, row.tid))).collect()
        }))
    }

    fn final_tid(&mut self, partition: Partition, ttid: Ttid) -> Result<Option<Tid>, Error> {
        Ok(self.view(|view| {
            let trans = view.store.trans.layer(view.layer);
            let range = (partition, ttid.as_tid())..=(partition, Tid::MAX);
            let mut found = trans.range(range).filter(|(_, record)| record.ttid == ttid);
            found.next().map(|(&(_, tid), _)| tid)
        }))
    }

    fn last_ids(&mut self, readable: &[Partition]) -> Result<LastIds, Error> {
        Ok(self.view(|view| {
            let mut ids = LastIds { last_tid: None, last_oid: None, first_tid: Tid::MAX };
            for &partition in readable {
                let (trans, obj) = view.last_tids(partition);
                ids.last_tid = ids.last_tid.max(u64::try_from(trans.max(obj)).ok().map(Tid::new));
                let obj = view.store.obj.layer(view.layer);
                let all = (partition, Oid::ZERO, Tid::ZERO)..=(partition, Oid::INVALID, Tid::MAX);
                ids.last_oid = ids.last_oid.max(obj.range(all).next_back().map(|(key, _)| key.1));
                let first = view.tids(partition, Tid::ZERO, Tid::MAX).next();
                ids.first_tid = ids.first_tid.min(first.unwrap_or(Tid::MAX));
            }
            ids
        }))
    }

    fn load(
        &mut self,
        partition: Partition,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
    ) -> Result<Loaded, Error> {
        Ok(self.view(|view| {
            let found = match (at, before) {
                (Some(at), _) => view.revisions(partition, oid, at..=at).next(),
                (None, Some(before)) => before
                    .previous()
                    .and_then(|last| view.revisions(partition, oid, Tid::ZERO..=last).next_back()),
                (None, None) => view.all_revisions(partition, oid).next_back(),
            };
            match found {
                Some((tid, row)) => {
                    let after = tid.next().unwrap_or(Tid::INVALID);
                    let next = view.revisions(partition, oid, after..=Tid::MAX).next();
                    Loaded::Found(view.revision(tid, row, next.map(|(tid, _)| tid)))
                }
                None if view.all_revisions(partition, oid).next().is_some() => Loaded::NotAtThatTid,
                None => Loaded::DoesNotExist,
            }
        }))
    }

    fn check_stores(
        &mut self,
        partitions: u32,
        checks: &[StoreCheck],
    ) -> Result<Vec<StoreChecked>, Error> {
        Ok(self.view(|view| {
            let check = |&StoreCheck { oid, data_tid }: &StoreCheck| {
                let partition = oid.partition(partitions);
                let obj = view.store.obj.layer(view.layer);
                StoreChecked {
                    last_tid: view.all_revisions(partition, oid).next_back().map(|(tid, _)| tid),
                    data_tid_exists: data_tid
                        .is_some_and(|tid| obj.contains_key(&(partition, oid, tid))),
                }
            };
            checks.iter().map(check).collect()
        }))
    }

    fn data(&mut self, data_id: DataId) -> Result<Option<Value>, Error> {
        Ok(self.view(|view| view.store.data.layer(view.layer).get(&data_id).cloned()))
    }

    fn history(
        &mut self,
        partition: Partition,
        oid: Oid,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(Tid, u64)>, Error> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(self.view(|view| {
            let revisions = view.all_revisions(partition, oid).rev();
            let size = |(tid, row)| {
                let value = view.revision(tid, row, None).value;
                (tid, value.map_or(0, |value| value.data.len() as u64))
            };
            revisions.skip(offset).take(length as usize).map(size).collect()
        }))
    }

    fn find_undo(&mut self, search: &UndoSearch) -> Result<Vec<UndoFound>, Error> {
        let UndoSearch { partitions, ltid, undone_tid, ref objects } = *search;
        Ok(self.view(|view| {
            let find = |&(oid, own_tid): &(Oid, Option<Tid>)| {
                let all = view.all_revisions(oid.partition(partitions), oid);
                let all: Vec<_> = all.map(|(tid, row)| (tid, row.value_tid)).collect();
                let Ok(index) = all.binary_search_by_key(&undone_tid, |(tid, _)| *tid) else {
                    return UndoFound::NothingToUndo;
                };
                let previous = index.checked_sub(1).map(|previous| all[previous].0);
                let later = all[index + 1..].to_vec();
                let history = manager::UndoHistory { previous, later };
                manager::find_undo(&history, undone_tid, ltid, own_tid)
            };
            objects.iter().map(find).collect()
        }))
    }

    fn transaction(
        &mut self,
        partition: Partition,
        tid: Tid,
    ) -> Result<Option<TransactionInfo>, Error> {
        Ok(self.view(|view| view.transaction(partition, tid)))
    }

    fn tids(
        &mut self,
        partitions: &[Partition],
        offset: u64,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(self.view(|view| {
            let all = partitions.iter().flat_map(|p| view.tids(*p, Tid::ZERO, Tid::MAX));
            let mut all: Vec<_> = all.collect();
            all.sort_unstable();
            all.into_iter().rev().skip(offset).take(length as usize).collect()
        }))
    }

    fn tids_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        let length = length as usize;
        Ok(self.view(|view| view.tids(partition, min_tid, max_tid).take(length).collect()))
    }

    fn oids_from(
        &mut self,
        partition: Partition,
        partitions: u32,
        min_oid: Oid,
        tid: Tid,
        length: u32,
    ) -> Result<OidsFound, Error> {
        Ok(self.view(|view| {
            let range =
                (partition, min_oid, Tid::ZERO)..=(partition, Oid::new(i64::MAX as u64), Tid::MAX);
            // Last revision of each object at that time.
            let mut last: Vec<(Oid, ObjRow)> = Vec::new();
            for (&(_, oid, at), &row) in view.store.obj.layer(view.layer).range(range) {
                if at > tid {
                    continue;
                }
                let count = last.len();
                match last.last_mut() {
                    Some((last, seen)) if *last == oid => *seen = row,
                    _ if count == length as usize => break,
                    _ => last.push((oid, row)),
                }
            }
            let next_oid = match last.last() {
                Some((oid, _)) if last.len() == length as usize => {
                    Some(Oid::new(oid.get() + u64::from(partitions)))
                }
                _ => None,
            };
            let live = last.iter().filter(|(_, row)| row.data_id.is_some());
            OidsFound { next_oid, oids: live.map(|(oid, _)| *oid).collect() }
        }))
    }

    fn revisions_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<(Tid, Oid)>, Error> {
        let (min, length) = ((min_tid, min_oid), length as usize);
        Ok(self.view(|view| view.serials(partition, min, max_tid).take(length).collect()))
    }

    fn fetch_objects(
        &mut self,
        partition: Partition,
        revisions: &[(Tid, Oid)],
        bytes_max: usize,
    ) -> Result<Vec<Option<Revision>>, Error> {
        Ok(self.view(|view| {
            let mut result = Vec::new();
            let mut size = 0;
            for &(tid, oid) in revisions {
                let row = view.store.obj.layer(view.layer).get(&(partition, oid, tid));
                let revision = row.map(|row| view.revision(tid, *row, None));
                let value = revision.as_ref().and_then(|revision| revision.value.as_ref());
                size += value.map_or(0, |value| value.data.len());
                result.push(revision);
                if size >= bytes_max {
                    break;
                }
            }
            result
        }))
    }

    fn check_tid_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<TidDigest, Error> {
        let tids = self.tids_from(partition, min_tid, max_tid, length)?;
        manager::digest_tids(tids.into_iter().map(Ok))
    }

    fn check_serial_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<SerialDigest, Error> {
        let serials = self.revisions_from(partition, min_tid, min_oid, max_tid, length)?;
        manager::digest_serials(serials.into_iter().map(Ok))
    }
}
