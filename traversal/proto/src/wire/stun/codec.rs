//! The only place that hands bytes to stun-rs and takes them back.

use stun_rs::{
    DecoderContextBuilder, HMACKey, MessageClass, MessageDecoderBuilder, MessageEncoderBuilder,
    StunAttribute, StunMessage, attributes::stun::MessageIntegritySha256, methods::BINDING,
};

use super::{Class, HEADER_LEN, MAX_STUN, StunError, TransactionId, scan::FINGERPRINT};

/// The whole attribute.
const FINGERPRINT_LEN: usize = 8;
/// What the checksum is combined with, so that it is no other protocol's (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Writes a Binding message: the attributes, then integrity if there is a key, then the fingerprint if wanted.
#[expect(clippy::disallowed_types, reason = "the id is given, so nothing is drawn")]
pub(super) fn encode(
    class: Class,
    id: TransactionId,
    attributes: impl IntoIterator<Item = StunAttribute>,
    key: Option<&HMACKey>,
    fingerprint: bool,
) -> Vec<u8> {
    let class = match class {
        Class::Request => MessageClass::Request,
        Class::Indication => MessageClass::Indication,
        Class::Success => MessageClass::SuccessResponse,
        Class::Error => MessageClass::ErrorResponse,
    };
    let mut builder = stun_rs::StunMessageBuilder::new(BINDING, class)
        .with_transaction_id(stun_rs::TransactionId::from(id.0));
    for attribute in attributes {
        builder = builder.with_attribute(attribute);
    }
    if let Some(key) = key {
        builder = builder.with_attribute(MessageIntegritySha256::new(key.clone()));
    }
    let mut bytes = vec![0; MAX_STUN];
    // The callers' attributes fit MAX_STUN by construction; were one too long, nothing would be sent.
    let length = MessageEncoderBuilder::default().build().encode(&mut bytes, &builder.build()).unwrap_or(0);
    debug_assert!(length >= HEADER_LEN);
    bytes.truncate(length);
    if fingerprint && length >= HEADER_LEN {
        set_length(&mut bytes, length + FINGERPRINT_LEN);
        let checksum = crc32(&bytes) ^ FINGERPRINT_XOR;
        bytes.extend_from_slice(&FINGERPRINT.to_be_bytes());
        bytes.extend_from_slice(&[0, 4]);
        bytes.extend_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

fn set_length(bytes: &mut [u8], total: usize) {
    let length = (total - HEADER_LEN) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
}

/// Reads a message that [`scan`](super::scan) has let through. Integrity is checked under `key` and must then be there;
/// a fingerprint is checked where there is one.
pub(super) fn decode(bytes: &[u8], key: Option<&HMACKey>) -> Result<StunMessage, StunError> {
    let mut context = DecoderContextBuilder::default().with_validation();
    if let Some(key) = key {
        context = context.with_key(key.clone());
    }
    let decoder = MessageDecoderBuilder::default().with_context(context.build()).build();
    let bare = without_fingerprint(bytes)?;
    let (message, _) =
        decoder.decode(bare.as_deref().unwrap_or(bytes)).map_err(|error| match is_validation(&error) {
            true => StunError::BadIntegrity,
            false => StunError::BadAttribute,
        })?;
    if key.is_some() && message.get::<MessageIntegritySha256>().is_none() {
        return Err(StunError::BadIntegrity);
    }
    Ok(message)
}

/// The message without the fingerprint at its end, which is checked; `None` when there is none.
///
/// Not left to stun-rs, which computes the table of the checksum anew for each message: that takes longer than all else.
fn without_fingerprint(bytes: &[u8]) -> Result<Option<Vec<u8>>, StunError> {
    let mut at = HEADER_LEN;
    while let Some(&[a, b, c, d]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        if u16::from_be_bytes([a, b]) == FINGERPRINT {
            let Some(&value) = bytes.get(at + 4..).and_then(|rest| rest.first_chunk()) else {
                return Err(StunError::BadAttribute);
            };
            if [c, d] != [0, 4] || at + FINGERPRINT_LEN != bytes.len() {
                return Err(StunError::BadAttribute);
            }
            if crc32(&bytes[..at]) ^ FINGERPRINT_XOR != u32::from_be_bytes(value) {
                return Err(StunError::BadIntegrity);
            }
            let mut bare = bytes[..at].to_vec();
            set_length(&mut bare, at);
            return Ok(Some(bare));
        }
        at += 4 + usize::from(u16::from_be_bytes([c, d])).next_multiple_of(4);
    }
    Ok(None)
}

/// CRC-32 as in Ethernet and ITU V.42.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(u32::MAX, step)
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let (mut crc, mut bit) = (at as u32, 0);
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

fn is_validation(error: &stun_rs::error::StunDecodeError) -> bool {
    matches!(&error.0, stun_rs::error::StunErrorLevel::Attribute(attribute)
        if attribute.error == stun_rs::StunErrorType::ValidationFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stun-rs, or anybody, makes of our fingerprint, and we of theirs.
    #[test]
    #[expect(clippy::disallowed_types, reason = "the id is given, so nothing is drawn")]
    fn the_fingerprint_is_everybodys() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let id = TransactionId([7; 12]);
        let ours = encode(Class::Request, id, None, None, true);
        let builder = stun_rs::StunMessageBuilder::new(BINDING, MessageClass::Request)
            .with_transaction_id(stun_rs::TransactionId::from(id.0))
            .with_attribute(stun_rs::attributes::stun::Fingerprint::default());
        let mut theirs = vec![0; MAX_STUN];
        let length = MessageEncoderBuilder::default().build().encode(&mut theirs, &builder.build()).unwrap();
        assert_eq!(ours, theirs[..length]);
        assert!(decode(&ours, None).is_ok());
        // With another type the attribute is one that need not be understood.
        let kind = ours.len() - FINGERPRINT_LEN..ours.len() - FINGERPRINT_LEN + 2;
        for at in (0..ours.len()).filter(|at| !kind.contains(at)) {
            let mut bytes = ours.clone();
            bytes[at] ^= 1;
            assert!(
                super::super::scan::scan(&bytes, &[]).is_err() || decode(&bytes, None).is_err(),
                "byte {at}"
            );
        }
    }
}
