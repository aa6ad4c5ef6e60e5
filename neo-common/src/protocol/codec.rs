// SPDX-License-Identifier: GPL-2.0-or-later
//! The wire format of values: msgpack, restricted as upstream does.
//!
//! All byte strings and texts are msgpack *bin*, integers take their shortest form, enumerations
//! are extensions with one byte. The reader is bounds-checked and never trusts a length: what it
//! allocates is proportional to the bytes that it has really received.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use byteorder::{BigEndian, ByteOrder};
use bytes::{BufMut, Bytes, BytesMut};

use super::enums::{CellState, ClusterState, ErrorCode, NodeState, NodeType, WireEnum};
use crate::limits::{COPY_BYTES_MAX, DATA_BYTES_MAX, LIST_LEN_MAX, PACKET_DEPTH_MAX};
use crate::types::{Hash, NodeId, Oid, Tid, Ttid};

/// What is wrong with received bytes. The connection is closed, there is no error packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The peer is not a NEO node.
    NotNeo,
    /// The peer speaks another version of the protocol.
    Version(u8),
    /// More bytes or items than a limit allows.
    TooLarge,
    /// The bytes end in the middle of a value (only inside a delimited packet).
    Truncated,
    /// A value of another type than expected; the byte that tells its type.
    Type(u8),
    /// A number, text, enumeration item or length outside of what is accepted.
    Range(&'static str),
    /// Unknown packet code.
    Code(u64),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNeo => f.write_str("not a NEO peer"),
            Self::Version(version) => write!(f, "protocol version mismatch: peer has {version}"),
            Self::TooLarge => f.write_str("too large"),
            Self::Truncated => f.write_str("truncated value"),
            Self::Type(byte) => write!(f, "unexpected msgpack type {byte:#04x}"),
            Self::Range(what) => write!(f, "invalid {what}"),
            Self::Code(code) => write!(f, "unknown packet code {code:#06x}"),
        }
    }
}
impl std::error::Error for Malformed {}

/// A value that can be an argument of a packet.
pub trait Wire: Sized {
    /// Appends the value.
    fn encode(&self, w: &mut Writer<'_>);
    /// Takes a value.
    ///
    /// # Errors
    /// [`Malformed`] if the next bytes are not such a value.
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed>;
}

/// Bytes to send: small pieces gathered in `tail`, big object data left where it is.
#[derive(Default, Debug)]
pub struct OutBuffer {
    chunks: Vec<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl OutBuffer {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len + self.tail.len()
    }
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Appends raw bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }
    fn put_bytes(&mut self, bytes: &Bytes) {
        if bytes.len() < COPY_BYTES_MAX {
            self.tail.put_slice(bytes);
            return;
        }
        self.cut_tail();
        self.len += bytes.len();
        self.chunks.push(bytes.clone()); // a reference, not a copy
    }
    fn cut_tail(&mut self) {
        if !self.tail.is_empty() {
            self.len += self.tail.len();
            self.chunks.push(self.tail.split().freeze());
        }
    }
    /// Takes everything, in order, as pieces fit for one vectored write.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.cut_tail();
        self.len = 0;
        std::mem::take(&mut self.chunks)
    }
}

/// Appends msgpack values to an [`OutBuffer`].
pub struct Writer<'a>(&'a mut OutBuffer);

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut OutBuffer) -> Self {
        Self(out)
    }
    fn tail(&mut self) -> &mut BytesMut {
        &mut self.0.tail
    }
    /// Nil.
    pub fn nil(&mut self) {
        self.tail().put_u8(0xc0);
    }
    /// Non-negative integer, shortest form.
    pub fn uint(&mut self, value: u64) {
        let tail = self.tail();
        match value {
            0..=0x7f => tail.put_u8(value as u8),
            0x80..=0xff => {
                tail.put_u8(0xcc);
                tail.put_u8(value as u8);
            }
            0x100..=0xffff => {
                tail.put_u8(0xcd);
                tail.put_u16(value as u16);
            }
            0x1_0000..=0xffff_ffff => {
                tail.put_u8(0xce);
                tail.put_u32(value as u32);
            }
            _ => {
                tail.put_u8(0xcf);
                tail.put_u64(value);
            }
        }
    }
    /// Integer, shortest form.
    pub fn int(&mut self, value: i64) {
        let tail = self.tail();
        match value {
            0.. => self.uint(value as u64),
            -0x20..=-1 => tail.put_i8(value as i8),
            -0x80..=-0x21 => {
                tail.put_u8(0xd0);
                tail.put_i8(value as i8);
            }
            -0x8000..=-0x81 => {
                tail.put_u8(0xd1);
                tail.put_i16(value as i16);
            }
            -0x8000_0000..=-0x8001 => {
                tail.put_u8(0xd2);
                tail.put_i32(value as i32);
            }
            _ => {
                tail.put_u8(0xd3);
                tail.put_i64(value);
            }
        }
    }
    /// Header of an array of `len` items.
    pub fn array(&mut self, len: usize) {
        let tail = self.tail();
        match len {
            0..=15 => tail.put_u8(0x90 | len as u8),
            16..=0xffff => {
                tail.put_u8(0xdc);
                tail.put_u16(len as u16);
            }
            _ => {
                tail.put_u8(0xdd);
                tail.put_u32(u32::try_from(len).expect("a list has less than 2^32 items"));
            }
        }
    }
    /// Header of a map of `len` pairs.
    pub fn map(&mut self, len: usize) {
        let tail = self.tail();
        match len {
            0..=15 => tail.put_u8(0x80 | len as u8),
            16..=0xffff => {
                tail.put_u8(0xde);
                tail.put_u16(len as u16);
            }
            _ => {
                tail.put_u8(0xdf);
                tail.put_u32(u32::try_from(len).expect("a map has less than 2^32 pairs"));
            }
        }
    }
    fn bin_header(&mut self, len: usize) {
        let tail = self.tail();
        match len {
            0..=0xff => {
                tail.put_u8(0xc4);
                tail.put_u8(len as u8);
            }
            0x100..=0xffff => {
                tail.put_u8(0xc5);
                tail.put_u16(len as u16);
            }
            _ => {
                tail.put_u8(0xc6);
                tail.put_u32(u32::try_from(len).expect("a string has less than 2^32 bytes"));
            }
        }
    }
    /// Byte string, copied.
    pub fn bin(&mut self, value: &[u8]) {
        self.bin_header(value.len());
        self.tail().put_slice(value);
    }
}

/// Takes msgpack values from one delimited packet.
pub struct Reader<'a> {
    buf: &'a [u8],
    pos: usize,
    /// Shared buffer that `buf` is a view of: strings are then views too, not copies.
    owner: Option<&'a Bytes>,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Reads `buf`; strings are copied.
    pub fn new(buf: &'a [u8]) -> Self {
        Self { buf, pos: 0, owner: None, depth: 0 }
    }
    /// Reads `owner`; long strings are views of it.
    pub fn shared(owner: &'a Bytes) -> Self {
        Self { buf: owner, pos: 0, owner: Some(owner), depth: 0 }
    }
    /// Number of bytes left.
    pub fn remaining(&self) -> usize {
        self.buf.len() - self.pos
    }
    fn peek(&self) -> Result<u8, Malformed> {
        self.buf.get(self.pos).copied().ok_or(Malformed::Truncated)
    }
    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek()?;
        self.pos += 1;
        Ok(byte)
    }
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.pos.checked_add(len).ok_or(Malformed::TooLarge)?;
        let bytes = self.buf.get(self.pos..end).ok_or(Malformed::Truncated)?;
        self.pos = end;
        Ok(bytes)
    }
    fn be(&mut self, len: usize) -> Result<u64, Malformed> {
        Ok(BigEndian::read_uint(self.take(len)?, len))
    }
    /// Takes a nil if there is one.
    pub fn nil(&mut self) -> Result<bool, Malformed> {
        let nil = self.peek()? == 0xc0;
        self.pos += usize::from(nil);
        Ok(nil)
    }
    /// Integer, any form.
    pub fn int(&mut self) -> Result<i128, Malformed> {
        Ok(match self.byte()? {
            byte @ 0..=0x7f => i128::from(byte),
            byte @ 0xe0..=0xff => i128::from(byte as i8),
            0xcc => i128::from(self.be(1)?),
            0xcd => i128::from(self.be(2)?),
            0xce => i128::from(self.be(4)?),
            0xcf => i128::from(self.be(8)?),
            0xd0 => i128::from(self.be(1)? as i8),
            0xd1 => i128::from(self.be(2)? as i16),
            0xd2 => i128::from(self.be(4)? as i32),
            0xd3 => i128::from(self.be(8)? as i64),
            byte => return Err(Malformed::Type(byte)),
        })
    }
    fn items(&mut self, fix: u8, code16: u8) -> Result<usize, Malformed> {
        let byte = self.byte()?;
        let len = match byte {
            _ if byte & 0xf0 == fix => u64::from(byte & 15),
            _ if byte == code16 => self.be(2)?,
            _ if byte == code16 + 1 => self.be(4)?,
            _ => return Err(Malformed::Type(byte)),
        };
        // An item takes a byte at least: a length that lies is caught before anything is allocated.
        let len = usize::try_from(len).map_err(|_| Malformed::TooLarge)?;
        if len > LIST_LEN_MAX {
            return Err(Malformed::TooLarge);
        }
        if len > self.remaining() {
            return Err(Malformed::Truncated);
        }
        Ok(len)
    }
    /// Header of an array; number of items.
    pub fn array(&mut self) -> Result<usize, Malformed> {
        self.items(0x90, 0xdc)
    }
    /// Header of a map; number of pairs.
    pub fn map(&mut self) -> Result<usize, Malformed> {
        self.items(0x80, 0xde)
    }
    /// Header of an array that has exactly `len` items.
    pub fn tuple(&mut self, len: usize) -> Result<(), Malformed> {
        if self.array()? == len { Ok(()) } else { Err(Malformed::Range("number of items")) }
    }
    /// Byte string.
    pub fn bin(&mut self) -> Result<&'a [u8], Malformed> {
        let len = match self.byte()? {
            0xc4 => self.be(1)?,
            0xc5 => self.be(2)?,
            0xc6 => self.be(4)?,
            byte => return Err(Malformed::Type(byte)),
        };
        let len = usize::try_from(len).map_err(|_| Malformed::TooLarge)?;
        if len > DATA_BYTES_MAX {
            return Err(Malformed::TooLarge);
        }
        self.take(len)
    }
    /// Byte string of exactly `N` bytes.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bin()?.try_into().map_err(|_| Malformed::Range("length of a fixed string"))
    }
    fn enter(&mut self) -> Result<(), Malformed> {
        self.depth += 1;
        if self.depth > PACKET_DEPTH_MAX { Err(Malformed::TooLarge) } else { Ok(()) }
    }
    fn leave(&mut self) {
        self.depth -= 1;
    }
}

macro_rules! wire_int {
    ($($ty:ty: $write:ident as $wide:ty),*) => {$(
        impl Wire for $ty {
            fn encode(&self, w: &mut Writer<'_>) {
                w.$write(<$wide>::from(*self));
            }
            fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                r.int()?.try_into().map_err(|_| Malformed::Range("integer"))
            }
        }
    )*};
}
wire_int!(u32: uint as u64, u64: uint as u64, i64: int as i64);

impl Wire for bool {
    fn encode(&self, w: &mut Writer<'_>) {
        w.tail().put_u8(if *self { 0xc3 } else { 0xc2 });
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        match r.byte()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            byte => Err(Malformed::Type(byte)),
        }
    }
}

impl Wire for f64 {
    fn encode(&self, w: &mut Writer<'_>) {
        w.tail().put_u8(0xcb);
        w.tail().put_f64(*self);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let value = match r.peek()? {
            0xcb => {
                r.pos += 1;
                Self::from_bits(r.be(8)?)
            }
            0xca => {
                r.pos += 1;
                Self::from(f32::from_bits(r.be(4)? as u32))
            }
            _ => r.int()? as Self,
        };
        // They are compared: what has no order is refused.
        if value.is_finite() { Ok(value) } else { Err(Malformed::Range("float")) }
    }
}

impl Wire for Bytes {
    fn encode(&self, w: &mut Writer<'_>) {
        w.bin_header(self.len());
        w.0.put_bytes(self);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes = r.bin()?;
        Ok(match r.owner {
            // A short view would keep a big buffer alive for little.
            Some(owner) if bytes.len() * 4 >= owner.len() => owner.slice_ref(bytes),
            _ => Self::copy_from_slice(bytes),
        })
    }
}

impl Wire for String {
    fn encode(&self, w: &mut Writer<'_>) {
        w.bin(self.as_bytes());
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(r.bin()?).map_err(|_| Malformed::Range("text"))?;
        Ok(text.to_owned())
    }
}

macro_rules! wire_p64 {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn encode(&self, w: &mut Writer<'_>) {
                w.bin(&self.to_bytes());
            }
            fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(Self::from_bytes(r.fixed()?))
            }
        }
    )*};
}
wire_p64!(Tid, Ttid, Oid);

impl Wire for Hash {
    fn encode(&self, w: &mut Writer<'_>) {
        w.bin(self);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.fixed()
    }
}

impl Wire for NodeId {
    fn encode(&self, w: &mut Writer<'_>) {
        w.int(i64::from(self.get()));
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        i32::try_from(r.int()?).ok().and_then(Self::new).ok_or(Malformed::Range("node id"))
    }
}

impl Wire for SocketAddr {
    fn encode(&self, w: &mut Writer<'_>) {
        w.array(2);
        w.bin(self.ip().to_string().as_bytes());
        w.uint(u64::from(self.port()));
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        r.tuple(2)?;
        let ip: IpAddr = String::decode(r)?.parse().map_err(|_| Malformed::Range("address"))?;
        let port = r.int()?.try_into().map_err(|_| Malformed::Range("port"))?;
        Ok(Self::new(ip, port))
    }
}

macro_rules! wire_ext {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn encode(&self, w: &mut Writer<'_>) {
                let tail = w.tail();
                tail.put_u8(0xd4);
                tail.put_i8(Self::EXT);
                tail.put_u8(self.number());
            }
            fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                let head = r.take(3)?;
                if head[0] != 0xd4 {
                    return Err(Malformed::Type(head[0]));
                }
                if head[1] as i8 != Self::EXT {
                    return Err(Malformed::Range("enumeration"));
                }
                Self::from_number(head[2]).ok_or(Malformed::Range("enumeration item"))
            }
        }
    )*};
}
wire_ext!(CellState, ClusterState, NodeState, NodeType);

impl Wire for ErrorCode {
    fn encode(&self, w: &mut Writer<'_>) {
        w.uint(u64::from(self.number()));
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let number = r.int()?.try_into().map_err(|_| Malformed::Range("error code"))?;
        Self::from_number(number).ok_or(Malformed::Range("error code"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Some(value) => value.encode(w),
            None => w.nil(),
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        if r.nil()? { Ok(None) } else { T::decode(r).map(Some) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.array(self.len());
        for item in self {
            item.encode(w);
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = r.array()?;
        let mut items = Self::with_capacity(len);
        r.enter()?;
        for _ in 0..len {
            items.push(T::decode(r)?);
        }
        r.leave();
        Ok(items)
    }
}

/// A map in the order of the wire, which has no meaning.
#[derive(Clone, PartialEq, Debug)]
pub struct Map<K, V>(pub Vec<(K, V)>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl<K, V> IntoIterator for Map<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Wire, V: Wire> Wire for Map<K, V> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.map(self.0.len());
        for (key, value) in &self.0 {
            key.encode(w);
            value.encode(w);
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = r.map()?;
        let mut pairs = Vec::with_capacity(len);
        r.enter()?;
        for _ in 0..len {
            pairs.push((K::decode(r)?, V::decode(r)?));
        }
        r.leave();
        Ok(Self(pairs))
    }
}

macro_rules! wire_tuple {
    ($len:literal: $($ty:ident $index:tt),*) => {
        impl<$($ty: Wire),*> Wire for ($($ty,)*) {
            fn encode(&self, w: &mut Writer<'_>) {
                w.array($len);
                $(self.$index.encode(w);)*
            }
            fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
                r.tuple($len)?;
                Ok(($($ty::decode(r)?,)*))
            }
        }
    };
}
wire_tuple!(2: A 0, B 1);
wire_tuple!(3: A 0, B 1, C 2);
wire_tuple!(4: A 0, B 1, C 2, D 3);
wire_tuple!(5: A 0, B 1, C 2, D 3, E 4);

/// Any value: where the protocol leaves room for extensions.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Nothing.
    Nil,
    /// True or false.
    Bool(bool),
    /// Integer from -2^63 to 2^64 - 1.
    Int(i128),
    /// 64-bit float.
    Float(f64),
    /// Bytes or text.
    Bin(Bytes),
    /// List.
    Array(Vec<Value>),
    /// Pairs in the order of the wire.
    Map(Vec<(Value, Value)>),
    /// Enumeration item: extension type and number.
    Item(i8, u8),
}

impl Value {
    /// A text as the wire has them.
    pub fn text(text: &str) -> Self {
        Self::Bin(Bytes::copy_from_slice(text.as_bytes()))
    }
    /// An enumeration item.
    pub fn item<T: WireEnum>(item: T) -> Self {
        Self::Item(T::EXT, item.number())
    }
    /// The enumeration item that it is, if any.
    pub fn as_item<T: WireEnum>(&self) -> Option<T> {
        match *self {
            Self::Item(ext, number) if ext == T::EXT => T::from_number(number),
            _ => None,
        }
    }
}

impl Wire for Value {
    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Nil => w.nil(),
            Self::Bool(value) => value.encode(w),
            Self::Int(value) if *value < 0 => w.int(*value as i64),
            Self::Int(value) => w.uint(*value as u64),
            Self::Float(value) => value.encode(w),
            Self::Bin(value) => value.encode(w),
            Self::Array(items) => items.encode(w),
            Self::Map(pairs) => {
                w.map(pairs.len());
                for (key, value) in pairs {
                    key.encode(w);
                    value.encode(w);
                }
            }
            Self::Item(ext, number) => {
                w.tail().put_u8(0xd4);
                w.tail().put_i8(*ext);
                w.tail().put_u8(*number);
            }
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match r.peek()? {
            0xc0 => {
                r.pos += 1;
                Self::Nil
            }
            0xc2 | 0xc3 => Self::Bool(bool::decode(r)?),
            0xca | 0xcb => Self::Float(f64::decode(r)?),
            0xc4..=0xc6 => Self::Bin(Bytes::decode(r)?),
            0xd4 => {
                let head = r.take(3)?;
                Self::Item(head[1] as i8, head[2])
            }
            0x90..=0x9f | 0xdc | 0xdd => Self::Array(Vec::decode(r)?),
            0x80..=0x8f | 0xde | 0xdf => Self::Map(Map::decode(r)?.0),
            _ => Self::Int(r.int()?),
        })
    }
}
