// SPDX-License-Identifier: GPL-2.0-or-later
//! Are two sources the same, record for record?
//!
//! Used by tests, and by whoever wants to know whether a copy is faithful. It stops at the first
//! difference, which says where it is and shows both sides in a few words.

use std::{error, fmt};

use bytes::Bytes;
use neo_common::types::{Oid, Tid};

use crate::source::{Record, Source, TransactionInfo};

/// Bytes shown of data that differs.
const EXCERPT_SIZE: usize = 24;

/// What two equal sources have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Compared {
    /// Transactions.
    pub transactions: u64,
    /// Records of all of them.
    pub records: u64,
    /// Bytes of data of all of these.
    pub data_size: u64,
}

/// Where and how two sources differ first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Transactions before this one.
    pub transaction_index: u64,
    /// Its tid, if both have it.
    pub tid: Option<Tid>,
    /// Records before this one in the transaction, and its oid if both have it; `None` if the
    /// difference is in the transaction itself.
    pub record: Option<(u64, Option<Oid>)>,
    /// What differs.
    pub field: &'static str,
    /// What the first source has.
    pub left: String,
    /// What the second source has.
    pub right: String,
}

/// Why a comparison did not come to its end.
#[derive(Debug)]
pub enum CompareError<A, B> {
    /// The first source cannot be read.
    Left(A),
    /// The second source cannot be read.
    Right(B),
    /// They differ.
    Different(Box<Difference>),
}

/// Reads both sources to the end, as long as they are equal: tid, status, user, description and
/// extension of each transaction; oid, data and `data_txn` of each record, in order.
///
/// # Errors
/// They differ, or one of them cannot be read.
pub fn compare<A: Source, B: Source>(
    mut left: A,
    mut right: B,
) -> Result<Compared, CompareError<A::Error, B::Error>> {
    let mut compared = Compared::default();
    loop {
        let a = left.next_transaction().map_err(CompareError::Left)?;
        let b = right.next_transaction().map_err(CompareError::Right)?;
        let different = |tid, field, left, right| {
            let transaction_index = compared.transactions;
            let difference =
                Difference { transaction_index, tid, record: None, field, left, right };
            CompareError::Different(Box::new(difference))
        };
        let name = |info: &TransactionInfo| format!("transaction {}", info.tid);
        let (a, b) = match (a, b) {
            (None, None) => return Ok(compared),
            (Some(a), Some(b)) => (a, b),
            (Some(a), None) => return Err(different(None, "end", name(&a), "the end".into())),
            (None, Some(b)) => return Err(different(None, "end", "the end".into(), name(&b))),
        };
        if let Some((field, left, right)) = transaction_difference(&a, &b) {
            return Err(different((a.tid == b.tid).then_some(a.tid), field, left, right));
        }
        compare_records(&mut left, &mut right, a.tid, &mut compared)?;
        compared.transactions += 1;
    }
}

fn compare_records<A: Source, B: Source>(
    left: &mut A,
    right: &mut B,
    tid: Tid,
    compared: &mut Compared,
) -> Result<(), CompareError<A::Error, B::Error>> {
    let mut index = 0;
    loop {
        let a = left.next_record().map_err(CompareError::Left)?;
        let b = right.next_record().map_err(CompareError::Right)?;
        let name = |record: &Record| format!("a record of {}", record.oid);
        let (oid, (field, left, right)) = match (a, b) {
            (None, None) => return Ok(()),
            (Some(a), None) => (None, ("end", name(&a), "no more records".into())),
            (None, Some(b)) => (None, ("end", "no more records".into(), name(&b))),
            (Some(a), Some(b)) => match record_difference(&a, &b) {
                Some(difference) => ((a.oid == b.oid).then_some(a.oid), difference),
                None => {
                    index += 1;
                    compared.records += 1;
                    compared.data_size += a.data.map_or(0, |data| data.len() as u64);
                    continue;
                }
            },
        };
        return Err(CompareError::Different(Box::new(Difference {
            transaction_index: compared.transactions,
            tid: Some(tid),
            record: Some((index, oid)),
            field,
            left,
            right,
        })));
    }
}

/// Name of what differs, and both values.
type Field = (&'static str, String, String);

fn transaction_difference(a: &TransactionInfo, b: &TransactionInfo) -> Option<Field> {
    if a.tid != b.tid {
        return Some(("tid", a.tid.to_string(), b.tid.to_string()));
    }
    if a.status != b.status {
        return Some(("status", format!("{:?}", a.status), format!("{:?}", b.status)));
    }
    for (field, a, b) in [
        ("user", &a.user, &b.user),
        ("description", &a.description, &b.description),
        ("extension", &a.extension, &b.extension),
    ] {
        if let Some((a, b)) = bytes_difference(a, b) {
            return Some((field, a, b));
        }
    }
    None
}

fn record_difference(a: &Record, b: &Record) -> Option<Field> {
    if a.oid != b.oid {
        return Some(("oid", a.oid.to_string(), b.oid.to_string()));
    }
    if a.data != b.data {
        let size = |data: &Option<Bytes>| {
            data.as_ref().map_or_else(|| "no data".into(), |data| format!("{} bytes", data.len()))
        };
        let (left, right) = match (&a.data, &b.data) {
            (Some(a), Some(b)) => bytes_difference(a, b)?,
            _ => (size(&a.data), size(&b.data)),
        };
        return Some(("data", left, right));
    }
    if a.data_txn != b.data_txn {
        let tid = |tid: Option<Tid>| tid.map_or_else(|| "none".into(), |tid| tid.to_string());
        return Some(("data_txn", tid(a.data_txn), tid(b.data_txn)));
    }
    None
}

/// Both around the place where they begin to differ; `None` if they do not.
fn bytes_difference(a: &[u8], b: &[u8]) -> Option<(String, String)> {
    if a == b {
        return None;
    }
    let offset = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let show = |bytes: &[u8]| {
        let end = bytes.len().min(offset + EXCERPT_SIZE);
        let excerpt = bytes[offset..end].escape_ascii();
        format!("{} bytes, at {offset}: \"{excerpt}\"", bytes.len())
    };
    Some((show(a), show(b)))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction #{}", self.transaction_index)?;
        if let Some(tid) = self.tid {
            write!(f, " ({tid})")?;
        }
        if let Some((index, oid)) = self.record {
            write!(f, ", record #{index}")?;
            if let Some(oid) = oid {
                write!(f, " ({oid})")?;
            }
        }
        write!(f, ": {} differs: {} / {}", self.field, self.left, self.right)
    }
}

impl<A: fmt::Display, B: fmt::Display> fmt::Display for CompareError<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left(error) => write!(f, "first source: {error}"),
            Self::Right(error) => write!(f, "second source: {error}"),
            Self::Different(difference) => write!(f, "{difference}"),
        }
    }
}

impl<A, B> error::Error for CompareError<A, B>
where
    A: error::Error + 'static,
    B: error::Error + 'static,
{
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Left(error) => Some(error),
            Self::Right(error) => Some(error),
            Self::Different(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::vec::IntoIter;

    use super::*;
    use crate::source::{Progress, Status, Transaction, Unit};

    struct List(IntoIter<Transaction>, IntoIter<Record>);

    impl List {
        fn new(transactions: &[Transaction]) -> Self {
            let transactions = transactions.to_vec();
            Self(transactions.into_iter(), Vec::new().into_iter())
        }
    }

    impl Source for List {
        type Error = Infallible;

        fn next_transaction(&mut self) -> Result<Option<TransactionInfo>, Infallible> {
            Ok(self.0.next().map(|transaction| {
                self.1 = transaction.records.into_iter();
                transaction.info
            }))
        }
        fn next_record(&mut self) -> Result<Option<Record>, Infallible> {
            Ok(self.1.next())
        }
        fn progress(&self) -> Progress {
            Progress { done: 0, total: 0, unit: Unit::Tids }
        }
    }

    fn sample() -> Vec<Transaction> {
        let record = |oid, data: &'static str| Record {
            oid: Oid::new(oid),
            data: Some(Bytes::from(data)),
            data_txn: None,
        };
        (1..4)
            .map(|tid| Transaction {
                info: TransactionInfo { tid: Tid::new(tid), ..TransactionInfo::default() },
                records: vec![record(1, "one"), record(2, "two")],
            })
            .collect()
    }

    /// Each field that can differ is found and told, in words that name the place.
    #[test]
    fn every_difference_is_found() {
        type Change = fn(&mut Vec<Transaction>);
        let cases: [(Change, &str); 12] = [
            (|t| t[1].info.tid = Tid::new(9), "transaction #1: tid differs: 0000000000000002 / "),
            (|t| t[1].info.status = Status::Packed, "status differs: Finished / Packed"),
            (|t| t[2].info.user = "é".into(), "user differs: 0 bytes, at 0: \"\" / 2 bytes"),
            (|t| t[2].info.description = "d".into(), "description differs"),
            (|t| t[2].info.extension = "e".into(), "extension differs"),
            (|t| t[1].records[1].oid = Oid::new(5), "record #1: oid differs"),
            (
                |t| t[1].records[1].data = Some("twofold".into()),
                "transaction #1 (0000000000000002), record #1 (0000000000000002): data differs: \
                 3 bytes, at 3: \"\" / 7 bytes, at 3: \"fold\"",
            ),
            (|t| t[1].records[0].data = None, "data differs: 3 bytes / no data"),
            (|t| t[1].records[0].data_txn = Some(Tid::new(1)), "data_txn differs: none / 0000"),
            (|t| t[0].records.truncate(1), "record #1: end differs: a record of 0000000000000002"),
            (|t| t[0].records.extend_from_within(..1), "end differs: no more records / a"),
            (|t| t.truncate(2), "transaction #2: end differs: transaction 0000000000000003 / the"),
        ];
        for (change, expected) in cases {
            let mut changed = sample();
            change(&mut changed);
            let error = compare(List::new(&sample()), List::new(&changed)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(compare(List::new(&changed), List::new(&sample())).is_err());
            assert!(compare(List::new(&changed), List::new(&changed)).is_ok());
        }
        let compared = compare(List::new(&sample()), List::new(&sample())).unwrap();
        assert_eq!(compared, Compared { transactions: 3, records: 6, data_size: 18 });
    }
}
