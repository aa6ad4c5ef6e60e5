// SPDX-License-Identifier: GPL-2.0-or-later
//! Bounds of a storage node, with unit and source. Those of all nodes are in `neo_common::limits`.

use std::time::Duration;

use neo_common::limits::LIST_LEN_MAX;

/// Objects whose last revision is remembered. About 50 bytes each.
pub const LAST_TIDS_LEN_MAX: usize = 1 << 17;

/// Objects of a transaction on this node, exclusive. Upstream: storage/transactions.py, `vote`:
/// "Too many modified OIDs", because of the `MEDIUMBLOB` of MySQL.
pub const TRANSACTION_OIDS_MAX: usize = LIST_LEN_MAX;

/// Transactions of one client that are not finished. A client has one per thread.
pub const CLIENT_TRANSACTIONS_MAX: usize = 1 << 14;

/// Aborted transactions that are remembered, so that what arrives late is refused: about 1 MB.
pub const ENDED_TTIDS_MAX: usize = 1 << 14;

/// Bytes of object data kept in memory for transactions that are not voted, above which the biggest
/// one is written ahead of its vote.
pub const HELD_BYTES_HIGH: usize = 64 << 20;

/// Bytes of object data of a single transaction above which it is written ahead of its vote.
pub const TRANSACTION_BYTES_HIGH: usize = 16 << 20;

/// Transactions that hold less than this are not worth being written ahead.
pub const SPILL_BYTES_MIN: usize = 256 << 10;

/// Bytes of requests that wait for a lock. They can not be spilled, and reading nothing from
/// clients would not help: the lock may only be released by what such a client sends next. So
/// connections that go beyond are closed.
pub const WAITING_BYTES_MAX: usize = 512 << 20;

/// What a request that waits costs, beside its data, in bytes.
pub const WAITING_REQUEST_BYTES: usize = 256;

/// Jobs that are not done, above which nothing is read from clients and other storages.
pub const JOBS_HIGH: usize = 4096;

/// Jobs that are not done, below which reading goes on.
pub const JOBS_LOW: usize = JOBS_HIGH / 2;

/// Reads that wait for an unlock, on all connections.
pub const DELAYED_READS_MAX: usize = 1 << 18;

/// Conflict checks in one job.
pub const CHECKS_LEN_MAX: usize = 1024;

/// Conflict checks that are on their way to the database: the next ones go together.
pub const CHECK_JOBS_MAX: usize = 2;

/// Bytes of answers to one client that are being read from the database, about.
pub const READ_BYTES_HIGH: usize = 32 << 20;

/// Reads of one client that are always on their way together.
pub const READS_MIN: usize = 4;

/// Reads of one client that are on their way together at most.
pub const READS_MAX: usize = 1024;

/// Reads of one client that wait for previous ones, above which nothing is read from it.
pub const DEFERRED_READS_HIGH: usize = 4096;

/// Rows of an answer to a client, whatever it asked.
pub const READ_ROWS_MAX: u64 = 1 << 18;

/// How long a slice of a background task should take: what a client waits for at most.
/// Upstream: storage/database/manager.py, `_stats`.
pub const SLICE_TIME: Duration = Duration::from_millis(10);

/// Rows of the first slice of a background task; it adapts.
pub const SLICE_ROWS: u32 = 500;

/// Fewest rows of a slice: below that, the efficiency drops. Upstream: `_stats`.
pub const SLICE_ROWS_MIN: u32 = 100;

/// Most rows of a slice.
pub const SLICE_ROWS_MAX: u32 = 1 << 16;

/// Rows deleted at once by a truncation: nobody is served meanwhile.
pub const TRUNCATE_ROWS: u32 = 10_000;

/// Bytes of object data that a source of replication reads at once.
pub const FETCH_BYTES: usize = 4 << 20;

/// Rows that another storage may fetch with one request.
pub const FETCH_COUNT_MAX: u32 = 1 << 16;

/// Requests of another storage that are in progress on one connection. A sane one has one, and may
/// have given up another one.
pub const SERVES_PER_PEER_MAX: u32 = 8;

/// Bytes of received objects that a replicating node writes at once.
pub const ADD_BYTES: usize = 4 << 20;

/// Rows of a range that is checked at once. Upstream: storage/checker.py, `CHECK_COUNT`.
pub const CHECK_COUNT: u32 = 40_000;

/// Delay before the replication of a partition is tried again when no source is available.
pub const RETRY_SOURCE_DELAY: Duration = Duration::from_secs(1);

/// Partitions that wait to be checked.
pub const CHECK_QUEUE_LEN_MAX: usize = neo_common::limits::PARTITIONS_MAX as usize;

const _: () = assert!(JOBS_LOW < JOBS_HIGH);
const _: () = assert!(READS_MIN < READS_MAX && READS_MAX < JOBS_HIGH);
const _: () = assert!(SLICE_ROWS_MIN <= SLICE_ROWS && SLICE_ROWS <= SLICE_ROWS_MAX);
const _: () = assert!(SPILL_BYTES_MIN < TRANSACTION_BYTES_HIGH);
const _: () = assert!(TRANSACTION_BYTES_HIGH < HELD_BYTES_HIGH);
