// SPDX-License-Identifier: GPL-2.0-or-later
//! Format of a line.

use std::io::{self, Write};

use log::{Level, Record};

use super::packet::{PACKET_LEVEL, PACKETS};

/// Date and time where this machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalTime {
    /// Year.
    pub year: i32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 60.
    pub second: u8,
    /// Tenths of milliseconds, 0 to 9999.
    pub decimillis: u16,
}

/// Writes a record: one line per line of its message.
///
/// # Errors
/// Those of the output.
pub fn write_line(
    output: &mut impl Write,
    time: LocalTime,
    name: &str,
    record: &Record<'_>,
) -> io::Result<()> {
    let LocalTime { year, month, day, hour, minute, second, decimillis } = time;
    let level = match record.level() {
        _ if record.target() == PACKETS => PACKET_LEVEL,
        Level::Error => "ERROR",
        Level::Warn => "WARNING",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    };
    let module = record.module_path().unwrap_or(record.target());
    let module = module.rsplit("::").next().unwrap_or_default();
    let line = record.line().unwrap_or_default();
    let prefix = format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{decimillis:04} \
         {level:<9} {name:<10} [{module:>14}:{line:>3}] "
    );
    let message = record.args().to_string();
    let mut text = String::with_capacity(prefix.len() + message.len() + 1);
    let mut lines = message.lines();
    // Also without message.
    let first = lines.next().unwrap_or_default();
    for line in std::iter::once(first).chain(lines) {
        text.push_str(&prefix);
        text.push_str(line);
        text.push('\n');
    }
    // One write, so that lines of several processes do not mix.
    output.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, module: &str, number: u32, message: &str) -> String {
        let time = LocalTime {
            year: 2026,
            month: 11,
            day: 21,
            hour: 22,
            minute: 47,
            second: 41,
            decimillis: 780,
        };
        let mut output = Vec::new();
        let args = format_args!("{message}");
        let record = Record::builder()
            .args(args)
            .level(level)
            .target("target")
            .module_path(Some(module))
            .line(Some(number))
            .build();
        write_line(&mut output, time, "NEO", &record).unwrap();
        String::from_utf8(output).unwrap()
    }

    /// The lines of upstream, with its paddings.
    #[test]
    fn format_of_upstream() {
        let module = "neo_master::handlers::administration";
        assert_eq!(
            line(Level::Warn, module, 188, "No node added"),
            "2026-11-21 22:47:41.0780 WARNING   NEO        [administration:188] No node added\n"
        );
        assert_eq!(
            line(Level::Info, "neo_common::node", 7, "a\nb\n"),
            "2026-11-21 22:47:41.0780 INFO      NEO        [          node:  7] a\n\
             2026-11-21 22:47:41.0780 INFO      NEO        [          node:  7] b\n"
        );
        assert_eq!(
            line(Level::Error, "neomaster", 1234, ""),
            "2026-11-21 22:47:41.0780 ERROR     NEO        [     neomaster:1234] \n"
        );
    }
}
