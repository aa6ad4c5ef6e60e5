// SPDX-License-Identifier: GPL-2.0-or-later
//! `Data.fs`, read and written: the reference samples against their manifests, damaged files, files
//! that grow while they are read, what the writer refuses.

// Also in helpers, a test fails by a panic.
#![allow(clippy::unwrap_used)]

mod common;
mod damage;
mod growing;
mod indexed;
mod samples;
mod writing;
