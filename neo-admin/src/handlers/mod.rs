// SPDX-License-Identifier: GPL-2.0-or-later
//! What the admin does with the packets of its peers. Upstream: admin/handler.py.
//!
//! | Handler | Peer |
//! |---|---|
//! | [`CtlHandler`] | whoever connects: `neoctl`, or the admin of a backup cluster before it identifies |
//! | [`BackupHandler`] | admin of a backup cluster |
//! | [`UpstreamHandler`] | admin of the upstream cluster, to which we report |
//! | [`MasterHandler`] | primary master |

mod backup;
mod ctl;
mod master;
mod upstream;

use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::protocol::{MsgId, Packet};

use crate::app::Admin;

pub(crate) use backup::BackupHandler;
pub(crate) use ctl::CtlHandler;
pub(crate) use master::MasterHandler;
pub(crate) use upstream::UpstreamHandler;

/// What any peer may send. Upstream: lib/handler.py, `EventHandler`.
fn base_packet(io: &mut Io<'_, Admin>, conn: ConnId, id: MsgId, packet: Packet) -> Handled {
    match packet {
        Packet::Ping {} => io.answer(conn, id, Packet::Pong {}),
        Packet::CloseClient {} => io.peer_closed_client(conn),
        _ => return Err(Fault::Unexpected),
    }
    Ok(())
}
