// SPDX-License-Identifier: GPL-2.0-or-later
//! What can be asked to a cluster. Upstream: neoctl/app.py.
//!
//! Wrong arguments, on which upstream fails with a Python traceback, get a message; the status is
//! the same.

use std::fmt;

use neo_common::protocol::{ClusterState, NodeType};
use neo_common::types::{NodeId, Partition, Tid};

use crate::arguments::{node, number, tid};

/// A command with its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Nothing asked: show the list of commands.
    Usage,
    /// `print cluster`
    PrintCluster,
    /// `print primary`
    PrintPrimary,
    /// `print node [TYPE]`
    PrintNode(Option<NodeType>),
    /// `print pt [MIN [MAX [NODE]]]`
    PrintPt {
        /// First row.
        first: Partition,
        /// Row after the last one; 0 for all.
        last: Partition,
        /// Ignored by upstream's admin.
        nid: Option<NodeId>,
    },
    /// `print ids`
    PrintIds,
    /// `print summary`
    PrintSummary,
    /// `set cluster STATE`; `start` is `set cluster verifying`.
    SetCluster(ClusterState),
    /// `set replicas NUMBER`
    SetReplicas(u32),
    /// `add all|NODE...`
    Add(Storages),
    /// `drop NODE`
    Drop(NodeId),
    /// `kill NODE`
    Kill(NodeId),
    /// `tweak [-n] [NODE...]`
    Tweak {
        /// Only show what it would do.
        dry_run: bool,
        /// Nodes to empty.
        nids: Vec<NodeId>,
    },
    /// `check [PARTITION]:[REFERENCE]... [MIN [MAX]]`
    Check {
        /// What to check.
        partitions: CheckedPartitions,
        /// First tid.
        min_tid: Tid,
        /// Last tid; up to now if `None`.
        max_tid: Option<Tid>,
    },
    /// `truncate TID`
    Truncate(Tid),
    /// `prune_orphan 0|1 all|NODE...`
    PruneOrphan {
        /// Only count.
        dry_run: bool,
        /// Where.
        storages: Storages,
    },
    /// `flush_log`
    FlushLog,
}

/// Storages that a command is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Storages {
    /// All that the cluster knows.
    All,
    /// These.
    These(Vec<NodeId>),
}

/// Partitions to check, with the node that has the good data if it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckedPartitions {
    /// All, with the same reference.
    All(Option<NodeId>),
    /// These.
    These(Vec<(Partition, Option<NodeId>)>),
}

/// What is wrong with a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// No such command.
    Invalid(String),
    /// A word is missing after these.
    Incomplete(String, &'static [&'static str]),
    /// Arguments are missing, or there are too many; how it should look.
    Arguments(&'static str),
    /// Not a node id.
    Node(String),
    /// Not a number.
    Number(String),
    /// Not a tid.
    Tid(String),
    /// A number that had another meaning in previous versions.
    AmbiguousTid(String),
    /// Not a type of node.
    NodeType(String),
    /// Not a state of a cluster.
    ClusterState(String),
    /// A negative number of replicas, or too many.
    Replicas,
    /// A command of version 0.9, and what replaces it.
    Old(String, &'static str),
    /// `--json` for a command that does not print.
    Json,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(command) => write!(f, "invalid command: {command}"),
            Self::Incomplete(command, words) => {
                write!(f, "incomplete command: {command} {}", words.join("|"))
            }
            Self::Arguments(syntax) => write!(f, "wrong number of arguments: {syntax}"),
            Self::Node(text) if is_uuid(text) => write!(
                f,
                "invalid node: '{text}' (nodes had such ids in NEO 0.9; they are shown by 'print \
                 node' as a letter and a number: S1)"
            ),
            Self::Node(text) => {
                write!(f, "invalid node: '{text}' (a letter among A, C, M, S and a number: S1)")
            }
            Self::Number(text) => write!(f, "invalid number: '{text}'"),
            Self::Tid(text) => {
                write!(f, "invalid TID: '{text}' (tid:<integer>, or <float> for a UNIX timestamp)")
            }
            Self::AmbiguousTid(text) => write!(
                f,
                "ambiguous TID: '{text}' was a TID in NEO 1.12 and is a UNIX timestamp now; write \
                 'tid:{text}' or '{text}.0'"
            ),
            Self::NodeType(text) => {
                write!(f, "invalid node type: '{text}' (master, storage, client or admin)")
            }
            Self::ClusterState(text) => write!(f, "invalid cluster state: '{text}'"),
            // The only one for which upstream has a message.
            Self::Replicas => f.write_str("invalid number of replicas"),
            Self::Old(command, now) => {
                write!(f, "invalid command: {command}: this was of NEO 0.9, {now}")
            }
            Self::Json => f.write_str("--json is for print commands"),
        }
    }
}
impl std::error::Error for CommandError {}

/// An id of a node of version 0.9.
fn is_uuid(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const PRINT: &[&str] = &["ids", "pt", "node", "cluster", "primary", "summary"];
const SET: &[&str] = &["cluster", "replicas"];

/// Removes `--json` from the words of a `print` command, where it may be anywhere. `option`: it was
/// given before the command. Returns the other words, and whether it was there.
///
/// # Errors
/// If it was given before another command.
pub fn take_json(args: &[String], option: bool) -> Result<(Vec<String>, bool), CommandError> {
    if args.first().is_some_and(|word| word == "print") {
        let words: Vec<String> = args.iter().filter(|word| *word != "--json").cloned().collect();
        let json = option || words.len() < args.len();
        return Ok((words, json));
    }
    if option { Err(CommandError::Json) } else { Ok((args.to_vec(), false)) }
}

/// Understands a command.
///
/// # Errors
/// [`CommandError`], whose text is for standard error.
pub fn parse(args: &[String]) -> Result<Command, CommandError> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        [] => Ok(Command::Usage),
        ["print"] => Err(CommandError::Incomplete("print".into(), PRINT)),
        ["print", what, ref rest @ ..] if PRINT.contains(&what) => parse_print(what, rest),
        ["set"] => Err(CommandError::Incomplete("set".into(), SET)),
        ["set", "cluster", ref rest @ ..] => {
            let state = one(rest, "set cluster STATE")?;
            let state = state.parse().map_err(|_| CommandError::ClusterState(state.into()))?;
            Ok(Command::SetCluster(state))
        }
        ["set", "replicas", ref rest @ ..] => {
            let text = one(rest, "set replicas NUMBER")?;
            number(text).map(Command::SetReplicas).map_err(|error| match text.parse::<i128>() {
                Ok(_) => CommandError::Replicas,
                Err(_) => error,
            })
        }
        // Its DOWN was a removal or a stop, depending on what followed: not to be guessed.
        ["set", "node", ..] => Err(CommandError::Old(
            args.join(" "),
            "use 'add', 'kill' or 'drop' with a node as 'print node' shows it",
        )),
        ["check", ref rest @ ..] => parse_check(rest),
        ["start", ref rest @ ..] => {
            nothing(rest, "start")?;
            Ok(Command::SetCluster(ClusterState::Verifying))
        }
        ["add", ref rest @ ..] => storages(rest).map(Command::Add),
        ["tweak", "-n", ref rest @ ..] => Ok(Command::Tweak { dry_run: true, nids: nodes(rest)? }),
        ["tweak", ref rest @ ..] => Ok(Command::Tweak { dry_run: false, nids: nodes(rest)? }),
        ["drop", ref rest @ ..] => node(one(rest, "drop NODE")?).map(Command::Drop),
        ["kill", ref rest @ ..] => node(one(rest, "kill NODE")?).map(Command::Kill),
        ["prune_orphan", ref rest @ ..] => parse_prune_orphan(rest),
        ["truncate", ref rest @ ..] => tid(one(rest, "truncate TID")?).map(Command::Truncate),
        ["flush_log", ref rest @ ..] => {
            nothing(rest, "flush_log")?;
            Ok(Command::FlushLog)
        }
        _ => Err(CommandError::Invalid(args.join(" "))),
    }
}

fn parse_print(what: &str, rest: &[&str]) -> Result<Command, CommandError> {
    match what {
        "node" => match rest {
            [] => Ok(Command::PrintNode(None)),
            [text] => {
                let node_type =
                    text.parse().map_err(|_| CommandError::NodeType((*text).to_owned()))?;
                Ok(Command::PrintNode(Some(node_type)))
            }
            _ => Err(CommandError::Arguments("print node [TYPE]")),
        },
        "pt" => {
            if rest.len() > 3 {
                return Err(CommandError::Arguments("print pt [MIN [MAX [NODE]]]"));
            }
            let bound = |index: usize| rest.get(index).map_or(Ok(0), |text| number(text));
            let nid = rest.get(2).map(|text| node(text)).transpose()?;
            Ok(Command::PrintPt { first: bound(0)?, last: bound(1)?, nid })
        }
        "cluster" => nothing(rest, "print cluster").map(|()| Command::PrintCluster),
        "primary" => nothing(rest, "print primary").map(|()| Command::PrintPrimary),
        "summary" => nothing(rest, "print summary").map(|()| Command::PrintSummary),
        _ => nothing(rest, "print ids").map(|()| Command::PrintIds),
    }
}

fn parse_prune_orphan(rest: &[&str]) -> Result<Command, CommandError> {
    let (dry_run, rest) = match rest {
        ["0", rest @ ..] => (false, rest),
        ["1", rest @ ..] => (true, rest),
        _ => return Err(CommandError::Arguments("prune_orphan 0|1 all|NODE...")),
    };
    Ok(Command::PruneOrphan { dry_run, storages: storages(rest)? })
}

fn parse_check(mut rest: &[&str]) -> Result<Command, CommandError> {
    const SYNTAX: &str = "check [PARTITION]:[REFERENCE]... [MIN [MAX]]";
    let mut all = None;
    let mut these: Vec<(Partition, Option<NodeId>)> = Vec::new();
    while let [item, tail @ ..] = rest {
        // Upstream takes "tid:5" as partition "tid" with reference "5", which cannot work.
        let is_tid = item.to_ascii_lowercase().starts_with("tid:");
        let Some((partition, reference)) = item.split_once(':').filter(|_| !is_tid) else { break };
        let reference = Some(reference).filter(|text| !text.is_empty()).map(node).transpose()?;
        match (partition, &all) {
            (_, Some(_)) => return Err(CommandError::Arguments(SYNTAX)),
            ("", None) if these.is_empty() => all = Some(reference),
            ("", None) => return Err(CommandError::Arguments(SYNTAX)),
            (text, None) => {
                let partition = number(text)?;
                these.retain(|(other, _)| *other != partition);
                these.push((partition, reference));
            }
        }
        rest = tail;
    }
    let (min_tid, max_tid) = match rest {
        [] => (Tid::ZERO, None),
        [min] => (tid(min)?, None),
        [min, max] => (tid(min)?, Some(tid(max)?)),
        _ => return Err(CommandError::Arguments(SYNTAX)),
    };
    let partitions = match all {
        Some(reference) => CheckedPartitions::All(reference),
        None => CheckedPartitions::These(these),
    };
    Ok(Command::Check { partitions, min_tid, max_tid })
}

fn storages(rest: &[&str]) -> Result<Storages, CommandError> {
    match rest {
        ["all"] => Ok(Storages::All),
        _ => nodes(rest).map(Storages::These),
    }
}

fn nodes(rest: &[&str]) -> Result<Vec<NodeId>, CommandError> {
    rest.iter().map(|text| node(text)).collect()
}

fn nothing(rest: &[&str], syntax: &'static str) -> Result<(), CommandError> {
    if rest.is_empty() { Ok(()) } else { Err(CommandError::Arguments(syntax)) }
}

fn one<'a>(rest: &[&'a str], syntax: &'static str) -> Result<&'a str, CommandError> {
    match rest {
        [text] => Ok(text),
        _ => Err(CommandError::Arguments(syntax)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, String> {
        let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
        parse(&args).map_err(|error| error.to_string())
    }
    fn s(index: u32) -> NodeId {
        NodeId::of(NodeType::Storage, index).unwrap()
    }

    /// All commands, with all their arguments.
    #[test]
    fn grammar() {
        let these = |list: &[u32]| Storages::These(list.iter().copied().map(s).collect());
        let check = |partitions, min_tid, max_tid| Command::Check { partitions, min_tid, max_tid };
        let pt = |first, last, nid| Command::PrintPt { first, last, nid };
        let tweak = |dry_run, list: &[u32]| Command::Tweak {
            dry_run,
            nids: list.iter().copied().map(s).collect(),
        };
        for (line, expected) in [
            ("", Command::Usage),
            ("print cluster", Command::PrintCluster),
            ("print primary", Command::PrintPrimary),
            ("print node", Command::PrintNode(None)),
            ("print node storage", Command::PrintNode(Some(NodeType::Storage))),
            ("print node MASTER", Command::PrintNode(Some(NodeType::Master))),
            ("print pt", pt(0, 0, None)),
            ("print pt 1", pt(1, 0, None)),
            ("print pt 1 3", pt(1, 3, None)),
            ("print pt 0 0 S1", pt(0, 0, Some(s(1)))),
            ("print ids", Command::PrintIds),
            ("print summary", Command::PrintSummary),
            ("start", Command::SetCluster(ClusterState::Verifying)),
            ("set cluster verifying", Command::SetCluster(ClusterState::Verifying)),
            ("set cluster STOPPING", Command::SetCluster(ClusterState::Stopping)),
            ("set cluster starting_backup", Command::SetCluster(ClusterState::StartingBackup)),
            ("set replicas 1", Command::SetReplicas(1)),
            ("add all", Command::Add(Storages::All)),
            ("add S1 S2", Command::Add(these(&[1, 2]))),
            ("add", Command::Add(these(&[]))),
            ("drop S1", Command::Drop(s(1))),
            ("kill M2", Command::Kill(NodeId::of(NodeType::Master, 2).unwrap())),
            ("tweak", tweak(false, &[])),
            ("tweak -n", tweak(true, &[])),
            ("tweak S3", tweak(false, &[3])),
            ("tweak -n S3 S4", tweak(true, &[3, 4])),
            ("truncate tid:0x10", Command::Truncate(Tid::new(16))),
            ("prune_orphan 1 all", Command::PruneOrphan { dry_run: true, storages: Storages::All }),
            ("prune_orphan 0 S9", Command::PruneOrphan { dry_run: false, storages: these(&[9]) }),
            ("flush_log", Command::FlushLog),
            ("check", check(CheckedPartitions::These(vec![]), Tid::ZERO, None)),
            ("check :", check(CheckedPartitions::All(None), Tid::ZERO, None)),
            ("check :S1 tid:5", check(CheckedPartitions::All(Some(s(1))), Tid::new(5), None)),
            (
                "check 0: 1:S1 0:S2 tid:1 TID:2",
                check(
                    CheckedPartitions::These(vec![(1, Some(s(1))), (0, Some(s(2)))]),
                    Tid::new(1),
                    Some(Tid::new(2)),
                ),
            ),
        ] {
            assert_eq!(command(line), Ok(expected), "{line}");
        }
    }

    /// `--json` may be anywhere, for what prints.
    #[test]
    fn json() {
        let take = |line: &str, option| {
            let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
            take_json(&args, option).map(|(words, json)| (words.join(" "), json))
        };
        for line in ["print --json pt 1", "print pt --json 1", "print pt 1 --json"] {
            assert_eq!(take(line, false), Ok(("print pt 1".into(), true)), "{line}");
        }
        assert_eq!(take("print pt 1", true), Ok(("print pt 1".into(), true)));
        assert_eq!(take("print pt 1", false), Ok(("print pt 1".into(), false)));
        assert_eq!(take("drop S1", true), Err(CommandError::Json));
        assert_eq!(take("drop --json", false), Ok(("drop --json".into(), false)));
        assert_eq!(take("", false), Ok((String::new(), false)));
    }

    /// Each mistake has its message; those of upstream are upstream's.
    #[test]
    fn mistakes() {
        let node = "(a letter among A, C, M, S and a number: S1)";
        for (line, message) in [
            ("foo", "invalid command: foo"),
            ("foo bar", "invalid command: foo bar"),
            ("print foo", "invalid command: print foo"),
            (
                "set node S1 DOWN",
                "invalid command: set node S1 DOWN: this was of NEO 0.9, use 'add', 'kill' or \
                 'drop' with a node as 'print node' shows it",
            ),
            ("print", "incomplete command: print ids|pt|node|cluster|primary|summary"),
            ("set", "incomplete command: set cluster|replicas"),
            ("set replicas -1", "invalid number of replicas"),
            ("set replicas 4294967296", "invalid number of replicas"),
            ("set replicas x", "invalid number: 'x'"),
            ("set replicas", "wrong number of arguments: set replicas NUMBER"),
            ("set cluster", "wrong number of arguments: set cluster STATE"),
            ("set cluster foo", "invalid cluster state: 'foo'"),
            ("print node bogus", "invalid node type: 'bogus' (master, storage, client or admin)"),
            ("print node a b", "wrong number of arguments: print node [TYPE]"),
            ("print pt x", "invalid number: 'x'"),
            ("print pt -1", "invalid number: '-1'"),
            ("print pt 0 0 S1 S2", "wrong number of arguments: print pt [MIN [MAX [NODE]]]"),
            ("print ids x", "wrong number of arguments: print ids"),
            ("print cluster x", "wrong number of arguments: print cluster"),
            ("start x", "wrong number of arguments: start"),
            ("add foo", &format!("invalid node: 'foo' {node}")),
            ("tweak S1 -n", &format!("invalid node: '-n' {node}")),
            ("drop", "wrong number of arguments: drop NODE"),
            ("kill S1 S2", "wrong number of arguments: kill NODE"),
            ("truncate", "wrong number of arguments: truncate TID"),
            (
                "truncate 0",
                "ambiguous TID: '0' was a TID in NEO 1.12 and is a UNIX timestamp now; write 'tid:0' \
                 or '0.0'",
            ),
            ("truncate foo", "invalid TID: 'foo' (tid:<integer>, or <float> for a UNIX timestamp)"),
            ("prune_orphan", "wrong number of arguments: prune_orphan 0|1 all|NODE..."),
            ("prune_orphan all", "wrong number of arguments: prune_orphan 0|1 all|NODE..."),
            ("flush_log x", "wrong number of arguments: flush_log"),
            ("check x:", "invalid number: 'x'"),
            ("check 0:x", &format!("invalid node: 'x' {node}")),
            (
                "check 0: :",
                "wrong number of arguments: check [PARTITION]:[REFERENCE]... [MIN [MAX]]",
            ),
            (
                "check : 0:",
                "wrong number of arguments: check [PARTITION]:[REFERENCE]... [MIN [MAX]]",
            ),
            (
                "check tid:1 tid:2 tid:3",
                "wrong number of arguments: check [PARTITION]:[REFERENCE]... [MIN [MAX]]",
            ),
        ] {
            assert_eq!(command(line), Err(message.to_owned()), "{line}");
        }
    }
}
