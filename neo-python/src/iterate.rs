// SPDX-License-Identifier: GPL-2.0-or-later
//! Iterators: transactions with their records, undo log, oids, current records.
// Not a core: threads of the application share the objects.
#![allow(clippy::disallowed_types)]

use std::sync::{Mutex, PoisonError};

use neo_client::{DataRecord, TransactionInfo};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::convert::{py_data, py_oid, py_oids, py_tid};
use crate::errors::waiting;

fn with<T, R>(mutex: &Mutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

/// (tid, user, description, extension, packed, oids)
pub fn info_tuple<'py>(py: Python<'py>, info: &TransactionInfo) -> PyResult<Bound<'py, PyAny>> {
    (
        py_tid(py, info.tid),
        py_data(py, &info.user),
        py_data(py, &info.description),
        py_data(py, &info.extension),
        info.packed,
        py_oids(py, &info.oids),
    )
        .into_bound_py_any(py)
}

/// (oid, data or `None`, data_txn or `None`)
fn record_tuple<'py>(py: Python<'py>, record: &DataRecord) -> PyResult<Bound<'py, PyAny>> {
    (
        py_oid(py, record.oid),
        record.data.as_ref().map(|data| py_data(py, data)),
        record.data_txn.map(|tid| py_tid(py, tid)),
    )
        .into_bound_py_any(py)
}

/// Transactions in order.
#[pyclass(frozen, module = "neo.client._native")]
pub struct Transactions(Mutex<neo_client::Transactions>);

impl Transactions {
    pub fn new(transactions: neo_client::Transactions) -> Self {
        Self(Mutex::new(transactions))
    }
}

#[pymethods]
impl Transactions {
    /// Metadata of the next transaction, or `None`.
    fn next_transaction<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let info = waiting(py, || with(&self.0, neo_client::Transactions::next_transaction))?;
        info.map(|info| info_tuple(py, &info)).transpose()
    }
    /// Next record of that transaction, or `None`.
    fn next_record<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let record = waiting(py, || with(&self.0, neo_client::Transactions::next_record))?;
        record.map(|record| record_tuple(py, &record)).transpose()
    }
}

/// Transactions, newest first.
#[pyclass(frozen, module = "neo.client._native")]
pub struct UndoLog(Mutex<neo_client::UndoLog>);

impl UndoLog {
    pub fn new(log: neo_client::UndoLog) -> Self {
        Self(Mutex::new(log))
    }
}

#[pymethods]
impl UndoLog {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let info = waiting(py, || with(&self.0, Iterator::next).transpose())?;
        info.map(|info| info_tuple(py, &info)).transpose()
    }
}

/// Oids in ascending order.
#[pyclass(frozen, module = "neo.client._native")]
pub struct Oids(Mutex<neo_client::Oids>);

impl Oids {
    pub fn new(oids: neo_client::Oids) -> Self {
        Self(Mutex::new(oids))
    }
}

#[pymethods]
impl Oids {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let oid = waiting(py, || with(&self.0, Iterator::next).transpose())?;
        Ok(oid.map(|oid| py_oid(py, oid)))
    }
}

/// Current revisions: (oid, tid, data).
#[pyclass(frozen, module = "neo.client._native")]
pub struct CurrentRecords(Mutex<neo_client::CurrentRecords>);

impl CurrentRecords {
    pub fn new(records: neo_client::CurrentRecords) -> Self {
        Self(Mutex::new(records))
    }
}

/// oid, tid, data
type Current<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl CurrentRecords {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Current<'py>>> {
        let record = waiting(py, || with(&self.0, Iterator::next).transpose())?;
        Ok(record.map(|r| (py_oid(py, r.oid), py_tid(py, r.tid), py_data(py, &r.data))))
    }
}

/// Records of one transaction.
#[pyclass(frozen, module = "neo.client._native")]
pub struct Records(Mutex<neo_client::Records>);

impl Records {
    pub fn new(records: neo_client::Records) -> Self {
        Self(Mutex::new(records))
    }
}

#[pymethods]
impl Records {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let record = waiting(py, || with(&self.0, Iterator::next).transpose())?;
        record.map(|record| record_tuple(py, &record)).transpose()
    }
}
