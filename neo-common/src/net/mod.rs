// SPDX-License-Identifier: GPL-2.0-or-later
//! Drivers: the only code that touches sockets, clocks and signals.
//!
//! - [`clock`]: reads the two clocks;
//! - [`listener`]: the listening socket;
//! - [`socket`]: one non-blocking connection and what waits to be sent on it;
//! - [`driver`]: feeds one engine from sockets and does what it says ([`driver::Driver`]);
//! - [`run()`]: the event loop of a node process.
//!
//! ```text
//!  epoll --> Driver::on_event --> read --> Engine::handle
//!                                             | (all events of the turn)
//!                                             v
//!            Driver::flush <-- Engine::poll_output: writev, connect, close, submit, reply
//! ```

// The point of this module.
#![allow(clippy::disallowed_methods)]

pub mod clock;
pub mod driver;
pub mod listener;
mod run;
pub mod signal;
pub mod socket;

pub use clock::Clock;
pub use driver::{Driver, Host};
pub use listener::Listener;
pub use run::{Exit, NoJobs, Options, run};
