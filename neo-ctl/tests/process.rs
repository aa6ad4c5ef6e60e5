// SPDX-License-Identifier: GPL-2.0-or-later
//! The executable beside its commands (those are replayed in `neoctl.rs`): nonsense instead of
//! answers, names that do not resolve, options, log file.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test, which plays the admin in a thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use neo_common::protocol::Packet;
use neo_common::protocol::codec::OutBuffer;
use neo_common::protocol::frame::HANDSHAKE;

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
    /// Waits until neoctl closes.
    Wait,
}

/// An admin that accepts one connection, reads until something follows the handshake, and acts.
fn admin(reaction: Reaction) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(&HANDSHAKE).unwrap();
        let mut len = 0;
        while len <= HANDSHAKE.len() {
            let more = read(&mut stream);
            assert_ne!(more, 0, "a request is expected");
            len += more;
        }
        for act in reaction {
            match act {
                Act::Send(id, packet) => {
                    let mut out = OutBuffer::default();
                    packet.encode(Some(id), &mut out);
                    stream.write_all(&out.take().concat()).unwrap();
                }
                Act::Raw(bytes) => stream.write_all(&bytes).unwrap(),
                Act::Wait => while read(&mut stream) != 0 {},
            }
        }
    });
    (address, thread)
}

/// How many bytes were read. A reset is an end as well.
fn read(stream: &mut TcpStream) -> usize {
    stream.read(&mut [0; 4096]).unwrap_or(0)
}

fn run(args: &[&str], reaction: Reaction) -> Output {
    let (address, thread) = admin(reaction);
    let address = address.to_string();
    let output = neoctl(&[&["-a", &address], args].concat());
    thread.join().unwrap();
    output
}

/// Nobody listens; the admin closes, talks nonsense, or answers something else.
#[test]
fn trouble() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    check(&neoctl(&["-a", &address, "print", "ids"]), 1, "", "ERROR: not connected\n");
    let output = run(&["print", "ids"], vec![]);
    check(&output, 1, "", "ERROR: Connection closed\n");
    for act in [
        Act::Raw(b"\xc1\xff".to_vec()),
        Act::Send(0, Packet::AnswerLastTransaction { tid: neo_common::types::Tid::ZERO }),
        Act::Send(5, Packet::AnswerRecovery { ptid: None, backup_tid: None, truncate_tid: None }),
    ] {
        let output = run(&["print", "ids"], vec![act, Act::Wait]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.ends_with("ERROR: Connection closed\n"), "{stderr}");
    }
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
    let output = run(&args, vec![Act::Send(0, answer)]);
    check(&output, 0, "M1\n", "");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("AskPrimary") && text.contains("AnswerPrimary"), "{text}");
    std::fs::remove_file(&path).unwrap();
}
