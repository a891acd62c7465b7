//! How a datagram proves that it comes from the holder of a session, without showing the secret.

use std::fmt;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::frame::{Cookie, SessionId};

/// The secret of one relay session: 16 bytes that the supernode hands over on the encrypted control connection. It
/// never travels in a datagram; [`bind`](Self::bind) and [`bound`](Self::bound) are what does.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayToken(pub [u8; 16]);

/// The first 16 bytes of an HMAC-SHA256.
pub type Proof = [u8; 16];

impl RelayToken {
    /// The peer's proof in a Bind frame. It covers the cookie, which stands for the source address that the supernode
    /// saw: copied into a datagram from elsewhere it is worth nothing.
    pub fn bind(&self, session: SessionId, sequence: u32, cookie: &Cookie) -> Proof {
        self.proof(b"traversal bind 1\0", session, sequence, cookie)
    }

    /// The supernode's proof in a Bound frame: only who knows the token can confirm a binding.
    pub fn bound(&self, session: SessionId, sequence: u32, cookie: &Cookie) -> Proof {
        self.proof(b"traversal bound 1\0", session, sequence, cookie)
    }

    fn proof(&self, domain: &[u8], session: SessionId, sequence: u32, cookie: &Cookie) -> Proof {
        let mac = keyed(&self.0)
            .chain_update(domain)
            .chain_update(session.0.to_be_bytes())
            .chain_update(sequence.to_be_bytes())
            .chain_update(cookie);
        truncated(mac)
    }
}

/// Never shows the secret.
impl fmt::Debug for RelayToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayToken(…)")
    }
}

/// HMAC-SHA256 under `key`, which may have any length.
pub(crate) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length (RFC 2104)"),
    }
}

pub(crate) fn truncated(mac: Hmac<Sha256>) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    short
}

/// Compares without telling by its duration where two secrets differ.
pub(crate) fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b))) == 0
}
