// SPDX-License-Identifier: GPL-2.0-or-later
//! Ids and the queue, without nodes around.

use neo_common::types::NodeType;

use super::*;

const NOW_US: u64 = 1_795_300_967_000_000;

fn conn(id: u64) -> ConnId {
    ConnId::new(id)
}
fn reply_to(conn: ConnId) -> ReplyTo {
    ReplyTo { conn, id: 7 }
}
fn nid(index: u32) -> NodeId {
    NodeId::of(NodeType::Storage, index).unwrap()
}
fn begin(tm: &mut TransactionManager, client: u64) -> Ttid {
    tm.begin(conn(client), 1, None, Tid::ZERO, NOW_US).unwrap()
}
fn prepare(tm: &mut TransactionManager, client: u64, ttid: Ttid, involved: &[u32]) -> Tid {
    let involved = involved.iter().map(|index| nid(*index)).collect();
    let reply_to = reply_to(conn(client));
    tm.prepare(ttid, reply_to, Content::default(), involved, (12, NOW_US)).unwrap()
}

/// A reset forgets transactions, not which tids and oids were used: an application may hold an oid
/// since before, and store it later.
#[test]
fn reset_keeps_the_last_ids() {
    let mut tm = TransactionManager::new();
    let ttid = begin(&mut tm, 1);
    tm.set_last_oid(Oid::new(9));
    tm.reset();
    assert!(!tm.has_pending());
    assert_eq!((tm.last_oid(), tm.first_tid(), tm.last_tid()), (Oid::ZERO, Tid::MAX, None));
    tm.set_last_oid(Oid::new(5));
    assert_eq!((tm.new_oids(0), tm.last_oid()), (Some(vec![]), Oid::new(5)));
    assert_eq!((tm.new_oids(1), tm.last_oid()), (Some(vec![Oid::new(10)]), Oid::new(10)));
    assert_eq!(begin(&mut tm, 1), Ttid::new(ttid.get() + 1));
    // Found by verification, or imposed by the operator's clock.
    tm.set_last_tid(Tid::new(ttid.get() + 100));
    assert_eq!(begin(&mut tm, 1), Ttid::new(ttid.get() + 101));
}

/// The last id in use is that of the last transaction that is being finished, or a ttid.
#[test]
fn last_tid_in_use() {
    let mut tm = TransactionManager::new();
    let (a, b) = (begin(&mut tm, 1), begin(&mut tm, 1));
    assert_eq!(tm.last_tid(), Some(b.as_tid()));
    let tid = prepare(&mut tm, 1, a, &[1]);
    assert!(tid > b.as_tid());
    assert_eq!(tid.get() % 12, a.get() % 12);
    assert_eq!(tm.last_tid(), Some(tid));
    let c = begin(&mut tm, 1);
    assert!(c.as_tid() > tid);
    assert_eq!(tm.last_tid(), Some(c.as_tid()));
}

/// All that was lost or locked before the first one is prepared counts once it is.
#[test]
fn queue() {
    let mut tm = TransactionManager::new();
    let (a, b) = (begin(&mut tm, 1), begin(&mut tm, 2));
    let first = prepare(&mut tm, 1, a, &[1, 2]);
    let second = prepare(&mut tm, 2, b, &[2]);
    assert!(first < second);
    tm.lock(b, nid(2)).unwrap();
    assert_eq!(tm.pop_locked(), None);
    assert!(tm.lock(b, nid(2)).is_err(), "twice");
    assert!(tm.lock(a, nid(3)).is_err(), "not involved");
    tm.lock(a, nid(1)).unwrap();
    assert_eq!(tm.pop_locked(), None);
    tm.storage_lost(nid(2));
    let (ttid, transaction) = tm.pop_locked().unwrap();
    assert_eq!((ttid, transaction.finishing.unwrap().involved), (a, vec![nid(1)]));
    let (ttid, transaction) = tm.pop_locked().unwrap();
    assert_eq!((ttid, transaction.finishing.unwrap().involved), (b, vec![]));
    assert_eq!(tm.pop_locked(), None);
    assert_eq!(tm.first_tid(), first);
}

/// Delayed requests are given back in order, once, when something changed.
#[test]
fn delayed_requests() {
    let mut tm = TransactionManager::new();
    let ttid = begin(&mut tm, 1);
    for client in [3, 2, 3] {
        tm.delay(reply_to(conn(client)), Delayed::Begin(None)).unwrap();
    }
    assert_eq!(tm.take_retriable(), []);
    tm.client_lost(conn(2));
    assert_eq!(tm.take_retriable(), []);
    tm.abort(ttid, conn(1)).unwrap();
    assert_eq!(tm.take_retriable(), vec![(reply_to(conn(3)), Delayed::Begin(None)); 2]);
    tm.retry();
    assert_eq!(tm.take_retriable(), []);
}

/// Ids follow the clock of the start of the service, even if it goes back before the first one is given.
#[test]
fn ids_follow_the_clock_of_the_start() {
    let mut tm = TransactionManager::new();
    let start = 1_770_000_000_000_000;
    tm.skip_until(start);
    let ttid = tm.begin(conn(1), 0, None, Tid::ZERO, start - 60_000_000).unwrap();
    assert!(ttid.as_tid() > tid_from_time(start));
    // An imposed one may be as old as the database allows.
    let mut tm = TransactionManager::new();
    tm.skip_until(start);
    assert_eq!(tm.begin(conn(1), 0, Some(Tid::new(5)), Tid::new(4), start).unwrap(), Ttid::new(5));
}
