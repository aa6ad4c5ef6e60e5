// SPDX-License-Identifier: GPL-2.0-or-later
//! Health of this cluster and of its backups. Upstream: admin/app.py, `Monitor` and `_notify`.
//!
//! Whenever something changes or `neoctl print summary` asks, a *round* begins: the last ids of all
//! operational clusters are asked, and once all have answered the result is reported, to those who
//! asked and by e-mail. Changes during a round are part of its report. Clusters that do not answer
//! within [`ROUND_DELAY`] are disconnected.
//!
//! ```text
//!            change, question                       all answered
//!     idle ------------------> waiting for last ids -------------> report --> idle
//!      ^                            |  nobody answers any more                 |
//!      |                            +--> disconnect those who do not           |
//!      +------------------ later, if backups are watched by mail <-------------+
//! ```
//!
//! A cluster whose state or master is unknown is reported without asking anything.

mod health;
mod summary;
mod upstream;

use std::collections::BTreeSet;
use std::time::Duration;

use neo_common::engine::{ConnId, Io};
use neo_common::protocol::{ClusterState, MsgId, Packet};
use neo_common::types::Tid;

use crate::app::{Admin, After, Job, Ticket, Timer};
use crate::mail::{MailConfig, Mailer};

pub use health::{Cells, Change, Health, Severity};
pub use summary::Report;
pub use upstream::Upstream;

/// How long clusters may take to answer. Upstream: `MONITOR_TIMEOUT`.
pub const ROUND_DELAY: Duration = Duration::from_secs(60);

/// How often backups are checked for lag, and failed mails sent again. Upstream: `_notify`.
pub const CHECK_DELAY: Duration = Duration::from_secs(600);

/// A cluster that is watched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Source {
    /// This one.
    Own,
    /// The backup with this index.
    Backup(usize),
}

/// A backup cluster, as its admin tells.
#[derive(Clone, Debug, Default)]
pub struct Backup {
    name: String,
    conn: Option<ConnId>,
    health: Health,
    /// Whether it was later than allowed when last reported.
    lagging: bool,
    /// Since the last report.
    changed: bool,
}

/// The health of all watched clusters.
#[derive(Debug)]
pub struct Monitoring {
    name: String,
    own: Health,
    /// Since the last report.
    changed: bool,
    /// In the order of the configuration.
    backups: Vec<Backup>,
    max_lag: f64,
    /// Whose answers the current round waits for.
    waiting: BTreeSet<Source>,
    /// Who wants the next report.
    asking: Vec<(ConnId, MsgId)>,
    /// Ready to be sent.
    answers: Vec<(ConnId, MsgId, Packet)>,
    mailer: Option<Mailer>,
}

impl Monitoring {
    /// Knows nothing yet.
    pub(crate) fn new(
        name: String,
        backups: Vec<String>,
        max_lag: f64,
        mail: Option<MailConfig>,
    ) -> Self {
        let mut seen = BTreeSet::new();
        let backups = backups.into_iter().filter(|name| seen.insert(name.clone()));
        let backups = backups.map(|name| Backup { name, ..Backup::default() }).collect();
        Self {
            name,
            own: Health::default(),
            changed: false,
            backups,
            max_lag,
            waiting: BTreeSet::new(),
            asking: Vec::new(),
            answers: Vec::new(),
            mailer: mail.map(Mailer::new),
        }
    }

    /// State of this cluster.
    pub fn cluster_state(&self) -> Option<ClusterState> {
        self.own.state
    }

    // Questions.

    /// Somebody wants a report.
    pub(crate) fn ask(&mut self, io: &mut Io<'_, Admin>, primary: ConnId, conn: ConnId, id: MsgId) {
        let is_coming = !self.asking.is_empty() || !self.waiting.is_empty();
        self.asking.push((conn, id));
        if !is_coming {
            self.begin(io, Some(primary));
        }
    }
    /// That peer is gone.
    pub(crate) fn forget_asking(&mut self, conn: ConnId) {
        self.asking.retain(|(asking, _)| *asking != conn);
        self.answers.retain(|(asking, ..)| *asking != conn);
    }
    /// The answers that are ready.
    pub(crate) fn take_answers(&mut self) -> Vec<(ConnId, MsgId, Packet)> {
        std::mem::take(&mut self.answers)
    }

    // This cluster.

    /// Takes what changed in this cluster; what really did is returned.
    pub(crate) fn own_changed(
        &mut self,
        io: &mut Io<'_, Admin>,
        primary: Option<ConnId>,
        change: Change,
    ) -> Option<Change> {
        let change = self.own.apply(change)?;
        self.changed = true;
        self.begin_after_change(io, primary);
        Some(change)
    }
    /// All that is known of this cluster.
    pub(crate) fn own_change(&self) -> Change {
        self.own.to_change()
    }
    /// Answer to our question.
    pub(crate) fn own_backup_tid(&mut self, tid: Option<Tid>) {
        self.own.backup_tid = tid;
    }
    /// Answer to our question, the last one for this cluster.
    pub(crate) fn own_last_tid(
        &mut self,
        io: &mut Io<'_, Admin>,
        primary: Option<ConnId>,
        tid: Tid,
    ) {
        self.own.last_tid = Some(tid);
        self.answered(io, primary, Source::Own);
    }
    /// There is no primary master any more: the round is over. What changed is returned.
    pub(crate) fn primary_lost(&mut self, io: &mut Io<'_, Admin>) -> Option<Change> {
        self.waiting.clear();
        let change = self.own.apply(Change::of_state(None));
        self.changed |= change.is_some();
        io.cancel_timer(Timer::Monitor);
        self.report_if_complete(io, None);
        change
    }

    // Backup clusters.

    /// The admin of a backup cluster identified itself.
    pub(crate) fn backup_connected(&mut self, name: &str, conn: ConnId) -> Result<(), String> {
        let backup = self.backups.iter_mut().find(|backup| backup.name == name);
        // Quotes as upstream's.
        let backup = backup.ok_or_else(|| format!("unknown backup cluster '{name}'"))?;
        if backup.conn.is_some() {
            return Err("already connected".into());
        }
        backup.conn = Some(conn);
        Ok(())
    }
    fn backup(&mut self, conn: ConnId) -> Option<(usize, &mut Backup)> {
        self.backups.iter_mut().enumerate().find(|(_, backup)| backup.conn == Some(conn))
    }
    /// It tells what changed in its cluster.
    pub(crate) fn backup_changed(
        &mut self,
        io: &mut Io<'_, Admin>,
        primary: Option<ConnId>,
        conn: ConnId,
        change: Change,
    ) {
        if let Some((_, backup)) = self.backup(conn)
            && backup.health.apply(change).is_some()
        {
            backup.changed = true;
            self.begin_after_change(io, primary);
        }
    }
    /// Its answer to our question.
    pub(crate) fn backup_backup_tid(&mut self, conn: ConnId, tid: Option<Tid>) {
        if let Some((_, backup)) = self.backup(conn) {
            backup.health.backup_tid = tid;
        }
    }
    /// Its answer to our question, the last one for this cluster.
    pub(crate) fn backup_last_tid(
        &mut self,
        io: &mut Io<'_, Admin>,
        primary: Option<ConnId>,
        conn: ConnId,
        tid: Tid,
    ) {
        if let Some((index, backup)) = self.backup(conn) {
            backup.health.last_tid = Some(tid);
            self.answered(io, primary, Source::Backup(index));
        }
    }
    /// Its connection is gone: nothing is known of its cluster any more. Upstream does not count
    /// this as a change, so that nobody is told that a backup vanished.
    pub(crate) fn backup_lost(
        &mut self,
        io: &mut Io<'_, Admin>,
        primary: Option<ConnId>,
        conn: ConnId,
    ) {
        let Some((index, backup)) = self.backup(conn) else { return };
        let name = std::mem::take(&mut backup.name);
        log::warn!("lost the admin of backup cluster {name:?}");
        *backup = Backup { name, changed: true, ..Backup::default() };
        if self.waiting.contains(&Source::Backup(index)) {
            self.answered(io, primary, Source::Backup(index));
        } else if !io.is_exiting() {
            self.report_if_complete(io, primary);
        }
    }

    // Rounds.

    fn begin_after_change(&mut self, io: &mut Io<'_, Admin>, primary: Option<ConnId>) {
        if self.waiting.is_empty() {
            io.cancel_timer(Timer::Monitor);
            self.begin(io, primary);
        }
    }

    /// Asks last ids to all operational clusters, if this one is.
    fn begin(&mut self, io: &mut Io<'_, Admin>, primary: Option<ConnId>) {
        if let Some(primary) = primary
            && self.own.is_operational()
        {
            ask_last_ids(io, primary, &self.own);
            self.waiting.insert(Source::Own);
            for (index, backup) in self.backups.iter().enumerate() {
                if let Some(conn) = backup.conn.filter(|_| backup.health.is_operational()) {
                    ask_last_ids(io, conn, &backup.health);
                    self.waiting.insert(Source::Backup(index));
                }
            }
            io.set_timer(Timer::Monitor, ROUND_DELAY);
        }
        self.report_if_complete(io, primary);
    }

    /// A cluster answered, or never will.
    fn answered(&mut self, io: &mut Io<'_, Admin>, primary: Option<ConnId>, source: Source) {
        if self.waiting.remove(&source) {
            if self.waiting.is_empty() {
                io.cancel_timer(Timer::Monitor);
            }
            self.report_if_complete(io, primary);
        }
    }

    /// Called when [`Timer::Monitor`] fires.
    pub(crate) fn timer(&mut self, io: &mut Io<'_, Admin>, primary: Option<ConnId>) {
        if self.waiting.is_empty() {
            self.begin(io, primary);
            return;
        }
        for source in &self.waiting {
            let conn = match source {
                Source::Own => primary,
                Source::Backup(index) => self.backups[*index].conn,
            };
            if let Some(conn) = conn {
                log::error!("no answer within {ROUND_DELAY:?}, disconnecting {conn:?}");
                io.close(conn);
            }
        }
    }

    fn report_if_complete(&mut self, io: &mut Io<'_, Admin>, primary: Option<ConnId>) {
        // A master that was just found will soon tell the state.
        let is_starting = primary.is_some() && self.own.state.is_none();
        if !self.waiting.is_empty() || is_starting {
            return;
        }
        let report = self.report(primary.is_some());
        self.mail(io, &report);
        if self.asking.is_empty() {
            return;
        }
        let failure = self.mailer.as_ref().and_then(Mailer::failure);
        let (warnings, problems, summary) = report.into_answer(failure);
        for (conn, id) in std::mem::take(&mut self.asking) {
            let (warnings, problems) = (warnings.clone(), problems.clone());
            let summary = summary.clone();
            let answer = Packet::AnswerMonitorInformation { warnings, problems, summary };
            self.answers.push((conn, id, answer));
        }
    }

    // E-mail.

    fn mail(&mut self, io: &mut Io<'_, Admin>, report: &Report) {
        let Some(mailer) = &mut self.mailer else { return };
        if let Some(mail) = mailer.compose(report, io.now().realtime_us) {
            io.submit(Job::Mail(mail), After::Mail);
            // Without backups, nothing but a change is worth another look.
            let operational = |backup: &Backup| backup.health.is_operational();
            if !(self.own.is_operational() && self.backups.iter().any(operational)) {
                return;
            }
        }
        io.set_timer(Timer::Monitor, CHECK_DELAY);
    }

    /// An e-mail was sent or not.
    pub(crate) fn mail_done(
        &mut self,
        io: &mut Io<'_, Admin>,
        primary: Option<ConnId>,
        done: Result<(), String>,
    ) {
        let Some(mailer) = &mut self.mailer else { return };
        if let Err(e) = &done {
            log::error!("e-mail not sent: {e}");
            if self.waiting.is_empty() {
                io.set_timer(Timer::Monitor, CHECK_DELAY);
            }
        }
        if mailer.done(done) && self.waiting.is_empty() {
            // Something changed in the meantime.
            self.report_if_complete(io, primary);
        }
    }
}

/// Upstream: `Monitor.askLastIds`.
fn ask_last_ids(io: &mut Io<'_, Admin>, conn: ConnId, health: &Health) {
    if health.state == Some(ClusterState::BackingUp) {
        io.ask(conn, Packet::AskRecovery {}, Ticket::LastIds);
    }
    io.ask(conn, Packet::AskLastTransaction {}, Ticket::LastIds);
}
