// SPDX-License-Identifier: GPL-2.0-or-later
//! Arguments of the command line: `--name value`, nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use neo_client::Options;

use crate::Failure;

/// See the module documentation.
#[derive(Debug)]
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// From the words after the command.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut found = BTreeMap::new();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else {
                return Err(format!("unexpected argument {word:?}").into());
            };
            let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
            found.insert(name.to_owned(), value);
        }
        Ok(Self(found))
    }

    /// A value that must be there.
    pub fn text(&self, name: &str) -> Result<&str, Failure> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("--{name} is missing").into())
    }

    /// A path that must be there.
    pub fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        self.text(name).map(PathBuf::from)
    }

    /// A number that must be there.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<T, Failure> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("--{name} {text:?} is not a number").into())
    }

    /// How to open a client.
    pub fn client_options(&self) -> Result<Options, Failure> {
        let masters = self.text("masters")?.split(',').map(str::parse);
        let masters = masters.collect::<Result<Vec<SocketAddr>, _>>()?;
        Ok(Options::new(self.text("cluster")?, masters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments, Failure> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn names_have_values() {
        let arguments = parse("--threads 3 --masters 127.0.0.1:1,[::1]:2 --cluster c").unwrap();
        assert_eq!(arguments.number::<usize>("threads").unwrap(), 3);
        assert!(arguments.number::<usize>("cluster").is_err());
        assert!(arguments.text("history").is_err());
        assert_eq!(arguments.client_options().unwrap().masters.len(), 2);
        assert!(parse("threads 3").is_err());
        assert!(parse("--threads").is_err());
    }
}
