// SPDX-License-Identifier: GPL-2.0-or-later
//! Tables of the memory backend, with the same rows as schema version 4, and the changes of them
//! that keep indices right.

use std::collections::BTreeMap;

use neo_common::types::{NodeId, Oid, Partition, Tid, Ttid};

use super::table::{Crash, Layer, Table};
use crate::database::CommitLevel;
use crate::database::manager::PtRow;
use crate::database::records::{DataId, PackOrder, TransactionRecord, Value};

/// Row of `obj` or `tobj`, without its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjRow {
    pub data_id: Option<DataId>,
    pub value_tid: Option<Tid>,
}

/// Row of `ttrans`, without its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TtransRow {
    pub partition: Partition,
    pub tid: Option<Tid>,
    pub record: TransactionRecord,
}

/// All that is stored.
#[derive(Clone, Default, Debug)]
pub struct Store {
    pub config: Table<&'static str, String>,
    pub pt: Table<(Partition, NodeId), (i64, Option<i64>)>,
    pub pack: Table<Tid, PackOrder>,
    pub trans: Table<(Partition, Tid), TransactionRecord>,
    pub obj: Table<(Partition, Oid, Tid), ObjRow>,
    /// Index of `obj`.
    pub obj_by_tid: Table<(Partition, Tid, Oid), ()>,
    /// Index of `obj`: number of rows per data id.
    pub obj_by_data: Table<DataId, u32>,
    pub data: Table<DataId, Value>,
    pub ttrans: Table<Ttid, TtransRow>,
    pub tobj: Table<(Ttid, Oid), (Partition, ObjRow)>,
}

impl Store {
    fn each(&mut self, mut action: impl FnMut(&mut dyn AnyTable)) {
        action(&mut self.config);
        action(&mut self.pt);
        action(&mut self.pack);
        action(&mut self.trans);
        action(&mut self.obj);
        action(&mut self.obj_by_tid);
        action(&mut self.obj_by_data);
        action(&mut self.data);
        action(&mut self.ttrans);
        action(&mut self.tobj);
    }

    pub fn commit(&mut self, level: CommitLevel) {
        self.each(|table| table.commit(level));
    }

    pub fn crash(&mut self, crash: Crash) {
        self.each(|table| table.crash(crash));
    }

    pub fn erase(&mut self) {
        self.each(|table| table.clear());
    }

    pub fn pt_rows(&self, layer: Layer) -> Vec<PtRow> {
        let rows = self.pt.layer(layer).iter();
        rows.map(|(&(partition, nid), &(tid, pack))| PtRow { partition, nid, tid, pack }).collect()
    }

    pub fn insert_obj(&mut self, key: (Partition, Oid, Tid), row: ObjRow) {
        let (partition, oid, tid) = key;
        let replaced = self.obj.insert(key, row);
        assert!(replaced.is_none(), "two revisions of {oid} at {tid}");
        self.obj_by_tid.insert((partition, tid, oid), ());
        if let Some(data_id) = row.data_id {
            let count = self.references(data_id);
            self.obj_by_data.insert(data_id, count + 1);
        }
    }

    pub fn remove_obj(&mut self, key: &(Partition, Oid, Tid)) -> Option<ObjRow> {
        let (partition, oid, tid) = *key;
        let row = self.obj.remove(key)?;
        self.obj_by_tid.remove(&(partition, tid, oid));
        if let Some(data_id) = row.data_id {
            match self.references(data_id) {
                1 => {
                    self.obj_by_data.remove(&data_id);
                }
                count => {
                    self.obj_by_data.insert(data_id, count - 1);
                }
            }
        }
        Some(row)
    }

    /// Number of revisions that refer to data.
    pub fn references(&self, data_id: DataId) -> u32 {
        self.obj_by_data.layer(Layer::Latest).get(&data_id).copied().unwrap_or(0)
    }

    /// Deletes temporary rows of a transaction; returns the data they referred to.
    pub fn remove_tobj(&mut self, ttid: Ttid) -> Vec<((Partition, Oid), ObjRow)> {
        let rows = self.tobj.layer(Layer::Latest).range((ttid, Oid::ZERO)..=(ttid, Oid::INVALID));
        let rows: Vec<_> =
            rows.map(|(&(_, oid), &(partition, row))| ((partition, oid), row)).collect();
        for ((_, oid), _) in &rows {
            self.tobj.remove(&(ttid, *oid));
        }
        rows
    }

    /// Number of rows of `tobj` that refer to each data.
    pub fn held(&self) -> BTreeMap<DataId, u32> {
        let mut held = BTreeMap::new();
        for (_, row) in self.tobj.layer(Layer::Latest).values() {
            if let Some(data_id) = row.data_id {
                *held.entry(data_id).or_default() += 1;
            }
        }
        held
    }
}

/// What is done to all tables alike.
trait AnyTable {
    fn commit(&mut self, level: CommitLevel);
    fn crash(&mut self, crash: Crash);
    fn clear(&mut self);
}

impl<K: Ord + Clone, V: Clone> AnyTable for Table<K, V> {
    fn commit(&mut self, level: CommitLevel) {
        Self::commit(self, level);
    }
    fn crash(&mut self, crash: Crash) {
        Self::crash(self, crash);
    }
    fn clear(&mut self) {
        Self::clear(self);
    }
}
