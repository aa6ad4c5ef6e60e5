// SPDX-License-Identifier: GPL-2.0-or-later
//! The admin of the upstream cluster, when this cluster is a backup: we report to it, and it asks
//! how far this cluster is. Upstream: `UpstreamAdminHandler`.
//!
//! Upstream accepts all that `neoctl` may ask on this connection; here only the two questions of the
//! monitoring are, because a backup is there to survive mistakes made on the other side.

use neo_common::engine::{ConnId, Fault, Handled, Handler, Io, Lost, base_error};
use neo_common::protocol::{ErrorCode, Map, MsgId, NodeType, Packet};

use super::base_packet;
use crate::app::{Admin, Ticket};

/// Handler of the connection that we open.
pub(crate) struct UpstreamHandler;

impl Handler<Admin> for UpstreamHandler {
    fn name(&self) -> &'static str {
        "UpstreamAdminHandler"
    }

    fn completed(&self, app: &mut Admin, io: &mut Io<'_, Admin>, conn: ConnId) {
        let request = Packet::RequestIdentification {
            node_type: NodeType::Admin,
            nid: None,
            address: None,
            cluster: app.cluster().to_owned(),
            id_timestamp: None,
            extra: Map::default(),
        };
        io.ask(conn, request, Ticket::Identification);
    }

    fn packet(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::AskLastTransaction {} | Packet::AskRecovery {} => {
                app.relay(io, conn, id, packet)
            }
            _ => base_packet(io, conn, id, packet),
        }
    }

    fn answer(
        &self,
        app: &mut Admin,
        io: &mut Io<'_, Admin>,
        conn: ConnId,
        _: Ticket,
        answer: Packet,
    ) -> Handled {
        let Packet::AcceptIdentification { node_type, my_nid: None, .. } = answer else {
            return Err(Fault::protocol("invalid uuids"));
        };
        if node_type != NodeType::Admin {
            return Err(Fault::Close);
        }
        log::info!("reporting to the admin of the upstream cluster");
        app.upstream.identified(io, conn, app.monitoring.own_change());
        Ok(())
    }

    fn error(
        &self,
        app: &mut Admin,
        _: &mut Io<'_, Admin>,
        _: ConnId,
        _: Option<Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        match code {
            ErrorCode::ProtocolError | ErrorCode::NotReady => {
                // It is tried again each second: the same reason is told once.
                if app.upstream.is_new_refusal(&message) {
                    log::warn!("refused by the admin of the upstream cluster: {message}");
                }
                Ok(())
            }
            _ => base_error(code, &message),
        }
    }

    fn lost(&self, app: &mut Admin, io: &mut Io<'_, Admin>, conn: ConnId, _: Lost, _: Vec<Ticket>) {
        app.forget_peer(conn);
        app.upstream.lost(io, conn);
    }
}
