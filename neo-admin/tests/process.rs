// SPDX-License-Identifier: GPL-2.0-or-later
//! The `neoadmin` process between a master, a neoctl and a mail server that are played by hand, on
//! the loopback.
#![cfg(feature = "net")]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{
    CellState, ClusterState, ErrorCode, NodeState, NodeType, OutBuffer, Packet,
};
use neo_common::types::{NodeId, Tid};

/// Far more than anything takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The end of a test that fails must not leave the process behind.
struct Admin(Child);

impl Admin {
    fn start(arguments: &[&str]) -> Self {
        Self(command(arguments).spawn().unwrap())
    }
    fn wait(mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}
impl Drop for Admin {
    fn drop(&mut self) {
        // It ended already, if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neoadmin"));
    command.env_remove("RUST_LOG").env("EMAIL", "neo@example.com");
    command.stdin(Stdio::null()).args(arguments);
    command
}

/// One end of a connection.
struct Peer {
    stream: TcpStream,
    frames: FrameBuffer,
    received: VecDeque<(Option<u32>, Packet)>,
    next_id: u32,
}

impl Peer {
    fn new(mut stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(&HANDSHAKE).unwrap();
        Self { stream, frames: FrameBuffer::default(), received: VecDeque::new(), next_id: 0 }
    }
    fn accept(listener: &TcpListener) -> Self {
        Self::new(listener.accept().unwrap().0)
    }
    fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }
    fn write(&mut self, id: u32, packet: &Packet) {
        let mut out = OutBuffer::default();
        packet.encode(Some(id), &mut out);
        self.stream.write_all(&out.take().concat()).unwrap();
    }
    fn send(&mut self, packet: &Packet) -> u32 {
        self.next_id += 1;
        self.write(self.next_id, packet);
        self.next_id
    }
    fn read(&mut self) -> Option<(u32, Packet)> {
        let mut buffer = [0; 4096];
        while self.received.is_empty() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                result => self.frames.feed(&buffer[..result.unwrap()], &mut self.received).unwrap(),
            }
        }
        let (id, packet) = self.received.pop_front().unwrap();
        Some((id.unwrap(), packet))
    }
    fn ask(&mut self, packet: &Packet) -> Packet {
        let id = self.send(packet);
        let (answer_id, answer) = self.read().unwrap();
        assert_eq!(answer_id, id);
        answer
    }
}

fn nid(node_type: NodeType) -> NodeId {
    NodeId::of(node_type, 1).unwrap()
}

/// The master accepts the admin, in a cluster that runs; where the admin listens.
fn welcome(master: &mut Peer, listener: &TcpListener) -> SocketAddr {
    let (id, request) = master.read().unwrap();
    let Packet::RequestIdentification { node_type, address, cluster, .. } = request else {
        panic!("{request:?}");
    };
    assert_eq!((node_type, cluster.as_str()), (NodeType::Admin, "test"));
    let address = address.unwrap();
    let (my_nid, your_nid) = (Some(nid(NodeType::Master)), Some(nid(NodeType::Admin)));
    let node_type = NodeType::Master;
    master.write(id, &Packet::AcceptIdentification { node_type, my_nid, your_nid });
    let entry = |node_type, address| {
        (node_type, address, Some(nid(node_type)), NodeState::Running, Some(1.0))
    };
    let own_address = Some(listener.local_addr().unwrap());
    let nodes = vec![
        entry(NodeType::Master, own_address),
        entry(NodeType::Admin, Some(address)),
        entry(NodeType::Storage, None),
    ];
    master.send(&Packet::NotifyNodeInformation { timestamp: 2.0, nodes });
    let rows = vec![vec![(nid(NodeType::Storage), CellState::UpToDate)]];
    master.send(&Packet::SendPartitionTable { ptid: Some(1), replicas: 0, rows });
    let (id, request) = master.read().unwrap();
    assert_eq!(request, Packet::AskClusterState {});
    let state = Some(ClusterState::Running);
    master.write(id, &Packet::AnswerClusterState { state });
    let (id, request) = master.read().unwrap();
    assert_eq!(request, Packet::AskLastTransaction {});
    master.write(id, &Packet::AnswerLastTransaction { tid: Tid::ZERO });
    address
}

/// Takes one e-mail.
fn take_mail(listener: &TcpListener) -> Vec<String> {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut replies = &stream;
    replies.write_all(b"220 test\r\n").unwrap();
    let mut lines = Vec::new();
    let mut is_data = false;
    for line in BufReader::new(&stream).lines() {
        let line = line.unwrap();
        let reply: &[u8] = match line.as_str() {
            "QUIT" => return lines,
            "DATA" => b"354 go\r\n",
            _ if line != "." && is_data => b"",
            _ => b"250 ok\r\n",
        };
        is_data = line == "DATA" || is_data && line != ".";
        replies.write_all(reply).unwrap();
        lines.push(line);
    }
    panic!("no QUIT: {lines:?}");
}

/// From start to the end of the cluster: list of masters, identification, e-mail, own and relayed
/// answers, status 0.
#[test]
fn life() {
    let folder = tempfile::tempdir().unwrap();
    let masters = folder.path().join("masters");
    let log = folder.path().join("log");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let smtp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let admin = Admin::start(&[
        "-c",
        "test",
        "-m",
        &address,
        "-b",
        "127.0.0.1:0",
        "-D",
        masters.to_str().unwrap(),
        "-l",
        log.to_str().unwrap(),
        "--smtp",
        &smtp.local_addr().unwrap().to_string(),
        "--monitor-email=ops@example.com",
        "--monitor-email=dba@example.com",
    ]);
    let mut master = Peer::accept(&listener);
    let address = welcome(&mut master, &listener);
    let mail = take_mail(&smtp);
    for line in [
        "MAIL FROM:<neo@example.com>",
        "RCPT TO:<ops@example.com>",
        "RCPT TO:<dba@example.com>",
        "Subject: NEO monitoring: OK",
        "From: NEO test <neo@example.com>",
        "RUNNING; UP_TO_DATE=1; ltid=0000000000000000 (1900-01-01 00:00:00)",
    ] {
        assert!(mail.iter().any(|l| l == line), "{line} in {mail:#?}");
    }
    let port = listener.local_addr().unwrap().port();
    let list = std::fs::read_to_string(&masters).unwrap();
    assert_eq!(list, format!("[[\"127.0.0.1\", {port}]]"));

    let mut ctl = Peer::connect(address);
    let state = Some(ClusterState::Running);
    assert_eq!(ctl.ask(&Packet::AskClusterState {}), Packet::AnswerClusterState { state });
    let set = Packet::SetClusterState { state: ClusterState::Stopping };
    let asked = ctl.send(&set);
    let (id, request) = master.read().unwrap();
    assert_eq!(request, set);
    master.write(id, &Packet::ack("Cluster state changed"));
    master.send(&Packet::NotifyClusterInformation { state: ClusterState::Stopping });
    drop(master);
    assert_eq!(ctl.read(), Some((asked, Packet::ack("Cluster state changed"))));
    assert_eq!(ctl.read(), None);
    assert_eq!(admin.wait().code(), Some(0));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("cluster is RUNNING"), "{log}");
}

/// The master goes and comes back; meanwhile neoctl is refused. SIGTERM ends the process like a
/// process that does not handle it.
#[test]
fn reconnection_and_signal() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let admin = Admin::start(&["-c", "test", "-m", &address, "-b", "[::1]:0"]);
    let mut master = Peer::accept(&listener);
    let address = welcome(&mut master, &listener);
    let mut waiting = Peer::connect(address);
    let id = waiting.send(&Packet::AskRecovery {});
    assert_eq!(master.read().unwrap().1, Packet::AskRecovery {});
    drop(master);
    let lost = Packet::error(ErrorCode::ProtocolError, "connection to master lost");
    assert_eq!(waiting.read(), Some((id, lost)));
    assert_eq!(waiting.read(), None);
    // The admin is not identified again before we let it.
    let mut ctl = Peer::connect(address);
    let refused = Packet::error(ErrorCode::NotReady, neo_admin::NOT_CONNECTED_MESSAGE);
    assert_eq!(ctl.ask(&Packet::AskPrimary {}), refused);
    assert_eq!(ctl.read(), None);
    let mut master = Peer::accept(&listener);
    assert_eq!(welcome(&mut master, &listener), address);
    let mut ctl = Peer::connect(address);
    let nid = nid(NodeType::Master);
    assert_eq!(ctl.ask(&Packet::AskPrimary {}), Packet::AnswerPrimary { nid });
    let status = Command::new("kill").arg(admin.0.id().to_string()).status().unwrap();
    assert!(status.success());
    assert_eq!(admin.wait().signal(), Some(15));
}

/// What is wrong with the configuration is told, and nothing runs.
#[test]
fn wrong_configurations() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let tls = ["-c", "x", "--ca", "a", "--cert", "b", "--key", "c"];
    for (arguments, status, message) in [
        (&["-c", "x", "-b", &taken][..], 1, "can not listen on"),
        (&["-c", "x", "-m", "nowhere.invalid:1"], 1, "nowhere.invalid:1: "),
        (&["-c", "x", "-D", "/dev/null/masters"], 1, "/dev/null/masters: "),
        (&["-c", "x", "-l", "/dev/null/log"], 1, "log file: "),
        (&tls, 1, "not available yet"),
        (&["-c", "x", "-f", "/dev/null/neo.conf"], 1, "/dev/null/neo.conf: "),
        (&["-b", "x"], 2, "-c/--cluster"),
    ] {
        let Output { status: end, stdout, stderr } = command(arguments).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!((end.code(), stdout.len()), (Some(status), 0), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message) && stderr.contains("neoadmin: error: "), "{stderr}");
    }
}
