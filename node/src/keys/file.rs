//! Private keys in OpenSSH's files: making one, reading one.
//!
//! Called by `slashn init`, by whoever opens the home, and by `doctor`. Invariant: a key that is read signs with the
//! public key that its file names.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::SigningKey;
use ssh_key::private::{EcdsaKeypair, Ed25519Keypair, Ed25519PrivateKey, KeypairData};
use ssh_key::public::Ed25519PublicKey;
use ssh_key::{LineEnding, PrivateKey};

use super::{Key, SecretKey};
use crate::error::{At, Error, Result};
use crate::files::{self, Guard};

/// PKCS#8 version 1 (RFC 8410) up to the ed25519 seed.
const PKCS8_ED25519: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Makes a fresh ed25519 key, the file `path` (mode 0600) and `path`.pub, neither of which is there yet.
pub fn generate(path: &Path, comment: &str) -> Result<Key> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).at("make a key", path.display())?;
    let signer = ed25519_signer(&seed).at("make a key", path.display())?;
    let spki = signer.public_key().ok_or_else(|| Error::new("make a key", path.display(), "it has no public half"))?;
    let key = Key::from_spki(&spki).at("make a key", path.display())?.commented(comment);
    // The public key is the end of its SubjectPublicKeyInfo.
    let public = spki.last_chunk::<32>().copied().unwrap_or_default();
    let pair = Ed25519Keypair { public: Ed25519PublicKey(public), private: Ed25519PrivateKey::from_bytes(&seed) };
    let private = PrivateKey::new(KeypairData::Ed25519(pair), comment).at("make a key", path.display())?;
    let text = private.to_openssh(LineEnding::LF).at("make a key", path.display())?;
    files::create("make a key", path, &text, 0o600)?;
    write_public(path, &key)?;
    Ok(key)
}

/// Writes `path`.pub beside the private key `path`.
pub fn write_public(path: &Path, key: &Key) -> Result<()> {
    files::replace("write a public key", &public_path(path), &format!("{key}\n"), 0o644)
}

/// Where the public half of the private key file `path` is kept.
pub fn public_path(path: &Path) -> std::path::PathBuf {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

/// The key in the private key file `path`. Errors name the file and what to do; `Ok(None)` is a key that is locked by
/// a passphrase, which only an agent can open.
pub fn read(path: &Path) -> Result<Option<SecretKey>> {
    const STEP: &str = "read a private key";
    let garbled = |reason: &dyn std::fmt::Display| {
        Error::new(STEP, path.display(), format_args!("is no whole OpenSSH private key: {reason}"))
            .remedy(format!("ssh-keygen -y -f {}", path.display()))
    };
    let private = PrivateKey::from_openssh(files::read(STEP, path, Guard::Private)?).map_err(|e| garbled(&e))?;
    let signer = match private.key_data() {
        KeypairData::Encrypted(_) => return Ok(None),
        KeypairData::Ed25519(pair) => ed25519_signer(&pair.private.to_bytes()),
        KeypairData::Ecdsa(EcdsaKeypair::NistP256 { public, private }) => {
            // SEC1 ECPrivateKey (RFC 5915) with the curve and the public point.
            let mut der = b"\x30\x77\x02\x01\x01\x04\x20".to_vec();
            der.extend_from_slice(private.as_slice());
            der.extend_from_slice(b"\xa0\x0a\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\xa1\x44\x03\x42\x00");
            der.extend_from_slice(public.as_bytes());
            any_supported_type(&PrivateKeyDer::from(PrivateSec1KeyDer::from(der)))
        }
        _ => {
            let kind = private.algorithm();
            let reason = format!("{kind} keys cannot be used, only ssh-ed25519 and ecdsa-sha2-nistp256");
            return Err(Error::new(STEP, path.display(), reason));
        }
    };
    let signer = signer.map_err(|e| garbled(&e))?;
    let key = Key::from_public(private.public_key().clone()).map_err(|e| garbled(&e))?;
    if signer.public_key().as_deref() != Some(key.spki()) {
        return Err(garbled(&"its two halves do not belong together"));
    }
    Ok(Some(SecretKey { key, signer }))
}

/// The public key in the file `path`.
pub fn read_public(path: &Path) -> Result<Key> {
    const STEP: &str = "read a public key";
    Key::from_line(&files::read(STEP, path, Guard::Unwritable)?)
        .map_err(|reason| Error::new(STEP, format_args!("{}:1", path.display()), reason))
}

fn ed25519_signer(seed: &[u8; 32]) -> std::result::Result<Arc<dyn SigningKey>, rustls::Error> {
    let der = PrivatePkcs8KeyDer::from([PKCS8_ED25519, seed].concat());
    any_supported_type(&PrivateKeyDer::from(der))
}

#[cfg(test)]
mod tests {
    use rustls::SignatureScheme;

    use super::*;

    #[test]
    fn a_fresh_key_reads_back_and_signs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let key = generate(&path, "me@here").unwrap();
        let read = read(&path).unwrap().unwrap();
        assert_eq!((&read.key, read.key.comment()), (&key, "me@here"));
        assert_eq!(read_public(&public_path(&path)).unwrap().to_string(), key.to_string());
        let signer = read.signer.choose_scheme(&[SignatureScheme::ED25519]).unwrap();
        assert_eq!(signer.sign(b"text").unwrap().len(), 64);
        assert!(generate(&path, "again").is_err(), "a key is never overwritten");
    }

    #[test]
    fn a_garbled_key_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        generate(&path, "me").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("no whole OpenSSH private key") && error.contains("/id"), "{error}");
    }

    #[test]
    fn a_private_key_with_anothers_public_half_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        generate(&one, "").unwrap();
        generate(&other, "").unwrap();
        let pair = |path| PrivateKey::from_openssh(std::fs::read_to_string(path).unwrap()).unwrap();
        let (one, other) = (pair(&one), pair(&other));
        let halves = Ed25519Keypair {
            public: one.key_data().ed25519().unwrap().public,
            private: other.key_data().ed25519().unwrap().private.clone(),
        };
        let path = dir.path().join("mixed");
        let text = PrivateKey::from(halves).to_openssh(LineEnding::LF).unwrap();
        files::create("make", &path, &text, 0o600).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("do not belong together"));
    }
}
