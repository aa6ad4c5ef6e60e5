// SPDX-License-Identifier: GPL-2.0-or-later
//! Records of packets.
//!
//! ```text
//! #0x0012 AskObject                      < C1 (127.0.0.1:45316) | AskObject { oid: ..., ... }
//! ```
//!
//! `>` was sent, `<` was received; the body is what `neolog -a` shows. It is cut, because an object
//! may have megabytes.

use std::fmt::{self, Write as _};

use crate::protocol::{MsgId, Packet};

/// Target of these records: they are kept in memory, see [`super`].
pub const PACKETS: &str = "neo_packet";

/// Level in the lines.
pub const PACKET_LEVEL: &str = "PACKET";

/// Characters of a body that are kept.
const BODY_LEN_MAX: usize = 400;

/// A packet that was sent (`>`) or received (`<`). Formatted only if somebody wants to see it.
pub struct PacketRecord<'a, P> {
    /// Its id, if there is one.
    pub id: Option<MsgId>,
    /// `<` or `>`.
    pub direction: char,
    /// The peer.
    pub peer: P,
    /// The packet.
    pub packet: &'a Packet,
}

impl<P: fmt::Display> fmt::Display for PacketRecord<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, direction, peer, packet } = self;
        write!(f, "#0x{:04x} {:<30} {direction} {peer} | ", id.unwrap_or_default(), packet.name())?;
        let mut body = Cut { output: f, left: BODY_LEN_MAX };
        match write!(body, "{packet:?}") {
            Err(fmt::Error) if body.left == 0 => f.write_str("..."),
            result => result,
        }
    }
}

/// Fails once enough is written.
struct Cut<'a, 'f> {
    output: &'a mut fmt::Formatter<'f>,
    left: usize,
}

impl fmt::Write for Cut<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.char_indices().nth(self.left).map_or(text.len(), |(index, _)| index);
        self.left -= text[..end].chars().count();
        self.output.write_str(&text[..end])?;
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ErrorCode;

    fn line(message: &str) -> String {
        let packet = Packet::error(ErrorCode::Denied, message);
        PacketRecord { id: Some(18), direction: '<', peer: "C1", packet: &packet }.to_string()
    }

    /// Short bodies are whole, long ones are cut between two characters.
    #[test]
    fn bodies() {
        assert_eq!(
            line("no"),
            "#0x0012 Error                          < C1 | Error { code: Denied, message: \"no\" }"
        );
        let long = line(&"é".repeat(10_000));
        let (_, body) = long.split_once(" | ").unwrap();
        assert_eq!(body.chars().count(), BODY_LEN_MAX + 3);
        assert!(body.ends_with("éé..."));
        let none = PacketRecord { id: None, direction: '>', peer: 1, packet: &Packet::Ping {} };
        assert_eq!(none.to_string(), "#0x0000 Ping                           > 1 | Ping");
    }
}
