// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of the client as exceptions of `ZODB.POSException`.

use neo_client::{Conflict, Error};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::convert::{py_oid, py_tid};

fn exception(
    py: Python<'_>,
    module: &str,
    name: &str,
    args: impl for<'py> FnOnce(
        Python<'py>,
    ) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)>,
) -> PyErr {
    let build = || {
        let class = py.import(module)?.getattr(name)?;
        let (args, kwargs) = args(py)?;
        class.call(args, kwargs.as_ref())
    };
    match build() {
        Ok(value) => PyErr::from_value(value),
        Err(error) => error,
    }
}

const ZODB: &str = "ZODB.POSException";
const NEO: &str = "neo.client.exception";

fn storage_error(py: Python<'_>, name: &str, message: String) -> PyErr {
    exception(py, NEO, name, |py| Ok((PyTuple::new(py, [message])?, None)))
}

fn conflict(py: Python<'_>, conflict: &Conflict) -> PyErr {
    exception(py, ZODB, "ConflictError", |py| {
        let kwargs = PyDict::new(py);
        kwargs.set_item("oid", py_oid(py, conflict.oid))?;
        kwargs.set_item("serials", (py_tid(py, conflict.committed), py_tid(py, conflict.base)))?;
        if let Some(data) = &conflict.data {
            kwargs.set_item("data", crate::convert::py_data(py, data))?;
        }
        Ok((PyTuple::empty(py), Some(kwargs)))
    })
}

/// The exception that a ZODB application expects.
pub fn to_py(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::OidNotFound(oid)
        | Error::OidDoesNotExist(oid)
        | Error::CreationUndone { oid, .. } => exception(py, ZODB, "POSKeyError", |py| {
            Ok((PyTuple::new(py, [py_oid(py, oid)])?, None))
        }),
        Error::Conflict(c) => conflict(py, &c),
        Error::ReadConflict { oid, committed, base } => {
            exception(py, ZODB, "ReadConflictError", |py| {
                let kwargs = PyDict::new(py);
                kwargs.set_item("oid", py_oid(py, oid))?;
                kwargs.set_item("serials", (py_tid(py, committed), py_tid(py, base)))?;
                Ok((PyTuple::empty(py), Some(kwargs)))
            })
        }
        Error::Truncated => {
            exception(py, ZODB, "ReadConflictError", |py| Ok((PyTuple::new(py, [message])?, None)))
        }
        Error::ReadOnly(_) => {
            exception(py, ZODB, "ReadOnlyError", |py| Ok((PyTuple::new(py, [message])?, None)))
        }
        Error::Undo { reason, oid } => exception(py, ZODB, "UndoError", |py| {
            let mut args = vec![reason.into_pyobject(py)?.into_any()];
            args.extend(oid.map(|oid| py_oid(py, oid).into_any()));
            Ok((PyTuple::new(py, args)?, None))
        }),
        Error::Transaction(_) => exception(py, ZODB, "StorageTransactionError", |py| {
            Ok((PyTuple::new(py, [message])?, None))
        }),
        Error::Invalid(_) => PyValueError::new_err(message),
        Error::WrongChecksum { .. } => storage_error(py, "NEOStorageWrongChecksum", message),
        Error::MasterLost => storage_error(py, "NEOStorageError", message),
        Error::Foreign(error) => match error.downcast_ref::<PyErr>() {
            Some(error) => error.clone_ref(py),
            None => PyRuntimeError::new_err(message),
        },
        Error::TidNotFound(_)
        | Error::NoStorage(_)
        | Error::NotStored(_)
        | Error::Incomplete
        | Error::Refused(_)
        | Error::Unreachable
        | Error::OutcomeUnknown(_)
        | Error::NotCommitted(_)
        | Error::Closed
        | Error::Forked => storage_error(py, "NEOStorageError", message),
    }
}

/// Calls something that may wait, with the interpreter free for other threads.
pub fn waiting<T: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> neo_client::Result<T> + Send,
) -> PyResult<T> {
    py.detach(call).map_err(|error| to_py(py, error))
}
