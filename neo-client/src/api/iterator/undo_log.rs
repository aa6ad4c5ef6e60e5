// SPDX-License-Identifier: GPL-2.0-or-later
//! Transactions, newest first.

use std::collections::{BTreeSet, VecDeque};

use neo_common::protocol::Packet;
use neo_common::types::Tid;

use super::super::client::Client;
use super::super::pipeline::{Ordered, WINDOW_LEN};
use super::{TransactionInfo, read};
use crate::error::{Error, Result};

/// Transactions, newest first.
///
/// The protocol has positions per partition only: the newest `n` of all are among the newest `n` of
/// each partition. `n` doubles as the caller goes on. (Upstream adds up positions of different
/// storages, which is wrong.)
pub struct UndoLog {
    client: Client,
    /// Tids known so far, the newest last.
    tids: Vec<Tid>,
    /// Number of newest tids that each partition gave; all if `complete`.
    depth: u64,
    complete: bool,
    last_given: Option<Tid>,
    infos: VecDeque<TransactionInfo>,
    ended: bool,
}

impl UndoLog {
    pub(in crate::api) fn new(client: Client) -> Self {
        Self {
            client,
            tids: Vec::new(),
            depth: 0,
            complete: false,
            last_given: None,
            infos: VecDeque::new(),
            ended: false,
        }
    }

    fn next_info(&mut self) -> Result<Option<TransactionInfo>> {
        while self.infos.is_empty() {
            if self.tids.is_empty() {
                if self.complete {
                    return Ok(None);
                }
                self.go_deeper()?;
                continue;
            }
            let partitions = self.client.partitions()?;
            let mut requests = Ordered::new(&self.client.shared);
            for _ in 0..WINDOW_LEN.min(self.tids.len()) {
                let Some(tid) = self.tids.pop() else { break };
                self.last_given = Some(tid);
                let packet = Packet::AskTransactionInformation { tid };
                requests.push(read(tid.partition(partitions), packet))?;
            }
            while let Some(packet) = requests.pop_packet() {
                match packet {
                    Ok(packet) => self.infos.push_back(packet.try_into()?),
                    // Packed away meanwhile.
                    Err(Error::TidNotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.infos.pop_front())
    }

    fn go_deeper(&mut self) -> Result<()> {
        let partitions = self.client.partitions()?;
        self.depth = if self.depth == 0 { 32 } else { self.depth * 4 };
        let mut requests = Ordered::new(&self.client.shared);
        for partition in 0..partitions {
            let packet = Packet::AskTIDs { first: 0, last: self.depth, partition };
            requests.push(read(partition, packet))?;
        }
        // A partition that gave all it was asked for may have more below its oldest one.
        let mut safe_from = Tid::ZERO;
        let mut tids = BTreeSet::new();
        while let Some(packet) = requests.pop_packet() {
            let Packet::AnswerTIDs { tids: row } = packet? else { continue };
            if row.len() as u64 >= self.depth {
                let oldest = row.iter().min().copied().unwrap_or_default();
                safe_from = safe_from.max(oldest);
            }
            tids.extend(row);
        }
        self.complete = safe_from == Tid::ZERO;
        let below = |tid: &Tid| self.last_given.is_none_or(|last| *tid < last);
        self.tids = tids.into_iter().filter(|tid| *tid >= safe_from && below(tid)).collect();
        Ok(())
    }
}

impl Iterator for UndoLog {
    type Item = Result<TransactionInfo>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_info().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
