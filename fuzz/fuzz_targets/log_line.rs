// SPDX-License-Identifier: GPL-2.0-or-later
//! A line of a log file from any bytes: nothing that is shown can harm a terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neo_tools::logs::line::{DATE_LEN, Line, printable};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let is_harmless = |shown: &str| shown.chars().all(|c| !c.is_control() || c == '\t');
    assert!(is_harmless(&printable(&text)));
    let Some(line) = Line::parse(&text) else { return };
    assert_eq!(line.date.len(), DATE_LEN);
    for all in [false, true] {
        assert!(is_harmless(&line.show(line.node("storage"), all)));
    }
});
