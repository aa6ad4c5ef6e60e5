// SPDX-License-Identifier: GPL-2.0-or-later
//! Whether a transaction is committed, asked by who does not wait for its end: what a client does with the
//! file of a blob that another one left.

use neo_common::protocol::Packet;

use super::session::{Result, Session};
use crate::model::{AttemptId, Outcome, Violation};

/// Among how many of the last transactions one is chosen: the others ended long ago.
const RECENT_COUNT: usize = 30;

impl Session {
    /// Asks for transactions of anybody, and for an own one as long as it is voted and not finished.
    pub(super) async fn outcomes(&mut self) -> Result<()> {
        let txn = self.begin().await?;
        let asked = match self.vote(&txn).await {
            Ok(()) => self.ask_outcome(txn.attempt).await,
            Err(error) => Err(error),
        };
        if asked.is_err() || self.prng.one_in(2) {
            self.abort(&txn).await;
        } else {
            self.finish(&txn).await?;
        }
        asked?;
        for _ in 0..1 + self.prng.below(4) {
            let attempts: Vec<AttemptId> = {
                let scene = self.scene.clone();
                let scene = scene.get();
                scene.model.attempts().map(|(id, _)| id).rev().take(RECENT_COUNT).collect()
            };
            if let Some(id) = self.prng.choose(&attempts).copied() {
                self.ask_outcome(id).await?;
            }
        }
        Ok(())
    }

    async fn ask_outcome(&mut self, id: AttemptId) -> Result<()> {
        let (ttid, before) = {
            let scene = self.scene.get();
            let attempt = scene.model.attempt(id);
            (attempt.ttid, attempt.outcome)
        };
        let partition = ttid.partition(self.partitions().await?);
        let answer = self.read(partition, Packet::AskFinalTID { ttid }).await?;
        let mut scene = self.scene.get();
        match (answer, before) {
            (Packet::AnswerFinalTID { tid: Some(tid) }, _) => {
                let checked = scene.model.learn(tid);
                scene.check(checked);
            }
            // A former primary master may have storages that do not know it yet.
            (Packet::AnswerFinalTID { tid: None }, Outcome::Committed(tid))
                if scene.has_one_master =>
            {
                let text = format!("{ttid} was committed as {tid}, and is not any more");
                scene.violations.push(Violation(text));
            }
            (Packet::AnswerFinalTID { tid: None }, _) => {}
            (other, _) => {
                let text = format!("whether {ttid} is committed: {other:?}");
                scene.violations.push(Violation(text));
            }
        }
        Ok(())
    }
}
