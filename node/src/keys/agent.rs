//! Keys whose private half stays in an ssh-agent: listing them, signing with one.
//!
//! Called when the home says `identity = "agent"` or names a .pub file. Every exchange is one connection and blocks,
//! perhaps for as long as a person takes to confirm (`ssh-add -c`): never called on a runtime's worker.
//! Source: draft-ietf-sshm-ssh-agent. Invariant: what the agent says is bounded and checked like any peer's word.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use ssh_key::PublicKey;

use super::{Key, SecretKey};
use crate::error::{At, Error, Result};

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// The longest message either side accepts (OpenSSH's own bound).
const MAX_MESSAGE: usize = 256 << 10;
/// How long a person may take to confirm.
const PATIENCE: Duration = Duration::from_secs(60);

/// The keys that the agent at `socket` holds and that can be used.
pub fn keys(socket: &Path) -> Result<Vec<Key>> {
    let listed = exchange(socket, &[REQUEST_IDENTITIES]).and_then(|reply| identities(&reply));
    listed.map_err(|reason| Error::new("ask the ssh-agent", socket.display(), reason).remedy("ssh-add -l"))
}

/// The key `key`, to sign by the agent at `socket`.
pub fn secret(socket: &Path, key: Key) -> Result<SecretKey> {
    let scheme = match key.kind().as_str() {
        "ssh-ed25519" => SignatureScheme::ED25519,
        _ => SignatureScheme::ECDSA_NISTP256_SHA256,
    };
    let blob = key.as_public().to_bytes().at("use a key of the ssh-agent", key.fingerprint())?;
    let signer = AgentKey { socket: socket.into(), blob, spki: key.spki().to_vec(), scheme };
    Ok(SecretKey { key, signer: Arc::new(signer) })
}

#[derive(Clone, Debug)]
struct AgentKey {
    socket: PathBuf,
    blob: Vec<u8>,
    spki: Vec<u8>,
    scheme: SignatureScheme,
}

impl SigningKey for AgentKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.scheme).then(|| Box::new(self.clone()) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.spki.as_slice().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.scheme {
            SignatureScheme::ED25519 => SignatureAlgorithm::ED25519,
            _ => SignatureAlgorithm::ECDSA,
        }
    }
}

impl Signer for AgentKey {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rustls::Error> {
        let mut request = vec![SIGN_REQUEST];
        for part in [&self.blob[..], message] {
            request.extend_from_slice(&(part.len() as u32).to_be_bytes());
            request.extend_from_slice(part);
        }
        request.extend_from_slice(&[0; 4]); // no flags
        exchange(&self.socket, &request)
            .and_then(|reply| signature(self.scheme, &reply))
            .map_err(|reason| rustls::Error::General(format!("ssh-agent {}: {reason}", self.socket.display())))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// One request and its reply; each is a length and that many bytes.
fn exchange(socket: &Path, request: &[u8]) -> Result<Vec<u8>, String> {
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock => format!("did not answer within {} s", PATIENCE.as_secs()),
        _ => error.to_string(),
    };
    let mut agent = UnixStream::connect(socket).map_err(io)?;
    agent.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    agent.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    agent.write_all(&[&(request.len() as u32).to_be_bytes(), request].concat()).map_err(io)?;
    let mut len = [0; 4];
    agent.read_exact(&mut len).map_err(io)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MAX_MESSAGE {
        return Err(format!("sent a message of {len} bytes"));
    }
    let mut reply = vec![0; len];
    agent.read_exact(&mut reply).map_err(io)?;
    Ok(reply)
}

fn identities(reply: &[u8]) -> Result<Vec<Key>, String> {
    let Some((&IDENTITIES_ANSWER, rest)) = reply.split_first() else { return Err("would not list its keys".into()) };
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let mut keys = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (blob, comment) = (string(&mut rest)?, string(&mut rest)?);
        // Other kinds of keys are of no use here, and no fault.
        if let Ok(key) = PublicKey::from_bytes(blob).map_err(|e| e.to_string()).and_then(Key::from_public) {
            keys.push(key.commented(String::from_utf8_lossy(comment).replace(char::is_control, "?")));
        }
    }
    Ok(keys)
}

/// The signature in `reply`, as TLS wants it.
fn signature(scheme: SignatureScheme, reply: &[u8]) -> Result<Vec<u8>, String> {
    let Some((&SIGN_RESPONSE, mut rest)) = reply.split_first() else { return Err("refused to sign".into()) };
    let mut signature = string(&mut rest)?;
    let _kind = string(&mut signature)?;
    let mut value = string(&mut signature)?;
    if scheme == SignatureScheme::ED25519 {
        return Ok(value.to_vec()); // 64 bytes, the same in ssh and TLS
    }
    // ssh: two mpints. TLS: a DER sequence of two INTEGERs, whose contents are exactly those of the mpints.
    let (r, s) = (string(&mut value)?, string(&mut value)?);
    if r.len() > 33 || s.len() > 33 {
        return Err("made an overlong signature".into());
    }
    let integer = |n: &[u8]| [&[0x02, n.len() as u8], n].concat();
    let both = [integer(r), integer(s)].concat();
    Ok([&[0x30, both.len() as u8][..], &both].concat())
}

const SHORT: &str = "sent less than it said";

/// One ssh string off the front.
fn string<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let (len, rest) = from.split_first_chunk::<4>().ok_or(SHORT)?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or(SHORT)?;
    *from = rest;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_or_lying_agent_is_an_error() {
        assert!(identities(&[IDENTITIES_ANSWER, 0, 0]).is_err());
        assert!(identities(&[IDENTITIES_ANSWER, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9, 1]).is_err());
        assert!(identities(&[5]).unwrap_err().contains("would not list"));
        assert_eq!(identities(&[IDENTITIES_ANSWER, 0, 0, 0, 0]).unwrap(), []);
        assert!(signature(SignatureScheme::ED25519, &[5]).unwrap_err().contains("refused"));
        assert!(signature(SignatureScheme::ED25519, &[SIGN_RESPONSE, 0, 0, 0, 9, 1]).is_err());
    }
}
