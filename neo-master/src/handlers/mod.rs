// SPDX-License-Identifier: GPL-2.0-or-later
//! What the master does with the packets of each kind of peer. Upstream: master/handlers.
//!
//! | handler | peer | when |
//! |---|---|---|
//! | [`identification::IdentificationHandler`] | who connects | primary |
//! | [`identification::SecondaryIdentificationHandler`] | who connects | secondary |
//! | [`administration::AdministrationHandler`] | admin | always |
//! | [`client::ClientServiceHandler`] and its read-only forms | client | service |
//! | [`storage::RecoveryHandler`] | storage | recovery |
//! | [`storage::VerificationHandler`] | storage | verification |
//! | [`storage::StorageServiceHandler`] | storage | service |
//! | [`election::ElectionHandler`] | another master | recovery |
//! | [`election::SecondaryHandler`] | a secondary master | verification, service |
//! | [`election::PrimaryHandler`] | the primary master | secondary |
//! | [`backup::BackupHandler`] | the primary master of the upstream cluster | backup |
//!
//! Where upstream asserts something about what a peer sends, there is a [`Fault`]: the connection
//! is closed, the master goes on.

pub mod administration;
pub mod backup;
pub mod client;
pub mod election;
pub mod identification;
pub mod storage;

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, base_error};
use neo_common::node::NodeKey;
use neo_common::planted;
use neo_common::protocol::{ClusterState, ErrorCode, MsgId, Packet};

use crate::app::{Master, Ticket};
use crate::cluster::Cluster;
use crate::phase::Phase;
use crate::recovery::ask_recovery;

/// A handler of connections of the master.
pub type MasterHandler = &'static dyn Handler<Master>;

/// Handler of connections that peers open.
pub fn acceptor(phase: &Phase) -> MasterHandler {
    match phase {
        Phase::Secondary(_) => &identification::SecondaryIdentificationHandler,
        Phase::Closing => &ClosedHandler,
        Phase::Recovery(_)
        | Phase::Verification(_)
        | Phase::Service
        | Phase::Backup(_)
        | Phase::Stopping => &identification::IdentificationHandler,
    }
}

/// Handler of storages; `None`: the one that they have stays.
pub fn of_storage(state: ClusterState) -> Option<MasterHandler> {
    match state {
        ClusterState::Recovering => Some(&storage::RecoveryHandler),
        ClusterState::Verifying => Some(&storage::VerificationHandler),
        ClusterState::Running
        | ClusterState::StartingBackup
        | ClusterState::BackingUp
        | ClusterState::StoppingBackup => Some(&storage::StorageServiceHandler),
        ClusterState::Stopping => None,
    }
}

/// Whether storages have the same handler in both states.
pub fn is_same_of_storage(a: ClusterState, b: ClusterState) -> bool {
    of_storage(a).map(Handler::name) == of_storage(b).map(Handler::name)
}

/// Handler of other masters, as seen by the primary.
pub fn of_master(state: ClusterState) -> MasterHandler {
    if state == ClusterState::Recovering {
        &election::ElectionHandler
    } else {
        &election::SecondaryHandler
    }
}

/// What a storage is told when it gets the handler of the new state.
pub fn storage_switched(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    key: NodeKey,
    conn: ConnId,
) {
    match cluster.state {
        ClusterState::Recovering => ask_recovery(io, conn),
        ClusterState::Verifying => io.send(conn, cluster.partition_table()),
        ClusterState::Stopping => {}
        ClusterState::Running
        | ClusterState::StartingBackup
        | ClusterState::BackingUp
        | ClusterState::StoppingBackup => {
            let node = cluster.nm.get(key).filter(|node| node.is_running());
            if let Some(nid) = node.and_then(|node| node.nid()) {
                cluster.start_storage(io, nid, conn);
            }
        }
    }
}

/// What any identified node may ask. Upstream: `MasterHandler`.
pub fn base_packet(
    app: &mut Master,
    io: &mut Io<'_, Master>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    let Cluster { pt, tm, .. } = &app.cluster;
    let answer = match packet {
        Packet::AskClusterState {} => Packet::AnswerClusterState { state: Some(app.cluster.state) },
        Packet::AskRecovery {} => Packet::AnswerRecovery {
            ptid: pt.table().ptid(),
            backup_tid: app.cluster.backup_tid.map(|_| pt.backup_tid()),
            truncate_tid: app.cluster.truncate_tid,
        },
        Packet::AskLastIDs {} => Packet::AnswerLastIDs {
            last_tid: Some(tm.last_tid().unwrap_or(app.cluster.last_tid)),
            last_oid: Some(tm.last_oid()),
            first_tid: tm.first_tid(),
        },
        Packet::AskLastTransaction {} => {
            let early = tm.last_tid().filter(|_| planted!(LastTidTooEarly));
            Packet::AnswerLastTransaction { tid: early.unwrap_or(app.cluster.last_tid) }
        }
        _ => return root_packet(io, conn, id, packet),
    };
    io.answer(conn, id, answer);
    Ok(())
}

/// What any node may send. Upstream: `EventHandler`.
pub fn root_packet(io: &mut Io<'_, Master>, conn: ConnId, id: MsgId, packet: Packet) -> Handled {
    match packet {
        Packet::Ping {} => io.answer(conn, id, Packet::Pong {}),
        Packet::CloseClient {} => io.peer_closed_client(conn),
        Packet::FlushLog {} => log::logger().flush(),
        _ => return Err(Fault::Unexpected),
    }
    Ok(())
}

/// An error of a peer. Nobody may refuse what the master asks: such a peer is of no use.
pub fn base_failure(ticket: Option<Ticket>, code: ErrorCode, message: &str) -> Handled {
    match ticket {
        None => base_error(code, message),
        Some(ticket) => {
            log::error!("{ticket:?} refused: {code} {message}");
            Err(Fault::Close)
        }
    }
}

/// Before the master starts, and while it exits.
pub struct ClosedHandler;

impl Handler<Master> for ClosedHandler {
    fn name(&self) -> &'static str {
        "EventHandler"
    }
    fn packet(
        &self,
        _: &mut Master,
        _: &mut Io<'_, Master>,
        _: ConnId,
        _: MsgId,
        _: Packet,
    ) -> Handled {
        Err(Fault::Close)
    }
}
