// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection with its transaction, statements that wait to be sent, and what to do when it fails.
//!
//! # Statements that are sent together
//!
//! What a job writes is rarely read by the same batch of jobs. [`Session::write`] only appends a
//! statement to a text, that is sent at once before any read, before the commit, or when it is long:
//! a group commit is two exchanges with the server (statements, then `COMMIT`), whatever the number of
//! transactions.
//!
//! # Failures
//!
//! | what | nothing was written since the last commit | else |
//! |---|---|---|
//! | connection lost, server restarted | connect again, do it again; at most twice | the process ends |
//! | deadlock, that the server ended by a rollback | do it again | the process ends |
//! | lock wait timeout, interrupted statement | do this statement again | the same |
//! | any failure of a `COMMIT` | | the process ends |
//!
//! So nothing can be applied twice: what is done again was rolled back by the server, or did not
//! happen. A process that ends is restarted by its supervisor, and the cluster verifies what was
//! voted or locked.
//!
//! "Nothing was written" includes what is being sent: if the connection is lost while the statements
//! of a transaction are sent for the first time, none of them is committed, and all are sent again.

use mysql::prelude::Queryable;
use mysql::{Conn, Params, Row};

use super::error::{Cause, Class, classify, failure};
use super::server::{Role, Server};
use crate::database::Error;

/// Bytes of statements that are sent without waiting for more.
const BATCH_BYTES: usize = 1 << 20;

/// What starts a transaction.
const BEGIN: &str = "START TRANSACTION";

/// Bytes of a packet that are not text.
const PACKET_MARGIN: usize = 64;

/// Times that something is done again after the connection was lost. Upstream: `auto_reconnect`.
const LOST_MAX: u32 = 2;

/// Times that something is done again because others use the same rows.
const CONTENDED_MAX: u32 = 10;

/// See the module.
pub struct Session {
    server: Server,
    role: Role,
    /// `None` once lost.
    conn: Option<Conn>,
    state: State,
    /// Statements to send, separated by semicolons.
    batch: Batch,
    /// How often a snapshot was replaced by a later one because the connection was lost.
    snapshots_lost: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Each statement is on its own.
    Idle,
    /// All reads see the same state; the server knows it or not yet.
    Snapshot { is_open: bool },
    /// Something may be written.
    Transaction(Progress),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Progress {
    /// The server does not know it.
    Planned,
    /// It is open, and nothing was written.
    Open,
    /// Something was written, that would be lost with the connection.
    Modified,
}

#[derive(Default)]
struct Batch {
    text: String,
    /// Where each statement ends in the text.
    ends: Vec<usize>,
}

/// How often something failed.
#[derive(Default)]
struct Failures {
    lost: u32,
    contended: u32,
}

/// How to go on after a failure.
enum Recovery {
    /// From the beginning: nothing of it remains.
    Restart,
    /// The statement that failed was not applied; those before it were.
    Resume,
}

impl Session {
    /// Opens the first connection to a server.
    pub fn open(mut server: Server, role: Role) -> Result<Self, Error> {
        let conn = server.connect_first(role)?;
        Ok(Self::new(server, role, conn))
    }

    /// Another connection to the same server, for a read lane.
    pub fn reader(&self) -> Result<Self, Error> {
        let server = self.server.clone();
        let conn = server.connect(Role::Reader)?;
        Ok(Self::new(server, Role::Reader, conn))
    }

    fn new(server: Server, role: Role, conn: Conn) -> Self {
        let (state, batch) = (State::Idle, Batch::default());
        Self { server, role, conn: Some(conn), state, batch, snapshots_lost: 0 }
    }

    /// What the server was found to be.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Rows of a query. They are given one by one to `each`, which may be called again from the
    /// first row: `start` makes what it appends to.
    pub fn fold<T>(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
        start: impl Fn() -> T,
        mut each: impl FnMut(&mut T, Row) -> Result<(), Error>,
    ) -> Result<T, Error> {
        let params = params.into();
        self.run(|conn| {
            let mut result = start();
            let mut failure = None;
            // A text that is made for one use is not worth being prepared.
            if matches!(params, Params::Empty) {
                for row in conn.query_iter(sql)? {
                    let row = row?;
                    if failure.is_none() {
                        failure = each(&mut result, row).err();
                    }
                }
            } else {
                for row in conn.exec_iter(sql, params.clone())? {
                    let row = row?;
                    if failure.is_none() {
                        failure = each(&mut result, row).err();
                    }
                }
            }
            Ok(failure.map_or(Ok(result), Err))
        })?
    }

    /// Rows of a query, each turned into a value.
    pub fn rows<T>(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
        mut row: impl FnMut(Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.fold(sql, params, Vec::new, |rows, found| {
            rows.push(row(found)?);
            Ok(())
        })
    }

    /// The only row of a query, if any.
    pub fn row(&mut self, sql: &str, params: impl Into<Params>) -> Result<Option<Row>, Error> {
        self.fold(
            sql,
            params,
            || None,
            |first, row| {
                first.get_or_insert(row);
                Ok(())
            },
        )
    }

    /// Makes all reads see the same state until [`Self::close_snapshot`].
    pub fn open_snapshot(&mut self) {
        debug_assert_eq!(self.state, State::Idle);
        self.state = State::Snapshot { is_open: false };
    }

    /// Ends a snapshot.
    pub fn close_snapshot(&mut self) -> Result<(), Error> {
        let State::Snapshot { is_open } = self.state else { return Ok(()) };
        self.state = State::Idle;
        if is_open
            && let Some(conn) = &mut self.conn
            && let Err(error) = conn.query_drop("COMMIT")
        {
            // All was read already.
            log::debug!("end of a snapshot: {}", Cause(error));
            self.conn = None;
        }
        Ok(())
    }

    /// Executes something that reads several times, so that it sees one state.
    pub fn in_snapshot<T>(
        &mut self,
        mut action: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let is_own = self.state == State::Idle;
        if is_own {
            self.open_snapshot();
        }
        let result = loop {
            let lost = self.snapshots_lost;
            let result = action(self);
            // Otherwise, what was read belongs to two states.
            if self.snapshots_lost == lost {
                break result;
            }
        };
        if is_own {
            self.close_snapshot()?;
        }
        result
    }

    /// Starts a transaction, or goes on with the one that is open.
    pub fn begin(&mut self) {
        debug_assert!(!matches!(self.state, State::Snapshot { .. }));
        if self.state == State::Idle {
            self.state = State::Transaction(Progress::Planned);
        }
    }

    /// Commits what was written since [`Self::begin`].
    pub fn commit(&mut self) -> Result<(), Error> {
        self.send()?;
        let State::Transaction(progress) = self.state else { return Ok(()) };
        self.state = State::Idle;
        if progress == Progress::Planned {
            return Ok(());
        }
        let conn = self.conn.as_mut().expect("a transaction is open");
        match conn.query_drop("COMMIT") {
            Ok(()) => Ok(()),
            Err(error) if progress == Progress::Open => {
                // Nothing was written.
                log::debug!("end of a transaction: {}", Cause(error));
                self.conn = None;
                Ok(())
            }
            Err(error) => Err(failure("it is not known whether a commit succeeded", Cause(error))),
        }
    }

    /// Appends a statement that writes, and whose result does not matter.
    pub fn write(&mut self, statement: &str) -> Result<(), Error> {
        debug_assert!(
            matches!(self.state, State::Transaction(_)),
            "no transaction for {statement}"
        );
        let bytes_max = self.server.facts().packet_bytes_max - PACKET_MARGIN - BEGIN.len();
        if self.batch.text.len() + statement.len() > bytes_max {
            self.send()?;
        }
        if self.batch.ends.is_empty() {
            // The first statement, that is only sent if it is still to be done.
            self.batch.text.push_str(BEGIN);
            self.batch.ends.push(BEGIN.len());
        }
        self.batch.text.push(';');
        self.batch.text.push_str(statement);
        self.batch.ends.push(self.batch.text.len());
        if self.batch.text.len() >= BATCH_BYTES { self.send() } else { Ok(()) }
    }

    /// Bytes that a single statement given to [`Self::write`] should not exceed.
    pub const fn statement_bytes() -> usize {
        BATCH_BYTES
    }

    /// Executes a prepared statement that writes. Returns the id that was given to its first row.
    pub fn execute(&mut self, sql: &str, params: impl Into<Params>) -> Result<u64, Error> {
        self.execute_or(sql, params, |_| None)
    }

    /// The same, where an error may be a result.
    pub fn execute_or(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
        expected: impl Fn(&mysql::Error) -> Option<u64>,
    ) -> Result<u64, Error> {
        debug_assert!(matches!(self.state, State::Transaction(_)), "no transaction for {sql}");
        self.send()?;
        let params = params.into();
        let id = self.attempt(true, |conn| match conn.exec_drop(sql, params.clone()) {
            Ok(()) => Ok(conn.last_insert_id()),
            Err(error) => expected(&error).ok_or(error),
        })?;
        self.state = State::Transaction(Progress::Modified);
        Ok(id)
    }

    /// Executes a statement that ends any transaction by itself, as those that define tables do.
    pub fn define(&mut self, sql: &str) -> Result<(), Error> {
        self.commit()?;
        self.run(|conn| conn.query_drop(sql))
    }

    /// Reads something, once what waits is sent.
    fn run<T>(&mut self, action: impl FnMut(&mut Conn) -> mysql::Result<T>) -> Result<T, Error> {
        self.send()?;
        self.attempt(false, action)
    }

    /// Does something, again if needed.
    fn attempt<T>(
        &mut self,
        writes: bool,
        mut action: impl FnMut(&mut Conn) -> mysql::Result<T>,
    ) -> Result<T, Error> {
        let mut failures = Failures::default();
        loop {
            match self.ready(writes).and_then(|conn| action(conn).map_err(Failure::Server)) {
                Ok(result) => return Ok(result),
                Err(failure) => self.recover(failure, &mut failures).map(drop)?,
            }
        }
    }

    /// Sends what waits.
    fn send(&mut self) -> Result<(), Error> {
        if self.batch.ends.is_empty() {
            return Ok(());
        }
        let Batch { text, ends } = std::mem::take(&mut self.batch);
        let mut failures = Failures::default();
        let mut done = match self.state {
            State::Transaction(Progress::Planned) => 0,
            _ => 1,
        };
        while done < ends.len() {
            // Separators are not part of the next statement.
            let start = if done == 0 { 0 } else { ends[done - 1] + 1 };
            let sent = self.ready(false).and_then(|conn| {
                send_statements(conn, &text[start..], &mut done).map_err(Failure::Server)
            });
            if sent.is_ok() && done != ends.len() {
                let what = format!("{done} results for {} statements", ends.len());
                return Err(failure("answer of the server", what));
            }
            if done != 0 && self.state == State::Transaction(Progress::Planned) {
                self.state = State::Transaction(Progress::Open);
            }
            if let Err(failure) = sent
                && let Recovery::Restart = self.recover(failure, &mut failures)?
            {
                done = 0;
            }
        }
        self.state = State::Transaction(Progress::Modified);
        // Keep the memory of a text of usual size.
        if text.capacity() <= 2 * BATCH_BYTES {
            self.batch = Batch { text, ends };
            self.batch.text.clear();
            self.batch.ends.clear();
        }
        Ok(())
    }

    /// A connection on which a statement can be executed.
    fn ready(&mut self, writes: bool) -> Result<&mut Conn, Failure> {
        if self.conn.is_none() {
            let conn = self.server.connect(self.role).map_err(Failure::Final)?;
            self.conn = Some(conn);
        }
        let conn = self.conn.as_mut().expect("connected above");
        let begin = match self.state {
            State::Snapshot { is_open: false } => Some("START TRANSACTION READ ONLY"),
            State::Transaction(Progress::Planned) if writes => Some(BEGIN),
            _ => None,
        };
        if let Some(sql) = begin {
            conn.query_drop(sql).map_err(Failure::Server)?;
            self.state = match self.state {
                State::Snapshot { .. } => State::Snapshot { is_open: true },
                _ => State::Transaction(Progress::Open),
            };
        }
        Ok(conn)
    }

    /// Decides whether what failed may be done again. See the table of the module.
    fn recover(&mut self, cause: Failure, failures: &mut Failures) -> Result<Recovery, Error> {
        let error = match cause {
            Failure::Final(error) => return Err(error),
            Failure::Server(error) => error,
        };
        let class = classify(&error, self.server.facts().timeout_rolls_back);
        let is_modified = self.state == State::Transaction(Progress::Modified);
        match class {
            Class::Final => return Err(error.into()),
            Class::Lost => {
                self.conn = None;
                failures.lost += 1;
                if is_modified {
                    return Err(failure(
                        "the connection was lost during a transaction",
                        Cause(error),
                    ));
                }
                if failures.lost > LOST_MAX {
                    return Err(failure("the connection is lost again and again", Cause(error)));
                }
                log::warn!(
                    "the connection to the database is lost, connecting again: {}",
                    Cause(error)
                );
            }
            Class::RolledBack | Class::NotApplied => {
                failures.contended += 1;
                if is_modified && class == Class::RolledBack {
                    return Err(failure("the server rolled a transaction back", Cause(error)));
                }
                if failures.contended > CONTENDED_MAX {
                    return Err(failure("others keep the database busy", Cause(error)));
                }
                log::warn!("others use the database, trying again: {}", Cause(error));
                if class == Class::NotApplied {
                    return Ok(Recovery::Resume);
                }
            }
        }
        self.state = match self.state {
            State::Idle => State::Idle,
            State::Snapshot { is_open } => {
                self.snapshots_lost += u64::from(is_open);
                State::Snapshot { is_open: false }
            }
            State::Transaction(_) => State::Transaction(Progress::Planned),
        };
        Ok(Recovery::Restart)
    }
}

/// Why something could not be done.
enum Failure {
    Server(mysql::Error),
    /// No connection, whatever was tried.
    Final(Error),
}

/// Sends statements and counts those that are done.
fn send_statements(conn: &mut Conn, text: &str, done: &mut usize) -> mysql::Result<()> {
    let mut result = conn.query_iter(text)?;
    while let Some(set) = result.iter() {
        for row in set {
            row?;
        }
        *done += 1;
    }
    Ok(())
}
