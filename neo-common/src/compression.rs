// SPDX-License-Identifier: GPL-2.0-or-later
//! Object data as it is stored: maybe compressed, always with a checksum.
//! Upstream: lib/compress.py, lib/util.py `makeChecksum`.
//!
//! The checksum is the SHA-1 of the stored (compressed) bytes. The number of the algorithm is on
//! the wire and in databases: 0 none, 1 zlib.

use std::cell::Cell;
use std::str::FromStr;

use bytes::Bytes;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use sha1::{Digest, Sha1};

use crate::types::{Hash, ZERO_HASH};

/// Bytes of an object once decompressed. Upstream has no limit, but a few bytes can announce
/// gigabytes.
pub const OBJECT_BYTES_MAX: usize = 1 << 30;

const NONE: u32 = 0;
const ZLIB: u32 = 1;

/// How data is compressed before it is stored, if that makes it smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all.
    None,
    /// zlib, with its default level or a level from 1 to 9.
    Zlib(Option<u8>),
}

impl Default for Compression {
    /// Upstream's: zlib with its default level.
    fn default() -> Self {
        Self::Zlib(None)
    }
}

/// An option that is neither `zlib` nor `zlib=1` to `zlib=9`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvalidCompression(pub String);

impl std::fmt::Display for InvalidCompression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a valid 'compress' option: {:?}", self.0)
    }
}
impl std::error::Error for InvalidCompression {}

impl FromStr for Compression {
    type Err = InvalidCompression;
    /// Upstream: lib/compress.py, `parseOption`. (Booleans are the caller's.)
    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        let level = match text.split_once('=') {
            None if text == "zlib" => return Ok(Self::Zlib(None)),
            Some(("zlib", level)) => level.parse().ok(),
            _ => None,
        };
        match level {
            Some(level @ 1..=9) => Ok(Self::Zlib(Some(level))),
            _ => Err(InvalidCompression(text.into())),
        }
    }
}

/// Data as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Number of the algorithm; `None`: no data (deletion, or undo of creation).
    pub compression: Option<u32>,
    /// SHA-1 of `data`.
    pub checksum: Hash,
    /// Compressed or not.
    pub data: Bytes,
}

/// Stored data cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damaged;

impl Compression {
    /// Makes what is stored out of `data`.
    pub fn store(self, data: &Bytes) -> Stored {
        let compressed = match self {
            Self::None => None,
            Self::Zlib(level) => deflate(data, level),
        };
        let (compression, data) = match compressed {
            Some(compressed) => (ZLIB, compressed),
            None => (NONE, data.clone()), // a reference, not a copy
        };
        Stored { compression: Some(compression), checksum: checksum(&data), data }
    }
}

/// States of the algorithm. Making one costs more than compressing a small object, so each thread
/// keeps one for the next object.
struct States {
    /// With its level.
    deflate: Cell<Option<(Option<u8>, Compress)>>,
    inflate: Cell<Option<Decompress>>,
}

thread_local! {
    static STATES: States = const { States { deflate: Cell::new(None), inflate: Cell::new(None) } };
}

/// `None` if the result is not smaller.
fn deflate(data: &[u8], level: Option<u8>) -> Option<Bytes> {
    let kept = STATES.with(|states| states.deflate.take());
    let mut compress = match kept {
        Some((kept_level, compress)) if kept_level == level => compress,
        _ => {
            let level = level.map_or_else(flate2::Compression::default, |level| {
                flate2::Compression::new(u32::from(level))
            });
            Compress::new(level, true)
        }
    };
    // The output never grows beyond the input: what does not fit is not worth it.
    let mut out = Vec::with_capacity(data.len());
    let status = compress.compress_vec(data, &mut out, FlushCompress::Finish);
    compress.reset();
    STATES.with(|states| states.deflate.set(Some((level, compress))));
    match status {
        Ok(Status::StreamEnd) if out.len() < data.len() => {
            out.shrink_to_fit();
            Some(out.into())
        }
        // Out of room: not smaller. Memory errors give the same, uncompressed, result.
        _ => None,
    }
}

/// SHA-1.
pub fn checksum(data: &[u8]) -> Hash {
    Sha1::digest(data).into()
}

impl Stored {
    /// What deletions and undone creations send.
    pub const fn nothing() -> Self {
        Self { compression: None, checksum: ZERO_HASH, data: Bytes::new() }
    }
    /// Whether there is no data at all. (Data of length 0 has a checksum.)
    pub fn is_nothing(&self) -> bool {
        self.data.is_empty() && self.checksum == ZERO_HASH
    }
    /// Verifies and decompresses.
    ///
    /// # Errors
    /// [`Damaged`] if the checksum is wrong, or the data is not what the algorithm produces.
    pub fn load(&self) -> Result<Bytes, Damaged> {
        if checksum(&self.data) != self.checksum {
            return Err(Damaged);
        }
        self.decompress()
    }
    /// Decompresses without verification.
    ///
    /// # Errors
    /// [`Damaged`] if the data is not what the algorithm produces.
    pub fn decompress(&self) -> Result<Bytes, Damaged> {
        match self.compression {
            Some(NONE) => Ok(self.data.clone()), // a reference, not a copy
            Some(ZLIB) => inflate(&self.data, OBJECT_BYTES_MAX).map(Bytes::from),
            _ => Err(Damaged),
        }
    }
}

fn inflate(data: &[u8], bytes_max: usize) -> Result<Vec<u8>, Damaged> {
    let kept = STATES.with(|states| states.inflate.take());
    let mut decompress = kept.unwrap_or_else(|| Decompress::new(true));
    let result = inflate_with(&mut decompress, data, bytes_max);
    decompress.reset(true);
    STATES.with(|states| states.inflate.set(Some(decompress)));
    result
}

fn inflate_with(
    decompress: &mut Decompress,
    data: &[u8],
    bytes_max: usize,
) -> Result<Vec<u8>, Damaged> {
    let mut out = Vec::with_capacity((data.len() * 4).clamp(64, 1 << 20).min(bytes_max));
    loop {
        let rest = &data[decompress.total_in() as usize..];
        let before = (decompress.total_in(), decompress.total_out());
        let status = decompress.decompress_vec(rest, &mut out, FlushDecompress::Finish);
        match status.map_err(|_| Damaged)? {
            Status::StreamEnd => break,
            // No room is left.
            _ if out.len() == out.capacity() && out.len() < bytes_max => {
                out.reserve_exact(out.len().max(64).min(bytes_max - out.len()));
            }
            // Too long, or the end is missing.
            _ if before == (decompress.total_in(), decompress.total_out()) => return Err(Damaged),
            _ if out.len() >= bytes_max => return Err(Damaged),
            _ => {}
        }
    }
    out.shrink_to_fit();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_like_upstream() {
        assert_eq!("zlib".parse(), Ok(Compression::Zlib(None)));
        assert_eq!("zlib=9".parse(), Ok(Compression::Zlib(Some(9))));
        for text in ["", "zlib=0", "zlib=10", "zlib=", "zlib=x", "lzma", "zlib=1=2", "ZLIB"] {
            assert_eq!(text.parse::<Compression>(), Err(InvalidCompression(text.into())));
        }
    }

    /// What is stored comes back, compressed only if smaller.
    #[test]
    fn round_trip() {
        for level in [None, Some(1), Some(9)] {
            let text = Bytes::from(b"spam and eggs ".repeat(1000));
            let stored = Compression::Zlib(level).store(&text);
            assert_eq!(stored.compression, Some(ZLIB));
            assert!(stored.data.len() < 1000);
            assert_eq!(stored.load(), Ok(text.clone()));
            assert_eq!(Compression::None.store(&text).compression, Some(NONE));
        }
        for short in [&b""[..], b"x", b"\x80\x02C"] {
            let short = Bytes::copy_from_slice(short);
            let stored = Compression::default().store(&short);
            assert_eq!((stored.compression, &stored.data), (Some(NONE), &short));
            assert!(!stored.is_nothing());
            assert_eq!(stored.load(), Ok(short));
        }
    }

    /// States that are used again, also after a failure, leave no trace.
    #[test]
    fn states_are_used_again() {
        let mut prng = crate::prng::Prng::new(5);
        for round in 0..500 {
            let len = prng.below(20_000);
            let spread = prng.below(255) + 1;
            let data = (0..len).map(|_| prng.below(spread) as u8).collect::<Vec<u8>>();
            let data = Bytes::from(data);
            let level = [None, Some(1), Some(6), Some(9)][round % 4];
            let stored = Compression::Zlib(level).store(&data);
            if stored.compression == Some(ZLIB) {
                let cut = stored.data.slice(..prng.below(stored.data.len()));
                assert_eq!(inflate(&cut, OBJECT_BYTES_MAX), Err(Damaged));
                assert_eq!(inflate(&stored.data, data.len() - 1), Err(Damaged));
            }
            assert_eq!(stored.load(), Ok(data));
        }
    }

    /// A byte that changed, another algorithm, an announcement of gigabytes: damaged, not returned.
    #[test]
    fn damage_is_found() {
        let stored = Compression::default().store(&Bytes::from(vec![7; 1000]));
        let mut data = stored.data.to_vec();
        data[10] ^= 1;
        assert_eq!(Stored { data: data.into(), ..stored.clone() }.load(), Err(Damaged));
        for compression in [None, Some(2)] {
            assert_eq!(Stored { compression, ..stored.clone() }.load(), Err(Damaged));
        }
        assert!(Stored::nothing().is_nothing());
        let bomb = Compression::Zlib(Some(9)).store(&Bytes::from(vec![0; 1 << 20]));
        assert!(bomb.data.len() < 2000);
        assert!(inflate(&bomb.data, (1 << 20) - 1).is_err());
        assert!(inflate(&bomb.data[..bomb.data.len() - 1], 1 << 20).is_err());
        assert!(inflate(b"", 1 << 20).is_err());
        assert_eq!(inflate(&bomb.data, 1 << 20).map(|data| data.len()).ok(), Some(1 << 20));
    }
}
