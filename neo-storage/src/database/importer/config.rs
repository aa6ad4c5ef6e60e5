// SPDX-License-Identifier: GPL-2.0-or-later
//! The file that `--database` names with `--adapter Importer`.
//!
//! ```text
//! [neo]                      the first section, whatever its name: the destination
//! adapter=MySQL
//! database=neo
//!
//! [root]                     the second and last one: the source
//! storage=
//!   <filestorage>
//!     path /path/to/root.fs
//!   </filestorage>
//! ```
//!
//! Upstream: storage/database/importer.py and the example `importer.conf`. What upstream can do more
//! needs Python (other kinds of storages, references that are rewritten between several of them) or
//! writes to the source: it is refused, with what to do instead. Nothing is opened before the whole
//! file is understood.

use std::error;
use std::fmt;
use std::path::{Path, PathBuf};

use neo_common::compression::Compression;
use neo_common::config::Secret;
use neo_common::config::ini::{Ini, IniError};
use neo_common::config::storage::{Adapter, Wait};

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Kind of the destination: not [`Adapter::Importer`].
    pub adapter: Adapter,
    /// Where the destination is. It may have a password.
    pub database: Secret,
    /// Engine of a new MySQL database.
    pub engine: Option<String>,
    /// How long to wait for the destination.
    pub wait: Wait,
    /// How imported data is compressed.
    pub compression: Compression,
    /// The `Data.fs`.
    pub source: PathBuf,
}

/// What is wrong with the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// It is no configuration file.
    Ini(IniError),
    /// A section is missing.
    Missing(&'static str),
    /// A key of a section has a value that means nothing.
    Value {
        /// Section.
        section: String,
        /// Key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// It asks for something that this program can not do.
    Unsupported {
        /// What.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
}

const UPSTREAM: &str = "use the storage node in Python for the import; this one opens its database \
                        once everything is imported";
const CONVERT: &str = "copy it to a FileStorage first (copyTransactionsFrom), or directly to a \
                       running cluster from Python; a FileStorage can also be copied by neomigrate";

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ini(error) => error.fmt(f),
            Self::Missing(what) => write!(f, "{what} is missing"),
            Self::Value { section, key, why } => write!(f, "[{section}] {key}: {why}"),
            Self::Unsupported { what, remedy } => write!(f, "{what} is not supported: {remedy}"),
        }
    }
}

impl error::Error for ConfigError {}

impl From<IniError> for ConfigError {
    fn from(error: IniError) -> Self {
        Self::Ini(error)
    }
}

fn wrong(section: &str, key: &str, why: impl fmt::Display) -> ConfigError {
    ConfigError::Value { section: section.to_owned(), key: key.to_owned(), why: why.to_string() }
}

fn unsupported(what: impl Into<String>, remedy: &'static str) -> ConfigError {
    ConfigError::Unsupported { what: what.into(), remedy }
}

impl Config {
    /// Understands the content of a file. The second value lists what is ignored.
    ///
    /// # Errors
    /// [`ConfigError`] if something is wrong or not supported.
    pub fn parse(content: &[u8]) -> Result<(Self, Vec<String>), ConfigError> {
        let ini = Ini::parse(content)?;
        let mut warnings = ini.warnings().to_vec();
        let names = ini.section_names();
        let main = names.first().ok_or(ConfigError::Missing("a section for the destination"))?;
        let root = names.get(1).ok_or(ConfigError::Missing("a section for the source"))?;
        if names.len() > 2 {
            let what = format!("to merge several databases ([{}] after [{root}])", names[2]);
            return Err(unsupported(what, UPSTREAM));
        }
        let get = |key: &str| ini.get(main, key);
        if boolean(main, "writeback", get("writeback")?, false)? {
            let remedy = "keep the original file as it is, to go back, or use the storage node in \
                          Python";
            return Err(unsupported("writeback=true", remedy));
        }
        for key in ini.keys(main) {
            let known = ["adapter", "database", "engine", "wait", "compress", "writeback"];
            if !known.contains(&key) {
                warnings.push(format!("[{main}] {key} is ignored"));
            }
        }
        let config = Self {
            adapter: adapter(main, get("adapter")?)?,
            database: match get("database")?.filter(|database| !database.is_empty()) {
                Some(database) => Secret::new(database),
                None => return Err(wrong(main, "database", "must be set")),
            },
            engine: get("engine")?.filter(|engine| !engine.is_empty()),
            wait: wait(main, get("wait")?)?,
            compression: compression(main, get("compress")?)?,
            source: source(&ini, root)?,
        };
        Ok((config, warnings))
    }

    /// Reads a file. See [`Self::parse`].
    ///
    /// # Errors
    /// As a text, with the name of the file.
    pub fn load(path: &Path) -> Result<(Self, Vec<String>), String> {
        let context = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let content = std::fs::read(path).map_err(|error| context(&error))?;
        Self::parse(&content).map_err(|error| context(&error))
    }
}

fn adapter(section: &str, value: Option<String>) -> Result<Adapter, ConfigError> {
    match value.as_deref().map(Adapter::parse) {
        None => Ok(Adapter::MySql),
        Some(Some(adapter @ (Adapter::MySql | Adapter::Sqlite))) => Ok(adapter),
        Some(Some(Adapter::Importer) | None) => {
            Err(wrong(section, "adapter", "must be MySQL or SQLite"))
        }
    }
}

/// As upstream: exactly these words.
fn boolean(
    section: &str,
    key: &str,
    value: Option<String>,
    default: bool,
) -> Result<bool, ConfigError> {
    match value.as_deref() {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(_) => Err(wrong(section, key, "must be true or false")),
    }
}

fn wait(section: &str, value: Option<String>) -> Result<Wait, ConfigError> {
    let Some(value) = value else { return Ok(Wait::from_seconds(0.0)) };
    let seconds: Option<f64> = value.parse().ok().filter(|seconds: &f64| !seconds.is_nan());
    seconds.map(Wait::from_seconds).ok_or_else(|| wrong(section, "wait", "must be a number"))
}

fn compression(section: &str, value: Option<String>) -> Result<Compression, ConfigError> {
    match value.as_deref() {
        None | Some("true") => Ok(Compression::default()),
        Some("false") => Ok(Compression::None),
        Some(text) => text.parse().map_err(|error| wrong(section, "compress", error)),
    }
}

/// Path of the file in `storage`.
fn source(ini: &Ini, section: &str) -> Result<PathBuf, ConfigError> {
    for key in ini.keys(section) {
        if key != "storage" {
            let what = match key {
                "oid" => format!("a mount point ([{section}] oid)"),
                key => format!("a mount point ([{section}] {key}={{oid}})"),
            };
            return Err(unsupported(what, UPSTREAM));
        }
    }
    let Some(text) = ini.get(section, "storage")? else {
        return Err(wrong(section, "storage", "must be set"));
    };
    file_storage(section, &text)
}

/// Understands the part of ZConfig's language that describes a FileStorage.
fn file_storage(section: &str, text: &str) -> Result<PathBuf, ConfigError> {
    let wrong = |why: String| wrong(section, "storage", why);
    let lines = text.lines().map(str::trim);
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let first = lines.next().unwrap_or_default();
    if first.starts_with('%') {
        return Err(unsupported(format!("{first:?} in [{section}] storage"), CONVERT));
    }
    let header = first.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let header = header.ok_or_else(|| wrong("must begin with <filestorage>".into()))?;
    let kind = header.trim_end_matches('/').split_whitespace().next().unwrap_or_default();
    if !kind.eq_ignore_ascii_case("filestorage") {
        return Err(unsupported(format!("a source of type <{kind}>"), CONVERT));
    }
    if header.ends_with('/') {
        return Err(wrong("path must be set".into()));
    }
    let mut path = None;
    loop {
        let line = lines.next().ok_or_else(|| wrong("</filestorage> is missing".into()))?;
        if line.eq_ignore_ascii_case("</filestorage>") {
            break;
        }
        if line.starts_with(['<', '%']) {
            return Err(unsupported(format!("{line:?} in [{section}] storage"), CONVERT));
        }
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match key.to_ascii_lowercase().as_str() {
            "path" if path.is_some() => return Err(wrong("path is there twice".into())),
            "path" => path = Some(substitute(value).map_err(wrong)?),
            // They do not matter to who only reads.
            "read-only" | "quota" | "packer" | "pack-gc" | "pack-keep-old" => {}
            "create" if is_no(value) => {}
            "create" => return Err(wrong("create would erase the file".into())),
            "blob-dir" => {
                let remedy = "blobs can not be stored in NEO, they would be left behind";
                return Err(unsupported("blob-dir", remedy));
            }
            key => return Err(wrong(format!("unknown key {key:?} of <filestorage>"))),
        }
    }
    if let Some(line) = lines.next() {
        return Err(wrong(format!("nothing may follow </filestorage>, not {line:?}")));
    }
    match path {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err(wrong("path must be set".into())),
    }
}

fn is_no(value: &str) -> bool {
    ["no", "false", "off"].iter().any(|no| value.eq_ignore_ascii_case(no))
}

/// ZConfig replaces `$name`; only `$$` is understood here.
fn substitute(value: &str) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        let after = after
            .strip_prefix('$')
            .ok_or_else(|| format!("{value:?}: write $$ for $, names are not replaced"))?;
        result.push_str(before);
        result.push('$');
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text.as_bytes()).map(|(config, _)| config).map_err(|error| error.to_string())
    }

    fn with_storage(storage: &str) -> Result<PathBuf, String> {
        let indented = storage.replace("\n", "\n  ").replace("%", "%%");
        parse(&format!("[neo]\ndatabase=x\n[root]\nstorage={indented}\n")).map(|c| c.source)
    }

    /// Upstream's example, cut where it says that it may be.
    #[test]
    fn all_keys() {
        let text = "# c\n[neo]\n# d\nadapter=SQLite\ndatabase=/x/%%y\nengine=RocksDB\nwait=-1\n\
                    compress=zlib=3\nwriteback=false\nlogfile=/l\n[root]\nstorage=\n  <filestorage>\n\
                    \x20   path /path/to/root.fs\n  </filestorage>\n";
        let (config, warnings) = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.adapter, Adapter::Sqlite);
        assert_eq!(config.database.reveal(), "/x/%y");
        assert_eq!(config.engine.as_deref(), Some("RocksDB"));
        assert_eq!(config.wait, Wait::Forever);
        assert_eq!(config.compression, Compression::Zlib(Some(3)));
        assert_eq!(config.source, Path::new("/path/to/root.fs"));
        assert_eq!(warnings, ["[neo] logfile is ignored"]);
        let config =
            parse("[a]\ndatabase=neo\n[b]\nstorage=<filestorage>\n path x\n </filestorage>");
        let config = config.unwrap();
        assert_eq!((config.adapter, config.engine), (Adapter::MySql, None));
        assert_eq!(config.compression, Compression::default());
    }

    /// What ZConfig accepts around a path.
    #[test]
    fn file_storages() {
        let path = |text| with_storage(text).map(|path| path.display().to_string());
        assert_eq!(path("<FileStorage 1>\n# c\nPath  a b \n</FILESTORAGE>").unwrap(), "a b");
        let all = "<filestorage>\npath a\ncreate false\nread-only true\nquota 1GB\npack-gc no\n\
                   pack-keep-old off\npacker x:y\n</filestorage>";
        assert_eq!(path(all).unwrap(), "a");
        assert_eq!(path("<filestorage>\npath $$a$$\n</filestorage>").unwrap(), "$a$");
    }

    /// What is wrong or not possible is said, with a remedy.
    #[test]
    fn refusals() {
        let source = "[root]\nstorage=<filestorage>\n path x\n </filestorage>\n";
        for (text, expected) in [
            (String::new(), "a section for the destination is missing"),
            ("[neo]\ndatabase=x\n".into(), "a section for the source is missing"),
            (format!("[neo]\n{source}"), "[neo] database: must be set"),
            (format!("[neo]\ndatabase=x\nadapter=BTree\n{source}"), "must be MySQL or SQLite"),
            (format!("[neo]\ndatabase=x\nadapter=Importer\n{source}"), "must be MySQL or SQLite"),
            (format!("[neo]\ndatabase=x\nwait=soon\n{source}"), "[neo] wait: must be a number"),
            (format!("[neo]\ndatabase=x\ncompress=lz4\n{source}"), "[neo] compress: not a valid"),
            (format!("[neo]\ndatabase=x\nwriteback=yes\n{source}"), "must be true or false"),
            (format!("[neo]\ndatabase=x\nwriteback=true\n{source}"), "storage node in Python"),
            (format!("[neo]\ndatabase=x\n{source}foo=421\n"), "storage node in Python"),
            (format!("[neo]\ndatabase=x\n{source}[foo]\noid=123\n"), "to merge several databases"),
            ("[neo]\ndatabase=x\n[root]\n".into(), "[root] storage: must be set"),
            ("neo".into(), "line 1: '[section]' expected"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        for (text, expected) in [
            ("", "must begin with <filestorage>"),
            ("<zeoclient>\nserver x\n</zeoclient>", "copy it to a FileStorage first"),
            ("%import x\n<x>\n</x>", "is not supported"),
            ("<filestorage/>", "path must be set"),
            ("<filestorage>\n</filestorage>", "path must be set"),
            ("<filestorage>\npath x", "</filestorage> is missing"),
            ("<filestorage>\npath x\npath y\n</filestorage>", "twice"),
            ("<filestorage>\npath x\n</filestorage>\n<x>", "nothing may follow"),
            ("<filestorage>\npath x\nblob-dir y\n</filestorage>", "blobs can not be stored"),
            ("<filestorage>\npath x\ncreate true\n</filestorage>", "would erase the file"),
            ("<filestorage>\npath $x\n</filestorage>", "names are not replaced"),
            ("<filestorage>\npaht x\n</filestorage>", "unknown key \"paht\""),
        ] {
            let error = with_storage(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
