// SPDX-License-Identifier: GPL-2.0-or-later
//! NEO storage node.

pub mod database;
pub mod limits;
pub mod transactions;
