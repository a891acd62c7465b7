//! TLS 1.3 between keys: raw public keys (RFC 7250) of Ed25519 (RFC 8410), no certificates, no names, no resumption.
//!
//! Both ends show their key and prove that they hold it. The server takes any key and is told which it was; a client
//! that knows whom it expects refuses everybody else before anything is sent to them. Sessions are not resumed and no
//! early data is sent: every connection proves both keys anew.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use traversal_proto::wire::{Identity, PeerId};

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands before the 32 secret bytes in a PrivateKeyInfo (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The server name that clients give: keys are checked, names are not.
pub const SERVER_NAME: &str = "traversal.invalid";

/// [`SERVER_NAME`] as rustls wants it.
pub fn server_name() -> ServerName<'static> {
    match ServerName::try_from(SERVER_NAME) {
        Ok(name) => name,
        Err(_) => unreachable!("the constant is a DNS name"),
    }
}

/// The other end is not who was expected: somebody else holds that address now, or stands in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} but met {found}")]
pub struct WrongPeer {
    /// Whom the caller asked for.
    pub expected: PeerId,
    /// Whose key was shown.
    pub found: PeerId,
}

/// Why the other end's key is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerKeyError {
    /// The handshake is not over, or no key was shown.
    #[error("the other end has shown no key")]
    Missing,
    /// A key of another kind than Ed25519, or a certificate.
    #[error("the other end's key is not a raw Ed25519 public key")]
    NotEd25519,
}

/// A server that is `identity`, takes clients with any key, and speaks `alpn`.
///
/// # Errors
/// None in practice: only if the ring provider lacked TLS 1.3.
pub fn server(identity: &Identity, alpn: &[&[u8]]) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = Arc::new(AnyClient(provider.signature_verification_algorithms));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(identity)?)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that is `identity` and speaks `alpn`. With `expected` the handshake fails with [`WrongPeer`] at anybody
/// else's; without, any key is taken: ask for it afterwards.
///
/// # Errors
/// None in practice: only if the ring provider lacked TLS 1.3.
pub fn client(identity: &Identity, expected: Option<PeerId>, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedServer { expected, algorithms }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(identity)?)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// Whose key the other end of a TLS session has shown: from `peer_certificates()`.
pub fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerId, PeerKeyError> {
    let [key] = certificates.ok_or(PeerKeyError::Missing)? else { return Err(PeerKeyError::Missing) };
    id_of(key).ok_or(PeerKeyError::NotEd25519)
}

/// The [`WrongPeer`] that an error was caused by, if it was: looks through rustls's, quinn's and I/O errors.
pub fn wrong_peer(error: &(dyn std::error::Error + 'static)) -> Option<WrongPeer> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(wrong) = error.downcast_ref::<WrongPeer>() {
            return Some(*wrong);
        }
        if let Some(Error::Other(OtherError(inner))) = error.downcast_ref::<Error>() {
            return wrong_peer(&**inner);
        }
        if let Some(quinn::ConnectionError::TransportError(ours)) = error.downcast_ref() {
            return WrongPeer::in_text(&ours.reason);
        }
        // An I/O error hides what it is made from, and tells only what that was caused by.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

impl WrongPeer {
    /// quinn keeps only the text of a TLS error of our own making.
    fn in_text(text: &str) -> Option<WrongPeer> {
        let (before, after) = text.split_once(" but met ")?;
        let expected = before.rsplit(' ').next()?.parse().ok()?;
        let found = after.split(' ').next()?.parse().ok()?;
        Some(WrongPeer { expected, found })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The key with the "certificate" that shows it: its SubjectPublicKeyInfo.
fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = [&PKCS8_PREFIX[..], &identity.secret()].concat();
    let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))?;
    let spki = [&SPKI_PREFIX[..], identity.peer_id().as_bytes()].concat();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
}

fn id_of(spki: &[u8]) -> Option<PeerId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PeerId::from_bytes(key.try_into().ok()?))
}

/// The key of a certificate, with nothing beside it.
fn shown(end_entity: &[u8], intermediates: &[CertificateDer<'_>]) -> Result<PeerId, Error> {
    let id = id_of(end_entity).filter(|_| intermediates.is_empty());
    id.ok_or_else(|| Error::Other(OtherError(Arc::new(PeerKeyError::NotEd25519))))
}

struct PinnedServer {
    expected: Option<PeerId>,
    algorithms: WebPkiSupportedAlgorithms,
}

struct AnyClient(WebPkiSupportedAlgorithms);

/// What both verifiers have in common: the proof that the shown key is held.
macro_rules! proof_of_possession {
    ($algorithms:tt) => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
            verify_tls13_signature_with_raw_key(message, &key, signature, &self.$algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = shown(end_entity, intermediates)?;
        match self.expected {
            Some(expected) if expected != found => {
                Err(Error::Other(OtherError(Arc::new(WrongPeer { expected, found }))))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    proof_of_possession!(algorithms);
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        shown(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    proof_of_possession!(0);
}

impl fmt::Debug for PinnedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedServer").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl fmt::Debug for AnyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyClient")
    }
}
