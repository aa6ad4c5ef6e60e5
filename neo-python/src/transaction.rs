// SPDX-License-Identifier: GPL-2.0-or-later
//! A transaction under way.
// Not a core: threads of the application share the objects.
#![allow(clippy::disallowed_types)]

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use neo_client::{Conflict, Error, Metadata, Resolver};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::client::telling;
use crate::convert::{oid, optional_tid, py_data, py_oid, py_oids, py_tid, tid};
use crate::errors::waiting;

/// `tryToResolveConflict` of ZODB.
pub struct PyResolver(pub Py<PyAny>);

impl Resolver for PyResolver {
    fn resolve(&mut self, conflict: Conflict) -> neo_client::Result<Bytes> {
        // A deletion cannot be reconciled with a change.
        let Some(data) = &conflict.data else { return Err(Error::Conflict(conflict)) };
        Python::attach(|py| {
            let committed_data = conflict.committed_data.as_ref().map(|data| py_data(py, data));
            let resolved = self.0.call1(
                py,
                (
                    py_oid(py, conflict.oid),
                    py_tid(py, conflict.committed),
                    py_tid(py, conflict.base),
                    py_data(py, data),
                    committed_data,
                ),
            )?;
            let resolved = resolved.bind(py).cast::<PyBytes>().map_err(PyErr::from)?;
            Ok(Bytes::copy_from_slice(resolved.as_bytes()))
        })
        .map_err(|error| to_client(error, conflict))
    }
}

/// A conflict that is not resolved is one for the client too: undo reports it in its own way.
fn to_client(error: PyErr, conflict: Conflict) -> Error {
    let is_conflict = Python::attach(|py| {
        let class = py.import("ZODB.POSException").and_then(|m| m.getattr("ConflictError"));
        class.is_ok_and(|class| error.is_instance(py, &class))
    });
    if is_conflict { Error::Conflict(conflict) } else { Error::foreign(error) }
}

/// A transaction under way; one thread at a time uses it.
#[pyclass(frozen, module = "neo.client._native")]
pub struct Transaction {
    transaction: Mutex<neo_client::Transaction>,
    ttid: neo_common::types::Ttid,
}

impl Transaction {
    pub fn new(transaction: neo_client::Transaction) -> Self {
        Self { ttid: transaction.ttid(), transaction: Mutex::new(transaction) }
    }
    /// Only called with the interpreter free: the holder may need it to resolve a conflict.
    fn lock(&self) -> MutexGuard<'_, neo_client::Transaction> {
        self.transaction.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Transaction {
    #[getter]
    fn ttid<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.ttid.get().to_be_bytes())
    }

    fn store(&self, py: Python<'_>, oid_: &[u8], serial: &[u8], data: &[u8]) -> PyResult<()> {
        let (oid, serial) = (oid(oid_)?, tid(serial)?);
        let data = Bytes::copy_from_slice(data);
        waiting(py, || self.lock().store(oid, serial, data))
    }

    fn delete(&self, py: Python<'_>, oid_: &[u8], serial: &[u8]) -> PyResult<()> {
        let (oid, serial) = (oid(oid_)?, tid(serial)?);
        waiting(py, || self.lock().delete(oid, serial))
    }

    #[pyo3(signature = (oid_, serial, data, data_serial))]
    fn store_from(
        &self,
        py: Python<'_>,
        oid_: &[u8],
        serial: &[u8],
        data: Option<&[u8]>,
        data_serial: Option<&[u8]>,
    ) -> PyResult<()> {
        let (oid, serial) = (oid(oid_)?, tid(serial)?);
        let data = data.map(Bytes::copy_from_slice);
        let data_serial = optional_tid(data_serial)?;
        waiting(py, || self.lock().store_from(oid, serial, data, data_serial))
    }

    fn check_current_serial(&self, py: Python<'_>, oid_: &[u8], serial: &[u8]) -> PyResult<()> {
        let (oid, serial) = (oid(oid_)?, tid(serial)?);
        waiting(py, || self.lock().check_current_serial(oid, serial))
    }

    /// Oids of the objects that change.
    fn undo<'py>(&self, py: Python<'py>, tid_: &[u8]) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let tid = tid(tid_)?;
        let oids = waiting(py, || self.lock().undo(tid))?;
        Ok(py_oids(py, &oids))
    }

    /// Oids whose conflicts were resolved.
    fn vote<'py>(
        &self,
        py: Python<'py>,
        user: &[u8],
        description: &[u8],
        extension: &[u8],
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let metadata = Metadata {
            user: Bytes::copy_from_slice(user),
            description: Bytes::copy_from_slice(description),
            extension: Bytes::copy_from_slice(extension),
        };
        let oids = waiting(py, || self.lock().vote(&metadata))?;
        Ok(py_oids(py, &oids))
    }

    /// Calls `callback(tid)` before anybody sees the new last tid.
    #[pyo3(signature = (callback = None))]
    fn finish<'py>(
        &self,
        py: Python<'py>,
        callback: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut failure = None;
        let tid = waiting(py, || {
            self.lock().finish(|tid| {
                if let Some(callback) = &callback {
                    Python::attach(|py| {
                        failure = telling(|| callback.call1(py, (py_tid(py, tid),))).err();
                    });
                }
            })
        })?;
        // The transaction is committed whatever the callback did; its error is the caller's.
        match failure {
            Some(error) => Err(error),
            None => Ok(py_tid(py, tid)),
        }
    }

    fn abort(&self, py: Python<'_>) {
        py.detach(|| self.lock().abort());
    }
}
