// SPDX-License-Identifier: GPL-2.0-or-later
//! Does the jobs of the master: it writes the dynamic master list. That is a small file which
//! changes when masters come or go, so it is written at once.

use std::convert::Infallible;
use std::path::PathBuf;

use neo_common::engine::{CallId, JobId};
use neo_common::master_list;
use neo_common::net::Host;

use crate::app::{Job, Master};

/// Writes the dynamic master list, if there is one.
#[derive(Debug, Default)]
pub struct Jobs {
    path: Option<PathBuf>,
    done: Vec<JobId>,
}

impl Jobs {
    /// For the list at `path`.
    pub const fn new(path: Option<PathBuf>) -> Self {
        Self { path, done: Vec::new() }
    }
}

impl Host<Master> for Jobs {
    fn submit(&mut self, id: JobId, Job::SaveMasters(masters): Job) {
        if let Some(path) = &self.path
            && let Err(error) = master_list::save(path, &masters)
        {
            log::error!("failed to save the list of masters to {}: {error}", path.display());
        }
        self.done.push(id);
    }
    fn done(&mut self) -> Option<(JobId, ())> {
        self.done.pop().map(|id| (id, ()))
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}
