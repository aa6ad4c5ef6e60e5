// SPDX-License-Identifier: GPL-2.0-or-later
//! `--database` of the SQLite backend: a path, or `file:PATH?KEY=VALUE&...`.
//!
//! Upstream: storage/database/sqlite.py, `_parse`.

use std::path::PathBuf;

use crate::database::Error;

/// Parsed `--database`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Url {
    /// File of the database.
    pub path: PathBuf,
    /// `PRAGMA cache_size`: pages if positive, KiB if negative.
    pub cache_size: Option<String>,
    /// `PRAGMA journal_mode`, lower case.
    pub journal_mode: Option<String>,
    /// `PRAGMA synchronous`, lower case.
    pub synchronous: Option<String>,
}

const JOURNAL_MODES: &[&str] = &["delete", "truncate", "persist", "memory", "wal", "off"];
const SYNCHRONOUS: &[&str] = &["off", "normal", "full", "extra", "0", "1", "2", "3"];

impl Url {
    /// Parses a database string. `home` is what a leading `~` stands for.
    pub fn parse(text: &str, home: Option<&str>) -> Result<Self, Error> {
        let mut url = Self::default();
        let path = match text.strip_prefix("file:") {
            Some(rest) => {
                let rest = rest.split('#').next().unwrap_or_default();
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                for pair in query.split('&').filter(|_| !query.is_empty()) {
                    url.pragma(pair)?;
                }
                PathBuf::from(without_authority(path)?)
            }
            None => expand_user(text, home),
        };
        if path.as_os_str().is_empty() || path.as_os_str() == ":memory:" {
            return Err(Error::Url(format!("{text:?} does not name a file")));
        }
        url.path = path;
        Ok(url)
    }

    fn pragma(&mut self, pair: &str) -> Result<(), Error> {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::Url(format!("bad query field: {pair:?}")));
        };
        let (key, value) = (decode(key)?, decode(value)?);
        let bad_value = || Err(Error::Url(format!("bad value for {key}: {value:?}")));
        let lower = value.to_ascii_lowercase();
        let (field, value) = match key.as_str() {
            "cache_size" => match value.parse::<i32>() {
                Ok(size) => (&mut self.cache_size, size.to_string()),
                Err(_) => return bad_value(),
            },
            "journal_mode" => match JOURNAL_MODES.contains(&lower.as_str()) {
                true => (&mut self.journal_mode, lower),
                false => return bad_value(),
            },
            "synchronous" => match SYNCHRONOUS.contains(&lower.as_str()) {
                true => (&mut self.synchronous, lower),
                false => return bad_value(),
            },
            "cksumvfs" => {
                return match value.as_str() {
                    "0" => Ok(()),
                    "1" => Err(Error::Url("the extension cksumvfs is not supported".into())),
                    _ => bad_value(),
                };
            }
            _ => return Err(Error::Url(format!("unsupported pragma: {key}"))),
        };
        if field.replace(value).is_some() {
            return Err(Error::Url(format!("duplicate pragma: {key}")));
        }
        Ok(())
    }
}

/// `//host/path` is a path on this machine, if the host is empty or `localhost`.
fn without_authority(path: &str) -> Result<&str, Error> {
    let Some(rest) = path.strip_prefix("//") else { return Ok(path) };
    let start = rest.find('/').unwrap_or(rest.len());
    match &rest[..start] {
        "" | "localhost" => Ok(&rest[start..]),
        host => Err(Error::Url(format!("unexpected host {host:?}"))),
    }
}

fn expand_user(text: &str, home: Option<&str>) -> PathBuf {
    match (text.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.into(),
        (Some(rest), Some(home)) if rest.starts_with('/') => format!("{home}{rest}").into(),
        _ => text.into(),
    }
}

/// `%xx` and `+`, as in a query.
fn decode(text: &str) -> Result<String, Error> {
    let bad = || Error::Url(format!("bad query field: {text:?}"));
    let mut result = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        result.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
                let digits = std::str::from_utf8(&digits).map_err(|_| bad())?;
                u8::from_str_radix(digits, 16).map_err(|_| bad())?
            }
            byte => byte,
        });
    }
    String::from_utf8(result).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Url, String> {
        Url::parse(text, Some("/home/neo")).map_err(|error| error.to_string())
    }

    fn path(path: &str) -> Url {
        Url { path: path.into(), ..Url::default() }
    }

    #[test]
    fn paths() {
        assert_eq!(parse("/a/b.sqlite"), Ok(path("/a/b.sqlite")));
        assert_eq!(parse("a?b=c"), Ok(path("a?b=c")));
        assert_eq!(parse("~/b.sqlite"), Ok(path("/home/neo/b.sqlite")));
        assert_eq!(parse("~other/b.sqlite"), Ok(path("~other/b.sqlite")));
        assert_eq!(parse("file:a/b#c"), Ok(path("a/b")));
        assert_eq!(parse("file:///a/b"), Ok(path("/a/b")));
        assert_eq!(parse("file://localhost/a/b"), Ok(path("/a/b")));
        for text in ["", "file:", "file:?synchronous=off", ":memory:", "file://host/a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pragmas() {
        let url = parse("file:/x?cache_size=-4000&journal_mode=DELETE&synchronous=%4EORMAL");
        let expected = Url {
            path: "/x".into(),
            cache_size: Some("-4000".into()),
            journal_mode: Some("delete".into()),
            synchronous: Some("normal".into()),
        };
        assert_eq!(url, Ok(expected));
        assert_eq!(parse("file:/x?cksumvfs=0"), Ok(path("/x")));
        for (query, error) in [
            ("mmap_size=0", "unsupported pragma: mmap_size"),
            ("cache_size=1&cache_size=2", "duplicate pragma: cache_size"),
            ("cache_size=1;DROP TABLE obj", "bad value for cache_size"),
            ("journal_mode=fast", "bad value for journal_mode"),
            ("synchronous=", "bad value for synchronous"),
            ("synchronous", "bad query field"),
            ("synchronous=%4", "bad query field"),
            ("synchronous=full&", "bad query field"),
            ("cksumvfs=1", "not supported"),
        ] {
            let result = parse(&format!("file:/x?{query}"));
            assert!(result.as_ref().is_err_and(|text| text.contains(error)), "{query}: {result:?}");
        }
    }
}
