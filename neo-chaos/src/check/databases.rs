// SPDX-License-Identifier: GPL-2.0-or-later
//! What the databases of a stopped cluster have, of the cells that were readable.

use std::path::Path;
use std::time::Duration;

use neo_common::config::storage::Wait;
use neo_common::types::{NodeId, Partition};
use neo_sim::checkers::rest::Contents;
use neo_storage::database::Database;
use neo_storage::database::mysql::{self, Engine, MySql};
use neo_storage::database::sqlite::{self, Sqlite};
use serde_json::Value as Json;

use crate::Failure;

/// A server that was just stopped and started is waited for.
const WAIT: Wait = Wait::AtMost(Duration::from_secs(30));

/// Reads the databases that a file lists.
pub fn read(list: &Path, cluster: &str) -> Result<Vec<Contents>, Failure> {
    let list: Vec<Json> = serde_json::from_str(&std::fs::read_to_string(list)?)?;
    list.iter().map(|storage| read_one(storage, cluster)).collect()
}

fn read_one(storage: &Json, cluster: &str) -> Result<Contents, Failure> {
    let invalid = || format!("not a storage: {storage}");
    let text = |name: &str| storage[name].as_str().map(str::to_owned).ok_or_else(invalid);
    let number = text("nid")?.strip_prefix('S').and_then(|text| text.parse().ok());
    let nid = number.and_then(NodeId::new).ok_or_else(invalid)?;
    let readable = storage["readable"].as_array().ok_or_else(invalid)?;
    let readable: Option<Vec<Partition>> =
        readable.iter().map(|number| number.as_u64().map(|number| number as Partition)).collect();
    let readable = readable.ok_or_else(invalid)?;
    let (database, cluster) = (text("database")?, cluster.to_owned());
    let (dedup, home) = (false, None);
    let mut database: Box<dyn Database> = match &*text("adapter")? {
        "SQLite" => Box::new(Sqlite::open(&sqlite::Options { database, cluster, dedup, home })?),
        "MySQL" => Box::new(MySql::open(&mysql::Options {
            database,
            cluster,
            dedup,
            engine: Engine::default(),
            wait: WAIT,
            home,
            default_socket: None,
        })?),
        other => return Err(format!("unknown adapter {other}").into()),
    };
    let contents = Contents::read(database.as_mut(), nid, readable.into_iter());
    contents.map_err(|error| format!("{nid}: {error}").into())
}
