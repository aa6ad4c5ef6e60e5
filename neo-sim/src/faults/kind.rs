// SPDX-License-Identifier: GPL-2.0-or-later
//! Kinds of faults and of operator actions, and sets of them.
//!
//! A kind either happens again and again, at times drawn from the seed, or is a *condition* of the
//! whole run (bad weather, clocks that drift), or of its end.

use std::fmt;

/// Makes the enum and the table of its names, so that they cannot differ.
macro_rules! kinds {
    ($($(#[doc = $doc:expr])+ $kind:ident = $name:literal,)+) => {
        /// A kind of fault, or of something that an operator does.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// For figures and for the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }
        }
    };
}

kinds! {
    // Nodes.
    /// SIGKILL of a master.
    KillMaster = "kill-master",
    /// SIGKILL of the master that serves.
    KillPrimary = "kill-primary",
    /// SIGKILL of a storage.
    KillStorage = "kill-storage",
    /// SIGKILL of a client.
    KillClient = "kill-client",
    /// SIGKILL of an admin.
    KillAdmin = "kill-admin",
    /// A clean end of any process.
    Terminate = "terminate",
    /// A machine loses power, and what was not on its disk.
    Power = "power",
    /// All storages lose power.
    Blackout = "blackout",
    /// A process is stopped for a while.
    Pause = "pause",
    /// A clock jumps.
    Clock = "clock-jump",
    /// Condition: clocks run at wrong speeds.
    Drift = "clock-drift",
    // Network.
    /// A connection breaks; both sides learn it.
    Reset = "reset",
    /// A connection breaks; only one side learns it soon.
    ResetOneSide = "reset-one-side",
    /// All connections between two hosts break.
    ResetPair = "reset-pair",
    /// Two hosts do not hear each other for a while.
    Cut = "cut",
    /// A host does not hear another one for a while, which hears it.
    CutOneWay = "cut-one-way",
    /// A host is cut from all others for a while.
    Isolate = "isolate",
    /// The master that serves is cut from all others for a while.
    IsolatePrimary = "isolate-primary",
    /// A host refuses new connections for a while.
    RefuseConnects = "refuse-connects",
    /// Connection attempts to a host hang for a while.
    HangConnects = "hang-connects",
    /// Condition: delays, stalls, what is sent is cut in pieces, some connection attempts hang.
    Weather = "weather",
    // Databases.
    /// Condition: all disks are slow, and stall sometimes.
    SlowDisks = "slow-disks",
    /// A disk is very slow for a while.
    SlowCommit = "slow-commit",
    /// The results of some reads of a storage come seconds late for a while, after those of later ones;
    /// in the end, its connections to the master may break.
    LateReads = "late-reads",
    /// Packs, and what else goes on in the background, take long on all storages for a while.
    SlowPacks = "slow-packs",
    /// Commits of a storage fail for a while: it ends.
    FailingCommit = "failing-commit",
    /// A disk is full for a while: each process that writes to it ends.
    DiskFull = "disk-full",
    /// A storage loses the connection to its database, and connects again, or ends.
    LostLane = "lost-lane",
    // At once.
    /// Something happens to a node, or to all storages, at the moment when it sends, or is sent, some
    /// packet, or shortly after.
    Moment = "moment",
    // The operator.
    /// Starts a storage and adds it.
    AddStorage = "add-storage",
    /// Empties a storage, stops it and drops it.
    DropStorage = "drop-storage",
    /// Changes the number of replicas.
    SetReplicas = "set-replicas",
    /// Moves cells.
    Tweak = "tweak",
    /// Stops a secondary master or a storage.
    KillNode = "kill-node",
    /// Looks, compares replicas, counts what nothing refers to: nothing that changes anything.
    Look = "look",
    /// Stops the cluster; all is started again.
    StopCluster = "stop-cluster",
    /// At the end: moves cells once more. There must be as many as are wanted.
    TweakAtEnd = "tweak-at-end",
    /// At the end: cuts the database back to an older state.
    Truncate = "truncate",
    /// At the end: stops everything, in one of several ways, and starts it again.
    RestartAtEnd = "restart-at-end",
}

impl Kind {
    /// Whether it is there, or not, for a whole run.
    pub const fn is_condition(self) -> bool {
        matches!(
            self,
            Self::Drift
                | Self::Weather
                | Self::SlowDisks
                | Self::TweakAtEnd
                | Self::Truncate
                | Self::RestartAtEnd
        )
    }

    /// Those that happen again and again.
    pub fn repeated() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|kind| !kind.is_condition())
    }
}

/// Kinds that a run may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u64);

const _: () = assert!(Kind::ALL.len() <= 64, "a set of kinds is one number");

impl Kinds {
    /// All.
    pub const ALL: Self = Self(u64::MAX >> (64 - Kind::ALL.len()));
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether it is one of them.
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u64) != 0
    }
    /// These, and another one.
    #[must_use]
    pub const fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u64)
    }
    /// These, but one.
    #[must_use]
    pub const fn without(self, kind: Kind) -> Self {
        Self(self.0 & !(1 << kind as u64))
    }
    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// These, but others.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.iter().copied().filter(move |kind| self.has(*kind))
    }

    /// From names with commas between them; `none` is none.
    ///
    /// # Errors
    /// The name that nothing has.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        text.split(',').try_fold(Self::NONE, |kinds, name| {
            let kind = Kind::ALL.iter().find(|kind| kind.name() == name);
            Ok(kinds.with(*kind.ok_or_else(|| format!("no such kind of fault: {name}"))?))
        })
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Kind::name).collect();
        f.write_str(if names.is_empty() { "none".into() } else { names.join(",") }.as_str())
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kinds({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read again, and a wrong name is told.
    #[test]
    fn sets_of_kinds_are_parsed_and_written() {
        let kinds = Kinds::parse("kill-master,truncate").unwrap();
        assert!(kinds.has(Kind::KillMaster) && kinds.has(Kind::Truncate) && !kinds.has(Kind::Cut));
        assert_eq!(kinds.to_string(), "kill-master,truncate");
        assert_eq!(kinds.without(Kind::KillMaster).to_string(), "truncate");
        assert_eq!(Kinds::parse(&Kinds::ALL.to_string()).unwrap().iter().count(), Kind::ALL.len());
        assert_eq!(Kinds::parse("none").unwrap(), Kinds::NONE);
        assert_eq!(Kinds::NONE.to_string(), "none");
        assert!(Kinds::parse("kill-master,what").unwrap_err().contains("what"));
    }
}
