// SPDX-License-Identifier: GPL-2.0-or-later
//! Does the jobs of a storage: the lanes of its database, and the dynamic master list.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use mio::Waker;
use neo_common::engine::{CallId, JobId};
use neo_common::master_list;
use neo_common::net::Host;

use crate::app::{Done, Job, Storage};
use crate::database::lane::{Lanes, Options};
use crate::database::{Database, Error};

/// The threads of the database, seen from the event loop.
pub struct Jobs {
    lanes: Lanes<JobId>,
    master_list: Option<PathBuf>,
    /// Jobs that were done at once.
    saved: Vec<(JobId, Done)>,
}

impl Jobs {
    /// Starts the lanes. `waker` is that of the event loop.
    ///
    /// # Errors
    /// Those of the database, or if threads can not be started.
    pub fn start(
        database: Box<dyn Database>,
        master_list: Option<PathBuf>,
        waker: Arc<Waker>,
    ) -> Result<Self, Error> {
        // Waking up may fail only if the loop is gone.
        let notify = move || drop(waker.wake());
        let lanes = Lanes::start(database, &Options::new(Arc::new(notify)))?;
        Ok(Self { lanes, master_list, saved: Vec::new() })
    }
}

impl Host<Storage> for Jobs {
    fn submit(&mut self, id: JobId, job: Job) {
        match job {
            Job::Database(job) => self.lanes.submit(id, job),
            // A small file that changes when masters come or go: written at once.
            Job::SaveMasters(masters) => {
                let saved = match &self.master_list {
                    Some(path) => master_list::save(path, &masters),
                    None => Ok(()),
                };
                let saved = saved.map_err(|error| error.to_string());
                self.saved.push((id, Done::MastersSaved(saved)));
            }
        }
    }
    fn done(&mut self) -> Option<(JobId, Done)> {
        if let Some(saved) = self.saved.pop() {
            return Some(saved);
        }
        self.lanes.poll().map(|(id, done)| (id, Done::Database(done)))
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}
