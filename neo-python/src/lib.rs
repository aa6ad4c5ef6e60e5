// SPDX-License-Identifier: GPL-2.0-or-later
//! The native half of the Python package `neo`: a thin layer over `neo-client`.
//!
//! What is ZODB's (conflict resolution, metadata, exceptions, interfaces, configuration) stays in
//! Python; here are only conversions. The interpreter is free for other threads whenever a call may
//! wait. Oids and tids are 8-byte strings, as everywhere in ZODB.

mod client;
mod convert;
mod errors;
mod iterate;
mod logs;
mod transaction;

use pyo3::prelude::*;

neo_common::no_planted_bugs!();

/// Which records `logging` is given: from `DEBUG` on, or from `INFO` on.
#[pyfunction]
fn set_log_level(debug: bool) {
    logs::set_level(debug);
}

/// The extension module `neo.client._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<client::Client>()?;
    module.add_class::<transaction::Transaction>()?;
    module.add_class::<iterate::Transactions>()?;
    module.add_class::<iterate::UndoLog>()?;
    module.add_class::<iterate::Oids>()?;
    module.add_class::<iterate::CurrentRecords>()?;
    module.add_class::<iterate::Records>()?;
    module.add_function(wrap_pyfunction!(set_log_level, module)?)?;
    logs::start();
    Ok(())
}
