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
mod transaction;

use std::path::{Path, PathBuf};

use neo_common::logging::{self, LogOptions};
use neo_common::master_list;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

/// Logs what the client does to a file; once per process.
#[pyfunction]
fn log_to_file(path: PathBuf) -> PyResult<()> {
    let options = LogOptions { file: Some(path), ..LogOptions::default() };
    logging::setup(&options).map_err(|e| PyOSError::new_err(e.to_string()))
}

/// Addresses in a dynamic master list; none if there is no such file.
#[pyfunction]
fn read_master_list(path: PathBuf) -> PyResult<Vec<String>> {
    let path: &Path = &path;
    let masters = master_list::load(path)
        .map_err(|e| PyOSError::new_err(format!("{}: {e}", path.display())))?;
    Ok(masters.iter().map(ToString::to_string).collect())
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
    module.add_function(wrap_pyfunction!(log_to_file, module)?)?;
    module.add_function(wrap_pyfunction!(read_master_list, module)?)?;
    Ok(())
}
