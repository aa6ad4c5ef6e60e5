// SPDX-License-Identifier: GPL-2.0-or-later
//! The master among peers played by hand.

mod commit;
mod harness;
mod start;
