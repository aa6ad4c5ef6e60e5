// SPDX-License-Identifier: GPL-2.0-or-later
//! The local time, for log lines. Nothing else depends on the time zone.
//!
//! Unsafe code: the time zone database of the system is only accessible through the C library, and
//! `localtime_r` is called with a pointer to a number and one to a structure, both on the stack. It
//! reads the variable `TZ`, which nothing in this project changes while it runs.

use super::LocalTime;

/// Local date and time of a number of microseconds since 1970-01-01 UTC. It falls back to UTC if
/// the system cannot tell.
pub fn local_time(us: u64) -> LocalTime {
    let decimillis = (us % 1_000_000 / 100) as u16;
    let seconds = (us / 1_000_000) as libc::time_t;
    // SAFETY: all fields of `tm` are integers or a pointer that may be null.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the duration of the call and do not alias.
    let is_known = unsafe { !libc::localtime_r(&seconds, &mut tm).is_null() };
    if !is_known {
        let date = crate::time::DateTime::from_unix_us(i64::try_from(us).unwrap_or(i64::MAX));
        return LocalTime {
            year: i32::try_from(date.year).unwrap_or(i32::MAX),
            month: date.month,
            day: date.day,
            hour: date.hour,
            minute: date.minute,
            second: date.second,
            decimillis,
        };
    }
    LocalTime {
        year: tm.tm_year.saturating_add(1900),
        month: tm.tm_mon as u8 + 1,
        day: tm.tm_mday as u8,
        hour: tm.tm_hour as u8,
        minute: tm.tm_min as u8,
        second: tm.tm_sec as u8,
        decimillis,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The local time is at most 14 hours away from UTC, and minutes are those of a quarter.
    #[test]
    fn near_utc() {
        let time = local_time(1_795_301_550_851_801);
        assert_eq!((time.year, time.month, time.decimillis), (2026, 11, 8518));
        assert!((21..=22).contains(&time.day));
        assert_eq!((time.second, time.minute % 15), (30, 52 % 15));
        // Far beyond what a calendar can do.
        assert_eq!(local_time(u64::MAX).decimillis, 5516);
    }
}
