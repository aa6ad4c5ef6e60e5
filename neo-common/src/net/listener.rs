// SPDX-License-Identifier: GPL-2.0-or-later
//! The listening socket of a node, IPv4 or IPv6.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted. Upstream: 5, which is little when many clients start.
const BACKLOG: i32 = 128;

/// A bound, listening, non-blocking socket.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: mio::net::TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds and listens; port 0 takes a free one.
    ///
    /// # Errors
    /// Those of the operating system: address in use, not local, not permitted...
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A node that was killed restarts at once on the same port.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = mio::net::TcpListener::from_std(socket.into());
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }
    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
