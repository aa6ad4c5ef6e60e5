// SPDX-License-Identifier: GPL-2.0-or-later
//! Every bound, with its unit and source.

use std::time::Duration;

/// Bytes of one object's data, and of any byte string in a packet.
/// Upstream: msgpack buffer of lib/protocol.py (64 MiB).
pub const DATA_BYTES_MAX: usize = 64 << 20;

/// Bytes of a packet: the biggest string, plus room for what surrounds it.
/// (Upstream has no limit for packets made of many small items; 2^21 oids are 20 MiB.)
pub const PACKET_BYTES_MAX: usize = DATA_BYTES_MAX + (32 << 20);

/// Bytes of a packet before the peer is identified. The biggest legitimate one is a
/// `RequestIdentification` with `new_nid` listing all partitions.
pub const ANONYMOUS_PACKET_BYTES_MAX: usize = 1 << 20;

/// Items of a list in a packet. Upstream: "Too many modified OIDs" (2^21 - 1).
pub const LIST_LEN_MAX: usize = 1 << 21;

/// Nesting of arrays and maps in a packet: `[id, code, args]` with two levels inside is 5.
pub const PACKET_DEPTH_MAX: usize = 8;

/// Partitions of a table: the column is `SMALLINT UNSIGNED` on MySQL.
pub const PARTITIONS_MAX: u32 = 65_535;

/// Cells of a partition: far more replicas than make sense, few enough to be searched one by one.
pub const CELLS_MAX: usize = 512;

/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Bytes of a value of a configuration file.
pub const CONFIG_VALUE_BYTES_MAX: usize = 64 << 10;

/// Oids that a client reserves at once. Upstream: client/app.py, 100.
pub const NEW_OIDS_COUNT: u32 = 100;

/// Oids that the master gives at once, whatever the request.
pub const NEW_OIDS_COUNT_MAX: u32 = 1 << 16;

/// No more than one attempt per second to an address that refused or dropped us.
/// Upstream: lib/connector.py, `CONNECT_LIMIT`.
pub const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// How long a connection that nobody uses any more is kept. Upstream: lib/connection.py,
/// `closeClient`.
pub const IDLE_CLIENT_DELAY: Duration = Duration::from_secs(100);

/// An unlock may be committed that much later. Upstream: storage/database/manager.py,
/// `deferCommit`.
pub const DEFERRED_COMMIT_DELAY: Duration = Duration::from_secs(1);

/// Bytes waiting to be sent to a peer above which nothing more is read from it.
pub const OUT_BYTES_HIGH: usize = 32 << 20;

/// Bytes read from a socket at once.
pub const READ_BYTES: usize = 256 << 10;

/// Data at least this long is sent from where it is, without being copied next to the rest of its
/// packet.
pub const COPY_BYTES_MAX: usize = 16 << 10;

/// How long what is sent may remain unacknowledged by the peer's system, or the peer's window closed,
/// before the connection is given up. Otherwise it takes TCP a quarter of an hour to notice that a
/// machine is gone, if something was being sent; and as long as the silence lasted to try again.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// How long it may take to connect. A machine that is gone does not answer; a node that looks for a
/// primary master tries one address after the other.
pub const CONNECT_MAX: Duration = Duration::from_secs(4);

/// TCP keepalive: idle time, interval, probes. With [`UNACKNOWLEDGED_MAX`], a peer that vanishes is
/// noticed within 20 s or so, whether or not something is being sent to it. Upstream:
/// lib/connector.py, where it takes 90 s.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// See [`KEEPALIVE_IDLE`].
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// See [`KEEPALIVE_IDLE`].
pub const KEEPALIVE_PROBES: u32 = 3;

/// Objects or transactions of a replication chunk. Upstream: storage/replicator.py, `FETCH_COUNT`.
pub const FETCH_COUNT: u32 = 1000;

const _: () = assert!(ANONYMOUS_PACKET_BYTES_MAX < PACKET_BYTES_MAX);
const _: () = assert!(DATA_BYTES_MAX < PACKET_BYTES_MAX);
const _: () = assert!(LIST_LEN_MAX * 10 < PACKET_BYTES_MAX, "a full list of oids must fit");
const _: () = assert!(COPY_BYTES_MAX < READ_BYTES);
