// SPDX-License-Identifier: GPL-2.0-or-later
//! What the storage does with the packets of its peers. Upstream: storage/handlers.
//!
//! | Handler | Peer |
//! |---|---|
//! | [`identification`] | whoever connects |
//! | [`initialization`] | primary master, RECOVERING and VERIFYING |
//! | [`master`] | primary master, while the node serves |
//! | [`client`] | client; read-only in backup mode |
//! | [`storage`] | another storage, of this cluster or of a backup of it, in both roles |

pub mod client;
pub mod identification;
pub mod initialization;
pub mod master;
pub mod storage;

use neo_common::engine::{Fault, Handled, Io};
use neo_common::protocol::{ErrorCode, MsgId, Packet};
use neo_common::types::ConnId;

use crate::app::Storage;

/// What any identified peer may send. Upstream: lib/handler.py, `EventHandler`.
pub(crate) fn base_packet(
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: &Packet,
) -> Handled {
    match packet {
        Packet::Ping {} => io.answer(conn, id, Packet::Pong {}),
        Packet::CloseClient {} => io.peer_closed_client(conn),
        Packet::FlushLog {} => log::logger().flush(),
        _ => return Err(Fault::Unexpected),
    }
    Ok(())
}

/// Treats a fault of a request that was delayed, as the engine does when it is not.
pub(crate) fn refuse(io: &mut Io<'_, Storage>, conn: ConnId, id: MsgId, fault: &Fault) {
    log::debug!("refused {conn:?} #{id:#x}: {fault}");
    let (code, message, close) = match fault {
        Fault::Unexpected => (ErrorCode::ProtocolError, "unexpected packet".to_owned(), true),
        Fault::Protocol(message) => (ErrorCode::ProtocolError, message.clone(), true),
        Fault::NotReady(message) => (ErrorCode::NotReady, message.clone(), true),
        Fault::Error(code, message) => (*code, message.clone(), false),
        Fault::Close => {
            io.close(conn);
            return;
        }
    };
    io.answer(conn, id, Packet::error(code, message));
    if close {
        io.abort(conn);
    }
}
