// SPDX-License-Identifier: GPL-2.0-or-later
//! Reading by position, with a window that moves forward.
//!
//! Nearly all reads are sequential: they are served from one buffer that is refilled from where the
//! reader is. Looks elsewhere (targets of back-pointers, the second length of a big transaction) do
//! not move it.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// Bytes of the window. Bigger does not read faster; the longest header (with its metadata, 3 times
/// 64 KiB) must fit.
pub(crate) const WINDOW_SIZE: usize = 512 << 10;

const _: () = assert!(
    WINDOW_SIZE > crate::format::TRANSACTION_HEADER_SIZE + 3 * crate::format::METADATA_SIZE_MAX
);

/// Something with bytes at positions.
pub trait ReadAt {
    /// Fills as much of `buffer` as it can with the bytes from `pos`; 0 at the end.
    ///
    /// # Errors
    /// Those of the operating system.
    fn read_at(&self, pos: u64, buffer: &mut [u8]) -> Result<usize>;

    /// Where it ends now.
    ///
    /// # Errors
    /// Those of the operating system.
    fn size(&self) -> Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, pos: u64, buffer: &mut [u8]) -> Result<usize> {
        FileExt::read_at(self, buffer, pos)
    }
    fn size(&self) -> Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl<F: ReadAt + ?Sized> ReadAt for std::sync::Arc<F> {
    fn read_at(&self, pos: u64, buffer: &mut [u8]) -> Result<usize> {
        (**self).read_at(pos, buffer)
    }
    fn size(&self) -> Result<u64> {
        (**self).size()
    }
}

/// Its position does not matter.
impl<T: AsRef<[u8]>> ReadAt for Cursor<T> {
    fn read_at(&self, pos: u64, buffer: &mut [u8]) -> Result<usize> {
        let bytes = self.get_ref().as_ref();
        let Some(bytes) = usize::try_from(pos).ok().and_then(|pos| bytes.get(pos..)) else {
            return Ok(0);
        };
        let size = bytes.len().min(buffer.len());
        buffer[..size].copy_from_slice(&bytes[..size]);
        Ok(size)
    }
    fn size(&self) -> Result<u64> {
        Ok(self.get_ref().as_ref().len() as u64)
    }
}

/// Fills `buffer` with the bytes from `pos` until it is full or there are no more; how many.
fn read_full(file: &impl ReadAt, pos: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(at) = pos.checked_add(done as u64) else { break };
        match file.read_at(at, &mut buffer[done..]) {
            Ok(0) => break,
            Ok(size) => done += size,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A file and a window on it.
#[derive(Debug)]
pub(crate) struct Input<F> {
    file: F,
    /// Where the window is.
    start: u64,
    window: Vec<u8>,
}

impl<F> Input<F> {
    pub(crate) fn into_file(self) -> F {
        self.file
    }

    pub(crate) fn map<G>(self, change: impl FnOnce(F) -> G) -> Input<G> {
        Input { file: change(self.file), start: self.start, window: self.window }
    }
}

impl<F: ReadAt> Input<F> {
    pub(crate) fn new(file: F) -> Self {
        Self { file, start: 0, window: Vec::new() }
    }

    pub(crate) fn size(&self) -> Result<u64> {
        self.file.size()
    }

    /// Forgets the window: what is read next is what is in the file now.
    pub(crate) fn forget(&mut self) {
        self.window.clear();
    }

    /// What the window has from `pos` on.
    fn seen(&self, pos: u64) -> &[u8] {
        pos.checked_sub(self.start)
            .and_then(|offset| self.window.get(usize::try_from(offset).ok()?..))
            .unwrap_or(&[])
    }

    /// The next `size` bytes from `pos`, less only at the end of the file. Moves the window.
    pub(crate) fn forward(&mut self, pos: u64, size: usize) -> Result<&[u8]> {
        assert!(size <= WINDOW_SIZE, "{size} bytes do not fit in the window");
        if self.seen(pos).len() < size {
            let kept = self.seen(pos).len();
            let gone = self.window.len() - kept;
            self.window.copy_within(gone.., 0);
            self.window.resize(WINDOW_SIZE, 0);
            self.start = pos;
            let more =
                read_full(&self.file, pos.saturating_add(kept as u64), &mut self.window[kept..]);
            self.window.truncate(kept + more.as_ref().copied().unwrap_or(0));
            more?;
        }
        let seen = self.seen(pos);
        Ok(&seen[..size.min(seen.len())])
    }

    /// Fills `buffer` with the bytes from `pos`; how many there were. Leaves the window where it
    /// is.
    pub(crate) fn look(&self, pos: u64, buffer: &mut [u8]) -> Result<usize> {
        let seen = self.seen(pos);
        let kept = seen.len().min(buffer.len());
        buffer[..kept].copy_from_slice(&seen[..kept]);
        Ok(kept + read_full(&self.file, pos.saturating_add(kept as u64), &mut buffer[kept..])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the order of the reads, what comes out is what is in the file.
    #[test]
    fn window_and_looks_give_the_content() {
        let content: Vec<u8> =
            (0..3 * WINDOW_SIZE as u64 + 777).map(|i| ((i * i) >> 7) as u8).collect();
        let mut input = Input::new(Cursor::new(content.clone()));
        let mut prng = neo_common::prng::Prng::new(1);
        for _ in 0..2000 {
            let pos = prng.below(content.len() + 10);
            let size_end = if prng.one_in(10) { WINDOW_SIZE } else { 100 };
            let size = prng.below(size_end);
            let end = content.len().min(pos + size);
            let expected = content.get(pos..end).unwrap_or(&[]);
            if prng.one_in(2) {
                assert_eq!(input.forward(pos as u64, size).unwrap(), expected);
            } else {
                let mut buffer = vec![0; size];
                let found = input.look(pos as u64, &mut buffer).unwrap();
                assert_eq!(&buffer[..found], expected);
            }
        }
        assert_eq!(input.forward(u64::MAX, 10).unwrap(), b"");
        assert_eq!(input.look(u64::MAX - 3, &mut [0; 10]).unwrap(), 0);
    }
}
