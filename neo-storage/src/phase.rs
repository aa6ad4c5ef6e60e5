// SPDX-License-Identifier: GPL-2.0-or-later
//! Phases of a storage node. Upstream: storage/app.py, `_run`, `initialize`, `doOperation`.
//!
//! ```text
//!             identified            StartOperation           reads done
//! Bootstrap ------------> Initialization --------> Starting ------------> Operation
//!     ^                      ^    |                  | StopOperation         |
//!     |                      +----|------------------+-----------------------+
//!     +------- master lost -------+------------------+-----------------------+
//!
//! any --- told to be DOWN or UNKNOWN, or a signal ---> Stopping --- all is on disk ---> exit
//! ```
//!
//! - *Bootstrap*: the primary master is looked for.
//! - *Initialization*: the master asks what is needed to recover and to verify.
//! - *Starting*: unfinished data is dropped, and what is needed to serve is read. Upstream says that
//!   it is ready before it does this; here `NotifyReady` comes after, so that nothing of what is
//!   dropped can be seen, and peers that connect meanwhile wait.
//! - *Operation*: clients and other storages are served.
//!
//! Leaving an operation closes all connections but that to the master. Jobs of the past operation
//! that are still on their way are in order before those of the next one, and their results are
//! ignored (see `epoch`).

use neo_common::engine::{Handled, Io};
use neo_common::node::ListKind;
use neo_common::planted;
use neo_common::protocol::Packet;
use neo_common::types::{ConnId, Partition, Tid};

use crate::app::{After, Storage, done, read_latest, write};
use crate::database::{CellNext, Done, PackedCell, Read, Write};
use crate::handlers::identification;
use crate::handlers::initialization::InitializationHandler;
use crate::handlers::master::MasterHandler;
use crate::operation::Operation;

/// Where the node is.
#[derive(Debug)]
pub enum Phase {
    /// Looking for the primary master.
    Bootstrap,
    /// RECOVERING and VERIFYING.
    Initialization,
    /// StartOperation was received.
    Starting(Starting),
    /// Clients are served.
    Operation(Box<Operation>),
    /// The last job before the end was submitted.
    Stopping,
}

impl Phase {
    /// For the log.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Initialization => "initialization",
            Self::Starting(_) => "starting",
            Self::Operation(_) => "operation",
            Self::Stopping => "stopping",
        }
    }
}

/// A change of phase that a handler asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// `StartOperation`, in backup mode or not.
    Start(bool),
    /// `StopOperation`.
    Stop,
    /// The connection to the master is lost.
    MasterLost,
}

/// What is read before the node serves.
#[derive(Debug)]
pub struct Starting {
    backup: bool,
    /// Reads that were asked before the last change of the partition table are ignored.
    attempt: u32,
    next_tids: Option<Vec<(Partition, CellNext)>>,
    packed: Option<Vec<PackedCell>>,
    dropped: bool,
}

/// Steps of [`Starting`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Last ids, for the first backup tid.
    LastIds,
    /// Unfinished data is dropped.
    Dropped,
    /// Where replication resumes.
    NextTids,
    /// Pack status.
    Packed,
}

/// The primary master accepted us.
pub(crate) fn identified(app: &mut Storage, io: &mut Io<'_, Storage>, conn: ConnId) -> Handled {
    let shared = &mut app.shared;
    shared.master = Some(conn);
    shared.list = ListKind::Full;
    shared.last_pack_id = Tid::ZERO;
    shared.completed_pack_id = Tid::ZERO;
    let nid = shared.nid().expect("given by the master");
    app.phase = Phase::Initialization;
    io.set_handler(conn, &InitializationHandler);
    if app.shared.table.ptid().is_some() {
        set_nid(app, io);
    }
    if app.shared.config.new_nid {
        log::info!("the new node id is {nid}");
        stop(app, io, Write::Flush, 0);
        return Ok(());
    }
    Ok(())
}

/// Records the node id; own cells follow if it changes.
///
/// This is not done before there is a partition table (upstream does). A master that restarts before
/// it has made the first table forgets which ids it gave: it could give the same one to another
/// node, and much later, when the other one is down, take this node for it.
pub(crate) fn set_nid(app: &mut Storage, io: &mut Io<'_, Storage>) {
    let shared = &mut app.shared;
    let nid = shared.nid().expect("given by the master");
    write(io, Write::SetNid(nid), After::Nothing);
    let Some(old) = shared.stored_nid.replace(nid).filter(|old| *old != nid) else { return };
    log::info!("node id changes from {old} to {nid}");
    let mut rows = shared.table.to_wire();
    for row in &mut rows {
        if row.iter().any(|(cell, _)| *cell == old) {
            row.retain(|(cell, _)| *cell != nid);
        }
        for (cell, _) in row.iter_mut().filter(|(cell, _)| *cell == old) {
            *cell = nid;
        }
    }
    let (ptid, replicas) = (shared.table.ptid(), shared.table.replicas());
    shared.table.load(ptid, replicas, &rows).expect("as many cells as before");
}

/// Applies a change of phase, between two packets.
pub(crate) fn apply(app: &mut Storage, io: &mut Io<'_, Storage>, transition: Transition) {
    if matches!(app.phase, Phase::Stopping) {
        return;
    }
    match transition {
        Transition::Start(backup) => {
            let attempt = app.shared.next_attempt();
            app.phase = Phase::Starting(Starting {
                backup,
                attempt,
                next_tids: None,
                packed: None,
                dropped: false,
            });
            start(app, io);
        }
        Transition::Stop => {
            log::error!("operation stopped");
            leave(app, io);
            app.phase = Phase::Initialization;
            if let Some(master) = app.shared.master {
                io.set_handler(master, &InitializationHandler);
            }
        }
        Transition::MasterLost => {
            log::error!("primary master is down");
            leave(app, io);
            app.phase = Phase::Bootstrap;
            if app.shared.table.ptid().is_none() {
                app.shared.bootstrap.nid = app.shared.config.nid;
            }
            if app.shared.nodes.masters().next().is_none() {
                // It did not even list itself.
                for address in &app.shared.config.masters {
                    // Another type of node may listen there now.
                    let _ = app.shared.nodes.create_master(*address);
                }
            }
        }
    }
}

/// Ends an operation: no peer is served any more.
fn leave(app: &mut Storage, io: &mut Io<'_, Storage>) {
    app.phase = Phase::Initialization;
    app.shared.epoch += 1;
    app.shared.identifications.clear();
    app.shared.last_pack_id = Tid::ZERO;
    app.shared.completed_pack_id = Tid::ZERO;
    app.shared.is_congested = false;
    io.cancel_timer(crate::app::Timer::Replicator);
    let master = app.shared.master;
    let others: Vec<ConnId> = io.connections().filter(|conn| Some(*conn) != master).collect();
    for conn in others {
        io.close(conn);
    }
}

/// Stops everything and ends the process after a last job.
pub(crate) fn stop(app: &mut Storage, io: &mut Io<'_, Storage>, job: Write, status: i32) {
    if matches!(app.phase, Phase::Stopping) {
        return;
    }
    leave(app, io);
    app.phase = Phase::Stopping;
    let all: Vec<ConnId> = io.connections().collect();
    for conn in all {
        io.abort(conn);
    }
    log::info!("shutting down");
    write(io, job, After::Exit(status));
}

/// Begins to read what is needed to serve.
fn start(app: &mut Storage, io: &mut Io<'_, Storage>) {
    let Phase::Starting(starting) = &app.phase else { return };
    let attempt = starting.attempt;
    let after = |what| After::Starting { attempt, what };
    // Entering backup mode needs a first backup tid. Upstream: storage/replicator.py,
    // `startOperation`.
    match (starting.backup, app.shared.backup_tid) {
        (true, None) => {
            let readable = app.shared.readable();
            read_latest(io, Read::LastIds { readable }, after(Start::LastIds));
            return;
        }
        (false, Some(_)) => set_backup_tid(app, io, None),
        (true, Some(_)) | (false, None) => {}
    }
    // The committed state must be visible to readers before anybody is served: this is durable.
    let drop = if planted!(UnfinishedNotDropped) { Write::Flush } else { Write::DropUnfinished };
    write(io, drop, after(Start::Dropped));
    read_latest(io, Read::CellNextTids, after(Start::NextTids));
    read_latest(io, Read::PackedCells, after(Start::Packed));
}

/// Enters, leaves or advances backup mode.
pub(crate) fn set_backup_tid(app: &mut Storage, io: &mut Io<'_, Storage>, tid: Option<Tid>) {
    app.shared.backup_tid = tid;
    write(io, Write::SetBackupTid(tid), After::Nothing);
}

/// Something that was needed to serve is known.
pub(crate) fn started(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    attempt: u32,
    what: Start,
    done: Done,
) {
    let Phase::Starting(starting) = &mut app.phase else { return };
    if starting.attempt != attempt {
        return;
    }
    match what {
        Start::LastIds => {
            let last_tid = done!(done, LastIds).last_tid;
            set_backup_tid(app, io, Some(last_tid.unwrap_or(Tid::ZERO)));
            return start(app, io);
        }
        Start::Dropped => starting.dropped = true,
        Start::NextTids => starting.next_tids = Some(done!(done, CellNextTids)),
        Start::Packed => starting.packed = Some(done!(done, PackedCells)),
    }
    if !starting.dropped || starting.next_tids.is_none() || starting.packed.is_none() {
        return;
    }
    let next_tids = starting.next_tids.take().unwrap_or_default();
    let packed = starting.packed.take().unwrap_or_default();
    operate(app, io, next_tids, packed);
}

/// The partition table changed while it was being read.
pub(crate) fn restart(app: &mut Storage, io: &mut Io<'_, Storage>) {
    if let Phase::Starting(starting) = &mut app.phase {
        starting.attempt = app.shared.next_attempt();
        starting.dropped = false;
        starting.next_tids = None;
        starting.packed = None;
        start(app, io);
    }
}

/// Begins to serve.
fn operate(
    app: &mut Storage,
    io: &mut Io<'_, Storage>,
    next_tids: Vec<(Partition, CellNext)>,
    packed: Vec<PackedCell>,
) {
    log::info!("doing operation");
    app.shared.epoch += 1;
    let operation = Operation::new(&app.shared, next_tids, &packed);
    app.phase = Phase::Operation(Box::new(operation));
    if let Some(master) = app.shared.master {
        io.set_handler(master, &MasterHandler);
        io.send(master, Packet::NotifyReady {});
    }
    if let Some((operation, shared)) = app.operation() {
        operation.begin(shared, io);
    }
    identification::retry(app, io);
}
