// SPDX-License-Identifier: GPL-2.0-or-later
//! Rules of command lines.

use super::*;

/// Unique prefixes of long options; exact names first; names of upstream before old ones.
#[test]
fn prefixes() {
    assert_eq!(master("-c c --part 12").partitions, 12);
    assert_eq!(master("--clus c --part=12 --repl 2").replicas, 2);
    assert_eq!(master("-c c --ni 5 --auto 3").autostart, Some(3));
    assert!(storage("-c c -d x --new").new_nid);
    // "nid" and the old "name": what was unique upstream stays so.
    assert_eq!(master("-c c --n 5").daemon.nid.unwrap().get(), 5);
    assert_eq!(master("-c c --na x").daemon.name.as_deref(), Some("x"));
    assert_eq!(master("-c c --cert x --key y --ca z").daemon.tls.unwrap().ca.to_str(), Some("z"));
    let (status, message) = refused("-c c --up x");
    assert_eq!(status, 2);
    let could = "could match --upstream-cluster, --upstream-masters";
    assert_eq!(message, format!("neomaster: error: ambiguous option: --up {could}"));
    let message = refused("-c c --versio").1;
    assert_eq!(
        message, "neomaster: error: unrecognized arguments: --versio",
        "ours are not guessed"
    );
    // Not options of the node: no prefix of others.
    assert_eq!(refused("-c c --data x").1, "neomaster: error: unrecognized arguments: --data x");
}

/// The last one wins, on the command line too; repeatable ones accumulate.
#[test]
fn repeats() {
    assert_eq!(master("-c a -p 1 -c b --partitions=2 -p3").partitions, 3);
    assert_eq!(master("-c a -p 1 -c b --partitions=2 -p3").daemon.cluster, "b");
    assert!(master("-c a -B -B -C u -M x:1 --backup").backup);
    let line = "-c c --monitor-backup b1 --monitor-email=x@y --monitor-b b2 --monitor-e z";
    let admin = AdminOptions::parse(&args(line), &env("")).unwrap().options;
    assert_eq!(admin.monitor_backup, ["b1", "b2"]);
    assert_eq!(admin.monitor_email, ["x@y", "z"]);
}

/// Glued values, equal signs, clusters of flags.
#[test]
fn glued() {
    for line in ["-c c -p12", "-c c -p 12", "-c c -p=12", "-cc -p12", "-c=c -vp12", "-c c -vp 12"] {
        let options = master(line);
        assert_eq!((options.partitions, options.daemon.cluster.as_str()), (12, "c"), "{line}");
    }
    assert_eq!(master("-c=a=b").daemon.cluster, "a=b");
    assert_eq!(master("--cluster=a=b").daemon.cluster, "a=b");
    assert_eq!(
        master("-c c --dynamic_master_list x").daemon.dynamic_master_list.unwrap().to_str(),
        Some("x")
    );
    let both = |name: &str| format!("neomaster: error: argument {name}: ignored explicit argument");
    assert_eq!(refused("-c c -B=1"), (2, both("-B/--backup") + " '1'"));
    assert_eq!(refused("-c c --backup=1"), (2, both("-B/--backup") + " '1'"));
    assert_eq!(refused("-c c -Bz"), (2, both("-B/--backup") + " 'z'"));
}

/// Values that start with a dash: numbers, and texts with a space.
#[test]
fn dashes() {
    assert_eq!(master("-c c --nid -5").daemon.nid.unwrap().get(), -5);
    assert_eq!(master("--nid -268435455 -c c").daemon.nid.unwrap().to_string(), "M1");
    assert_eq!(master("-c c -i-5").daemon.nid.unwrap().get(), -5);
    assert_eq!(storage("-c c -d x -w -1").wait, storage::Wait::Forever);
    assert_eq!(storage("-c c -d x -w -.5").wait, storage::Wait::Forever);
    assert_eq!(storage("-c c -d -").database.reveal(), "-");
    let spaced = ["-c", "-a b", "-l", "--logfile x"].map(String::from);
    let options = MasterOptions::parse(&spaced, &env("")).unwrap().options;
    assert_eq!(options.daemon.cluster, "-a b");
    assert_eq!(options.daemon.logfile.unwrap().to_str(), Some("--logfile x"));
    let equal = ["-c", "c", "--masters=a:1 b:2"].map(String::from);
    assert_eq!(MasterOptions::parse(&equal, &env("")).unwrap().options.daemon.masters.len(), 2);
    for line in ["-p 1 -c", "-c -p 1", "-c --part 1", "-c -- x", "-c -1e5", "-c -x"] {
        let expected = "neomaster: error: argument -c/--cluster: expected one argument";
        assert_eq!(refused(line), (2, expected.into()), "{line}");
    }
}

/// What is not an option of the table, and positional arguments of who has none.
#[test]
fn unrecognized() {
    for (line, rest) in [
        ("-c c foo", "foo"),
        ("-c c -- foo", "foo"),
        ("-c c -Z --zoo=1", "-Z --zoo=1"),
        ("-c c -9", "-9"),
        ("-c c ''", ""),
    ] {
        let message = format!("neomaster: error: unrecognized arguments: {rest}");
        assert_eq!(refused(line), (2, message), "{line}");
    }
}

/// Numbers are those of Python.
#[test]
fn numbers() {
    for (text, value) in [("5", 5), ("+5", 5), ("1_000", 1000), ("007", 7)] {
        assert_eq!(master(&format!("-c c -p {text}")).partitions, value);
    }
    let spaced = ["-c", "c", "-p", " 5 "].map(String::from);
    assert_eq!(MasterOptions::parse(&spaced, &env("")).unwrap().options.partitions, 5);
    for text in ["''", "x", "1.0", "1__0", "_1", "1_", "0x10", "99999999999999999999"] {
        let (status, message) = refused(&format!("-c c -p {text}"));
        let text = text.replace("''", "");
        let expected = format!("argument -p/--partitions: invalid int value: '{text}'");
        assert_eq!((status, message), (2, format!("neomaster: error: {expected}")));
    }
    for (text, seconds) in [("1", 1.0), ("1e1", 10.0), (".5", 0.5), ("1_0.5", 10.5)] {
        let wait = storage::Wait::AtMost(std::time::Duration::from_secs_f64(seconds));
        assert_eq!(storage(&format!("-c c -d x -w {text}")).wait, wait);
    }
    assert_eq!(storage("-c c -d x -w inf").wait, storage::Wait::Forever);
    for text in ["nan", "x", "1,5"] {
        let line = format!("-c c -d x -w {text}");
        let (status, message) = failed(StorageOptions::parse(&args(&line), &env("")));
        let expected = format!("argument -w/--wait: invalid float value: '{text}'");
        assert_eq!((status, message), (2, format!("neostorage: error: {expected}")));
    }
}

/// Help and version end with status 0 on standard output, whatever follows; a mistake before wins.
#[test]
fn help() {
    for line in ["-h", "--help", "--he", "-c c -h -Z", "-vh", "-p x --help"] {
        let exit = MasterOptions::parse(&args(line), &env("")).unwrap_err();
        assert_eq!((exit.status, exit.stderr.as_str()), (0, ""), "{line}");
        for option in master::table().options {
            assert!(exit.stdout.contains(&format!("--{}", option.long)), "{}", option.long);
        }
        assert!(exit.stdout.starts_with("usage: neomaster [-h] [--version] [-l FILE]"));
        assert!(exit.stdout.contains("(default: 127.0.0.1:10000)"));
        assert!(exit.stdout.lines().all(|line| line.len() <= 80), "{}", exit.stdout);
    }
    assert_eq!(refused("-B=1 -h").0, 2);
    let exit = MasterOptions::parse(&args("--version"), &env("")).unwrap_err();
    assert_eq!(exit, Exit::success(format!("neomaster {}\n", env!("CARGO_PKG_VERSION"))));
    for exit in [
        StorageOptions::parse(&args("-h"), &env("")).unwrap_err(),
        AdminOptions::parse(&args("-h"), &env("")).unwrap_err(),
        CtlOptions::parse(&args("-h"), &env("")).unwrap_err(),
        MigrateOptions::parse(&args("-h"), &env("")).unwrap_err(),
        SimpleOptions::parse(&args("-h"), &env("")).unwrap_err(),
    ] {
        assert_eq!((exit.status, exit.stderr.as_str()), (0, ""));
        assert!(exit.stdout.starts_with("usage: neo"));
    }
}

/// Usage, then the error, on standard error.
#[test]
fn errors_show_the_usage() {
    let exit = CtlOptions::parse(&args("-Z"), &env("")).unwrap_err();
    let expected = "\
usage: neoctl [-h] [--version] [-l FILE] [--ca FILE] [--cert FILE] [--key FILE]
              [-a ADDRESS] [--json] [COMMAND [ARGUMENT ...]]
neoctl: error: unrecognized arguments: -Z
";
    assert_eq!((exit.status, exit.stdout.as_str(), exit.stderr.as_str()), (2, "", expected));
}

/// All missing options are told at once; a default or a file is enough.
#[test]
fn required() {
    let expected = "neomaster: error: the following arguments are required: -c/--cluster";
    assert_eq!(refused(""), (2, expected.into()));
    let (status, message) = failed(StorageOptions::parse(&[], &env("")));
    let expected = "the following arguments are required: -c/--cluster, -d/--database";
    assert_eq!((status, message), (2, format!("neostorage: error: {expected}")));
    let expected = "neomaster: error: argument -c/--cluster: value is empty";
    assert_eq!(refused("-c ''"), (2, expected.into()));
}
