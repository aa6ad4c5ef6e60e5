// SPDX-License-Identifier: GPL-2.0-or-later
//! Headers of transactions and records, to and from bytes. See the module above for the layout.

use byteorder::{BigEndian, ByteOrder};
use neo_common::types::{Oid, Tid};

/// First bytes of a file of Python 2.
pub(crate) const MAGIC_2: [u8; 4] = *b"FS21";
/// First bytes of a file of Python 3, the only one that today's ZODB opens.
pub(crate) const MAGIC_3: [u8; 4] = *b"FS30";
/// Where the first transaction is.
pub(crate) const START: u64 = 4;

/// Bytes of a transaction before its user.
pub(crate) const TRANSACTION_HEADER_SIZE: usize = 23;
/// Bytes of a record before its data or back-pointer.
pub(crate) const RECORD_HEADER_SIZE: usize = 42;
/// Bytes of a record without data.
pub(crate) const BACK_RECORD_SIZE: usize = RECORD_HEADER_SIZE + 8;
/// Bytes of each of user, description and extension at most.
pub(crate) const METADATA_SIZE_MAX: usize = u16::MAX as usize;
/// Where the status is in the header of a transaction.
pub(crate) const STATUS_OFFSET: usize = 16;
/// Where the length is in the header of a transaction.
pub(crate) const LENGTH_OFFSET: u64 = 8;

/// Committed.
pub(crate) const STATUS_FINISHED: u8 = b' ';
/// Committed and packed.
pub(crate) const STATUS_PACKED: u8 = b'p';
/// Undone in place, by a ZODB of long ago.
pub(crate) const STATUS_UNDONE: u8 = b'u';
/// Voted, not finished.
pub(crate) const STATUS_CHECKPOINT: u8 = b'c';

/// Fixed part of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TransactionHeader {
    pub tid: Tid,
    /// Bytes of the transaction without the second length.
    pub length: u64,
    pub status: u8,
    pub user_size: u16,
    pub description_size: u16,
    pub extension_size: u16,
}

impl TransactionHeader {
    pub(crate) fn decode(bytes: &[u8; TRANSACTION_HEADER_SIZE]) -> Self {
        Self {
            tid: Tid::new(BigEndian::read_u64(bytes)),
            length: BigEndian::read_u64(&bytes[8..]),
            status: bytes[STATUS_OFFSET],
            user_size: BigEndian::read_u16(&bytes[17..]),
            description_size: BigEndian::read_u16(&bytes[19..]),
            extension_size: BigEndian::read_u16(&bytes[21..]),
        }
    }

    pub(crate) fn encode(&self) -> [u8; TRANSACTION_HEADER_SIZE] {
        let mut bytes = [0; TRANSACTION_HEADER_SIZE];
        BigEndian::write_u64(&mut bytes, self.tid.get());
        BigEndian::write_u64(&mut bytes[8..], self.length);
        bytes[STATUS_OFFSET] = self.status;
        BigEndian::write_u16(&mut bytes[17..], self.user_size);
        BigEndian::write_u16(&mut bytes[19..], self.description_size);
        BigEndian::write_u16(&mut bytes[21..], self.extension_size);
        bytes
    }

    /// Bytes of user, description and extension together.
    pub(crate) fn metadata_size(&self) -> usize {
        usize::from(self.user_size)
            + usize::from(self.description_size)
            + usize::from(self.extension_size)
    }

    /// Bytes before the first record.
    pub(crate) fn size(&self) -> u64 {
        (TRANSACTION_HEADER_SIZE + self.metadata_size()) as u64
    }
}

/// Fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub oid: Oid,
    pub tid: Tid,
    /// Position of the previous record of the oid, 0 if none.
    pub previous: u64,
    /// Position of the transaction.
    pub transaction: u64,
    /// Always 0 since versions are gone.
    pub version_size: u16,
    /// 0 if a back-pointer follows.
    pub data_size: u64,
}

impl RecordHeader {
    pub(crate) fn decode(bytes: &[u8; RECORD_HEADER_SIZE]) -> Self {
        Self {
            oid: Oid::new(BigEndian::read_u64(bytes)),
            tid: Tid::new(BigEndian::read_u64(&bytes[8..])),
            previous: BigEndian::read_u64(&bytes[16..]),
            transaction: BigEndian::read_u64(&bytes[24..]),
            version_size: BigEndian::read_u16(&bytes[32..]),
            data_size: BigEndian::read_u64(&bytes[34..]),
        }
    }

    pub(crate) fn encode(&self) -> [u8; RECORD_HEADER_SIZE] {
        let mut bytes = [0; RECORD_HEADER_SIZE];
        BigEndian::write_u64(&mut bytes, self.oid.get());
        BigEndian::write_u64(&mut bytes[8..], self.tid.get());
        BigEndian::write_u64(&mut bytes[16..], self.previous);
        BigEndian::write_u64(&mut bytes[24..], self.transaction);
        BigEndian::write_u16(&mut bytes[32..], self.version_size);
        BigEndian::write_u64(&mut bytes[34..], self.data_size);
        bytes
    }

    /// Bytes of the whole record; `None` if it cannot be.
    pub(crate) fn record_size(&self) -> Option<u64> {
        let body = if self.data_size == 0 { 8 } else { self.data_size };
        body.checked_add(RECORD_HEADER_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers survive encoding, and each field is where ZODB's `struct` formats put it.
    #[test]
    fn headers_round_trip() {
        let transaction = TransactionHeader {
            tid: Tid::new(0x0102_0304_0506_0708),
            length: 0x1112_1314_1516_1718,
            status: b'p',
            user_size: 0x2122,
            description_size: 0x2324,
            extension_size: 0x2526,
        };
        let bytes = transaction.encode();
        assert_eq!(
            bytes,
            *b"\x01\x02\x03\x04\x05\x06\x07\x08\x11\x12\x13\x14\x15\x16\x17\x18p\x21\x22\x23\x24\x25\x26"
        );
        assert_eq!(TransactionHeader::decode(&bytes), transaction);
        assert_eq!(transaction.size(), 23 + 0x2122 + 0x2324 + 0x2526);

        let record = RecordHeader {
            oid: Oid::new(1),
            tid: Tid::new(2),
            previous: 3,
            transaction: 4,
            version_size: 5,
            data_size: 6,
        };
        let bytes = record.encode();
        let at = |offset: usize| bytes[offset];
        assert_eq!((at(7), at(15), at(23), at(31), at(33), at(41)), (1, 2, 3, 4, 5, 6));
        assert_eq!(RecordHeader::decode(&bytes), record);
        assert_eq!(record.record_size(), Some(48));
        assert_eq!(RecordHeader { data_size: 0, ..record }.record_size(), Some(50));
        assert_eq!(RecordHeader { data_size: u64::MAX, ..record }.record_size(), None);
    }
}
