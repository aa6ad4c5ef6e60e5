// SPDX-License-Identifier: GPL-2.0-or-later
//! How clients store and vote. See the parent module.

use bytes::Bytes;
use neo_common::engine::{Fault, Handled, Io};
use neo_common::protocol::{ErrorCode, MsgId, PackRequest, Packet};
use neo_common::types::{ConnId, Hash, NodeId, Oid, Tid, Ttid, ZERO_HASH};
use sha1::{Digest, Sha1};

use crate::app::{Shared, Storage};
use crate::database::{Content, PackOrder, TransactionRecord, Value};
use crate::limits::TRANSACTION_OIDS_MAX;
use crate::operation::{Operation, VoteRequest};
use crate::transactions::{Request, RequestKind};

pub(super) fn write_packet(
    operation: &mut Operation,
    shared: &mut Shared,
    io: &mut Io<'_, Storage>,
    conn: ConnId,
    id: MsgId,
    packet: Packet,
) -> Handled {
    let client = io.nid(conn).ok_or(Fault::Unexpected)?;
    match packet {
        Packet::AskStoreObject {
            oid,
            serial,
            compression,
            checksum,
            data,
            data_serial: data_tid,
            ttid,
        } => {
            let content = content(compression, checksum, data)?;
            check_oid(oid)?;
            register(operation, conn, client, ttid)?;
            let kind = RequestKind::Store { serial, content, data_tid };
            let request = Request { conn, id, ttid, oid, kind };
            operation.transactions.request(client, request)?;
            operation.maybe_spill(shared, io, ttid);
        }
        Packet::AskCheckCurrentSerial { ttid, oid, serial } => {
            check_oid(oid)?;
            register(operation, conn, client, ttid)?;
            let request = Request { conn, id, ttid, oid, kind: RequestKind::Check { serial } };
            operation.transactions.request(client, request)?;
        }
        Packet::AskRelockObject { ttid, oid } => {
            let request = Request { conn, id, ttid, oid, kind: RequestKind::Relock };
            operation.transactions.request(client, request)?;
        }
        Packet::AskStoreTransaction { ttid, user, description, extension, oids, pack } => {
            let pack_len = pack.as_ref().and_then(|(oids, _)| oids.as_ref()).map_or(0, Vec::len);
            if oids.len() >= TRANSACTION_OIDS_MAX || pack_len >= TRANSACTION_OIDS_MAX {
                return Err(Fault::protocol(
                    "Too many modified OIDs (the default storage backend has a limitation of \
                     2^21-1)",
                ));
            }
            register(operation, conn, client, ttid)?;
            let packed_until = shared.packed_until.get(&client);
            let packed = packed_until.is_some_and(|tid| ttid.as_tid() <= *tid);
            let record = TransactionRecord { oids, user, description, extension, packed, ttid };
            let info = Some((record, pack.map(pack_order).transpose()?));
            operation.vote(shared, io, ttid, VoteRequest { conn, id, client, info })?;
        }
        Packet::AskVoteTransaction { ttid } => {
            operation.vote(shared, io, ttid, VoteRequest { conn, id, client, info: None })?;
        }
        _ => return Err(Fault::Unexpected),
    }
    Ok(())
}

fn register(operation: &mut Operation, conn: ConnId, client: NodeId, ttid: Ttid) -> Handled {
    if operation.transactions.ended.is_late(ttid, conn) {
        // Not for everybody to read: a client may send as much of it as it likes.
        log::debug!("ttid {ttid} of {client} is aborted: what it sent before is refused");
        // Not worth a connection: others of its transactions go on.
        return Err(Fault::Error(ErrorCode::ProtocolError, format!("ttid {ttid} is aborted")));
    }
    operation.transactions.register(client, ttid)
}

fn content(compression: u32, checksum: Hash, data: Bytes) -> Result<Content, Fault> {
    let compression = u8::try_from(compression).ok().filter(|compression| *compression <= 1);
    let compression = compression.ok_or_else(|| Fault::protocol("invalid compression value"))?;
    if data.is_empty() && checksum == ZERO_HASH {
        return Ok(Content::Deleted);
    }
    if Sha1::digest(&data)[..] != checksum {
        return Err(Fault::protocol("invalid checksum"));
    }
    Ok(Content::Value(Value { compression, checksum, data }))
}

/// No database can hold other oids.
fn check_oid(oid: Oid) -> Handled {
    match i64::try_from(oid.get()) {
        Ok(_) => Ok(()),
        Err(_) => Err(Fault::protocol(format!("invalid oid {oid}"))),
    }
}

fn pack_order((oids, pack_tid): PackRequest) -> Result<PackOrder, Fault> {
    if pack_tid > Tid::MAX {
        return Err(Fault::protocol("invalid pack time"));
    }
    let oids = oids.filter(|oids| !oids.is_empty());
    Ok(PackOrder { approved: None, partial: oids.is_some(), oids, pack_tid })
}
