// SPDX-License-Identifier: GPL-2.0-or-later
//! Planted bugs: deliberate mistakes in the product, to show that the simulator would find such ones.
//!
//! Each [`Bug`] is one line or two at the place where a programmer could make that mistake:
//!
//! ```text
//!     if !is_readable || planted!(OutOfDateReadable) { ... }
//! ```
//!
//! Without the feature `planted`, which only a dedicated build of the simulator has, `planted!` is the
//! constant `false`, and production code is the same machine code as without these lines. With it,
//! one bug is chosen for the whole process, once, by [`choose`]; it is the only global state that a
//! core ever looks at. Programs that serve users refuse to be compiled with it:
//! [`no_planted_bugs!`](crate::no_planted_bugs).
//!
//! `scripts/planted` runs the simulator with each of them, `docs/planted.md` has the results.

/// Whether this build can have planted bugs.
pub const ENABLED: bool = cfg!(feature = "planted");

/// What a cluster must be like for a bug to matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Any cluster.
    Nothing,
    /// Partitions with copies.
    Replicas,
}

/// Defines the bugs, with a name and a description that programs can print.
macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident: $needs:ident,)+) => {
        /// A deliberate mistake: what is wrong, and what it would cost.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As it is written in code.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
            /// What is wrong, and what it would cost.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc,)+),)+
                }
            }
            /// Where it matters.
            pub const fn needs(self) -> Needs {
                match self {
                    $(Self::$name => Needs::$needs,)+
                }
            }
        }
    };
}

bugs! {
    // Durability.

    /// A storage answers that a vote is stored before it is on disk: a power failure loses a part of
    /// a transaction that is then committed.
    VoteAnsweredBeforeCommit: Nothing,
    /// A storage answers that a transaction is locked before it is on disk: after a power failure, an
    /// acknowledged transaction is not committed.
    LockAnsweredBeforeCommit: Nothing,
    /// A storage does not wait until its partition table is on disk before it tells it: after a power
    /// failure, an older table is believed.
    TableNotFlushed: Replicas,
    /// Unfinished data is not dropped before a storage serves: rows that nobody owns stay, and a
    /// transaction that was dropped may come back.
    UnfinishedNotDropped: Nothing,
    /// What was voted is not removed from the database by an abort: temporary rows stay.
    AbortKeepsRows: Nothing,

    // Locks of storages.

    /// Objects are not locked for loads between lock and unlock: a load returns the previous revision
    /// although the transaction is committed.
    ForgottenLoadLock: Nothing,
    /// Locks are released when the unlock is asked, not when it is visible: a load or a conflict check
    /// that follows does not see the new revision.
    LockReleasedBeforeVisible: Nothing,
    /// What is known of the last revision is not updated by a commit: the next store is checked
    /// against the previous one, and an update is lost.
    ConflictWithWrongSerial: Nothing,
    /// A load that comes back late replaces what an unlock left in the cache of last revisions: an
    /// update is lost.
    LateReadBelieved: Nothing,
    /// The result of a conflict check is used although a transaction was committed meanwhile: an
    /// update is lost.
    StaleCheckBelieved: Nothing,
    /// Results of loads that began before the service was interrupted are used after it: an update
    /// is lost (swarm 3034 of the list of what was found).
    PastOperationBelieved: Nothing,
    /// `checkCurrentSerialInTransaction` is accepted without check and without lock: write skew.
    CheckSerialIgnored: Nothing,
    /// A check of a serial is a check, but does not lock: another transaction commits in between.
    CheckDoesNotLock: Nothing,
    /// The older transaction waits for the younger one without telling it: both wait for ever.
    LockOrderIgnored: Nothing,
    /// Objects that a transaction only checked are not released when it ends: nobody can store them any
    /// more.
    CheckedStaysLocked: Nothing,
    /// What waits for a lock is not tried again when the transaction is aborted: it waits for ever.
    WaitersForgotten: Nothing,
    /// What a client that is gone had voted is not aborted: its locks stay for ever.
    DeadClientIgnored: Nothing,

    // Commit in the master.

    /// The tid of a transaction only depends on the clock: when it steps back, so do tids.
    WrongNextTid: Nothing,
    /// Ttids only depend on the clock and the last commit: two transactions get the same.
    TtidReused: Nothing,
    /// Oids that were given but not stored yet are given again after the master was interrupted: two
    /// objects share an oid.
    ReusedOid: Nothing,
    /// The last oid of the databases is ignored when a master starts: oids of existing objects are
    /// given again.
    LastOidIgnored: Nothing,
    /// A transaction is finished when the majority of storages have locked it: the others may lose it.
    FinishedOnMajority: Nothing,
    /// Storages that could not store all of a transaction take part in its commit: it is there in
    /// parts.
    VoteFailureIgnored: Replicas,
    /// A client that could not store on a storage does not tell the master.
    FailedVoteNotTold: Replicas,
    /// Only the first storage is told to unlock a transaction: the others keep their locks.
    UnlockLost: Nothing,
    /// Transactions end in the order in which storages lock them, not in the order of their tids:
    /// the last tid goes back.
    FinishOutOfOrder: Nothing,
    /// Clients that commit at the same time are not told what others committed: their caches are
    /// stale.
    LostInvalidation: Nothing,
    /// The last transaction is one that is being committed: who asks for it reads a snapshot that is
    /// not complete.
    LastTidTooEarly: Nothing,
    /// A transaction may begin while a storage becomes ready, which then misses a part of it.
    BeginWhileStarting: Replicas,
    /// A client that lost its connection while it committed is told that it failed, as soon as the
    /// master does not know the transaction: it may be committed.
    OutcomeGuessed: Nothing,
    /// After a change of primary, ids follow the last one in the databases without a gap: a ttid that
    /// the former master gave may be given again.
    NoGapAfterElection: Nothing,

    // Recovery, verification, election.

    /// Verification ignores which transactions are locked: they are dropped although acknowledged.
    VerificationDropsLocked: Nothing,
    /// Verification does not ask whether a voted transaction was unlocked elsewhere already: it is
    /// there in parts.
    VerificationForgetsUnlocked: Nothing,
    /// The last tid after verification is that of the storage that answered last: clients begin with
    /// an old snapshot.
    RecoveredTidTooLow: Nothing,
    /// Recovery believes the oldest partition table that it finds, not the latest one: cells that missed
    /// transactions are readable.
    StalePartitionTable: Replicas,
    /// The cluster starts again with whatever readable cells are there, although transactions were
    /// committed since that version of the table: they are lost.
    StartWithOldTable: Replicas,
    /// A master that is told that another one is primary since longer goes on: two primaries.
    TwoPrimaries: Nothing,

    /// After an election, the cluster starts again with whatever readable cells are there: two halves go
    /// their own ways.
    SplitAfterElection: Replicas,

    // Partition table and replication.

    /// Cells of a storage that is lost stay readable: when it is back, it serves old data.
    LostCellsStayReadable: Replicas,
    /// A storage answers reads of cells that are out-of-date, and clients ask them.
    OutOfDateReadable: Replicas,
    /// FEEDING cells are dropped although a copy that replaces them is not complete yet: less copies
    /// than wanted, or none.
    FeedingDroppedTooEarly: Replicas,
    /// The first object that a source sends is skipped.
    ReplicationSkipsFirst: Replicas,
    /// Replication goes on at the end of what was ordered last, not at the end of what was done.
    ReplicationSkipsRange: Replicas,
    /// Replication does not delete what the source does not have: what was dropped or packed away
    /// elsewhere is still there.
    ReplicationKeepsDeleted: Replicas,
    /// A cell is declared up-to-date before the end of its replication is on disk: after a power failure,
    /// rows are missing.
    ReplicatedBeforeCommit: Replicas,
    /// A cell is recorded as complete once its transactions are replicated, when its objects are not:
    /// after a restart, they are missing.
    ReplicationProgressTooEarly: Replicas,
    /// A cell is declared up-to-date without waiting for the transactions that were unfinished when
    /// replication began: it misses them.
    UnfinishedNotAwaited: Replicas,
    /// Stores that an out-of-date cell accepted without lock are not checked when they become locks, and
    /// clients do not care whether a store was locked by any cell: an update is lost if the cell that
    /// should have told the conflict was discarded.
    LocklessNotChecked: Replicas,

    // Pack and undo.

    /// A pack removes revisions up to its own tid, not up to the time that was asked: revisions that
    /// are still visible are gone.
    PackRemovesVisible: Nothing,
    /// A pack only treats the cells that a storage has when it begins, those that are replicated
    /// meanwhile are considered as done: copies differ.
    PackNotRepeated: Replicas,
    /// The objects that a partial pack was ordered for are ignored: everything is packed.
    PackScopeIgnored: Nothing,
    /// To undo a transaction goes back to the revision before it, although the object was changed since:
    /// later changes are lost.
    UndoOverwritesLater: Nothing,

    // Reads.

    /// The next revision is ignored when a load asks for what was before some tid: the client takes
    /// an old revision for the current one.
    NextSerialLost: Nothing,
    /// Iteration does not wait for transactions that are being unlocked: it misses the last ones.
    IterationMissesLast: Nothing,
    /// Iteration leaves out the last transaction of a range.
    IterationExcludesLast: Nothing,

    // Client.

    /// An invalidation leaves the entry of the cache as it is: stale data for ever.
    StaleCacheEntry: Nothing,
    /// A cached revision is considered as valid at the very tid that changed it.
    CacheBorder: Nothing,
    /// What is invalidated while an object is being loaded is forgotten: stale data for ever.
    LoadOvertaken: Nothing,
    /// The last tid moves before the application is told what changed.
    InvalidatedAfterLastTid: Nothing,
    /// The cache is kept when a connection to the master was lost, whatever happened meanwhile.
    ReconnectKeepsCache: Nothing,
    /// What a transaction wrote goes to the cache although the connection was lost while it was committed:
    /// later changes were missed.
    OutcomeFillsCache: Nothing,
    /// A commit whose answer is lost is reported as failed: the application does it twice.
    CommitAssumedFailed: Nothing,
    /// Who asks whether a transaction of another client is committed waits until it is decided.
    OutcomeAwaited: Nothing,
    /// Only the master tells storages that a transaction is aborted: a store that arrives later locks its
    /// object for ever.
    AbortOvertakesStore: Nothing,
}

impl Bug {
    /// The bug with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name().eq_ignore_ascii_case(name))
    }
}

/// The choice of this process.
#[cfg(feature = "planted")]
static CHOSEN: std::sync::OnceLock<Bug> = std::sync::OnceLock::new();

/// Whether this process has this bug. Use [`planted!`](crate::planted!).
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    CHOSEN.get() == Some(&bug)
}

/// Whether this process has this bug: never. Use [`planted!`](crate::planted!).
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}

/// Gives this process a bug, for ever.
///
/// # Errors
/// If the build can not have any, or if this process has another one.
#[cfg(feature = "planted")]
pub fn choose(bug: Bug) -> Result<(), &'static str> {
    match *CHOSEN.get_or_init(|| bug) == bug {
        true => Ok(()),
        false => Err("this process has another planted bug"),
    }
}

/// Gives this process a bug: impossible in this build.
///
/// # Errors
/// Always.
#[cfg(not(feature = "planted"))]
pub const fn choose(_: Bug) -> Result<(), &'static str> {
    Err("this build has no planted bugs: use scripts/planted")
}

/// Whether this process has a planted bug: `planted!(WrongNextTid)`. The constant `false` in
/// production.
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}

/// In the root of a program or a library that serves users: it can not be compiled with planted bugs.
#[macro_export]
macro_rules! no_planted_bugs {
    () => {
        const _: () = assert!(
            !$crate::planted::ENABLED,
            "planted bugs are for the simulator only: build this without the feature `planted`"
        );
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are found again, and a build that can not have bugs has none.
    #[test]
    fn bugs_have_names_and_production_has_none() {
        for bug in Bug::ALL {
            assert_eq!(Bug::of_name(&bug.name().to_lowercase()), Some(*bug));
            assert!(bug.description().ends_with('.'), "{bug:?}");
        }
        assert_eq!(Bug::of_name("no such"), None);
        if !ENABLED {
            assert!(choose(Bug::WrongNextTid).is_err());
            assert!(Bug::ALL.iter().all(|bug| !is(*bug)));
        }
    }
}
