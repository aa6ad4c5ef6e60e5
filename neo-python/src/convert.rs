// SPDX-License-Identifier: GPL-2.0-or-later
//! 8-byte strings and identifiers.

use bytes::Bytes;
use neo_common::types::{Oid, Tid};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn p64(bytes: &[u8]) -> PyResult<[u8; 8]> {
    bytes.try_into().map_err(|_| PyValueError::new_err("oids and tids are strings of 8 bytes"))
}

pub fn oid(bytes: &[u8]) -> PyResult<Oid> {
    p64(bytes).map(Oid::from_bytes)
}

pub fn tid(bytes: &[u8]) -> PyResult<Tid> {
    p64(bytes).map(Tid::from_bytes)
}

pub fn optional_tid(bytes: Option<&[u8]>) -> PyResult<Option<Tid>> {
    bytes.map(tid).transpose()
}

pub fn py_tid(py: Python<'_>, tid: Tid) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &tid.to_bytes())
}

pub fn py_oid(py: Python<'_>, oid: Oid) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &oid.to_bytes())
}

pub fn py_oids<'py>(py: Python<'py>, oids: &[Oid]) -> Vec<Bound<'py, PyBytes>> {
    oids.iter().map(|oid| py_oid(py, *oid)).collect()
}

pub fn py_data<'py>(py: Python<'py>, data: &Bytes) -> Bound<'py, PyBytes> {
    PyBytes::new(py, data)
}
