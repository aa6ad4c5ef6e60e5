// SPDX-License-Identifier: GPL-2.0-or-later
//! MySQL and MariaDB: what is opened, what is refused without a trace.
