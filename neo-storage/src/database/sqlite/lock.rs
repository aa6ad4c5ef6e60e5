// SPDX-License-Identifier: GPL-2.0-or-later
//! Exclusion of other storage nodes: one process per database file, ours or upstream's.
//!
//! An abstract Unix socket is named after the device and the inode of the file. It goes away with
//! the process, however it ends, and it does not prevent others from reading the file.
//! Upstream: storage/database/manager.py, `lockFile`.

// It waits, before there is anything else to do.
#![allow(clippy::disallowed_methods)]

use std::fs::Metadata;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::thread;
use std::time::Duration;

use crate::database::Error;

/// A process that starts another one shares its sockets with it for an instant, so that the name of
/// a lock that was just released may still be in use.
const ATTEMPTS: u32 = 20;

/// See [`ATTEMPTS`].
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// Held as long as the database is open.
#[derive(Debug)]
pub struct FileLock {
    // Nobody connects to it: only the name matters.
    _socket: UnixListener,
}

impl FileLock {
    /// Takes the lock of the file with this metadata.
    ///
    /// Only a `stat` is needed, and that matters: if this process already has the database open,
    /// opening and closing the file once more would drop the POSIX locks of SQLite.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if another node has it.
    pub fn acquire(metadata: &Metadata) -> Result<Self, Error> {
        let failure = |cause: io::Error| Error::Backend("lock".into(), Box::new(cause));
        let name = format!("neostorage:{}:{}", metadata.dev(), metadata.ino());
        let address = SocketAddr::from_abstract_name(name).map_err(failure)?;
        for attempt in 1.. {
            match UnixListener::bind_addr(&address) {
                Ok(socket) => return Ok(Self { _socket: socket }),
                Err(cause) if cause.kind() != io::ErrorKind::AddrInUse => {
                    return Err(failure(cause));
                }
                Err(_) if attempt == ATTEMPTS => break,
                Err(_) => thread::sleep(RETRY_DELAY),
            }
        }
        Err(Error::Locked)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_file_is_locked_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let file = File::create(&path).unwrap().metadata().unwrap();
        let lock = FileLock::acquire(&file).unwrap();
        // Another name of the same file is the same file.
        let link = directory.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        let link = fs::metadata(&link).unwrap();
        assert!(matches!(FileLock::acquire(&link), Err(Error::Locked)));
        drop(lock);
        FileLock::acquire(&link).unwrap();
    }
}
