// SPDX-License-Identifier: GPL-2.0-or-later
//! Answers from two databases, as long as not everything is imported: see the module above.

use neo_common::types::{Oid, Partition, Tid};

use super::Both;
use crate::database::Error;
use crate::database::manager::{self, UndoHistory};
use crate::database::records::*;

/// Revisions of the destination that are listed at once.
const PAGE_LEN: u32 = 256;

impl Both<'_> {
    /// Whether a tid is only in the source.
    fn is_missing(&self, tid: Tid) -> bool {
        self.imported < tid && tid <= self.last_tid
    }

    /// First tid that may only be in the source, and the first one that can not be there.
    fn bounds(&self) -> (Tid, Tid) {
        (Tid::new(self.imported.get() + 1), Tid::new(self.last_tid.get() + 1))
    }

    pub(super) fn last_ids(&mut self, readable: &[Partition]) -> Result<LastIds, Error> {
        let mut ids = self.inner.last_ids(readable)?;
        if !readable.is_empty() {
            // Whatever the partition: it is about ids that may be given next.
            let summary = self.source.summary();
            ids.last_tid = ids.last_tid.max(Some(summary.last_tid));
            ids.last_oid = ids.last_oid.max(summary.last_oid);
            ids.first_tid = ids.first_tid.min(summary.first_tid.unwrap_or(Tid::MAX));
        }
        Ok(ids)
    }

    pub(super) fn load(
        &mut self,
        partition: Partition,
        oid: Oid,
        at: Option<Tid>,
        before: Option<Tid>,
    ) -> Result<Loaded, Error> {
        let loaded = self.inner.load(partition, oid, at, before)?;
        if let Loaded::Found(revision) = &loaded {
            // Nothing of the source can be in between.
            let is_complete = revision.next_tid.is_some_and(|next| next <= self.imported);
            if revision.tid > self.last_tid || is_complete {
                return Ok(loaded);
            }
        }
        if !self.source.contains(oid) {
            return Ok(loaded);
        }
        let (mut next_tid, mut found) = (None, None);
        for place in self.source.revisions(oid) {
            let place = place?;
            let is_wanted = match (at, before) {
                (Some(at), _) => place.tid <= at,
                (None, Some(before)) => place.tid < before,
                (None, None) => true,
            };
            if is_wanted {
                found = Some(place).filter(|place| at.is_none_or(|at| place.tid == at));
                break;
            }
            next_tid = Some(place.tid);
        }
        let Some(place) = found else { return Ok(Loaded::NotAtThatTid) };
        let imported = match loaded {
            Loaded::Found(revision) if revision.tid == place.tid => Some(revision),
            Loaded::Found(_) | Loaded::NotAtThatTid | Loaded::DoesNotExist => None,
        };
        if next_tid.is_none() {
            let known = imported.as_ref().and_then(|revision| revision.next_tid);
            next_tid = match known {
                Some(tid) => Some(tid),
                None => self.first_after(partition, oid)?,
            };
        }
        let revision = match imported {
            Some(revision) => revision,
            None => self.source.load(&place)?,
        };
        Ok(Loaded::Found(Revision { next_tid, ..revision }))
    }

    /// First revision after the source.
    fn first_after(&mut self, partition: Partition, oid: Oid) -> Result<Option<Tid>, Error> {
        let check = StoreCheck { oid, data_tid: None };
        let last = self.inner.check_stores(self.partitions, &[check])?[0].last_tid;
        let Some(mut high) = last.filter(|tid| *tid > self.last_tid) else { return Ok(None) };
        // No revision is in `]self.last_tid, low]`, and there is one at `high`. The first look is
        // just below: in general, there is only one.
        let (mut low, mut middle) = (self.last_tid, Tid::new(high.get() - 1));
        while low < middle {
            let before = Some(Tid::new(middle.get() + 1));
            match self.inner.load(partition, oid, None, before)? {
                Loaded::Found(revision) if revision.tid > self.last_tid => high = revision.tid,
                Loaded::Found(_) | Loaded::NotAtThatTid | Loaded::DoesNotExist => low = middle,
            }
            middle = Tid::new(low.get().midpoint(high.get()));
        }
        Ok(Some(high))
    }

    pub(super) fn check_stores(
        &mut self,
        partitions: u32,
        checks: &[StoreCheck],
    ) -> Result<Vec<StoreChecked>, Error> {
        let mut result = self.inner.check_stores(partitions, checks)?;
        for (check, checked) in checks.iter().zip(&mut result) {
            if checked.last_tid.is_none_or(|tid| tid <= self.last_tid)
                && let Some(last) = self.source.revisions(check.oid).next()
            {
                checked.last_tid = checked.last_tid.max(Some(last?.tid));
            }
            if let Some(data_tid) = check.data_tid.filter(|tid| self.is_missing(*tid)) {
                checked.data_tid_exists = self.source.revision_at(check.oid, data_tid)?.is_some();
            }
        }
        Ok(result)
    }

    pub(super) fn history(
        &mut self,
        partition: Partition,
        oid: Oid,
        offset: u64,
        length: u32,
    ) -> Result<Vec<(Tid, u64)>, Error> {
        if !self.source.contains(oid) {
            return self.inner.history(partition, oid, offset, length);
        }
        let (mut result, mut skipped) = (Vec::new(), 0);
        let wanted = length as usize;
        while result.len() < wanted {
            let page = self.inner.history(partition, oid, skipped, PAGE_LEN)?;
            let new = page.iter().take_while(|(tid, _)| *tid > self.last_tid);
            let before = skipped;
            for (index, row) in new.enumerate() {
                if before + index as u64 >= offset && result.len() < wanted {
                    result.push(*row);
                }
                skipped += 1;
            }
            if skipped - before < u64::from(PAGE_LEN) {
                break;
            }
        }
        for (place, index) in self.source.revisions(oid).zip(skipped..) {
            if result.len() == wanted {
                break;
            }
            let place = place?;
            if index >= offset {
                result.push((place.tid, self.source.data_size(&place)?.0.unwrap_or(0)));
            }
        }
        Ok(result)
    }

    pub(super) fn find_undo(&mut self, search: &UndoSearch) -> Result<Vec<UndoFound>, Error> {
        let UndoSearch { partitions, ltid, undone_tid, ref objects } = *search;
        let mut result = Vec::with_capacity(objects.len());
        for &(oid, own_tid) in objects {
            if !self.source.contains(oid) {
                let objects = vec![(oid, own_tid)];
                let search = UndoSearch { partitions, ltid, undone_tid, objects };
                result.extend(self.inner.find_undo(&search)?);
                continue;
            }
            let history = self.undo_history(oid.partition(partitions), oid, undone_tid)?;
            result.push(match history {
                Some(history) => manager::find_undo(&history, undone_tid, ltid, own_tid),
                None => UndoFound::NothingToUndo,
            });
        }
        Ok(result)
    }

    /// Revisions of an object from the one before `undone_tid` on; `None` if there is none at it.
    fn undo_history(
        &mut self,
        partition: Partition,
        oid: Oid,
        undone_tid: Tid,
    ) -> Result<Option<UndoHistory>, Error> {
        // Newest first, down to the one before `undone_tid`.
        let mut revisions: Vec<(Tid, Option<Tid>)> = Vec::new();
        let is_enough = |revisions: &[(Tid, _)]| {
            revisions.last().is_some_and(|(tid, _): &(Tid, Option<Tid>)| *tid < undone_tid)
        };
        let mut offset = 0;
        'pages: loop {
            let page = self.inner.history(partition, oid, offset, PAGE_LEN)?;
            for (tid, _) in &page {
                if *tid <= self.last_tid || is_enough(&revisions) {
                    break 'pages;
                }
                let loaded = self.inner.load(partition, oid, Some(*tid), None)?;
                let Loaded::Found(revision) = loaded else { continue };
                revisions.push((*tid, revision.data_tid));
            }
            if page.len() < PAGE_LEN as usize {
                break;
            }
            offset += u64::from(PAGE_LEN);
        }
        for place in self.source.revisions(oid) {
            if is_enough(&revisions) {
                break;
            }
            let place = place?;
            revisions.push((place.tid, self.source.data_size(&place)?.1));
        }
        let Some(index) = revisions.iter().position(|(tid, _)| *tid == undone_tid) else {
            return Ok(None);
        };
        let previous = revisions.get(index + 1).map(|(tid, _)| *tid);
        revisions.truncate(index);
        revisions.reverse();
        Ok(Some(UndoHistory { previous, later: revisions }))
    }

    pub(super) fn transaction(
        &mut self,
        partition: Partition,
        tid: Tid,
    ) -> Result<Option<TransactionInfo>, Error> {
        if !self.is_missing(tid) {
            return self.inner.transaction(partition, tid);
        }
        if tid.partition(self.partitions) != partition {
            return Ok(None);
        }
        self.source.transaction(tid)
    }

    pub(super) fn tids(
        &mut self,
        partitions: &[Partition],
        offset: u64,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        let wanted = offset.saturating_add(u64::from(length));
        let mut result =
            self.inner.tids(partitions, 0, u32::try_from(wanted).unwrap_or(u32::MAX))?;
        result.retain(|tid| *tid > self.last_tid);
        let mut count = result.len() as u64;
        // Only what is asked for is kept.
        result = result.into_iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)).collect();
        for place in self.source.transactions_back() {
            if count >= wanted {
                break;
            }
            let tid = place?.tid;
            if partitions.contains(&tid.partition(self.partitions)) {
                if count >= offset {
                    result.push(tid);
                }
                count += 1;
            }
        }
        Ok(result)
    }

    pub(super) fn tids_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<Tid>, Error> {
        let (missing, after) = self.bounds();
        let (mut result, wanted) = (Vec::new(), length as usize);
        if min_tid < missing {
            let max_tid = max_tid.min(self.imported);
            result = self.inner.tids_from(partition, min_tid, max_tid, length)?;
        }
        if result.len() < wanted && min_tid < after {
            for place in self.source.transactions(min_tid.max(missing)) {
                let tid = place?.tid;
                if tid > max_tid || result.len() == wanted {
                    break;
                }
                if tid.partition(self.partitions) == partition {
                    result.push(tid);
                }
            }
        }
        let left = (wanted - result.len()) as u32;
        if left > 0 && max_tid >= after {
            result.extend(self.inner.tids_from(partition, min_tid.max(after), max_tid, left)?);
        }
        Ok(result)
    }

    pub(super) fn oids_from(
        &mut self,
        partition: Partition,
        partitions: u32,
        min_oid: Oid,
        tid: Tid,
        length: u32,
    ) -> Result<OidsFound, Error> {
        // Each is right up to where it goes on.
        let found = self.inner.oids_from(partition, partitions, min_oid, tid, length)?;
        let source = self.source;
        let own = source.oids_from(min_oid);
        let mut own = own.filter(|oid| oid.partition(partitions) == partition);
        let candidates: Vec<Oid> = own.by_ref().take(length as usize).collect();
        let own_next = own.next();
        let next_oid = match (found.next_oid, own_next) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let is_before_next = |oid: &Oid| next_oid.is_none_or(|next| *oid < next);
        let mut oids: Vec<Oid> =
            found.oids.iter().copied().filter(|oid| !source.contains(*oid)).collect();
        for oid in candidates {
            if is_before_next(&oid) && self.exists_at(partition, partitions, oid, tid)? {
                oids.push(oid);
            }
        }
        oids.retain(is_before_next);
        oids.sort_unstable();
        Ok(OidsFound { next_oid, oids })
    }

    /// Whether an object of the source is not deleted at `tid`.
    fn exists_at(
        &mut self,
        partition: Partition,
        partitions: u32,
        oid: Oid,
        tid: Tid,
    ) -> Result<bool, Error> {
        let check = StoreCheck { oid, data_tid: None };
        if tid > self.last_tid
            && self.inner.check_stores(partitions, &[check])?[0].last_tid > Some(self.last_tid)
        {
            let before = tid.next().filter(|tid| *tid <= Tid::MAX);
            if let Loaded::Found(revision) = self.inner.load(partition, oid, None, before)?
                && revision.tid > self.last_tid
            {
                return Ok(revision.value.is_some());
            }
        }
        for place in self.source.revisions(oid) {
            let place = place?;
            if place.tid <= tid {
                return Ok(self.source.data_size(&place)?.0.is_some());
            }
        }
        Ok(false)
    }

    pub(super) fn revisions_from(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<Vec<(Tid, Oid)>, Error> {
        let (missing, after) = self.bounds();
        let (mut result, wanted) = (Vec::new(), length as usize);
        if min_tid < missing {
            let max_tid = max_tid.min(self.imported);
            result = self.inner.revisions_from(partition, min_tid, min_oid, max_tid, length)?;
        }
        if result.len() < wanted && min_tid < after {
            for place in self.source.transactions(min_tid.max(missing)) {
                let place = place?;
                if place.tid > max_tid || result.len() == wanted {
                    break;
                }
                let mut oids = self.source.oids(&place)?;
                oids.retain(|oid| {
                    oid.partition(self.partitions) == partition
                        && (place.tid > min_tid || *oid >= min_oid)
                });
                oids.sort_unstable();
                let left = wanted - result.len();
                result.extend(oids.into_iter().take(left).map(|oid| (place.tid, oid)));
            }
        }
        let left = (wanted - result.len()) as u32;
        if left > 0 && max_tid >= after {
            let (tid, oid) = if min_tid >= after { (min_tid, min_oid) } else { (after, Oid::ZERO) };
            result.extend(self.inner.revisions_from(partition, tid, oid, max_tid, left)?);
        }
        Ok(result)
    }

    pub(super) fn fetch_objects(
        &mut self,
        partition: Partition,
        revisions: &[(Tid, Oid)],
        bytes_max: usize,
    ) -> Result<Vec<Option<Revision>>, Error> {
        let (mut result, mut bytes) = (Vec::with_capacity(revisions.len()), 0);
        for &(tid, oid) in revisions {
            let revision = if !self.is_missing(tid) {
                self.inner.fetch_objects(partition, &[(tid, oid)], usize::MAX)?.pop().flatten()
            } else if oid.partition(self.partitions) == partition {
                let place = self.source.revision_at(oid, tid)?;
                place.map(|place| self.source.revision(&place)).transpose()?
            } else {
                None
            };
            let value = revision.as_ref().and_then(|revision| revision.value.as_ref());
            bytes += value.map_or(0, |value| value.data.len());
            result.push(revision);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(result)
    }

    pub(super) fn check_tid_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        max_tid: Tid,
        length: u32,
    ) -> Result<TidDigest, Error> {
        let tids = self.tids_from(partition, min_tid, max_tid, length)?;
        manager::digest_tids(tids.into_iter().map(Ok))
    }

    pub(super) fn check_serial_range(
        &mut self,
        partition: Partition,
        min_tid: Tid,
        min_oid: Oid,
        max_tid: Tid,
        length: u32,
    ) -> Result<SerialDigest, Error> {
        let revisions = self.revisions_from(partition, min_tid, min_oid, max_tid, length)?;
        manager::digest_serials(revisions.into_iter().map(Ok))
    }
}
