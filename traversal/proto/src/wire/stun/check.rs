//! Connectivity checks between two peers.

use std::{fmt, net::SocketAddr};

use stun_rs::{
    HMACKey,
    attributes::{ice::UseCandidate, stun::XorMappedAddress},
};

use super::{
    Class, StunError, TransactionId, codec,
    scan::{self, INTEGRITY_SHA256, USE_CANDIDATE, XOR_MAPPED_ADDRESS},
};
use crate::address;

/// The key that two peers' checks are signed with: 32 secret bytes that both export from their QUIC connection.
///
/// The short-term credential of RFC 8489 §9.1 is a password, so the bytes are written in lower-case hex: 64 characters,
/// which are the HMAC key.
#[derive(Clone)]
pub struct CheckKey(HMACKey);

impl CheckKey {
    /// The key with these bytes.
    pub fn new(secret: &[u8; 32]) -> CheckKey {
        let hex: String = secret.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect();
        match HMACKey::new_short_term(hex) {
            Ok(key) => CheckKey(key),
            Err(_) => unreachable!("hex digits are a valid OpaqueString (RFC 8265)"),
        }
    }
}

fn digit(nibble: u8) -> char {
    char::from_digit(nibble.into(), 16).unwrap_or('0')
}

/// Never shows the secret.
impl fmt::Debug for CheckKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckKey(…)")
    }
}

/// A check, or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Does this pair of addresses work?
    Request {
        /// With the receiver's tag.
        id: TransactionId,
        /// The sender is going to use this pair (RFC 8445's USE-CANDIDATE).
        nominate: bool,
    },
    /// It does, in this direction.
    Response {
        /// From the request.
        id: TransactionId,
        /// Where the request came from: for the receiver a peer-reflexive candidate if it is new.
        mapped: SocketAddr,
    },
}

impl Check {
    /// The check as a datagram: 64 to 88 bytes.
    pub fn encode(&self, key: &CheckKey) -> Vec<u8> {
        match *self {
            Check::Request { id, nominate } => {
                let attributes = nominate.then(|| UseCandidate::default().into());
                codec::encode(Class::Request, id, attributes, Some(&key.0), true)
            }
            Check::Response { id, mapped } => {
                let attributes = [XorMappedAddress::from(address::canonical(mapped)).into()];
                codec::encode(Class::Success, id, attributes, Some(&key.0), true)
            }
        }
    }

    /// Reads and authenticates a check. Which key to try, [`peek`](super::peek) tells: a request's tag is the receiver's
    /// own, a response's id is that of a request.
    pub fn decode(bytes: &[u8], key: &CheckKey) -> Result<Check, StunError> {
        let header = scan::scan(bytes, &[USE_CANDIDATE, XOR_MAPPED_ADDRESS, INTEGRITY_SHA256])?;
        let message = codec::decode(bytes, Some(&key.0))?;
        match header.class {
            Class::Request => {
                Ok(Check::Request { id: header.id, nominate: message.get::<UseCandidate>().is_some() })
            }
            Class::Success => {
                let mapped = message.get::<XorMappedAddress>().and_then(|a| a.as_xor_mapped_address().ok());
                let mapped = *mapped.ok_or(StunError::BadAttribute)?.socket_address();
                Ok(Check::Response { id: header.id, mapped: address::canonical(mapped) })
            }
            Class::Indication => Err(StunError::Type(0x0011)),
            Class::Error => Err(StunError::Type(0x0111)),
        }
    }
}
