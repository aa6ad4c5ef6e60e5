// SPDX-License-Identifier: GPL-2.0-or-later
//! Each option of each executable.

use super::*;
use crate::config::bench::Workload;
use crate::config::storage::{Adapter, Wait};

/// Short and long names of all options of daemons.
#[test]
fn daemons() {
    let short = "-c c -m a:1 -b b:2 -l ~/l -D ~/d -i 7";
    let long =
        "--cluster c --masters a:1 --bind b:2 --logfile ~/l --dynamic-master-list ~/d --nid 7";
    for line in [short, long] {
        let daemon = master(line).daemon;
        assert_eq!(daemon, storage(&format!("{line} -d x")).daemon);
        assert_eq!(daemon.cluster, "c");
        assert_eq!(daemon.masters, [Address { host: "a".into(), port: 1 }]);
        assert_eq!(daemon.bind, Address { host: "b".into(), port: 2 });
        assert_eq!(daemon.logfile.unwrap().to_str(), Some("/home/neo/l"));
        assert_eq!(daemon.dynamic_master_list.unwrap().to_str(), Some("/home/neo/d"));
        assert_eq!(daemon.nid.unwrap().get(), 7);
    }
    let daemon = master("-c c").daemon;
    assert_eq!((daemon.bind.to_string(), daemon.masters.len()), ("127.0.0.1:10000".into(), 0));
    let daemon = storage("-c c -d x").daemon;
    assert_eq!(daemon.bind.to_string(), "127.0.0.1:0");
    assert_eq!(daemon.masters[0].to_string(), "127.0.0.1:10000");
    let daemon = AdminOptions::parse(&args("-c c"), &env("")).unwrap().options.daemon;
    assert_eq!(daemon.bind.to_string(), "127.0.0.1:9999");
    assert_eq!(master("-c c -b [::1]:7").daemon.bind.to_string(), "[::1]:7");
    assert_eq!(master("-c c -m a:1/b:2").daemon.masters.len(), 2);
    assert_eq!(master("-c c -m ''").daemon.masters.len(), 0, "a lone master may know nobody");
    for (line, message) in [
        ("-c c -i 0", "argument -i/--nid: 0 is not a node id"),
        ("-c c -i 2147483648", "argument -i/--nid: out of range: 2147483648"),
        ("-c c -m a", "argument -m/--masters: port missing in 'a'"),
        ("-c c -b ''", "argument -b/--bind: value is empty"),
    ] {
        assert_eq!(refused(line), (2, format!("neomaster: error: {message}")));
    }
    let nowhere = failed(StorageOptions::parse(&args("-c c -d x -m ''"), &env("")));
    let message = "argument -m/--masters: at least one master must be given";
    assert_eq!(nowhere, (2, format!("neostorage: error: {message}")));
    assert!(storage("-c c -d x -D list -m ''").daemon.masters.is_empty());
}

/// Encryption needs three files, which are kept for who can use them.
#[test]
fn tls() {
    let daemon = master("-c c --ca ~/a --cert b --key c").daemon;
    let tls = TlsFiles { ca: "/home/neo/a".into(), cert: "b".into(), key: "c".into() };
    assert_eq!(daemon.tls, Some(tls));
    for line in ["-c c --ca a", "-c c --cert a --key b", "-c c --ca a --cert b --key ''"] {
        assert_eq!(refused(line), (1, "encryption needs all of --ca, --cert and --key".into()));
    }
}

/// Spellings of version 0.9 that do nothing any more.
#[test]
fn old_spellings() {
    let line = "-v -c c -n logger -u 0123456789abcdef0123456789abcdef -m 127.0.0.1:1/127.0.0.1:2";
    let loaded = MasterOptions::parse(&args(line), &env("")).unwrap();
    let warning = "-u/--uuid is ignored: node ids are given by the primary master, see --nid";
    assert_eq!(loaded.warnings, [warning]);
    assert_eq!(loaded.options.daemon.name.as_deref(), Some("logger"));
    assert_eq!(loaded.options.daemon.masters.len(), 2);
    let ctl = CtlOptions::parse(&args("-v --handler x print node"), &env("")).unwrap();
    assert_eq!(ctl.options.command, ["print", "node"]);
    // Its meaning changed: it erased the database and went on.
    let (status, message) = failed(StorageOptions::parse(&args("-c c -d x -R"), &env("")));
    assert_eq!(status, 2);
    assert!(message.contains("use --reset, which erases it and exits"), "{message}");
}

/// neomaster.
#[test]
fn masters() {
    let options = master("-c c");
    assert_eq!((options.partitions, options.replicas, options.autostart), (100, 0, None));
    assert_eq!((options.upstream, options.backup), (None, false));
    let options = master("-c c -r 1 -p 12 -A 3 -C u -M a:1 -B");
    assert_eq!((options.partitions, options.replicas, options.autostart), (12, 1, Some(3)));
    assert_eq!(options.upstream.clone().unwrap().cluster, "u");
    assert_eq!(options.upstream.clone().unwrap().masters[0].to_string(), "a:1");
    assert!(options.backup);
    let long = "--cluster c --replicas 1 --partitions 12 --autostart 3 --upstream-cluster u \
                --upstream-masters a:1 --backup";
    assert_eq!(master(long), options);
    assert_eq!(master("-c c -A 0").autostart, None);
    assert_eq!(master("-c c -p 65535").partitions, 65_535);
    for (line, message) in [
        ("-c c -r -1", "replicas must be a positive integer"),
        ("-c c -p 0", "partitions must be more than zero"),
        ("-c c -p -1", "partitions must be more than zero"),
        ("-c c -p 65536", "partitions must be at most 65535"),
        ("-c c -C c -M a:1", "upstream cluster name must be different from cluster name"),
        ("-c c -C u", "upstream_masters must be given with upstream_cluster"),
        ("-c c -B", "backup needs --upstream-cluster and --upstream-masters"),
    ] {
        assert_eq!(refused(line), (1, message.into()), "{line}");
    }
    assert_eq!(refused("-c c -A -1").0, 2);
}

/// neostorage.
#[test]
fn storages() {
    let options = storage("-c c -d x");
    assert_eq!((options.adapter, options.wait), (Adapter::MySql, Wait::AtMost(Default::default())));
    assert_eq!(options.engine, None);
    let flags = (options.dedup, options.reset, options.new_nid);
    assert_eq!(flags, (false, false, false));
    assert!(!options.disable_drop_partitions && !options.disable_pack);
    let options = storage("-c c -d x -a SQLite -w 2.5 -e RocksDB");
    assert_eq!((options.adapter, options.engine.as_deref()), (Adapter::Sqlite, Some("RocksDB")));
    let long = "--cluster c --database x --adapter SQLite --wait 2.5 --engine RocksDB";
    assert_eq!(storage(long), options);
    let options =
        storage("-c c -d x --dedup --reset --disable-drop-partitions --disable-pack --new-nid");
    assert!(options.dedup && options.reset && options.new_nid);
    assert!(options.disable_drop_partitions && options.disable_pack);
    for (name, adapter) in [
        ("MySQL", Adapter::MySql),
        ("MySQLdb", Adapter::MySql),
        ("PyMySQL", Adapter::MySql),
        ("SQLite", Adapter::Sqlite),
        ("Importer", Adapter::Importer),
    ] {
        assert_eq!(storage(&format!("-c c -d x -a {name}")).adapter, adapter);
    }
    let (status, message) = failed(StorageOptions::parse(&args("-c c -d x -a BTree"), &env("")));
    let choices = "'Importer', 'MySQL', 'MySQLdb', 'PyMySQL', 'SQLite'";
    let expected =
        format!("argument -a/--adapter: invalid choice: 'BTree' (choose from {choices})");
    assert_eq!((status, message), (2, format!("neostorage: error: {expected}")));
}

/// neoadmin.
#[test]
fn admins() {
    let admin = |line: &str| AdminOptions::parse(&args(line), &env("")).unwrap().options;
    let options = admin("-c c");
    assert_eq!((options.monitor_maxlag, options.smtp_tls), (0.0, false));
    assert_eq!((options.smtp.to_string(), options.smtp_auth), ("localhost:25".into(), None));
    assert!(options.monitor_email.is_empty() && options.monitor_backup.is_empty());
    let options = admin("-c c --monitor-maxlag 1.5 --smtp mail:587 --smtp-tls --smtp-auth u:p");
    assert_eq!((options.monitor_maxlag, options.smtp_tls), (1.5, true));
    assert_eq!(options.smtp.to_string(), "mail:587");
}

/// neoctl: all that follows the first positional argument is the command.
#[test]
fn controls() {
    let ctl = |line: &str| CtlOptions::parse(&args(line), &env("")).unwrap().options;
    assert_eq!(ctl("").address.to_string(), "127.0.0.1:9999");
    assert_eq!(ctl("-a host").address.to_string(), "host:9999");
    assert_eq!(ctl("-a [::1]").address.to_string(), "[::1]:9999");
    assert_eq!(ctl("--addr host:1 -l ~/x").logfile.unwrap().to_str(), Some("/home/neo/x"));
    for (line, command) in [
        ("", ""),
        ("print pt", "print pt"),
        ("tweak -n", "tweak -n"),
        ("print -a x -h --help", "print -a x -h --help"),
        ("-a x tweak -n S1", "tweak -n S1"),
        ("truncate -1", "truncate -1"),
        ("-- print", "print"),
        ("print -- x", "print -- x"),
        ("-5", "-5"),
    ] {
        assert_eq!(ctl(line).command.join(" "), command);
    }
    let tls = ctl("--ca a --cert b --key c print ids").tls.unwrap();
    assert_eq!(tls.key.to_str(), Some("c"));
    let exit = CtlOptions::parse(&args("-a ''"), &env(""));
    assert_eq!(failed(exit).1, "neoctl: error: argument -a/--address: value is empty");
}

/// neomigrate, in both syntaxes.
#[test]
fn migrations() {
    let migrate = |line: &str| MigrateOptions::parse(&args(line), &env(""));
    for line in [
        "-c c src dst",
        "src -c c dst",
        "--cluster c -- src dst",
        "-s src -d dst -c c -v",
        "--source src --destination=dst -c c",
        "-s src -c c dst",
        "-d dst -c c src",
    ] {
        let options = migrate(line).unwrap().options;
        assert_eq!(
            (options.source.as_str(), options.destination.as_str()),
            ("src", "dst"),
            "{line}"
        );
        assert_eq!((options.cluster.as_str(), options.quiet), ("c", false));
    }
    assert!(migrate("-qc c a b").unwrap().options.quiet);
    for (line, message) in [
        ("-c c", "the following arguments are required: source, destination"),
        ("-c c a", "the following arguments are required: destination"),
        ("-c c -d a", "the following arguments are required: source"),
        ("a b", "the following arguments are required: -c/--cluster"),
        ("-c c a b d e", "unrecognized arguments: d e"),
        ("-c c -s a b d", "unrecognized arguments: d"),
        ("-c c a ''", "source and destination must not be empty"),
    ] {
        assert_eq!(failed(migrate(line)), (2, format!("neomigrate: error: {message}")), "{line}");
    }
}

/// neosimple: upstream's options that make sense, and ours.
#[test]
fn simple_clusters() {
    let simple = |line: &str| SimpleOptions::parse(&args(line), &env(""));
    let options = simple("").unwrap().options;
    assert_eq!((options.storages, options.masters, options.partitions), (1, 1, None));
    assert_eq!((options.adapter, options.replicas), (Adapter::Sqlite, 0));
    let line = "--seed s --adapter SQLite --bind_ip ::1 --cleanup_on_delete --clear_databases \
                --logger --master_count 3 --name n --partitions 4 --replicas 1 --temp_dir ~/t \
                --autostart db1 db2";
    let options = simple(line).unwrap().options;
    assert_eq!((options.storages, options.masters, options.partitions), (2, 3, Some(4)));
    assert_eq!(options.databases, ["db1", "db2"]);
    assert_eq!(options.bind_ip.as_deref(), Some("::1"));
    assert_eq!(options.data_dir.unwrap().to_str(), Some("/home/neo/t"));
    assert!(options.cleanup_on_delete && options.clear_databases && options.logger);
    assert_eq!((options.name.as_deref(), options.seed.as_deref()), (Some("n"), Some("s")));
    let options =
        simple("--data-dir d --storages 5 --master-port 0 --admin-port 9").unwrap().options;
    assert_eq!((options.storages, options.master_port, options.admin_port), (5, Some(0), Some(9)));
    assert_eq!(simple("--address_type 10").unwrap().options.bind_ip.as_deref(), Some("::1"));
    for line in [
        "--storages 0",
        "--storages 65",
        "--adapter Importer",
        "--bind-ip x",
        "--address-type 3",
        "--master-port 65536",
        "--replicas -1",
    ] {
        assert_eq!(failed(simple(line)).0, 2, "{line}");
    }
}

/// neobench: a cluster to start, or a running one, never both.
#[test]
fn benchmarks() {
    let bench = |line: &str| BenchOptions::parse(&args(line), &env(""));
    let options = bench("").unwrap().options;
    assert_eq!((options.storages, options.partitions, options.rounds), (1, 12, None));
    assert_eq!((options.running, options.workloads.len(), options.quick), (None, 4, false));
    let line = "-q --json --bin-dir ~/bin --compare /py --temp-dir /d --storages 3 --rounds 5 \
                --only commit,import --python ~/py/bin/python";
    let options = bench(line).unwrap().options;
    assert_eq!(options.python.unwrap().to_str(), Some("/home/neo/py/bin/python"));
    assert_eq!(options.workloads, [Workload::Import, Workload::Commit]);
    assert_eq!(options.bin_dir.unwrap().to_str(), Some("/home/neo/bin"));
    assert!(options.quick && options.json && options.rounds == Some(5));
    let line = "-c n -m 127.0.0.1:1/[::1]:2 --pids master=12,34 --force";
    let running = bench(line).unwrap().options.running.unwrap();
    assert_eq!((running.name.as_str(), running.masters.len()), ("n", 2));
    assert_eq!(running.pids, [("master".into(), 12), (String::new(), 34)]);
    assert!(running.force);
    for line in [
        "--masters a:1",
        "--pids 1",
        "--force",
        "-c n",
        "-c n -m a:1 --storages 2",
        "-c n -m a:1 --compare d",
        "-c n -m a:1 --pids x=y",
        "-c n -m a:1 --pids 0",
        "--storages 0",
        "--rounds 0",
        "--only loads",
        "x",
    ] {
        assert_eq!(failed(bench(line)).0, 2, "{line}");
    }
}
