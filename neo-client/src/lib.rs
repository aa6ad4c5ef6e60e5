// SPDX-License-Identifier: GPL-2.0-or-later
//! NEO client.

pub mod filestorage;
