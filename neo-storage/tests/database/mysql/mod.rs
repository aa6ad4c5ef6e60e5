// SPDX-License-Identifier: GPL-2.0-or-later
//! What only concerns MySQL and MariaDB.
//!
//! - `opening`: what is opened, what is refused without a trace;
//! - `upgrade`: older versions, also interrupted;
//! - `faults`: the server or a connection fails.

mod faults;
mod opening;
mod upgrade;

use mysql::prelude::Queryable;
use mysql::{Row, Value};
use neo_storage::database::executor::Executor;
use neo_storage::database::{Done, Error, Job, Read, Write};

use crate::harness::*;
use crate::server::Scratch;

/// Runs a test on a new database, unless there is no server.
macro_rules! scratch {
    () => {
        match crate::server::Scratch::new() {
            Some(scratch) => scratch,
            None => return,
        }
    };
}
use scratch;

/// A database that is open, with jobs that are executed when told to.
struct Db {
    executor: Executor<u32>,
}

impl Db {
    fn open(scratch: &Scratch) -> Self {
        Self { executor: Executor::new(Box::new(scratch.open(CLUSTER, false).unwrap())).unwrap() }
    }

    /// The same, with a partition table.
    fn with_table(scratch: &Scratch) -> Self {
        use neo_common::protocol::enums::CellState::UpToDate;
        let mut db = Self::open(scratch);
        db.write(Write::SetNid(nid(1)));
        let cells = (0..PARTITIONS).map(|partition| (partition, 1, UpToDate));
        db.write(change(neo_storage::database::ChangeScope::Full, cells));
        db
    }

    fn try_write(&mut self, write: Write) -> Result<Done, Error> {
        self.executor.submit(0, Job::Write(write));
        Ok(self.executor.run()?.pop().unwrap().1)
    }

    fn write(&mut self, write: Write) -> Done {
        self.try_write(write).unwrap()
    }

    /// Executes without committing.
    fn execute(&mut self, write: Write) {
        self.executor.submit(0, Job::Write(write));
        self.executor.write(1).unwrap();
    }

    fn try_read(&mut self, read: Read) -> Result<Done, Error> {
        self.executor.submit(0, Job::Read(read));
        Ok(self.executor.read()?.unwrap().1)
    }

    fn read(&mut self, read: Read) -> Done {
        self.try_read(read).unwrap()
    }

    /// Commits a transaction of one object.
    fn transaction(&mut self, ttid: u64, tid: u64, object: u64, data: &str) {
        use neo_common::types::{Tid, Ttid};
        let record = record(ttid, vec![oid(object)]);
        let voted = self.write(vote(ttid, vec![store(object, data)], Some(record)));
        assert_eq!(voted, Done::Voted(Ok(())));
        let (ttid, tid) = (Ttid::new(ttid), Tid::new(tid));
        self.write(Write::Lock { ttid, tid, approve_pack: false });
        self.write(Write::Unlock { ttid, tid, metadata: true });
    }

    /// Tids of the revisions of an object, newest first.
    fn history(&mut self, number: u64) -> Vec<u64> {
        let partition = oid(number).partition(PARTITIONS);
        let read = Read::History { partition, oid: oid(number), offset: 0, length: 100 };
        match self.read(read) {
            Done::History(history) => history.into_iter().map(|(tid, _)| tid.get()).collect(),
            done => panic!("{done:?}"),
        }
    }
}

/// Everything in a database, tables and rows, as text.
fn snapshot(scratch: &Scratch) -> Vec<String> {
    let mut conn = scratch.connect();
    let tables: Vec<String> = conn.query("SHOW TABLES").unwrap();
    let mut all = Vec::new();
    for table in tables {
        let (_, sql): (String, String) =
            conn.query_first(format!("SHOW CREATE TABLE {table}")).unwrap().unwrap();
        all.push(sql);
        let mut rows: Vec<String> = conn
            .query::<Row, _>(format!("SELECT * FROM {table}"))
            .unwrap()
            .into_iter()
            .map(|row| row.unwrap().iter().map(|value| value.as_sql(true)).collect())
            .collect();
        rows.sort();
        all.extend(rows);
    }
    all
}

/// A number that a query gives.
fn number(scratch: &Scratch, sql: &str) -> i64 {
    match scratch.connect().query_first::<Value, _>(sql).unwrap().unwrap() {
        Value::NULL => panic!("{sql} is NULL"),
        value => mysql::from_value(value),
    }
}
