// SPDX-License-Identifier: GPL-2.0-or-later
//! Small tool on the reader and the writer of `Data.fs`; `tests/filestorage_zodb.py` holds it
//! against ZODB.
//!
//! ```text
//! filestorage list FILE         what ZODB's iterator gives, a line of JSON per transaction
//! filestorage copy FROM TO      through reader and writer
//! filestorage compare A B       exit status 1 and the first difference if there is one
//! ```

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use neo_filestorage::{CompareError, Reader, Source, Status, Transaction, Writer, compare};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["list", file] => list(Path::new(file)),
        ["copy", from, to] => copy(Path::new(from), Path::new(to)),
        ["compare", a, b] => compare_files(Path::new(a), Path::new(b)),
        _ => Err("usage: filestorage list FILE | copy FROM TO | compare A B".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn list(path: &Path) -> Result<(), Box<dyn Error>> {
    let mut reader = Reader::open(path)?;
    let mut out = BufWriter::new(io::stdout().lock());
    while let Some(transaction) = reader.next()? {
        writeln!(out, "{}", to_json(&transaction))?;
    }
    out.flush()?;
    if let Some(unfinished) = reader.unfinished() {
        eprintln!("unfinished: {} bytes at position {}", unfinished.size, unfinished.pos);
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let mut reader = Reader::open(from)?;
    let mut writer = Writer::create(to)?;
    while let Some(info) = reader.next_transaction()? {
        writer.begin(&info)?;
        while let Some(record) = reader.next_record()? {
            writer.store(&record)?;
        }
        writer.end()?;
    }
    println!("{:?}", writer.finish()?);
    Ok(())
}

fn compare_files(a: &Path, b: &Path) -> Result<(), Box<dyn Error>> {
    let (a, b) = (Reader::open(a)?, Reader::open(b)?);
    let compared = compare(a, b).map_err(|error| match error {
        CompareError::Different(difference) => difference.to_string(),
        error => error.to_string(),
    })?;
    println!("{compared:?}");
    Ok(())
}

/// As in the manifests of the samples, without positions.
fn to_json(transaction: &Transaction) -> Value {
    let info = &transaction.info;
    let records: Vec<Value> = transaction
        .records
        .iter()
        .map(|record| {
            json!({
                "oid": record.oid.to_string(),
                "size": record.data.as_ref().map(|data| data.len()),
                "sha1": record.data.as_ref().map(|data| hex(&Sha1::digest(data))),
                "data_txn": record.data_txn.map(|tid| tid.to_string()),
            })
        })
        .collect();
    json!({
        "tid": info.tid.to_string(),
        "status": match info.status {
            Status::Finished => " ",
            Status::Packed => "p",
        },
        "user": hex(&info.user),
        "description": hex(&info.description),
        "ext": hex(&info.extension),
        "records": records,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
