// SPDX-License-Identifier: GPL-2.0-or-later
//! Data of objects: a kind, an amount, and a number that makes each value unique.

use bytes::Bytes;
use neo_common::prng::Prng;

use super::scene::Kind;

/// See the module documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    /// What is done with it.
    pub kind: Kind,
    /// Balance of an account, value of a counter.
    pub amount: i64,
    /// No other value has it.
    pub nonce: u64,
}

impl Value {
    /// As it is stored, with so many bytes that mean nothing.
    pub fn encode(&self, filler_len: usize) -> Bytes {
        let Self { kind, amount, nonce } = self;
        let mut text = format!("{} {amount} {nonce}\n", kind.letter());
        // Half of it can be compressed.
        let mut noise = Prng::new(*nonce);
        for i in 0..filler_len {
            text.push(if i % 2 == 0 { '.' } else { char::from(b'a' + noise.below(26) as u8) });
        }
        Bytes::from(text)
    }

    /// From what is stored.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let line = data.split(|byte| *byte == b'\n').next()?;
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let kind = match words.next()? {
            "a" => Kind::Account,
            "c" => Kind::Counter,
            "b" => Kind::Blob,
            _ => return None,
        };
        let amount = words.next()?.parse().ok()?;
        let nonce = words.next()?.parse().ok()?;
        Some(Self { kind, amount, nonce })
    }

    /// Resolves a conflict between two changes of a counter.
    pub fn resolve(base: &[u8], committed: &[u8], own: &[u8], nonce: u64) -> Option<Bytes> {
        let [base, committed, own] = [base, committed, own].map(Self::decode);
        let (base, committed, own) = (base?, committed?, own?);
        if own.kind != Kind::Counter {
            return None;
        }
        let amount = committed.amount + own.amount - base.amount;
        Some(Self { kind: own.kind, amount, nonce }.encode(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_and_counters_are_resolved() {
        let counter = |amount, nonce| Value { kind: Kind::Counter, amount, nonce };
        let data = counter(-5, 3).encode(100);
        assert_eq!(Value::decode(&data), Some(counter(-5, 3)));
        let [base, committed, own] = [(1, 1), (4, 2), (2, 3)].map(|(a, n)| counter(a, n).encode(9));
        let resolved = Value::resolve(&base, &committed, &own, 4).unwrap();
        assert_eq!(Value::decode(&resolved), Some(counter(5, 4)));
        let account = Value { kind: Kind::Account, amount: 1, nonce: 5 }.encode(0);
        assert_eq!(Value::resolve(&base, &committed, &account, 6), None);
    }
}
