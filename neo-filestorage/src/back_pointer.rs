// SPDX-License-Identifier: GPL-2.0-or-later
//! From a back-pointer to the data.
//!
//! Each undo of an undo makes the chain longer by one, so resolving each record from its own end
//! would take a time that grows with the square of the number of undos. Where chains end is
//! therefore remembered, for a bounded number of records.

use std::collections::BTreeMap;

/// Records whose data is remembered: about 4 MB.
const KNOWN_LEN_MAX: usize = 1 << 16;

/// Where data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub pos: u64,
    pub size: u64,
}

/// What a record has after its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    Data(Extent),
    /// 0: no data.
    BackPointer(u64),
}

/// Follows back-pointers.
#[derive(Debug, Default)]
pub(crate) struct BackPointers {
    known: BTreeMap<u64, Option<Extent>>,
}

impl BackPointers {
    /// Data of the record at `to`, which has `body` and to which a back-pointer leads; `None` if it
    /// has no data. `read(pos, before)` gives the body of the record at `pos`, or fails if it is not
    /// wholly before `before`: this makes the chain end.
    pub(crate) fn follow<E>(
        &mut self,
        to: u64,
        body: Body,
        mut read: impl FnMut(u64, u64) -> Result<Body, E>,
    ) -> Result<Option<Extent>, E> {
        let (mut pos, mut body) = (to, body);
        let found = loop {
            match body {
                Body::Data(extent) => break Some(extent),
                Body::BackPointer(0) => break None,
                Body::BackPointer(target) => {
                    if let Some(&known) = self.known.get(&pos) {
                        break known;
                    }
                    body = read(target, pos)?;
                    pos = target;
                }
            }
        };
        if self.known.len() == KNOWN_LEN_MAX {
            self.known.clear();
        }
        self.known.insert(to, found);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A chain of many links costs one step each, in the order in which a file is read.
    #[test]
    fn long_chains_are_followed_in_linear_time() {
        let len = 3 * KNOWN_LEN_MAX as u64;
        let end = Extent { pos: 1, size: 10 };
        let body = |pos| if pos == 1 { Body::Data(end) } else { Body::BackPointer(pos - 1) };
        let mut back_pointers = BackPointers::default();
        let mut steps = 0;
        for to in 1..len {
            let found = back_pointers.follow(to, body(to), |pos, before| {
                assert!(pos < before);
                steps += 1;
                Ok::<_, Infallible>(body(pos))
            });
            assert_eq!(found, Ok(Some(end)));
        }
        assert!(steps < 20 * len, "{steps} steps for {len} records");
        assert!(back_pointers.known.len() <= KNOWN_LEN_MAX);
    }
}
