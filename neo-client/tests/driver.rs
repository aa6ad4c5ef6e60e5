// SPDX-License-Identifier: GPL-2.0-or-later
//! The blocking client with many threads, against a small cluster on loopback sockets.

// Threads, clocks and mutexes of the tests.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

mod fake;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::Fake;
use neo_client::{
    Client, Conflict, Error, Listener, Metadata, NoResolution, Options, Resolver, Result,
};
use neo_common::types::{Oid, Tid};

/// Long enough for a slow machine, short enough for a test that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn open(fake: &Fake) -> Client {
    Client::open(Options::new("test", vec![fake.master])).unwrap()
}

fn oid(number: u64) -> Oid {
    Oid::new(number)
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs something that must not hang.
fn within_deadline<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(f());
    });
    receiver.recv_timeout(DEADLINE).expect("it does not hang")
}

fn commit(client: &Client, stores: &[(Oid, Tid, &[u8])]) -> Result<Tid> {
    let mut transaction = client.begin(None, Box::new(NoResolution))?;
    for (oid, serial, data) in stores {
        transaction.store(*oid, *serial, Bytes::copy_from_slice(data))?;
    }
    transaction.vote(&Metadata { user: "me".into(), ..Metadata::default() })?;
    transaction.finish(|_| {})
}

fn number(data: &[u8]) -> i64 {
    std::str::from_utf8(data).unwrap().parse().unwrap()
}

/// Adds what both transactions added.
struct Adder {
    client: Client,
}

impl Resolver for Adder {
    fn resolve(&mut self, conflict: Conflict) -> Result<Bytes> {
        let Conflict { oid, committed, base, data, .. } = conflict;
        let base = number(&self.client.load_serial(oid, base)?.data);
        let committed = number(&self.client.load_serial(oid, committed)?.data);
        let mine = number(&data.unwrap());
        Ok((mine + committed - base).to_string().into())
    }
}

/// What is committed is loaded, by the same client and by another one; missing objects are told.
#[test]
fn store_and_load() {
    let fake = Fake::start();
    let (a, b) = (open(&fake), open(&fake));
    let o = a.new_oid().unwrap();
    assert_eq!(a.last_oid().unwrap(), o);
    assert!(matches!(a.load(o), Err(Error::OidDoesNotExist(missing)) if missing == o));
    b.connect().unwrap();
    let first = commit(&a, &[(o, Tid::ZERO, b"one")]).unwrap();
    assert_eq!(a.last_tid().unwrap(), first);
    assert_eq!(b.sync().unwrap(), first);
    for client in [&a, &b] {
        let record = client.load(o).unwrap();
        assert_eq!(
            (&record.data[..], record.serial, record.next_serial),
            (&b"one"[..], first, None)
        );
    }
    let second = commit(&b, &[(o, first, b"two")]).unwrap();
    a.sync().unwrap();
    assert_eq!(&a.load(o).unwrap().data[..], b"two");
    let before = a.load_before(o, second).unwrap().unwrap();
    assert_eq!((&before.data[..], before.next_serial), (&b"one"[..], Some(second)));
    assert_eq!(a.load_before(o, first).unwrap(), None);
    assert_eq!(a.load_before_ex(o, second).unwrap(), Some(("one".into(), first)));
    assert_eq!(&a.load_serial(o, first).unwrap().data[..], b"one");
    assert!(matches!(a.load_serial(o, Tid::new(1)), Err(Error::OidNotFound(_))));
    assert_eq!(a.history(o, 10).unwrap().len(), 2);
    let info = a.transaction_info(first).unwrap();
    assert_eq!((&info.user[..], &info.oids[..]), (&b"me"[..], &[o][..]));
    assert!(matches!(a.transaction_info(Tid::new(1)), Err(Error::TidNotFound(_))));
    assert!(matches!(commit(&a, &[(o, first, b"three")]), Err(Error::Conflict(_))));
    // The lock was released by the abort.
    commit(&a, &[(o, second, b"three")]).unwrap();
}

/// Threads of two clients increment the same counters; conflicts are resolved while others load.
#[test]
fn counters() {
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 60;
    let fake = Fake::start();
    fake.fill(3, |_| b"0".to_vec());
    within_deadline(move || {
        let clients = [open(&fake), open(&fake)];
        let threads = (0..THREADS).map(|thread| {
            let client = clients[thread as usize % 2].clone();
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    let o = oid(round % 3 + 1);
                    let resolver = Adder { client: client.clone() };
                    let mut transaction = client.begin(None, Box::new(resolver)).unwrap();
                    let record = client.load(o).unwrap();
                    let next = (number(&record.data) + 1).to_string();
                    transaction.store(o, record.serial, next.into()).unwrap();
                    transaction.vote(&Metadata::default()).unwrap();
                    let tid = transaction.finish(|tid| {
                        // Nobody sees it before this returns.
                        assert!(client.last_tid().unwrap() < tid);
                    });
                    assert!(client.last_tid().unwrap() >= tid.unwrap());
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
        clients[0].sync().unwrap();
        let total = |o| number(&clients[0].load(oid(o)).unwrap().data) as u64;
        assert_eq!(total(1) + total(2) + total(3), THREADS * ROUNDS);
    });
}

/// Many threads load from one connection; each gets its own answers, and damaged data is refused.
#[test]
fn concurrent_loads() {
    let fake = Fake::start();
    fake.fill(500, |number| format!("object {number}").repeat(number as usize).into_bytes());
    fake.damage(oid(13));
    within_deadline(move || {
        let client = open(&fake);
        let threads = (0..16_u64).map(|thread| {
            let client = client.clone();
            thread::spawn(move || {
                for round in 0..500 {
                    let number = (round * 31 + thread * 17) % 500 + 1;
                    match client.load(oid(number)) {
                        Ok(record) => {
                            let expected = format!("object {number}").repeat(number as usize);
                            assert_eq!(record.data, expected.as_bytes());
                        }
                        Err(Error::WrongChecksum { oid: o, .. }) => {
                            assert_eq!((o, number), (oid(13), 13));
                        }
                        Err(error) => panic!("{number}: {error}"),
                    }
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
        let mut options = client.options().clone();
        options.ignore_wrong_checksum = true;
        let rescue = Client::open(options).unwrap();
        assert_eq!(rescue.load(oid(13)).unwrap().data, "object 13".repeat(13).as_bytes());
    });
}

/// A request that is not answered does not prevent others from being answered, on the same
/// connection.
#[test]
fn slow_answers_do_not_block_others() {
    let fake = Fake::start();
    fake.fill(100, |number| vec![number as u8; 100]);
    fake.faults(|faults| {
        faults.silent.insert(oid(1));
    });
    within_deadline(move || {
        let client = open(&fake);
        let slow = client.clone();
        let slow = thread::spawn(move || slow.load(oid(1)));
        for number in 2..=100 {
            assert_eq!(client.load(oid(number)).unwrap().data[0], number as u8);
        }
        assert!(!slow.is_finished());
        client.close();
        assert!(matches!(slow.join().unwrap(), Err(Error::Closed)));
    });
}

/// `prefetch` has many requests under way: a storage that waits for 60 of them before it answers
/// gets them.
#[test]
fn prefetch_is_pipelined() {
    let fake = Fake::start();
    fake.fill(100, |number| vec![number as u8; 100]);
    let client = open(&fake);
    client.connect().unwrap();
    fake.faults(|faults| faults.hold_until = 60);
    within_deadline(move || {
        let before = client.last_tid().unwrap().next().unwrap();
        let oids: Vec<Oid> = (1..=110).map(oid).collect();
        client.prefetch(&oids, before).unwrap();
        let received = fake.received();
        for number in 1..=100 {
            assert_eq!(client.load(oid(number)).unwrap().data[0], number as u8);
        }
        assert_eq!(fake.received(), received, "all are cached");
        assert!(client.try_cached(oid(1), None).is_some());
        assert!(client.try_cached(oid(101), None).is_none());
    });
}

#[derive(Default)]
struct Log {
    events: Mutex<Vec<(Tid, Vec<Oid>)>>,
    cleared: AtomicU64,
    disconnected: AtomicU64,
    /// The listener takes its time.
    slow: AtomicBool,
}

impl Listener for Log {
    fn invalidate(&self, tid: Tid, oids: &[Oid]) {
        while self.slow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        self.events.lock().unwrap().push((tid, oids.to_vec()));
    }
    fn invalidate_cache(&self) {
        self.cleared.fetch_add(1, Ordering::SeqCst);
    }
    fn disconnected(&self) {
        self.disconnected.fetch_add(1, Ordering::SeqCst);
    }
}

/// Invalidations reach the listener of a client that does nothing, in order; the last tid moves
/// after the listener was told, and a sync waits for it.
#[test]
fn invalidations() {
    let fake = Fake::start();
    fake.fill(10, |_| b"old".to_vec());
    let client = open(&fake);
    let log = Arc::new(Log::default());
    client.set_listener(log.clone());
    client.connect().unwrap();
    assert_eq!(&client.load(oid(1)).unwrap().data[..], b"old");
    let tids: Vec<Tid> = (1..=10).map(|number| fake.commit(&[oid(number)], b"new")).collect();
    wait_until("all are told", || log.events.lock().unwrap().len() == 10);
    let expected: Vec<_> = (1..=10).map(|n| (tids[n as usize - 1], vec![oid(n)])).collect();
    assert_eq!(*log.events.lock().unwrap(), expected);
    wait_until("the last tid is known", || client.last_tid().unwrap() == tids[9]);
    assert_eq!(&client.load(oid(1)).unwrap().data[..], b"new");

    log.slow.store(true, Ordering::SeqCst);
    let tid = fake.commit(&[oid(1)], b"newer");
    let waiter = client.clone();
    let sync = thread::spawn(move || waiter.sync());
    // Loads go on meanwhile, and see what was told.
    for number in 1..=10 {
        assert_eq!(&client.load(oid(number)).unwrap().data[..], b"new");
    }
    thread::sleep(Duration::from_millis(20));
    assert!(!sync.is_finished());
    assert!(client.last_tid().unwrap() < tid);
    log.slow.store(false, Ordering::SeqCst);
    assert_eq!(sync.join().unwrap().unwrap(), tid);
    assert_eq!(&client.load(oid(1)).unwrap().data[..], b"newer");
}

/// The cluster disappears and comes back while threads load and commit: they wait, and go on.
#[test]
fn reconnection() {
    let fake = Fake::start();
    fake.fill(200, |number| vec![number as u8; 100]);
    within_deadline(move || {
        let client = open(&fake);
        let log = Arc::new(Log::default());
        client.set_listener(log.clone());
        client.connect().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let (client, stop) = (client.clone(), stop.clone());
                thread::spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let number = count % 100 + 1;
                        assert_eq!(client.load(oid(number)).unwrap().data[0], number as u8);
                        if thread == 0 {
                            // A transaction under way fails; the next one succeeds.
                            match client
                                .new_oid()
                                .and_then(|o| commit(&client, &[(o, Tid::ZERO, b"x")]))
                            {
                                Ok(_)
                                | Err(
                                    Error::MasterLost
                                    | Error::NotStored(_)
                                    | Error::NotCommitted(_),
                                ) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for _ in 0..3 {
            fake.faults(|faults| faults.not_ready = true);
            fake.disconnect();
            thread::sleep(Duration::from_millis(50));
            fake.commit(&[oid(150)], b"new");
            fake.faults(|faults| faults.not_ready = false);
            let last = fake.last_tid();
            wait_until("connected again", || client.last_tid().unwrap() >= last);
        }
        stop.store(true, Ordering::SeqCst);
        for thread in threads {
            assert!(thread.join().unwrap() > 0);
        }
        assert!(log.disconnected.load(Ordering::SeqCst) >= 3);
        assert!(log.cleared.load(Ordering::SeqCst) >= 3);
        assert_eq!(&client.load(oid(150)).unwrap().data[..], b"new");
    });
}

/// The answer to a commit is lost: the outcome is found out, and the callback is called.
#[test]
fn lost_answer_to_a_commit() {
    let fake = Fake::start();
    within_deadline(move || {
        let client = open(&fake);
        let o = client.new_oid().unwrap();
        fake.faults(|faults| faults.lose_finish = true);
        let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
        transaction.store(o, Tid::ZERO, "x".into()).unwrap();
        transaction.vote(&Metadata::default()).unwrap();
        let mut told = None;
        let tid = transaction.finish(|tid| told = Some(tid)).unwrap();
        assert_eq!(told, Some(tid));
        assert_eq!(client.load(o).unwrap().serial, tid);
    });
}

/// Nobody answers: calls wait, until the timeout if there is one, and `close` interrupts them.
#[test]
fn nobody_there() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = Options::new("test", vec![address]);
    let client = Client::open(options.clone()).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || client.load(oid(1)))
        })
        .collect();
    thread::sleep(Duration::from_millis(50));
    within_deadline({
        let client = client.clone();
        move || client.close()
    });
    for thread in threads {
        assert!(matches!(thread.join().unwrap(), Err(Error::Closed)));
    }
    assert!(matches!(client.load(oid(1)), Err(Error::Closed)));
    client.close();

    options.connect_timeout = Some(Duration::from_millis(200));
    let client = Client::open(options).unwrap();
    assert!(matches!(client.connect(), Err(Error::Unreachable)));
    assert!(Client::open(Options::new("test", vec![])).is_err());
}

/// Threads that wait can be told to give up, whether they read for all or not; what they asked
/// leaves nothing behind. A commit is not given up.
#[test]
fn interruption() {
    let fake = Fake::start();
    fake.fill(3, |_| b"x".to_vec());
    fake.faults(|faults| {
        faults.silent.extend([oid(1), oid(2)]);
    });
    within_deadline(move || {
        let client = open(&fake);
        client.connect().unwrap();
        let interrupted = Arc::new(AtomicBool::new(false));
        client.set_interrupt({
            let interrupted = interrupted.clone();
            Arc::new(move || match interrupted.load(Ordering::SeqCst) {
                true => Err(Error::Invalid("interrupted")),
                false => Ok(()),
            })
        });
        let threads: Vec<_> = [1, 2, 1]
            .map(|number| {
                let client = client.clone();
                thread::spawn(move || client.load(oid(number)))
            })
            .into();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(client.load(oid(3)).unwrap().data, "x");
        interrupted.store(true, Ordering::SeqCst);
        for thread in threads {
            assert!(matches!(thread.join().unwrap(), Err(Error::Invalid("interrupted"))));
        }
        fake.faults(|faults| faults.lose_finish = true);
        let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
        transaction.vote(&Metadata::default()).unwrap();
        // Reconnecting takes a second.
        fake.faults(|faults| faults.not_ready = true);
        let fake = Arc::new(fake);
        let later = thread::spawn({
            let fake = fake.clone();
            move || {
                thread::sleep(Duration::from_millis(600));
                fake.faults(|faults| faults.not_ready = false);
            }
        });
        transaction.finish(|_| {}).unwrap();
        later.join().unwrap();
    });
}

/// The list of masters is read, and kept up-to-date.
#[test]
fn dynamic_master_list() {
    let fake = Fake::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("masters");
    let mut options = Options::new("test", vec![fake.master]);
    options.dynamic_master_list = Some(path.clone());
    let client = Client::open(options.clone()).unwrap();
    client.connect().unwrap();
    let address = fake.master.to_string();
    let port = fake.master.port().to_string();
    wait_until("saved", || std::fs::read_to_string(&path).unwrap().contains(&port));
    drop(client);
    options.masters.clear();
    let client = Client::open(options.clone()).unwrap();
    client.connect().unwrap_or_else(|error| panic!("{address}: {error}"));
    drop(client);
    std::fs::write(&path, "no list").unwrap();
    assert!(matches!(Client::open(options), Err(Error::Foreign(_))));
}

/// The listener itself may close the client.
#[test]
fn closed_by_the_listener() {
    struct Closing(Client);
    impl Listener for Closing {
        fn invalidate(&self, _: Tid, _: &[Oid]) {
            self.0.close();
        }
        fn invalidate_cache(&self) {}
    }
    let fake = Fake::start();
    let client = open(&fake);
    client.set_listener(Arc::new(Closing(client.clone())));
    client.connect().unwrap();
    fake.commit(&[oid(1)], b"x");
    wait_until("closed", || matches!(client.sync(), Err(Error::Closed)));
}

/// Dropping the last clone closes the connections and ends the background thread.
#[test]
fn drop_closes() {
    let fake = Fake::start();
    let client = open(&fake);
    client.connect().unwrap();
    let log = Arc::new(Log::default());
    client.set_listener(log.clone());
    let transaction = client.begin(None, Box::new(NoResolution)).unwrap();
    drop(client);
    assert_eq!(Arc::strong_count(&log), 2, "a transaction keeps its client");
    drop(transaction);
    assert_eq!(Arc::strong_count(&log), 1);
}

/// Transactions, records, oids and the undo log are complete and in order, whatever is skipped.
#[test]
fn iteration() {
    let fake = Fake::start();
    let client = open(&fake);
    let mut expected = Vec::new();
    for number in 0..150_u64 {
        let count = if number == 70 { 300 } else { number % 4 + 1 };
        let stores: Vec<(Oid, Vec<u8>)> = (0..count)
            .map(|_| (client.new_oid().unwrap(), format!("{number}").into_bytes()))
            .collect();
        let list: Vec<_> = stores.iter().map(|(o, d)| (*o, Tid::ZERO, &d[..])).collect();
        let tid = commit(&client, &list).unwrap();
        expected.push((tid, stores));
    }
    let found: Vec<_> = client
        .iterate(None, None)
        .map(|transaction| {
            let transaction = transaction.unwrap();
            let tid = transaction.info.tid;
            let records = transaction.records.into_iter().map(|record| {
                assert_eq!((record.tid, record.data_txn), (tid, None));
                (record.oid, record.data.unwrap().to_vec())
            });
            (tid, records.collect::<Vec<_>>())
        })
        .collect();
    assert!(found == expected);

    // A range, with records that are not wanted.
    let mut transactions = client.iterate(Some(expected[10].0), Some(expected[99].0));
    let mut index = 10;
    while let Some(info) = transactions.next_transaction().unwrap() {
        assert_eq!(info.tid, expected[index].0);
        for (o, data) in expected[index].1.iter().take(index % 3) {
            let record = transactions.next_record().unwrap().unwrap();
            assert_eq!((record.oid, &record.data.unwrap()[..]), (*o, &data[..]));
        }
        let records: Vec<_> = client.records(&info).map(|record| record.unwrap().oid).collect();
        assert_eq!(records, info.oids);
        index += 1;
    }
    assert_eq!(index, 100);
    assert_eq!(transactions.next_record().unwrap(), None);

    let newest: Vec<Tid> = client.undo_log().map(|info| info.unwrap().tid).collect();
    assert!(newest.iter().eq(expected.iter().rev().map(|(tid, _)| tid)));
    let oids: Vec<Oid> = client.oids(None, Oid::ZERO, None).map(Result::unwrap).collect();
    let mut all: Vec<Oid> = expected.iter().flat_map(|(_, s)| s.iter().map(|(o, _)| *o)).collect();
    all.sort_unstable();
    assert_eq!(oids, all);
    let some: Vec<Oid> = client.oids(None, all[100], Some(all[200])).map(Result::unwrap).collect();
    assert_eq!(some, all[100..=200]);
    let current: Vec<Oid> = client.current_records(all[50]).map(|r| r.unwrap().oid).collect();
    assert_eq!(current, all[50..]);
    assert_eq!(client.iterate(Some(Tid::MAX), None).count(), 0);
}

/// A transaction far bigger than what may wait for the storage.
/// A transaction is undone as a whole or not at all: some of its revisions may be packed away.
#[test]
fn undo() {
    let fake = Fake::start();
    let client = open(&fake);
    let first = commit(&client, &[(oid(1), Tid::ZERO, b"a"), (oid(2), Tid::ZERO, b"b")]).unwrap();
    let second = commit(&client, &[(oid(1), first, b"c"), (oid(2), first, b"d")]).unwrap();
    fake.faults(|faults| faults.packed = [oid(2)].into());
    let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
    let error = transaction.undo(second).unwrap_err();
    assert!(matches!(error, Error::Undo { oid: Some(found), .. } if found == oid(2)), "{error:?}");
    transaction.abort();
    fake.faults(|faults| faults.packed.clear());
    let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
    assert_eq!(transaction.undo(second).unwrap(), [oid(1), oid(2)]);
    transaction.vote(&Metadata::default()).unwrap();
    let third = transaction.finish(|_| {}).unwrap();
    let record = client.load(oid(2)).unwrap();
    assert_eq!((&record.data[..], record.serial), (&b"b"[..], third));
    client.close();
}

#[test]
fn big_transaction() {
    let fake = Fake::start();
    within_deadline(move || {
        let mut options = Options::new("test", vec![fake.master]);
        options.cache_bytes = 1 << 20;
        options.compression = neo_client::Compression::None;
        let client = Client::open(options).unwrap();
        let mut transaction = client.begin(None, Box::new(NoResolution)).unwrap();
        let data = Bytes::from(vec![7; 100_000]);
        let oids: Vec<Oid> = (0..300).map(|_| client.new_oid().unwrap()).collect();
        for o in &oids {
            transaction.store(*o, Tid::ZERO, data.clone()).unwrap();
        }
        transaction.vote(&Metadata::default()).unwrap();
        let tid = transaction.finish(|_| {}).unwrap();
        for o in &oids {
            let record = client.load(*o).unwrap();
            assert_eq!((record.serial, record.data.len()), (tid, 100_000));
        }
    });
}

/// After a fork, the child gets an error, and the parent goes on.
#[test]
#[allow(unsafe_code)]
fn fork() {
    let fake = Fake::start();
    fake.fill(2, |_| b"x".to_vec());
    let client = open(&fake);
    client.load(oid(1)).unwrap();
    // SAFETY: the child only makes calls that fail before they take a lock, and exits without
    // running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let loaded = matches!(client.load(oid(1)), Err(Error::Forked));
        let missed = client.try_cached(oid(1), None).is_none();
        let connected = matches!(client.connect(), Err(Error::Forked));
        client.close();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if loaded && missed && connected { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(&client.load(oid(2)).unwrap().data[..], b"x");
}
