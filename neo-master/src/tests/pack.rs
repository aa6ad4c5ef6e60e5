// SPDX-License-Identifier: GPL-2.0-or-later
//! Pack orders, from clients to storages.

use bytes::Bytes;
use neo_common::engine::ConnId;
use neo_common::protocol::{ErrorCode, MsgId, PackOids, PackOrder, Packet, Value};
use neo_common::types::{Oid, Tid, Ttid};

use super::harness::*;

/// Commits a pack order; returns its id.
#[track_caller]
fn order(
    h: &mut Harness,
    client: ConnId,
    storages: &[ConnId],
    pack: (Option<Vec<Oid>>, Tid),
) -> Tid {
    let ttid = h.begin(client);
    finish(h, client, ttid, pack);
    let mut tid = Tid::ZERO;
    for storage in storages {
        let (id, packet) = h.until(*storage, "AskLockInformation");
        let Packet::AskLockInformation { tid: asked, pack, .. } = packet else { unreachable!() };
        tid = asked;
        assert!(pack);
        h.answer(*storage, id, Packet::AnswerInformationLocked { ttid });
    }
    tid
}
fn finish(h: &mut Harness, client: ConnId, ttid: Ttid, pack: (Option<Vec<Oid>>, Tid)) -> MsgId {
    let (oids, deleted, checked, pack) = (vec![], vec![], vec![], Some(pack));
    h.send(client, Packet::AskFinishTransaction { ttid, oids, deleted, checked, pack })
}
fn approved(tid: Tid, oids: Option<Vec<Oid>>, time: Tid) -> PackOrder {
    (tid, Some(true), oids.is_some(), oids.map(PackOids::List), time)
}

/// An order is approved at once, storages process it, and who waits for it is told.
#[test]
fn pack() {
    let (mut h, _, storages) = Harness::running(1, 1, 2);
    let client = h.client();
    let extra = vec![("backup", Value::text("copy"))];
    let backup = h.client_with(extra);
    let time = h.commit(client, &storages, &[1]);
    h.all(backup);
    let first = order(&mut h, client, &storages, (None, time));
    let signed = Packet::NotifyPackSigned { approved: vec![first], rejected: vec![] };
    for storage in &storages {
        assert_eq!(h.until(*storage, "NotifyPackSigned").1, signed);
    }
    assert_eq!(h.all(backup)[1..], [signed]);
    let oids = Some(vec![Oid::new(1)]);
    let second = order(&mut h, client, &storages, (oids.clone(), time));

    // All of them for clients, the first one for storages.
    let ask = |min_tid| Packet::AskPackOrders { min_tid };
    let both = vec![approved(first, None, time), approved(second, oids, time)];
    let answer = |orders: &[PackOrder]| Packet::AnswerPackOrders { orders: orders.to_vec() };
    assert_eq!(h.ask(client, ask(Tid::ZERO)), answer(&both));
    assert_eq!(h.ask(storages[0], ask(Tid::ZERO)), answer(&both[..1]));
    assert_eq!(h.ask(storages[0], ask(first.next().unwrap())), answer(&both[1..]));
    assert_eq!(h.ask(storages[0], ask(second.next().unwrap())), answer(&[]));

    // Waiting, by two clients of which one disappears.
    let other = h.client();
    let id = h.send(client, Packet::WaitForPack { tid: first });
    let late = h.send(client, Packet::WaitForPack { tid: second });
    h.send(other, Packet::WaitForPack { tid: first });
    h.close(other);
    assert_eq!(h.ask(client, Packet::WaitForPack { tid: time }), Packet::WaitedForPack {});
    h.send(storages[0], Packet::NotifyPackCompleted { tid: second });
    assert!(!h.names(client).contains(&"WaitedForPack"), "S2 is not done");
    h.send(storages[1], Packet::NotifyPackCompleted { tid: first });
    h.check_answered(client, id, &Packet::WaitedForPack {});
    // A storage that is not there any more does not count.
    h.close(storages[1]);
    h.check_answered(client, late, &Packet::WaitedForPack {});
}

#[test]
fn pack_time_is_checked() {
    let (mut h, admin, storages) = Harness::running(1, 0, 1);
    let client = h.client();
    let last = h.commit(client, &storages, &[1]);
    let before = h.commit(client, &storages, &[1]);
    for time in [Tid::ZERO, before.next().unwrap(), Tid::MAX] {
        let client = h.client();
        let ttid = h.begin(client);
        finish(&mut h, client, ttid, (None, time));
        let (_, error) = h.until(client, "Error");
        assert_eq!(error, Packet::error(ErrorCode::ProtocolError, "invalid pack time"));
        assert!(h.is_closed(client));
    }
    order(&mut h, client, &storages, (None, before));
    // It cannot be undone.
    assert_eq!(
        h.ask_error(admin, Packet::Truncate { tid: last }),
        (ErrorCode::Denied, "Can not truncate before an approved pack".into())
    );
}

/// After a restart, orders that are not completed come from the storages, and the first unsigned
/// one blocks the automatic approval. Joined oids of upstream's storages become lists.
#[test]
fn orders_are_found_again() {
    let mut h = Harness::new(options(1, 1));
    let admin = h.admin();
    let one = h.recovering(None, 1, None);
    h.start(admin);
    let (id, _) = h.until(one, "AskLockedTransactions");
    h.answer(one, id, Packet::AnswerLockedTransactions { transactions: Default::default() });
    let (id, _) = h.until(one, "AskLastIDs");
    h.send(one, Packet::NotifyPackCompleted { tid: Tid::new(10) });
    let last_tid = Some(Tid::new(50));
    h.answer(one, id, Packet::AnswerLastIDs { last_tid, last_oid: None, first_tid: Tid::new(1) });
    let (id, question) = h.until(one, "AskPackOrders");
    assert_eq!(question, Packet::AskPackOrders { min_tid: Tid::new(11) });
    let joined = PackOids::Joined(Bytes::from([0, 0, 0, 0, 0, 0, 0, 7].repeat(2)));
    let time = Tid::new(5);
    let orders = vec![
        (Tid::new(20), Some(false), false, None, time),
        (Tid::new(30), Some(true), true, Some(joined), time),
        (Tid::new(40), None, false, None, time),
    ];
    h.answer(one, id, Packet::AnswerPackOrders { orders });
    h.until(one, "StartOperation");
    h.send(one, Packet::NotifyReady {});
    let signed =
        Packet::NotifyPackSigned { approved: vec![Tid::new(30)], rejected: vec![Tid::new(20)] };
    assert_eq!(h.until(one, "NotifyPackSigned").1, signed);
    let list = Some(vec![Oid::new(7); 2]);
    let answer = h.ask(one, Packet::AskPackOrders { min_tid: Tid::new(11) });
    let orders = vec![approved(Tid::new(30), list, time)];
    assert_eq!(answer, Packet::AnswerPackOrders { orders });
    // A new order waits for the decision about the unsigned one.
    let client = h.client();
    let ttid = h.begin(client);
    finish(&mut h, client, ttid, (None, time));
    let (_, packet) = h.until(one, "AskLockInformation");
    assert!(matches!(packet, Packet::AskLockInformation { pack: false, .. }));
}

/// Orders that the master forgot are asked to storages that have all partitions between them.
#[test]
fn old_orders_are_asked_to_storages() {
    let (mut h, _, storages) = Harness::running(2, 0, 2);
    let client = h.client();
    let time = h.commit(client, &storages, &[0, 1]);
    let ttid = h.begin(client);
    let oids = vec![Oid::new(0), Oid::new(1)];
    let pack = Some((None, time));
    let (deleted, checked) = (vec![], vec![]);
    h.send(client, Packet::AskFinishTransaction { ttid, oids, deleted, checked, pack });
    let tid = h.lock(storages[0]);
    h.lock(storages[1]);
    for storage in &storages {
        h.send(*storage, Packet::NotifyPackCompleted { tid });
        h.all(*storage);
    }
    let min_tid = Tid::new(1);
    let id = h.send(client, Packet::AskPackOrders { min_tid });
    let lost = h.client();
    h.send(lost, Packet::AskPackOrders { min_tid });
    h.close(lost);
    let odd = PackOids::Joined(Bytes::from_static(b"odd"));
    let orders = vec![approved(tid, None, time)];
    let mut questions = Vec::new();
    for storage in &storages {
        let (question, packet) = h.until(*storage, "AskPackOrders");
        assert_eq!(packet, Packet::AskPackOrders { min_tid });
        questions.push(question);
    }
    h.answer(storages[0], questions[0], Packet::AnswerPackOrders { orders: orders.clone() });
    assert!(!h.names(client).contains(&"AnswerPackOrders"));
    h.answer(storages[1], questions[1], Packet::AnswerPackOrders { orders: vec![] });
    h.check_answered(client, id, &Packet::AnswerPackOrders { orders: orders.clone() });
    // They are forgotten again at once, because they are completed.
    h.all(storages[0]);
    h.send(client, Packet::AskPackOrders { min_tid });
    let (question, _) = h.until(storages[0], "AskPackOrders");
    let orders = vec![(tid, None, true, Some(odd), time)];
    h.answer(storages[0], question, Packet::AnswerPackOrders { orders });
    assert!(h.is_closed(storages[0]));
}
