// SPDX-License-Identifier: GPL-2.0-or-later
//! What a correct cluster never does. Nothing here is used by the product.
//!
//! - [`reads`]: what is loaded is what the model says, whatever cell, cache or moment;
//! - [`told`]: what a client is told, in order, and the last tid that goes with it;
//! - [`commits`]: tids, ttids and oids that masters give;
//! - [`table`]: changes of the partition table;
//! - [`rest`]: databases of a cluster where nothing happens any more.

pub mod commits;
pub mod reads;
pub mod rest;
pub mod table;
pub mod told;
