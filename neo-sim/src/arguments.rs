// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line.

use std::time::Duration;

use neo_common::planted::Bug;
use neo_sim::faults::{Kinds, Level};
use neo_sim::run::Settings;

/// What `--help` prints.
pub const USAGE: &str = "\
Usage: neo-sim [OPTIONS]

Runs simulated clusters, whose faults are drawn from a seed, and checks what they do.

  --seed N            run one seed
  --trace             with --seed: print the story (packets, faults, states)
  --twice             with --seed: run it twice and compare (of many seeds, some are)
  --shrink            with --seed: if it fails, look for fewer kinds of faults, fewer clients and a
                      shorter time with which it still fails in the same way
  --log LEVEL         with --seed: print what the nodes log (error, warn, info, debug, trace)
  --seeds N           run that many seeds (default: 100)
  --first N           first of them (default: 0)
  --faults LEVEL      off, lite, swarm; default: depends on the seed, mostly swarm
  --only-faults LIST  only these kinds of faults and actions, with commas between them, or `none`
  --without LIST      none of these kinds
  --kinds             print all kinds
  --clients N         clients at most, each with an application (default: depends on the seed)
  --replicas N        copies of each partition beside the first, where there are enough storages
                      (default: depends on the seed, 0 to 2)
  --duration SECONDS  how long there are faults, in simulated time (default: 40)
  --planted BUG       give the nodes a deliberate mistake (in builds of scripts/planted only)
  --bugs              print these mistakes
  --progress          of many seeds: say on standard error how far it is, every 30 s
  --markdown          of many seeds: print the figures as tables for docs/simulation.md
  --jobs N            how many run at once (default: number of cores)

The exit status is 0 if all is right, 1 if some seed fails, 2 if the command line is wrong.
";

/// Default of `--duration`.
const DURATION: Duration = Duration::from_secs(40);

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Run one seed.
    One(u64),
    /// Run one seed with less and less.
    Shrink(u64),
    /// Print the kinds of faults.
    Kinds,
    /// Run many.
    Many {
        /// First seed.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Print the planted bugs.
    Bugs,
    /// Run the seeds that are read from standard input.
    Worker,
}

/// The command line, parsed.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// What to do.
    pub mode: Mode,
    /// Prints the story.
    pub trace: bool,
    /// Prints what nodes log.
    pub log: Option<log::LevelFilter>,
    /// `None`: depends on the seed.
    pub level: Option<Level>,
    /// How long there are faults.
    pub duration: Duration,
    /// Replicas, at most; `None`: drawn.
    pub replicas: Option<u32>,
    /// Clients, at most; `None`: drawn.
    pub clients: Option<usize>,
    /// Kinds of faults that there may be.
    pub kinds: Kinds,
    /// Runs it twice.
    pub twice: bool,
    /// Says how far it is.
    pub progress: bool,
    /// Prints the figures as tables.
    pub markdown: bool,
    /// How many run at once.
    pub jobs: usize,
    /// A deliberate mistake of the nodes.
    pub planted: Option<Bug>,
}

impl Arguments {
    /// Parses. `None`: help is wanted.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut result = Self {
            mode: Mode::Many { first: 0, count: 100 },
            trace: false,
            log: None,
            level: None,
            duration: DURATION,
            replicas: None,
            clients: None,
            kinds: Kinds::ALL,
            twice: false,
            progress: false,
            markdown: false,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            planted: None,
        };
        let (mut seed, mut first, mut count, mut is_worker) = (None, 0, 100, false);
        let (mut is_list, mut prints_kinds, mut shrinks) = (false, false, false);
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (name, mut inline) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut value = || {
                let value = inline.take().or_else(|| arguments.next());
                value.ok_or_else(|| format!("{name} needs a value"))
            };
            match name.as_str() {
                "-h" | "--help" => return Ok(None),
                "--seed" => seed = Some(number(&value()?)?),
                "--seeds" => count = number(&value()?)?,
                "--first" => first = number(&value()?)?,
                "--jobs" => result.jobs = number(&value()?)?.max(1) as usize,
                "--duration" => result.duration = Duration::from_secs(number(&value()?)?),
                "--replicas" => result.replicas = Some(number(&value()?)?.min(10) as u32),
                "--clients" => result.clients = Some(number(&value()?)?.clamp(1, 10) as usize),
                "--only-faults" => result.kinds = result.kinds.and(Kinds::parse(&value()?)?),
                "--without" => {
                    result.kinds = result.kinds.minus(Kinds::parse(&value()?)?);
                }
                "--kinds" => prints_kinds = true,
                "--progress" => result.progress = true,
                "--markdown" => result.markdown = true,
                "--twice" => result.twice = true,
                "--shrink" => shrinks = true,
                "--faults" => result.level = Some(level(&value()?)?),
                "--log" => {
                    let text = value()?;
                    let level = text.parse().map_err(|_| format!("no such level: {text}"))?;
                    result.log = Some(level);
                }
                "--planted" => result.planted = Some(bug(&value()?)?),
                "--bugs" => is_list = true,
                "--trace" => result.trace = true,
                "--worker" => is_worker = true,
                _ => return Err(format!("no such option: {name}")),
            }
            if inline.is_some() {
                return Err(format!("{name} takes no value"));
            }
        }
        result.mode = match seed {
            _ if is_worker => Mode::Worker,
            _ if is_list => Mode::Bugs,
            _ if prints_kinds => Mode::Kinds,
            Some(seed) if shrinks => Mode::Shrink(seed),
            Some(seed) => Mode::One(seed),
            None => Mode::Many { first, count },
        };
        if (result.trace || result.log.is_some()) && !matches!(result.mode, Mode::One(_)) {
            return Err("--trace and --log go with --seed".into());
        }
        if (shrinks || result.twice) && seed.is_none() {
            return Err("--twice and --shrink go with --seed".into());
        }
        Ok(Some(result))
    }

    /// Settings of a seed.
    pub fn settings(&self, seed: u64) -> Settings {
        let level = self.level.unwrap_or(match seed % 10 {
            0 => Level::Off,
            1 | 2 => Level::Lite,
            _ => Level::Swarm,
        });
        let Self { duration, trace, replicas, clients, kinds, .. } = *self;
        Settings { seed, level, duration, trace, replicas, clients, kinds }
    }

    /// The options that change what a seed does, as they are written.
    pub fn repeated(&self) -> Vec<String> {
        let mut options = Vec::new();
        if let Some(level) = self.level {
            options.push(format!("--faults={}", format!("{level:?}").to_lowercase()));
        }
        if self.duration != DURATION {
            options.push(format!("--duration={}", self.duration.as_secs()));
        }
        if let Some(replicas) = self.replicas {
            options.push(format!("--replicas={replicas}"));
        }
        if let Some(clients) = self.clients {
            options.push(format!("--clients={clients}"));
        }
        let without = Kinds::ALL.minus(self.kinds);
        if without != Kinds::NONE {
            // The shorter list.
            options.push(match without.iter().count() < self.kinds.iter().count() {
                true => format!("--without={without}"),
                false => format!("--only-faults={}", self.kinds),
            });
        }
        if let Some(bug) = self.planted {
            options.push(format!("--planted={}", bug.name()));
        }
        options
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}

fn bug(text: &str) -> Result<Bug, String> {
    Bug::of_name(text).ok_or_else(|| format!("no such planted bug: {text}"))
}

fn level(text: &str) -> Result<Level, String> {
    match text {
        "off" => Ok(Level::Off),
        "lite" => Ok(Level::Lite),
        "swarm" => Ok(Level::Swarm),
        _ => Err(format!("no such level of faults: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use neo_sim::faults::Kind;

    use super::*;

    fn parse(text: &str) -> Result<Option<Arguments>, String> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn modes_and_values_are_parsed_and_mistakes_refused() {
        let arguments = parse("--seeds 7 --first=3 --faults lite").unwrap().unwrap();
        assert_eq!(arguments.mode, Mode::Many { first: 3, count: 7 });
        assert_eq!(arguments.repeated(), ["--faults=lite"]);
        let arguments = parse("--planted=wrongnexttid --seeds 3").unwrap().unwrap();
        assert_eq!(arguments.repeated(), ["--planted=WrongNextTid"]);
        let arguments = parse("--seed 5 --trace").unwrap().unwrap();
        assert_eq!(arguments.mode, Mode::One(5));
        assert!(arguments.trace && arguments.repeated().is_empty());
        assert!(parse("--help").unwrap().is_none());
        let arguments =
            parse("--seed 5 --shrink --without cut,power --clients 2").unwrap().unwrap();
        assert_eq!(arguments.mode, Mode::Shrink(5));
        assert!(!arguments.kinds.has(Kind::Cut) && arguments.kinds.has(Kind::Reset));
        assert_eq!(arguments.repeated(), ["--clients=2", "--without=power,cut"]);
        let arguments = parse("--only-faults cut,power --without power --replicas 0").unwrap();
        assert_eq!(arguments.unwrap().repeated(), ["--replicas=0", "--only-faults=cut"]);
        let arguments = parse("--only-faults=none").unwrap().unwrap();
        assert_eq!(arguments.repeated(), ["--only-faults=none"]);
        for wrong in ["--shrink", "--twice --seeds 3", "--without", "--only-faults cut,nothing"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for wrong in
            ["--seed", "--seed x", "--trace", "--trace=1 --seed 1", "--what", "--faults no"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
