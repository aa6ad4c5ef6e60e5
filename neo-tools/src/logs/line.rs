// SPDX-License-Identifier: GPL-2.0-or-later
//! Lines of log files, as `neo_common::logging` writes them.
//!
//! ```text
//! 2026-11-21 22:47:41.0780 WARNING   NEO        [administration:188] no node added
//! 2026-11-21 22:47:41.0781 PACKET    NEO        [           mod:141] #0x0001 Ping   > S1 (...) | Ping
//! |------- date --------| |-level-| |-name---|  |-- module:line --|  |-- message -------| |body|
//! ```
//!
//! Whatever else is in a file (a panic, garbage) belongs to the line above it. Nothing in a file is
//! more than text: control characters are shown, not sent to the terminal.

use neo_common::logging::{DEFAULT_NAME, PACKET_LEVEL};

/// Bytes of the date.
pub const DATE_LEN: usize = "2026-11-21 22:47:41.0780".len();

/// Separates the body of a packet.
const BODY: &str = " | ";

/// A line in its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    /// Local date and time: sorted as texts, they are in order.
    pub date: &'a str,
    /// Level.
    pub level: &'a str,
    /// Name of the node.
    pub name: &'a str,
    /// What follows the place in the program.
    pub message: &'a str,
}

impl<'a> Line<'a> {
    /// Splits a line; `None` if it is not one of ours.
    pub fn parse(text: &'a str) -> Option<Self> {
        let date = text.get(..DATE_LEN)?;
        let is_date = date
            .bytes()
            .zip("0000-00-00 00:00:00.0000".bytes())
            .all(|(byte, model)| if model == b'0' { byte.is_ascii_digit() } else { byte == model });
        let rest = text[DATE_LEN..].strip_prefix(' ').filter(|_| is_date)?;
        let (level, rest) = rest.split_once(' ')?;
        let (name, rest) = rest.trim_start().split_once('[')?;
        let (_, message) = rest.split_once("] ")?;
        Some(Self { date, level, name: name.trim_end(), message })
    }

    /// Whether it is about a packet.
    pub fn is_packet(&self) -> bool {
        self.level == PACKET_LEVEL
    }

    /// The name of the node, or that of the file if the node has none of its own.
    pub fn node(&self, file: &'a str) -> &'a str {
        if self.name == DEFAULT_NAME && !file.is_empty() { file } else { self.name }
    }

    /// The line as it is shown.
    pub fn show(&self, node: &str, all: bool) -> String {
        let mut message = self.message;
        if self.is_packet() && !all {
            message = message.split_once(BODY).map_or(message, |(message, _)| message);
        }
        printable(&format!("{} {:<9} {node:<10} {message}", self.date, self.level))
    }
}

/// Makes control characters visible.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: &str = "2026-11-21 22:47:41.0781 PACKET    NEO        [           mod:141] #0x0001 Ping > S1 | Ping";

    /// What is shown of each kind of line.
    #[test]
    fn lines() {
        let text = "2026-11-21 22:47:41.0780 WARNING   S1         [administration:188] no [x] node";
        let line = Line::parse(text).unwrap();
        let parts = (line.date, line.level, line.name, line.message);
        assert_eq!(parts, ("2026-11-21 22:47:41.0780", "WARNING", "S1", "no [x] node"));
        assert_eq!(line.node("file"), "S1");
        assert_eq!(
            line.show("S1", false),
            "2026-11-21 22:47:41.0780 WARNING   S1         no [x] node"
        );
        let line = Line::parse(PACKET).unwrap();
        assert!(line.is_packet());
        assert_eq!((line.node("storage"), line.node("")), ("storage", "NEO"));
        let without = "2026-11-21 22:47:41.0781 PACKET    m          #0x0001 Ping > S1";
        assert_eq!(line.show("m", false), without);
        assert_eq!(line.show("m", true), format!("{without} | Ping"));
    }

    /// What is not ours, and what could harm a terminal.
    #[test]
    fn foreign_text() {
        for end in 0..PACKET.len() - "#0x0001 Ping > S1 | Ping".len() {
            assert_eq!(Line::parse(&PACKET[..end]), None, "{end}");
        }
        for text in ["", "thread panicked", "2026-11-21T22:47:41.0780 INFO NEO [a:1] x", "é"] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
        assert_eq!(printable("a\x1b[31m\tb\u{9b}\0é"), "a\\u{1b}[31m\tb\\u{9b}\\u{0}é");
    }
}
