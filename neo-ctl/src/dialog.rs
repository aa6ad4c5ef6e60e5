// SPDX-License-Identifier: GPL-2.0-or-later
//! The requests that a command takes, and what their answers become.
//!
//! ```text
//! print ids         AskRecovery, then AskLastIDs, or AskLastTransaction of a backup
//! print pt          AskPartitionList, then AskNodeList unless bounds are given
//! tweak             TweakPartitionTable, then AskNodeList if something changes
//! add, prune_orphan AskNodeList if for all, then the request
//! check :           AskPartitionList, then CheckReplicas
//! others            one request
//! ```
//!
//! A dialog is a value: it is given answers and tells what to ask next, or how to end.

use std::fmt;

use neo_common::config::Exit;
use neo_common::protocol::{ErrorCode, NodeEntry, NodeState, NodeType, Packet, Rows};
use neo_common::types::{NodeId, Ptid, Tid, nid_str};

use crate::commands::{CheckedPartitions, Command, Storages};
use crate::usage::USAGE;
use crate::{json, output};

/// What to do next.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Send this request and wait for its answer.
    Ask(Packet),
    /// Send this notification, and a `Ping` to know when it was received.
    Send(Packet),
    /// Print and end.
    End(Exit),
}

/// Where a dialog is: what the next answer is for.
#[derive(Clone, PartialEq, Debug)]
enum State {
    /// The answer to the first request of a command of one or more requests.
    First,
    /// `print ids`: last ids, after the recovery information.
    LastIds { ptid: Option<Ptid>, backup_tid: Option<Tid> },
    /// `print pt` and `tweak`: nodes, after the rows.
    Nodes { header: Option<(Option<Ptid>, u32)>, rows: Rows },
    /// The request for all storages or all partitions, once these are known.
    Last,
}

/// A command that is being executed.
#[derive(Clone, PartialEq, Debug)]
pub struct Dialog {
    command: Command,
    state: State,
    /// Print for programs.
    json: bool,
}

/// Success with a text, to which Python adds a line end.
fn success(text: impl fmt::Display) -> Step {
    Step::End(Exit::success(format!("{text}\n")))
}

/// Success without a word.
fn silence() -> Step {
    Step::End(Exit::success(""))
}

/// Failure with a text of the cluster.
fn denied(text: impl fmt::Display) -> Step {
    Step::End(failure(text))
}

/// How neoctl fails: a text on standard error, status 1.
pub fn failure(text: impl fmt::Display) -> Exit {
    Exit { status: 1, stdout: String::new(), stderr: format!("{text}\n") }
}

/// A failure to execute the command, rather than a refusal.
pub fn error(text: impl fmt::Display) -> Exit {
    failure(format_args!("ERROR: {text}"))
}

impl Dialog {
    /// Begins. Nothing needs to be asked if the command is [`Command::Usage`].
    pub fn start(command: Command) -> (Self, Step) {
        let step = first(&command);
        (Self { command, state: State::First, json: false }, step)
    }

    /// Prints in JSON, if it is a `print` command.
    pub fn in_json(self) -> Self {
        Self { json: true, ..self }
    }

    /// Goes on with an answer, an `Error` included.
    pub fn answer(&mut self, packet: Packet) -> Step {
        if let Packet::Error { code, message } = packet {
            return self.error(code, &message);
        }
        let name = packet.name();
        let state = std::mem::replace(&mut self.state, State::Last);
        let step = match state {
            State::First => self.first_answer(packet),
            State::LastIds { ptid, backup_tid } => last_ids(ptid, backup_tid, &packet, self.json),
            State::Nodes { header, rows } => nodes(header, &rows, &packet),
            State::Last => None,
        };
        step.unwrap_or_else(|| Step::End(error(format_args!("unexpected answer {name}"))))
    }

    fn error(&self, code: ErrorCode, message: &str) -> Step {
        match code {
            ErrorCode::Denied => denied(message),
            ErrorCode::Ack => match self.command {
                Command::Truncate(_) | Command::Check { .. } => silence(),
                _ => success(message),
            },
            // Upstream only knows NOT_READY, and fails with a traceback otherwise.
            _ => Step::End(error(message)),
        }
    }

    /// The answer to the first request; `None` if it is not one.
    fn first_answer(&mut self, packet: Packet) -> Option<Step> {
        let json = self.json;
        Some(match (&self.command, packet) {
            (Command::PrintCluster, Packet::AnswerClusterState { state }) if json => {
                success(json::cluster(state))
            }
            (Command::PrintPrimary, Packet::AnswerPrimary { nid }) if json => {
                success(json::primary(nid))
            }
            (Command::PrintNode(_), Packet::AnswerNodeList { nodes }) if json => {
                success(json::nodes(&nodes))
            }
            (
                Command::PrintSummary,
                Packet::AnswerMonitorInformation { warnings, problems, summary },
            ) if json => success(json::summary(&warnings, &problems, &summary)),
            (
                &Command::PrintPt { first, .. },
                Packet::AnswerPartitionList { ptid, replicas, rows },
            ) if json => success(json::pt(ptid, replicas, first, &rows)),
            (Command::FlushLog, Packet::Pong {}) => silence(),
            (Command::PrintCluster, Packet::AnswerClusterState { state }) => {
                success(state.map_or_else(|| "None".to_owned(), |state| state.to_string()))
            }
            (Command::PrintPrimary, Packet::AnswerPrimary { nid }) => success(nid_str(Some(nid))),
            (Command::PrintNode(_), Packet::AnswerNodeList { nodes }) => {
                success(output::nodes(&nodes))
            }
            (
                Command::PrintSummary,
                Packet::AnswerMonitorInformation { warnings, problems, summary },
            ) => success(output::summary(&warnings, &problems, &summary)),
            (Command::PrintIds, Packet::AnswerRecovery { ptid, backup_tid, .. }) => {
                self.state = State::LastIds { ptid, backup_tid };
                match backup_tid {
                    Some(_) => Step::Ask(Packet::AskLastTransaction {}),
                    None => Step::Ask(Packet::AskLastIDs {}),
                }
            }
            (
                &Command::PrintPt { first, last, .. },
                Packet::AnswerPartitionList { ptid, replicas, rows },
            ) => {
                if first != 0 || last != 0 {
                    return Some(success(output::pt_rows(ptid, replicas, first, &rows)));
                }
                self.state = State::Nodes { header: Some((ptid, replicas)), rows };
                ask_storages()
            }
            (Command::Tweak { .. }, Packet::AnswerTweakPartitionTable { changed, rows }) => {
                if !changed {
                    return Some(success("No change done."));
                }
                self.state = State::Nodes { header: None, rows };
                ask_storages()
            }
            (Command::Add(Storages::All), Packet::AnswerNodeList { nodes }) => {
                self.state = State::Last;
                Step::Ask(Packet::AddPendingNodes { nids: nids(&nodes) })
            }
            (
                &Command::PruneOrphan { dry_run, storages: Storages::All },
                Packet::AnswerNodeList { nodes },
            ) => {
                self.state = State::Last;
                Step::Ask(Packet::Repair { nids: nids(&nodes), dry_run })
            }
            (
                &Command::Check { partitions: CheckedPartitions::All(reference), min_tid, max_tid },
                Packet::AnswerPartitionList { rows, .. },
            ) => {
                self.state = State::Last;
                let partitions = (0..).zip(&rows).map(|(partition, _)| (partition, reference));
                Step::Ask(Packet::CheckReplicas {
                    partitions: partitions.collect(),
                    min_tid,
                    max_tid,
                })
            }
            _ => return None,
        })
    }
}

/// First request of a command.
fn first(command: &Command) -> Step {
    Step::Ask(match command {
        Command::Usage => return success(USAGE),
        Command::FlushLog => return Step::Send(Packet::FlushLog {}),
        Command::PrintCluster => Packet::AskClusterState {},
        Command::PrintPrimary => Packet::AskPrimary {},
        Command::PrintNode(node_type) => Packet::AskNodeList { node_type: *node_type },
        &Command::PrintPt { first, last, nid } => Packet::AskPartitionList { first, last, nid },
        Command::PrintIds => Packet::AskRecovery {},
        Command::PrintSummary => Packet::AskMonitorInformation {},
        Command::SetCluster(state) => Packet::SetClusterState { state: *state },
        Command::SetReplicas(replicas) => Packet::SetNumReplicas { replicas: i64::from(*replicas) },
        Command::Add(Storages::All) | Command::PruneOrphan { storages: Storages::All, .. } => {
            return ask_storages();
        }
        Command::Add(Storages::These(nids)) => Packet::AddPendingNodes { nids: nids.clone() },
        Command::PruneOrphan { dry_run, storages: Storages::These(nids) } => {
            Packet::Repair { nids: nids.clone(), dry_run: *dry_run }
        }
        Command::Drop(nid) => Packet::SetNodeState { nid: *nid, state: NodeState::Unknown },
        Command::Kill(nid) => Packet::SetNodeState { nid: *nid, state: NodeState::Down },
        Command::Tweak { dry_run, nids } => {
            Packet::TweakPartitionTable { dry_run: *dry_run, ignored: nids.clone() }
        }
        Command::Check { partitions: CheckedPartitions::All(_), .. } => {
            Packet::AskPartitionList { first: 0, last: 0, nid: None }
        }
        Command::Check { partitions: CheckedPartitions::These(these), min_tid, max_tid } => {
            Packet::CheckReplicas {
                partitions: these.iter().copied().collect(),
                min_tid: *min_tid,
                max_tid: *max_tid,
            }
        }
        Command::Truncate(tid) => Packet::Truncate { tid: *tid },
    })
}

fn ask_storages() -> Step {
    Step::Ask(Packet::AskNodeList { node_type: Some(NodeType::Storage) })
}

fn nids(nodes: &[NodeEntry]) -> Vec<NodeId> {
    nodes.iter().filter_map(|entry| entry.2).collect()
}

fn last_ids(
    ptid: Option<Ptid>,
    backup_tid: Option<Tid>,
    packet: &Packet,
    json: bool,
) -> Option<Step> {
    let (last_oid, last_tid) = match (backup_tid, packet) {
        (Some(_), Packet::AnswerLastTransaction { tid }) => (None, Some(*tid)),
        (None, Packet::AnswerLastIDs { last_tid, last_oid, .. }) => (*last_oid, *last_tid),
        _ => return None,
    };
    Some(success(match (json, backup_tid, last_tid) {
        (true, ..) => json::ids(last_oid, last_tid, ptid, backup_tid),
        (false, Some(backup_tid), Some(last_tid)) => output::backup_ids(backup_tid, last_tid, ptid),
        _ => output::ids(last_oid, last_tid, ptid),
    }))
}

fn nodes(header: Option<(Option<Ptid>, u32)>, rows: &Rows, packet: &Packet) -> Option<Step> {
    let Packet::AnswerNodeList { nodes } = packet else { return None };
    let text = match header {
        Some((ptid, replicas)) => output::pt(ptid, replicas, rows, nodes),
        None => output::table(rows, nodes),
    };
    Some(text.map_or_else(|why| Step::End(error(why)), success))
}
