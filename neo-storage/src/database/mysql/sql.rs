// SPDX-License-Identifier: GPL-2.0-or-later
//! Text of statements that have many rows, or that are sent together.
//!
//! Everything is a number or a hexadecimal literal: nothing depends on an escape, on the character
//! set or on the mode of the session.

use std::fmt::Write as _;

/// Appends an integer.
pub fn int(sql: &mut String, number: impl Into<i64>) {
    // Writing to a string can not fail.
    let _ = write!(sql, "{}", number.into());
}

/// Appends an integer or `NULL`.
pub fn optional_int(sql: &mut String, number: Option<i64>) {
    match number {
        Some(number) => int(sql, number),
        None => sql.push_str("NULL"),
    }
}

/// Appends bytes.
pub fn bytes(sql: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    sql.reserve(2 * bytes.len() + 3);
    sql.push_str("x'");
    for byte in bytes {
        sql.push(DIGITS[usize::from(byte >> 4)].into());
        sql.push(DIGITS[usize::from(byte & 15)].into());
    }
    sql.push('\'');
}

/// Appends integers separated by commas.
pub fn list(sql: &mut String, numbers: impl IntoIterator<Item = i64>) {
    for (index, number) in numbers.into_iter().enumerate() {
        if index != 0 {
            sql.push(',');
        }
        int(sql, number);
    }
}

/// Number of rows or keys in one statement at most. MariaDB makes a subquery of a longer list (see
/// `in_predicate_conversion_threshold`), which may end in a scan of the whole table.
pub const KEYS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    #[test]
    fn literals() {
        let mut sql = String::new();
        super::bytes(&mut sql, b"'\\\0\xff");
        super::bytes(&mut sql, b"");
        super::optional_int(&mut sql, None);
        super::list(&mut sql, [-1, 2]);
        assert_eq!(sql, "x'275c00ff'x''NULL-1,2");
    }
}
