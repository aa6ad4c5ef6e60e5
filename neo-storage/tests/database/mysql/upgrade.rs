// SPDX-License-Identifier: GPL-2.0-or-later
//! Databases of older versions of upstream: upgraded, also when an upgrade was interrupted; or
//! refused.

use neo_storage::database::Error;
use neo_storage::database::mysql::MySql;

use super::snapshot;
use crate::harness::CLUSTER;
use crate::server::Scratch;

/// The reference database `main`, that is of the current version, made as old as that of upstream
/// 1.12: see the description of the reference databases.
fn version_3(scratch: &Scratch) {
    scratch.run(
        "ALTER TABLE pt DROP COLUMN pack; DROP TABLE pack;
         UPDATE config SET value='3' WHERE name='version';
         INSERT INTO config VALUES ('partitions', '3')",
    );
}

/// The same, with the columns that table `pt` had up to version 2.
fn version_2(scratch: &Scratch) {
    version_3(scratch);
    scratch.run(
        "CREATE TABLE old_pt (rid INT UNSIGNED NOT NULL, nid INT NOT NULL, \
             state TINYINT UNSIGNED NOT NULL, PRIMARY KEY (rid, nid)) ENGINE=InnoDB
             SELECT `partition` AS rid, nid, \
                 CASE tid WHEN -1 THEN 0 WHEN -2 THEN 2 WHEN -3 THEN 4 ELSE 1 END AS state FROM pt;
         DROP TABLE pt; RENAME TABLE old_pt TO pt;
         UPDATE config SET value='2' WHERE name='version'",
    );
}

/// ... and table `obj` up to version 1, and temporary tables as they were then.
fn version_0(scratch: &Scratch) {
    version_2(scratch);
    scratch.run(
        "ALTER TABLE obj DROP PRIMARY KEY, DROP KEY tid, ADD PRIMARY KEY (`partition`, tid, oid), \
             ADD KEY `partition` (`partition`, oid, tid);
         ALTER TABLE ttrans DROP PRIMARY KEY, MODIFY tid BIGINT UNSIGNED NOT NULL;
         DROP TABLE todel;
         DELETE FROM config WHERE name='version'",
    );
}

/// A reference database, and what it must become.
fn main() -> Option<(Scratch, Vec<String>)> {
    let scratch = crate::reference::load("main")?;
    let wanted = snapshot(&scratch);
    Some((scratch, wanted))
}

/// Without the default character set, that depends on the server.
fn normalized(rows: Vec<String>) -> Vec<String> {
    rows.into_iter().map(|row| row.split(" DEFAULT CHARSET").next().unwrap().to_owned()).collect()
}

#[test]
fn old_versions_are_upgraded() {
    for age in [version_3, version_2, version_0] {
        let Some((scratch, wanted)) = main() else { return };
        age(&scratch);
        drop(scratch.open("main", false).unwrap());
        assert_eq!(normalized(snapshot(&scratch)), normalized(wanted.clone()));
        // Once more: there is nothing left to do.
        drop(scratch.open("main", false).unwrap());
        assert_eq!(normalized(snapshot(&scratch)), normalized(wanted));
    }
}

/// Each statement of an upgrade that was the last one before the node was killed.
#[test]
fn an_interrupted_upgrade_goes_on() {
    let copied_obj = "CREATE TABLE new_obj SELECT * FROM obj LIMIT 3";
    let copied_pt = "CREATE TABLE new_pt SELECT * FROM pt LIMIT 2";
    let before_obj: &[&str] = &["UPDATE config SET value='1' WHERE name='version'"];
    for damage in [
        &["DROP TABLE ttrans"][..],
        &[before_obj[0], copied_obj],
        &[before_obj[0], "RENAME TABLE obj TO new_obj"],
        // Rewritten, the version was not recorded.
        before_obj,
        &[copied_pt],
        &["CREATE TABLE new_obj (a INT)", copied_pt],
    ] {
        let Some((scratch, wanted)) = main() else { return };
        version_2(&scratch);
        for sql in damage {
            scratch.run(sql);
        }
        drop(scratch.open("main", false).unwrap());
        let mut found = normalized(snapshot(&scratch));
        // What another step left behind is harmless.
        let leftover = found.iter().filter(|row| row.contains("`new_")).count();
        assert!(leftover <= 1, "{damage:?}");
        found.retain(|row| !row.contains("`new_"));
        assert_eq!(found, normalized(wanted), "{damage:?}");
    }
    // Version 3 to 4: the table is new already, the version is not recorded.
    let Some((scratch, wanted)) = main() else { return };
    scratch.run("UPDATE config SET value='3' WHERE name='version'");
    drop(scratch.open("main", false).unwrap());
    assert_eq!(normalized(snapshot(&scratch)), normalized(wanted));
    // Version 2 to 3: the same; or it only remained to be renamed.
    for damage in ["DROP TABLE IF EXISTS new_pt", "RENAME TABLE pt TO new_pt"] {
        let Some((scratch, wanted)) = main() else { return };
        version_3(&scratch);
        scratch.run("UPDATE config SET value='2' WHERE name='version'");
        scratch.run(damage);
        drop(scratch.open("main", false).unwrap());
        assert_eq!(normalized(snapshot(&scratch)), normalized(wanted));
    }
}

/// A node that is killed when it creates its tables goes on when it is started again.
#[test]
fn an_interrupted_creation_goes_on() {
    let Some(reference) = Scratch::new() else { return };
    drop(reference.open(CLUSTER, false).unwrap());
    let wanted = snapshot(&reference);
    let tables = ["pt", "pack", "trans", "obj", "data", "bigdata", "ttrans", "tobj", "todel"];
    for missing in 0..=tables.len() {
        let Some(scratch) = Scratch::new() else { return };
        drop(scratch.open(CLUSTER, false).unwrap());
        scratch.run("DELETE FROM config WHERE name='name'");
        for table in &tables[missing..] {
            scratch.run(&format!("DROP TABLE {table}"));
        }
        if missing == 0 {
            scratch.run("DELETE FROM config");
        }
        drop(scratch.open(CLUSTER, false).unwrap());
        assert_eq!(snapshot(&scratch), wanted, "{missing}");
    }
}

fn refused(scratch: &Scratch, cluster: &str) -> String {
    let before = snapshot(scratch);
    let error = scratch.open(cluster, false).err().expect("it is refused");
    assert!(matches!(error, Error::Upgrade(_)), "{error:?}");
    assert_eq!(snapshot(scratch), before);
    error.to_string()
}

#[test]
fn unfinished_transactions_of_version_0_are_refused() {
    for insert in [
        "INSERT INTO tobj VALUES (0,0,1,NULL,NULL)",
        "INSERT INTO ttrans VALUES (0,1,0,'','','','',1)",
    ] {
        let Some((scratch, _)) = main() else { return };
        version_0(&scratch);
        scratch.run(insert);
        assert!(refused(&scratch, "main").contains("unfinished transactions"));
    }
}

/// Databases of upstream 0.9 and 0.10 have tables of the same names. The message tells what to do.
#[test]
fn databases_of_0_9_and_0_10_are_refused() {
    let config = "CREATE TABLE config (name VARBINARY(16) NOT NULL PRIMARY KEY, \
        value VARBINARY(255) NULL) ENGINE=InnoDB; INSERT INTO config VALUES ('name', 'test')";
    for tables in [
        "CREATE TABLE obj (`partition` SMALLINT UNSIGNED, oid BIGINT UNSIGNED NOT NULL, \
             serial BIGINT UNSIGNED NOT NULL, compression TINYINT UNSIGNED NULL, \
             checksum INT UNSIGNED NULL, value LONGBLOB NULL, value_serial BIGINT UNSIGNED NULL); \
         CREATE TABLE obj_short (oid BIGINT UNSIGNED NOT NULL)",
        "CREATE TABLE obj (`partition` SMALLINT UNSIGNED, oid BIGINT UNSIGNED NOT NULL, \
             serial BIGINT UNSIGNED NOT NULL, hash BINARY(20) NULL, \
             value_serial BIGINT UNSIGNED NULL)",
    ] {
        let Some(scratch) = Scratch::new() else { return };
        scratch.run(config);
        scratch.run(tables);
        let error = refused(&scratch, CLUSTER);
        assert!(error.contains("0.9") && error.contains("UPGRADE.rst"), "{error}");
        // Erasing is still possible.
        MySql::reset(&scratch.options(CLUSTER, false)).unwrap();
    }
}
