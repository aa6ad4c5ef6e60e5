// SPDX-License-Identifier: GPL-2.0-or-later
//! Sockets and threads of a client.

use std::sync::Arc;

use neo_common::types::{Oid, Tid};

use crate::api::Listener;
use crate::call::{Call, Record, Reply};
use crate::error::{Error, Result};
use crate::options::Options;

/// What all clones of a client share.
pub(crate) struct Shared {
    options: Options,
}

impl Shared {
    pub fn open(options: Options) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { options }))
    }
    pub fn options(&self) -> &Options {
        &self.options
    }
    pub fn call(&self, _: Call) -> Reply {
        Err(Error::Unreachable)
    }
    pub fn session(self: &Arc<Self>) -> Session {
        Session {}
    }
    pub fn close(&self) {}
    pub fn set_listener(&self, _: Arc<dyn Listener>) {}
    pub fn try_cached(&self, _: Oid, _: Option<Tid>) -> Option<Record> {
        None
    }
    pub fn last_tid(&self) -> Option<Tid> {
        None
    }
}

/// Calls that one thread has under way.
pub(crate) struct Session {}

impl Session {
    pub fn submit(&mut self, _: Call) -> Result<u32> {
        Err(Error::Unreachable)
    }
    pub fn flush(&mut self) {}
    pub fn wait(&mut self) -> Result<(u32, Reply)> {
        Err(Error::Unreachable)
    }
}
