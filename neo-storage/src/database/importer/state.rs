// SPDX-License-Identifier: GPL-2.0-or-later
//! How far an import is: on disk, and between threads.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use neo_common::types::{Oid, Tid};

use super::super::Error;

/// Key in table `config`. It is written with the rows that it is about, in one transaction, so that
/// an import resumes exactly where it stopped.
///
/// Upstream has `zodb` instead, a pickle of its classes, and looks at the last transaction.
pub const KEY: &str = "import";

/// Upstream's key.
pub const UPSTREAM_KEY: &str = "zodb";

/// What is stored: which file is imported, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Last tid of the file.
    pub last_tid: Tid,
    /// Greatest oid of the file.
    pub last_oid: Oid,
    /// All transactions up to this one are imported.
    pub imported: Tid,
}

impl Stored {
    /// From the value of [`KEY`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut fields = text.split(' ').map(|field| {
            let is_hex = field.len() == 16 && field.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(field, 16).ok().filter(|_| is_hex)
        });
        let mut next = || fields.next().flatten();
        let fields = (next(), next(), next(), fields.next());
        let (Some(last_tid), Some(last_oid), Some(imported), None) = fields else {
            return Err(Error::Corrupted(format!("{KEY} in config is {text:?}")));
        };
        let (last_tid, last_oid, imported) = (last_tid.into(), last_oid.into(), imported.into());
        Ok(Self { last_tid, last_oid, imported })
    }

    /// Whether nothing is left to import.
    pub fn is_finished(&self) -> bool {
        self.imported >= self.last_tid
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.last_tid, self.last_oid, self.imported)
    }
}

/// What the readers need to know of the writer.
#[derive(Debug)]
pub struct Shared {
    last_tid: Tid,
    imported: AtomicU64,
    partitions: AtomicU32,
}

impl Shared {
    /// Starts from what is stored.
    pub fn new(stored: &Stored) -> Self {
        Self {
            last_tid: stored.last_tid,
            imported: AtomicU64::new(stored.imported.get()),
            partitions: AtomicU32::new(0),
        }
    }

    /// Last tid of the file.
    pub fn last_tid(&self) -> Tid {
        self.last_tid
    }

    /// All transactions up to this one are imported, and visible to whoever begins to read now. It
    /// never decreases.
    pub fn imported(&self) -> Tid {
        Tid::new(self.imported.load(Ordering::Acquire))
    }

    /// Told once it is visible.
    pub fn set_imported(&self, tid: Tid) {
        self.imported.store(tid.get(), Ordering::Release);
    }

    /// Number of partitions; 0 if not known yet.
    pub fn partitions(&self) -> u32 {
        self.partitions.load(Ordering::Acquire)
    }

    /// There is a partition table.
    pub fn set_partitions(&self, partitions: u32) {
        self.partitions.store(partitions, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read back; anything else is an error.
    #[test]
    fn stored_state() {
        let stored = Stored { last_tid: 9.into(), last_oid: 8.into(), imported: 7.into() };
        let text = stored.to_string();
        assert_eq!(text, "0000000000000009 0000000000000008 0000000000000007");
        assert_eq!(Stored::parse(&text).unwrap(), stored);
        assert!(!stored.is_finished());
        assert!(Stored { imported: 9.into(), ..stored }.is_finished());
        for wrong in ["", "1 2 3", &text[1..], &format!("{text} "), &text.replace('9', "g")] {
            assert!(Stored::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
