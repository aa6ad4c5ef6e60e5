// SPDX-License-Identifier: GPL-2.0-or-later
//! The `neoctl` process against an admin that is played by hand, on the loopback.
//!
//! Recorded sessions of upstream's neoctl are replayed: for each command line, our neoctl must send
//! the packets that upstream's sent, and, given the same answers, print what upstream's printed.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use neo_common::protocol::codec::Reader;
use neo_common::protocol::frame::{FrameBuffer, HANDSHAKE};
use neo_common::protocol::{ErrorCode, OutBuffer, Packet};
use serde_json::Value as Json;

/// Far more than anything takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What an admin receives (`true`) and sends.
type Script = Vec<(bool, u32, Packet)>;

/// What happens after the script.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Wait for the peer to close.
    Wait,
    /// Close at once.
    Close,
}

fn neoctl(admin: Option<SocketAddr>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neoctl"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    if let Some(admin) = admin {
        command.args(["-a", &admin.to_string()]);
    }
    command.args(arguments).output().unwrap()
}

/// Runs a command against an admin that follows a script.
fn play(arguments: &[&str], script: &Script, then: Then) -> (String, String, i32) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let output = std::thread::scope(|scope| {
        let admin = scope.spawn(|| follow(&listener.accept().unwrap().0, script, then));
        let output = neoctl(Some(address), arguments);
        // An admin that nobody connects to ends too.
        drop(TcpStream::connect(address));
        admin.join().unwrap_or_else(|_| panic!("{arguments:?}: {output:?}"));
        output
    });
    text(&output)
}

fn text(output: &Output) -> (String, String, i32) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap())
}

fn follow(mut stream: &TcpStream, script: &Script, then: Then) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(&HANDSHAKE).unwrap();
    let (mut frames, mut received) = (FrameBuffer::default(), VecDeque::new());
    let mut script: VecDeque<_> = script.clone().into();
    let mut buffer = [0; 4096];
    let mut is_open = true;
    while let Some((is_received, id, packet)) = script.pop_front() {
        if is_received {
            while received.is_empty() {
                let len = stream.read(&mut buffer).unwrap();
                assert_ne!(len, 0, "neoctl left instead of saying {packet:?}");
                frames.feed(&buffer[..len], &mut received).unwrap();
            }
            assert_eq!(received.pop_front(), Some((Some(id), packet)));
        } else {
            let mut out = OutBuffer::default();
            packet.encode(Some(id), &mut out);
            stream.write_all(&out.take().concat()).unwrap();
        }
    }
    while is_open && then == Then::Wait {
        answer_pings(stream, &mut received);
        match stream.read(&mut buffer) {
            Ok(len) => {
                is_open = len != 0;
                frames.feed(&buffer[..len], &mut received).unwrap();
            }
            // neoctl ended without reading our last words.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => is_open = false,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(received.is_empty(), "neoctl said more: {received:?}");
}

/// The only thing that neoctl may say beyond what upstream's says, to know that it was heard.
fn answer_pings(mut stream: &TcpStream, received: &mut VecDeque<(Option<u32>, Packet)>) {
    while let Some((Some(id), Packet::Ping {})) = received.front() {
        let mut out = OutBuffer::default();
        Packet::Pong {}.encode(Some(*id), &mut out);
        stream.write_all(&out.take().concat()).unwrap();
        received.pop_front();
    }
}

fn shared(path: &str) -> String {
    let root = std::env::var_os("NEO_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let path = root.join(path);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e} (set NEO_SHARED)", path.display()))
}

/// What upstream's neoctl and its admin said, in order of connection.
fn recorded_scripts() -> Vec<Script> {
    let mut scripts = Vec::<Script>::new();
    let mut indexes = BTreeMap::new();
    for line in shared("protocol/sessions/f-neoctl-commands.jsonl").lines().skip(1) {
        let line: Json = serde_json::from_str(line).unwrap();
        let conn = line["conn"].as_str().unwrap().to_owned();
        if line["ev"] == "open" && line["from"] == "CTL" {
            indexes.insert(conn, scripts.len());
            scripts.push(Script::new());
        } else if let Some(index) = indexes.get(&conn)
            && line["id"].is_u64()
        {
            let hex = line["hex"].as_str().unwrap();
            let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            let (id, packet) = Packet::decode(&mut Reader::new(&bytes)).unwrap();
            scripts[*index].push((line["dir"] == ">", id.unwrap(), packet));
        }
    }
    scripts
}

/// Command lines, with what upstream printed on any stream.
fn recorded_outputs() -> Vec<(String, String)> {
    let mut outputs = Vec::<(String, String)>::new();
    for line in shared("protocol/sessions/f-neoctl-output.txt").lines() {
        if let Some(command) = line.strip_prefix("$ neoctl ") {
            outputs.push((command.to_owned(), String::new()));
        } else if !line.starts_with("--- ") && !line.starts_with("['") {
            // (The others are notes of the recorder.)
            let output = &mut outputs.last_mut().unwrap().1;
            output.push_str(line);
            output.push('\n');
        }
    }
    outputs
}

/// Every recorded command: same packets, same text; what was refused is on standard error with
/// status 1.
#[test]
fn recorded_commands() {
    let mut scripts = recorded_scripts();
    let outputs = recorded_outputs();
    // The last command found nobody any more.
    assert_eq!(scripts.len() + 1, outputs.len());
    scripts.push(Script::new());
    for (script, (command, expected)) in scripts.iter().zip(&outputs) {
        let arguments: Vec<&str> = command.split(' ').collect();
        let (stdout, stderr, status) = if script.is_empty() {
            text(&neoctl(Some(unused_address()), &arguments))
        } else {
            play(&arguments, script, Then::Wait)
        };
        let is_refused = script.is_empty()
            || script.iter().any(|(_, _, packet)| {
                matches!(packet, Packet::Error { code, .. } if *code != ErrorCode::Ack)
            });
        assert_eq!(status, i32::from(is_refused), "{command}: {stderr}");
        let (text, nothing) = if is_refused { (stderr, stdout) } else { (stdout, stderr) };
        assert_eq!(nothing, "", "{command}");
        // The recorder dropped spaces at the end.
        assert_eq!(text.trim_end(), expected.trim_end(), "{command}");
    }
}

fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Commands that print nothing at all, and those that print an empty message.
#[test]
fn silence() {
    let ack = (false, 0, Packet::ack(""));
    for (arguments, request, stdout) in [
        (&["set", "replicas", "1"][..], Packet::SetNumReplicas { replicas: 1 }, "\n"),
        (&["truncate", "tid:5"], Packet::Truncate { tid: 5.into() }, ""),
    ] {
        let script = vec![(true, 0, request), ack.clone()];
        assert_eq!(play(arguments, &script, Then::Wait), (stdout.into(), String::new(), 0));
    }
    let flush = (true, 0, Packet::FlushLog {});
    let ping = (true, 1, Packet::Ping {});
    let script = vec![flush.clone(), ping.clone(), (false, 1, Packet::Pong {})];
    assert_eq!(play(&["flush_log"], &script, Then::Wait), Default::default());
    let refusal = (false, 0, Packet::error(ErrorCode::NotReady, "no master"));
    let (_, stderr, status) = play(&["flush_log"], &vec![flush, refusal], Then::Wait);
    assert_eq!((stderr.as_str(), status), ("ERROR: no master\n", 1));
}

/// Without command: the list of commands, and success.
#[test]
fn usage() {
    let (stdout, stderr, status) = text(&neoctl(None, &[]));
    assert!(stdout.starts_with("Available commands:\n"), "{stdout}");
    assert_eq!((stderr.as_str(), status), ("", 0));
    let (stdout, _, status) = text(&neoctl(None, &["--help"]));
    assert!(stdout.starts_with("usage: neoctl "), "{stdout}");
    assert_eq!(status, 0);
}

/// What is wrong is told before anybody is asked.
#[test]
fn wrong_commands() {
    for (arguments, message, status) in [
        (&["foo"][..], "invalid command: foo\n", 1),
        (&["print", "foo", "bar"], "invalid command: print foo bar\n", 1),
        (&["set", "replicas", "-1"], "invalid number of replicas\n", 1),
    ] {
        let output = text(&neoctl(None, arguments));
        assert_eq!(output, (String::new(), message.into(), status), "{arguments:?}");
    }
    let (_, stderr, status) = text(&neoctl(None, &["--bogus"]));
    assert!(
        stderr.starts_with("usage: neoctl ") && stderr.contains("\nneoctl: error: "),
        "{stderr}"
    );
    assert_eq!(status, 2);
}

/// Admins that are not there, that leave, that say something else, that are no admins.
#[test]
fn admins_that_fail() {
    let failure = |message: &str| (String::new(), format!("ERROR: {message}\n"), 1);
    let ask = (true, 0, Packet::AskClusterState {});
    let cluster = ["print", "cluster"];
    let gone = vec![ask.clone()];
    assert_eq!(play(&cluster, &gone, Then::Close), failure("Connection closed"));
    let code = ErrorCode::ProtocolError;
    let lost = vec![ask.clone(), (false, 0, Packet::error(code, "connection to master lost"))];
    assert_eq!(play(&cluster, &lost, Then::Close), failure("connection to master lost"));
    // With an id of its own, as upstream's admin does for a wrong range.
    let ask_rows = Packet::AskPartitionList { first: 7, last: 9, nid: None };
    let message = "invalid partition table offset";
    let range = vec![(true, 0, ask_rows), (false, 5, Packet::error(code, message))];
    assert_eq!(play(&["print", "pt", "7", "9"], &range, Then::Wait), failure(message));
    for unexpected in [Packet::AnswerLastTransaction { tid: 1.into() }, Packet::StopOperation {}] {
        let script = vec![ask.clone(), (false, 0, unexpected.clone())];
        let (stdout, stderr, status) = play(&cluster, &script, Then::Close);
        assert!(stderr.ends_with("ERROR: Connection closed\n"), "{unexpected:?}: {stderr}");
        assert_eq!((stdout.as_str(), status), ("", 1));
    }
    let unknown = vec![ask, (false, 0, Packet::AnswerClusterState { state: None })];
    assert_eq!(play(&cluster, &unknown, Then::Wait), ("None\n".into(), String::new(), 0));
}

/// A table as big as a table can be: more than what a stranger may send.
#[test]
fn big_table() {
    let nid = |index| neo_common::types::NodeId::new(index).unwrap();
    let cells =
        |row| (1..9).map(move |i| (nid(i + row % 9), neo_common::protocol::CellState::Feeding));
    let rows: Vec<Vec<_>> = (0..65_535).map(|row| cells(row).collect()).collect();
    let ask_nodes =
        Packet::AskNodeList { node_type: Some(neo_common::protocol::NodeType::Storage) };
    let script = vec![
        (true, 0, Packet::AskPartitionList { first: 0, last: 0, nid: None }),
        (false, 0, Packet::AnswerPartitionList { ptid: Some(1), replicas: 7, rows }),
        (true, 1, ask_nodes),
        (false, 1, Packet::AnswerNodeList { nodes: vec![] }),
    ];
    let (stdout, stderr, status) = play(&["print", "pt"], &script, Then::Wait);
    assert_eq!((stderr.as_str(), status, stdout.lines().count()), ("", 0, 2 + 16));
}
