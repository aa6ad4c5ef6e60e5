// SPDX-License-Identifier: GPL-2.0-or-later
//! How far a copy is: a bar on a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use neo_client::filestorage::{Progress, Unit};

/// A bar that follows a source.
pub struct Bar(ProgressBar);

impl Bar {
    /// Shows what is done, unless `quiet` or standard error is not a terminal.
    pub fn new(what: &'static str, progress: Progress, quiet: bool) -> Self {
        // Tids measure time, not data: only a proportion can be shown.
        let template = match progress.unit {
            Unit::Bytes => {
                "{msg} {bar:32} {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} eta {eta}"
            }
            Unit::Tids => "{msg} {bar:32} {percent:>3}% eta {eta}",
        };
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(progress.total), target);
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        bar.set_message(what);
        Self(bar)
    }
    /// Moves the bar.
    pub fn update(&self, progress: Progress) {
        // Known only once the source was asked something.
        if self.0.length() != Some(progress.total) {
            self.0.set_length(progress.total);
        }
        self.0.set_position(progress.done);
    }
    /// Everything is done.
    pub fn finish(self) {
        self.0.finish();
    }
}
