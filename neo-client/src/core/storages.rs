// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections to storages: made when first needed, closed with that to the master.
//! Upstream: client/app.py, `getStorageConnection`, `_connectToStorageNode`.
//!
//! What is to be sent waits in the link until the storage has accepted us.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{ConnId, Fault, Handled, Io};
use neo_common::node::{Link, Node};
use neo_common::protocol::{NodeType, Packet, Value};
use neo_common::types::{NodeId, Ttid};

use super::{ClientCore, OpId, Ticket};
use crate::handlers::storage::{StorageBootstrapHandler, StorageHandler};

/// How long a storage to which the connection failed is only asked if there is no other.
/// Upstream: client/app.py, `MAX_FAILURE_AGE`.
const FAILURE_AGE_MAX: Duration = Duration::from_secs(600);

/// Connection to a storage.
#[derive(Debug)]
pub enum StorageLink {
    /// Not accepted yet.
    Connecting {
        /// The connection.
        conn: ConnId,
        /// Reads that wait.
        reads: Vec<OpId>,
        /// Requests of transactions that wait, in order.
        writes: Vec<(Packet, Ticket)>,
    },
    /// Accepted.
    Ready {
        /// The connection.
        conn: ConnId,
    },
}

impl StorageLink {
    pub(super) fn conn(&self) -> ConnId {
        match self {
            Self::Connecting { conn, .. } | Self::Ready { conn } => *conn,
        }
    }
    pub(super) fn push_read(&mut self, id: OpId) {
        if let Self::Connecting { reads, .. } = self {
            reads.push(id);
        }
    }
    /// Forgets what a transaction wanted to send.
    pub(super) fn forget(&mut self, ttid: Ttid) {
        if let Self::Connecting { writes, .. } = self {
            writes.retain(|(_, ticket)| ticket.ttid() != Some(ttid));
        }
    }
}

impl Ticket {
    /// Transaction of a request.
    pub(super) fn ttid(&self) -> Option<Ttid> {
        match self {
            Self::Store(ttid, ..)
            | Self::Relock(ttid, _)
            | Self::Vote(ttid)
            | Self::FailedVote(ttid)
            | Self::Finish(ttid) => Some(*ttid),
            Self::Identify
            | Self::LastTransaction
            | Self::Master(_)
            | Self::Read(_)
            | Self::Round(_) => None,
        }
    }
}

impl ClientCore {
    pub(super) fn is_running(&self, nid: NodeId) -> bool {
        self.nodes.by_nid(nid).is_some_and(Node::is_running)
    }

    /// The link to a storage that runs, connecting if needed.
    pub(super) fn storage_link(
        &mut self,
        io: &mut Io<'_, Self>,
        nid: NodeId,
    ) -> Option<&mut StorageLink> {
        if !self.storages.contains_key(&nid) {
            let node = self.nodes.by_nid(nid).filter(|node| node.is_running() && node.is_storage());
            let (key, address) = node.and_then(|node| Some((node.key(), node.address()?)))?;
            let conn = io.connect(address, &StorageBootstrapHandler);
            // The connection is new: it belongs to no other node.
            let old = self.nodes.set_link(key, Link::Connecting(conn)).ok().flatten();
            if let Some(old) = old {
                io.close(old);
            }
            let link = StorageLink::Connecting { conn, reads: Vec::new(), writes: Vec::new() };
            self.storages.insert(nid, link);
        }
        self.storages.get_mut(&nid)
    }

    /// Sends a request of a transaction, now or once the storage has accepted us. `false` if the
    /// storage cannot be reached.
    pub(super) fn send_to_storage(
        &mut self,
        io: &mut Io<'_, Self>,
        nid: NodeId,
        packet: Packet,
        ticket: Ticket,
    ) -> bool {
        match self.storage_link(io, nid) {
            None => false,
            Some(StorageLink::Ready { conn }) => {
                let conn = *conn;
                io.ask(conn, packet, ticket)
            }
            Some(StorageLink::Connecting { writes, .. }) => {
                writes.push((packet, ticket));
                true
            }
        }
    }

    fn storage_of(&self, conn: ConnId) -> Option<NodeId> {
        let nid = self.nodes.by_connection(conn)?.nid()?;
        self.storages.get(&nid).filter(|link| link.conn() == conn).map(|_| nid)
    }

    /// The connection is up: say who we are.
    pub(crate) fn storage_connected(&mut self, io: &mut Io<'_, Self>, conn: ConnId) {
        // Storages of upstream ignore what they do not know.
        let packed_until = self.options.packed_until.map(|tid| {
            let tid = Value::Bin(Bytes::copy_from_slice(&tid.to_bytes()));
            (Bytes::from_static(b"packed_until"), tid)
        });
        let request = Packet::RequestIdentification {
            node_type: NodeType::Client,
            nid: self.bootstrap.nid,
            address: None,
            cluster: self.options.cluster.clone(),
            id_timestamp: self.bootstrap.id_timestamp,
            extra: packed_until.into_iter().collect(),
        };
        io.ask(conn, request, Ticket::Identify);
    }

    /// The storage accepted us.
    pub(crate) fn storage_accepted(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        packet: &Packet,
    ) -> Handled {
        let Packet::AcceptIdentification { node_type, my_nid, your_nid } = *packet else {
            return Err(Fault::Unexpected);
        };
        let nid = self.storage_of(conn).ok_or(Fault::Close)?;
        if node_type != NodeType::Storage {
            return Err(Fault::Close);
        }
        if my_nid != Some(nid) || (your_nid.is_some() && your_nid != self.bootstrap.nid) {
            return Err(Fault::protocol("invalid uuids"));
        }
        if let Some(key) = self.nodes.by_nid(nid).map(Node::key) {
            // The same connection: nothing is replaced.
            let _ = self.nodes.set_link(key, Link::Identified(conn));
        }
        io.set_nid(conn, my_nid);
        io.set_handler(conn, &StorageHandler);
        self.failures.remove(&nid);
        log::debug!("connected to {nid}");
        let link = self.storages.insert(nid, StorageLink::Ready { conn });
        let Some(StorageLink::Connecting { reads, writes, .. }) = link else { return Ok(()) };
        for (packet, ticket) in writes {
            io.ask(conn, packet, ticket);
        }
        for id in reads {
            self.try_read_from(io, id, conn);
        }
        Ok(())
    }

    fn try_read_from(&mut self, io: &mut Io<'_, Self>, id: OpId, conn: ConnId) {
        if let Some(packet) = self.read_packet(id) {
            io.ask(conn, packet, Ticket::Read(id));
        }
    }

    /// The connection to a storage is gone, or could not be made.
    pub(crate) fn storage_lost(
        &mut self,
        io: &mut Io<'_, Self>,
        conn: ConnId,
        tickets: Vec<Ticket>,
    ) {
        let nid = self.storage_of(conn);
        self.nodes.unlink(conn);
        let Some(nid) = nid.or_else(|| self.link_of(conn)) else { return };
        let link = self.storages.remove(&nid);
        if self.ready_conn().is_some() {
            self.failures.insert(nid, io.now().monotonic + FAILURE_AGE_MAX);
        }
        let mut lost_reads = Vec::new();
        let mut lost_writes = BTreeMap::<Ttid, u32>::new();
        let mut waiting = Vec::new();
        if let Some(StorageLink::Connecting { reads, writes, .. }) = link {
            lost_reads = reads;
            waiting = writes.into_iter().map(|(_, ticket)| ticket).collect();
        }
        for ticket in tickets.into_iter().chain(waiting) {
            match (&ticket, ticket.ttid()) {
                (Ticket::Read(id), _) => lost_reads.push(*id),
                (_, Some(ttid)) => *lost_writes.entry(ttid).or_default() += 1,
                _ => {}
            }
        }
        self.transactions_lost(io, nid, &lost_writes);
        for id in lost_reads {
            self.cell_failed(io, id, nid);
        }
    }

    /// The storage with that connection, when its node was forgotten already.
    fn link_of(&self, conn: ConnId) -> Option<NodeId> {
        self.storages.iter().find(|(_, link)| link.conn() == conn).map(|(nid, _)| *nid)
    }
}
