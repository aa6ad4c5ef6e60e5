// SPDX-License-Identifier: GPL-2.0-or-later
//! What is on the wire: protocol 5, a msgpack stream.

pub mod enums;
