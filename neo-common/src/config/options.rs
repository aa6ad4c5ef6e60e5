// SPDX-License-Identifier: GPL-2.0-or-later
//! Option tables, and what a command line may look like.
//!
//! Crate getopts parses, behind a resolver that rewrites each command line into the only form on
//! which getopts and Python's argparse agree: `--name=value`, each name once, then `--`, then
//! positional arguments. The resolver follows argparse:
//!
//! - long names may be shortened to a unique prefix; `_` is the same as `-`;
//! - `-p12`, `-p 12`, `-p=12`, `--partitions 12`, `--partitions=12`, and clusters as `-Bp12`;
//! - the last occurrence wins, except for repeatable options, which accumulate;
//! - what looks like a negative number, or contains a space, is a value even if it starts with `-`;
//! - `--` ends options; a table may take what follows the first positional argument as it is.

use super::Exit;

/// Since when, or until when, an option exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Era {
    /// In upstream's current branch.
    Current,
    /// Only in version 0.9. A prefix that is unique without these stays so.
    Old,
    /// Only here: not found by prefix, so that prefixes mean the same as upstream.
    Ours,
}

/// How often an option makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// The last value wins.
    LastWins,
    /// All values count.
    All,
}

/// One option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opt {
    /// One letter, if any.
    pub short: Option<char>,
    /// Name after `--`; with `_` instead of `-` it is the key in configuration files.
    pub long: &'static str,
    /// Placeholder of the value in the help; `None` for a flag.
    pub hint: Option<&'static str>,
    /// One sentence for the help.
    pub help: &'static str,
    /// Used if neither the command line nor the file says anything.
    pub default: Option<&'static str>,
    /// Whether the command line or the file must have it.
    pub is_required: bool,
    /// How often it makes sense.
    pub repeat: Repeat,
    /// Since or until when it exists.
    pub era: Era,
}

impl Opt {
    /// An option with a value.
    pub const fn value(
        short: Option<char>,
        long: &'static str,
        hint: &'static str,
        help: &'static str,
    ) -> Self {
        Self { hint: Some(hint), ..Self::flag(short, long, help) }
    }
    /// An option without value.
    pub const fn flag(short: Option<char>, long: &'static str, help: &'static str) -> Self {
        Self {
            short,
            long,
            hint: None,
            help,
            default: None,
            is_required: false,
            repeat: Repeat::LastWins,
            era: Era::Current,
        }
    }
    /// With a default value.
    pub const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
    /// That must be given.
    pub const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }
    /// That accumulates.
    pub const fn repeatable(self) -> Self {
        Self { repeat: Repeat::All, ..self }
    }
    /// Of version 0.9.
    pub const fn old(self) -> Self {
        Self { era: Era::Old, ..self }
    }
    /// That upstream does not have.
    pub const fn ours(self) -> Self {
        Self { era: Era::Ours, ..self }
    }
    /// Name in messages: `-p/--partitions`.
    pub fn label(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}/--{}", self.long),
            None => format!("--{}", self.long),
        }
    }
}

/// What an executable accepts.
#[derive(Clone, Debug)]
pub struct Table {
    /// Name in messages.
    pub program: &'static str,
    /// First line of the help.
    pub description: &'static str,
    /// Options, in the order of the help; `--help` and `--version` are added.
    pub options: Vec<Opt>,
    /// Placeholders of positional arguments in the usage, or "" if there is none.
    pub positionals: &'static str,
    /// Whether all that follows the first positional argument is taken as it is.
    pub takes_remainder: bool,
}

const HELP: Opt = Opt::flag(Some('h'), "help", "show this help and exit");
const VERSION: Opt = Opt::flag(None, "version", "show the version and exit").ours();

/// A command line that was understood; values have no type yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandLine {
    matches: getopts::Matches,
}

impl CommandLine {
    /// Values of an option, in order. A flag that is there has one empty value.
    pub fn values(&self, option: &Opt) -> Vec<String> {
        match option.hint {
            Some(_) => self.matches.opt_strs(option.long),
            None if self.matches.opt_present(option.long) => vec![String::new()],
            None => Vec::new(),
        }
    }
    /// Positional arguments.
    pub fn positionals(&self) -> &[String] {
        &self.matches.free
    }
}

impl Table {
    /// Understands a command line (without the name of the program).
    ///
    /// # Errors
    /// [`Exit`] to print the help or the version, or if something is wrong.
    pub fn parse(&self, args: &[String]) -> Result<CommandLine, Exit> {
        let canonical = Resolver::new(self).resolve(args)?;
        let matches = self.getopts().parse(canonical).map_err(|fail| self.error(fail))?;
        Ok(CommandLine { matches })
    }

    /// The option with that long name.
    ///
    /// # Panics
    /// If the table has none: names are literals.
    pub fn option(&self, long: &str) -> &Opt {
        let found = self.options.iter().find(|option| option.long == long);
        found.unwrap_or_else(|| panic!("no option --{long} in the table of {}", self.program))
    }

    /// A wrong command line.
    pub fn error(&self, message: impl std::fmt::Display) -> Exit {
        Exit::usage(self.program, &self.usage(), message)
    }

    /// Synopsis: `usage: neomaster [-h] [-l FILE] ...`, wrapped.
    pub fn usage(&self) -> String {
        let mut words = Vec::new();
        for option in self.all().filter(|option| option.era != Era::Old) {
            let name = match option.short {
                Some(short) => format!("-{short}"),
                None => format!("--{}", option.long),
            };
            let value = option.hint.map_or_else(String::new, |hint| format!(" {hint}"));
            words.push(match option.is_required {
                true => format!("{name}{value}"),
                false => format!("[{name}{value}]"),
            });
        }
        words.extend(Some(self.positionals.to_owned()).filter(|text| !text.is_empty()));
        let indent = " ".repeat("usage: ".len() + self.program.len());
        let mut lines = vec![format!("usage: {}", self.program)];
        for word in words {
            match lines.last_mut() {
                Some(line) if line.len() + word.len() < 79 => *line += &format!(" {word}"),
                _ => lines.push(format!("{indent} {word}")),
            }
        }
        lines.join("\n")
    }

    /// Help: synopsis, description, a paragraph per option.
    pub fn help(&self) -> String {
        let brief = format!("{}\n\n{}", self.usage(), self.description);
        self.getopts().usage(&brief)
    }

    fn all(&self) -> impl Iterator<Item = &Opt> {
        [&HELP, &VERSION].into_iter().chain(&self.options)
    }

    /// The table as getopts wants it.
    fn getopts(&self) -> getopts::Options {
        let mut options = getopts::Options::new();
        for option in self.all() {
            let short = option.short.map_or_else(String::new, |short| short.to_string());
            let mut help = option.help.to_owned();
            if let Some(default) = option.default {
                help += &format!(" (default: {default})");
            }
            let occur = match option.repeat {
                Repeat::LastWins => getopts::Occur::Optional,
                Repeat::All => getopts::Occur::Multi,
            };
            let (has_arg, hint) = match option.hint {
                Some(hint) => (getopts::HasArg::Yes, hint),
                None => (getopts::HasArg::No, ""),
            };
            options.opt(&short, option.long, &help, hint, has_arg, occur);
        }
        options
    }
}

/// Rewrites a command line for getopts.
struct Resolver<'a> {
    table: &'a Table,
    found: Vec<(&'a Opt, Option<String>)>,
    positionals: Vec<String>,
    unrecognized: Vec<String>,
}

impl<'a> Resolver<'a> {
    fn new(table: &'a Table) -> Self {
        Self { table, found: Vec::new(), positionals: Vec::new(), unrecognized: Vec::new() }
    }

    fn resolve(mut self, args: &[String]) -> Result<Vec<String>, Exit> {
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                self.positionals.extend(args.by_ref().cloned());
            } else if let Some(long) = arg.strip_prefix("--").filter(|_| !arg.contains(' ')) {
                self.long(arg, long, &mut args)?;
            } else if let Some(long) = arg.strip_prefix("--").filter(|long| long.contains('=')) {
                // With a space in its value.
                self.long(arg, long, &mut args)?;
            } else if self.is_short(arg) {
                self.short(&arg[1..], &mut args)?;
            } else if is_value(arg) {
                self.positionals.push(arg.clone());
                if self.table.takes_remainder {
                    self.positionals.extend(args.by_ref().cloned());
                }
            } else {
                self.unrecognized.push(arg.clone());
            }
        }
        if self.table.positionals.is_empty() {
            self.unrecognized.append(&mut self.positionals);
        }
        if !self.unrecognized.is_empty() {
            let message = format!("unrecognized arguments: {}", self.unrecognized.join(" "));
            return Err(self.table.error(message));
        }
        Ok(self.canonical())
    }

    fn is_short(&self, arg: &str) -> bool {
        let letter = arg.strip_prefix('-').and_then(|rest| rest.chars().next());
        letter.is_some_and(|letter| self.table.all().any(|option| option.short == Some(letter)))
    }

    /// `--name`, `--name=value` or `--name value`.
    fn long<'b>(
        &mut self,
        arg: &str,
        long: &str,
        args: &mut (impl Iterator<Item = &'b String> + Clone),
    ) -> Result<(), Exit> {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        match self.find(name)? {
            Some(option) => self.option(option, value, args),
            None => {
                self.unrecognized.push(arg.to_owned());
                Ok(())
            }
        }
    }

    /// Letters after `-`: flags, then maybe one with a value.
    fn short<'b>(
        &mut self,
        mut letters: &str,
        args: &mut (impl Iterator<Item = &'b String> + Clone),
    ) -> Result<(), Exit> {
        let mut previous: Option<&Opt> = None;
        while let Some(letter) = letters.chars().next() {
            let option = self.table.all().find(|option| option.short == Some(letter));
            let Some(option) = option else {
                let flag = previous.map_or_else(String::new, Opt::label);
                let message = format!("argument {flag}: ignored explicit argument '{letters}'");
                return Err(self.table.error(message));
            };
            letters = &letters[letter.len_utf8()..];
            if option.hint.is_some() || letters.starts_with('=') {
                let glued = letters.strip_prefix('=').unwrap_or(letters);
                let value = Some(glued).filter(|_| !letters.is_empty());
                return self.option(option, value, args);
            }
            self.option(option, None, args)?;
            previous = Some(option);
        }
        Ok(())
    }

    fn option<'b>(
        &mut self,
        option: &'a Opt,
        value: Option<&str>,
        args: &mut (impl Iterator<Item = &'b String> + Clone),
    ) -> Result<(), Exit> {
        let refused = |why: String| self.table.error(format!("argument {}: {why}", option.label()));
        let value = match (option.hint, value) {
            (None, Some(value)) => {
                return Err(refused(format!("ignored explicit argument '{value}'")));
            }
            (None, None) => None,
            (Some(_), Some(value)) => Some(value.to_owned()),
            (Some(_), None) => match args.clone().next() {
                Some(next) if next != "--" && !self.is_short(next) && is_value(next) => {
                    args.next().cloned()
                }
                _ => return Err(refused("expected one argument".into())),
            },
        };
        if *option == HELP {
            return Err(Exit::success(self.table.help()));
        }
        if *option == VERSION {
            let version = env!("CARGO_PKG_VERSION");
            return Err(Exit::success(format!("{} {version}\n", self.table.program)));
        }
        self.found.push((option, value));
        Ok(())
    }

    /// By exact name, else by prefix.
    fn find(&self, name: &str) -> Result<Option<&'a Opt>, Exit> {
        let name = name.replace('_', "-");
        let table: &'a Table = self.table;
        if let Some(option) = table.all().find(|option| option.long == name) {
            return Ok(Some(option));
        }
        for era in [Era::Current, Era::Old] {
            let candidates: Vec<&Opt> = table
                .all()
                .filter(|option| option.era == era && option.long.starts_with(&name))
                .collect();
            match candidates[..] {
                [] => {}
                [option] => return Ok(Some(option)),
                _ => {
                    let names: Vec<String> =
                        candidates.iter().map(|option| format!("--{}", option.long)).collect();
                    let names = names.join(", ");
                    let message = format!("ambiguous option: --{name} could match {names}");
                    return Err(self.table.error(message));
                }
            }
        }
        Ok(None)
    }

    fn canonical(self) -> Vec<String> {
        let mut args = Vec::new();
        let mut seen: Vec<&str> = Vec::new();
        for (option, value) in self.found.iter().rev() {
            if option.repeat == Repeat::LastWins {
                if seen.contains(&option.long) {
                    continue;
                }
                seen.push(option.long);
            }
            args.push(match value {
                Some(value) => format!("--{}={value}", option.long),
                None => format!("--{}", option.long),
            });
        }
        args.reverse();
        args.push("--".into());
        args.extend(self.positionals);
        args
    }
}

/// Whether an argument is a value rather than an option, as argparse sees it.
fn is_value(arg: &str) -> bool {
    match arg.strip_prefix('-') {
        None | Some("") => true,
        Some(rest) => is_number(rest) || arg.contains(' '),
    }
}

/// `5`, `.5` or `1.5`.
fn is_number(text: &str) -> bool {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once('.') {
        None => is_digits(text),
        Some((whole, fraction)) => is_digits(whole) && !fraction.is_empty() && is_digits(fraction),
    }
}
