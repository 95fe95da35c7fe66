//! Grants: what a user lets a node, or a friend, reach on another node, signed by the user's key.
//!
//! A grant is text: a few lines that say who may (the holder), where (the audience), what, and until when, and the
//! signature of whoever grants it, in OpenSSH's format (PROTOCOL.sshsig), so that an ssh-agent can make it and
//! `ssh-keygen -Y verify -n grant@slashn` can check it. Its holder may narrow it, by more of the same that the holder's
//! key signs. The audience checks it offline ([`check`]): the first signer is one whom it lets in itself, each further
//! one is the holder of what came before, nothing is wider than what came before, none of it is over, and the last
//! holder is the peer whose key TLS has proven. Invariant: rights that are given out are within each part's.
//!
//! ```text
//! slashn grant
//! holder SHA256:...
//! audience SHA256:...
//! only src,docs:ro
//! session beta/17
//! until 1795831200
//! -----BEGIN SSH SIGNATURE-----
//! ...
//! ```

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use p9::Rights;
use p9::who::Only;
use rustls::SignatureScheme;
use rustls::crypto::ring;
use rustls::pki_types::alg_id;
use ssh_key::public::{EcdsaPublicKey, KeyData};
use ssh_key::{HashAlg, LineEnding, PublicKey, Signature, SshSig};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::authorized::{Granted, only_text, parse_only};
use crate::keys::{Key, SecretKey};

/// The longest grant, in bytes.
pub const MAX_BYTES: usize = 16 << 10;
/// How often a grant can be handed on.
const MAX_PARTS: usize = 8;
/// What the signature is for: `ssh-keygen -Y verify -n`.
const NAMESPACE: &str = "grant@slashn";
const END: &str = "-----END SSH SIGNATURE-----\n";

/// What one part of a grant says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// The key that may use it, as `SHA256:...`.
    pub holder: String,
    /// The node that it is for, as `SHA256:...` of the node's key.
    pub audience: String,
    /// What the holder may reach there.
    pub only: Vec<Only>,
    /// What it was made for, for those who read the logs: one word.
    pub session: String,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

/// `lifetime` from now on, in seconds since 1970.
pub fn until(lifetime: Duration) -> u64 {
    now().saturating_add(lifetime.as_secs())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Grant {
    fn text(&self) -> String {
        let Self { holder, audience, only, session, until } = self;
        let only = only_text(only);
        format!("slashn grant\nholder {holder}\naudience {audience}\nonly {only}\nsession {session}\nuntil {until}\n")
    }

    /// What `text` says, if it is exactly what [`Grant::text`] writes.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name).map(str::to_owned);
        field("slashn grant").filter(String::is_empty)?;
        let (holder, audience) = (field("holder ")?, field("audience ")?);
        let only = parse_only(&field("only ")?).ok()?;
        let (session, until) = (field("session ")?, field("until ")?.parse().ok()?);
        let grant = Self { holder, audience, only, session, until };
        (grant.text() == text).then_some(grant)
    }

    /// The grant as text, signed by `by`. It may block, for as long as a person takes to confirm at an ssh-agent.
    /// Errors: why it cannot be signed.
    pub fn sign(&self, by: &SecretKey) -> Result<String, String> {
        let text = self.text();
        Ok(text.clone() + &signature(&text, by)?)
    }

    /// `grant`, of which `by` is the holder, narrowed to what this says. Errors: this is wider; it cannot be signed.
    pub fn narrow(&self, grant: &str, by: &SecretKey) -> Result<String, String> {
        let parts = parts(grant)?;
        let (last, _) = parts.last().ok_or(NONE)?;
        if last.holder != by.key.fingerprint() {
            return Err("its holder is another".into());
        }
        self.within(last)?;
        let text = self.text();
        Ok(grant.to_string() + &text + &signature(&(grant.to_string() + &text), by)?)
    }

    /// Refuses to be wider than `wider` is.
    fn within(&self, wider: &Self) -> Result<(), String> {
        let (mine, theirs) = (Rights::Only(self.only.clone().into()), Rights::Only(wider.only.clone().into()));
        let same = self.audience == wider.audience && self.session == wider.session;
        if same && self.until <= wider.until && mine.within(&theirs) {
            return Ok(());
        }
        Err("it is wider than what it was made of".into())
    }
}

const NONE: &str = "it is no grant";

/// What the holder of `grant` whose key has the fingerprint `holder` may reach on the node whose key is `audience`,
/// where `authorized` says what a key may reach that comes for itself, and until when. Errors: why it is not honoured,
/// for the log.
pub fn check(
    grant: &str, holder: &str, audience: &str, authorized: &dyn Fn(&Key) -> Option<Granted>,
) -> Result<(Granted, u64), String> {
    let parts = parts(grant)?;
    let (first, rest) = parts.split_first().ok_or(NONE)?;
    let by = authorized(&first.1).ok_or_else(|| format!("{} may not come in itself", first.1.fingerprint()))?;
    let mut last = &first.0;
    for (part, signer) in rest {
        if last.holder != signer.fingerprint() {
            return Err(format!("{} narrowed it, and is not its holder", signer.fingerprint()));
        }
        part.within(last)?;
        last = part;
    }
    if last.audience != audience {
        return Err("it is for another node".into());
    }
    if last.holder != holder {
        return Err(format!("its holder is {}", last.holder));
    }
    if last.until <= now() {
        return Err("its time is over".into());
    }
    let rights = by.rights.narrowed(&last.only);
    Ok((Granted { fingerprint: last.holder.as_str().into(), user: by.user, rights }, last.until))
}

/// What a connection begins with on which `grant` is shown.
pub fn said(grant: &str) -> Vec<u8> {
    format!("grant {}\n{grant}", grant.len()).into_bytes()
}

/// What [`said`] says, at the beginning of `io`. Errors: it is not that.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let (mut line, wrong) = (Vec::new(), || io::Error::new(io::ErrorKind::InvalidData, "it shows no grant"));
    // Byte by byte: what follows it is another's.
    while line.last() != Some(&b'\n') && line.len() < 16 {
        line.push(io.read_u8().await?);
    }
    let length = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("grant ")?.trim_end().parse().ok());
    let mut grant = vec![0; length.filter(|length| *length <= MAX_BYTES).ok_or_else(wrong)?];
    io.read_exact(&mut grant).await?;
    Ok(grant)
}

/// Until when the holder of `grant` may use it. Errors: it is none.
pub fn end(grant: &str) -> Result<u64, String> {
    parts(grant)?.last().map(|(part, _)| part.until).ok_or_else(|| NONE.into())
}

/// The parts of a grant, each with the key that has signed it and all before it.
fn parts(grant: &str) -> Result<Vec<(Grant, Key)>, String> {
    if grant.len() > MAX_BYTES {
        return Err("it is too long".into());
    }
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < grant.len() {
        if parts.len() == MAX_PARTS {
            return Err("it was handed on too often".into());
        }
        let end = at + grant[at..].find(END).ok_or(NONE)? + END.len();
        let begin = at + grant[at..end].find("-----BEGIN SSH SIGNATURE-----\n").ok_or(NONE)?;
        let part = Grant::parse(&grant[at..begin]).ok_or(NONE)?;
        let signer = verify(&grant[..begin], &grant[begin..end])?;
        parts.push((part, signer));
        at = end;
    }
    Ok(parts)
}

/// The signature of `by` on `text`, as PEM.
fn signature(text: &str, by: &SecretKey) -> Result<String, String> {
    let words = |err: ssh_key::Error| err.to_string();
    let signed = SshSig::signed_data(NAMESPACE, HashAlg::Sha512, text.as_bytes()).map_err(words)?;
    let signer = by.signer.choose_scheme(&[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]);
    let made = signer.ok_or("the key cannot sign")?.sign(&signed).map_err(|err| err.to_string())?;
    let public = by.key.as_public();
    let made = match public.key_data() {
        KeyData::Ed25519(_) => made,
        _ => to_ssh(&made).ok_or("the key makes no signature")?,
    };
    let made = Signature::new(public.algorithm(), made).map_err(words)?;
    let pem = SshSig::new(public.key_data().clone(), NAMESPACE, HashAlg::Sha512, made).map_err(words)?;
    pem.to_pem(LineEnding::LF).map_err(words)
}

/// The key that made the signature `pem` on `text`. Errors: none did.
fn verify(text: &str, pem: &str) -> Result<Key, String> {
    let forged = || "its signature is none".to_owned();
    let signature = SshSig::from_pem(pem).map_err(|_| forged())?;
    if signature.namespace() != NAMESPACE || signature.to_pem(LineEnding::LF).as_deref() != Ok(pem) {
        return Err(forged());
    }
    let signed = SshSig::signed_data(NAMESPACE, signature.hash_alg(), text.as_bytes()).map_err(|_| forged())?;
    let key = Key::from_public(PublicKey::new(signature.public_key().clone(), "")).map_err(|_| forged())?;
    let (id, public, made) = match signature.public_key() {
        KeyData::Ed25519(key) => (alg_id::ED25519, key.0.to_vec(), Some(signature.signature_bytes().to_vec())),
        KeyData::Ecdsa(EcdsaPublicKey::NistP256(point)) => {
            (alg_id::ECDSA_P256, point.as_bytes().to_vec(), from_ssh(signature.signature_bytes()))
        }
        _ => return Err(forged()),
    };
    if signature.signature().algorithm() != key.as_public().algorithm() {
        return Err(forged());
    }
    let kind = if id == alg_id::ED25519 { alg_id::ED25519 } else { alg_id::ECDSA_SHA256 };
    let known = ring::default_provider().signature_verification_algorithms.all;
    let found = known.iter().find(|known| known.public_key_alg_id() == id && known.signature_alg_id() == kind);
    let valid = found.zip(made).is_some_and(|(known, made)| known.verify_signature(&public, &signed, &made).is_ok());
    if valid { Ok(key) } else { Err(forged()) }
}

/// A P-256 signature of TLS's, two INTEGERs in DER, as ssh's: two mpints, whose contents are the same.
fn to_ssh(der: &[u8]) -> Option<Vec<u8>> {
    let mut rest = der.strip_prefix(&[0x30])?.get(1..)?;
    let mut all = Vec::new();
    for _ in 0..2 {
        let (len, after) = rest.strip_prefix(&[0x02])?.split_first()?;
        let (number, after) = after.split_at_checked(usize::from(*len))?;
        all.extend_from_slice(&u32::from(*len).to_be_bytes());
        all.extend_from_slice(number);
        rest = after;
    }
    rest.is_empty().then_some(all)
}

/// The other way round.
fn from_ssh(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut both = Vec::new();
    for _ in 0..2 {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let len = u32::from_be_bytes(*len);
        let (number, after) = after.split_at_checked(len as usize)?;
        both.extend([0x02, u8::try_from(len).ok().filter(|len| *len <= 33)?]);
        both.extend_from_slice(number);
        rest = after;
    }
    rest.is_empty().then(|| [&[0x30, both.len() as u8], &both[..]].concat())
}

#[cfg(test)]
mod tests;
