// SPDX-License-Identifier: GPL-2.0-or-later
//! A file that is written under another name until it is whole.
//!
//! Its content can be changed and read back while it grows. If it is dropped before it is
//! published, nothing remains of it. A process that is killed leaves a file whose name says that it
//! is a part, and which is never taken for the whole: it must be removed by hand, because it may
//! also belong to another process that is still writing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::WriteError;

/// Bytes kept in memory before they are written.
const BUFFER_SIZE: usize = 1 << 20;

/// A file being written.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    path: PathBuf,
    /// Its name until it is published.
    part: PathBuf,
    published: bool,
    /// Where the buffer goes.
    start: u64,
    buffer: Vec<u8>,
}

impl Output {
    /// Refuses names in use.
    pub(crate) fn create(path: &Path) -> Result<Self, WriteError> {
        let part = with_suffix(path, ".part");
        // ZODB would trust an index left by another file, if that looked similar enough.
        for taken in [path, &with_suffix(path, ".index")] {
            match fs::symlink_metadata(taken) {
                Ok(_) => return Err(WriteError::Exists(taken.to_owned())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(WriteError::Io { path: taken.to_owned(), source }),
            }
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&part);
        match file {
            Ok(file) => Ok(Self {
                file,
                path: path.to_owned(),
                part,
                published: false,
                start: 0,
                buffer: Vec::with_capacity(BUFFER_SIZE),
            }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(WriteError::Exists(part)),
            Err(source) => Err(WriteError::Io { path: part, source }),
        }
    }

    /// Where the next bytes go.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Adds bytes at the end.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.buffer.len() + bytes.len() > BUFFER_SIZE {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_SIZE {
            self.file.write_all_at(bytes, self.start).map_err(|source| self.failed(source))?;
            self.start += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Changes bytes that were appended, in one piece, earlier.
    pub(crate) fn overwrite(&mut self, pos: u64, bytes: &[u8]) -> Result<(), WriteError> {
        assert!(pos + bytes.len() as u64 <= self.position(), "{pos} is beyond the end");
        match self.buffered(pos) {
            Some(offset) => self.buffer[offset..offset + bytes.len()].copy_from_slice(bytes),
            None => {
                self.file.write_all_at(bytes, pos).map_err(|source| self.failed(source))?;
            }
        }
        Ok(())
    }

    /// Reads back bytes that were appended, in one piece.
    pub(crate) fn read(&self, pos: u64, bytes: &mut [u8]) -> Result<(), WriteError> {
        assert!(pos + bytes.len() as u64 <= self.position(), "{pos} is beyond the end");
        match self.buffered(pos) {
            Some(offset) => bytes.copy_from_slice(&self.buffer[offset..offset + bytes.len()]),
            None => self.file.read_exact_at(bytes, pos).map_err(|source| self.failed(source))?,
        }
        Ok(())
    }

    /// Gives it its name, once everything is on disk.
    pub(crate) fn publish(mut self) -> Result<(), WriteError> {
        self.flush()?;
        self.file.sync_all().map_err(|source| self.failed(source))?;
        self.rename()?;
        self.published = true;
        // The name itself is data of the directory.
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| WriteError::Io { path: directory.to_owned(), source })
    }

    /// Renames, but not over a file that appeared meanwhile.
    fn rename(&self) -> Result<(), WriteError> {
        let failed = |source| WriteError::Io { path: self.path.clone(), source };
        match fs::hard_link(&self.part, &self.path) {
            Ok(()) => fs::remove_file(&self.part).map_err(|source| self.failed(source)),
            // Some file systems have no links. There, a file that appears between these two lines
            // would be lost.
            Err(_) if fs::symlink_metadata(&self.path).is_ok() => {
                Err(WriteError::Exists(self.path.clone()))
            }
            Err(_) => fs::rename(&self.part, &self.path).map_err(failed),
        }
    }

    /// Offset in the buffer of what is at `pos`, if it is there.
    fn buffered(&self, pos: u64) -> Option<usize> {
        pos.checked_sub(self.start).map(|offset| offset as usize)
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        self.file.write_all_at(&self.buffer, self.start).map_err(|source| self.failed(source))?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn failed(&self, source: io::Error) -> WriteError {
        WriteError::Io { path: self.part.clone(), source }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done if it fails, and its name tells what it is.
            let _ = fs::remove_file(&self.part);
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
