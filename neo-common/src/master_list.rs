// SPDX-License-Identifier: GPL-2.0-or-later
//! The dynamic master list: a file with the addresses of all masters that were ever heard of, so
//! that a node finds its cluster although its command line is out of date. Upstream: lib/node.py,
//! `MasterDB`.
//!
//! The file is a JSON list of `[host, port]`. It is replaced as a whole: written aside as
//! `FILE#neo#`, then renamed. The node manager tells when it must be written
//! ([`crate::node::NodeManager::take_changed_masters`]); reading and writing is up to the driver.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Addresses in a list: far more masters than make sense.
const ADDRESSES_MAX: usize = 10_000;

/// Bytes of a list.
#[cfg(feature = "net")]
const BYTES_MAX: u64 = 1 << 20;

/// The file is not a JSON list of `[host, port]`, or has too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidMasterList;

impl fmt::Display for InvalidMasterList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a JSON list of [host, port]")
    }
}
impl std::error::Error for InvalidMasterList {}

/// Reads the content of the file. Hosts are numeric.
///
/// # Errors
/// If it is something else than a list of addresses.
pub fn parse(content: &str) -> Result<BTreeSet<SocketAddr>, InvalidMasterList> {
    let mut reader = Reader { rest: content };
    let mut addresses = BTreeSet::new();
    reader.expect("[")?;
    while !reader.accept("]") {
        if !addresses.is_empty() {
            reader.expect(",")?;
        }
        reader.expect("[")?;
        let host: IpAddr = reader.string()?.parse().map_err(|_| InvalidMasterList)?;
        reader.expect(",")?;
        let port = reader.port()?;
        reader.expect("]")?;
        addresses.insert(SocketAddr::new(host, port));
        if addresses.len() > ADDRESSES_MAX {
            return Err(InvalidMasterList);
        }
    }
    if reader.rest.trim().is_empty() { Ok(addresses) } else { Err(InvalidMasterList) }
}

/// Content of the file.
pub fn format<'a>(addresses: impl IntoIterator<Item = &'a SocketAddr>) -> String {
    let items: Vec<String> = addresses
        .into_iter()
        .map(|address| format!("[\"{}\", {}]", address.ip(), address.port()))
        .collect();
    format!("[{}]", items.join(", "))
}

/// The little of JSON that is needed.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn accept(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let found = rest.strip_prefix(token);
        self.rest = found.unwrap_or(rest);
        found.is_some()
    }
    fn expect(&mut self, token: &str) -> Result<(), InvalidMasterList> {
        if self.accept(token) { Ok(()) } else { Err(InvalidMasterList) }
    }
    /// A string without escapes: an IP address needs none.
    fn string(&mut self) -> Result<&'a str, InvalidMasterList> {
        self.expect("\"")?;
        let (text, rest) = self.rest.split_once('"').ok_or(InvalidMasterList)?;
        self.rest = rest;
        Ok(text)
    }
    fn port(&mut self) -> Result<u16, InvalidMasterList> {
        self.accept("");
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        digits.parse().map_err(|_| InvalidMasterList)
    }
}

/// Reads the file. It is created empty if there is none, so that a wrong path is noticed at start.
///
/// # Errors
/// If it cannot be read or created, or is not a list of addresses.
#[cfg(feature = "net")]
pub fn load(path: &std::path::Path) -> std::io::Result<BTreeSet<SocketAddr>> {
    use std::io::{Error, ErrorKind, Read as _};
    let mut content = String::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(BYTES_MAX).read_to_string(&mut content)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            save(path, &BTreeSet::new())?;
            return Ok(BTreeSet::new());
        }
        Err(error) => return Err(error),
    };
    parse(&content).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// Replaces the file.
///
/// # Errors
/// If it cannot be written; then the previous one stays.
#[cfg(feature = "net")]
pub fn save<'a>(
    path: &std::path::Path,
    addresses: impl IntoIterator<Item = &'a SocketAddr>,
) -> std::io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push("#neo#");
    let result =
        std::fs::write(&aside, format(addresses)).and_then(|()| std::fs::rename(&aside, path));
    if result.is_err() {
        // It may not exist; the first error is the one that matters.
        let _ = std::fs::remove_file(&aside);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    /// What is written is what Python's json writes, and is read back.
    #[test]
    fn round_trip() {
        let addresses = set(&["127.0.0.1:10000", "[::1]:10001"]);
        let content = r#"[["127.0.0.1", 10000], ["::1", 10001]]"#;
        assert_eq!(format(&addresses), content);
        assert_eq!(parse(content), Ok(addresses.clone()));
        assert_eq!(parse(" [\n[ \"::1\",10001] ,[\"127.0.0.1\" , 10000 ]\r\n]\t"), Ok(addresses));
        assert_eq!((parse("[]"), format(&set(&[])).as_str()), (Ok(set(&[])), "[]"));
    }

    /// Anything else is refused.
    #[test]
    fn refusals() {
        for content in [
            "",
            "[",
            "[]]",
            "{}",
            "null",
            "[[\"::1\"]]",
            "[[\"::1\", 70000]]",
            "[[\"::1\", -1]]",
            "[[\"::1\", ]]",
            "[[\"localhost\", 1]]",
            "[[\"::1\", 1]",
            "[[\"::1\", 1],]",
            "[[\"::1\", 1] [\"::1\", 2]]",
            "[[\"::1, 1]]",
            "[,]",
            "[[\"::1\", 1.5]]",
        ] {
            assert_eq!(parse(content), Err(InvalidMasterList), "{content}");
        }
        let many: BTreeSet<SocketAddr> =
            (0..=ADDRESSES_MAX as u16).map(|port| SocketAddr::from(([1; 4], port))).collect();
        assert_eq!(parse(&format(&many)), Err(InvalidMasterList));
    }

    /// The file is created if it is missing, replaced as a whole, and kept on failure.
    #[cfg(feature = "net")]
    #[test]
    fn files() {
        let dir = std::env::temp_dir().join(format!("neo-master-list-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("masters");
        assert_eq!(load(&path).unwrap(), set(&[]));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[]");
        let addresses = set(&["127.0.0.1:1", "127.0.0.1:2"]);
        save(&path, &addresses).unwrap();
        assert_eq!(load(&path).unwrap(), addresses);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing is left aside");
        std::fs::write(&path, "x").unwrap();
        assert!(load(&path).is_err());
        assert!(save(&dir, &addresses).is_err(), "a directory is in the way");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
