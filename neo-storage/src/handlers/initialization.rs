// SPDX-License-Identifier: GPL-2.0-or-later
//! The primary master, while the cluster recovers and verifies. Upstream:
//! storage/handlers/initialization.py.
//!
//! What is told to the master is on disk before: the cluster is rebuilt from it.

use neo_common::engine::{Fault, Handled, Handler, Io, Lost};
use neo_common::partition_table::PartitionTable;
use neo_common::protocol::{ErrorCode, Map, MsgId, Packet, Rows};
use neo_common::types::{ConnId, Ptid, Tid, Ttid};

use super::master::{base_master_packet, master_lost};
use crate::app::{After, Shared, Storage, Ticket, done, read_latest, write};
use crate::database::{ChangeScope, Done, PartitionTableChange, Read, StoredCell, Write};
use crate::limits::TRUNCATE_ROWS;
use crate::phase::{self, Transition};

/// See the module documentation.
pub struct InitializationHandler;

impl Handler<Storage> for InitializationHandler {
    fn name(&self) -> &'static str {
        "InitializationHandler"
    }

    fn packet(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::AskRecovery {} => {
                let shared = &app.shared;
                let answer = Packet::AnswerRecovery {
                    ptid: shared.table.ptid(),
                    backup_tid: shared.backup_tid,
                    truncate_tid: shared.truncate_tid,
                };
                write(io, Write::Flush, After::Answer(conn, id, answer));
            }
            Packet::AskPartitionTable {} => {
                let table = &app.shared.table;
                let ptid = table.ptid().ok_or_else(|| Fault::protocol("no partition table"))?;
                let (replicas, rows) = (table.replicas(), table.to_wire());
                let answer = Packet::AnswerPartitionTable { ptid, replicas, rows };
                write(io, Write::Flush, After::Answer(conn, id, answer));
            }
            Packet::SendPartitionTable { ptid, replicas, rows } => {
                send_partition_table(app, io, ptid, replicas, &rows)?;
            }
            Packet::Truncate { tid } => {
                app.shared.backup_tid = None;
                app.shared.truncate_tid = Some(tid);
                write(io, Write::SetTruncateTid(tid), After::Nothing);
            }
            Packet::AskLastIDs {} => {
                // Nothing is deleted if no truncation is planned.
                truncate(io, conn, id);
            }
            Packet::AskLockedTransactions {} => {
                read_latest(io, Read::Unfinished, After::Unfinished(conn, id));
            }
            Packet::ValidateTransaction { ttid, tid } => validate_transaction(app, io, ttid, tid)?,
            Packet::StartOperation { backup } => {
                if app.shared.table.partitions() == 0 {
                    return Err(Fault::protocol("no partition table to operate with"));
                }
                io.transition(Transition::Start(backup));
            }
            packet => return base_master_packet(app, io, conn, id, packet),
        }
        Ok(())
    }

    fn error(
        &self,
        _: &mut Storage,
        _: &mut Io<'_, Storage>,
        _: ConnId,
        ticket: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        super::master::master_error(ticket, code, &message)
    }

    fn lost(
        &self,
        app: &mut Storage,
        io: &mut Io<'_, Storage>,
        conn: ConnId,
        _: Lost,
        _: Vec<Ticket>,
    ) {
        master_lost(app, io, conn);
    }
}

fn send_partition_table(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    ptid: Option<Ptid>,
    replicas: u32,
    rows: &Rows,
) -> Handled {
    let (Some(ptid), false) = (ptid, rows.is_empty()) else {
        return Err(Fault::protocol("Partial partition table received"));
    };
    if rows.iter().any(Vec::is_empty) {
        return Err(Fault::protocol("Partial partition table received"));
    }
    if app.shared.table.ptid().is_none() {
        phase::set_nid(app, io);
    }
    // A wrong one does not replace what is known.
    let mut table = PartitionTable::new();
    let loaded = table.load(Some(ptid), replicas, rows);
    loaded.map_err(|error| Fault::protocol(error.to_string()))?;
    if !table.filled() {
        return Err(Fault::protocol("Partial partition table received"));
    }
    let shared = &mut app.shared;
    check_not_older(shared, &table)?;
    let greatest = shared.table.nodes().max();
    shared.table = table;
    shared.note_dropped(greatest);
    log::debug!("partition table loaded ptid={ptid}");
    let mut cells = Vec::new();
    for (partition, row) in (0..).zip(shared.table.rows()) {
        cells.extend(row.iter().map(|c| StoredCell { partition, nid: c.nid, state: c.state }));
    }
    shared.to_drop.clear();
    let change = PartitionTableChange {
        ptid,
        replicas,
        cells,
        scope: ChangeScope::Full,
        last_pack_id: shared.last_pack_id,
        drop_temporary: Vec::new(),
        release: Vec::new(),
    };
    write(io, Write::ChangePartitionTable(change), After::TableStored);
    phase::restart(app, io);
    Ok(())
}

/// Refuses a table that another master made obsolete, if it matters what this node has.
///
/// 1. M1 is cut from all others, and does not know it yet. M2 takes over, and puts S1 out-of-date.
/// 2. S1 only reaches M1, whose table says that S1 is up-to-date.
///
/// Believing that, S1 would be taken later for a node that has what M2 committed meanwhile. Each master
/// begins with a greater version than all that it was told, so this one does not know what it has missed.
fn check_not_older(shared: &Shared, table: &PartitionTable) -> Handled {
    let own = &shared.table;
    let is_other = || !own.has_same_cells(table);
    let Some(nid) = shared.nid().filter(|_| own.ptid() >= table.ptid() && is_other()) else {
        return Ok(());
    };
    let has_data = |table: &PartitionTable| table.readable_of(nid).next().is_some();
    if !has_data(own) && !has_data(table) {
        return Ok(());
    }
    Err(Fault::protocol(format!(
        "the partition table of the master (version {}) is older than the one that this node has \
         ({}): another master was the primary one meanwhile, or the cluster was started without nodes \
         that are needed",
        table.ptid().unwrap_or_default(),
        own.ptid().unwrap_or_default()
    )))
}

/// A transaction that was not finished turns out to be committed.
fn validate_transaction(app: &Storage, io: &mut Io<'_, Storage>, ttid: Ttid, tid: Tid) -> Handled {
    let partitions = app.shared.table.partitions();
    let valid = partitions != 0
        && ttid.partition(partitions) == tid.partition(partitions)
        && ttid.as_tid() <= tid
        && tid <= Tid::MAX;
    if !valid {
        return Err(Fault::protocol(format!("invalid tid {tid} for ttid {ttid}")));
    }
    log::info!("validate ttid={ttid} tid={tid}");
    write(io, Write::Validate { ttid, tid }, After::Nothing);
    Ok(())
}

fn truncate(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId) {
    let job = Write::Truncate { rows_max: TRUNCATE_ROWS };
    write(io, job, After::Truncated(conn, id));
}

/// A slice of the truncation is done.
pub(crate) fn truncated(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    done: Done,
) {
    if !done!(done, Progress).done {
        // If the master is gone, the rest is done when another one asks.
        if io.is_open(conn) {
            truncate(io, conn, id);
        }
        return;
    }
    if let Some(tid) = app.shared.truncate_tid.take() {
        log::info!("truncated at tid={tid}");
    }
    if app.shared.config.disable_pack {
        ask_last_ids(app, io, conn, id);
    } else {
        read_latest(io, Read::PackedCells, After::LastIdsPacked(conn, id));
    }
}

/// Pack status is known: the master wants it before the last ids.
pub(crate) fn packed(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    done: Done,
) {
    if let Some(tid) = done!(done, PackedCells).iter().map(|cell| cell.pack_id).min()
        && app.shared.master == Some(conn)
    {
        app.shared.completed_pack_id = tid;
        io.send(conn, Packet::NotifyPackCompleted { tid });
    }
    ask_last_ids(app, io, conn, id);
}

fn ask_last_ids(app: &Storage, io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId) {
    let readable = app.shared.readable();
    read_latest(io, Read::LastIds { readable }, After::LastIds(conn, id));
}

/// The last ids are known.
pub(crate) fn last_ids(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId, done: Done) {
    let ids = done!(done, LastIds);
    let (last_tid, last_oid, first_tid) = (ids.last_tid, ids.last_oid, ids.first_tid);
    io.answer(conn, id, Packet::AnswerLastIDs { last_tid, last_oid, first_tid });
}

/// Unfinished transactions are known.
pub(crate) fn unfinished(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId, done: Done) {
    let transactions = Map(done!(done, Unfinished).into_iter().collect());
    io.answer(conn, id, Packet::AnswerLockedTransactions { transactions });
}
