//! The only place that hands bytes to stun-rs and takes them back.

use stun_rs::{
    DecoderContextBuilder, HMACKey, MessageClass, MessageDecoderBuilder, MessageEncoderBuilder,
    StunAttribute, StunMessage,
    attributes::stun::{Fingerprint, MessageIntegritySha256},
    methods::BINDING,
};

use super::{Class, HEADER_LEN, MAX_STUN, StunError, TransactionId};

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
    if fingerprint {
        builder = builder.with_attribute(Fingerprint::default());
    }
    let mut bytes = vec![0; MAX_STUN];
    // The callers' attributes fit MAX_STUN by construction; were one too long, nothing would be sent.
    let length = MessageEncoderBuilder::default().build().encode(&mut bytes, &builder.build()).unwrap_or(0);
    debug_assert!(length >= HEADER_LEN);
    bytes.truncate(length);
    bytes
}

/// Reads a message that [`scan`](super::scan) has let through. Integrity is checked under `key` and must then be there;
/// a fingerprint is checked where there is one.
pub(super) fn decode(bytes: &[u8], key: Option<&HMACKey>) -> Result<StunMessage, StunError> {
    let mut context = DecoderContextBuilder::default().with_validation();
    if let Some(key) = key {
        context = context.with_key(key.clone());
    }
    let decoder = MessageDecoderBuilder::default().with_context(context.build()).build();
    let (message, _) = decoder.decode(bytes).map_err(|error| match is_validation(&error) {
        true => StunError::BadIntegrity,
        false => StunError::BadAttribute,
    })?;
    if key.is_some() && message.get::<MessageIntegritySha256>().is_none() {
        return Err(StunError::BadIntegrity);
    }
    Ok(message)
}

fn is_validation(error: &stun_rs::error::StunDecodeError) -> bool {
    matches!(&error.0, stun_rs::error::StunErrorLevel::Attribute(attribute)
        if attribute.error == stun_rs::StunErrorType::ValidationFailed)
}
