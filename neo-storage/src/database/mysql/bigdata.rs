// SPDX-License-Identifier: GPL-2.0-or-later
//! Values that are too big for one row.
//!
//! A value of 16 MiB or more (the limit of `MEDIUMBLOB`) is cut in chunks of 8 MiB, that are rows of
//! table `bigdata` with consecutive ids. The row of `data` has bit 0x80 in column compression, and the
//! first id and the length as its value.

use bytes::{Bytes, BytesMut};

use super::row::Columns;
use super::session::Session;
use crate::database::Error;

/// Bytes from which a value is cut.
pub const BYTES_MIN: usize = 1 << 24;

/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 1 << 23;

/// Bit of column compression.
pub const FLAG: u8 = 0x80;

/// What the row of `data` says instead of the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reference {
    /// Id of the first chunk.
    pub first: u32,
    /// Bytes of the value.
    pub length: u32,
}

impl Reference {
    /// From column value.
    pub fn decode(value: &[u8]) -> Result<Self, Error> {
        let Ok(value) = <[u8; 8]>::try_from(value) else {
            return Err(Error::Corrupted(format!(
                "a reference to big data has {} bytes",
                value.len()
            )));
        };
        let value = u64::from_be_bytes(value);
        Ok(Self { first: (value >> 32) as u32, length: value as u32 })
    }

    /// For column value.
    pub fn encode(self) -> [u8; 8] {
        (u64::from(self.first) << 32 | u64::from(self.length)).to_be_bytes()
    }

    /// Ids of the chunks, in order.
    pub fn ids(self) -> impl Iterator<Item = i64> {
        let count = self.length.div_ceil(CHUNK_BYTES as u32);
        (0..i64::from(count)).map(move |index| i64::from(self.first) + index)
    }
}

/// Stores a value. Its length was checked when it was received: it fits in 32 bits.
pub fn store(session: &mut Session, value: &Bytes) -> Result<Reference, Error> {
    let length = u32::try_from(value.len()).expect("a packet is shorter than 4 GiB");
    let mut chunks = value.chunks(CHUNK_BYTES);
    let chunk = chunks.next().unwrap_or_default();
    let id = session.execute("INSERT INTO bigdata VALUES (NULL, ?)", (chunk,))?;
    let first = u32::try_from(id)
        .map_err(|_| Error::Corrupted(format!("id {id} was given to a chunk of big data")))?;
    for (chunk, id) in chunks.zip(i64::from(first) + 1..) {
        session.execute("INSERT INTO bigdata VALUES (?, ?)", (id, chunk))?;
    }
    Ok(Reference { first, length })
}

/// Reads a value. `None` if a chunk is missing.
pub fn load(session: &mut Session, reference: Reference) -> Result<Option<Bytes>, Error> {
    let length = reference.length as usize;
    let mut value = BytesMut::with_capacity(length);
    for id in reference.ids() {
        let row = session.row("SELECT value FROM bigdata WHERE id=?", (id,))?;
        match row {
            Some(row) => value.extend_from_slice(&Columns::new(row).bytes()?),
            None => return Ok(None),
        }
    }
    Ok((value.len() == length).then(|| value.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let reference = Reference { first: 0x0102_0304, length: 0x0180_0001 };
        assert_eq!(reference.encode(), [1, 2, 3, 4, 1, 128, 0, 1]);
        assert_eq!(Reference::decode(&reference.encode()).unwrap(), reference);
        assert_eq!(reference.ids().count(), 4);
        assert_eq!(Reference { length: 0x0180_0000, ..reference }.ids().count(), 3);
        assert!(Reference::decode(b"1234567").is_err());
    }
}
