// SPDX-License-Identifier: GPL-2.0-or-later
//! What a recovery waits for, told to who looks at the log of a cluster that does not start.

use std::fmt;

use neo_common::types::{NodeId, Ptid};

/// Names of nodes in a message: who waits for more looks at `neoctl print node`.
const NAMES_MAX: usize = 20;

/// Why the cluster does not start yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wait {
    /// None is there.
    Storages,
    /// There is no database: this many storages are there, of those that the option `--autostart` wants.
    NewDatabase(usize, Option<u32>),
    /// There is one, and no storage that has a partition table.
    Table,
    /// Partitions without any readable cell that is there; storages that have them.
    Cells(Vec<NodeId>),
    /// A storage announced this version of the partition table, and was lost before it sent it.
    Announced(Ptid),
    /// With a later version than this one, transactions may be committed that nobody has who is there.
    OldTable(Option<Ptid>),
    /// Every partition can be read, but these storages may know more.
    Others(Vec<NodeId>),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forced = "; `neoctl start` starts without, and may lose what only they have";
        match self {
            Self::Storages => f.write_str("waiting for storages"),
            Self::NewDatabase(count, None) => {
                write!(f, "waiting for `neoctl start`, to create a database; storages: {count}")
            }
            Self::NewDatabase(count, Some(wanted)) => {
                write!(f, "waiting for more storages, to create a database: {count} of {wanted}")
            }
            Self::Table => f.write_str("waiting for a storage that has a partition table"),
            Self::Cells(nids) => {
                f.write_str("waiting for storages, without which partitions cannot be read: ")?;
                names(f, nids)
            }
            Self::Announced(ptid) => write!(
                f,
                "waiting for the storage that announced version {ptid} of the partition table{forced}"
            ),
            Self::OldTable(ptid) => write!(
                f,
                "waiting for storages with a later partition table than version {}: transactions may be \
                 committed with it{forced}",
                ptid.unwrap_or_default()
            ),
            Self::Others(nids) => {
                f.write_str("waiting for storages that may have more than others: ")?;
                names(f, nids)?;
                f.write_str(forced)
            }
        }
    }
}

fn names(f: &mut fmt::Formatter<'_>, nids: &[NodeId]) -> fmt::Result {
    for (index, nid) in nids.iter().take(NAMES_MAX).enumerate() {
        write!(f, "{}{nid}", if index == 0 { "" } else { ", " })?;
    }
    match nids.len().saturating_sub(NAMES_MAX) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use neo_common::protocol::NodeType;

    use super::*;

    #[test]
    fn messages_are_short() {
        let nids = (1..=30).filter_map(|index| NodeId::of(NodeType::Storage, index)).collect();
        let message = Wait::Cells(nids).to_string();
        assert!(
            message.ends_with(
                ": S1, S2, S3, S4, S5, S6, S7, S8, S9, S10, S11, S12, S13, S14, S15, \
                                   S16, S17, S18, S19, S20 and 10 more"
            ),
            "{message}"
        );
        assert_eq!(
            Wait::NewDatabase(1, Some(3)).to_string(),
            "waiting for more storages, to create a database: 1 of 3"
        );
        assert!(Wait::OldTable(Some(7)).to_string().contains("than version 7: "));
        assert!(Wait::Announced(9).to_string().contains("version 9 "));
    }
}
