// SPDX-License-Identifier: GPL-2.0-or-later
//! Object data as it is stored: maybe compressed, always with a checksum.
//! Upstream: lib/compress.py, lib/util.py `makeChecksum`.
//!
//! The checksum is the SHA-1 of the stored (compressed) bytes. The number of the algorithm is on
//! the wire and in databases: 0 none, 1 zlib.

use std::io::{self, Read};
use std::str::FromStr;

use bytes::Bytes;
use flate2::Compress;
use flate2::read::ZlibDecoder;
use neo_common::types::{Hash, ZERO_HASH};
use sha1::{Digest, Sha1};

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

/// `None` if the result is not smaller.
fn deflate(data: &[u8], level: Option<u8>) -> Option<Bytes> {
    let level = level.map_or_else(flate2::Compression::default, |level| {
        flate2::Compression::new(u32::from(level))
    });
    // The output never grows beyond the input: what does not fit is not worth it.
    let mut out = Vec::with_capacity(data.len());
    let mut compress = Compress::new(level, true);
    match compress.compress_vec(data, &mut out, flate2::FlushCompress::Finish) {
        Ok(flate2::Status::StreamEnd) if out.len() < data.len() => {
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
            Some(ZLIB) => {
                inflate(&self.data, OBJECT_BYTES_MAX).map(Bytes::from).map_err(|_| Damaged)
            }
            _ => Err(Damaged),
        }
    }
}

fn inflate(data: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity((data.len() * 3).min(1 << 20));
    ZlibDecoder::new(data).take(bytes_max as u64 + 1).read_to_end(&mut out)?;
    if out.len() > bytes_max {
        return Err(io::ErrorKind::InvalidData.into());
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
        assert_eq!(inflate(&bomb.data, 1 << 20).map(|data| data.len()).ok(), Some(1 << 20));
    }
}
