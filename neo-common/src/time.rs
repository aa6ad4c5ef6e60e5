// SPDX-License-Identifier: GPL-2.0-or-later
//! Time as an argument: what a driver tells a core; and time in tids.
//!
//! A tid is a ZODB time stamp, in UTC:
//!
//! ```text
//! high 32 bits: minutes, as (((year - 1900) * 12 + month - 1) * 31 + day - 1) * 1440 + minute of day
//! low  32 bits: seconds within the minute, times 2^32 / 60
//! ```
//!
//! Months have 31 slots for days, so tids are not contiguous: after the last minute of a month, the
//! next tid is not the next number. That is why [`add_tid`] goes through the calendar.
//! Upstream: lib/util.py, `tidFromTime`, `datetimeFromTID`, `addTID`.

use std::fmt;
use std::time::Duration;

use crate::types::{Tid, Ttid};

/// The two clocks, read once by the driver for each input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// Time since an arbitrary origin; it never goes back. Timers and delays use it.
    pub monotonic: Duration,
    /// Microseconds since 1970-01-01 UTC; it may jump. Tids and id timestamps use it.
    pub realtime_us: u64,
}

impl Now {
    /// Seconds since 1970-01-01 UTC, as on the wire.
    pub fn realtime_seconds(self) -> f64 {
        self.realtime_us as f64 / 1e6
    }
}

/// Calendar date and time, UTC. Prints like Python's `datetime`: `2026-11-21 22:52:30.851801`,
/// without the microseconds if there are none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DateTime {
    /// Of the Gregorian calendar.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31. From a tid that no clock gave, it may be greater than the month has.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59: there are no leap seconds.
    pub second: u8,
    /// Microseconds, 0 to 999,999.
    pub micros: u32,
}

const MICROS: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// Length of the low part of a tid: a minute.
const LOW_COUNT: i128 = 1 << 32;

impl DateTime {
    /// From microseconds since 1970-01-01.
    pub fn from_unix_us(us: i64) -> Self {
        let (seconds, micros) = (us.div_euclid(MICROS), us.rem_euclid(MICROS));
        let (days, second) =
            (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        let (year, month, day) = civil_from_days(days);
        Self {
            year,
            month,
            day,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
            micros: micros as u32,
        }
    }

    /// From seconds since 1970-01-01, as in id timestamps; rounded to the nearest microsecond
    /// (half to even), as Python does. `None` outside of the years 1 to 9999.
    pub fn from_timestamp(seconds: f64) -> Option<Self> {
        // Also false for NaN.
        let in_range = (-62_135_596_800.0..253_402_300_800.0).contains(&seconds);
        if !in_range {
            return None;
        }
        let micros = (seconds.fract() * 1e6).round_ties_even();
        let date = Self::from_unix_us(seconds.trunc() as i64 * MICROS + micros as i64);
        (1..=9999).contains(&date.year).then_some(date)
    }

    /// From a tid; fractions of a microsecond are dropped.
    pub fn from_tid(tid: Tid) -> Self {
        let (minutes, low) = split(tid);
        let (days, minute) = (minutes / 1440, minutes % 1440);
        let (months, day) = (days / 31, days % 31);
        // 60 * low < 2^38, times 10^6 < 2^58.
        let us = (low * 60 * MICROS as u64) >> 32;
        Self {
            year: 1900 + (months / 12) as i64,
            month: (months % 12) as u8 + 1,
            day: day as u8 + 1,
            hour: (minute / 60) as u8,
            minute: (minute % 60) as u8,
            second: (us / MICROS as u64) as u8,
            micros: (us % MICROS as u64) as u32,
        }
    }

    /// Microseconds since 1970-01-01. A day after the end of its month counts on in the next one.
    pub fn unix_us(&self) -> i64 {
        let days = days_from_civil(self.year, self.month, self.day);
        let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
        let seconds = days * SECONDS_PER_DAY + minutes * 60 + i64::from(self.second);
        seconds * MICROS + i64::from(self.micros)
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second, micros } = *self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")?;
        if micros == 0 { Ok(()) } else { write!(f, ".{micros:06}") }
    }
}

/// Tid of a time in microseconds since 1970-01-01 UTC; [`Tid::MAX`] if it is too late for a tid.
pub fn tid_from_time(us: u64) -> Tid {
    let minute = i64::try_from(us / 60_000_000).unwrap_or(i64::MAX);
    let low = (u128::from(us % 60_000_000) << 32) / 60_000_000;
    join(minute, low as u64).filter(|tid| *tid <= Tid::MAX).unwrap_or(Tid::MAX)
}

/// Tid of a time in seconds since 1970-01-01 UTC, computed with the same roundings as upstream.
/// `None` if it is not a number or outside of what a tid can represent.
pub fn tid_from_timestamp(seconds: f64) -> Option<Tid> {
    if seconds.is_nan() || seconds.abs() >= 1e15 {
        return None;
    }
    let whole = seconds.floor() as i64;
    // For a negative time with a fraction, upstream takes the fraction towards 0 although the
    // seconds were rounded down: such a time is one second early.
    let second = whole.rem_euclid(60) as f64 + seconds.fract();
    if second < 0.0 {
        return None;
    }
    let low = (second / (60.0 / LOW_COUNT as f64)) as u64;
    join(whole.div_euclid(60), low.min(LOW_COUNT as u64 - 1))
}

/// Microseconds since 1970-01-01 UTC.
pub fn time_from_tid(tid: Tid) -> i64 {
    DateTime::from_tid(tid).unix_us()
}

/// The tid that is `offset` units of 60 / 2^32 seconds later, carrying into the minute according
/// to the calendar. `None` outside of what a tid can represent.
pub fn add_tid(tid: Tid, offset: i64) -> Option<Tid> {
    let (minutes, low) = split(tid);
    let sum = i128::from(low) + i128::from(offset);
    let (carry, low) = (sum.div_euclid(LOW_COUNT) as i64, sum.rem_euclid(LOW_COUNT) as u64);
    if carry == 0 {
        return Some(Tid::new((minutes << 32) | low));
    }
    let minute = DateTime::from_tid(Tid::new(minutes << 32)).unix_us() / (60 * MICROS);
    join(minute + carry, low)
}

/// The next tid to give: of now if possible, and greater than `last` whatever the clock does.
///
/// With `congruent`, a ttid and the number of partitions, it belongs to the same partition as the
/// ttid, so that the metadata of a transaction stays where it was voted. When there is a choice the
/// result is moved to the past rather than to the future. `None` once tids are exhausted.
/// Upstream: master/transactions.py, `_nextTID`.
pub fn next_tid(last: Tid, now_us: u64, congruent: Option<(Ttid, u32)>) -> Option<Tid> {
    let now = tid_from_time(now_us);
    let mut tid = if now > last { now } else { add_tid(last, 1)? };
    if let Some((ttid, partitions)) = congruent {
        let divisor = u64::from(partitions.max(1));
        let remainder = ttid.get() % divisor;
        let back = (tid.get() % divisor + divisor - remainder) % divisor;
        match add_tid(tid, -(back as i64)) {
            Some(earlier) if earlier > last && earlier.get() % divisor == remainder => {
                tid = earlier
            }
            _ => {
                // Twice at most: only the end of a month breaks the sequence of numbers.
                while tid.get() % divisor != remainder {
                    let forward = (remainder + divisor - tid.get() % divisor) % divisor;
                    tid = add_tid(tid, forward as i64)?;
                }
            }
        }
    }
    (tid <= Tid::MAX).then_some(tid)
}

fn split(tid: Tid) -> (u64, u64) {
    (tid.get() >> 32, tid.get() & 0xffff_ffff)
}

/// From minutes since 1970-01-01 and the low part.
fn join(minute: i64, low: u64) -> Option<Tid> {
    let (days, minute) = (minute.div_euclid(1440), minute.rem_euclid(1440));
    // Far more than any tid; it keeps the arithmetic of the calendar in range.
    if days.unsigned_abs() > 10_000_000 {
        return None;
    }
    let (year, month, day) = civil_from_days(days);
    let months = (year - 1900) * 12 + i64::from(month) - 1;
    let minutes = (months * 31 + i64::from(day) - 1) * 1440 + minute;
    u32::try_from(minutes).ok().map(|minutes| Tid::new((u64::from(minutes) << 32) | low))
}

/// Days from 1970-01-01 to a date. Counted from a first of March, so that the leap day is the last
/// day of a year: then days of the year follow from months by one linear formula.
fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted + 2) / 5 + 1) as u8;
    let month = (if shifted < 10 { shifted + 3 } else { shifted - 9 }) as u8;
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
