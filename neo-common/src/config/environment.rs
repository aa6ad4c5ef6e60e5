// SPDX-License-Identifier: GPL-2.0-or-later
//! What parsing needs from outside: the configuration file and home directories.

use std::io;
use std::path::{Path, PathBuf};

/// The outside, as parsing sees it.
pub trait Environment {
    /// Content of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Home directory of a user, or of the current one; `None` if unknown.
    fn home(&self, user: Option<&str>) -> Option<String>;
}

/// Replaces a leading `~` or `~user` by the home directory. What cannot be replaced stays, as with
/// Python's `expanduser`.
pub fn expand_user(env: &impl Environment, path: &str) -> PathBuf {
    let Some(rest) = path.strip_prefix('~') else { return path.into() };
    let end = rest.find('/').unwrap_or(rest.len());
    let user = Some(&rest[..end]).filter(|user| !user.is_empty());
    match env.home(user) {
        Some(home) => {
            let expanded = format!("{}{}", home.trim_end_matches('/'), &rest[end..]);
            if expanded.is_empty() { "/".into() } else { expanded.into() }
        }
        None => path.into(),
    }
}

/// One file, whatever its path, and one home directory, whoever it is: for tests and fuzzing.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// Content of any file; none exists if `None`.
    pub file: Option<Vec<u8>>,
    /// Home directory of the current user; others have none.
    pub home: Option<String>,
}

impl Environment for Fixed {
    fn read(&self, _path: &Path) -> io::Result<Vec<u8>> {
        self.file.clone().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn home(&self, user: Option<&str>) -> Option<String> {
        self.home.clone().filter(|_| user.is_none())
    }
}

/// The real one.
#[cfg(feature = "net")]
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

#[cfg(feature = "net")]
impl Environment for System {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut content = Vec::new();
        // One more byte than allowed, so that the parser sees that there is too much.
        let limit = crate::limits::CONFIG_BYTES_MAX as u64 + 1;
        std::fs::File::open(path)?.take(limit).read_to_end(&mut content)?;
        Ok(content)
    }
    fn home(&self, user: Option<&str>) -> Option<String> {
        match user {
            None => std::env::var("HOME").ok().or_else(|| {
                let uid = user_number()?;
                passwd_home(|fields| fields.get(2) == Some(&uid.as_str()))
            }),
            Some(user) => passwd_home(|fields| fields.first() == Some(&user)),
        }
    }
}

/// Number of the user that runs this process, as text.
#[cfg(feature = "net")]
fn user_number() -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").ok().map(|metadata| metadata.uid().to_string())
}

#[cfg(feature = "net")]
fn passwd_home(is_user: impl Fn(&[&str]) -> bool) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5)?;
        is_user(&fields).then(|| (*home).to_owned())
    })
}

/// The arguments of this process, without the name of the program.
///
/// # Errors
/// If one is not UTF-8.
#[cfg(feature = "net")]
pub fn arguments(program: &str) -> Result<Vec<String>, super::Exit> {
    std::env::args_os()
        .skip(1)
        .map(|arg| {
            arg.into_string().map_err(|arg| super::Exit {
                status: 2,
                stdout: String::new(),
                stderr: format!("{program}: error: argument is not UTF-8: {arg:?}\n"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `~` is the home directory, alone or before a slash; `~user` asks for that user.
    #[test]
    fn home_directories() {
        let env = Fixed { home: Some("/home/neo".into()), ..Fixed::default() };
        for (path, expanded) in [
            ("~", "/home/neo"),
            ("~/log/x", "/home/neo/log/x"),
            ("~other/x", "~other/x"),
            ("a~/x", "a~/x"),
            ("", ""),
            ("/~", "/~"),
        ] {
            assert_eq!(expand_user(&env, path), PathBuf::from(expanded));
        }
        let root = Fixed { home: Some("/".into()), ..Fixed::default() };
        assert_eq!(expand_user(&root, "~"), PathBuf::from("/"));
        assert_eq!(expand_user(&root, "~/x"), PathBuf::from("/x"));
        assert_eq!(expand_user(&Fixed::default(), "~/x"), PathBuf::from("~/x"));
    }

    /// The real environment knows the home directory of root.
    #[cfg(feature = "net")]
    #[test]
    fn real_users() {
        assert_eq!(System.home(Some("root")).as_deref(), Some("/root"));
        assert_eq!(System.home(Some("no such user")), None);
        assert!(System.read(Path::new("/no/such/file")).is_err());
        let uid = user_number().unwrap();
        assert!(uid.parse::<u32>().is_ok());
    }
}
