// SPDX-License-Identifier: GPL-2.0-or-later
//! Whether what storages know and say agrees with their databases, long before somebody suffers from it.
//!
//! - What a storage believes to be the last revision of an object decides about conflicts. If it is wrong,
//!   an update is lost as soon as somebody stores the object.
//! - A cell that is said to be replicated becomes readable. If that is not on disk, it lacks data after a
//!   loss of power, if the others have heard of it by then.
//! - A cell that is said to be packed is not packed again.

use std::collections::BTreeMap;
use std::time::Duration;

use neo_common::types::{Oid, Partition, Tid};
use neo_storage::database::memory::Layer;
use neo_storage::database::{CellNext, Reader, StoreCheck};
use neo_storage::transactions::last_tids::LastTid;

use super::{Cluster, Role, StorageProcess};
use crate::model::{Checked, Violation, ensure};
use crate::network::HostId;

/// How often the invariants of storages are checked.
const INVARIANTS_EVERY: Duration = Duration::from_millis(50);

/// How often what they believe is compared with their databases.
const BELIEFS_EVERY: Duration = Duration::from_millis(500);

impl Cluster {
    /// Checks from time to time that what storages know in several places agrees, above all that
    /// whoever waits for a lock waits for somebody.
    pub(super) fn check_invariants(&mut self) {
        let now = self.world.now();
        if now < self.invariants_at {
            return;
        }
        self.invariants_at = now + INVARIANTS_EVERY;
        let looks_at_disks = now >= self.beliefs_at;
        if looks_at_disks {
            self.beliefs_at = now + BELIEFS_EVERY;
        }
        for host in self.hosts(Role::Storage) {
            let Some(process) = self.world.process::<StorageProcess>(host) else { continue };
            process.engine.app.check_invariants();
            if looks_at_disks {
                let checked = self.check_last_revisions(host);
                self.scene.get().check(checked);
            }
        }
    }

    /// Checks that what a storage takes for the last revisions of objects are those of its database.
    fn check_last_revisions(&mut self, host: HostId) -> Checked {
        let Some(process) = self.world.process::<StorageProcess>(host) else { return Ok(()) };
        let app = &process.engine.app;
        let Some(transactions) = app.transactions() else { return Ok(()) };
        let believed: BTreeMap<Oid, LastTid> = transactions.last_revisions().collect();
        let checks: Vec<_> =
            believed.keys().map(|oid| StoreCheck { oid: *oid, data_tid: None }).collect();
        let partitions = app.table().partitions();
        let stored = self.disks[&host].reader(Layer::Latest).check_stores(partitions, &checks);
        let stored = stored.map_err(|error| Violation(error.to_string()))?;
        for ((oid, believed), stored) in believed.into_iter().zip(stored) {
            // An object that was deleted may be packed away completely.
            ensure!(
                stored.last_tid.is_none() || stored.last_tid == believed,
                "{} believes that the last revision of {oid} is {believed:?}, it has {:?}",
                self.world.label(host),
                stored.last_tid
            );
        }
        Ok(())
    }

    /// A storage says that a partition is replicated: checks that this is on its disk, and that the
    /// locks of the partition are in order, because nobody else will have an eye on them.
    pub(super) fn check_replicated(
        &mut self,
        host: HostId,
        partition: Partition,
        tid: Tid,
    ) -> Checked {
        if let Some(process) = self.world.process::<StorageProcess>(host) {
            process.engine.app.check_invariants();
        }
        let cells = self.disks[&host].reader(Layer::Durable).cell_next_tids();
        for (other, next) in cells.map_err(|error| Violation(error.to_string()))? {
            // Nothing is before tid 1, and a cell without anything has no progress.
            let is_missing =
                matches!(next, CellNext::OutOfDate(next) if next <= tid && tid != Tid::ZERO);
            ensure!(
                other != partition || !is_missing,
                "{} says that partition {partition} is replicated up to {tid}, on its disk is {next:?}",
                self.world.label(host)
            );
        }
        self.check_packed(host, partition)?;
        self.check_last_revisions(host)
    }

    /// Checks that what a cell has is packed as far as its storage says. What a source has not packed yet
    /// when it is fetched has to be packed here; a later pack of everything would hide that it is not.
    fn check_packed(&mut self, host: HostId, partition: Partition) -> Checked {
        let failed = |error: neo_storage::database::Error| Violation(error.to_string());
        let mut reader = self.disks[&host].reader(Layer::Latest);
        let cells = reader.packed_cells().map_err(failed)?;
        let Some(cell) = cells.into_iter().find(|cell| cell.partition == partition) else {
            return Ok(());
        };
        let rows = reader.revisions_from(partition, Tid::ZERO, Oid::ZERO, Tid::MAX, u32::MAX);
        let scene = self.scene.get();
        for (tid, oid) in rows.map_err(failed)? {
            ensure!(
                !scene.model.is_packed_until(oid, tid, cell.pack_id),
                "{} says that partition {partition} is replicated, and packed by {}; revision {tid} \
                 of {oid} is there",
                self.world.label(host),
                cell.pack_id
            );
        }
        Ok(())
    }
}
