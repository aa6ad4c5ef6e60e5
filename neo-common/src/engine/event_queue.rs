// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests that cannot be handled yet, retried when something changes.
//!
//! Upstream: lib/handler.py, `EventQueue`. Events are ordered by key, then by arrival. A retry that
//! is delayed again keeps its place. While a sweep runs, an event whose execution changes something
//! restarts the sweep from the beginning, because events of the same connection must be processed
//! in chronological order; the owner does this by calling [`EventQueue::take`] until it is told
//! that nothing more can be done:
//!
//! ```text
//! let mut sweep = queue.sweep();
//! while let Some((key, event)) = queue.take(&mut sweep) {
//!     match try_again(&event) {
//!         Retry::Done => {}                              // it is gone
//!         Retry::DoneAndChanged => sweep.restart(),      // others may have become possible
//!         Retry::Delayed => queue.put_back(&mut sweep, event),
//!     }
//! }
//! ```

use std::collections::BTreeMap;

/// Delayed events, by key then arrival.
#[derive(Debug)]
pub struct EventQueue<K: Ord + Clone, E> {
    events: BTreeMap<(K, u64), E>,
    arrival: u64,
}

impl<K: Ord + Clone, E> Default for EventQueue<K, E> {
    fn default() -> Self {
        Self { events: BTreeMap::new(), arrival: 0 }
    }
}

/// Position in a sweep over the queue.
#[derive(Debug)]
pub struct Sweep<K> {
    after: Option<(K, u64)>,
    taken: Option<(K, u64)>,
}

impl<K> Sweep<K> {
    /// Goes back to the first event.
    pub fn restart(&mut self) {
        self.after = None;
    }
}

impl<K: Ord + Clone, E> EventQueue<K, E> {
    /// Adds an event behind those of the same key.
    pub fn push(&mut self, key: K, event: E) {
        self.events.insert((key, self.arrival), event);
        self.arrival += 1;
    }
    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }
    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
    /// Starts a sweep.
    pub fn sweep(&self) -> Sweep<K> {
        Sweep { after: None, taken: None }
    }
    /// Takes the next event of a sweep.
    pub fn take(&mut self, sweep: &mut Sweep<K>) -> Option<(K, E)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let at = match &sweep.after {
            None => self.events.keys().next(),
            Some(after) => self.events.range((Excluded(after), Unbounded)).map(|(k, _)| k).next(),
        }?
        .clone();
        let event = self.events.remove(&at)?;
        sweep.after = Some(at.clone());
        sweep.taken = Some(at.clone());
        Some((at.0, event))
    }
    /// Gives back the event just taken: it keeps its place.
    pub fn put_back(&mut self, sweep: &mut Sweep<K>, event: E) {
        if let Some(at) = sweep.taken.take() {
            self.events.insert(at, event);
        }
    }
    /// Drops the events that do not satisfy `keep`, and returns them.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &E) -> bool) {
        self.events.retain(|(key, _), event| keep(key, event));
    }
    /// Events in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &E)> {
        self.events.iter().map(|((key, _), event)| (key, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_retried_in_order_and_keep_their_place() {
        let mut queue = EventQueue::default();
        for (key, event) in [(2, 'a'), (1, 'b'), (2, 'c'), (1, 'd')] {
            queue.push(key, event);
        }
        let mut seen = Vec::new();
        let mut sweep = queue.sweep();
        let mut restarted = false;
        while let Some((_, event)) = queue.take(&mut sweep) {
            seen.push(event);
            match event {
                'a' if !restarted => {
                    restarted = true;
                    sweep.restart();
                }
                _ => queue.put_back(&mut sweep, event),
            }
        }
        assert_eq!(seen, ['b', 'd', 'a', 'b', 'd', 'c']);
        assert_eq!(queue.iter().map(|(_, e)| *e).collect::<Vec<_>>(), ['b', 'd', 'c']);
    }
}
