// SPDX-License-Identifier: GPL-2.0-or-later
//! Merging what the partitions have in order.

use std::collections::VecDeque;

use neo_common::protocol::Packet;
use neo_common::types::{Partition, Tid};

use super::super::client::{Client, unexpected};
use super::super::pipeline::Ordered;
use super::read;
use crate::error::{Error, Result};

/// Tids asked from a partition at once.
const CHUNK_LEN: u32 = 200;

/// What one partition has in order: tids or oids.
struct Row<T> {
    items: VecDeque<T>,
    /// From where to ask for more; `None` at the end.
    next: Option<T>,
}

/// Merges what the partitions have.
pub(super) struct Merge<T> {
    rows: Vec<Row<T>>,
    requests: Ordered,
}

impl<T: Copy + Ord> Merge<T> {
    /// `start`: `None` if there is nothing.
    pub fn new(client: &Client, start: Option<T>) -> Result<Self> {
        let partitions = client.partitions()?;
        let row = || Row { items: VecDeque::new(), next: start };
        let rows = (0..partitions).map(|_| row()).collect();
        Ok(Self { rows, requests: Ordered::new(&client.shared) })
    }

    pub fn partitions(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Removes and returns the smallest item.
    pub fn pop(
        &mut self,
        request: impl Fn(Partition, T) -> Packet,
        answer: impl Fn(Packet) -> Result<(Vec<T>, Option<T>)>,
    ) -> Result<Option<T>> {
        loop {
            let mut asked = VecDeque::new();
            for (partition, row) in (0..).zip(&self.rows) {
                if row.items.is_empty()
                    && let Some(next) = row.next
                {
                    self.requests.push(read(partition, request(partition, next)))?;
                    asked.push_back(partition);
                }
            }
            if asked.is_empty() {
                break;
            }
            while let (Some(partition), Some(packet)) =
                (asked.pop_front(), self.requests.pop_packet())
            {
                let row = &mut self.rows[partition as usize];
                let (items, next) = answer(packet?)?;
                // A storage that does not go on would be asked the same for ever.
                let goes_on = next.is_none_or(|next| row.next.is_none_or(|before| next > before));
                if !goes_on || !items.is_sorted() {
                    return Err(Error::Refused("a storage does not answer in order".into()));
                }
                *row = Row { items: items.into(), next };
            }
        }
        let first = self.rows.iter_mut().filter(|row| !row.items.is_empty());
        let first = first.min_by_key(|row| row.items[0]);
        Ok(first.and_then(|row| row.items.pop_front()))
    }
}

/// Tids in a range, ascending.
pub(super) struct Tids {
    merge: Merge<Tid>,
    pub stop: Tid,
}

impl Tids {
    pub fn new(client: &Client, start: Option<Tid>, stop: Option<Tid>) -> Result<Self> {
        let last = client.last_tid()?;
        let stop = stop.map_or(last, |stop| stop.min(last));
        let start = Some(start.unwrap_or_default()).filter(|start| *start <= stop);
        Ok(Self { merge: Merge::new(client, start)?, stop })
    }

    pub fn partitions(&self) -> u32 {
        self.merge.partitions()
    }

    /// The next one.
    pub fn next(&mut self) -> Result<Option<Tid>> {
        let stop = self.stop;
        self.merge.pop(
            |partition, min_tid| Packet::AskTIDsFrom {
                min_tid,
                max_tid: stop,
                length: CHUNK_LEN,
                partition,
            },
            |packet| match packet {
                Packet::AnswerTIDsFrom { tids } => {
                    let more = tids.len() >= CHUNK_LEN as usize;
                    let next = tids.last().filter(|_| more).and_then(|last| last.next());
                    Ok((tids, next.filter(|next| *next <= stop)))
                }
                other => Err(unexpected(&other)),
            },
        )
    }
}
