//! A key pair.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};

use super::PeerId;

/// An Ed25519 key pair: what a peer or supernode is known by, and signs its records with.
#[derive(Clone)]
pub struct Identity(SigningKey);

impl Identity {
    /// The identity with this private key (the 32-byte seed of RFC 8032 §5.1.5). Where the bytes come from is the
    /// caller's business: the operating system, a file, a test's generator.
    pub fn from_secret(secret: &[u8; 32]) -> Identity {
        Identity(SigningKey::from_bytes(secret))
    }

    /// The private key.
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key.
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` (RFC 8032, pure Ed25519).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// Shows the public key only.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.peer_id())
    }
}
