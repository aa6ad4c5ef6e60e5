// SPDX-License-Identifier: GPL-2.0-or-later
//! One non-blocking connection: what waits to be sent, and how it ends.
//!
//! A connection that is closed with something left to say is not dropped at once: dropping a socket
//! with unread input resets it, and the peer would lose the error message that explains why. It is
//! shut down for writing after the last byte, and drained until the peer closes or a delay expires.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};

use bytes::{Buf, Bytes};
use mio::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};

use crate::limits::{
    CONNECT_MAX, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, UNACKNOWLEDGED_MAX,
};

/// Pieces of one vectored write.
const SLICES_MAX: usize = 64;

/// How far a connection got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// `connect` is under way.
    Connecting,
    /// Both directions work.
    Open,
    /// Closed by the core; the rest is being sent, input is thrown away.
    Closing,
}

/// Result of reading once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOutcome {
    /// That many bytes, and maybe more.
    Some(usize),
    /// That many bytes (or none), and nothing more for now: wait for the next event, unless the end
    /// was already told.
    Drained(usize),
    /// The peer closed, or the connection broke.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub struct Socket {
    /// Registered by the driver.
    pub stream: TcpStream,
    /// How far it got.
    pub stage: Stage,
    /// Accepted from a peer, as opposed to opened by us.
    pub accepted: bool,
    /// The core does not want input.
    pub paused: bool,
    /// The peer will not send any more: what is left to read ends with a close.
    pub ending: bool,
    out: VecDeque<Bytes>,
    out_len: usize,
    /// What the core was told: much waits to be sent.
    pub full: bool,
}

impl Socket {
    /// Starts to connect.
    ///
    /// # Errors
    /// Those that the operating system knows at once.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Self::new(TcpStream::connect(address)?, Stage::Connecting, false);
        socket.set_options()?;
        Ok(socket)
    }

    /// Takes an accepted connection.
    ///
    /// # Errors
    /// If options cannot be set: the peer is gone already.
    pub fn accept(stream: TcpStream) -> io::Result<Self> {
        let socket = Self::new(stream, Stage::Open, true);
        socket.set_options()?;
        Ok(socket)
    }

    fn new(stream: TcpStream, stage: Stage, accepted: bool) -> Self {
        Self {
            stream,
            stage,
            accepted,
            paused: false,
            ending: false,
            out: VecDeque::new(),
            out_len: 0,
            full: false,
        }
    }

    fn set_options(&self) -> io::Result<()> {
        let socket = SockRef::from(&self.stream);
        socket.set_tcp_nodelay(true)?;
        let is_connecting = self.stage == Stage::Connecting;
        let unacknowledged = if is_connecting { CONNECT_MAX } else { UNACKNOWLEDGED_MAX };
        socket.set_tcp_user_timeout(Some(unacknowledged))?;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(KEEPALIVE_IDLE)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(KEEPALIVE_PROBES),
        )
    }

    /// Whether `connect` ended, and how.
    ///
    /// # Errors
    /// Why the connection failed.
    pub fn finish_connect(&mut self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.stage = Stage::Open;
                SockRef::from(&self.stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads at most once into `buf`.
    pub fn read(&mut self, buf: &mut [u8]) -> ReadOutcome {
        loop {
            return match self.stream.read(buf) {
                Ok(0) => ReadOutcome::Closed,
                // A short read of a stream means that its buffer is empty (epoll(7)).
                Ok(len) if len < buf.len() => ReadOutcome::Drained(len),
                Ok(len) => ReadOutcome::Some(len),
                Err(e) if e.kind() == ErrorKind::WouldBlock => ReadOutcome::Drained(0),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => ReadOutcome::Closed,
            };
        }
    }

    /// Queues bytes; [`Socket::write`] sends them.
    pub fn queue(&mut self, chunks: Vec<Bytes>) {
        self.out_len += chunks.iter().map(Bytes::len).sum::<usize>();
        self.out.extend(chunks);
    }

    /// Bytes queued.
    pub fn out_len(&self) -> usize {
        self.out_len
    }

    /// Sends what can be sent without waiting.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            match self.stream.write_vectored(&slices[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.sent(len),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.stage == Stage::Closing {
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn sent(&mut self, mut len: usize) {
        self.out_len -= len;
        while let Some(chunk) = self.out.front_mut() {
            if chunk.len() > len {
                chunk.advance(len);
                return;
            }
            len -= chunk.len();
            self.out.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that vanishes is noticed soon, on both sides of a connection.
    #[test]
    fn dead_peers_are_noticed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = Socket::connect(listener.local_addr().unwrap()).unwrap();
        let timeout = SockRef::from(&ours.stream).tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(CONNECT_MAX), "as long as it is connecting");
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let theirs = Socket::accept(TcpStream::from_std(stream)).unwrap();
        while !ours.finish_connect().unwrap() {}
        for socket in [&ours, &theirs] {
            let socket = SockRef::from(&socket.stream);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
            assert!(socket.keepalive().unwrap());
            let silent = socket.tcp_keepalive_time().unwrap()
                + socket.tcp_keepalive_interval().unwrap() * KEEPALIVE_PROBES;
            assert!(silent <= UNACKNOWLEDGED_MAX);
            assert!(socket.tcp_nodelay().unwrap());
        }
    }
}
