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
use std::net::SocketAddr;

use crate::protocol::{MsgId, Packet};
use crate::types::NodeId;

/// Target of these records: they are kept in memory, see [`super`].
pub const PACKETS: &str = "neo_packet";

/// Level in the lines.
pub const PACKET_LEVEL: &str = "PACKET";

/// Bytes of a body that are kept. Enough for all identifiers; what follows is mostly data, and to
/// escape it would be most of what a record costs.
const BODY_LEN_MAX: usize = 240;

/// A packet that was sent (`>`) or received (`<`). Formatted only if somebody wants to see it.
pub struct PacketRecord<'a> {
    /// Its id, if there is one.
    pub id: Option<MsgId>,
    /// `<` or `>`.
    pub direction: char,
    /// The peer: its node id, if it is known, and its address.
    pub peer: (Option<NodeId>, SocketAddr),
    /// The packet.
    pub packet: &'a Packet,
}

impl fmt::Display for PacketRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, direction, peer: (nid, address), packet } = self;
        write!(f, "#0x{:04x} {:<30} {direction} ", id.unwrap_or_default(), packet.name())?;
        match nid {
            Some(nid) => write!(f, "{nid} ({address}) | ")?,
            None => write!(f, "? ({address}) | ")?,
        }
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
        if text.len() <= self.left {
            self.left -= text.len();
            return self.output.write_str(text);
        }
        let end = (0..=self.left).rev().find(|end| text.is_char_boundary(*end));
        self.left = 0;
        self.output.write_str(&text[..end.unwrap_or_default()])?;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ErrorCode, NodeType};

    const ADDRESS: &str = "127.0.0.1:5";

    fn line(message: &str) -> String {
        let packet = Packet::error(ErrorCode::Denied, message);
        let peer = (NodeId::of(NodeType::Client, 1), ADDRESS.parse().unwrap());
        PacketRecord { id: Some(18), direction: '<', peer, packet: &packet }.to_string()
    }

    /// Short bodies are whole, long ones are cut between two characters.
    #[test]
    fn bodies() {
        assert_eq!(
            line("no"),
            "#0x0012 Error                          < C1 (127.0.0.1:5) | Error { code: Denied, message: \"no\" }"
        );
        let long = line(&"é".repeat(10_000));
        let (_, body) = long.split_once(" | ").unwrap();
        assert!((BODY_LEN_MAX - 1..=BODY_LEN_MAX).contains(&(body.len() - 3)), "{body}");
        assert!(body.ends_with("éé..."));
        let peer = (None, ADDRESS.parse().unwrap());
        let none = PacketRecord { id: None, direction: '>', peer, packet: &Packet::Ping {} };
        let expected = "#0x0000 Ping                           > ? (127.0.0.1:5) | Ping";
        assert_eq!(none.to_string(), expected);
    }
}
