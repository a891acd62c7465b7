//! What a reflector is asked and what it answers.

use std::net::{IpAddr, SocketAddr};

use stun_rs::{
    StunAttribute, StunMessage,
    attributes::{
        discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress, Padding, ResponseOrigin, ResponsePort},
        stun::{ErrorCode, UnknownAttributes, XorMappedAddress},
    },
};

use super::{
    Class, HEADER_LEN, StunError, TransactionId, codec,
    scan::{
        self, CHANGE_REQUEST, ERROR_CODE, FINGERPRINT, OTHER_ADDRESS, PADDING, RESPONSE_ORIGIN,
        RESPONSE_PORT, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS,
    },
};

/// The largest PADDING that is written.
const MAX_PADDING: u16 = 1280;
const FINGERPRINT_LEN: usize = 8;

/// From where the answer is to come (RFC 5780 §7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Change {
    /// From the reflector's other address.
    pub address: bool,
    /// From its other port.
    pub port: bool,
}

/// A Binding request to a reflector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReflectorRequest {
    /// Chosen at random by the client.
    pub id: TransactionId,
    /// `None`: not mentioned. Mentioned without a wish it says that the client speaks RFC 5780 and makes the request
    /// large enough that everything may be answered.
    pub change: Option<Change>,
    /// Answer to this port of the client's address instead (RFC 5780 §7.5): how a mapping's lifetime is found out.
    pub response_port: Option<u16>,
    /// Bytes of PADDING, at most 1280; 0 for none. The answer carries as many.
    pub padding: u16,
    /// Whether it ends with a FINGERPRINT; so does the answer then.
    pub fingerprint: bool,
}

impl ReflectorRequest {
    /// The request that finds out most with least: no wish, but CHANGE-REQUEST and FINGERPRINT for their size.
    pub fn new(id: TransactionId) -> ReflectorRequest {
        let change = Some(Change::default());
        ReflectorRequest { id, change, response_port: None, padding: 0, fingerprint: true }
    }

    /// The request as a datagram.
    pub fn encode(&self) -> Vec<u8> {
        let change = self.change.map(|change| {
            let mut flags = ChangeRequest::new(None).flags();
            flags.set(ChangeRequestFlags::ChangeIp, change.address);
            flags.set(ChangeRequestFlags::ChangePort, change.port);
            ChangeRequest::new(Some(flags)).into()
        });
        let port = self.response_port.map(|port| ResponsePort::from(port).into());
        let attributes: Vec<StunAttribute> =
            [change, port, padding(self.padding)].into_iter().flatten().collect();
        codec::encode(Class::Request, self.id, attributes, None, self.fingerprint)
    }

    /// Reads a request. [`StunError::UnknownAttributes`] is to be answered with error 420, anything else with silence.
    pub fn decode(bytes: &[u8]) -> Result<ReflectorRequest, StunError> {
        let header = scan::peek(bytes)?;
        if header.class != Class::Request {
            return Err(StunError::Type(u16::from_be_bytes([bytes[0], bytes[1]])));
        }
        scan::scan(bytes, &[CHANGE_REQUEST, RESPONSE_PORT, PADDING])?;
        let message = codec::decode(bytes, None)?;
        let change =
            message.get::<ChangeRequest>().and_then(|a| a.as_change_request().ok()).map(|change| Change {
                address: change.flags().contains(ChangeRequestFlags::ChangeIp),
                port: change.flags().contains(ChangeRequestFlags::ChangePort),
            });
        let port =
            message.get::<ResponsePort>().and_then(|a| a.as_response_port().ok()).map(|port| port.as_u16());
        if port == Some(0) {
            return Err(StunError::BadAttribute);
        }
        Ok(ReflectorRequest {
            id: header.id,
            change,
            response_port: port,
            padding: padding_of(&message),
            fingerprint: has_fingerprint(bytes),
        })
    }
}

/// What a reflector answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReflectorReply {
    /// The client's address.
    Success(Reflection),
    /// No (RFC 8489 §14.8).
    Error {
        /// From the request.
        id: TransactionId,
        /// 420: attributes not understood.
        code: u16,
        /// Which, with code 420.
        unknown: Vec<u16>,
    },
}

/// A successful answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// From the request.
    pub id: TransactionId,
    /// The client's address as the reflector sees it.
    pub mapped: SocketAddr,
    /// Where the answer comes from: differs from what the client sees if something in between translates.
    pub origin: Option<SocketAddr>,
    /// The reflector's other address and port, if it has both.
    pub other: Option<SocketAddr>,
    /// Bytes of PADDING.
    pub padding: u16,
    /// Whether a FINGERPRINT ends it.
    pub fingerprint: bool,
}

impl Reflection {
    /// The answer without what would make it longer than `limit` bytes: first the origin goes, then the other address,
    /// then the padding. The mapped address stays.
    pub fn within(mut self, limit: usize) -> Reflection {
        if self.encoded_len() > limit {
            self.origin = None;
        }
        if self.encoded_len() > limit {
            self.other = None;
        }
        let bare = Reflection { padding: 0, ..self }.encoded_len() + 4;
        if self.encoded_len() > limit {
            self.padding = u16::try_from(limit.saturating_sub(bare) / 4 * 4).unwrap_or(0);
        }
        self
    }

    /// Length of the datagram.
    pub fn encoded_len(&self) -> usize {
        let padding = usize::from(self.padding.min(MAX_PADDING)).next_multiple_of(4);
        HEADER_LEN
            + attribute_len(self.mapped)
            + self.origin.map_or(0, attribute_len)
            + self.other.map_or(0, attribute_len)
            + if padding > 0 { 4 + padding } else { 0 }
            + if self.fingerprint { FINGERPRINT_LEN } else { 0 }
    }
}

fn attribute_len(addr: SocketAddr) -> usize {
    match addr.ip() {
        IpAddr::V4(_) => 12,
        IpAddr::V6(_) => 24,
    }
}

impl ReflectorReply {
    /// The reply as a datagram.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ReflectorReply::Success(reflection) => {
                let attributes: Vec<StunAttribute> = [
                    Some(XorMappedAddress::from(reflection.mapped).into()),
                    reflection.origin.map(|origin| ResponseOrigin::from(origin).into()),
                    reflection.other.map(|other| OtherAddress::from(other).into()),
                    padding(reflection.padding),
                ]
                .into_iter()
                .flatten()
                .collect();
                codec::encode(Class::Success, reflection.id, attributes, None, reflection.fingerprint)
            }
            ReflectorReply::Error { id, code, unknown } => {
                // Without a reason phrase: the reply must not outgrow what it answers.
                let error = stun_rs::ErrorCode::new(*code, "").ok().map(|code| ErrorCode::from(code).into());
                let unknown =
                    (!unknown.is_empty()).then(|| UnknownAttributes::from(unknown.as_slice()).into());
                codec::encode(Class::Error, *id, error.into_iter().chain(unknown), None, false)
            }
        }
    }

    /// Reads a reply.
    pub fn decode(bytes: &[u8]) -> Result<ReflectorReply, StunError> {
        let expected =
            [XOR_MAPPED_ADDRESS, RESPONSE_ORIGIN, OTHER_ADDRESS, PADDING, ERROR_CODE, UNKNOWN_ATTRIBUTES];
        let header = scan::scan(bytes, &expected)?;
        let message = codec::decode(bytes, None)?;
        match header.class {
            Class::Success => {
                let mapped = message.get::<XorMappedAddress>().and_then(|a| a.as_xor_mapped_address().ok());
                Ok(ReflectorReply::Success(Reflection {
                    id: header.id,
                    mapped: *mapped.ok_or(StunError::BadAttribute)?.socket_address(),
                    origin: message
                        .get::<ResponseOrigin>()
                        .and_then(|a| a.as_response_origin().ok())
                        .map(|a| *a.socket_address()),
                    other: message
                        .get::<OtherAddress>()
                        .and_then(|a| a.as_other_address().ok())
                        .map(|a| *a.socket_address()),
                    padding: padding_of(&message),
                    fingerprint: has_fingerprint(bytes),
                }))
            }
            Class::Error => {
                let error = message.get::<ErrorCode>().and_then(|a| a.as_error_code().ok());
                let code = error.ok_or(StunError::BadAttribute)?.error_code().error_code();
                let unknown = message.get::<UnknownAttributes>().and_then(|a| a.as_unknown_attributes().ok());
                let unknown = unknown.map(|list| list.attributes().to_vec()).unwrap_or_default();
                Ok(ReflectorReply::Error { id: header.id, code, unknown })
            }
            Class::Request | Class::Indication => {
                Err(StunError::Type(u16::from_be_bytes([bytes[0], bytes[1]])))
            }
        }
    }
}

fn padding(len: u16) -> Option<StunAttribute> {
    let text = "0".repeat(usize::from(len.min(MAX_PADDING)));
    if text.is_empty() { None } else { Padding::new(text).ok().map(Into::into) }
}

fn padding_of(message: &StunMessage) -> u16 {
    let padding = message.get::<Padding>().and_then(|a| a.as_padding().ok());
    padding.map_or(0, |padding| u16::try_from(padding.as_str().len()).unwrap_or(MAX_PADDING).min(MAX_PADDING))
}

/// The fingerprint can only be the last attribute, and [`scan`] has seen to it.
fn has_fingerprint(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_LEN + FINGERPRINT_LEN
        && bytes[bytes.len() - FINGERPRINT_LEN..][..4] == [(FINGERPRINT >> 8) as u8, FINGERPRINT as u8, 0, 4]
}
