//! Dial strings: where a server is, as Plan 9 writes it (dial(2)).
//!
//! `tcp!host!port` (not encrypted), `tls!host!port`, `unix!path`; `host:port` and `[v6]:port` mean `tls`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till1, take_while1};
use nom::character::complete::{char, u16 as port};
use nom::combinator::{all_consuming, rest, verify};
use nom::sequence::{delimited, preceded, separated_pair};
use nom::{IResult, Parser};

/// Where a server is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// TCP without encryption.
    Tcp(HostPort),
    /// TLS on TCP.
    Tls(HostPort),
    /// A unix socket.
    Unix(PathBuf),
}

/// A host, by name or number, and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why text is no dial string.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no address: expected HOST:PORT, tls!HOST!PORT, tcp!HOST!PORT or unix!PATH")]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let unix = preceded(tag("unix!"), verify(rest, |path: &str| !path.is_empty()));
        let parsed: IResult<&str, Self, ()> = all_consuming(alt((
            preceded(tag("tcp!"), bang).map(Self::Tcp),
            preceded(tag("tls!"), bang).map(Self::Tls),
            unix.map(|path: &str| Self::Unix(path.into())),
            colon.map(Self::Tls),
        )))
        .parse(text);
        parsed.map(|(_, address)| address).map_err(|_| BadAddress(text.to_string()))
    }
}

impl FromStr for HostPort {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let parsed: IResult<&str, Self, ()> = all_consuming(colon).parse(text);
        parsed.map(|(_, address)| address).map_err(|_| BadAddress(text.to_string()))
    }
}

/// `host!port`
fn bang(text: &str) -> IResult<&str, HostPort, ()> {
    separated_pair(take_till1(|c: char| c == '!' || c.is_whitespace()), char('!'), port).map(HostPort::of).parse(text)
}

/// `host:port` or `[v6]:port`
fn colon(text: &str) -> IResult<&str, HostPort, ()> {
    let v6 = delimited(char('['), take_while1(|c: char| c.is_ascii_hexdigit() || ".:%".contains(c)), char(']'));
    let host = take_till1(|c: char| ":[]!/".contains(c) || c.is_whitespace());
    separated_pair(alt((v6, host)), char(':'), port).map(HostPort::of).parse(text)
}

impl HostPort {
    fn of((host, port): (&str, u16)) -> Self {
        Self { host: host.to_string(), port }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(HostPort { host, port }) => write!(f, "tcp!{host}!{port}"),
            Self::Tls(HostPort { host, port }) => write!(f, "tls!{host}!{port}"),
            Self::Unix(path) => write!(f, "unix!{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_they_are_read() {
        for text in ["tcp!localhost!564", "tls!10.0.0.1!17020", "unix!/run/9p sock", "tls!::1!17020"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("[::1]:80".parse::<HostPort>().unwrap().to_string(), "[::1]:80");
        assert_eq!("pi:80".parse::<Address>().unwrap().to_string(), "tls!pi!80");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "pi", "pi:", "pi:99999", "tcp!pi", "tcp!!1", "unix!", "a b:1", "::1:80", "tcp!a!b!c"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
