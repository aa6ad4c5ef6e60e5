// SPDX-License-Identifier: GPL-2.0-or-later
//! Pack orders: what clients asked to pack, what was decided, and how far storages are. Upstream:
//! master/pack.py.
//!
//! An order is part of a transaction, and its id is the tid of that transaction. It is approved
//! automatically unless an earlier one is not signed. Storages process approved orders one at a
//! time, in order, and tell the last one that they completed.
//!
//! The master only remembers orders that are not completed. When it is asked for older ones (by a
//! storage that was away, or a backup cluster), it asks storages that have all partitions between
//! them: `OldOrders`.

use std::collections::{BTreeMap, BTreeSet};

use neo_common::engine::{ConnId, Fault, Io};
use neo_common::protocol::{PackOids, PackOrder, Packet};
use neo_common::types::{NodeId, Oid, Partition, Tid};

use crate::app::{Master, Ticket};
use crate::cluster::{Cluster, ReplyTo};

/// Requests that wait for something about packs: more is a mistake of the peers.
const WAITING_MAX: usize = 1 << 16;

/// What is ordered, and what was decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// `None`: not signed.
    pub approved: Option<bool>,
    /// Whether only some objects are packed.
    pub partial: bool,
    /// These objects.
    pub oids: Option<Vec<Oid>>,
    /// Revisions that are not current at this tid are removed.
    pub time: Tid,
}

impl Order {
    /// From what storages send.
    ///
    /// # Errors
    /// If it cannot be an order.
    pub fn parse(order: PackOrder) -> Result<(Tid, Self), Fault> {
        let (tid, approved, partial, oids, time) = order;
        // Upstream's storages join the oids in one string, and upstream's master forwards that to
        // storages that do not understand it.
        let oids = match oids.map(PackOids::into_list) {
            Some(None) => return Err(Fault::protocol("invalid oids in a pack order")),
            Some(oids) => oids,
            None => None,
        };
        Ok((tid, Self { approved, partial, oids, time }))
    }

    /// As it is sent.
    fn to_wire(&self, tid: Tid) -> PackOrder {
        let oids = self.oids.clone().map(PackOids::List);
        (tid, self.approved, self.partial, oids, self.time)
    }
}

/// An order that is not completed.
#[derive(Clone, PartialEq, Debug)]
struct Pack {
    order: Order,
    waiting: Vec<ReplyTo>,
}

/// Which orders an answer lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// All of them: for clients.
    All,
    /// The first approved one: for storages.
    FirstApproved,
}

/// A request for orders that the master does not remember.
#[derive(Clone, PartialEq, Debug)]
struct OldOrders {
    reply_to: ReplyTo,
    min_tid: Tid,
    wanted: Wanted,
    /// Partitions whose orders are not known yet.
    partitions: BTreeSet<Partition>,
    /// Storages that are being asked, for which partitions. A storage may be asked again before it
    /// answers, because the partition table changed.
    queries: BTreeMap<u64, (NodeId, BTreeSet<Partition>)>,
    orders: Vec<(Tid, Order)>,
}

/// Pack orders.
#[derive(Debug, Default)]
pub struct PackManager {
    packs: BTreeMap<Tid, Pack>,
    /// Greatest id of which all orders up to it are completed and forgotten.
    max_completed: Option<Tid>,
    past: Option<Tid>,
    /// What each storage said.
    completed: BTreeMap<NodeId, Tid>,
    old: BTreeMap<u64, OldOrders>,
    next_query: u64,
}

impl PackManager {
    /// Knows no order.
    pub fn new() -> Self {
        Self::default()
    }
    /// Forgets orders and requests, but not what storages said.
    pub fn reset(&mut self) {
        let completed = std::mem::take(&mut self.completed);
        *self = Self { completed, next_query: self.next_query, ..Self::default() };
    }

    /// Adds an order that a storage told, or the decision about it.
    pub fn add(&mut self, tid: Tid, order: Order) {
        if let Some(pack) = self.packs.get_mut(&tid) {
            if pack.order.approved.is_none() {
                pack.order.approved = order.approved;
            }
            return;
        }
        self.packs.insert(tid, Pack { order, waiting: Vec::new() });
        if self.max_completed.is_some_and(|max| max > tid) {
            self.max_completed = tid.previous();
        }
    }

    /// A client orders a pack. Returns whether it is approved.
    pub fn order(&mut self, tid: Tid, oids: Option<Vec<Oid>>, time: Tid) -> bool {
        let approved = self.first_unsigned().is_none();
        let partial = oids.as_ref().is_some_and(|oids| !oids.is_empty());
        let order = Order { approved: approved.then_some(true), partial, oids, time };
        self.packs.insert(tid, Pack { order, waiting: Vec::new() });
        approved
    }

    /// Whether an order is approved.
    pub fn is_approved(&self, tid: Tid) -> bool {
        self.packs.get(&tid).is_some_and(|pack| pack.order.approved == Some(true))
    }
    /// First id that is not signed, or `None` if all known orders are.
    pub fn first_unsigned(&self) -> Option<Tid> {
        self.packs.iter().find(|(_, pack)| pack.order.approved.is_none()).map(|(tid, _)| *tid)
    }
    /// Changes the decision about an order. `false` if it is not known.
    pub fn sign(&mut self, tid: Tid, approved: bool) -> bool {
        let pack = self.packs.get_mut(&tid);
        pack.map(|pack| pack.order.approved = Some(approved)).is_some()
    }
    /// Orders that are approved and rejected, from `min_tid`.
    ///
    /// The greatest completed one counts as approved.
    pub fn signed(&self, min_tid: Tid) -> (Vec<Tid>, Vec<Tid>) {
        let mut approved = Vec::new();
        let mut rejected = Vec::new();
        let is_told = |tid: &Tid| min_tid <= *tid && *tid != Tid::ZERO && Some(*tid) != self.past;
        approved.extend(self.max_completed.filter(is_told));
        for (tid, pack) in self.packs.range(min_tid..) {
            match pack.order.approved {
                Some(true) => approved.push(*tid),
                Some(false) => rejected.push(*tid),
                None => {}
            }
        }
        (approved, rejected)
    }
    /// Orders from `min_tid`, as in `AnswerPackOrders`.
    fn dump(&self, min_tid: Tid, wanted: Wanted) -> Packet {
        let packs = self.packs.range(min_tid..);
        let to_wire = |(tid, pack): (&Tid, &Pack)| pack.order.to_wire(*tid);
        let orders = match wanted {
            Wanted::All => packs.map(to_wire).collect(),
            Wanted::FirstApproved => {
                let mut approved = packs.filter(|(_, pack)| pack.order.approved == Some(true));
                approved.next().map(to_wire).into_iter().collect()
            }
        };
        Packet::AnswerPackOrders { orders }
    }

    /// A client waits for the completion of an order. `false` if there is nothing to wait for.
    ///
    /// # Errors
    /// If too many requests wait.
    pub fn wait(&mut self, tid: Tid, reply_to: ReplyTo) -> Result<bool, Fault> {
        let Some(pack) = self.packs.get_mut(&tid) else { return Ok(false) };
        if pack.waiting.len() >= WAITING_MAX {
            return Err(Fault::protocol("too many requests"));
        }
        pack.waiting.push(reply_to);
        Ok(true)
    }

    /// A storage said up to which order it is done.
    pub fn set_completed(&mut self, nid: NodeId, tid: Tid) {
        self.completed.insert(nid, tid);
    }
    /// When the service begins, storages with readable cells have completed the orders up to this one.
    pub fn set_past(&mut self, tid: Tid) {
        self.past = Some(tid).filter(|tid| *tid != Tid::ZERO);
        self.max_completed = self.max_completed.max(self.past);
    }
    /// The last order that was completed before the service began, if this storage, which was away, has
    /// to be told that there was one.
    pub fn missed_by(&self, nid: NodeId) -> Option<Tid> {
        self.past.filter(|past| self.completed.get(&nid).is_none_or(|tid| tid < past))
    }
    /// Smallest id that these storages completed; `None` if none of them said anything.
    pub fn completed_by(&self, nids: &BTreeSet<NodeId>) -> Option<Tid> {
        nids.iter().filter_map(|nid| self.completed.get(nid)).min().copied()
    }
    /// Forgets orders up to `tid`. Returns who waited for them.
    fn complete(&mut self, tid: Tid) -> Vec<ReplyTo> {
        let mut waiting = Vec::new();
        while let Some(entry) = self.packs.first_entry().filter(|entry| *entry.key() <= tid) {
            let (tid, pack) = entry.remove_entry();
            waiting.extend(pack.waiting);
            self.max_completed = self.max_completed.max(Some(tid));
        }
        waiting
    }

    /// Nobody waits on a connection any more.
    pub fn client_lost(&mut self, conn: ConnId) {
        for pack in self.packs.values_mut() {
            pack.waiting.retain(|reply_to| reply_to.conn != conn);
        }
        self.requester_lost(conn);
    }
    fn requester_lost(&mut self, conn: ConnId) {
        self.old.retain(|_, request| request.reply_to.conn != conn);
    }
}

/// Answers `AskPackOrders`, after having asked storages if needed.
///
/// # Errors
/// If too many requests wait.
pub fn ask_pack_orders(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    reply_to: ReplyTo,
    min_tid: Tid,
    wanted: Wanted,
) -> Result<(), Fault> {
    let pm = &mut cluster.pm;
    if pm.max_completed.is_none_or(|max| max < min_tid) {
        io.answer(reply_to.conn, reply_to.id, pm.dump(min_tid, wanted));
        return Ok(());
    }
    if pm.old.len() >= WAITING_MAX {
        return Err(Fault::protocol("too many requests"));
    }
    let request = pm.next_query;
    pm.next_query += 1;
    let old = OldOrders {
        reply_to,
        min_tid,
        wanted,
        partitions: (0..cluster.pt.partitions()).collect(),
        queries: BTreeMap::new(),
        orders: Vec::new(),
    };
    pm.old.insert(request, old);
    query(cluster, io, request);
    Ok(())
}

/// Asks storages for the partitions that no storage is being asked for. Those without readable cell
/// are not: then the cluster is about to stop.
fn query(cluster: &mut Cluster, io: &mut Io<'_, Master>, request: u64) {
    let Cluster { pm, pt, nm, .. } = cluster;
    let Some(old) = pm.old.get_mut(&request) else { return };
    let mut missing = old.partitions.clone();
    for (_, partitions) in old.queries.values() {
        missing.retain(|partition| !partitions.contains(partition));
    }
    let conn_of = |nid| nm.by_nid(nid).and_then(|node| node.identified());
    while let Some(partition) = missing.pop_first() {
        let readable = pt.table().readable(partition);
        let Some((nid, conn)) = readable.filter_map(|nid| Some((nid, conn_of(nid)?))).next() else {
            continue;
        };
        let readable: BTreeSet<Partition> = pt.table().readable_of(nid).collect();
        let partitions = old.partitions.intersection(&readable).copied().collect();
        missing.retain(|partition| !readable.contains(partition));
        let query = pm.next_query;
        pm.next_query += 1;
        old.queries.insert(query, (nid, partitions));
        let ticket = Ticket::PackOrders { request, query };
        io.ask(conn, Packet::AskPackOrders { min_tid: old.min_tid }, ticket);
    }
}

/// A storage answered about old orders.
///
/// # Errors
/// If the answer is not valid.
pub fn old_orders(
    cluster: &mut Cluster,
    io: &mut Io<'_, Master>,
    (request, query_id): (u64, u64),
    orders: Vec<PackOrder>,
) -> Result<(), Fault> {
    let orders: Vec<_> = orders.into_iter().map(Order::parse).collect::<Result<_, _>>()?;
    // The requester may be gone.
    let Some(old) = cluster.pm.old.get_mut(&request) else { return Ok(()) };
    let Some((_, partitions)) = old.queries.remove(&query_id) else { return Ok(()) };
    old.partitions.retain(|partition| !partitions.contains(partition));
    old.orders.extend(orders);
    if !old.partitions.is_empty() {
        query(cluster, io, request);
        return Ok(());
    }
    let Some(OldOrders { reply_to, min_tid, wanted, orders, .. }) = cluster.pm.old.remove(&request)
    else {
        return Ok(());
    };
    // From now on, all orders from `min_tid` are known again.
    cluster.pm.max_completed = min_tid.previous();
    for (tid, order) in orders {
        cluster.pm.add(tid, order);
    }
    io.answer(reply_to.conn, reply_to.id, cluster.pm.dump(min_tid, wanted));
    update_completed(cluster, io);
    Ok(())
}

/// A storage is lost: others are asked instead.
pub fn storage_lost(cluster: &mut Cluster, io: &mut Io<'_, Master>, nid: NodeId, conn: ConnId) {
    cluster.pm.requester_lost(conn);
    let mut requests = Vec::new();
    for (request, old) in &mut cluster.pm.old {
        let len = old.queries.len();
        old.queries.retain(|_, (other, _)| *other != nid);
        if old.queries.len() < len {
            requests.push(*request);
        }
    }
    for request in requests {
        query(cluster, io, request);
    }
    update_completed(cluster, io);
}

/// Forgets the orders that all storages with readable cells have completed, and tells who waits.
pub fn update_completed(cluster: &mut Cluster, io: &mut Io<'_, Master>) {
    // Looking for readable cells everywhere is not worth it in the usual case.
    if cluster.pm.packs.is_empty() {
        return;
    }
    let nids = cluster.pt.table().readable_nodes();
    let Some(tid) = cluster.pm.completed_by(&nids) else { return };
    for reply_to in cluster.pm.complete(tid) {
        io.answer(reply_to.conn, reply_to.id, Packet::WaitedForPack {});
    }
}
