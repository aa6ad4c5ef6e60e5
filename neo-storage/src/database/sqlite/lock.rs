// SPDX-License-Identifier: GPL-2.0-or-later
//! Exclusion of other storage nodes: one process per database file, ours or upstream's.
//!
//! An abstract Unix socket is named after the device and the inode of the file. It goes away with
//! the process, however it ends, and it does not prevent others from reading the file.
//! Upstream: storage/database/manager.py, `lockFile`.

use std::fs::Metadata;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::database::Error;

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
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => Err(Error::Locked),
            Err(cause) => Err(failure(cause)),
        }
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
