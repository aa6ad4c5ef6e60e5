// SPDX-License-Identifier: GPL-2.0-or-later
//! Configuration files: precedence, types, and what may be wrong.

use super::*;

fn with_file(line: &str, file: &str) -> Result<Loaded<MasterOptions>, Exit> {
    MasterOptions::parse(&args(line), &env(file))
}

/// Upstream's quick start, which its current version refuses on Python 3: required options may
/// come from the file alone.
#[test]
fn required_options_from_the_file() {
    let file = "
# Common parameters.
[DEFAULT]
cluster: test
masters: 127.0.0.1:10000 127.0.0.1:10001
replicas: 1
partitions: 12
;upstream_cluster: test2
;ca = ~/etc/ca.crt

[admin]
bind: 127.0.0.1:9999
;logfile: ~/log/admin.log
[master]
bind: 127.0.0.1:10000
[storage]
database: neo:neo@neo1
bind: 127.0.0.1:20000
logfile: ~/log/storage.log
";
    let options = with_file("-f neo.conf", file).unwrap();
    assert!(options.warnings.is_empty());
    let options = options.options;
    assert_eq!((options.partitions, options.replicas), (12, 1));
    assert_eq!(options.daemon.cluster, "test");
    assert_eq!(options.daemon.bind.to_string(), "127.0.0.1:10000");
    let masters: Vec<String> = options.daemon.masters.iter().map(Address::to_string).collect();
    assert_eq!(masters, ["127.0.0.1:10000", "127.0.0.1:10001"]);
    assert_eq!((options.daemon.tls, options.upstream), (None, None));

    let storage = StorageOptions::parse(&args("-f neo.conf"), &env(file)).unwrap().options;
    assert_eq!(storage.database.reveal(), "neo:neo@neo1");
    assert_eq!(storage.daemon.bind.to_string(), "127.0.0.1:20000");
    assert_eq!(storage.daemon.logfile.unwrap().to_str(), Some("/home/neo/log/storage.log"));
    let admin = AdminOptions::parse(&args("-f neo.conf"), &env(file)).unwrap().options;
    assert_eq!(admin.daemon.bind.to_string(), "127.0.0.1:9999");
}

/// Command line > section > [DEFAULT] > built-in, and the section has a name.
#[test]
fn precedence() {
    let file = "[DEFAULT]\ncluster: d\npartitions: 1\nreplicas: 1\n\
                [master]\npartitions: 2\nreplicas: 2\n[m2]\nreplicas: 3\n[storage]\npartitions: 9\n";
    let get = |line: &str| {
        let options = with_file(line, file).unwrap().options;
        (options.daemon.cluster, options.partitions, options.replicas, options.autostart)
    };
    assert_eq!(get("-f x"), ("d".into(), 2, 2, None));
    assert_eq!(get("-f x -p 5"), ("d".into(), 5, 2, None));
    assert_eq!(get("-f x -s m2 -c e"), ("e".into(), 1, 3, None));
    assert_eq!(get("-s m2 -c e"), ("e".into(), 100, 0, None), "no file, no section");
    assert_eq!(get("-c e -f ''"), ("e".into(), 100, 0, None));
}

/// Keys: any case, with underscores; unknown ones are ignored, and those of old options too.
#[test]
fn keys() {
    let file = "[master]\nCLUSTER: c\ndynamic_master_list: ~/m\nfoo: %\nupstream-cluster: x\n\
                name: n\nuuid: 00\nverbose: maybe\nfile: other\nsection: other\ndatabase: x\n";
    let loaded = with_file("-f x", file).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let options = loaded.options;
    assert_eq!(options.daemon.cluster, "c");
    assert_eq!(options.daemon.dynamic_master_list.unwrap().to_str(), Some("/home/neo/m"));
    assert_eq!((options.upstream, options.daemon.name), (None, None));
}

/// Booleans in a file; a flag of the command line cannot be undone by it.
#[test]
fn booleans() {
    let get = |value: &str, line: &str| {
        let file = format!("[storage]\ndisable_pack: {value}\ncluster: c\ndatabase: x\n");
        StorageOptions::parse(&args(line), &env(&file)).map(|loaded| loaded.options.disable_pack)
    };
    for value in ["1", "yes", "True", "ON"] {
        assert_eq!(get(value, "-f x"), Ok(true));
    }
    for value in ["0", "no", "False", "OFF"] {
        assert_eq!(get(value, "-f x"), Ok(false));
        assert_eq!(get(value, "-f x --disable-pack"), Ok(true));
    }
    let exit = get("maybe", "-f x").unwrap_err();
    let expected = "neostorage: error: x: [storage] disable_pack: not a boolean: 'maybe'\n";
    assert_eq!((exit.status, exit.stderr.as_str()), (1, expected));
}

/// Repeatable options have one value per line; the command line replaces all of them.
#[test]
fn lists() {
    let file = "[admin]\ncluster: c\nmonitor_backup:\n  b1\n\n  b2\nmonitor_email: x\n";
    let get = |line: &str| AdminOptions::parse(&args(line), &env(file)).unwrap().options;
    assert_eq!(get("-f x").monitor_backup, ["b1", "b2"]);
    assert_eq!(get("-f x").monitor_email, ["x"]);
    assert_eq!(get("-f x --monitor-backup b3").monitor_backup, ["b3"]);
}

/// The dialect reaches the options, and what is tolerated is told.
#[test]
fn dialect() {
    let file = "[DEFAULT]\nname: neo1\n[storage]\ncluster = c ; mine\nmasters:\n  a:1\n  b:2\n\
                database: neo:100%%@%(name)s\n";
    let loaded = StorageOptions::parse(&args("-f neo.conf"), &env(file)).unwrap();
    assert_eq!(loaded.warnings, ["neo.conf: line 4: '; mine' is taken as a comment"]);
    assert_eq!(loaded.options.daemon.cluster, "c");
    assert_eq!(loaded.options.daemon.masters.len(), 2);
    assert_eq!(loaded.options.database.reveal(), "neo:100%@neo1");
}

/// A wrong file is a failure (status 1), with its name and what is wrong.
#[test]
fn wrong_files() {
    for (file, message) in [
        ("", "no section 'master'"),
        ("[DEFAULT]\ncluster: c\n", "no section 'master'"),
        ("cluster: c\n", "line 1: '[section]' expected"),
        (
            "[master]\ncluster: 5%\n",
            "[master] cluster: '%' must be followed by '%' or '(', write '%%' for a percent sign",
        ),
        ("[master]\ncluster:\n", "[master] cluster: value is empty"),
        ("[master]\ncluster: c\npartitions: x\n", "[master] partitions: invalid int value: 'x'"),
        ("[master]\ncluster: c\nbind: a:b\n", "[master] bind: invalid port in 'a:b'"),
        ("[master]\ncluster: c\nmasters: a\n", "[master] masters: port missing in 'a'"),
        ("[master]\ncluster: c\nautostart: -1\n", "[master] autostart: out of range: -1"),
    ] {
        let failed = failed(with_file("-f neo.conf", file));
        assert_eq!(failed, (1, format!("neomaster: error: neo.conf: {message}")));
    }
    let missing = MasterOptions::parse(&args("-f x"), &Fixed::default());
    assert_eq!(failed(missing), (1, "neomaster: error: x: entity not found".into()));
    // The command line replaces what is wrong in the file.
    let file = "[master]\ncluster: c\npartitions: x\n";
    assert_eq!(with_file("-f neo.conf -p 3", file).unwrap().options.partitions, 3);
}

/// Erasing a database is never asked by a file: a supervisor would do it at each start.
#[test]
fn reset_in_a_file() {
    let file = |value: &str| format!("[storage]\ncluster: c\ndatabase: x\nreset: {value}\n");
    let refused = failed(StorageOptions::parse(&args("-f x"), &env(&file("true"))));
    assert_eq!(refused.0, 1);
    assert!(refused.1.contains("must be asked on the command line"));
    let reset = |line: &str, value: &str| {
        StorageOptions::parse(&args(line), &env(&file(value))).unwrap().options.reset
    };
    assert!(!reset("-f x", "no"));
    assert!(reset("-f x --reset", "no"));
    assert!(reset("-f x --reset", "yes"));
}
