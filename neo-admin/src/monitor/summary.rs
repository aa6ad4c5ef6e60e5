// SPDX-License-Identifier: GPL-2.0-or-later
//! The report as text and lists of clusters by severity. Upstream: `Monitor.formatSummary` and
//! `_notify`.
//!
//! ```text
//! RUNNING; UP_TO_DATE=3; ltid=040d2c9a8d9101ff (2026-11-21 22:50:33.179633)
//!
//! golfbackup
//!     BACKINGUP; UP_TO_DATE=6; ltid=040d2c9a8d9101ff; lag=0.0
//! ```

use std::collections::BTreeSet;

use neo_common::protocol::ClusterState;
use neo_common::time::DateTime;
use neo_common::time::time_from_tid;
use neo_common::types::Tid;

use super::{Backup, Health, Monitoring, Severity};
use crate::NOT_CONNECTED_MESSAGE;

/// Health of all watched clusters at some moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// How bad this cluster is; its name is in the lists too.
    pub own: (String, Severity),
    /// Names of clusters with a warning.
    pub warnings: Vec<String>,
    /// Names of clusters with a problem.
    pub problems: Vec<String>,
    /// Names of clusters that changed since the last report.
    pub changed: BTreeSet<String>,
    /// For humans.
    pub body: String,
}

impl Report {
    fn add(&mut self, name: &str, severity: Severity) {
        match severity {
            Severity::Ok => {}
            Severity::Warning => self.warnings.push(name.to_owned()),
            Severity::Problem => self.problems.push(name.to_owned()),
        }
    }

    /// The arguments of `AnswerMonitorInformation`, where `None` is this cluster. That e-mails cannot
    /// be sent is a problem of this cluster as well.
    #[allow(clippy::type_complexity)]
    pub(crate) fn into_answer(
        self,
        mail_failure: Option<String>,
    ) -> (Vec<Option<String>>, Vec<Option<String>>, String) {
        let (own, mut severity) = self.own;
        let others = |list: Vec<String>| {
            let others: BTreeSet<_> = list.into_iter().filter(|name| *name != own).collect();
            others.into_iter().map(Some).collect::<Vec<_>>()
        };
        let (mut warnings, mut problems) = (others(self.warnings), others(self.problems));
        let mut body = self.body;
        if let Some(failure) = mail_failure {
            severity = Severity::Problem;
            body.push_str(&failure);
        }
        match severity {
            Severity::Ok => {}
            Severity::Warning => warnings.insert(0, None),
            Severity::Problem => problems.insert(0, None),
        }
        (warnings, problems, body)
    }
}

impl Monitoring {
    /// Makes a report; what changed before is forgotten.
    pub(super) fn report(&mut self, has_primary: bool) -> Report {
        let severity = self.own.severity(false);
        let mut report = Report {
            own: (self.name.clone(), severity),
            warnings: Vec::new(),
            problems: Vec::new(),
            changed: BTreeSet::new(),
            body: NOT_CONNECTED_MESSAGE.into(),
        };
        report.add(&self.name, severity);
        if std::mem::take(&mut self.changed) {
            report.changed.insert(self.name.clone());
        }
        if !has_primary {
            return report;
        }
        let position = position(&self.own);
        report.body = format(&self.own, position, |tid| format!(" ({})", DateTime::from_tid(tid)));
        for backup in &mut self.backups {
            let text = backup.format(position, self.max_lag);
            report.body.push_str(&format!("\n\n{}\n    {text}", backup.name));
            let lagging = if backup.lagging { Severity::Warning } else { Severity::Ok };
            report.add(&backup.name, backup.health.severity(true).max(lagging));
            if std::mem::take(&mut backup.changed) {
                report.changed.insert(backup.name.clone());
            }
        }
        report
    }
}

impl Backup {
    /// Its line of the summary, and whether it is late with respect to where its upstream is.
    fn format(&mut self, upstream: Option<Tid>, max_lag: f64) -> String {
        let backing_up = self.health.state == Some(ClusterState::BackingUp);
        let upstream = upstream.filter(|_| backing_up);
        let position = position(&self.health);
        let mut lagging = None;
        let text = format(&self.health, position, |tid| match upstream {
            None => format!(" ({})", DateTime::from_tid(tid)),
            Some(upstream) => {
                let lag_us = time_from_tid(upstream) - time_from_tid(tid);
                if lag_us != 0 || tid >= upstream {
                    lagging = Some(max_lag < lag_us as f64 / 1e6);
                    format!("; lag={}", seconds(lag_us))
                } else {
                    // Less than the resolution of dates.
                    lagging = Some(max_lag <= 0.0);
                    "; lag=ε".into()
                }
            }
        });
        if let Some(lagging) = lagging
            && std::mem::replace(&mut self.lagging, lagging) != lagging
        {
            self.changed = true;
        }
        text
    }
}

/// Last transaction that clients of the cluster can see; `None` if it serves none, or was not asked
/// yet.
fn position(health: &Health) -> Option<Tid> {
    match health.state {
        Some(ClusterState::BackingUp) => health.backup_tid,
        Some(ClusterState::Running) => health.last_tid,
        _ => None,
    }
}

fn format(health: &Health, position: Option<Tid>, extra: impl FnOnce(Tid) -> String) -> String {
    let mut text = health.state.map_or_else(|| "None".into(), |state| state.to_string());
    if let Some(cells) = health.cells.as_ref().filter(|cells| !cells.is_empty()) {
        let cells: Vec<_> = cells.iter().map(|(state, count)| format!("{state}={count}")).collect();
        text.push_str(&format!("; {}", cells.join(", ")));
    }
    if health.down != 0 {
        text.push_str(&format!("; DOWN={}", health.down));
    }
    if let Some(tid) = position {
        text.push_str(&format!("; ltid={tid}{}", extra(tid)));
    }
    text
}

/// Microseconds as seconds, like Python prints them: shortest form, at least one decimal, and an
/// exponent below 0.0001.
fn seconds(us: i64) -> String {
    match us.unsigned_abs() {
        0 | 100.. => format!("{:?}", us as f64 / 1e6),
        digits => {
            let sign = if us < 0 { "-" } else { "" };
            match (digits / 10, digits % 10) {
                (0, unit) => format!("{sign}{unit}e-06"),
                (ten, 0) => format!("{sign}{ten}e-05"),
                (ten, unit) => format!("{sign}{ten}.{unit}e-05"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neo_common::protocol::CellState;

    /// What Python's `str` gives for `us / 10**6`.
    #[test]
    fn lags_print_like_upstream() {
        let cases = [
            (0, "0.0"),
            (1, "1e-06"),
            (-9, "-9e-06"),
            (20, "2e-05"),
            (99, "9.9e-05"),
            (-100, "-0.0001"),
            (123, "0.000123"),
            (1_500_000, "1.5"),
            (3_600_000_000, "3600.0"),
            (86_400_000_001, "86400.000001"),
        ];
        for (us, text) in cases {
            assert_eq!(seconds(us), text);
        }
    }

    fn monitoring(max_lag: f64) -> Monitoring {
        let names = ["near", "far"].map(String::from).to_vec();
        let mut m = Monitoring::new("main".into(), names, max_lag, None);
        m.own = Health {
            state: Some(ClusterState::Running),
            down: 0,
            cells: Some([(CellState::UpToDate, 3)].into()),
            last_tid: Some(Tid::new(0x040d_2c9a_8d91_01ff)),
            backup_tid: None,
        };
        m.changed = true;
        let near = &mut m.backups[0].health;
        *near = Health {
            state: Some(ClusterState::BackingUp),
            backup_tid: m.own.last_tid,
            ..m.own.clone()
        };
        m
    }

    /// A backup that follows and one that never reported: the lists and the text of upstream.
    #[test]
    fn report_of_two_backups() {
        let mut m = monitoring(0.0);
        let report = m.report(true);
        assert_eq!(
            report.body,
            "RUNNING; UP_TO_DATE=3; ltid=040d2c9a8d9101ff (2026-11-21 22:50:33.179633)\n\
             \n\
             near\n    BACKINGUP; UP_TO_DATE=3; ltid=040d2c9a8d9101ff; lag=0.0\n\
             \n\
             far\n    None"
        );
        assert_eq!((&report.own.1, &report.warnings[..]), (&Severity::Ok, &[][..]));
        assert_eq!(report.problems, ["far"]);
        assert_eq!(report.changed, ["main".to_owned()].into());
        assert_eq!(m.report(true).changed, BTreeSet::new());
        let (warnings, problems, _) = report.clone().into_answer(None);
        assert_eq!((warnings, problems), (vec![], vec![Some("far".into())]));
        let (_, problems, body) = report.into_answer(Some("\n\nno mail".into()));
        assert_eq!(problems, [None, Some("far".into())]);
        assert!(body.ends_with("None\n\nno mail"), "{body}");
    }

    /// Lag counts in microseconds, or as ε below, and a change of it is told once.
    #[test]
    fn lag() {
        let last = 0x040d_2c9a_8d91_01ff;
        // Behind by one tid; by 2^32 / 60 tids, which is a second.
        for (behind, max_lag, text, lagging) in [
            (0, 0.0, "0.0", false),
            (1, 0.0, "ε", true),
            (1, 0.5, "ε", false),
            (0x0444_4444, 0.5, "1.0", true),
            (0x0444_4444, 2.0, "1.0", false),
        ] {
            let mut m = monitoring(max_lag);
            m.backups[0].health.backup_tid = Some(Tid::new(last - behind));
            let report = m.report(true);
            assert!(report.body.contains(&format!("; lag={text}\n")), "{}", report.body);
            let expected: &[&str] = if lagging { &["near"] } else { &[] };
            assert_eq!(report.warnings, expected);
            assert_eq!(report.changed.contains("near"), lagging);
            assert_eq!(m.report(true).changed, BTreeSet::new());
        }
        // A backup that left the backup mode has a date, not a lag.
        let mut m = monitoring(0.0);
        m.backups[0].health.state = Some(ClusterState::Running);
        let report = m.report(true);
        assert!(report.body.contains("near\n    RUNNING; UP_TO_DATE=3; ltid=040d2c9a8d9101ff ("));
        assert_eq!(report.warnings, ["near"]);
    }

    /// Without primary master nothing else is known.
    #[test]
    fn report_without_primary() {
        let mut m = monitoring(0.0);
        m.own.state = None;
        let report = m.report(false);
        assert_eq!(report.body, NOT_CONNECTED_MESSAGE);
        assert_eq!(report.problems, ["main"]);
        let (warnings, problems, _) = report.into_answer(None);
        assert_eq!((warnings, problems), (vec![], vec![None]));
    }
}
