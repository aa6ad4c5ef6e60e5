// SPDX-License-Identifier: GPL-2.0-or-later
//! What an error of the server means.

use std::fmt;

use crate::database::Error;

/// What remains after a statement failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The connection is lost, and with it the transaction that was open.
    Lost,
    /// The server ended the transaction to let others go on; the connection is fine.
    RolledBack,
    /// The statement was not applied; the transaction is still open.
    NotApplied,
    /// Trying again would not help.
    Final,
}

/// Codes of the server. `include/mysqld_error.h`.
mod code {
    pub const SERVER_SHUTDOWN: u16 = 1053;
    pub const DISK_FULL: u16 = 1021;
    pub const ERROR_ON_WRITE: u16 = 1026;
    pub const ERROR_ON_READ: u16 = 1024;
    pub const TABLE_FULL: u16 = 1114;
    pub const NET_READ_ERROR: u16 = 1158;
    pub const NET_WRITE_INTERRUPTED: u16 = 1161;
    pub const LOCK_WAIT_TIMEOUT: u16 = 1205;
    pub const DEADLOCK: u16 = 1213;
    pub const QUERY_INTERRUPTED: u16 = 1317;
    pub const CONNECTION_KILLED: u16 = 1927;
    pub const STATEMENT_TIMEOUT: u16 = 1969;
    pub const DUPLICATE: u16 = 1062;
    pub const TOO_MANY_CONNECTIONS: u16 = 1040;
}

fn code(error: &mysql::Error) -> Option<u16> {
    match error {
        mysql::Error::MySqlError(error) => Some(error.code),
        _ => None,
    }
}

/// What remains after this error. `timeout_rolls_back`: a lock wait timeout ends the transaction.
pub fn classify(error: &mysql::Error, timeout_rolls_back: bool) -> Class {
    let Some(code) = code(error) else {
        return match error {
            mysql::Error::IoError(_)
            | mysql::Error::CodecError(_)
            | mysql::Error::DriverError(_) => Class::Lost,
            _ => Class::Final,
        };
    };
    match code {
        code::SERVER_SHUTDOWN | code::CONNECTION_KILLED | code::TOO_MANY_CONNECTIONS => Class::Lost,
        code::NET_READ_ERROR..=code::NET_WRITE_INTERRUPTED => Class::Lost,
        code::DEADLOCK => Class::RolledBack,
        code::LOCK_WAIT_TIMEOUT if timeout_rolls_back => Class::RolledBack,
        code::LOCK_WAIT_TIMEOUT | code::QUERY_INTERRUPTED | code::STATEMENT_TIMEOUT => {
            Class::NotApplied
        }
        _ => Class::Final,
    }
}

/// Whether a unique key exists already.
pub fn is_duplicate(error: &mysql::Error) -> bool {
    code(error) == Some(code::DUPLICATE)
}

impl From<mysql::Error> for Error {
    fn from(error: mysql::Error) -> Self {
        let is_full = match code(&error) {
            Some(code::DISK_FULL | code::TABLE_FULL) => true,
            // The operating system tells the server why: ENOSPC.
            Some(code::ERROR_ON_WRITE | code::ERROR_ON_READ) => {
                error.to_string().contains("28 \"No space left on device\"")
            }
            _ => false,
        };
        match is_full {
            true => Self::Full(Box::new(Cause(error))),
            false => Self::Backend("MySQL".into(), Box::new(Cause(error))),
        }
    }
}

/// An error of the server, printed without the noise of the library.
#[derive(Debug)]
pub struct Cause(pub mysql::Error);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            mysql::Error::MySqlError(error) => write!(f, "error {}: {}", error.code, error.message),
            mysql::Error::IoError(error) => write!(f, "connection lost: {error}"),
            error => error.fmt(f),
        }
    }
}

impl std::error::Error for Cause {}

/// A failure in words, with what was attempted.
pub fn failure(
    what: impl Into<String>,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Backend(what.into(), cause.into())
}
