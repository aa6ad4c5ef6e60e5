// SPDX-License-Identifier: GPL-2.0-or-later
//! The list of commands, for who gives none.

/// Printed by `neoctl` without command.
pub const USAGE: &str = "\
Available commands:
print
  cluster
    Show the state of the cluster.
  primary
    Show which master is the primary one.
  node [TYPE]
    List nodes, or those of a type: master, storage, client or admin.
  pt [MIN [MAX [NODE]]]
    Show the partition table, from row MIN up to but without row MAX (0: all).
    Without bounds: a line per node, a letter per partition. Letters of cells
    are U up-to-date, O out-of-date, F feeding and C corrupted; letters of
    nodes are R running, D down, P pending.
  ids
    Show the last oid, the last tid and the version of the partition table.
  summary
    Show the health of this cluster and of its backups. The first line is for
    programs: # and a JSON object, with the severities warning and problem as
    keys and lists of backup clusters as values, null being this cluster.
set
  cluster STATE
    Change the state of the cluster: verifying, starting_backup,
    stopping_backup or stopping.
  replicas NUMBER
    Change how many copies of each partition there are beside the first one.
check [PARTITION]:[REFERENCE] ... [MIN [MAX]]
  EXPERIMENTAL. Compare the cells of partitions (all if PARTITION is omitted),
  from tid MIN to tid MAX. REFERENCE is a storage whose data is known to be
  good. Differences are only logged by the primary master. Cells that are
  being packed may differ although nothing is wrong.
start
  Start a cluster that is recovering. Same as: set cluster verifying
add all|NODE ...
  Let pending storages enter the cluster. They get cells by tweak.
tweak [-n] [NODE ...]
  Balance the partition table. Storages that are down must be listed; the
  cells of listed storages are moved to others, so that they can be dropped.
  -n only shows what would be done.
drop NODE
  Remove a storage from the cluster for ever. It must be stopped.
kill NODE
  Stop a storage whose data is also elsewhere, or a secondary master.
prune_orphan 0|1 all|NODE ...
  Delete data that no object refers to, in the databases of storages. It may
  take a long time. 1 only counts.
truncate TID
  Forget all transactions after TID. The cluster must be running; it goes back
  to recovering, and waits for all its storages (do not use start, unless the
  missing ones need not be truncated).
flush_log
  Ask all nodes to write their logs to disk; in backup clusters, only the
  primary master.
A NODE is a letter and a number, as shown by print node: S1.
A TID is tid:INTEGER, or a number for a UNIX timestamp: 'tid:257684787499560686',
'tid:0x3937af2eeeeeeee' and '1325421296' are 2012-01-01 12:34:56 UTC.";
