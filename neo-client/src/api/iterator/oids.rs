// SPDX-License-Identifier: GPL-2.0-or-later
//! Oids, and the objects that they name.

use std::collections::VecDeque;

use bytes::Bytes;
use neo_common::protocol::Packet;
use neo_common::types::{Oid, Tid};

use super::super::client::{Client, unexpected};
use super::super::pipeline::{Ordered, WINDOW_LEN};
use super::merge::Merge;
use super::read;
use crate::compression::Stored;
use crate::error::Result;

/// Oids asked from a partition at once. Upstream: client/app.py, `oids`.
const CHUNK_LEN: u32 = 1000;

/// A revision that is current.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CurrentRecord {
    /// The object.
    pub oid: Oid,
    /// Transaction that wrote it.
    pub tid: Tid,
    /// Its data.
    pub data: Bytes,
}

/// Oids in ascending order.
pub struct Oids {
    client: Client,
    tid: Option<Tid>,
    min_oid: Oid,
    max_oid: Option<Oid>,
    state: Option<(Merge<Oid>, Tid)>,
    ended: bool,
}

impl Oids {
    pub(in crate::api) fn new(
        client: Client,
        tid: Option<Tid>,
        min_oid: Oid,
        max_oid: Option<Oid>,
    ) -> Self {
        Self { client, tid, min_oid, max_oid, state: None, ended: false }
    }

    fn next_oid(&mut self) -> Result<Option<Oid>> {
        if self.state.is_none() {
            let tid = match self.tid {
                Some(tid) => tid,
                None => self.client.last_tid()?,
            };
            self.state = Some((Merge::new(&self.client, Some(self.min_oid))?, tid));
        }
        let Some((merge, tid)) = &mut self.state else { return Ok(None) };
        let tid = *tid;
        let max = self.max_oid.unwrap_or(Oid::INVALID);
        let oid = merge.pop(
            |partition, min_oid| Packet::AskOIDsFrom { partition, length: CHUNK_LEN, min_oid, tid },
            |packet| match packet {
                Packet::AnswerOIDsFrom { next_oid, oids } => {
                    Ok((oids, next_oid.filter(|next| *next <= max)))
                }
                other => Err(unexpected(&other)),
            },
        )?;
        Ok(oid.filter(|oid| *oid <= max))
    }
}

impl Iterator for Oids {
    type Item = Result<Oid>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_oid().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Current revisions in order of oid.
pub struct CurrentRecords {
    client: Client,
    oids: Oids,
    before: Option<Tid>,
    requests: Ordered,
    asked: VecDeque<Oid>,
    ended: bool,
}

impl CurrentRecords {
    pub(in crate::api) fn new(client: Client, min_oid: Oid) -> Self {
        let requests = Ordered::new(&client.shared);
        let oids = Oids::new(client.clone(), None, min_oid, None);
        Self { client, oids, before: None, requests, asked: VecDeque::new(), ended: false }
    }

    fn next_record(&mut self) -> Result<Option<CurrentRecord>> {
        let before = match self.before {
            Some(before) => before,
            None => {
                let last = self.client.last_tid()?;
                self.oids.tid = Some(last);
                *self.before.insert(last.next().unwrap_or(last))
            }
        };
        loop {
            while self.asked.len() < WINDOW_LEN
                && let Some(oid) = self.oids.next().transpose()?
            {
                let packet = Packet::AskObject { oid, at: None, before: Some(before) };
                self.requests.push(read(self.client.partition_of(oid.get())?, packet))?;
                self.asked.push_back(oid);
            }
            self.requests.flush();
            let Some(oid) = self.asked.pop_front() else { return Ok(None) };
            match self.requests.pop_packet() {
                Some(Ok(Packet::AnswerObject { serial, compression, checksum, data, .. })) => {
                    let stored = Stored { compression, checksum, data };
                    if stored.is_nothing() {
                        continue;
                    }
                    let data = match stored.load() {
                        Ok(data) => data,
                        Err(_) => self.client.load_serial(oid, serial)?.data,
                    };
                    return Ok(Some(CurrentRecord { oid, tid: serial, data }));
                }
                Some(Ok(other)) => return Err(unexpected(&other)),
                // Deleted by a pack meanwhile.
                Some(Err(error)) if error.is_key_error() => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for CurrentRecords {
    type Item = Result<CurrentRecord>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_record().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
