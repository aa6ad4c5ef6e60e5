// SPDX-License-Identifier: GPL-2.0-or-later
//! Expected values were computed with CPython 3.11: `persistent.TimeStamp` 6, upstream's `neo.lib.util`
//! and `datetime`.

use super::*;

fn us(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8, micros: u32) -> i64 {
    DateTime { year, month, day, hour, minute, second, micros }.unix_us()
}

/// Tids of dates are those of ZODB: month ends, leap years, centuries.
#[test]
fn tids_of_dates() {
    for (date, tid, text) in [
        ((1970, 1, 1, 0, 0, 0, 0), 0x023c_2b00_0000_0000, "1970-01-01 00:00:00"),
        ((1999, 12, 31, 23, 59, 59, 500_000), 0x0331_61ff_fddd_dddd, "1999-12-31 23:59:59.499999"),
        ((2000, 2, 29, 12, 0, 0, 0), 0x0332_b0b0_0000_0000, "2000-02-29 12:00:00"),
        ((2000, 3, 1, 0, 0, 0, 0), 0x0332_bec0_0000_0000, "2000-03-01 00:00:00"),
        ((2024, 2, 28, 23, 59, 0, 250_000), 0x03f6_d9df_0111_1111, "2024-02-28 23:59:00.249999"),
        ((2024, 2, 29, 0, 0, 0, 0), 0x03f6_d9e0_0000_0000, "2024-02-29 00:00:00"),
        ((2026, 11, 21, 22, 52, 30, 851_801), 0x040d_2c9c_83a2_64d2, "2026-11-21 22:52:30.851800"),
        ((2026, 11, 30, 23, 59, 59, 999_999), 0x040d_5f7f_ffff_ffb8, "2026-11-30 23:59:59.999998"),
        ((2038, 1, 19, 3, 14, 7, 0), 0x0468_6302_1ddd_dddd, "2038-01-19 03:14:06.999999"),
        ((2100, 2, 28, 23, 59, 30, 0), 0x0664_0fdf_8000_0000, "2100-02-28 23:59:30"),
        ((2100, 3, 1, 0, 0, 0, 0), 0x0664_20c0_0000_0000, "2100-03-01 00:00:00"),
    ] {
        let (year, month, day, hour, minute, second, micros) = date;
        let time = us(year, month, day, hour, minute, second, micros);
        let tid = Tid::new(tid);
        assert_eq!(tid_from_time(time as u64), tid, "{date:?}");
        assert_eq!(DateTime::from_tid(tid).to_string(), text);
        assert!((0..2).contains(&(time - time_from_tid(tid))), "{date:?}");
    }
    for (tid, text) in [
        (0, "1900-01-01 00:00:00"),
        (1, "1900-01-01 00:00:00"),
        (0x0001_5cc0_0000_0000, "1900-03-01 00:00:00"),
        (0x0022_037f_ffff_ffb8, "1904-02-29 23:59:59.999998"),
        (0xffff_ffff, "1900-01-01 00:00:59.999999"),
        (0x040d_2c9c_83a2_6503, "2026-11-21 22:52:30.851801"),
        (0x040d_2c9c_8391_7345, "2026-11-21 22:52:30.836288"),
        (0x040d_2c9c_8888_8888, "2026-11-21 22:52:31.999999"),
        (0x040d_2c9c_8888_8889, "2026-11-21 22:52:32"),
        (257_684_787_499_560_686, "2012-01-01 12:34:55.999999"),
        (0xe2ba_551e_0ccc_cd14, "9000-12-31 01:02:03"),
    ] {
        assert_eq!(DateTime::from_tid(Tid::new(tid)).to_string(), text);
    }
}

/// No number is too big for a tid, no tid is too big to be printed, and a date that no calendar has
/// counts on.
#[test]
fn extremes() {
    assert_eq!(tid_from_time(u64::MAX), Tid::MAX);
    assert_eq!(tid_from_time(0), Tid::new(0x023c_2b00_0000_0000));
    assert_eq!(DateTime::from_tid(Tid::INVALID).to_string(), "9917-10-14 04:15:59.999999");
    let february_31 = Tid::new(((((126 * 12 + 1) * 31 + 30) * 1440) as u64) << 32);
    assert_eq!(DateTime::from_tid(february_31).to_string(), "2026-02-31 00:00:00");
    assert_eq!(time_from_tid(february_31), us(2026, 3, 3, 0, 0, 0, 0));
    assert_eq!(DateTime::from_unix_us(i64::MIN).year, -290_308);
    assert_eq!(DateTime::from_unix_us(i64::MAX).year, 294_247);
}

/// Tids of UNIX time stamps have upstream's roundings, also when they are surprising.
#[test]
fn tids_of_timestamps() {
    for (timestamp, tid) in [
        (0.0, 0x023c_2b00_0000_0000),
        (1.0, 0x023c_2b00_0444_4444),
        (59.999_999_9, 0x023c_2b00_ffff_fff8),
        (60.0, 0x023c_2b01_0000_0000),
        (0.1, 0x023c_2b00_006d_3a06),
        (1e9, 0x033f_2eea_aaaa_aaaa),
        (1_325_421_296.0, 0x0393_7af2_eeee_eeee),
        (1_795_301_550.851_801, 0x040d_2c9c_83a2_64cc),
        (1_795_301_542.640_331_5, 0x040d_2c9c_6099_4788),
        (951_782_399.999_999, 0x0332_addf_ffff_ffbb),
        (951_868_800.5, 0x0332_bec0_0222_2222),
        (1_709_164_799.25, 0x03f6_d9df_fccc_cccc),
        (4_107_542_399.75, 0x0664_0fdf_feee_eeee),
        (-1.0, 0x023c_2aff_fbbb_bbbb),
        (-0.5, 0x023c_2aff_f999_9999),
        (-2_208_988_800.0, 0),
        (-1_234_567_890.25, 0x00fc_667c_7aaa_aaaa),
        (249_999_999_999.5, 0xff2e_c30a_a888_8888),
    ] {
        assert_eq!(tid_from_timestamp(timestamp), Some(Tid::new(tid)), "{timestamp}");
    }
    for timestamp in
        [-2_208_988_799.5, -2_208_988_801.0, 3e11, 1e300, f64::INFINITY, -f64::INFINITY, f64::NAN]
    {
        assert_eq!(tid_from_timestamp(timestamp), None, "{timestamp}");
    }
}

/// Time stamps of nodes print like Python's `datetime`, rounded half to even.
#[test]
fn timestamps_print() {
    for (timestamp, text) in [
        (1_795_301_542.249_12, "2026-11-21 22:52:22.249120"),
        (1_795_301_542.640_331_5, "2026-11-21 22:52:22.640332"),
        (1_795_301_029.972_224_5, "2026-11-21 22:43:49.972224"),
        (1.0, "1970-01-01 00:00:01"),
        (0.5e-6, "1970-01-01 00:00:00"),
        (1.5e-6, "1970-01-01 00:00:00.000002"),
        (2.5e-6, "1970-01-01 00:00:00.000002"),
        (1_795_301_542.999_999_5, "2026-11-21 22:52:23"),
        (-1.5, "1969-12-31 23:59:58.500000"),
        (253_402_300_799.0, "9999-12-31 23:59:59"),
    ] {
        assert_eq!(DateTime::from_timestamp(timestamp).unwrap().to_string(), text);
    }
    for timestamp in [f64::NAN, f64::INFINITY, 1e300, 253_402_300_800.0, -62_135_596_801.0] {
        assert_eq!(DateTime::from_timestamp(timestamp), None, "{timestamp}");
    }
}

/// Additions carry into the next minute, day, month and year, both ways.
#[test]
fn additions() {
    for (tid, offset, sum) in [
        (0x040d_2c9c_0000_0005, 1, 0x040d_2c9c_0000_0006),
        (0x040d_2c9c_ffff_ffff, 1, 0x040d_2c9d_0000_0000),
        (0x040d_5f7f_ffff_ffff, 1, 0x040d_6520_0000_0000),
        (0x040e_137f_ffff_ffff, 1, 0x040e_1380_0000_0000),
        (0x03f6_d9df_ffff_ffff, 1, 0x03f6_d9e0_0000_0000),
        (0x03f6_df7f_ffff_ffff, 1, 0x03f6_eac0_0000_0000),
        (0x03ee_ad5f_ffff_ffff, 7, 0x03ee_be40_0000_0006),
        (0x0332_addf_ffff_ffff, 1, 0x0332_ade0_0000_0000),
        (0x0664_0fdf_ffff_fffd, 5, 0x0664_20c0_0000_0002),
        (0x0407_43c0_0000_0003, -4, 0x0407_32df_ffff_ffff),
        (0x03f6_eac0_0000_0003, -4, 0x03f6_df7f_ffff_ffff),
        (0x0405_e700_0000_0000, -1, 0x0405_e6ff_ffff_ffff),
        (0x040d_2c9c_0000_0064, -100, 0x040d_2c9c_0000_0000),
        (0x040d_2c9c_0000_0064, -101, 0x040d_2c9b_ffff_ffff),
        (0x040d_2c9c_0000_0007, 1 << 33, 0x040d_2c9e_0000_0007),
        (0x040d_2c9c_0000_0007, (1440 * 40) << 32, 0x040e_133c_0000_0007),
    ] {
        assert_eq!(add_tid(Tid::new(tid), offset), Some(Tid::new(sum)), "{tid:#x} {offset}");
    }
    assert_eq!(add_tid(Tid::ZERO, -1), None);
    assert_eq!(add_tid(Tid::INVALID, 1), None);
    let far = Tid::new(0x825e_3f5f_ffff_ffff);
    assert_eq!(add_tid(Tid::ZERO, i64::MAX), Some(far));
    assert_eq!(add_tid(Tid::ZERO, i64::MIN), None);
}

/// Days and dates are inverse of each other over all years of tids.
#[test]
fn calendar_round_trips() {
    let mut previous = civil_from_days(-25_568);
    assert_eq!(previous, (1899, 12, 31));
    for days in -25_567..2_940_000 {
        let date = civil_from_days(days);
        assert_eq!(days_from_civil(date.0, date.1, date.2), days);
        assert!(date > previous, "{date:?}");
        previous = date;
    }
    assert_eq!(previous.0, 10019);
}

/// A tid is always greater than the last one, in the wanted partition, and as near to now as these
/// allow, the past being preferred.
#[test]
fn next_tids() {
    let now = us(2026, 11, 21, 22, 52, 30, 0) as u64;
    let tid = tid_from_time(now);
    let early = Tid::new(tid.get() - 1000);
    assert_eq!(next_tid(early, now, None), Some(tid));
    assert_eq!(next_tid(tid, now, None), tid.next());
    let late = Tid::new(0x040d_5f7f_ffff_ffff);
    assert_eq!(next_tid(late, now, None), Some(Tid::new(0x040d_6520_0000_0000)));
    for partitions in [1, 2, 3, 12, 1000, 65_535] {
        for ttid in [0, 5, 11, 65_534, u64::MAX] {
            let wanted = ttid % u64::from(partitions);
            let congruent = Some((Ttid::new(ttid), partitions));
            // Room for any remainder: moved to the past by less than a round.
            let last = Tid::new(tid.get() - 100_000);
            let next = next_tid(last, now, congruent).unwrap();
            assert_eq!(next.get() % u64::from(partitions), wanted);
            assert!(next <= tid && tid.get() - next.get() < u64::from(partitions));
            // No room: the smallest one in the future.
            for last in [tid, early.max(Tid::new(tid.get() - 1))] {
                let next = next_tid(last, now, congruent).unwrap();
                assert_eq!(next.get() % u64::from(partitions), wanted);
                assert!(next > last && next.get() - last.get() <= u64::from(partitions));
            }
            // At the end of a month, where numbers are skipped.
            let next = next_tid(late, now, congruent).unwrap();
            assert_eq!(next.get() % u64::from(partitions), wanted);
            assert!(next > late);
            let first = us(2026, 12, 1, 0, 0, 0, 0) as u64;
            let next = next_tid(early, first, congruent).unwrap();
            assert_eq!(next.get() % u64::from(partitions), wanted);
            assert!(next > early && next.get() < tid_from_time(first).get() + 65_536);
        }
    }
    assert_eq!(next_tid(Tid::MAX, now, None), None);
    assert_eq!(next_tid(Tid::ZERO, u64::MAX, Some((Ttid::new(0), 7))).unwrap().get() % 7, 0);
}
