// SPDX-License-Identifier: GPL-2.0-or-later
//! What the client does with packets: one handler per kind of connection. Upstream:
//! client/handlers/.

pub mod master;
pub mod storage;

use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::protocol::{MsgId, Packet};

use crate::core::ClientCore;

/// What any peer may send. Upstream: lib/handler.py, `EventHandler`.
fn base_packet(io: &mut Io<'_, ClientCore>, conn: ConnId, id: MsgId, packet: &Packet) -> Handled {
    match packet {
        Packet::Ping {} => io.answer(conn, id, Packet::Pong {}),
        Packet::FlushLog {} => log::logger().flush(),
        _ => return Err(Fault::Unexpected),
    }
    Ok(())
}
