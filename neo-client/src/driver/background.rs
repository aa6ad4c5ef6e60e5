// SPDX-License-Identifier: GPL-2.0-or-later
//! The background thread: calls the listener, saves the list of masters, and leads when no caller
//! does.
//!
//! Waking it up each time a caller stops leading would cost more than a load. So as long as callers
//! lead now and then, it only looks again after [`GRACE`]: notifications and timers may wait that
//! long. When they do not any more, it leads until a caller comes: that caller follows once, then
//! leads itself. An idle client costs nothing.
//!
//! ```text
//!            callers led meanwhile             a caller leads now
//!   asleep for GRACE <------> look ------> asleep until it leaves
//!                               | nobody led, and nobody is about to
//!                               v
//!                             lead, until a caller comes or there are events
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use neo_common::master_list;

use super::{Background, Guard, Leader, Shared, unlock};
use crate::call::{Call, Event};
use crate::error::{Error, Result};

/// How long notifications may wait while callers are busy with something else.
const GRACE: Duration = Duration::from_millis(5);

pub(super) fn start(shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let run = move || {
        // An error means that the client is closed, or that another thread panicked.
        if let Err(error) = run(&shared)
            && !matches!(error, Error::Closed)
        {
            log::error!("the background thread of a client ends: {error}");
        }
    };
    Builder::new().name("neo-client".into()).spawn(run).map_err(Error::foreign)
}

/// What to do when there is nothing to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// A caller leads: sleep until it leaves.
    Wait,
    /// Callers come and go: sleep for [`GRACE`].
    Nap,
    /// Nobody else does it.
    Lead,
}

impl Step {
    /// - `led`: a caller leads.
    /// - `followed`: callers sleep, one of which is being woken up to lead. To lead before it did
    ///   would end at once, because callers come first, and would begin again at once, without
    ///   ever freeing the mutex that the caller needs.
    /// - `turned`: callers led or followed since the last look.
    /// - `due`: there is something to read or a timer to run, without any event of a socket.
    const fn choose(led: bool, followed: bool, turned: bool, due: bool) -> Self {
        if led {
            Self::Wait
        } else if followed || (turned && !due) {
            Self::Nap
        } else {
            Self::Lead
        }
    }
}

fn run(shared: &Shared) -> Result<()> {
    let mut state = shared.lock()?;
    let mut seen = state.turns;
    loop {
        if shared.closed.load(Ordering::SeqCst) {
            unlock(state);
            return Ok(());
        }
        if let Some(event) = state.driver.host.events.pop_front() {
            state = tell(shared, state, &event)?;
            continue;
        }
        if let Some(masters) = state.driver.host.masters.take() {
            unlock(state);
            save_masters(shared, &masters);
            state = shared.lock()?;
            continue;
        }
        let led = state.leader != Leader::Nobody;
        let followed = !state.followers.is_empty();
        let due = state.driver.timeout() == Some(Duration::ZERO);
        match Step::choose(led, followed, state.turns != seen, due) {
            Step::Wait => state = sleep(shared, state, Background::Waiting)?,
            Step::Nap => {
                seen = state.turns;
                // What callers left to be sent.
                shared.flush(&mut state);
                if followed {
                    shared.hand_over(&mut state);
                }
                state = sleep(shared, state, Background::Napping)?;
            }
            Step::Lead => {
                seen = state.turns;
                state = shared.lead(state, None, |state, _| {
                    !state.followers.is_empty()
                        || state.driver.host.has_event()
                        || state.turns != seen
                        || shared.closed.load(Ordering::SeqCst)
                })?;
                shared.hand_over(&mut state);
            }
        }
    }
}

fn sleep<'a>(shared: &'a Shared, mut state: Guard<'a>, how: Background) -> Result<Guard<'a>> {
    state.background = how;
    for condvar in state.wake.drain(..) {
        condvar.notify_one();
    }
    let mut state = match how {
        Background::Napping => {
            shared.background.wait_timeout(state, GRACE).map_err(|_| Error::Closed)?.0
        }
        _ => shared.background.wait(state).map_err(|_| Error::Closed)?,
    };
    state.background = Background::Awake;
    Ok(state)
}

fn save_masters(shared: &Shared, masters: &[SocketAddr]) {
    if let Some(path) = &shared.options.dynamic_master_list
        && let Err(error) = master_list::save(path, masters)
    {
        log::warn!("the list of masters can not be saved in {}: {error}", path.display());
    }
}

/// Calls the listener, without the mutex.
fn tell<'a>(shared: &'a Shared, state: Guard<'a>, event: &Event) -> Result<Guard<'a>> {
    unlock(state);
    let listener = shared.listener.lock().map_or(None, |listener| listener.clone());
    if let Some(listener) = listener {
        match event {
            Event::Invalidate { tid, oids } => listener.invalidate(*tid, oids),
            Event::InvalidateCache => listener.invalidate_cache(),
            Event::Disconnected => listener.disconnected(),
        }
    }
    let mut state = shared.lock()?;
    shared.input(&mut state, Call::Delivered);
    shared.flush(&mut state);
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::Step;

    /// The mutex is only freed by sleeping, or by leading when no caller wants to: else the caller
    /// that is to lead never gets it.
    #[test]
    fn a_caller_that_is_to_lead_gets_the_mutex() {
        for turned in [false, true] {
            for due in [false, true] {
                assert_eq!(Step::choose(false, true, turned, due), Step::Nap);
                assert_eq!(Step::choose(true, true, turned, due), Step::Wait);
            }
        }
    }

    #[test]
    fn leads_when_no_caller_does_for_a_while_or_something_is_due() {
        assert_eq!(Step::choose(false, false, false, false), Step::Lead);
        assert_eq!(Step::choose(false, false, true, true), Step::Lead);
        assert_eq!(Step::choose(false, false, true, false), Step::Nap);
        assert_eq!(Step::choose(true, false, false, false), Step::Wait);
    }
}
