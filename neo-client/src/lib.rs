// SPDX-License-Identifier: GPL-2.0-or-later
//! The NEO client node: a ZODB application's access to a cluster, without Python.
//!
//! [`Client`] is blocking and thread-safe. Any thread may load, and begin transactions; a
//! [`Transaction`] belongs to one thread at a time.
//!
//! ```no_run
//! use neo_client::{Client, Metadata, NoResolution, Options};
//! use neo_common::types::Tid;
//!
//! # fn main() -> neo_client::Result<()> {
//! let client = Client::open(Options::new("demo", vec!["127.0.0.1:10000".parse().unwrap()]))?;
//! let oid = client.new_oid()?;
//! let mut transaction = client.begin(None, Box::new(NoResolution))?;
//! transaction.store(oid, Tid::ZERO, "data".into())?;
//! transaction.vote(&Metadata::default())?;
//! let tid = transaction.finish(|_tid| {})?;
//! assert_eq!(client.load(oid)?.serial, tid);
//! client.close();
//! # Ok(())
//! # }
//! ```
//!
//! # How it is built
//!
//! ```text
//!   threads of the application
//!      | Client, Transaction, iterators                       api      blocking; composes calls
//!      v
//!   leader and followers, background thread                   driver   sockets, locks (feature net)
//!      | Call                      ^ Reply
//!      v                           |
//!   ClientCore in an Engine: handlers, transactions, cache    core     pure
//! ```
//!
//! The calling thread writes its request to the socket itself. If nobody reads, it becomes the
//! *leader*: it waits on the sockets and reads for all until its own reply is there. Verification,
//! decompression and compression happen in the calling thread, outside of all locks.
//!
//! # What callers can rely on
//!
//! - A load returns committed data only. `load_before(oid, tid)` does not depend on when it is
//!   called, as long as `tid` is at most the last tid plus one.
//! - [`Client::last_tid`] moves only after the [`Listener`] was told what the transaction
//!   invalidates; for own transactions, after the callback of [`Transaction::finish`].
//! - Nothing is guessed: if the answer to the commit is lost, the outcome is asked until it is
//!   known.
//! - When the cluster is away, calls wait until it is back, for ever unless
//!   [`Options::connect_timeout`] is set. [`Client::close`] interrupts everything.
//! - A client does not survive a fork: in the child, calls fail with [`Error::Forked`].

#[cfg(feature = "net")]
pub mod api;

pub mod cache;
pub mod call;
pub mod core;

#[cfg(feature = "net")]
mod driver;
mod error;
pub mod handlers;

pub mod options;
pub mod transactions;

#[cfg(feature = "net")]
pub use api::{
    Client, CurrentRecord, CurrentRecords, DataRecord, Listener, Metadata, NoResolution, Oids,
    Records, Resolver, Transaction, TransactionInfo, TransactionRecord, Transactions, UndoLog,
};
pub use call::Record;
pub use error::{Conflict, Error, Foreign, Result};
pub use neo_common::compression::{self, Compression};
/// Reader and writer of `Data.fs`.
pub use neo_filestorage as filestorage;
pub use options::Options;
