// SPDX-License-Identifier: GPL-2.0-or-later
//! Knows whether this process was forked since.
//!
//! A child has the memory of its parent but none of its threads, and shares its sockets: using a
//! client there would steal answers of the parent, and locks may be held by threads that do not
//! exist. Asking for the process id is a system call, too slow for a cache hit, so the C library is
//! asked to call a function in each child, which increments a number.
//!
//! This is the only unsafe code of this crate: `pthread_atfork` has no safe wrapper. The function
//! that is registered only touches an atomic, which is allowed in a child of a process with threads.

#![allow(unsafe_code)]

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);
static REGISTER: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The process in which something was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process(u64);

impl Process {
    /// This process.
    pub fn current() -> Self {
        REGISTER.call_once(|| {
            // SAFETY: the handler is a function that lives as long as the process, and that only
            // increments an atomic.
            let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            if error != 0 {
                // Out of memory: forks are not noticed.
                log::warn!("forks can not be noticed: error {error}");
            }
        });
        Self(FORKS.load(Ordering::Relaxed))
    }
    /// Whether this is still the same process.
    pub fn is_current(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }
}
