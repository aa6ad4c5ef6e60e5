// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions that the master said to be aborted before their client did.
//!
//! A client that gives a transaction up tells the storages to which it is connected, behind what it
//! stored, and the master, which tells all storages of the transaction. The word of the master may
//! come first: directly, or because the connection of the client is cut, and what it sent arrives
//! when the network is back. A store that arrives then would begin the transaction again, with
//! locks and rows that nobody would ever remove as long as the client runs. So it is refused.
//!
//! What the client says itself is the end of it: both are told once, in any order, and the pair is
//! forgotten. A client that imposes tids may use the same one again afterwards, or on a connection
//! that it made later.

use std::collections::{BTreeMap, VecDeque};

use neo_common::types::{ConnId, Ttid};

use crate::limits::ENDED_TTIDS_MAX;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Ended {
    /// By the master, with the last connection of a client at that time.
    by_master: Recent<Option<ConnId>>,
    /// By the client, and the master will say the same.
    by_client: Recent<()>,
    newest: Option<ConnId>,
}

impl Ended {
    /// A client is connected.
    pub fn connected(&mut self, conn: ConnId) {
        self.newest = self.newest.max(Some(conn));
    }

    /// The master ends a transaction.
    pub fn by_master(&mut self, ttid: Ttid) {
        if self.by_client.remove(ttid).is_none() {
            self.by_master.insert(ttid, self.newest);
        }
    }

    /// Its client does.
    pub fn by_client(&mut self, ttid: Ttid) {
        if self.by_master.remove(ttid).is_none() {
            self.by_client.insert(ttid, ());
        }
    }

    /// Whether what arrives from this connection was sent before the end.
    pub fn is_late(&self, ttid: Ttid, conn: ConnId) -> bool {
        self.by_master.values.get(&ttid).is_some_and(|newest| Some(conn) <= *newest)
    }
}

/// The last [`ENDED_TTIDS_MAX`] entries.
#[derive(Debug)]
struct Recent<V> {
    values: BTreeMap<Ttid, V>,
    order: VecDeque<Ttid>,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<V> Recent<V> {
    fn insert(&mut self, ttid: Ttid, value: V) {
        if self.values.insert(ttid, value).is_some() {
            return;
        }
        self.order.push_back(ttid);
        if self.order.len() > ENDED_TTIDS_MAX {
            let oldest = self.order.pop_front().expect("it is not empty");
            self.values.remove(&oldest);
        }
    }

    fn remove(&mut self, ttid: Ttid) -> Option<V> {
        let value = self.values.remove(&ttid)?;
        // Pairs come soon one after the other.
        let position = self.order.iter().rposition(|other| *other == ttid).expect("both or none");
        self.order.remove(position);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnId = ConnId::new(1);
    const B: ConnId = ConnId::new(2);

    fn ended() -> Ended {
        let mut ended = Ended::default();
        ended.connected(A);
        ended
    }

    #[test]
    fn the_master_is_faster() {
        let mut ended = ended();
        let ttid = Ttid::new(1);
        assert!(!ended.is_late(ttid, A));
        ended.by_master(ttid);
        assert!(ended.is_late(ttid, A));
        assert!(!ended.is_late(Ttid::new(2), A));
        ended.by_client(ttid);
        assert!(!ended.is_late(ttid, A));
    }

    #[test]
    fn the_client_is_faster() {
        let mut ended = ended();
        let ttid = Ttid::new(1);
        ended.by_client(ttid);
        ended.by_master(ttid);
        assert!(!ended.is_late(ttid, A));
        // The same one again.
        ended.by_master(ttid);
        assert!(ended.is_late(ttid, A));
    }

    #[test]
    fn a_later_connection_is_not_late() {
        let mut ended = ended();
        let ttid = Ttid::new(1);
        ended.by_master(ttid);
        ended.connected(B);
        assert!(ended.is_late(ttid, A) && !ended.is_late(ttid, B));
    }

    #[test]
    fn bounded() {
        let mut ended = ended();
        let last = 2 * ENDED_TTIDS_MAX as u64;
        for ttid in 0..=last {
            ended.by_master(Ttid::new(ttid));
            ended.by_client(Ttid::new(ttid + 10 * last));
        }
        assert_eq!(ended.by_master.values.len(), ENDED_TTIDS_MAX);
        assert_eq!(ended.by_client.order.len(), ENDED_TTIDS_MAX);
        assert!(ended.is_late(Ttid::new(last), A) && !ended.is_late(Ttid::new(1), A));
    }
}
