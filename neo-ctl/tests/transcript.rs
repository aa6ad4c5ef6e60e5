// SPDX-License-Identifier: GPL-2.0-or-later
//! A recorded session of upstream's neoctl with nearly every command: the same bytes are sent, and
//! the same texts are printed.
#![allow(clippy::unwrap_used)] // A test.

use std::path::{Path, PathBuf};

use neo_common::protocol::Packet;
use neo_common::protocol::codec::{OutBuffer, Reader};
use neo_ctl::dialog::{Step, failure};
use neo_ctl::{Dialog, commands};
use serde_json::Value;

fn session(name: &str) -> String {
    let shared = std::env::var_os("NEO_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = shared.join("protocol/sessions").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A packet of a connection of neoctl.
struct Recorded {
    is_request: bool,
    bytes: Vec<u8>,
}

/// Packets of each connection of neoctl, in order.
fn connections(text: &str) -> Vec<Vec<Recorded>> {
    let mut names: Vec<String> = Vec::new();
    let mut connections: Vec<Vec<Recorded>> = Vec::new();
    for event in text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let name = event["conn"].as_str().unwrap_or_default();
        if event["ev"] == "open" && event["from"] == "CTL" {
            names.push(name.to_owned());
            connections.push(Vec::new());
        } else if let Some(hex) = event["hex"].as_str().filter(|_| event["name"] != "HANDSHAKE")
            && let Some(index) = names.iter().position(|known| known == name)
        {
            let bytes = (0..hex.len()).step_by(2);
            let bytes = bytes.map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            connections[index].push(Recorded { is_request: event["dir"] == ">", bytes });
        }
    }
    connections
}

/// Commands with what they printed.
fn transcript(text: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ neoctl ") {
            commands.push((command.to_owned(), String::new()));
        } else if let Some((_, output)) = commands.last_mut()
            // Printed by the recorder itself.
            && line != "['S1', 'S3']"
        {
            *output += &format!("{line}\n");
        }
    }
    commands
}

/// Executes a command against recorded answers; what is printed on both streams.
fn execute(command: &str, packets: &[Recorded]) -> String {
    let args: Vec<String> = command.split_whitespace().map(Into::into).collect();
    let command = commands::parse(&args).unwrap();
    let (mut dialog, mut step) = Dialog::start(command);
    let mut packets = packets.iter();
    let mut id = 0;
    let mut send = |packet: &Packet, recorded: Option<&Recorded>| {
        let recorded = recorded.filter(|recorded| recorded.is_request).unwrap();
        let mut out = OutBuffer::default();
        packet.encode(Some(id), &mut out);
        let sent: Vec<u8> = out.take().iter().flat_map(|chunk| chunk.to_vec()).collect();
        assert_eq!(sent, recorded.bytes, "{packet:?}");
        id += 1;
    };
    let exit = loop {
        match step {
            Step::Ask(packet) => {
                send(&packet, packets.next());
                let answer = packets.next().filter(|recorded| !recorded.is_request).unwrap();
                let bytes = bytes::Bytes::copy_from_slice(&answer.bytes);
                let (_, answer) = Packet::decode(&mut Reader::new(&bytes)).unwrap();
                step = dialog.answer(answer);
            }
            Step::Send(packet) => {
                send(&packet, packets.next());
                break failure("");
            }
            Step::End(exit) => break exit,
        }
    };
    assert_eq!(packets.count(), 0, "packets are left");
    assert_eq!(exit.status == 0, exit.stderr.is_empty());
    exit.stdout + &exit.stderr
}

/// The whole session. Both texts without what is blank at their end, as recorded.
#[test]
fn recorded_session() {
    let connections = connections(&session("f-neoctl-commands.jsonl"));
    let commands = transcript(&session("f-neoctl-output.txt"));
    // The last command finds nobody to connect to.
    let (last, commands) = commands.split_last().unwrap();
    assert_eq!(last.1, "ERROR: not connected\n");
    assert_eq!((connections.len(), commands.len()), (66, 66));
    for ((command, output), packets) in commands.iter().zip(&connections) {
        let printed = execute(command, packets);
        assert_eq!(printed.trim_end(), output.trim_end(), "{command}");
    }
}
