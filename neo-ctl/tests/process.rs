// SPDX-License-Identifier: GPL-2.0-or-later
//! The executable against a scripted admin: streams, statuses, and what happens when the admin
//! misbehaves.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test, which plays the admin in a thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use neo_common::protocol::codec::{OutBuffer, Reader};
use neo_common::protocol::frame::HANDSHAKE;
use neo_common::protocol::{ClusterState, ErrorCode, Packet};

/// Runs neoctl; it must end by itself.
fn neoctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neoctl")).args(args).env_remove("RUST_LOG").output().unwrap()
}

fn check(output: &Output, status: i32, stdout: &str, stderr: &str) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!((text(&output.stdout), text(&output.stderr)), (stdout.into(), stderr.into()));
    assert_eq!(output.status.code(), Some(status));
}

/// What the admin does after it received a request.
type Reaction = Vec<Act>;
enum Act {
    /// Sends a packet with this id.
    Send(u32, Packet),
    /// Sends bytes.
    Raw(Vec<u8>),
    /// Waits until neoctl closes, and returns what it sent meanwhile.
    Wait,
}

/// An admin that accepts one connection, reads until something follows the handshake, and acts. It
/// returns all that it received.
fn admin(reaction: Reaction) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(&HANDSHAKE).unwrap();
        let mut received = Vec::new();
        while received.len() <= HANDSHAKE.len() {
            assert_ne!(read(&mut stream, &mut received), 0, "a request is expected");
        }
        for act in reaction {
            match act {
                Act::Send(id, packet) => {
                    let mut out = OutBuffer::default();
                    packet.encode(Some(id), &mut out);
                    stream.write_all(&out.take().concat()).unwrap();
                }
                Act::Raw(bytes) => stream.write_all(&bytes).unwrap(),
                Act::Wait => while read(&mut stream, &mut received) != 0 {},
            }
        }
        received
    });
    (address, thread)
}

fn read(stream: &mut TcpStream, received: &mut Vec<u8>) -> usize {
    let mut buffer = [0; 4096];
    // A reset is an end as well.
    let len = stream.read(&mut buffer).unwrap_or(0);
    received.extend_from_slice(&buffer[..len]);
    len
}

/// The only packet in what the admin received.
fn request(received: &[u8]) -> Packet {
    let bytes = received.strip_prefix(&HANDSHAKE[..]).unwrap();
    Packet::decode(&mut Reader::new(bytes)).unwrap().1
}

fn run(args: &[&str], reaction: Reaction) -> (Output, Vec<u8>) {
    let (address, thread) = admin(reaction);
    let address = address.to_string();
    let output = neoctl(&[&["-a", &address], args].concat());
    (output, thread.join().unwrap())
}

/// An answer is printed, status 0.
#[test]
fn success() {
    let answer = Packet::AnswerClusterState { state: Some(ClusterState::Running) };
    let (output, received) = run(&["print", "cluster"], vec![Act::Send(0, answer), Act::Wait]);
    check(&output, 0, "RUNNING\n", "");
    assert_eq!(request(&received), Packet::AskClusterState {});
    let (output, _) = run(&["set", "replicas", "1"], vec![Act::Send(0, Packet::ack(""))]);
    check(&output, 0, "\n", "");
    let (output, _) = run(&["truncate", "tid:5"], vec![Act::Send(0, Packet::ack(""))]);
    check(&output, 0, "", "");
}

/// Refusals and errors are on standard error, status 1; also those that have a wrong id.
#[test]
fn refusals() {
    let (output, _) = run(&["kill", "S7"], vec![Act::Send(0, Packet::denied("unknown node"))]);
    check(&output, 1, "", "unknown node\n");
    let not_ready = Packet::error(ErrorCode::NotReady, "Not connected to a primary master.");
    let (output, _) = run(&["print", "ids"], vec![Act::Send(0, not_ready)]);
    check(&output, 1, "", "ERROR: Not connected to a primary master.\n");
    let error = Packet::error(ErrorCode::ProtocolError, "invalid partition table offset");
    let (output, _) = run(&["print", "pt", "9"], vec![Act::Send(7, error), Act::Wait]);
    check(&output, 1, "", "ERROR: invalid partition table offset\n");
}

/// Nobody listens; the admin closes, talks nonsense, or answers something else.
#[test]
fn trouble() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    check(&neoctl(&["-a", &address, "print", "ids"]), 1, "", "ERROR: not connected\n");
    let (output, _) = run(&["print", "ids"], vec![]);
    check(&output, 1, "", "ERROR: Connection closed\n");
    for act in [
        Act::Raw(b"\xc1\xff".to_vec()),
        Act::Send(0, Packet::AnswerLastTransaction { tid: neo_common::types::Tid::ZERO }),
        Act::Send(5, Packet::AnswerRecovery { ptid: None, backup_tid: None, truncate_tid: None }),
    ] {
        let (output, _) = run(&["print", "ids"], vec![act, Act::Wait]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.ends_with("ERROR: Connection closed\n"), "{stderr}");
    }
}

/// A notification leaves before the process does.
#[test]
fn flush_log() {
    let (output, received) = run(&["flush_log"], vec![Act::Wait]);
    check(&output, 0, "", "");
    assert_eq!(request(&received), Packet::FlushLog {});
}

/// Without command the list of commands is shown; wrong ones are refused. Nobody is connected to.
#[test]
fn without_admin() {
    let output = neoctl(&["-a", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.starts_with(b"Available commands:\n") && output.stderr.is_empty());
    check(&neoctl(&["foo", "bar"]), 1, "", "invalid command: foo bar\n");
    check(&neoctl(&["set", "replicas", "-1"]), 1, "", "invalid number of replicas\n");
    let output = neoctl(&["-a", "no.such.host.invalid", "print", "ids"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.starts_with(b"ERROR: no.such.host.invalid:9999: "));
    assert_eq!(neoctl(&["--help"]).status.code(), Some(0));
    assert_eq!(neoctl(&["-Z"]).status.code(), Some(2));
    let tls = ["--ca", "a", "--cert", "b", "--key", "c", "print", "ids"];
    check(&neoctl(&tls), 1, "", "ERROR: encryption is not supported yet\n");
}

/// `-l` logs to a file.
#[test]
fn logfile() {
    let path = std::env::temp_dir().join(format!("neoctl-{}.log", std::process::id()));
    let answer = Packet::AnswerPrimary { nid: neo_common::types::NodeId::new(-268435455).unwrap() };
    let args = ["-l", path.to_str().unwrap(), "print", "primary"];
    let (output, _) = run(&args, vec![Act::Send(0, answer)]);
    check(&output, 0, "M1\n", "");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("AskPrimary") && text.contains("AnswerPrimary"), "{text}");
    std::fs::remove_file(&path).unwrap();
}
