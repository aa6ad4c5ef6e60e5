// SPDX-License-Identifier: GPL-2.0-or-later
//! Notifications by e-mail: when to send one, and what is in it. Upstream: `_notify`.
//!
//! One is sent when the health of a cluster changed, and again later if the last one could not be
//! sent; then it says so. Sending is the job of another thread.

use std::collections::BTreeSet;

use neo_common::config::Address;
use neo_common::config::admin::SmtpAuth;
use neo_common::time::DateTime;

use crate::monitor::Report;

/// Who is told, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailConfig {
    /// Who is told.
    pub recipients: Vec<String>,
    /// Address of the sender; the name is made of that of the cluster.
    pub sender: String,
    /// Name of this host.
    pub host: String,
    /// Mail server.
    pub smtp: Address,
    /// Whether the connection must be encrypted.
    pub starttls: bool,
    /// User and password.
    pub auth: Option<SmtpAuth>,
}

/// An e-mail to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mail {
    /// Who gets it and how.
    pub config: MailConfig,
    /// Headers, empty line, text; lines end with LF.
    pub message: String,
}

/// Decides about e-mails. At most one is on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mailer {
    config: MailConfig,
    /// Date of the e-mail that is on its way.
    sending: Option<String>,
    /// What changed since that e-mail.
    changed: BTreeSet<String>,
    /// When and why the last one could not be sent.
    failure: Option<String>,
}

impl Mailer {
    /// Nothing was sent yet.
    pub fn new(config: MailConfig) -> Self {
        Self { config, sending: None, changed: BTreeSet::new(), failure: None }
    }

    /// Text about the last failure, to be appended to the report.
    pub fn failure(&self) -> Option<String> {
        self.failure.clone()
    }

    /// The e-mail to send now about this report, if any.
    pub fn compose(&mut self, report: &Report, realtime_us: u64) -> Option<Mail> {
        self.changed.extend(report.changed.iter().cloned());
        if self.sending.is_some() || (self.changed.is_empty() && self.failure.is_none()) {
            return None;
        }
        let changed = std::mem::take(&mut self.changed);
        let date = rfc2822(realtime_us);
        let cluster = &report.own.0;
        let message = format!(
            "Date: {date}\n\
             Subject: NEO monitoring: {}\n\
             From: NEO {} <{}>\n\
             To: {}\n\
             MIME-Version: 1.0\n\
             Content-Type: text/plain; charset=\"utf-8\"\n\
             Content-Transfer-Encoding: 8bit\n\
             \n\
             {}{}\n",
            header(&subject(report, &changed)),
            header(cluster),
            header(&self.config.sender),
            header(&self.config.recipients.join(", ")),
            report.body,
            self.failure.as_deref().unwrap_or_default(),
        );
        self.sending = Some(date);
        Some(Mail { config: self.config.clone(), message })
    }

    /// The e-mail was sent or not. Whether there is something new to tell.
    pub fn done(&mut self, done: Result<(), String>) -> bool {
        let date = self.sending.take().unwrap_or_default();
        self.failure =
            done.err().map(|e| format!("\n\nA notification could not be sent at {date}:\n\n{e}"));
        !self.changed.is_empty()
    }
}

/// The worst severity, and the clusters that have one and changed.
fn subject(report: &Report, changed: &BTreeSet<String>) -> String {
    let mut clusters = report.warnings.clone();
    let word = if !report.problems.is_empty() {
        clusters.extend(report.problems.iter().cloned());
        "PROBLEM"
    } else if !clusters.is_empty() {
        "WARNING"
    } else {
        return "OK".into();
    };
    let clusters: BTreeSet<_> =
        clusters.into_iter().filter(|name| changed.contains(name)).collect();
    if clusters.is_empty() {
        return word.into();
    }
    format!("{word} ({})", clusters.into_iter().collect::<Vec<_>>().join(", "))
}

/// A value that cannot begin another header.
fn header(value: &str) -> String {
    value.replace(['\r', '\n'], " ")
}

/// `Sat, 21 Nov 2026 22:52:30 -0000`
fn rfc2822(realtime_us: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]; // from 1970-01-01
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let day = DAYS[(realtime_us / 86_400_000_000 % 7) as usize];
    let t = DateTime::from_unix_us(i64::try_from(realtime_us).unwrap_or(i64::MAX));
    let month = MONTHS[usize::from(t.month.clamp(1, 12) - 1)];
    format!(
        "{day}, {:02} {month} {} {:02}:{:02}:{:02} -0000",
        t.day, t.year, t.hour, t.minute, t.second
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Severity;

    fn config() -> MailConfig {
        MailConfig {
            recipients: vec!["ops@example.com".into(), "dba@example.com".into()],
            sender: "neo@example.com".into(),
            host: "localhost".into(),
            smtp: Address { host: "localhost".into(), port: 25 },
            starttls: false,
            auth: None,
        }
    }
    fn report(warnings: &[&str], problems: &[&str], changed: &[&str]) -> Report {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Report {
            own: ("main".into(), Severity::Ok),
            warnings: list(warnings),
            problems: list(problems),
            changed: changed.iter().map(ToString::to_string).collect(),
            body: "RUNNING".into(),
        }
    }

    #[test]
    fn subjects() {
        let of = |r: Report| subject(&r, &r.changed);
        assert_eq!(of(report(&[], &[], &["main"])), "OK");
        assert_eq!(of(report(&["b"], &[], &["main"])), "WARNING");
        assert_eq!(of(report(&["b"], &[], &["b"])), "WARNING (b)");
        assert_eq!(of(report(&["z", "c"], &["b"], &["b", "z", "main"])), "PROBLEM (b, z)");
    }

    /// The message is upstream's, and no name can add a header.
    #[test]
    fn message() {
        let mut mailer = Mailer::new(config());
        let mut report = report(&[], &["main"], &["main"]);
        report.own.0 = "ma\nBcc: x".into();
        let mail = mailer.compose(&report, 1_795_301_550_000_000).unwrap();
        assert_eq!(
            mail.message,
            "Date: Sat, 21 Nov 2026 22:52:30 -0000\n\
             Subject: NEO monitoring: PROBLEM (main)\n\
             From: NEO ma Bcc: x <neo@example.com>\n\
             To: ops@example.com, dba@example.com\n\
             MIME-Version: 1.0\n\
             Content-Type: text/plain; charset=\"utf-8\"\n\
             Content-Transfer-Encoding: 8bit\n\n\
             RUNNING\n"
        );
    }

    /// No change, no mail; one at a time; what could not be sent is sent again and says so.
    #[test]
    fn when() {
        let mut mailer = Mailer::new(config());
        assert_eq!(mailer.compose(&report(&[], &[], &[]), 0), None);
        assert!(mailer.compose(&report(&[], &[], &["main"]), 0).is_some());
        assert_eq!(mailer.compose(&report(&["b"], &[], &["b"]), 0), None);
        assert!(mailer.done(Err("refused".into())), "b changed in the meantime");
        let mail = mailer.compose(&report(&["b"], &[], &[]), 0).unwrap();
        assert!(mail.message.contains("Subject: NEO monitoring: WARNING (b)\n"));
        let failure = "RUNNING\n\nA notification could not be sent at \
                       Thu, 01 Jan 1970 00:00:00 -0000:\n\nrefused\n";
        assert!(mail.message.ends_with(failure), "{}", mail.message);
        assert!(!mailer.done(Err("again".into())));
        assert!(mailer.compose(&report(&["b"], &[], &[]), 0).is_some());
        assert!(!mailer.done(Ok(())));
        assert_eq!(mailer.failure(), None);
        assert_eq!(mailer.compose(&report(&["b"], &[], &[]), 0), None);
    }
}
