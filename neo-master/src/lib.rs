// SPDX-License-Identifier: GPL-2.0-or-later
//! NEO master node.

pub mod partition_table;
