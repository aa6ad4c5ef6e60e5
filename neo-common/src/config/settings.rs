// SPDX-License-Identifier: GPL-2.0-or-later
//! Command line and configuration file together: precedence, then types.
//!
//! Command line > section of the file > `[DEFAULT]` of the file > built-in default. Unknown keys of
//! the file are ignored, as a section is often shared by several kinds of nodes.
//!
//! A wrong value tells where it comes from: on the command line it is a usage error (status 2), in
//! the file it is a wrong configuration (status 1).

use std::fmt;
use std::path::PathBuf;

use super::address::{Address, AddressError};
use super::environment::{Environment, expand_user};
use super::ini::Ini;
use super::options::{CommandLine, Era, Opt, Repeat, Table};
use super::{Exit, Secret};

/// Options, with what should be told about them once logging works.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded<T> {
    /// The options.
    pub options: T,
    /// Obsolete or dubious, but accepted.
    pub warnings: Vec<String>,
}

/// Understood options, of which types are still to be checked.
pub struct Settings<'a, E> {
    table: &'a Table,
    env: &'a E,
    command_line: CommandLine,
    file: Option<File>,
    /// See [`Loaded::warnings`].
    pub warnings: Vec<String>,
}

struct File {
    name: String,
    section: String,
    ini: Ini,
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    CommandLine,
    File,
    Default,
}

impl<'a, E: Environment> Settings<'a, E> {
    /// Understands the command line and, if the table has `--file` and it is used, reads the file.
    /// Options that are required and missing are told all at once.
    ///
    /// # Errors
    /// [`Exit`] if help was asked, or if something is wrong.
    pub fn new(table: &'a Table, args: &[String], env: &'a E) -> Result<Self, Exit> {
        let command_line = table.parse(args)?;
        let mut settings = Self { table, env, command_line, file: None, warnings: Vec::new() };
        settings.read_file()?;
        let mut missing = Vec::new();
        for option in table.options.iter().filter(|option| option.is_required) {
            if settings.values(option)?.1.is_empty() {
                missing.push(option.label());
            }
        }
        if missing.is_empty() {
            return Ok(settings);
        }
        let missing = missing.join(", ");
        Err(table.error(format!("the following arguments are required: {missing}")))
    }

    fn read_file(&mut self) -> Result<(), Exit> {
        if !self.table.options.iter().any(|option| option.long == "file") {
            return Ok(());
        }
        let Some(path) = self.path("file")? else { return Ok(()) };
        let section = self.text("section")?.unwrap_or_default();
        let name = path.display().to_string();
        let failure =
            |why: &dyn fmt::Display| Exit::failure(self.table.program, format!("{name}: {why}"));
        let content = self.env.read(&path).map_err(|error| failure(&error))?;
        let ini = Ini::parse(&content).map_err(|error| failure(&error))?;
        // Any key tells whether the section exists.
        ini.get(&section, "").map_err(|error| failure(&error))?;
        self.warnings.extend(ini.warnings().iter().map(|warning| format!("{name}: {warning}")));
        self.file = Some(File { name, section, ini });
        Ok(())
    }

    /// A wrong value: where it is, then why.
    fn refuse(&self, option: &Opt, source: Source, why: impl fmt::Display) -> Exit {
        match (source, &self.file) {
            (Source::File, Some(File { name, section, .. })) => {
                let key = option.long.replace('-', "_");
                Exit::failure(self.table.program, format!("{name}: [{section}] {key}: {why}"))
            }
            _ => self.table.error(format!("argument {}: {why}", option.label())),
        }
    }

    /// Refuses the value of an option that is valid by itself.
    pub fn refuse_value(&self, long: &str, why: impl fmt::Display) -> Exit {
        let option = self.table.option(long);
        let source = self.values(option).map_or(Source::CommandLine, |(source, _)| source);
        self.refuse(option, source, why)
    }

    fn values(&self, option: &Opt) -> Result<(Source, Vec<String>), Exit> {
        let values = self.command_line.values(option);
        if !values.is_empty() {
            return Ok((Source::CommandLine, values));
        }
        // The section cannot name another file; old options were never read from files.
        let is_key = option.era != Era::Old && !["file", "section"].contains(&option.long);
        if let Some(File { name, section, ini }) = self.file.as_ref().filter(|_| is_key) {
            let value = ini
                .get(section, &option.long.replace('-', "_"))
                .map_err(|error| Exit::failure(self.table.program, format!("{name}: {error}")))?;
            match (value, option.repeat) {
                (None, _) => {}
                (Some(value), Repeat::LastWins) => return Ok((Source::File, vec![value])),
                (Some(value), Repeat::All) => {
                    let lines = value.lines().filter(|line| !line.is_empty());
                    return Ok((Source::File, lines.map(Into::into).collect()));
                }
            }
        }
        Ok((Source::Default, option.default.map(Into::into).into_iter().collect()))
    }

    fn value<T, W: fmt::Display>(
        &self,
        long: &str,
        convert: impl Fn(&str) -> Result<T, W>,
    ) -> Result<Option<T>, Exit> {
        let option = self.table.option(long);
        let (source, mut values) = self.values(option)?;
        let Some(value) = values.pop() else { return Ok(None) };
        convert(&value).map(Some).map_err(|why| self.refuse(option, source, why))
    }

    /// Whether a flag is set. In a file: 1, yes, true, on, or 0, no, false, off.
    ///
    /// # Errors
    /// If the file has something else.
    pub fn flag(&self, long: &str) -> Result<bool, Exit> {
        let option = self.table.option(long);
        let (source, values) = self.values(option)?;
        let Some(value) = values.last() else { return Ok(false) };
        match (source, value.to_lowercase().as_str()) {
            (Source::CommandLine, _) | (_, "1" | "yes" | "true" | "on") => Ok(true),
            (_, "0" | "no" | "false" | "off") => Ok(false),
            _ => Err(self.refuse(option, source, format_args!("not a boolean: '{value}'"))),
        }
    }

    /// A text, not empty.
    ///
    /// # Errors
    /// If it is empty.
    pub fn text(&self, long: &str) -> Result<Option<String>, Exit> {
        self.value(long, not_empty)
    }

    /// A text that must not be shown, not empty.
    ///
    /// # Errors
    /// If it is empty.
    pub fn secret(&self, long: &str) -> Result<Option<Secret>, Exit> {
        Ok(self.text(long)?.map(Secret::new))
    }

    /// A text that the table requires, not empty.
    ///
    /// # Errors
    /// If it is empty.
    pub fn required(&self, long: &str) -> Result<String, Exit> {
        // `new` has checked that it is there.
        Ok(self.text(long)?.unwrap_or_default())
    }

    /// All values of a repeatable option, none of them empty.
    ///
    /// # Errors
    /// If one is empty.
    pub fn list(&self, long: &str) -> Result<Vec<String>, Exit> {
        let option = self.table.option(long);
        let (source, values) = self.values(option)?;
        let check =
            |value: String| not_empty(&value).map_err(|why| self.refuse(option, source, why));
        values.into_iter().map(check).collect()
    }

    /// An integer, as Python writes them.
    ///
    /// # Errors
    /// If it is not one.
    pub fn integer(&self, long: &str) -> Result<Option<i64>, Exit> {
        self.value(long, |value| {
            python_number(value)
                .and_then(|digits| digits.parse::<i64>().ok())
                .ok_or_else(|| format!("invalid int value: '{value}'"))
        })
    }

    /// An integer in a range.
    ///
    /// # Errors
    /// If it is not one, or out of range.
    pub fn bounded<T: TryFrom<i64>>(&self, long: &str) -> Result<Option<T>, Exit> {
        let Some(value) = self.integer(long)? else { return Ok(None) };
        match T::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.refuse_value(long, format_args!("out of range: {value}"))),
        }
    }

    /// A number; not NaN.
    ///
    /// # Errors
    /// If it is not one.
    pub fn float(&self, long: &str) -> Result<Option<f64>, Exit> {
        self.value(long, |value| {
            python_number(value)
                .and_then(|digits| digits.parse::<f64>().ok())
                .filter(|number| !number.is_nan())
                .ok_or_else(|| format!("invalid float value: '{value}'"))
        })
    }

    /// A path, `~` expanded; `None` if it is empty.
    ///
    /// # Errors
    /// Those of the file.
    pub fn path(&self, long: &str) -> Result<Option<PathBuf>, Exit> {
        let path = self.value(long, |value| Ok::<_, &str>(expand_user(self.env, value)))?;
        Ok(path.filter(|path| !path.as_os_str().is_empty()))
    }

    /// An address; without port it gets `default_port`.
    ///
    /// # Errors
    /// If it is not one.
    pub fn address(&self, long: &str, default_port: Option<u16>) -> Result<Option<Address>, Exit> {
        self.value(long, |value| {
            not_empty(value)?;
            Address::parse(value, default_port).map_err(|error| error.to_string())
        })
    }

    /// A list of addresses; `None` if the option is absent.
    ///
    /// # Errors
    /// If one is wrong.
    pub fn addresses(&self, long: &str) -> Result<Option<Vec<Address>>, Exit> {
        self.value(long, |value| Address::parse_list(value).map_err(|e: AddressError| e))
    }

    /// One of some words.
    ///
    /// # Errors
    /// If it is another one.
    pub fn choice<T: Copy>(&self, long: &str, choices: &[(&str, T)]) -> Result<Option<T>, Exit> {
        self.value(long, |value| {
            let found = choices.iter().find(|(name, _)| *name == value);
            found.map(|(_, choice)| *choice).ok_or_else(|| {
                let names: Vec<String> =
                    choices.iter().map(|(name, _)| format!("'{name}'")).collect();
                format!("invalid choice: '{value}' (choose from {})", names.join(", "))
            })
        })
    }

    /// Positional arguments.
    pub fn positionals(&self) -> &[String] {
        self.command_line.positionals()
    }

    /// Whether an option is on the command line.
    pub fn is_on_command_line(&self, long: &str) -> bool {
        !self.command_line.values(self.table.option(long)).is_empty()
    }

    /// Warns about an option of version 0.9 that does nothing, if it is used.
    pub fn warn_ignored(&mut self, long: &str, why: &str) {
        if self.is_on_command_line(long) {
            let label = self.table.option(long).label();
            self.warnings.push(format!("{label} is ignored: {why}"));
        }
    }

    /// A wrong command line.
    pub fn error(&self, message: impl fmt::Display) -> Exit {
        self.table.error(message)
    }

    /// A wrong configuration, whose message upstream gives without anything around.
    pub fn failure(&self, message: impl fmt::Display) -> Exit {
        Exit { status: 1, stdout: String::new(), stderr: format!("{message}\n") }
    }

    /// Ends parsing.
    pub fn loaded<T>(self, options: T) -> Loaded<T> {
        Loaded { options, warnings: self.warnings }
    }
}

fn not_empty(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("value is empty".into()) } else { Ok(value.into()) }
}

/// Python allows spaces around numbers and single underscores between digits.
fn python_number(value: &str) -> Option<String> {
    let value = value.trim();
    let bytes = value.as_bytes();
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'_') {
        let is_digit = |index: Option<usize>| {
            index.and_then(|index| bytes.get(index)).is_some_and(u8::is_ascii_digit)
        };
        if !is_digit(index.checked_sub(1)) || !is_digit(Some(index + 1)) {
            return None;
        }
    }
    Some(value.replace('_', ""))
}
