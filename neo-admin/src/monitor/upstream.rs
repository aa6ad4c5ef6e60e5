// SPDX-License-Identifier: GPL-2.0-or-later
//! Reporting to the admin of the upstream cluster, when this cluster is a backup.
//!
//! The primary master tells where that admin is. A connection to it is kept open from then on, as
//! long as this node runs, and is opened again whenever it is lost.

use std::net::SocketAddr;

use neo_common::engine::{ConnId, Io};
use neo_common::protocol::Packet;

use super::Change;
use crate::app::Admin;
use crate::handlers::UpstreamHandler;

/// The admin of the upstream cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Upstream {
    address: Option<SocketAddr>,
    conn: Option<ConnId>,
    is_identified: bool,
    /// Why it refused us the last time.
    refusal: Option<String>,
}

impl Upstream {
    /// The primary master tells where it is.
    pub(crate) fn set_address(&mut self, io: &mut Io<'_, Admin>, address: SocketAddr) {
        if self.address.replace(address) == Some(address) {
            return;
        }
        match self.conn {
            // Its loss makes us connect again.
            Some(conn) => io.close(conn),
            None => self.connect(io),
        }
    }

    fn connect(&mut self, io: &mut Io<'_, Admin>) {
        self.is_identified = false;
        self.conn = self.address.map(|address| io.connect(address, &UpstreamHandler));
    }

    /// It accepted us: it is told everything.
    pub(crate) fn identified(&mut self, io: &mut Io<'_, Admin>, conn: ConnId, all: Change) {
        if self.conn == Some(conn) {
            self.is_identified = true;
            self.refusal = None;
            self.send(io, all);
        }
    }

    /// It is told what changed, if it listens.
    pub(crate) fn send(&self, io: &mut Io<'_, Admin>, change: Change) {
        if let Some(conn) = self.conn.filter(|_| self.is_identified) {
            io.send(conn, Packet::NotifyMonitorInformation { info: change.to_wire() });
        }
    }

    /// Whether this refusal is another one than the last one.
    pub(crate) fn is_new_refusal(&mut self, message: &str) -> bool {
        let is_new = self.refusal.as_deref() != Some(message);
        self.refusal = Some(message.to_owned());
        is_new
    }

    /// The connection is gone.
    pub(crate) fn lost(&mut self, io: &mut Io<'_, Admin>, conn: ConnId) {
        if self.conn == Some(conn) {
            self.conn = None;
            self.is_identified = false;
            if !io.is_exiting() {
                self.connect(io);
            }
        }
    }
}
