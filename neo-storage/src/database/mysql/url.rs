// SPDX-License-Identifier: GPL-2.0-or-later
//! `--database` of the MySQL backend, and where the server is.
//!
//! ```text
//! [user[:password]@]database[unix_socket]
//! [user[:password]@]database//host[:port]
//! ```
//!
//! The first form is upstream's (storage/database/mysql.py, `_parse`): the socket starts at the first
//! `~`, `.` or `/` after the name of the database; the user ends at the first `:`; the password ends
//! at the last `@` that is followed by the name of a database, so it may have any character.
//!
//! The second form is an extension, for a server of another machine. It is not mistaken for the
//! first one: it would be a socket in the root directory, written with two slashes, and if there is
//! such a socket, it is that.
//!
//! Without a socket, the connection goes to that of the server of this machine, where the client
//! library of MySQL would look: `MYSQL_UNIX_PORT`, else the usual places.

use std::fmt;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::database::Error;

/// Where packages of MariaDB and MySQL put the socket of the server.
const SOCKETS: &[&str] = &[
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/run/mysql/mysql.sock",
    "/var/run/mysql/mysql.sock",
    "/run/mariadb/mariadb.sock",
    "/tmp/mysql.sock",
    "/var/mysql/mysql.sock",
];

/// Port of MySQL.
const PORT: u16 = 3306;

/// Parsed `--database`.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// `None`: the user that runs the process.
    pub user: Option<String>,
    /// `None`: no password.
    pub password: Option<String>,
    /// Name of the database, which must exist.
    pub database: String,
    /// Where the server is.
    pub place: Place,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// The socket that the client library would use.
    DefaultSocket,
    /// Path of a unix socket.
    Socket(String),
    /// Address of another machine.
    Tcp(String, u16),
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Url")
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .field("database", &self.database)
            .field("place", &self.place)
            .finish()
    }
}

impl Url {
    /// Parses a database string. `home` is what a leading `~` of the socket stands for.
    pub fn parse(text: &str, home: Option<&str>) -> Result<Self, Error> {
        let (account, rest) = split_account(text);
        let end = rest.find(['~', '.', '/']).unwrap_or(rest.len());
        let (database, place) = rest.split_at(end);
        // A user that is empty, or a missing name.
        if database.is_empty() || account.is_none() && database.contains([':', '@']) {
            return Err(Error::Url(
                "it must be [user[:password]@]database[unix_socket]; \
                 a literal % of a configuration file is written %%"
                    .into(),
            ));
        }
        let place = match place {
            "" => Place::DefaultSocket,
            place => match place.strip_prefix("//").filter(|host| !host.contains('/')) {
                Some(host) if !is_socket(place) => tcp(host)?,
                _ => Place::Socket(expand_user(place, home)),
            },
        };
        let (user, password) = account.unwrap_or_default();
        Ok(Self { user, password, database: database.into(), place })
    }

    /// The user to connect as.
    pub fn user(&self) -> Option<String> {
        self.user.clone().or_else(current_user)
    }

    /// For messages: without the password.
    pub fn describe(&self) -> String {
        let place = match &self.place {
            Place::DefaultSocket => "the default socket".into(),
            Place::Socket(path) => path.clone(),
            Place::Tcp(host, port) => format!("{host}:{port}"),
        };
        let user = self.user().unwrap_or_default();
        format!("database {:?} as user {user:?} on {place}", self.database)
    }
}

type Account = (Option<String>, Option<String>);

/// The part before the `@` that ends the account, and the part after it.
fn split_account(text: &str) -> (Option<Account>, &str) {
    // What follows must begin with the name of a database.
    let ends = |text: &str| {
        text.rmatch_indices('@')
            .map(|(at, _)| at)
            .find(|at| text[at + 1..].starts_with(|first| !matches!(first, '~' | '.' | '/')))
    };
    let colon = text.find(':').unwrap_or(text.len());
    if colon != 0
        && colon != text.len()
        && let Some(end) = ends(&text[colon + 1..])
    {
        let (password, rest) = text[colon + 1..].split_at(end);
        return (Some((Some(text[..colon].into()), Some(password.into()))), &rest[1..]);
    }
    // The last `@` before any colon; the rest may have others.
    let end = text[..colon]
        .rmatch_indices('@')
        .map(|(at, _)| at)
        .find(|at| text[at + 1..].starts_with(|first| !matches!(first, '~' | '.' | '/')));
    match end {
        Some(end) if end != 0 => (Some((Some(text[..end].into()), None)), &text[end + 1..]),
        _ => (None, text),
    }
}

fn tcp(address: &str) -> Result<Place, Error> {
    let bad = || Error::Url(format!("bad address of a server: {address:?}"));
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(bad)?;
            (
                host,
                if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(bad)?) },
            )
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?,
        None => PORT,
    };
    if host.is_empty() || host.contains(['@', '[', ']']) {
        return Err(bad());
    }
    Ok(Place::Tcp(host.into(), port))
}

fn expand_user(path: &str, home: Option<&str>) -> String {
    match (path.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            format!("{home}{rest}")
        }
        _ => path.into(),
    }
}

fn is_socket(path: impl AsRef<Path>) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// The socket that the client library of MySQL would use. `configured` is `MYSQL_UNIX_PORT`.
pub fn default_socket(configured: Option<&str>) -> String {
    if let Some(path) = configured.filter(|path| !path.is_empty()) {
        return path.into();
    }
    // If there is none, the first one is as good as any for the message.
    let found = SOCKETS.iter().find(|path| is_socket(path));
    (*found.unwrap_or(&SOCKETS[0])).into()
}

/// Who runs the process, as the client library of MySQL sees it.
fn current_user() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let uid = fs::metadata("/proc/self").ok()?.uid();
    if uid == 0 {
        return Some("root".into());
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = uid.to_string();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.or_else(|| std::env::var("USER").ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Option<String>, Option<String>, String, Place), String> {
        let url = Url::parse(text, Some("/home/neo")).map_err(|error| error.to_string())?;
        Ok((url.user, url.password, url.database, url.place))
    }

    fn expected(
        user: Option<&str>,
        password: Option<&str>,
        database: &str,
        place: Place,
    ) -> Result<(Option<String>, Option<String>, String, Place), String> {
        Ok((user.map(Into::into), password.map(Into::into), database.into(), place))
    }

    /// What the regular expression of upstream does with each string.
    #[test]
    fn the_grammar_is_that_of_upstream() {
        use Place::DefaultSocket;
        let socket = |path: &str| Place::Socket(path.into());
        for (text, wanted) in [
            ("neo", expected(None, None, "neo", DefaultSocket)),
            ("neo1@neo", expected(Some("neo1"), None, "neo", DefaultSocket)),
            ("u:p@neo", expected(Some("u"), Some("p"), "neo", DefaultSocket)),
            ("u:@neo", expected(Some("u"), Some(""), "neo", DefaultSocket)),
            ("u:p@w:d@neo", expected(Some("u"), Some("p@w:d"), "neo", DefaultSocket)),
            ("u:p:@neo", expected(Some("u"), Some("p:"), "neo", DefaultSocket)),
            ("u@neo/s.sock", expected(Some("u"), None, "neo", socket("/s.sock"))),
            ("u@my-db.sock", expected(Some("u"), None, "my-db", socket(".sock"))),
            ("u:p@neo~/run/s", expected(Some("u"), Some("p"), "neo", socket("/home/neo/run/s"))),
            ("neo~other/s", expected(None, None, "neo", socket("~other/s"))),
            ("neo./a.sock", expected(None, None, "neo", socket("./a.sock"))),
            ("a.b@neo", expected(Some("a.b"), None, "neo", DefaultSocket)),
            ("u:a/b.c~d@neo", expected(Some("u"), Some("a/b.c~d"), "neo", DefaultSocket)),
            // The last `@`, even if it was meant to be in the path.
            ("u:p@neo/a@b", expected(Some("u"), Some("p@neo/a"), "b", DefaultSocket)),
            // ... unless no database can follow.
            ("u:p@neo/a@/b", expected(Some("u"), Some("p"), "neo", socket("/a@/b"))),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
        for text in ["", "/socket", "~/socket", "u@", "u:p@", ":p@neo", "@neo", "u@/s"] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn a_host_is_not_a_socket() {
        let tcp = |host: &str, port| Place::Tcp(host.into(), port);
        for (text, wanted) in [
            ("u:p@neo//db.example.com", tcp("db.example.com", 3306)),
            ("u:p@neo//127.0.0.1:3307", tcp("127.0.0.1", 3307)),
            ("neo//[::1]:3307", tcp("::1", 3307)),
            ("neo//[::1]", tcp("::1", 3306)),
            ("neo//run/mysqld.sock", Place::Socket("//run/mysqld.sock".into())),
        ] {
            assert_eq!(parse(text).map(|url| url.3), Ok(wanted), "{text}");
        }
        for text in ["neo//", "neo//:3306", "neo//h:x", "neo//h:0", "neo//[::1", "neo//[::1]3"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_socket() {
        assert_eq!(default_socket(Some("/a/b")), "/a/b");
        let found = default_socket(Some(""));
        assert!(SOCKETS.contains(&found.as_str()));
    }

    #[test]
    fn passwords_are_not_shown() {
        let url = Url::parse("u:secret@neo", None).unwrap();
        assert!(!format!("{url:?} {}", url.describe()).contains("secret"));
    }
}
