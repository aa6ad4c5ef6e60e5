// SPDX-License-Identifier: GPL-2.0-or-later
//! Does the jobs of the admin: files and e-mails, in a thread of their own, one after the other.

// A driver: jobs block.
#![allow(clippy::disallowed_methods)]

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use neo_common::engine::{CallId, JobId};
use neo_common::logging::NodeName;
use neo_common::master_list;
use neo_common::net::Host;

use crate::app::{Admin, Job};
use crate::smtp;

/// Jobs that wait. The core has at most one e-mail on its way, and lists of masters change rarely.
const QUEUE_LEN: usize = 16;

type Done = (JobId, Result<(), String>);

/// The thread, seen from the event loop.
pub struct Jobs {
    queue: SyncSender<(JobId, Job)>,
    done: Receiver<Done>,
    /// Jobs that could not even be queued.
    refused: Vec<JobId>,
    wake: Box<dyn Fn() + Send>,
}

impl Jobs {
    /// Starts the thread. `wake` tells the event loop that a job is done.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        master_list: Option<PathBuf>,
        wake: impl Fn() + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE_LEN);
        let (results, done) = sync_channel(QUEUE_LEN);
        let tell = wake.clone();
        let node = NodeName::current();
        thread::Builder::new().name("neo-admin-jobs".into()).spawn(move || {
            node.set();
            work(&jobs, &results, master_list, &tell);
        })?;
        Ok(Self { queue, done, refused: Vec::new(), wake: Box::new(wake) })
    }
}

/// Ends with the process.
fn work(
    jobs: &Receiver<(JobId, Job)>,
    results: &SyncSender<Done>,
    master_list: Option<PathBuf>,
    wake: &dyn Fn(),
) {
    for (id, job) in jobs {
        let result = match job {
            Job::SaveMasters(masters) => match &master_list {
                Some(path) => master_list::save(path, &masters),
                None => Ok(()),
            },
            Job::Mail(mail) => smtp::send(&mail),
        };
        if results.send((id, result.map_err(|error| error.to_string()))).is_err() {
            return;
        }
        wake();
    }
}

impl Host<Admin> for Jobs {
    fn submit(&mut self, id: JobId, job: Job) {
        if self.queue.try_send((id, job)).is_err() {
            self.refused.push(id);
            (self.wake)();
        }
    }
    fn done(&mut self) -> Option<Done> {
        let refused = || Some((self.refused.pop()?, Err("too many jobs".into())));
        self.done.try_recv().ok().or_else(refused)
    }
    fn reply(&mut self, _: CallId, reply: Infallible) {
        match reply {}
    }
}
