// SPDX-License-Identifier: GPL-2.0-or-later
//! The guarantees of the engine, on two nodes joined by hand.

use std::convert::Infallible;
use std::time::Duration;

use super::*;
use crate::protocol::ClusterState;

/// Records what it is told.
#[derive(Default)]
struct Node {
    log: Vec<String>,
    close_on_ping: bool,
}

struct First;
struct Second;

impl Handler<Node> for First {
    fn name(&self) -> &'static str {
        "First"
    }
    fn packet(
        &self,
        app: &mut Node,
        io: &mut Io<'_, Node>,
        conn: ConnId,
        id: MsgId,
        p: Packet,
    ) -> Handled {
        app.log.push(format!("first {}", p.name()));
        match p {
            Packet::Ping {} if app.close_on_ping => io.close(conn),
            Packet::Ping {} => io.answer(conn, id, Packet::Pong {}),
            Packet::AskClusterState {} => io.transition(1),
            Packet::NotifyReady {} => {}
            Packet::AskLastTransaction {} => {
                io.answer(conn, id, Packet::AnswerPrimary { nid: NodeIdOne });
            }
            _ => return Err(Fault::Unexpected),
        }
        Ok(())
    }
    fn answer(
        &self,
        app: &mut Node,
        _: &mut Io<'_, Node>,
        _: ConnId,
        ticket: u32,
        p: Packet,
    ) -> Handled {
        app.log.push(format!("first {} {ticket}", p.name()));
        Ok(())
    }
    fn completed(&self, app: &mut Node, _: &mut Io<'_, Node>, _: ConnId) {
        app.log.push("completed".into());
    }
    fn drained(&self, app: &mut Node, io: &mut Io<'_, Node>, conn: ConnId) {
        assert!(!io.is_full(conn));
        app.log.push("drained".into());
    }
    fn lost(
        &self,
        app: &mut Node,
        io: &mut Io<'_, Node>,
        conn: ConnId,
        why: Lost,
        tickets: Vec<u32>,
    ) {
        assert!(!io.is_open(conn));
        app.log.push(format!("lost {why:?} {tickets:?}"));
    }
}

#[allow(non_upper_case_globals)]
const NodeIdOne: crate::types::NodeId = match crate::types::NodeId::new(1) {
    Some(nid) => nid,
    None => unreachable!(),
};

impl Handler<Node> for Second {
    fn name(&self) -> &'static str {
        "Second"
    }
    fn packet(
        &self,
        app: &mut Node,
        io: &mut Io<'_, Node>,
        conn: ConnId,
        id: MsgId,
        p: Packet,
    ) -> Handled {
        app.log.push(format!("second {}", p.name()));
        First.packet(app, io, conn, id, p)
    }
    fn answer(
        &self,
        app: &mut Node,
        _: &mut Io<'_, Node>,
        _: ConnId,
        ticket: u32,
        p: Packet,
    ) -> Handled {
        app.log.push(format!("second {} {ticket}", p.name()));
        Ok(())
    }
}

impl App for Node {
    type Job = Infallible;
    type Done = Infallible;
    type After = Infallible;
    type Ticket = u32;
    type Call = Infallible;
    type Reply = Infallible;
    type Timer = u8;
    type Transition = u8;

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        &First
    }
    fn start(&mut self, _: &mut Io<'_, Self>) {}
    fn job_done(&mut self, _: &mut Io<'_, Self>, after: Infallible, _: Infallible) {
        match after {}
    }
    fn call(&mut self, _: &mut Io<'_, Self>, _: CallId, call: Infallible) {
        match call {}
    }
    fn timer(&mut self, _: &mut Io<'_, Self>, timer: u8) {
        self.log.push(format!("timer {timer}"));
    }
    fn signal(&mut self, _: &mut Io<'_, Self>, _: Signal) {}
    fn transition(&mut self, _: &mut Io<'_, Self>, transition: u8) {
        self.log.push(format!("transition {transition}"));
    }
    fn advance(&mut self, _: &mut Io<'_, Self>) {}
    fn label(&self) -> String {
        "N".into()
    }
}

/// A client engine and a server engine, with one connection between them.
struct Pair {
    client: Engine<Node>,
    server: Engine<Node>,
    conn: ConnId,
    peer: ConnId,
    now: Now,
    /// Size of the pieces in which bytes travel.
    piece: usize,
}

const ADDRESS: &str = "127.0.0.1:10000";

fn io(engine: &mut Engine<Node>) -> Io<'_, Node> {
    Io { state: &mut engine.state }
}

impl Pair {
    fn new() -> Self {
        let mut client = Engine::new(Node::default(), 1);
        let mut server = Engine::new(Node::default(), 2);
        let now = Now { monotonic: Duration::from_secs(10), realtime_us: 0 };
        client.start(now);
        server.start(now);
        let address = ADDRESS.parse().unwrap();
        let conn = io(&mut client).connect(address, &First);
        assert!(
            matches!(client.poll_output(), Some(Output::Connect(c, a)) if c == conn && a == address)
        );
        assert!(client.poll_output().is_none());
        let peer = server.new_conn();
        server.handle(Input::Accepted(peer, address), now);
        client.handle(Input::Connected(conn), now);
        Self { client, server, conn, peer, now, piece: 1 }
    }

    /// Moves bytes until there are none.
    fn run(&mut self) {
        loop {
            let mut idle = true;
            let links = [(&mut self.client, self.conn, &mut self.server, self.peer)];
            for (a, a_conn, b, b_conn) in links {
                idle &= !Self::move_bytes(a, b, a_conn, b_conn, self.piece, self.now);
                idle &= !Self::move_bytes(b, a, b_conn, a_conn, self.piece, self.now);
            }
            if idle {
                return;
            }
        }
    }

    fn move_bytes(
        from: &mut Engine<Node>,
        to: &mut Engine<Node>,
        from_conn: ConnId,
        to_conn: ConnId,
        piece: usize,
        now: Now,
    ) -> bool {
        let Some(output) = from.poll_output() else { return false };
        match output {
            Output::Bytes(conn, bytes) => {
                assert_eq!(conn, from_conn);
                for chunk in bytes.concat().chunks(piece) {
                    to.handle(Input::Bytes(to_conn, chunk), now);
                }
            }
            Output::Close(conn, _) => {
                assert_eq!(conn, from_conn);
                to.handle(Input::Closed(to_conn), now);
            }
            other => panic!("{other:?}"),
        }
        true
    }

    fn ask(&mut self, packet: Packet, ticket: u32) {
        assert!(io(&mut self.client).ask(self.conn, packet, ticket));
    }
}

#[test]
fn answers_find_their_ticket_and_queued_handlers_wait() {
    let mut pair = Pair::new();
    pair.ask(Packet::Ping {}, 1);
    io(&mut pair.client).set_handler(pair.conn, &Second);
    pair.ask(Packet::Ping {}, 2);
    pair.run();
    assert_eq!(pair.client.app.log, ["completed", "first Pong 1", "second Pong 2"]);
    assert_eq!(pair.server.app.log, ["first Ping", "first Ping"]);
}

/// The peer answers the request of the next handler first.
#[test]
fn answers_in_another_order() {
    let mut pair = Pair::new();
    let id = io(&mut pair.client).state.conns.get_mut(&pair.conn).unwrap().next_id() + 1;
    pair.ask(Packet::AskClusterState {}, 1);
    io(&mut pair.client).set_handler(pair.conn, &Second);
    pair.ask(Packet::Ping {}, 2);
    pair.run();
    assert_eq!(pair.client.app.log, ["completed", "second Pong 2"]);
    io(&mut pair.server).answer(pair.peer, id, Packet::AnswerClusterState { state: None });
    pair.run();
    assert_eq!(pair.client.app.log[2..], ["first AnswerClusterState 1"]);
    // From now on, the next handler.
    io(&mut pair.server).send(pair.peer, Packet::NotifyReady {});
    pair.run();
    assert_eq!(pair.client.app.log[3..], ["second NotifyReady", "first NotifyReady"]);
}

#[test]
fn loss_is_told_once_with_the_requests_that_were_waiting() {
    let mut pair = Pair::new();
    pair.server.app.close_on_ping = true;
    pair.ask(Packet::Ping {}, 7);
    pair.ask(Packet::Ping {}, 8);
    pair.piece = 1000;
    pair.run();
    assert_eq!(pair.server.app.log, ["first Ping", "lost ByUs []"]);
    assert_eq!(pair.client.app.log, ["completed", "lost ByPeer [7, 8]"]);
    pair.client.handle(Input::Closed(pair.conn), pair.now);
    assert_eq!(pair.client.app.log.len(), 2);
    assert!(!io(&mut pair.client).ask(pair.conn, Packet::Ping {}, 9));
}

#[test]
fn transitions_are_applied_between_two_packets() {
    let mut pair = Pair::new();
    pair.piece = 1000;
    pair.ask(Packet::AskClusterState {}, 1);
    pair.ask(Packet::Ping {}, 2);
    pair.run();
    assert_eq!(pair.server.app.log, ["first AskClusterState", "transition 1", "first Ping"]);
}

#[test]
fn unexpected_packets_and_answers_close_the_connection() {
    let mut pair = Pair::new();
    io(&mut pair.client)
        .send(pair.conn, Packet::NotifyClusterInformation { state: ClusterState::Running });
    pair.run();
    assert_eq!(pair.server.app.log, ["first NotifyClusterInformation", "lost ByUs []"]);
    assert_eq!(pair.client.app.log, ["completed", "lost ByPeer []"]);

    let mut pair = Pair::new();
    pair.ask(Packet::AskLastTransaction {}, 5);
    pair.run();
    assert_eq!(pair.client.app.log, ["completed", "lost ByUs [5]"]);
    assert_eq!(pair.server.app.log, ["first AskLastTransaction", "lost ByPeer []"]);
}

#[test]
fn malformed_bytes_close_the_connection_after_the_packets_before_them() {
    let mut pair = Pair::new();
    let mut bytes = HANDSHAKE.to_vec();
    bytes.extend(b"\x93\x00\x3b\x90\xc1\x93\x01\x3b\x90");
    pair.server.handle(Input::Bytes(pair.peer, &bytes), pair.now);
    assert_eq!(pair.server.app.log, ["first NotifyReady", "lost ByUs []"]);
}

#[test]
fn only_addresses_that_failed_are_tried_later() {
    let mut pair = Pair::new();
    let address = ADDRESS.parse().unwrap();
    let engine = &mut pair.client;
    while engine.poll_output().is_some() {}
    let second = io(engine).connect(address, &First);
    assert!(matches!(engine.poll_output(), Some(Output::Connect(c, _)) if c == second));
    engine.handle(Input::Closed(second), pair.now);
    assert_eq!(engine.app.log, ["completed", "lost Failed []"]);
    let third = io(engine).connect(address, &First);
    assert!(engine.poll_output().is_none());
    assert_eq!(engine.deadline(), Some(pair.now.monotonic + RECONNECT_DELAY));
    let mut now = pair.now;
    now.monotonic += RECONNECT_DELAY;
    engine.handle(Input::Timeout, now);
    assert!(matches!(engine.poll_output(), Some(Output::Connect(c, _)) if c == third));
    assert_eq!(engine.deadline(), None);
}

#[test]
fn timers_fire_in_order_of_time() {
    let mut pair = Pair::new();
    let engine = &mut pair.client;
    io(engine).set_timer(1, Duration::from_millis(20));
    io(engine).set_timer(2, Duration::from_millis(10));
    io(engine).set_timer(3, Duration::from_millis(30));
    io(engine).cancel_timer(3);
    assert_eq!(engine.deadline(), Some(pair.now.monotonic + Duration::from_millis(10)));
    let mut now = pair.now;
    now.monotonic += Duration::from_secs(1);
    engine.handle(Input::Timeout, now);
    assert_eq!(engine.app.log[1..], ["timer 2", "timer 1"]);
    assert_eq!(engine.deadline(), None);
}

#[test]
fn a_peer_that_does_not_read_is_told_apart() {
    let mut pair = Pair::new();
    pair.server.handle(Input::Full(pair.peer, true), pair.now);
    assert!(io(&mut pair.server).is_full(pair.peer));
    assert_eq!(pair.server.app.log.len(), 0);
    pair.server.handle(Input::Full(pair.peer, false), pair.now);
    assert_eq!(pair.server.app.log, ["drained"]);
    pair.server.handle(Input::Full(ConnId::new(99), true), pair.now);
}
