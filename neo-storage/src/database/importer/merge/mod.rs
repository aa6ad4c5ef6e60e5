// SPDX-License-Identifier: GPL-2.0-or-later
//! One view on two databases: the source up to its last tid, the destination after it.
//!
//! ```text
//!  tids    0 ........ imported ........ last of the source ........ now
//!          destination        source only                  destination only
//!          and source
//! ```
//!
//! What is asked is answered as if everything was imported already. The source never changes, so it
//! is right about everything up to its last tid; the destination is asked first where it is
//! complete, because it is faster and has its data compressed.
//!
//! 1. `imported` is read *before* the destination: rows up to it are there for sure, and maybe more.
//!    In a snapshot, before the snapshot.
//! 2. Rows of the destination between `imported` and the last tid of the source may exist: a batch
//!    that is being written, a part of a transaction, a revision that an undo needed early. They are
//!    equal to those of the source and never asked for.
//!
//! Upstream looks for loads and transactions only, and refuses the rest during an import. A page of
//! rows costs more here than in a database: a look at the file for each row.

mod both;

use std::sync::Arc;

use neo_common::types::{Oid, Partition, Tid, Ttid};

use super::super::records::*;
use super::super::{Error, Reader};
use super::source::Source;
use super::state::Shared;

/// A connection to the destination.
pub trait Inner: Send {
    /// Reads on it.
    fn reader(&mut self) -> &mut dyn Reader;
}

impl Inner for Box<dyn Reader> {
    fn reader(&mut self) -> &mut dyn Reader {
        self.as_mut()
    }
}

/// See the module documentation.
pub struct Merged<T> {
    /// The destination.
    pub inner: T,
    source: Option<Arc<Source>>,
    shared: Arc<Shared>,
    /// What was imported when the snapshot was opened.
    snapshot: Option<Tid>,
}

/// What has to be looked at, because not everything is imported.
struct Both<'a> {
    inner: &'a mut dyn Reader,
    source: &'a Source,
    partitions: u32,
    imported: Tid,
    /// Last tid of the source.
    last_tid: Tid,
}

impl<T: Inner> Merged<T> {
    /// Without a source, everything is imported.
    pub fn new(inner: T, source: Option<Arc<Source>>, shared: Arc<Shared>) -> Self {
        Self { inner, source, shared, snapshot: None }
    }

    /// The source, as long as something of it is not imported.
    fn both(&mut self) -> Result<Both<'_>, &mut dyn Reader> {
        let imported = self.snapshot.unwrap_or_else(|| self.shared.imported());
        let last_tid = self.shared.last_tid();
        match &self.source {
            Some(source) if imported < last_tid => Ok(Both {
                inner: self.inner.reader(),
                source,
                partitions: self.shared.partitions().max(1),
                imported,
                last_tid,
            }),
            _ => Err(self.inner.reader()),
        }
    }
}

/// Asks both, or only the destination once everything is imported.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self.both() {
            Ok(mut both) => both.$method($($argument),*),
            Err(inner) => inner.$method($($argument),*),
        }
    };
}

impl<T: Inner> Reader for Merged<T> {
    fn open_snapshot(&mut self) -> Result<(), Error> {
        self.snapshot = Some(self.shared.imported());
        self.inner.reader().open_snapshot()
    }

    fn close_snapshot(&mut self) -> Result<(), Error> {
        self.snapshot = None;
        self.inner.reader().close_snapshot()
    }

    fn config(&mut self) -> Result<StoredConfig, Error> {
        self.inner.reader().config()
    }

    fn partition_table(&mut self) -> Result<Vec<StoredCell>, Error> {
        self.inner.reader().partition_table()
    }

    fn cell_next_tids(&mut self) -> Result<Vec<(Partition, CellNext)>, Error> {
        self.inner.reader().cell_next_tids()
    }

    fn packed_cells(&mut self) -> Result<Vec<PackedCell>, Error> {
        self.inner.reader().packed_cells()
    }

    fn pack_orders(
        &mut self,
        readable: &[Partition],
        partitions: u32,
        min_id: Tid,
    ) -> Result<Vec<(Tid, PackOrder)>, Error> {
        self.inner.reader().pack_orders(readable, partitions, min_id)
    }

    fn unfinished(&mut self) -> Result<Unfinished, Error> {
        self.inner.reader().unfinished()
    }

    fn final_tid(&mut self, partition: Partition, ttid: Ttid) -> Result<Option<Tid>, Error> {
        // The ttid of a client is later than all of the source.
        self.inner.reader().final_tid(partition, ttid)
    }

    fn last_ids(&mut self, readable: &[Partition]) -> Result<LastIds, Error> {
        either!(self.last_ids(readable))
    }

    fn load(
        &mut self,
        partition: Partition,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
    ) -> Result<Loaded, Error> {
        either!(self.load(partition, oid, at, before))
    }

    fn check_stores(
        &mut self,
        partitions: u32,
        checks: &[StoreCheck],
    ) -> Result<Vec<StoreChecked>, Error> {
        either!(self.check_stores(partitions, checks))
    }

    fn data(&mut self, data_id: DataId) -> Result<Option<Value>, Error> {
        self.inner.reader().data(data_id)
    }

    fn history(
        &mut self,
        partition: Partition,
        oid: Oid,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(Tid, u64)>, Error> {
        either!(self.history(partition, oid, offset, length))
    }

    fn find_undo(&mut self, search: &UndoSearch) -> Result<Vec<UndoFound>, Error> {
        either!(self.find_undo(search))
    }

    fn transaction(
        &mut self,
        partition: Partition,
        tid: Tid,
    ) -> Result<Option<TransactionInfo>, Error> {
        either!(self.transaction(partition, tid))
    }

    fn tids(
        &mut self,
        partitions: &[Partition],
        offset: u64,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        either!(self.tids(partitions, offset, length))
    }

    fn tids_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        either!(self.tids_from(partition, min_tid, max_tid, length))
    }

    fn oids_from(
        &mut self,
        partition: Partition,
        partitions: u32,
        min_oid: Oid,
        tid: Tid,
        length: u32,
    ) -> Result<OidsFound, Error> {
        either!(self.oids_from(partition, partitions, min_oid, tid, length))
    }

    fn revisions_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<(Tid, Oid)>, Error> {
        either!(self.revisions_from(partition, min_tid, min_oid, max_tid, length))
    }

    fn fetch_objects(
        &mut self,
        partition: Partition,
        revisions: &[(Tid, Oid)],
        bytes_max: usize,
    ) -> Result<Vec<Option<Revision>>, Error> {
        either!(self.fetch_objects(partition, revisions, bytes_max))
    }

    fn check_tid_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<TidDigest, Error> {
        either!(self.check_tid_range(partition, min_tid, max_tid, length))
    }

    fn check_serial_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<SerialDigest, Error> {
        either!(self.check_serial_range(partition, min_tid, min_oid, max_tid, length))
    }
}
