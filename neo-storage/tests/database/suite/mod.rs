// SPDX-License-Identifier: GPL-2.0-or-later
//! Rules of the database, one by one.

mod packs;
mod partitions;
mod transactions;

use neo_common::protocol::enums::CellState;
use neo_common::types::{Oid, Tid, Ttid};
use neo_storage::database::*;

use crate::harness::*;

fn tid(number: u64) -> Tid {
    Tid::new(number)
}

fn ttid(number: u64) -> Ttid {
    Ttid::new(number)
}
