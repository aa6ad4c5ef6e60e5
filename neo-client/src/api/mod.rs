// SPDX-License-Identifier: GPL-2.0-or-later
//! The blocking interface: what a ZODB application calls, composed of the steps of the core.
//!
//! - [`Client`]: opening, loading, ids, history, pack;
//! - [`transaction`]: [`Transaction`] and who resolves its conflicts;
//! - `undo`: undoing a transaction inside another one;
//! - [`iterator`]: transactions, records, oids, undo log;
//! - `pipeline`: many requests at once from one thread.

pub mod client;
pub mod iterator;
mod pipeline;
pub mod transaction;
mod undo;

pub use client::{Client, Listener};
pub use iterator::{
    CurrentRecord, CurrentRecords, DataRecord, Oids, Records, TransactionInfo, TransactionRecord,
    Transactions, UndoLog,
};
pub use transaction::{Metadata, NoResolution, Resolver, Transaction};
