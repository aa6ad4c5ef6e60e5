// SPDX-License-Identifier: GPL-2.0-or-later
//! The dialect of configuration files: that of Python's configparser.
//!
//! ```text
//! # comment                      ; comment
//! [DEFAULT]
//! cluster: test                  inherited by all sections
//! masters = 127.0.0.1:10000      ':' or '=', whichever comes first
//!     127.0.0.1:10001            more indented: continuation of the value
//! [storage]
//! database: neo:%%secret@%(cluster)s
//! ```
//!
//! Versions 0.9 to 1.12 ran on Python 2, the current one on Python 3. Where these differ the more
//! lenient one is followed, with a warning, because a file that works with either must work here:
//!
//! | | Python 2 | Python 3 | here |
//! |---|---|---|---|
//! | a key or section twice | the last one wins | error | the last one wins, warning |
//! | ` ; text` after a value | comment | part of the value | comment, warning |
//! | an indented first key | key | key | key |
//! | an indented key below an unindented one | continuation | continuation | continuation |
//!
//! Keys are case-insensitive, sections are not. Values are interpolated when they are read:
//! `%(name)s` is another value of the section, `%%` is `%`, and any other `%` is an error.

use std::collections::BTreeMap;
use std::fmt;

use crate::limits::{CONFIG_BYTES_MAX, CONFIG_VALUE_BYTES_MAX};

/// Section whose values are inherited by all others.
pub const DEFAULT_SECTION: &str = "DEFAULT";

/// How deep `%(name)s` may refer to values that refer to others. As configparser.
const INTERPOLATION_DEPTH_MAX: u32 = 10;

/// How many `%(name)s` a value may cost.
const REFERENCES_MAX: u32 = 10_000;

/// What is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IniError {
    /// More bytes than [`CONFIG_BYTES_MAX`].
    TooLarge,
    /// Not UTF-8.
    Encoding,
    /// A line that is neither a section, nor a key with a value, nor a comment.
    Syntax {
        /// Number of the line, from 1.
        line: usize,
        /// What is expected.
        expected: &'static str,
    },
    /// No such section.
    NoSection(String),
    /// A value cannot be interpolated.
    Interpolation {
        /// Where.
        section: String,
        /// Its key.
        key: String,
        /// Why.
        why: InterpolationError,
    },
}

/// Why a value cannot be interpolated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InterpolationError {
    /// `%` before something else than `%` or `(name)s`.
    Syntax,
    /// `%(name)s` without such a value.
    Unknown(String),
    /// Values refer to each other without end.
    Depth,
    /// More bytes than [`CONFIG_VALUE_BYTES_MAX`], or too many references.
    TooLarge,
}

impl fmt::Display for IniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "more than {CONFIG_BYTES_MAX} bytes"),
            Self::Encoding => f.write_str("not UTF-8"),
            Self::Syntax { line, expected } => write!(f, "line {line}: {expected} expected"),
            Self::NoSection(section) => write!(f, "no section '{section}'"),
            Self::Interpolation { section, key, why } => {
                write!(f, "[{section}] {key}: ")?;
                match why {
                    InterpolationError::Syntax => f.write_str(
                        "'%' must be followed by '%' or '(', write '%%' for a percent sign",
                    ),
                    InterpolationError::Unknown(name) => write!(f, "no value for '%({name})s'"),
                    InterpolationError::Depth => f.write_str("values refer to each other"),
                    InterpolationError::TooLarge => {
                        write!(f, "more than {CONFIG_VALUE_BYTES_MAX} bytes or too many references")
                    }
                }
            }
        }
    }
}
impl std::error::Error for IniError {}

type Section = BTreeMap<String, String>;

/// A file: raw values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ini {
    defaults: Section,
    sections: BTreeMap<String, Section>,
    /// Names of the sections, in the order of the file.
    order: Vec<String>,
    warnings: Vec<String>,
}

impl Ini {
    /// Reads a file.
    ///
    /// # Errors
    /// If it has a wrong line, or is too large or not text.
    pub fn parse(content: &[u8]) -> Result<Self, IniError> {
        if content.len() > CONFIG_BYTES_MAX {
            return Err(IniError::TooLarge);
        }
        let text = std::str::from_utf8(content).map_err(|_| IniError::Encoding)?;
        let mut parser = Parser::default();
        let text = text.trim_start_matches('\u{feff}');
        // All line ends: "\n", "\r\n" and "\r".
        for (index, line) in text.replace("\r\n", "\n").split(['\n', '\r']).enumerate() {
            parser.line(index + 1, line)?;
        }
        Ok(parser.finish())
    }

    /// What is tolerated, though not everywhere.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Names of the sections but `[DEFAULT]`, in the order of the file.
    pub fn section_names(&self) -> &[String] {
        &self.order
    }

    /// Keys of a section itself, in alphabetical order.
    pub fn keys(&self, section: &str) -> impl Iterator<Item = &str> {
        self.sections.get(section).into_iter().flat_map(|own| own.keys().map(String::as_str))
    }

    /// A value of a section, or else of `[DEFAULT]`; `None` if neither has the key.
    ///
    /// # Errors
    /// If there is no such section, or the value cannot be interpolated.
    pub fn get(&self, section: &str, key: &str) -> Result<Option<String>, IniError> {
        let own = self.sections.get(section);
        let own = own.ok_or_else(|| IniError::NoSection(section.to_owned()))?;
        let scope = Scope { own, defaults: &self.defaults };
        let Some(raw) = scope.raw(key) else { return Ok(None) };
        let mut output = Interpolated { value: String::new(), references_left: REFERENCES_MAX };
        scope.interpolate(raw, 1, &mut output).map_err(|why| IniError::Interpolation {
            section: section.to_owned(),
            key: key.to_owned(),
            why,
        })?;
        Ok(Some(output.value))
    }
}

/// Where names of `%(name)s` are looked up.
struct Scope<'a> {
    own: &'a Section,
    defaults: &'a Section,
}

impl<'a> Scope<'a> {
    fn raw(&self, key: &str) -> Option<&'a str> {
        self.own.get(key).or_else(|| self.defaults.get(key)).map(String::as_str)
    }

    fn interpolate(
        &self,
        mut raw: &str,
        depth: u32,
        output: &mut Interpolated,
    ) -> Result<(), InterpolationError> {
        if depth > INTERPOLATION_DEPTH_MAX {
            return Err(InterpolationError::Depth);
        }
        while let Some((before, after)) = raw.split_once('%') {
            output.append(before)?;
            if let Some(rest) = after.strip_prefix('%') {
                output.append("%")?;
                raw = rest;
            } else if let Some(rest) = after.strip_prefix('(') {
                let (name, rest) = rest.split_once(')').ok_or(InterpolationError::Syntax)?;
                raw = rest.strip_prefix('s').ok_or(InterpolationError::Syntax)?;
                let inner = self.raw(&name.to_lowercase());
                let inner = inner.ok_or_else(|| InterpolationError::Unknown(name.to_owned()))?;
                output.count_reference()?;
                self.interpolate(inner, depth + 1, output)?;
            } else {
                return Err(InterpolationError::Syntax);
            }
        }
        output.append(raw)
    }
}

/// A value under construction. What it may cost is bounded: ten values that each refer a hundred
/// times to the next one would never end, even if the last one is empty.
struct Interpolated {
    value: String,
    references_left: u32,
}

impl Interpolated {
    fn append(&mut self, text: &str) -> Result<(), InterpolationError> {
        if self.value.len() + text.len() > CONFIG_VALUE_BYTES_MAX {
            return Err(InterpolationError::TooLarge);
        }
        self.value.push_str(text);
        Ok(())
    }
    fn count_reference(&mut self) -> Result<(), InterpolationError> {
        let left = self.references_left.checked_sub(1).ok_or(InterpolationError::TooLarge)?;
        self.references_left = left;
        Ok(())
    }
}

/// State between two lines.
#[derive(Default)]
struct Parser {
    ini: Ini,
    /// Current section; `None` before the first one.
    section: Option<String>,
    /// Key that a continuation line would continue, with the indentation of its line.
    open: Option<(String, usize)>,
}

impl Parser {
    fn line(&mut self, number: usize, line: &str) -> Result<(), IniError> {
        let text = line.trim();
        if text.starts_with(['#', ';']) || is_rem(line) {
            return Ok(());
        }
        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
        if let Some((key, key_indent)) = self.open.clone() {
            if text.is_empty() {
                self.continue_value(&key, "");
                return Ok(());
            }
            if indent > key_indent {
                self.continue_value(&key, text);
                return Ok(());
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        if let Some(rest) = text.strip_prefix('[') {
            let name = rest.split_once(']').map(|(name, _)| name).filter(|name| !name.is_empty());
            let expected = "'[section]'";
            self.start_section(number, name.ok_or(IniError::Syntax { line: number, expected })?);
            return Ok(());
        }
        self.value(number, indent, text)
    }

    fn start_section(&mut self, number: usize, name: &str) {
        self.open = None;
        self.section = Some(name.to_owned());
        if name == DEFAULT_SECTION {
            return;
        }
        if self.ini.sections.contains_key(name) {
            self.warn(number, format_args!("section '{name}' appears again, they are merged"));
        } else {
            self.ini.order.push(name.to_owned());
        }
        self.ini.sections.entry(name.to_owned()).or_default();
    }

    fn value(&mut self, number: usize, indent: usize, text: &str) -> Result<(), IniError> {
        if self.section.is_none() {
            return Err(IniError::Syntax { line: number, expected: "'[section]'" });
        }
        let expected = "'key: value' or 'key = value'";
        let (key, value) =
            text.split_once([':', '=']).ok_or(IniError::Syntax { line: number, expected })?;
        let key = key.trim_end().to_lowercase();
        if key.is_empty() {
            return Err(IniError::Syntax { line: number, expected });
        }
        let mut value = value.trim();
        if let Some(index) = inline_comment(value) {
            self.warn(number, format_args!("'{}' is taken as a comment", &value[index..]));
            value = value[..index].trim_end();
        }
        if self.current().insert(key.clone(), value.to_owned()).is_some() {
            self.warn(number, format_args!("'{key}' appears again, the last one wins"));
        }
        self.open = Some((key, indent));
        Ok(())
    }

    fn continue_value(&mut self, key: &str, text: &str) {
        if let Some(value) = self.current().get_mut(key) {
            value.push('\n');
            value.push_str(text);
        }
    }

    fn current(&mut self) -> &mut Section {
        match &self.section {
            Some(name) if name != DEFAULT_SECTION => {
                self.ini.sections.entry(name.clone()).or_default()
            }
            _ => &mut self.ini.defaults,
        }
    }

    fn warn(&mut self, number: usize, message: fmt::Arguments<'_>) {
        // Enough to find what is wrong, not enough to flood anything.
        if self.ini.warnings.len() < 20 {
            self.ini.warnings.push(format!("line {number}: {message}"));
        }
    }

    /// Empty lines after a value belong to it until something else comes: they are dropped here.
    fn finish(mut self) -> Ini {
        let values = self.ini.sections.values_mut().flat_map(BTreeMap::values_mut);
        for value in values.chain(self.ini.defaults.values_mut()) {
            value.truncate(value.trim_end().len());
        }
        self.ini
    }
}

/// Where ` ; comment` starts in a value: at the first semicolon, if it follows a space.
fn inline_comment(value: &str) -> Option<usize> {
    let index = value.find(';')?;
    value[..index].ends_with(char::is_whitespace).then_some(index)
}

/// A comment of Python 2 at the very start of a line: `rem` alone or before a space.
fn is_rem(line: &str) -> bool {
    let word = line.split(char::is_whitespace).next().unwrap_or_default();
    word.eq_ignore_ascii_case("rem")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, key: &str) -> String {
        let ini = Ini::parse(text.as_bytes()).unwrap();
        ini.get("s", key).unwrap().unwrap_or_else(|| "absent".into())
    }

    /// Both delimiters, spaces around them, case of keys, other delimiters in values.
    #[test]
    fn keys_and_values() {
        let text = "[s]\na: 1\nb=2\nC  =  x y \nd : neo:pw@db=1\ne = http://x\nf:\n";
        for (key, value) in [
            ("a", "1"),
            ("b", "2"),
            ("c", "x y"),
            ("d", "neo:pw@db=1"),
            ("e", "http://x"),
            ("f", ""),
        ] {
            assert_eq!(get(text, key), value);
        }
        assert_eq!(get(text, "g"), "absent");
        assert_eq!(get("\u{feff}[s]\r\na: 1\r\n[t]\ra: 2", "a"), "1");
    }

    /// Values come from the section, else from [DEFAULT], which may be anywhere.
    #[test]
    fn inheritance() {
        let text = "[DEFAULT]\na: 1\nb: 1\n[s]\nb: 2\n[t]\nb: 3\n[DEFAULT]\nc: 4\n";
        assert_eq!([get(text, "a"), get(text, "b"), get(text, "c")], ["1", "2", "4"]);
        let ini = Ini::parse(text.as_bytes()).unwrap();
        assert!(ini.warnings().is_empty());
        assert_eq!(ini.section_names(), ["s", "t"]);
        assert!(ini.keys("s").eq(["b"]) && ini.keys("x").next().is_none());
        assert_eq!(ini.get("x", "a"), Err(IniError::NoSection("x".into())));
        assert_eq!(ini.get("DEFAULT", "a"), Err(IniError::NoSection("DEFAULT".into())));
    }

    /// More indented lines continue a value, over comments and empty lines.
    #[test]
    fn continuations() {
        let text = "[s]\na: 1\n  2\n\n\t3\n# comment\n  ; comment\n  4 = 5\n\n\nb: 6\n";
        assert_eq!(get(text, "a"), "1\n2\n\n3\n4 = 5");
        assert_eq!(get(text, "b"), "6");
        let text = "[s]\n  a: 1\n  b: 2\n    c: 3\n d: 4\n";
        assert_eq!([get(text, "a"), get(text, "b"), get(text, "d")], ["1", "2\nc: 3", "4"]);
        assert_eq!(get("[s]\na:\n  x\n  y\n", "a"), "\nx\ny");
    }

    /// What Python 2 took and Python 3 does not is taken with a warning.
    #[test]
    fn lenient() {
        for (text, value, warning) in [
            ("[s]\na: 1 ; old\n", "1", "line 2: '; old' is taken as a comment"),
            ("[s]\na: 1\na: 2\n", "2", "line 3: 'a' appears again, the last one wins"),
            ("[s]\na: 1\n[s]\n", "1", "line 3: section 's' appears again, they are merged"),
        ] {
            assert_eq!(get(text, "a"), value);
            assert_eq!(Ini::parse(text.as_bytes()).unwrap().warnings(), [warning]);
        }
        let text = "; c\n# c\nREM c\n[s] ; c\nrem\na: x;y # z\n";
        assert_eq!(get(text, "a"), "x;y # z");
        assert!(Ini::parse(text.as_bytes()).unwrap().warnings().is_empty());
        let many = format!("[s]\n{}", "a: 1\n".repeat(100));
        assert_eq!(Ini::parse(many.as_bytes()).unwrap().warnings().len(), 20);
    }

    /// `%(x)s` in any case, across sections, and `%%`.
    #[test]
    fn interpolation() {
        let text = "[DEFAULT]\nname: x%%y\n[s]\na: <%(NAME)s> 100%%\nb: %(a)s%(c)s\nc: .\n";
        assert_eq!(get(text, "a"), "<x%y> 100%");
        assert_eq!(get(text, "b"), "<x%y> 100%.");
        let error = |text: &str| {
            let ini = Ini::parse(text.as_bytes()).unwrap();
            match ini.get("s", "a") {
                Err(IniError::Interpolation { why, .. }) => why,
                other => panic!("{other:?}"),
            }
        };
        for text in ["[s]\na: 5%", "[s]\na: %x", "[s]\na: %(b", "[s]\nb:1\na: %(b)d", "[s]\na: %()"]
        {
            assert_eq!(error(text), InterpolationError::Syntax, "{text}");
        }
        assert_eq!(error("[s]\na: %(b)s"), InterpolationError::Unknown("b".into()));
        assert_eq!(error("[s]\na: %(a)s"), InterpolationError::Depth);
        assert_eq!(get("[s]\na: 1\nb: 5%", "a"), "1", "other values do not matter");
    }

    /// What interpolation may cost is bounded, in bytes and in steps.
    #[test]
    fn bombs() {
        for last in ["", "xxxxxxxx"] {
            let mut text = format!("[s]\na9: {last}\n");
            for level in 0..9 {
                text += &format!("a{level}: {}\n", format!("%(a{})s", level + 1).repeat(50));
            }
            let ini = Ini::parse(text.as_bytes()).unwrap();
            let Err(IniError::Interpolation { why, .. }) = ini.get("s", "a0") else { panic!() };
            assert_eq!(why, InterpolationError::TooLarge);
        }
        let large = vec![b'\n'; CONFIG_BYTES_MAX + 1];
        assert_eq!(Ini::parse(&large), Err(IniError::TooLarge));
        assert!(Ini::parse(&large[1..]).is_ok());
    }

    /// Wrong lines are told with their number.
    #[test]
    fn errors() {
        for (text, message) in [
            ("a: 1\n", "line 1: '[section]' expected"),
            ("[s]\n\nfoo\n", "line 3: 'key: value' or 'key = value' expected"),
            ("[s]\n: 1\n", "line 2: 'key: value' or 'key = value' expected"),
            ("[s\n", "line 1: '[section]' expected"),
            ("[]\n", "line 1: '[section]' expected"),
        ] {
            assert_eq!(Ini::parse(text.as_bytes()).unwrap_err().to_string(), message);
        }
        assert_eq!(Ini::parse(b"[s]\na: \xff"), Err(IniError::Encoding));
    }
}
