// SPDX-License-Identifier: GPL-2.0-or-later
//! `host`, `host:port`, `[::1]:port`, and lists of them. Upstream: lib/util.py, `parseNodeAddress`
//! and `parseMasterList`.
//!
//! Names are kept: resolving one may block, so it is up to the driver.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where to listen or to connect.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// Name or numeric address, without brackets.
    pub host: String,
    /// 0 to listen on any free port.
    pub port: u16,
}

/// What is wrong with an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressError {
    /// No host.
    Host(String),
    /// No port, and there is no default one.
    PortMissing(String),
    /// Not a number of 16 bits.
    Port(String),
    /// Not `[host]` or `[host]:port`.
    Brackets(String),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(text) => write!(f, "host missing in '{text}'"),
            Self::PortMissing(text) => write!(f, "port missing in '{text}'"),
            Self::Port(text) => write!(f, "invalid port in '{text}'"),
            Self::Brackets(text) => write!(f, "invalid address '{text}'"),
        }
    }
}
impl std::error::Error for AddressError {}

impl Address {
    /// From text; `default_port` is for who does not give one.
    ///
    /// # Errors
    /// [`AddressError`], with the text.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, AddressError> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) =
                rest.split_once(']').ok_or_else(|| AddressError::Brackets(text.into()))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(AddressError::Brackets(text.into())),
            }
        } else if text.matches(':').count() == 1 {
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
        } else {
            // A name, or an IPv6 address without brackets, which cannot have a port.
            (text, None)
        };
        if host.is_empty() {
            return Err(AddressError::Host(text.into()));
        }
        let port = match port {
            // Not what `parse` would take with a sign.
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().map_err(|_| AddressError::Port(text.into()))?
            }
            Some(_) => return Err(AddressError::Port(text.into())),
            None => default_port.ok_or_else(|| AddressError::PortMissing(text.into()))?,
        };
        Ok(Self { host: host.into(), port })
    }

    /// From a list separated by spaces or, as in version 0.9, slashes. Duplicates are dropped.
    ///
    /// # Errors
    /// [`AddressError`] of the first wrong one; each needs a port.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, AddressError> {
        let mut list = Vec::new();
        let is_separator = |c: char| c.is_whitespace() || c == '/';
        for item in text.split(is_separator).filter(|item| !item.is_empty()) {
            let address = Self::parse(item, None)?;
            if !list.contains(&address) {
                list.push(address);
            }
        }
        Ok(list)
    }

    /// The address if it is numeric: nothing to resolve.
    pub fn to_socket_addr(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }

    /// Looks the name up. The first result is taken, as upstream does. It may block.
    ///
    /// # Errors
    /// If the name is unknown or the resolver cannot be asked.
    #[cfg(feature = "net")]
    pub fn resolve(&self) -> std::io::Result<SocketAddr> {
        use std::net::ToSocketAddrs as _;
        if let Some(address) = self.to_socket_addr() {
            return Ok(address);
        }
        let mut addresses = (self.host.as_str(), self.port).to_socket_addrs()?;
        addresses.next().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, default_port: Option<u16>) -> Result<String, String> {
        let address = Address::parse(text, default_port);
        address.map(|address| address.to_string()).map_err(|error| error.to_string())
    }

    /// All forms, with and without port.
    #[test]
    fn forms() {
        for (text, default, result) in [
            ("127.0.0.1:10000", None, "127.0.0.1:10000"),
            ("127.0.0.1", Some(0), "127.0.0.1:0"),
            ("localhost:1", Some(9999), "localhost:1"),
            ("localhost", Some(9999), "localhost:9999"),
            ("[::1]:10000", None, "[::1]:10000"),
            ("[::1]", Some(9999), "[::1]:9999"),
            ("::1", Some(7), "[::1]:7"),
            ("[localhost]:65535", None, "localhost:65535"),
        ] {
            assert_eq!(parse(text, default).as_deref(), Ok(result));
        }
        for (text, error) in [
            ("", "host missing in ''"),
            (":1", "host missing in ':1'"),
            ("[]:1", "host missing in '[]:1'"),
            ("a", "port missing in 'a'"),
            ("::1", "port missing in '::1'"),
            ("a:", "invalid port in 'a:'"),
            ("a:x", "invalid port in 'a:x'"),
            ("a:+1", "invalid port in 'a:+1'"),
            ("a:65536", "invalid port in 'a:65536'"),
            ("[::1", "invalid address '[::1'"),
            ("[::1]1", "invalid address '[::1]1'"),
        ] {
            assert_eq!(parse(text, None), Err(error.into()));
        }
    }

    /// Spaces, line breaks and slashes separate; order is kept, duplicates are not.
    #[test]
    fn lists() {
        let list = Address::parse_list("  a:1 b:2/c:3\n[::1]:4 //b:2 ").unwrap();
        let list: Vec<String> = list.iter().map(Address::to_string).collect();
        assert_eq!(list, ["a:1", "b:2", "c:3", "[::1]:4"]);
        assert_eq!(Address::parse_list(" "), Ok(vec![]));
        assert_eq!(Address::parse_list("a:1 b"), Err(AddressError::PortMissing("b".into())));
    }

    /// Numeric addresses need no resolver.
    #[test]
    fn numeric() {
        let numeric = |text| Address::parse(text, Some(1)).unwrap().to_socket_addr();
        assert_eq!(numeric("127.0.0.1"), Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(numeric("::1"), Some("[::1]:1".parse().unwrap()));
        assert_eq!(numeric("localhost"), None);
        #[cfg(feature = "net")]
        assert!(Address::parse("localhost:1", None).unwrap().resolve().unwrap().ip().is_loopback());
    }
}
