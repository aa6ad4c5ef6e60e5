// SPDX-License-Identifier: GPL-2.0-or-later
//! Handler objects: what a node does with the packets of one connection, in one situation.
//!
//! They are zero-sized statics, one per upstream handler class. Inheritance becomes fall-through:
//! the last `match` arm calls the function of the base handler; the root gives
//! [`Fault::Unexpected`].

use std::fmt;

use super::App;
use super::io::{Io, Lost};
use crate::protocol::{ErrorCode, MsgId, Packet};
use crate::types::ConnId;

/// What the peer did wrong, or is told instead of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The packet has no place here: PROTOCOL_ERROR, then the connection is closed.
    Unexpected,
    /// PROTOCOL_ERROR with this message, then the connection is closed.
    Protocol(String),
    /// NOT_READY with this message, then the connection is closed.
    NotReady(String),
    /// This error is answered, and the connection goes on.
    Error(ErrorCode, String),
    /// The connection is closed without a word.
    Close,
}

/// Message of [`Fault::unfinished`].
pub const UNFINISHED: &str = "transaction is not finished";

impl Fault {
    /// PROTOCOL_ERROR, then close.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::Protocol(message.into())
    }
    /// NOT_READY "Retry Later", then close.
    pub fn retry_later() -> Self {
        Self::NotReady("Retry Later".into())
    }
    /// DENIED is answered, and the connection goes on.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::Error(ErrorCode::Denied, message.into())
    }
    /// NON_READABLE_CELL is answered, and the connection goes on.
    pub fn non_readable_cell() -> Self {
        Self::Error(ErrorCode::NonReadableCell, String::new())
    }
    /// The same for the outcome of a transaction that is not locked yet: who did not begin it has its answer.
    pub fn unfinished() -> Self {
        Self::Error(ErrorCode::NonReadableCell, UNFINISHED.into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unexpected => f.write_str("unexpected packet"),
            Self::Protocol(message) => write!(f, "protocol error: {message}"),
            Self::NotReady(message) => write!(f, "not ready: {message}"),
            Self::Error(code, message) => write!(f, "{code}: {message}"),
            Self::Close => f.write_str("rejected"),
        }
    }
}

/// Result of handling a packet.
pub type Handled = Result<(), Fault>;

/// What a node does with the packets of one connection.
pub trait Handler<A: App>: Sync {
    /// For logs and error messages.
    fn name(&self) -> &'static str;
    /// A request or a notification. Requests are answered with [`Io::answer`] and `id`, now or
    /// later.
    fn packet(
        &self,
        app: &mut A,
        io: &mut Io<'_, A>,
        conn: ConnId,
        id: MsgId,
        p: Packet,
    ) -> Handled;
    /// The answer to a request of ours. It has the expected type.
    fn answer(&self, _: &mut A, _: &mut Io<'_, A>, _: ConnId, _: A::Ticket, _: Packet) -> Handled {
        Err(Fault::Unexpected)
    }
    /// An `Error`, usually in reply to a request of ours (then with its ticket).
    fn error(
        &self,
        _app: &mut A,
        _io: &mut Io<'_, A>,
        _conn: ConnId,
        _ticket: Option<A::Ticket>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        base_error(code, &message)
    }
    /// A connection that we opened is up.
    fn completed(&self, _app: &mut A, _io: &mut Io<'_, A>, _conn: ConnId) {}
    /// The peer has read what it was sent: it is not [`Io::is_full`] any more.
    fn drained(&self, _app: &mut A, _io: &mut Io<'_, A>, _conn: ConnId) {}
    /// The connection is gone; `tickets` are the requests that will never be answered. Told exactly
    /// once for each connection. The peer's address and nid can still be asked.
    fn lost(
        &self,
        _app: &mut A,
        _io: &mut Io<'_, A>,
        _conn: ConnId,
        _why: Lost,
        _tickets: Vec<A::Ticket>,
    ) {
    }
}

/// Errors that any handler accepts. Upstream: lib/handler.py, `EventHandler.error`.
///
/// NOT_READY is accepted too (upstream answers it with another error by mistake): the sender
/// closes.
pub fn base_error(code: ErrorCode, message: &str) -> Handled {
    match code {
        ErrorCode::ProtocolError => log::error!("protocol error: {message}"),
        ErrorCode::NotReady => log::info!("not ready: {message}"),
        ErrorCode::Ack => log::debug!("ack: {message}"),
        _ => return Err(Fault::Unexpected),
    }
    Ok(())
}
