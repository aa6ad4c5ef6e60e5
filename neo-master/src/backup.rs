// SPDX-License-Identifier: GPL-2.0-or-later
//! Backup cluster. Upstream: master/backup_app.py.

/// What an operator is told who wants a backup cluster without saying of what.
pub const NO_UPSTREAM: &str = "No upstream cluster to backup defined in configuration";
