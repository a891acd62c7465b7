//! Where a peer can be found: a statement signed by the peer itself.
//!
//! A record says "until then, I am at that supernode". Because the peer signs it, nobody that passes it on has to be
//! trusted: not a directory, not another supernode. The supernode's id is part of it, so a record made for one cannot be
//! shown to another; the sequence number makes the newest one win.

use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::{Identity, PeerId};
use crate::UnixTime;

/// What the signature covers first, so that no other use of the key can be mistaken for a record.
const DOMAIN: &[u8; 19] = b"traversal record 1\0";

/// A peer's statement of where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who says so.
    pub peer: PeerId,
    /// The supernode that the peer is registered at.
    pub supernode: PeerId,
    /// Higher than in every earlier record of this peer. Milliseconds since 1970 do, with no need to store anything.
    pub sequence: u64,
    /// From when on the record is void.
    pub expires: UnixTime,
}

impl Record {
    /// The bytes that are signed: a domain tag, then the fields in order, integers big-endian.
    fn signed_bytes(&self) -> [u8; 19 + 32 + 32 + 8 + 8] {
        let mut bytes = [0; 99];
        bytes[..19].copy_from_slice(DOMAIN);
        bytes[19..51].copy_from_slice(self.peer.as_bytes());
        bytes[51..83].copy_from_slice(self.supernode.as_bytes());
        bytes[83..91].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[91..].copy_from_slice(&self.expires.0.to_be_bytes());
        bytes
    }
}

/// A [`Record`] with its signature; 64 bytes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    record: Record,
    /// In halves, because serde knows arrays up to 32; on the wire it is 64 plain bytes.
    signature: [[u8; 32]; 2],
}

/// A record that is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The signature is not the peer's, or the record was changed.
    #[error("the record of {0} does not carry that peer's signature")]
    BadSignature(PeerId),
    /// The record is void.
    #[error("the record of {peer} expired at {expires:?}")]
    Expired {
        /// Whose record.
        peer: PeerId,
        /// Since when.
        expires: UnixTime,
    },
}

impl SignedRecord {
    /// Signs `record`; its `peer` is set to the signer.
    pub fn sign(record: Record, identity: &Identity) -> SignedRecord {
        let record = Record { peer: identity.peer_id(), ..record };
        let signature = identity.sign(&record.signed_bytes());
        let mut halves = [[0; 32]; 2];
        halves[0].copy_from_slice(&signature[..32]);
        halves[1].copy_from_slice(&signature[32..]);
        SignedRecord { record, signature: halves }
    }

    /// What the record claims. Nothing of it is true before [`verify`](Self::verify) has said so.
    pub fn claims(&self) -> &Record {
        &self.record
    }

    /// The record, if its peer signed it and it is still good at `now`. Checked strictly (no small-order keys, no
    /// malleable signatures), so one record has one signature.
    pub fn verify(&self, now: UnixTime) -> Result<&Record, RecordError> {
        let Record { peer, expires, .. } = self.record;
        if expires <= now {
            return Err(RecordError::Expired { peer, expires });
        }
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&self.signature[0]);
        signature[32..].copy_from_slice(&self.signature[1]);
        VerifyingKey::from_bytes(peer.as_bytes())
            .and_then(|key| {
                key.verify_strict(&self.record.signed_bytes(), &Signature::from_bytes(&signature))
            })
            .map_err(|_| RecordError::BadSignature(peer))?;
        Ok(&self.record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signed() -> SignedRecord {
        let identity = Identity::from_secret(&[7; 32]);
        let supernode = PeerId::from_bytes([9; 32]);
        let record = Record { peer: supernode, supernode, sequence: 5, expires: UnixTime(1_000) };
        SignedRecord::sign(record, &identity)
    }

    #[test]
    fn own_records_verify_until_they_expire() {
        let signed = signed();
        assert_eq!(signed.verify(UnixTime(999)).unwrap().sequence, 5);
        assert!(matches!(signed.verify(UnixTime(1_000)), Err(RecordError::Expired { .. })));
    }

    proptest! {
        /// One flipped bit anywhere, and the record is refused.
        #[test]
        fn any_change_is_noticed(at in 0usize..(32 + 32 + 64), bit in 0u8..8) {
            let mut bytes = postcard::to_allocvec(&signed()).unwrap();
            let len = bytes.len();
            let at = if at < 64 { at } else { len - 64 + (at - 64) };
            bytes[at] ^= 1 << bit;
            let changed: SignedRecord = postcard::from_bytes(&bytes).unwrap();
            prop_assert!(changed.verify(UnixTime(0)).is_err());
        }
    }
}
