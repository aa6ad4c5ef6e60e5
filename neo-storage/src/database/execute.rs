// SPDX-License-Identifier: GPL-2.0-or-later
//! From a job to a call of the backend: the only caller of [`Database`] and [`Reader`].
//!
//! Backends hold signed 64-bit integers (SQLite has no others). What does not fit is answered here,
//! in the same way for all of them: nothing has such an identifier, and a range that goes beyond
//! ends at the greatest one. So no packet can make a statement fail.

use neo_common::types::{Oid, Partition, Tid};

use super::job::{Done, Job, Read, Write};
use super::records::*;
use super::{Database, Error, Reader};

/// Executes a job on the connection of the writer. Nothing is committed here.
///
/// # Errors
///
/// The database is unusable, the process must end.
pub fn execute(db: &mut dyn Database, job: Job) -> Result<Done, Error> {
    match job {
        Job::Write(write) => execute_write(db, write),
        Job::Read(read) | Job::ReadLatest(read) => execute_read(db.latest(), read),
    }
}

fn execute_write(db: &mut dyn Database, job: Write) -> Result<Done, Error> {
    Ok(match job {
        Write::SetNid(nid) => finished(db.set_nid(nid)?),
        Write::ChangePartitionTable(change) => {
            Done::PartitionTableChanged(db.change_partition_table(&change)?)
        }
        Write::SetBackupTid(tid) => finished(db.set_backup_tid(tid.map(clamp))?),
        Write::SetTruncateTid(tid) => finished(db.set_truncate_tid(clamp(tid))?),
        Write::Truncate { rows_max } => Done::Progress(db.truncate(rows_max)?),
        Write::DropUnfinished => finished(db.drop_unfinished()?),
        Write::Spill { partitions, objects } => Done::Spilled(match check_objects(&objects) {
            Ok(()) => db.spill(partitions, &objects)?,
            Err(refused) => Err(refused),
        }),
        Write::Release(data_ids) => finished(db.release(&data_ids)?),
        Write::Vote(vote) => Done::Voted(match check_vote(&vote) {
            Ok(()) => db.vote(&vote)?,
            Err(refused) => Err(refused),
        }),
        Write::Lock { ttid, tid, approve_pack } => finished(db.lock(ttid, tid, approve_pack)?),
        Write::Unlock { ttid, tid, metadata } => finished(db.unlock(ttid, tid, metadata)?),
        Write::Abort { ttid, spilled } => finished(db.abort(ttid, &spilled)?),
        Write::Validate { ttid, tid } => {
            db.lock(ttid, tid, true)?;
            finished(db.unlock(ttid, tid, true)?)
        }
        Write::SignPacks { approved, rejected } => {
            Done::Signed(db.sign_packs(&approved, &rejected)?)
        }
        Write::Pack { partition, pack_tid, scope } => {
            Done::Packed(db.pack(partition, clamp(pack_tid), &scope)?)
        }
        Write::MarkPacked { partition, min_tid, pack_tid, tids_max } => {
            Done::Marked(db.mark_packed(partition, clamp(min_tid), clamp(pack_tid), tids_max)?)
        }
        Write::SetPacked { partition, pack_id } => finished(db.set_packed(partition, pack_id)?),
        Write::DropPartition { partition, rows_max } => {
            Done::Progress(db.drop_partition(partition, rows_max)?)
        }
        Write::PruneOrphans { after, rows_max, dry_run } => {
            Done::Orphans(db.prune_orphans(after, rows_max, dry_run)?)
        }
        Write::AddTransactions { partitions, transactions } => {
            let valid = transactions.iter().all(|transaction| {
                let pack = &transaction.info.pack;
                fits(transaction.info.tid.get())
                    && fits(transaction.info.record.ttid.get())
                    && pack.as_ref().is_none_or(|pack| fits(pack.pack_tid.get()))
            });
            Done::Added(match valid {
                true => db.add_transactions(partitions, &transactions)?,
                false => Err(ReplicationConflict::InvalidId),
            })
        }
        Write::AddObjects { partitions, objects } => {
            let valid = objects.iter().all(|object| {
                let data_tid = object.object.data_tid;
                fits(object.tid.get())
                    && fits(object.object.oid.get())
                    && data_tid.is_none_or(|tid| fits(tid.get()))
            });
            Done::Added(match valid {
                true => db.add_objects(partitions, &objects)?,
                false => Err(ReplicationConflict::InvalidId),
            })
        }
        Write::EndChunk { partitions, end } => Done::Signed(db.end_chunk(partitions, &end)?),
        Write::Flush => finished(db.flush()?),
        Write::Erase => finished(db.erase()?),
    })
}

/// Executes a read on any connection.
///
/// # Errors
///
/// The database is unusable, the process must end.
pub fn execute_read(db: &mut dyn Reader, job: Read) -> Result<Done, Error> {
    Ok(match job {
        Read::Config => Done::Config(db.config()?),
        Read::PartitionTable => Done::PartitionTable(db.partition_table()?),
        Read::CellNextTids => Done::CellNextTids(db.cell_next_tids()?),
        Read::PackedCells => Done::PackedCells(db.packed_cells()?),
        Read::PackOrders { readable, partitions, min_id } => {
            Done::PackOrders(match fits_tid(min_id) {
                true => db.pack_orders(&readable, partitions, min_id)?,
                false => Vec::new(),
            })
        }
        Read::Unfinished => Done::Unfinished(db.unfinished()?),
        Read::FinalTid { partition, ttid } => Done::FinalTid(match fits(ttid.get()) {
            true => db.final_tid(partition, ttid)?,
            false => None,
        }),
        Read::LastIds { readable } => Done::LastIds(db.last_ids(&readable)?),
        Read::Load { partition, oid, at, before } => {
            // No revision has a tid that does not fit: exactly this one becomes none, "before" it
            // becomes before the greatest one, which is never used.
            let at = at.map(|tid| if fits_tid(tid) { tid } else { Tid::MAX });
            Done::Loaded(match fits(oid.get()) {
                true => db.load(partition, oid, at, before.map(clamp))?,
                false => Loaded::DoesNotExist,
            })
        }
        Read::CheckStores { partitions, checks } => {
            Done::StoresChecked(check_stores(db, partitions, &checks)?)
        }
        Read::Data(data_id) => Done::Data(db.data(data_id)?),
        Read::History { partition, oid, offset, length } => Done::History(match fits(oid.get()) {
            true => db.history(partition, oid, offset.min(i64::MAX as u64), length)?,
            false => Vec::new(),
        }),
        Read::FindUndo(search) => Done::Undo(find_undo(db, search)?),
        Read::Transaction { partition, tid } => {
            Done::Transactions(vec![transaction(db, partition, tid)?])
        }
        Read::Tids { partitions, offset, length } => {
            Done::Tids(db.tids(&partitions, offset.min(i64::MAX as u64), length)?)
        }
        Read::TidsFrom { partition, min_tid, max_tid, length } => {
            Done::Tids(match fits_tid(min_tid) {
                true => db.tids_from(partition, min_tid, clamp(max_tid), length)?,
                false => Vec::new(),
            })
        }
        Read::OidsFrom { partition, partitions, min_oid, tid, length } => {
            Done::Oids(match fits(min_oid.get()) && length != 0 {
                true => db.oids_from(partition, partitions, min_oid, clamp(tid), length)?,
                false => OidsFound { next_oid: None, oids: Vec::new() },
            })
        }
        Read::RevisionsFrom { partition, min_tid, min_oid, max_tid, length } => {
            Done::Revisions(match first_revision(min_tid, min_oid) {
                Some((tid, oid)) => {
                    db.revisions_from(partition, tid, oid, clamp(max_tid), length)?
                }
                None => Vec::new(),
            })
        }
        Read::FetchTransactions { partition, tids } => {
            let tids = tids.into_iter();
            Done::Transactions(
                tids.map(|tid| transaction(db, partition, tid)).collect::<Result<_, _>>()?,
            )
        }
        Read::FetchObjects { partition, revisions, bytes_max } => {
            Done::Objects(db.fetch_objects(partition, &revisions, bytes_max)?)
        }
        Read::CheckTidRange { partition, min_tid, max_tid, length } => {
            // An empty range is asked from the backend too: it knows the digest of nothing.
            let max_tid = clamp(max_tid);
            Done::TidDigest(db.check_tid_range(partition, clamp(min_tid), max_tid, length)?)
        }
        Read::CheckSerialRange { partition, min_tid, min_oid, max_tid, length } => {
            let (tid, oid) = first_revision(min_tid, min_oid).unwrap_or((Tid::MAX, Oid::ZERO));
            Done::SerialDigest(db.check_serial_range(
                partition,
                tid,
                oid,
                clamp(max_tid),
                length,
            )?)
        }
    })
}

const fn finished((): ()) -> Done {
    Done::Finished
}

/// Whether a backend can hold this identifier: SQLite has no unsigned integer.
const fn fits(id: u64) -> bool {
    id <= i64::MAX as u64
}

const fn fits_tid(tid: Tid) -> bool {
    fits(tid.get())
}

fn clamp(tid: Tid) -> Tid {
    tid.min(Tid::MAX)
}

/// First (tid, oid) to look at; `None` if it is after all that can exist.
fn first_revision(min_tid: Tid, min_oid: Oid) -> Option<(Tid, Oid)> {
    if !fits_tid(min_tid) {
        return None;
    }
    if fits(min_oid.get()) {
        return Some((min_tid, min_oid));
    }
    min_tid.next().filter(|tid| fits_tid(*tid)).map(|tid| (tid, Oid::ZERO))
}

fn check_objects(objects: &[ObjectRecord]) -> Result<(), Refused> {
    let mut oids: Vec<_> = objects.iter().map(|object| object.oid).collect();
    oids.sort_unstable();
    if let Some(pair) = oids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Refused::InvalidOid(pair[0]));
    }
    for object in objects {
        if !fits(object.oid.get()) {
            return Err(Refused::InvalidOid(object.oid));
        }
        if object.data_tid.is_some_and(|tid| !fits_tid(tid)) {
            return Err(Refused::UndoPack(object.oid));
        }
    }
    Ok(())
}

fn check_vote(vote: &Vote) -> Result<(), Refused> {
    assert!(fits(vote.ttid.get()), "ttids come from the master: {}", vote.ttid);
    assert!(vote.pack.is_none() || vote.transaction.is_some(), "a pack goes with the metadata");
    check_objects(&vote.objects)
}

fn check_stores(
    db: &mut dyn Reader,
    partitions: u32,
    checks: &[StoreCheck],
) -> Result<Vec<StoreChecked>, Error> {
    if checks.iter().all(|check| fits(check.oid.get())) {
        let no_such_tid = |check: &StoreCheck| check.data_tid.is_some_and(|tid| !fits_tid(tid));
        if !checks.iter().any(no_such_tid) {
            return db.check_stores(partitions, checks);
        }
    }
    // Never sent by a sane client: one by one, without what can not exist.
    let mut result = Vec::with_capacity(checks.len());
    for check in checks {
        result.push(match fits(check.oid.get()) {
            true => {
                let data_tid = check.data_tid.filter(|tid| fits_tid(*tid));
                db.check_stores(partitions, &[StoreCheck { data_tid, ..*check }])?[0]
            }
            false => StoreChecked { last_tid: None, data_tid_exists: false },
        });
    }
    Ok(result)
}

fn find_undo(db: &mut dyn Reader, mut search: UndoSearch) -> Result<Vec<UndoFound>, Error> {
    if !fits_tid(search.undone_tid) {
        return Ok(vec![UndoFound::NothingToUndo; search.objects.len()]);
    }
    search.ltid = search.ltid.map(clamp);
    // No backend has a row for an oid that does not fit; 0 has other rows. Look for the others, then
    // put the answers in place.
    let valid: Vec<bool> = search.objects.iter().map(|(oid, _)| fits(oid.get())).collect();
    search.objects.retain(|(oid, _)| fits(oid.get()));
    let mut found = db.find_undo(&search)?.into_iter();
    Ok(valid
        .into_iter()
        .map(|valid| if valid { found.next() } else { None })
        .map(|undo| undo.unwrap_or(UndoFound::NothingToUndo))
        .collect())
}

fn transaction(
    db: &mut dyn Reader,
    partition: Partition,
    tid: Tid,
) -> Result<Option<TransactionInfo>, Error> {
    if fits_tid(tid) { db.transaction(partition, tid) } else { Ok(None) }
}
