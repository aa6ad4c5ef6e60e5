// SPDX-License-Identifier: GPL-2.0-or-later
//! Undoing a transaction inside another one. Upstream: client/app.py, `Application.undo`.
//!
//! For each object of the undone transaction, a storage tells the current serial, the serial to go
//! back to, and whether the undone revision is still current. If so, the object gets the data of
//! the older serial again. Otherwise the later changes are reconciled like a conflict: between the
//! undone revision (base), the current one (committed), and the one before the undone one.

use std::collections::BTreeMap;

use bytes::Bytes;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Partition, Tid};

use super::client::unexpected;
use super::pipeline::Ordered;
use super::transaction::Transaction;
use crate::call::{Answer, Call};
use crate::error::{Conflict, Error, Result};

/// Oids of a request: the answer is one packet.
const OIDS_LEN_MAX: usize = 10_000;

const UNDOABLE: &str = "non-undoable transaction";
const NOT_FOUND: &str = "object not found while resolving undo conflict";
const MODIFIED: &str = "some data were modified by a later transaction";

/// Current serial, serial to go back to, and whether the undone revision is current.
type UndoSerial = (Tid, Option<Tid>, bool);

/// Stores the objects as they were before `undone`, and returns them.
pub(super) fn undo(transaction: &mut Transaction, undone: Tid) -> Result<Vec<Oid>> {
    let info = match transaction.client.transaction_info(undone) {
        Err(Error::TidNotFound(_)) => {
            return Err(Error::Undo { reason: UNDOABLE, oid: None });
        }
        result => result?,
    };
    if info.packed {
        return Err(Error::Undo { reason: UNDOABLE, oid: None });
    }
    let ttid = transaction.ttid;
    // An object may be undone or stored again in the same transaction: its data is then needed.
    transaction.client.shared.call(Call::KeepData { ttid })?;
    // Storages must know what this transaction stored before.
    transaction.wait_stores()?;
    let serials = undo_serials(transaction, undone, &info.oids)?;
    for (oid, serial) in &serials {
        undo_object(transaction, undone, *oid, *serial)?;
    }
    transaction.wait_stores()?;
    Ok(serials.into_keys().collect())
}

fn undo_serials(
    transaction: &Transaction,
    undone_tid: Tid,
    oids: &[Oid],
) -> Result<BTreeMap<Oid, UndoSerial>> {
    let client = &transaction.client;
    let partitions = client.partitions()?;
    let mut rows = BTreeMap::<Partition, Vec<Oid>>::new();
    for oid in oids {
        rows.entry(oid.partition(partitions)).or_default().push(*oid);
    }
    let last = client.last_tid()?;
    let ltid = last.next().unwrap_or(last);
    let ttid = transaction.ttid;
    let mut requests = Ordered::new(&client.shared);
    for (partition, oids) in rows {
        for oids in oids.chunks(OIDS_LEN_MAX) {
            let oids = oids.to_vec();
            let packet = Packet::AskObjectUndoSerial { ttid, ltid, undone_tid, oids };
            requests.push(Call::Read { partition, packet, ttid: Some(ttid) })?;
        }
    }
    let mut serials = BTreeMap::new();
    while let Some(packet) = requests.pop_packet() {
        match packet {
            Ok(Packet::AnswerObjectUndoSerial { serials: some }) => serials.extend(some),
            Ok(other) => return Err(unexpected(&other)),
            // Revisions of the transaction do not exist any more: the symptom of a pack.
            Err(error) if error.is_key_error() => {
                return Err(Error::Undo { reason: UNDOABLE, oid: None });
            }
            Err(error) => return Err(error),
        }
    }
    // A storage says nothing of an object whose undone revision was packed away. Upstream undoes
    // the others.
    match oids.iter().find(|oid| !serials.contains_key(oid)) {
        Some(oid) => Err(Error::Undo { reason: UNDOABLE, oid: Some(*oid) }),
        None => Ok(serials),
    }
}

fn undo_object(
    transaction: &mut Transaction,
    undone: Tid,
    oid: Oid,
    (current, target, is_current): UndoSerial,
) -> Result<()> {
    if is_current {
        // The data is for cells that do not have that revision yet, and for conflicts.
        let data = match target {
            Some(target) => match transaction.client.load_serial(oid, target) {
                Ok(record) => Some(record.data),
                Err(Error::CreationUndone { .. }) => None,
                Err(error) if error.is_key_error() => {
                    return Err(Error::Undo { reason: UNDOABLE, oid: Some(oid) });
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        return transaction.store_from(oid, current, data, target);
    }
    let not_found = |error: Error| match error.is_key_error() {
        true => Error::Undo { reason: NOT_FOUND, oid: Some(oid) },
        false => error,
    };
    let committed_data = if current == transaction.ttid.as_tid() {
        let call = Call::StoredData { ttid: transaction.ttid, oid };
        match transaction.client.shared.call(call)? {
            Answer::Data(data) => data,
            Answer::CopyOf(serial) => Some(load(transaction, oid, serial).map_err(not_found)?),
            other => return Err(unexpected(&other)),
        }
    } else {
        Some(load(transaction, oid, current).map_err(not_found)?)
    };
    let data = match target {
        Some(target) => load(transaction, oid, target).map_err(not_found)?,
        None => return Err(Error::Undo { reason: MODIFIED, oid: Some(oid) }),
    };
    if committed_data.is_none() {
        return Err(Error::Undo { reason: NOT_FOUND, oid: Some(oid) });
    }
    let conflict =
        Conflict { oid, committed: current, base: undone, data: Some(data), committed_data };
    let data = transaction.resolver.resolve(conflict).map_err(|error| match error {
        Error::Conflict(_) => Error::Undo { reason: MODIFIED, oid: Some(oid) },
        error => error,
    })?;
    transaction.store_from(oid, current, Some(data), None)
}

fn load(transaction: &Transaction, oid: Oid, serial: Tid) -> Result<Bytes> {
    transaction.client.load_serial(oid, serial).map(|record| record.data)
}
