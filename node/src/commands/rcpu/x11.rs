//! `rcpu -X`: my display, for a command on a node.
//!
//! A socket there, in the command's own /tmp/.X11-unix, leads here. The program there is given a cookie that was made
//! up for it; who shows that one is let in here with the true one, which never leaves this machine, as `ssh -Y` does
//! it. Names and layouts are those of X(7), Xau(3) and the X Window System Protocol's connection setup.

use std::path::{Path, PathBuf};

use cpuserver::Command;
use cpuserver::client::Taken;
use p9::dial::{Address, HostPort};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};

use super::lend;
use crate::context::Environment;
use crate::error::{At, Error, Result};
use crate::namespace::{Carried, host_name};
use crate::output;

/// The way of proving oneself that everybody knows.
const COOKIE: &[u8] = b"MIT-MAGIC-COOKIE-1";
/// Where the sockets of displays are.
const SOCKETS: &str = "/tmp/.X11-unix";
/// Where the program finds its cookie.
const AUTHORITY: &str = "/run/slashn/Xauthority";
/// The most bytes of a name or a cookie.
const MOST: usize = 1024;

/// A display here.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Display {
    at: Address,
    number: u16,
    /// `.0`, or nothing.
    screen: String,
}

/// `command` with the display that `environment` names. Errors: it names none, or the file with its cookie cannot be
/// read.
pub(super) fn lent(environment: &Environment, carried: &mut Carried, command: Command) -> Result<Command> {
    let display = Display::of(environment)?;
    let authority = environment.var("XAUTHORITY").map(PathBuf::from);
    let authority = authority.or_else(|| environment.var("HOME").map(|home| Path::new(home).join(".Xauthority")));
    let true_one = match authority.as_deref().map(|path| (path, std::fs::read(path))) {
        Some((_, Ok(bytes))) => cookie(&bytes, &display),
        Some((path, Err(err))) if err.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::new("lend", "x11", format!("{}: {err}", path.display())));
        }
        _ => None,
    };
    let mut random = [0; 18];
    getrandom::fill(&mut random).at("lend", "x11")?;
    let made_up: [u8; 16] = std::array::from_fn(|at| random[at]);
    // Other displays of that machine have low numbers; who finds another by this one is not let in there.
    let number = 1000 + u16::from_le_bytes([random[16], random[17]]) % 50_000;
    carried.text += &format!("mount '#run' {SOCKETS}\n");
    let command = command
        .env("DISPLAY", format!(":{number}{}", display.screen))
        .env("XAUTHORITY", AUTHORITY)
        .file(AUTHORITY, entry(number, &made_up))
        .accept(format!("unix!{SOCKETS}/X{number}"), move |taken| {
            let (display, true_one) = (display.clone(), true_one.clone());
            async move {
                if let Err(err) = carry(taken, &display, &made_up, true_one.as_deref()).await {
                    output::note(Error::new("show", &display.at, err));
                }
            }
        });
    Ok(command)
}

/// Where the display is that `environment` names. Errors: it names none.
pub(super) fn address(environment: &Environment) -> Result<Address> {
    Ok(Display::of(environment)?.at)
}

impl Display {
    fn of(environment: &Environment) -> Result<Self> {
        let unset = || Error::new("lend", "x11", "$DISPLAY is not set").remedy("DISPLAY=:0 rcpu -X ...");
        let text = environment.var("DISPLAY").ok_or_else(unset)?.to_string_lossy().into_owned();
        Self::parse(&text).ok_or_else(|| Error::new("lend", "x11", format!("DISPLAY={text} means nothing")))
    }

    /// `[HOST]:NUMBER[.SCREEN]`, `unix:NUMBER`, or the path of a socket, as macOS has it.
    fn parse(text: &str) -> Option<Self> {
        let (host, rest) = text.rsplit_once(':')?;
        let (number, screen) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
        let number = number.parse().ok()?;
        if !screen.chars().all(|c| c == '.' || c.is_ascii_digit()) {
            return None;
        }
        let at = match host.trim_start_matches('[').trim_end_matches(']') {
            "" | "unix" => Address::Unix(format!("{SOCKETS}/X{number}").into()),
            path if path.starts_with('/') => Address::Unix(text.into()),
            host => Address::Tcp(HostPort { host: host.into(), port: 6000u16.checked_add(number)? }),
        };
        Some(Self { at, number, screen: screen.into() })
    }
}

/// An entry of an authority file for the display `number` of any host.
fn entry(number: u16, cookie: &[u8]) -> Vec<u8> {
    const WILD: u16 = 0xffff;
    let mut entry = WILD.to_be_bytes().to_vec();
    for part in [b"", number.to_string().as_bytes(), COOKIE, cookie] {
        entry.extend(u16::try_from(part.len()).unwrap_or(0).to_be_bytes());
        entry.extend(part);
    }
    entry
}

/// The cookie for `display` in an authority file: the one for its host rather than one for any.
fn cookie(file: &[u8], display: &Display) -> Option<Vec<u8>> {
    const LOCAL: u16 = 256;
    let host = host_name().unwrap_or_default().into_bytes();
    let number = display.number.to_string();
    let (mut rest, mut found) = (file, None);
    while let Some((family, parts, after)) = next_entry(rest) {
        rest = after;
        let [address, of, name, data] = parts;
        if name != COOKIE || !(of.is_empty() || of == number.as_bytes()) {
            continue;
        }
        let is_local = matches!(display.at, Address::Unix(_)) && family == LOCAL && address == host;
        let rank = if is_local { 2 } else { u8::from(family == 0xffff) };
        if found.as_ref().is_none_or(|(best, _)| *best < rank) {
            found = Some((rank, data.to_vec()));
        }
    }
    found.map(|(_, data)| data)
}

type Entry<'a> = (u16, [&'a [u8]; 4], &'a [u8]);

fn next_entry(bytes: &[u8]) -> Option<Entry<'_>> {
    let (family, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut parts = [&[][..]; 4];
    for part in &mut parts {
        let (length, after) = rest.split_first_chunk::<2>()?;
        (*part, rest) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
    }
    Some((u16::from_be_bytes(*family), parts, rest))
}

/// Lets `taken` in to `display` with the cookie `true_one`, if it shows the one that was `made_up`.
async fn carry(mut taken: Taken, display: &Display, made_up: &[u8], true_one: Option<&[u8]>) -> std::io::Result<()> {
    let garbled = || std::io::Error::new(std::io::ErrorKind::InvalidData, "what connects there does not speak X");
    let mut head = [0; 12];
    taken.read_exact(&mut head).await?;
    let little = match head[0] {
        b'l' => true,
        b'B' => false,
        _ => return Err(garbled()),
    };
    let number = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        usize::from(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let (name, data) = (number(6), number(8));
    if name > MOST || data > MOST {
        return Err(garbled());
    }
    let mut shown = vec![0; padded(name) + padded(data)];
    taken.read_exact(&mut shown).await?;
    let bytes = |number: usize| {
        let number = u16::try_from(number).unwrap_or(0);
        if little { number.to_le_bytes() } else { number.to_be_bytes() }
    };
    if &shown[..name] != COOKIE || &shown[padded(name)..padded(name) + data] != made_up {
        const WHY: &[u8] = b"rcpu: this program shows another cookie than it was given in XAUTHORITY\n";
        let mut refusal = vec![0, WHY.len() as u8, head[2], head[3], head[4], head[5]];
        refusal.extend(bytes(padded(WHY.len()) / 4));
        refusal.extend(WHY);
        refusal.resize(8 + padded(WHY.len()), 0);
        taken.write_all(&refusal).await?;
        return taken.shutdown().await;
    }
    let mut io = lend::connect(&display.at).await?;
    let (name, data) = true_one.map_or((&[][..], &[][..]), |data| (COOKIE, data));
    head[6..8].copy_from_slice(&bytes(name.len()));
    head[8..10].copy_from_slice(&bytes(data.len()));
    let mut setup = head.to_vec();
    for part in [name, data] {
        setup.extend(part);
        setup.resize(padded(setup.len()), 0);
    }
    io.write_all(&setup).await?;
    // Whoever breaks it off knows.
    drop(copy_bidirectional(&mut taken, &mut io).await);
    Ok(())
}

/// `length` up to a multiple of four.
fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_display_is_a_socket_here_or_a_host() {
        let at =
            |text: &str| Display::parse(text).map(|display| (display.at.to_string(), display.number, display.screen));
        let is = |at: &str, number, screen: &str| Some((at.to_owned(), number, screen.to_owned()));
        assert_eq!(at(":0"), is("unix!/tmp/.X11-unix/X0", 0, ""));
        assert_eq!(at("unix:7.1"), is("unix!/tmp/.X11-unix/X7", 7, ".1"));
        assert_eq!(at("localhost:10.0"), is("tcp!localhost!6010", 10, ".0"));
        assert_eq!(at("[::1]:1"), is("tcp!::1!6001", 1, ""));
        assert_eq!(at("/tmp/launch/x:0"), is("unix!/tmp/launch/x:0", 0, ""));
        for wrong in ["", "0", ":", ":x", ":0.x", "h:70000"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_cookie_of_this_machine_comes_before_one_for_any() {
        let display = Display::parse(":7").unwrap();
        let host = host_name().unwrap_or_default().into_bytes();
        let local = |number: &[u8], cookie: &[u8]| {
            let mut entry = 256u16.to_be_bytes().to_vec();
            for part in [&host[..], number, COOKIE, cookie] {
                entry.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
                entry.extend(part);
            }
            entry
        };
        let file = [local(b"8", b"others"), entry(7, b"any"), local(b"7", b"mine")].concat();
        assert_eq!(cookie(&file, &display).unwrap(), b"mine");
        assert_eq!(cookie(&entry(7, b"any"), &display).unwrap(), b"any");
        assert_eq!(cookie(&entry(8, b"any"), &display), None);
    }

    proptest! {
        #[test]
        fn any_authority_file_is_read_safely(file: Vec<u8>) {
            let _ = cookie(&file, &Display::parse(":7").unwrap());
        }
    }
}
