// SPDX-License-Identifier: GPL-2.0-or-later
//! Columns of a row, in order.

use bytes::Bytes;
use mysql::{Row, Value};
use neo_common::types::Tid;

use crate::database::Error;

/// Reads the columns of a row from left to right.
pub struct Columns(std::vec::IntoIter<Value>);

impl Columns {
    /// All columns.
    pub fn new(row: Row) -> Self {
        Self(row.unwrap().into_iter())
    }

    fn value(&mut self) -> Result<Value, Error> {
        self.0.next().ok_or_else(|| Error::Corrupted("a row has too few columns".into()))
    }

    /// An integer that may be `NULL`. What does not fit in 63 bits is not ours.
    pub fn optional_int(&mut self) -> Result<Option<i64>, Error> {
        let bad = |value: &dyn std::fmt::Debug| {
            Error::Corrupted(format!("{value:?} where a 63-bit integer is expected"))
        };
        match self.value()? {
            Value::NULL => Ok(None),
            Value::Int(number) => Ok(Some(number)),
            Value::UInt(number) => i64::try_from(number).map(Some).map_err(|_| bad(&number)),
            // Text protocol.
            Value::Bytes(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|text| text.parse().ok())
                .map(Some)
                .ok_or_else(|| bad(&text)),
            value => Err(bad(&value)),
        }
    }

    /// An integer.
    pub fn int(&mut self) -> Result<i64, Error> {
        self.optional_int()?.ok_or_else(|| Error::Corrupted("NULL instead of an integer".into()))
    }

    /// An integer of a smaller type.
    pub fn number<T: TryFrom<i64>>(&mut self) -> Result<T, Error> {
        let number = self.int()?;
        T::try_from(number).map_err(|_| Error::Corrupted(format!("{number} is out of range")))
    }

    /// A boolean.
    pub fn boolean(&mut self) -> Result<bool, Error> {
        Ok(self.int()? != 0)
    }

    /// A tid.
    pub fn tid(&mut self) -> Result<Tid, Error> {
        Ok(Tid::new(self.int()? as u64))
    }

    /// A tid that may be `NULL`.
    pub fn optional_tid(&mut self) -> Result<Option<Tid>, Error> {
        Ok(self.optional_int()?.map(|tid| Tid::new(tid as u64)))
    }

    /// Bytes that may be `NULL`.
    pub fn optional_bytes(&mut self) -> Result<Option<Bytes>, Error> {
        match self.value()? {
            Value::NULL => Ok(None),
            Value::Bytes(bytes) => Ok(Some(bytes.into())),
            value => Err(Error::Corrupted(format!("{value:?} where bytes are expected"))),
        }
    }

    /// Bytes.
    pub fn bytes(&mut self) -> Result<Bytes, Error> {
        Ok(self.optional_bytes()?.unwrap_or_default())
    }

    /// Text that may be `NULL`.
    pub fn optional_text(&mut self) -> Result<Option<String>, Error> {
        let bytes = self.optional_bytes()?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}
