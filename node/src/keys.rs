//! Keys: what proves who a user or a node is.
//!
//! A [`Key`] is public: OpenSSH's line, and the SubjectPublicKeyInfo that travels in TLS 1.3 in place of a certificate
//! (RFC 7250). A [`SecretKey`] can sign: read from an OpenSSH file, or kept by an ssh-agent ([`agent`]). Only ed25519
//! and P-256: an agent signs with RSA in a way that TLS 1.3 forbids, and FIDO keys sign a structure of their own.
//!
//! Invariant: a `Key` always has a SubjectPublicKeyInfo, so that comparing keys is comparing those bytes.

pub mod agent;
pub mod file;
pub mod shown;

use std::fmt::{self, Debug, Display};
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use p9::transport::tls::Identity;
use rustls::pki_types::alg_id;
use rustls::sign::{SigningKey, public_key_to_spki};
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData};
use ssh_key::{HashAlg, PublicKey};

/// A public key that can be used.
#[derive(Clone)]
pub struct Key {
    public: PublicKey,
    spki: Arc<[u8]>,
}

impl Key {
    /// The key of an OpenSSH line: `TYPE BASE64 [COMMENT]`. Errors say what is wrong, in words.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let key =
            PublicKey::from_openssh(line.trim()).map_err(|_| "is no public key in OpenSSH's format".to_owned())?;
        Self::from_public(key)
    }

    /// The key that ssh calls `public`.
    pub fn from_public(public: PublicKey) -> Result<Self, String> {
        let spki = match public.key_data() {
            KeyData::Ed25519(key) => public_key_to_spki(&alg_id::ED25519, key.0),
            KeyData::Ecdsa(EcdsaPublicKey::NistP256(point)) => {
                public_key_to_spki(&alg_id::ECDSA_P256, point.as_bytes())
            }
            _ => {
                let kind = public.algorithm();
                return Err(format!("{kind} keys cannot be used, only ssh-ed25519 and ecdsa-sha2-nistp256"));
            }
        };
        Ok(Self { public, spki: spki.as_ref().into() })
    }

    /// The key that a peer showed in TLS.
    pub fn from_spki(spki: &[u8]) -> Result<Self, String> {
        let unknown = || "is no ed25519 or P-256 key".to_owned();
        // Both encodings are a fixed prefix and the key: ask the one that makes them, with a key that is all zeros.
        let after = |algorithm, len: usize| {
            let zeros = public_key_to_spki(&algorithm, vec![0; len]);
            spki.strip_prefix(&zeros[..zeros.len() - len]).filter(|key| key.len() == len)
        };
        let data = if let Some(key) = after(alg_id::ED25519, 32) {
            KeyData::Ed25519(Ed25519PublicKey(key.try_into().map_err(|_| unknown())?))
        } else {
            let point = after(alg_id::ECDSA_P256, 65).ok_or_else(unknown)?;
            KeyData::Ecdsa(EcdsaPublicKey::from_sec1_bytes(point).map_err(|_| unknown())?)
        };
        Self::from_public(PublicKey::new(data, ""))
    }

    /// The SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// `SHA256:...`, as ssh-keygen -l prints it.
    pub fn fingerprint(&self) -> String {
        self.public.fingerprint(HashAlg::Sha256).to_string()
    }

    /// What OpenSSH calls this kind of key, as `ssh-ed25519`.
    pub fn kind(&self) -> String {
        self.public.algorithm().to_string()
    }

    /// The comment of its line, perhaps empty.
    pub fn comment(&self) -> &str {
        self.public.comment()
    }

    /// The same key with another comment.
    #[must_use]
    pub fn commented(mut self, comment: impl Into<String>) -> Self {
        self.public.set_comment(comment);
        self
    }

    /// `TYPE BASE64`, without the comment.
    pub fn bare_line(&self) -> String {
        self.clone().commented("").to_string()
    }

    /// The key as ssh knows it.
    pub fn as_public(&self) -> &PublicKey {
        &self.public
    }
}

impl Display for Key {
    /// The OpenSSH line, with its comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.public.to_openssh().map_err(|_| fmt::Error)?.trim_end())
    }
}

impl Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.fingerprint(), self.comment())
    }
}

impl PartialEq for Key {
    /// Comments do not matter.
    fn eq(&self, other: &Self) -> bool {
        self.spki == other.spki
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spki.hash(state);
    }
}

/// A key that can sign: its private half is here, or in an agent.
#[derive(Clone, Debug)]
pub struct SecretKey {
    /// Its public half.
    pub key: Key,
    /// What signs. It may block, for as long as a person takes to confirm at an agent.
    pub signer: Arc<dyn SigningKey>,
}

impl SecretKey {
    /// The key as the transport wants it.
    pub fn identity(&self) -> Identity {
        Identity { key: self.signer.clone(), spki: self.key.spki().to_vec() }
    }
}

/// The public half of the key file `path`, private or public; of a private one that is locked, the one beside it.
pub fn public_half(path: &Path) -> crate::Result<Option<Key>> {
    if path.extension().is_some_and(|e| e == "pub") {
        return file::read_public(path).map(Some);
    }
    match file::read(path)? {
        Some(secret) => Ok(Some(secret.key)),
        None => Ok(file::read_public(&file::public_path(path)).ok()),
    }
}

/// Checks a fingerprint as users give it, `SHA256:` and 43 characters of base64.
pub fn check_fingerprint(text: &str) -> Result<(), String> {
    match text.parse::<ssh_key::Fingerprint>() {
        Ok(print) if print.is_sha256() => Ok(()),
        _ => Err(format!("`{text}` is no fingerprint: it is SHA256: and 43 characters, as `slashn up` prints it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here today";
    const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

    #[test]
    fn a_key_is_the_same_by_its_line_and_by_what_travels() {
        for line in [ED25519, P256] {
            let key = Key::from_line(line).unwrap();
            assert_eq!(Key::from_spki(key.spki()).unwrap(), key);
            assert_eq!(key.to_string(), line);
            check_fingerprint(&key.fingerprint()).unwrap();
        }
        assert_eq!(Key::from_line(ED25519).unwrap().comment(), "me@here today");
    }

    #[test]
    fn what_is_no_key_is_refused_in_words() {
        assert!(Key::from_line("ssh-ed25519 AAAA").unwrap_err().contains("no public key"));
        let key = Key::from_line(ED25519).unwrap();
        assert!(Key::from_spki(&key.spki()[..43]).is_err());
        assert!(Key::from_spki(&[key.spki(), &[0]].concat()).is_err());
        assert!(Key::from_spki(b"").is_err());
        assert!(check_fingerprint("SHA256:short").is_err());
        assert!(check_fingerprint("").is_err());
    }
}
