// SPDX-License-Identifier: GPL-2.0-or-later
//! The admin core against peers played by hand: what the recorded sessions do not have.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Harness, address, config, nid};
use neo_admin::NOT_CONNECTED_MESSAGE;
use neo_admin::app::Job;
use neo_admin::mail::MailConfig;
use neo_admin::monitor::{CHECK_DELAY, ROUND_DELAY};
use neo_common::config::Address;
use neo_common::engine::{ConnId, EXIT_BY_SIGNAL, Signal};
use neo_common::protocol::{
    CellState, ClusterState, ErrorCode, Map, NodeState, NodeType, Packet, Value,
};
use neo_common::types::Tid;

const RUNNING: ClusterState = ClusterState::Running;

fn new() -> Harness {
    Harness::new(config("test", 1, 2))
}
/// An admin whose cluster runs, and that asked for the last tid already.
fn running(config: neo_admin::Config) -> (Harness, ConnId) {
    let (mut h, master) = Harness::running(config, RUNNING);
    answer_last_tid(&mut h, master);
    (h, master)
}
fn answer_last_tid(h: &mut Harness, conn: ConnId) {
    let (id, request) = h.take(conn);
    assert_eq!(request, Packet::AskLastTransaction {});
    let tid = Tid::new(0x040d_2c9a_8d91_01ff);
    h.answer(conn, id.unwrap(), Packet::AnswerLastTransaction { tid });
}
fn is_error(packet: &Packet, expected: ErrorCode) -> bool {
    matches!(packet, Packet::Error { code, .. } if *code == expected)
}
fn not_ready() -> Packet {
    Packet::error(ErrorCode::NotReady, NOT_CONNECTED_MESSAGE)
}
fn summary(warnings: &[Option<&str>], problems: &[Option<&str>], summary: &str) -> Packet {
    let list = |names: &[Option<&str>]| names.iter().map(|n| n.map(String::from)).collect();
    Packet::AnswerMonitorInformation {
        warnings: list(warnings),
        problems: list(problems),
        summary: summary.into(),
    }
}
const GOOD: &str = "RUNNING; UP_TO_DATE=1; ltid=040d2c9a8d9101ff (2026-11-21 22:50:33.179633)";

/// Whatever is asked without primary master is refused, and the connection is closed.
#[test]
fn refused_without_primary_master() {
    let mut h = new();
    let requests = [
        Packet::AskPrimary {},
        Packet::AskClusterState {},
        Packet::AskNodeList { node_type: None },
        Packet::AskPartitionList { first: 0, last: 0, nid: None },
        Packet::AskMonitorInformation {},
        Packet::FlushLog {},
        Packet::AskLastIDs {},
        Packet::SetClusterState { state: ClusterState::Verifying },
    ];
    for request in requests {
        let ctl = h.accept();
        assert_eq!(h.ask(ctl, request.clone()), not_ready(), "{request:?}");
        assert!(h.closed.contains(&ctl), "{request:?}");
    }
    let ctl = h.accept();
    assert_eq!(h.ask(ctl, Packet::Ping {}), Packet::Pong {});
    let answer = h.ask(ctl, Packet::AskLockedTransactions {});
    assert!(is_error(&answer, ErrorCode::ProtocolError));
    assert!(h.closed.contains(&ctl));
}

/// While the primary master has not told the state, it is unknown, not wrong; nor is the table.
#[test]
fn between_identification_and_first_news() {
    let mut h = new();
    let (master, _) = h.connects.pop_front().unwrap();
    h.connected(master);
    let (id, _) = h.take(master);
    let accept = Packet::AcceptIdentification {
        node_type: NodeType::Master,
        my_nid: Some(nid(NodeType::Master, 1)),
        your_nid: Some(nid(NodeType::Admin, 1)),
    };
    h.answer(master, id.unwrap(), accept);
    let ctl = h.accept();
    let state = h.ask(ctl, Packet::AskClusterState {});
    assert_eq!(state, Packet::AnswerClusterState { state: None });
    let primary = h.ask(ctl, Packet::AskPrimary {});
    assert_eq!(primary, Packet::AnswerPrimary { nid: nid(NodeType::Master, 1) });
    h.send(ctl, Packet::AskMonitorInformation {});
    assert!(h.is_quiet(ctl), "the summary waits for the state");
    let ctl2 = h.accept();
    let table = h.ask(ctl2, Packet::AskPartitionList { first: 0, last: 0, nid: None });
    assert_eq!(table, not_ready());
    let (id, request) = h.take(master);
    assert_eq!(request, Packet::AskClusterState {});
    let state = Some(ClusterState::Recovering);
    h.answer(master, id.unwrap(), Packet::AnswerClusterState { state });
    assert_eq!(h.take(ctl).1, summary(&[], &[None], "RECOVERING"));
}

/// Rows by range; a range that leaves the table is an error, and the connection goes on.
#[test]
fn partition_list() {
    let (mut h, master) = running(config("test", 1, 2));
    let cell = |index| vec![(nid(NodeType::Storage, index), CellState::UpToDate)];
    let rows = vec![cell(1), cell(1), cell(1)];
    h.send(master, Packet::SendPartitionTable { ptid: Some(7), replicas: 0, rows });
    let ctl = h.accept();
    let lens = |h: &mut Harness, first, last| match h
        .ask(ctl, Packet::AskPartitionList { first, last, nid: None })
    {
        Packet::AnswerPartitionList { ptid: Some(7), replicas: 0, rows } => Some(rows.len()),
        packet => {
            assert!(is_error(&packet, ErrorCode::ProtocolError), "{packet:?}");
            None
        }
    };
    for (first, last, len) in [
        (0, 0, Some(3)),
        (1, 0, Some(2)),
        (1, 2, Some(1)),
        (2, 1, Some(0)),
        (3, 0, Some(0)),
        (9, 9, Some(0)),
        (0, 3, Some(3)),
        (0, 4, None),
        (2, u32::MAX, None),
    ] {
        assert_eq!(lens(&mut h, first, last), len, "[{first}, {last}[");
    }
}

/// The answer goes to who asked, with its id, in whatever order the master answers; a protocol error
/// ends the connection of who caused it.
#[test]
fn relayed_answers_find_their_way() {
    let (mut h, master) = running(config("test", 1, 2));
    let (a, b) = (h.accept(), h.accept());
    h.send(a, Packet::Ping {});
    let a_id = h.send(a, Packet::SetNumReplicas { replicas: 1 });
    let b_id = h.send(b, Packet::AskLastIDs {});
    let (first, packet) = h.take(master);
    assert_eq!(packet, Packet::SetNumReplicas { replicas: 1 });
    let (second, packet) = h.take(master);
    assert_eq!(packet, Packet::AskLastIDs {});
    let ids = Packet::AnswerLastIDs { last_tid: None, last_oid: None, first_tid: Tid::MAX };
    h.answer(master, second.unwrap(), ids.clone());
    assert_eq!(h.take(b), (Some(b_id), ids));
    assert_eq!(h.take(a), (Some(0), Packet::Pong {}));
    let error = Packet::error(ErrorCode::ProtocolError, "no");
    h.answer(master, first.unwrap(), error.clone());
    assert_eq!(h.take(a), (Some(a_id), error));
    assert!(h.closed.contains(&a) && !h.closed.contains(&b) && !h.closed.contains(&master));

    // Who asked is gone: the answer is dropped.
    h.send(b, Packet::AskLastTransaction {});
    let (id, _) = h.take(master);
    h.close(b);
    h.answer(master, id.unwrap(), Packet::AnswerLastTransaction { tid: Tid::ZERO });
    assert!(!h.closed.contains(&master));
}

/// Loss of the primary master: those who wait are told, then everything is refused until another
/// one is found.
#[test]
fn primary_master_lost() {
    let (mut h, master) = running(config("test", 1, 2));
    let (relayed, watching) = (h.accept(), h.accept());
    h.send(relayed, Packet::AskRecovery {});
    h.send(watching, Packet::AskMonitorInformation {});
    h.close(master);
    let error = Packet::error(ErrorCode::ProtocolError, "connection to master lost");
    assert_eq!(h.take(relayed).1, error);
    assert!(h.closed.contains(&relayed));
    assert_eq!(h.take(watching).1, summary(&[], &[None], NOT_CONNECTED_MESSAGE));
    assert_eq!(h.ask(watching, Packet::AskClusterState {}), not_ready());
    assert!(h.connects.is_empty(), "not tried again at once");
    h.wait(Duration::from_secs(1));
    let master = h.accept_admin(&[(NodeType::Storage, 1, NodeState::Down)]);
    let (id, request) = h.take(master);
    assert_eq!(request, Packet::AskClusterState {});
    h.answer(master, id.unwrap(), Packet::AnswerClusterState { state: Some(RUNNING) });
    let ctl = h.accept();
    h.send(ctl, Packet::AskMonitorInformation {});
    answer_last_tid(&mut h, master);
    assert_eq!(h.take(ctl).1, summary(&[], &[None], &GOOD.replace("1; ltid", "1; DOWN=1; ltid")));
    assert_eq!(h.exit, None);
}

/// A master that tells of no master is looked for where it was.
#[test]
fn masters_forgotten() {
    let (mut h, master) = running(config("test", 1, 2));
    h.notify_nodes(master, &[(NodeType::Master, 1, NodeState::Unknown)]);
    assert_eq!(h.engine.app.nodes().masters().count(), 0);
    h.close(master);
    h.wait(Duration::from_secs(1));
    assert_eq!(h.connects.pop_front().unwrap().1, address(1));
}

/// The end of a cluster that is stopping is the end of its admin.
#[test]
fn stopping() {
    let (mut h, master) = running(config("test", 1, 2));
    h.send(master, Packet::NotifyClusterInformation { state: ClusterState::Stopping });
    assert_eq!(h.exit, None);
    h.close(master);
    assert_eq!(h.exit, Some(0));
    h.wait(Duration::from_secs(5));
    assert!(h.connects.is_empty());
}

#[test]
fn signals() {
    let (mut h, _) = running(config("test", 1, 2));
    for signal in [Signal::FlushLog, Signal::DumpState, Signal::ReopenLog] {
        h.signal(signal);
        assert_eq!(h.exit, None);
    }
    h.signal(Signal::Terminate);
    assert_eq!(h.exit, Some(EXIT_BY_SIGNAL));
}

/// What no primary master would send ends the connection to it.
#[test]
fn nonsense_of_the_master() {
    let cells = |ptid, partition| Packet::NotifyPartitionChanges {
        ptid,
        replicas: 0,
        changes: vec![(partition, nid(NodeType::Storage, 1), CellState::OutOfDate)],
    };
    let own = (NodeType::Admin, None, Some(nid(NodeType::Admin, 1)), NodeState::Running, None);
    let nodes = Packet::NotifyNodeInformation { timestamp: 1.0, nodes: vec![own] };
    for packet in [cells(1, 0), cells(2, 1), nodes, Packet::StopOperation {}] {
        let (mut h, master) = running(config("test", 1, 2));
        h.send(master, packet.clone());
        assert!(is_error(&h.take(master).1, ErrorCode::ProtocolError), "{packet:?}");
        assert!(h.closed.contains(&master));
    }
    let (mut h, master) = running(config("test", 1, 2));
    h.send(master, cells(2, 0));
    assert!(!h.closed.contains(&master));
}

/// A master that does not answer within the delay of a round is disconnected, so that those who
/// ask for a summary get one.
#[test]
fn silent_master() {
    let (mut h, master) = running(config("test", 1, 2));
    let ctl = h.accept();
    h.send(ctl, Packet::AskMonitorInformation {});
    h.wait(ROUND_DELAY - Duration::from_secs(1));
    assert!(h.is_quiet(ctl) && !h.closed.contains(&master));
    h.wait(Duration::from_secs(1));
    assert!(h.closed.contains(&master));
    assert_eq!(h.take(ctl).1, summary(&[], &[None], NOT_CONNECTED_MESSAGE));
}

fn identify(cluster: &str, node_type: NodeType) -> Packet {
    Packet::RequestIdentification {
        node_type,
        nid: None,
        address: None,
        cluster: cluster.into(),
        id_timestamp: None,
        extra: Map::default(),
    }
}
fn with_backup() -> neo_admin::Config {
    neo_admin::Config { backups: vec!["copy".into()], ..config("test", 1, 2) }
}
fn information(pairs: Vec<(&'static str, Value)>) -> Packet {
    let info = pairs.into_iter().map(|(key, value)| (key.into(), value)).collect();
    Packet::NotifyMonitorInformation { info }
}

/// Only admins of known backup clusters may report, one at a time.
#[test]
fn backups_that_are_refused() {
    let (mut h, _) = running(with_backup());
    for (request, message) in [
        (identify("copy", NodeType::Client), "reject non-admin node"),
        (identify("other", NodeType::Admin), "unknown backup cluster 'other'"),
    ] {
        let conn = h.accept();
        assert_eq!(h.ask(conn, request), Packet::error(ErrorCode::ProtocolError, message));
        assert!(h.closed.contains(&conn));
    }
    let first = h.accept();
    let accepted = h.ask(first, identify("copy", NodeType::Admin));
    assert!(matches!(accepted, Packet::AcceptIdentification { .. }));
    let second = h.accept();
    let error = Packet::error(ErrorCode::ProtocolError, "already connected");
    assert_eq!(h.ask(second, identify("copy", NodeType::Admin)), error);
    h.close(first);
    let third = h.accept();
    let accepted = h.ask(third, identify("copy", NodeType::Admin));
    assert!(matches!(accepted, Packet::AcceptIdentification { .. }));
    // It is not neoctl.
    let answer = h.ask(third, Packet::AskClusterState {});
    assert!(is_error(&answer, ErrorCode::ProtocolError));
}

/// A backup that answers, one that does not within the delay, one that tells nonsense.
#[test]
fn backup_in_the_summary() {
    let (mut h, master) = running(with_backup());
    let backup = h.accept();
    h.ask(backup, identify("copy", NodeType::Admin));
    let state = ("cluster_state", Value::item(ClusterState::BackingUp));
    let cells = Value::Map(vec![(Value::item(CellState::UpToDate), Value::Int(6))]);
    h.send(backup, information(vec![state, ("pt_summary", cells), ("down", Value::Int(0))]));
    answer_last_tid(&mut h, master);
    let ctl = h.accept();
    h.send(ctl, Packet::AskMonitorInformation {});
    let (id, request) = h.take(backup);
    assert_eq!(request, Packet::AskRecovery {});
    let backup_tid = Some(Tid::new(0x040d_2c9a_0000_0000));
    let answer = Packet::AnswerRecovery { ptid: Some(3), backup_tid, truncate_tid: None };
    h.answer(backup, id.unwrap(), answer);
    answer_last_tid(&mut h, backup);
    assert!(h.is_quiet(master), "one question at a time");
    let copy = "\n\ncopy\n    BACKINGUP; UP_TO_DATE=6; ltid=040d2c9a00000000; lag=33.179633";
    let expected = summary(&[Some("copy")], &[], &format!("{GOOD}{copy}"));
    assert_eq!(h.take(ctl).1, expected);

    h.send(ctl, Packet::AskMonitorInformation {});
    answer_last_tid(&mut h, master);
    h.wait(ROUND_DELAY);
    assert!(h.closed.contains(&backup) && !h.closed.contains(&master));
    let expected = summary(&[], &[Some("copy")], &format!("{GOOD}\n\ncopy\n    None"));
    assert_eq!(h.take(ctl).1, expected);

    let backup = h.accept();
    h.ask(backup, identify("copy", NodeType::Admin));
    h.send(backup, information(vec![("down", Value::Nil)]));
    assert!(is_error(&h.take(backup).1, ErrorCode::ProtocolError));
}

/// The admin of a backup cluster connects where the master says, again when it is refused or lost,
/// and elsewhere when the master says so. Only questions of the monitoring are relayed.
#[test]
fn admin_of_upstream() {
    let (mut h, master) = running(config("copy", 1, 2));
    h.send(master, Packet::NotifyUpstreamAdmin { address: address(7) });
    h.send(master, Packet::NotifyUpstreamAdmin { address: address(7) });
    let (conn, to) = h.connects.pop_front().unwrap();
    assert_eq!((to, h.connects.len()), (address(7), 0));
    h.close(conn);
    h.wait(Duration::from_secs(1));
    let (conn, _) = h.connects.pop_front().unwrap();
    h.connected(conn);
    assert_eq!(h.take(conn), (Some(0), identify("copy", NodeType::Admin)));
    h.send(master, Packet::NotifyClusterInformation { state: ClusterState::StartingBackup });
    assert!(h.is_quiet(conn), "not accepted yet");
    h.answer(conn, 0, Packet::error(ErrorCode::ProtocolError, "already connected"));
    h.close(conn);
    h.wait(Duration::from_secs(1));
    let (conn, _) = h.connects.pop_front().unwrap();
    h.connected(conn);
    let (id, _) = h.take(conn);
    let node_type = NodeType::Admin;
    let accept = Packet::AcceptIdentification { node_type, my_nid: None, your_nid: None };
    h.answer(conn, id.unwrap(), accept);
    let cells = Value::Map(vec![(Value::item(CellState::UpToDate), Value::Int(1))]);
    let state = Value::item(ClusterState::StartingBackup);
    let all = vec![("cluster_state", state), ("down", Value::Int(0)), ("pt_summary", cells)];
    assert_eq!(h.take(conn).1, information(all));
    h.send(conn, Packet::AskLastTransaction {});
    answer_last_tid(&mut h, master);
    assert!(matches!(h.take(conn).1, Packet::AnswerLastTransaction { .. }));
    let answer = h.ask(conn, Packet::SetClusterState { state: ClusterState::Stopping });
    assert!(is_error(&answer, ErrorCode::ProtocolError));
    h.send(master, Packet::NotifyUpstreamAdmin { address: address(8) });
    let (_, to) = h.connects.pop_back().unwrap();
    assert_eq!(to, address(8));
}

/// Changes of health are mailed once; a failure is part of the summary, and tried again.
#[test]
fn mails() {
    let mail = MailConfig {
        recipients: vec!["ops@example.com".into()],
        sender: "neo@example.com".into(),
        host: "localhost".into(),
        smtp: Address { host: "localhost".into(), port: 25 },
        starttls: false,
        auth: None,
    };
    let (mut h, master) = running(neo_admin::Config { mail: Some(mail), ..config("test", 1, 2) });
    let (id, Job::Mail(first)) = h.jobs.pop_front().unwrap() else { panic!() };
    assert!(first.message.contains("Subject: NEO monitoring: OK\n"), "{}", first.message);
    assert!(first.message.ends_with(&format!("\n\n{GOOD}\n")), "{}", first.message);
    h.notify_nodes(master, &[(NodeType::Storage, 1, NodeState::Down)]);
    answer_last_tid(&mut h, master);
    assert!(h.jobs.is_empty(), "one at a time");
    h.job_done(id, Err("refused".into()));
    let (id, Job::Mail(second)) = h.jobs.pop_front().unwrap() else { panic!() };
    assert!(second.message.contains("Subject: NEO monitoring: PROBLEM (test)\n"));
    assert!(second.message.ends_with(":\n\nrefused\n"), "{}", second.message);
    h.job_done(id, Err("again".into()));
    let ctl = h.accept();
    h.send(ctl, Packet::AskMonitorInformation {});
    answer_last_tid(&mut h, master);
    let Packet::AnswerMonitorInformation { problems, summary, .. } = h.take(ctl).1 else {
        panic!()
    };
    assert_eq!(problems, [None]);
    assert!(summary.contains("A notification could not be sent at Sat, 21 Nov 2026"), "{summary}");
    // Asking for a summary is an occasion to try again.
    let (id, Job::Mail(_)) = h.jobs.pop_front().unwrap() else { panic!() };
    h.job_done(id, Err("still".into()));
    h.wait(CHECK_DELAY);
    answer_last_tid(&mut h, master);
    let (id, Job::Mail(_)) = h.jobs.pop_front().unwrap() else { panic!() };
    h.job_done(id, Ok(()));
    h.wait(CHECK_DELAY);
    assert!(h.jobs.is_empty() && h.is_quiet(master));
}

/// The list of masters is to be saved when it changes, if it is to be saved at all.
#[test]
fn dynamic_list_of_masters() {
    let (mut h, master) = running(neo_admin::Config { save_masters: true, ..config("test", 1, 2) });
    let mut saved = Vec::new();
    while let Some((id, Job::SaveMasters(masters))) = h.jobs.pop_front() {
        h.job_done(id, Ok(()));
        saved.push(masters);
    }
    assert_eq!(saved.last(), Some(&vec![address(1)]));
    h.now.realtime_us += 1;
    let entry = (NodeType::Master, Some(address(9)), None, NodeState::Down, None);
    let timestamp = h.now.realtime_seconds();
    h.send(master, Packet::NotifyNodeInformation { timestamp, nodes: vec![entry] });
    let (_, job) = h.jobs.pop_front().unwrap();
    assert_eq!(job, Job::SaveMasters(vec![address(1), address(9)]));
}

/// A peer that asks and asks without waiting is not read any more, until it is answered.
#[test]
fn flood() {
    let (mut h, master) = running(config("test", 1, 2));
    let ctl = h.accept();
    for _ in 0..1000 {
        h.send(ctl, Packet::AskLastTransaction {});
        h.send(ctl, Packet::AskMonitorInformation {});
    }
    assert_eq!(h.paused, [ctl].into());
    for _ in 0..1001 {
        answer_last_tid(&mut h, master);
    }
    assert_eq!(h.sent[&ctl].len(), 2000);
    assert_eq!(h.paused, [].into());
}
