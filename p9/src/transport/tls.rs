//! TLS 1.3 with raw public keys (RFC 7250) on both sides: no certificates, no names, no other version.
//!
//! Each side shows a SubjectPublicKeyInfo and proves that it has its private key; whether that key is welcome is for
//! the caller's closure to say, once per handshake. Nothing is resumed: a resumed session would run no such check.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor, TlsConnector, TlsStream};

use super::Stream;

/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// The application protocols that both sides name (ALPN): of a peer who comes for itself, and of one who comes for
/// another and shows a grant of that one's before it speaks 9P.
const PROTOCOL: &[u8] = b"9p";
const BY_GRANT: &[u8] = b"9p-grant";

/// Who I am: a key to sign with, and its public half.
#[derive(Clone)]
pub struct Identity {
    /// Signs handshakes. It may block (an ssh-agent): handshakes then want a thread that may.
    pub key: Arc<dyn SigningKey>,
    /// The SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
}

impl Identity {
    fn certified(&self) -> Arc<CertifiedKey> {
        // In place of a certificate stands the key itself.
        Arc::new(CertifiedKey::new(vec![CertificateDer::from(self.spki.clone())], self.key.clone()))
    }
}

/// Says whether the peer with this SubjectPublicKeyInfo is welcome.
pub type Welcome = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// The configuration of a side that accepts, as `me`, those who are `welcome`.
pub fn server_config(me: &Identity, welcome: Welcome) -> Result<Arc<ServerConfig>, Error> {
    server(me, welcome, PROTOCOL)
}

/// The same for those who come with a grant: of any key, since the grant is to say whether they are welcome.
pub fn server_config_by_grant(me: &Identity) -> Result<Arc<ServerConfig>, Error> {
    server(me, Arc::new(|_: &[u8]| true), BY_GRANT)
}

fn server(me: &Identity, welcome: Welcome, protocol: &[u8]) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Keys::new(welcome)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(me.certified())));
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The configuration of a side that connects, as `me`, to one that is `welcome`.
pub fn client_config(me: &Identity, welcome: Welcome) -> Result<Arc<ClientConfig>, Error> {
    client(me, welcome, PROTOCOL)
}

/// The same for one that comes with a grant.
pub fn client_config_by_grant(me: &Identity, welcome: Welcome) -> Result<Arc<ClientConfig>, Error> {
    client(me, welcome, BY_GRANT)
}

fn client(me: &Identity, welcome: Welcome, protocol: &[u8]) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Keys::new(welcome)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(me.certified())));
    config.alpn_protocols = vec![protocol.to_vec()];
    // The name says nothing here, and would travel in clear.
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts a handshake on `io`; gives the stream and the peer's SubjectPublicKeyInfo. Errors: what the handshake met;
/// `TimedOut` after [`HANDSHAKE`].
pub async fn accept<S: Stream>(io: S, config: Arc<ServerConfig>) -> io::Result<(TlsStream<S>, Vec<u8>)> {
    let stream = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(io)).await.map_err(|_| too_slow())??;
    accepted(stream.into())
}

/// The same, by `own` with a peer who comes for itself, by `by_grant` with one who comes with a grant: which, comes
/// last.
pub async fn accept_either<S: Stream>(
    io: S, own: Arc<ServerConfig>, by_grant: Arc<ServerConfig>,
) -> io::Result<(TlsStream<S>, Vec<u8>, bool)> {
    let shaking = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let granted = start.client_hello().alpn().is_some_and(|mut named| named.any(|name| name == BY_GRANT));
        let stream = start.into_stream(if granted { by_grant } else { own }).await?;
        Ok::<_, io::Error>((stream, granted))
    };
    let (stream, granted) = timeout(HANDSHAKE, shaking).await.map_err(|_| too_slow())??;
    let (stream, peer) = accepted(stream.into())?;
    Ok((stream, peer, granted))
}

fn accepted<S: Stream>(stream: TlsStream<S>) -> io::Result<(TlsStream<S>, Vec<u8>)> {
    let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|key| key.to_vec());
    let peer = peer.ok_or_else(|| io::Error::other("the peer showed no key"))?;
    Ok((stream, peer))
}

/// Shakes hands on `io` with the side that accepts; gives the stream and that side's SubjectPublicKeyInfo.
///
/// TLS 1.3 lets a client finish before the server has looked at its key: a refusal meets the first read.
pub async fn connect<S: Stream>(io: S, config: Arc<ClientConfig>) -> io::Result<(TlsStream<S>, Vec<u8>)> {
    let name = ServerName::try_from("slashn").map_err(io::Error::other)?;
    let shaking = TlsConnector::from(config).connect(name, io);
    let stream = timeout(HANDSHAKE, shaking).await.map_err(|_| too_slow())??;
    accepted(stream.into())
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no handshake within {HANDSHAKE:?}"))
}

/// Whether `err` of a stream means that the peer did not welcome our key.
pub fn is_refusal(err: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let inner = err.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(
        inner,
        Some(Error::AlertReceived(
            Alert::BadCertificate | Alert::AccessDenied | Alert::CertificateUnknown | Alert::UnknownCA
        ))
    )
}

/// Whether `err` of a handshake means that we did not welcome the peer's key.
pub fn is_stranger(err: &io::Error) -> bool {
    let inner = err.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)))
}

/// Verifies both sides alike: by the exact bytes of the key, which nothing interprets before it is welcome.
struct Keys {
    welcome: Welcome,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Keys {
    fn new(welcome: Welcome) -> Self {
        Self { welcome, algorithms: ring::default_provider().signature_verification_algorithms }
    }

    fn check(&self, key: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        if more.is_empty() && (self.welcome)(key) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn signature(
        &self, message: &[u8], key: &CertificateDer<'_>, signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signed,
            &self.algorithms,
        )
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// What both verifiers answer alike.
macro_rules! tls13_only {
    () => {
        fn verify_tls12_signature(
            &self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".into()))
        }

        fn verify_tls13_signature(
            &self, message: &[u8], key: &CertificateDer<'_>, signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.signature(message, key, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Keys {
    fn verify_server_cert(
        &self, key: &CertificateDer<'_>, more: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key, more).map(|()| ServerCertVerified::assertion())
    }

    tls13_only!();
}

impl ClientCertVerifier for Keys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self, key: &CertificateDer<'_>, more: &[CertificateDer<'_>], _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key, more).map(|()| ClientCertVerified::assertion())
    }

    tls13_only!();
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{PrivatePkcs8KeyDer, alg_id};
    use rustls::sign::public_key_to_spki;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// An ed25519 identity from a seed: PKCS#8 is a fixed prefix and the seed.
    fn identity(seed: u8) -> Identity {
        let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
        der.extend_from_slice(&[seed; 32]);
        let key = ring::sign::any_supported_type(&PrivatePkcs8KeyDer::from(der).into()).unwrap();
        let spki = key.public_key().map(|key| key.to_vec());
        let spki = spki.unwrap_or_else(|| public_key_to_spki(&alg_id::ED25519, [seed; 32]).to_vec());
        Identity { key, spki }
    }

    fn only(identity: &Identity) -> Welcome {
        let spki = identity.spki.clone();
        Arc::new(move |key: &[u8]| key == spki)
    }

    async fn shake(client: &Identity, server: &Identity, expects: &Identity, admits: &Identity) -> io::Result<Vec<u8>> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let accepting = server_config(server, only(admits)).unwrap();
        let answer = tokio::spawn(async move {
            let (mut stream, peer) = accept(far, accepting).await?;
            stream.write_all(b"hi").await?;
            stream.flush().await?;
            // Until the peer has read it.
            let _ = stream.read(&mut [0]).await;
            Ok::<_, io::Error>(peer)
        });
        let connecting = client_config(client, only(expects)).unwrap();
        let (mut stream, peer) = connect(near, connecting).await?;
        assert_eq!(peer, server.spki);
        stream.read_exact(&mut [0; 2]).await?;
        drop(stream);
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn both_sides_prove_the_keys_that_the_other_expects() {
        let (me, node) = (identity(1), identity(2));
        assert_eq!(shake(&me, &node, &node, &me).await.unwrap(), me.spki);
    }

    #[tokio::test]
    async fn a_stranger_is_refused_and_can_tell() {
        let (me, node, stranger) = (identity(1), identity(2), identity(3));
        let err = shake(&stranger, &node, &node, &me).await.unwrap_err();
        assert!(is_refusal(&err), "{err:?}");
    }

    #[tokio::test]
    async fn a_node_with_another_key_is_refused() {
        let (me, node, other) = (identity(1), identity(2), identity(3));
        let err = shake(&me, &other, &node, &me).await.unwrap_err();
        assert!(is_stranger(&err), "{err:?}");
    }
}
