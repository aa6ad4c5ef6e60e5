// SPDX-License-Identifier: GPL-2.0-or-later
//! Real sockets: two engines on loopback, driven by the event loop of nodes.
#![cfg(feature = "net")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)] // Threads and sockets.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use neo_common::engine::{App, CallId, ConnId, Engine, Fault, Handled, Handler, Io, Lost, Signal};
use neo_common::net::{self, Exit, Listener, NoJobs, Options};
use neo_common::protocol::frame::HANDSHAKE;
use neo_common::protocol::{MsgId, Packet};
use neo_common::types::{Oid, Tid, Ttid};

/// Sends objects to a server, which sends them back; ends when all came back.
struct Node {
    server: Option<SocketAddr>,
    to_send: u64,
    received: u64,
    size: usize,
    /// Whether the node survives the loss of its peer.
    keep_running: bool,
}

impl Node {
    fn send(&self, io: &mut Io<'_, Self>, conn: ConnId) {
        for i in 0..self.to_send {
            let packet = Packet::AskStoreObject {
                oid: Oid::new(i),
                serial: Tid::ZERO,
                compression: 0,
                checksum: [0; 20],
                data: Bytes::from(vec![i as u8; self.size]),
                data_serial: None,
                ttid: Ttid::ZERO,
            };
            assert!(io.ask(conn, packet, i));
        }
    }
}

struct Echo;

impl Handler<Node> for Echo {
    fn name(&self) -> &'static str {
        "Echo"
    }
    fn completed(&self, _: &mut Node, io: &mut Io<'_, Node>, conn: ConnId) {
        io.trust(conn);
        assert!(io.ask(conn, Packet::Ping {}, 0));
    }
    fn packet(
        &self,
        _: &mut Node,
        io: &mut Io<'_, Node>,
        conn: ConnId,
        id: MsgId,
        packet: Packet,
    ) -> Handled {
        match packet {
            Packet::AskStoreObject { oid, data, .. } => {
                let conflict = Some(Tid::new(oid.get() + data.len() as u64));
                io.answer(conn, id, Packet::AnswerStoreObject { conflict });
                // And back, as a big packet in the other direction.
                io.send(
                    conn,
                    Packet::AddObject {
                        oid,
                        serial: Tid::ZERO,
                        compression: 0,
                        checksum: [0; 20],
                        data,
                        data_serial: None,
                    },
                );
            }
            Packet::AddObject { .. } => {}
            // Big packets are only accepted from peers that are known.
            Packet::Ping {} => {
                io.trust(conn);
                io.answer(conn, id, Packet::Pong {});
            }
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }
    fn answer(
        &self,
        app: &mut Node,
        io: &mut Io<'_, Node>,
        conn: ConnId,
        ticket: u64,
        packet: Packet,
    ) -> Handled {
        if packet == (Packet::Pong {}) {
            app.send(io, conn);
            return Ok(());
        }
        let tid = Tid::new(ticket + app.size as u64);
        assert_eq!(packet, Packet::AnswerStoreObject { conflict: Some(tid) });
        app.received += 1;
        if app.received == app.to_send {
            io.abort(conn);
        }
        Ok(())
    }
    fn lost(&self, app: &mut Node, io: &mut Io<'_, Node>, _: ConnId, why: Lost, _: Vec<u64>) {
        if why == Lost::Failed {
            io.connect(app.server.unwrap(), &Echo);
        } else if !app.keep_running {
            io.exit(if app.received == app.to_send { 7 } else { 1 });
        }
    }
}

impl App for Node {
    type Job = Infallible;
    type Done = Infallible;
    type After = Infallible;
    type Ticket = u64;
    type Call = Infallible;
    type Reply = Infallible;
    type Timer = ();
    type Transition = ();

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        &Echo
    }
    fn start(&mut self, io: &mut Io<'_, Self>) {
        if let Some(server) = self.server {
            io.connect(server, &Echo);
        }
    }
    fn job_done(&mut self, _: &mut Io<'_, Self>, after: Infallible, _: Infallible) {
        match after {}
    }
    fn call(&mut self, _: &mut Io<'_, Self>, _: CallId, call: Infallible) {
        match call {}
    }
    fn timer(&mut self, _: &mut Io<'_, Self>, (): ()) {}
    fn signal(&mut self, _: &mut Io<'_, Self>, _: Signal) {}
    fn transition(&mut self, _: &mut Io<'_, Self>, (): ()) {}
    fn advance(&mut self, _: &mut Io<'_, Self>) {}
    fn label(&self) -> String {
        "test".into()
    }
}

fn server(address: &str, keep_running: bool) -> (SocketAddr, thread::JoinHandle<Exit>) {
    let listener = Listener::bind(address.parse().unwrap()).unwrap();
    let address = listener.address();
    let node = Node { server: None, to_send: 0, received: 0, size: 0, keep_running };
    let options = Options { listener: Some(listener), signals: false };
    let thread =
        thread::spawn(move || net::run(Engine::new(node, 1), options, |_| NoJobs).unwrap());
    (address, thread)
}

/// Many small and a few big packets, on IPv4 and IPv6: all come back, both ends finish.
#[test]
fn packets_of_all_sizes_come_back() {
    for (address, to_send, size) in
        [("127.0.0.1:0", 20_000, 10), ("127.0.0.1:0", 4, 20 << 20), ("[::1]:0", 500, 40_000)]
    {
        let (server_address, server) = server(address, false);
        let node =
            Node { server: Some(server_address), to_send, received: 0, size, keep_running: false };
        let exit = net::run(Engine::new(node, 2), Options::default(), |_| NoJobs).unwrap();
        assert_eq!(exit, Exit::Status(7), "{to_send} packets of {size} bytes");
        assert_eq!(server.join().unwrap(), Exit::Status(7));
    }
}

/// A connection to a port where nobody listens is tried again, after a delay, until it works.
#[test]
fn connecting_is_tried_again() {
    let free = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap().address();
    let node = Node { server: Some(free), to_send: 1, received: 0, size: 1, keep_running: false };
    let client = thread::spawn(move || {
        net::run(Engine::new(node, 2), Options::default(), |_| NoJobs).unwrap()
    });
    thread::sleep(Duration::from_millis(200));
    let (_, server) = server(&free.to_string(), false);
    assert_eq!(client.join().unwrap(), Exit::Status(7));
    server.join().unwrap();
}

/// A peer that says nonsense is closed, and gets the error that explains why when there is one.
#[test]
fn foreign_peers_are_closed() {
    let (address, _server) = server("127.0.0.1:0", true);
    for (garbage, answer) in [
        (&b"GET / HTTP/1.0\r\n\r\n"[..], false),
        (b"\x16\x03\x01\x02\x00", false),
        (b"\x92\xa3NEO\x04", false),
        (b"\x92\xa3NEO\x05\xc1\xc1\xc1", false),
        (b"\x92\xa3NEO\x05\x93\x05\x3b\x90\x93\x06\x3b\x90", true), // NotifyReady: unexpected
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(garbage).unwrap();
        let mut received = Vec::new();
        // A reset is a close too.
        let _ = stream.read_to_end(&mut received);
        assert!(received.is_empty() || received.starts_with(&HANDSHAKE));
        assert_eq!(received.len() > HANDSHAKE.len(), answer, "{garbage:x?}: {received:x?}");
    }
}

/// The last bytes of a peer and its end may be told by one event, which is not told again: neither is
/// missed. Both are there before the node looks.
#[test]
fn bytes_and_end_at_once() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut peer = TcpStream::connect(listener.address()).unwrap();
    peer.write_all(&HANDSHAKE).unwrap();
    drop(peer);
    let node = Node { server: None, to_send: 0, received: 0, size: 0, keep_running: false };
    let options = Options { listener: Some(listener), signals: false };
    let (ended, end) = std::sync::mpsc::channel();
    thread::spawn(move || {
        ended.send(net::run(Engine::new(node, 1), options, |_| NoJobs).unwrap()).unwrap();
    });
    let end = end.recv_timeout(Duration::from_secs(10)).expect("the node sees the end");
    assert_eq!(end, Exit::Status(7));
}
