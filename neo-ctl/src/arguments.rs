// SPDX-License-Identifier: GPL-2.0-or-later
//! Arguments of commands: node ids, tids and numbers.

use neo_common::time::tid_from_timestamp;
use neo_common::types::{NodeId, NodeType, Tid};

use crate::commands::CommandError;

/// Integers below this are not time stamps of any ZODB: they are in 1973 or before.
const TIMESTAMP_MIN: u64 = 100_000_000;

/// A node id: `S1`.
///
/// # Errors
/// If it is something else.
pub fn node(text: &str) -> Result<NodeId, CommandError> {
    let parse = || {
        let mut chars = text.chars();
        let node_type = match chars.next()? {
            'M' => NodeType::Master,
            'S' => NodeType::Storage,
            'C' => NodeType::Client,
            'A' => NodeType::Admin,
            _ => return None,
        };
        NodeId::of(node_type, decimal(chars.as_str())?)
    };
    parse().ok_or_else(|| CommandError::Node(text.to_owned()))
}

/// Digits only, without the sign that `parse` would take.
fn decimal(text: &str) -> Option<u32> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_decimal)
}

/// A number of partition, or of rows.
///
/// # Errors
/// If it is something else.
pub fn number(text: &str) -> Result<u32, CommandError> {
    decimal(text).ok_or_else(|| CommandError::Number(text.to_owned()))
}

/// A tid: `tid:<integer>` as Python writes integers, or a UNIX time stamp.
///
/// A bare integer was a tid until version 1.12, and is a time stamp since. It is only accepted if it
/// cannot be a tid: `truncate 0` would erase everything for who thinks of the old meaning.
///
/// # Errors
/// If it is neither, or could be both.
pub fn tid(text: &str) -> Result<Tid, CommandError> {
    let wrong = || CommandError::Tid(text.to_owned());
    if let Some(prefix) = text.get(..4).filter(|prefix| prefix.eq_ignore_ascii_case("tid:")) {
        return integer(&text[prefix.len()..]).map(Tid::new).ok_or_else(wrong);
    }
    let seconds: f64 = text.trim().parse().map_err(|_| wrong())?;
    if let Ok(whole) = text.trim().parse::<i128>() {
        if whole < 0 {
            return Err(wrong());
        }
        let is_timestamp =
            whole >= i128::from(TIMESTAMP_MIN) && tid_from_timestamp(seconds).is_some();
        if !is_timestamp {
            return Err(CommandError::AmbiguousTid(text.to_owned()));
        }
    }
    tid_from_timestamp(seconds).ok_or_else(wrong)
}

/// Python's `int(text, 0)`, up to 64 bits.
fn integer(text: &str) -> Option<u64> {
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.get(..2) {
        Some("0x") => (lower.get(2..)?, 16),
        Some("0o") => (lower.get(2..)?, 8),
        Some("0b") => (lower.get(2..)?, 2),
        _ => (lower.as_str(), 10),
    };
    // An underscore may separate two digits, or follow the prefix.
    let digits = if radix == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    let is_wrong = digits.is_empty()
        || digits.split('_').any(|part| part.is_empty())
        || digits.contains(['+', '-'])
        // Not octal any more, not decimal yet.
        || radix == 10 && digits.starts_with('0') && digits.contains(|c| !"0_".contains(c));
    if is_wrong { None } else { u64::from_str_radix(&digits.replace('_', ""), radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter and a number, nothing else.
    #[test]
    fn nodes() {
        for (text, value) in [("S1", 1), ("M1", -268435455), ("C3", -536870909), ("A1", -805306367)]
        {
            assert_eq!(node(text).unwrap().get(), value);
        }
        assert_eq!(node("S16777215").unwrap().to_string(), "S16777215");
        let hex = "53caea5066c690063f90d8e582039128";
        for text in
            ["", "S", "s1", "X1", "S0", "S16777216", "S-1", "S+1", "S 1", "S1 ", "1", "-n", hex]
        {
            assert_eq!(node(text), Err(CommandError::Node(text.into())));
        }
    }

    /// `tid:` in any case, then what Python takes as an integer.
    #[test]
    fn tids() {
        let expected = Ok(Tid::new(0x0393_7af2_eeee_eeee));
        for text in [
            "tid:257684787499560686",
            "TID:0x3937af2eeeeeeee",
            "Tid:0X3937AF2EEEEEEEE",
            "tid:0x_3937af2_eeeeeeee",
            "tid: 257_684_787_499_560_686 ",
            "tid:+257684787499560686",
        ] {
            assert_eq!(tid(text), expected, "{text}");
        }
        assert_eq!(tid("tid:0"), Ok(Tid::ZERO));
        assert_eq!(tid("tid:0_0"), Ok(Tid::ZERO));
        assert_eq!(tid("tid:0b101"), Ok(Tid::new(5)));
        assert_eq!(tid("tid:0o17"), Ok(Tid::new(15)));
        assert_eq!(tid("tid:18446744073709551615"), Ok(Tid::INVALID));
        for text in [
            "tid:",
            "tid:-1",
            "tid:x",
            "tid:010",
            "tid:1__0",
            "tid:_1",
            "tid:1_",
            "tid:0x",
            "tid:++1",
            "tid:1.0",
            "tid:18446744073709551616",
            "tid:0x-1",
            "tid",
            "",
            "é:€",
            "x",
            "1,5",
            "nan",
            "inf",
            "1e300",
            "-1e300",
            "-1",
        ] {
            assert_eq!(tid(text), Err(CommandError::Tid(text.into())), "{text}");
        }
    }

    /// A time stamp, as the usage of upstream shows; numbers that changed their meaning are refused.
    #[test]
    fn timestamps() {
        let expected = Ok(Tid::new(0x0393_7af2_eeee_eeee));
        for text in ["1325421296", "1325421296.0", "1325421296.", "1.325421296e9", " 1325421296 "] {
            assert_eq!(tid(text), expected, "{text}");
        }
        assert_eq!(tid("1795301550.851801"), Ok(Tid::new(0x040d_2c9c_83a2_64cc)));
        assert_eq!(tid("0.0"), Ok(Tid::new(0x023c_2b00_0000_0000)));
        for text in ["0", "1", "99999999", "257684787499560686", "+0"] {
            assert_eq!(tid(text), Err(CommandError::AmbiguousTid(text.into())), "{text}");
        }
    }
}
