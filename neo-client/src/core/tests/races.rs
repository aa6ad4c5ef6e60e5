// SPDX-License-Identifier: GPL-2.0-or-later
//! Seeded runs against a small cluster where each connection has its own delays: whatever arrives
//! first, loads return what the database had, and commits are what the application was told.

use std::collections::BTreeSet;

use neo_common::prng::Prng;

use super::*;

const OBJECTS: u64 = 6;

/// Revisions of the objects, and what is on its way.
struct Cluster {
    world: World,
    prng: Prng,
    /// Serials of each object, ascending.
    history: BTreeMap<u64, Vec<u64>>,
    last_tid: u64,
    /// What each connection is about to deliver to the client, in order.
    inbound: BTreeMap<ConnId, VecDeque<(Option<MsgId>, Packet)>>,
    /// What the client sent, not handled yet, in order for each connection.
    outbound: BTreeMap<ConnId, VecDeque<Sent>>,
    loads: BTreeMap<CallId, Load>,
    /// Data that the application is verifying.
    verifying: Vec<(CallId, LoadedObject)>,
    /// The transaction under way, its step and what it stores.
    commit: Option<(Ttid, Step, BTreeSet<u64>)>,
    waiting: Option<CallId>,
    /// Objects that only the client may change now.
    locked: BTreeSet<u64>,
    outcomes: BTreeMap<Ttid, u64>,
    /// Connection that the master accepted.
    accepted: Option<ConnId>,
    /// Events or commits that the application is dealing with.
    telling: usize,
    checked: u32,
    hits: u32,
}

struct Load {
    oid: u64,
    before: Option<u64>,
    last_tid: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Storing,
    Waiting,
    Voting,
    Finishing,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut world = World::ready(&[&[1], &[2]]);
        world.ask(Call::Listen).unwrap();
        let accepted = world.master();
        let history = (0..OBJECTS).map(|o| (o, vec![50 + o])).collect();
        Self {
            world,
            prng: Prng::new(seed),
            history,
            last_tid: 100,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            loads: BTreeMap::new(),
            verifying: Vec::new(),
            commit: None,
            waiting: None,
            locked: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            accepted: Some(accepted),
            telling: 0,
            checked: 0,
            hits: 0,
        }
    }

    fn truth(&self, o: u64, before: u64) -> Option<(u64, Option<u64>)> {
        let revisions = &self.history[&o];
        let index = revisions.partition_point(|t| *t < before);
        Some((revisions[index.checked_sub(1)?], revisions.get(index).copied()))
    }

    fn step(&mut self) {
        match self.prng.below(14) {
            0 => self.other_commit(),
            1..3 => self.load(),
            3..7 => self.serve(),
            7..11 => self.deliver(),
            11 => self.verified(),
            12 => self.told(),
            _ => self.go_on(),
        }
        if self.prng.one_in(300) {
            self.break_something();
        }
        self.collect();
    }

    /// Another client commits: storages know at once, the client when the master's packet arrives.
    fn other_commit(&mut self) {
        self.last_tid += 1;
        let mut oids = BTreeSet::new();
        for _ in 0..=self.prng.below(3) {
            let o = self.prng.below(OBJECTS as usize) as u64;
            if !self.locked.contains(&o) && oids.insert(o) {
                self.history.get_mut(&o).unwrap().push(self.last_tid);
            }
        }
        self.notify_commit(oids);
    }

    fn notify_commit(&mut self, oids: BTreeSet<u64>) {
        if self.accepted.is_some_and(|conn| self.world.peers.contains_key(&conn)) {
            let oids = oids.into_iter().map(oid).collect();
            let packet = Packet::InvalidateObjects { tid: tid(self.last_tid), oids };
            self.inbound.entry(self.world.master()).or_default().push_back((None, packet));
        }
    }

    fn load(&mut self) {
        let o = self.prng.below(OBJECTS as usize) as u64;
        let last_tid = self.world.last_known_tid().unwrap().get();
        let before = (!self.prng.one_in(3)).then(|| last_tid + 1 - self.prng.below(6) as u64);
        let call = self.world.load(o, before);
        self.loads.insert(call, Load { oid: o, before, last_tid });
    }

    /// A node handles a packet.
    fn serve(&mut self) {
        let conns: Vec<ConnId> = self.outbound.keys().copied().collect();
        let Some(conn) = self.prng.choose(&conns).copied() else { return };
        let Some(sent) = self.outbound.get_mut(&conn).and_then(VecDeque::pop_front) else { return };
        if self.outbound[&conn].is_empty() {
            self.outbound.remove(&conn);
        }
        if matches!(sent.packet, Packet::RequestIdentification { .. })
            && !self.world.peers.contains_key(&conn)
        {
            return;
        }
        let Some(answer) = self.answer(&sent) else { return };
        self.inbound.entry(conn).or_default().push_back((Some(sent.id), answer));
    }

    fn answer(&mut self, sent: &Sent) -> Option<Packet> {
        Some(match &sent.packet {
            Packet::RequestIdentification { .. } if sent.to == master_address() => {
                // The master reads what is left of old connections before it accepts a new one.
                self.outbound.retain(|_, sent| sent[0].to != master_address());
                self.world.sent.push_front(sent.clone());
                self.world.last_tid = tid(self.last_tid);
                // All at once: delays of a connection that begins show nothing.
                self.world.accept_master();
                self.accepted = Some(sent.conn);
                return None;
            }
            Packet::RequestIdentification { .. } => Packet::AcceptIdentification {
                node_type: NodeType::Storage,
                my_nid: Some(storage(u32::from(sent.to.port()) - 100)),
                your_nid: Some(me()),
            },
            Packet::Ping {} => Packet::Pong {},
            Packet::AskObject { .. } if self.prng.one_in(20) => {
                Packet::Error { code: ErrorCode::NonReadableCell, message: String::new() }
            }
            Packet::AskObject { oid: o, before: Some(before), .. } => {
                match self.truth(o.get(), before.get()) {
                    Some((serial, next)) => answer_object(o.get(), serial, next),
                    None => Packet::Error { code: ErrorCode::OidNotFound, message: String::new() },
                }
            }
            Packet::AskBeginTransaction { .. } => {
                self.last_tid += 1;
                Packet::AnswerBeginTransaction { ttid: ttid(self.last_tid) }
            }
            Packet::AskStoreObject { oid: o, serial, .. } => {
                let current = *self.history[&o.get()].last().unwrap();
                let conflict = (current != serial.get()).then_some(tid(current));
                if conflict.is_none() && self.commit.is_some() {
                    self.locked.insert(o.get());
                }
                Packet::AnswerStoreObject { conflict }
            }
            Packet::FailedVote { .. } => {
                let code = ErrorCode::IncompleteTransaction;
                Packet::Error { code, message: String::new() }
            }
            Packet::AskStoreTransaction { .. } => Packet::AnswerStoreTransaction {},
            Packet::AskVoteTransaction { .. } => Packet::AnswerVoteTransaction {},
            Packet::AskFinishTransaction { ttid, oids, .. } => {
                self.last_tid += 1;
                for o in oids {
                    self.history.get_mut(&o.get()).unwrap().push(self.last_tid);
                }
                self.outcomes.insert(*ttid, self.last_tid);
                Packet::AnswerTransactionFinished { ttid: *ttid, tid: tid(self.last_tid) }
            }
            Packet::AskFinalTID { ttid } if sent.to == master_address() && self.prng.one_in(2) => {
                let _ = ttid;
                Packet::AnswerFinalTID { tid: Some(Tid::MAX) }
            }
            Packet::AskFinalTID { ttid } => {
                Packet::AnswerFinalTID { tid: self.outcomes.get(ttid).map(|t| tid(*t)) }
            }
            Packet::AbortTransaction { .. } => return None,
            other => panic!("{other:?}"),
        })
    }

    /// A packet arrives at the client.
    fn deliver(&mut self) {
        let conns: Vec<ConnId> = self.inbound.keys().copied().collect();
        let Some(conn) = self.prng.choose(&conns).copied() else { return };
        let packet = self.inbound.get_mut(&conn).and_then(VecDeque::pop_front);
        if self.inbound[&conn].is_empty() {
            self.inbound.remove(&conn);
        }
        if let Some((id, packet)) = packet
            && self.world.peers.contains_key(&conn)
        {
            self.world.feed(conn, id, &packet);
        }
    }

    fn break_something(&mut self) {
        let conns: Vec<ConnId> = self.world.peers.keys().copied().collect();
        let Some(conn) = self.prng.choose(&conns).copied() else { return };
        self.world.close(conn);
        self.world.sleep(Duration::from_secs(1));
    }

    /// Takes what the client sent and replied.
    fn collect(&mut self) {
        self.inbound.retain(|conn, _| self.world.peers.contains_key(conn));
        for sent in std::mem::take(&mut self.world.sent) {
            // A commit may have been done although the connection is lost.
            self.outbound.entry(sent.conn).or_default().push_back(sent);
        }
        self.telling += self.world.events.drain(..).count();
        for (call, reply) in std::mem::take(&mut self.world.replies) {
            if let Some(load) = self.loads.remove(&call) {
                match reply {
                    Ok(Answer::Cached(record)) => {
                        self.hits += 1;
                        self.check(&load, &record);
                    }
                    Ok(Answer::Object(object)) => {
                        self.loads.insert(call, load);
                        self.verifying.push((call, object));
                    }
                    Err(Error::OidNotFound(o)) => {
                        assert_eq!(self.truth(o.get(), load.before.unwrap()), None);
                    }
                    other => panic!("{other:?}"),
                }
            } else if self.waiting == Some(call) {
                self.waiting = None;
                self.committed(reply);
            }
        }
    }

    /// The application has verified data, in any order.
    fn verified(&mut self) {
        if self.verifying.is_empty() {
            return;
        }
        let index = self.prng.below(self.verifying.len());
        let (call, object) = self.verifying.swap_remove(index);
        let data = object.stored.load().unwrap();
        let record = cached(self.world.ask(Call::Loaded { load: object.load, data }));
        let load = self.loads.remove(&call).unwrap();
        self.check(&load, &record);
    }

    /// The record is what the database had at that tid; without tid, at any last tid between call
    /// and reply.
    fn check(&mut self, load: &Load, record: &Record) {
        self.checked += 1;
        let now = self.world.last_known_tid().unwrap().get();
        let mut bounds = match load.before {
            Some(before) => before..=before,
            None => load.last_tid + 1..=now + 1,
        };
        let found = bounds.find_map(|before| {
            self.truth(load.oid, before).filter(|(serial, _)| *serial == record.serial.get())
        });
        let (serial, next) = found.unwrap_or_else(|| panic!("{} {record:?} is wrong", load.oid));
        assert!(record.data.starts_with(format!("{}@", load.oid).as_bytes()));
        if let Some(known) = record.next_serial {
            assert_eq!(Some(known.get()), next, "{}@{serial}", load.oid);
        }
    }

    fn told(&mut self) {
        if self.telling > 0 {
            self.telling -= 1;
            let before = self.world.last_known_tid();
            self.world.ask(Call::Delivered).unwrap();
            assert!(self.world.last_known_tid() >= before, "the last tid went back");
        }
    }

    /// The application goes on with its transaction.
    fn go_on(&mut self) {
        if self.waiting.is_some() {
            return;
        }
        let call = match &mut self.commit {
            None => Call::Begin { tid: None },
            Some((t, step @ Step::Storing, oids)) => {
                let o = self.prng.below(OBJECTS as usize) as u64;
                if oids.len() >= 2 || !oids.insert(o) {
                    *step = Step::Waiting;
                    Call::WaitStores { ttid: *t }
                } else {
                    // Often not the current one.
                    let revisions = &self.history[&o];
                    let back = self.prng.below(2).min(revisions.len() - 1);
                    let serial = revisions[revisions.len() - 1 - back];
                    store_call(*t, oid(o), tid(serial), content(o, 0), None)
                }
            }
            Some((t, Step::Waiting, _)) => Call::WaitStores { ttid: *t },
            Some((t, Step::Voting, _)) => Call::Vote {
                ttid: *t,
                user: Bytes::new(),
                description: Bytes::new(),
                extension: Bytes::new(),
            },
            Some((t, Step::Finishing, _)) => Call::Finish { ttid: *t },
        };
        self.waiting = Some(self.world.call(call));
    }

    fn committed(&mut self, reply: Reply) {
        match (reply, &mut self.commit) {
            (Ok(Answer::Begun(t)), None) => self.commit = Some((t, Step::Storing, BTreeSet::new())),
            (Ok(Answer::Done), Some((_, step, _))) => {
                if *step == Step::Waiting {
                    *step = Step::Voting;
                }
            }
            (Ok(Answer::Conflicts(conflicts)), Some((t, _, _))) => {
                let t = *t;
                for conflict in conflicts {
                    let (o, committed) = (conflict.oid, conflict.committed);
                    let data = content(o.get(), 0);
                    self.world.call(store_call(t, o, committed, data, Some(committed)));
                }
            }
            (Ok(Answer::Resolved(_)), Some((_, step, _))) => *step = Step::Finishing,
            (Ok(Answer::Finished(t)), Some((ttid, _, _))) => {
                assert_eq!(self.outcomes.get(ttid), Some(&t.get()));
                self.telling += 1;
                self.end();
            }
            (Err(Error::NotCommitted(t)), Some((ttid, _, _))) => {
                assert_eq!((t, self.outcomes.get(ttid)), (*ttid, None));
                self.end();
            }
            (Err(error), Some((t, step, _))) => {
                assert!(
                    matches!(error, Error::MasterLost | Error::NotStored(_) | Error::Incomplete),
                    "{error:?} in {step:?}"
                );
                let t = *t;
                assert_eq!(self.outcomes.get(&t), None);
                self.world.call(Call::Abort { ttid: t });
                self.end();
            }
            (reply, commit) => panic!("{reply:?} {commit:?}"),
        }
    }

    fn end(&mut self) {
        self.commit = None;
        self.locked.clear();
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let idle = self.inbound.is_empty()
                && self.outbound.is_empty()
                && self.verifying.is_empty()
                && self.telling == 0
                && self.loads.is_empty()
                && self.waiting.is_none();
            if idle && self.world.has_conn(master_address()) {
                return;
            }
            match self.prng.below(4) {
                0 => self.serve(),
                1 => self.deliver(),
                2 => self.verified(),
                _ => self.told(),
            }
            if self.prng.one_in(50) {
                self.world.sleep(Duration::from_secs(1));
            }
            self.collect();
        }
        panic!("{} loads are not answered", self.loads.len());
    }
}

fn run(seed: u64) -> (u32, u32) {
    let mut cluster = Cluster::new(seed);
    for _ in 0..2000 {
        cluster.step();
    }
    cluster.settle();
    let last = cluster.world.last_known_tid().unwrap().get();
    for o in 0..OBJECTS {
        for before in last - 20..=last + 1 {
            let truth = cluster.truth(o, before);
            let hit = cluster.world.engine.app.cached(oid(o), Some(tid(before)));
            if let Some(hit) = hit {
                assert_eq!(truth.map(|(serial, _)| tid(serial)), Some(hit.serial), "seed {seed}");
            }
        }
    }
    (cluster.checked, cluster.hits)
}

#[test]
fn whatever_arrives_first() {
    let (mut checked, mut hits) = (0, 0);
    for seed in 0..300 {
        let result = std::panic::catch_unwind(|| run(seed));
        let (c, h) = result.unwrap_or_else(|_| panic!("seed {seed} fails"));
        checked += c;
        hits += h;
    }
    println!("{checked} loads, {hits} from the cache");
    assert!(checked > 10_000 && hits > 1000, "{checked} loads, {hits} from the cache");
}
